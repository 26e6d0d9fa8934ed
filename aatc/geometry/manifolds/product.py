"""Products of manifolds, their points laid end to end in one axis."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, Manifold, PointShapeError


class Product(Manifold):
    """M₁ × … × M_k with the sum of the metrics: every operation acts on each factor, dist² = Σ dist_i².

    ``factors`` are pairs of a manifold and the shape of one of its points; a point of the product is their
    coordinates, flattened, end to end: (..., N), N being the sum of the sizes. ``split`` and ``join`` go between
    the two forms. Source: M. do Carmo, "Riemannian Geometry", 1992, chapter 1, example 2.7.

    Raises: GeometryError without factors; PointShapeError for a shape that a factor refuses or another N.
    CutLocusError where a factor raises it.
    """

    def __init__(self, factors: Sequence[tuple[Manifold, Sequence[int]]]) -> None:
        try:
            self.factors = tuple((manifold, tuple(map(operator.index, shape))) for manifold, shape in factors)
        except (TypeError, ValueError) as error:
            raise GeometryError(f"factors are pairs of a manifold and the shape of a point, got {factors!r}") from error
        if not self.factors or not all(isinstance(manifold, Manifold) for manifold, _ in self.factors):
            raise GeometryError(f"a product needs at least one factor, each a manifold, got {factors!r}")
        for manifold, shape in self.factors:
            if len(shape) != manifold.point_ndim:
                raise PointShapeError(f"a point of {manifold!r} has {manifold.point_ndim} axes, got the shape {shape}")
            manifold._check_trailing(shape)
        self.sizes = tuple(math.prod(shape) for _, shape in self.factors)

    def __repr__(self) -> str:
        return f"Product({list(self.factors)!r})"

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """The parts (..., *P_i) of (..., N)."""
        self._check(x)
        return self._split(x)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """(..., N) of the parts (..., *P_i), whose batch axes broadcast."""
        if len(parts) != len(self.factors):
            raise PointShapeError(f"{len(self.factors)} parts make a point, got {len(parts)}")
        for part, (manifold, shape) in zip(parts, self.factors):
            manifold._check(part)
            if tuple(part.shape[part.ndim - len(shape) :]) != shape:
                raise PointShapeError(f"the part of {manifold!r} has the shape {shape}, got {tuple(part.shape)}")
        try:
            return self._join(parts)
        except RuntimeError as error:
            raise PointShapeError(f"the batch axes of {[tuple(p.shape) for p in parts]} do not broadcast") from error

    def _check_trailing(self, shape: tuple[int, ...]) -> None:
        if shape[-1] != sum(self.sizes):
            raise PointShapeError(f"a point of the product has {sum(self.sizes)} coordinates, got {shape[-1]}")

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = x.split(self.sizes, dim=-1)
        return tuple(part.reshape(*x.shape[:-1], *shape) for part, (_, shape) in zip(parts, self.factors))

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        flat = [part.flatten(-len(shape)) for part, (_, shape) in zip(parts, self.factors)]
        batch = torch.broadcast_shapes(*[part.shape[:-1] for part in flat])
        return torch.cat([part.expand(*batch, part.shape[-1]) for part in flat], -1)

    def _parameters(self) -> Any:
        return [parameter for manifold, _ in self.factors for parameter in manifold._parameters()]

    def _check(self, *tensors: Tensor) -> None:
        super()._check(*tensors)
        for tensor in tensors:
            for part, (manifold, _) in zip(self._split(tensor), self.factors):
                manifold._check(part)

    def _near(self, x: Tensor) -> Tensor:
        return torch.stack(self._each(lambda m, a: m._near(a), x), -1).all(-1)

    def _each(self, method: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
        """``method(manifold, *parts)`` for each factor."""
        columns = zip(*[self._split(tensor) for tensor in tensors])
        return [method(manifold, *parts) for (manifold, _), parts in zip(self.factors, columns)]

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        each = torch.stack(self._each(lambda m, a, b: m._dist(a, b), x, y), -1)
        distances: Tensor = torch.linalg.vector_norm(each, dim=-1)
        return distances

    def _squared_dist(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack(self._each(lambda m, a, b: m._squared_dist(a, b), x, y), -1).sum(-1)

    def _blur(self, x: Tensor, eps: float) -> Tensor:
        return torch.stack(
            [torch.as_tensor(b).expand(x.shape[:-1]) for b in self._each(lambda m, a: m._blur(a, eps), x)], -1
        ).amax(-1)

    def _unreachable(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack(self._each(lambda m, a, b: m._unreachable(a, b), x, y), -1).any(-1)

    def _is_tangent(self, x: Tensor, v: Tensor, atol: float) -> Tensor:
        return torch.stack(self._each(lambda m, a, w: m._is_tangent(a, w, atol), x, v), -1).all(-1)

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        return self._join(self._each(lambda m, a, w: m._exp(a, w), x, v))

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        return self._join(self._each(lambda m, a, b: m._log(a, b), x, y))

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return torch.stack(self._each(lambda m, a, w, z: m._inner(a, w, z), x, u, v), -1).sum(-1)

    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self._join(self._each(lambda m, a, b, w: m._transport(a, b, w), x, y, v))

    def _projection(self, x: Tensor) -> Tensor:
        return self._join(self._each(lambda m, a: m._projection(a), x))

    def _tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        return self._join(self._each(lambda m, a, w: m._tangent_projection(a, w), x, v))

    def _egrad2rgrad(self, x: Tensor, gradient: Tensor) -> Tensor:
        return self._join(self._each(lambda m, a, g: m._egrad2rgrad(a, g), x, gradient))

    def _retraction(self, x: Tensor, v: Tensor) -> Tensor:
        return self._join(self._each(lambda m, a, w: m._retraction(a, w), x, v))

    def convexity_radius(self) -> float | Tensor:
        return min(manifold.convexity_radius() for manifold, _ in self.factors)

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        return torch.stack(self._each(lambda m, a: m._belongs(a, atol), x), -1).all(-1)

    def _random_point(self, normal: Tensor) -> Tensor:
        return self._join(self._each(lambda m, a: m._random_point(a), normal))
