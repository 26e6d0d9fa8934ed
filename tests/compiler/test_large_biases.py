"""Captured numbers far larger than scores: additive masks of -1e9 in every precision, and sums that form them."""

import functools

import pytest
import torch

import aatc
from aatc import metrics
from aatc.ir.score.evaluate import evaluate
from aatc.ir.score.expr import param
from aatc.passes.captured import absorbed
from tests.compiler.harness import build

N, D = 70, 8
LEAST = torch.finfo(torch.float32).min


def lifted(x):
    return torch.cat([(1 + x.square().sum(-1, keepdim=True)).sqrt(), x], -1)


def lorentz(q, k):
    x = q.unsqueeze(-2) * k.unsqueeze(-3)
    return (x[..., 0] - x[..., 1:].sum(-1)).clamp_min(1)


def plain(q, k):
    return (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)


METRICS = {
    "dot": (metrics.DotProduct(), lambda q, k: q @ k.mT / D**0.5),
    "distance": (metrics.Euclidean(squared=False), lambda q, k: -plain(q, k).sqrt() / D**0.5),
    "lorentz": (metrics.LorentzDistance(lift=True), lambda q, k: -lorentz(lifted(q), lifted(k)).acosh()),
    "squared": (metrics.Euclidean(), lambda q, k: -plain(q, k) / D**0.5),
}


def tokens(*, near=0.0, apart=0.0):
    """Keys ``near`` to their queries, in two clusters ``apart``."""
    g = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 2, N, D, generator=g) for _ in range(3))
    cluster = apart * (torch.arange(N) % 2)[:, None]
    return q + cluster, (q + near * k if near else k) + cluster, v


@functools.cache
def with_bias(name, shape):
    """The compiled attention with a bias of a shape: its values are data."""
    metric = METRICS[name][0]
    return aatc.compile(lambda q, k, v, b: aatc.attend(q, k, v, metric=metric, bias=b), fallback=False)


# What is one program stands side by side, for one process to run.
@pytest.mark.parametrize(
    ("name", "value", "given"),
    [
        ("dot", -1e9, {}),
        ("squared", -1e9, {}),
        *(("squared", LEAST, {"apart": apart}) for apart in (1e3, 1e6)),
        *((name, value, {"near": 1e-4}) for name in ("distance", "lorentz") for value in (-1e9, LEAST)),
    ],
)
@pytest.mark.parametrize("shape", [(N, N), (N, 1), (1, N)])
def test_rows_that_a_bias_leaves_nothing_of_get_the_mean_in_every_precision(name, value, given, shape):
    scores = METRICS[name][1]
    tensors = [x.requires_grad_() for x in tokens(**given)]
    bias = torch.zeros(shape)
    (bias if shape == (1, N) else bias[5:8]).fill_(value)
    got = with_bias(name, shape)(*tensors, bias)

    exact = [x.detach().double().requires_grad_() for x in tensors]
    s = scores(*exact[:2])
    s = torch.where(bias < 0, s - s.detach(), s)  # the score is lost, its slope is not
    want = s.softmax(-1) @ exact[2]
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)
    g = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(got, tensors, g), torch.autograd.grad(want, exact, g.double())
    for x, y in zip(*grads, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-4)


IDIOMS = {
    "less-one": ("ij", lambda keep: (keep - 1) * 1e9),
    "one-less": ("ij", lambda keep: -1e9 * (1 - keep)),
    "divided": ("ij", lambda keep: (keep - 1) / 1e-9),
    "difference": ("ij", lambda keep: 1e9 * keep - 1e9),
    "of-two": ("i j", lambda a, b: (a + b - 2) * 1e9),
    "product": ("i j", lambda a, b: (a * b - 1) * 1e9),
    "two-per-pair": ("ij ij", lambda a, b: (a - b) * 1e9),
}


@pytest.mark.parametrize("form", ["dot", "squared", "distance"])
@pytest.mark.parametrize("name", IDIOMS)
def test_masks_made_by_arithmetic_within_a_metric_leave_scores_their_digits(name, form):
    axes, idiom = IDIOMS[name]
    g = torch.Generator().manual_seed(5)
    given = [(torch.rand((N,) * len(a), generator=g) > 0.3).float() for a in axes.split()]
    if name == "two-per-pair":
        given[1] = given[0] + given[1]
    pairs = [x if x.dim() == 2 else x[:, None] if a == "i" else x for a, x in zip(axes.split(), given, strict=True)]
    base, scores = {
        "dot": (lambda q, k: q @ k, lambda q, k: q @ k.mT),
        "squared": (lambda q, k: -(q - k).square().sum(), lambda q, k: -plain(q, k)),
        "distance": (lambda q, k: -(q - k).square().sum().sqrt(), lambda q, k: -plain(q, k).sqrt()),
    }[form]
    if len(given) == 1:
        part = aatc.metric(a=axes)(lambda q, k, a: base(q, k) + idiom(a))(a=given[0])
    else:
        declared = dict(zip("ab", axes.split(), strict=True))
        part = aatc.metric(**declared)(lambda q, k, a, b: base(q, k) + idiom(a, b))(**dict(zip("ab", given)))
    q, k, v = tokens()
    got = aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=part), fallback=False)(q, k, v)
    extra = idiom(*(x.double() for x in pairs)).expand(N, N)
    want = (scores(q.double(), k.double()) + extra).softmax(-1) @ v.double()
    open_rows = (extra > -1e3).any(-1)
    assert open_rows.any()
    torch.testing.assert_close(got.double()[:, :, open_rows], want[:, :, open_rows], rtol=0, atol=2e-5)


# --- sums with captured numbers, in every precision --------------------------------------------------------------
#: name -> (score, signs of s, t and u in it)
SIGNS = {
    "s - t": (lambda s, t, u: s - t, (1, -1, 0)),
    "t - s": (lambda s, t, u: t - s, (-1, 1, 0)),
    "s - t - u": (lambda s, t, u: s - t - u, (1, -1, -1)),
    "s - (t - u)": (lambda s, t, u: s - (t - u), (1, -1, 1)),
    "s - (t + u)": (lambda s, t, u: s - (t + u), (1, -1, -1)),
    "(t - s) - u": (lambda s, t, u: (t - s) - u, (-1, 1, -1)),
    "t - (u - s)": (lambda s, t, u: t - (u - s), (1, 1, -1)),
    "u - (s + t)": (lambda s, t, u: u - (s + t), (-1, -1, 1)),
    "u - (s - t)": (lambda s, t, u: u - (s - t), (-1, 1, 1)),
}


@pytest.mark.parametrize("name", SIGNS)
def test_captured_numbers_keep_their_signs_in_sums_for_double_precision(name):
    """The form for double precision of a score means what the score means, where no number is large."""
    made, signs = SIGNS[name]
    q, k, t, u = param("q", "bhid"), param("k", "bhjd"), param("t", "ij"), param("u", "j")
    env = {n: torch.randn(shape, dtype=torch.float64) for n, shape in (("q", (1, 1, 4, 3)), ("k", (1, 1, 5, 3)))}
    env |= {"t": torch.randn(4, 5, dtype=torch.float64), "u": torch.randn(5, dtype=torch.float64)}
    score = made(q @ k, t, u)
    found = absorbed(score)
    assert found is not score
    want = sum(sign * x for sign, x in zip(signs, (env["q"] @ env["k"].mT, env["t"], env["u"]), strict=True))
    got = evaluate(found, env, (1, 1, 4, 5), dtype=torch.float64)[..., 0]
    torch.testing.assert_close(got, want.expand(1, 1, 4, 5), rtol=0, atol=1e-13)


@aatc.metric(t="ij", u="j")
def taken_away(q, k, t, u):
    return -((q - k) @ (q - k)) - t - (u - 0.5 * t)


@pytest.mark.parametrize("backend", ["cpu", "native"])
def test_captured_numbers_that_are_taken_away_from_scores_of_clusters(backend):
    """In double precision, as squares of numbers like 1000 need it."""
    g = torch.Generator().manual_seed(1)
    n = 8
    cluster = 1e3 * (torch.arange(n) % 2)[:, None]
    q, k = (0.3 * torch.randn(1, 1, n, D, generator=g) + cluster for _ in range(2))
    v, t, u = (torch.randn(shape, generator=g) for shape in ((1, 1, n, D), (n, n), (n,)))
    metric = taken_away(t=3 * t, u=u)
    run = aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=metric, scale=1.0), backend=backend, fallback=False)
    got = run(q, k, v)
    assert "double precision in 1 call" in str(run.explain())
    want = (-plain(q.double(), k.double()) - 1.5 * t.double() - u.double()).softmax(-1) @ v.double()
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)


CHOSEN = {
    "where always": lambda t, i, j: torch.where(i + j >= 0, t, 0.0),
    "where never": lambda t, i, j: torch.where(i + j < 0, 0.0, t),
    "where and minus": lambda t, i, j: -torch.where(i + j >= 0, -t, 0.0),
    "within a where": lambda t, i, j: torch.where(i + j >= 0, torch.where(j >= 0, t, 1.0), 0.0),
}


@pytest.mark.parametrize("backend", ["cpu", "native"])
@pytest.mark.parametrize("name", CHOSEN)
def test_the_least_number_of_all_closes_no_row_where_positions_choose_it(name, backend):
    """Beside it no score is left: all keys count alike."""
    chosen = CHOSEN[name]

    @aatc.metric(t="h")
    def metric(q, k, t, i, j):
        return q @ k + chosen(t, i, j)

    q, k, v = (torch.randn(1, 2, 6, D) for _ in range(3))
    built = build(q, k, v, metric=metric(t=torch.full((2,), LEAST)), backend=backend)
    o, lse = built.run()
    torch.testing.assert_close(o, v.mean(2, keepdim=True).expand_as(o), rtol=0, atol=1e-6)
    assert (lse == LEAST).all()
