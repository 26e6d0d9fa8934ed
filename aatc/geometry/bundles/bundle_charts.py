"""Charts of a base manifold; the conformally flat charts of spheres and hyperboloids, their connection and frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.manifold import Scalar, dot, length, of, root
from aatc.geometry.manifolds.hyperbolic import Hyperboloid
from aatc.geometry.manifolds.sphere import Sphere

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Chart:
    """Coordinates on an open part of the base.

    ``coordinates``: base points (..., n) → (..., m); ``point``: its inverse; ``margin``: (..., n) → (...), positive
    exactly on the chart's domain and larger the deeper a point lies in it, so that margins of charts compare.
    """

    name: str
    coordinates: Map
    point: Map
    margin: Map

    def contains(self, point: Tensor) -> Tensor:
        """Whether base points (..., n) lie in the domain, bool (...)."""
        return self.margin(point) > 0


def whole_space() -> Chart:
    """The one chart of Rⁿ."""
    return Chart("whole", lambda x: x, lambda y: y, lambda x: torch.ones_like(x[..., 0]))


def _flip(y: Tensor) -> Tensor:
    """The last coordinate with its sign changed."""
    return torch.cat([y[..., :-1], -y[..., -1:]], -1)


def stereographic_charts(sphere: Sphere) -> tuple[Chart, Chart]:
    """``north`` and ``south`` of Sᵐ(r): projections from the opposite poles ∓r e_{m+1}, domains ±x_{m+1} > −0.8 r.

    With x = (s, z): y = s/(r + z) and y = σ s/(r − z), where σ turns the last coordinate round and thereby makes
    both charts of one orientation. The equator is |y| = 1 in either. Source: J. Lee, "Riemannian Manifolds", 1997,
    chapter 3.
    """

    def r(x: Tensor) -> Scalar:
        return of(sphere.radius, x)

    def north_point(y: Tensor) -> Tensor:
        square = dot(y, y)
        return torch.cat([2 * y, 1 - square], -1) * (r(y) / (1 + square))

    def south_point(y: Tensor) -> Tensor:
        square = dot(y, y)
        return torch.cat([2 * _flip(y), square - 1], -1) * (r(y) / (1 + square))

    def height(x: Tensor) -> Tensor:
        return (x[..., -1:] / r(x)).squeeze(-1)

    north = Chart("north", lambda x: x[..., :-1] / (r(x) + x[..., -1:]), north_point, lambda x: height(x) + 0.8)
    south = Chart("south", lambda x: _flip(x[..., :-1]) / (r(x) - x[..., -1:]), south_point, lambda x: 0.8 - height(x))
    return north, south


def ball_chart(space: Hyperboloid) -> Chart:
    """The unit ball as the one chart of the hyperboloid of curvature −c: y = √c x_space/(1 + √c x_0)."""

    def point(y: Tensor) -> Tensor:
        square = dot(y, y)
        return torch.cat([1 + square, 2 * y], -1) / (root(of(space.c, y)) * (1 - square))

    def coordinates(x: Tensor) -> Tensor:
        scaled = root(of(space.c, x)) * x
        return scaled[..., 1:] / (1 + scaled[..., :1])

    return Chart("ball", coordinates, point, lambda x: torch.ones_like(x[..., 0]))


def angle_charts() -> tuple[Chart, Chart]:
    """``right`` and ``left`` of the circle: angles in (−π, π) and (0, 2π), |cos| ≥ 0.99 on the far side left out."""

    def circle(y: Tensor) -> Tensor:
        return torch.cat([y.cos(), y.sin()], -1)

    def left_angle(x: Tensor) -> Tensor:
        return math.pi + torch.atan2(-x[..., 1:], -x[..., :1])

    right = Chart("right", lambda x: torch.atan2(x[..., 1:], x[..., :1]), circle, lambda x: 0.99 + x[..., 0])
    return right, Chart("left", left_angle, circle, lambda x: 0.99 - x[..., 0])


def conformal_connection(sign: int) -> Map:
    """The Levi-Civita 1-forms of the metric 4 |dy|²/(1 + sign·|y|²)² in the orthonormal frame along ∂/∂y.

    (..., m) → (..., m, m, m): A_k = e_k ∇φᵀ − ∇φ e_kᵀ with φ = log 2/(1 + sign·|y|²), from Cartan's first equation
    dθ = −A∧θ. A constant factor of the metric changes nothing. Source: do Carmo, "Differential Forms and
    Applications", 1994, chapter 5.
    """

    def form(y: Tensor) -> Tensor:
        slope = -2 * sign * y / (1 + sign * dot(y, y))
        one = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
        outer = one.unsqueeze(-1) * slope[..., None, None, :]
        return outer - outer.mT

    return form


def sphere_frame(radius: Scalar, pole: int) -> Map:
    """The orthonormal frame of the chart ``north`` (pole 1) or ``south`` (pole −1): x ↦ columns (..., m + 1, m)."""

    def frame(x: Tensor) -> Tensor:
        unit = x / of(radius, x)
        side, height = unit[..., :-1], unit[..., -1:]
        one = torch.eye(side.shape[-1], dtype=x.dtype, device=x.device)
        upper = one - side.unsqueeze(-1) * (side / (1 + pole * height)).unsqueeze(-2)
        columns = torch.cat([upper, -pole * side.unsqueeze(-2)], -2)
        return columns if pole > 0 else _flip(columns)

    return frame


def ball_frame(c: Scalar) -> Map:
    """The orthonormal frame of `ball_chart`: x ↦ columns (..., m + 1, m), orthonormal in the Lorentz product."""

    def frame(x: Tensor) -> Tensor:
        scaled = root(of(c, x)) * x
        time, side = scaled[..., :1], scaled[..., 1:]
        one = torch.eye(side.shape[-1], dtype=x.dtype, device=x.device)
        lower = one + side.unsqueeze(-1) * (side / (1 + time)).unsqueeze(-2)
        return torch.cat([side.unsqueeze(-2), lower], -2)

    return frame


def sphere_tangent_transition(x: Tensor) -> Tensor:
    """g_north,south of the frames above: (1 − 2uuᵀ)σ with u the direction of (x_1, …, x_m), (..., m, m)."""
    side = x[..., :-1]
    unit = side / length(side)
    one = torch.eye(side.shape[-1], dtype=x.dtype, device=x.device)
    return _flip(one - 2 * unit.unsqueeze(-1) * unit.unsqueeze(-2))


def rotation(angle: Tensor) -> Tensor:
    """exp(angle·J), J = [[0, −1], [1, 0]]: (...) → (..., 2, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
