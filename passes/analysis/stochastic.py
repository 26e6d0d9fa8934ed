"""Attention patterns as row-stochastic matrices: what every information and Markov analysis checks first, and the
elimination of states that the exact ones share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from aatc.passes.analysis.deadline import proceed
from aatc.passes.analysis.result import AnalysisError

PANEL = 64  # states eliminated between two products of matrices


class PatternError(AnalysisError):
    """A pattern that is not a row-stochastic matrix, or whose shape does not fit what it is used with."""


def sum_tolerance(dtype: str, entries: int) -> float:
    """By how much the sum of so many weights that were rounded to ``dtype`` may be off 1: 1e-5 where they were made in
    single precision, two roundings of a half precision, and what falls below its range."""
    if not dtype.startswith(("float", "bfloat")):
        return 1e-5
    info = torch.finfo(getattr(torch, dtype))
    return max(1e-5, 2 * info.eps) + entries * float(info.smallest_normal) * float(info.eps)


def plain_array(values: Any, what: str = "an array") -> np.ndarray:
    """``values`` as numpy has them: of a tensor the numbers, wherever it lies, half precision as float32; other real
    numbers than numpy's own and torch's (long doubles, objects, the other byte order) as float64.

    Raises `PatternError` for what holds no real numbers, or hides some: complex numbers, texts, rows of several
    lengths, masked entries, tensors without data."""
    if isinstance(values, torch.Tensor):
        tensor = plain_tensor(values, what)
        return (tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor).numpy()
    if _masks(values):
        raise PatternError(f"{what} has masked entries", hint="give .filled(0), or what else they stand for")
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O":
            if any(x is None or isinstance(x, (str, bytes)) for x in array.ravel()):
                raise TypeError("texts and None are no numbers")
            array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as cause:
        raise PatternError(
            f"{what} of type {type(values).__name__} does not turn into one array of real numbers: {cause}",
            hint="give numbers, in rows of one length",
        ) from cause
    if array.dtype.kind not in "biuf":
        raise PatternError(
            f"{what} of {array.dtype} and shape {array.shape} holds no real numbers",
            hint="give .real, or the absolute values" if array.dtype.kind == "c" else None,
        )
    native: np.ndarray = array.astype(
        np.float64 if array.dtype.char == "g" else array.dtype.newbyteorder("="), copy=False
    )
    return native


def plain_tensor(values: torch.Tensor, what: str = "a tensor") -> torch.Tensor:
    """A tensor's numbers in main memory, without their history; those of a sparse one among its zeros. Raises
    `PatternError` for complex numbers, and for tensors that hold no data."""
    tensor = values.detach()
    if tensor.is_complex() or tensor.is_meta or tensor.is_nested:
        kind = "complex" if tensor.is_complex() else "of the meta device" if tensor.is_meta else "nested"
        raise PatternError(
            f"{what} is {kind}: it holds no array of real numbers",
            hint="give a dense tensor of real numbers, with data",
        )
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return tensor.cpu()


def _masks(values: Any) -> bool:
    """Whether this is an array with masked entries, or holds one."""
    if isinstance(values, (list, tuple)):
        return any(map(_masks, values))
    return isinstance(values, np.ma.MaskedArray) and bool(np.ma.getmaskarray(values).any())


def float_array(values: Any, what: str = "an array") -> np.ndarray:
    """`plain_array` in float64. Raises `PatternError`."""
    array: np.ndarray = plain_array(values, what).astype(np.float64, copy=False)
    return array


def real_array(values: Any, what: str) -> np.ndarray:
    """``values`` as a float64 array of its own, without NaN. Raises `PatternError`."""
    array = plain_array(values, what).astype(np.float64)
    if np.isnan(array).any():
        raise PatternError(f"{what} has a NaN at {tuple(np.argwhere(np.isnan(array))[0].tolist())}")
    return array


def row_stochastic(pattern: Any, *, square: bool = False, atol: float | None = None) -> np.ndarray:
    """``pattern`` (..., n, m), (..., n, n) if ``square``, as float64 with rows that sum to 1.

    Masked entries are exact zeros. Rows whose sum is within ``atol`` of 1 are divided by it, so that patterns which
    were normalised in float32 are stochastic to float64; by default it is what rounding to the pattern's own dtype may
    do (`sum_tolerance`). Raises `PatternError`, also for a fully masked row.
    """
    matrix = plain_array(pattern, "a pattern")
    if matrix.ndim < 2 or 0 in matrix.shape or (square and matrix.shape[-1] != matrix.shape[-2]):
        wanted = "(..., n, n)" if square else "(..., n, m)"
        raise PatternError(f"a pattern has shape {wanted} with n ≥ 1, not {matrix.shape}")
    if atol is None:
        made = str(pattern.dtype).removeprefix("torch.") if isinstance(pattern, torch.Tensor) else matrix.dtype.name
        atol = sum_tolerance(made, matrix.shape[-1])
    matrix = matrix.astype(np.float64) + 0.0  # a weight of −0 is 0
    sums = matrix.sum(-1, keepdims=True)
    bad = ~(np.abs(sums[..., 0] - 1) <= atol) | ~(matrix.min(-1) >= 0)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise PatternError(
            f"row {where} of the pattern has sum {sums[..., 0][where]:.6g} and least entry {matrix[where].min():.3g}; "
            f"{int(bad.sum())} of {bad.size} rows are no probability distributions",
            hint="take softmax first, leave fully masked rows out, or raise atol",
        )
    rows: np.ndarray = matrix / sums
    return rows


def distribution(weights: Any, n: int, *, atol: float = 1e-5) -> np.ndarray:
    """A probability vector (n,) in float64. Raises `PatternError`."""
    vector = real_array(weights, "a distribution")
    if vector.shape != (n,):
        raise PatternError(f"a distribution on {n} states has shape ({n},), not {vector.shape}")
    law: np.ndarray = row_stochastic(vector[None], atol=atol)[0]
    return law


def eliminated(matrix: np.ndarray, keep: int) -> np.ndarray:
    """The chain (n, n) with the states n − 1, ..., ``keep`` eliminated in this order, without a subtraction.

    The block [:keep, :keep] is the chain watched on the states that stay, its rows not divided by their sums. Beside
    it, row j ≥ keep holds left of the diagonal the steps of j to states that were not yet eliminated, s_j their sum,
    and column j above the diagonal the steps to j over s_j: on the states from ``keep`` on,
    I − A = (I − C) diag(s) (I − diag(s)⁻¹R), C that strict upper and R that strict lower triangle (Grassmann, Taksar,
    Heyman). Every entry is exact to some n ulps, however rarely the chain moves. Products are taken PANEL states at a
    time. Raises `PatternError` where a probability of leaving underflows.
    """
    work = matrix.copy()
    for end in range(len(work), keep, -PANEL):
        begin = max(end - PANEL, keep)
        proceed()
        for last in range(end - 1, begin - 1, -1):
            leaving = work[last, :last].sum()
            if leaving < np.finfo(np.float64).tiny:
                raise PatternError(
                    f"the chain leaves state {last} with probability {leaving:.1e}, below the range of float64",
                    hint="set such entries to 0",
                )
            work[:last, last] /= leaving
            work[begin:last, :last] += np.outer(work[begin:last, last], work[last, :last])
            work[:begin, begin:last] += np.outer(work[:begin, last], work[last, begin:last])
        work[:begin, :begin] += work[:begin, begin:end] @ work[begin:end, :begin]
    return work
