"""Types and dimensions from their spelling: ``pair<f32[2,N,2*N+1]>``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from aatc.ir.dims import Dim
from aatc.ir.types import (
    DTYPES,
    LAYOUTS,
    SCALARS,
    TILE_SPACES,
    ListType,
    OpaqueType,
    PairType,
    RunsType,
    TensorType,
    TileType,
    Type,
)

#: Brackets may nest this deep in a text; the printer stays far below it.
MAX_NESTING = 100
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1


class Malformed(ValueError):
    """What is wrong with one word, and at which character of it."""

    def __init__(self, message: str, offset: int = 0):
        super().__init__(message)
        self.offset = offset


_WRAPPERS: dict[str, Callable[[TensorType], Type]] = {
    "pair": lambda t: PairType(t.dtype, t.shape),
    "tile": lambda t: TileType(t.dtype, t.shape),
}
_SPACE = re.compile(r"(.*\])\s*,\s*([A-Za-z_]\w*)\s*", re.ASCII | re.DOTALL)
_RUNS = re.compile(r"runs\[\s*([0-9]+)\s*,\s*([0-9]+)\s*,\s*([0-9]+)\s*\]", re.ASCII)
_PANELS = re.compile(r"panels\s*\(\s*([0-9]+)\s*(?:,\s*([0-9]+)\s*)?\)", re.ASCII)
_NAME = "[A-Za-z_][A-Za-z0-9_]*"
_TERM = re.compile(rf"\s*([+-])?\s*(?:([0-9]+)\s*\*\s*({_NAME})|([0-9]+)(?![A-Za-z0-9_])|({_NAME}))\s*", re.ASCII)


def read_integer(text: str) -> int:
    """An integer of at most 64 bits."""
    if len(text) > 25 or not _SMALLEST <= int(text) <= _LARGEST:
        raise Malformed(f"the integer {text[:25]} does not fit into 64 bits")
    return int(text)


def read_dim(text: str) -> Dim:
    """An affine expression: ``64``, ``N``, ``2*N+1``."""
    at, total = 0, Dim(0)
    while at < len(text) or at == 0:
        m = _TERM.match(text, at)
        if m is None or (at > 0 and m[1] is None):
            raise Malformed(f"{text.strip()!r} is no dimension: 64, N, 2*N+1 are", at)
        sign = -1 if m[1] == "-" else 1
        term = Dim(read_integer(m[4])) if m[4] else Dim.of(m[3] or m[5]) * read_integer(m[2] or "1")
        total, at = total + term * sign, m.end()
    return total


@lru_cache(maxsize=16384)
def read_type(text: str) -> Type:
    """The type that ``text``, without blanks around it, spells."""
    wrapper, _, rest = text.partition("<")
    if rest and (wrapper := wrapper.rstrip()) in ("list", "pair", "tile"):
        inner = rest.rstrip()
        if not inner.endswith(">"):
            raise Malformed(f"{wrapper}< is not closed", len(text))
        start = text.index("<") + 1
        start += len(inner) - len(inner.lstrip())
        placed = _SPACE.fullmatch(inner[:-1]) if wrapper == "tile" else None
        if placed:
            if placed[2] not in TILE_SPACES:
                raise Malformed(f"{placed[2]!r} is no space: there are {', '.join(TILE_SPACES)}", placed.start(2))
            return replace(read_type(f"tile<{placed[1]}>"), space=placed[2])  # type: ignore[type-var]
        if text.count("<") > MAX_NESTING:
            raise Malformed("the type nests too deep")
        try:
            element = read_type(inner[:-1].strip())
        except Malformed as e:
            raise Malformed(str(e), start + e.offset) from None
        if wrapper == "list":
            return ListType(element)
        if not isinstance(element, TensorType) or element.layout:
            raise Malformed(f"{wrapper}<> holds an element type and a shape, not {element}", start)
        return _WRAPPERS[wrapper](element)
    if text in SCALARS:
        return SCALARS[text]
    if text == "opaque":
        return OpaqueType()
    if m := _RUNS.fullmatch(text):
        return RunsType(*(read_integer(n) for n in m.groups()))
    dtype, bracket, shape = text.partition("[")
    if dtype not in DTYPES or not bracket:
        known = [*(f"{d}[...]" for d in DTYPES), *SCALARS, "pair<...>", "tile<...>", "list<...>", "runs[...]", "opaque"]
        raise Malformed(f"{text!r} is no type: there are {', '.join(known)}")
    if not shape.endswith("]"):
        raise Malformed(f"unexpected text after the shape in {text!r}", text.rfind("]") + 1)
    shape, semicolon, layout = shape[:-1].partition(";")
    dims, at = [], len(dtype) + 1
    for part in shape.split(",") if shape.strip() else []:
        try:
            dims.append(read_dim(part))
        except Malformed as e:
            raise Malformed(str(e), at + e.offset) from None
        at += len(part) + 1
    return TensorType(dtype, tuple(dims), _read_layout(layout, text.index(";") + 1) if semicolon else "")


def _read_layout(text: str, at: int) -> str:
    """The layout that ``text``, from character ``at`` of a type, spells."""
    word = text.strip()
    if word in LAYOUTS:
        return word
    at += len(text) - len(text.lstrip())
    m = _PANELS.fullmatch(word)
    if m is None:
        raise Malformed(f"{word!r} is no layout: there are {', '.join(LAYOUTS)}, panels(n)", at)
    numbers = []
    for which, what in ((1, "1 token"), (2, "1 feature")):
        if m[which] is None:
            continue
        try:
            n = read_integer(m[which])
        except Malformed as e:
            raise Malformed(str(e), at + m.start(which)) from None
        if n < 1:
            raise Malformed(f"a panel holds {what} at least", at + m.start(which))
        numbers.append(str(n))
    return f"panels({', '.join(numbers)})"
