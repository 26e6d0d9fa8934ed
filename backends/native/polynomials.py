"""What elementary functions are made of in LLVM code: polynomials, their coefficients, limits and library calls.

Coefficients, lowest power first, are weighted least squares on Chebyshev points of the relative error, reweighted
towards the smallest maximum (Lawson), in 40 digits; each was rounded to its type from the lowest power up and those
after it fitted again. A coefficient that must be exact (a 1 at the start, say) was held. The error said of a
polynomial is the largest relative one over its interval, of rounded coefficients in exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

from aatc.backends.native.llvm import Code, Val, number

_hex = float.fromhex

#: 2**x for |x| <= 1/2: 3.0e-9.
EXP2_FLOAT = tuple(map(_hex, (
    "0x1p+0", "0x1.62e43p-1", "0x1.ebfbdcp-3", "0x1.c6af7ap-5", "0x1.3b2dd4p-7", "0x1.5f0948p-10", "0x1.417842p-13",
)))  # fmt: skip
#: 2**x for 0 <= x <= 1: 2.1e-9.
EXP2_FLOAT_UP = tuple(map(_hex, (
    "0x1p+0", "0x1.62e42cp-1", "0x1.ebfd3ap-3", "0x1.c68af6p-5", "0x1.3cfd82p-7", "0x1.47373ap-10", "0x1.c4456ep-13",
)))  # fmt: skip
#: 2**x for |x| <= 1/2: 4.1e-18.
EXP2_DOUBLE = tuple(map(_hex, (
    "0x1p+0", "0x1.62e42fefa39efp-1", "0x1.ebfbdff82c59dp-3", "0x1.c6b08d704a0d9p-5", "0x1.3b2ab6fba0fd0p-7",
    "0x1.5d87fe78b2660p-10", "0x1.4309130c604bep-13", "0x1.ffcbfc00178bfp-17", "0x1.62bfcd099c5bcp-20",
    "0x1.b525fd5854005p-24", "0x1.e612ed5d789cfp-28", "0x1.e828480bcc926p-32",
)))  # fmt: skip
#: exp(x) for |x| <= log(2)/2: 3.1e-9.
EXP_FLOAT = tuple(map(_hex, (
    "0x1p+0", "0x1p+0", "0x1.fffffcp-2", "0x1.555492p-3", "0x1.5558acp-5", "0x1.12397cp-7", "0x1.6a514cp-10",
)))  # fmt: skip
#: exp(x) for |x| <= log(2)/2: 3.7e-18.
EXP_DOUBLE = tuple(map(_hex, (
    "0x1p+0", "0x1p+0", "0x1.000000000000ap-1", "0x1.5555555555508p-3", "0x1.55555555506c6p-5", "0x1.1111111124715p-7",
    "0x1.6c16c18473cb8p-10", "0x1.a01a013b3d9c7p-13", "0x1.a01999694ee0fp-16", "0x1.71df01339c7a2p-19",
    "0x1.28adf266ca30ap-22", "0x1.adb69a0c96c85p-26",
)))  # fmt: skip
#: log2(1 + x)/x for -1/4 <= x <= 1/2: 2.9e-8.
LOG2_FLOAT = tuple(map(_hex, (
    "0x1.715476p+0", "-0x1.715492p-1", "0x1.ec71c4p-2", "-0x1.713c9cp-2", "0x1.271a0cp-2", "-0x1.f0e3bap-3",
    "0x1.bae72p-3", "-0x1.65a8d8p-3", "0x1.41e502p-4",
)))  # fmt: skip
#: log(1 + x)/x for -1/4 <= x <= 1/2: 2.8e-8.
LOG_FLOAT = tuple(map(_hex, (
    "0x1p+0", "-0x1.000014p-1", "0x1.5555e2p-2", "-0x1.ffddd0p-3", "0x1.9922ccp-3", "-0x1.58882ep-3", "0x1.32d12p-3",
    "-0x1.ee073ap-4", "0x1.bb1a7ap-5",
)))  # fmt: skip
#: (log((1 + s)/(1 - s))/s - 2)/s**2 of s**2 for |s| <= 0.1716: of the logarithm 1e-20.
LOG_DOUBLE = tuple(map(_hex, (
    "0x1.5555555555555p-1", "0x1.9999999999d11p-2", "0x1.249249243981ep-2", "0x1.c71c724b618bap-3",
    "0x1.745ce1cb218dbp-3", "0x1.3b202401876e2p-3", "0x1.0f67512bae13cp-3", "0x1.0f0d4fb23a032p-3",
)))  # fmt: skip
#: asin(x)/x of x**2 <= 1/2: 2.3e-9.
ASIN_FLOAT = tuple(map(_hex, (
    "0x1p+0", "0x1.55551ap-3", "0x1.334f9cp-4", "0x1.691732p-5", "0x1.26ffdap-5", "-0x1.09f42ep-7", "0x1.c4479p-4",
    "-0x1.1ec736p-3", "0x1.024d04p-3",
)))  # fmt: skip
#: tanh(x)/x of x**2 for |x| <= 0.55: 1.2e-9.
TANH_FLOAT = tuple(map(_hex, (
    "0x1p+0", "-0x1.55554ap-2", "0x1.110cfcp-3", "-0x1.b9226ep-5", "0x1.59102ep-6", "-0x1.9a478ep-8",
)))  # fmt: skip
#: sin(x)/x of x**2 for |x| <= pi/4: 1.6e-10.
SIN_FLOAT = tuple(map(_hex, ("0x1p+0", "-0x1.555556p-3", "0x1.111174p-7", "-0x1.a0595cp-13", "0x1.7c327cp-19")))
#: cos(x) of x**2 for |x| <= pi/4: 1.2e-10.
COS_FLOAT = tuple(map(_hex, ("0x1p+0", "-0x1p-1", "0x1.55554ap-5", "-0x1.6c0c2ap-10", "0x1.99e91p-16")))


def polynomial(code: Code, x: Val, coefficients: Sequence[float]) -> Val:
    """The sum of coefficients times powers of x, from the highest down (Horner)."""
    out = number(coefficients[-1], x.type)
    for c in reversed(coefficients[:-1]):
        out = code.fma(out, x, number(c, x.type))
    return out


def at_least(code: Code, x: Val, bound: float) -> Val:
    """x where it is not below a bound, a NaN as it is."""
    low = number(bound, x.type)
    return code.select(code.compare("olt", x, low), low, x)


def at_most(code: Code, x: Val, bound: float) -> Val:
    """x where it is not above a bound, a NaN as it is."""
    high = number(bound, x.type)
    return code.select(code.compare("ogt", x, high), high, x)


def root(code: Code, x: Val) -> Val:
    return code.call("llvm.sqrt", x.type, [x])


def magnitude(code: Code, x: Val) -> Val:
    return code.call("llvm.fabs", x.type, [x])


def library(code: Code, name: str, *args: Val) -> Val:
    """A function of the C library, lane by lane."""
    kind = args[0].scalar
    symbol = name if kind == "double" else f"{name}f"
    return code.each_lane(lambda *xs: code.external(symbol, kind, list(xs)), *args)
