"""Gradients of squared distances where what a token sends to itself outweighs all it gets from others.

A token's distance to itself is 0 and so is what it sends itself; but for its rounding where the square was multiplied
out, which may be more than all that thousandths of weights of others sum to. Oracles are plain PyTorch in float64.
"""

import functools

import pytest
import torch

import aatc
from aatc import biases, masks, metrics, normalizers
from tests.compiler.harness import build

N, D = 96, 64
MATRIX = torch.eye(D) + 0.02 * torch.randn(D, D, generator=torch.Generator().manual_seed(1))
MATRIX = MATRIX @ MATRIX.mT
FACTOR = torch.randn(D, 24, generator=torch.Generator().manual_seed(2)) / 4
INTERVAL = torch.diag(torch.tensor([-1.0] + [1.0] * (D - 1)))


def forms(difference, matrix):
    return ((difference @ matrix.to(difference.dtype)) * difference).sum(-1)


#: name -> (metric, squared distance of differences)
METRICS = {
    "euclidean": (metrics.Euclidean(squared=True), lambda x: x.square().sum(-1)),
    "matrix": (metrics.Mahalanobis(matrix=MATRIX), lambda x: forms(x, MATRIX)),
    "factor": (metrics.Mahalanobis(factor=FACTOR), lambda x: (x @ FACTOR.to(x.dtype)).square().sum(-1)),
    "diagonal": (metrics.Mahalanobis(diagonal=MATRIX.diag()), lambda x: forms(x, MATRIX.diag().diag())),
    "interval": (metrics.Mahalanobis(matrix=INTERVAL), lambda x: forms(x, INTERVAL)),
}


def tokens(near, seed=3):
    """Queries that are keys; ``near``: and a pair in four of keys that nearly coincide."""
    g = torch.Generator().manual_seed(seed)
    k = torch.randn(1, 2, N, D, generator=g)
    if near is not None:
        k[..., 1::4, :] = k[..., 0::4, :] + near * torch.randn(1, 2, N // 4, D, generator=g)
    v, go = torch.randn(1, 2, N, 5, generator=g), torch.randn(1, 2, N, 5, generator=g)
    return k.clone(), k, v, go


def oracle(square, q, k, v, go, kind, keep, dtype, *bias):
    x = [t.to(dtype).requires_grad_() for t in (q, k, v, *bias)]
    s = -square(x[0].unsqueeze(3) - x[1].unsqueeze(2)) / D**0.5 + (x[3] if bias else 0.0)
    if kind == "softmax":
        p = s.masked_fill(~keep, float("-inf")).softmax(-1)
    else:
        p = torch.sigmoid(s - 1.5).masked_fill(~keep, 0.0)
    return torch.autograd.grad(p @ x[2], x, go.to(dtype))


def worst(found, want):
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, want, strict=True)]


@functools.cache
def attention(name, causal, kind, backend):
    """The compiled attention. Nearness is of the data: one program does for all."""
    metric = METRICS[name][0]
    normalizer = normalizers.Sigmoid(-1.5) if kind == "sigmoid" else "softmax"

    def f(q, k, v):
        mask = masks.causal() if causal else None
        return aatc.attend(q, k, v, metric=metric, mask=mask, normalizer=normalizer)

    return aatc.compile(f, backend=backend)


# What is one program stands side by side, for one process to run.
@pytest.mark.parametrize("near", [None, 0.0, 1e-6, 3e-2, 1e-3])
@pytest.mark.parametrize("backend", ["cpu", "native"])
@pytest.mark.parametrize(
    ("name", "kind"), [*((n, "softmax") for n in METRICS), ("euclidean", "sigmoid"), ("factor", "sigmoid")]
)
def test_gradients_keep_their_digits_where_a_token_sees_itself(name, near, kind, backend):
    square = METRICS[name][1]
    q, k, v, go = tokens(near)
    i = torch.arange(N)
    causal = near == 1e-3
    keep = i.unsqueeze(1) >= i if causal else torch.ones(N, N, dtype=torch.bool)
    x = [t.clone().requires_grad_() for t in (q, k, v)]
    found = torch.autograd.grad(attention(name, causal, kind, backend)(*x), x, go)
    want = oracle(square, q, k, v, go, kind, keep, torch.float64)
    plain = worst(oracle(square, q, k, v, go, kind, keep, torch.float32), want)
    got = worst(found, want)
    assert all(a <= max(2e-5, 4 * b) for a, b in zip(got, plain, strict=True)), (got, plain)


@functools.cache
def biased(name, backend):
    def f(q, k, v, bias):
        return aatc.attend(q, k, v, metric=METRICS[name][0], mask=masks.causal(), bias=biases.Dense(bias))

    return aatc.compile(f, backend=backend)


@pytest.mark.parametrize("near", [None, 1e-3])
@pytest.mark.parametrize("size", [1.0, -1e9])
@pytest.mark.parametrize("backend", ["cpu", "native"])
@pytest.mark.parametrize("name", METRICS)
def test_gradients_keep_their_digits_beside_a_bias(name, backend, size, near):
    """Large biases, too, which round what they are added to: forward and backward must round it alike."""
    q, k, v, go = tokens(near)
    i, g = torch.arange(N), torch.Generator().manual_seed(9)
    keep = i.unsqueeze(1) >= i
    bias = size * torch.randn(2, N, N, generator=g)
    if size < 0:
        bias = torch.where(torch.rand(2, N, N, generator=g) < 0.3, size, 0.0)
    x = [t.clone().requires_grad_() for t in (q, k, v, bias)]
    got = torch.autograd.grad(biased(name, backend)(*x), x, go)
    want, plain = (
        oracle(METRICS[name][1], q, k, v, go, "softmax", keep, dtype, bias) for dtype in (torch.float64, torch.float32)
    )
    got, plain = worst(got, want), worst(plain, want)
    assert all(a <= max(2e-5, 4 * b) for a, b in zip(got, plain, strict=True)), (got, plain)


@pytest.mark.parametrize("backend", ["cpu", "native"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("form", ["matrix", "factor", "diagonal"])
@pytest.mark.parametrize("tiny", [False, True])
def test_the_form_of_a_square_gets_its_gradient_from_near_pairs_too(form, kind, backend, tiny):
    """Data of few channels: near pairs are many, and not all weight is theirs. ``tiny``: all pairs are, far from 0."""
    g = torch.Generator().manual_seed(5)
    k, v, go = (torch.randn(1, 2, N, c, generator=g) for c in (4, 5, 5))
    k[..., 1::2, :] = k[..., 0::2, :] + 1e-2 * torch.randn(1, 2, N // 2, 4, generator=g)
    if tiny:
        k *= 1e-6
        k[..., 0] = 1.0
    given = torch.randn(*{"matrix": (4, 4), "factor": (4, 3), "diagonal": (4,)}[form], generator=g)
    given = given @ given.mT if form == "matrix" else given.abs()
    normalizer = normalizers.Sigmoid(-1.5) if kind == "sigmoid" else "softmax"

    def f(q, k, v, m):
        return aatc.attend(q, k, v, metric=metrics.Mahalanobis(**{form: m}), normalizer=normalizer)

    def plain(q, k, v, m):
        x = q.unsqueeze(3) - k.unsqueeze(2)
        y = (x @ m).square().sum(-1) if form == "factor" else (x * (x @ m if form == "matrix" else x * m)).sum(-1)
        s = -y / 2
        return (s.softmax(-1) if kind == "softmax" else torch.sigmoid(s - 1.5)) @ v

    def pulled(f, dtype):
        x = [t.to(dtype).clone().requires_grad_() for t in (k, k, v, given)]
        return torch.autograd.grad(f(*x), x, go.to(dtype))

    want, near = pulled(plain, torch.float64), pulled(plain, torch.float32)
    got = pulled(aatc.compile(f, backend=backend), torch.float32)
    assert all(a <= max(2e-5, 4 * b) for a, b in zip(worst(got, want), worst(near, want), strict=True)), (
        worst(got, want),
        worst(near, want),
    )


def test_the_form_that_was_multiplied_out_alone_would_not_do():
    """The data of these tests do break what they are for."""
    q, k, v, go = tokens(None)
    want = oracle(METRICS["euclidean"][1], q, k, v, go, "softmax", torch.ones(N, N, dtype=torch.bool), torch.float64)
    x, y = (t.clone().requires_grad_() for t in (q, k))
    s = (2 * x @ y.mT - y.square().sum(-1).unsqueeze(2)) / D**0.5
    (found,) = torch.autograd.grad(s.softmax(-1) @ v, x, go)
    assert worst([found], want[:1])[0] > 4e-5


def test_log_sum_exp_sends_back_through_the_squares_too():
    """What the score dropped of a query comes back with the log-sum-exp's gradient, and once only."""
    q, k, v, _ = tokens(1e-3)
    x = [t.clone().requires_grad_() for t in (q, k, v)]
    metric = METRICS["euclidean"][0]
    out = aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=metric, return_lse=True))(*x)[1]
    found = torch.autograd.grad(out.sum(), x[:2])
    y = [t.double().requires_grad_() for t in (q, k)]
    lse = (-(y[0].unsqueeze(3) - y[1].unsqueeze(2)).square().sum(-1) / D**0.5).logsumexp(-1)
    want = torch.autograd.grad(lse.sum(), y)
    assert max(worst(found, want)) <= 2e-5, worst(found, want)


def test_a_square_stands_apart_in_the_backward_and_not_in_the_forward():
    built = build(*tokens(None)[:3], metric=METRICS["euclidean"][0])
    functions = built.result.module.funcs
    forward, backward = (
        next(f for n, f in functions.items() if n.endswith(e)) for e in ("attend0", "attend0_backward")
    )
    assert not [op for op in forward.body.walk() if op.name == "tile.refine"]
    found = [op for op in backward.body.walk() if op.name == "tile.refine_gradient"]
    assert found and all(op.attrs["inside"] is True for op in found)


def test_a_constant_that_softmax_drops_does_not_come_back_in_the_backward():
    """A score of 1e6 is rounded to sixteenths; the forward drops the constant before it rounds anything."""
    q, k, v, go = tokens(None)

    @aatc.metric
    def shifted(q, k):
        return 1e6 - (q - k).square().sum()

    x = [t.clone().requires_grad_() for t in (0.2 * q, 0.2 * k + 0.1, v)]
    found = torch.autograd.grad(aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=shifted))(*x), x, go)
    y = [t.detach().double().requires_grad_() for t in x]
    weights = (-(y[0].unsqueeze(3) - y[1].unsqueeze(2)).square().sum(-1)).softmax(-1)
    want = torch.autograd.grad(weights @ y[2], y, go.double())
    assert max(worst(found, want)) <= 5e-5, worst(found, want)


@pytest.mark.parametrize("metric", [metrics.Euclidean(), metrics.Mahalanobis(torch.eye(16) + 0.1)])
@pytest.mark.parametrize(("offset", "names"), [(0.0, "qkv"), (10.0, "qkv"), (30.0, "qkv"), (100.0, "v")])
@pytest.mark.parametrize("backend", ["cpu", "native"])
def test_queries_far_from_all_keys(metric, offset, names, backend):
    """Every squared distance of a row is large, and only what they differ by counts: weights of the backward have to
    be the forward's, not those of squares that are each rounded by themselves. The farthest queries see one key each,
    and what they send to keys vanishes."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(1, 2, 64, 16, generator=generator) for _ in range(4))
    q[..., 0] += offset
    k = 0.3 * k

    def run(function, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        return torch.autograd.grad(function(*leaves), leaves, g.to(dtype))

    def attention(q, k, v):
        return aatc.attend(q, k, v, metric=metric, scale=0.3)

    exact = run(attention, torch.float64)
    plain = run(attention, torch.float32)
    torch.compiler.reset()
    got = run(aatc.compile(attention, backend=backend, fallback=False), torch.float32)
    for name, x, p, want in zip("qkv", got, plain, exact, strict=True):
        scale = want.abs().max()
        allowed = max(2e-5, 4 * float((p - want).abs().max() / scale))
        assert float((x - want).abs().max() / scale) <= allowed or name not in names, name


@aatc.metric(t="j")
def squared_beside(q, k, t):
    return t - (q - k).square().sum()


@pytest.mark.parametrize("backend", ["cpu", "native"])
@pytest.mark.parametrize("away", [0.0, 100.0])
def test_a_large_number_per_key_rounds_scores_in_the_backward_as_in_the_forward(away, backend):
    """Beside -1e9 single precision has multiples of 64: all weights are equal, in double precision, too, which a
    program of single precision falls back on far from the origin."""
    g = torch.Generator().manual_seed(0)
    x, v, go = (torch.randn(1, 1, 16, 4, generator=g) for _ in range(3))
    given = [t.requires_grad_() for t in (x + away, x + away, v)]
    metric = squared_beside(t=torch.full((16,), -1e9))
    compiled = aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=metric, scale=1.0), backend=backend)
    found = torch.autograd.grad(compiled(*given), given, go)
    # of equal weights: p (dP - mean of dP), times the slope of the square
    dp = (go @ v.detach().mT).double()
    ds = (dp - dp.mean(-1, keepdim=True)) / 16
    seen = given[0].detach().double()  # rounded as it is given
    difference = seen.unsqueeze(3) - seen.unsqueeze(2)
    want = [-2 * (ds.unsqueeze(-1) * difference).sum(3), 2 * (ds.unsqueeze(-1) * difference).sum(2)]
    assert float(difference.square().sum(-1).max()) < 64
    assert max(worst(found[:2], want)) <= 2e-5, worst(found[:2], want)
