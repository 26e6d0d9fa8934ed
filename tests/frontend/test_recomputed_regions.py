"""torch.utils.checkpoint inside models against the models themselves: random numbers, counters, gradients off."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import aatc


@pytest.mark.parametrize("preserve", [True, False])
def test_random_numbers_of_a_recomputed_region(preserve):
    def f(x):
        dropped = lambda a: torch.nn.functional.dropout(a.sin(), 0.5)  # noqa: E731
        return checkpoint(dropped, x, use_reentrant=False, preserve_rng_state=preserve)

    def seen(function):
        torch.manual_seed(3)
        x = torch.ones(64, requires_grad=True)
        y = function(x)
        y.sum().backward()
        return y.detach(), x.grad, torch.rand(2)

    torch.testing.assert_close(seen(aatc.compile(f, fallback=False)), seen(f), rtol=0, atol=0)


class Normed(nn.Module):
    """Batch norm in a recomputed region, which counts its batches there."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(2), nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def region(self, x):
        self.calls.add_(1)
        return torch.tanh(self.norm(x))

    def forward(self, x):
        return self.out(checkpoint(self.region, x, use_reentrant=False))


def test_batch_norm_in_a_recomputed_region():
    torch.manual_seed(0)
    eager, twin = Normed(), Normed()
    twin.load_state_dict(eager.state_dict())
    compiled = aatc.compile(twin, fallback=False)
    for _ in range(3):
        x = torch.randn(5, 2)
        for run in (eager, compiled):
            run(x).square().sum().backward()
    torch.testing.assert_close(dict(twin.state_dict()), dict(eager.state_dict()))
    for mine, theirs in zip(twin.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_a_recomputed_region_without_gradients():
    def f(x, w):
        with torch.no_grad():
            y = checkpoint(lambda a: (a * w).sin(), x, use_reentrant=False)
        return y * x, y

    x, w = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    got, want = aatc.compile(f, fallback=False)(x, w), f(x, w)
    torch.testing.assert_close(got, want)
    assert [r.requires_grad for r in got] == [r.requires_grad for r in want]
    torch.testing.assert_close(torch.autograd.grad(got[0].sum(), x), torch.autograd.grad(want[0].sum(), x))
