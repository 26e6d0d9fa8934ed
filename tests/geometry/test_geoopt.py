"""Manifolds and parameters to and from geoopt, and what both compute alike."""

import sys

import numpy as np
import pytest
import torch

from aatc.geometry import (
    SPD,
    Euclidean,
    GeometryError,
    Hyperboloid,
    LogEuclideanSPD,
    MissingGeooptError,
    PoincareBall,
    Product,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    from_geoopt,
    from_geoopt_parameter,
    to_geoopt,
    to_geoopt_parameter,
)
from tests.geometry.every_manifold import everywhere, points, tangent


def near(a, b, atol=1e-9):
    np.testing.assert_allclose(np.asarray(a.detach()), np.asarray(b.detach()), rtol=0, atol=atol)


def test_without_geoopt_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "geoopt", None)
    with pytest.raises(MissingGeooptError, match=r"aatc\[geoopt\]"):
        from_geoopt(object())


def library():
    return pytest.importorskip("geoopt", reason="the extra geoopt is not installed")


@everywhere
def test_ours_in_geoopts_interface(name):
    library()
    manifold, (x, y) = points(name, 2)
    v = tangent(manifold, x, 1)
    theirs = to_geoopt(manifold)
    assert from_geoopt(theirs) is manifold
    assert theirs.check_point_on_manifold(x) and theirs.check_vector_on_tangent(x, v)
    assert not theirs.check_point_on_manifold(x * torch.nan)
    near(theirs.dist(x, y), manifold.dist(x, y))
    near(theirs.dist2(x, y), manifold.dist(x, y) ** 2)
    assert theirs.dist(x, y, keepdim=True).ndim == x.ndim
    near(theirs.expmap(x, theirs.logmap(x, y)), y)
    near(theirs.transp(x, y, v), manifold.transport(x, y, v))
    z, carried = theirs.retr_transp(x, v, v)
    near(z, manifold.retraction(x, v))
    assert theirs.check_vector_on_tangent(z, carried)
    near(theirs.expmap_transp(x, v, v)[0], manifold.exp(x, v))
    assert theirs.random(x.shape, dtype=torch.float64).manifold is theirs


@everywhere
def test_geoopts_optimisers_reach_the_minimum_on_ours(name):
    geoopt = library()
    manifold, (x, y) = points(name, 2, ())
    for make, steps in (
        (lambda p: geoopt.optim.RiemannianSGD(p, lr=0.2), 60),
        (lambda p: geoopt.optim.RiemannianAdam(p, lr=0.1), 60),
    ):
        parameter = to_geoopt_parameter(manifold, manifold.geodesic(x, y, 0.4).clone())
        optimiser = make([parameter])
        first = float(manifold.dist(parameter, x))
        for _ in range(steps):
            optimiser.zero_grad()
            manifold.squared_dist(parameter, x).backward()
            optimiser.step()
        ours, point = from_geoopt_parameter(parameter)
        assert ours is manifold and type(point) is torch.Tensor and point.data_ptr() == parameter.data_ptr()
        assert manifold.belongs(point, 1e-6) and float(manifold.dist(point, x)) < 0.2 * first


def test_geoopts_manifolds_are_ours_and_compute_the_same():
    geoopt = library()
    torch.manual_seed(0)
    pairs = [
        (geoopt.Sphere(), Sphere, (3,)),
        (geoopt.Lorentz(2.0), Hyperboloid, (4,)),
        (geoopt.PoincareBall(c=0.7), PoincareBall, (3,)),
        (geoopt.SymmetricPositiveDefinite(), SPD, (3, 3)),
    ]
    for theirs, kind, shape in pairs:
        theirs = theirs.double()
        ours = from_geoopt(theirs)
        assert type(ours) is kind
        x, y = (ours.random_point((5, *shape), dtype=torch.float64) for _ in "ab")
        v = tangent(ours, x, 0, 0.5)
        near(theirs.dist(x, y), ours.dist(x, y), 1e-6)
        near(theirs.expmap(x, v), ours.exp(x, v), 1e-7)
        near(theirs.logmap(x, y), ours.log(x, y), 1e-6)
        gradient = torch.randn_like(x)
        near(theirs.egrad2rgrad(x, gradient.clone()), ours.egrad2rgrad(x, gradient), 1e-7)
        if kind is not Sphere:  # geoopt's carries vectors by projection there
            near(theirs.transp(x, y, v), ours.transport(x, y, v), 1e-6)
    ball = geoopt.PoincareBall(c=0.7).double()
    x = PoincareBall(0.7).random_point((4, 6, 3), dtype=torch.float64)
    weights = torch.rand(4, 6, dtype=torch.float64)
    from aatc.geometry import gyromidpoint

    near(ball.weighted_midpoint(x, weights, reducedim=[1]), gyromidpoint(x, weights, c=0.7), 1e-7)
    product = from_geoopt(geoopt.ProductManifold((geoopt.Sphere(), 3), (geoopt.PoincareBall(), 2)))
    assert isinstance(product, Product) and product.sizes == (3, 2)
    assert type(from_geoopt(geoopt.CanonicalStiefel())) is Stiefel
    assert type(from_geoopt(geoopt.Euclidean(1))) is Euclidean
    with pytest.warns(UserWarning):
        assert type(from_geoopt(geoopt.SymmetricPositiveDefinite("LEM"))) is LogEuclideanSPD
    for none in (geoopt.EuclideanStiefel(), geoopt.Sphere(torch.eye(3)[:2].mT), geoopt.Euclidean(2)):
        with pytest.raises(GeometryError, match="no counterpart"):
            from_geoopt(none)


def test_parameters_off_the_manifold_are_refused():
    library()
    with pytest.raises(GeometryError, match="not on"):
        to_geoopt_parameter(SpecialOrthogonal(), -torch.eye(3))
