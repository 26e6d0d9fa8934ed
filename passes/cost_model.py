"""The default schedule of an attention: from the target's cores, caches, vectors and shared memory, the widths of what
a tile holds, the tiles live at once, and the mask."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from aatc.ir.legal import LARGEST_PARTS, Workload, registers
from aatc.ir.schedule import Bind, Directive, Grain, Order, Pack, Schedule, Split, SplitKeys, Stage, Vectorize
from aatc.ir.score.program import Program
from aatc.ir.target import Target
from aatc.ir.tilemap import TileMap

#: Multiply-adds that have to be under way at once, for none to wait for the one before.
_LATENCY = 8
#: Queries of a problem, or of those that have the same keys, up to which the keys go in parts.
FEW_ROWS = 16
#: Keys of a part, at least: what one costs beside its keys is little then.
LEAST_PART = 512
#: Keys that few queries have where their number is not known, as in a cache that grows.
LIKELY_KEYS = 4096


def default_schedule(w: Workload, target: Target, *, masked: bool = True) -> Schedule:
    """A legal schedule for one direction; unless it is not ``masked``, its rows follow the mask."""
    if "workgroups" in target.levels:
        return _workgroup_tiles(w, target)
    if "threads" in target.levels:
        return _thread_tiles(w, target)
    return _shared_tiles(w, target, masked)


def unknown(extent: int | None, default: int = 1 << 20) -> int:
    return default if extent is None else extent


def _shared_tiles(w: Workload, target: Target, masked: bool) -> Schedule:
    """For backends whose single operations spread over the cores, such as the torch code.

    All cores work on one score tile, which fills half of their caches together (what flows in and out takes the
    rest): large tiles, since every operation on one is a fork and a join. It is wide, since each row costs an
    update of its sums per tile. Small problems are taken several heads at a time. Masks are classified in
    narrow columns.
    """
    budget = max(4096, target.cores * target.cache_bytes // 2 // w.item)
    n, m, g = unknown(w.rows), unknown(w.cols), unknown(w.problems, 1)
    cols = min(m, 512)
    rows = min(n, max(32, budget // max(cols, 1)))
    heads = max(1, min(g, budget // max(1, rows * cols))) if rows >= n and cols >= m else 1
    if masked and w.mask is not None:
        rows = masked_rows(w.mask, n, m, rows)
    return Schedule.of(heads, max(rows, 1), max(cols, 1), min(64, max(cols, 1)))


def masked_rows(mask: Program, n: int, m: int, most: int, *, runs: bool = True) -> int:
    """Rows of a tile under a mask: short ones follow its edge closely, tall ones cost less per score.

    The cost counts visited scores, partial ones heavier, plus what every call costs: one per run of columns, or with
    ``runs`` off one per block of rows. A mask that reads captured tensors shows its shape at run time only; then tiles
    are of middling height.
    """
    if mask.params or not n or not m or n > 1 << 16 or m > 1 << 16:
        return min(most, 256)
    return _masked_rows(mask, n, m, most, runs)


@lru_cache(maxsize=256)
def _masked_rows(mask: Program, n: int, m: int, most: int, runs: bool) -> int:
    start = 56_000  # what a call costs, in scores of one head: measured for either engine
    best, least = most, float("inf")
    rows = most
    while rows >= min(most, 64):
        tiles = TileMap.of(mask, [], (1, 1, n, m), rows, 64, 1)
        counts, lengths = tiles.counts, np.diff(tiles.runs()[..., :2]) if runs else np.full(-(-n // rows), 1)
        calls = int((-(-lengths // 512)).sum())
        cost = (counts["full"] + 1.2 * counts["partial"]) * rows * 64 + calls * start
        if cost < least:
            best, least = rows, cost
        rows //= 2
    return best


def _thread_tiles(w: Workload, target: Target) -> Schedule:
    """For code of our own on a CPU: a task per block of queries, in buffers of its own that stay in a core's second
    cache, with products in register blocks. A backward by rows has a task per problem."""
    vector = max(1, target.vector_bytes // 4)  # columns of a tile are whole vectors, whatever stands in the last
    rows, cols = min(unknown(w.rows), 128), min(-(-unknown(w.cols) // vector) * vector, 256)
    room = target.cache_bytes // 2
    while cols > 64 and working_set(w, rows, cols) > room:
        cols //= 2
    while rows > 16 and working_set(w, rows, cols) > room:
        rows //= 2
    if w.direction == "forward" and w.problems is not None and w.rows is not None:
        while rows > 64 and w.problems * -(-w.rows // rows) < 2 * target.cores:
            rows //= 2
    rows, cols = max(rows, 1), max(-(-cols // vector), 1) * vector
    few = w.problems is None or w.problems < 2 * target.cores
    once = w.rows is not None and w.rows <= rows  # what is read by one block of queries is turned as it is read
    packed = 0 if once else None
    s = task_tiles(w, target, rows, cols, _best_block(w, target, rows, cols), few=few, packed=packed)
    return in_parts(s, w, target)


def in_parts(s: Schedule, w: Workload, target: Target) -> Schedule:
    """The same with its keys in parts, where there are so few queries that it pays: neighbouring problems with the same
    keys are taken together, part by part of these, each of which stays in a core's second cache from one to the next;
    and few problems have parts for all cores. How many depends on the machine's cores, not on the threads in use."""
    if w.direction != "forward" or "split-keys" not in target.directives or w.unmerged:
        return s
    if w.rows is None or w.problems is None or w.rows > min(s.rows, FEW_ROWS):
        return s
    keys = unknown(w.cols, LIKELY_KEYS)
    most = FEW_ROWS // max(w.rows, 1)
    together = max(n for n in range(1, max(most, 1) + 1) if w.shared % n == 0)
    per_key = max(1, w.width("j") * w.item)
    least = -(-max(LEAST_PART, 2 * s.cols) // s.cols) * s.cols
    fitting = max(least, target.cache_bytes // 2 // per_key // s.cols * s.cols)
    wanted = -(-keys // fitting) if together > 1 else 1
    tasks = w.problems // together
    if tasks < 2 * target.cores and target.cores > 1:
        wanted = max(wanted, -(-2 * target.cores // max(tasks, 1)))
    parts = min(wanted, keys // least, LARGEST_PARTS)
    if parts < 2:
        return s
    found = s.with_extents(g=together)
    return Schedule((*found.directives, SplitKeys(parts)))


def task_tiles(
    w: Workload,
    target: Target,
    rows: int,
    cols: int,
    block: tuple[int, int] | None,
    *,
    few: bool,
    packed: int | None = None,
) -> Schedule:
    """The schedule of tiles of ``rows`` and ``cols`` by tasks. ``block``: rows and vectors of the register block.
    ``few``: a backward is cut in two kernels. ``packed``: so many operands of the keys are, by default those that
    products read in panels."""
    extras: list[Directive] = [] if block is None else _block(w, target, *block, packed)
    return _obeyed(rows, cols, [*extras, *_tasks(w, target, "threads", few)], target)


def _tasks(w: Workload, target: Target, level: str, few: bool) -> list[Directive]:
    """Loops bound to a level. Blocks of a backward by rows share sums: where problems alone are too ``few``, it is a
    row kernel and a column kernel."""
    if w.direction == "forward":
        return [Bind("g", level), Bind("i", level)]
    if few and "order" in target.directives:
        return [Bind("g", level), Bind("i", level), Order("rows-and-columns")]
    return [Bind("g", level)]


def working_set(w: Workload, rows: int, cols: int) -> int:
    """Bytes of the tiles that are live at once."""
    per_row, per_col = w.width("i") + w.value, w.width("j")
    if w.direction == "backward":  # vectors and their gradients
        per_row, per_col = 2 * per_row, 2 * per_col
    return (w.pairs * rows * cols + rows * per_row + cols * per_col) * w.item


def blocks(w: Workload, target: Target, cols: int) -> list[tuple[int, int]]:
    """Register blocks, (rows, vectors), that there are registers for and that divide ``cols``."""
    vector = target.vector_bytes // 4
    if vector < 2 or not target.registers:
        return []

    def fits(high: int, wide: int) -> bool:
        block = Schedule((Split("ii", high), Split("jj", wide * vector)))
        return cols % (wide * vector) == 0 and registers(block, w, target) <= target.registers

    return [(high, wide) for high in range(1, 9) for wide in (1, 2, 3, 4) if fits(high, wide)]


def _best_block(w: Workload, target: Target, rows: int, cols: int) -> tuple[int, int] | None:
    """The register block with most products per cycle; (1, 1) where none fits, None without vectors."""
    if target.vector_bytes < 8 or not target.registers:
        return None
    best: tuple[float, int, int] = (0.0, 1, 1)
    for high, wide in blocks(w, target, cols):
        if high <= rows:
            spare = rows / (-(-rows // high) * high)  # rows of the last block that are there
            best = max(best, (spare * high * wide / step_cycles(high, wide), wide, high))
    return best[2], best[1]


def step_cycles(high: int, vectors: int) -> float:
    """Cycles of one step of a contraction in a register block, on a core with two units for multiply-adds: those that
    products and loads take, as many as keep both units under way, and half a one for the loop."""
    return max(high * vectors, high + vectors, _LATENCY) / 2 + 0.5


def _block(w: Workload, target: Target, high: int, wide: int, packed: int | None) -> list[Directive]:
    """Directives of a register block. Panels of the keys are as wide as it."""
    panel = wide * (target.vector_bytes // 4)
    keys = [x for x in w.operands if x.along == "j" and x.width > 1]
    if packed is None:
        packed = len(keys) if w.direction == "backward" else 1
    number = max(1, target.vector_bytes // w.item)
    vectors = [Vectorize("jj", number)] if number > 1 else []
    return [Split("ii", high), Split("jj", panel), *vectors, *(Pack(x.name, panel) for x in keys[:packed])]


def _workgroup_tiles(w: Workload, target: Target) -> Schedule:
    """For GPUs: a workgroup per block of queries, 8 queries and 4 keys of the scores in the registers of each lane,
    keys and values staged in shared memory as long as they fit."""
    rows, cols = min(max(unknown(w.rows), 1), 64), min(max(unknown(w.cols), 1), 16)
    while rows > 8 and -(-rows // 8) * -(-cols // 4) > target.workgroup:
        rows //= 2
    high, wide = min(8, rows), min(4, cols)
    while target.registers and high > 1 and high * wide + wide + 1 > target.registers:
        high //= 2
    block = [Split("ii", high), Split("jj", wide)]
    bound = _tasks(w, target, "workgroups", few=True)
    inner = (
        [Bind("ii", "lanes"), Bind("jj", "lanes")] if -(-rows // high) * -(-cols // wide) <= target.workgroup else []
    )
    s, staged, used = Schedule.of(1, rows, cols), [], 0
    for x in (x for x in w.operands if x.along == "j" and x.width > 1):
        used += w.bytes(x.name, s)
        if used <= target.shared_bytes:
            staged.append(Stage(x.name, "shared"))
    return in_parts(_obeyed(rows, cols, [*block, *bound, *inner, *staged], target), w, target)


def _obeyed(rows: int, cols: int, extras: list[Directive], target: Target) -> Schedule:
    """Tile extents, and those of ``extras`` that the target obeys."""
    kept = [
        d
        for d in extras
        if d.word in target.directives
        and not (isinstance(d, Bind) and d.to not in target.levels)
        and not (isinstance(d, Stage) and d.space not in target.spaces)
    ]
    grain = max([d.panel for d in kept if isinstance(d, Pack)], default=64)
    while cols % grain:
        grain -= 1
    return Schedule((Split("g", 1), Split("i", rows), Split("j", cols), Grain("j", min(grain, cols)), *kept))
