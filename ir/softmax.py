"""Softmax as the reference means it: what rows without open keys weigh, and rows of very large scores."""

from __future__ import annotations

import torch


def softmax(s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of scores along the last axis, and their log-sum-exp. Rows of -inf alone weigh 0.

    exp(s - lse) would not do: where scores are large, the log-sum-exp has lost the sum in its rounding."""
    lse = torch.logsumexp(s, -1)
    if not s.shape[-1]:
        return s, lse
    closed = (s == float("-inf")).all(-1, keepdim=True)
    return torch.softmax(s.masked_fill(closed, 0.0), -1).masked_fill(closed, 0.0), lse
