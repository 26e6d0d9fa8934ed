"""Tile functions as Python: one function each, named values, a comment per operation of weight.

Tiles are two-dimensional when a loop takes one problem at a time, three-dimensional otherwise. A tile's
place comes from its plan; views are rebound only when a ragged edge changes an extent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from aatc.backends.cpu.masks import toeplitz
from aatc.backends.cpu.places import Axes, Places
from aatc.backends.cpu.source import Source, number
from aatc.backends.cpu.vector import emit_linear
from aatc.backends.cpu.words import emit_expression
from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.errors import BackendError
from aatc.ir.score.linear import linearize
from aatc.ir.types import TensorType, TileType, itemsize, torch_dtype


@dataclass
class Extents:
    """Source text of the current tile extents along g, i and j; ``flat`` means one problem at a time."""

    g: str = "1"
    i: str = "1"
    j: str = "1"
    flat: bool = True
    at: dict[str, str] = field(default_factory=dict)


class Emitter:
    """Turns one tile function into source; ``constants`` collects objects the code refers to by position."""

    def __init__(self, func: Func, constants: list[Any]):
        self.func, self.constants = func, constants
        self.src = Source()
        self.x = Extents()
        self.places = Places(func)
        self.arenas: set[str] = set()
        self.carriers = {op.regions[0].ops[-1]: op for op in func.body.walk() if op.regions}
        self.temps: dict[tuple[Op, int], str] = {}
        self.fixed: list[str] = []  # views of work tiles whose extents never change
        self.users: dict[Value, list[Op]] = {}
        for op in func.body.walk():
            for v in op.operands:
                self.users.setdefault(v, []).append(op)

    def source(self, name: str) -> str:
        args = [self.src.name(a) for a in self.func.args]
        self.block(self.func.body)
        head = [f"def {name}({', '.join(args)}):"]
        head += [f"    {line}" for line in self._prologue()]
        return "\n".join(head + self.src.lines) + "\n"

    def _prologue(self) -> list[str]:
        size = self.func.attrs.get("arena", 0)
        lines = self._dims()
        if self.arenas:
            lines.append(f"arena = torch.empty({int(size)}, dtype=torch.uint8)")
            lines += [f"arena_{a} = arena.view(torch.{_torch_name(a)})" for a in sorted(self.arenas)]
        return lines + self.fixed

    def _dims(self) -> list[str]:
        """Sizes of symbolic dimensions from argument shapes: those that stand alone somewhere."""
        lines, seen = [], set()
        for arg in self.func.args:
            if not isinstance(arg.type, TensorType):
                continue
            for n, d in enumerate(arg.type.shape):
                if d.const == 0 and len(d.terms) == 1 and d.terms[0][1] == 1 and d.terms[0][0] not in seen:
                    seen.add(d.terms[0][0])
                    lines.append(f"{self.dim_name(d.terms[0][0])} = {self.src.name(arg)}.shape[{n}]")
        return lines

    def dim_name(self, symbol: str) -> str:
        return f"dim_{symbol}"

    def dim(self, d: Dim | int) -> str:
        """A dimension as Python source over the sizes read from the arguments."""
        d = Dim.of(d)
        if d.is_static:
            return str(d.const)
        parts = [f"{c} * {self._symbol(n)}" if c != 1 else self._symbol(n) for n, c in d.terms]
        if d.const:
            parts.append(str(d.const))
        return " + ".join(parts) if len(parts) == 1 else f"({' + '.join(parts)})"

    def _symbol(self, name: str) -> str:
        if "_x_" in name:  # the product of two dimensions, which no shape shows
            return "(" + " * ".join(self.dim_name(p) for p in name.split("_x_")) + ")"
        return self.dim_name(name)

    def sizes(self, op: Op) -> str:
        return "(" + ", ".join(self.dim(d) for d in op.attrs["sizes"]) + ")"

    def constant(self, value: Any) -> str:
        self.constants.append(value)
        return f"constants[{len(self.constants) - 1}]"

    # --- blocks --------------------------------------------------------------------------------------------
    def block(self, block: Block) -> None:
        for op in block.ops:
            handler: Callable[[Op], None] | None = getattr(self, "_" + op.name.split(".", 1)[1], None)
            if handler is None:
                raise BackendError(f"the CPU backend has no code for {op.name}")
            handler(op)

    def name(self, v: Value) -> str:
        return self.src.name(v)

    # --- buffers -------------------------------------------------------------------------------------------
    def _token(self, op: Op) -> None:
        program, axes, t = op.attrs["program"], op.attrs["axes"], op.results[0].type
        src, out = self.src, self.name(op.result)
        src.comment(f"{op.result.name}: {program}", op.loc)
        sizes = [self.dim(d) for d in op.attrs["sizes"]]
        self._bind_sizes(sizes)
        if program.body.fn == "param" and program.params[0].attrs[1] == axes and self._plain(op, t):
            source = self.name(op.operands[0])
            src.line(f"{out} = {source}.reshape({', '.join(self.dim(d) for d in t.shape)})")
            return
        compute = "float64" if t.dtype in ("f64", "i64") else "float32"
        body, used = self._expression(op, program, compute)
        n = sizes[2] if "i" in axes else sizes[3] if "j" in axes else "1"
        shape = ", ".join(self.dim(d) for d in t.shape)
        b, h = (sizes[0], sizes[1]) if axes else ("1", "1")
        src.line(f"{out} = rt.finish_token({body}, ({b}, {h}, {n}), [{shape}], torch.{_torch_name(t.dtype)})")
        self._delete(used)

    def _delete(self, names: list[str]) -> None:
        if names:
            self.src.line(f"del {', '.join(names)}")

    def _plain(self, op: Op, t: TensorType) -> bool:
        """A parameter that is only reshaped: same dtype, heads not shared."""
        source = op.operands[0].type
        if not isinstance(source, TensorType) or source.dtype != t.dtype:
            return False
        axes, sizes = op.attrs["axes"], op.attrs["sizes"]
        full = [Dim.of(d) for c, d in zip("bhij", sizes, strict=True) if c in axes]
        flat = source.rank == len(axes) - 1
        return flat or list(source.shape[: len(full)]) == full

    def _bind_sizes(self, sizes: list[str]) -> None:
        self.src.line(f"B, H, N, M = {', '.join(sizes)}")

    def _expression(self, op: Op, program, compute: str, operands: list[Value] | None = None):
        """Views of the operands and the nodes of a per-token program; returns what `emit_expression` does."""
        bound = {}
        for p, v in zip(program.params, operands if operands is not None else op.operands, strict=True):
            view = self.src.fresh(f"{p.name}_v")
            cast = f".to(torch.{compute})" if p.dtype == "f" and _torch_name(v.type.dtype) != compute else ""  # type: ignore[attr-defined]
            self.src.line(f"{view} = rt.token_view({self.name(v)}, {p.attrs[1]!r}, B, H){cast}")
            bound[p] = view
        return emit_expression(self.src, program.body, bound, compute, {"b": "B", "h": "H", "i": "N", "j": "M"})

    def _gradient(self, op: Op) -> None:
        program, like = op.attrs["program"], self.name(op.operands[0])
        self.src.comment(f"{op.result.name}: {program}", op.loc)
        self._bind_sizes([self.dim(d) for d in op.attrs["sizes"]])
        compute = "float64" if op.result.type.dtype == "f64" else "float32"  # type: ignore[attr-defined]
        part = f"{self.name(op.operands[-1])} + " if op.attrs["add"] else ""
        body, used = self._expression(op, program, compute, op.operands[1 : len(program.params) + 1])
        self.src.line(f"{self.name(op.result)} = {part}rt.sum_to({body}, {op.attrs['axes']!r}, {like}, (B, H, N, M))")
        self._delete(used)

    def _view(self, op: Op) -> None:
        t: TensorType = op.result.type  # type: ignore[assignment]
        self.src.line(
            f"{self.name(op.result)} = {self.name(op.operands[0])}.reshape({', '.join(self.dim(d) for d in t.shape)})"
        )

    def _alloc(self, op: Op) -> None:
        t: TensorType = op.result.type  # type: ignore[assignment]
        shape = ", ".join(self.dim(d) for d in t.shape)
        fill = op.attrs.get("fill")
        make = "empty" if fill is None else "zeros" if fill == 0 else None
        text = f"torch.{make}([{shape}], dtype=torch.{_torch_name(t.dtype)})" if make else (
            f"torch.full([{shape}], {number(fill)}, dtype=torch.{_torch_name(t.dtype)})")  # fmt: skip
        self.src.line(f"{self.name(op.result)} = {text}")

    def _finish(self, op: Op) -> None:
        t: TensorType = op.result.type  # type: ignore[assignment]
        shape = ", ".join(self.dim(d) for d in t.shape)
        self.src.line(f"{self.name(op.result)} = {self.name(op.operands[0])}.mul_({number(op.attrs['factor'])})"
                      f".reshape({shape}).to(torch.{_torch_name(t.dtype)})")  # fmt: skip

    def _classify(self, op: Op) -> None:
        mask = op.attrs["mask"]
        self.src.comment(f"tiles of the mask {mask}", op.loc)
        captures = "".join(f"{self.name(v)}, " for v in op.operands)
        self.src.line(f"{self.name(op.result)} = rt.tile_map({self.constant(mask)}, ({captures}), {self.sizes(op)}, "
                      f"{op.attrs['rows']}, {op.attrs['cols']}, {op.attrs['heads']})")  # fmt: skip

    def _library(self, op: Op) -> None:
        a = op.attrs
        rest = [self.name(v) for v in op.operands[3:]]
        q, k, v = (self.name(x) for x in op.operands[:3])
        bias = rest.pop(0) if a["bias"] else "None"
        tiles = rest.pop(0) if a["map"] else "None"
        mask = self.constant(a["mask"]) if "mask" in a else "None"
        captures = "".join(f"{c}, " for c in rest)
        out, lse = (self.name(r) for r in op.results)
        self.src.comment("the library's fused attention", op.loc)
        self.src.line(f"{out}, {lse} = rt.library({q}, {k}, {v}, {bias}, {tiles}, {mask}, ({captures}), {a['causal']}, "
                      f"{a['rows']}, {self.sizes(op)})")  # fmt: skip

    # --- loops ---------------------------------------------------------------------------------------------
    def _for(self, op: Op) -> None:
        axis, step, upper = op.attrs["axis"], op.attrs["step"], self.dim(op.attrs["upper"])
        at = self.name(op.regions[0].args[0])
        self._enter(op)
        self.src.line(f"for {at} in range(0, {upper}, {step}):")
        exact = step == 1 or (upper.isdigit() and int(upper) % step == 0)
        extent = str(step) if exact else f"min({step}, {upper} - {at})"
        self._body(op, axis, at, None if axis == "c" else extent)

    def _sweep(self, op: Op) -> None:
        tiles, g, i = (self.name(v) for v in op.operands[:3])
        at, partial = (self.name(v) for v in op.regions[0].args[:2])
        self._enter(op)
        self.src.line(f"for {at}, tj, {partial} in {tiles}.runs({g}, {i}, {op.attrs['step']}):")
        self._body(op, "j", at, None)

    def _body(self, op: Op, axis: str, at: str, extent: str | None) -> None:
        """Extents and work tiles of one round, then the body."""
        outer = self.x
        self.src.depth += 1
        changes: dict[str, Any] = {"at": {**outer.at, axis: at}}
        if axis != "c":
            changes[axis] = extent if extent is not None and extent.isdigit() else f"t{axis}"
            if extent is not None and not extent.isdigit():
                self.src.line(f"t{axis} = {extent}")
            if axis == "g":
                changes["flat"] = op.attrs["step"] == 1
        self.x = replace(outer, **changes)
        self._bind_tiles(op.regions[0])
        self.block(op.regions[0])
        self.src.depth -= 1
        self.x = outer

    def _enter(self, op: Op) -> None:
        """Carried values start as copies of the initial ones, unless both lie in the same place."""
        n = len(op.results)
        inits, args = op.operands[len(op.operands) - n :], op.regions[0].args
        for init, result, arg in zip(inits, op.results, args[len(args) - n :], strict=True):
            self.src.names[arg] = self.name(result)
            if self.places.same(init, result):
                self.src.line(f"{self.name(result)} = {self.name(init)}")
            else:
                self._bind(result)
                self.src.line(f"{self.name(result)}.copy_({self.name(init)})")

    def _yield(self, op: Op) -> None:
        carrier = self.carriers[op]
        before = len(self.src.lines)
        for v, r in zip(op.operands, carrier.results, strict=True):
            if not self.places.same(v, r):
                self.src.line(f"{self.name(r)}.copy_({self.name(v)})")
        if len(self.src.lines) == before and self.src.lines[-1].rstrip().endswith(":"):
            self.src.line("pass")

    def _guard(self, op: Op) -> None:
        for operand, result in zip(op.operands, op.results, strict=True):
            self.src.names[result] = self.name(operand)
        self.src.comment("far keys underflow: such rows are done again with a running maximum", op.loc)
        self.src.line(f"if bool(({self.name(op.operands[0])} < {number(op.attrs['least'])}).any()):")
        self.src.depth += 1
        self._bind_tiles(op.regions[0])
        self.block(op.regions[0])
        self.src.depth -= 1

    def _return(self, op: Op) -> None:
        self.src.line(f"return {', '.join(self.name(v) for v in op.operands)}{',' if len(op.operands) == 1 else ''}")

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

    def _bind_tiles(self, block: Block) -> None:
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
            if c == "d":
                continue
            if c == "g":
                parts.append(at if self.x.flat else f"{at} : {at} + {self.x.g}")
            elif c == "c":
                parts.append(at)
            else:
                parts.append(f"{at} : {at} + {getattr(self.x, c)}")
        return ", ".join(parts)

    def _window(self, buffer: str, axes: str) -> str:
        return f"{buffer}[{self._slices(axes)}]" if axes else buffer

    def _load(self, op: Op) -> None:
        axes, buffer = op.attrs["axes"], self.name(op.operands[0])
        if axes == "gij":
            block = f"rt.pair_block({buffer}, {self._pair_position()})"
            text = f"{block}[0]" if self.x.flat else block
        elif axes in ("gid", "gjd"):
            text = self._window(buffer, axes)
        else:
            missing = {
                "gi": "..., None",
                "gic": "..., None",
                "gj": "..., None, :",
                "gjc": "..., None, :",
                "g": "..., None, None",
                "": "",
            }[axes]
            text = self._window(buffer, axes)
            text = f"{text}[{missing}]" if missing and not (axes == "g" and self.x.flat) else text
        cast = (
            ""
            if op.operands[0].type.dtype == op.result.type.dtype
            else f".to(torch.{_torch_name(op.result.type.dtype)})"
        )  # type: ignore[attr-defined]
        self.src.line(f"{self.name(op.result)} = {text}{cast}")

    def _pair_position(self) -> str:
        at = self.x.at
        return f"{at['g']}, {self.x.g}, {at['i']}, {self.x.i}, {at['j']}, {self.x.j}, B, H"

    def _store(self, op: Op) -> None:
        axes, value, buffer = op.attrs["axes"], self.name(op.operands[0]), self.name(op.operands[1])
        producer = op.operands[0].owner
        if isinstance(producer, Op) and self._goes_to_buffer(producer):
            a, b = self._factors(producer)
            method = "addmm_" if self.x.flat else "baddbmm_"
            self.src.line(f"{self._window(buffer, axes)}.{method}({a}, {b})")
            return
        if axes == "gij":
            value = f"{value}.unsqueeze(0)" if self.x.flat else value
            self.src.line(f"rt.pair_add({buffer}, {value}, {self._pair_position()})")
            return
        squeeze = {
            "gi": "[..., 0]",
            "gic": "[..., 0]",
            "gj": "[..., 0, :]",
            "gjc": "[..., 0, :]",
            "g": "[..., 0, 0]",
        }.get(axes, "")
        self.src.line(f"{self._window(buffer, axes)}.{'add_' if op.attrs['add'] else 'copy_'}({value}{squeeze})")

    def _factors(self, op: Op) -> tuple[str, str]:
        a, b = (self.name(v) for v in op.operands[:2])
        form = op.attrs["form"]
        return (f"{a}.mT" if form == "tn" else a), (f"{b}.mT" if form == "nt" else b)

    def _dot(self, op: Op) -> None:
        if self._goes_to_buffer(op):
            return
        a, b = self._factors(op)
        out = self.name(op.result)
        if len(op.operands) == 3:
            c = self.name(op.operands[2])
            self.src.line(f"torch.{'addmm' if self.x.flat else 'baddbmm'}({c}, {a}, {b}, out={out})")
        else:
            self.src.line(f"torch.{'mm' if self.x.flat else 'bmm'}({a}, {b}, out={out})")

    def _map(self, op: Op) -> None:
        self.src.comment(
            "; ".join(f"{r.name} = {p.body}" for r, p in zip(op.results, op.attrs["programs"], strict=True)), op.loc
        )
        self._linear(op, [self.name(v) for v in op.operands], [self.name(r) for r in op.results], op.results[0].type)

    def _linear(self, op: Op, inputs: list[str], results: list[str], t: Any) -> None:
        code = linearize(op)
        temps = [self._temp(op, k) for k in range(len(code.temps))]
        for line in emit_linear(code, inputs, results, temps, _torch_name(t.dtype)):
            self.src.line(line)

    def _mask(self, op: Op) -> None:
        tile, partial, *captures = (self.name(v) for v in op.operands)
        out = self.name(op.result)
        keep = self._temp(op, len(self.places.scratch[op]) - 1)
        if not self.places.same(op.operands[0], op.result):
            self.src.line(f"{out}.copy_({tile})")
        self.src.line(f"if {partial}:")
        self.src.depth += 1
        self.src.comment(f"mask {op.attrs['mask']}", op.loc)
        diagonal = self._diagonal_mask(op)
        if diagonal:
            self.src.line(f"torch.{'mul' if op.attrs['value'] == 0 else 'add'}({out}, {diagonal}, out={out})")
            self.src.depth -= 1
            return
        self._linear(op, captures, [keep], op.operands[0].type)
        if op.attrs["value"] == 0:
            self.src.line(f"torch.mul({out}, {keep}, out={out})")
        else:  # far below the least maximum a row starts with
            self.src.line(f"torch.sub({keep}, 1.0, out={keep})")
            self.src.line(f"torch.add({out}, {keep}, alpha=3e38, out={out})")
        self.src.depth -= 1

    def _diagonal_mask(self, op: Op) -> str | None:
        """Source of a remembered block, when the mask depends on i - j alone."""
        (source,) = [o for o in self.func.body.ops if o.name == "tile.classify"]
        if source.operands or not toeplitz(source.attrs["mask"]):
            return None
        at = self.x.at
        dtype = _torch_name(op.result.type.dtype)  # type: ignore[attr-defined]
        return (f"rt.diagonal_keep({self.constant(source.attrs['mask'])}, (B, H, N, M), {at['i']} - {at['j']}, {self.x.i}, "
                f"{self.x.j}, torch.{dtype}, {op.attrs['value'] != 0})")  # fmt: skip

    def _reduce(self, op: Op) -> None:
        x, out = self.name(op.operands[0]), self.name(op.result)
        dims = {"j": "-1", "i": "-2", "ij": "(-2, -1)"}[op.attrs["over"]]
        largest = op.attrs["op"] == "max"
        call = f"torch.{'amax' if largest else 'sum'}({x}, {dims}, keepdim=True"
        if len(op.operands) == 1:
            self.src.line(f"{call}, out={out})")
        else:
            into = self.name(op.operands[1])
            self.src.line(f"torch.{'maximum' if largest else 'add'}({into}, {call}), out={out})")

    def _fill(self, op: Op) -> None:
        self.src.line(f"{self.name(op.result)}.fill_({number(op.attrs['value'])})")

    def _positions(self, op: Op, tiles: list[Value]) -> str:
        """Table positions, computed per pair."""
        out = []
        for program in op.attrs["positions"]:
            bound = {p: self.name(v) for p, v in zip(program.params, tiles, strict=True)}
            out.append(emit_expression(self.src, program.body, bound, "float32", {})[0])
        return f"({', '.join(out)},)"

    def _lookup(self, op: Op) -> None:
        table, _g, *tiles = op.operands
        where = self._positions(op, tiles)
        self.src.line(
            f"rt.lookup({self.name(table)}, {op.attrs['axes']!r}, {self.x.at['g']}, {self.x.g}, H, {where}, {self.name(op.result)})"
        )

    def _scatter(self, op: Op) -> None:
        value, table, _g, *tiles = op.operands
        where = self._positions(op, tiles)
        self.src.line(
            f"rt.scatter({self.name(table)}, {op.attrs['axes']!r}, {self.x.at['g']}, {self.x.g}, H, {where}, {self.name(value)})"
        )


def _torch_name(dtype: str) -> str:
    return str(torch_dtype(dtype)).removeprefix("torch.")
