"""Digits of single precision: compiled attention loses no more of them than the formula as it was written.

The oracles are plain PyTorch: the formula in float64 is the truth, the same in float32 says what is lost anyway.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import aatc
from aatc import biases, masks, metrics, normalizers
from aatc.nn import GeometricAttention
from tests.compiler.harness import build
from tests.compiler.plain import attention as plain_attention
from tests.compiler.plain import check

N, D = 64, 8


def squared(q, k):
    return (q.unsqueeze(3) - k.unsqueeze(2)).square().sum(-1)


def minkowski(q, k):
    return q[..., 1:] @ k[..., 1:].mT - q[..., :1] @ k[..., :1].mT


def fisher_rao(q, k):
    chord = (q.sqrt().unsqueeze(3) - k.sqrt().unsqueeze(2)).square().sum(-1)
    return -4 * torch.asin((chord / 4).clamp(0, 1).sqrt())


def poincare(q, k):
    low = (1 - q.square().sum(-1)).unsqueeze(3) * (1 - k.square().sum(-1)).unsqueeze(2)
    return -torch.acosh(1 + 2 * squared(q, k) / low)


def lift(x):
    return torch.cat([(1 + x.square().sum(-1, keepdim=True)).sqrt(), x], -1)


def euclidean(q, k):
    s = squared(q, k)
    return -(s + (s == 0)).sqrt() * (s > 0) / math.sqrt(D)


def sphere(q, k):
    return -torch.acos((F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).clamp(-1, 1))


#: name -> (metric, scores in plain PyTorch, what makes points of it)
METRICS = {
    "squared": (metrics.Euclidean(), lambda q, k: -squared(q, k) / math.sqrt(D), lambda x: x),
    "euclidean": (metrics.Euclidean(squared=False), euclidean, lambda x: x),
    "lorentz": (
        metrics.LorentzDistance(lift=True),
        lambda q, k: -torch.acosh((-minkowski(lift(q), lift(k))).clamp(min=1)),
        lambda x: 0.7 * x,
    ),
    "lorentz-3": (
        metrics.LorentzDistance(beta=3.0, lift=True),
        lambda q, k: -3 * torch.acosh((-minkowski(lift(q), lift(k))).clamp(min=1)),
        lambda x: 0.7 * x,
    ),
    "poincare": (metrics.Poincare(), poincare, lambda x: 0.7 * x / (1 + x.norm(dim=-1, keepdim=True))),
    "poincare-squared": (
        metrics.Poincare(squared=True),
        lambda q, k: -poincare(q, k).square(),
        lambda x: 0.7 * x / (1 + x.norm(dim=-1, keepdim=True)),
    ),
    "sphere": (metrics.SphereGeodesic(), sphere, lambda x: x),
    "fisher-rao": (metrics.FisherRao(), fisher_rao, lambda x: F.softmax(x, -1)),
}


def attention(scores, v, keep=None):
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    return scores.softmax(-1) @ v


def deviation(got, want):
    """The largest difference, relative to the largest entry."""
    return float((got.detach().double() - want).abs().max() / want.abs().max().clamp(min=1e-12))


def allowed(plain, want):
    return max(2e-5, 4 * deviation(plain, want))


def hold(q, k, v, scores, keep=None, gradients=True, **parts):
    """Output and gradients of the compiled attention against the formula in float64, with the digits of float32."""
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    built = build(*inputs, **parts)
    got = built.program.main(*[*inputs, *built.operands[3:]])[0]
    found = []
    probe = torch.randn(got.shape, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        x = [t.detach().to(dtype).requires_grad_() for t in (q, k, v)]
        o = attention(scores(x[0], x[1]), x[2], keep)
        found.append((o.detach(), torch.autograd.grad(o, x, probe.to(dtype))))
    (want, want_grads), (plain, plain_grads) = found
    assert deviation(got, want) <= allowed(plain, want)
    if gradients:
        for g, w, p in zip(torch.autograd.grad(got, inputs, probe.float()), want_grads, plain_grads, strict=True):
            assert deviation(g, w) <= allowed(p, w)
    return built


def points(name, n=N, seed=0):
    make = METRICS[name][2]
    generator = torch.Generator().manual_seed(seed)
    return make(torch.randn(1, 2, n, D, generator=generator))


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("name", METRICS)
def test_tied_queries_and_keys_keep_their_digits(name, library):
    """q and k are one tensor: the nearest key of every query is itself, at distance 0."""
    x = points(name)
    metric, scores, _ = METRICS[name]
    # gradients of a formula at its own kink are rounding, in any precision: only outputs are compared there
    hold(x, x, torch.randn(1, 2, N, D), scores, metric=metric, library=library, gradients=name == "squared")


@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("name", METRICS)
def test_keys_close_to_their_queries_keep_their_digits(name, apart):
    x, y = points(name), points(name, seed=1)
    metric, scores, _ = METRICS[name]
    hold(x, x + apart * (y - x), torch.randn(1, 2, N, D), scores, metric=metric, shared=True)


@pytest.mark.parametrize("name", ["squared", "euclidean"])
@pytest.mark.parametrize("spread", [30.0, 1e3, 1e5])
def test_clusters_far_apart_keep_their_digits(name, spread):
    q, k = points(name), points(name, seed=1)
    far = torch.where(torch.arange(N) % 2 == 0, spread, -spread).reshape(1, 1, N, 1)
    metric, scores, _ = METRICS[name]
    hold(q + far, k + far, torch.randn(1, 2, N, D), scores, metric=metric)


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_heads_with_offsets_of_their_own_keep_their_digits(offset):
    q, k = points("squared"), points("squared", seed=1)
    shift = torch.tensor([offset, -offset]).reshape(1, 2, 1, 1)
    metric, scores, _ = METRICS["squared"]
    hold(q + shift, k + shift, torch.randn(1, 2, N, D), scores, metric=metric)


@pytest.mark.parametrize("spread, offset", [(0.5, 1e3), (30.0, 0.0), (1e3, 1e3)])
@pytest.mark.parametrize("metric", [metrics.Euclidean(), metrics.Mahalanobis(diagonal=torch.ones(2, D))])
@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("bias", [None, "slopes"])
def test_what_is_subtracted_of_keys_is_the_same_everywhere(spread, offset, bias, library, metric):
    """The log-sum-exp of squared distances is put together from numbers per query, per key and per pair."""
    q, v = points("squared") * spread + offset, torch.randn(1, 2, N, D)
    i, slopes = torch.arange(N), torch.tensor([0.3, 0.7])
    distance = (i.unsqueeze(1) - i).abs()
    keep = i.unsqueeze(1) >= i
    parts = {} if bias is None else {"bias": biases.ALiBi(slopes)}

    def scores(x, y):
        return -squared(x, y) / math.sqrt(D) - (0 if bias is None else slopes.to(x.dtype).reshape(2, 1, 1) * distance)

    parts |= {"metric": metric, "mask": masks.causal(), "library": library, "shared": True}
    # where tokens are far apart, every query looks at itself alone and gradients are nothing but the rest of that
    built = hold(q, q.clone(), v, scores, keep, gradients=spread < 1, **parts)
    x = q.double()
    lse = scores(x, x).masked_fill(~keep, float("-inf")).logsumexp(-1)
    assert (built.run()[1] - lse).abs().max() <= 2e-5


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("length", [1.0, 1e-3])
def test_lifted_inner_products_of_short_vectors_keep_their_digits(length, library):
    """2 + 2<q, k>_L is as small as the squared distance, its two parts are not."""
    tensors = [points("squared") * length, points("squared", seed=1) * length, torch.randn(1, 2, N, D)]
    scale = torch.tensor([0.3, 0.7])
    leaves = [t.clone().requires_grad_() for t in (*tensors, scale)]
    built = build(*leaves[:3], metric=metrics.LorentzInner(lift=True), scale=leaves[3], library=library)
    high = [t.double().requires_grad_() for t in (*tensors, scale)]
    score = high[3].reshape(2, 1, 1) * (2 + 2 * minkowski(lift(high[0]), lift(high[1])))
    probe = torch.randn(1, 2, N, D, dtype=torch.float64)
    want = torch.autograd.grad(attention(score, high[2]), high, probe)
    for o in (built.program.main(*leaves)[0], built.eager[0]):
        for g, w in zip(torch.autograd.grad(o, leaves, probe.float()), want, strict=True):
            assert deviation(g, w) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parts_of_gradients_are_rounded_when_they_are_added_up(dtype):
    """A factor of a metric gets large gradients through queries, keys and the log-sum-exp, whose sum is small."""
    far = torch.where(torch.arange(N) % 2 == 0, 16.0, -16.0).reshape(1, 1, N, 1)
    q, v = (points("squared") + far).to(dtype), (100 * torch.randn(1, 2, N, D)).to(dtype)
    tensors = [q, q.clone(), v, torch.randn(D, 2).to(dtype)]
    leaves = [t.clone().requires_grad_() for t in tensors]
    built = build(*leaves[:3], metric=metrics.Mahalanobis(factor=leaves[3]))
    o, lse = built.run()
    x, y, z, m = high = [t.double().requires_grad_() for t in tensors]
    score = -squared(x @ m, y @ m) / math.sqrt(D)
    probe = torch.randn(1, 2, N, D).to(dtype)
    pull = 30 * torch.ones(1, 2, N)
    want = torch.autograd.grad([attention(score, z), score.logsumexp(-1)], high, [probe.double(), pull.double()])
    found = torch.autograd.grad([o, lse], leaves, [probe, pull])
    assert deviation(found[3], want[3]) <= 1e-2


@pytest.mark.parametrize("by", ["metric", "layer"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_small_probabilities_have_gradients_in_half_precision(dtype, by):
    """The slope of a small probability's root leaves the range of a half; that of its logit does not."""
    q, k, v = (torch.randn(1, 2, N, D, generator=torch.Generator().manual_seed(s)) for s in range(3))
    tensors = [q.to(dtype), (4 * k).to(dtype), (3e4 * v.tanh()).to(dtype)]
    leaves = [t.clone().requires_grad_() for t in tensors]
    if by == "layer":
        layer = GeometricAttention(2 * D, 2, metric="fisher-rao").to(dtype)
        beta = layer.metric.scale().detach()
        outputs = [layer.attend(*leaves)]
    else:
        beta = torch.tensor([1.0, 2.0])
        built = build(*leaves, metric=metrics.FisherRao(beta, logits=True))
        outputs = [built.eager[0], built.run()[0]]
    high = [t.double().requires_grad_() for t in tensors]
    scores = beta.double().reshape(2, 1, 1) * fisher_rao(high[0].softmax(-1), high[1].softmax(-1))
    probe = torch.randn(1, 2, N, D).to(dtype)
    want = torch.autograd.grad(attention(scores, high[2]), high, probe.double())
    for o in outputs:
        assert o.dtype == dtype
        for g, w in zip(torch.autograd.grad(o, leaves, probe, retain_graph=True), want, strict=True):
            assert deviation(g, w) <= 2e-2


@pytest.mark.parametrize("above", [-12.0, -6.0, 0.0, 6.0, 12.0])
def test_sinks_that_take_little_or_nearly_all_keep_the_digits_of_their_gradients(above):
    q, k, v = points("squared"), points("squared", seed=1), torch.rand(1, 2, N, D)
    tensors = [q, k, v, torch.tensor([above, above + 1])]
    leaves = [t.clone().requires_grad_() for t in tensors]
    probe = torch.rand(1, 2, N, D)  # no signs: nothing cancels
    built = build(*leaves[:3], metric=metrics.DotProduct(), normalizer=normalizers.Softmax(leaves[3]))
    results = []
    for kind in (torch.float64, torch.float32):
        x = [t.to(kind).requires_grad_() for t in tensors]
        scores = x[0] @ x[1].mT / math.sqrt(D)
        weights = torch.cat([scores, x[3].reshape(1, 2, 1, 1).expand(1, 2, N, 1)], -1).softmax(-1)
        results.append(torch.autograd.grad(weights[..., :-1] @ x[2], x, probe.to(kind)))
    want, plain = results
    for o in (built.eager[0], built.run()[0]):
        for g, w, p in zip(torch.autograd.grad(o, leaves, probe), want, plain, strict=True):
            assert deviation(g, w) <= max(2e-6, 4 * deviation(p, w))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_distance_of_equal_distributions_is_zero(dtype):
    """Not the least number that a reciprocal root is taken of: weights and their gradients are those of nothing."""
    p = torch.eye(4, dtype=dtype)[:1].expand(1, 2, N, 4).contiguous()
    q, v, beta = p.clone().requires_grad_(), torch.randn(1, 2, N, D, dtype=dtype), torch.ones((), requires_grad=True)
    built = build(q, p, v, metric=metrics.FisherRao(beta))
    for _, lse in (built.eager, built.run()):
        assert not torch.autograd.grad(1e6 * lse.sum(), beta)[0].any()


def test_documents_far_apart_under_a_mask_keep_their_digits():
    q, k = points("squared"), points("squared", seed=1)
    ids = torch.arange(N) // 16
    far = 1e3 * ids.reshape(1, 1, N, 1)
    metric, scores, _ = METRICS["squared"]
    keep = ids.unsqueeze(1) == ids
    hold(q + far, k + far, torch.randn(1, 2, N, D), scores, keep, metric=metric, mask=masks.documents(ids))


@aatc.metric
def student(q, k):
    return -torch.log1p((q - k).square().sum())


@aatc.metric
def gaussian(q, k):
    return 5.0 * torch.exp(-0.5 * (q - k).square().sum())


@pytest.mark.parametrize("metric, scores", [
    (student, lambda q, k: -torch.log1p(squared(q, k))),
    (gaussian, lambda q, k: 5 * torch.exp(-0.5 * squared(q, k))),
])  # fmt: skip
@pytest.mark.parametrize("spread", [0.0, 1e3])
def test_functions_of_distances_keep_their_digits(metric, scores, spread):
    q, k = points("squared"), points("squared", seed=1)
    far = torch.where(torch.arange(N) % 2 == 0, spread, -spread).reshape(1, 1, N, 1)
    hold(q + far, k + far, torch.randn(1, 2, N, D), scores, metric=metric)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n, largest", [(300, 8.0), pytest.param(4096, 0.5, marks=pytest.mark.slow)])
def test_trained_slopes_keep_the_digits_of_their_gradients(dtype, n, largest):
    q, k, v = (torch.randn(1, 2, n, D, generator=torch.Generator().manual_seed(s)).to(dtype) for s in range(3))
    tensors = [q, k, v, torch.tensor([largest, largest / 7])]
    leaves = [t.clone().requires_grad_() for t in tensors]
    built = build(*leaves[:3], metric=metrics.DotProduct(), bias=biases.ALiBi(leaves[3]), mask=masks.causal())
    got = built.program.main(*leaves)[0]
    probe = torch.randn(got.shape, dtype=torch.float64)
    want, *want_grads = causal_alibi(tensors, probe, torch.float64, torch.float64)
    plain, *plain_grads = causal_alibi(tensors, probe, torch.float32, dtype)
    unit = 2e-5 if dtype == torch.float32 else 2e-2
    assert deviation(got, want) <= max(unit, 4 * deviation(plain, want))
    for g, w, p in zip(torch.autograd.grad(got, leaves, probe.to(dtype)), want_grads, plain_grads, strict=True):
        assert deviation(g, w) <= max(unit, 4 * deviation(p, w))


def causal_alibi(tensors, probe, kind, held):
    """Output, held in ``held``, and gradients of q, k, v and slopes by the formula in ``kind``, some rows at a time."""
    q, k, v, slopes = x = [t.to(kind).requires_grad_() for t in tensors]
    n, rows = q.shape[2], 512
    i, outputs, grads = torch.arange(n), [], [torch.zeros_like(t) for t in x]
    for start in range(0, n, rows):
        at, seen = i[start : start + rows].unsqueeze(1), i[: start + rows]
        score = q[:, :, start : start + rows] @ k[:, :, : start + rows].mT / math.sqrt(D)
        score = score - slopes.reshape(2, 1, 1) * (at - seen).abs()
        o = attention(score, v[:, :, : start + rows], at >= seen).to(held)
        outputs.append(o.detach())
        for total, part in zip(grads, torch.autograd.grad(o, x, probe[:, :, start : start + rows].to(held))):
            total += part
    return [torch.cat(outputs, 2), *grads]


@pytest.mark.parametrize("start", [0.0, 1e6, 1e9])
def test_differences_of_captured_positions_keep_their_digits(start):
    @aatc.metric(at="i[i]", to="i[j]")
    def near(q, k, at, to):
        return q @ k - 0.3 * (at - to).abs()

    q, k = points("squared"), points("squared", seed=1)
    i = torch.arange(N) * 3
    positions = i + int(start)
    hold(
        q, k, torch.randn(1, 2, N, D),
        lambda q, k: q @ k.mT - (0.3 * (i.unsqueeze(1) - i).abs()).to(q.dtype),
        metric=near(at=positions, to=positions),
    )  # fmt: skip


@pytest.mark.parametrize("order", ["q + k - q", "k - q + q", "2 * q + k - q - q"])
def test_what_is_added_and_taken_away_again_does_not_leave_its_rounding(order):
    """Numbers whose sums in the order of the formula are exact, beside small ones per pair."""
    q, key = (torch.randint(-1023, 1024, (1, 2, N, D), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    q, k = q.float(), key / 1024

    @aatc.metric(u="ij")
    def added(q, k, u):
        return eval(order, {"q": q[0], "k": k[0]}) + u

    u = torch.rand(N, N, generator=torch.Generator().manual_seed(2))
    built = build(q, k, k, metric=added(u=u))
    score = k.double()[..., 0].unsqueeze(2) + u.double()
    o, lse = built.program.main(*built.operands)[:2]
    assert deviation(o, torch.softmax(score, -1) @ k.double()) <= 2e-5
    assert float((lse.double() - torch.logsumexp(score, -1)).abs().max()) <= 2e-5


def test_calls_in_double_precision_are_counted():
    compiled = aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=metrics.Euclidean()), fallback=False)
    x, y, v = points("squared"), points("squared", seed=1), torch.randn(1, 2, N, D)
    compiled(x, y, v)
    (a,) = compiled.explain().attentions
    assert a.double_calls == 0
    compiled(x * 1e3, y * 1e3, v)
    (a,) = compiled.explain().attentions
    assert a.double_calls == 1 and "double precision in 1 call" in str(compiled.explain())


# --- very large scores ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("least", [-1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("shape", ["keys", "pairs"])
def test_rows_of_very_negative_biases_are_means_as_in_pytorch(library, least, shape):
    """The additive masks of padded batches: where all keys of a row are far below, softmax sees no difference."""
    q, k, v = (torch.randn(2, 2, 24, D, generator=torch.Generator().manual_seed(s)) for s in range(3))
    bias = torch.zeros(2, 1, 24, 24)
    bias[0, :, :, 15:] = least
    if shape == "pairs":
        bias[1, :, 7] = least
    else:
        bias = bias[:, :, :1].clone()
        bias[1] = least
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    built = build(*inputs, metric=metrics.DotProduct(), bias=bias, library=library)
    got, lse = built.program.main(*[*inputs, *built.operands[3:]])
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    want = F.scaled_dot_product_attention(*leaves, attn_mask=bias.expand(2, 2, 24, 24))
    eager = aatc.attend(*(x.detach() for x in leaves), metric=metrics.DotProduct(), bias=bias)
    probe = torch.randn_like(want)
    # not the library's own gradients: it takes weights from a log-sum-exp that has lost the number of keys
    written = attention(leaves[0] @ leaves[1].mT / math.sqrt(D) + bias, leaves[2])
    grads = torch.autograd.grad(got, inputs, probe), torch.autograd.grad(written, leaves, probe)
    closed = slice(7, 8) if shape == "pairs" else slice(None)
    # what a score of -1e9 still knows of q and k depends on where it is rounded: such rows are compared loosely
    rows = torch.zeros(2, 24, dtype=torch.bool)
    rows[1, closed] = least == -1e9
    open_ = ~rows.reshape(2, 1, 24, 1)
    for x in (got, eager):
        torch.testing.assert_close(x * open_, want * open_, rtol=2e-5, atol=2e-5)
    mean = v[1].mean(-2, keepdim=True)
    if least < -1e9:
        torch.testing.assert_close(got[1, :, closed], mean.expand_as(got[1, :, closed]), rtol=1e-5, atol=1e-5)
        for g, w in zip(*grads, strict=True):
            torch.testing.assert_close(g, w, rtol=2e-5, atol=2e-5)
    assert torch.isfinite(got).all() and all(torch.isfinite(g).all() for g in grads[0])
    assert (lse[1, :, closed] < -1e8).all()


@pytest.mark.parametrize("way", ["library", "tiles"])
@pytest.mark.parametrize("shift", [10.0, 100.0, 1000.0])
def test_what_the_lorentz_inner_product_loses_far_from_the_origin_is_what_its_formula_loses(shift, way):
    """It subtracts numbers as large as the square of a point's height, as it is written: no digits to win back."""
    g = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 2, n, d, generator=g) for n, d in ((70, D), (90, D), (90, 5)))
    tensors = [q + shift, k + shift, v]
    bias = torch.zeros(70, 90) if way == "library" else torch.randn(70, 90, generator=g)
    given = {} if way == "library" else {"bias": bias}

    def formula(q, k, v):
        tq, tk = ((1 + x.square().sum(-1)).sqrt() for x in (q, k))
        s = 2 + 2 * (q @ k.mT - tq.unsqueeze(-1) * tk.unsqueeze(-2))
        return (s * D**-0.5 + bias.to(s.dtype)).softmax(-1) @ v

    def ours(q, k, v):
        return aatc.attend(q, k, v, metric=metrics.LorentzInner(lift=True), **given)

    def all_of(f, dtype):
        x = [t.to(dtype).requires_grad_() for t in tensors]
        o = f(*x)
        return [o.detach(), *torch.autograd.grad(o, x, torch.ones_like(o).cumsum(2).to(dtype) / 70)]

    exact, plain = all_of(formula, torch.float64), all_of(formula, torch.float32)
    got = all_of(aatc.compile(ours, fallback=False), torch.float32)
    for x, p, w in zip(got, plain, exact, strict=True):
        assert (x - w).norm() <= max(4 * (p - w).norm(), 2e-5 * w.norm()), ((x - w).norm(), (p - w).norm(), w.norm())


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("mask", ["none", "causal", "window"])
@pytest.mark.parametrize("slopes", [0.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_whose_keys_all_have_a_bias_of_minus_infinity_are_closed(dtype, slopes, mask, library):
    """One head sees no key at all; the other, as with batches padded at their left, none in its first rows."""
    n = 150
    q, k, v = (torch.randn(1, 2, n, D, generator=torch.Generator().manual_seed(s)).to(dtype) for s in range(3))
    padding = torch.zeros(2, 1, n, dtype=dtype)
    padding[0], padding[1, :, :100] = float("-inf"), float("-inf")
    i = torch.arange(n)
    away = (i.unsqueeze(1) - i).abs()
    keep = {"none": None, "causal": i.unsqueeze(1) >= i, "window": away < 40}[mask]
    parts = {} if mask == "none" else {"mask": masks.causal() if mask == "causal" else masks.sliding_window(40)}
    bias = biases.Dense(padding) + biases.ALiBi(torch.tensor([slopes, slopes / 7])) if slopes else padding
    far = torch.tensor([slopes, slopes / 7]).double().reshape(2, 1, 1) * away
    check(
        lambda q, k, v: plain_attention(q @ k.mT / math.sqrt(D) + padding.double() - far, v, keep),
        *(q, k, v), tolerance=1e-4, metric=metrics.DotProduct(), bias=bias, library=library, **parts,
    )  # fmt: skip
