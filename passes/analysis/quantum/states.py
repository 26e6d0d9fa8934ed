"""States of finite-dimensional systems, made of vectors, of density matrices, or of attention.

A pure state is a unit vector ψ of C^d, a mixed one a positive matrix ρ of trace 1. The space is a product of declared
factors, C^d = C^d₁ ⊗ C^d₂ ⊗ ..., the last of which varies fastest in an index. Source: Nielsen, Chuang, Quantum
Computation and Quantum Information, chapter 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aatc.passes.analysis.quantum.tensors import QuantumError as QuantumError
from aatc.passes.analysis.quantum.tensors import factors, rounding, to_complex


@dataclass(frozen=True, eq=False)
class QuantumState:
    """States of one space with the factors ``dims``: vectors (..., d) where ``pure``, else matrices (..., d, d).

    Leading axes are a batch. Made by `pure_state` and `mixed_state`, which check what they are given."""

    tensor: Tensor
    dims: tuple[int, ...]
    pure: bool = True

    @property
    def dimension(self) -> int:
        return math.prod(self.dims)

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape[: -1 if self.pure else -2])

    @property
    def density(self) -> Tensor:
        """ρ (..., d, d): |ψ⟩⟨ψ| of a pure state."""
        if not self.pure:
            return self.tensor
        return self.tensor[..., :, None] * self.tensor[..., None, :].conj()

    @property
    def vector(self) -> Tensor:
        """ψ (..., d). Raises `QuantumError` for a mixed state."""
        if not self.pure:
            raise QuantumError("a density matrix has no state vector", hint="this needs a pure state")
        return self.tensor


def pure_state(
    vector: Any, dims: int | Sequence[int] | None = None, *, normalise: bool = False, dtype: torch.dtype | None = None
) -> QuantumState:
    """A state of the vectors (..., d). Raises `QuantumError` unless their norms are 1, or ``normalise`` divides by
    them; the zero vector is no state."""
    psi = to_complex("a state vector", vector, dtype)
    if psi.ndim < 1:
        raise QuantumError("a state vector has shape (..., d), not ()")
    sizes = factors(psi.shape[-1] if dims is None else dims, psi.shape[-1])
    if normalise:
        largest = psi.detach().abs().amax(-1, keepdim=True)
        if bool((largest == 0).any()):
            raise QuantumError("the zero vector is no state and cannot be normalised")
        psi = psi / largest  # squares of very large and very small numbers are out of range
        return QuantumState(psi / torch.linalg.vector_norm(psi, dim=-1, keepdim=True), sizes)
    off = float((torch.linalg.vector_norm(psi.detach(), dim=-1) - 1).abs().max())
    if off > rounding(psi, vector):
        raise QuantumError(f"a state vector has a norm that is {off:.3g} off 1", hint="give normalise=True")
    if off > rounding(psi):  # what the rounding of a shorter dtype left
        psi = psi / torch.linalg.vector_norm(psi, dim=-1, keepdim=True)
    return QuantumState(psi, sizes)


def mixed_state(
    density: Any, dims: int | Sequence[int] | None = None, *, normalise: bool = False, dtype: torch.dtype | None = None
) -> QuantumState:
    """A state of the matrices (..., d, d). Raises `QuantumError` unless they are Hermitian, positive, and of trace 1,
    or ``normalise`` divides by the trace. What rounding left of an anti-Hermitian part is taken away."""
    rho = to_complex("a density matrix", density, dtype)
    if rho.ndim < 2 or rho.shape[-1] != rho.shape[-2]:
        raise QuantumError(f"a density matrix has shape (..., d, d), not {tuple(rho.shape)}")
    sizes = factors(rho.shape[-1] if dims is None else dims, rho.shape[-1])
    trace = rho.diagonal(dim1=-2, dim2=-1).sum(-1)
    if normalise:
        if bool((trace.detach().real <= 0).any()):
            raise QuantumError("a matrix whose trace is not positive cannot be normalised")
        rho, trace = rho / trace.real[..., None, None], trace / trace.real
    known, room = rho.detach(), rounding(rho, density)
    skew = float((known - known.mH).abs().max())
    off = float((trace.detach() - 1).abs().max())
    least = float(torch.linalg.eigvalsh((known + known.mH) / 2)[..., 0].min())
    if max(skew, off, -least) > room:
        raise QuantumError(
            f"a matrix is no state: its trace is {off:.2g} off 1, |ρ − ρ†| is {skew:.2g}, the least eigenvalue "
            f"{least:.2g}",
            hint="trace: normalise=True; else it is no density matrix",
        )
    if off > rounding(rho):
        rho = rho / trace.real[..., None, None]
    return QuantumState((rho + rho.mH) / 2, sizes, pure=False)


# --- states of attention -----------------------------------------------------------------------------------
def probabilities(pattern: Any) -> Tensor:
    """Rows (..., m) of probabilities in float64, divided by their sums. Gradients are kept. Raises `QuantumError` for
    negative weights and for sums that the dtype's rounding does not explain, such as that of a row without a key."""
    given = pattern if isinstance(pattern, Tensor) else torch.as_tensor(np.asarray(pattern))
    if given.is_complex() or given.ndim < 1 or given.numel() == 0:
        raise QuantumError(f"weights of shape {tuple(given.shape)}, {given.dtype}, are no rows of probabilities")
    room = 1e-5 if not given.is_floating_point() else max(1e-5, 4 * torch.finfo(given.dtype).eps)
    rows = given.to(torch.float64)
    known = rows.detach()
    wrong = ~((known.sum(-1) - 1).abs() <= room) | ~(known.amin(-1) >= 0)
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        raise QuantumError(
            f"row {at} has sum {float(known.sum(-1)[at]):.6g} and least entry {float(known[at].min()):.3g}: it is no "
            "probability distribution",
            hint="take softmax first, and leave queries without keys out",
        )
    return rows / rows.sum(-1, keepdim=True)


def _root(p: Tensor) -> Tensor:
    """√p, with slope 0 at p = 0, where that of the root is infinite: a masked key stays masked."""
    kept = p > 0
    return torch.where(kept, torch.where(kept, p, 1.0).sqrt(), 0.0)


def attention_state(pattern: Any, *, dtype: torch.dtype = torch.complex128) -> QuantumState:
    """ψ_j = √p_j of every row of (..., m): Born probabilities are the weights, and the inner product of two rows is
    their Bhattacharyya coefficient. Raises `QuantumError`."""
    return QuantumState(_root(probabilities(pattern)).to(dtype), (int(np.shape(pattern)[-1]),))


def query_key_state(pattern: Any, law: Any = None, *, dtype: torch.dtype = torch.complex128) -> QuantumState:
    """Ψ_ij = √(w_i p_ij) on queries ⊗ keys of patterns (..., n, m), the law w (n,) of queries uniform unless given.

    Its reduced state of the keys is Σ_i w_i |√p_i⟩⟨√p_i|, the mixture of the rows; the two are entangled as far as
    queries attend differently. Raises `QuantumError`.
    """
    p = probabilities(pattern)
    if p.ndim < 2:
        raise QuantumError(f"a pattern has shape (..., n, m), not {tuple(p.shape)}")
    n, m = int(p.shape[-2]), int(p.shape[-1])
    w = torch.full((n,), 1 / n, dtype=p.dtype, device=p.device) if law is None else probabilities(law).to(p.device)
    if w.shape[-1] != n:
        raise QuantumError(f"a law of {w.shape[-1]} queries for a pattern of {n}")
    return QuantumState(_root(w[..., :, None] * p).flatten(-2).to(dtype), (n, m))


def value_density(values: Any, weights: Any = None, *, dtype: torch.dtype = torch.complex128) -> QuantumState:
    """ρ = Σ_j w_j |v_j⟩⟨v_j| / Σ_j w_j |v_j|² of vectors (..., m, d), VᵀV/tr VᵀV for equal weights.

    ``weights`` (..., m) are not negative, such as a row of attention. Raises `QuantumError`, also where all weighted
    vectors are 0.
    """
    v = to_complex("values", values, dtype)
    if v.ndim < 2:
        raise QuantumError(f"values have shape (..., m, d), not {tuple(v.shape)}")
    v = v / v.detach().abs().amax().clamp_min(torch.finfo(v.dtype).tiny)
    left = v
    if weights is not None:
        w = to_complex("weights", weights, dtype)
        if w.shape[-1] != v.shape[-2] or bool((w.detach().real < 0).any() | (w.detach().imag != 0).any()):
            raise QuantumError(f"weights {tuple(w.shape)} of {v.shape[-2]} values are real and not negative")
        left = v * w[..., :, None]
    gram = left.mT @ v.conj()
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1).real
    if bool((trace.detach() <= 0).any()):
        raise QuantumError("all values that have weight are 0: they make no state")
    rho = gram / trace[..., None, None]
    return QuantumState((rho + rho.mH) / 2, (int(v.shape[-1]),), pure=False)


# --- named states ------------------------------------------------------------------------------------------
def basis_state(index: int, dims: int | Sequence[int]) -> QuantumState:
    """|index⟩ of the space with the factors ``dims``. Raises `QuantumError`."""
    sizes = factors(dims)
    if not 0 <= index < math.prod(sizes):
        raise QuantumError(f"there is no basis state {index} of {math.prod(sizes)}")
    vector = torch.zeros(math.prod(sizes), dtype=torch.complex128)
    vector[index] = 1
    return QuantumState(vector, sizes)


def bell_state() -> QuantumState:
    """(|00⟩ + |11⟩)/√2."""
    return ghz_state(2)


def ghz_state(qubits: int) -> QuantumState:
    """(|0...0⟩ + |1...1⟩)/√2 of two or more qubits. Raises `QuantumError`."""
    if qubits < 2:
        raise QuantumError(f"a GHZ state has two or more qubits, not {qubits}")
    vector = torch.zeros(1 << qubits, dtype=torch.complex128)
    vector[0] = vector[-1] = math.sqrt(0.5)
    return QuantumState(vector, (2,) * qubits)


def w_state(qubits: int) -> QuantumState:
    """The equal superposition of the states with one qubit in |1⟩. Raises `QuantumError`."""
    if qubits < 2:
        raise QuantumError(f"a W state has two or more qubits, not {qubits}")
    vector = torch.zeros(1 << qubits, dtype=torch.complex128)
    vector[[1 << k for k in range(qubits)]] = 1 / math.sqrt(qubits)
    return QuantumState(vector, (2,) * qubits)


def werner_state(weight: float) -> QuantumState:
    """p |Ψ⁻⟩⟨Ψ⁻| + (1 − p)/4, p = ``weight`` in [−1/3, 1]: entangled exactly for p > 1/3. Raises `QuantumError`."""
    if not -1 / 3 - 1e-15 <= weight <= 1:
        raise QuantumError(f"a Werner state has a weight in [−1/3, 1], not {weight}")
    singlet = torch.tensor([0, 1, -1, 0], dtype=torch.complex128) / math.sqrt(2)
    rho = weight * torch.outer(singlet, singlet.conj()) + (1 - weight) / 4 * torch.eye(4, dtype=torch.complex128)
    return QuantumState(rho, (2, 2), pure=False)
