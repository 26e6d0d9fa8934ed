"""Interval rules of the score language's words, over numbers or numpy arrays of bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

#: Lower and upper bound; numbers or numpy arrays of them, so that many tiles are bounded at once.
Interval = tuple[Any, Any]
INF = math.inf


def corners(f: Callable[[Any, Any], Any]) -> Callable[[Interval, Interval], Interval]:
    def bound(a: Interval, b: Interval) -> Interval:
        with np.errstate(all="ignore"):
            values = [f(x, y) for x in a for y in b]
        unknown = np.logical_or.reduce(np.broadcast_arrays(*map(np.isnan, values)))
        low, high = np.minimum.reduce(np.broadcast_arrays(*values)), np.maximum.reduce(np.broadcast_arrays(*values))
        return np.where(unknown, -INF, low), np.where(unknown, INF, high)

    return bound


def product(x: Any, y: Any) -> Any:
    return np.where((x == 0) | (y == 0), 0.0, np.multiply(x, y))


def quotient(a: Interval, b: Interval) -> Interval:
    low, high = corners(np.divide)(a, b)
    crosses = (b[0] <= 0) & (b[1] >= 0)
    return np.where(crosses, -INF, low), np.where(crosses, INF, high)


def floored_quotient(a: Interval, b: Interval) -> Interval:
    """floor(a / b) as numbers divide: numpy's floor division is exact, and monotone where b keeps its sign."""
    low, high = corners(np.floor_divide)(a, b)
    unknown = _may_lose(a, b)
    return np.where(unknown, -INF, low), np.where(unknown, INF, high)


def remainder(a: Interval, b: Interval) -> Interval:
    """a - b*floor(a/b): between 0 and b; exact where one multiple of a single b lies below all of a."""
    unknown = _may_lose(a, b)
    low, high = np.minimum(b[0], 0.0), np.maximum(b[1], 0.0)
    with np.errstate(all="ignore"):
        one = (b[0] == b[1]) & (np.floor_divide(a[0], b[0]) == np.floor_divide(a[1], b[0])) & ~unknown
        first, last = np.remainder(a[0], b[0]), np.remainder(a[1], b[0])
    low, high = np.where(one, np.minimum(first, last), low), np.where(one, np.maximum(first, last), high)
    return np.where(unknown, -INF, low), np.where(unknown, INF, high)


def _may_lose(a: Interval, b: Interval) -> Any:
    """Where a division with remainder may be NaN, or jump: divisors of either sign, and infinities."""
    finite = np.isfinite(a[0]) & np.isfinite(a[1]) & np.isfinite(b[0]) & np.isfinite(b[1])
    return ~finite | ((b[0] <= 0) & (b[1] >= 0))


def magnitude(a: Interval) -> Interval:
    low, high = np.abs(a[0]), np.abs(a[1])
    crosses = (a[0] <= 0) & (a[1] >= 0)
    return np.where(crosses, 0.0, np.minimum(low, high)), np.maximum(low, high)


def increasing(f: Callable[[Any], Any]) -> Callable[[Interval], Interval]:
    def bound(a: Interval) -> Interval:
        with np.errstate(all="ignore"):
            return f(a[0]), f(a[1])

    return bound


def defined_from(least: float, bound: Callable[[Interval], Interval]) -> Callable[[Interval], Interval]:
    """``bound`` where the argument is at least ``least``; below, the word is NaN and nothing is known."""

    def checked(a: Interval) -> Interval:
        low, high = bound(a)
        outside = a[0] < least
        return np.where(outside, -INF, low), np.where(outside, INF, high)

    return checked


def decreasing(f: Callable[[Any], Any]) -> Callable[[Interval], Interval]:
    return lambda a: increasing(f)((a[1], a[0]))


def constant(low: float, high: float) -> Callable[..., Interval]:
    return lambda *args: (low, high)


def truth(value: Any) -> Any:
    return np.asarray(value, dtype=np.float64)


def power(a: Interval, p: float) -> Interval:
    if p == int(p) and int(p) % 2 == 0 and p > 0:
        a = magnitude(a)
    elif p <= 0 or np.any(np.asarray(a[0]) < 0):
        return -INF, INF
    return np.power(a[0], p), np.power(a[1], p)


def any_power(a: Interval, p: Interval) -> Interval:
    """x**y for x > 0 is monotone in x and in y, each way round; elsewhere nothing is known."""
    low, high = corners(np.power)(a, p)
    unknown = ~(np.asarray(a[0]) > 0) | ~np.isfinite(a[1]) | ~np.isfinite(p[0]) | ~np.isfinite(p[1])
    # between bases below and above 1 the extremes still lie at corners: y log(x) is bilinear in y and log(x)
    return np.where(unknown, -INF, low), np.where(unknown, INF, high)


def selection(c: Interval, a: Interval, b: Interval) -> Interval:
    low = np.where(c[0] == 1, a[0], np.where(c[1] == 0, b[0], np.minimum(a[0], b[0])))
    high = np.where(c[0] == 1, a[1], np.where(c[1] == 0, b[1], np.maximum(a[1], b[1])))
    return low, high
