"""Elementary functions in LLVM code, in ``float`` or ``double``, of scalars and vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from aatc.backends.native.llvm import Code, Val, number, vector_of


def at_least(code: Code, x: Val, bound: float) -> Val:
    """x where it is not below a bound, a NaN as it is."""
    low = number(bound, x.type)
    return code.select(code.compare("olt", x, low), low, x)


def at_most(code: Code, x: Val, bound: float) -> Val:
    high = number(bound, x.type)
    return code.select(code.compare("ogt", x, high), high, x)


def library(code: Code, name: str, *args: Val) -> Val:
    """A function of the C library, lane by lane."""
    kind = args[0].scalar
    symbol = name if kind == "double" else f"{name}f"
    return code.each_lane(lambda *xs: code.external(symbol, kind, list(xs)), *args)


def _sigmoid(code: Code, x: Val) -> Val:
    """1/(1 + exp(-x)), by exp(-|x|), which is at most 1."""
    one = number(1.0, x.type)
    small = library(code, "exp", code.neg(code.call("llvm.fabs", x.type, [x])))
    top = code.select(code.compare("olt", x, number(0.0, x.type)), small, one)
    return code.div(top, code.add(one, small))


def _softplus(code: Code, x: Val) -> Val:
    """As torch has it: x itself above 20."""
    small = library(code, "exp", at_most(code, x, 20.0))
    return code.select(code.compare("ogt", x, number(20.0, x.type)), x, library(code, "log1p", small))


def _acosh(code: Code, x: Val) -> Val:
    return library(code, "acosh", at_least(code, x, 1.0))


def _expacosh(code: Code, x: Val) -> Val:
    """1/(x + sqrt(x*x - 1)), where x*x is far too large 1/(2x)."""
    one, half = number(1.0, x.type), number(0.5, x.type)
    x = at_least(code, x, 1.0)
    root = code.call("llvm.sqrt", x.type, [code.mul(code.sub(x, one), code.add(x, one))])
    far = code.compare("ogt", x, number(2.0 ** (30 if x.scalar == "double" else 14), x.type))
    root = code.select(far, x, root)
    return code.div(half, code.add(code.mul(half, x), code.mul(half, root)))


def _acos(code: Code, x: Val) -> Val:
    return library(code, "acos", at_most(code, at_least(code, x, -1.0), 1.0))


def _asinsqrt(code: Code, x: Val) -> Val:
    """asin(sqrt(x)); above 1/2 by what is missing to 1, whose root is small."""
    x = at_most(code, at_least(code, x, 0.0), 1.0)
    upper = code.compare("ogt", x, number(0.5, x.type))
    rest = code.select(upper, code.sub(number(1.0, x.type), x), x)
    angle = library(code, "asin", code.call("llvm.sqrt", x.type, [rest]))
    return code.select(upper, code.sub(number(math.pi / 2, x.type), angle), angle)


def _power(code: Code, x: Val, y: Val) -> Val:
    """In double precision: an error of the logarithm is multiplied by the power."""
    if x.scalar == "double":
        return library(code, "pow", x, y)
    wide = vector_of("double", x.lanes)
    out = library(code, "pow", code.cast("fpext", x, wide), code.cast("fpext", y, wide))
    return code.cast("fptrunc", out, x.type)


def _pow(code: Code, x: Val, p: float) -> Val:
    """A constant power; those that torch makes products and roots of are such here."""
    one = number(1.0, x.type)
    if p in (0.5, -0.5):
        root = code.call("llvm.sqrt", x.type, [x])
        return root if p > 0 else code.div(one, root)
    if p in (1.0, 2.0, 3.0, -1.0, -2.0):
        x = x if p > 0 else code.div(one, x)
        out = x
        for _ in range(int(abs(p)) - 1):
            out = code.mul(out, x)
        return out
    wide = vector_of("double", x.lanes)  # a power is not rounded to the dtype
    out = library(code, "pow", code.cast("fpext", x, wide), number(p, wide))
    return code.cast("fptrunc", out, x.type)


WORDS: dict[str, Callable[..., Val]] = {
    **{
        name: partial(lambda code, x, name: library(code, name, x), name=name)
        for name in ("exp", "exp2", "log", "log2", "log1p", "sin", "cos", "tanh")
    },
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "acosh": _acosh,
    "expacosh": _expacosh,
    "asinsqrt": _asinsqrt,
    "acos": _acos,
    "pow": _pow,
    "power": _power,
}
