"""Rotations: the orthogonal factor and the logarithm of matrices without eigenvectors, SO(n) and SE(n).

Newton's iteration and series have derivatives of every order, where those of eigenvectors do not exist: at the identity
and wherever two angles are equal.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from aatc.geometry.manifold import (
    CutLocusError,
    GeometryError,
    Manifold,
    PointShapeError,
    safe_sqrt,
    scalar,
)
from aatc.geometry.preconditions import require

_SCALED_STEPS, _NEAR_STEPS, _TERMS = 12, 6, 21


def matrix_exponential(a: Tensor) -> Tensor:
    """expm of square matrices. torch's own is off by up to 1e-11 for norms between 0.001 and 0.05 in double precision
    (torch 2.13), where it takes a polynomial of degree 8: an entry beside the matrix makes the norm larger."""
    n = a.shape[-1]
    beside = torch.nn.functional.pad(a, (0, 1, 0, 1))
    corner = torch.zeros(n + 1, n + 1, dtype=a.dtype, device=a.device)
    corner[-1, -1] = 0.125
    exponential: Tensor = torch.linalg.matrix_exp(beside + corner)
    return exponential[..., :n, :n]


def skew(a: Tensor) -> Tensor:
    """(a − aᵀ)/2."""
    return (a - a.mT) / 2


def eye_like(a: Tensor) -> Tensor:
    """The identity of the size of the square matrices ``a``, (n, n)."""
    return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def inverse(a: Tensor) -> Tensor:
    """a⁻¹, of matrices far from singular. torch.linalg.solve loses half of the second derivative by its matrix where
    reverse differentiation follows forward differentiation (torch 2.13)."""
    return cast(Tensor, torch.linalg.inv(a))


def polar_factor(a: Tensor, *, near: bool = False) -> Tensor:
    """The orthogonal factor a(aᵀa)^(−½) of square matrices that are not singular, (..., n, n).

    X ← (μX + X⁻ᵀ/μ)/2 with μ² = |X⁻¹|/|X|, which settles within twelve steps at every condition number that the dtype
    can hold; ``near`` says that singular values lie within √2 of each other. Source: N. Higham, "Functions of
    Matrices", 2008, section 8.
    """
    for _ in range(_NEAR_STEPS if near else _SCALED_STEPS):
        back = inverse(a).mT
        if near:
            a = (a + back) / 2
        else:
            # the factor does not depend on μ, so neither do its derivatives
            norms = [torch.linalg.matrix_norm(m.detach(), keepdim=True) for m in (a, back)]
            scale = (norms[1] / norms[0]).sqrt()
            a = (scale * a + back / scale) / 2
    return a


def cayley(a: Tensor) -> Tensor:
    """The rotation (1 − a/2)⁻¹(1 + a/2) of a skew matrix, e^a up to O(|a|³)."""
    one = eye_like(a)
    return inverse(one - a / 2) @ (one + a / 2)


def on_cut_locus(rotation: Tensor) -> Tensor:
    """Whether an angle of the rotation is π, within rounding, (..., 1, 1)."""
    least: Tensor = torch.linalg.svdvals(eye_like(rotation) + rotation.detach())[..., -1, None, None]
    return least <= 32 * rotation.shape[-1] * torch.finfo(rotation.dtype).eps


def rotation_norm(rotation: Tensor) -> Tensor:
    """√Σθ² over the angles of a rotation, (..., n, n) to (...). Its gradient at the identity and at π is 0."""
    cut = on_cut_locus(rotation)
    one = eye_like(rotation)
    turned = rotation_log(torch.where(cut, one, rotation), refuse=False)
    square = turned.square().sum((-2, -1)) / 2
    rounding = rotation.shape[-1] * torch.finfo(rotation.dtype).eps
    inside = safe_sqrt(torch.where(square > rounding**2, square, torch.zeros_like(square)))
    away, towards = (torch.linalg.svdvals(m) for m in (one - rotation.detach(), one + rotation.detach()))
    angles = 2 * torch.atan2(away, towards.flip(-1))
    return torch.where(cut[..., 0, 0], torch.linalg.vector_norm(angles, dim=-1) / math.sqrt(2), inside)


def rotation_log(rotation: Tensor, *, refuse: bool = True) -> Tensor:
    """The skew logarithm of rotations, angles below π, (..., n, n).

    The root of Q is the orthogonal factor of 1 + Q. Of the fourth root, whose angles are at most π/4, log = 2 atanh of
    (1 + S)⁻¹K, S and K its symmetric and skew parts, by a series. Raises CutLocusError where an angle is π.
    """
    if refuse:
        message = "two points apart by a half turn in some plane: more than one shortest geodesic joins them"
        rotation = require(rotation, on_cut_locus(rotation), CutLocusError, message)
    for _ in range(2):  # off the manifold, too, it is the logarithm of the nearest rotation, to the third order
        rotation = (rotation + inverse(rotation).mT) / 2
    one = eye_like(rotation)
    root = polar_factor(one + polar_factor(one + rotation), near=True)
    tangent = skew(inverse(one + (root + root.mT) / 2) @ skew(root))
    square, total = tangent @ tangent, one / (2 * _TERMS + 1)
    for k in range(_TERMS - 1, -1, -1):
        total = square @ total + one / (2 * k + 1)
    turn = 8 * skew(tangent @ total)
    return turn + _defect(turn.detach(), rotation.detach())


def _defect(turn: Tensor, rotation: Tensor) -> Tensor:
    """What the logarithm ``turn`` lacks: near a half turn the root of a rotation keeps ε/(π − θ) only, the angle ε."""
    total = torch.zeros_like(turn)
    for _ in range(2):
        back = matrix_exponential(-turn - total)
        change = skew(back @ rotation)
        twice = _bracket(turn, _bracket(turn, change))
        # the inverse of the derivative of expm, x/(1 − e⁻ˣ) of x = ad
        total = total + change + _bracket(turn, change) / 2 + twice / 12 - _bracket(turn, _bracket(turn, twice)) / 720
    return total


def _bracket(a: Tensor, b: Tensor) -> Tensor:
    return a @ b - b @ a


def nearest_rotation(a: Tensor) -> Tensor:
    """The rotation nearest to a matrix in Frobenius' norm. Raises GeometryError where it is not unique."""
    values = torch.linalg.svdvals(a.detach())
    least, last = values[..., -1, None, None], values[..., max(values.shape[-1] - 2, 0), None, None]
    flipped = torch.linalg.det(a.detach())[..., None, None] < 0
    floor = 8 * a.shape[-1] * torch.finfo(a.dtype).eps * values[..., 0, None, None]
    tied = flipped & (last - least <= floor) if a.shape[-1] > 1 else torch.zeros_like(flipped)
    bad = ~(least > floor) | tied
    a = require(a, bad, GeometryError, "a singular matrix, or one without a nearest rotation: none can be projected to")
    factor, one = polar_factor(a), eye_like(a)
    stretch = factor.mT @ a
    # of matrices that reflect, the direction that is stretched least is reflected back
    apart = torch.where(flipped, (stretch + stretch.mT) / 2 - (least + last) / 2 * one, one)
    return factor @ polar_factor(apart if a.shape[-1] > 1 else stretch)


def random_rotation(normal: Tensor) -> Tensor:
    """A rotation, uniformly distributed, from standard normal numbers (..., n, n)."""
    q, r = torch.linalg.qr(normal)
    q = q * torch.where(torch.diagonal(r, dim1=-2, dim2=-1) < 0, -1.0, 1.0)[..., None, :]
    flip = torch.where(torch.linalg.det(q) < 0, -1.0, 1.0)[..., None, None]
    return torch.cat([q[..., :1] * flip, q[..., 1:]], -1)


class MatrixManifold(Manifold):
    """A manifold whose points are matrices, in single or double precision."""

    point_ndim = 2
    square = True

    def _check(self, *tensors: Tensor) -> None:
        super()._check(*tensors)
        for tensor in tensors:
            if tensor.dtype not in (torch.float32, torch.float64):
                raise PointShapeError(
                    f"{type(self).__name__} needs single or double precision, got {tensor.dtype}; convert its points"
                )

    def _check_trailing(self, shape: tuple[int, ...]) -> None:
        if shape[0] < 1 or shape[1] < 1 or (self.square and shape[0] != shape[1]):
            kind = "a square matrix" if self.square else "a matrix"
            raise PointShapeError(f"a point of {self!r} is {kind}, got {shape[0]}×{shape[1]}")


class SpecialOrthogonal(MatrixManifold):
    """SO(n), the rotations of Rⁿ, with ⟨U, V⟩ = ½tr(UᵀV): in the plane and in space, dist is the angle in radians.

    Points and vectors (..., n, n); vectors at X are XΩ with Ω skew. The metric is invariant on both sides, so that
    exp(X, V) = X expm(XᵀV), log(X, Y) = X logm(XᵀY), and transport takes XW to X E W E, E being the half of the way.
    ``projection`` takes the nearest rotation. ``retraction`` is Cayley's. Source: A. Edelman, T. Arias, S. Smith, "The
    geometry of algorithms with orthogonality constraints", 1998.

    Raises: CutLocusError by ``log``, ``geodesic`` and ``transport`` across a half turn; GeometryError by ``projection``
    where no rotation is nearest; PointShapeError for other than square matrices in single or double precision.
    """

    def __repr__(self) -> str:
        return "SpecialOrthogonal()"

    def _unreachable(self, x: Tensor, y: Tensor) -> Tensor:
        return on_cut_locus(x.mT @ y)[..., 0, 0]

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        return rotation_norm(x.mT @ y)

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        return x @ matrix_exponential(skew(x.mT @ v))

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ rotation_log(x.mT @ y)

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (u * v + torch.zeros_like(x)).sum((-2, -1)) / 2

    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        half = matrix_exponential(rotation_log(x.mT @ y) / 2)
        return x @ half @ skew(x.mT @ v) @ half

    def _projection(self, x: Tensor) -> Tensor:
        return nearest_rotation(x)

    def _tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        return x @ skew(x.mT @ v)

    def _egrad2rgrad(self, x: Tensor, gradient: Tensor) -> Tensor:
        return 2 * self._tangent_projection(x, gradient)

    def _retraction(self, x: Tensor, v: Tensor) -> Tensor:
        return x @ cayley(skew(x.mT @ v))

    def convexity_radius(self) -> float:
        """π/2: the injectivity radius is π and sectional curvature at most ½."""
        return math.pi / 2

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        error = (x.mT @ x - eye_like(x)).abs().amax((-2, -1))
        return cast(Tensor, (error <= atol) & (torch.linalg.det(x) > 0))

    def _random_point(self, normal: Tensor) -> Tensor:
        return random_rotation(normal)


class SpecialEuclidean(MatrixManifold):
    """SE(n), rigid motions as matrices [[R, t], [0, 1]], dist² = angle² + weight·|t − s|². Points (..., n + 1, n + 1).

    ``weight`` is the square of radians per unit of length. The metric is invariant under motions from the left, and
    that of SO(n) × Rⁿ: geodesics turn evenly while the origin goes straight on. They are not the screws of
    ``group_exp``: no metric on SE(3) is invariant on both sides. Vectors at a point are [[RΩ, u], [0, 0]].
    Source: F. Park, "Distance metrics on the rigid-body motions", 1995.

    Raises: as `SpecialOrthogonal`; GeometryError for a weight that is not positive.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = float(scalar("the weight of translations", weight, positive=True))
        self._rotations = SpecialOrthogonal()

    def __repr__(self) -> str:
        return f"SpecialEuclidean(weight={self.weight})"

    def _check_trailing(self, shape: tuple[int, ...]) -> None:
        super()._check_trailing(shape)
        if shape[0] < 2:
            raise PointShapeError(f"a motion is a matrix of two rows at least, got {shape[0]}")

    @staticmethod
    def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., :-1, :-1], x[..., :-1, -1:]

    @staticmethod
    def _whole(rotation: Tensor, translation: Tensor, corner: float) -> Tensor:
        batch = torch.broadcast_shapes(rotation.shape[:-2], translation.shape[:-2])
        n = rotation.shape[-1]
        upper = torch.cat([rotation.expand(*batch, n, n), translation.expand(*batch, n, 1)], -1)
        row = torch.zeros_like(upper[..., :1, :])
        return torch.cat([upper, torch.cat([row[..., :-1], torch.full_like(row[..., -1:], corner)], -1)], -2)

    def compose(self, x: Tensor, y: Tensor) -> Tensor:
        """The motion ``x`` after the motion ``y``."""
        self._check(x, y)
        (r, t), (s, u) = self._parts(x), self._parts(y)
        return self._whole(r @ s, r @ u + t, 1.0)

    def inverse(self, x: Tensor) -> Tensor:
        """The motion x⁻¹ back."""
        self._check(x)
        r, t = self._parts(x)
        return self._whole(r.mT.expand_as(r), -r.mT @ t, 1.0)

    def group_exp(self, twist: Tensor) -> Tensor:
        """The screw expm([[Ω, u], [0, 0]]), Ω the skew part of that block."""
        self._check(twist)
        turn, along = self._parts(twist)
        turn = skew(turn)
        return self._whole(matrix_exponential(turn), self._spread(turn) @ along, 1.0)

    def group_log(self, x: Tensor) -> Tensor:
        """The twist [[Ω, u], [0, 0]] of a motion, whose angles are below π: the inverse of ``group_exp``."""
        self._check(x)
        rotation, translation = self._parts(x)
        turn = rotation_log(rotation)
        return self._whole(turn, inverse(self._spread(turn)) @ translation, 0.0)

    @staticmethod
    def _spread(turn: Tensor) -> Tensor:
        """∫₀¹ expm(sΩ) ds, a block of the exponential of [[Ω, 1], [0, 0]]."""
        n = turn.shape[-1]
        above = torch.cat([turn, eye_like(turn).expand_as(turn)], -1)
        both = torch.cat([above, torch.zeros_like(above)], -2)
        return matrix_exponential(both)[..., :n, n:]

    def _unreachable(self, x: Tensor, y: Tensor) -> Tensor:
        return self._rotations._unreachable(self._parts(x)[0], self._parts(y)[0])

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        (r, t), (s, u) = self._parts(x), self._parts(y)
        away = torch.linalg.vector_norm(t - u, dim=(-2, -1)) * math.sqrt(self.weight)
        both = torch.stack(torch.broadcast_tensors(rotation_norm(r.mT @ s), away), -1)
        return cast(Tensor, torch.linalg.vector_norm(both, dim=-1))

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        (r, t), (w, u) = self._parts(x), self._parts(v)
        return self._whole(self._rotations._exp(r, w), t + u, 1.0)

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        (r, t), (s, u) = self._parts(x), self._parts(y)
        return self._whole(self._rotations._log(r, s), u - t, 0.0)

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        (r, _), (a, b), (c, d) = self._parts(x), self._parts(u), self._parts(v)
        return self._rotations._inner(r, a, c) + self.weight * (b * d).sum((-2, -1))

    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        (r, _), (s, _), (w, u) = self._parts(x), self._parts(y), self._parts(v)
        return self._whole(self._rotations._transport(r, s, w), u, 0.0)

    def _projection(self, x: Tensor) -> Tensor:
        r, t = self._parts(x)
        return self._whole(self._rotations._projection(r), t, 1.0)

    def _tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        (r, _), (w, u) = self._parts(x), self._parts(v)
        return self._whole(self._rotations._tangent_projection(r, w), u, 0.0)

    def _egrad2rgrad(self, x: Tensor, gradient: Tensor) -> Tensor:
        (r, _), (w, u) = self._parts(x), self._parts(gradient)
        return self._whole(self._rotations._egrad2rgrad(r, w), u / self.weight, 0.0)

    def _retraction(self, x: Tensor, v: Tensor) -> Tensor:
        (r, t), (w, u) = self._parts(x), self._parts(v)
        return self._whole(self._rotations._retraction(r, w), t + u, 1.0)

    def convexity_radius(self) -> float:
        return self._rotations.convexity_radius()

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        r, _ = self._parts(x)
        row = x[..., -1, :] - eye_like(x)[-1]
        return self._rotations._belongs(r, atol) & (row.abs().amax(-1) <= atol) & x.isfinite().all(-1).all(-1)

    def _random_point(self, normal: Tensor) -> Tensor:
        """A uniformly distributed rotation and a standard normal translation."""
        r, t = self._parts(normal)
        return self._whole(random_rotation(r), t, 1.0)
