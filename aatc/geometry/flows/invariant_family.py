"""Finite families of metrics that Ricci flow preserves: round spheres, their products, left-invariant metrics on S³.

Sources: Besse, Einstein Manifolds, chapter 7; Chow, Knopf, The Ricci Flow: An Introduction, chapter 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from aatc.geometry.arguments import arguments
from aatc.geometry.flows.grid_metric import jet_of, ricci_from_connection
from aatc.geometry.manifold import GeometryError, PointShapeError

Basis = Callable[[Tensor], Tensor]


class NotInvariantError(GeometryError):
    """A metric, or its Ricci tensor, that is no combination of the family's basis."""


@arguments(metric="function", point=Tensor)
def chart_ricci(metric: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """Ric_ij (n, n) at a ``point`` (n) of a chart in which ``metric`` maps points (n) to g (n, n), by autograd."""

    slope = torch.func.jacfwd(metric)
    jet = jet_of(metric(point), slope(point).movedim(-1, 0), torch.func.jacfwd(slope)(point).permute(3, 2, 0, 1))
    return ricci_from_connection(jet.connection, jet.connection_slope)


@arguments(point=Tensor)
def round_sphere(point: Tensor) -> Tensor:
    """The unit n-sphere in its stereographic chart, 4δ/(1 + |x|²)², as a basis (1, n, n) of all round metrics."""
    eye = torch.eye(point.shape[-1], dtype=point.dtype, device=point.device)
    return (4 / (1 + point.square().sum()).square() * eye)[None]


def sphere_product(*dimensions: int) -> Basis:
    """The unit spheres of these dimensions, each in a stereographic chart: a basis with one element per factor."""

    def basis(point: Tensor) -> Tensor:
        if point.shape[-1] != sum(dimensions):
            raise PointShapeError(
                f"spheres {dimensions} have points of {sum(dimensions)} coordinates, not {point.shape[-1]}"
            )
        blocks = [round_sphere(part)[0] for part in point.split(list(dimensions))]
        empty = [torch.zeros_like(block) for block in blocks]
        rows = [torch.block_diag(*empty[:i], block, *empty[i + 1 :]) for i, block in enumerate(blocks)]
        return torch.stack(rows)

    return basis


@arguments(point=Tensor)
def left_invariant_s3(point: Tensor) -> Tensor:
    """σ₁², σ₂², σ₃² in Euler angles (θ, φ, ψ), 0 < θ < π: the diagonal left-invariant metrics of S³, (3, 3, 3).

    dσ₁ = −σ₂∧σ₃ and cyclically; the sum of the three is the round metric of radius 2.
    """
    theta, _, psi = point
    zero, one = torch.zeros_like(theta), torch.ones_like(theta)
    forms = torch.stack(
        [
            torch.stack([psi.cos(), psi.sin() * theta.sin(), zero]),
            torch.stack([-psi.sin(), psi.cos() * theta.sin(), zero]),
            torch.stack([zero, theta.cos(), one]),
        ]
    )
    return forms[:, :, None] * forms[:, None, :]


class InvariantFamily:
    """The Ricci tensor of metrics g(x) = Σ_a c_a B_a(x), known by their values at chart points.

    ``basis`` maps a point (n) to B (m, n, n) and ``points`` is (P, n); autograd gives ∂B and ∂²B at the points, once.
    Called with metrics (..., P, n, n) it fits the coefficients and returns the exact Ricci tensors (..., P, n, n): the
    ``ricci`` of a `GeometricFlow`, which then reads ``sample_axes`` and ``weights`` (P), the chart measure, here.

    Raises `PointShapeError`, `GeometryError` for a basis that is dependent at the points, and `NotInvariantError` where
    the metric, or its Ricci tensor (so that the flow would leave the family), is not in the family to the root of the
    dtype's epsilon.
    """

    sample_axes = 1

    @arguments(basis="function", points=Tensor, weights=Tensor)
    def __init__(self, basis: Basis, points: Tensor, weights: Tensor | None = None) -> None:
        if points.ndim != 2 or not points.is_floating_point() or points.numel() == 0:
            raise PointShapeError(f"points must be floating (P, n), P ≥ 1, not {tuple(points.shape)} of {points.dtype}")
        if not bool(points.isfinite().all()):
            raise GeometryError("points must be finite")
        if weights is not None and weights.shape != points.shape[:1]:
            raise PointShapeError(f"{points.shape[0]} points need as many weights, got {tuple(weights.shape)}")
        self.basis, self.points, self.weights = basis, points, weights
        first = torch.func.jacfwd(basis)
        self._values = torch.func.vmap(basis)(points)
        if self._values.ndim != 4 or self._values.shape[2:] != (points.shape[1],) * 2:
            raise PointShapeError(f"basis must map (n,) to (m, n, n), gave {tuple(self._values.shape[1:])}")
        rank = int(torch.linalg.matrix_rank(self._values.transpose(0, 1).flatten(1)))
        if rank < self._values.shape[1]:
            raise GeometryError(
                f"the {self._values.shape[1]} elements of the basis span {rank} dimensions at these points: drop the "
                "dependent ones, or give more points"
            )
        self._slopes = torch.func.vmap(first)(points).movedim(-1, 2)
        self._curves = torch.func.vmap(torch.func.jacfwd(first))(points).permute(0, 1, 5, 4, 2, 3)

    def metric(self, coefficients: Tensor) -> Tensor:
        """The metrics (..., P, n, n) of coefficients (..., m)."""
        return torch.einsum("...a,paij->...pij", coefficients, self._values.to(coefficients))

    def coefficients(self, metric: Tensor) -> Tensor:
        """The coefficients (..., m) of metrics (..., P, n, n); raises `NotInvariantError`."""
        return self._fit(metric, "the metric")

    def __call__(self, metric: Tensor) -> Tensor:
        c = self._fit(metric, "the metric")
        slope = torch.einsum("...a,pakij->...pkij", c, self._slopes.to(metric))
        # Of the fitted metric: what rounding leaves outside the family would grow like a power of 1/c at an extinction.
        jet = jet_of(self.metric(c), slope, torch.einsum("...a,palkij->...plkij", c, self._curves.to(metric)))
        ricci = ricci_from_connection(jet.connection, jet.connection_slope)
        self._fit(ricci, "the Ricci tensor")
        return ricci

    def _fit(self, tensor: Tensor, what: str) -> Tensor:
        values = self._values.to(tensor)
        if tensor.ndim < 3 or tensor.shape[-3:] != values[:, 0].shape:
            raise PointShapeError(
                f"{what} must have shape (..., {', '.join(str(s) for s in values[:, 0].shape)}), one value at each "
                f"point of the family, not {tuple(tensor.shape)}"
            )
        gram = torch.einsum("paij,pbij->ab", values, values)
        right = torch.einsum("paij,...pij->...a", values, tensor)
        fitted: Tensor = torch.linalg.solve(gram, right.unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            rest = float((self.metric(fitted) - tensor).abs().max())
            room = torch.finfo(tensor.dtype).eps ** 0.5 * (1 + float(tensor.abs().max()))
        if not rest <= room:
            raise NotInvariantError(f"{what} is not in the family: {rest:.3g} away at some point, {room:.3g} allowed")
        return fitted
