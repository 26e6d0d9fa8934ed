"""Normal distributions wrapped onto a manifold by its exponential map."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, PointShapeError, Scalar, length, sinc, sinhc
from aatc.geometry.manifolds.hyperbolic import Hyperboloid, PoincareBall
from aatc.geometry.manifolds.sphere import Sphere
from aatc.geometry.preconditions import require


class WrappedNormal:
    """exp_μ of a normal vector with mean 0 and standard deviations ``scale`` along the axes of the tangent space at μ.

    ``manifold``: `Hyperboloid`, `PoincareBall` or `Sphere`, of dimension n. ``mean`` (..., *P) is a point of it, and
    ``scale`` (..., n), (..., 1) or a number is positive, in the unit of dist. The axes at μ are those of the first
    basis vector (of the ball the origin), carried to μ along the geodesic; for one scale for all they do not matter.
    Densities are with respect to the volume of the manifold: with r = |v| the normal density of v times
    (√c r/sinh √c r)^(n−1) in curvature −c. On the sphere of radius R the ways around are summed, further by 2πR each
    time, and to the other side by 2πR − r, as many as count at that scale; for n > 1 the density is infinite at −μ,
    and the ways round to μ itself are left out.
    Sources: Y. Nagano et al., "A wrapped normal distribution on hyperbolic space for gradient-based learning", 2019;
    E. Mathieu et al., "Continuous hierarchical representations with Poincaré variational auto-encoders", 2019.

    Raises: GeometryError for another manifold, a mean off the manifold and a scale that is not positive;
    PointShapeError for a scale that does not fit.
    """

    def __init__(
        self, manifold: Hyperboloid | PoincareBall | Sphere, mean: Tensor, scale: Tensor | float = 1.0
    ) -> None:
        if not isinstance(manifold, (Hyperboloid, PoincareBall, Sphere)):
            raise GeometryError(
                f"normal distributions are wrapped onto Hyperboloid, PoincareBall and Sphere, not {manifold!r}"
            )
        self.manifold = manifold
        mean = require(mean, ~manifold.belongs(mean)[..., None], GeometryError, f"a mean that is not on {manifold!r}")
        self.dim = mean.shape[-1] - (0 if isinstance(manifold, PoincareBall) else 1)
        spread = torch.as_tensor(scale, dtype=mean.dtype, device=mean.device)
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
            return torch.cat([origin[..., :1] + self.manifold.radius, origin[..., 1:]], -1)
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
        normal = torch.empty((*shape, *batch, self.dim), dtype=mean.dtype, device=mean.device)
        return self.manifold.exp(mean, self._spread_out(normal.normal_(generator=generator) * self.scale))

    def sample(self, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Points (*shape, ..., *P) without derivatives."""
        with torch.no_grad():
            return self.rsample(shape, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """The logarithm of the density at ``x`` (..., *P) with respect to the volume, (...), differentiable in all."""
        coordinates = self._coordinates(self.manifold.log(self.mean, x))
        if isinstance(self.manifold, Sphere):
            return self._log_prob_around(coordinates, self.manifold.radius)
        root = self.manifold.c**0.5
        stretch = sinhc(root * length(coordinates)).log().squeeze(-1)
        return self._normal(coordinates) - (self.dim - 1) * stretch

    def _normal(self, coordinates: Tensor) -> Tensor:
        """The logarithm of the normal density in the tangent space, (...)."""
        scale = self.scale.expand(*self.scale.shape[:-1], self.dim)
        whole = (coordinates / scale).square().sum(-1) / 2 + scale.log().sum(-1)
        return -whole - self.dim * math.log(2 * math.pi) / 2

    def _log_prob_around(self, coordinates: Tensor, radius: Scalar) -> Tensor:
        """Σ over k of the vectors (r + 2πRk) u, whose density is divided by |sin(r/R)/((r + 2πRk)/R)|^(n−1)."""
        r = length(coordinates)
        small = r < 1e-12 * radius
        axis = torch.zeros_like(coordinates)
        axis[..., 0] = 1
        direction = torch.where(small, axis, coordinates / torch.where(small, torch.ones_like(r), r))
        # beyond 9 standard deviations nothing counts
        widest = float(self.scale.detach().max() / radius)
        turns = int(min(64, 1 + math.ceil(9 * widest / (2 * math.pi))))
        terms = []
        for k in range(-turns, turns + 1):
            shift = 2 * math.pi * radius * k
            vector = coordinates + shift * direction
            if k == 0:
                stretch = sinc(r / radius).log()
            else:
                # sin(r/R) is sinc(r/R) r/R, and on the way round the factor 1/r stays: the point's own antipode
                size = (r + shift).abs() / radius
                stretch = (sinc(r / radius) * torch.where(small, torch.ones_like(r), r / radius)).log() - size.log()
            gain = self._normal(vector) - (self.dim - 1) * stretch.squeeze(-1)
            if k:
                gain = torch.where(small.squeeze(-1) & (self.dim > 1), torch.full_like(gain, -torch.inf), gain)
            terms.append(gain)
        return torch.stack(terms).logsumexp(0)
