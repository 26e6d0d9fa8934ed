"""Whether a schedule fits one direction of an attention and a target: `legal` says why not.

Extents are upper bounds, so that tiles may be larger than what they cover. Budgets of shared memory and registers are
counted from extents and the widths of what is held.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from aatc.ir.core import Op
from aatc.ir.dims import Dim
from aatc.ir.errors import ScheduleError
from aatc.ir.geo import attention_of
from aatc.ir.schedule import (
    Bind,
    Directive,
    Grain,
    Order,
    Pack,
    Reorder,
    Schedule,
    Split,
    SplitKeys,
    Stage,
    Unroll,
    Vectorize,
)
from aatc.ir.score.expr import postorder
from aatc.ir.score.program import Program
from aatc.ir.target import Target
from aatc.ir.types import TensorType, compute_name, itemsize

DIRECTIONS = ("forward", "backward")
#: A tile of more bytes is refused: no cache holds it, and offsets into work space have 32 bits on GPUs.
LARGEST_TILE = 1 << 30
LARGEST_UNROLL = 64
LARGEST_PARTS = 4096
_LOOPS, _INNER = ("g", "i", "j"), {"ii": "i", "jj": "j"}


@dataclass(frozen=True)
class Held:
    """A tensor that the programs read: along queries "i", keys "j", pairs "ij" or neither, ``width`` numbers each."""

    name: str
    along: str
    width: int


@dataclass(frozen=True)
class Workload:
    """One direction of an attention, as a schedule sees it. Extents that are not known are None.

    ``item`` is the bytes of a number, ``value`` the width of a carried value, ``pairs`` the numbers per pair that are
    live at once, ``operands`` what may be staged or packed, ``shared`` how many neighbouring problems have the same
    keys and values, ``unmerged`` the normaliser's name if it cannot merge sums over parts of the keys.
    """

    direction: str
    problems: int | None
    rows: int | None
    cols: int | None
    item: int
    value: int
    pairs: int
    operands: tuple[Held, ...] = ()
    mask: Program | None = field(default=None, repr=False)
    shared: int = 1
    unmerged: str = ""

    @staticmethod
    def of(op: Op, direction: str = "forward", *, double: bool = False) -> Workload:
        """That of a ``geo.attend`` or ``geo.kernel``; ``double``: as if in double precision."""
        programs, names = attention_of(op), op.attrs["names"]
        types: dict[str, TensorType] = {n: v.type for n, v in zip(names, op.operands, strict=True)}  # type: ignore[misc]
        q, k, v = (types[n] for n in names[:3])
        held = tuple(_held(n, p.attrs[1], p.rank, types[n]) for n, p in programs.declared().items())
        body = [e for e in postorder(programs.score.body, programs.carry.body) if e.is_pair]
        atoms = sum(e.fn in ("dot", "lookup", "sum") or (e.fn == "param" and e.is_pair) for e in body)
        return Workload(
            direction,
            _product(q.shape[0], q.shape[1]),
            _known(q.shape[2]),
            _known(k.shape[2]),
            itemsize("f64" if double or op.attrs.get("double") else compute_name(q.dtype)),
            int(v.shape[3]) if v.shape[3].is_static else 0,
            max(1, atoms) + (1 if direction == "forward" else 3),
            held,
            programs.mask,
            _shared(q, k, v),
            "" if programs.normalizer.merges else programs.normalizer.name,
        )

    def extent(self, axis: str) -> int | None:
        return {"g": self.problems, "i": self.rows, "j": self.cols}[axis]

    def width(self, along: str) -> int:
        """Numbers per query, or key, of all vectors along them."""
        return sum(x.width for x in self.operands if x.along == along)

    def bytes(self, what: str, s: Schedule) -> int:
        """Bytes of a tile of an operand, of the scores or of the output's sums."""
        found = next((x for x in self.operands if x.name == what), None)
        if found is None:
            found = Held("scores", "ij", 1) if what == "scores" else Held("out", "i", self.value)
        tile = s.heads * (s.rows if "i" in found.along else 1) * (s.cols if "j" in found.along else 1)
        return tile * found.width * self.item


def _held(name: str, axes: str, rank: int, t: TensorType) -> Held:
    tail = t.shape[len(axes) - rank :] if rank else ()
    return Held(name, "".join(c for c in "ij" if c in axes), math.prod(_known(d) or 1 for d in tail))


def _known(d: Dim) -> int | None:
    return int(d) if d.is_static else None


def _shared(q: TensorType, k: TensorType, v: TensorType) -> int:
    """Query heads per head of keys and values."""
    heads, *fewer = (_known(t.shape[1]) for t in (q, k, v))
    if not heads or not all(fewer):
        return 1
    return math.gcd(*(heads // n for n in fewer if n))


def _product(a: Dim, b: Dim) -> int | None:
    return int(a) * int(b) if a.is_static and b.is_static else None


def legal(schedule: Schedule, program: Workload, target: Target) -> None:
    """ScheduleError with the reason and a hint if ``schedule``, complete, does not fit ``program`` or ``target``."""
    for check in (
        _words,
        _splits,
        _grains,
        _nest,
        _order,
        _parts,
        _binds,
        _lanes,
        _vectors,
        _unrolls,
        _held_tiles,
        _packs,
    ):
        check(schedule, program, target)


def _refuse(directive: Directive | str, reason: str, hint: str) -> None:
    raise ScheduleError(f"{directive}: {reason}", hint=hint)


def _words(s: Schedule, p: Workload, t: Target) -> None:
    for d in s:
        if d.word not in t.directives:
            _refuse(d, f"the {t.backend} backend obeys no {d.word}", f"it obeys: {', '.join(t.directives)}")
    for kind in (Grain, Reorder, Order, SplitKeys):
        _once(kind, (d.word for d in s.every(kind)), s)
    _once(Split, (d.axis for d in s.every(Split)), s)
    _once(Bind, (d.axis for d in s.every(Bind)), s)
    _once(Stage, (d.what for d in s.every(Stage)), s)
    _once(Pack, (d.what for d in s.every(Pack)), s)
    _once(Unroll, (d.axis for d in s.every(Unroll)), s)
    _once(Vectorize, (d.word for d in s.every(Vectorize)), s)


def _once(kind: type[Directive], keys: Iterable[str], s: Schedule) -> None:
    twice = next((k for k, n in Counter(keys).items() if n > 1), None)
    if twice is not None:
        last = [d for d in s.every(kind) if twice in (d.word, *d.arguments)][-1]
        what = "" if twice == kind.word else f" of {twice}"
        _refuse(last, f"this is the second {kind.word}{what}", "leave one of them")


def _splits(s: Schedule, p: Workload, t: Target) -> None:
    for d in s.every(Split):
        if d.extent < 1:
            _refuse(d, "an extent is positive", f"write split({d.axis}, 64), say")
        if d.axis in _INNER and d.extent > s.extent(_INNER[d.axis]):
            outer = _INNER[d.axis]
            _refuse(d, f"tiles have {s.extent(outer)} along {outer} only", f"split {outer} to at least {d.extent}")
    for axis in _LOOPS:
        if not s.extent(axis):
            _refuse("a schedule", f"it does not split {axis}", f"add split({axis}, 64), say")
    size = s.heads * s.rows * max(s.cols, p.value) * p.item
    if size > LARGEST_TILE:
        largest = max(s.every(Split), key=lambda d: d.extent)
        _refuse(largest, f"a tile would hold {size} bytes, {LARGEST_TILE} at most may be", "split to smaller extents")


def _grains(s: Schedule, p: Workload, t: Target) -> None:
    for d in s.every(Grain):
        if d.axis != "j":
            _refuse(d, "masks are classified along the keys", f"write grain(j, {d.extent})")
        if not 1 <= d.extent <= s.cols:
            _refuse(d, f"a grain is between 1 and the extent of j, {s.cols}", f"write grain(j, {min(64, s.cols)})")


def _nest(s: Schedule, p: Workload, t: Target) -> None:
    for d in s.every(Reorder):
        if sorted(d.axes) != sorted(_LOOPS):
            _refuse(d, "it is to name each of g, i and j once", "write reorder(g, i, j)")
        if d.axes[-1] != "j":
            _refuse(d, "a row's sums are carried over its keys, whose loop is the innermost", "put j last")


def _order(s: Schedule, p: Workload, t: Target) -> None:
    for d in s.every(Order):
        if p.direction == "forward":
            _refuse(d, "a forward goes by rows; only a backward has an order", "leave it out, or give it backward")


def _parts(s: Schedule, p: Workload, t: Target) -> None:
    for d in s.every(SplitKeys):
        if not 1 <= d.parts <= LARGEST_PARTS:
            _refuse(d, f"the keys go in 1 to {LARGEST_PARTS} parts", "write split-keys(8), say")
        if p.direction == "backward":
            _refuse(
                d, "a backward goes over all keys of a row, or all rows of a key", "leave it out, or give it forward"
            )
        if p.unmerged:
            _refuse(d, f"{p.unmerged} cannot merge what it has gathered of parts of the keys", "leave it out")
        held = (p.problems or 1) * d.parts * (p.rows or 1) * (p.value + 2) * p.item
        if held > LARGEST_TILE:
            _refuse(d, f"sums of all parts would be {held} bytes, {LARGEST_TILE} at most may be", "cut in fewer parts")


def _binds(s: Schedule, p: Workload, t: Target) -> None:
    for d in s.every(Bind):
        if d.to not in t.levels:
            has = f"it has: {', '.join(t.levels)}" if t.levels else "its operations spread over cores by themselves"
            _refuse(d, f"the {t.backend} backend binds no loop to {d.to}", f"{has}; leave the directive out")
        if d.axis in _INNER:
            if d.to != "lanes":
                _refuse(d, f"the entries of a tile go to lanes, not to {d.to}", f"bind {_INNER[d.axis]} to {d.to}")
            if not s.extent(d.axis):
                _refuse(d, f"{d.axis} is not split", f"add split({d.axis}, 4): what one lane holds")
        elif d.to == "lanes":
            _refuse(d, "a loop over tiles goes to threads or workgroups", f"bind {d.axis * 2} to lanes")
        if d.axis == "j":
            _refuse(d, "rounds over the keys of a row hand its sums on", "bind g or i")
        if d.axis == "i" and p.direction == "backward" and s.order == "rows":
            _refuse(d, "by rows, blocks of queries add to the gradients of the same keys: a race", "bind g")


def lanes(s: Schedule) -> int:
    """Lanes of a workgroup: the blocks of a tile that its lanes hold."""
    bound = [axis for axis in _INNER if s.level(axis) == "lanes"]
    return math.prod(-(-s.extent(_INNER[axis]) // s.extent(axis)) for axis in bound)


def _lanes(s: Schedule, p: Workload, t: Target) -> None:
    if any(d.to == "lanes" for d in s.every(Bind)) and lanes(s) > t.workgroup:
        last = [d for d in s.every(Bind) if d.to == "lanes"][-1]
        _refuse(last, f"that makes {lanes(s)} lanes, {t.workgroup} a workgroup has at most", "split ii or jj to more")


def _vectors(s: Schedule, p: Workload, t: Target) -> None:
    for d in s.every(Vectorize):
        if d.axis not in ("j", "jj"):
            _refuse(d, "neighbours in memory are keys of a tile", f"write vectorize(jj, {d.count})")
        if d.count < 2 or d.count & (d.count - 1) or d.count * p.item > t.vector_bytes:
            most = t.vector_bytes // p.item
            has = f"vectors of {t.vector_bytes} bytes hold {most} numbers of {p.item}" if most else "it has no vectors"
            _refuse(d, f"no vector of {d.count} numbers: {has}", "give a power of two, 2 at least, that fits")
        extent = s.extent(d.axis) or s.cols
        if extent % d.count:
            _refuse(d, f"{d.count} do not divide the extent of {d.axis}, {extent}", f"split {d.axis} to a multiple")
    if s.extent("ii") and s.extent("jj") and t.registers:
        needed = registers(s, p, t)
        if needed > t.registers:
            block = next(d for d in reversed(s.directives) if isinstance(d, Split) and d.axis in _INNER)
            _refuse(block, f"the block needs {needed} registers of {t.registers}", "split ii or jj to less")


def registers(s: Schedule, p: Workload, t: Target) -> int:
    """Registers of a block of ``dot``: its sums, one row of vectors, and one number that is spread."""
    lanes_of = s.count(Vectorize, "jj") or max(1, t.vector_bytes // p.item)
    vectors = -(-s.extent("jj") // lanes_of)
    return s.extent("ii") * vectors + vectors + 1


def _unrolls(s: Schedule, p: Workload, t: Target) -> None:
    for d in s.every(Unroll):
        if not 1 <= d.count <= LARGEST_UNROLL:
            _refuse(d, f"a body is unrolled 1 to {LARGEST_UNROLL} times", f"write unroll({d.axis}, 4)")
        rounds = _rounds(d.axis, s, p)
        if rounds is not None and d.count > rounds:
            _refuse(d, f"the loop over {d.axis} has {rounds} rounds", f"write unroll({d.axis}, {max(1, rounds)})")


def _rounds(axis: str, s: Schedule, p: Workload) -> int | None:
    step = s.extent(axis)
    if axis in _INNER:
        return -(-s.extent(_INNER[axis]) // (step or 1))
    whole = p.extent(axis)
    return None if whole is None else -(-whole // step)


def _held_tiles(s: Schedule, p: Workload, t: Target) -> None:
    total: Counter[str] = Counter()
    known = [x.name for x in p.operands] + ["scores", "out"]
    for d in s.every(Stage):
        if d.space not in t.spaces:
            has = f"it has: {', '.join(t.spaces)}" if t.spaces else "it places tiles by itself"
            _refuse(d, f"the {t.backend} backend has no space {d.space}", f"{has}; leave the directive out")
        if d.what not in known:
            _refuse(d, f"the program has no operand {d.what}", f"there are: {', '.join(known)}")
        total[d.space] += p.bytes(d.what, s)
        room = _room(d.space, s, t)
        if total[d.space] > room:
            _refuse(
                d, f"{total[d.space]} bytes are staged, {room} there are", "split to smaller extents, or stage less"
            )


def _room(space: str, s: Schedule, t: Target) -> int:
    """Bytes of a space that one workgroup, or core, has."""
    return t.shared_bytes if space == "shared" else t.registers * t.vector_bytes * max(1, lanes(s))


def _packs(s: Schedule, p: Workload, t: Target) -> None:
    keys: Mapping[str, Held] = {x.name: x for x in p.operands if x.along == "j" and x.width > 1}
    for d in s.every(Pack):
        if d.what not in keys:
            there = f"there are: {', '.join(keys)}" if keys else "there are none"
            _refuse(d, f"{d.what} is no operand with a vector per key", there)
        vector = s.count(Vectorize, "jj") or s.count(Vectorize, "j") or 1
        if d.panel < 1 or d.panel % vector:
            _refuse(d, f"a panel holds a multiple of {vector} keys, 1 at least", f"write pack({d.what}, {vector * 4})")
        if d.panel > s.cols:
            _refuse(d, f"a tile has {s.cols} keys only", f"split j to at least {d.panel}")
        for where in key_blocks(s, p):
            if where.extent % d.panel and (p.cols is None or p.cols > where.extent):
                begin = f"blocks of keys begin at multiples of {where.extent}, within a panel"
                whole = replace(where, extent=max(1, where.extent // d.panel) * d.panel)
                _refuse(d, begin, f"write {whole}, or pack {d.what} in panels that divide {where.extent}")


def key_blocks(s: Schedule, p: Workload) -> list[Split | Grain]:
    """The directives by which blocks of keys begin: at any multiple of their extents, for the runs of a mask begin
    anywhere on its grain. A column kernel goes over whole tiles, whatever the mask."""
    split = Split("j", s.cols)
    if p.mask is None:
        return [split]
    runs = Grain("j", s.grain)
    return [runs, split] if p.direction == "backward" and s.order == "rows-and-columns" else [runs]
