"""Metric fields in one chart against published Christoffel symbols, closed-form geodesics and isometries."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from aatc.geometry import PoincareBall, Simplex, Sphere
from aatc.geometry.manifold import GeometryError, PointShapeError
from aatc.geometry.manifolds.collocation import gauss_scheme
from aatc.geometry.manifolds.integrate import ConvergenceError
from aatc.geometry.manifolds.riemannian import ChartError, MetricError, RiemannianStructure
from tests.geometry.chart_cases import CHARTS, F64, WARPED, points, vectors, warped

SEEDS = st.integers(0, 10**6)


def close(got, want, atol=1e-8):
    torch.testing.assert_close(got, want, rtol=atol, atol=atol)


def full(p):
    return torch.cat((1 - p.sum(-1, keepdim=True), p), -1)


def published(name, x):
    """Γ^k_ij at one point, entry by entry, from the textbooks."""
    n = x.numel()
    gamma = torch.zeros(n, n, n, dtype=F64)
    if name == "simplex":
        for k in range(n):
            for i in range(n):
                for j in range(n):
                    g = (1 / x[i] if i == j else 0) + 1 / (1 - x.sum())
                    gamma[k, i, j] = 0.5 * x[k] * g - (1 / (2 * x[k]) if i == j == k else 0)
    elif name == "sphere":
        gamma[0, 1, 1] = -x[0].sin() * x[0].cos()
        gamma[1, 0, 1] = gamma[1, 1, 0] = 1 / x[0].tan()
    elif name == "half-plane":
        gamma[0, 0, 1] = gamma[0, 1, 0] = gamma[1, 1, 1] = -1 / x[1]
        gamma[1, 0, 0] = 1 / x[1]
    return gamma


@pytest.mark.parametrize("name", CHARTS)
@settings(max_examples=6)
@given(seed=SEEDS)
def test_closed_forms_agree_with_differentiation_of_the_metric(name, seed):
    chart, x = CHARTS[name], points(name, seed)
    u, v = vectors(seed, 2, x.shape[-1])
    gamma = chart.christoffel_symbols(x)
    close(gamma, chart.christoffel_symbols(x, autograd=True))
    close(chart.connection(x, u, v), torch.einsum("bkij,bi,bj->bk", gamma, u, v))
    close(RiemannianStructure(chart.metric).connection(x, u, v), chart.connection(x, u, v))
    close(
        chart.inverse_metric(x) @ chart.metric_tensor(x, check=True),
        torch.eye(x.shape[-1], dtype=F64).expand_as(gamma[..., 0]),
    )


@pytest.mark.parametrize("name", ["simplex", "sphere", "half-plane"])
@settings(max_examples=6)
@given(seed=SEEDS)
def test_christoffel_symbols_are_the_published_ones(name, seed):
    (x,) = points(name, seed, 1)
    close(CHARTS[name].christoffel_symbols(x), published(name, x))
    close(
        RiemannianStructure(CHARTS[name].metric, christoffel=lambda y: published(name, y)).connection(x, x, x),
        CHARTS[name].connection(x, x, x),
    )


@pytest.mark.parametrize("name", [*CHARTS, "warped"])
@settings(max_examples=6)
@given(seed=SEEDS)
def test_the_connection_is_metric_and_torsion_free(name, seed):
    chart, x = CHARTS.get(name, WARPED), points(name, seed, 1)
    gamma = chart.christoffel_symbols(x)[0]
    close(gamma, gamma.mT)
    change = torch.autograd.functional.jacobian(lambda y: chart.metric_tensor(y)[0], x)[:, :, 0]
    lowered = torch.einsum("lki,lj->ijk", gamma, chart.metric_tensor(x)[0])
    close(change, lowered + lowered.transpose(0, 1))


@settings(max_examples=6)
@given(seed=SEEDS)
def test_covariant_derivative_obeys_the_product_rule_and_has_no_torsion(seed):
    x = points("warped", seed)
    u, w = vectors(seed, 2, 3)

    def field(y):
        return torch.stack((y[..., 0] * y[..., 1], y[..., 2].sin(), y[..., 0].exp()), -1)

    def scaled(y):
        return y[..., :1] ** 2 * field(y)

    along = WARPED.covariant_derivative(field, u, x)
    close(WARPED.covariant_derivative(scaled, u, x), 2 * x[:, :1] * u[:, :1] * field(x) + x[:, :1] ** 2 * along)
    bracket = torch.func.jvp(scaled, (x,), (field(x),))[1] - torch.func.jvp(field, (x,), (scaled(x),))[1]
    torsion = WARPED.covariant_derivative(scaled, field(x), x) - WARPED.covariant_derivative(field, scaled(x), x)
    close(torsion, bracket)
    change = torch.func.jvp(lambda y: WARPED.inner(y, field(y), field(y)), (x,), (u,))[1]
    close(change, 2 * WARPED.inner(x, along, field(x)))
    close(WARPED.raise_index(x, WARPED.lower_index(x, w)), w)


@pytest.mark.parametrize("name", [*CHARTS, "warped"])
def test_speed_is_conserved_and_the_boundary_value_inverts_the_initial_value(name):
    chart, x = CHARTS.get(name, WARPED), points(name, 5, 4)
    y = points(name, 6, 4)
    found = chart.geodesic_between(x, y)
    assert found.residual <= 1e-9
    close(found.points[0], x, 1e-12)
    close(found.points[-1], y, 1e-12)
    close(found.speed(), chart.dist(x, y).expand(17, 4))
    close(found.length(), chart.dist(x, y))
    flown = chart.geodesic_flow(x, found.initial_velocity)
    close(flown.points, found.points)
    close(flown.velocities, found.velocities)
    close(flown.speed(), flown.speed()[:1].expand(17, 4))
    close(chart.exp(x, chart.log(x, y)), y)
    close(chart.dist(x, y), chart.dist(y, x))


def test_half_plane_geodesics_are_half_circles_and_vertical_lines():
    chart = CHARTS["half-plane"]
    start = torch.tensor([[0.0, 1.0], [0.3, 0.2]], dtype=F64)
    path = chart.geodesic_flow(start, torch.tensor([[1.0, 0.7], [0.1, -0.1]], dtype=F64)).points
    for points_of_one in path.unbind(1):
        centre = 0.5 * ((points_of_one**2).sum(-1).diff() / points_of_one[:, 0].diff())
        close(centre, centre[:1].expand_as(centre))
    line = chart.geodesic_between(start[0], torch.tensor([0.0, 7.0], dtype=F64))
    close(line.points, torch.stack((torch.zeros(17, dtype=F64), 7**line.times), -1))
    far = torch.tensor([5.0, 0.1], dtype=F64), torch.tensor([0.0, 0.1], dtype=F64)
    close(chart.dist(*far), torch.acosh(torch.tensor(1 + 25 / 0.02, dtype=F64)))


@pytest.mark.parametrize("structure", [CHARTS["simplex"], RiemannianStructure(CHARTS["simplex"].metric)])
def test_simplex_geodesics_are_the_slerp_of_roots(structure):
    x, y = points("simplex", 1, 5), points("simplex", 2, 5)
    p, q, oracle = full(x), full(y), Simplex()
    close(structure.log(x, y), oracle.log(p, q)[..., 1:])
    close(structure.dist(x, y), oracle.dist(p, q))
    between = structure.geodesic_between(x, y)
    want = torch.stack([oracle.geodesic(p, q, t) for t in between.times])
    close(full(between.points), want)
    close(full(structure.geodesic_flow(x, oracle.log(p, q)[..., 1:], method="dopri5").points), want)


def test_ball_and_sphere_agree_with_the_manifolds_of_closed_form():
    ball, oracle = CHARTS["ball"], PoincareBall(0.8)
    x, y = points("ball", 1, 5), points("ball", 2, 5)
    close(ball.log(x, y), oracle.log(x, y))
    close(ball.dist(x, y), oracle.dist(x, y))
    (w, _) = vectors(1, 2, 3, 5)
    carried = ball.parallel_transport(ball.geodesic_between(x, y, torch.linspace(0, 1, 257, dtype=F64)), w)
    close(carried[-1], oracle.transport(x, y, w))
    x, y = points("sphere", 1, 5), points("sphere", 2, 5)

    def embedded(a):
        theta, phi = a.unbind(-1)
        return 1.7 * torch.stack((theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()), -1)

    close(CHARTS["sphere"].dist(x, y), Sphere(1.7).dist(embedded(x), embedded(y)))


def test_transport_is_isometric_comes_back_and_is_of_order_4():
    x, y = points("warped", 3), points("warped", 4)
    u, v = vectors(3, 2, 3)
    there = WARPED.geodesic_between(x, y, torch.linspace(0, 1, 129, dtype=F64))
    one, other = WARPED.parallel_transport(there, u), WARPED.parallel_transport(there, v)
    close(WARPED.inner(there.points, one, other), WARPED.inner(x, u, v).expand(129, 2))
    back = WARPED.geodesic_between(y, x, torch.linspace(0, 1, 129, dtype=F64))
    close(WARPED.parallel_transport(back, one[-1])[-1], u)

    def loop(t):
        return torch.stack((0.5 * (6 * t).cos(), 0.4 * (5 * t).sin(), t))

    fine = WARPED.parallel_transport(loop, u, steps=320)
    close(
        WARPED.inner(loop(torch.ones((), dtype=F64)), fine[-1], fine[-1]),
        WARPED.inner(loop(torch.zeros((), dtype=F64)), u, u),
    )
    errors = [float((WARPED.parallel_transport(loop, u, steps=n)[-1] - fine[-1]).norm()) for n in (20, 40)]
    assert math.log2(errors[0] / errors[1]) >= 3.8


def test_transport_around_a_parallel_turns_by_the_enclosed_angle():
    theta = torch.tensor(1.1, dtype=F64)
    turned = CHARTS["sphere"].parallel_transport(
        lambda t: torch.stack((theta, 2 * math.pi * t)), torch.tensor([1.0, 0.0], dtype=F64), steps=400
    )[-1]
    angle = 2 * math.pi * theta.cos()
    close(turned, torch.stack((angle.cos(), -angle.sin() / theta.sin())))


def test_rk4_is_of_order_4():
    x, v = points("half-plane", 1), vectors(1, 2, 2)[0]
    want = CHARTS["half-plane"].exp(x, v)
    errors = [float((CHARTS["half-plane"].exp(x, v, steps=n) - want).norm()) for n in (40, 80)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.2)


def test_gauss_scheme_integrates_polynomials_exactly():
    scheme = gauss_scheme(6, torch.zeros((), dtype=F64))
    close(scheme.weights @ scheme.nodes**11, torch.tensor(1 / 12, dtype=F64), 1e-14)
    times = torch.tensor([0.0, 0.3, 1.0], dtype=F64)
    value, once, twice = scheme.at(times)
    f = scheme.nodes**5
    close(value @ f, times**5, 1e-13)
    close(once @ f, times**6 / 6, 1e-13)
    close(twice @ f, times**7 / 42, 1e-13)


def test_equal_ends_give_no_velocity_and_finite_gradients():
    x = points("ball", 1).requires_grad_()
    y = x.detach().clone()
    close(CHARTS["ball"].log(x, y), torch.zeros_like(y))
    CHARTS["ball"].dist(x, y).sum().backward()
    assert x.grad.abs().max() == 0


@pytest.mark.parametrize("chart", [CHARTS["half-plane"], RiemannianStructure(CHARTS["half-plane"].metric)])
def test_gradients_of_connection_and_geodesics(chart):
    x, y = points("half-plane", 1, 1).requires_grad_(), points("half-plane", 2, 1).requires_grad_()
    u, v = (w.requires_grad_() for w in vectors(1, 2, 2, 1))
    times = torch.linspace(0, 1, 3, dtype=F64)
    functions = [
        (
            lambda a, b, c: (chart.inner(a, b, c), chart.norm(a, b), chart.raise_index(a, b), chart.lower_index(a, c)),
            (x, u, v),
        ),
        (lambda a, b, c: (chart.connection(a, b, c), chart.geodesic_acceleration(a, b)), (x, u, v)),
        (lambda a: (chart.christoffel_symbols(a), chart.inverse_metric(a)), (x,)),
        (lambda a, b: chart.covariant_derivative(lambda z: z.sin() * a, b, a), (x, u)),
        (lambda a, b: chart.exp(a, 0.1 * b, steps=2), (x, u)),
        (lambda a, b: chart.geodesic_flow(a, 0.02 * b, times, method="bosh3", rtol=1e-3).points, (x, u)),
        (lambda a, b, c: chart.parallel_transport(chart.geodesic_between(a, b, times), c)[-1], (x, y, u)),
        (lambda a, b: (chart.log(a, b), chart.dist(a, b), chart.geodesic_between(a, b, times).points[1]), (x, y)),
    ]
    for function, inputs in functions:
        assert gradcheck(function, inputs)
    assert gradgradcheck(functions[1][0], (x, u, v))


def test_second_derivatives_of_log_are_exact():
    x, y = points("half-plane", 1, 1).requires_grad_(), points("half-plane", 2, 1).requires_grad_()
    assert gradgradcheck(CHARTS["half-plane"].log, (x, y))


def test_gradients_reach_the_parameters_of_the_metric():
    x, y = points("warped", 1, 1)[:, :2], points("warped", 2, 1)[:, :2]
    scale = torch.tensor(0.7, dtype=F64, requires_grad=True)

    def distance(s):
        return RiemannianStructure(lambda z: warped(z) + s * z.square().sum(-1)[..., None, None] * torch.eye(2)).dist(
            x, y
        )

    assert gradcheck(distance, (scale,))


def test_faults_are_named():
    chart = RiemannianStructure(lambda x: torch.diag_embed(torch.stack((x[..., 0], torch.ones_like(x[..., 0])), -1)))
    x = torch.tensor([[1.0, 0.0], [-0.5, 0.0]], dtype=F64)
    for act in (
        lambda: chart.metric_tensor(x, check=True),
        lambda: chart.christoffel_symbols(x),
        lambda: chart.geodesic_acceleration(x, x),
        lambda: chart.inverse_metric(x),
        lambda: chart.curvature_tensor(x),
    ):
        with pytest.raises(MetricError, match=r"index \(1,\).*-0.5") as caught:
            act()
        assert caught.value.index == (1,) and caught.value.eigenvalue == -0.5
    with pytest.raises(MetricError, match="not symmetric"):
        RiemannianStructure(lambda x: torch.eye(2, dtype=F64) + torch.tensor([[0, 0.1], [0, 0]])).metric_tensor(
            x[0], check=True
        )
    half_plane = CHARTS["half-plane"]
    with pytest.raises(ChartError, match=r"\(1,\)"):
        half_plane.christoffel_symbols(torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=F64))
    with pytest.raises(ChartError):
        half_plane.norm(torch.tensor([math.nan, 1.0], dtype=F64), x[0])
    with pytest.raises(ChartError):
        CHARTS["sphere"].exp(torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([-3.0, 0.0], dtype=F64))
    with pytest.raises(ConvergenceError) as far:
        ends = torch.tensor([[0.0, 1e-9], [1.0, 1e-9]], dtype=F64)
        half_plane.geodesic_between(*ends, max_iterations=1)
    assert far.value.residual > 1e-9 and far.value.iterations > 0
    for act in (
        lambda: half_plane.norm(torch.ones(3, dtype=F64), torch.ones(3, dtype=F64)),
        lambda: half_plane.inner(torch.ones(2, dtype=F64), torch.ones(2), torch.ones(2, dtype=F64)),
        lambda: half_plane.connection(torch.ones(2, 2), torch.ones(3, 2), torch.ones(2)),
        lambda: half_plane.metric_tensor(torch.ones(2, dtype=torch.int64)),
        lambda: RiemannianStructure(lambda y: y).metric_tensor(x),
    ):
        with pytest.raises(PointShapeError):
            act()
    for times in (torch.zeros(2), torch.ones(1), torch.tensor([0.0, 1.0, 0.5])):
        with pytest.raises(GeometryError, match="times"):
            half_plane.geodesic_flow(torch.ones(2), torch.ones(2), times)
    with pytest.raises(GeometryError, match="euler"):
        half_plane.geodesic_flow(torch.ones(2), torch.ones(2), method="euler")
    with pytest.raises(GeometryError, match="radius"):
        RiemannianStructure.sphere(-1.0)


def test_empty_batches_stay_empty():
    chart, none = CHARTS["half-plane"], torch.zeros(0, 2, dtype=F64)
    for method in ("dopri8", "rk4"):
        assert chart.geodesic_flow(none, none, method=method).velocities.shape == (17, 0, 2)
    assert chart.exp(none, none).shape == chart.log(none, none).shape == (0, 2)
    assert chart.curvature_tensor(none).riemann.shape == (0, 2, 2, 2, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_vectors_and_values_that_are_not_finite_are_refused(bad):
    chart = CHARTS["half-plane"]
    x = points("half-plane", 1)
    v = x.clone()
    v[1, 0] = bad
    for act in (
        lambda: chart.norm(x, v),
        lambda: chart.inner(x, x, v),
        lambda: chart.lower_index(x, v),
        lambda: chart.raise_index(x, v),
        lambda: chart.exp(x, v),
        lambda: chart.covariant_derivative(lambda y: y * v, x, x),
        lambda: chart.parallel_transport(chart.geodesic_between(x[0], x[1]), v),
    ):
        with pytest.raises(ChartError, match=r"vector at index \(1,\)"):
            act()

    def ruined(field):
        return lambda *y: field(*y) * bad

    closed = RiemannianStructure(chart.metric, inverse=ruined(chart.inverse_metric))
    for act in (
        lambda: RiemannianStructure(chart.metric, christoffel=ruined(chart.christoffel_symbols)).christoffel_symbols(x),
        lambda: RiemannianStructure(chart.metric, connection=ruined(chart.connection)).christoffel_symbols(x),
        lambda: closed.inverse_metric(x),
        lambda: closed.raise_index(x, x),
    ):
        with pytest.raises(ChartError, match="not finite"):
            act()
    for metric in (ruined(chart.metric), lambda y: -chart.metric(y)):
        with pytest.raises(MetricError):
            RiemannianStructure(metric).norm(x, x)
    with pytest.raises(MetricError, match="not finite"):
        RiemannianStructure(ruined(chart.metric)).metric_tensor(x)


def test_fields_that_do_not_follow_shape_and_dtype_are_refused():
    x = points("half-plane", 1)
    flat, mixed, narrow = (
        RiemannianStructure(metric)
        for metric in (lambda y: torch.eye(2, dtype=F64), lambda y: y, lambda y: torch.eye(2).expand(*y.shape, 2))
    )
    for chart in (flat, mixed, narrow):
        for act in (
            lambda chart=chart: chart.metric_tensor(x),
            lambda chart=chart: chart.christoffel_symbols(x),
            lambda chart=chart: chart.connection(x, x, x),
            lambda chart=chart: chart.curvature_tensor(x),
            lambda chart=chart: chart.exp(x, x),
            lambda chart=chart: chart.geodesic_between(x, x + 1),
        ):
            with pytest.raises(PointShapeError, match="the metric takes points"):
                act()
    metric = CHARTS["half-plane"].metric
    with pytest.raises(PointShapeError, match="Γ"):
        RiemannianStructure(metric, christoffel=lambda y: metric(y)).connection(x, x, x)
    with pytest.raises(PointShapeError, match="inverse"):
        RiemannianStructure(metric, inverse=lambda y: y).raise_index(x, x)
    half = x.bfloat16()
    for act in (
        lambda: RiemannianStructure(metric).connection(half, half, half),
        lambda: RiemannianStructure(metric).inverse_metric(half),
        lambda: RiemannianStructure(metric).metric_tensor(half, check=True),
        lambda: CHARTS["half-plane"].geodesic_between(half, half),
        lambda: CHARTS["half-plane"].curvature_tensor(half),
    ):
        with pytest.raises(PointShapeError, match="float32 or float64"):
            act()


def test_settings_without_a_meaning_are_refused():
    chart, x = CHARTS["half-plane"], points("half-plane", 1)
    for setting in ({"rtol": 0.0}, {"rtol": -1.0}, {"atol": math.nan}, {"method": "rk4", "steps": 1.5}):
        with pytest.raises(GeometryError, match=r"rtol|steps"):
            chart.geodesic_flow(x, x, **setting)
    for make in (RiemannianStructure.euclidean, RiemannianStructure.simplex, RiemannianStructure.poincare_ball):
        with pytest.raises(GeometryError, match="at least one"):
            make(0)


@pytest.mark.slow
def test_ten_thousand_points_of_dimension_64():
    mix = torch.randn(64, 64) * 0.1

    def metric(x):
        h = torch.tanh(x @ mix)
        return torch.diag_embed(1.5 + h) + 0.1 * h.unsqueeze(-1) * h.unsqueeze(-2)

    chart = RiemannianStructure(metric)
    x, v = torch.randn(10_000, 64), 0.1 * torch.randn(10_000, 64)
    assert chart.metric_tensor(x).shape == (10_000, 64, 64)
    acceleration = chart.geodesic_acceleration(x, v)
    gamma = RiemannianStructure(lambda y: metric(y)).christoffel_symbols(x[:8])
    torch.testing.assert_close(
        acceleration[:8], -torch.einsum("bkij,bi,bj->bk", gamma, v[:8], v[:8]), rtol=1e-3, atol=1e-5
    )
    end = chart.geodesic_flow(x, v, torch.tensor([0.0, 1.0]), method="rk4", steps=1)
    torch.testing.assert_close(end.speed()[1], end.speed()[0], rtol=1e-4, atol=1e-4)
