"""Words whose value jumps: what they read is computed as it is written, so that whole numbers stay whole."""

import pytest
import torch

import aatc
from aatc import metrics
from tests.compiler.plain import attention, check

N = 6
I, J = torch.arange(N)[:, None].double(), torch.arange(N).double()[None]


def distance(q, k):
    return (q[..., :, None, :] - k[..., None, :, :]).square().sum(-1)


SCORES = {
    "floor of a distance": (
        lambda q, k, i, j: torch.floor((q - k) @ (q - k) / 3.0),
        lambda q, k: torch.floor(distance(q, k) / 3.0),
    ),
    "floor of a scaled product": (
        lambda q, k, i, j: 0.5 * torch.floor(0.1 * (q @ k)),
        lambda q, k: 0.5 * torch.floor(0.1 * (q @ k.mT)),
    ),
    "sign of a difference": (
        lambda q, k, i, j: torch.sign((q - k) @ (q - k) - 14.0) * (q * 0.1).sum(),
        lambda q, k: torch.sign(distance(q, k) - 14.0) * (q * 0.1).sum(-1, keepdim=True),
    ),
    "remainder": (lambda q, k, i, j: ((q - k) @ (q - k)) % 7.0, lambda q, k: distance(q, k) % 7.0),
    "quotient": (
        lambda q, k, i, j: ((q - k) @ (q - k)) // 7.0 + 0.1 * (q @ k),
        lambda q, k: torch.floor(distance(q, k) / 7.0) + 0.1 * (q @ k.mT),
    ),
    "positions beside it": (
        lambda q, k, i, j: torch.floor(0.5 * (i - j) + (q - k) @ (q - k)),
        lambda q, k: torch.floor(0.5 * (I - J) + distance(q, k)),
    ),
    "within a sum over channels": (
        lambda q, k, i, j: (torch.floor((q - k) @ (q - k) / 3.0) * 0.05 * q * k).sum(),
        lambda q, k: torch.floor(distance(q, k) / 3.0) * 0.05 * (q @ k.mT),
    ),
    "position of a lookup": (
        lambda q, k, t: metrics.lookup(t, (q - k) @ (q - k) * 0.5),  # halves are rounded to even numbers
        lambda q, k, t: t[(distance(q, k) * 0.5).round().long().clamp(0, len(t) - 1)],
    ),
}


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("name", SCORES)
def test_whole_numbers_stay_whole(name, library):
    torch.manual_seed(0)
    written, plain = SCORES[name]
    q, k = (torch.randint(-4, 5, (2, 2, N, 3)).double() for _ in range(2))
    v, t = torch.randn(2, 2, N, 4, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    if "lookup" in name:
        metric, tensors = aatc.metric(t="t")(lambda q, k, t: written(q, k, t))(t=t), (t,)
    else:
        metric, tensors = aatc.metric(lambda q, k, i, j: written(q, k, i, j)), ()
    check(
        lambda q, k, v, *t: attention(plain(q, k, *t).expand(2, 2, N, N), v),
        *(q, k, v),
        tensors=tensors,
        metric=metric,
        library=library,
    )


def _leaning(q, k):
    """(q - k)·tanh(k) per pair, from differences: 0 where tokens are equal."""
    return ((q[..., :, None, :] - k[..., None, :, :]) * torch.tanh(k)[..., None, :, :]).sum(-1)


KINKS = {
    "abs": (lambda x: -abs(x), lambda x: -x.abs()),
    "abs of a multiple": (lambda x: 1.0 / (1.0 + abs(-0.3 * x)), lambda x: 1 / (1 + (0.3 * x).abs())),
    "relu": (lambda x: -torch.relu(2.0 * x), lambda x: -2 * torch.relu(x)),
    "maximum": (lambda x: torch.exp(-metrics.word("maximum", x, 0.0)), lambda x: (-torch.where(x >= 0, x, 0)).exp()),
    "minimum": (lambda x: metrics.word("minimum", 0.5 * x, 0.0), lambda x: 0.5 * torch.where(x <= 0, x, 0)),
}


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("name", KINKS)
def test_rounding_does_not_choose_the_slope_where_tokens_coincide(name, library):
    """Queries are keys: a difference that is multiplied out leaves (q - k)·tanh(k) a last digit above or below 0."""
    torch.manual_seed(0)
    written, plain = KINKS[name]
    q, v = torch.randn(2, 2, 12, 6, dtype=torch.float64), torch.randn(2, 2, 12, 4, dtype=torch.float64)
    metric = aatc.metric(lambda q, k: written((q - k) @ torch.tanh(k)))
    check(
        lambda q, k, v: attention(plain(_leaning(q, k)), v), q, q.clone(), v, metric=metric, scale=1.0, library=library
    )
