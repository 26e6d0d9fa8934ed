"""Captured numbers in scores: biases and masks made of numbers, which may be of any size.

An additive mask of -1e9 leaves of ordinary scores nothing in single precision: a row whose keys all carry it gets the
mean of their values. The versions in double precision stand in for that formula and must say the same.
"""

from __future__ import annotations

from aatc.ir.score.expr import Expr, add, call, const, mul, sub, total
from aatc.passes.score_bounds import new_nodes

#: From this size on a number of single precision is added to nothing below 1/2.
LARGE = 2.0**24
#: What two precisions differ by: 53 bits and 24.
_MORE_BITS = 2.0**29
_LARGEST = 3.0e38


def is_captured(e: Expr, known: dict[Expr, bool | None]) -> bool:
    """Whether a number is made of captured numbers per query, key or pair, of no vectors and of positions only where
    they choose. ``known`` keeps what was found: None for what a captured number cannot have within."""
    for x in new_nodes(e, known):
        parts = [known[a] for a in (x.args[1:] if x.fn == "where" else x.args)]
        if x.fn in ("lookup", "where") and not x.rank:
            known[x] = None if x.fn == "where" and None in parts else x.is_pair or any(parts)
        elif x.rank or x.fn == "index" or None in parts:
            known[x] = None
        else:
            known[x] = any(parts) or (x.fn == "param" and bool(x.axes & {"i", "j"}))
    return bool(known[e])


def absorbed(score: Expr) -> Expr:
    """``s + b → ((s + K) - K) + b``, in double precision, for what is captured, b, in the sum that ``score`` is. K is
    0 for a b of ordinary size, and else so large that s keeps the digits that it has in single precision beside b."""
    own: list[Expr] = []
    given: list[Expr] = []
    known: dict[Expr, bool | None] = {}
    stack = [(1.0, score)]
    while stack:
        sign, e = stack.pop()
        if is_captured(e, known):
            given.append(mul(const(sign), e))
        elif e.fn in ("add", "sub"):
            stack += [(-sign if e.fn == "sub" else sign, e.args[1]), (sign, e.args[0])]
        else:
            own.append(mul(const(sign), e))
    if not given or not any(e.is_pair for e in own):
        return score
    b = total(given)
    beyond = sub(call("minimum", call("abs", b), const(_LARGEST)), const(LARGE))
    # by `floor`, which has no slope: K is a number to be rounded by
    k = mul(const(_MORE_BITS), call("floor", call("relu", beyond)))
    return add(sub(add(total(own), k), k), b)
