"""What a metric is, and one with a temperature."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from aatc.ir.score.expr import Expr
from aatc.parts import Capture, Key, Part, Sizes, scalar_captures

Number = float | torch.Tensor


class Metric(Part):
    """A score. ``root_scale`` says whether the default scale is 1/sqrt(D) (else 1)."""

    root_scale: bool = False

    def prepare(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-token maps that are done in torch before the attention. Key heads may become as many as query heads."""
        return q, k

    @classmethod
    def score(cls, key: Key, q: Expr, k: Expr, captured: Iterator[Expr]) -> Expr:
        """The score of one pair, before ``scale``."""
        raise NotImplementedError


class Distance(Metric):
    """A metric with a temperature ``beta``."""

    beta: Number

    def captures(self, sizes: Sizes) -> list[Capture]:
        return scalar_captures("beta", self.beta, sizes)
