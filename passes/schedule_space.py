"""Schedules that are worth measuring on machines whose loops over tiles are bound to threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from aatc.ir.errors import ScheduleError
from aatc.ir.legal import LARGEST_PARTS, Workload, legal
from aatc.ir.schedule import Pack, Schedule, SplitKeys
from aatc.ir.target import Target
from aatc.passes.cost_model import blocks, default_schedule, in_parts, task_tiles, unknown
from aatc.passes.predicted_time import ordered, predicted_seconds

ROWS = (32, 64, 96, 128, 192, 256)
COLS = (64, 128, 256, 512)
#: Of one pair of extents, so many; and as many in all.
_EACH, _MOST = 3, 32


@lru_cache(maxsize=128)
def thread_space(w: Workload, target: Target) -> tuple[Schedule, ...]:
    """The default, then legal schedules by what they are predicted to take: tiles of 32 to 256 queries and 64 to 512
    keys, register blocks that fit, operands packed or not, keys in parts, a backward by rows or by rows and columns. No
    pair of extents has more than a few, and each order, number of packed operands and of parts has one: the prediction
    may be wrong."""
    default = default_schedule(w, target)
    grid = [s for s in ordered(_grid(w, target), w, target) if s != default and _is_legal(s, w, target)]
    kinds = {_kind(s): s for s in reversed(grid)}  # the first of each
    of_extents: Counter[tuple[int, int]] = Counter()
    others = []
    for s in grid:
        of_extents[s.rows, s.cols] += 1
        if of_extents[s.rows, s.cols] <= _EACH and kinds[_kind(s)] is not s:
            others.append(s)
    chosen = {*kinds.values(), *others[: _MOST - 1 - len(kinds)]}
    return (default, *(s for s in grid if s in chosen))


def _kind(s: Schedule) -> tuple[str, int, int]:
    return s.order, sum(1 for _ in s.every(Pack)), s.parts


def _grid(w: Workload, target: Target) -> Iterator[Schedule]:
    vector = max(1, target.vector_bytes // 4)
    whole = -(-max(unknown(w.cols), 1) // vector) * vector  # columns of a tile are whole vectors
    rows = {min(n, max(unknown(w.rows), 1)) for n in ROWS}
    cols = {min(n, whole) for n in COLS}
    keys = sum(x.along == "j" and x.width > 1 for x in w.operands)
    orders = (False, True) if w.direction == "backward" and "order" in target.directives else (False,)
    for n in sorted(rows):
        for m in sorted(cols):
            for block in _promising(w, target, n, m):
                for few in orders:
                    for packed in range(keys + 1):
                        yield from _cut(task_tiles(w, target, n, m, block, few=few, packed=packed), w, target)


def _cut(s: Schedule, w: Workload, target: Target) -> Iterator[Schedule]:
    """With the keys in one, and in parts where that may pay: as many as the cost model's, half and twice as many."""
    yield s
    cut = in_parts(s, w, target)
    if cut is not s:
        others = [d for d in cut if not isinstance(d, SplitKeys)]
        for parts in (cut.parts // 2, cut.parts, cut.parts * 2):
            if 1 < parts <= LARGEST_PARTS:
                yield Schedule((*others, SplitKeys(parts)))


def _promising(w: Workload, target: Target, rows: int, cols: int) -> list[tuple[int, int] | None]:
    """The register blocks of the fewest predicted seconds."""
    found = [b for b in blocks(w, target, cols) if b[0] <= rows]

    def seconds(block: tuple[int, int]) -> float:
        return predicted_seconds(task_tiles(w, target, rows, cols, block, few=False), w, target)

    return [*sorted(found, key=seconds)[:4]] or [None]


def _is_legal(s: Schedule, w: Workload, target: Target) -> bool:
    try:
        legal(s, w, target)
    except ScheduleError:
        return False
    return True
