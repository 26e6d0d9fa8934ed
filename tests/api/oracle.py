"""Attention by hand, on whole score matrices and with torch's own autograd; knows nothing of aatc."""

import torch


def attention(q, k, v, scores, *, mask=None, carried=None):
    """Output and lse from scores (B, H, N, M); ``carried`` (B, H, N, M, Dv) stands for v."""
    scores = scores.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    lse = torch.logsumexp(scores, -1)
    weights = torch.nan_to_num(torch.softmax(scores, -1)) if mask is not None else torch.softmax(scores, -1)
    if carried is None:
        v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        return weights @ v, lse
    return torch.einsum("bhij,bhijd->bhid", weights, carried), lse


def pairs(q, k):
    """q (B, H, N, 1, D) and k (B, H, 1, M, D), key heads repeated."""
    return q.unsqueeze(3), k.repeat_interleave(q.shape[1] // k.shape[1], 1).unsqueeze(2)


def minkowski(x, y):
    return (x[..., 1:] * y[..., 1:]).sum(-1) - x[..., 0] * y[..., 0]


def on_hyperboloid(x, c=1.0):
    """Points whose spatial part is ``x``."""
    return torch.cat([(1 / c + x.square().sum(-1, keepdim=True)).sqrt(), x], -1)


def inputs(b=2, h=4, n=5, m=7, d=6, dv=6, hk=None, dtype=torch.float64, requires_grad=True):
    hk = hk or h
    shapes = ((b, h, n, d), (b, hk, m, d), (b, hk, m, dv))
    return [torch.randn(s, dtype=dtype).requires_grad_(requires_grad) for s in shapes]


def agree(got, want, leaves, tolerance=1e-11):
    """Outputs, and gradients of a random functional of them by all ``leaves``, are equal."""
    got, want = (x if isinstance(x, tuple) else (x,) for x in (got, want))
    probes = [torch.randn_like(w) for w in want]
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance)
    totals = [sum((p * x.nan_to_num(neginf=0.0)).sum() for p, x in zip(probes, xs)) for xs in (got, want)]
    grads = [torch.autograd.grad(t, leaves, allow_unused=True, retain_graph=True) for t in totals]
    for n, (g, w) in enumerate(zip(*grads, strict=True)):
        g, w = (torch.zeros_like(leaves[n]) if x is None else x for x in (g, w))
        torch.testing.assert_close(
            g, w, rtol=100 * tolerance, atol=100 * tolerance, msg=lambda s, n=n: f"leaf {n}: {s}"
        )
