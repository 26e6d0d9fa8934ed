"""Memory of tile programs: who may write it, what still shows what stood there, what nobody has written yet.

Values do not change: a tile is what its buffer held when it was loaded, and a buffer made of others what these held
then. A backend need not copy for it: a tile may be a view of its block, and a buffer one of those it was made of. So
only what `tile.alloc` makes is written, and not while something that may be a view of it is still to be read, be it in
a later round of a loop. A buffer without a fill is read where a store has written it before: all of it, or the very
block at the same positions. What `tile.guard` takes may be overwritten, so it is a tile of its own that nothing reads
afterwards.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from aatc.ir.access import access
from aatc.ir.blame import fail, sound
from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.dims import Dim, at_most, product
from aatc.ir.registry import lookup_op
from aatc.ir.types import TensorType

Ranges = Mapping[str, tuple[int, int | None]]


def check_memory(func: Func, ranges: Ranges) -> None:
    """VerifyError at the first operation that breaks a rule of above."""
    memory = _Memory(ranges)
    memory.block(func.body)
    memory.check_views()
    memory.check_guards()


@dataclass
class _Fresh:
    """A buffer without a fill: how deep it was made, and the store that writes all of it with its outermost loop."""

    depth: int
    store: Op | None = None
    block: Block | None = None
    within: Op | None = None


@dataclass
class _Memory:
    """One walk. Operations are numbered in order; a value lives from its own number to that of its last reader, and to
    the end of the outermost loop around that one which the value is older than."""

    ranges: Ranges
    at: int = 0
    path: list[Op] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    born: dict[Value, int] = field(default_factory=dict)
    home: dict[Value, Block] = field(default_factory=dict)
    last: dict[Value, int] = field(default_factory=dict)
    roots: dict[Value, tuple[Value, ...]] = field(default_factory=dict)  # what a view may show
    writes: dict[Value, list[tuple[int, Op]]] = field(default_factory=dict)
    fresh: dict[Value, _Fresh] = field(default_factory=dict)
    guards: list[tuple[Op, int]] = field(default_factory=list)

    def block(self, block: Block) -> set[Value]:
        """Walks a block; the values from outside that it reads."""
        self.blocks.append(block)
        read: set[Value] = set()
        for arg in block.args:
            self.home[arg] = block
        own = set(block.args)
        for op in block.ops:
            self.at += 1
            traits = lookup_op(op.name).traits
            for n, v in enumerate(op.operands):
                if n in traits.writes:
                    self._write(op, n, v)
                else:
                    self.last[v] = self.at
                    read.add(v)
                    if v in self.fresh:
                        self._read(op, v)
            if op.regions:
                inner = self._regions(op, traits.region)
                read |= inner
            self._define(op, block, traits.view)
            own.update(op.results)
        self.blocks.pop()
        return read - own

    def _regions(self, op: Op, kind: str) -> set[Value]:
        self.path.append(op)
        inner: set[Value] = set()
        for region in op.regions:
            inner |= self.block(region)
        self.path.pop()
        self.at += 1
        if kind == "branch":
            self.guards.append((op, self.at))
        else:
            for v in inner:
                self.last[v] = self.at
        return inner

    def _define(self, op: Op, block: Block, view: bool) -> None:
        sources: tuple[Value, ...] = ()
        for r in op.results:
            self.born[r], self.home[r] = self.at, block
            if view or isinstance(r.type, TensorType):
                sources = sources or tuple(
                    root for v in op.operands if isinstance(v.type, TensorType) for root in self.roots.get(v, (v,))
                )
                if sources:
                    self.roots[r] = sources
            if op.name == "tile.alloc" and "fill" not in op.attrs:
                self.fresh[r] = _Fresh(len(self.path))

    # --- writes --------------------------------------------------------------------------------------------
    def _write(self, op: Op, n: int, buffer: Value) -> None:
        if not isinstance(buffer.owner, Op) or buffer.owner.name != "tile.alloc":
            fail(
                op,
                f"{op.name} writes to %{buffer.name or '?'}, which tile.alloc has not made",
                "arguments, and what is made of other buffers, are only read",
            )
        self.writes.setdefault(buffer, []).append((self.at, op))
        fresh = self.fresh.get(buffer)
        if fresh is None:
            return
        if op.name != "tile.store" or op.attrs["add"]:
            self._read(op, buffer)
        elif fresh.store is None and sound(op, self._covers, op, fresh.depth):
            walked = [x for x in self.path[fresh.depth :] if x.regions[0].args[0] in op.operands]
            fresh.store, fresh.block, fresh.within = op, self.blocks[-1], walked[0] if walked else None

    def _covers(self, op: Op, depth: int) -> bool:
        """Whether a store, in all rounds of the loops around it, writes its whole buffer."""
        a, shape = access(op.attrs["axes"]), op.operands[1].type.shape  # type: ignore[attr-defined]
        extents = dict(zip(a.inside, shape[len(a.lead) :], strict=True))
        if a.lead == "g":
            extents["g"] = shape[0]
        elif a.lead:
            b, h = (Dim.of(d) for d in op.attrs["sizes"][:2])
            extents["g"] = product(b, h)
        walked = {p: extents[c] for c, p in zip(a.walks, op.operands[2:], strict=True)}
        for loop in self.path[depth:]:
            if loop.name != "tile.for":
                return False
            upper = Dim.of(loop.attrs["upper"])
            if not at_most(walked.get(loop.regions[0].args[0], Dim(1)), upper, self.ranges):
                return False
        return True

    def _read(self, op: Op, buffer: Value) -> None:
        """``op`` reads a buffer without a fill, or adds to it."""
        fresh = self.fresh[buffer]
        if fresh.store is not None and (fresh.within is None or fresh.within not in self.path):
            return
        if fresh.store is not None and fresh.block in self.blocks and _same_block(op, fresh.store):
            return
        what = f"%{buffer.name or '?'}, which has no fill, is {'added to' if op.operands[0] is not buffer else 'read'}"
        fail(op, f"{what} before all of it has been written", "give tile.alloc a fill, or store to it first")

    # --- after the walk ------------------------------------------------------------------------------------
    def check_views(self) -> None:
        for view, roots in self.roots.items():
            end = self.last.get(view, 0)
            for root in roots:
                writes = self.writes.get(root)
                if not writes:
                    continue
                k = bisect_right(writes, self.born[view], key=lambda w: w[0])
                if k < len(writes) and writes[k][0] < end:
                    fail(
                        writes[k][1],
                        f"%{root.name or '?'} is written while %{view.name or '?'}, which may be a view of it, is "
                        "still to be read",
                        "read it before, load it again after, or write to a buffer of its own",
                    )

    def check_guards(self) -> None:
        for op, end in self.guards:
            block = self.home[op.results[0]] if op.results else None
            for v in op.operands:
                if v in self.roots:
                    fail(
                        op, f"{op.name} may overwrite %{v.name or '?'}, a view of a buffer", "compute a tile of its own"
                    )
                if op.operands.count(v) != 1 or self.home[v] is not block or self.last[v] > end:
                    fail(
                        op,
                        f"{op.name} may overwrite %{v.name or '?'}, which is read elsewhere",
                        "read its result, or give it a tile of its own",
                    )


def _same_block(op: Op, store: Op) -> bool:
    """Whether ``op`` reaches the block that ``store`` writes in the same round, and no more."""
    if op.name not in ("tile.load", "tile.store"):
        return False
    at = 2 if op.name == "tile.store" else 1
    same = op.attrs["axes"] == store.attrs["axes"] and op.attrs.get("sizes") == store.attrs.get("sizes")
    return same and op.operands[at:] == store.operands[2:]
