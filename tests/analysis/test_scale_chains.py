"""Coarse-grained chains: averages, complements and skipped steps against sums, paths and products by hand; the
semigroup law and the stationary law on drawn chains; flows of observables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc.analysis import scale
from aatc.passes.analysis.information.markov import NotErgodicError
from aatc.passes.analysis.scale.coarse_graining import SCHEMES, ScaleError
from aatc.passes.analysis.stochastic import PatternError
from tests.analysis.scale_cases import by_distance, chain, chains, stationary

ISING = [0.05, 0.3, 1.1, 2.5]


def transfer(k):
    """The Ising chain's transfer matrix as a chain of two states: it keeps a spin with probability (1 + tanh K)/2."""
    t = np.array([[np.exp(k), np.exp(-k)], [np.exp(-k), np.exp(k)]])
    return t / t.sum(1, keepdims=True)


@pytest.mark.parametrize("k", ISING)
def test_every_second_spin_of_an_ising_chain_has_the_coupling_of_the_squared_tangent(k):
    found = scale.scale_connection(transfer(k), 1, 2, scheme="steps")
    weights = found.value.coarse
    coupling = np.log(weights[0, 0] * weights[1, 1] / (weights[0, 1] * weights[1, 0])) / 4
    assert np.tanh(coupling) == pytest.approx(np.tanh(k) ** 2, rel=1e-12)
    assert found.verify() <= found.tolerance
    flow = scale.renormalization_flow(transfer(k), lambda a, mu: np.trace(a) - 1, scales=(1, 2, 4, 8), scheme="steps")
    np.testing.assert_allclose(flow.value.couplings[:, 0], np.tanh(k) ** np.array([1, 2, 4, 8]), atol=1e-14)


@pytest.mark.parametrize("k", ISING)
def test_spins_summed_out_of_a_ring_leave_the_same_coupling(k):
    """The joint law of every second of six spins, by all 64 states, against tanh K′ = tanh² K."""
    states = 1 - 2 * ((np.arange(64)[:, None] >> np.arange(6)) & 1)
    law = np.exp(k * (states * np.roll(states, 1, axis=1)).sum(1))
    left = states[:, ::2]
    kept = {tuple(s): law[(left == s).all(1)].sum() for s in np.unique(left, axis=0)}
    aligned, turned = kept[1, 1, 1], kept[1, 1, -1]
    assert np.tanh(np.log(aligned / turned) / 4) == pytest.approx(np.tanh(k) ** 2, rel=1e-9)


@given(chains, st.data())
def test_connections_compose_and_keep_the_stationary_law(a, data):
    n = len(a)
    b, c = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    law = stationary(a)
    for scheme in SCHEMES:
        found = scale.scale_connection(a, b, b * c, scheme=scheme)
        value = found.value
        assert found.verify() <= found.tolerance
        np.testing.assert_allclose(value.restriction @ value.fine @ value.prolongation, value.coarse, atol=1e-9)
        for matrix in (value.fine, value.coarse, value.restriction, value.prolongation):
            assert matrix.min() >= 0
            np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-9)
        np.testing.assert_allclose(value.coarse_law @ value.coarse, value.coarse_law, atol=1e-9)
        np.testing.assert_allclose(value.fine_law @ value.fine, value.fine_law, atol=1e-9)
        assert value.stationary
        expected = {
            "average": np.array([law[k : k + b * c].sum() for k in range(0, n, b * c)]),
            "complement": law[:: b * c] / law[:: b * c].sum(),
            "steps": law,
        }
        np.testing.assert_allclose(value.coarse_law, expected[scheme], atol=1e-8)
        assert scale.cocycle_defect(a, (1, b, b * c, 2 * b * c), scheme=scheme).value <= 1e-9


@given(chains, st.integers(0, 10**6))
def test_averages_are_conditional_probabilities(a, seed):
    """Of labels without order, under any law: Pr(next block is J | block is I)."""
    rng = np.random.default_rng(seed)
    n = len(a)
    _, labels = np.unique(rng.integers(0, max(1, n // 2), n), return_inverse=True)
    law = rng.dirichlet(np.ones(n))
    found = scale.scale_connection(a, 1, labels, measure=law).value
    m = labels.max() + 1
    for i in range(m):
        for j in range(m):
            joint = sum(law[x] * a[x, y] for x in range(n) for y in range(n) if labels[x] == i and labels[y] == j)
            assert found.coarse[i, j] == pytest.approx(joint / law[labels == i].sum(), abs=1e-9)


@given(chains, st.integers(0, 10**6))
def test_complements_are_sums_over_excursions(a, seed):
    rng = np.random.default_rng(seed)
    n = len(a)
    kept = np.sort(rng.choice(n, int(rng.integers(1, n)), replace=False))
    gone = np.setdiff1d(np.arange(n), kept)
    found = scale.scale_connection(a, 1, kept, scheme="complement").value
    inner = np.linalg.inv(np.eye(len(gone)) - a[np.ix_(gone, gone)])
    excursions = a[np.ix_(kept, kept)] + a[np.ix_(kept, gone)] @ inner @ a[np.ix_(gone, kept)]
    np.testing.assert_allclose(found.coarse, excursions, atol=1e-8)
    np.testing.assert_allclose(found.prolongation[gone], inner @ a[np.ix_(gone, kept)], atol=1e-8)


def test_complements_keep_their_digits_where_leaving_is_rare():
    """A state that is left with probability 1e-12, by the same sum in exact rationals."""
    e = 1e-12
    a = np.array([[0.5, 0.25, 0.25], [e, 1 - 3 * e, 2 * e], [0.2, 0.3, 0.5]])
    a[1, 1] = 1 - (a[1, 0] + a[1, 2])
    found = scale.scale_connection(a, 1, np.array([0, 2]), scheme="complement", measure="uniform")
    np.testing.assert_allclose(found.value.coarse[0], [0.5 + 0.25 / 3, 0.25 + 0.25 * 2 / 3], rtol=1e-12)
    assert found.verify() <= found.tolerance


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 4))
def test_lumpable_chains_have_no_defect_and_others_have_one(seed, m, size):
    rng = np.random.default_rng(seed)
    coarse = rng.dirichlet(np.ones(m), m)
    labels = np.repeat(np.arange(m), size)
    inside = rng.dirichlet(np.ones(size), (m * size, m))  # how a state spreads what it gives to a block
    a = (coarse[labels][:, :, None] * inside).reshape(m * size, m * size)
    found = scale.lumpability_defect(a, size)
    assert found.value.worst <= 1e-12 and found.verify() <= found.tolerance
    np.testing.assert_allclose(scale.scale_connection(a, 1, size, measure="uniform").value.coarse, coarse, atol=1e-12)
    if size > 1:
        a[0] = np.eye(m * size)[0]
        moved = scale.lumpability_defect(a, size)
        onto = np.add.reduceat(a, np.arange(0, m * size, size), axis=1)
        apart = [np.abs(onto[i] - onto[labels == labels[i]].mean(0)).sum() / 2 for i in range(m * size)]
        assert moved.value.worst == pytest.approx(max(apart)) and moved.value.mean == pytest.approx(np.mean(apart))
        assert moved.value.worst > 0


@given(chains, st.sampled_from(["average", "complement", "steps"]))
def test_flows_are_observables_of_connections_from_the_finest_chain(a, scheme):
    f = np.cos(np.arange(len(a)) * 1.7)
    flow = scale.renormalization_flow(a, f, scheme=scheme)
    rate = scale.renormalization_flow(a, "entropy_rate", scheme=scheme).value
    leaving = scale.renormalization_flow(a, "escape", scheme=scheme).value
    assert flow.value.map is None and flow.verify() <= flow.tolerance
    for k, b in enumerate(flow.value.scales.astype(int)):
        found = scale.scale_connection(a, 1, b, scheme=scheme).value
        values, mu, coarse = found.restriction @ f, found.coarse_law, found.coarse
        mean = mu @ values
        energy = mu @ values**2 - (mu * values) @ coarse @ values  # ⟨f, (1 − A)f⟩, the law being stationary
        np.testing.assert_allclose(flow.value.couplings[k], [mu @ (values - mean) ** 2, energy], atol=1e-8)
        logs = np.log(coarse, where=coarse > 0, out=np.zeros_like(coarse))
        assert rate.couplings[k, 0] == pytest.approx(-(mu @ (coarse * logs).sum(1)), abs=1e-8)
        assert leaving.couplings[k, 0] == pytest.approx(1 - mu @ np.diagonal(coarse), abs=1e-8)


def test_averages_of_a_function_vary_less_from_scale_to_scale():
    a = chain(3, 64)
    values = scale.renormalization_flow(a, np.random.default_rng(0).normal(size=64)).value
    assert (np.diff(values.couplings[:, 0]) <= 1e-12).all() and values.names == ("variance", "energy")
    defects = scale.renormalization_flow(a, "defect", measure="uniform").value
    for b, defect in zip(defects.scales, defects.couplings[:, 0]):
        assert defect == pytest.approx(scale.lumpability_defect(a, int(b)).value.mean, abs=1e-12)


def test_very_many_steps_are_the_stationary_law():
    a = chain(5, 9)
    found = scale.scale_connection(a, 1, 10**12, scheme="steps")
    np.testing.assert_allclose(found.value.coarse, np.broadcast_to(stationary(a), (9, 9)), atol=1e-10)
    assert found.verify() <= found.tolerance


def test_methods_are_the_functions_with_the_scheme_and_the_measure_of_the_object():
    a = by_distance(16, 1.5)
    one = scale.ScaleCohomology(a, measure="uniform")
    own = one.scale_connection(2, 4).value.coarse
    np.testing.assert_allclose(own, scale.scale_connection(a, 2, 4, measure="uniform").value.coarse, atol=1e-14)
    assert one.lumpability_defect(2).value.mean == pytest.approx(scale.lumpability_defect(a, 2).value.mean)
    assert one.cocycle_defect((1, 2, 4)).value <= 1e-12
    flow = one.renormalization_flow("escape", scales=(1, 2)).value
    np.testing.assert_array_equal(flow.scales, [1, 2])
    followed = one.renormalization_flow(scale.ising_chain(), start=[0.5], steps=3).value
    np.testing.assert_allclose(followed.couplings[:, 0], 0.5 ** np.array([1, 2, 4, 8]))
    assert len(one.fixed_points(followed).value) == 2
    assert one.scale_invariants().value[0].value == pytest.approx(scale.escape_exponent(a).value.value)
    assert one.anomaly_polynomial(scale.tiled_lattice([[1, 1]], 4)).value.order == 4


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda a: scale.scale_connection(a, 2, 3), ScaleError, "coarser"),
        (lambda a: scale.scale_connection(a, 2, 3, scheme="complement"), ScaleError, "finer"),
        (lambda a: scale.scale_connection(a, 2, 3, scheme="steps"), ScaleError, "multiple"),
        (lambda a: scale.scale_connection(a, 1, 0), ScaleError, "whole number"),
        (lambda a: scale.scale_connection(a, 1, True, scheme="steps"), ScaleError, "whole number"),
        (lambda a: scale.scale_connection(a, 1, [0, 2] * 3), ScaleError, "numbered"),
        (lambda a: scale.scale_connection(a, 1, [0, 1]), ScaleError, "blocks of 6"),
        (lambda a: scale.scale_connection(a, 1, [3, 1], scheme="complement"), ScaleError, "ascending"),
        (lambda a: scale.scale_connection(a, 1, [6], scheme="complement"), ScaleError, "0 to 5"),
        (lambda a: scale.scale_connection(a, 1, 2, scheme="majority"), ScaleError, "average"),
        (lambda a: scale.scale_connection(a, 1, 2, measure="counting"), ScaleError, "uniform"),
        (lambda a: scale.scale_connection(a * 2, 1, 2), PatternError, "sum"),
        (lambda a: scale.scale_connection(a[None], 1, 2), ScaleError, "one chain"),
        (lambda a: scale.scale_connection(np.eye(6), 1, 2), NotErgodicError, "recurrent"),
        (lambda a: scale.scale_connection(np.tri(6) / np.arange(1, 7)[:, None], 1, 2), ScaleError, "no weight"),
        (lambda a: scale.renormalization_flow(a, "spin"), ScaleError, "entropy_rate"),
        (lambda a: scale.renormalization_flow(a, "defect", scheme="steps"), ScaleError, "average"),
        (lambda a: scale.renormalization_flow(a, "escape", scales=(2, 3)), ScaleError, "factor"),
        (lambda a: scale.renormalization_flow(a, "escape", scales=()), ScaleError, "grow"),
        (lambda a: scale.renormalization_flow(a, [1.0, 2.0]), ScaleError, "6 states"),
        (lambda a: scale.renormalization_flow(a, lambda c, mu: np.inf), ScaleError, "finite"),
        (lambda a: scale.renormalization_flow(a, lambda c, mu: mu), ScaleError, "one number"),
        (lambda a: scale.ScaleCohomology(a, "majority"), ScaleError, "average"),
        (lambda a: scale.ScaleCohomology(a).renormalization_flow(scale.ising_chain()), ScaleError, "start"),
    ],
)  # fmt: skip
def test_what_fits_no_chain_is_refused(call, error, text):
    with pytest.raises(error, match=text):
        call(chain(0, 6))
