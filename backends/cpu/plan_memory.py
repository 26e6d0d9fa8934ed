"""Gives every tile a place in one arena, so that a program works in the same few buffers all along.

Tiles live in straight-line order (a loop body counts once; what is read inside a loop lives until its end).
With intervals known, offsets are chosen first-fit by decreasing size. The gap to the largest sum of
simultaneously live tiles is reported: that sum is a lower bound for any plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from aatc.backends.cpu.linear import linearize, overwritable, temporaries
from aatc.ir.core import Block, Func, Module, Op, Value
from aatc.ir.registry import lookup_op
from aatc.ir.types import TileType, itemsize
from aatc.passes.base import Context, Pass, register

ALIGN = 64


@dataclass
class Interval:
    """A planned value: ``size`` bytes, live from position ``start`` to ``end`` inclusive."""

    size: int
    start: int
    end: int
    offset: int = -1


@register
@dataclass(frozen=True)
class PlanMemory(Pass):
    """Adds ``cpu.plan`` and ``cpu.scratch`` offsets to tile operations and the arena's size to tile functions."""

    name: ClassVar[str] = "plan-memory"

    def run(self, module: Module, ctx: Context) -> Module:
        for func in module.funcs.values():
            if func.level == "tile":
                arena, peak = plan(func)
                ctx.count("planned")
                gap = (arena - peak) / peak if peak else 0.0
                ctx.notes.append(f"@{func.name}: arena {arena} bytes, at most {peak} live at once (gap {gap:.1%})")
        return module


@dataclass
class _Liveness:
    """Positions of operations and last uses, by one walk over the function."""

    position: int = 0
    intervals: dict[Value, Interval] = field(default_factory=dict)
    scratch: dict[Op, list[Interval]] = field(default_factory=dict)
    alias: dict[Value, Value] = field(default_factory=dict)

    def root(self, v: Value) -> Value:
        while v in self.alias:
            v = self.alias[v]
        return v

    def use(self, v: Value) -> None:
        v = self.root(v)
        if v in self.intervals:
            self.intervals[v].end = max(self.intervals[v].end, self.position)

    def block(self, block: Block) -> None:
        last = {v: op for op in block.ops for v in _reads(op)}
        own = {*block.args, *(r for op in block.ops for r in op.results)}
        for op in block.ops:
            self.position += 1
            for v in op.operands:
                self.use(v)
            dying = {v for v in op.operands if v in own and last[v] is op}
            if op.regions:
                self._loop(op, dying)
                continue
            if not lookup_op(op.name).traits.view:
                for r in op.results:
                    self._define_or_replace(op, r, dying)
            if op.name in ("tile.map", "tile.mask"):
                self.scratch[op] = [Interval(n, self.position, self.position) for n in scratch_sizes(op)]

    def _define_or_replace(self, op: Op, r: Value, dying: set[Value]) -> None:
        """A result takes the place of an operand that dies here and is not read after the result is written."""
        taken = {self.root(x) for x in op.results if x is not r and x in self.alias}
        for v in replaceable(op, r):
            planned = self.root(v) in self.intervals and self.root(v) not in taken
            if v in dying and planned and v.type == r.type and op.operands.count(v) == 1:
                self.alias[r] = self.root(v)
                return
        self._define(r)

    def _define(self, v: Value) -> None:
        if isinstance(v.type, TileType):
            self.intervals[v] = Interval(tile_bytes(v.type), self.position, self.position)

    def _loop(self, op: Op, dying: set[Value]) -> None:
        """Carried values share one place over all rounds; what enters from outside lives until the loop ends."""
        start = self.position
        outside = set(self.intervals)
        body = op.regions[0]
        skip, lead = lookup_op(op.name).traits.carried
        if (
            lookup_op(op.name).traits.region == "branch"
        ):  # its results are its operands, overwritten if the body has to run
            self.alias.update(zip(op.results, map(self.root, op.operands), strict=True))
        else:
            for init, r in zip(op.operands[skip:], op.results, strict=True):
                if init in dying and self.root(init) in self.intervals and op.operands.count(init) == 1:
                    self.alias[r] = self.root(init)
                else:
                    self._define(r)
            for arg, r in zip(body.args[lead:], op.results, strict=True):
                self.alias[arg] = r
        before = {v: self.intervals[v].end for v in outside}
        self.block(body)
        self.position += 1
        for v in outside:
            if self.intervals[v].end > max(before[v], start):
                self.intervals[v].end = self.position  # read in some round: needed in all
        for r in op.results:
            self.use(r)


def _reads(op: Op) -> list[Value]:
    return [*op.operands, *(v for region in op.regions for inner in region.walk() for v in inner.operands)]


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
    return [tile_bytes(TileType.of(dtype, shape)) for dtype, shape in temporaries(op)]


def place(intervals: list[Interval]) -> int:
    """Offsets first-fit by decreasing size; returns the arena's size."""
    done: list[Interval] = []
    for x in sorted(intervals, key=lambda x: (-x.size, x.start)):
        offset = 0
        for y in sorted((y for y in done if y.start <= x.end and x.start <= y.end), key=lambda y: y.offset):
            if offset + x.size <= y.offset:
                break
            offset = max(offset, y.offset + y.size)
        x.offset = offset
        done.append(x)
    return max((x.offset + x.size for x in done), default=0)


def max_live(intervals: list[Interval]) -> int:
    """Largest number of bytes live at one position: no plan can do with less."""
    points = sorted({x.start for x in intervals})
    return max((sum(x.size for x in intervals if x.start <= p <= x.end) for p in points), default=0)


def plan(func: Func) -> tuple[int, int]:
    """Plans one tile function in place; returns (arena bytes, max-live bytes)."""
    live = _Liveness()
    live.block(func.body)
    every = [*live.intervals.values(), *(x for xs in live.scratch.values() for x in xs)]
    arena = place(every)
    for op in func.body.walk():
        places = [live.intervals.get(live.root(r)) for r in op.results]
        offsets = tuple(x.offset if x is not None else -1 for x in places)
        if any(o >= 0 for o in offsets):
            op.attrs["cpu.plan"] = offsets
        if live.scratch.get(op):
            op.attrs["cpu.scratch"] = tuple(x.offset for x in live.scratch[op])
    func.attrs["cpu.arena"] = arena
    return arena, max_live(every)
