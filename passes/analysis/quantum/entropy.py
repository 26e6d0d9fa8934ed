"""Entropies of quantum states, in nats: von Neumann, Rényi, relative entropy, mutual information.

Sources: Nielsen, Chuang, Quantum Computation and Quantum Information, chapter 11; Müller-Lennert and others, On quantum
Rényi entropies, J. Math. Phys. 54 (2013).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aatc.passes.analysis.quantum.states import QuantumError, QuantumState


def partial_trace(state: QuantumState, keep: int | Sequence[int]) -> QuantumState:
    """The reduced state of the factors ``keep``, in the order of the space. Raises `QuantumError`."""
    kept = [keep] if isinstance(keep, int) else list(keep)
    if not kept or len(set(kept)) != len(kept) or not all(0 <= k < len(state.dims) for k in kept):
        raise QuantumError(f"there are no factors {kept} of {state.dims}", hint="give each once, from 0 on")
    rest = [k for k in range(len(state.dims)) if k not in kept]
    kept.sort()
    dims = tuple(state.dims[k] for k in kept)
    size, lead, n = math.prod(dims), len(state.batch), len(state.dims)
    places = [lead + k for k in (*kept, *rest)]
    if state.pure:
        parts = state.tensor.reshape(*state.batch, *state.dims)
        matrix = parts.permute(*range(lead), *places).reshape(*state.batch, size, -1)
        rho = matrix @ matrix.mH
    else:
        parts = state.tensor.reshape(*state.batch, *state.dims, *state.dims)
        order = [*range(lead), *places, *(n + k for k in places)]
        blocks = parts.permute(*order).reshape(*state.batch, size, -1, size, state.dimension // size)
        rho = blocks.diagonal(dim1=-3, dim2=-1).sum(-1)
    return QuantumState((rho + rho.mH) / 2, dims, pure=False)


def spectrum(state: QuantumState) -> Tensor:
    """Eigenvalues of ρ, (..., d), ascending, at least 0: of a pure state zeros and a one."""
    if state.pure:
        ones = torch.linalg.vector_norm(state.tensor, dim=-1, keepdim=True).square()
        zeros = torch.zeros_like(state.tensor[..., 1:].real)
        return torch.cat((zeros, ones), -1)
    eigenvalues: Tensor = torch.linalg.eigvalsh(state.tensor).clamp_min(0)
    return eigenvalues


def entropy_of_spectrum(eigenvalues: Tensor, order: float = 1.0) -> Tensor:
    """−Σ λ log λ, or log Σ λ^α / (1 − α), (...), of eigenvalues (..., d) ≥ 0 of sum 1.

    Below order 1 eigenvalues up to 64 d ε count as 0: rounding, which small powers would make much of; at order 0 what
    is left is the logarithm of the rank. Infinity: −log of the largest. Raises `QuantumError`.
    """
    if not order >= 0:
        raise QuantumError(f"a Rényi entropy has an order in [0, ∞], not {order}")
    floor = 64 * eigenvalues.shape[-1] * torch.finfo(eigenvalues.dtype).eps if order < 1 else 0.0
    some = eigenvalues > floor
    safe = torch.where(some, eigenvalues, 1.0)
    if order == 1:
        return -torch.where(some, eigenvalues * safe.log(), 0.0).sum(-1)
    if order == math.inf:
        return -eigenvalues.amax(-1).log()
    if order == 0:
        return some.sum(-1).to(eigenvalues.dtype).log()
    if order >= 2:
        return _large_order(eigenvalues, order)
    # near α = 1 what is left of Σ λ^α is of first order in α − 1, as log1p of expm1 keeps it
    return torch.log1p(torch.where(some, eigenvalues * torch.expm1((order - 1) * safe.log()), 0.0).sum(-1)) / (
        1 - order
    )


def _large_order(eigenvalues: Tensor, order: float) -> Tensor:
    """In units of the largest eigenvalue, since its powers may be below the range."""
    top = eigenvalues.amax(-1, keepdim=True)
    scaled = (eigenvalues / top).pow(order).sum(-1).log()
    return (scaled + order * top[..., 0].log()) / (1 - order)


def von_neumann_entropy(state: QuantumState) -> Tensor:
    """−tr ρ log ρ, (...), in nats: 0 of pure states, log d of the mixed one."""
    return entropy_of_spectrum(spectrum(state))


def renyi_entropy(state: QuantumState, order: float) -> Tensor:
    """log tr ρ^α / (1 − α), (...), in nats, for α in [0, ∞]; at 1 the von Neumann entropy. Raises `QuantumError`."""
    return entropy_of_spectrum(spectrum(state), order)


def purity(state: QuantumState) -> Tensor:
    """tr ρ², (...), from 1/d to 1."""
    return state.density.abs().square().sum((-2, -1))


def relative_entropy(state: QuantumState, other: QuantumState) -> Tensor:
    """tr ρ (log ρ − log σ) ≥ 0, (...), in nats; ∞ where ρ has more than rounding outside the support of σ. Raises
    `QuantumError`."""
    if state.dimension != other.dimension:
        raise QuantumError(f"states of dimensions {state.dimension} and {other.dimension} are not compared")
    values, frames = torch.linalg.eigh(other.density)
    floor = 64 * state.dimension * torch.finfo(values.dtype).eps
    weight = (frames.conj() * (state.density @ frames)).sum(-2).real
    inside = values > floor
    outside = torch.where(inside, 0.0, weight).sum(-1) > floor
    cross = torch.where(inside, weight * torch.where(inside, values, 1.0).log(), 0.0).sum(-1)
    found = (-von_neumann_entropy(state) - cross).clamp_min(0)
    return torch.where(outside, torch.inf, found)


def mutual_information(state: QuantumState, part: int | Sequence[int]) -> Tensor:
    """S(A) + S(B) − S(AB) ≥ 0, (...), in nats, of the factors ``part`` and the others. Raises `QuantumError`."""
    own = {part} if isinstance(part, int) else set(part)
    rest = [k for k in range(len(state.dims)) if k not in own]
    apart = von_neumann_entropy(partial_trace(state, sorted(own))) + von_neumann_entropy(partial_trace(state, rest))
    return apart - von_neumann_entropy(state)


def fidelity(state: QuantumState, other: QuantumState) -> Tensor:
    """(tr √(√ρ σ √ρ))², (...): |⟨φ|ψ⟩|² of pure states (Uhlmann). Raises `QuantumError`."""
    if state.dimension != other.dimension:
        raise QuantumError(f"states of dimensions {state.dimension} and {other.dimension} are not compared")
    if state.pure and other.pure:
        return (state.tensor.conj() * other.tensor).sum(-1).abs().square()
    roots = []
    for rho in (state.density, other.density):
        values, frames = torch.linalg.eigh(rho)
        roots.append((frames * values.clamp_min(0).sqrt()[..., None, :]) @ frames.mH)
    singular: Tensor = torch.linalg.svdvals(roots[0] @ roots[1])
    return singular.sum(-1).square()


def trace_distance(state: QuantumState, other: QuantumState) -> Tensor:
    """½ ‖ρ − σ‖₁, (...). Raises `QuantumError`."""
    if state.dimension != other.dimension:
        raise QuantumError(f"states of dimensions {state.dimension} and {other.dimension} are not compared")
    result: Tensor = torch.linalg.eigvalsh(state.density - other.density).abs().sum(-1) / 2
    return result


def bloch_vector(state: QuantumState, factor: int = 0) -> Tensor:
    """(⟨X⟩, ⟨Y⟩, ⟨Z⟩), (..., 3), of a factor of dimension 2, within the unit ball. Raises `QuantumError`."""
    if not 0 <= factor < len(state.dims) or state.dims[factor] != 2:
        raise QuantumError(f"factor {factor} of {state.dims} is no qubit")
    rho = partial_trace(state, factor).tensor
    off = rho[..., 1, 0]
    return torch.stack((2 * off.real, 2 * off.imag, (rho[..., 0, 0] - rho[..., 1, 1]).real), -1)
