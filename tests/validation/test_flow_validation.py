"""Checks of flows: energies, maximum principles, existence up to a time."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aatc.geometry.flows.invariant_family import InvariantFamily, round_sphere
from aatc.geometry.flows.ricci_flow import GeometricFlow
from aatc.validation import FlowValidation, ValidationError

CHECK = FlowValidation()
SEEDS = st.integers(0, 2**31 - 1)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Trajectory:
    times: Tensor
    states: Tensor


def heat(start: Tensor, steps: int = 6, ratio: float = 0.4) -> Tensor:
    """Explicit steps of the heat equation on a ring; ratio = D dt/h², stable and averaging up to ½."""
    states = [start]
    for _ in range(steps):
        u = states[-1]
        states.append(u + ratio * (u.roll(1, -1) - 2 * u + u.roll(-1, -1)))
    return torch.stack(states)


def dirichlet(u: Tensor) -> Tensor:
    return (u - u.roll(1, -1)).square().sum(-1) / 2


@given(SEEDS, st.integers(3, 12), st.sampled_from([(), (2,), (2, 3)]))
def test_heat_flows_lower_the_dirichlet_energy_and_keep_the_range(seed, n, batch):
    flow = heat(gaussian(seed, *batch, n))
    falls = CHECK.check_energy_monotonicity(flow, dirichlet, 1e-12)
    stays = CHECK.verify_maximum_principle(flow, tolerance=1e-12)
    assert falls and stays and falls.verify() <= 1e-12 and stays.verify() <= 1e-12


@given(SEEDS)
def test_an_unstable_step_raises_the_energy_and_leaves_the_range(seed):
    flow = heat(gaussian(seed, 8), steps=30, ratio=0.7)
    for verdict in (CHECK.check_energy_monotonicity(flow, dirichlet), CHECK.verify_maximum_principle(flow)):
        assert not verdict and verdict.verify() == verdict.residual > 0


@given(st.integers(1, 5), st.integers(0, 2), st.sampled_from([0.999e-6, 1.001e-6]))
def test_a_rise_of_the_energy_is_measured_at_its_step_and_place(step, member, rise):
    energies = torch.linspace(1, 0, 7, dtype=torch.float64)[:, None].repeat(1, 3)
    energies[step + 1 :, member] += energies[step, member] - energies[step + 1, member] + rise
    verdict = CHECK.check_energy_monotonicity(list(energies), lambda energy: energy)
    assert bool(verdict) is (rise < 1e-6)
    assert verdict.residual == pytest.approx(rise, rel=1e-6) and verdict.verify() == verdict.residual
    assert (verdict.witness.step, verdict.witness.index) == (step, (member,))


def test_the_first_of_several_rises_is_the_witness():
    verdict = CHECK.check_energy_monotonicity(torch.tensor([3.0, 2.0, 2.5, 1.0, 9.0]), lambda energy: energy)
    assert not verdict and verdict.witness.step == 1 and verdict.witness.increase == 0.5
    assert verdict.residual == verdict.verify() == 8


@given(SEEDS, st.integers(2, 40), st.sampled_from([(), (2, 3)]))
def test_the_rise_is_that_above_the_least_energy_before(seed, count, batch):
    energies = gaussian(seed, count, *batch)
    verdict = CHECK.check_energy_monotonicity(energies, lambda energy: energy)
    largest = max(
        row[later] - row[earlier]
        for row in energies.reshape(count, -1).T.tolist()
        for later in range(1, count)
        for earlier in range(later)
    )
    assert verdict.residual == verdict.verify() == max(0.0, largest) and bool(verdict) is (largest <= 1e-6)


@pytest.mark.parametrize(("total", "holds"), [(0.99e-6, True), (1.01e-6, False), (1e-3, False)])
def test_a_rise_in_a_thousand_small_steps_is_a_rise(total, holds):
    fall, rise = torch.linspace(2, 1, 50, dtype=torch.float64), 1 + torch.linspace(0, total, 1001, dtype=torch.float64)
    verdict = CHECK.check_energy_monotonicity(torch.cat((fall, rise)), lambda energy: energy)
    assert bool(verdict) is holds and verdict.residual == pytest.approx(total) == pytest.approx(verdict.verify())
    if not holds:
        # The first energy that is more than 1e-6 above 1.
        assert verdict.witness.step + 1 == 50 + math.floor(1e-6 / (total / 1000)) + 1


@given(SEEDS, st.sampled_from([0.999e-6, 1.001e-6]), st.sampled_from([1, -1]))
def test_leaving_the_range_is_measured(seed, size, sign):
    flow = heat(gaussian(seed, 6))
    edge = flow[0].max() if sign > 0 else flow[0].min()
    flow[3, 2] = edge + sign * size
    verdict = CHECK.verify_maximum_principle(flow)
    assert bool(verdict) is (size < 1e-6)
    assert verdict.residual == pytest.approx(size, rel=1e-6)
    assert (verdict.witness.step, verdict.witness.index) == (3, (2,))


@settings(max_examples=10)
@given(SEEDS, st.integers(1, 5), st.integers(2, 6), st.integers(1, 3), st.sampled_from([(), (2,)]))
def test_softmax_attention_keeps_to_the_hull_of_the_values(seed, m, n, d, batch):
    values = gaussian(seed, *batch, n, d)
    weights = gaussian(seed + 1, *batch, m, n).softmax(-1)
    by_points = CHECK.verify_maximum_principle([values, weights @ values], tolerance=1e-9, vector_valued=True)
    by_weights = CHECK.verify_maximum_principle([values, weights @ values], weights, 1e-12)
    assert by_points and by_points.verify() <= 1e-9
    assert by_weights and CHECK.verify_maximum_principle(None, weights, 1e-12)


def test_averages_with_exact_sums_are_proved_and_rounded_ones_are_not():
    exact = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    assert CHECK.verify_maximum_principle(None, exact, 0.0).proof_level == "P1"
    thirds = torch.full((1, 3), 1 / 3, dtype=torch.float32)
    verdict = CHECK.verify_maximum_principle(None, thirds)
    assert verdict and verdict.proof_level == "P2" and 0 < verdict.residual < 1e-7


def differential(scores: Tensor) -> Tensor:
    return scores.softmax(-1) - 0.8 * scores.flip(-1).softmax(-1)


def yoso(scores: Tensor) -> Tensor:
    """Expected collisions of 8-bit hashes of unit vectors, without normalisation."""
    return (1 - torch.arccos(scores.tanh()) / math.pi) ** 8


@pytest.mark.parametrize("weigh", [differential, yoso, torch.sigmoid], ids=["differential", "yoso", "sigmoid"])
def test_attentions_that_do_not_average_fail_by_their_weights_and_by_their_outputs(weigh):
    weights = weigh(2 * gaussian(5, 6, 8))
    values = gaussian(6, 8, 2) + 3
    for verdict in (
        CHECK.verify_maximum_principle(None, weights),
        CHECK.verify_maximum_principle([values, weights @ values], vector_valued=True),
    ):
        assert not verdict and verdict.verify() == pytest.approx(verdict.residual) and verdict.residual > 0.01


def test_sums_below_one_are_averages_with_the_origin_only():
    weights = 0.5 * gaussian(0, 4, 4).softmax(-1)
    assert CHECK.verify_maximum_principle(None, weights, origin=True)
    assert not CHECK.verify_maximum_principle(None, weights)
    assert not CHECK.verify_maximum_principle(None, 2.5 * weights, origin=True)


@pytest.mark.parametrize(("size", "holds"), [(0.99e-6, True), (1.01e-6, False)])
def test_a_negative_weight_and_a_wrong_step_are_measured(size, holds):
    weights = torch.tensor([[1 + size, -size], [0.5, 0.5]], dtype=torch.float64)
    verdict = CHECK.verify_maximum_principle(None, weights)
    assert bool(verdict) is holds and verdict.residual == pytest.approx(size) and verdict.witness.index == (0,)
    average = torch.full((2, 2), 0.5, dtype=torch.float64)
    states = [torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([2.0, 2.0 + size], dtype=torch.float64)]
    verdict = CHECK.verify_maximum_principle(states, average)
    assert bool(verdict) is holds and verdict.residual == pytest.approx(size) == pytest.approx(verdict.verify())
    assert (verdict.witness.step, verdict.witness.index) == (1, (1,))


@pytest.mark.parametrize(("size", "holds"), [(0.99e-6, True), (1.01e-6, False)])
def test_the_distance_from_a_hull_is_that_of_the_separating_direction(size, holds):
    square = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=torch.float64)
    output = torch.tensor([[0.5, 0.5], [0.3, 1 + size]], dtype=torch.float64)
    verdict = CHECK.verify_maximum_principle([square, output], vector_valued=True)
    witness = verdict.witness
    assert bool(verdict) is holds and verdict.residual == pytest.approx(size, rel=1e-6) and witness.index == (1,)
    gap = witness.direction @ witness.output - (witness.values @ witness.direction).max()
    assert float(gap) == pytest.approx(size, rel=1e-6)


@settings(max_examples=3)
@given(st.floats(0.2, 5))
def test_u_squared_blows_up_at_one_over_its_start(start):
    initial = torch.tensor([start], dtype=torch.float64)
    square = lambda t, u: u * u  # noqa: E731
    assert CHECK.check_long_time_existence(square, 0.99 / start, initial=initial)
    verdict = CHECK.check_long_time_existence(square, 1.01 / start, initial=initial)
    assert not verdict and verdict.proof_level == "P3"
    assert verdict.witness.blow_up_time == pytest.approx(1 / start, rel=1e-6)
    assert verdict.verify() == pytest.approx(verdict.residual) == pytest.approx(0.01 / start, rel=1e-3)


@settings(max_examples=3)
@given(st.integers(2, 4), st.floats(0.5, 2))
def test_a_round_sphere_collapses_under_its_ricci_flow(n, radius):
    initial = radius**2 * torch.eye(n, dtype=torch.float64)
    # Ric of the round metric is (n − 1) times that of radius 1, whatever the radius.
    ricci_flow = lambda t, g: -2 * (n - 1) * torch.eye(n, dtype=g.dtype)  # noqa: E731
    end = radius**2 / (2 * (n - 1))
    assert CHECK.check_long_time_existence(ricci_flow, 0.99 * end, initial=initial, metric=True)
    verdict = CHECK.check_long_time_existence(ricci_flow, 1.5 * end, initial=initial, metric=True)
    assert not verdict and verdict.witness.blow_up_time == pytest.approx(end, rel=1e-9)


def test_a_field_that_ends_where_the_margin_is_zero_is_followed_to_its_end():
    # u = (1 − t/2)², beyond which the root has no value.
    root = lambda t, u: -u.sqrt()  # noqa: E731
    start = torch.ones(1, dtype=torch.float64)
    assert CHECK.check_long_time_existence(root, 1.9, initial=start, margin=lambda u: u[0])
    verdict = CHECK.check_long_time_existence(root, 3.0, initial=start, margin=lambda u: u[0])
    assert not verdict and verdict.witness.blow_up_time == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_histories_are_extrapolated_to_the_blow_up_of_every_power_law(power):
    times = torch.linspace(0, 0.8, 41, dtype=torch.float64)
    history = Trajectory(times, (1 - times)[:, None] ** -power)
    assert CHECK.check_long_time_existence(history, 0.99)
    verdict = CHECK.check_long_time_existence(history, 1.01)
    assert not verdict and verdict.witness.blow_up_time == pytest.approx(1, abs=1e-3)


def test_histories_of_metrics_are_extrapolated_to_their_collapse():
    times = torch.linspace(0, 0.2, 41, dtype=torch.float64)
    flow = (1 - 4 * times)[:, None, None] * torch.eye(3, dtype=torch.float64)
    assert CHECK.check_long_time_existence(flow, 0.24, times=times, metric=True)
    verdict = CHECK.check_long_time_existence(flow, 0.26, times=times, metric=True)
    assert verdict.witness.blow_up_time == pytest.approx(0.25, abs=1e-3)
    volume = CHECK.check_long_time_existence(flow, 0.26, times=times, margin=torch.linalg.det)
    assert volume.witness.blow_up_time == pytest.approx(0.25, abs=1e-3)
    growing = (1 + 4 * times)[:, None, None] * torch.eye(3, dtype=torch.float64)
    assert CHECK.check_long_time_existence(growing, 1e6, times=times, metric=True)


@pytest.mark.slow
def test_a_field_that_grows_beyond_bounds_where_the_margin_does_not_ends_there():
    found = CHECK.check_long_time_existence(lambda t, u: -1 / u, 2.0, initial=torch.ones(1))  # u = √(1 - 2t)
    assert not found and found.witness.blow_up_time == pytest.approx(0.5, abs=1e-6)


def test_exponentials_exist_for_all_time():
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert CHECK.check_long_time_existence(times.exp()[:, None], 1e3, times=times)
    assert CHECK.check_long_time_existence(lambda t, u: u, 5.0, initial=torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_history_with_a_state_that_is_not_finite_ends_there(bad):
    states = torch.ones(6, 2)
    states[4, 1] = bad
    verdict = CHECK.check_long_time_existence(states, 5.0, times=torch.arange(6))
    assert not verdict and verdict.witness.blow_up_time == 4 and verdict.residual == 1 == verdict.verify()
    assert CHECK.check_long_time_existence(states, 2.5, times=torch.arange(6))


def test_a_lipschitz_bound_is_a_proof_and_a_wrong_one_is_refused():
    start = torch.ones(3, dtype=torch.float64)
    verdict = CHECK.check_long_time_existence(lambda t, u: u.sin(), 1e9, initial=start, lipschitz=1.0)
    assert verdict and verdict.proof_level == "P1" and "Lipschitz" in verdict.assumptions[0]
    with pytest.raises(ValidationError, match="not Lipschitz"):
        CHECK.check_long_time_existence(lambda t, u: u * u, 1.0, initial=start, lipschitz=1.0)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (lambda t, u: u * math.nan, "not finite"),
        (lambda t, u: u.new_ones(7), "shape"),
        (lambda t, u: None, "NoneType"),
        (lambda t, u: u * u * t, "not Lipschitz"),
        (lambda t, u: u / 2 if t < 1.9 else 3 * u, "not Lipschitz"),
        (lambda t, u: u / 2 + (math.inf if t >= 2 else 0), "not finite"),
        (lambda t, u: (1e200 * u) ** 2, "not finite"),
    ],
)
def test_a_field_that_is_undefined_or_too_steep_somewhere_is_not_proved_to_have_solutions(field, reason):
    with pytest.raises(ValidationError, match=reason):
        CHECK.check_long_time_existence(field, 2.0, initial=torch.ones(1, dtype=torch.float64), lipschitz=1.0)


@settings(max_examples=12)
@given(st.floats(0.01, 2), st.sampled_from([1.0, 1e5]), st.sampled_from([2.0, 50.0]), st.booleans())
def test_a_pole_within_the_horizon_refutes_every_lipschitz_bound(pole, constant, horizon, of_slope):
    # Beside the pole u/2 alone would pass; 1/(pole − t) is Lipschitz in u at every t but one.
    field = lambda t, u: u / 2 + (u if of_slope else 1) / (pole - t)  # noqa: E731
    with pytest.raises(ValidationError):
        CHECK.check_long_time_existence(field, horizon, initial=torch.ones(2, dtype=torch.float64), lipschitz=constant)


@settings(max_examples=12)
@given(SEEDS, st.integers(1, 5), st.sampled_from([0.0, 1.0, 1e8]))
def test_sharp_lipschitz_bounds_are_not_refuted_by_rounding(seed, n, size):
    matrix = gaussian(seed, n, n)
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    field = lambda t, u: t.cos() * matrix @ u + t * t  # noqa: E731
    verdict = CHECK.check_long_time_existence(field, 20.0, initial=size * gaussian(seed + 1, n), lipschitz=norm)
    assert verdict and verdict.proof_level == "P1" and verdict.verify() == 0
    with pytest.raises(ValidationError, match="not Lipschitz"):
        CHECK.check_long_time_existence(field, 20.0, initial=torch.ones(n), lipschitz=norm / 100)


@pytest.mark.parametrize(("n", "squared_radius"), [(2, 1.7), (3, 1.0)])
def test_the_trajectory_of_a_ricci_flow_ends_where_its_metric_does(n, squared_radius):
    family = InvariantFamily(round_sphere, torch.zeros(1, n, dtype=torch.float64))
    end = squared_radius / (2 * (n - 1))
    start = family.metric(torch.tensor([squared_radius], dtype=torch.float64))
    flow = GeometricFlow(ricci=family).evolve(start, time=0.8 * end, steps=20)
    assert CHECK.check_long_time_existence(flow, 0.98 * end)
    verdict = CHECK.check_long_time_existence(flow, 1.2 * end)
    # The lifetime is a difference over steps of 0.2 of what is left.
    assert not verdict and verdict.witness.blow_up_time == pytest.approx(end, rel=0.01)
    assert verdict.verify() == verdict.residual == pytest.approx(0.2 * end, rel=0.05)
    assert CHECK.check_long_time_existence(flow, 1.2 * end, metric=False)
    # The same tensors as states are no metrics unless the caller says so.
    states = Trajectory(flow.times, flow.metrics)
    assert CHECK.check_long_time_existence(states, 1.2 * end)
    assert not CHECK.check_long_time_existence(states, 1.2 * end, metric=True)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: CHECK.check_energy_monotonicity(torch.ones(1, 2), dirichlet),
        lambda: CHECK.check_energy_monotonicity(3, dirichlet),
        lambda: CHECK.check_energy_monotonicity(torch.tensor(3.0), dirichlet),
        lambda: CHECK.check_energy_monotonicity([torch.ones(2), torch.ones(3)], lambda state: state),
        lambda: CHECK.check_energy_monotonicity(torch.full((3, 2), math.nan), dirichlet),
        lambda: CHECK.verify_maximum_principle(torch.full((3, 2), math.nan)),
        lambda: CHECK.verify_maximum_principle(torch.ones(3, 2), origin=True),
        lambda: CHECK.verify_maximum_principle(torch.ones(3), vector_valued=True),
        lambda: CHECK.verify_maximum_principle(None, torch.ones(3)),
        lambda: CHECK.verify_maximum_principle(torch.ones(2, 3), torch.eye(2)),
        lambda: CHECK.check_long_time_existence(torch.ones(3, 2), 1.0),
        lambda: CHECK.check_long_time_existence(torch.ones(3, 2), 1.0, times=torch.zeros(3)),
        lambda: CHECK.check_long_time_existence(torch.ones(3, 2), -1.0, times=torch.arange(3)),
        lambda: CHECK.check_long_time_existence(lambda t, u: u, 1.0),
        lambda: CHECK.check_long_time_existence(lambda t, u: u[:1], 1.0, initial=torch.ones(2)),
    ],
)
def test_input_that_cannot_be_judged_is_a_typed_error(ask):
    with pytest.raises(ValidationError):
        ask()
