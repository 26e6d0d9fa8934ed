"""Every result of the quantum family is checked by its witness, and no corrupted value, claim or data passes."""

import dataclasses

import numpy as np
import pytest
import torch

from aatc.passes.analysis.quantum.geometry import chern_number
from aatc.passes.analysis.quantum.lattice_fields import ZeroDimensionalField, free_propagator, ising_strip
from aatc.passes.analysis.quantum.operators import heisenberg_chain
from aatc.passes.analysis.quantum.path_integral import PathIntegralFramework
from aatc.passes.analysis.quantum.quantum import QuantumStateSpace
from aatc.passes.analysis.quantum.quantum_pass import _pattern
from aatc.passes.analysis.quantum.states import mixed_state, pure_state
from aatc.passes.analysis.quantum.token_paths import likeliest_token_path, sample_paths, sum_over_paths
from aatc.passes.analysis.quantum.verify_quantum import RECOMPUTE, QuantumWitness, deviation, witnessed
from aatc.passes.analysis.result import AnalysisError, Result, verify
from tests.analysis.claim_corruptions import accepted, remember
from tests.analysis.quantum_cases import channel, density, hermitian, law, vector

#: Corruptions of each result, and how many of them are of its data.
DRAWS, OF_DATA = 200, 30

PAIR, THREE = QuantumStateSpace((2, 2)), QuantumStateSpace((2, 2, 2))
WELL = PathIntegralFramework(lambda x: x**2 / 2 + x**4 / 5, extent=4.0, slices=4)
LAYERS = [law(k, 5, 5) for k in range(3)]


def effects():
    k = channel(4, 4)
    return k.mH @ k


def head(item):
    return _pattern(law(7, 6, 5), law(7, 6, 5), ())[item]


MAKERS = {
    "evolution of vectors": lambda: PAIR.evolve_state(vector(1, 2, 4), hermitian(1, 4), torch.tensor([0.3, 2.0])),
    "evolution of matrices": lambda: PAIR.evolve_state(mixed_state(density(1, 4)), hermitian(1, 4), -0.7),
    "evolution by Krylov steps": lambda: THREE.evolve_state(vector(1, 8), heisenberg_chain(3, field=0.2), 1.3),
    "expectation": lambda: PAIR.measure_observable(mixed_state(density(1, 4)), hermitian(2, 4)),
    "projective measurement": lambda: PAIR.measure(vector(1, 4), np.diag([1.0, 2.0, 2.0, 5.0])),
    "general measurement": lambda: PAIR.measure(mixed_state(density(1, 4)), effects=effects()),
    "counts": lambda: PAIR.sample(vector(1, 4), np.diag([1.0, 2.0, 2.0, 5.0]), shots=50, seed=0),
    "entropy": lambda: PAIR.compute_entropy(mixed_state(density(1, 4, batch=(2,)))),
    "Rényi entropy": lambda: PAIR.compute_entropy(mixed_state(density(1, 4)), 0.5),
    "entanglement of qubits": lambda: PAIR.entanglement_witness(mixed_state(density(1, 4, 2))),
    "entanglement of vectors": lambda: THREE.entanglement_witness(vector(3, 2, 8), (0, 2)),
    "entanglement of matrices": lambda: QuantumStateSpace((2, 3)).entanglement_witness(
        mixed_state(density(5, 6, 2)), 1
    ),
    "Chern number": lambda: chern_number(vector(2, 3, 4, 2)),
    "query-key entropy": lambda: head("query_key_entropy"),
    "query-key Rényi entropy": lambda: head("query_key_renyi_2"),
    "query-key negativity": lambda: head("query_key_negativity"),
    "Bloch vector": lambda: head("key_bloch_vector"),
    "Fubini–Study step": lambda: head("fubini_study_step"),
    "value entropy": lambda: witnessed(value_entropy(), "value_state", {"values": values(), "order": 1.0}, 1e-9),
    "propagator": lambda: WELL.propagator([0.2, -0.4], [0.1, 0.5, 1.0], 0.8),
    "partition function": lambda: WELL.partition_function(1.5),
    "correlation function": lambda: WELL.correlation_function([torch.sin, lambda x: x], [0.2, 0.9], 1.5),
    "correlation in the ground state": lambda: WELL.correlation_function([torch.sin, torch.sin], [0.2, 0.9]),
    "effective action": lambda: WELL.effective_action(np.array([0.3, -0.2, 0.4]), 1.5),
    "free propagator": lambda: free_propagator((3, 4), 0.8),
    "φ⁴ partition function": lambda: ZeroDimensionalField(-1.0, 2.0).partition_function(),
    "φ⁴ effective action": lambda: ZeroDimensionalField(-1.0, 2.0).effective_action(0.7),
    "Ising strip": lambda: ising_strip(0.4, 3, 4, 0.1),
    "token paths": lambda: sum_over_paths(LAYERS, 0.3),
    "likeliest token path": lambda: likeliest_token_path(LAYERS, 1, 3),
    "sampled paths": lambda: sample_paths(LAYERS, 1, 40, seed=0),
}


def values():
    return np.random.default_rng(0).standard_normal((7, 3))


def value_entropy():
    s = np.linalg.eigvalsh(values().T @ values())
    return float(-(s / s.sum() * np.log(s / s.sum())).sum())


def test_there_is_a_maker_for_every_kind():
    assert {make().witness.kind for make in MAKERS.values()} == set(RECOMPUTE)


@pytest.mark.parametrize("name", MAKERS)
def test_results_are_what_their_witnesses_say(name):
    found = MAKERS[name]()
    assert found.residual <= found.tolerance <= 1e-6
    assert found.verify() <= found.tolerance and verify(found.witness) <= found.tolerance


@pytest.fixture
def remembered(monkeypatch):
    remember(monkeypatch, RECOMPUTE)


@pytest.mark.parametrize("name", MAKERS)
def test_no_corrupted_result_is_accepted(name, remembered):
    assert accepted(MAKERS[name](), np.random.default_rng(len(name)), DRAWS, OF_DATA) == []


def test_values_of_another_kind_do_not_pass():
    good = MAKERS["expectation"]()
    for value in (None, 1.0, "mean", {"mean": good.value.mean}, MAKERS["entropy"]().value, ()):
        assert dataclasses.replace(good, value=value).verify() == np.inf
    witness = good.witness
    for kind in set(RECOMPUTE) - {witness.kind}:
        assert verify(QuantumWitness(kind, witness.data, witness.claim)) == np.inf
    assert verify(QuantumWitness(witness.kind, {}, witness.claim)) == np.inf
    with pytest.raises(AnalysisError, match="kind"):
        verify(QuantumWitness("oracle", witness.data, witness.claim))


def test_claims_that_follow_from_unsound_data_do_not_pass():
    """Data that is no state, no law, no measurement, with the very value that it gives."""
    mean = MAKERS["expectation"]().witness
    rho, o = mean.data["tensor"] * 1.1, mean.data["observable"]
    first, second = (np.trace(rho @ m).real for m in (o, o @ o))
    claim = {"mean": first, "variance": second - 2 * first * first + first * first * np.trace(rho).real}
    assert verify(QuantumWitness("expectation", {**mean.data, "tensor": rho}, claim)) == np.inf
    psi = vector(1, 4).numpy() * 1.1
    data = {"tensor": psi, "pure": True, "observable": o}
    first, second = (np.vdot(psi, m @ psi).real for m in (o, o @ o))
    claim = {"mean": first, "variance": second - 2 * first * first + first * first * np.vdot(psi, psi).real}
    assert verify(QuantumWitness("expectation", data, claim)) == np.inf
    for item in ("query_key_entropy", "query_key_renyi_2"):  # laws that are divided by their sums do not see a scale
        found = head(item).witness
        scaled = {**found.data, "pattern": np.asarray(found.data["pattern"]) * 1.1}
        assert verify(QuantumWitness("query_key", scaled, found.claim)) == np.inf
    layers = tuple(2 * p for p in LAYERS)
    entropy, weights = np.zeros(5), np.eye(5)
    for p in layers:
        entropy = -(p * np.log(p)).sum(1) + p @ entropy
    for p in reversed(layers):
        weights = weights @ p
    claim = {"weights": weights, "entropy": entropy}
    assert verify(QuantumWitness("token_paths", {"layers": layers}, claim)) == np.inf
    measured = MAKERS["general measurement"]().witness
    half = {**measured.data, "effects": measured.data["effects"] / 2}  # probabilities are divided by their sum
    assert verify(QuantumWitness("measurement", half, measured.claim)) == np.inf


def test_deviation_is_infinite_where_nothing_is_compared():
    pairs = [(1, 2), (True, 1), ("a", "b"), (np.nan, 1.0), (1.0, np.nan), (np.zeros(2), np.zeros(3)), ((), (1,))]
    for one, other in [*pairs, ({"a": 1}, {"b": 1}), (np.inf, 1.0), (None, 0.0)]:
        assert deviation(one, other) == np.inf
    assert deviation(np.array([np.inf, 1.0]), np.array([np.inf, 1.0])) == 0
    assert deviation(1e9, 1e9 + 1) == pytest.approx(1e-9)


def test_gradients_stay_with_the_value_and_witnesses_are_copies():
    psi = vector(1, 4).requires_grad_()
    found = PAIR.compute_entropy(mixed_state(pure_state(psi).density * 0.5 + torch.eye(4) / 8))
    found.value.backward()
    assert psi.grad is not None and isinstance(found.witness.data["tensor"], np.ndarray)
    assert isinstance(found, Result) and found.verify() <= found.tolerance
