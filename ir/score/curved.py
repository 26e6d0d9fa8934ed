"""The words of distances of constant curvature of any sign: `arcsinc`, which they are written in, and what half a
chord times it is, whose slope has a bound: `arcroot` and its square `arcsquare`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from aatc.ir.score.bounds import Interval, increasing
from aatc.ir.score.expr import ONE, ZERO, Expr, add, call, const, div, mul, neg, sub
from aatc.ir.score.functions import Function, declare

#: Where the series is summed: closed forms, whose derivatives are differences over x, lose digits there.
NEAR = 0.04
#: asin(√x)/√x = Σ c_n xⁿ; 0.04¹³ is 7e-19.
SERIES = tuple(math.comb(2 * n, n) / (4**n * (2 * n + 1)) for n in range(13))
_STEPS = tuple(n * c for n, c in enumerate(SERIES))[1:]
_TINY = const(1e-30)


def _sum(x: Any, coefficients: tuple[float, ...]) -> Any:
    found = coefficients[-1] * x + coefficients[-2]
    for c in reversed(coefficients[:-2]):
        found = found * x + c
    return found


def _evaluate(x: Any) -> Any:
    import torch

    near = ~(x.abs() >= NEAR)  # NaN, too, which a series keeps
    up, down = (x >= NEAR).detach(), (x <= -NEAR).detach()
    half = torch.full_like(x, 0.5)
    rise = torch.where(up, x.clamp(max=1), half).sqrt()
    fall = torch.where(down, -x, half).sqrt()
    far = torch.where(up, rise.asin() / rise, fall.asinh() / fall)
    return torch.where(near, _sum(torch.where(near, x, torch.zeros_like(x)), SERIES), far)


def _value(x: Any) -> Any:
    x = np.asarray(x, dtype=np.float64)
    root = np.sqrt(np.where(np.abs(x) < NEAR, 0.5, np.abs(x)))
    far = np.where(x > 0, np.arcsin(np.minimum(root, 1)), np.arcsinh(root)) / np.where(x > 0, np.minimum(root, 1), root)
    return np.where(np.abs(x) < NEAR, _sum(np.where(np.abs(x) < NEAR, x, 0.0), SERIES), far)


def _bound(a: Interval) -> Interval:
    low, high = increasing(_value)(a)
    return np.where(np.isneginf(a[0]), 0.0, low), high


def _series(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    found = const(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        found = add(mul(found, x), const(c))
    return found


def _split(x: Expr) -> tuple[Expr, Expr]:
    """Whether the series is not summed at x, and x where it is, 0 elsewhere. It is at NaN, which stays so."""
    away = call("ge", call("abs", x), const(NEAR))
    return away, call("where", away, ZERO, x)


def _arcs(x: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """`_split` of x, min(|x|, 1) or -x where the series is not summed, and asin or asinh of that one's root."""
    away, inside = _split(x)
    half = const(0.5)
    rise = call("minimum", call("where", call("ge", x, const(NEAR)), x, half), ONE)
    fall = call("where", call("le", x, const(-NEAR)), neg(x), half)
    # 2 asinh(√y) = acosh(1 + 2y)
    down = mul(half, call("acosh", add(ONE, mul(const(2.0), fall))))
    above = call("gt", x, ZERO)
    return away, inside, call("where", above, rise, fall), call("where", above, call("asinsqrt", rise), down)


def _spelled(x: Expr) -> Expr:
    away, inside, size, half_arc = _arcs(x)
    return call("where", away, div(half_arc, call("sqrt", size)), _series(inside, SERIES))


def _slopes(e: Expr) -> tuple[Expr]:
    """(1/√(1 − x) − y)/(2x), 0 from x = 1 on."""
    x = e.args[0]
    away, inside = _split(x)
    rest = sub(ONE, x)
    root = call("rsqrt", call("maximum", rest, _TINY))
    far = div(sub(root, e), mul(const(2.0), call("where", away, x, ONE)))
    slope = call("where", away, far, _series(inside, _STEPS))
    return (mul(call("step", rest), slope),)


declare(
    Function(
        "arcsinc",
        1,
        "pointwise",
        "asin(sqrt(x))/sqrt(x) of min(x, 1), asinh(sqrt(-x))/sqrt(-x) below 0, 1 at 0: half a distance over half its "
        "chord, x being curvature times the square of the latter; derivative 0 from 1 on",
        _evaluate,
        bound=_bound,
        slopes=_slopes,
        spelled=_spelled,
        cost=30,
    )
)


# --- of half a squared chord x and a curvature r -------------------------------------------------------------------
def _root(x: Any) -> Any:
    """sqrt(max(x, 0)) with slope 0 where that is 0; NaN stays."""
    import torch

    inside = ~(x <= 0).detach()
    return torch.where(inside, torch.where(inside, x, torch.ones_like(x)).sqrt(), torch.zeros_like(x))


def _of_corners(f: Callable[[Any, Any], Any], least: float) -> Callable[[Interval, Interval], Interval]:
    """Bounds of a word that increases in x and in r, and is nowhere below ``least``."""

    def bound(x: Interval, r: Interval) -> Interval:
        with np.errstate(all="ignore"):
            low, high = f(x[0], r[0]), f(x[1], r[1])
        return np.where(np.isnan(low), least, low), np.where(np.isnan(high), np.inf, high)

    return bound


def _root_value(x: Any, r: Any) -> Any:
    x = np.asarray(x, dtype=np.float64)
    return np.sqrt(np.maximum(x, 0)) * _value(r * x)


def _square_value(x: Any, r: Any) -> Any:
    x = np.asarray(x, dtype=np.float64)
    return x * np.square(_value(r * x))


def _spelled_root(x: Expr, r: Expr) -> Expr:
    away, inside, size, half_arc = _arcs(mul(r, x))
    far = mul(half_arc, call("rsqrt", size))
    return mul(call("sqrt", x), call("where", away, far, _series(inside, SERIES)))


def _inverse_root(y: Expr, beyond: Expr) -> Expr:
    """1/sqrt(1 - y), ``beyond`` from y = 1 on."""
    rest = sub(ONE, y)
    return call("where", call("gt", rest, ZERO), call("rsqrt", call("maximum", rest, _TINY)), beyond)


def _root_slopes(e: Expr) -> tuple[Expr, Expr]:
    x, r = e.args
    y = mul(r, x)
    of_x = mul(call("step", x), call("rsqrt", call("maximum", x, _TINY)))
    of_x = mul(mul(const(0.5), of_x), _inverse_root(y, const(math.pi / 2)))
    away, inside = _split(y)
    root = call("sqrt", x)
    far = div(sub(mul(root, _inverse_root(y, ZERO)), e), mul(const(2.0), call("where", away, y, ONE)))
    of_r = mul(x, call("where", away, far, mul(root, _series(inside, _STEPS))))
    return of_x, mul(call("step", sub(ONE, y)), of_r)


def _square_slopes(e: Expr) -> tuple[Expr, Expr]:
    x, r = e.args
    y = mul(r, x)
    ratio = call("arcsinc", y)
    (slope,) = _slopes(ratio)
    return mul(ratio, _inverse_root(y, ratio)), mul(mul(const(2.0), call("square", x)), mul(ratio, slope))


declare(
    Function(
        "arcroot",
        2,
        "pointwise",
        "sqrt(x)*arcsinc(r*x): half the distance in curvature r of points whose halved chord has the square x; "
        "derivative 0 for x from x = 0 down, for r from r*x = 1 on",
        lambda x, r: _root(x) * _evaluate(r * x),
        bound=_of_corners(_root_value, 0.0),
        slopes=_root_slopes,
        spelled=_spelled_root,
        cost=30,
    )
)
declare(
    Function(
        "arcsquare",
        2,
        "pointwise",
        "x*square(arcsinc(r*x)): the square of arcroot, which goes on below x = 0; derivative 0 for r from r*x = 1 on",
        lambda x, r: x * _evaluate(r * x).square(),
        bound=_of_corners(_square_value, -math.inf),
        slopes=_square_slopes,
        spelled=lambda x, r: mul(x, call("square", call("arcsinc", mul(r, x)))),
        cost=30,
    )
)
