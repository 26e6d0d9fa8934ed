"""Attention of ordinary PyTorch code, seen while it runs as it is, against the formula in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import aatc
from aatc import analysis
from aatc.analysis import capturing
from aatc.passes.analysis.given_weights import GivenWeights
from aatc.passes.analysis.torch_attention import TorchAttention

B, H, N, D = 2, 4, 11, 8
GRADIENTS = (torch.no_grad, torch.inference_mode, torch.enable_grad)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Q, K, V = (draw(B, H, N, D, seed=s) for s in range(3))
LOWER = torch.ones(N, N, dtype=torch.bool).tril()
CAUSAL = torch.zeros(N, N).masked_fill(~LOWER, -math.inf)
BIAS = draw(B, 1, N, N, seed=5)


def by_formula(bias: torch.Tensor | None = None, k: torch.Tensor = K) -> torch.Tensor:
    s = torch.einsum("bhid,bhjd->bhij", Q.double(), k.double()) / math.sqrt(D)
    return (s if bias is None else s + bias.double()).softmax(-1)


def by_hand(bias):
    return torch.softmax(Q @ K.transpose(-1, -2) / math.sqrt(D) + bias, -1) @ V


def in_place():
    scores = (Q @ K.transpose(-1, -2)).div_(math.sqrt(D)).masked_fill_(~LOWER, -math.inf)
    return F.dropout(scores.softmax(-1), 0.5) @ V


def einsum():
    scores = torch.einsum("bihd,bjhd->bhij", Q.transpose(1, 2), K.transpose(1, 2)) * D**-0.5 + CAUSAL
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), V.transpose(1, 2))


def as_transformers():
    weights = torch.matmul(Q, K.transpose(2, 3)) * D**-0.5 + CAUSAL[None, None].expand(B, 1, N, N)
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(Q.dtype)
    return torch.matmul(F.dropout(weights, p=0.1, training=False), V)


def capped():
    return (torch.tanh(Q @ K.transpose(-1, -2) / math.sqrt(D) / 5) * 5).softmax(-1) @ V


def one_key_head():
    return F.scaled_dot_product_attention(Q, K[:, :1], V[:, :1], enable_gqa=True)


SHARED = K[:, :1].expand(-1, H, -1, -1)
WAYS = {
    "fused": (lambda: F.scaled_dot_product_attention(Q, K, V), by_formula()),
    "causal": (lambda: F.scaled_dot_product_attention(Q, K, V, is_causal=True), by_formula(CAUSAL)),
    "biased": (lambda: F.scaled_dot_product_attention(Q, K, V, attn_mask=BIAS), by_formula(BIAS)),
    "masked": (lambda: F.scaled_dot_product_attention(Q, K, V, attn_mask=LOWER), by_formula(CAUSAL)),
    "grouped": (one_key_head, by_formula(k=SHARED)),
    "by hand": (lambda: by_hand(BIAS), by_formula(BIAS)),
    "in place": (in_place, by_formula(CAUSAL)),
    "einsum": (einsum, by_formula(CAUSAL)),
    "transformers": (as_transformers, by_formula(CAUSAL)),
    "capped": (
        capped,
        (5 * torch.tanh(torch.einsum("bhid,bhjd->bhij", Q.double(), K.double()) / math.sqrt(D) / 5)).softmax(-1),
    ),
}


def assert_weights(seen, want: torch.Tensor, atol: float) -> None:
    for place, batch in enumerate(seen.batch):
        for head in range(seen.sizes[1]):
            np.testing.assert_allclose(seen.whole(head, place), want[batch, head], atol=atol)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("gradients", GRADIENTS)
def test_weights_are_those_of_the_formula_from_queries_and_keys(way, gradients):
    run, want = WAYS[way]
    with gradients(), capturing((1, 0)) as seen:
        out = run()
    (one,) = seen.captured
    assert isinstance(one, TorchAttention) and one.batch == (1, 0) and one.sizes == (B, H, N, N)
    assert_weights(one, want, 1e-12)
    if "in place" not in way:  # which drops some
        values = V[:, :1].expand(-1, H, -1, -1) if way == "grouped" else V
        got = out.transpose(1, 2) if way == "einsum" else out
        torch.testing.assert_close(got.detach().double(), want @ values.double(), atol=1e-5, rtol=1e-5)


def test_scores_made_otherwise_are_kept_as_weights():
    def odd():
        return (Q @ K.transpose(-1, -2)).sin().softmax(-1) @ V

    def rolled(s):  # a shift of every row, as relative positions have
        return torch.stack([r.roll(i, -1) for i, r in enumerate(s.unbind(2))], 2)

    def with_sink(s):
        return torch.cat((s, torch.ones(B, H, N, 1, dtype=s.dtype)), -1)

    scores = torch.einsum("bhid,bhjd->bhij", Q.double(), K.double())
    want = scores.sin().softmax(-1)
    with capturing() as seen:
        odd()
    assert isinstance(seen.captured[0], GivenWeights)
    assert_weights(seen.captured[0], want, 1e-6)
    with capturing() as seen:
        rolled(Q @ K.transpose(-1, -2)).softmax(-1) @ V
        with_sink(Q @ K.transpose(-1, -2)).softmax(-1) @ torch.cat((V, 0 * V[:, :, :1]), 2)
    assert [type(c) for c in seen.captured] == [GivenWeights] * 2
    assert_weights(seen.captured[0], rolled(scores).softmax(-1), 1e-6)
    assert_weights(seen.captured[1], with_sink(scores).softmax(-1), 1e-6)


def test_queries_that_change_before_softmax_are_not_believed():
    q = Q.clone()
    with capturing() as seen:
        scores = q @ K.transpose(-1, -2)
        q.zero_()
        scores.softmax(-1) @ V
    want = torch.einsum("bhid,bhjd->bhij", Q.double(), K.double()).softmax(-1)
    assert isinstance(seen.captured[0], GivenWeights)
    assert_weights(seen.captured[0], want, 1e-6)


def test_a_softmax_without_values_and_one_of_no_product_are_no_attention():
    with capturing() as seen:
        (Q @ K.transpose(-1, -2)).softmax(-1).sum()
        V.softmax(-1) @ V.transpose(-1, -2)
        F.linear(V, draw(7, D)).softmax(-1)
    assert seen.captured == []


@pytest.mark.parametrize("options", [{}, {"need_weights": False}, {"attn_mask": ~LOWER}])
@pytest.mark.parametrize("gradients", GRADIENTS)
def test_multihead_attention_is_seen_by_its_own_weights(options, gradients):
    layer = torch.nn.MultiheadAttention(32, H, batch_first=True).eval()
    x = draw(B, N, 32)
    given = {k: v for k, v in options.items() if k == "attn_mask"}
    want = layer(x, x, x, average_attn_weights=False, **given)[1].detach().double()
    with gradients(), capturing((0, 1)) as seen:
        layer(x, x, x, **options)
    (one,) = seen.captured
    assert isinstance(one, TorchAttention) and one.sizes == (B, H, N, N)
    assert_weights(one, want, 1e-6)


def test_an_encoder_takes_no_path_that_hides_its_attentions():
    layer = torch.nn.TransformerEncoderLayer(32, H, 64, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x, padding = draw(B, N, 32), torch.zeros(B, N, dtype=torch.bool)
    padding[1, -3:] = True
    attention = model.layers[0].self_attn
    want = attention(x, x, x, key_padding_mask=padding, average_attn_weights=False)[1].detach().double()
    with torch.inference_mode(), capturing((0, 1), model) as seen:
        model(x, src_key_padding_mask=padding)
    assert [c.where for c in seen.captured] == [f"layers.{i}.self_attn (MultiheadAttention)" for i in range(2)]
    assert_weights(seen.captured[0], want, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_evaluated_from_its_own_queries_and_keys(dtype):
    q, k, v = (x.to(dtype) for x in (Q, K, V))
    with torch.no_grad(), capturing((0, 1)) as seen:
        torch.softmax(q @ k.transpose(-1, -2) * D**-0.5 + CAUSAL.to(dtype), -1) @ v
        F.scaled_dot_product_attention(q, k, v, is_causal=True)
    s = torch.einsum("bhid,bhjd->bhij", q.double(), k.double()) * D**-0.5
    for one in seen.captured:
        assert_weights(one, (s + CAUSAL).softmax(-1), 1e-3)
    assert len(seen.captured) == 2


def test_queries_without_a_key_have_no_weights():
    keep = LOWER.clone()
    keep[4] = False
    with torch.no_grad(), capturing() as seen:
        F.scaled_dot_product_attention(Q, K, V, attn_mask=keep)
    assert seen.captured[0].whole(0)[4].tolist() == [0.0] * N


def test_the_batch_must_have_what_is_asked_for_and_nothing_stays_behind():
    hooks = len(torch.nn.modules.module._global_forward_hooks)
    with pytest.raises(analysis.AnalysisError, match="2 elements, element 5 was asked for"), capturing(5):
        by_hand(BIAS)
    with pytest.raises(ZeroDivisionError), capturing(5):
        by_hand(BIAS)
        1 / 0  # noqa: B018
    assert len(torch.nn.modules.module._global_forward_hooks) == hooks
    by_hand(BIAS)


def test_masks_that_layers_share_are_kept_once():
    with torch.no_grad(), capturing() as seen:
        for _ in range(3):
            by_hand(BIAS)
    places = {c.tensors["t0"].data_ptr() for c in seen.captured}
    assert len(seen.captured) == 3 and len(places) == 1


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 32)
        self.layer = torch.nn.TransformerEncoderLayer(32, H, 64, dropout=0.5, batch_first=True)
        self.norm = torch.nn.BatchNorm1d(32)

    def forward(self, ids):
        return self.norm(self.layer(self.embed(ids)).transpose(1, 2))


@pytest.mark.parametrize("capture", ["auto", "torch"])
def test_analyze_takes_ordinary_models_as_they_are_evaluated(capture):
    torch.manual_seed(0)
    model, ids = Encoder().train(), torch.arange(2 * N).reshape(2, N) % 7
    model.layer.linear1.eval()
    before = [m.training for m in model.modules()]
    one, two = (aatc.analyze(model, ids, "heads", capture=capture) for _ in range(2))
    assert [m.training for m in model.modules()] == before and int(model.norm.num_batches_tracked) == 0
    assert {(f.item, f.head): str(f.result.value) for f in one.findings} == {
        (f.item, f.head): str(f.result.value) for f in two.findings
    }
    assert one.captured[0].tokens is not None and one["attend0", "induction_mass"].value >= 0
    torch.testing.assert_close(one.output, model.eval()(ids), atol=1e-5, rtol=1e-5)


def test_analyze_says_what_it_sees():
    with pytest.raises(analysis.AnalysisError, match="no capture 'eager'"):
        aatc.analyze(Encoder(), torch.zeros(1, N, dtype=torch.long), "heads", capture="eager")
    with pytest.raises(analysis.AnalysisError, match="Linear showed no attention"):
        aatc.analyze(torch.nn.Linear(4, 4), torch.ones(2, 4), capture="torch")
