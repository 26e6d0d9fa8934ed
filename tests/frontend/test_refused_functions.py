"""What Python would decide while a function is traced, and words outside the language: ScoreError with the user's line,
eagerly and compiled alike, never a mask or score that means something else."""

import math

import numpy as np
import pytest
import torch

import aatc
from aatc import masks, metrics
from aatc.errors import ScoreError, UnsupportedError
from tests.frontend.frontend_models import TORCH

REFUSED = [
    lambda b, h, i, j: i < j < 3,
    lambda b, h, i, j: (i < j) and (j < 3),
    lambda b, h, i, j: not (i < j),
    lambda b, h, i, j: j in (1, 2),
    lambda b, h, i, j: 1 in [j, 2],
    lambda b, h, i, j: j in {1, 2},
    lambda b, h, i, j: any([i < j]),
    lambda b, h, i, j: True if i < j else False,  # noqa: SIM210
    lambda b, h, i, j: {1: 2}.get(j, 3) < i,
    lambda b, h, i, j: list(i)[0] < j,  # noqa: RUF015
    lambda b, h, i, j: len(i) < j,
    lambda b, h, i, j: float(i) < j,
    lambda b, h, i, j: i[0] < j,
    lambda b, h, i, j: i - j,
    lambda b, h, i, j: None,
    lambda b, h, i, j: i.softmax(-1) < j,
    lambda b, h, i, j: torch.fft.fft(i) < j,
    lambda b, h, i, j: torch.equal(i, j),
    lambda b, h, i, j: i.size(0) < j,
    lambda b, h, i, j: torch.ones(3) * i < j,
    lambda b, h, i, j: i.clamp(minimum=2) < j,
    lambda b, h, i, j: (i < j).sum() > 2,
    lambda b, h, i, j: i < "a",
    lambda b, h, i, j: i.width < j,
]


@pytest.mark.parametrize("n", range(len(REFUSED)))
def test_a_predicate_that_cannot_be_traced_is_refused_at_its_line(n):
    function = REFUSED[n]
    line = function.__code__.co_firstlineno
    with pytest.raises(ScoreError, match=rf"test_refused_functions.py:{line}"):
        masks.predicate(function)

    def model(x):
        return aatc.attend(x, x, x, metric=metrics.DotProduct(), mask=masks.predicate(function))

    for fallback in (True, False):
        torch._dynamo.reset()
        # 2.11 gives some of these words up before they are asked
        errors = ScoreError if fallback or TORCH >= (2, 13) else (ScoreError, UnsupportedError)
        with pytest.raises(errors, match=r"test_refused_functions.py:\d+"):
            aatc.compile(model, fallback=fallback)(torch.randn(1, 2, 5, 4))


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda q, k: max(q @ k, 0.0), "torch.maximum"),
        (lambda q, k: math.exp(q @ k), "torch's functions"),
        (lambda q, k: np.linalg.norm(q - k), ""),
        (lambda q, k: (q.softmax(-1) * k).sum(), "before the attention"),
        (lambda q, k: (q - k).std(), "mean"),
        (lambda q, k: (q - k).max(dim=-1)[0], r"amax\(-1\)"),
        (lambda q, k: (q - k).norm(p=3), "inf"),
        (lambda q, k: (q - k).sum(dim=0), ""),
        (lambda q, k: (q - k).sum(dtype=torch.float64), ""),
        (lambda q, k: torch.div(q @ k, 2, rounding_mode="trunc"), "floor"),
        (lambda q, k: torch.nn.functional.softplus(q @ k, threshold=5), ""),
        (lambda q, k: torch.nn.functional.relu(q, inplace=True) @ k, "inplace"),
        (lambda q, k: torch.fmod(q @ k, 2), "remainder"),
        (lambda q, k: q.item() * k.sum(), ""),
        (lambda q, k: (q @ k).half(), "float32"),
        (lambda q, k: q.T @ k, "transpose"),
        (lambda q, k: q @ k + torch.randn(4), "@aatc.metric"),
        (lambda q, k: q[1:] @ k[1:], "constant c"),
        (lambda q, k: torch.round(q @ k), r"torch.floor\(x \+ 0.5\)"),
    ],
)
def test_a_metric_outside_the_language_says_what_to_write(function, hint):
    line = function.__code__.co_firstlineno
    with pytest.raises(ScoreError, match=rf"(?s)test_refused_functions.py:{line}.*{hint}"):
        aatc.metric(function)


def test_a_channel_beyond_the_vector_is_refused():
    x = torch.randn(1, 1, 3, 4)
    with pytest.raises(ScoreError, match="channel 7 of a vector of 4"):
        aatc.attend(x, x, x, metric=aatc.metric(lambda q, k: q[7] * k[0]))


def test_equality_in_a_metric_counts_and_in_a_predicate_admits():
    q, k, v = (torch.randn(1, 2, 6, 4, dtype=torch.float64) for _ in range(3))
    i, j = torch.arange(6)[:, None], torch.arange(6)
    metric = aatc.metric(lambda q, k, i, j: q @ k + 5.0 * (i == j) - 2 * (i != j + 1))
    mask = masks.predicate(lambda b, h, i, j: (i == j) | (j == 0) | (i == 3) & (i != j))

    def model(q, k, v):
        return aatc.attend(q, k, v, metric=metric, mask=mask)

    scores = q @ k.mT + 5.0 * (i == j) - 2.0 * (i != j + 1)
    keep = (i == j) | (j == 0) | ((i == 3) & (i != j))
    want = torch.softmax(scores.masked_fill(~keep, float("-inf")), -1) @ v
    torch.testing.assert_close(model(q, k, v), want)
    compiled = aatc.compile(model)
    torch.testing.assert_close(compiled(q, k, v), want)
    assert not compiled.explain().fallbacks


OPERATORS = [
    lambda w, n: masks.predicate(lambda b, h, i, j: (w != j) | (i == j)),
    lambda w, n: masks.predicate(lambda b, h, i, j: (n == j) | (i == j)),
    lambda w, n: masks.predicate(lambda b, h, i, j: (n >= j) & (w > j - i) | (i == j)),
    lambda w, n: masks.predicate(lambda b, h, i, j: ~(i < j) ^ (j < 3) | (i == j)),
    lambda w, n: masks.predicate(lambda b, h, i, j: (i % w == j % w) | (-i == +j)),
    lambda w, n: masks.predicate(lambda b, h, i, j: i // w >= j // w),
    lambda w, n: masks.predicate(lambda b, h, i, j: (w * w // (i + 1) <= j) | (i == j)),
    lambda w, n: masks.predicate(lambda b, h, i, j: (2**i < j * n) | (1 / (i + 1) < j) | (i == j)),
    lambda w, n: masks.predicate(lambda b, h, i, j: torch.where(i < n, abs(i - j), 2) <= w),
    lambda w, n: masks.predicate(lambda b, h, i, j: torch.clamp(i, max=n) >= j),
    lambda w, n: ~masks.causal(w) | masks.sliding_window(n) & masks.causal(n - w),
]


@pytest.mark.parametrize("n", range(len(OPERATORS)))
def test_every_operator_means_the_same_under_dynamo(n):
    def model(x, w):
        return aatc.attend(x, x, x, metric=metrics.DotProduct(), mask=OPERATORS[n](w, x.shape[2] // 2))

    torch._dynamo.reset()
    compiled = aatc.compile(model)
    for t in range(3):
        x = torch.randn(1, 2, 7 + t, 4)
        torch.testing.assert_close(compiled(x, 2 + t), model(x, 2 + t), rtol=1e-5, atol=1e-5)
    assert len(compiled.graphs) <= 2 and not compiled.explain().fallbacks
