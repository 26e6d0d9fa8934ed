"""Wrapped normal distributions and transport along sampled curves."""

import math

import numpy as np
import pytest
import torch

from aatc.geometry import (
    SPD,
    GeometryError,
    Hyperboloid,
    PoincareBall,
    PointShapeError,
    Sphere,
    WrappedNormal,
    curve_length,
    transport_along,
)


def near(a, b, atol=1e-10):
    np.testing.assert_allclose(np.asarray(a.detach()), np.asarray(b), rtol=0, atol=atol)


def ring(manifold, mean, radii, angles):
    """exp of vectors of lengths ``radii`` in directions ``angles`` of an orthonormal frame at ``mean``."""
    basis = []
    for axis in torch.eye(mean.shape[-1], dtype=mean.dtype):
        v = manifold.tangent_projection(mean, axis)
        for b in basis:
            v = v - manifold.inner(mean, b, v) * b
        if float(manifold.norm(mean, v)) > 1e-6:
            basis.append(v / manifold.norm(mean, v))
    assert len(basis) == 2
    turn = angles.cos()[:, None] * basis[0] + angles.sin()[:, None] * basis[1]
    return manifold.exp(mean, radii[:, None, None] * turn)


CASES = {
    "hyperboloid": (Hyperboloid(0.7), [0.0, 0.4, -0.9], lambda r: np.sinh(math.sqrt(0.7) * r) / math.sqrt(0.7), 9.0),
    "ball": (PoincareBall(1.5), [0.3, -0.5], lambda r: np.sinh(math.sqrt(1.5) * r) / math.sqrt(1.5), 7.0),
    "sphere": (Sphere(2.0), [-0.3, 0.2, 0.9], lambda r: 2 * np.sin(r / 2), 2 * math.pi),
}


@pytest.mark.parametrize("name", CASES)
def test_densities_integrate_to_one_against_the_volume(name):
    manifold, mean, area, end = CASES[name]
    mean = manifold.projection(torch.tensor(mean, dtype=torch.float64))
    # wide on the sphere, where much goes all the way round
    scale = torch.tensor([2.5, 1.5] if name == "sphere" else [0.4, 0.9], dtype=torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(160)
    radii = end * (nodes + 1) / 2
    angles = np.arange(96) * 2 * math.pi / 96
    x = ring(manifold, mean, torch.tensor(radii), torch.tensor(angles))
    density = WrappedNormal(manifold, mean, scale).log_prob(x).exp().numpy().mean(-1) * 2 * math.pi
    assert abs(float((density * area(radii) * weights).sum() * end / 2) - 1) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_samples_have_the_moments_and_the_density_says_so(name):
    manifold, mean, _, _ = CASES[name]
    mean = manifold.projection(torch.tensor(mean, dtype=torch.float64))
    normal = WrappedNormal(manifold, mean, 0.3)
    x = normal.sample((4000,), torch.Generator().manual_seed(0))
    assert x.shape == (4000, *mean.shape) and manifold.belongs(x, 1e-9).all()
    assert abs(float(manifold.squared_dist(mean, x).mean()) - 2 * 0.09) < 0.01
    assert manifold.norm(mean, manifold.log(mean, x).mean(0)) < 0.02
    r = manifold.dist(mean, x[:50]).numpy()
    area = CASES[name][2]
    by_hand = -(r**2) / 0.18 - math.log(2 * math.pi * 0.09) - np.log(area(r) / r)
    near(normal.log_prob(x[:50]), by_hand, 1e-9)


def test_ball_and_hyperboloid_are_one_distribution():
    ball, space = PoincareBall(1.5), Hyperboloid(1.5)
    mean = torch.tensor([0.2, -0.4], dtype=torch.float64)
    scale = torch.tensor([0.3, 1.1], dtype=torch.float64)
    one, other = WrappedNormal(ball, mean, scale), WrappedNormal(space, ball.to_hyperboloid(mean), scale)
    x, y = one.sample((7,), torch.Generator().manual_seed(0)), other.sample((7,), torch.Generator().manual_seed(0))
    near(ball.to_hyperboloid(x), y)
    near(one.log_prob(x), other.log_prob(y))


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_densities_and_samples(name):
    manifold, mean, _, _ = CASES[name]
    mean = manifold.projection(torch.tensor(mean, dtype=torch.float64)).requires_grad_()
    scale = torch.tensor([0.5, 0.8], dtype=torch.float64, requires_grad=True)
    x = WrappedNormal(manifold, mean, scale).sample((2,), torch.Generator().manual_seed(1)).requires_grad_()

    def density(p, m, s):
        return WrappedNormal(manifold, manifold.projection(m), s).log_prob(manifold.projection(p))

    def drawn(m, s):
        return WrappedNormal(manifold, manifold.projection(m), s).rsample((3,), torch.Generator().manual_seed(2))

    assert torch.autograd.gradcheck(density, (x, mean, scale))
    assert torch.autograd.gradcheck(drawn, (mean, scale))
    at = density(mean.detach(), mean, scale)
    assert all(g.isfinite().all() for g in torch.autograd.grad(at.sum(), (mean, scale)))


def test_batches_and_refusals():
    ball = PoincareBall()
    normal = WrappedNormal(ball, torch.zeros(3, 1, 2), torch.ones(4, 2))
    assert normal.batch_shape == (3, 4) and normal.sample((5,)).shape == (5, 3, 4, 2)
    assert normal.log_prob(torch.zeros(2)).shape == (3, 4)
    with pytest.raises(GeometryError, match="wrapped onto"):
        WrappedNormal(SPD(), torch.eye(2))  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match="positive"):
        WrappedNormal(ball, torch.zeros(2), -1.0)
    with pytest.raises(GeometryError, match="not on"):
        WrappedNormal(ball, torch.ones(2))
    with pytest.raises(PointShapeError, match="scale of shape"):
        WrappedNormal(ball, torch.zeros(2), torch.ones(3))


def test_transport_round_a_circle_of_latitude_turns_by_the_area():
    colatitude, steps = 0.8, (64, 128)
    gaps = []
    for count in steps:
        t = torch.linspace(0, 2 * math.pi, count + 1, dtype=torch.float64)
        s, c = math.sin(colatitude), math.cos(colatitude)
        curve = torch.stack([s * t.cos(), s * t.sin(), torch.full_like(t, c)], -1)
        south = torch.tensor([c, 0.0, -s], dtype=torch.float64)
        east = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
        path = transport_along(Sphere(), curve, south)
        assert path.shape == (count + 1, 3) and torch.equal(path[0], south)
        assert Sphere().is_tangent(curve, path, 1e-12).all()
        near(Sphere().norm(curve, path), np.ones(count + 1), 1e-12)
        turned = math.atan2(float(path[-1] @ east), float(path[-1] @ south)) % (2 * math.pi)
        gaps.append(abs(turned - 2 * math.pi * (1 - c)))
        assert abs(float(curve_length(Sphere(), curve)) - 2 * math.pi * s) < 20 / count**2
    assert gaps[0] < 0.01 and gaps[1] < gaps[0] / 3.5


def test_transport_along_a_geodesic_is_that_to_its_end_in_batches():
    generator = torch.Generator().manual_seed(0)
    x, y = (SPD().random_point((2, 3, 3), generator, dtype=torch.float64) for _ in "ab")
    v = torch.eye(3, dtype=torch.float64)
    times = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    curve = SPD().geodesic(x, y, times)
    near(transport_along(SPD(), curve, v)[-1], SPD().transport(x, y, v), 1e-10)
    near(curve_length(SPD(), curve), SPD().dist(x, y), 1e-10)
    assert transport_along(SPD(), curve[:1], v).shape == (1, 2, 3, 3)
    for bad in (lambda: transport_along(Sphere(), torch.ones(3), v), lambda: curve_length(SPD(), v)):
        with pytest.raises(PointShapeError):
            bad()
