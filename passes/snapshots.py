"""Operands of an attention that are written before it ends are read through copies."""

from __future__ import annotations

from aatc.ir.core import Func, Module, Op, Value
from aatc.ir.effects import Memory, has_memory
from aatc.ir.registry import Operand
from aatc.ir.types import PairType

STAGES = frozenset({"geo.metric", "geo.normalize", "geo.transport", "geo.aggregate"})


def snapshot_operands(func: Func, module: Module) -> int:
    """``metric(q, k); add_(q, 1); … aggregate`` → ``clone(q); metric(clone, k); add_(q, 1); … aggregate``.

    A stage reads its operands where it stands. After this, what it reads is the same anywhere between it and the
    aggregate that ends its attention, so that passes may move reads there. Returns copies made.
    """
    if not any(op.name in STAGES for op in func.body.ops):
        return 0
    memory, ops = Memory(func, module), func.body.ops
    until: dict[Value, int] = {}
    copies: dict[Op, list[Op]] = {}
    for n in range(len(ops) - 1, -1, -1):
        op = ops[n]
        if op.name not in STAGES:
            continue
        end = max([n, *(until.get(r, n) for r in op.results)])
        for v in op.operands:
            if isinstance(v.type, PairType):
                until[v] = max(until.get(v, 0), end)
        changed = [v for v in dict.fromkeys(op.operands) if has_memory(v) and memory.written_between(v, n, end)]
        table = {v: _clone(v, op) for v in changed if not isinstance(v.type, PairType)}
        op.operands = [table[v].result if v in table else v for v in op.operands]
        if table:
            copies[op] = list(table.values())
    if copies:
        func.body.ops = [x for op in ops for x in (*copies.get(op, ()), op)]
    return sum(map(len, copies.values()))


def _clone(v: Value, reader: Op) -> Op:
    attrs = {"target": "aten.clone.default", "args": (Operand(0),)}
    return Op("torch.call", [v], attrs, [v.type], loc=reader.loc, result_names=[v.name])
