"""Attention as a function of queries, keys and values with any leading axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import aatc
from aatc import masks
from aatc.errors import CaptureError, ShapeError
from aatc.masks import Mask
from aatc.metrics import DotProduct


def _leading(query: Tensor, key: Tensor, value: Tensor) -> torch.Size:
    shapes = [tuple(t.shape) for t in (query, key, value)]
    if min(map(len, shapes)) < 2:
        raise ShapeError(f"query, key and value have shapes {shapes}", hint="they are (..., length, features)")
    try:
        shape: torch.Size = torch.broadcast_shapes(*(s[:-2] for s in shapes))
        return shape
    except RuntimeError:
        raise ShapeError(
            f"leading axes of query, key and value do not broadcast: {shapes}",
            hint="they are (..., length, features), with equal leading axes or axes of size 1",
        ) from None


def _as_four(x: Tensor, lead: torch.Size) -> Tensor:
    """(..., n, d) as (batch, heads, n, d): the last leading axis counts as heads where there are two or more."""
    if x.shape[:-2] != lead:
        x = x.expand(*lead, *x.shape[-2:])
    if len(lead) < 2:
        return x.reshape(*(lead or (1,)), 1, *x.shape[-2:])
    return x if len(lead) == 2 else x.flatten(0, -4)


def _admitting(mask: Mask | Tensor | None, causal: bool, lead: torch.Size) -> Mask | None:
    if isinstance(mask, Tensor):
        if mask.dtype != torch.bool:
            raise CaptureError(
                f"a mask of {mask.dtype}",
                hint="masks hold truth values, True where a query may attend; numbers are a bias= of aatc.attend",
            )
        if mask.dim() > len(lead) + 2:
            raise CaptureError(f"a mask of shape {tuple(mask.shape)} has more axes than {tuple(lead)} + (n, m)")
        wide = mask.dim() > 2 and len(lead) != 2
        mask = masks.dense(_as_four(mask, lead) if wide else mask)
    elif mask is not None and not isinstance(mask, Mask):
        raise CaptureError(f"mask is a {type(mask).__name__}", hint="give a bool tensor or an object of aatc.masks")
    if not causal:
        return mask
    return masks.causal() if mask is None else masks.causal() & mask


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0,
    seed: int | Tensor | None = None,
    return_weights: bool = False,
) -> Any:
    """softmax(q kᵀ/√d_k) v (Vaswani et al. 2017), for query (..., n, d_k), key (..., m, d_k), value (..., m, d_v).

    Scores are scaled once, by 1/√d_k, so that independent unit features give them variance 1. ``mask`` is a bool tensor
    that broadcasts to (..., n, m), **True where a query may attend**, or an object of `aatc.masks`; ``causal``
    admits keys j ≤ i besides. A query that may attend to nothing gives zeros. ``dropout`` zeroes weights, divided by
    1 - dropout otherwise, as ``seed`` says (see `aatc.attend`).

    Returns the output (..., n, d_v) and, with ``return_weights``, the weights (..., n, m) after dropout. Weights cost
    n·m memory: they are a second attention, over one-hot values. The seed of this function always returned them,
    took a mask whose ones were *shut* (its module's ones were open) and shut them by adding -1e9, which half
    precision cannot hold and which lets a fully masked query average everything.

    Raises ShapeError, CaptureError.
    """
    lead = _leading(query, key, value)
    q, k, v = (_as_four(t, lead) for t in (query, key, value))
    if dropout and seed is None and return_weights:  # both attentions must drop the same pairs
        seed = torch.randint(0, 2**62, (), device=q.device)
    admitted = _admitting(mask, causal, lead)
    output = aatc.attend(q, k, v, metric=DotProduct(), mask=admitted, dropout=dropout, seed=seed)
    output = output.reshape(*lead, *output.shape[-2:])
    if not return_weights:
        return output
    one_hot = torch.eye(k.shape[2], dtype=output.dtype, device=k.device).expand(*k.shape[:3], -1)
    weights = aatc.attend(q, k, one_hot, metric=DotProduct(), mask=admitted, dropout=dropout, seed=seed)
    return output, weights.reshape(*lead, *weights.shape[-2:])
