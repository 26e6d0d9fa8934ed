"""`aatc.attend` itself: shapes, dtypes, grouped heads, dropout, NaN, messages."""

import pytest
import torch

import aatc
from aatc import biases, connections, masks, metrics
from tests.api.oracle import agree, attention, inputs, pairs

DOT = metrics.DotProduct()


@pytest.mark.parametrize("hk", [1, 2, 4])
@pytest.mark.parametrize("dv", [1, 3, 9])
def test_grouped_heads_and_values_of_another_width(hk, dv):
    q, k, v = inputs(hk=hk, dv=dv)
    got = aatc.attend(q, k, v, metric=metrics.Euclidean(), return_lse=True)
    x, y = pairs(q, k)
    agree(got, attention(q, k, v, -(x - y).square().sum(-1) / 6**0.5), [q, k, v])
    assert got[0].shape == (2, 4, 5, dv) and got[1].shape == (2, 4, 5)


def test_the_default_returns_the_output_alone_and_sdpa_is_the_dot_product():
    q, k, v = inputs(n=7)
    got = aatc.attend(q, k, v, metric=DOT, mask=masks.causal())
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_keep_scores_in_float32(dtype):
    q, k, v = inputs(dtype=dtype)
    o, lse = aatc.attend(q, k, v, metric=metrics.LorentzDistance(lift=True), return_lse=True)
    assert o.dtype == dtype and lse.dtype == torch.float32
    wide = aatc.attend(*(t.double() for t in (q, k, v)), metric=metrics.LorentzDistance(lift=True), return_lse=True)
    torch.testing.assert_close(lse.double(), wide[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(o.double(), wide[0], rtol=3 * torch.finfo(dtype).eps, atol=3 * torch.finfo(dtype).eps)
    for g, t in zip(torch.autograd.grad(o.float().sum(), [q, k, v]), (q, k, v), strict=True):
        assert g.dtype == dtype and g.shape == t.shape and g.isfinite().all()


def test_mixed_types_are_promoted_and_autocast_gives_one_type():
    q, k, v = inputs(dtype=torch.float32)
    assert aatc.attend(q.bfloat16(), k, v, metric=DOT).dtype == torch.float32
    assert aatc.attend(q, k.double(), v, metric=DOT).dtype == torch.float64
    linear = torch.nn.Linear(6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o = aatc.attend(linear(q), linear(k), torch.nn.functional.layer_norm(v, (6,)), metric=metrics.Euclidean())
        assert o.dtype == torch.float32
        p = aatc.attend(linear(q), linear(k), linear(v), metric=metrics.Euclidean())
    assert p.dtype == torch.bfloat16
    (o.sum() + p.float().sum()).backward()
    assert linear.weight.grad.isfinite().all() and q.grad.dtype == torch.float32


def test_strides_do_not_matter():
    q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in inputs(requires_grad=False))
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    x, y = pairs(q, k)
    agree(aatc.attend(q, k, v, metric=DOT), attention(q, k, v, (x * y).sum(-1) / 6**0.5)[0], [q, k, v])


# --- dropout -----------------------------------------------------------------------------------------------
def _weights(n, p, seed, h=4):
    q, k = torch.zeros(2, h, n, 2), torch.zeros(2, h, n, 2)
    v = torch.eye(n).expand(2, h, n, n)
    return aatc.attend(q, k, v, metric=DOT, dropout=p, seed=seed)


def test_dropout_zeroes_that_share_of_the_weights_and_keeps_their_mean():
    w = _weights(64, 0.3, 5) * 64
    kept = w != 0
    torch.testing.assert_close(w[kept], torch.full_like(w[kept], 1 / 0.7))
    assert abs(kept.double().mean() - 0.7) < 0.01
    for flat in (
        kept.double().mean((0, 1, 2)),
        kept.double().mean((0, 1, 3)),
        kept.double().mean((2, 3)).flatten(),
    ):
        assert (flat - 0.7).abs().max() < 0.1
    masks_of_heads = kept.flatten(0, 1).flatten(1).double()
    assert (torch.corrcoef(masks_of_heads) - torch.eye(8)).abs().max() < 0.08


def test_a_seed_reproduces_dropout_whatever_the_batch_and_length():
    a, b = _weights(16, 0.5, 7), _weights(16, 0.5, torch.tensor(7))
    assert torch.equal(a, b) and not torch.equal(a, _weights(16, 0.5, 8))
    longer = _weights(32, 0.5, 7) * 2
    assert torch.equal(longer[:, :, :16, :16], a)


def test_without_a_seed_torchs_generator_decides():
    torch.manual_seed(3)
    a, b = _weights(16, 0.5, None), _weights(16, 0.5, None)
    torch.manual_seed(3)
    assert torch.equal(a, _weights(16, 0.5, None)) and not torch.equal(a, b)


def test_no_dropout_draws_no_number():
    before = torch.get_rng_state()
    _weights(4, 0.0, None)
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_is_the_same_in_the_backward_pass():
    q, k, v = inputs(b=1, h=2, n=3, m=4, d=3, dv=2)
    f = lambda q, k, v: aatc.attend(q, k, v, metric=metrics.Euclidean(), dropout=0.4, seed=1)  # noqa: E731
    assert torch.autograd.gradcheck(f, (q, k, v))
    x, y = pairs(q, k)
    eye = torch.eye(4, dtype=torch.float64).expand(1, 2, 4, 4)
    zero = torch.zeros_like(q), torch.zeros_like(k)
    factor = aatc.attend(*zero, eye, metric=DOT, dropout=0.4, seed=1) * 4  # 0 or 1/0.6 for every pair
    weights = torch.softmax(-(x - y).square().sum(-1) / 3**0.5, -1) * factor
    agree(f(q, k, v), weights @ v, [q, k, v])


# --- NaN ---------------------------------------------------------------------------------------------------
def test_nan_in_a_query_stays_in_its_row():
    q, k, v = inputs(requires_grad=False)
    want = aatc.attend(q, k, v, metric=metrics.Poincare(), mask=masks.causal(2))
    q[1, 2, 3, 0] = float("nan")
    got = aatc.attend(q, k, v, metric=metrics.Poincare(), mask=masks.causal(2))
    bad = torch.zeros(2, 4, 5, dtype=torch.bool)
    bad[1, 2, 3] = True
    assert got[bad].isnan().all() and torch.equal(got[~bad], want[~bad])


def test_nan_in_a_key_stays_with_those_who_see_it():
    q, k, v = inputs(n=7, requires_grad=False)
    k[0, 0, 4] = float("nan")
    o, lse = aatc.attend(q, k, v, metric=metrics.LorentzDistance(lift=True), mask=masks.causal(), return_lse=True)
    bad = torch.zeros(2, 4, 7, dtype=torch.bool)
    bad[0, 0, 4:] = True
    assert o[bad].isnan().all() and o[~bad].isfinite().all()
    assert lse[bad].isnan().all() and lse[~bad].isfinite().all()


# --- messages ----------------------------------------------------------------------------------------------
def _shapes(**change):
    shapes = {"q": (2, 4, 5, 6), "k": (2, 4, 7, 6), "v": (2, 4, 7, 6)}
    return [torch.zeros(s) for s in {**shapes, **change}.values()]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"q": (4, 5, 6)}, r"q has shape \(4, 5, 6\)\n.*unsqueeze"),
        ({"q": (1, 4, 5, 6)}, "batch sizes differ"),
        ({"k": (2, 4, 7, 5)}, "q has 6 features and k 5"),
        ({"v": (2, 4, 8, 6)}, "k and v differ in heads or length"),
        ({"v": (2, 2, 7, 6)}, "k and v differ in heads or length"),
        ({"k": (2, 3, 7, 6), "v": (2, 3, 7, 6)}, "4 query heads cannot share 3 key heads"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, text):
    with pytest.raises(aatc.errors.ShapeError, match=text) as e:
        aatc.attend(*_shapes(**change), metric=DOT)
    assert isinstance(e.value, ValueError) and e.value.hint


def test_arguments_that_are_not_known_are_named():
    q, k, v = _shapes()
    with pytest.raises(aatc.errors.ShapeError, match=r"q holds torch.int64"):
        aatc.attend(q.long(), k, v, metric=DOT)
    with pytest.raises(aatc.errors.ScoreError, match=r"@aatc.metric"):
        aatc.attend(q, k, v, metric=lambda q, k: q @ k)
    with pytest.raises(aatc.errors.ScoreError, match=r"aatc.metrics"):
        aatc.attend(q, k, v, metric=metrics.DotProduct)
    with pytest.raises(aatc.errors.UnsupportedError, match="sparsemax"):
        aatc.attend(q, k, v, metric=DOT, normalizer="sparsemax")
    with pytest.raises(aatc.errors.UnsupportedError, match="centroid"):
        aatc.attend(q, k, v, metric=DOT, aggregate="centroid")
    with pytest.raises(aatc.errors.ScoreError, match=r"dropout 1.0"):
        aatc.attend(q, k, v, metric=DOT, dropout=1.0)
    assert aatc.attend(q, k, v, metric=DOT, normalizer=aatc.normalizers.Softmax()).shape == (2, 4, 5, 6)


def test_parts_show_what_they_hold():
    assert repr(metrics.LorentzDistance(torch.ones(4), curvature=2.0)) == (
        "LorentzDistance(beta=<float32 (4,)>, squared=False, curvature=2.0, lift=False)"
    )
    assert "Rotary" in repr(connections.Rotary()) and "ALiBi" in repr(biases.ALiBi(2) + torch.zeros(2, 2))
