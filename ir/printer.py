"""Modules as text. `ir.parser` reads it back: ``parse(module_text(m)) == m``. The first line is the version of the IR.

Value names are hints: they are made legal and unique within a function here, and count for nothing in
`canonical_text`, which defines when two modules are the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from aatc.ir.core import Block, Func, Loc, Module, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.registry import OPS, Operand, Symbol, TorchConst
from aatc.ir.score.program import Program
from aatc.ir.types import Type

#: Of operations, their attributes and what they mean: a text of another one is refused, not guessed at. It grows with
#: every change after which a text could mean something else, or be read no more.
VERSION = 2

_ILLEGAL = re.compile(r"[^A-Za-z0-9_]+")


def module_text(module: Module) -> str:
    """The whole module; ends with a newline."""
    return _module(module, canonical=False)


def canonical_text(module: Module) -> str:
    """The text with values numbered, dimensions and function attributes sorted: equal for equal modules."""
    return _module(module, canonical=True)


def func_text(func: Func, *, canonical: bool = False) -> str:
    """One function, without a newline at the end."""
    names = _Names(canonical)
    lines: list[str] = []
    attrs = dict(sorted(func.attrs.items())) if canonical else func.attrs
    head = f"{func.level}.func @{func.name}({_arguments(func.body, names)})"
    lines.append(f"{head} {attrs_text(attrs)} {{" if attrs else f"{head} {{")
    _block(func.body, "  ", names, lines)
    lines.append("}")
    return "\n".join(lines)


def op_line(op: Op) -> str:
    """One operation on one line, for messages: nested blocks are shown as ``{ ... }``; never fails."""
    try:
        return _head(op, _Names(False), attrs_text(_ordered(op))) + _tail(op, [" (...) { ... }" for _ in op.regions])
    except (TypeError, ValueError):  # an attribute without a text form
        return _head(op, _Names(False), repr(op.attrs)) + _tail(op, [])


def attrs_text(attrs: dict[str, Any]) -> str:
    """``{name = value, ...}``; TypeError when a value has no text form."""
    return f"{{{', '.join(f'{name} = {value_text(v)}' for name, v in attrs.items())}}}"


def value_text(v: Any) -> str:
    """An attribute's value; TypeError when it has no text form."""
    if v is None:
        return "none"
    if isinstance(v, str):
        return string_text(v)
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, int):
        return int.__repr__(v)
    if isinstance(v, float):
        return float.__repr__(v)
    if isinstance(v, (tuple, list)):
        return f"[{', '.join(map(value_text, v))}]"
    if isinstance(v, (Symbol, Operand)):
        return str(v)
    if isinstance(v, Program):
        return _program_text(v)
    if isinstance(v, Type):
        return f"type({type_text(v)})"
    if isinstance(v, Dim):
        return str(v) if v.is_static else f"dim({v})"
    if isinstance(v, TorchConst):
        return f"torch.{v.name}" if v.kind == "torch" else f"device({string_text(v.name)})"
    raise TypeError(f"a {type(v).__name__} has no text form in attributes")


def string_text(s: str) -> str:
    """A JSON string; letters of any script stay readable, everything unprintable is escaped."""
    return json.dumps(s, ensure_ascii=not s.isprintable())


@lru_cache(maxsize=4096)
def type_text(t: Type) -> str:
    return str(t)


def loc_text(loc: Loc) -> str:
    text = f":{string_text(loc.text)}" if loc.text else ""
    return f"loc({string_text(loc.file)}:{loc.line}{text})"


@lru_cache(maxsize=1024)
def _program_text(program: Program) -> str:
    return f"fn{program}"


class _Names:
    """Names of values in one function: legal and unique, or numbers only when ``numbered``."""

    def __init__(self, numbered: bool):
        self.numbered = numbered
        self.of: dict[Value, str] = {}
        self.taken: set[str] = set()
        self.unnamed = 0
        self.copies: dict[str, int] = {}

    def __call__(self, value: Value) -> str:
        name = self.of.get(value)
        if name is None:
            name = self.of[value] = f"%{self._fresh(value.name)}"
        return name

    def all(self, values: Iterable[Value]) -> str:
        return ", ".join(map(self, values))

    def _fresh(self, hint: str) -> str:
        name = "" if self.numbered else _ILLEGAL.sub("_", hint)
        if not name or (name.isdecimal()):
            name = str(self.unnamed)
            self.unnamed += 1
            return name  # a number is never a hint, so it is free
        base = name
        while name in self.taken:
            self.copies[base] = self.copies.get(base, 0) + 1
            name = f"{base}_{self.copies[base]}"
        self.taken.add(name)
        return name


def _module(module: Module, *, canonical: bool) -> str:
    parts = [f"aatc {VERSION}"]
    if module.dims:
        dims = sorted(module.dims.items()) if canonical else module.dims.items()
        ranges = (f"{n} in [{low}, {'inf' if high is None else high}]" for n, (low, high) in dims)
        parts.append(f"dims {{{', '.join(ranges)}}}")
    parts += [func_text(f, canonical=canonical) for f in module.funcs.values()]
    return "\n\n".join(parts) + "\n"


def _arguments(block: Block, names: _Names) -> str:
    return ", ".join(f"{names(a)}: {type_text(a.type)}" for a in block.args)


def _block(block: Block, indent: str, names: _Names, lines: list[str]) -> None:
    for op in block.ops:
        _op(op, indent, names, lines)


def _op(op: Op, indent: str, names: _Names, lines: list[str]) -> None:
    line = indent + _head(op, names, attrs_text(_ordered(op)) if op.attrs else "")
    for region in op.regions:
        lines.append(f"{line} ({_arguments(region, names)}) {{")
        _block(region, indent + "  ", names, lines)
        line = indent + "}"
    lines.append(line + _tail(op, []))


def _head(op: Op, names: _Names, attrs: str) -> str:
    operands = names.all(op.operands)
    results = f"{names.all(op.results)} = " if op.results else ""
    return f"{results}{op.name}({operands}){f' {attrs}' if op.attrs else ''}"


def _tail(op: Op, regions: list[str]) -> str:
    types = f" : {', '.join(type_text(r.type) for r in op.results)}" if op.results else ""
    return f"{''.join(regions)}{types}{f' {loc_text(op.loc)}' if op.loc is not None else ''}"


def _ordered(op: Op) -> dict[str, Any]:
    """Attributes in the declared order, undeclared ones after them."""
    declared = OPS[op.name].attrs if op.name in OPS else {}
    first = {name: op.attrs[name] for name in declared if name in op.attrs}
    return {**first, **op.attrs} if len(first) != len(op.attrs) else first
