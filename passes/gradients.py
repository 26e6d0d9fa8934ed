"""From gradients of per-token expressions to gradients of an attention's operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aatc.ir.core import Value
from aatc.ir.score.derivative import gradients
from aatc.ir.score.expr import ONE, Expr, call, const, mul, param, params, postorder, substitute
from aatc.ir.score.program import Program
from aatc.ir.types import TensorType, compute_name
from aatc.passes.factor import Square, Token
from aatc.passes.lowering import numbers_of
from aatc.passes.tile_core import Frame


def operand_gradients(
    fr: Frame,
    sides: Mapping[str, list[tuple[Expr, Expr]]],
    env: dict[str, Value],
    ready: Mapping[str, Value] | None = None,
) -> tuple[list[Value], list[str]]:
    """Gradients of all operands that have one, and their names, in operand order.

    sides: (expression, cotangent) pairs of query tokens, key tokens and others, summed apart because these run over
    different axes. env: buffers of operands and cotangents by parameter name. ready: gradients that are known already.
    """
    a, ready = fr.a, ready or {}
    leaves = [p for p in a.declared.values() if p.dtype == "f" and p.rank < 3]
    lookups = [e for outputs in sides.values() for e in postorder(*(x for x, _ in outputs))]
    lookups = [e for e in dict.fromkeys(lookups) if e.fn == "lookup" and e.dtype == "f"]
    parts = [gradients(outputs, [*leaves, *lookups], far=a.far) for outputs in sides.values()]
    results: list[Value] = []
    grads: list[str] = []
    for name in a.names:
        p = a.declared.get(name)
        found = [g[p] for g in parts if p in g]
        read = [(e, g[e]) for g in parts for e in lookups if e in g and e.args[0] is p]
        if name not in ready and not found and not read:
            continue
        types = [_part_type(fr, name)] * (len(found) + len(read) - 1) + [a.types[name]]
        total = _operand_gradient(fr, name, found, env, types) if found else ready.get(name)
        if read:
            total = _table_gradient(fr, name, read, env, total, types[len(found) :])
        assert total is not None
        results.append(total)
        grads.append(name)
    return results, grads


def square_cotangents(
    moments: Mapping[tuple[Square, Token], Value], factor: float, env: dict[str, Value]
) -> list[tuple[Token, Expr, Expr]]:
    """(token, expression, cotangent) of what near pairs send to the vectors of squares, and to what a square's slope
    reads: the square is half the product of its slope and the difference. ``moments``: sums of the cotangent, which
    carries ``factor``, times the difference. Enters what is read in ``env``."""
    out = []
    for (x, t), buffer in moments.items():
        moment = param(f"m_{x.atom.name}_{t.name}__", t.axes)
        env[moment.name] = buffer
        mapped = substitute(x.slope, {x.delta: mul(const(factor), moment)})
        out.append((t, t.expr, mapped))
        if params(x.slope) != [x.delta]:
            # the moments of queries and of keys sum to 0 but for rounding, which is multiplied by how far tokens are
            # from where they are counted from
            itself = call("sub", t.expr, call("centre", x.col.expr))
            held = {p: param(f"held_{p.name}__", *p.attrs[1:]) for p in params(itself)}
            env |= {h.name: env[p.name] for p, h in held.items()}
            itself = substitute(itself, held, smart=False)
            out.append((t, mul(const(0.5), call("dot", mapped, itself)), ONE))
    return out


def _part_type(fr: Frame, name: str) -> TensorType:
    """Type of a part of a gradient that others are added to: half precision would round, or overflow, every part."""
    t = fr.a.types[name]
    return TensorType(max(fr.a.dtype, compute_name(t.dtype)), t.shape)  # "f32" < "f64"


def _table_gradient(
    fr: Frame, name: str, read: list[tuple[Expr, Expr]], env: Any, total: Value | None, types: Any
) -> Value:
    """The gradient of a table that per-token programs read; ``total`` is what pairs have added to it."""
    for (lookup, cotangent), t in zip(read, types, strict=True):
        used = tuple(params(cotangent, *lookup.args[1:]))
        operands = [env[name], *(env[p.name] for p in used), *([] if total is None else [total])]
        total = fr.b.op(
            "tile.table_gradient",
            operands,
            [t],
            names=[f"d_{name}"],
            program=Program(used, cotangent),
            positions=tuple(Program(used, p) for p in lookup.args[1:]),
            axes=fr.a.declared[name].attrs[1],
            sizes=fr.a.sizes,
            add=total is not None,
            numbers=numbers_of(fr.a, cotangent, operands),
        )[0]
    assert total is not None
    return total


def _operand_gradient(
    fr: Frame, name: str, found: list[Expr], env: dict[str, Value], types: Sequence[TensorType]
) -> Value:
    a = fr.a
    total: Value | None = None
    for expr, t in zip(found, types, strict=False):
        program = Program.of(expr)
        operands = [env[name], *(env[n] for n in program.names), *([] if total is None else [total])]
        total = fr.b.op(
            "tile.gradient",
            operands,
            [t],
            names=[f"d_{name}"],
            program=program,
            axes=a.declared[name].attrs[1],
            sizes=a.sizes,
            add=total is not None,
            numbers=numbers_of(a, expr, operands),
        )[0]
    assert total is not None
    return total
