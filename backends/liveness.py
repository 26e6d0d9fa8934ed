"""Places of tiles in one block of memory: when each is live, which may take another's place, and offsets.

Tiles live in straight-line order (a loop body counts once; what is read inside a loop lives until its end).
With intervals known, offsets are chosen first-fit by decreasing size.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, field

from aatc.ir.core import Block, Op, Value
from aatc.ir.registry import lookup_op
from aatc.ir.types import TileType


@dataclass
class Interval:
    """A planned value: ``size`` bytes, live from position ``start`` to ``end`` inclusive."""

    size: int
    start: int
    end: int
    offset: int = -1


@dataclass
class Liveness:
    """Positions of operations and last uses, by one walk over a function or a block of one.

    size: bytes of a tile. replaceable: operands whose place a result may take, as far as the operation itself is
    concerned. temporaries: bytes of each buffer that an operation needs besides its results. view: whether a result of
    an operation lies outside; part: whether it lies within its first operand. moves: whether what a body yields in the
    place of another carried value is moved out of its way first, to places of its own (``moved``, by the yield and the
    number of its operand).
    """

    size: Callable[[TileType], int]
    replaceable: Callable[[Op, Value], list[Value]]
    temporaries: Callable[[Op], list[int]]
    view: Callable[[Op], bool] = lambda op: lookup_op(op.name).traits.view
    part: Callable[[Op], bool] = lambda op: False
    moves: bool = False
    position: int = 0
    intervals: dict[Value, Interval] = field(default_factory=dict)
    scratch: dict[Op, list[Interval]] = field(default_factory=dict)
    moved: dict[Op, dict[int, Interval]] = field(default_factory=dict)
    alias: dict[Value, Value] = field(default_factory=dict)
    shared: set[Value] = field(default_factory=set)  # those that others lie within

    def root(self, v: Value) -> Value:
        while v in self.alias:
            v = self.alias[v]
        return v

    def interval(self, v: Value) -> Interval | None:
        """Where a value lies; None for one that lies outside."""
        return self.intervals.get(self.root(v))

    def use(self, v: Value) -> None:
        v = self.root(v)
        if v in self.intervals:
            self.intervals[v].end = max(self.intervals[v].end, self.position)

    def block(self, block: Block) -> None:
        self.ops(block.ops, {*block.args})

    def ops(self, ops: list[Op], own: set[Value], kept: Set[Value] = frozenset()) -> None:
        """``own``: values that may be overwritten once nothing reads them any more, besides those of the operations.
        ``kept``: of these some that stand to the end, because what reads them is done several times."""
        last = {v: op for op in ops for v in _reads(op)}
        own = (own | {r for op in ops for r in op.results}) - kept
        for op in ops:
            self.position += 1
            for v in op.operands:
                self.use(v)
            dying = {v for v in op.operands if v in own and last[v] is op}
            if op.regions:
                self._loop(op, dying)
                continue
            if self.part(op):
                self.alias[op.results[0]] = op.operands[0]
                self.shared.add(self.root(op.operands[0]))
            elif not self.view(op):
                for r in op.results:
                    self._define_or_replace(op, r, dying)
            sizes = self.temporaries(op)
            if sizes:
                self.scratch[op] = [Interval(n, self.position, self.position) for n in sizes]
        for v in kept:
            self.use(v)

    def _define_or_replace(self, op: Op, r: Value, dying: set[Value]) -> None:
        """A result takes the place of an operand that dies here and is not read after the result is written."""
        taken = {self.root(x) for x in op.results if x is not r and x in self.alias}
        for v in self.replaceable(op, r):
            root = self.root(v)
            planned = root in self.intervals and root not in taken and root not in self.shared
            if v in dying and planned and v.type == r.type and op.operands.count(v) == 1:
                self.alias[r] = root
                return
        self._define(r)

    def _define(self, v: Value) -> None:
        if isinstance(v.type, TileType):
            self.intervals[v] = Interval(self.size(v.type), self.position, self.position)

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
            inside = {v for x in body.walk() for v in x.operands}
            for init, r in zip(op.operands[skip:], op.results, strict=True):
                free = self.root(init) in self.intervals and self.root(init) not in self.shared
                # a first value that rounds read, or yield, is to stand there in all of them
                if init in dying and free and op.operands.count(init) == 1 and init not in inside:
                    self.alias[r] = self.root(init)
                else:
                    self._define(r)
            for arg, r in zip(body.args[lead:], op.results, strict=True):
                self.alias[arg] = r
        before = {v: self.intervals[v].end for v in outside}
        self.block(body)
        if self.moves:
            self._move(op, body.ops[-1])
        self.position += 1
        for v in outside:
            if self.intervals[v].end > max(before[v], start):
                self.intervals[v].end = self.position  # read in some round: needed in all
        for r in op.results:
            self.use(r)

    def _move(self, op: Op, end: Op) -> None:
        """Places for what is yielded where another carried value lies, which is written at the same time."""
        slots = [self.interval(r) for r in op.results]
        for n, v in enumerate(end.operands):
            at = self.interval(v)
            if at is not None and any(at is x for k, x in enumerate(slots) if k != n):
                made = Interval(self.size(v.type), self.position, self.position)  # type: ignore[arg-type]
                self.moved.setdefault(end, {})[n] = made

    @property
    def every(self) -> list[Interval]:
        rest = [*self.scratch.values(), *(xs.values() for xs in self.moved.values())]
        return [*self.intervals.values(), *(x for xs in rest for x in xs)]


def _reads(op: Op) -> list[Value]:
    return [*op.operands, *(v for region in op.regions for inner in region.walk() for v in inner.operands)]


def place(intervals: list[Interval]) -> int:
    """Offsets first-fit by decreasing size; returns the bytes of all."""
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
