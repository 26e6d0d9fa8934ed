"""Who watches attentions run: `geo.observe` hands its operands to the sink that is set here, and to nobody else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from aatc.ir.core import Op

#: Takes the `geo.observe` operation and the values of its operands.
Sink = Callable[["Op", Sequence[torch.Tensor]], None]

_sink: ContextVar[Sink | None] = ContextVar("aatc_observe", default=None)


@contextmanager
def observing(sink: Sink) -> Iterator[None]:
    """Every `geo.observe` that runs inside calls ``sink``; an inner ``observing`` replaces an outer one."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)


def observe(op: Op, values: Sequence[torch.Tensor]) -> None:
    sink = _sink.get()
    if sink is not None:
        sink(op, values)


class _Formula(threading.local):
    """Takes the bytes of the scores of every attention that runs by its plain formula in this thread."""

    report: Callable[[int], None] | None = None


formula = _Formula()


class _Recorded(threading.local):
    """How many attentions were recorded without being run, on tensors without numbers, in this thread."""

    count = 0


recorded = _Recorded()
