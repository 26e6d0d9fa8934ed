"""Manifolds and parameters to and from geoopt, whose Riemannian optimisers then train them.

geoopt is an extra: ``pip install "aatc[geoopt]"``. Nothing else here needs it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from aatc.geometry.arguments import arguments
from aatc.geometry.manifold import Euclidean, GeometryError, Manifold
from aatc.geometry.manifolds.hyperbolic import Hyperboloid, PoincareBall
from aatc.geometry.manifolds.log_euclidean import LogEuclideanSPD
from aatc.geometry.manifolds.product import Product
from aatc.geometry.manifolds.spd import SPD
from aatc.geometry.manifolds.sphere import Sphere
from aatc.geometry.manifolds.stiefel import Stiefel


class MissingGeooptError(GeometryError, ImportError):
    """geoopt is not installed."""


def _geoopt() -> Any:
    try:
        import geoopt
    except ImportError as error:
        raise MissingGeooptError('geoopt is not installed: pip install "aatc[geoopt]"') from error
    return geoopt


@cache
def _adapted() -> Any:
    """The class of geoopt's manifolds that compute by ours."""

    class Adapted(_geoopt().manifolds.base.Manifold):  # type: ignore[misc]
        """A manifold of aatc with geoopt's interface. Retractions carry vectors by projection, as optimisers want."""

        reversible = True

        def __init__(self, ours: Manifold) -> None:
            super().__init__()
            self.ours = ours
            self.ndim = ours.point_ndim
            self.name = repr(ours)

        def _check_shape(self, shape: Any, name: str) -> tuple[bool, str | None]:
            try:
                self.ours._check(torch.empty(tuple(shape), device="meta"))
            except GeometryError as error:
                return False, f"{name}: {error}"
            return True, None

        def _check_point_on_manifold(self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5) -> Any:
            fine = bool(self.ours.belongs(x, atol + rtol).all())
            return fine, None if fine else f"'x' is not on {self.ours!r}"

        def _check_vector_on_tangent(self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5) -> Any:
            fine = bool(self.ours.is_tangent(x, u, atol + rtol).all())
            return fine, None if fine else f"'u' is not tangent to {self.ours!r}"

        def _keep(self, value: Tensor, keepdim: bool) -> Tensor:
            return value.reshape(*value.shape, *[1] * self.ndim) if keepdim else value

        def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
            return self._keep(self.ours.dist(x, y), keepdim)

        def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
            return self._keep(self.ours.squared_dist(x, y), keepdim)

        def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
            return self._keep(self.ours.inner(x, u, u if v is None else v), keepdim)

        def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
            return self._keep(self.ours.norm(x, u), keepdim)

        def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
            if not isinstance(self.ours, Product):
                return self.inner(x, u, v, keepdim=True)
            parts = self.ours._each(lambda m, a, b, c: m._inner(a, b, c), x, u, u if v is None else v)
            sizes = self.ours.sizes
            return torch.cat([p.unsqueeze(-1).expand(*p.shape, size) for p, size in zip(parts, sizes)], -1)

        def expmap(self, x: Tensor, u: Tensor) -> Tensor:
            return self.ours.exp(x, u)

        def logmap(self, x: Tensor, y: Tensor) -> Tensor:
            return self.ours.log(x, y)

        def retr(self, x: Tensor, u: Tensor) -> Tensor:
            return self.ours.retraction(x, u)

        def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
            return self.ours.transport(x, y, v)

        def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            y = self.ours.retraction(x, u)
            return y, self.ours.tangent_projection(y, v)

        def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            y = self.ours.exp(x, u)
            return y, self.ours.transport(x, y, v)

        def projx(self, x: Tensor) -> Tensor:
            return self.ours.projection(x)

        def proju(self, x: Tensor, u: Tensor) -> Tensor:
            return self.ours.tangent_projection(x, u)

        def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
            return self.ours.egrad2rgrad(x, u)

        def random(self, *size: Any, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
            shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
            tensor = _geoopt().ManifoldTensor
            drawn: Tensor = tensor(self.ours.random_point(tuple(shape), dtype=dtype, device=device), manifold=self)
            return drawn

        def extra_repr(self) -> str:
            return repr(self.ours)

    return Adapted


@arguments(manifold=Manifold)
def to_geoopt(manifold: Manifold) -> Any:
    """A ``geoopt.manifolds.base.Manifold`` that computes by ``manifold``. Raises MissingGeooptError."""
    return _adapted()(manifold)


def from_geoopt(manifold: Any) -> Manifold:
    """Ours for one of geoopt: of `to_geoopt`, Euclidean, Sphere, Lorentz, PoincareBall, SymmetricPositiveDefinite (AIM
    and LEM), CanonicalStiefel, and products of these.

    Curvatures are taken as the numbers they are now. geoopt's Lorentz(k) is ``Hyperboloid(1/k)``.
    Raises: GeometryError for others, of which there is none here; MissingGeooptError.
    """
    geoopt = _geoopt()
    if isinstance(manifold, _adapted()):
        ours: Manifold = manifold.ours
        return ours
    kinds = geoopt.manifolds
    spd = kinds.SymmetricPositiveDefinite
    if isinstance(manifold, kinds.ProductManifold) and not isinstance(manifold, kinds.StereographicProductManifold):
        return Product([(from_geoopt(one), tuple(shape)) for one, shape in zip(manifold.manifolds, manifold.shapes)])
    if isinstance(manifold, kinds.Euclidean) and manifold.ndim == 1:
        return Euclidean()
    if isinstance(manifold, kinds.Sphere) and getattr(manifold, "projector", None) is None:
        return Sphere()
    if isinstance(manifold, kinds.Lorentz):
        return Hyperboloid(1 / float(manifold.k))
    if isinstance(manifold, kinds.PoincareBall):
        return PoincareBall(float(manifold.c))
    if isinstance(manifold, spd) and manifold.default_metric.value in ("AIM", "LEM"):
        return SPD() if manifold.default_metric.value == "AIM" else LogEuclideanSPD()
    if isinstance(manifold, kinds.CanonicalStiefel):
        return Stiefel()
    raise GeometryError(
        f"geoopt's {manifold!r} has no counterpart here: there are Euclidean (of one axis), Sphere without a subspace, "
        "Lorentz, PoincareBall, SymmetricPositiveDefinite (AIM, LEM), CanonicalStiefel and ProductManifold"
    )


@arguments(manifold=Manifold, point=Tensor)
def to_geoopt_parameter(manifold: Manifold, point: Tensor) -> Any:
    """``geoopt.ManifoldParameter`` of ``point`` (..., *P), which shares its memory, for geoopt's optimisers.

    Raises: GeometryError for a point that is not on the manifold; MissingGeooptError.
    """
    if not bool(manifold.belongs(point.detach()).all()):
        raise GeometryError(f"a parameter that is not on {manifold!r}; use its projection()")
    return _geoopt().ManifoldParameter(point.detach(), manifold=to_geoopt(manifold), requires_grad=True)


def from_geoopt_parameter(parameter: Any) -> tuple[Manifold, Tensor]:
    """Our manifold of a ``geoopt.ManifoldParameter`` or ``ManifoldTensor``, and its numbers as a plain tensor that
    shares their memory. Raises: as `from_geoopt`."""
    if not isinstance(parameter, Tensor) or not hasattr(parameter, "manifold"):
        raise GeometryError(f"a parameter of geoopt has a manifold, got {type(parameter).__name__}")
    return from_geoopt(parameter.manifold), parameter.detach().as_subclass(Tensor)
