"""What analytical passes find in a trained model, and what it means.

Trains the hyperbolic vision transformer of digits.py, shows it one held-out image of each digit, and studies the
attention of every head: the shape of the pattern (components, loops), how it moves information, and what of it a
compiler may rely on.

    python examples/analyze_topology.py [--epochs 10]
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import typer
from digits import train
from handwritten import load
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import aatc
from aatc.analysis import Analysis, Result, Undecided


def values(found: Analysis, attention: str, head: int, item: str) -> list[Any]:
    """The values of one item over all images; undecided ones are left out."""
    results = [f.result for f in found.select(item=item, attention=attention, head=head)]
    return [r.value for r in results if isinstance(r, Result) and not isinstance(r.value, Undecided)]


def mean(numbers: list[float]) -> float:
    return statistics.fmean(numbers) if numbers else math.nan


@dataclass
class Head:
    """What was found of one head, means over images. ``loops`` is the z-score of its longest loop against shuffled rows
    or rows of the same entropy, the less of both."""

    name: str
    tokens: int
    entropy: float
    flow: float
    gap: float
    threshold: float
    betti: float
    loops: float

    @staticmethod
    def of(found: Analysis, attention: str, head: int, tokens: int) -> Head:
        betti = values(found, attention, head, "betti_numbers")
        means = [
            mean(values(found, attention, head, item))
            for item in ("mean_row_entropy", "information_flow", "spectral_gap", "connecting_threshold")
        ]
        loops = min(mean(values(found, attention, head, f"longest_h1_z_{null}")) for null in ("shuffled", "entropy"))
        name = f"{attention.removeprefix('attend')}.{head}"
        return Head(name, tokens, *means, mean([b[1] if len(b) > 1 else 0 for b in betti]), loops)


def tail(found: Analysis, head: Head, k: int) -> float:
    """The mass outside the k largest weights of a row, mean over rows and images."""
    layer, number = map(int, head.name.split("."))
    seen = found.captured[layer]
    rows = np.concatenate([seen.whole(number, batch) for batch in range(seen.sizes[0])])
    return float(1 - np.sort(rows, axis=1)[:, -k:].sum(1).mean())


def meaning(found: Analysis, heads: list[Head]) -> list[str]:
    """What the numbers say, one sentence a finding."""
    tokens = heads[0].tokens
    uniform = math.log(tokens)
    said = []

    def named(chosen: list[Head]) -> str:
        return f"{'heads' if len(chosen) > 1 else 'head'} {', '.join(h.name for h in chosen)}"

    if averaging := [h for h in heads if h.entropy > 0.95 * uniform]:
        said.append(f"Nearly averaging, above 95% of the entropy of equal weights: {named(averaging)}.")
    picking = min(heads, key=lambda h: h.entropy)
    k = 2 * round(math.exp(picking.entropy))
    said.append(
        f"Head {picking.name} picks most: a query reads about {math.exp(picking.entropy):.1f} of {tokens} patches. "
        f"Its {k} largest weights leave {tail(found, picking, k):.1%} of the mass here; for any input of this entropy "
        f"it is at most {picking.entropy / math.log(k + 1):.0%}, which is what a proof could rest on."
    )
    slow, fast = min(heads, key=lambda h: h.gap), max(heads, key=lambda h: h.gap)
    said.append(
        f"Along its weights, head {fast.name} mixes fastest (second eigenvalue about {1 - fast.gap:.2f}) and head "
        f"{slow.name} slowest ({1 - slow.gap:.2f}): the slow one keeps regions of the image apart."
    )
    if looped := [h for h in heads if h.loops > 2]:
        said.append(
            f"Loops beyond chance: {named(looped)}, by more than two deviations of rows with the same weights in "
            "random places. There strong weights run around a region instead of through it."
        )
    else:
        said.append("No head's loops last longer than those of the same weights in random places: chance has as many.")
    return said


def report(found: Analysis, images: int, console: Console) -> None:
    heads = [Head.of(found, c.name, h, c.sizes[3]) for c in found.captured for h in range(c.sizes[1])]
    table = Table(title=f"layer.head, means over {images} images, one of each digit")
    for column in ("", "entropy", "flow", "gap", "connected at", "β₁", "z of loops"):
        table.add_column(column, justify="right" if column else "left")
    for h in heads:
        numbers = (f"{h.entropy:.2f}", f"{h.flow:.2f}", f"{h.gap:.2f}", f"{h.threshold:.2f}", f"{h.betti:.1f}")
        table.add_row(h.name, *numbers, f"{h.loops:.1f}")
    console.print(table)
    for sentence in meaning(found, heads):
        console.print(f"• {sentence}")
    console.rule("the program")
    for f in found.select(attention="ir"):
        console.print(f"{f.item.replace('_', ' ')}: {aatc.analysis.value_text(f.result)}")
    residual = max(f.result.verify() for f in found.select("information", "stationary"))
    console.print(f"stationary laws, checked again by an independent function: largest residual {residual:.1e}")


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training.")] = 10,
    images: Annotated[int, typer.Option(min=1, max=10, help="How many digits to look at.")] = 10,
) -> None:
    """Train on digits, then look at the shape of every head's attention."""
    console = Console()
    torch.set_num_threads(1)
    data = load()
    columns = (TextColumn("{task.description:>10}"), BarColumn(), TimeElapsedColumn())
    with Progress(TextColumn("{task.description:>6}"), BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
                  TimeElapsedColumn(), console=console) as progress:  # fmt: skip
        accuracy, _, model = train("aatc", data, progress, epochs)
    console.print(f"accuracy on held-out images: {accuracy:.3f}")
    chosen = torch.stack([data[2][int((data[3] == digit).nonzero()[0])] for digit in range(images)])
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, Any] = {}

        def told(family: str, done: int, total: int) -> None:
            if family not in tasks:
                tasks[family] = progress.add_task(family)
            progress.update(tasks[family], completed=done, total=total)

        found = aatc.analyze(model, chosen, batch=range(images), progress=told)
    report(found, images, console)


if __name__ == "__main__":
    typer.run(main)
