"""Time several things fairly: warmed up first, then in turns, so that a slow moment hits all of them."""

import gc
import time
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from bench.report import Figure


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


#: Seconds after which a peer has been run often enough.
_PATIENCE = 2.0


def alternate(
    calls: Mapping[str, Callable[[], object]], runs: int, warm: int = 2, peers: Collection[str] = ()
) -> dict[str, Figure]:
    """Milliseconds of each call in ``runs`` rounds, every round running all of them once. ``peers`` hold nobody to a
    bound: a slow one leaves out rounds."""
    for call in calls.values():
        for _ in range(warm):
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for _ in range(runs):
            for name, call in calls.items():
                if name in peers and sum(taken[name]) > 1e3 * _PATIENCE:
                    continue
                taken[name].append(1e3 * seconds(call))
    finally:
        gc.enable()
    return {name: Figure(tuple(values), "ms") for name, values in taken.items()}


def forward(f: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return f(*inputs)

    return call


def training(f: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """Forward and the gradients of q, k and v, for a fixed gradient of the output."""
    q, k, v = (x.detach().clone().requires_grad_() for x in inputs[:3])
    rest = inputs[3:]
    upstream = torch.ones_like(v)

    def call() -> object:
        return torch.autograd.grad(f(q, k, v, *rest), (q, k, v), upstream)

    return call
