"""The part of a tile function that works on whole buffers: per-token programs, gradients, maps, the library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aatc.backends.cpu.places import Places
from aatc.backends.cpu.table import lowering
from aatc.backends.cpu.words import emit_expression
from aatc.backends.source import Source, number, torch_name
from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.dims import Dim, factors
from aatc.ir.registry import lookup_op
from aatc.ir.score.program import Program
from aatc.ir.tile_evaluate import token_numbers
from aatc.ir.types import TensorType


@dataclass
class Extents:
    """Source text of the current tile extents along g, i and j; ``flat`` means one problem at a time."""

    g: str = "1"
    i: str = "1"
    j: str = "1"
    flat: bool = True
    at: dict[str, str] = field(default_factory=dict)


class BufferEmitter:
    """What works on whole buffers. ``constants`` collects objects the code refers to by position."""

    def __init__(self, func: Func, constants: list[Any]):
        self.func, self.constants = func, constants
        self.src = Source()
        loops = [op for op in func.body.ops if op.name == "tile.for" and op.attrs["axis"] == "g"]
        self.x = Extents(flat=all(op.attrs["step"] == 1 for op in loops))  # loads before the loops know it, too
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
        self.bind_tiles(self.func.body)
        self.block(self.func.body)
        head = [f"def {name}({', '.join(args)}):"]
        head += [f"    {line}" for line in self._prologue()]
        return "\n".join(head + self.src.lines) + "\n"

    def _prologue(self) -> list[str]:
        size = self.func.attrs.get("cpu.arena", 0)
        lines = self._dims()
        if self.arenas:
            lines.append(f"arena = torch.empty({int(size)}, dtype=torch.uint8)")
            lines += [f"arena_{a} = arena.view(torch.{torch_name(a)})" for a in sorted(self.arenas)]
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
        parts = factors(name)  # several of a product, which no shape shows
        return "(" + " * ".join(map(self.dim_name, parts)) + ")" if len(parts) > 1 else self.dim_name(name)

    def sizes(self, op: Op) -> str:
        return "(" + ", ".join(self.dim(d) for d in op.attrs["sizes"]) + ")"

    def constant(self, value: Any) -> str:
        self.constants.append(value)
        return f"constants[{len(self.constants) - 1}]"

    def bind_tiles(self, block: Block) -> None:
        """Names for the work tiles of a block."""
        raise NotImplementedError

    # --- blocks --------------------------------------------------------------------------------------------
    def block(self, block: Block) -> None:
        for op in block.ops:
            lowering[op.name](self, op)

    def name(self, v: Value) -> str:
        return self.src.name(v)

    # --- buffers -------------------------------------------------------------------------------------------
    @lowering("tile.token")
    def _token(self, op: Op) -> None:
        program, axes = op.attrs["program"], op.attrs["axes"]
        t: TensorType = op.result.type  # type: ignore[assignment]
        src, out = self.src, self.name(op.result)
        src.comment(f"{op.result.name}: {program}", op.loc)
        sizes = [self.dim(d) for d in op.attrs["sizes"]]
        self._bind_sizes(sizes)
        if program.body.fn == "param" and program.params[0].attrs[1] == axes and self._plain(op, t):
            source = self.name(op.operands[0])
            view = f"{source}.reshape([{', '.join(self.dim(d) for d in t.shape)}])"
            src.line(f"{out} = {self._laid_out(view, t.layout)}")
            return
        compute = torch_name(token_numbers(op))
        body, used = self._expression(op, program, compute)
        n = sizes[2] if "i" in axes else sizes[3] if "j" in axes else "1"
        shape = ", ".join(self.dim(d) for d in t.shape)
        b, h = (sizes[0], sizes[1]) if axes else ("1", "1")
        src.line(f"{out} = rt.finish_token({body}, ({b}, {h}, {n}), [{shape}], torch.{torch_name(t.dtype)})")
        self._delete(used)

    @staticmethod
    def _laid_out(view: str, layout: str) -> str:
        """Source of a view of an argument in the layout that is promised of it."""
        return {"": view, "rows": f"rt.rows({view})", "contiguous": f"{view}.contiguous()"}[layout]

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

    def _expression(
        self, op: Op, program: Program, compute: str, operands: list[Value] | None = None
    ) -> tuple[str, list[str]]:
        """Views of the operands and the nodes of a per-token program; returns what `emit_expression` does."""
        bound = {}
        for p, v in zip(program.params, operands if operands is not None else op.operands, strict=True):
            view = self.src.fresh(f"{p.name}_v")
            cast = f".to(torch.{compute})" if p.dtype == "f" and torch_name(v.type.dtype) != compute else ""  # type: ignore[attr-defined]
            self.src.line(f"{view} = rt.token_view({self.name(v)}, {p.attrs[1]!r}, B, H){cast}")
            bound[p] = view
        return emit_expression(self.src, program.body, bound, compute, {"b": "B", "h": "H", "i": "N", "j": "M"})

    @staticmethod
    def _dtype(op: Op) -> str:
        return torch_name(op.result.type.dtype)  # type: ignore[attr-defined]

    @lowering("tile.gradient")
    def _gradient(self, op: Op) -> None:
        program, like = op.attrs["program"], self.name(op.operands[0])
        self.src.comment(f"{op.result.name}: {program}", op.loc)
        self._bind_sizes([self.dim(d) for d in op.attrs["sizes"]])
        compute = torch_name(token_numbers(op))
        part = f"{self.name(op.operands[-1])} + " if op.attrs["add"] else ""
        body, used = self._expression(op, program, compute, op.operands[1 : len(program.params) + 1])
        found = f"rt.sum_to({body}, {op.attrs['axes']!r}, {like}, (B, H, N, M))"
        self.src.line(f"{self.name(op.result)} = ({part}{found}).to(torch.{self._dtype(op)})")
        self._delete(used)

    @lowering("tile.table_gradient")
    def _table_gradient(self, op: Op) -> None:
        program, positions, like = op.attrs["program"], op.attrs["positions"], self.name(op.operands[0])
        self.src.comment(f"{op.result.name}: {program}", op.loc)
        self._bind_sizes([self.dim(d) for d in op.attrs["sizes"]])
        compute = torch_name(token_numbers(op))
        operands = op.operands[1 : len(program.params) + 1]
        texts = [self._expression(op, p, compute, operands) for p in (program, *positions)]
        value, *where = (text for text, _ in texts)
        part = f"{self.name(op.operands[-1])} + " if op.attrs["add"] else ""
        self.src.line(
            f"{self.name(op.result)} = ({part}rt.table_gradient({value}, ({', '.join(where)},), {like}, "
            f"{op.attrs['axes']!r}, B, H)).to(torch.{self._dtype(op)})"
        )
        self._delete([name for _, names in texts for name in names])

    @lowering("tile.alloc")
    def _alloc(self, op: Op) -> None:
        t: TensorType = op.result.type  # type: ignore[assignment]
        shape = ", ".join(self.dim(d) for d in t.shape)
        fill = op.attrs.get("fill")
        make = f"torch.empty([{shape}]" if fill is None else f"torch.full([{shape}], {number(fill)}"
        if fill == 0:
            make = f"torch.zeros([{shape}]"
        self.src.line(f"{self.name(op.result)} = {make}, dtype=torch.{torch_name(t.dtype)})")

    @lowering("tile.pack")
    def _pack(self, op: Op) -> None:
        """Torch knows strides only, and its products of matrices pack by themselves."""
        self.src.line(f"{self.name(op.result)} = {self.name(op.operands[0])}")

    @lowering("tile.finish")
    def _finish(self, op: Op) -> None:
        t: TensorType = op.result.type  # type: ignore[assignment]
        shape, buffer = ", ".join(self.dim(d) for d in t.shape), op.operands[0]
        owner, readers = buffer.owner, [x for x in self.users[buffer] if 1 not in lookup_op(x.name).traits.writes]
        own = isinstance(owner, Op) and owner.name == "tile.alloc" and readers == [op]
        times = "mul_" if own and op in self.func.body.ops else "mul"  # in place: what nobody else reads
        self.src.line(
            f"{self.name(op.result)} = {self.name(buffer)}.{times}({number(op.attrs['factor'])})"
            f".reshape([{shape}]).to(torch.{torch_name(t.dtype)})"
        )

    @lowering("tile.centre")
    def _centre(self, op: Op) -> None:
        t: TensorType = op.result.type  # type: ignore[assignment]
        axis = next(n for n, c in enumerate(op.attrs["axes"]) if c in "ij")
        self.src.line(
            f"{self.name(op.result)} = rt.token_mean({self.name(op.operands[0])}, {axis}, torch.{torch_name(t.dtype)})"
        )

    @lowering("tile.peak")
    def _peak(self, op: Op) -> None:
        self.src.line(f"{self.name(op.result)} = rt.peak({self.name(op.operands[0])}, {op.attrs['rows']})")

    @lowering("tile.require")
    def _require(self, op: Op) -> None:
        """Leaves the function: the kernel has another version for this case."""
        self.src.line(f"if not rt.at_least({self.name(op.operands[0])}, {number(op.attrs['least'])}):")
        self.src.line("    return None")

    @lowering("tile.classify")
    def _classify(self, op: Op) -> None:
        mask = op.attrs["mask"]
        self.src.comment(f"tiles of the mask {mask}", op.loc)
        captures = "".join(f"{self.name(v)}, " for v in op.operands)
        self.src.line(
            f"{self.name(op.result)} = rt.classify({self.constant(mask)}, ({captures}), {self.sizes(op)}, "
            f"{op.attrs['rows']}, {op.attrs['cols']}, {op.attrs['heads']}, {op.attrs.get('over', 'j')!r})"
        )

    @lowering("cpu.attention")
    def _attention(self, op: Op) -> None:
        a = op.attrs
        rest = [self.name(v) for v in op.operands[3:]]
        q, k, v = (self.name(x) for x in op.operands[:3])
        bias = rest.pop(0) if a["bias"] else "None"
        shift = rest.pop(0) if a["shift"] else "None"
        tiles = rest.pop(0) if a["map"] else "None"
        mask = self.constant(a["mask"]) if "mask" in a else "None"
        captures = "".join(f"{c}, " for c in rest)
        out, lse = (self.name(r) for r in op.results)
        self.src.comment("the library's fused attention", op.loc)
        self.src.line(
            f"{out}, {lse} = rt.library({q}, {k}, {v}, {bias}, {shift}, {tiles}, {mask}, ({captures}), {a['causal']}, "
            f"{a['rows']}, {self.sizes(op)})"
        )
        if a["shift"]:
            self.src.line(f"if {out} is None:")
            self.src.line("    return None")

    @lowering("cpu.attention_backward")
    def _attention_backward(self, op: Op) -> None:
        self.src.comment("the library's fused attention, backward", op.loc)
        results = ", ".join(self.name(r) for r in op.results)
        operands = ", ".join(self.name(v) for v in op.operands)
        self.src.line(f"{results} = rt.library_backward({operands}, {op.attrs['causal']})")
