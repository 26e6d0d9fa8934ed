"""Symmetric positive definite matrices with the affine-invariant metric."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, Manifold, PointShapeError, atanhc, sinhc


def symmetric(a: Tensor) -> Tensor:
    """(a + aᵀ)/2."""
    return (a + a.mT) / 2


class _Spectral(torch.autograd.Function):
    """f(A + shift·1) of a symmetric A, by its eigenvalues; the derivative is that of Daleckii and Krein.

    grad = V (F ∘ VᵀGV) Vᵀ with the divided differences F_ij = (f(λ_i) − f(λ_j))/(λ_i − λ_j), written so that equal
    eigenvalues give f′(λ), where the derivative of single eigenvectors is infinite. Differentiable once.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, name: str, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(a)
        return (vectors * _value(name, values, shift).unsqueeze(-2)) @ vectors.mT, values, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        a, ctx.name, shift = inputs
        _, values, vectors = output
        ctx.mark_non_differentiable(values, vectors)
        ctx.save_for_backward(a, values, vectors, shift)
        ctx.save_for_forward(a, values, vectors, shift)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Derivative.apply(ctx.name, *ctx.saved_tensors, grads[0]), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _Derivative.apply(ctx.name, *ctx.saved_tensors, tangents[0]), None, None


class _Derivative(torch.autograd.Function):
    """The derivative of `_Spectral` along ``change``, which is its own transpose; linear in ``change`` alone.

    It takes the matrix for the sake of an error: its own derivative by the matrix is not known here.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, a: Tensor, values: Tensor, vectors: Tensor, shift: Tensor, change: Tensor) -> Tensor:
        inner = vectors.mT @ symmetric(change) @ vectors
        return vectors @ (_divided_difference(name, values, shift) * inner) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.name, *given, _ = inputs
        ctx.save_for_backward(*given)
        ctx.save_for_forward(*given)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if ctx.needs_input_grad[1]:
            raise GeometryError("exp, log and roots of symmetric matrices have first derivatives only")
        return None, None, None, None, None, _Derivative.apply(ctx.name, *ctx.saved_tensors, grads[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        if tangents[1] is not None:
            raise GeometryError("exp, log and roots of symmetric matrices have first derivatives only")
        return _Derivative.apply(ctx.name, *ctx.saved_tensors, tangents[5])


def _value(name: str, values: Tensor, shift: Tensor) -> Tensor:
    if name == "exp":
        return values.exp()
    if name == "sqrt":
        return values.clamp_min(0).sqrt()
    if name == "log":
        tiny = torch.finfo(values.dtype).tiny
        return torch.where(shift == 1, values.log1p(), values.clamp_min(tiny).log())
    return torch.maximum(values, _floor(values))


def _divided_difference(name: str, values: Tensor, shift: Tensor) -> Tensor:
    a, b = values.unsqueeze(-1), values.unsqueeze(-2)
    if name == "exp":
        return ((a + b) / 2).exp() * sinhc((a - b) / 2)
    if name == "sqrt":
        root = values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()
        return 1 / (root.unsqueeze(-1) + root.unsqueeze(-2))
    if name == "log":
        total = (a + b + 2 * shift.unsqueeze(-1)).clamp_min(torch.finfo(values.dtype).tiny)
        return 2 * atanhc((a - b) / total) / total
    floor = _floor(values).unsqueeze(-1)
    gap = a - b
    equal = gap == 0
    change = torch.maximum(a, floor) - torch.maximum(b, floor)
    return torch.where(equal, (a > floor).to(gap.dtype), change / torch.where(equal, torch.ones_like(gap), gap))


def _floor(values: Tensor) -> Tensor:
    largest = values.abs().amax(-1, keepdim=True)
    return 16 * values.shape[-1] * torch.finfo(values.dtype).eps * torch.where(largest > 0, largest, 1.0)


def spectral(a: Tensor, name: str, shift: Tensor | None = None) -> Tensor:
    """f of a symmetric matrix, f being ``exp``, ``sqrt``, ``log`` (of a + shift·1, shift 0 or 1) or ``floor``."""
    shift = a.new_zeros(()).expand(*a.shape[:-2], 1) if shift is None else shift
    return cast(Tensor, _Spectral.apply(a, name, shift)[0])


class SPD(Manifold):
    """Symmetric positive definite n×n matrices, ⟨U, V⟩_X = tr(X⁻¹UX⁻¹V). Points and vectors (..., n, n).

    With X = LLᵀ and A ↦ L⁻¹AL⁻ᵀ, an isometry that takes X to 1: exp(X, V) = L expm(L⁻¹VL⁻ᵀ) Lᵀ, log(X, Y) =
    L logm(L⁻¹YL⁻ᵀ) Lᵀ, dist = √Σ log² λ_i(X⁻¹Y), transport E V Eᵀ with E = (YX⁻¹)^½ = L (L⁻¹YL⁻ᵀ)^½ L⁻¹. For near
    points log is taken of 1 + L⁻¹(Y − X)L⁻ᵀ by log1p. Curvature is not positive, so no two points have a cut locus.
    Inputs are symmetrised. Derivatives of exp, log, transport and projection are of first order; second ones are a
    GeometryError. Sources: R. Bhatia, "Positive Definite Matrices", 2007, chapter 6; Sra, Hosseini, "Conic geometric
    optimisation", 2015 (transport).

    ``projection`` takes the symmetric part and raises eigenvalues to 16 n ε |λ|_max.

    Raises: PointShapeError for matrices that are not square; GeometryError where a Cholesky factor does not exist.
    """

    point_ndim = 2

    def __repr__(self) -> str:
        return "SPD()"

    def _check_trailing(self, shape: tuple[int, ...]) -> None:
        if shape[0] != shape[1] or shape[0] < 1:
            raise PointShapeError(f"a point of SPD is a square matrix, got {shape[0]}×{shape[1]}")

    def _factor(self, x: Tensor) -> Tensor:
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(symmetric(x))
        if bool((failed != 0).any()):
            raise GeometryError("a matrix among the points of SPD is not positive definite; use SPD().projection")
        return factor

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
        values, near = torch.linalg.eigvalsh(relative), shift == 1
        direct = torch.where(near, torch.ones_like(values), values).clamp_min(torch.finfo(values.dtype).tiny).log()
        close = torch.where(near, values, torch.zeros_like(values)).log1p()
        distances: Tensor = torch.linalg.vector_norm(torch.where(near, close, direct), dim=-1)
        return distances

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        factor = self._factor(x)
        return symmetric(factor @ spectral(self._whiten(factor, v), "exp") @ factor.mT)

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        factor = self._factor(x)
        return symmetric(factor @ spectral(*self._log_arguments(factor, x, y)) @ factor.mT)

    def _log_arguments(self, factor: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, str, Tensor]:
        relative, shift = self._relative(factor, x, y)
        return relative, "log", shift

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

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        """Symmetric within ``atol`` of the largest entry, and every eigenvalue positive."""
        finite = x.isfinite().all(-1).all(-1)
        one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        x = torch.where(finite[..., None, None], x, one)
        odd = (x - x.mT).abs().amax((-2, -1)) <= atol * x.abs().amax((-2, -1))
        inside: Tensor = finite & odd & (torch.linalg.eigvalsh(symmetric(x))[..., 0] > 0)
        return inside

    def _random_point(self, normal: Tensor) -> Tensor:
        """expm of a symmetric normal matrix whose eigenvalues lie mostly within ±√2."""
        return symmetric(spectral(symmetric(normal) / normal.shape[-1] ** 0.5, "exp"))
