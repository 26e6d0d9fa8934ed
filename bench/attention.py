"""Measure aatc against SDPA and torch.compile, and hold it to its bounds.

    python -m bench.attention                     # everything, some minutes
    python -m bench.attention --only lorentz      # rows whose group or name contains the word
    python -m bench.attention --quick             # small sizes, to see that it runs; no verdicts

Batch 1, 8 heads of width 64, float32, two threads. Times are taken in turns: every round runs aatc, then
``torch.compile`` of the eager formula, then SDPA with the same mask, once each. A ratio is that of the
minima, which a busy machine disturbs least; the ratio of the medians follows in brackets.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if not __package__:  # run as a file: the checkout takes the place of this folder on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import large_graphs, memory, startup
from bench.kinds import Kind, kinds, plain
from bench.report import Figure, Report, Row
from bench.timing import alternate, forward, training

LONG = 8192


@dataclass(frozen=True)
class Plan:
    """One measurement: what gives its rows, and the bounds that are not met if it fails."""

    group: str
    name: str
    rows: Callable[[], list[Row]]
    bounds: tuple[float, ...]

    def run(self) -> list[Row]:
        """The rows; one that says why, if the measurement fails."""
        try:
            return self.rows()
        except Exception as error:  # one broken measurement must not cost the others
            first = (str(error).strip().splitlines() or [""])[0]
            note = f"{type(error).__name__}: {first}"[:160]
            rows = [Row(self.group, self.name, None, at_most=bound) for bound in self.bounds]
            return [replace(rows[0], note=note), *rows[1:]]


def time_kind(group: str, k: Kind, n: int, runs: int, judged: bool, *, backward: bool) -> list[Row]:
    import aatc

    torch.compiler.reset()
    inputs = k.inputs(n)
    prepare = training if backward else forward
    calls = {"aatc": prepare(aatc.compile(k.ours), inputs)}
    calls["torch.compile"] = prepare(torch.compile(k.eager, dynamic=False), inputs)
    if not backward:
        calls["SDPA"] = forward(k.sdpa, inputs)
    figures = alternate(calls, runs)
    name = f"{k.name}, n {n}"
    compiled = k.training if backward else k.under_compiled
    rows = []
    if not backward:
        sdpa = "SDPA, causal" if k.causal else "SDPA"
        bound = k.over_sdpa
        rows.append(Row(group, name, figures["aatc"], figures["SDPA"], sdpa, at_most=bound, judged=judged))
    peer = figures["torch.compile"]
    rows.append(Row(group, name, figures["aatc"], peer, "torch.compile", at_least=compiled, judged=judged))
    return rows


def time_masks(n: int, runs: int, judged: bool) -> list[Row]:
    import aatc
    from aatc import masks as K
    from aatc import metrics as M

    rows = []
    for label, metric in (("euclidean", M.Euclidean), ("lorentz", lambda: M.LorentzDistance(lift=True))):
        torch.compiler.reset()
        masks = {"unmasked": lambda: None, "causal": K.causal, "window 512": lambda: K.sliding_window(512)}
        calls = {
            name: forward(
                aatc.compile(
                    lambda q, k, v, mask=mask, metric=metric: aatc.attend(q, k, v, metric=metric(), mask=mask())
                ),
                plain(n),
            )
            for name, mask in masks.items()
        }
        figures = alternate(calls, runs, warm=1)
        for name, bound in (("causal", 0.65), ("window 512", 0.25)):
            full = figures["unmasked"]
            title = f"{label}, {name}, n {n}"
            rows.append(Row("masks", title, figures[name], full, "unmasked", at_most=bound, judged=judged))
    return rows


def peak_memory(k: Kind, n: int, judged: bool) -> list[Row]:
    rows = []
    for direction, bound in (("forward", 200), ("with backward", 500)):
        mib, note = memory.measure("aatc", k.name, n, backward=direction != "forward")
        title = f"{k.name}, {direction}, n {n}"
        rows.append(Row("memory", title, Figure((mib,), "MiB"), at_most=bound, judged=judged, note=note))
    return rows


def compile_rows(runs: int) -> list[Row]:
    first, second = startup.compile_times(runs)
    return [
        Row("compile", "four layers, first call", first, at_most=5),
        Row("compile", "four layers, second process", second, at_most=3),
    ]


def growth_rows(name: str, runs: int, quick: bool) -> list[Row]:
    operations = 2_000 if quick else 20_000
    taken, factor = large_graphs.compile_growth(name, operations, runs)
    judged = not quick
    return [
        Row("compile", f"{operations:,} operations, {name}", taken, at_most=6, judged=judged),
        Row("compile", f"{2 * operations:,} operations, {name}, times as long", factor, at_most=2.3, judged=judged),
    ]


def overhead_rows(runs: int) -> list[Row]:
    compiled, eager = startup.call_overhead(runs)
    added = Figure((compiled.least - eager.least,), "µs")
    return [
        Row("overhead", "per attention over eager, n 16", added, at_most=300),
        Row("overhead", "euclidean, n 16", compiled, eager, "eager aatc.attend"),
    ]


def plans(runs: int, quick: bool) -> Iterator[Plan]:
    """Every measurement, in the order of the report."""
    long = 1024 if quick else LONG
    few = max(2, runs // 4)
    for k in kinds():
        n = 256 if quick else k.length
        group = "transport" if k.name == "transport" else "forward"
        bounds = (k.over_sdpa,) if k.under_compiled is None else (k.over_sdpa, k.under_compiled)
        yield Plan(
            group,
            k.name,
            lambda k=k, n=n, group=group: time_kind(group, k, n, runs, not quick, backward=False),
            bounds,
        )
    for k in kinds():
        if k.training is not None:
            n = 256 if quick else k.length
            yield Plan(
                "backward",
                k.name,
                lambda k=k, n=n: time_kind("backward", k, n, runs, not quick, backward=True),
                (k.training,),
            )
    yield Plan("masks", "causal, window", lambda: time_masks(long, few, not quick), (0.65, 0.25) * 2)
    for k in kinds():
        yield Plan("memory", k.name, lambda k=k: peak_memory(k, long, not quick), (200, 500))
    yield Plan("compile", "four layers", lambda: compile_rows(1 if quick else 3), (5, 3))
    for name in large_graphs.GRAPHS:
        yield Plan(
            "compile", f"graph of {name}", lambda name=name: growth_rows(name, 1 if quick else 3, quick), (6, 2.3)
        )
    yield Plan(
        "import",
        "aatc",
        lambda: [Row("import", "aatc after torch", startup.import_time(2 if quick else 5), at_most=0.3)],
        (0.3,),
    )
    yield Plan("overhead", "n 16", lambda: overhead_rows(runs), (300,))


def main(
    only: Annotated[str, typer.Option(help="Only rows whose group or name contains this.")] = "",
    runs: Annotated[int, typer.Option(min=2, help="Rounds of alternating runs.")] = 12,
    quick: Annotated[bool, typer.Option(help="Small sizes and few rounds; nothing is judged.")] = False,
) -> None:
    """Measure aatc against SDPA and torch.compile, and hold it to its bounds."""
    torch.set_num_threads(2)
    runs = min(runs, 3) if quick else runs
    console = Console()
    chosen = [p for p in plans(runs, quick) if only.lower() in f"{p.group} {p.name}".lower()]
    if not chosen:
        known = sorted({word for p in plans(runs, quick) for word in (p.group, p.name)})
        raise typer.BadParameter(f"no measurement is called {only!r}; there are: {', '.join(known)}")
    report = Report({"only": only, "runs": runs, "quick": quick})
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")
        for done, plan in enumerate(chosen):
            progress.update(task, description=f"{done + 1}/{len(chosen)} {plan.group}: {plan.name}")
            report.rows += plan.run()
    report.print(console)
    console.print(f"kept in {os.path.relpath(report.save())}")


if __name__ == "__main__":
    typer.run(main)
