"""Rules of the tile level that need more than one operation: accesses in bounds.

Bounds hold for every size the module's dimensions may take: a loop position p of extent e satisfies
p + e <= upper and e <= step, so an access is safe when the buffer's extent is at least ``upper`` and the
tile's at least min(step, upper).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aatc.ir.access import Access, access, repeats
from aatc.ir.blame import fail, sound
from aatc.ir.core import Func, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.registry import lookup_op
from aatc.ir.types import TileType

Ranges = Mapping[str, tuple[int, int | None]]


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
        if lookup_op(op.name).traits.region == "loop":
            loops[op.regions[0].args[0]] = op
        elif op.name == "tile.load":
            tile, buffer, *at = op.results[0], *op.operands
            sound(op, _check_access, op, buffer, at, tile.type, loops, ranges)
        elif op.name == "tile.store":
            tile, buffer, *at = op.operands
            sound(op, _check_access, op, buffer, at, tile.type, loops, ranges)


def _check_access(
    op: Op, buffer: Any, positions: list[Value], tile: Any, loops: dict[Value, Op], ranges: Ranges
) -> None:
    a, shape = access(op.attrs["axes"]), buffer.type.shape
    for p in positions:
        if p not in loops:
            fail(op, f"position %{p.name or '?'} is not the position of a loop")
    repeated = op.name == "tile.load" and repeats(op)
    if repeated:
        _check_room(op, tile, 0, loops[positions[0]], ranges)
    at = dict(zip(a.walks, (loops[p] for p in positions[repeated:]), strict=True))
    for letter, loop in at.items():
        if loop.attrs.get("axis", "j") != letter and letter != "c":
            fail(op, f"axis {letter} is accessed at a position of a loop over {loop.attrs.get('axis', 'j')}")
    _check_problems(op, a, shape, at, ranges)
    if "g" in at:
        _check_room(op, tile, 0, at["g"], ranges)
    for letter, extent in zip(a.inside, shape[len(a.lead) :], strict=True):
        if letter in "de":
            if not _at_most(extent, tile.shape[1 + (a.tile[2] == letter)], ranges):
                fail(op, f"{tile} has no room for the {extent} features of {buffer.type}")
        elif extent != 1 or (op.name == "tile.store" and not op.attrs["add"]):
            _check_extent(op, extent, at[letter], ranges, f"axis {letter} of {buffer.type}")
            if letter != "c":
                _check_room(op, tile, a.tile.index(letter), at[letter], ranges)


def _check_problems(op: Op, a: Access, shape: tuple[Dim, ...], at: dict[str, Op], ranges: Ranges) -> None:
    if a.lead == "g":
        _check_extent(op, shape[0], at["g"], ranges, "axis g of the buffer")
    if a.lead in ("", "g"):
        return
    sizes = dict(zip("bh", (Dim.of(d) for d in op.attrs["sizes"]), strict=False))
    b, h = sizes["b"], sizes["h"]
    for letter, have in zip(a.lead, shape, strict=False):
        divides = letter == "h" and have.is_static and h.is_static and int(have) > 0 and int(h) % int(have) == 0
        if have not in (1, sizes[letter]) and not divides:
            fail(op, f"axis {letter} of the buffer has extent {have}; it can be 1 or {sizes[letter]}")
    if b.is_static or h.is_static:
        problems = h * int(b) if b.is_static else b * int(h)
        if not _at_most(_upper(at["g"]), problems, ranges):
            fail(op, f"a loop up to {_upper(at['g'])} runs past the {problems} problems of the buffer")


def _check_extent(op: Op, extent: Dim, loop: Op, ranges: Ranges, what: str) -> None:
    if not _at_most(_upper(loop), extent, ranges):
        fail(op, f"out of bounds: a loop up to {_upper(loop)} walks {what}, whose extent is {extent}")


def _check_room(op: Op, tile: TileType, axis: int | None, loop: Op, ranges: Ranges) -> None:
    """The tile's extent along ``axis`` (None: one) holds what one round of the loop touches."""
    step, extent = Dim(loop.attrs["step"]), tile.shape[axis] if axis is not None else Dim(1)
    if not _at_most(step, extent, ranges) and not _at_most(_upper(loop), extent, ranges):
        fail(op, f"a round of the loop touches {step} of {_upper(loop)}, the tile {tile} holds {extent}")


def _upper(loop: Op) -> Dim:
    return Dim.of(loop.attrs["upper"])
