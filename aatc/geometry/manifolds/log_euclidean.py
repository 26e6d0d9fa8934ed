"""Symmetric positive definite matrices with the log-Euclidean metric."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from aatc.geometry.manifolds.spd import SPD
from aatc.geometry.manifolds.spectral import spectral, spectral_derivative, symmetric


class LogEuclideanSPD(SPD):
    """Symmetric positive definite n×n matrices, isometric to the symmetric ones by logm: flat. Points (..., n, n).

    ⟨U, V⟩_X = tr(D logm_X[U] D logm_X[V]), dist = |logm X − logm Y|_F; exp(X, V) = expm(logm X + D logm_X[V]),
    log(X, Y) = D expm_{logm X}[logm Y − logm X], transport D expm_{logm Y} ∘ D logm_X. Invariant under inversion,
    rotations and multiples, unlike `SPD` not under every change of basis. Derivatives up to the second, at equal
    eigenvalues, too. Source: V. Arsigny, P. Fillard, X. Pennec, N. Ayache, "Geometric means in a novel vector space
    structure on symmetric positive-definite matrices", 2007.

    Raises: as `SPD`.
    """

    def __repr__(self) -> str:
        return "LogEuclideanSPD()"

    def _point(self, x: Tensor) -> Tensor:
        """``x`` made symmetric, refused where it is not positive definite."""
        x = symmetric(x)
        return self._definite(x, torch.linalg.cholesky_ex(x.detach())[1])

    def _flat(self, x: Tensor) -> Tensor:
        return spectral(self._point(x), "log")

    def _flat_change(self, x: Tensor, v: Tensor) -> Tensor:
        return spectral_derivative(self._point(x), "log", symmetric(v))

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        return cast(Tensor, torch.linalg.vector_norm(self._flat(y) - self._flat(x), dim=(-2, -1)))

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        return symmetric(spectral(self._flat(x) + self._flat_change(x, v), "exp"))

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        flat = self._flat(x)
        return symmetric(spectral_derivative(flat, "exp", self._flat(y) - flat))

    def _geodesic(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return symmetric(spectral((1 - t) * self._flat(x) + t * self._flat(y), "exp"))

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (self._flat_change(x, u) * self._flat_change(x, v)).sum((-2, -1))

    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return symmetric(spectral_derivative(self._flat(y), "exp", self._flat_change(x, v)))

    def _egrad2rgrad(self, x: Tensor, gradient: Tensor) -> Tensor:
        flat = self._flat(x)
        once = spectral_derivative(flat, "exp", symmetric(gradient))
        return symmetric(spectral_derivative(flat, "exp", once))

    def _retraction(self, x: Tensor, v: Tensor) -> Tensor:
        return self._exp(x, v)
