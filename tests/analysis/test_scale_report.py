"""What a report says of heads at all scales: values of the captured weights, pooled, masked, of two lengths."""

import numpy as np
import pytest
import torch

import aatc
from aatc.analysis.items import item_of
from aatc.passes.analysis.base import Study
from aatc.passes.analysis.result import Undecided
from aatc.passes.analysis.scale.scale_pass import AnalyzeScale

BLOCKS = {"block_escape", "half_escape_block", "pooling_defect", "escape_exponent", "escape_exponent_interval"}
BOXES = {"box_dimension", "box_dimension_interval"}


def analysed(q, k, passes=("scale",), **options):
    torch._dynamo.reset()
    kind = {n: options.pop(n) for n in ("mask",) if n in options}
    return aatc.analyze(
        lambda q, k: aatc.attend(q, k, k, metric=aatc.metrics.DotProduct(), **kind), (q, k), passes, **options
    )


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_values_are_those_of_the_weights_by_hand():
    q, k = drawn(2, 2, 21, 6), drawn(2, 1, 21, 6, seed=1)  # key heads serve two query heads each
    found = analysed(q, k, batch=(0, 1))
    token = np.arange(21)
    for batch in range(2):
        for head in range(2):
            by = {f.item: f.result for f in found.select(head=head, batch=batch)}
            assert set(by) == BLOCKS | BOXES
            a = torch.softmax(q[batch, head].double() @ k[batch, head // 2].double().T / 6**0.5, -1).numpy()
            shares = [a[(token[:, None] // b) != (token // b)].sum() / 21 for b in (1, 2, 4, 8, 16)]
            np.testing.assert_allclose(by["block_escape"].value, shares, atol=1e-6)
            assert by["half_escape_block"].value == next(b for b, s in zip((1, 2, 4, 8, 16), shares) if s <= 0.5)
            onto = np.add.reduceat(a, np.arange(0, 21, 2), axis=1)
            pooled = np.stack([onto[2 * b : 2 * b + 2].mean(0) for b in range(11)])
            expected = np.mean(np.abs(onto - pooled[token // 2]).sum(1)) / 2
            assert by["pooling_defect"].value == pytest.approx(expected, abs=1e-6)
            even = [np.mean(token[:, None] // b != token // b) for b in (1, 2, 4)]
            slope = np.polyfit(np.log([1, 2, 4]), np.log(np.divide(shares[:3], even)), 1)[0]
            assert by["escape_exponent"].value == pytest.approx(-slope, abs=1e-5)
            heavy = np.argwhere(a > 1 / 21)
            counts = [len({tuple(c) for c in heavy // b}) for b in (1, 2, 4, 8)]
            slope = np.polyfit(np.log([1, 2, 4, 8]), np.log(counts), 1)[0]
            assert by["box_dimension"].value == pytest.approx(-slope, abs=1e-6)
            for item in ("box_dimension", "escape_exponent"):
                low, high = by[f"{item}_interval"].value
                assert low <= by[item].value <= high and by[item].proof_level == "P3"
            for result in by.values():
                assert result.verify() <= result.tolerance


def test_long_patterns_are_pooled_and_say_so():
    x = drawn(1, 1, 64, 4)
    found = analysed(x, x, [AnalyzeScale(states=16)])["attend0", "block_escape"]
    assert found.assumptions == ("tiles of 4 tokens taken as tokens",) and found.value.shape == (4,)
    assert found.verify() <= found.tolerance
    seen = analysed(x, x, ()).captured[0]
    whole, pooled = (AnalyzeScale(states=n).estimate_pattern(seen, Study()).seconds for n in (64, 16))
    assert pooled < whole


def test_heads_that_have_no_scales_are_undecided():
    x = drawn(1, 1, 16, 4)
    keep = torch.ones(16, 16, dtype=torch.bool)
    keep[2] = False
    assert isinstance(analysed(x, x, mask=aatc.masks.dense(keep))["attend0", "block_escape"], Undecided)
    own = analysed(x, x, mask=aatc.masks.dense(torch.eye(16, dtype=torch.bool)))
    assert (
        own["attend0", "half_escape_block"].value == 1 and own["attend0", "pooling_defect"].value == 0
    )  # pairs are lumpable
    assert isinstance(own["attend0", "escape_exponent"], Undecided)
    assert own["attend0", "box_dimension"].value == pytest.approx(1, abs=1e-12)
    even = analysed(x * 0, x)
    assert even["attend0", "pooling_defect"].value == pytest.approx(0, abs=1e-12)
    small = analysed(x[:, :, :5], x[:, :, :5])
    assert isinstance(small["attend0", "box_dimension"], Undecided)
    assert "escape_exponent" not in {f.item for f in small.findings}
    cross = analysed(drawn(1, 1, 9, 4), x)
    assert {f.item for f in cross.findings} == BOXES
    assert {f.item for f in analysed(drawn(1, 1, 1, 4), x[:, :, :1]).findings} == BLOCKS - {
        "escape_exponent", "escape_exponent_interval"
    } | {"box_dimension"}  # fmt: skip


def test_a_budget_refuses():
    x = drawn(1, 1, 16, 4)
    assert "refused" in {f.item for f in analysed(x, x, budget=1e-6).findings}


def test_everything_is_written_out(tmp_path):
    rows = np.random.default_rng(0).dirichlet(np.ones(16), (1, 2, 16))
    found = aatc.analyze_weights(rows, passes="scale")
    assert {f.item for f in found.findings} == BLOCKS | BOXES
    for f in found.findings:
        assert f.result.verify() <= f.result.tolerance and item_of(f.item).says
    found.save(tmp_path / "found.npz")
    read = aatc.analysis.load_findings(tmp_path / "found.npz")
    for one, other in zip(found.findings, read, strict=True):
        assert one.item == other.item and np.array_equal(one.result.value, other.result.value)
    found.html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "pooling defect" in page and "half escape block" in page and "escape exponent" in str(found)


def test_even_heads_stand_at_the_edge_and_are_told_the_same_every_time():
    """Equal weights leave half of themselves at half of the tokens, and none is above the mean but for rounding."""
    for n in (16, 24, 48):
        scores = torch.rand(1, 1, n, n, generator=torch.Generator().manual_seed(n)) * 1e-7
        found = aatc.analyze_weights(torch.softmax(scores, -1), passes="scale")
        by = {f.item: f.result for f in found.findings}
        assert by["half_escape_block"].value == {16: 8, 24: 16, 48: 32}[n]
        assert isinstance(by["box_dimension"], Undecided)
        assert by["escape_exponent"].value == pytest.approx(0, abs=1e-4)
        assert all(r.verify() <= r.tolerance for r in by.values() if not isinstance(r, Undecided))
