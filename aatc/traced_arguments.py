"""What users' functions hand to the words of the score language: as expressions, or refused with what to write."""

from __future__ import annotations

from typing import Any

from aatc.ir.errors import ScoreError
from aatc.ir.score.expr import ONE, ZERO, Expr, call, const
from aatc.ir.score.functions import FUNCTIONS


def expression(x: Any) -> Expr:
    if isinstance(x, Expr):
        return x
    if isinstance(x, (bool, int, float)):
        return const(x)
    raise ScoreError(f"{x!r} cannot stand in a score")


def number(x: Any, beside: Any = None) -> Expr:
    """``x`` as a number: a truth value beside a number counts as 1 or 0, as in torch."""
    e = expression(x)
    if e.dtype != "b":
        return e
    if beside is not None and expression(beside).dtype == "b":
        raise ScoreError("arithmetic of two truth values", hint="combine them with & | ~, or make numbers: x.float()")
    whole = beside is not None and expression(beside).dtype == "i"
    return call("where", e, *((const(1), const(0)) if whole else (ONE, ZERO)))


def two_numbers(x: Any, y: Any) -> tuple[Expr, Expr]:
    return number(x, y), number(y, x)


def vector(x: Any, what: str) -> Expr:
    e = expression(x)
    if e.rank != 1:
        kind = {0: "a number per pair", 2: "a matrix"}.get(e.rank, "a table")
        raise ScoreError(f"{what} of {kind}", hint="it runs over the features of a vector")
    return e


def over_features(dim: Any, what: str) -> None:
    """The one axis a function sees is that of the features."""
    if dim not in (None, -1, (-1,)):
        raise ScoreError(f"{what} over dim {dim}: only the feature axis (-1) can be reduced")


def refuse(**given: Any) -> None:
    for name, value in given.items():
        if value is not None and value is not False:
            raise ScoreError(f"{name}={value!r} has no meaning in a score", hint="leave the argument out")


def unknown(word: str) -> ScoreError:
    """The error for a word that the language lacks, with what to write instead."""
    for names, hint in _INSTEAD.items():
        if word in names.split():
            return ScoreError(f"{word} is not in the score language", hint=hint)
    return ScoreError(f"torch.{word} is not in the score language", hint=f"words: {', '.join(sorted(FUNCTIONS))}")


_INSTEAD = {
    "softmax log_softmax softmin logsumexp layer_norm rms_norm cumsum sort topk argsort argmax argmin roll flip": (
        "apply it to q and k before the attention: a metric sees one pair of vectors and nothing beside them"
    ),
    "std var median quantile prod": "write it by sum and mean: ((x - x.mean()) ** 2).mean()",
    "shape size numel ndim dim": "x.mean() divides by the width, and the function may read numbers from outside",
    "round round_ trunc fix frac": "torch.floor(x + 0.5) rounds, torch.sign(x) * torch.floor(x.abs()) cuts",
    "fmod": "torch.remainder(x, y), or %, takes the sign of y",
    "item tolist numpy cpu cuda detach clone requires_grad_ backward grad": (
        "a score is a formula, not a tensor: what must not learn is captured as tensor.detach()"
    ),
    "T mT t transpose permute reshape view flatten expand repeat": (
        "a metric sees one pair of vectors, without batch or length: for a matrix m, x @ m is its transpose times x"
    ),
    "sinh cosh expm1 tan asin atan atan2 erf gelu asinh atanh": "write it by exp, log, sin, cos, tanh, acos or sigmoid",
    "equal allclose isclose": "== compares element by element",
    "half bfloat16": "scores are computed in float32 or float64",
    "lshift rshift": "use * 2**n and // 2**n",
}
