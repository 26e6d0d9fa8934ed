"""Measurements: expectation values, projective and general measurements, samples with their confidence.

Sources: Nielsen, Chuang, Quantum Computation and Quantum Information, section 2.2; Clopper, Pearson, Biometrika 26
(1934); Hoeffding, J. Amer. Statist. Assoc. 58 (1963).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aatc.passes.analysis.quantum.operators import hermitian
from aatc.passes.analysis.quantum.states import QuantumError, QuantumState
from aatc.passes.analysis.quantum.tensors import broadcast, rounding, to_complex


def _fits(operator: Tensor, state: QuantumState, batched: bool = False) -> Tensor:
    if operator.shape[-1] != state.dimension:
        raise QuantumError(f"an operator of dimension {operator.shape[-1]} for states of dimension {state.dimension}")
    broadcast(operator.shape[:-2] if batched else (), state.batch)
    return operator.to(state.tensor.dtype)


def mean(state: QuantumState, operator: Tensor) -> Tensor:
    """⟨A⟩, complex (...), of any operator (..., d, d)."""
    if state.pure:
        image = (operator @ state.tensor[..., None])[..., 0]
        return (state.tensor.conj() * image).sum(-1)
    return (operator * state.tensor.mT).sum((-2, -1))


def expectation(state: QuantumState, observable: Any) -> Tensor:
    """⟨O⟩ = tr ρO, real (...), of a Hermitian O (..., d, d). Raises `QuantumError`."""
    return mean(state, _fits(hermitian("the observable", observable), state, batched=True)).real


def variance(state: QuantumState, observable: Any) -> Tensor:
    """⟨(O − ⟨O⟩)²⟩ ≥ 0, (...), from O − ⟨O⟩ itself, so that nothing cancels. Raises `QuantumError`."""
    o = _fits(hermitian("the observable", observable), state, batched=True)
    centre = mean(state, o).real[..., None, None]
    moved = o - centre * torch.eye(state.dimension, dtype=o.dtype, device=o.device)
    if state.pure:
        return (moved @ state.tensor[..., None])[..., 0].abs().square().sum(-1)
    return mean(state, moved @ moved).real.clamp_min(0)


@dataclass(frozen=True, eq=False)
class Measurement:
    """``outcomes`` (k,) with ``probabilities`` (..., k) and the states after each, (..., k, d, d) or (..., k, d).

    What has probability 0 has no state after it: there it is 0. Outcomes of a POVM are 0, 1, ..., k − 1."""

    outcomes: Tensor
    probabilities: Tensor
    states: Tensor


def eigenprojectors(observable: Any) -> tuple[Tensor, Tensor]:
    """Distinct eigenvalues (k,), ascending, and the projectors on their eigenspaces (k, d, d). Eigenvalues apart by
    rounding alone are one. Raises `QuantumError`."""
    o = hermitian("the observable", observable)
    if o.ndim != 2:
        raise QuantumError(f"a projective measurement takes one observable (d, d), not {tuple(o.shape)}")
    values, frames = torch.linalg.eigh(o)
    size = max(float(values.detach().abs().max()), torch.finfo(o.dtype).tiny)
    gap = values.detach().diff() > 1e3 * torch.finfo(o.dtype).eps * size
    label = torch.cat((torch.zeros(1, dtype=torch.long), gap.long().cumsum(0)))
    groups = [(label == g).nonzero()[:, 0] for g in range(int(label[-1]) + 1)]
    projectors = torch.stack([frames[:, g] @ frames[:, g].mH for g in groups])
    return torch.stack([values[g].mean() for g in groups]), projectors


def measure_projective(state: QuantumState, observable: Any) -> Measurement:
    """The measurement of an observable (d, d): outcomes are its eigenvalues, states after it P_k ρ P_k / p_k, Lüders'
    rule. Raises `QuantumError`."""
    values, projectors = eigenprojectors(observable)
    return _measured(state, values, _fits(projectors, state))


def measure_povm(state: QuantumState, effects: Any) -> Measurement:
    """The measurement with the effects E_k (k, d, d), positive and of sum 1: p_k = tr ρE_k, and states after it
    √E_k ρ √E_k / p_k. Raises `QuantumError`."""
    e = hermitian("an effect", effects)
    if e.ndim != 3:
        raise QuantumError(f"a measurement has effects (k, d, d), not {tuple(e.shape)}")
    known, room = e.detach(), rounding(e, effects)
    off = float((known.sum(0) - torch.eye(e.shape[-1], dtype=e.dtype)).abs().max())
    least = float(torch.linalg.eigvalsh(known).min())
    if max(off, -least) > room:
        raise QuantumError(f"effects of sum 1 off by {off:.2g}, least eigenvalue {least:.2g}, are no measurement")
    values, frames = torch.linalg.eigh(_fits(e, state))
    roots = (frames * values.clamp_min(0).sqrt()[..., None, :]) @ frames.mH
    return _measured(state, torch.arange(len(e), dtype=torch.float64), roots)


def _measured(state: QuantumState, outcomes: Tensor, roots: Tensor) -> Measurement:
    """Of Kraus operators (k, d, d) = √E."""
    if state.pure:
        after = torch.einsum("kij,...j->...ki", roots, state.tensor)
        p = after.abs().square().sum(-1)
        scale = torch.where(p > 0, p, 1.0).sqrt()[..., None]
    else:
        after = torch.einsum("kij,...jl,kml->...kim", roots, state.tensor, roots.conj())
        p = after.diagonal(dim1=-2, dim2=-1).sum(-1).real.clamp_min(0)
        scale = torch.where(p > 0, p, 1.0)[..., None, None]
    return Measurement(outcomes, p / p.sum(-1, keepdim=True), after / scale)


@dataclass(frozen=True, eq=False)
class SampledMeasurement:
    """``counts`` (k,) of ``shots`` measurements. With ``confidence`` all probabilities lie in ``intervals`` (k, 2) at
    once (Clopper–Pearson, each at the share 1/k of the risk), and the mean of the outcomes within ``mean_error`` of
    ``mean`` (Hoeffding)."""

    counts: np.ndarray
    shots: int
    confidence: float
    intervals: np.ndarray
    mean: float
    mean_error: float


def count_intervals(counts: Any, confidence: float = 0.95) -> np.ndarray:
    """Intervals (k, 2) that hold all probabilities at once with ``confidence``. Raises `QuantumError`."""
    from scipy.special import betaincinv

    n = np.asarray(counts)
    if n.ndim != 1 or not len(n) or n.dtype.kind not in "iu" or (n < 0).any() or not 0 < confidence < 1:
        raise QuantumError(f"counts {n.shape}, {n.dtype}, with confidence {confidence} give no intervals")
    risk, shots = (1 - confidence) / (2 * len(n)), n.sum()
    with np.errstate(invalid="ignore"):
        low = np.where(n > 0, betaincinv(n, shots - n + 1, risk), 0.0)
        high = np.where(n < shots, betaincinv(n + 1, shots - n, 1 - risk), 1.0)
    return np.stack([low, high], axis=1)


def sample_measurement(
    measurement: Measurement, shots: int, *, confidence: float = 0.95, seed: int | None = None
) -> SampledMeasurement:
    """``shots`` independent outcomes of a measurement of one state, as counts. Raises `QuantumError`."""
    if measurement.probabilities.ndim != 1 or not isinstance(shots, (int, np.integer)) or shots < 1:
        raise QuantumError(f"{shots} shots of probabilities {tuple(measurement.probabilities.shape)}: give one state")
    p = measurement.probabilities.detach().cpu().double().numpy()
    values = measurement.outcomes.detach().cpu().double().numpy()
    shots = int(shots)
    counts = np.random.default_rng(seed).multinomial(shots, p / p.sum())
    intervals = count_intervals(counts, confidence)
    spread = float(values.max() - values.min())
    error = spread * math.sqrt(math.log(2 / (1 - confidence)) / (2 * shots))
    return SampledMeasurement(counts, shots, confidence, intervals, float(counts @ values) / shots, error)


def apply_channel(state: QuantumState, kraus: Any, factor: int | None = None) -> QuantumState:
    """Σ K ρ K† of Kraus operators (K, d, d), on one factor of the space where that is given. Raises `QuantumError`
    unless Σ K†K = 1."""
    k = to_complex("Kraus operators", kraus)
    k = k[None] if k.ndim == 2 else k
    size = state.dimension if factor is None else state.dims[factor]
    if k.ndim != 3 or k.shape[-2:] != (size, size):
        raise QuantumError(f"Kraus operators {tuple(k.shape)} do not act on a space of dimension {size}")
    off = float(((k.mH @ k).sum(0) - torch.eye(size, dtype=k.dtype)).detach().abs().max())
    if off > rounding(k, kraus):
        raise QuantumError(f"Kraus operators with Σ K†K off 1 by {off:.2g} are no channel")
    before, after = (1, 1) if factor is None else _sides(state.dims, factor)
    rho = state.density.reshape(*state.batch, before, size, after, before, size, after)
    moved = torch.einsum("kij,...ajbcld,kml->...aibcmd", k.to(rho.dtype), rho, k.conj().to(rho.dtype))
    whole = moved.reshape(*state.batch, state.dimension, state.dimension)
    return QuantumState((whole + whole.mH) / 2, state.dims, pure=False)


def _sides(dims: Sequence[int], factor: int) -> tuple[int, int]:
    return math.prod(dims[:factor]), math.prod(dims[factor + 1 :])
