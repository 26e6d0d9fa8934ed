"""Witnesses of the arithmetic analyses, and the small programs that re-check them in integers.

A deviation of an exact fact is reported as infinity. Nothing here uses the code that made a witness.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import sympy
from mpmath.ctx_mp import MPContext

from aatc.passes.analysis.result import mismatch, verify

Form = dict[tuple[int, ...], int]
WRONG = float("inf")
ORBIT_BITS = 1 << 16
PRECISION_BITS = 1 << 15
ORBIT_LIMIT = 1 << 20  # bits of a coordinate beyond which an orbit does not return


@dataclass(frozen=True)
class ProductFormulaWitness:
    """``orders`` claims to hold every prime of ``value`` with its exponent."""

    value: Fraction
    orders: dict[int, int]


@dataclass(frozen=True)
class AdelicWitness:
    """max|x_i| of ``coordinates`` times ∏ p^``orders[p]`` claims to be the height ``multiplicative``."""

    coordinates: tuple[Fraction, ...]
    orders: dict[int, int]
    multiplicative: int


@dataclass(frozen=True)
class HeightWitness:
    """``primitive`` claims to be proportional to ``coordinates``, without a common divisor, largest entry
    ``multiplicative``."""

    coordinates: tuple[Fraction, ...]
    primitive: tuple[int, ...]
    multiplicative: int


@dataclass(frozen=True, eq=False)
class IntegerWitness:
    """``scale``·``integers`` claims to be ``values``, bit for bit, the scale as large as it can be: positive, and the
    integers without a common divisor; 1 for zeros."""

    values: np.ndarray
    scale: float
    integers: np.ndarray


@dataclass(frozen=True, eq=False)
class FitsWitness:
    """The constants are, or are not, one scale times integers of ``bits`` bits."""

    integers: IntegerWitness
    bits: int


@dataclass(frozen=True, eq=False)
class OrbitWitness:
    """φ^{tail + period}(start) claims to be φ^tail(start), with no repetition before."""

    forms: tuple[Form, ...]
    start: tuple[int, ...]
    tail: int
    period: int


@dataclass(frozen=True, eq=False)
class CanonicalHeightWitness:
    """``value`` ± ``error`` claims to be the canonical height of ``start``; the identities
    scale·X_i^exponent = Σ_j cofactors[i][j] F_j claim to bound |h(φx) − d·h(x)|."""

    forms: tuple[Form, ...]
    start: tuple[int, ...]
    value: float
    error: float
    scale: int
    exponent: int
    cofactors: tuple[tuple[Form, ...], ...]
    degree: int


def _same(right: bool) -> float:
    return 0.0 if right else WRONG


@mismatch.register
def _product_value(witness: ProductFormulaWitness, value: Any) -> float:
    return _same(value is True)


@mismatch.register
def _adelic_value(witness: AdelicWitness, value: Any) -> float:
    return _same(value.archimedean == max(map(abs, witness.coordinates)) and value.orders == witness.orders)


@mismatch.register
def _height_value(witness: HeightWitness, value: Any) -> float:
    same = value.multiplicative == witness.multiplicative and value.primitive == witness.primitive
    logarithm = math.log(witness.multiplicative)
    return _same(same and abs(value.logarithm - logarithm) <= 1e-15 * max(1.0, logarithm))


def _width(witness: IntegerWitness) -> tuple[int, int]:
    """The largest magnitude, and the bits that it takes with a sign."""
    top = max(abs(int(x)) for x in witness.integers.reshape(-1))
    return top, len(f"{top:b}") + 1 if top else 1


@mismatch.register
def _integers_value(witness: IntegerWitness, value: Any) -> float:
    """The value is the constants, or how many bits they take."""
    if isinstance(value, int):
        return _same(value == _width(witness)[1])
    same = value.scale == witness.scale and (value.height, value.bits) == _width(witness)
    return _same(same and np.array_equal(value.integers, witness.integers))


@verify.register
def _fits(witness: FitsWitness) -> float:
    return verify(witness.integers) if witness.bits >= 2 else WRONG


@mismatch.register
def _fits_value(witness: FitsWitness, value: Any) -> float:
    return _same(value == (_width(witness.integers)[1] <= witness.bits))


@verify.register
def _product_formula(witness: ProductFormulaWitness) -> float:
    """0 if the primes are primes and |value| = ∏ p^e."""
    product = Fraction(1)
    for p, e in witness.orders.items():
        product *= Fraction(p) ** e
    right = all(sympy.isprime(p) and e for p, e in witness.orders.items()) and product == abs(witness.value)
    return 0.0 if right else WRONG


def _order(x: Fraction, p: int) -> int:
    order, above, below = 0, abs(x.numerator), x.denominator
    while above % p == 0:
        above, order = above // p, order + 1
    while below % p == 0:
        below, order = below // p, order - 1
    return order


@verify.register
def _adelic(witness: AdelicWitness) -> float:
    """0 if each order is −min_i v_p(x_i) and the places multiply to the height of an integer point."""
    points = [x for x in witness.coordinates if x]
    product = max(abs(x) for x in points)
    for p, order in witness.orders.items():
        if not order or not sympy.isprime(p) or -min(_order(x, p) for x in points) != order:
            return WRONG
        product *= Fraction(p) ** order
    scaled = [x * witness.multiplicative / max(abs(y) for y in points) for x in points]
    whole = all(x.denominator == 1 for x in scaled) and math.gcd(*(x.numerator for x in scaled)) == 1
    return 0.0 if whole and product == witness.multiplicative else WRONG


@verify.register
def _height(witness: HeightWitness) -> float:
    """0 if all cross products agree, the gcd is 1 and the largest entry is the height."""
    pivot = next(i for i, x in enumerate(witness.coordinates) if x)
    x, whole = witness.coordinates, witness.primitive
    parallel = len(x) == len(whole) and all(a * whole[pivot] == x[pivot] * b for a, b in zip(x, whole))
    right = (
        parallel
        and whole[pivot] * x[pivot] > 0
        and math.gcd(*whole) == 1
        and max(map(abs, whole)) == witness.multiplicative
    )
    return 0.0 if right else WRONG


@verify.register
def _integers(witness: IntegerWitness) -> float:
    """0 where every scale·integer is its value, the product taken in the values' own type, or in rationals where the
    integers are out of its range; and where no larger scale does it."""
    values, integers = witness.values, witness.integers
    common = math.gcd(*(int(x) for x in integers.reshape(-1)))
    if values.shape != integers.shape or not witness.scale > 0 or common not in (0, 1):
        return WRONG
    if common == 0 and witness.scale != 1:
        return WRONG
    if values.dtype.kind == "f" and max(abs(int(integers.max())), abs(int(integers.min()))) <= float(
        np.finfo(values.dtype).max
    ):
        product = values.dtype.type(witness.scale) * integers.astype(np.float64).astype(values.dtype)
        found = np.abs(product.astype(np.float64) - values.astype(np.float64)).max()
        return float(found) if found == 0 else WRONG
    pairs = zip(integers.reshape(-1).tolist(), values.reshape(-1).tolist())
    return 0.0 if all(Fraction(witness.scale) * whole == Fraction(x) for whole, x in pairs) else WRONG


def _step(forms: tuple[Form, ...], at: tuple[int, ...]) -> tuple[int, ...]:
    image = [_value(form, at) for form in forms]
    common = math.gcd(*image)
    sign = 1 if next(x for x in image if x) > 0 else -1
    return tuple(sign * x // common for x in image)


@verify.register
def _orbit(witness: OrbitWitness) -> float:
    """0 if the first return is the one that is claimed."""
    points = _orbit_points(witness)
    if witness.tail < 0 or witness.period < 1 or len(points) != witness.tail + witness.period + 1:
        return WRONG
    return 0.0 if points[-1] == points[witness.tail] else WRONG


def _orbit_points(witness: OrbitWitness) -> list[tuple[int, ...]]:
    """The orbit of the primitive vector ``start`` up to its first return, no longer than is claimed; shorter where it
    grows beyond all bounds."""
    points, seen = [witness.start], {witness.start}
    if math.gcd(*witness.start) != 1 or next(x for x in witness.start if x) < 0:
        return []
    for _ in range(witness.tail + witness.period):
        at = _step(witness.forms, points[-1])
        points.append(at)
        if at in seen or max(map(abs, at)).bit_length() > ORBIT_LIMIT:
            break
        seen.add(at)
    return points


@mismatch.register
def _orbit_value(witness: OrbitWitness, value: Any) -> float:
    """The value is the finite orbit, or that its canonical height is 0."""
    if hasattr(value, "preperiodic"):
        same = (value.value, value.error, value.preperiodic) == (0.0, 0.0, True)
        return 0.0 if same and all(sum(powers) > 1 for form in witness.forms for powers in form) else WRONG
    same = (value.tail, value.period) == (witness.tail, witness.period)
    return 0.0 if same and list(value.orbit) == _orbit_points(witness)[:-1] else WRONG


@mismatch.register
def _canonical_value(witness: CanonicalHeightWitness, value: Any) -> float:
    same = not value.preperiodic and value.error == witness.error
    return abs(value.value - witness.value) if same else WRONG


def _times(p: Form, q: Form) -> Form:
    out: Form = {}
    for (a, x), (b, y) in itertools.product(p.items(), q.items()):
        key = tuple(i + j for i, j in zip(a, b))
        out[key] = out.get(key, 0) + x * y
    return out


@verify.register
def _canonical(witness: CanonicalHeightWitness) -> float:
    """By how much |value − h(φⁿx)/dⁿ| exceeds C/(dⁿ(d − 1)) and the error, n so large that C/(dⁿ(d − 1)) is a small
    part of the error. Infinity where the identities do not hold, or the orbit stays too wide."""
    d, size = witness.degree, len(witness.forms)
    if [len(row) for row in witness.cofactors] != [size] * size:
        return WRONG
    if d < 2 or not witness.scale or any(sum(powers) != d for form in witness.forms for powers in form):
        return WRONG
    for i, row in enumerate(witness.cofactors):
        total: Form = {}
        for g, f in zip(row, witness.forms):
            for powers, c in _times(g, f).items():
                total[powers] = total.get(powers, 0) + c
        wanted = {tuple(witness.exponent if i == j else 0 for j in range(size)): witness.scale}
        if {k: c for k, c in total.items() if c} != wanted:
            return WRONG
    upper = max(sum(map(abs, f.values())) for f in witness.forms)
    lower = max(sum(abs(c) for g in row for c in g.values()) for row in witness.cofactors)
    room = math.log(max(upper, lower)) / (d - 1)
    at, exact = witness.start, 0
    while max(map(abs, at)).bit_length() * d <= ORBIT_BITS and exact < 64:
        at, exact = _step(witness.forms, at), exact + 1
    goal = max(witness.error, 1e-16) / 16
    more = max(0, math.ceil(math.log(max(room, goal) / goal, d)) - exact)
    height = _height_after(witness, at, more)
    if height is None:
        return WRONG
    context = _decimal(40)
    power = context.mpf(d) ** (exact + more)
    off = abs(context.mpf(witness.value) - height / power)
    return float(max(off - room / power - witness.error - context.mpf(10) ** -30, 0))


def _decimal(digits: int) -> MPContext:
    context = MPContext()
    context.dps = digits
    return context


def _height_after(witness: CanonicalHeightWitness, at: tuple[int, ...], steps: int) -> Any | None:
    """h(φⁿx) = log‖Fⁿ(X)‖ − Σ dⁿ⁻¹⁻ᵏ log gcd F(X_k) for primitive X and n = ``steps``, to some 30 digits of dⁿ; None
    where 2¹⁵ bits do not suffice.

    The gcds divide ``scale``, and are read from residues modulo its (n + 1)-th power, of which each step leaves one
    power less. The real orbit is followed as integers and an exponent of 2, with a bound of what rounding took away.
    """
    d, context = witness.degree, _decimal(60 + math.ceil(steps * math.log10(witness.degree)))
    modulus, removed, residues = abs(witness.scale) ** (steps + 1), context.mpf(0), list(at)
    for _ in range(steps):
        image = [_value(form, residues) for form in witness.forms]
        common = math.gcd(witness.scale, *image)
        modulus //= abs(witness.scale)
        residues = [x // common % modulus for x in image]
        removed = d * removed + context.log(common)
    bits = 256
    while bits <= PRECISION_BITS:
        found = _real_orbit(witness, at, steps, bits)
        if found is not None:
            mantissa, exponent = found
            return context.log(mantissa) + exponent * context.log(2) - removed
        bits *= 2
    return None


def _real_orbit(witness: CanonicalHeightWitness, at: tuple[int, ...], steps: int, bits: int) -> tuple[int, int] | None:
    """(m, e) with ‖Fⁿ(X)‖ = m·2^e within a factor 1 ± 2⁻¹²⁸; None where ``bits`` do not suffice.

    Coordinates are (m_i ± r)·2^e; |F_i(m + δ) − F_i(m)| ≤ ‖F_i‖₁((|m| + r)^d − |m|^d) for |δ| ≤ r.
    """
    d, norm = witness.degree, max(sum(map(abs, f.values())) for f in witness.forms)
    mantissas, exponent, radius = list(at), 0, 0
    for _ in range(steps + 1):
        largest = max(map(abs, mantissas))
        if radius << 128 > largest:
            return None
        drop = max(0, largest.bit_length() - bits)
        mantissas = [m >> drop for m in mantissas]
        radius, exponent = ((radius >> drop) + 2 if drop or radius else 0), exponent + drop
        last = max(map(abs, mantissas)), exponent
        top = last[0]
        mantissas = [_value(form, mantissas) for form in witness.forms]
        radius, exponent = norm * ((top + radius) ** d - top**d), d * exponent
    return last


def _value(form: Form, at: Sequence[int]) -> int:
    return sum(c * math.prod(x**e for x, e in zip(at, powers)) for powers, c in form.items())
