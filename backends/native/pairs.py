"""Pairs of a tile that are computed again one by one: a look at whole vectors, and loops over channels where one asks
for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from aatc.backends.native.elements import copy, each_number, put
from aatc.backends.native.emit import Emitter, temporary_of
from aatc.backends.native.isa import Isa
from aatc.backends.native.llvm import Val, index, number
from aatc.backends.native.table import lowering
from aatc.backends.native.tiles import ALIGN, Tile
from aatc.backends.native.words import word
from aatc.ir.core import Op, Value
from aatc.ir.score.expr import Expr, postorder
from aatc.ir.score.program import Program
from aatc.ir.tile_pairs import is_inside


class Pair:
    """Programs of one pair (i, j): numbers once each, vectors channel by channel."""

    def __init__(self, e: Emitter, programs: Sequence[Program], tiles: Sequence[Tile], i: Val, j: Val):
        self.e, self.kind = e, "double" if tiles[0].dtype == "f64" else "float"
        self.i, self.j = i, j
        self.bound = dict(zip(programs[0].params, tiles, strict=True))
        self.done: dict[Expr, Val] = {}
        for x in postorder(*(p.body for p in programs)):
            if not x.rank:
                self.done[x] = self._sum(x) if x.fn in ("dot", "sum") else self.value(x, None)

    def _sum(self, x: Expr) -> Val:
        code = self.e.code
        width = next(self.bound[p].shape[1] for p in postorder(x) if p in self.bound and p.rank)

        def step(c: Val, total: Val) -> list[Val]:
            factors = [self.value(a, c) for a in x.args]
            product = factors[0] if len(factors) == 1 else code.mul(factors[0], factors[1])
            return [code.add(total, product)]

        (out,) = code.loop(index(0), index(width), 1, step, [number(0, self.kind)])
        return out

    def value(self, x: Expr, c: Val | None) -> Val:
        """An expression, of vectors at channel ``c``."""
        local: dict[Expr, Val] = {}
        for y in postorder(x):
            if y in self.done or y in local:
                continue
            if y in self.bound:
                local[y] = self._read(y, c)
            elif y.is_const:
                local[y] = number(y.value, {"b": "i1", "i": "i64"}.get(y.dtype, self.kind))
            else:
                local[y] = word(self.e.code, y, [local[a] if a in local else self.done[a] for a in y.args], self.kind)
        return local[x] if x in local else self.done[x]

    def _read(self, p: Expr, c: Val | None) -> Val:
        t = self.bound[p]
        row, col = self.place(p, c)
        return self.e.read(t, row, col, 1)

    def place(self, p: Expr, c: Val | None) -> tuple[Val, Val]:
        """Where the tile of a parameter holds what belongs to the pair."""
        axes = p.attrs[1]
        if p.rank:
            return (self.i if "i" in axes else self.j), (c if c is not None else index(0))
        return self.i, self.j


def _lost(e: Emitter, x: Val, low: Val, high: Val, inside: bool) -> Val:
    """Which numbers do not lie between two others, NaN among them; or with ``inside`` those that do."""
    code = e.code
    if inside:
        above = code.compare("oge", x, code.splat(low, x.lanes))
        below = code.compare("ole", x, code.splat(high, x.lanes))
        return code.op(below.type, f"and {below.type} {below.text}, {above.text}")
    below = code.compare("ult", x, code.splat(low, x.lanes))
    above = code.compare("ugt", x, code.splat(high, x.lanes))
    return code.op(below.type, f"or {below.type} {below.text}, {above.text}")


def each_lost(
    e: Emitter, tiles: Sequence[Tile], low: Tile, high: Tile, inside: bool, body: Callable[[Val, Val], None]
) -> None:
    """Calls ``body`` for every pair whose number in the first tile is lost, and, of a second tile, is not 0."""
    code, first = e.code, tiles[0]

    def vector(i: Val, j: Val, out: Val, lanes: int) -> None:
        if lanes == 1:
            body(i, j)
            return
        bits = code.cast("bitcast", out, f"i{lanes}")

        def lane(n: Val) -> None:
            at = code.cast("trunc", n, bits.type)
            bit = code.op(bits.type, f"lshr {bits.type} {bits.text}, {at.text}")
            with code.when(code.cast("trunc", bit, "i1")):
                if first.line:
                    body(code.add(i, n), index(0))
                else:
                    body(i, code.add(j, n))

        code.loop(index(0), index(lanes), 1, lambda n: lane(n))

    each_vector_lost(e, tiles, low, high, inside, vector)


def each_vector_lost(
    e: Emitter,
    tiles: Sequence[Tile],
    low: Tile,
    high: Tile,
    inside: bool,
    body: Callable[[Val, Val, Val, int], None],
) -> None:
    """`each_lost`, vector by vector: calls ``body`` with (i, j, which lanes are lost, lanes) where one is."""
    code, first = e.code, tiles[0]
    bounds = [e.read(t, index(0), index(0), 1) for t in (low, high)]

    def vector(i: Val, j: Val, keep: Val | None, values: list[Val], lanes: int) -> None:
        out = _lost(e, values[0], bounds[0], bounds[1], inside)
        if len(values) > 1:
            some = code.compare("une", values[1], number(0, values[1].type))
            out = code.op(out.type, f"and {out.type} {out.text}, {some.text}")
        if keep is not None:
            out = code.op(out.type, f"and {out.type} {out.text}, {keep.text}")
        any_ = out if lanes == 1 else code.call("llvm.vector.reduce.or", "i1", [out], [out.type])
        with code.when(any_):
            body(i, j, out, lanes)

    each_number(e, first.shape, first.rows, first.cols, tiles, vector, keep_local=True)


@lowering("tile.refine")
def refine(e: Emitter, op: Op) -> None:
    tile, low, high, *tiles = (e.tile(v) for v in op.operands)
    out = e.make(op.result, tile.rows, tile.cols)
    copy(e, out, tile)
    program: Program = op.attrs["program"]

    def again(i: Val, j: Val) -> None:
        x = Pair(e, [program], tiles, i, j).done[program.body]
        e.code.store(x, e.address(out, i, j))

    each_lost(e, [out], low, high, is_inside(op), again)


@temporary_of("tile.refine_gradient")
def _flag_bytes(isa: Isa, op: Op) -> list[int]:
    """Room for whether any pair is lost."""
    return [ALIGN]


@lowering("tile.refine_gradient")
def refine_gradient(e: Emitter, op: Op) -> None:
    cotangent, tile, low, high, *tiles = (e.tile(v) for v in op.operands)
    code = e.code
    rest = e.make(op.results[0], cotangent.rows, cotangent.cols)
    copy(e, rest, cotangent)
    grads = [e.make(r, t.rows, t.cols) for r, t in zip(op.results[1:], tiles, strict=True)]
    programs: list[Program] = op.attrs["programs"]

    def again(i: Val, j: Val) -> None:
        pair = Pair(e, programs, [rest, *tiles], i, j)
        for program, d, p in zip(programs, grads, programs[0].params[1:], strict=True):

            def add(c: Val | None, program: Program = program, d: Tile = d, p: Expr = p) -> None:
                x = pair.value(program.body, c)
                at = e.address(d, *pair.place(p, c))
                code.store(code.add(code.load(d.memory, at), x), at)

            if p.rank:
                code.loop(index(0), index(d.shape[1]), 1, lambda c, add=add: add(c))
            else:
                add(None)
        code.store(number(0, rest.memory), e.address(rest, i, j))

    def all_pairs() -> None:
        for d in grads:
            each_number(e, d.shape, d.rows, d.cols, [], _writer(e, d, number(0, d.memory)))
        each_lost(e, [tile, rest], low, high, is_inside(op), again)

    if not all(_is_only_added(e, r) for r in op.results[1:]):
        all_pairs()
        return
    flag = e.temporary(op)
    code.store(index(0), flag)
    each_vector_lost(e, [tile, rest], low, high, is_inside(op), lambda *_: code.store(index(1), flag))
    found = code.compare("ne", code.load("i64", flag), index(0))
    for r, d in zip(op.results[1:], grads, strict=True):
        e.tiles[r] = replace(d, filled=found)
    with code.when(found):
        all_pairs()


def _is_only_added(e: Emitter, v: Value) -> bool:
    """Whether a tile of nothing need not be filled with zeros."""
    return all(x.name == "tile.store" and x.attrs["add"] for x in e.read_by.get(v, ()))


def _writer(e: Emitter, d: Tile, value: Val) -> Callable[..., None]:
    def write(i: Val, j: Val, keep: Val | None, values: list[Val], lanes: int) -> None:
        put(e, d, i, j, value, lanes)

    return write
