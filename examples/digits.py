"""A small vision transformer that compares image patches by hyperbolic distance, eager and compiled.

Queries and keys are points of the hyperboloid, turned by the patch's row and column (a 2-D rotary
connection) before their distance is taken. The model is trained on handwritten digits twice from the same
seed: eagerly, with the attention written out in PyTorch, and through ``aatc.compile``. Then that attention
is measured at longer lengths against plain PyTorch and ``torch.compile``, and what the compiler made of it
is printed.

    python examples/digits.py
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from handwritten import Data, accuracy, fit, load, steps
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import aatc
from aatc.connections import Rotary
from aatc.metrics import LorentzDistance

PATCH, WIDTH, HEADS, LAYERS = 2, 64, 4, 2
EPOCHS = 30
BETA, BASE = 4.0, 100.0  # the distance's weight; the slowest turn, for grids of a few patches a side
SYSTEMS = ("eager", "torch.compile", "aatc")
MIB = 1 << 20
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def grid(side: int) -> Tensor:
    """Row and column of each cell of a ``side`` × ``side`` grid, ``(side², 2)``."""
    axis = torch.arange(side)
    return torch.cartesian_prod(axis, axis)


def hyperbolic_attention(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    """Attention by the distance between points of the hyperboloid over spatial coordinates q and k."""
    return aatc.attend(q, k, v, metric=LorentzDistance(beta=BETA, lift=True), connection=Rotary(positions, base=BASE))


def written_out(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    """The same in plain PyTorch, which is what eager and ``torch.compile`` are measured with."""

    def turn(x: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        share = one.shape[-1] // 2
        speed = BASE ** (-torch.arange(share) / share)
        angle = (positions[:, :, None] * speed).flatten(1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((one * cos - other * sin, one * sin + other * cos), -1)

    q, k = turn(q), turn(k)
    q_time, k_time = (torch.sqrt(1 + (x * x).sum(-1, keepdim=True)) for x in (q, k))
    cosh = q_time @ k_time.mT - q @ k.mT
    return torch.softmax(-BETA * torch.acosh(cosh.clamp(min=1.0)), -1) @ v


class Layer(nn.Module):
    def __init__(self, attend: Attention) -> None:
        super().__init__()
        self.attend = attend
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        o = self.attend(q, k, v, positions)
        x = x + self.out(o.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.between(x))


class DigitTransformer(nn.Module):
    """Images ``(B, 8, 8)`` to logits ``(B, 10)``."""

    positions: Tensor

    def __init__(self, attend: Attention) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, 3, PATCH, padding=1)  # patches overlap by a pixel
        self.layers = nn.ModuleList(Layer(attend) for _ in range(LAYERS))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10))
        self.register_buffer("positions", grid(8 // PATCH))

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images[:, None]).flatten(2).mT
        for layer in self.layers:
            x = layer(x, self.positions)
        return self.head(x.mean(1))


def train(name: str, data: Data, progress: Progress, epochs: int = EPOCHS) -> tuple[float, float, nn.Module]:
    """Accuracy on the held-out images, the seconds that training took, and the model."""
    torch.manual_seed(0)
    model = DigitTransformer(hyperbolic_attention if name == "aatc" else written_out)
    run = aatc.compile(model) if name == "aatc" else model
    task = progress.add_task(name, total=steps(data, epochs), loss=math.nan)
    start = time.perf_counter()
    fit(run, data, epochs, lambda loss: progress.update(task, advance=1, loss=loss))
    seconds = time.perf_counter() - start
    run.eval()
    return accuracy(run, data), seconds, model


def attention_inputs(n: int) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return (*(0.5 * torch.randn(1, HEADS, n, 64) for _ in range(3)), grid(math.isqrt(n)))


def resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (at most, so far) of this process in bytes, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def measure_here(system: str, n: int) -> dict[str, float]:
    """Least time of a forward pass in ms, and MiB at the peak above inputs and output."""
    torch.set_num_threads(2)
    attend: Attention = {
        "eager": lambda: written_out,
        "torch.compile": lambda: torch.compile(written_out, dynamic=False),
        "aatc": lambda: aatc.compile(hyperbolic_attention),
    }[system]()
    inputs = attention_inputs(n)
    with torch.no_grad():
        attend(*attention_inputs(64))  # loads the compiler and what it needs
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident
        base = resident("VmRSS")
        out = attend(*inputs)
        peak = resident("VmHWM") - base - out.nbytes
        times = []
        for _ in range(3):
            start = time.perf_counter()
            attend(*inputs)
            times.append(time.perf_counter() - start)
    return {"ms": 1e3 * min(times), "MiB": peak / MIB}


def measure(system: str, n: int) -> dict[str, float]:
    """The same from a fresh process, so that no measurement sees the memory of another."""
    command = [sys.executable, __file__, "--measure", system, str(n)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"{system} at n {n} failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def train_both(console: Console) -> None:
    torch.set_num_threads(1)  # a second thread gains nothing on sixteen patches
    data = load()
    columns = (TextColumn("{task.description:>6}"), BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        results = {name: train(name, data, progress) for name in ("eager", "aatc")}
    table = Table(title=f"{len(data[3])} held-out digits, the same seed")
    for column in ("", "accuracy", "training"):
        table.add_column(column)
    for name, (share, seconds, _) in results.items():
        table.add_row(name, f"{share:.3f}", f"{seconds:.1f} s")
    console.print(table)


def compare(console: Console) -> None:
    table = Table(title=f"this attention forward, {HEADS} heads of width 64, fresh process each")
    for column in ("", "n", "time", "peak memory above inputs and output"):
        table.add_column(column)
    with console.status("measuring") as status:
        for n in (1024, 4096):
            for system in SYSTEMS:
                status.update(f"measuring {system} at n {n}")
                try:
                    figures = measure(system, n)
                    table.add_row(system, str(n), f"{figures['ms']:.1f} ms", f"{figures['MiB']:.0f} MiB")
                except RuntimeError as error:  # torch.compile needs a C++ compiler, which may not be there
                    table.add_row(system, str(n), "-", str(error))
            table.add_section()
    console.print(table)


def look_inside(console: Console) -> None:
    compiled = aatc.compile(hyperbolic_attention)
    inputs = attention_inputs(1024)
    error = (compiled(*inputs) - written_out(*inputs)).abs().max().item()
    console.print(f"largest difference from plain PyTorch at n 1024: {error:.1e}")
    texts = {stage: str(compiled.ir(stage)) for stage in compiled.stages}
    for level, op in (("geo IR, fused", "geo.attend"), ("tile IR, forward", "tile.for")):
        stage = next((s for s, text in reversed(texts.items()) if op in text), None)
        if stage is not None:
            function = next(part for part in texts[stage].split("\n\n") if op in part)
            console.rule(f"{level} (after {stage})")
            # Each line ends with its place in this file, which is left out here.
            text = re.sub(r" loc\(.*$", "", function, flags=re.MULTILINE)
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    console = Console()
    train_both(console)
    compare(console)
    look_inside(console)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure_here(sys.argv[2], int(sys.argv[3]))))
    else:
        main()
