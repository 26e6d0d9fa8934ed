"""Parallel transport along curves in a chart: geodesics at their times, functions of the time, sampled points.

Along a polygon of geodesics the transport of a whole basis is found piece by piece, all pieces at once, and the pieces
are multiplied. Source: M. do Carmo, "Riemannian Geometry", 1992, section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aatc.geometry.manifold import PointShapeError
from aatc.geometry.manifolds.integrate import rk4_linear

if TYPE_CHECKING:
    from aatc.geometry.manifolds.riemannian import RiemannianStructure

Contraction = Callable[[Tensor, Tensor, Tensor], Tensor]


def transported(gamma: Contraction, points: Tensor, velocities: Tensor, vector: Tensor, times: Tensor) -> Tensor:
    """``vector`` (..., n) at ``times`` (T,) with ẇ = −Γ(ẋ, w), (T, ..., n), by one RK4 step between neighbours.

    ``points`` and ``velocities`` (2T − 1, ..., n) are those of the curve at the times and halfway between; their batch
    axes broadcast with the vector's. ``gamma(x, u, v)`` is Γ^k_ij u^i v^j.
    """
    batch = torch.broadcast_shapes(points.shape[1:], vector.shape)
    whole = (points.shape[0], *batch)
    # Axes of the vector's batch that the path lacks come after time.
    gap = [1] * (len(batch) + 1 - points.dim())
    # Contiguous: forward mode inside a user's metric refuses expanded tensors.
    points, velocities = (
        t.reshape(t.shape[0], *gap, *t.shape[1:]).expand(whole).contiguous() for t in (points, velocities)
    )
    return rk4_linear(lambda i, w: -gamma(points[i], velocities[i], w), vector.expand(batch), times)


def polygon_transport(structure: RiemannianStructure, points: Tensor, vector: Tensor, steps: int) -> Tensor:
    """``vector`` (..., n) at the first of ``points`` (T, ..., n), carried along the geodesics from each to the next.

    (T, ..., n), one for each point; ``steps`` RK4 steps in all, raised to a multiple of the T − 1 pieces. Raises
    PointShapeError for fewer than two points, and what `RiemannianStructure.geodesic_between` raises.
    """
    if points.ndim < 2 or points.shape[0] < 2:
        raise PointShapeError(f"sampled points are (T, ..., n) with T ≥ 2, got {tuple(points.shape)}")
    structure._check(points[0], vector)
    each = -(-steps // (points.shape[0] - 1))
    times = torch.linspace(0, 1, each + 1, dtype=points.dtype, device=points.device)
    pieces = structure.geodesic_between(points[:-1], points[1:], times)
    n = points.shape[-1]
    basis = torch.eye(n, dtype=points.dtype, device=points.device)
    basis = basis.reshape(n, *[1] * (points.ndim - 1), n).expand(n, *points[:-1].shape)
    carried = structure.parallel_transport(pieces, basis)[-1]
    batch = torch.broadcast_shapes(points.shape[1:], vector.shape)
    values = [vector.expand(batch)]
    for piece in range(points.shape[0] - 1):
        values.append(torch.einsum("...i,i...k->...k", values[-1], carried[:, piece]))
    return torch.stack(values)
