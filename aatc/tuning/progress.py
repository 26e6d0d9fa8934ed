"""A bar on standard error while schedules are measured, if somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: What is being measured, how many schedules are done, how many there are.
Report = Callable[[str, int, int], None]


@contextmanager
def bar(shown: bool | None = None) -> Iterator[Report]:
    """``shown``: whether there is one; None where standard error is a terminal."""
    if shown is None:
        shown = bool(getattr(sys.stderr, "isatty", lambda: False)())
    if not shown:
        yield lambda what, done, of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, int] = {}

        def report(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=of)
            progress.update(tasks[what], completed=done, total=of)  # type: ignore[arg-type]

        yield report
