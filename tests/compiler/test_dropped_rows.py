"""Numbers per query are dropped where softmax does not see them, and only there."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import aatc
from aatc import metrics
from tests.compiler.harness import build


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


def test_a_function_of_the_query_that_may_be_infinite_stays():
    q, k, v = (torch.randn(1, 1, n, 4, dtype=torch.float64) for n in (5, 7, 7))
    q[0, 0, 2, 0] = 0.0
    o, lse = build(q, k, v, metric=weighed).run()
    assert (o[0, 0, 2] == 0).all() and lse[0, 0, 2] == float("-inf")
    scores = q @ k.mT + q[..., :1].abs().log()
    torch.testing.assert_close(o[0, 0, 3:], (scores.softmax(-1) @ v)[0, 0, 3:])


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
