"""Witnesses of the information and Markov analyses, and the small programs that re-check them.

Nothing here uses the code that made a witness: a residual is recomputed from the matrices by its definition. A
matrix may be given by whatever numpy makes an array of, and is then evaluated when the witness is checked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from aatc.passes.analysis.result import verify


@dataclass(frozen=True, eq=False)
class StationaryWitness:
    """``stationary`` (n,), or every row of (k, n), claims π = πA for ``pattern`` (n, n)."""

    pattern: ArrayLike
    stationary: np.ndarray


@dataclass(frozen=True, eq=False)
class EigenpairWitness:
    """``value`` and ``vector`` (n,) claim A v = λ v for ``matrix`` (n, n)."""

    matrix: ArrayLike
    value: complex
    vector: np.ndarray


@dataclass(frozen=True, eq=False)
class RowPairWitness:
    """Rows ``first`` and ``second`` of ``pattern`` claim the total-variation distance ``distance``."""

    pattern: ArrayLike
    first: int
    second: int
    distance: float


@dataclass(frozen=True, eq=False)
class DoeblinWitness:
    """``bound`` claims to be 1 − Σ_j min_i A_ij of ``pattern`` (n, m), which bounds Dobrushin's coefficient."""

    pattern: ArrayLike
    bound: float


@dataclass(frozen=True, eq=False)
class ChainWitness:
    """Everything that an analysis of one chain claims about vectors."""

    parts: tuple[StationaryWitness | EigenpairWitness | RowPairWitness | DoeblinWitness, ...]


@dataclass(frozen=True, eq=False)
class FlowWitness:
    """``flow`` (...) nats claim to be the mutual information of successive tokens under ``stationary`` (..., n)."""

    pattern: ArrayLike
    stationary: np.ndarray
    flow: np.ndarray


@dataclass(frozen=True, eq=False)
class FigureWitness:
    """``value`` claims to be the figure of this name of steps under ``stationary`` (n,) along ``pattern`` (n, n):

    "entropy_rate", "information_flow", "cross_tile_flow" or "cross_tile_information", information in nats, in tiles of
    ``tile`` states."""

    pattern: ArrayLike
    stationary: np.ndarray
    figure: str
    value: float
    tile: int = 1


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
    """max(‖πA − π‖₁, |Σπ − 1|, −min π), the largest of all laws."""
    pi = witness.stationary
    moved = np.abs(pi @ np.asarray(witness.pattern) - pi).sum(-1)
    return float(np.max([moved.max(), np.abs(pi.sum(-1) - 1).max(), -pi.min()]))


@verify.register
def _eigenpair(witness: EigenpairWitness) -> float:
    """‖Av − λv‖₂/‖v‖₂; infinite for v = 0."""
    length = float(np.linalg.norm(witness.vector))
    if length == 0:
        return float("inf")
    image = np.asarray(witness.matrix) @ witness.vector
    return float(np.linalg.norm(image - witness.value * witness.vector)) / length


@verify.register
def _row_pair(witness: RowPairWitness) -> float:
    """The deviation of the claimed distance from that of the two rows."""
    pattern = np.asarray(witness.pattern)
    rows = pattern[witness.first] - pattern[witness.second]
    return abs(float(np.abs(rows).sum()) / 2 - witness.distance)


@verify.register
def _doeblin(witness: DoeblinWitness) -> float:
    """The deviation of the bound from what the least entries of the columns give."""
    return abs(1 - float(np.asarray(witness.pattern).min(0).sum()) - witness.bound)


@verify.register
def _chain(witness: ChainWitness) -> float:
    """The largest residual of the parts."""
    return float(np.max([verify(part) for part in witness.parts], initial=0.0))


@verify.register
def _flow(witness: FlowWitness) -> float:
    """The largest of ‖πA − π‖₁ and the deviation of the flow from H(π) + H(πA) − H(joint)."""
    pi, pattern = witness.stationary, np.asarray(witness.pattern)
    joint = pi[..., None] * pattern
    target = joint.sum(-2)

    def entropy(p: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        entropies: np.ndarray = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axes)
        return entropies

    flow = entropy(pi, (-1,)) + entropy(target, (-1,)) - entropy(joint, (-2, -1))
    return float(np.maximum(np.abs(target - pi).sum(-1).max(), np.abs(flow - witness.flow).max()))


@verify.register
def _figure(witness: FigureWitness) -> float:
    """The largest of ‖πA − π‖₁ and the deviation of the value; infinite for a figure that there is none of.

    Information is Σ p log p − Σ p_i log p_i − Σ p_j log p_j over the pairs meant, with the marginals of all pairs."""
    pi = witness.stationary
    joint = pi[:, None] * np.asarray(witness.pattern)
    target = joint.sum(0)
    logs = [np.log(np.where(p > 0, p, 1.0)) for p in (pi, target)]
    moved = float(np.abs(target - pi).sum())
    if witness.figure.startswith("cross_tile"):
        tile = np.arange(len(pi)) // witness.tile
        joint = np.where(tile[:, None] == tile, 0.0, joint)
    surprise = -float((joint * np.log(np.where(joint > 0, joint, 1.0))).sum())
    if witness.figure == "cross_tile_flow":
        found = float(joint.sum())
    elif witness.figure == "entropy_rate":
        found = surprise + float(pi @ logs[0])
    elif witness.figure in ("information_flow", "cross_tile_information"):
        found = -surprise - float(joint.sum(1) @ logs[0] + joint.sum(0) @ logs[1])
    else:
        return float("inf")
    return float(np.max([moved, abs(found - witness.value)]))


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
