"""`aatc.tune`: the attentions of a model, measured on inputs of the user's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from aatc.errors import UnsupportedError
from aatc.frontend import compile
from aatc.tuning.exchange import Schedules
from aatc.tuning.measure import from_schedule, measure, works
from aatc.tuning.progress import bar
from aatc.tuning.recording import Recording
from aatc.tuning.search import EFFORTS


def tune(
    model: Any,
    inputs: Any,
    *,
    backend: str = "auto",
    effort: str = "quick",
    budget: float | None = None,
    dynamic: bool = False,
    passes: Any = None,
    again: bool = False,
    progress: bool | None = None,
) -> Schedules:
    """Measures schedules for the attentions of a model on this device, and keeps the best of each on disk, where
    ``aatc.compile(model, tune="cached")`` of this and other processes finds them.

    The model is called once, on copies of ``inputs`` (a tensor, a sequence of arguments, or a mapping of keywords); its
    buffers and the state of random numbers are put back. Backwards are measured where gradients are wanted: with
    parameters or inputs that require them, not under `torch.no_grad`.

    effort: "quick" tries what the cost model finds best, "full" all schedules of the backend. budget: seconds for all
    together, 30 or 300 by default; what was found by then is kept. dynamic: for graphs whose sizes are symbols, as
    ``aatc.compile`` makes them when sizes are seen to vary, or from the first call on with ``dynamic=True``: they
    have schedules of their own. again: measure what is kept already, too. progress: whether there is a bar; None: on a
    terminal.

    Raises: UnsupportedError for an unknown effort, a budget that is no time, or a model without an attention that is
    compiled; what compiling and calling the model raises.
    """
    if effort not in EFFORTS:
        raise UnsupportedError(f"effort={effort!r} is not known", hint=f"there are: {', '.join(EFFORTS)}")
    if budget is not None and not budget >= 0:
        raise UnsupportedError(f"budget={budget!r} is no time", hint="seconds, or None")
    compiled = compile(model, backend=backend, dynamic=dynamic, passes=passes)
    runner = compiled._aatc
    session = runner.session
    from_schedule(session.pipeline)
    recording = session.backend = Recording(session.backend)
    args, kwargs = _arguments(inputs)
    try:
        with _undone(runner.original):
            runner.call(*args, **kwargs)
        found = [w for g in session.graphs for w in works(g.stages, recording.of(g.program), recording.backend)]
        if not found:
            raise UnsupportedError(f"{session.name} has no attention that is compiled", hint=_why(session))
        with bar(progress) as report:
            return measure(found, recording.backend, session.pipeline, effort, budget, report, again=again)
    finally:
        recording.end()


def _why(session: Any) -> str:
    reasons = "; ".join(dict.fromkeys(f"{f.op}: {f.reason}" for f in session.fallbacks))
    return reasons or "write it with aatc.attend or aatc.nn"


def _arguments(inputs: Any) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments, of copies."""
    if isinstance(inputs, Mapping):
        return [], {str(n): _copy(x) for n, x in inputs.items()}
    if isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes)):
        return [_copy(x) for x in inputs], {}
    return [_copy(inputs)], {}


def _copy(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return x.detach().clone().requires_grad_(x.requires_grad)
    if type(x) in (list, tuple):
        return type(x)(map(_copy, x))
    return {n: _copy(y) for n, y in x.items()} if type(x) is dict else x


@contextlib.contextmanager
def _undone(model: Any) -> Iterator[None]:
    """Puts a model's buffers and the state of random numbers back."""
    buffers = list(model.buffers()) if isinstance(model, torch.nn.Module) else []
    before = [b.detach().clone() for b in buffers]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        with torch.no_grad():
            for b, value in zip(buffers, before, strict=True):
                b.copy_(value)
