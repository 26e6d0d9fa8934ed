"""What the form of an expression of a score tells of its values, without any bound: on what of the pair it depends,
where it is 0, what it is a multiple of."""

from __future__ import annotations

from collections.abc import Mapping

from aatc.ir.score.expr import ONE, ZERO, Expr, call, const, mul, neg, params, postorder, substitute
from aatc.ir.score.functions import FUNCTIONS
from aatc.passes.score_bounds import static_bound
from aatc.passes.score_rules import LINEAR

#: Words whose slope is infinite at an end of their argument's range (for "div", that of the denominator). Each end is
#: (sign, offset): sign * x + offset is the distance from it.
SINGULAR: dict[str, tuple[tuple[float, float], ...]] = {
    "acosh": ((1.0, -1.0),),
    "expacosh": ((1.0, -1.0),),
    "acos": ((-1.0, 1.0), (1.0, 1.0)),
    "asinsqrt": ((1.0, 0.0), (-1.0, 1.0)),
    "arcsinc": ((-1.0, 1.0),),
    "arcroot": ((1.0, 0.0),),
    "sqrt": ((1.0, 0.0),),
    "div": ((1.0, 0.0),),
}


#: Words of (x, r) whose slope in x is infinite where r*x is 1, too.
ENDED = ("arcroot", "arcsquare")
#: Words whose arguments keep their digits, or have conditions.
WATCHED = (*SINGULAR, *ENDED)


def above_zero(e: Expr) -> Expr:
    """max(e, 0), of which the largest magnitude is the largest of e above 0."""
    return const(max(float(e.value), 0.0)) if e.is_const else call("maximum", e, ZERO)


def uncentred(e: Expr) -> Expr:
    """``e`` with the mean that is subtracted from computed vectors left there: as large as the numbers were that these
    vectors were rounded with. Parameters are what they are, and their differences from a mean are nearly exact."""
    table: dict[Expr, Expr] = {}
    for x in postorder(e):
        for a, other in (x.args, x.args[::-1]) if x.fn == "sub" else ():
            if a.fn == "centre" and a.args[0].fn != "param":
                table[x] = other
    return substitute(e, table, smart=False) if table else e


def is_row(e: Expr) -> bool:
    """May depend on the query, not on the key."""
    return "j" not in e.axes


def is_col(e: Expr) -> bool:
    return "i" not in e.axes


def jumps(e: Expr) -> bool:
    """Whether the last digit of what ``e`` reads may decide its value: a condition, a floor, the position of a lookup.
    What it reads stays as it is written."""
    return e.dtype == "b" or (e.fn in FUNCTIONS and FUNCTIONS[e.fn].jumps)


def vanishes(e: Expr, known: Mapping[Expr, bool]) -> bool:
    """Whether ``e`` is written as what is 0, with a slope, where query and key are equal: a vector as a multiple of a
    difference, a number as a sum of contractions of one. Where two differences are multiplied there is no slope."""
    if not e.is_pair:
        return False
    if e.rank:
        if e.fn in LINEAR:
            return known[e.args[LINEAR[e.fn]]]
        return e.fn == "sub" or (e.fn in ("neg", "mul", "div") and sum(known[a] for a in e.args) == 1)
    if e.fn in ("neg", "add", "sub"):
        return all(known[a] for a in e.args)
    return e.fn in ("mul", "div", "dot", "sum") and sum(known[a] for a in e.args) == 1


def of_ordinary_size(factor: Expr) -> bool:
    """Whether what is multiplied by ``factor`` stays as good a number as it was, unless it was close to none."""
    return factor.is_const and (factor.value == 0 or 2.0**-20 <= abs(factor.value) <= 2.0**4)


def may_cancel(e: Expr, known: dict[Expr, bool]) -> bool:
    """Whether a sum or difference is one of query numbers and key numbers that are not known to have one sign: of two,
    or of such a sum and one number more, as in (q + k) - q."""
    chain: list[Expr] = []
    while e not in known:
        chain.append(e)
        pairs = [a for a in e.args if a.is_pair]
        if not pairs:
            x, y = e.args
            low, high = zip(static_bound(x), static_bound(y if e.fn == "add" else neg(y)), strict=True)
            known[e] = not (min(low) >= 0 or max(high) <= 0)
        elif len(pairs) == 1 and pairs[0].fn in ("add", "sub") and not pairs[0].rank:
            (e,) = pairs
        else:
            known[e] = False
    for x in chain:
        known[x] = known[e]
    return known[e]


def captured_factors(e: Expr) -> tuple[list[tuple[str, Expr]], Expr]:
    """(factors, f): captured numbers, the same for all tokens, that ``e`` is f times ("mul") or over ("div"), the
    outermost first; signs and constants between them are f's."""
    factors: list[tuple[str, Expr]] = []
    constant, inner = ONE, e
    while e.fn in ("neg", "mul", "div") and e.is_pair:
        if e.fn == "neg":
            constant, e = neg(constant), e.args[0]
            continue
        pair, factor = e.args if e.fn == "div" or e.args[0].is_pair else e.args[::-1]
        if factor.axes & {"i", "j"}:
            break
        how, e = e.fn, pair
        if not params(factor):
            constant = call(how, constant, factor)
            continue
        factors.append((how, factor))
        inner = mul(constant, e)
    return factors, inner


def split_product(e: Expr) -> list[Expr] | None:
    if not e.is_pair:
        return [e]
    if e.fn != "mul":
        return None
    parts = [split_product(a) for a in e.args]
    return None if None in parts else [f for p in parts for f in p]  # type: ignore[union-attr]
