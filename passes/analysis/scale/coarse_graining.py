"""Chains at two scales, and what carries one to the other: block averages, stochastic complements, skipped steps.

A scale is a partition of the states ("average"), a set of states that stay ("complement"), or a number of steps that
are taken at a time ("steps"). Sources: Kemeny, Snell, Finite Markov Chains, chapter 6, for averages and exact lumping;
Meyer, Stochastic complementation, SIAM Review 31 (1989); Grassmann, Taksar, Heyman, Operations Research 33 (1985).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from aatc.passes.analysis.information.markov import unique_stationary
from aatc.passes.analysis.result import AnalysisError, Result
from aatc.passes.analysis.scale.block_sums import block_sums
from aatc.passes.analysis.scale.verify_scale import witnessed
from aatc.passes.analysis.stochastic import distribution, eliminated, row_stochastic

SCHEMES = ("average", "complement", "steps")
TOLERANCE = 1e-9
#: Change of a law's entry by a step up to which it is stationary.
STATIONARY = 1e-9
#: Weight of a block below which its average is no longer one of float64.
LEAST = 1e-290


class ScaleError(AnalysisError):
    """Scales that do not fit each other or the chain, maps that leave the numbers, data without a scale."""


@dataclass(frozen=True, eq=False)
class ScaleConnection:
    """From a ``fine`` chain (n, n) to the ``coarse`` one (m, m) = ``restriction`` (m, n) · fine · ``prolongation``
    (n, m), with the laws of both, (n,) and (m,).

    - "average": restriction is the law within each block, prolongation says which block a state is of;
    - "complement": restriction picks the states that stay, prolongation is the law of the first of them that is met;
    - "steps": restriction is 1, prolongation the power of the fine chain that is left.

    Restrictions and prolongations of successive connections multiply: the way between two scales makes no difference.
    """

    scheme: str
    fine: np.ndarray
    coarse: np.ndarray
    restriction: np.ndarray
    prolongation: np.ndarray
    fine_law: np.ndarray
    coarse_law: np.ndarray

    @property
    def stationary(self) -> bool:
        """Whether steps of the fine chain leave its law as it is; those of the coarse one then do so, too."""
        return bool(np.abs(self.fine_law @ self.fine - self.fine_law).max() <= STATIONARY)


@dataclass(frozen=True)
class LumpabilityDefect:
    """Total variation distance between the law on blocks that a state steps to and that of its block: the largest,
    and the mean under the law. Both are 0 where the chain is exactly lumpable."""

    worst: float
    mean: float


def whole_number(what: str, value: Any) -> int:
    """``value`` ≥ 1 as an int. Raises `ScaleError`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ScaleError(f"{what} is a whole number from 1 on, not {value!r}")
    return int(value)


def block_labels(scale: int | Sequence[int] | np.ndarray, n: int) -> np.ndarray:
    """The block of each of ``n`` states, (n,) of 0..m − 1: of so many consecutive states each, the last may have fewer;
    or as given. Raises `ScaleError` unless every number up to the largest is that of a block."""
    if isinstance(scale, (int, np.integer)):
        return np.arange(n) // whole_number("the size of a block", scale)
    labels = np.asarray(scale)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise ScaleError(
            f"blocks of {n} states are whole numbers ({n},), not {labels.dtype} {labels.shape}",
            hint="give the block of each state, or the size of all blocks",
        )
    found = np.unique(labels)
    if not np.array_equal(found, np.arange(len(found))):
        raise ScaleError(
            f"blocks are numbered 0 to {len(found) - 1}, not {found.tolist()[:8]}", hint="see numpy.unique's inverse"
        )
    return labels.astype(np.int64)


def kept_states(scale: int | Sequence[int] | np.ndarray, n: int) -> np.ndarray:
    """The states that stay, (m,) ascending: every ``scale``-th from the first on, or as given. Raises `ScaleError`."""
    if isinstance(scale, (int, np.integer)):
        return np.arange(0, n, whole_number("the step between states that stay", scale))
    kept = np.asarray(scale)
    if kept.ndim != 1 or not kept.size or kept.dtype.kind not in "iu" or kept.min() < 0 or kept.max() >= n:
        raise ScaleError(f"states that stay are whole numbers from 0 to {n - 1}, at least one")
    if (np.diff(kept.astype(np.int64)) <= 0).any():
        raise ScaleError("states that stay are distinct and ascending", hint="see numpy.unique")
    return kept.astype(np.int64)


def law_of(chain: np.ndarray, measure: Any) -> np.ndarray:
    """The law (n,) that averages are taken with: "stationary", "uniform", or one that is given. Raises
    `NotErgodicError` for a chain with several stationary laws, `ScaleError` and `PatternError`."""
    if isinstance(measure, str):
        if measure == "stationary":
            return unique_stationary(chain, None)
        if measure == "uniform":
            return np.full(len(chain), 1 / len(chain))
        raise ScaleError(f"there is no measure {measure!r}", hint='"stationary", "uniform" or a law (n,)')
    return distribution(measure, len(chain))


def block_average(chain: np.ndarray, labels: np.ndarray, law: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chain on blocks (m, m) and the law of blocks (m,): a block steps as its states do in the mean under ``law``.
    The law of blocks is stationary if ``law`` is. Raises `ScaleError` for a block without weight."""
    mass = np.bincount(labels, law)
    if (mass < LEAST).any():
        raise ScaleError(
            f"block {int(mass.argmin())} has no weight in the law, so that there is no average over it",
            hint='measure="uniform" weighs all states alike; a causal head has its whole stationary law on one token',
        )
    weighted = block_sums((law / mass[labels])[:, None] * chain, labels, 0)
    coarse = block_sums(weighted, labels, 1)
    return coarse / coarse.sum(1, keepdims=True), mass / mass.sum()


def stochastic_complement(chain: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chain watched on the states that stay, A_KK + A_KR (1 − A_RR)⁻¹ A_RK, (m, m), and the law of the first of
    them that each state meets, (n, m). No subtraction is taken, so that every entry keeps its digits. Raises
    `PatternError` where the others can be stayed in for ever."""
    n, m = len(chain), len(kept)
    order = np.concatenate([kept, np.setdiff1d(np.arange(n), kept)])
    work = eliminated(chain[np.ix_(order, order)], m)
    first = np.eye(n, m)
    for state in range(m, n):
        steps = work[state, :state]
        first[state] = steps @ first[:state] / steps.sum()
    complement = work[:m, :m] / work[:m, :m].sum(1, keepdims=True)
    met = np.empty((n, m))
    met[order] = first / first.sum(1, keepdims=True)
    return complement, met


def _average(chain: np.ndarray, law: np.ndarray, first: np.ndarray, second: np.ndarray) -> ScaleConnection:
    fine, fine_law = block_average(chain, first, law)
    blocks = np.zeros(len(fine), dtype=np.int64)
    blocks[first] = second
    if not np.array_equal(blocks[first], second):
        raise ScaleError(
            "a block of scale1 lies in two of scale2, which is not coarser",
            hint="sizes of blocks divide one another, as 2 and 6 do",
        )
    coarse, coarse_law = block_average(fine, blocks, fine_law)
    member = np.eye(len(coarse))[blocks]
    return ScaleConnection("average", fine, coarse, (member * (fine_law[:, None] / coarse_law[blocks][:, None])).T,
                           member, fine_law, coarse_law)  # fmt: skip


def _watched(chain: np.ndarray, law: np.ndarray, first: np.ndarray, second: np.ndarray) -> ScaleConnection:
    if not np.isin(second, first).all():
        raise ScaleError(
            "a state of scale2 is none of scale1, which is not finer",
            hint="steps between states that stay divide one another, as 2 and 6 do",
        )
    laws = [law[kept] for kept in (first, second)]
    if min(part.sum() for part in laws) < LEAST:
        raise ScaleError("the states that stay have no weight in the law", hint="keep a recurrent state")
    fine, _ = stochastic_complement(chain, first)
    at = np.searchsorted(first, second)
    coarse, met = stochastic_complement(fine, at)
    return ScaleConnection(
        "complement", fine, coarse, np.eye(len(first))[at], met, laws[0] / laws[0].sum(), laws[1] / laws[1].sum()
    )


def _power(chain: np.ndarray, steps: int) -> np.ndarray:
    """So many steps at a time; rounding, which many steps add up, is taken out of the rows' sums."""
    power = np.linalg.matrix_power(chain, steps)
    rows: np.ndarray = power / power.sum(1, keepdims=True)
    return rows


def _skipped(chain: np.ndarray, law: np.ndarray, first: int, second: int) -> ScaleConnection:
    if second % first:
        raise ScaleError(f"{second} steps are no multiple of {first}")
    fine, coarse = _power(chain, first), _power(chain, second)
    left = _power(fine, second // first - 1)
    return ScaleConnection("steps", fine, coarse, np.eye(len(chain)), left, law, law)


def _resolved(scheme: str, scale: Any, n: int) -> Any:
    if scheme == "average":
        return block_labels(scale, n)
    if scheme == "complement":
        return kept_states(scale, n)
    if scheme == "steps":
        return whole_number("a number of steps", scale)
    raise ScaleError(f"there is no scheme {scheme!r}", hint=f"there are: {', '.join(SCHEMES)}")


def connect(chain: np.ndarray, law: np.ndarray, scheme: str, first: Any, second: Any) -> ScaleConnection:
    """The connection between two scales of a checked chain, as `_resolved` has them."""
    if scheme == "steps":
        return _skipped(chain, law, first, second)
    return (_average if scheme == "average" else _watched)(chain, law, first, second)


def scale_connection(
    pattern: Any, scale1: Any, scale2: Any, *, scheme: str = "average", measure: Any = "stationary"
) -> Result[ScaleConnection]:
    """From the chain of a pattern (n, n) at scale 1 to that at scale 2, which is coarser: a `ScaleConnection`, P2.

    ``scheme`` "average": scales are sizes of blocks of consecutive states, or the block of each state (n,);
    "complement": every so-many-th state stays, or the states that stay, ascending; "steps": numbers of steps at a time.
    ``measure`` is the law that is carried along, and that "average" takes its means with: "stationary", "uniform" or
    (n,). All schemes carry the stationary law of a chain to that of the coarse one. Raises `ScaleError`,
    `PatternError`, and `NotErgodicError` where there are several stationary laws.
    """
    chain = row_stochastic(pattern, square=True)
    if chain.ndim != 2:
        raise ScaleError(f"one chain at a time has shape (n, n), not {chain.shape}")
    first, second = (_resolved(scheme, scale, len(chain)) for scale in (scale1, scale2))
    law = law_of(chain, measure)
    value = connect(chain, law, scheme, first, second)
    data = {"pattern": chain.copy(), "law": law, "scheme": scheme, "scale1": first, "scale2": second}  # fmt: skip
    return witnessed(value, "scale_connection", data, TOLERANCE)


def cocycle_defect(
    pattern: Any, scales: Sequence[Any], *, scheme: str = "average", measure: Any = "stationary"
) -> Result[float]:
    """How far the connections between ``scales``, finest first, are from composing: the largest entry of
    R₁₃ − R₂₃R₁₂, P₁₃ − P₁₂P₂₃ and A₁₃ − A₂₃ over all three of them. 0 but for rounding: the semigroup law. P2. Raises
    as `scale_connection` does."""
    chain = row_stochastic(pattern, square=True)
    if chain.ndim != 2:
        raise ScaleError(f"one chain at a time has shape (n, n), not {chain.shape}")
    known = [_resolved(scheme, scale, len(chain)) for scale in scales]
    law = law_of(chain, measure)
    worst = 0.0
    for a, b, c in combinations(known, 3):
        short, long, whole = (connect(chain, law, scheme, x, y) for x, y in ((a, b), (b, c), (a, c)))
        for gap in (
            whole.restriction - long.restriction @ short.restriction,
            whole.prolongation - short.prolongation @ long.prolongation,
            whole.coarse - long.coarse,
        ):
            worst = max(worst, float(np.abs(gap).max()))
    data = {"pattern": chain.copy(), "law": law, "scheme": scheme, "scales": tuple(known)}
    return witnessed(worst, "cocycle", data, TOLERANCE, residual=worst)


def lumpability_defect(pattern: Any, scale: Any, *, measure: Any = "uniform") -> Result[LumpabilityDefect]:
    """How far a pattern (n, n) is from being exactly lumpable to blocks, sizes or labels as in `block_labels`: a
    `LumpabilityDefect`, P2. Raises `ScaleError` and `PatternError`."""
    chain = row_stochastic(pattern, square=True)
    labels, law = block_labels(scale, len(chain)), law_of(chain, measure)
    value = lumpability(chain, labels, law)
    return witnessed(value, "lumpability", {"pattern": chain.copy(), "law": law, "labels": labels}, TOLERANCE)


def lumpability(chain: np.ndarray, labels: np.ndarray, law: np.ndarray) -> LumpabilityDefect:
    """`lumpability_defect` of a checked chain."""
    coarse, _ = block_average(chain, labels, law)
    apart = np.abs(block_sums(chain, labels, 1) - coarse[labels]).sum(1) / 2
    return LumpabilityDefect(float(apart.max()), float(law @ apart))
