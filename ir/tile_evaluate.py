"""Reference evaluation of tile operations in torch: clear, unhurried, the same rounds a backend runs."""

from __future__ import annotations

from typing import Any

import torch

from aatc.ir.dims import Dim
from aatc.ir.score.evaluate import evaluate, sum_to_axes, table_position
from aatc.ir.score.evaluate import lookup as read_table
from aatc.ir.score.expr import Expr
from aatc.ir.softmax import softmax
from aatc.ir.tilemap import TileMap
from aatc.ir.types import TensorType, torch_dtype


def _extents(op, interp) -> tuple[int, int, int, int]:
    b, h, n, m = (interp.dim(d) for d in op.attrs["sizes"])
    return b, h, n, m


def _dtype(value_type) -> torch.dtype:
    return torch_dtype(value_type.dtype)


def bind(program, tensors, sizes) -> dict[str, torch.Tensor]:
    """Tensors by parameter name, with a flat leading g split to b, h and shared heads repeated."""
    env = {}
    b, h = sizes[:2]
    for p, t in zip(program.params, tensors, strict=True):
        axes = p.attrs[1]
        if axes.startswith("bh") and t.dim() == len(axes) - 1:
            t = t.unflatten(0, (b, h))
        if "h" in axes and p.rank != 3:
            at = axes.index("h")
            if t.shape[at] not in (1, h):
                t = t.repeat_interleave(h // t.shape[at], dim=at)
        env[p.name] = t
    return env


def token_numbers(op) -> str:
    """Element type, f32 or f64, of the numbers in a per-token program."""
    if "numbers" in op.attrs:
        return op.attrs["numbers"]
    double = any(v.type.dtype == "f64" for v in (*op.operands, *op.results) if isinstance(v.type, TensorType))
    return "f64" if double or op.results[0].type.dtype == "i64" else "f32"


def token(op, values, interp):
    sizes, program, axes = _extents(op, interp), op.attrs["program"], op.attrs["axes"]
    t = op.results[0].type
    dtype = torch_dtype(token_numbers(op))
    out = evaluate(program.body, bind(program, values, sizes), sizes, dtype=dtype)
    lead = [n for c, n in zip("bhij", sizes, strict=True) if c in axes]
    full = [n if c in axes else 1 for c, n in zip("bhij", sizes, strict=True)]
    tail = list(out.shape[4:]) if "d" in axes else []
    out = out.expand(*full, out.shape[4]).reshape([*lead, *tail])
    if op.attrs["flat"] and axes.startswith("bh"):
        out = out.flatten(0, 1)
    return [out.to(_dtype(t)).contiguous()]


def gradient(op, values, interp):
    sizes, program = _extents(op, interp), op.attrs["program"]
    like, *values = values
    part = values.pop() if op.attrs["add"] else None
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in (like, *values)) else torch.float32
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
    return [(out if part is None else part + out).to(_dtype(op.results[0].type))]


def table_gradient(op, values, interp):
    sizes = _extents(op, interp)
    like, *values = values
    part = values.pop() if op.attrs["add"] else None
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    env = bind(op.attrs["program"], values, sizes)
    value = evaluate(op.attrs["program"].body, env, sizes, dtype=dtype)
    where = [evaluate(p.body, env, sizes, dtype=dtype) for p in op.attrs["positions"]]
    numbers = torch.arange(like.numel()).reshape(like.shape)
    at = read_table(numbers, op.attrs["axes"], where, sizes)
    shape = torch.broadcast_shapes(at.shape, value.shape, (*sizes[:2], 1, 1, 1))
    out = torch.zeros(like.numel(), dtype=dtype)
    out.index_add_(0, at.expand(shape).reshape(-1), value.expand(shape).reshape(-1))
    out = out.reshape(like.shape)
    return [(out if part is None else part + out).to(_dtype(op.results[0].type))]


def alloc(op, values, interp):
    t = op.results[0].type
    return [torch.full([interp.dim(d) for d in t.shape], op.attrs.get("fill", float("nan")), dtype=_dtype(t))]


def finish(op, values, interp):
    t = op.results[0].type
    return [(values[0] * op.attrs["factor"]).reshape([interp.dim(d) for d in t.shape]).to(_dtype(t))]


def view(op, values, interp):
    (buffer,) = values
    sizes = iter(buffer.shape)
    return [buffer.reshape([next(sizes) if c in op.attrs["axes"] else 1 for c in "bhij"])]


class Refused(Exception):
    """A condition of a tile function does not hold: another version of the kernel has to run."""


def peak(op, values, interp):
    (x,) = values
    if not x.numel():
        return [torch.zeros((), dtype=x.dtype)]
    return [(x.square().sum(-1).sqrt() if op.attrs["rows"] else x.abs()).max()]


def require(op, values, interp):
    if not bool((values[0] >= op.attrs["least"]).all()):  # NaN fulfils no condition
        raise Refused
    return []


def classify(op, values, interp):
    a = op.attrs
    return [TileMap.of(a["mask"], values, _extents(op, interp), a["rows"], a["cols"], a["heads"])]


def _truth(mask, captures, sizes) -> torch.Tensor:
    return evaluate(mask.body, bind(mask, captures, sizes), sizes, dtype=torch.float64)[..., 0]


def library(op, values, interp):
    q, k, v = (x.to(torch.float64) if x.dtype == torch.float64 else x.float() for x in values[:3])
    b, h, n, m = _extents(op, interp)
    rest = list(values[3:])
    s = q @ k.mT
    if op.attrs["bias"]:
        bias = rest.pop(0).reshape(b, h, 1, m)
        s = s + (bias + rest.pop(0).reshape(b, h, n, 1) if op.attrs["shift"] else bias).to(s.dtype)
    if op.attrs["map"]:
        rest.pop(0)
    keep = torch.ones(n, m, dtype=torch.bool).expand(b, h, n, m)
    if op.attrs["causal"]:
        keep = keep.tril()
    if "mask" in op.attrs:
        program = op.attrs["mask"]
        keep = keep & _truth(program, rest, (b, h, n, m))
    s = s.masked_fill(~keep, float("-inf"))
    p, lse = softmax(s)
    return [(p @ v).to(_dtype(op.results[0].type)), lse.to(_dtype(op.results[1].type))]


def library_backward(op, values, interp):
    grad, q, k, v, out, lse = values
    s = q @ k.mT
    if op.attrs["causal"]:
        s = s.masked_fill(~torch.ones(s.shape[-2:], dtype=torch.bool).tril(), float("-inf"))
    p = torch.exp(s - lse.unsqueeze(-1))
    ds = p * (grad @ v.mT - (grad * out).sum(-1, keepdim=True))
    return [ds @ k, ds.mT @ q, p.mT @ grad]


class Position(int):
    """A loop position that remembers the extent of the tile there."""

    extent: int

    def __new__(cls, at: int, extent: int) -> Position:
        self = super().__new__(cls, at)
        self.extent = extent
        return self


def loop(op, values, interp):
    upper, step = interp.dim(Dim.of(op.attrs["upper"])), op.attrs["step"]
    for at in range(0, upper, step):
        values = interp.block(op.regions[0], [Position(at, min(step, upper - at)), *values])
    return values


def sweep(op, values, interp):
    tiles, g, i, *values = values
    for at, extent, partial in tiles.runs(g, i, op.attrs["step"]):
        values = interp.block(op.regions[0], [Position(at, extent), partial, *values])
    return values


def guard(op, values, interp):
    if not bool((values[0] >= op.attrs["least"]).all()):
        return interp.block(op.regions[0], [])
    return values


def _window(buffer: torch.Tensor, axes: str, positions, sizes) -> torch.Tensor:
    """The view of ``buffer`` a load reads or a store writes."""
    if axes == "gij":
        return pair_window(buffer, positions, sizes)
    at = iter(positions)
    for axis, c in enumerate(axes):
        if c == "d":
            continue
        p = next(at)
        buffer = buffer.narrow(axis, int(p), p.extent)
    return buffer


def pair_window(buffer: torch.Tensor, positions, sizes) -> torch.Tensor:
    """Block (g, i, j) of a (b, h, i, j) buffer whose axes may have size 1."""
    g, i, j = positions
    b, h = sizes[:2]
    rows = buffer if buffer.shape[2] == 1 else buffer.narrow(2, int(i), i.extent)
    block = rows if buffer.shape[3] == 1 else rows.narrow(3, int(j), j.extent)
    if g.extent == 1:
        return block[int(g) // h if buffer.shape[0] > 1 else 0, int(g) % h if buffer.shape[1] > 1 else 0].unsqueeze(0)
    return block.expand(b, h, *block.shape[2:]).flatten(0, 1).narrow(0, int(g), g.extent)


def load(op, values, interp):
    sizes = _extents(op, interp) if "sizes" in op.attrs else None
    axes = op.attrs["axes"]
    out = _window(values[0], axes, values[1:], sizes)
    if axes in ("gi", "gic"):
        out = out.reshape(*out.shape[:2], 1)
    elif axes in ("gj", "gjc"):
        out = out.reshape(out.shape[0], 1, out.shape[1])
    elif axes in ("g", ""):
        out = out.reshape(-1, 1, 1)
    return [out.to(_dtype(op.results[0].type))]


def store(op, values, interp):
    sizes = _extents(op, interp) if "sizes" in op.attrs else None
    window = _window(values[1], op.attrs["axes"], values[2:], sizes)
    value = values[0]
    if op.attrs["axes"] == "gij" and value.shape != window.shape:
        value = value.sum([d for d in range(3) if window.shape[d] == 1 and value.shape[d] != 1], keepdim=True)
    value = value.reshape(window.shape).to(window.dtype)
    if op.attrs["add"]:
        window += value
    else:
        window.copy_(value)
    return []


def dot(op, values, interp):
    a, b, *c = values
    out = {"nt": lambda: a @ b.mT, "nn": lambda: a @ b, "tn": lambda: a.mT @ b}[op.attrs["form"]]()
    return [out + c[0] if c else out]


def _pairwise(program, tiles, dtype) -> torch.Tensor:
    """A program over tiles (g, i, j): its parameters are laid out by position, not by their declared axes."""
    values: dict[Expr, Any] = {p: t.unsqueeze(0).unsqueeze(-1) for p, t in zip(program.params, tiles, strict=True)}
    return evaluate(program.body, {}, (1, 1, 1, 1), dtype=dtype, values=values)[0, ..., 0]


def map_tiles(op, values, interp):
    out = []
    for program, r in zip(op.attrs["programs"], op.results, strict=True):
        value = _pairwise(program, values, _dtype(r.type))
        shape = (
            torch.broadcast_shapes(value.shape, *(v.shape for v in values))
            if int(r.type.shape[2]) != 1
            else value.shape
        )
        out.append(value.expand(shape).to(_dtype(r.type)))
    return out


def mask_tile(op, values, interp):
    tile, partial, *captures = values
    if not partial:
        return [tile]
    keep = _pairwise(op.attrs["mask"], captures, torch.float64)
    return [tile.masked_fill(~keep.expand(tile.shape), op.attrs["value"])]


def reduce(op, values, interp):
    tile, *into = values
    dims = [{"i": 1, "j": 2}[c] for c in op.attrs["over"]]
    folds: dict[str, tuple[Any, Any]] = {
        "max": (torch.amax, torch.maximum),
        "min": (torch.amin, torch.minimum),
        "sum": (torch.sum, torch.add),
    }
    whole, both = folds[op.attrs["op"]]
    out = whole(tile, dims, keepdim=True)
    return [both(out, into[0]) if into else out]


def fill(op, values, interp):
    t = op.results[0].type
    at = iter(values)
    axes = op.attrs["axes"]
    order = {"gi": "gi1", "gid": "gid", "gij": "gij", "g": "g11"}[axes]
    shape = [next(at).extent if c in "gij" else int(d) for c, d in zip(order, t.shape, strict=True)]
    return [torch.full(shape, op.attrs["value"], dtype=_dtype(t))]


def position_numbers(tiles) -> str:
    """Element type, f32 or f64, of the table positions that are computed from ``tiles``, values of the IR: integers
    and what a mask reads are exact."""
    return "f64" if any(v.type.dtype in ("f64", "i64") for v in tiles) else "f32"


def _table_positions(op, g, tiles, sizes):
    heads = torch.arange(int(g), int(g) + g.extent)
    dtype = torch_dtype(position_numbers(op.operands[len(op.operands) - len(tiles) :]))
    where = [_pairwise(p, tiles, dtype).unsqueeze(-1) for p in op.attrs["positions"]]
    return heads // sizes[1], heads % sizes[1], where


def _table_entries(table, op, g, tiles, sizes):
    """Entries in tile layout (g, i, j): b and h of the table come from g."""
    axes = op.attrs["axes"]
    b, h, where = _table_positions(op, g, tiles, sizes)
    index: list[torch.Tensor] = []
    for c in axes:
        if c in "bh":
            n = table.shape[axes.index(c)]
            index.append(((b if c == "b" else h) * (n > 1)).reshape(-1, 1, 1))
    for p in where:
        index.append(table_position(p[..., 0], table.shape[len(index)]))
    return table[tuple(index)]


def lookup_tile(op, values, interp):
    table, g, *tiles = values
    return [_table_entries(table, op, g, tiles, _extents(op, interp)).to(_dtype(op.results[0].type))]


def scatter(op, values, interp):
    value, table, g, *tiles = values
    numbers = torch.arange(table.numel()).reshape(table.shape)
    where = _table_entries(numbers, op, g, tiles, _extents(op, interp)).expand(value.shape)
    table.view(-1).index_add_(0, where.reshape(-1), value.reshape(-1).to(table.dtype))
    return []
