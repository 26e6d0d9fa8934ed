"""Softmax: weights exp(s - m) over their sum, m the largest score of the row."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from aatc.ir.normalizers.base import MASS, SCORE, WEIGHT, Normalizer, Statistic
from aatc.ir.score.expr import ONE, Expr, add, call, const, mul, neg, param

TOP = Statistic("m", "max", SCORE, title="top", follows="n_")


class Softmax(Normalizer):
    """o = Σ exp(s - m) v / Σ exp(s - m), lse = m + log Σ exp(s - m)."""

    name = "softmax"
    normalized = True
    exponential = True
    invariant = frozenset({"row"})
    of_scores = (TOP,)

    def weight(self, unit: float) -> Expr:
        return _exp(unit, call("sub", SCORE, TOP.next))

    def shrink(self, unit: float) -> Expr:
        return _exp(unit, call("sub", TOP.value, TOP.next))

    def finish(self, unit: float) -> tuple[Expr | None, Expr]:
        factor, _ = super().finish(unit)
        log = call("log2" if unit != 1 else "log", MASS.value)
        return factor, mul(const(1 / unit), call("add", TOP.value, log))

    def row_factor(self, unit: float, closed_form: bool = False) -> Expr:
        """``closed_form``: the weight is that of exp(s), which knows nothing of m."""
        closed, inverse = call("eq", MASS.saved, const(0.0)), call("reciprocal", MASS.saved)
        if closed_form:
            inverse = mul(_exp(unit, neg(TOP.saved)), inverse)
        return call("where", closed, const(0.0), inverse)

    def again(self, unit: float) -> Mapping[Statistic, Expr]:
        """A row without open keys gets m = inf: its weights are 0 whatever its scores are."""
        closed = call("eq", MASS.saved, const(0.0))
        return {TOP: call("where", closed, const(float("inf")), TOP.saved)}

    def cotangent(self, unit: float, through: Expr, row: Expr) -> Expr:
        return mul(WEIGHT, add(through, row))

    def from_lse(self, unit: float) -> tuple[Mapping[Statistic, Expr], Expr]:
        """`again` and `row_factor` over the log-sum-exp, ``log_sum__``, where that is all that is known of a row."""
        lse = param("log_sum__", "bhi")
        closed = call("eq", lse, const(float("-inf")))
        return {TOP: call("where", closed, const(float("inf")), mul(const(unit), lse))}, ONE

    # torch's own operators are faster than the declaration's, one after the other
    def reference(self, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return softmax(s)

    def reference_cotangent(
        self, s: torch.Tensor, grad_weight: torch.Tensor, grad_lse: torch.Tensor | None
    ) -> torch.Tensor:
        p, _ = softmax(s)
        found = p * (grad_weight - (p * grad_weight).sum(-1, keepdim=True))
        return found if grad_lse is None else found + p * grad_lse.to(s.dtype).unsqueeze(-1)


def _exp(unit: float, e: Expr) -> Expr:
    return call("exp2" if unit != 1 else "exp", e)


def softmax(s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of scores along the last axis, and their log-sum-exp. Rows of -inf alone weigh 0.

    exp(s - lse) would not do: where scores are large, the log-sum-exp has lost the sum in its rounding."""
    lse = torch.logsumexp(s, -1)
    if not s.shape[-1]:
        return s, lse
    closed = (s == float("-inf")).all(-1, keepdim=True)
    return torch.softmax(s.masked_fill(closed, 0.0), -1).masked_fill(closed, 0.0), lse
