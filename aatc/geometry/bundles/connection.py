"""Parallel transport of a connection along paths: v' = −A(ẋ)v by a Magnus integrator of order 4.

A path is a function of times (T,) → base points (T, ..., n) on 0 ≤ t ≤ 1, or sampled points (T, ..., n), T ≥ 2,
joined by shortest geodesics of the base. Transport does not depend on the parametrisation.

Source: A. Iserles, S. Nørsett, "On the solution of linear differential equations in Lie groups", Phil. Trans. R. Soc.
A 357 (1999) 983; Hairer, Lubich, Wanner, "Geometric Numerical Integration", section IV.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, Manifold
from aatc.geometry.manifolds.orthogonal import matrix_exponential

PathFunction = Callable[[Tensor], Tensor]
Path = PathFunction | Tensor


class PathError(GeometryError):
    """A path whose values, samples or number of steps cannot be used."""


class LoopError(PathError):
    """A holonomy was asked of a path that does not return to its start; ``gap`` is the distance that is left."""

    def __init__(self, message: str, *, gap: float) -> None:
        super().__init__(message)
        self.gap = gap


def reversed_path(path: Path) -> Path:
    """The path run backwards."""
    if isinstance(path, Tensor):
        return path.flip(0)
    return lambda times: path(1 - times)


def piecewise_geodesic(manifold: Manifold, points: Tensor) -> PathFunction:
    """The path through ``points`` (T, ..., n) at equal times, each two joined by the shortest geodesic.

    Raises `PathError` for fewer than two points, and what ``manifold.geodesic`` raises.
    """
    check_samples(points)
    pieces = points.shape[0] - 1

    def path(times: Tensor) -> Tensor:
        place = times * pieces
        piece = place.detach().floor().long().clamp(0, pieces - 1)
        within = (place - piece).reshape(-1, *[1] * (points.ndim - 2))
        x, y = points[piece], points[piece + 1]
        still = (x == y).all(-1).detach()
        if not bool(still.any()):
            return manifold.geodesic(x, y, within)
        # At v = 0 the second derivatives of exp in the time and the ends are not those of |v|: the chord's are right.
        t = within.expand(still.shape)
        chord = manifold.projection(x[still] + t[still].unsqueeze(-1) * (y[still] - x[still]))
        value = torch.zeros_like(x).index_put((still,), chord)
        return value.index_put((~still,), manifold.geodesic(x[~still], y[~still], t[~still]))

    return path


def check_samples(points: Tensor) -> None:
    """Refuse sampled points with `PathError` unless they are (T, ..., n) with T ≥ 2."""
    if points.ndim < 2 or points.shape[0] < 2:
        raise PathError(f"sampled points have the shape (T, ..., n) with T ≥ 2, got {tuple(points.shape)}")


def evaluate(path: PathFunction, times: Tensor, dimension: int) -> Tensor:
    """``path(times)``, (T, ..., n), refused with `PathError` unless it has one finite point for each time."""
    # Contiguous: forward mode refuses expanded tensors.
    points = path(times).contiguous()
    if points.ndim < 2 or points.shape[0] != times.shape[0] or points.shape[-1] != dimension:
        raise PathError(
            f"a path takes times (T,) to base points (T, ..., {dimension}); for {tuple(times.shape)} it gave "
            f"{tuple(points.shape)}"
        )
    if not bool(points.detach().isfinite().all()):
        raise PathError("the path has points that are not finite")
    return points


def points_and_velocities(path: PathFunction, times: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """x(t) and ẋ(t), each (T, ..., n), the velocity by forward differentiation."""
    result = torch.func.jvp(lambda t: evaluate(path, t, dimension), (times,), (torch.ones_like(times),))
    return result[0], result[1]


def partials(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∂f/∂x_i stacked along a new first axis, (m, ...), of a function that treats the points (..., m) apart."""
    basis = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return torch.stack([torch.func.jvp(function, (x,), (e.expand_as(x),))[1] for e in basis])


def gauss_grid(steps: int, dtype: torch.dtype, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """The ends (steps + 1,) of equal steps on [0, 1], and the two Gauss nodes of each, (steps, 2)."""
    ends = torch.arange(steps + 1, dtype=dtype, device=device) / steps
    offsets = torch.tensor([0.5 - math.sqrt(3) / 6, 0.5 + math.sqrt(3) / 6], dtype=dtype, device=device)
    return ends, (torch.arange(steps, dtype=dtype, device=device).unsqueeze(-1) + offsets) / steps


def magnus_factor(first: Tensor, second: Tensor, h: float) -> Tensor:
    """The solution of U' = a(t)U after a step of length h, from a at the two Gauss nodes, (..., r, r).

    exp(h(a₁ + a₂)/2 − (√3/12) h² [a₁, a₂]): local error O(h⁵). The exponent lies in the Lie algebra that the a's
    span, so that skew matrices give orthogonal ones to rounding.
    """
    bracket = first @ second - second @ first
    step: Tensor = matrix_exponential((0.5 * h) * (first + second) - (math.sqrt(3) / 12 * h * h) * bracket)
    return step


def ordered_product(factors: Tensor) -> Tensor:
    """U_{N−1} ⋯ U_1 U_0 of (N, ..., r, r), by halving."""
    while factors.shape[0] > 1:
        paired = factors.shape[0] // 2 * 2
        products = factors[1:paired:2] @ factors[0:paired:2]
        factors = torch.cat([products, factors[paired:]])
    return factors[0]


def check_steps(steps: int, pieces: int) -> int:
    """``steps`` raised to a multiple of ``pieces``, so that no step has a corner inside. Raises `PathError`."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise PathError(f"steps = {steps!r}: must be an integer ≥ 1")
    return -(-steps // pieces) * pieces
