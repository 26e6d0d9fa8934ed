"""What training leaves in the attention of a model: every analytical family on trained digits and on random weights.

The first model is the hyperbolic vision transformer of digits.py, trained. The second sees the same images and has as
many layers, heads and channels, and weights as they are drawn: the ViT of transformers or, where that is not installed,
PyTorch's own encoder. It is ordinary PyTorch, seen as it runs. What every head of one says otherwise than every head of
the other is printed, family by family, and a page for each model shows the rest.

    python examples/analyze_digits.py [--epochs 10] [--output .]
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from digits import HEADS, LAYERS, PATCH, WIDTH, train
from handwritten import load
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import aatc
from aatc.analysis import Analysis, Result
from aatc.analysis.items import item_of

SHOWN = 4  # of each family, what is farthest apart


class Encoder(nn.Module):
    """Patches of images (B, 8, 8), places added, through PyTorch's encoder with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.places = nn.Parameter(0.02 * torch.randn((8 // PATCH) ** 2, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(self.embed(images[:, None]).flatten(2).mT + self.places)


class Pretrained(nn.Module):
    """The ViT of transformers on images (B, 8, 8), with random weights: nothing is loaded."""

    def __init__(self) -> None:
        from transformers import ViTConfig, ViTModel

        super().__init__()
        self.vit = ViTModel(
            ViTConfig(
                hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=2 * WIDTH,
                image_size=8, patch_size=PATCH, num_channels=1,
            ),
            add_pooling_layer=False,
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(pixel_values=images[:, None]).last_hidden_state


def untrained() -> tuple[str, nn.Module]:
    torch.manual_seed(1)
    try:
        return "ViT of transformers, random weights", Pretrained()
    except ImportError:
        return "encoder of PyTorch, random weights (transformers is not installed)", Encoder()


@dataclass(frozen=True)
class Difference:
    """The ranges over heads of an item's means over images, which do not meet; ``apart``: the gap between them over
    how wide they are."""

    family: str
    item: str
    trained: tuple[float, float]
    random: tuple[float, float]
    apart: float


def per_head(found: Analysis) -> dict[tuple[str, str], list[float]]:
    """Every head's mean over images of what is a number, by family and item."""
    numbers: dict[tuple[str, str], dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for f in found.findings:
        value: Any = f.result.value if isinstance(f.result, Result) else None
        if f.head >= 0 and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            numbers[f.family, f.item][f.subject, f.head].append(float(value))
    return {place: [statistics.fmean(v) for v in heads.values()] for place, heads in numbers.items()}


def differences(trained: Analysis, random: Analysis) -> list[Difference]:
    """Of each family what tells every head of one model from every head of the other, the farthest apart first."""
    one, two = per_head(trained), per_head(random)
    found: dict[str, list[Difference]] = defaultdict(list)
    for place in one.keys() & two.keys():
        a, b = ((min(x), max(x)) for x in (one[place], two[place]))
        gap, width = max(a[0] - b[1], b[0] - a[1]), max(a[1] - a[0], b[1] - b[0])
        if gap > 0:
            found[place[0]].append(Difference(*place, a, b, gap / width if width else math.inf))
    return [d for family in sorted(found) for d in sorted(found[family], key=lambda d: (-d.apart, d.item))[:SHOWN]]


def table_of(found: list[Difference]) -> Table:
    table = Table(title="what every head of one model says otherwise than every head of the other")
    for column in ("family", "item", "trained", "random", "unit"):
        table.add_column(column, justify="right" if column in ("trained", "random") else "left")
    last = ""
    for d in found:
        ranges = (f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}" for low, high in (d.trained, d.random))
        table.add_row("" if d.family == last else d.family, d.item.replace("_", " "), *ranges, item_of(d.item).unit)
        last = d.family
    return table


def verdict(found: list[Difference]) -> list[str]:
    """The farthest of each family in a sentence, with what the item says."""
    said, seen = [], set()
    for d in found:
        if d.family not in seen:
            seen.add(d.family)
            way = "more" if d.trained[0] > d.random[1] else "less"
            said.append(f"{d.family}, {d.item.replace('_', ' ')}: {way} after training. {item_of(d.item).says}")
    return said


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training.")] = 10,
    images: Annotated[int, typer.Option(min=1, max=10, help="Held-out images to look at.")] = 2,
    output: Annotated[Path, typer.Option(help="Where the pages go.")] = Path(),
) -> None:
    """Train a model of digits, analyse it and one with random weights, and say what differs."""
    console = Console()
    torch.set_num_threads(1)
    data = load()
    columns = (TextColumn("{task.description:>9}"), BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        digits = train("aatc", data, progress, epochs)[2]
    output.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, (title, model) in {"trained": ("digits, trained", digits), "random": untrained()}.items():
        bar = Progress(TextColumn("{task.description:>14}"), BarColumn(), MofNCompleteColumn(), console=console)
        start = time.perf_counter()
        with bar:
            tasks: dict[str, Any] = {}

            def step(family: str, done: int, total: int, bar: Progress = bar, tasks: dict[str, Any] = tasks) -> None:
                if family not in tasks:
                    tasks[family] = bar.add_task(family, total=total)
                bar.update(tasks[family], completed=done)

            found[name] = aatc.analyze(model, data[2][:images], batch=range(images), progress=step)
        path = output / f"digits_{name}.html"
        found[name].html(path, title)
        console.print(f"{title}: {len(found[name].findings)} findings in {time.perf_counter() - start:.1f} s, {path}")
    apart = differences(found["trained"], found["random"])
    console.print(table_of(apart))
    for sentence in verdict(apart):
        console.print(f"• {sentence}")


if __name__ == "__main__":
    typer.run(main)
