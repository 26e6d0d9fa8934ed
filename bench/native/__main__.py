"""Measure native kernels against SDPA, torch.compile, torch code and the machine itself, and hold them to their bounds.

    python -m bench.native                      # everything, some six minutes
    python -m bench.native --only '^forward/'   # rows whose name or description matches
    python -m bench.native --no-busy            # nothing beside another process that takes a core
    python -m bench.native --slow               # also rows that take more than a minute

Calls are timed in turns: every round runs each of them once, the multiply-add loop among them. A ratio is that of the
minima, which a busy machine disturbs least; beside a process that takes a core it is that of the medians of 20 calls.
"""

from __future__ import annotations

import os
import re
import time
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench.native import verdicts
from bench.native.plans import Settings, plans


def main(
    only: Annotated[str, typer.Option(help="Only rows whose name or description this regular expression finds.")] = "",
    runs: Annotated[int, typer.Option(min=2, help="Rounds of alternating runs.")] = 9,
    peers: Annotated[bool, typer.Option(help="Also time torch.compile and the torch-code backend.")] = True,
    busy: Annotated[bool, typer.Option(help="Also measure while another process takes a core.")] = True,
    slow: Annotated[bool, typer.Option("--slow", help="Also rows that take more than a minute.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch, and cores that are used.")] = 2,
    list_: Annotated[bool, typer.Option("--list", help="List the rows and their bounds.")] = False,
) -> None:
    """Measure native kernels, and hold them to their bounds."""
    console = Console()
    try:
        pattern = re.compile(only, re.IGNORECASE)
    except re.error as error:
        raise typer.BadParameter(f"{only!r} is not a regular expression: {error}", param_hint="--only") from None
    offered = [plan for plan in plans() if slow or list_ or not plan.slow]
    chosen = [(plan, wanted) for plan in offered if (wanted := plan.chosen(pattern, busy))]
    if not chosen:
        raise typer.BadParameter(f"no row matches {only!r}; --list shows them", param_hint="--only")
    if list_:
        rows = [verdicts.Measured(n, None, note="not here") for p, wanted in chosen for n in p.names if n in wanted]
        console.print(verdicts.table(rows))
        return
    _hold(threads)
    machine, path, rows = verdicts.device(), verdicts.new_file(), []
    taken: dict[str, float] = {}
    settings = {"only": only, "runs": runs, "busy": busy, "peers": peers, "seconds": taken}
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for plan, wanted in chosen:
            progress.update(task, description=plan.names[0])
            started = time.monotonic()
            rows += plan.rows(Settings(runs, peers), wanted)
            taken[plan.names[0]] = round(time.monotonic() - started, 1)
            verdicts.save(path, rows, settings, machine)  # what is there if this is interrupted
            progress.advance(task)
    verdicts.show(rows, console)
    console.print(f"{sum(taken.values()):.0f} s; kept in {os.path.relpath(path)}")


def _hold(threads: int) -> None:
    """To as many cores as threads: what is beside them would hide what a busy core costs."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


if __name__ == "__main__":
    typer.run(main)
