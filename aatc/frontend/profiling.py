"""``compiled.profile()``: a model run with kernels that count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from aatc.errors import BackendError
from aatc.ir.samples import random_inputs

if TYPE_CHECKING:
    from aatc.backends.profile import Profile, Profiler


def profile(compiled: Any, runner: Any, inputs: Any, *, runs: int, backward: bool) -> Profile:
    """What `compiled.profile` gives; ``runner`` answers questions about it."""
    if runs < 1:
        raise ValueError(f"runs is {runs}; it counts what is measured")
    profiler: Profiler = runner.session.backend.profiler()
    if inputs is None:
        call, note = _again(runner, backward), "random inputs"
    else:
        args = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        call, note = _call(compiled, tuple(args), backward), ""
    call()  # compiles what there is to compile
    with profiler:
        call()  # and the builds that count
        profiler.restart()
        start = time.perf_counter()
        for _ in range(runs):
            call()
        return profiler.result(runs, (time.perf_counter() - start) / runs, note)


def _call(f: Any, args: tuple[Any, ...], backward: bool) -> Callable[[], object]:
    if not backward:
        return lambda: _without_grad(f, args)
    args = tuple(_leaf(x) for x in args)
    leaves = [x for x in args if isinstance(x, torch.Tensor) and x.requires_grad]
    leaves += [p for p in f.parameters() if p.requires_grad] if isinstance(f, nn.Module) else []
    return lambda: _gradients(f(*args), leaves)


def _leaf(x: Any) -> Any:
    if isinstance(x, torch.Tensor) and x.is_floating_point():
        return x.detach().clone().requires_grad_()
    return x


def _without_grad(f: Any, args: tuple[Any, ...]) -> object:
    with torch.no_grad():
        return f(*args)


def _gradients(outputs: Any, leaves: list[torch.Tensor]) -> object:
    outs = [x for x in pytree.tree_leaves(outputs) if isinstance(x, torch.Tensor) and x.requires_grad]
    return torch.autograd.grad(outs, leaves, [torch.ones_like(x) for x in outs], allow_unused=True) if outs else None


def _again(runner: Any, backward: bool) -> Callable[[], object]:
    """All graphs that were compiled, on made-up inputs."""
    runner.graph(-1)
    calls = [
        _call(g.program.main, tuple(random_inputs(g.stages["final"])), backward)
        for g in runner.session.graphs
        if g.program is not None and not any(_symbols(g.stages["final"]))
    ]
    if not calls:
        raise BackendError("no graph has fixed sizes only", hint="hand in inputs: compiled.profile((x, y))")
    return lambda: [call() for call in calls]


def _symbols(module: Any) -> Iterator[str]:
    """Names of the sizes that a graph leaves open."""
    for arg in module.entry.args:
        for d in getattr(arg.type, "shape", ()):
            yield from d.symbols
