"""Between buffers and tiles: loads, as views where elements lie well, stores, lookups and scatters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aatc.backends.native.bf16 import pack_shorts
from aatc.backends.native.context import constant
from aatc.backends.native.elements import bound, each_number, extents
from aatc.backends.native.emit import Emitter, convert
from aatc.backends.native.llvm import MEMORY, Val, index, number, size_of, vector_of
from aatc.backends.native.table import lowering
from aatc.backends.native.tiles import Tile, is_view, tile_shape
from aatc.backends.native.whole import panels
from aatc.backends.native.words import expression
from aatc.ir.access import access, repeats
from aatc.ir.core import Op, Value
from aatc.ir.errors import BackendError
from aatc.ir.tile_evaluate import position_numbers
from aatc.ir.types import TensorType


def problem(e: Emitter, op: Op, buffer: Value, letter: str, axis: int, g: Val) -> Val:
    """The index of problem g along axis g, b or h of a buffer; fewer heads than there are serve several each."""
    code = e.code
    if letter == "g":
        return g
    heads = e.dim(op.attrs["sizes"][1])
    if letter == "b":
        return code.op("i64", f"udiv i64 {g.text}, {heads.text}")
    h = code.op("i64", f"urem i64 {g.text}, {heads.text}")
    have = buffer.type.shape[axis]  # type: ignore[attr-defined]
    if have == op.attrs["sizes"][1]:
        return h
    if constant(have) == 1:
        return index(0)
    n = e.dim(have)
    shared = code.op("i64", f"udiv i64 {heads.text}, {n.text}")
    return code.op("i64", f"udiv i64 {h.text}, {shared.text}")


def start(e: Emitter, op: Op, buffer: Value, positions: Sequence[Value]) -> Val:
    """The address of a block's first element; of the first panel's for a buffer in panels."""
    code, a = e.code, access(op.attrs["axes"])
    at = {c: e.at[p] for c, p in zip(a.walks, positions, strict=True)}
    t: TensorType = buffer.type  # type: ignore[assignment]
    if t.panel:
        if t.together != 1 and size_of(MEMORY[t.dtype]) != 2:
            raise BackendError(f"there are no panels like those of {t}")
        _, tokens, features = t.shape
        whole = code.op("i64", f"udiv i64 {code.add(e.dim(tokens), index(t.panel - 1)).text}, {t.panel}")
        width = -(-int(features) // t.together) * t.together
        size = code.mul(whole, index(t.panel * width))
        offset = code.add(code.mul(at["g"], size), code.mul(at["j" if "j" in at else "i"], index(width)))
        return code.at(e.buffer(buffer), offset, MEMORY[t.dtype])
    offset = index(0)
    for axis, c in enumerate(a.axes):
        if c in "bhg":
            x = problem(e, op, buffer, c, axis, at["g"])
        elif c in at:
            x = at[c]
        else:
            continue
        offset = code.add(offset, code.mul(x, e.stride(buffer, axis)))
    return code.at(e.buffer(buffer), offset, MEMORY[t.dtype])


def block_strides(e: Emitter, op: Op, buffer: Value) -> tuple[Val, Val]:
    """Elements from row to row and from column to column of a block of a buffer."""
    a = access(op.attrs["axes"])
    rank = len(a.axes)
    row = col = index(0)
    for n, c in enumerate(a.tile[1:]):
        if c != "1" and c in a.inside:
            axis = rank - len(a.inside) + a.inside.index(c)
            if n == 0:
                row = e.stride(buffer, axis)
            else:
                col = e.stride(buffer, axis)
    return row, col


def loaded_extents(e: Emitter, op: Op) -> tuple[Val, Val]:
    a, repeated = access(op.attrs["axes"]), repeats(op)
    at = dict(zip(a.walks, op.operands[1 + repeated :], strict=True))
    shape = tile_shape(op.result.type)  # type: ignore[arg-type]
    rows, cols = (
        index(1) if n == 1 else e.extent[at[c]] if c in at else index(n) for c, n in zip(a.tile[1:], shape, strict=True)
    )
    return rows, cols


@lowering("tile.load")
def load(e: Emitter, op: Op) -> None:
    buffer, *positions = op.operands
    t: TensorType = buffer.type  # type: ignore[assignment]
    dtype = op.result.type.dtype  # type: ignore[attr-defined]
    if t.panel and (op.attrs["axes"] not in ("gid", "gjd") or t.dtype != dtype):
        raise BackendError(f"%{op.result.name or '?'} is no block of vectors as they lie in the panels of {t}")
    rows, cols = loaded_extents(e, op)
    base = start(e, op, buffer, positions[repeats(op) :])
    shape = tile_shape(op.result.type)  # type: ignore[arg-type]
    if t.panel:
        e.tiles[op.result] = Tile(
            base, index(0), rows, cols, shape, t.dtype, local=False, panel=t.panel, together=t.together
        )
        return
    row, col = block_strides(e, op, buffer)
    if is_view(op):
        e.tiles[op.result] = Tile(base, row, rows, cols, shape, t.dtype, local=False)
        return
    gather(e, e.make(op.result, rows, cols), base, row, col, t.dtype)


def gather(e: Emitter, out: Tile, base: Val, row: Val, col: Val, dtype: str) -> None:
    """A block with any strides to scratch memory: as vectors where its numbers are neighbours, else one by one."""
    code = e.code
    memory = MEMORY[dtype]
    along = row if out.line else col

    def read(at: Val, lanes: int, keep: Val | None) -> Val:
        x = code.load(vector_of(memory, lanes), at, keep=keep)
        if dtype == "bool":
            x = code.compare("ne", x, number(0, x.type))
        return convert(code, x, out.dtype)

    def vectors() -> None:
        if out.line:
            e.each_vector(
                out.rows,
                lambda i, keep: code.store(
                    read(code.at(base, i, memory), e.lanes, keep), code.at(out.base, i, out.memory)
                ),
                masked=True,
            )
            return

        def one_row(i: Val) -> None:
            at = code.at(base, code.mul(i, row), memory)
            e.each_vector(
                out.cols,
                lambda j, keep: code.store(read(code.at(at, j, memory), e.lanes, keep), e.address(out, i, j)),
                masked=True,
            )

        e.each_row(out.rows, one_row)

    def numbers() -> None:
        def one(i: Val, j: Val) -> None:
            at = code.at(base, code.add(code.mul(i, row), code.mul(j, col)), memory)
            code.store(read(at, 1, None), e.address(out, i, j))

        e.each_row(out.rows, lambda i: e.each_row(out.cols, lambda j: one(i, j)))

    if out.scalar or e.lanes == 1 or (not along.text.startswith("%") and along.text != "1"):
        numbers()
    elif along.text == "1":
        vectors()
    else:
        unit = code.compare("eq", along, index(1))
        with code.when(unit):
            vectors()
        with code.when(code.op("i1", f"xor i1 {unit.text}, true")):
            numbers()


@lowering("tile.store")
def store(e: Emitter, op: Op) -> None:
    tile = e.tile(op.operands[0])
    if tile.filled is None:
        _store(e, op, tile)
        return
    with e.code.when(tile.filled):
        _store(e, op, tile)


def _store(e: Emitter, op: Op, tile: Tile) -> None:
    _, buffer, *positions = op.operands
    code = e.code
    base = start(e, op, buffer, positions)
    t: TensorType = buffer.type  # type: ignore[assignment]
    memory, add = MEMORY[t.dtype], op.attrs["add"]
    if t.panel:
        width, rows = int(t.shape[2]), tile.rows
        if size_of(memory) == 2:
            pack_shorts(e, tile.base, (tile.row, index(1)), base, (index(0), rows), rows, width, t)
            return
        panels(e, tile.base, (tile.row, index(1)), base, (index(0), rows), rows, width, t.panel, memory)
        return
    row, col = block_strides(e, op, buffer)
    along = row if tile.line else col

    def written(x: Val, at: Val, keep: Val | None) -> None:
        if add:
            old = code.load(vector_of(memory, x.lanes), at, keep=keep)
            x = code.add(convert(code, old, tile.dtype), x)
        code.store(convert(code, x, t.dtype), at, keep=keep)

    def body(i: Val, j: Val, keep: Val | None, values: list[Val], lanes: int) -> None:
        written(values[0], code.at(base, code.add(code.mul(i, row), j if not tile.line else index(0)), memory), keep)

    if tile.shape != (1, 1) and along.text == "1" and e.lanes > 1:
        each_number(e, tile.shape, tile.rows, tile.cols, [tile], body, keep_local=True)
        return

    def one(i: Val, j: Val) -> None:
        x = e.read(tile, i, j, 1) if not tile.line else e.read_line(tile, i, 1)
        written(x, code.at(base, code.add(code.mul(i, row), code.mul(j, col)), memory), None)

    e.each_row(tile.rows, lambda i: e.each_row(tile.cols, lambda j: one(i, j)))


# --- tables ------------------------------------------------------------------------------------------------------
def each_entry(
    e: Emitter,
    op: Op,
    table: Value,
    g: Value,
    tiles: Sequence[Value],
    others: Sequence[Tile],
    body: Callable[..., None],
) -> None:
    """Pairs vector by vector, with the offsets of their entries in a table. The body takes (i, j, lanes, mask, offsets,
    numbers of ``others``)."""
    code = e.code
    bounds = [e.tile(v) for v in tiles]
    shape, rows, cols = _pairs(e, [*bounds, *others])
    axes = op.attrs["axes"]
    lead = index(0)
    for axis, c in enumerate(axes):
        if c in "bh":
            x = problem(e, op, table, c, axis, e.at[g])
            lead = code.add(lead, code.mul(x, e.stride(table, axis)))
    n = sum(c in "bh" for c in axes)
    kind = "double" if position_numbers(tiles) == "f64" else "float"
    programs = op.attrs["positions"]

    def one(i: Val, j: Val, keep: Val | None, values: list[Val], lanes: int) -> None:
        offset = code.splat(lead, lanes)
        for k, program in enumerate(programs):
            x = expression(code, program.body, bound(e, [program], values[: len(bounds)], kind), kind)
            axis = n + k
            last = code.sub(e.dim(table.type.shape[axis]), index(1))  # type: ignore[attr-defined]
            x = clamped(e, code.splat(x, lanes), last, lanes)
            offset = code.add(offset, code.mul(x, code.splat(e.stride(table, axis), lanes)))
        body(i, j, keep, offset, values[len(bounds) :], lanes)

    each_number(e, shape, rows, cols, [*bounds, *others], one, keep_local=True)


def _pairs(e: Emitter, tiles: Sequence[Tile]) -> tuple[tuple[int, int], Val, Val]:
    rows, cols = extents(e, tiles)
    return (max((t.shape[0] for t in tiles), default=1), max((t.shape[1] for t in tiles), default=1)), rows, cols


def clamped(e: Emitter, x: Val, last: Val, lanes: int) -> Val:
    """A position rounded to the nearest entry, ties to the even one, from 0 to ``last``; NaN is 0."""
    code = e.code
    if x.floating:
        x = code.call("llvm.roundeven", x.type, [x])
        wide = vector_of("i64", x.lanes)
        x = code.call("llvm.fptosi.sat", wide, [x], [wide, x.type])
    zero = number(0, x.type)
    x = code.call("llvm.smax", x.type, [x, zero])
    return code.call("llvm.smin", x.type, [x, code.splat(last, lanes)])


@lowering("tile.lookup")
def lookup(e: Emitter, op: Op) -> None:
    table, g, *tiles = op.operands
    shape = tile_shape(op.result.type)  # type: ignore[arg-type]
    rows, cols = extents(e, [e.tile(v) for v in tiles])
    rows, cols = (rows if shape[0] != 1 else index(1)), (cols if shape[1] != 1 else index(1))
    out = e.make(op.result, rows, cols)
    code, memory = e.code, MEMORY[table.type.dtype]  # type: ignore[attr-defined]

    def body(i: Val, j: Val, keep: Val | None, offset: Val, _: list[Val], lanes: int) -> None:
        found = code.each_lane(lambda o: code.load(memory, code.at(e.buffer(table), o, memory)), offset)
        at = code.at(out.base, i, out.memory) if out.line else e.address(out, i, j)
        code.store(convert(code, found, out.dtype), at)

    each_entry(e, op, table, g, tiles, [], body)


@lowering("tile.scatter")
def scatter(e: Emitter, op: Op) -> None:
    value, table, g, *tiles = op.operands
    code, memory = e.code, MEMORY[table.type.dtype]  # type: ignore[attr-defined]

    def body(i: Val, j: Val, keep: Val | None, offset: Val, values: list[Val], lanes: int) -> None:
        for n in range(lanes):
            at = code.at(e.buffer(table), code.lane(offset, n), memory)

            def add(n: int = n, at: Val = at) -> None:
                old = code.load(memory, at)
                x = convert(code, code.lane(values[0], n), table.type.dtype)  # type: ignore[attr-defined]
                code.store(code.add(old, x), at)

            if keep is None:
                add()
            else:
                with code.when(code.lane(keep, n)):
                    add()

    each_entry(e, op, table, g, tiles, [e.tile(value)], body)
