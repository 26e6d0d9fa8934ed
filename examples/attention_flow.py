"""Heat flow of attention: a trained pattern is smoothed over the image, and what that costs is measured.

One layer of attention over the patches of handwritten digits is trained. Its rows are probabilities, points of a curved
space, and the harmonic map heat flow moves each towards those of the neighbouring patches: energy falls, entropy rises.
The model then classifies with the smoothed patterns. Pictures are written to a folder.

    python examples/attention_flow.py --output pictures
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from handwritten import Data, fit, load, steps
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import aatc
from aatc.geometry.flows.attention_flow import AttentionFlow, AttentionTrajectory
from aatc.metrics import DotProduct
from aatc.report import attention_figure, flow_figure
from aatc.validation import FlowValidation

PATCH, WIDTH = 2, 32
SIDE = 8 // PATCH
Pattern = Callable[[Tensor], Tensor]


class PatchAttention(nn.Module):
    """Images ``(B, 8, 8)`` to logits ``(B, 10)``, by one head of attention over the 4×4 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.place = nn.Parameter(0.1 * torch.randn(SIDE * SIDE, WIDTH))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Sequential(nn.Linear(SIDE * SIDE * WIDTH, 64), nn.GELU(), nn.Linear(64, 10))

    def parts(self, images: Tensor) -> list[Tensor]:
        x = self.embed(images[:, None]).flatten(2).mT + self.place
        return list(self.qkv(x)[:, None].chunk(3, -1))

    def pattern(self, images: Tensor) -> Tensor:
        """The rows of probabilities, (B, 16, 16): attention to the identity."""
        q, k, _ = self.parts(images)
        eye = torch.eye(SIDE * SIDE).expand(*k.shape[:-1], SIDE * SIDE)
        return aatc.attend(q, k, eye, metric=DotProduct())[:, 0]

    def forward(self, images: Tensor, change: Pattern | None = None) -> Tensor:
        """The logits, with the pattern replaced by ``change`` of it if that is given."""
        q, k, v = self.parts(images)
        o = aatc.attend(q, k, v, metric=DotProduct()) if change is None else change(self.pattern(images))[:, None] @ v
        return self.head(o[:, 0].flatten(1))


def train(model: PatchAttention, data: Data, epochs: int, console: Console) -> None:
    columns = (TextColumn("training"), BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=steps(data, epochs), loss=float("nan"))
        fit(model, data, epochs, lambda loss: progress.update(task, advance=1, loss=loss))


def flowed(flow: AttentionFlow, patterns: Tensor, time: float, count: int) -> AttentionTrajectory:
    """The flow of patterns (..., 16, 16), as rows on the 4×4 grid of their queries."""
    rows = patterns.double()
    rows = (rows / rows.sum(-1, keepdim=True)).unflatten(-2, (SIDE, SIDE))
    return flow.evolve_attention(rows, time, count, every=max(count // 8, 1))


def entropy(rows: Tensor) -> float:
    """The mean over rows, in nats."""
    return torch.special.entr(rows).sum(-1).mean().item()


def measure(model: PatchAttention, data: tuple[Tensor, Tensor], times: list[float], console: Console) -> None:
    images, labels = data
    flow = AttentionFlow("simplex", spacing=(1.0, 1.0))
    table = Table(title=f"attention smoothed over the image, {len(labels)} held-out digits")
    for column in ("flow time", "energy", "entropy of a row (nats)", "accuracy"):
        table.add_column(column)
    patterns = model.pattern(images)
    for time in times:
        count = 1 + int(time / (0.9 * flow.step_bound(patterns[0].double().unflatten(0, (SIDE, SIDE)))))
        moved = patterns if time == 0 else flowed(flow, patterns, time, count).final.flatten(-3, -2).float()
        energy = flowed(flow, moved, 1e-3, 1).energies[0].mean().item()
        right = model(images, lambda _, moved=moved: moved).argmax(-1) == labels
        table.add_row(f"{time:g}", f"{energy:.4f}", f"{entropy(moved):.3f}", f"{right.float().mean().item():.3f}")
    console.print(table)
    console.print("Where the accuracy stays, the model did not need the detail that the flow took away.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("pictures"), help="the folder for pictures")
    parser.add_argument("--quick", action="store_true", help="a short training, for a first look")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    data = load()
    held, truth = data[2:]
    model = PatchAttention()
    train(model, data, 2 if options.quick else 20, console)
    model.eval()
    with torch.no_grad():
        measure(model, (held, truth), [0.0, 1.0] if options.quick else [0.0, 0.1, 0.3, 1.0, 3.0], console)
        flow = AttentionFlow("simplex", spacing=(1.0, 1.0))
        trajectory = flowed(flow, model.pattern(held[:1])[0], 0.8, 32)
    verdict = FlowValidation().check_energy_monotonicity(trajectory.energies, lambda energy: energy, 0.0)
    console.print(str(verdict))
    rows = trajectory.fields.flatten(1, 2)
    attention_figure(
        rows[0], rows[-1], trajectory.energies, time=0.8, title="attention of one digit and its heat flow"
    ).savefig(options.output / "attention_flow.png", dpi=130)
    flat = AttentionTrajectory(trajectory.times, rows, trajectory.energies)
    flow_figure(flat, title="heat flow of attention rows").savefig(options.output / "attention_snapshots.png", dpi=130)
    console.print(f"pictures: {', '.join(sorted(p.name for p in options.output.glob('*.png')))} in {options.output}")


if __name__ == "__main__":
    main()
