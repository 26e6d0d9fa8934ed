"""Where weight goes, absorption, rollout and flow: against loops, simulation in closed form, linear programs."""

import numpy as np
import pytest
import scipy.optimize
import torch

import aatc
from aatc.analysis import heads
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost, Undecided, verify
from aatc.passes.analysis.stochastic import PatternError


def random_causal(n: int, seed: int = 0, sharp: float = 2.0) -> np.ndarray:
    scores = sharp * np.random.default_rng(seed).standard_normal((n, n))
    weights = np.exp(scores) * np.tri(n)
    return weights / weights.sum(1, keepdims=True)


def random_full(n: int, m: int, seed: int = 0) -> np.ndarray:
    weights = np.random.default_rng(seed).gamma(0.3, size=(n, m)) + 1e-9
    return weights / weights.sum(1, keepdims=True)


def by_loops(a: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    n, m = a.shape
    at = [i + m - n for i in range(n)]
    found = {
        "previous": np.mean([a[i, p - 1] for i, p in enumerate(at) if p >= 1]),
        "itself": np.mean([a[i, p] for i, p in enumerate(at)]),
        "sink": np.mean([a[i, 0] for i, p in enumerate(at) if p >= 1]),
        "distance": np.mean([sum(a[i, j] * abs(p - j) for j in range(m)) for i, p in enumerate(at)]),
        "context": np.mean([np.exp(-sum(x * np.log(x) for x in row if x > 0)) for row in a]),
        "busiest": max(a.mean(0)),
    }
    for name, shift in (("induction", 1), ("duplicate", 0)):
        masses = []
        for i, p in enumerate(at):
            keys = [j for j in range(shift, p + 1) if j - shift < p and tokens[j - shift] == tokens[p]]
            if keys:
                masses.append(sum(a[i, j] for j in keys))
        found[name] = np.mean(masses) if masses else np.nan
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_profile_is_what_loops_find(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 30))
    m = n + int(rng.integers(0, 5)) * (seed % 2)  # a decoder with a cache has fewer queries
    a = random_causal(m, seed)[m - n :] if seed < 3 else random_full(n, n, seed)
    tokens = rng.integers(0, 5, a.shape[1])
    found, want = heads.head_profile(a, tokens), by_loops(a, tokens)
    assert found.causal == (seed < 3)
    for name in ("previous", "itself", "sink", "distance", "context", "busiest"):
        assert getattr(found, name) == pytest.approx(want[name], abs=1e-12), name
    for name in ("induction", "duplicate"):
        mass = getattr(found, name)
        if np.isnan(want[name]):
            assert isinstance(mass, Undecided)
        else:
            assert mass.mass == pytest.approx(want[name], abs=1e-12)


def test_heads_of_one_kind_have_all_their_weight_there():
    n = 12
    tokens = np.tile(np.arange(4), 3)
    previous = np.eye(n, k=-1)
    previous[0, 0] = 1
    assert heads.head_profile(previous).previous == 1 and heads.head_profile(previous).distance == pytest.approx(
        11 / 12
    )
    sink = np.zeros((n, n))
    sink[:, 0] = 1
    assert (heads.head_profile(sink).sink, heads.head_profile(sink).context) == (1, 1)
    induction = np.zeros((n, n))
    for i in range(n):
        induction[i, i - 3 if i >= 4 else 0] = 1
    found = heads.head_profile(induction, tokens)
    assert found.induction.mass == 1 and found.induction.queries == 8 and found.duplicate.mass == 0
    even = np.tri(n) / np.arange(1, n + 1)[:, None]
    flat = heads.head_profile(even, tokens)
    assert flat.context_share == pytest.approx(1) and flat.induction.mass == pytest.approx(flat.induction.uniform)


def test_cross_attention_has_no_places():
    found = heads.head_profile(random_full(5, 9))
    assert found.distance is None and found.previous is None and 1 <= found.context <= 9
    assert heads.head_profile(random_full(9, 5)).busiest_key < 5
    with pytest.raises(PatternError, match="as many tokens"):
        heads.head_profile(random_causal(5), np.arange(4))


@pytest.mark.parametrize("seed", range(3))
def test_absorption_times_solve_the_linear_system(seed):
    a = random_causal(20, seed)
    found = heads.absorption_times(a)
    q = a[1:, 1:]
    want = np.linalg.solve(np.eye(19) - q, np.ones(19))
    np.testing.assert_allclose(found.value, np.r_[0, want], rtol=1e-10)
    assert found.verify() <= found.tolerance


def test_absorption_of_chains_that_are_not_causal_and_have_several_classes():
    a = np.zeros((6, 6))
    a[0, 1] = a[1, 0] = a[2, 2] = 1.0
    a[3:] = random_full(3, 6, 1)
    found = heads.absorption_times(a)
    want = np.linalg.solve(np.eye(3) - a[3:, 3:], np.ones(3))
    np.testing.assert_allclose(found.value, np.r_[0, 0, 0, want], rtol=1e-12)
    assert found.verify() <= found.tolerance
    assert not heads.absorption_times(random_full(7, 7)).value.any()


def test_a_chain_that_hardly_leaves_keeps_its_digits():
    a = np.array([[1.0, 0, 0], [1e-13, 1 - 1e-13, 0], [0.25, 0.25, 0.5]])
    want = 1e13  # 1/1e-13
    found = heads.absorption_times(a)
    assert found.value[1] == pytest.approx(want, rel=1e-9)
    assert found.value[2] == pytest.approx(2 * (1 + 0.25 * want), rel=1e-9)


def test_planted_errors_in_the_witness_of_absorption_are_found():
    a = random_causal(12, 3)
    witness = heads.absorption_times(a).witness
    kind = type(witness)
    rng = np.random.default_rng(0)
    refused = 0
    for n in range(60):
        times, closed, pattern = witness.times.copy(), witness.recurrent.copy(), a.copy()
        if n % 3 == 0:
            times[rng.integers(12)] += rng.choice([-1, 1]) * rng.uniform(1e-3, 2)
        elif n % 3 == 1:
            closed[rng.integers(12)] ^= True
        else:
            i = rng.integers(2, 12)
            pattern[i, : i + 1] = np.roll(pattern[i, : i + 1], 1)
        try:
            refused += verify(kind(pattern, closed, times)) > 1e-6
        except AnalysisError:
            refused += 1
    assert refused == 60


def layers(n: int, depth: int = 3) -> list[np.ndarray]:
    return [np.stack([random_causal(n, 10 * s + h) for h in range(2)]) for s in range(depth)]


def test_rollout_is_the_product_of_means_with_the_residual():
    given = layers(8)
    product = np.eye(8)
    for layer in given:
        product = (0.5 * layer.mean(0) + 0.5 * np.eye(8)) @ product
    np.testing.assert_allclose(heads.attention_rollout(given), product, atol=1e-14)
    np.testing.assert_allclose(heads.attention_rollout(given).sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(heads.attention_rollout([given[0]], residual=0.0), given[0].mean(0), atol=1e-14)


def flow_by_linear_program(steps: list[np.ndarray], query: int, target: int) -> float:
    n, depth = len(steps[0]), len(steps)
    edges = [
        (d * n + i, (d + 1) * n + j, steps[depth - 1 - d][i, j])
        for d in range(depth)
        for i in range(n)
        for j in range(n)
    ]
    balance = np.zeros(((depth + 1) * n, len(edges)))
    for e, (u, v, _) in enumerate(edges):
        balance[u, e] += 1
        balance[v, e] -= 1
    source, sink = query, depth * n + target
    inner = [x for x in range((depth + 1) * n) if x not in (source, sink)]
    done = scipy.optimize.linprog(
        -balance[source], A_eq=balance[inner], b_eq=np.zeros(len(inner)), bounds=[(0, c) for _, _, c in edges]
    )
    return -done.fun


def test_flow_is_that_of_a_linear_program():
    given = layers(5)
    steps = [0.5 * layer.mean(0) + 0.5 * np.eye(5) for layer in given]
    found = heads.attention_flow(given)
    want = [flow_by_linear_program(steps, 4, j) for j in range(5)]
    np.testing.assert_allclose(found.value, want, atol=1e-6)
    assert found.tolerance < 1e-6
    rollout = heads.attention_rollout(given)[-1]
    assert (found.value >= rollout - 1e-6).all()  # what flows at once fits the capacities


def test_wrong_layers_are_refused():
    for bad in ([], [np.eye(3), np.eye(4)], [np.ones((3, 4)) / 4]):
        with pytest.raises(PatternError):
            heads.attention_rollout(bad)
    with pytest.raises(PatternError, match="residual"):
        heads.attention_rollout([np.eye(3)], residual=1.0)
    with pytest.raises(PatternError, match="no query 3"):
        heads.attention_flow([np.eye(3)], 3)
    with pytest.raises(BudgetError):
        heads.attention_flow(layers(5), budget=Cost(1e-9))


def test_the_pass_says_of_captured_heads_what_the_functions_say():
    given = layers(10)
    tokens = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
    found = aatc.analyze_weights([torch.from_numpy(x) for x in given], "heads", tokens=tokens)
    profile = heads.head_profile(given[1][1], tokens)
    for item, value in (
        ("previous_token_mass", profile.previous),
        ("sink_mass", profile.sink),
        ("induction_mass", profile.induction.mass),
        ("induction_excess", profile.induction.mass - profile.induction.uniform),
        ("mean_distance", profile.distance),
        ("mean_absorption_time", heads.absorption_times(given[1][1]).value[1:].mean()),
    ):
        assert found["attend1", item, 1].value == pytest.approx(value, abs=1e-12), item
    assert found["attend1", "absorption_times", 1].verify() <= 1e-12
    np.testing.assert_allclose(found["layers", "rollout"].value, heads.attention_rollout(given), atol=1e-12)
    np.testing.assert_allclose(found["layers", "flow_to_last"].value, heads.attention_flow(given).value, atol=1e-6)
    assert "rollout context" in str(found)
