"""The rules of scores: what every rewrite of the score language turns into what, and where it is right.

`normal_form` applies them to bring a score to a sum of contractions, `fuse-normalizer` to write its exponential. What
the names stand for is told in `rules`; `docs/rules.md` shows this table. A new rule is an entry here: its proof and its
tests follow from it.
"""

from __future__ import annotations

from collections.abc import Iterator

from aatc.passes.rules import Condition, Rule, RuleTable
from aatc.passes.score_bounds import is_nonnegative, static_bound


def nonnegative(name: str) -> Condition:
    return Condition(
        f"the form of {name} shows that it is not below 0", lambda b: is_nonnegative(b[name]), (f"{name} >= 0",)
    )


_ROOTS = Condition(
    "u and v are no pair expressions, and their forms show that no entry is below 0",
    lambda b: all(not b[n].is_pair and is_nonnegative(b[n]) for n in "uv"),
    ("u >= 0", "v >= 0"),
)
_SCALED_PAIR = Condition("x and u together depend on the pair", lambda b: {"i", "j"} <= b["x"].axes | b["u"].axes)
_PAIR = Condition("u depends on the pair", lambda b: b["u"].is_pair)
_TURNED_PAIR = Condition(
    "u, turned, depends on the pair",
    lambda b: {"i", "j"} <= b["u"].axes.union(*(b[n].axes for n in ("mq", "tq") if n in b)),
)
_KEY = Condition("k does depend on the key", lambda b: "j" in b["k"].axes)
_BOUNDED = Condition("x has a static upper bound", lambda b: static_bound(b["x"])[1] < float("inf"))

#: Linear maps of vectors: the map, its adjoint, and whether it keeps inner products.
_MAPS = (
    ("matvec({m}, {v})", "tmatvec({m}, {v})", False),
    ("tmatvec({m}, {v})", "matvec({m}, {v})", False),
    ("turn({m}, {v})", "unturn({m}, {v})", True),
    ("unturn({m}, {v})", "turn({m}, {v})", True),
    ("rotate[half]({v}, {t})", "rotate[half]({v}, -{t})", True),
    ("rotate[pairs]({v}, {t})", "rotate[pairs]({v}, -{t})", True),
    ("eta({v})", "eta({v})", False),
)
#: Their words, and which argument is the vector.
LINEAR = {"matvec": 1, "tmatvec": 1, "turn": 1, "unturn": 1, "rotate": 0, "eta": 0}


def _of_maps() -> Iterator[Rule]:
    for text, adjoint, keeps in _MAPS:

        def of(vector: str, matrix: str = "m", angle: str = "t", text: str = text) -> str:
            return text.format(v=vector, m=matrix, t=angle)

        if keeps:
            yield Rule("isometry", f"dot({of('u')}, {of('v')})", "dot(u, v)")
            back, forth = adjoint.format(v="q", m="mq", t="tq"), of("u", "mq", "tq")
            for before, after in (
                (f"q - {forth}", f"{back} - u"),
                (f"q + {forth}", f"{back} + u"),
                (f"{forth} - q", f"u - {back}"),
                (f"{forth} + q", f"u + {back}"),
            ):
                yield Rule("isometry", f"dot({before}, {before})", f"dot({after}, {after})", _TURNED_PAIR)
        turned = adjoint.format(v="q", m="mq", t="tq")
        yield Rule("adjoint", f"dot({of('k', 'mq', 'tq')}, q)", f"dot(k, {turned})")
        yield Rule("linear", of("u + v"), f"{of('u')} + {of('v')}", counted=False)
        yield Rule("linear", of("u - v"), f"{of('u')} - {of('v')}", counted=False)
        yield Rule("linear", of("-u"), f"-{of('u')}", counted=False)
        yield Rule("linear", of("x * u"), f"x * {of('u')}", counted=False)
        yield Rule("linear", of("u * x"), f"{of('u')} * x", counted=False)
        yield Rule("linear", of("u / x"), f"{of('u')} / x", domain=("x != 0",), counted=False)


SCORE_RULES = RuleTable(
    [
        # --- contractions
        Rule("square", "sum(square(u))", "dot(u, u)"),
        Rule("square", "sum(u * v)", "dot(u, v)"),
        Rule("root-of-product", "sum(sqrt(u * v))", "dot(sqrt(u), sqrt(v))", _ROOTS),
        Rule("pull-scale", "dot(-u, v)", "-dot(u, v)", _PAIR),
        Rule("pull-scale", "dot(x * u, v)", "dot(u, v) * x", _SCALED_PAIR),
        Rule("pull-scale", "dot(u * x, v)", "dot(u, v) * x", _SCALED_PAIR),
        Rule("pull-scale", "dot(u / x, v)", "dot(u, v) / x", _SCALED_PAIR, domain=("x != 0",)),
        Rule("pull-scale", "sum(-u)", "-sum(u)", _PAIR),
        Rule("pull-scale", "sum(x * u)", "sum(u) * x", _SCALED_PAIR),
        Rule("pull-scale", "sum(u * x)", "sum(u) * x", _SCALED_PAIR),
        Rule("pull-scale", "sum(u / x)", "sum(u) / x", _SCALED_PAIR, domain=("x != 0",)),
        Rule("expand", "dot(u + v, w)", "dot(u, w) + dot(v, w)"),
        Rule("expand", "dot(u - v, w)", "dot(u, w) - dot(v, w)"),
        Rule("centre", "q - k", "(q - centre(k)) - (k - centre(k))", _KEY),
        Rule("centre", "k - q", "(k - centre(k)) - (q - centre(k))", _KEY),
        Rule("centre", "r - k", "(r - centre(k)) - (k - centre(k))", _KEY),
        Rule("centre", "k - r", "(k - centre(k)) - (r - centre(k))", _KEY),
        *_of_maps(),
        Rule("linear", "w * (u + v)", "w * u + w * v", counted=False),
        Rule("linear", "w * (u - v)", "w * u - w * v", counted=False),
        # --- terms
        Rule("absorb-scale", "r * dot(q, k)", "dot(r * q, k)"),
        Rule("absorb-scale", "s * dot(q, k)", "dot(q, s * k)"),
        Rule("reciprocal", "x / r", "x * (1.0 / r)", domain=("r != 0",), counted=False),
        Rule("reciprocal", "x / s", "x * (1.0 / s)", domain=("s != 0",), counted=False),
        Rule("reciprocal", "x / (r * s)", "x * (1.0 / r) * (1.0 / s)", domain=("r != 0", "s != 0"), counted=False),
        Rule("factor-to-query", "dot(q, p * k)", "dot(p * q, k)", counted=False),
        Rule("sign-to-query", "dot(q, -k)", "dot(-q, k)", counted=False),
        Rule("merge", "dot(q, k) + dot(p, k)", "dot(q + p, k)"),
        Rule("absorb-separable", "dot(q, k) + r * s", "dot(append(q, r), append(k, s))"),
        Rule("collect", "r * x + r2 * x", "(r + r2) * x", counted=False),
        Rule("split", "r - s", "r + -s", given="split"),
        Rule("split", "s - r", "s + -r", given="split"),
        Rule("drop-row-constant", "x + r", "x", given="invariant", relation="row-constant"),
        # --- functions
        Rule("square-of-root", "square(sqrt(x))", "x", nonnegative("x")),
        Rule("arc", "sqrt(x) * arcsinc(r * x)", "arcroot(x, r)"),
        Rule("arc", "sqrt(x) * arcsinc(-(r * x))", "arcroot(x, -r)"),
        Rule("arc", "sqrt(x) * arcsinc(x)", "arcroot(x, 1.0)"),
        Rule("arc", "sqrt(x) * arcsinc(-x)", "arcroot(x, -1.0)"),
        Rule("arc", "x * square(arcsinc(r * x))", "arcsquare(x, r)"),
        Rule("arc", "x * square(arcsinc(-(r * x)))", "arcsquare(x, -r)"),
        Rule("arc", "x * square(arcsinc(x))", "arcsquare(x, 1.0)"),
        Rule("arc", "x * square(arcsinc(-x))", "arcsquare(x, -1.0)"),
        Rule("causal-distance", "abs(i - j)", "i - j", given="causal", domain=("j <= i",)),
        Rule("causal-distance", "abs(j - i)", "i - j", given="causal", domain=("j <= i",)),
        # higher powers would underflow at distances that occur, and the backward has no guard
        Rule("exp-acosh", "exp(-acosh(x))", "expacosh(x)"),
        Rule("exp-acosh", "exp(-1.0 * acosh(x))", "expacosh(x)"),
        Rule("exp-acosh", "exp(-0.5 * acosh(x))", "sqrt(expacosh(x))"),
        Rule("exp-acosh", "exp(-2.0 * acosh(x))", "square(expacosh(x))"),
        Rule("bounded-score", "x - r", "x", _BOUNDED, given="invariant", relation="row-constant"),
    ]
)
