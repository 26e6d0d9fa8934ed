"""Jumps of functions along segments, found by bisection: what a transition function of a bundle must not have."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

PIECES = 32  # of each segment: the first step of the search


def largest_jumps(
    function: Callable[[Tensor], Tensor],
    inside: Callable[[Tensor], Tensor],
    start: Tensor,
    end: Tensor,
    room: float,
) -> tuple[Tensor, Tensor]:
    """The largest jump of ``function`` on each segment from ``start`` to ``end``, both (S, m), and where: (S,), (S, m).

    ``function`` takes points (N, m) to values (N, ...); ``inside``, bool (N,), tells where it is defined, and a part
    of a segment with a point outside is left out. Every segment is cut into `PIECES`, and each of them halved towards
    the half that is farther from linear, until that is no farther than a quarter of ``room``, or it is a few ulps long.
    There a continuous function's change has shrunk with the length; a jump's has not. A value that is not finite is a
    jump of infinite size. Not seen are jumps that no segment crosses, and perhaps one that is smaller than the third
    difference of the piece it is in.
    """
    if start.shape[0] == 0:
        return start.new_zeros(0), start
    width = function(start[:1])[0].numel()

    def at(time: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        x = start[which] + time.unsqueeze(-1) * (end - start)[which]
        defined = inside(x)
        values = start.new_zeros(len(x), width)
        if bool(defined.any()):
            values = values.index_put((defined,), function(x[defined]).detach().flatten(1).to(values))
        return values, defined

    times = torch.arange(PIECES + 1, dtype=start.dtype, device=start.device) / PIECES
    grid = torch.arange(start.shape[0], device=start.device).repeat_interleave(PIECES + 1)
    values, good = at(times.repeat(start.shape[0]), grid)
    first = torch.arange(grid.numel(), device=grid.device).reshape(-1, PIECES + 1)[:, :-1].reshape(-1)
    first = first[good[first] & good[first + 1]]
    low, number, at_low, at_high = times[first % (PIECES + 1)], grid[first], values[first], values[first + 1]
    length, before = 1 / PIECES, torch.full_like(low, math.inf)
    levels = int(-math.log2(torch.finfo(start.dtype).eps)) - 11
    for level in range(levels):
        if level == levels - max(2, levels // 4):
            before = _size(at_high - at_low)
        parts = [at(low + part * length, number) for part in (0.25, 0.5, 0.75)]
        (one, _), (middle, _), (three, _) = parts
        bends = torch.stack((_size(at_low + middle - 2 * one), _size(middle + at_high - 2 * three)))
        right = bends[1] >= bends[0]
        length /= 2
        low = low + right * length
        at_low, at_high = (torch.where(right.unsqueeze(-1), *pair) for pair in ((middle, at_low), (at_high, middle)))
        kept = torch.stack([defined for _, defined in parts]).all(0) & (bends.amax(0) > room / 4)
        low, number, at_low, at_high, before = (z[kept] for z in (low, number, at_low, at_high, before))
        if not number.numel():
            return start.new_zeros(start.shape[0]), start
    change = _size(at_high - at_low)
    jump = torch.where((change <= 0.5 * before) & before.isfinite(), 0.0, change)
    sizes, places = start.new_zeros(start.shape[0]), start.clone()
    for i in jump.argsort().tolist():
        sizes[number[i]] = jump[i]
        places[number[i]] = start[number[i]] + low[i] * (end - start)[number[i]]
    return sizes, places


def _size(change: Tensor) -> Tensor:
    """The largest entry of each row; of rows that are not finite, infinity."""
    return torch.nan_to_num(change.abs(), nan=math.inf, posinf=math.inf).amax(-1)
