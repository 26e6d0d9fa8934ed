"""Loads and stores: the place of an element in the arena, copies in shared memory, and who writes what."""

from __future__ import annotations

from aatc.backends.vulkan.emit import Emitter, kind_of
from aatc.backends.vulkan.lanes import chunks
from aatc.backends.vulkan.table import lowering
from aatc.backends.vulkan.tiles import Source, Staged, Tile, form_of
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
        stage(e, tile, op.result.name or "tile")
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


def stage(e: Emitter, tile: Tile, hint: str) -> bool:
    """Copies a tile of vectors to shared memory, all threads side by side; False where there is no room."""
    s = tile.source
    assert s is not None
    by_rows = tile.form == "rowvec"
    count = e.lanes.rows if by_rows else e.lanes.cols
    per_row = chunks(tile.width)
    array = e.share(hint, "vec4f", count * (per_row + _PAD))
    if array is None:
        return False
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
        e.body.set(f"{array.name}[{row} * {per_row + _PAD} + {chunk}]", value)

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


def put_rows(e: Emitter, tile: Tile, hint: str) -> Staged:
    """Copies vectors that threads hold to shared memory."""
    if tile.staged is None:
        per_row = chunks(tile.width)
        array = e.need(hint, "vec4f", e.lanes.rows * (per_row + _PAD))
        e.writing(array.name)
        held = items(e, tile)
        vectors = e.lanes.vectors(tile.width)
        for r in range(e.lanes.high):
            for k in range(vectors):
                conditions = _within(e, e.row_of(r), e.lanes.rows, e.lanes.down * e.lanes.high)
                conditions += _within(e, e.feature(k), per_row, vectors * e.lanes.across)
                value = masked(e, held[r * vectors + k], e.feature(k), tile.width)
                with_condition(
                    e, conditions, f"{array.name}[({e.row_of(r)}) * {per_row + _PAD} + {e.feature(k)}]", value
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


# --- stores ------------------------------------------------------------------------------------------------
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
    elif form in ("row", "rowvec") and "r" not in s.strides and e.lanes.rows > 1:
        raise UnsupportedError("a store that sums over rows has no kernel")
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
    from aatc.backends.vulkan.reductions import reduced

    over = ("r" if over_rows else "") + ("c" if over_cols else "")
    out = reduced(e, tile, "sum", over)
    return out, out.form


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
