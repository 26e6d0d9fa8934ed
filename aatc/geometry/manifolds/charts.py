"""Closed forms of well-known metrics in one chart: metric, inverse, connection and domain.

Every function takes points x (..., n) and, for connections, vectors u, v of that shape, and gives Γ^k_ij u^i v^j.
Sources: B. O'Neill, "Semi-Riemannian Geometry", 1983, chapter 3, for the sphere; J. Lee, "Introduction to Riemannian
Manifolds", 2018, proposition 7.29, for conformal metrics; S. Amari, H. Nagaoka, "Methods of Information Geometry",
2000, section 2.2, for the simplex.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, Scalar, dot, of
from aatc.geometry.manifolds.curvature import pullback

Field = Callable[[Tensor], Tensor]


class ChartError(GeometryError):
    """A chart that does not exist, points outside it, a path that leaves it, or a value there that is not finite."""


def _identity(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)


def conformal_metric(factor: Field) -> Field:
    """λ(x)² δ_ij."""
    return lambda x: factor(x).square()[..., None, None] * _identity(x)


def conformal_inverse(factor: Field) -> Field:
    """δ^ij / λ(x)²."""
    return lambda x: _identity(x) / factor(x).square()[..., None, None]


def conformal_connection(slope: Field) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(q·u) v + (q·v) u − (u·v) q with q = ``slope(x)`` = grad log λ, (..., n)."""

    def connection(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        q = slope(x)
        return dot(q, u) * v + dot(q, v) * u - dot(u, v) * q

    return connection


def log_slope(factor: Field) -> Field:
    """grad log λ by reverse mode, (..., n)."""

    def slope(x: Tensor) -> Tensor:
        value, pull = pullback(lambda y: factor(y).log(), x)
        return pull(torch.ones_like(value))[0]

    return slope


def euclidean_metric(x: Tensor) -> Tensor:
    """δ_ij."""
    return _identity(x).expand(*x.shape, x.shape[-1])


def euclidean_connection(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """0."""
    return 0 * (u * v)


def simplex_metric(p: Tensor) -> Tensor:
    """δ_ij/p_i + 1/p_0 with p_0 = 1 − Σp."""
    rest = 1 - p.sum(-1)
    return torch.diag_embed(1 / p) + (1 / rest)[..., None, None]


def simplex_inverse(p: Tensor) -> Tensor:
    """δ^ij p_i − p_i p_j."""
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def simplex_connection(p: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """−u_k v_k/(2 p_k) + ½ p_k g(u, v)."""
    parts = u * v / p
    rest = 1 - p.sum(-1, keepdim=True)
    total = parts.sum(-1, keepdim=True) + u.sum(-1, keepdim=True) * v.sum(-1, keepdim=True) / rest
    return 0.5 * (p * total - parts)


def simplex_domain(p: Tensor) -> Tensor:
    """p_i > 0 and Σp < 1."""
    return (p > 0).all(-1) & (p.sum(-1) < 1)


def polar_metric(radius: Scalar) -> Field:
    """r² diag(1, sin²θ) for coordinates (θ, φ)."""

    def metric(x: Tensor) -> Tensor:
        theta = x[..., 0]
        return of(radius, x) ** 2 * torch.diag_embed(torch.stack((torch.ones_like(theta), theta.sin().square()), -1))

    return metric


def polar_connection(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Γ^θ_φφ = −sin θ cos θ and Γ^φ_θφ = cot θ."""
    sin, cos = x[..., 0].sin(), x[..., 0].cos()
    down = -sin * cos * u[..., 1] * v[..., 1]
    return torch.stack((down, cos / sin * (u[..., 0] * v[..., 1] + u[..., 1] * v[..., 0])), -1)


def polar_domain(x: Tensor) -> Tensor:
    """0 < θ < π."""
    return (x[..., 0] > 0) & (x[..., 0] < torch.pi)


def half_plane_factor(x: Tensor) -> Tensor:
    """1/y."""
    return 1 / x[..., 1]


def half_plane_slope(x: Tensor) -> Tensor:
    """(0, −1/y)."""
    return torch.stack((torch.zeros_like(x[..., 0]), -1 / x[..., 1]), -1)


def round_factor(curvature: Scalar) -> Field:
    """2/(1 + K|x|²), of sectional curvature K: the sphere for K > 0, the Poincaré ball for K < 0."""
    return lambda x: 2 / (1 + of(curvature, x) * dot(x, x)).squeeze(-1)


def round_slope(curvature: Scalar) -> Field:
    """−2K x/(1 + K|x|²)."""
    return lambda x: -2 * of(curvature, x) * x / (1 + of(curvature, x) * dot(x, x))


def round_domain(curvature: Scalar) -> Field:
    """1 + K|x|² > 0."""
    return lambda x: (1 + of(curvature, x) * dot(x, x) > 0).squeeze(-1)
