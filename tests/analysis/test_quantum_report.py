"""What a report says of heads as quantum states: values of the captured weights, pooled, masked, of two lengths."""

import numpy as np
import pytest
import torch

import aatc
from aatc.analysis.items import item_of
from aatc.passes.analysis.base import Study
from aatc.passes.analysis.quantum.quantum_pass import AnalyzeQuantum
from aatc.passes.analysis.result import Undecided

ITEMS = {"query_key_entropy", "query_key_renyi_2", "query_key_negativity", "key_bloch_vector", "fubini_study_step",
         "value_entropy"}  # fmt: skip


def analysed(q, k, v, passes=("quantum",), metric=None, **options):
    torch._dynamo.reset()
    kind = {n: options.pop(n) for n in ("mask",) if n in options}
    metric = metric or aatc.metrics.DotProduct()
    return aatc.analyze(lambda q, k, v: aatc.attend(q, k, v, metric=metric, **kind), (q, k, v), passes, **options)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def entropy(eigenvalues):
    p = eigenvalues[eigenvalues > 1e-15]
    return float(-(p * np.log(p)).sum())


def test_values_are_those_of_the_weights_by_hand():
    # key heads serve two query heads each; the number of keys is odd
    q, k, v = drawn(2, 4, 7, 6), drawn(2, 2, 9, 6, seed=1), drawn(2, 2, 9, 3, seed=2)
    found = analysed(q, k, v, batch=(0, 1))
    for batch in range(2):
        for head in range(4):
            by = {f.item: f.result for f in found.select(head=head, batch=batch)}
            assert set(by) == ITEMS
            a = torch.softmax(q[batch, head].double() @ k[batch, head // 2].double().T / 6**0.5, -1).numpy()
            rho = np.sqrt(a).T @ np.sqrt(a) / 7
            p = np.linalg.eigvalsh(rho).clip(0)
            assert by["query_key_entropy"].value == pytest.approx(entropy(p), abs=1e-6)
            assert by["query_key_renyi_2"].value == pytest.approx(-np.log(np.trace(rho @ rho)), abs=1e-6)
            assert by["query_key_negativity"].value == pytest.approx((np.sqrt(p).sum() ** 2 - 1) / 2, abs=1e-5)
            x = 2 * np.mean([(np.sqrt(r[:4]) * np.sqrt(r[5:])).sum() for r in a])
            z = (a[:, :5].sum() - a[:, 5:].sum()) / 7
            np.testing.assert_allclose(by["key_bloch_vector"].value, [x, 0, z], atol=1e-6)
            steps = [np.arccos((np.sqrt(s) * np.sqrt(t)).sum()) for s, t in zip(a[1:], a)]
            assert by["fubini_study_step"].value == pytest.approx(np.mean(steps), abs=1e-5)
            table = v[batch, head // 2].double().numpy()
            gram = table.T @ table
            expected = entropy(np.linalg.eigvalsh(gram / np.trace(gram)))
            assert by["value_entropy"].value == pytest.approx(expected, abs=1e-6)
            for result in by.values():
                assert result.proof_level == "P2" and result.verify() <= result.tolerance


def test_long_patterns_are_pooled_and_say_so():
    x = drawn(1, 1, 64, 4)
    found = analysed(x, x, x, [AnalyzeQuantum(states=16)])["attend0", "query_key_entropy"]
    assert found.assumptions == ("tiles of 4 tokens taken as states",) and found.value <= np.log(16)
    assert found.verify() <= found.tolerance
    seen = analysed(x, x, x, ()).captured[0]
    whole, pooled = (AnalyzeQuantum(states=n).estimate_pattern(seen, Study()).seconds for n in (64, 16))
    assert pooled < whole


def test_heads_that_have_no_state_are_undecided():
    x = drawn(1, 1, 6, 4)
    keep = torch.ones(6, 6, dtype=torch.bool)
    keep[2] = False
    found = analysed(x, x, x, mask=aatc.masks.dense(keep))
    assert isinstance(found["attend0", "query_key_state"], Undecided) and found["attend0", "value_entropy"].value > 0
    for v in (x * 0, x.clone().index_fill(2, torch.tensor([1]), torch.inf)):
        assert isinstance(analysed(x, x, v)["attend0", "value_entropy"], Undecided)
    one = {f.item for f in analysed(drawn(1, 1, 1, 4), x, x).findings}
    assert one == ITEMS - {"fubini_study_step"}


def test_causal_identity_and_even_heads_are_the_extremes():
    x = drawn(1, 1, 8, 4)
    even = analysed(x * 0, x, x)
    assert even["attend0", "query_key_entropy"].value == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(even["attend0", "key_bloch_vector"].value, [1, 0, 0], atol=1e-12)
    assert even["attend0", "fubini_study_step"].value == pytest.approx(0, abs=1e-7)
    own = analysed(x, x, x, mask=aatc.masks.dense(torch.eye(8, dtype=torch.bool)))
    assert own["attend0", "query_key_entropy"].value == pytest.approx(np.log(8), abs=1e-12)
    assert own["attend0", "query_key_negativity"].value == pytest.approx(3.5, abs=1e-12)
    assert own["attend0", "fubini_study_step"].value == pytest.approx(np.pi / 2, abs=1e-12)
    assert "(0, 0, 0)" in str(own)


def test_a_budget_refuses():
    x = drawn(1, 1, 8, 4)
    assert "refused" in {f.item for f in analysed(x, x, x, budget=1e-6).findings}


def test_given_weights_have_no_values_and_everything_is_written_out(tmp_path):
    rows = np.random.default_rng(0).dirichlet(np.ones(8), (1, 2, 8))
    found = aatc.analyze_weights(rows, passes="quantum")
    assert {f.item for f in found.findings} == ITEMS - {"value_entropy"}
    rho = np.sqrt(rows[0, 1]).T @ np.sqrt(rows[0, 1]) / 8
    second = found[found.captured[0].name, "query_key_renyi_2", 1]
    assert second.value == pytest.approx(-np.log(np.trace(rho @ rho)), abs=1e-12)
    for f in found.findings:
        assert f.result.verify() <= f.result.tolerance and item_of(f.item).says
    found.save(tmp_path / "found.npz")
    read = aatc.analysis.load_findings(tmp_path / "found.npz")
    for one, other in zip(found.findings, read, strict=True):
        assert one.item == other.item and np.array_equal(one.result.value, other.result.value)
    found.html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "key bloch vector" in page and "radians" in page
