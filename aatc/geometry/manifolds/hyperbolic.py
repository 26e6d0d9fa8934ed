"""Hyperbolic space of curvature −c: the hyperboloid and the Poincaré ball, and the isometry between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce, wraps
from typing import Any

import torch
from torch import Tensor

from aatc.geometry.manifold import (
    ASINHC,
    COSH,
    SINHC,
    Manifold,
    Scalar,
    dot,
    even,
    of,
    root,
    safe_sqrt,
    scalar,
    shown,
)
from aatc.geometry.manifolds.stereographic import Stereographic, wide

_C = "c, for curvature −c,"


def lorentz(u: Tensor, v: Tensor) -> Tensor:
    """−u₀v₀ + Σ uᵢvᵢ over the last axis, which is kept with size 1."""
    return dot(u[..., 1:], v[..., 1:]) - u[..., :1] * v[..., :1]


def _crossed(u: Tensor, v: Tensor, x: Tensor, over: Tensor) -> Tensor:
    """⟨u ∧ x, v ∧ x⟩ = ⟨u, v⟩|x|² − ⟨u, x⟩⟨v, x⟩ over the last axis, divided by ``over``: for long x by the parts of u
    and v across x, which keep their digits, and without products that leave the range of the dtype before ``over``
    brings them back."""
    square = dot(x, x)
    short = square < 1
    size = torch.where(short, torch.ones_like(square), square)
    across = [w - dot(w, x) / size * x for w in ((u,) if u is v else (u, v))]
    near = torch.where(short, x, torch.zeros_like(x))
    direct = dot(near, near) * dot(u, v) - dot(near, u) * dot(near, v)
    return torch.where(short, direct / over, dot(across[0], across[-1]) * (square / over))


def _weights(square: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """sinh((1 − t)d)/sinh(d) and sinh(td)/sinh(d), of sinh(d/2)²: the geodesic is x and y with these weights."""
    d = 4 * square * even(square, *ASINHC).square()
    whole = even(d, *SINHC)
    return (1 - t) * even((1 - t).square() * d, *SINHC) / whole, t * even(t.square() * d, *SINHC) / whole


def _in_double(points: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """A formula of the hyperboloid, whose numbers of size e^r cancel, evaluated in double precision and rounded. Of its
    first arguments, so many points, x₀ is computed again: its own rounding takes them off the hyperboloid."""

    def decorate(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(formula)
        def run(self: Hyperboloid, *tensors: Tensor) -> Tensor:
            dtype = reduce(torch.promote_types, (t.dtype for t in tensors))
            far = [wide(t) for t in tensors]
            return formula(self, *map(self._projection, far[:points]), *far[points:]).to(dtype)

        return run

    return decorate


class Hyperboloid(Manifold):
    """Hⁿ = {x : ⟨x, x⟩_L = −1/c, x₀ > 0} with ⟨x, y⟩_L = −x₀y₀ + Σxᵢyᵢ, curvature −c. Points (..., n + 1).

    dist = (2/√c) asinh(√c |x − y|_L/2). As sums, Lorentz products lose a factor e^{2r√c} of precision at distance r
    from the vertex: |x − y|_L and |v| are formed of coordinates 1..n without cancellation, all else in double
    precision. exp(x, v) = cosh(√c|v|) x + sinh(√c|v|) v/(√c|v|); transport v + c⟨y, v⟩/(1 − c⟨x, y⟩)(x + y).
    ``projection`` keeps the coordinates 1..n and computes x₀; maps read these alone, of points and, but for
    ``tangent_projection`` and ``egrad2rgrad``, of vectors: x₀ and v₀ follow, and their own rounding would outweigh the
    rest. In double precision a rounded direction is worth more than a unit beyond √c r = 36, and products of
    coordinates leave the range beyond 340: RangeError. Source: J. Ratcliffe, "Foundations of Hyperbolic Manifolds",
    chapter 3.

    ``c`` is a number or a tensor of one entry, which learns: gradients by it are those at fixed coordinates 1..n.

    Raises: GeometryError for c that is not positive and finite, or no number.
    """

    min_size = 2

    def __init__(self, c: float | Tensor = 1.0) -> None:
        self.c = scalar(_C, c, positive=True)

    def __repr__(self) -> str:
        return f"Hyperboloid(c={shown(self.c)})"

    def _parameters(self) -> Any:
        return ((_C, self.c, True),)

    def _half_sinh_square(self, x: Tensor, y: Tensor) -> Tensor:
        """sinh(√c dist/2)² = c⟨y − x, y − x⟩_L/4, of terms that are not negative.

        With ξ, η for coordinates 1..n, (c/2)⟨y − x, y − x⟩_L = −1 − c⟨x, y⟩_L is c(|η − ξ|² + c|ξ ∧ η|²)/(1 + cx₀y₀ +
        c ξ·η), and, for ξ·η < 0, c(|ξ|² + |η|² + c|ξ|²|η|²)/(1 + cx₀y₀) − c ξ·η.
        """
        c, xs, ys = of(self.c, x), x[..., 1:], y[..., 1:]
        xx, yy, xy, times = dot(xs, xs), dot(ys, ys), dot(xs, ys), x[..., :1] * y[..., :1]
        apart = xy < 0
        # nothing is as large as the fourth power of a coordinate
        both = ((xx + yy) / times + c * (xx / x[..., :1]) * (yy / y[..., :1])) / (1 / times + c)
        opposite = c * (both - torch.where(apart, xy, torch.zeros_like(xy)))
        change, longer = ys - xs, xx > yy
        # ξ ∧ η of the shortest of ξ, η, η − ξ and of the longer of the points: it is rounded as they are long
        long, short = torch.where(longer, xs, ys), torch.where(longer, ys, xs)
        short = torch.where(dot(change, change) < torch.where(longer, yy, xx), change, short)
        bottom = 1 + c * (times + torch.where(apart, torch.zeros_like(xy), xy))
        beside = c * (dot(change, change) / bottom + c * _crossed(short, short, long, bottom))
        return torch.where(apart, opposite, beside) / 2

    @_in_double(2)
    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        return (2 / root(of(self.c, x)) * safe_sqrt(self._half_sinh_square(x, y)).asinh()).squeeze(-1)

    @_in_double(1)
    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        space = v[..., 1:]  # v₀ follows from tangency, which rounding takes from vectors far from the vertex
        over = x[..., :1].square()
        square = dot(space, space) / over + of(self.c, x) * _crossed(space, space, x[..., 1:], over)
        moved = even(square, *COSH) * x[..., 1:] + even(square, *SINHC) * space
        return self._lifted(moved)

    @_in_double(2)
    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        square = self._half_sinh_square(x, y)
        size = even(square, *ASINHC) / (1 + square).sqrt()
        return self._along(x, size * (y[..., 1:] - x[..., 1:]) - 2 * size * square * x[..., 1:])

    @_in_double(2)
    def _squared_dist(self, x: Tensor, y: Tensor) -> Tensor:
        square = self._half_sinh_square(x, y)
        return (4 / of(self.c, x) * square * even(square, *ASINHC).square()).squeeze(-1)

    @_in_double(2)
    def _geodesic(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        a, b = _weights(self._half_sinh_square(x, y), t)
        return self._projection(a * x + b * y)

    @_in_double(1)
    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩_L, u₀ being c⟨ξ, υ⟩/cx₀: (υ·ν/c + ⟨υ ∧ ξ, ν ∧ ξ⟩)/x₀² of the coordinates 1..n."""
        us, vs, over = u[..., 1:], v[..., 1:], x[..., :1].square()
        return (dot(us, vs) / (of(self.c, x) * over) + _crossed(us, vs, x[..., 1:], over)).squeeze(-1)

    @_in_double(2)
    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        space, change, total = v[..., 1:], y[..., 1:] - x[..., 1:], x + y
        v = self._along(x, space)
        # ⟨y, v⟩_L, which is that of y − x, too: of the shorter one
        direct = lorentz(y, v)
        beside = dot(change, space) - dot(change, total[..., 1:]) / total[..., :1] * v[..., :1]
        along = torch.where(dot(change, change) < dot(y[..., 1:], y[..., 1:]), beside, direct)
        return v + of(self.c, x) * along / (2 + 2 * self._half_sinh_square(x, y)) * total

    def _lifted(self, space: Tensor) -> Tensor:
        """The point whose coordinates 1..n are given; of long ones the squares need not be numbers."""
        largest = space.detach().abs().amax(-1, keepdim=True)
        size = torch.where(largest > torch.finfo(space.dtype).max ** 0.25, largest, torch.ones_like(largest))
        part = space / size
        return torch.cat([(dot(part, part) + 1 / of(self.c, space) / size / size).sqrt() * size, space], -1)

    @staticmethod
    def _along(x: Tensor, space: Tensor) -> Tensor:
        """The vector tangent at x whose coordinates 1..n are given."""
        time = dot(x[..., 1:] / x[..., :1], space)
        return torch.cat([time, space.expand(*time.shape[:-1], space.shape[-1])], -1)

    def _projection(self, x: Tensor) -> Tensor:
        return self._lifted(x[..., 1:])

    @_in_double(1)
    def _tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        return v + of(self.c, x) * lorentz(x, v) * x

    def _is_tangent(self, x: Tensor, v: Tensor, atol: float) -> Tensor:
        """By v₀ alone, which is what maps do not read."""
        expected = dot(x[..., 1:], v[..., 1:]) / self._projection(x)[..., :1]
        near = (v[..., :1] - expected).abs() <= atol * (1 + v.abs().amax(-1, keepdim=True))
        return near.squeeze(-1) & v.isfinite().all(-1)

    def _egrad2rgrad(self, x: Tensor, gradient: Tensor) -> Tensor:
        return self._tangent_projection(x, torch.cat([-gradient[..., :1], gradient[..., 1:]], -1))

    def _retraction(self, x: Tensor, v: Tensor) -> Tensor:
        return self._projection(x + v)

    def convexity_radius(self) -> float:
        return math.inf

    def _frame(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The boost of the vertex to x, of coordinates 1..n; what it makes of a vector takes v₀ as given by them."""
        size = root(of(self.c, x)) * x
        time, space = size[..., :1, None], size[..., 1:]
        outer = space.unsqueeze(-1) * space.unsqueeze(-2)
        unit = torch.eye(space.shape[-1], dtype=x.dtype, device=x.device)
        vectors = torch.cat([space.unsqueeze(-1), unit + outer / (1 + time)], -1)
        return vectors, torch.cat([torch.zeros_like(vectors[..., :1]), unit - outer / (time * (1 + time))], -1)

    def _blur(self, x: Tensor, eps: float) -> Tensor:
        return eps * root(of(self.c, x)) * x[..., 0]

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        expected = self._projection(x)[..., 0]
        return ((x[..., 0] - expected).abs() <= atol * expected) & x.isfinite().all(-1)


class PoincareBall(Stereographic):
    """The ball {x : c|x|² < 1} with the metric λ² δ, λ = 2/(1 − c|x|²), curvature −c. Points (..., n).

    `Stereographic` for curvatures of one sign: dist = (2/√c) asinh(√c|x − y|/√((1 − c|x|²)(1 − c|y|²))), exp(x, v) =
    x ⊕ tanh(√cλ|v|/2) v/(√c|v|), transport (λ_x/λ_y) gyr[y, −x]v. Source: A. Ungar, "Analytic Hyperbolic Geometry",
    2005, chapter 3; Ganea, Bécigneul, Hofmann, "Hyperbolic neural networks", 2018.

    ``c`` is a number or a tensor of one entry, which learns: gradients by it are those at fixed coordinates.
    ``projection`` and ``exp`` keep points within √c|x| ≤ 1 − 4ε, ε being that of the dtype, and 1 − c|x|² is taken
    to be at least 4ε.

    Raises: GeometryError for c that is not positive and finite, or no number.
    """

    def __init__(self, c: float | Tensor = 1.0) -> None:
        self.c = scalar(_C, c, positive=True)

    def __repr__(self) -> str:
        return f"PoincareBall(c={shown(self.c)})"

    def _parameters(self) -> Any:
        return ((_C, self.c, True),)

    def _kappa(self, x: Tensor) -> Scalar:
        return -of(self.c, x)

    def _spherical(self) -> bool:
        return False

    @property
    def curvature(self) -> Scalar:  # type: ignore[override]
        """−c."""
        return -self.c

    def to_hyperboloid(self, x: Tensor) -> Tensor:
        """The isometric point ((1 + c|x|²)/√c, 2x)/(1 − c|x|²) of ``Hyperboloid(c)``, (..., n) to (..., n + 1)."""
        self._check(x)
        self._check_values((x,))
        c = of(self.c, x)
        return torch.cat([(1 + c * dot(x, x)) / root(c), 2 * x], -1) / self._gap(x)

    def from_hyperboloid(self, y: Tensor) -> Tensor:
        """The inverse of ``to_hyperboloid``, the spatial part over 1 + √c y₀, (..., n + 1) to (..., n)."""
        space = Hyperboloid(self.c)
        space._check(y)
        space._check_values((y,))
        return y[..., 1:] / (1 + root(of(self.c, y)) * y[..., :1])

    def _random_point(self, normal: Tensor) -> Tensor:
        """exp at the origin of a normal vector of expected squared norm 1/c."""
        size = root(of(self.c, normal)) * normal.shape[-1] ** 0.5
        point: Tensor = self._exp(torch.zeros_like(normal), normal / (2 * size)).detach()
        return point
