"""Normal distributions wrapped onto a manifold by its exponential map."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, PointShapeError, Scalar, dot, length, of, sinhc
from aatc.geometry.manifolds.hyperbolic import Hyperboloid, PoincareBall
from aatc.geometry.manifolds.lattice_sum import log_lattice_sum
from aatc.geometry.manifolds.sphere import Sphere
from aatc.geometry.preconditions import require


class WrappedNormal:
    """exp_μ of a normal vector with mean 0 and standard deviations ``scale`` along the axes of the tangent space at μ.

    ``manifold``: `Hyperboloid`, `PoincareBall` or `Sphere`, of dimension n. ``mean`` (..., *P) is a point of it, and
    ``scale`` (..., n), (..., 1) or a number is positive, in the unit of dist. The axes at μ are those of the first
    basis vector (of the ball the origin), carried to μ along the geodesic; for one scale for all they do not matter.
    Densities are with respect to the volume of the manifold: with r = |v| the normal density of v times
    (√c r/sinh √c r)^(n−1) in curvature −c. On the sphere of radius R the ways around are summed, further by 2πR each
    time, and to the other side by 2πR − r, all of them (`log_lattice_sum`); for n > 1 the density is infinite at −μ,
    which log refuses, and the ways round to μ itself are left out.
    Sources: Y. Nagano et al., "A wrapped normal distribution on hyperbolic space for gradient-based learning", 2019;
    E. Mathieu et al., "Continuous hierarchical representations with Poincaré variational auto-encoders", 2019.

    Results have the dtype of mean and points. Raises: GeometryError for another manifold, a mean off the manifold and a
    scale that is not positive; PointShapeError for a scale that does not fit, and for what is no tensor.
    """

    def __init__(
        self, manifold: Hyperboloid | PoincareBall | Sphere, mean: Tensor, scale: Tensor | float = 1.0
    ) -> None:
        if not isinstance(manifold, (Hyperboloid, PoincareBall, Sphere)):
            raise GeometryError(
                f"normal distributions are wrapped onto Hyperboloid, PoincareBall and Sphere, not {manifold!r}"
            )
        self.manifold = manifold
        manifold._check(mean)
        mean = require(mean, ~manifold.belongs(mean)[..., None], GeometryError, f"a mean that is not on {manifold!r}")
        self.dim = mean.shape[-1] - (0 if isinstance(manifold, PoincareBall) else 1)
        try:
            spread = torch.as_tensor(scale, dtype=mean.dtype, device=mean.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise PointShapeError(f"a scale is a number or a tensor, got {scale!r}") from error
        spread = spread if spread.ndim else spread[None]
        try:
            if spread.shape[-1] not in (1, self.dim):
                raise RuntimeError
            torch.broadcast_shapes(spread.shape[:-1], mean.shape[:-1])
        except RuntimeError as error:
            raise PointShapeError(
                f"scale of shape {tuple(spread.shape)} for a mean of shape {tuple(mean.shape)}: "
                f"it is a number, (..., 1) or (..., {self.dim})"
            ) from error
        bad = ~((spread > 0) & spread.isfinite())
        self.mean, self.scale = mean, require(spread, bad, GeometryError, "scales are positive and finite")

    def __repr__(self) -> str:
        return f"WrappedNormal({self.manifold!r}, dim={self.dim})"

    @property
    def batch_shape(self) -> torch.Size:
        """(...) of mean and scale together."""
        return torch.Size(torch.broadcast_shapes(self.mean.shape[:-1], self.scale.shape[:-1]))

    def _origin(self) -> Tensor:
        """The point whose axes are those of the coordinates."""
        origin = torch.zeros_like(self.mean)
        if isinstance(self.manifold, Hyperboloid):
            return self.manifold.projection(origin)
        if isinstance(self.manifold, Sphere):
            return torch.cat([origin[..., :1] + of(self.manifold.radius, origin), origin[..., 1:]], -1)
        return origin

    def _frame(self) -> tuple[Tensor, Tensor]:
        """The origin, and the sign that takes a mean beyond a right angle from it to the half of the sphere where the
        geodesic from it is unique."""
        origin = self._origin()
        if not isinstance(self.manifold, Sphere):
            return origin, torch.ones_like(self.mean[..., :1])
        side = torch.where(self.mean[..., :1] < 0, -1.0, 1.0).to(self.mean.dtype)
        return side * origin, side

    def _spread_out(self, normal: Tensor) -> Tensor:
        """Tangent vectors at the mean of coordinates (..., n) in its axes."""
        origin, _ = self._frame()
        if isinstance(self.manifold, PoincareBall):
            return self.manifold.transport(origin, self.mean, normal / 2)
        return self.manifold.transport(origin, self.mean, torch.cat([torch.zeros_like(normal[..., :1]), normal], -1))

    def _coordinates(self, v: Tensor) -> Tensor:
        """The inverse of `_spread_out`."""
        origin, _ = self._frame()
        back = self.manifold.transport(self.mean, origin, v)
        return 2 * back if isinstance(self.manifold, PoincareBall) else back[..., 1:]

    def rsample(self, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Points (*shape, ..., *P), differentiable in mean and scale."""
        mean, batch = self.mean, self.batch_shape
        normal = torch.randn((*shape, *batch, self.dim), generator=generator, dtype=mean.dtype, device=mean.device)
        return self.manifold.exp(mean, self._spread_out(normal * self.scale))

    def sample(self, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Points (*shape, ..., *P) without derivatives."""
        with torch.no_grad():
            return self.rsample(shape, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """The logarithm of the density at ``x`` (..., *P) with respect to the volume, (...), differentiable in all.

        Raises: as ``log`` of the manifold; at the antipode of the mean only for n > 1.
        """
        dtype = torch.promote_types(self.mean.dtype, x.dtype) if isinstance(x, Tensor) else self.mean.dtype
        if isinstance(self.manifold, Sphere):
            return self._log_prob_around(self._angles(self.manifold, x), of(self.manifold.radius, self.mean)).to(dtype)
        coordinates = self._coordinates(self.manifold.log(self.mean, x))
        stretch = self._log_sinhc(of(self.manifold.c, coordinates) ** 0.5 * length(coordinates)).squeeze(-1)
        return (self._normal(coordinates) - (self.dim - 1) * stretch).to(dtype)

    @staticmethod
    def _log_sinhc(z: Tensor) -> Tensor:
        """log(sinh(z)/z) of z ≥ 0, beyond the range of sinh too."""
        large = z > 1
        far = torch.where(large, z, torch.ones_like(z))
        near = torch.where(large, torch.zeros_like(z), z)
        return torch.where(large, far - (2 * far).log() + torch.log1p(-(-2 * far).exp()), sinhc(near).log())

    def _normal(self, coordinates: Tensor) -> Tensor:
        """The logarithm of the normal density in the tangent space, (...)."""
        scale = self.scale.expand(*self.scale.shape[:-1], self.dim)
        whole = (coordinates / scale).square().sum(-1) / 2 + scale.log().sum(-1)
        return -whole - self.dim * math.log(2 * math.pi) / 2

    def _angles(self, sphere: Sphere, x: Tensor) -> Tensor:
        """Coordinates of the shortest way to x. On the circle, where one round more is the same point, those of the
        antipode, too."""
        if self.dim > 1:
            return self._coordinates(sphere.log(self.mean, x))
        sphere._check(self.mean, x)
        sphere._check_values((x,))
        a, b = self.mean, x
        across = a[..., :1] * b[..., 1:] - a[..., 1:] * b[..., :1]
        angle: Tensor = of(sphere.radius, x) * torch.atan2(across, dot(a, b))
        return angle

    def _log_prob_around(self, coordinates: Tensor, radius: Scalar) -> Tensor:
        """Σ over k of the vectors (r + 2πRk) u, whose density is divided by |sin(r/R)/((r + 2πRk)/R)|^(n−1)."""
        turn, power = 2 * math.pi * radius, self.dim - 1
        scale = self.scale.expand(*self.scale.shape[:-1], self.dim)
        flat = -scale.log().sum(-1) - self.dim * math.log(2 * math.pi) / 2
        if not power:
            part, across = (coordinates / turn).squeeze(-1), (turn / scale).squeeze(-1)
            return flat + log_lattice_sum(part, across.square() / 2, 0)
        r = length(coordinates)
        at_mean = r < 1e-12 * radius  # where the ways round are left out
        fine = torch.where(at_mean, torch.ones_like(coordinates), coordinates)
        part = length(fine) / turn
        epsilon = (turn * fine / length(fine) / scale).square().sum(-1) / 2
        part = torch.where(at_mean, torch.full_like(part, 0.25), part).squeeze(-1)
        sine = (2 * math.pi * part).sin()
        around = log_lattice_sum(part, epsilon, power) + power * (2 * math.pi / sine).log()
        return torch.where(at_mean.squeeze(-1), self._normal(coordinates), flat + around)
