"""Entanglement of declared factors: Schmidt coefficients, negativity, concurrence, three-tangle.

Sources: Vidal, Werner, Computable measure of entanglement, Phys. Rev. A 65 (2002); Wootters, Entanglement of formation
of an arbitrary state of two qubits, PRL 80 (1998); Rungta and others, Phys. Rev. A 64 (2001); Coffman, Kundu, Wootters,
Distributed entanglement, Phys. Rev. A 61 (2000).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.passes.analysis.quantum.entropy import entropy_of_spectrum, partial_trace, von_neumann_entropy
from aatc.passes.analysis.quantum.states import QuantumError, QuantumState
from aatc.passes.analysis.result import Undecided


def _part(part: int | Sequence[int], dims: tuple[int, ...]) -> list[int]:
    own = sorted({part} if isinstance(part, int) else set(part))
    if not own or len(own) == len(dims) or not all(0 <= k < len(dims) for k in own):
        raise QuantumError(
            f"factors {own} of {dims} are no part of two",
            hint="declare the factors with dims=, and name some of them but not all",
        )
    return own


def _split(tensor: Tensor, dims: tuple[int, ...], part: list[int]) -> Tensor:
    """ψ (..., d) as a matrix (..., d_part, d_rest)."""
    lead = tensor.ndim - 1
    rest = [k for k in range(len(dims)) if k not in part]
    parts = tensor.reshape(*tensor.shape[:-1], *dims).permute(*range(lead), *(lead + k for k in (*part, *rest)))
    return parts.reshape(*tensor.shape[:-1], math.prod(dims[k] for k in part), -1)


def schmidt_coefficients(state: QuantumState, part: int | Sequence[int] = 0) -> Tensor:
    """√λ_k, (..., min(d_A, d_B)), descending, of ψ = Σ √λ_k |a_k⟩|b_k⟩ for the factors ``part`` and the others. Raises
    `QuantumError`."""
    matrix = _split(state.vector, state.dims, _part(part, state.dims))
    if not matrix.requires_grad and not bool(matrix.imag.any()):
        matrix = matrix.real  # as states of attention are: a quarter of the time
    singular: Tensor = torch.linalg.svdvals(matrix)
    return singular


def entanglement_entropy(state: QuantumState, part: int | Sequence[int] = 0) -> Tensor:
    """−Σ λ log λ, (...), in nats, of a pure state: log 2 of a Bell state. Raises `QuantumError`."""
    return entropy_of_spectrum(schmidt_coefficients(state, part).square())


def partial_transpose(density: Tensor, dims: tuple[int, ...], part: int | Sequence[int] = 1) -> Tensor:
    """ρ (..., D, D) with the factors ``part`` transposed, D = Π dims. Raises `QuantumError`."""
    own = _part(part, dims)
    lead, n = density.ndim - 2, len(dims)
    order = [*range(lead), *(lead + (n + k if k in own else k) for k in range(n))]
    order += [lead + (k if k in own else n + k) for k in range(n)]
    return density.reshape(*density.shape[:-2], *dims, *dims).permute(*order).reshape(density.shape)


def negativity(density: Tensor, dims: tuple[int, ...], part: int | Sequence[int] = 1) -> Tensor:
    """(‖ρ^T_B‖₁ − 1)/2 of ρ (..., D, D): 0 for separable states, ½ for a Bell state. Raises `QuantumError`."""
    transposed = partial_transpose(density, dims, part)
    eigenvalues: Tensor = torch.linalg.eigvalsh((transposed + transposed.mH) / 2)
    return (eigenvalues.abs().sum(-1) - 1) / 2


def log_negativity(density: Tensor, dims: tuple[int, ...], part: int | Sequence[int] = 1) -> Tensor:
    """log₂ ‖ρ^T_B‖₁, in ebits: 1 for a Bell state. Raises `QuantumError`."""
    return torch.log2(2 * negativity(density, dims, part) + 1)


def concurrence(density: Tensor) -> Tensor:
    """max(0, λ₁ − λ₂ − λ₃ − λ₄) of two qubits ρ (..., 4, 4), λ the singular values of √ρᵀ (σ_y⊗σ_y) √ρ.

    1 for a Bell state, positive for every entangled state. Raises `QuantumError`.
    """
    if density.shape[-2:] != (4, 4):
        raise QuantumError(f"a concurrence is that of two qubits, not of {tuple(density.shape[-2:])}")
    values, vectors = torch.linalg.eigh((density + density.mH) / 2)
    root = vectors * values.clamp_min(0).sqrt()[..., None, :]
    flip = torch.tensor([-1.0, 1.0, 1.0, -1.0]).diag().fliplr().to(density)
    singular: Tensor = torch.linalg.svdvals(root.mT @ flip @ root)
    return (2 * singular[..., 0] - singular.sum(-1)).clamp_min(0)


def pure_concurrence(state: QuantumState, part: int | Sequence[int] = 0) -> Tensor:
    """√(2(1 − tr ρ_A²)), (...), of a pure state of any two parts: 1 for a Bell state. Raises `QuantumError`.

    1 − Σλ² is computed as Σ λ_k (1 − λ_k), λ_k the squared Schmidt coefficients, which sum to 1.
    """
    weights = schmidt_coefficients(state, part).square()
    rest = weights.sum(-1, keepdim=True) - weights
    mixed = 2 * (weights * rest).sum(-1)
    kept = mixed > 0
    return torch.where(kept, torch.where(kept, mixed, 1.0).sqrt(), 0.0)


def three_tangle(state: QuantumState) -> Tensor:
    """4 |d₁ − 2 d₂ + 4 d₃|, (...), of three qubits in a pure state, Cayley's hyperdeterminant: 1 for GHZ, 0 for W.

    Raises `QuantumError`.
    """
    if state.dims != (2, 2, 2):
        raise QuantumError(
            f"a three-tangle is that of three qubits, not of {state.dims}", hint="declare dims=(2, 2, 2)"
        )
    a = state.vector.reshape(*state.batch, 2, 2, 2)
    p = [a[..., 0, 0, 0] * a[..., 1, 1, 1], a[..., 0, 0, 1] * a[..., 1, 1, 0]]
    p += [a[..., 0, 1, 0] * a[..., 1, 0, 1], a[..., 1, 0, 0] * a[..., 0, 1, 1]]
    squares = sum((x * x for x in p), torch.zeros_like(p[0]))
    crossed = sum((p[i] * p[j] for i in range(4) for j in range(i)), torch.zeros_like(p[0]))
    even = a[..., 0, 0, 0] * a[..., 1, 1, 0] * a[..., 1, 0, 1] * a[..., 0, 1, 1]
    odd = a[..., 1, 1, 1] * a[..., 0, 0, 1] * a[..., 0, 1, 0] * a[..., 1, 0, 0]
    return 4 * (squares - 2 * crossed + 4 * (even + odd)).abs()


def witness_operator(state: QuantumState, part: int | Sequence[int] = 1) -> Tensor:
    """W = |e⟩⟨e|^T_B, e the eigenvector of the least eigenvalue of ρ^T_B: tr Wσ ≥ 0 for every separable σ, and
    tr Wρ is that eigenvalue. Raises `QuantumError` where it is not negative, as then W finds nothing."""
    transposed = partial_transpose(state.density, state.dims, part)
    values, frames = torch.linalg.eigh((transposed + transposed.mH) / 2)
    if bool((values[..., 0] >= 0).any()):
        raise QuantumError("the partial transpose is positive: it shows no entanglement")
    least = frames[..., :, 0]
    return partial_transpose(least[..., :, None] * least[..., None, :].conj(), state.dims, part)


@dataclass(frozen=True, eq=False)
class EntanglementMetrics:
    """Entanglement of the factors ``part`` with the others.

    - ``schmidt``, ``entropy`` (nats): of pure states; `Undecided` for mixed ones, which have no Schmidt form.
    - ``negativity``; ``log_negativity`` in ebits; ``witness``: the least eigenvalue of ρ^T_B, tr Wρ of the witness
      operator where it is negative. Negativity 0 leaves open whether mixed states beyond 2×2 and 2×3 are separable.
    - ``concurrence``: of pure states of two parts, and of two qubits.
    - ``three_tangle``: of three qubits in a pure state; for mixed ones it is a minimum over decompositions, which is
      not computed.
    """

    part: tuple[int, ...]
    schmidt: Tensor | Undecided
    entropy: Tensor | Undecided
    negativity: Tensor
    log_negativity: Tensor
    witness: Tensor
    concurrence: Tensor | Undecided
    three_tangle: Tensor | Undecided


def entanglement_metrics(state: QuantumState, part: int | Sequence[int] = 0) -> EntanglementMetrics:
    """All that is known of the entanglement between the declared factors ``part`` and the others. Raises
    `QuantumError` for a space of one factor."""
    own = _part(part, state.dims)
    mixed = Undecided("pure states", "a density matrix was given")
    if state.pure:
        schmidt = schmidt_coefficients(state, own)
        # ρ^T_B of a pure state has the eigenvalues λ_k and ±√(λ_j λ_k), so that no D × D matrix is needed
        total = schmidt.sum(-1)
        negative = (total.square() - schmidt.square().sum(-1)) / 2
        padded = torch.nn.functional.pad(schmidt, (0, max(0, 2 - schmidt.shape[-1])))
        least = -padded[..., 0] * padded[..., 1]
        entropy, shared = entropy_of_spectrum(schmidt.square()), pure_concurrence(state, own)
        tangle = three_tangle(state) if state.dims == (2, 2, 2) else Undecided("three qubits", f"factors {state.dims}")
        logarithm = torch.log2(2 * negative + 1)
        return EntanglementMetrics(tuple(own), schmidt, entropy, negative, logarithm, least, shared, tangle)
    transposed = partial_transpose(state.tensor, state.dims, own)
    values = torch.linalg.eigvalsh((transposed + transposed.mH) / 2)
    negative = (values.abs().sum(-1) - 1) / 2
    pair = concurrence(state.tensor) if state.dims == (2, 2) else Undecided("two qubits", f"factors {state.dims}")
    logarithm = torch.log2(2 * negative + 1)
    return EntanglementMetrics(tuple(own), mixed, mixed, negative, logarithm, values[..., 0], pair, mixed)


def squashed_bound(state: QuantumState, part: int | Sequence[int] = 0) -> Tensor:
    """½ (S(A) + S(B) − S(AB)), (...), in nats: an upper bound of the squashed entanglement, and of what can be
    distilled (Christandl, Winter 2004). Raises `QuantumError`."""
    own = _part(part, state.dims)
    rest = [k for k in range(len(state.dims)) if k not in own]
    apart = von_neumann_entropy(partial_trace(state, own)) + von_neumann_entropy(partial_trace(state, rest))
    return (apart - von_neumann_entropy(state)) / 2
