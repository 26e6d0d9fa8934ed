"""Length of and parallel transport along curves that are given by points."""

from __future__ import annotations

import torch
from torch import Tensor

from aatc.geometry.arguments import arguments
from aatc.geometry.manifold import Manifold, PointShapeError


def _check_curve(manifold: Manifold, curve: Tensor) -> None:
    manifold._check(curve)
    if curve.ndim < 1 + manifold.point_ndim or curve.shape[0] == 0:
        raise PointShapeError(f"a sampled curve has the shape (T, ..., *P) with T ≥ 1, got {tuple(curve.shape)}")


@arguments(manifold=Manifold, curve=Tensor)
def curve_length(manifold: Manifold, curve: Tensor) -> Tensor:
    """The length of the geodesics between successive points (T, ..., *P), (...); below that of the curve by O(1/T²)."""
    _check_curve(manifold, curve)
    return manifold.dist(curve[:-1], curve[1:]).sum(0)


@arguments(manifold=Manifold, curve=Tensor, v=Tensor)
def transport_along(manifold: Manifold, curve: Tensor, v: Tensor) -> Tensor:
    """Parallel transport of ``v`` (..., *P), tangent at the first of the points (T, ..., *P), to each of them.

    (T, ..., *P), the first being ``v``. It is exact along the geodesics between successive points, and off by O(1/T²)
    from that along a smooth curve through them. Round a closed curve the last entry is the holonomy of ``v``.

    Raises: PointShapeError for what is no curve; what ``transport`` of the manifold raises.
    """
    _check_curve(manifold, curve)
    manifold._check(curve[0], v)
    manifold._check_values((curve,), (v,))
    shape = torch.broadcast_shapes(curve.shape[1:], v.shape)
    carried = [v.expand(shape)]
    for start, end in zip(curve[:-1].unbind(0), curve[1:].unbind(0)):
        carried.append(manifold.transport(start, end, carried[-1]).expand(shape))
    return torch.stack(carried)
