"""Where the time of compiled kernels goes, operation by operation of their tile programs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

#: Shares below are shown together.
_SHOWN = 0.001


@dataclass(frozen=True)
class OperationTime:
    """One operation of a tile function: ``calls`` per run of the model, ``seconds`` of them on all threads together,
    without those of the operations inside it, and their ``share`` of all kernels' time."""

    function: str
    operation: str
    calls: float
    seconds: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Operations by their time, the longest first. ``seconds`` is what a run of the model takes, in kernels that count
    and outside of them; shares of ``operations`` sum to 1. ``note`` says what it was run on."""

    backend: str
    operations: Sequence[OperationTime]
    seconds: float
    threads: int
    runs: int
    note: str = ""

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for head in ("share", "ms", "calls"):
            table.add_column(head, justify="right")
        table.add_column("operation", overflow="fold")
        last = ""
        for row in self.operations:
            if row.function != last and len({r.function for r in self.operations}) > 1:
                table.add_row("", "", "", f"@{row.function}")
            last = row.function
            if row.share < _SHOWN:
                continue
            table.add_row(f"{row.share:.1%}", f"{1e3 * row.seconds:.3f}", f"{row.calls:g}", row.operation)
        rest = [row.share for row in self.operations if row.share < _SHOWN]
        if rest:
            table.add_row(f"{sum(rest):.1%}", "", "", f"{len(rest)} others")
        out = io.StringIO()
        console = Console(file=out, width=140, markup=False, highlight=False, emoji=False)
        console.print(self._head(), soft_wrap=True)
        console.print(table)
        return out.getvalue().rstrip()

    def _head(self) -> str:
        inside = sum(row.seconds for row in self.operations)
        text = (
            f"{self.backend}: {1e3 * self.seconds:.3f} ms per run, {1e3 * inside:.3f} ms in kernels on "
            f"{self.threads} thread{'s' if self.threads != 1 else ''} together, of {self.runs} runs that count"
        )
        return f"{text}; {self.note}" if self.note else text


class Profiler(Protocol):
    """Inside of a ``with`` of it, calls of this thread run kernels that count."""

    def __enter__(self) -> Profiler: ...

    def __exit__(self, *_: object) -> None: ...

    def restart(self) -> None:
        """Forgets what was counted."""

    def result(self, runs: int, seconds: float, note: str = "") -> Profile:
        """What was counted since, by so many runs that took so many seconds each."""
