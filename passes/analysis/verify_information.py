"""Witnesses of the information and Markov analyses, and the small programs that re-check them.

Nothing here uses the code that made a witness: a residual is recomputed from the matrices by its definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aatc.passes.analysis.result import verify


@dataclass(frozen=True, eq=False)
class StationaryWitness:
    """``stationary`` (n,) claims π = πA for ``pattern`` (n, n)."""

    pattern: np.ndarray
    stationary: np.ndarray


@dataclass(frozen=True, eq=False)
class EigenpairWitness:
    """``value`` and ``vector`` (n,) claim A v = λ v for ``matrix`` (n, n)."""

    matrix: np.ndarray
    value: complex
    vector: np.ndarray


@dataclass(frozen=True, eq=False)
class RowPairWitness:
    """Rows ``first`` and ``second`` of ``pattern`` claim the total-variation distance ``distance``."""

    pattern: np.ndarray
    first: int
    second: int
    distance: float


@dataclass(frozen=True, eq=False)
class ChainWitness:
    """Everything that an analysis of one chain claims about vectors."""

    parts: tuple[StationaryWitness | EigenpairWitness | RowPairWitness, ...]


@dataclass(frozen=True, eq=False)
class FlowWitness:
    """``flow`` (...) nats claim to be the mutual information of successive tokens under ``stationary`` (..., n)."""

    pattern: np.ndarray
    stationary: np.ndarray
    flow: np.ndarray


@dataclass(frozen=True, eq=False)
class BallWitness:
    """The ball at ``centre`` (d,) with ``radius`` claims to hold ``points`` (m, d); the convex ``weights`` (m,)
    prove that no ball of a radius below √(Σ w|v|² − |Σ w v|²) does."""

    points: np.ndarray
    centre: np.ndarray
    radius: float
    weights: np.ndarray


@dataclass(frozen=True, eq=False)
class ResponseWitness:
    """Row by row, ``pattern`` (..., m) with scores shifted by ``perturbation`` (..., m) claims to move by at most
    ``variation_bound`` (...) in total variation, and its output on ``values`` (m, d) by ``output_bound`` (...)."""

    pattern: np.ndarray
    perturbation: np.ndarray
    values: np.ndarray
    variation_bound: np.ndarray
    output_bound: np.ndarray


@verify.register
def _stationary(witness: StationaryWitness) -> float:
    """max(‖πA − π‖₁, |Σπ − 1|, −min π)."""
    pi = witness.stationary
    moved = float(np.abs(pi @ witness.pattern - pi).sum())
    return max(moved, abs(float(pi.sum()) - 1), -float(pi.min()))


@verify.register
def _eigenpair(witness: EigenpairWitness) -> float:
    """‖Av − λv‖₂/‖v‖₂; infinite for v = 0."""
    length = float(np.linalg.norm(witness.vector))
    if length == 0:
        return float("inf")
    return float(np.linalg.norm(witness.matrix @ witness.vector - witness.value * witness.vector)) / length


@verify.register
def _row_pair(witness: RowPairWitness) -> float:
    """The deviation of the claimed distance from that of the two rows."""
    rows = witness.pattern[witness.first] - witness.pattern[witness.second]
    return abs(float(np.abs(rows).sum()) / 2 - witness.distance)


@verify.register
def _chain(witness: ChainWitness) -> float:
    """The largest residual of the parts."""
    return float(np.max([verify(part) for part in witness.parts], initial=0.0))


@verify.register
def _flow(witness: FlowWitness) -> float:
    """The largest of ‖πA − π‖₁ and the deviation of the flow from H(π) + H(πA) − H(joint)."""
    pi, pattern = witness.stationary, witness.pattern
    joint = pi[..., None] * pattern
    target = joint.sum(-2)

    def entropy(p: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axes)

    flow = entropy(pi, (-1,)) + entropy(target, (-1,)) - entropy(joint, (-2, -1))
    return float(np.maximum(np.abs(target - pi).sum(-1).max(), np.abs(flow - witness.flow).max()))


@verify.register
def _ball(witness: BallWitness) -> float:
    """The larger of what sticks out of the ball and what the radius exceeds the proven lower bound by."""
    weights = np.maximum(witness.weights, 0) / np.maximum(witness.weights, 0).sum()
    # Scaled by a power of two, so that squares neither overflow nor vanish.
    _, size = np.frexp(np.abs(witness.points).max())
    points, centre, radius = (np.ldexp(x, -size) for x in (witness.points, witness.centre, witness.radius))
    outside = np.linalg.norm(points - centre, axis=1).max() - radius
    mean = weights @ points
    least = np.sqrt(max(float(weights @ ((points - mean) ** 2).sum(1)), 0.0))
    return float(np.ldexp(np.max([outside, radius - least, 0.0]), size))


@verify.register
def _response(witness: ResponseWitness) -> float:
    """The most that a row moves beyond its bounds; 0 when every bound holds."""
    shifted = np.where(witness.pattern > 0, witness.perturbation, -np.inf)
    shifted = witness.pattern * np.exp(shifted - shifted.max(-1, keepdims=True))
    change = shifted / shifted.sum(-1, keepdims=True) - witness.pattern
    variation = np.abs(change).sum(-1) / 2 - witness.variation_bound
    output = np.linalg.norm(change @ witness.values, axis=-1) - witness.output_bound
    return float(np.max([variation.max(), output.max(), 0.0]))
