"""The Grassmann manifold of subspaces, as the orthogonal projections onto them."""

from __future__ import annotations

import math
import operator
from typing import cast

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, PointShapeError
from aatc.geometry.manifolds.orthogonal import (
    MatrixManifold,
    cayley,
    eye_like,
    matrix_exponential,
    on_cut_locus,
    polar_factor,
    rotation_log,
    rotation_norm,
)
from aatc.geometry.manifolds.spectral import symmetric
from aatc.geometry.preconditions import require


class Grassmann(MatrixManifold):
    """Gr(p, n), the p-dimensional subspaces of Rⁿ, as projections P = Pᵀ = P² of rank p, ⟨U, V⟩ = ½tr(UV).

    Points and vectors (..., n, n); dist is √Σθ² over the principal angles in radians. With Ω = [Δ, P], exp(P, Δ) =
    expm(Ω) P expm(−Ω); the rotation (1 − 2Q)(1 − 2P) is expm(2Ω), so that log(P, Q) = [Ω, P]; transport is V ↦
    expm(Ω) V expm(−Ω). ``projection`` takes the p largest eigenvalues of the symmetric part. Source: T. Bendokat, R.
    Zimmermann, P.-A. Absil, "A Grassmann manifold handbook", 2020.

    Raises: CutLocusError by ``log``, ``geodesic`` and ``transport`` where a principal angle is π/2; GeometryError for a
    rank below 1 and by ``projection`` where the p-th eigenvalue equals the next; PointShapeError as `SpecialOrthogonal`
    and for n < p.
    """

    def __init__(self, rank: int) -> None:
        try:
            self.rank = operator.index(rank)
        except TypeError as error:
            raise GeometryError(f"the rank of subspaces is an integer, got {rank!r}") from error
        if self.rank < 1:
            raise GeometryError(f"subspaces have at least one dimension, got rank={rank}")

    def __repr__(self) -> str:
        return f"Grassmann(rank={self.rank})"

    def _check_trailing(self, shape: tuple[int, ...]) -> None:
        super()._check_trailing(shape)
        if shape[0] < self.rank:
            raise PointShapeError(f"R^{shape[0]} has no subspaces of dimension {self.rank}")

    def from_basis(self, basis: Tensor) -> Tensor:
        """The projection onto the span of p independent columns, (..., n, p) to (..., n, n)."""
        if basis.ndim < 2 or basis.shape[-1] != self.rank or basis.shape[-2] < self.rank:
            raise PointShapeError(f"a basis of {self!r} has the shape (..., n, {self.rank}), got {tuple(basis.shape)}")
        frame = cast(Tensor, torch.linalg.qr(basis)[0])
        return frame @ frame.mT

    def to_basis(self, x: Tensor) -> Tensor:
        """Some orthonormal basis of the subspace, (..., n, n) to (..., n, p). It has no derivative."""
        self._check(x)
        return cast(Tensor, torch.linalg.eigh(symmetric(x.detach()))[1])[..., -self.rank :]

    @staticmethod
    def _turn(x: Tensor, v: Tensor) -> Tensor:
        return v @ x - x @ v

    @staticmethod
    def _between(x: Tensor, y: Tensor) -> Tensor:
        """expm(2Ω) = (1 − 2y)(1 − 2x)."""
        one = eye_like(x)
        return (one - 2 * y) @ (one - 2 * x)

    def _unreachable(self, x: Tensor, y: Tensor) -> Tensor:
        return on_cut_locus(self._between(x, y))[..., 0, 0]

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        # every principal angle θ is two angles of 2θ of the rotation, of which the norm counts pairs
        return rotation_norm(self._between(x, y)) / 2

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        moved = matrix_exponential(self._turn(x, v))
        return symmetric(moved @ x @ moved.mT)

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        turn = rotation_log(self._between(x, y)) / 2
        return self._tangent_projection(x, turn @ x - x @ turn)

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (u * v + torch.zeros_like(x)).sum((-2, -1)) / 2

    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        moved = matrix_exponential(rotation_log(self._between(x, y)) / 2)
        return symmetric(moved @ v @ moved.mT)

    def _projection(self, x: Tensor) -> Tensor:
        x, n = symmetric(x), x.shape[-1]
        if n == self.rank:
            return eye_like(x).expand_as(x)
        values = torch.linalg.eigvalsh(x.detach())
        upper, lower = values[..., n - self.rank, None, None], values[..., n - self.rank - 1, None, None]
        tied = ~(upper - lower > 8 * n * torch.finfo(x.dtype).eps * values.abs().amax(-1)[..., None, None])
        x = require(x, tied, GeometryError, f"no subspace of dimension {self.rank} is nearest: eigenvalues coincide")
        one = eye_like(x)
        return (one + symmetric(polar_factor(x - (upper + lower) / 2 * one))) / 2

    def _tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        mixed = x @ symmetric(v)
        mixed = mixed - mixed @ x
        return mixed + mixed.mT

    def _egrad2rgrad(self, x: Tensor, gradient: Tensor) -> Tensor:
        return 2 * self._tangent_projection(x, gradient)

    def _retraction(self, x: Tensor, v: Tensor) -> Tensor:
        moved = cayley(self._turn(x, v))
        return symmetric(moved @ x @ moved.mT)

    def convexity_radius(self) -> float:
        """π/4: the injectivity radius is π/2 and sectional curvature at most 2."""
        return math.pi / 4

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        odd = torch.maximum((x - x.mT).abs().amax((-2, -1)), (x @ x - x).abs().amax((-2, -1)))
        trace = torch.diagonal(x, dim1=-2, dim2=-1).sum(-1)
        return (odd <= atol) & ((trace - self.rank).abs() < 0.5)

    def _random_point(self, normal: Tensor) -> Tensor:
        """A uniformly distributed subspace."""
        return self.from_basis(normal[..., : self.rank])
