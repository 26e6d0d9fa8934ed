"""Witnesses of the information and stability analyses, and the small programs that re-check them.

Nothing here uses the code that made a witness: entropies, flows and responses are recomputed from the matrices by their
definition. Witnesses about one chain are in `verify_chain`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr, rel_entr

from aatc.passes.analysis.information.verify_chain import (
    ROWS,
    WRONG,
    DoeblinWitness,
    RowPairWitness,
    apart,
    unique_law,
)
from aatc.passes.analysis.result import mismatch, verify, worst


@dataclass(frozen=True, eq=False)
class FlowWitness:
    """``flow`` (...) nats claim to be the mutual information of successive tokens under ``stationary`` (..., n), the
    one stationary law of each ``pattern`` (..., n, n), or the long-run average from ``initial`` (n,). Tiles have
    ``tile`` tokens."""

    pattern: ArrayLike
    stationary: np.ndarray
    flow: np.ndarray
    tile: int = 64
    initial: np.ndarray | None = None


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
class RowsWitness:
    """A ``figure`` of the rows of ``pattern`` (n, m), which is recomputed: "mean_row_entropy" and "least_row_entropy"
    in nats, "edge_utilisation", the mean of e^H/m."""

    pattern: ArrayLike
    figure: str


@dataclass(frozen=True, eq=False)
class JacobianWitness:
    """The largest ‖diag(p) − ppᵀ‖₂ of the rows p of ``pattern`` (n, m) is claimed to be known within ``slack``."""

    pattern: ArrayLike
    slack: float


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
    ``variation_bound`` (...) in total variation, and its output on ``values`` (m, d) by ``output_bound`` (...).
    ``ball`` holds the values; without it they are the corners of a simplex."""

    pattern: np.ndarray
    perturbation: np.ndarray
    values: np.ndarray
    variation_bound: np.ndarray
    output_bound: np.ndarray
    ball: BallWitness | None = None


def _laws_defect(pattern: np.ndarray, law: np.ndarray, initial: Any) -> float:
    """By how much ``law`` fails to be the only stationary law, or the one that the lazy chain tends to from
    ``initial``: the same as its long-run average, found by squaring."""
    if initial is None:
        return unique_law(pattern, law)
    lazy = (pattern + np.eye(len(pattern))) / 2
    for _ in range(64):
        squared = lazy @ lazy
        squared /= squared.sum(1, keepdims=True)
        done, lazy = apart(squared, lazy) <= 1e-16, squared
        if done:
            break
    start = np.asarray(initial, dtype=np.float64)
    return float(np.abs(start / start.sum() @ lazy - law).sum())


def _each(witness: FlowWitness) -> list[tuple[np.ndarray, np.ndarray]]:
    """(pattern, law) one by one, in C order of the leading axes."""
    pattern = np.asarray(witness.pattern)
    n = pattern.shape[-1]
    if witness.stationary.shape != pattern.shape[:-1]:
        raise ValueError(f"laws of shape {witness.stationary.shape} for patterns of shape {pattern.shape}")
    return list(zip(pattern.reshape(-1, n, n), witness.stationary.reshape(-1, n)))


@verify.register
def _flow(witness: FlowWitness) -> float:
    """The largest of what is wrong with the laws, and of the deviation of the flow from H(π) + H(πA) − H(joint)."""
    if witness.tile < 1:
        return WRONG
    flows, found = np.reshape(witness.flow, -1), []
    for (pattern, law), flow in zip(_each(witness), flows, strict=True):
        joint = law[:, None] * pattern
        information = entr(law).sum() + entr(joint.sum(0)).sum() - entr(joint).sum()
        found += [_laws_defect(pattern, law, witness.initial), abs(float(information - flow))]
    return float(np.max(found))


@mismatch.register
def _flow_value(witness: FlowWitness, value: Any) -> float:
    """Every field, from the pattern and its law."""
    each = [_flow_fields(a, pi, witness.tile, bool(value.stability_exact)) for a, pi in _each(witness)]
    lead = np.shape(witness.stationary)[:-1]
    off = apart(witness.stationary, value.stationary)
    for name in each[0]:
        stacked = np.stack([np.asarray(one[name]) for one in each])
        off = worst(off, apart(stacked.reshape((*lead, *stacked.shape[1:])), getattr(value, name)))
    return worst(off, apart(np.reshape(witness.flow, lead), value.information_flow))


def _flow_fields(pattern: np.ndarray, law: np.ndarray, tile: int, exact: bool) -> dict[str, Any]:
    if tile < 1:
        raise ValueError(f"there are no tiles of {tile} tokens")
    n, entropy = len(law), entr(pattern).sum(-1)
    joint = law[:, None] * pattern
    share = law[:, None] * np.where(joint > 0, rel_entr(pattern, np.where(law > 0, law, 1.0)), 0.0)
    flow = float(share.sum())
    density = np.where(joint > 0, share / np.where(joint > 0, joint, 1.0), 0.0)
    member = np.arange(n)[:, None] // tile == np.arange(-(-n // tile))
    one = member.astype(np.float64)
    moved, carried = one.T @ joint @ one, one.T @ share @ one
    off = ~np.eye(len(moved), dtype=bool)
    farthest = max(float(np.abs(pattern - row).sum(1).max()) for row in pattern) / 2 if exact else 0.0
    least = float(np.clip(pattern.min(0).sum(), 0.0, 1.0))
    return {
        "row_entropy": entropy,
        "edge_utilisation": np.exp(entropy) / n,
        "entropy_rate": law @ entropy,
        "information_flow": max(flow, 0.0),
        "density_variance": float((joint * (density - flow) ** 2).sum()),
        "tile_flow": moved,
        "tile_information": carried,
        "tile_density": np.divide(carried, moved, out=np.zeros_like(moved), where=moved > 0),
        "cross_tile_flow": moved[off].sum(),
        "cross_tile_information": carried[off].sum(),
        "coarse_flow": max(float(entr(moved.sum(1)).sum() + entr(moved.sum(0)).sum() - entr(moved).sum()), 0.0),
        "stability": 1 - min(farthest, 1.0) if exact else least,
    }


@verify.register
def _figure(witness: FigureWitness) -> float:
    """The largest of ‖πA − π‖₁ and the deviation of the value; infinite for a figure that there is none of, and for a
    law that is not the only one.

    Information is Σ p log p − Σ p_i log p_i − Σ p_j log p_j over the pairs meant, with the marginals of all pairs."""
    if witness.tile < 1:
        return WRONG
    pi, pattern = witness.stationary, np.asarray(witness.pattern)
    joint = pi[:, None] * pattern
    target = joint.sum(0)
    logs = [np.log(np.where(p > 0, p, 1.0)) for p in (pi, target)]
    moved = unique_law(pattern, pi)
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


@mismatch.register
def _figure_value(witness: FigureWitness, value: Any) -> float:
    return float(abs(witness.value - value))


@verify.register
def _rows(witness: RowsWitness) -> float:
    """By how much a row fails to be a law."""
    pattern = np.asarray(witness.pattern)
    return float(np.max([np.abs(pattern.sum(-1) - 1).max(), -pattern.min()]))


@mismatch.register
def _rows_value(witness: RowsWitness, value: Any) -> float:
    pattern = np.asarray(witness.pattern)
    entropy = entr(pattern).sum(-1)
    found = {
        "mean_row_entropy": entropy.mean(),
        "least_row_entropy": entropy.min(),
        "edge_utilisation": (np.exp(entropy) / pattern.shape[-1]).mean(),
    }
    return float(abs(float(found[witness.figure]) - value))


@verify.register
def _jacobian(witness: JacobianWitness) -> float:
    """By how much a row fails to be a law; infinite for a slack that would excuse everything."""
    pattern = np.asarray(witness.pattern)
    off = float(np.max([np.abs(pattern.sum(-1) - 1).max(), -pattern.min()]))
    return off if 0 <= witness.slack <= 0.5 else WRONG


@mismatch.register
def _jacobian_value(witness: JacobianWitness, value: Any) -> float:
    """0 where some row has an eigenvalue of at least the value, less rounding, and none has one beyond the slack."""
    pattern = np.asarray(witness.pattern)
    reached = value <= 1e-12 or _exceeds(pattern, value - 1e-12).any()
    return WRONG if not reached or _exceeds(pattern, value + witness.slack + 1e-12).any() else 0.0


def _exceeds(rows: np.ndarray, bound: float) -> np.ndarray:
    """Whether diag(p) − ppᵀ of each row has an eigenvalue above ``bound``: by the inertia of bound − diag(p) + ppᵀ. Two
    entries above the bound are enough; one is where the determinant ∏(bound − p_j)(1 + Σ p_j²/(bound − p_j)) is below
    0."""
    found = np.zeros(len(rows), dtype=bool)
    for start in range(0, len(rows), ROWS):
        p = rows[start : start + ROWS]
        above = (p > bound).sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            secular = 1 + np.where(p > 0, p * p / (bound - p), 0.0).sum(-1)
        found[start : start + ROWS] = (above > 1) | ((above == 1) & (secular > 0))
    return found


def _least_radius(points: np.ndarray, weights: np.ndarray) -> float:
    """√Σ w|v − Σ w v|²: no smaller ball holds the points."""
    total = float(np.maximum(weights, 0).sum())
    if not total > 0:
        return 0.0  # weights that prove nothing
    kept = np.maximum(weights, 0) / total
    return float(np.sqrt(kept @ ((points - kept @ points) ** 2).sum(1)))


@verify.register
def _ball(witness: BallWitness) -> float:
    """The larger of what sticks out of the ball and what the radius exceeds the proven lower bound by."""
    # Scaled by a power of two, so that squares neither overflow nor vanish.
    _, size = np.frexp(np.abs(witness.points).max())
    points, centre, radius = (np.ldexp(x, -size) for x in (witness.points, witness.centre, witness.radius))
    outside = np.linalg.norm(points - centre, axis=1).max() - radius
    return float(np.ldexp(np.max([outside, radius - _least_radius(points, witness.weights), 0.0]), size))


@mismatch.register
def _ball_value(witness: BallWitness, value: Any) -> float:
    """The centre, the radius and a lower bound that is none beyond what the weights prove."""
    _, size = np.frexp(np.abs(witness.points).max())
    least = float(np.ldexp(_least_radius(np.ldexp(witness.points, -size), witness.weights), size))
    over = worst(0.0, value.least_radius - least * (1 + 1e-9))
    return worst(apart(witness.centre, value.centre), abs(witness.radius - value.radius), over)


def _response_of(witness: ResponseWitness) -> tuple[np.ndarray, ...]:
    """Half the range of the shift, what the rows move by, and how far the outputs do."""
    kept = witness.pattern > 0
    shifted = np.where(kept, witness.perturbation, -np.inf)
    high = shifted.max(-1)
    epsilon = (high - np.where(kept, witness.perturbation, np.inf).min(-1)) / 2
    grown = witness.pattern * np.exp(shifted - high[..., None])
    change = grown / grown.sum(-1, keepdims=True) - witness.pattern
    return epsilon, np.abs(change).sum(-1) / 2, np.linalg.norm(change @ witness.values, axis=-1)


@verify.register
def _response(witness: ResponseWitness) -> float:
    """The most that a row moves beyond its bounds, or a value lies outside of the ball; 0 when every bound holds."""
    _, moved, shifted = _response_of(witness)
    outside = 0.0
    if witness.ball is not None:
        away = np.linalg.norm(witness.values - witness.ball.centre, axis=-1).max() - witness.ball.radius
        outside = float(away)
    return float(
        np.max([(moved - witness.variation_bound).max(), (shifted - witness.output_bound).max(), outside, 0.0])
    )


@mismatch.register
def _response_value(witness: ResponseWitness, value: Any) -> float:
    """Every field; the bounds are tanh(ε/2), and 2R times that."""
    epsilon, moved, shifted = _response_of(witness)
    m = witness.pattern.shape[-1]
    if witness.ball is None and apart(witness.values, np.eye(m)):
        return WRONG
    radius = float(np.sqrt((m - 1) / m)) if witness.ball is None else witness.ball.radius
    bound = np.tanh(epsilon / 2)
    claimed = [(epsilon, value.epsilon), (moved, value.variation), (shifted, value.output_shift)]
    claimed += [(bound, value.variation_bound), (2 * radius * bound, value.output_bound)]
    claimed += [(witness.variation_bound, value.variation_bound), (witness.output_bound, value.output_bound)]
    return worst(*(apart(*pair) for pair in claimed))


__all__ = [
    "BallWitness",
    "DoeblinWitness",
    "FigureWitness",
    "FlowWitness",
    "JacobianWitness",
    "ResponseWitness",
    "RowPairWitness",
    "RowsWitness",
]
