"""What a rewritten score loses to rounding, and what must hold so that it loses no more than the formula it came from.

Two things cost digits. A difference that was multiplied out is a small number made of large ones: its error is that of
the large ones. And acosh, acos, sqrt and their like have infinite slope where tokens coincide: an error of ε in their
argument becomes one of sqrt(ε), and more in the gradient. How large the numbers are and how near tokens come is known
at run time only, so both are conditions that the tile program checks (`tile.require`). Where one fails, the same
attention runs in double precision; where one fails in that precision, too, without differences multiplied out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aatc.ir.errors import ScoreError
from aatc.ir.score.derivative import gradients
from aatc.ir.score.expr import ONE, Expr, call, const, div, mul, neg, postorder
from aatc.passes.normal_form import Normaliser
from aatc.passes.score_bounds import static_bound
from aatc.passes.score_forms import ENDED, SINGULAR, above_zero, uncentred


@dataclass(frozen=True)
class Digits:
    """What a precision can carry, and what results of one need.

    unit: half the distance from 1 to the next number, the relative error of one rounding. spread: error of a score that
    leaves results their digits, by the bound ε max|a| max|b|, which is seldom reached. tolerance: error of a singular
    word, and relative error of its argument's distance from where it is singular, that do so.
    """

    unit: float
    spread: float
    tolerance: float


_SINGLE = Digits(2.0**-24, 1e-5, 5e-6)
_DOUBLE_FOR_SINGLE = Digits(2.0**-53, 1e-6, 1e-6)
_DOUBLE = Digits(2.0**-53, 1e-9, 1e-8)


def digits(computed: str, results: str) -> Digits:
    """Those of scores computed in ``computed`` for results whose own precision is ``results``: f32 or f64."""
    if computed == "f32":
        return _SINGLE
    return _DOUBLE if results == "f64" else _DOUBLE_FOR_SINGLE


#: Those that lose digits even where nothing was multiplied out: contractions near ±1 are their ordinary arguments.
_ALWAYS = ("acosh", "expacosh", "acos")


@dataclass(frozen=True)
class Check:
    """A condition on the linear form ``argument`` of a score.

    kind "spread": the rounding error of its contractions, times ``gain``, is small. kind "range": its contractions are
    of numbers whose products are no infinite ones. kind a word of `SINGULAR`: it stays
    away from where that word is singular. ``gain`` bounds the slope of the score in the form or in the word, and is no
    pair expression. ``expanded``: differences were multiplied out in the form.

    kind "ended": ``argument`` is a number r that is no pair expression times a form x, and stays away from 1, where the
    slope of one of `ENDED` is infinite. ``gain``: the square of that slope, times 1 - r*x, is at most its square.
    """

    kind: str
    argument: Expr
    gain: Expr
    expanded: bool = True


def grouped(flat: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    """Entries of a flat list, ``n`` at a time."""
    return list(zip(*(flat[k::n] for k in range(n)), strict=True))


def checks_of(body: Expr, rules: Normaliser) -> tuple[list[Check], bool]:
    """The conditions under which a score in normal form, assembled by ``rules``, keeps its digits, and whether they are
    enough in single precision: where no slope is known, they keep the relative error of words and forms small."""
    parents: dict[Expr, list[Expr]] = {}
    order = postorder(body)
    for e in order:
        for a in dict.fromkeys(e.args):
            parents.setdefault(a, []).append(e)
    found: list[Check] = []
    enough = True
    whole = rules.forms.get(body)
    if whole is not None and whole.expanded:
        found.append(Check("spread", body, ONE))
    for e in order:
        form = rules.forms.get(e)
        if form is not None and form.contractions and form.scaled and not form.expanded:
            found.append(Check("range", e, ONE, False))
        if e is body or form is None or not form.contractions:
            continue
        for parent in parents[e]:
            singular = parent.fn in SINGULAR and parent.fn != "div" and (form.expanded or parent.fn in _ALWAYS)
            ended = parent.fn in ENDED and form.expanded
            if not singular and not form.expanded:
                continue
            if singular or ended:
                gain = _word_gain(body, parent, parents, rules)
            else:
                gain = _slope(body, e, rules)
            if gain is None or ((singular or ended) and form.others):
                enough = False
            gain = ONE if gain is None else gain
            found.append(Check(parent.fn if singular else "spread", e, gain, form.expanded))
            if parent.fn == "arcsquare" and any(uncentred(v) is not v for xy in form.contractions for v in xy):
                found.append(Check("arcroot", e, ONE, True))  # such squares have no digits beyond those of the vectors
            if ended and not (parent.args[1].is_const and parent.args[1].value <= 0):
                found.append(_ended(parent, e, gain))
    return list(dict.fromkeys(found)), enough


def _ended(word: Expr, form: Expr, gain: Expr) -> Check:
    """That r*x stays away from 1. From r*x = 1/2 on the slope in x of `arcroot` is at most sqrt(r/(1 - r*x)), as x is
    near 1/r, before that 1/sqrt(2 x), which the condition of its other end is for. That of `arcsquare` is at most
    (π/2)/sqrt(1 - r*x) where r > 0, else 1."""
    positive = above_zero(word.args[1])
    grown = call("sqrt", positive) if word.fn in SINGULAR else mul(const(math.pi / 2), call("sign", positive))
    return Check("ended", call("mul", word.args[1], form), mul(gain, grown), True)


def _word_gain(body: Expr, word: Expr, parents: dict[Expr, list[Expr]], rules: Normaliser) -> Expr | None:
    """A bound of the score's slope in a singular word. One that is squared, d(x)², counts twice its coefficient:
    the slope is 2 d d', and d d' is bounded."""
    users = parents.get(word, [])
    if len(users) == 1 and users[0].fn == "square":
        inner = _slope(body, users[0], rules)
        return None if inner is None else mul(const(2.0), inner)
    return _slope(body, word, rules)


def _slope(body: Expr, e: Expr, rules: Normaliser) -> Expr | None:
    """A bound of |d body / d e| that is no pair expression, or None."""
    if body is e:
        return ONE
    try:
        found = gradients([(body, ONE)], [e]).get(e)
    except ScoreError:
        return None
    if found is None or found.rank:
        return None
    if found.is_const:
        return const(abs(float(found.value)))
    if not found.is_pair:
        return call("abs", found)
    factors, pair = _factors(found)
    known = {x: (0.0, math.inf) for x in rules.nonnegative}
    largest = max(map(abs, static_bound(pair, known)))
    return mul(const(largest), call("abs", factors)) if math.isfinite(largest) else None


def _factors(e: Expr) -> tuple[Expr, Expr]:
    """(f, p) with e = f * p: what multiplies or divides it, as far as that is together no pair expression, and the
    rest."""
    if not e.is_pair:
        return e, ONE
    if e.fn == "neg":
        f, p = _factors(e.args[0])
        return f, neg(p)
    if e.fn == "mul":
        (f, p), (g, r) = map(_factors, e.args)
        both = mul(f, g)
        return (f, mul(p, mul(g, r))) if both.is_pair else (both, mul(p, r))
    if e.fn == "div" and not e.args[1].is_pair:
        f, p = _factors(e.args[0])
        both = div(f, e.args[1])
        return (f, div(p, e.args[1])) if both.is_pair else (both, p)
    return ONE, e


def carry_checks(body: Expr, rules: Normaliser) -> list[Check]:
    """The conditions under which a carried value keeps its digits: a denominator that is a contraction and nearly
    vanishes, as 1 + <q, k> does at antipodes, makes a small vector the difference of two large ones."""
    found: list[Check] = []
    for e in postorder(body):
        if e.fn != "div" or e.rank or not e.args[1].is_pair:
            continue
        d = e.args[1]
        if d.fn in ("maximum", "minimum"):  # a floor does not move what is above it
            d = next((a for a in d.args if a.is_pair), d)
        form = rules.forms.get(d)
        if form is not None and form.contractions and not form.others:
            found.append(Check("div", d, ONE))
    return list(dict.fromkeys(found))
