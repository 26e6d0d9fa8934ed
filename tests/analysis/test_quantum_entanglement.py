"""Entropy, entanglement and geometry of states: closed forms, and what always holds."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aatc.passes.analysis.quantum.entanglement import (
    concurrence,
    entanglement_entropy,
    entanglement_metrics,
    log_negativity,
    negativity,
    partial_transpose,
    pure_concurrence,
    schmidt_coefficients,
    squashed_bound,
    three_tangle,
    witness_operator,
)
from aatc.passes.analysis.quantum.entropy import (
    bloch_vector,
    fidelity,
    mutual_information,
    partial_trace,
    purity,
    relative_entropy,
    renyi_entropy,
    trace_distance,
    von_neumann_entropy,
)
from aatc.passes.analysis.quantum.evolution import thermal_state
from aatc.passes.analysis.quantum.geometry import (
    band_states,
    berry_curvature,
    berry_phase,
    chern_number,
    fubini_study_distance,
    geometric_tensor,
    wilson_loop,
)
from aatc.passes.analysis.quantum.measurement import apply_channel, expectation
from aatc.passes.analysis.quantum.operators import pauli
from aatc.passes.analysis.quantum.states import (
    QuantumError,
    QuantumState,
    basis_state,
    bell_state,
    ghz_state,
    mixed_state,
    pure_state,
    query_key_state,
    w_state,
    werner_state,
)
from aatc.passes.analysis.result import Undecided
from tests.analysis.quantum_cases import SEEDS, channel, density, hermitian, law, unitary, vector

#: Angles of real states of which one plaquette goes around once by a half turn.
TURNED = np.deg2rad([[0, 50, 20], [150, 100, 30], [10, 40, 60]])
ORDERS = st.sampled_from([0.0, 0.3, 0.5, 1 - 1e-9, 1.0, 1 + 1e-9, 1.5, 2.0, 7.0, 300.0, np.inf])


# --- entropy -----------------------------------------------------------------------------------------------
def test_entropies_of_a_bell_state():
    half = partial_trace(bell_state(), 0)
    for order in (0.0, 0.5, 1.0, 2.0, np.inf):
        assert renyi_entropy(half, order).item() == pytest.approx(np.log(2), abs=1e-14)
        assert renyi_entropy(bell_state(), order).item() == pytest.approx(0, abs=1e-14)
    assert entanglement_entropy(bell_state()).item() == pytest.approx(np.log(2), abs=1e-14)
    assert mutual_information(bell_state(), 0).item() == pytest.approx(2 * np.log(2), abs=1e-13)
    assert squashed_bound(bell_state()).item() == pytest.approx(np.log(2), abs=1e-13)


@given(SEEDS, ORDERS, st.integers(1, 6))
def test_entropies_are_those_of_a_spectrum_that_was_chosen(seed, order, d):
    p = np.random.default_rng(seed).dirichlet(np.ones(d))
    u = unitary(seed, d).numpy()
    state = mixed_state(u * p @ u.conj().T)
    if order == 0:
        expected = np.log(d)
    elif order == np.inf:
        expected = -np.log(p.max())
    elif abs(order - 1) < 1e-6:
        expected = -(p * np.log(p)).sum()
    else:
        expected = np.log((p**order).sum()) / (1 - order) if order < 50 else -np.log(p.max()) * order / (order - 1)
    assert renyi_entropy(state, order).item() == pytest.approx(expected, abs=1e-7 if order != 1 else 1e-12)


def test_entropies_fall_with_their_order_and_have_gradients():
    rho = density(3, 4)

    def entropy(x, order):
        half = torch.eye(4) * 0.0 + x
        return renyi_entropy(QuantumState(half @ half.mH / (half @ half.mH).diagonal().sum().real, (4,), False), order)

    values = [entropy(rho, a).item() for a in (0.0, 0.5, 1.0, 1.5, 2.0, 4.0, np.inf)]
    assert values == sorted(values, reverse=True)
    for order in (0.5, 1.0, 2.0):
        assert torch.autograd.gradcheck(lambda x, a=order: entropy(torch.complex(x[0], x[1]), a), (
            torch.stack((rho.real, rho.imag)).requires_grad_(),
        ))  # fmt: skip


@settings(max_examples=8)
@given(SEEDS, st.integers(2, 4))
def test_relative_entropy_fidelity_and_distance(seed, d):
    a, b = (mixed_state(density(seed + k, d)) for k in (0, 1))
    first, second = (x.tensor.numpy() for x in (a, b))
    relative = np.trace(first @ (scipy.linalg.logm(first) - scipy.linalg.logm(second))).real
    assert relative_entropy(a, b).item() == pytest.approx(relative, abs=1e-9)
    root = scipy.linalg.sqrtm(first)
    overlap = np.trace(scipy.linalg.sqrtm(root @ second @ root)).real ** 2
    assert fidelity(a, b).item() == pytest.approx(overlap, abs=1e-8)
    distance = trace_distance(a, b).item()
    assert distance == pytest.approx(np.abs(np.linalg.eigvalsh(first - second)).sum() / 2, abs=1e-13)
    # Fuchs, van de Graaf; Pinsker; and none of them grows under a channel
    assert 1 - overlap**0.5 <= distance + 1e-9 and distance <= (1 - overlap) ** 0.5 + 1e-7
    assert relative >= 2 * distance**2 - 1e-9
    k = channel(seed, d)
    c, e = apply_channel(a, k), apply_channel(b, k)
    assert trace_distance(c, e).item() <= distance + 1e-12
    assert relative_entropy(c, e).item() <= relative + 1e-9
    assert relative_entropy(a, basis_as_mixed(d)).item() == np.inf


def basis_as_mixed(d):
    return mixed_state(np.diag(np.eye(d)[0]))


@given(SEEDS)
def test_reduced_states_are_sums_over_the_rest(seed):
    dims = (2, 3, 2)
    rho = density(seed, 12, batch=(2,)).numpy()
    table = rho.reshape(2, *dims, *dims)
    state = mixed_state(rho, dims)
    np.testing.assert_allclose(partial_trace(state, (0, 2)).tensor.numpy().reshape(2, 2, 2, 2, 2),
                               np.einsum("zabcdbe->zacde", table), atol=1e-14)  # fmt: skip
    psi = pure_state(vector(seed, 2, 12), dims)
    for keep in (0, 1, (1, 2)):
        found, expected = (partial_trace(s, keep).tensor.numpy() for s in (psi, mixed_state(psi.density, dims)))
        np.testing.assert_allclose(found, expected, atol=1e-14)
        # both parts of a pure state have the same entropy
        rest = [k for k in range(3) if k not in np.atleast_1d(keep)]
        parts = [von_neumann_entropy(partial_trace(psi, k)).numpy() for k in (keep, rest)]
        np.testing.assert_allclose(parts[0], parts[1], atol=1e-12)


def test_bloch_vectors():
    for axis, name in enumerate("XYZ"):
        values, frames = np.linalg.eigh(pauli(name).numpy())
        expected = np.zeros(3)
        expected[axis] = 1
        np.testing.assert_allclose(bloch_vector(pure_state(frames[:, values.argmax()])).numpy(), expected, atol=1e-15)
    assert not bloch_vector(bell_state(), 1).numpy().any()
    three = mixed_state(np.kron(np.eye(3) / 3, [[0.8, 0.1j], [-0.1j, 0.2]]), (3, 2))
    np.testing.assert_allclose(bloch_vector(three, 1).numpy(), [0, -0.2, 0.6], atol=1e-15)
    with pytest.raises(QuantumError, match="qubit"):
        bloch_vector(three, 0)


# --- entanglement ------------------------------------------------------------------------------------------
def test_a_bell_state_has_half_a_negativity_and_one_ebit():
    found = entanglement_metrics(bell_state())
    np.testing.assert_allclose(found.schmidt, [0.5**0.5] * 2, atol=1e-15)
    assert found.negativity.item() == pytest.approx(0.5, abs=1e-15)
    assert found.log_negativity.item() == pytest.approx(1, abs=1e-15)
    assert found.concurrence.item() == pytest.approx(1, abs=1e-15)
    assert found.witness.item() == pytest.approx(-0.5, abs=1e-15)
    assert isinstance(found.three_tangle, Undecided)


@pytest.mark.parametrize("p", [-1 / 3, 0.0, 0.2, 1 / 3, 0.34, 0.6, 1.0])
def test_werner_states_are_entangled_above_a_third(p):
    state = werner_state(p)
    expected = max(0.0, (3 * p - 1) / 4)
    assert negativity(state.tensor, (2, 2)).item() == pytest.approx(expected, abs=1e-14)
    assert concurrence(state.tensor).item() == pytest.approx(2 * expected, abs=1e-14)
    if p > 1 / 3:
        w = witness_operator(state)
        assert expectation(state, w).item() == pytest.approx(-expected, abs=1e-14)
        for seed in range(50):
            a, b = vector(seed, 2), vector(seed + 1000, 2)
            assert expectation(pure_state(torch.kron(a, b)), w).item() >= -1e-14
    else:
        with pytest.raises(QuantumError, match="positive"):
            witness_operator(state)


def test_ghz_and_w_states():
    ghz, w = entanglement_metrics(ghz_state(3)), entanglement_metrics(w_state(3))
    assert ghz.three_tangle.item() == pytest.approx(1, abs=1e-14) and w.three_tangle.item() < 1e-15
    assert w.concurrence.item() == pytest.approx(np.sqrt(8) / 3, abs=1e-14)
    pair_of_ghz, pair_of_w = (partial_trace(s, (0, 1)).tensor for s in (ghz_state(3), w_state(3)))
    assert concurrence(pair_of_ghz).item() < 1e-7
    assert concurrence(pair_of_w).item() == pytest.approx(2 / 3, abs=1e-14)
    assert negativity(pair_of_w, (2, 2)).item() == pytest.approx((5**0.5 - 1) / 6, abs=1e-14)


@given(SEEDS)
def test_entanglement_of_three_qubits_is_shared(seed):
    """Coffman, Kundu, Wootters: C²(A|BC) = C²(AB) + C²(AC) + τ, which local unitaries do not change."""
    psi = pure_state(vector(seed, 8), (2, 2, 2))
    whole = pure_concurrence(psi, 0).item() ** 2
    pairs = [concurrence(partial_trace(psi, (0, k)).tensor).item() ** 2 for k in (1, 2)]
    tangle = three_tangle(psi).item()
    assert whole == pytest.approx(sum(pairs) + tangle, abs=1e-7)
    u = torch.kron(torch.kron(unitary(seed, 2), unitary(seed + 1, 2)), unitary(seed + 2, 2))
    assert three_tangle(pure_state(u @ psi.tensor, (2, 2, 2))).item() == pytest.approx(tangle, abs=1e-12)


@given(SEEDS, st.sampled_from([(2, 2), (3, 2), (2, 3, 2), (4, 1, 3)]))
def test_metrics_of_pure_states_are_those_of_their_densities(seed, dims):
    psi = pure_state(vector(seed, 2, int(np.prod(dims))), dims)
    part = [0, len(dims) - 1] if len(dims) == 3 and seed % 2 else [0]
    pure, mixed = entanglement_metrics(psi, part), entanglement_metrics(mixed_state(psi.density, dims), part)
    for name in ("negativity", "log_negativity", "witness"):
        np.testing.assert_allclose(getattr(pure, name), getattr(mixed, name), atol=1e-12)
    if dims == (2, 2):
        np.testing.assert_allclose(pure.concurrence, mixed.concurrence, atol=1e-7)
    np.testing.assert_allclose(pure.entropy, von_neumann_entropy(partial_trace(psi, part)), atol=1e-12)
    np.testing.assert_allclose(pure.schmidt.square().sum(-1), 1, atol=1e-14)
    purities = purity(partial_trace(psi, part)).clamp(max=1)
    np.testing.assert_allclose(pure.concurrence.square(), 2 * (1 - purities), atol=1e-13)
    rest = [k for k in range(len(dims)) if k not in part]
    swapped = partial_transpose(psi.density, dims, part)
    np.testing.assert_allclose(swapped, partial_transpose(psi.density, dims, rest).mT, atol=0)


def test_partial_transposes_turn_the_factors_that_are_named():
    dims = (2, 3, 2)
    rho = density(9, 12, batch=(2,))
    table = rho.numpy().reshape(2, *dims, *dims)
    turned = table.transpose(0, 4, 2, 6, 1, 5, 3).reshape(2, 12, 12)  # the first and the last
    np.testing.assert_array_equal(partial_transpose(rho, dims, (0, 2)).numpy(), turned)
    np.testing.assert_array_equal(partial_transpose(rho, dims, 1).numpy(), turned.swapaxes(-1, -2))


@given(SEEDS, st.integers(0, 1))
def test_local_channels_do_not_raise_entanglement(seed, factor):
    dims = (2, 3)
    state = mixed_state(density(seed, 6, 2), dims)
    after = apply_channel(state, channel(seed, dims[factor]), factor)
    assert negativity(after.tensor, dims).item() <= negativity(state.tensor, dims).item() + 1e-13
    assert log_negativity(after.tensor, dims).item() <= log_negativity(state.tensor, dims).item() + 1e-12
    products = mixed_state(torch.kron(density(seed, 2), density(seed + 1, 3)), dims)
    assert negativity(products.tensor, dims).item() == pytest.approx(0, abs=1e-14)


def test_queries_that_attend_alike_are_not_entangled_with_keys():
    alike = query_key_state(np.repeat(law(0, 1, 6), 4, axis=0))
    assert entanglement_entropy(alike).item() == pytest.approx(0, abs=1e-12)
    apart = query_key_state(np.eye(5))
    assert entanglement_entropy(apart).item() == pytest.approx(np.log(5), abs=1e-14)
    assert negativity_of(apart) == pytest.approx(2, abs=1e-14)


def negativity_of(state):
    s = schmidt_coefficients(state).numpy()
    return (s.sum() ** 2 - 1) / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: entanglement_metrics(basis_state(0, 4)), "declare"),
        (lambda: entanglement_metrics(bell_state(), (0, 1)), "part"),
        (lambda: entanglement_metrics(bell_state(), 2), "part"),
        (lambda: three_tangle(ghz_state(4)), "three qubits"),
        (lambda: concurrence(torch.eye(3) / 3), "two qubits"),
        (lambda: schmidt_coefficients(werner_state(0.5)), "state vector"),
        (lambda: renyi_entropy(bell_state(), -1.0), "order"),
        (lambda: partial_trace(bell_state(), 2), "factors"),
        (lambda: berry_phase(torch.eye(2)), "3 or more"),
        (lambda: berry_phase(torch.eye(3)), "overlap"),
        (lambda: chern_number(torch.ones(2, 3, 2)), "plaquettes"),
        (lambda: chern_number(np.stack([np.cos(TURNED), np.sin(TURNED)], axis=-1)), "flux π"),
        (lambda: geometric_tensor(lambda x: x * 0, torch.ones(2, dtype=torch.float64)), "no ray"),
        (lambda: thermal_state(pauli("X"), np.inf), "finite"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(QuantumError, match=message):
        call()


# --- geometry ----------------------------------------------------------------------------------------------
def qubit(angles: torch.Tensor) -> torch.Tensor:
    """cos(θ/2)|0⟩ + e^{iφ} sin(θ/2)|1⟩, with a norm and a phase that depend on the place."""
    theta, phi = angles
    psi = torch.stack((torch.cos(theta / 2) + 0j, torch.exp(1j * phi) * torch.sin(theta / 2)))
    return psi * torch.exp(0.3 * theta + 1j * (theta * phi + phi**2))


def test_the_geometric_tensor_of_a_qubit():
    points = torch.tensor([[0.3, 0.1], [1.1, 2.0], [2.9, 5.0]], dtype=torch.float64)
    found = geometric_tensor(qubit, points).numpy()
    for q, theta in zip(found, points[:, 0].tolist()):
        np.testing.assert_allclose(q.real, np.diag([1, np.sin(theta) ** 2]) / 4, atol=1e-14)
        # F_θφ = −2 Im Q = −½ sin θ for this sign of the phase
        np.testing.assert_allclose(-2 * q.imag, -np.sin(theta) / 2 * np.array([[0, 1], [-1, 0]]), atol=1e-14)
    at = points[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: geometric_tensor(qubit, x).real, (at,))


@given(SEEDS)
def test_distances_are_to_second_order_the_metric(seed):
    a, b = vector(seed, 5).numpy(), vector(seed + 1, 5).numpy()
    distance = fubini_study_distance(a, b * np.exp(0.7j) * 3).item()
    assert distance == pytest.approx(np.arccos(abs(np.vdot(a, b))), abs=1e-7)
    near = fubini_study_distance(a, a + 1e-9 * (b - np.vdot(a, b) * a)).item()
    assert near == pytest.approx(1e-9 * np.linalg.norm(b - np.vdot(a, b) * a), rel=1e-6)


def test_berry_phase_of_a_circle_of_latitude_is_half_the_solid_angle():
    theta, n = 1.0, 2000
    angles = np.linspace(0, 2 * np.pi, n + 1)[:-1]
    loop = torch.stack([qubit(torch.tensor([theta, p], dtype=torch.float64)) for p in angles])
    expected = -np.pi * (1 - np.cos(theta))
    assert berry_phase(loop).item() == pytest.approx(expected, abs=1e-5)
    phases = torch.exp(1j * torch.rand(n, 1, dtype=torch.float64) * 9)
    assert berry_phase(loop * phases).item() == pytest.approx(berry_phase(loop).item(), abs=1e-9)
    loops = wilson_loop((loop * phases)[..., None])
    assert -np.angle(loops[0, 0].item()) == pytest.approx(berry_phase(loop).item(), abs=1e-9)


def test_the_flux_through_the_sphere_is_one():
    n = 24
    theta, phi = np.linspace(1e-3, np.pi - 1e-3, n), 2 * np.pi * np.arange(2 * n + 1) / (2 * n)
    grid = torch.stack([torch.stack([qubit(torch.tensor([t, p], dtype=torch.float64)) for p in phi]) for t in theta])
    flux = berry_curvature(grid, periodic=False)
    assert abs(flux.sum().item()) / (2 * np.pi) == pytest.approx(np.cos(1e-3), abs=1e-6)
    # F dθdφ = −½ sin θ, cell by cell
    cells = -(np.cos(theta[:-1]) - np.cos(theta[1:]))[:, None] / 2 * np.diff(phi)
    np.testing.assert_allclose(flux.numpy(), np.broadcast_to(cells, flux.shape), rtol=2e-2)


def qwz(m):
    """Qi, Wu, Zhang: sin k_x X + sin k_y Y + (m + cos k_x + cos k_y) Z."""
    return lambda a, b: np.sin(a) * pauli("X") + np.sin(b) * pauli("Y") + (m + np.cos(a) + np.cos(b)) * pauli("Z")


@pytest.mark.parametrize(("m", "expected"), [(-1.0, 1), (1.0, -1), (3.0, 0), (-3.0, 0)])
def test_chern_numbers_of_a_two_band_model(m, expected):
    lower = band_states(qwz(m), 9)
    phases = torch.exp(2j * np.pi * torch.rand(9, 9, 1, 1, dtype=torch.float64))
    found = chern_number(lower * phases)
    assert abs(found.value.value) == abs(expected) and found.value.value == chern_number(lower[..., 0]).value.value
    assert chern_number(band_states(lambda a, b: -qwz(m)(a, b), 9)).value.value == -found.value.value
    assert found.verify() <= found.tolerance and found.residual <= 1e-12


def test_the_sign_of_a_chern_number_is_that_of_the_continuum():
    """(1/2π)∫ −2 Im⟨∂_aψ|∂_bψ⟩ by its formula for two bands, against the lattice."""
    for m in (-1.0, 1.0):
        n = 60
        k = 2 * np.pi * (np.arange(n) + 0.5) / n
        a, b = np.meshgrid(k, k, indexing="ij")
        d = np.stack([np.sin(a), np.sin(b), m + np.cos(a) + np.cos(b)])
        da, db = np.stack([np.cos(a), 0 * a, -np.sin(a)]), np.stack([0 * a, np.cos(b), -np.sin(b)])
        density_of_flux = np.einsum("iab,iab->ab", d, np.cross(da, db, axis=0)) / np.linalg.norm(d, axis=0) ** 3 / 2
        total = density_of_flux.sum() * (2 * np.pi / n) ** 2 / (2 * np.pi)
        assert chern_number(band_states(qwz(m), 12)).value.value == round(total)


def test_bands_taken_together_have_the_sum_of_their_numbers():
    def four(a, b):
        return torch.block_diag(qwz(-1.0)(a, b), 3 * torch.eye(2) + qwz(-1.5)(a, b) * 0.2) + 0.1 * hermitian(1, 4)

    numbers = [chern_number(band_states(four, 14, bands)).value.value for bands in (1, 2, 3)]
    assert abs(numbers[0]) == 1 and numbers[1] == 0 and abs(numbers[2]) == 1
    with pytest.raises(QuantumError, match="touch"):
        band_states(lambda a, b: torch.eye(2), 4)


def test_berry_curvature_has_gradients():
    states = vector(2, 2, 2, 2)

    def flux(x):
        return berry_curvature(torch.complex(x[0], x[1]), periodic=False).sin()

    assert torch.autograd.gradcheck(flux, (torch.stack((states.real, states.imag)).requires_grad_(),))
