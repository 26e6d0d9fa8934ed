"""Loads: the place of an element in the arena, what a thread holds of a tile, copies in shared memory."""

from __future__ import annotations

from aatc.backends.vulkan.emit import Emitter, kind_of
from aatc.backends.vulkan.lanes import chunks
from aatc.backends.vulkan.table import lowering
from aatc.backends.vulkan.tiles import Source, Staged, Tile
from aatc.backends.vulkan.words import convert
from aatc.ir.access import access, repeats
from aatc.ir.core import Op, Value
from aatc.ir.dims import Dim
from aatc.ir.errors import UnsupportedError
from aatc.ir.types import TensorType, TileType

#: Vectors between rows of a copy in shared memory, beyond what a row has: lanes of one column then meet no bank twice.
_PAD = 1


# --- places ------------------------------------------------------------------------------------------------
def letters_of(op: Op, tile: TileType) -> tuple[str, str]:
    """Letters of a tile's second and third axis; an axis of features of which there is one is none."""
    a = access(op.attrs["axes"])
    second, third = (c if c in "ij" or int(n) != 1 else "1" for c, n in zip(a.tile[1:], tile.shape[1:], strict=True))
    return second, third


def problem(e: Emitter, letter: str, g: str, have: Dim, sizes: list[Dim] | None) -> str:
    """The index along an axis of problems."""
    if letter == "g":
        return g
    if have == 1:
        return "0"
    assert sizes is not None
    heads = sizes[1]
    if letter == "b":
        return g if heads == 1 else f"{g} / {e.dim(heads)}"
    of_all = f"{g} % {e.dim(heads)}"
    return of_all if have == heads else f"({of_all}) / ({e.dim(heads)} / {e.dim(have)})"


def source(e: Emitter, op: Op, buffer: Value, positions: list[Value]) -> Source:
    """Where the tile of an access lies."""
    a = access(op.attrs["axes"])
    repeated = op.name == "tile.load" and repeats(op)
    at = dict(zip(a.walks, positions[repeated:], strict=True))
    sizes = [Dim.of(d) for d in op.attrs["sizes"]] if "sizes" in op.attrs else None
    shape = e.shape(buffer)
    terms, strides = [e.offset(buffer)], {}
    for axis, c in enumerate(a.axes):
        stride = e.stride(buffer, axis)
        if c in "bhg":
            index = problem(e, c, e.at[at["g"]] if "g" in at else "0", shape[axis], sizes)
            terms.append(e.times(index if " " not in index else f"({index})", stride) if index != "0" else "0")
        elif c in "cs":
            terms.append(e.times(e.at[at[c]], stride))
        elif c in "ij":
            if shape[axis] != 1:
                strides["r" if c == e.rows else "c"] = stride
        else:
            strides[c] = stride
    vectors = a.axes.endswith("d") and shape[-1].is_static
    aligned = vectors and int(shape[-1]) % 4 == 0 and a.inside != "de"
    base = e.let(f"at_{e.names.of(buffer)}", "i32", e.plus(*terms))
    assert isinstance(buffer.type, TensorType)
    return Source(base, strides, kind_of(buffer.type.dtype), aligned)


def word(s: Source, at: str) -> str:
    """A word of a buffer as its kind."""
    if s.kind == "f":
        return f"load_f({at})"
    return f"load_i({at})" if s.kind == "i" else f"(load_i({at}) != 0)"


def token(e: Emitter, s: Source, letter: str, at: str) -> str:
    stride = s.strides.get(letter)
    return "0" if stride is None else e.times(at, stride)


def vector(e: Emitter, s: Source, at: str, chunk: str, width: int) -> str:
    """Four features of a row that begins at ``at``; what lies behind the last feature counts as 0."""
    if s.kind != "f":
        raise UnsupportedError("vectors of integers have no kernels")
    last = chunks(width) - 1
    if s.aligned:
        inside = chunk if not chunk or chunk.isdigit() else f"min({chunk}, {last})"
        return f"load_4({at} + 4 * ({inside}))"
    f = e.let("f", "i32", f"4 * ({chunk})")
    parts = []
    for n in range(4):
        parts.append(f"select(0.0, load_f({at} + min({f} + {n}, {width - 1})), {f} + {n} < {width})")
    return f"vec4f({', '.join(parts)})"


# --- loads -------------------------------------------------------------------------------------------------
@lowering("tile.load")
def load(e: Emitter, op: Op) -> None:
    buffer, *positions = op.operands
    e.reads[buffer] = None
    t: TileType = op.result.type  # type: ignore[assignment]
    tile = e.made(op.result, letters_of(op, t))
    tile.source = source(e, op, buffer, positions)
    if op.result in e.planned:
        stage(e, tile, op.result.name or "tile", e.planned[op.result])
    if tile.form not in ("colvec", "matrix") and not _only_for_dots(e, op.result, tile):
        items(e, tile, op.result.name or "t")


def _only_for_dots(e: Emitter, v: Value, tile: Tile) -> bool:
    users = e.uses.get(v, [])
    return tile.form in ("rowvec", "colvec") and bool(users) and all(u.name == "tile.dot" for u in users)


def items(e: Emitter, tile: Tile, hint: str = "t") -> list[str]:
    """What a thread holds of a tile, read from the arena if need be."""
    if tile.items is not None:
        return tile.items
    s = tile.source
    if s is None or tile.form in ("colvec", "matrix"):
        raise UnsupportedError(f"a tile of form {tile.form} is held by no thread", hint="order(rows-and-columns)")
    high, wide, type = e.lanes.high, e.lanes.wide, e.type_of(tile)
    rows = [token(e, s, "r", e.row_at[r]) for r in range(high)] if e.row_at else []
    if tile.form == "one":
        texts = [word(s, s.base)]
    elif tile.form == "row":
        texts = [word(s, e.plus(s.base, x)) for x in rows]
    elif tile.form == "col":
        texts = [word(s, e.plus(s.base, token(e, s, "c", e.col_at[c]))) for c in range(wide)]
    elif tile.form == "pair":
        cols = [token(e, s, "c", e.col_at[c]) for c in range(wide)]
        texts = [word(s, e.plus(s.base, x, y)) for x in rows for y in cols]
    else:
        starts = [e.let("row", "i32", e.plus(s.base, x)) for x in rows] if tile.form == "rowvec" else [s.base]
        texts = [vector(e, s, x, e.feature(k), tile.width) for x in starts for k in range(e.lanes.vectors(tile.width))]
    scalar = tile.form not in ("rowvec", "vec")
    texts = [convert(x, s.kind, tile.kind) for x in texts] if scalar else texts
    tile.items = e.lets(hint, type, texts)
    return tile.items


def stage(e: Emitter, tile: Tile, hint: str, slot: str = "") -> bool:
    """Copies a tile of vectors to shared memory, all threads side by side; False where there is no room. Tiles of one
    ``slot`` lie in one array, one after the other."""
    s = tile.source
    assert s is not None
    by_rows = tile.form == "rowvec"
    count = e.lanes.rows if by_rows else e.lanes.cols
    per_row = chunks(tile.width)
    array = e.slots.get(slot) or e.share(hint, "vec4f", count * (per_row + _PAD))
    if array is None:
        return False
    if slot:
        e.slots[slot] = array
    e.writing(array.name)
    first, extent = (e.row_first, e.row_extent) if by_rows else (e.col_first, e.col_extent)
    total, threads = count * per_row, e.lanes.threads
    rounds = -(-total // threads)

    def one(at: str) -> None:
        row = e.let("row", "i32", f"{at} / {per_row}")
        chunk = e.let("chunk", "i32", f"{at} % {per_row}")
        where = e.let("token", "i32", f"min({first} + {row}, {first} + {extent} - 1)")
        start = e.let("start", "i32", e.plus(s.base, token(e, s, "r" if by_rows else "c", where)))
        value = vector(e, s, start, chunk, tile.width)
        e.body.set(f"{array.name}[own_stage({row} * {per_row + _PAD} + {chunk})]", value)

    e.body.open()
    counter = e.body.fresh("n")
    at = e.let("at", "i32", f"{counter} * {threads} + thread")
    if total % threads:
        e.when(f"{at} < {total}")
    one(at)
    if total % threads:
        e.close()
    e.body.close_for(counter, "0", str(rounds), 1)
    tile.staged = Staged(array.name, per_row + _PAD)
    return True


def put_rows(e: Emitter, tile: Tile, hint: str, slot: str = "") -> Staged:
    """Copies vectors that threads hold to shared memory. Tiles of one ``slot`` lie in one array, in turn."""
    if tile.staged is None:
        per_row = chunks(tile.width)
        array = e.slots.get(slot) or e.need(hint, "vec4f", e.lanes.rows * (per_row + _PAD))
        if slot:
            e.slots[slot] = array
        e.writing(array.name)
        held = items(e, tile)
        vectors = e.lanes.vectors(tile.width)
        for r in range(e.lanes.high):
            for k in range(vectors):
                conditions = _within(e, e.row_of(r), e.lanes.rows, e.lanes.down * e.lanes.high)
                conditions += _within(e, e.feature(k), per_row, vectors * e.lanes.across)
                value = masked(e, held[r * vectors + k], e.feature(k), tile.width)
                with_condition(
                    e, conditions, f"{array.name}[own_rows(({e.row_of(r)}) * {per_row + _PAD} + {e.feature(k)})]", value
                )
        tile.staged = Staged(array.name, per_row + _PAD)
    return tile.staged


def _within(e: Emitter, at: str, n: int, covered: int) -> list[str]:
    return [] if covered <= n else [f"{at} < {n}"]


def with_condition(e: Emitter, conditions: list[str], target: str, value: str) -> None:
    if conditions:
        e.when(" && ".join(conditions))
    e.body.set(target, value)
    if conditions:
        e.close()


def masked(e: Emitter, text: str, chunk: str, width: int) -> str:
    """A vector with 0 for what is behind the last feature."""
    if not width % 4:
        return text
    v = e.let("v", "vec4f", text)
    parts = ", ".join(f"select({v}.{c}, 0.0, ({chunk}) * 4 + {n} >= {width})" for n, c in enumerate("xyzw"))
    return f"vec4f({parts})"


def item(e: Emitter, tile: Tile, form: str, n: int, width: int = 1) -> str:
    """What stands for a tile at register ``n`` of a tile of ``form`` and ``width``; it is repeated along axes that it
    lacks."""
    held = items(e, tile)
    if tile.form == form:
        return held[n]
    if tile.form == "one":
        return held[0]
    if form == "pair" and tile.form in ("row", "col"):
        return held[n // e.lanes.wide if tile.form == "row" else n % e.lanes.wide]
    if form == "rowvec" and tile.form in ("row", "vec"):
        vectors = e.lanes.vectors(width)
        return held[n // vectors if tile.form == "row" else n % vectors]
    raise UnsupportedError(f"a tile of form {tile.form} stands for none of form {form}")
