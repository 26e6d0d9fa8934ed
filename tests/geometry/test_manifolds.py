"""Manifolds against their axioms and closed forms, in float64 and to 1e-8."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from aatc.geometry import Hyperboloid, PoincareBall
from tests.geometry.manifold_cases import close, draw, everywhere, seeds, tangent


@everywhere
@given(seed=seeds)
def test_exp_and_log_are_inverse(name, seed):
    manifold, (x, y) = draw(name, seed, 2)
    v = manifold.log(x, y)
    assert manifold.is_tangent(x, v).all()
    close(manifold.exp(x, v), y)
    u = tangent(manifold, x, seed)
    end = manifold.exp(x, u)
    assert manifold.belongs(end, 1e-10).all()
    close(manifold.log(x, end), u)


@everywhere
@given(seed=seeds)
def test_distance_is_the_norm_of_log_symmetric_and_zero_only_at_coincidence(name, seed):
    manifold, (x, y) = draw(name, seed, 2)
    close(manifold.dist(x, y), manifold.norm(x, manifold.log(x, y)))
    close(manifold.dist(x, y), manifold.dist(y, x))
    assert (manifold.dist(x, x) == 0).all() and (manifold.dist(x, y) > 0).all()


@everywhere
@given(seed=seeds)
def test_triangle_inequality(name, seed):
    manifold, (x, y, z) = draw(name, seed, 3)
    assert (manifold.dist(x, z) <= manifold.dist(x, y) + manifold.dist(y, z) + 1e-12).all()


@everywhere
@given(seed=seeds, t=st.floats(0, 1))
def test_geodesic_has_its_end_points_and_constant_speed(name, seed, t):
    manifold, (x, y) = draw(name, seed, 2)
    close(manifold.geodesic(x, y, 0.0), x)
    close(manifold.geodesic(x, y, 1.0), y)
    middle = manifold.geodesic(x, y, t)
    assert manifold.belongs(middle, 1e-10).all()
    close(manifold.dist(x, middle), t * manifold.dist(x, y))
    close(manifold.dist(middle, y), (1 - t) * manifold.dist(x, y))


@everywhere
@given(seed=seeds)
def test_transport_is_isometric_tangent_and_inverted_by_the_way_back(name, seed):
    manifold, (x, y) = draw(name, seed, 2)
    u, v = tangent(manifold, x, seed), tangent(manifold, x, seed + 1)
    moved = manifold.transport(x, y, v)
    assert manifold.is_tangent(y, moved, 1e-10).all()
    close(manifold.inner(y, manifold.transport(x, y, u), moved), manifold.inner(x, u, v))
    close(manifold.transport(y, x, moved), v)
    close(manifold.transport(x, y, manifold.log(x, y)), -manifold.log(y, x))


@everywhere
def test_times_of_a_path_broadcast_with_the_batch(name):
    manifold, (x, y) = draw(name, 3, 2, ())
    path = manifold.geodesic(x, y, torch.linspace(0, 1, 5, dtype=torch.float64))
    assert path.shape == (5, *x.shape)
    steps = manifold.dist(path[1:], path[:-1])
    close(steps, manifold.dist(x, y).item() / 4)


@given(seed=seeds)
def test_simplex_distance_and_geodesic_are_those_of_the_slerp_of_roots(seed):
    manifold, (p, q) = draw("simplex", seed, 2)
    angle = (p * q).sqrt().sum(-1, keepdim=True).acos()
    close(manifold.dist(p, q), 2 * angle.squeeze(-1))
    for t in (0.25, 0.6):
        slerp = (((1 - t) * angle).sin() * p.sqrt() + (t * angle).sin() * q.sqrt()) / angle.sin()
        close(manifold.geodesic(p, q, t), slerp.square())


@given(seed=seeds)
def test_simplex_metric_is_that_of_the_free_coordinates(seed):
    manifold, (p,) = draw("simplex", seed, 1, ())
    u, v = tangent(manifold, p, seed), tangent(manifold, p, seed + 7)
    g = torch.diag(1 / p[1:]) + 1 / p[0]
    close(manifold.inner(p, u, v), u[1:] @ g @ v[1:])


@given(seed=seeds, c=st.floats(0.1, 4))
def test_the_ball_is_isometric_to_the_hyperboloid(seed, c):
    ball, space = PoincareBall(c), Hyperboloid(c)
    generator = torch.Generator().manual_seed(seed)
    x, y = (ball.random_point((6, 3), generator, dtype=torch.float64) for _ in range(2))
    a, b = ball.to_hyperboloid(x), ball.to_hyperboloid(y)
    assert space.belongs(a, 1e-10).all()
    close(ball.from_hyperboloid(a), x)
    close(ball.dist(x, y), space.dist(a, b))
    close(ball.dist(x, y), (1 + 2 * c * (x - y).square().sum(-1) / _gaps(x, y, c)).acosh() / math.sqrt(c))
    close(ball.to_hyperboloid(ball.geodesic(x, y, 0.3)), space.geodesic(a, b, 0.3))
    v = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    push = torch.func.jvp(ball.to_hyperboloid, (x,), (v,))[1]
    moved = torch.func.jvp(ball.to_hyperboloid, (y,), (ball.transport(x, y, v),))[1]
    close(moved, space.transport(a, b, push))


def _gaps(x: torch.Tensor, y: torch.Tensor, c: float) -> torch.Tensor:
    return (1 - c * x.square().sum(-1)) * (1 - c * y.square().sum(-1))


@given(seed=seeds)
def test_sphere_and_hyperboloid_distances_are_the_arc_functions(seed):
    sphere, (x, y) = draw("sphere_radius", seed, 2)
    close(sphere.dist(x, y), 2.5 * ((x * y).sum(-1) / 2.5**2).acos())
    space, (x, y) = draw("hyperboloid_c", seed, 2)
    product = x[..., 0] * y[..., 0] - (x[..., 1:] * y[..., 1:]).sum(-1)
    close(space.dist(x, y), (0.3 * product).acosh() / math.sqrt(0.3))


@given(seed=seeds)
def test_spd_distance_is_that_of_the_eigenvalues_and_is_invariant(seed):
    spd, (x, y) = draw("spd", seed, 2)
    values = torch.linalg.eigvals(torch.linalg.solve(x, y)).real
    close(spd.dist(x, y), values.log().square().sum(-1).sqrt())
    a = torch.randn((3, 3), generator=torch.Generator().manual_seed(seed), dtype=x.dtype) + 4 * torch.eye(3)
    close(spd.dist(a @ x @ a.mT, a @ y @ a.mT), spd.dist(x, y))
    close(spd.dist(torch.linalg.inv(x), torch.linalg.inv(y)), spd.dist(x, y))
    middle = spd.geodesic(x, y, 0.5)
    close(middle @ torch.linalg.solve(x, middle), y)
