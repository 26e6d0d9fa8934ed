"""Pairs that are computed one by one: gathered from tiles, put or added up where they belong."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import torch

from aatc.ir.tile_pairs import lost

#: Pairs that are gathered at a time: a megabyte or two of 64 channels.
_MOST = 1 << 12

#: Positions of pairs in a tile: of problems, rows and columns.
Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def lost_pairs(
    x: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    cotangent: torch.Tensor | None = None,
    *,
    inside: bool = False,
) -> Iterator[Pairs]:
    """Pairs whose number does not lie from ``low`` to ``high``, or with ``inside`` does, some at a time; with a
    cotangent only those where it is not 0. The tile may be written to meanwhile."""
    if not x.numel():
        return
    least = x.amin()  # NaN where there is one
    if inside:
        if least > high:
            return
        where = _true(lost(x, low, high, inside))
    else:
        within = bool(high == inf) or bool(x.amax() <= high)
        if least >= low and within:
            return
        where = _true(x < low if within and least < low else lost(x, low, high, inside))
    if cotangent is not None:
        counts = cotangent[where] != 0
        where = tuple(w[counts] for w in where)
    if not len(where[0]):
        return
    for part in zip(*(w.split(_MOST) for w in where), strict=True):
        yield part if len(part) == 3 else (torch.zeros_like(part[0]), *part)


def _true(found: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Where a new tensor of truth values holds; they are few, so most are passed over eight at a time."""
    if found.numel() % 8:
        return found.nonzero(as_tuple=True)
    groups = found.view(-1).view(torch.int64).nonzero().squeeze(1)
    group, inside = found.view(-1, 8)[groups].nonzero(as_tuple=True)
    return torch.unravel_index(groups[group] * 8 + inside, found.shape)


def gathered(t: torch.Tensor, axes: str, pairs: Pairs) -> torch.Tensor:
    """(pairs, feature or 1): what a tile whose axes behind the problem's are ``axes`` has of each pair."""
    t = t if t.dim() == 3 else t.unsqueeze(0)
    g, i, j = pairs
    g = g if t.shape[0] > 1 else torch.zeros_like(g)
    if axes == "ij":
        return t[g, i, j].unsqueeze(-1)
    if axes == "j":
        return t[g, 0, j].unsqueeze(-1)
    return t[g, i if "i" in axes else j if "j" in axes else torch.zeros_like(i)]


def give(t: torch.Tensor, axes: str, pairs: Pairs, value: torch.Tensor) -> None:
    """Adds what each pair has to its place of a tile without gaps."""
    if not t.numel():  # vectors of no channels
        return
    t = t if t.dim() == 3 else t.unsqueeze(0)
    g, i, j = pairs
    if axes == "j":
        t = t.mT
    at = i if "i" in axes else j if "j" in axes else torch.zeros_like(i)
    t.view(-1, t.shape[2]).index_add_(0, g * t.shape[1] + at, value.expand(len(g), t.shape[2]))


def clear(t: torch.Tensor, pairs: Pairs) -> None:
    t = t if t.dim() == 3 else t.unsqueeze(0)
    t[pairs] = 0.0


def put_pairs(t: torch.Tensor, pairs: Pairs, value: torch.Tensor) -> None:
    t = t if t.dim() == 3 else t.unsqueeze(0)
    t[pairs] = value[:, 0]
