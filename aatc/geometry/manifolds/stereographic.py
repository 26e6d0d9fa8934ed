"""The space of constant curvature κ of any sign in stereographic coordinates, smooth in κ through 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from aatc.geometry.manifold import CutLocusError, Manifold, Scalar, dot, holds, length, of, root, scalar, shown
from aatc.geometry.manifolds.kappa import ARCSIN, ARCTAN, COS, SIN, TAN


def wide(x: Tensor) -> Tensor:
    """``x`` in double precision, where there is any: near the boundary of the ball 1 − c|x|² is all rounding else."""
    return x if x.dtype == torch.float64 or x.device.type == "mps" else x.double()


class Stereographic(Manifold):
    """{x : 1 + κ|x|² > 0} with the metric λ² δ, λ = 2/(1 + κ|x|²), sectional curvature κ. Points (..., n).

    κ < 0 is the Poincaré ball, κ = 0 Rⁿ with four times its metric, κ > 0 the sphere of radius 1/√κ without the pole
    that the origin is opposite to. ``curvature`` κ is a number or a tensor of one entry, a parameter that learns, its
    sign included: all maps are analytic in κ, and are evaluated by their series near κ = 0 (`kappa`). With sin_κ, tan_κ
    as there, dist = 2 arcsin_κ(|x − y|/√((1 + κ|x|²)(1 + κ|y|²))), exp(x, v) = x ⊕ tan_κ(λ|v|/2) v/|v|, transport
    (λ_x/λ_y) gyr[y, −x]v. Differences are formed before they are squared, and −x ⊕ y as ((1 + κ|x|²)(y − x) +
    κ|y − x|² x)/((1 + κ|x|²)(1 + κ|y|²) − κ|y − x|²). Sources: Bachmann, Bécigneul, Ganea, "Constant curvature graph
    convolutional networks", 2020, section 3; A. Ungar, "Analytic Hyperbolic Geometry", 2005, chapter 3.

    For κ < 0, ``projection`` and ``exp`` keep points within √−κ|x| ≤ 1 − 4ε, ε being that of the dtype, and 1 + κ|x|²
    is taken to be at least 4ε. For κ > 0 an ``exp`` to the pole itself has no coordinates, and near to it large ones.

    Raises: GeometryError for a curvature that is not finite, or no number; CutLocusError, in eager mode, from ``log``,
    ``geodesic`` and ``transport`` between antipodes.
    """

    def __init__(self, curvature: float | Tensor = 0.0) -> None:
        self.curvature = scalar("the curvature", curvature)

    def __repr__(self) -> str:
        return f"Stereographic(curvature={shown(self.curvature)})"

    def _parameters(self) -> Any:
        return (("the curvature", self.curvature, False),)

    def _kappa(self, x: Tensor) -> Scalar:
        """κ for formulas of ``x``."""
        return of(self.curvature, x)

    def _spherical(self) -> bool | None:
        """Whether κ > 0, None where a tensor decides."""
        return None if isinstance(self.curvature, Tensor) else self.curvature > 0

    def _bent(self, x: Tensor) -> tuple[Scalar, Tensor | None]:
        """−κ, and whether κ < 0 where a tensor decides: where not, or where 1/κ is no number, 1 in its place."""
        kappa = self._kappa(x)
        if isinstance(kappa, Tensor) and self._spherical() is None:
            bent = kappa <= -torch.finfo(kappa.dtype).tiny
            return torch.where(bent, -kappa, 1.0), bent
        return -kappa, None

    def _flat(self) -> bool:
        """Whether κ is known to be 0, or so little below that 1/κ is no number."""
        return not isinstance(self.curvature, Tensor) and -torch.finfo(torch.float64).tiny < self.curvature <= 0

    def _signed(self, x: Tensor, of_sphere: Callable[[Scalar], Tensor], other: Callable[[Scalar], Tensor]) -> Tensor:
        """``of_sphere(κ)`` where κ > 0, else ``other(κ)``: two forms of one function, each analytic in κ, of which
        either keeps its digits on its side. Where a tensor decides, the one that is not taken is evaluated at κ = 0."""
        kappa, side = self._kappa(x), self._spherical()
        if side is None and isinstance(kappa, Tensor):
            return torch.where(kappa > 0, of_sphere(kappa.clamp(min=0)), other(kappa.clamp(max=0)))
        return of_sphere(kappa) if side else other(kappa)

    def _gap(self, x: Tensor) -> Tensor:
        """1 + κ|x|² = 2/λ, at least 4ε."""
        far = wide(x)
        square = self._kappa(far) * dot(far, far)
        near = square > -0.25  # the origin, too, where a length has no second derivative
        size = torch.where(near, torch.ones_like(square), -square).sqrt()
        gap = torch.where(near, 1 + square, (1 - size) * (1 + size))
        return gap.clamp_min(4 * torch.finfo(x.dtype).eps).to(x.dtype)

    def _half_sin(self, x: Tensor, y: Tensor) -> Tensor:
        """sin_κ(dist/2)."""
        return length(y - x) / (self._gap(x) * self._gap(y)).sqrt()

    def _half_sin_square(self, x: Tensor, y: Tensor) -> Tensor:
        """sin_κ(dist/2)², in double precision, whose range it needs near the boundary of the ball."""
        difference = wide(y - x)
        return dot(difference, difference) / (wide(self._gap(x)) * wide(self._gap(y)))

    def _bottom(self, x: Tensor, y: Tensor) -> Tensor:
        """1 + 2κ⟨x, y⟩ + κ²|x|²|y|², which is 0 for antipodes and (1 + κ|x|²)(1 + κ|y|²) − κ|y − x|²; for large x on a
        sphere the square of κ|x|y + x/|x|, which keeps its digits."""

        def plain(kappa: Scalar) -> Tensor:
            return self._gap(x) * self._gap(y) - kappa * dot(y - x, y - x)

        def of_sphere(kappa: Scalar) -> Tensor:
            large = kappa * dot(x, x) > 0.25
            point = torch.where(large, x, torch.ones_like(x))
            turned = kappa * length(point) * y + point / length(point)
            return torch.where(large, dot(turned, turned), plain(kappa))

        return self._signed(x, of_sphere, plain)

    def _half_tan(self, x: Tensor, y: Tensor) -> Tensor:
        """tan_κ(dist/2) on a sphere, finite at antipodes."""
        return length(y - x) / self._bottom(x, y).clamp_min(torch.finfo(x.dtype).tiny).sqrt()

    def _half_tan_square(self, x: Tensor, y: Tensor) -> Tensor:
        """tan_κ(dist/2)² on a sphere, in double precision."""
        difference, bottom = wide(y - x), self._bottom(x, y)
        return dot(difference, difference) / wide(bottom.clamp_min(torch.finfo(x.dtype).tiny))

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        def of_sphere(kappa: Scalar) -> Tensor:
            t = self._half_tan(x, y)
            return ARCTAN(kappa, t) * t

        def other(kappa: Scalar) -> Tensor:
            s = self._half_sin(x, y)
            return ARCSIN(kappa, s) * s

        return 2 * self._signed(x, of_sphere, other).squeeze(-1)

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        if self._spherical() or self._flat():
            return self._sum(x, v)
        c, bent = self._bent(x)
        steep = 2 * root(c) * length(v.detach()) / self._gap(x.detach()) > 0.5
        back = steep & (dot(x, v) < 0)
        if bent is not None:
            back = back & bent
        near = self._sum(x, torch.where(back, torch.zeros_like(v), v))
        # elsewhere of any point but the origin, whose length has no second derivative
        inside = torch.where(back, wide(x), torch.full_like(wide(x), 0.5 / x.shape[-1] ** 0.5) / root(of(c, wide(x))))
        far = self._back(c, inside, wide(torch.where(back, v, torch.ones_like(v)))).to(x.dtype)
        return self._projection(torch.where(back, far, near))

    @staticmethod
    def _back(c: Scalar, x: Tensor, v: Tensor) -> Tensor:
        """`exp` in curvature −c of a vector that leads back, where x and the step of `_sum` cancel.

        With r = √cλ|v|, ξ = √c x of length 1 − δ, τ = v/|v| + ξ/|ξ| and ϰ = |τ|²/2, the point that is cosh(r) X +
        sinh(r) V/|V| on the hyperboloid is (A ξ/|ξ| + δ(2 − δ) sinh(r) τ)/√c over e^r(|ξ|ϰ + δ²/2) +
        e^{−r}(|ξ|(2 − ϰ) + δ²/2) + δ(2 − δ), with A = e^r(|ξ|²ϰ − δ²/2) + e^{−r}(|ξ|(2 − δ − |ξ|ϰ) + δ − δ²/2).
        """
        c = of(c, x)
        size = root(c) * length(x)
        outwards = x / length(x)
        delta = (1 - size).clamp_min(2 * torch.finfo(x.dtype).eps)
        tau = v / length(v) + outwards
        turn, gap, half = dot(tau, tau) / 2, delta * (2 - delta), delta.square() / 2
        r = 2 * root(c) * length(v) / gap
        # e^r and e^{−r} over their sum, which neither overflow
        grown, shrunk = torch.sigmoid(2 * r), torch.sigmoid(-2 * r)
        one = grown * (-r).exp()
        along = grown * (size.square() * turn - half) + shrunk * (size * (2 - delta - size * turn) + delta - half)
        bottom = grown * (size * turn + half) + shrunk * (size * (2 - turn) + half) + one * gap
        return (along * outwards + gap * (grown - shrunk) / 2 * tau) / (bottom * root(c))

    def _sum(self, x: Tensor, v: Tensor) -> Tensor:
        """x ⊕ tan_κ(λ|v|/2) v/|v|. With p/q = tan_κ(λ|v|/2)/(λ|v|/2), q being 1, or a cosine where there are poles:
        (q² − 2κ⟨x, s⟩q − κ|s|²) x + (1 + κ|x|²) q s over q² − 2κ⟨x, s⟩q + κ²|x|²|s|², s = p v λ/2."""
        kappa, gap, side = self._kappa(x), self._gap(x), self._spherical()
        along = v / gap
        if side is None and isinstance(kappa, Tensor):
            up = kappa > 0
            level = torch.where(up, along, torch.zeros_like(along)), torch.where(up, torch.zeros_like(along), along)
            p = torch.where(up, SIN.radial(kappa, level[0]), TAN.radial(kappa, level[1]))
            q = torch.where(up, COS.radial(kappa, level[0]), torch.ones_like(gap))
        elif side:
            p, q = SIN.radial(kappa, along), COS.radial(kappa, along)
        else:
            p, q = TAN.radial(kappa, along), torch.ones_like(gap)
        step = v * p / gap
        xy, yy = dot(x, step), dot(step, step)
        level_of_x = q * (q - 2 * kappa * xy)
        bottom = level_of_x + kappa * kappa * dot(x, x) * yy
        moved: Tensor = ((level_of_x - kappa * yy) * x + gap * q * step) / bottom
        return moved

    def _apart(self, x: Tensor, y: Tensor) -> None:
        """Refuse antipodes, in eager mode."""
        if torch.compiler.is_compiling() or self._spherical() is False:
            return
        if not holds(~self._unreachable(x, y)):
            raise CutLocusError("antipodal points of a sphere: every great circle through them is a shortest geodesic")

    def _unreachable(self, x: Tensor, y: Tensor) -> Tensor:
        if self._spherical() is False:
            return super()._unreachable(x, y)
        with torch.no_grad():
            cosine = (self._bottom(x, y) / (self._gap(x) * self._gap(y))).clamp_min(0).sqrt()
            return ((cosine <= 8 * torch.finfo(x.dtype).eps) & (self._kappa(x) > 0)).squeeze(-1)

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        kappa, gap = self._kappa(x), self._gap(x)
        self._apart(x, y)
        difference = y - x
        top = gap * difference + kappa * dot(difference, difference) * x

        def of_sphere(kappa: Scalar) -> Tensor:
            return ARCTAN.of_square(kappa, self._half_tan_square(x, y))

        def other(kappa: Scalar) -> Tensor:
            square = self._half_sin_square(x, y)
            return ARCSIN.of_square(kappa, square) * (1 - kappa * square).sqrt()

        moved = top / self._bottom(x, y)
        return gap * self._signed(x, of_sphere, other).to(moved.dtype) * moved

    def _way_square(self, x: Tensor, y: Tensor) -> Tensor:
        """dist², smooth at x = y, in double precision."""

        def of_sphere(kappa: Scalar) -> Tensor:
            square = self._half_tan_square(x, y)
            return square * ARCTAN.of_square(kappa, square).square()

        def other(kappa: Scalar) -> Tensor:
            square = self._half_sin_square(x, y)
            return square * ARCSIN.of_square(kappa, square).square()

        return 4 * self._signed(x, of_sphere, other)

    def _geodesic(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """a x/γ_x + b y/γ_y over a/γ_x + b/γ_y + (1 − a − b)/2, γ = 1 + κ|x|², which is the point a X + b Y of a sphere
        or hyperboloid, with a = sin_κ((1 − t)d)/sin_κ(d) and b = sin_κ(td)/sin_κ(d)."""
        kappa = self._kappa(x)
        self._apart(x, y)
        d, t = self._way_square(x, y), wide(t)
        whole = SIN.of_square(kappa, d)
        a = (1 - t) * SIN.of_square(kappa, (1 - t).square() * d) / whole
        b = t * SIN.of_square(kappa, t.square() * d) / whole
        left, right = a / self._gap(x), b / self._gap(y)
        point = (left * x + right * y) / (left + right + (1 - a - b) / 2)
        return self._projection(point.to(torch.promote_types(x.dtype, y.dtype)))

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (dot(u, v) * 4 / self._gap(x).square()).squeeze(-1)

    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        self._apart(x, y)
        dtype = reduce(torch.promote_types, (t.dtype for t in (x, y, v)))
        scale, bottom = self._gap(y) / self._gap(x), wide(self._bottom(x, y))
        x, y, v = (wide(t) for t in (x, y, v))
        kappa, a = self._kappa(x), -x
        ya, aa, yy, yv, av = dot(y, a), dot(a, a), dot(y, y), dot(y, v), dot(a, v)
        along_y = -kappa * (kappa * yv * aa + av - 2 * kappa * ya * av)
        along_a = -kappa * (kappa * av * yy - yv)
        turned = v + 2 * (along_y * y + along_a * a) / bottom
        return turned.to(dtype) * scale

    def _projection(self, x: Tensor) -> Tensor:
        if self._spherical() or self._flat():
            return x
        c, bent = self._bent(x)
        largest: Scalar = (1 - 4 * torch.finfo(x.dtype).eps) / root(c)
        if isinstance(largest, Tensor):
            largest = largest.clamp(max=torch.finfo(x.dtype).max)
        outside = length(x.detach()) > largest
        if bent is not None:
            outside = outside & bent
        return torch.where(outside, x * (largest / length(torch.where(outside, x, torch.ones_like(x)))), x)

    def _tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        same: Tensor = torch.broadcast_tensors(v, x)[0]
        return same

    def _egrad2rgrad(self, x: Tensor, gradient: Tensor) -> Tensor:
        return gradient * self._gap(x).square() / 4

    def _retraction(self, x: Tensor, v: Tensor) -> Tensor:
        return self._projection(x + v)

    def convexity_radius(self) -> float | Tensor:
        """A quarter of a great circle, π/(2√κ), on a sphere."""
        kappa = self.curvature
        if isinstance(kappa, Tensor):
            up = kappa > 0
            return torch.where(up, math.pi / 2 / torch.where(up, kappa, torch.ones_like(kappa)).sqrt(), math.inf)
        return math.pi / 2 / math.sqrt(kappa) if kappa > 0 else math.inf

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        """Strictly inside: the boundary is at infinity, and ``atol`` does not move it."""
        kappa = self._kappa(x)
        bent = root((-kappa).clamp_min(0) if isinstance(kappa, Tensor) else max(-kappa, 0.0))
        return (bent * length(x) < 1).squeeze(-1) & x.isfinite().all(-1)

    def _random_point(self, normal: Tensor) -> Tensor:
        """exp at the origin of a normal vector of expected squared norm 1, or 1/|κ| where that is less."""
        kappa = self._kappa(normal)
        size = kappa.detach().abs().clamp_min(1).sqrt() if isinstance(kappa, Tensor) else max(abs(kappa), 1) ** 0.5
        return self._exp(torch.zeros_like(normal), normal / (2 * normal.shape[-1] ** 0.5) / size)
