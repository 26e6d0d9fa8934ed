"""Rules of what this backend's passes add to tile programs: planned storage, and layouts of what the library reads.

Storage: an operation with ``cpu.plan`` writes each result to [offset, offset + bytes) of its function's arena. A
loop's slots hold what it carries: its inits before the first round, the arguments of its body, what the body
yields, its results. Two values may share bytes only when they never live at the same time, or when an
operation overwrites exactly an operand that dies there and is not read once writing has begun (`Traits.replaces`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from aatc.backends.cpu.linear import linearize, overwritable, temporaries
from aatc.ir.blame import fail, sound
from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.layouts import layout_of
from aatc.ir.registry import lookup_op
from aatc.ir.types import LAYOUTS, TensorType, TileType, itemsize

Ranges = Mapping[str, tuple[int, int | None]]


def check(func: Func, ranges: Ranges) -> None:
    check_layouts(func)
    check_plan(func, ranges)


def check_layouts(func: Func) -> None:
    """What an operation assumes of its operands' strides has been established. Arguments may have any strides."""
    for op in func.body.walk():
        for v in op.operands[: _ROWS.get(op.name, 0)]:
            if layout_of(v) not in LAYOUTS:
                fail(
                    op,
                    f"{op.name} reads %{v.name or '?'} row by row, but its strides may be any",
                    "make it by a tile.token whose type says so: f32[...; rows]",
                )


#: How many operands of an operation must have layout "rows", from the first.
_ROWS = {"cpu.attention": 3, "cpu.attention_backward": 5}


@dataclass(frozen=True)
class _Place:
    """Bytes [start, stop) of the arena; ``value`` is who holds them, ``op`` what put it there."""

    start: int
    stop: int
    value: Value | None
    op: Op

    def overlaps(self, other: _Place) -> bool:
        return self.start < other.stop and other.start < self.stop

    def same(self, other: _Place) -> bool:
        return (self.start, self.stop) == (other.start, other.stop)


def check_plan(func: Func, ranges: Ranges) -> None:
    """Offsets are sound and no two values that live at the same time overlap."""
    places: dict[Value, _Place] = {}
    for op in func.body.walk():
        places.update((place.value, place) for place in _planned(op, ranges) if place.value is not None)
    if places or any("cpu.scratch" in op.attrs for op in func.body.walk()):
        arena = func.attrs.get("cpu.arena")
        if arena is None or arena < 0:
            first = next(op for op in func.body.walk() if op.attrs.keys() & {"cpu.plan", "cpu.scratch"})
            fail(first, f"a place in the arena of @{func.name}, which has none", f"@{func.name} {{cpu.arena = bytes}}")
        for place in places.values():
            if isinstance(arena, int) and place.stop > arena:
                fail(place.op, f"a tile ends at byte {place.stop} of an arena of {arena}")
        _Storage(arena, places, ranges).block(func.body, [], {})


def _planned(op: Op, ranges: Ranges) -> Iterator[_Place]:
    plan = op.attrs.get("cpu.plan")
    for offset in op.attrs.get("cpu.scratch", ()):
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            fail(op, f"scratch offset {offset!r} is no position in the arena")
    if plan is None:
        return
    if len(plan) != len(op.results):
        fail(op, f"{op.name} has {len(op.results)} results and {len(plan)} planned offsets")
    for offset, r in zip(plan, op.results, strict=True):
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < -1:
            fail(op, f"offset {offset!r} is no position in the arena")
        if offset >= 0 and isinstance(r.type, (TileType, TensorType)):
            size = itemsize(r.type.dtype)
            if offset % size:
                fail(op, f"offset {offset} is not a multiple of {size}, the bytes of {r.type.dtype}")
            yield _Place(offset, offset + _bytes(op, r.type, ranges), r, op)


def _bytes(op: Op, t: TileType | TensorType, ranges: Ranges) -> int:
    n = itemsize(t.dtype)
    for d in t.shape:
        high = sound(op, d.bounds, ranges)[1]
        if high is None or high < 0:
            fail(op, f"{t} has no largest size, yet a place in the arena")
        n *= high
    return n


class _Storage:
    """Walks blocks with the places that must stay untouched."""

    def __init__(self, arena: object, places: dict[Value, _Place], ranges: Ranges):
        self.arena, self.places, self.ranges = arena, places, ranges

    def block(self, block: Block, outside: list[_Place], slots: dict[Value, _Place]) -> None:
        """``outside``: places that live through the whole block. ``slots``: places of its arguments."""
        last = _last_uses(block)
        end = len(block.ops)
        live: dict[Value, _Place] = {a: p for a, p in slots.items() if last.get(a, -1) >= 0}
        for at, op in enumerate(block.ops):
            written = [self.places[r] for r in op.results if r in self.places]
            for n, place in enumerate(written):
                for other in written[:n]:
                    if place.overlaps(other):
                        self.clash(op, place, other)
                for other in outside:
                    if place.overlaps(other):
                        self.clash(op, place, other)
                for value, other in live.items():
                    if place.overlaps(other) and not self.replaces(op, place, value, other, last[value] == at):
                        self.clash(op, place, other)
            self.scratch(op, [*outside, *live.values(), *written])
            if op.regions:
                self.nested(op, at, outside, live, last)
            for r in op.results:
                if r in self.places:
                    live[r] = self.places[r]
            live = {v: p for v, p in live.items() if last.get(v, -1) > at}
        self.yields(block, end, slots)

    def nested(self, op: Op, at: int, outside: list[_Place], live: dict[Value, _Place], last: dict[Value, int]) -> None:
        (region,) = op.regions
        used = {v for inner in region.walk() for v in inner.operands}
        traits = lookup_op(op.name).traits
        carried = op.operands[traits.carried[0] :]
        # what is needed after the operation, or read inside it, keeps its bytes all through the body
        kept = [p for v, p in live.items() if v in used or last[v] > at]
        first = len(region.args) - len(carried)
        slots: dict[Value, _Place] = {}
        for n, result in enumerate(op.results):
            place = self.places.get(result)
            if place is None:
                source = live.get(carried[n]) if n < len(carried) else None
                place = _Place(source.start, source.stop, result, op) if source else None
            if place is None:
                continue
            for other in kept:
                if place.overlaps(other) and carried[n] is not other.value:
                    self.clash(op, place, other)
                if place.overlaps(other) and other.value in used:
                    self.clash(op, place, other)
            for m, init in enumerate(carried):
                source = live.get(init)
                if source and m != n and init is not carried[n] and place.overlaps(source):
                    self.clash(op, place, source)
            if traits.region == "branch":
                # its operands are the results unless the body runs: only what it yields may overwrite them
                kept = [*kept, *([live[carried[n]]] if carried[n] in live else [])]
            else:
                slots[region.args[first + n]] = _Place(place.start, place.stop, region.args[first + n], op)
        self.block(region, [*outside, *kept], slots)

    def yields(self, block: Block, end: int, slots: dict[Value, _Place]) -> None:
        """What a body yields moves to the slots at its end: what is yet to be moved lies in no other one."""
        if not slots:
            return
        out = block.ops[-1]
        carried = list(slots)
        offset = len(block.args) - len(out.operands)
        for n, v in enumerate(out.operands):
            source = self.places.get(v) or slots.get(v)
            if source is None:
                continue
            for arg in carried:
                own = block.args.index(arg) - offset
                slot = slots[arg]
                if source.overlaps(slot) and own != n:
                    self.clash(out, slot, source)
                if source.overlaps(slot) and own == n and not source.same(slot):
                    self.clash(out, slot, source)

    def scratch(self, op: Op, busy: list[_Place]) -> None:
        offsets = op.attrs.get("cpu.scratch", ())
        planned = "cpu.plan" in op.attrs or "cpu.scratch" in op.attrs
        needed = sound(op, temporaries, op) if planned and op.name in ("tile.map", "tile.mask") else []
        if len(offsets) != len(needed):
            fail(op, f"{op.name} needs {len(needed)} temporaries, {len(offsets)} are planned")
        taken = list(busy)
        for offset, (dtype, shape) in zip(offsets, needed, strict=True):
            place = _Place(offset, offset + _bytes(op, TileType.of(dtype, shape), self.ranges), None, op)
            if isinstance(self.arena, int) and place.stop > self.arena:
                fail(op, f"a temporary ends at byte {place.stop} of an arena of {self.arena}")
            for other in taken:
                if place.overlaps(other):
                    self.clash(op, place, other)
            taken.append(place)

    def replaces(self, op: Op, place: _Place, value: Value, other: _Place, dies: bool) -> bool:
        """Whether the result at ``place`` may take the bytes of ``value``, an operand that dies at ``op``."""
        traits = lookup_op(op.name).traits
        allowed = op.operands[traits.replaces] if traits.replaces is not None else []
        if not dies or value not in allowed or not place.same(other):
            return False
        if op.operands.count(value) != sum(v is value for v in allowed):
            return False  # it is also read where writing comes first
        n = next(k for k, r in enumerate(op.results) if r is place.value)
        if op.name == "tile.map":
            free = overwritable(sound(op, linearize, op), n)
            return value.type == op.results[n].type and all(k in free for k, v in enumerate(op.operands) if v is value)
        return not traits.region or allowed[n] is value

    def clash(self, op: Op, place: _Place, other: _Place) -> None:
        name = f"%{other.value.name}" if other.value is not None and other.value.name else "a tile"
        fail(
            op,
            f"bytes {place.start} to {place.stop} of the arena are written while {name} still holds "
            f"{other.start} to {other.stop}",
        )


def _last_uses(block: Block) -> dict[Value, int]:
    """Position of the last operation in ``block`` that uses a value, itself or in its regions."""
    last: dict[Value, int] = {}
    for at, op in enumerate(block.ops):
        for v in op.operands:
            last[v] = at
        for region in op.regions:
            for inner in region.walk():
                for v in inner.operands:
                    last[v] = at
    return last
