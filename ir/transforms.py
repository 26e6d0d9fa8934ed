"""What of torch's state surrounds a computation: transforms (forward mode, `torch.func`, `torch.vmap`), modes.

For code that torch can't see through, and so must ask. Leans on torch's C bindings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch.autograd import forward_ad

P = ParamSpec("P")
R = TypeVar("R")

_functorch = torch._C._functorch
_DERIVATIVES = (_functorch.TransformType.Grad, _functorch.TransformType.Jvp)


def differentiating(tensors: Sequence[Any] = ()) -> bool:
    """Whether a derivative of `torch.func` is being taken around this call, or one of ``tensors`` has a tangent."""
    if _functorch.peek_interpreter_stack() is not None:
        if any(level.key() in _DERIVATIVES for level in _functorch.get_interpreter_stack() or ()):
            return True
    return any(tangent_of(t) is not None for t in tensors if isinstance(t, torch.Tensor))


def tangent_of(t: torch.Tensor) -> torch.Tensor | None:
    """The tangent of a dual number. A graph may have entered the level without `forward_ad` knowing."""
    return torch._VF._unpack_dual(t, level=0).tangent


def transformed() -> bool:
    """Whether any transform is active around this call, `torch.vmap` included, or dual numbers exist."""
    return forward_ad._current_level >= 0 or _functorch.peek_interpreter_stack() is not None


def is_batched(t: Any) -> bool:
    """Whether ``t`` is a tensor with a hidden axis of `torch.vmap`, of either kind that torch has."""
    return isinstance(t, torch.Tensor) and (_functorch.is_batchedtensor(t) or _functorch.is_legacy_batchedtensor(t))


def by_sample(function: Callable[..., Any], tensors: Sequence[Any]) -> Any:
    """``function(*tensors)``, called once per sample of the innermost hidden axis that any of ``tensors`` has, its
    results (tensors, None, and lists of them) joined along that axis again."""
    level = max((_functorch.maybe_get_level(t) for t in tensors if _is_new(t)), default=None)
    if level is not None:
        remove: Any = _functorch._remove_batch_dim
        add: Any = _functorch._add_batch_dim
        members = [_is_new(t) and _functorch.maybe_get_level(t) == level for t in tensors]
    else:
        level = _legacy_level()
        remove, add = torch._remove_batch_dim, torch._add_batch_dim
        members = [isinstance(t, torch.Tensor) and _functorch.is_legacy_batchedtensor(t) for t in tensors]
    bare = [remove(t, level, 1, 0) if member else t for t, member in zip(tensors, members, strict=True)]
    count = next(t.shape[0] for t, member in zip(bare, members, strict=True) if member)
    samples = [
        function(*(t[n] if member else t for t, member in zip(bare, members, strict=True))) for n in range(count)
    ]
    return joined(samples, lambda parts: add(torch.stack(parts), 0, level))


def joined(samples: Sequence[Any], join: Callable[[list[torch.Tensor]], Any]) -> Any:
    """Results of one structure (tensors, None, lists and tuples of them) as one, ``join`` applied to each tensor's."""
    first = samples[0]
    if isinstance(first, (list, tuple)):
        return type(first)(joined(each, join) for each in zip(*samples, strict=True))
    return None if first is None else join(list(samples))


def _is_new(t: Any) -> bool:
    return isinstance(t, torch.Tensor) and _functorch.is_batchedtensor(t)


def _legacy_level() -> int:
    """The level of the innermost vmap of the older kind, which `torch.autograd.grad(is_grads_batched=True)` uses."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` without the torch function modes around a call of it, such as a default device: what it makes inside
    is not the caller's."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch._C._len_torch_function_stack():
            return function(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return run
