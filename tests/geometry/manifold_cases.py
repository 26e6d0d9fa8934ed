"""The manifolds that are tested, and how their points and vectors are drawn."""

import pytest
import torch
from hypothesis import strategies as st

from aatc.geometry import SPD, Euclidean, Hyperboloid, Manifold, PoincareBall, Product, Simplex, Sphere, Stereographic

ATOL = 1e-8
PRODUCT = Product([(Sphere(2.0), (3,)), (SPD(), (2, 2)), (Hyperboloid(0.5), (3,)), (Euclidean(), (2,))])
PRODUCT_64 = Product([(Sphere(2.0), (21,)), (SPD(), (4, 4)), (Hyperboloid(0.5), (17,)), (Euclidean(), (10,))])
# Each with the shape of a point of moderate size and of one with about 64 dimensions.
CASES: dict[str, tuple[Manifold, tuple[int, ...], tuple[int, ...]]] = {
    "euclidean": (Euclidean(), (3,), (64,)),
    "sphere": (Sphere(), (4,), (64,)),
    "sphere_radius": (Sphere(2.5), (3,), (64,)),
    "hyperboloid": (Hyperboloid(), (4,), (64,)),
    "hyperboloid_c": (Hyperboloid(0.3), (3,), (64,)),
    "ball": (PoincareBall(), (3,), (64,)),
    "ball_c": (PoincareBall(2.0), (3,), (64,)),
    "stereographic": (Stereographic(0.8), (3,), (64,)),
    "stereographic_tensor": (Stereographic(torch.tensor(-0.6, dtype=torch.float64)), (3,), (64,)),
    "spd": (SPD(), (3, 3), (11, 11)),
    "simplex": (Simplex(), (4,), (64,)),
    "product": (PRODUCT, (12,), (12,)),
}
# The manifold of the large point, where it is another one.
LARGE: dict[str, tuple[Manifold, tuple[int, ...]]] = {
    name: (manifold, large) for name, (manifold, _, large) in CASES.items()
} | {"product": (PRODUCT_64, (64,))}
everywhere = pytest.mark.parametrize("name", CASES)
seeds = st.integers(0, 2**31)


def draw(name: str, seed: int, count: int, batch: tuple[int, ...] = (6,)) -> tuple[Manifold, list[torch.Tensor]]:
    manifold, shape, _ = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    return manifold, [manifold.random_point((*batch, *shape), generator, dtype=torch.float64) for _ in range(count)]


def tangent(manifold: Manifold, x: torch.Tensor, seed: int, size: float = 0.2) -> torch.Tensor:
    """A tangent vector at ``x`` that is short enough to stay on the open simplex."""
    normal = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=x.dtype)
    return size * manifold.tangent_projection(x, x * normal if isinstance(manifold, Simplex) else normal)


def close(a: torch.Tensor, b: torch.Tensor | float, atol: float = ATOL) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype).expand_as(a), atol=atol, rtol=atol)
