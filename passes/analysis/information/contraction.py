"""How strongly a pattern contracts: Dobrushin, Doeblin and Birkhoff coefficients, and nilpotency.

Sources: Seneta, Non-negative Matrices and Markov Chains, chapters 3 and 4; Birkhoff, Trans. AMS 85 (1957).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aatc.passes.analysis.deadline import proceed
from aatc.passes.analysis.information.verify_chain import RowPairWitness
from aatc.passes.analysis.result import Cost, Result
from aatc.passes.analysis.stochastic import PatternError, plain_array, row_stochastic

BLOCK_ELEMENTS = 1 << 21  # elements of the differences held at once


@dataclass(frozen=True)
class Nilpotency:
    """``index`` is the least k with Aᵏ = 0, and 0 when there is none: then ``cycle`` is a closed walk of A."""

    nilpotent: bool
    index: int
    cycle: tuple[int, ...]


def _matrix(pattern: Any) -> np.ndarray:
    matrix = row_stochastic(pattern)
    if matrix.ndim != 2:
        raise PatternError(f"one pattern at a time has shape (n, m), not {matrix.shape}")
    return matrix


def estimate_cost(n: int, m: int) -> Cost:
    """What `dobrushin_coefficient` or `birkhoff_contraction` of n rows of m entries takes: n²m/2 differences."""
    return Cost(seconds=1.5e-9 * n * n * m, bytes=24.0 * BLOCK_ELEMENTS + 16.0 * n * m)


def dobrushin_coefficient(pattern: Any, *, budget: Cost | None = None) -> Result[float]:
    """τ(A) = max_{i,j} ½‖A_i − A_j‖₁ of a pattern (n, m), exact over all pairs of rows.

    τ(AB) ≤ τ(A)τ(B), |λ| ≤ τ for every eigenvalue but one, and ‖μA − νA‖₁ ≤ τ‖μ − ν‖₁. The witness is the pair of
    rows that is farthest apart. Raises `PatternError`, and `BudgetError` above ``budget``.
    """
    matrix = _matrix(pattern)
    n, m = matrix.shape
    if budget is not None:
        estimate_cost(n, m).check(budget, f"the Dobrushin coefficient of {n} rows")
    best, pair = 0.0, (0, 0)
    rows = max(1, BLOCK_ELEMENTS // m)
    for first in range(n - 1):
        proceed()
        for begin in range(first + 1, n, rows):
            distance = np.abs(matrix[begin : begin + rows] - matrix[first]).sum(1)
            at = int(distance.argmax())
            if distance[at] / 2 > best:
                best, pair = float(distance[at]) / 2, (first, begin + at)
    return Result(min(best, 1.0), "P2", m * 2.3e-16, 0.0, RowPairWitness(matrix, *pair, best))


def doeblin_bound(pattern: Any) -> np.ndarray:
    """1 − Σ_j min_i A_ij ≥ τ(A), shape (...), of patterns (..., n, m); O(nm). Raises `PatternError`."""
    coefficients: np.ndarray = np.clip(1 - row_stochastic(pattern).min(-2).sum(-1), 0.0, 1.0)
    return coefficients


def birkhoff_contraction(pattern: Any, *, budget: Cost | None = None) -> Result[float]:
    """tanh(Δ/4) of a pattern (n, m), Δ = max log(A_ik A_jl/(A_jk A_il)): by how much A contracts Hilbert's metric.

    Columns that are zero throughout are left out. It is 1 when two rows have different supports (Δ = ∞). Raises
    `PatternError`, and `BudgetError` above ``budget``.
    """
    matrix = _matrix(pattern)
    n, m = matrix.shape
    if budget is not None:
        estimate_cost(n, m).check(budget, f"the Birkhoff coefficient of {n} rows")
    support = matrix > 0
    if (support != support[0]).any():
        return Result(1.0, "P1", assumptions=("two rows with different supports",))
    logs = np.log(matrix[:, support[0]])
    diameter, rows = 0.0, max(1, BLOCK_ELEMENTS // m)
    for first in range(n - 1):
        proceed()
        for begin in range(first + 1, n, rows):
            ratio = logs[begin : begin + rows] - logs[first]
            diameter = max(diameter, float((ratio.max(1) - ratio.min(1)).max()))
    return Result(float(np.tanh(diameter / 4)), "P2", 1e-14)


def nilpotency(matrix: Any) -> Nilpotency:
    """Whether a non-negative matrix (n, n) is nilpotent, by the longest walk of its directed graph; O(n²), exact.

    Strictly causal masks are; a row-stochastic matrix never is. For a matrix with signs, give its absolute values:
    the index is then an upper bound. Raises `PatternError`.
    """
    support = plain_array(matrix)
    if support.ndim != 2 or support.shape[0] != support.shape[1]:
        raise PatternError(f"nilpotency is of a square matrix, not of shape {support.shape}")
    if not (support >= 0).all():
        raise PatternError("nilpotency is read off non-negative entries: give absolute values, without NaN")
    support = support > 0
    longest, entering = np.zeros(len(support), dtype=np.int64), support.sum(0)
    ready = list(np.flatnonzero(entering == 0))
    seen = 0
    while ready:
        state = ready.pop()
        seen += 1
        after = np.flatnonzero(support[state])
        longest[after] = np.maximum(longest[after], longest[state] + 1)
        entering[after] -= 1
        ready += list(after[entering[after] == 0])
    if seen == len(support):
        return Nilpotency(True, int(longest.max(initial=-1)) + 1, ())
    return Nilpotency(False, 0, _cycle(support, entering > 0))


def _cycle(support: np.ndarray, left: np.ndarray) -> tuple[int, ...]:
    """A closed walk among the states that have a predecessor among themselves, found by going backwards."""
    walk = [int(np.flatnonzero(left)[0])]
    while walk[-1] not in walk[:-1]:
        walk.append(int(np.flatnonzero(support[:, walk[-1]] & left)[0]))
    return tuple(walk[walk.index(walk[-1]) :][::-1])
