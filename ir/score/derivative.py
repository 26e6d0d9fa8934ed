"""Reverse-mode differentiation of score expressions, symbolically.

`gradients` walks from outputs to chosen nodes and returns expressions for the cotangents. It knows nothing
of loops: a cotangent may depend on more axes than the node it belongs to, and whoever evaluates it sums the
surplus axes away (over keys for a query's gradient, over all pairs for a number per head).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from aatc.ir.errors import ScoreError
from aatc.ir.score.expr import ONE, ZERO, Expr, add, call, const, div, mul, neg, postorder, power, sub, total
from aatc.ir.score.functions import FUNCTIONS

Rule = Callable[[Expr, Expr], tuple["Expr | None", ...]]


def _where(c: Expr, x: Expr, y: Expr) -> Expr:
    return call("where", c, x, y)


_TINY = const(1e-30)  # keeps a reciprocal root finite where `step` makes the product 0


def _root_slope(y: Expr) -> Expr:
    """1/sqrt(y) where y > 0, else 0: coincident points have no direction to move apart in."""
    return mul(call("step", y), call("rsqrt", call("maximum", y, _TINY)))


def _beyond_one(x: Expr) -> Expr:
    """x*x - 1 of x at least 1, as a product: near 1 the square would round away half of what is left."""
    x = call("maximum", x, ONE)
    return mul(sub(x, ONE), add(x, ONE))


def factors(g: Expr) -> dict[Expr, Expr | None]:
    """The factors of a product as it is written, each with the product, quotient or negative that it is a part of."""
    parents: dict[Expr, Expr | None] = {g: None}
    stack = [g]
    while stack:
        e = stack.pop()
        for a in e.args[: {"mul": 2, "div": 1, "neg": 1}.get(e.fn, 0)]:
            if a not in parents:
                parents[a] = e
                stack.append(a)
    return parents


def without(g: Expr, e: Expr) -> Expr | None:
    """``g / e`` where ``e`` is one of the `factors` of ``g``, else None."""
    parents = factors(g)
    if e not in parents:
        return None
    rest, part = ONE, e
    while (whole := parents[part]) is not None:
        if whole.fn == "neg":
            rest = neg(rest)
        elif whole.fn == "div":
            rest = div(rest, whole.args[1])
        else:
            rest = mul(rest, whole.args[1] if whole.args[0] is part else whole.args[0])
        part = whole
    return rest


def _tamed(e: Expr, g: Expr, slope: Expr, distance: Expr) -> Expr:
    """``g`` times the slope of ``e``, a word that vanishes with infinite slope where ``distance`` is 0. Its square has
    a finite slope there, to which e e' tends as well: rounding, which decides on what side tokens that coincide lie,
    must not decide between it and 0."""
    parts = _summands(g)
    of_squares = [x for x in (without(p, e) for p in parts) if x is not None]
    if not of_squares:
        return mul(g, slope)
    tamed = mul(total(of_squares), add(mul(e, slope), sub(ONE, call("step", distance))))
    others = [p for p in parts if without(p, e) is None]
    return add(tamed, mul(total(others), slope)) if others else tamed


def _summands(g: Expr) -> list[Expr]:
    """What was added up to the cotangent ``g``, use by use."""
    parts = []
    while g.fn in ("add", "sub"):
        parts.append(g.args[1] if g.fn == "add" else neg(g.args[1]))
        g = g.args[0]
    return [g, *reversed(parts)]


def _acosh(e: Expr, g: Expr) -> tuple[Expr]:
    y = _beyond_one(e.args[0])
    return (_tamed(e, g, _root_slope(y), y),)


def _expacosh(e: Expr, g: Expr) -> tuple[Expr]:
    return (neg(mul(g, mul(e, _root_slope(_beyond_one(e.args[0]))))),)


def _far_slope(x: Expr) -> Expr:
    """1/sqrt(x*x - 1) where x > 1, else 0, as a product of roots: the square of x may be too large a number."""
    return mul(_root_slope(sub(x, ONE)), call("rsqrt", add(call("maximum", x, ONE), ONE)))


def _far_acosh(e: Expr, g: Expr) -> tuple[Expr]:
    return (_tamed(e, g, _far_slope(e.args[0]), sub(e.args[0], ONE)),)


def _far_expacosh(e: Expr, g: Expr) -> tuple[Expr]:
    return (neg(mul(g, mul(e, _far_slope(e.args[0])))),)


def _acos(e: Expr, g: Expr) -> tuple[Expr]:
    x = e.args[0]
    return (neg(_tamed(e, g, _root_slope(mul(sub(ONE, x), add(ONE, x))), sub(ONE, x))),)


def _asinsqrt(e: Expr, g: Expr) -> tuple[Expr]:
    x = e.args[0]
    return (mul(const(0.5), _tamed(e, g, _root_slope(mul(x, sub(ONE, x))), x)),)


def _pow(e: Expr, g: Expr) -> tuple[Expr | None]:
    p = e.attrs[0]
    if p == 0:
        return (None,)
    return (mul(g, mul(const(p), power(e.args[0], p - 1))),)


def _power(e: Expr, g: Expr) -> tuple[Expr | None, Expr | None]:
    """As torch's: nothing for the base where the power is 0, nor for the power where x is 0 (there x**y log(x) is 0 in
    the limit)."""
    x, y = e.args
    if x.is_const:
        return None, mul(g, mul(const(math.log(x.value) if x.value > 0 else math.nan), e)) if x.value else None
    of_x = mul(g, mul(y, call("power", x, sub(y, ONE))))
    of_y = mul(g, mul(e, call("log", _where(call("eq", x, ZERO), ONE, x))))
    return _where(call("eq", y, ZERO), ZERO, of_x), of_y


def _extreme(e: Expr, g: Expr) -> tuple[Expr]:
    """Entries that tie share the gradient."""
    chosen = _where(call("eq", e.args[0], e), ONE, ZERO)
    return (mul(chosen, div(g, call("sum", chosen))),)


def _pick(e: Expr, g: Expr, first: str) -> tuple[Expr, Expr]:
    wins = call(first, e.args[0], e.args[1])
    return _where(wins, g, ZERO), _where(wins, ZERO, g)


def _sqrt(e: Expr, g: Expr) -> tuple[Expr]:
    return (_where(call("gt", e.args[0], ZERO), mul(g, div(const(0.5), e)), ZERO),)


RULES: dict[str, Rule] = {
    "add": lambda e, g: (g, g),
    "sub": lambda e, g: (g, neg(g)),
    "mul": lambda e, g: (mul(g, e.args[1]), mul(g, e.args[0])),
    "div": lambda e, g: (div(g, e.args[1]), neg(mul(g, div(e, e.args[1])))),
    "neg": lambda e, g: (neg(g),),
    "abs": lambda e, g: (mul(g, call("sign", e.args[0])),),
    "square": lambda e, g: (mul(g, mul(const(2.0), e.args[0])),),
    "sqrt": _sqrt,
    "rsqrt": lambda e, g: (mul(g, mul(const(-0.5), mul(e, mul(e, e)))),),
    "reciprocal": lambda e, g: (neg(mul(g, mul(e, e))),),
    "exp": lambda e, g: (mul(g, e),),
    "exp2": lambda e, g: (mul(g, mul(const(math.log(2)), e)),),
    "log2": lambda e, g: (div(mul(const(1 / math.log(2)), g), e.args[0]),),
    "log": lambda e, g: (div(g, e.args[0]),),
    "log1p": lambda e, g: (div(g, add(ONE, e.args[0])),),
    "sin": lambda e, g: (mul(g, call("cos", e.args[0])),),
    "cos": lambda e, g: (neg(mul(g, call("sin", e.args[0]))),),
    "tanh": lambda e, g: (mul(g, sub(ONE, mul(e, e))),),
    "sigmoid": lambda e, g: (mul(g, mul(e, sub(ONE, e))),),
    "softplus": lambda e, g: (mul(g, call("sigmoid", e.args[0])),),
    "relu": lambda e, g: (_where(call("gt", e.args[0], ZERO), g, ZERO),),
    "acosh": _acosh,
    "expacosh": _expacosh,
    "acos": _acos,
    "asinsqrt": _asinsqrt,
    "maximum": lambda e, g: _pick(e, g, "ge"),
    "minimum": lambda e, g: _pick(e, g, "le"),
    "pow": _pow,
    "power": _power,
    "floordiv": lambda e, g: (None, None),
    "remainder": lambda e, g: (g, neg(mul(g, call("floordiv", e.args[0], e.args[1])))),
    "amax": _extreme,
    "amin": _extreme,
    "width": lambda e, g: (None,),
    "where": lambda e, g: (None, _where(e.args[0], g, ZERO), _where(e.args[0], ZERO, g)),
    "dot": lambda e, g: (mul(g, e.args[1]), mul(g, e.args[0])),
    "sum": lambda e, g: (g,),
    "eta": lambda e, g: (call("eta", g),),
    "rotate": lambda e, g: (
        call("rotate", g, neg(e.args[1]), attrs=e.attrs),
        call("rotate_angle", g, e, attrs=e.attrs),
    ),
    "matvec": lambda e, g: (call("outer", g, e.args[1]), call("tmatvec", e.args[0], g)),
    "tmatvec": lambda e, g: (call("outer", e.args[1], g), call("matvec", e.args[0], g)),
    "turn": lambda e, g: (call("outer", g, e.args[1]), call("unturn", e.args[0], g)),
    "unturn": lambda e, g: (call("outer", e.args[1], g), call("turn", e.args[0], g)),
    "centre": lambda e, g: (None,),
    "outer": lambda e, g: (call("matvec", g, e.args[1]), call("tmatvec", g, e.args[0])),
    "item": lambda e, g: (call("embed", g, e.args[0], attrs=e.attrs),),
    "embed": lambda e, g: (call("item", g, attrs=e.attrs), None),
    "sign": lambda e, g: (None,),
    "step": lambda e, g: (None,),
    "floor": lambda e, g: (None,),
    "lookup": lambda e, g: (None,) * len(e.args),  # a rounded position has no slope; a table's share is scattered
    "pair_uniform": lambda e, g: (None, None),
    "append": lambda e, g: (call("init", g), call("item", g, attrs=(-1,))),
    "init": lambda e, g: (call("append", g, ZERO),),
}
#: Those that are right for any number, in the place of ones that take its square, and dearer by a root.
_FAR: dict[str, Rule] = {"acosh": _far_acosh, "expacosh": _far_expacosh}


def gradients(outputs: Iterable[tuple[Expr, Expr]], wrt: Iterable[Expr], *, far: bool = False) -> dict[Expr, Expr]:
    """Cotangents of the nodes ``wrt``, given (output, its cotangent) pairs. ``far``: also where the square of a number
    is too large a number.

    Nodes in ``wrt`` are leaves: nothing flows through them. A node that the outputs do not depend on
    is missing from the result. ScoreError when the path crosses a word without a derivative.
    """
    leaves = set(wrt)
    cotangent: dict[Expr, Expr] = {}
    outputs = list(outputs)
    roots = [e for e, _ in outputs]
    for e, g in outputs:
        cotangent[e] = add(cotangent[e], g) if e in cotangent else g
    active = _depends(roots, leaves)
    for e in reversed(postorder(*roots)):
        if e not in cotangent or e in leaves or e not in active or not e.args:
            continue
        g = cotangent[e]
        for arg, contribution in zip(e.args, _contributions(e, g, far), strict=True):
            if contribution is None or arg not in active:
                continue
            if arg.rank == 0 and contribution.rank == 1:
                contribution = call("sum", contribution)
            elif arg.rank == 1 and contribution.rank == 0:
                contribution = mul(contribution, _ones(arg))
            elif arg.rank != contribution.rank:
                raise ScoreError(f"{e.fn} of a matrix and a number has no derivative for the number")
            cotangent[arg] = add(cotangent[arg], contribution) if arg in cotangent else contribution
    return {e: cotangent[e] for e in wrt if e in cotangent}


def _contributions(e: Expr, g: Expr, far: bool) -> tuple[Expr | None, ...]:
    """What a node's cotangent ``g`` sends to each of its arguments."""
    rule, slopes = RULES.get(e.fn), FUNCTIONS[e.fn].slopes
    if far:
        rule = _FAR.get(e.fn, rule)
    if rule is not None:
        return rule(e, g)
    if slopes is None:
        raise ScoreError(f"{e.fn} has no derivative")
    return tuple(None if s is None else mul(g, s) for s in slopes(e))


def _ones(like: Expr) -> Expr:
    return call("exp", mul(ZERO, like))


def _depends(roots: list[Expr], leaves: set[Expr]) -> set[Expr]:
    active: set[Expr] = set()
    for e in postorder(*roots):
        if e in leaves or (e.dtype == "f" and any(a in active for a in e.args)):
            active.add(e)
    return active
