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
