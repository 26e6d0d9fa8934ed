"""A digit classifier whose attention is made of quantum states, trained through ``aatc.compile``.

Every patch of an image has places on a curved manifold of states; patches attend by the Born probabilities of their
Fubini-Study distances, what they bring interferes, and the probabilities flow one step of heat over the patches. The
script prints the accuracy on held-out digits, and what is measured of weights, amplitudes, manifold and flow, before
and after training.

    python examples/quantum_attention.py
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from handwritten import Data, accuracy, fit, load, steps
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import aatc
from aatc.nn import QuantumGeometricAttention

PATCH, WIDTH, HEADS = 2, 64, 4
RANK, MANIFOLD = 4, 8  # directions along which the metric changes; dimension of the manifold
EPOCHS = 15


class DigitStates(nn.Module):
    """Images ``(B, 8, 8)`` to logits ``(B, 10)``, by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, 3, PATCH, padding=1)  # patches overlap by a pixel
        self.place = nn.Parameter(0.02 * torch.randn((8 // PATCH) ** 2, WIDTH))
        self.attention = QuantumGeometricAttention(WIDTH, HEADS, 0.0, RANK, MANIFOLD, num_layers=1)
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10))

    def tokens(self, images: Tensor) -> Tensor:
        return self.embed(images[:, None]).flatten(2).mT + self.place

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images)
        x = x + self.attention(self.before(x))
        return self.head((x + self.mlp(self.between(x))).mean(1))


def train(model: DigitStates, data: Data, step: Callable[[float], object]) -> Any:
    """Trains ``model`` and gives its compiled form; ``step`` is told the loss of every batch."""
    run = aatc.compile(model)
    fit(run, data, EPOCHS, step)
    return run


@torch.no_grad()
def measure(model: DigitStates, data: Data) -> dict[str, float]:
    """The attention's metrics over the held-out images."""
    return model.attention(model.before(model.tokens(data[2])), return_metrics=True)[1]


def main() -> None:
    console = Console()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the operations are too small to share
    data, model = load(), DigitStates()
    before = {"accuracy": accuracy(model, data), **measure(model, data)}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
    )
    start = time.perf_counter()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=steps(data, EPOCHS), loss=math.nan)
        run = train(model, data, lambda loss: progress.update(task, advance=1, loss=loss))
    seconds = time.perf_counter() - start
    after = {"accuracy": accuracy(model, data), **measure(model, data)}

    table = Table(title="held-out digits")
    for name in ("", "before training", "after"):
        table.add_column(name, justify="left" if not name else "right")
    for name in before:
        table.add_row(name.replace("_", " "), f"{before[name]:.3g}", f"{after[name]:.3g}")
    console.print(table)
    console.print(f"trained in {seconds:.1f} s; {len(run.explain().fallbacks)} parts were left to PyTorch")
    for attention in run.explain().attentions:
        console.print(f"{attention.name} runs as {attention.runs_as}")


if __name__ == "__main__":
    main()
