"""Barcodes of a head against those of patterns that share its rows' sharpness and nothing else.

Independent random weights have thousands of cycles, so that a number of loops says nothing by itself. What a head has
beyond chance is told by null models: "shuffled" puts the weights of every row on the keys that it may see in random
order; "entropy" draws rows anew, softmax of normal scores at the temperature that gives the row's entropy.

Sources: for permutation tests B. Phipson, G. Smyth, "Permutation P-values should never be zero" (2010); for topological
statistics under null models C. Giusti et al., "Clique topology reveals intrinsic geometric structure", PNAS 112 (2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aatc.passes.analysis.cohomology.persistence import (
    FiltrationError,
    attention_dissimilarity,
    edge_threshold,
    rips_persistence,
)
from aatc.passes.analysis.cohomology.rips_routes import route_cost
from aatc.passes.analysis.deadline import proceed
from aatc.passes.analysis.result import Cost, Result, Undecided
from aatc.passes.analysis.stochastic import row_stochastic

MODELS = ("shuffled", "entropy")
STATISTICS = ("longest_h0", "longest_h1", "total_h1")
#: Newton steps to the temperature of a row, each kept between what is known to be too hot and too cold.
_STEPS = 60


@dataclass(frozen=True)
class NullComparison:
    """One statistic of a pattern beside ``draws`` draws of a null model: their ``mean`` and standard ``deviation``.

    ``z`` is (observed − mean)/deviation; ``p`` the share of draws, the pattern counted among them, whose statistic is
    at least as far from the mean.
    """

    observed: float
    mean: float
    deviation: float
    z: float
    p: float
    draws: int

    def __str__(self) -> str:
        return f"{self.observed:.3g} against {self.mean:.3g} ± {self.deviation:.2g}: z {self.z:+.1f}, p {self.p:.2g}"


def shuffled_rows(pattern: Any, rng: np.random.Generator) -> np.ndarray:
    """Every row's positive weights in random order on the keys that have them: (n, m). Raises `PatternError`."""
    matrix = row_stochastic(pattern)
    order = np.argsort(np.where(matrix > 0, rng.random(matrix.shape), 2.0), axis=-1)  # the others stay behind
    places = np.argsort(matrix <= 0, axis=-1, kind="stable")
    out = np.zeros_like(matrix)
    np.put_along_axis(out, places, np.take_along_axis(matrix, order, -1), -1)
    return out


def rows_of_entropy(pattern: Any, rng: np.random.Generator) -> np.ndarray:
    """Rows softmax(βs) of normal scores s on the keys with positive weight, β such that each row has the entropy of the
    pattern's: (n, m), entropies within 1e-5 nats. Raises `PatternError`."""
    matrix = row_stochastic(pattern)
    shape = matrix.shape
    matrix = matrix.reshape(-1, shape[-1])
    seen = matrix > 0
    wanted = -(matrix * np.log(np.where(seen, matrix, 1.0))).sum(-1)
    scores = np.where(seen, rng.standard_normal(matrix.shape), -np.inf)
    scores -= scores.max(-1, keepdims=True)
    out = np.empty_like(matrix)
    low, high = np.zeros(len(matrix)), np.full(len(matrix), np.inf)
    beta = np.sqrt(2 * np.maximum(np.log(seen.sum(-1)) - wanted, 0.0))  # exact for small β and many keys
    left = np.arange(len(matrix))
    for _ in range(_STEPS):
        proceed()
        s = scores[left]
        with np.errstate(invalid="ignore"):  # 0 · −∞
            rows = np.exp(np.where(np.isneginf(s), s, beta[left, None] * s))
        total = rows.sum(-1)
        out[left] = rows = rows / total[:, None]
        filled = np.where(np.isneginf(s), 0.0, s)
        mean = (rows * filled).sum(-1)
        error = np.log(total) - beta[left] * mean - wanted[left]
        slope = -beta[left] * (np.einsum("ij,ij,ij->i", rows, filled, filled) - mean**2)
        wrong = np.abs(error) >= 1e-5
        left, error, slope = left[wrong], error[wrong], slope[wrong]
        if not len(left):
            break
        low[left] = np.where(error > 0, beta[left], low[left])
        high[left] = np.where(error > 0, high[left], beta[left])
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = beta[left] - error / slope
        middle = np.where(np.isinf(high[left]), 2 * low[left] + 1, (low[left] + high[left]) / 2)
        beta[left] = np.where((newton > low[left]) & (newton < high[left]), newton, middle)
    return out.reshape(shape)


def loop_statistics(pattern: Any, edges_per_token: float | None = None) -> dict[str, float]:
    """Of the barcodes of −log max(A, Aᵀ): the longest finite bar of degrees 0 and 1, and the total length in degree 1.
    A bar that is alive where the filtration is cut counts up to there. Raises `FiltrationError`."""
    proceed()
    d = attention_dissimilarity(pattern)
    finite = d[np.isfinite(d)]
    cut = float(finite.max(initial=0.0))
    if edges_per_token is not None:
        cut = min(cut, edge_threshold(d, int(edges_per_token * len(d))))
    bars = rips_persistence(d, threshold=cut).value.bars
    first = bars[0][np.isfinite(bars[0][:, 1])]
    lengths = np.minimum(bars[1][:, 1], cut) - bars[1][:, 0]
    return {
        "longest_h0": float((first[:, 1] - first[:, 0]).max(initial=0.0)),
        "longest_h1": float(lengths.max(initial=0.0)),
        "total_h1": float(lengths.sum()),
    }


def estimate_cost(n: int, draws: int, edges_per_token: float | None) -> Cost:
    """What `against_null` of n tokens takes."""
    pairs = n * (n - 1) // 2
    edges = pairs if edges_per_token is None else min(pairs, int(edges_per_token * n))
    one = 4e-3 + 1e-7 * n * n + 1.5e-9 * edges * n
    return Cost((draws + 1) * one, route_cost("annotations", n, 1, edges).bytes + 64.0 * n * n)


def against_null(
    pattern: Any,
    model: str = "shuffled",
    *,
    draws: int = 20,
    edges_per_token: float | None = None,
    seed: int = 0,
    observed: dict[str, float] | None = None,
    budget: Cost | None = None,
) -> Result[dict[str, NullComparison | Undecided]]:
    """`loop_statistics` of a pattern (n, n) beside those of ``draws`` patterns of a null model, by name.

    A statistic that is the same in all draws is `Undecided`. A diagnostic (P3): it tells by how much a head's topology
    is not that of chance, and licenses nothing. Raises `FiltrationError`, `PatternError`, and `BudgetError` above
    ``budget``.
    """
    if model not in MODELS:
        raise FiltrationError(f"there is no null model {model!r}", hint=f"there are: {', '.join(MODELS)}")
    if draws < 2:
        raise FiltrationError(f"{draws} draws have no deviation", hint="take 20 or more")
    matrix = row_stochastic(pattern, square=True)
    if budget is not None:
        estimate_cost(len(matrix), draws, edges_per_token).check(budget, f"{draws} null models of {len(matrix)} tokens")
    rng = np.random.default_rng(seed)
    draw = shuffled_rows if model == "shuffled" else rows_of_entropy
    own = loop_statistics(matrix, edges_per_token) if observed is None else observed
    chance = [loop_statistics(draw(matrix, rng), edges_per_token) for _ in range(draws)]
    value = {name: _compared(own[name], np.array([c[name] for c in chance])) for name in STATISTICS}
    return Result(value, "P3", assumptions=(f"{draws} draws of the null model {model!r}", f"seed {seed}"))


def _compared(observed: float, chance: np.ndarray) -> NullComparison | Undecided:
    mean, deviation = float(chance.mean()), float(chance.std(ddof=1))
    if deviation <= 1e-9 * max(1.0, abs(mean)):
        return Undecided("null models that vary", f"all draws have {mean:.4g}, the pattern {observed:.4g}")
    far = int((np.abs(chance - mean) >= abs(observed - mean)).sum())
    p = (far + 1) / (len(chance) + 1)
    return NullComparison(observed, mean, deviation, (observed - mean) / deviation, p, len(chance))
