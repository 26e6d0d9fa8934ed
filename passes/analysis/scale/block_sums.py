"""Sums over blocks of rows or columns."""

from __future__ import annotations

import numpy as np

#: Size of consecutive blocks up to which sums are taken slice by slice.
SLICES = 16


def summed_slices(operation: np.ufunc, matrix: np.ndarray, size: int, axis: int) -> np.ndarray:
    """``operation`` of each ``size`` consecutive rows or columns, the last block having what is left: reduceat, which
    is slow along the last axis, by slices."""
    turned = np.moveaxis(matrix, axis, 0)
    total: np.ndarray = turned[::size].copy()
    for start in range(1, min(size, len(turned))):
        part = turned[start::size]
        operation(total[: len(part)], part, out=total[: len(part)])
    return np.moveaxis(total, 0, axis)


def block_sums(matrix: np.ndarray, labels: np.ndarray, axis: int) -> np.ndarray:
    """Sums over the rows (axis 0) or columns (axis 1) of each block."""
    size = int((labels == 0).sum())
    if size <= SLICES and np.array_equal(labels, np.arange(len(labels)) // size):
        return summed_slices(np.add, matrix, size, axis)
    if (np.diff(labels) < 0).any():
        order = np.argsort(labels, kind="stable")
        matrix, labels = matrix.take(order, axis), labels[order]
    sums: np.ndarray = np.add.reduceat(matrix, np.flatnonzero(np.diff(labels, prepend=-1)), axis=axis)
    return sums
