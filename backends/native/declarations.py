"""What this backend adds to the tile level: programs and row sums of one tile, or of a product, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from aatc.ir.core import Op, Value
from aatc.ir.errors import VerifyError
from aatc.ir.registry import Attr, OpDef, Traits, define
from aatc.ir.tile_evaluate import dtype_of, pairwise
from aatc.ir.tile_extents import Extent, Extents, Tiles, extent_rule, meet, product_extents
from aatc.ir.tile_rules import dot_type, elementwise
from aatc.ir.types import TensorType, TileType

#: What becomes of a program's numbers: they are a tile, or the sum, the largest or the smallest of every row is kept.
KEEPS = ("tile", "sum", "max", "min")
_FOLDS: dict[str, tuple[Any, Any]] = {
    "sum": (torch.sum, torch.add),
    "max": (torch.amax, torch.maximum),
    "min": (torch.amin, torch.minimum),
}


def product_of(op: Op) -> list[Value]:
    """The two factors of the product that programs read, if there is one."""
    return op.operands[:2] if "form" in op.attrs else []


def tiles(op: Op) -> list[Value]:
    """Tiles that programs read, behind the product."""
    return op.operands[len(product_of(op)) : len(op.operands) - len(op.attrs["into"])]


def accumulators(op: Op) -> dict[int, int]:
    """Positions of the results that hold rows added to, or compared with, an operand: by its position."""
    into = op.attrs["into"]
    return dict(zip(range(len(op.operands) - len(into), len(op.operands)), into, strict=True))


def shape_of(op: Op) -> tuple[int, int, int]:
    """Of the tile whose numbers programs give."""
    read = [dot_type(op)] if product_of(op) else []
    types: list[TileType] = [*read, *(v.type for v in tiles(op))]  # type: ignore[list-item]
    g, rows, cols = (max(int(t.shape[n]) for t in types) for n in range(3))
    return g, rows, cols


def panel_of(v: Value) -> int:
    """Columns of the panels that a tile is read from; 0 of any other."""
    if isinstance(v.owner, Op) and v.owner.name == "tile.load":
        t: TensorType = v.owner.operands[0].type  # type: ignore[assignment]
        return t.panel
    return 0


def reads_panels(op: Op, n: int) -> bool:
    """Whether an operation takes its operand ``n`` from panels: the second factor of products nt, whose columns are
    tokens, and of those of bf16 along tokens, unless features stand together there. Whatever else reads a tile goes
    along its rows."""
    form = op.attrs.get("form") if op.name in ("tile.dot", "native.join") else None
    v = op.operands[n]
    if n != 1 or form != "nn":
        return n == 1 and form == "nt"
    load = v.owner if isinstance(v.owner, Op) and v.owner.name == "tile.load" else None
    apart = load is None or load.operands[0].type.together == 1  # type: ignore[attr-defined]
    return isinstance(v.type, TileType) and v.type.dtype == "bf16" and apart


#: Features per row from which on few rows are multiplied feature by feature.
_ACROSS = 8


def few_rows(op: Op) -> bool:
    """Whether turning the second factor of a product nt, which is not packed, would cost more than adding up across
    vectors of features."""
    rows, width = (int(v.type.shape[n]) for v, n in ((op.operands[0], 1), (op.operands[1], 2)))  # type: ignore[attr-defined]
    return not panel_of(op.operands[1]) and rows * _ACROSS <= width


def _verify(op: Op) -> None:
    programs, keeps, into = op.attrs["programs"], op.attrs["keeps"], op.attrs["into"]
    if not len(programs) == len(keeps) == len(op.results) or not programs:
        raise VerifyError(f"{op.name} has {len(programs)} programs, {len(keeps)} words of what is kept of them")
    if len(op.operands) < len(product_of(op)) + len(into) or any(k not in KEEPS for k in keeps):
        raise VerifyError(f"{op.name} keeps {', '.join(map(str, keeps))}", hint=f"it keeps {', '.join(KEEPS)}")
    if not all(isinstance(v.type, TileType) for v in op.operands) or len(programs[0].params) < 1:
        raise VerifyError(f"{op.name} works on tiles")
    made = op.results[0].type
    dtype = made.dtype if isinstance(made, TileType) else ""
    if dtype not in ("f32", "f64"):
        raise VerifyError(f"{op.name} makes tiles of f32 or f64, not {made}")
    if any(v.type.dtype != dtype for v in product_of(op)):  # type: ignore[attr-defined]
        raise VerifyError(f"{op.name} of {dtype} contracts tiles of {dtype}")
    if product_of(op) and few_rows(op):
        raise VerifyError(f"{op.name} of a product of few rows, whose second factor is in no panels")
    product = [Value(dot_type(op), "product")] if product_of(op) else []
    elementwise(op, programs, [*product, *tiles(op)])
    g, rows, cols = shape_of(op)
    for p, keep, r in zip(programs, keeps, op.results, strict=True):
        if r.type != TileType.of(dtype, (g, rows, cols if keep == "tile" else 1)) or p.body.dtype != "f":
            raise VerifyError(f"{op.name}: a {keep} of {p} is no {r.type}")
    if len(set(into)) != len(into) or any(not 0 <= n < len(keeps) or keeps[n] == "tile" for n in into):
        raise VerifyError(f"{op.name}: operands go into the results {list(into)}, which are no different sums")
    for at, n in accumulators(op).items():
        if op.operands[at].type != op.results[n].type:
            raise VerifyError(f"{op.name} adds or compares {op.results[n].type} in {op.operands[at].type}")


def _evaluate(op: Op, values: Sequence[Any], interp: Any) -> list[torch.Tensor]:
    dtype = dtype_of(op.results[0].type)
    read = list(values[len(product_of(op)) : len(values) - len(op.attrs["into"])])
    if product_of(op):
        read.insert(0, values[0] @ values[1].mT)
    shape = torch.broadcast_shapes(*(x.shape for x in read))
    into = {n: values[at] for at, n in accumulators(op).items()}
    out = []
    for n, (program, keep) in enumerate(zip(op.attrs["programs"], op.attrs["keeps"], strict=True)):
        x = pairwise(program, read, dtype).expand(shape).to(dtype)
        if keep != "tile":
            whole, both = _FOLDS[keep]
            x = whole(x, 2, keepdim=True)
            x = both(x, into[n]) if n in into else x
        out.append(x)
    return out


def _extents(op: Op, found: Tiles, at: Callable[[Value], Extent]) -> list[Extents]:
    _, (g, rows, cols) = meet(op, tiles(op), found)
    if product_of(op):
        product = Value(dot_type(op), "product")
        _, (g, rows, cols) = meet(op, [product, *tiles(op)], {**found, product: product_extents(op, found)})
    return [(g, rows, cols if keep == "tile" else 1) for keep in op.attrs["keeps"]]


extent_rule("native.join", _extents)
define(
    OpDef(
        "native.join",
        "tile",
        "programs over tiles as of tile.map, each kept as a tile or as the sum, largest or smallest entry of its rows, "
        "in one pass; with a form, over the product of the first two operands, which is the programs' first parameter, "
        "while it is in registers",
        ("tiles*",),
        attrs={
            "form": Attr.of("str", "that of tile.dot", required=False, choices=("nt",)),
            "programs": Attr.of("list", "one program per result, all over the same parameters"),
            "keeps": Attr.of("list", "what is kept of each: tile, sum, max or min"),
            "into": Attr.of("list", "results that the last operands are added to or compared with"),
        },
        results=-1,
        verify=_verify,
        evaluate=_evaluate,
        traits=Traits(replaces=slice(0, None), accumulates=accumulators),
    )
)
