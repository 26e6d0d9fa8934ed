"""Features as points of a space of constant curvature, before an attention compares them."""

from __future__ import annotations

import torch

from aatc.geometry.manifolds.kappa import TAN
from aatc.ir.errors import CaptureError
from aatc.ir.reference import compute_dtype
from aatc.ir.score.evaluate import expand_heads
from aatc.parts import as_tensor, captured, plain, same


def lifted_pair(q: torch.Tensor, k: torch.Tensor, curvature: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`lifted` queries (B, H, N, D) and keys (B, Hk, M, D), Hk dividing H. With a curvature per query head the keys are
    as many points as there are such heads, (B, H, M, D). CaptureError unless κ is one number or one per query head."""
    curvature = plain(curvature)
    if isinstance(curvature, torch.Tensor) and curvature.numel() > 1:
        if curvature.dim() != 1 or not same(curvature.shape[0], q.shape[1]):
            raise CaptureError(
                f"curvature has shape {tuple(curvature.shape)} for {q.shape[1]} query heads",
                hint="it is one number, or one per head of the queries: () or (H,)",
            )
        k = expand_heads(k, q.shape[1])
    return lifted(q, curvature), lifted(k, curvature)


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
