"""What is known of a score whatever its inputs are: intervals of its values, and which are never negative."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping

import numpy as np

from aatc.ir.score.expr import Expr, postorder
from aatc.ir.score.functions import FUNCTIONS

EVERYTHING = (-math.inf, math.inf)
#: Words on vectors that only rearrange, drop or append entries.
_SHUFFLES = ("init", "append", "item")


def static_bound(e: Expr, known: Mapping[Expr, tuple[float, float]] = {}) -> tuple[float, float]:
    """Bounds that hold whatever the inputs are: interval arithmetic, with unit vectors recognised. For a vector, bounds
    of every entry. ``known`` are bounds of nodes that are known from elsewhere, or are to be taken for unknown."""
    done: dict[Expr, tuple[float, float]] = {}
    for x in postorder(e):
        done[x] = known[x] if x in known else _bound(x, done)
    return done[e]


def is_nonnegative(e: Expr, bounds: dict[Expr, tuple[float, float]] | None = None) -> bool:
    """Whether no entry of ``e`` can be below 0, judged from its form alone. ``bounds`` remembers those of all nodes
    for the next question."""
    bounds = {} if bounds is None else bounds
    for x in new_nodes(e, bounds):
        bounds[x] = _bound(x, bounds)
    return bounds[e][0] >= 0


def new_nodes(root: Expr, known: Container[Expr]) -> list[Expr]:
    """`postorder` of ``root`` without what is ``known``, which is not walked again."""
    order: dict[Expr, None] = {}
    stack = [root]
    while stack:
        e = stack[-1]
        missing = [a for a in e.args if a not in known and a not in order]
        if e in known or e in order or not missing:
            stack.pop()
            if e not in known:
                order.setdefault(e)
        else:
            stack += reversed(missing)
    return list(order)


def _bound(x: Expr, done: dict[Expr, tuple[float, float]]) -> tuple[float, float]:
    if x.is_const:
        low = high = float(x.value)
    elif x.fn == "dot":
        low, high = _dot_bound(x, done)
    elif x.fn == "sum":
        a, b = done[x.args[0]]
        low, high = (0.0 if a >= 0 else -math.inf), (0.0 if b <= 0 else math.inf)
    elif x.fn in _SHUFFLES:
        low, high = min(done[a][0] for a in x.args), max(done[a][1] for a in x.args)
    else:
        low, high = _pointwise(x, [done[a] for a in x.args])
    return (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)


def _pointwise(x: Expr, args: list[tuple[float, float]]) -> tuple[float, float]:
    f = FUNCTIONS.get(x.fn)
    if f is None or f.bound is None or f.kind != "pointwise" or not args:
        return EVERYTHING
    if x.fn == "mul" and x.args[0] is x.args[1]:
        return 0.0, math.inf
    with np.errstate(all="ignore"):
        low, high = f.bound(*args, *x.attrs)
    return float(low), float(high)


def _dot_bound(e: Expr, done: dict[Expr, tuple[float, float]]) -> tuple[float, float]:
    x, y = e.args
    if x is y or (done[x][0] >= 0 and done[y][0] >= 0) or (done[x][1] <= 0 and done[y][1] <= 0):
        return 0.0, math.inf
    sizes = [_unit_length(v) for v in (x, y)]
    if None in sizes:
        return EVERYTHING
    bound = sizes[0] * sizes[1] * (1 + 1e-5)  # type: ignore[operator]  # rounding of the normalisation
    return -bound, bound


def _unit_length(v: Expr) -> float | None:
    """c for a vector c * x * rsqrt(dot(x, x)) or x / sqrt(dot(x, x)), also with a positive constant under the root."""
    if v.fn == "neg":
        return _unit_length(v.args[0])
    if v.fn in ("rotate",):
        return _unit_length(v.args[0])
    if v.fn in ("turn", "unturn"):
        return _unit_length(v.args[1])
    if v.fn == "mul" and v.args[0].is_const:
        inner = _unit_length(v.args[1])
        return None if inner is None else abs(float(v.args[0].value)) * inner
    for x, n in ((0, 1), (1, 0)):
        if v.fn == "mul" and _is_inverse_norm(v.args[n], v.args[x]):
            return 1.0
    if v.fn == "div" and _is_norm(v.args[1], v.args[0]):
        return 1.0
    return None


def _is_norm(e: Expr, x: Expr) -> bool:
    if e.fn == "maximum":  # a floor under the length only makes the quotient shorter
        return any(c.is_const and c.value >= 0 and _is_norm(o, x) for c, o in (e.args, e.args[::-1]))
    return e.fn == "sqrt" and _is_square_length(e.args[0], x)


def _is_inverse_norm(e: Expr, x: Expr) -> bool:
    if e.fn == "div" and e.args[0].is_const and e.args[0].value == 1:
        return _is_norm(e.args[1], x)
    return (e.fn == "rsqrt" and _is_square_length(e.args[0], x)) or (e.fn == "reciprocal" and _is_norm(e.args[0], x))


def _is_square_length(e: Expr, x: Expr) -> bool:
    if e.fn == "add":
        return any(c.is_const and c.value >= 0 and _is_square_length(o, x) for c, o in (e.args, e.args[::-1]))
    if e.fn == "maximum":
        return any(c.is_const and _is_square_length(o, x) for c, o in (e.args, e.args[::-1]))
    return e.fn == "dot" and e.args == (x, x)
