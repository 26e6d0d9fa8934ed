"""Attention patterns as row-stochastic matrices: what every information and Markov analysis checks first."""

from __future__ import annotations

from typing import Any

import numpy as np

from aatc.passes.analysis.result import AnalysisError


class PatternError(AnalysisError):
    """A pattern that is not a row-stochastic matrix, or whose shape does not fit what it is used with."""


def row_stochastic(pattern: Any, *, square: bool = False, atol: float = 1e-5) -> np.ndarray:
    """``pattern`` (..., n, m), (..., n, n) if ``square``, as float64 with rows that sum to 1.

    Masked entries are exact zeros. Rows whose sum is within ``atol`` of 1 are divided by it, so that patterns which
    were normalised in float32 are stochastic to float64. Raises `PatternError`, also for a fully masked row.
    """
    matrix = np.asarray(pattern)
    if matrix.ndim < 2 or 0 in matrix.shape or (square and matrix.shape[-1] != matrix.shape[-2]):
        wanted = "(..., n, n)" if square else "(..., n, m)"
        raise PatternError(f"a pattern has shape {wanted} with n ≥ 1, not {matrix.shape}")
    if matrix.dtype.kind not in "fiub":
        raise PatternError(f"a pattern holds real numbers, not {matrix.dtype}")
    matrix = matrix.astype(np.float64)
    sums = matrix.sum(-1, keepdims=True)
    bad = ~(np.abs(sums[..., 0] - 1) <= atol) | ~(matrix.min(-1) >= 0)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise PatternError(
            f"row {where} of the pattern has sum {sums[..., 0][where]:.6g} and least entry {matrix[where].min():.3g}; "
            f"{int(bad.sum())} of {bad.size} rows are no probability distributions",
            hint="take softmax first, leave fully masked rows out, or raise atol for half-precision patterns",
        )
    return matrix / sums


def distribution(weights: Any, n: int, *, atol: float = 1e-5) -> np.ndarray:
    """A probability vector (n,) in float64. Raises `PatternError`."""
    vector = np.asarray(weights, dtype=np.float64)
    if vector.shape != (n,):
        raise PatternError(f"a distribution on {n} states has shape ({n},), not {vector.shape}")
    return row_stochastic(vector[None], atol=atol)[0]
