"""Whole models on a device: operator by operator, a decoder, and what must not run there."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import aatc
from aatc import masks, metrics
from aatc.backends.vulkan.executors import found
from aatc.backends.vulkan.model import program
from aatc.backends.vulkan.model.tracing import out_of_place
from aatc.errors import BackendError
from tests.vulkan.models import FUNCTIONS, Decoder, beside, close, compiled, tokens, x
from tests.vulkan.running import EXECUTORS, usable

pytestmark = [
    pytest.mark.skipif(
        all(usable(name) for name in EXECUTORS), reason="no executor sees a device; make vulkan installs one"
    ),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators(name):
    function, inputs = FUNCTIONS[name]
    model = compiled(function)
    with torch.no_grad():
        got = model(*inputs)
    assert not beside(model)  # all of it ran on the device
    close(got, function(*(t.double() if t.is_floating_point() else t for t in inputs)).float())


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    return Decoder()


@pytest.mark.slow
def test_a_decoder_runs_wholly_on_the_device(decoder):
    model = compiled(decoder)
    exact = copy.deepcopy(decoder).double()
    with torch.no_grad():
        for shape in ((2, 11), (1, 5), (2, 11), (3, 2), (3, 1)):
            close(model(tokens(*shape)), exact(tokens(*shape)).float())
    assert not any(g.program.beside.reasons for g in model.graphs)
    executor = found.open_executor("auto")
    before = executor.counters.shaders, executor.counters.allocations, executor.counters.bytes_uploaded
    with torch.no_grad():
        model(tokens(3, 2, seed=1))
    after = executor.counters.shaders, executor.counters.allocations, executor.counters.bytes_uploaded
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 1024  # the tokens: no parameter is uploaded again


def test_parameters_that_change_are_seen():
    layer = nn.Linear(5, 4)
    model, given = compiled(layer), x(3, 5)
    with torch.no_grad():
        model(given)
        layer.weight.mul_(2)
        close(model(given), layer(given))
        layer.bias.data.add_(1)  # which counts no version
        close(model(given), layer(given))
        layer.weight.data.numpy()[0] = 7
        close(model(given), layer(given))


def test_small_integers_that_vary_do_not_make_programs_without_end():
    model = compiled(lambda a, i: a * (i.double() / 3).sin().float(), fallback=True)
    with torch.no_grad():
        for n in range(12):
            i = torch.arange(5) + n
            close(model(x(5), i), x(5) * (i.double() / 3).sin().float())
    main = model.graphs[-1].program.main
    assert len(main.ready) <= program.CONTENTS + 1
    assert any("aten.sin" in r for r in beside(model))


def test_nan_is_never_lost():
    n = torch.tensor([float("nan"), 1.0])
    functions = [
        torch.exp, torch.sigmoid, torch.log, lambda a: a != a, lambda a: (a / 0).isnan(), lambda a: a.bool(),
        lambda a: a < 2, lambda a: torch.stack([a, n + a]).softmax(1), lambda a: F.layer_norm(1e38 * a * 1e5, (2,)),
        torch.sqrt, torch.rsqrt, lambda a: a**1.5, F.silu,
    ]  # fmt: skip
    for function in functions:
        with torch.no_grad():
            got, want = compiled(function, fallback=True)(n), function(n)
        torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_copies_have_memory_of_their_own():
    def function(a):
        y = a * 2
        return a.clone(), a.clone(), y, y.detach().clone()

    with torch.no_grad():
        first, second, y, copied = compiled(function)(x(3))
        first.zero_()
        y.zero_()
        assert second.any()
        assert copied.any()


def test_scatters_and_strides_are_not_guessed():
    i = torch.tensor([[1], [2]])
    wide = x(2, 3)
    cases = [
        (lambda a: a.scatter(1, i, wide), x(2, 3)),
        (lambda a: torch.as_strided(a.t() + 1, (2, 2), (1, 1)) + 0, x(3, 4)),
    ]
    for function, a in cases:
        with torch.no_grad():
            close(compiled(function, fallback=True)(a), function(a))
    bad = torch.tensor([[0], [9]])
    with torch.no_grad(), pytest.raises(RuntimeError, match="out of bounds"):
        compiled(lambda a: a.scatter(1, bad, 2.0), fallback=True)(x(2, 3))


# --- what does not run on the device ---------------------------------------------------------------------------
def test_operators_without_kernels_run_on_the_host_between():
    def function(a, i):
        return (torch.sort(a * 2, -1).values + 1).softmax(-1) * F.one_hot(i, 5)

    model = compiled(function, fallback=True)
    a, i = x(3, 5), torch.tensor([0, 4, 2])
    with torch.no_grad():
        close(model(a, i), function(a, i))
        assert any("aten.sort" in r and "no kernel" in r for r in beside(model)), beside(model)
        assert "aten.sort" in str(model.explain())
        with pytest.raises(BackendError, match=r"aten\.sort.*no kernel"):
            compiled(function)(a, i)


def test_gradients_are_recorded_by_torch():
    model, a = compiled(lambda a: (a.softmax(-1) ** 2).sum()), x(3, 5).requires_grad_()
    (got,) = torch.autograd.grad(model(a), a)
    (want,) = torch.autograd.grad((a.softmax(-1) ** 2).sum(), a)
    close(got, want)
    assert "gradients are recorded" in str(model.explain())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_other_types_run_in_torch(dtype):
    a = (x(3, 5) * 4).to(dtype)
    model = compiled(lambda a: a * 3 + a, fallback=True)
    with torch.no_grad():
        assert torch.equal(model(a), a * 3 + a)


def test_integers_beyond_32_bits_are_not_wrong():
    model, a = compiled(lambda a, b: torch.where(a > 5, b, -b)), torch.tensor([2**40, 3])
    with torch.no_grad():
        close(model(a, x(2)), torch.where(a > 5, x(2), -x(2)))


def test_the_least_integer_is_not_taken_for_a_small_one():
    model, least = compiled(lambda a, b: torch.where(a < 0, b, -b)), torch.tensor([-(2**63), 3])
    with torch.no_grad():
        close(model(least, x(2)), torch.where(least < 0, x(2), -x(2)))


def test_an_index_outside_is_torchs_own_error():
    model = compiled(lambda w, i: F.embedding(i, w))
    with torch.no_grad():
        close(model(x(5, 4), torch.tensor([0, 4])), x(5, 4)[[0, 4]])
        with pytest.raises(IndexError, match="out of range"):
            model(x(5, 4), torch.tensor([0, 5]))


def test_numbers_that_are_not_finite():
    a = torch.tensor([1.0, float("inf"), -2.0, float("nan")])

    def function(a):
        return a.relu(), a.maximum(torch.zeros(1)), a.clamp(-1, 1), a.tanh(), (a > 0), a.sqrt(), a.amax()

    with torch.no_grad():
        for got, want in zip(compiled(function)(a), function(a), strict=True):
            assert torch.equal(got.isnan(), want.isnan()), (got, want)
            close(got[~got.isnan()], want[~want.isnan()])


def test_nan_behind_a_mask_stays_there():
    q, k, v = x(1, 2, 5, 4), x(1, 2, 5, 4, seed=1), x(1, 2, 5, 4, seed=2)
    v[:, :, -1] = float("nan")
    model = compiled(lambda *t: aatc.attend(*t, metric=metrics.DotProduct(), mask=masks.causal()) * 2)
    with torch.no_grad():
        got = model(q, k, v)
    assert got[:, :, :-1].isfinite().all()
    assert got[:, :, -1].isnan().all()


def test_results_in_an_arguments_memory_stay_there():
    model, a = compiled(lambda a: (a.mT, a * 2)), x(3, 5)
    with torch.no_grad():
        turned, _ = model(a)
        a.add_(1)
    assert torch.equal(turned, a.mT)


def test_results_that_share_memory_and_constants_that_do_not():
    def function(a):
        y = a * 2
        return y, y.mT, torch.ones(2)

    model = compiled(function)
    with torch.no_grad():
        y, turned, ones = model(x(3, 5))
        y.zero_()
        ones.zero_()
        assert not turned.any()
        assert model(x(3, 5))[2].all()


def test_writing_to_an_argument_is_left_to_torch():
    def function(a):
        a.add_(1)
        return a * 2

    a, b = x(4), x(4)
    with torch.no_grad():
        assert torch.equal(compiled(function)(a), function(b))
    assert torch.equal(a, b)


def test_zero_sizes():
    with torch.no_grad():
        for shape in ((0, 4), (3, 0)):
            got = compiled(lambda a: (a * 2 + 1).transpose(0, 1) @ torch.ones(a.shape[0], 2))(x(*shape))
            want = (x(*shape) * 2 + 1).transpose(0, 1) @ torch.ones(shape[0], 2)
            assert torch.equal(got, want)


def test_plans_are_kept_for_few_shapes(monkeypatch):
    monkeypatch.setattr(program, "PLANS", 2)
    model = compiled(lambda a: a * 2, dynamic=True)
    with torch.no_grad():
        for n in (2, 3, 4, 5, 2):
            close(model(x(n, 3)), x(n, 3) * 2)
    assert len(model.graphs[-1].program.main.ready) == 2


def test_schedules_are_measured_on_the_device(tmp_path, monkeypatch):
    monkeypatch.setenv("AATC_CACHE", str(tmp_path))

    class Model(nn.Module):
        def forward(self, q, k, v):
            return aatc.attend(q, k, v, metric=metrics.DotProduct()) * 2

    inputs = x(1, 2, 40, 8), x(1, 2, 40, 8, seed=1), x(1, 2, 40, 8, seed=2)
    found = aatc.tune(Model(), inputs, backend="vulkan", budget=3, progress=False)
    assert "schedules tried" in str(found)
    model = compiled(Model(), tune="cached")
    with torch.no_grad():
        close(model(*inputs), Model()(*(t.double() for t in inputs)).float())
    assert not beside(model)


def test_programs_are_made_for_what_a_number_is():
    numbers = [1, 1.0, True, 0.0, -0.0, 0, False, float("nan")]
    assert len({program.layout(n) for n in numbers}) == len(numbers)
    assert program.layout(float("nan")) == program.layout(float("nan"))


def test_writes_that_another_name_sees_are_not_out_of_place():
    def node_of(function, name):
        return next(n for n in make_fx(function)(torch.ones(3)).graph.nodes if name in str(n.target))

    def alone(a):
        return (a * 2).add_(1)

    def viewed(a):
        y = a * 2
        row = y[1:]
        y.add_(1)
        return row

    def into_a_view(a):
        y = a * 2
        y[1:].add_(1)
        return y

    def twice(a):
        y = a * 2
        z = y.add_(1)
        y.mul_(3)
        return z + 1

    assert out_of_place(node_of(alone, "add_")) == (torch.ops.aten.add.Tensor, True)
    assert out_of_place(node_of(lambda a: a.add_(1), "add_")) == (None, True)
    assert out_of_place(node_of(viewed, "add_")) == (None, True)
    assert out_of_place(node_of(into_a_view, "add_")) == (None, True)
    assert out_of_place(node_of(twice, "mul_")) == (None, True)
