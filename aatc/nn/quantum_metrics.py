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

    ``entropy``: -Σ p log p of the Born probabilities of the keys, in nats. ``participation_ratio``: 1/Σ p², how many
    keys take part. ``purity``: tr ρ² of the attended state ρ_i = Σ_j p_ij |k_j⟩⟨k_j|, 1 where it is pure.
    ``infidelity``: Σ_j p_ij (1 - |⟨k_j|q_i⟩|²), the mean sin² of the Fubini-Study distance to what is attended to.
    ``detection``: Σ_c P_ic of the probabilities P_ic = |A_ic|² of the summed amplitude A_i = Σ_j p_ij ⟨k_j|q_i⟩ v_j.
    ``interference``: the part of it that pairs of different keys make, Σ_{j≠l} of A_ij* · A_il, which
    is Σ_c P_ic - Σ_j p_ij² |⟨k_j|q_i⟩|² |v_j|²: positive where keys add up, negative where they cancel, 0 if each query
    has one key.
    """

    entropy: Tensor
    participation_ratio: Tensor
    purity: Tensor
    infidelity: Tensor
    detection: Tensor
    interference: Tensor


@dataclass(frozen=True)
class PlaceMetrics:
    """Of the quantum geometric tensor Q(x) at the places of the tokens that exist, one per head, (H,).

    ``trace``: mean of tr Q = tr g, g the Fubini-Study metric. ``curvature``: mean of (Σ_{μ<ν} Ω_μν²)^½, the size of the
    Berry curvature Ω = -2 Im Q. ``condition``: the largest condition number of g, inf where it is singular.
    """

    trace: Tensor
    curvature: Tensor
    condition: Tensor


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


def _tile(psi: Tensor, query: Tensor, key: Tensor, value: Tensor, projectors: Tensor) -> Tensor:
    """The six `AttentionMetrics` of each query, (6, B, H, rows); ``value`` complex (B, H, M, w)."""
    p = psi.abs().square()
    mixed = p.to(projectors.dtype) @ projectors  # ρ, its entries in a row
    overlap = as_complex(query) @ as_complex(key).mH
    fidelity = overlap.abs().square()
    detection = ((p * overlap) @ value).abs().square().sum(-1)
    alone = (p.square() * fidelity * value.abs().square().sum(-1)[..., None, :]).sum(-1)
    return torch.stack(
        (
            torch.special.entr(p).sum(-1),
            1 / p.square().sum(-1).clamp(min=torch.finfo(p.dtype).tiny),
            mixed.abs().square().sum(-1),
            (p * (1 - fidelity).clamp(min=0)).sum(-1),
            detection,
            detection - alone,
        )
    )


@torch.no_grad()
def attention_metrics(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    mask: Mask | None,
    tile_size: int,
    exists: Tensor | None = None,
) -> AttentionMetrics:
    """`AttentionMetrics` of states (B, H, ., 2m) that attend with -β d² to values (B, H, M, 2w), ``tile_size`` queries
    at a time, float32 for half precision.

    Queries where ``exists``, bool (B, N), does not hold are left out too. Takes M·m² memory for the keys' projectors,
    and tile_size·(M + m²) for a tile, per head.
    """
    if not query.numel() or not key.numel():
        raise ShapeError(f"there is nothing to measure of queries {tuple(query.shape)} and keys {tuple(key.shape)}")
    # what is summed must not be rounded to half precision, nor counted in it
    beta = beta.to(compute_dtype(query.dtype))
    states, values = as_complex(key), as_complex(value)
    projectors = (states[..., :, None] * states[..., None, :].conj()).flatten(-2)
    sums = beta.new_zeros(6, query.shape[1])
    count = beta.new_zeros(query.shape[1])
    for start in range(0, query.shape[2], tile_size):
        rows = query[:, :, start : start + tile_size]
        keep = None if mask is None else admitted_pairs(mask, query, key, start, start + rows.shape[2])
        measured = _tile(amplitudes(rows, key, beta, keep), rows, key, values, projectors)
        open_rows = torch.ones_like(measured[0]) if keep is None else keep.any(-1).to(measured.dtype)
        if exists is not None:
            open_rows = open_rows * exists[:, None, start : start + rows.shape[2]]
        sums += (measured * open_rows).sum((1, 3))
        count += open_rows.sum((0, 2))
    return AttentionMetrics(*(sums / count.clamp(min=1)))


@torch.no_grad()
def place_metrics(tensor: Tensor, exists: Tensor | None = None) -> PlaceMetrics:
    """`PlaceMetrics` of Q, complex (B, H, N, D, D), at tokens that ``exists``, bool (B, N), does not leave out. What is
    not finite is NaN."""
    there = torch.ones_like(tensor[..., 0, 0].real)
    if exists is not None:
        there = there * exists[:, None]
    count = there.sum((0, 2)).clamp(min=1)
    metric = tensor.real
    finite = metric.isfinite().all(-1).all(-1)
    values = torch.linalg.eigvalsh(torch.where(finite[..., None, None], metric, 0))
    # below their rounding errors eigenvalues of a positive semidefinite matrix are 0
    least, most = values[..., 0], values[..., -1]
    noise = most * metric.shape[-1] * torch.finfo(values.dtype).eps
    condition = torch.where(least > noise, most / least.clamp(min=torch.finfo(values.dtype).tiny), torch.inf)
    condition = torch.where(there > 0, torch.where(finite, condition, torch.nan), 0)
    size = tensor.imag.square().sum((-2, -1)).mul(2).sqrt()
    trace = metric.diagonal(dim1=-2, dim2=-1).sum(-1)
    return PlaceMetrics(
        torch.where(there > 0, trace, 0).sum((0, 2)) / count,
        torch.where(there > 0, size, 0).sum((0, 2)) / count,
        condition.amax((0, 2)),
    )


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
