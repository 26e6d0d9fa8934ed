"""Path integrals, lattice fields and token paths: kernels in closed form, brute force, and the orders of the slices."""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aatc.passes.analysis.quantum.lattice_fields import (
    ZeroDimensionalField,
    free_propagator,
    infinite_chain_propagator,
    ising_strip,
    onsager_free_energy,
    row_covariance,
    row_effective_action,
    row_partition_function,
    sample_free_field,
    scalar_action,
)
from aatc.passes.analysis.quantum.path_integral import (
    PathIntegralFramework,
    free_kernel,
    harmonic_correlation,
    harmonic_partition_function,
    mehler_kernel,
    sliced_harmonic_partition_function,
)
from aatc.passes.analysis.quantum.states import QuantumError
from aatc.passes.analysis.quantum.token_paths import (
    likeliest_token_path,
    path_action,
    sample_paths,
    sum_over_paths,
)
from tests.analysis.quantum_cases import SEEDS, law

POINTS = np.array([-1.3, 0.0, 0.4, 1.1])


# --- a particle --------------------------------------------------------------------------------------------
def test_kernels_solve_their_equation_and_compose():
    x = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    step = float(x[1] - x[0])
    for kernel in (lambda a, b, t: mehler_kernel(a, b, t, 1.3, 0.7), lambda a, b, t: free_kernel(a, b, t, 0.7)):
        for t in (0.3, 0.4 + 0.5j):
            half = kernel(torch.tensor([0.2]), x, t), kernel(x, torch.tensor([-0.5]), t)
            whole = kernel(torch.tensor([0.2]), torch.tensor([-0.5]), 2 * t)
            assert complex((half[0] * half[1]).sum() * step) == pytest.approx(complex(whole[0]), abs=1e-12)
    wave = np.exp(-((x.numpy() - 1.5) ** 2) / 2) / np.pi**0.25
    # a coherent state in real time: ⟨x⟩ = x₀ cos ωt, and the width stays
    kernel = mehler_kernel(x[None, :], x[:, None], 0.9j).numpy()
    moved = kernel @ wave * step
    np.testing.assert_allclose(
        abs(moved) ** 2, np.exp(-((x.numpy() - 1.5 * np.cos(0.9)) ** 2)) / np.pi**0.5, atol=1e-10
    )


@pytest.mark.parametrize(("order", "factor"), [(2, 4), (4, 16)])
def test_sliced_propagators_gain_their_order_by_halving(order, factor):
    exact = mehler_kernel(POINTS[None, :], POINTS[:, None], 1.0).real.numpy()
    errors, estimates = [], []
    for slices in (4, 8, 16):
        found = PathIntegralFramework(frequency=1.0, extent=7.0, slices=slices, order=order).propagator(
            POINTS, POINTS, 1.0
        )
        errors.append(abs(found.value.value.numpy() - exact).max())
        estimates.append(found.value.step_error)
    assert errors[0] / errors[1] == pytest.approx(factor, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(factor, rel=0.1)
    assert estimates[2] == pytest.approx(errors[2], rel=0.2)
    assert found.verify() <= found.tolerance


def test_the_oscillator_by_its_exact_values():
    one = PathIntegralFramework(frequency=1.0, slices=32)
    for beta in (0.5, 2.0, 7.0):
        z = one.partition_function(beta)
        assert z.value.value.item() == pytest.approx(1 / (2 * np.sinh(beta / 2)), rel=1e-5)
        assert harmonic_partition_function(beta) == pytest.approx(1 / (2 * np.sinh(beta / 2)), rel=1e-14)
    second = PathIntegralFramework(frequency=1.3, slices=9, order=2).partition_function(2.1)
    assert second.value.value.item() == pytest.approx(sliced_harmonic_partition_function(2.1, 9, 1.3), rel=1e-12)
    two_steps = PathIntegralFramework(frequency=1.3, slices=2, order=2)
    assert two_steps.partition_function(1.0).verify() < 1e-9
    x = [lambda q: q, lambda q: q]
    for tau in (0.0, 0.5, 1.0, 0.777):
        found = one.correlation_function(x, [tau, 0.0])
        assert found.value.value.item() == pytest.approx(np.exp(-tau) / 2, abs=1e-6)
        warm = one.correlation_function(x, [0.2, 0.2 + tau], 2.0)
        assert warm.value.value.item() == pytest.approx(np.cosh(1 - tau) / (2 * np.sinh(1)), abs=2e-6)
        assert warm.value.value.item() == pytest.approx(harmonic_correlation(tau, beta=2.0), abs=2e-6)
    # Wick: ⟨x⁴⟩ = 3⟨x²⟩², by four operators at one time and by a fourth power
    four = one.correlation_function([lambda q: q] * 4, [0.3] * 4).value.value.item()
    assert four == pytest.approx(one.correlation_function([lambda q: q**4], [0.0]).value.value.item(), abs=1e-12)
    assert four == pytest.approx(0.75, abs=1e-5)


def test_the_anharmonic_oscillator_has_its_known_ground_energy():
    # H = p²/2 + x²/2 + x⁴ in a large basis of the oscillator
    n = 80
    a = np.diag(np.sqrt(np.arange(1.0, n)), 1)
    q = (a + a.T) / np.sqrt(2)
    h = np.diag(np.arange(n) + 0.5) + np.linalg.matrix_power(q, 4)
    energies = np.linalg.eigvalsh(h)[:30]
    one = PathIntegralFramework(lambda x: x**2 / 2 + x**4, extent=5.0, slices=48)
    z = one.partition_function(3.0).value
    assert z.value.item() == pytest.approx(np.exp(-3 * energies).sum(), rel=3e-6)
    assert z.step_error == pytest.approx(0, abs=1e-5)


def test_gradients_of_path_integrals():
    def partition(g):
        one = PathIntegralFramework(lambda x: x**2 / 2 + g * x**4, extent=4.0, slices=4)
        return one.partition_function(1.0).value.value

    def correlator(g, times=(0.5, 0.25)):
        one = PathIntegralFramework(lambda x: x**2 / 2 + g * x**4, extent=4.0, slices=4)
        return one.correlation_function([lambda x: x] * 2, times, 1.0).value.value

    g = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(partition, (g,)) and torch.autograd.gradcheck(correlator, (g,))
    with pytest.raises(QuantumError, match="between slices"):
        correlator(g, (0.5, 0.3))
    path = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    one = PathIntegralFramework(frequency=1.1)
    assert torch.autograd.gradcheck(lambda x: one.action_functional(x, 2.0), (path,))
    assert not one.partition_function(1.0).value.value.requires_grad


def test_the_classical_path_has_the_action_of_the_kernel():
    """−log K is S of the path of least action up to a constant: their differences between end points agree."""
    one, n = PathIntegralFramework(frequency=1.0, order=2), 400
    tau, differences = 1.0 / n, []
    for end in (0.3, 1.2):
        operator = np.diag(np.full(n - 1, 2 + tau**2)) - np.eye(n - 1, k=1) - np.eye(n - 1, k=-1)
        source = np.zeros(n - 1)
        source[-1] = end
        path = np.concatenate([[0.0], np.linalg.solve(operator, source), [end]])
        action = one.action_functional(torch.from_numpy(path), 1.0).item()
        differences.append(action + np.log(mehler_kernel(0.0, end, 1.0).real.item()))
        assert one.action_functional(torch.from_numpy(path), 1.0, euclidean=False).item() < action
    assert differences[0] == pytest.approx(differences[1], abs=1e-5)


def test_the_effective_action_is_exact_for_the_oscillator_and_quadratic():
    one = PathIntegralFramework(frequency=1.3, order=2)
    for n, beta in ((2, 1.0), (7, 2.1)):
        found = one.effective_action(np.zeros(n), beta)
        assert np.exp(-found.value.total.item()) == pytest.approx(
            sliced_harmonic_partition_function(beta, n, 1.3), rel=1e-12
        )
        assert found.verify() <= found.tolerance
    with pytest.raises(QuantumError, match="convex"):
        PathIntegralFramework(lambda x: -(x**2) / 2 + x**4).effective_action(np.zeros(5), 9.0)


@pytest.mark.parametrize(("order", "factor"), [(2, 4), (4, 16)])
def test_waves_in_real_time(order, factor):
    n = 128
    one = PathIntegralFramework(frequency=1.0, extent=8.0, order=order)
    x = -8 + 16 / n * torch.arange(n, dtype=torch.float64)
    wave = torch.exp(-((x - 1.5) ** 2) / 2) / np.pi**0.25 + 0j
    t = 0.9
    # Schrödinger's coherent state
    z, now = 1.5 * np.cos(t), -1.5 * np.sin(t)
    exact = torch.exp(-((x - z) ** 2) / 2 + 1j * (now * x - now * z / 2 - t / 2)) / np.pi**0.25
    errors = []
    for slices in (8, 16):
        moved = PathIntegralFramework(frequency=1.0, extent=8.0, order=order, slices=slices).evolve_wave(wave, t)
        errors.append(float((moved - exact).abs().max()))
        assert float(moved.abs().square().sum() * 16 / n) == pytest.approx(1, abs=1e-12)
    assert errors[0] / errors[1] == pytest.approx(factor, rel=0.1)
    assert one.evolve_wave(wave[None].repeat(3, 1), t).shape == (3, n)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PathIntegralFramework(), "either"),
        (lambda: PathIntegralFramework(frequency=-1.0), "positive"),
        (lambda: PathIntegralFramework(frequency=1.0, order=3), "order"),
        (lambda: PathIntegralFramework(frequency=1.0).propagator(0.0, 0.0, 0.0), "positive"),
        (lambda: PathIntegralFramework(frequency=1.0, slices=4000).partition_function(0.01), "fewer slices"),
        (lambda: PathIntegralFramework(lambda x: x.sum()).partition_function(1.0), "shape"),
        (lambda: PathIntegralFramework(frequency=1.0).correlation_function([lambda x: x], [3.0], 2.0), r"\[0, 2.0\]"),
        (lambda: mehler_kernel(0.0, 0.0, 3.2j), "focus"),
        (lambda: mehler_kernel(0.0, 0.0, -1.0), "Re t"),
        (lambda: free_propagator((4, 4), 0.0), "mass"),
        (lambda: ZeroDimensionalField(-1.0, 0.0), "diverges"),
        (lambda: ising_strip(0.4, 13, 4), "12"),
        (lambda: ZeroDimensionalField(-200.0, 0.1).partition_function(), "range"),
        (lambda: sum_over_paths([]), "no layers"),
        (lambda: sum_over_paths([np.eye(3), np.eye(4)]), "read"),
        (lambda: likeliest_token_path([np.eye(3)], 0, 1), "no path"),
        (lambda: sample_paths([np.eye(3)], 3, 10), "token"),
        (lambda: path_action([0, 5], [np.eye(3)]), "leaves"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(QuantumError, match=message):
        call()


# --- lattice fields ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("shape", "mass"), [((7,), 0.5), ((4, 6), 1.3), ((3, 2, 4), 0.1), ((1,), 2.0)])
def test_the_free_propagator_is_the_inverse_of_the_action(shape, mass):
    n = math.prod(shape)
    field = torch.zeros(n, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda x: scalar_action(x.reshape(shape), mass), field)
    found = free_propagator(shape, mass)
    np.testing.assert_allclose(found.value.reshape(-1).numpy(), np.linalg.inv(hessian.numpy())[0], atol=1e-12 / mass**2)
    assert found.verify() <= found.tolerance


def test_a_long_chain_is_the_infinite_one_and_samples_are_drawn_from_it():
    chain = free_propagator(200, 0.4).value
    np.testing.assert_allclose(chain[:40], infinite_chain_propagator(np.arange(40), 0.4), atol=1e-12)
    integral = scipy.integrate.quad(
        lambda k: np.cos(3 * k) / (0.16 + 4 * np.sin(k / 2) ** 2) / (2 * np.pi), -np.pi, np.pi
    )[0]
    assert infinite_chain_propagator(3, 0.4).item() == pytest.approx(integral, abs=1e-12)
    fields = sample_free_field((5, 4), 0.8, 40_000, seed=1).numpy()
    found = (fields[:, :1, :1] * fields).mean(0)
    spread = (fields[:, :1, :1] * fields).std(0) / 200
    assert (abs(found - free_propagator((5, 4), 0.8).value.numpy()) < 5 * spread).all()


@pytest.mark.parametrize(("m2", "g"), [(1.0, 1.0), (0.3, 20.0), (-2.0, 1.0), (-6.0, 0.9), (1.0, 0.0), (1.0, 1e-3)])
def test_the_field_without_dimension(m2, g):
    one = ZeroDimensionalField(m2, g)
    exact = scipy.integrate.quad(
        lambda x: np.exp(-m2 * x**2 / 2 - g * x**4 / 24), -np.inf, np.inf, epsabs=0, epsrel=1e-12, limit=500
    )
    z = one.partition_function()
    assert z.value == pytest.approx(exact[0], rel=1e-10) and z.verify() <= z.tolerance
    if m2 > 0 and g > 0.01:
        y = 3 * m2**2 / (4 * g)
        assert z.value == pytest.approx(np.sqrt(3 * m2 / g) * scipy.special.kve(0.25, y), rel=1e-11)
    # Schwinger and Dyson: ⟨φ S′⟩ = 1
    assert m2 * one.moment(2) + g / 6 * one.moment(4) == pytest.approx(1, abs=1e-11)
    step = 1e-4
    source = 0.7
    slope = (one.log_partition(source + step) - one.log_partition(source - step)) / (2 * step)
    assert slope == pytest.approx(one.moment(1, source), abs=1e-6)


@pytest.mark.parametrize(("m2", "g"), [(1.0, 1.0), (-2.0, 1.0), (1.0, 0.0)])
def test_the_effective_action_is_convex_and_one_loop_at_weak_coupling(m2, g):
    one = ZeroDimensionalField(m2, g)
    fields = np.linspace(-1.5, 1.5, 7)
    found = [one.effective_action(f) for f in fields]
    values = np.array([f.value[0] for f in found])
    assert (np.diff(values, 2) > 0).all()
    assert found[3].value[0] == pytest.approx(-one.log_partition(), abs=1e-12)
    assert found[5].verify() <= found[5].tolerance
    if g == 0:
        np.testing.assert_allclose(values, [one.one_loop_action(f) for f in fields], atol=1e-12)
    elif m2 > 0:
        gaps = [
            abs(
                ZeroDimensionalField(m2, c).effective_action(0.5).value[0]
                - ZeroDimensionalField(m2, c).one_loop_action(0.5)
            )
            for c in (0.02, 0.01)
        ]
        # what is left is of two loops, −λ/8m⁴ of first order in λ
        assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.05) and gaps[1] == pytest.approx(0.01 / 8, rel=0.05)


def test_the_series_in_the_coupling_is_asymptotic():
    one = ZeroDimensionalField(1.0, 0.2)
    exact = one.partition_function().value
    errors = [abs(one.perturbative_partition(k) - exact) for k in range(30)]
    best = int(np.argmin(errors))
    assert 4 <= best <= 12 and errors[best] < 1e-3 and errors[29] > 10
    first = math.sqrt(2 * math.pi) * (1 - 0.2 / 8)
    assert one.perturbative_partition(1) == pytest.approx(first, rel=1e-14)


def brute_force_ising(coupling, around, length, field):
    """Sums over all spins of a torus, a pair of sites joined as often as they are neighbours."""
    bonds = [((x, y), ((x + 1) % length, y)) for x in range(length) for y in range(around)]
    if around == 2:
        bonds += [((x, 0), (x, 1)) for x in range(length)]
    elif around > 2:
        bonds += [((x, y), (x, (y + 1) % around)) for x in range(length) for y in range(around)]
    z, energy, pairs = 0.0, 0.0, np.zeros(length)
    for spins in itertools.product((1, -1), repeat=around * length):
        s = np.reshape(spins, (length, around))
        sum_of_bonds = sum(s[a] * s[b] for a, b in bonds)
        weight = np.exp(coupling * sum_of_bonds + field * s.sum())
        z += weight
        energy -= weight * sum_of_bonds
        pairs += weight * s[0, 0] * s[:, 0]
    return np.log(z), energy / z / (around * length), pairs / z


@pytest.mark.parametrize(("around", "length"), [(1, 6), (2, 4), (3, 3), (2, 2), (4, 2)])
@pytest.mark.parametrize(("coupling", "field"), [(0.44, 0.0), (-0.7, 0.2), (0.0, 0.5)])
def test_strips_are_sums_over_all_spins(around, length, coupling, field):
    log_z, energy, pairs = brute_force_ising(coupling, around, length, field)
    found = ising_strip(coupling, around, length, field)
    assert found.value.log_partition == pytest.approx(log_z, abs=1e-11)
    assert found.value.energy == pytest.approx(energy, abs=1e-11)
    np.testing.assert_allclose(found.value.correlation, pairs, atol=1e-11)
    assert found.verify() <= found.tolerance


def test_the_chain_and_the_plane_in_closed_form():
    k, n = 0.6, 9
    chain = ising_strip(k, 1, n).value
    assert chain.log_partition == pytest.approx(np.log((2 * np.cosh(k)) ** n + (2 * np.sinh(k)) ** n), rel=1e-14)
    t = np.tanh(k)
    np.testing.assert_allclose(chain.correlation, [(t**r + t ** (n - r)) / (1 + t**n) for r in range(n)], atol=1e-13)
    # Kramers, Wannier: f(K) + log sinh(2K)/2 is the same at the dual coupling
    dual = -0.5 * np.log(np.tanh(0.3))
    assert onsager_free_energy(0.3) + np.log(np.sinh(0.6)) / 2 == pytest.approx(
        onsager_free_energy(dual) + np.log(np.sinh(2 * dual)) / 2, abs=1e-10
    )
    critical = np.log(1 + 2**0.5) / 2
    assert onsager_free_energy(critical) == pytest.approx(-np.log(2) / 2 - 2 * 0.915965594177219 / np.pi, abs=1e-9)
    for coupling, length in ((50.0, 9), (-50.0, 10), (-3.0, 9)):  # an odd ring of antiferromagnets is frustrated
        cold, a, b = ising_strip(coupling, 1, length), np.exp(coupling), np.exp(-coupling)
        z = sum(math.comb(length, k) * a ** (length - k) * b**k for k in range(0, length + 1, 2))
        assert cold.value.log_partition == pytest.approx(np.log(2 * z), rel=1e-12)
        assert cold.verify() <= cold.tolerance
    with pytest.raises(QuantumError, match="frustrates"):
        ising_strip(-50.0, 1, 9)
    strip = ising_strip(0.3, 8, 60).value.free_energy
    assert strip == pytest.approx(onsager_free_energy(0.3), abs=1e-3)


# --- rows and paths of attention ---------------------------------------------------------------------------
@given(SEEDS, st.integers(1, 6))
def test_rows_are_partition_functions(seed, m):
    s = torch.from_numpy(np.random.default_rng(seed).standard_normal(m) * 3).requires_grad_()
    p = torch.softmax(s, -1)
    (mean,) = torch.autograd.grad(row_partition_function(s), s)
    np.testing.assert_allclose(mean, p.detach(), atol=1e-14)
    hessian = torch.autograd.functional.hessian(row_partition_function, s)
    np.testing.assert_allclose(row_covariance(p).detach(), hessian, atol=1e-14)
    least = row_effective_action(p, s).item()
    assert least == pytest.approx(-row_partition_function(s).item(), abs=1e-12)
    assert row_effective_action(law(seed, m), s).item() >= least - 1e-12


@settings(max_examples=12)
@given(SEEDS, st.integers(1, 4), st.floats(0, 1))
def test_sums_over_paths_are_sums_over_paths(seed, layers, skip):
    n = 3
    patterns = [law(seed + k, n, n) * (np.random.default_rng(seed + k).random((n, n)) > 0.2) for k in range(layers)]
    patterns = [p / p.sum(1, keepdims=True) if p.any(1).all() else np.eye(n) for p in patterns]
    found = sum_over_paths(patterns, skip)
    weights, entropy, best = np.zeros((n, n)), np.zeros(n), np.full((n, n), np.inf)
    for path in itertools.product(range(n), repeat=layers + 1):
        action = path_action(path, patterns, skip).item()
        weights[path[0], path[-1]] += np.exp(-action)
        entropy[path[0]] += action * np.exp(-action) if np.isfinite(action) else 0
        best[path[0], path[-1]] = min(best[path[0], path[-1]], action)
    np.testing.assert_allclose(found.value.weights, weights, atol=1e-12)
    np.testing.assert_allclose(found.value.entropy, entropy, atol=1e-12)
    assert found.verify() <= found.tolerance
    i, j = map(int, np.unravel_index(np.argmax(weights), weights.shape))
    path = likeliest_token_path(patterns, i, j, skip)
    assert path.value.action == pytest.approx(best[i, j], abs=1e-12)
    assert path_action(path.value.tokens, patterns, skip).item() == pytest.approx(best[i, j], abs=1e-12)
    assert path.value.share == pytest.approx(np.exp(-best[i, j]) / weights[i, j], rel=1e-9)
    assert path.verify() <= path.tolerance


def test_samples_of_paths_are_within_their_error_as_often_as_they_say():
    patterns = [law(k, 6, 6) for k in range(4)]
    exact = sum_over_paths(patterns).value.weights[2].numpy()
    hits = 0
    for seed in range(150):
        one = sample_paths(patterns, 2, 300, confidence=0.8, seed=seed).value
        hits += bool((abs(one.weights - exact) <= one.error).all())
    assert hits >= 120
    few, many = (sample_paths(patterns, 2, n, seed=0).value.error.max() for n in (200, 20_000))
    assert many < few / 8
    deep = sample_paths(patterns, 2, 50, seed=0)
    assert deep.value.weights.sum() == pytest.approx(1) and deep.verify() <= deep.tolerance
