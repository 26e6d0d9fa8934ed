"""What a builder knows of tensors: where each is, on the host, on the device, or still to be computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from aatc.backends.vulkan.model.nodes import Node
from aatc.backends.vulkan.model.operators import Unsupported
from aatc.backends.vulkan.model.views import View
from aatc.ir.core import Value
from aatc.ir.types import dtype_name

#: Types of tensors that have a place on the device; integers must fit in 32 bits there.
HELD = ("f32", "i64", "i32", "bool")


@dataclass(frozen=True, eq=False)
class Given:
    """A tensor of the host: an argument or what an operator made there, as ``value``; ``meta`` lies like it."""

    value: Value
    meta: torch.Tensor


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor that is the same in every call of these shapes."""

    tensor: torch.Tensor


Item = View | Node | Given | Known
#: What items are kept under: values of the module, and nodes of a graph that an operator was traced to.
KEYS = (Value, fx.Node)
RESHAPES = ("aten.reshape", "aten.view", "aten._unsafe_view", "aten.flatten", "aten.unflatten")


def dtype_of(item: Any) -> str:
    if isinstance(item, View):
        return item.dtype
    if isinstance(item, Given):
        return dtype_name(item.meta.dtype)
    if isinstance(item, Known):
        return dtype_name(item.tensor.dtype)
    return {"f": "f32", "i": "i64", "b": "bool"}[item.kind]


def check_held(dtype: str) -> None:
    if dtype not in HELD:
        raise Unsupported(f"tensors of {dtype}")


def may_view(function: torch._ops.OpOverload) -> bool:
    """Whether results may lie in the first argument's memory, which is not written to."""
    args = function._schema.arguments
    if args and args[0].alias_info is not None:
        return not args[0].alias_info.is_write
    return function._schema.name in (
        "aten::reshape",
        "aten::contiguous",
        "aten::flatten",
        "aten::unflatten",
        "aten::to",
    )


def meta_of(t: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


def several_of(made: Any) -> list[Any]:
    return list(made) if isinstance(made, (list, tuple)) else [made]


def flat(x: Any) -> list[Any]:
    if isinstance(x, (list, tuple)):
        return [z for y in x for z in flat(y)]
    if isinstance(x, dict):
        return [z for y in x.values() for z in flat(y)]
    return [x]
