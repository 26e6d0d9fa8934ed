"""Optimal control against closed forms: Gramians, bounds, budgets, and a Turing pattern that is moved."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aatc.geometry.dynamics.pattern_control import (
    AmplitudeBound,
    ControlError,
    EnergyBudget,
    TerminalTolerance,
    optimal_control,
    runge_kutta_flow,
)
from aatc.geometry.dynamics.pattern_dynamics import PatternDynamics
from aatc.geometry.dynamics.reaction_diffusion import Grid
from aatc.geometry.dynamics.reaction_terms import Schnakenberg
from aatc.geometry.manifold import PointShapeError

F64 = torch.float64


pytestmark = pytest.mark.usefixtures("one_thread")


def tensor(*values):
    return torch.tensor(values, dtype=F64)


class Linear:
    """x' = Ax + Bᵀc with c constant on K intervals: the exact flow, and what controls of least energy are."""

    def __init__(self, seed, n=3, m=2, time=1.5, intervals=8):
        generator = torch.Generator().manual_seed(seed)
        self.time, self.intervals, h = time, intervals, time / intervals
        self.a = 0.5 * torch.randn(n, n, dtype=F64, generator=generator)
        self.b = torch.randn(m, n, dtype=F64, generator=generator)
        self.start, self.end = torch.randn(2, n, dtype=F64, generator=generator)
        block = torch.zeros(2 * n, 2 * n, dtype=F64)
        block[:n, :n], block[:n, n:] = self.a, torch.eye(n, dtype=F64)
        step = torch.linalg.matrix_exp(h * block)
        self.step, self.push = step[:n, :n], step[:n, n:]
        power = torch.linalg.matrix_power
        self.reach = torch.cat(
            [power(self.step, intervals - 1 - i) @ self.push @ self.b.T for i in range(intervals)], 1
        )
        self.miss = self.end - power(self.step, intervals) @ self.start

    def flow(self, x, forcing):
        return self.step @ x + self.push @ forcing

    def least_energy(self, slack=0.0):
        """The control of least ½∫|c|² that ends at the target, or with the penalty |u(T) − target|²/(2·slack)."""
        h = self.time / self.intervals
        gramian = self.reach @ self.reach.T + h * slack * torch.eye(len(self.a), dtype=F64)
        return (self.reach.T @ torch.linalg.solve(gramian, self.miss)).reshape(self.intervals, -1)

    def solve(self, *constraints, **options):
        return optimal_control(
            self.flow,
            self.start,
            self.end,
            constraints,
            time=self.time,
            intervals=self.intervals,
            actuators=self.b,
            **options,
        )


@settings(max_examples=4)
@given(st.integers(0, 10**6), st.floats(1.0, 100.0))
def test_a_penalised_linear_problem_has_the_gramian_solution(seed, weight):
    problem = Linear(seed)
    found = problem.solve(terminal_weight=weight)
    assert found
    torch.testing.assert_close(found.control, problem.least_energy(1 / weight), rtol=1e-6, atol=1e-6)
    effort = float(found.control.square().sum()) * problem.time / problem.intervals
    assert found.energy == pytest.approx(effort)
    assert found.cost == pytest.approx(0.5 * effort + 0.5 * weight * found.residual**2)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_target_reached_exactly_costs_the_gramian_energy(seed):
    problem = Linear(seed)
    found = problem.solve(TerminalTolerance(), tolerance=1e-8)
    assert found and found.residual <= 1e-8
    want = problem.least_energy()
    torch.testing.assert_close(found.control, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.trajectory[-1], problem.end, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.trajectory[0], problem.start)
    assert found.trajectory.shape == (problem.intervals + 1, 3) and float(found.times[-1]) == problem.time


def test_a_fine_control_tends_to_the_continuous_minimum_energy():
    # x'' = c from rest to a unit displacement at rest in unit time: c = 6 − 12t, of energy 12.
    energies = []
    for intervals in (10, 20):
        flow = runge_kutta_flow(lambda x: torch.stack((x[1], torch.zeros_like(x[1]))), 1 / intervals, 1)
        found = optimal_control(
            flow,
            tensor(0.0, 0.0),
            tensor(1.0, 0.0),
            [TerminalTolerance()],
            time=1.0,
            intervals=intervals,
            actuators=tensor([0.0, 1.0]),
        )
        assert found
        middles = (torch.arange(intervals, dtype=F64) + 0.5) / intervals
        torch.testing.assert_close(found.control[:, 0], 6 - 12 * middles, rtol=0, atol=0.15 * 100 / intervals**2)
        energies.append(found.energy - 12)
    assert energies[0] > energies[1] > 0
    assert math.log2(energies[0] / energies[1]) == pytest.approx(2, abs=0.2)


def test_amplitude_bounds_are_kept_exactly_and_are_optimal():
    problem = Linear(3)
    free = problem.least_energy(1 / 50)
    bound = 0.6 * float(free.abs().max())
    found = problem.solve(AmplitudeBound(-bound, bound), terminal_weight=50.0)
    assert found and found.violations == (0.0,)
    assert float(found.control.abs().max()) == bound
    # First-order conditions: the gradient vanishes inside the bounds and points outwards on them.
    control = found.control.clone().requires_grad_()
    x = problem.start
    for c in control:
        x = problem.flow(x, c @ problem.b)
    h = problem.time / problem.intervals
    cost = 0.5 * h * control.square().sum() + 25 * (x - problem.end).square().sum()
    (gradient,) = torch.autograd.grad(cost, control)
    inside = found.control.abs() < bound
    assert float(gradient[inside].abs().max()) < 1e-4
    assert bool((gradient[~inside] * found.control[~inside].sign() <= 0).all()) and int((~inside).sum()) > 0


def test_bounds_that_are_not_met_change_nothing_and_tensor_bounds_hold_per_actuator():
    problem = Linear(3)
    wide = problem.solve(AmplitudeBound(-100.0, 100.0), terminal_weight=20.0)
    torch.testing.assert_close(wide.control, problem.least_energy(1 / 20), rtol=1e-6, atol=1e-6)
    one_sided = problem.solve(AmplitudeBound(tensor(0.0, -100.0), tensor(100.0, 0.0)), terminal_weight=20.0)
    assert float(one_sided.control[:, 0].min()) >= 0 and float(one_sided.control[:, 1].max()) <= 0


def test_an_energy_budget_is_spent_and_not_exceeded():
    problem = Linear(4)
    full = problem.solve(terminal_weight=50.0)
    found = problem.solve(EnergyBudget(0.3 * full.energy), terminal_weight=50.0)
    assert found and found.energy == pytest.approx(0.3 * full.energy, rel=1e-5)
    assert found.residual > full.residual
    # On the budget the control is that of some larger slack: the Gramian solution with the same energy.
    low, high = 1 / 50, 1e4
    for _ in range(200):
        slack = math.sqrt(low * high)
        energy = float(problem.least_energy(slack).square().sum()) * problem.time / problem.intervals
        low, high = (slack, high) if energy > 0.3 * full.energy else (low, slack)
    torch.testing.assert_close(found.control, problem.least_energy(slack), rtol=1e-4, atol=1e-4)


def test_a_terminal_tolerance_is_used_up():
    problem = Linear(5)
    found = problem.solve(TerminalTolerance(0.1))
    exact = problem.solve(TerminalTolerance(0.0))
    assert found and found.residual == pytest.approx(0.1, abs=1e-5)
    assert found.energy < exact.energy


def test_a_target_out_of_reach_gives_a_false_signal_with_its_residual():
    problem = Linear(3)
    found = problem.solve(AmplitudeBound(-0.01, 0.01), TerminalTolerance(1e-3))
    assert not found and found.residual > 0.1
    assert found.violations == (0.0, pytest.approx(found.residual - 1e-3))
    assert "TerminalTolerance" in found.message
    one = optimal_control(
        lambda x, c: x + c,
        tensor(0.0, 0.0),
        tensor(1.0, 1.0),
        [TerminalTolerance(0.1)],
        time=1.0,
        intervals=1,
        actuators=tensor([1.0, 0.0]),
    )
    assert not one and one.residual >= 1 - 1e-6


def test_a_turing_pattern_is_moved_better_than_by_waiting():
    term, n = Schnakenberg(0.1, 0.9), 24
    dynamics = PatternDynamics(term, tensor(1.0, 20.0), Grid((30.0,)))
    (x,) = dynamics.system.grid.coordinates((n,))
    wave = torch.cos(2 * math.pi * 2 * x / 30)
    seed = term.steady_states()[0][:, None] + tensor([0.3], [-0.05]) * wave
    pattern = dynamics.evolve(seed, 150.0, 0.25)
    target = pattern.roll(2, -1)
    bumps = torch.exp(-((x - 30 * torch.arange(12)[:, None] / 12 + 15) % 30 - 15).square() / 4)
    actuators = torch.stack((bumps, torch.zeros_like(bumps)), 1)
    start = float((dynamics.evolve(pattern, 4.0, 0.25) - target).norm())
    bound = AmplitudeBound(-0.5, 0.5)
    found = dynamics.pattern_control(
        pattern, target, [bound], time=4.0, intervals=4, dt=0.25, actuators=actuators, terminal_weight=20.0,
        max_iterations=40,
    )  # fmt: skip
    assert found.residual < 0.5 * start and found.violations == (0.0,)
    assert found.trajectory.shape == (5, 2, n) and found.control.shape == (4, 12)
    replay = pattern
    for c in found.control:
        for _ in range(4):
            replay = dynamics.reaction_diffusion(replay, dt=0.25, forcing=torch.tensordot(c, actuators, 1))
    torch.testing.assert_close(replay, found.trajectory[-1], rtol=0, atol=1e-10)


def test_a_distributed_control_has_the_shape_of_the_state():
    dynamics = PatternDynamics(lambda u: -u, tensor(0.1), Grid((1.0,), "neumann"))
    found = dynamics.pattern_control(
        torch.zeros(1, 4, dtype=F64), torch.ones(1, 4, dtype=F64), [TerminalTolerance()], time=1.0, intervals=20
    )
    assert found and found.control.shape == (20, 1, 4)
    # x' = −x + c: c ∝ eᵗ, of energy 2/(1 − e⁻²) for each sample.
    assert found.energy == pytest.approx(4 * 2 / (1 - math.exp(-2)), rel=1e-3)


@settings(max_examples=5)
@given(st.integers(0, 10**6))
def test_runge_kutta_has_order_four_and_gradients(seed):
    problem = Linear(seed, n=2, m=1, time=1.0, intervals=1)
    forcing = torch.ones(2, dtype=F64)
    want = problem.flow(problem.start, forcing)
    errors = [
        float((runge_kutta_flow(lambda x: problem.a @ x, 1.0, n)(problem.start, forcing) - want).norm())
        for n in (8, 16)
    ]
    assert errors[0] < 1e-13 or math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.6)
    flow = runge_kutta_flow(lambda x: (problem.a @ x).sin(), 1.0, 2)
    assert torch.autograd.gradcheck(flow, (problem.start.clone().requires_grad_(), forcing.requires_grad_()))


def test_problems_that_are_not_well_stated_are_refused():
    flow, zero = (lambda x, c: x + c), torch.zeros(2, dtype=F64)
    common = {"time": 1.0, "intervals": 2}
    with pytest.raises(PointShapeError):
        optimal_control(flow, zero, torch.zeros(3, dtype=F64), **common)
    with pytest.raises(PointShapeError, match="actuators"):
        optimal_control(flow, zero, zero, actuators=torch.zeros(1, 3, dtype=F64), **common)
    with pytest.raises(PointShapeError, match="bounds"):
        optimal_control(flow, zero, zero, [AmplitudeBound(torch.zeros(3), torch.ones(3))], **common)
    with pytest.raises(ControlError, match="contradict"):
        optimal_control(flow, zero, zero, [AmplitudeBound(0.0, 1.0), AmplitudeBound(2.0, 3.0)], **common)
    for actuators in (torch.zeros(0, 2, dtype=F64), torch.zeros((), dtype=F64)):
        with pytest.raises(PointShapeError, match="actuators"):
            optimal_control(flow, zero, zero, actuators=actuators, **common)
    with pytest.raises(PointShapeError, match="empty"):
        optimal_control(flow, zero[:0], zero[:0], **common)
    with pytest.raises(PointShapeError, match="flow takes"):
        optimal_control(lambda x, c: x[:1], zero, zero, **common)
    for bad in (
        lambda: AmplitudeBound(math.inf, math.inf),
        lambda: optimal_control(flow, zero, zero, [3], **common),
        lambda: optimal_control(flow, zero, zero, time=1.0, intervals=2.5),
        lambda: optimal_control(flow, zero, zero, terminal_weight=math.inf, **common),
        lambda: optimal_control(flow, zero, zero, tolerance=0.0, **common),
        lambda: optimal_control(flow, zero, zero, max_iterations=0, **common),
        lambda: AmplitudeBound(1.0, 0.0),
        lambda: AmplitudeBound(math.nan, 0.0),
        lambda: EnergyBudget(0.0),
        lambda: TerminalTolerance(-1.0),
        lambda: optimal_control(flow, zero, zero, time=0.0, intervals=2),
        lambda: optimal_control(flow, zero, zero * math.nan, **common),
        lambda: optimal_control(lambda x, c: x / 0, zero, zero, **common),
        lambda: runge_kutta_flow(lambda x: x, -1.0),
    ):
        with pytest.raises(ControlError):
            bad()
