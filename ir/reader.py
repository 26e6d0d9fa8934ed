"""What lark calls as it reduces the rules of `ir/grammar.lark`: it makes attributes, programs and records."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from aatc.ir.errors import AatcError, ParseError
from aatc.ir.registry import Operand, Symbol, TorchConst
from aatc.ir.score.expr import INDEX_AXES, Expr, call, const, index, is_reserved, param
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.program import Program
from aatc.ir.torch_names import problem
from aatc.ir.type_text import Malformed, read_dim, read_integer, read_type
from aatc.ir.types import Type

if TYPE_CHECKING:
    from lark import Token


class RawOp(NamedTuple):
    """An operation as read. Words are tokens of their own, or parts of the one token ``head``."""

    results: list[str]
    name: str
    operands: list[str]
    head: Token | None
    attrs: dict[str, Any]
    regions: list[RawRegion]
    types: list[Type] | None
    loc: Token | None


class RawRegion(NamedTuple):
    args: list[tuple[Token, Type]]
    ops: list[RawOp]


class RawFunc(NamedTuple):
    head: Token
    symbol: Token
    args: list[tuple[Token, Type]]
    attrs: dict[str, Any]
    ops: list[RawOp]


#: Results, name and operands of the one word that most heads are.
HEAD = re.compile(r"([^=]*=)?\s*([^\s(]*)\s*\(([^)]*)\)\s*")
VALUES = re.compile(r"%[A-Za-z0-9_]+")


class _Results(list[Any]):
    pass


class _Types(list[Any]):
    pass


class Reader:
    """What lark calls as it reduces rules: one method per rule, given the list of its parts."""

    def begin(self, source: str) -> None:
        self.source = source
        self.names: dict[str, Expr] = {}

    def fail(self, token: Token, message: str, offset: int = 0, hint: str | None = None) -> NoReturn:
        raise ParseError(
            message, line=token.line or 1, column=(token.column or 1) + offset, source=self.source, hint=hint
        )

    # --- modules ----------------------------------------------------------------------------------------
    def module(self, parts: Any) -> Any:
        dims = parts.pop(0) if parts and isinstance(parts[0], dict) else {}
        return dims, parts

    def dims(self, parts: Any) -> Any:
        found: dict[str, tuple[int, int | None]] = {}
        for name, value in parts:
            if name in found:
                self.fail(name, f"dimension {name} is declared twice")
            found[str(name)] = value
        return found

    def range(self, parts: Any) -> Any:
        name, low, high = parts[0], self.number(parts[1:2]), self.number(parts[2:3])
        if not isinstance(low, int):
            self.fail(parts[1], f"the lowest value of {name} must be an integer, not {parts[1]}")
        if not isinstance(high, int) and high != float("inf"):
            self.fail(parts[2], f"the highest value of {name} must be an integer or inf, not {parts[2]}")
        return name, (low, high if isinstance(high, int) else None)

    def func(self, parts: Any) -> Any:
        head, symbol, args, *attrs, ops = parts
        return RawFunc(head, symbol, args, attrs[0] if attrs else {}, ops)

    def arguments(self, parts: Any) -> Any:
        return parts

    def argument(self, parts: Any) -> Any:
        return parts[0], self._type(parts[1])

    def body(self, parts: Any) -> Any:
        return parts

    def op(self, parts: Any) -> Any:
        head = results = None
        if type(parts[0]) is _Results:
            results = parts.pop(0)
        if parts[0].type == "HEAD":
            head, at = parts[0], 1
            made, name, read = HEAD.fullmatch(head).groups()  # type: ignore[union-attr]
            results, operands = VALUES.findall(made or ""), VALUES.findall(read)
        else:
            name, operands, at = parts[0], parts[1], 2
        attrs, regions, types, loc = {}, [], None, None
        for part in parts[at:]:
            kind = type(part)
            if kind is dict:
                attrs = part
            elif kind is _Types:
                types = part
            elif kind is RawRegion:
                regions.append(part)
            else:
                loc = part
        return RawOp(results or [], name, operands, head, attrs, regions, types, loc)

    def results(self, parts: Any) -> Any:
        return _Results(parts)

    def operands(self, parts: Any) -> Any:
        return parts

    def region(self, parts: Any) -> Any:
        return RawRegion(*parts)

    def types(self, parts: Any) -> Any:
        return _Types(map(self._type, parts))

    def _type(self, token: Token) -> Type:
        try:
            return read_type(str(token))
        except Malformed as e:
            self.fail(token, str(e), e.offset)

    # --- attributes -------------------------------------------------------------------------------------
    def attrs(self, parts: Any) -> Any:
        found = dict(parts)
        if len(found) != len(parts):
            names = [str(name) for name, _ in parts]
            token = next(t for n, (t, _) in enumerate(parts) if t in names[:n])
            self.fail(token, f"attribute {token} is given twice")
        return {str(name): value for name, value in found.items()}

    def attr(self, parts: Any) -> Any:
        return parts

    def string(self, parts: Any) -> Any:
        (token,) = parts
        if "\\" not in token and token.isprintable():
            return str(token)[1:-1]
        try:
            return json.loads(token)
        except json.JSONDecodeError as e:
            self.fail(token, f"malformed string: {e.msg}", e.pos)

    def number(self, parts: Any) -> Any:
        (token,) = parts
        if token.isdecimal() or (token[0] == "-" and token[1:].isdecimal()):
            return self._int(token)
        return float(token)

    def _int(self, token: Token, start: int = 0) -> int:
        try:
            return read_integer(token[start:])
        except Malformed as e:
            self.fail(token, str(e))

    def word(self, parts: Any) -> Any:
        return {"true": True, "false": False, "none": None}[parts[0]]

    def operand(self, parts: Any) -> Any:
        return Operand(self._int(parts[0], 1))

    def symbol(self, parts: Any) -> Any:
        return Symbol(parts[0][1:])

    def list(self, parts: Any) -> Any:
        return tuple(parts)

    def torch(self, parts: Any) -> Any:
        return self._constant(parts[0], TorchConst("torch", parts[0][6:]))

    def device(self, parts: Any) -> Any:
        return self._constant(parts[0], TorchConst("device", self.string(parts[1:])))

    def _constant(self, token: Token, value: TorchConst) -> TorchConst:
        if why := problem(value):
            self.fail(token, why)
        return value

    def type(self, parts: Any) -> Any:
        return self._type(parts[0])

    def dim(self, parts: Any) -> Any:
        try:
            return read_dim(parts[0])
        except Malformed as e:
            self.fail(parts[0], str(e), e.offset)

    # --- score programs ---------------------------------------------------------------------------------
    def _score(self, token: Token, build: Callable[..., Expr], *args: Any, **kwargs: Any) -> Expr:
        try:
            return build(*args, **kwargs)
        except AatcError as e:
            self.fail(token, e.message, hint=e.hint)

    def free_program(self, parts: Any) -> Any:
        return parts[0]

    def program(self, parts: Any) -> Any:
        try:
            return Program(parts[0], parts[-1])
        except AatcError as e:  # pragma: no cover  (names are resolved before)
            raise ParseError(e.message, line=1, column=1, source=self.source) from None

    def head(self, parts: Any) -> Any:
        self.names = {}
        for token, p in parts:
            if p.name in self.names:
                self.fail(token, f"parameter {p.name} is declared twice")
            self.names[p.name] = p
        return tuple(p for _, p in parts)

    def parameter(self, parts: Any) -> Any:
        name, axes = parts
        return name, self._score(name, param, str(name), axes[2:-1], axes[0])

    def lets(self, parts: Any) -> Any:
        return None

    def binding(self, parts: Any) -> Any:
        name, value = parts
        if is_reserved(name):
            self.fail(name, f"{name} is a word of the language and cannot be bound by let")
        if name in self.names:
            self.fail(name, f"{name} is bound twice")
        self.names[str(name)] = value

    def literal(self, parts: Any) -> Any:
        return const(self.number(parts))

    def negative(self, parts: Any) -> Any:
        return const(-self.number(parts[1:]))

    def truth(self, parts: Any) -> Any:
        return const(parts[0] == "true")

    def name(self, parts: Any) -> Any:
        (token,) = parts
        found = self.names.get(token)
        if found is not None:
            return found
        if token in INDEX_AXES and len(token) == 1:
            return index(str(token))
        self.fail(token, f"unknown name {token}", hint=similar(token, self.names))

    def infix(self, parts: Any) -> Any:
        left, symbol, right = parts
        return self._score(symbol, call, _INFIX[symbol], left, right)

    def negate(self, parts: Any) -> Any:
        return self._score(parts[0], call, "neg", parts[1])

    def invert(self, parts: Any) -> Any:
        return self._score(parts[0], call, "not", parts[1])

    def constants(self, parts: Any) -> Any:
        return tuple(parts)

    def constant(self, parts: Any) -> Any:
        if parts[0].type == "NAME":
            return str(parts[0])
        value = self.number(parts[-1:])
        return -value if len(parts) == 2 else value

    def call(self, parts: Any) -> Any:
        token, *args = parts
        attrs = args.pop(0) if args and isinstance(args[0], tuple) else ()
        if token not in FUNCTIONS:
            self.fail(token, f"unknown word {token}", hint=similar(token, FUNCTIONS))
        return self._score(token, call, str(token), *args, attrs=attrs)


_INFIX = {f.infix[0]: f.name for f in FUNCTIONS.values() if f.infix}


def similar(word: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(word[:100], [str(k) for k in known], n=3)
    return f"did you mean {' or '.join(close)}?" if close else None
