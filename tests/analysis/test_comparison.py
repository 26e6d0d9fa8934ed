"""Heads and checkpoints beside each other."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

import aatc
from aatc.analysis import cohomology, compare, head_distances
from aatc.passes.analysis.result import AnalysisError

N = 18


def weights(seed: int, heads: int = 2) -> np.ndarray:
    a = np.exp(2 * np.random.default_rng(seed).standard_normal((heads, N, N))) * np.tri(N)
    return a / a.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def both():
    families = ("heads", "cohomology")
    return [aatc.analyze_weights([weights(s), weights(9)], families) for s in (0, 1)]


def test_checkpoints_differ_by_their_numbers_and_barcodes(both):
    found = compare(*both)
    d = next(d for d in found.select("mean_distance") if (d.attention, d.head) == ("attend0", 1))
    values = [b["attend0", "mean_distance", 1].value for b in both]
    assert d.difference == pytest.approx(values[1] - values[0]) and d.unit == "tokens" and d.difference != 0
    bars = [cohomology.attention_persistence(weights(s)[1]).value.bars[1] for s in (0, 1)]
    b = next(d for d in found.select("barcodes_h1") if (d.attention, d.head) == ("attend0", 1))
    assert b.difference == pytest.approx(cohomology.bottleneck_distance(*bars)) and b.slack == 0
    assert all(d.difference == 0 for d in found.differences if d.attention == "attend1")
    assert len(found.to_dataframe()) == len(found.differences) and "mean distance: at most" in str(found)
    assert all(d.difference == 0 for d in compare(both[0], both[0]).differences)


@pytest.mark.parametrize("kind", ["bottleneck", "wasserstein"])
def test_heads_are_as_far_as_their_barcodes(both, kind):
    names, distances = head_distances(both[0], kind)
    assert names == ("attend0.0", "attend0.1", "attend1.0", "attend1.1")
    bars = [cohomology.attention_persistence(w).value.bars[1] for w in (*weights(0), *weights(9))]
    for i in range(4):
        for j in range(4):
            assert distances[i, j] == pytest.approx(cohomology.barcode_distance(bars[i], bars[j], kind), rel=1e-5)
    assert (distances[~np.eye(4, dtype=bool)] > 0).all()


def test_heads_are_as_far_as_their_rows(both):
    _, distances = head_distances(both[0], "weights")
    a, b = weights(0)
    want = np.sqrt(np.mean([jensenshannon(x, y) ** 2 for x, y in zip(a, b)]))
    assert distances[0, 1] == pytest.approx(want, abs=1e-9) and distances[0, 0] == 0
    mixed = aatc.analyze_weights(
        [weights(0), weights(0)[:, :9, :9] / weights(0)[:, :9, :9].sum(-1, keepdims=True)], "heads"
    )
    assert np.isnan(head_distances(mixed, "weights")[1][0, 2])


def test_short_bars_that_are_left_out_bound_the_slack(monkeypatch):
    from aatc.analysis import comparison

    bars = [cohomology.attention_persistence(w).value.bars[1] for w in weights(0)]
    exact = cohomology.bottleneck_distance(*bars), cohomology.wasserstein_distance(*bars)
    monkeypatch.setattr(comparison, "BARS", 4)
    for kind, want in zip(("bottleneck", "wasserstein"), exact):
        distance, slack = comparison._near(*bars, kind)
        assert slack > 0 and abs(distance - want) <= slack * (1 + 1e-6)


def test_what_is_not_there_is_refused(both):
    with pytest.raises(AnalysisError, match="no distance 'earth'"):
        head_distances(both[0], "earth")
    with pytest.raises(AnalysisError, match="degree 2"):
        head_distances(both[0], degree=2)
    with pytest.raises(AnalysisError, match="degree 1"):
        head_distances(aatc.analyze_weights(weights(0), "heads"))
