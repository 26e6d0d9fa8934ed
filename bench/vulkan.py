"""Measure a Vulkan device: fused attention by kind and length, and memory, transfers and operators as such.

    python -m bench.vulkan                     # 1k to 16k tokens; few on a software driver
    python -m bench.vulkan --lengths 512 --kinds dot-product,lorentz --no-operators
    python -m bench.vulkan --executor wgpu

A kernel's time is that of its recorded program, without copies of inputs and outputs; a call's with them. Rates count
4 n² D multiplications and additions per head, half of that with a causal mask, whatever else a kind computes. It needs
no network, writes JSON and a roofline plot to bench/results, and ends within eight minutes: what is left then is said.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from bench.kinds import kind, kinds
from bench.report import RESULTS
from bench.timing import seconds

HEADS = 8
#: Lengths on a graphics card, and on a driver that computes on the processor.
LONG, SHORT = (1024, 2048, 4096, 8192, 16384), (256, 512)
WIDTHS = (64, 128)
#: Seconds after which nothing new is begun.
PATIENCE = 420.0
#: Kinds that read captures per pair or transport: their inputs grow with the square of the length.
KINDS = ("dot-product", "euclidean", "alibi", "lorentz", "poincare", "sphere", "fisher-rao")


@dataclass
class Measured:
    """``kernel`` and ``call``: least seconds; ``flops``: of the product of scores and of values; ``moved``: bytes of
    inputs and output; ``cpu``, ``sdpa``: seconds of the native backend, and of torch's attention on the same
    device where torch sees it; ``off``: the largest deviation from double precision."""

    what: str
    n: int
    width: int
    kernel: float
    call: float
    flops: float
    moved: float
    off: float = 0.0
    cpu: float | None = None
    sdpa: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Floating-point operations per second of the kernel."""
        return self.flops / self.kernel


def least(call: Callable[[], object], tries: int = 5, patience: float = 10.0) -> float:
    """Seconds of the fastest of some calls, after one that is not counted."""
    call()
    found, began = [], time.monotonic()
    while len(found) < tries and (not found or time.monotonic() - began < patience):
        found.append(seconds(call))
    return min(found)


def recordings(model: Any) -> list[Any]:
    """The recorded programs of a model's last call."""
    ready = list(model.graphs[-1].program.main.ready.values())
    steps = [s for r in ready[-1:] for s in getattr(r, "steps", ())]
    return [s.loaded.recording for s in steps if hasattr(s, "loaded")]


# --- attention -----------------------------------------------------------------------------------------------
def attention(name: str, n: int, width: int, executor: str) -> Measured:
    """One kind at one length, forward."""
    import aatc

    chosen = kind(name)
    inputs = tuple(x if x.dim() != 4 or x.shape[-1] != 64 else _wide(x, width) for x in chosen.inputs(n))
    torch.compiler.reset()
    model = aatc.compile(chosen.ours, backend="vulkan", fallback=False, executor=executor)
    with torch.no_grad():
        got = model(*inputs)
        programs = recordings(model)
        if not programs or model.graphs[-1].program.beside.reasons:
            raise RuntimeError(f"not on the device: {model.graphs[-1].program.beside.reasons}")
        kernel = least(lambda: [p.run() for p in programs])
        call = least(lambda: model(*inputs), 3)
        native = aatc.compile(chosen.ours, backend="auto")
        cpu = least(lambda: native(*inputs), 3)
        few = [x[:, :, : min(n, 256)] if x.dim() == 4 else x for x in inputs]  # rows of the first tokens, all keys
        exact = chosen.ours(few[0].double(), *(x.double() if x.is_floating_point() else x for x in inputs[1:]))
    pairs = n * (n + 1) / 2 if chosen.causal else n * n
    moved = 4.0 * sum(x.numel() for x in (*inputs, got))
    found = Measured(name, n, width, kernel, call, 4.0 * HEADS * pairs * width, moved, cpu=cpu)
    found.off = float((got[:, :, : exact.shape[2]].double() - exact).abs().max())
    found.sdpa = _sdpa(inputs, chosen.causal)
    return found


def _wide(x: Tensor, width: int) -> Tensor:
    """Inputs of another width that lie on the same manifold: what they have, and zeros."""
    return x if width == x.shape[-1] else F.pad(x, (0, width - x.shape[-1]))


def _sdpa(inputs: tuple[Tensor, ...], causal: bool) -> float | None:
    if not torch.cuda.is_available():
        return None
    q, k, v = (x.cuda() for x in inputs[:3])

    def call() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        torch.cuda.synchronize()

    with torch.no_grad():
        return least(call)


# --- the device as such --------------------------------------------------------------------------------------
class GPUPerformanceTests:
    """What allocation, operators, transfers, synchronisation and a pipeline of both cost on a device."""

    def __init__(self, executor: str = "auto", size: int = 1 << 22):
        from aatc.backends.vulkan.executors import open_executor

        self.executor, self.size = open_executor(executor), size

    def test_memory_allocation(self) -> dict[str, float]:
        """Seconds to take and free an arena, and bytes per second of taking memory."""
        words = self.size
        taken = least(lambda: self.executor.arena(words).close())
        return {"seconds": taken, "bytes_per_second": 4 * words / taken}

    def test_memory_transfers(self) -> dict[str, float]:
        """Bytes per second to the device and back."""
        arena, data = self.executor.arena(self.size), torch.zeros(self.size, dtype=torch.int32)
        try:
            up = least(lambda: arena.write(0, data))
            down = least(lambda: arena.read(0, self.size))
        finally:
            arena.close()
        return {"up_bytes_per_second": 4 * self.size / up, "down_bytes_per_second": 4 * self.size / down}

    def test_tensor_operations(self) -> dict[str, float]:
        """Rates of a sum (bytes per second), a product of matrices (operations per second) and a softmax."""
        import aatc

        n = 512 if self.executor.device.software else 4096
        x, y = torch.randn(n, n), torch.randn(n, n)
        found = {}
        for what, function, amount in (
            ("add_bytes_per_second", lambda a, b: a + b, 12.0 * n * n),
            ("matmul_flops", lambda a, b: a @ b, 2.0 * n**3),
            ("softmax_bytes_per_second", lambda a, b: (a * 1.0).softmax(-1), 8.0 * n * n),
        ):
            torch.compiler.reset()
            model = aatc.compile(function, backend="vulkan", fallback=False, executor=self.executor.name)
            with torch.no_grad():
                model(x, y)
            programs = recordings(model)
            found[what] = amount / least(lambda p=programs: [r.run() for r in p])  # type: ignore[misc]
        return found

    def test_synchronisation(self) -> dict[str, float]:
        """Seconds of an empty submit."""
        arena = self.executor.arena(64)
        recording = self.executor.record(arena, [])
        try:
            return {"seconds": least(recording.run, 20)}
        finally:
            recording.close()
            arena.close()

    def benchmark_operations(self) -> dict[str, dict[str, float]]:
        """All of them."""
        return {
            "allocation": self.test_memory_allocation(),
            "transfers": self.test_memory_transfers(),
            "operators": self.test_tensor_operations(),
            "synchronisation": self.test_synchronisation(),
        }


# --- the report ----------------------------------------------------------------------------------------------
def table(rows: list[Measured]) -> Table:
    out = Table("attention", "n", "D", "kernel", "rate", "with copies", "CPU / kernel", "SDPA / kernel", "off")
    for r in rows:
        per = [f"{x / r.kernel:.2f}" if x is not None else "-" for x in (r.cpu, r.sdpa)]
        rate = f"{r.rate / 1e12:.3f} TFLOP/s" if r.rate > 1e11 else f"{r.rate / 1e9:.2f} GFLOP/s"
        times = [f"{1e3 * x:.4g} ms" for x in (r.kernel, r.call)]
        out.add_row(r.what, str(r.n), str(r.width), times[0], rate, times[1], *per, f"{r.off:.1e}")
    return out


def plot(rows: list[Measured], bandwidth: float, path: Path) -> None:
    """Rates over operations per byte that must be moved, below what the memory and the fastest kernel allow."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 5))
    for name in dict.fromkeys(r.what for r in rows):
        mine = [r for r in rows if r.what == name]
        ax.plot([r.flops / r.moved for r in mine], [r.rate / 1e9 for r in mine], "o-", label=name)
    top = max(r.rate for r in rows) / 1e9
    xs = [min(r.flops / r.moved for r in rows) / 4, max(r.flops / r.moved for r in rows) * 2]
    ax.plot(xs, [min(top, x * bandwidth / 1e9) for x in xs], "k--", label="memory, as measured by a sum")
    ax.set(xscale="log", yscale="log", xlabel="operations per byte of inputs and outputs", ylabel="GFLOP/s")
    ax.legend(fontsize="small")
    fig.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(fig)


def wanted(names: list[str], lengths: list[int]) -> Iterator[tuple[str, int, int]]:
    """Short ones first, so that every kind has a figure when time is up."""
    for n in sorted(lengths):
        for width in WIDTHS:
            for name in names:
                yield name, n, width


def main(
    lengths: Annotated[str, typer.Option(help="Comma-separated; by default what suits the device.")] = "",
    names: Annotated[str, typer.Option("--kinds", help="Comma-separated kinds of attention.")] = ",".join(KINDS),
    executor: Annotated[str, typer.Option(help="auto, wgpu, native or kompute.")] = "auto",
    operators: Annotated[bool, typer.Option(help="Also memory, transfers and operators.")] = True,
    patience: Annotated[float, typer.Option(help="Seconds after which nothing new is begun.")] = PATIENCE,
) -> None:
    """Measure a Vulkan device."""
    from aatc.backends.vulkan.executors import open_executor

    console, began = Console(), time.monotonic()
    if not console.is_terminal:
        console = Console(width=130)
    opened = open_executor(executor)
    device = opened.device
    known = {k.name for k in kinds()}
    asked = [x for x in names.split(",") if x]
    if strange := [x for x in asked if x not in known]:
        raise typer.BadParameter(f"no kind {strange[0]!r}; there are {', '.join(sorted(known))}", param_hint="--kinds")
    try:
        chosen = [int(x) for x in lengths.split(",")] if lengths else list(SHORT if device.software else LONG)
    except ValueError:
        raise typer.BadParameter(f"{lengths!r} are no lengths", param_hint="--lengths") from None
    console.print(f"{device.name}, {device.driver}, executor {opened.name}")
    rows: list[Measured] = []
    left: list[str] = []
    figures = GPUPerformanceTests(opened.name).benchmark_operations() if operators else {}
    plan = list(wanted(asked, chosen))
    with Progress(
        BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    ) as p:
        task = p.add_task("", total=len(plan))
        for name, n, width in plan:
            p.update(task, description=f"{name}, n {n}, D {width}")
            if time.monotonic() - began > patience:
                left.append(f"{name} n {n} D {width}: no time was left")
            else:
                try:
                    rows.append(attention(name, n, width, opened.name))
                except Exception as error:  # the others are measured
                    left.append(f"{name} n {n} D {width}: {str(error).partition(chr(10))[0]}")
            p.advance(task)
    console.print(table(rows))
    for what, numbers in figures.items():
        console.print(f"{what}: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
    for line in left:
        console.print(f"left out: {line}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"vulkan-{time.strftime('%Y%m%d-%H%M%S')}.json"
    seen = {"name": device.name, "driver": device.driver, "executor": opened.name}
    seen |= {"host": platform.processor(), "torch": torch.__version__}
    kept = {"device": seen, "rows": [asdict(r) for r in rows], "operators": figures, "left": left}
    path.write_text(json.dumps(kept, indent=1))
    if rows:
        bandwidth = figures.get("operators", {}).get("add_bytes_per_second", 0.0)
        plot(rows, bandwidth, path.with_suffix(".png"))
    console.print(f"{time.monotonic() - began:.0f} s; kept in {path}")


if __name__ == "__main__":
    typer.run(main)
