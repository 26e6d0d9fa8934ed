"""What an expression of the score language is, from its word and its arguments: rank and element type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aatc.ir.errors import ScoreError
from aatc.ir.score.functions import FUNCTIONS

if TYPE_CHECKING:
    from aatc.ir.score.expr import Expr

INDEX_AXES = "bhij"

#: Words whose value is an integer where all arguments are.
_WHOLE = frozenset(
    ("add", "sub", "mul", "neg", "abs", "maximum", "minimum", "floor", "sign", "square", "floordiv", "remainder")
)


def infer(e: Expr) -> tuple[int, str]:
    """Rank and element type of a node whose fn, args and attrs are set; ScoreError when ill-typed."""
    if e.fn == "const":
        v = e.attrs[0]
        return 0, "b" if isinstance(v, bool) else "i" if isinstance(v, int) else "f"
    if e.fn == "index":
        return 0, "i"
    if e.fn == "param":
        _name, axes, dtype = e.attrs
        features = axes.lstrip(INDEX_AXES)
        if "t" in features or "u" in features:
            return 3, dtype  # a table: only `lookup` may read it
        return len(features), dtype
    f = FUNCTIONS[e.fn]
    ranks = [a.rank for a in e.args]
    dtypes = {a.dtype for a in e.args}
    if f.kind == "lookup":
        if ranks[0] != 3 or any(r != 0 for r in ranks[1:]):
            raise ScoreError(f"lookup needs a table (axes with t) and a number, got ranks {ranks}")
        return 0, e.args[0].dtype
    if 3 in ranks:
        raise ScoreError(f"a table can only be read with lookup, not by {e.fn}")
    if f.kind == "random":
        return 0, "i"
    if f.kind == "reduce":
        if any(r != 1 for r in ranks):
            raise ScoreError(f"{e.fn} needs feature vectors, got ranks {ranks}")
        return 0, "f"
    if f.kind == "vector":
        wanted = {
            "matvec": [2, 1],
            "tmatvec": [2, 1],
            "turn": [2, 1],
            "unturn": [2, 1],
            "embed": [0, 1],
            "append": [1, 0],
        }.get(e.fn, [1] * f.arity)
        if ranks != wanted:
            raise ScoreError(f"{e.fn} takes arguments of rank {wanted}, got {ranks}")
        return (2 if e.fn == "outer" else 1), "f"
    if max(ranks) == 2 and min(ranks) != 2 and 1 in ranks:
        raise ScoreError(f"{e.fn} of a matrix and a vector: use matvec")
    if e.fn in ("and", "or", "not") and dtypes != {"b"}:
        raise ScoreError(f"{e.fn} needs truth values")
    if e.fn == "where" and e.args[0].dtype != "b":
        raise ScoreError("the first argument of where must be a truth value")
    if f.result == "b":
        return max(ranks), "b"
    if e.fn in ("floordiv", "remainder") and not (e.args[1].is_const and e.args[1].value):
        return max(ranks), "f"  # a divisor that may be 0 needs infinities and NaN
    if e.fn in _WHOLE:
        return max(ranks), "f" if "f" in dtypes else "i"
    if e.fn == "where":
        return max(ranks), "f" if "f" in {a.dtype for a in e.args[1:]} else e.args[1].dtype
    return max(ranks), "f"
