"""Stores: which thread writes what of a tile, or adds it to what is there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from aatc.backends.vulkan.emit import Emitter
from aatc.backends.vulkan.lanes import chunks
from aatc.backends.vulkan.memory import item, items, letters_of, put_rows, source, token
from aatc.backends.vulkan.reductions import reduced
from aatc.backends.vulkan.table import lowering
from aatc.backends.vulkan.tiles import Source, Staged, Tile, form_of
from aatc.backends.vulkan.words import convert
from aatc.ir.core import Op
from aatc.ir.errors import UnsupportedError
from aatc.ir.types import TileType


@lowering("tile.store")
def store(e: Emitter, op: Op) -> None:
    value, buffer, *positions = op.operands
    e.writes[buffer] = None
    add = op.attrs["add"]
    if add:
        e.reads[buffer] = None
    t: TileType = value.type  # type: ignore[assignment]
    tile = e.tile(value)
    s = source(e, op, buffer, positions)
    letters = letters_of(op, t)
    form = form_of(letters, e.rows, e.cols)
    if form == "pair" and ("r" not in s.strides or "c" not in s.strides):
        tile, form = _summed(e, tile, "r" not in s.strides, "c" not in s.strides)
    if tile.factors is not None or form == "matrix":
        _store_matrix(e, tile, s, t, add)
        return
    if form in ("colvec", "matrix", ""):
        raise UnsupportedError(f"a store of a tile of form {form} has no kernel", hint="order(rows-and-columns)")
    width = next((int(n) for c, n in zip(letters, t.shape[1:], strict=True) if c in "de"), 1)
    for conditions, at, k in _elements(e, form, s, width):
        if form in ("rowvec", "vec"):
            _store_vector(e, tile, form, s, at, k, conditions, add, width)
            continue
        text = convert(item(e, tile, form, k), tile.kind, s.kind if s.kind == "f" else "i")
        if conditions:
            e.when(" && ".join(conditions))
        kind = "f32" if s.kind == "f" else "i32"
        e.body.write(kind, at, f"load_f({at}) + {text}" if add else text)
        if conditions:
            e.close()
    if add and e.several_stores.get(buffer, 0) > 1:
        e.barrier(storage=True)


def _summed(e: Emitter, tile: Tile, over_rows: bool, over_cols: bool) -> tuple[Tile, str]:
    over = ("r" if over_rows else "") + ("c" if over_cols else "")
    out = reduced(e, tile, "sum", over)
    return out, out.form


def _store_matrix(e: Emitter, tile: Tile, s: Source, t: TileType, add: bool) -> None:
    """A matrix that lies in a buffer, or sums over rows of products of all features with all, one pair of vectors after
    the other; an entry belongs to one thread."""
    size = int(t.shape[1]), int(t.shape[2])
    if tile.source is not None:
        source_of = tile.source
        _entries(e, s, size, add, lambda d, f: e.let("x", "f32", f"load_f({_entry(e, source_of, d, f)})"))
    for n, pair in enumerate(tile.factors or []):
        staged = [_staged(e, x, f"factor{k}_{x.width}") for k, x in enumerate(pair)]
        for x in staged:
            e.reading(x.name)
        _entries(e, s, size, add or n > 0, partial(_summed_rows, e, staged))


def _entries(e: Emitter, s: Source, size: tuple[int, int], add: bool, value: Callable[[str, str], str]) -> None:
    """Writes the value of each entry of a matrix, or adds it."""
    count = size[0] * size[1]
    e.body.open()
    counter = e.body.fresh("n")
    at = e.let("at", "i32", f"{counter} * {e.lanes.threads} + thread")
    e.when(f"{at} < {count}")
    first, second = e.let("d", "i32", f"{at} / {size[1]}"), e.let("e", "i32", f"{at} % {size[1]}")
    text, place = value(first, second), _entry(e, s, first, second)
    e.body.write("f32", place, f"load_f({place}) + {text}" if add else text)
    e.close()
    e.body.close_for(counter, "0", str(-(-count // e.lanes.threads)), 1)


def _summed_rows(e: Emitter, staged: list[Staged], first: str, second: str) -> str:
    total = e.body.var("total", "f32", "0.0")
    e.body.open()
    row = e.body.fresh("row")
    a, b = (
        f"{x.name}[{row} * {x.stride} + ({f} >> 2u)][{f} & 3]" for x, f in zip(staged, (first, second), strict=True)
    )
    e.body.set(total, f"{total} + {a} * {b}")
    e.body.close_for(row, "0", e.row_extent, 1)
    return total


def _entry(e: Emitter, s: Source, first: str, second: str) -> str:
    return e.plus(s.base, e.times(first, s.strides.get("d", "0")), e.times(second, s.strides.get("e", "0")))


def _staged(e: Emitter, tile: Tile, slot: str) -> Staged:
    """Vectors of rows in shared memory; a number is a vector of one feature."""
    held = items(e, tile)
    if tile.form == "row":
        held = [f"vec4f({x}, 0.0, 0.0, 0.0)" for x in held]
    return put_rows(e, Tile(tile.letters, "rowvec", tile.kind, tile.width, held), "factor", slot)


def _elements(e: Emitter, form: str, s: Source, width: int) -> list[tuple[list[str], str, int]]:
    """Who writes what: conditions, the place, the number of the thread's register."""
    high, wide, lanes = e.lanes.high, e.lanes.wide, e.lanes
    first_col = [f"{e.tx} == 0"] if lanes.across > 1 else []
    first_row = [f"{e.ty} == 0"] if lanes.down > 1 else []
    if form == "one":
        return [([*first_col, *first_row], s.base, 0)]
    if form == "row":
        rows = [(e.row_in[r], e.plus(s.base, token(e, s, "r", e.row_at[r]))) for r in range(high)]
        return [([*first_col, inside], at, r) for r, (inside, at) in enumerate(rows)]
    if form == "col":
        cols = [(e.col_in[c], e.plus(s.base, token(e, s, "c", e.col_at[c]))) for c in range(wide)]
        return [([*first_row, inside], at, c) for c, (inside, at) in enumerate(cols)]
    if form == "pair":
        return [
            (
                [e.row_in[r], e.col_in[c]],
                e.plus(s.base, token(e, s, "r", e.row_at[r]), token(e, s, "c", e.col_at[c])),
                r * wide + c,
            )
            for r in range(high)
            for c in range(wide)
        ]
    vectors = lanes.vectors(width)
    if form == "vec":
        return [(list(first_row), s.base, k) for k in range(vectors)]
    out = []
    for r in range(high):
        start = e.let("row", "i32", e.plus(s.base, token(e, s, "r", e.row_at[r])))
        out += [([e.row_in[r]], start, r * vectors + k) for k in range(vectors)]
    return out


def _store_vector(
    e: Emitter, tile: Tile, form: str, s: Source, at: str, n: int, conditions: list[str], add: bool, width: int
) -> None:
    chunk = e.feature(n % e.lanes.vectors(width))
    value = item(e, tile, form, n, width)
    if s.aligned:
        if not e.whole_vectors(width):
            conditions = [*conditions, f"{chunk} < {chunks(width)}"]
        place = f"{at} + 4 * ({chunk})"
        if conditions:
            e.when(" && ".join(conditions))
        e.body.write("vec4f", place, f"load_4({place}) + {value}" if add else value)
        if conditions:
            e.close()
        return
    v = e.let("v", "vec4f", value)
    for k, c in enumerate("xyzw"):
        place = f"{at} + 4 * ({chunk}) + {k}"
        e.when(" && ".join([*conditions, f"4 * ({chunk}) + {k} < {width}"]))
        e.body.write("f32", place, f"load_f({place}) + {v}.{c}" if add else f"{v}.{c}")
        e.close()
