"""Weil heights of rational points, and constants that fit integers without loss.

The height of a point of projective space over Q is log max|X_i| of its primitive integer vector X: coordinates scaled
to integers without a common factor. Floats are dyadic rationals, so every finite tensor is such a point. Nothing but
this integer is computed. Source: Hindry, Silverman, Diophantine Geometry, section B.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import sympy

from aatc.passes.analysis.arithmetic.places import RationalError, rational_point
from aatc.passes.analysis.arithmetic.verify_arithmetic import FitsWitness, HeightWitness, IntegerWitness
from aatc.passes.analysis.result import AnalysisError, Result, Verdict


def primitive_vector(coordinates: Iterable[Any]) -> tuple[int, ...]:
    """The integers proportional to the coordinates, by a positive factor, without a common divisor. Raises
    `RationalError`."""
    point = rational_point(coordinates)
    below = math.lcm(*(x.denominator for x in point))
    whole = [int(x * below) for x in point]
    common = math.gcd(*whole)
    return tuple(x // common for x in whole)


@dataclass(frozen=True)
class Height:
    """``multiplicative`` H = max|X_i| of the ``primitive`` vector X, and ``logarithm`` h = log H."""

    multiplicative: int
    logarithm: float
    primitive: tuple[int, ...]


def arithmetic_height(point: Any, *, affine: bool = False) -> Result[Height]:
    """The Weil height of a point with the given coordinates: a number, a sequence or an array, taken flat.

    Coordinates are homogeneous, so that a common factor does not matter: the slopes 2⁻¹, ..., 2⁻⁸ of an 8-head ALiBi
    have height 128. With ``affine`` the point is [1 : x_1 : ... : x_k], whose height for one number a/b in lowest
    terms is max(|a|, |b|). A single number is affine in any case. The seed's method returned a float; the integer
    inside the logarithm is exact and is what a compiler can use. Raises `RationalError`.
    """
    coordinates = [point] if isinstance(point, (int, float, Fraction, np.generic, sympy.Rational)) else _flat(point)
    if affine or len(coordinates) == 1:
        coordinates = [1, *coordinates]
    primitive = primitive_vector(coordinates)
    top = max(abs(x) for x in primitive)
    value = Height(top, math.log(top), primitive)
    return Result(value, "P0", witness=HeightWitness(rational_point(coordinates), primitive, top))


def _flat(point: Any) -> list[Any]:
    if isinstance(point, np.ndarray):
        return list(point.reshape(-1).tolist())
    try:
        return list(point)
    except TypeError:
        raise RationalError(f"a {type(point).__name__} is no point: give its coordinates") from None


@dataclass(frozen=True, eq=False)
class IntegerConstants:
    """values = ``scale``·``integers``, exactly: also as a product in the values' own floating-point type, unless an
    integer exceeds that type's range.

    ``integers`` (shape of the values) have no common divisor: int64, or Python ints where ``height``, their largest
    magnitude, needs more. ``bits`` is the least two's-complement width with height ≤ 2^{bits−1} − 1.
    """

    scale: float
    integers: np.ndarray
    height: int
    bits: int


def integer_constants(values: Any) -> Result[IntegerConstants]:
    """The integers, one scale apart, that a floating-point array (any shape) consists of; zeros give scale 1.

    Exact: the scale is the greatest common divisor of the values as dyadic rationals. It divides each of them, so
    its digits and those of the integers fit the same type. Raises `RationalError` for infinities and NaN.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiu" or array.size == 0:
        raise RationalError(f"constants are a non-empty array of real numbers, not {array.dtype} {array.shape}")
    if array.dtype.itemsize > 8 or (array.dtype.kind != "f" and max(abs(int(x)) for x in array.reshape(-1)) >= 1 << 53):
        raise RationalError(f"constants of type {array.dtype} are not all float64 numbers")
    table = array.astype(np.float64)
    if not np.isfinite(table).all():
        raise RationalError("constants must be finite")
    if not table.any():
        integers = np.zeros(table.shape, dtype=np.int64)
        return Result(IntegerConstants(1.0, integers, 0, 1), "P0", witness=IntegerWitness(array, 1.0, integers))
    mantissa, exponent = np.frexp(table)
    whole = (mantissa * 2.0**53).astype(np.int64)
    zero = whole == 0
    lowest = np.where(zero, 1, whole & -whole)
    exponent = np.where(zero, 0, exponent - 53 + np.log2(lowest.astype(np.float64)).astype(np.int64))
    odd = whole // lowest
    common, least = int(np.gcd.reduce(odd, axis=None)), int(exponent[~zero].min())
    scale = Fraction(common) * Fraction(2) ** least
    height = int(Fraction(float(np.abs(table).max())) / scale)
    shift = np.where(zero, 0, exponent - least)
    wide = height >= 1 << 62
    integers = (odd // common).astype(object if wide else np.int64) << shift.astype(object if wide else np.int64)
    value = IntegerConstants(float(scale), integers, height, height.bit_length() + 1)
    return Result(value, "P0", witness=IntegerWitness(array, value.scale, integers))


def fits_integers(values: Any, bits: int) -> Verdict:
    """Whether an array is, without loss, one scale times integers of ``bits`` bits: height ≤ 2^{bits−1} − 1.

    The witness holds the scale and the integers either way. Raises `RationalError` and `AnalysisError`.
    """
    if not isinstance(bits, int) or bits < 2:
        raise AnalysisError(f"a signed integer has at least 2 bits, not {bits!r}")
    found = integer_constants(values)
    fits = found.value.height <= (1 << (bits - 1)) - 1
    statement = f"the constants are one scale times int{bits} (height {found.value.height}, {found.value.bits} bits)"
    return Verdict(fits, "P0", witness=FitsWitness(found.witness, bits), statement=statement)
