"""Operations on single pairs of a tile: numbers computed again where a formula by contractions has lost its digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aatc.ir.core import Op
from aatc.ir.errors import VerifyError
from aatc.ir.registry import Attr, OpDef, Traits, define
from aatc.ir.score.evaluate import evaluate
from aatc.ir.score.expr import Expr, postorder
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.program import Program
from aatc.ir.types import TileType

#: What programs of a pair may read: vectors and numbers of its query and its key, and numbers of the pair.
_AXES = ("bhid", "bhjd", "bhi", "bhj", "bh", "", "bhij")


def by_channel(e: Expr) -> bool:
    """Whether a word takes vectors channel by channel, or adds up all channels of vectors."""
    return e.is_const or e.fn in ("param", "dot", "sum") or FUNCTIONS[e.fn].kind == "pointwise"


# --- evaluation --------------------------------------------------------------------------------------------
def lost(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, inside: bool) -> torch.Tensor:
    """Which numbers do not lie between two others, NaN among them; or with ``inside`` those that do."""
    between = (x >= low) & (x <= high)
    return between if inside else ~between


def _placed(program: Program, tiles: Sequence[torch.Tensor]) -> dict[Expr, torch.Tensor]:
    """Tiles by parameter, in the layout (problem, 1, row, column, feature)."""
    out = {}
    for p, t in zip(program.params, tiles, strict=True):
        axes = p.attrs[1]
        rows = t.shape[1] if "i" in axes else 1
        cols = t.shape[1 if p.rank else 2] if "j" in axes else 1
        out[p] = t.reshape(t.shape[0], 1, rows, cols, t.shape[2] if p.rank else 1)
    return out


def _value(program: Program, tiles: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    found = evaluate(program.body, {}, (1, 1, 1, 1), dtype=dtype, values=_placed(program, tiles))
    return found[:, 0]


def _refine(op: Op, values: list[Any], interp: Any) -> list[Any]:
    x, low, high, *tiles = values
    again = _value(op.attrs["program"], tiles, x.dtype)[..., 0]
    return [torch.where(lost(x, low, high, is_inside(op)), again, x)]


def _refine_gradient(op: Op, values: list[Any], interp: Any) -> list[Any]:
    ct, x, low, high, *tiles = values
    again = lost(x, low, high, is_inside(op)) & (ct != 0)
    out = [ct.masked_fill(again, 0.0)]
    for program, t in zip(op.attrs["programs"], tiles, strict=True):
        axes = program.params[len(out)].attrs[1]
        full = _value(program, [ct, *tiles], ct.dtype)
        full = full.expand(*ct.shape, full.shape[3]).masked_fill(~again.unsqueeze(-1), 0.0)
        over = [n for n, c in ((1, "i"), (2, "j")) if c not in axes]
        out.append(full.sum(over).reshape(ct.shape[0], *t.shape[1:]))
    return out


def is_inside(op: Op) -> bool:
    """Whether a pair is computed again where its number lies between the bounds, not where it does not."""
    return bool(op.attrs.get("inside", False))


# --- types -------------------------------------------------------------------------------------------------
def _check_program(op: Op, program: Program, tiles: int) -> None:
    if len(program.params) != tiles:
        raise VerifyError(f"{op.name}: a program takes ({', '.join(program.names)}), {tiles} tiles are bound")
    for p in program.params:
        if p.attrs[1] not in _AXES or p.dtype != "f":
            raise VerifyError(f"{op.name}: parameter {p.name} is no number or vector of a query or a key")
    for e in postorder(program.body):
        if not by_channel(e):
            raise VerifyError(f"{op.name}: {e.fn} does not work channel by channel")


def _check_tiles(op: Op, pairs: int) -> None:
    """``pairs`` tiles of the pairs, two bounds, then what programs read."""
    types = [v.type for v in op.operands]
    if not all(isinstance(t, TileType) and t.dtype == types[0].dtype for t in types):  # type: ignore[attr-defined]
        raise VerifyError(f"{op.name} takes tiles of one dtype")
    if any(t.shape != types[0].shape for t in types[:pairs]):  # type: ignore[attr-defined]
        raise VerifyError(f"{op.name}: {types[1]} is no tile of the pairs of {types[0]}")
    for t in types[pairs : pairs + 2]:
        if any(int(d) != 1 for d in t.shape):  # type: ignore[attr-defined]
            raise VerifyError(f"{op.name}: a bound is one number, not {t}")


def _refine_verify(op: Op) -> None:
    _check_tiles(op, 1)
    _check_program(op, op.attrs["program"], len(op.operands) - 3)
    if op.attrs["program"].body.rank:
        raise VerifyError(f"{op.name}: a vector takes the place of a number")


def _gradient_verify(op: Op) -> None:
    _check_tiles(op, 2)
    tiles = op.operands[4:]
    if len(op.attrs["programs"]) != len(tiles):
        raise VerifyError(f"{op.name} has {len(op.attrs['programs'])} programs for {len(tiles)} tiles")
    for p in op.attrs["programs"]:
        _check_program(op, p, 1 + len(tiles))


def gradient_types(op: Op) -> list[TileType]:
    first: TileType = op.operands[0].type  # type: ignore[assignment]
    of_tiles = [v.type for v in op.operands[4:]]
    return [first, *(TileType(first.dtype, (first.shape[0], *t.shape[1:])) for t in of_tiles)]  # type: ignore[attr-defined]


_INSIDE = {"inside": Attr.of("bool", "where an entry does lie between the bounds instead", required=False)}

define(
    OpDef(
        "tile.refine",
        "tile",
        "a tile of pairs; where an entry does not lie between two bounds, a program of the pair's own row and column",
        ("tile", "low", "high", "tiles*"),
        attrs={
            "program": Attr.of("program", "a number, of vectors and numbers per row or column, channel by channel"),
            **_INSIDE,
        },
        infer=lambda op: [op.operands[0].type],
        verify=_refine_verify,
        evaluate=_refine,
        traits=Traits(replaces=slice(0, 1)),
    )
)
define(
    OpDef(
        "tile.refine_gradient",
        "tile",
        "a cotangent of what `tile.refine` gave, in parts: itself, but 0 where an entry of that does not lie between "
        "the bounds; and from there the gradients of what the program reads, in order, added up over pairs",
        ("cotangent", "refined", "low", "high", "tiles*"),
        results=-1,
        attrs={
            "programs": Attr.of("list", "per tile that is read its gradient, over the cotangent and these tiles"),
            **_INSIDE,
        },
        infer=gradient_types,
        verify=_gradient_verify,
        evaluate=_refine_gradient,
        traits=Traits(replaces=slice(0, 1)),
    )
)
