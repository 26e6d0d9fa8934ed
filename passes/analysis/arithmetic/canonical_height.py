"""Canonical heights of rational points, global and place by place, with a bound of the error.

For a morphism φ of P^N over Q of degree d ≥ 2, ĥ(x) = lim h(φⁿx)/dⁿ = h(x) + Σ_n d^{−n−1}(h(φⁿ⁺¹x) − d·h(φⁿx)),
whose terms are at most C d^{−n−1} (see `projective_map`). A term is a part at the archimedean place, followed here in
interval arithmetic, minus log gcd F(X_n), which is followed modulo powers of the map's integer R: the gcd divides R.
Source: Call, Silverman, Compositio Math. 89 (1993).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpmath.ctx_iv import MPIntervalContext

from aatc.passes.analysis.arithmetic.orbits import Preperiodic, Vector, dynamical, follow, log_height, projective_point
from aatc.passes.analysis.arithmetic.places import ARCHIMEDEAN, FACTOR_BITS, factorise
from aatc.passes.analysis.arithmetic.projective_map import Morphism, ProjectiveMap
from aatc.passes.analysis.arithmetic.verify_arithmetic import CanonicalHeightWitness, OrbitWitness
from aatc.passes.analysis.result import AnalysisError, Cost, Result, Undecided

ORBIT_STEPS = 256
PRECISION_LIMIT = 1 << 14  # bits


@dataclass(frozen=True)
class CanonicalHeight:
    """ĥ(x) = ``value`` within ``error``. Exactly 0 iff the orbit is finite; then ``error`` is 0."""

    value: float
    error: float
    preperiodic: bool


@dataclass(frozen=True)
class LocalCanonicalHeights:
    """The local parts of ĥ at the primitive vector of the point, within ``error`` each: at ``archimedean``, and at
    ``primes`` with bad reduction; 0 at every other prime. A multiple of the vector has other parts and the same sum."""

    archimedean: float
    primes: dict[int, float]
    error: float

    def at(self, place: int) -> float:
        return self.archimedean if place == ARCHIMEDEAN else self.primes.get(place, 0.0)

    def total(self) -> float:
        return math.fsum((self.archimedean, *self.primes.values()))


def _terms_needed(proof: Morphism, tolerance: float) -> int:
    d, room = proof.map.degree, proof.distortion / (proof.map.degree - 1)
    return max(1, math.ceil(math.log(max(room / (tolerance / 2), 1.0)) / math.log(d)))


def _precision(proof: Morphism, terms: int) -> int:
    """Bits that the widening of the intervals leaves 64 of: a step multiplies relative errors by about d·e^{2C}."""
    return 96 + math.ceil(terms * (math.log2(proof.map.degree) + 2 * proof.distortion / math.log(2) + 3))


def estimate_cost(phi: ProjectiveMap, tolerance: float = 1e-12) -> Cost:
    """What `canonical_height` takes: one evaluation of the forms in intervals for each term of the series."""
    proof = dynamical(phi)
    if isinstance(proof, Undecided):
        return Cost(0.1, 1e6)
    terms = _terms_needed(proof, tolerance)
    monomials = sum(len(form) for form in phi.forms)
    return Cost(seconds=0.02 + 2e-4 * terms * monomials * phi.degree, bytes=1e6 + terms * _precision(proof, terms))


def _archimedean(proof: Morphism, start: Vector, terms: int, precision: int) -> list[Any]:
    """log(‖F(X)‖/‖X‖^d) along the real orbit, as intervals, at ``precision`` bits."""
    context = MPIntervalContext()
    context.prec = precision
    at = [context.mpf(x) for x in start]
    found = []
    for step in range(terms + 1):
        size = _largest([abs(x) for x in at])
        if not size.a > 0:
            return []
        if step:
            found.append(context.log(size))
        at = [x / size for x in at]
        at = [_evaluate(context, form, at) for form in proof.map.forms]
    return found


def _largest(values: Sequence[Any]) -> Any:
    """The interval of the maximum of numbers in the given intervals."""
    low, high = max(v.a for v in values), max(v.b for v in values)
    return values[0].ctx.mpf([low, high])


def _evaluate(context: MPIntervalContext, form: dict[tuple[int, ...], int], at: Sequence[Any]) -> Any:
    total = context.mpf(0)
    for powers, c in form.items():
        term = context.mpf(c)
        for x, e in zip(at, powers):
            if e:
                term = term * x**e
        total = total + term
    return total


def _divisors(proof: Morphism, start: Vector, terms: int) -> list[int]:
    """gcd F(X_n) for n < terms along the primitive orbit, from residues modulo a power of R that falls by one factor
    R a step."""
    scale = abs(proof.scale)
    if scale == 1:
        return [1] * terms
    modulus = scale ** (terms + 1)
    at, found = [x % modulus for x in start], []
    for _ in range(terms):
        image = [x % modulus for x in proof.map.lift(at)]
        common = math.gcd(scale, *image)
        found.append(common)
        modulus //= scale
        at = [(x // common) % modulus for x in image]
    return found


def _series(proof: Morphism, start: Vector, tolerance: float) -> tuple[float, list[int], float] | Undecided:
    """The archimedean part, the divisors, and the bound of the error of every part."""
    d, terms = proof.map.degree, _terms_needed(proof, tolerance)
    precision = _precision(proof, terms)
    while precision <= PRECISION_LIMIT:
        logs = _archimedean(proof, start, terms, precision)
        if logs and max(float(term.delta) for term in logs) <= tolerance / 4:
            parts = [float(term.mid) / float(d) ** (n + 1) for n, term in enumerate(logs)]
            widths = math.fsum(float(term.delta) / float(d) ** (n + 1) for n, term in enumerate(logs))
            tail = proof.distortion / ((d - 1) * float(d) ** terms)
            rounding = 1e-15 * (log_height(start) + proof.distortion + 1)
            return log_height(start) + math.fsum(parts), _divisors(proof, start, terms), tail + widths + rounding
        precision *= 2
    return Undecided(f"{PRECISION_LIMIT} bits", "the intervals of the real orbit stay too wide")


def _start(
    phi: ProjectiveMap, point: Any, tolerance: float, budget: Cost | None
) -> tuple[Morphism, Vector] | Undecided:
    if not 1e-300 < tolerance < 1:
        raise AnalysisError(f"a tolerance lies in (1e-300, 1), not {tolerance}")
    proof = dynamical(phi)
    if isinstance(proof, Undecided):
        return proof
    if budget is not None:
        estimate_cost(phi, tolerance).check(budget, "the canonical height")
    return proof, projective_point(phi, point)


def canonical_height(
    phi: ProjectiveMap, point: Any, *, tolerance: float = 1e-12, budget: Cost | None = None
) -> Result[CanonicalHeight] | Undecided:
    """ĥ(x) of a rational point under a morphism of degree d ≥ 2: ĥ(φ(x)) = d·ĥ(x), and |ĥ − h| ≤ C/(d − 1).

    ``point``: homogeneous coordinates, or a number x for [x : 1] on P¹. A finite orbit is recognised exactly and gives
    0. `Undecided` when the identities of the map or the precision are out of bounds. Raises `DegreeError`, `MapError`,
    `RationalError` and `BudgetError`.
    """
    prepared = _start(phi, point, tolerance, budget)
    if isinstance(prepared, Undecided):
        return prepared
    proof, start = prepared
    orbit = follow(proof, start, ORBIT_STEPS)
    if isinstance(orbit, Result) and isinstance(orbit.value, Preperiodic):
        kind = orbit.value
        witness: Any = OrbitWitness(phi.forms, start, kind.tail, kind.period)
        return Result(CanonicalHeight(0.0, 0.0, True), "P0", witness=witness)
    series = _series(proof, start, tolerance)
    if isinstance(series, Undecided):
        return series
    real, divisors, error = series
    finite = math.fsum(math.log(g) / float(phi.degree) ** (n + 1) for n, g in enumerate(divisors))
    value = real - finite
    witness = CanonicalHeightWitness(
        phi.forms, start, value, error, proof.scale, proof.exponent, proof.cofactors, phi.degree
    )
    return Result(CanonicalHeight(value, error, False), "P2", error, witness=witness)


def local_canonical_heights(
    phi: ProjectiveMap, point: Any, *, tolerance: float = 1e-12, bits: int = FACTOR_BITS, budget: Cost | None = None
) -> Result[LocalCanonicalHeights] | Undecided:
    """The parts of ĥ(x) at every place, which add up to ĥ(x); at a prime p, −Σ d^{−n−1} v_p(gcd F(X_n)) log p.

    Arguments and errors as for `canonical_height`; `Undecided` also when the divisors cannot be factored within
    ``bits`` bits.
    """
    prepared = _start(phi, point, tolerance, budget)
    if isinstance(prepared, Undecided):
        return prepared
    series = _series(*prepared, tolerance)
    if isinstance(series, Undecided):
        return series
    real, divisors, error = series
    primes: dict[int, float] = {}
    for n, g in enumerate(divisors):
        factors = factorise(g, bits)
        if isinstance(factors, Undecided):
            return factors
        for p, e in factors.items():
            primes[p] = primes.get(p, 0.0) - e * math.log(p) / float(phi.degree) ** (n + 1)
    return Result(LocalCanonicalHeights(real, dict(sorted(primes.items())), error), "P2", error)
