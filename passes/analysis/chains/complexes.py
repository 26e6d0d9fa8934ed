"""Chain complexes of free abelian groups, and the simplicial complexes that attention matrices give.

One canonical order of cells: the cells of degree k are the rows of ``cells[k]``, (count_k, k+1), in lexicographic
order; a simplex is written by its vertices in ascending order (in a directed flag complex: in the order of its arrows).
The i-th face leaves out the i-th vertex and has the sign (−1)^i.

Sources: Hatcher, Algebraic Topology, section 2.1; Dowker, Homology groups of relations, Ann. Math. 56 (1952);
Reimann et al., Cliques of neurons bound into cavities, Front. Comput. Neurosci. 11 (2017), for directed flag complexes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from aatc.passes.analysis.result import AnalysisError
from aatc.passes.analysis.stochastic import float_array

Cells = NDArray[np.int64]
_CHUNK = 1 << 24
_FACES = 1 << 22  # faces of one degree that are written down at once


class ComplexError(AnalysisError):
    """Cells, boundaries or matrices that do not make a complex."""


class ChainComplex:
    """A finite chain complex of free abelian groups C_0 ← C_1 ← ... ← C_d with integer boundary matrices.

    ``boundaries`` are ∂_1, ..., ∂_d, ∂_k of shape (count_{k−1}, count_k), dense or sparse; for a complex that has
    only C_0, give ``counts``. Raises `ComplexError` for shapes that do not chain, entries that are not integers, and
    ∂_{k−1}∂_k ≠ 0.
    """

    def __init__(self, boundaries: Sequence[Any], counts: Sequence[int] | None = None) -> None:
        maps = [_integer_matrix(b, k + 1) for k, b in enumerate(boundaries)]
        if counts is None:
            if not maps:
                raise ComplexError("without boundaries, counts= says how many cells of degree 0 there are")
            counts = [maps[0].shape[0], *(m.shape[1] for m in maps)]
        if len(counts) != len(maps) + 1:
            raise ComplexError(f"{len(maps)} boundaries go with {len(maps) + 1} counts, not {len(counts)}")
        for k, m in enumerate(maps, 1):
            if m.shape != (counts[k - 1], counts[k]):
                raise ComplexError(f"∂_{k} has shape {m.shape}, not {(counts[k - 1], counts[k])}")
        for k in range(1, len(maps)):
            if not _compose_to_zero(maps[k - 1], maps[k]):
                raise ComplexError(f"∂_{k}∂_{k + 1} is not zero")
        self.counts: tuple[int, ...] = tuple(int(c) for c in counts)
        self._maps = tuple(maps)

    @property
    def dimension(self) -> int:
        """The highest degree; −1 for the empty complex."""
        return max((k for k, c in enumerate(self.counts) if c), default=-1)

    @property
    def euler_characteristic(self) -> int:
        return sum((-1) ** k * c for k, c in enumerate(self.counts))

    def count(self, degree: int) -> int:
        """The rank of C_k; 0 outside the degrees there are."""
        return self.counts[degree] if 0 <= degree < len(self.counts) else 0

    def boundary(self, degree: int) -> sparse.csc_array:
        """∂_k, (count_{k−1}, count_k), int64, for every integer k."""
        if 1 <= degree < len(self.counts):
            return self._maps[degree - 1]
        return sparse.csc_array((self.count(degree - 1), self.count(degree)), dtype=np.int64)

    def coboundary(self, degree: int) -> sparse.csc_array:
        """d_k = ∂_{k+1}ᵀ from k-cochains to (k+1)-cochains, (count_{k+1}, count_k)."""
        return sparse.csc_array(self.boundary(degree + 1).T)

    def tensor(self, other: ChainComplex) -> ChainComplex:
        """The tensor product, whose homology is Künneth's. The basis of degree n is that of C_0⊗D_n, then C_1⊗D_{n−1},
        and so on, each with the index of the second factor running fastest; ∂(a⊗b) = ∂a⊗b + (−1)^|a| a⊗∂b."""
        top = len(self.counts) + len(other.counts) - 2
        counts = [sum(self.count(i) * other.count(n - i) for i in range(n + 1)) for n in range(top + 1)]
        boundaries = []
        for n in range(1, top + 1):
            blocks: list[list[Any]] = [[None] * (n + 1) for _ in range(n)]
            for i in range(n + 1):
                one, two = (sparse.eye_array(c, dtype=np.int64) for c in (self.count(i), other.count(n - i)))
                if i < n:
                    blocks[i][i] = (-1) ** i * sparse.kron(one, other.boundary(n - i)).astype(np.int64)
                if i > 0:
                    # An empty product is of floats, and they would round the entries of the others.
                    blocks[i - 1][i] = sparse.kron(self.boundary(i), two).astype(np.int64)
            boundaries.append(sparse.block_array(blocks).reshape(counts[n - 1], counts[n]))
        return ChainComplex(boundaries, counts)


class SimplicialComplex:
    """Simplices as arrays ``cells[k]``, (count_k, k+1) int64, in the canonical order of this module.

    The constructor takes the arrays in any order of rows and checks that faces are present. Rows need not ascend: two
    cells may have the same vertices in different orders (directed flag complexes). Raises `ComplexError`.
    """

    def __init__(self, cells: Sequence[Any]) -> None:
        arrays = [_sorted_rows(_cell_array(c, k)) for k, c in enumerate(cells)]
        while len(arrays) > 1 and not len(arrays[-1]):
            arrays.pop()
        self.cells: tuple[Cells, ...] = tuple(arrays) or (np.zeros((0, 1), np.int64),)
        self._keys: list[Cells] = [self.cells[0][:, 0]]
        self._faces: list[Cells] = [np.zeros((len(self.cells[0]), 0), np.int64)]
        for k in range(1, len(self.cells)):
            faces = np.stack([self.index(np.delete(self.cells[k], i, axis=1)) for i in range(k + 1)], axis=1)
            if (faces < 0).any():
                cell, face = np.argwhere(faces < 0)[0]
                simplex = self.cells[k][cell]
                raise ComplexError(
                    f"the {k}-simplex {simplex.tolist()} is there without its face {np.delete(simplex, face).tolist()}",
                    hint="from_maximal_simplices adds the faces",
                )
            self._faces.append(faces)
            last = np.searchsorted(self._keys[0], self.cells[k][:, -1])
            self._keys.append(faces[:, -1] * max(1, len(self.cells[0])) + last)

    @property
    def dimension(self) -> int:
        """The highest degree of a cell; −1 for the empty complex."""
        return len(self.cells) - 1 if len(self.cells[0]) else -1

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(len(c) for c in self.cells)

    @property
    def euler_characteristic(self) -> int:
        return sum((-1) ** k * len(c) for k, c in enumerate(self.cells))

    def simplices(self, degree: int) -> Cells:
        """The cells of degree k, (count_k, k+1), also when there are none."""
        if 0 <= degree < len(self.cells):
            return self.cells[degree]
        return np.zeros((0, max(degree, 0) + 1), np.int64)

    def index(self, simplices: Any) -> Cells:
        """The places in the canonical order of simplices (m, k+1): (m,), with −1 for those that are not cells."""
        rows = np.asarray(simplices, dtype=np.int64)
        if rows.ndim != 2 or rows.shape[1] < 1:
            raise ComplexError(f"simplices have the shape (m, k+1), not {rows.shape}")
        vertices, place, found = len(self._keys[0]), np.zeros(len(rows), np.int64), np.ones(len(rows), bool)
        for j in range(rows.shape[1]):
            if j >= len(self._keys) or not vertices:
                return np.full(len(rows), -1, np.int64)
            vertex = np.minimum(np.searchsorted(self._keys[0], rows[:, j]), vertices - 1)
            found &= self._keys[0][vertex] == rows[:, j]
            key = vertex if j == 0 else place * vertices + vertex
            ranks = np.arange(vertices) if j == 0 else self._keys[j]
            place = np.minimum(np.searchsorted(ranks, key), max(0, len(ranks) - 1))
            found &= (ranks[place] == key) if len(ranks) else False
        return np.where(found, place, -1)

    def faces(self, degree: int) -> Cells:
        """(count_k, k+1): the index of each k-cell's face without its i-th vertex, at column i."""
        return self._faces[degree] if 0 < degree < len(self.cells) else np.zeros((self.count(degree), 0), np.int64)

    def count(self, degree: int) -> int:
        return len(self.cells[degree]) if 0 <= degree < len(self.cells) else 0

    @cached_property
    def chain_complex(self) -> ChainComplex:
        """The simplicial chain complex in the canonical basis."""
        boundaries = []
        for k in range(1, len(self.cells)):
            shape = (len(self.cells[k - 1]), len(self.cells[k]))
            columns = np.arange(shape[1] + 1) * (k + 1)
            signs = np.tile((-1) ** np.arange(k + 1), shape[1])
            # A copy: sorting the indices in place must not reorder the faces.
            matrix = sparse.csc_array((signs, self._faces[k].flatten(), columns), shape=shape)
            matrix.sort_indices()
            boundaries.append(matrix)
        return ChainComplex(boundaries, self.counts)

    def boundary(self, degree: int) -> sparse.csc_array:
        """∂_k, (count_{k−1}, count_k), int64."""
        return self.chain_complex.boundary(degree)

    def skeleton(self, dimension: int) -> SimplicialComplex:
        """The simplices of degree ≤ ``dimension``."""
        return SimplicialComplex(self.cells[: dimension + 1])

    def subcomplex(self, vertices: Iterable[int]) -> SimplicialComplex:
        """The simplices all of whose vertices are among ``vertices``."""
        keep = np.array(sorted(set(vertices)), np.int64)
        return SimplicialComplex([c[np.isin(c, keep).all(axis=1)] for c in self.cells])

    def link(self, vertex: int) -> SimplicialComplex:
        """The simplices that make a simplex with ``vertex`` and do not contain it. Needs ascending simplices."""
        found = []
        for c in self.cells[1:]:
            rows = c[(c == vertex).any(axis=1)]
            found.append(rows[rows != vertex].reshape(len(rows), c.shape[1] - 1))
        return SimplicialComplex(found or [np.zeros((0, 1), np.int64)])


def from_maximal_simplices(simplices: Iterable[Sequence[int]], dimension: int | None = None) -> SimplicialComplex:
    """The complex of all faces of the given simplices, which may be of several sizes; ``dimension`` cuts it off.

    Raises `ComplexError` for a simplex that names a vertex twice, and above 2²² faces of one size and degree.
    """
    groups: dict[int, list[Any]] = defaultdict(list)
    if isinstance(simplices, np.ndarray):
        if simplices.ndim != 2:
            raise ComplexError(f"an array of simplices has the shape (m, k+1), not {simplices.shape}")
        groups[simplices.shape[1]] = [simplices] if len(simplices) else []
    else:
        for simplex in simplices:
            groups[len(simplex)].append([simplex])
    faces: dict[int, list[Cells]] = defaultdict(list)
    for size, parts in groups.items():
        if not parts or not size:
            continue
        rows = _sorted_rows(np.sort(_cell_array(np.concatenate(parts), size - 1), axis=1))
        degrees = range(size if dimension is None else min(size, dimension + 1))
        most = max((math.comb(size, k + 1) for k in degrees), default=0)
        if len(rows) * most > _FACES:
            raise ComplexError(
                f"{len(rows)} simplices with {size} vertices have up to {most} faces of one degree each",
                hint="lower the dimension, raise the threshold, or pool the tokens to blocks",
            )
        for k in degrees:
            choice = np.array(list(combinations(range(size), k + 1)))
            faces[k].append(rows[:, choice].reshape(-1, k + 1))
    top = max(faces, default=-1)
    return SimplicialComplex([np.concatenate(faces[k]) for k in range(top + 1)])


def flag_complex(adjacency: Any, dimension: int, max_cells: int = 2_000_000) -> SimplicialComplex:
    """The clique complex, up to ``dimension``, of an undirected graph with boolean symmetric adjacency (n, n).

    Every vertex is a cell; the diagonal is ignored. Raises `ComplexError` when there would be more than ``max_cells``
    cells of one degree, or the matrix is not symmetric.
    """
    relation = _relation(adjacency)
    if (relation != relation.T).any():
        raise ComplexError("an undirected graph has a symmetric adjacency", hint="directed_flag_complex takes others")
    return _cliques(np.triu(relation, 1), dimension, max_cells)


def directed_flag_complex(adjacency: Any, dimension: int, max_cells: int = 2_000_000) -> SimplicialComplex:
    """The directed flag complex of a digraph (n, n): simplices (v_0, ..., v_k) with an arrow v_i → v_j for all i < j.

    Raises `ComplexError` when there would be more than ``max_cells`` cells of one degree.
    """
    relation = _relation(adjacency)
    return _cliques(relation & ~np.eye(len(relation), dtype=bool), dimension, max_cells)


def threshold_complex(matrix: Any, threshold: float, dimension: int, symmetrise: str = "max") -> SimplicialComplex:
    """K_t: the flag complex of {A_ij ≥ t} for an attention matrix (n, n).

    ``symmetrise``: "max" joins i and j where A_ij or A_ji reaches t, "min" where both do, "directed" keeps the arrows
    i → j and gives the directed flag complex. Raises `ComplexError`.
    """
    reached = _reached(matrix, threshold)
    if symmetrise == "directed":
        return directed_flag_complex(reached, dimension)
    if symmetrise not in ("max", "min"):
        raise ComplexError(f"symmetrise is 'max', 'min' or 'directed', not {symmetrise!r}")
    _relation(reached)
    return flag_complex(reached | reached.T if symmetrise == "max" else reached & reached.T, dimension)


def dowker_complex(matrix: Any, threshold: float, dimension: int, side: str = "columns") -> SimplicialComplex:
    """Dow_t: the sets of columns j that reach A_ij ≥ t in a common row i; with ``side="rows"``, the sets of rows.

    The two sides have the same homology below ``dimension`` (Dowker's theorem). ``matrix`` may be rectangular. Raises
    `ComplexError`.
    """
    reached = _reached(matrix, threshold)
    if side not in ("rows", "columns"):
        raise ComplexError(f"side is 'rows' or 'columns', not {side!r}")
    sets = np.unique(reached if side == "columns" else reached.T, axis=0)
    return from_maximal_simplices([np.flatnonzero(s).tolist() for s in sets if s.any()], dimension)


def circle(length: int) -> ChainComplex:
    """The cell complex of a circle: vertices 0, ..., length−1 and edges i → i+1, the last one back to 0."""
    if length < 1:
        raise ComplexError(f"a circle has at least one edge, not {length}")
    here = np.arange(length)
    step = sparse.csc_array((np.ones(length, np.int64), ((here + 1) % length, here)), shape=(length, length))
    return ChainComplex([step - sparse.eye_array(length, dtype=np.int64)])


def torus_grid(rows: int, columns: int) -> ChainComplex:
    """The cubical torus with rows × columns vertices (i, j), at index i·columns + j.

    Edges: first the edges (i, j) → (i, j+1), then (i, j) → (i+1, j), each at the index of its first end; squares at
    the index of their corner (i, j), oriented so that i comes before j: the boundary of a square runs (i, j) →
    (i+1, j) → (i+1, j+1) → (i, j+1) → (i, j). The sum of all squares is the fundamental cycle.
    """
    return circle(rows).tensor(circle(columns))


def _cell_array(cells: Any, degree: int) -> Cells:
    array = np.asarray(cells)
    if array.size == 0:
        return np.zeros((0, degree + 1), np.int64)
    if array.ndim != 2 or array.shape[1] != degree + 1 or array.dtype.kind not in "iu":
        raise ComplexError(
            f"cells of degree {degree} are integers of shape (count, {degree + 1}), not {array.dtype} {array.shape}"
        )
    ordered = np.sort(array, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if repeated.any():
        raise ComplexError(f"the simplex {array[repeated.argmax()].tolist()} has a vertex twice")
    return array.astype(np.int64)


def _sorted_rows(rows: Cells) -> Cells:
    """Distinct rows in lexicographic order."""
    if not len(rows):
        return rows
    rows = rows[np.lexsort(rows.T[::-1])]
    new = np.ones(len(rows), bool)
    new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return rows[new]


def _cliques(after: NDArray[np.bool_], dimension: int, max_cells: int) -> SimplicialComplex:
    """Ordered cliques: each new vertex is related, by ``after``, to all before it."""
    if dimension < 0:
        raise ComplexError(f"the dimension is at least 0, not {dimension}")
    n = len(after)
    cells = [np.arange(n, dtype=np.int64)[:, None]]
    for _ in range(dimension):
        parents, grown, total = cells[-1], [], 0
        for start in range(0, len(parents), max(1, _CHUNK // max(1, n))):
            part = parents[start : start + max(1, _CHUNK // max(1, n))]
            common = after[part[:, 0]].copy()
            for column in part.T[1:]:
                common &= after[column]
            parent, vertex = np.nonzero(common)
            grown.append(np.column_stack([part[parent], vertex]))
            total += len(vertex)
            if total > max_cells:
                raise ComplexError(
                    f"more than {max_cells} simplices of degree {part.shape[1]}",
                    hint="raise the threshold, lower the dimension, or pool the tokens to blocks",
                )
        if not total:
            break
        cells.append(np.concatenate(grown))
    return SimplicialComplex(cells)


def _relation(adjacency: Any) -> NDArray[np.bool_]:
    relation = np.asarray(adjacency)
    if relation.ndim != 2 or relation.shape[0] != relation.shape[1] or (relation != relation).any():
        raise ComplexError(f"an adjacency has the shape (n, n) and no NaN; this one has shape {relation.shape}")
    return relation.astype(bool)


def _finite_matrix(matrix: Any) -> NDArray[np.float64]:
    values = float_array(matrix)
    if values.ndim != 2 or np.isnan(values).any():
        raise ComplexError(f"a matrix of two axes without NaN is needed, not shape {values.shape}")
    return values


def _reached(matrix: Any, threshold: float) -> NDArray[np.bool_]:
    if np.isnan(threshold):
        raise ComplexError("a threshold is a number, not NaN")
    return _finite_matrix(matrix) >= threshold


def _compose_to_zero(one: sparse.csc_array, two: sparse.csc_array) -> bool:
    """Whether the product of integer matrices is zero, also where it leaves int64."""
    if not (one.nnz and two.nnz):
        return True
    largest = (int(max(m.data.max(), -int(m.data.min()))) for m in (one, two))
    if math.prod(largest) * one.shape[1] < 1 << 63:
        return not np.any((one @ two).data)
    return not np.any(one.toarray().astype(object) @ two.toarray().astype(object))


def _integer_matrix(matrix: Any, degree: int) -> sparse.csc_array:
    array = sparse.csc_array(matrix if sparse.issparse(matrix) else np.atleast_2d(np.asarray(matrix)))
    rounded = array.astype(np.int64)
    if array.nnz and np.any(array.data != rounded.data):
        raise ComplexError(f"∂_{degree} has entries that are not integers")
    rounded.sum_duplicates()
    rounded.eliminate_zeros()
    rounded.sort_indices()
    return rounded
