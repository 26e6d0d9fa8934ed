"""`attention_figure` shows the weights that this library gives, in every precision and with queries without keys."""

import io

import numpy as np
import pytest
import torch

import aatc
from aatc import masks, metrics
from aatc.report import PictureError, attention_figure


def weights(dtype, n=24, m=40, keep=None):
    """Weights of an attention in ``dtype``: its outputs for the values of an identity."""
    q, k = (torch.randn(1, 1, x, 8, dtype=dtype) for x in (n, m))
    v = torch.eye(m, dtype=dtype)[None, None]
    mask = None if keep is None else masks.dense(keep)
    return aatc.attend(q, k, v, metric=metrics.DotProduct(), mask=mask)[0, 0]


def entropy_lines(figure):
    axes = next(axes for axes in figure.axes if "entropy" in axes.get_ylabel())
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_every_precision_are_shown(dtype):
    before, after = weights(dtype), weights(torch.float64)
    lines = entropy_lines(attention_figure(before, after))
    for pattern, name in ((before, "before"), (after, "after")):
        p = pattern.double()
        np.testing.assert_allclose(lines[name], -(p * p.log()).nan_to_num(0.0).sum(-1).numpy(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_entropy_of_a_query_without_keys_is_blank(dtype):
    keep = torch.rand(24, 40) < 0.5
    keep[[0, 7, 23]] = False
    pattern = weights(dtype, keep=keep)
    figure = attention_figure(pattern, weights(dtype))
    lines = entropy_lines(figure)
    assert np.flatnonzero(np.isnan(lines["before"])).tolist() == [0, 7, 23]
    assert np.isfinite(lines["after"]).all()
    figure.savefig(io.BytesIO())


def test_whole_numbers_may_be_a_pattern():
    lines = entropy_lines(attention_figure(torch.eye(4, dtype=torch.int64), torch.eye(4, dtype=torch.bool)))
    assert (lines["before"] == 0).all() and (lines["after"] == 0).all()


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 0.01), (torch.bfloat16, 0.06), (torch.float32, 3e-4)])
def test_a_row_off_by_more_than_rounding_is_refused(dtype, error):
    pattern = weights(torch.float64)
    pattern[5] *= 1 + error
    with pytest.raises(PictureError, match=r"row 5 of the pattern after .*\n.*softmax"):
        attention_figure(weights(dtype), pattern.to(dtype))
    pattern = torch.zeros(3, 4, dtype=dtype)
    pattern[:, 0], pattern[1, :2] = 1, torch.tensor([-1.0, 1.0])
    with pytest.raises(PictureError, match=r"row 1 of the pattern before .* least entry is -1 and its sum 0"):
        attention_figure(pattern, pattern)
