"""Patterns out of nothing: Turing's instability, seeded with a handwritten digit, and diagrams of bifurcations.

Schnakenberg's reaction rests until one species spreads fast enough; then waves of one length grow, which linear theory
predicts. The simulation starts from the rest plus a faint digit. The same instability is a pitchfork in a diagram of
steady patterns over the ratio of the diffusions; a nerve cell gives a diagram with Hopf points. Pictures are written to
a folder.

    python examples/turing.py --output pictures
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from aatc.geometry.dynamics.bifurcation import BifurcationDiagram, bifurcation_diagram
from aatc.geometry.dynamics.continuation import ContinuationSettings
from aatc.geometry.dynamics.pattern_dynamics import PatternDynamics
from aatc.geometry.dynamics.reaction_diffusion import Grid
from aatc.geometry.dynamics.reaction_terms import FitzHughNagumo, Schnakenberg
from aatc.report import Dispersion, bifurcation_figure, radial_spectrum, turing_figure

REACTION, SPREAD = Schnakenberg(a=0.1, b=0.9), (1.0, 10.0)


def digit(kind: int) -> Tensor:
    """The first image of a digit, (8, 8), ink between −½ and ½."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.tensor(digits.images[digits.target.tolist().index(kind)]) / 16 - 0.5


def simulate(size: int, side: float, duration: float, console: Console, output: Path) -> None:
    grid = Grid((side, side))
    dynamics = PatternDynamics(REACTION, torch.tensor(SPREAD, dtype=torch.float64), grid)
    rest = REACTION.steady_states()[0]
    seed = F.interpolate(digit(3)[None, None], size=(size, size), mode="bilinear")[0, 0]
    state = rest[:, None, None] + 0.01 * torch.stack((seed, torch.zeros_like(seed)))
    dispersion = Dispersion.of(dynamics.system, rest)
    predicted = dispersion.conditions
    start = time.perf_counter()
    with console.status("growing a pattern"):
        pattern = dynamics.evolve(state, duration, 0.1, every=100)
    seconds = time.perf_counter() - start
    found = radial_spectrum(pattern[0], grid).peak
    rate = float(dynamics.system.rate(pattern).abs().max())
    likeness = float(torch.corrcoef(torch.stack((pattern[0].flatten(), seed.flatten())))[0, 1])
    table = Table(title=f"Schnakenberg on {size}×{size}, a box of {side:g}, until t = {duration:g} ({seconds:.1f} s)")
    table.add_column("")
    table.add_column("value")
    rows = {
        "diffusion ratio, and the ratio at which patterns begin": f"{SPREAD[1] / SPREAD[0]:g}, "
        f"{predicted.critical_ratio:.3f}",
        "fastest wavelength, by linear theory": f"{predicted.wavelength:.3f}",
        "growing wavelengths, by linear theory": f"{2 * math.pi / predicted.band[1]:.2f} … "
        f"{2 * math.pi / predicted.band[0]:.2f}",
        "strongest wavelength of the pattern": f"{2 * math.pi / found:.3f}",
        "largest rate left": f"{rate:.1e}",
        "correlation with the digit it grew from": f"{likeness:+.3f}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    console.print("The wavelength is that of the reaction and the diffusions; the digit only breaks the symmetry.")
    picture = turing_figure(pattern, grid, dispersion=dispersion, title="Schnakenberg, grown from a faint 3")
    picture.savefig(output / "turing_pattern.png", dpi=130)


def pattern_diagram(points: int) -> tuple[BifurcationDiagram, float]:
    """Steady patterns on a line half a critical wavelength long, by the ratio of diffusions; and the critical ratio."""
    rest = REACTION.steady_states()[0]
    spread = torch.tensor(SPREAD, dtype=torch.float64)
    critical = Dispersion.of(PatternDynamics(REACTION, spread, Grid((1.0,))).system, rest).conditions.critical_ratio
    at_onset = PatternDynamics(REACTION, torch.tensor([1.0, critical], dtype=torch.float64), Grid((1.0,)))
    k = Dispersion.of(at_onset.system, rest).conditions.critical_wavenumber
    line = Grid((math.pi / k,), "neumann")

    def at(ratio: Tensor) -> PatternDynamics:
        return PatternDynamics(REACTION, torch.stack((torch.ones_like(ratio), ratio)), line)

    state = rest[:, None].expand(2, points).clone()
    settings = ContinuationSettings(step=0.02, max_step=0.1)
    diagram = at(torch.tensor(SPREAD[1])).bifurcation_analysis(state, at, (6.0, 14.0), settings=settings)
    return diagram, critical


def diagrams(points: int, console: Console, output: Path) -> None:
    with console.status("following branches"):
        patterns, critical = pattern_diagram(points)
        cell = FitzHughNagumo()

        def nerve(state: Tensor, current: Tensor) -> Tensor:
            return FitzHughNagumo(cell.a, cell.b, cell.epsilon, current)(state)

        settings = ContinuationSettings(max_step=0.02)
        nerves = bifurcation_diagram(nerve, cell.steady_states()[0], (0.0, 2.0), settings=settings)
    table = Table(title="bifurcations found by following steady states")
    for column in ("system", "kind", "at", "more"):
        table.add_column(column)
    for point in patterns.points:
        more = f"{point.criticality or ''}; linear theory: {critical:.6f}"
        table.add_row("patterns on a line", point.kind, f"D_v/D_u = {point.parameter:.6f}", more)
    for point in nerves.points:
        period = f"period {2 * math.pi / point.frequency:.3f}" if point.frequency else ""
        table.add_row(
            "FitzHugh–Nagumo cell", point.kind, f"I = {point.parameter:.6f}", f"{point.criticality}; {period}"
        )
    console.print(table)
    console.print(
        "A pattern is born where the rest loses its stability. Between its two Hopf points the cell cannot rest."
    )
    picture = bifurcation_figure(
        patterns, (0, 0), parameter="ratio of diffusions D_v/D_u", label="u at the left end", title="birth of a pattern"
    )
    picture.savefig(output / "pattern_bifurcation.png", dpi=130)
    picture = bifurcation_figure(nerves, 0, parameter="current I", label="potential u", title="FitzHugh–Nagumo cell")
    picture.savefig(output / "nerve_bifurcation.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("pictures"), help="the folder for pictures")
    parser.add_argument("--quick", action="store_true", help="a smaller box and fewer points, for a first look")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    simulate(*((32, 40.0, 40.0) if options.quick else (96, 80.0, 1000.0)), console, options.output)
    diagrams(6 if options.quick else 12, console, options.output)
    console.print(f"pictures: {', '.join(sorted(p.name for p in options.output.glob('*.png')))} in {options.output}")


if __name__ == "__main__":
    main()
