"""The probability simplex with the Fisher–Rao metric."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, Manifold, dot, safe_sqrt
from aatc.geometry.manifolds.sphere import half_angle, sphere_exp, sphere_geodesic, sphere_log, sphere_transport
from aatc.geometry.preconditions import require


class Simplex(Manifold):
    """Probabilities p ≥ 0, Σp = 1, with ⟨u, v⟩_p = Σ u_i v_i/p_i on vectors of sum 0. Points (..., n).

    In the coordinates p_1..p_{n−1} the metric is δ_ij/p_i + 1/p_0. x = 2√p embeds it in the sphere of radius 2
    (curvature ¼), so dist = 2 arccos Σ√(pq), computed as 4 atan2(|√p − √q|, |√p + √q|) ≤ π; the geodesic is the
    slerp of √p. Source: S. Amari, H. Nagaoka, "Methods of Information Geometry", 2000, section 2.2.

    The open simplex is not complete: an ``exp`` that leaves it goes on along the great circle and returns the
    squares of its coordinates, which is a reflection at the faces, and then ``log`` is not its inverse. On a face
    (p_i = 0) the i-th components of vectors are 0, so that none points inwards: ``geodesic`` leaves a face and ``log``
    from there does not. Between points of the simplex there is no cut locus.

    ``projection`` sets negative entries to 0 and divides by the sum.

    Raises: GeometryError for the projection of a vector without a positive entry, and by ``log`` from a face to a point
    that is not on it.
    """

    min_size = 2

    def __repr__(self) -> str:
        return "Simplex()"

    def to_sphere(self, p: Tensor) -> Tensor:
        """2√p, a point of ``Sphere(2)``, (..., n)."""
        self._check(p)
        self._check_values((p,))
        return 2 * safe_sqrt(p)

    def from_sphere(self, x: Tensor) -> Tensor:
        """x²/4, (..., n)."""
        self._check(x)
        self._check_values((), (x,))
        return x.square() / 4

    @staticmethod
    def _difference(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """2√q − 2√p as 2(q − p)/(√q + √p), and 2√q + 2√p."""
        total = safe_sqrt(q) + safe_sqrt(p)
        return 2 * (q - p) / torch.where(total > 0, total, torch.ones_like(total)), 2 * total

    @staticmethod
    def _push(p: Tensor, v: Tensor) -> Tensor:
        """The image v/√p on the sphere of a tangent vector."""
        root = safe_sqrt(p)
        face = root == 0
        return torch.where(face, torch.zeros_like(v), v / torch.where(face, torch.ones_like(root), root))

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        return 4 * half_angle(*self._difference(x, y)).squeeze(-1)

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        return sphere_exp(2 * safe_sqrt(x), self._push(x, v), 2.0).square() / 4

    def _unreachable(self, x: Tensor, y: Tensor) -> Tensor:
        return ((x <= 0) & (y > 0)).any(-1)

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        x = require(
            x,
            self._unreachable(x, y)[..., None],
            GeometryError,
            "no vector at a point with an entry of 0 leads to one where that entry is positive: geodesic() does",
        )
        root = safe_sqrt(x)
        return root * sphere_log(2 * root, *self._difference(x, y), 2.0)

    def _geodesic(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """The slerp of the roots, which arrives from a face, too, where vectors cannot point inwards."""
        return sphere_geodesic(*self._difference(x, y), t, 2.0).square() / 4

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (self._push(x, u) * self._push(x, v)).sum(-1)

    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        root = safe_sqrt(y)
        return root * sphere_transport(2 * root, 2 * (root + safe_sqrt(x)), self._push(x, v))

    def _projection(self, x: Tensor) -> Tensor:
        positive = x.clamp_min(0)
        total = positive.sum(-1, keepdim=True)
        message = "a vector without a positive entry has no probabilities to project to"
        total = require(total, total <= 0, GeometryError, message)
        return positive / total

    def _tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        """v − (Σv) p: orthogonal in the Fisher–Rao metric, whose normal of the simplex is p."""
        return v - dot(v, torch.ones_like(v)) * x

    def _egrad2rgrad(self, x: Tensor, gradient: Tensor) -> Tensor:
        return x * (gradient - dot(x, gradient))

    def _retraction(self, x: Tensor, v: Tensor) -> Tensor:
        """(√p + v/2√p)² over its sum: the retraction x + v of the sphere of radius 2, which stays off the faces."""
        moved = (safe_sqrt(x) + self._push(x, v) / 2).square()
        return moved / moved.sum(-1, keepdim=True)

    def convexity_radius(self) -> float:
        """Infinite: every probability is nearer than π to the uniform one, and that is the radius of the sphere."""
        return math.inf

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        return (x >= -atol).all(-1) & ((x.sum(-1) - 1).abs() <= atol)

    def _random_point(self, normal: Tensor) -> Tensor:
        """softmax of normal numbers: every entry is positive."""
        return normal.softmax(-1)
