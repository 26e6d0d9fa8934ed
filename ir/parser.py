"""Text to modules, with lark. The grammar stands in `ir/grammar.lark`.

Text from outside is data: nothing in it is evaluated. Whatever is wrong with it gives `ParseError`, or
`VerifyError` when the module breaks a rule of the IR; both carry line, column and a caret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn

from aatc.ir import collector
from aatc.ir.core import Block, Func, Loc, Module, Op, Value
from aatc.ir.errors import ParseError, VerifyError, VersionError
from aatc.ir.printer import VERSION
from aatc.ir.reader import HEAD, VALUES, RawFunc, RawOp, Reader, similar
from aatc.ir.registry import OPS
from aatc.ir.score.program import Program
from aatc.ir.type_text import MAX_NESTING, Malformed, read_type
from aatc.ir.types import Type

if TYPE_CHECKING:
    from lark import Lark, Token

LEVELS = ("geo", "tile", "program")


def parse(text: str, *, verify: bool = True) -> Module:
    """The module that ``text`` describes; checked by `Module.verify` unless ``verify`` is off.

    The text starts with the version of the IR it is written in, ``aatc 2``. VersionError when that is another one. One
    that does not say it is read as if it were this version's, and if it cannot be, the error's hint says so.
    """
    named = _check_version(text)
    try:
        return _parse(text, verify)
    except (ParseError, VerifyError) as e:
        if not named:
            e.suggest(f"the text does not start with its version (aatc {VERSION}) and was read as that one")
        raise


def _parse(text: str, verify: bool) -> Module:
    builder = _Builder(text)
    with collector.paused():
        module = builder.module(*_run(text, "module"))
    if verify:
        try:
            module.verify()
        except VerifyError as e:
            raise e.in_text(text, *builder.places.get(id(e.at), (1, 1))) from None
    return module


_VERSION = re.compile(r"(?:\s|//[^\n]*\n)*(aatc[ \t]+([0-9]{1,9})(?![0-9A-Za-z_]))")


def _check_version(text: str) -> bool:
    """Whether the text names its version; VersionError if it is not ours."""
    m = _VERSION.match(text)
    if m is None:
        return False
    found = int(m[2])
    if found != VERSION:
        at = m.start(1)
        error = VersionError(
            f"the text is written in version {found} of the IR, and this aatc reads version {VERSION}",
            line=text.count("\n", 0, at) + 1, column=at - text.rfind("\n", 0, at), source=text,
            hint="read it with the aatc that wrote it" if found < VERSION else "a newer aatc reads it",
        )  # fmt: skip
        error.found, error.ours = found, VERSION
        raise error
    return True


def parse_attrs(text: str) -> dict[str, Any]:
    """An attribute block alone: ``{name = value, ...}``."""
    attrs: dict[str, Any] = _run(text, "op_attrs")
    return attrs


def parse_program(text: str) -> Program:
    """A score program, with or without the word fn: ``(q: f[bhid], k: f[bhjd]) => dot(q, k)``."""
    program: Program = _run(text, "free_program")
    return program


def parse_type(text: str) -> Type:
    """A type: ``f32[2,N,64]``, ``pair<...>``, ``tile<...>``, ``list<...>``, int float bool index opaque."""
    try:
        return read_type(text.strip())
    except Malformed as e:
        lead = len(text) - len(text.lstrip())
        before = text[: lead + e.offset]
        line, column = before.count("\n") + 1, lead + e.offset - before.rfind("\n")
        raise ParseError(str(e), line=line, column=column, source=text) from None


# --- lark --------------------------------------------------------------------------------------------------
_lock = Lock()
_WORDS = {
    "OPNAME": "an operation",
    "HEAD": "an operation",
    "VALUE": "a value (%name)",
    "SYMBOL": "a function (@name)",
    "TYPE": "a type",
    "NAME": "a name",
    "OWNED": "an attribute of a backend (cpu.plan)",
    "STRING": "a string",
    "NUMBER": "a number",
    "NUM": "a number",
    "FUNC": "geo.func, tile.func or program.func",
    "LOC": 'loc("file":line:"text")',
    "AXES": "axes (f[bhid])",
    "DIM": "a dimension",
    "COMPARE": "a comparison",
    "RBRACE": "}",
    "LBRACE": "{",
    "RPAR": ")",
    "LPAR": "(",
    "RSQB": "]",
    "LSQB": "[",
    "_COMMA": ",",
    "_COLON": ":",
    "_EQUALS": "=",
    "SEMICOLON": ";",
    "_IN": "in",
    "_TYPE": "type",
    "_DIM": "dim",
    "OPERAND": "an operand (#n)",
    "WORD": "true, false or none",
    "TORCH": "torch.name",
    "TRUTH": "true or false",
    "LET": "let",
    "OR": "|",
    "AND": "&",
    "PLUS": "+",
    "MINUS": "-",
    "STAR": "*",
    "SLASH": "/",
    "TILDE": "~",
    "DEVICE": "device",
    "FN": "fn",
    "DIMS": "dims",
    "_VERSION": f"aatc {VERSION}",
    "$END": "the end of the text",
}


@lru_cache(maxsize=1)
def _lark() -> tuple[Lark, Reader]:
    from lark import Lark

    reader = Reader()
    grammar = resources.files("aatc.ir").joinpath("grammar.lark").read_text("utf-8")
    starts = ["module", "op_attrs", "free_program"]
    return Lark(grammar, parser="lalr", start=starts, maybe_placeholders=False, transformer=reader), reader


def _run(text: str, start: str) -> Any:
    from lark.exceptions import LarkError, UnexpectedCharacters, UnexpectedToken

    _check_nesting(text)
    with _lock, collector.paused():
        lark, reader = _lark()
        reader.begin(text)
        try:
            return lark.parse(text, start=start)
        except UnexpectedToken as e:
            raise _unexpected(e, text) from None
        except UnexpectedCharacters as e:
            message = f"unexpected {e.char!r}" + _expected(e.allowed or ())
            raise ParseError(message, line=e.line, column=e.column, source=text) from None
        except (LarkError, RecursionError) as e:
            raise ParseError(f"the text cannot be read: {e}", line=1, column=1, source=text) from None


def _unexpected(e: Any, text: str) -> ParseError:
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


# --- objects -----------------------------------------------------------------------------------------------
_LOC = re.compile(r'loc\s*\(\s*("(?:[^"\\]|\\.)*")\s*:\s*([0-9]+)\s*(?::\s*("(?:[^"\\]|\\.)*"))?\s*\)', re.A)


class _Builder:
    """Resolves names and builds the objects; ``places`` holds positions of operations and functions by id."""

    def __init__(self, source: str):
        self.places: dict[int, tuple[int, int]] = {}
        self.locs: dict[str, Loc] = {}
        self.reader = Reader()
        self.reader.begin(source)
        self.fail = self.reader.fail

    def module(self, dims: dict[str, tuple[int, int | None]], funcs: list[RawFunc]) -> Module:
        module = Module(dims=dims)
        for raw in funcs:
            name = raw.symbol[1:]
            if name in module.funcs:
                self.fail(raw.symbol, f"function @{name} is defined twice")
            level = raw.head.removesuffix(".func")
            if level not in LEVELS:
                self.fail(raw.head, f"there is no level {level}: functions are geo.func, tile.func or program.func")
            func = module.add(Func(name, level, self.block(raw.args, raw.ops, {}), raw.attrs))
            self.places[id(func)] = (raw.head.line or 1, raw.head.column or 1)
        return module

    def block(self, args: list[tuple[Token, Type]], ops: list[RawOp], scope: dict[str, Value]) -> Block:
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

    def op(self, raw: RawOp, scope: dict[str, Value], own: list[str]) -> Op:
        name = str(raw.name)
        if name not in OPS:
            self.fail_at(raw, raw.name, 0, f"unknown operation {name}", similar(name, OPS))
        types = raw.types or []
        if len(types) != len(raw.results):
            message = f"{name} names {len(raw.results)} results and gives {len(types)} types"
            self.fail_at(raw, raw.name, 0, message)
        operands = []
        for n, word in enumerate(raw.operands):
            value = scope.get(word)
            if value is None:
                hint = similar(word, scope) if len(scope) < 200 else None
                self.fail_at(raw, word, len(raw.results) + n, f"{word} is not defined here", hint)
            operands.append(value)
        regions = [self.block(r.args, r.ops, scope) for r in raw.regions]
        loc = self.loc(raw.loc) if raw.loc is not None else None
        op = Op(name, operands, raw.attrs, types, regions=regions, loc=loc)
        for n, (word, value) in enumerate(zip(raw.results, op.results, strict=True)):
            if word in scope:
                self.fail_at(raw, word, n, f"{word} is defined twice")
            self.define(word, value, scope, own)
        first: Any = raw.head or (raw.results[0] if raw.results else raw.name)
        self.places[id(op)] = (first.line, first.column)
        return op

    def fail_at(self, raw: RawOp, word: str, position: int, message: str, hint: str | None = None) -> NoReturn:
        """Fails at one word of a head: the operation's name, or its value number ``position``."""
        token: Any = raw.head
        if token is None:
            token, offset = word, 0
        elif word[0] == "%":
            offset = list(VALUES.finditer(token))[position].start()
        else:
            offset = len(HEAD.fullmatch(token)[1] or "")  # type: ignore[index]
            offset += len(token[offset:]) - len(token[offset:].lstrip())
        self.fail(token, message, offset, hint)

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
