"""Every result of the quantum family is checked by its witness, and no corrupted value, claim or data passes."""

import dataclasses

import numpy as np
import pytest
import torch

from aatc.passes.analysis.quantum import verify_quantum
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


def leaves(value, path=()):
    """Paths to the numbers and texts of a plain value, or of a value with dataclasses."""
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in leaves(v, (*path, k))]
    if isinstance(value, tuple):
        return [p for k, v in enumerate(value) for p in leaves(v, (*path, k))]
    return [path]


def replaced(value, path, change):
    if not path:
        return change(value)
    if isinstance(value, dict):
        return {**value, path[0]: replaced(value[path[0]], path[1:], change)}
    return tuple(replaced(v, path[1:], change) if k == path[0] else v for k, v in enumerate(value))


def corrupt_entry(rng):
    """One number off by 1e-4 to 1 of its size, or replaced by NaN, an infinity or another shape."""

    def change(x):
        if isinstance(x, bool):
            return not x
        if isinstance(x, str):
            return x + "!"
        if isinstance(x, (int, np.integer)) and not isinstance(x, np.ndarray):
            return int(x) + int(rng.integers(1, 4))
        array = np.array(x)
        if array.dtype.kind in "iu":
            array = array.copy()
            array.reshape(-1)[rng.integers(array.size)] += 1
            return array
        array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
        drawn = rng.random()
        if drawn < 0.05:
            return np.concatenate([array.reshape(-1), [0.0]])
        off = (
            np.nan if drawn < 0.1 else np.inf if drawn < 0.15 else 10 ** rng.uniform(-4, 0) * max(1.0, abs(array).max())
        )
        array.reshape(-1)[rng.integers(array.size)] += off * rng.choice([-1, 1])
        return array

    return change


def corrupt_leaf(rng):
    """All of a leaf moved by a per cent or more of its size: single entries of a table may weigh nothing."""

    def change(x):
        if isinstance(x, (bool, str, int, np.integer)):
            return corrupt_entry(rng)(x)
        if hasattr(x, "toarray"):
            return x * (1.02 + rng.random())
        array = np.asarray(x)
        if array.dtype.kind in "iu":
            return array + rng.integers(1, 3, array.shape)
        return array * (1 + rng.uniform(0.01, 1)) + 10 ** rng.uniform(-2, 0) * rng.standard_normal(array.shape)

    return change


@pytest.fixture
def remembered(monkeypatch):
    """What a check finds of the same data is not computed again."""
    for kind, function in list(RECOMPUTE.items()):
        found = {}

        def once(data, function=function, found=found):
            if id(data) not in found:
                found[id(data)] = (data, function(data))
            return found[id(data)][1]

        monkeypatch.setitem(verify_quantum.RECOMPUTE, kind, once)


@pytest.mark.parametrize("name", MAKERS)
def test_no_corrupted_result_is_accepted(name, remembered):
    rng = np.random.default_rng(len(name))
    good = MAKERS[name]()
    data, claim = good.witness.data, good.witness.claim
    places, sources = leaves(claim), leaves(data)
    accepted = []
    for n in range(DRAWS):
        if n < OF_DATA:
            at = sources[rng.integers(len(sources))]
            bad = dataclasses.replace(
                good, witness=QuantumWitness(good.witness.kind, replaced(data, at, corrupt_leaf(rng)), claim)
            )
        else:
            at = places[rng.integers(len(places))]
            wrong = replaced(claim, at, corrupt_entry(rng))
            lies = QuantumWitness(good.witness.kind, data, wrong)
            kinds = (
                dataclasses.replace(good, value=wrong),  # a value that is not the witness's
                dataclasses.replace(good, witness=lies),  # a claim that the data does not give
                dataclasses.replace(good, value=wrong, witness=lies),  # both in accord
            )
            bad = kinds[n % 3]
        with np.errstate(all="ignore"):
            if bad.verify() <= bad.tolerance:
                accepted.append((n, at))
    assert accepted == []


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
