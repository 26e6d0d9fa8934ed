"""Symmetric positive definite matrices with the affine-invariant metric."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aatc.geometry.manifold import Manifold, NotOnManifoldError, PointShapeError
from aatc.geometry.manifolds.curvature import require_full_precision
from aatc.geometry.manifolds.spectral import spectral, symmetric
from aatc.geometry.preconditions import require


class SPD(Manifold):
    """Symmetric positive definite n×n matrices, ⟨U, V⟩_X = tr(X⁻¹UX⁻¹V). Points and vectors (..., n, n).

    With X = LLᵀ and A ↦ L⁻¹AL⁻ᵀ, an isometry that takes X to 1: exp(X, V) = L expm(L⁻¹VL⁻ᵀ) Lᵀ, log(X, Y) =
    L logm(L⁻¹YL⁻ᵀ) Lᵀ, dist = √Σ log² λ_i(X⁻¹Y), transport E V Eᵀ with E = (YX⁻¹)^½ = L (L⁻¹YL⁻ᵀ)^½ L⁻¹. For near
    points log is taken of 1 + L⁻¹(Y − X)L⁻ᵀ by log1p. Curvature is not positive, so no two points have a cut locus.
    Inputs are symmetrised. Derivatives are right up to the third (of ``projection`` the second), at equal eigenvalues,
    too; higher ones are a GeometryError. Sources: R. Bhatia, "Positive Definite Matrices", 2007, chapter 6; Sra,
    Hosseini, "Conic geometric optimisation", 2015 (transport).

    ``projection`` takes the symmetric part and raises eigenvalues to 16 n ε |λ|_max.

    Raises: PointShapeError for matrices that are not square, and in half precision, which has no linear algebra;
    NotOnManifoldError, in eager mode, for points without a Cholesky factor.
    """

    point_ndim = 2

    def __repr__(self) -> str:
        return "SPD()"

    def _check_trailing(self, shape: tuple[int, ...]) -> None:
        if shape[0] != shape[1] or shape[0] < 1:
            raise PointShapeError(f"a point of SPD is a square matrix, got {shape[0]}×{shape[1]}")

    def _check(self, *tensors: Tensor) -> None:
        super()._check(*tensors)
        for tensor in tensors:
            require_full_precision(tensor, "points of SPD")

    def _near(self, x: Tensor) -> Tensor:
        """By a Cholesky factor, which is cheaper than eigenvalues and what the maps need."""
        positive = torch.linalg.cholesky_ex(symmetric(x))[1] == 0
        near: Tensor = positive & self._symmetric(x, self._near_atol(x)) & x.isfinite().all(-1).all(-1)
        return near

    @staticmethod
    def _symmetric(x: Tensor, atol: float) -> Tensor:
        same: Tensor = (x - x.mT).abs().amax((-2, -1)) <= atol * x.abs().amax((-2, -1))
        return same

    def _factor(self, x: Tensor) -> Tensor:
        factor, failed = torch.linalg.cholesky_ex(symmetric(x))
        return self._definite(factor, failed)

    @staticmethod
    def _definite(value: Tensor, failed: Tensor) -> Tensor:
        message = "a matrix among the points of SPD is not positive definite; use SPD().projection"
        return require(value, (failed != 0)[..., None, None], NotOnManifoldError, message)

    @staticmethod
    def _whiten(factor: Tensor, a: Tensor) -> Tensor:
        """L⁻¹AL⁻ᵀ of a symmetric A."""
        half = torch.linalg.solve_triangular(factor, symmetric(a), upper=False)
        return symmetric(torch.linalg.solve_triangular(factor, half.mT, upper=False))

    def _relative(self, factor: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """A with A + shift·1 = L⁻¹YL⁻ᵀ, and the shift (..., 1): 1 where Y is near X, else 0."""
        change = self._whiten(factor, y - x)
        near = torch.linalg.matrix_norm(change.detach(), keepdim=True) < 0.5
        relative = torch.where(near, change, self._whiten(factor, y))
        return relative, near.squeeze(-1).to(relative.dtype)

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        relative, shift = self._relative(self._factor(x), x, y)
        distances: Tensor = torch.linalg.vector_norm(spectral(relative, "log", shift), dim=(-2, -1))
        return distances

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        factor = self._factor(x)
        return symmetric(factor @ spectral(self._whiten(factor, v), "exp") @ factor.mT)

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        factor = self._factor(x)
        relative, shift = self._relative(factor, x, y)
        return symmetric(factor @ spectral(relative, "log", shift) @ factor.mT)

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        factor = self._factor(x)
        return (self._whiten(factor, u) * self._whiten(factor, v)).sum((-2, -1))

    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        factor = self._factor(x)
        root = spectral(self._whiten(factor, y), "sqrt")
        return symmetric(factor @ root @ self._whiten(factor, v) @ root @ factor.mT)

    def _projection(self, x: Tensor) -> Tensor:
        return symmetric(spectral(symmetric(x), "floor"))

    def _tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        tangent: Tensor = torch.broadcast_tensors(symmetric(v), x)[0]
        return tangent

    def _egrad2rgrad(self, x: Tensor, gradient: Tensor) -> Tensor:
        return symmetric(x @ symmetric(gradient) @ x)

    def _retraction(self, x: Tensor, v: Tensor) -> Tensor:
        """X + V + ½VX⁻¹V, which is positive definite for every V and near exp to the second order."""
        factor = self._factor(x)
        moved = self._whiten(factor, v)
        one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        return symmetric(factor @ (one + moved + moved @ moved / 2) @ factor.mT)

    def convexity_radius(self) -> float:
        return math.inf

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        """Symmetric within ``atol`` of the largest entry, and every eigenvalue positive."""
        finite = x.isfinite().all(-1).all(-1)
        one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        x = torch.where(finite[..., None, None], x, one)
        inside: Tensor = finite & self._symmetric(x, atol) & (torch.linalg.eigvalsh(symmetric(x))[..., 0] > 0)
        return inside

    def _random_point(self, normal: Tensor) -> Tensor:
        """expm of a symmetric normal matrix whose eigenvalues lie mostly within ±√2."""
        return symmetric(spectral(symmetric(normal) / normal.shape[-1] ** 0.5, "exp"))
