"""Ergodic analysis of an attention pattern: what becomes of a token that hops from row to row.

Sources: Levin, Peres, Wilmer, Markov Chains and Mixing Times, theorems 4.9, 12.4 and 12.5; Kemeny, Snell, Finite
Markov Chains, chapter 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from aatc.passes.analysis.information.contraction import (
    birkhoff_contraction,
    dobrushin_coefficient,
    doeblin_bound,
)
from aatc.passes.analysis.information.markov import (
    DENSE_LIMIT,
    CommunicatingClass,
    NotErgodic,
    class_spectrum,
    communicating_classes,
    stationary_distributions,
)
from aatc.passes.analysis.information.verify_chain import (
    BlockWitness,
    ChainWitness,
    DoeblinWitness,
    RowPairWitness,
    SpectrumWitness,
    StationaryWitness,
)
from aatc.passes.analysis.result import AnalysisError, Cost, Result, Undecided, verify, worst
from aatc.passes.analysis.stochastic import PatternError, eliminated, row_stochastic

PAIRS_LIMIT = 512  # rows up to which pairs of rows are compared without being asked
INVERSE_LIMIT = 1024  # states up to which a fundamental matrix is inverted without being asked
WELL_BELOW = 1e-2  # share of the gap that the error of an eigenvalue may take
ULP = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class SpectralGap(Result[float]):
    """1 − |λ₂|, λ₂ = ``second`` the eigenvalue of largest modulus besides the simple eigenvalue 1.

    P2 within ``tolerance`` where every class is reversible or a single state: λ₂ is then one of a symmetric matrix.
    P3 otherwise: ``residual`` says that λ₂ is that of a matrix so near, but a defective eigenvalue moves by a root of
    such a change (the 0 of a de Bruijn chain on 128 states is found as 0.004), and Arnoldi steps may miss one."""

    second: complex = 0j

    def _mismatch(self) -> float:
        return worst(super()._mismatch(), abs(self.second - self.witness.value))


@dataclass(frozen=True)
class MixingTime:
    """Bounds of the first t with max_i ‖A^t_i − π‖_TV ≤ ``distance``; ``upper`` is infinite where none is proven."""

    lower: float
    upper: float
    distance: float


@dataclass(frozen=True, eq=False)
class ErgodicAnalysis:
    """``stationary`` (k, n): one law per recurrent class, in the order of ``classes``.

    ``dobrushin`` is τ(A) exactly, or an upper bound of it where ``dobrushin_exact`` is False. Where a quantity does
    not exist, the field holds a `NotErgodic` that says why; where it was not computed, an `Undecided`.
    """

    classes: tuple[CommunicatingClass, ...]
    stationary: np.ndarray
    irreducible: bool
    period: int
    reversible: bool
    gap: SpectralGap | NotErgodic | Undecided
    dobrushin: float
    dobrushin_exact: bool
    birkhoff: float | Undecided
    kemeny: float | NotErgodic | Undecided
    mixing_time: MixingTime | NotErgodic

    @property
    def unique(self) -> bool:
        """Whether the stationary law is unique: one recurrent class."""
        return len(self.stationary) == 1


def estimate_cost(n: int) -> Cost:
    """What `ergodic_analysis` of n tokens takes when the chain mixes: power and Arnoldi steps of 2n² flops, and what is
    cubic for short patterns. A chain that hardly mixes, or is reversible, takes several times as long."""
    dense = 3.3e-9 if n <= DENSE_LIMIT else 0.0
    pairs, inverse = (1.2e-9 if n <= PAIRS_LIMIT else 0.0), (1e-10 if n <= INVERSE_LIMIT else 0.0)
    return Cost(seconds=5e-4 + (dense + pairs + inverse) * n**3 + 1.5e-7 * n * n, bytes=8.0 * 5 * n * n)


def _not_ergodic(classes: tuple[CommunicatingClass, ...], allow_period: bool) -> NotErgodic | None:
    recurrent = [c for c in classes if c.recurrent]
    period = math.lcm(*(c.period for c in recurrent))
    if len(recurrent) > 1:
        return NotErgodic("reducible: several recurrent classes", len(recurrent), period)
    if period > 1 and not allow_period:
        return NotErgodic(f"periodic: eigenvalues on the unit circle besides 1, period {period}", 1, period)
    return None


def _spectrum(
    matrix: np.ndarray, classes: tuple[CommunicatingClass, ...], laws: np.ndarray, kept: ArrayLike
) -> SpectralGap | NotErgodic | Undecided:
    """The gap with the eigenpair behind it. The spectrum of A is the union of those of its classes' blocks."""
    if refused := _not_ergodic(classes, allow_period=False):
        return refused
    pairs, blocks, singles = [], list[BlockWitness](), list[int]()
    for c in classes:
        law = laws[0][c.states] if c.recurrent else None
        pair = class_spectrum(matrix, c.states, law)
        if isinstance(pair, Undecided):
            return pair
        pairs.append((abs(pair.value), pair))
        if len(c.states) == 1:
            singles.append(int(c.states[0]))
        else:
            blocks.append(BlockWitness(c.states, pair.value, pair.vector, law, pair.scale))
    best = max(pairs, key=lambda found: found[0])[1]
    gap = 1 - abs(best.value)
    bound = max(pair.bound for _, pair in pairs)
    proven = bound < float("inf")
    error = bound if proven else max(pair.residual for _, pair in pairs) + len(matrix) * ULP
    if not error <= WELL_BELOW * gap:
        return Undecided(f"errors up to {WELL_BELOW:g} of the gap", f"1 − |λ| = {gap:.1e} with an error of {error:.1e}")
    absorbing = any(c.recurrent and len(c.states) == 1 for c in classes)
    witness = SpectrumWitness(kept, tuple(blocks), np.array(singles, dtype=np.int64), absorbing, best.value)
    given = () if proven else ("the eigenvalue found is the second one, and well conditioned",)
    # Rounding gives the check of the witness another residual of the same size.
    return SpectralGap(gap, "P2" if proven else "P3", 2 * error, best.residual, witness, given, best.value)


def kemeny_constant(pattern: Any) -> Result[float] | NotErgodic:
    """Σ_j π_j m_ij, the mean number of steps to a token drawn from π, with m_jj = 0: the same for every start i.

    It is Σ_{λ≠1} 1/(1 − λ) (Kemeny and Snell). Computed as tr N − πN1, N the mean visits to all other tokens before
    the likeliest one is hit: by elimination without subtractions, so that chains that hardly mix keep their digits.
    Defined for one recurrent class, periodic or not. O(n³). Raises `PatternError`.
    """
    matrix = row_stochastic(pattern, square=True)
    classes = communicating_classes(matrix)
    return _kemeny(matrix, classes, stationary_distributions(matrix))


def _kemeny(
    matrix: np.ndarray, classes: tuple[CommunicatingClass, ...], laws: np.ndarray
) -> Result[float] | NotErgodic:
    if refused := _not_ergodic(classes, allow_period=True):
        return refused
    likeliest = int(laws[0].argmax())
    order = np.r_[likeliest, np.delete(np.arange(len(matrix)), likeliest)]
    chain, pi = matrix[np.ix_(order, order)], laws[0][order][1:]
    work = eliminated(chain, 1)
    leaving = np.tril(work, -1).sum(1)[1:]
    upper, lower = np.eye(len(pi)) - np.triu(work[1:, 1:], 1), np.diag(leaving) - np.tril(work[1:, 1:], -1)
    # Triangles with no positive entry off the diagonal and right sides without negative ones: nothing cancels.
    half = scipy.linalg.solve_triangular(upper, np.eye(len(pi)), unit_diagonal=True)
    visits = scipy.linalg.solve_triangular(lower, half, lower=True)
    value = float(np.trace(visits) - pi @ visits.sum(1))
    hit = float(np.abs(visits @ chain[1:, 0] - 1).max(initial=0.0))
    return Result(value, "P2", 1e-9 * max(1.0, value), hit * value)


def _slow_steps(matrix: np.ndarray, law: np.ndarray, gap: SpectralGap, eps: float) -> float:
    """A number of steps t up to which d(t) = max_i ‖A^t_i − π‖_TV surely exceeds ``eps``.

    For ‖f‖∞ = 1 and ρ = ‖Af − λf‖∞ it holds that |λ|^t ≤ 2d(t) + tρ + |πf| and |πf| ≤ ρ/|1 − λ|: an approximate
    eigenvector is enough.
    """
    modulus, vector = abs(gap.second), gap.witness.blocks[0].vector
    f = vector - law @ vector
    size = float(np.abs(f).max())
    if modulus == 0 or size == 0:
        return 0.0
    f = f / size
    rho = float(np.abs(matrix @ f - gap.second * f).max()) + 4 * len(law) * ULP

    def exceeds(t: float) -> bool:
        decay: float = modulus**t
        return decay - rho * (t + 1 / abs(1 - gap.second)) > 2 * eps

    low, high = 0.0, max(0.0, math.log(2 * eps) / math.log(modulus))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    return low


def _mixing(
    gap: SpectralGap | NotErgodic | Undecided,
    matrix: np.ndarray,
    irreducible: bool,
    pi: np.ndarray,
    tau: float,
    eps: float,
) -> MixingTime | NotErgodic:
    if isinstance(gap, NotErgodic):
        return gap
    lower, upper = 0.0, float("inf")
    if (tau := tau + len(pi) * ULP) < 1:  # by so much rounding may have lowered it
        upper = max(1.0, math.ceil(math.log(eps) / math.log(tau)))
    if isinstance(gap, Undecided) or not irreducible:
        return MixingTime(lower, upper, eps)
    if gap.proof_level != "P2":
        return MixingTime(_slow_steps(matrix, pi, gap, eps), upper, eps)
    lower = max(0.0, (1 / (gap.value + gap.tolerance) - 1) * math.log(1 / (2 * eps)))
    least = float(pi.min())
    if least > 0:
        upper = min(upper, math.ceil((-math.log(eps) - math.log(least)) / (gap.value - gap.tolerance)))
    return MixingTime(lower, upper, eps)


def _contraction(matrix: np.ndarray, kept: ArrayLike) -> tuple[float, RowPairWitness | DoeblinWitness]:
    """τ(A) up to PAIRS_LIMIT rows, else a bound of it, with what shows it."""
    if len(matrix) > PAIRS_LIMIT:
        bound = float(doeblin_bound(matrix))
        return bound, DoeblinWitness(kept, bound)
    found = dobrushin_coefficient(matrix)
    return found.value, replace(found.witness, pattern=kept)


def ergodic_analysis(
    pattern: Any, *, mixing_distance: float = 0.25, budget: Cost | None = None, source: ArrayLike | None = None
) -> Result[ErgodicAnalysis]:
    """Classes, periods, stationary laws, gap and contraction of one pattern (n, n).

    The seed's method took a pattern and promised numbers; a pattern need not have them. A causal pattern has the one
    recurrent class {token 0}; a block-diagonal one has several stationary laws; a periodic one never converges. Such
    chains are reported, and the quantities that do not exist are typed `NotErgodic`. The gap is that of the whole
    chain, transient classes included, with its own error (`SpectralGap`); |λ₂| is at most ``dobrushin`` in any case.
    It is `Undecided` where its error is above 1e-2 of it. The mixing bounds are those of theorems 12.4 and 12.5 for
    reversible chains, and otherwise τᵗ and what the residual of λ₂ allows: all of them proven.

    Residual, tolerance and witness are those of the stationary laws, the witness also of ``dobrushin``. Witnesses name
    the pattern by ``source``, if given: what numpy makes the same array of when it is asked, so that no matrix is
    kept. Raises `PatternError`, and `BudgetError` above ``budget``.
    """
    matrix = row_stochastic(pattern, square=True)
    if matrix.ndim != 2:
        raise PatternError(
            f"one pattern at a time has shape (n, n), not {matrix.shape}", hint="ergodic_analyses takes a batch"
        )
    if not 0 < mixing_distance < 1:
        raise AnalysisError(f"mixing_distance is a total-variation distance in (0, 1), not {mixing_distance}")
    n = len(matrix)
    if budget is not None:
        estimate_cost(n).check(budget, f"the ergodic analysis of {n} tokens")
    classes = communicating_classes(matrix)
    laws = stationary_distributions(matrix)
    irreducible = len(classes) == 1
    flow = laws[0][:, None] * matrix
    reversible = len(laws) == 1 and bool(np.abs(flow - flow.T).max() <= 1e-12 * flow.max())
    kept = matrix if source is None else source
    gap = _spectrum(matrix, classes, laws, kept)
    exact = n <= PAIRS_LIMIT
    tau, contraction = _contraction(matrix, kept)
    kemeny = _kemeny(matrix, classes, laws) if n <= INVERSE_LIMIT else Undecided(f"{INVERSE_LIMIT} tokens")
    value = ErgodicAnalysis(
        classes=classes,
        stationary=laws,
        irreducible=irreducible,
        period=math.lcm(*(c.period for c in classes if c.recurrent)),
        reversible=reversible,
        gap=gap,
        dobrushin=tau,
        dobrushin_exact=exact,
        birkhoff=birkhoff_contraction(matrix).value if exact else Undecided(f"{PAIRS_LIMIT} rows"),
        kemeny=kemeny.value if isinstance(kemeny, Result) else kemeny,
        mixing_time=_mixing(gap, matrix, irreducible, laws[0], tau, mixing_distance),
    )
    residual = verify(StationaryWitness(matrix, laws))
    return Result(value, "P2", 1e-12, residual, ChainWitness((StationaryWitness(kept, laws), contraction)))


def ergodic_analyses(pattern: Any, **options: Any) -> tuple[Result[ErgodicAnalysis], ...]:
    """`ergodic_analysis` of every pattern of a batch (..., n, n), in C order of the leading axes."""
    matrix = row_stochastic(pattern, square=True)
    return tuple(ergodic_analysis(one, **options) for one in matrix.reshape(-1, *matrix.shape[-2:]))
