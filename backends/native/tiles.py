"""Where a tile lies while a task runs: a block of the task's scratch memory, or a view of a buffer.

A tile is rows of numbers next to each other. One whose type has a single column, a number per row, is a line of
numbers along i instead, so that element-wise code takes both as vectors. Tiles in scratch memory have rows of whole
vectors and some rows to spare: code may read and write behind the last column and row, where anything stands. Views
have neither.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from aatc.backends.native.isa import Isa
from aatc.backends.native.llvm import MEMORY, Val, index, size_of
from aatc.ir.access import access
from aatc.ir.core import Op, Value
from aatc.ir.layouts import layout_of
from aatc.ir.types import TensorType, TileType

#: Rows that a product computes at once, at most; tiles in scratch memory have room for a last block.
MOST_ROWS = 8
ALIGN = 64


@dataclass(frozen=True)
class Tile:
    """``base``: address of the first element. ``row``: elements from one row to the next. ``rows``, ``cols``: extents
    of this round, i64. ``shape``: extents of the type. ``local``: in scratch memory. ``panel``: columns of a panel
    where the tile is a part of a buffer in panels, else 0; ``together``: features next to each other in one.
    ``filled``: whether there is anything in it, where it may be left alone: a sum of nothing, which is only added."""

    base: Val
    row: Val
    rows: Val
    cols: Val
    shape: tuple[int, int]
    dtype: str
    local: bool
    panel: int = 0
    together: int = 1
    filled: Val | None = None

    @property
    def memory(self) -> str:
        return MEMORY[self.dtype]

    @property
    def line(self) -> bool:
        """Whether its numbers lie along i."""
        return self.shape[1] == 1

    @property
    def scalar(self) -> bool:
        return self.shape == (1, 1)

    def of(self, rows: Val, cols: Val) -> Tile:
        return replace(self, rows=rows, cols=cols)


def tile_shape(t: TileType) -> tuple[int, int]:
    """Extents along i and j of a type; problems are taken one by one."""
    return int(t.shape[1]), int(t.shape[2])


def lanes_of(isa: Isa, dtype: str = "f32") -> int:
    """Numbers of a vector; integers and truth values go along with f32."""
    return max(1, isa.vector_bytes // (8 if dtype == "f64" else 4))


def row_length(isa: Isa, shape: tuple[int, int]) -> int:
    """Elements from one row of a tile in scratch memory to the next."""
    if shape[1] == 1:
        return 1
    lanes = lanes_of(isa)
    return -(-shape[1] // lanes) * lanes


def scratch_bytes(isa: Isa, t: TileType) -> int:
    """Bytes of a tile in scratch memory, with what may be touched behind it."""
    rows, cols = tile_shape(t)
    if rows > 1:
        rows += MOST_ROWS - 1
    n = (rows * row_length(isa, (rows, cols)) + lanes_of(isa)) * size_of(MEMORY[t.dtype])
    return -(-n // ALIGN) * ALIGN


def placed(isa: Isa, base: Val, t: TileType, rows: Val, cols: Val) -> Tile:
    """A tile in scratch memory."""
    shape = tile_shape(t)
    return Tile(base, index(row_length(isa, shape)), rows, cols, shape, t.dtype, local=True)


def is_view(op: Op) -> bool:
    """Whether a load needs no copy: elements of its type, in rows of features, or of numbers, next to each other."""
    if op.name != "tile.load":
        return False
    buffer: TensorType = op.operands[0].type  # type: ignore[assignment]
    tile: TileType = op.results[0].type  # type: ignore[assignment]
    if buffer.dtype != tile.dtype or buffer.dtype == "bool":
        return False
    if buffer.panel:
        return True
    inside, layout = access(op.attrs["axes"]).inside, layout_of(op.operands[0])
    if not isinstance(op.operands[0].owner, Op):
        layout = layout or "rows"  # the caller sees to it
    if inside == "":
        return True
    if inside in ("ic", "jc") or (any(d == 1 for d in buffer.shape[-len(inside) :]) and inside == "ij"):
        return False
    wide = inside in ("id", "jd", "de", "d") and int(tile.shape[2]) > 1
    return layout == "contiguous" or (wide and layout == "rows")


def needs_scratch(op: Op, v: Value) -> bool:
    """Whether a result of ``op`` lies in scratch memory of its own."""
    return isinstance(v.type, TileType) and not is_view(op) and not is_part(op)


def is_part(op: Op) -> bool:
    """Whether a slice is a view of its tile: neighbouring rows, or neighbouring columns that are no line."""
    if op.name != "tile.slice" or op.attrs["stride"] != 1:
        return False
    return op.attrs["over"] == "i" or int(op.result.type.shape[2]) > 1  # type: ignore[attr-defined]
