"""What a report says of patterns as chains: errors that hold, witnesses of the value they stand beside, no matrices."""

import dataclasses
import gc
import types

import numpy as np
import pytest
import torch

import aatc
from aatc.passes.analysis import base
from aatc.passes.analysis.capture import CapturedAttention
from aatc.passes.analysis.information.ergodic import ergodic_analysis
from aatc.passes.analysis.information.verify_chain import DoeblinWitness, StationaryWitness
from aatc.passes.analysis.information.verify_information import FigureWitness
from aatc.passes.analysis.pattern_source import PatternSource
from aatc.passes.analysis.result import AnalysisError, Result, Undecided, mismatch, verify

FIGURES = ("entropy_rate", "information_flow", "cross_tile_flow", "cross_tile_information")


class Heads(torch.nn.Module):
    def __init__(self, heads=2, **kind):
        super().__init__()
        self.heads, self.kind = heads, kind
        self.qkv = torch.nn.Linear(16, 3 * 8 * heads)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, 8)).permute(2, 0, 3, 1, 4)
        return aatc.attend(q, k, v, metric=aatc.metrics.DotProduct(), **self.kind)


def analysed(n, heads=2, seed=0, options=None, **kind):
    torch._dynamo.reset()
    torch.manual_seed(seed)
    return aatc.analyze(Heads(heads, **kind), torch.randn(1, n, 16), ("information",), **(options or {}))


@pytest.mark.parametrize("n, options", [(70, {}), (90, {"memory": 8 * 45 * 45}), (530, {})])
def test_every_witness_holds_the_value_it_stands_beside_and_is_met_within_the_tolerance(n, options):
    one = analysed(n, 1, options=options)
    witnessed = [f for f in one.findings if isinstance(f.result, Result) and f.result.witness is not None]
    assert len(witnessed) == 14
    for f in witnessed:
        assert mismatch(f.result.witness, f.result.value + 1) > f.result.tolerance, f.item
        assert f.result.residual <= f.result.tolerance and f.result.verify() <= f.result.tolerance, f.item
        if f.item in FIGURES:
            assert f.result.witness.figure == f.item
            assert f.result.witness.tile == (32 if options else 64)


def test_a_report_of_a_causal_head_holds_what_its_weights_say():
    one = analysed(60, mask=aatc.masks.causal())
    for head in range(2):
        weights, gap = one.captured[0].whole(head), one["attend0", "spectral_gap", head]
        assert gap.proof_level == "P2" and gap.verify() <= gap.tolerance < 1e-12
        assert gap.value == pytest.approx(1 - np.diagonal(weights)[1:].max(), abs=1e-14)


def test_figures_that_are_wrong_are_found_out():
    rng = np.random.default_rng(5)
    pattern = rng.dirichlet(np.ones(9), 9)
    law = ergodic_analysis(pattern).value.stationary
    pi = law[0]
    joint = pi[:, None] * pattern
    far = np.arange(9)[:, None] // 4 != np.arange(9) // 4
    information = joint * np.log(pattern / pi)
    values = (-(joint * np.log(pattern)).sum(), information.sum(), joint[far].sum(), information[far].sum())
    for figure, value in zip(FIGURES, values, strict=True):
        good = FigureWitness(pattern, pi, figure, float(value), 4)
        assert verify(good) <= 1e-14
        assert verify(dataclasses.replace(good, value=good.value + 1e-6)) == pytest.approx(1e-6, rel=1e-6)
        assert verify(dataclasses.replace(good, stationary=np.full(9, 1 / 9))) > 1e-3
        if figure.startswith("cross_tile"):
            assert verify(dataclasses.replace(good, tile=3)) > 1e-3
        assert verify(dataclasses.replace(good, figure="entropy")) == np.inf
    bound = 1 - pattern.min(0).sum()
    assert verify(DoeblinWitness(pattern, bound)) <= 1e-15
    assert verify(DoeblinWitness(pattern, bound - 1e-3)) == pytest.approx(1e-3)
    assert verify(StationaryWitness(pattern, np.stack([pi, np.roll(pi, 1)]))) > 1e-3


@pytest.mark.parametrize("n, exact", [(257, True), (512, True), (513, False)])
def test_stability_is_named_a_bound_where_it_is_one(n, exact):
    one = analysed(n, 1)
    names = {f.item for f in one.findings if f.item.startswith(("stability", "dobrushin"))}
    assert names == ({"stability", "dobrushin"} if exact else {"stability_bound", "dobrushin_bound"})
    rows = one.captured[0].whole(0)
    first = np.abs(rows[:1] - rows).sum(1).max() / 2
    if exact:
        assert one["attend0", "stability"].value == 1 - one["attend0", "dobrushin"].value <= 1 - first + 1e-12
    else:
        assert one["attend0", "stability_bound"].value <= 1 - first


def test_a_gap_that_is_not_found_out_is_not_told():
    """Sharp heads on rounded tokens: nearly reversible, with eigenvalues crowded below 1."""
    x = torch.randn(1, 1, 450, 16, generator=torch.Generator().manual_seed(3))
    torch._dynamo.reset()
    one = aatc.analyze(
        lambda x: aatc.attend(x * 2.8, x, x, metric=aatc.metrics.DotProduct()), x, ("information",)
    )  # fmt: skip
    assert isinstance(one["attend0", "spectral_gap"], Undecided)
    assert one["attend0", "stationary"].verify() <= one["attend0", "stationary"].tolerance


def large_tables(start, limit):
    """Arrays and tensors of floats with ``limit`` numbers or more that ``start`` leads to, classes and code apart."""
    seen, left, found = set(), [start], []
    apart = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, apart):
            continue
        seen.add(id(one))
        if isinstance(one, np.ndarray):
            left += [] if one.base is None else [one.base]
            found += [one] if one.dtype.kind == "f" and one.size >= limit else []
        elif isinstance(one, torch.Tensor):
            found += [one] if one.is_floating_point() and one.untyped_storage().nbytes() >= 4 * limit else []
        else:
            left += gc.get_referents(one)
    return found


@pytest.mark.parametrize("n", [300, pytest.param(2048, marks=pytest.mark.slow)])
def test_a_report_and_the_cache_keep_no_matrix(n):
    base.CACHE.clear()
    one = analysed(n, 3)
    assert {"spectral_gap", "entropy_rate", "stationary"} <= {f.item for f in one.findings}
    assert not large_tables(one.findings, n * n) and not large_tables(list(base.CACHE.kept.values()), n * n)
    assert large_tables(
        [(Result(0.0, witness=FigureWitness(np.ones((n, n)), np.ones(n), "entropy_rate", 0.0)),)], n * n
    )


def test_a_source_is_the_pattern_of_its_head_with_rows_that_sum_to_one():
    seen: CapturedAttention = analysed(20).captured[0]
    for head in range(2):
        rows = np.asarray(PatternSource(seen, head, 0, 1 << 20))
        np.testing.assert_allclose(rows, seen.whole(head), atol=1e-15)
        assert np.asarray(PatternSource(seen, head, 0, 8 * 5 * 5), dtype=np.float32).shape == (5, 5)


def test_a_source_whose_rows_have_gone_is_refused():
    seen = types.SimpleNamespace(
        name="attend3", pattern=lambda *_, **__: types.SimpleNamespace(array=np.diag([1.0, 0.0]))
    )
    with pytest.raises(AnalysisError, match="attend3: some queries of head 1 see no key any more"):
        np.asarray(PatternSource(seen, 1, 0, 1 << 20))


class Shifted(torch.nn.Module):
    """A head whose row i attends to i − 1 with a score of ``scale``, to the rest before it with 0."""

    def __init__(self, n, scale):
        super().__init__()
        self.n, self.scale = n, scale * n**0.5  # which the metric divides by

    def forward(self, x):
        k = torch.eye(self.n)[None, None] * x
        q = torch.roll(k, 1, -2)  # of row i the key i − 1
        return aatc.attend(self.scale * q, k, k, metric=aatc.metrics.DotProduct(), mask=aatc.masks.causal())


def shifted(n, scale, families, **options):
    torch._dynamo.reset()
    return aatc.analyze(Shifted(n, scale), torch.ones(1), families, **options)


def test_the_likeliest_path_of_a_head_that_attends_to_the_token_before_takes_every_step():
    found = shifted(64, 9.0, ("homotopy",))
    path = found["attend0", "likeliest_path", 0]
    weights = found.captured[0].whole(0)
    assert path.value == tuple(range(63, -1, -1)) and path.verify() <= path.tolerance
    probability = np.prod(weights[np.arange(1, 64), np.arange(63)])
    assert probability > 0.5 > weights[63, 0] and path.witness.length == pytest.approx(-np.log(probability))
    pooled = shifted(64, 9.0, ("homotopy",), memory=8 * 32 * 32)["attend0", "likeliest_path", 0]
    assert isinstance(pooled, Undecided)


def test_weights_that_underflow_are_an_assumption_of_the_classes_they_make():
    far, near = (shifted(8, scale, ("information",)) for scale in (2000.0, 9.0))
    assert (far.captured[0].whole(0)[2:, :1] == 0).all()
    for found, named in ((far, True), (near, False)):
        for item in ("recurrent_classes", "period", "stationary"):
            result = found["attend0", item, 0]
            assert any("below the range of float64" in a for a in result.assumptions) == named
            assert result.verify() <= result.tolerance
