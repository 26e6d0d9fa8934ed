"""Geodesics between two points in many coordinates, against closed forms; the matrix-free solver against matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from aatc.geometry import AttentionGeodesic, PoincareBall, Simplex
from aatc.geometry.manifold import GeometryError
from aatc.geometry.manifolds.collocation import Collocation, _Dense, _Krylov, _scheme, gmres
from aatc.geometry.manifolds.integrate import ConvergenceError
from aatc.geometry.manifolds.riemannian import RiemannianStructure
from tests.geometry.chart_cases import F64, warped

SEEDS = st.integers(0, 10**6)


def close(got, want, atol=1e-8):
    torch.testing.assert_close(got, want, rtol=atol, atol=atol)


def in_ball(seed, count, n, radius):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, n, generator=generator, dtype=F64)
    length = radius * torch.rand(count, 1, generator=generator, dtype=F64)
    return length * x / x.norm(dim=-1, keepdim=True)


def in_simplex(seed, count, n, concentration):
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(n + 1, concentration), count))


def tilted(x):
    """A metric of n coordinates without symmetry."""
    n = x.shape[-1]
    k = torch.arange(n, dtype=x.dtype)
    h = torch.tanh(x @ torch.sin(1.7 * k[:, None] + 0.9 * k * k) / n**0.5)
    return torch.diag_embed(1.5 + h) + 0.1 * h.unsqueeze(-1) * h.unsqueeze(-2)


@pytest.mark.parametrize("radius", [0.3, 0.95])
@settings(max_examples=4)
@given(seed=SEEDS, n=st.integers(9, 70))
def test_balls_of_many_coordinates_agree_with_the_closed_form(seed, n, radius):
    x, y = in_ball(seed, 20, n, radius), in_ball(seed + 1, 20, n, radius)
    x[3], y[4] = y[3], 0
    found = RiemannianStructure.poincare_ball(n).geodesic_between(x, y, torch.linspace(0, 1, 5, dtype=F64))
    close(found.initial_velocity, PoincareBall().log(x, y))
    close(found.points[2], PoincareBall().geodesic(x, y, torch.tensor(0.5, dtype=F64)))
    close(found.points[-1], y, 1e-12)
    close(found.length(), PoincareBall().dist(x, y))


@settings(max_examples=4)
@given(seed=SEEDS, concentration=st.sampled_from([0.7, 1.0, 3.0]))
def test_geodesics_of_the_simplex_do_not_bounce_off_its_faces(seed, concentration):
    # Beside the shortest one there are geodesics that touch faces, on which halved Newton steps may land.
    p, q = (in_simplex(s, 16, 64, concentration) for s in (seed, seed + 1))
    near = torch.minimum(p, q).amin(-1) < 1e-5
    p, q = torch.where(near[:, None], 0.9 * p + 0.1 / 65, p), torch.where(near[:, None], 0.9 * q + 0.1 / 65, q)
    close(RiemannianStructure.simplex(64).log(p[:, 1:], q[:, 1:]), Simplex().log(p, q)[:, 1:])


def test_a_differentiated_metric_of_64_coordinates():
    chart = RiemannianStructure(tilted)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(6, 64, generator=generator, dtype=F64) for _ in range(2))
    found = chart.geodesic_between(x, y)
    flown = chart.geodesic_flow(x, found.initial_velocity)
    close(flown.points, found.points)
    close(found.speed(), found.speed()[:1].expand(17, 6))
    close(chart.dist(y, x), found.length())
    straight = chart.norm(x + 0.5 * (y - x), y - x)
    assert (found.length() < straight).all()


@pytest.mark.slow
def test_ten_thousand_pairs_of_dimension_64():
    x, y = in_ball(1, 10_000, 64, 0.7), in_ball(2, 10_000, 64, 0.7)
    close(RiemannianStructure.poincare_ball(64).log(x, y), PoincareBall().log(x, y))


@settings(max_examples=8)
@given(seed=SEEDS, stages=st.sampled_from([8, 16]), n=st.integers(1, 5))
def test_applied_jacobians_are_inverted_like_formed_ones(seed, stages, n):
    generator = torch.Generator().manual_seed(seed)
    chart = RiemannianStructure(warped)
    x, y = (torch.rand(3, n, generator=generator, dtype=F64) for _ in range(2))
    a, right = (torch.randn(3, stages, n, generator=generator, dtype=F64) for _ in range(2))
    system = Collocation(chart._acceleration, chart._derivatives, x, y, stages)
    for transposed in (False, True):
        got, want = (kind(system, 0.3 * a).solve(right, transposed=transposed) for kind in (_Krylov, _Dense))
        close(got, want, 1e-9)
    step = 1e-6 * right
    change = (system.residual(0.3 * a + step)[0] - system.residual(0.3 * a - step)[0]) / 2e-6
    close(_Dense(system, 0.3 * a).solve(change), right, 1e-6)


@settings(max_examples=10)
@given(seed=SEEDS, size=st.integers(1, 40))
def test_gmres_solves_each_system_of_a_batch(seed, size):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.eye(size, dtype=F64) + 0.5 / size**0.5 * torch.randn(4, size, size, generator=generator, dtype=F64)
    matrix[1] = torch.eye(size, dtype=F64)
    want = torch.randn(4, size, generator=generator, dtype=F64) * torch.tensor([[1e-9], [1.0], [0.0], [1e9]])
    right = torch.einsum("bij,bj->bi", matrix, want)
    got = gmres(lambda w: torch.einsum("bij,bj->bi", matrix, w), right, 1e-13)
    residual = torch.einsum("bij,bj->bi", matrix, got) - right
    assert (residual.norm(dim=-1) <= 1e-10 * right.norm(dim=-1)).all()


def test_gmres_of_a_singular_system_ends_with_the_best_it_found():
    matrix = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=F64))[None]
    got = gmres(lambda w: torch.einsum("bij,bj->bi", matrix, w), torch.ones(1, 3, dtype=F64), 1e-13)
    close(got[:, :2], torch.tensor([[1.0, 0.5]], dtype=F64))
    assert got.isfinite().all()


def test_gradients_of_many_coordinates_are_those_of_the_closed_form():
    x, y = in_ball(1, 3, 64, 0.6).requires_grad_(), in_ball(2, 3, 64, 0.6).requires_grad_()
    chart, weights = RiemannianStructure.poincare_ball(64), torch.cos(torch.arange(192, dtype=F64)).reshape(3, 64)

    def gradients(log, create_graph=False):
        return torch.autograd.grad((weights * log(x, y)).sum(), (x, y), create_graph=create_graph)

    for got, want in zip(gradients(chart.log), gradients(PoincareBall().log)):
        close(got, want)
    second = [
        torch.autograd.grad(sum(g.square().sum() for g in gradients(log, True)), (x, y))
        for log in (chart.log, PoincareBall().log)
    ]
    for got, want in zip(*second):
        close(got, want, 1e-7)
    got = torch.func.grad(lambda a: (weights * chart.log(a, y.detach())).sum())(x.detach())
    close(got, gradients(chart.log)[0])


def test_gradcheck_with_more_coordinates_than_are_factored():
    n = 9
    x, y = in_ball(1, 1, n, 0.5).requires_grad_(), in_ball(2, 1, n, 0.5).requires_grad_()
    assert gradcheck(RiemannianStructure.poincare_ball(n).log, (x, y))
    assert gradgradcheck(RiemannianStructure.poincare_ball(n).dist, (x, y))
    scale = torch.tensor(0.7, dtype=F64, requires_grad=True)

    def distance(s):
        return RiemannianStructure(lambda z: tilted(s * z)).dist(x.detach(), y.detach())

    assert gradcheck(distance, (scale,))


def test_no_gradient_is_prepared_where_none_is_wanted():
    x, y = in_ball(1, 2, 64, 0.5), in_ball(2, 2, 64, 0.5).requires_grad_()
    chart = RiemannianStructure.poincare_ball(64)
    assert not chart.log(x, y.detach()).requires_grad
    with torch.no_grad():
        assert not chart.log(x, y).requires_grad
    assert chart.log(x, y).requires_grad


def test_what_does_not_converge_says_how_far_it_came():
    chart = RiemannianStructure(
        lambda x: (1 + 1e4 * torch.sin(30 * x).square().sum(-1))[..., None, None] * torch.eye(9)
    )
    ends = torch.zeros(9, dtype=torch.float32), torch.full((9,), 2.0)
    with pytest.raises(ConvergenceError, match="no geodesic") as caught:
        chart.geodesic_between(*ends, max_iterations=1)
    assert caught.value.residual > 1e-5 and caught.value.iterations > 0


@pytest.mark.parametrize("n", [2, 12])
def test_forward_derivatives_and_hessians_are_those_of_reverse_mode(n):
    x, y = in_ball(1, 1, n, 0.6)[0], in_ball(2, 1, n, 0.6)[0]
    chart, oracle = RiemannianStructure.poincare_ball(n), PoincareBall()
    assert gradcheck(lambda a: chart.log(a, y), (x.clone().requires_grad_(),), check_forward_ad=True)
    close(torch.func.jacfwd(lambda a: chart.log(a, y))(x), torch.func.jacrev(lambda a: oracle.log(a, y))(x))
    close(torch.func.hessian(lambda a: chart.dist(a, y))(x), torch.func.hessian(lambda a: oracle.dist(a, y))(x), 1e-7)

    def distance(scale):
        return RiemannianStructure(lambda z: scale * chart.metric(z) + scale.square() * tilted(z)).dist(x, y)

    scale, one = torch.tensor(0.7, dtype=F64), torch.ones((), dtype=F64)
    close(torch.func.jvp(distance, (scale,), (one,))[1], torch.func.grad(distance)(scale))


def test_a_gradient_does_not_move_the_value_however_loose_the_tolerance():
    x, y = in_ball(1, 4, 12, 0.93), in_ball(2, 4, 12, 0.93)
    chart = RiemannianStructure.poincare_ball(12)
    plain, traced = (chart.geodesic_between(a, y, tolerance=1e-2) for a in (x, x.clone().requires_grad_()))
    close(traced.initial_velocity.detach(), plain.initial_velocity, 1e-14)


def test_a_first_use_without_gradients_does_not_forbid_later_ones():
    x, y = in_ball(1, 1, 3, 0.5), in_ball(2, 1, 3, 0.5)
    chart = RiemannianStructure.stereographic(3, 1.0)
    _scheme.cache_clear()
    with torch.inference_mode():
        chart.dist(x, y)
    x.requires_grad_()
    chart.dist(x, y).sum().backward()
    assert x.grad.abs().max() > 0


def test_points_without_a_geodesic_are_named():
    x = in_ball(3, 40, 16, 1.0)
    x = 0.5 * x / x.norm(dim=-1, keepdim=True)
    y = -x.roll(1, 0)
    for k in (7, 30):
        x[k] *= 1.9999
        y[k] = -x[k]
    with pytest.raises(ConvergenceError, match=r"index \(0, 7\) and 1 more") as caught:
        RiemannianStructure.poincare_ball(16).log(x[None], y[None])
    assert caught.value.indices == ((0, 7), (0, 30))


def test_points_on_two_sides_of_a_hole_are_named():
    """Flat space without a disc: from one side of it to the other no straight line leads."""
    holed = RiemannianStructure(
        lambda x: torch.eye(2, dtype=x.dtype).expand(*x.shape, 2), domain=lambda x: x.norm(dim=-1) > 0.5
    )
    x = 1 + torch.rand(6, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    y = x.roll(1, 0) + 0.1
    for k in (1, 4):
        y[k] = -x[k]
    with pytest.raises(ConvergenceError, match=r"index \(0, 2, 0\) and 1 more") as caught:
        holed.log(x.reshape(3, 2, 1, 2).transpose(0, 1), y.reshape(3, 2, 1, 2).transpose(0, 1))
    assert caught.value.indices == ((0, 2, 0), (1, 0, 0))


def test_few_coordinates_near_a_face_are_solved_too():
    p = torch.tensor([1 - 2e-6, 1e-6, 1e-6], dtype=F64)
    path = AttentionGeodesic().compute_path(p, p.flip(0), method="integrate")
    close(path.points[0], p, 1e-12)
    close(RiemannianStructure.simplex(2).dist(p[1:], p.flip(0)[1:]), Simplex().dist(p, p.flip(0)))


@pytest.mark.parametrize("times", [[0.0, 2.0], [-0.1, 0.5, 1.0]])
def test_times_beyond_the_ends_are_refused(times):
    x, y = in_ball(1, 1, 2, 0.5), in_ball(2, 1, 2, 0.5)
    with pytest.raises(GeometryError, match="geodesic_flow"):
        RiemannianStructure.poincare_ball(2).geodesic_between(x, y, torch.tensor(times, dtype=F64))
