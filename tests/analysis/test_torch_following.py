"""What is kept of ordinary PyTorch code is what it multiplied with values, whatever was done to scores and weights."""

import math

import numpy as np
import pytest
import torch
import torch.nn.attention.bias as torch_bias
import torch.nn.functional as F

import aatc
from aatc import analysis
from aatc.analysis import capturing
from aatc.passes.analysis.given_weights import GivenWeights
from aatc.passes.analysis.stochastic import PatternError
from aatc.passes.analysis.torch_attention import TorchAttention

N, H = 12, 2


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, VALUES = draw(1, H, N, 8), draw(1, H, N, 5, seed=1)
LOWER, MIX = torch.ones(N, N).tril(), draw(H, H, seed=2).softmax(0)
CONVOLUTION = torch.nn.Conv2d(H, 3, 3, padding=1).requires_grad_(False)


def weights() -> torch.Tensor:
    return (X @ X.mT).softmax(-1)


def normalised(w):
    return w / w.sum(-1, keepdim=True)


def part(w, where, do):
    do(w[where])
    return w


def top(w):
    values, places = w.topk(3)
    return normalised(torch.zeros_like(w).scatter_(-1, places, values))


def into_buffer(w):
    return torch.full_like(w, 7.0).copy_(w).mul_(LOWER)


AFTER = {
    "lower": lambda w: normalised(w * LOWER),
    "column off": lambda w: part(w, (..., 0), lambda v: v.mul_(0.0)),
    "row off": lambda w: part(w, (slice(None), slice(None), 5), lambda v: v.zero_()),
    "filled": lambda w: w.masked_fill(w < 0.01, 0.0),
    "where": lambda w: normalised(torch.where(w > 0.01, w, 0.0)),
    "top": top,
    "squared": lambda w: normalised(w * w),
    "scaled by head": lambda w: w * torch.tensor([2.0, 0.5])[:, None, None],
    "tril": lambda w: w.tril(),
    "smoothed": lambda w: 0.5 * w + 0.5 / N,
    "difference": lambda w: w - 0.3 * w.flip(1),
    "rolled": lambda w: w.roll(1, -1),
    "mixed": lambda w: torch.einsum("bhij,hg->bgij", w, MIX),
    "mixed from the left": lambda w: torch.einsum("hg,bhij->bgij", MIX, w),
    "mixed by a layer": lambda w: F.linear(w.permute(0, 2, 3, 1), MIX).permute(0, 3, 1, 2),
    "convolved": CONVOLUTION,
    "stacked": lambda w: torch.stack([w[:, 1], 2 * w[:, 0]], 1),
    "heads summed": lambda w: w.mean(1, keepdim=True),
    "two steps": lambda w: w @ w,
    "again": lambda w: (3 * w).softmax(-1),
    "buffer": into_buffer,
    "split heads": lambda w: (w.view(1, 1, H, N, N) * LOWER).view(1, H, N, N),
}


def raw(seen, head: int) -> np.ndarray:
    return seen.array[0, head].double().numpy() if seen.improper else seen.whole(head)


def says(found, text: str) -> bool:
    """Whether a report holds a text, in whatever lines."""
    return "".join(text.split()) in "".join(str(found).split())


def assert_weights(seen, want: torch.Tensor, atol: float = 2e-6) -> None:
    assert seen.sizes == want.shape
    for head in range(want.shape[1]):
        np.testing.assert_allclose(raw(seen, head), want[0, head].double(), atol=atol)


@pytest.mark.parametrize("way", AFTER)
@pytest.mark.parametrize("gradients", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_what_is_done_to_weights_after_softmax_is_kept(way, gradients):
    want = AFTER[way](weights())
    values = VALUES[:, :1] if want.shape[1] not in (1, H) else VALUES
    with gradients(), capturing() as seen:
        AFTER[way](weights()) @ values
    (one,) = seen.captured
    assert isinstance(one, GivenWeights) and not one.exponential
    assert_weights(one, want)
    proper = bool(((want.sum(-1) - 1).abs() < 1e-5).all() and (want >= 0).all())
    assert bool(one.improper) != proper or (want.sum(-1) == 0).any()


def test_what_does_nothing_to_weights_leaves_queries_and_keys():
    with torch.no_grad(), capturing() as seen:
        (weights() * torch.ones(H, 1, 1)).nan_to_num(0.0).contiguous().view(H, N, N) @ VALUES[0]
        torch.matmul(VALUES.mT, weights().mT)
        F.dropout(weights(), 0.3, training=True) @ VALUES
    assert [type(c) for c in seen.captured] == [TorchAttention] * 3
    for one in seen.captured:
        assert_weights(one, (X.double() @ X.double().mT).softmax(-1), 1e-12)


def test_noise_of_dropout_is_not_kept_of_weights_that_were_changed():
    with capturing() as seen:
        F.dropout(normalised(weights() * LOWER), 0.5, training=True) @ VALUES
    assert_weights(seen.captured[0], normalised(weights() * LOWER))


def test_rows_that_are_no_distributions_are_told_and_hide_nothing():
    with capturing() as seen:
        weights() @ VALUES
        (2 * weights()) @ VALUES
    found = aatc.analyze_weights(seen, ("heads", "information"))
    proper, other = seen.captured
    assert not proper.notes and "has the sum 2" in other.improper and says(found, other.improper)
    with pytest.raises(PatternError, match="has the sum 2"):
        other.whole(0)
    assert found["attend0", "mean_distance", 0].value > 0
    (undecided, *_) = found.select(attention="attend1", family="heads")
    assert undecided.item == "no_distribution" and "has the sum 2" in undecided.result.reason
    assert {f.item for f in found.select(attention="layers")} == {"no_distribution"}


def test_weights_that_cannot_be_followed_are_told():
    with capturing() as seen:
        (weights()[..., None] * VALUES[:, :, None]).sum(-2)
    assert seen.captured == []
    assert "went through mul" in seen.notes[0]
    with pytest.raises(analysis.AnalysisError, match="holds no attention weights") as error:
        aatc.analyze_weights(seen)
    assert "went through mul" in str(error.value)


BEFORE = {
    "diagonal": lambda s: s.diagonal(dim1=-2, dim2=-1)[..., 1:5].sub_(30.0),
    "flat": lambda s: s.view(1, H, -1)[..., 20:30].add_(30.0),
    "one row": lambda s: s[..., 4, :].mul_(-1.0),
    "one head": lambda s: s[:, 1].tanh_(),
    "whole, by a view": lambda s: s.view(H, N, N).mul_(0.5),
}


@pytest.mark.parametrize("way", BEFORE)
def test_scores_that_are_changed_in_part_are_not_changed_in_whole(way):
    scores = X @ X.mT
    BEFORE[way](scores)
    with capturing() as seen:
        s = X @ X.mT
        BEFORE[way](s)
        s.softmax(-1) @ VALUES
    assert isinstance(seen.captured[0], TorchAttention if "whole" in way else GivenWeights)
    assert_weights(seen.captured[0], scores.softmax(-1))


def test_every_row_is_held_against_the_models_own():
    queries = X.clone()
    with capturing() as seen:
        scores = queries @ X.mT
        queries[:, :, 3] = 0.0  # one of the rows that are neither first nor middle nor last
        scores.softmax(-1) @ VALUES
    assert_weights(seen.captured[0], weights())


def test_softmax_over_another_axis():
    with capturing() as seen:
        torch.einsum("bijh,bhjd->bhid", torch.einsum("bhid,bhjd->bijh", X, X).softmax(2), VALUES)
        (X @ X.mT).softmax(-2).mT @ VALUES
    for one in seen.captured:
        assert_weights(one, weights())


# --- masks ---------------------------------------------------------------------------------------------------
FAR = (torch.arange(N)[:, None] - torch.arange(N)).abs()


@pytest.mark.parametrize("shape", [(N, N), (2, 1, N, N)])
@pytest.mark.parametrize("gradients", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("fused", [True, False])
def test_a_mask_that_is_written_between_layers_is_each_layers_own(shape, gradients, fused):
    def model(see):
        x, mask = draw(2, H, N, 8), torch.zeros(shape)
        for width in (1, 4):
            mask.copy_(torch.where(width < FAR, -math.inf, 0.0))
            mask[..., 3:] -= 5
            see.append((x @ x.mT / 8**0.5 + mask).softmax(-1))
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask) if fused else see[-1] @ x
        mask.zero_()

    want, rest = [], []
    with gradients():
        model(want)
        with capturing(1) as seen:
            model(rest)
    ours = seen.captured
    assert len(ours) == 2 and all(isinstance(c, TorchAttention) for c in ours)
    for one, w in zip(ours, want, strict=True):
        assert_weights(one, w[1:])


@pytest.mark.parametrize("big", [-1e4, -1e9, -1e30, torch.finfo(torch.float32).min, -math.inf])
@pytest.mark.parametrize("fused", [True, False])
def test_masks_that_take_scores_in_the_models_precision(big, fused):
    x = draw(1, H, 64, 8)
    mask = torch.zeros(64, 64)
    mask[10:20, 1:] = big
    mask[10:20, 0] = big if math.isfinite(big) else 0.0

    def model(values):
        if fused:
            return F.scaled_dot_product_attention(2 * x, x, values, attn_mask=mask)
        return (2 * x @ x.mT / 8**0.5 + mask).softmax(-1) @ values

    # eight values at a time, as x has, so that the same kernel runs
    want = torch.cat([model(e.expand(1, H, 64, 8)) for e in torch.eye(64).split(8, 1)], -1)
    with torch.no_grad(), capturing() as seen:
        model(x)
    (one,) = seen.captured
    np.testing.assert_allclose(one.whole(1), want[0, 1], atol=2e-6)
    with torch.no_grad(), capturing() as seen:
        F.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(64, 64).masked_fill(LOWER.new_ones(64) < 0, big))
    assert isinstance(seen.captured[0], TorchAttention)


# --- batch and heads -----------------------------------------------------------------------------------------
class Head(torch.nn.Module):
    def forward(self, x):
        return (x @ x.mT).softmax(-1) @ x


class Heads(torch.nn.Module):
    """One module per head, or all heads in one axis with the batch."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.num_heads, self.joined = 4, joined
        self.heads = torch.nn.ModuleList(Head() for _ in range(1 if joined else 4))

    def forward(self, x):
        if self.joined:
            b, n, d = x.shape
            y = x.view(b, n, 4, d // 4).transpose(1, 2).reshape(b * 4, n, d // 4)
            return self.heads[0](y)
        return sum(head(x) for head in self.heads)


@pytest.mark.parametrize(("joined", "batch", "n"), [(False, 4, 10), (False, 8, 8), (True, 2, 8), (True, 1, 10)])
def test_batch_elements_are_no_heads_where_the_input_says_so(joined, batch, n):
    with torch.no_grad(), capturing() as seen:
        Heads(joined)(draw(batch, n, 8))
    assert {c.sizes[:2] for c in seen.captured} == {(1, 4 if joined else 1)}
    assert all(not c.notes for c in seen.captured) and len(seen.captured) == (1 if joined else 4)
    with torch.no_grad(), capturing(tuple(range(batch)), heads=4 if joined else 1) as seen:
        Heads(joined)(draw(batch, n, 8))
    assert seen.captured[0].sizes == (batch, 4 if joined else 1, n, n)


def test_what_cannot_be_told_of_batch_and_heads_is_noted_and_can_be_said():
    class Odd(Heads):
        def forward(self, x):
            return self.heads[0](x.view(-1, 5, 2))

    x = draw(4, 10, 2)
    with torch.no_grad(), capturing() as seen:
        Odd(True)(x)
    (note,) = seen.captured[0].notes
    assert "taken as batch 2 × 4 heads" in note and "heads= decides" in note
    found = aatc.analyze(Odd(True), x, "heads", capture="torch")
    assert all(note in f.result.assumptions for f in found.findings if f.subject == "attend0") and "".join(
        note.split()
    ) in "".join(str(found).split())
    assert aatc.analyze(Odd(True), x, "heads", capture="torch", heads=1).captured[0].sizes[:2] == (1, 1)
    with pytest.raises(analysis.AnalysisError, match="heads=0 is no number of heads"), capturing(heads=0):
        pass


class HeadsFirst(torch.nn.Module):
    def forward(self, x):
        x = x.unflatten(-1, (4, 2))
        return torch.einsum("hbij,bjhd->bihd", torch.einsum("bihd,bjhd->hbij", x, x).softmax(-1), x)


def test_heads_first():
    x = draw(3, 10, 8)
    y = x.unflatten(-1, (4, 2)).transpose(1, 2).double()
    for options in ({}, {"heads": 4}, {"heads_first": True}):
        with torch.no_grad(), capturing((1, 2), **options) as seen:
            HeadsFirst()(x)
        (one,) = seen.captured
        assert one.sizes == (2, 4, 10, 10) and isinstance(one, TorchAttention)
        assert_weights(one, (y @ y.mT).softmax(-1)[1:])


# --- models run as they are ----------------------------------------------------------------------------------
def jagged():
    nested = torch.nested.nested_tensor([draw(5, 2, 8), draw(3, 2, 8)], layout=torch.jagged).transpose(1, 2)
    return F.scaled_dot_product_attention(nested, nested, nested).values()


def checkpointed():
    from torch.utils.checkpoint import checkpoint

    x = X.clone().requires_grad_()
    checkpoint(Head(), x, use_reentrant=False).sum().backward()
    return x.grad


RUNS = {
    "causal bias": (
        lambda: F.scaled_dot_product_attention(X[:, :, :4], X, X, attn_mask=torch_bias.causal_lower_right(4, N)),
        1,
    ),
    "jagged": (jagged, 0),
    "forward derivatives": (lambda: torch.func.jvp(Head(), (X,), (X,))[1], 2),
    "gradients": (lambda: torch.func.grad(lambda x: Head()(x).sum())(X), 1),
    "vmap": (lambda: torch.func.vmap(Head())(X), 1),
    "checkpoint": (checkpointed, 1),
}


@pytest.mark.parametrize("way", RUNS)
def test_a_captured_model_runs_as_without(way):
    run, count = RUNS[way]
    want = run()
    with capturing() as seen:
        got = run()
    torch.testing.assert_close(got, want)
    assert len(seen.captured) == count
    assert (way == "jagged") == any("pad" in note for note in seen.notes)
    torch_bias.causal_lower_right(4, 4)  # as before


def test_causal_bias_of_the_lower_right():
    with capturing() as seen:
        RUNS["causal bias"][0]()
    later = torch.arange(N) > torch.arange(4)[:, None] + N - 4
    want = (X[:, :, :4] @ X.mT / 8**0.5).masked_fill(later, -math.inf).softmax(-1)
    assert_weights(seen.captured[0], want)
