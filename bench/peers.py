"""Geometric attention written out in plain PyTorch, as one would without a compiler.

These formulas share no code with aatc: benchmarks compile them with ``torch.compile`` as the peer, and tests
run them in float64 as oracles. Shapes: q ``(B, H, N, D)``, k ``(B, H, M, D)``, v ``(B, H, M, Dv)``; every
``*_scores`` returns ``(B, H, N, M)``. Nothing here is careful with memory: that is the point.
"""

import math

import torch
from torch import Tensor


def attention(scores: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax over keys, then the mean of values. A row that may look at nothing gives zeros."""
    if allowed is None:
        return torch.softmax(scores, -1) @ v
    scores = scores.masked_fill(~allowed, -math.inf)
    weights = torch.softmax(scores, -1)
    return torch.where(allowed.any(-1, keepdim=True), weights, 0.0) @ v


def _scale(q: Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def dot_scores(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    return q @ k.mT * _scale(q, scale)


def euclidean_scores(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """−‖q − k‖² · scale."""
    squared = (q * q).sum(-1)[..., :, None] + (k * k).sum(-1)[..., None, :] - 2 * q @ k.mT
    return -squared * _scale(q, scale)


def mahalanobis_scores(q: Tensor, k: Tensor, matrix: Tensor, scale: float | None = None) -> Tensor:
    """−(q − k)ᵀ M (q − k) · scale, with M ``(D, D)``, or ``(D,)`` for a diagonal."""
    if matrix.dim() == 1:
        matrix = torch.diag(matrix)
    qm, km = q @ matrix, k @ matrix
    cross = qm @ k.mT + q @ km.mT
    form = (qm * q).sum(-1)[..., :, None] + (km * k).sum(-1)[..., None, :] - cross
    return -form * _scale(q, scale)


def lorentz_inner(x: Tensor, y: Tensor) -> Tensor:
    """⟨x, y⟩ = −x₀y₀ + Σ xᵢyᵢ for every pair of rows; the time coordinate comes first."""
    return x[..., 1:] @ y[..., 1:].mT - x[..., :1] @ y[..., :1].mT


def lift(x: Tensor) -> Tensor:
    """The point of the hyperboloid over spatial coordinates: time √(1 + |x|²) put first."""
    return torch.cat([torch.sqrt(1 + (x * x).sum(-1, keepdim=True)), x], -1)


def lorentz_inner_scores(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    return lorentz_inner(q, k) * _scale(q, scale)


def lorentz_distance_scores(q: Tensor, k: Tensor, beta: float = 1.0) -> Tensor:
    """−β acosh(−⟨q, k⟩)."""
    return -beta * torch.acosh(torch.clamp(-lorentz_inner(q, k), min=1.0))


def poincare_scores(q: Tensor, k: Tensor, beta: float = 1.0) -> Tensor:
    """−β acosh(1 + 2‖x − y‖² / ((1 − ‖x‖²)(1 − ‖y‖²))) in the open unit ball."""
    qq, kk = (q * q).sum(-1)[..., :, None], (k * k).sum(-1)[..., None, :]
    squared = torch.clamp(qq + kk - 2 * q @ k.mT, min=0.0)
    return -beta * torch.acosh(1 + 2 * squared / ((1 - qq) * (1 - kk)))


def _cosine(q: Tensor, k: Tensor) -> Tensor:
    return torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).mT


def cosine_scores(q: Tensor, k: Tensor, scale: float = 1.0) -> Tensor:
    return _cosine(q, k) * scale


def sphere_scores(q: Tensor, k: Tensor, beta: float = 1.0) -> Tensor:
    """−β acos(q̂ · k̂)."""
    return -beta * torch.acos(torch.clamp(_cosine(q, k), -1.0, 1.0))


def fisher_rao_scores(q: Tensor, k: Tensor, beta: float = 1.0) -> Tensor:
    """−2β acos Σ√(pq), for rows that are probability vectors."""
    overlap = torch.sqrt(q) @ torch.sqrt(k).mT
    return -2 * beta * torch.acos(torch.clamp(overlap, -1.0, 1.0))


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0, style: str = "half") -> Tensor:
    """Turn D/2 pairs of channels, each by a position times its own speed.

    Positions ``(N,)``, or ``(N, A)``, whose axis a turns the a-th of A equal shares of the pairs, with speeds
    1 … 1/base within each share. Pairs are (c, c + D/2) for ``half``, and (2c, 2c + 1) for ``pairs``.
    """
    width = x.shape[-1]
    positions = positions.to(x.dtype).reshape(len(positions), -1)
    share = width // 2 // positions.shape[1]
    speed = base ** (-torch.arange(share, dtype=x.dtype, device=x.device) / share)
    angle = (positions[:, :, None] * speed).flatten(1)
    one, other = x.chunk(2, -1) if style == "half" else (x[..., 0::2], x[..., 1::2])
    turned = (one * angle.cos() - other * angle.sin(), one * angle.sin() + other * angle.cos())
    return torch.cat(turned, -1) if style == "half" else torch.stack(turned, -1).flatten(-2)


def alibi(slopes: Tensor, n: int, m: int) -> Tensor:
    """The bias −slope_h · |i − j|, ``(H, N, M)``."""
    i = torch.arange(n, device=slopes.device)[:, None]
    j = torch.arange(m, device=slopes.device)[None, :]
    return -slopes[:, None, None] * (i - j).abs()


def causal(n: int, m: int, device: torch.device | None = None) -> Tensor:
    return torch.ones(n, m, dtype=torch.bool, device=device).tril()


def hyperboloid_transport(x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """v_j, tangent at y_j, carried along the geodesic to x_i: ``(B, H, N, M, D)``.

    v + ⟨x, v⟩ / (1 − ⟨x, y⟩) · (x + y), the Levi-Civita transport of the hyperboloid.
    """
    factor = lorentz_inner(x, v) / (1 - lorentz_inner(x, y))
    return v[..., None, :, :] + factor[..., None] * (x[..., :, None, :] + y[..., None, :, :])


def sphere_transport(x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """v_j, tangent at the unit vector y_j, carried along the geodesic to x_i: ``(B, H, N, M, D)``."""
    factor = (x @ v.mT) / (1 + x @ y.mT)
    return v[..., None, :, :] - factor[..., None] * (x[..., :, None, :] + y[..., None, :, :])


def transported_attention(scores: Tensor, carried: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Like :func:`attention`, for values that differ from row to row, ``(B, H, N, M, D)``."""
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    weights = torch.softmax(scores, -1)
    if allowed is not None:
        weights = torch.where(allowed.any(-1, keepdim=True), weights, 0.0)
    return (weights[..., None] * carried).sum(-2)
