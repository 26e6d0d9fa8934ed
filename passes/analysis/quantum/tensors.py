"""What functions of quantum states do with the arrays they are given: conversion, rounding, batches, factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aatc.passes.analysis.result import AnalysisError

COMPLEX = (torch.complex64, torch.complex128)


class QuantumError(AnalysisError):
    """Data that is no state, no observable, no channel or no Hamiltonian of the space it is used with."""


def to_complex(name: str, value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """``value`` as a complex tensor: of ``dtype``, or complex64 if it is complex64 already, else complex128. Keeps
    gradients. Raises `QuantumError` for what is no array of finite numbers, or is empty."""
    if dtype is not None and dtype not in COMPLEX:
        raise QuantumError(f"{name} cannot have the dtype {dtype}", hint="give torch.complex128 or torch.complex64")
    if not isinstance(value, Tensor):
        try:
            value = torch.from_numpy(np.array(value, dtype=np.complex128))
        except (TypeError, ValueError) as cause:
            raise QuantumError(f"{name} of type {type(value).__name__} is no array of numbers: {cause}") from cause
    kept = torch.complex64 if value.dtype == torch.complex64 else torch.complex128
    tensor = value.to(dtype or kept)
    if tensor.numel() == 0:
        raise QuantumError(f"{name} of shape {tuple(tensor.shape)} is empty")
    if not bool(tensor.detach().isfinite().all()):
        where = tuple((~tensor.detach().isfinite()).nonzero()[0].tolist())
        raise QuantumError(f"{name} is not finite at {where}", hint="find where the NaN or infinity arises")
    result: Tensor = tensor
    return result


def as_array(tensor: Tensor) -> np.ndarray:
    """A copy or view of the numbers alone, without gradients and lazy conjugates."""
    array: np.ndarray = tensor.detach().cpu().resolve_conj().resolve_neg().numpy()
    return array


def rounding(tensor: Tensor, given: Any = None) -> float:
    """What a norm or a trace of a tensor of this dtype and size may be off by; of the dtype that the data was
    ``given`` in, where that is a shorter one."""
    return max(epsilon(tensor), epsilon(given)) * 64 * max(8, tensor.shape[-1])


def epsilon(given: Any) -> float:
    """The relative rounding of what was given: 0 of numbers without a floating dtype of their own."""
    if isinstance(given, Tensor):
        return float(torch.finfo(given.dtype).eps) if given.is_floating_point() or given.is_complex() else 0.0
    dtype = getattr(given, "dtype", None)
    return float(np.finfo(dtype).eps) if isinstance(dtype, np.dtype) and dtype.kind in "fc" else 0.0


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The common batch of several. Raises `QuantumError` where there is none."""
    try:
        return tuple(np.broadcast_shapes(*(tuple(s) for s in shapes)))
    except ValueError:
        raise QuantumError(
            f"batches {' and '.join(str(tuple(s)) for s in shapes)} do not fit", hint="leading axes are broadcast"
        ) from None


def factors(dims: int | Sequence[int], dimension: int | None = None) -> tuple[int, ...]:
    """The dimensions of the factors as a tuple. `QuantumError` unless they are positive whole numbers, of the product
    ``dimension`` where that is given."""
    given = (dims,) if isinstance(dims, (int, np.integer)) else tuple(dims)
    if not given or not all(isinstance(d, (int, np.integer)) and not isinstance(d, bool) and d > 0 for d in given):
        raise QuantumError(f"factors {dims!r} are not positive whole numbers", hint="give (2, 2) for two qubits")
    sizes = tuple(int(d) for d in given)
    if dimension is not None and math.prod(sizes) != dimension:
        raise QuantumError(f"factors {sizes} make dimension {math.prod(sizes)}, not {dimension}")
    return sizes
