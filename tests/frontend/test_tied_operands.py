"""One tensor in several places of an attention: self-attention without projections, tied keys and values."""

import pytest
import torch

import aatc
from aatc import metrics, normalizers

B, H, N, D = 1, 2, 8, 4
TIES = {"qv": (0, 1, 0), "qk": (0, 0, 1), "kv": (0, 1, 1), "qkv": (0, 0, 0)}
WEIGHT = torch.linspace(0.5, 2.0, D)


def euclidean(q, k, w=None):
    x = (q.unsqueeze(-2) - k.unsqueeze(-3)) ** 2
    return -0.5 * (x if w is None else x * w).sum(-1)


METRICS = {
    "euclidean": (metrics.Euclidean(), euclidean),
    "mahalanobis": (metrics.Mahalanobis(diagonal=WEIGHT), lambda q, k: euclidean(q, k, WEIGHT.double())),
    "dot": (metrics.DotProduct(), lambda q, k: q @ k.mT / D**0.5),
}


def both(out, lse):
    return torch.cat([out.flatten(), lse.flatten()])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("sink", [None, 0.5])
def test_one_tensor_in_several_places_is_attention_with_copies(metric, tie, sink):
    part, scores = METRICS[metric]
    normalizer = normalizers.Softmax() if sink is None else normalizers.Softmax(sink=sink)

    def f(*tensors):
        q, k, v = (tensors[n] for n in TIES[tie])
        return both(*aatc.attend(q, k, v, metric=part, normalizer=normalizer, return_lse=True))

    g = torch.Generator().manual_seed(4)
    tensors = [torch.randn(B, H, N, D, generator=g).requires_grad_() for _ in range(max(TIES[tie]) + 1)]
    exact = [x.detach().double().requires_grad_() for x in tensors]
    q, k, v = (exact[n] for n in TIES[tie])
    s = scores(q, k)
    lse = s.logsumexp(-1) if sink is None else torch.cat([s, torch.full_like(s[..., :1], sink)], -1).logsumexp(-1)
    want = both((s - lse.unsqueeze(-1)).exp() @ v, lse)
    got = aatc.compile(f, fallback=False)(*tensors)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)
    cotangent = torch.randn(want.shape, generator=g)
    grads = torch.autograd.grad(got, tensors, cotangent)
    for x, y in zip(grads, torch.autograd.grad(want, exact, cotangent.double()), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0, atol=1e-4)
