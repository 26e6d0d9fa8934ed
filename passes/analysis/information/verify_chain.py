"""Witnesses about one Markov chain, and the small programs that re-check them.

Nothing here uses the code that made a witness: classes are found by following steps, residuals are recomputed from the
matrices by their definition, and that nothing larger was overlooked is shown by inertia, all pairs of rows or Doeblin's
bound. A matrix may be given by whatever numpy makes an array of, and is then evaluated when the witness is checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from aatc.passes.analysis.result import mismatch, verify, worst

WRONG = float("inf")
ULP = float(np.finfo(np.float64).eps)
ROWS = 256  # rows whose distances to all others are held at once
EIGENVALUES_LIMIT = 512  # states up to which a block that is not symmetric has all its eigenvalues recomputed
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class StationaryWitness:
    """The rows of ``stationary`` (k, n), or one law (n,), claim to be π = πA of ``pattern`` (n, n), one for each
    recurrent class: there is no other stationary law but mixtures of these."""

    pattern: ArrayLike
    stationary: np.ndarray


@dataclass(frozen=True, eq=False)
class PeriodWitness:
    """The least common multiple of the periods of the recurrent classes of ``pattern`` (n, n) is recomputed."""

    pattern: ArrayLike


@dataclass(frozen=True, eq=False)
class EigenpairWitness:
    """``value`` and ``vector`` (n,) claim A v = λ v for ``matrix`` (n, n), and no more: not which eigenvalue it is."""

    matrix: ArrayLike
    value: complex
    vector: np.ndarray


@dataclass(frozen=True, eq=False)
class BlockWitness:
    """``value``, ``vector`` (k,) claim to be an eigenpair of largest modulus of the block ``states`` (k,) of a chain,
    after a 1 is taken away where ``stationary`` (k,), a law of the block, is given. With ``scale`` s (k,), √π as a unit
    vector, the vector is one of the symmetric √A∘√Aᵀ − ssᵀ."""

    states: np.ndarray
    value: complex
    vector: np.ndarray
    stationary: np.ndarray | None = None
    scale: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class SpectrumWitness:
    """``value`` claims to be the eigenvalue of largest modulus of ``pattern`` (n, n) besides one eigenvalue 1: the
    largest of those of ``blocks`` and of the diagonal entries of ``singles`` (m,), states that are a class each.
    ``absorbing``: whether the 1 that is taken away is the diagonal entry of a single state."""

    pattern: ArrayLike
    blocks: tuple[BlockWitness, ...]
    singles: np.ndarray
    absorbing: bool
    value: complex


@dataclass(frozen=True, eq=False)
class RowPairWitness:
    """Rows ``first`` and ``second`` of ``pattern`` claim the total-variation distance ``distance``, and that no two
    rows are farther apart: all pairs are compared."""

    pattern: ArrayLike
    first: int
    second: int
    distance: float


@dataclass(frozen=True, eq=False)
class DoeblinWitness:
    """``bound`` claims to be 1 − Σ_j min_i A_ij of ``pattern`` (n, m), which bounds Dobrushin's coefficient."""

    pattern: ArrayLike
    bound: float


Contraction = RowPairWitness | DoeblinWitness


@dataclass(frozen=True, eq=False)
class StabilityWitness:
    """1 − τ(A), or the lower bound of it, by the witness of τ(A) or of its bound."""

    contraction: Contraction


@dataclass(frozen=True, eq=False)
class ChainWitness:
    """Everything that an analysis of one chain claims about vectors: its laws, and how its rows differ."""

    parts: tuple[StationaryWitness, Contraction]


# --- classes -----------------------------------------------------------------------------------------------
def _reached(support: Mask, start: Mask) -> Mask:
    """The states that steps of ``support`` (n, n) lead to from those of ``start`` (n,), with these."""
    seen, front = start.copy(), start
    while front.any():
        front = support[front].any(0) & ~seen
        seen |= front
    return seen


def _joined(support: Mask) -> bool:
    """Whether all states reach each other."""
    start = np.arange(len(support)) == 0
    return bool(support.all()) or bool(_reached(support, start).all() and _reached(support.T, start).all())


def _period(support: Mask) -> int:
    """The greatest common divisor of the lengths of closed walks among states (k, k) that reach each other; 0 where
    there is none."""
    if np.diagonal(support).any():
        return 1
    distance, front, steps = np.full(len(support), -1), np.arange(len(support)) == 0, 0
    while front.any():
        distance[front] = steps
        front, steps = support[front].any(0) & (distance < 0), steps + 1
    tails, heads = np.nonzero(support)
    return int(np.gcd.reduce(distance[tails] + 1 - distance[heads]))


def _triangular(support: Mask, parts: list[np.ndarray]) -> bool:
    """Whether the parts hold every state once and no closed walk of ``support`` leaves one of them: the eigenvalues are
    then those of the parts."""
    if sorted(s for part in parts for s in part.tolist()) != list(range(len(support))):
        return False
    order, starts = np.concatenate(parts), np.cumsum([0, *(len(part) for part in parts[:-1])])
    steps = np.logical_or.reduceat(np.logical_or.reduceat(support[np.ix_(order, order)], starts, 0), starts, 1)
    np.fill_diagonal(steps, False)
    entering, ready, seen = steps.sum(0), [], 0
    ready = np.flatnonzero(entering == 0).tolist()
    while ready:
        after = np.flatnonzero(steps[ready.pop()])
        seen += 1
        entering[after] -= 1
        ready += after[entering[after] == 0].tolist()
    return seen == len(parts)


def unique_law(pattern: np.ndarray, law: np.ndarray) -> float:
    """By how much ``law`` (n,) fails to be the one stationary law of ``pattern``; infinite where there are several."""
    return verify(StationaryWitness(pattern, law))


@verify.register
def _stationary(witness: StationaryWitness) -> float:
    """max(‖πA − π‖₁, |Σπ − 1|, −min π, what lies outside the class) of all laws; infinite where a law's likeliest state
    is not recurrent, two laws have one class, or a class has no law."""
    pattern = np.asarray(witness.pattern)
    pi = np.atleast_2d(witness.stationary)
    support, taken = pattern > 0, np.zeros(len(pattern), dtype=bool)
    outside = 0.0
    if pi.ndim != 2 or not np.isfinite(pi).all():
        return WRONG
    for law in pi:
        top = np.arange(len(law)) == int(law.argmax())
        inside = _reached(support, top)
        if (inside & (taken | ~_reached(support.T, top))).any():
            return WRONG
        taken |= inside
        outside = max(outside, float(np.abs(law[~inside]).sum()))
    if not _reached(support.T, taken).all():
        return WRONG
    moved = np.abs(pi @ pattern - pi).sum(-1)
    return float(np.max([moved.max(), np.abs(pi.sum(-1) - 1).max(), -pi.min(), outside]))


@mismatch.register
def _stationary_value(witness: StationaryWitness, value: Any) -> float:
    """A value is the laws, or how many there are."""
    if isinstance(value, int):
        return 0.0 if value == len(np.atleast_2d(witness.stationary)) else WRONG
    return apart(witness.stationary, value)


def apart(one: Any, two: Any) -> float:
    """The largest difference of two arrays; infinite for other shapes, 0 for entries that are equal infinities."""
    a, b = np.asarray(one), np.asarray(two)
    if a.shape != b.shape or not (a.dtype.kind in "fciub" and b.dtype.kind in "fciub"):
        return WRONG
    with np.errstate(invalid="ignore"):
        difference = np.where(a == b, 0.0, np.abs(a.astype(np.complex128) - b))
    return float(np.where(np.isnan(difference), WRONG, difference).max(initial=0.0))


@verify.register
def _no_claim(witness: PeriodWitness) -> float:
    """0: all is recomputed from the pattern."""
    return 0.0


@mismatch.register
def _period_value(witness: PeriodWitness, value: Any) -> float:
    support, left = np.asarray(witness.pattern) > 0, np.ones(len(np.asarray(witness.pattern)), dtype=bool)
    periods = []
    while left.any():
        inside = _reached(support, np.arange(len(left)) == int(left.argmax()))
        while True:  # down to a class that nothing leaves
            start = np.arange(len(left)) == int(inside.argmax())
            further, back = _reached(support, start), _reached(support.T, start)
            if not (further & ~back).any():
                break
            inside = further & ~back
        periods.append(_period(support[np.ix_(further, further)]))
        left &= ~back
    return 0.0 if value == math.lcm(*periods) else WRONG


# --- spectra -----------------------------------------------------------------------------------------------
@verify.register
def _eigenpair(witness: EigenpairWitness) -> float:
    """‖Av − λv‖₂/‖v‖₂; infinite for v = 0."""
    return _residual(np.asarray(witness.matrix), witness.value, witness.vector)


def _residual(matrix: np.ndarray, value: complex, vector: np.ndarray) -> float:
    length = float(np.linalg.norm(vector))
    return float(np.linalg.norm(matrix @ vector - value * vector)) / length if length else WRONG


def _positive(matrix: np.ndarray) -> bool:
    """Whether a symmetric matrix has no eigenvalue below 0, up to rounding: whether Cholesky's factors exist."""
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True


def _symmetric_defect(block: np.ndarray, witness: BlockWitness) -> float:
    """By how much |λ| may be off. H = √A∘√Aᵀ − ssᵀ has no eigenvalue beyond ±(|λ| + 8k ulps), by the inertia of both
    differences; the spectrum of A is as near to that of H as √2‖D^½AD^-½ − √A∘√Aᵀ‖_F and 3‖√A∘√Aᵀs − s‖ say."""
    scale = np.asarray(witness.scale)
    root = np.sqrt(block)
    similar = root * root.T
    breach = float(np.linalg.norm(scale[:, None] * block / scale - similar))
    drift = float(np.linalg.norm(similar @ scale - scale)) + abs(float(scale @ scale) - 1)
    deflated = similar - np.outer(scale, scale)
    slack = 8 * len(block) * ULP
    shift = np.eye(len(block)) * (abs(witness.value) + slack)
    if not (_positive(shift - deflated) and _positive(shift + deflated)):
        return WRONG
    return _residual(deflated, witness.value, witness.vector) + 2**0.5 * breach + 3 * drift + slack


def _general_defect(block: np.ndarray, witness: BlockWitness) -> float:
    """The residual of the pair; up to EIGENVALUES_LIMIT states infinite where an eigenvalue lies beyond |λ| by more
    than its condition number allows. Beyond, the pair alone is checked: such a gap is a diagnostic (P3)."""
    found = _residual(block, witness.value, witness.vector)
    if len(block) > EIGENVALUES_LIMIT:
        return found
    if abs(np.linalg.eigvals(block)).max() - abs(witness.value) <= 2 * found:
        return found
    values, left, right = scipy.linalg.eig(block, left=True, right=True)
    top = int(np.abs(values).argmax())
    overlap = abs(np.vdot(left[:, top], right[:, top]))
    room = 16 * len(block) * ULP / overlap if overlap else WRONG
    return WRONG if abs(values[top]) - abs(witness.value) > max(room, 2 * found) else found


@verify.register
def _spectrum(witness: SpectrumWitness) -> float:
    """By how much |λ| may be off, as the blocks' own checks say. Infinite where the parts do not make the pattern
    block-triangular, not just one 1 is taken away, or ``value`` is not the largest of the parts."""
    pattern = np.asarray(witness.pattern)
    singles = np.asarray(witness.singles)
    if singles.dtype.kind not in "iu" and len(singles):
        return WRONG
    singles = singles.astype(np.int64)
    parts = [*(np.asarray(b.states) for b in witness.blocks), *singles[:, None]]
    removed = sum(b.stationary is not None for b in witness.blocks) + witness.absorbing
    if not all(map(len, parts)) or not _triangular(pattern > 0, parts) or removed != 1:
        return WRONG
    moduli, off = [], 4 * ULP
    diagonal = np.sort(pattern[singles, singles])
    if witness.absorbing:
        if not len(diagonal) or abs(diagonal[-1] - 1) > 4 * ULP:
            return WRONG
        diagonal[-1] -= 1
    moduli += np.abs(diagonal).tolist()
    for block in witness.blocks:
        inside = pattern[np.ix_(block.states, block.states)]
        law = block.stationary
        if law is not None:
            moved = float(np.abs(law @ inside - law).sum())
            off = worst(off, float(np.abs(inside.sum(1) - 1).max()), abs(float(law.sum()) - 1), moved)
        if block.scale is not None:
            off = worst(off, WRONG if law is None else _symmetric_defect(inside, block))
        else:
            off = worst(off, _general_defect(inside if law is None else inside - law, block))
        moduli.append(abs(block.value))
    # a repeated eigenvalue of the largest modulus may be told by any of the parts that have it
    known = [*diagonal.tolist(), *(b.value for b in witness.blocks)]
    return worst(off, abs(max(moduli) - abs(witness.value)), min(abs(x - witness.value) for x in known))


@mismatch.register
def _gap_value(witness: SpectrumWitness, value: Any) -> float:
    return float(abs(1 - abs(witness.value) - value))


# --- contraction -------------------------------------------------------------------------------------------
@verify.register
def _row_pair(witness: RowPairWitness) -> float:
    """The larger of how far the claimed distance is from that of the two rows, and of what another pair exceeds it
    by."""
    pattern = np.asarray(witness.pattern, dtype=np.float64)
    rows = pattern[witness.first] - pattern[witness.second]
    farthest = max(
        float(cdist(pattern[i : i + ROWS], pattern[i:], "cityblock").max()) for i in range(0, len(pattern), ROWS)
    )
    return worst(abs(float(np.abs(rows).sum()) / 2 - witness.distance), farthest / 2 - witness.distance)


@mismatch.register
def _row_pair_value(witness: RowPairWitness, value: Any) -> float:
    return float(abs(min(witness.distance, 1.0) - value))


@verify.register
def _doeblin(witness: DoeblinWitness) -> float:
    """The deviation of the bound from what the least entries of the columns give."""
    found = 1 - float(np.asarray(witness.pattern).min(0).sum())
    return abs(min(max(found, 0.0), 1.0) - witness.bound)


@mismatch.register
def _doeblin_value(witness: DoeblinWitness, value: Any) -> float:
    return float(abs(witness.bound - value))


@verify.register
def _stability(witness: StabilityWitness) -> float:
    return verify(witness.contraction)


@mismatch.register
def _stability_value(witness: StabilityWitness, value: Any) -> float:
    return mismatch(witness.contraction, 1 - value)


# --- the analysis of a chain -------------------------------------------------------------------------------
@verify.register
def _chain(witness: ChainWitness) -> float:
    """The largest residual of the parts; infinite unless they are about one pattern."""
    laws, contraction = witness.parts
    if laws.pattern is not contraction.pattern and apart(laws.pattern, contraction.pattern):
        return WRONG
    return worst(verify(laws), verify(contraction))


@mismatch.register
def _chain_value(witness: ChainWitness, value: Any) -> float:
    """Every field of an ergodic analysis that holds a number: recomputed, or by its own witness."""
    laws, contraction = witness.parts
    matrix = np.asarray(laws.pattern)
    support = matrix > 0
    classes = value.classes
    if not _classes_hold(support, classes) or value.irreducible != (len(classes) == 1):
        return WRONG
    periods = [c.period for c in classes if c.recurrent]
    flow = laws.stationary[0][:, None] * matrix
    balanced = len(periods) == 1 and bool(np.abs(flow - flow.T).max() <= 1e-12 * flow.max())
    exact = isinstance(contraction, RowPairWitness)
    if value.period != math.lcm(*periods) or value.reversible != balanced or value.dobrushin_exact != exact:
        return WRONG
    found = [mismatch(laws, value.stationary), mismatch(contraction, value.dobrushin)]
    found.append(_gap_defect(laws.pattern, matrix, value.gap, periods))
    found.append(_kemeny_defect(matrix, laws.stationary, value.kemeny, periods))
    if isinstance(value.birkhoff, float):
        found.append(abs(_birkhoff(matrix) - value.birkhoff))
    found.append(_mixing_defect(matrix, laws.stationary[0], value))
    return worst(*found)


def _classes_hold(support: Mask, classes: Iterable[Any]) -> bool:
    """Whether these are all the classes of states that reach each other, each with its period and whether steps leave
    it."""
    parts = [np.asarray(c.states) for c in classes]
    if not _triangular(support, parts) or [int(x[0]) for x in parts] != sorted(int(x.min()) for x in parts):
        return False
    for c, states in zip(classes, parts):
        inside = support[np.ix_(states, states)]
        if (np.diff(states) <= 0).any() or not _joined(inside) or c.period != _period(inside):
            return False
        outgoing = support[states].any(0)
        outgoing[states] = False
        if c.recurrent == bool(outgoing.any()):
            return False
    return True


def _gap_defect(source: ArrayLike, matrix: np.ndarray, gap: Any, periods: list[int]) -> float:
    """What the gap's own witness leaves above its tolerance; for a gap that is said not to exist, whether so many
    recurrent classes and such a period forbid it."""
    if hasattr(gap, "recurrent_classes"):
        forbids = len(periods) > 1 or periods[0] > 1
        right = forbids and (gap.recurrent_classes, gap.period) == (len(periods), math.lcm(*periods))
        return 0.0 if right else WRONG
    if not hasattr(gap, "second"):
        return 0.0  # undecided
    same = gap.witness.pattern is source or not apart(gap.witness.pattern, matrix)
    if not same or not abs(gap.second - gap.witness.value) <= gap.tolerance:
        return WRONG
    return max(0.0, float(gap.verify() - gap.tolerance))


def kemeny(matrix: np.ndarray, law: np.ndarray) -> float:
    """tr (I − A + 1π)⁻¹ − 1 of a chain with one recurrent class."""
    return float(np.trace(np.linalg.inv(np.eye(len(matrix)) - matrix + law))) - 1


def _kemeny_defect(matrix: np.ndarray, laws: np.ndarray, value: Any, periods: list[int]) -> float:
    """What Kemeny's constant is off by beyond the rounding of an inverse, whose condition is as large as it is."""
    if hasattr(value, "recurrent_classes"):
        right = (value.recurrent_classes, value.period) == (len(laws), math.lcm(*periods))
        return 0.0 if right and len(laws) > 1 else WRONG
    if not isinstance(value, float):
        return 0.0  # undecided
    if len(laws) != 1:
        return WRONG
    off = abs(kemeny(matrix, laws[0]) - value)
    return float(worst(0.0, off - max(1.0, value) * (1e-9 + len(matrix) * ULP * max(1.0, value))))


def _birkhoff(matrix: np.ndarray) -> float:
    """tanh(Δ/4) with Δ the largest |log A_ik A_jl/(A_jk A_il)| over the columns that are not zero."""
    kept = matrix[:, (matrix > 0).any(0)]
    if not (kept > 0).all():
        return 1.0
    logs = np.log(kept)
    largest = max(float(np.ptp(logs[i + 1 :] - logs[i], axis=1).max(initial=0.0)) for i in range(len(logs)))
    return math.tanh(largest / 4)


def _mixing_defect(matrix: np.ndarray, law: np.ndarray, value: Any) -> float:
    """Infinite where a bound of the mixing time does not follow from the gap, the law and the contraction (Levin,
    Peres, Wilmer, theorems 12.4 and 12.5, and the decay of an approximate eigenvector); weaker bounds pass."""
    mixing, gap, eps = value.mixing_time, value.gap, getattr(value.mixing_time, "distance", 0.5)
    if hasattr(mixing, "recurrent_classes") or hasattr(gap, "recurrent_classes"):
        return 0.0 if mixing == gap else WRONG
    upper, lower = math.inf, 0.0
    if 0 <= value.dobrushin + len(law) * ULP < 1:
        upper = max(1.0, math.ceil(math.log(eps) / math.log(value.dobrushin + len(law) * ULP)))
    if hasattr(gap, "second") and value.irreducible:
        if gap.proof_level == "P2":
            lower = max(0.0, (1 / (gap.value + gap.tolerance) - 1) * math.log(1 / (2 * eps)))
            least = float(law.min())
            if least > 0:
                slow = (-math.log(eps) - math.log(least)) / (gap.value - gap.tolerance)
                upper = min(upper, math.ceil(slow))
        else:
            lower = mixing.lower if _still_far(matrix, law, gap, eps, mixing.lower) else -1.0
    right = 0 <= mixing.lower <= lower * (1 + 1e-9) + 1e-9 and mixing.upper >= upper * (1 - 1e-9)
    return 0.0 if right else WRONG


def _still_far(matrix: np.ndarray, law: np.ndarray, gap: Any, eps: float, steps: float) -> bool:
    """Whether the eigenvector behind the gap shows that ``steps`` steps leave a distance of at least ``eps``."""
    block = next(b for b in gap.witness.blocks if abs(b.value) == abs(gap.second))
    vector = block.vector - law @ block.vector
    size = float(np.abs(vector).max())
    if steps == 0 or size == 0 or gap.second == 0:
        return steps == 0
    vector = vector / size
    off = float(np.abs(matrix @ vector - gap.second * vector).max()) + 4 * len(law) * ULP
    left = float(abs(gap.second) ** steps - off * (steps + 1 / abs(1 - gap.second)))
    return left >= 2 * eps * (1 - 1e-9)
