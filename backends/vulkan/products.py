"""Contractions: register blocks whose factors come from shared memory, or from the arena where there is no room."""

from __future__ import annotations

from aatc.backends.vulkan.emit import Emitter
from aatc.backends.vulkan.lanes import chunks
from aatc.backends.vulkan.memory import item, items, put_rows, token, vector
from aatc.backends.vulkan.reductions import across, fold
from aatc.backends.vulkan.table import lowering
from aatc.backends.vulkan.tiles import Staged, Tile
from aatc.ir.core import Op
from aatc.ir.errors import UnsupportedError

_TOGETHER = 4


@lowering("tile.dot")
def dot(e: Emitter, op: Op) -> None:
    a, b = (e.tile(v) for v in op.operands[:2])
    start = e.tile(op.operands[2]) if len(op.operands) > 2 else None
    form = op.attrs["form"]
    first, second = {"nt": (0, 0), "nn": (0, 1), "tn": (1, 1)}[form]  # the axis of a, of b, that stays
    letters = (a.letters[first], b.letters[second])
    gone = a.letters[1 - first]
    out = e.made(op.result, letters)
    hint = op.result.name or "x"
    if "factor" in op.attrs and op.attrs["factor"] != 1.0:
        raise UnsupportedError("products of bfloat16 have no kernels")
    if a.form in ("rowvec", "colvec") and b.form in ("rowvec", "colvec") and gone in "de" and out.form == "pair":
        rows, cols = (a, b) if a.form == "rowvec" else (b, a)
        out.items = _scores(e, rows, cols, start, hint)
    elif a.form == "pair" and gone == e.cols and b.form == "colvec":
        out.items = _weighted(e, a, b, out, start, hint)
    elif a.form == "pair" and gone == e.cols and b.form in ("col", "row", "one"):
        out.items = _weighted_number(e, a, b, start, hint)
    elif gone == "1" and out.form in ("one", "row", "col", "pair", "rowvec", "vec"):
        out.items = _outer(e, a, b, out, start, hint)
    elif form == "tn" and {a.form, b.form} <= {"rowvec", "row"} and (start is None or start.factors):
        out.factors = [*((start and start.factors) or []), (a, b)]
    elif a.form == "rowvec" and b.form == "matrix":
        out.items = _matrix(e, a, b, out, form, start, hint)
    else:
        raise UnsupportedError(f"a product {form} of tiles {a.form}, {b.form} has no kernel")


def _outer(e: Emitter, a: Tile, b: Tile, out: Tile, start: Tile | None, hint: str) -> list[str]:
    """Products over an axis of one feature."""
    count = e.count(out.form, out.width)
    texts = [f"{item(e, a, out.form, n, out.width)} * {item(e, b, out.form, n, out.width)}" for n in range(count)]
    if start is not None:
        texts = [f"{x} + {y}" for x, y in zip(items(e, start), texts, strict=True)]
    return e.lets(hint, e.type_of(out), texts)


def _started(e: Emitter, start: Tile | None, count: int, type: str, hint: str) -> list[str]:
    """Variables that sums begin with."""
    zero = "0.0" if type == "f32" else "vec4f(0.0)"
    first = items(e, start) if start is not None else [zero] * count
    return [e.body.var(hint, type, x) for x in first]


def _vectors(e: Emitter, tile: Tile, letter: str, at: list[str], places: list[str], chunk: str) -> list[str]:
    """Vector number ``chunk`` of rows (or columns): ``at`` are their tokens, ``places`` where they are in the block."""
    if tile.staged is not None:
        s = tile.staged
        return [f"{s.name}[({p}) * {s.stride} + {chunk}]" for p in places]
    assert tile.source is not None
    texts = []
    for t in at:
        start = e.plus(tile.source.base, token(e, tile.source, letter, t))
        texts.append(vector(e, tile.source, start, chunk, tile.width))
    return texts


def _read_staged(e: Emitter, tile: Tile) -> None:
    if tile.staged is not None:
        e.reading(tile.staged.name)


def _scores(e: Emitter, rows: Tile, cols: Tile, start: Tile | None, hint: str) -> list[str]:
    """The products of all rows with all columns."""
    if rows.source is None and rows.staged is None:
        put_rows(e, rows, hint)
    high, wide = e.lanes.high, e.lanes.wide
    sums = _started(e, start, high * wide, "f32", hint)
    _read_staged(e, rows)
    _read_staged(e, cols)
    if cols.source is None and cols.staged is None:
        raise UnsupportedError("vectors of columns are held by no thread")
    row_places = [_clamped(e, e.row_of(r), e.lanes.rows, e.lanes.down * high) for r in range(high)]
    col_places = [_clamped(e, e.col_of(c), e.lanes.cols, e.lanes.across * wide) for c in range(wide)]
    per_row = chunks(rows.width)
    e.body.open()
    n = e.body.fresh("d")
    b = [e.let("b", "vec4f", x) for x in _vectors(e, cols, "c", e.col_at, col_places, n)]
    a = [e.let("a", "vec4f", x) for x in _vectors(e, rows, "r", e.row_at, row_places, n)]
    for r in range(high):
        for c in range(wide):
            e.body.set(sums[r * wide + c], f"{sums[r * wide + c]} + dot({a[r]}, {b[c]})")
    e.body.close_for(n, "0", str(per_row), 1)
    return sums


def _clamped(e: Emitter, place: str, n: int, covered: int) -> str:
    return place if covered <= n else f"min({place}, {n - 1})"


def _put_pairs(e: Emitter, tile: Tile) -> Staged:
    """Numbers of pairs in shared memory, row by row."""
    if tile.staged is None:
        held, high, wide = items(e, tile), e.lanes.high, e.lanes.wide
        stride = e.lanes.across * wide + 1
        array = e.pairs_array(e.lanes.down * high * stride)
        e.writing(array)
        for r in range(high):
            for c in range(wide):
                e.body.set(f"{array}[own_pairs(({e.row_of(r)}) * {stride} + {e.col_of(c)})]", held[r * wide + c])
        return Staged(array, stride)
    return tile.staged


def _weighted(e: Emitter, pairs: Tile, cols: Tile, out: Tile, start: Tile | None, hint: str) -> list[str]:
    """Vectors of columns, weighted by pairs and added up over columns."""
    weights = _put_pairs(e, pairs)
    high, vectors = e.lanes.high, e.lanes.vectors(cols.width)
    sums = _started(e, start, high * vectors, "vec4f", hint)
    e.reading(weights.name)
    _read_staged(e, cols)
    last = chunks(cols.width) - 1
    e.body.open()
    n = e.body.fresh("j")
    token_at = f"{e.col_first} + {n}"
    b = []
    for k in range(vectors):
        chunk = e.feature(k) if e.whole_vectors(4 * chunks(cols.width)) else f"min({e.feature(k)}, {last})"
        b += [e.let("b", "vec4f", x) for x in _vectors(e, cols, "c", [f"({token_at})"], [n], chunk)]
    for r in range(high):
        w = e.let("w", "f32", f"{weights.name}[({e.row_of(r)}) * {weights.stride} + {n}]")
        for k in range(vectors):
            e.body.set(sums[r * vectors + k], f"{sums[r * vectors + k]} + {w} * {b[k]}")
    e.body.close_for(n, "0", e.col_extent, 1)
    return sums


def _weighted_number(e: Emitter, pairs: Tile, cols: Tile, start: Tile | None, hint: str) -> list[str]:
    """Numbers of columns, weighted by pairs and added up: one per row."""
    held, numbers, wide = items(e, pairs), items(e, cols), e.lanes.wide
    rows = []
    for r in range(e.lanes.high):
        terms = []
        for c in range(wide):
            x = f"{held[r * wide + c]} * {numbers[c if cols.form == 'col' else 0]}"
            terms.append(x if e.col_sure else f"select(0.0, {x}, {e.col_in[c]})")
        rows.append(fold(e, terms, "sum", "f32", hint))
    if e.lanes.across > 1:
        rows = across(e, rows, "sum", "f32", hint)
    if start is not None:
        rows = [f"{x} + {y}" for x, y in zip(rows, items(e, start), strict=True)]
    return e.lets(hint, "f32", rows)


def _matrix(e: Emitter, rows: Tile, matrix: Tile, out: Tile, form: str, start: Tile | None, hint: str) -> list[str]:
    """A matrix, the same for the workgroup, times the vector of each row."""
    s = matrix.source
    if s is None or "r" in s.strides or "c" in s.strides:
        raise UnsupportedError("a matrix per token has no kernel")
    staged = put_rows(e, rows, hint)
    e.reading(staged.name)
    high, vectors = e.lanes.high, e.lanes.vectors(out.width)
    sums = _started(e, start, high * vectors, "vec4f", hint)
    gone, kept = ("d", "e") if form == "nn" else ("e", "d")
    places = [_clamped(e, e.row_of(r), e.lanes.rows, e.lanes.down * high) for r in range(high)]
    e.body.open()
    n = e.body.fresh("d")
    b = []
    for k in range(vectors):
        f = [f"min(4 * ({e.feature(k)}) + {m}, {out.width - 1})" for m in range(4)]
        at = [e.plus(s.base, e.times(n, s.strides[gone]), e.times(x, s.strides[kept])) for x in f]
        b.append(e.let("b", "vec4f", f"vec4f({', '.join(f'load_f({x})' for x in at)})"))
    for r in range(high):
        w = e.let("w", "f32", f"{staged.name}[({places[r]}) * {staged.stride} + ({n} >> 2u)][{n} & 3]")
        for k in range(vectors):
            e.body.set(sums[r * vectors + k], f"{sums[r * vectors + k]} + {w} * {b[k]}")
    e.body.close_for(n, "0", str(rows.width), 1)
    return sums
