"""Sigmoid: every weight by itself, 1 / (1 + exp(-s)); nothing of a row enters it."""

from __future__ import annotations

from aatc.ir.normalizers.base import SCORE, WEIGHT, Normalizer
from aatc.ir.score.expr import ONE, Expr, add, call, mul, sub


class Sigmoid(Normalizer):
    """o = Σ sigmoid(s) v, lse = log Σ sigmoid(s)."""

    name = "sigmoid"
    label = "sigmoid weights"

    def weight(self, unit: float) -> Expr:
        return call("sigmoid", SCORE)

    def cotangent(self, unit: float, through: Expr, row: Expr) -> Expr:
        return mul(mul(WEIGHT, sub(ONE, WEIGHT)), add(through, row))
