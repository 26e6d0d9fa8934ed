"""Hooks of modules that come and go after compiling: obeyed, or the call is told to run in PyTorch."""

import pytest
import torch
from torch import nn
from torch.nn.modules import module as of_all

import aatc
from aatc.errors import UnsupportedError


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        return self.second(aatc.attend(x, x, x, metric=aatc.metrics.Euclidean()))


def forward(module, given, out):
    return out * 0.5


def before(module, given):
    return (given[0] * 0.5,)


def backward(module, grad_in, grad_out):
    return (grad_in[0] * 0.5,)


def before_backward(module, grad_out):
    return (grad_out[0] * 0.5,)


#: name -> what registers a hook for a model; whether graphs obey it
HOOKS = {
    "forward": (lambda m: m.second.register_forward_hook(forward), True),
    "before": (lambda m: m.first.register_forward_pre_hook(before), True),
    "backward": (lambda m: m.second.register_full_backward_hook(backward), False),
    "before backward": (lambda m: m.first.register_full_backward_pre_hook(before_backward), False),
    "all forward": (lambda m: of_all.register_module_forward_hook(forward), False),
    "all before": (lambda m: of_all.register_module_forward_pre_hook(before), False),
    "all backward": (lambda m: of_all.register_module_full_backward_hook(backward), False),
    "all before backward": (lambda m: of_all.register_module_full_backward_pre_hook(before_backward), False),
}


def results(run, model):
    x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = run(x)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("fallback", [True, False])
def test_hooks_that_come_after_compiling_are_obeyed(name, fallback):
    torch._dynamo.reset()
    register, in_graphs = HOOKS[name]
    model = Twice()
    compiled = aatc.compile(model, fallback=fallback)
    bare = results(compiled, model)
    hook = register(model)
    try:
        want = results(model, model)
        assert not all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(want, bare, strict=True))
        if fallback or in_graphs:
            torch.testing.assert_close(results(compiled, model), want)
            assert in_graphs or compiled.explain().fallbacks
        else:
            with pytest.raises(UnsupportedError, match="hook"):
                compiled(torch.randn(1, 2, 5, 4))
    finally:
        hook.remove()
    torch.testing.assert_close(results(compiled, model), bare)
