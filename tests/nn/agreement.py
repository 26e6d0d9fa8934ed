"""A module and its compiled copy agree, and nothing is left to PyTorch."""

import copy

import torch
from torch import nn

import aatc


def assert_compiled_alike(model: nn.Module, *args: torch.Tensor, attentions: int, tolerance: float = 2e-5) -> None:
    """Outputs and all gradients, relative to the largest number; every parameter has a gradient."""
    compiled, eager = aatc.compile(copy.deepcopy(model)), copy.deepcopy(model)
    outputs, grads = [], []
    for module in (compiled, eager):
        torch.manual_seed(3)
        y = module(*args)
        y.square().mean().backward()
        outputs.append(y.detach())
        grads.append({n: p.grad for n, p in module.named_parameters()})
    _assert_close("output", *outputs, tolerance)
    for name in grads[1]:
        assert grads[1][name] is not None, f"{name} has no gradient"
        _assert_close(name, grads[0][name], grads[1][name], tolerance)
    report = compiled.explain()
    assert not report.fallbacks, str(report)
    assert len(report.attentions) == attentions


def _assert_close(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    gap = (got - want).abs().max().item()
    assert gap <= tolerance * max(1.0, want.abs().max().item()), f"{name} differs by {gap}"
