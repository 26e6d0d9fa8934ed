"""`arcsinc`, the word that distances of constant curvature of any sign are written in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from aatc.ir.score.bounds import Interval, increasing
from aatc.ir.score.expr import ONE, ZERO, Expr, add, call, const, div, mul, neg, sub
from aatc.ir.score.functions import Function, declare

#: Where the series is summed: closed forms, whose derivatives are differences over x, lose digits there.
NEAR = 0.04
#: asin(√x)/√x = Σ c_n xⁿ; 0.04¹³ is 7e-19.
SERIES = tuple(math.comb(2 * n, n) / (4**n * (2 * n + 1)) for n in range(13))


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


def _spelled(x: Expr) -> Expr:
    away, inside = _split(x)
    half = const(0.5)
    rise = call("minimum", call("where", call("ge", x, const(NEAR)), x, half), ONE)
    fall = call("where", call("le", x, const(-NEAR)), neg(x), half)
    # 2 asinh(√y) = acosh(1 + 2y)
    up = div(call("asinsqrt", rise), call("sqrt", rise))
    down = div(mul(half, call("acosh", add(ONE, mul(const(2.0), fall)))), call("sqrt", fall))
    return call("where", away, call("where", call("gt", x, ZERO), up, down), _series(inside, SERIES))


def _slopes(e: Expr) -> tuple[Expr]:
    """(1/√(1 − x) − y)/(2x), 0 from x = 1 on."""
    x = e.args[0]
    away, inside = _split(x)
    rest = sub(ONE, x)
    root = call("rsqrt", call("maximum", rest, const(1e-30)))
    far = div(sub(root, e), mul(const(2.0), call("where", away, x, ONE)))
    slope = call("where", away, far, _series(inside, tuple(n * c for n, c in enumerate(SERIES))[1:]))
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
