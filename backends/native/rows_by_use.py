"""Lets only products that want panels read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aatc.backends.native.declarations import reads_panels
from aatc.ir.core import Block, Func, Module, Op, Value
from aatc.ir.specialize import prune
from aatc.passes.base import Context, Pass, register


@register
@dataclass(frozen=True)
class RowsByUse(Pass):
    """``load`` of a packed buffer → for every use but the second factor of ``dot`` nt, or of one of bf16, ``load`` of
    what was packed.

    A product that goes along tokens reads vectors of one token's features, which panels do not have next to each other.
    """

    name: ClassVar[str] = "rows-by-use"
    counts: ClassVar[bool] = True

    def run(self, module: Module, ctx: Context) -> Module:
        for func in module.funcs.values():
            if func.level == "tile":
                ctx.count("reloaded", _reload(func))
        return module


def _reload(func: Func) -> int:
    uses: dict[Value, list[tuple[Op, int]]] = {}
    for op in func.body.walk():
        for n, v in enumerate(op.operands):
            uses.setdefault(v, []).append((op, n))
    count = 0
    for block in [func.body, *(r for op in func.body.walk() for r in op.regions)]:
        count += _of_block(block, uses)
    if count:
        prune(func)
    return count


def _of_block(block: Block, uses: dict[Value, list[tuple[Op, int]]]) -> int:
    found: list[Op] = []
    count = 0
    for op in block.ops:
        found.append(op)
        packed = op.operands[0].owner if op.name == "tile.load" else None
        if not isinstance(packed, Op) or packed.name != "tile.pack":
            continue
        others = [(user, n) for user, n in uses.get(op.result, []) if not reads_panels(user, n)]
        if not others:
            continue
        again = Op("tile.load", [packed.operands[0], *op.operands[1:]], dict(op.attrs), [op.result.type], loc=op.loc)
        again.result.name = f"{op.result.name}_rows" if op.result.name else ""
        found.append(again)
        for user, n in others:
            user.operands[n] = again.result
        count += 1
    block.ops = found
    return count
