"""States of torch that a model sets while it is exported: an IR has no words for them, so the export is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from aatc.errors import UnsupportedError
from aatc.frontend import failures

_HINT = "set it outside of the model"


class _Watch(TorchFunctionMode):
    """Refuses what operators cannot show of a state, at the line of the model where it shows first."""

    def __init__(self) -> None:
        super().__init__()
        self._inference = torch.is_inference_mode_enabled()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.is_inference_mode_enabled() != self._inference:
            raise _refused("torch.inference_mode inside the model")
        if func == torch.Tensor.data.__set__:  # type: ignore[attr-defined]  # made anew each time
            raise _refused("setting a tensor's .data", "write to the tensor instead: x.copy_(y)")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Raises UnsupportedError when ``model``, traced in this context, leaves a state of torch changed, or sets one that
    its operators do not show; sets back what it has changed."""
    before = _states()

    def left(module: torch.nn.Module, args: Any, result: Any) -> None:
        if module is model:
            changed = [name for name, value in _states().items() if value != before[name]]
            if changed:
                raise UnsupportedError(f"the model sets {changed[0]} for longer than the call", hint=_HINT)

    hook = torch.nn.modules.module.register_module_forward_hook(left)
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()), _Watch():
            yield
    finally:
        hook.remove()
        torch.set_default_dtype(before["the default dtype"])
        torch.set_float32_matmul_precision(before["the precision of matmul"])
        if torch.are_deterministic_algorithms_enabled() != before["deterministic algorithms"]:
            torch.use_deterministic_algorithms(before["deterministic algorithms"])


def _states() -> dict[str, Any]:
    return {
        "gradients on or off": torch.is_grad_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "the precision of matmul": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def _refused(what: str, hint: str = _HINT) -> UnsupportedError:
    return UnsupportedError(f"{what} has no counterpart in the IR", where=failures.users_line(), hint=hint)
