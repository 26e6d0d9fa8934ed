"""Models that write in place and hand out what they made, against the models themselves."""

import pytest
import torch
from torch import nn

import aatc
from aatc.errors import UnsupportedError


def written_table(x):
    m = torch.zeros(4, 4)
    m[1:, 2:] = 5
    return x + m


def accumulated(x):
    b = torch.zeros(4)
    b += x.sum()
    return b


def two_clones(x):
    return x.clone(), x.clone()


def literal(x):
    t = torch.tensor([1.0, 2.0, 3.0, 4.0])
    t[0] = x.sum()
    return t * x, t


def returned_constants(x):
    t = torch.ones(4)
    return t, t.view(2, 2), torch.ones(4), x * t


def same_twice(x):
    y = x * 2
    return y, y, y[1:]


def input_back(x):
    x.mul_(2)
    return x, x.view(-1), x + 1


def split_and_written(x):
    a, b = (x * 1).chunk(2)
    a += 1
    return a, b


def positions(x):
    table = torch.empty(4, 2)
    angle = torch.arange(4.0)[:, None]
    table[:, 0::2] = torch.sin(angle)
    table[:, 1::2] = torch.cos(angle)
    return x[:, None] * table


def views_converted(x):
    return x.view(2, 2).to(x.dtype), x.view(2, 2).to(x.dtype), x.view(2, 2).contiguous(), x.to(x.dtype)


FUNCTIONS = [
    written_table, accumulated, two_clones, literal, returned_constants, same_twice, input_back, split_and_written,
    positions, views_converted,
]  # fmt: skip


def places(values) -> list[list[bool]]:
    """Which tensors start at the same byte."""
    return [[a.data_ptr() == b.data_ptr() for a in values] for b in values]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_calls_agree_with_eager_whatever_the_caller_does_with_results(function):
    compiled = aatc.compile(function, fallback=False)
    for _ in range(3):
        x = torch.randn(4)
        mine, theirs = x.clone(), x.clone()
        got, want = compiled(mine), function(theirs)
        got, want = ([*r, i] if isinstance(r, tuple) else [r, i] for r, i in ((got, mine), (want, theirs)))
        torch.testing.assert_close(got, want)
        assert places(got) == places(want)
        assert [[a is b for a in got] for b in got] == [[a is b for a in want] for b in want]
        for result in got:
            result.add_(10)


def masked_attention(q, k, v):
    """A mask and a bias that are made in the model, by writing."""
    n = q.shape[2]
    bias = torch.zeros(n, n)
    bias[:, : n // 2] = 1.5
    bias[0] -= 2
    keep = torch.zeros(1, n, dtype=torch.bool)
    keep[:, 1:] = True
    bias, mask = aatc.biases.Dense(bias.expand(1, 1, n, n)), aatc.masks.key_padding(keep)
    return aatc.attend(q, k, v, metric=aatc.metrics.Euclidean(), bias=bias, mask=mask)


def test_masks_and_biases_written_in_the_model():
    q, k, v = (torch.randn(1, 2, 6, 4) for _ in range(3))
    compiled = aatc.compile(masked_attention, fallback=False)
    for _ in range(2):
        torch.testing.assert_close(compiled(q, k, v), masked_attention(q, k, v), rtol=1e-5, atol=1e-5)


def test_operands_written_after_the_attention():
    def f(q, k, v):
        q = q * 1
        o = aatc.attend(q, k, v, metric=aatc.metrics.Euclidean())
        q += 1
        k.add_(1)
        o *= 2
        return o, q, o + aatc.attend(q, k, v, metric=aatc.metrics.Euclidean())

    inputs = [torch.randn(1, 2, 6, 4) for _ in range(3)]
    mine, theirs = [x.clone() for x in inputs], [x.clone() for x in inputs]
    got, want = aatc.compile(f, fallback=False)(*mine), f(*theirs)
    torch.testing.assert_close([*got, *mine], [*want, *theirs], rtol=1e-5, atol=1e-5)


class Skipping(nn.Module):
    """Adds into what it made, in training: the skip connections of many a network."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        skip = torch.zeros(4)
        for layer in self.layers:
            x = torch.tanh(layer(x))
            skip = skip + 0
            skip += x.mean(0)
        self.count += 1
        self.seen.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        total = torch.zeros(())
        total += (skip * x).sum()
        return total


def test_several_training_steps_with_writes():
    torch.manual_seed(0)
    model = Skipping()
    twin = Skipping()
    twin.load_state_dict(model.state_dict())
    compiled = aatc.compile(twin, fallback=False)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin)]
    for _ in range(4):
        x = torch.randn(5, 4)
        for run, optimizer in zip((model, compiled), optimizers, strict=True):
            optimizer.zero_grad()
            run(x).backward()
            optimizer.step()
    torch.testing.assert_close(dict(twin.state_dict()), dict(model.state_dict()))
    assert twin.count == 4


class Counter(nn.Module):
    """A buffer it writes, a tensor it writes, and one it reads."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(2))
        self.plain, self.table = torch.zeros(3), torch.arange(3.0)

    def forward(self, x):
        made = torch.zeros(3)
        made[1] = 7
        made += x
        self.calls.add_(1)
        return made * self.table, made, self.calls * 1


def test_an_exported_model_makes_its_constants_anew_and_writes_its_buffers():
    model, x = Counter(), torch.randn(3)
    module = aatc.export(model, (x,))
    final = aatc.backends.pipeline().run(module, target=aatc.backends.get().target()).module
    calls = torch.zeros(2)
    given = {"calls": calls, "table": model.table, "x": x}
    arguments = [given[a.name] for a in module.entry.args]
    model.calls.zero_()
    for program in (module, final, module):
        want = model(x)
        got = aatc.run(program, *arguments)
        torch.testing.assert_close(got, want)
        got[1].add_(100)
    torch.testing.assert_close(calls, model.calls)


class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.state = torch.zeros(3)

    def forward(self, x):
        self.state.add_(x)
        return self.state * 2


def test_an_exported_models_plain_tensor_that_it_writes_is_an_argument():
    model, x = Written(), torch.ones(3)
    try:
        module = aatc.export(model, (x,))
    except UnsupportedError:
        return  # torch may refuse to export a write to a tensor that is no buffer
    state = torch.zeros(3)
    names = [a.name for a in module.entry.args]
    arguments = [x if n == "x" else state for n in names]
    assert len(arguments) == 2
    for times in (1, 2):
        torch.testing.assert_close(aatc.run(module, *arguments), torch.full((3,), 2.0 * times))


def test_a_graph_that_writes_its_inputs_is_not_run_twice(monkeypatch):
    from aatc.backends import entry

    def broken(*args):
        for a in args:
            a.add_(1)
        raise RuntimeError("planted")

    def f(x, y):
        x.add_(1)
        return torch.sin(x) + y

    monkeypatch.setattr(entry, "compile_source", lambda *a: {"main": broken})
    x = torch.zeros(3)
    with pytest.raises(RuntimeError, match="planted"):
        aatc.compile(f)(x, torch.ones(3))
    assert (x == 1).all()


# --- sizes -------------------------------------------------------------------------------------------------
def twice_the_batch(x):
    q = x.view(2 * x.shape[0], 2, -1, 4)
    return aatc.attend(q, q, q, metric=aatc.metrics.Euclidean())


def one_key_less(x):
    return aatc.attend(x, x[:, :, 1:], x[:, :, 1:], metric=aatc.metrics.Euclidean())


def batch_times_length(x):
    q = x.permute(0, 2, 1, 3).reshape(x.shape[0] * x.shape[2], 1, -1, 4)
    return aatc.attend(q, q, q, metric=aatc.metrics.DotProduct(), mask=aatc.masks.causal())


@pytest.mark.parametrize("function", [twice_the_batch, one_key_less, batch_times_length])
def test_attentions_over_compound_sizes(function):
    compiled = aatc.compile(function, fallback=False, dynamic=True)
    for batch, length in ((4, 6), (6, 8), (2, 8), (6, 10)):
        x = torch.randn(batch, 2, length, 4, requires_grad=True)
        got, want = compiled(x), function(x)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            torch.autograd.grad(got.sin().sum(), x), torch.autograd.grad(want.sin().sum(), x), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("dynamic", [None, True])
def test_another_feature_width_makes_another_graph(dynamic):
    def f(q, k, v):
        return aatc.attend(q, k, v, metric=aatc.metrics.Euclidean())

    compiled = aatc.compile(f, fallback=False, dynamic=dynamic)
    for d, dv, n in ((4, 4, 5), (8, 8, 5), (8, 3, 7), (4, 4, 9)):
        q, k, v = torch.randn(2, 2, n, d), torch.randn(2, 2, n, d), torch.randn(2, 2, n, dv)
        torch.testing.assert_close(compiled(q, k, v), f(q, k, v), rtol=1e-5, atol=1e-5)


def test_under_the_meta_device():
    def f(x):
        t = torch.zeros(3)
        t[1] = 2
        return x + t, t

    def g(q):
        return aatc.attend(q, q, q, metric=aatc.metrics.Euclidean())

    with torch.device("meta"):
        assert [r.device.type for r in aatc.compile(f, fallback=False)(torch.ones(3))] == ["meta", "meta"]
        with pytest.raises(UnsupportedError, match="operands are on meta"):
            aatc.compile(g, fallback=False)(torch.randn(1, 2, 5, 4))
        q = torch.randn(1, 2, 5, 4, device="cpu")
        torch.testing.assert_close(aatc.compile(g, fallback=False)(q), g(q), rtol=1e-5, atol=1e-5)
