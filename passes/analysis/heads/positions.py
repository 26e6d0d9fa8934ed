"""Where a head's weight goes: to the previous token, to itself, to a sink, to what followed the same token before.

Patterns are (n, m), rows the queries; positions are those of one sequence, so that a causal pattern of fewer queries
than keys, as a decoder with a cache makes, has its queries at the end.

Sources: C. Olsson et al., "In-context Learning and Induction Heads" (2022); G. Xiao et al., "Efficient Streaming
Language Models with Attention Sinks" (2023); Kemeny, Snell, Finite Markov Chains, chapter 3, for absorption.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import entr

from aatc.passes.analysis.given_weights import token_ids
from aatc.passes.analysis.heads.verify_heads import AbsorptionWitness
from aatc.passes.analysis.result import Result, Undecided
from aatc.passes.analysis.stochastic import PatternError, eliminated, plain_array, row_stochastic

ULP = float(np.finfo(np.float64).eps)


def is_causal(pattern: Any) -> bool:
    """Whether no query of (n, m) weighs a key after it, the queries being the last n of m positions: exact zeros.
    Raises `PatternError`."""
    array = plain_array(pattern)
    if array.ndim < 2:
        raise PatternError(f"a pattern has the shape (..., n, m), not {array.shape}")
    n, m = array.shape[-2:]
    return n <= m and not np.triu(array, m - n + 1).any()


@dataclass(frozen=True)
class TokenMass:
    """The mean weight on chosen keys over the ``queries`` that have such keys, and what equal weights on the keys that
    a query may see would put there."""

    mass: float
    uniform: float
    queries: int

    def __str__(self) -> str:
        return f"{self.mass:.4g} (equal weights: {self.uniform:.4g})"


@dataclass(frozen=True)
class HeadProfile:
    """Means over the queries of one head; a quantity that no query has is None.

    - ``previous``, ``itself``: the weight of the token before the query, and of the query's own.
    - ``sink``: the weight of the first key, over the queries after it. ``busiest_key`` receives most of all keys, and
      ``busiest`` is its mean weight.
    - ``distance``: Σ_j A_ij |i − j| in tokens.
    - ``context``: e^{H(A_i)}, how many equal weights have this entropy, in keys; ``context_share``: over the keys that
      the query may see.
    - ``induction``: the weight on keys j whose previous token is the query's, t_{j−1} = t_i with j − 1 < i: on what
      followed this token before. ``duplicate``: on earlier keys with the query's own token. `Undecided` where no token
      occurs twice.
    - ``causal``: whether no query weighs a key after it.

    The first five and the last two are None for cross-attention, whose queries have no place among the keys.
    """

    causal: bool
    busiest_key: int
    busiest: float
    context: float
    context_share: float
    sink: float | None = None
    previous: float | None = None
    itself: float | None = None
    distance: float | None = None
    induction: TokenMass | Undecided | None = None
    duplicate: TokenMass | Undecided | None = None


def head_profile(pattern: Any, tokens: Any = None) -> HeadProfile:
    """The profile of one pattern (n, m); ``tokens`` (m,), integers, are the keys' own. Raises `PatternError`."""
    matrix = row_stochastic(pattern)
    if matrix.ndim != 2:
        raise PatternError(f"one pattern at a time has shape (n, m), not {matrix.shape}")
    n, m = matrix.shape
    sums = ProfileSums(n, m, tokens)
    sums.add(0, matrix)
    return sums.profile()


class ProfileSums:
    """What a `HeadProfile` of n queries and m keys is made of, added up as rows are seen. Rows of zeros, queries that
    see no key, are left out."""

    def __init__(self, n: int, m: int, tokens: Any = None):
        self.n, self.m = n, m
        self.ids = None if tokens is None else token_ids(tokens)
        if self.ids is not None and self.ids.shape != (m,):
            raise PatternError(f"a pattern of {m} keys needs as many tokens, not {self.ids.shape}")
        self.causal = n <= m
        self.rows = 0
        self.columns = np.zeros(m)
        self.sums = dict.fromkeys(("context", "share", "causal_share", "distance"), 0.0)
        # (sum, rows) each; of tokens also what equal weights would give, for causal patterns and others
        self.masses = {name: np.zeros(2) for name in ("previous", "itself", "sink")}
        self.tokens = {name: np.zeros(4) for name in ("induction", "duplicate")}

    def add(self, start: int, rows: np.ndarray) -> None:
        """The rows of the queries from ``start`` on."""
        seeing = rows.any(1)
        at = np.flatnonzero(seeing) + start + self.m - self.n
        rows = rows[seeing]
        keys = np.arange(self.m)
        self.rows += len(rows)
        self.columns += rows.sum(0)
        first = max(0, int(at[0]) + 1) if len(at) else 0
        causal = not len(rows) or not rows[:, first:][keys[first:] > at[:, None]].any()
        self.causal = self.causal and causal
        context = np.exp(entr(rows).sum(1))
        self.sums["context"] += context.sum()
        self.sums["share"] += context.sum() / self.m
        self.sums["causal_share"] += (context / np.clip(at + 1, 1, self.m)).sum()
        if causal:  # no key is ahead, and weights sum to 1
            self.sums["distance"] += float((at - rows @ keys).sum())
        else:
            self.sums["distance"] += float((rows * np.abs(at[:, None] - keys)).sum())
        for name, key in (("previous", at - 1), ("itself", at), ("sink", np.where(at > 0, 0, -1))):
            has = (key >= 0) & (key < self.m)
            self.masses[name] += rows[has, key[has]].sum(), has.sum()
        if self.ids is not None and self.n <= self.m:
            for name, shift in (("induction", 1), ("duplicate", 0)):
                self.tokens[name] += self._matches(rows, at, shift)

    def _matches(self, rows: np.ndarray, at: np.ndarray, shift: int) -> tuple[float, float, float, float]:
        assert self.ids is not None
        before = np.arange(self.m) - shift
        same = (self.ids[np.maximum(before, 0)][None] == self.ids[at][:, None]) & (before >= 0) & (before < at[:, None])
        some = same.any(1)
        count = same.sum(1)[some]
        mass = float((rows * same).sum(1)[some].sum())
        return mass, float(some.sum()), float((count / (at[some] + 1)).sum()), float((count / self.m).sum())

    def profile(self) -> HeadProfile:
        rows = max(self.rows, 1)
        whole: dict[str, Any] = {
            "causal": self.causal,
            "busiest_key": int(self.columns.argmax()),
            "busiest": float(self.columns.max() / rows),
            "context": float(self.sums["context"] / rows),
            "context_share": float(self.sums["causal_share" if self.causal else "share"] / rows),
        }
        if self.n != self.m and not self.causal:
            return HeadProfile(**whole)
        masses: dict[str, Any] = {name: float(s / c) if c else None for name, (s, c) in self.masses.items()}
        given: dict[str, Any] = {} if self.ids is None else {name: self._token_mass(name) for name in self.tokens}
        return HeadProfile(**whole, **masses, distance=float(self.sums["distance"] / rows), **given)

    def _token_mass(self, name: str) -> TokenMass | Undecided:
        mass, queries, causal, anywhere = self.tokens[name]
        if not queries:
            return Undecided("tokens that occur again", "no token before a query is the query's own")
        uniform = (causal if self.causal else anywhere) / queries
        return TokenMass(float(mass / queries), float(uniform), int(queries))


def recurrent_states(matrix: Any) -> np.ndarray:
    """(n,) whether a state of a chain (n, n) is recurrent: no positive entry leads out of its class.
    Raises `PatternError`."""
    weights = plain_array(matrix)
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
        raise PatternError(f"a chain is a square matrix, not of shape {weights.shape}")
    graph = csr_array(weights > 0)
    count, label = connected_components(graph, directed=True, connection="strong")
    rows, columns = graph.nonzero()
    leaves = np.zeros(count, bool)
    leaves[label[rows][label[rows] != label[columns]]] = True
    recurrent: np.ndarray = ~leaves[label]
    return recurrent


def absorption_times(pattern: Any) -> Result[np.ndarray]:
    """Mean numbers of steps (n,) from each token of a square pattern until the chain is in a recurrent class, which it
    does not leave; 0 for recurrent tokens.

    h = 1 + Qh on the transient tokens, by elimination without a subtraction: every entry has its digits however long it
    takes. Zeros of the pattern are taken as exact: a weight that underflowed makes a class that is not one. The
    residual is the largest |h − 1 − Qh| relative to h. Raises `PatternError`.
    """
    matrix = row_stochastic(pattern, square=True)
    if matrix.ndim != 2:
        raise PatternError(f"one pattern at a time has shape (n, n), not {matrix.shape}")
    recurrent = recurrent_states(matrix)
    times = np.zeros(len(matrix))
    moving = np.flatnonzero(~recurrent)
    if len(moving):
        inner = matrix[np.ix_(moving, moving)]
        leaving = matrix[np.ix_(moving, np.flatnonzero(recurrent))].sum(1)
        times[moving] = _steps(inner, leaving)
    witness = AbsorptionWitness(matrix, recurrent, times)
    residual = float((np.abs(matrix @ times + ~recurrent - times) / np.maximum(times, 1.0)).max())
    given = ("zeros of the pattern are exact",)
    return Result(times, "P2", max(1e-12, 8 * len(matrix) * ULP), residual, witness, given)


def _steps(inner: np.ndarray, leaving: np.ndarray) -> np.ndarray:
    """h = 1 + Qh for transient states, ``leaving`` the chances to be absorbed at once."""
    n = len(inner)
    if not np.triu(inner, 1).any():  # causal: one pass, 1 − A_ii being the weight that goes elsewhere
        found = np.zeros(n)
        for i in range(n):
            away = leaving[i] + inner[i, :i].sum()
            found[i] = (1 + inner[i, :i] @ found[:i]) / away
        return found
    chain = np.zeros((n + 1, n + 1))
    chain[0, 0], chain[1:, 0], chain[1:, 1:] = 1.0, leaving, inner
    work = eliminated(chain, 1)
    # I − Q = (I − C) diag(s) (I − diag(s)⁻¹R): triangles with no positive entry off the diagonal
    out = np.tril(work, -1).sum(1)[1:]
    found = np.ones(n)
    for j in range(n - 1, -1, -1):
        found[:j] += work[1 : 1 + j, 1 + j] * found[j]
    for j in range(n):
        found[j] = (found[j] + work[1 + j, 1 : 1 + j] @ found[:j]) / out[j]
    return found
