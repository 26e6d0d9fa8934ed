"""Topology against null models: noise has none, a planted ring has. Distances and vectors of barcodes."""

import itertools

import numpy as np
import pytest

import aatc
from aatc.analysis import cohomology
from aatc.passes.analysis.cohomology.topology_pass import AnalyzeTopology
from aatc.passes.analysis.result import BudgetError, Cost, Undecided

N = 40


def noise(n: int, seed: int, causal: bool = False, sharp: float = 1.5) -> np.ndarray:
    a = np.exp(sharp * np.random.default_rng(seed).standard_normal((n, n)))
    a = a * np.tri(n) if causal else a
    return a / a.sum(1, keepdims=True)


def ring(n: int, sharp: float = 6.0) -> np.ndarray:
    angle = 2 * np.pi * np.arange(n) / n
    a = np.exp(sharp * np.cos(angle[:, None] - angle))
    return a / a.sum(1, keepdims=True)


def entropies(a: np.ndarray) -> np.ndarray:
    return np.array([-sum(x * np.log(x) for x in row if x > 0) for row in a])


@pytest.mark.parametrize("causal", [False, True])
def test_shuffled_rows_are_permutations_on_what_is_seen(causal):
    a = noise(N, 0, causal)
    b = cohomology.shuffled_rows(a, np.random.default_rng(1))
    np.testing.assert_allclose(np.sort(a, 1), np.sort(b, 1), atol=1e-15)
    assert ((b > 0) == (a > 0)).all() and np.abs(a - b).max() > 0.01


@pytest.mark.parametrize("sharp", [0.0, 0.3, 1.5, 8.0])
def test_rows_of_entropy_have_it_on_what_is_seen(sharp):
    a = noise(N, 2, True, sharp)
    a[7] = np.eye(N)[3]  # one key alone
    b = cohomology.rows_of_entropy(a, np.random.default_rng(1))
    np.testing.assert_allclose(entropies(b), entropies(a), atol=2e-5)
    assert (b[a == 0] == 0).all()
    np.testing.assert_allclose(b.sum(1), 1, atol=1e-12)


def test_draws_are_random_where_every_place_is_as_likely():
    a = np.tile(np.array([0.7, 0.2, 0.1]), (3, 1))
    rng = np.random.default_rng(0)
    places = [tuple(np.argsort(-cohomology.shuffled_rows(a, rng)[0])) for _ in range(600)]
    counts = [places.count(p) for p in itertools.permutations(range(3))]
    assert min(counts) > 60 and sum(counts) == 600


def test_a_planted_ring_stands_out_and_noise_does_not():
    for model in ("shuffled", "entropy"):
        planted = cohomology.against_null(ring(N), model).value["longest_h1"]
        assert planted.z > 15 and planted.p == pytest.approx(1 / 21)
    z = [cohomology.against_null(noise(N, s, True), m, seed=s).value["longest_h1"].z
         for s in range(4) for m in ("shuffled", "entropy")]  # fmt: skip
    assert np.median(np.abs(z)) < 2 and max(np.abs(z)) < 6


def test_the_comparison_is_mean_and_deviation_of_the_draws():
    a, rng = noise(N, 4), np.random.default_rng(5)
    found = cohomology.against_null(a, draws=7, seed=5).value["total_h1"]
    chance = [cohomology.loop_statistics(cohomology.shuffled_rows(a, rng))["total_h1"] for _ in range(7)]
    own = cohomology.loop_statistics(a)["total_h1"]
    assert found.mean == pytest.approx(np.mean(chance)) and found.deviation == pytest.approx(np.std(chance, ddof=1))
    assert found.z == pytest.approx((own - np.mean(chance)) / np.std(chance, ddof=1))
    assert found.p == (1 + sum(abs(c - np.mean(chance)) >= abs(own - np.mean(chance)) for c in chance)) / 8


def test_bars_that_are_alive_at_the_cut_count_up_to_it():
    bars = cohomology.attention_persistence(noise(N, 3)).value.bars[1]
    d = cohomology.attention_dissimilarity(noise(N, 3))
    cut = cohomology.edge_threshold(d, 4 * N)
    inside = bars[bars[:, 0] <= cut]
    want = (np.minimum(inside[:, 1], cut) - inside[:, 0]).sum()
    assert cohomology.loop_statistics(noise(N, 3), 4)["total_h1"] == pytest.approx(want)


def test_what_cannot_be_compared_is_undecided_or_refused():
    previous = np.eye(N, k=-1)
    previous[0, 0] = 1
    assert isinstance(cohomology.against_null(previous).value["longest_h1"], Undecided)
    for bad in ({"model": "cards"}, {"draws": 1}):
        with pytest.raises(cohomology.FiltrationError):
            cohomology.against_null(noise(N, 0), **bad)
    with pytest.raises(BudgetError):
        cohomology.against_null(noise(N, 0), budget=Cost(1e-9))


def test_the_pass_compares_whole_patterns_and_says_how():
    found = aatc.analyze_weights(np.stack([ring(N), noise(N, 1)]), AnalyzeTopology(draws=10))
    z = found["attend0", "longest_h1_z_shuffled", 0]
    assert z.value > 10 and z.proof_level == "P3" and "10 draws of the null model 'shuffled'" in z.assumptions
    assert abs(found["attend0", "longest_h1_z_shuffled", 1].value) < 5
    assert not any("tiles" in a for f in found.findings for a in f.result.assumptions)
    assert found["attend0", "longest_h1_bar", 0].value == pytest.approx(
        cohomology.loop_statistics(ring(N), 16)["longest_h1"]
    )


# --- distances and vectors of barcodes ---------------------------------------------------------------------
def by_all_matchings(a: np.ndarray, b: np.ndarray, order: float) -> float:
    """Every matching of bars to bars or to the diagonal, in the largest norm."""
    best = np.inf
    for k in range(min(len(a), len(b)) + 1):
        for left in itertools.combinations(range(len(a)), k):
            for right in itertools.permutations(range(len(b)), k):
                costs = [np.abs(a[i] - b[j]).max() for i, j in zip(left, right)]
                costs += [(a[i, 1] - a[i, 0]) / 2 for i in range(len(a)) if i not in left]
                costs += [(b[j, 1] - b[j, 0]) / 2 for j in range(len(b)) if j not in right]
                best = min(best, sum(c**order for c in costs) ** (1 / order))
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", [1.0, 2.0])
def test_wasserstein_distances_are_those_of_the_best_matching(seed, order):
    rng = np.random.default_rng(seed)
    a, b = (np.sort(rng.random((n, 2)), 1) for n in (3, 4))
    want = by_all_matchings(a, b, order)
    assert cohomology.wasserstein_distance(a, b, order=order) == pytest.approx(want, rel=1e-5 if order == 1 else 0.011)
    endless = np.array([[0.0, np.inf], [0.3, np.inf]])
    both = cohomology.wasserstein_distance(np.r_[a, endless], np.r_[b, endless + np.array([0.1, 0])], order=order)
    assert both == pytest.approx((want**order + 2 * 0.1**order) ** (1 / order), rel=0.011)
    assert cohomology.wasserstein_distance(np.r_[a, endless], b) == np.inf


def test_a_barcode_without_bars_is_as_far_as_the_diagonal():
    a = np.array([[0.0, 1.0], [0.5, 0.9]])
    none = np.zeros((0, 2))
    assert cohomology.wasserstein_distance(a, none) == pytest.approx(0.7, rel=1e-5)
    assert cohomology.barcode_distance(a, none, "bottleneck") == 0.5
    assert cohomology.barcode_distance(a, none, lightest=0.45) == pytest.approx(0.5, rel=1e-5)
    assert cohomology.wasserstein_distance(none, none) == 0
    with pytest.raises(cohomology.FiltrationError):
        cohomology.barcode_distance(a, none, "earth")
    with pytest.raises(cohomology.FiltrationError):
        cohomology.wasserstein_distance(np.ones((2, 3)), none)


def test_landscapes_and_images_are_their_formulas():
    pytest.importorskip("gudhi.representations")
    rng = np.random.default_rng(0)
    bars = np.r_[np.sort(rng.random((6, 2)), 1), [[0.2, np.inf]]]
    grid, heights = cohomology.persistence_landscape(bars, levels=4, resolution=30, span=(0.0, 1.0))
    finite = bars[:-1]
    tents = np.maximum(0, np.minimum(grid[:, None] - finite[:, 0], finite[:, 1] - grid[:, None]))
    np.testing.assert_allclose(heights, np.sort(tents, 1)[:, ::-1][:, :4].T, atol=1e-12)
    image = cohomology.persistence_image(bars, bandwidth=0.1, resolution=(5, 7), span=(0, 1, 0, 0.8))
    births, lengths = np.linspace(0, 1, 7), np.linspace(0, 0.8, 5)
    want = np.zeros((5, 7))
    for b, d in finite:
        square = (births[None] - b) ** 2 + (lengths[:, None] - (d - b)) ** 2
        want += (d - b) * np.exp(-square / 0.02) / (2 * np.pi * 0.01)
    np.testing.assert_allclose(image, want, atol=1e-6)
    assert not cohomology.persistence_landscape(np.zeros((0, 2)))[1].any()
    assert not cohomology.persistence_image(np.zeros((0, 2))).any()
    with pytest.raises(cohomology.FiltrationError):
        cohomology.persistence_landscape(bars, span=(1.0, 0.0))
    with pytest.raises(cohomology.FiltrationError):
        cohomology.persistence_image(bars, bandwidth=0.0)
