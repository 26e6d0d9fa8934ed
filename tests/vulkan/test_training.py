"""Training steps on a device, beside torch's own optimizers in double precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import aatc
from aatc import metrics
from aatc.errors import UnsupportedError
from aatc.training import TrainingStep
from tests.vulkan.models import FUNCTIONS, Decoder, beside, close, compiled, squares, tokens, x
from tests.vulkan.running import EXECUTORS, usable

pytestmark = [
    pytest.mark.skipif(
        all(usable(name) for name in EXECUTORS), reason="no executor sees a device; make vulkan installs one"
    ),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    return Decoder()


class Weights(nn.Module):
    """A function of parameters that are added to its inputs."""

    def __init__(self, function, inputs):
        super().__init__()
        self.function = function
        self.held = nn.ParameterList([nn.Parameter(torch.zeros_like(t)) for t in inputs if t.is_floating_point()])

    def forward(self, *inputs):
        held = iter(self.held)
        return self.function(*(t + next(held) if t.is_floating_point() else t for t in inputs))


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


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.2),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.3),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adam(p, 0.01, betas=(0.8, 0.95), weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.01, betas=(0.8, 0.95), weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.5, decoupled_weight_decay=True),
    ],
)
def test_optimizers(make):
    """Gradients here are far from 0, where Adam's steps are well-conditioned."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    exact = copy.deepcopy(model).double()
    mine, theirs = make(model.parameters()), make(exact.parameters())
    step = TrainingStep(model, squares, mine)
    for n in range(4):
        a = x(3, 4, seed=n) + 2
        got, want = step(a), squares(exact, a.double())
        theirs.zero_grad()
        want.backward()
        theirs.step()
        close(got, want.detach().float(), 1e-5)
    for p, q in zip(model.state_dict().values(), exact.parameters(), strict=True):
        close(p, q.detach().float(), 1e-5)
    assert step.on_host == 0


def test_tied_parameters_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedError):
        TrainingStep(model, squares, torch.optim.SGD(model.parameters(), 0.1))(x(3, 4))
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])


class Gate(nn.Module):
    """Another function in training than else."""

    def forward(self, a):
        return 2 * a if self.training else 0.5 * a


def test_a_part_that_changes_its_mode_between_steps_is_seen():
    """Not only the whole model's mode counts."""

    def steps(model, optimizer, do):
        for seed, mode in enumerate((True, False, False, True)):
            model[1].train(mode)
            assert model.training
            losses.append(do(seed).item())

    losses = []
    agree(lambda: nn.Sequential(nn.Linear(4, 2), Gate(), nn.Linear(2, 2)), steps)
    assert losses[:4] == pytest.approx(losses[4:], rel=1e-4)
