"""One loop nest of a tile function being written as a kernel: what its values are by now, and the threads' places."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aatc.backends.vulkan.kernels import Extent, Offset
from aatc.backends.vulkan.lanes import Lanes
from aatc.backends.vulkan.language import Barrier, Body, Let, Shared
from aatc.backends.vulkan.table import lowering
from aatc.backends.vulkan.tiles import Tile, form_of
from aatc.backends.vulkan.words import Programs
from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.dims import Dim, factors
from aatc.ir.errors import UnsupportedError
from aatc.ir.types import RunsType, TensorType, TileType

if TYPE_CHECKING:
    from aatc.backends.vulkan.whole import Parts


@dataclass
class Names:
    """Buffers of a tile function by name; the same for all of its kernels."""

    func: Func
    names: dict[Value, str] = field(default_factory=dict)
    parts: list[Parts] = field(default_factory=list)

    def of(self, v: Value) -> str:
        if v not in self.names:
            clean = "".join(c if c.isascii() and c.isalnum() else "_" for c in v.name or "b").strip("_") or "b"
            # no empty part: GLSL keeps names with two underscores; no part x: it says "times" in names of dimensions
            clean = "_".join("xx" if part == "x" else part for part in clean.split("_") if part)
            taken, name, n = set(self.names.values()), clean, 1
            while name in taken:
                n += 1
                name = f"{clean}{n}"
            self.names[v] = name
        return self.names[v]


class NoRoom(UnsupportedError):
    """A kernel needs more shared memory than there is."""


@dataclass
class Hazard:
    """What happened to a shared array since the last barrier."""

    read: bool = False
    written: bool = False


def kind_of(dtype: str) -> str:
    """The kind of a value of an element type."""
    if dtype in ("f32", "bf16", "f16"):
        return "f"
    if dtype == "f64":
        raise UnsupportedError("double precision has no kernels", hint="it runs on the CPU")
    if dtype in ("c64", "c128"):
        raise UnsupportedError("complex numbers have no kernels", hint="they run on the CPU")
    return "b" if dtype == "bool" else "i"


class Emitter:
    """``rows``, ``cols``: the letters of the workgroup's axes ("" where a nest has none); ``grid``: (axis of the grid,
    step) by loop that is one."""

    def __init__(self, func: Func, names: Names, kernel: str, lanes: Lanes, rows: str, cols: str, shared_bytes: int):
        self.func, self.names, self.lanes = func, names, lanes
        self.rows, self.cols = rows, cols
        self.body = Body(kernel, lanes.threads)
        self.programs = Programs(self.body)
        self.room = shared_bytes
        self.push: dict[str, Extent | float | Offset] = {}
        self.reads: dict[Value, None] = {}
        self.writes: dict[Value, None] = {}
        self.tiles: dict[Value, Tile] = {}
        self.at: dict[Value, str] = {}  # positions, and truth values of partial runs
        self.extent: dict[Value, str] = {}
        self.row_at: list[str] = []  # the token of each of a thread's rows, clamped to one that is there
        self.row_in: list[str] = []  # whether it is one
        self.col_at: list[str] = []
        self.col_in: list[str] = []
        self.row_first = self.row_extent = self.col_first = self.col_extent = ""
        self.carriers: dict[Op, Op] = {}
        self.vectors_of_dots: set[Value] = set()
        self.hazards: dict[str, Hazard] = {}
        self.clean = True  # whether arrays that are not there yet have been touched by nobody since a barrier
        self.grid: dict[Op, str] = {}
        self.uses: dict[Value, list[Op]] = {}
        self.planned: dict[Value, str] = {}  # tiles that are staged where they are loaded, in an array of this name
        self.slots: dict[str, Shared] = {}
        self.instead: dict[Value, tuple[Value, str]] = {}  # where partial sums go: a buffer, and the place in it
        self.col_sure = False  # whether every column of a block is there
        self.refuses = False
        self.several_stores: dict[Value, int] = {}
        self._scratch: dict[str, tuple[str, int]] = {}
        self._pairs = ""
        self._conditions: list[str] = []
        across, down = lanes.across, lanes.down
        self.tx = "0" if across == 1 else self.body.let("tx", "i32", f"thread % {across}")
        self.ty = "0" if down == 1 else self.body.let("ty", "i32", f"thread / {across}")

    # --- numbers ---------------------------------------------------------------------------------------------
    def dim(self, d: Dim | int | str) -> str:
        d = Dim.of(d)
        terms = []
        for name, c in d.terms:
            parts = [self.symbol(p) for p in factors(name)]
            terms.append(" * ".join([*([str(c)] if c != 1 else []), *parts]))
        if d.const or not terms:
            terms.append(str(d.const))
        return terms[0] if len(terms) == 1 and " " not in terms[0] else f"({' + '.join(terms)})"

    def symbol(self, name: str) -> str:
        self.push[f"n_{name}"] = Extent((Dim.of(name),))
        return self.body.word(f"n_{name}")

    def times(self, *factors: str) -> str:
        """A product as text, constants folded."""
        number, rest = 1, []
        for f in factors:
            if f.isdigit():
                number *= int(f)
            else:
                rest.append(f)
        if number == 0 or not rest:
            return str(number)
        return " * ".join([*rest, str(number)] if number != 1 else rest)

    def plus(self, *terms: str) -> str:
        number, rest = 0, []
        for t in terms:
            if t.isdigit():
                number += int(t)
            else:
                rest.append(t)
        return " + ".join([*rest, str(number)] if number or not rest else rest)

    def offset(self, buffer: Value) -> str:
        """Where a buffer begins, in words."""
        if buffer in self.instead:
            part, at = self.instead[buffer]
            return f"{self.offset(part)} + {at}"
        name = self.names.of(buffer)
        self.push[f"o_{name}"] = Offset(name)
        return self.body.word(f"o_{name}")

    def stride(self, buffer: Value, axis: int) -> str:
        shape = self.shape(buffer)
        return self.times("1", *(self.dim(d) for d in shape[axis + 1 :]))

    def shape(self, buffer: Value) -> tuple[Dim, ...]:
        t = buffer.type
        if isinstance(t, TensorType):
            if t.panel:
                raise UnsupportedError("panels have no kernels on this device", hint="leave pack(...) out")
            return t.shape
        assert isinstance(t, RunsType)
        return tuple(Dim.of(f"{self.names.of(buffer)}_n{n}") for n in range(4))

    # --- tiles -----------------------------------------------------------------------------------------------
    def tile(self, v: Value) -> Tile:
        found = self.tiles.get(v)
        if found is None:
            raise UnsupportedError(f"%{v.name} has no tile here")
        return found

    def made(self, v: Value, letters: tuple[str, str], items: list[str] | None = None, **more: object) -> Tile:
        """The tile of a result."""
        t: TileType = v.type  # type: ignore[assignment]
        width = next((int(t.shape[n + 1]) for n, c in enumerate(letters) if c in "de"), 1)
        form = form_of(letters, self.rows, self.cols)
        form = "matrix" if letters == ("d", "d") else form
        if not form:
            raise UnsupportedError(f"%{v.name} has axes {letters}, which this loop nest has no threads for")
        if int(t.shape[0]) != 1 and not self.g_is_one:
            raise UnsupportedError("tiles of several problems have no kernels here", hint="split(g, 1)")
        tile = Tile(letters, form, kind_of(t.dtype), width, items, **more)  # type: ignore[arg-type]
        self.tiles[v] = tile
        return tile

    #: Every tile is of one problem: loops over problems go in steps of one, whatever the program says.
    g_is_one = True

    def count(self, form: str, width: int = 1) -> int:
        """How many registers a thread has of a tile."""
        high, wide, vectors = self.lanes.high, self.lanes.wide, self.lanes.vectors(width)
        return {"one": 1, "row": high, "col": wide, "pair": high * wide, "rowvec": high * vectors, "vec": vectors}[form]

    def type_of(self, tile: Tile) -> str:
        wide = tile.form in ("rowvec", "vec")
        if wide and tile.kind != "f":
            raise UnsupportedError("vectors of integers have no kernels")
        return "vec4f" if wide else {"f": "f32", "i": "i32", "b": "bool"}[tile.kind]

    def feature(self, k: int) -> str:
        """The number of a thread's ``k``-th vector of features."""
        return self.plus(self.tx, str(k * self.lanes.across))

    def whole_vectors(self, width: int) -> bool:
        """Whether every vector that a thread holds of a row is one of the row's, without a rest."""
        return width % (4 * self.lanes.across) == 0

    def row_of(self, r: int) -> str:
        """The place of a thread's ``r``-th row in the block."""
        return self.plus(self.ty, str(r * self.lanes.down))

    def col_of(self, c: int) -> str:
        return self.plus(self.tx, str(c * self.lanes.across))

    # --- shared memory ---------------------------------------------------------------------------------------
    def share(self, hint: str, type: str, count: int) -> Shared | None:
        """A new array, or None where it does not fit."""
        array = Shared(self.body.fresh(f"s_{hint}"), type, count)
        if self.body.shared_bytes + array.nbytes > self.room:
            return None
        self.body.shared.append(array)
        self.hazards[array.name] = Hazard() if self.clean else Hazard(True, True)
        return array

    def need(self, hint: str, type: str, count: int) -> Shared:
        array = self.share(hint, type, count)
        if array is None:
            raise NoRoom(
                f"a workgroup needs more shared memory than the {self.room} bytes that the device has",
                hint="split i or j to smaller extents",
            )
        return array

    def scratch(self, type: str, count: int) -> str:
        """The array that lanes meet in, large enough."""
        wide = "vec4f" if type == "vec4f" else type
        name, have = self._scratch.get(wide, ("", 0))
        if have < count:
            array = self.need("lanes", wide, count)
            self._scratch[wide] = name, have = array.name, count
        return name

    def pairs_array(self, count: int) -> str:
        """The array that weights of pairs go through; all take the same."""
        if not self._pairs:
            self._pairs = self.need("pairs", "f32", count).name
        return self._pairs

    def agreement(self, text: str) -> str:
        """A number that thread 0 tells all: the same for the workgroup, whatever it is computed from."""
        array = self.need("agreed", "f32", 1)
        self.writing(array.name)
        self.when("thread == 0")
        self.body.set(f"{array.name}[0]", text)
        self.close()
        self.reading(array.name)
        return self.let("agreed_on", "f32", f"agreed({array.name}[0])")

    def push_refused(self) -> str:
        self.push["o_refused"] = Offset("refused")
        return self.body.word("o_refused")

    def barrier(self, storage: bool = False) -> None:
        self.body.add(Barrier(storage))
        self.clean = True
        for h in self.hazards.values():
            h.read = h.written = False

    def reading(self, name: str) -> None:
        """A barrier if what is about to be read was written since the last one."""
        if self.hazards[name].written:
            self.barrier()
        self.hazards[name].read = True

    def writing(self, name: str) -> None:
        h = self.hazards[name]
        if h.read or h.written:
            self.barrier()
        h = self.hazards[name]
        h.written = True

    def doubt(self) -> None:
        """At the beginning of a loop's body: anything may have been read or written in the round before."""
        self.clean = False
        for h in self.hazards.values():
            h.read = h.written = True

    # --- code ------------------------------------------------------------------------------------------------
    def block(self, block: Block) -> None:
        for op in block.ops:
            self.op(op)

    def op(self, op: Op) -> None:
        if op.name not in ("tile.yield", "tile.return"):
            results = ", ".join(f"%{r.name}" for r in op.results)
            self.body.comment(f"{results + ' = ' if results else ''}{op.name}")
        lowering[op.name](self, op)

    def lets(self, hint: str, type: str, texts: list[str]) -> list[str]:
        return [self.body.let(hint, type, t) for t in texts]

    def when(self, condition: str) -> None:
        """What follows, up to ``close``, only where it holds."""
        self.body.open()
        self._conditions.append(condition)

    def close(self) -> None:
        self.body.close_if(self._conditions.pop())

    def let(self, hint: str, type: str, value: str) -> str:
        name = self.body.fresh(hint)
        self.body.add(Let(name, type, value))
        return name
