"""Tensors that a graph of Dynamo's holds itself, such as what an optimizer works on: inputs like all others to us.

As parts of the graph they would be real while everything else is fake: tracing would write to them, and what others
write to them later would go unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx


def held_tensors(gm: fx.GraphModule) -> dict[str, fx.Node]:
    """The nodes that fetch tensors ``gm`` holds, by attribute, the first for each; a graph nested in ``gm`` that holds
    any is not ours to trace: ValueError with the node."""
    found: dict[str, fx.Node] = {}
    for module in gm.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            if node.op == "get_attr" and isinstance(tensor_at(module, node), torch.Tensor):
                if module is not gm:
                    raise ValueError(node)
                found.setdefault(str(node.target), node)
    return found


def tensor_at(gm: torch.nn.Module, node: fx.Node) -> Any:
    """What a ``get_attr`` node fetches."""
    found: Any = gm
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found


class Tracer(fx.Interpreter):
    """Runs a graph with ``held`` in the place of the tensors that it holds."""

    def __init__(self, gm: fx.GraphModule, held: Mapping[str, Any]):
        super().__init__(gm)
        self.held = held

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.held[target] if target in self.held else super().get_attr(target, args, kwargs)
