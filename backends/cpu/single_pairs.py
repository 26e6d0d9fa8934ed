"""Operations on single pairs of a tile as source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aatc.backends.cpu.table import lowering
from aatc.backends.cpu.words import emit_expression
from aatc.backends.source import torch_name
from aatc.ir.core import Op, Value
from aatc.ir.score.expr import Expr
from aatc.ir.score.program import Program
from aatc.ir.tile_pairs import is_inside

if TYPE_CHECKING:
    from aatc.backends.cpu.emit import Emitter


@lowering("tile.refine")
def _refine(e: Emitter, op: Op) -> None:
    x, low, high, *tiles = op.operands
    out, program = e.name(op.result), op.attrs["program"]
    e.src.comment(f"{op.result.name} where digits are lost: {program.body}", op.loc)
    if not e.places.same(x, op.result):
        e.src.line(f"{out}.copy_({e.name(x)})")
    pairs = _open(e, op, f"{out}, {e.name(low)}, {e.name(high)}")
    bound = _bound(e, program, tiles, pairs)
    e.src.line(f"rt.put_pairs({out}, {pairs}, {_value(e, op, program, bound)})")
    e.src.depth -= 1


@lowering("tile.refine_gradient")
def _refine_gradient(e: Emitter, op: Op) -> None:
    ct, x, low, high, *tiles = op.operands
    rest, *grads = op.results
    e.src.comment("pairs whose digits were lost send their gradients themselves", op.loc)
    if not e.places.same(ct, rest):
        e.src.line(f"{e.name(rest)}.copy_({e.name(ct)})")
    for g in grads:
        e.src.line(f"{e.name(g)}.zero_()")
    pairs = _open(e, op, f"{e.name(x)}, {e.name(low)}, {e.name(high)}, {e.name(rest)}")
    bound: dict[Expr, str] = {}
    for program, g, p in zip(op.attrs["programs"], grads, op.attrs["programs"][0].params[1:], strict=True):
        bound = bound or _bound(e, program, [rest, *tiles], pairs)
        text = _value(e, op, program, bound)
        e.src.line(f"rt.give({e.name(g)}, {_axes(p)!r}, {pairs}, {text})")
    e.src.line(f"rt.clear({e.name(rest)}, {pairs})")
    e.src.depth -= 1


def _open(e: Emitter, op: Op, arguments: str) -> str:
    """Opens the loop over lost pairs; returns the name of some of them."""
    pairs = e.src.fresh("pairs")
    e.src.line(f"for {pairs} in rt.lost_pairs({arguments}{', inside=True' if is_inside(op) else ''}):")
    e.src.depth += 1
    return pairs


def _axes(p: Expr) -> str:
    axes: str = p.attrs[1]
    return axes.removeprefix("bh")


def _bound(e: Emitter, program: Program, tiles: list[Value], pairs: str) -> dict[Expr, str]:
    """What programs read, gathered for these pairs."""
    bound = {}
    for p, t in zip(program.params, tiles, strict=True):
        bound[p] = e.src.fresh(p.name)
        e.src.line(f"{bound[p]} = rt.gathered({e.name(t)}, {_axes(p)!r}, {pairs})")
    return bound


def _value(e: Emitter, op: Op, program: Program, bound: dict[Expr, str]) -> str:
    numbers = torch_name(op.operands[0].type.dtype)  # type: ignore[attr-defined]
    return emit_expression(e.src, program.body, bound, numbers, {})[0]
