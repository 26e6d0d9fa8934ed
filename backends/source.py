"""Writing Python: names, lines, comments. Nothing from a module's text gets into code except through here."""

from __future__ import annotations

import builtins
import itertools
import keyword
import linecache
import re
import types
import weakref
from typing import Any

from aatc.ir.core import Loc, Value
from aatc.ir.types import torch_dtype

#: Names generated code may refer to; values get others.
NAMESPACE = frozenset(
    {
        "torch",
        "aten",
        "rt",
        "words",
        "programs",
        "arena",
        "kernels",
        "regions",
        "constants",
        "sizes",
        "B",
        "H",
        "N",
        "M",
        "G",
        "inf",
        "nan",
        "dims",
        "operator",
    }
)


class Source:
    """Indented lines of one function and unique names for its values."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 1
        self.names: dict[Value, str] = {}
        self.copies: dict[str, int] = {}
        self.taken: set[str] = set(NAMESPACE) | set(keyword.kwlist) | set(dir(builtins))

    def line(self, text: str = "") -> None:
        self.lines.append("    " * self.depth + text if text else "")

    def comment(self, what: str, loc: Loc | None = None) -> None:
        where = f"  {loc}" if loc else ""
        self.line(f"# {printable(what)}{printable(where)}")

    def fresh(self, hint: str) -> str:
        base = re.sub(r"[^A-Za-z0-9_]", "_", hint)[:40] or "v"
        if not base[0].isalpha():
            base = f"v{base}"
        name = base
        while name in self.taken:
            self.copies[base] = self.copies.get(base, 1) + 1
            name = f"{base}_{self.copies[base]}"
        self.taken.add(name)
        return name

    def name(self, v: Value) -> str:
        if v not in self.names:
            self.names[v] = self.fresh(v.name or "v")
        return self.names[v]


def printable(text: str) -> str:
    """Text as part of one comment line: control characters cannot end the line."""
    return "".join(c if c.isprintable() else "?" for c in text)[:160]


def number(value: float | int) -> str:
    """A number as a Python literal; `inf` and `nan` are names in the namespace."""
    return (
        repr(value)
        if isinstance(value, (bool, int))
        else str(float(value))
        if abs(float(value)) == float("inf")
        else repr(float(value))
    )


def torch_name(dtype: str) -> str:
    """The name under ``torch.`` of an IR dtype."""
    return str(torch_dtype(dtype)).removeprefix("torch.")


_numbers = itertools.count(1)


def compile_source(text: str, namespace: dict[str, Any], title: str) -> dict[str, Any]:
    """Executes generated source; tracebacks show its lines for as long as its functions live."""
    file = f"<aatc {title} {next(_numbers)}>"
    exec(compile(text, file, "exec"), namespace)  # the text was written by a backend, never by a user
    made = [f for f in namespace.values() if isinstance(f, types.FunctionType) and f.__code__.co_filename == file]
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    for function in made:
        weakref.finalize(function, linecache.cache.pop, file, None).atexit = False
    return namespace
