"""Attention flows: heat kernels, conservation, maximum principles, energies that fall, and rows that stay rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aatc.geometry.flows import attention_flow
from aatc.geometry.flows.attention_flow import AttentionFlow, NotStochasticError
from aatc.geometry.flows.diffusion import (
    connection_laplacian,
    diffusion_step_bound,
    dirichlet_energy,
    laplace_beltrami,
    mass,
    vector_laplacian,
)
from aatc.geometry.flows.grid_metric import DegenerateMetricError, MetricGrid
from aatc.geometry.flows.ricci_flow import StepSizeError
from aatc.geometry.manifold import GeometryError, PointShapeError

F64 = torch.float64
TURN = 2 * math.pi
RING = torch.tensor([[i, (i + 1) % 7] for i in range(7)])


pytestmark = pytest.mark.usefixtures("one_thread")


def mesh(n, dim=2):
    return torch.stack(torch.meshgrid(*[torch.arange(n, dtype=F64) * TURN / n] * dim, indexing="ij"), -1)


def sampled(f, points):
    values = torch.func.vmap(f)(points.reshape(-1, points.shape[-1]))
    return values.reshape(*points.shape[:-1], *values.shape[1:])


def skew(x):
    """A metric of the torus that is diagonal nowhere."""
    a, b = torch.sin(x[0] + 0.4), torch.cos(x[1] - x[0])
    return torch.stack([torch.stack([1.6 + 0.4 * a, 0.5 * b]), torch.stack([0.5 * b, 1.2 + 0.3 * a * b])])


def rounded(x):
    return torch.exp(0.6 * torch.sin(x[0]) * torch.cos(x[1])) * torch.eye(2, dtype=x.dtype)


def bump(x):
    return torch.sin(x[0]) * torch.cos(2 * x[1]) + 0.5 * torch.cos(x[0] + x[1])


def exact_laplacian(metric, f, x):
    """(1/√g) ∂_i(√g g^{ij} ∂_j f) by autograd."""

    def flux(y):
        (a, b), (_, c) = metric(y)
        fx, fy = torch.func.grad(f)(y)
        return torch.stack([c * fx - b * fy, a * fy - b * fx]) / (a * c - b * b).sqrt()

    return torch.einsum("ii->", torch.func.jacfwd(flux)(x)) / torch.linalg.det(metric(x)).sqrt()


def rows(shape, seed=0, sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(shape, generator=generator, dtype=F64)).softmax(-1)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_fourier_modes_decay_at_the_exact_discrete_rate(dim):
    n, steps = 8, 12
    spacing = tuple(TURN / n * (1 + 0.5 * i) for i in range(dim))
    waves = torch.arange(1, dim + 1)
    field = torch.cos((mesh(n, dim) * waves).sum(-1))
    flow = AttentionFlow("scalar", spacing=spacing, periodic=True)
    time = steps * 0.7 * flow.step_bound(field)
    run = flow.evolve_attention(field, time, steps, every=4)
    rate = sum(-4 / h**2 * math.sin(math.pi * int(k) / n) ** 2 for h, k in zip(spacing, waves))
    torch.testing.assert_close(run.final, (1 + time / steps * rate) ** steps * field, rtol=0, atol=1e-13)
    assert run.times.tolist() == pytest.approx([0, time / 3, 2 * time / 3, time]) and run.energies.shape == (13,)


def test_the_heat_kernel_of_the_circle_is_approached_with_order_two():
    errors = []
    for n in (16, 32):
        flow = AttentionFlow("scalar", spacing=(TURN / n,), periodic=True)
        x = mesh(n, 1)[:, 0]
        run = flow.evolve_attention(torch.cos(x) + torch.sin(2 * x), 0.5, n * n // 8)
        errors.append(float((run.final - math.exp(-0.5) * torch.cos(x) - math.exp(-2) * torch.sin(2 * x)).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("metric", [rounded, skew])
def test_laplace_beltrami_converges_to_the_exact_operator_with_order_two(metric):
    exact = sampled(lambda x: exact_laplacian(metric, bump, x), mesh(16))
    errors = []
    for n in (32, 64, 128):
        grid = MetricGrid((TURN / n,) * 2)
        value = laplace_beltrami(sampled(bump, mesh(n)), sampled(metric, mesh(n)), grid)
        errors.append(float((value[:: n // 16, :: n // 16] - exact).abs().max()))
    assert exact.abs().max() > 1
    assert math.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("periodic", [True, False])
def test_the_operator_is_the_gradient_of_the_energy_and_negative_for_every_metric(periodic):
    grid = MetricGrid((0.7, 0.4), periodic)
    metric = sampled(skew, mesh(6))
    eye = torch.eye(36, dtype=F64).reshape(36, 6, 6)
    weighted = mass(laplace_beltrami(eye, metric, grid)[:, None] * eye, metric, grid)
    torch.testing.assert_close(weighted, weighted.mT, rtol=0, atol=1e-12)
    values = torch.linalg.eigvalsh(weighted)
    assert values[-1] < 1e-12 and values[-2] < -1e-3
    field = torch.randn(6, 6, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(dirichlet_energy(field, metric, grid), field)
    density = torch.linalg.det(metric).sqrt() * 0.28
    torch.testing.assert_close(slope, -density * laplace_beltrami(field, metric, grid).detach())
    stiffest = -torch.linalg.eigvalsh(weighted / density.flatten().sqrt() / density.flatten().sqrt()[:, None])[0]
    assert diffusion_step_bound(metric, grid) <= 2 / float(stiffest)


@settings(max_examples=10)
@given(st.integers(0, 1000), st.booleans(), st.sampled_from([skew, rounded]))
def test_mass_is_kept_energy_falls_and_no_value_leaves_the_range(seed, periodic, metric):
    n = 7
    generator = torch.Generator().manual_seed(seed)
    field = torch.randn(2, n, n, generator=generator, dtype=F64)
    g = sampled(metric, mesh(n))
    flow = AttentionFlow("scalar", spacing=(0.5, 0.9), periodic=periodic, metric=g)
    run = flow.evolve_attention(field, 30 * flow.step_bound(field), 30, every=1)
    held = mass(run.fields, g, flow.grid)
    assert (held - held[0]).abs().max() <= 1e-12 * mass(field.abs(), g, flow.grid).max()
    assert (run.energies.diff(dim=0) < 0).all()
    if metric is rounded:
        assert (run.fields.amax((-2, -1)).diff(dim=0) <= 1e-14).all()
        assert (run.fields.amin((-2, -1)).diff(dim=0) >= -1e-14).all()


@pytest.mark.parametrize("kind", ["scalar", "simplex", "vector"])
def test_constants_stay_and_everything_else_tends_to_one(kind):
    generator = torch.Generator().manual_seed(1)
    if kind == "scalar":
        flow = AttentionFlow(kind, spacing=(1.0,), periodic=False)
        field, flat = torch.randn(6, generator=generator, dtype=F64), torch.full((6,), 0.7, dtype=F64)
    else:
        flow = AttentionFlow(kind, edges=RING)
        field = rows((7, 4)) if kind == "simplex" else torch.randn(7, 2, generator=generator, dtype=F64)
        flat = field[:1].expand_as(field).contiguous()
    bound = flow.step_bound(field)
    torch.testing.assert_close(flow.evolve_attention(flat, 5 * bound, 5).final, flat, rtol=0, atol=1e-15)
    run = flow.evolve_attention(field, 400 * bound, 400)
    assert (run.final - run.final[:1]).abs().max() < 1e-9 and run.energies[-1] < 1e-16 < 0.1 < run.energies[0]
    if kind != "simplex":
        torch.testing.assert_close(run.final[0], field.mean(0), rtol=0, atol=1e-9)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from(["path", "torus", "graph"]), st.floats(0.05, 1.0))
def test_row_energy_never_rises_and_rows_stay_probabilities(seed, where, fraction):
    if where == "graph":
        generator = torch.Generator().manual_seed(seed)
        weights = 0.1 + torch.rand(9, generator=generator, dtype=F64)
        flow = AttentionFlow(edges=torch.cat([RING, torch.tensor([[0, 3], [2, 6]])]), weights=weights)
        field = rows((2, 7, 3), seed, 8.0)
    elif where == "path":
        flow, field = AttentionFlow(spacing=(0.5,)), rows((3, 6, 5), seed, 8.0)
    else:
        metric = sampled(rounded, mesh(4))
        flow = AttentionFlow(spacing=(0.5, 0.7), periodic=True, metric=metric)
        field = rows((4, 4, 3), seed, 8.0)
    run = flow.evolve_attention(field, 40 * fraction * flow.step_bound(field), 40, every=1)
    assert (run.energies.diff(dim=0) <= 1e-14).all() and (run.energies[-1] < run.energies[0]).all()
    assert (run.fields > 0).all()
    torch.testing.assert_close(run.fields.sum(-1), torch.ones(run.fields.shape[:-1], dtype=F64), rtol=0, atol=1e-14)


def test_two_thousand_steps_of_an_attention_matrix_keep_it_stochastic_and_positive():
    field = rows((12, 12), sharpness=6.0)
    flow = AttentionFlow()
    run = flow.evolve_attention(field, 2000 * flow.step_bound(field), 2000, every=100)
    assert (run.energies.diff() <= 1e-15).all() and run.energies[-1] < 1e-6 * run.energies[0]
    assert (run.fields > 0).all() and (run.fields.sum(-1) - 1).abs().max() < 1e-14


def test_two_rows_turn_towards_each_other_as_the_harmonic_flow_of_an_arc_does():
    # For two points of a circle at the angle θ: θ' = −2 sin θ, so tan(θ/2) falls as e^{−2t}.
    angles, time = torch.tensor([0.2, 1.3], dtype=F64), 0.4
    field = torch.stack([angles.cos(), angles.sin()], -1).square()
    flow = AttentionFlow(edges=torch.tensor([[0, 1]]))
    want = 2 * math.atan(math.tan(0.55) * math.exp(-2 * time))
    errors = []
    for steps in (50, 100):
        root = flow.evolve_attention(field, time, steps).final.sqrt()
        errors.append(float((root[0] * root[1]).sum().acos()) - want)
    assert abs(errors[1]) < 5e-3 and math.log2(abs(errors[0] / errors[1])) == pytest.approx(1, abs=0.05)


def test_a_metric_given_to_rows_sets_their_speed_and_the_induced_one_keeps_edges():
    field = rows((8, 3))
    slow = AttentionFlow(metric=4 * torch.eye(1, dtype=F64))
    fast = AttentionFlow()
    bound = fast.step_bound(field)
    assert slow.step_bound(field) == pytest.approx(4 * bound) and bound == pytest.approx(1 / 4)
    torch.testing.assert_close(
        slow.evolve_attention(field, 4 * bound, 10).final, fast.evolve_attention(field, bound, 10).final
    )
    step = torch.cat([torch.zeros(6), torch.ones(6)]).to(F64) + 0.05 * torch.cos(torch.arange(12, dtype=F64) * 2)
    gaps = []
    for coupling in (0.0, 50.0):
        flow = AttentionFlow("scalar", coupling=coupling)
        assert flow.compute_metric(step).shape == (12, 1, 1)
        gaps.append(float(flow.evolve_attention(step, 2.0, 8).final[5:7].diff()))
    assert gaps[1] > 2 * gaps[0]
    induced = AttentionFlow(coupling=1.0).compute_metric(field)
    slopes = 2 * field.sqrt().diff(dim=0)
    torch.testing.assert_close(induced[1:-1, 0, 0], 1 + (0.5 * (slopes[1:] + slopes[:-1])).square().sum(-1))


def rotation(angle):
    return torch.stack([torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)], -2)


def test_the_connection_laplacian_sees_only_the_holonomy_of_its_transports():
    turns = 0.3 * torch.arange(7, dtype=F64)
    edges, weights = RING, 0.5 + torch.rand(7, dtype=F64)
    frames = rotation(torch.randn(7, dtype=F64))
    flat = frames[edges[:, 0]] @ frames[edges[:, 1]].mT
    field = torch.randn(3, 7, 2, dtype=F64)
    plain = connection_laplacian(torch.einsum("vba,...vb->...va", frames, field), edges, weights)
    turned = connection_laplacian(field, edges, weights, flat)
    torch.testing.assert_close(turned, torch.einsum("vab,...vb->...va", frames, plain))
    # On the ring with uniform conductance the spectrum is 2 − 2 cos((2πk ± holonomy)/7).
    flow = AttentionFlow("vector", edges=edges, transports=rotation(turns))
    basis = torch.eye(14, dtype=F64).reshape(14, 7, 2)
    values = torch.linalg.eigvalsh(
        -connection_laplacian(basis, edges, torch.ones(7, dtype=F64), rotation(turns)).flatten(1)
    )
    holonomy = float(turns.sum())
    want = sorted(2 - 2 * math.cos((TURN * k + sign * holonomy) / 7) for k in range(7) for sign in (1, -1))
    torch.testing.assert_close(values, torch.tensor(want, dtype=F64), rtol=0, atol=1e-12)
    run = flow.evolve_attention(field, 20 * flow.step_bound(field), 20)
    assert (run.energies.diff(dim=0) < 0).all()


def test_the_vector_laplacian_is_that_of_flat_space_in_bent_coordinates():
    def bend(x):
        return x + 0.2 * torch.sin(x.flip(0))

    def metric(x):
        jacobian = torch.func.jacfwd(bend)(x)
        return jacobian.mT @ jacobian

    def straight(y):
        return torch.stack([torch.sin(y[0]) * torch.cos(y[1]), torch.cos(y[0] - y[1])])

    def components(x):
        return torch.linalg.solve(torch.func.jacfwd(bend)(x), straight(bend(x)))

    def exact(x):
        second = torch.func.jacfwd(torch.func.jacfwd(straight))(bend(x))
        return torch.linalg.solve(torch.func.jacfwd(bend)(x), torch.einsum("kii->k", second))

    errors = []
    for n in (16, 32):
        found = vector_laplacian(sampled(components, mesh(n)), sampled(metric, mesh(n)), MetricGrid((TURN / n,) * 2))
        errors.append(float((found - sampled(exact, mesh(n))).abs().max()))
    assert errors[1] < 2e-2 and math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.4)
    flow = AttentionFlow("vector", spacing=(TURN / 16,) * 2, periodic=True, metric=sampled(metric, mesh(16)))
    field = sampled(components, mesh(16))
    run = flow.evolve_attention(field, 100 * flow.step_bound(field), 100)
    decayed = math.exp(-2 * float(run.times[-1])) * field
    torch.testing.assert_close(run.final, decayed, rtol=0, atol=0.02)
    assert (run.energies.diff() < 0).all()


def test_gradients_agree_with_differences():
    logits = torch.randn(2, 4, 3, dtype=F64, requires_grad=True)

    def check(flow, make, start):
        assert torch.autograd.gradcheck(
            lambda x: flow.evolve_attention(make(x), 3 * 0.9 * flow.step_bound(make(x).detach()), 3).final, start
        )

    check(AttentionFlow(), lambda x: x.softmax(-1), logits)
    check(AttentionFlow(edges=torch.tensor([[0, 1], [1, 3], [2, 3]])), lambda x: x.softmax(-1), logits)
    metric = sampled(skew, mesh(5))
    check(
        AttentionFlow("scalar", spacing=(1.0, 0.5), periodic=(True, False), metric=metric),
        lambda x: x,
        torch.randn(5, 5, dtype=F64, requires_grad=True),
    )
    grid = MetricGrid((0.6, 0.5))
    field = torch.randn(5, 5, dtype=F64)
    assert torch.autograd.gradcheck(
        lambda g: laplace_beltrami(field, 0.5 * (g + g.mT), grid), metric.clone().requires_grad_(), fast_mode=True
    )
    check(
        AttentionFlow("vector", spacing=(0.6, 0.5), periodic=True, metric=metric),
        lambda x: x,
        torch.randn(5, 5, 2, dtype=F64, requires_grad=True),
    )
    turned = AttentionFlow("vector", edges=RING, transports=rotation(torch.arange(7, dtype=F64)))
    check(turned, lambda x: x, torch.randn(7, 2, dtype=F64, requires_grad=True))
    sharp = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], dtype=F64, requires_grad=True)
    AttentionFlow().evolve_attention(sharp, 0.2, 1).final.square().sum().backward()
    assert sharp.grad.isfinite().all()


def test_the_dtype_is_followed_and_batches_flow_side_by_side():
    flow, field = AttentionFlow(), rows((2, 5, 6, 4))
    both = flow.evolve_attention(field, 1.0, 8)
    assert both.energies.shape == (9, 2, 5)
    torch.testing.assert_close(both.final[1, 2], flow.evolve_attention(field[1, 2], 1.0, 8).final)
    single = flow.evolve_attention(field.float(), 1.0, 8).final
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), both.final, rtol=0, atol=1e-6)


def test_what_cannot_flow_is_refused_by_name():
    flow, field = AttentionFlow(spacing=(0.5,)), rows((6, 3))
    bound = flow.step_bound(field)
    assert bound == pytest.approx(0.25 / 4)
    with pytest.raises(StepSizeError) as caught:
        flow.evolve_attention(field, 1.01 * bound, 1)
    assert caught.value.bound == pytest.approx(bound)
    with pytest.raises(StepSizeError, match="positive"):
        flow.evolve_attention(field, -bound, 1)
    assert AttentionFlow("scalar", spacing=(0.5, 0.5)).step_bound(torch.zeros(4, 4)) == pytest.approx(0.25 / 4)
    for bad in (2 * field, field - 0.5, field * math.nan):
        with pytest.raises(NotStochasticError):
            flow.evolve_attention(bad, bound, 1)
    with pytest.raises(GeometryError, match="diagonal"):
        AttentionFlow(spacing=(1.0, 1.0), metric=sampled(skew, mesh(4))).evolve_attention(rows((4, 4, 3)), 0.01, 1)
    with pytest.raises(DegenerateMetricError):
        AttentionFlow(metric=-torch.eye(1, dtype=F64)).evolve_attention(field, 0.01, 1)
    with pytest.raises(PointShapeError, match="broadcast"):
        AttentionFlow(metric=torch.ones(5, 1, 1, dtype=F64)).compute_metric(field)
    with pytest.raises(PointShapeError, match="names node"):
        AttentionFlow(edges=RING).evolve_attention(field, 0.01, 1)
    with pytest.raises(PointShapeError, match="edges are"):
        AttentionFlow(edges=RING.T)
    with pytest.raises(PointShapeError, match="positive weights"):
        AttentionFlow(edges=RING, weights=-torch.ones(7))
    with pytest.raises(PointShapeError, match="transports"):
        AttentionFlow(edges=RING, transports=torch.eye(2).expand(7, 2, 2))
    with pytest.raises(GeometryError, match="orthogonal"):
        AttentionFlow("vector", edges=RING, transports=2 * torch.eye(2).expand(7, 2, 2))
    with pytest.raises(GeometryError, match="periodic grids"):
        AttentionFlow("vector")
    with pytest.raises(GeometryError, match="kind"):
        AttentionFlow("tensor")
    with pytest.raises(GeometryError, match="coupling"):
        AttentionFlow(coupling=-1.0)
    with pytest.raises(GeometryError, match="give edges"):
        AttentionFlow(weights=torch.ones(3))
    with pytest.raises(PointShapeError):
        AttentionFlow("scalar", spacing=(1.0, 1.0)).evolve_attention(torch.zeros(4), 0.1, 1)
    with pytest.raises(PointShapeError, match="finite positive"):
        AttentionFlow(edges=RING, weights=torch.full((7,), math.inf))
    with pytest.raises(GeometryError, match="not finite"):
        AttentionFlow("scalar").evolve_attention(torch.tensor([1.0, math.nan]), 0.1, 1)
    with pytest.raises(StepSizeError, match="finite"):
        AttentionFlow().evolve_attention(torch.ones(1, 1), math.inf, 1)


@pytest.mark.parametrize(
    ("flow", "field", "metric"),
    [
        (AttentionFlow(), rows((3, 4)), torch.ones(7, 1, 1, dtype=F64)),
        (AttentionFlow(), rows((3, 5, 4)), torch.ones(2, 5, 1, 1, dtype=F64)),
        (AttentionFlow("scalar"), torch.ones(3, 5), torch.ones(2, 5, 1, 1)),
        (AttentionFlow("vector", periodic=True), torch.ones(7, 1), torch.ones(6, 1, 1)),
        (AttentionFlow(edges=RING), rows((7, 4)), torch.ones(3, dtype=F64)),
        (AttentionFlow(edges=RING), rows((7,)), torch.ones(7, dtype=F64)),
        (AttentionFlow("scalar", edges=RING), torch.tensor(1.0), torch.ones(7)),
        (AttentionFlow("scalar", edges=RING), torch.arange(7), torch.ones(7)),
        (
            AttentionFlow("vector", edges=RING, transports=torch.eye(2).expand(7, 2, 2)),
            torch.ones(7, 3),
            torch.ones(7),
        ),
    ],
)
def test_fields_and_geometries_that_do_not_fit_are_refused(flow, field, metric):
    with pytest.raises(PointShapeError):
        flow.integrate_flow(field, metric, 0.01, 1)


@pytest.mark.parametrize(
    ("kind", "operator", "field"),
    [("scalar", "laplace_beltrami", torch.arange(6.0)), ("simplex", "connection_laplacian", rows((6, 3)))],
)
def test_an_operator_of_the_wrong_sign_raises_the_energy(kind, operator, field, monkeypatch):
    flow = AttentionFlow(kind)
    assert (flow.evolve_attention(field, 1.0, 8).energies.diff() < 0).all()
    right = getattr(attention_flow, operator)
    monkeypatch.setattr(attention_flow, operator, lambda *given: -right(*given))
    assert (flow.evolve_attention(field, 0.1, 4).energies.diff() > 0).all()
