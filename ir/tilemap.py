"""Which tiles of a score matrix are empty, full or partial, found from bounds, never from the n*n mask.

A mask program is bounded over every (row block, column block) at once by interval arithmetic: an index
ranges over its block, a captured vector over the smallest and largest entry in the block, a captured
matrix (already stored by the user) over its block's extremes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aatc.ir.score.expr import INDEX_AXES, Expr, postorder
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.program import Program

EMPTY, PARTIAL, FULL = 0, 1, 2


@dataclass(frozen=True)
class TileMap:
    """``kinds[g, r, c]`` is EMPTY, PARTIAL or FULL for block row r and block column c of problem block ``g``; there is
    one block when the mask is the same for all problems.

    rows, cols: tile extents. heads: problems in a block. size: (rows, columns) of the score matrix.
    """

    kinds: np.ndarray
    rows: int
    cols: int
    heads: int
    size: tuple[int, int]

    @staticmethod
    def of(
        mask: Program,
        captures: Sequence[torch.Tensor],
        sizes: tuple[int, ...],
        rows: int,
        cols: int,
        heads: int,
    ) -> TileMap:
        """The map of ``mask`` over captures bound in order; sizes = (B, H, N, M)."""
        low, high = bounds(mask, captures, sizes, rows, cols)
        b, h, n, m = sizes
        lead = (b, h) if low.shape[:2] != (1, 1) or high.shape[:2] != (1, 1) else (1, 1)
        shape = (*lead, -(-n // rows), -(-m // cols))
        low, high = (np.broadcast_to(x, shape).reshape(lead[0] * lead[1], *shape[2:]) for x in (low, high))
        if lead == (b, h) and b * h:  # a block takes consecutive problems, of two batches if need be
            groups = np.arange(0, b * h, heads)
            low, high = np.minimum.reduceat(low, groups), np.maximum.reduceat(high, groups)
        kinds = np.where(low == 1, FULL, np.where(high == 0, EMPTY, PARTIAL)).astype(np.int8)
        return TileMap(kinds, rows, cols, heads, (n, m))

    def transposed(self) -> TileMap:
        """The same with rows and columns in each other's place."""
        return TileMap(self.kinds.transpose(0, 2, 1), self.cols, self.rows, self.heads, self.size[::-1])

    def runs(self) -> np.ndarray:
        """Columns to visit, as `aatc.ir.types.RunsType` says: neighbours of one kind are one run, empty ones none."""
        kinds = self.kinds
        blocks, rows, cols = kinds.shape
        edge = np.full((blocks, rows, 1), -1, dtype=kinds.dtype)
        block, row, first = np.nonzero(np.concatenate([edge, kinds], 2)[..., :-1] != kinds)
        last = np.append(first[1:], cols)
        same = np.append((block[1:] == block[:-1]) & (row[1:] == row[:-1]), False) if len(first) else first
        last = np.where(same, last, cols)
        kind = kinds[block, row, first]
        open_ = kind != EMPTY
        block, row, first, last, kind = (x[open_] for x in (block, row, first, last, kind))
        line = block * rows + row
        number = np.arange(len(line)) - np.searchsorted(line, line)
        out = np.zeros((blocks, rows, int(number.max(initial=-1)) + 2, 3), dtype=np.int32)
        out[block, row, number] = np.stack([first * self.cols, np.minimum(last * self.cols, self.size[1]), kind], -1)
        return out

    @property
    def counts(self) -> dict[str, int]:
        return {
            name: int((self.kinds == kind).sum())
            for name, kind in (("empty", EMPTY), ("partial", PARTIAL), ("full", FULL))
        }


#: Words that make a NaN of infinite arguments: inf - inf, 0 * inf, sin(inf).
_NAN_OF_INFINITY = frozenset({"add", "sub", "mul", "div", "sin", "cos", "pow"})


def bounds(mask: Program, captures: Sequence[torch.Tensor], sizes: Any, rows: int, cols: int) -> Any:
    """Lower and upper truth (0 or 1) of the mask per tile, broadcastable to (B, H, block rows, block columns).

    Intervals say nothing of NaN, for which every comparison but != is false; where one is possible, ``loose``
    is set, and comparisons are left undecided.
    """
    done: dict[Expr, tuple[Any, ...]] = {}
    loose: dict[Expr, Any] = {}
    bound = dict(zip(mask.params, captures, strict=True))
    with np.errstate(all="ignore"):
        for e in postorder(mask.body):
            done[e], loose[e] = _bound(
                e, [done[a] for a in e.args], [loose[a] for a in e.args], bound, sizes, rows, cols
            )
    low, high = done[mask.body]
    return np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)


def _bound(
    e: Expr, args: list[tuple[Any, ...]], loose: list[Any], bound: Any, sizes: Any, rows: int, cols: int
) -> tuple[tuple[Any, ...], Any]:
    f = FUNCTIONS.get(e.fn)
    if e.fn == "index":
        return _index(e.name, sizes, rows, cols), False
    if e.is_const:
        low = high = float(e.value)
    elif e.fn == "param":
        low, high = _param(e, bound[e], sizes, rows, cols)
    elif f is not None and f.bound is not None and f.kind == "pointwise":
        low, high = f.bound(*args, *e.attrs)
    else:
        low, high = (0.0, 1.0) if e.dtype == "b" else (-np.inf, np.inf)
    lost = (low != low) | (high != high)
    if e.dtype == "i":
        low, high, wrapped = _widened(low, high)
        lost = lost | (wrapped & (e.fn != "param"))
    unknown = lost | ((low == -np.inf) & (high == np.inf))
    for x in loose:
        unknown = unknown | x
    if e.fn in _NAN_OF_INFINITY:
        for x, y in args:
            unknown = unknown | (x == -np.inf) | (y == np.inf)
    if not np.any(unknown):
        return (low, high), False
    if e.dtype == "b":
        return (np.where(unknown, 0.0, low), np.where(unknown, 1.0, high)), False
    return (np.where(lost, -np.inf, low), np.where(lost, np.inf, high)), unknown


def _widened(low: Any, high: Any) -> tuple[Any, Any, Any]:
    """Bounds of integers, to the next double outside where doubles have gaps; and whether the integers may wrap."""
    wrapped = (low < -(2.0**63)) | (high >= 2.0**63)
    if not np.any((low <= -(2.0**53)) | (high >= 2.0**53)):
        return low, high, wrapped
    low = np.where(np.abs(low) >= 2.0**53, np.nextafter(low, -np.inf), low)
    return low, np.where(np.abs(high) >= 2.0**53, np.nextafter(high, np.inf), high), wrapped


def _index(name: str, sizes: Any, rows: int, cols: int) -> Any:
    axis = INDEX_AXES.index(name)
    block = {"i": rows, "j": cols}.get(name, 1)
    low = np.arange(0, sizes[axis], block, dtype=np.float64)
    high = np.minimum(low + block, sizes[axis]) - 1
    shape = [1, 1, 1, 1]
    shape[axis] = len(low)
    return low.reshape(shape), high.reshape(shape)


def _param(p: Expr, tensor: torch.Tensor, sizes: Any, rows: int, cols: int) -> Any:
    if p.rank == 3:
        return -np.inf, np.inf  # a table is read at positions only the pair knows
    axes = p.attrs[1]
    values = tensor.detach()
    if values.dtype in (torch.uint16, torch.uint32):
        values = values.long()  # torch has no extremes of these
    low, high = values, values
    for axis in range(len(axes) - 1, -1, -1):
        block = {"i": rows, "j": cols}.get(axes[axis], 1)
        if axes[axis] in INDEX_AXES and block > 1 and values.shape[axis] > 1:
            low, high = _blocks(low, axis, block, torch.amin), _blocks(high, axis, block, torch.amax)
        elif axes[axis] not in INDEX_AXES:
            low, high = low.amin(axis), high.amax(axis)
    lead = [c for c in axes if c in INDEX_AXES]
    heads = sizes[1]
    out = []
    for x in (low, high):
        shape = [x.shape[lead.index(c)] if c in lead else 1 for c in INDEX_AXES]
        array = x.double().cpu().numpy().reshape(shape)
        out.append(array.repeat(heads // shape[1], 1) if shape[1] not in (1, heads) else array)
    return tuple(out)


def _blocks(x: torch.Tensor, axis: int, block: int, extreme: Any) -> torch.Tensor:
    """Extremes over consecutive blocks of one axis, the last one possibly shorter."""
    n = x.shape[axis]
    whole = n // block * block
    parts = []
    if whole:
        parts.append(extreme(x.narrow(axis, 0, whole).unflatten(axis, (whole // block, block)), axis + 1))
    if whole < n:
        parts.append(extreme(x.narrow(axis, whole, n - whole), axis, keepdim=True))
    return torch.cat(parts, axis)
