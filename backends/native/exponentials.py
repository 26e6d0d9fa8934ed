"""Exponentials, logarithms and powers in LLVM code: a number is split at its exponent, the rest is a polynomial.

Two forms of each: AVX-512 has instructions that split a number and scale one by a power of 2, subnormal numbers and
infinities included; elsewhere both are integer arithmetic on the bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from aatc.backends.native.llvm import Code, Val, number, vector_of
from aatc.backends.native.polynomials import (
    EXP2_DOUBLE,
    EXP2_FLOAT,
    EXP2_FLOAT_UP,
    EXP_DOUBLE,
    EXP_FLOAT,
    LOG2_FLOAT,
    LOG_DOUBLE,
    LOG_FLOAT,
    at_least,
    at_most,
    library,
    magnitude,
    polynomial,
    root,
)


@dataclass(frozen=True)
class _Format:
    """A floating-point type: its bits, and constants that have as many digits as it takes."""

    bits: str
    digits: int  # stored ones
    exponent_bias: int
    ln2: tuple[
        float, float
    ]  # positive both; the first ends in so many zeros that its product with an exponent is exact
    exp2_range: tuple[float, float]  # beyond which 2**x is 0 and infinite
    exp_range: tuple[float, float]

    @property
    def round(self) -> float:
        """Added to a small number and taken away again, it rounds it; the bits of the sum end in the whole number."""
        return 1.5 * 2.0**self.digits


_FORMATS = {
    "float": _Format("i32", 23, 127, (0.693145751953125, 1.42860677e-6), (-151.0, 128.0), (-104.0, 89.0)),
    "double": _Format(
        "i64", 52, 1023, (6.93147180369123816490e-01, 1.90821492927058770002e-10), (-1076.0, 1024.0), (-746.0, 710.0)
    ),
}
_LOG2E = 1 / math.log(2)


# --- instructions of AVX-512 -------------------------------------------------------------------------------
def _wide(code: Code, x: Val) -> bool:
    """Whether x fills AVX-512's vectors, of one of their widths or some of the widest."""
    full = 8 if x.scalar == "double" else 16
    return code.module.avx512 and x.lanes > 0 and (x.lanes % full == 0 or x.lanes in (full // 2, full // 4))


def _avx512(code: Code, name: str, args: list[Val], constant: int | None = None) -> Val:
    """``llvm.x86.avx512.mask.name``, all lanes kept; some of the widest vectors one by one."""
    x = args[0]
    full = 8 if x.scalar == "double" else 16
    if x.lanes > full:
        part = vector_of(x.type, full)
        out = Val("poison", x.type)
        for n in range(0, x.lanes, full):
            at = Val(str(n), "i64")
            parts = [code.call("llvm.vector.extract", part, [a, at], [part, a.type]) for a in args]
            done = _avx512(code, name, parts, constant)
            out = code.call("llvm.vector.insert", x.type, [out, done, at], [x.type, part])
        return out
    width = 64 * x.lanes if x.scalar == "double" else 32 * x.lanes
    mask = Val("-1", f"i{max(x.lanes, 8)}")
    operands = [*args, *([] if constant is None else [Val(str(constant), "i32")]), x, mask]
    if width == 512:
        operands.append(Val("4", "i32"))  # the current direction of rounding
    return code.external(
        f"llvm.x86.avx512.mask.{name}.{'pd' if x.scalar == 'double' else 'ps'}.{width}", x.type, operands
    )


# --- exponentials ------------------------------------------------------------------------------------------
def exp2(code: Code, x: Val) -> Val:
    f = _FORMATS[x.scalar]
    if _wide(code, x) and x.scalar == "float":
        # x - floor(x), 0 of infinities; the scaling takes the floor itself
        rest = _avx512(code, "reduce", [x], 9)
        return _avx512(code, "scalef", [polynomial(code, rest, EXP2_FLOAT_UP), x])
    x = at_most(code, at_least(code, x, f.exp2_range[0]), f.exp2_range[1])
    whole, bits = _rounded(code, x)
    p = polynomial(code, code.sub(x, whole), EXP2_DOUBLE if x.scalar == "double" else EXP2_FLOAT)
    return _scaled(code, p, whole, bits)


def exp(code: Code, x: Val) -> Val:
    f = _FORMATS[x.scalar]
    x = at_most(code, at_least(code, x, f.exp_range[0]), f.exp_range[1])
    whole, bits = _rounded(code, code.mul(x, number(_LOG2E, x.type)))
    rest = x
    for part in f.ln2:
        rest = code.fma(whole, number(-part, x.type), rest)
    return _scaled(code, polynomial(code, rest, EXP_DOUBLE if x.scalar == "double" else EXP_FLOAT), whole, bits)


def _rounded(code: Code, x: Val) -> tuple[Val, Val]:
    """The whole number next to x, and for `_scaled` an integer whose lower half is that plus twice the bias of
    exponents; |x| is at most three times the bias."""
    f = _FORMATS[x.scalar]
    if _wide(code, x):
        return code.call("llvm.roundeven", x.type, [x]), Val("", "void")
    shift = number(f.round + 2 * f.exponent_bias, x.type)
    moved = code.add(x, shift)
    return code.sub(moved, shift), code.cast("bitcast", moved, vector_of(f.bits, x.lanes))


def _scaled(code: Code, x: Val, whole: Val, bits: Val) -> Val:
    """x times 2**whole, by two factors of about half the exponent: only the last product may leave the normal
    numbers, so it rounds once."""
    if _wide(code, x):
        return _avx512(code, "scalef", [x, whole])
    f = _FORMATS[x.scalar]
    digits = number(f.digits, bits.type)
    first = code.binary("lshr", bits, number(1, bits.type))
    for half in (first, code.sub(bits, first)):
        x = code.mul(x, code.cast("bitcast", code.binary("shl", half, digits), x.type))
    return x


# --- logarithms --------------------------------------------------------------------------------------------
def log2(code: Code, x: Val) -> Val:
    exponent, rest = _split(code, x)
    if x.scalar == "double":
        y = code.fma(_log1p_of_rest(code, rest), number(_LOG2E, x.type), exponent)
    else:
        y = code.fma(polynomial(code, rest, LOG2_FLOAT), rest, exponent)
    return y if _wide(code, x) else _at_poles(code, x, y)


def log(code: Code, x: Val) -> Val:
    exponent, rest = _split(code, x)
    y = _joined(code, exponent, _log1p_of_rest(code, rest))
    return y if _wide(code, x) else _at_poles(code, x, y)


def log1p(code: Code, x: Val) -> Val:
    """log(1 + x), of the sign of x at 0."""
    if x.scalar == "double":
        return library(code, "log1p", x)
    y = _at_poles(code, code.add(number(1.0, x.type), x), log1p_finite(code, x))
    return code.select(code.compare("oeq", x, number(0.0, x.type)), x, y)


def log1p_finite(code: Code, x: Val, exponent: Val | None = None) -> Val:
    """log(1 + x) + exponent*log(2) of floats above -1 and below infinity: the digits of x that its sum with 1 would
    lose stay in what the polynomial is of."""
    bits = vector_of("i32", x.lanes)
    above = code.cast("bitcast", code.add(number(1.0, x.type), x), bits)
    above = code.binary("and", code.sub(above, number(0x3F400000, bits)), number(-0x800000, bits))
    scale = code.cast("bitcast", code.sub(number(0x40800000, bits), above), x.type)  # 4/2**k, which is normal
    rest = code.add(code.mul(scale, x), code.sub(scale, number(4.0, x.type)))
    rest = code.mul(rest, number(0.25, x.type))
    k = code.mul(code.cast("sitofp", above, x.type), number(2.0**-23, x.type))
    return _joined(code, k if exponent is None else code.add(k, exponent), _log1p_of_rest(code, rest))


def _log1p_of_rest(code: Code, x: Val) -> Val:
    """log(1 + x) where 1 + x is what `_split` leaves."""
    if x.scalar == "float":
        return code.fma(code.mul(x, x), polynomial(code, x, LOG_FLOAT[1:]), x)
    s = code.div(x, code.add(number(2.0, x.type), x))
    z = code.mul(s, s)
    tail = code.sub(x, code.mul(z, polynomial(code, z, LOG_DOUBLE)))
    return code.sub(x, code.mul(s, tail))


def _joined(code: Code, exponent: Val, y: Val) -> Val:
    high, low = _FORMATS[y.scalar].ln2
    return code.fma(exponent, number(high, y.type), code.fma(exponent, number(low, y.type), y))


def _split(code: Code, x: Val) -> tuple[Val, Val]:
    """(k, m - 1) with x = 2**k * m, m from about 3/4 (float) or sqrt(1/2) (double) to twice that. AVX-512 has an
    infinite k where x is 0 or infinite, and no m where x is negative."""
    one = number(1.0, x.type)
    if _wide(code, x):
        k = _avx512(code, "getexp", [x])
        if x.scalar == "float":
            m = _avx512(code, "getmant", [x], 0b1011)  # from 3/4; NaN of a negative number
            return code.select(code.compare("olt", m, one), code.add(k, one), k), code.sub(m, one)
        m = _avx512(code, "getmant", [x], 0b1000)  # from 1
        upper = code.compare("ogt", m, number(math.sqrt(2), x.type))
        m = code.select(upper, code.mul(m, number(0.5, x.type)), m)
        return code.select(upper, code.add(k, one), k), code.sub(m, one)
    f = _FORMATS[x.scalar]
    least, lift = (0x3F400000, 23) if x.scalar == "float" else (0x3FE6A09E00000000, 52)
    tiny = code.compare("olt", x, number(2.0 ** (1 - f.exponent_bias), x.type))
    lifted = code.select(tiny, code.mul(x, number(2.0**lift, x.type)), x)
    bits = vector_of(f.bits, x.lanes)
    start = (f.exponent_bias << f.digits) - least
    moved = code.add(code.cast("bitcast", lifted, bits), number(start, bits))
    m = code.add(code.binary("and", moved, number((1 << f.digits) - 1, bits)), number(least, bits))
    k = code.binary("lshr", moved, number(f.digits, bits))
    bias = float(f.exponent_bias)
    if x.scalar == "float":
        k = code.cast("sitofp", k, x.type)
    else:  # its conversion is no vector instruction everywhere
        k = code.cast("bitcast", code.binary("or", k, number(0x4330000000000000, bits)), x.type)
        bias += 2.0**52
    k = code.sub(k, code.select(tiny, number(bias + lift, x.type), number(bias, x.type)))
    return k, code.sub(code.cast("bitcast", m, x.type), one)


def _at_poles(code: Code, x: Val, y: Val) -> Val:
    """y as the logarithm of x, but at infinity, 0 and where there is none."""
    y = code.select(code.compare("olt", x, number(math.inf, x.type)), y, x)
    zero = code.compare("oeq", x, number(0.0, x.type))
    edge = code.select(zero, number(-math.inf, x.type), number(math.nan, x.type))
    return code.select(code.compare("ogt", x, number(0.0, x.type)), y, edge)


# --- powers ------------------------------------------------------------------------------------------------
def power(code: Code, x: Val, y: Val) -> Val:
    """In double precision: an error of the logarithm is multiplied by the power."""
    if x.scalar == "double":
        return library(code, "pow", x, y)
    wide = vector_of("double", x.lanes)
    return code.cast("fptrunc", _float_power(code, code.cast("fpext", x, wide), code.cast("fpext", y, wide)), x.type)


def constant_power(code: Code, x: Val, p: float) -> Val:
    """Those that torch makes products and roots of are such here, and those that take few products."""
    one = number(1.0, x.type)
    if p in (0.5, -0.5):
        return root(code, x) if p > 0 else code.div(one, root(code, x))
    if p == int(p) and (p in (-1.0, -2.0) or 1 <= p <= (5 if x.scalar == "float" else 3)):
        return _product(code, x if p > 0 else code.div(one, x), int(abs(p)))
    if x.scalar == "double":
        return library(code, "pow", x, number(p, x.type))
    wide = vector_of("double", x.lanes)  # the power is not rounded to a float
    return code.cast("fptrunc", _float_power(code, code.cast("fpext", x, wide), number(p, wide)), x.type)


def _product(code: Code, x: Val, p: int) -> Val:
    if p == 1:
        return x
    half = _product(code, x, p // 2)
    square = code.mul(half, half)
    return code.mul(square, x) if p % 2 else square


def _float_power(code: Code, x: Val, y: Val) -> Val:
    """x**y of doubles that hold floats, to about 40 digits of 2, with C's values where x is not positive."""
    t = x.type
    zero, one, infinity = number(0.0, t), number(1.0, t), number(math.inf, t)
    size = magnitude(code, x)
    out = exp2(code, code.mul(y, log2(code, size)))
    whole = code.compare("oeq", code.call("llvm.floor", t, [y]), y)
    half = code.mul(y, number(0.5, t))
    odd = code.binary("and", whole, code.compare("one", code.call("llvm.floor", t, [half]), half))
    bits = vector_of("i64", x.lanes)
    minus = code.compare("slt", code.cast("bitcast", x, bits), number(0, bits))
    out = code.select(code.binary("and", odd, minus), code.neg(out), out)
    below = code.binary("and", code.compare("olt", x, zero), code.compare("one", x, number(-math.inf, t)))
    nothing = code.binary("and", below, code.compare("one", code.call("llvm.floor", t, [y]), y))
    out = code.select(nothing, number(math.nan, t), out)
    endless = code.compare("oeq", magnitude(code, y), infinity)
    ones = code.binary("and", endless, code.compare("oeq", size, one))
    for always in (ones, code.compare("oeq", x, one), code.compare("oeq", y, zero)):
        out = code.select(always, one, out)
    return out
