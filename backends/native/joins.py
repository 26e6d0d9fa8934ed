"""Programs over one tile and sums of its rows in one loop: over a tile in memory, row by row, or over the blocks of a
product while they are in registers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aatc.backends.native.declarations import accumulators, product_of, shape_of
from aatc.backends.native.declarations import tiles as tiles_of
from aatc.backends.native.elements import START, across, bound, combined, extents, put
from aatc.backends.native.emit import Emitter, temporary_of
from aatc.backends.native.isa import Isa
from aatc.backends.native.llvm import MEMORY, Val, index, number, size_of, vector_of
from aatc.backends.native.products import Blocks, panelled, turned_bytes
from aatc.backends.native.table import lowering
from aatc.backends.native.tiles import ALIGN, MOST_ROWS, Tile, lanes_of
from aatc.backends.native.words import expressions
from aatc.ir.core import Op
from aatc.ir.types import TileType


@temporary_of("native.join")
def row_bytes(isa: Isa, op: Op) -> list[int]:
    """Of a product: room for a vector of every row and sum, and for the panels of its second factor."""
    if not product_of(op):
        return []
    made: TileType = op.results[0].type  # type: ignore[assignment]
    n = (shape_of(op)[1] + MOST_ROWS - 1) * lanes_of(isa) * size_of(MEMORY[made.dtype])
    sums = sum(keep != "tile" for keep in op.attrs["keeps"])
    return [*[-(-n // ALIGN) * ALIGN] * sums, *turned_bytes(isa, op)]


@dataclass
class _Loop:
    """What is made in the loop. ``totals``: positions among the results of those that are sums of rows."""

    e: Emitter
    op: Op
    tiles: list[Tile]
    shape: tuple[int, int]
    rows: Val
    cols: Val

    def __post_init__(self) -> None:
        e, op = self.e, self.op
        self.keeps: Sequence[str] = op.attrs["keeps"]
        self.totals = [n for n, keep in enumerate(self.keeps) if keep != "tile"]
        before = {n: e.tile(op.operands[at]) for at, n in accumulators(op).items()}
        self.before = [before.get(n) for n in self.totals]
        self.outs = [
            e.make(r, self.rows, self.cols if keep == "tile" else index(1))
            for r, keep in zip(op.results, self.keeps, strict=True)
        ]
        self.scalar = "double" if self.outs[0].dtype == "f64" else "float"

    def starts(self) -> list[Val]:
        return [number(START[self.keeps[n]], vector_of(self.scalar, self.e.lanes)) for n in self.totals]

    def numbers(self, i: Val, j: Val, read: Sequence[Val], totals: Sequence[Val], keep: Val | None) -> list[Val]:
        """One vector: stores what is kept of it, and gives the sums with it. ``keep``: lanes that count."""
        e = self.e
        programs = self.op.attrs["programs"]
        values = bound(e, programs[:1], read, self.scalar)
        found = expressions(e.code, [p.body for p in programs], values, self.scalar)
        found = [e.code.splat(x, e.lanes) for x in found]
        for x, out, kept in zip(found, self.outs, self.keeps, strict=True):
            if kept == "tile":
                put(e, out, i, j, x, e.lanes)
        sums = []
        for n, total, start in zip(self.totals, totals, self.starts(), strict=True):
            x = found[n] if keep is None else e.code.select(keep, found[n], start)
            sums.append(combined(e, self.keeps[n], total, x))
        return sums

    def ended(self, i: Val, totals: Sequence[Val]) -> None:
        """Stores the sums of a row, given lane by lane."""
        e, code = self.e, self.e.code
        for n, total, before in zip(self.totals, totals, self.before, strict=True):
            x = across(e, self.keeps[n], total)
            if before is not None:
                x = combined(e, self.keeps[n], code.load(before.memory, e.address(before, i, index(0))), x)
            code.store(x, e.address(self.outs[n], i, index(0)))


@lowering("native.join")
def join(e: Emitter, op: Op) -> None:
    tiles = [e.tile(v) for v in tiles_of(op)]
    _, *shape = shape_of(op)
    pair = (shape[0], shape[1])
    if not product_of(op):
        rows, cols = extents(e, tiles)
        _over_rows(_Loop(e, op, tiles, pair, rows, cols))
        return
    a, b = (e.tile(v) for v in product_of(op))
    _over_blocks(_Loop(e, op, tiles, pair, a.rows, b.rows), a, b)


def _over_rows(loop: _Loop) -> None:
    e, code, lanes, cols = loop.e, loop.e.code, loop.e.lanes, loop.cols
    literal = not cols.text.startswith("%")
    whole = index(int(cols.text) // lanes * lanes) if literal else code.op("i64", f"and i64 {cols.text}, {-lanes}")

    def row(i: Val) -> None:
        narrow = {n: e.read(t, i, index(0), lanes) for n, t in enumerate(loop.tiles) if t.shape[1] == 1}

        def vector(j: Val, keep: Val | None, totals: Sequence[Val]) -> list[Val]:
            read = [narrow[n] if n in narrow else e.read(t, i, j, lanes, keep) for n, t in enumerate(loop.tiles)]
            return loop.numbers(i, j, read, totals, keep)

        totals = code.loop(index(0), whole, lanes, lambda j, *t: vector(j, None, t), loop.starts())
        if not literal or int(cols.text) % lanes:
            totals = code.loop(whole, cols, lanes, lambda j, *t: vector(j, code.below(j, cols, lanes), t), totals)
        loop.ended(i, totals)

    e.each_row(loop.rows, row)


def _over_blocks(loop: _Loop, a: Tile, b: Tile) -> None:
    """Sums of rows are vectors in scratch memory until all blocks are done."""
    e, code, lanes, op = loop.e, loop.e.code, loop.e.lanes, loop.op
    b, vectors = panelled(e, op, b, loop.shape, len(loop.totals))
    product = Tile(Val("null", "ptr"), index(0), loop.rows, loop.cols, loop.shape, loop.outs[0].dtype, local=True)
    blocks = Blocks(e, "nt", a, b, product, a.cols, vectors)
    sums = [e.temporary(op, n) for n in range(len(loop.totals))]
    v = vector_of(loop.scalar, lanes)
    last = code.sub(loop.rows, index(1))
    ragged = loop.cols.text.startswith("%") or int(loop.cols.text) % (vectors * lanes) != 0

    def place(n: int, i: Val) -> Val:
        return code.at(sums[n], code.mul(i, index(lanes)), loop.scalar)

    def begin(i: Val) -> None:
        for n, x in enumerate(loop.starts()):
            code.store(x, place(n, i))

    def finish(i: Val, j: Val, found: list[list[Val]]) -> None:
        columns = [code.add(j, index(n * lanes)) for n in range(vectors)]
        keeps = [code.below(at, loop.cols, lanes) if ragged else None for at in columns]
        for m, block in enumerate(found[: loop.shape[0]]):
            k = code.add(i, index(m))
            inside = code.call("llvm.smin", "i64", [k, last]) if m and any(not t.local for t in loop.tiles) else k
            totals = [code.load(v, place(n, k)) for n in range(len(sums))]
            for at, keep, x in zip(columns, keeps, block, strict=True):
                read = [e.read(t, k if t.local else inside, at, lanes, keep) for t in loop.tiles]
                totals = loop.numbers(k, at, [x, *read], totals, keep)
            for n, x in enumerate(totals):
                code.store(x, place(n, k))

    if sums:
        code.loop(index(0), loop.rows, 1, begin)
    blocks.each(finish)
    if sums:
        code.loop(
            index(0), loop.rows, 1, lambda i: loop.ended(i, [code.load(v, place(n, i)) for n in range(len(sums))])
        )
