"""Products of tiles in register blocks.

One loop does all three forms: a block of MR rows and NV vectors of the result is held in registers while the contracted
axis goes by; each step reads NV vectors of the second factor and MR numbers of the first, each for all lanes. What the
forms differ in is where these stand. The second factor of nt has to lie in panels; where the program has not packed it,
it is turned into scratch memory first.

Few rows are not worth turning the second factor: a vector of features is multiplied at a time, and added up across at
the end.

Rows behind the last of a view are that one again, so that nothing is read outside of a buffer; what comes of rows
behind the last lands in those that a tile in scratch memory has to spare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aatc.backends.native.bf16 import short_products
from aatc.backends.native.declarations import few_rows, panel_of
from aatc.backends.native.elements import across, copy
from aatc.backends.native.emit import Emitter, temporary_of
from aatc.backends.native.isa import Isa
from aatc.backends.native.llvm import MEMORY, Val, index, number, size_of, vector_of
from aatc.backends.native.table import lowering
from aatc.backends.native.tiles import ALIGN, MOST_ROWS, Tile, lanes_of, row_length, tile_shape
from aatc.backends.native.whole import panels
from aatc.ir.core import Op
from aatc.ir.errors import BackendError
from aatc.ir.tile_rules import dot_type

#: Steps of the contracted axis that stand in the body of the loop.
_UNROLL = 4
#: Keys whose features are multiplied at a time; vectors of every instruction set have as many numbers, or more.
_KEYS = 4


@temporary_of("tile.dot")
def turned_bytes(isa: Isa, op: Op) -> list[int]:
    """Room for the panels of a second factor that is not packed."""
    b = op.operands[1]
    if b.type.dtype == "bf16":  # type: ignore[attr-defined]
        return []
    if op.attrs["form"] != "nt" or tile_shape(dot_type(op))[1] == 1 or panel_of(b):
        return []
    if goes_by_features(isa, op):
        return []
    rows, cols = tile_shape(b.type)  # type: ignore[arg-type]
    panel = own_panel(isa, rows)
    n = -(-rows // panel) * panel * cols * size_of(MEMORY[b.type.dtype])  # type: ignore[attr-defined]
    return [-(-n // ALIGN) * ALIGN]


def goes_by_features(isa: Isa, op: Op) -> bool:
    """Whether a product nt takes its second factor as it lies."""
    return tile_shape(dot_type(op))[1] > 1 and lanes_of(isa) > 1 and few_rows(op)


def own_panel(isa: Isa, cols: int) -> int:
    """Of a factor that is turned here: up to four vectors, as many as divide the columns' vectors."""
    lanes = lanes_of(isa)
    vectors = -(-cols // lanes)
    return lanes * next(n for n in (4, 3, 2, 1) if vectors % n == 0)


@lowering("tile.dot")
def dot(e: Emitter, op: Op) -> None:
    a, b, *c = (e.tile(v) for v in op.operands)
    form = op.attrs["form"]
    rows, cols, depth = {
        "nt": (a.rows, b.rows, a.cols),
        "nn": (a.rows, b.cols, a.cols),
        "tn": (a.cols, b.cols, a.rows),
    }[form]
    out = e.make(op.result, rows, cols)
    if c:
        copy(e, out, c[0])
    if a.dtype == "bf16":
        short_products(e, op, a, b, out, depth)
        return
    if out.shape[1] == 1 or e.lanes == 1:
        _by_numbers(e, form, a, b, out, depth, bool(c))
        return
    if form == "nt" and goes_by_features(e.isa, op):
        _by_features(e, a, b, out, bool(c))
        return
    most = e.isa.registers // 4 if out.shape[0] == 1 else e.blocks[1]  # one row has sums of few vectors to hold
    vectors = min(most, -(-out.shape[1] // e.lanes))
    if form == "nt":
        b, vectors = panelled(e, op, b, out.shape)
    blocks = Blocks(e, form, a, b, out.of(rows, cols), depth, vectors, bool(c))
    blocks.each(blocks.stored)


def panelled(e: Emitter, op: Op, b: Tile, shape: tuple[int, int], room: int = 0) -> tuple[Tile, int]:
    """The second factor of nt in panels, and how many vectors wide these are. ``shape``: of the product. ``room``: the
    number of the buffer for the panels among the operation's temporaries."""
    if not b.panel:
        b = _turned(e, op, b, room)
    if b.panel % e.lanes or row_length(e.isa, shape) % b.panel:
        raise BackendError(f"panels of {b.panel} do not fit {shape[1]} columns in vectors of {e.lanes}")
    return b, b.panel // e.lanes


def _turned(e: Emitter, op: Op, b: Tile, room: int) -> Tile:
    """The second factor of nt in panels, in scratch memory."""
    panel = own_panel(e.isa, b.shape[0])
    to = e.temporary(op, room)
    width = b.shape[1]

    panels(e, b.base, (b.row, index(1)), to, (index(0), b.rows), b.rows, width, panel, b.memory)
    return Tile(to, index(0), b.rows, b.cols, b.shape, b.dtype, local=True, panel=panel)


def _by_numbers(e: Emitter, form: str, a: Tile, b: Tile, out: Tile, depth: Val, add: bool) -> None:
    """For a result of one column: number by number."""
    code = e.code
    zero = index(0)

    def at_b(k: Val, j: Val) -> Val:
        if b.panel and form == "nt":  # of one token: the first of a panel
            return code.at(b.base, code.add(code.mul(k, index(b.panel)), j), b.memory)
        return e.address(b, j, k) if form == "nt" else e.address(b, k, j)

    def one(i: Val, j: Val) -> None:
        first = code.load(out.memory, e.address(out, i, j)) if add else number(0, out.memory)

        def step(k: Val, t: Val) -> list[Val]:
            x = code.load(a.memory, e.address(a, k, i) if form == "tn" else e.address(a, i, k))
            return [code.fma(x, code.load(b.memory, at_b(k, j)), t)]

        (total,) = code.loop(zero, depth, 1, step, [first])
        code.store(total, e.address(out, i, j))

    e.each_row(out.rows, lambda i: e.each_row(out.cols, lambda j: one(i, j)))


def _by_features(e: Emitter, a: Tile, b: Tile, out: Tile, add: bool) -> None:
    """Product nt of few rows: some rows of either factor at a time, vector by vector of their features."""
    code, lanes = e.code, e.lanes
    high = min(4 if e.isa.registers >= 32 else 2, out.shape[0])
    v, width = vector_of(out.memory, lanes), b.shape[1]
    zero = number(0, v)

    def heads(t: Tile, first: Val, count: int, last: Val) -> list[Val]:
        found = []
        for n in range(count):
            k = code.add(first, index(n))
            k = code.call("llvm.smin", "i64", [k, last]) if n and not t.local else k
            found.append(code.at(t.base, code.mul(k, t.row), t.memory))
        return found

    def block(i: Val, j: Val, last: tuple[Val, Val]) -> None:
        rows, cols = heads(a, i, high, last[0]), heads(b, j, _KEYS, last[1])

        def part(k: Val, sums: Sequence[Val], keep: Val | None = None) -> list[Val]:
            xs, ys = ([code.load(v, code.at(h, k, out.memory), keep=keep) for h in side] for side in (rows, cols))
            return [code.fma(x, y, sums[m * _KEYS + n]) for m, x in enumerate(xs) for n, y in enumerate(ys)]

        whole = width // lanes * lanes
        sums = [zero] * (high * _KEYS)
        if whole:
            sums = code.loop(index(0), index(whole), lanes, lambda k, *s: part(k, s), sums)
        if whole < width:
            sums = part(index(whole), sums, code.below(index(whole), index(width), lanes))
        for m in range(high):
            for n in range(_KEYS):
                at = e.address(out, code.add(i, index(m)), code.add(j, index(n)))
                total = across(e, "sum", sums[m * _KEYS + n])
                code.store(code.add(code.load(out.memory, at), total) if add else total, at)

    last = code.sub(a.rows, index(1)), code.sub(b.rows, index(1))
    code.loop(
        index(0), out.rows, high, lambda i: code.loop(index(0), out.cols, _KEYS, lambda j: block(i, j, last)) and None
    )


#: What becomes of a block of a product: takes the number of its first row and of its first column, and its vectors row
#: by row.
Finish = Callable[[Val, Val, list[list[Val]]], None]


@dataclass(frozen=True)
class Blocks:
    """A product in register blocks: of ``form``, over ``depth`` contracted entries, blocks ``vectors`` wide. ``out``
    says how large it is and, where something is added, what it is added to."""

    e: Emitter
    form: str
    a: Tile
    b: Tile
    out: Tile
    depth: Val
    vectors: int
    add: bool = False

    @property
    def high(self) -> int:
        """Rows of a block."""
        return max(1, min(self.e.blocks[0], MOST_ROWS, self.out.shape[0]))

    def stored(self, i: Val, j: Val, found: list[list[Val]]) -> None:
        """Writes a block to ``out``."""
        for at, row in zip(self._addresses(i, j, len(found[0])), found, strict=False):
            for address, x in zip(at, row, strict=True):
                self.e.code.store(x, address)

    def _addresses(self, i: Val, j: Val, vectors: int) -> list[list[Val]]:
        code, lanes = self.e.code, self.e.lanes
        found = [
            [self.e.address(self.out, code.add(i, index(m)), code.add(j, index(n * lanes))) for n in range(vectors)]
            for m in range(self.high)
        ]
        return found[:1] if self.out.shape[0] == 1 else found

    def each(self, finish: Finish) -> None:
        """All blocks, column by column."""
        e, code, b, out, form = self.e, self.e.code, self.b, self.out, self.form
        wide = self.vectors * e.lanes

        def column(j: Val, used: int) -> None:
            if form == "nt":
                base = code.at(b.base, code.mul(j, index(b.shape[1])), b.memory)
                step, ragged = index(b.panel), None
            else:
                base = code.at(b.base, j, b.memory)
                step = b.row
                ragged = None if b.local else b.shape[1]
            code.loop(
                index(0),
                out.rows,
                self.high,
                lambda i: finish(i, j, self._block(i, j, (base, step), used, ragged)),
            )

        if form == "nt" or out.shape[1] > wide:
            whole = out.cols if form == "nt" else index(out.shape[1] // wide * wide)
            code.loop(index(0), whole, wide, lambda j: column(j, self.vectors))
        if form != "nt":
            rest = out.shape[1] - (out.shape[1] // wide * wide if out.shape[1] > wide else 0)
            if rest:
                column(index(out.shape[1] - rest), -(-rest // e.lanes))

    def _block(self, i: Val, j: Val, source: tuple[Val, Val], vectors: int, ragged: int | None) -> list[list[Val]]:
        """Rows i ... and vectors j ... of the product. ``source``: the first vector of the second factor and the way
        from one contracted entry to the next. ``ragged``: columns of it that may not be read behind them."""
        code, lanes, a, out, high = self.e.code, self.e.lanes, self.a, self.out, self.high
        base, step = source
        tn = self.form == "tn"
        v = vector_of(out.memory, lanes)
        last = code.sub(a.cols if tn else a.rows, index(1))
        heads: list[Val] = []
        for m in range(high):
            k = code.add(i, index(m))
            if m and not a.local:
                k = code.call("llvm.smin", "i64", [k, last])
            heads.append(code.at(a.base, k if tn else code.mul(k, a.row), a.memory))
        along = a.row if tn else index(1)
        first = [number(0, v)] * (high * vectors)
        if self.add:
            outs = self._addresses(i, j, vectors)
            first = [code.load(v, outs[min(m, len(outs) - 1)][n]) for m in range(high) for n in range(vectors)]

        def part(k: Val, sums: Sequence[Val]) -> list[Val]:
            at = code.at(base, code.mul(k, step), out.memory)
            found = []
            for n in range(vectors):
                keep = None
                if ragged is not None and n == vectors - 1 and ragged % lanes and _is_last(j, n, lanes, ragged):
                    keep = Val(
                        "<" + ", ".join(f"i1 {'true' if x < ragged % lanes else 'false'}" for x in range(lanes)) + ">",
                        vector_of("i1", lanes),
                    )
                found.append(code.load(v, code.at(at, index(n * lanes), out.memory), keep=keep))
            done = list(sums)
            for m in range(high):
                x = code.splat(code.load(a.memory, code.at(heads[m], code.mul(k, along), a.memory)), lanes)
                for n in range(vectors):
                    done[m * vectors + n] = code.fma(x, found[n], done[m * vectors + n])
            return done

        sums = contracted(self.e, self.depth, part, first)
        return [sums[m * vectors : (m + 1) * vectors] for m in range(high)]


def _is_last(j: Val, n: int, lanes: int, ragged: int) -> bool:
    return not j.text.startswith("%") and int(j.text) + (n + 1) * lanes > ragged


def contracted(e: Emitter, depth: Val, part: Callable[[Val, Sequence[Val]], list[Val]], first: list[Val]) -> list[Val]:
    """The loop over the contracted axis, some steps at once."""
    code = e.code
    literal = not depth.text.startswith("%")
    whole = (
        index(int(depth.text) // _UNROLL * _UNROLL) if literal else code.op("i64", f"and i64 {depth.text}, {-_UNROLL}")
    )

    def several(k: Val, *sums: Val) -> list[Val]:
        found = list(sums)
        for n in range(_UNROLL):
            found = part(code.add(k, index(n)), found)
        return found

    sums = code.loop(index(0), whole, _UNROLL, several, first)
    if literal and int(depth.text) % _UNROLL == 0:
        return sums
    return code.loop(whole, depth, 1, lambda k, *s: part(k, list(s)), sums)
