"""Classes of 1-cycles over F_p as they are born and die: `annotations` with coefficients and signs.

An edge runs from its lower to its higher vertex. Where it stands for the path over a neighbour k of both its ends, it
is the sum of the edges i → k and k → j, each with the sign of its own direction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aatc.passes.analysis.cohomology.annotations import Chains
from aatc.passes.analysis.cohomology.bitsets import Index

Residues = NDArray[np.int32]
#: Products of two residues, some thousand of them added, stay within 64 bits; a residue in 32.
LARGEST_PRIME = 1 << 20
# Rows of sums that are changed at once.
_ROWS = 512


def summed(rows: Index, values: Index, factors: Index, bound: int, p: int) -> tuple[Index, Index, Index]:
    """The pairs (row, value < ``bound``), sorted, with the sums of their factors mod p, where these are not 0."""
    keys = rows * bound + values
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    if not len(first):
        return rows[:0], values[:0], factors[:0]
    sums = np.add.reduceat(factors[order] % p, first) % p
    kept = sums != 0
    keys = keys[first[kept]]
    return keys // bound, keys % bound, sums[kept]


class SignedChains:
    """Rows of (integer, factor) pairs that grow at the end."""

    def __init__(self) -> None:
        self._values, self._factors = Chains(), Chains()

    def append(self, lengths: Index, values: Index, factors: Index) -> None:
        self._values.append(lengths, values)
        self._factors.append(lengths, factors)

    def rows(self, which: Index) -> tuple[Index, Index, Index]:
        """All values of the rows ``which`` with their factors, and for each the place in ``which`` it comes from."""
        place, values = self._values.rows(which)
        return place, values, self._factors.rows(which)[1]


class FieldAnnotations:
    """As `Annotations` over F_p: the living coordinates, what the dead ones became, and who killed whom."""

    def __init__(self, p: int) -> None:
        self.p = p
        self.deaths: list[tuple[int, int]] = []
        self.living = self.count = 0
        # Per coordinate its slot or, once dead, ~row, with row 0 for nothing; per slot and per row its coordinate.
        self._place = np.zeros(0, np.int64)
        self._holder = np.zeros(0, np.int64)
        self._dead = np.full(1, -1)
        self._became: Residues = np.zeros((1, 0), np.int32)

    def birth(self, count: int) -> Index:
        """As many new coordinates, the youngest last."""
        born = np.arange(self.count, self.count + count)
        self._place = np.concatenate((self._place, len(self._holder) + np.arange(count)))
        self._holder = np.concatenate((self._holder, born))
        self.count, self.living = self.count + count, self.living + count
        self._room(len(self._became), len(self._holder))
        return born

    def _room(self, rows: int, width: int) -> None:
        height, room = self._became.shape
        if rows > height or width > room:
            wide = np.zeros(
                (max(rows, 2 * height if rows > height else height), max(width, 2 * room if width > room else room)),
                np.int32,
            )
            wide[:height, :room] = self._became
            self._became = wide

    def kill(self, rows: Index, coordinates: Index, factors: Index, labels: Index) -> None:
        """Chains that bound from now on: entries (row, coordinate, factor), sorted; row r has ``labels[r]``."""
        if 3 * self.living < 2 * len(self._holder):
            self._compact()
        classes = self._classes(rows, coordinates, factors, len(labels))
        some = np.flatnonzero(classes.any(axis=1))
        found = _echelon(classes[some], self.p)
        if not found:
            return
        slots = np.array(list(found))
        # the pivot has the factor 1 and is no part of other sums: it became minus the rest
        became = np.stack([x for _, x in found.values()])
        became[np.arange(len(slots)), slots] = 0
        became = (-became % self.p).astype(np.int32)
        self._substitute(slots, became)
        killed = self._holder[slots]
        self.deaths += [(int(u), int(labels[some[row]])) for u, (row, _) in zip(killed, found.values())]
        self._place[killed] = ~0
        kept = np.flatnonzero(became.any(axis=1))
        first, last = len(self._dead), len(self._dead) + len(kept)
        self._room(last, became.shape[1])
        self._became[first:last, : became.shape[1]] = became[kept]
        self._place[killed[kept]] = ~np.arange(first, last)
        self._dead = np.concatenate((self._dead, killed[kept]))
        self.living -= len(slots)

    def _compact(self) -> None:
        """Slots for the living alone, in the same order, and rows for what is not zero."""
        living = self._place[self._holder] >= 0
        kept = self._became[: len(self._dead)].any(axis=1) | (self._dead < 0)
        row = np.cumsum(kept) - 1
        self._became = self._became[: len(self._dead), : len(self._holder)][np.ix_(kept, living)]
        self._place[self._dead[1:]] = ~np.where(kept, row, 0)[1:]
        self._dead, self._holder = self._dead[kept], self._holder[living]
        self._place[self._holder] = np.arange(self.living)

    def _classes(self, rows: Index, coordinates: Index, factors: Index, count: int) -> NDArray[np.int64]:
        """The sums of living coordinates that the chains amount to, by slots."""
        width = len(self._holder)
        classes = np.zeros((count, width), np.int64)
        place = self._place[coordinates]
        living = place >= 0
        np.add.at(classes, (rows[living], place[living]), factors[living])
        some = np.flatnonzero(place < ~0)
        for low in range(0, len(some), _ROWS):
            part = some[low : low + _ROWS]
            sums = self._became[~place[part], :width].astype(np.int64) * factors[part, None]
            first = np.flatnonzero(np.diff(rows[part], prepend=-1))
            classes[rows[part][first]] += np.add.reduceat(sums, first, axis=0)
        return classes % self.p

    def _substitute(self, slots: Index, became: Residues) -> None:
        """Replace ``slots`` by what they ``became`` in the sums of all that died before."""
        width = became.shape[1]
        for low in range(0, len(self._dead), _ROWS):
            sums = self._became[low : min(low + _ROWS, len(self._dead)), :width]
            factors = sums[:, slots].astype(np.int64)
            hit = np.flatnonzero(factors.any(axis=1))
            if not len(hit):
                continue
            used = np.flatnonzero(factors[hit].any(axis=0))
            changed = sums[hit].astype(np.int64)
            changed[:, slots] = 0
            for u in used:  # a slot at a time: a product of matrices of integers is no faster
                some = hit[factors[hit, u] != 0]
                at = np.searchsorted(hit, some)
                changed[at] = (changed[at] + factors[some, u, None] * became[u]) % self.p
            sums[hit] = changed


def _echelon(classes: NDArray[np.int64], p: int) -> dict[int, tuple[int, Any]]:
    """Pivot → (row, sum) in the order of rows: every row without its predecessors, its highest member the pivot with
    the factor 1. The sums are mutually reduced: a pivot is in no sum but its own."""
    found: dict[int, tuple[int, Any]] = {}
    for row, given in enumerate(classes):
        x = given.copy()
        while True:
            members = np.flatnonzero(x)
            if not len(members):
                break
            top = int(members[-1])
            if top not in found:
                found[top] = row, x * pow(int(x[top]), -1, p) % p
                break
            x = (x - x[top] * found[top][1]) % p
    for top in sorted(found):
        row, x = found[top]
        for other in np.flatnonzero(x[:top])[::-1].tolist():
            if other in found and x[other]:
                x = (x - x[other] * found[other][1]) % p
        found[top] = row, x
    return found
