"""Barcodes of a relation between two kinds of tokens, as cross-attention is: the Dowker filtration.

A set of queries enters at the least value at which one key relates to all of them: min over keys j of the largest
d_ij. The filtration of sets of keys has the same barcodes, by Dowker's theorem, which holds along filtrations.

Source: S. Chowdhury, F. Mémoli, "A functorial Dowker theorem and persistent homology of asymmetric networks", J. Appl.
Comput. Topol. 2 (2018).
"""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any

import numpy as np

from aatc.passes.analysis.chains.complexes import SimplicialComplex
from aatc.passes.analysis.cohomology.persistence import Barcodes, FiltrationError, filtration_persistence
from aatc.passes.analysis.result import Cost, Result
from aatc.passes.analysis.stochastic import float_array

_SECONDS_PER_CELL = 4e-5


def estimate_cost(n: int, m: int, max_degree: int = 1) -> Cost:
    """What `dowker_persistence` of a relation (n, m) takes."""
    side, other = min(n, m), max(n, m)
    cells = sum(comb(side, k + 1) for k in range(max_degree + 2))
    return Cost(2e-3 + cells * (_SECONDS_PER_CELL + 4e-9 * other), 2**20 + cells * (400.0 + 16.0 * other))


def dowker_persistence(
    attention: Any, max_degree: int = 1, *, side: str = "auto", modulus: int = 2, budget: Cost | None = None
) -> Result[Barcodes]:
    """Barcodes of the Dowker filtration of an attention matrix (n, m), with entries in [0, 1], d = −log A, in degrees 0
    to ``max_degree``.

    ``side``: simplices are sets of "rows" (queries) or "columns" (keys), of the fewer by "auto"; bars are the same. A
    row without a positive entry never enters. All simplices up to dimension ``max_degree`` + 1 are listed. Raises
    `FiltrationError`, and `BudgetError` above ``budget``.
    """
    a = float_array(attention)
    if a.ndim != 2 or not ((a >= 0) & (a <= 1 + 1e-6)).all() or max_degree < 0:
        raise FiltrationError(f"a relation is (n, m) with entries in [0, 1], got shape {a.shape}")
    if side not in ("auto", "rows", "columns"):
        raise FiltrationError(f"side is 'auto', 'rows' or 'columns', not {side!r}")
    if budget is not None:
        estimate_cost(a.shape[0], a.shape[1], max_degree).check(
            budget, f"Dowker barcodes of {a.shape[0]} × {a.shape[1]}"
        )
    if side == "columns" or (side == "auto" and a.shape[1] < a.shape[0]):
        a = a.T
    with np.errstate(divide="ignore"):
        d = -np.log(np.minimum(a, 1.0)) + 0.0
    d = d[np.isfinite(d).any(1)]
    cells = []
    for degree in range(max_degree + 2):
        sets = np.array(list(combinations(range(len(d)), degree + 1)), dtype=np.int64).reshape(-1, degree + 1)
        cells.append(sets[np.isfinite(_entering(d, sets))])
    complex = SimplicialComplex(cells)
    bars: tuple[np.ndarray, ...] = ()
    if len(d):
        bars = filtration_persistence(complex, [_entering(d, c) for c in complex.cells], modulus).value.bars
    kept = tuple(bars[k] if k < len(bars) else np.zeros((0, 2)) for k in range(max_degree + 1))
    return Result(Barcodes(kept, modulus, "own"), "P1")


def _entering(d: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """The value at which each set of rows has a key in common: (count,)."""
    found = np.full(len(sets), np.inf)
    if not d.shape[1]:
        return found
    step = max(1, (1 << 22) // max(1, d.shape[1] * sets.shape[1]))
    for low in range(0, len(sets), step):
        found[low : low + step] = d[sets[low : low + step]].max(1).min(-1)
    return found
