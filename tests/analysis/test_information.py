import dit
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.information.attention_gradients import (
    attention_gradients,
    score_gradient,
    score_moments,
    weight_gradient,
)
from aatc.passes.analysis.information.information import (
    conditional_mutual_information,
    edge_utilisation,
    index_information,
    information_density,
    information_flow_metrics,
    mutual_information,
    row_entropies,
)
from aatc.passes.analysis.information.markov import NotErgodicError
from aatc.passes.analysis.information.verify_information import FlowWitness
from aatc.passes.analysis.result import BudgetError, Cost, verify
from aatc.passes.analysis.stochastic import PatternError

seeds = st.integers(0, 10**6)
rates = st.floats(0.01, 0.99)
NATS = np.log(2)


def random_pattern(rng, *shape, holes=0.0):
    weights = rng.gamma(0.7, size=shape) + 1e-3
    weights *= rng.random(shape) >= holes
    weights[..., 0] += 1e-3
    return weights / weights.sum(-1, keepdims=True)


def as_dit(table):
    outcomes = list(np.ndindex(table.shape))
    return dit.Distribution(["".join(map(str, o)) for o in outcomes], [float(table[o]) for o in outcomes])


def binary_entropy(p):
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


@given(rates, rates)
def test_two_states_have_the_closed_form(a, b):
    value = information_flow_metrics([[1 - a, a], [b, 1 - b]], tile_size=1).value
    pi = b / (a + b)
    rate = pi * binary_entropy(a) + (1 - pi) * binary_entropy(b)
    assert value.entropy_rate == pytest.approx(rate, abs=1e-12)
    assert value.information_flow == pytest.approx(binary_entropy(pi) - rate, abs=1e-12)
    assert value.cross_tile_flow == pytest.approx(2 * a * b / (a + b), abs=1e-14)
    assert value.stability == pytest.approx(1 - abs(1 - a - b), abs=1e-13)


@given(st.integers(2, 6), seeds)
def test_entropies_and_mutual_information_agree_with_dit(n, seed):
    rng = np.random.default_rng(seed)
    pattern = random_pattern(rng, n, n, holes=0.3)
    joint = random_pattern(rng, 1, n * 3, holes=0.3).reshape(n, 3)
    row = dit.Distribution([str(i) for i in range(n)], pattern[0])
    assert row_entropies(pattern)[0] == pytest.approx(dit.shannon.entropy(row) * NATS, abs=1e-10)
    expected = dit.shannon.mutual_information(as_dit(joint), [0], [1]) * NATS
    assert mutual_information(joint) == pytest.approx(expected, abs=1e-10)
    result = information_flow_metrics(pattern, tile_size=2)
    steps = as_dit(result.value.stationary[:, None] * pattern)
    expected = dit.shannon.mutual_information(steps, [0], [1]) * NATS
    assert result.value.information_flow == pytest.approx(expected, abs=1e-10)
    assert result.verify() <= 1e-12 and result.residual <= 1e-14


@given(seeds)
def test_conditional_information_agrees_with_dit_and_is_not_the_seeds_formula(seed):
    joint = random_pattern(np.random.default_rng(seed), 1, 12, holes=0.2).reshape(2, 3, 2)
    table = as_dit(joint)
    expected = dit.shannon.conditional_entropy(table, [1], [2]) - dit.shannon.conditional_entropy(table, [1], [0, 2])
    assert conditional_mutual_information(joint) == pytest.approx(expected * NATS, abs=1e-10)
    written = dit.shannon.entropy(table, [1]) - dit.shannon.conditional_entropy(table, [1], [0, 2])
    excess = dit.shannon.mutual_information(table, [1], [2])
    assert written - expected == pytest.approx(excess, abs=1e-10)


@given(st.integers(2, 6), st.integers(2, 6), seeds)
def test_index_information_is_bounded_by_the_row_entropy(n, m, seed):
    rng = np.random.default_rng(seed)
    pattern = random_pattern(rng, n, m, holes=0.2)
    values = rng.integers(0, 2, size=(m, 2)).astype(float)
    result = index_information(pattern, values)
    assert result.residual <= 1e-14
    codes = (values @ [1, 2]).astype(int)
    table = np.zeros((m, 4))
    table[np.arange(m), codes] = pattern[0]
    assert result.value.information[0] == pytest.approx(mutual_information(table), abs=1e-12)
    distinct = index_information(pattern, np.arange(m)).value
    np.testing.assert_allclose(distinct.information, distinct.bound, atol=1e-14)


def test_one_hot_pattern_refutes_the_seeds_bound():
    # Values are two fair bits and the pattern copies the first: I(O;V) = log 2 although H(P) = 0.
    joint = np.zeros((2, 4))
    for code, bits in enumerate(np.ndindex(2, 2)):
        joint[bits[0], code] = 0.25
    one_hot = np.array([[1.0, 0.0]])
    assert row_entropies(one_hot)[0] == 0
    assert mutual_information(joint) == pytest.approx(np.log(2))
    assert index_information(one_hot, [[0.0], [1.0]]).value.information[0] == 0


@given(st.integers(2, 9), st.integers(1, 9), seeds)
def test_flow_splits_over_tiles(n, tile, seed):
    pattern = random_pattern(np.random.default_rng(seed), n, n, holes=0.3)
    value = information_flow_metrics(pattern, tile_size=tile).value
    group = np.arange(n) // tile
    density = information_density(pattern, value.stationary)
    for a, b in np.ndindex(value.tile_flow.shape):
        part = np.ix_(group == a, group == b)
        joint = (value.stationary[:, None] * pattern)[part]
        information = joint[joint > 0] @ density[part][joint > 0]
        assert value.tile_flow[a, b] == pytest.approx(joint.sum(), abs=1e-14)
        assert value.tile_information[a, b] == pytest.approx(information, abs=1e-12)
        assert value.tile_density[a, b] * joint.sum() == pytest.approx(information, abs=1e-12)
    assert value.tile_information.sum() == pytest.approx(value.information_flow, abs=1e-12)
    assert value.coarse_flow == pytest.approx(mutual_information(value.tile_flow), abs=1e-12)
    assert value.coarse_flow <= value.information_flow + 1e-12
    entropy = -(value.stationary[value.stationary > 0] * np.log(value.stationary[value.stationary > 0])).sum()
    assert value.information_flow + value.entropy_rate == pytest.approx(entropy, abs=1e-12)


@given(st.integers(2, 8), seeds)
def test_stability_bounds_the_shift_of_the_stationary_law(n, seed):
    rng = np.random.default_rng(seed)
    pattern, other = random_pattern(rng, 2, n, n)
    value = information_flow_metrics(np.stack([pattern, other])).value
    shift = np.abs(value.stationary[0] - value.stationary[1]).sum()
    assert shift <= np.abs(pattern - other).sum(1).max() / value.stability.max() + 1e-12


@pytest.mark.parametrize("n", [256, 257])
def test_stability_says_whether_it_is_exact(n):
    pattern = random_pattern(np.random.default_rng(n), n, n, holes=0.9)
    value = information_flow_metrics(pattern).value
    assert value.stability_exact == (n == 256)
    distances = [np.abs(pattern - row).sum(1).max() / 2 for row in pattern]
    if value.stability_exact:
        assert value.stability == pytest.approx(1 - max(distances), abs=1e-12)
    else:
        assert 0 <= value.stability <= 1 - max(distances) + 1e-12


def test_edge_utilisation_counts_effective_keys():
    pattern = [[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0], [1, 0, 0, 0]]
    np.testing.assert_allclose(edge_utilisation(pattern), [1, 0.5, 0.25], rtol=1e-14)


def test_heads_of_a_batch_are_apart():
    heads = random_pattern(np.random.default_rng(0), 2, 3, 5, 5)
    together = information_flow_metrics(heads, 2)
    alone = information_flow_metrics(heads[1, 2], 2).value
    assert together.value.tile_flow.shape == (2, 3, 3, 3) and together.value.information_flow.shape == (2, 3)
    np.testing.assert_allclose(together.value.tile_information[1, 2], alone.tile_information, atol=1e-15)
    assert together.verify() <= 1e-12


def test_several_stationary_laws_need_an_initial_one():
    with pytest.raises(NotErgodicError) as caught:
        information_flow_metrics(np.eye(2))
    assert caught.value.found.recurrent_classes == 2
    value = information_flow_metrics(np.eye(2), 1, initial=[0.25, 0.75]).value
    assert value.information_flow == pytest.approx(binary_entropy(0.25), abs=1e-14)


def test_planted_wrong_flow_is_caught():
    result = information_flow_metrics(random_pattern(np.random.default_rng(0), 4, 4))
    good = result.witness
    assert verify(FlowWitness(good.pattern, good.stationary, good.flow + 1e-3)) == pytest.approx(1e-3, rel=1e-6)
    assert verify(FlowWitness(good.pattern, np.full(4, 0.25), good.flow)) > 1e-3


def test_refusals_are_typed():
    pattern = random_pattern(np.random.default_rng(0), 4, 4)
    with pytest.raises(BudgetError):
        information_flow_metrics(pattern, budget=Cost(bytes=1))
    with pytest.raises(PatternError):
        information_flow_metrics(pattern, tile_size=0)
    with pytest.raises(PatternError):
        information_flow_metrics(pattern[:2])
    with pytest.raises(PatternError):
        index_information(pattern, np.ones(3))
    with pytest.raises(PatternError):
        information_density(pattern, np.full(4, np.nan))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), seeds)
def test_gradient_identities_agree_with_automatic_differentiation(n, m, d, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v, g = (
        torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True)
        for s in ((2, n, d), (2, m, d), (2, m, 3), (2, n, 3))
    )
    scores = q @ k.mT / d**0.5
    pattern = scores.softmax(-1)
    loss = (pattern @ v * g.detach()).sum()
    expected = [x.numpy() for x in torch.autograd.grad(loss, (q, k, v, pattern, scores))]
    found = attention_gradients(*(x.detach().numpy() for x in (q, k, v, g)))
    for mine, theirs in zip((found.queries, found.keys, found.values, found.weights, found.scores), expected):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)
    by_weight = weight_gradient(g.detach().numpy(), v.detach().numpy())
    np.testing.assert_allclose(score_gradient(pattern.detach().numpy(), by_weight).sum(-1), 0, atol=1e-13)


def test_gradients_of_shapes_that_do_not_fit_are_refused():
    with pytest.raises(PatternError):
        weight_gradient(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(PatternError):
        attention_gradients(np.ones((2, 3)), np.ones((2, 4)), np.ones((2, 4)), np.ones((2, 4)))


@pytest.mark.parametrize("d", [1, 4, 64])
def test_only_the_scaled_score_of_unit_entries_has_variance_one(d):
    zero, one = np.zeros(d), np.ones(d)
    assert score_moments(zero, one, zero, one).variance == d
    assert score_moments(zero, one, zero, one, scale=d**-0.5).variance == pytest.approx(1)


@given(st.integers(1, 3), seeds)
def test_score_moments_are_those_of_two_point_entries(d, seed):
    rng = np.random.default_rng(seed)
    points, weights = rng.normal(size=(2 * d, 2)), rng.dirichlet([1, 1], size=2 * d)
    mean = (points * weights).sum(1)
    variance = (points**2 * weights).sum(1) - mean**2
    first = second = 0.0
    for pick in np.ndindex(*[2] * (2 * d)):
        entries = points[np.arange(2 * d), pick]
        probability = weights[np.arange(2 * d), pick].prod()
        score = 0.7 * entries[:d] @ entries[d:]
        first, second = first + probability * score, second + probability * score**2
    found = score_moments(mean[:d], np.maximum(variance[:d], 0), mean[d:], np.maximum(variance[d:], 0), 0.7)
    assert found.mean == pytest.approx(first, abs=1e-12)
    assert found.variance == pytest.approx(second - first**2, abs=1e-10)


def test_values_are_the_same_only_bit_by_bit():
    nan = index_information([[0.5, 0.5]], [[np.nan], [np.nan]]).value
    assert nan.information == pytest.approx(0, abs=1e-15) and nan.bound == pytest.approx(np.log(2))
    assert index_information([[0.5, 0.5]], [[0.0], [-0.0]]).value.information == pytest.approx(np.log(2))


def test_gradients_of_shared_keys_and_values_are_summed_over_the_heads():
    g = torch.Generator().manual_seed(0)
    shapes = ((4, 3, 2), (5, 2), (1, 5, 6), (2, 4, 3, 6))
    q, k, v, upstream = (torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes)
    (torch.softmax(q @ k.mT / 2**0.5, -1) @ v * upstream.detach()).sum().backward()
    found = attention_gradients(*(x.detach().numpy() for x in (q, k, v, upstream)))
    for mine, leaf in ((found.queries, q), (found.keys, k), (found.values, v)):
        np.testing.assert_allclose(mine, leaf.grad.numpy(), atol=1e-12)


def test_gradients_that_do_not_fit_are_refused():
    q, k = np.ones((4, 3, 2)), np.ones((3, 5, 2))
    with pytest.raises(PatternError, match="do not broadcast"):
        attention_gradients(q, k, k, q)
    with pytest.raises(PatternError, match="do not broadcast"):
        score_gradient(np.full((4, 2, 2), 0.5), np.ones((3, 2, 2)))
    with pytest.raises(PatternError, match="does not have shape"):
        attention_gradients(q[0], k[0], k[0], q[0, :2])
    with pytest.raises(PatternError, match="NaN"):
        attention_gradients(q[0], k[0], k[0], np.full((3, 2), np.nan))


def test_nan_in_a_flow_is_never_a_small_deviation():
    witness = information_flow_metrics(np.full((2, 3, 3), 1 / 3)).witness
    assert verify(witness) < 1e-12
    assert not verify(FlowWitness(witness.pattern, witness.stationary, np.array([np.nan, 0]))) < 1


def test_tables_that_are_no_numbers_are_refused():
    for table in ([[1], [1, 2]], [["a"]], [[np.nan]]):
        with pytest.raises(PatternError):
            mutual_information(table)
