"""Reference evaluation of tile operations in torch: clear, unhurried, the same rounds a backend runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from aatc.ir.access import access, repeats
from aatc.ir.dims import Dim
from aatc.ir.score.evaluate import add_entries, entries, evaluate, numbered, share_heads, sum_to_axes
from aatc.ir.score.evaluate import lookup as read_table
from aatc.ir.score.expr import Expr
from aatc.ir.tilemap import PARTIAL, TileMap
from aatc.ir.types import TensorType, summed_name, torch_dtype

if TYPE_CHECKING:
    from aatc.ir.core import Op
    from aatc.ir.score.program import Program


def extents(op: Op, interp: Any) -> tuple[int, int, int, int]:
    b, h, n, m = (interp.dim(d) for d in op.attrs["sizes"])
    return b, h, n, m


def dtype_of(value_type: Any) -> torch.dtype:
    return torch_dtype(value_type.dtype)


def bind(program: Program, tensors: Any, sizes: Any) -> dict[str, torch.Tensor]:
    """Tensors by parameter name, with a flat leading g split to b, h and shared heads repeated."""
    env = {}
    b, h = sizes[:2]
    for p, t in zip(program.params, tensors, strict=True):
        axes = p.attrs[1]
        if axes.startswith("bh") and t.dim() == len(axes) - 1:
            t = t.unflatten(0, (b, h))
        if "h" in axes and p.rank != 3:
            t = share_heads(t, h, axes.index("h"))
        env[p.name] = t
    return env


def token_numbers(op: Op) -> str:
    """Element type, f32 or f64, of the numbers in a per-token program."""
    if "numbers" in op.attrs:
        numbers: str = op.attrs["numbers"]
        return numbers
    double = any(v.type.dtype == "f64" for v in (*op.operands, *op.results) if isinstance(v.type, TensorType))
    return "f64" if double or op.results[0].type.dtype == "i64" else "f32"  # type: ignore[attr-defined]


def token(op: Op, values: list[Any], interp: Any) -> list[Any]:
    sizes, program, axes = extents(op, interp), op.attrs["program"], op.attrs["axes"]
    t: Any = op.results[0].type
    dtype = torch_dtype(token_numbers(op))
    out = evaluate(program.body, bind(program, values, sizes), sizes, dtype=dtype)
    lead = [n for c, n in zip("bhij", sizes, strict=True) if c in axes]
    full = [n if c in axes else 1 for c, n in zip("bhij", sizes, strict=True)]
    tail = list(out.shape[4:]) if "d" in axes else []
    out = out.expand(*full, out.shape[4]).reshape([*lead, *tail])
    if op.attrs["flat"] and axes.startswith("bh"):
        out = out.flatten(0, 1)
    return [out.to(dtype_of(t)).contiguous()]


def gradient(op: Op, values: list[Any], interp: Any) -> list[Any]:
    sizes, program = extents(op, interp), op.attrs["program"]
    like, *values = values
    part = values.pop() if op.attrs["add"] else None
    dtype = torch_dtype(token_numbers(op))
    value = evaluate(program.body, bind(program, values, sizes), sizes, dtype=dtype)
    axes = op.attrs["axes"]
    shape = list(like.shape)
    heads = shape[axes.index("h")] if "h" in axes else 1
    if heads not in (1, sizes[1]):
        shape[axes.index("h")] = sizes[1]
    leaf = Expr("param", (), ("leaf", axes, "f"))
    out = sum_to_axes(value, leaf, tuple(shape))
    if heads not in (1, sizes[1]):
        at = axes.index("h")
        out = out.unflatten(at, (heads, -1)).sum(at + 1)
    return [(out if part is None else part + out).to(dtype_of(op.results[0].type))]


def table_gradient(op: Op, values: list[Any], interp: Any) -> list[Any]:
    sizes = extents(op, interp)
    like, *values = values
    part = values.pop() if op.attrs["add"] else None
    dtype = torch_dtype(token_numbers(op))
    env = bind(op.attrs["program"], values, sizes)
    value = evaluate(op.attrs["program"].body, env, sizes, dtype=dtype)
    where = [evaluate(p.body, env, sizes, dtype=dtype) for p in op.attrs["positions"]]
    numbers = torch.arange(like.numel()).reshape(like.shape)
    at = read_table(numbers, op.attrs["axes"], where, sizes)
    shape = torch.broadcast_shapes(at.shape, value.shape, (*sizes[:2], 1, 1, 1))
    out = torch.zeros(like.numel(), dtype=dtype)
    out.index_add_(0, at.expand(shape).reshape(-1), value.expand(shape).reshape(-1))
    out = out.reshape(like.shape)
    return [(out if part is None else part + out).to(dtype_of(op.results[0].type))]


def alloc(op: Op, values: list[Any], interp: Any) -> list[Any]:
    t: Any = op.results[0].type
    dtype = dtype_of(t)
    nothing = float("nan") if dtype.is_floating_point else 0 if dtype == torch.bool else torch.iinfo(dtype).min
    return [torch.full([interp.dim(d) for d in t.shape], op.attrs.get("fill", nothing), dtype=dtype)]


def pack(op: Op, values: list[Any], interp: Any) -> list[Any]:
    """Torch has no panels: what they hold, in rows."""
    return [values[0].clone(memory_format=torch.contiguous_format)]


def finish(op: Op, values: list[Any], interp: Any) -> list[Any]:
    t: Any = op.results[0].type
    return [(values[0] * op.attrs["factor"]).reshape([interp.dim(d) for d in t.shape]).to(dtype_of(t))]


class Refused(Exception):
    """A condition of a tile function does not hold: another version of the kernel has to run."""


def peak(op: Op, values: list[Any], interp: Any) -> list[Any]:
    (x,) = values
    x = x.to(dtype_of(op.results[0].type))
    if not x.numel():
        return [torch.zeros((), dtype=x.dtype)]
    return [(x.square().sum(-1).sqrt() if op.attrs["rows"] else x.abs()).max()]


def require(op: Op, values: list[Any], interp: Any) -> list[Any]:
    if not bool((values[0] >= op.attrs["least"]).all()):  # NaN fulfils no condition
        raise Refused
    return []


def centre(op: Op, values: list[Any], interp: Any) -> list[Any]:
    (x,) = values
    token = next(n for n, c in enumerate(op.attrs["axes"]) if c in "ij")
    kept = x.to(dtype_of(op.results[0].type)).nan_to_num(0.0, 0.0, 0.0)
    return [kept.mean(token).nan_to_num(0.0)]


def classify(op: Op, values: list[Any], interp: Any) -> list[Any]:
    a = op.attrs
    found = TileMap.of(a["mask"], values, extents(op, interp), a["rows"], a["cols"], a["heads"])
    return [torch.from_numpy((found.transposed() if a.get("over") == "i" else found).runs())]


class Position(int):
    """A loop position that remembers the extent of the tile there."""

    extent: int

    def __new__(cls, at: int, extent: int) -> Position:
        self = super().__new__(cls, at)
        self.extent = extent
        return self


def loop(op: Op, values: list[Any], interp: Any) -> list[Any]:
    upper, step = interp.dim(Dim.of(op.attrs["upper"])), op.attrs["step"]
    for at in range(0, upper, step):
        values = interp.block(op.regions[0], [Position(at, min(step, upper - at)), *values])
    return values


def sweep(op: Op, values: list[Any], interp: Any) -> list[Any]:
    runs, g, block, *values = values
    kind: Any = op.operands[0].type
    step = op.attrs["step"]
    for first, last, what in runs[int(g) // kind.heads % len(runs), int(block) // kind.block].tolist():
        for at in range(first, last, step) if what else ():
            position = Position(at, min(step, last - at))
            values = interp.block(op.regions[0], [position, what == PARTIAL, *values])
    return values


def _part(op: Op, part: Any, interp: Any) -> tuple[int, int]:
    """Where a part of an axis begins and ends."""
    upper, step = interp.dim(Dim.of(op.attrs["upper"])), op.attrs["step"]
    length = -(-upper // (step * op.attrs["parts"])) * step
    return int(part) * length, min(int(part) * length + length, upper)


def loop_part(op: Op, values: list[Any], interp: Any) -> list[Any]:
    part, *values = values
    first, last = _part(op, part, interp)
    for at in range(first, last, op.attrs["step"]):
        values = interp.block(op.regions[0], [Position(at, min(op.attrs["step"], last - at)), *values])
    return values


def sweep_part(op: Op, values: list[Any], interp: Any) -> list[Any]:
    runs, g, block, part, *values = values
    first, last = _part(op, part, interp)
    cut = runs.clone()
    cut[..., 0].clamp_(min=first)
    cut[..., 1].clamp_(max=last)  # a run that ends before it begins has no round
    return sweep(op, [cut, g, block, *values], interp)


def guard(op: Op, values: list[Any], interp: Any) -> list[Any]:
    if not bool((values[0] >= op.attrs["least"]).all()):
        results: list[Any] = interp.block(op.regions[0], [])
        return results
    return values


def _places(buffer: torch.Tensor, axes: str, positions: Any, sizes: Any) -> list[torch.Tensor]:
    """One view per problem of what a load reads or a store writes, its axes those behind b, h, g."""
    a = access(axes)
    at = dict(zip(a.walks, positions, strict=True))
    g = at.get("g", Position(0, 1))
    out = []
    for n in range(g.extent):
        view = buffer
        for c in a.lead:
            view = view[_problem(c, int(g) + n, view.shape[0], sizes)]
        for axis, c in enumerate(a.inside):
            if c not in "de" and view.shape[axis] != 1:
                view = view.narrow(axis, int(at[c]), at[c].extent)
        if "s" in a.inside:
            view = view.squeeze(a.inside.index("s"))
        out.append(view)
    return out


def _problem(letter: str, problem: int, extent: int, sizes: Any) -> int:
    """The index of a problem along axis g, b or h of a buffer."""
    if letter == "g":
        return problem
    heads: int = sizes[1]
    if extent == 1:
        return 0
    return problem // heads if letter == "b" else problem % heads // (heads // extent)


_TILED = {"": (1, 1), "i": (-1, 1), "j": (1, -1), "d": (1, -1), "ic": (-1, 1), "jc": (1, -1), "si": (-1, 1)}


def load(op: Op, values: list[Any], interp: Any) -> list[Any]:
    sizes = extents(op, interp) if "sizes" in op.attrs else None
    inside = access(op.attrs["axes"]).inside
    repeated = repeats(op)
    views = _places(values[0], op.attrs["axes"], values[1 + repeated :], sizes)
    out = torch.stack([v.reshape(_TILED[inside]) if inside in _TILED else v for v in views])
    at = dict(zip(access(op.attrs["axes"]).walks, values[1 + repeated :], strict=True))
    rows, cols = (at[c].extent if c in at else -1 for c in access(op.attrs["axes"]).tile[1:])
    out = out.expand(values[1].extent if repeated else -1, rows, cols)
    return [out.to(dtype_of(op.results[0].type))]


def store(op: Op, values: list[Any], interp: Any) -> list[Any]:
    sizes = extents(op, interp) if "sizes" in op.attrs else None
    value = values[0] if access(op.attrs["axes"]).lead else values[0].sum(0, keepdim=True)
    for part, view in zip(value, _places(values[1], op.attrs["axes"], values[2:], sizes), strict=True):
        if access(op.attrs["axes"]).inside == "ij":
            for d in (d for d in range(2) if view.shape[d] == 1 and part.shape[d] != 1):
                part = part.sum(d, keepdim=True)
        part = part.reshape(view.shape).to(view.dtype)
        view.copy_(view + part if op.attrs["add"] else part)
    return []


def dot(op: Op, values: list[Any], interp: Any) -> list[Any]:
    a, b, *c = values
    a, b = (x.to(dtype_of(op.results[0].type)) for x in (a, b))
    out = {"nt": lambda: a @ b.mT, "nn": lambda: a @ b, "tn": lambda: a.mT @ b}[op.attrs["form"]]()
    out = out * op.attrs.get("factor", 1.0)
    return [out + c[0] if c else out]


def pairwise(program: Program, tiles: Sequence[Any], dtype: Any) -> torch.Tensor:
    """A program over tiles (g, i, j): its parameters are laid out by position, not by their declared axes."""
    values: dict[Expr, Any] = {p: t.unsqueeze(0).unsqueeze(-1) for p, t in zip(program.params, tiles, strict=True)}
    return evaluate(program.body, {}, (1, 1, 1, 1), dtype=dtype, values=values)[0, ..., 0]


def map_tiles(op: Op, values: list[Any], interp: Any) -> list[Any]:
    out = []
    for program, r in zip(op.attrs["programs"], op.results, strict=True):
        value = pairwise(program, values, torch_dtype(summed_name(r.type.dtype)))  # type: ignore[attr-defined]
        # as torch.broadcast_shapes does, which takes a fifth of the interpreter's time
        whole = [
            max(extents, key=lambda n: n != 1) for extents in zip(value.shape, *(v.shape for v in values), strict=True)
        ]
        shape = [n if int(d) == 1 else w for n, d, w in zip(value.shape, r.type.shape, whole, strict=True)]  # type: ignore[attr-defined]
        out.append(value.expand(shape).to(dtype_of(r.type)))
    return out


def mask_tile(op: Op, values: list[Any], interp: Any) -> list[Any]:
    tile, partial, *captures = values
    if not partial:
        return [tile]
    keep = pairwise(op.attrs["mask"], captures, torch.float64)
    return [tile.masked_fill(~keep.expand(tile.shape), op.attrs["value"])]


def reduce(op: Op, values: list[Any], interp: Any) -> list[Any]:
    tile, *into = values
    dims = [{"i": 1, "j": 2}[c] for c in op.attrs["over"]]
    folds: dict[str, tuple[Any, Any]] = {
        "max": (torch.amax, torch.maximum),
        "min": (torch.amin, torch.minimum),
        "sum": (torch.sum, torch.add),
    }
    whole, both = folds[op.attrs["op"]]
    out = whole(tile.to(dtype_of(op.results[0].type)), dims, keepdim=True)
    return [both(out, into[0]) if into else out]


def fill(op: Op, values: list[Any], interp: Any) -> list[Any]:
    t: Any = op.results[0].type
    at = iter(values)
    order = access(op.attrs["axes"]).tile
    shape = [next(at).extent if c in "gij" else int(d) for c, d in zip(order, t.shape, strict=True)]
    return [torch.full(shape, op.attrs["value"], dtype=dtype_of(t))]


def position_numbers(tiles: Sequence[Any]) -> str:
    """Element type, f32 or f64, of the table positions that are computed from ``tiles``, values of the IR: integers
    and what a mask reads are exact."""
    return "f64" if any(v.type.dtype in ("f64", "i64") for v in tiles) else "f32"


def position(op: Op, values: list[Any], interp: Any) -> list[Any]:
    (at,) = values
    axis = op.attrs["axes"]
    numbers = torch.arange(int(at), int(at) + at.extent)
    if axis in "bh":
        heads = extents(op, interp)[1]
        numbers = numbers // heads if axis == "b" else numbers % heads
    return [numbers.reshape({"i": (1, -1, 1), "j": (1, 1, -1)}.get(axis, (-1, 1, 1)))]


def _entries_of(op: Op, part: Any) -> tuple[slice, ...]:
    at = {"i": 1, "j": 2}[op.attrs["over"]]
    start, stride, n = op.attrs["start"], op.attrs["stride"], int(part.shape[at])
    where = [slice(None)] * 3
    where[at] = slice(start, start + n * stride, stride)
    return tuple(where)


def slice_tile(op: Op, values: list[Any], interp: Any) -> list[Any]:
    return [values[0][_entries_of(op, op.results[0].type)]]


def insert_tile(op: Op, values: list[Any], interp: Any) -> list[Any]:
    part, whole = values
    out = whole.clone()
    out[_entries_of(op, op.operands[0].type)] = part
    return [out]


def _entries(shape: Sequence[int], op: Op, g: Any, tiles: Sequence[Any], sizes: Any) -> tuple[torch.Tensor, ...]:
    """The index of the entries of a table that an operation reads or adds to, in tile layout (g, i, j)."""
    problems = torch.arange(int(g), int(g) + g.extent)
    dtype = torch_dtype(position_numbers(op.operands[len(op.operands) - len(tiles) :]))
    positions = [pairwise(p, tiles, dtype) for p in op.attrs["positions"]]
    return entries(op.attrs["axes"], shape, problems, sizes[1], positions)


def lookup_tile(op: Op, values: list[Any], interp: Any) -> list[Any]:
    table, g, *tiles = values
    found = table[_entries(table.shape, op, g, tiles, extents(op, interp))]
    return [found.to(dtype_of(op.results[0].type))]


def scatter(op: Op, values: list[Any], interp: Any) -> list[Any]:
    value, table, g, *tiles = values
    add_entries(table, numbered(table.shape)[_entries(table.shape, op, g, tiles, extents(op, interp))], value)
    return []
