"""Whole models on a device: operator by operator, a decoder, its training, and what must not run there."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import aatc
from aatc import masks, metrics
from aatc.backends.vulkan.executors import found
from aatc.backends.vulkan.model import program
from aatc.errors import BackendError, UnsupportedError
from aatc.training import TrainingStep
from tests.vulkan.models import FUNCTIONS, Decoder, x
from tests.vulkan.running import EXECUTORS, usable

pytestmark = [
    pytest.mark.skipif(
        all(usable(name) for name in EXECUTORS), reason="no executor sees a device; make vulkan installs one"
    ),
    pytest.mark.usefixtures("one_thread"),
]


def compiled(function, **more):
    torch.compiler.reset()
    return aatc.compile(function, backend="vulkan", **{"fallback": False, **more})


def beside(model):
    """What the model's last graph did elsewhere."""
    return model.graphs[-1].program.beside.reasons


def close(got, want, unit=5e-5):
    assert got.dtype == want.dtype
    if want.dtype.is_floating_point:
        scale = max(1.0, want[want.isfinite()].abs().max().item() if want.isfinite().any() else 1.0)
        torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=unit * scale, equal_nan=True)
    else:
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators(name):
    function, inputs = FUNCTIONS[name]
    model = compiled(function)
    with torch.no_grad():
        got = model(*inputs)
    assert not beside(model)  # all of it ran on the device
    close(got, function(*(t.double() if t.is_floating_point() else t for t in inputs)).float())


class Weights(nn.Module):
    """A function of parameters that are added to its inputs."""

    def __init__(self, function, inputs):
        super().__init__()
        self.function = function
        self.held = nn.ParameterList([nn.Parameter(torch.zeros_like(t)) for t in inputs if t.is_floating_point()])

    def forward(self, *inputs):
        held = iter(self.held)
        return self.function(*(t + next(held) if t.is_floating_point() else t for t in inputs))


def squares(model, *batch):
    return (model(*batch) ** 2).mean()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_of_operators(name):
    """By one step of gradient descent with rate 1 from 0: the parameters are the gradients."""
    function, inputs = FUNCTIONS[name]
    model = Weights(function, inputs)
    exact = copy.deepcopy(model).double()
    loss = TrainingStep(model, squares, torch.optim.SGD(model.parameters(), 1.0))(*inputs)
    wide = squares(exact, *(t.double() if t.is_floating_point() else t for t in inputs))
    wide.backward()
    close(loss, wide.float().detach())
    for p, q in zip(model.state_dict().values(), exact.parameters(), strict=True):
        close(p, -q.grad.float())


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    return Decoder()


def tokens(*shape, seed=0):
    return torch.randint(0, 13, shape, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.slow
def test_the_digits_model_runs_and_trains_wholly_on_the_device():
    """Its rotary positions are a buffer, of which angles are computed in double precision: once."""
    from examples import digits

    torch.manual_seed(0)
    network = digits.DigitTransformer(digits.hyperbolic_attention)
    exact = copy.deepcopy(network).double()
    images, labels = torch.rand(3, 8, 8), torch.tensor([1, 9, 4])
    model = compiled(network)
    with torch.no_grad():
        close(model(images), exact(images.double()).float())
        network.positions.add_(1)
        exact.positions.add_(1)
        network.positions[3, 0] = exact.positions[3, 0] = 7
        close(model(images), exact(images.double()).float())
    assert not beside(model)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    step = TrainingStep(network, lambda m, x, y: F.cross_entropy(m(x), y), optimizer)
    step(images, labels)
    F.cross_entropy(exact(images.double()), labels).backward()
    assert step.on_host == 0
    for p, q in zip(network.parameters(), exact.parameters(), strict=True):
        close(p.detach(), (q - 0.1 * q.grad).detach().float())


def test_small_integers_that_vary_do_not_make_programs_without_end():
    model = compiled(lambda a, i: a * (i.double() / 3).sin().float(), fallback=True)
    with torch.no_grad():
        for n in range(12):
            i = torch.arange(5) + n
            close(model(x(5), i), x(5) * (i.double() / 3).sin().float())
    main = model.graphs[-1].program.main
    assert len(main.ready) <= program.CONTENTS + 1
    assert any("aten.sin" in r for r in beside(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "unit"),
    [
        (lambda p: torch.optim.SGD(p, 0.3, momentum=0.9, nesterov=True, weight_decay=0.01), 1e-5),
        (lambda p: torch.optim.SGD(p, 0.3, momentum=0.9, dampening=0.5), 1e-5),
        (lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1), 1e-3),
        (lambda p: torch.optim.Adam(p, 1e-2, betas=(0.8, 0.9), weight_decay=0.1), 1e-3),
    ],
)
def test_a_decoder_is_trained_wholly_on_the_device(decoder, make, unit):
    """Beside torch's own optimizer in double precision; Adam's steps of gradients near 0 are ill-conditioned."""
    model, exact = copy.deepcopy(decoder), copy.deepcopy(decoder).double()
    mine, theirs = make(model.parameters()), make(exact.parameters())

    def loss(m, given, wanted):
        return F.cross_entropy(m(given).flatten(0, 1), wanted.flatten())

    step = TrainingStep(model, loss, mine)
    for n in range(4):
        if n == 2:
            for optimizer in (mine, theirs):
                optimizer.param_groups[0]["lr"] *= 0.5
        shape = (2, 7) if n != 1 else (1, 9)  # another shape is another program with the same parameters
        batch = tokens(*shape, seed=n), tokens(*shape, seed=n + 9)
        got = step(*batch)
        theirs.zero_grad()
        want = loss(exact, *batch)
        want.backward()
        theirs.step()
        close(got, want.detach().float(), 10 * unit)
    for p, q in zip(model.state_dict().values(), exact.parameters(), strict=True):
        close(p, q.detach().float(), 10 * unit)
    assert set(mine.state_dict()["state"][0]) == set(theirs.state_dict()["state"][0])


def test_a_step_that_must_not_be_done_changes_nothing():
    model = nn.Embedding(5, 4)
    before = model.weight.detach().clone()
    step = TrainingStep(model, lambda m, i: (m(i) ** 2).sum(), torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(IndexError, match="out of range"):
        step(torch.tensor([1, 7]))
    assert torch.equal(model.weight, before)
    step(torch.tensor([1, 4]))
    assert not torch.equal(model.state_dict()["weight"], before)


def test_a_step_that_single_precision_cannot_do_is_done_on_the_host():
    """Queries next to keys: their hyperbolic distance has no digits in single precision."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, a):
            q = a * self.weight
            return aatc.attend(q, a, a, metric=metrics.LorentzDistance(lift=True))

    model = Attention()
    exact = copy.deepcopy(model).double()
    mine, theirs = (torch.optim.SGD(m.parameters(), 0.1, momentum=0.5, dampening=0.1) for m in (model, exact))
    step = TrainingStep(model, squares, mine)
    for n in range(4):
        a = x(1, 2, 5, 4, seed=n) * (1 if n % 2 else 1e-3)
        got, want = step(a), squares(exact, a.double())
        theirs.zero_grad()
        want.backward()
        theirs.step()
        close(got, want.float().detach())
    assert step.on_host > 0
    close(model.state_dict()["weight"], exact.weight.detach().float(), 1e-4)


def agree(make, steps, unit=1e-5):
    """Steps of a TrainingStep beside the same by torch in double precision; ``steps`` gets (model, optimizer, do)."""
    torch.manual_seed(0)
    model = make()
    exact = copy.deepcopy(model).double()
    found = []
    for m, on_device in ((model, True), (exact, False)):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        step = TrainingStep(m, lambda m, a: (m(a) ** 2).sum(), optimizer) if on_device else None

        def do(seed, m=m, optimizer=optimizer, step=step):
            a = x(3, 4, seed=seed)
            if step is not None:
                return step(a)
            optimizer.zero_grad()
            loss = (m(a.double()) ** 2).sum()
            loss.backward()
            optimizer.step()
            return loss

        steps(m, optimizer, do)
        found.append([p.detach().float() for p in m.parameters()])
    for got, want in zip(*found, strict=True):
        close(got, want, unit)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other, self.unused = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, a):
        with torch.no_grad():
            target = self.other(a)
        return self.one(a) - target


def test_no_gradient_flows_through_no_grad_and_what_is_unused_stays():
    def steps(model, optimizer, do):
        do(0)
        do(1)

    agree(Two, steps)


def test_what_others_do_between_steps_is_seen():
    def steps(model, optimizer, do):
        first = copy.deepcopy(model.state_dict())
        do(0)
        do(1)
        model.load_state_dict(first)  # as the program began
        do(2)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.param_groups[0]["lr"] = 0.02
        do(3)
        optimizer.param_groups[0]["weight_decay"] = 0.5
        do(4)
        model.bias.requires_grad_(False)
        do(5)
        with torch.no_grad():
            model.weight.clamp_(-0.2, 0.2)
        do(6)

    agree(lambda: nn.Linear(4, 2), steps)


def test_momentum_of_steps_by_torch_goes_on():
    def steps(model, optimizer, do):
        a = x(3, 4).to(model.weight.dtype)
        for _ in range(2):
            optimizer.zero_grad()
            (model(a) ** 2).sum().backward()
            optimizer.step()
        optimizer.zero_grad()
        do(1)

    agree(lambda: nn.Linear(4, 2), steps)


def test_two_steps_over_one_model_see_each_other():
    torch.manual_seed(0)
    model = nn.ModuleDict({"g": nn.Linear(4, 3), "d": nn.Linear(3, 1)})
    exact = copy.deepcopy(model).double()
    a = x(5, 4)

    def one(m, a):
        return -m["d"](m["g"](a)).tanh().mean()

    def other(m, a):
        return (m["d"](m["g"](a)) ** 2).mean()

    pairs = [(part, loss) for part, loss in (("g", one), ("d", other))]
    mine = [TrainingStep(model, loss, torch.optim.SGD(model[part].parameters(), 0.3)) for part, loss in pairs]
    theirs = [torch.optim.SGD(exact[part].parameters(), 0.3) for part, _ in pairs]
    for _ in range(3):
        for step, optimizer, (_, loss) in zip(mine, theirs, pairs, strict=True):
            step(a)
            exact.zero_grad()
            loss(exact, a.double()).backward()
            optimizer.step()
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        close(p.detach(), q.detach().float())


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


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: TrainingStep(m, squares, torch.optim.RMSprop(m.parameters())), "RMSprop has no kernels"),
        (lambda m: TrainingStep(m, squares, torch.optim.Adam(m.parameters(), amsgrad=True)), "amsgrad"),
        (lambda m: TrainingStep(m, squares, torch.optim.SGD(m.parameters()), backend="cpu"), "no training steps"),
        (lambda m: TrainingStep(m, lambda m, a: m(a), torch.optim.SGD(m.parameters()))(x(3, 5)), "not one number"),
        (
            lambda m: TrainingStep(m, lambda m, a: m(a).sort(-1).values.sum(), torch.optim.SGD(m.parameters()))(
                x(3, 5)
            ),
            "aten.sort",
        ),
    ],
)
def test_training_steps_that_are_none_say_why(make, words):
    with pytest.raises(UnsupportedError, match=words):
        make(nn.Linear(5, 4))


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
