"""How long a schedule takes, predicted: which of many are worth measuring, and in which order.

What counts is what schedules of one attention differ in: how full register blocks are, what is loaded per product,
edges, turned and packed operands, what goes between caches, the number of tasks against that of cores, and how closely
tiles follow a mask. Constants are cycles of a core with two units for multiply-adds; the sum is in seconds, on a core
of 4 GHz.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from aatc.ir.legal import Workload
from aatc.ir.schedule import Pack, Schedule
from aatc.ir.score.program import Program
from aatc.ir.target import Target
from aatc.ir.tilemap import TileMap
from aatc.passes.cost_model import FEW_ROWS, step_cycles, unknown, working_set

_CYCLE = 0.25e-9
_REGION = 20_000  # cycles that a start of the threads takes
_TILE = 400  # cycles per tile besides what grows with it
_SEEN = 2048  # tokens for which masks are looked at; longer ones are taken for alike
_LIKELY = 2048  # tokens, where a length is not known


def predicted_seconds(s: Schedule, w: Workload, target: Target) -> float:
    """Seconds for one direction of an attention under a complete schedule, on a machine with ``target``'s cores."""
    n, m = (unknown(x, _LIKELY) for x in (w.rows, w.cols))
    problems = unknown(w.problems, 8)
    if not (n and m and problems):
        return 0.0
    rows, cols = min(s.rows, n), min(s.cols, m)
    blocks_i, blocks_j = -(-n // rows), -(-m // cols)
    visited = _visited(w.mask, n, m, rows, s.grain)
    tile = sum(_products(s, w, target, rows, cols)) + _entries(s, w, target, rows, cols)
    per_problem = (
        blocks_i * blocks_j * visited * tile + _packing(s, w, m) + _parts(s, w, n) + _fetched(s, w, target, n, m)
    )
    if "threads" in target.levels or "workgroups" in target.levels:
        parts = min(s.parts, blocks_j)
        tasks = -(-problems // s.heads) * (blocks_i if s.level("i") else 1) * parts
        cycles = per_problem * problems / tasks * -(-tasks // max(1, target.cores)) + _REGION
    else:  # every operation is a region of all cores
        cycles = per_problem * problems / max(1, target.cores) + _REGION * blocks_i * blocks_j * problems / s.heads
    return cycles * _CYCLE


def ordered(found: Iterable[Schedule], w: Workload, target: Target) -> list[Schedule]:
    """Schedules by what they are predicted to take, none twice."""
    return sorted(dict.fromkeys(found), key=lambda s: predicted_seconds(s, w, target))


def _widths(w: Workload) -> tuple[int, int]:
    """(numbers that a score contracts, numbers of a value)."""
    return max(1, w.width("j") - w.value), max(1, w.value)


def _products(s: Schedule, w: Workload, target: Target, rows: int, cols: int) -> Iterable[float]:
    """Cycles of each contraction of a tile, and of turning what is not packed."""
    score, value = _widths(w)
    packed = {d.what for d in s.every(Pack)}
    vectors = [x.name for x in w.operands if x.along == "j" and x.width > 1]
    forms = [(score, score, True), (value, cols, False)]  # (width, depth, whether the keys are to be in panels)
    if w.direction == "backward":
        forms = [(score, score, True), (value, value, True), (value, rows, False), (score, cols, False)]
        forms += [(score, rows, False)]
        if s.order == "rows-and-columns":  # scores and their gradients twice
            forms += [(score, score, True), (value, value, True)]
    turned = 0
    for width, depth, panels in forms:
        yield _product(s, target, rows, cols, width, depth, w.item)
        if panels and turned < len(vectors):
            missing = vectors[turned] not in packed
            turned += 1
            yield 1.5 * cols * width if missing else 0.0


def _product(s: Schedule, target: Target, rows: int, cols: int, width: int, depth: int, item: int) -> float:
    lanes = max(1, target.vector_bytes // item)
    high = min(s.extent("ii") or 1, rows)
    vectors = max(1, (s.extent("jj") or lanes) // lanes)
    per_step = step_cycles(high, vectors)
    steps = -(-rows // high) * -(-cols // (vectors * lanes)) * width
    return per_step * steps * (1 + 2 / max(depth, 1))


def _entries(s: Schedule, w: Workload, target: Target, rows: int, cols: int) -> float:
    """Cycles of what is done per score, per row and per tile, and of what goes between caches."""
    lanes = max(1, target.vector_bytes // w.item)
    scores = rows * cols
    instructions = 12 + 8 * (w.pairs - 1)
    live = working_set(w, rows, cols)
    first, second = (*target.caches, 1 << 20, 1 << 20)[:2]
    per_cycle = 64 if live <= first else 32 if live <= second // 2 else 12
    moved = 2 * w.pairs * scores * w.item + cols * w.width("j") * w.item
    per_row = 10 + 3 * w.value / lanes
    return scores * instructions / (2 * lanes) + moved / per_cycle + rows * per_row + _TILE


def _packing(s: Schedule, w: Workload, keys: int) -> float:
    widths = {x.name: x.width for x in w.operands}
    return 1.5 * keys * sum(widths.get(d.what, 0) for d in s.every(Pack))


def _parts(s: Schedule, w: Workload, rows: int) -> float:
    """Cycles of keeping what parts of the keys gather, and of merging it."""
    return 0.0 if s.parts < 2 else s.parts * (_TILE + rows * (20 + w.value / 4))


def _fetched(s: Schedule, w: Workload, target: Target, rows: int, keys: int) -> float:
    """Cycles of fetching keys and values from memory for few queries, which do not hide it; problems that share them
    fetch them once, as long as they take the same part of them one after the other."""
    if rows > FEW_ROWS or not w.rows:
        return 0.0
    size = keys * w.width("j") * w.item
    once = s.heads > 1 and w.shared % s.heads == 0 and size <= 2 * s.parts * target.cache_bytes // 3
    return size / 12 / (s.heads if once else 1)


def _visited(mask: Program | None, n: int, m: int, rows: int, grain: int) -> float:
    """The part of all scores that is in tiles which a mask leaves."""
    if mask is None or mask.params:
        return 1.0
    return _visited_of(mask, min(n, _SEEN), min(m, _SEEN), rows, grain)


@lru_cache(maxsize=512)
def _visited_of(mask: Program, n: int, m: int, rows: int, grain: int) -> float:
    counts = TileMap.of(mask, [], (1, 1, n, m), rows, grain, 1).counts
    total = sum(counts.values())
    return (counts["full"] + 1.2 * counts["partial"]) / total if total else 1.0
