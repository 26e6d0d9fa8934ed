"""Metrics sampled on regular grids: fourth-order differences, Christoffel symbols, Ricci tensors, volumes.

A metric is a tensor (..., N1, ..., Nn, n, n): leading axes are a batch, then one axis per coordinate, then g_ij. Other
tensor fields have the same grid axes and their own trailing axes; a derivative puts its index before them. Everything
is differentiable and follows the dtype and device of the metric.

Sources: Chow, Knopf, The Ricci Flow: An Introduction, appendix A, for the curvature; Fornberg, Generation of finite
difference formulas, Math. Comp. 51 (1988) 699, for the stencils.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aatc.geometry.arguments import is_number
from aatc.geometry.manifold import GeometryError, PointShapeError

_FIRST = (1 / 12, -2 / 3, 0.0, 2 / 3, -1 / 12)
_SECOND = (-1 / 12, 4 / 3, -5 / 2, 4 / 3, -1 / 12)
# The largest eigenvalue of minus the second difference above is this over h², at the shortest wave of the grid.
LARGEST_SECOND_DIFFERENCE = 16 / 3


class DegenerateMetricError(GeometryError):
    """A metric that is not finite and positive definite everywhere; ``location`` is the first index where it fails."""

    def __init__(self, message: str, *, location: tuple[int, ...]) -> None:
        super().__init__(message)
        self.location = location


class Jet(NamedTuple):
    """What curvature needs of a metric at every point: g⁻¹, ∂_k g_ij, Γ^k_ij and ∂_l Γ^k_ij (l, then k, i, j)."""

    inverse: Tensor
    slope: Tensor
    connection: Tensor
    connection_slope: Tensor


def check_positive(metric: Tensor) -> Tensor:
    """√det g, (...), of metrics (..., n, n).

    Raises `DegenerateMetricError` unless every one is positive definite, `GeometryError` unless they are symmetric, and
    `PointShapeError` for an empty tensor and for dtypes other than float32 and float64, which nothing factorises.
    """
    if metric.dtype not in (torch.float32, torch.float64) or metric.numel() == 0:
        raise PointShapeError(
            f"metrics are float32 or float64 and not empty, got {tuple(metric.shape)} of {metric.dtype}: convert first"
        )
    factor, info = torch.linalg.cholesky_ex(metric)
    bad = (info != 0) | ~metric.isfinite().all(-1).all(-1)
    if bool(bad.any()):
        where = tuple(int(i) for i in bad.nonzero()[0])
        raise DegenerateMetricError(
            f"the metric at index {where} is not positive definite: {metric[where].tolist()}", location=where
        )
    skewness = float((metric - metric.mT).detach().abs().amax())
    if skewness > torch.finfo(metric.dtype).eps ** 0.5 * float(metric.detach().abs().amax()):
        raise GeometryError(f"the metric is not symmetric: g_ij − g_ji reaches {skewness:.3g}; give ½(g + gᵀ)")
    volume: Tensor = factor.diagonal(dim1=-2, dim2=-1).prod(-1)
    return volume


def christoffel(inverse: Tensor, slope: Tensor) -> Tensor:
    """Γ^k_ij = ½ g^{km}(∂_i g_mj + ∂_j g_mi − ∂_m g_ij), (..., k, i, j), from g⁻¹ and ∂_k g_ij (..., k, i, j)."""
    return torch.einsum("...km,...mij->...kij", inverse, _lowered(slope))


def _lowered(slope: Tensor) -> Tensor:
    """½(∂_i g_mj + ∂_j g_mi − ∂_m g_ij), (..., m, i, j)."""
    return 0.5 * (slope.transpose(-3, -2) + slope.movedim(-3, -1) - slope)


def jet_of(metric: Tensor, slope: Tensor, curve: Tensor) -> Jet:
    """The jet of g_ij with ∂_k g_ij (..., k, i, j) and ∂_l∂_k g_ij (..., l, k, i, j)."""
    inverse = torch.linalg.inv(metric)
    connection = christoffel(inverse, slope)
    falling = torch.einsum("...imp,...pjl->...imjl", slope, connection)
    connection_slope = torch.einsum("...km,...imjl->...ikjl", inverse, _lowered(curve) - falling)
    return Jet(inverse, slope, connection, connection_slope)


def ricci_from_connection(connection: Tensor, connection_slope: Tensor) -> Tensor:
    """Ric_ij = ∂_kΓ^k_ij − ∂_jΓ^k_ik + Γ^k_kl Γ^l_ij − Γ^k_jl Γ^l_ik, (..., n, n).

    ``connection`` is Γ^k_ij (..., k, i, j) and ``connection_slope`` ∂_lΓ^k_ij (..., l, k, i, j). The unit n-sphere has
    Ric = (n − 1) g.
    """
    divergence = torch.einsum("...kkij->...ij", connection_slope)
    trace_slope = torch.einsum("...jkik->...ij", connection_slope)
    trace = torch.einsum("...kkl->...l", connection)
    spread = torch.einsum("...l,...lij->...ij", trace, connection)
    return divergence - trace_slope + spread - torch.einsum("...kjl,...lik->...ij", connection, connection)


def scalar_curvature(inverse: Tensor, ricci: Tensor) -> Tensor:
    """R = g^{ij} Ric_ij, (...)."""
    return (inverse * ricci).sum((-2, -1))


def largest_inverse_eigenvalue(inverse: Tensor) -> Tensor:
    """The largest eigenvalue of g⁻¹, (...)."""
    if inverse.shape[-1] != 2:
        largest: Tensor = torch.linalg.eigvalsh(inverse)[..., -1]
        return largest
    mean = 0.5 * (inverse[..., 0, 0] + inverse[..., 1, 1])
    return mean + torch.hypot(0.5 * (inverse[..., 0, 0] - inverse[..., 1, 1]), inverse[..., 0, 1])


@cache
def _edge_weights(derivative: int, row: int, width: int) -> list[float]:
    """Weights on points 0 … width − 1 of the given derivative at the point ``row``, for spacing 1."""
    powers = np.vander(np.arange(width) - float(row), increasing=True).T
    right = np.zeros(width)
    right[derivative] = float(derivative)
    weights: list[float] = np.linalg.solve(powers, right).tolist()
    return weights


@dataclass(frozen=True)
class MetricGrid:
    """A regular grid of coordinates: the ``spacing`` of each, and which of them are ``periodic``.

    Periodic axes use central differences. The two rows at either end of an open axis use one-sided differences, also
    of order four. Raises `GeometryError` for spacings that are not positive or do not fit ``periodic``.
    """

    spacing: tuple[float, ...]
    periodic: tuple[bool, ...] | bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.spacing, (list, tuple)) or not all(map(is_number, self.spacing)):
            raise GeometryError(f"the spacings of a grid are a tuple of numbers, got {self.spacing!r}")
        if not isinstance(self.periodic, (bool, list, tuple)):
            raise GeometryError(f"whether a grid is periodic is True, False or a tuple of them, got {self.periodic!r}")
        object.__setattr__(self, "spacing", tuple(float(h) for h in self.spacing))
        flags = (self.periodic,) * len(self.spacing) if isinstance(self.periodic, bool) else tuple(self.periodic)
        object.__setattr__(self, "periodic", flags)
        if not self.spacing or not all(0 < h < float("inf") for h in self.spacing):
            raise GeometryError(f"the spacings of a grid must be positive numbers, not {self.spacing}")
        if len(flags) != len(self.spacing):
            raise GeometryError(f"{len(self.spacing)} spacings need as many periodic flags, got {len(flags)}")

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return len(self.spacing)

    @property
    def is_closed(self) -> bool:
        """Whether every axis is periodic."""
        return all(self.axis_is_periodic(i) for i in range(self.dim))

    def axis_is_periodic(self, axis: int) -> bool:
        """Whether coordinate ``axis`` is periodic."""
        return self.periodic if isinstance(self.periodic, bool) else self.periodic[axis]

    def check_metric(self, metric: Tensor) -> None:
        """Raise `PointShapeError` unless ``metric`` is floating (..., N1, ..., Nn, n, n) on a grid large enough."""
        n = self.dim
        if not metric.is_floating_point() or metric.ndim < n + 2 or tuple(metric.shape[-2:]) != (n, n):
            raise PointShapeError(
                f"a metric on this grid is a floating tensor (..., {'N, ' * n}{n}, {n}), not {tuple(metric.shape)} "
                f"of {metric.dtype}"
            )
        self.check_sizes(tuple(metric.shape[-n - 2 : -2]))

    def check_sizes(self, sizes: tuple[int, ...]) -> None:
        """Raise `PointShapeError` where an axis has too few points: 5 if periodic, 6 if open."""
        for axis, size in enumerate(sizes):
            least = 5 if self.axis_is_periodic(axis) else 6
            if size < least:
                raise PointShapeError(f"axis {axis} of the grid has {size} points; its differences need {least}")

    def first(self, field: Tensor, axis: int, trailing: int) -> Tensor:
        """∂ along coordinate ``axis`` of a field with ``trailing`` axes after those of the grid; its shape."""
        return self._difference(field, axis, trailing, 1)

    def second(self, field: Tensor, axis: int, trailing: int) -> Tensor:
        """∂² along coordinate ``axis``, by a stencil of its own that sees the shortest waves of the grid."""
        return self._difference(field, axis, trailing, 2)

    def gradient(self, field: Tensor, trailing: int) -> Tensor:
        """∂_k of a field, (..., N1, ..., Nn, k, *trailing axes)."""
        return torch.stack([self.first(field, k, trailing) for k in range(self.dim)], field.ndim - trailing)

    def hessian(self, field: Tensor, trailing: int) -> Tensor:
        """∂_k∂_l of a field, (..., N1, ..., Nn, k, l, *trailing axes), symmetric in k and l."""
        n, at = self.dim, field.ndim - trailing
        rows: list[list[Tensor]] = [[field] * n for _ in range(n)]
        for k in range(n):
            rows[k][k] = self.second(field, k, trailing)
        for k, l in combinations(range(n), 2):
            rows[k][l] = rows[l][k] = self.first(self.first(field, k, trailing), l, trailing)
        return torch.stack([torch.stack(row, at) for row in rows], at)

    def jet(self, metric: Tensor) -> Jet:
        """g⁻¹, ∂g, Γ and ∂Γ, the last from ∂²g and not by a difference of Γ. Raises `PointShapeError`."""
        self.check_metric(metric)
        return jet_of(metric, self.gradient(metric, 2), self.hessian(metric, 2))

    def weights(self, field: Tensor, trailing: int) -> Tensor:
        """Quadrature weights (N1, ..., Nn) of dx1…dxn: equal on periodic axes, of order four (Gregory) on open ones."""
        total = torch.ones((), dtype=field.dtype, device=field.device)
        for axis, h in enumerate(self.spacing):
            size = field.shape[field.ndim - trailing - self.dim + axis]
            line = torch.full((size,), h, dtype=field.dtype, device=field.device)
            if not self.axis_is_periodic(axis):
                for row, corrected in enumerate((3 / 8, 7 / 6, 23 / 24)):
                    line[row] *= corrected
                    line[size - 1 - row] *= corrected
            total = total.unsqueeze(-1) * line
        return total

    def _difference(self, field: Tensor, axis: int, trailing: int, order: int) -> Tensor:
        # sum() begins with the number 0, so its type is not Tensor to a checker; the weights are never all 0
        dim = field.ndim - trailing - self.dim + axis
        weights = _FIRST if order == 1 else _SECOND
        scale = self.spacing[axis] ** -order
        if self.axis_is_periodic(axis):
            return sum(w * scale * field.roll(2 - i, dim) for i, w in enumerate(weights) if w)  # type: ignore[return-value]
        size = field.shape[dim]
        inner = sum(w * scale * field.narrow(dim, i, size - 4) for i, w in enumerate(weights) if w)
        width = 4 + order
        edge = field.new_tensor([_edge_weights(order, row, width) for row in (0, 1)]) * scale
        head = torch.tensordot(edge, field.narrow(dim, 0, width), ([1], [dim])).movedim(0, dim)
        tail = torch.tensordot(edge, field.narrow(dim, size - width, width).flip(dim), ([1], [dim])).movedim(0, dim)
        return torch.cat([head, inner, (-1) ** order * tail.flip(dim)], dim)  # type: ignore[list-item]
