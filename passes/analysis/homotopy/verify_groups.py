"""Witnesses of higher homotopy groups, and the small independent checks that `verify` runs on them.

Nothing here uses the code that made a witness: cells are tuples of vertices, matrices dictionaries of columns, and
ranks, torsion and cup products are computed anew. Each check returns the number of statements that fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aatc.passes.analysis.chains.verify_integers import Column, divisor_chain, integral, invariants, sparse_rank
from aatc.passes.analysis.homotopy.verify_fundamental import presents
from aatc.passes.analysis.result import mismatch, verify

Cells = tuple[NDArray[np.int64], ...]
Word = tuple[int, ...]
_PRIME = 2**31 - 1


@dataclass(frozen=True)
class CoverWitness:
    """``cover`` is a connected covering of ``base`` (cells by degree, vertices 0, 1, …) with so many ``sheets``, vertex
    v over v // sheets; its H₁ vanishes and its H₂ is what ``second``, (rank, orders of cyclic summands), gives. That
    the cover is simply connected is more than this shows.

    Where H₄ is not 0, ``cocycles`` (rank, count_2) and ``cycles`` (count_2, rank) are dual bases of the free parts of
    H² and H₂, and ``tops`` (count_4, r) cycles that generate H₄: their cup products give H₄ → Γ(π₂), and π₃."""

    base: Cells
    cover: Cells
    sheets: int
    second: tuple[int, tuple[int, ...]]
    cocycles: Any = None
    cycles: Any = None
    tops: Any = None


@dataclass(frozen=True)
class LoopWitness:
    """The A∞-structure of the reduced rational cohomology of the complex with these ``cells``, and its bar complex.

    ``generators`` are (degree, cocycle, cycle), cycles dual to the cocycles, as many as the Betti numbers say.
    ``words[d]`` counts the words of generators in degree d = Σ (degree − 1); ``differentials[d]`` are their images
    under b in the words of degree d + 1, place → number, both in lexicographic order, d from 0 to top − 1 with
    top = len(words) − 1. ``lifts`` are cochains F(w) of degree d + 1, absent where zero; F of a letter is its cocycle.

    Checked: b is the coderivation of what it does on whole words, its square is zero, and F is a twisting cochain,
    dF(w) + Σ (−1)^|F(w′)| F(w′) ∪ F(w″) = F(b w) over all w = w′w″ of degree at most dim − 2; beyond, all terms
    vanish. So F is a quasi-isomorphism from the cohomology with this structure to the cochains. And
    Π_odd (1 + tⁱ)^{r_i} / Π_even (1 − tⁱ)^{r_i} with r = ``ranks``, r_1 first, is the series of the homology of b; the
    ranks of b are taken modulo `_PRIME`. That the space is simply connected is more than this shows.
    """

    cells: Cells
    generators: tuple[tuple[int, Any, Any], ...]
    lifts: Mapping[Word, Any]
    words: tuple[int, ...]
    differentials: tuple[tuple[Mapping[int, Fraction], ...], ...]
    ranks: tuple[int, ...]


# --- integer matrices --------------------------------------------------------------------------------------
def _boundary_columns(cells: Cells, k: int) -> list[Column]:
    """∂_k by columns; a KeyError where a face is missing."""
    if not 0 < k < len(cells):
        return []
    place = {tuple(c): n for n, c in enumerate(cells[k - 1].tolist())}
    return [{place[(*c[:i], *c[i + 1 :])]: (-1) ** i for i in range(k + 1)} for c in cells[k].tolist()]


# --- covers ------------------------------------------------------------------------------------------------
@verify.register
def _(witness: CoverWitness) -> float:
    sheets, cover, failed = witness.sheets, witness.cover, 0
    if not integral(np.array([sheets, witness.second[0], *witness.second[1]], dtype=object), *witness.base, *cover):
        return float("inf")
    if sheets < 1 or len(cover) != len(witness.base):
        return float("inf")
    for below, above in zip(witness.base, cover):
        over, sheet = above // sheets, above % sheets
        failed += set(map(tuple, over.tolist())) != set(map(tuple, below.tolist()))
        for i in range(below.shape[1]):
            # a cell has one lift for every lift of its i-th vertex
            lifts = np.unique(np.column_stack([over, sheet[:, i]]), axis=0) if len(above) else above
            failed += not len(above) == len(lifts) == sheets * len(below)
    try:
        one, two, three = (_boundary_columns(cover, k) for k in (1, 2, 3))
    except KeyError:
        return float(failed + 1)
    counts = [*map(len, cover), 0, 0, 0]
    # ∂∂ = 0: where a cell is the unit pivot of a boundary, its own boundary is one of cells before it
    last, third = invariants(three)
    last, second = invariants(c for n, c in enumerate(two) if n not in last)
    _, first = invariants(c for n, c in enumerate(one) if n not in last)
    free, torsion = witness.second
    # connected, H₁ = 0, H₂
    failed += counts[0] - len(first) != 1
    failed += counts[1] != len(first) + len(second) or any(t != 1 for t in second)
    failed += counts[2] - len(second) - len(third) != free or any(t < 2 for t in torsion)
    failed += [t for t in third if t > 1] != [t for t in divisor_chain(t for t in torsion if t > 1) if t > 1]
    return float(failed)


@mismatch.register
def _(witness: CoverWitness, value: Any) -> float:
    """The value is π₂, or the groups with the order of π₁ and π₃, from Γ(π₂) and the homology of the cover. The
    presentation of π₁ has to fit the cover and H₁."""
    if not hasattr(value, "second"):
        return 0.0 if _is_abelian(value, 2, *witness.second) else float("inf")
    fits = presents(value.fundamental, witness.base, witness.cover, witness.sheets)
    right = fits and value.order == witness.sheets and _is_abelian(value.second, 2, *witness.second)
    if right and hasattr(value.third, "free_rank"):
        found = _third(witness)
        right = found is not None and _is_abelian(value.third, 3, *found)
    return 0.0 if right else float("inf")


def _is_abelian(group: Any, degree: int, rank: int, torsion: Iterable[int]) -> bool:
    claimed = (group.degree, group.coeff, group.free_rank, [t for t in divisor_chain(group.torsion) if t > 1])
    orders = tuple(group.orders) == (0,) * rank + tuple(group.torsion) and group.representatives is None
    return orders and claimed == (degree, "Z", rank, [t for t in divisor_chain(t for t in torsion if t > 1) if t > 1])


def _third(witness: CoverWitness) -> tuple[int, list[int]] | None:
    """(rank, orders) of π₃ = H₃ ⊕ Γ(π₂)/H₄ by Whitehead's exact sequence; None where it leaves more than one group, or
    the witness lacks what it needs."""
    columns = [_boundary_columns(witness.cover, k) for k in range(1, 6)]
    ranks = [invariants(c)[1] for c in columns]
    counts = [*map(len, witness.cover), *[0] * 6]
    rank, torsion = witness.second
    summands = [*[0] * rank, *(t for t in torsion if t > 1)]
    orders = [t if t % 2 else 2 * t for t in summands] + [gcd(a, b) for a, b in combinations(summands, 2)]
    relations: list[Column] = [{i: t} for i, t in enumerate(orders) if t]
    if len(ranks[3]) + len(ranks[4]) < counts[4] or any(t > 1 for t in ranks[4]):  # H₄ is not 0
        if any(t > 1 for t in torsion):
            return None
        forms = _forms(witness, columns, len(ranks[3]))
        if forms is None:
            return None
        relations = forms
    factors = invariants(relations)[1]
    above, free = [t for t in ranks[3] if t > 1], counts[3] - len(ranks[2]) - len(ranks[3])
    kernel = [*(t for t in factors if t > 1), *[0] * (len(orders) - len(factors))]
    if any(gcd(a, b) != 1 for a in above for b in kernel):
        return None
    return free + len(orders) - len(factors), [t for t in (*kernel, *above) if t > 1]


def _forms(witness: CoverWitness, columns: list[list[Column]], fourth: int) -> list[Column] | None:
    """The image of H₄ in Γ(Z^rank): squares, then products, of dual classes on cycles that generate H₄; None where
    these are no such cycles, or the classes no dual basis. ``fourth`` is the rank of ∂_4."""
    rank, cochains = witness.second[0], _Cochains(witness.cover)
    duals, cycles, tops = witness.cocycles, witness.cycles, witness.tops
    if not integral(duals, cycles, tops):
        return None
    if np.shape(duals) != (rank, len(witness.cover[2])) or np.shape(cycles) != np.shape(duals)[::-1]:
        return None
    if np.ndim(tops) != 2 or len(tops) != len(witness.cover[4]):
        return None
    if any(np.any(cochains.derivative(x, 2) != 0) for x in duals):
        return None
    if not all(cochains.is_cycle(z, 2) for z in cycles.T) or not all(cochains.is_cycle(z, 4) for z in tops.T):
        return None
    if any(sum(x * z) != (i == j) for i, x in enumerate(duals) for j, z in enumerate(cycles.T)):
        return None
    whole = invariants([*columns[4], *({i: int(v) for i, v in enumerate(z) if v} for z in tops.T)])[1]
    if len(whole) != len(witness.cover[4]) - fourth or set(whole) > {1}:
        return None
    pairs = [(i, i) for i in range(rank)] + list(combinations(range(rank), 2))
    products = [cochains.product(duals[i], 2, duals[j], 2) for i, j in pairs]
    rows = ({n: int(sum(p * z)) for n, p in enumerate(products)} for z in tops.T)
    return [{n: v for n, v in row.items() if v} for row in rows]


# --- rational homotopy -------------------------------------------------------------------------------------
class _Cochains:
    """Cochains of a simplicial complex with exact values: d and ∪ by their definitions."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self._place = [{tuple(c): n for n, c in enumerate(x.tolist())} for x in cells]
        self._boundary = [_boundary_columns(cells, k) for k in range(len(cells))]
        self._faces: dict[tuple[int, int], tuple[list[int], list[int]]] = {}

    @property
    def dimension(self) -> int:
        return len(self.cells) - 1

    def betti(self) -> list[int]:
        """Betti numbers modulo `_PRIME`, which are at least the rational ones."""
        ranks = [*(sparse_rank(columns, _PRIME) for columns in self._boundary), 0]
        return [len(x) - ranks[k] - ranks[k + 1] for k, x in enumerate(self.cells)]

    def zero(self, degree: int) -> Any:
        return np.zeros(len(self.cells[degree]) if degree <= self.dimension else 0, dtype=object)

    def derivative(self, cochain: Any, degree: int) -> Any:
        above = self._boundary[degree + 1] if degree < self.dimension else []
        return np.array([sum(v * cochain[i] for i, v in column.items()) for column in above], dtype=object)

    def is_cycle(self, chain: Any, degree: int) -> bool:
        total: dict[int, Any] = {}
        for n in np.flatnonzero(chain).tolist():
            for i, v in self._boundary[degree][n].items() if degree else ():
                total[i] = total.get(i, 0) + v * chain[n]
        return not any(total.values())

    def product(self, one: Any, p: int, two: Any, q: int) -> Any:
        """(φ ∪ ψ)(v_0, …, v_{p+q}) = φ(v_0, …, v_p) ψ(v_p, …, v_{p+q})."""
        if p + q > self.dimension:
            return self.zero(p + q)
        if (p, q) not in self._faces:
            cells = self.cells[p + q].tolist()
            front = [self._place[p][tuple(c[: p + 1])] for c in cells]
            self._faces[p, q] = front, [self._place[q][tuple(c[p:])] for c in cells]
        front, back = self._faces[p, q]
        return one[front] * two[back]


def _words(degrees: tuple[int, ...], total: int) -> Iterator[Word]:
    """Words of letters of these degrees ≥ 1 with this sum, in lexicographic order."""
    if total == 0:
        yield ()
    for letter, degree in enumerate(degrees):
        if degree <= total:
            for rest in _words(degrees, total - degree):
                yield (letter, *rest)


@verify.register
def _(witness: LoopWitness) -> float:
    top, degrees = len(witness.words) - 1, tuple(d - 1 for d, _, _ in witness.generators)
    if top < 0 or len(witness.differentials) != top or len(witness.ranks) != max(0, top - 1):
        return float("inf")
    if list(map(len, witness.differentials)) != list(witness.words[:-1]) or not all(d >= 1 for d in degrees):
        return float("inf")
    try:
        cochains = _Cochains(witness.cells)
    except KeyError:
        return float("inf")
    if not _generate(cochains, witness.generators):
        return float("inf")
    words = [list(_words(degrees, d)) for d in range(top + 1)]
    if list(map(len, words)) != list(witness.words):
        return float("inf")
    rows = [
        {w: {above[n]: v for n, v in row.items()} for w, row in zip(here, images)}
        for here, above, images in zip(words, words[1:], witness.differentials)
        if all(0 <= n < len(above) for row in images for n in row)
    ]
    if len(rows) != top:
        return float("inf")
    failed = sum(not _is_coderivation(rows, degrees, d) for d in range(top))
    failed += sum(any(_after(row, rows[d + 1]).values()) for d in range(top - 1) for row in rows[d].values())
    failed += _twisting_defects(witness, cochains, rows, degrees)
    return float(failed + _series_defects(witness))


def _generate(cochains: _Cochains, generators: tuple[tuple[int, Any, Any], ...]) -> bool:
    """Whether the cocycles are closed, dual to cycles, and a basis: as many as the Betti numbers modulo a prime, which
    bound the rational ones. Also whether H⁰ = Q and H¹ = 0."""
    betti, counts = cochains.betti(), [0] * len(cochains.cells)
    for degree, cocycle, cycle in generators:
        if not 1 < degree <= cochains.dimension:
            return False
        if not np.shape(cocycle) == np.shape(cycle) == (len(cochains.cells[degree]),):
            return False
    for n, (degree, cocycle, cycle) in enumerate(generators):
        if np.any(cochains.derivative(cocycle, degree) != 0) or not cochains.is_cycle(cycle, degree):
            return False
        if any(sum(x * cycle) != (m == n) for m, (d, x, _) in enumerate(generators) if d == degree):
            return False
        counts[degree] += 1
    return [1, *counts[1:]] == betti


def _after(row: Mapping[Word, Any], images: Mapping[Word, Mapping[Word, Any]]) -> dict[Word, Any]:
    """A map applied to a combination of words."""
    total: dict[Word, Any] = {}
    for middle, value in row.items():
        for end, other in images[middle].items():
            total[end] = total.get(end, Fraction(0)) + value * other
    return total


def _is_coderivation(rows: list[dict[Word, dict[Word, Any]]], degrees: tuple[int, ...], d: int) -> bool:
    """Whether b on words of degree d is, on every stretch, what it does on that stretch as a whole, with the sign of
    the letters before it."""
    for word, row in rows[d].items():
        total: dict[Word, Any] = {}
        for start in range(len(word)):
            sign = (-1) ** sum(degrees[g] for g in word[:start])
            for stop in range(start + 1, len(word) + 1):
                part = word[start:stop]
                for letter, value in rows[sum(degrees[g] for g in part)][part].items():
                    if len(letter) == 1:
                        key = (*word[:start], *letter, *word[stop:])
                        total[key] = total.get(key, Fraction(0)) + sign * value
        if {w: v for w, v in total.items() if v} != {w: v for w, v in row.items() if v}:
            return False
    return True


def _twisting_defects(
    witness: LoopWitness,
    cochains: _Cochains,
    rows: list[dict[Word, dict[Word, Any]]],
    degrees: tuple[int, ...],
) -> int:
    """For how many words of degree at most dim − 2 the equation of a twisting cochain fails, F(w) having the wrong
    length counted too."""
    letters: dict[Word, Any] = {(n,): x for n, (_, x, _) in enumerate(witness.generators)}
    lifts = {**witness.lifts, **letters}
    place = {w: d for d, row in enumerate(rows) for w in row}
    failed = sum(len(x) != len(cochains.zero(place[w] + 1)) for w, x in lifts.items() if w in place)
    if failed:
        return failed
    for d in range(1, min(len(rows) - 1, cochains.dimension - 2) + 1):
        for word, row in rows[d].items():
            total = cochains.zero(d + 2)
            if word in lifts:
                total = total + cochains.derivative(lifts[word], d + 1)
            for cut in range(1, len(word)):
                one, two = word[:cut], word[cut:]
                if one in lifts and two in lifts:
                    p, q = place[one] + 1, place[two] + 1
                    total = total + (-1) ** p * cochains.product(lifts[one], p, lifts[two], q)
            for end, value in row.items():
                if end in lifts:
                    total = total - value * lifts[end]
            failed += bool(np.any(total != 0))
    return failed


def _series_defects(witness: LoopWitness) -> int:
    """Whether the ranks give another series than the homology of the bar complex."""
    top = len(witness.words) - 1
    rank = [
        sparse_rank(({i: _residue(v) for i, v in row.items()} for row in images), _PRIME)
        for images in witness.differentials
    ]
    series = [1] + [0] * (top - 1)
    for i, r in enumerate(witness.ranks, 1):
        for _ in range(r):
            for n in range(top - 1, i - 1, -1) if i % 2 else range(i, top):
                series[n] += series[n - i]
    homology = [witness.words[d] - rank[d] - (rank[d - 1] if d else 0) for d in range(top)]
    return int(homology != series[: max(top, 0)])


def _residue(value: Any) -> int:
    exact = Fraction(value)
    return exact.numerator * pow(exact.denominator, -1, _PRIME) % _PRIME


@mismatch.register
def _(witness: LoopWitness, value: Any) -> float:
    return 0.0 if value == witness.ranks else float("inf")
