"""Masks at run time: tile maps, and blocks of masks, remembered where they repeat."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from aatc.ir.score.evaluate import evaluate
from aatc.ir.score.expr import Expr, postorder
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.program import Program
from aatc.ir.tile_evaluate import bind
from aatc.ir.tilemap import PARTIAL, TileMap

#: Of each problem block and row block, its runs (first column, last + 1, whether partial).
Runs = list[list[list[tuple[int, int, bool]]]]
Sizes = tuple[int, int, int, int]


@lru_cache(maxsize=256)
def _static_runs(mask: Program, sizes: tuple[int, ...], rows: int, cols: int, heads: int, over: str) -> Runs:
    return _runs(TileMap.of(mask, [], sizes, rows, cols, heads), over)


def _runs(tiles: TileMap, over: str) -> Runs:
    return [
        [[(first, last, kind == PARTIAL) for first, last, kind in block if kind] for block in problem]
        for problem in (tiles if over == "j" else tiles.transposed()).runs().tolist()
    ]


def classify(
    mask: Program,
    captures: tuple[torch.Tensor, ...],
    sizes: tuple[int, ...],
    rows: int,
    cols: int,
    heads: int,
    over: str,
) -> Runs:
    """The runs of a mask along j or i; masks of indices alone are classified once per shape."""
    if not captures:
        return _static_runs(mask, sizes, rows, cols, heads, over)
    return _runs(TileMap.of(mask, captures, sizes, rows, cols, heads), over)


def hull(runs: list[tuple[int, int, bool]]) -> tuple[int, int, bool]:
    """(start, extent, partial) of the smallest range of columns that holds all runs; extent 0 if there are none."""
    if not runs:
        return 0, 0, False
    holes = any(before[1] != after[0] for before, after in itertools.pairwise(runs))
    return runs[0][0], runs[-1][1] - runs[0][0], holes or any(partial for *_, partial in runs)


@lru_cache(maxsize=64)
def toeplitz(mask: Program) -> bool:
    """Whether a mask depends on i - j alone (and on b and h), so that one block serves all along a diagonal.

    Only differences of integers count: i + 0.1 is rounded differently further down.
    """
    shift: dict[Expr, Any] = {}  # how much a number grows when i and j both grow by one; None when that is not constant
    for e in postorder(mask.body):
        args = [shift[a] for a in e.args]
        if e.is_const:
            shift[e] = 0
        elif e.fn == "index":
            shift[e] = 1 if e.name in "ij" else 0
        elif e.fn in ("row_key", "column_key"):
            shift[e] = None
        elif e.fn in ("add", "sub") and None not in args and (e.dtype == "i" or not any(args)):
            shift[e] = args[0] + args[1] if e.fn == "add" else args[0] - args[1]
        elif FUNCTIONS[e.fn].infix and FUNCTIONS[e.fn].result == "b" and None not in args:
            shift[e] = 0 if args[0] == args[1] else None
        else:
            shift[e] = 0 if e.fn != "param" and all(a == 0 for a in args) else None
    return bool(shift[mask.body] == 0)


Block = tuple[torch.Tensor, "torch.Tensor | None"]


def additive_block(
    mask: Program, captures: Sequence[torch.Tensor], sizes: Sizes, i: int, ti: int, j: int, tj: int, dtype: torch.dtype
) -> Block:
    """The mask on a block as 0 and -inf, and the rows (b, h, ti) that are closed in it, None when none is.
    Remembered along the diagonal where the mask depends on i - j alone."""
    if not captures and toeplitz(mask):
        return _diagonal_block(mask, sizes, i - j, ti, tj, dtype)
    return _additive(_keep(mask, captures, sizes, i, ti, j, tj), dtype)


@lru_cache(maxsize=32)
def _diagonal_block(mask: Program, sizes: Sizes, offset: int, ti: int, tj: int, dtype: torch.dtype) -> Block:
    return _additive(_keep(mask, (), sizes, max(offset, 0), ti, max(-offset, 0), tj), dtype)


@lru_cache(maxsize=32)
def diagonal(
    mask: Program, sizes: Sizes, offset: int, ti: int, tj: int, dtype: torch.dtype, fill: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What `close` needs for a mask of i - j on a block (ti, tj)."""
    keep = _keep(mask, (), sizes, max(offset, 0), ti, max(-offset, 0), tj)[0, 0].expand(ti, tj).contiguous()
    bits = torch.empty(keep.shape, dtype=_WORDS[dtype])
    kept, filled = selection(keep, fill, bits)
    return kept, None if filled is None else filled.clone()


_WORDS = {torch.float32: torch.int32, torch.float64: torch.int64}


@lru_cache(maxsize=64)
def _pattern(fill: float, word: torch.dtype) -> int:
    dtype = torch.float32 if word == torch.int32 else torch.float64
    return int(torch.tensor(fill, dtype=dtype).view(word))


def selection(keep: torch.Tensor, fill: float, bits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(all bits where ``keep``, the bits of ``fill`` where not, None for 0); the first is written to ``bits``.

    A tile is masked by its bits: it is a true choice, whatever stands there, at the price of a product. torch.where
    costs ten times as much.
    """
    torch.neg(bits.copy_(keep), out=bits)
    pattern = _pattern(fill, bits.dtype)
    return bits, None if pattern == 0 else torch.bitwise_not(bits).bitwise_and_(pattern)


def close(tile: torch.Tensor, kept: torch.Tensor, filled: torch.Tensor | None) -> None:
    """Replaces entries of ``tile`` where the bits of ``kept`` are 0 by those of ``filled``, or 0."""
    bits = tile.view(kept.dtype)
    bits.bitwise_and_(kept)
    if filled is not None:
        bits.bitwise_or_(filled)


def _additive(keep: torch.Tensor, dtype: torch.dtype) -> Block:
    closed = ~keep.any(-1)
    return keep.to(dtype).log_(), (closed if bool(closed.any()) else None)


def _keep(
    mask: Program, captures: Sequence[torch.Tensor], sizes: Sizes, i: int, ti: int, j: int, tj: int
) -> torch.Tensor:
    """The mask on rows i.. and columns j.., (b, h, ti, tj) up to broadcasting."""
    env = bind(mask, captures, sizes)
    for p in mask.params:
        for axis, c in enumerate(p.attrs[1]):
            if c in "ij" and env[p.name].shape[axis] > 1:
                env[p.name] = env[p.name].narrow(axis, *((i, ti) if c == "i" else (j, tj)))
    return evaluate(mask.body, env, (*sizes[:2], ti, tj), dtype=torch.float64, starts=(0, 0, i, j))[..., 0]
