"""What is no array of real numbers, no budget, no batch and no tokens is a typed error; what is, in whatever form numpy
and torch have it, is taken."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import aatc
from aatc.analysis import AnalysisError, Cost, cohomology, heads, homotopy, information
from aatc.passes.analysis.given_weights import given_weights

N = 8
WEIGHTS = np.random.default_rng(0).dirichlet(np.ones(N), N)

#: Functions of one square array of real numbers.
OF_ARRAYS = [
    cohomology.rips_persistence, cohomology.attention_persistence, cohomology.dowker_persistence,
    cohomology.attention_dissimilarity, cohomology.loop_statistics, cohomology.against_null,
    cohomology.persistence_image, cohomology.persistence_landscape,
    information.enclosing_ball, information.dobrushin_coefficient, information.birkhoff_contraction,
    information.ergodic_analysis, information.nilpotency, information.row_entropies, information.edge_utilisation,
    information.irreducible_stationary, information.information_flow_metrics,
    homotopy.persistent_components, homotopy.preorder_category, homotopy.path_category,
    heads.is_causal, heads.recurrent_states, heads.head_profile, heads.absorption_times,
    lambda x: cohomology.bottleneck_distance(x, x), lambda x: homotopy.likeliest_path(x, 0, 1),
    lambda x: aatc.analyze_weights(x, "information"), lambda x: information.perturbation_response(WEIGHTS, x),
]  # fmt: skip
MASKED = np.ma.array(WEIGHTS, mask=np.triu(np.ones((N, N), dtype=bool), 1))
REFUSED = {
    "complex": WEIGHTS + 1j, "complex without imaginary parts": WEIGHTS + 0j, "complex tensor": torch.eye(N) + 0j,
    "complex list": [[0, 1 + 5j], [1 + 5j, 0]], "masked": MASKED, "list of masked": list(MASKED),
    "text": "spell", "texts": [["0", "1"], ["1", "0"]], "objects of texts": np.array([["1", "0"]] * 2, dtype=object),
    "ragged": [[1.0], [0.5, 0.5]], "dates": np.zeros((2, 2), dtype="M8[s]"), "meta": torch.zeros(N, N, device="meta"),
    "too large": np.array([[10**400, 1]] * 2, dtype=object), "object": object(), "none": [[None, 1], [1, None]],
    "complex objects": np.array([[1j, 0], [0, 1]], dtype=object),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("place", range(len(OF_ARRAYS)))
def test_what_is_no_array_of_real_numbers_is_a_typed_error(place, name):
    with pytest.raises(AnalysisError):
        OF_ARRAYS[place](REFUSED[name])


FORMS = {
    "long double": lambda a: a.astype(np.longdouble), "big-endian": lambda a: a.astype(">f8"),
    "objects": lambda a: a.astype(object), "fractions": lambda a: np.vectorize(Fraction, otypes=[object])(a),
    "a mask of nothing": np.ma.array, "lists": lambda a: a.tolist(), "tensor": torch.from_numpy,
    "sparse": lambda a: torch.from_numpy(a).to_sparse(), "csr": lambda a: torch.from_numpy(a).to_sparse_csr(),
    "requiring a gradient": lambda a: torch.from_numpy(a).requires_grad_(), "strided": lambda a: a.T.copy().T,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_real_numbers_of_any_form_are_taken(name):
    want = aatc.analyze_weights(WEIGHTS, "information")
    made = FORMS[name](WEIGHTS)
    found = aatc.analyze_weights(made, "information")
    for item in ("mean_row_entropy", "spectral_gap"):
        assert found["attend0", item].value == pytest.approx(want["attend0", item].value, rel=1e-14)
    found, want = (information.dobrushin_coefficient(x).value for x in (made, WEIGHTS))
    assert found == pytest.approx(want, rel=1e-14)  # strides change the order of sums


@pytest.mark.parametrize("batch", [np.int64(1), np.array([1]), torch.tensor(1), [np.int32(1)], range(1, 2), (1,)])
def test_integers_of_any_kind_choose_batch_elements(batch):
    weights = np.stack([np.eye(N), WEIGHTS])[:, None]
    (seen,) = given_weights(weights, batch)
    assert seen.batch == (1,) and seen.weights(0)[0, 0] == WEIGHTS[0, 0]


@pytest.mark.parametrize("batch", ["1", 1.0, [0.5], None, [], -1, [[0]], {}, "", [None]])
def test_other_batches_are_typed_errors(batch):
    with pytest.raises(AnalysisError, match="batch"):
        aatc.analyze_weights(WEIGHTS, "heads", batch=batch)


@pytest.mark.parametrize("passes", [3, [3], None, [None], 0.5, "spell", [["heads"]], [{}]])
def test_other_passes_are_typed_errors(passes):
    with pytest.raises(AnalysisError, match=r"passes|family"):
        aatc.analyze_weights(WEIGHTS, passes)


@pytest.mark.parametrize("budget", ["x", "1", True, float("nan"), -1.0, [1.0], {}])
def test_other_budgets_are_typed_errors(budget):
    with pytest.raises(AnalysisError, match="budget"):
        aatc.analyze_weights(WEIGHTS, "heads", budget=budget)
    with pytest.raises(AnalysisError, match="memory"):
        aatc.analyze_weights(WEIGHTS, "heads", memory="x")
    for right in (np.float32(100), 100, torch.tensor(100.0), Cost(seconds=100.0)):
        assert not aatc.analyze_weights(WEIGHTS, "heads", budget=right).select(item="refused")


def test_tiles_of_no_tokens_are_a_typed_error():
    (seen,) = given_weights(WEIGHTS)
    for block in (0, -1):
        with pytest.raises(AnalysisError, match="tiles"):
            seen.block_means(0, block)


# --- tokens ---------------------------------------------------------------------------------------------------
TEXT = list("abacabad")
IDS = [0, 1, 0, 2, 0, 1, 0, 3]
MASS = "induction_mass"


@pytest.mark.parametrize("tokens", [TEXT, np.array(TEXT), np.array(TEXT, dtype=object), [TEXT], np.array(IDS, np.uint8),
                                    np.array(IDS, dtype=object), torch.tensor(IDS)])  # fmt: skip
def test_tokens_may_be_texts(tokens):
    want = aatc.analyze_weights(np.tril(WEIGHTS) / np.tril(WEIGHTS).sum(1, keepdims=True), "heads", tokens=IDS)
    found = aatc.analyze_weights(np.tril(WEIGHTS) / np.tril(WEIGHTS).sum(1, keepdims=True), "heads", tokens=tokens)
    assert found["attend0", MASS].value == want["attend0", MASS].value > 0


@pytest.mark.parametrize("tokens", [[1, 2], TEXT[:-1], list(range(N + 1)), [[1, 2]], [1.5] * N, [[1], [1, 2]], 3, "a",
                                    [None] * N, [[[1] * N]], np.ma.array(IDS, mask=[1] * N), [True] * N])  # fmt: skip
def test_tokens_that_do_not_fit_are_a_typed_error(tokens):
    with pytest.raises(AnalysisError, match="token"):
        aatc.analyze_weights(WEIGHTS, "heads", tokens=tokens)
    q = torch.randn(1, 1, N, 4)
    with pytest.raises(AnalysisError, match="token"):
        aatc.analyze(lambda q: aatc.attend(q, q, q, metric=aatc.metrics.DotProduct()), q, "heads", tokens=tokens)


def test_tokens_serve_the_attentions_that_they_fit():
    cross = np.full((3, N), 1 / N)
    found = aatc.analyze_weights({"own": WEIGHTS, "cross": cross}, "heads", tokens=IDS)
    assert found.captured[0].tokens.tolist() == [IDS] and found.captured[1].tokens is None
    with pytest.raises(AnalysisError, match="8 tokens were given, and no attention"):
        aatc.analyze_weights(cross, "heads", tokens=IDS)


def test_captured_attentions_get_their_tokens():
    with aatc.analysis.capturing() as seen:
        torch.nn.functional.scaled_dot_product_attention(*torch.randn(3, 1, 1, N, 4))
    found = aatc.analyze_weights(seen, "heads", tokens=TEXT)
    assert found.captured[0].tokens.tolist() == [IDS]
    with pytest.raises(AnalysisError, match="token"):
        aatc.analyze_weights(seen, "heads", tokens=TEXT[:2])
