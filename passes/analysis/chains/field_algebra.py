"""Exact linear algebra over Q and F_p: ranks, kernels and linear systems, with Fredholm's alternative as the refusal.

Matrices are arrays of Python numbers (Fraction over Q, 0, …, p − 1 over F_p). Elimination is by sparse rows, the least
column of a row being its pivot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from aatc.passes.analysis.chains.homology import CoefficientError, coefficients

Matrix = NDArray[np.object_]
Row = dict[int, Any]


@dataclass(frozen=True)
class Field:
    """Q (``modulus`` 0) or F_p."""

    modulus: int = 0

    @staticmethod
    def of(coeff: str | int) -> Field:
        """ "Q", "F5" or the prime 5. Raises `CoefficientError` for Z, and `IntegerMatrixError` for no prime."""
        found = coefficients(coeff)
        if found.name == "Z":
            raise CoefficientError("these constructions are made over a field", hint="coeff='Q' or a prime field 'F2'")
        return Field(found.modulus)

    @property
    def name(self) -> str:
        return f"F{self.modulus}" if self.modulus else "Q"

    def scalar(self, value: Any) -> Any:
        """An integer, a Fraction or a finite float as a number of the field. Raises `CoefficientError`."""
        try:
            exact = Fraction(value.item() if isinstance(value, np.generic) else value)
            return exact.numerator * pow(exact.denominator, -1, self.modulus) % self.modulus if self.modulus else exact
        except (TypeError, ValueError, OverflowError) as wrong:
            raise CoefficientError(f"{value!r} is no number of {self.name}") from wrong

    def inverse(self, value: Any) -> Any:
        return pow(value, -1, self.modulus) if self.modulus else 1 / value

    def reduce(self, array: Any) -> Any:
        """The numbers of an array in normal form after sums and products."""
        return array % self.modulus if self.modulus else array

    def array(self, matrix: Any) -> Matrix:
        """A matrix of two axes, dense, nested lists or sparse."""
        dense = np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix)
        if dense.ndim != 2:
            raise CoefficientError(f"a matrix has two axes, not {dense.ndim}")
        out = self.zeros(*dense.shape)
        for place in zip(*np.nonzero(dense)):
            out[place] = self.scalar(dense[place])
        return out

    def zeros(self, rows: int, columns: int) -> Matrix:
        zeros: Matrix = np.full((rows, columns), self.scalar(0), dtype=object)
        return zeros

    def identity(self, size: int) -> Matrix:
        one = self.zeros(size, size)
        np.fill_diagonal(one, self.scalar(1))
        return one

    def times(self, one: Matrix, two: Matrix) -> Matrix:
        """The product, also where a side is empty. Zeros cost nothing: boundaries and their maps have few entries."""
        out = self.zeros(one.shape[0], two.shape[1])
        rows = [sparse_row(row) for row in two]
        for i, j in zip(*np.nonzero(one)):
            row, factor = out[i], one[i, j]
            for k, value in rows[j].items():
                row[k] = self.reduce(row[k] + factor * value)
        return out

    def rank(self, matrix: Matrix) -> int:
        echelon = Echelon(self)
        for row in matrix:
            echelon.add(sparse_row(row), self.scalar(0))
        return len(echelon.pivots)

    def kernel(self, matrix: Matrix) -> Matrix:
        """A basis of {x : matrix x = 0} as columns."""
        echelon = Echelon(self)
        for row in matrix:
            echelon.add(sparse_row(row), self.scalar(0))
        free = [j for j in range(matrix.shape[1]) if j not in echelon.pivots]
        basis = self.zeros(matrix.shape[1], len(free))
        for n, j in enumerate(free):
            for i, value in echelon.solution({j: self.scalar(1)}).items():
                basis[i, n] = value
        return basis


def sparse_row(values: Iterable[Any]) -> Row:
    return {j: v for j, v in enumerate(values) if v}


class Echelon:
    """Equations Σ row_j x_j = value in echelon form, added one by one; ``pivots[j]`` is the equation led by x_j."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.pivots: dict[int, tuple[Row, Any]] = {}

    def add(self, row: Row, value: Any) -> bool:
        """False where the equation contradicts those before; it is then left out."""
        row, field = dict(row), self.field
        while row:
            lead = min(row)
            if lead not in self.pivots:
                inverse = field.inverse(row[lead])
                scaled = {j: field.reduce(v * inverse) for j, v in row.items()}
                self.pivots[lead] = (scaled, field.reduce(value * inverse))
                return True
            factor = row[lead]
            other, its_value = self.pivots[lead]
            value = field.reduce(value - factor * its_value)
            for j, v in other.items():
                new = field.reduce(row.get(j, 0) - factor * v)
                if new:
                    row[j] = new
                else:
                    row.pop(j, None)
        return not value

    def solution(self, free: Row | None = None) -> Row:
        """The solution with the given values of free unknowns, all others zero; with ``free`` the equations are taken
        as homogeneous."""
        x: Row = dict(free or {})
        for lead in sorted(self.pivots, reverse=True):
            row, value = self.pivots[lead]
            start = value if free is None else self.field.scalar(0)
            found = self.field.reduce(start - sum(v * x[j] for j, v in row.items() if j != lead and j in x))
            if found:
                x[lead] = found
        return x


def solve(field: Field, rows: Sequence[Row], values: Sequence[Any]) -> tuple[Row | None, Row | None]:
    """(x, None) with Σ_j rows[e][j] x_j = values[e] for all e; or (None, y) with Σ_e y_e rows[e] = 0 and
    Σ_e y_e values[e] = 1, which shows that there is no solution. Unknowns that are zero are left out."""
    echelon = Echelon(field)
    if all([echelon.add(row, value) for row, value in zip(rows, values)]):
        return echelon.solution(), None
    columns: dict[int, Row] = {}
    for e, row in enumerate(rows):
        for j, v in row.items():
            columns.setdefault(j, {})[e] = v
    dual = Echelon(field)
    for column in columns.values():
        dual.add(column, field.scalar(0))
    dual.add({e: v for e, v in enumerate(values) if v}, field.scalar(1))
    return None, dual.solution()
