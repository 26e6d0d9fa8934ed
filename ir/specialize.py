"""Dead code in tile functions: values nobody reads, and stores into buffers nobody reads."""

from __future__ import annotations

from collections.abc import Sequence

from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.registry import extended, lookup_op


def keep_results(func: Func, keep: Sequence[bool]) -> Func:
    """``func`` with only the results marked in ``keep``, and only what these need; changed in place."""
    ret = func.body.ops[-1]
    ret.operands = [v for v, k in zip(ret.operands, keep, strict=True) if k]
    prune(func)
    return func


def prune(func: Func) -> int:
    """Removes what the results do not need. Returns operations removed."""
    before = sum(1 for _ in func.body.walk())
    while True:
        live: set[Value] = set()
        # a buffer written inside a loop may be read after it: two rounds reach the fixed point from below
        while True:
            n = len(live)
            _mark(func.body, live)
            if len(live) == n:
                break
        _drop_carried(func.body, live)
        if not _remove(func.body, live):
            break
    return before - sum(1 for _ in func.body.walk())


def _needed(op: Op, live: set[Value]) -> bool:
    definition = lookup_op(op.name)
    if definition.traits.writes:
        return any(op.operands[n] in live for n in definition.traits.writes)
    if definition.traits.leaves or definition.terminator:
        return True
    return any(r in live for r in op.results) or any(
        (traits.writes or traits.leaves) and _needed(inner, live)
        for r in op.regions
        for inner in r.walk()
        for traits in (lookup_op(inner.name).traits,)
    )


def _mark(block: Block, live: set[Value]) -> None:
    for op in reversed(block.ops):
        if not _needed(op, live):
            continue
        if op.regions:
            traits = lookup_op(op.name).traits
            skip, lead = traits.carried
            yields = op.regions[0].ops[-1]
            used = [r in live for r in op.results]
            args = op.regions[0].args[lead:]
            for n, u in enumerate(used):
                if u or (args and args[n] in live) or traits.region == "branch":
                    live.add(yields.operands[n])
                    live.add(op.operands[skip + n])
            live.update(op.operands[:skip])
            for region in op.regions:
                _mark(region, live)
            for n in range(len(args)):
                if args[n] in live:
                    live.add(op.operands[skip + n])
                    live.add(yields.operands[n])
        elif op.name == "tile.yield":
            continue
        else:
            live.update(op.operands)


def _drop_carried(block: Block, live: set[Value]) -> None:
    """Removes loop-carried values that nobody reads, inside or after the loop."""
    for op in block.ops:
        for region in op.regions:
            _drop_carried(region, live)
        traits = lookup_op(op.name).traits
        if traits.region != "loop" or not op.results:
            continue
        body = op.regions[0]
        skip, lead = traits.carried
        dead = [n for n, r in enumerate(op.results) if r not in live and body.args[lead + n] not in live]
        for n in reversed(dead):
            del op.results[n], body.args[lead + n], op.operands[skip + n], body.ops[-1].operands[n]
        for name, value in op.attrs.items() if dead else ():
            attr = lookup_op(op.name).attrs.get(name) or extended(name)
            if attr is not None and attr.per_result:
                op.attrs[name] = tuple(x for n, x in enumerate(value) if n not in dead)


def _remove(block: Block, live: set[Value]) -> bool:
    changed = False
    for op in block.ops:
        for region in op.regions:
            changed |= _remove(region, live)
    kept = [op for op in block.ops if _needed(op, live)]
    changed |= len(kept) != len(block.ops)
    block.ops = kept
    return changed


def hoist_loads(func: Func) -> int:
    """Moves loads of blocks that a loop does not change to before the loop. Returns loads moved."""
    written = {op.operands[n] for op in func.body.walk() for n in lookup_op(op.name).traits.writes}
    return _hoist(func.body, written)


def _hoist(block: Block, written: set[Value]) -> int:
    moved = 0
    for op in list(block.ops):
        for region in op.regions:
            moved += _hoist(region, written)
            inside = {*region.args, *(r for inner in region.ops for r in inner.results)}
            free = [
                x
                for x in region.ops
                if x.name == "tile.load" and x.operands[0] not in written and not any(v in inside for v in x.operands)
            ]
            if op.attrs.get("kind") == "par":  # two such loops are one nest while nothing stands between them
                free = [x for x in free if len(x.operands) == 1]
            if lookup_op(op.name).traits.region == "loop" and free:
                region.ops = [x for x in region.ops if x not in free]
                at = block.ops.index(op)
                block.ops[at:at] = free
                moved += len(free)
    return moved
