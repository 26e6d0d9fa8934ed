"""Element-wise operators of torch as words of kernels, with what torch says of NaN, infinities and zeros."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from aatc.backends.vulkan.model.nodes import Node, number

_NAN, _INF = "bits_f(0x7fc00000u)", "bits_f(0x7f800000u)"
#: word -> (text, kind of its operands, kind of its result). "f?" of what it gets; comparisons take both as numbers or
#: both as integers.
WORDS: dict[str, tuple[str, str, str]] = {
    "add": ("({0} + {1})", "f", "f"), "sub": ("({0} - {1})", "f", "f"), "mul": ("({0} * {1})", "f", "f"),
    "div": ("({0} / {1})", "f", "f"), "neg": ("(-{0})", "f", "f"), "abs": ("abs({0})", "f", "f"),
    "square": ("({0} * {0})", "f", "f"), "reciprocal": ("(1.0 / {0})", "f", "f"),
    **{
        name: (f"select({text}, {{0}}, w_isnan({{0}}))", "f", "f")  # compilers of shaders take it that nothing is NaN
        for name, text in (
            ("sqrt", f"select({_NAN}, sqrt(max({{0}}, 0.0)), {{0}} >= 0.0)"),
            ("rsqrt", f"select({_NAN}, 1.0 / sqrt(max({{0}}, 0.0)), {{0}} >= 0.0)"),
            ("exp", "w_exp({0})"), ("log", "w_log({0})"), ("power", "w_power({0}, {1})"), ("tanh", "w_tanh({0})"),
            ("sigmoid", "w_sigmoid({0})"), ("erf", "w_erf({0})"), ("relu", "select({0}, 0.0, {0} < 0.0)"),
        )
    },
    "floor": ("floor({0})", "f", "f"),
    "sign": ("w_sign({0})", "f", "f"),
    "maximum": ("select(select({0}, {1}, {1} > {0}), {1}, w_isnan({1}))", "f", "f"),
    "minimum": ("select(select({0}, {1}, {1} < {0}), {1}, w_isnan({1}))", "f", "f"),
    "lt": ("({0} < {1})", "=", "b"), "le": ("({0} <= {1})", "=", "b"), "gt": ("({0} > {1})", "=", "b"),
    "ge": ("({0} >= {1})", "=", "b"), "eq": ("({0} == {1})", "=", "b"), "ne": ("({0} != {1})", "=", "b"),
    "and": ("({0} && {1})", "b", "b"), "or": ("({0} || {1})", "b", "b"), "not": ("(!{0})", "b", "b"),
    "where": ("select({2}, {1}, {0})", "?", "?"), "as_f": ("{0}", "f", "f"), "as_b": ("{0}", "b", "b"),
    "as_i": ("{0}", "i", "i"),
}  # fmt: skip


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    rank = max((len(s) for s in shapes), default=0)
    out = [1] * rank
    for s in shapes:
        for n, d in enumerate(s, rank - len(s)):
            out[n] = d if out[n] == 1 else out[n]
    return tuple(out)


def word(name: str, *args: Node) -> Node:
    """A word over nodes, which broadcast."""
    result = WORDS[name][2]
    if result == "?":
        kinds = {a.kind for a in args[1:]}
        result = "f" if "f" in kinds else "i" if "i" in kinds else "b"
    return Node(name, result, broadcast(*(a.shape for a in args)), args)


def _f(x: float) -> Node:
    return number(float(x), "f")


def _is_zero(x: Node) -> bool:
    """Whether it is the number 0, by which shading languages do not divide."""
    return x.op == "number" and x.data == 0


def _scaled(x: Node, alpha: float) -> Node:
    return x if alpha == 1 else word("mul", x, _f(alpha))


def _power(x: Node, p: float) -> Node | None:
    p = float(p)
    if p == 0.5:
        return word("sqrt", x)
    if p in (1.0, 2.0, 3.0):
        out = x
        for _ in range(int(p) - 1):
            out = word("mul", out, x)
        return word("as_f", out) if out is x else out
    if p == -1.0:
        return word("reciprocal", x)
    return word("power", x, _f(p)) if math.isfinite(p) else None


def _clamp(x: Node, low: Any = None, high: Any = None) -> Node:
    for bound, over in ((low, "lt"), (high, "gt")):
        if bound is not None:
            b = bound if isinstance(bound, Node) else _f(bound)
            x = word("where", word(over, x, b), b, x)
    return x


def _gelu(x: Node, approximate: str = "none") -> Node:
    half = word("mul", _f(0.5), x)
    if approximate == "none":
        return word("mul", half, word("add", _f(1.0), word("erf", word("mul", x, _f(math.sqrt(0.5))))))
    cube = word("add", _f(1.0), word("mul", _f(0.044715), word("mul", x, x)))
    inner = word("mul", _f(math.sqrt(2.0 / math.pi)), word("mul", x, cube))
    return word("mul", half, word("add", _f(1.0), word("tanh", inner)))


def _binary(name: str) -> Callable[..., Node]:
    return lambda x, y: word(name, x, y)


def _summed(name: str) -> Callable[..., Node]:
    return lambda x, y, alpha=1: word(name, x, y if alpha == 1 else word("mul", y, _f(alpha)))


def _unary(name: str) -> Callable[..., Node]:
    return lambda x: word(name, x)


#: Operators without their overloads; functions of nodes (tensors and numbers alike) and of other arguments as they are.
#: None from one: no kernel has it.
POINTWISE: dict[str, Callable[..., Node | None]] = {
    "aten.add": _summed("add"), "aten.sub": _summed("sub"), "aten.mul": _binary("mul"),
    "aten.rsub": lambda x, y, alpha=1: word("sub", y, _scaled(x, alpha)),
    "aten.div": lambda x, y, rounding_mode=None: (
        None if rounding_mode is not None or _is_zero(y) else word("div", x, y)
    ),
    "aten.neg": _unary("neg"), "aten.abs": _unary("abs"), "aten.square": _unary("square"),
    "aten.reciprocal": _unary("reciprocal"), "aten.sqrt": _unary("sqrt"), "aten.rsqrt": _unary("rsqrt"),
    "aten.exp": _unary("exp"), "aten.log": _unary("log"), "aten.tanh": _unary("tanh"), "aten.erf": _unary("erf"),
    "aten.sigmoid": _unary("sigmoid"),
    "aten.floor": _unary("floor"),
    "aten.sign": _unary("sign"),
    "aten.sgn": _unary("sign"), "aten.relu": _unary("relu"), "aten.gelu": _gelu,
    "aten.silu": lambda x: word("mul", x, word("sigmoid", x)),
    "aten.maximum": _binary("maximum"), "aten.minimum": _binary("minimum"), "aten.clamp": _clamp,
    "aten.clamp_min": lambda x, low: _clamp(x, low), "aten.clamp_max": lambda x, high: _clamp(x, None, high),
    "aten.lt": _binary("lt"), "aten.le": _binary("le"), "aten.gt": _binary("gt"), "aten.ge": _binary("ge"),
    "aten.eq": _binary("eq"), "aten.ne": _binary("ne"),
    "aten.logical_and": _binary("and"), "aten.logical_or": _binary("or"), "aten.logical_not": _unary("not"),
    "aten.bitwise_and": lambda x, y: word("and", x, y) if x.kind == y.kind == "b" else None,
    "aten.bitwise_or": lambda x, y: word("or", x, y) if x.kind == y.kind == "b" else None,
    "aten.bitwise_not": lambda x: word("not", x) if x.kind == "b" else None,
    "aten.where": lambda c, x, y: word("where", c, x, y),
    "aten.masked_fill": lambda x, c, value: word("where", c, value, x),
    "aten.addcmul": lambda x, a, b, value=1: word("add", x, _scaled(word("mul", a, b), value)),
    "aten.addcdiv": lambda x, a, b, value=1: word("add", x, word("div", _scaled(a, value), b)),
    "aten.copy": lambda x, y: word({"f": "as_f", "i": "as_i", "b": "as_b"}[x.kind], y) if x.kind == y.kind else None,
    "aten.lerp": lambda x, y, w: word("add", x, word("mul", w, word("sub", y, x))),
}  # fmt: skip
POINTWISE["aten.pow"] = lambda x, p: _power(x, p.data) if p.op == "number" else None
#: Operators that change nothing of the numbers.
SAME = frozenset(
    ["aten.clone", "aten.contiguous", "aten.detach", "aten.alias", "aten.lift_fresh_copy", "aten.lift_fresh"]
)
