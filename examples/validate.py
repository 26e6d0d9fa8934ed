"""Checks that pass on true objects and fail on planted errors, each with the worst case that was found.

Every row is a claim about a metric, a flow, a pattern or a quantum state. The planted errors are small: a connection
with one wrong sign, an integrator that feeds energy in, an image that is not quite symmetric, a gate that acts on both
qubits. Each verdict's witness is re-checked on its own. Pictures are written to a folder.

    python examples/validate.py --output pictures
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from aatc.geometry.dynamics.hamiltonian import HamiltonianSystem
from aatc.geometry.flows.attention_flow import AttentionFlow
from aatc.geometry.manifolds.riemannian import RiemannianStructure
from aatc.passes.analysis.result import Undecided, Verdict
from aatc.report import hamiltonian_figure
from aatc.validation import FlowValidation, MetricValidation, PatternValidation, QuantumValidation


@dataclass(frozen=True)
class Claim:
    """What was claimed of what, whether it is true, and what the check says."""

    family: str
    of: str
    true: bool
    verdict: Verdict | Undecided


def digits(count: int) -> Tensor:
    """Handwritten digits (count, 64), ink between 0 and 1."""
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().data[:count]) / 16


def metric_claims(images: Tensor) -> Iterator[Claim]:
    check = MetricValidation()
    centred = images - images.mean(0)
    covariance = centred.mT @ centred / len(images)
    ridge = covariance + 0.01 * torch.eye(64)
    yield Claim("metric", "covariance of digits + 0.01", True, check.check_positive_definite(ridge))
    yield Claim("metric", "covariance of digits", False, check.check_positive_definite(covariance))
    sphere = RiemannianStructure.sphere(2.0)
    points = torch.rand(20, 2, dtype=torch.float64) * torch.tensor([2.0, 6.0]) + 0.5

    def wrong_sign(x: Tensor) -> Tensor:
        symbols = sphere.christoffel_symbols(x).clone()
        symbols[..., 0, 1, 1] *= -1
        return symbols

    for name, connection, true in (
        ("Levi-Civita connection of a sphere", sphere.christoffel_symbols, True),
        ("the same, one sign wrong", wrong_sign, False),
    ):
        yield Claim("metric", name, true, check.verify_compatibility(sphere, connection, points=points))
    for low, high, true in ((0.25, 0.25, True), (0.26, 1.0, False)):
        verdict = check.check_curvature_bounds(sphere, (low, high), points, 1e-9)
        yield Claim("metric", f"sphere of radius 2, curvature in [{low}, {high}]", true, verdict)


def pendulum(steps: int) -> tuple[HamiltonianSystem, dict[str, tuple[Tensor, Tensor]], float]:
    """A pendulum by leapfrog and by Euler's explicit steps, which feed energy in: (steps + 1, 1) each."""
    system = HamiltonianSystem.separable(lambda p: 0.5 * p.square().sum(-1), lambda q: -q.cos().sum(-1))
    start, dt = (torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64)), 0.05
    points = [start]
    for _ in range(steps):
        q, p = points[-1]
        by_q, by_p = system.hamilton_equations(q, p)
        points.append((q + dt * by_q, p + dt * by_p))
    euler = torch.stack([q for q, _ in points]), torch.stack([p for _, p in points])
    return system, {"leapfrog": system.trajectory(*start, dt, steps), "Euler": euler}, dt


def flow_claims(images: Tensor, system: HamiltonianSystem, paths: dict[str, tuple[Tensor, Tensor]]) -> Iterator[Claim]:
    check = FlowValidation()
    for name, (states, momenta) in paths.items():
        verdict = check.check_energy_monotonicity(
            torch.cat((states, momenta), -1), lambda z: system.compute_hamiltonian(z[:1], z[1:]), 1e-3
        )
        yield Claim("flow", f"a pendulum's energy, {name}", name == "leapfrog", verdict)
    heat = AttentionFlow("scalar", spacing=(1.0, 1.0))
    field = images[0].reshape(8, 8)
    flowed = heat.evolve_attention(field, 2.0, 20, every=1)
    yield Claim("flow", "heat flow of a digit: maximum principle", True, check.verify_maximum_principle(flowed))
    sharpened = torch.stack([field, 2 * field - flowed.final])
    yield Claim("flow", "a sharpened digit: maximum principle", False, check.verify_maximum_principle(sharpened))
    weights = torch.softmax(images[:6] @ images[:6].mT, -1)
    verdict = check.verify_maximum_principle(torch.stack([images[:6], weights @ images[:6]]), vector_valued=True)
    yield Claim("flow", "attention stays in the hull of its values", True, verdict)
    outside = torch.stack([images[:6], 1.02 * (weights @ images[:6])])
    verdict = check.verify_maximum_principle(outside, vector_valued=True)
    yield Claim("flow", "attention with rows of sum 1.02", False, verdict)
    for horizon, true in ((0.9, True), (1.1, False)):
        verdict = check.check_long_time_existence(lambda t, u: u.square(), horizon, initial=torch.ones(1))
        yield Claim("flow", f"u' = u², u(0) = 1 until t = {horizon}", true, verdict)


def pattern_claims(images: Tensor) -> Iterator[Claim]:
    check = PatternValidation()
    image = images[0].reshape(8, 8)
    mirror = {"left–right": list(reversed(range(8)))}
    yield Claim("pattern", "digit + its mirror image", True, check.verify_symmetries(image + image.flip(-1), mirror))
    yield Claim("pattern", "a digit 0 under its mirror", False, check.verify_symmetries(image, mirror))
    ring = torch.arange(8)
    near = -torch.minimum((ring[:, None] - ring).abs(), 8 - (ring[:, None] - ring).abs()).double()
    shift = {"shift": ((ring + 1) % 8).tolist()}
    verdict = check.verify_symmetries(near.softmax(-1), shift, conjugate=True)
    yield Claim("pattern", "attention by distance on a ring, shifted", True, verdict)
    line = -(ring[:, None] - ring).abs().double()
    verdict = check.verify_symmetries(line.softmax(-1), shift, conjugate=True)
    yield Claim("pattern", "the same on a line", False, verdict)
    kick = 0.01 * torch.ones(1, dtype=torch.float64)
    for rest, true in ((1.0, True), (0.0, False)):
        verdict = check.check_pattern_stability(torch.full((1,), rest), kick, 3.0, lambda u: u - u**3)
        yield Claim("pattern", f"the rest u = {rest:g} of u' = u − u³", true, verdict)
    points = torch.rand(30, 3, dtype=torch.float64) + 0.1
    verdict = check.check_scale_invariance(lambda x: x.norm(dim=-1) ** 1.5, [0.5, 2.0, 3.0], points)
    yield Claim("pattern", "|x|^1.5 is a power of the scale", True, verdict)
    verdict = check.check_scale_invariance(lambda x: x.norm(dim=-1) + 0.1, [0.5, 2.0, 3.0], points)
    yield Claim("pattern", "|x| + 0.1 is a power of the scale", False, verdict)


def quantum_claims(images: Tensor) -> Iterator[Claim]:
    check = QuantumValidation()
    amplitudes = images[0].sqrt()
    state = amplitudes / amplitudes.norm()
    yield Claim("quantum", "a digit as amplitudes, divided by its norm", True, check.check_normalization(state))
    shares = images[0] / images[0].sum()
    yield Claim("quantum", "the same digit as shares of its ink", False, check.check_normalization(shares))
    x = torch.tensor([[0, 1], [1, 0]], dtype=torch.complex128)
    z = torch.tensor([[1, 0], [0, -1]], dtype=torch.complex128)
    plus = torch.tensor([0.6, 0.8j], dtype=torch.complex128)
    verdict = check.verify_uncertainty_relations(plus, (x, z))
    yield Claim("quantum", "uncertainty of X and Z in a qubit", True, verdict)
    tilted = x + 0.2j * z
    verdict = check.verify_uncertainty_relations(plus, (tilted, z))
    yield Claim("quantum", "of X + 0.2i Z, which is not Hermitian", False, verdict)
    bell = torch.tensor([1, 0, 0, 1], dtype=torch.complex128) / math.sqrt(2)
    noise = torch.stack([math.sqrt(0.7) * torch.eye(2, dtype=torch.complex128), math.sqrt(0.3) * z])
    verdict = check.check_entanglement_monotonicity(noise, bell, (2, 2), factor=0)
    yield Claim("quantum", "dephasing of one qubit of a Bell pair", True, verdict)
    joint = torch.eye(4, dtype=torch.complex128)[[0, 1, 3, 2]]
    product = torch.tensor([1, 0, 1, 0], dtype=torch.complex128) / math.sqrt(2)
    verdict = check.check_entanglement_monotonicity(joint, product, (2, 2))
    yield Claim("quantum", "a CNOT gate, which acts on both qubits", False, verdict)


def show(claims: list[Claim], console: Console) -> int:
    """The table of claims; returns how many verdicts are not as they should be."""
    table = Table(title="verdicts; a planted error is one that should fail")
    for column in ("family", "object", "should", "verdict", "level", "residual", "re-checked", "tolerance"):
        table.add_column(column)
    wrong, family = 0, ""
    for claim in claims:
        if family not in ("", claim.family):
            table.add_section()
        family, verdict = claim.family, claim.verdict
        should = "hold" if claim.true else "fail"
        if isinstance(verdict, Undecided):
            wrong += 1
            table.add_row(family, claim.of, should, f"undecided: {verdict.reason}")
            continue
        wrong += bool(verdict) is not claim.true
        numbers = (verdict.residual, verdict.verify(), verdict.tolerance)
        word = "holds" if verdict else "FAILS"
        table.add_row(family, claim.of, should, word, verdict.proof_level, *[f"{number:.1e}" for number in numbers])
    console.print(table)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("pictures"), help="the folder for pictures")
    parser.add_argument("--quick", action="store_true", help="a shorter pendulum, for a first look")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console(width=130)
    images = digits(200)
    system, paths, dt = pendulum(100 if options.quick else 1000)
    claims = [*metric_claims(images), *flow_claims(images, system, paths), *pattern_claims(images)]
    claims += quantum_claims(images)
    wrong = show(claims, console)
    console.print(f"{len(claims) - wrong} of {len(claims)} verdicts are as they should be.")
    console.print("Levels: P0 exact, P1 proved in real arithmetic, P2 within the tolerance, P3 diagnostic only.")
    picture = hamiltonian_figure(system, paths, dt, title="a pendulum: leapfrog and Euler's explicit method")
    picture.savefig(options.output / "pendulum.png", dpi=130)
    console.print(f"pictures: {', '.join(sorted(p.name for p in options.output.glob('*.png')))} in {options.output}")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
