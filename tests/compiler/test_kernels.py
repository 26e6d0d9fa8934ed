"""Compiled attention against the eager formula and torch's autograd, over drawn attentions."""

import pytest
import torch
from hypothesis import given

import aatc
from aatc import connections, masks, metrics, normalizers
from aatc.ir.interpreter import Interpreter
from tests.compiler.draw import attentions
from tests.compiler.harness import build


def relative(got, want):
    """Largest deviation relative to the largest entry; both must have infinities in the same places."""
    assert got.shape == want.shape
    got, want = got.detach(), want.detach()
    finite = torch.isfinite(want)
    assert torch.equal(torch.isfinite(got), finite)
    difference = (got - want).masked_fill(~finite, 0).abs().max() if got.numel() else torch.zeros(())
    return float(difference / want.masked_fill(~finite, 0).abs().max().clamp(min=1e-3))


def tangent(frame, gradient):
    """The part of a frame's gradient along rotations: rewrites rest on frames being orthogonal, and off the
    orthogonal matrices the two sides differ."""
    x = frame.mT @ gradient.to(frame.dtype)
    return x - x.mT


def compare(q, k, v, parts, tiles, library, tolerance, oracle_dtype=torch.float64):
    """Output, log-sum-exp and every gradient of the compiled attention against `aatc.attend` in float64."""
    built = build(q, k, v, tiles=tiles, library=library, **parts)
    leaves = [t for t in built.operands if t.is_floating_point()]
    low = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in built.operands]
    high = [t.detach().to(oracle_dtype).requires_grad_() if t.is_floating_point() else t for t in built.operands]
    want = torch.ops.aatc.attend(*high[:3], high[3:], built.spec)
    got = built.program.main(*low)
    torch.manual_seed(7)
    probe = [torch.randn_like(w) for w in want]
    # a query without keys has lse -inf, and lets nothing through whatever comes
    probe[1] = probe[1].masked_fill(torch.isnan(want[1]) | torch.isposinf(want[1]), 0.0)

    def pull(outputs, inputs):
        inputs = [t for t in inputs if t.is_floating_point()]
        return torch.autograd.grad(
            outputs, inputs, [p.to(o.dtype) for p, o in zip(probe, outputs, strict=True)], allow_unused=True
        )

    assert relative(got[0].to(oracle_dtype), want[0]) <= tolerance, "output"
    assert relative(got[1].to(oracle_dtype), want[1]) <= tolerance, "log-sum-exp"
    for n, (g, w, leaf) in enumerate(zip(pull(got, low), pull(want, high), leaves, strict=True)):
        if w is None or (g is None and not w.abs().max() > 0):
            continue
        assert g is not None and g.shape == leaf.shape, f"gradient of operand {n} is missing"
        if isinstance(parts["connection"], connections.Frames) and n >= 3 and leaf.dim() > 2:
            g, w = tangent(leaf, g), tangent(leaf.to(oracle_dtype), w)
        assert relative(g.to(oracle_dtype), w) <= tolerance, f"gradient of operand {n}"
    return built


@given(attentions(torch.float64))
def test_compiled_attention_equals_the_formula_in_float64(drawn):
    compare(*drawn, tolerance=1e-12)


@given(attentions(torch.float32))
def test_compiled_attention_is_accurate_in_float32(drawn):
    compare(*drawn, tolerance=2e-5)


@given(attentions(torch.float64))
def test_every_stage_means_the_same_to_the_interpreter(drawn):
    q, k, v, parts, tiles, library = drawn
    built = build(q, k, v, tiles=tiles, library=library, **parts)
    want = Interpreter(built.module).call("main", built.operands)
    for name, module in built.result.stages.items():
        got = Interpreter(module).call("main", built.operands)
        for g, w in zip(got, want, strict=True):
            assert relative(g, w) <= 1e-11, name


@pytest.mark.parametrize("metric", [metrics.Euclidean(), metrics.LorentzDistance(lift=True), metrics.DotProduct()])
@pytest.mark.parametrize("library", [True, False])
def test_bfloat16_keeps_scores_in_float32(metric, library):
    q, k, v = (torch.randn(2, 2, 33, 16, dtype=torch.bfloat16) for _ in range(3))
    built = build(q, k, v, metric=metric, library=library)
    o, lse = built.run()
    assert o.dtype == torch.bfloat16 and lse.dtype == torch.float32
    want = build(q.double(), k.double(), v.double(), metric=metric).run()[0]
    assert relative(o.double(), want) <= 5e-3  # the rounding of the result itself


def test_rows_without_keys_are_zero_with_lse_minus_infinity():
    q, k, v = (torch.randn(1, 2, 9, 4, requires_grad=True) for _ in range(3))
    for library in (True, False):
        built = build(
            q, k, v, metric=metrics.Euclidean(), mask=masks.predicate(lambda b, h, i, j: j + 4 < i), library=library
        )
        o, lse = built.run()
        assert torch.equal(o[:, :, :5], torch.zeros_like(o[:, :, :5])) and (lse[:, :, :5] == float("-inf")).all()
        grads = torch.autograd.grad(o.sum(), [q, k, v])
        assert all(torch.isfinite(g).all() for g in grads) and (grads[0][:, :, :5] == 0).all()


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("mask", ["none", "causal", "window"])
def test_nan_reaches_the_rows_that_see_it_and_no_others(which, mask, library):
    x = {n: torch.randn(1, 2, 24, 8) for n in "qkv"}
    made = {"none": None, "causal": masks.causal(), "window": masks.causal() & masks.sliding_window(3)}[mask]
    x[which][0, 1, 10, 3] = float("nan")
    built = build(**x, metric=metrics.Euclidean(), mask=made, library=library, tiles="rows=8 cols=8 grain=8")
    o, _ = built.run()
    eager = built.eager[0]
    spoiled = torch.isnan(o).any(-1)[0]
    assert torch.equal(spoiled, torch.isnan(eager).any(-1)[0])
    assert not spoiled[0].any()
    sees = torch.zeros(24, dtype=torch.bool)
    if which == "q":
        sees[10] = True
    else:
        i = torch.arange(24)
        sees = {"none": i >= 0, "causal": i >= 10, "window": (i >= 10) & (i < 13)}[mask]
    assert torch.equal(spoiled[1], sees)


@pytest.mark.parametrize("backend", ["cpu", "native"])
@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("mask", ["dense", "padding", "causal"])
def test_gradients_where_nobody_sees_a_nan(mask, which, backend):
    """They are those of the attention without the key that is shut."""
    n = 6
    x = {name: torch.randn(1, 2, n, 8) for name in "qkv"}
    keep = torch.ones(n, n, dtype=torch.bool).tril() if mask == "causal" else torch.rand(n, n) < 0.7
    keep[:, n - 1] = False
    keep[:, 0] = True
    if mask == "padding":
        keep[:] = torch.arange(n) < n - 1
    made = {
        "dense": masks.dense(keep),
        "padding": masks.key_padding(keep[:1]),
        "causal": masks.causal() & masks.dense(keep),
    }[mask]
    x[which][0, 1, n - 1, 3] = float("nan")
    leaves = [t.requires_grad_() for t in x.values()]
    o, lse = build(**x, metric=metrics.DotProduct(), mask=made, backend=backend).run()
    probes = torch.randn_like(o), torch.randn_like(lse)
    got = torch.autograd.grad([o, lse], leaves, probes)
    high = [t.detach().double()[:, :, : n if name == "q" else n - 1].requires_grad_() for name, t in x.items()]
    s = (high[0] @ high[1].mT / 8**0.5).masked_fill(~keep[:, : n - 1], float("-inf"))
    exact = [s.softmax(-1) @ high[2], s.logsumexp(-1)]
    want = torch.autograd.grad(exact, high, [p.double() for p in probes])
    for name, g, w in zip("qkv", got, want, strict=True):
        assert relative(g[:, :, : w.shape[2]].double(), w) <= 1e-5, name
        assert not g[:, :, w.shape[2] :].any(), name


@pytest.mark.parametrize("beta", [1.0, 2.0, 4.0, 20.0])
def test_far_points_keep_their_gradients(beta):
    """All keys are so far that unshifted weights leave float32's range; output and gradients are still right."""
    q = torch.randn(1, 1, 16, 8) * 1e-2
    k = torch.randn(1, 1, 16, 8) * 1e7
    drawn = (
        q,
        k,
        torch.randn(1, 1, 16, 8),
        {"metric": metrics.LorentzDistance(beta=beta, lift=True), "connection": None},
    )
    compare(*drawn, tiles="rows=8 cols=8", library=True, tolerance=1e-4)


def test_far_points_do_not_underflow():
    """Weights of far keys leave float32's range; the guard repeats such rows with a running maximum."""
    q, k = (torch.randn(1, 1, 16, 8) * 1e-2 for _ in range(2))
    k[..., 0] += 1e9
    parts = {"metric": metrics.LorentzDistance(beta=20.0, lift=True)}
    o, lse = build(q, k, torch.randn(1, 1, 16, 8), tiles="rows=8 cols=8", **parts).run()
    assert torch.isfinite(o).all() and torch.isfinite(lse).all() and (lse < -100).all()


def test_dropout_does_not_depend_on_the_tiling():
    q, k, v = (torch.randn(2, 3, 19, 8, dtype=torch.float64) for _ in range(3))
    parts = {"metric": metrics.DotProduct(), "dropout": 0.4, "seed": 5}
    outs = [
        build(q, k, v, tiles=t, **parts).run()[0]
        for t in ("rows=4 cols=3 heads=2", "rows=19 cols=19", "rows=1 cols=7 heads=1")
    ]
    torch.testing.assert_close(outs[0], outs[1])
    torch.testing.assert_close(outs[0], outs[2])
    other = build(q, k, v, **{**parts, "seed": 6}).run()[0]
    assert (outs[0] - other).abs().max() > 0.1


def test_no_tensor_of_size_n_squared_is_made():
    """Every allocation during forward and backward stays far below one score matrix."""
    from torch.utils._python_dispatch import TorchDispatchMode

    n = 1024
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.untyped_storage().nbytes())
            return out

    q, k, v = (torch.randn(1, 1, n, 8, requires_grad=True) for _ in range(3))
    for parts in (
        {"metric": metrics.LorentzDistance(lift=True)},
        {"metric": metrics.Euclidean(), "mask": masks.sliding_window(64)},
        {"metric": metrics.DotProduct(), "connection": connections.HyperboloidTransport()},
        {"metric": metrics.DotProduct(), "normalizer": normalizers.Sigmoid(-7.0), "soft_cap": 20.0},
        {"metric": metrics.DotProduct(), "normalizer": normalizers.Softmax(0.5)},
    ):
        built = build(q, k, v, tiles="rows=64 cols=128", library=False, **parts)
        largest = 0
        with Watch():
            o = built.run()[0]
            torch.autograd.grad(o.sum(), [q, k, v])
        assert largest < n * n * 4 / 4


@pytest.mark.parametrize("lengths", [(0, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "lorentz"])
def test_sequences_of_length_zero(metric, masked, lengths):
    chosen = {"euclidean": aatc.metrics.Euclidean(), "lorentz": aatc.metrics.LorentzDistance(lift=True)}[metric]

    def attention(q, k, v):
        return aatc.attend(q, k, v, metric=chosen, mask=aatc.masks.causal() if masked else None)

    n, m = lengths
    inputs = [torch.randn(2, 2, length, 4, requires_grad=True) for length in (n, m, m)]
    compiled = aatc.compile(attention, dynamic=False, fallback=False)
    out = compiled(*inputs)
    torch.testing.assert_close(out, attention(*inputs))
    grads = torch.autograd.grad(out.sum(), inputs)
    assert [g.shape for g in grads] == [x.shape for x in inputs] and not any(g.abs().sum() for g in grads)


def test_one_tensor_for_queries_and_keys_that_values_are_carried_by():
    def model(x, v):
        # A token is at distance 0 of itself, where acosh halves the digits: there only rounding would be compared.
        others = masks.predicate(lambda b, h, i, j: abs(i - j) > 0)
        carried = connections.HyperboloidTransport()
        return aatc.attend(x, x, v, metric=metrics.LorentzDistance(lift=True), connection=carried, mask=others)

    x = torch.randn(1, 2, 7, 4, dtype=torch.float64)
    x[..., 0] = (1 + x[..., 1:].square().sum(-1)).sqrt()
    v = torch.randn(1, 2, 7, 4, dtype=torch.float64)
    assert relative(aatc.compile(model, fallback=False)(x, v), model(x, v)) <= 1e-12
