"""Rules of the tile level that need more than one operation: accesses in bounds, planned storage.

Bounds hold for every size the module's dimensions may take: a loop position p of extent e satisfies
p + e <= upper and e <= step, so an access is safe when the buffer's extent is at least ``upper`` and the
tile's at least min(step, upper).

Storage: an operation with ``plan`` writes each result to [offset, offset + bytes) of its function's arena. A
loop's slots hold what it carries: its inits before the first round, the arguments of its body, what the body
yields, its results. Two values may share bytes only when they never live at the same time, or when an
operation overwrites exactly an operand that dies there and is not read once writing has begun (`IN_PLACE`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.errors import VerifyError
from aatc.ir.score.linear import linearize, overwritable, temporaries
from aatc.ir.types import TensorType, TileType, itemsize

Ranges = Mapping[str, tuple[int, int | None]]

#: Operands that a result may replace in place, by operation: a slice of the operand list.
IN_PLACE = {
    "tile.map": slice(0, None),
    "tile.mask": slice(0, 1),
    "tile.dot": slice(2, None),
    "tile.reduce": slice(1, None),
    "tile.for": slice(0, None),
    "tile.sweep": slice(3, None),
    "tile.guard": slice(0, None),
}
_CARRIES = {"tile.for": 0, "tile.sweep": 3, "tile.guard": 0}  # first carried operand
_LOOPS = ("tile.for", "tile.sweep")


def _fail(op: Op, message: str, hint: str | None = None) -> NoReturn:
    from aatc.ir.verifier import fail

    fail(op, message, hint)


def _sound(op: Op, check: Callable[..., Any], *args: Any) -> Any:
    """``check(*args)``, which reads ``op`` as if it made sense; a text need not."""
    try:
        return check(*args)
    except VerifyError:
        raise
    except Exception as e:
        _fail(op, f"{op.name} is malformed: {type(e).__name__}: {e}")


def _at_most(a: Dim, b: Dim, ranges: Ranges) -> bool:
    """a <= b whatever the dimensions are."""
    try:
        return (b - a).bounds(ranges)[0] >= 0
    except ValueError:
        return False


# --- accesses ----------------------------------------------------------------------------------------------
def check_accesses(func: Func, ranges: Ranges) -> None:
    """Every load and store stays inside its buffer and its tile."""
    loops: dict[Value, Op] = {}
    for op in func.body.walk():
        if op.name in _LOOPS:
            loops[op.regions[0].args[0]] = op
        elif op.name == "tile.load":
            tile, buffer, *at = op.results[0], *op.operands
            _sound(op, _check_access, op, buffer, at, tile.type, loops, ranges)
        elif op.name == "tile.store":
            tile, buffer, *at = op.operands
            _sound(op, _check_access, op, buffer, at, tile.type, loops, ranges)
    check_layouts(func)


def check_layouts(func: Func) -> None:
    """What an operation assumes of its operands' strides has been established. Arguments may have any strides."""
    known: dict[Value, str] = {}
    for op in func.body.walk():
        if op.name == "tile.alloc":
            known[op.results[0]] = "contiguous"
        elif op.name == "tile.token" and "layout" in op.attrs:
            known[op.results[0]] = op.attrs["layout"]
        for v in op.operands[: _ROWS.get(op.name, 0)]:
            if v not in known:
                _fail(
                    op,
                    f"{op.name} reads %{v.name or '?'} row by row, but its strides may be any",
                    'make it by a tile.token with layout "rows"',
                )


#: How many operands of an operation must have layout "rows", from the first.
_ROWS = {"tile.library": 3, "tile.library_backward": 5}


def _check_access(
    op: Op, buffer: Any, positions: list[Value], tile: Any, loops: dict[Value, Op], ranges: Ranges
) -> None:
    axes = op.attrs["axes"]
    shape = buffer.type.shape
    for p in positions:
        if p not in loops:
            _fail(op, f"position %{p.name or '?'} is not the position of a loop")
    if axes == "gij":
        _check_pair_access(op, shape, [loops[p] for p in positions], tile, ranges)
        return
    if axes == "":
        if any(d != 1 for d in shape):
            _fail(op, f"{op.name} without axes needs a buffer of one number, not {buffer.type}")
        return
    if len(shape) != len(axes):
        _fail(op, f"{op.name} with axes {axes!r} needs a buffer of rank {len(axes)}, not {buffer.type}")
    walking = iter(positions)
    for axis, letter in enumerate(axes):
        if letter == "d":
            if not _at_most(shape[axis], tile.shape[2], ranges):
                _fail(op, f"{tile} has no room for the {shape[axis]} features of {buffer.type}")
            continue
        loop = loops[next(walking)]
        _check_extent(op, shape[axis], loop, ranges, f"axis {letter} of {buffer.type}")
        room = {"g": 0, "i": 1, "j": 2}.get(letter)
        if letter == "j" and axes == "gjd":
            room = 1
        _check_room(op, tile, room, loop, ranges)


def _check_pair_access(op: Op, shape, loops: list[Op], tile: TileType, ranges: Ranges) -> None:
    if len(shape) != 4 or "sizes" not in op.attrs:
        _fail(op, f"{op.name} with axes 'gij' needs a buffer of rank 4 and sizes (B, H, N, M)")
    b, h, *_ = (Dim.of(d) for d in op.attrs["sizes"])
    for d, (have, want) in enumerate(((shape[0], b), (shape[1], h))):
        if have != 1 and have != want:
            _fail(op, f"extent {d} of the pair buffer is {have}; it can be 1 or {want}")
    if b.is_static or h.is_static:
        problems = h * int(b) if b.is_static else b * int(h)
        if not _at_most(_upper(loops[0]), problems, ranges):
            _fail(op, f"a loop up to {_upper(loops[0])} runs past the {problems} problems of the pair buffer")
    for axis, loop in ((2, loops[1]), (3, loops[2])):
        if shape[axis] != 1:
            _check_extent(op, shape[axis], loop, ranges, f"extent {axis} of the pair buffer")
            _check_room(op, tile, axis - 1, loop, ranges)


def _check_extent(op: Op, extent: Dim, loop: Op, ranges: Ranges, what: str) -> None:
    if not _at_most(_upper(loop), extent, ranges):
        _fail(op, f"out of bounds: a loop up to {_upper(loop)} walks {what}, whose extent is {extent}")


def _check_room(op: Op, tile: TileType, axis: int | None, loop: Op, ranges: Ranges) -> None:
    """The tile's extent along ``axis`` (None: one) holds what one round of the loop touches."""
    step, extent = Dim(loop.attrs["step"]), tile.shape[axis] if axis is not None else Dim(1)
    if not _at_most(step, extent, ranges) and not _at_most(_upper(loop), extent, ranges):
        _fail(op, f"a round of the loop touches {step} of {_upper(loop)}, the tile {tile} holds {extent}")


def _upper(loop: Op) -> Dim:
    return Dim.of(loop.attrs["upper"])


# --- storage -----------------------------------------------------------------------------------------------
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
    if places or any("scratch" in op.attrs for op in func.body.walk()):
        arena = func.attrs.get("arena")
        for place in places.values():
            if isinstance(arena, int) and place.stop > arena:
                _fail(place.op, f"a tile ends at byte {place.stop} of an arena of {arena}")
        _Storage(arena, places, ranges).block(func.body, [], {})


def _planned(op: Op, ranges: Ranges) -> Iterator[_Place]:
    plan = op.attrs.get("plan")
    for offset in op.attrs.get("scratch", ()):
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            _fail(op, f"scratch offset {offset!r} is no position in the arena")
    if plan is None:
        return
    if len(plan) != len(op.results):
        _fail(op, f"{op.name} has {len(op.results)} results and {len(plan)} planned offsets")
    for offset, r in zip(plan, op.results, strict=True):
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < -1:
            _fail(op, f"offset {offset!r} is no position in the arena")
        if offset >= 0 and isinstance(r.type, (TileType, TensorType)):
            size = itemsize(r.type.dtype)
            if offset % size:
                _fail(op, f"offset {offset} is not a multiple of {size}, the bytes of {r.type.dtype}")
            yield _Place(offset, offset + _bytes(op, r.type, ranges), r, op)


def _bytes(op: Op, t: TileType | TensorType, ranges: Ranges) -> int:
    n = itemsize(t.dtype)
    for d in t.shape:
        high = _sound(op, d.bounds, ranges)[1]
        if high is None or high < 0:
            _fail(op, f"{t} has no largest size, yet a place in the arena")
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
        carried = op.operands[_CARRIES[op.name] :] if op.name in _CARRIES else []
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
            if op.name == "tile.guard":
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
        offsets = op.attrs.get("scratch", ())
        planned = "plan" in op.attrs or "scratch" in op.attrs
        needed = _sound(op, temporaries, op) if planned and op.name in ("tile.map", "tile.mask") else []
        if len(offsets) != len(needed):
            _fail(op, f"{op.name} needs {len(needed)} temporaries, {len(offsets)} are planned")
        taken = list(busy)
        for offset, (dtype, shape) in zip(offsets, needed, strict=True):
            place = _Place(offset, offset + _bytes(op, TileType.of(dtype, shape), self.ranges), None, op)
            if isinstance(self.arena, int) and place.stop > self.arena:
                _fail(op, f"a temporary ends at byte {place.stop} of an arena of {self.arena}")
            for other in taken:
                if place.overlaps(other):
                    self.clash(op, place, other)
            taken.append(place)

    def replaces(self, op: Op, place: _Place, value: Value, other: _Place, dies: bool) -> bool:
        """Whether the result at ``place`` may take the bytes of ``value``, an operand that dies at ``op``."""
        allowed = op.operands[IN_PLACE[op.name]] if op.name in IN_PLACE else []
        if not dies or value not in allowed or not place.same(other):
            return False
        if op.operands.count(value) != sum(v is value for v in allowed):
            return False  # it is also read where writing comes first
        n = next(k for k, r in enumerate(op.results) if r is place.value)
        if op.name == "tile.map":
            free = overwritable(_sound(op, linearize, op), n)
            return value.type == op.results[n].type and all(k in free for k, v in enumerate(op.operands) if v is value)
        return op.name not in _CARRIES or allowed[n] is value

    def clash(self, op: Op, place: _Place, other: _Place) -> None:
        name = f"%{other.value.name}" if other.value is not None and other.value.name else "a tile"
        _fail(
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
