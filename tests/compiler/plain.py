"""Attention in plain torch and float64, for tests: it shares no code with the compiler."""

import torch

import aatc
from tests.compiler.harness import build


def attention(score, v, keep=None):
    """(o, lse) of scores (B,H,N,M) and values (B,H,M,E); ``keep`` tells which pairs count. Rows without any: 0, -inf.

    What stands at closed pairs is not read, and nothing flows back to it.
    """
    if keep is not None:
        score = torch.where(keep, score, torch.full_like(score, float("-inf")))
    open_ = torch.isfinite(score).any(-1, keepdim=True) | torch.isnan(score).any(-1, keepdim=True)
    top = score.detach().amax(-1, keepdim=True) if score.shape[-1] else score.new_zeros((*score.shape[:-1], 1))
    weight = torch.exp(score - torch.where(torch.isfinite(top), top, torch.zeros_like(top)))
    total = weight.sum(-1, keepdim=True)
    p = weight / torch.where(open_, total, torch.ones_like(total))
    lse = torch.where(open_, total, torch.ones_like(total)).log() + torch.where(open_, top, torch.zeros_like(top))
    lse = torch.where(open_, lse, torch.full_like(lse, float("-inf")))
    return p @ v, lse[..., 0]


def double(t):
    return t.detach().double().requires_grad_() if t.is_floating_point() else t


def check(formula, q, k, v, *, tensors=(), tolerance=1e-9, compiled=None, seed=0, grads=True, **parts):
    """Compiled output, log-sum-exp and gradients of q, k, v and ``tensors`` (that ``parts`` hold) against ``formula``.

    formula: (q, k, v, *tensors in float64) -> (o, lse) by plain torch. Returns what was built.
    """
    leaves = [q, k, v, *tensors]
    floats = [t for t in leaves if t.is_floating_point()] if grads else []
    for t in floats:
        t.requires_grad_()
    built = build(q, k, v, **(compiled or {}), **parts)
    high = [double(t) for t in leaves]
    want, got = formula(*high), built.program.main(*built.operands)
    for name, g, w in zip(("output", "log-sum-exp"), got, want, strict=True):
        close(g, w, tolerance, name)
    if not grads:
        return built
    torch.manual_seed(seed)
    # also where the log-sum-exp is -inf: a row without open keys lets nothing through
    probe = [torch.randn_like(w).masked_fill(torch.isnan(w) | torch.isposinf(w), 0.0) for w in want]
    low = [p.to(g.dtype) for p, g in zip(probe, got, strict=True)]
    want = torch.autograd.grad(want, [t for t in high if t.is_floating_point()], probe, allow_unused=True)
    found = torch.autograd.grad(got, floats, low, allow_unused=True)
    for n, (t, g, w) in enumerate(zip(floats, found, want, strict=True)):
        close(
            torch.zeros_like(t) if g is None else g,
            torch.zeros_like(t).double() if w is None else w,
            tolerance,
            f"gradient {n}",
        )
    return built


def close(got, want, tolerance, name):
    """Same shape, NaN and infinities in the same places, and numbers within ``tolerance`` of the largest."""
    assert got.shape == want.shape, name
    got, want = got.detach().double(), want.detach()
    assert torch.equal(torch.isnan(got), torch.isnan(want)), f"{name}: NaN in other places"
    assert torch.equal(torch.isinf(got), torch.isinf(want)), f"{name}: infinities in other places"
    finite = torch.isfinite(want)
    if finite.any():
        scale = max(1e-3, float(want[finite].abs().max()))
        off = float((got - want)[finite].abs().max()) / scale
        assert off <= tolerance, f"{name}: off by {off:.3g}"


__all__ = ["aatc", "attention", "check", "close", "double"]
