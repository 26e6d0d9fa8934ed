"""Rules of the tile level that need more than one operation: loops, accesses in bounds, tiles that meet.

Bounds hold for every size the module's dimensions may take: a loop position p of extent e satisfies
p + e <= upper and e <= step, so an access is safe when the buffer's extent is at least ``upper`` and the
tile's at least min(step, upper). No loop stands within another over the same axis: an axis and its round are one.
Buffers, and runs of a mask, are made outside of regions: a backend lays them out before any loop begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aatc.ir.access import Access, access, repeats, shares_heads
from aatc.ir.blame import fail, sound
from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.dims import Dim, at_most, product
from aatc.ir.errors import VerifyError
from aatc.ir.registry import lookup_op
from aatc.ir.tile_extents import Extent, Extents, of_round, results, table_extents
from aatc.ir.types import INDEX, RunsType, TensorType, TileType

Ranges = Mapping[str, tuple[int, int | None]]
#: Axes of which a loop takes one entry at a time.
_SINGLE = {"c": "feature", "s": "part"}


def check_tiles(func: Func, ranges: Ranges) -> None:
    """VerifyError at the first operation that leaves its buffer or its tile, or joins what does not fit."""
    for arg in func.args:
        if not isinstance(arg.type, TensorType):
            raise VerifyError(f"argument %{arg.name or '?'} of @{func.name} is no buffer but {arg.type}", at=func)
    _Tiles(ranges).block(func.body)


class _Tiles:
    """One walk: the loop of each position and the extents of each tile."""

    def __init__(self, ranges: Ranges):
        self.ranges = ranges
        self.loops: dict[Value, Op] = {}
        self.tiles: dict[Value, Extents] = {}
        self.axes: list[str] = []
        self.depth = 0  # regions around

    def extent(self, position: Value) -> Extent:
        return of_round(self.loops[position])

    def block(self, block: Block) -> None:
        for op in block.ops:
            if op.regions:
                sound(op, self.region, op)
            else:
                sound(op, self.single, op)

    # --- regions -------------------------------------------------------------------------------------------
    def region(self, op: Op) -> None:
        traits = lookup_op(op.name).traits
        skip, lead = traits.carried
        (body,) = op.regions
        carried = [self.tiles.get(v) for v in op.operands[skip:]]
        loop = traits.region == "loop"
        if loop:
            axis = op.attrs.get("axis", "j")
            if axis in self.axes:
                fail(op, f"a loop over {axis} within one over {axis}", "split the axis into two, or join the loops")
            if op.name in ("tile.sweep", "tile.sweep_part"):
                self.sweep(op)
            if "parts" in op.attrs:
                self.part(op, op.operands[skip - 1])
            self.loops[body.args[0]] = op
            self.axes.append(axis)
            self.tiles.update((a, e) for a, e in zip(body.args[lead:], carried, strict=True) if e is not None)
        self.depth += 1
        self.block(body)
        self.depth -= 1
        if loop:
            self.axes.pop()
        for v, e, r in zip(body.ops[-1].operands, carried, op.results, strict=True):
            if self.tiles.get(v) != e:
                fail(body.ops[-1], f"%{v.name or '?'} is as large as what it replaces only in some rounds")
            if e is not None:
                self.tiles[r] = e

    def sweep(self, op: Op) -> None:
        """The runs are those of the loops around: the same blocks, of the same problems and extents."""
        runs, g, block = op.operands[:3]
        kind: RunsType = runs.type  # type: ignore[assignment]
        source = runs.owner
        if not isinstance(source, Op) or source.name != "tile.classify":
            fail(op, f"%{runs.name or '?'} are no runs that tile.classify makes")
        along = op.attrs.get("axis", "j")
        if source.attrs.get("over", "j") != along:
            fail(op, f"a sweep over {along} goes over runs along {source.attrs.get('over', 'j')}")
        across = "i" if along == "j" else "j"
        b, h, n, m = (Dim.of(d) for d in source.attrs["sizes"])
        extents = {"i": n, "j": m}
        for p, letter, step, most in (
            (g, "g", kind.heads, product(b, h)),
            (block, across, kind.block, extents[across]),
        ):
            loop = self.loop(op, p, letter)
            if loop.attrs["step"] != step:
                fail(op, f"runs of blocks of {step} along {letter}, in a loop in steps of {loop.attrs['step']}")
            self.inside(op, most, loop, f"axis {letter} of the runs")
        if not at_most(extents[along], _upper(op), self.ranges):
            fail(op, f"out of bounds: runs along {along} go up to {extents[along]}, the sweep up to {_upper(op)}")

    def part(self, op: Op, position: Value) -> None:
        """All parts of the axis are gone over, and no others."""
        upper = _upper(self.loop(op, position, "s"))
        if upper != op.attrs["parts"]:
            fail(op, f"an axis in {op.attrs['parts']} parts, in a loop over {upper} of them", "make both the same")

    def loop(self, op: Op, position: Value, letter: str) -> Op:
        """The loop that a position along ``letter`` is of."""
        loop = self.loops.get(position)
        if loop is None:
            fail(op, f"position %{position.name or '?'} is not the position of a loop")
        axis = loop.attrs.get("axis", "j")
        if axis != letter:
            fail(op, f"axis {letter} is accessed at a position of a loop over {axis}")
        if letter in _SINGLE and loop.attrs["step"] != 1:
            fail(op, f"one {_SINGLE[letter]} is taken at a position of a loop in steps of {loop.attrs['step']}")
        return loop

    # --- single operations ---------------------------------------------------------------------------------
    def single(self, op: Op) -> None:
        if self.depth and any(isinstance(r.type, (TensorType, RunsType)) for r in op.results):
            fail(op, f"{op.name} makes %{op.results[0].name or '?'} inside of a region", "make it before the loops")
        check = _CHECKS.get(op.name)
        if check is not None:
            check(self, op)
        elif any(v.type == INDEX for v in op.operands):
            fail(op, f"{op.name} takes no positions of loops")
        made = [r for r in op.results if isinstance(r.type, TileType)]
        if made:
            found = results(op, self.tiles, self.extent)
            for r, extents in zip(made, found, strict=True):
                if any(isinstance(e, int) and e > int(d) for e, d in zip(extents, r.type.shape, strict=True)):  # type: ignore[attr-defined]
                    fail(op, f"{r.type} has no room for {' by '.join(map(_shown, extents))} entries")
                self.tiles[r] = extents

    def load(self, op: Op) -> None:
        self.access(op, op.operands[0], op.operands[1:], op.results[0].type)

    def store(self, op: Op) -> None:
        panel, loop = op.operands[1].type.panel, self.loops.get(op.operands[-1])  # type: ignore[attr-defined]
        if panel and loop is not None and loop.attrs["step"] % panel:
            fail(op, f"panels of {panel} are written as a whole", "make the step of the loop a multiple of that")
        self.access(op, op.operands[1], op.operands[2:], op.operands[0].type)
        a = access(op.attrs["axes"])
        at = {c: self.extent(p) for c, p in zip(a.walks, op.operands[2:], strict=True)}
        where = dict(zip(a.inside, op.operands[1].type.shape[len(a.lead) :], strict=True))  # type: ignore[attr-defined]
        for n, (c, have) in enumerate(zip(a.tile, self.tiles[op.operands[0]], strict=True)):
            broad = n == 0 if c == "1" else a.inside == "ij" and where.get(c) == 1  # what is added is summed there
            want: Extent = at[c] if c in at else 1 if c == "1" else int(where[c])
            if have != want and not (broad and op.attrs["add"]):
                fail(op, f"a tile of {_shown(have)} entries along axis {n} is stored where {_shown(want)} are")

    def access(self, op: Op, buffer: Value, positions: Sequence[Value], tile: Any) -> None:
        """A load or store stays inside its buffer and its tile."""
        a, shape = access(op.attrs["axes"]), buffer.type.shape  # type: ignore[attr-defined]
        repeated = op.name == "tile.load" and repeats(op)
        if repeated:
            self.room(op, tile, 0, self.loop(op, positions[0], "g"))
        at = {c: self.loop(op, p, c) for c, p in zip(a.walks, positions[repeated:], strict=True)}
        if a.lead:
            self.problems(op, a.lead, shape, at["g"])
            self.room(op, tile, 0, at["g"])
        for letter, extent in zip(a.inside, shape[len(a.lead) :], strict=True):
            if letter in "de":
                have = tile.shape[1 + (a.tile[2] == letter)]
                if have != extent:
                    fail(op, f"{tile} has no room for the {extent} features of {buffer.type}: it has one for {have}")
                continue
            if extent != 1 or letter in _SINGLE or not _broadcasts(op, a):
                self.inside(op, extent, at[letter], f"axis {letter} of {buffer.type}")
            if letter not in _SINGLE:
                self.room(op, tile, a.tile.index(letter), at[letter])
                self.borders(op, buffer, at[letter])

    def borders(self, op: Op, buffer: Value, loop: Op) -> None:
        """Blocks of tokens begin where panels do: these are read and written from their beginning on. Rounds of a loop
        begin at multiples of its step, or if it goes over runs at any multiple of their grain."""
        panel, first = buffer.type.panel, loop.operands[0] if loop.operands else None  # type: ignore[attr-defined]
        runs = first is not None and isinstance(first.type, RunsType)
        unit = first.type.grain if runs else loop.attrs["step"]  # type: ignore[union-attr]
        upper = _upper(loop)
        if not panel or unit % panel == 0 or (upper.is_static and int(upper) <= unit):
            return
        what = f"runs begin at multiples of {unit}" if runs else f"rounds of the loop begin at multiples of {unit}"
        fail(op, f"{what}, within a panel of {buffer.type}", f"make {'the grain' if runs else 'the step'} whole panels")

    def problems(self, op: Op, lead: str, shape: Sequence[Dim], loop: Op) -> None:
        """A position along g, in a buffer whose first axes are ``lead``."""
        if lead == "g":
            self.inside(op, shape[0], loop, "axis g of the buffer")
        if "sizes" not in op.attrs:
            return
        sizes = dict(zip("bh", (Dim.of(d) for d in op.attrs["sizes"]), strict=False))
        for letter, have in zip(lead, shape, strict=False):
            if letter == "g":
                continue
            n = sizes[letter]
            if have not in (1, n) and not (letter == "h" and shares_heads(have, n)):
                fail(op, f"axis {letter} of the buffer has extent {have}; it can be 1 or {n}")
        most = product(sizes["b"], sizes["h"])
        if not at_most(_upper(loop), most, self.ranges):
            fail(op, f"a loop up to {_upper(loop)} runs past the {most} problems of the buffer")

    def inside(self, op: Op, extent: Dim, loop: Op, what: str) -> None:
        if not at_most(_upper(loop), extent, self.ranges):
            fail(op, f"out of bounds: a loop up to {_upper(loop)} walks {what}, whose extent is {extent}")

    def room(self, op: Op, tile: Any, axis: int, loop: Op) -> None:
        """The tile's extent along ``axis`` holds what one round of the loop touches."""
        step, extent = Dim(loop.attrs["step"]), tile.shape[axis]
        if not at_most(step, extent, self.ranges) and not at_most(_upper(loop), extent, self.ranges):
            fail(op, f"a round of the loop touches {step} of {_upper(loop)}, the tile {tile} holds {extent}")

    def fill(self, op: Op) -> None:
        a, t = access(op.attrs["axes"]), op.results[0].type
        for c, p in zip(a.walks, op.operands, strict=True):
            loop = self.loop(op, p, c)
            if c not in _SINGLE:
                self.room(op, t, a.tile.index(c), loop)

    def position(self, op: Op) -> None:
        axis = op.attrs["axes"]
        loop = self.loop(op, op.operands[0], axis if axis in "ij" else "g")
        self.room(op, op.results[0].type, {"i": 1, "j": 2}.get(axis, 0), loop)
        if axis in "bh":
            self.problems(op, "", (), loop)

    def table(self, op: Op) -> None:
        """`tile.lookup`, `tile.scatter`: which problem's part of a table is reached."""
        at = 1 if op.name == "tile.scatter" else 0
        table, g, *tiles = op.operands[at:]
        axes, shape = op.attrs["axes"], table.type.shape  # type: ignore[attr-defined]
        loop = self.loop(op, g, "g")
        self.problems(op, axes.rstrip("tu"), shape, loop)
        for c, extent in zip(axes, shape, strict=True):  # without problems there is nothing to look up
            if c not in "bh" and not at_most(Dim(1), extent, self.ranges):
                fail(op, f"{table.type} may be empty: no position is in it")
        if op.name == "tile.lookup":
            self.room(op, op.results[0].type, 0, loop)
            return
        value = op.operands[0]
        want, extents = table_extents(op, self.extent(g), self.tiles, tiles)
        have = tuple(int(d) for d in value.type.shape)  # type: ignore[attr-defined]
        if have[1:] != want[1:] or self.tiles[value] != extents:
            fail(op, f"{op.name} adds {value.type}, and is given positions for {want[1]} by {want[2]} per problem")
        self.room(op, value.type, 0, loop)


def _broadcasts(op: Op, a: Access) -> bool:
    """Whether an axis of extent 1 stands for any position."""
    if op.name == "tile.store":
        return op.attrs["add"] and a.inside == "ij"
    return a.inside == "ij" or a.lead not in ("", "g")


def _shown(extent: Extent) -> str:
    return str(extent) if isinstance(extent, int) else f"a round of %{extent.name or '?'}"


def _upper(loop: Op) -> Dim:
    return Dim.of(loop.attrs["upper"])


_CHECKS = {
    "tile.load": _Tiles.load,
    "tile.store": _Tiles.store,
    "tile.fill": _Tiles.fill,
    "tile.position": _Tiles.position,
    "tile.lookup": _Tiles.table,
    "tile.scatter": _Tiles.table,
}
