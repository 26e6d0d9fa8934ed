"""Tensors whose memory does not hold their numbers: views that are to be negated, and zeros that have no memory."""

import pytest
import torch

import aatc
from aatc import masks, metrics


def attention(q, k, v):
    return aatc.attend(q, k, v, metric=metrics.Euclidean(), mask=masks.causal())


@pytest.fixture(scope="module")
def compiled():
    return aatc.compile(attention, backend="native", fallback=False)


def exact(*operands):
    return attention(*(t.resolve_neg().double() for t in operands))


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("make", [torch._neg_view, lambda t: torch.complex(t, -t).conj().imag])
def test_operands_that_are_to_be_negated(compiled, at, make):
    operands = list(torch.randn(3, 1, 2, 20, 16))
    operands[at] = make(operands[at])
    assert operands[at].is_neg()
    torch.testing.assert_close(compiled(*operands).double(), exact(*operands), rtol=0, atol=1e-5)


@pytest.mark.parametrize("at", range(3))
def test_operands_that_have_no_memory(compiled, at):
    operands = list(torch.randn(3, 1, 2, 20, 16))
    operands[at] = torch._efficientzerotensor(operands[at].shape)
    want = exact(*(t.clone() for t in operands))
    torch.testing.assert_close(compiled(*operands).double(), want, rtol=0, atol=1e-5)


def gradients(compiled, make):
    leaves = [t.requires_grad_() for t in torch.randn(3, 1, 2, 20, 16)]
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    out, want = compiled(*leaves), attention(*doubles)
    given = make(out)
    found = torch.autograd.grad(out, leaves, given)
    return found, torch.autograd.grad(want, doubles, given.clone().double())


@pytest.mark.parametrize(
    "make", [lambda o: torch._neg_view(torch.randn_like(o)), lambda o: torch._efficientzerotensor(o.shape)]
)
def test_gradients_that_are_to_be_negated_or_have_no_memory(compiled, make):
    for found, want in zip(*gradients(compiled, make), strict=True):
        torch.testing.assert_close(found.double(), want, rtol=0, atol=1e-5)
