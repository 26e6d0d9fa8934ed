"""Tile functions as Python: one function each, named values, a comment per operation of weight.

Tiles are two-dimensional when a loop takes one problem at a time, three-dimensional otherwise. A tile's
place comes from its plan; views are rebound only when a ragged edge changes an extent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from aatc.backends.cpu import runtime
from aatc.backends.cpu.buffers import BufferEmitter
from aatc.backends.cpu.linear import linearize
from aatc.backends.cpu.masks import toeplitz
from aatc.backends.cpu.places import Axes
from aatc.backends.cpu.table import lowering
from aatc.backends.cpu.vector import emit_linear
from aatc.backends.cpu.words import emit_expression
from aatc.backends.source import compile_source, number, torch_name
from aatc.ir.access import access, repeats
from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.errors import BackendError
from aatc.ir.registry import lookup_op
from aatc.ir.score.expr import Expr, substitute
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.program import Program
from aatc.ir.tile_evaluate import position_numbers
from aatc.ir.types import RunsType, TileType, itemsize, summed_name

#: How what an access reads becomes a tile, by the axes behind the problem's: of several problems, and of one.
_TO_TILE = {
    "": ("[..., None, None]", "[..., None, None]"),
    "i": ("[..., None]", "[..., None]"),
    "j": ("[..., None, :]", "[..., None, :]"),
    "d": ("[..., None, :]", "[..., None, :]"),
    "ic": ("[..., None]", "[..., None]"),
    "jc": ("[..., None, :]", "[..., None, :]"),
    "si": ("[..., None]", "[..., None]"),
    "sid": ("", ""),
    "id": ("", ""),
    "jd": ("", ""),
    "de": ("", ""),
}


#: How a tile becomes what is stored, by the same axes.
_OF_TILE = {
    "": "[..., 0, 0]",
    "i": "[..., 0]",
    "j": "[..., 0, :]",
    "d": "[..., 0, :]",
    "ic": "[..., 0]",
    "jc": "[..., 0, :]",
    "si": "[..., 0]",
    "sid": "",
    "id": "",
    "jd": "",
    "de": "",
}


class Emitter(BufferEmitter):
    """Turns one tile function into source."""

    # --- loops ---------------------------------------------------------------------------------------------
    @lowering("tile.for")
    def _for(self, op: Op) -> None:
        axis, step, upper = op.attrs["axis"], op.attrs["step"], self.dim(op.attrs["upper"])
        at = self.name(op.regions[0].args[0])
        self._enter(op)
        self.src.line(f"for {at} in range(0, {upper}, {step}):")
        exact = step == 1 or (upper.isdigit() and int(upper) % step == 0)
        extent = str(step) if exact else f"min({step}, {upper} - {at})"
        self._body(op, axis, at, None if axis in "cs" else extent)

    @lowering("tile.for_part")
    def _for_part(self, op: Op) -> None:
        step, at = op.attrs["step"], self.name(op.regions[0].args[0])
        self._enter(op)
        first, last = self._bounds_of(op, op.operands[0])
        self.src.line(f"for {at} in range({first}, {last}, {step}):")
        self._body(op, op.attrs["axis"], at, f"min({step}, {last} - {at})")

    def _bounds_of(self, op: Op, part: Value) -> tuple[str, str]:
        """Names of where a part of an axis begins and ends: as many whole steps as any other has, at most."""
        upper, step, parts = self.dim(op.attrs["upper"]), op.attrs["step"], op.attrs["parts"]
        first, last = self.src.fresh("begin"), self.src.fresh("end")
        if upper.isdigit():
            length = str(-(-int(upper) // (step * parts)) * step)
        else:
            length = f"(-(-({upper}) // {step * parts}) * {step})"
        self.src.line(f"{first} = {self.name(part)} * {length}")
        self.src.line(f"{last} = min({first} + {length}, {upper})")
        return first, last

    @lowering("tile.sweep")
    def _sweep(self, op: Op) -> None:
        self._runs(op, lambda first, last: (first, last))

    @lowering("tile.sweep_part")
    def _sweep_part(self, op: Op) -> None:
        begin, end = self._bounds_of(op, op.operands[3])
        self._runs(op, lambda first, last: (f"max({first}, {begin})", f"min({last}, {end})"))

    def _runs(self, op: Op, within: Callable[[str, str], tuple[str, str]]) -> None:
        """Goes over ``within`` of each run."""
        runs, g, i = (self.name(v) for v in op.operands[:3])
        at, partial = (self.name(v) for v in op.regions[0].args[:2])
        kind: RunsType = op.operands[0].type  # type: ignore[assignment]
        first, last = self.src.fresh("first"), self.src.fresh("last")
        self._enter(op)
        block = f"{runs}[{g} // {kind.heads} % len({runs})][{i} // {kind.block}]"
        self.src.line(f"for {first}, {last}, {partial} in {block}:")
        self.src.depth += 1
        start, stop = within(first, last)
        self.src.line(f"for {at} in range({start}, {stop}, {op.attrs['step']}):")
        self._body(op, op.attrs.get("axis", "j"), at, f"min({op.attrs['step']}, {stop} - {at})")
        self.src.depth -= 1

    def _body(self, op: Op, axis: str, at: str, extent: str | None) -> None:
        """Extents and work tiles of one round, then the body."""
        outer = self.x
        self.src.depth += 1
        changes: dict[str, Any] = {"at": {**outer.at, axis: at}}
        if axis not in "cs":
            changes[axis] = extent if extent is not None and extent.isdigit() else f"t{axis}"
            if extent is not None and not extent.isdigit():
                self.src.line(f"t{axis} = {extent}")
            if axis == "g":
                changes["flat"] = op.attrs["step"] == 1
        self.x = replace(outer, **changes)
        self.bind_tiles(op.regions[0])
        self.block(op.regions[0])
        self.src.depth -= 1
        self.x = outer

    def _enter(self, op: Op) -> None:
        """Carried values start as copies of the initial ones, unless both lie in the same place."""
        skip, lead = lookup_op(op.name).traits.carried
        for init, result, arg in zip(op.operands[skip:], op.results, op.regions[0].args[lead:], strict=True):
            self.src.names[arg] = self.name(result)
            if self.places.same(init, result):
                self.src.line(f"{self.name(result)} = {self.name(init)}")
            else:
                self._bind(result)
                self.src.line(f"{self.name(result)}.copy_({self.name(init)})")

    @lowering("tile.yield")
    def _yield(self, op: Op) -> None:
        carrier = self.carriers[op]
        before = len(self.src.lines)
        for v, r in zip(op.operands, carrier.results, strict=True):
            if not self.places.same(v, r):
                self.src.line(f"{self.name(r)}.copy_({self.name(v)})")
        if len(self.src.lines) == before and self.src.lines[-1].rstrip().endswith(":"):
            self.src.line("pass")

    @lowering("tile.guard")
    def _guard(self, op: Op) -> None:
        for operand, result in zip(op.operands, op.results, strict=True):
            self.src.names[result] = self.name(operand)
        self.src.comment("far keys underflow: such rows are done again with a running maximum", op.loc)
        self.src.line(f"if not rt.at_least({self.name(op.operands[0])}, {number(op.attrs['least'])}):")
        self.src.depth += 1
        self.bind_tiles(op.regions[0])
        self.block(op.regions[0])
        self.src.depth -= 1

    @lowering("tile.return")
    def _return(self, op: Op) -> None:
        results, args = ("".join(f"{self.name(v)}, " for v in values) for values in (op.operands, self.func.args))
        self.src.line(f"return rt.apart(({results}), ({args}))")

    # --- work tiles ----------------------------------------------------------------------------------------
    def shape(self, axes: Axes) -> str:
        """Current extents as source, without the leading one when problems are taken singly."""
        sizes = [getattr(self.x, c) if c in "gij" else c for c in axes]
        return ", ".join(sizes[1:] if self.x.flat else sizes)

    def _bind(self, v: Value) -> None:
        """Binds a tile's name to its block of the arena with the current extents."""
        if v not in self.places.offsets:
            raise BackendError(f"tile %{v.name} has no place in the arena", hint="run plan-memory before building")
        offset, dtype = self.places.offsets[v]
        self._bind_name(self.name(v), offset, dtype, self.places.axes[v])

    def _bind_name(self, name: str, offset: int, dtype: str, axes: Axes) -> None:
        """A view of the arena: once before all loops when its extents are numbers, else where they are known."""
        shape = self.shape(axes)
        line = f"{name} = {self._block(offset, dtype, shape)}"
        if shape.replace(", ", "").isdigit():
            if line not in self.fixed:
                self.fixed.append(line)
        else:
            self.src.line(line)

    def _block(self, offset: int, dtype: str, shape: str) -> str:
        self.arenas.add(dtype)
        return f"rt.block(arena_{dtype}, {offset // itemsize(dtype)}, {shape})"

    def bind_tiles(self, block: Block) -> None:
        """Names for all work tiles of a body, so that its rounds start with the right extents."""
        for op in block.ops:
            if not op.regions and op.name != "tile.load" and not self._goes_to_buffer(op):
                for r in op.results:
                    if isinstance(r.type, TileType):
                        self._bind(r)
            for k, (offset, dtype, axes) in enumerate(self.places.scratch.get(op, ())):
                self._bind_name(self._temp(op, k), offset, dtype, axes)

    def _temp(self, op: Op, k: int) -> str:
        if (op, k) not in self.temps:
            self.temps[op, k] = self.src.fresh(f"w{k}")
        return self.temps[op, k]

    def _goes_to_buffer(self, op: Op) -> bool:
        """Whether a product is only added into a buffer: then the product writes there itself."""
        if op.name != "tile.dot" or len(op.operands) != 2:
            return False
        users = self.users.get(op.result, [])
        return (
            len(users) == 1
            and users[0].name == "tile.store"
            and users[0].attrs["add"]
            and users[0].attrs["axes"] in ("gid", "gjd")
        )

    # --- tiles ---------------------------------------------------------------------------------------------
    def _slices(self, axes: str) -> str:
        """Index source for a buffer of ``axes``."""
        parts = []
        for c in axes:
            at = self.x.at.get(c, "")
            if c in "de":
                continue
            if c == "g":
                parts.append(at if self.x.flat else f"{at} : {at} + {self.x.g}")
            elif c in "cs":
                parts.append(at)
            else:
                parts.append(f"{at} : {at} + {getattr(self.x, c)}")
        return ", ".join(parts)

    def _window(self, buffer: str, axes: str) -> str:
        slices = self._slices(axes)
        return f"{buffer}[{slices}]" if slices else buffer

    @lowering("tile.load")
    def _load(self, op: Op) -> None:
        axes, buffer = op.attrs["axes"], self.name(op.operands[0])
        a = access(axes)
        if a.lead in ("", "g") and "ij" not in axes:
            text = self._window(buffer, axes) + _TO_TILE[a.inside][self.x.flat or not a.lead]
            text = f"{text}[None]" if not a.lead and not self.x.flat else text
        else:
            problems = self._problems() if a.lead or repeats(op) else "0, 1"
            text = (
                f"rt.window({buffer}, {axes!r}, {problems}, {self._range('i')}, {self._range('j')}, {self._heads(op)})"
            )
            text = f"{text}[0]" if self.x.flat else text
        source, wanted = (v.type.dtype for v in (op.operands[0], op.result))  # type: ignore[attr-defined]
        cast = "" if source == wanted else f".to(torch.{torch_name(wanted)})"
        self.src.line(f"{self.name(op.result)} = {text}{cast}")

    def _problems(self) -> str:
        return f"{self.x.at['g']}, {self.x.g}"

    def _heads(self, op: Op) -> str:
        return self.dim(op.attrs["sizes"][1]) if "sizes" in op.attrs else "1"

    def _range(self, axis: str) -> str:
        return f"{self.x.at.get(axis, '0')}, {getattr(self.x, axis)}"

    @lowering("tile.store")
    def _store(self, op: Op) -> None:
        axes, value, buffer = op.attrs["axes"], self.name(op.operands[0]), self.name(op.operands[1])
        producer = op.operands[0].owner
        if isinstance(producer, Op) and self._goes_to_buffer(producer):
            a, b = self._factors(producer)
            method = "addmm_" if self.x.flat else "baddbmm_"
            self.src.line(f"{self._window(buffer, axes)}.{method}({a}, {b})")
            return
        at = access(axes)
        if at.lead not in ("", "g") or "ij" in axes:
            value = f"{value}.unsqueeze(0)" if self.x.flat else value
            where = f"{axes!r}, {self._problems()}, {self._range('i')}, {self._range('j')}, {self._heads(op)}"
            self.src.line(f"rt.put({buffer}, {value}, {op.attrs['add']}, {where})")
            return
        if not at.lead and not self.x.flat:
            value = f"{value}.sum(0)"  # of all problems of the round
        self.src.line(
            f"{self._window(buffer, axes)}.{'add_' if op.attrs['add'] else 'copy_'}({value}{_OF_TILE[at.inside]})"
        )

    def _factors(self, op: Op) -> tuple[str, str]:
        a, b = (self.name(v) for v in op.operands[:2])
        form = op.attrs["form"]
        return (f"{a}.mT" if form == "tn" else a), (f"{b}.mT" if form == "nt" else b)

    @lowering("tile.dot")
    def _dot(self, op: Op) -> None:
        if self._goes_to_buffer(op):
            return
        a, b = self._factors(op)
        out = self.name(op.result)
        shared = not self.x.flat and self.places.axes[op.operands[1]][0] != self.places.axes[op.operands[0]][0]
        b = f"{b}.expand({a}.shape[0], -1, -1)" if shared else b
        if len(op.operands) == 3:
            c = self.name(op.operands[2])
            self.src.line(f"torch.{'addmm' if self.x.flat else 'baddbmm'}({c}, {a}, {b}, out={out})")
        else:
            self.src.line(f"torch.{'mm' if self.x.flat else 'bmm'}({a}, {b}, out={out})")

    @lowering("tile.map")
    def _map(self, op: Op) -> None:
        self.src.comment(
            "; ".join(f"{r.name} = {p.body}" for r, p in zip(op.results, op.attrs["programs"], strict=True)), op.loc
        )
        self._linear(op, [self.name(v) for v in op.operands], [self.name(r) for r in op.results])

    def _linear(self, op: Op, inputs: list[str], results: list[str]) -> None:
        code = linearize(op)
        temps = [self._temp(op, k) for k in range(len(code.temps))]
        for line in emit_linear(code, inputs, results, temps):
            self.src.line(line)

    @lowering("tile.mask")
    def _mask(self, op: Op) -> None:
        tile, partial, *captures = (self.name(v) for v in op.operands)
        out = self.name(op.result)
        if not self.places.same(op.operands[0], op.result):
            self.src.line(f"{out}.copy_({tile})")
        self.src.line(f"if {partial}:")
        self.src.depth += 1
        self.src.comment(f"mask {op.attrs['mask']}", op.loc)
        fill, diagonal = number(op.attrs["value"]), self._diagonal_mask(op)
        if diagonal:
            self.src.line(f"rt.close({out}, *{diagonal})")
        else:
            *_, keep, bits = (self._temp(op, k) for k in range(len(self.places.scratch[op])))
            self._linear(op, captures, [keep])
            self.src.line(f"rt.close({out}, *rt.selection({keep}, {fill}, {bits}))")
        self.src.depth -= 1

    def _diagonal_mask(self, op: Op) -> str | None:
        """Source of a remembered block, when the mask depends on i - j alone."""
        found = _mask_of_indices(op)
        if found is None or found[0].body.axes & {"b", "h"} or not toeplitz(found[0]):
            return None  # one block for all problems, remembered along the diagonal
        mask, sizes = found
        at = self.x.at
        dtype = torch_name(op.result.type.dtype)  # type: ignore[attr-defined]
        return (
            f"rt.diagonal({self.constant(mask)}, {self.sizes(sizes)}, {at['i']} - {at['j']}, "
            f"{self.x.i}, {self.x.j}, torch.{dtype}, {number(op.attrs['value'])})"
        )

    @lowering("tile.reduce")
    def _reduce(self, op: Op) -> None:
        x, out = self.name(op.operands[0]), self.name(op.result)
        dims = {"j": "-1", "i": "-2", "ij": "(-2, -1)"}[op.attrs["over"]]
        whole, both = {"max": ("amax", "maximum"), "min": ("amin", "minimum"), "sum": ("sum", "add")}[op.attrs["op"]]
        call = f"torch.{whole}({x}, {dims}, keepdim=True"
        if len(op.operands) == 1:
            self.src.line(f"{call}, out={out})")
        else:
            self.src.line(f"torch.{both}({self.name(op.operands[1])}, {call}), out={out})")

    @lowering("tile.fill")
    def _fill(self, op: Op) -> None:
        self.src.line(f"{self.name(op.result)}.fill_({number(op.attrs['value'])})")

    def _positions(self, op: Op, tiles: list[Value]) -> str:
        """Table positions, computed per pair."""
        out = []
        for program in op.attrs["positions"]:
            bound = {p: self.name(v) for p, v in zip(program.params, tiles, strict=True)}
            out.append(emit_expression(self.src, program.body, bound, torch_name(position_numbers(tiles)), {})[0])
        return f"({', '.join(out)},)"

    @lowering("tile.position")
    def _position(self, op: Op) -> None:
        axis = op.attrs["axes"]
        at = self.name(op.operands[0])
        extent = getattr(self.x, axis if axis in "ij" else "g")
        heads = self.dim(op.attrs["sizes"][1]) if axis in "bh" else "1"
        self.src.line(f"rt.position({self.name(op.result)}, {axis!r}, {at}, {extent}, {heads})")

    @lowering("tile.slice")
    def _slice(self, op: Op) -> None:
        part = self._part(op, op.operands[0], op.result)
        self.src.line(f"{self.name(op.result)}.copy_({part})")

    @lowering("tile.insert")
    def _insert(self, op: Op) -> None:
        part, whole = op.operands
        if not self.places.same(whole, op.result):
            self.src.line(f"{self.name(op.result)}.copy_({self.name(whole)})")
        self.src.line(f"{self._part(op, op.result, part)}.copy_({self.name(part)})")

    def _part(self, op: Op, whole: Value, part: Value) -> str:
        """Source of the view of ``whole`` that `tile.slice` and `tile.insert` speak of."""
        axis = {"i": 1, "j": 2}[op.attrs["over"]]
        start, stride, n = op.attrs["start"], op.attrs["stride"], int(part.type.shape[axis])  # type: ignore[attr-defined]
        entries = f"{start} : {start + (n - 1) * stride + 1} : {stride}"
        return f"{self.name(whole)}[..., {entries}]" if axis == 2 else f"{self.name(whole)}[..., {entries}, :]"

    @lowering("tile.lookup")
    def _lookup(self, op: Op) -> None:
        table, _g, *tiles = op.operands
        where = self._positions(op, tiles)
        at = f"{op.attrs['axes']!r}, {self._problems()}, {self._heads(op)}"
        self.src.line(f"rt.lookup({self.name(table)}, {at}, {where}, {self.name(op.result)})")

    @lowering("tile.scatter")
    def _scatter(self, op: Op) -> None:
        value, table, _g, *tiles = op.operands
        where = self._positions(op, tiles)
        at = f"{op.attrs['axes']!r}, {self._problems()}, {self._heads(op)}"
        self.src.line(f"rt.scatter({self.name(table)}, {at}, {where}, {self.name(value)})")


def _mask_of_indices(op: Op) -> tuple[Program, Op] | None:
    """The mask of a `tile.mask` as a program of i and j, and an operation that has its sizes; None where its captures
    are not tiles of these."""
    program = op.attrs["mask"]
    table: dict[Expr, Expr] = {}
    found: Op | None = None
    for p, v in zip(program.params, op.operands[2:], strict=True):
        load = v.owner
        source = load.operands[0].owner if isinstance(load, Op) and load.name == "tile.load" else None
        if not isinstance(source, Op) or source.name != "tile.token" or source.operands:
            return None
        exact = {v.type.dtype, source.result.type.dtype} <= {"f64", "i64"}  # type: ignore[attr-defined]
        if not exact or load.attrs["axes"][-1:] != source.attrs["axes"][-1:]:  # type: ignore[union-attr]
            return None
        table[p], found = source.attrs["program"].body, source
    mask = Program.of(substitute(program.body, table, smart=False))
    return None if found is None or not mask.body.is_pair else (mask, found)


def compile_tile(func: Func) -> tuple[Any, str]:
    """The callable of a tile function and its source. Raises BackendError for tiles of half precision."""
    for v in (v for op in func.body.walk() for v in op.results):
        if isinstance(v.type, TileType) and v.type.dtype != summed_name(v.type.dtype):
            hint = "a pass of another backend made them: compile from the neutral tile program"
            raise BackendError(f"the torch code has no tiles like %{v.name} of @{func.name}, a {v.type}", hint=hint)
    constants: list[Any] = []
    text = Emitter(func, constants).source("kernel")
    return compile_source(text, _namespace(constants), func.name)["kernel"], text


def _namespace(constants: list[Any]) -> dict[str, Any]:
    return {
        "torch": torch,
        "rt": runtime,
        "words": {n: f.evaluate for n, f in FUNCTIONS.items()},
        "constants": constants,
        "inf": float("inf"),
        "nan": float("nan"),
    }
