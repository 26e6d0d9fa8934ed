"""Weights that something else made: any array, any dtype, whatever holds them."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import aatc
from aatc import analysis
from aatc.passes.analysis.given_weights import GivenWeights, given_weights
from aatc.passes.analysis.stochastic import PatternError, row_stochastic


def causal(b: int = 2, h: int = 3, n: int = 9, seed: int = 0) -> torch.Tensor:
    scores = 2 * torch.randn(b, h, n, n, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn")


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_every_dtype_are_their_numbers_divided_by_their_sum(dtype):
    weights = causal(h=1, n=200).to(getattr(torch, dtype))
    (seen,) = given_weights(weights)
    own = weights[0, 0].double().numpy()
    np.testing.assert_allclose(seen.whole(0), own / own.sum(1, keepdims=True), rtol=1e-14)
    np.testing.assert_allclose(seen.whole(0).sum(1), 1.0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES[1:4])
def test_half_precision_goes_into_the_functions_without_an_option(dtype):
    weights = causal(1, 1, 64).to(getattr(torch, dtype)).requires_grad_()
    rows = row_stochastic(weights)
    np.testing.assert_allclose(rows.sum(-1), 1.0, atol=1e-12)
    entropy = analysis.information.row_entropies(weights)
    want = torch.special.entr(weights.detach().double() / weights.detach().double().sum(-1, keepdim=True)).sum(-1)
    np.testing.assert_allclose(entropy, want, atol=1e-12)
    assert not np.signbit(entropy).any()  # a one-hot row has the entropy 0, not −0


def test_weights_of_minus_zero_are_zero():
    rows = torch.tensor([[1.0, -0.0], [0.5, 0.5]])
    assert not np.signbit(row_stochastic(rows)).any() and not np.signbit(given_weights(rows)[0].whole(0)).any()


@pytest.mark.parametrize("bad", ["negative", "sum", "nan"])
def test_a_row_that_is_no_distribution_is_named(bad):
    weights = causal()
    if bad == "negative":
        weights[1, 2, 4, 0] -= 1.5
        weights[1, 2, 4, 1] += 1.5
    else:
        weights[1, 2, 4] = float("nan") if bad == "nan" else 0.3
    assert given_weights(weights)  # of batch element 0
    with pytest.raises(PatternError, match="row 4 of head 2, batch element 1"):
        given_weights(weights, batch=1)


def test_sums_are_held_to_the_precision_of_their_dtype():
    weights = causal(1, 1) * 1.004
    for dtype, accepted in (("float32", False), ("float16", False), ("bfloat16", True)):
        if accepted:
            assert given_weights(weights.to(getattr(torch, dtype)))
        else:
            with pytest.raises(PatternError, match="sum"):
                given_weights(weights.to(getattr(torch, dtype)))


def shapes_of(weights, **options) -> dict[str, tuple[int, ...]]:
    return {c.name: c.sizes for c in given_weights(weights, **options)}


def test_arrays_sequences_mappings_and_outputs_are_taken():
    w, one = causal(), (1, 3, 9, 9)
    assert shapes_of(w[0, 0]) == {"attend0": (1, 1, 9, 9)}
    assert shapes_of(w[0].numpy()) == {"attend0": one}
    assert shapes_of(w, batch=(1, 0)) == {"attend0": (2, 3, 9, 9)}
    assert shapes_of(torch.stack([w, w])) == {"attend0": one, "attend1": one}
    assert shapes_of((w, w, w)) == {f"attend{i}": one for i in range(3)}
    assert shapes_of([w, None, w]) == {"attend0": one, "attend2": one}
    assert shapes_of({"first": w, "second": w.numpy()}) == {"first": one, "second": one}
    assert shapes_of(w[0, 0].tolist()) == {"attend0": (1, 1, 9, 9)}
    assert shapes_of(SimpleNamespace(attentions=(w, w), logits=0)) == {"attend0": one, "attend1": one}
    both = SimpleNamespace(encoder_attentions=(w,), decoder_attentions=(w,), cross_attentions=(w[..., :4, :],))
    assert list(shapes_of(both)) == ["encoder.0", "decoder.0", "cross.0"]
    assert shapes_of(((w[:, :, :1], w[:, :, :1]), (w, w))) == {
        "0.0": (1, 3, 1, 9), "0.1": (1, 3, 1, 9), "1.0": one, "1.1": one,
    }  # fmt: skip


def test_a_saved_file_is_taken(tmp_path):
    w = causal()
    np.savez(tmp_path / "weights.npz", layer0=w[0].numpy(), layer1=w[1].numpy())
    with np.load(tmp_path / "weights.npz") as kept:
        assert shapes_of(kept) == {"layer0": (1, 3, 9, 9), "layer1": (1, 3, 9, 9)}


def test_arrays_in_any_order_of_memory_and_without_write_access():
    w = causal()[0].numpy()
    readonly = np.asfortranarray(w)[:, ::-1][:, ::-1]
    readonly.flags.writeable = False
    np.testing.assert_allclose(given_weights(readonly)[0].whole(1), w[1] / w[1].sum(1, keepdims=True), atol=1e-7)


@dataclass
class Nothing:
    logits: int = 0


@pytest.mark.parametrize(
    "weights", [None, (None, None), Nothing(), "weights", np.ones(3), np.ones((0, 3)), np.ones((2, 2), bool),
                [[1.0], [0.5, 0.5]], np.eye(2) * 1j, object()],
)  # fmt: skip
def test_what_holds_no_weights_is_refused(weights):
    with pytest.raises(analysis.AnalysisError):
        given_weights(weights)


def test_batch_elements_and_tokens_must_fit():
    with pytest.raises(analysis.AnalysisError, match="2 elements, element 2 was asked for"):
        given_weights(causal(), batch=2)
    with pytest.raises(analysis.AnalysisError, match="give integers"):
        given_weights(causal(), tokens=np.ones(9))
    ids = torch.arange(18).reshape(2, 9)
    assert given_weights(causal(), batch=1, tokens=ids)[0].tokens.tolist() == [list(range(9, 18))]
    assert given_weights(causal(), batch=(0, 1), tokens=ids[0].numpy())[0].tokens.shape == (2, 9)
    with pytest.raises(analysis.AnalysisError, match="5 tokens were given"):
        given_weights(causal(), tokens=ids[:, :5])


def test_the_analysis_is_that_of_the_matrices_and_no_model_is_run():
    w = causal()
    found = aatc.analyze_weights((w.bfloat16(), w.numpy()), ("information", "heads"), batch=(0, 1))
    assert found.modules == () and found.output is None
    assert {(f.subject, f.batch, f.head) for f in found.findings if f.head >= 0} == {
        (s, b, h) for s in ("attend0", "attend1") for b in (0, 1) for h in range(3)
    }
    (entropy,) = found.select(item="mean_row_entropy", attention="attend1", head=2, batch=1)
    assert entropy.result.value == pytest.approx(float(torch.special.entr(w[1, 2].double()).sum(-1).mean()), abs=1e-6)


def test_queries_that_see_no_key_are_left_out_and_said_to_be():
    w = causal(1, 1)
    w[0, 0, 3] = 0
    found = aatc.analyze_weights(w, "heads")
    rest = w[0, 0, [i for i in range(9) if i != 3]].double()
    entropies = torch.special.entr(rest / rest.sum(-1, keepdim=True)).sum(-1)
    result = found["attend0", "effective_context"]
    assert result.value == pytest.approx(float(entropies.exp().mean()), abs=1e-6)
    assert "1 queries without a key left out" in result.assumptions


def test_the_key_of_results_knows_weights_tokens_and_place():
    w = causal()
    one, two = GivenWeights("a", w[:1]), GivenWeights("b", w[:1].clone())
    assert one.key == two.key
    assert one.key != GivenWeights("a", w[:1], tokens=torch.arange(9)[None]).key
    assert one.key != GivenWeights("a", w[1:]).key
