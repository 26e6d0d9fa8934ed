"""What operations of the tile level ask of their own operands, attributes and results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from aatc.ir.access import access, repeats, shares_heads
from aatc.ir.core import Op, Value
from aatc.ir.dims import Dim, factors, product
from aatc.ir.errors import VerifyError
from aatc.ir.score.program import Program
from aatc.ir.score.widths import extents
from aatc.ir.score.words import reading
from aatc.ir.types import BOOL, INDEX, RunsType, TensorType, TileType, summed_name

_FLOATS, _TILES = ("f32", "f64"), ("f32", "f64", "i64", "bool")
#: And what tiles of factors hold besides; what is computed from them is of f32.
_SHORT = "bf16"


def _tile(op: Op, n: int) -> TileType:
    t = op.operands[n].type
    if not isinstance(t, TileType):
        raise VerifyError(f"operand {n} of {op.name} must be a tile, is {t}")
    return t


def like_first(op: Op) -> TensorType:
    """Shape of the first operand; in a precision of its own, for what others are added to before it is rounded."""
    like = op.operands[0].type
    if not isinstance(like, TensorType) or len(op.results) != 1 or not isinstance(op.results[0].type, TensorType):
        raise VerifyError(f"{op.name} takes buffers and yields one")
    return TensorType(op.results[0].type.dtype, like.shape)


def _kind(dtype: str) -> str:
    """f, i, b of numbers, integers and truth values; empty of what tiles do not hold."""
    return {"bool": "b", "c64": "", "c128": ""}.get(dtype, "f" if "f" in dtype else "i")


def _number(op: Op, name: str, t: Any) -> None:
    """An attribute is a number of a type."""
    value, kind = op.attrs[name], _kind(t.dtype)
    most = {"f16": 65504.0, "bf16": 3.3895313892515355e38, "f32": 3.4028234663852886e38}.get(t.dtype, math.inf)
    if kind == "f":
        fits = math.isnan(value) or math.isinf(value) or abs(value) <= most
    else:
        bits = {"i64": 63, "i32": 31, "i16": 15, "i8": 7, "u8": 8, "bool": 1}.get(t.dtype, 0)
        low = 0 if t.dtype in ("u8", "bool") else -(2**bits)
        fits = math.isfinite(value) and value == int(value) and low <= value < 2**bits
    if not fits:
        raise VerifyError(f"{op.name}: {name} = {value} is no number of {t.dtype}")


def _sizes(op: Op) -> tuple[Dim, ...]:
    """Extents (B, H, N, M)."""
    sizes = op.attrs["sizes"]
    if len(sizes) != 4 or not all(isinstance(d, (int, Dim)) and not isinstance(d, bool) for d in sizes):
        raise VerifyError(f"{op.name}: sizes are four extents (B, H, N, M), not {list(map(str, sizes))}")
    found = tuple(Dim.of(d) for d in sizes)
    if any(d.is_static and int(d) < 0 for d in found):
        raise VerifyError(f"{op.name}: negative sizes {list(map(str, sizes))}")
    return found


@lru_cache(maxsize=2048)
def _misfit(axes: str, t: TensorType, sizes: tuple[Dim, ...]) -> str | None:
    """Why a buffer is none of a program's parameter with ``axes``, b and h in one or not."""
    shape = t.shape
    if axes.startswith("bh") and t.rank == len(axes) - 1:
        if shape[0] != product(*sizes[:2]):
            return f"{t} has no {product(*sizes[:2])} problems"
        axes, shape = axes[2:], shape[1:]
    if len(shape) != len(axes):
        return f"{t} has no axes {axes}"
    for c, have in zip(axes, shape, strict=True):
        if c not in "bhij":
            continue
        want = sizes["bhij".index(c)]
        if have not in (1, want) and not (c == "h" and shares_heads(have, want)):
            return f"axis {c} of {t} has extent {have}; it can be 1 or {want}"
    return None


@lru_cache(maxsize=2048)
def _width(program: Program, types: tuple[TensorType, ...]) -> tuple[int, ...]:
    """Extents of the features of what a per-token program makes. ScoreError where vectors do not fit together."""
    tails = {}
    for p, t in zip(program.params, types, strict=True):
        if 0 < p.rank < 3:
            tails[p.name] = tuple(int(d) for d in t.shape[t.rank - p.rank :])
    return extents([program.body], tails)[program.body]


def _program(op: Op, program: Program, operands: Sequence[Value], sizes: tuple[Dim, ...]) -> tuple[int, ...]:
    """A program over whole buffers takes these operands; the extents of the features it makes."""
    types = tuple(v.type for v in operands)
    if len(types) != len(program.params):
        raise VerifyError(f"{op.name}: program takes ({', '.join(program.names)}), {len(types)} values are bound")
    for p, t in zip(program.params, types, strict=True):
        if not isinstance(t, TensorType):
            raise VerifyError(f"{op.name} works on buffers, not {t}")
        if why := _misfit(p.attrs[1], t, sizes):
            raise VerifyError(f"{op.name}: parameter {p.name} is {p.dtype}[{p.attrs[1]}], and {why}")
        if not _kind(t.dtype):
            raise VerifyError(f"{op.name} works on real numbers, not {t}")
    return _width(program, types)


def elementwise(op: Op, programs: Sequence[Program], tiles: Sequence[Value]) -> None:
    """Programs over tiles work element by element and bind a tile to each parameter."""
    for p in programs:
        if not isinstance(p, Program):
            raise VerifyError(f"{op.name}: {p!r} is no program")
        if len(p.params) != len(tiles):
            raise VerifyError(f"{op.name}: a program takes {len(p.params)} tiles, {len(tiles)} are bound")
        if other := reading(p.body)[1]:
            raise VerifyError(f"{op.name}: {other} does not work element by element: it has no place in a tile")
        for x, v in zip(p.params, tiles, strict=True):
            if not isinstance(v.type, TileType):
                raise VerifyError(f"{op.name} works on tiles, not {v.type}")
            if _kind(v.type.dtype) not in {"f": "fi", "i": "i", "b": "b"}[x.dtype]:
                raise VerifyError(f"{op.name}: parameter {x.name} is of {x.dtype}, it is bound to {v.type}")


def token_verify(op: Op) -> None:
    sizes, program, axes, made = _sizes(op), op.attrs["program"], op.attrs["axes"], op.results[0].type
    if not isinstance(made, TensorType) or not _kind(made.dtype):
        raise VerifyError(f"{op.name} makes a buffer of numbers, not {made}")
    if op.attrs["program"].body.is_pair:
        raise VerifyError(f"{op.name} works per token: its program must not depend on both i and j")
    if op.results[0].type.dtype == "bool" and "numbers" not in op.attrs:  # type: ignore[attr-defined]
        raise VerifyError(
            f"{op.name}: a truth value does not say what the numbers it compares are computed in",
            hint='add numbers = "f64", or "f32"',
        )
    tail = _program(op, program, op.operands, sizes)
    if len(tail) > 1 or (tail and not axes.endswith("d")):
        raise VerifyError(f"{op.name}: a program of {'a matrix' if len(tail) > 1 else 'vectors'}, axes {axes!r}")
    if lost := sorted((program.body.axes & set("bhij")) - set(axes)):
        raise VerifyError(f"{op.name}: what the program makes depends on {lost[0]}, which is not among axes {axes!r}")
    lead = [n for c, n in zip("bhij", sizes, strict=True) if c in axes]
    if op.attrs["flat"] and axes.startswith("bh"):
        lead[:2] = [product(*lead[:2])]
    shape = (*lead, *((Dim(tail[0] if tail else 1),) if axes.endswith("d") else ()))
    if made.shape != shape:
        raise VerifyError(f"{op.name} makes {made.dtype}[{', '.join(map(str, shape))}], not {made}")


def gradient_verify(op: Op) -> None:
    """`tile.gradient`, `tile.table_gradient`."""
    sizes, axes, like = _sizes(op), op.attrs["axes"], op.operands[0].type
    if not set(axes) <= set("bhijdetu") or len(set(axes)) != len(axes):
        raise VerifyError(f"{op.name}: {axes!r} are no axes of an operand")
    if why := _misfit(axes, like, sizes):
        raise VerifyError(f"{op.name}: {why}")
    if like.rank != len(axes):  # type: ignore[attr-defined]
        raise VerifyError(f"{op.name}: {like} has no axes {axes}")
    if any(_kind(t.dtype) != "f" for t in (like, op.results[0].type)):  # type: ignore[attr-defined]
        raise VerifyError(f"{op.name} gives gradients of numbers, not {op.results[0].type} of {like}")
    operands = op.operands[1:]
    if op.attrs["add"]:
        if not operands or not isinstance(operands[-1].type, TensorType) or operands[-1].type.shape != like.shape:  # type: ignore[attr-defined]
            raise VerifyError(f"{op.name} adds a part of the gradient, a buffer shaped as {like}, and is given none")
        operands = operands[:-1]
    tail = _program(op, op.attrs["program"], operands, sizes)
    positions = op.attrs.get("positions")
    if positions is None:
        features = like.shape[len(axes.rstrip("detu")) :]  # type: ignore[attr-defined]
        if len(features) != len(tail) or any(d.is_static and int(d) != n for d, n in zip(features, tail, strict=True)):
            raise VerifyError(f"{op.name}: a cotangent of features {list(tail)} for {like} with axes {axes!r}")
        return
    if tail or not 0 < len(positions) == sum(c in "tu" for c in axes):
        raise VerifyError(f"{op.name}: {len(positions)} positions in a table with axes {axes!r}")
    for p in positions:
        if not isinstance(p, Program) or _program(op, p, operands, sizes):
            raise VerifyError(f"{op.name}: a position is a number")


def finish_verify(op: Op) -> None:
    buffer, made = op.operands[0].type, op.results[0].type
    if not all(isinstance(t, TensorType) and _kind(t.dtype) == "f" for t in (buffer, made)):
        raise VerifyError(f"{op.name} takes a buffer of numbers and makes one, not {made} of {buffer}")
    if _entries(buffer) != _entries(made):  # type: ignore[arg-type]
        raise VerifyError(f"{op.name}: {made} has not the entries of {buffer}")


def _entries(t: TensorType) -> tuple[int, tuple[str, ...]]:
    """What the number of entries is a product of; a product of two symbols counts as these."""
    number, symbols = 1, []
    for d in t.shape:
        if d.is_static:
            number *= int(d)
        elif not d.const and len(d.terms) == 1:
            number *= d.terms[0][1]
            symbols += factors(d.terms[0][0])
        else:
            symbols.append(str(d))
    return number, tuple(sorted(symbols))


def alloc_verify(op: Op) -> None:
    if not isinstance(op.results[0].type, TensorType) or not _kind(op.results[0].type.dtype):
        raise VerifyError(f"{op.name} makes a buffer of numbers, not {op.results[0].type}")
    if "fill" in op.attrs:
        _number(op, "fill", op.results[0].type)


def peak_verify(op: Op) -> None:
    t = op.operands[0].type
    if not isinstance(t, TensorType) or t.dtype not in (*_FLOATS, _SHORT) or (op.attrs["rows"] and not t.rank):
        raise VerifyError(f"{op.name} measures a buffer of f32, f64 or {_SHORT}, not {t}")


def return_verify(op: Op) -> None:
    for v in op.operands:
        if not isinstance(v.type, TensorType):
            raise VerifyError(f"a tile function returns buffers, %{v.name or '?'} is {v.type}")


def classify_verify(op: Op) -> None:
    mask = op.attrs["mask"]
    if mask.body.dtype != "b" or _program(op, mask, op.operands, _sizes(op)):
        raise VerifyError(f"{op.name}: {mask} is no mask")
    for name in ("rows", "cols", "heads"):
        if op.attrs[name] < 1:
            raise VerifyError(f"{op.name}: {name} = {op.attrs[name]}", hint="a block has at least one of each")


def guard_verify(op: Op) -> None:
    (body,) = op.regions
    types = [v.type for v in op.operands]
    if not types or not all(isinstance(t, TileType) for t in types) or types[0].dtype not in _FLOATS:  # type: ignore[attr-defined]
        raise VerifyError(f"{op.name} takes tiles, the first of numbers")
    if body.args or not body.ops or [v.type for v in body.ops[-1].operands] != types:
        raise VerifyError(f"the body of {op.name} takes nothing and yields ({', '.join(map(str, types))})")


def dot_verify(op: Op) -> None:
    t: TileType = op.results[0].type  # type: ignore[assignment]
    if len(op.operands) > 3 or any(v.type != t for v in op.operands[2:]):
        raise VerifyError(f"{op.name} has one addend at most, of its own type {t}")
    factors = {_tile(op, n).dtype for n in (0, 1)}
    if factors not in ({"f32"}, {"f64"}, {_SHORT}) or t.dtype != summed_name(*factors):
        raise VerifyError(f"{op.name} contracts tiles of f32, of f64, or of {_SHORT} to one of f32")
    if "factor" in op.attrs and (factors != {_SHORT} or not math.isfinite(op.attrs["factor"])):
        raise VerifyError(f"{op.name}: factor = {op.attrs['factor']}", hint=f"a number, for tiles of {_SHORT} only")


def mask_verify(op: Op) -> None:
    t, partial = _tile(op, 0), op.operands[1].type
    if t.dtype not in (*_FLOATS, _SHORT) or partial != BOOL:
        raise VerifyError(f"{op.name} takes a tile of numbers and whether it is partial, not {t} and {partial}")
    elementwise(op, [op.attrs["mask"]], op.operands[2:])
    if op.attrs["mask"].body.dtype != "b":
        raise VerifyError(f"{op.name}: {op.attrs['mask']} is no mask")
    _number(op, "value", t)


def reduce_verify(op: Op) -> None:
    t, made = _tile(op, 0), op.results[0].type
    if len(op.operands) > 2 or any(v.type != made for v in op.operands[1:]):
        raise VerifyError(f"{op.name} adds or compares in one tile at most, of its own type {made}")
    if t.dtype == "bool" or (op.attrs["op"] != "sum" and any(int(d) == 0 for d in t.shape)):
        raise VerifyError(f"{op.name}: {op.attrs['op']} of {t}")


def fill_verify(op: Op) -> None:
    t, a = op.results[0].type, access(op.attrs["axes"])
    if not isinstance(t, TileType) or t.dtype not in _TILES:
        raise VerifyError(f"{op.name} makes a tile of numbers, not {t}")
    if len(op.operands) != len(a.walks) or any(v.type != INDEX for v in op.operands):
        raise VerifyError(f"{op.name} with axes {a.axes!r} takes {len(a.walks)} positions of loops")
    if any(c == "1" and d != 1 for c, d in zip(a.tile, t.shape, strict=True)):
        raise VerifyError(f"{op.name} with axes {a.axes!r} makes no {t}")
    _number(op, "value", t)


def table_verify(op: Op) -> None:
    """`tile.lookup`, `tile.scatter`."""
    scatter = op.name == "tile.scatter"
    table, g, *tiles = op.operands[scatter:]
    tile = op.operands[0].type if scatter else op.results[0].type
    axes, positions = op.attrs["axes"], op.attrs["positions"]
    _sizes(op)
    if not isinstance(table.type, TensorType) or g.type != INDEX or not isinstance(tile, TileType):
        raise VerifyError(f"{op.name} takes a table and the position of problems, and tiles of entries")
    lead = axes.rstrip("tu")
    if lead not in ("", "b", "h", "bh") or axes[len(lead) :] not in ("t", "tu") or table.type.rank != len(axes):
        raise VerifyError(f"{op.name}: {table.type} is no table with axes {axes!r}")
    if len(positions) != len(axes) - len(lead):
        raise VerifyError(f"{op.name}: {len(positions)} positions in a table with axes {axes!r}")
    elementwise(op, positions, tiles)
    kinds = [_kind(t.dtype) for t in ((tile, table.type) if scatter else (table.type, tile))]
    if kinds[0] not in _HELD.get(kinds[1], "") or (scatter and kinds[1] == "b"):
        raise VerifyError(f"{op.name}: {tile} and {table.type}")


#: What numbers, integers and truth values are made of without loss.
_HELD = {"f": "fib", "i": "ib", "b": "b"}


def centre_verify(op: Op) -> None:
    buffer, made, axes = op.operands[0].type, op.results[0].type, op.attrs["axes"]
    if not isinstance(buffer, TensorType) or buffer.rank != len(axes) or len(set(axes) & {"i", "j"}) != 1:
        raise VerifyError(f"tile.centre takes a buffer with an axis of tokens, axes {axes!r} do not say so of {buffer}")
    shape = tuple(d for c, d in zip(axes, buffer.shape, strict=True) if c not in "ij")
    if not isinstance(made, TensorType) or made.shape != shape or made.dtype not in ("f32", "f64"):
        raise VerifyError(f"tile.centre of {buffer} yields f32[{', '.join(map(str, shape))}] or f64, not {made}")


def position_verify(op: Op) -> None:
    t = op.results[0].type
    if not isinstance(t, TileType) or t.dtype != "i64" or len(t.shape) != 3:
        raise VerifyError(f"tile.position makes a tile of i64, not {t}")
    if len(op.operands) != 1 or op.operands[0].type != INDEX:
        raise VerifyError("tile.position takes the position of one loop")
    if op.attrs["axes"] in "bh" and "sizes" not in op.attrs:
        raise VerifyError("tile.position along b or h needs sizes (B, H, N, M)")
    if "sizes" in op.attrs:
        _sizes(op)


def part_verify(op: Op, whole: object, part: object) -> None:
    if not isinstance(whole, TileType) or not isinstance(part, TileType) or len(whole.shape) != 3:
        raise VerifyError(f"{op.name} takes a part of a tile, not {part} of {whole}")
    at, start, stride = {"i": 1, "j": 2}[op.attrs["over"]], op.attrs["start"], op.attrs["stride"]
    others = [n for n in range(3) if n != at and whole.shape[n] != part.shape[n]]
    if len(part.shape) != 3 or others or part.dtype != whole.dtype:
        raise VerifyError(f"{op.name}: {part} is no part of {whole}")
    last = start + (int(part.shape[at]) - 1) * stride
    if start < 0 or stride < 1 or last >= int(whole.shape[at]):
        raise VerifyError(f"{op.name}: entries {start} to {last} of {whole} along {op.attrs['over']}")


def require_verify(op: Op) -> None:
    t = op.operands[0].type
    if not isinstance(t, (TensorType, TileType)) or t.dtype not in ("f32", "f64"):
        raise VerifyError(f"tile.require compares numbers, not {t}")


def for_verify(op: Op, skip: int, lead: Any) -> None:
    (body,) = op.regions
    carried = [v.type for v in op.operands[skip:]]
    if [a.type for a in body.args] != [*lead, *carried]:
        raise VerifyError(
            f"the body of {op.name} takes ({', '.join(str(a.type) for a in body.args)}), "
            f"not ({', '.join(map(str, [*lead, *carried]))})"
        )
    if [r.type for r in op.results] != carried:
        raise VerifyError(f"{op.name} must yield the types it carries")
    if not body.ops or [v.type for v in body.ops[-1].operands] != carried:
        raise VerifyError(f"the body of {op.name} must yield ({', '.join(map(str, carried))})")
    upper = Dim.of(op.attrs["upper"])
    if upper.is_static and int(upper) < 0:
        raise VerifyError(f"{op.name} goes up to {upper}")
    if not all(isinstance(t, TileType) for t in carried):
        raise VerifyError(f"{op.name} carries tiles, not ({', '.join(map(str, carried))})")
    if op.attrs["step"] < 1:
        raise VerifyError(f"{op.name} steps by {op.attrs['step']}")
    for name in ("unroll", "vectorize"):
        if op.attrs.get(name, 1) < 1:
            raise VerifyError(f"{op.name}: {name} = {op.attrs[name]}", hint="a positive number, or leave it out")
    if "bind" in op.attrs and op.attrs["kind"] != "par":
        raise VerifyError(
            f"{op.name}: rounds of a {op.attrs['kind']} loop are bound to {op.attrs['bind']}",
            hint='only those of a "par" loop are independent',
        )


def runs_type(op: Op) -> RunsType:
    a = op.attrs
    block, grain = (a["cols"], a["rows"]) if a.get("over") == "i" else (a["rows"], a["cols"])
    return RunsType(a["heads"], block, grain)


def runs_verify(op: Op) -> None:
    """The first operand of a sweep."""
    runs = op.operands[0].type
    if not isinstance(runs, RunsType):
        raise VerifyError(f"{op.name} goes over runs, not {runs}")
    if runs.grain < 1 or op.attrs["step"] % runs.grain:
        raise VerifyError(f"{op.name} steps by {op.attrs['step']}, which {runs.grain} do not divide")


def sweep_verify(op: Op) -> None:
    runs_verify(op)
    for_verify(op, 3, [INDEX, BOOL])


def part_loop_verify(op: Op, before: int) -> None:
    """`tile.for_part`, `tile.sweep_part`; the part is the operand behind ``before`` others."""
    if op.attrs["parts"] < 1:
        raise VerifyError(f"{op.name}: parts = {op.attrs['parts']}", hint="an axis has at least one part")
    if len(op.operands) <= before or op.operands[before].type != INDEX:
        raise VerifyError(f"{op.name} takes the number of a part, the position of a loop over s")
    if before:
        runs_verify(op)
    for_verify(op, before + 1, [INDEX, BOOL] if before else [INDEX])


def access_verify(op: Op, at: int) -> None:
    buffer = op.operands[at].type
    if not isinstance(buffer, TensorType):
        raise VerifyError(f"{op.name} accesses a buffer, not {buffer}")
    tile = op.results[0].type if at == 0 else op.operands[0].type
    axes = op.attrs["axes"]
    if not isinstance(tile, TileType) or len(tile.shape) != 3:
        raise VerifyError(f"{op.name} moves a tile of three extents, not {tile}")
    held, given = (buffer, tile) if at else (tile, buffer)
    if tile.dtype not in (*_TILES, _SHORT) or _kind(given.dtype) not in (_HELD.get(_kind(held.dtype)) or ()):
        raise VerifyError(f"{op.name}: {given} does not fit into {held}")
    if op.attrs.get("add") and (held.dtype == "bool" or tile.dtype == _SHORT):
        raise VerifyError(f"{op.name} adds numbers, not truth values, and of f32 rather than {_SHORT}")
    a, positions = access(axes), op.operands[at + 1 :]
    repeated = at == 0 and repeats(op)
    if len(positions) != len(a.walks) + repeated or any(p.type != INDEX for p in positions):
        raise VerifyError(f"{op.name} with axes {axes!r} takes {len(a.walks)} positions, got {len(positions)}")
    if buffer.rank != len(axes):
        raise VerifyError(f"{op.name} with axes {axes!r} needs a buffer of rank {len(axes)}, not {buffer}")
    if "sizes" in op.attrs:
        _sizes(op)
    elif set(a.lead) & {"b", "h"}:
        raise VerifyError(f"{op.name} with axes {axes!r} needs sizes (B, H, N, M)")
    ones = [n for n, c in enumerate(a.tile) if c == "1" and tile.shape[n] != 1 and not (repeated and n == 0)]
    if ones and not (ones == [0] and op.attrs.get("add")):
        raise VerifyError(f"{op.name} with axes {axes!r}: extent {ones[0]} of {tile} must be 1")
    if at and buffer.panel and (op.attrs["add"] or axes not in ("gid", "gjd") or tile.dtype != buffer.dtype):
        raise VerifyError(f"{op.name} writes vectors of {buffer.dtype} to {buffer}, and adds nothing there")


def dot_type(op: Op) -> TileType:
    a, b = _tile(op, 0), _tile(op, 1)
    g = a.shape[0]
    form = op.attrs["form"]
    contracted = {"nt": (a.shape[2], b.shape[2]), "nn": (a.shape[2], b.shape[1]), "tn": (a.shape[1], b.shape[1])}[form]
    if contracted[0] != contracted[1] or (a.shape[0] != b.shape[0] and b.shape[0] != 1):
        raise VerifyError(f"tile.dot {form} of {a} and {b}: extents {contracted[0]} and {contracted[1]} differ")
    shape = {"nt": (g, a.shape[1], b.shape[1]), "nn": (g, a.shape[1], b.shape[2]), "tn": (g, a.shape[2], b.shape[2])}
    return TileType(summed_name(a.dtype), shape[form])


def map_verify(op: Op) -> None:
    programs = op.attrs["programs"]
    if len(programs) != len(op.results):
        raise VerifyError(f"tile.map has {len(programs)} programs and {len(op.results)} results")
    elementwise(op, programs, op.operands)
    for p, r in zip(programs, op.results, strict=True):
        if not isinstance(r.type, TileType) or r.type.dtype not in (*_TILES, _SHORT):
            raise VerifyError(f"tile.map makes tiles of numbers, not {r.type}")
        if _kind(r.type.dtype) != "b" and p.body.dtype not in _HELD[_kind(r.type.dtype)]:
            raise VerifyError(f"tile.map: {p} makes no {r.type}")


def reduce_type(op: Op) -> TileType:
    t = _tile(op, 0)
    over = op.attrs["over"]
    return TileType.of(
        summed_name(t.dtype), (t.shape[0], 1 if "i" in over else t.shape[1], 1 if "j" in over else t.shape[2])
    )
