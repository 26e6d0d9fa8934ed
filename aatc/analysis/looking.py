"""Whether a model holds attentions of `aatc.attend`, told without running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from aatc.frontend import dynamo, private_torch
from aatc.ir.observe import recorded


class _Looked(Exception):
    """Ends a recording once its graph has been seen: nothing of it runs."""


class _Look:
    """A Dynamo backend that compiles nothing; ``found`` is False once there is a graph."""

    found: bool | None = None

    def graph(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.found = False
        raise _Looked

    def guard_failed(self, reason: str) -> None:
        """Nothing is kept that a guard would watch."""


def holds_attend(model: Callable[..., Any], args: tuple[Any, ...]) -> bool | None:
    """Whether ``model(*args)`` calls `aatc.attend`; None where Dynamo cannot record all of it as one graph and has met
    none up to there.

    Recording runs the model's Python on tensors without numbers and keeps what it would change to itself: with the
    graph thrown away, the model, its arguments and torch's generator are as they were.
    """
    if private_torch.switched_off() or private_torch.hooks_of_all_modules() or is_in_torch_dispatch_mode():
        return None  # nothing is recorded then, but run

    def call(*given: Any) -> Any:
        # the sum makes a graph of a model that has no operation
        return model(*given), torch.zeros(()) + 1

    look = _Look()
    state, before = torch.get_rng_state(), recorded.count
    try:
        dynamo.wrap(call, dynamo.Hooks(look.graph, look.guard_failed), dynamic=None, fullgraph=True)(*args)
    except Exception:
        pass  # what ends a recording: ours, a break, or what the model itself raises, and will raise when it runs
    finally:
        torch.set_rng_state(state)
    return True if recorded.count > before else look.found
