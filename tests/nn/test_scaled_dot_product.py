"""`scaled_dot_product_attention` and `TransformerAttention` are the transformer's attention, once scaled."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention as torch_sdpa

import aatc
from aatc import masks
from aatc.errors import CaptureError, ShapeError
from aatc.nn import TransformerAttention, scaled_dot_product_attention
from tests.nn.agreement import assert_compiled_alike

LEADS = st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 3), (2, 1, 2, 2)])


def inputs(lead=(2, 3), n=5, m=7, d=4, dv=6, dtype=torch.float64):
    return [torch.randn(*lead, *s, dtype=dtype) for s in ((n, d), (m, d), (m, dv))]


@given(LEADS, st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_it_equals_torch(lead, n, m, d, dv, causal):
    q, k, v = (x.requires_grad_() for x in inputs(lead, n, m, d, dv))
    got = scaled_dot_product_attention(q, k, v, causal=causal)
    want = torch_sdpa(q, k, v, is_causal=causal)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    probe = torch.randn_like(want)
    for g, w in zip(*(torch.autograd.grad((probe * y).sum(), (q, k, v)) for y in (got, want)), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)


@given(LEADS, st.integers(1, 5), st.integers(1, 5), st.data())
def test_masks_that_broadcast_equal_torch_and_shut_rows_give_zeros(lead, n, m, data):
    q, k, v = inputs(lead, n, m)
    kept = data.draw(st.integers(0, len(lead)))
    shape = [*lead[len(lead) - kept :], n, m]
    for axis in range(len(shape)):
        if data.draw(st.booleans()):
            shape[axis] = 1
    mask = torch.rand(shape) > 0.4
    got = scaled_dot_product_attention(q, k, v, mask)
    want = torch_sdpa(q, k, v, mask)
    shut = ~mask.expand(*lead, n, m).any(-1)
    torch.testing.assert_close(got, want.masked_fill(shut[..., None], 0), rtol=1e-10, atol=1e-10)
    assert (got[shut] == 0).all()


def test_leading_axes_broadcast():
    q, k, v = inputs((2, 3))
    torch.testing.assert_close(
        scaled_dot_product_attention(q, k[:1, :1], v), torch_sdpa(q, k[:1, :1].expand(2, 3, -1, -1), v)
    )
    torch.testing.assert_close(
        scaled_dot_product_attention(q, k[0, 0], v[0, 0]),
        torch_sdpa(q, k[0, 0].expand(2, 3, -1, -1), v[0, 0].expand(2, 3, -1, -1)),
    )


def test_scores_of_unit_features_have_unit_variance():
    q, k, _ = inputs((1,), 400, 400, 64)
    one_hot = torch.eye(400, dtype=torch.float64)[None]
    weights = scaled_dot_product_attention(q, k, one_hot)
    assert abs(weights.log().sub(weights.log().mean(-1, keepdim=True)).var().item() - 1) < 0.1


def test_a_mask_object_and_causal_combine():
    q, k, v = inputs(n=7)
    got = scaled_dot_product_attention(q, k, v, masks.sliding_window(3), causal=True)
    i, j = torch.arange(7)[:, None], torch.arange(7)
    torch.testing.assert_close(got, torch_sdpa(q, k, v, (j <= i) & (i - j < 3)))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 2, 3)])
def test_weights_are_those_of_the_output(lead):
    q, k, v = inputs(lead)
    mask = torch.rand(*lead, 5, 7) > 0.4
    output, weights = scaled_dot_product_attention(q, k, v, mask, return_weights=True)
    torch.testing.assert_close(weights @ v, output)
    torch.testing.assert_close(weights.sum(-1), mask.any(-1).double())
    assert (weights[~mask] == 0).all()


def test_dropped_weights_are_those_of_the_output_and_keep_the_mean():
    q, k, v = inputs((8, 4), 32, 32, 4, 8)
    torch.manual_seed(5)
    output, weights = scaled_dot_product_attention(q, k, v, dropout=0.25, return_weights=True)
    torch.testing.assert_close(weights @ v, output)
    _, whole = scaled_dot_product_attention(q, k, v, return_weights=True)
    dropped = weights == 0
    assert abs(dropped.double().mean().item() - 0.25) < 0.01
    torch.testing.assert_close(weights[~dropped], whole[~dropped] / 0.75)
    again = scaled_dot_product_attention(q, k, v, dropout=0.25, seed=7)
    assert torch.equal(again, scaled_dot_product_attention(q, k, v, dropout=0.25, seed=7))
    assert not torch.equal(again, scaled_dot_product_attention(q, k, v, dropout=0.25, seed=8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_shut_pairs_weigh_nothing_in_every_precision(dtype):
    q, k, v = inputs(dtype=dtype)
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[1:, 2] = True
    output, weights = scaled_dot_product_attention(q, k, v, mask, return_weights=True)
    assert output.dtype == weights.dtype == dtype
    assert torch.equal(output[:, :, 1:], v[:, :, 2:3].expand(-1, -1, 4, -1))
    assert (output[:, :, 0] == 0).all() and (weights[:, :, 0] == 0).all()


def test_bad_shapes_and_masks_say_what_to_give():
    q, k, v = inputs()
    with pytest.raises(ShapeError, match="do not broadcast"):
        scaled_dot_product_attention(q, k[:, :2], v)
    with pytest.raises(ShapeError, match=r"\(\.\.\., length, features\)"):
        scaled_dot_product_attention(q[0, 0, 0], k, v)
    with pytest.raises(CaptureError, match="True where a query may attend"):
        scaled_dot_product_attention(q, k, v, torch.ones(5, 7))
    with pytest.raises(CaptureError, match="more axes"):
        scaled_dot_product_attention(q, k, v, torch.ones(1, 2, 3, 5, 7, dtype=torch.bool))
    with pytest.raises(CaptureError, match="keep has shape"):
        scaled_dot_product_attention(q, k, v, torch.ones(5, 6, dtype=torch.bool))
    with pytest.raises(CaptureError, match="mask is a str"):
        scaled_dot_product_attention(q, k, v, "causal")


def test_heads_are_scaled_by_their_own_width():
    q, k, v = inputs((2, 3), d=4, dv=4, dtype=torch.float32)
    output, weights = TransformerAttention(12).eval()(q, k, v)
    torch.testing.assert_close(output, torch_sdpa(q, k, v))
    assert weights is None
    flat = [x[:, 0] for x in (q, k, v)]
    torch.testing.assert_close(TransformerAttention(4).eval()(*flat)[0], torch_sdpa(*flat))


def test_the_module_drops_while_training_only():
    q, k, v = inputs((2, 3), d=4, dv=4, dtype=torch.float32)
    attention = TransformerAttention(12, dropout=0.5)
    output, weights = attention(q, k, v, need_weights=True)
    torch.testing.assert_close(weights @ v, output)
    assert 0.3 < (weights == 0).float().mean() < 0.7
    attention.eval()
    assert torch.equal(attention(q, k, v)[0], attention(q, k, v)[0])
    assert (attention(q, k, v, need_weights=True)[1] > 0).all()


def test_the_module_refuses_what_is_not_of_its_width():
    q, k, v = inputs((2, 3), d=4, dv=4, dtype=torch.float32)
    with pytest.raises(ShapeError, match="d_model is 16"):
        TransformerAttention(16)(q, k, v)
    with pytest.raises(ShapeError, match="d_model is 0"):
        TransformerAttention(0)
    with pytest.raises(ShapeError, match="not a probability"):
        TransformerAttention(4, dropout=1.0)


class Projected(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.project, self.attention = torch.nn.Linear(8, 8), TransformerAttention(8, dropout=0.2)

    def forward(self, x, mask):
        x = self.project(x)
        return self.attention(x, x, x, mask)[0]


def test_it_compiles_without_fallback():
    mask = torch.ones(2, 1, 6, dtype=torch.bool)
    mask[1, :, 4:] = False
    assert_compiled_alike(Projected(), torch.randn(2, 6, 8), mask, attentions=1)


def test_it_compiles_over_heads_and_more_axes():
    for lead in ((2, 3), (2, 2, 3)):
        q, k, v = inputs(lead, dtype=torch.float32)
        compiled = aatc.compile(lambda q, k, v: scaled_dot_product_attention(q, k, v, causal=True), dynamic=False)
        torch.testing.assert_close(compiled(q, k, v), torch_sdpa(q, k, v, is_causal=True), rtol=2e-5, atol=2e-5)
        assert not compiled.explain().fallbacks
