"""Finite Markov chains whose transition matrix is an attention pattern: classes, stationary laws, spectra.

State i is token i, and A_ij is the probability of going from i to j. Sources: Seneta, Non-negative Matrices and
Markov Chains, chapters 1–4; Levin, Peres, Wilmer, Markov Chains and Mixing Times, chapters 1 and 12; Grassmann,
Taksar, Heyman, Operations Research 33 (1985), for the elimination without subtractions; Kahan, Spectra of nearly
Hermitian matrices, Proc. AMS 48 (1975).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components

from aatc.passes.analysis.deadline import proceed
from aatc.passes.analysis.result import Undecided
from aatc.passes.analysis.stochastic import (
    PatternError,
    distribution,
    eliminated,
    float_array,
    real_array,
    row_stochastic,
)

ELIMINATION_LIMIT = 384  # states; above, power steps that surely converge are faster than elimination
FORGOTTEN = 1e-3  # Σ_j min_i A_ij above which the error of power steps is within 1000 times their last move
LARGE = 1e200
DENSE_LIMIT = 384  # states whose whole spectrum is computed
SYMMETRIC_LIMIT = 2048  # states up to which it is when the chain is reversible: a symmetric problem
BALANCE = 1e-9  # shift of eigenvalues by a breach of detailed balance up to which a chain is solved as reversible
POWER_STEPS = 60
ARNOLDI_STEPS = 300
RESIDUAL = 1e-14


@dataclass(frozen=True, eq=False)
class CommunicatingClass:
    """``states`` that reach each other, ascending. ``recurrent`` when no step leaves the class. ``period`` is the
    gcd of the lengths of its closed walks, 0 for a single state without a step to itself."""

    states: np.ndarray
    recurrent: bool
    period: int


@dataclass(frozen=True)
class NotErgodic:
    """Why a quantity that needs one stationary law, or convergence to it, does not exist."""

    reason: str
    recurrent_classes: int
    period: int


class NotErgodicError(PatternError):
    """A quantity of the stationary law was asked of a chain with several. ``found`` is the `NotErgodic`."""

    def __init__(self, message: str, found: NotErgodic, hint: str):
        self.found = found
        super().__init__(message, hint=hint)


def _period(support: np.ndarray) -> int:
    """The period of one strongly connected class from its boolean support (k, k)."""
    if np.diagonal(support).any():
        return 1
    if len(support) == 1:
        return 0
    order, previous = breadth_first_order(csr_matrix(support), 0, directed=True, return_predecessors=True)
    level = np.zeros(len(support), dtype=np.int64)
    for state in order[1:]:
        level[state] = level[previous[state]] + 1
    tails, heads = np.nonzero(support)
    return int(np.gcd.reduce(level[tails] + 1 - level[heads]))


def communicating_classes(pattern: Any) -> tuple[CommunicatingClass, ...]:
    """The strongly connected components of the steps with A_ij > 0, by least state. O(n²). Raises `PatternError`."""
    support = row_stochastic(pattern, square=True) > 0
    if support.ndim != 2:
        raise PatternError(f"one chain at a time has shape (n, n), not {support.shape}")
    if support.all():
        return (CommunicatingClass(np.arange(len(support)), True, 1),)
    _, labels = connected_components(csr_matrix(support), directed=True, connection="strong")
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    found = []
    for states in sorted(groups, key=lambda group: int(group[0])):
        leaves = support[states][:, labels != labels[states[0]]].any()
        found.append(CommunicatingClass(states, not leaves, _period(support[np.ix_(states, states)])))
    return tuple(found)


def _law(block: np.ndarray) -> np.ndarray:
    work = eliminated(block, 1)
    pi = np.ones(len(work))
    for state in range(1, len(work)):
        pi[state] = pi[:state] @ work[:state, state]
        if pi[state] > LARGE:
            pi[: state + 1] /= pi[state]
    law: np.ndarray = pi / pi.sum()
    return law


def irreducible_stationary(block: Any) -> np.ndarray:
    """The stationary law (n,) of an irreducible chain (n, n), exact to some n ulps of each entry by elimination.

    Above ELIMINATION_LIMIT states power steps are taken where Doeblin's coefficient δ proves that they get to the law:
    ‖μA − π‖₁ ≤ ‖μA − μ‖₁ / (1 − δ). Raises `PatternError` where a probability underflows.
    """
    block = float_array(block)
    n = len(block)
    forgotten = float(block.min(0).sum()) if n > ELIMINATION_LIMIT else 0.0
    if forgotten > FORGOTTEN:
        pi: np.ndarray = np.full(n, 1 / n)
        for _ in range(POWER_STEPS):
            step = pi @ block
            moved = np.abs(step - pi).sum()
            pi = step / step.sum()
            if moved <= RESIDUAL:
                return pi
    return _law(block)


def stationary_distributions(pattern: Any) -> np.ndarray:
    """One stationary law per recurrent class, (k, n), in the order of `communicating_classes`.

    Every stationary law is a convex combination of these; it is unique iff k = 1. Raises `PatternError`.
    """
    matrix = row_stochastic(pattern, square=True)
    return _laws(matrix, communicating_classes(matrix))


def _laws(matrix: np.ndarray, classes: tuple[CommunicatingClass, ...]) -> np.ndarray:
    laws = []
    for c in classes:
        if c.recurrent:
            law = np.zeros(len(matrix))
            law[c.states] = irreducible_stationary(matrix[np.ix_(c.states, c.states)])
            laws.append(law)
    return np.stack(laws)


def cesaro_limit(pattern: Any, initial: Any) -> np.ndarray:
    """lim (1/T) Σ_{t<T} μAᵗ, (n,), for the initial law μ (n,): it exists for every finite chain.

    It is the mean of the stationary laws of the recurrent classes, weighted with the probabilities of being absorbed
    in them. Raises `PatternError`.
    """
    matrix = row_stochastic(pattern, square=True)
    return _cesaro(matrix, communicating_classes(matrix), distribution(initial, len(matrix)))


def _cesaro(matrix: np.ndarray, classes: tuple[CommunicatingClass, ...], start: np.ndarray) -> np.ndarray:
    recurrent = [c.states for c in classes if c.recurrent]
    transient = np.setdiff1d(np.arange(len(matrix)), np.concatenate(recurrent))
    k = len(recurrent)
    # One state for each recurrent class, one for the start, then the transient ones: these are eliminated.
    chain = np.zeros((k + 1 + len(transient),) * 2)
    chain[k] = [*(start[states].sum() for states in recurrent), 0.0, *start[transient]]
    for place, states in enumerate(recurrent):
        chain[k + 1 :, place] = matrix[np.ix_(transient, states)].sum(1)
    chain[k + 1 :, k + 1 :] = matrix[np.ix_(transient, transient)]
    mass = eliminated(chain, k + 1)[k, :k]
    law: np.ndarray = (mass / mass.sum()) @ _laws(matrix, classes)
    return law


def ergodic_average(pattern: Any, observable: Any, initial: Any) -> np.ndarray:
    """lim (1/T) Σ_{t<T} E f(X_t) from the initial law (n,), for an observable f (n,) or (n, k). Raises
    `PatternError`."""
    limit = cesaro_limit(pattern, initial)
    values = real_array(observable, "an observable")
    if values.ndim not in (1, 2) or len(values) != len(limit):
        raise PatternError(f"an observable on {len(limit)} states has that many rows, not shape {values.shape}")
    average: np.ndarray = limit @ values
    return average


def unique_stationary(matrix: np.ndarray, initial: Any | None) -> np.ndarray:
    """The stationary law of a checked chain (n, n): the only one, or the Cesàro limit from ``initial`` (n,).

    Raises `NotErgodicError` when there are several and no initial law was given.
    """
    classes = communicating_classes(matrix)
    laws = _laws(matrix, classes)
    if len(laws) == 1:
        law: np.ndarray = laws[0]
        return law
    if initial is None:
        raise NotErgodicError(
            f"the chain has {len(laws)} recurrent classes, and so many stationary laws",
            NotErgodic("several recurrent classes", len(laws), 0),
            hint="give initial=, a distribution over tokens: its long-run average is then taken",
        )
    return _cesaro(matrix, classes, distribution(initial, len(matrix)))


@dataclass(frozen=True, eq=False)
class Eigenpair:
    """An eigenvalue of largest modulus with its right vector on ``states``, and ‖Av − λv‖/‖v‖ there.

    ``bound`` is how far |λ| may be from the largest modulus, infinite where nothing proves it. For a reversible class
    ``scale`` s (k,) is √π as a unit vector; vector and residual are then those of the symmetric √A∘√Aᵀ − ssᵀ.
    """

    value: complex
    vector: np.ndarray
    states: np.ndarray
    residual: float
    bound: float = float("inf")
    scale: np.ndarray | None = None


def _balancing(block: np.ndarray, law: np.ndarray) -> np.ndarray:
    """√d as a unit vector (k,), with d_i A_ij = d_j A_ji if the chain is reversible. d is π, which power steps find
    with small entries that are off: d_i = A_ci/A_ic is taken where a state c has steps from and to all others."""
    state = int(np.minimum(block.min(0), block.min(1)).argmax())
    there, back = block[state], block[:, state]
    scale = np.sqrt(there) / np.sqrt(back) if there.all() and back.all() else np.sqrt(law)
    unit: np.ndarray = scale / np.linalg.norm(scale)
    return unit


def _reversible_pair(block: np.ndarray, law: np.ndarray, states: np.ndarray) -> Eigenpair | None:
    """The pair of a recurrent class with detailed balance, by all eigenvalues of a symmetric matrix; None without it.

    S = D^½AD^-½ has the eigenvalues of A for every D. H = √A∘√Aᵀ is S where D balances A exactly; otherwise no
    eigenvalue is moved by more than √2‖S − H‖_F (Kahan, 1975). Taking the eigenvalue 1 away with a unit vector s moves
    them by at most 3‖Hs − s‖, and the solver by some 8k ulps (Parlett, The Symmetric Eigenvalue Problem).
    """
    k = len(block)
    if k > SYMMETRIC_LIMIT:
        return None
    with np.errstate(all="ignore"):  # what overflows is not finite, and no bound
        scale = _balancing(block, law)
        first = scale[0] * block[0] / scale - np.sqrt(block[0]) * np.sqrt(block[:, 0])
        if not np.linalg.norm(first) <= BALANCE:
            return None
        root = np.sqrt(block)
        symmetric = root * root.T
        breach = float(np.linalg.norm(scale[:, None] * block / scale - symmetric))
    drift = float(np.linalg.norm(symmetric @ scale - scale))
    bound = 2**0.5 * breach + 3 * drift + 8 * k * float(np.finfo(np.float64).eps)
    if not bound <= BALANCE:
        return None
    symmetric -= np.outer(scale, scale)
    ends = scipy.linalg.eigvalsh(symmetric)[[0, -1]]
    top = 0 if -ends[0] > ends[1] else k - 1
    (value,), vectors = scipy.linalg.eigh(symmetric, subset_by_index=[top, top])
    vector = vectors[:, 0]
    residual = float(np.linalg.norm(symmetric @ vector - value * vector))
    return Eigenpair(complex(value), vector, states, residual, bound + residual, scale)


def _arnoldi(matrix: np.ndarray, pi: np.ndarray) -> tuple[complex, np.ndarray]:
    """The Ritz pair of largest modulus of A − 1πᵀ after at most ARNOLDI_STEPS steps without restart.

    A restarted method stalls here: the spectrum of a large random pattern fills a disc, and many eigenvalues lie
    close below the edge.
    """
    n = len(matrix)
    limit = min(ARNOLDI_STEPS, n)
    basis, hessenberg = np.zeros((limit + 1, n)), np.zeros((limit + 1, limit))
    start = np.random.default_rng(0).normal(size=n)
    basis[0] = start / np.linalg.norm(start)
    for step in range(limit):
        proceed()
        image = matrix @ basis[step] - (pi @ basis[step])
        for _ in range(2):
            overlap = basis[: step + 1] @ image
            image -= overlap @ basis[: step + 1]
            hessenberg[: step + 1, step] += overlap
        left = float(np.linalg.norm(image))
        hessenberg[step + 1, step] = left
        if left > RESIDUAL:
            basis[step + 1] = image / left
        if left <= RESIDUAL or step + 1 == limit or step % 25 == 24:
            values, vectors = np.linalg.eig(hessenberg[: step + 1, : step + 1])
            top = int(np.abs(values).argmax())
            enough = min(1e-9 * abs(values[top]), 1e-3 * (1 - abs(values[top])))
            if left * abs(vectors[-1, top]) <= max(enough, RESIDUAL) or step + 1 == limit:
                break
    return complex(values[top]), vectors[:, top] @ basis[: step + 1]


def class_spectrum(matrix: np.ndarray, states: np.ndarray, stationary: np.ndarray | None) -> Eigenpair | Undecided:
    """The eigenvalue of largest modulus of the block A[states, states], after the eigenvalue 1 of a recurrent class
    is taken away (``stationary`` (k,) given; None for a transient class).

    A reversible class up to SYMMETRIC_LIMIT states is solved as a symmetric matrix, which bounds the error. Otherwise
    all eigenvalues up to DENSE_LIMIT states; above, Arnoldi steps, whose residual is reported and whose answer may
    miss a larger eigenvalue. `Undecided` when the residual stays above 1e-3 of the value.
    """
    block = matrix[np.ix_(states, states)] if len(states) < len(matrix) else matrix
    pi = np.zeros(len(states)) if stationary is None else stationary
    if len(states) == 1:
        ulps = 4 * float(np.finfo(np.float64).eps)  # of a row that was divided by its sum
        return Eigenpair(complex(block[0, 0] - pi[0]), np.ones(1), states, 0.0, ulps)
    if stationary is not None and (pair := _reversible_pair(block, pi, states)):
        return pair
    if len(states) <= DENSE_LIMIT:
        values, vectors = np.linalg.eig(block - pi[None, :])
        top = int(np.abs(values).argmax())
        value, vector = complex(values[top]), vectors[:, top]
    else:
        value, vector = _arnoldi(block, pi)
    residual = float(np.linalg.norm(block @ vector - (pi @ vector) - value * vector) / np.linalg.norm(vector))
    if residual > max(1e-3 * abs(value), 1e-9):
        return Undecided(f"{ARNOLDI_STEPS} Arnoldi steps", f"residual {residual:.1e} at |λ| = {abs(value):.3g}")
    return Eigenpair(value, vector, states, residual)
