"""Gradients of a function that a builder has walked, on the device: operator by operator, from the last to the first.

What the derivative of an operator of torch is, torch itself says: its autograd is traced at tensors without data, in
operators that the builder knows. An attention has a backward of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from aatc.backends.vulkan.model.builder import Builder
from aatc.backends.vulkan.model.nodes import Node, load
from aatc.backends.vulkan.model.operators import Unsupported
from aatc.backends.vulkan.model.pointwise import word
from aatc.backends.vulkan.model.tracing import traced
from aatc.ir.core import Func, Op, Value
from aatc.ir.interpreter import target_function

#: Adds the backward of a ``geo.kernel`` to a segment: of (builder, operation, gradients of its two results, values of
#: which gradients are wanted), operands and their gradients.
AttentionBackward = Callable[[Builder, Op, Sequence[Any], set[Value]], Sequence[tuple[Value, Any]]]


def gradients(
    b: Builder, func: Func, loss: Value, wanted: Sequence[Value], attention: AttentionBackward
) -> dict[Value, Node]:
    """Gradients of ``loss``, a number, with respect to arguments that it depends on. Raises: Unsupported, with the
    operator that has no derivative on the device."""
    depends = _depending(func, wanted)
    sums: dict[Value, list[Any]] = defaultdict(list)
    sums[loss].append(Node("number", "f", tuple(b.meta(loss).shape), data=1.0))
    for op in reversed(func.body.ops[:-1]):
        if not any(sums[r] for r in op.results) or not any(v in depends for v in op.operands) or _stops(op):
            continue
        given = [_total(b, sums[r]) for r in op.results]
        if op.name == "geo.kernel":
            found = attention(b, op, given, depends)
        elif op.name == "torch.call":
            found = _of_call(b, op, given, depends)
        else:
            raise Unsupported(f"{op.name} has no derivative on the device")
        for v, g in found:
            if v in depends:
                sums[v].append(g)
    return {v: _total(b, sums[v]) for v in wanted if sums[v]}


def _stops(op: Op) -> bool:
    """Whether no gradient flows through an operator: within ``torch.no_grad``, and where it is detached."""
    return bool(op.attrs.get("no_grad")) or str(op.attrs.get("target", "")).startswith("aten.detach")


def _depending(func: Func, wanted: Sequence[Value]) -> set[Value]:
    """Values that floating-point numbers of ``wanted`` go into."""
    found = set(wanted)
    for op in func.body.ops:
        if any(v in found for v in op.operands) and not _stops(op):
            found |= set(op.results)
    return found


def _total(b: Builder, parts: list[Any]) -> Any:
    """Their sum; None for none."""
    if len(parts) > 1:
        sum_ = b.node(parts[0])
        for p in parts[1:]:
            sum_ = word("add", sum_, b.node(p))
        parts[:] = [load(b.segment.written(sum_, "f32", "gradient"))]
    return parts[0] if parts else None


def _of_call(b: Builder, op: Op, given: Sequence[Any], depends: set[Value]) -> list[tuple[Value, Any]]:
    args, kwargs = b._arguments(op)
    function = target_function(op.attrs["target"], op)
    tensors = list(dict.fromkeys(v for v in _values([args, kwargs]) if b.is_tensor(v)))
    graph, asked = _traced(b, function, args, kwargs, tensors, given, depends)
    inputs = [*tensors, *(g for g in given if g is not None)]
    made = b.trace(graph, [b.item(v) if isinstance(v, Value) else v for v in inputs], keys=tensors)
    return list(zip(asked, made, strict=True))


def _values(x: Any) -> list[Value]:
    if isinstance(x, Value):
        return [x]
    if isinstance(x, dict):
        return _values(list(x.values()))
    return [v for y in x for v in _values(y)] if isinstance(x, (list, tuple)) else []


def _traced(
    b: Builder, function: Any, args: list[Any], kwargs: dict[str, Any], tensors: list[Value], given: Sequence[Any],
    depends: set[Value],
) -> tuple[fx.GraphModule, list[Value]]:  # fmt: skip
    """A graph from (tensors, gradients of results that have one) to gradients, and of which tensors these are."""
    metas = [b.meta(v) for v in tensors]
    asked = [v for v, m in zip(tensors, metas, strict=True) if v in depends and m.dtype.is_floating_point]

    def run(*all_: torch.Tensor) -> list[torch.Tensor]:
        of = dict(zip(tensors, all_, strict=False))
        leaves = [of[v] for v in asked]

        def bound(x: Any) -> Any:
            if isinstance(x, Value):
                return of[x]
            if isinstance(x, dict):
                return {k: bound(y) for k, y in x.items()}
            return [bound(y) for y in x] if isinstance(x, (list, tuple)) else x

        made = function(*bound(args), **bound(kwargs))
        several = list(made) if isinstance(made, (list, tuple)) else [made]
        outs = [m for m, g in zip(several, given, strict=True) if g is not None]
        return list(
            torch.autograd.grad(outs, leaves, list(all_[len(tensors) :]), allow_unused=True, materialize_grads=True)
        )

    outer = [b.meta(g) for g in given if g is not None]
    leaves = [v in asked for v in tensors] + [False] * len(outer)
    return traced(run, [*metas, *outer], leaves=leaves), asked
