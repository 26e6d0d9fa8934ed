"""Element-wise operations, reductions and parts of tiles as vector code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aatc.backends.native.emit import Emitter, resized
from aatc.backends.native.llvm import Val, index, number, vector_of
from aatc.backends.native.table import lowering
from aatc.backends.native.tiles import Tile, is_part, tile_shape
from aatc.backends.native.words import expression
from aatc.ir.access import access
from aatc.ir.core import Op
from aatc.ir.score.expr import Expr
from aatc.ir.score.program import Program


def extents(e: Emitter, tiles: Sequence[Tile]) -> tuple[Val, Val]:
    """Those of a broadcast."""
    rows = next((t.rows for t in tiles if t.shape[0] != 1), index(1))
    cols = next((t.cols for t in tiles if t.shape[1] != 1), index(1))
    return rows, cols


def bound(e: Emitter, programs: Sequence[Program], values: Sequence[Val], kind: str) -> dict[Expr, Val]:
    """Numbers by the parameters they are, in the type that programs compute in."""
    out = {}
    for program in programs:
        for p, x in zip(program.params, values, strict=True):
            if p.dtype == "f":
                x = _number(e, x, kind)
            elif p.dtype == "i" and not x.floating:
                x = e.code.cast("zext" if x.scalar == "i1" else "sext", x, vector_of("i64", x.lanes))
            out[p] = x
    return out


def _number(e: Emitter, x: Val, kind: str) -> Val:
    to = vector_of(kind, x.lanes)
    if x.floating:
        return resized(e.code, x, to)
    return e.code.cast("uitofp" if x.scalar == "i1" else "sitofp", x, to)


def each_number(
    e: Emitter,
    shape: tuple[int, int],
    rows: Val,
    cols: Val,
    tiles: Sequence[Tile],
    body: Callable[[Val, Val, Val | None, list[Val], int], None],
    keep_local: bool = False,
) -> None:
    """Vectors of a tile of ``shape`` and of what is broadcast to it. The body takes (i, j, mask, numbers of ``tiles``);
    in a tile of one column, i counts vectors."""
    lanes = e.lanes
    masked = keep_local or any(not t.local and not t.scalar for t in tiles)
    if shape == (1, 1):
        body(index(0), index(0), None, [e.read(t, index(0), index(0), 1) for t in tiles], 1)
    elif shape[1] == 1:

        def line(i: Val, keep: Val | None) -> None:
            body(i, index(0), keep, [e.read_line(t, i, lanes, keep) for t in tiles], lanes)

        e.each_vector(rows, line, masked=masked)
    else:

        def row(i: Val) -> None:
            narrow = {n: e.read(t, i, index(0), lanes) for n, t in enumerate(tiles) if t.shape[1] == 1}

            def vector(j: Val, keep: Val | None) -> None:
                found = [narrow[n] if n in narrow else e.read(t, i, j, lanes, keep) for n, t in enumerate(tiles)]
                body(i, j, keep, found, lanes)

            e.each_vector(cols, vector, masked=masked)

        e.each_row(rows, row)


def put(e: Emitter, t: Tile, i: Val, j: Val, x: Val, lanes: int) -> None:
    """Numbers to a tile in scratch memory."""
    code = e.code
    at = code.at(t.base, i, t.memory) if t.line else e.address(t, i, j)
    code.store(e.stored(code.splat(x, lanes), t.dtype), at)


@lowering("tile.map")
def map_(e: Emitter, op: Op) -> None:
    tiles = [e.tile(v) for v in op.operands]
    rows, cols = extents(e, tiles)
    groups: dict[tuple[int, int], list[int]] = {}
    for n, r in enumerate(op.results):
        groups.setdefault(tile_shape(r.type), []).append(n)  # type: ignore[arg-type]
    for shape, members in groups.items():
        _map(e, op, shape, members, tiles, (rows, cols))


def _map(
    e: Emitter, op: Op, shape: tuple[int, int], members: list[int], tiles: list[Tile], extent: tuple[Val, Val]
) -> None:
    rows = extent[0] if shape[0] != 1 else index(1)
    cols = extent[1] if shape[1] != 1 else index(1)
    outs = [e.make(op.results[n], rows, cols) for n in members]
    programs = [op.attrs["programs"][n] for n in members]

    def body(i: Val, j: Val, keep: Val | None, values: list[Val], lanes: int) -> None:
        found: list[Val] = []
        done: dict[tuple[Program, str], Val] = {}
        for program, out in zip(programs, outs, strict=True):
            kind = "double" if out.dtype == "f64" else "float"
            if (program, kind) not in done:
                done[program, kind] = expression(e.code, program.body, bound(e, [program], values, kind), kind)
            found.append(done[program, kind])
        for x, out in zip(found, outs, strict=True):
            put(e, out, i, j, x, lanes)

    each_number(e, shape, rows, cols, tiles, body)


@lowering("tile.mask")
def mask(e: Emitter, op: Op) -> None:
    whole, partial, *captures = op.operands
    tile = e.tile(whole)
    out = e.make(op.result, tile.rows, tile.cols)
    shape = tile.shape
    same = not tile.panel and tile.base == out.base
    code = e.code
    program: Program = op.attrs["mask"]

    def masked() -> None:
        def body(i: Val, j: Val, keep: Val | None, values: list[Val], lanes: int) -> None:
            x, *rest = values
            opened = expression(code, program.body, bound(e, [program], rest, "double"), "double")
            fill = number(op.attrs["value"], vector_of(x.scalar, lanes))
            put(e, out, i, j, code.select(code.splat(opened, lanes), x, fill), lanes)

        each_number(e, shape, tile.rows, tile.cols, [tile, *(e.tile(c) for c in captures)], body)

    with code.when(e.at[partial]):
        masked()
    if not same:
        whole_too = code.op("i1", f"xor i1 {e.at[partial].text}, true")
        with code.when(whole_too):
            copy(e, out, tile)


def copy(e: Emitter, to: Tile, source: Tile) -> None:
    """All numbers of a tile to another of its shape."""
    if not source.panel and to.base == source.base:
        return
    each_number(
        e, to.shape, source.rows, source.cols, [source], lambda i, j, keep, v, lanes: put(e, to, i, j, v[0], lanes)
    )


@lowering("tile.fill")
def fill(e: Emitter, op: Op) -> None:
    shape = tile_shape(op.result.type)  # type: ignore[arg-type]
    letters = access(op.attrs["axes"]).tile
    at = iter(op.operands)
    found = [e.extent[next(at)] if c in "gij" else None for c in letters]
    rows, cols = (index(1) if n == 1 else index(n) if x is None else x for n, x in zip(shape, found[1:], strict=True))
    out = e.make(op.result, rows, cols)
    value = number(op.attrs["value"], "double" if out.dtype == "f64" else "float")
    each_number(e, shape, rows, cols, [], lambda i, j, keep, v, lanes: put(e, out, i, j, value, lanes))


@lowering("tile.position")
def position(e: Emitter, op: Op) -> None:
    axis, (p,), code = op.attrs["axes"], op.operands, e.code
    at, n = e.at[p], e.extent[p]
    if axis in "bh":
        heads = e.dim(op.attrs["sizes"][1])
        out = e.make(op.result, index(1), index(1))
        code.store(code.op("i64", f"{'sdiv' if axis == 'b' else 'srem'} i64 {at.text}, {heads.text}"), out.base)
        return
    rows, cols = (n, index(1)) if axis == "i" else (index(1), n)
    out = e.make(op.result, rows, cols)

    def body(i: Val, j: Val, keep: Val | None, values: list[Val], lanes: int) -> None:
        first = code.splat(code.add(at, i if axis == "i" else j), lanes)
        put(e, out, i, j, code.add(first, code.steps(lanes)), lanes)

    each_number(e, out.shape, rows, cols, [], body)


# --- reductions ----------------------------------------------------------------------------------------------
#: What reductions start from.
START = {"sum": 0.0, "max": float("-inf"), "min": float("inf")}


def combined(e: Emitter, how: str, a: Val, b: Val) -> Val:
    """A sum, or the larger or smaller of two, NaN if one is."""
    if how == "sum":
        return e.code.add(a, b)
    return e.code.extreme("llvm.maximum" if how == "max" else "llvm.minimum", a, b)


def across(e: Emitter, how: str, x: Val) -> Val:
    """One number of all lanes; sums are taken pairwise, in the same order everywhere."""
    lanes = x.lanes
    if not lanes:
        return x
    code = e.code
    while lanes > 1:
        half = lanes // 2
        out = vector_of(x.scalar, half) if half > 1 else f"<1 x {x.scalar}>"
        low, high = (
            code.op(
                out,
                f"shufflevector {x.type} {x.text}, {x.type} poison, <{half} x i32> "
                f"<{', '.join(f'i32 {n}' for n in range(start, start + half))}>",
            )
            for start in (0, half)
        )
        if half == 1:
            return combined(e, how, code.lane(low, 0), code.lane(high, 0))
        x, lanes = combined(e, how, low, high), half
    return code.lane(x, 0)


def line_total(e: Emitter, how: str, n: Val, read: Callable[[Val, Val | None], Val], scalar: str) -> Val:
    """n numbers in one; ``read`` gives the vector that begins at a number, under a mask."""
    code, lanes = e.code, e.lanes
    if lanes == 1:
        (only,) = code.loop(
            index(0), n, 1, lambda j, t: [combined(e, how, t, read(j, None))], [number(START[how], scalar)]
        )
        return only
    start = number(START[how], vector_of(scalar, lanes))
    literal = not n.text.startswith("%")
    whole = index(int(n.text) // lanes * lanes) if literal else code.op("i64", f"and i64 {n.text}, {-lanes}")
    wide = 4 * lanes
    sums = [start] * 4
    first = index(0)
    if not literal or int(n.text) >= 2 * wide:
        most = index(int(n.text) // wide * wide) if literal else code.op("i64", f"and i64 {n.text}, {-wide}")

        def four(j: Val, *totals: Val) -> list[Val]:
            return [combined(e, how, t, read(code.add(j, index(k * lanes)), None)) for k, t in enumerate(totals)]

        sums = code.loop(index(0), most, wide, four, sums)
        first = most
    total = combined(e, how, combined(e, how, sums[0], sums[1]), combined(e, how, sums[2], sums[3]))
    (total,) = code.loop(first, whole, lanes, lambda j, t: [combined(e, how, t, read(j, None))], [total])
    if literal and int(n.text) % lanes == 0:
        return across(e, how, total)

    def rest() -> Val:
        keep = code.below(whole, n, lanes)
        x = read(whole, keep)
        return combined(e, how, total, code.select(keep, x, start))

    some = code.compare("slt", whole, n)
    return across(e, how, code.choose(some, rest, lambda: total))


@lowering("tile.reduce")
def reduce(e: Emitter, op: Op) -> None:
    source, *into = op.operands
    tile, how, over = e.tile(source), op.attrs["op"], op.attrs["over"]
    scalar = "double" if tile.dtype == "f64" else "float"
    code = e.code
    rows = index(1) if "i" in over else tile.rows
    cols = index(1) if "j" in over else tile.cols
    before = e.tile(into[0]) if into else None
    out = e.make(op.result, rows, cols)

    def wide(x: Val) -> Val:
        return resized(code, x, vector_of(scalar, x.lanes)) if x.floating else x

    def ended(i: Val, j: Val, x: Val) -> None:
        if before is not None:
            x = combined(e, how, code.load(before.memory, e.address(before, i, j)), x)
        code.store(x, e.address(out, i, j))

    def of_row(i: Val) -> Val:
        if tile.shape[1] == 1:
            return wide(code.load(tile.memory, code.at(tile.base, code.mul(i, tile.row), tile.memory)))
        return line_total(e, how, tile.cols, lambda j, keep: wide(e.read(tile, i, j, e.lanes, keep)), scalar)

    if over == "j":
        e.each_row(tile.rows, lambda i: ended(i, index(0), of_row(i)))
    elif tile.line:
        x = line_total(e, how, tile.rows, lambda i, keep: wide(e.read_line(tile, i, e.lanes, keep)), scalar)
        ended(index(0), index(0), x)
    elif over == "ij":
        (x,) = code.loop(
            index(0), tile.rows, 1, lambda i, t: [combined(e, how, t, of_row(i))], [number(START[how], scalar)]
        )
        ended(index(0), index(0), x)
    else:
        _down(e, how, tile, before, out, wide)


def _down(e: Emitter, how: str, tile: Tile, before: Tile | None, out: Tile, wide: Callable[[Val], Val]) -> None:
    """Over the rows of a tile, vector by vector of its columns."""
    code = e.code

    def vector(j: Val, keep: Val | None) -> None:
        x = number(START[how], vector_of(out.memory, e.lanes))
        if before is not None:
            x = e.read(before, index(0), j, e.lanes, keep)
        (x,) = code.loop(
            index(0), tile.rows, 1, lambda i, t: [combined(e, how, t, wide(e.read(tile, i, j, e.lanes, keep)))], [x]
        )
        put(e, out, index(0), j, x, e.lanes)

    views = not tile.local or (before is not None and not before.local)
    e.each_vector(tile.cols, vector, masked=views)


# --- parts -----------------------------------------------------------------------------------------------------
@lowering("tile.slice")
def slice_(e: Emitter, op: Op) -> None:
    whole, a, code = e.tile(op.operands[0]), op.attrs, e.code
    shape = tile_shape(op.result.type)  # type: ignore[arg-type]
    start = index(a["start"])
    over_rows = a["over"] == "i"
    rows = index(shape[0]) if over_rows else whole.rows
    cols = whole.cols if over_rows else index(shape[1])
    if is_part(op):
        base = code.at(whole.base, code.mul(start, whole.row) if over_rows else start, whole.memory)
        e.tiles[op.result] = Tile(base, whole.row, rows, cols, shape, whole.dtype, whole.local)
        return
    out = e.make(op.result, rows, cols)

    def one(i: Val, j: Val) -> None:
        k = code.add(start, code.mul(i if over_rows else j, index(a["stride"])))
        x = code.load(whole.memory, e.address(whole, k if over_rows else i, j if over_rows else k))
        code.store(x, e.address(out, i, j))

    e.each_row(rows, lambda i: e.each_row(cols, lambda j: one(i, j)))


@lowering("tile.insert")
def insert(e: Emitter, op: Op) -> None:
    part, whole = (e.tile(v) for v in op.operands)
    a, code = op.attrs, e.code
    out = e.make(op.result, whole.rows, whole.cols)
    copy(e, out, whole)
    start, over_rows = index(a["start"]), a["over"] == "i"

    def one(i: Val, j: Val) -> None:
        k = code.add(start, code.mul(i if over_rows else j, index(a["stride"])))
        x = code.load(part.memory, e.address(part, i, j))
        code.store(x, e.address(out, k if over_rows else i, j if over_rows else k))

    if a["stride"] != 1 or part.shape[1] == 1 or e.lanes == 1 or over_rows:
        e.each_row(part.rows, lambda i: e.each_row(part.cols, lambda j: one(i, j)))
        return

    def vector(i: Val, j: Val, keep: Val | None, values: list[Val], lanes: int) -> None:
        at = e.address(out, i, code.add(start, j))
        code.store(values[0], at, keep=keep)

    each_number(e, part.shape, part.rows, part.cols, [part], vector, keep_local=True)
