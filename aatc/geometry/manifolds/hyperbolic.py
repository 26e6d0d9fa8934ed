"""Hyperbolic space of curvature −c: the hyperboloid and the Poincaré ball, and the isometry between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce, wraps

import torch
from torch import Tensor

from aatc.geometry.manifold import (
    ASINHC,
    COSH,
    SINHC,
    TANHC,
    GeometryError,
    Manifold,
    dot,
    even,
    length,
    radial,
    safe_sqrt,
)


def lorentz(u: Tensor, v: Tensor) -> Tensor:
    """−u₀v₀ + Σ uᵢvᵢ over the last axis, which is kept with size 1."""
    return dot(u[..., 1:], v[..., 1:]) - u[..., :1] * v[..., :1]


def _across(u: Tensor, v: Tensor) -> Tensor:
    """|u ∧ v|² = |u|²|v|² − ⟨u, v⟩² over the last axis, by the part of u across v, which keeps its digits."""
    square = dot(v, v)
    some = square > 0
    along = torch.where(some, dot(u, v) / torch.where(some, square, torch.ones_like(square)), torch.zeros_like(square))
    across = u - along * v
    return dot(across, across) * square


def _weights(square: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """sinh((1 − t)d)/sinh(d) and sinh(td)/sinh(d), of sinh(d/2)²: the geodesic is x and y with these weights."""
    d = 4 * square * even(square, *ASINHC).square()
    whole = even(d, *SINHC)
    return (1 - t) * even((1 - t).square() * d, *SINHC) / whole, t * even(t.square() * d, *SINHC) / whole


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

    dist = (2/√c) asinh(√c |x − y|_L/2). As sums, Lorentz products lose a factor e^{2r√c} of precision at distance r
    from the vertex: |x − y|_L and |v| are formed of coordinates 1..n without cancellation, all else in double
    precision. exp(x, v) = cosh(√c|v|) x + sinh(√c|v|) v/(√c|v|); transport v + c⟨y, v⟩/(1 − c⟨x, y⟩)(x + y).
    ``projection`` keeps the coordinates 1..n and computes x₀; maps read these alone, of points and, but for ``inner``,
    of vectors: x₀ and v₀ follow, and their own rounding would outweigh the rest. Source: J. Ratcliffe, "Foundations of
    Hyperbolic Manifolds", chapter 3.

    Raises: GeometryError for c that is not positive.
    """

    min_size = 2

    def __init__(self, c: float = 1.0) -> None:
        self.c = _positive(c)

    def __repr__(self) -> str:
        return f"Hyperboloid(c={self.c})"

    def _half_sinh_square(self, x: Tensor, y: Tensor) -> Tensor:
        """sinh(√c dist/2)² = c⟨y − x, y − x⟩_L/4, of terms that are not negative.

        With ξ, η for coordinates 1..n, (c/2)⟨y − x, y − x⟩_L = −1 − c⟨x, y⟩_L is c(|η − ξ|² + c|ξ ∧ η|²)/(1 + cx₀y₀ +
        c ξ·η), and, for ξ·η < 0, c(|ξ|² + |η|² + c|ξ|²|η|²)/(1 + cx₀y₀) − c ξ·η.
        """
        c, xs, ys = self.c, x[..., 1:], y[..., 1:]
        xx, yy, xy, times = dot(xs, xs), dot(ys, ys), dot(xs, ys), x[..., :1] * y[..., :1]
        apart = xy < 0
        opposite = c * ((xx + yy + c * xx * yy) / (1 + c * times) - torch.where(apart, xy, torch.zeros_like(xy)))
        change = ys - xs
        bottom = 1 + c * (times + torch.where(apart, torch.zeros_like(xy), xy))
        beside = c * (dot(change, change) + c * _across(change, xs + ys) / 4) / bottom
        return torch.where(apart, opposite, beside) / 2

    @_in_double(2)
    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        return (2 / math.sqrt(self.c)) * safe_sqrt(self._half_sinh_square(x, y)).asinh().squeeze(-1)

    @_in_double(1)
    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        space = v[..., 1:]  # v₀ follows from tangency, which rounding takes from vectors far from the vertex
        square = (dot(space, space) + self.c * _across(space, x[..., 1:])) / x[..., :1].square()
        moved = even(square, *COSH) * x[..., 1:] + even(square, *SINHC) * space
        return self._lifted(moved)

    @_in_double(2)
    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        square = self._half_sinh_square(x, y)
        space = y[..., 1:] - x[..., 1:] - 2 * square * x[..., 1:]
        return even(square, *ASINHC) / (1 + square).sqrt() * self._along(x, space)

    @_in_double(2)
    def _geodesic(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        a, b = _weights(self._half_sinh_square(x, y), t)
        return self._projection(a * x + b * y)

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (lorentz(u, v) + torch.zeros_like(x[..., :1])).squeeze(-1)

    @_in_double(2)
    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        space, change, total = v[..., 1:], y[..., 1:] - x[..., 1:], x + y
        v = self._along(x, space)
        # ⟨y, v⟩_L, which is that of y − x, too: of the shorter one
        direct = lorentz(y, v)
        beside = dot(change, space) - dot(change, total[..., 1:]) / total[..., :1] * v[..., :1]
        along = torch.where(dot(change, change) < dot(y[..., 1:], y[..., 1:]), beside, direct)
        return v + self.c * along / (2 + 2 * self._half_sinh_square(x, y)) * total

    def _lifted(self, space: Tensor) -> Tensor:
        """The point whose coordinates 1..n are given."""
        return torch.cat([(dot(space, space) + 1 / self.c).sqrt(), space], -1)

    @staticmethod
    def _along(x: Tensor, space: Tensor) -> Tensor:
        """The vector tangent at x whose coordinates 1..n are given."""
        time = dot(x[..., 1:], space) / x[..., :1]
        return torch.cat([time, space.expand(*time.shape[:-1], space.shape[-1])], -1)

    def _projection(self, x: Tensor) -> Tensor:
        return self._lifted(x[..., 1:])

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

    def _half_sinh_square(self, x: Tensor, y: Tensor) -> Tensor:
        """sinh(√c dist/2)², in double precision, whose range it needs near the boundary."""
        difference = _wide(y - x)
        return self.c * dot(difference, difference) / (_wide(self._gap(x)) * _wide(self._gap(y)))

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        return (2 / math.sqrt(self.c)) * self._half_sinh(x, y).asinh().squeeze(-1)

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        angle = 2 * math.sqrt(self.c) * length(v.detach()) / self._gap(x.detach())
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
        step = v * radial(math.sqrt(self.c) * v / gap, *TANHC) / gap
        xy, yy = dot(x, step), dot(step, step)
        top = (1 + 2 * self.c * xy + self.c * yy) * x + gap * step
        moved: Tensor = top / (1 + 2 * self.c * xy + self.c**2 * dot(x, x) * yy)
        return moved

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        difference, gap, s = y - x, self._gap(x), self._half_sinh_square(x, y)
        square = self.c * dot(difference, difference)
        moved = (gap * difference - square * x) / (gap * self._gap(y) + square)
        scale = even(s, *ASINHC) * (1 + s).sqrt()
        return gap * scale.to(moved.dtype) * moved

    def _geodesic(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """That of the hyperboloid: a x/γ_x + b y/γ_y over a/γ_x + b/γ_y + (1 − a − b)/2, γ = 1 − c|x|²."""
        a, b = _weights(self._half_sinh_square(x, y), _wide(t))
        left, right = a / self._gap(x), b / self._gap(y)
        point = (left * x + right * y) / (left + right + (1 - a - b) / 2)
        return self._projection(point.to(torch.promote_types(x.dtype, y.dtype)))

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (dot(u, v) * 4 / self._gap(x).square()).squeeze(-1)

    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        dtype = reduce(torch.promote_types, (t.dtype for t in (x, y, v)))
        scale = self._gap(y) / self._gap(x)
        x, y, v = (_wide(t) for t in (x, y, v))
        c, a = self.c, -x
        ya, aa, yy, yv, av = dot(y, a), dot(a, a), dot(y, y), dot(y, v), dot(a, v)
        along_y = -(c**2) * yv * aa + c * av + 2 * c**2 * ya * av
        along_a = -(c**2) * av * yy - c * yv
        bottom = 1 + 2 * c * ya + c**2 * aa * yy
        turned = v + 2 * (along_y * y + along_a * a) / bottom
        return turned.to(dtype) * scale

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
