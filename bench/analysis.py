"""Measure the analytical passes on one thread, and hold them to their bounds.

    python -m bench.analysis                     # some minutes
    python -m bench.analysis --only homology     # rows whose group or name contains the word

Absolute bounds are on the median of a few runs. Estimates are compared with what is measured: the row is the larger of
estimate over measured and measured over estimate.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from rich.console import Console

if not __package__:  # run as a file: the checkout takes the place of this folder on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.report import Figure, Report, Row
from bench.timing import alternate, forward, seconds

if TYPE_CHECKING:
    from aatc.passes.analysis.base import AnalysisPass
    from aatc.passes.analysis.capture import CapturedAttention


def head(n: int, seed: int = 0) -> np.ndarray:
    """Weights of one head on random tokens with a bias for near ones, (n, n)."""
    g = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(n, 64, generator=g, dtype=torch.float64) for _ in range(2))
    i = torch.arange(n)
    return torch.softmax(q @ k.T / 8 - (i[:, None] - i).abs() / n, -1).numpy()


def timed(call: Callable[[], object], runs: int) -> Figure:
    return Figure(tuple(seconds(call) for _ in range(runs)), "s")


def persistence(runs: int) -> list[Row]:
    from aatc.analysis.cohomology import attention_persistence

    rng = np.random.default_rng(0)
    flat = np.exp(1e-3 * rng.normal(size=(1024, 1024))) * np.tri(1024)
    rows = []
    for name, a in (("untrained", head(1024)), ("nearly uniform causal", flat / flat.sum(1, keepdims=True))):
        figure = timed(lambda a=a: attention_persistence(a, 1), runs)
        rows.append(Row("cohomology", f"persistent H0 and H1, 1024 tokens, all pairs, {name}", figure, at_most=2))
    return rows


def chains(runs: int) -> list[Row]:
    from aatc.analysis.information import ergodic_analysis, information_flow_metrics

    a = head(4096)
    figure = timed(lambda: (ergodic_analysis(a), information_flow_metrics(a)), runs)
    return [Row("information", "stationary law, gap, entropy, flow, n 4096", figure, at_most=10)]


def homology(runs: int) -> list[Row]:
    from aatc.analysis.cohomology import flag_complex, homology, triangulated_torus

    rng = np.random.default_rng(0)
    graph = np.triu(rng.random((300, 300)) < 0.215, 1)
    rows = []
    for name, x in (
        ("3-torus", triangulated_torus(15, 15, 15)),
        ("random flag complex", flag_complex(graph | graph.T, 4)),
    ):
        figure = timed(lambda x=x: homology(x), runs)
        rows.append(Row("cohomology", f"integral homology, {name}, {sum(x.counts)} simplices", figure, at_most=2))
    return rows


def fundamental_groups(runs: int) -> list[Row]:
    from aatc.analysis.cohomology import flag_complex
    from aatc.analysis.homotopy import fundamental_group

    rng = np.random.default_rng(0)
    rows = []
    for n, density in ((200, 0.503), (1000, 0.02), (450, 0.099)):
        graph = np.triu(rng.random((n, n)) < density, 1)
        x = flag_complex(graph | graph.T, 2)
        figure = timed(lambda x=x: fundamental_group(x), runs)
        edges, triangles = len(x.simplices(1)), len(x.simplices(2))
        rows.append(Row("homotopy", f"π₁, {edges} edges, {triangles} triangles", figure, at_most=1))
    return rows


def zeta(runs: int) -> list[Row]:
    from aatc.analysis.arithmetic import ihara_polynomial

    graph = np.triu(np.random.default_rng(0).random((200, 200)) < 0.3, 1)
    figure = timed(lambda: ihara_polynomial((graph | graph.T).astype(np.int64)), runs)
    return [Row("arithmetic", "Ihara zeta, 200 nodes, exact", figure, at_most=3)]


def capture(runs: int) -> list[Row]:
    import aatc
    from aatc.backends import pipeline
    from aatc.ir.observe import observing
    from aatc.passes.analysis.capture import Recorder
    from aatc.passes.base import Placed
    from aatc.passes.capture_attention import CaptureAttention

    observed = pipeline(extra=[Placed(CaptureAttention(), after="canonicalize")])
    rows = []
    for name, metric in (("lorentz", aatc.metrics.LorentzDistance(lift=True)), ("euclidean", aatc.metrics.Euclidean())):

        def model(q, k, v, metric=metric):
            return aatc.attend(q, k, v, metric=metric)

        inputs = tuple(torch.randn(1, 8, 2048, 64) for _ in range(3))
        plain, shown = forward(aatc.compile(model), inputs), forward(aatc.compile(model, passes=observed), inputs)

        def captured(shown: Callable[[], object] = shown) -> object:
            with observing(Recorder()):
                return shown()

        figures = alternate({"captured": captured, "plain": plain}, 4 * runs)
        title = f"{name}, 8 heads, n 2048"
        rows.append(Row("capture", title, figures["captured"], figures["plain"], "not captured", at_most=1.3))
    return rows


def estimates(runs: int) -> list[Row]:
    import aatc
    from aatc.analysis.run import FAMILIES, pass_of
    from aatc.passes.analysis.base import Study

    @aatc.metric
    def taxicab(q, k):
        return -(q - k).abs().sum()

    euclidean = aatc.metrics.Euclidean()
    heads = {"": {"metric": euclidean}, "causal, ": {"metric": euclidean, "mask": aatc.masks.causal()}}
    heads["taxicab, "] = {"metric": taxicab}
    rows = []
    for kind, options in heads.items():
        for n in (256, 1024):
            torch._dynamo.reset()
            g = torch.Generator().manual_seed(0)
            qkv = tuple(torch.randn(1, 1, n, 64, generator=g) for _ in range(3))
            seen = aatc.analyze(lambda q, k, v, options=options: aatc.attend(q, k, v, **options), qkv, ()).captured[0]
            for name in FAMILIES:
                p = pass_of(name)
                p.of_pattern(seen, 0, 0, Study())  # imports
                took = timed(lambda p=p, seen=seen: p.of_pattern(seen, 0, 0, Study()), runs)
                told = _told(p, seen)
                factor = Figure((max(took.median / told, told / took.median),), "×")
                note = f"estimated {told:.3g} s, measured {took.median:.3g} s"
                rows.append(Row("estimates", f"{name}, {kind}n {n}", factor, at_most=3, note=note))
    return rows


def _told(p: AnalysisPass, seen: CapturedAttention) -> float:
    """The last estimate before the work begins: that of a refusal, where the pattern adds to what was known before."""
    from aatc.passes.analysis.base import CACHE, Study
    from aatc.passes.analysis.result import Cost

    CACHE.clear()
    before = p.estimate_pattern(seen, Study())
    refused = p._pattern(seen, 0, 0, Study(budget=Cost(before.seconds))).get("refused")
    return before.seconds if refused is None else refused.estimate.seconds


MEASUREMENTS = (capture, persistence, homology, fundamental_groups, zeta, chains, estimates)


def main(
    only: Annotated[str, typer.Option(help="Only measurements whose name contains this.")] = "",
    runs: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 5,
) -> None:
    """Measure the analytical passes on one thread."""
    torch.set_num_threads(1)
    console = Console()
    chosen = [m for m in MEASUREMENTS if only.lower() in m.__name__]
    if not chosen:
        raise typer.BadParameter(f"there are: {', '.join(m.__name__ for m in MEASUREMENTS)}")
    report = Report({"only": only, "runs": runs}, "analysis")
    for measure in chosen:
        with console.status(f"measuring {measure.__name__.replace('_', ' ')}"):
            report.rows += measure(runs)
    report.print(console)
    console.print(f"kept in {os.path.relpath(report.save())}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    typer.run(main)
