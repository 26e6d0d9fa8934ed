"""Keeps NaN and infinity where they belong: a key that a query may not see must not spoil that query's row.

A masked weight is 0, but 0 times NaN is NaN. Where a mask is present and a key or value is not finite, the
attention runs on tensors with such keys set to zero, and the rows that do see one are made NaN afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from aatc.ir.score.evaluate import evaluate
from aatc.ir.score.program import Program
from aatc.ir.tile_evaluate import bind

_ROWS = 256


def spoiled_rows(
    mask: Program | None, names: tuple[str, ...], tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Tensors to compute with, and the rows (B,H,N) to make NaN afterwards, or None when all is finite.

    names: those of q, k, v first. Only looks closer when a sum over k and v is not finite.
    """
    q, k, v = (tensors[n] for n in names[:3])
    if mask is None or k.shape[2] == 0 or bool(torch.isfinite(k.detach().sum() + v.detach().sum())):
        return dict(tensors), None
    bad = ~(torch.isfinite(k).all(-1) & torch.isfinite(v).all(-1))
    if not bool(bad.any()):
        return dict(tensors), None
    clean = dict(tensors)
    for n in names[1:3]:
        clean[n] = tensors[n].masked_fill(bad.unsqueeze(-1), 0.0)
    sizes = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if bad.shape[1] != sizes[1]:
        bad = bad.repeat_interleave(sizes[1] // bad.shape[1], dim=1)
    return clean, _seen(mask, tensors, bad, sizes)


def _seen(mask: Program, tensors: Mapping[str, torch.Tensor], bad: torch.Tensor, sizes) -> torch.Tensor:
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
    return torch.cat(out, 2)
