"""What single nodes of a graph of PyTorch call, and with what."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def target_name(target: Any) -> str | None:
    """How `torch.call` names an operator or a Python callable on sizes; None when it must not appear."""
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[1]}.{target._overloadname}"
    module, name = getattr(target, "__module__", None), getattr(target, "__name__", "")
    if module in ("_operator", "operator"):
        return f"operator.{name}"
    if module in ("math", "builtins", "torch") and name:
        return f"{module}.{name}"
    return None


def positional(target: torch._ops.OpOverload, node: fx.Node) -> list[Any]:
    """Arguments in the order of the schema, defaults filled in."""
    values = list(node.args)
    for argument in target._schema.arguments[len(values) :]:
        values.append(node.kwargs.get(argument.name, argument.default_value))
    return values


def returns_nothing(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.returns


def is_fresh(node: Any) -> bool:
    """Whether ``node`` is a copy of a constant (what ``torch.tensor(...)`` leaves in a graph)."""
    return isinstance(node, fx.Node) and node.target is torch.ops.aten.lift_fresh_copy.default
