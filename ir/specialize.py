"""Dead code in tile functions: values nobody reads, and stores into buffers nobody reads."""

from __future__ import annotations

from collections.abc import Sequence

from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.registry import lookup_op

_WRITES = {"tile.store": 1, "tile.scatter": 1}  # position of the buffer written


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
    if op.name in _WRITES:
        return op.operands[_WRITES[op.name]] in live
    if op.name == "tile.require":
        return True
    if lookup_op(op.name).terminator:
        return True
    return any(r in live for r in op.results) or any(
        _needed(inner, live) and (inner.name in _WRITES or inner.name == "tile.require")
        for r in op.regions
        for inner in r.walk()
    )


def _mark(block: Block, live: set[Value]) -> None:
    for op in reversed(block.ops):
        if not _needed(op, live):
            continue
        if op.regions:
            skip = len(op.operands) - len(op.results) if op.name != "tile.guard" else 0
            yields = op.regions[0].ops[-1]
            used = [r in live for r in op.results]
            args = op.regions[0].args[len(op.regions[0].args) - len(op.results) :] if op.name != "tile.guard" else []
            for n, u in enumerate(used):
                if u or (args and args[n] in live) or op.name == "tile.guard":
                    live.add(yields.operands[n])
                    live.add(op.operands[skip + n])
            live.update(op.operands[:skip])
            for region in op.regions:
                _mark(region, live)
            for n in range(len(args)):
                if args[n] in live:
                    live.add(op.operands[skip + n])
                    live.add(yields.operands[n])
        elif op.name in ("tile.yield",):
            continue
        else:
            live.update(op.operands)


def _drop_carried(block: Block, live: set[Value]) -> None:
    """Removes loop-carried values that nobody reads, inside or after the loop."""
    for op in block.ops:
        for region in op.regions:
            _drop_carried(region, live)
        if op.name not in ("tile.for", "tile.sweep") or not op.results:
            continue
        body = op.regions[0]
        lead, skip = len(body.args) - len(op.results), len(op.operands) - len(op.results)
        dead = [n for n, r in enumerate(op.results) if r not in live and body.args[lead + n] not in live]
        for n in reversed(dead):
            del op.results[n], body.args[lead + n], op.operands[skip + n], body.ops[-1].operands[n]
        if dead and "plan" in op.attrs:  # the places of what is left
            op.attrs["plan"] = tuple(x for n, x in enumerate(op.attrs["plan"]) if n not in dead)


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
    written = {op.operands[_WRITES[op.name]] for op in func.body.walk() if op.name in _WRITES}
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
            if op.name in ("tile.for", "tile.sweep") and free:
                region.ops = [x for x in region.ops if x not in free]
                at = block.ops.index(op)
                block.ops[at:at] = free
                moved += len(free)
    return moved
