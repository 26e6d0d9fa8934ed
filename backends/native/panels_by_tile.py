"""Packed buffers without rows that nobody else reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aatc.ir.core import Block, Func, Module, Op, Value, clone_op, replace_uses
from aatc.ir.specialize import prune
from aatc.passes.base import Context, Pass, register
from aatc.passes.forward_copies import copy_of


@register
@dataclass(frozen=True)
class PanelsByTile(Pass):
    """``pack`` of a buffer that loops over blocks of tokens fill → ``store`` of these blocks to panels.

    Where nothing else reads the rows they are not kept, and a copy of an argument is packed straight from that.
    """

    name: ClassVar[str] = "panels-by-tile"
    counts: ClassVar[bool] = True

    def run(self, module: Module, ctx: Context) -> Module:
        for func in module.funcs.values():
            if func.level == "tile":
                ctx.count("packed", _pack(func))
        return module


def _pack(func: Func) -> int:
    made: dict[Value, Value] = {}
    for pack in [op for op in func.body.ops if op.name == "tile.pack"]:
        found = _filled(func, pack.operands[0], pack.result.type.panel)  # type: ignore[attr-defined]
        if found is None:
            continue
        nest, store = found
        alloc = Op("tile.alloc", [], {}, [pack.result.type], loc=pack.loc, result_names=[pack.result.name])
        made[pack.result] = alloc.result
        at = func.body.ops.index(nest)
        func.body.ops[at:at] = [alloc]
        if copy_of(nest) is not None:  # a nest of its own: what else reads the copy may soon read what was copied
            func.body.ops[at + 1 : at + 1] = [clone_op(nest, {store.operands[1]: alloc.result})]
        else:
            again = Op("tile.store", [store.operands[0], alloc.result, *store.operands[2:]], dict(store.attrs), [])
            again.loc = store.loc
            block = _block_of(nest, store)
            block.ops.insert(block.ops.index(store) + 1, again)
    if made:
        func.body.ops = [op for op in func.body.ops if not (op.results and op.results[0] in made)]
        replace_uses(func.body, made)
        prune(func)
    return len(made)


def _filled(func: Func, source: Value, panel: int) -> tuple[Op, Op] | None:
    """(loops, store) that fill a buffer, if they do so in whole panels of vectors in its own type."""
    if not isinstance(source.owner, Op) or source.owner.name != "tile.alloc" or "fill" in source.owner.attrs:
        return None
    found = [(nest, x) for nest in func.body.ops for r in nest.regions for x in r.walk() if source in x.operands]
    writers = [(nest, x) for nest, x in found if x.name in ("tile.store", "tile.scatter") and x.operands[1] is source]
    if len(writers) != 1:
        return None
    nest, store = writers[0]
    loops = [nest, *(x for r in nest.regions for x in r.walk() if x.regions)]
    if store.name != "tile.store" or store.attrs["add"] or store.attrs["axes"] != "gid":
        return None
    if [x.attrs.get("axis") for x in loops] != ["g", "i"] or loops[1].attrs["step"] % panel:
        return None
    dtypes = {store.operands[0].type.dtype, source.type.dtype}  # type: ignore[attr-defined]
    return (nest, store) if len(dtypes) == 1 and dtypes <= {"f32", "f64", "bf16"} else None


def _block_of(nest: Op, op: Op) -> Block:
    return next(r for x in [nest, *(y for r in nest.regions for y in r.walk())] for r in x.regions if op in r.ops)
