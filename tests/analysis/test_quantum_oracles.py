"""The quantum family against QuTiP and quimb, on states and Hamiltonians that are drawn."""

import numpy as np
import pytest
import torch

from aatc.passes.analysis.quantum.entanglement import concurrence, log_negativity, negativity
from aatc.passes.analysis.quantum.entropy import (
    fidelity,
    mutual_information,
    partial_trace,
    relative_entropy,
    trace_distance,
    von_neumann_entropy,
)
from aatc.passes.analysis.quantum.evolution import evolve, krylov_evolve, thermal_state
from aatc.passes.analysis.quantum.measurement import apply_channel, expectation, measure_povm, variance
from aatc.passes.analysis.quantum.operators import heisenberg_chain
from aatc.passes.analysis.quantum.states import ghz_state, mixed_state, pure_state, w_state, werner_state
from tests.analysis.quantum_cases import channel, density, hermitian, vector

DRAWS = range(6)


@pytest.fixture(scope="module")
def qutip():
    return pytest.importorskip("qutip", reason="QuTiP is an oracle of the extra [oracles], and is not installed")


@pytest.fixture(scope="module")
def quimb():
    return pytest.importorskip("quimb", reason="quimb is an oracle of the extra [oracles], and is not installed")


@pytest.mark.parametrize("seed", DRAWS)
def test_entropies_and_entanglement_are_those_of_qutip(qutip, seed):
    rho, sigma = mixed_state(density(seed, 4), (2, 2)), mixed_state(density(seed + 50, 4), (2, 2))
    theirs, other = (qutip.Qobj(s.tensor.numpy(), dims=[[2, 2], [2, 2]]) for s in (rho, sigma))
    assert von_neumann_entropy(rho).item() == pytest.approx(qutip.entropy_vn(theirs), abs=1e-11)
    assert von_neumann_entropy(partial_trace(rho, 1)).item() == pytest.approx(
        qutip.entropy_vn(theirs.ptrace(1)), abs=1e-11
    )
    assert mutual_information(rho, 0).item() == pytest.approx(qutip.entropy_mutual(theirs, [0], [1]), abs=1e-10)
    assert relative_entropy(rho, sigma).item() == pytest.approx(qutip.entropy_relative(theirs, other), abs=1e-9)
    assert concurrence(rho.tensor).item() == pytest.approx(qutip.concurrence(theirs), abs=1e-7)
    assert negativity(rho.tensor, (2, 2)).item() == pytest.approx(qutip.negativity(theirs, 0), abs=1e-11)
    assert trace_distance(rho, sigma).item() == pytest.approx(qutip.tracedist(theirs, other), abs=1e-9)
    assert fidelity(rho, sigma).item() == pytest.approx(qutip.fidelity(theirs, other) ** 2, abs=1e-8)


@pytest.mark.parametrize("seed", DRAWS)
def test_evolution_and_measurement_are_those_of_qutip(qutip, seed):
    h, o, k = hermitian(seed, 6), hermitian(seed + 9, 6), channel(seed, 6)
    psi, rho = pure_state(vector(seed, 6)), mixed_state(density(seed, 6))
    theirs = qutip.Qobj(psi.tensor.numpy())
    u = (-1j * qutip.Qobj(h.numpy()) * 0.8).expm()
    np.testing.assert_allclose(evolve(psi, h, 0.8).tensor.numpy(), (u * theirs).full()[:, 0], atol=1e-11)
    assert expectation(psi, o).item() == pytest.approx(qutip.expect(qutip.Qobj(o.numpy()), theirs), abs=1e-12)
    assert variance(psi, o).item() == pytest.approx(qutip.variance(qutip.Qobj(o.numpy()), theirs), abs=1e-11)
    kraus = [qutip.Qobj(one.numpy()) for one in k]
    matrix = qutip.Qobj(rho.tensor.numpy())
    moved = sum(one * matrix * one.dag() for one in kraus)
    np.testing.assert_allclose(apply_channel(rho, k).tensor.numpy(), moved.full(), atol=1e-12)
    found = measure_povm(rho, k.mH @ k).probabilities.numpy()
    np.testing.assert_allclose(found, qutip.measurement.measurement_statistics_povm(matrix, kraus)[1], atol=1e-12)
    cold = thermal_state(h, 1.3).tensor.numpy()
    weights = (-1.3 * qutip.Qobj(h.numpy())).expm()
    np.testing.assert_allclose(cold, (weights / weights.tr()).full(), atol=1e-12)


def test_named_states_are_those_of_qutip(qutip):
    for n in (3, 4):
        np.testing.assert_allclose(ghz_state(n).tensor.numpy(), qutip.ghz_state(n).full()[:, 0], atol=1e-15)
        np.testing.assert_allclose(w_state(n).tensor.numpy(), qutip.w_state(n).full()[:, 0], atol=1e-15)


@pytest.mark.parametrize("seed", DRAWS)
def test_states_and_their_entanglement_are_those_of_quimb(quimb, seed):
    rho = density(seed, 6, 3)
    assert negativity(rho, (2, 3)).item() == pytest.approx(
        quimb.negativity(rho.numpy(), dims=[2, 3], sysa=0), abs=1e-11
    )
    assert log_negativity(rho, (2, 3)).item() == pytest.approx(
        quimb.logneg(rho.numpy(), dims=[2, 3], sysa=0), abs=1e-10
    )
    bits = von_neumann_entropy(mixed_state(rho, (2, 3))).item() / np.log(2)
    assert bits == pytest.approx(quimb.entropy(rho.numpy()), abs=1e-10)
    pair = density(seed, 4, 2)
    assert concurrence(pair).item() == pytest.approx(quimb.concurrence(pair.numpy()), abs=1e-6)
    p = seed / 5
    np.testing.assert_allclose(werner_state(p).tensor.numpy(), quimb.werner_state(p), atol=1e-15)


def test_spin_chains_are_those_of_quimb(quimb):
    for n, field in ((2, 0.0), (5, 0.3)):
        ours = heisenberg_chain(n, field=field, periodic=False).toarray()
        theirs = quimb.ham_heis(n, b=-field, cyclic=False, sparse=False)
        np.testing.assert_allclose(np.linalg.eigvalsh(ours), np.linalg.eigvalsh(theirs), atol=1e-12)
    n = 10
    psi = vector(0, 1 << n)
    h = quimb.ham_heis(n, cyclic=True, sparse=True)
    np.testing.assert_allclose(heisenberg_chain(n).toarray(), h.toarray(), atol=1e-14)
    evolved = quimb.Evolution(psi.numpy(), h, method="expm")
    evolved.update_to(1.0)
    ours = krylov_evolve(pure_state(psi), heisenberg_chain(n), torch.tensor(1.0)).state.tensor.numpy()
    np.testing.assert_allclose(ours, np.asarray(evolved.pt)[:, 0], atol=1e-11)
