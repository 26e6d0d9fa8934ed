"""Matrices that a witness names without holding them: they are evaluated again whenever they are asked for.

A witness of n² numbers for each item of each head would be all that a report weighs. What is here has `__array__`, as
numpy asks for, and is taken by `numpy.asarray` wherever a matrix is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from aatc.passes.analysis.result import AnalysisError

if TYPE_CHECKING:
    from aatc.passes.analysis.attention_rows import AttentionRows


def rows_of_laws(array: np.ndarray) -> np.ndarray | None:
    """Rows (n, m) divided by their sums, which rounding puts off 1; None where a query, or one of a tile's, sees no
    key."""
    sums = array.sum(-1, keepdims=True)
    return array / sums if (sums > 1 - 1e-6).all() else None


def underflowed(seen: AttentionRows, head: int, batch: int) -> int:
    """How many weights of one head are 0 though their scores are finite: exponentials below the range of float64, which
    no mask forbids. None are where weights are no exponentials."""
    if not seen.exponential:
        return 0
    count = 0
    for start, weights in seen.stripes(head, batch):
        zero = weights == 0
        if bool(zero.any()):
            scores = seen.scores(head, start, start + len(weights), batch)
            if scores is None:
                return 0
            count += int((zero & scores.isfinite()).sum())
    return count


@dataclass(frozen=True, eq=False)
class PatternSource:
    """The pattern of one head as an analysis within ``memory`` bytes sees it: (n, m), or that of its tiles.

    What it holds is what was captured: O(n), and tables of pairs that all patterns share. Raises AnalysisError where
    these were changed so that a query sees no key."""

    seen: AttentionRows = field(repr=False)
    head: int
    batch: int
    memory: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        rows = rows_of_laws(self.seen.pattern(self.head, self.batch, memory=self.memory).array)
        if rows is None:
            raise AnalysisError(
                f"{self.seen.name}: some queries of head {self.head} see no key any more",
                hint="a mask or bias of the model was changed after it was analysed: analyse it again",
            )
        return rows if dtype is None else rows.astype(dtype, copy=False)


@dataclass(frozen=True, eq=False)
class WholePattern:
    """All weights of one head, (n, m), as they are, rows without a key among them."""

    seen: AttentionRows = field(repr=False)
    head: int
    batch: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        weights: np.ndarray = np.minimum(self.seen.whole(self.head, self.batch), 1.0)
        return weights if dtype is None else np.asarray(weights, dtype=dtype)


def step_lengths(weights: np.ndarray) -> np.ndarray:
    """−log of weights in [0, 1], infinite for 0."""
    with np.errstate(divide="ignore"):
        lengths: np.ndarray = np.abs(np.log(weights))  # −log 1 is −0
    return lengths


@dataclass(frozen=True, eq=False)
class StepLengths:
    """The lengths −log A_ij of the steps of ``pattern`` (n, n), infinite where there is none and on the diagonal."""

    pattern: ArrayLike = field(repr=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        lengths = step_lengths(np.minimum(np.asarray(self.pattern, dtype=np.float64), 1.0))
        np.fill_diagonal(lengths, np.inf)
        return lengths if dtype is None else np.asarray(lengths, dtype=dtype)
