"""Attentions over sizes like ``2*B`` or ``N+1``: each such size gets a symbol of its own.

A tile function learns sizes from the shapes of its operands, so these must be numbers or single symbols.
"""

from __future__ import annotations

from aatc.ir.core import Func, Module, Op, Value, replace_uses
from aatc.ir.dims import Dim
from aatc.ir.registry import Operand, lookup_op
from aatc.ir.types import TensorType, Type


def plain_sizes(func: Func, module: Module) -> int:
    """``attend(q: f32[2*B,…])`` → ``attend(alias(q): f32[d0,…])``. Returns the attentions changed."""
    names: dict[Dim, Dim] = {}
    table: dict[Value, Value] = {}
    back: dict[Value, Value] = {}
    ops: list[Op] = []
    changed = 0
    for op in func.body.ops:
        op.operands = [back.get(v, v) for v in op.operands]
        if op.name != "geo.attend" or not any(_compound(v) for v in op.operands):
            ops.append(op)
            continue
        changed += 1
        for v in dict.fromkeys(op.operands):
            if _compound(v):
                alias = _alias(v, TensorType(v.type.dtype, tuple(_plain(d, names, module) for d in v.type.shape)), op)  # type: ignore[attr-defined]
                ops.append(alias)
                table[v] = alias.result
        fused = Op(op.name, [table.get(v, v) for v in op.operands], op.attrs, loc=op.loc)
        infer = lookup_op(op.name).infer
        assert infer is not None
        fused.results = [Value(t, r.name, fused) for t, r in zip(infer(fused), op.results, strict=True)]
        ops.append(fused)
        for old, new in zip(op.results, fused.results, strict=True):
            if new.type == old.type:
                back[old] = new
            else:
                ops.append(_alias(new, old.type, op))  # what follows knows the result by its old type
                back[old] = ops[-1].result
    func.body.ops = ops
    if back:
        replace_uses(func.body, back)
    return changed


def _compound(v: Value) -> bool:
    return isinstance(v.type, TensorType) and not all(_is_plain(d) for d in v.type.shape)


def _is_plain(d: Dim) -> bool:
    return d.is_static or (len(d.terms) == 1 and d == Dim.of(d.terms[0][0]))


def _plain(d: Dim, names: dict[Dim, Dim], module: Module) -> Dim:
    if _is_plain(d):
        return d
    if d not in names:
        n = 0
        while f"d{n}" in module.dims:
            n += 1
        try:
            low, high = d.bounds(module.dims)
        except ValueError:
            low, high = 0, None
        module.dims[f"d{n}"] = (max(0, low), high)
        names[d] = Dim.of(f"d{n}")
    return names[d]


def _alias(v: Value, t: Type, op: Op) -> Op:
    attrs = {"target": "aten.alias.default", "args": (Operand(0),)}
    return Op("torch.call", [v], attrs, [t], loc=op.loc, result_names=[v.name])
