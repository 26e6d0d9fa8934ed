"""Operators of torch as graphs of simpler ones, traced at tensors without data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx
from torch._decomp import core_aten_decompositions, decomposition_table
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from aatc.backends.vulkan.model.items import may_view

#: Operators that have kernels as they are.
_KEPT = (
    "_softmax",
    "_log_softmax",
    "embedding_dense_backward",
    "mm",
    "bmm",
    "addmm",
    "t",
    "silu",
    "gelu",
    "sign",
    "sgn",
)


@cache
def simpler() -> dict[Any, Any]:
    """Decompositions into operators of a small set."""
    table = dict(core_aten_decompositions())
    for name in _KEPT:
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            table.pop(getattr(packet, overload), None)
    return table


def traced(
    run: Callable[..., Sequence[torch.Tensor]], metas: Sequence[torch.Tensor], *, leaves: Sequence[bool]
) -> fx.GraphModule:
    """``run`` as a graph from tensors that lie as ``metas`` do; ``leaves`` marks those it asks gradients of."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = [
            torch.empty_strided(m.shape, m.stride(), dtype=m.dtype).requires_grad_(leaf)
            for m, leaf in zip(metas, leaves, strict=True)
        ]
        with torch.set_grad_enabled(any(leaves)):
            graph = make_fx(run, decomposition_table=simpler(), tracing_mode="real")(*fakes)
    graph.graph.eliminate_dead_code()
    return graph


def decomposition(function: Any) -> Callable[..., Any] | None:
    """What torch knows an operator to be made of."""
    found: Callable[..., Any] | None = decomposition_table.get(function)
    return found


def out_of_place(n: fx.Node) -> tuple[torch._ops.OpOverload | None, bool]:
    """The operator of a node, and whether it writes to its first argument: then the one that makes a new tensor. None
    if others than its users see what is written: another name holds that memory, or the graph did not make it."""
    target: Any = n.target
    if not _writes(target):
        return target, False
    made: Any = n.args[0]
    if not isinstance(made, fx.Node) or not isinstance(made.target, torch._ops.OpOverload) or _shares(made):
        return None, True
    if any(_shares(u) for u in made.users if u is not n and (u.users or not _writes(u.target))):
        return None, True
    name = target._schema.name.removeprefix("aten::").removesuffix("_")
    found: torch._ops.OpOverload | None = getattr(getattr(torch.ops.aten, name, None), target._overloadname, None)
    return found, True


def _writes(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name = target._schema.name
    return name.endswith("_") and not name.endswith("__")


def _shares(n: fx.Node) -> bool:
    """Whether a node's result may lie in its first argument's memory."""
    return _writes(n.target) or (isinstance(n.target, torch._ops.OpOverload) and may_view(n.target))
