"""Symbolic dimensions: affine integer expressions over named symbols.

``Dim`` is immutable: a constant plus integer multiples of symbols. Ranges of the symbols live on the
module (`ir.core.Module.dims`), so that one type can be shared by modules with different knowledge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from aatc.ir.errors import UnsupportedError

_TIMES = "_x_"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
#: The name of an attribute: one with a dot belongs to the backend named before it.
ATTRIBUTE = re.compile(r"(?:[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*|[A-Za-z_][A-Za-z0-9_]*)\Z")


@dataclass(frozen=True, slots=True)
class Dim:
    """``const + sum(coefficient * symbol)``; terms sorted by symbol, no zero coefficients."""

    const: int
    terms: tuple[tuple[str, int], ...] = ()

    @staticmethod
    def of(value: Dim | int | str) -> Dim:
        """The dimension for an int, a symbol's name, or a Dim (returned as it is)."""
        if isinstance(value, Dim):
            return value
        if isinstance(value, str):
            if not NAME.match(value):
                raise ValueError(f"{value!r} is not a dimension name; use letters, digits and _")
            return Dim(0, ((value, 1),))
        return Dim(int(value))

    @property
    def is_static(self) -> bool:
        return not self.terms

    def __int__(self) -> int:
        if self.terms:
            raise ValueError(f"dimension {self} is not a constant")
        return self.const

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.terms)

    def __add__(self, other: Dim | int) -> Dim:
        other = Dim.of(other)
        terms = dict(self.terms)
        for name, c in other.terms:
            terms[name] = terms.get(name, 0) + c
        return Dim(self.const + other.const, tuple(sorted((n, c) for n, c in terms.items() if c)))

    def __mul__(self, factor: int) -> Dim:
        return Dim(self.const * factor, tuple((n, c * factor) for n, c in self.terms) if factor else ())

    def __sub__(self, other: Dim | int) -> Dim:
        return self + Dim.of(other) * -1

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            return not self.terms and self.const == other
        return isinstance(other, Dim) and (self.const, self.terms) == (other.const, other.terms)

    def __hash__(self) -> int:
        return hash((self.const, self.terms))

    def evaluate(self, values: Mapping[str, int]) -> int:
        """The number this dimension has under ``values``; KeyError names a missing symbol."""
        return self.const + sum(c * values[name] for name, c in self.terms)

    def bounds(self, ranges: Mapping[str, tuple[int, int | None]]) -> tuple[int, int | None]:
        """Lowest and highest value over the symbols' ranges; None means unbounded above."""
        low, high = self.const, self.const
        unbounded = False
        for name, c in self.terms:
            lo, hi = ranges.get(name, (0, None))
            if c < 0:
                if hi is None:
                    raise ValueError(f"{self} has no lower bound: {name} is unbounded")
                low, high = low + c * hi, high + c * lo
            else:
                low = low + c * lo
                if hi is None:
                    unbounded = True
                else:
                    high = high + c * hi
        return low, None if unbounded else high

    def __str__(self) -> str:
        text = ""
        for name, c in self.terms:
            sign = "-" if c < 0 else ("+" if text else "")
            text += f"{sign}{name}" if abs(c) == 1 else f"{sign}{abs(c)}*{name}"
        if self.const or not text:
            text += f"{self.const:+d}" if text else str(self.const)
        return text


def at_most(a: Dim, b: Dim, ranges: Mapping[str, tuple[int, int | None]]) -> bool:
    """a <= b whatever the dimensions are."""
    if a == b:
        return True
    try:
        return (b - a).bounds(ranges)[0] >= 0
    except ValueError:
        return False


def factors(name: str) -> list[str]:
    """The symbols whose product a symbol stands for: ``A`` and ``B`` of ``A_x_B``, itself of any other."""
    return name.split(_TIMES)


def product(a: Dim, b: Dim) -> Dim:
    """a times b, multiplied out: (B - 1) times H is ``B_x_H - H``. A product of symbols is a symbol named after all of
    them, so that no two products share a name. UnsupportedError where that name would read as another product's."""
    found = Dim(a.const * b.const) + Dim(0, a.terms) * b.const + Dim(0, b.terms) * a.const
    for x, m in a.terms:
        for y, n in b.terms:
            name = f"{x}{_TIMES}{y}"
            if factors(name) != [*factors(x), *factors(y)]:
                raise UnsupportedError(
                    f"{x} times {y} has no name: {name} is {' times '.join(factors(name))}",
                    hint=f"let no dimension's name end in {_TIMES[:-1]}",
                )
            found += Dim(0, ((name, m * n),))
    return found
