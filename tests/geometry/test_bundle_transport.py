"""Transport and holonomy against closed forms: areas, fluxes, gauges, and the order of the integrator."""

import itertools
import math

import pytest
import torch
from hypothesis import given

from aatc.geometry.bundles.bundle import FiberBundle, holonomy_of_polygon
from aatc.geometry.bundles.bundle_charts import stereographic_charts
from aatc.geometry.bundles.connection import reversed_path
from tests.geometry.bundle_cases import (
    F64,
    HYPERBOLIC,
    MOEBIUS,
    MONOPOLE,
    PLANE,
    SPHERE,
    TANGENT,
    TANGENT3,
    circle_of_latitude,
    curve,
    few,
    flat_form,
    generator,
    points_of,
    polynomial_form,
    randn,
)
from tests.geometry.manifold_cases import close, seeds


def solid_angle(triangle):
    a, b, c = triangle
    volume = torch.linalg.det(torch.stack([a, b, c], -2))
    return 2 * torch.atan2(volume, 1 + (a * b).sum(-1) + (b * c).sum(-1) + (c * a).sum(-1))


def turn_by(angle):
    return torch.stack([torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)], -2)


@few
@given(seed=seeds)
def test_the_integrator_gives_the_manifolds_closed_transport(seed):
    for bundle in (TANGENT3, HYPERBOLIC):
        x = points_of(bundle, seed, 3, 4)
        x = torch.cat([x[:2], bundle.base.geodesic(x[1], x[2], 0.4)[None]])
        close(bundle.transport_matrix(x, method="magnus", steps=400), bundle.transport_matrix(x))
        v = randn(seed, 4, bundle.rank)
        ambient = (bundle.frame(x[0]) @ v.unsqueeze(-1)).squeeze(-1)
        for a, b in itertools.pairwise(x):
            ambient = bundle.base.transport(a, b, ambient)
        end = bundle.parallel_transport(v, x)
        close((bundle.frame(x[-1]) @ end.unsqueeze(-1)).squeeze(-1), ambient)


@few
@given(seed=seeds)
def test_a_spherical_triangle_turns_by_its_area(seed):
    triangle = SPHERE.random_point((3, 5, 3), generator(seed), dtype=F64)
    angle = solid_angle(triangle)
    close(holonomy_of_polygon(SPHERE, triangle), turn_by(angle))
    loop = torch.cat([triangle, triangle[:1]])
    sides = SPHERE.dist(loop[1:], loop[:-1]).amax(0) < 2.2
    close(TANGENT.holonomy(loop[:, sides], method="magnus", steps=600), turn_by(angle[sides]))


@few
@given(seed=seeds)
def test_a_hyperbolic_triangle_turns_by_minus_its_area(seed):
    flat = randn(seed, 3, 4, 2)
    triangle = PLANE.projection(torch.nn.functional.pad(flat, (1, 0)))
    angles = 0.0
    for k in range(3):
        at, u, w = triangle[k], *(PLANE.log(triangle[k], triangle[(k + i) % 3]) for i in (1, 2))
        angles = angles + (PLANE.inner(at, u, w) / (PLANE.norm(at, u) * PLANE.norm(at, w))).clamp(-1, 1).acos()
    klein = flat / triangle[..., :1]
    side = torch.linalg.det(torch.stack([klein[1] - klein[0], klein[2] - klein[0]], -2)).sign()
    expected = turn_by(-side * (math.pi - angles))
    close(holonomy_of_polygon(PLANE, triangle), expected)
    loop = torch.cat([triangle, triangle[:1]])
    close(HYPERBOLIC.holonomy(loop, method="magnus", steps=900), expected)


@pytest.mark.parametrize(("charge", "height"), [(1, 0.0), (2, 0.5), (-3, -0.4), (1, -0.7)])
def test_a_circle_of_latitude_of_a_monopole_has_the_holonomy_of_the_flux_through_it(charge, height):
    bundle = FiberBundle.monopole(charge)
    flux = torch.tensor(charge * math.pi * (1 - height), dtype=F64)
    close(bundle.holonomy(circle_of_latitude(height), dtype=F64), turn_by(flux))
    for chart in ("north", "south"):
        close(bundle.holonomy(circle_of_latitude(height), chart=chart, dtype=F64), turn_by(flux))


def test_the_moebius_bundle_turns_fibres_round_once_and_back_twice():
    def circle(turns):
        return lambda t: torch.stack(
            [torch.cos(2 * math.pi * turns * t + 0.4), torch.sin(2 * math.pi * turns * t + 0.4)], -1
        )

    close(MOEBIUS.holonomy(circle(1), dtype=F64), -1.0)
    close(MOEBIUS.holonomy(circle(-1), dtype=F64), -1.0)
    close(MOEBIUS.holonomy(circle(2), dtype=F64), 1.0)


@few
@given(seed=seeds)
def test_crossing_charts_does_not_change_the_answer(seed):
    path = circle_of_latitude(0.15)
    north = stereographic_charts(SPHERE)[0]

    def wave(t):
        return SPHERE.projection(path(t) + 0.3 * torch.sin(7 * t + seed % 7).unsqueeze(-1))

    for bundle in (MONOPOLE, TANGENT):
        crossed = bundle.transport_matrix(wave, steps=300, start_chart="north", end_chart="north", dtype=F64)
        alone = FiberBundle.trivial(2, 2, bundle._connections["north"])
        close(crossed, alone.transport_matrix(lambda t: north.coordinates(wave(t)), steps=300, dtype=F64))
    assert len(MONOPOLE.home_chart(wave(torch.linspace(0, 1, 50, dtype=F64))).unique()) == 2


@few
@given(seed=seeds)
def test_transport_is_undone_backwards_and_orthogonal_for_skew_forms_at_any_step(seed):
    bundle = FiberBundle.trivial(3, 4, polynomial_form(seed, 3, 4))
    path, v = curve(seed, 3), randn(seed, 5, 4)
    end = bundle.parallel_transport(v, path, steps=7)
    close(end.norm(dim=-1), v.norm(dim=-1), 1e-12)
    close(bundle.parallel_transport(end, reversed_path(path), steps=7), v, 1e-12)
    samples = torch.stack([path(t[None])[0] for t in torch.linspace(0, 1, 5, dtype=F64)])
    end = bundle.parallel_transport(v, samples, steps=8)
    close(bundle.parallel_transport(end, reversed_path(samples), steps=8), v, 1e-12)


@pytest.mark.parametrize("skew", [True, False])
def test_the_integrator_converges_with_order_four(skew):
    bundle = FiberBundle.trivial(2, 3, polynomial_form(2, 2, 3, skew))
    path = curve(3, 2)
    exact = bundle.transport_matrix(path, steps=2000, dtype=F64)
    errors = [(bundle.transport_matrix(path, steps=n, dtype=F64) - exact).abs().max() for n in (40, 80, 160)]
    assert errors[0] > 1e-9
    for coarse, fine in itertools.pairwise(errors):
        assert torch.log2(coarse / fine) >= 3.8


def test_the_integrator_solves_the_equation_that_an_ode_solver_solves():
    from scipy.integrate import solve_ivp

    bundle = FiberBundle.trivial(2, 3, polynomial_form(2, 2, 3, False))
    whole, v = curve(3, 2), randn(1, 3)

    def path(t):
        return whole(0.5 * t)

    def slope(t, y):
        x, u = torch.func.jvp(path, (torch.tensor([t], dtype=F64),), (torch.ones(1, dtype=F64),))
        return -(bundle.connection_form(x[0], u[0]) @ torch.as_tensor(y)).numpy()

    solved = solve_ivp(slope, (0, 1), v.numpy(), method="DOP853", rtol=1e-10, atol=1e-11).y[:, -1]
    close(bundle.parallel_transport(v, path, steps=500), torch.as_tensor(solved))


@few
@given(seed=seeds)
def test_a_flat_connection_has_no_curvature_and_transport_by_its_gauge_alone(seed):
    w = 0.5 * randn(seed, 2, 3, 3)

    def gauge(x):
        return torch.linalg.matrix_exp(x[..., :1, None] * w[0]) @ torch.linalg.matrix_exp(x[..., 1:, None].sin() * w[1])

    bundle = FiberBundle.trivial(2, 3, flat_form(gauge))
    close(bundle.curvature_form(randn(seed, 6, 2)), 0.0)
    ends = torch.tensor([[0.1, -0.2], [0.7, 0.5]], dtype=F64)
    bent = torch.stack([ends[0], randn(seed, 2), ends[1]])
    expected = torch.linalg.inv(gauge(ends[1])) @ gauge(ends[0])
    close(bundle.transport_matrix(ends, steps=120), expected)
    close(bundle.transport_matrix(bent, steps=240), expected)


def test_small_loops_turn_by_the_curvature_times_their_area_to_third_order():
    bundle = FiberBundle.trivial(2, 3, polynomial_form(5, 2, 3))
    x = torch.tensor([0.2, -0.1], dtype=F64)
    f = bundle.curvature_form(x)[0, 1]
    errors = []
    for size in (0.04, 0.02, 0.01):
        corners = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], dtype=F64) * size
        matrix = bundle.holonomy(x + corners, steps=40)
        errors.append((matrix - torch.eye(3) + f * size**2).abs().max())
    for coarse, fine in itertools.pairwise(errors):
        assert 2.8 < torch.log2(coarse / fine) < 3.3


def test_a_principal_bundle_carries_frames_by_the_same_matrix():
    form = polynomial_form(1, 2, 3)
    vectors, frames = (FiberBundle.trivial(2, 3, form, principal=p) for p in (False, True))
    start = randn(0, 6, 3, 3)
    moved = frames.parallel_transport(start, curve(1, 2))
    close(moved, torch.stack([vectors.parallel_transport(start[..., k], curve(1, 2)) for k in range(3)], -1))
    packed = torch.cat([randn(2, 6, 2), start.flatten(-2)], -1)
    close(frames.local_trivialization(packed).fibre, start)
    close(frames.bundle_projection(packed), packed[:, :2])


def test_ten_thousand_vectors_of_dimension_64_keep_their_lengths():
    form = polynomial_form(0, 2, 64)
    v = randn(0, 10_000, 64)
    end = FiberBundle.trivial(2, 64, lambda x: 0.1 * form(x)).parallel_transport(v, curve(0, 2), steps=20)
    close(end.norm(dim=-1), v.norm(dim=-1))


def test_thousands_of_paths_of_dimension_64_are_carried_apart():
    for base in (SPHERE, PLANE):
        x = base.random_point((2, 2000, 65), generator(0), dtype=F64)
        x = torch.stack([x[0], base.geodesic(x[0], x[1], 0.1)])
        v = randn(1, 2000, 64)
        end = FiberBundle.tangent(base, 64).parallel_transport(v, x)
        close(end.norm(dim=-1), v.norm(dim=-1))


def test_the_dtype_is_kept():
    loop = torch.eye(3)[[0, 1, 2, 0]]
    for method in ("auto", "magnus"):
        assert TANGENT.holonomy(loop, method=method).dtype == torch.float32
    assert TANGENT.parallel_transport(torch.ones(2), circle_of_latitude(0.1)).dtype == torch.float32
