"""Scores that rewrites and kernels are easily wrong about: infinite rows, hidden NaNs, conditions, odd captures."""

import itertools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import aatc
from aatc import connections, masks, metrics
from tests.compiler.harness import build
from tests.compiler.plain import attention, check


@aatc.metric
def weighed(q, k):
    return q @ k + torch.log(q[0].abs())


@pytest.mark.parametrize("value", [float("-inf"), float("nan"), float("inf")])
@pytest.mark.parametrize("metric", [metrics.DotProduct(), metrics.Euclidean(), metrics.LorentzDistance(lift=True)])
def test_a_bias_of_queries_that_is_not_finite_shows(metric, value):
    q, k, v = (torch.randn(1, 2, n, 4, dtype=torch.float64, requires_grad=True) for n in (5, 7, 7))
    bias = torch.zeros(5, 1, dtype=torch.float64)
    bias[1] = value
    built = build(q, k, v, metric=metric, bias=bias)
    o, lse = built.program.main(q, k, v, *built.operands[3:])
    plain = build(q, k, v, metric=metric)
    want, want_lse = plain.program.main(q, k, v)
    rest = [0, 2, 3, 4]
    torch.testing.assert_close(o[:, :, rest], want[:, :, rest])
    torch.testing.assert_close(lse[:, :, rest], want_lse[:, :, rest])
    if value == float("-inf"):
        assert (o[:, :, 1] == 0).all() and (lse[:, :, 1] == value).all()
        grads = torch.autograd.grad(o.sum(), [q, k, v])
        assert (grads[0][:, :, 1] == 0).all() and all(torch.isfinite(g).all() for g in grads)
    else:
        assert torch.isnan(o[:, :, 1]).all()


@aatc.metric(c="bh")
def offset(q, k, c):
    return -(q - k).square().sum() + c


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", [metrics.DotProduct(), metrics.Euclidean(), "captured"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1, 1), (3, 1, 1, 1), (3, 2, 1, 1)])
def test_numbers_per_head_may_close_all_its_rows(metric, shape, dtype):
    """Softmax does not see a number that all keys share, unless it is infinite or drowns the scores."""
    q, k, v = (torch.randn(3, 2, n, 4, dtype=dtype, requires_grad=True) for n in (5, 7, 7))
    for least in (float("-inf"), torch.finfo(dtype).min):
        bias = torch.zeros(shape, dtype=dtype)
        bias.view(-1)[0] = least
        hit = (bias < 0).expand(3, 2, 1, 1)[..., 0, 0]
        if metric == "captured":
            built = build(q, k, v, metric=offset(c=bias.expand(3, 2, 1, 1)[..., 0, 0]))
        else:
            built = build(q, k, v, metric=metric, bias=bias)
        o, lse = built.program.main(q, k, v, *built.operands[3:])
        mean = v.mean(-2, keepdim=True).expand_as(o)
        want = torch.zeros_like(o) if least == float("-inf") else mean
        torch.testing.assert_close(o[hit], want[hit])
        assert (lse[hit] == least).all() if least == float("-inf") else (lse[hit] < -1e38).all()
        grads = torch.autograd.grad(o.square().sum(), [q, k, v])
        assert all(g.isfinite().all() for g in grads)
        assert (grads[0][hit] == 0).all() if least == float("-inf") else True
        plain = build(q, k, v, metric=offset(c=torch.zeros(3, 2, dtype=dtype)) if metric == "captured" else metric)
        for got, other in zip((o, lse), plain.program.main(q, k, v, *plain.operands[3:]), strict=True):
            torch.testing.assert_close(got[~hit], other[~hit])


@aatc.metric(c="bj", r="i")
def added(q, k, c, r):
    return c + r


def test_given_numbers_at_the_end_of_the_range_do_not_overflow():
    v, c = torch.randn(2, 1, 7, 4), torch.randn(2, 7)
    r = torch.zeros(5)
    r[1] = -3e38
    built = build(torch.randn(2, 1, 5, 4), torch.randn(2, 1, 7, 4), v, metric=added(c=c, r=r))
    o, lse = built.run()
    score = (c[:, None, None] + r[:, None]).double()
    score[:, :, 1] = -3e38  # softmax sees no difference between the keys there, in single precision
    torch.testing.assert_close(o.double(), score.softmax(-1) @ v.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), score.logsumexp(-1), rtol=1e-5, atol=1e-5)


def test_a_function_of_the_query_that_may_be_infinite_stays():
    q, k, v = (torch.randn(1, 1, n, 4, dtype=torch.float64) for n in (5, 7, 7))
    q[0, 0, 2, 0] = 0.0
    o, lse = build(q, k, v, metric=weighed).run()
    assert (o[0, 0, 2] == 0).all() and lse[0, 0, 2] == float("-inf")
    scores = q @ k.mT + q[..., :1].abs().log()
    torch.testing.assert_close(o[0, 0, 3:], (scores.softmax(-1) @ v)[0, 0, 3:])


@aatc.metric(c="bhid")
def by_captured_queries(q, k, c):
    return k @ c


@pytest.mark.parametrize("wanted", [w for w in itertools.product([False, True], repeat=4) if any(w)])
def test_gradients_are_the_same_whichever_are_wanted(wanted):
    """Sums that nobody wants leave the loops of a backward; the others stay where they lie."""
    q, k = (torch.randn(1, 2, n, 3, dtype=torch.float64) for n in (4, 6))
    q, k = (torch.cat([(1 + x.square().sum(-1, keepdim=True)).sqrt(), x], -1) for x in (q, k))
    tensors = [q, k, torch.randn(1, 2, 6, 4, dtype=torch.float64), torch.randn(1, 2, 4, 4, dtype=torch.float64)]
    leaves = [t.clone().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
    parts = {"metric": by_captured_queries(c=leaves[3]), "connection": connections.HyperboloidTransport()}
    o = build(*leaves[:3], **parts).run()[0]
    x, y, z, c = high = [t.clone().requires_grad_() for t in tensors]
    time = torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64)
    share = ((x * time) @ z.mT) / (1 - (x * time) @ y.mT)
    p = (c @ y.mT).softmax(-1)
    want = p @ z + (p * share).sum(-1, keepdim=True) * x + (p * share) @ y
    torch.testing.assert_close(o, want)
    probe = torch.randn_like(want)
    grads = torch.autograd.grad(want, high, probe)
    found = torch.autograd.grad(o, [t for t in leaves if t.requires_grad], probe)
    for g, w in zip(found, (g for g, w in zip(grads, wanted, strict=True) if w), strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("warm", [False, True])
def test_checkpoints_around_a_compiled_attention_recompute_it(warm):
    compiled = aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=metrics.DotProduct()), fallback=False)
    q, k, v = (torch.randn(1, 2, 9, 4, requires_grad=True) for _ in range(3))
    want = torch.autograd.grad((q @ k.mT / 2).softmax(-1).matmul(v).sum(), [q, k, v])
    if warm:
        compiled(q, k, v)
    got = torch.autograd.grad(checkpoint(compiled, q, k, v, use_reentrant=False).sum(), [q, k, v])
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


# --- what the library's kernel, conditions and channel sums need to be asked for -------------------------------
@pytest.mark.parametrize("which", ["q", "k"])
@pytest.mark.parametrize("metric", [metrics.DotProduct(), metrics.LorentzInner(), metrics.Cosine()])
def test_nan_shows_where_the_library_would_hide_it(metric, which):
    x = {n: torch.randn(1, 2, m, 6) for n, m in (("q", 7), ("k", 9), ("v", 9))}
    x[which][0, 0, 3, 1] = float("nan")
    o, lse = build(**x, metric=metric).run()
    assert torch.isnan(o[0, 0, 3]).all() and torch.isnan(lse[0, 0, 3])
    assert torch.isfinite(o[0, 1]).all()


@aatc.metric
def same(q, k):
    return torch.where((q - k).square().sum() == 0, 3.0, 0.0) + q[0] * k[0]


@aatc.metric
def nested(q, k):
    return (1.0 + (q @ k) * q).mean()


@aatc.metric(a="bi", b="bj")
def cancelled(q, k, a, b):
    return (a - b) * 1e4 - (a - b) * 1e4 + q @ k


@pytest.mark.parametrize("metric, scores", [
    (same, lambda q, k: 3.0 * ((q.unsqueeze(3) - k.unsqueeze(2)).square().sum(-1) == 0) + q[..., :1] @ k[..., :1].mT),
    (nested, lambda q, k: 1 + (q @ k.mT) * q.mean(-1, keepdim=True)),
])  # fmt: skip
def test_conditions_and_numbers_within_channel_sums(metric, scores):
    q, k, v = (torch.randn(1, 2, n, 4, dtype=torch.float64, requires_grad=True) for n in (5, 7, 7))
    with torch.no_grad():
        k[:, :, 2:4] = q[:, :, :2]
    o, _ = build(q, k, v, metric=metric).program.main(q, k, v)
    want = scores(q, k).softmax(-1) @ v
    torch.testing.assert_close(o, want)
    probe = torch.randn_like(o)
    for g, w in zip(*(torch.autograd.grad(x, [q, k, v], probe) for x in (o, want)), strict=True):
        torch.testing.assert_close(g, w)


def test_what_is_added_and_taken_away_leaves_no_rounding():
    q, k, v = (torch.randn(1, 2, n, 4, requires_grad=True) for n in (5, 7, 7))
    a, b = torch.randn(1, 5), torch.randn(1, 7)
    o, _ = build(q, k, v, metric=cancelled(a=a, b=b)).program.main(q, k, v, a, b)
    double = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = (double[0] @ double[1].mT).softmax(-1) @ double[2]
    for g, w in zip(torch.autograd.grad(o.sum(), [q, k, v]), torch.autograd.grad(want.sum(), double), strict=True):
        assert (g - w).abs().max() <= 2e-5 * w.abs().max()


@aatc.metric(t="jt")
def read_by_query(q, k, t, i):
    return q @ k + metrics.lookup(t, i)


@aatc.metric(t="ijd")
def vector_per_pair(q, k, t):
    return -(q - k - t).abs().sum()


@pytest.mark.parametrize("metric, shape, part", [(read_by_query, (7, 7), "table t"), (vector_per_pair, (5, 7, 4), "t")])
def test_what_has_no_tile_program_runs_by_its_formula_and_says_why(metric, shape, part):
    q, k, v = (torch.randn(1, 2, n, 4) for n in (5, 7, 7))
    built = build(q, k, v, metric=metric(t=torch.randn(shape)))
    torch.testing.assert_close(built.run()[0], built.eager[0])
    (note,) = [n for r in built.result.report for n in r.notes if "reference formula" in n]
    assert part in note


@aatc.metric(a="d")
def scaled(q, k, a):
    return (a * q) @ k


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("wrap", [lambda f: f, aatc.compile])
def test_vectors_of_other_widths_are_refused(wrap, width):
    q, k, v = (torch.randn(1, 2, n, 4) for n in (5, 7, 7))
    attend = wrap(lambda q, k, v: aatc.attend(q, k, v, metric=scaled(a=torch.ones(width))))
    with pytest.raises(aatc.errors.ScoreError, match=f"{width} and 4 channels"):
        attend(q, k, v)


def test_the_formula_has_the_gradients_of_its_closed_form():
    """Points that a rotation takes off the hyperboloid have no tile program; acosh at 1 has no slope."""
    x = torch.randn(1, 1, 4, 6, dtype=torch.float64)
    x[..., 0] = (1 + x[..., 1:].square().sum(-1)).sqrt()
    x[:, :, 1] = 0.0
    positions = torch.tensor([3.0, 0.0, 5.0, 7.0], dtype=torch.float64)
    turned = connections.Rotary(positions, torch.arange(4.0, dtype=torch.float64), style="pairs")
    built = build(x, x, torch.randn_like(x), metric=metrics.LorentzDistance(beta=0.25), connection=turned)
    assert any("reference formula" in n for r in built.result.report for n in r.notes)
    leaves, plain = ([t.detach().clone().requires_grad_() for t in built.operands] for _ in range(2))
    got = built.program.main(*leaves)[0]
    want = torch.ops.aatc.attend(*plain[:3], plain[3:], built.spec)[0]
    for g, w in zip(
        *(torch.autograd.grad(o.square().sum(), x) for o, x in ((got, leaves), (want, plain))), strict=True
    ):
        assert torch.isfinite(g).all()
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("seed", range(3))
def test_parts_of_a_gradient_do_not_overflow_half_precision(seed):
    """Scores of -1e9: what the log-sum-exp owes to the query alone takes away what its keys give, both above 65504."""
    torch.manual_seed(seed)
    n = 5
    q, k = (torch.randn(1, 3, n, 1).sign() * 2e4 for _ in range(2))
    k = k * torch.where(torch.rand_like(k) < 0.3, 0.5, 1.0)
    q, k, v = q.half().requires_grad_(), k.half().requires_grad_(), torch.randn(1, 3, n, 1).half()
    m, at, probe = torch.tensor([0.98]), torch.arange(n), torch.randn(1, 3, n)
    high = [t.detach().double().requires_grad_() for t in (q, k)]
    scores = -(m.double() * (high[0].unsqueeze(3) - high[1].unsqueeze(2)) ** 2).sum(-1)
    _, lse = attention(scores, v.double(), (at[:, None] - at).abs() < 2)
    want = torch.autograd.grad(lse, high, probe.double())
    mask = masks.predicate(lambda b, h, i, j: abs(i - j) < 2)
    built = build(q, k, v, metric=metrics.Mahalanobis(diagonal=m), mask=mask)
    for found, w in zip(torch.autograd.grad(built.run()[1], (q, k), probe), want, strict=True):
        in_range = w.abs() < 6e4
        assert not torch.isnan(found).any()
        torch.testing.assert_close(found[in_range].double(), w[in_range], rtol=2e-3, atol=1.0)


@aatc.metric(t="ijd", c="")
def with_row_terms(q, k, t, c):
    return c * (2.0 - (q - k - t).abs().sum() + q[0])


def test_row_terms_of_the_formula_count_once_not_once_per_key():
    n, m = 5, 7
    q, k, v = (torch.randn(2, 2, x, 4, dtype=torch.float64) for x in (n, m, m))
    t, c = torch.randn(n, m, 4).double(), torch.tensor(0.7).double()

    def formula(q, k, v, t, c):
        return attention(c * (2.0 - (q.unsqueeze(3) - k.unsqueeze(2) - t).abs().sum(-1) + q[..., :1]), v)

    built = check(formula, q, k, v, tensors=(t, c), metric=with_row_terms(t=t, c=c))
    (op,) = [op for op in built.result.module.walk() if op.name == "geo.attend"]
    assert "row" in op.attrs
