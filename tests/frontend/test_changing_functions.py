"""Metrics and predicates that read something which changes: never the first value for good."""

import functools
from types import SimpleNamespace

import pytest
import torch

import aatc
from aatc import masks, metrics
from aatc.errors import ScoreError
from tests.api.oracle import attention, pairs

WIDTH = 2
SETTINGS = SimpleNamespace(width=2, slope=0.5)


@aatc.metric
def sloped(q, k):
    return -SETTINGS.slope * (q - k).abs().sum()


def _reach():
    return WIDTH


def within(b, h, i, j, width=2):
    return abs(i - j) < width


class Within:
    def __init__(self):
        self.width = 2

    def __call__(self, b, h, i, j):
        return abs(i - j) < self.width


class Model(torch.nn.Module):
    """``kind`` says what a predicate reads its width from."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.width, self.object = kind, 2, Within()
        self.held = masks.predicate(lambda b, h, i, j: abs(i - j) < self.width)
        self.held_object = masks.predicate(self.object)
        self.held_default = masks.predicate(within)
        self.held_part = masks.sliding_window(2)

    def mask(self):
        width = self.width
        return {
            "global": lambda: masks.predicate(lambda b, h, i, j: abs(i - j) < WIDTH),
            "attribute": lambda: masks.predicate(lambda b, h, i, j: abs(i - j) < self.width),
            "cell": lambda: masks.predicate(lambda b, h, i, j: abs(i - j) < width),
            "default": lambda: masks.predicate(lambda b, h, i, j, w=width: abs(i - j) < w),
            "settings": lambda: masks.predicate(lambda b, h, i, j: abs(i - j) < SETTINGS.width),
            "function": lambda: masks.predicate(lambda b, h, i, j: abs(i - j) < _reach()),
            "partial": lambda: masks.predicate(functools.partial(lambda w, b, h, i, j: abs(i - j) < w, width)),
            "held": lambda: self.held,
            "held_object": lambda: self.held_object,
            "held_default": lambda: self.held_default,
            "held_part": lambda: self.held_part,
            "inverted": lambda: ~masks.predicate(lambda b, h, i, j: ~(abs(i - j) < self.width)),
        }[self.kind]()

    def forward(self, x):
        return aatc.attend(x, x, x, metric=metrics.DotProduct(), mask=self.mask())

    def change(self, width):
        global WIDTH
        WIDTH = SETTINGS.width = self.width = self.object.width = self.held_part.width = width
        within.__defaults__ = (width,)


KINDS = [
    "global", "attribute", "cell", "default", "settings", "function", "partial", "held", "held_object", "held_default",
    "held_part", "inverted",
]  # fmt: skip


def wanted(x, width):
    x = x.double()
    near = (torch.arange(x.shape[2])[:, None] - torch.arange(x.shape[2])).abs() < width
    scores = (torch.mul(*pairs(x, x))).sum(-1) / x.shape[-1] ** 0.5
    return attention(x, x, x, scores, mask=near)[0].float()


def run_as(how, model):
    torch._dynamo.reset()
    if how == "eager":
        return model
    return aatc.compile(model) if how == "aatc" else torch.compile(model, backend="aatc")


@pytest.mark.parametrize("how", ["eager", "aatc", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_predicate_reads_what_is_there_now(kind, how):
    model = Model(kind)
    run = run_as(how, model)
    x = torch.randn(1, 2, 9, 4)
    for width in (2, 5, 1, 5):
        model.change(width)
        torch.testing.assert_close(run(x), wanted(x, width), rtol=1e-5, atol=1e-5)
    if how == "aatc":
        assert not run.explain().fallbacks


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_goes_on_changing_costs_few_graphs(kind):
    model = Model(kind)
    run = run_as("aatc", model)
    x = torch.randn(1, 2, 9, 4)
    for width in (2, 3, 4, 5, 6, 7, 8, 9, 2, 3):
        model.change(width)
        torch.testing.assert_close(run(x), wanted(x, width), rtol=1e-5, atol=1e-5)
    assert len(run.graphs) <= 3 and not run.explain().fallbacks


@pytest.mark.parametrize("how", ["eager", "aatc", "torch"])
def test_a_decorated_metric_reads_its_globals_again(how):
    def f(x):
        return aatc.attend(x, x.flip(2), x, metric=sloped)

    run = run_as(how, f)
    x = torch.randn(1, 2, 7, 4)
    for slope in (0.5, 2.0, 0.25, 1.5, 3.0):
        SETTINGS.slope = slope
        a, b = pairs(x.double(), x.double().flip(2))
        want = attention(x.double(), x.double(), x.double(), -slope * (a - b).abs().sum(-1))[0].float()
        torch.testing.assert_close(run(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["eager", "aatc", "torch"])
def test_a_tensor_without_dimensions_is_an_operand_and_learns(how):
    slope = torch.nn.Parameter(torch.tensor(0.5))
    metric = aatc.metric(lambda q, k: -slope * (q - k).abs().sum())

    def f(x):
        return aatc.attend(x, x.flip(2), x, metric=metric)

    run = run_as(how, f)
    x = torch.randn(1, 2, 7, 4)
    for value in (0.5, 2.0):
        slope.data.fill_(value)
        s = slope.detach().double().requires_grad_()
        a, b = pairs(x.double(), x.double().flip(2))
        want = attention(x.double(), x.double(), x.double(), -s * (a - b).abs().sum(-1))[0]
        got = run(x)
        torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-5)
        (g,), (w,) = torch.autograd.grad(got.sin().sum(), slope), torch.autograd.grad(want.sin().sum(), s)
        torch.testing.assert_close(g, w.float(), rtol=1e-4, atol=1e-4)


def test_a_tensor_with_dimensions_is_not_frozen_in_silence():
    slope = torch.ones(4)
    with pytest.raises(ScoreError, match=r"test_changing_functions.py:\d+.*read from outside.*\n.*@aatc.metric"):
        aatc.metric(lambda q, k: -(slope * (q - k)).abs().sum())


@aatc.metric(beta="h")
def per_head(q, k, beta):
    return beta * (q @ k)


class Listed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.beta = [1.0, 2.0]

    def forward(self, x):
        return aatc.attend(x, x, x, metric=per_head(beta=self.beta))


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("kind", [list, tuple])
def test_numbers_of_heads_in_a_list_are_those_that_are_there_now(kind, dynamic):
    torch._dynamo.reset()
    model, x = Listed(), torch.randn(1, 2, 9, 4)
    compiled = aatc.compile(model, fallback=False, dynamic=dynamic)
    for beta in ([1.0, 2.0], [3.0, 2.0], [3.0, -1.0]):
        model.beta = kind(beta)
        scores = torch.tensor(beta).double().reshape(2, 1, 1) * torch.mul(*pairs(x.double(), x.double())).sum(-1)
        y = x.double()
        want = attention(y, y, y, scores)[0].float()
        torch.testing.assert_close(compiled(x), want, rtol=1e-5, atol=1e-5)
