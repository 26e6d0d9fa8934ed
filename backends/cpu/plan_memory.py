"""Gives every tile a place in one arena, so that a program works in the same few buffers all along.

Offsets are those of `aatc.backends.liveness`. The gap to the largest sum of simultaneously live tiles is reported: that
sum is a lower bound for any plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from aatc.backends.cpu.linear import linearize, overwritable, temporaries
from aatc.backends.liveness import Liveness, max_live, place
from aatc.ir.core import Func, Module, Op, Value
from aatc.ir.known import Known, key_of_function
from aatc.ir.registry import lookup_op
from aatc.ir.types import TileType, itemsize
from aatc.passes.base import Context, Pass, register

ALIGN = 64


@register
@dataclass(frozen=True)
class PlanMemory(Pass):
    """Adds ``cpu.plan`` and ``cpu.scratch`` offsets to tile operations and the arena's size to tile functions."""

    name: ClassVar[str] = "plan-memory"

    def run(self, module: Module, ctx: Context) -> Module:
        known = Known()
        for func in module.funcs.values():
            if func.level == "tile":
                arena, peak = _planned(func, known)
                ctx.count("planned")
                gap = (arena - peak) / peak if peak else 0.0
                ctx.notes.append(f"@{func.name}: arena {arena} bytes, at most {peak} live at once (gap {gap:.1%})")
        return module


def _planned(func: Func, known: Known) -> tuple[int, int]:
    """`plan`, copied from a function that is the same but for names."""
    key = key_of_function(func)
    found = known.get(key)
    if found is None:
        entry: list[Any] = [func]
        known.add_function(key, entry, func)  # before an earlier plan gives way: what the key speaks of is kept
        entry.append(first := plan(func))
        return first
    twin: Func = found[0]
    made: tuple[int, int] = found[1]
    for op, x in zip(func.body.walk(), twin.body.walk(), strict=True):
        op.attrs |= {n: x.attrs[n] for n in ("cpu.plan", "cpu.scratch") if n in x.attrs}
    func.attrs["cpu.arena"] = twin.attrs["cpu.arena"]
    return made


def replaceable(op: Op, r: Value) -> list[Value]:
    """Operands whose place the result ``r`` may take, as far as the operation itself is concerned."""
    traits = lookup_op(op.name).traits
    if traits.replaces is None or op.name != "tile.map":
        return op.operands[traits.replaces] if traits.replaces is not None else []
    free = overwritable(linearize(op), op.results.index(r))
    return [v for n, v in enumerate(op.operands) if n in free]


def tile_bytes(t: TileType) -> int:
    n = itemsize(t.dtype)
    for d in t.shape:
        n *= int(d)
    return -(-n // ALIGN) * ALIGN


def scratch_sizes(op: Op) -> list[int]:
    """Bytes of the temporaries an element-wise operation needs beyond its results."""
    if op.name not in ("tile.map", "tile.mask"):
        return []
    return [tile_bytes(TileType.of(dtype, shape)) for dtype, shape in temporaries(op)]


def plan(func: Func) -> tuple[int, int]:
    """Plans one tile function in place; returns (arena bytes, max-live bytes)."""
    live = Liveness(tile_bytes, replaceable, scratch_sizes)
    live.block(func.body)
    arena = place(live.every)
    for op in func.body.walk():
        places = [live.interval(r) for r in op.results]
        offsets = tuple(x.offset if x is not None else -1 for x in places)
        if any(o >= 0 for o in offsets):
            op.attrs["cpu.plan"] = offsets
        if live.scratch.get(op):
            op.attrs["cpu.scratch"] = tuple(x.offset for x in live.scratch[op])
    func.attrs["cpu.arena"] = arena
    return arena, max_live(live.every)
