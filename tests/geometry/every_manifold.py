"""Every manifold in closed form, and the maps that each of them has."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aatc.geometry import (
    SPD,
    Euclidean,
    Grassmann,
    Hyperboloid,
    LogEuclideanSPD,
    Manifold,
    PoincareBall,
    Product,
    Simplex,
    SpecialEuclidean,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
)

PRODUCT = Product([(Sphere(2.0), (3,)), (SPD(), (2, 2)), (Hyperboloid(0.5), (3,))])
MANIFOLDS: dict[str, tuple[Manifold, tuple[int, ...]]] = {
    "euclidean": (Euclidean(), (3,)),
    "sphere": (Sphere(2.5), (3,)),
    "hyperboloid": (Hyperboloid(0.3), (3,)),
    "ball": (PoincareBall(2.0), (3,)),
    "simplex": (Simplex(), (4,)),
    "spd": (SPD(), (3, 3)),
    "log_euclidean": (LogEuclideanSPD(), (3, 3)),
    "rotations": (SpecialOrthogonal(), (3, 3)),
    "rotations_4": (SpecialOrthogonal(), (4, 4)),
    "motions": (SpecialEuclidean(0.5), (4, 4)),
    "grassmann": (Grassmann(2), (4, 4)),
    "stiefel": (Stiefel(), (4, 2)),
    "product": (PRODUCT, (10,)),
}
NEW = ("log_euclidean", "rotations", "rotations_4", "motions", "grassmann", "stiefel")
everywhere = pytest.mark.parametrize("name", MANIFOLDS)
new = pytest.mark.parametrize("name", NEW)


def points(name: str, count: int, batch: tuple[int, ...] = (4,), seed: int = 0) -> tuple[Manifold, list[Tensor]]:
    """Random points that have one shortest geodesic between them."""
    manifold, shape = MANIFOLDS[name]
    generator = torch.Generator().manual_seed(seed)
    drawn = [manifold.random_point((*batch, *shape), generator, dtype=torch.float64)]
    while len(drawn) < count:
        if name == "stiefel":  # uniformly distributed frames are often farther apart than a geodesic is unique
            drawn.append(manifold.exp(drawn[0], tangent(manifold, drawn[0], seed + len(drawn), 0.8)))
        else:
            drawn.append(manifold.random_point((*batch, *shape), generator, dtype=torch.float64))
    return manifold, drawn


def tangent(manifold: Manifold, x: Tensor, seed: int, size: float = 0.2) -> Tensor:
    """A tangent vector at ``x`` that is short enough to stay on the open simplex."""
    normal = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=x.dtype)
    return size * manifold.tangent_projection(x, x * normal if isinstance(manifold, Simplex) else normal)


def maps(manifold: Manifold, x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> dict[str, tuple[Callable, tuple]]:
    """Every map that returns numbers, with arguments."""
    return {
        "dist": (manifold.dist, (x, y)),
        "squared_dist": (manifold.squared_dist, (x, y)),
        "exp": (manifold.exp, (x, v)),
        "log": (manifold.log, (x, y)),
        "inner": (manifold.inner, (x, u, v)),
        "norm": (manifold.norm, (x, v)),
        "transport": (manifold.transport, (x, y, v)),
        "geodesic": (lambda a, b: manifold.geodesic(a, b, 0.3), (x, y)),
        "projection": (manifold.projection, (x + 0.1 * u.abs(),)),
        "tangent_projection": (manifold.tangent_projection, (x, v)),
        "egrad2rgrad": (manifold.egrad2rgrad, (x, v)),
        "retraction": (manifold.retraction, (x, v)),
    }
