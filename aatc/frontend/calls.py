"""What is known of one call of a compiled model while it runs, in the thread it runs in."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aatc.ir import collector, observe

if TYPE_CHECKING:
    from aatc.frontend.breaks import Break, Limit
    from aatc.frontend.session import Session


@dataclass
class Call:
    """One call. ``ran`` counts compiled graphs that ran, ``made`` graphs that were made; ``breaks`` are what Dynamo
    could not record, ``limits`` the limits of graphs that were passed; ``guards`` failed since the last graph;
    ``left`` counts graphs that PyTorch ran, ``where`` is the line of the one it is running."""

    session: Session
    ran: int = 0
    made: int = 0
    left: int = 0
    where: str | None = None
    breaks: list[Break] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    guards: list[str] = field(default_factory=list)
    warnings: list[tuple[type[Warning], str]] = field(default_factory=list)


class _Thread(threading.local):
    call: Call | None = None


_thread = _Thread()


def current() -> Call | None:
    """The innermost call of a compiled model in this thread."""
    return _thread.call


class Calling:
    """Makes a call the current one inside of a ``with``. What attention formulas run within is reported to its session.

    A class, since it is a part of every call: what `contextlib.contextmanager` makes takes three times as long.
    """

    __slots__ = ("_before", "_call")

    def __init__(self, call: Call):
        self._call = call

    def __enter__(self) -> None:
        self._before = _thread.call, observe.formula.report
        _thread.call, observe.formula.report = self._call, self._call.session.formula_ran

    def __exit__(self, *_: object) -> None:
        _thread.call, observe.formula.report = self._before


class Hurry:
    """The cycle collector paused from here up to `end`: importing Dynamo and tracing make many objects that stay, and
    looking through them again and again takes a sixth of the time."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(collector.paused())

    def end(self) -> None:
        """Back to what it was, unless another thread has paused it, too. Calling it again does nothing."""
        self._stack.close()
