"""Reduction of an integer chain complex to its minimal model, with the chain homotopy equivalence between the two.

Three stages. Coreduction pairs (q, k), q the only face of k not yet removed, give an acyclic matching, and the Morse
complex on the unmatched cells follows gradient paths. Remaining ±1 entries are eliminated one by one. What is left has
no unit and is brought to Smith form, degree by degree. Each stage knows four maps between the complex and its
reduction, and the homotopy; nothing is stored but the steps.

Sources: Mischaikow and Nanda, Morse theory for filtrations, Discrete Comput. Geom. 50 (2013); Sköldberg, Morse theory
from an algebraic viewpoint, Trans. AMS 358 (2006); Kaczynski, Mischaikow, Mrozek, Computational Homology, chapter 4.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from aatc.passes.analysis.chains.complexes import ChainComplex
from aatc.passes.analysis.chains.smith import (
    Integers,
    Pivot,
    SparseColumns,
    eliminate,
    identity,
    integer_units,
    smith_normal_form,
)
from aatc.passes.analysis.chains.verify_cohomology import EquivalenceWitness

Places = NDArray[np.int64]
_DEAD, _CRITICAL = -1, -2
_SAMPLE = 16


@dataclass(frozen=True)
class _Step:
    """One pair: its places in the lower and the upper degree, the incidence ±1, and the faces of the upper cell."""

    low: int
    high: int
    value: int
    places: Places
    entries: Integers


class Coreduction:
    """A matching of cells by coreduction; ``critical[k]`` are the unmatched cells of degree k."""

    def __init__(self, chain: ChainComplex) -> None:
        self.chain = chain
        self._offsets = np.cumsum([0, *chain.counts]).tolist()
        self._incidences()
        self._match()
        self.critical: list[Places] = [np.zeros(0, np.int64) for _ in chain.counts]
        unmatched = np.array(self._unmatched, np.int64)
        for k in range(len(chain.counts)):
            low, high = self._offsets[k], self._offsets[k + 1]
            self.critical[k] = np.sort(unmatched[(unmatched >= low) & (unmatched < high)]) - low
        self._steps: dict[int, list[_Step]] = {}

    def _incidences(self) -> None:
        """Faces and cofaces of all cells as flat lists over global indices."""
        shape = (self._offsets[-1],) * 2
        rows, columns, data = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for k in range(1, len(self.chain.counts)):
            b = sparse.coo_array(self.chain.boundary(k))
            rows.append(b.coords[0].astype(np.int64) + self._offsets[k - 1])
            columns.append(b.coords[1].astype(np.int64) + self._offsets[k])
            data.append(b.data)
        entries = sparse.coo_array((np.concatenate(data), (np.concatenate(rows), np.concatenate(columns))), shape=shape)
        by_column, by_row = entries.tocsc(), entries.tocsr()
        self._face_start: list[int] = by_column.indptr.tolist()
        self._faces: list[int] = by_column.indices.tolist()
        self._values: list[int] = by_column.data.tolist()
        self._coface_start, self._cofaces = by_row.indptr.tolist(), by_row.indices.tolist()
        self._all_units = bool((np.abs(by_column.data) == 1).all())

    def _match(self) -> None:
        start, cofaces, coface_start = self._face_start, self._cofaces, self._coface_start
        cells = self._offsets[-1]
        left = [start[c + 1] - start[c] for c in range(cells)]
        # The sum of the remaining faces names the face when one is left.
        total = [sum(self._faces[start[c] : start[c + 1]]) for c in range(cells)]
        removed = bytearray(cells)
        ready: deque[int] = deque()
        self._pairs: list[tuple[int, int]] = []
        self._unmatched: list[int] = []

        def remove(cell: int) -> None:
            removed[cell] = 1
            for c in cofaces[coface_start[cell] : coface_start[cell + 1]]:
                left[c] -= 1
                total[c] -= cell
                if left[c] == 1:
                    ready.append(c)

        ready.extend(c for c in range(cells) if left[c] == 1)
        for cell in range(cells):
            while ready:
                king = ready.popleft()
                if removed[king] or left[king] != 1:
                    continue
                queen = total[king]
                if not self._all_units and abs(self._incidence(queen, king)) != 1:
                    continue
                self._pairs.append((queen, king))
                remove(queen)
                remove(king)
            if not removed[cell]:
                self._unmatched.append(cell)
                remove(cell)

    def _incidence(self, face: int, cell: int) -> int:
        low, high = self._face_start[cell], self._face_start[cell + 1]
        return self._values[self._faces.index(face, low, high)]

    def boundaries(self) -> list[SparseColumns]:
        """The boundary of the Morse complex in degrees 1, 2, ..., by the numbers of critical cells in their degree."""
        rank = self._ranks()
        found = []
        for k in range(1, len(self.critical)):
            low, here = self._offsets[k - 1], self._offsets[k]
            number = {low + int(c): i for i, c in enumerate(self.critical[k - 1])}
            queens = sum(1 for r in rank[low:here] if r >= 0)
            columns: SparseColumns = {}
            touched = 0
            for j, cell in enumerate(self.critical[k].tolist() if number else ()):
                # Following the paths of all critical cells, or all values of all critical faces: the cheaper.
                if j == _SAMPLE and queens * len(number) < touched * (len(self.critical[k]) // _SAMPLE):
                    columns = self._values_at(k, rank)
                    break
                chain, steps = self._flow(here + cell, rank)
                touched += steps
                if reached := {number[c]: v for c, v in chain.items() if v}:
                    columns[j] = reached
            found.append(columns)
        return found

    def _ranks(self) -> list[int]:
        """For a matched face its place in the order of removal where a gradient path leads on to a critical cell, else
        `_DEAD`; `_CRITICAL` for critical cells."""
        rank = [_DEAD] * self._offsets[-1]
        for cell in self._unmatched:
            rank[cell] = _CRITICAL
        start, faces = self._face_start, self._faces
        for s, (queen, king) in enumerate(self._pairs):
            for f in faces[start[king] : start[king + 1]]:
                if rank[f] != _DEAD and f != queen:
                    rank[queen] = s
                    break
        return rank

    def _flow(self, cell: int, rank: list[int]) -> tuple[dict[int, int], int]:
        """The critical cells in the boundary of a critical cell, every matched face being replaced by the rest of its
        partner's boundary; and the number of replacements."""
        start, faces, values, pairs = self._face_start, self._faces, self._values, self._pairs
        chain = {
            f: v
            for f, v in zip(faces[start[cell] : start[cell + 1]], values[start[cell] : start[cell + 1]])
            if rank[f] != _DEAD
        }
        heap = [-rank[f] for f in chain if rank[f] >= 0]
        heapq.heapify(heap)
        steps = 0
        while heap:
            queen, king = pairs[-heapq.heappop(heap)]
            factor = chain.pop(queen)
            if not factor:
                continue
            steps += 1
            low, high = start[king], start[king + 1]
            factor *= -values[faces.index(queen, low, high)]
            for f, v in zip(faces[low:high], values[low:high]):
                if f in chain:
                    chain[f] += factor * v
                elif (r := rank[f]) != _DEAD and f != queen:
                    chain[f] = factor * v
                    if r >= 0:
                        heapq.heappush(heap, -r)
        return chain, steps

    def _values_at(self, degree: int, rank: list[int]) -> SparseColumns:
        """The same boundary by rows: the cochain of each critical face, extended along the matching, on critical
        cells."""
        start, faces, values = self._face_start, self._faces, self._values
        low, here = self._offsets[degree - 1], self._offsets[degree]
        pairs = [(q, k) for q, k in self._pairs if low <= q < here and rank[q] >= 0]
        tops = self.critical[degree].tolist()
        columns: SparseColumns = {}
        for i, face in enumerate(self.critical[degree - 1].tolist()):
            value = {low + face: 1}
            for queen, king in pairs:
                total = incidence = 0
                for f, v in zip(faces[start[king] : start[king + 1]], values[start[king] : start[king + 1]]):
                    if f == queen:
                        incidence = v
                    elif f in value:
                        total += v * value[f]
                if total:
                    value[queen] = -incidence * total
            for j, top in enumerate(tops):
                part = slice(start[here + top], start[here + top + 1])
                if total := sum(v * value[f] for f, v in zip(faces[part], values[part]) if f in value):
                    columns.setdefault(j, {})[i] = total
        return columns

    def _steps_to(self, degree: int) -> list[_Step]:
        """The pairs whose upper cell has this degree, in the order of removal."""
        if degree not in self._steps:
            self._steps[degree] = []
            if 1 <= degree < len(self.chain.counts):
                low, high, end = self._offsets[degree - 1 : degree + 2]
                matrix = self.chain.boundary(degree)
                for queen, king in self._pairs:
                    if high <= king < end:
                        part = slice(matrix.indptr[king - high], matrix.indptr[king - high + 1])
                        entries = matrix.data[part].astype(object)
                        value = self._incidence(queen, king)
                        self._steps[degree].append(
                            _Step(queen - low, king - high, value, matrix.indices[part], entries[:, None])
                        )
        return self._steps[degree]

    def project(self, degree: int, chain: Integers) -> Integers:
        """Chains (count_k, m) to chains of the reduction."""
        x = chain.copy()
        for s in reversed(self._steps_to(degree + 1)):
            if x[s.low].any():
                x[s.places] -= s.value * x[s.low] * s.entries
        return x[self.critical[degree]]

    def lift(self, degree: int, chain: Integers) -> Integers:
        """Chains of the reduction to chains (count_k, m); a cycle becomes a cycle."""
        y = np.zeros((self.chain.count(degree), chain.shape[1]), dtype=object)
        y[self.critical[degree]] = chain
        rest = apply(self.chain.boundary(degree), y)
        for s in reversed(self._steps_to(degree)):
            if rest[s.low].any():
                factor = s.value * rest[s.low]
                rest[s.places] -= factor * s.entries
                y[s.high] -= factor
        return y

    def extend(self, degree: int, cochain: Integers) -> Integers:
        """Cochains of the reduction to cochains (count_k, m), the transpose of `project`."""
        x = np.zeros((self.chain.count(degree), cochain.shape[1]), dtype=object)
        x[self.critical[degree]] = cochain
        for s in self._steps_to(degree + 1):
            x[s.low] = -s.value * (s.entries * x[s.places]).sum(axis=0)
        return x

    def restrict(self, degree: int, cochain: Integers) -> Integers:
        """Cochains (count_k, m) to cochains of the reduction, the transpose of `lift`."""
        weight = np.zeros((self.chain.count(degree - 1), cochain.shape[1]), dtype=object)
        for s in self._steps_to(degree):
            weight[s.low] = -s.value * (cochain[s.high] + (s.entries * weight[s.places]).sum(axis=0))
        restricted: Integers = (cochain + apply(self.chain.coboundary(degree - 1), weight))[self.critical[degree]]
        return restricted

    def homotopy(self, degree: int, chain: Integers) -> Integers:
        """h with 1 − lift∘project = ∂h + h∂, on chains (count_k, m)."""
        x, h = chain.copy(), np.zeros((self.chain.count(degree + 1), chain.shape[1]), dtype=object)
        for s in reversed(self._steps_to(degree + 1)):
            factor = s.value * x[s.low]
            h[s.high] += factor
            x[s.places] -= factor * s.entries
        return h


class Elimination:
    """±1 entries removed one by one from boundaries given as sparse columns; ``survivors[k]`` are the cells left."""

    def __init__(self, boundaries: list[SparseColumns], counts: tuple[int, ...]) -> None:
        self.counts = counts
        alive = [np.ones(c, bool) for c in counts]
        self._pivots: list[list[Pivot]] = [[] for _ in range(len(counts) + 1)]
        for k, columns in enumerate(boundaries, 1):
            for column in columns.values():
                for row in [r for r in column if not alive[k - 1][r]]:
                    del column[row]
            for empty in [j for j, column in columns.items() if not column]:
                del columns[empty]
            self._pivots[k] = list(eliminate(columns, integer_units))
            for pivot in self._pivots[k]:
                alive[k - 1][pivot.row] = alive[k][pivot.column] = False
                if k > 1:
                    boundaries[k - 2].pop(pivot.row, None)
        self.survivors = [np.flatnonzero(a) for a in alive]
        place = [{int(c): i for i, c in enumerate(s)} for s in self.survivors]
        self.boundaries = [
            {place[k][j]: {place[k - 1][i]: v for i, v in column.items()} for j, column in columns.items()}
            for k, columns in enumerate(boundaries, 1)
        ]

    def project(self, degree: int, chain: Integers) -> Integers:
        x = chain.copy()
        for p in self._pivots[degree + 1]:
            for i, v in p.down.items():
                x[i] -= p.value * v * x[p.row]
        return x[self.survivors[degree]]

    def lift(self, degree: int, chain: Integers) -> Integers:
        y = np.zeros((self.counts[degree], chain.shape[1]), dtype=object)
        y[self.survivors[degree]] = chain
        for p in reversed(self._pivots[degree]):
            y[p.column] = -p.value * sum((v * y[j] for j, v in p.across.items()), np.zeros_like(y[p.column]))
        return y

    def extend(self, degree: int, cochain: Integers) -> Integers:
        x = np.zeros((self.counts[degree], cochain.shape[1]), dtype=object)
        x[self.survivors[degree]] = cochain
        for p in reversed(self._pivots[degree + 1]):
            x[p.row] = -p.value * sum((v * x[i] for i, v in p.down.items()), np.zeros_like(x[p.row]))
        return x

    def restrict(self, degree: int, cochain: Integers) -> Integers:
        x = cochain.copy()
        for p in self._pivots[degree]:
            for j, v in p.across.items():
                x[j] -= p.value * v * x[p.column]
        return x[self.survivors[degree]]

    def homotopy(self, degree: int, chain: Integers) -> Integers:
        x = chain.copy()
        above = self.counts[degree + 1] if degree + 1 < len(self.counts) else 0
        h, passed = np.zeros((above, chain.shape[1]), dtype=object), []
        for p in self._pivots[degree + 1]:
            passed.append(p.value * x[p.row])
            for i, v in p.down.items():
                x[i] -= p.value * v * x[p.row]
        for p, factor in zip(reversed(self._pivots[degree + 1]), reversed(passed)):
            h[p.column] = factor - p.value * sum((v * h[j] for j, v in p.across.items()), np.zeros_like(factor))
        return h


class SmithBasis:
    """Bases in which every boundary of a complex without unit entries is diagonal.

    ``pairs[k]`` lists (i, j, t): ∂ of basis element j of degree k is t times basis element i of degree k − 1.
    """

    def __init__(self, boundaries: list[SparseColumns], counts: tuple[int, ...]) -> None:
        self.counts = counts
        # Only cells with an entry take part; the others are left as they are.
        self._cells: list[Places] = []
        for k in range(len(counts)):
            used = set(boundaries[k - 1]) if k else set()
            if k < len(boundaries):
                used |= {i for column in boundaries[k].values() for i in column}
            self._cells.append(np.array(sorted(used), np.int64))
        sizes = [len(c) for c in self._cells]
        self._basis = [identity(s) for s in sizes]
        self._inverse = [identity(s) for s in sizes]
        self.pairs: list[list[tuple[int, int, int]]] = [[] for _ in range(len(counts) + 1)]
        done = 0
        for k, columns in enumerate(boundaries, 1):
            below = self._inverse[k - 1] @ self._dense(columns, k) if sizes[k - 1] and sizes[k] else None
            taken, done = done, 0
            if below is None:
                continue
            # The first ``taken`` elements of degree k − 1 have a nonzero boundary: no boundary lies on them.
            form = smith_normal_form(below[taken:])
            self._basis[k - 1][:, taken:] = self._basis[k - 1][:, taken:] @ form.left_inverse
            self._inverse[k - 1][taken:] = form.left @ self._inverse[k - 1][taken:]
            self._basis[k], self._inverse[k] = form.right, form.right_inverse
            done = form.rank
            for i, t in enumerate(form.factors):
                self.pairs[k].append((int(self._cells[k - 1][taken + i]), int(self._cells[k][i]), t))

    def _dense(self, columns: SparseColumns, degree: int) -> Integers:
        rows = {int(c): i for i, c in enumerate(self._cells[degree - 1])}
        places = {int(c): i for i, c in enumerate(self._cells[degree])}
        dense = np.zeros((len(rows), len(places)), dtype=object)
        for j, column in columns.items():
            for i, v in column.items():
                dense[rows[i], places[j]] = v
        return dense

    def _apply(self, degree: int, matrix: Integers, chain: Integers) -> Integers:
        out, cells = chain.copy(), self._cells[degree]
        if len(cells):
            out[cells] = matrix @ chain[cells]
        return out

    def project(self, degree: int, chain: Integers) -> Integers:
        return self._apply(degree, self._inverse[degree], chain)

    def lift(self, degree: int, chain: Integers) -> Integers:
        return self._apply(degree, self._basis[degree], chain)

    def extend(self, degree: int, cochain: Integers) -> Integers:
        return self._apply(degree, self._inverse[degree].T, cochain)

    def restrict(self, degree: int, cochain: Integers) -> Integers:
        return self._apply(degree, self._basis[degree].T, cochain)

    def homotopy(self, degree: int, chain: Integers) -> Integers:
        above = self.counts[degree + 1] if degree + 1 < len(self.counts) else 0
        return np.zeros((above, chain.shape[1]), dtype=object)


class MinimalModel:
    """A complex reduced to free generators and pairs (t ≥ 2): ∂s = t·r.

    In degree k: ``free[k]``, ``bounding[k]`` (the elements r with t·r a boundary) and ``bounded[k]`` (the elements s)
    are numbers in the model's basis, the last two with their t in ``orders_below[k]`` and ``orders_above[k]``.
    `project`, `lift`, `extend`, `restrict` carry chains and cochains (count_k, m), as arrays of exact numbers, between
    the complex and the model; `homotopy` joins lift∘project to the identity.
    """

    def __init__(self, chain: ChainComplex) -> None:
        self.chain = chain
        matching = Coreduction(chain)
        rest = Elimination(matching.boundaries(), tuple(len(c) for c in matching.critical))
        self.counts = tuple(len(s) for s in rest.survivors)
        basis = SmithBasis(rest.boundaries, self.counts)
        self._stages = (matching, rest, basis)
        self.pairs = basis.pairs
        degrees = range(len(self.counts))
        paired = [{i for i, _, _ in basis.pairs[k + 1]} | {j for _, j, _ in basis.pairs[k]} for k in degrees]
        self.free = [sorted(set(range(self.counts[k])) - paired[k]) for k in degrees]
        # Pairs with t = 1, which only the Smith form can find, carry no class.
        classes = [[pair for pair in pairs if pair[2] > 1] for pairs in basis.pairs]
        self.bounding = [[i for i, _, _ in classes[k + 1]] for k in degrees]
        self.orders_below = [[t for _, _, t in classes[k + 1]] for k in degrees]
        self.bounded = [[j for _, j, _ in classes[k]] for k in degrees]
        self.orders_above = [[t for _, _, t in classes[k]] for k in degrees]

    def project(self, degree: int, chain: Integers) -> Integers:
        for stage in self._stages:
            chain = stage.project(degree, chain)
        return chain

    def lift(self, degree: int, chain: Integers) -> Integers:
        for stage in reversed(self._stages):
            chain = stage.lift(degree, chain)
        return chain

    def extend(self, degree: int, cochain: Integers) -> Integers:
        for stage in reversed(self._stages):
            cochain = stage.extend(degree, cochain)
        return cochain

    def restrict(self, degree: int, cochain: Integers) -> Integers:
        for stage in self._stages:
            cochain = stage.restrict(degree, cochain)
        return cochain

    def homotopy(self, degree: int, chain: Any) -> Integers:
        found = []
        for stage in self._stages:
            found.append(stage.homotopy(degree, chain))
            chain = stage.project(degree, chain)
        h = found[-1]
        for stage, own in zip(reversed(self._stages[:-1]), reversed(found[:-1])):
            h = own + (stage.lift(degree + 1, h) if degree + 1 < len(self.counts) else h)
        return h

    def boundary(self, degree: int) -> Integers:
        """The model's ∂_k, dense."""
        rows = self.counts[degree - 1] if 0 < degree <= len(self.counts) else 0
        matrix = np.zeros((rows, self.counts[degree] if degree < len(self.counts) else 0), dtype=object)
        for i, j, t in self.pairs[degree]:
            matrix[i, j] = t
        return matrix

    def witness(self) -> EquivalenceWitness:
        """The equivalence as dense integer matrices: for complexes of some hundred cells a degree."""
        degrees = range(len(self.counts))
        cells = [identity(self.chain.count(k)) for k in degrees]
        return EquivalenceWitness(
            tuple(self.chain.boundary(k).toarray().astype(object) for k in range(len(self.counts) + 1)),
            tuple(self.boundary(k) for k in degrees),
            tuple(self.lift(k, identity(self.counts[k])) for k in degrees),
            tuple(self.project(k, cells[k]) for k in degrees),
            tuple(self.homotopy(k, cells[k]) for k in degrees),
        )


def apply(matrix: sparse.csc_array, chain: Integers) -> Integers:
    """A sparse integer matrix times an array (n, m) of exact numbers."""
    out = np.zeros((matrix.shape[0], chain.shape[1]), dtype=object)
    entries = sparse.coo_array(matrix)
    np.add.at(out, entries.coords[0], entries.data.astype(object)[:, None] * chain[entries.coords[1]])
    return out
