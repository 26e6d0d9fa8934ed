"""The custom op: torch's own checks of it, and its spec as text."""

import pytest
import torch

import aatc
from aatc import biases, connections, masks, metrics
from aatc.ops import attention, read_spec
from tests.api.oracle import inputs


def recorded(monkeypatch, *args, **kwargs):
    """The arguments with which `attend` calls the op."""
    calls = []
    op = torch.ops.aatc.attend
    monkeypatch.setattr(torch.ops.aatc, "attend", lambda *a: calls.append(a) or op(*a))
    aatc.attend(*args, **kwargs)
    monkeypatch.undo()
    return calls[0]


def _leaf(*shape):
    return torch.randn(*shape).requires_grad_()


SPECS = {
    "dot": lambda: {"metric": metrics.DotProduct()},
    "lorentz": lambda: {"metric": metrics.LorentzDistance(_leaf(4), lift=True), "mask": masks.causal()},
    "frames": lambda: {
        "metric": metrics.Euclidean(),
        "connection": connections.Frames(_leaf(5, 6, 6), _leaf(7, 6, 6)),
    },
    "rotary-dropout": lambda: {
        "metric": metrics.Poincare(),
        "connection": connections.Rotary(values=True),
        "dropout": 0.2,
        "seed": 3,
    },
    "biases": lambda: {
        "metric": metrics.Cosine(),
        "bias": biases.RelativeTable(_leaf(4, 5)) + _leaf(5, 7) + _leaf(5, 7),
        "mask": masks.key_padding(torch.rand(2, 7) > 0.2) & ~masks.documents(torch.arange(5), torch.arange(7)),
    },
    "transport": lambda: {
        "metric": metrics.LorentzInner(),
        "connection": connections.HyperboloidTransport(),
        "scale": _leaf(4),
    },
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("hk", [2, 4])
def test_opcheck(name, hk, monkeypatch):
    arguments = recorded(monkeypatch, *inputs(dtype=torch.float32, hk=hk), **SPECS[name]())
    torch.library.opcheck(torch.ops.aatc.attend.default, arguments)
    q, k, v, captures, spec = arguments
    o, lse = torch.ops.aatc.attend(*arguments)
    plain = [t.detach() for t in (torch.randn_like(o), torch.randn_like(lse), q, k, v)]
    backward = (*plain, [c.detach() for c in captures], o.detach(), lse.detach(), spec)
    torch.library.opcheck(torch.ops.aatc.attend_backward.default, backward)


@pytest.mark.parametrize("name", SPECS)
def test_the_spec_is_text_that_reads_back_as_what_was_written(name, monkeypatch):
    from aatc.ir.parser import parse_attrs

    spec = recorded(monkeypatch, *inputs(dtype=torch.float32), **SPECS[name]())[-1]
    assert parse_attrs(spec) == read_spec(spec)
    assert attention(spec).names[:3] == ("q", "k", "v")


def test_a_spec_from_outside_is_parsed_not_evaluated():
    with pytest.raises(aatc.errors.ParseError):
        torch.ops.aatc.attend(*inputs(dtype=torch.float32), [], "{score = __import__('os')}")


def test_equal_parts_share_one_text_and_unequal_ones_do_not(monkeypatch):
    x = inputs(dtype=torch.float32)
    spec = lambda **parts: recorded(monkeypatch, *x, **parts)[-1]  # noqa: E731
    a = spec(metric=metrics.LorentzDistance(torch.ones(4)), mask=masks.causal())
    assert a is spec(metric=metrics.LorentzDistance(torch.zeros(4)), mask=masks.causal())
    assert a != spec(metric=metrics.LorentzDistance(1.0), mask=masks.causal())
    assert a != spec(metric=metrics.LorentzDistance(torch.ones(4)), mask=masks.causal(1))


def test_second_derivatives_are_those_of_the_formula():
    q, k, v = inputs()
    grads = []
    for attend in (
        lambda: aatc.attend(q, k, v, metric=metrics.DotProduct()),
        lambda: (q @ k.mT / 6**0.5).softmax(-1) @ v,
    ):
        (g,) = torch.autograd.grad(attend().sin().sum(), q, create_graph=True)
        grads.append(torch.autograd.grad(g.sin().sum(), (q, k, v)))
    torch.testing.assert_close(*grads)


def test_a_capture_that_is_never_read_has_gradient_zero():
    @aatc.metric(spare="h")
    def plain(q, k, spare):
        return q @ k

    q, k, v = inputs()
    t = torch.ones(4, dtype=torch.float64, requires_grad=True)
    aatc.attend(q, k, v, metric=plain(spare=t)).sum().backward()
    assert torch.equal(t.grad, torch.zeros(4, dtype=torch.float64))
