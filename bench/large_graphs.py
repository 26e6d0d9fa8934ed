"""How long import, passes and backend take for graphs of thousands of operations, without torch's capture."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from bench.report import Figure


def constants(x: Tensor, operations: int) -> Tensor:
    """Five operations a round, four of them of constants only."""
    for n in range(operations // 5):
        t = torch.zeros(4)
        t = t + n
        x = x + t[:2].sum()
    return x


def plain(x: Tensor, operations: int) -> Tensor:
    """Views and arithmetic on what is given."""
    for _ in range(operations // 5):
        x = torch.tanh((x.transpose(0, 1) * 2).reshape(4)).view(2, 2)
    return x


def attentions(x: Tensor, operations: int) -> Tensor:
    """An attention every hundred operations."""
    import aatc

    for _ in range(operations // 100):
        x = torch.tanh(aatc.attend(x * 1.5, x, x, metric=aatc.metrics.DotProduct()))
        for _ in range(97):
            x = x + 1
    return x


GRAPHS: dict[str, tuple[Callable[[Tensor, int], Tensor], tuple[int, ...]]] = {
    "constants": (constants, (2,)),
    "plain": (plain, (2, 2)),
    "attentions": (attentions, (1, 2, 8, 4)),
}


def graph(name: str, operations: int) -> fx.GraphModule:
    """The ATen-level graph of one of `GRAPHS`, as Dynamo would hand it over."""
    function, shape = GRAPHS[name]
    trace = make_fx(lambda x: function(x, operations), pre_dispatch=True, tracing_mode="fake")
    return trace(torch.randn(shape))


def compile_seconds(captured: fx.GraphModule) -> float:
    """Seconds of this process that import, passes and backend take for a captured graph."""
    from aatc import backends
    from aatc.frontend.importer import import_graph

    backend = backends.get()
    start = time.process_time()
    imported = import_graph(captured)
    backend.build(backends.pipeline().run(imported.module, target=backend.target()).module)
    return time.process_time() - start


def compile_growth(name: str, operations: int, runs: int) -> tuple[Figure, Figure]:
    """Seconds for so many operations, and how many times as long twice as many take."""
    once, twice = graph(name, operations), graph(name, 2 * operations)
    compile_seconds(once)
    first, second = [], []
    for _ in range(runs):
        first.append(compile_seconds(once))
        second.append(compile_seconds(twice))
    return Figure(tuple(first), "s"), Figure((min(second) / min(first),), "×")
