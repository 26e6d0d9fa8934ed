"""What every validation does with its input and its findings: refuse bad tensors, build the verdict."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from aatc.passes.analysis.result import AnalysisError, Verdict


class ValidationError(AnalysisError):
    """A check was given something it cannot judge: a wrong shape, a NaN, a parameter out of its range."""


def judge(
    statement: str,
    residual: float,
    tolerance: float,
    witness: Any,
    proof_level: str,
    assumptions: tuple[str, ...] = (),
) -> Verdict:
    """The verdict that ``statement`` holds exactly when ``residual`` ≤ ``tolerance``. NaN is a ValidationError."""
    if math.isnan(residual):
        raise ValidationError(f"{statement}: the residual is NaN", hint="the functions given are not finite there")
    return Verdict(
        value=residual <= tolerance,
        proof_level=proof_level,
        tolerance=tolerance,
        residual=residual,
        witness=witness,
        assumptions=assumptions,
        statement=statement,
    )


def tolerance_of(given: float | None, default: float) -> float:
    """``given``, or ``default`` where it is None. ValidationError unless it is finite and not negative."""
    value = default if given is None else float(given)
    if not 0 <= value < math.inf:
        raise ValidationError(f"a tolerance is a finite number ≥ 0, not {value}")
    return value


def finite(name: str, value: Any, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """``value`` as a detached tensor of ``dtype``. ValidationError unless it is a tensor with finite entries."""
    if not isinstance(value, Tensor):
        raise ValidationError(f"{name} is a {type(value).__name__}, not a tensor")
    if value.is_complex() and not dtype.is_complex:
        raise ValidationError(f"{name} is complex; this check needs real numbers")
    if value.numel() == 0:
        raise ValidationError(f"{name} of shape {tuple(value.shape)} is empty")
    if not bool(value.isfinite().all()):
        bad = (~value.isfinite()).nonzero()[0].tolist()
        raise ValidationError(f"{name} is not finite at {tuple(bad)}", hint="find where the NaN or infinity arises")
    return value.detach().to(dtype)


def square(name: str, value: Any, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """As `finite`, for matrices (..., n, n)."""
    matrix = finite(name, value, dtype=dtype)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValidationError(f"{name} has shape {tuple(matrix.shape)}; (..., n, n) is needed")
    return matrix


def worst(values: Tensor) -> tuple[int, ...]:
    """The index of the largest entry; () for a scalar."""
    flat = int(values.reshape(-1).argmax())
    index: list[int] = []
    for size in reversed(values.shape):
        flat, place = divmod(flat, size)
        index.append(place)
    return tuple(reversed(index))
