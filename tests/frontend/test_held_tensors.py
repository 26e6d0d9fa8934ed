"""Functions whose graphs hold tensors themselves, optimizers' steps above all, against PyTorch."""

import pytest
import torch
from torch import nn

import aatc


def fixed(*shape: int) -> torch.Tensor:
    """A tensor that Dynamo keeps in the graph and does not hand to it, as the state of an optimizer."""
    made = torch.zeros(*shape)
    torch._dynamo.mark_static_address(made, guard=True)
    return made


def test_tracing_leaves_held_tensors_as_they_are():
    mine, theirs = fixed(3), torch.zeros(3)

    def f(x, t):
        t.add_(1)
        t.mul_(2)
        return x * t, t

    compiled = aatc.compile(lambda x: f(x, mine), fallback=False)
    for _ in range(3):
        got, want = compiled(torch.ones(3)), f(torch.ones(3), theirs)
        torch.testing.assert_close(got, want)
        assert got[1] is mine


@pytest.mark.parametrize("size", [3, 1000])
def test_writes_to_held_tensors_between_calls_are_seen(size):
    held = fixed(size)
    compiled = aatc.compile(lambda x: x * held, fallback=False)
    for n in range(3):
        held.fill_(n)
        torch.testing.assert_close(compiled(torch.ones(size)), torch.full((size,), float(n)))


def test_held_tensors_beside_large_and_small_constants():
    held, other = fixed(3), fixed(3, 400)

    def f(x):
        held.add_(1)
        return x * torch.arange(3.0) + held + other.sum(1) + torch.tensor([0.5, 1.0, 2.0])

    compiled = aatc.compile(f, fallback=False)
    torch.testing.assert_close(compiled(torch.ones(3)), torch.tensor([1.5, 3.0, 5.0]))
    other.fill_(0.01)
    torch.testing.assert_close(compiled(torch.ones(3)), torch.tensor([6.5, 8.0, 10.0]))


@pytest.mark.parametrize("whole", [False, True], ids=["step", "training"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_optimizers_take_the_same_steps(name, whole):
    def trained(wrap):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        more = {"momentum": 0.9} if name == "SGD" else {}
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1, **more)

        def forward(x):
            optimizer.zero_grad()
            model(x).square().sum().backward()

        def both(x):
            forward(x)
            optimizer.step()

        run = wrap(both) if whole else forward
        step = wrap(optimizer.step)
        for n in range(4):
            run(torch.randn(4, 3, generator=torch.Generator().manual_seed(n)))
            if not whole:
                step()
        return dict(model.state_dict()), optimizer.state_dict()["state"]

    torch.testing.assert_close(trained(aatc.compile), trained(lambda f: f))
