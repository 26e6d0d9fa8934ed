"""The words of the score language, each declared once.

A declaration holds how a word is typed, evaluated in torch, bounded over intervals, and what it means;
its derivative stands in `ir.score.derivative`. Printer, parser, docs and fuzzers read this table.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from aatc.ir.errors import ScoreError
from aatc.ir.score import bounds, torch_words
from aatc.ir.score.bounds import INF, Interval


@dataclass(frozen=True)
class Function:
    """One word. ``kind`` says how its arguments combine:

    ``pointwise`` element by element (vectors broadcast against scalars), ``reduce`` sums the feature axis
    away, ``vector`` makes a feature vector, ``lookup`` reads a table, ``random`` draws a number per pair.
    """

    name: str
    arity: int
    kind: str
    doc: str
    evaluate: Callable[..., Any] | None = None
    bound: Callable[..., Interval] | None = None
    result: str = "f"  # element type: f number, b truth value
    infix: tuple[str, int] | None = None  # symbol and binding strength
    attributes: tuple[type, ...] = ()  # types of the constants in brackets, as in rotate[half](x, t)
    torch_names: tuple[str, ...] = ()  # torch functions that mean this word when a metric is traced
    cost: float = 1.0  # relative to one vectorised pass over a tile
    jumps: bool = False  # the last digit of an argument may decide the value: rewrites leave what it reads alone
    kinked: bool = False  # the last digit of an argument near 0, or of two that are nearly equal, may decide the slope
    slopes: Callable[[Any], tuple[Any, ...]] | None = None  # derivatives of an expression for its arguments
    spelled: Callable[..., Any] | None = None  # the word in other words, for backends without one of their own


FUNCTIONS: dict[str, Function] = {}
#: What looks at new words: evaluating them reads this table, which so cannot import it.
PROBES: list[Callable[[Function], None]] = []
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
#: Longer names that metrics, masks and connections of aatc give to parameters.
_PARAMETERS = {"beta", "angles", "frames", "table", "bias", "seed", "slopes", "scale", "weight", "mask", "query", "key"}


def declare(f: Function) -> Function:
    """Makes an element-wise word part of the language, of its texts, derivatives and kernels, from one declaration.

    It needs ``evaluate`` (in torch), ``bound`` (of intervals), ``slopes`` (of its expression: one per argument, None
    for none) and ``spelled`` (its expression in words there are). ScoreError for a name that is taken or no name, for
    what is missing, and where these contradict each other at samples.
    """
    if not _NAME.match(f.name) or f.name in FUNCTIONS or f.name in ("inf", "nan", "let", "in"):
        raise ScoreError(f"{f.name!r} cannot name a new word", hint="lower-case letters, digits and _, and not taken")
    if len(f.name) < 3 or f.name in _PARAMETERS:
        raise ScoreError(f"{f.name!r} cannot name a new word: parameters are called so", hint="take a longer name")
    if f.kind != "pointwise" or f.arity < 1:
        raise ScoreError(f"{f.name} is not element by element", hint="other kinds of words are part of the compiler")
    for needed in ("evaluate", "bound", "slopes", "spelled"):
        if getattr(f, needed) is None:
            raise ScoreError(f"the word {f.name} does not say its {needed}", hint="docs/extending.md shows a whole one")
    FUNCTIONS[f.name] = f
    try:
        for probe in PROBES:
            probe(f)
    except BaseException:
        del FUNCTIONS[f.name]
        raise
    return f


def _declare(name: str, arity: int, doc: str, evaluate: Any = None, *, kind: str = "pointwise", **more: Any) -> None:
    FUNCTIONS[name] = Function(name, arity, kind, doc, evaluate, **more)


def _torch() -> Any:
    import torch

    return torch


def _compare(name: str, symbol: str, doc: str) -> None:
    rules: dict[str, Callable[[Interval, Interval], Interval]] = {
        "lt": lambda a, b: (bounds.truth(a[1] < b[0]), bounds.truth(a[0] < b[1])),
        "le": lambda a, b: (bounds.truth(a[1] <= b[0]), bounds.truth(a[0] <= b[1])),
        "gt": lambda a, b: (bounds.truth(a[0] > b[1]), bounds.truth(a[1] > b[0])),
        "ge": lambda a, b: (bounds.truth(a[0] >= b[1]), bounds.truth(a[1] >= b[0])),
        "eq": lambda a, b: (
            bounds.truth((a[0] == a[1]) & (b[0] == b[1]) & (a[0] == b[0])),
            bounds.truth((a[0] <= b[1]) & (b[0] <= a[1])),
        ),
        "ne": lambda a, b: (
            bounds.truth((a[1] < b[0]) | (b[1] < a[0])),
            bounds.truth(~((a[0] == a[1]) & (b[0] == b[1]) & (a[0] == b[0]))),
        ),
    }
    _declare(
        name,
        2,
        doc,
        lambda x, y: getattr(_torch(), name)(x, y),
        bound=rules[name],
        result="b",
        jumps=True,
        infix=(symbol, 4),
        torch_names=(name,),
    )


_declare(
    "add",
    2,
    "sum",
    lambda x, y: x + y,
    bound=lambda a, b: (a[0] + b[0], a[1] + b[1]),
    infix=("+", 5),
    torch_names=("add",),
)
_declare(
    "sub",
    2,
    "difference",
    lambda x, y: x - y,
    bound=lambda a, b: (a[0] - b[1], a[1] - b[0]),
    infix=("-", 5),
    torch_names=("sub", "subtract"),
)
_declare(
    "mul",
    2,
    "product",
    lambda x, y: x * y,
    bound=bounds.corners(bounds.product),
    infix=("*", 6),
    torch_names=("mul", "multiply"),
)
_declare(
    "div",
    2,
    "quotient",
    lambda x, y: x / y,
    bound=bounds.quotient,
    infix=("/", 6),
    torch_names=("div", "true_divide"),
)
_declare(
    "floordiv",
    2,
    "quotient rounded down; derivative 0",
    lambda x, y: _torch().floor_divide(x, y),
    bound=bounds.floored_quotient,
    jumps=True,
    cost=8,
)
_declare(
    "remainder",
    2,
    "x - y*floordiv(x, y), of y's sign; NaN where y is 0",
    lambda x, y: _torch().remainder(x, y),
    bound=bounds.remainder,
    jumps=True,
    cost=8,
)
_declare("neg", 1, "negation", lambda x: -x, bound=lambda a: (-a[1], -a[0]), torch_names=("neg",))
_declare("abs", 1, "absolute value", lambda x: x.abs(), bound=bounds.magnitude, torch_names=("abs",), kinked=True)
_declare(
    "square",
    1,
    "x*x",
    lambda x: x * x,
    bound=lambda a: tuple(np.square(x) for x in bounds.magnitude(a)),
    torch_names=("square",),
)
_declare(
    "step",
    1,
    "1 where x > 0, else 0; derivative 0",
    lambda x: (x > 0).to(x.dtype),
    bound=bounds.constant(0.0, 1.0),
    cost=2,
    jumps=True,
)
_declare(
    "sign",
    1,
    "-1, 0 or 1",
    lambda x: _torch().sign(x),
    bound=bounds.constant(-1.0, 1.0),
    torch_names=("sign",),
    jumps=True,
)
_declare(
    "sqrt",
    1,
    "square root of max(x, 0)",
    lambda x: x.clamp(min=0).sqrt(),
    bound=bounds.increasing(lambda x: np.sqrt(np.maximum(x, 0))),
    torch_names=("sqrt",),
    cost=4,
)
_declare(
    "rsqrt",
    1,
    "reciprocal square root, x > 0",
    lambda x: x.rsqrt(),
    bound=bounds.defined_from(5e-324, bounds.constant(0.0, INF)),
    torch_names=("rsqrt",),
    cost=4,
)
_declare(
    "reciprocal",
    1,
    "1/x",
    lambda x: x.reciprocal(),
    bound=lambda a: bounds.quotient((1.0, 1.0), a),
    torch_names=("reciprocal",),
)
_declare("exp", 1, "exponential", lambda x: x.exp(), bound=bounds.increasing(np.exp), torch_names=("exp",), cost=4)
_declare(
    "exp2", 1, "2 to the power x", lambda x: x.exp2(), bound=bounds.increasing(np.exp2), torch_names=("exp2",), cost=2
)
_declare(
    "log",
    1,
    "natural logarithm, x > 0",
    lambda x: x.log(),
    bound=bounds.defined_from(0.0, bounds.increasing(lambda x: np.log(np.maximum(x, 0)))),
    torch_names=("log",),
    cost=8,
)
_declare(
    "log2",
    1,
    "logarithm to base 2, x > 0",
    lambda x: x.log2(),
    bound=bounds.defined_from(0.0, bounds.increasing(lambda x: np.log2(np.maximum(x, 0)))),
    torch_names=("log2",),
    cost=8,
)
_declare(
    "log1p",
    1,
    "log(1+x)",
    lambda x: x.log1p(),
    bound=bounds.defined_from(-1.0, bounds.increasing(lambda x: np.log1p(np.maximum(x, -1)))),
    torch_names=("log1p",),
    cost=12,
)
_declare("sin", 1, "sine", lambda x: x.sin(), bound=bounds.constant(-1.0, 1.0), torch_names=("sin",), cost=8)
_declare("cos", 1, "cosine", lambda x: x.cos(), bound=bounds.constant(-1.0, 1.0), torch_names=("cos",), cost=8)
_declare(
    "tanh",
    1,
    "hyperbolic tangent",
    lambda x: x.tanh(),
    bound=bounds.increasing(np.tanh),
    torch_names=("tanh",),
    cost=10,
)
_declare(
    "sigmoid",
    1,
    "1/(1+exp(-x))",
    lambda x: x.sigmoid(),
    bound=bounds.constant(0.0, 1.0),
    torch_names=("sigmoid",),
    cost=8,
)
_declare(
    "softplus",
    1,
    "log(1+exp(x))",
    lambda x: _torch().nn.functional.softplus(x),
    bound=bounds.constant(0.0, INF),
    torch_names=("softplus",),
    cost=12,
)
_declare(
    "relu",
    1,
    "max(x, 0)",
    lambda x: x.relu(),
    bound=lambda a: (np.maximum(a[0], 0.0), np.maximum(a[1], 0.0)),
    torch_names=("relu",),
    kinked=True,
)
_declare(
    "floor",
    1,
    "largest integer not above x; derivative 0",
    lambda x: x.floor() if x.is_floating_point() else x,
    bound=bounds.increasing(np.floor),
    torch_names=("floor",),
    jumps=True,
)
_declare(
    "acosh",
    1,
    "inverse hyperbolic cosine of max(x, 1): rounding below 1 gives 0; derivative 0 there, of its square 2",
    lambda x: x.clamp(min=1).acosh(),
    bound=bounds.increasing(lambda x: np.arccosh(np.maximum(x, 1.0))),
    torch_names=("acosh", "arccosh"),
    cost=14,
)
_declare(
    "expacosh",
    1,
    "exp(-acosh(x)) = 1/(x + sqrt(x*x - 1)) for x >= 1, 1 below",
    torch_words.expacosh,
    bound=bounds.constant(0.0, 1.0),
    cost=7,
)
_declare(
    "asinsqrt",
    1,
    "asin(sqrt(x)) of x clamped to [0, 1]: half the angle between unit vectors whose squared distance is 4x; "
    "derivative 0 at the ends, of its square 1 at 0",
    lambda x: x.clamp(0, 1).sqrt().asin(),
    bound=bounds.increasing(lambda x: np.arcsin(np.sqrt(np.clip(x, 0.0, 1.0)))),
    cost=12,
)
_declare(
    "acos",
    1,
    "inverse cosine of x clamped to [-1, 1]; derivative 0 at the ends and outside, of its square -2 at 1",
    lambda x: x.clamp(-1, 1).acos(),
    bound=bounds.decreasing(lambda x: np.arccos(np.clip(x, -1.0, 1.0))),
    torch_names=("acos", "arccos"),
    cost=8,
)
_declare(
    "maximum",
    2,
    "larger of two",
    lambda x, y: _torch().maximum(x, y),
    bound=lambda a, b: (np.maximum(a[0], b[0]), np.maximum(a[1], b[1])),
    torch_names=("maximum",),
    kinked=True,
)
_declare(
    "minimum",
    2,
    "smaller of two",
    lambda x, y: _torch().minimum(x, y),
    bound=lambda a, b: (np.minimum(a[0], b[0]), np.minimum(a[1], b[1])),
    torch_names=("minimum",),
    kinked=True,
)
_declare(
    "pow",
    1,
    "x to a constant power, x > 0 unless the power is a whole number",
    lambda x, p: x**p,
    bound=bounds.power,
    attributes=(float,),
    cost=10,
)
_declare(
    "power",
    2,
    "x to the power y, x > 0 unless y is a whole number",
    lambda x, y: x**y,
    bound=bounds.any_power,
    cost=12,
)
_declare(
    "where",
    3,
    "second argument where the first holds, else the third",
    lambda c, x, y: _torch().where(c, x, y),
    bound=bounds.selection,
    torch_names=("where",),
)
for _name, _symbol, _doc in (
    ("lt", "<", "less"),
    ("le", "<=", "less or equal"),
    ("gt", ">", "greater"),
    ("ge", ">=", "greater or equal"),
    ("eq", "==", "equal"),
    ("ne", "!=", "different"),
):
    _compare(_name, _symbol, _doc)
_declare(
    "and",
    2,
    "both",
    lambda x, y: x & y,
    bound=lambda a, b: (np.minimum(a[0], b[0]), np.minimum(a[1], b[1])),
    result="b",
    infix=("&", 2),
    torch_names=("logical_and", "bitwise_and"),
)
_declare(
    "or",
    2,
    "either",
    lambda x, y: x | y,
    bound=lambda a, b: (np.maximum(a[0], b[0]), np.maximum(a[1], b[1])),
    result="b",
    infix=("|", 1),
    torch_names=("logical_or", "bitwise_or"),
)
_declare(
    "not",
    1,
    "negated truth",
    lambda x: ~x,
    bound=lambda a: (1 - a[1], 1 - a[0]),
    result="b",
    torch_names=("logical_not", "bitwise_not"),
)

_declare("dot", 2, "contraction over the feature axis", lambda x, y: (x * y).sum(-1, keepdim=True), kind="reduce")
_declare("sum", 1, "sum over the feature axis", lambda x: x.sum(-1, keepdim=True), kind="reduce")
_declare("amax", 1, "largest entry along the feature axis", lambda x: x.amax(-1, keepdim=True), kind="reduce")
_declare("amin", 1, "smallest entry along the feature axis", lambda x: x.amin(-1, keepdim=True), kind="reduce")
_declare(
    "width",
    1,
    "number of channels of a vector",
    lambda x: x.new_full((1,) * x.dim(), x.shape[-1]),
    kind="reduce",
)
_declare("eta", 1, "Minkowski metric diag(-1, 1, ..., 1) applied to a vector", torch_words.eta, kind="vector")
_declare(
    "rotate",
    2,
    "turns channel pairs by angles (one angle per pair); [half] pairs channel c with c + d/2, "
    "[pairs] pairs 2c with 2c + 1",
    torch_words.rotate,
    kind="vector",
    attributes=(str,),
)
_declare(
    "rotate_angle",
    2,
    "gradient of rotate for its angles, from the gradient x and the rotated vector y",
    torch_words.rotate_angle,
    kind="vector",
    attributes=(str,),
)
_declare("matvec", 2, "matrix times vector", torch_words.matvec, kind="vector")
_declare("tmatvec", 2, "transposed matrix times vector", lambda m, x: torch_words.matvec(m.mT, x), kind="vector")
_declare(
    "turn",
    2,
    "orthogonal matrix times vector: a frame, which keeps inner products",
    torch_words.matvec,
    kind="vector",
)
_declare(
    "unturn",
    2,
    "transposed (inverse) orthogonal matrix times vector",
    lambda m, x: torch_words.matvec(m.mT, x),
    kind="vector",
)
_declare(
    "centre",
    1,
    "mean of a vector's finite entries over the axis it varies along (keys or queries); counts as "
    "constant under differentiation: only differences to it may matter",
    torch_words.centre,
    kind="vector",
)
_declare(
    "outer", 2, "outer product of two vectors, a matrix", lambda x, y: x.unsqueeze(-1) * y.unsqueeze(-2), kind="vector"
)
_declare("item", 1, "one channel of a vector", torch_words.item, kind="reduce", attributes=(int,))
_declare(
    "embed",
    2,
    "a vector shaped like the second argument, zero but for one channel",
    torch_words.embed,
    kind="vector",
    attributes=(int,),
)
_declare("lookup", 2, "entry of a captured table at a rounded, clamped position", kind="lookup", jumps=True)
_declare("append", 2, "a vector with one more channel", torch_words.append, kind="vector")
_declare("init", 1, "a vector without its last channel", lambda x: x[..., :-1], kind="vector")
_declare("row_key", 1, "random state of query i: hash of the seed and b, h, i", kind="random", result="i")
_declare("column_key", 0, "random state of key j: hash of j", kind="random", result="i")
_declare(
    "pair_uniform",
    2,
    "a number in [0, 1) hashed from a row key and a column key",
    torch_words.pair_uniform,
    bound=bounds.constant(0.0, 1.0),
    cost=20,
)
