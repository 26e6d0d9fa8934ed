"""What forward and backward lowering share: the attention, and building tile functions by its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aatc.ir.core import Block, Func, Loc, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.dims import product as dimension_product
from aatc.ir.geo import attention_of, whole_attention_of
from aatc.ir.schedule import Pack, Schedule, Stage
from aatc.ir.score.expr import Expr, params, postorder
from aatc.ir.score.program import Program
from aatc.ir.score.widths import extents
from aatc.ir.types import TensorType, TileType, Type, compute_name
from aatc.passes.factor import Factored, Token

LOG2E, LN2 = math.log2(math.e), math.log(2.0)


class Attention:
    """A `geo.attend` operation being lowered: its programs, operand types, extents, and the dtype of its scores:
    ``double`` makes that double precision whatever the operands are. ``whole``: its score is the one in which no
    difference was multiplied out, in double precision."""

    def __init__(self, op: Op, dims: dict[str, tuple[int, int | None]], *, double: bool = False, whole: bool = False):
        self.op, self.whole, double = op, whole, double or whole
        self.programs = whole_attention_of(op) if whole else attention_of(op)
        self.names: tuple[str, ...] = op.attrs["names"]
        self.types: dict[str, TensorType] = {n: v.type for n, v in zip(self.names, op.operands, strict=True)}  # type: ignore[misc]
        q, k, v = (self.types[n] for n in self.names[:3])
        self.batch, self.heads, self.rows = q.shape[:3]
        self.cols = k.shape[2]
        self.sizes = (self.batch, self.heads, self.rows, self.cols)
        self.problems = product(self.batch, self.heads, dims)
        self.dtype = "f64" if double else compute_name(q.dtype)
        #: Whether slopes must be right for numbers whose square is too large: single precision's is none in double.
        self.far = compute_name(q.dtype) == "f64"
        self.value_width = int(v.shape[3])
        declared = self.programs.declared()
        self.tails = {
            n: tuple(int(d) for d in self.types[n].shape[len(p.attrs[1]) - p.rank :])
            for n, p in declared.items()
            if p.rank in (1, 2)
        }
        self.declared = declared

    def element(self, kind: str, exact: bool = False) -> str:
        """Element type of a number ``f``, an integer ``i`` or a truth value ``b``; exact numbers are f64."""
        return {"f": "f64" if exact else self.dtype, "i": "i64", "b": "bool"}[kind]

    def width(self, e: Expr) -> int:
        return extents([e], self.tails)[e][0]


def product(a: Dim, b: Dim, dims: dict[str, tuple[int, int | None]]) -> Dim:
    """a times b, declared in ``dims`` where it is a dimension of its own."""
    found = dimension_product(a, b)
    for name in found.symbols - dims.keys():
        dims[name] = (0, None)
    return found


@dataclass
class Builder:
    """Appends operations to the innermost open block."""

    loc: Loc | None
    dtype: str
    blocks: list[Block] = field(default_factory=lambda: [Block()])

    def op(
        self,
        name: str,
        operands: Sequence[Value] = (),
        types: Sequence[Type] = (),
        *,
        names: Sequence[str] = (),
        regions: Sequence[Block] = (),
        **attrs: Any,
    ) -> list[Value]:
        attrs = {k: v for k, v in attrs.items() if v is not None}
        op = Op(name, operands, attrs, types, regions=regions, loc=self.loc, result_names=names)
        self.blocks[-1].add(op)
        return op.results

    def tile(self, *shape: int) -> TileType:
        return TileType.of(self.dtype, shape)

    def open(self, types: Sequence[Type], names: Sequence[str]) -> list[Value]:
        """Opens a block with arguments; `close` pops it."""
        block = Block([Value(t, n) for t, n in zip(types, names, strict=True)])
        self.blocks.append(block)
        return block.args

    def close(self, yielded: Sequence[Value] = (), terminator: str = "tile.yield") -> Block:
        self.op(terminator, yielded)
        return self.blocks.pop()

    def fill(self, value: float, axes: str, at: dict[str, Value], *shape: int, name: str = "") -> Value:
        return self.op(
            "tile.fill", [at[c] for c in axes if c != "d"], [self.tile(*shape)], names=[name], value=value, axes=axes
        )[0]

    def dot(self, form: str, a: Value, b: Value, c: Value | None = None, *, name: str = "") -> Value:
        op = Op("tile.dot", [a, b, *([c] if c is not None else [])], {"form": form})
        from aatc.ir.registry import OPS

        (t,) = OPS["tile.dot"].infer(op)  # type: ignore[misc]
        return self.op("tile.dot", op.operands, [t], names=[name], form=form)[0]

    def reduce(self, kind: str, over: str, x: Value, into: Value | None = None, *, name: str = "") -> Value:
        t: TileType = x.type  # type: ignore[assignment]
        shape = [t.shape[0], 1 if "i" in over else t.shape[1], 1 if "j" in over else t.shape[2]]
        return self.op(
            "tile.reduce",
            [x, *([into] if into is not None else [])],
            [TileType.of(t.dtype, shape)],
            names=[name],
            op=kind,
            over=over,
        )[0]

    def map(self, results: Iterable[tuple[str, Expr, TileType]], env: dict[str, Value]) -> list[Value]:
        """One `tile.map` of several (name, expression over atoms, type); env binds atoms by name."""
        results = list(results)
        used = tuple(params(*(e for _, e, _ in results)))
        programs = tuple(Program(used, e) for _, e, _ in results)
        return self.op(
            "tile.map",
            [env[p.name] for p in used],
            [t for *_, t in results],
            names=[n for n, *_ in results],
            programs=programs,
        )


def token_type(a: Attention, t: Token, flat: bool = True) -> TensorType:
    lead = {"bhi": [a.rows], "bhj": [a.cols], "bh": [], "": []}[t.axes.rstrip("d")]
    head = ([] if t.axes == "" else [a.problems]) if flat else ([] if t.axes == "" else [a.batch, a.heads])
    tail = [a.width(t.expr)] if t.axes.endswith("d") else []
    return TensorType.of(a.element(t.dtype, t.exact), [*head, *lead, *tail])


def numbers_of(a: Attention, e: Expr, operands: Iterable[Value]) -> str | None:
    """What a per-token program has to compute in, where that is not left to its operands. The mean of the keys must be
    the same number in all of a function: an operand in double precision beside it would make it another."""
    wider = any(isinstance(v.type, TensorType) and v.type.dtype == "f64" for v in operands) and a.dtype != "f64"
    return a.dtype if wider and any(x.fn == "centre" for x in postorder(e)) else None


def compute_tokens(
    b: Builder, a: Attention, f: Factored, env: dict[str, Value], tokens: Iterable[Token]
) -> dict[str, Value]:
    """Emits `tile.token` for each token; returns buffers by token name."""
    out = {}
    for t in tokens:
        program = Program.of(t.expr)
        operands = [env[n] for n in program.names]
        numbers: str | None = None
        if t.dtype == "b":
            numbers = "f64" if t.exact else a.dtype
        elif not t.exact:
            numbers = numbers_of(a, t.expr, operands)
        out[t.name] = b.op(
            "tile.token",
            operands,
            [token_type(a, t)],
            names=[t.name],
            program=program,
            axes=t.axes,
            sizes=a.sizes,
            flat=True,
            numbers=numbers,
        )[0]
    return out


def pack_tokens(b: Builder, s: Schedule, buffers: dict[str, Value], tokens: Iterable[Token]) -> None:
    """Replaces those of ``buffers``, by token name, by panels that the schedule wants packed: vectors per key of an
    operand, or computed from it."""
    for t in tokens:
        panel = next((d.panel for d in s.every(Pack) if any(p.name == d.what for p in params(t.expr))), None)
        if panel is not None and t.axes == "bhjd":
            source = buffers[t.name]
            made = replace(source.type, layout=f"panels({panel})")  # type: ignore[type-var]
            buffers[t.name] = b.op("tile.pack", [source], [made], names=[f"{t.name}_panels"], axes=TILE_OF[t.axes])[0]


TILE_OF = {"bhid": "gid", "bhjd": "gjd", "bhi": "gi", "bhj": "gj", "bh": "g", "": ""}


def load_token(b: Builder, a: Attention, s: Schedule, t: Token, buffer: Value, at: dict[str, Value]) -> Value:
    """The tile of a token at loop positions ``at`` (by axis g, i, j)."""
    axes = TILE_OF[t.axes]
    extent = {"g": s.heads, "i": s.rows, "j": s.cols}
    w = int(buffer.type.shape[-1]) if t.axes.endswith("d") else 1  # type: ignore[attr-defined]
    shape = [
        extent["g"] if "g" in axes else 1,
        extent["i"] if "i" in axes else (extent["j"] if axes == "gjd" else 1),
        w if axes.endswith("d") else (extent["j"] if "j" in axes else 1),
    ]
    return b.op(
        "tile.load",
        [buffer, *(at[c] for c in axes if c != "d")],
        [TileType.of(a.element(t.dtype, t.exact), shape, _space(s, t))],
        names=[f"{t.name}_t"],
        axes=axes,
    )[0]


def _space(s: Schedule, t: Token) -> str:
    """Where tiles of a token are staged: where those of an operand are that it is computed from."""
    return next((d.space for d in s.every(Stage) if any(p.name == d.what for p in params(t.expr))), "")


def load_channel(b: Builder, a: Attention, s: Schedule, t: Token, buffer: Value, at: dict[str, Value]) -> Value:
    axes = "gic" if t.axes == "bhid" else "gjc"
    shape = (s.heads, s.rows, 1) if axes == "gic" else (s.heads, 1, s.cols)
    return b.op(
        "tile.load", [buffer, *(at[c] for c in axes)], [TileType.of(a.dtype, shape)], names=[f"{t.name}_ch"], axes=axes
    )[0]


def new_func(name: str, b: Builder, args: Sequence[Value], results: Sequence[Value], attrs: dict[str, Any]) -> Func:
    b.op("tile.return", results)
    (block,) = b.blocks
    block.args = list(args)
    for v in args:
        v.owner = block
    return Func(name, "tile", block, attrs)
