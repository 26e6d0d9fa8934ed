"""Masks and biases combined with bare tensors, in either order, eagerly and within compiled functions."""

import pytest
import torch

import aatc
from aatc import biases, masks, metrics

B, H, N, D = 1, 2, 8, 4
ROW, COL = torch.arange(N)[:, None], torch.arange(N)
SLOPES = torch.tensor([0.5, 0.25])
CAUSAL = COL <= ROW


def in_place(x, y, word):
    if word == "+":
        x += y
    elif word == "&":
        x &= y
    else:
        x |= y
    return x


BIASES = {
    "right": lambda t: biases.ALiBi(SLOPES) + t,
    "left": lambda t: t + biases.ALiBi(SLOPES),
    "in-place": lambda t: in_place(biases.ALiBi(SLOPES), t, "+"),
    "thrice": lambda t: t + (biases.ALiBi(SLOPES) + t),
}
MASKS = {
    "and": (lambda t: masks.causal() & t, lambda t: CAUSAL & t),
    "and-left": (lambda t: t & masks.causal(), lambda t: CAUSAL & t),
    "or": (lambda t: masks.causal() | t, lambda t: CAUSAL | t),
    "or-left": (lambda t: t | masks.causal(), lambda t: CAUSAL | t),
    "and-in-place": (lambda t: in_place(masks.causal(), t, "&"), lambda t: CAUSAL & t),
    "or-in-place": (lambda t: in_place(masks.causal(), t, "|"), lambda t: CAUSAL | t),
    "tensors-too": (lambda t: masks.causal() & (t | t.mT) | ~t, lambda t: CAUSAL & (t | t.mT) | ~t),
}


def tensors():
    g = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(B, H, N, D, generator=g) for _ in range(3))
    return q, k, v, torch.randn(H, N, N, generator=g)


def scores(q, k):
    return q.double() @ k.double().mT / D**0.5


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_and_a_tensor_add_up(name):
    def f(q, k, v, t):
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), bias=BIASES[name](t))

    q, k, v, t = tensors()
    given = t.double() * (2 if name == "thrice" else 1) - SLOPES[:, None, None] * (ROW - COL).abs()
    want = (scores(q, k) + given).softmax(-1) @ v.double()
    for g in (f, aatc.compile(f, fallback=False)):
        torch.testing.assert_close(g(q, k, v, t).double(), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_and_a_tensor_combine(name):
    part, truth = MASKS[name]

    def f(q, k, v, keep):
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), mask=part(keep))

    q, k, v, t = tensors()
    keep = (t > -0.5) | torch.eye(N, dtype=torch.bool)
    want = scores(q, k).masked_fill(~truth(keep), float("-inf")).softmax(-1).nan_to_num() @ v.double()
    for g in (f, aatc.compile(f, fallback=False)):
        torch.testing.assert_close(g(q, k, v, keep).double(), want, rtol=0, atol=2e-5)
