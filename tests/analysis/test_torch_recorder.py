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


# --- how often a model runs ----------------------------------------------------------------------------------
class Cached(torch.nn.Module):
    """Counts its calls, keeps its keys, moves a buffer, runs a hook; attends by torch, by `aatc.attend`, or both."""

    def __init__(self, kinds: tuple[str, ...], breaks: bool = False) -> None:
        super().__init__()
        self.kinds, self.breaks = kinds, breaks
        self.calls, self.hooked, self.keys = 0, [], []
        self.register_buffer("seen", torch.zeros(()))
        self.register_forward_hook(lambda *_: self.hooked.append(1))

    def forward(self, x):
        self.calls += 1
        self.seen += 1
        self.keys.append(x)
        k = torch.cat(self.keys, 2)
        if self.breaks:
            torch._dynamo.graph_break()
        for kind in self.kinds:
            if kind == "torch":
                x = F.scaled_dot_product_attention(x, k, k)
            else:
                x = aatc.attend(x, k, k, metric=aatc.metrics.DotProduct())
        return x


@pytest.mark.parametrize("kinds", [("torch",), ("aatc",), ("torch", "aatc")])
@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("capture", ["auto", "torch"])
def test_analyze_runs_a_model_once(kinds, breaks, capture):
    model, x = Cached(kinds, breaks), draw(1, H, N, D)
    want = Cached(kinds)(x)
    state = torch.get_rng_state()
    found = aatc.analyze(model, x, "heads", capture=capture)
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.calls, len(model.hooked), len(model.keys), float(model.seen)) == (1, 1, 1, 1.0)
    torch.testing.assert_close(found.output, want, atol=1e-5, rtol=1e-5)
    whole = capture == "auto" and "aatc" in kinds and not breaks
    assert bool(found.modules) == whole and len(found.captured) == (1 if whole else len(kinds))
    assert all(c.sizes == (1, H, N, N) for c in found.captured)
    assert any("graph breaks" in note for note in found.notes) == (capture == "auto" and "aatc" in kinds and breaks)


def test_attentions_of_both_kinds_are_seen_in_one_run():
    x = draw(2, H, N, D)
    with torch.no_grad(), capturing((1,)) as seen:
        y = F.scaled_dot_product_attention(x, x, x)
        aatc.attend(y, y, y, metric=aatc.metrics.Euclidean(), bias=aatc.biases.ALiBi(H), mask=aatc.masks.causal())
    assert [c.name for c in seen.captured] == ["attend0", "attend1"]
    one, two = seen.captured
    assert_weights(one, (x.double() @ x.double().mT / D**0.5).softmax(-1), 1e-12)
    op = aatc.analyze(lambda t: aatc.attend(t, t, t, metric=aatc.metrics.Euclidean(), bias=aatc.biases.ALiBi(H),
                                            mask=aatc.masks.causal()), y, "heads", batch=1)  # fmt: skip
    for head in range(H):
        np.testing.assert_allclose(two.whole(head), op.captured[0].whole(head), atol=1e-12)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_bias_that_is_written_between_layers_is_each_layers_own(compiled):
    bias, x = torch.zeros(N, N), draw(1, H, N, D)

    def model(x, eager=False):
        bias = x.new_zeros(N, N)
        for step in (1.0, 2.0):
            bias.copy_(step * CAUSAL.clamp_min(-3.0))
            x = aatc.attend(x, x, x, metric=aatc.metrics.DotProduct(), bias=bias)
        return x

    want, y = [], x
    for step in (1.0, 2.0):
        bias = step * CAUSAL.clamp_min(-3.0)
        want.append((y @ y.mT / D**0.5 + bias).softmax(-1))
        y = want[-1] @ y
    found = aatc.analyze(model, x, "heads", capture="compiled" if compiled else "torch")
    for one, w in zip(found.captured, want, strict=True):
        assert_weights(one, w.double(), 2e-6)
