"""Keeps NaN and infinity where they belong: a key that a query may not see must not spoil that query's row.

A masked weight is 0, but 0 times NaN is NaN. Where a mask is present and a key, a value or a captured number per key
is not finite, the attention runs on tensors in which such entries are zero, and the rows that do see one are made NaN
afterwards. A captured -inf stays: it is an additive mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from aatc.ir.score.evaluate import evaluate, share_heads
from aatc.ir.score.program import Program
from aatc.ir.tile_evaluate import bind

_ROWS = 256
#: Numbers that one thread adds up.
_ALONE = 1 << 18


def spoiled_rows(
    mask: Program | None, names: tuple[str, ...], axes: Mapping[str, str], tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Tensors to compute with, and the rows (B,H,N) to make NaN afterwards, or None when all is finite.

    names: those of q, k, v first. axes: those of captures, by name. Only looks closer when a sum is not finite.
    """
    if mask is None or tensors[names[1]].shape[2] == 0:
        return dict(tensors), None
    suspects = [names[n] for n in checked(names, axes) if not sums_up(tensors[names[n]])]
    if not suspects:
        return dict(tensors), None
    q, k = tensors[names[0]], tensors[names[1]]
    sizes = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    clean = dict(tensors)
    bad = torch.zeros(1, 1, sizes[3], dtype=torch.bool)
    if set(names[1:3]) & set(suspects):
        of_keys = ~(torch.isfinite(k).all(-1) & torch.isfinite(tensors[names[2]]).all(-1))
        for n in names[1:3]:
            # entry by entry, so that the mean of the keys (`centre`) is that of the tensors as they are given
            clean[n] = tensors[n].masked_fill(~torch.isfinite(tensors[n]), 0.0)
        bad = bad | share_heads(of_keys, sizes[1])
    for n in set(suspects) - set(names[1:3]):
        own = torch.isnan(tensors[n]) | (tensors[n] == float("inf"))
        clean[n] = tensors[n].masked_fill(own, 0.0)
        bad = bad | share_heads(_placed(own, axes[n]), sizes[1])
    if not bool(bad.any()):
        return dict(tensors), None
    return clean, _seen(mask, tensors, bad, sizes)


def checked(names: tuple[str, ...], axes: Mapping[str, str]) -> tuple[int, ...]:
    """Positions of the operands that a row must not see unless they are finite: keys, values, captures per key."""
    return (1, 2, *(n for n in range(3, len(names)) if _per_key(axes.get(names[n], ""))))


def sums_up(t: torch.Tensor) -> bool:
    """Whether the sum of all entries is finite; that of integers is. torch would call all threads for a tensor of some
    thousand numbers, and on a busy machine wait for them longer than a small attention takes."""
    if not t.is_floating_point():
        return True
    if t.numel() > _ALONE or t.dtype not in (torch.float32, torch.float64):
        return bool(torch.isfinite(t.detach().sum()))
    with np.errstate(all="ignore"):
        return math.isfinite(t.numpy(force=True).sum())


def _per_key(axes: str) -> bool:
    return "j" in axes and "i" not in axes and not set(axes) & set("tu")


def _placed(bad: torch.Tensor, axes: str) -> torch.Tensor:
    """Entries of a capture as (b, h, j): bad where one of its features is."""
    lead = [c for c in axes if c in "bhj"]
    if bad.dim() > len(lead):
        bad = bad.flatten(len(lead)).any(-1)
    return bad.reshape([bad.shape[lead.index(c)] if c in lead else 1 for c in "bhj"])


def _seen(mask: Program, tensors: Mapping[str, torch.Tensor], bad: torch.Tensor, sizes: Any) -> torch.Tensor:
    """Which rows see a bad key, some rows at a time."""
    b, h, n, m = sizes
    env = bind(mask, [tensors[name] for name in mask.names], sizes)
    out = []
    for i in range(0, n, _ROWS):
        rows = min(_ROWS, n - i)
        part = dict(env)
        for p in mask.params:
            axes = p.attrs[1]
            if "i" in axes and part[p.name].shape[axes.index("i")] > 1:
                part[p.name] = part[p.name].narrow(axes.index("i"), i, rows)
        keep = evaluate(mask.body, part, (b, h, rows, m), dtype=torch.float64, starts=(0, 0, i, 0))[..., 0]
        out.append((keep & bad.unsqueeze(2)).any(-1).expand(b, h, rows))
    return torch.cat(out, 2) if out else torch.zeros(b, h, n, dtype=torch.bool)
