"""Exact linear algebra over the integers: Smith normal form with its transformations, invariant factors and ranks.

Sparse matrices first lose their ±1 pivots, cheapest fill first, each of which is a unit invariant factor; what is left
is small and dense, and goes to python-flint where that is installed, else to the algorithm with transformations.

Sources: Cohen, A Course in Computational Algebraic Number Theory, section 2.4.4; Markowitz, The elimination form of
the inverse, Management Sci. 3 (1957), for the choice of pivots.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from aatc.passes.analysis.chains.verify_cohomology import SmithWitness
from aatc.passes.analysis.deadline import proceed
from aatc.passes.analysis.result import AnalysisError

Integers = NDArray[np.object_]


class IntegerMatrixError(AnalysisError):
    """A matrix that is not one of integers, or a modulus that is not a prime."""


@dataclass(frozen=True)
class SmithForm:
    """U A V = D with unimodular U and V, given with their inverses as arrays of Python integers.

    D is zero except for ``factors`` d_1 | d_2 | ... | d_r, all positive, at the top left.
    """

    factors: tuple[int, ...]
    left: Integers
    left_inverse: Integers
    right: Integers
    right_inverse: Integers

    @property
    def rank(self) -> int:
        return len(self.factors)

    def witness(self, matrix: Any) -> SmithWitness:
        """What `verify` re-checks in integer arithmetic."""
        return SmithWitness(
            integer_array(matrix), self.factors, self.left, self.left_inverse, self.right, self.right_inverse
        )


def integer_array(matrix: Any) -> Integers:
    """A dense array of two axes with Python integers, from an array, nested lists or a sparse matrix.

    Raises `IntegerMatrixError`.
    """
    array = np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix)
    if array.ndim != 2:
        raise IntegerMatrixError(f"a matrix has two axes, not {array.ndim}")
    whole = np.empty(array.shape, dtype=object)
    for place, value in np.ndenumerate(array):
        try:
            whole[place] = int(value)
            exact = whole[place] == value
        except (TypeError, ValueError, OverflowError):
            exact = False
        if not exact:
            raise IntegerMatrixError(f"the entry {value!r} at {place} is not an integer")
    return whole


def identity(size: int) -> Integers:
    """The identity as an array of Python integers."""
    unit = np.zeros((size, size), dtype=object)
    np.fill_diagonal(unit, 1)
    return unit


def smith_normal_form(matrix: Any) -> SmithForm:
    """The Smith normal form of an integer matrix (m, n) with both transformations, in exact arithmetic.

    Cubic in the size, and entries can grow: for matrices up to a few hundred rows. Raises `IntegerMatrixError`.
    """
    work = _Working(integer_array(matrix))
    rows, columns = work.matrix.shape
    factors: list[int] = []
    for t in range(min(rows, columns)):
        if not work.smallest_to(t):
            break
        while not (work.clear_column(t) and work.clear_row(t) and work.divide(t)):
            pass
        if work.matrix[t, t] < 0:
            work.matrix[t] *= -1
            work.left[t] *= -1
            work.left_inverse[:, t] *= -1
        factors.append(int(work.matrix[t, t]))
    return SmithForm(tuple(factors), work.left, work.left_inverse, work.right, work.right_inverse)


def invariant_factors(matrix: Any) -> tuple[int, ...]:
    """The nonzero invariant factors d_1 | d_2 | ... of an integer matrix, dense or sparse; their number is the rank.

    Raises `IntegerMatrixError`.
    """
    columns, _ = sparse_columns(matrix)
    units = sum(1 for _ in eliminate(columns, integer_units))
    rest = _dense(columns)
    return (1,) * units + _small_factors(rest)


def rank(matrix: Any, modulus: int | None = None) -> int:
    """The rank over Q, or over the field of ``modulus`` elements, a prime. Raises `IntegerMatrixError`."""
    if modulus is None:
        return len(invariant_factors(matrix))
    check_prime(modulus)
    columns, _ = sparse_columns(matrix)
    for column in columns.values():
        for i in list(column):
            column[i] %= modulus
            if not column[i]:
                del column[i]
    return sum(1 for _ in eliminate(columns, lambda column: list(column), modulus))


def check_prime(p: int) -> None:
    """Raise `IntegerMatrixError` unless ``p`` is a prime."""
    if not isinstance(p, (int, np.integer)) or p < 2 or any(p % q == 0 for q in range(2, int(p**0.5) + 1)):
        raise IntegerMatrixError(f"{p} is not a prime, so there is no field with integers modulo it")


SparseColumns = dict[int, dict[int, int]]


def sparse_columns(matrix: Any) -> tuple[SparseColumns, tuple[int, int]]:
    """The nonzero columns as dictionaries row → entry, and the shape."""
    if sparse.issparse(matrix):
        array = sparse.csc_array(matrix).tocoo()  # adds up entries that are given twice
        entries = list(zip(*(a.tolist() for a in (*array.coords, array.data))))
        shape = array.shape
    else:
        dense = integer_array(matrix)
        entries, shape = [(i, j, dense[i, j]) for i, j in zip(*np.nonzero(dense))], dense.shape
    columns: SparseColumns = {}
    for i, j, value in entries:
        if value % 1 != 0:  # also for infinities and NaN
            raise IntegerMatrixError(f"the entry {value!r} at {(i, j)} is not an integer")
        if value:
            columns.setdefault(int(j), {})[int(i)] = int(value)
    return columns, shape


@dataclass(frozen=True)
class Pivot:
    """An eliminated entry: its row and column, its value ±1 (modulo p: any unit), and what else its column and its row
    held."""

    row: int
    column: int
    value: int
    down: dict[int, int]
    across: dict[int, int]


def eliminate(columns: SparseColumns, units: Any, modulus: int | None = None) -> Iterable[Pivot]:
    """Removes pivots from ``columns``, in place, until no entry that ``units`` offers is left; yields each pivot.

    ``units(column)`` lists rows whose entry may be a pivot. Short columns come first, and within a column the row
    with the fewest entries.
    """
    rows: dict[int, set[int]] = {}
    for j, column in columns.items():
        for i in column:
            rows.setdefault(i, set()).add(j)
    heap = [(len(column), j) for j, column in columns.items()]
    heapq.heapify(heap)
    while heap:
        proceed()
        size, j = heapq.heappop(heap)
        pivot_column = columns.get(j)
        if pivot_column is None or len(pivot_column) != size:
            continue
        candidates = units(pivot_column)
        if not candidates:
            continue
        i = min(candidates, key=lambda r: len(rows[r]))
        del columns[j]
        for r in pivot_column:
            rows[r].discard(j)
        value = pivot_column.pop(i)
        inverse = value if modulus is None else pow(value, -1, modulus)
        across = {}
        for other in sorted(rows.pop(i)):
            column = columns[other]
            across[other] = column.pop(i)
            _subtract(column, pivot_column, across[other] * inverse, rows, other, modulus)
            if column:
                heapq.heappush(heap, (len(column), other))
            else:
                del columns[other]
        yield Pivot(i, j, value, pivot_column, across)


def _subtract(
    column: dict[int, int],
    pivot: dict[int, int],
    factor: int,
    rows: dict[int, set[int]],
    place: int,
    modulus: int | None,
) -> None:
    """column −= factor · pivot, and the index of rows follows."""
    for r, v in pivot.items():
        old = column.get(r, 0)
        new = old - factor * v
        if modulus is not None:
            new %= modulus
        if new:
            column[r] = new
            if not old:
                rows[r].add(place)
        elif old:
            del column[r]
            rows[r].discard(place)


def integer_units(column: dict[int, int]) -> list[int]:
    """The rows of a column whose entry is ±1."""
    return [r for r, v in column.items() if v in (1, -1)]


def _dense(columns: SparseColumns) -> Integers:
    place = {r: i for i, r in enumerate(sorted({r for column in columns.values() for r in column}))}
    dense = integer_array(np.zeros((len(place), len(columns)), np.int64))
    for j, column in enumerate(columns.values()):
        for r, v in column.items():
            dense[place[r], j] = v
    return dense


def _small_factors(matrix: Integers) -> tuple[int, ...]:
    if not matrix.size:
        return ()
    try:
        from flint import fmpz_mat
    except ImportError:
        return smith_normal_form(matrix).factors
    form = fmpz_mat(matrix.tolist()).snf()
    diagonal = (abs(int(form[i, i])) for i in range(min(matrix.shape)))
    return tuple(d for d in diagonal if d)


class _Working:
    """The matrix under reduction with U, U⁻¹, V and V⁻¹; each move keeps U A V equal to ``matrix``."""

    def __init__(self, matrix: Integers) -> None:
        rows, columns = matrix.shape
        self.matrix = matrix.copy()
        self.left, self.left_inverse = identity(rows), identity(rows)
        self.right, self.right_inverse = identity(columns), identity(columns)

    def smallest_to(self, t: int) -> bool:
        """Brings a nonzero entry of least absolute value to (t, t); False where all are zero."""
        rest = np.abs(self.matrix[t:, t:])
        rows, columns = np.nonzero(rest)
        if not len(rows):
            return False
        best = min(range(len(rows)), key=lambda i: rest[rows[i], columns[i]])
        self.swap_rows(t, t + rows[best])
        self.swap_columns(t, t + columns[best])
        return True

    def swap_rows(self, i: int, j: int) -> None:
        for array in (self.matrix, self.left):
            array[[i, j]] = array[[j, i]]
        self.left_inverse[:, [i, j]] = self.left_inverse[:, [j, i]]

    def swap_columns(self, i: int, j: int) -> None:
        for array in (self.matrix, self.right):
            array[:, [i, j]] = array[:, [j, i]]
        self.right_inverse[[i, j]] = self.right_inverse[[j, i]]

    def add_rows(self, t: int, quotients: Integers) -> None:
        """Row t + 1 + i loses quotients[i] times row t."""
        for array in (self.matrix, self.left):
            array[t + 1 :] -= np.outer(quotients, array[t])
        self.left_inverse[:, t] += self.left_inverse[:, t + 1 :] @ quotients

    def add_columns(self, t: int, quotients: Integers) -> None:
        """Column t + 1 + j loses quotients[j] times column t."""
        for array in (self.matrix, self.right):
            array[:, t + 1 :] -= np.outer(array[:, t], quotients)
        self.right_inverse[t] += quotients @ self.right_inverse[t + 1 :]

    def clear_column(self, t: int) -> bool:
        """Euclid on column t below (t, t): always clears it."""
        while self.matrix[t + 1 :, t].any():
            self.add_rows(t, self.matrix[t + 1 :, t] // self.matrix[t, t])
            left = np.flatnonzero(self.matrix[t + 1 :, t]).tolist()
            if left:
                self.swap_rows(t, t + 1 + min(left, key=lambda i: abs(self.matrix[t + 1 + i, t])))
        return True

    def clear_row(self, t: int) -> bool:
        """Euclid on row t; False when that changed the pivot, so that column t has to be cleared again."""
        if not self.matrix[t, t + 1 :].any():
            return True
        self.add_columns(t, self.matrix[t, t + 1 :] // self.matrix[t, t])
        left = np.flatnonzero(self.matrix[t, t + 1 :]).tolist()
        if not left:
            return True
        self.swap_columns(t, t + 1 + min(left, key=lambda j: abs(self.matrix[t, t + 1 + j])))
        return False

    def divide(self, t: int) -> bool:
        """Whether the pivot divides all that is left; else a row that it does not divide is added to row t."""
        if abs(self.matrix[t, t]) == 1:
            return True
        rows = np.nonzero(self.matrix[t + 1 :, t + 1 :] % self.matrix[t, t])[0]
        if not len(rows):
            return True
        i = t + 1 + rows[0]
        for array in (self.matrix, self.left):
            array[t] += array[i]
        self.left_inverse[:, i] -= self.left_inverse[:, t]
        return False
