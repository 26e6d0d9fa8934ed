"""Squared differences in a score, told apart from the rest of it, for its gradient.

The gradient of |q - k|² is a multiple of q - k. Where the square was multiplied out, it is the difference of a multiple
of q and one of k, off by ε|q| and ε|k|: as good as the score itself, unless pairs that nearly coincide outweigh all
others. A token that sees itself at distance 0 does so: what it sends to itself is 0, and its rounding is not, while the
weights of all other tokens may be thousandths. So the backward takes each square as a number of its own and sends the
gradients of near pairs through the difference, pair by pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aatc.ir.score.derivative import gradients
from aatc.ir.score.expr import ONE, Expr, param, params, postorder, substitute
from aatc.passes.normal_form import Normaliser
from aatc.passes.score_forms import SINGULAR, is_col, is_row, jumps
from aatc.passes.score_rules import LINEAR

#: A difference that squares are taken of.
DELTA = param("delta_", "bhid")


@dataclass(frozen=True)
class Apart:
    """``score``, in which squares stand apart from the rest, and of each square itself (multiplied out, with no
    difference multiplied out, as it is written)."""

    score: Expr
    squares: tuple[tuple[Expr, Expr, Expr], ...]


def apart(body: Expr, causal: bool) -> Apart | None:
    """A score with the squares of differences in it apart; None if it has none that was multiplied out, or none whose
    pairs are not watched anyway, as those in words of infinite slope are. It is for its derivatives alone: weights are
    those of the forward's score, as a bias of -1e9 is rounded with what it is added to."""
    names = _names(body)
    rules = Normaliser(causal=causal)
    squares = {e: param(next(names), "bhij") for e in _squares(body, rules)}
    if not squares:
        return None
    score = rules.number(substitute(body, squares))
    watched = {a for e in postorder(score) if e.fn in SINGULAR and e.fn != "div" for a in postorder(*e.args)}
    exact = Normaliser(causal=causal, whole=True)
    back: dict[Expr, Expr] = {}
    found = []
    for e, place in squares.items():
        plain, whole = rules.number(e), exact.number(e)
        back[place] = plain
        if place not in watched and plain is not whole:
            found.append((plain, whole, e))
    return Apart(substitute(score, back, smart=False), tuple(found)) if found else None


def _squares(body: Expr, rules: Normaliser) -> list[Expr]:
    """The outermost contractions of a score in which a difference is multiplied out. What a condition reads is left as
    it is written."""
    found: dict[Expr, None] = {}
    seen: set[Expr] = set()
    stack = [body]
    while stack:
        e = stack.pop()
        if e in seen or not e.is_pair or jumps(e):
            continue
        seen.add(e)
        if not e.rank and e.fn in ("dot", "sum"):
            if rules.terms(e).expanded:
                found[e] = None
        else:
            stack += e.args
    return list(found)


def slope(square: Expr) -> tuple[Expr, Expr, Expr] | None:
    """(x, y, g) of a quadratic form of one difference x_i - y_j: g, over `DELTA`, is the gradient in it, a linear map;
    None of anything else.

    As g is linear, Σ_j c_ij g(x_i - y_j) is g(Σ_j c_ij (x_i - y_j)): differences are added up before they are mapped.
    Maps of x and of y would each be rounded, and their difference would be all rounding where x and y nearly coincide.
    """
    found: dict[Expr, None] = {}
    seen: set[Expr] = set()
    stack = [square]
    while stack:
        e = stack.pop()
        if e in seen or not e.is_pair:
            continue
        seen.add(e)
        if e.fn == "sub" and e.rank == 1 and not any(a.is_pair or a.rank != 1 for a in e.args):
            found[e] = None
        elif e.fn not in ("dot", "sum", "mul", "neg", "square", "add", "sub", *LINEAR):
            return None
        else:
            stack += e.args
    if len(found) != 1:
        return None
    (difference,) = found
    x, y = difference.args
    if not (is_row(x) and is_col(y) and "i" in x.axes and "j" in y.axes):
        return None
    form = substitute(square, {difference: DELTA})
    if any(p.axes & {"i", "j"} for p in params(form) if p is not DELTA) or _degree(form) != 2:
        return None
    g = gradients([(form, ONE)], [DELTA]).get(DELTA)
    return None if g is None or _degree(g) != 1 else (x, y, g)


def _degree(e: Expr) -> int | None:
    """Of a form in `DELTA`; None where it is none."""
    done: dict[Expr, int | None] = {}
    for x in postorder(e):
        inner = [done[a] for a in x.args]
        if x is DELTA:
            done[x] = 1
        elif not any(n != 0 for n in inner):
            done[x] = 0
        elif None in inner:
            done[x] = None
        elif x.fn in ("dot", "mul"):
            done[x] = sum(n for n in inner if n is not None)
        elif x.fn == "square":
            done[x] = 2 * (inner[0] or 0)
        elif x.fn in ("sum", "neg") or (x.fn in ("add", "sub") and inner[0] == inner[1]):
            done[x] = inner[0]
        elif x.fn in LINEAR and not any(n for k, n in enumerate(inner) if k != LINEAR[x.fn]):
            done[x] = inner[LINEAR[x.fn]]
        else:
            done[x] = None
    return done[e]


def _names(body: Expr) -> Iterator[str]:
    """Names that no parameter of ``body`` has."""
    taken = {p.name for p in params(body)}
    n = 0
    while True:
        if (name := f"apart{n}_") not in taken:
            yield name
        n += 1
