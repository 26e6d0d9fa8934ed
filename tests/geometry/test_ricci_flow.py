"""Ricci flow against exact solutions: round spheres, products, left-invariant metrics, and a torus that rounds off."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import dblquad, solve_ivp

from aatc.geometry.flows.conformal_flow import LAPLACIANS, ConformalFlow
from aatc.geometry.flows.grid_metric import DegenerateMetricError, MetricGrid, christoffel
from aatc.geometry.flows.invariant_family import (
    InvariantFamily,
    NotInvariantError,
    chart_ricci,
    left_invariant_s3,
    round_sphere,
    sphere_product,
)
from aatc.geometry.flows.ricci_flow import FlowTrajectory, GeometricFlow, StepSizeError
from aatc.geometry.manifold import GeometryError, PointShapeError
from tests.geometry.flow_cases import (
    F64,
    TURN,
    conformal,
    mesh,
    orders,
    rounding_torus,
    sampled,
    sampled_ricci,
    tensor,
    torus,
    wavy,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("dim", "sizes"), [(2, (16, 32, 64)), (3, (12, 24))])
def test_the_grid_ricci_tensor_converges_to_the_exact_one_with_order_four(dim, sizes):
    exact = sampled_ricci(wavy, mesh(4, dim))
    errors = []
    for n in sizes:
        ricci = GeometricFlow(torus(n, dim)).compute_ricci_tensor(sampled(wavy, mesh(n, dim)))
        coarse = ricci[(slice(None, None, n // 4),) * dim]
        errors.append(float((coarse - exact).abs().max()))
    assert exact.abs().max() > 0.05
    assert orders(errors)[-1] == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize("periodic", [False, (True, False)])
def test_one_sided_differences_on_open_axes_keep_order_four(periodic):
    errors = []
    for n in (25, 49, 97):
        if periodic is False:
            points, spacing = mesh(n, 2, 1.2, True, -0.6), (1.2 / (n - 1),) * 2
        else:
            line, other = torch.arange(n - 1, dtype=F64) * TURN / (n - 1), torch.linspace(0.3, 1.5, n, dtype=F64)
            points, spacing = (
                torch.stack(torch.meshgrid(line, other, indexing="ij"), -1),
                (TURN / (n - 1), 1.2 / (n - 1)),
            )
        flow = GeometricFlow(MetricGrid(spacing, periodic))
        errors.append(
            float((flow.compute_ricci_tensor(sampled(wavy, points)) - sampled_ricci(wavy, points)).abs().max())
        )
    assert orders(errors)[-1] == pytest.approx(4, abs=0.35)


def test_the_open_stereographic_patch_has_the_curvature_and_area_of_its_sphere():
    n, radius = 121, 1.7
    points = mesh(n, 2, 2.0, True, -1.0)
    metric = radius**2 * sampled(lambda x: round_sphere(x)[0], points)
    flow = GeometricFlow(MetricGrid((2 / (n - 1),) * 2, periodic=False))
    ricci = flow.compute_ricci_tensor(metric)
    found = flow.compute_metrics(metric, ricci)
    torch.testing.assert_close(ricci, metric / radius**2, rtol=0, atol=2e-5)
    area = dblquad(lambda x, y: 4 * radius**2 / (1 + x * x + y * y) ** 2, -1, 1, -1, 1)[0]
    assert float(found.volume) == pytest.approx(area, abs=1e-6)
    assert float(found.mean_scalar) == pytest.approx(2 / radius**2, abs=1e-5)
    assert float(found.max_scalar - found.min_scalar) < 1e-4


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_round_spheres_are_einstein_in_their_chart(dim):
    point = torch.linspace(-0.6, 0.8, dim, dtype=F64)
    metric = round_sphere(point)[0]
    torch.testing.assert_close(chart_ricci(lambda x: 3.0 * round_sphere(x)[0], point), (dim - 1) * metric)


def test_hyperbolic_space_has_ricci_minus_two_in_three_dimensions():
    point = tensor(0.1, -0.3, 0.4)

    def ball(x):
        return 4 / (1 - x.square().sum()).square() * torch.eye(3, dtype=x.dtype)

    torch.testing.assert_close(chart_ricci(ball, point), -2 * ball(point))


@given(st.lists(st.floats(0.3, 3.0), min_size=3, max_size=3))
def test_left_invariant_metrics_have_the_ricci_tensor_of_milnors_formula(coefficients):
    a, b, c = coefficients
    family = InvariantFamily(left_invariant_s3, tensor([1.1, 0.4, 2.0]))
    ricci = family.coefficients(family(family.metric(tensor(a, b, c))))
    want = [
        (a * a - (b - c) ** 2) / (2 * b * c),
        (b * b - (c - a) ** 2) / (2 * c * a),
        (c * c - (a - b) ** 2) / (2 * a * b),
    ]
    torch.testing.assert_close(ricci, tensor(*want), rtol=1e-9, atol=1e-9)


def test_a_given_levi_civita_connection_gives_the_same_ricci_tensor_to_order_four():
    errors = []
    for n in (24, 48):
        grid = torus(n)
        metric = sampled(wavy, mesh(n, 2))
        flow = GeometricFlow(grid)
        connection = christoffel(torch.linalg.inv(metric), grid.gradient(metric, 2))
        gap = flow.compute_ricci_tensor(metric, connection) - flow.compute_ricci_tensor(metric)
        errors.append(float(gap.abs().max()))
    assert orders(errors)[0] == pytest.approx(4, abs=0.4)


def test_the_grid_flow_follows_an_exact_solution_with_order_four_and_keeps_its_area():
    errors = []
    for n in (16, 32):
        flow = GeometricFlow(torus(n))
        run = flow.evolve(conformal(rounding_torus(n, 0.0)), 0.3, n * n // 10, every=50)
        errors.append(float((run.final - conformal(rounding_torus(n, 0.3))).abs().max()))
        volumes = torch.stack([record.volume for record in run.invariants])
        assert run.stopped == "" and run.times[-1] == pytest.approx(0.3)
        # Gauss–Bonnet: the area of a torus does not change.
        torch.testing.assert_close(volumes, volumes[:1].expand_as(volumes), rtol=2e-3 if n == 16 else 2e-5, atol=0)
        assert abs(float(run.invariants[0].total_scalar)) < (1.0 if n == 16 else 0.02)
    assert errors[1] < 2e-3 and orders(errors)[0] == pytest.approx(4, abs=0.7)


def test_the_step_bound_is_where_the_shortest_wave_stops_decaying():
    n, grid = 16, torus(16)
    flow = GeometricFlow(grid)
    signs = torch.tensor([1.0, -1.0], dtype=F64).repeat(n // 2)
    wave = 1e-6 * conformal(signs[:, None] * signs)
    flat = torch.eye(2, dtype=F64).expand(n, n, 2, 2)
    bound = flow.step_bound(flat)
    assert flow.step_bound(flat / 4) == pytest.approx(bound / 4)
    for factor, grows in ((0.98, False), (1.02, True)):
        step = factor * bound * flow.velocity(flat + wave)
        assert bool((wave + step).abs().max() > wave.abs().max()) is grows
    with pytest.raises(StepSizeError, match="at most") as caught:
        flow.flow_step(flat, flow.compute_ricci_tensor(flat), 1.01 * bound)
    assert caught.value.bound == pytest.approx(bound)
    with pytest.raises(StepSizeError):
        flow.evolve(flat + wave, 3.03 * bound, 3, method="rk4")


def wavy_flat(n, amount=0.15):
    """The flat metric of the torus in coordinates that wave."""
    x = mesh(n, 2)

    def pulled(point):
        jacobian = torch.func.jacfwd(lambda p: p + amount * torch.sin(p.flip(0)))(point)
        return jacobian.mT @ jacobian

    return sampled(pulled, x)


def test_deturcks_term_straightens_coordinates_and_leaves_flat_space_flat():
    n = 24
    background = torch.eye(2, dtype=F64).expand(n, n, 2, 2)
    metric = wavy_flat(n)
    bound = GeometricFlow(torus(n)).step_bound(metric)
    plain = GeometricFlow(torus(n)).evolve(metric, 60 * bound, 80, method="euler", every=80)
    gauged = GeometricFlow(torus(n), background=background).evolve(metric, 60 * bound, 80, method="euler", every=80)
    unevenness = [float((g - g.mean((0, 1))).abs().max()) for g in (metric, plain.final, gauged.final)]
    assert unevenness[1] == pytest.approx(unevenness[0], rel=0.02)
    assert unevenness[2] < 0.65 * unevenness[0]
    for run in (plain, gauged):
        last = run.invariants[-1]
        assert max(abs(float(last.min_scalar)), abs(float(last.max_scalar))) < 5e-3


def test_deturcks_gauge_does_not_change_the_invariants_of_the_flow():
    n = 32
    metric = sampled(wavy, mesh(n, 2))
    background = torch.eye(2, dtype=F64).expand(n, n, 2, 2)
    runs = [
        GeometricFlow(torus(n), background=b).evolve(metric, 0.05, 20, every=20).invariants for b in (None, background)
    ]
    plain, gauged = (run[-1] for run in runs)
    start = runs[0][0]
    for name in ("volume", "energy"):
        gap = abs(float(getattr(plain, name) - getattr(gauged, name)))
        assert gap < 2e-3 * abs(float(getattr(start, name)))
    assert float(plain.energy) < 0.95 * float(start.energy)


@pytest.mark.parametrize(("dim", "square"), [(2, 1.7), (3, 0.6), (5, 2.3)])
def test_round_spheres_shrink_by_their_law_and_die_when_they_must(dim, square):
    family = InvariantFamily(round_sphere, torch.linspace(-0.4, 0.5, dim, dtype=F64)[None])
    flow = GeometricFlow(ricci=family)
    end = square / (2 * (dim - 1))
    run = flow.evolve(family.metric(tensor(square)), 1.37 * end, 34, method="euler")
    squares = family.coefficients(run.metrics)[:, 0]
    torch.testing.assert_close(squares, square - 2 * (dim - 1) * run.times, rtol=0, atol=1e-12)
    assert "not positive definite" in run.stopped and float(run.times[-1]) < end
    (found,) = flow.detect_singularities(run, 5 / square)
    assert found.kind == "extinction" and found.time == pytest.approx(end, abs=1e-11)
    assert found.curvature == pytest.approx((dim - 1) / float(squares[-1]))


def test_a_sphere_seen_at_several_points_stays_round_until_it_dies():
    family = InvariantFamily(round_sphere, tensor([0.1, 0.9], [0.7, 0.3], [0.5, 0.8]))
    run = GeometricFlow(ricci=family).evolve(family.metric(tensor(0.9)), 0.449, 400)
    torch.testing.assert_close(family.coefficients(run.metrics)[:, 0], 0.9 - 2 * run.times, rtol=0, atol=1e-12)
    assert run.stopped == "" and float(family.coefficients(run.final)) == pytest.approx(0.002, abs=1e-12)


def test_every_metric_of_a_batch_has_singularities_of_its_own():
    family = InvariantFamily(round_sphere, tensor([0.1, 0.2], [0.4, -0.3]))
    flow = GeometricFlow(ricci=family)
    run = flow.evolve(family.metric(tensor([1.0], [0.9], [5.0])), 0.44, 44)
    found = flow.detect_singularities(run, 5.0)
    assert [(s.kind, s.location[0]) for s in found] == [("extinction", 1), ("extinction", 0)]
    assert [s.time for s in found] == pytest.approx([0.45, 0.5], abs=1e-9)
    (alone,) = flow.detect_singularities(run, 20.0)
    assert alone.kind == "extinction" and alone.location[0] == 1


def test_flat_states_before_a_blow_up_do_not_spoil_its_time():
    unit, (flow, run) = torch.eye(2, dtype=F64), two_steps_of_curvature(0.0, 5.0, 10.0)
    assert flow.sample_axes == 0 and run.metrics[0].equal(unit)
    (found,) = flow.detect_singularities(run, 1.0)
    assert found.time == pytest.approx(3.0)


def two_steps_of_curvature(*values):
    unit = torch.eye(2, dtype=F64)
    curvatures = tensor(*values)[:, None, None] * unit
    times = torch.arange(float(len(values)), dtype=F64)
    return GeometricFlow(ricci=torch.zeros_like), FlowTrajectory(times, unit.expand_as(curvatures), curvatures, ())


def test_the_smaller_factor_of_a_product_collapses_first():
    family = InvariantFamily(sphere_product(2, 3), torch.full((1, 5), 0.2, dtype=F64))
    flow = GeometricFlow(ricci=family)
    run = flow.evolve(family.metric(tensor(1.0, 4.0)), 0.7, 30, method="midpoint")
    want = torch.stack([1.0 - 2 * run.times, 4.0 - 4 * run.times], -1)
    torch.testing.assert_close(family.coefficients(run.metrics), want, rtol=0, atol=1e-12)
    (found,) = flow.detect_singularities(run, 10.0)
    assert (found.kind, found.time) == ("collapse", pytest.approx(0.5, abs=1e-11))


def milnor(_, s):
    a, b, c = s
    return [-(a * a - (b - c) ** 2) / (b * c), -(b * b - (c - a) ** 2) / (c * a), -(c * c - (a - b) ** 2) / (a * b)]


@pytest.fixture(scope="module")
def squashed():
    family = InvariantFamily(left_invariant_s3, tensor([1.1, 0.4, 2.0]))
    return family, family.metric(tensor(1.0, 1.5, 0.8))


def test_squashed_spheres_follow_the_equations_of_their_coefficients(squashed):
    family, metric = squashed
    flow = GeometricFlow(ricci=family)
    seen = []
    for method, steps, atol in (("rk4", 40, 1e-7), ("dopri5", 2, 1e-7)):
        run = flow.evolve(metric, 0.6, steps, method=method, progress=seen.append)
        want = solve_ivp(milnor, (0, 0.6), [1.0, 1.5, 0.8], rtol=1e-11, atol=1e-12).y[:, -1]
        torch.testing.assert_close(family.coefficients(run.final), torch.from_numpy(want), rtol=0, atol=atol)
    assert [record.step for record in seen] == [*range(41), 0, 1, 2]


def test_a_squashed_sphere_rounds_off_before_it_dies(squashed):
    family, metric = squashed

    def volume_is_gone(_, s):
        return min(s) - 1e-5

    volume_is_gone.terminal = True
    end = solve_ivp(milnor, (0, 9), [1.0, 1.5, 0.8], rtol=1e-11, atol=1e-13, events=volume_is_gone).t[-1] + 1e-5
    flow = GeometricFlow(ricci=family)
    run = flow.evolve(metric, 0.97 * end, 80)
    (found,) = flow.detect_singularities(run, 8.0)
    assert run.stopped == "" and found.kind == "extinction"
    assert found.time == pytest.approx(end, abs=2e-4)


def test_normalising_a_trajectory_gives_the_normalised_flow(squashed):
    family, metric = squashed
    flow, direct = GeometricFlow(ricci=family), GeometricFlow(ricci=family, normalized=True)
    errors = []
    for steps in (10, 20):
        rescaled = flow.normalize_flow(flow.evolve(metric, 0.5, steps))
        run = direct.evolve(metric, float(rescaled.times[-1]), 40, every=40)
        assert float(run.invariants[-1].volume) == pytest.approx(float(run.invariants[0].volume), rel=1e-7)
        errors.append(float((rescaled.final - run.final).abs().max()))
        again = flow.compute_metrics(rescaled.final, rescaled.ricci[-1])
        for name in ("volume", "total_scalar", "mean_scalar", "min_scalar", "max_scalar"):
            torch.testing.assert_close(getattr(rescaled.invariants[-1], name), getattr(again, name))
    assert errors[1] < 1e-3 and orders(errors)[0] == pytest.approx(2, abs=0.2)
    raw = flow.evolve(metric, 0.5, 5)
    assert flow.normalize_flow(raw, "none") is raw
    torch.testing.assert_close(flow.normalize_flow(raw, "volume").times, raw.times)
    with pytest.raises(GeometryError, match="not one of"):
        flow.normalize_flow(raw, "length")


def test_blow_up_at_some_samples_is_told_from_extinction_and_a_smooth_flow_has_none():
    unit = torch.eye(2, dtype=F64).expand(2, 2, 2)
    flow = GeometricFlow(ricci=lambda g: unit, sample_axes=1)
    run = flow.evolve(tensor(1.0, 3.0)[:, None, None] * unit, 0.49, 49, method="euler")
    (found,) = flow.detect_singularities(run, 20.0)
    assert (found.kind, found.location) == ("curvature blow-up", (0,))
    assert found.time == pytest.approx(0.5, abs=1e-12)
    assert flow.detect_singularities(run, 60.0) == []
    tilted = torch.diag(tensor(1e-3, 0.0))
    sheared = GeometricFlow(ricci=lambda g: tilted)
    stopped = sheared.evolve(torch.eye(2, dtype=F64), 600.0, 7, method="euler")
    (end,) = sheared.detect_singularities(stopped, 10.0)
    assert end.kind == "degenerate metric" and end.location == () and stopped.stopped


def test_batches_are_flows_side_by_side():
    family = InvariantFamily(round_sphere, tensor([0.1, 0.2]))
    flow = GeometricFlow(ricci=family)
    both = flow.evolve(family.metric(tensor([1.0], [2.0])), 0.3, 5)
    for i, square in enumerate((1.0, 2.0)):
        alone = flow.evolve(family.metric(tensor(square)), 0.3, 5)
        torch.testing.assert_close(both.final[i], alone.final)
        torch.testing.assert_close(both.invariants[-1].volume[i], alone.invariants[-1].volume)
    grid = GeometricFlow(torus(8), normalized=True)
    metrics = torch.stack([sampled(wavy, mesh(8, 2)), 2 * sampled(wavy, mesh(8, 2).flip(-1))])
    rates = grid.velocity(metrics)
    torch.testing.assert_close(rates, torch.stack([grid.velocity(g) for g in metrics]))
    assert grid.velocity(metrics.float()).dtype == torch.float32


def test_gradients_agree_with_differences():
    periodic, open_ends = GeometricFlow(torus(5), normalized=True), GeometricFlow(MetricGrid((0.3, 0.4), False))
    gauged = GeometricFlow(torus(5), background=sampled(wavy, mesh(5, 2)))

    def check(f, metric):
        assert torch.autograd.gradcheck(lambda g: f(0.5 * (g + g.mT)), metric.requires_grad_(), fast_mode=True)

    check(periodic.velocity, sampled(wavy, mesh(5, 2)))
    check(gauged.velocity, sampled(wavy, mesh(5, 2)))
    check(lambda g: periodic.flow_step(g, periodic.compute_ricci_tensor(g), 0.01)[0], sampled(wavy, mesh(5, 2)))
    check(open_ends.compute_ricci_tensor, sampled(wavy, mesh(6, 2)))
    family = InvariantFamily(round_sphere, tensor([0.1, 0.2]))
    square = tensor(1.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: family(family.metric(s)), square)
    flow = GeometricFlow(ricci=family)
    assert torch.autograd.gradcheck(lambda s: flow.evolve(family.metric(s), 0.2, 3).invariants[-1].max_scalar, square)
    u = torch.randn(5, 6, dtype=F64).mul(0.2).requires_grad_()
    for laplacian in LAPLACIANS:
        torus_flow = ConformalFlow((2.0, 3.0), laplacian=laplacian)
        assert torch.autograd.gradcheck(lambda v, f=torus_flow: f.evolve(v, 1e-3, 2).final, u, fast_mode=True)


def test_what_cannot_flow_is_refused_by_name():
    flow = GeometricFlow(torus(8))
    metric = sampled(wavy, mesh(8, 2))
    broken = metric.clone()
    broken[2, 3] = torch.diag(tensor(1.0, -1.0))
    with pytest.raises(DegenerateMetricError, match=r"\(2, 3\)") as caught:
        flow.compute_ricci_tensor(broken)
    assert caught.value.location == (2, 3)
    broken[2, 3] = math.nan
    with pytest.raises(DegenerateMetricError):
        flow.evolve(broken, 0.1, 4)
    with pytest.raises(GeometryError, match="not symmetric"):
        flow.compute_ricci_tensor(metric + tensor([0.0, 0.1], [0.0, 0.0]))
    with pytest.raises(PointShapeError, match="need 5"):
        GeometricFlow(torus(4)).compute_ricci_tensor(metric[:4, :4])
    with pytest.raises(PointShapeError):
        flow.compute_ricci_tensor(metric[..., 0])
    with pytest.raises(PointShapeError, match="connection"):
        flow.compute_ricci_tensor(metric, metric)
    with pytest.raises(GeometryError, match="boundary"):
        GeometricFlow(MetricGrid((0.1, 0.1), False)).evolve(metric, 0.1, 4)
    with pytest.raises(GeometryError, match="exactly one"):
        GeometricFlow()
    with pytest.raises(GeometryError, match="forwards"):
        flow.evolve(metric, -0.1, 4)
    with pytest.raises(GeometryError, match="steps"):
        flow.evolve(metric, 0.1, 0)
    with pytest.raises(GeometryError, match="method"):
        flow.evolve(metric, 0.1, 4, method="leapfrog")
    with pytest.raises(GeometryError, match="threshold"):
        flow.detect_singularities(flow.evolve(metric, 0.001, 1), 0.0)
    with pytest.raises(GeometryError, match="positive numbers"):
        MetricGrid((0.1, 0.0))
    family = InvariantFamily(round_sphere, tensor([0.1, 0.2], [0.4, -0.3]))
    with pytest.raises(NotInvariantError, match="metric"):
        family(torch.eye(2, dtype=F64).expand(2, 2, 2))

    def stretched(x):
        return torch.stack([torch.eye(2, dtype=x.dtype) * (1 + x[0].square())])

    with pytest.raises(NotInvariantError, match="Ricci"):
        leaving = InvariantFamily(stretched, tensor([0.1, 0.2], [0.4, -0.3]))
        leaving(leaving.metric(tensor(1.0)))
    with pytest.raises(StepSizeError):
        ConformalFlow((1.0, 1.0)).evolve(torch.zeros(8, 8, dtype=F64), 1.0, 1)
    with pytest.raises(PointShapeError):
        ConformalFlow((1.0, 1.0)).curvature(torch.zeros(8, dtype=F64))


def test_tensors_that_no_factorisation_takes_are_refused():
    flow = GeometricFlow(torus(8))
    metric = sampled(wavy, mesh(8, 2))
    for bad in (metric.bfloat16(), metric.expand(0, *metric.shape)):
        with pytest.raises(PointShapeError, match="not empty"):
            flow.compute_ricci_tensor(bad)
    with pytest.raises(PointShapeError, match="float32 or float64"):
        GeometricFlow(ricci=lambda g: g).compute_ricci_tensor(torch.eye(2, dtype=torch.long))
    with pytest.raises(DegenerateMetricError):
        GeometricFlow(torus(8), background=torch.zeros_like(metric))
    points = tensor([0.1, 0.2], [0.4, -0.3])
    with pytest.raises(GeometryError, match="span 1 dimensions"):
        InvariantFamily(lambda x: torch.cat([round_sphere(x)] * 2), points)
    with pytest.raises(PointShapeError, match="coordinates"):
        InvariantFamily(sphere_product(2, 2), torch.zeros(1, 3, dtype=F64))
    with pytest.raises(PointShapeError):
        InvariantFamily(round_sphere, points[:0])
    with pytest.raises(GeometryError, match="finite"):
        InvariantFamily(round_sphere, points * math.nan)


def test_a_patch_with_its_rim_kept_right_shrinks_like_the_sphere():
    n = 17
    chart = sampled(lambda x: round_sphere(x)[0], mesh(n, 2, 1.0, True, -0.5))

    def rim(metric, time):
        inside = torch.zeros(n, n, 1, 1, dtype=torch.bool)
        inside[2:-2, 2:-2] = True
        return torch.where(inside, metric, (1 - 2 * time) * chart)

    flow = GeometricFlow(MetricGrid((1 / (n - 1),) * 2, False), boundary=rim)
    run = flow.evolve(chart, 0.1, 120, method="euler", every=120)
    torch.testing.assert_close(run.final, 0.8 * chart, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_grid_of_256_by_256_is_accurate():
    n, e = 256, 1e-4
    flow = GeometricFlow(torus(n))
    ricci = flow.compute_ricci_tensor(conformal(rounding_torus(n, 0.0)))
    rate = (rounding_torus(n, e) - rounding_torus(n, -e)) / (2 * e)
    torch.testing.assert_close(-2 * ricci, conformal(rate), rtol=0, atol=1e-5)
