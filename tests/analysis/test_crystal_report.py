"""What a report says of heads as crystals: masks, biases, patterns that repeat, and heads that do not."""

import numpy as np
import pytest
import torch

import aatc
from aatc.analysis.items import item_of
from aatc.passes.analysis.base import Study
from aatc.passes.analysis.crystal.crystal_pass import AnalyzeCrystal
from aatc.passes.analysis.result import Result, Undecided

HEAD = {"lattice", "toeplitz_share", "symbol_winding", "sound_speed"}


def analysed(n, d=16, passes=("crystal",), **kind):
    torch._dynamo.reset()
    q, k, v = torch.randn(3, 1, 2, n, d, generator=torch.Generator().manual_seed(0))
    return aatc.analyze(
        lambda q, k, v: aatc.attend(q, k, v, metric=aatc.metrics.DotProduct(), **kind), (q, k, v), passes
    )


def test_masks_and_biases_have_their_translations_and_random_heads_none():
    found = analysed(40, mask=aatc.masks.causal(), bias=aatc.biases.ALiBi(2))
    for head in range(2):
        by = {f.item: f.result for f in found.select(head=head)}
        assert set(by) == {*HEAD, "mask_translations", "bias_translations"}
        for item in ("mask_translations", "bias_translations"):
            assert by[item].proof_level == "P0" and by[item].value.vectors.tolist() == [[1, 1]]
        assert by["lattice"].value.rank == 0
        for item, result in by.items():
            assert item_of(item).says and (isinstance(result, Undecided) or result.verify() <= result.tolerance)
    a = found.captured[0].whole(0)
    means = [np.diagonal(a, r).mean() for r in range(-39, 40)]
    assert by["toeplitz_share"].value < 1
    share = sum((40 - abs(r)) * w * w for r, w in zip(range(-39, 40), means)) / (a**2).sum()
    assert found["attend0", "toeplitz_share", 0].value == pytest.approx(share, abs=1e-12)
    assert "row (1, 1)" in str(found)


def test_given_weights_that_repeat_have_their_group_and_everything_is_written_out(tmp_path):
    cell = np.array([[4.0, 1.0, 1.0], [1.0, 4.0, 1.0], [1.0, 1.0, 4.0]])
    weights = np.tile(cell, (4, 4)) / 24
    previous = 0.9 * np.eye(12, k=-1) + 0.1 * np.eye(12)
    previous[0, 0] = 1
    found = aatc.analyze_weights(np.stack([weights, previous]), "crystal")
    name = found.captured[0].name
    assert found[name, "wallpaper_group", 0].value.name == "cmm" and found[name, "lattice", 0].value.rank == 2
    assert found[name, "symbol_winding", 1].value == -1
    for f in found.findings:
        assert item_of(f.item).says
        assert not isinstance(f.result, Result) or f.result.verify() <= f.result.tolerance
    found.save(tmp_path / "found.npz")
    read = aatc.analysis.load_findings(tmp_path / "found.npz")
    assert [f.item for f in read] == [f.item for f in found.findings]
    found.html(tmp_path / "page.html")
    assert "toeplitz share" in (tmp_path / "page.html").read_text("utf-8")


def test_long_patterns_are_pooled_narrow_ones_are_left_and_a_budget_refuses():
    found = analysed(64, passes=[AnalyzeCrystal(states=16)])
    share = found["attend0", "toeplitz_share"]
    assert share.assumptions == ("tiles of 4 tokens taken as tokens",) and share.verify() <= share.tolerance
    assert isinstance(analysed(20, d=4)["attend0", "lattice"], Undecided)
    seen = found.captured[0]
    whole, pooled = (AnalyzeCrystal(states=n).estimate_pattern(seen, Study()).seconds for n in (64, 16))
    assert pooled < whole
    keep = torch.ones(20, 20, dtype=torch.bool)
    keep[3] = False
    assert isinstance(analysed(20, mask=aatc.masks.dense(keep))["attend0", "lattice"], Undecided)
