"""Text to modules, with lark. The grammar stands in `ir/grammar.lark`.

Text from outside is data: nothing in it is evaluated. Whatever is wrong with it gives `ParseError`, or
`VerifyError` when the module breaks a rule of the IR; both carry line, column and a caret.
"""

from __future__ import annotations

import difflib
import gc
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from aatc.ir.core import Block, Func, Loc, Module, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.errors import AatcError, ParseError, VerifyError
from aatc.ir.registry import OPS, Operand, Symbol, TorchConst
from aatc.ir.score.expr import INDEX_AXES, RESERVED, Expr, call, const, index, param
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.program import Program
from aatc.ir.torch_names import problem
from aatc.ir.types import DTYPES, SCALARS, ListType, OpaqueType, PairType, TensorType, TileType, Type

if TYPE_CHECKING:
    from lark import Lark, Token

#: Brackets may nest this deep in a text; the printer stays far below it.
MAX_NESTING = 100
LEVELS = ("geo", "tile")
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1


def parse(text: str, *, verify: bool = True) -> Module:
    """The module that ``text`` describes; checked by `Module.verify` unless ``verify`` is off."""
    builder = _Builder(text)
    with _no_collector():
        module = builder.module(*_run(text, "module"))
    if verify:
        try:
            module.verify()
        except VerifyError as e:
            raise e.in_text(text, *builder.places.get(id(e.at), (1, 1))) from None
    return module


def parse_attrs(text: str) -> dict[str, Any]:
    """An attribute block alone: ``{name = value, ...}``."""
    return _run(text, "op_attrs")


def parse_program(text: str) -> Program:
    """A score program, with or without the word fn: ``(q: f[bhid], k: f[bhjd]) => dot(q, k)``."""
    return _run(text, "free_program")


def parse_type(text: str) -> Type:
    """A type: ``f32[2,N,64]``, ``pair<...>``, ``tile<...>``, ``list<...>``, int float bool index opaque."""
    try:
        return _type(text.strip())
    except _Malformed as e:
        lead = len(text) - len(text.lstrip())
        before = text[: lead + e.offset]
        line, column = before.count("\n") + 1, lead + e.offset - before.rfind("\n")
        raise ParseError(str(e), line=line, column=column, source=text) from None


# --- types and dimensions ----------------------------------------------------------------------------------
class _Malformed(ValueError):
    """What is wrong with one word, and at which character of it."""

    def __init__(self, message: str, offset: int = 0):
        super().__init__(message)
        self.offset = offset


_WRAPPERS: dict[str, Callable[[TensorType], Type]] = {
    "pair": lambda t: PairType(t.dtype, t.shape),
    "tile": lambda t: TileType(t.dtype, t.shape),
}
_TERM = re.compile(r"\s*([+-])?\s*(?:([0-9]+)\s*\*\s*([A-Za-z_][A-Za-z0-9_]*)|([0-9]+)(?![A-Za-z0-9_])|([A-Za-z_][A-Za-z0-9_]*))\s*", re.A)


def _integer(text: str) -> int:
    if len(text) > 25 or not _SMALLEST <= int(text) <= _LARGEST:
        raise _Malformed(f"the integer {text[:25]} does not fit into 64 bits")
    return int(text)


def _dim(text: str) -> Dim:
    """An affine expression: ``64``, ``N``, ``2*N+1``."""
    at, total = 0, Dim(0)
    while at < len(text) or at == 0:
        m = _TERM.match(text, at)
        if m is None or (at > 0 and m[1] is None):
            raise _Malformed(f"{text.strip()!r} is no dimension: 64, N, 2*N+1 are", at)
        sign = -1 if m[1] == "-" else 1
        term = Dim(_integer(m[4])) if m[4] else Dim.of(m[3] or m[5]) * _integer(m[2] or "1")
        total, at = total + term * sign, m.end()
    return total


@lru_cache(maxsize=16384)
def _type(text: str) -> Type:
    wrapper, _, rest = text.partition("<")
    if rest and (wrapper := wrapper.rstrip()) in ("list", "pair", "tile"):
        inner = rest.rstrip()
        if not inner.endswith(">"):
            raise _Malformed(f"{wrapper}< is not closed", len(text))
        start = text.index("<") + 1
        start += len(inner) - len(inner.lstrip())
        if text.count("<") > MAX_NESTING:
            raise _Malformed("the type nests too deep")
        try:
            element = _type(inner[:-1].strip())
        except _Malformed as e:
            raise _Malformed(str(e), start + e.offset) from None
        if wrapper == "list":
            return ListType(element)
        if not isinstance(element, TensorType):
            raise _Malformed(f"{wrapper}<> holds an element type and a shape, not {element}", start)
        return _WRAPPERS[wrapper](element)
    if text in SCALARS:
        return SCALARS[text]
    if text == "opaque":
        return OpaqueType()
    dtype, bracket, shape = text.partition("[")
    if dtype not in DTYPES or not bracket:
        known = [*(f"{d}[...]" for d in DTYPES), *SCALARS, "pair<...>", "tile<...>", "list<...>", "opaque"]
        raise _Malformed(f"{text!r} is no type: there are {', '.join(known)}")
    if not shape.endswith("]"):
        raise _Malformed(f"unexpected text after the shape in {text!r}", text.rfind("]") + 1)
    dims, at = [], len(dtype) + 1
    for part in shape[:-1].split(",") if shape[:-1].strip() else []:
        try:
            dims.append(_dim(part))
        except _Malformed as e:
            raise _Malformed(str(e), at + e.offset) from None
        at += len(part) + 1
    return TensorType(dtype, tuple(dims))


# --- lark --------------------------------------------------------------------------------------------------
_lock = Lock()
_WORDS = {
    "OPNAME": "an operation", "HEAD": "an operation", "VALUE": "a value (%name)", "SYMBOL": "a function (@name)", "TYPE": "a type",
    "NAME": "a name", "STRING": "a string", "NUMBER": "a number", "NUM": "a number", "FUNC": "geo.func or tile.func",
    "LOC": 'loc("file":line:"text")', "AXES": "axes (f[bhid])", "DIM": "a dimension", "COMPARE": "a comparison",
    "RBRACE": "}", "LBRACE": "{", "RPAR": ")", "LPAR": "(", "RSQB": "]", "LSQB": "[", "_COMMA": ",", "_COLON": ":",
    "_EQUALS": "=", "SEMICOLON": ";", "_IN": "in", "_TYPE": "type", "_DIM": "dim", "OPERAND": "an operand (#n)", "WORD": "true, false or none",
    "TORCH": "torch.name", "TRUTH": "true or false", "LET": "let", "OR": "|", "AND": "&", "PLUS": "+", "MINUS": "-",
    "STAR": "*", "SLASH": "/", "TILDE": "~", "DEVICE": "device", "FN": "fn", "DIMS": "dims", "$END": "the end of the text",
}  # fmt: skip


@lru_cache(maxsize=1)
def _lark() -> tuple[Lark, _Reader]:
    from lark import Lark

    reader = _Reader()
    grammar = resources.files("aatc.ir").joinpath("grammar.lark").read_text("utf-8")
    starts = ["module", "op_attrs", "free_program"]
    return Lark(grammar, parser="lalr", start=starts, maybe_placeholders=False, transformer=reader), reader


def _run(text: str, start: str) -> Any:
    from lark.exceptions import LarkError, UnexpectedCharacters, UnexpectedToken

    _check_nesting(text)
    with _lock, _no_collector():
        lark, reader = _lark()
        reader.begin(text)
        try:
            return lark.parse(text, start=start)
        except UnexpectedToken as e:
            raise _unexpected(e, text) from None
        except UnexpectedCharacters as e:
            at = f"unexpected {text[e.pos_in_stream]!r}" + _expected(e.allowed or ())
            raise ParseError(at, line=e.line, column=e.column, source=text) from None
        except (LarkError, RecursionError) as e:
            raise ParseError(f"the text cannot be read: {e}", line=1, column=1, source=text) from None


@contextmanager
def _no_collector() -> Iterator[None]:
    """Pauses the cycle collector: everything read is kept, and looking through it again and again takes a third
    of the time."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def _unexpected(e, text: str) -> ParseError:
    t = e.token
    if t.type == "$END":
        line, column = (t.end_line, t.end_column) if t.end_line is not None else (1, 1)
        return ParseError("the text ends too early" + _expected(e.expected), line=line, column=column, source=text)
    shown = t if len(t) <= 40 else f"{t[:40]}..."
    return ParseError(f"unexpected {str(shown)!r}" + _expected(e.expected), line=t.line, column=t.column, source=text)


def _expected(terminals: Iterable[str]) -> str:
    words = sorted({_WORDS.get(t, t.lower()) for t in terminals if t not in ("COMMENT", "SPACE")})
    if not words:
        return ""
    return f"; expected {', '.join(words[:8])}{' or others' if len(words) > 8 else ''}"


_BRACKET = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|([\[({])|[\])}]')


def _check_nesting(text: str) -> None:
    depth = 0
    for m in _BRACKET.finditer(text):
        if m[1]:
            depth += 1
            if depth > MAX_NESTING:
                at = m.start()
                line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
                raise ParseError(f"brackets nest deeper than {MAX_NESTING}", line=line, column=column, source=text)
        elif m[0] in "])}":
            depth -= 1


class _RawOp(NamedTuple):
    """An operation as read. Words are tokens of their own, or parts of the one token ``head``."""

    results: list[str]
    name: str
    operands: list[str]
    head: Token | None
    attrs: dict[str, Any]
    regions: list[_RawRegion]
    types: list[Type] | None
    loc: Token | None


class _RawRegion(NamedTuple):
    args: list[tuple[Token, Type]]
    ops: list[_RawOp]


class _RawFunc(NamedTuple):
    head: Token
    symbol: Token
    args: list[tuple[Token, Type]]
    attrs: dict[str, Any]
    ops: list[_RawOp]


_HEAD = re.compile(r"([^=]*=)?\s*([^\s(]*)\s*\(([^)]*)\)\s*")
_VALUES = re.compile(r"%[A-Za-z0-9_]+")


class _Results(list):
    pass


class _Types(list):
    pass


class _Reader:
    """What lark calls as it reduces rules: one method per rule, given the list of its parts."""

    def begin(self, source: str) -> None:
        self.source = source
        self.names: dict[str, Expr] = {}

    def fail(self, token: Token, message: str, offset: int = 0, hint: str | None = None) -> NoReturn:
        raise ParseError(message, line=token.line or 1, column=(token.column or 1) + offset, source=self.source, hint=hint)

    # --- modules ---------------------------------------------------------------------------------------------
    def module(self, parts):
        dims = parts.pop(0) if parts and isinstance(parts[0], dict) else {}
        return dims, parts

    def dims(self, parts):
        found: dict[str, tuple[int, int | None]] = {}
        for name, value in parts:
            if name in found:
                self.fail(name, f"dimension {name} is declared twice")
            found[str(name)] = value
        return found

    def range(self, parts):
        name, low, high = parts[0], self.number(parts[1:2]), self.number(parts[2:3])
        if not isinstance(low, int):
            self.fail(parts[1], f"the lowest value of {name} must be an integer, not {parts[1]}")
        if not isinstance(high, int) and high != float("inf"):
            self.fail(parts[2], f"the highest value of {name} must be an integer or inf, not {parts[2]}")
        return name, (low, high if isinstance(high, int) else None)

    def func(self, parts):
        head, symbol, args, *attrs, ops = parts
        return _RawFunc(head, symbol, args, attrs[0] if attrs else {}, ops)

    def arguments(self, parts):
        return parts

    def argument(self, parts):
        return parts[0], self._type(parts[1])

    def body(self, parts):
        return parts

    def op(self, parts):
        head = results = None
        if type(parts[0]) is _Results:
            results = parts.pop(0)
        if parts[0].type == "HEAD":
            head, at = parts[0], 1
            m = _HEAD.fullmatch(head)
            results, name, operands = _VALUES.findall(m[1] or ""), m[2], _VALUES.findall(m[3])
        else:
            name, operands, at = parts[0], parts[1], 2
        attrs, regions, types, loc = {}, [], None, None
        for part in parts[at:]:
            kind = type(part)
            if kind is dict:
                attrs = part
            elif kind is _Types:
                types = part
            elif kind is _RawRegion:
                regions.append(part)
            else:
                loc = part
        return _RawOp(results or [], name, operands, head, attrs, regions, types, loc)

    def results(self, parts):
        return _Results(parts)

    def operands(self, parts):
        return parts

    def region(self, parts):
        return _RawRegion(*parts)

    def types(self, parts):
        return _Types(map(self._type, parts))

    def _type(self, token: Token) -> Type:
        try:
            return _type(str(token))
        except _Malformed as e:
            self.fail(token, str(e), e.offset)

    # --- attributes ------------------------------------------------------------------------------------------
    def attrs(self, parts):
        found = dict(parts)
        if len(found) != len(parts):
            names = [str(name) for name, _ in parts]
            token = next(t for n, (t, _) in enumerate(parts) if t in names[:n])
            self.fail(token, f"attribute {token} is given twice")
        return {str(name): value for name, value in found.items()}

    def attr(self, parts):
        return parts

    def string(self, parts):
        (token,) = parts
        if "\\" not in token and token.isprintable():
            return str(token)[1:-1]
        try:
            return json.loads(token)
        except json.JSONDecodeError as e:
            self.fail(token, f"malformed string: {e.msg}", e.pos)

    def number(self, parts):
        (token,) = parts
        if token.isdecimal() or (token[0] == "-" and token[1:].isdecimal()):
            return self._int(token)
        return float(token)

    def _int(self, token: Token, start: int = 0) -> int:
        try:
            return _integer(token[start:])
        except _Malformed as e:
            self.fail(token, str(e))

    def word(self, parts):
        return {"true": True, "false": False, "none": None}[parts[0]]

    def operand(self, parts):
        return Operand(self._int(parts[0], 1))

    def symbol(self, parts):
        return Symbol(parts[0][1:])

    def list(self, parts):
        return tuple(parts)

    def torch(self, parts):
        return self._constant(parts[0], TorchConst("torch", parts[0][6:]))

    def device(self, parts):
        return self._constant(parts[0], TorchConst("device", self.string(parts[1:])))

    def _constant(self, token: Token, value: TorchConst) -> TorchConst:
        if why := problem(value):
            self.fail(token, why)
        return value

    def type(self, parts):
        return self._type(parts[0])

    def dim(self, parts):
        try:
            return _dim(parts[0])
        except _Malformed as e:
            self.fail(parts[0], str(e), e.offset)

    # --- score programs --------------------------------------------------------------------------------------
    def _score(self, token: Token, build: Callable[..., Expr], *args: Any, **kwargs: Any) -> Expr:
        try:
            return build(*args, **kwargs)
        except AatcError as e:
            self.fail(token, e.message, hint=e.hint)

    def free_program(self, parts):
        return parts[0]

    def program(self, parts):
        try:
            return Program(parts[0], parts[-1])
        except AatcError as e:  # pragma: no cover  (names are resolved before)
            raise ParseError(e.message, line=1, column=1, source=self.source) from None

    def head(self, parts):
        self.names = {}
        for token, p in parts:
            if p.name in self.names:
                self.fail(token, f"parameter {p.name} is declared twice")
            self.names[p.name] = p
        return tuple(p for _, p in parts)

    def parameter(self, parts):
        name, axes = parts
        return name, self._score(name, param, str(name), axes[2:-1], axes[0])

    def lets(self, parts):
        return None

    def binding(self, parts):
        name, value = parts
        if name in RESERVED:
            self.fail(name, f"{name} is a word of the language and cannot be bound by let")
        if name in self.names:
            self.fail(name, f"{name} is bound twice")
        self.names[str(name)] = value

    def literal(self, parts):
        return const(self.number(parts))

    def negative(self, parts):
        return const(-self.number(parts[1:]))

    def truth(self, parts):
        return const(parts[0] == "true")

    def name(self, parts):
        (token,) = parts
        found = self.names.get(token)
        if found is not None:
            return found
        if token in INDEX_AXES and len(token) == 1:
            return index(str(token))
        self.fail(token, f"unknown name {token}", hint=_similar(token, self.names))

    def infix(self, parts):
        left, symbol, right = parts
        return self._score(symbol, call, _INFIX[symbol], left, right)

    def negate(self, parts):
        return self._score(parts[0], call, "neg", parts[1])

    def invert(self, parts):
        return self._score(parts[0], call, "not", parts[1])

    def constants(self, parts):
        return tuple(parts)

    def constant(self, parts):
        if parts[0].type == "NAME":
            return str(parts[0])
        value = self.number(parts[-1:])
        return -value if len(parts) == 2 else value

    def call(self, parts):
        token, *args = parts
        attrs = args.pop(0) if args and isinstance(args[0], tuple) else ()
        if token not in FUNCTIONS:
            self.fail(token, f"unknown word {token}", hint=_similar(token, FUNCTIONS))
        return self._score(token, call, str(token), *args, attrs=attrs)


_INFIX = {f.infix[0]: f.name for f in FUNCTIONS.values() if f.infix}


def _similar(word: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(word[:100], [str(k) for k in known], n=3)
    return f"did you mean {' or '.join(close)}?" if close else None


# --- objects -----------------------------------------------------------------------------------------------
_LOC = re.compile(r'loc\s*\(\s*("(?:[^"\\]|\\.)*")\s*:\s*([0-9]+)\s*(?::\s*("(?:[^"\\]|\\.)*"))?\s*\)', re.A)


class _Builder:
    """Resolves names and builds the objects; ``places`` are the positions of operations and functions by id."""

    def __init__(self, source: str):
        self.places: dict[int, tuple[int, int]] = {}
        self.locs: dict[str, Loc] = {}
        self.reader = _Reader()
        self.reader.begin(source)
        self.fail = self.reader.fail

    def module(self, dims: dict[str, tuple[int, int | None]], funcs: list[_RawFunc]) -> Module:
        module = Module(dims=dims)
        for raw in funcs:
            name = raw.symbol[1:]
            if name in module.funcs:
                self.fail(raw.symbol, f"function @{name} is defined twice")
            level = raw.head.removesuffix(".func")
            if level not in LEVELS:
                self.fail(raw.head, f"there is no level {level}: functions are geo.func or tile.func")
            func = module.add(Func(name, level, self.block(raw.args, raw.ops, {}), raw.attrs))
            self.places[id(func)] = (raw.head.line or 1, raw.head.column or 1)
        return module

    def block(self, args: list[tuple[Token, Type]], ops: list[_RawOp], scope: dict[str, Value]) -> Block:
        own: list[str] = []
        block = Block([self.argument(token, Value(t), scope, own) for token, t in args])
        block.ops = [self.op(raw, scope, own) for raw in ops]
        for name in own:
            del scope[name]
        return block

    def argument(self, token: Token, value: Value, scope: dict[str, Value], own: list[str]) -> Value:
        if token in scope:
            self.fail(token, f"{token} is defined twice")
        return self.define(token, value, scope, own)

    def define(self, word: str, value: Value, scope: dict[str, Value], own: list[str]) -> Value:
        name = str(word)
        scope[name] = value
        own.append(name)
        if not name[1:].isdecimal():
            value.name = name[1:]
        return value

    def op(self, raw: _RawOp, scope: dict[str, Value], own: list[str]) -> Op:
        name = str(raw.name)
        if name not in OPS:
            self.fail_at(raw, raw.name, 0, f"unknown operation {name}", _similar(name, OPS))
        types = raw.types or []
        if len(types) != len(raw.results):
            message = f"{name} names {len(raw.results)} results and gives {len(types)} types"
            self.fail_at(raw, raw.name, 0, message)
        operands = []
        for n, word in enumerate(raw.operands):
            value = scope.get(word)
            if value is None:
                hint = _similar(word, scope) if len(scope) < 200 else None
                self.fail_at(raw, word, len(raw.results) + n, f"{word} is not defined here", hint)
            operands.append(value)
        regions = [self.block(r.args, r.ops, scope) for r in raw.regions]
        loc = self.loc(raw.loc) if raw.loc is not None else None
        op = Op(name, operands, raw.attrs, types, regions=regions, loc=loc)
        for n, (word, value) in enumerate(zip(raw.results, op.results, strict=True)):
            if word in scope:
                self.fail_at(raw, word, n, f"{word} is defined twice")
            self.define(word, value, scope, own)
        first = raw.head or (raw.results[0] if raw.results else raw.name)
        self.places[id(op)] = (first.line, first.column)  # type: ignore[union-attr]
        return op

    def fail_at(self, raw: _RawOp, word: str, position: int, message: str, hint: str | None = None) -> NoReturn:
        """Fails at one word of a head: the operation's name, or its value number ``position``."""
        if raw.head is None:
            self.fail(word, message, hint=hint)  # type: ignore[arg-type]
        at = list(_VALUES.finditer(raw.head))[position].start() if word[0] == "%" else _HEAD.fullmatch(raw.head).start(2)  # type: ignore[union-attr]
        self.fail(raw.head, message, at, hint)

    def loc(self, token: Token) -> Loc:
        found = self.locs.get(token)
        if found is None:
            m = _LOC.fullmatch(token)
            if m is None or len(m[2]) > 9:
                self.fail(token, 'a location is loc("file":line) or loc("file":line:"text")')
            try:
                found = Loc(json.loads(m[1]), int(m[2]), json.loads(m[3]) if m[3] else "")
            except json.JSONDecodeError as e:
                self.fail(token, f"malformed string in a location: {e.msg}")
            self.locs[str(token)] = found
        return found
