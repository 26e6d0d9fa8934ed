"""The gradient of an attention step in closed form, and the moments of its scores.

o_i = Σ_j p_ij v_j with p_i = softmax(scale·q_i·k_j over j). The identities hold for every loss; tests compare them
with automatic differentiation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aatc.passes.analysis.stochastic import PatternError, float_array, row_stochastic


def _batches(*arrays: np.ndarray) -> None:
    shapes = [x.shape[:-2] for x in arrays]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        raise PatternError(f"leading axes {', '.join(map(str, shapes))} do not broadcast") from None
    if not all(np.isfinite(x).all() for x in arrays):
        raise PatternError("gradients are taken at finite numbers; there is a NaN or an infinity among these")


def _summed_to(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of what was broadcast to other leading axes: the sum over them."""
    extra = gradient.ndim - len(shape)
    ones = [extra + i for i, size in enumerate(shape) if size == 1 and gradient.shape[extra + i] > 1]
    summed: np.ndarray = gradient.sum((*range(extra), *ones), keepdims=True).reshape(shape)
    return summed


def weight_gradient(output_gradient: Any, values: Any) -> np.ndarray:
    """∂L/∂p_ij = Σ_k ∂L/∂o_ik v_jk, (..., n, m), from ∂L/∂o (..., n, d_v) and values (..., m, d_v).

    Raises `PatternError` for shapes that do not fit.
    """
    g, v = float_array(output_gradient), float_array(values)
    if g.ndim < 2 or v.ndim < 2 or g.shape[-1] != v.shape[-1]:
        raise PatternError(f"gradients (..., n, d_v) and values (..., m, d_v) do not have shapes {g.shape}, {v.shape}")
    _batches(g, v)
    gradient: np.ndarray = g @ np.swapaxes(v, -1, -2)
    return gradient


def score_gradient(pattern: Any, gradient: Any) -> np.ndarray:
    """∂L/∂s_ij = p_ij (∂L/∂p_ij − Σ_k p_ik ∂L/∂p_ik), (..., n, m): the Jacobian diag(p) − ppᵀ applied row by row.

    Every row sums to 0. Raises `PatternError`.
    """
    p, g = row_stochastic(pattern), float_array(gradient)
    if p.shape[-2:] != g.shape[-2:]:
        raise PatternError(f"the gradient of a pattern {p.shape} does not have shape {g.shape}")
    _batches(p, g)
    of_scores: np.ndarray = p * (g - (p * g).sum(-1, keepdims=True))
    return of_scores


@dataclass(frozen=True, eq=False)
class AttentionGradients:
    """∂L/∂Q (..., n, d), ∂L/∂K (..., m, d), ∂L/∂V (..., m, d_v), ∂L/∂P and ∂L/∂S (..., n, m)."""

    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    scores: np.ndarray


def attention_gradients(
    queries: Any, keys: Any, values: Any, output_gradient: Any, scale: float | None = None
) -> AttentionGradients:
    """The chain rule ∂L/∂Q = ∂L/∂P · ∂P/∂S · ∂S/∂Q, written out: ∂L/∂V = Pᵀ∂L/∂O, ∂L/∂Q = scale·∂L/∂S K and
    ∂L/∂K = scale·(∂L/∂S)ᵀQ.

    ``queries`` (..., n, d), ``keys`` (..., m, d), ``values`` (..., m, d_v); ``scale`` is 1/√d unless given. Leading
    axes broadcast, as for keys that heads share, and each gradient has the shape of what it belongs to. Raises
    `PatternError`.
    """
    q, k, v, g = (float_array(x) for x in (queries, keys, values, output_gradient))
    if min(q.ndim, k.ndim, v.ndim, g.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise PatternError(f"queries {q.shape}, keys {k.shape} and values {v.shape} do not fit together")
    _batches(q, k, v, g)
    if g.shape[-2:] != (q.shape[-2], v.shape[-1]):
        raise PatternError(f"the gradient of outputs (..., {q.shape[-2]}, {v.shape[-1]}) does not have shape {g.shape}")
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores = factor * (q @ np.swapaxes(k, -1, -2))
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    by_weight = weight_gradient(g, v)
    by_score = score_gradient(p, by_weight)
    return AttentionGradients(
        queries=_summed_to(factor * (by_score @ k), q.shape),
        keys=_summed_to(factor * (np.swapaxes(by_score, -1, -2) @ q), k.shape),
        values=_summed_to(np.swapaxes(p, -1, -2) @ g, v.shape),
        weights=by_weight,
        scores=by_score,
    )


@dataclass(frozen=True)
class ScoreMoments:
    """Mean and variance of scale·q·k."""

    mean: float
    variance: float


def score_moments(
    query_mean: Any, query_variance: Any, key_mean: Any, key_variance: Any, scale: float = 1.0
) -> ScoreMoments:
    """Mean and variance of scale·Σ_c q_c k_c for independent entries with the given moments, each (d,), exactly:
    scale² Σ (σ_q²σ_k² + σ_q²μ_k² + σ_k²μ_q²).

    For centred entries of variance 1 the variance of q·k is d, and that of q·k/√d is 1. The seed claimed 1 for q·k
    itself. Raises `PatternError`.
    """
    moments = [float_array(x) for x in (query_mean, query_variance, key_mean, key_variance)]
    if len({x.shape for x in moments}) != 1 or moments[0].ndim != 1:
        raise PatternError(f"four vectors of one length d are needed, not shapes {[x.shape for x in moments]}")
    if not ((moments[1] >= 0).all() and (moments[3] >= 0).all()):
        raise PatternError("a variance is at least 0 and not NaN")
    mu_q, var_q, mu_k, var_k = moments
    variance = (var_q * var_k + var_q * mu_k**2 + var_k * mu_q**2).sum()
    return ScoreMoments(float(scale * (mu_q * mu_k).sum()), float(scale**2 * variance))
