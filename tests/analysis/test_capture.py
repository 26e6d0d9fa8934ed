"""Captured attention against the reference formula, and programs that show their attentions unchanged otherwise."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import aatc
from aatc import backends
from aatc.ir import reference
from aatc.ir.observe import observing
from aatc.passes import Pipeline, Placed
from aatc.passes.analysis import base
from aatc.passes.analysis.base import AnalysisPass, Study
from aatc.passes.analysis.capture import CapturedAttention, Recorder
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost, Result, Undecided, Verdict, verify
from aatc.passes.capture_attention import CaptureAttention

B, H, HK, N, M, D = 3, 4, 2, 37, 37, 8


class Layer(torch.nn.Module):
    """Two attentions: hyperbolic with everything, and a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = torch.nn.Parameter(torch.rand(H) + 0.5)
        self.table = torch.nn.Parameter(torch.randn(H, 11))

    def forward(self, q, k, v):
        o = aatc.attend(
            q, k, v,
            metric=aatc.metrics.LorentzDistance(beta=self.beta, lift=True),
            bias=aatc.biases.RelativeTable(self.table), mask=aatc.masks.causal(),
        )  # fmt: skip
        return aatc.attend(o, o, o, metric=aatc.metrics.Euclidean())


def pipeline() -> Pipeline:
    return backends.pipeline(extra=[Placed(CaptureAttention(), after="canonicalize")])


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(B, h, N, D, generator=generator) for h in (H, HK, HK))


@pytest.fixture(scope="module")
def seen() -> tuple[list[CapturedAttention], torch.Tensor, Layer]:
    model = Layer()
    compiled = aatc.compile(model, passes=pipeline(), fallback=False)
    recorder = Recorder((2, 0))
    with torch.no_grad(), observing(recorder):
        out = compiled(*inputs())
    return recorder.captured, out, model


def test_observing_leaves_the_output_as_it_is(seen):
    captured, out, model = seen
    assert [c.name for c in captured] == ["attend0", "attend1"]
    torch.testing.assert_close(out, model(*inputs()), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_weights_of_every_head_are_those_of_the_reference(seen, which):
    c = seen[0][which]
    want, _ = reference.weights(c.attention, c.tensors)
    for batch in range(2):
        for head in range(H):
            np.testing.assert_allclose(c.whole(head, batch), want[batch, head].detach().double(), atol=2e-6)
            rows = want[batch, head, 5:9].detach().double()
            torch.testing.assert_close(c.weights(head, 5, 9, batch), rows, atol=2e-6, rtol=1e-5)


def test_kept_batch_elements_are_those_asked_for(seen):
    q = inputs()[0]
    torch.testing.assert_close(seen[0][0].tensors["q"], q[[2, 0]])


def test_blocks_and_rows_agree_with_the_whole(seen):
    c = seen[0][0]
    whole = c.whole(1)
    blocks = c.block_means(1, 8)
    padded = np.zeros((40, 40))
    padded[:N, :M] = whole
    sums = padded.reshape(5, 8, 5, 8).sum((1, 3))
    np.testing.assert_allclose(blocks, sums / np.array([8, 8, 8, 8, 5])[:, None], atol=1e-12)
    np.testing.assert_allclose(blocks.sum(1), 1, atol=1e-12)
    rows = c.sampled_rows(1, (0, 36, 7))
    np.testing.assert_allclose(rows.array, whole[[0, 36, 7]], atol=1e-7)


def test_memory_decides_what_is_kept(seen):
    c = seen[0][0]
    assert c.pattern(0).kind == "whole"
    small = c.pattern(0, memory=8 * 10 * 10)
    assert (small.kind, small.block, small.array.shape) == ("blocks", 4, (10, 10))


def test_stripes_cover_all_rows_within_their_size(seen, monkeypatch):
    import aatc.passes.analysis.attention_rows as attention_rows

    c = seen[0][0]
    whole = c.whole(0)
    monkeypatch.setattr(attention_rows, "STRIPE", 8 * M * 5)
    pieces = list(c.stripes(0))
    assert [s for s, _ in pieces] == list(range(0, N, 5)) and all(len(w) <= 5 for _, w in pieces)
    np.testing.assert_allclose(torch.cat([w for _, w in pieces]), whole, atol=1e-14)
    np.testing.assert_allclose(c.block_means(0, 7), by_tiles(whole, 7), atol=1e-14)


def by_tiles(whole: np.ndarray, block: int) -> np.ndarray:
    side = -(-len(whole) // block)
    cuts = [slice(block * t, block * (t + 1)) for t in range(side)]
    return np.array([[whole[i, j].sum(1).mean() for j in cuts] for i in cuts])


def test_pairs_of_vectors_are_worked_through_in_shorter_stripes(monkeypatch):
    import aatc.passes.analysis.attention_rows as attention_rows

    @aatc.metric
    def soft_l1(q, k):
        return -torch.log1p((q - k).abs()).sum()

    recorder = Recorder()
    with torch.no_grad(), observing(recorder):
        aatc.compile(lambda q: aatc.attend(q, q, q, metric=soft_l1), passes=pipeline())(inputs()[0])
    c = recorder.captured[0]
    monkeypatch.setattr(attention_rows, "STRIPE", 8 * N * D * 3)
    assert [len(w) for _, w in c.stripes(0)][:2] == [3, 3]
    q = inputs()[0][0, 0].double()
    scores = -torch.log1p((q[:, None] - q).abs()).sum(-1)
    np.testing.assert_allclose(c.whole(0), scores.softmax(-1), atol=1e-12)


def test_score_splits_into_metric_and_bias(seen):
    c = seen[0][0]
    metric, bias = c.parts
    together = c.evaluate(metric, 3) + c.evaluate(bias, 3)
    torch.testing.assert_close(together, c.evaluate(c.attention.score, 3), atol=1e-5, rtol=1e-5)
    assert {p.name for p in bias.params} & {"q", "k"} == set()
    table = seen[2].table.detach()
    offset = (torch.arange(M)[None] - torch.arange(N)[:, None]).clamp(-5, 5) + 5
    torch.testing.assert_close(c.evaluate(bias, 3).expand(N, M), table[3][offset].double())
    assert (c.evaluate(c.attention.mask, 3) == torch.ones(N, M).tril().bool()).all()


def test_the_key_follows_content(seen):
    a, b = seen[0]
    assert a.key != b.key
    twin = CapturedAttention("other", a.op, {n: t.clone() for n, t in a.tensors.items()}, a.batch)
    assert twin.key == a.key
    moved = {**a.tensors, "q": a.tensors["q"] + 1e-3}
    assert CapturedAttention("other", a.op, moved, a.batch).key != a.key


def test_wrong_heads_and_batch_elements_are_refused(seen):
    with pytest.raises(AnalysisError, match="no head 9"):
        seen[0][0].weights(9)
    with pytest.raises(AnalysisError, match="element 5 was asked for"):
        compiled = aatc.compile(Layer(), passes=pipeline(), fallback=False)
        with torch.no_grad(), observing(Recorder((5,))):
            compiled(*inputs())


def test_nothing_is_shown_without_an_observer(seen):
    compiled = aatc.compile(Layer(), passes=pipeline(), fallback=False)
    recorder = Recorder()
    with torch.no_grad():
        compiled(*inputs())
        with observing(recorder):
            pass
        compiled(*inputs())
    assert recorder.captured == []


def test_an_observed_program_reads_back_from_its_text_and_shows_itself_to_the_interpreter():
    module = aatc.export(Layer(), inputs())
    observed = Pipeline((CaptureAttention(),)).run(module).module
    assert sum(op.name == "geo.observe" for op in observed.walk()) == 2
    assert aatc.parse(str(observed)) == observed
    recorder = Recorder()
    model = Layer()
    with torch.no_grad(), observing(recorder):
        aatc.run(observed, *model.parameters(), *inputs())
    want, _ = reference.weights(recorder.captured[0].attention, recorder.captured[0].tensors)
    np.testing.assert_allclose(recorder.captured[0].whole(0), want[0, 0].detach().double(), atol=2e-6)


def observed(function, *args: torch.Tensor, batch: tuple[int, ...] = (0,)) -> list[CapturedAttention]:
    recorder = Recorder(batch)
    with torch.no_grad(), observing(recorder):
        aatc.compile(function, passes=pipeline(), fallback=False)(*args)
    return recorder.captured


def test_a_seed_of_dropout_has_a_key_and_changes_no_weights():
    def thinned(q, seed):
        return aatc.attend(q, q, q, metric=aatc.metrics.DotProduct(), dropout=0.5, seed=seed)

    q = inputs()[0]
    one, two = (observed(thinned, q, torch.tensor(seed))[0] for seed in (1, 2))
    assert one.key != two.key
    want = (q[0, 0].double() @ q[0, 0].double().T / D**0.5).softmax(-1)
    np.testing.assert_allclose(one.whole(0), want, atol=1e-12)


def test_what_the_model_writes_afterwards_changes_nothing():
    def overwrites(q, k, bias):
        out = aatc.attend(q, k, k, metric=aatc.metrics.DotProduct(), bias=bias)
        for tensor in (q, k, bias):
            tensor.zero_()
        return out

    q, k = torch.randn(1, 2, 6, D), torch.randn(1, 2, 6, D)
    bias = torch.randn(1, 2, 6, 6)
    want = (q[0, 1].double() @ k[0, 1].double().T / D**0.5 + bias[0, 1].double()).softmax(-1)
    np.testing.assert_allclose(observed(overwrites, q, k, bias)[0].whole(1), want, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused_with_their_place(bad):
    q = torch.ones(1, 1, 5, D)
    q[0, 0, 3] = bad
    c = observed(lambda q: aatc.attend(q, torch.ones_like(q), q, metric=aatc.metrics.DotProduct()), q)[0]
    with pytest.raises(AnalysisError, match=f"the score {bad} of query 3 and key 0, head 0"):
        c.whole(0)


def test_a_row_shut_by_an_infinite_bias_has_no_weight():
    bias = torch.zeros(1, 1, 5, 5)
    bias[..., 2, :] = -torch.inf
    q = torch.randn(1, 1, 5, D)
    c = observed(lambda q, b: aatc.attend(q, q, q, metric=aatc.metrics.DotProduct(), bias=b), q, bias)[0]
    np.testing.assert_allclose(c.whole(0).sum(1), [1, 1, 0, 1, 1], atol=1e-12)


@pytest.mark.parametrize("batch", [(), (-1,), (0, -2)])
def test_batch_elements_are_positions(batch):
    with pytest.raises(AnalysisError, match="names no batch elements"):
        Recorder(batch)


def test_room_for_less_than_one_number_is_refused(seen):
    c = seen[0][0]
    with pytest.raises(AnalysisError, match="memory=7 bytes hold no pattern"):
        c.pattern(0, memory=7)
    assert c.pattern(0, memory=8).array.shape == (1, 1)
    with pytest.raises(AnalysisError, match="pooled to 0 tiles"):
        c.coarse(0, nodes=0)


# --- the frame of analytical passes ------------------------------------------------------------------------
@dataclass(frozen=True)
class RowEntropy(AnalysisPass):
    """Counts how often it is asked."""

    name: ClassVar[str] = "analyze-row-entropy"
    family: ClassVar[str] = "test"
    calls: ClassVar[list[str]] = []
    scale: float = 1.0

    def estimate_cost(self, n: int, dim: int) -> Cost:
        return Cost(1e-9 * n * n, 8 * n * n)

    def of_pattern(self, seen, head, batch, study):
        self.calls.append(f"{seen.name}/{head}")
        p = seen.pattern(head, batch).array
        return {"entropy": Result(self.scale * -(p * np.log(np.maximum(p, 1e-300))).sum(1).mean(), "P2", 1e-12)}

    def of_module(self, module):
        return {"attentions": Result(sum(op.name == "geo.observe" for op in module.walk()), "P0")}


def study_with(p: AnalysisPass, captured, **options):
    module = Pipeline((CaptureAttention(),)).run(aatc.export(Layer(), inputs())).module
    return Pipeline((p,)).run(module, study=Study(captured, **options)).module


def test_results_are_attached_in_order_with_progress_and_kept_by_content(seen):
    base.CACHE.clear()
    RowEntropy.calls.clear()
    told = []
    study = study_with(RowEntropy(), seen[0], progress=lambda *a: told.append(a))
    found = study.findings
    assert [f.item for f in found[:2]] == ["attentions", "entropy"] and found[0].result.value == 2
    assert [(f.subject, f.batch, f.head) for f in found[1:6]] == [
        ("attend0", 2, 0), ("attend0", 2, 1), ("attend0", 2, 2), ("attend0", 2, 3), ("attend0", 0, 0),
    ]  # fmt: skip
    assert told[0] == ("test", 0, 16) and told[-1] == ("test", 16, 16)
    again = study_with(RowEntropy(), seen[0]).findings
    assert len(RowEntropy.calls) == 16 and again == found
    other = study_with(RowEntropy(scale=2.0), seen[0]).findings
    assert len(RowEntropy.calls) == 32 and other[1].result.value == pytest.approx(2 * found[1].result.value)


def test_what_is_above_the_budget_is_refused_with_its_estimate(seen):
    found = study_with(RowEntropy(), seen[0], budget=Cost(bytes=100)).findings
    refusals = [f.result for f in found if f.item == "refused"]
    assert len(refusals) == 16 and all(isinstance(r, BudgetError) for r in refusals)
    assert refusals[0].estimate.bytes == 8 * N * N and "budget" in str(refusals[0])


def test_passes_of_one_name_do_not_share_results(seen):
    def made(level: float) -> AnalysisPass:
        @dataclass(frozen=True)
        class Same(AnalysisPass):
            name: ClassVar[str] = "analyze-same"
            family: ClassVar[str] = "same"

            def estimate_cost(self, n: int, dim: int) -> Cost:
                return Cost(0, 0)

            def of_pattern(self, seen, head, batch, study):
                return {"level": Result(level)}

        return Same()

    for level in (1.0, 2.0):
        assert {f.result.value for f in study_with(made(level), seen[0]).findings} == {level}


# --- results -----------------------------------------------------------------------------------------------
def test_results_say_their_level_and_undecided_has_no_truth_value():
    with pytest.raises(AnalysisError, match="P7"):
        Result(1, "P7")
    with pytest.raises(AnalysisError, match="undecided within 4096 cosets"):
        bool(Undecided("4096 cosets"))
    assert not Verdict(False, "P2", 1e-6, 3e-3, statement="the metric is positive")
    text = str(Verdict(True, "P2", 1e-6, 3e-9, assumptions=("n ≤ 3",), statement="the metric is positive"))
    assert text == "the metric is positive: holds [P2, residual 3.00e-09, tolerance 1e-06] given n ≤ 3"
    with pytest.raises(AnalysisError, match="is no witness"):
        verify(object())
