"""Reaction–diffusion against closed forms: exact heat flow, observed orders, Turing thresholds and wavelengths."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aatc.geometry.dynamics.pattern_dynamics import PatternDynamics
from aatc.geometry.dynamics.pattern_stability import (
    NotSteadyError,
    dispersion_relation,
    leading_eigenvalues,
    reaction_jacobian,
    stability,
    turing_conditions,
)
from aatc.geometry.dynamics.reaction_diffusion import (
    BlowUpError,
    Grid,
    PatternError,
    ReactionDiffusion,
    exponential_integrals,
)
from aatc.geometry.dynamics.reaction_terms import FitzHughNagumo, GiererMeinhardt, GrayScott, Schnakenberg
from aatc.geometry.manifold import GeometryError, PointShapeError

F64 = torch.float64
TERMS = {"schnakenberg": Schnakenberg(0.1, 0.9), "gierer-meinhardt": GiererMeinhardt(0.1, 1.0)}
GRIDS = [Grid((2.0,)), Grid((2.0,), "neumann"), Grid((2.0, 3.0)), Grid((2.0, 3.0), "neumann")]


pytestmark = pytest.mark.usefixtures("one_thread")


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def nothing(fields):
    return torch.zeros_like(fields)


def mode(grid, sizes, numbers):
    """An eigenfunction of the Laplacian that fits the box, and its wave vector."""
    factor = 1 if grid.boundary == "neumann" else 2
    k = [factor * math.pi * n / side for n, side in zip(numbers, grid.lengths)]
    waves = [torch.cos(a * x) for a, x in zip(k, grid.coordinates(sizes))]
    return math.prod(waves[1:], start=waves[0]), tensor(*k)


@pytest.mark.parametrize("method", ["etdrk4", "imex", "explicit"])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.ndim}d-{g.boundary}")
@pytest.mark.parametrize("mixing", [False, True])
def test_a_cosine_decays_as_the_heat_equation_says(grid, method, mixing):
    sizes = (8, 10)[: grid.ndim]
    wave, k = mode(grid, sizes, (2, 1)[: grid.ndim])
    diffusion = tensor([0.1, 0.03], [-0.02, 0.2]) if mixing else tensor(0.1, 0.25)
    matrix = diffusion if mixing else torch.diag(diffusion)
    start = tensor([1.0, -0.5], [0.3, 2.0])
    shape = (..., *[None] * grid.ndim)
    z = -0.1 * k.square().sum() * matrix
    factor = torch.linalg.matrix_exp(z)
    if method == "imex":
        # The stability function of the scheme, of order 2 and 0 at infinity.
        gamma, eye = 1 - math.sqrt(0.5), torch.eye(2, dtype=F64)
        resolvent = torch.linalg.inv(eye - gamma * z)
        factor = (eye + (1 - 2 * gamma) * z) @ resolvent @ resolvent
    want = (start @ (factor @ factor).T)[shape] * wave
    got = ReactionDiffusion(nothing, diffusion, grid).evolve(start[shape] * wave, 0.2, 0.1, method)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-8 if method == "explicit" else 1e-12)
    assert (got - start[shape] * wave).abs().max() > 0.05


def test_an_anisotropic_tensor_diffuses_along_its_own_axes():
    grid, sizes = Grid((2.0, 3.0)), (12, 8)
    x, y = grid.coordinates(sizes)
    k = tensor(2 * math.pi / 2.0, -2 * 2 * math.pi / 3.0)
    diffusion = tensor([[0.2, 0.1], [0.1, 0.1]], [[0.05, -0.02], [-0.02, 0.3]])
    wave = torch.sin(k[0] * x + k[1] * y)
    decay = torch.exp(-0.3 * torch.einsum("sij,i,j->s", diffusion, k, k))
    got = ReactionDiffusion(nothing, diffusion, grid).evolve(wave.expand(2, *sizes), 0.3, 0.1)
    torch.testing.assert_close(got, decay[:, None, None] * wave, rtol=0, atol=1e-12)
    other = ReactionDiffusion(nothing, diffusion.abs(), grid).evolve(wave.expand(2, *sizes), 0.3, 0.1)
    assert (other - got).abs().max() > 1e-2


@given(st.floats(-60, 0))
def test_exponential_integrals_satisfy_their_recurrence(z):
    one, two, three = exponential_integrals(tensor(z))
    torch.testing.assert_close(one * z, torch.expm1(tensor(z)), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(two * z + 1, one, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(three * z + 0.5, two, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize(("method", "order"), [("etdrk4", 4), ("imex", 2)])
def test_observed_orders_on_a_nonlinear_system(method, order, mixing):
    term, grid = TERMS["schnakenberg"], Grid((6.0,))
    wave, _ = mode(grid, (24,), (1,))
    state = term.steady_states()[0][:, None] + tensor([0.3], [-0.2]) * wave
    system = ReactionDiffusion(term, tensor([1.0, 0.2], [0.1, 5.0]) if mixing else tensor(1.0, 5.0), grid)
    reference = system.evolve(state, 1.0, 1.0, "explicit")
    errors = [float((system.evolve(state, 1.0, 1 / n, method) - reference).abs().max()) for n in (20, 40)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)
    assert errors[1] < (1e-5 if order == 4 else 1e-2)


def test_a_mixing_matrix_without_mixing_gives_what_the_diagonal_gives():
    state = TERMS["schnakenberg"].steady_states()[0][:, None] + 0.1 * torch.randn(3, 2, 64, dtype=F64)
    for method in ("etdrk4", "imex"):
        diffusion = tensor(1.0, 40.0)
        one, other = (
            ReactionDiffusion(TERMS["schnakenberg"], d, Grid((20.0,))).evolve(state, 1.0, 0.1, method)
            for d in (diffusion, torch.diag(diffusion))
        )
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("boundary", ["periodic", "neumann"])
def test_diffusion_conserves_mass_and_a_batch_is_its_rows(boundary):
    system = ReactionDiffusion(nothing, tensor(0.2, 1.0), Grid((1.0, 2.0, 1.5), boundary))
    state = torch.randn(3, 2, 4, 5, 6, dtype=F64)
    got = system.evolve(state, 0.3, 0.1)
    torch.testing.assert_close(got.sum((-3, -2, -1)), state.sum((-3, -2, -1)), rtol=0, atol=1e-11)
    torch.testing.assert_close(torch.stack([system.evolve(row, 0.3, 0.1) for row in state]), got, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", ["etdrk4", "imex"])
@pytest.mark.parametrize("mixing", [False, True])
def test_gradients_of_a_simulation(method, mixing):
    grid = Grid((3.0,), "neumann")
    state = 1 + 0.1 * torch.randn(2, 5, dtype=F64)
    diffusion = tensor([1.0, 0.1], [0.2, 3.0]) if mixing else tensor(1.0, 3.0)
    push = torch.randn(5, dtype=F64)

    def final(u, d, a, h):
        return ReactionDiffusion(Schnakenberg(a, 0.9), d, grid).step(u, h, method, forcing=push)

    inputs = [x.requires_grad_() for x in (state, diffusion, tensor(0.1)[0].clone(), tensor(0.07)[0].clone())]
    assert torch.autograd.gradcheck(final, inputs)


def test_progress_is_reported_and_forcing_acts():
    seen = []
    dynamics = PatternDynamics(TERMS["schnakenberg"], tensor(1.0, 10.0), Grid((4.0,)))
    state = TERMS["schnakenberg"].steady_states()[0][:, None].expand(2, 8)
    end = dynamics.evolve(state, 1.0, 0.3, progress=lambda n, t, u: seen.append((n, t, u)), every=3)
    assert [(n, round(t, 12)) for n, t, _ in seen] == [(3, 0.75), (4, 1.0)]
    torch.testing.assert_close(seen[-1][2], end)
    torch.testing.assert_close(end, state, rtol=0, atol=1e-13)
    pushed = dynamics.reaction_diffusion(state, reaction_term=nothing, dt=0.5, forcing=tensor([2.0], [-1.0]))
    torch.testing.assert_close(pushed, state + tensor([1.0], [-0.5]), rtol=0, atol=1e-13)


@given(st.floats(0.05, 0.5), st.floats(0.5, 2.0), st.floats(-0.5, 0.5))
def test_steady_states_rest(a, b, current):
    feed = 0.02 + 0.1 * a
    terms = [Schnakenberg(a, b), GiererMeinhardt(a, b), FitzHughNagumo(a, b, 0.08, current), GrayScott(feed, 0.05)]
    for term in terms:
        states = term.steady_states()
        torch.testing.assert_close(term(states.T), torch.zeros_like(states.T), rtol=0, atol=1e-12)
    roots = np.roots([1.0, 0.0, 3 * (1 / b - 1), 3 * (a / b - current)])
    real = np.sort(roots[np.abs(roots.imag) < 1e-7].real)
    if np.abs(np.diff(np.sort(roots.real))).min() > 1e-3 or len(real) == 1:
        np.testing.assert_allclose(terms[2].steady_states()[:, 0], real, atol=1e-8)


def test_a_neuron_next_to_its_fold_rests_and_small_states_keep_their_digits():
    for digits in range(30, 54):
        for b, side in ((1.3, 1.0), (2.0794127487317016, -1.0), (2.9, 1.0)):
            fold = side * (1 - 1 / b) ** 1.5 * (1 - 2.0**-digits)
            term = FitzHughNagumo(0.7, b, 0.08, 0.7 / b - fold / 1.5)
            states = term.steady_states()
            torch.testing.assert_close(term(states.T), torch.zeros_like(states.T), rtol=0, atol=1e-7)
    tangled = FitzHughNagumo(2.3289123269883443, 2.0794127487317016, 0.08, 1.1802267805928905)
    assert bool(tangled.steady_states().isfinite().all())
    small = float(FitzHughNagumo(1e-12, 0.5, 0.08, 0.0).steady_states()[0, 0])
    assert small == pytest.approx(-2e-12, rel=1e-12)


def test_reactions_without_their_steady_state_say_so():
    for term in (Schnakenberg(0.0, 0.0), GiererMeinhardt(0.1, 0.0), GrayScott(0.0), GrayScott(0.04, -0.04)):
        with pytest.raises(PatternError, match="need"):
            term.steady_states()
    with pytest.raises(PatternError, match="b > 0"):
        FitzHughNagumo(b=0.0).steady_states()


@pytest.mark.parametrize("boundary", ["periodic", "neumann"])
@pytest.mark.parametrize(("lengths", "sizes"), [((6.0,), (5,)), ((6.0,), (6,)), ((6.0, 4.0), (3, 4)), ((3.0,), (1,))])
def test_a_homogeneous_state_has_the_eigenvalues_of_its_linearised_grid(boundary, lengths, sizes):
    system = ReactionDiffusion(TERMS["schnakenberg"], tensor(0.05, 1.0), Grid(lengths, boundary))
    rest = TERMS["schnakenberg"].steady_states()[0].reshape(2, *[1] * len(sizes)).expand(2, *sizes)
    found = stability(system, rest, count=2 * math.prod(sizes))
    dense = leading_eigenvalues(system, rest.clone(), 2 * math.prod(sizes))
    assert found.homogeneous and found.eigenvalues.shape == dense.shape
    torch.testing.assert_close(found.eigenvalues.real, dense.real, rtol=0, atol=1e-9)
    assert found.growth_rate == pytest.approx(float(dense.real.max()), abs=1e-9)


def test_gray_scott_has_three_states_where_the_feed_suffices():
    assert GrayScott(0.04, 0.04).steady_states().shape == (3, 2)
    assert GrayScott(0.04, 0.07).steady_states().shape == (1, 2)


@given(st.floats(0.02, 0.3), st.floats(0.7, 1.3), st.floats(9.0, 80.0), st.sampled_from([0, 1]))
def test_turing_conditions_are_those_of_the_dispersion_relation(a, b, ratio, activator):
    term = Schnakenberg(a, b)
    jacobian, diffusion = reaction_jacobian(term, term.steady_states()[0]), tensor(0.3, 0.3 * ratio)
    if activator:
        jacobian, diffusion = jacobian.flip(0, 1), diffusion.flip(0)
    found = turing_conditions(jacobian, diffusion)
    k = torch.linspace(0, 6, 60001, dtype=F64)
    growth = dispersion_relation(jacobian, diffusion, k)
    assert found.growth_rate == pytest.approx(float(growth.max()), abs=1e-7)
    if found.growth_rate > float(growth[0]) + 1e-6:
        assert found.wavenumber == pytest.approx(float(k[growth.argmax()]), abs=2e-4)
    if found.stable_without_diffusion:
        assert bool(found) == (found.growth_rate > 0) == (ratio > found.critical_ratio)
        edge = torch.ones(2, dtype=F64)
        edge[1 - activator] = found.critical_ratio
        at_edge = turing_conditions(jacobian, edge)
        assert at_edge.growth_rate == pytest.approx(0, abs=1e-9)
        assert at_edge.wavenumber == pytest.approx(at_edge.critical_wavenumber, rel=1e-6)
    if found:
        ends = dispersion_relation(jacobian, diffusion, tensor(*found.band))
        torch.testing.assert_close(ends, torch.zeros_like(ends), rtol=0, atol=1e-9)


def test_the_dispersion_relation_is_differentiable_and_takes_mixing_matrices():
    jacobian = reaction_jacobian(TERMS["schnakenberg"], TERMS["schnakenberg"].steady_states()[0])
    k = tensor(0.3, 0.4, 0.8)
    inputs = [x.requires_grad_() for x in (jacobian, tensor(1.0, 20.0), k)]
    assert torch.autograd.gradcheck(dispersion_relation, inputs)
    matrix = dispersion_relation(jacobian, torch.diag(tensor(1.0, 20.0)), k)
    torch.testing.assert_close(matrix, dispersion_relation(*inputs))


def noise_growth(term, diffusion, side, begin, end, size=96):
    """Growth rates of the modes of small noise in a simulation, their spectrum at its end, and their wavenumbers."""
    system = ReactionDiffusion(term, diffusion, Grid((side,)))
    rest = term.steady_states()[0][:, None]
    noise = 1e-7 * torch.randn(2, size, dtype=F64, generator=torch.Generator().manual_seed(1))
    early = system.evolve(rest + noise, begin, 0.25)
    late = system.evolve(early, end - begin, 0.25)
    before, after = (torch.fft.rfft(u - rest).abs()[0, 1:40] for u in (early, late))
    return (after / before).log() / (end - begin), after, torch.arange(1, 40) * (2 * math.pi / side)


@pytest.mark.parametrize("name", TERMS)
def test_noise_begins_to_grow_at_the_turing_threshold(name):
    term = TERMS[name]
    jacobian = reaction_jacobian(term, term.steady_states()[0])
    critical = turing_conditions(jacobian, tensor(1.0, 10.0)).critical_ratio
    k = turing_conditions(jacobian, tensor(1.0, critical)).critical_wavenumber
    low, high = 3.0, 20.0
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        rates, spectrum, _ = noise_growth(term, tensor(1.0, middle), 12.3 * 2 * math.pi / k, 40, 80)
        if rates[spectrum.argmax()] > 0:
            high = middle
        else:
            low = middle
    assert math.sqrt(low * high) == pytest.approx(critical, rel=0.05)


@pytest.mark.parametrize("name", TERMS)
def test_the_emerging_pattern_has_the_predicted_wavelength_and_growth(name):
    term = TERMS[name]
    jacobian = reaction_jacobian(term, term.steady_states()[0])
    found = turing_conditions(jacobian, tensor(1.0, 12.0))
    rates, spectrum, k = noise_growth(term, tensor(1.0, 12.0), 15.7 * found.wavelength, 40, 70)
    measured = 2 * math.pi / float((spectrum.square() * k).sum() / spectrum.square().sum())
    assert measured == pytest.approx(found.wavelength, rel=0.05)
    want = dispersion_relation(jacobian, tensor(1.0, 12.0), k)
    strong = spectrum > 0.05 * spectrum.max()
    torch.testing.assert_close(rates[strong], want[strong], rtol=0, atol=1e-4)
    assert float(rates[spectrum.argmax()]) == pytest.approx(found.growth_rate, rel=0.05)


@pytest.mark.slow
def test_in_two_dimensions_the_power_gathers_on_the_critical_ring():
    term = TERMS["schnakenberg"]
    rest = term.steady_states()[0][:, None, None]
    found = turing_conditions(reaction_jacobian(term, rest[:, 0, 0]), tensor(1.0, 12.0))
    grid, n = Grid((8 * found.wavelength, 8 * found.wavelength)), 48
    system = ReactionDiffusion(term, tensor(1.0, 12.0), grid)
    late = system.evolve(rest + 1e-7 * torch.randn(2, n, n, dtype=F64), 100.0, 0.25)
    power = torch.fft.rfftn(late - rest, dim=(-2, -1)).abs().square()[0]
    kx, ky = grid.wavenumbers((n, n))
    measured = 2 * math.pi / float((power * (kx**2 + ky**2).sqrt()).sum() / power.sum())
    assert measured == pytest.approx(found.wavelength, rel=0.05)


@pytest.fixture(scope="module")
def stripes():
    """A steady Schnakenberg pattern of four stripes on a Neumann interval."""
    term = TERMS["schnakenberg"]
    system = ReactionDiffusion(term, tensor(1.0, 30.0), Grid((32.0,), "neumann"))
    wave, _ = mode(system.grid, (48,), (4,))
    return system, system.evolve(term.steady_states()[0][:, None] + tensor([0.3], [-0.05]) * wave, 400.0, 0.25)


def test_a_turing_pattern_is_stable_where_the_homogeneous_state_is_not(stripes):
    system, pattern = stripes
    found = stability(system, pattern, torch.ones_like(pattern))
    assert found and not found.homogeneous and found.turing is None
    home = stability(system, TERMS["schnakenberg"].steady_states()[0], pattern)
    assert not home and home.homogeneous and home.turing
    dense = torch.func.jacfwd(lambda u: system.rate(u.reshape(2, 48)).reshape(-1))
    flat = TERMS["schnakenberg"].steady_states()[0][:, None].expand(2, 48).reshape(-1)
    assert home.growth_rate == pytest.approx(float(torch.linalg.eigvals(dense(flat)).real.max()), abs=1e-9)
    fits = home.wavenumber / (math.pi / 32)
    assert fits == pytest.approx(round(fits), abs=1e-9) and home.wavelength == pytest.approx(64 / round(fits))
    operator = dense(pattern.reshape(-1))
    ones = torch.ones(96, dtype=F64)
    assert found.perturbation_growth == pytest.approx(float(ones @ operator @ ones) / 96, rel=1e-9)


def test_the_leading_eigenvalue_is_the_rate_at_which_the_pattern_is_regained(stripes):
    system, pattern = stripes
    found = stability(system, pattern)
    near = pattern + 1e-5 * torch.randn(2, 48, dtype=F64)
    first = system.evolve(near, 60.0, 0.1)
    second = system.evolve(first, 30.0, 0.1)
    ratio = (second - pattern).norm() / (first - pattern).norm()
    assert float(ratio.log()) / 30 == pytest.approx(found.growth_rate, rel=0.05)


def test_arnoldi_iteration_gives_the_dense_eigenvalues(monkeypatch):
    system = ReactionDiffusion(TERMS["schnakenberg"], tensor(1.0, 4.0), Grid((60.0,), "neumann"))
    pattern = 1 + 0.3 * torch.randn(2, 40, dtype=F64)
    dense = leading_eigenvalues(system, pattern, 4)
    monkeypatch.setattr("aatc.geometry.dynamics.pattern_stability._DENSE", 10)
    arnoldi = leading_eigenvalues(system, pattern, 4)
    torch.testing.assert_close(arnoldi.real, dense.real, rtol=0, atol=1e-8)


def test_what_does_not_fit_is_refused():
    term, grid = TERMS["schnakenberg"], Grid((2.0,))
    good = ReactionDiffusion(term, tensor(1.0, 2.0), grid)
    state = torch.ones(2, 8, dtype=F64)
    with pytest.raises(PatternError, match="ill-posed"):
        ReactionDiffusion(term, tensor(1.0, -2.0), grid).step(state, 0.1)
    with pytest.raises(PatternError, match="ill-posed"):
        ReactionDiffusion(term, tensor([1.0, 4.0], [4.0, 1.0]), grid).step(state, 0.1)
    with pytest.raises(PointShapeError, match="diffusion tensor"):
        ReactionDiffusion(term, tensor(1.0, 2.0, 3.0), grid).step(state, 0.1)
    with pytest.raises(PatternError, match="periodic"):
        mixed = tensor([[1.0, 0.1], [0.1, 1.0]]).expand(2, 2, 2)
        ReactionDiffusion(term, mixed, Grid((1.0, 1.0), "neumann")).step(torch.ones(2, 4, 4, dtype=F64), 0.1)
    with pytest.raises(PointShapeError, match="species first"):
        ReactionDiffusion(lambda u: u[0], tensor(1.0, 2.0), grid).step(state, 0.1)
    for call in (lambda: good.step(state, -0.1), lambda: good.step(state, 0.1, "euler"), lambda: Grid((1.0,), "wall")):
        with pytest.raises(PatternError):
            call()
    with pytest.raises(PointShapeError):
        good.rate(torch.ones(8, dtype=torch.int64))
    for bad in (state.half(), state[:, :0], state.expand(0, 2, 8)):
        with pytest.raises(PointShapeError, match="float32 or float64"):
            good.step(bad, 0.1)
    for call in (good.rate, lambda u, forcing: good.step(u, 0.1, forcing=forcing)):
        with pytest.raises(PointShapeError, match="forcing"):
            call(state, forcing=torch.ones(3, 3, dtype=F64))
    for strange in (tensor([1.0, math.nan], [0.0, 1.0]), tensor(1.0, math.inf)):
        with pytest.raises(PatternError, match="finite"):
            ReactionDiffusion(term, strange, grid).rate(state)
    with pytest.raises(PointShapeError, match="sizes"):
        Grid((1.0, 2.0)).coordinates((4,))
    rest = term.steady_states()[0]
    for perturbation in (torch.ones(2, 3, 3, dtype=F64), torch.ones((), dtype=F64)):
        with pytest.raises(PointShapeError, match="perturbation"):
            stability(good, rest, perturbation)
    for call in (stability, leading_eigenvalues):
        with pytest.raises(PatternError, match="count"):
            call(good, rest[:, None].expand(2, 8), count=0)
    eye = torch.eye(2, dtype=F64)
    for conditions in (
        lambda: turing_conditions(math.nan * eye, eye[0] + 1),
        lambda: turing_conditions(eye, math.inf * (eye[0] + 1)),
    ):
        with pytest.raises(PatternError, match="finite"):
            conditions()
    with pytest.raises(PointShapeError, match="wavenumbers"):
        dispersion_relation(eye, eye[0], eye[0, 0])
    with pytest.raises(PatternError, match="finite"):
        dispersion_relation(math.nan * eye, eye[0], eye[0])
    with pytest.raises(NotSteadyError) as caught:
        stability(good, state * 3)
    assert caught.value.residual > 1
    assert issubclass(PatternError, GeometryError)


def test_a_blow_up_is_reported_and_never_returned():
    system = ReactionDiffusion(lambda u: u * u, tensor(0.1), Grid((1.0,)))
    with pytest.raises(BlowUpError) as caught:
        system.evolve(torch.full((1, 4), 1.0, dtype=F64), 3.0, 0.05)
    assert 0.9 < caught.value.time <= 3.0 and caught.value.step > 0


def test_single_precision_stays_single():
    state = torch.ones(2, 16)
    for d in (tensor(1.0, 8.0), tensor([1.0, 0.1], [0.0, 8.0])):
        out = ReactionDiffusion(TERMS["schnakenberg"], d, Grid((4.0,))).evolve(state, 1.0, 0.1)
        want = ReactionDiffusion(TERMS["schnakenberg"], d, Grid((4.0,))).evolve(state.double(), 1.0, 0.1)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.double(), want, rtol=0, atol=1e-5)


def test_results_are_frozen_and_scipy_is_not_loaded_by_import():
    found = turing_conditions(-torch.eye(2, dtype=F64), tensor(1.0, 1.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.trace = 0.0
    code = "import sys, aatc.geometry.dynamics.pattern_dynamics; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
