"""Entropy, mutual information and the flow of information along an attention pattern. All logarithms are natural.

Sources: Cover, Thomas, Elements of Information Theory, chapters 2 and 4; Seneta, Non-negative Matrices and Markov
Chains, for the perturbation of stationary laws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aatc.passes.analysis.information.contraction import dobrushin_coefficient, doeblin_bound
from aatc.passes.analysis.information.markov import unique_stationary
from aatc.passes.analysis.information.verify_information import FlowWitness
from aatc.passes.analysis.result import Cost, Result
from aatc.passes.analysis.stochastic import PatternError, distribution, real_array, row_stochastic

PAIRS_LIMIT = 256  # rows up to which the stability is exact


def _plogp(p: np.ndarray) -> np.ndarray:
    return p * np.log(np.where(p > 0, p, 1.0))


def _log_ratio(joint: np.ndarray, product: np.ndarray) -> np.ndarray:
    """log(joint/product), 0 where there is no mass: a product of underflowed marginals gives no NaN."""
    both = (joint > 0) & (product > 0)
    return np.log(np.where(both, joint, 1.0)) - np.log(np.where(both, product, 1.0))


def _joint(table: Any, axes: int) -> np.ndarray:
    joint = real_array(table, "a joint distribution")
    if joint.ndim < axes or joint.size == 0:
        raise PatternError(f"a joint distribution of {axes} variables has {axes} last axes, not shape {joint.shape}")
    flat = row_stochastic(joint.reshape(-1, int(np.prod(joint.shape[-axes:]))))
    return flat.reshape(joint.shape)


def row_entropies(pattern: Any) -> np.ndarray:
    """H(A_i) = −Σ_j A_ij log A_ij in nats, (..., n) of patterns (..., n, m). Raises `PatternError`."""
    entropies: np.ndarray = 0.0 - _plogp(row_stochastic(pattern)).sum(-1)  # 0, not −0, of a row with one entry
    return entropies


def edge_utilisation(pattern: Any) -> np.ndarray:
    """e^{H(A_i)}/m (2^H/m with H in bits), (..., n): the effective share of the m keys that row i attends to.

    1 for a uniform row, 1/m for a one-hot one. Raises `PatternError`.
    """
    shares: np.ndarray = np.exp(row_entropies(pattern)) / np.asarray(pattern).shape[-1]
    return shares


def mutual_information(joint: Any) -> np.ndarray:
    """I(X;Y) in nats, shape (...), of joint distributions (..., x, y). Raises `PatternError`."""
    table = _joint(joint, 2)
    product = table.sum(-1, keepdims=True) * table.sum(-2, keepdims=True)
    information: np.ndarray = np.maximum((table * _log_ratio(table, product)).sum((-2, -1)), 0.0)
    return information


def conditional_mutual_information(joint: Any) -> np.ndarray:
    """I(X;Y|A) = H(Y|A) − H(Y|X,A) in nats, shape (...), of joint distributions (..., x, y, a).

    The seed wrote H(Y) − H(Y|X,A), which exceeds this by I(Y;A). Raises `PatternError`.
    """
    table = _joint(joint, 3)
    given = table.sum((-3, -2), keepdims=True)
    product = table.sum(-2, keepdims=True) * table.sum(-3, keepdims=True)
    information: np.ndarray = np.maximum((table * _log_ratio(table * given, product)).sum((-3, -2, -1)), 0.0)
    return information


@dataclass(frozen=True, eq=False)
class IndexInformation:
    """``information`` I(J;O|Q,K,V) and ``bound`` H(p) in nats, each (n,)."""

    information: np.ndarray
    bound: np.ndarray


def index_information(pattern: Any, values: Any) -> Result[IndexInformation]:
    """What the sampled output O = v_J, J ~ A_i, tells about the index J: I(J;O|Q,K,V) = H(O) ≤ H(A_i).

    ``pattern`` (n, m), ``values`` (m, ...). Equality holds iff the values of positive weight differ. The seed bounded
    I(O;V|Q,K) by H(P) instead, which is false: a one-hot P has H(P) = 0 and copies v_j, so that I(O;V|Q,K) = H(v_j).
    Values are compared bit by bit. Raises `PatternError`.
    """
    matrix, table = row_stochastic(pattern), np.asarray(values)
    if matrix.ndim != 2 or table.ndim == 0 or len(table) != matrix.shape[1] or table.dtype.hasobject:
        raise PatternError(f"a pattern {matrix.shape} needs one value per key, not {table.dtype} {table.shape}")
    rows = np.ascontiguousarray(table.reshape(len(table), -1))
    _, label = np.unique(rows.view(np.uint8), axis=0, return_inverse=True)
    merged = np.zeros((len(matrix), int(label.max()) + 1))
    np.add.at(merged.T, label.reshape(-1), matrix.T)
    value = IndexInformation(-_plogp(merged).sum(-1), -_plogp(matrix).sum(-1))
    return Result(value, "P2", 1e-12, float(np.maximum(value.information - value.bound, 0).max()))


def information_density(pattern: Any, stationary: Any) -> np.ndarray:
    """log(A_ij/π_j) in nats, (..., n, m): the information density of a step i → j; −∞ where A_ij = 0, and ∞ for a step
    to a transient token, π_j = 0, which only transient tokens make.

    Its mean over steps π_i A_ij is the information flow. ``stationary`` is (..., m), the law of the columns. Raises
    `PatternError`.
    """
    matrix, law = row_stochastic(pattern), real_array(stationary, "a law")
    if law.shape != (*matrix.shape[:-2], matrix.shape[-1]) or not (law >= 0).all():
        raise PatternError(f"the law of the columns of a pattern {matrix.shape} is no array of shape {law.shape}")
    columns = np.broadcast_to(law[..., None, :], matrix.shape)
    limit = np.where(matrix > 0, np.inf, -np.inf)
    return np.where((matrix > 0) & (columns > 0), _log_ratio(matrix, columns), limit)


@dataclass(frozen=True, eq=False)
class InformationFlowMetrics:
    """Shapes for patterns (..., n, n) with T tiles; nats.

    - ``stationary`` π (..., n); ``row_entropy`` and ``edge_utilisation`` (..., n).
    - ``entropy_rate`` Σ π_i H(A_i) and ``information_flow`` Σ π_i A_ij log(A_ij/π_j) (...): the entropy of the next
      token given this one, and the mutual information of successive tokens. They add up to H(π).
    - ``density_variance`` (...): the variance of log(A_ij/π_j) over steps, whose mean is the flow.
    - ``tile_flow`` Σ_{i∈a,j∈b} π_i A_ij and ``tile_information`` Σ π_i A_ij log(A_ij/π_j) over the same tile, both
      (..., T, T); ``cross_tile_flow`` and ``cross_tile_information`` (...): their sums off the diagonal.
    - ``tile_density`` (..., T, T): ``tile_information`` per ``tile_flow``, nats a step, 0 for a tile without flow.
    - ``coarse_flow`` (...): the mutual information of successive tiles, at most the information flow.
    - ``stability`` (...) in [0, 1]: 1 − τ(A) if ``stability_exact``, else (above 256 tokens) a lower bound of it, with
      ‖π′ − π‖₁ ≤ max_i ‖A′_i − A_i‖₁ / stability for every other pattern A′.
    """

    stationary: np.ndarray
    row_entropy: np.ndarray
    edge_utilisation: np.ndarray
    entropy_rate: np.ndarray
    information_flow: np.ndarray
    density_variance: np.ndarray
    tile_flow: np.ndarray
    tile_information: np.ndarray
    tile_density: np.ndarray
    cross_tile_flow: np.ndarray
    cross_tile_information: np.ndarray
    coarse_flow: np.ndarray
    stability: np.ndarray
    stability_exact: bool


def estimate_cost(n: int, heads: int = 1) -> Cost:
    """What `information_flow_metrics` takes for patterns of n tokens."""
    pairs = 8e-10 * n**3 if n <= PAIRS_LIMIT else 0.0
    return Cost(seconds=heads * (5e-4 + pairs + 6.5e-8 * n * n), bytes=8.0 * n * n * (heads + 6))


def _stability(matrix: np.ndarray) -> float:
    if len(matrix) <= PAIRS_LIMIT:
        return 1 - dobrushin_coefficient(matrix).value
    return 1 - float(doeblin_bound(matrix))


def _tile_sums(table: np.ndarray, tile: int) -> np.ndarray:
    starts = np.arange(0, table.shape[-1], tile)
    return np.add.reduceat(np.add.reduceat(table, starts, axis=-2), starts, axis=-1)


def _one_flow(matrix: np.ndarray, tile: int, initial: Any | None) -> dict[str, Any]:
    pi = unique_stationary(matrix, initial)
    joint = pi[:, None] * matrix
    density = _log_ratio(matrix, np.broadcast_to(pi, matrix.shape)) * (joint > 0)
    entropy = -_plogp(matrix).sum(-1)
    share = joint * density
    flow = float(share.sum())
    tile_flow, tile_information = _tile_sums(joint, tile), _tile_sums(share, tile)
    marginals = tile_flow.sum(1, keepdims=True) * tile_flow.sum(0, keepdims=True)
    return {
        "stationary": pi,
        "row_entropy": entropy,
        "edge_utilisation": np.exp(entropy) / len(matrix),
        "entropy_rate": pi @ entropy,
        "information_flow": max(flow, 0.0),
        "density_variance": (joint * (density - flow) ** 2).sum(),
        "tile_flow": tile_flow,
        "tile_information": tile_information,
        "tile_density": np.where(tile_flow > 0, tile_information / np.where(tile_flow > 0, tile_flow, 1.0), 0.0),
        "cross_tile_flow": tile_flow.sum() - np.trace(tile_flow),
        "cross_tile_information": tile_information.sum() - np.trace(tile_information),
        "coarse_flow": max(float((tile_flow * _log_ratio(tile_flow, marginals)).sum()), 0.0),
        "stability": _stability(matrix),
    }


def information_flow_metrics(
    pattern: Any, tile_size: int = 64, *, initial: Any | None = None, budget: Cost | None = None
) -> Result[InformationFlowMetrics]:
    """The flow of information along patterns (..., n, n), in tiles of ``tile_size`` tokens (the last one may be short).

    π is the stationary law of each pattern. A chain with several recurrent classes has several: give ``initial`` (n,),
    a law of the first token, and π is the long-run average from it; else `NotErgodicError`. The residual is the
    largest ‖πA − π‖₁. Raises `PatternError`, and `BudgetError` above ``budget``.
    """
    matrix = row_stochastic(pattern, square=True)
    if not isinstance(tile_size, int) or tile_size < 1:
        raise PatternError(f"tile_size is a number of tokens, at least 1, not {tile_size!r}")
    lead, n = matrix.shape[:-2], matrix.shape[-1]
    flat = matrix.reshape(-1, n, n)
    if budget is not None:
        estimate_cost(n, len(flat)).check(budget, f"the information flow of {len(flat)} patterns of {n} tokens")
    found = [_one_flow(one, tile_size, initial) for one in flat]
    fields = {}
    for name in found[0]:
        stacked = np.stack([np.asarray(one[name]) for one in found])
        fields[name] = stacked.reshape((*lead, *stacked.shape[1:]))
    value = InformationFlowMetrics(**fields, stability_exact=n <= PAIRS_LIMIT)
    moved = (value.stationary[..., None, :] @ matrix)[..., 0, :] - value.stationary
    start = None if initial is None else distribution(initial, n)
    witness = FlowWitness(matrix, value.stationary, value.information_flow, tile_size, start)
    return Result(value, "P2", 1e-10, float(np.abs(moved).sum(-1).max()), witness)
