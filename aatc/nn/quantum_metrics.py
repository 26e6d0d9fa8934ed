"""What can be measured of quantum geometric attention, in tiles of queries: no tensor over all pairs is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.errors import ShapeError
from aatc.ir.reference import compute_dtype
from aatc.masks import Mask
from aatc.nn.fubini_study import as_complex
from aatc.nn.pairs import admitted_pairs


@dataclass(frozen=True)
class AttentionMetrics:
    """Means over batch and queries, one per head, (H,); queries that may attend to nothing, or that are
    padding, are left out.

    ``entropy``: -Σ p log p of the Born probabilities, in nats. ``participation_ratio``: 1/Σ p², how many keys take
    part. ``purity``: tr ρ² of the attended state ρ_i = Σ_j p_ij |k_j⟩⟨k_j|, 1 where it is pure.
    ``geometric_tensor_trace``: Σ_j p_ij ⟨k_j|(1 - |q_i⟩⟨q_i|)|k_j⟩, the trace of the quantum geometric tensor
    ⟨δψ|(1 - P)|δψ⟩ over the finite displacements from a query to its keys, the mean sin² of their Fubini-Study
    distances. ``norm_deviation``: the largest |Σ_j |ψ_ij|² - 1| of the amplitudes.
    """

    entropy: Tensor
    participation_ratio: Tensor
    purity: Tensor
    geometric_tensor_trace: Tensor
    norm_deviation: Tensor


@dataclass(frozen=True)
class FlowMetrics:
    """Of a flow of ``steps`` steps, at its start and after each: ``energies`` and ``entropies`` (steps + 1, H).

    Energies are Dirichlet energies ½ Σ_ij π_i P_ij |u_i - u_j|², means over the batch. Entropies, in nats, are those
    of the shares of the principal axes in Σ_i |u_i|²: they fall as the patterns come to lie in fewer directions
    (Roy, Vetterli 2007).
    """

    energies: Tensor
    entropies: Tensor
    steps: int


def amplitudes(query: Tensor, key: Tensor, beta: Tensor, keep: Tensor | None) -> Tensor:
    """ψ_ij, complex (B, H, N, M): |ψ_ij|² ∝ exp(-β d_ij²), Σ_j |ψ_ij|² = 1, with the phase of ⟨k_j|q_i⟩.

    ``query``, ``key``: unit states (B, H, ., 2m); ``beta`` (H,); ``keep``: bool (B, H, N, M).
    """
    overlap = as_complex(query) @ as_complex(key).mH
    outside = (1 - overlap.abs().square()).clamp(0, 1)
    scores = -beta[:, None, None] * torch.asin(outside.sqrt()).square()
    if keep is not None:
        scores = scores.masked_fill(~keep, -torch.inf)
    roots = (0.5 * (scores - scores.logsumexp(-1, keepdim=True))).exp()
    if keep is not None:
        roots = roots.masked_fill(~keep, 0)
    return torch.polar(roots, overlap.angle())


def _tile(psi: Tensor, query: Tensor, key: Tensor, projectors: Tensor) -> Tensor:
    """Entropy, participation ratio, purity, tensor trace and deviation of the norm of each query, (5, B, H, rows)."""
    p = psi.abs().square()
    total = p.sum(-1)
    entropy = torch.special.entr(p).sum(-1)
    participation = 1 / p.square().sum(-1).clamp(min=torch.finfo(p.dtype).tiny)
    mixed = p.to(projectors.dtype) @ projectors  # ρ, its entries in a row
    purity = mixed.abs().square().sum(-1)
    fidelity = (as_complex(query) @ as_complex(key).mH).abs().square()
    trace = (p * (1 - fidelity).clamp(min=0)).sum(-1)
    return torch.stack((entropy, participation, purity, trace, (total - 1).abs()))


@torch.no_grad()
def attention_metrics(
    query: Tensor, key: Tensor, beta: Tensor, mask: Mask | None, tile_size: int, exists: Tensor | None = None
) -> AttentionMetrics:
    """`AttentionMetrics` of unit states (B, H, ., 2m) that attend with -β d², ``tile_size`` queries at a time, float32
    for half precision.

    Queries where ``exists``, bool (B, N), does not hold are left out too. Takes M·m² memory for the keys' projectors,
    and tile_size·(M + m²) for a tile, per head.
    """
    if not query.numel() or not key.numel():
        raise ShapeError(f"there is nothing to measure of queries {tuple(query.shape)} and keys {tuple(key.shape)}")
    beta = beta.to(
        compute_dtype(query.dtype)
    )  # what is summed must not be rounded to half precision, nor counted in it
    states = as_complex(key)
    projectors = (states[..., :, None] * states[..., None, :].conj()).flatten(-2)
    sums = beta.new_zeros(4, query.shape[1])
    count = beta.new_zeros(query.shape[1])
    deviation = beta.new_zeros(query.shape[1])
    for start in range(0, query.shape[2], tile_size):
        rows = query[:, :, start : start + tile_size]
        keep = None if mask is None else admitted_pairs(mask, query, key, start, start + rows.shape[2])
        measured = _tile(amplitudes(rows, key, beta, keep), rows, key, projectors)
        open_rows = torch.ones_like(measured[0]) if keep is None else keep.any(-1).to(measured.dtype)
        if exists is not None:
            open_rows = open_rows * exists[:, None, start : start + rows.shape[2]]
        sums += (measured[:4] * open_rows).sum((1, 3))
        count += open_rows.sum((0, 2))
        deviation = torch.maximum(deviation, (measured[4] * open_rows).amax((0, 2)))
    entropy, participation, purity, trace = sums / count.clamp(min=1)
    return AttentionMetrics(entropy, participation, purity, trace, deviation)


def spectral_entropy(patterns: Tensor) -> Tensor:
    """Entropy of the shares of the principal axes of patterns (B, H, N, d), mean over the batch, (H,); NaN for patterns
    that are not finite."""
    patterns = patterns.to(compute_dtype(patterns.dtype))
    # Shares do not depend on the unit, squares of large or small patterns are out of range.
    largest = patterns.abs().amax((-2, -1), keepdim=True)
    patterns = patterns / torch.where(largest > 0, largest, 1)
    gram = patterns.mT @ patterns
    finite = gram.isfinite().all(-1).all(-1)
    spread = torch.linalg.eigvalsh(torch.where(finite[..., None, None], gram, 0)).clamp(min=0)
    shares = spread / spread.sum(-1, keepdim=True).clamp(min=torch.finfo(spread.dtype).tiny)
    return torch.where(finite, torch.special.entr(shares).sum(-1), torch.nan).mean(0)
