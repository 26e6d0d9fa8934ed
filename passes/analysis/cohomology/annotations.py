"""Classes of 1-cycles over F_2 as they are born and die: a vector for every cycle that creates one.

Each edge that closes a cycle gets a coordinate. A 1-chain is a set of coordinates, and its class is their sum once
every dead coordinate is replaced by the living ones it became equal to. A chain that bounds kills the youngest living
coordinate of its class, which pairs birth and death (the elder rule).

Sources: T. Dey, F. Fan, Y. Wang, "Computing topological persistence for simplicial maps", SoCG 2014; J.-D.
Boissonnat, T. Dey, C. Maria, "The compressed annotation matrix", Algorithmica 73 (2015).
"""

from __future__ import annotations

import numpy as np

from aatc.passes.analysis.cohomology.bitsets import Index, Sets, members, toggle, words

# Rows that are added at once, so that they stay in cache.
_ROWS = 1024


class Chains:
    """Rows of integers that grow at the end."""

    def __init__(self) -> None:
        self._ends = np.zeros(1024, np.int64)
        self._values = np.zeros(4096, np.int64)
        self._count = 0

    def append(self, lengths: Index, values: Index) -> None:
        """New rows, of these lengths, whose values follow one another."""
        first, last, start = self._count, self._count + len(lengths), int(self._ends[self._count])
        self._ends = _grown(self._ends, last + 1)
        self._values = _grown(self._values, start + len(values))
        self._ends[first + 1 : last + 1] = start + np.cumsum(lengths)
        self._values[start : start + len(values)] = values
        self._count = last

    def rows(self, which: Index) -> tuple[Index, Index]:
        """All values of the rows ``which``, and for each the place in ``which`` it comes from."""
        starts = self._ends[which]
        lengths = self._ends[which + 1] - starts
        place = np.repeat(np.arange(len(which)), lengths)
        return place, self._values[np.arange(len(place)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)]


def _grown(array: Index, size: int) -> Index:
    return array if size <= len(array) else np.concatenate((array, np.zeros(max(size, len(array)), array.dtype)))


def odd_pairs(rows: Index, values: Index, bound: int) -> tuple[Index, Index]:
    """The pairs (row, value < ``bound``) that occur an odd number of times, sorted."""
    keys = np.sort(rows * bound + values)
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    keys = keys[first[np.diff(first, append=len(keys)) % 2 == 1]]
    return keys // bound, keys % bound


class Annotations:
    """The living coordinates, what the dead ones became, and who killed whom.

    ``deaths`` are pairs of a coordinate and the label of what killed it, in order; ``living`` counts the rest. Living
    coordinates have slots, by age: bits of the sums that dead ones became. Sums that are zero, by far the most, have
    no row; slots and rows are given anew when many are empty.
    """

    def __init__(self) -> None:
        self.deaths: list[tuple[int, int]] = []
        self.living = 0
        self.count = 0
        # Per coordinate its slot or, once dead, ~row, with row 0 for nothing; per slot and per row its coordinate.
        self._place = np.zeros(0, np.int64)
        self._holder = np.zeros(0, np.int64)
        self._dead = np.full(1, -1)
        self._became: Sets = np.zeros((1, 0), np.uint64)

    def birth(self, count: int) -> Index:
        """As many new coordinates, the youngest last."""
        born = np.arange(self.count, self.count + count)
        self._place = np.concatenate((self._place, len(self._holder) + np.arange(count)))
        self._holder = np.concatenate((self._holder, born))
        self.count, self.living = self.count + count, self.living + count
        self._room(len(self._became), words(len(self._holder)))
        return born

    def _room(self, rows: int, width: int) -> None:
        """Room for so many sums of so many words, and then some."""
        height, room = self._became.shape
        if rows > height or width > room:
            wide = np.zeros((max(rows, 2 * height if rows > height else height), max(width, room)), np.uint64)
            wide[:height, :room] = self._became
            self._became = wide

    def kill(self, rows: Index, coordinates: Index, labels: Index) -> None:
        """Chains that bound from now on: entries (row, coordinate), sorted; row r has the label ``labels[r]``."""
        if 3 * self.living < 2 * len(self._holder):
            self._compact()
        classes = self._classes(rows, coordinates, len(labels))
        some = np.flatnonzero(classes.any(axis=1))
        found = _echelon(classes[some])
        if not found:
            return
        slots, width = np.array(list(found)), classes.shape[1]
        sums = np.frombuffer(b"".join(x.to_bytes(8 * width, "little") for _, x in found.values()), "<u8")
        became = sums.astype(np.uint64).reshape(len(slots), width)
        self._substitute(slots, became)
        toggle(became, np.arange(len(slots)), slots)
        killed = self._holder[slots]
        self.deaths += [(int(u), int(labels[some[row]])) for u, (row, _) in zip(killed, found.values())]
        self._place[killed] = ~0
        kept = np.flatnonzero(became.any(axis=1))
        first, last = len(self._dead), len(self._dead) + len(kept)
        self._room(last, width)
        self._became[first:last, :width] = became[kept]
        self._place[killed[kept]] = ~np.arange(first, last)
        self._dead = np.concatenate((self._dead, killed[kept]))
        self.living -= len(slots)

    def _compact(self) -> None:
        """Slots for the living alone, in the same order, and rows for what is not zero."""
        living = self._place[self._holder] >= 0
        slot = np.cumsum(living) - 1
        kept = (self._became[: len(self._dead)] != 0).any(axis=1) | (self._dead < 0)
        row = np.cumsum(kept) - 1
        narrow = np.zeros((int(kept.sum()), words(self.living)), np.uint64)
        for low in range(0, len(self._dead), _ROWS):
            rows, old = members(self._became[low : min(low + _ROWS, len(self._dead))])
            toggle(narrow, row[low + rows], slot[old])
        self._place[self._dead[1:]] = ~np.where(kept, row, 0)[1:]
        self._became, self._dead, self._holder = narrow, self._dead[kept], self._holder[living]
        self._place[self._holder] = np.arange(self.living)

    def _classes(self, rows: Index, coordinates: Index, count: int) -> Sets:
        """The sums of living coordinates that the chains amount to, as slots."""
        classes = np.zeros((count, words(len(self._holder))), np.uint64)
        place = self._place[coordinates]
        living = place >= 0
        toggle(classes, rows[living], place[living])
        some = place < ~0
        _add_rows(classes, rows[some], self._became, ~place[some])
        return classes

    def _substitute(self, slots: Index, became: Sets) -> None:
        """Replace ``slots`` by what they ``became``, with themselves, in the sums of all that died before."""
        number = np.zeros(len(self._holder), np.int64)
        number[slots] = np.arange(len(slots))
        wanted = np.zeros((1, became.shape[1]), np.uint64)
        toggle(wanted, np.zeros_like(slots), slots)
        for low in range(0, len(self._dead), _ROWS):
            sums = self._became[low : min(low + _ROWS, len(self._dead)), : became.shape[1]]
            rows, hit = members(sums & wanted)
            order = np.argsort(rows, kind="stable")
            _add_rows(sums, rows[order], became, number[hit[order]])


def _add_rows(to: Sets, rows: Index, sums: Sets, which: Index) -> None:
    """Add ``sums[which[i]]`` to ``to[rows[i]]`` over F_2 for all i; ``rows`` ascend."""
    width = to.shape[1]
    for low in range(0, len(rows), _ROWS):
        part = rows[low : low + _ROWS]
        first = np.flatnonzero(np.diff(part, prepend=-1))
        to[part[first]] ^= np.bitwise_xor.reduceat(sums[which[low : low + _ROWS], :width], first, axis=0)


def _echelon(classes: Sets) -> dict[int, tuple[int, int]]:
    """Pivot → (row, sum) in the order of rows: every row without its predecessors, its highest member the pivot.

    The sums are mutually reduced: a pivot is in no sum but its own. As Python's integers, whose operations on some
    thousand bits cost less than the calls of array functions.
    """
    found: dict[int, tuple[int, int]] = {}
    raw = classes.astype("<u8", copy=False).tobytes()
    size = 8 * classes.shape[1]
    for row in range(len(classes)):
        x = int.from_bytes(raw[row * size : (row + 1) * size], "little")
        while x:
            top = x.bit_length() - 1
            if top not in found:
                found[top] = row, x
                break
            x ^= found[top][1]
    pivots = sum(1 << top for top in found)
    for top in sorted(found):
        row, x = found[top]
        others = x & pivots & ((1 << top) - 1)
        while others:
            other = others.bit_length() - 1
            x ^= found[other][1]
            others ^= 1 << other
        found[top] = row, x
    return found
