"""Elementary functions in LLVM code, in ``float`` or ``double``, of scalars and vectors.

Of floats all are free of branches and calls, but for sine and cosine of large arguments; of doubles exponentials and
logarithms are, and the others are the C library's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from aatc.backends.native import exponentials
from aatc.backends.native.llvm import Code, Val, number, vector_of
from aatc.backends.native.polynomials import (
    ASIN_FLOAT,
    COS_FLOAT,
    SIN_FLOAT,
    TANH_FLOAT,
    at_least,
    at_most,
    library,
    magnitude,
    polynomial,
    root,
)


# --- of exponentials ---------------------------------------------------------------------------------------
def _tanh(code: Code, x: Val) -> Val:
    """A polynomial near 0; farther 1 - 2/(exp(2|x|) + 1)."""
    if x.scalar == "double":
        return library(code, "tanh", x)
    near = code.mul(x, polynomial(code, code.mul(x, x), TANH_FLOAT))
    one, two = number(1.0, x.type), number(2.0, x.type)
    size = magnitude(code, x)
    grown = exponentials.exp(code, code.mul(two, size))
    far = code.sub(one, code.div(two, code.add(grown, one)))
    far = code.call("llvm.copysign", x.type, [far, x])
    return code.select(code.compare("olt", size, number(0.55, x.type)), near, far)


#: Where exp(-x) leaves the range of a type.
_LEAST_SIGMOID = {"float": -88.72283172607422, "double": -709.782712893384}


def _sigmoid(code: Code, x: Val) -> Val:
    """1/(1 + exp(-x)), by exp(-|x|), which is at most 1. Where exp(-x) is infinite it is 0, as torch has it: the
    reciprocal of any other number is finite."""
    one, zero = number(1.0, x.type), number(0.0, x.type)
    small = exponentials.exp(code, code.neg(magnitude(code, x)))
    top = code.select(code.compare("olt", x, zero), small, one)
    top = code.select(code.compare("olt", x, number(_LEAST_SIGMOID[x.scalar], x.type)), zero, top)
    return code.div(top, code.add(one, small))


def _softplus(code: Code, x: Val) -> Val:
    """max(x, 0) + log(1 + exp(-|x|)); of doubles as torch has it, x itself above 20."""
    if x.scalar == "float":
        small = exponentials.exp(code, code.neg(magnitude(code, x)))
        return code.add(at_least(code, x, 0.0), exponentials.log1p_finite(code, small))
    small = exponentials.exp(code, at_most(code, x, 20.0))
    return code.select(code.compare("ogt", x, number(20.0, x.type)), x, library(code, "log1p", small))


def _acosh(code: Code, x: Val) -> Val:
    """log(1 + t + sqrt(t*(t + 2))) with t = x - 1, exact near 1; where t*t is far too large log(1 + t) + log(2)."""
    if x.scalar == "double":
        return library(code, "acosh", at_least(code, x, 1.0))
    t = code.sub(at_least(code, x, 1.0), number(1.0, x.type))
    far = code.compare("ogt", t, number(2.0**30, x.type))
    grown = code.add(t, root(code, code.mul(t, code.add(t, number(2.0, x.type)))))
    once = code.select(far, number(1.0, x.type), number(0.0, x.type))
    y = exponentials.log1p_finite(code, code.select(far, t, grown), once)
    return code.select(code.compare("oeq", x, number(math.inf, x.type)), x, y)


def _expacosh(code: Code, x: Val) -> Val:
    """1/(x + sqrt(x*x - 1)), where x*x is far too large 1/(2x)."""
    one, half = number(1.0, x.type), number(0.5, x.type)
    x = at_least(code, x, 1.0)
    grown = root(code, code.mul(code.sub(x, one), code.add(x, one)))
    far = code.compare("ogt", x, number(2.0 ** (30 if x.scalar == "double" else 14), x.type))
    grown = code.select(far, x, grown)
    return code.div(half, code.add(code.mul(half, x), code.mul(half, grown)))


# --- angles ------------------------------------------------------------------------------------------------
def _asin_of_root(code: Code, z: Val) -> Val:
    """asin(sqrt(z)) for 0 <= z <= 1/2."""
    s = root(code, z)
    if z.scalar == "double":
        return library(code, "asin", s)
    return code.mul(s, polynomial(code, z, ASIN_FLOAT))


def _asinsqrt(code: Code, x: Val) -> Val:
    """Above 1/2 by what is missing to 1, whose root is small."""
    x = at_most(code, at_least(code, x, 0.0), 1.0)
    upper = code.compare("ogt", x, number(0.5, x.type))
    rest = code.select(upper, code.sub(number(1.0, x.type), x), x)
    angle = _asin_of_root(code, rest)
    return code.select(upper, code.sub(number(math.pi / 2, x.type), angle), angle)


def _acos(code: Code, x: Val) -> Val:
    """Twice asin(sqrt((1 - |x|)/2)), or what is left of pi."""
    x = at_most(code, at_least(code, x, -1.0), 1.0)
    if x.scalar == "double":
        return library(code, "acos", x)
    z = code.mul(code.sub(number(1.0, x.type), magnitude(code, x)), number(0.5, x.type))
    angle = code.mul(number(2.0, x.type), _asin_of_root(code, z))
    left = code.sub(number(math.pi, x.type), angle)
    return code.select(code.compare("olt", x, number(0.0, x.type)), left, angle)


#: Up to here a multiple of pi/2 is taken off a float, in doubles; where a lane is larger, the C library takes over.
_LARGE = 1e6
_HALF_PI = (1.57079632673412561417, 6.07710050650619224932e-11)  # the first ends in 20 zeros


def _sin(code: Code, x: Val) -> Val:
    return _circular(code, x, "sin", 0)


def _cos(code: Code, x: Val) -> Val:
    return _circular(code, x, "cos", 1)


def _circular(code: Code, x: Val, name: str, quarters: int) -> Val:
    """sin(x + quarters*pi/2)."""
    if x.scalar == "double":
        return library(code, name, x)
    large = code.compare("ogt", magnitude(code, x), number(_LARGE, x.type))
    if x.lanes:
        large = code.call("llvm.vector.reduce.or", "i1", [large], [large.type])
    return code.choose(large, lambda: library(code, name, x), lambda: _quarter(code, x, quarters))


def _quarter(code: Code, x: Val, quarters: int) -> Val:
    wide = vector_of("double", x.lanes)
    exact = code.cast("fpext", x, wide)
    shift = number(1.5 * 2.0**52, wide)
    moved = code.add(code.mul(exact, number(2 / math.pi, wide)), shift)
    whole = code.sub(moved, shift)
    for part in _HALF_PI:
        exact = code.fma(whole, number(-part, wide), exact)
    rest = code.cast("fptrunc", exact, x.type)
    bits = vector_of("i32", x.lanes)
    turn = code.cast("trunc", code.cast("bitcast", moved, vector_of("i64", x.lanes)), bits)
    turn = code.add(turn, number(quarters, bits)) if quarters else turn
    z = code.mul(rest, rest)
    sine = code.mul(rest, polynomial(code, z, SIN_FLOAT))
    cosine = polynomial(code, z, COS_FLOAT)
    odd = code.compare("ne", code.binary("and", turn, number(1, bits)), number(0, bits))
    half = code.compare("ne", code.binary("and", turn, number(2, bits)), number(0, bits))
    y = code.select(odd, cosine, sine)
    return code.select(half, code.neg(y), y)


WORDS: dict[str, Callable[..., Val]] = {
    "exp": exponentials.exp,
    "exp2": exponentials.exp2,
    "log": exponentials.log,
    "log2": exponentials.log2,
    "log1p": exponentials.log1p,
    "pow": exponentials.constant_power,
    "power": exponentials.power,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "acosh": _acosh,
    "expacosh": _expacosh,
    "asinsqrt": _asinsqrt,
    "acos": _acos,
    "sin": _sin,
    "cos": _cos,
}
