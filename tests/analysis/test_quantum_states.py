"""States, evolution and measurement: oracles in closed form, other software's algorithms, and what always holds."""

import time

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aatc.passes.analysis.quantum.evolution import (
    evolve,
    krylov_evolve,
    thermal_state,
    trotter_propagator,
    unitary_propagator,
)
from aatc.passes.analysis.quantum.measurement import (
    apply_channel,
    count_intervals,
    expectation,
    measure_povm,
    measure_projective,
    sample_measurement,
    variance,
)
from aatc.passes.analysis.quantum.operators import connection_laplacian, heisenberg_chain, local_operator, pauli
from aatc.passes.analysis.quantum.quantum import QuantumStateSpace
from aatc.passes.analysis.quantum.states import (
    QuantumError,
    attention_state,
    ghz_state,
    mixed_state,
    pure_state,
    query_key_state,
    value_density,
    w_state,
    werner_state,
)
from tests.analysis.quantum_cases import SEEDS, channel, density, hermitian, law, unitary, vector

X, Y, Z = (pauli(name).numpy() for name in "XYZ")


def kron(*parts):
    result = np.ones((1, 1))
    for part in parts:
        result = np.kron(result, part)
    return result


# --- preparation -------------------------------------------------------------------------------------------
@given(SEEDS, st.integers(1, 6), st.integers(1, 5))
def test_states_of_attention_are_what_they_are_called(seed, n, m):
    rows = law(seed, n, m)
    psi = attention_state(rows).tensor.numpy()
    np.testing.assert_allclose(abs(psi) ** 2, rows, atol=1e-14)
    joint = query_key_state(rows)
    np.testing.assert_allclose(abs(joint.tensor.numpy().reshape(n, m)) ** 2, rows / n, atol=1e-14)
    values = np.random.default_rng(seed).standard_normal((m, 3)) * 1e-200
    rho = value_density(values, rows[0]).tensor.numpy()
    scaled = values * 1e200
    expected = sum(p * np.outer(v, v) for p, v in zip(rows[0], scaled))
    np.testing.assert_allclose(rho, expected / np.trace(expected), atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_half_precision_are_states(dtype):
    rows = torch.softmax(torch.randn(5, 9), -1).to(dtype)
    psi = attention_state(rows).tensor
    assert psi.dtype == torch.complex128
    np.testing.assert_allclose(torch.linalg.vector_norm(psi, dim=-1), 1, atol=1e-15)


def test_masked_keys_have_no_gradient_and_others_the_right_one():
    p = torch.tensor([0.25, 0.0, 0.75], dtype=torch.float64, requires_grad=True)
    attention_state(p).tensor.real.sum().backward()
    # ψ = √(p/Σp): dΣψ/dp_k = ½p_k^−½ − ½ Σ√p at Σp = 1
    total = 0.5 + 0.75**0.5
    np.testing.assert_allclose(p.grad[[0, 2]], [1 - total / 2, 0.5 / 0.75**0.5 - total / 2], atol=1e-14)
    assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pure_state([1.0, 1.0]), "norm"),
        (lambda: pure_state([0.0, 0.0], normalise=True), "zero vector"),
        (lambda: pure_state([1.0, float("nan")]), "not finite"),
        (lambda: pure_state([]), "empty"),
        (lambda: pure_state([1.0, 0.0], (3,)), "dimension"),
        (lambda: mixed_state([[0.5, 0.4], [0.1, 0.5]]), "no state"),
        (lambda: mixed_state([[1.5, 0.0], [0.0, -0.5]]), "least eigenvalue"),
        (lambda: attention_state([[0.5, 0.5], [0.0, 0.0]]), r"row \(1,\)"),
        (lambda: attention_state([[1.5, -0.5]]), "least entry"),
        (lambda: value_density(np.zeros((3, 2))), "all values"),
        (lambda: werner_state(1.1), "Werner"),
        (lambda: evolve(ghz_state(2), np.eye(4) * 1j, 1.0), "not Hermitian"),
        (lambda: evolve(ghz_state(2), np.eye(3), 1.0), "dimension"),
        (lambda: evolve(ghz_state(2), np.eye(4), float("inf")), "finite"),
        (lambda: QuantumStateSpace((2, 0)), "factors"),
        (lambda: QuantumStateSpace(2, torch.float64), "complex"),
        (lambda: QuantumStateSpace(2).prepare_state([1, 0], "bits"), "kind"),
        (lambda: measure_povm(ghz_state(2), torch.eye(4)[None] * 0.9), "no measurement"),
        (lambda: apply_channel(ghz_state(2), torch.eye(2) * 1.1, 0), "no channel"),
        (lambda: krylov_evolve(ghz_state(2), heisenberg_chain(3), 1.0), "dimension"),
        (lambda: heisenberg_chain(21), "20"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(QuantumError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_states_that_shorter_dtypes_rounded_are_states(dtype):
    x = torch.nn.functional.normalize(torch.randn(40, dtype=torch.float64), dim=0).to(dtype)
    for rounded in (x, *([x.numpy()] if dtype != torch.bfloat16 else [])):
        made = pure_state(rounded)
        if made.tensor.dtype == torch.complex128:
            assert abs(torch.linalg.vector_norm(made.tensor).item() - 1) < 1e-14
    rho = density(3, 5).real.to(torch.float32 if dtype.is_complex else dtype)
    assert abs(torch.trace(mixed_state((rho + rho.mT) / 2).tensor).item() - 1) < 1e-12
    with pytest.raises(QuantumError, match="norm"):
        pure_state(x.to(torch.complex128) * 1.001)


def test_batches_that_do_not_fit_are_refused():
    two, three = pure_state(vector(0, 2, 4)), hermitian(1, 4, (3,))
    for call in (lambda: expectation(two, three), lambda: variance(two, three), lambda: evolve(two, three, 1.0),
                 lambda: evolve(two, three[0], [0.1, 0.2, 0.3])):  # fmt: skip
        with pytest.raises(QuantumError, match="do not fit"):
            call()


# --- evolution ---------------------------------------------------------------------------------------------
@given(SEEDS, st.integers(1, 6), st.floats(-20, 20))
def test_evolution_is_that_of_scipy_and_unitary(seed, d, t):
    h, psi = hermitian(seed, d), pure_state(vector(seed, 3, d))
    u = scipy.linalg.expm(-1j * t * h.numpy())
    np.testing.assert_allclose(evolve(psi, h, t).tensor.numpy(), psi.tensor.numpy() @ u.T, atol=1e-11)
    rho = mixed_state(density(seed, d))
    np.testing.assert_allclose(evolve(rho, h, t).tensor.numpy(), u @ rho.tensor.numpy() @ u.conj().T, atol=1e-11)
    exact = unitary_propagator(h, t)
    np.testing.assert_allclose((exact @ exact.mH).numpy(), np.eye(d), atol=1e-12)


def test_rabi_oscillations():
    # H = ½(Δ Z + Ω X): P(1) = Ω²/(Ω² + Δ²) sin²(½√(Ω² + Δ²) t)
    detuning, rabi = 0.7, 1.9
    t = torch.linspace(0, 9, 41, dtype=torch.float64)
    psi = evolve(pure_state([1.0, 0.0]), (detuning * pauli("Z") + rabi * pauli("X")) / 2, t).tensor
    whole = np.hypot(detuning, rabi)
    expected = (rabi / whole) ** 2 * np.sin(whole * t.numpy() / 2) ** 2
    np.testing.assert_allclose(psi[:, 1].abs().square().numpy(), expected, atol=1e-14)


def test_gradients_of_evolution_exist_where_energies_coincide():
    psi, parameter = vector(3, 4), torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    direction = hermitian(4, 4)

    def survival(x, t):
        return evolve(pure_state(psi), torch.eye(4) + x * direction, t).tensor[0].abs().square()

    t = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(survival, (parameter, t)) and torch.autograd.gradgradcheck(survival, (parameter, t))


@settings(max_examples=12)
@given(SEEDS, st.booleans(), st.floats(-3, 3))
def test_krylov_steps_are_within_their_bound(seed, real, t):
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 90))
    table = scipy.sparse.random_array((d, d), density=min(1.0, 5 / d), rng=rng) * rng.uniform(0.1, 8)
    h = table + table.T if real else table * 1j + (table * 1j).conj().T
    psi = pure_state(vector(seed, 2, d))
    found = krylov_evolve(psi, h, t)
    exact = psi.tensor.numpy() @ scipy.linalg.expm(-1j * t * h.toarray()).T
    assert np.linalg.norm(found.state.tensor.numpy() - exact, axis=1).max() <= found.error + 1e-13
    assert found.error < 1e-9


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_the_bound_of_a_coarse_evolution_holds_and_is_not_idle(tolerance):
    h, psi = heisenberg_chain(8) * 5, pure_state(vector(1, 256))
    found = krylov_evolve(psi, h, 6.0, tolerance=tolerance)
    exact = scipy.sparse.linalg.expm_multiply(-6j * h, psi.tensor.numpy())
    error = np.linalg.norm(found.state.tensor.numpy() - exact)
    assert tolerance * 1e-4 < error <= found.error <= 1.1 * tolerance


def test_gradients_go_through_krylov_steps():
    h = heisenberg_chain(4, 1.3, 0.4)
    psi, target = vector(5, 16), vector(6, 16)

    def overlap(x, t):
        state = pure_state(torch.complex(x[0], x[1]), normalise=True)
        return (krylov_evolve(state, h, t).state.tensor.conj() * target).sum().abs()

    x = torch.stack((psi.real, psi.imag)).requires_grad_()
    assert torch.autograd.gradcheck(overlap, (x, torch.tensor(0.7, dtype=torch.float64, requires_grad=True)))
    with pytest.raises(QuantumError, match="sparse Hamiltonian"):
        krylov_evolve(pure_state(psi), torch.eye(16).to_sparse().requires_grad_(), 1.0)


def test_sixteen_spins_are_exact_to_ten_digits():
    """Heisenberg's chain is solved in its sectors of one magnon: E_k = E_0 + J(cos k − 1), for plane waves."""
    n, t = 16, 1.0
    h = heisenberg_chain(n)
    k = 2 * np.pi * 3 / n
    psi = np.zeros(1 << n, dtype=complex)
    psi[[1 << (n - 1 - x) for x in range(n)]] = np.exp(1j * k * np.arange(n)) / np.sqrt(n)
    # and a state of all sectors, against a Taylor series
    mixed = vector(0, 1 << n).numpy()
    start = time.perf_counter()
    found = krylov_evolve(pure_state(np.stack([psi, mixed])), h, t)
    assert time.perf_counter() - start < 20
    energy = n / 4 + np.cos(k) - 1
    np.testing.assert_allclose(found.state.tensor[0].numpy(), np.exp(-1j * energy * t) * psi, atol=1e-12)
    exact = scipy.sparse.linalg.expm_multiply(-1j * t * h, mixed)
    assert np.linalg.norm(found.state.tensor[1].numpy() - exact) <= 1e-10


def test_the_heisenberg_chain_is_the_sum_of_its_bonds():
    n, coupling, field, delta = 5, 0.7, 0.3, 1.8
    expected = np.zeros((32, 32), dtype=complex)
    for k in range(n):
        for s, weight in ((X, 1), (Y, 1), (Z, delta)):
            sites = [np.eye(2)] * n
            sites[k], sites[(k + 1) % n] = s / 2, s / 2
            expected += coupling * weight * kron(*sites)
        sites = [np.eye(2)] * n
        sites[k] = Z / 2
        expected -= field * kron(*sites)
    found = heisenberg_chain(n, coupling, field, anisotropy=delta)
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-14)
    two = heisenberg_chain(2).toarray()
    np.testing.assert_allclose(np.linalg.eigvalsh(two), [-0.75, 0.25, 0.25, 0.25], atol=1e-15)


@pytest.mark.parametrize(("order", "factor"), [(2, 4), (4, 16)])
def test_product_formulas_gain_their_order_by_halving(order, factor):
    a, b = hermitian(1, 5), hermitian(2, 5)
    exact = unitary_propagator(a + b, 1.0)
    errors = [float((trotter_propagator((a, b), 1.0, n, order) - exact).abs().max()) for n in (16, 32)]
    assert errors[0] / errors[1] == pytest.approx(factor, rel=0.1)
    fine = trotter_propagator((a, b), 1.0, 3, order)
    np.testing.assert_allclose((fine @ fine.mH).numpy(), np.eye(5), atol=1e-13)


def test_the_thermal_state_of_spins_and_single_precision():
    rho = thermal_state(pauli("Z") * 400.0, 3.0)
    np.testing.assert_allclose(rho.tensor.numpy(), np.diag([0, 1]), atol=1e-15)
    rho = thermal_state(pauli("Z") / 2, 1.7)
    assert expectation(rho, pauli("Z")).item() == pytest.approx(-np.tanh(0.85), abs=1e-14)
    space = QuantumStateSpace((2, 2), torch.complex64)
    moved = space.evolve_state(space.prepare_state([1, 0, 0, 1], normalise=True), pauli("XY"), 0.3)
    assert moved.value.tensor.dtype == torch.complex64 and moved.verify() <= moved.tolerance
    moved = space.evolve_state(space.prepare_state([1, 0, 0, 0]), heisenberg_chain(2), 0.3)
    assert moved.value.tensor.dtype == torch.complex64 and moved.verify() <= moved.tolerance


@given(SEEDS, st.integers(2, 5), st.integers(1, 3))
def test_the_connection_laplacian_is_a_sum_of_squares(seed, n, k):
    rng = np.random.default_rng(seed)
    w = rng.random((n, n))
    w = w + w.T
    u = np.zeros((n, n, k, k), dtype=complex)
    for i in range(n):
        for j in range(i):
            u[i, j] = unitary(seed + 7 * i + j, k).numpy()
            u[j, i] = u[i, j].conj().T
    np.einsum("iikl->ikl", u)[:] = np.eye(k)
    found = connection_laplacian(w, u).numpy()
    f = rng.standard_normal((n, k)) + 1j * rng.standard_normal((n, k))
    energy = sum(w[i, j] * np.linalg.norm(f[i] - u[i, j] @ f[j]) ** 2 for i in range(n) for j in range(i))
    assert (f.ravel().conj() @ found @ f.ravel()).real == pytest.approx(energy, rel=1e-12)
    plain = connection_laplacian(w).numpy()
    np.testing.assert_allclose(plain.sum(1), 0, atol=1e-12)


# --- measurement -------------------------------------------------------------------------------------------
@given(SEEDS, st.integers(1, 5))
def test_expectation_and_variance_are_those_of_the_outcomes(seed, d):
    o = hermitian(seed, d)
    for state in (pure_state(vector(seed, 2, d)), mixed_state(density(seed, d, batch=(2,)))):
        found = measure_projective(state, o)
        mean = (found.probabilities * found.outcomes).sum(-1)
        np.testing.assert_allclose(expectation(state, o), mean, atol=1e-12)
        square = (found.probabilities * (found.outcomes - mean[:, None]).square()).sum(-1)
        np.testing.assert_allclose(variance(state, o), square, atol=1e-12)
        np.testing.assert_allclose(found.probabilities.sum(-1), 1, atol=1e-14)


def test_equal_outcomes_are_one_and_leave_superpositions_alone():
    psi = pure_state([0.6, 0.8j, 0.0, 0.0], (2, 2))
    found = measure_projective(psi, pauli("ZI"))
    np.testing.assert_allclose(found.outcomes, [-1, 1], atol=1e-15)
    np.testing.assert_allclose(found.probabilities, [0, 1], atol=1e-15)
    np.testing.assert_allclose(found.states[1].numpy(), psi.tensor.numpy(), atol=1e-15)
    assert not found.states[0].any()


def test_the_trine_measurement():
    angles = 2 * np.pi * np.arange(3) / 3
    vectors = np.stack([np.cos(angles / 2), np.sin(angles / 2)], axis=1)
    effects = np.stack([2 / 3 * np.outer(v, v) for v in vectors])
    found = measure_povm(pure_state([1.0, 0.0]), effects)
    np.testing.assert_allclose(found.probabilities, [2 / 3, 1 / 6, 1 / 6], atol=1e-15)
    np.testing.assert_allclose(abs(found.states[1].numpy() @ vectors[1]), 1, atol=1e-8)


def test_counts_lie_in_their_intervals_as_often_as_they_say():
    measured = measure_projective(pure_state(vector(8, 6)), torch.diag(torch.arange(6.0)))
    p, mean = measured.probabilities.numpy(), float((measured.probabilities * measured.outcomes).sum())
    hits = near = 0
    for seed in range(400):
        one = sample_measurement(measured, 60, confidence=0.8, seed=seed)
        hits += bool(((one.intervals[:, 0] <= p) & (p <= one.intervals[:, 1])).all())
        near += abs(one.mean - mean) <= one.mean_error
        assert one.counts.sum() == 60
    assert hits >= 320 and near >= 320
    np.testing.assert_allclose(count_intervals(np.array([0, 10]), 0.9)[0], [0, 1 - 0.025**0.1], atol=1e-12)


@given(SEEDS, st.integers(0, 2))
def test_channels_keep_states_states(seed, factor):
    dims = (2, 3, 2)
    state = mixed_state(density(seed, 12), dims)
    k = channel(seed, dims[factor])
    found = apply_channel(state, k, factor).tensor.numpy()
    whole = [local_operator(one, factor, dims).numpy() for one in k]
    np.testing.assert_allclose(found, sum(a @ state.tensor.numpy() @ a.conj().T for a in whole), atol=1e-13)
    assert abs(np.trace(found) - 1) < 1e-13 and np.linalg.eigvalsh(found)[0] > -1e-13


def test_w_states_have_one_excitation():
    psi = w_state(4).tensor.numpy()
    number = sum((np.eye(16) - local_operator(pauli("Z"), k, (2,) * 4).numpy()) / 2 for k in range(4))
    np.testing.assert_allclose(number @ psi, psi, atol=1e-15)
