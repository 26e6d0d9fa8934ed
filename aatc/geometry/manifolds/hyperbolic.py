"""Hyperbolic space of curvature −c: the hyperboloid and the Poincaré ball, and the isometry between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce, wraps

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, Manifold, asinhc, dot, length, safe_sqrt, sinhc, tanhc


def lorentz(u: Tensor, v: Tensor) -> Tensor:
    """−u₀v₀ + Σ uᵢvᵢ over the last axis, which is kept with size 1."""
    return dot(u[..., 1:], v[..., 1:]) - u[..., :1] * v[..., :1]


def _weights(half_sinh: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """sinh((1 − t)d)/sinh(d) and sinh(td)/sinh(d), of sinh(d/2): the geodesic is x and y with these weights."""
    d = 2 * half_sinh.asinh()
    return (1 - t) * sinhc((1 - t) * d) / sinhc(d), t * sinhc(t * d) / sinhc(d)


def _wide(x: Tensor) -> Tensor:
    """``x`` in double precision, where there is any: near the boundary of the ball 1 − c|x|² is all rounding else."""
    return x if x.dtype == torch.float64 or x.device.type == "mps" else x.double()


def _in_double(points: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """A formula of the hyperboloid, whose numbers of size e^r cancel, evaluated in double precision and rounded. Of its
    first arguments, so many points, x₀ is computed again: its own rounding takes them off the hyperboloid."""

    def decorate(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(formula)
        def run(self: Hyperboloid, *tensors: Tensor) -> Tensor:
            dtype = reduce(torch.promote_types, (t.dtype for t in tensors))
            wide = [_wide(t) for t in tensors]
            return formula(self, *map(self._projection, wide[:points]), *wide[points:]).to(dtype)

        return run

    return decorate


def _positive(c: float) -> float:
    if not (math.isfinite(c) and c > 0):
        raise GeometryError(f"c is positive and finite, for curvature −c; got {c}")
    return float(c)


class Hyperboloid(Manifold):
    """Hⁿ = {x : ⟨x, x⟩_L = −1/c, x₀ > 0} with ⟨x, y⟩_L = −x₀y₀ + Σxᵢyᵢ, curvature −c. Points (..., n + 1).

    dist = (2/√c) asinh(√c |x − y|_L/2), which keeps its digits for near points; Lorentz products lose a factor
    e^{2r√c} of precision at distance r from the vertex, so they are formed in double precision. exp(x, v) =
    cosh(√c|v|) x + sinh(√c|v|) v/(√c|v|); transport v + c⟨y, v⟩/(1 − c⟨x, y⟩)(x + y). ``projection`` keeps the
    coordinates 1..n and computes x₀; maps read these of points, and ``exp`` of vectors, too: x₀ and v₀ follow, and
    their own rounding would outweigh the rest. Source: J. Ratcliffe, "Foundations of Hyperbolic Manifolds", chapter 3.

    Raises: GeometryError for c that is not positive.
    """

    min_size = 2

    def __init__(self, c: float = 1.0) -> None:
        self.c = _positive(c)

    def __repr__(self) -> str:
        return f"Hyperboloid(c={self.c})"

    def _half_sinh(self, x: Tensor, y: Tensor) -> Tensor:
        """sinh(√c dist/2)."""
        difference = y - x
        return safe_sqrt(lorentz(difference, difference) * (self.c / 4))

    @_in_double(2)
    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        return (2 / math.sqrt(self.c)) * self._half_sinh(x, y).asinh().squeeze(-1)

    @_in_double(1)
    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        space = v[..., 1:]  # v₀ follows from tangency, which rounding takes from vectors far from the vertex
        time = dot(x[..., 1:], space) / x[..., :1]
        angle = safe_sqrt((dot(space, space) - time.square()) * self.c)
        return self._projection(angle.cosh() * x + sinhc(angle) * torch.cat([time, space], -1))

    @_in_double(2)
    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        s = self._half_sinh(x, y)
        return asinhc(s) / (1 + s * s).sqrt() * self._tangent_projection(x, y - x)

    @_in_double(2)
    def _geodesic(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        a, b = _weights(self._half_sinh(x, y), t)
        return self._projection(a * x + b * y)

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (lorentz(u, v) + torch.zeros_like(x[..., :1])).squeeze(-1)

    @_in_double(2)
    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return v + self.c * lorentz(y, v) / (1 - self.c * lorentz(x, y)) * (x + y)

    def _projection(self, x: Tensor) -> Tensor:
        space = x[..., 1:]
        return torch.cat([(dot(space, space) + 1 / self.c).sqrt(), space], -1)

    def _tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        return v + self.c * lorentz(x, v) * x

    def _egrad2rgrad(self, x: Tensor, gradient: Tensor) -> Tensor:
        return self._tangent_projection(x, torch.cat([-gradient[..., :1], gradient[..., 1:]], -1))

    def _retraction(self, x: Tensor, v: Tensor) -> Tensor:
        return self._projection(x + v)

    def convexity_radius(self) -> float:
        return math.inf

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        expected = self._projection(x)[..., 0]
        return ((x[..., 0] - expected).abs() <= atol * expected) & x.isfinite().all(-1)


class PoincareBall(Manifold):
    """The ball {x : c|x|² < 1} with the metric λ² δ, λ = 2/(1 − c|x|²), curvature −c. Points (..., n).

    dist = (2/√c) asinh(√c|x − y|/√((1 − c|x|²)(1 − c|y|²))), exp(x, v) = x ⊕ tanh(√cλ|v|/2) v/(√c|v|), transport
    (λ_x/λ_y) gyr[y, −x]v. Differences are formed before they are squared, and −x ⊕ y as
    ((1 − c|x|²)(y − x) − c|y − x|² x)/((1 − c|x|²)(1 − c|y|²) + c|y − x|²). Source: A. Ungar, "Analytic Hyperbolic
    Geometry", 2005, chapter 3; Ganea, Bécigneul, Hofmann, "Hyperbolic neural networks", 2018.

    ``projection`` and ``exp`` keep points within √c|x| ≤ 1 − 4ε, ε being that of the dtype, and 1 − c|x|² is taken
    to be at least 4ε.

    Raises: GeometryError for c that is not positive.
    """

    def __init__(self, c: float = 1.0) -> None:
        self.c = _positive(c)

    def __repr__(self) -> str:
        return f"PoincareBall(c={self.c})"

    def to_hyperboloid(self, x: Tensor) -> Tensor:
        """The isometric point ((1 + c|x|²)/√c, 2x)/(1 − c|x|²) of ``Hyperboloid(c)``, (..., n) to (..., n + 1)."""
        self._check(x)
        time = (1 + self.c * dot(x, x)) / math.sqrt(self.c)
        return torch.cat([time, 2 * x], -1) / self._gap(x)

    def from_hyperboloid(self, y: Tensor) -> Tensor:
        """The inverse of ``to_hyperboloid``, the spatial part over 1 + √c y₀, (..., n + 1) to (..., n)."""
        Hyperboloid(self.c)._check(y)
        return y[..., 1:] / (1 + math.sqrt(self.c) * y[..., :1])

    def _gap(self, x: Tensor) -> Tensor:
        """1 − c|x|² = 2/λ, at least 4ε."""
        wide = _wide(x)
        square = self.c * dot(wide, wide)
        near = square < 0.25  # the origin, too, where a length has no second derivative
        size = torch.where(near, torch.ones_like(square), square).sqrt()
        gap = torch.where(near, 1 - square, (1 - size) * (1 + size))
        return gap.clamp_min(4 * torch.finfo(x.dtype).eps).to(x.dtype)

    def _half_sinh(self, x: Tensor, y: Tensor) -> Tensor:
        """sinh(√c dist/2)."""
        return math.sqrt(self.c) * length(y - x) / (self._gap(x) * self._gap(y)).sqrt()

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        return (2 / math.sqrt(self.c)) * self._half_sinh(x, y).asinh().squeeze(-1)

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        angle = 2 * math.sqrt(self.c) * length(v) / self._gap(x)
        back = (angle > 0.5) & (dot(x, v) < 0)
        near = self._sum(x, torch.where(back, torch.zeros_like(v), v))
        # elsewhere of any point but the origin, whose length has no second derivative
        inside = torch.where(back, x, torch.full_like(x, 0.5 / math.sqrt(self.c * x.shape[-1])))
        far = self._back(_wide(inside), _wide(torch.where(back, v, torch.ones_like(v)))).to(x.dtype)
        return self._projection(torch.where(back, far, near))

    def _back(self, x: Tensor, v: Tensor) -> Tensor:
        """`exp` of a vector that leads back, where x and the step of `_sum` cancel.

        With r = √cλ|v|, ξ = √c x of length 1 − δ, τ = v/|v| + ξ/|ξ| and κ = |τ|²/2, the point that is cosh(r) X +
        sinh(r) V/|V| on the hyperboloid is (A ξ/|ξ| + δ(2 − δ) sinh(r) τ)/√c over e^r(|ξ|κ + δ²/2) +
        e^{−r}(|ξ|(2 − κ) + δ²/2) + δ(2 − δ), with A = e^r(|ξ|²κ − δ²/2) + e^{−r}(|ξ|(2 − δ − |ξ|κ) + δ − δ²/2).
        """
        size = math.sqrt(self.c) * length(x)
        outwards = x / length(x)
        delta = (1 - size).clamp_min(2 * torch.finfo(x.dtype).eps)
        tau = v / length(v) + outwards
        kappa, gap, half = dot(tau, tau) / 2, delta * (2 - delta), delta.square() / 2
        r = 2 * math.sqrt(self.c) * length(v) / gap
        # e^r and e^{−r} over their sum, which neither overflow
        grown, shrunk = torch.sigmoid(2 * r), torch.sigmoid(-2 * r)
        one = grown * (-r).exp()
        along = grown * (size.square() * kappa - half) + shrunk * (size * (2 - delta - size * kappa) + delta - half)
        bottom = grown * (size * kappa + half) + shrunk * (size * (2 - kappa) + half) + one * gap
        return (along * outwards + gap * (grown - shrunk) / 2 * tau) / (bottom * math.sqrt(self.c))

    def _sum(self, x: Tensor, v: Tensor) -> Tensor:
        """x ⊕ tanh(√cλ|v|/2) v/(√c|v|)."""
        gap = self._gap(x)
        step = v * tanhc(math.sqrt(self.c) * length(v) / gap) / gap
        xy, yy = dot(x, step), dot(step, step)
        top = (1 + 2 * self.c * xy + self.c * yy) * x + gap * step
        moved: Tensor = top / (1 + 2 * self.c * xy + self.c**2 * dot(x, x) * yy)
        return moved

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        difference, gap, s = y - x, self._gap(x), self._half_sinh(x, y)
        square = self.c * dot(difference, difference)
        moved = (gap * difference - square * x) / (gap * self._gap(y) + square)
        return gap * asinhc(s) * (1 + s * s).sqrt() * moved

    def _geodesic(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """That of the hyperboloid: a x/γ_x + b y/γ_y over a/γ_x + b/γ_y + (1 − a − b)/2, γ = 1 − c|x|²."""
        a, b = _weights(self._half_sinh(x, y), t)
        left, right = a / self._gap(x), b / self._gap(y)
        return self._projection((left * x + right * y) / (left + right + (1 - a - b) / 2))

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (dot(u, v) * 4 / self._gap(x).square()).squeeze(-1)

    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        c, a = self.c, -x
        ya, aa, yy, yv, av = dot(y, a), dot(a, a), dot(y, y), dot(y, v), dot(a, v)
        along_y = -(c**2) * yv * aa + c * av + 2 * c**2 * ya * av
        along_a = -(c**2) * av * yy - c * yv
        bottom = 1 + 2 * c * ya + c**2 * aa * yy
        turned = v + 2 * (along_y * y + along_a * a) / bottom
        return turned * (self._gap(y) / self._gap(x))

    def _projection(self, x: Tensor) -> Tensor:
        largest = (1 - 4 * torch.finfo(x.dtype).eps) / math.sqrt(self.c)
        outside = length(x.detach()) > largest
        return torch.where(outside, x * (largest / length(torch.where(outside, x, torch.ones_like(x)))), x)

    def _tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        same: Tensor = torch.broadcast_tensors(v, x)[0]
        return same

    def _egrad2rgrad(self, x: Tensor, gradient: Tensor) -> Tensor:
        return gradient * self._gap(x).square() / 4

    def _retraction(self, x: Tensor, v: Tensor) -> Tensor:
        return self._projection(x + v)

    def convexity_radius(self) -> float:
        return math.inf

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        """Strictly inside: the boundary is at infinity, and ``atol`` does not move it."""
        return math.sqrt(self.c) * length(x).squeeze(-1) < 1

    def _random_point(self, normal: Tensor) -> Tensor:
        """exp at the origin of a normal vector of expected squared norm 1/c."""
        return self._exp(torch.zeros_like(normal), normal / (2 * math.sqrt(self.c * normal.shape[-1])))
