"""Three models told apart by their heads: trained on digits, Llama-shaped with random weights, and an induction toy.

The first is the hyperbolic vision transformer of digits.py. The second has the parts of a Llama (RMSNorm, rotary
positions, grouped keys, SwiGLU) and weights as they are drawn. The third, two layers of attention alone, is trained in
seconds to go on with sequences that repeat, for which it has to grow an induction head: one that looks for what
followed the current token before. The latter two are ordinary PyTorch, seen as they run. A page for each shows every
head.

    python examples/heads_of_models.py [--output .]
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from digits import train
from handwritten import load
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import aatc
from aatc.analysis import Analysis, Result

VOCABULARY, TOKENS, WIDTH, HEADS = 16, 40, 64, 4
FAMILIES = ("heads", "topology", "cohomology", "information")


class Attention(nn.Module):
    """Causal attention; positions are added to what queries and keys are made of, not to values."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qk, self.v = nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in (*self.qk(x + positions).chunk(2, -1), self.v(x))
        )
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(o.transpose(1, 2).flatten(-2))


class InductionToy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.unembed = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.positions = nn.Parameter(0.5 * torch.randn(TOKENS, WIDTH))
        self.layers = nn.ModuleList(Attention(2) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x, self.positions[: ids.shape[1]])
        return self.unembed(x)


def repeating(count: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Sequences of random tokens that repeat after a random length, and that length."""
    length = int(torch.randint(TOKENS // 4, TOKENS // 2 + 1, (1,), generator=generator))
    part = torch.randint(VOCABULARY, (count, length), generator=generator)
    return part.repeat(1, -(-TOKENS // length))[:, :TOKENS], length


def train_induction(steps: int, progress: Progress) -> InductionToy:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = InductionToy()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    task = progress.add_task("induction", total=steps, loss=math.nan)
    for _ in range(steps):
        ids, length = repeating(32, generator)
        loss = F.cross_entropy(model(ids)[:, length:-1].flatten(0, 1), ids[:, length + 1 :].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.update(task, advance=1, loss=loss.item())
        if loss < 0.05:
            break
    progress.update(task, completed=steps)
    return model


class LlamaLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = WIDTH // HEADS
        self.before, self.between = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.o = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.v = (nn.Linear(WIDTH, WIDTH // 2, bias=False) for _ in range(2))  # two heads share a key
        self.gate, self.up = (nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.angle = torch.arange(TOKENS)[:, None] * 10000.0 ** (-torch.arange(width // 2) / (width // 2))

    def turn(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        cos, sin = self.angle.cos(), self.angle.sin()
        return torch.cat((one * cos - other * sin, one * sin + other * cos), -1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        q, k, v = (
            f(y).unflatten(-1, (heads, -1)).transpose(1, 2)
            for f, heads in ((self.q, HEADS), (self.k, HEADS // 2), (self.v, HEADS // 2))
        )
        o = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True, enable_gqa=True)
        x = x + self.o(o.transpose(1, 2).flatten(-2))
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class LlamaShaped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(LlamaLayer() for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return x


# --- what it means -----------------------------------------------------------------------------------------
def value(found: Analysis, attention: str, head: int, item: str) -> float:
    """The mean over batch elements of what was found; NaN where nothing was."""
    results = [f.result for f in found.select(item=item, attention=attention, head=head)]
    numbers = [r.value for r in results if isinstance(r, Result)]
    return statistics.fmean(numbers) if numbers else math.nan


def kind(found: Analysis, attention: str, head: int) -> str:
    """What a head does, by where its weight goes."""
    if value(found, attention, head, "induction_excess") > 0.3:
        return "induction"
    if value(found, attention, head, "previous_token_mass") > 0.5:
        return "previous token"
    if value(found, attention, head, "sink_mass") > 0.5:
        return "sink"
    if value(found, attention, head, "effective_context_share") > 0.8:
        return "averaging"
    return "mixed"


def beyond_chance(found: Analysis, attention: str, head: int) -> bool:
    """Whether the longest loop stands out of both null models."""
    z = [value(found, attention, head, f"longest_h1_z_{model}") for model in ("shuffled", "entropy")]
    return min(z) > 3


def verdict(found: Analysis) -> str:
    """One sentence on a model."""
    heads = [(n, c.name, h) for n, c in enumerate(found.captured) for h in range(c.sizes[1])]
    kinds = {(n, h): kind(found, name, h) for n, name, h in heads}
    loops = [f"{n}.{h}" for n, name, h in heads if beyond_chance(found, name, h)]
    shape = f" Loops beyond chance: {', '.join(loops)}." if loops else " No head has loops beyond chance."
    previous = [n for (n, _), k in kinds.items() if k == "previous token"]
    circuit = [(n, h) for (n, h), k in kinds.items() if k == "induction" and any(m < n for m in previous)]
    if circuit:
        named = ", ".join(f"{n}.{h}" for n, h in circuit)
        return f"An induction circuit: a previous-token head in layer {min(previous)}, induction in {named}.{shape}"
    if all(k == "averaging" for k in kinds.values()):
        return f"Nothing learned yet: every head nearly averages over what it may see.{shape}"
    sharpest = min(value(found, name, h, "effective_context_share") for _, name, h in heads)
    return (
        "Heads that choose by content, none by a fixed offset or by repetition: the sharpest reads "
        f"{sharpest:.0%} of its keys' worth.{shape}"
    )


def table_of(title: str, found: Analysis) -> Table:
    table = Table(title=title, title_justify="left")
    columns = {
        "previous": "previous_token_mass", "induction": "induction_excess", "sink": "sink_mass",
        "context": "effective_context_share", "steps": "mean_absorption_time",
        "z loops": "longest_h1_z_shuffled",
    }  # fmt: skip
    for column in ("head", *columns, "kind"):
        table.add_column(column, justify="left" if column in ("head", "kind") else "right", no_wrap=True)
    for n, c in enumerate(found.captured):
        for h in range(c.sizes[1]):
            numbers = [value(found, c.name, h, item) for item in columns.values()]
            cells = ("–" if math.isnan(x) else f"{x:.2f}" for x in numbers)
            table.add_row(f"{n}.{h}", *cells, kind(found, c.name, h))
    return table


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training on digits.")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training on repetitions, at most.")] = 1500,
    output: Annotated[Path, typer.Option(help="Where the pages go.")] = Path(),
) -> None:
    """Train two models, look at three, and say what tells them apart."""
    console = Console()
    torch.set_num_threads(1)
    data = load()
    columns = (TextColumn("{task.description:>9}"), BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        digits = train("aatc", data, progress, epochs)[2]
        toy = train_induction(steps, progress)
    torch.manual_seed(1)
    ids, _ = repeating(3, torch.Generator().manual_seed(1))
    elements = range(3)
    models = {
        "trained digits": (digits, data[2][:3]),
        "Llama-shaped, random weights": (LlamaShaped(), ids),
        "induction toy": (toy, ids),
    }
    output.mkdir(parents=True, exist_ok=True)
    for title, (model, inputs) in models.items():
        with console.status(title):
            found = aatc.analyze(model, inputs, FAMILIES, batch=elements)
        console.print(table_of(title, found))
        console.print(f"• {verdict(found)}")
        path = output / f"{title.replace(',', '').replace(' ', '_').lower()}.html"
        found.html(path, title)
        console.print(f"  {path}")


if __name__ == "__main__":
    typer.run(main)
