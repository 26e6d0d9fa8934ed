"""Gradients of captured numbers and tables, which sum what every pair sends: what cancels in each pair stays cancelled,
and what a million pairs send to one entry is not rounded a million times."""

import functools

import pytest
import torch

import aatc
from aatc import masks, metrics, normalizers
from tests.compiler.harness import build

N, D = 40, 6


@aatc.metric(c="")
def over(q, k, c):
    return c * torch.tanh((q @ q + k @ k + 2 * (q @ k)) / c)


@aatc.metric(c="")
def times(q, k, c):
    return torch.tanh((q @ q + k @ k + 2 * (q @ k)) * c) / c


@aatc.metric(c="h")
def twice(q, k, c):
    return torch.exp(-(c * ((q @ q + k @ k + 2 * (q @ k)) / c)))


@functools.cache
def attention(metric, kind, backend):
    normalizer = normalizers.Sigmoid(-1.5) if kind == "sigmoid" else "softmax"
    return aatc.compile(
        lambda q, k, v, c: aatc.attend(q, k, v, metric=metric(c=c), scale=1.0, normalizer=normalizer), backend=backend
    )


@pytest.mark.parametrize("backend", ["cpu", "native"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("metric", [over, times, twice])
def test_a_factor_of_a_sum_that_cancels_gets_nothing(metric, kind, backend):
    """All sums are exactly 0, of a number per query, one per key and a contraction, which are large."""
    g = torch.Generator().manual_seed(0)
    q = torch.randint(1, 9, (D,), generator=g).float().expand(1, 2, N, D)
    v, go = (100 * torch.randn(1, 2, N, D, generator=g) for _ in range(2))
    c = torch.full((2,) if metric is twice else (), 0.7).requires_grad_()
    o = attention(metric, kind, backend)(q, -q, v, c)
    (found,) = torch.autograd.grad(o, c, go)
    assert found.abs().max() == 0


@pytest.mark.parametrize("backend", ["cpu", "native"])
@pytest.mark.parametrize("metric", [over, times])
def test_a_factor_of_a_sum_gets_its_gradient(metric, backend):
    g = torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, 2, N, D, generator=g) / 3 for _ in range(2))
    v, go = (torch.randn(1, 2, N, D, generator=g) for _ in range(2))
    c = torch.tensor(0.7)

    def formula(q, k, v, c):
        s = (q.unsqueeze(3) + k.unsqueeze(2)).square().sum(-1)
        s = c * torch.tanh(s / c) if metric is over else torch.tanh(s * c) / c
        return s.softmax(-1) @ v

    def pulled(f, dtype):
        x = [t.to(dtype).requires_grad_() for t in (q.clone(), k.clone(), v.clone(), c.clone())]
        return torch.autograd.grad(f(*x), x, go.to(dtype))

    want, plain = pulled(formula, torch.float64), pulled(formula, torch.float32)
    got = pulled(attention(metric, "softmax", backend), torch.float32)
    for x, y, p in zip(got, want, plain, strict=True):
        size = y.abs().max()
        assert (x - y).abs().max() / size <= max(2e-5, 4 * (p - y).abs().max() / size)


@aatc.metric(r="bi", s="bj")
def per_token(q, k, r, s):
    return 0.3 * ((q + k) @ ((r * s) * k))


@pytest.mark.parametrize("backend", ["cpu", "native"])
def test_a_factor_per_query_and_one_per_key_are_no_number_of_the_query(backend):
    """Of them both is the slope of a sum whose digits are watched."""
    g = torch.Generator().manual_seed(2)
    x = [torch.randn(*n, generator=g) for n in ((1, 2, N, D), (1, 2, N, D), (1, 2, N, D), (1, N), (1, N))]
    go = torch.randn(1, 2, N, D, generator=g)

    def formula(q, k, v, r, s):
        score = 0.3 * r[:, None, :, None] * s[:, None, None] * (q @ k.mT + k.square().sum(-1).unsqueeze(2))
        return score.softmax(-1) @ v

    def pulled(f, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (y.clone() for y in x)]
        return torch.autograd.grad(f(*leaves), leaves, go.to(dtype))

    run = aatc.compile(
        lambda q, k, v, r, s: aatc.attend(q, k, v, metric=per_token(r=r, s=s), scale=1.0),
        backend=backend,
        fallback=False,
    )
    for got, want in zip(pulled(run, torch.float32), pulled(formula, torch.float64), strict=True):
        assert (got - want).abs().max() / want.abs().max() <= 2e-5


@aatc.metric(t="ht", s="t")
def read(q, k, t, s, *, h, i, j):
    return aatc.metrics.lookup(t, 0.0 * h) + aatc.metrics.lookup(s, i - j)


def test_a_table_that_a_million_pairs_read_gets_its_gradient_in_eager():
    """The numbers have one sign, so that single precision, entry by entry, would lose four digits."""
    n = 1024
    q, v = torch.zeros(1, 1, n, 1), torch.ones(1, 1, n, 1)
    t, s = torch.zeros(1, 3, requires_grad=True), torch.zeros(4, requires_grad=True)
    o = aatc.attend(q, q, v, metric=read(t=t, s=s), scale=1.0, normalizer=normalizers.Sigmoid(-8.0))
    ones, slopes = torch.autograd.grad(o.sum(), (t, s))
    p = torch.sigmoid(torch.tensor(-8.0, dtype=torch.float64))
    slope = p * (1 - p)
    i = torch.arange(n)
    counts = (i.unsqueeze(1) - i).clamp(0, 3).flatten().bincount()
    torch.testing.assert_close(ones.double(), slope * torch.tensor([[n * n, 0, 0]]), rtol=2e-6, atol=0)
    torch.testing.assert_close(slopes.double(), slope * counts, rtol=2e-6, atol=0)


@pytest.mark.parametrize("backend", ["cpu", "native"])
def test_a_matrix_in_double_precision_leaves_the_mean_of_the_keys_one_number(backend):
    """What is read beside it must not change the mean that keys are counted from: forward and backward would disagree
    about every score by its rounding, times queries a hundred away."""
    torch.manual_seed(3)
    away = 100.0 * torch.tensor([-1.0, 1.0]).unsqueeze(-1)
    q = (away + torch.randn(1, 6, 2, 4)).requires_grad_()
    k = torch.randn(1, 3, 1, 4).expand(1, 3, 15, 4).clone().requires_grad_()  # one key, whose mean is rounded
    m = torch.randn(4, 2, dtype=torch.float64).requires_grad_()
    keep = torch.rand(2, 15) < 0.8
    probe = torch.randn(1, 6, 2, dtype=torch.float64)
    exact = [t.detach().double().requires_grad_() for t in (q, k, m)]
    apart = (exact[0].unsqueeze(3) - exact[1].repeat_interleave(2, 1).unsqueeze(2)) @ exact[2]
    scores = (-apart.square().sum(-1)).masked_fill(~keep, -torch.inf)
    want = torch.autograd.grad(torch.logsumexp(scores, -1), exact, probe)

    built = build(
        q,
        k,
        torch.randn(1, 3, 15, 3),
        metric=metrics.Mahalanobis(factor=m),
        scale=1.0,
        mask=masks.dense(keep),
        backend=backend,
    )
    lse = built.run()[1]
    for got, w in zip(torch.autograd.grad(lse, (q, k, m), probe.to(lse.dtype)), want, strict=True):
        assert (got.double() - w).abs().max() <= 2e-5 * w.abs().max()
