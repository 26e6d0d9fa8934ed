"""Absolute values of rational numbers at every place: exact rationals from floats, valuations, product formula.

A place of Q is the ordinary absolute value, written ARCHIMEDEAN here, or a prime p with |x|_p = p^{−v_p(x)}. Only
rational numbers are looked at, one by one or as coordinates of a point. Source: Silverman, The Arithmetic of Dynamical
Systems, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import sympy

from aatc.passes.analysis.arithmetic.verify_arithmetic import AdelicWitness, ProductFormulaWitness
from aatc.passes.analysis.result import AnalysisError, Result, Undecided, Verdict

ARCHIMEDEAN = 0
TRIAL_LIMIT = 1 << 16
FACTOR_BITS = 80  # the largest composite cofactor that is factored


class RationalError(AnalysisError):
    """A number or a point that is not rational, not finite, or not a point."""


def rational(x: Any) -> Fraction:
    """The exact value of an int, Fraction, sympy rational or float; a float is a dyadic rational.

    Raises `RationalError`, also for NaN and infinities.
    """
    if isinstance(x, np.generic):
        x = x.item()
    if isinstance(x, sympy.Rational):
        return Fraction(int(x.p), int(x.q))
    if isinstance(x, float) and not math.isfinite(x):
        raise RationalError(f"{x} is no rational number")
    if not isinstance(x, (int, float, Fraction)):
        raise RationalError(f"a {type(x).__name__} is no exact rational number: give ints, Fractions or floats")
    return Fraction(x)


def rational_point(coordinates: Iterable[Any]) -> tuple[Fraction, ...]:
    """The coordinates as exact rationals, not all 0. Raises `RationalError`."""
    point = tuple(rational(x) for x in coordinates)
    if not any(point):
        raise RationalError("a projective point has a coordinate that is not 0")
    return point


def valuation(x: Any, prime: int) -> int:
    """v_p(x), the exponent of the prime p in x ≠ 0. Raises `RationalError` for x = 0 and for a p that is no prime."""
    value = rational(x)
    if prime % 1 != 0 or not sympy.isprime(prime):
        raise RationalError(f"{prime} is no prime")
    if value == 0:
        raise RationalError(f"the valuation of 0 at {prime} is infinite")
    above, below = (sympy.multiplicity(prime, abs(part)) for part in (value.numerator, value.denominator))
    return int(above - below)


def factorise(n: int, bits: int = FACTOR_BITS) -> dict[int, int] | Undecided:
    """Primes and exponents of n ≠ 0; `Undecided` when a composite above ``bits`` bits is left after trial division."""
    if n == 0:
        raise RationalError("0 has no factorisation")
    found: dict[int, int] = {}
    trial = sympy.factorint(abs(n), limit=TRIAL_LIMIT, use_rho=False, use_pm1=False, use_ecm=False)
    for factor, exponent in trial.items():
        if sympy.isprime(factor):
            parts = {int(factor): 1}
        elif int(factor).bit_length() <= bits:
            parts = {int(p): int(e) for p, e in sympy.factorint(factor).items()}
        else:
            size = int(factor).bit_length()
            return Undecided(f"cofactors of {bits} bits", f"a composite factor of {size} bits is left")
        for p, e in parts.items():
            found[p] = found.get(p, 0) + e * int(exponent)
    return dict(sorted(found.items()))


def prime_base(values: Iterable[Any], bits: int = FACTOR_BITS) -> tuple[int, ...] | Undecided:
    """The primes that occur in the numerators and denominators of the non-zero ``values``, ascending.

    At every other prime all of these values have absolute value 1. Raises `RationalError`.
    """
    primes: set[int] = set()
    for x in {rational(value) for value in values} - {Fraction(0)}:
        for part in (x.numerator, x.denominator):
            factors = factorise(part, bits)
            if isinstance(factors, Undecided):
                return factors
            primes |= set(factors)
    return tuple(sorted(primes))


def absolute_value(x: Any, place: int) -> Fraction:
    """|x|_v, exact: |x| at ARCHIMEDEAN, p^{−v_p(x)} at a prime p, 0 for x = 0. Raises `RationalError`."""
    value = rational(x)
    if value == 0 or place == ARCHIMEDEAN:
        return abs(value)
    return Fraction(place) ** -valuation(value, place)


def product_formula(x: Any, bits: int = FACTOR_BITS) -> Verdict | Undecided:
    """Whether ∏_v |x|_v = 1 over all places, for x ≠ 0, in exact rationals.

    The theorem says that it is; the verdict checks the factorisation. Raises `RationalError`.
    """
    value = rational(x)
    if value == 0:
        raise RationalError("the product formula is about x ≠ 0")
    primes = prime_base([value], bits)
    if isinstance(primes, Undecided):
        return primes
    orders = {p: valuation(value, p) for p in primes}
    product = abs(value)
    for p in primes:
        product *= absolute_value(value, p)
    witness = ProductFormulaWitness(value, orders)
    statement = f"the product of |{value}|_v over {len(primes) + 1} places is 1"
    return Verdict(product == 1, "P0", 0.0, float(abs(product - 1)), witness, statement=statement)


@dataclass(frozen=True)
class LocalHeights:
    """log max_i |x_i|_v of a point at every place where it is not 0; they add up to the height.

    ``archimedean``: max_i |x_i|, exact. ``orders``: for each prime, −min_i v_p(x_i), non-zero.
    """

    archimedean: Fraction
    orders: dict[int, int]

    def at(self, place: int) -> float:
        """The local height at a place."""
        if place == ARCHIMEDEAN:
            return math.log(self.archimedean.numerator) - math.log(self.archimedean.denominator)
        return self.orders.get(place, 0) * math.log(place)

    def total(self) -> float:
        """Σ_v of the local heights."""
        return math.fsum(self.at(place) for place in (ARCHIMEDEAN, *self.orders))


def local_heights(point: Iterable[Any], bits: int = FACTOR_BITS) -> Result[LocalHeights] | Undecided:
    """The local heights of a point with the given homogeneous coordinates.

    Only the greatest common divisor of the numerators and the least common denominator are factored: a prime outside
    of them has local height 0. A common factor of the coordinates moves single local heights, not their sum. Raises
    `RationalError`.
    """
    coordinates = rational_point(point)
    below = math.lcm(*(x.denominator for x in coordinates))
    content = Fraction(math.gcd(*(int(x * below) for x in coordinates)), below)
    orders: dict[int, int] = {}
    for part, sign in ((content.numerator, -1), (content.denominator, 1)):
        factors = factorise(part, bits)
        if isinstance(factors, Undecided):
            return factors
        orders |= {p: sign * e for p, e in factors.items()}
    value = LocalHeights(max(abs(x) for x in coordinates), dict(sorted(orders.items())))
    return Result(value, "P0", witness=AdelicWitness(coordinates, value.orders, int(value.archimedean / content)))
