"""How much there is to do, as sizes tell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aatc.backends.native.declarations import product_of, shape_of
from aatc.backends.native.regions import Phase
from aatc.ir.core import Op
from aatc.ir.dims import Dim
from aatc.ir.types import TileType


def tasks_of(phase: Phase, sizes: dict[str, int]) -> tuple[int, int, int]:
    """(tasks, those that every turn does, about how many multiplications and additions) of a phase. Rounds count
    by how much of their step there is: code for any length has large tiles, of which a short problem fills a part."""
    total = again = work = 0
    for nest in phase.nests:
        rounds = [(d.evaluate(sizes), step) for d, step in nest.extents]
        count = math.prod(-(-n // step) for n, step in rounds)
        total += count
        again += 0 if nest.turns else count
        work += max(1024 * count, int(math.prod(n / step for n, step in rounds) * _work_of(nest.ops, sizes)))
    return total, again, work


def _work_of(ops: Sequence[Op], sizes: dict[str, int]) -> float:
    """Of operations once: products count all their terms, others each number; a branch is not taken."""
    work = 0.0
    for op in ops:
        if op.name in ("tile.for", "tile.sweep", "tile.for_part", "tile.sweep_part"):
            rounds = Dim.of(op.attrs["upper"]).evaluate(sizes) / (op.attrs["step"] * op.attrs.get("parts", 1))
            work += rounds * _work_of(op.regions[0].ops, sizes)
        elif op.name == "tile.dot":
            _, rows, cols = op.result.type.shape  # type: ignore[attr-defined]
            depth = op.operands[0].type.shape[1 if op.attrs["form"] == "tn" else 2]  # type: ignore[attr-defined]
            work += int(rows) * int(cols) * int(depth)
        elif op.name == "native.join":
            _, rows, cols = shape_of(op)
            depth = op.operands[0].type.shape[2] if product_of(op) else 1  # type: ignore[attr-defined]
            work += rows * cols * (int(depth) + len(op.results) - 1)
        elif op.name != "tile.guard" and op.results and isinstance(op.results[0].type, TileType):
            work += math.prod(int(d) for d in op.results[0].type.shape)
    return work
