"""Numbers so large or small that a square or product of theirs is no number any more, where the formula has a value."""

from __future__ import annotations

import math

import pytest
import torch

import aatc
from aatc.ir.score.derivative import gradients
from aatc.ir.score.evaluate import evaluate
from aatc.ir.score.expr import ONE, call, param
from aatc.metrics import LorentzDistance


def attention(scores: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(scores, -1) @ v


def positive(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype) + 0.5


@aatc.metric
def hyperbolic(q, k):
    return -torch.acosh(q @ k)


@aatc.metric
def squared_hyperbolic(q, k):
    return -1e-3 * torch.acosh(q @ k) ** 2


@pytest.mark.parametrize("scale", [1e60, 1e77, 1e120, 1e150])
@pytest.mark.parametrize("metric", [hyperbolic, squared_hyperbolic], ids=["distance", "square"])
def test_hyperbolic_distances_whose_square_overflows(metric, scale: float) -> None:
    base = positive(3, 1, 2, 6, 4)
    q, k, v = (x.clone().requires_grad_() for x in (base[0] * scale, base[1] * scale, base[2]))
    x = base[0] @ base[1].mT
    far = torch.log(2 * x) + 2 * math.log(scale)  # acosh(x) to the last digit
    slope = -far * 2e-3 if metric is squared_hyperbolic else -torch.ones_like(far)
    scores = -1e-3 * far**2 if metric is squared_hyperbolic else -far
    want = attention(scores, base[2])
    p = torch.softmax(scores, -1)
    through = base[2].sum(-1).unsqueeze(-2)
    gs = p * (through - (p * through).sum(-1, keepdim=True)) * slope / x  # of x, times scale squared
    for f in (
        lambda q, k, v: aatc.attend(q, k, v, metric=metric),
        aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=metric), fallback=False, backend="cpu"),
    ):
        q.grad = k.grad = None
        o = f(q, k, v)
        o.sum().backward()
        torch.testing.assert_close(o.detach(), want, rtol=1e-10, atol=0)
        torch.testing.assert_close(q.grad * scale, gs @ base[1], rtol=1e-8, atol=1e-13)
        torch.testing.assert_close(k.grad * scale, gs.mT @ base[0], rtol=1e-8, atol=1e-13)


def test_lorentz_distances_whose_square_overflows() -> None:
    q, k, v = positive(3, 1, 2, 6, 4)
    metric = LorentzDistance(lift=True)
    got = aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=metric), fallback=False)(q * 1e100, k * 1e100, v)
    # far from the apex, x = |q||k| - <q, k>
    x = q.norm(dim=-1).unsqueeze(-1) * k.norm(dim=-1).unsqueeze(-2) - q @ k.mT
    torch.testing.assert_close(got, attention(-torch.log(x), v), rtol=1e-9, atol=0)


def test_single_precision_distances_of_channel_sums() -> None:
    """Sums over channels have no conditions that double precision would stand behind."""

    @aatc.metric
    def metric(q, k):
        return -torch.acosh(1 + (q - k).abs().sum())

    q, k, v = positive(3, 1, 2, 6, 4, dtype=torch.float32)
    q, k = q * 1e20, k * 3e20
    got = aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=metric), fallback=False, backend="cpu")(q, k, v)
    x = (q.double().unsqueeze(-2) - k.double().unsqueeze(-3)).abs().sum(-1)
    torch.testing.assert_close(got.double(), attention(-torch.log(2 * x), v.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("word", ["acosh", "expacosh"])
def test_slopes_of_words_whose_square_overflows(word: str) -> None:
    x = param("x", "bhij")
    values = torch.tensor([1.0, 1.0 + 2**-40, 1.5, 1e10, 1e100, 1e200, 1e300, 0.5], dtype=torch.float64)
    env, sizes = {"x": values.reshape(1, 1, 1, -1)}, (1, 1, 1, len(values))
    e = call(word, x)
    slope = gradients([(e, ONE)], [x], far=True)[x]
    got = evaluate(slope, env, sizes, dtype=torch.float64).flatten()
    root = (values - 1).clamp(min=0).sqrt() * (values + 1).sqrt()
    want = torch.where(root > 0, 1 / root, 0.0)
    if word == "expacosh":
        want = -want * 0.5 / (0.5 * values + 0.5 * root)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=0)
    assert bool((evaluate(e, env, sizes, dtype=torch.float64) != 0).flatten()[1:-1].all())


@aatc.metric(r="hi")
def times(q, k, r):
    return r * (q @ k)


@aatc.metric(r="hi")
def over(q, k, r):
    return (q @ k) / r


@aatc.metric(r="hi")
def capped(q, k, r):
    return 3 * torch.tanh(r * (q @ k))


@aatc.metric(r="hi")
def shifted(q, k, r):
    return r * (q @ k + 2.0) - r


@pytest.mark.parametrize(
    ("metric", "dtype", "r", "q_scale", "k_scale"),
    [
        (times, torch.float64, 1e160, 1e160, 1e-319),
        (times, torch.float64, 1e160, 1e150, 1e-310),
        (times, torch.float64, 1e155, 1e155, 1e-307),
        (capped, torch.float64, 1e160, 1e155, 1e-307),
        (shifted, torch.float64, 1.0, 1e155, 1e-155),
        (over, torch.float64, 1e-309, 1e-309, 1.0),
        (capped, torch.float32, 1e20, 1e19, 1e-38),
        (capped, torch.float32, 1e20, 1e22, 1e-38),
        (times, torch.float32, 1e20, 1e19, 1e-38),
        (over, torch.float32, 1e-39, 1e-39, 1.0),
    ],
)
def test_factors_of_contractions_that_no_vector_may_be_multiplied_by(metric, dtype, r, q_scale, k_scale) -> None:
    """r (q k) has a value where r q has none: the order of what is multiplied is the formula's."""
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(1, 2, 7, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    q[:, :, 0] = 0.0
    q, k, v = (x.to(dtype) for x in (q * q_scale, k * k_scale, v))
    rows = torch.full((2, 7), r, dtype=dtype)
    f = aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=metric(r=rows)), fallback=False, backend="cpu")
    wide = [x.double() for x in (q, k, v)]
    inner, given = wide[0] @ wide[1].mT, rows.double().unsqueeze(-1)
    scores = {
        "times": lambda: given * inner,
        "over": lambda: inner / given,
        "capped": lambda: 3 * torch.tanh(given * inner),
        "shifted": lambda: given * (inner + 2.0) - given,
    }[metric.__name__ if hasattr(metric, "__name__") else metric.name]()
    want = attention(scores, wide[2])
    assert want.isfinite().all()
    tolerance = 1e-5 if dtype is torch.float32 else 1e-3 if k_scale < 1e-318 else 1e-9  # subnormal numbers
    torch.testing.assert_close(f(q, k, v).double(), want, rtol=tolerance, atol=tolerance)
