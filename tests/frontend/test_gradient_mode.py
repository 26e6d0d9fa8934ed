"""`torch.no_grad` inside models, and operators that return lists, against the models themselves."""

import pytest
import torch
from torch import nn

import aatc


def written(x, w):
    y = x * 2
    with torch.no_grad():
        w.clamp_(max=2.0)
        y.mul_(0.5).clamp_(-1, 1)
    return x * w + y, y


def averaged(x, w):
    with torch.no_grad():
        x.lerp_(w, 0.5)
    return x * w, x


def views(x, w):
    with torch.no_grad():
        v, s = x.view(-1), w.unsqueeze(0)
        first, _, third = x.unbind(0)
    return v * 2, s * x, first, third + w, v, x.detach()


def perhaps_views(x, w):
    with torch.no_grad():
        a, b, c, d = x.reshape(-1), x.contiguous(), x.to(x.dtype), x.t().contiguous()
    return a, b, c, d, c * 2, d * w, b.expand(2, 3, 3)


def copies(x, w):
    with torch.no_grad():
        a, b, c = x.clone(), x.detach(), x * w
    return a * w, b * w, c * w, a, b, c


def through_views(x, w):
    y = x * w
    with torch.no_grad():
        y[0] = 1
        y.t()[1].mul_(2)
        y.detach().add_(1)
    return y, y * w


def parameter_slices(x, w):
    with torch.no_grad():
        w[:2] = 1
        w.view(3, 1)[2].zero_()
    return x * w


def states(x, w):
    with torch.no_grad():
        a = x * w
        with torch.enable_grad():
            b = x * w
        c = b.view(-1)
    return a, b, c, b * 1


FUNCTIONS = [
    written, averaged, views, perhaps_views, copies, through_views, parameter_slices, states,
]  # fmt: skip


def seen(function, leaf: bool) -> list[object]:
    """Results, which of them require gradients, are views or the input itself; gradients; what was written."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).view(3, 3).requires_grad_(leaf)
    w = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    given = x if leaf else x.clone()
    results = function(given, w)
    results = results if isinstance(results, tuple) else (results,)
    sum((r * r).sum() for r in results).backward()
    flags = [(r.requires_grad, r.grad_fn is None, r.is_leaf, r is given, r._is_view()) for r in results]
    return [[r.detach() for r in results], flags, x.grad, w.grad, given.detach(), w.detach()]


@pytest.mark.parametrize("leaf", [False, True], ids=["plain", "trained"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_gradients_switched_off_inside_a_model(function, leaf):
    want = seen(function, leaf)
    got = seen(aatc.compile(function, fallback=False), leaf)
    assert got[1] == want[1]
    for mine, theirs in zip(got, want, strict=True):
        if mine is not None and mine is not got[1]:
            torch.testing.assert_close(mine, theirs)
        assert (mine is None) == (theirs is None)


class Clamped(nn.Module):
    """A weight that is kept small and trained."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 3.0))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(max=2.0)
            self.mean.lerp_(self.weight, 0.5)
        return x * self.weight + self.mean


def test_a_weight_written_without_gradients_goes_on_learning():
    eager, twin = Clamped(), Clamped()
    compiled = aatc.compile(twin, fallback=False)
    for _ in range(3):
        for run, model in ((eager, eager), (compiled, twin)):
            model.zero_grad()
            run(torch.ones(3)).square().sum().backward()
            with torch.no_grad():
                model.weight.sub_(model.weight.grad, alpha=-0.1)
        torch.testing.assert_close(dict(twin.state_dict()), dict(eager.state_dict()))


def test_attention_without_gradients_inside_a_model():
    def f(q, k, v):
        with torch.no_grad():
            o = aatc.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), metric=aatc.metrics.Euclidean())
            o.mul_(2)
        return o * q.transpose(1, 2), o

    inputs = [torch.randn(1, 5, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    got, want = aatc.compile(f, fallback=False)(*inputs), f(*inputs)
    torch.testing.assert_close(got, want)
    assert [r.requires_grad for r in got] == [True, False]
    for mine, theirs in zip(*(torch.autograd.grad(r[0].sum(), inputs, allow_unused=True) for r in (got, want))):
        torch.testing.assert_close(mine, theirs)


def test_an_exported_model_keeps_where_gradients_are_off():
    module = aatc.export(Clamped(), (torch.ones(3),))
    assert str(aatc.parse(str(module))) == str(module)
    weight, mean, x = torch.full((3,), 3.0, requires_grad=True), torch.zeros(3), torch.ones(3)
    final = aatc.backends.pipeline().run(module, target=aatc.backends.get().target()).module
    result = aatc.run(final, weight, mean, x)
    result.sum().backward()
    torch.testing.assert_close(weight.grad, torch.ones(3))
    torch.testing.assert_close([weight.detach(), mean], [torch.full((3,), 2.0), torch.ones(3)])


LISTS = {
    "unbind": lambda x: x.unbind(0),
    "split": lambda x: x.split(5),
    "split_with_sizes": lambda x: x.split_with_sizes([1]),
    "chunk": lambda x: x.chunk(2),
    "tensor_split": lambda x: x.tensor_split(1),
    "unsafe_chunk": lambda x: torch.unsafe_chunk(x, 3),
    "meshgrid": lambda x: torch.meshgrid(x[0], indexing="ij"),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x),
    "foreach": lambda x: torch._foreach_add([x], 1.0),
    "atleast": lambda x: torch.atleast_1d([x]),
    "max": lambda x: x.max(1),
    "where": lambda x: torch.where(x > 0),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_one_tensor(name):
    function = LISTS[name]
    x = torch.randn(1, 2)
    whole = aatc.compile(function, fallback=False)(x)
    torch.testing.assert_close(tuple(whole), tuple(function(x)))
    assert type(whole) is type(function(x))
    torch.testing.assert_close(aatc.compile(lambda x: function(x)[0] + 1, fallback=False)(x), function(x)[0] + 1)


class OneStep(nn.Module):
    def forward(self, x):
        (step,) = x.unbind(0)
        return step * 2, x.split(3)[0]


def test_lists_of_one_tensor_by_the_interpreter():
    x = torch.randn(1, 2)
    module = aatc.export(OneStep(), (x,))
    torch.testing.assert_close(aatc.run(aatc.parse(str(module)), x), OneStep()(x))
