"""Maps of projective space over Q given by integer forms, and the constant by which they fail to multiply heights.

A map φ = [F_0 : ... : F_N] of degree d is a morphism iff the forms have no common zero; then, for some D, integers R
and forms G_ij, R·X_i^D = Σ_j G_ij F_j. These identities are found by linear algebra over Q and kept: with U the
largest ‖F_i‖₁ and L the largest Σ_j‖G_ij‖₁, |h(φ(x)) − d·h(x)| ≤ C = log max(U, L), and the greatest common divisor
of F(X) divides R for primitive X. Source: Hindry, Silverman, Diophantine Geometry, theorem B.2.5.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import sympy
from sympy.polys.matrices import DomainMatrix

from aatc.passes.analysis.arithmetic.heights import primitive_vector
from aatc.passes.analysis.arithmetic.places import rational
from aatc.passes.analysis.result import AnalysisError, Undecided

Form = dict[tuple[int, ...], int]
UNKNOWN_LIMIT = 300  # unknown coefficients of one identity


class MapError(AnalysisError):
    """Forms that are no map, or a map without the property that was asked for."""


class DegreeError(MapError):
    """A canonical height was asked of a map of degree below 2: h(φⁿx)/dⁿ has no limit that means anything."""


@dataclass(frozen=True, eq=False)
class ProjectiveMap:
    """``forms``: N + 1 homogeneous integer polynomials of one degree in N + 1 variables, exponents → coefficient."""

    forms: tuple[Form, ...]
    degree: int

    @property
    def dimension(self) -> int:
        return len(self.forms) - 1

    def lift(self, vector: Sequence[int]) -> tuple[int, ...]:
        """F(X), integers, not reduced. Raises `MapError` for a vector of another length."""
        if len(vector) != len(self.forms):
            raise MapError(f"a point of P^{self.dimension} has {len(self.forms)} coordinates, not {len(vector)}")
        return tuple(
            sum(c * math.prod(x**e for x, e in zip(vector, powers) if e) for powers, c in form.items())
            for form in self.forms
        )

    def __call__(self, vector: Sequence[int]) -> tuple[int, ...]:
        """The primitive vector of φ at a point, its first non-zero coordinate positive. Raises `MapError` where the
        map is not defined."""
        image = self.lift(vector)
        if not any(image):
            raise MapError(f"the map is not defined at {tuple(vector)}: every form vanishes there")
        return normalised(image)


def normalised(vector: Sequence[Any]) -> tuple[int, ...]:
    """The primitive vector whose first non-zero coordinate is positive: one for each point. Raises `RationalError`."""
    whole = primitive_vector(vector)
    return whole if next(x for x in whole if x) > 0 else tuple(-x for x in whole)


def homogeneous_map(forms: Sequence[Mapping[tuple[int, ...], Any]]) -> ProjectiveMap:
    """The map of the given forms, exponents → rational coefficient; common denominators and contents are removed.

    Raises `MapError` unless all are homogeneous of one degree, at least 1, in as many variables as there are forms.
    """
    degrees = {sum(powers) for form in forms for powers, c in form.items() if c}
    lengths = {len(powers) for form in forms for powers in form}
    negative = any(e < 0 for form in forms for powers in form for e in powers) or degrees == {0}
    if len(forms) < 2 or len(degrees) != 1 or lengths != {len(forms)} or negative:
        raise MapError(
            f"{len(forms)} forms need one degree ≥ 1 in as many variables; these have degrees {sorted(degrees)}"
        )
    flat = [rational(c) for form in forms for c in form.values()]
    scaled = iter(primitive_vector(flat))
    whole = [{powers: next(scaled) for powers in form} for form in forms]
    return ProjectiveMap(tuple({p: c for p, c in form.items() if c} for form in whole), degrees.pop())


def rational_map(numerator: Sequence[Any], denominator: Sequence[Any] = (1,)) -> ProjectiveMap:
    """x ↦ f(x)/g(x) on P¹, x = [x : 1]; coefficients from the highest power down, common factors removed.

    Raises `MapError` for a zero polynomial or a constant map.
    """
    x = sympy.Symbol("x")
    f, g = (sympy.Poly.from_list([_sympy(c) for c in part], x, domain="QQ") for part in (numerator, denominator))
    if f.is_zero or g.is_zero:
        raise MapError("numerator and denominator must not be 0")
    factor, f, g = f.cancel(g)
    f = f * factor
    degree = max(int(f.degree()), int(g.degree()))
    if degree == 0:
        raise MapError("a constant is no map of P¹ onto itself")
    scale = math.lcm(*(int(c.q) for part in (f, g) for c in part.all_coeffs()))
    forms: list[dict[tuple[int, ...], Fraction]] = [
        {(e, degree - e): Fraction(int((c * scale).p), 1) for (e,), c in part.terms()} for part in (f, g)
    ]
    return homogeneous_map(forms)


def _sympy(c: Any) -> sympy.Rational:
    exact = rational(c)
    return sympy.Rational(exact.numerator, exact.denominator)


def polynomial_map(coefficients: Sequence[Any]) -> ProjectiveMap:
    """x ↦ f(x) on P¹, coefficients from the highest power down. Raises `MapError`."""
    return rational_map(coefficients)


def sharpening_map(power: int, keys: int) -> ProjectiveMap:
    """p ↦ p^k/Σp^k: what lowering the temperature by the factor k does to attention weights over ``keys`` keys, as a
    map [p_1^k : ... : p_m^k] of P^{m−1}. Its canonical height is the Weil height. Raises `MapError`."""
    if power < 1 or keys < 2:
        raise MapError(f"a sharpening has a power ≥ 1 and at least 2 keys, not {power} and {keys}")
    unit = [tuple(power if i == j else 0 for j in range(keys)) for i in range(keys)]
    return homogeneous_map([{powers: 1} for powers in unit])


@dataclass(frozen=True, eq=False)
class Morphism:
    """The proof that a map is a morphism: ``scale``·X_i^``exponent`` = Σ_j ``cofactors[i][j]``·F_j for every i.

    ``distortion`` C bounds |h(φ(x)) − d·h(x)| at every rational point.
    """

    map: ProjectiveMap
    scale: int
    exponent: int
    cofactors: tuple[tuple[Form, ...], ...]
    distortion: float


def _monomials(variables: int, degree: int) -> list[tuple[int, ...]]:
    if variables == 1:
        return [(degree,)]
    return [(e, *rest) for e in range(degree + 1) for rest in _monomials(variables - 1, degree - e)]


def _distortion(phi: ProjectiveMap, cofactors: tuple[tuple[Form, ...], ...]) -> float:
    upper = max(sum(abs(c) for c in form.values()) for form in phi.forms)
    lower = max(sum(abs(c) for form in row for c in form.values()) for row in cofactors)
    return math.log(max(upper, lower))


def morphism(phi: ProjectiveMap) -> Morphism | Undecided:
    """The identities that prove a map a morphism. Raises `MapError` when it is none: its forms have a common zero.

    They are sought at Macaulay's degree (N + 1)(d − 1) + 1, which suffices. `Undecided` above 300 unknowns.
    """
    size, d = len(phi.forms), phi.degree
    powers = [tuple(d if i == j else 0 for j in range(size)) for i in range(size)]
    if all(set(form) == {own} for form, own in zip(phi.forms, powers)):
        leading = [form[own] for form, own in zip(phi.forms, powers)]
        scale = math.lcm(*leading)
        constant = (0,) * size
        rows = tuple(tuple({constant: scale // leading[i]} if i == j else {} for j in range(size)) for i in range(size))
        return Morphism(phi, scale, d, rows, _distortion(phi, rows))
    exponent = size * (d - 1) + 1
    if size * math.comb(exponent - d + size - 1, size - 1) > UNKNOWN_LIMIT:
        return Undecided(f"{UNKNOWN_LIMIT} unknowns", f"{size} forms of degree {d}")
    return _solve_identities(phi, exponent)


def _solve_identities(phi: ProjectiveMap, exponent: int) -> Morphism:
    size, d = len(phi.forms), phi.degree
    rows = {powers: i for i, powers in enumerate(_monomials(size, exponent))}
    unknowns = list(itertools.product(range(size), _monomials(size, exponent - d)))
    table = [[sympy.QQ(0)] * (len(unknowns) + size) for _ in rows]
    for column, (j, shift) in enumerate(unknowns):
        for powers, c in phi.forms[j].items():
            table[rows[tuple(a + b for a, b in zip(powers, shift))]][column] += sympy.QQ(c)
    for i in range(size):
        table[rows[tuple(exponent if i == j else 0 for j in range(size))]][len(unknowns) + i] = sympy.QQ(1)
    reduced, pivots = DomainMatrix(table, (len(rows), len(unknowns) + size), sympy.QQ).rref()
    if pivots[-1] >= len(unknowns):
        raise MapError("the forms have a common zero over an extension of Q: this is no morphism")
    solved = reduced.to_list()
    entries = [[solved[row][len(unknowns) + i] for row in range(len(pivots))] for i in range(size)]
    scale = math.lcm(*(int(x.denominator) for line in entries for x in line))
    found: list[tuple[Form, ...]] = []
    for line in entries:
        cofactors: list[Form] = [{} for _ in range(size)]
        for pivot, x in zip(pivots, line):
            if x:
                j, shift = unknowns[pivot]
                cofactors[j][shift] = int(x.numerator) * (scale // int(x.denominator))
        found.append(tuple(cofactors))
    return Morphism(phi, scale, exponent, tuple(found), _distortion(phi, tuple(found)))
