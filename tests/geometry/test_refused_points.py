"""Points that a manifold does not have, and numbers that are none: typed errors in eager mode, formulas in a trace."""

import math

import pytest
import torch

from aatc.geometry import (
    SPD,
    Euclidean,
    GeometryError,
    Hyperboloid,
    NotOnManifoldError,
    PoincareBall,
    PointShapeError,
    Simplex,
    Sphere,
    Stereographic,
)
from tests.geometry.manifold_cases import CASES, draw, everywhere, tangent

OUTSIDE = {
    "euclidean": (Euclidean(), []),
    "sphere": (Sphere(), [[3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.1, 0.0]]),
    "hyperboloid": (Hyperboloid(), [[-3.0, 0.0, 0.0], [1.0, 0.3, 0.0]]),
    "ball": (PoincareBall(), [[1.2, 0.0], [1.0, 0.0]]),
    "stereographic": (Stereographic(torch.tensor(-1.0)), [[1.2, 0.0], [-0.9, 0.9]]),
    "simplex": (Simplex(), [[1.2, -0.2, 0.0], [0.3, 0.3, 0.3]]),
    "spd": (SPD(), [[[1.0, 2.0], [2.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.5], [-0.5, 1.0]]]),
}
DTYPES = [torch.float32, torch.float64]


def calls(manifold, good, bad, vector):
    """Every map with a bad point, in each of its places."""
    yield lambda: manifold.dist(bad, good)
    yield lambda: manifold.dist(good, bad)
    yield lambda: manifold.log(good, bad)
    yield lambda: manifold.exp(bad, vector)
    yield lambda: manifold.inner(bad, vector, vector)
    yield lambda: manifold.norm(bad, vector)
    yield lambda: manifold.transport(good, bad, vector)
    yield lambda: manifold.geodesic(bad, good, 0.5)
    yield lambda: manifold.tangent_projection(bad, vector)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OUTSIDE)
def test_points_outside_and_nan_are_refused_with_their_place(name, dtype):
    manifold, wrong = OUTSIDE[name]
    shape = torch.tensor(wrong[0]).shape if wrong else (3,)
    good = manifold.random_point((4, *shape), torch.Generator().manual_seed(0), dtype=dtype)
    vector = torch.zeros_like(good)
    for point in [*wrong, torch.full(shape, math.nan), torch.full(shape, math.inf)]:
        bad = good.clone()
        bad[2] = torch.as_tensor(point, dtype=dtype)
        assert not manifold.belongs(bad)[2]
        for call in calls(manifold, good, bad, vector):
            with pytest.raises(NotOnManifoldError, match=r"\(2,\)"):
                call()


@everywhere
def test_vectors_and_times_that_are_not_finite_are_refused(name):
    manifold, (x, y) = draw(name, 3, 2)
    for wrong in (math.nan, math.inf):
        v = tangent(manifold, x, 3)
        v[1] = wrong
        for call in (
            lambda v=v: manifold.exp(x, v),
            lambda v=v: manifold.norm(x, v),
            lambda v=v: manifold.inner(x, v, tangent(manifold, x, 4)),
            lambda v=v: manifold.transport(x, y, v),
            lambda v=v: manifold.tangent_projection(x, v),
            lambda v=v: manifold.projection(v),
            lambda w=wrong: manifold.geodesic(x, y, w),
        ):
            with pytest.raises(GeometryError, match="NaN or infinity"):
                call()
        assert not manifold.is_tangent(x, v)[1]


def test_half_precision_matrices_are_refused_by_name():
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.eye(2, dtype=dtype)
        for call in (
            lambda x=x: SPD().dist(x, x),
            lambda x=x: SPD().exp(x, x),
            lambda x=x: SPD().log(x, x),
            lambda x=x: SPD().inner(x, x, x),
            lambda x=x: SPD().transport(x, x, x),
            lambda x=x: SPD().projection(x),
            lambda x=x: SPD().belongs(x),
            lambda x=x: SPD().is_tangent(x, x),
            lambda d=dtype: SPD().random_point((2, 2), dtype=d),
            lambda d=dtype: CASES["product"][0].dist(torch.zeros(12, dtype=d), torch.zeros(12, dtype=d)),
        ):
            with pytest.raises(PointShapeError, match="float32 or float64"):
                call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", [n for n in CASES if n not in ("spd", "product")])
def test_rounding_is_not_taken_for_a_point_outside(name, dtype):
    manifold = CASES[name][0]
    x, y = (draw(name, n, 1, (50,))[1][0].to(dtype) for n in (0, 1))
    assert manifold.dist(x, y).isfinite().all()
    assert manifold.exp(x, tangent(manifold, x, 1)).isfinite().all()


@everywhere
def test_every_map_is_traced_whole_and_mapped_over(name):
    manifold, (x, y) = draw(name, 1, 2, (3,))
    v = tangent(manifold, x, 1)

    def maps(x, y, v):
        out = [manifold.dist(x, y), manifold.exp(x, v), manifold.log(x, y), manifold.inner(x, v, v)]
        return [*out, manifold.transport(x, y, v), manifold.geodesic(x, y, 0.3), manifold.projection(x)]

    want = maps(x, y, v)
    torch._dynamo.reset()
    for run in (torch.func.vmap(maps), torch.compile(maps, backend="eager", fullgraph=True)):
        torch.testing.assert_close(run(x, y, v), want, rtol=1e-12, atol=1e-13)
    torch._dynamo.reset()


def test_a_trace_evaluates_the_formula_of_points_outside():
    torch._dynamo.reset()
    x, y = torch.tensor([1.2, 0.0]), torch.tensor([0.1, 0.0])
    traced = torch.compile(PoincareBall().dist, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(x, y), torch.func.vmap(PoincareBall().dist)(x[None], y[None])[0])
    assert torch.func.vmap(Sphere().dist)(torch.full((1, 2), math.nan), torch.ones(1, 2)).isnan().all()
    torch._dynamo.reset()
