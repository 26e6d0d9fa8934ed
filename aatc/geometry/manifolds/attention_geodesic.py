"""Geodesics between attention distributions in the Fisher–Rao metric.

Source: S. Amari, H. Nagaoka, "Methods of Information Geometry", 2000, sections 2.2 and 2.5: x = 2√p embeds the simplex
in the sphere of radius 2, so a geodesic of probabilities is the slerp of √p, squared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, PointShapeError, inverse_sinc, safe_sqrt, sinc
from aatc.geometry.manifolds.riemannian import RiemannianStructure
from aatc.geometry.manifolds.simplex import Simplex

COORDINATES = ("probabilities", "logits", "free")
METHODS = ("closed_form", "integrate")


@dataclass(frozen=True)
class AttentionPath:
    """A geodesic of distributions: ``times`` (T,) from 0 to 1, ``points`` and ``velocities`` dp/dt (T, ..., n), and
    ``length`` (...), the Fisher–Rao distance of the ends, at most π.
    """

    times: Tensor
    points: Tensor
    velocities: Tensor
    length: Tensor


class AttentionGeodesic:
    """Paths between rows of attention: points (..., n) are probabilities, p ≥ 0 and Σp = 1.

    The seed's names are kept, and corrected where they could not work: Christoffel symbols took the metric at one
    point, which has no derivative, and take the point; `integrate_geodesic` finds its own metric and symbols, since
    both vary along the path; `compute_path` uses the closed form unless it is told to integrate.

    Raises: PointShapeError for shapes and dtypes, rows of one key too; GeometryError for points that are no
    distributions, logits whose softmax is not one, and probabilities whose inverse is not finite.
    """

    def fisher_rao_metric(self, point: Tensor, coordinates: str = "probabilities") -> Tensor:
        """The Fisher–Rao metric as a matrix at ``point``.

        "probabilities": p (..., n), all positive, to diag(1/p) (..., n, n), for vectors of sum 0. "logits": z (..., n)
        to diag(p) − ppᵀ with p = softmax z, (..., n, n): it vanishes along (1, ..., 1), so logits count modulo that
        direction. "free": p (..., n) to δ_ij/p_i + 1/p_0 in the coordinates p_1..p_{n−1}, (..., n − 1, n − 1), which
        is positive definite.
        """
        if coordinates == "logits":
            p = self._floating(point).softmax(-1)
            self._distribution(p)
            return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
        self._distribution(point, positive=True)
        if coordinates == "probabilities":
            inverse = 1 / point
            if not bool(inverse.isfinite().all()):
                raise GeometryError(f"a probability is so small that its inverse is not finite in {point.dtype}")
            return torch.diag_embed(inverse)
        if coordinates == "free":
            return self._structure(point).metric_tensor(point[..., 1:])
        raise GeometryError(f"coordinates {coordinates!r} are not one of {', '.join(COORDINATES)}")

    def christoffel_symbols(self, point: Tensor) -> Tensor:
        """Γ^k_ij = −δ_ijk/(2p_k) + ½ p_k g_ij in the free coordinates p_1..p_{n−1}, (..., n − 1, n − 1, n − 1)."""
        self._distribution(point, positive=True)
        return self._structure(point).christoffel_symbols(point[..., 1:])

    def integrate_geodesic(self, start: Tensor, end: Tensor, steps: int = 16) -> AttentionPath:
        """The path from the geodesic equation in the free coordinates, solved numerically (`geodesic_between`).

        Both ends must be positive. Otherwise as `compute_path`, which agrees; here for tests and as the general case.
        Raises also ConvergenceError.
        """
        times = self._times(start, end, steps)
        self._distribution(start, positive=True)
        self._distribution(end, positive=True)
        found = self._structure(start).geodesic_between(start[..., 1:], end[..., 1:], times)
        points = torch.cat((1 - found.points.sum(-1, keepdim=True), found.points), -1)
        velocities = torch.cat((-found.velocities.sum(-1, keepdim=True), found.velocities), -1)
        return AttentionPath(times, points, velocities, found.length())

    def compute_path(
        self, start_point: Tensor, end_point: Tensor, steps: int = 16, method: str = "closed_form"
    ) -> AttentionPath:
        """The shortest path of ``steps`` equal times from ``start_point`` to ``end_point``, T = steps + 1.

        "closed_form": the slerp of √p, anywhere in the closed simplex, so masked keys (zeros) are allowed, and a key
        that is masked at both ends stays so; gradients by entries that are 0 are taken to be 0. "integrate": see
        `integrate_geodesic`.
        """
        if method == "integrate":
            return self.integrate_geodesic(start_point, end_point, steps)
        if method != "closed_form":
            raise GeometryError(f"method {method!r} is not one of {', '.join(METHODS)}")
        times = self._times(start_point, end_point, steps)
        self._distribution(start_point)
        self._distribution(end_point)
        length = Simplex().dist(start_point, end_point)
        angle = 0.5 * length.unsqueeze(-1)
        t = times.reshape(-1, *[1] * angle.dim())
        roots = safe_sqrt(start_point), safe_sqrt(end_point)
        # sin(tθ)/sin θ and its derivative in t, without the quotient 0/0 of equal ends.
        ratio = inverse_sinc(angle)
        root = ratio * ((1 - t) * sinc((1 - t) * angle) * roots[0] + t * sinc(t * angle) * roots[1])
        rate = ratio * ((t * angle).cos() * roots[1] - ((1 - t) * angle).cos() * roots[0])
        return AttentionPath(times, root.square(), 2 * root * rate, length)

    @staticmethod
    def _structure(point: Tensor) -> RiemannianStructure:
        return RiemannianStructure.simplex(point.shape[-1] - 1)

    @staticmethod
    def _floating(point: Tensor) -> Tensor:
        if not point.is_floating_point() or point.dim() == 0:
            raise PointShapeError(f"a point is (..., n) of a floating dtype, got {tuple(point.shape)} {point.dtype}")
        return point

    def _times(self, start: Tensor, end: Tensor, steps: int) -> Tensor:
        if not isinstance(steps, int) or steps < 1:
            raise GeometryError(f"steps = {steps!r}: a path has an integer number, at least one")
        self._floating(start)
        self._floating(end)
        if start.dtype != end.dtype or start.shape[-1] != end.shape[-1]:
            raise PointShapeError(
                f"the ends are (..., n) of one n and one dtype, got {tuple(start.shape)} {start.dtype} and "
                f"{tuple(end.shape)} {end.dtype}"
            )
        return torch.linspace(0, 1, steps + 1, dtype=start.dtype, device=start.device)

    def _distribution(self, point: Tensor, *, positive: bool = False) -> None:
        good = Simplex().belongs(self._floating(point))
        if positive:
            good = good & (point > 0).all(-1)
        if not bool(good.all()):
            index = tuple(int(i) for i in (~good).nonzero()[0])
            wanted = "positive probabilities of sum 1" if positive else "probabilities ≥ 0 of sum 1"
            hint = "; the closed form of compute_path takes zeros" if positive else ""
            raise GeometryError(f"the point at batch index {index} is not of {wanted}{hint}")
