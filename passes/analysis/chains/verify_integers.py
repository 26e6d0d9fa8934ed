"""Elimination over the integers and prime fields, for checks of witnesses alone: what makes them has its own.

Matrices are columns, dictionaries row → entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import gcd
from typing import Any

import numpy as np
from scipy import sparse

Column = dict[int, int]


def columns_of(matrix: Any) -> list[Column]:
    """The columns of a sparse or dense integer matrix, in Python integers. ValueError for other numbers."""
    entries = sparse.coo_array(matrix)
    if not integral(entries.data):
        raise ValueError("a matrix over the integers has other entries")
    found: list[Column] = [{} for _ in range(matrix.shape[1])]
    for i, j, v in zip(*(x.tolist() for x in (*entries.coords, entries.data))):
        total = found[j].get(i, 0) + int(v)
        if total:
            found[j][i] = total
        else:
            found[j].pop(i, None)
    return found


def integral(*arrays: Any) -> bool:
    """Whether all entries are integers, by their type: a half, or 2.0, is a number of another ring."""
    return all(
        a.dtype.kind in "iu" if a.dtype.kind != "O" else all(isinstance(v, (int, np.integer)) for v in a.ravel())
        for a in map(np.asarray, arrays)
    )


def product(one: Any, two: Any) -> Any:
    """The product of matrices in Python's numbers, by the entries that are not 0. ValueError where there is none."""
    a, b = np.asarray(one, dtype=object), np.asarray(two, dtype=object)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"matrices of shapes {a.shape} and {b.shape} have no product")
    out = np.zeros((a.shape[0], b.shape[1]), dtype=object)
    rows = [[(k, row[k]) for k in np.flatnonzero(row)] for row in b]
    for i, j in zip(*np.nonzero(a)):
        for k, value in rows[j]:
            out[i, k] += a[i, j] * value
    return out


def _add(into: Column, other: Column, factor: int) -> None:
    for i, v in other.items():
        value = into.get(i, 0) + factor * v
        if value:
            into[i] = value
        else:
            into.pop(i, None)


def invariants(columns: Iterable[Column]) -> tuple[set[int], list[int]]:
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
    return divisor_chain(found)


def divisor_chain(orders: Iterable[int]) -> list[int]:
    """The invariant factors of a diagonal matrix: each divides the next."""
    out = [abs(t) for t in orders]
    for i in range(len(out)):
        for j in range(i + 1, len(out)):
            common = gcd(out[i], out[j])
            out[i], out[j] = common, out[i] * out[j] // common
    return out


def sparse_rank(columns: Iterable[Mapping[int, int]], p: int) -> int:
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
