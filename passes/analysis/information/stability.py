"""How far an attention row moves when its scores do: Jacobians, Lipschitz bounds, and the tanh lemma.

For scores s and p = softmax(s), ∂p/∂s = diag(p) − ppᵀ. If |δs|∞ ≤ ε then ½‖p′ − p‖₁ ≤ tanh(ε/2), with equality for
two keys whose weights change places (σ(−ε) → σ(ε)). So an output Σ p_j v_j moves by at most 2R tanh(ε/2), R the
radius of a ball that holds the values. Softmax ignores a common shift: ε may be taken as half the range of δs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aatc.passes.analysis.information.enclosing_ball import enclosing_ball
from aatc.passes.analysis.information.verify_information import BallWitness, ResponseWitness
from aatc.passes.analysis.result import AnalysisError, Result
from aatc.passes.analysis.stochastic import PatternError, float_array, row_stochastic

BISECTIONS = 60
BLOCK_ELEMENTS = 1 << 20  # of products of weights and values held at once


def total_variation_bound(epsilon: Any) -> np.ndarray:
    """tanh(ε/2), the most that ½‖p′ − p‖₁ can be when no score moves by more than ε ≥ 0. Raises `AnalysisError`."""
    eps = float_array(epsilon)
    if not (eps >= 0).all():
        raise AnalysisError("a bound of |δs| is at least 0 and not NaN")
    return np.tanh(eps / 2)


def softmax_jacobian(pattern: Any) -> np.ndarray:
    """diag(p) − ppᵀ of every row, (..., n, m, m) of patterns (..., n, m). Raises `PatternError`."""
    p = row_stochastic(pattern)
    jacobian: np.ndarray = np.eye(p.shape[-1]) * p[..., None] - p[..., None] * p[..., None, :]
    return jacobian


def softmax_jacobian_spectrum(pattern: Any) -> np.ndarray:
    """The eigenvalues of diag(p) − ppᵀ, ascending, (..., n, m); all in [0, ½]. O(n m³). Raises `PatternError`."""
    return np.linalg.eigvalsh(softmax_jacobian(pattern))


def softmax_jacobian_norm(pattern: Any) -> np.ndarray:
    """‖diag(p) − ppᵀ‖₂ of every row, (..., n) of patterns (..., n, m), in O(n m).

    The largest eigenvalue lies between the two largest entries of p and solves Σ p_j²/(p_j − λ) = 1 (the secular
    equation of a rank-one change); it is found by bisection. Raises `PatternError`.
    """
    p = row_stochastic(pattern)
    if p.shape[-1] == 1:
        return np.zeros(p.shape[:-1])
    top = np.partition(p, -2, axis=-1)[..., -2:]
    low, high = top[..., 0].copy(), top[..., 1].copy()
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(p > 0, p * p / (p - middle[..., None]), 0.0).sum(-1)
        below = terms < 1
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(top[..., 1] - top[..., 0] > 0, low, top[..., 1])


def softmax_jacobian_bound(pattern: Any) -> np.ndarray:
    """2 max_j p_j(1 − p_j) ≤ ½ of every row, (..., n): Gershgorin's bound of ‖diag(p) − ppᵀ‖₂. Raises
    `PatternError`."""
    p = row_stochastic(pattern)
    bound: np.ndarray = 2 * (p * (1 - p)).max(-1)
    return bound


@dataclass(frozen=True, eq=False)
class PatternStabilityMeasures:
    """How the rows of patterns (..., n, m) answer to small changes of their scores.

    - ``jacobian_norm`` (..., n): ‖∂p/∂s‖₂; ``jacobian_bound`` (..., n): its closed-form bound, at most ½.
    - ``value_radius``: R, of a ball that holds the values.
    - ``output_lipschitz``: sup ‖δo‖₂/|δs|∞ ≤ R, over all scores; 2R tanh(ε/2) is the bound for |δs|∞ ≤ ε.
    """

    jacobian_norm: np.ndarray
    jacobian_bound: np.ndarray
    value_radius: float
    output_lipschitz: float


def _value_radius(pattern: np.ndarray, values: Any | None) -> float:
    """R of the values (m, d); without values, that of the corners of the simplex in which p lies."""
    m = pattern.shape[-1]
    if values is None:
        return float(np.sqrt((m - 1) / m))
    table = float_array(values)
    if table.ndim != 2 or len(table) != m:
        raise PatternError(f"a pattern over {m} keys takes values of shape ({m}, d), not {table.shape}")
    return _ball(table).radius


def _ball(table: np.ndarray) -> BallWitness:
    """A ball that holds the values. Its radius is a bound whether or not it is nearly the least one."""
    witness: BallWitness = enclosing_ball(table).witness
    return witness


def pattern_stability_measures(pattern: Any, values: Any | None = None) -> Result[PatternStabilityMeasures]:
    """Jacobian norms and Lipschitz bounds of patterns (..., n, m) on values (m, d).

    Without values the output is the pattern itself. The residual is the most by which a norm exceeds its closed-form
    bound. Raises `PatternError` and `AnalysisError`.
    """
    p = row_stochastic(pattern)
    norm, bound = softmax_jacobian_norm(p), softmax_jacobian_bound(p)
    radius = _value_radius(p, values)
    excess = float(np.maximum(norm - np.minimum(bound, 0.5), 0).max())
    return Result(PatternStabilityMeasures(norm, bound, radius, radius), "P2", 1e-12, excess)


@dataclass(frozen=True, eq=False)
class PerturbationResponse:
    """What shifted scores do to every row, each (..., n): half the range ``epsilon`` of the shift over the row's
    keys, ``variation`` ½‖p′ − p‖₁ with its bound tanh(ε/2), and ``output_shift`` ‖δo‖₂ with its bound 2R tanh(ε/2)."""

    epsilon: np.ndarray
    variation: np.ndarray
    variation_bound: np.ndarray
    output_shift: np.ndarray
    output_bound: np.ndarray


def perturbation_response(pattern: Any, perturbation: Any, values: Any | None = None) -> Result[PerturbationResponse]:
    """p′ ∝ p e^{δs} for shifts δs (..., n, m) of the scores of patterns (..., n, m), measured and bounded.

    Keys of weight 0 are masked: their shifts count for nothing. Without ``values`` (m, d) the output is the pattern
    itself. The residual is the most by which a row exceeds a bound. Raises `PatternError` and `AnalysisError`.
    """
    p, given = row_stochastic(pattern), float_array(perturbation)
    try:
        shift = np.broadcast_to(given, p.shape)
    except ValueError:
        raise PatternError(f"shifts of a pattern {p.shape} do not have shape {given.shape}") from None
    kept = p > 0
    if not np.isfinite(shift[kept]).all():
        raise AnalysisError("a shift of a score that is not masked must be finite")
    high = np.where(kept, shift, -np.inf).max(-1)
    epsilon = (high - np.where(kept, shift, np.inf).min(-1)) / 2
    moved = np.where(kept, p * np.exp(np.where(kept, shift - high[..., None], 0.0)), 0.0)
    change = moved / moved.sum(-1, keepdims=True) - p
    table = np.eye(p.shape[-1]) if values is None else float_array(values)
    radius = _value_radius(p, values)
    variation, output = np.abs(change).sum(-1) / 2, np.linalg.norm(change @ table, axis=-1)
    bound = total_variation_bound(epsilon)
    value = PerturbationResponse(epsilon, variation, bound, output, 2 * radius * bound)
    excess = max(float((variation - bound).max()), float((output - value.output_bound).max()), 0.0)
    ball = None if values is None else _ball(table)
    witness = ResponseWitness(p, shift, table, bound, value.output_bound, ball)
    return Result(value, "P2", 1e-12, excess, witness)


@dataclass(frozen=True, eq=False)
class AttentionLipschitz:
    """``local`` (..., n): ‖∂o_i/∂q_i‖₂ = scale·‖Cov_p(v, k)‖₂ at the given pattern; ``everywhere``: scale·R_v R_k,
    a bound for every query, R_v and R_k radii of balls that hold the values and the keys."""

    local: np.ndarray
    everywhere: float


def _covariance_norms(rows: np.ndarray, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """‖Cov_p(v, k)‖₂ of every row p, (n,), as the largest singular value of the smaller of the two Gram matrices."""
    norms = np.empty(len(rows))
    height = max(1, BLOCK_ELEMENTS // (values.shape[1] * max(keys.shape[1], len(keys))))
    wide = values.shape[1] > keys.shape[1]
    one, two = (keys, values) if wide else (values, keys)
    across = np.ascontiguousarray(one.T)
    for start in range(0, len(rows), height):
        p = rows[start : start + height]
        means = p @ one, p @ two
        weighted = (across * p[:, None]).reshape(-1, len(one))  # one product of matrices for many rows
        mixed = (weighted @ two).reshape(len(p), one.shape[1], -1) - means[0][..., None] * means[1][:, None]
        size = np.abs(mixed).max((-2, -1), keepdims=True)
        scaled = mixed / np.where(size > 0, size, 1.0)  # so that squares neither overflow nor vanish
        gram = scaled @ np.swapaxes(scaled, -1, -2)
        norms[start : start + height] = size[:, 0, 0] * np.sqrt(np.linalg.eigvalsh(gram)[:, -1])
    return norms


def attention_lipschitz(pattern: Any, keys: Any, values: Any, scale: float | None = None) -> Result[AttentionLipschitz]:
    """The Lipschitz constants of o_i = Σ_j p_ij v_j in the query q_i, for scores scale·q·k.

    ``pattern`` (..., n, m), ``keys`` (m, d), ``values`` (m, d_v); ``scale`` is 1/√d unless given. ∂o/∂q is scale
    times the covariance of values and keys under p, and ‖Cov(v, k)‖² ≤ ‖Cov v‖‖Cov k‖ ≤ R_v²R_k². Raises
    `PatternError` and `AnalysisError`.
    """
    p = row_stochastic(pattern)
    k = float_array(keys)
    radii = _value_radius(p, k), _value_radius(p, values)
    v = float_array(values)
    factor = abs(k.shape[1] ** -0.5 if scale is None else scale)
    local = factor * _covariance_norms(p.reshape(-1, p.shape[-1]), v, k).reshape(p.shape[:-1])
    everywhere = factor * radii[0] * radii[1]
    excess = float(np.maximum(local - everywhere, 0).max())
    return Result(AttentionLipschitz(local, everywhere), "P2", 1e-12 * (1 + everywhere), excess)
