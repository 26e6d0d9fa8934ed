"""Dowker barcodes against Dowker's theorem and the complexes at every threshold; tensors of any dtype."""

import numpy as np
import pytest
import torch

import aatc
from aatc.analysis import cohomology, homotopy, information
from aatc.passes.analysis.result import BudgetError, Cost


def relation(n: int, m: int, seed: int, zeros: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a = rng.random((n, m)) * (rng.random((n, m)) > zeros)
    return a / np.maximum(a.sum(1, keepdims=True), 1e-300)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("modulus", [2, 3])
def test_both_sides_have_the_same_bars(seed, modulus):
    rng = np.random.default_rng(seed)
    a = relation(int(rng.integers(1, 9)), int(rng.integers(1, 9)), seed)
    sides = [cohomology.dowker_persistence(a, side=s, modulus=modulus).value for s in ("rows", "columns", "auto")]
    for degree in range(2):
        np.testing.assert_allclose(sides[0].bars[degree], sides[1].bars[degree], atol=1e-12)
        np.testing.assert_allclose(sides[0].bars[degree], sides[2].bars[degree], atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_bars_count_the_homology_at_every_threshold(seed):
    a = relation(7, 6, seed)
    found = cohomology.dowker_persistence(a).value
    for t in np.unique(a[a > 0]):
        complex = cohomology.dowker_complex(a, t * (1 - 1e-12), 2)
        assert found.betti(-np.log(t) + 1e-13) == cohomology.betti_numbers(complex)[:2] + (0,) * (
            2 - len(complex.cells)
        )


def test_a_ring_of_queries_over_keys_is_a_loop():
    a = np.zeros((5, 5))
    for i in range(5):
        a[i, i] = a[i, (i + 1) % 5] = 0.5
    bars = cohomology.dowker_persistence(a).value.bars
    np.testing.assert_allclose(bars[1], [[np.log(2), np.inf]])
    assert len(cohomology.dowker_persistence(np.zeros((3, 4))).value.bars[0]) == 0


def test_wrong_relations_are_refused():
    for bad in (np.ones(3), np.full((2, 2), 1.5), np.full((2, 2), np.nan)):
        with pytest.raises(cohomology.FiltrationError):
            cohomology.dowker_persistence(bad)
    with pytest.raises(cohomology.FiltrationError, match="side"):
        cohomology.dowker_persistence(np.eye(2), side="left")
    with pytest.raises(BudgetError):
        cohomology.dowker_persistence(np.eye(9), budget=Cost(1e-9))


def test_cross_attention_has_rows_in_the_families_that_can_say_something():
    a = torch.from_numpy(relation(6, 9, 1, zeros=0.0))
    found = aatc.analyze_weights(a)
    items = {f.item for f in found.findings}
    assert {
        "dowker_barcodes",
        "dowker_longest_bar_h1",
        "effective_context",
        "busiest_key_mass",
        "mean_row_entropy",
    } <= items
    assert "dowker barcodes" in str(found)
    np.testing.assert_allclose(found["attend0", "dowker_barcodes"].value.bars[0],
                               cohomology.dowker_persistence(a).value.bars[0])  # fmt: skip


FUNCTIONS = {
    "dissimilarity": cohomology.attention_dissimilarity,
    "persistence": lambda a: cohomology.attention_persistence(a).value.bars[1],
    "threshold": lambda a: cohomology.threshold_complex(a, 0.2, 2).counts,
    "dowker": lambda a: cohomology.dowker_persistence(a).value.bars[0],
    "components": lambda a: homotopy.persistent_components(a).value.merges,
    "path": lambda a: homotopy.AttentionPath(a, 1e-6).compute_path(3, 0).value.vertices,
    "entropy": information.row_entropies,
    "flow": lambda a: information.information_flow_metrics(a).value.information_flow,
    "ball": lambda a: information.enclosing_ball(a).value.radius,
    "gradient": lambda a: information.weight_gradient(a, a),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_functions_take_tensors_of_any_precision_with_gradients(name, dtype):
    weights = torch.from_numpy(relation(6, 6, 3, zeros=0.0)).to(dtype).requires_grad_()
    plain = weights.detach().float().double().numpy()
    plain = plain / plain.sum(1, keepdims=True) if name in ("entropy", "flow") else plain
    np.testing.assert_allclose(FUNCTIONS[name](weights), FUNCTIONS[name](plain), rtol=1e-12)
