"""The sphere of radius r in Rⁿ⁺¹, and its formulas as functions that the simplex uses too."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from aatc.geometry.manifold import (
    ATANC,
    COS,
    INVERSE_SINC,
    SINC,
    CutLocusError,
    GeometryError,
    Manifold,
    Scalar,
    dot,
    length,
    of,
    radial,
    scalar,
    shown,
)
from aatc.geometry.preconditions import require

_RADIUS = "the radius of a sphere"


def half_angle(difference: Tensor, total: Tensor) -> Tensor:
    """Half the angle between x and y of equal length, from y − x and y + x, (..., 1).

    atan2(|x − y|, |x + y|) equals asin(|x − y|/2r), keeps its digits near the antipode too, and its gradient is
    bounded everywhere (W. Kahan, "How futile are mindless assessments of roundoff", 2006, section 12).
    """
    return torch.atan2(length(difference), length(total))


def _bisector(difference: Tensor, total: Tensor) -> Tensor:
    """y − x made as long as half the angle is: even functions of its length are smooth at x = y, the angle is not."""
    tangent = difference / length(total)
    return radial(tangent, *ATANC) * tangent


def sphere_exp(x: Tensor, v: Tensor, radius: Scalar) -> Tensor:
    """cos(|v|/r) x + sin(|v|/r) r v/|v|."""
    angle = v / radius
    return radial(angle, *COS) * x + radial(angle, *SINC) * v


def sphere_log(x: Tensor, difference: Tensor, total: Tensor, radius: Scalar) -> Tensor:
    """θ/sin θ times the part of y tangent at x, which is that of y − x and of y + x, for points that are not antipodal.
    Beyond a right angle y + x is the smaller one, and the vector is its direction by the length of the way."""
    beyond = half_angle(difference.detach(), total.detach()) > math.pi / 4
    near = torch.where(beyond, total, difference)
    tangent = near - dot(x, near) / radius**2 * x
    size = torch.where(beyond, length(torch.where(beyond, tangent, x)), torch.ones_like(tangent[..., :1]))
    h = half_angle(torch.where(beyond, difference, x), torch.where(beyond, total, x))
    within = _bisector(torch.where(beyond, torch.zeros_like(difference), difference), torch.where(beyond, x, total))
    return torch.where(beyond, 2 * radius * h / size, radial(2 * within, *INVERSE_SINC)) * tangent


def sphere_geodesic(difference: Tensor, total: Tensor, t: Tensor, radius: Scalar) -> Tensor:
    """r cos((2t − 1)h) (x + y)/|x + y| + r sin((2t − 1)h) (y − x)/|y − x|, h being half the angle: the slerp of x and
    y, in the frame of their bisector, where it loses no digits near the antipode either."""
    h = _bisector(difference, total)
    turned = (2 * t - 1) * h
    # lengths that differ by rounding alone turn a small bisector away from the plane between x and y
    far = half_angle(difference.detach(), total.detach()) > math.pi / 4
    square = torch.where(far, dot(difference, difference), torch.ones_like(h[..., :1]))
    total = total - torch.where(far, dot(total, difference) / square, torch.zeros_like(square)) * difference
    along = (t - 0.5) * radial(turned, *SINC) / radial(h, *SINC)
    return radius * radial(turned, *COS) / length(total) * total + along * difference


def sphere_transport(y: Tensor, total: Tensor, v: Tensor) -> Tensor:
    """v − ⟨y, v⟩/(r² + ⟨x, y⟩) (x + y), where r² + ⟨x, y⟩ = |x + y|²/2."""
    return v - 2 * dot(y, v) / dot(total, total) * total


class Sphere(Manifold):
    """The sphere Sⁿ(r) = {x : |x| = r} with the metric of Rⁿ⁺¹, sectional curvature 1/r². Points (..., n + 1).

    ``radius`` is r. Great circles: exp(x, v) = cos(|v|/r) x + sin(|v|/r) r v/|v|; transport is the rotation in the
    plane of x and y, v − ⟨y, v⟩/(r² + ⟨x, y⟩)(x + y). Source: M. do Carmo, "Riemannian Geometry", 1992, chapter 3.

    ``radius`` may be a tensor of one entry, which learns: gradients by it are those at fixed coordinates.

    Raises: GeometryError for a radius that is not positive and finite, or no number, and for the projection of the zero
    vector; CutLocusError from ``log``, ``geodesic`` and ``transport`` between antipodes, |x + y| ≤ 16 ε r.
    """

    min_size = 2

    def __init__(self, radius: float | Tensor = 1.0) -> None:
        self.radius = scalar(_RADIUS, radius, positive=True)

    def __repr__(self) -> str:
        return f"Sphere(radius={shown(self.radius)})"

    def _parameters(self) -> Any:
        return ((_RADIUS, self.radius, True),)

    def _total(self, x: Tensor, y: Tensor) -> Tensor:
        total = x + y
        antipodal = self._unreachable(x, y)[..., None]
        message = "antipodal points of a sphere: every great circle through them is a shortest geodesic"
        return require(total, antipodal, CutLocusError, message)

    def _unreachable(self, x: Tensor, y: Tensor) -> Tensor:
        total = (x + y).detach()
        return (length(total) <= 16 * torch.finfo(total.dtype).eps * of(self.radius, total)).squeeze(-1)

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        return (2 * of(self.radius, x) * half_angle(y - x, y + x)).squeeze(-1)

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        return sphere_exp(x, v, of(self.radius, x))

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        return sphere_log(x, y - x, self._total(x, y), of(self.radius, x))

    def _geodesic(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return sphere_geodesic(y - x, self._total(x, y), t, of(self.radius, x))

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (u * v + torch.zeros_like(x)).sum(-1)

    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return sphere_transport(y, self._total(x, y), v)

    def _projection(self, x: Tensor) -> Tensor:
        size = length(x)
        size = require(size, size == 0, GeometryError, "the zero vector has no nearest point on a sphere")
        return x * (of(self.radius, x) / size)

    def _tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        return v - dot(x, v) / of(self.radius, x) ** 2 * x

    def _retraction(self, x: Tensor, v: Tensor) -> Tensor:
        return self._projection(x + v)

    def convexity_radius(self) -> float | Tensor:
        return math.pi / 2 * self.radius

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        return ((length(x) / of(self.radius, x) - 1).abs() <= atol).squeeze(-1)
