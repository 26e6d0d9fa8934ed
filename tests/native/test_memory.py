"""Memory of kernels besides arguments and results: by plan, at lengths that do not run here, and measured."""

import pytest
import torch

import aatc
from aatc.backends.native import turns
from aatc.backends.native.footprint import footprint
from bench import memory
from bench.kinds import HEADS, kind, kinds

MIB = 1 << 20
LENGTH = 8192
FORWARD, BACKWARD = 48 * MIB, 160 * MIB


def trained(name, n):
    """(the kernel's first version, output, gradients) of a kind's attention."""
    k = kind(name)
    model = aatc.compile(k.ours, backend="native", fallback=False)
    inputs = k.inputs(n)
    leaves = tuple(x.detach().clone().requires_grad_() for x in inputs[:3])
    out = model(*leaves, *inputs[3:])
    grads = torch.autograd.grad(out, leaves, torch.cos(out.detach()))
    (graph,) = model.graphs
    return graph.program.attentions[0]["kernel"].versions[0], out, grads


@pytest.mark.parametrize("name", [k.name for k in kinds()])
def test_buffers_of_long_attentions_stay_within_bounds(name):
    """Of outputs there are three numbers per query besides: the log-sum-exp and statistics."""
    torch.compiler.reset()
    k = kind(name)
    model = aatc.compile(k.ours, backend="native", fallback=False)
    for n in (80, 112):  # the second makes the kernel one for any length
        inputs = k.inputs(n)
        leaves = tuple(x.detach().clone().requires_grad_() for x in inputs[:3])
        torch.autograd.grad(model(*leaves, *inputs[3:]).sum(), leaves)
    version = model.graphs[-1].program.attentions[0]["kernel"].versions[0]
    statistics = 3 * 4 * HEADS * LENGTH
    for run, bound in ((version.forward.run, FORWARD), (version.backward((True,) * len(version.grads)).run, BACKWARD)):
        symbols = {s for a in run.func.args for d in a.type.shape for s in d.symbols}
        sizes = dict.fromkeys(symbols, LENGTH)
        shapes = [[d.evaluate(sizes) for d in a.type.shape] for a in run.func.args]
        tensors = [torch.empty(s, dtype=a.dtype) for s, a in zip(shapes, run.args, strict=True)]
        found = footprint(run, tensors, threads=2)
        assert all(x.first <= x.last for x in found)
        assert sum(x.nbytes for x in found) + statistics < bound - 8 * MIB, found


@pytest.mark.parametrize("name", ["transport", "lorentz", "dot-product", "rotary"])
def test_problems_in_turns_give_the_same_bits(name, monkeypatch):
    monkeypatch.setattr(turns, "cores", lambda: 3)
    found = []
    for most in (turns.MOST, 100_000):
        torch.compiler.reset()
        monkeypatch.setattr(turns, "MOST", most)
        version, out, grads = trained(name, 150)
        (backward,) = version._backwards.values()
        (plan,) = backward.run.plans.values()
        assert (plan.turns is None) == (most > 100_000)
        if plan.turns is not None:
            assert plan.turns.starts() == [(0, 3), (3, 3), (6, 2)]
        found.append((out, *grads))
    assert all(map(torch.equal, *found))


def test_an_output_is_kept_once():
    """What the backward takes as the output is the output, and a write to it is noticed, as for PyTorch's own."""
    version, _, _ = trained("dot-product", 48)
    q = torch.randn(1, HEADS, 48, 64)
    o, lse, saved, *_ = version.forward(q, q, q)
    assert saved is o and lse.data_ptr() != o.data_ptr()
    model = aatc.compile(kind("dot-product").ours, backend="native", fallback=False)
    leaves = [torch.randn(1, HEADS, 48, 64).requires_grad_() for _ in range(3)]
    out = model(*leaves)
    out.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize(("backward", "bound"), [(False, FORWARD), (True, BACKWARD)])
def test_measured_memory(backward, bound):
    mib, note = memory.measure("aatc-native", "lorentz", LENGTH, backward=backward)
    assert note or mib * MIB < bound
