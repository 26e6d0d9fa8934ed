"""Estimates and budgets of analytical passes, what the cache holds, and arguments of `analyze` that stand alone."""

from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import aatc
from aatc import analysis
from aatc.cli import app
from aatc.passes.analysis.arithmetic.arithmetic_pass import AnalyzeArithmetic
from aatc.passes.analysis.base import Study, _Cache, bytes_of, weights_cost
from aatc.passes.analysis.cohomology.cohomology_pass import AnalyzeCohomology
from aatc.passes.analysis.homotopy.homotopy_pass import AnalyzeHomotopy, clique_counts
from aatc.passes.analysis.information.information_pass import AnalyzeInformation
from aatc.passes.analysis.result import BudgetError, Cost, Result


@aatc.metric
def taxicab(q, k):
    return -(q - k).abs().sum()


def captured(n: int, width: int, scale: float = 1.0, metric=None, **options):
    """A head of random queries and keys; what was compiled for other widths is forgotten."""
    torch._dynamo.reset()
    q, k = torch.randn(2, 1, 1, n, width, generator=torch.Generator().manual_seed(n)) * scale
    metric = metric or aatc.metrics.DotProduct()
    return aatc.analyze(lambda q, k: aatc.attend(q, k, k, metric=metric, **options), (q, k), ()).captured[0]


def test_pooled_patterns_are_estimated_by_their_states():
    seen, one = captured(1024, 16), AnalyzeInformation()
    pooled, whole = (one.estimate_pattern(seen, Study(memory=m)) for m in (1 << 15, 1 << 27))
    assert seen.pooled_sizes(1 << 15) == (64, 64)
    weights = weights_cost(1024, 16).seconds
    assert weights < pooled.seconds < one.estimate_cost(64, 16).seconds + 2 * weights < whole.seconds / 2
    assert pooled.bytes == one.estimate_cost(64, 16).bytes and whole == one.estimate_cost(1024, 16)
    budget = Cost(whole.seconds * 0.99)  # more than it takes pooled, on a busy machine, too: that is held to it
    assert "refused" in one._pattern(seen, 0, 0, Study(memory=1 << 27, budget=budget))
    assert "mean_row_entropy" in one._pattern(seen, 0, 0, Study(memory=1 << 15, budget=budget))


@pytest.mark.parametrize("rows, columns, memory", [(300, 300, 8 * 75**2), (300, 40, 8 * 75 * 10 - 1), (7, 9, 8)])
def test_pooled_sizes_are_those_of_the_pattern(rows, columns, memory):
    def cross(q, k):
        return aatc.attend(q, k, k, metric=aatc.metrics.DotProduct())

    seen = aatc.analyze(cross, (torch.randn(1, 1, rows, 4), torch.randn(1, 1, columns, 4)), ()).captured[0]
    assert seen.pooled_sizes(memory) == seen.pattern(0, memory=memory).array.shape


def test_patterns_that_are_not_square_cost_nothing_where_they_are_left_alone():
    def cross(q, k):
        return aatc.attend(q, k, k, metric=taxicab)

    torch._dynamo.reset()
    seen = aatc.analyze(cross, (torch.randn(1, 1, 300, 8), torch.randn(1, 1, 40, 8)), ()).captured[0]
    study = Study(budget=Cost(seconds=0.01))
    for one in (AnalyzeHomotopy(), AnalyzeArithmetic()):
        assert "refused" not in one._pattern(seen, 0, 0, study)
    assert "refused" in AnalyzeCohomology()._pattern(seen, 0, 0, study)  # which has Dowker complexes
    assert "refused" not in AnalyzeCohomology()._pattern(seen, 0, 0, Study(budget=Cost(seconds=1)))


def test_scores_that_form_a_vector_a_pair_cost_their_width():
    plain, vectors = captured(400, 32), captured(400, 32, metric=taxicab)
    assert plain.weights_seconds == pytest.approx(weights_cost(400, 32).seconds)
    assert vectors.weights_seconds > 4 * plain.weights_seconds
    study = Study(memory=1 << 27)
    more = vectors.weights_seconds - plain.weights_seconds
    for one, times in ((AnalyzeArithmetic(), 1), (AnalyzeHomotopy(), 2), (AnalyzeCohomology(), 2)):
        apart = one.estimate_pattern(vectors, study).seconds - one.estimate_cost(400, 32).seconds
        assert apart == pytest.approx(times * more)


@pytest.mark.parametrize("seed", range(6))
def test_cells_are_counted_exactly(seed):
    rng = np.random.default_rng(seed)
    n, dimension = int(rng.integers(1, 14)), int(rng.integers(0, 5))
    weights, threshold = rng.random((n, n)), rng.random()
    graph = nx.from_numpy_array(np.maximum(weights, weights.T) >= threshold)
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    sizes = [len(c) for c in nx.enumerate_all_cliques(graph)]
    assert clique_counts(weights, threshold, dimension) == tuple(sizes.count(k + 1) for k in range(dimension + 1))


@pytest.mark.parametrize("one, budget", [(AnalyzeHomotopy(), 0.5), (AnalyzeCohomology(), 0.3)])
def test_a_complex_that_is_too_large_is_refused_once_it_is_known(one, budget):
    flat = captured(128, 8, 0.2, mask=aatc.masks.causal())
    study = Study(budget=Cost(seconds=budget))
    one.estimate_pattern(flat, study).check(study.budget, "what is known before")
    refusal = one._pattern(flat, 0, 0, study)["refused"]
    assert isinstance(refusal, BudgetError) and "at its threshold" in str(refusal)
    assert refusal.estimate.seconds > budget
    assert "refused" not in one._pattern(captured(128, 8), 0, 0, study)


def test_the_cache_forgets_the_least_recently_used_beyond_its_bytes():
    cache = _Cache(100, 1_000_000)
    for name in "ab":
        cache.get((name,), lambda: {"x": Result(np.zeros(50_000))})  # 400 kB each
    cache.get(("a",), lambda: pytest.fail("a is kept"))
    cache.get(("c",), lambda: {"x": Result(0.0, witness=SimpleNamespace(m=np.zeros(50_000)))})
    assert set(cache.kept) == {("a",), ("c",)} and 800_000 < cache.held < 1_000_000
    held = cache.held
    assert cache.get(("huge",), lambda: np.zeros(200_000)).shape == (200_000,)
    assert set(cache.kept) == {("a",), ("c",)} and cache.held == held
    cache.get(("d",), lambda: 1)
    cache.clear()
    assert cache.held == 0 and not cache.sizes


def own(value) -> int:
    return bytes_of(value)[0]


def test_bytes_of_results_are_those_of_their_arrays():
    array = np.zeros(10_000)
    assert 80_000 < own(array) < 81_000
    assert 80_000 < own({"a": array, "b": [array, array[5:]]}) < 82_000  # shared and viewed
    assert own(array[::5000]) > 80_000  # a view keeps the whole
    assert own(torch.zeros(10_000)) > 40_000
    assert own(Result(array, witness=(array.copy(),))) > 160_000
    assert own(np.array([1 << 80_000] * 2, dtype=object)) > 10_000
    assert own(list(range(1000, 3000))) > 2000 * 28
    nested: list = []
    nested.append(nested)
    assert own(nested) < 200


def test_captured_attentions_that_results_share_count_once():
    cache, seen = _Cache(100, 1_000_000), captured(100, 8)
    kept = sum(4 * t.numel() for t in seen.tensors.values())
    for name in "ab":
        cache.get((name,), lambda: {"x": Result(0.0, witness=SimpleNamespace(seen=seen))})
    assert kept < cache.held < kept + 4000 and bytes_of([seen])[1] == {seen: kept}
    cache._forget(("a",))
    assert kept < cache.held < kept + 2000
    cache._forget(("b",))
    assert cache.held == 0 and not cache.users


def test_the_study_of_the_program_has_the_budget_too():
    found = aatc.analyze(lambda q: aatc.attend(q, q, q, metric=aatc.metrics.DotProduct()), torch.randn(1, 1, 9, 4),
                         ("arithmetic",), budget=1e-9)  # fmt: skip
    (refused,) = [f for f in found.findings if f.subject == "ir"]
    assert refused.item == "refused" and "arithmetic of the program" in str(refused.result)
    assert "refused: above the budget" in str(found)


def test_one_pass_and_one_batch_element_stand_without_a_list():
    def dot(q):
        return aatc.attend(q, q, q, metric=aatc.metrics.DotProduct())

    q = torch.randn(3, 1, 9, 4)
    for passes in ("homotopy", AnalyzeHomotopy()):
        found = aatc.analyze(dot, q, passes, batch=2)
        assert {f.family for f in found.findings} == {"homotopy"}
        assert {f.batch for f in found.findings if f.subject != "ir"} == {2}


@pytest.mark.parametrize("row", [-1, 20, 300])
def test_rows_that_are_not_there_are_refused(row):
    seen = captured(20, 4, mask=aatc.masks.causal())
    with pytest.raises(analysis.AnalysisError, match=f"attend0 has no query {row}"):
        seen.sampled_rows(0, [0, row])
    assert seen.sampled_rows(0, [19, 0]).array.sum(1) == pytest.approx([1, 1])


def test_factories_of_functions_are_analysed_from_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "plain_function.py").write_text(
        "import aatc, torch\n"
        "def factory():\n"
        "    return lambda q: aatc.attend(q, q, q, metric=aatc.metrics.DotProduct())\n",
        "utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    call = ["analyze", "plain_function:factory", "--inputs", "1x1x9x4", "--passes", "information"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0 and "entropy rate" in done.stdout
