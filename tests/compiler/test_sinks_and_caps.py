"""Sinks and soft caps against plain torch: what more a row sees than its keys, and what bounds its scores."""

import pytest
import torch

import aatc
from aatc import biases, masks, metrics, normalizers
from tests.compiler.harness import build
from tests.compiler.plain import check, close
from tests.compiler.plain_weights import DTYPES, INF, MASKS, TILES, drawn, weighed


def sunk(s, v, sink, keep=None):
    """Softmax over the keys and one more logit, whose value is 0."""
    if keep is not None:
        s = torch.where(keep, s, -INF)
    extra = sink.reshape(1, -1, 1, 1).expand(*s.shape[:3], 1)
    full = torch.cat([s, extra], -1)
    return full.softmax(-1)[..., :-1] @ v, full.logsumexp(-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
def test_a_sink_takes_weight_and_brings_no_value(mask, dtype):
    made, truth = MASKS[mask]
    leaves = [*drawn(1, 3, 3, 13, 11, 6, 5, dtype=dtype), torch.tensor([-1.0, 0.3, 2.0]).to(dtype)]

    def ours(q, k, v, sink):
        return aatc.attend(
            q, k, v, metric=metrics.DotProduct(), mask=made, normalizer=normalizers.Softmax(sink), return_lse=True
        )

    def plain(q, k, v, sink):
        s = q @ k.mT * q.shape[-1] ** -0.5
        return sunk(s, v, sink, None if truth is None else truth(*s.shape[2:]))

    high = [t.double().requires_grad_() for t in leaves]
    want = plain(*high)
    probes = [torch.randn_like(w) for w in want]
    wanted = torch.autograd.grad(want, high, probes)
    for f in (ours, aatc.compile(ours, fallback=False)):
        low = [t.clone().requires_grad_() for t in leaves]
        got = f(*low)
        assert got[0].dtype == dtype
        for name, g, w in zip(("output", "log-sum-exp"), got, want, strict=True):
            close(g, w, DTYPES[dtype], name)
        found = torch.autograd.grad(got, low, [p.to(g.dtype) for p, g in zip(probes, got, strict=True)])
        for n, (g, w) in enumerate(zip(found, wanted, strict=True)):
            close(g, w, DTYPES[dtype], f"gradient {n}")


def test_a_sink_of_minus_infinity_is_none_and_wrong_ones_are_named():
    q, k, v = drawn(1, 2, 2, 5, 4, 3, 3)
    keep = masks.predicate(lambda b, h, i, j: j < i)
    sink = torch.tensor([-INF, 1.0], dtype=torch.float64, requires_grad=True)

    def run(normalizer):
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), mask=keep, normalizer=normalizer, return_lse=True)

    o, lse = run(normalizers.Softmax(sink))
    plain_o, plain_lse = run("softmax")
    assert torch.equal(o[:, 0], plain_o[:, 0]) and torch.equal(lse[:, 0], plain_lse[:, 0])
    assert (o[:, 1, 0] == 0).all() and lse[0, 1, 0] == 1.0
    (grad,) = torch.autograd.grad(o.sum(), sink)
    assert torch.isfinite(grad).all() and grad[0] == 0
    assert torch.equal(run(normalizers.Softmax(1.0))[0][:, 1], o[:, 1])
    for wrong, text in (
        (torch.zeros(3), r"\(3,\)"),
        (torch.zeros(2, 1), r"\(2, 1\)"),
        (torch.zeros(2).long(), "int64"),
    ):
        with pytest.raises(aatc.errors.CaptureError, match=text):
            run(normalizers.Softmax(wrong))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("cap", [0.8, torch.tensor(0.8), torch.tensor([0.5, 3.0])], ids=["number", "one", "heads"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_soft_cap_bounds_scores_before_the_bias(kind, cap, dtype):
    cap = cap if isinstance(cap, float) else cap.to(dtype)
    tensors = [] if isinstance(cap, float) else [cap]
    slope = torch.tensor([0.5, 0.25], dtype=torch.float64)

    def formula(q, k, v, *given):
        c = given[0].reshape(-1, 1, 1) if given else cap
        s = c * torch.tanh(q @ k.mT * 3.0 / c)
        i, j = torch.arange(9).reshape(-1, 1), torch.arange(7)
        p, lse = weighed(kind, s - slope.reshape(-1, 1, 1) * (i - j).abs())
        return p @ v, lse

    built = check(
        formula,
        *drawn(1, 2, 2, 9, 7, 4, 3, dtype=dtype),
        metric=metrics.DotProduct(),
        scale=3.0,
        tensors=tensors,
        soft_cap=cap,
        bias=biases.ALiBi(slope.to(dtype)),
        normalizer=kind,
        tolerance=DTYPES[dtype],
        compiled=TILES,
    )
    assert built.forward.attrs["engine"] == "stream"


def test_a_soft_cap_without_a_bias_needs_no_running_maximum():
    q, k, v = drawn(1, 2, 2, 9, 7, 4, 3)
    built = build(q, k, v, metric=metrics.DotProduct(), soft_cap=50.0)
    assert not any(op.attrs.get("op") == "max" for op in built.forward.body.walk())
    with pytest.raises(aatc.errors.ScoreError, match="soft_cap is -1"):
        aatc.attend(q, k, v, metric=metrics.DotProduct(), soft_cap=-1.0)
