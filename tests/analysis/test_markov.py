import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.information.contraction import (
    birkhoff_contraction,
    dobrushin_coefficient,
    doeblin_bound,
    nilpotency,
)
from aatc.passes.analysis.information.ergodic import (
    MixingTime,
    SpectralGap,
    ergodic_analyses,
    ergodic_analysis,
    kemeny_constant,
)
from aatc.passes.analysis.information.information import information_flow_metrics
from aatc.passes.analysis.information.markov import (
    NotErgodic,
    cesaro_limit,
    communicating_classes,
    ergodic_average,
    irreducible_stationary,
    stationary_distributions,
)
from aatc.passes.analysis.information.verify_chain import EigenpairWitness, RowPairWitness, StationaryWitness
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost, Undecided, verify
from aatc.passes.analysis.stochastic import PatternError, row_stochastic

rates = st.floats(0.01, 0.99)


def softmax_pattern(n, seed=0, spread=1.0, keep=None):
    scores = spread * np.random.default_rng(seed).normal(size=(n, n))
    if keep is not None:
        scores = np.where(keep, scores, -np.inf)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def cycle(n, hold=0.0):
    step = np.roll(np.eye(n), 1, axis=1)
    return hold * np.eye(n) + (1 - hold) * (step + step.T) / 2


def total_variation(pattern, stationary, steps):
    return np.abs(np.linalg.matrix_power(pattern, steps) - stationary).sum(1).max() / 2


@given(rates, rates)
def test_two_states_have_the_closed_form(a, b):
    found = ergodic_analysis([[1 - a, a], [b, 1 - b]]).value
    np.testing.assert_allclose(found.stationary, [[b / (a + b), a / (a + b)]], atol=1e-14)
    assert found.irreducible and found.unique and found.reversible and found.period == 1
    assert found.gap.value == pytest.approx(1 - abs(1 - a - b), abs=1e-12)
    assert found.dobrushin == pytest.approx(abs(1 - a - b), abs=1e-14)
    assert found.kemeny == pytest.approx(1 / (a + b), rel=1e-12)
    ratio = (1 - a) * (1 - b) / (a * b)
    assert found.birkhoff == pytest.approx(abs(np.tanh(np.log(ratio) / 4)), abs=1e-10)


@pytest.mark.parametrize("n", [3, 4, 5, 8, 9])
def test_walk_on_a_cycle_has_cosine_eigenvalues(n):
    found = ergodic_analysis(cycle(n)).value
    np.testing.assert_allclose(found.stationary, np.full((1, n), 1 / n), atol=1e-14)
    if n % 2 == 0:
        assert isinstance(found.gap, NotErgodic) and found.period == found.gap.period == 2
        assert isinstance(found.mixing_time, NotErgodic)
    else:
        assert found.gap.value == pytest.approx(1 - np.cos(np.pi / n), abs=1e-12)
    lazy = ergodic_analysis(cycle(n, 0.5)).value
    assert lazy.gap.value == pytest.approx((1 - np.cos(2 * np.pi / n)) / 2, abs=1e-12)
    eigenvalues = np.cos(2 * np.pi * np.arange(1, n) / n)
    assert found.kemeny == pytest.approx((1 / (1 - eigenvalues)).sum(), rel=1e-10)


@pytest.mark.parametrize("n", [3, 6])
def test_walk_on_a_complete_graph(n):
    found = ergodic_analysis((np.ones((n, n)) - np.eye(n)) / (n - 1)).value
    assert found.gap.value == pytest.approx(1 - 1 / (n - 1), abs=1e-12)
    assert found.kemeny == pytest.approx((n - 1) ** 2 / n, rel=1e-12)
    assert found.dobrushin == pytest.approx(1 / (n - 1), abs=1e-14)


@given(st.integers(2, 12), st.integers(0, 10**6), st.floats(0.1, 4))
def test_random_chains_agree_with_their_eigenvalues(n, seed, spread):
    pattern = softmax_pattern(n, seed, spread)
    result = ergodic_analysis(pattern)
    found = result.value
    values, vectors = scipy.linalg.eig(pattern, left=True, right=False)
    order = np.argsort(-np.abs(values))
    law = np.real(vectors[:, order[0]] / vectors[:, order[0]].sum())
    np.testing.assert_allclose(found.stationary[0], law, atol=1e-9)
    assert found.gap.value == pytest.approx(1 - abs(values[order[1]]), abs=1e-8)
    assert abs(values[order[1]]) <= found.dobrushin + 1e-12 <= doeblin_bound(pattern) + 2e-12
    assert found.dobrushin <= found.birkhoff + 1e-12
    assert found.kemeny == pytest.approx((1 / (1 - values[order[1:]])).sum().real, rel=1e-7)
    assert result.verify() <= 1e-9


@given(st.integers(2, 8), st.integers(0, 10**6), st.sampled_from([0.25, 0.05]))
def test_mixing_time_lies_between_its_bounds(n, seed, distance):
    weights = np.random.default_rng(seed).random((n, n)) + 0.02
    weights += weights.T
    for pattern in (weights / weights.sum(1, keepdims=True), softmax_pattern(n, seed)):
        found = ergodic_analysis(pattern, mixing_distance=distance).value
        bounds = found.mixing_time
        assert isinstance(bounds, MixingTime)
        steps = next(t for t in range(1000) if total_variation(pattern, found.stationary[0], t) <= distance)
        assert bounds.lower - 1e-9 <= max(steps, 1) and steps <= bounds.upper


def test_reducible_chain_is_reported_with_every_stationary_law():
    block = np.array([[0.5, 0.5, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 1, 0, 0], [0.2, 0, 0.4, 0, 0.4]])
    found = ergodic_analysis(block).value
    assert [c.states.tolist() for c in found.classes] == [[0, 1], [2, 3], [4]]
    assert [(c.recurrent, c.period) for c in found.classes] == [(True, 1), (True, 2), (False, 1)]
    np.testing.assert_allclose(found.stationary, [[2 / 3, 1 / 3, 0, 0, 0], [0, 0, 0.5, 0.5, 0]], atol=1e-14)
    assert not found.unique and not found.irreducible and found.period == 2
    for value in (found.gap, found.kemeny, found.mixing_time):
        assert isinstance(value, NotErgodic) and value.recurrent_classes == 2
    limit = cesaro_limit(block, [0, 0, 0, 0, 1])
    np.testing.assert_allclose(limit, [2 / 9, 1 / 9, 1 / 3, 1 / 3, 0], atol=1e-14)
    walk, law = np.zeros(5), np.eye(5)[4]
    for _ in range(4000):
        walk, law = walk + law, law @ block
    np.testing.assert_allclose(limit, walk / 4000, atol=1e-3)
    assert ergodic_average(block, [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]) == pytest.approx(2 / 9)


@given(st.integers(2, 30), st.integers(0, 10**6))
def test_causal_pattern_is_absorbed_by_its_first_token(n, seed):
    pattern = softmax_pattern(n, seed, keep=np.tril(np.ones((n, n), dtype=bool)))
    found = ergodic_analysis(pattern).value
    np.testing.assert_array_equal(found.stationary, np.eye(1, n))
    assert [c.recurrent for c in found.classes] == [True] + [False] * (n - 1)
    assert found.gap.value == pytest.approx(1 - np.diagonal(pattern)[1:].max(), abs=1e-14)


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_period_of_a_layered_chain_is_its_number_of_layers(layers, seed):
    sizes = np.random.default_rng(seed).integers(1, 4, size=layers)
    layer = np.repeat(np.arange(layers), sizes)
    keep = layer[None, :] == (layer[:, None] + 1) % layers
    (only,) = communicating_classes(softmax_pattern(len(layer), seed, keep=keep))
    assert only.period == layers and only.recurrent


def test_single_transient_state_without_a_loop_has_period_zero():
    periods = [c.period for c in communicating_classes([[0.0, 1.0], [0.0, 1.0]])]
    assert periods == [0, 1]


@pytest.mark.parametrize("chain", ["mixing", "sticky"])
def test_large_chains_use_the_other_algorithms_and_agree(chain):
    n = 400
    pattern = softmax_pattern(n, 3, 2.0)
    if chain == "sticky":  # two groups that hardly ever meet: power steps do not converge
        side = np.arange(n) % 2
        pattern = row_stochastic(np.where(side[:, None] == side, pattern, 1e-7 * pattern), atol=1)
    law = irreducible_stationary(pattern)
    assert np.abs(law @ pattern - law).sum() <= 1e-13
    values = np.sort(np.abs(np.linalg.eigvals(pattern)))
    found = ergodic_analysis(pattern).value
    assert isinstance(found.gap, SpectralGap)
    assert found.gap.value == pytest.approx(1 - values[-2], abs=1e-7)
    np.testing.assert_allclose(found.stationary[0], law, atol=1e-12)


@pytest.mark.slow
def test_4096_tokens_are_analysed_with_small_residuals():
    pattern = softmax_pattern(4096)
    chain, flow = ergodic_analysis(pattern), information_flow_metrics(pattern)
    assert isinstance(chain.value.gap, SpectralGap) and chain.value.gap.residual <= 1e-5
    assert isinstance(chain.value.kemeny, Undecided) and not chain.value.dobrushin_exact
    assert chain.residual <= 1e-13 and chain.verify() <= 1e-5 and flow.verify() <= 1e-10


@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 10**6))
def test_dobrushin_and_birkhoff_are_the_best_constants_of_contraction(n, m, seed):
    rng = np.random.default_rng(seed)
    pattern = rng.dirichlet(np.ones(m), size=n)
    result = dobrushin_coefficient(pattern)
    brute = max(np.abs(a - b).sum() / 2 for a in pattern for b in pattern)
    assert result.value == pytest.approx(brute, abs=1e-14) and result.verify() <= 1e-15
    mu, nu = rng.dirichlet(np.ones(n), size=2)
    assert np.abs((mu - nu) @ pattern).sum() <= result.value * np.abs(mu - nu).sum() + 1e-14
    ratio = np.log(mu @ pattern) - np.log(nu @ pattern)
    before = np.ptp(np.log(mu / nu))
    assert np.ptp(ratio) <= birkhoff_contraction(pattern).value * before + 1e-10


def test_rows_with_different_supports_do_not_contract_hilberts_metric():
    assert birkhoff_contraction([[0.5, 0.5, 0], [0.5, 0, 0.5]]).value == 1
    assert birkhoff_contraction([[0.5, 0.5, 0], [0.5, 0.5, 0]]).value == 0


@given(st.integers(1, 12), st.integers(0, 10**6), st.floats(0.05, 1))
def test_nilpotency_index_is_the_first_power_that_vanishes(n, seed, density):
    rng = np.random.default_rng(seed)
    mask = np.tril(rng.random((n, n)) < density, -1)
    order = rng.permutation(n)
    mask = mask[np.ix_(order, order)]
    found = nilpotency(mask)
    power = [np.linalg.matrix_power(mask.astype(float), k).any() for k in range(n + 1)]
    assert found.nilpotent and found.index == power.index(False)


def test_pattern_with_a_cycle_is_not_nilpotent_and_shows_it():
    mask = np.zeros((5, 5))
    mask[[0, 1, 2, 3, 3], [1, 2, 3, 1, 4]] = 1
    found = nilpotency(mask)
    assert not found.nilpotent and found.index == 0
    assert found.cycle[0] == found.cycle[-1] and len(found.cycle) == 4
    assert all(mask[a, b] for a, b in zip(found.cycle, found.cycle[1:]))


def test_planted_wrong_witnesses_are_caught():
    pattern = softmax_pattern(5)
    law = stationary_distributions(pattern)[0]
    assert verify(StationaryWitness(pattern, law)) <= 1e-15
    assert verify(StationaryWitness(pattern, np.roll(law, 1))) > 1e-3
    assert verify(StationaryWitness(pattern, 2 * law)) >= 1
    values, vectors = np.linalg.eig(pattern)
    assert verify(EigenpairWitness(pattern, values[1], vectors[:, 1])) <= 1e-14
    assert verify(EigenpairWitness(pattern, values[1] + 0.1, vectors[:, 1])) > 0.09
    assert verify(EigenpairWitness(pattern, values[1], np.zeros(5))) == np.inf
    assert verify(RowPairWitness(pattern, 0, 1, 0.9)) > 1e-3


def test_batches_are_analysed_head_by_head():
    heads = np.stack([softmax_pattern(4, 0), cycle(4)]).reshape(2, 1, 4, 4)
    first, second = ergodic_analyses(heads)
    assert isinstance(first.value.gap, SpectralGap) and isinstance(second.value.gap, NotErgodic)


@pytest.mark.parametrize(
    "bad",
    [np.ones(3), np.ones((2, 3)) / 3, [[0.5, 0.6], [0.5, 0.5]], [[1.5, -0.5], [0, 1]], [[np.nan, 1], [0, 1]], [["a"]],
     [[0.0, 0.0], [0.0, 1.0]]],
)  # fmt: skip
def test_what_is_no_square_stochastic_matrix_is_refused(bad):
    with pytest.raises(PatternError):
        ergodic_analysis(bad)


def test_refusals_are_typed():
    with pytest.raises(BudgetError):
        ergodic_analysis(softmax_pattern(64), budget=Cost(seconds=1e-6))
    with pytest.raises(BudgetError):
        dobrushin_coefficient(softmax_pattern(64), budget=Cost(seconds=1e-9))
    with pytest.raises(AnalysisError):
        ergodic_analysis(cycle(3), mixing_distance=1.5)
    with pytest.raises(PatternError):
        nilpotency([[0.0, -1.0], [0.0, 0.0]])
    with pytest.raises(PatternError):
        ergodic_average(cycle(3), np.ones(4), [1, 0, 0])
    assert isinstance(kemeny_constant(np.eye(2)), NotErgodic)


def nearly_reducible(n, there, back, seed=0):
    """Two blocks of n/2 states, with one rare step from the first to the second and one back."""
    rng, h = np.random.default_rng(seed), n // 2
    pattern = scipy.linalg.block_diag(rng.dirichlet(np.ones(h), h), rng.dirichlet(np.ones(h), h))
    pattern[0, h], pattern[h, 0] = there, back
    return pattern


@pytest.mark.parametrize("n", [10, 70, 400])
@pytest.mark.parametrize("rate", [1e-6, 1e-16, 1e-40])
def test_rare_steps_decide_the_law_at_every_size(n, rate):
    pattern, h = nearly_reducible(n, rate, 3 * rate), n // 2
    law = stationary_distributions(pattern)[0]
    inner = [stationary_distributions(pattern[s, s])[0] for s in (slice(0, h), slice(h, n))]
    # Flow balances between the blocks, each of which keeps nearly its own law; rows 0 and h were divided by their sums.
    odds = 3 * inner[1][0] / inner[0][0]
    assert law[:h].sum() / law[h:].sum() == pytest.approx(odds, rel=100 * rate + 1e-12)
    assert law[0] / (1 + rate) == pytest.approx(3 * law[h] / (1 + 3 * rate), rel=1e-12)


@pytest.mark.parametrize("leak", [1e-3, 1e-17, 1e-200])
def test_absorption_through_a_rare_exit_keeps_its_odds(leak):
    pattern = [[1, 0, 0], [0, 1, 0], [0.3 * leak, 0.7 * leak, 1 - leak]]
    np.testing.assert_allclose(cesaro_limit(pattern, [0.2, 0, 0.8]), [0.44, 0.56, 0], rtol=1e-12)


@pytest.mark.parametrize("p", [0.3, 1e-9, 1e-17, 1e-100])
def test_kemeny_constant_of_a_chain_that_hardly_moves(p):
    found = kemeny_constant([[1 - p, p], [2 * p, 1 - 2 * p]])
    assert found.value == pytest.approx(1 / (3 * p), rel=1e-13) and found.residual <= found.tolerance
    mixing = ergodic_analysis([[1 - p, p], [2 * p, 1 - 2 * p]]).value.mixing_time
    assert mixing.lower <= np.log(2) / p


def test_kemeny_constant_of_an_absorbed_chain_is_its_mean_time_of_absorption_from_the_quasi_law():
    rng = np.random.default_rng(2)
    pattern = np.tril(rng.random((80, 80)))
    pattern /= pattern.sum(1, keepdims=True)
    assert kemeny_constant(pattern).value == pytest.approx((1 / (1 - np.diagonal(pattern)[1:])).sum(), rel=1e-12)


def test_laws_over_more_than_the_range_of_floats_are_analysed():
    n, up = 120, 1e-5
    pattern = np.diag(np.full(n - 1, 1 - up), -1) + np.diag(np.full(n - 1, up), 1)
    pattern[0, 0], pattern[-1, -1] = 1 - up, up
    for chain in (pattern, pattern[::-1, ::-1]):
        found = ergodic_analysis(chain)
        assert found.residual < 1e-14 and found.value.stationary.max() == pytest.approx(1 - up / (1 - up))
        assert found.value.mixing_time.upper == np.inf


def test_a_step_below_the_range_of_floats_is_refused():
    with pytest.raises(PatternError, match="below the range"):
        stationary_distributions([[0, 1], [1e-320, 1]])


@pytest.mark.parametrize("pattern", [[[1], [0.5, 0.5]], [[1.0], "x"]])
def test_what_does_not_turn_into_an_array_is_refused(pattern):
    with pytest.raises(PatternError, match="one array"):
        ergodic_analysis(pattern)


def test_observables_and_laws_with_nan_are_refused():
    with pytest.raises(PatternError, match="NaN"):
        ergodic_average(np.eye(2), [np.nan, 0], [0.5, 0.5])
    with pytest.raises(PatternError, match="real numbers"):
        cesaro_limit(np.eye(2), ["a", "b"])


def reversible_weights(n, seed, spread, width=16):
    """Weights exp⟨x_i, x_j⟩ of points, symmetric bit by bit, and the eigenvalue moduli of their chain, ascending."""
    points = np.random.default_rng(seed).normal(size=(n, width)) * spread**0.5
    scores = np.tril(points @ points.T)
    weights = np.exp(scores + np.tril(scores, -1).T - scores.max())
    degrees = weights.sum(1)
    return weights, np.sort(np.abs(np.linalg.eigvalsh(weights / np.sqrt(degrees[:, None] * degrees))))


@pytest.mark.parametrize("n, seed", [(450, 2), (400, 5), (130, 1)])
def test_eigenvalues_crowded_below_one_are_told_apart_when_the_chain_is_reversible(n, seed):
    weights, moduli = reversible_weights(n, seed, 1.0)
    result = ergodic_analysis(weights / weights.sum(1, keepdims=True))
    gap, bounds = result.value.gap, result.value.mixing_time
    assert isinstance(gap, SpectralGap) and gap.proof_level == "P2" and gap.tolerance < 1e-11
    assert abs(gap.value - (1 - moduli[-2])) <= gap.tolerance
    assert gap.residual <= gap.tolerance and gap.verify() <= gap.tolerance
    relaxation = 1 / (1 - moduli[-2])
    assert bounds.upper >= (relaxation - 1) * np.log(2) * (1 - 1e-2)
    assert bounds.lower == pytest.approx((relaxation - 1) * np.log(2), rel=1e-2)
    assert result.verify() <= result.tolerance


@given(st.integers(2, 20), st.integers(0, 10**6), st.floats(0.01, 1.5))
def test_gaps_of_reversible_chains_are_within_their_tolerance(n, seed, spread):
    weights, moduli = reversible_weights(n, seed, spread, 2)
    gap = ergodic_analysis(weights / weights.sum(1, keepdims=True)).value.gap
    if isinstance(gap, SpectralGap):
        assert gap.proof_level == "P2"
        assert abs(gap.value - (1 - moduli[-2])) <= gap.tolerance + 1e-14 * n
        assert gap.verify() <= gap.tolerance
    else:
        assert isinstance(gap, Undecided) and 1 - moduli[-2] < 1e-9


@pytest.mark.parametrize("breach, proven", [(1e-12, True), (1e-6, False)])
def test_a_breach_of_detailed_balance_widens_the_bound_or_ends_the_proof(breach, proven):
    weights, _ = reversible_weights(40, 3, 0.05)
    weights[7, 30] *= 1 + 40 * breach  # not in the row that is looked at first
    pattern = weights / weights.sum(1, keepdims=True)
    gap = ergodic_analysis(pattern).value.gap
    moduli = np.sort(np.abs(np.linalg.eigvals(pattern)))
    assert gap.proof_level == ("P2" if proven else "P3")
    assert abs(gap.value - (1 - moduli[-2])) <= gap.tolerance + 1e-13 and gap.verify() <= gap.tolerance


def test_a_gap_below_its_error_is_undecided_and_no_bound_is_made_of_it():
    pattern = nearly_reducible(400, 1e-15, 1e-15)
    found = ergodic_analysis(pattern).value
    assert isinstance(found.gap, Undecided) and "error" in found.gap.reason
    assert found.mixing_time == MixingTime(0.0, np.inf, 0.25)


@pytest.mark.parametrize("n, forward", [(31, 0.6), (12, 0.9)])
def test_slow_chains_without_detailed_balance_have_a_proven_lower_bound(n, forward):
    step = np.roll(np.eye(n), 1, axis=1)
    pattern = 0.5 * np.eye(n) + 0.5 * (forward * step + (1 - forward) * step.T)
    found = ergodic_analysis(pattern).value
    assert found.gap.proof_level == "P3" and found.mixing_time.upper == np.inf
    steps = next(t for t in range(4000) if total_variation(pattern, found.stationary[0], t) <= 0.25)
    assert 0.3 * steps <= found.mixing_time.lower <= steps


@pytest.mark.parametrize("n", [6, 60, 450])
def test_the_residual_of_a_law_is_what_its_check_finds(n):
    for spread in (1.0, 8.0):
        result = ergodic_analysis(softmax_pattern(n, n, spread))
        assert result.residual == verify(result.witness.parts[0]) and result.verify() <= result.tolerance
