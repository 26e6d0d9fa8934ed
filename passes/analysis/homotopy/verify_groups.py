"""Witnesses of higher homotopy groups, and the small independent checks that `verify` runs on them.

Nothing here uses the code that made a witness: cells are tuples of vertices, matrices dictionaries of columns, and
ranks, torsion and cup products are computed anew. Each check returns the number of statements that fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aatc.passes.analysis.result import verify

Cells = tuple[NDArray[np.int64], ...]
Column = dict[int, int]
Word = tuple[int, ...]
_PRIME = 2**31 - 1


@dataclass(frozen=True)
class CoverWitness:
    """``cover`` is a connected covering of ``base`` (cells by degree, vertices 0, 1, …) with so many ``sheets``, vertex
    v over v // sheets; its H₁ vanishes and its H₂ is what ``second``, (rank, orders of cyclic summands), gives. That
    the cover is simply connected is more than this shows."""

    base: Cells
    cover: Cells
    sheets: int
    second: tuple[int, tuple[int, ...]]


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


def _add(into: Column, other: Column, factor: int) -> None:
    for i, v in other.items():
        value = into.get(i, 0) + factor * v
        if value:
            into[i] = value
        else:
            into.pop(i, None)


def _invariants(columns: Iterable[Column]) -> tuple[set[int], list[int]]:
    """The nonzero invariant factors of an integer matrix, in ascending order, and the rows of unit pivots: the last
    entries of columns that are part of a basis of its image. Columns are subtracted from each other while the last
    entry of one is ±1; what is left has few columns."""
    leading: dict[int, Column] = {}
    left: list[Column] = []
    for given in columns:
        column = dict(given)
        while column:
            last = max(column)
            if last in leading:
                _add(column, leading[last], -column[last] * leading[last][last])
            elif abs(column[last]) == 1:
                leading[last] = column
                break
            else:
                left.append(column)
                break
    # unit pivots are echelon: from the last row down, what is left can be cleared of all their rows
    for column in left:
        while shared := [i for i in column if i in leading]:
            last = max(shared)
            _add(column, leading[last], -column[last] * leading[last][last])
    return set(leading), [1] * len(leading) + _smith([c for c in left if c])


def _smith(columns: list[Column]) -> list[int]:
    """The nonzero invariant factors of an integer matrix by Euclid's algorithm on rows and columns."""
    found = []
    while columns := [c for c in columns if c]:
        at = min(columns, key=lambda c: min(map(abs, c.values())))
        row = min(at, key=lambda i: abs(at[i]))
        for column in columns:
            if column is not at and row in column:
                _add(column, at, -(column[row] // at[row]))
        if any(row in c for c in columns if c is not at):
            continue  # a remainder is a smaller pivot
        pivot, at_rest = at[row], [i for i in at if i != row]
        for i in at_rest:  # row operations touch no other column: their entry in the pivot's row is 0
            at[i] %= abs(pivot)
            if not at[i]:
                del at[i]
        if len(at) == 1:
            found.append(abs(pivot))
            columns = [c for c in columns if c is not at]
    return _chain(found)


def _chain(orders: Iterable[int]) -> list[int]:
    """The invariant factors of a diagonal matrix: each divides the next."""
    out = [abs(t) for t in orders]
    for i in range(len(out)):
        for j in range(i + 1, len(out)):
            common = gcd(out[i], out[j])
            out[i], out[j] = common, out[i] * out[j] // common
    return out


def _sparse_rank(columns: Iterable[Mapping[int, int]], p: int) -> int:
    """Rank modulo a prime of a matrix given by columns, row → entry."""
    leading: dict[int, dict[int, int]] = {}
    for given in columns:
        column = {i: v % p for i, v in given.items() if v % p}
        while column:
            low = max(column)
            if low not in leading:
                inverse = pow(column[low], -1, p)
                leading[low] = {i: v * inverse % p for i, v in column.items()}
                break
            factor = column[low]
            for i, v in leading[low].items():
                value = (column.get(i, 0) - factor * v) % p
                if value:
                    column[i] = value
                else:
                    column.pop(i, None)
    return len(leading)


# --- covers ------------------------------------------------------------------------------------------------
@verify.register
def _(witness: CoverWitness) -> float:
    sheets, cover, failed = witness.sheets, witness.cover, 0
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
    last, third = _invariants(three)
    last, second = _invariants(c for n, c in enumerate(two) if n not in last)
    _, first = _invariants(c for n, c in enumerate(one) if n not in last)
    free, torsion = witness.second
    # connected, H₁ = 0, H₂
    failed += counts[0] - len(first) != 1
    failed += counts[1] != len(first) + len(second) or any(t != 1 for t in second)
    failed += counts[2] - len(second) - len(third) != free or any(t < 2 for t in torsion)
    failed += [t for t in third if t > 1] != [t for t in _chain(t for t in torsion if t > 1) if t > 1]
    return float(failed)


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
        ranks = [*(_sparse_rank(columns, _PRIME) for columns in self._boundary), 0]
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
        _sparse_rank(({i: _residue(v) for i, v in row.items()} for row in images), _PRIME)
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
