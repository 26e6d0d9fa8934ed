"""A task of a tile function as LLVM code: an environment of tiles, buffers and positions, and operations one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from aatc.backends.liveness import Interval, Liveness, place
from aatc.backends.native.context import Layout, constant, rank_of
from aatc.backends.native.declarations import accumulators, reads_panels, tiles
from aatc.backends.native.halves import narrowed, widened
from aatc.backends.native.isa import Isa
from aatc.backends.native.llvm import MEMORY, Code, Val, index, number, size_of, vector_of
from aatc.backends.native.table import lowering
from aatc.backends.native.tiles import Tile, is_part, is_view, lanes_of, placed, scratch_bytes
from aatc.ir.core import Block, Op, Value
from aatc.ir.dims import Dim, factors
from aatc.ir.errors import BackendError
from aatc.ir.registry import lookup_op
from aatc.ir.types import TensorType, TileType


class Emitter:
    """Writes the operations of one task. ``code.args`` are the context, the thread's scratch memory, the task's number.

    blocks: (rows, vectors) of a product's register block.
    """

    def __init__(self, code: Code, isa: Isa, layout: Layout, blocks: tuple[int, int]):
        self.code, self.isa, self.layout, self.blocks = code, isa, layout, blocks
        self.lanes = lanes_of(isa)
        self.tiles: dict[Value, Tile] = {}
        self.at: dict[Value, Val] = {}  # of loops and truth values
        self.extent: dict[Value, Val] = {}  # of a loop's round, by its position
        self.carriers: dict[Op, Op] = {}
        self.read_by: dict[Value, list[Op]] = {}
        self.live = Liveness(
            lambda t: scratch_bytes(isa, t),
            _replaceable,
            lambda op: temporaries(isa, op),
            view=lambda op: is_view(op),
            part=is_part,
            moves=True,
        )
        self.scratch_bytes = 0

    # --- what lies where -------------------------------------------------------------------------------------
    def plan(self, ops: list[Op], kept: Set[Value] = frozenset()) -> None:
        """Places all tiles of operations that are written one after the other. ``kept``: some that stand to the end."""
        self.live.ops(ops, set(), kept)
        self.scratch_bytes = place(self.live.every)
        self.carriers |= {x.regions[0].ops[-1]: x for op in ops for x in _with_regions(op)}
        for op in ops:
            for x in (op, *(y for region in op.regions for y in region.walk())):
                for v in dict.fromkeys(x.operands):
                    self.read_by.setdefault(v, []).append(x)

    def scratch(self, at: Interval) -> Val:
        """The address of a planned part of scratch memory."""
        code = self.code
        if code.bounds is None:
            return code.early(lambda: code.at(code.args[1], index(at.offset), "i8"))
        # a name of its own even at the beginning: it has its own range
        start = code.early(lambda: code.op("ptr", f"getelementptr i8, ptr {code.args[1].text}, i64 {at.offset}"))
        code.bounds.begin(start, index(at.size))
        return start

    def temporary(self, op: Op, n: int = 0) -> Val:
        """The address of a buffer that `temporaries` has named."""
        return self.scratch(self.live.scratch[op][n])

    def make(self, v: Value, rows: Val, cols: Val) -> Tile:
        """A tile value in scratch memory, with the extents of this round."""
        interval = self.live.interval(v)
        if interval is None:
            raise BackendError(f"tile %{v.name} has no place")
        t: TileType = v.type  # type: ignore[assignment]
        tile = self.tiles[v] = placed(self.isa, self.scratch(interval), t, rows, cols)
        return tile

    def word(self, place: int, type_: str = "i64") -> Val:
        """A number of the call's context."""
        return self.code.early(
            lambda: self.code.load(type_, self.code.at(self.code.args[0], index(place), "i64"), align=8)
        )

    def buffer(self, v: Value) -> Val:
        place = self.layout.buffer(v)
        start = self.word(place, "ptr")
        if self.code.bounds is not None:
            self.code.bounds.begin(start, self.word(place + 1 + rank_of(v)))
        return start

    def stride(self, v: Value, axis: int) -> Val:
        """Elements from one entry of a buffer to the next along an axis; 0 along one of extent 1."""
        t: TensorType = v.type  # type: ignore[assignment]
        if constant(t.shape[axis]) == 1:
            return index(0)
        if axis == len(t.shape) - 1:  # the caller sees to it of arguments
            return index(1)
        if isinstance(v.owner, Op):  # laid out by the caller as a new tensor is
            known = 1
            for d in t.shape[axis + 1 :]:
                n = constant(d)
                if n is None:
                    break
                known *= n
            else:
                return index(known)
        elif axis == t.rank - 1:  # the caller sees to it
            return index(1)
        return self.word(self.layout.buffer(v) + 1 + axis)

    def dim(self, d: Dim | int) -> Val:
        d = Dim.of(d)
        if d.is_static:
            return index(d.const)

        def write() -> Val:
            total = index(d.const)
            for name, c in d.terms:
                product = index(c)
                for f in factors(name):
                    at = self.code.at(self.code.args[0], index(self.layout.symbol(f)), "i64")
                    product = self.code.mul(product, self.code.load("i64", at, align=8))
                total = self.code.add(total, product)
            return total

        return self.code.early(write)

    def runs_shape(self, v: Value, axis: int) -> Val:
        return self.word(self.layout.buffer(v) + 1 + axis)

    def tile(self, v: Value) -> Tile:
        return self.tiles[v]

    # --- operations ------------------------------------------------------------------------------------------
    def block(self, block: Block) -> None:
        self.ops(block.ops)

    def ops(self, ops: Iterable[Op]) -> None:
        for op in ops:
            self.code.note(_shown(op))
            self._check_panels(op)
            with self.timed(op):
                lowering[op.name](self, op)

    def _check_panels(self, op: Op) -> None:
        """Operations read rows, but for those that say they read panels: others would take what lies there for rows."""
        for n, v in enumerate(op.operands):
            if v in self.tiles and self.tiles[v].panel and not reads_panels(op, n):
                raise BackendError(
                    f"{op.name} reads rows, and %{v.name or '?'} is a part of a buffer in panels",
                    hint="the pass rows-by-use loads rows for it, where the buffer was packed from some",
                )

    def timed(self, op: Op) -> AbstractContextManager[None]:
        """Around the code of an operation, which a build that counts counts."""
        counters = self.code.module.counters
        return nullcontext() if counters is None else counters.around(self.code, op, _shown(op))

    # --- loops over the numbers of tiles -----------------------------------------------------------------------
    def each_row(self, rows: Val, body: Callable[[Val], None]) -> None:
        if rows.text == "1":
            body(index(0))
        else:
            self.code.loop(index(0), rows, 1, lambda i: body(i))

    def each_vector(self, n: Val, body: Callable[[Val, Val | None], None], *, masked: bool) -> None:
        """Vectors of n numbers. The body takes the first one's number and, where ``masked`` and it is needed, which
        lanes lie below n."""
        code, lanes = self.code, self.lanes
        whole = not n.text.startswith("%") and int(n.text) % lanes == 0
        if n.text == str(lanes) or (n.text == "1" and lanes == 1):
            body(index(0), None)
            return

        def one(j: Val) -> None:
            body(j, code.below(j, n, lanes) if masked and not whole else None)

        code.loop(index(0), n, lanes, one)

    # --- numbers of tiles ------------------------------------------------------------------------------------
    def address(self, t: Tile, i: Val, j: Val) -> Val:
        code = self.code
        if t.panel:
            raise BackendError("a part of a buffer in panels is read by products only")
        row = index(0) if t.shape[0] == 1 else i
        col = index(0) if t.shape[1] == 1 else j
        return code.at(t.base, code.add(code.mul(row, t.row), col), t.memory)

    def read(self, t: Tile, i: Val, j: Val, lanes: int, keep: Val | None = None) -> Val:
        """Numbers (i, j ...) along j, or a number in every lane where the tile has one column. Truth values are i1."""
        code = self.code
        at = self.address(t, i, j)
        if t.shape[1] == 1 or lanes == 1:
            return code.splat(self._loaded(t, code.load(t.memory, at)), lanes)
        mask = None if t.local else keep
        return self._loaded(t, code.load(vector_of(t.memory, lanes), at, keep=mask))

    def read_line(self, t: Tile, i: Val, lanes: int, keep: Val | None = None) -> Val:
        """Numbers (i ...) along i of a tile of one column, or the one it has."""
        code = self.code
        if t.shape[0] == 1:
            return code.splat(self._loaded(t, code.load(t.memory, t.base)), lanes)
        at = code.at(t.base, code.mul(i, t.row), t.memory)
        if lanes == 1:
            return self._loaded(t, code.load(t.memory, at))
        return self._loaded(t, code.load(vector_of(t.memory, lanes), at, keep=None if t.local else keep))

    def _loaded(self, t: Tile, x: Val) -> Val:
        return self.code.compare("ne", x, number(0, x.type)) if t.dtype == "bool" else x

    def stored(self, x: Val, dtype: str) -> Val:
        """A number as it stands in memory of ``dtype``."""
        return convert(self.code, x, dtype)


def convert(code: Code, x: Val, dtype: str) -> Val:
    """Numbers or truth values as memory of ``dtype`` holds them; integers of floating-point numbers are cut off."""
    to = vector_of(MEMORY[dtype], x.lanes)
    if x.scalar == "i1":
        if dtype in ("f64", "f32", "f16", "bf16"):
            return code.cast("uitofp", x, to)
        return code.cast("zext", x, to)
    if dtype == "bool":
        return code.cast("zext", code.compare("une" if x.floating else "ne", x, number(0, x.type)), to)
    if x.floating:
        if dtype in ("f64", "f32", "f16", "bf16"):
            return resized(code, x, to)
        return code.call("llvm.fptosi.sat", to, [x], [to, x.type])
    if dtype in ("f64", "f32", "f16", "bf16"):
        return code.cast("sitofp", x, to)
    word = "trunc" if size_of(MEMORY[dtype]) < size_of(x.scalar) else "sext"
    return code.cast(word, x, to)


def resized(code: Code, x: Val, to: str) -> Val:
    """A floating-point number in another type."""
    scalar = Val("", to).scalar
    if x.type == to:
        return x
    halves = ("half", "bfloat")
    if x.scalar in halves:  # there are instructions to and from single precision only
        known = x.scalar in code.module.halves
        x = code.cast("fpext", x, vector_of("float", x.lanes)) if known else widened(code, x)
    if scalar in halves and x.scalar == "double":
        x = code.cast("fptrunc", x, vector_of("float", x.lanes))
    if x.type == to:
        return x
    if scalar in halves and scalar not in code.module.halves:
        return narrowed(code, x, scalar)
    size = {"half": 16, "bfloat": 16, "float": 32, "double": 64}
    return code.cast("fptrunc" if size[x.scalar] > size[scalar] else "fpext", x, to)


def _with_regions(op: Op) -> list[Op]:
    return [x for x in ([op] if op.regions else []) + [y for r in op.regions for y in r.walk() if y.regions]]


#: Operations that may write their result over an operand as they go.
_IN_PLACE = frozenset(
    {"tile.map", "tile.mask", "tile.dot", "tile.reduce", "tile.insert", "tile.refine", "tile.refine_gradient"}
)


def _replaceable(op: Op, r: Value) -> list[Value]:
    traits = lookup_op(op.name).traits
    if (
        op.name == "native.join"
    ):  # a row's sums are there when the row is done, a vector when all are read that it is of
        n = op.results.index(r)
        into = [op.operands[at] for at, of in accumulators(op).items() if of == n]
        return into if op.attrs["keeps"][n] != "tile" else [v for v in tiles(op) if v.type == r.type]
    if traits.replaces is None:
        return []
    found = op.operands[traits.replaces]
    if op.name == "tile.refine_gradient" and r is not op.results[0]:
        return []
    if op.name == "tile.map":  # a vector is read from all operands before it is written to any result of one shape
        alike = len({x.type.shape for x in op.results}) == 1  # type: ignore[attr-defined]
        return [v for v in found if alike and v.type == r.type]
    return list(found) if op.name in _IN_PLACE else []


_TEMPORARIES: dict[str, Callable[[Isa, Op], list[int]]] = {}


def temporary_of(name: str) -> Callable[[Callable[[Isa, Op], list[int]]], Callable[[Isa, Op], list[int]]]:
    """Registers how many bytes of scratch memory an operation needs besides its results."""

    def register(f: Callable[[Isa, Op], list[int]]) -> Callable[[Isa, Op], list[int]]:
        _TEMPORARIES[name] = f
        return f

    return register


def temporaries(isa: Isa, op: Op) -> list[int]:
    f = _TEMPORARIES.get(op.name)
    return f(isa, op) if f is not None else []


def _shown(op: Op) -> str:
    names = ", ".join(f"%{r.name}" for r in op.results if r.name)
    attrs = {k: v for k, v in op.attrs.items() if k not in ("sizes",)}
    text = f"{names + ' = ' if names else ''}{op.name} {_brief(attrs)}"
    return text[:200]


def _brief(attrs: dict[str, Any]) -> str:
    return " ".join(
        f"{k}={v if not isinstance(v, (list, tuple)) else '; '.join(map(str, v))}" for k, v in attrs.items()
    )
