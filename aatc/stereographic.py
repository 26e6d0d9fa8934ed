"""Features as points of a space of constant curvature, before an attention compares them."""

from __future__ import annotations

import torch

from aatc.geometry.manifolds.kappa import TAN
from aatc.ir.reference import compute_dtype
from aatc.parts import as_tensor, captured, plain


def lifted(x: torch.Tensor, curvature: float | torch.Tensor) -> torch.Tensor:
    """Tangent vectors at the origin (B, H, N, D) as points tan_κ(|x|) x/|x|, κ one number or one per head, (H,); in
    single precision where ``x`` has less. In a ball, κ < 0, points keep 4 ε off the boundary."""
    x = x.to(compute_dtype(x.dtype))
    curvature = plain(curvature)
    if not isinstance(curvature, torch.Tensor):
        curvature = as_tensor(curvature, x.dtype, x.device) if captured(curvature) else float(curvature)
    kappa: float | torch.Tensor = curvature
    if isinstance(kappa, torch.Tensor):
        kappa = kappa.to(x.dtype)
        kappa = kappa.reshape(-1, 1, 1) if kappa.dim() else kappa
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    ratio = TAN(kappa, size)
    # of tan_κ(t) = tanh(√−κ t)/√−κ next to the boundary: 1 + κ|y|² is 0 in rounding from there on
    room = 4 * torch.finfo(x.dtype).eps
    inside = kappa * (size * ratio).square() > -((1 - room) ** 2)
    return torch.where(inside, ratio, (1 - room) * ratio) * x
