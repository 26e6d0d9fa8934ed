"""What a call of a small attention goes through besides its kernel."""

import math

import pytest
import torch
import torch.nn.functional as F

import aatc
from aatc import masks, metrics
from aatc.backends.native import isa
from aatc.backends.native.finite import Finite
from aatc.ir.dims import Dim

FINITE = Finite(isa.host())


def of_layout(layout, shape, dtype):
    b, h, n, d = shape
    if layout == "contiguous":
        return torch.randn(shape).to(dtype)
    if layout == "heads inside":
        return torch.randn(b, n, h, d).to(dtype).transpose(1, 2)
    if layout == "one of three":
        return torch.randn(b, n, 3, h, d).to(dtype)[:, :, 1].transpose(1, 2)
    if layout == "every second feature":
        return torch.randn(b, h, n, 2 * d).to(dtype)[..., ::2]
    if layout == "one for all":
        return torch.randn(b, 1, n, d).to(dtype).expand(shape)
    return torch.randn(b, h, n, 2, d).to(dtype).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize(
    "layout", ["contiguous", "heads inside", "one of three", "every second feature", "one for all", "five axes"]
)
def test_one_number_that_is_not_finite_is_found(dtype, layout):
    """Wherever it is; and the largest finite ones, whose sum is none, are not."""
    for shape in ((1, 1, 1, 1), (1, 2, 3, 5), (2, 3, 7, 64), (1, 1, 2, 67)):
        t = of_layout(layout, shape, dtype)
        assert FINITE(t)
        if not dtype.is_floating_point:
            continue
        if layout in ("contiguous", "heads inside", "one of three"):  # of others the sum is looked at
            assert FINITE(torch.full_like(t, torch.finfo(dtype).max, memory_format=torch.preserve_format))
        for n in range(0, t.numel(), max(1, t.numel() // 37)):
            at = tuple(int(i) for i in torch.unravel_index(torch.tensor(n), t.shape))
            before = t[at].clone()
            for bad in (math.inf, -math.inf, math.nan):
                t[at] = bad
                assert not FINITE(t), (shape, at, bad)
            t[at] = before
        assert FINITE(t)


def test_what_is_beside_a_view_is_not_looked_at():
    whole = torch.full((4, 6, 40), math.nan)
    whole[1:3, 2:5, 3:20] = 1.0
    assert FINITE(whole[1:3, 2:5, 3:20])
    assert not FINITE(whole[1:3, 2:5, 3:21])


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), ()])
def test_tensors_of_no_axis_or_no_number(shape):
    assert FINITE(torch.zeros(shape))
    if math.prod(shape):
        assert not FINITE(torch.full(shape, math.inf))


def test_zeros_without_memory_are_finite():
    assert FINITE(torch._efficientzerotensor((3, 4)))


@pytest.fixture(scope="module")
def causal():
    def f(q, k, v):
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), mask=masks.causal())

    return aatc.compile(f, backend="native", fallback=False, dynamic=False)


def kernel_of(compiled, q):
    """The kernel for queries of the shape of ``q``."""
    kernels = [g.program.attentions[0]["kernel"] for g in compiled.graphs]
    (found,) = {k for k in kernels if k.versions[0].forward_func.args[0].type.shape == tuple(map(Dim.of, q.shape))}
    return found


def plain(q, k, v):
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True).to(q.dtype)


def test_layouts_take_turns(causal):
    """The same shapes in other strides, one after the other: nothing of one call is left in the next."""
    shape = (2, 3, 19, 8)
    layouts = ["contiguous", "heads inside", "one of three", "every second feature", "one for all"]
    drawn = [[of_layout(layout, shape, torch.float32) for _ in range(3)] for layout in layouts]
    for _ in range(2):
        for q, k, v in drawn:
            torch.testing.assert_close(causal(q, k, v), plain(q, k, v), atol=2e-5, rtol=2e-5)


def test_results_are_new_in_every_call(causal):
    q, k, v = torch.randn(3, 1, 2, 16, 8)
    first = causal(q, k, v)
    kept = first.clone()
    second = causal(q, k, 2 * v)
    assert torch.equal(first, kept) and first.data_ptr() != second.data_ptr()
    o, lse = kernel_of(causal, q)(q, k, v)
    lse.zero_()
    assert torch.equal(o, kept)


def test_with_and_without_gradients_the_bits_are_the_same(causal):
    q, k, v = torch.randn(3, 1, 2, 21, 8)
    with torch.no_grad():
        want = causal(q, k, v)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    o = causal(*leaves)
    assert torch.equal(o.detach(), want)
    o.sum().backward()
    assert all(x.grad is not None and bool(x.grad.isfinite().all()) for x in leaves)
    assert torch.equal(causal(q, k, v), want)


def test_a_call_without_gradients_makes_two_tensors(causal, monkeypatch):
    """What only a backward needs is not made, and nothing is copied: each would cost as much as a small kernel, and a
    copy of some ten thousand numbers would call all threads."""
    from aatc.backends.native import compiled

    q, k, v = torch.randn(3, 1, 8, 128, 64)
    causal(q, k, v)
    made = []
    monkeypatch.setattr(compiled, "apart", lambda *_: pytest.fail("results are copied"))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: made.append(a) or empty(*a, **k))
    kernel_of(causal, q)(q, k, v)
    assert len(made) == 2
    made.clear()
    causal(q, k, v)
    assert len(made) == 1  # nobody wants the log-sum-exp


def test_a_masked_call_is_one_start_of_threads(causal):
    """A mask that reads no tensor is known from its sizes."""
    q, k, v = torch.randn(3, 1, 2, 16, 8)
    causal(q, k, v)
    forward = kernel_of(causal, q).versions[0].forward.run
    assert all(len(plan.steps) == 1 and not plan.hosted for plan in forward.plans.values())


def dense(q, k, v, keep):
    return aatc.attend(q, k, v, metric=metrics.DotProduct(), mask=masks.dense(keep))


@pytest.mark.parametrize("n", [17, 160])
def test_a_mask_that_is_written_to_is_read_again(n):
    """Of few pairs, whose tiles are not looked at before, and of more."""
    f = aatc.compile(dense, backend="native", fallback=False)
    q, k, v = torch.randn(3, 2, 2, n, 8)
    keep = torch.rand(2, 1, n, n) > 0.4
    keep[0, :, 3] = False
    for _ in range(3):
        scores = (q.double() @ k.double().mT / 8**0.5).masked_fill(~keep, -math.inf)
        want = (scores.softmax(-1).nan_to_num() @ v.double()).float()
        torch.testing.assert_close(f(q, k, v, keep), want, atol=2e-5, rtol=2e-5)
        keep.copy_(torch.rand(2, 1, n, n) > 0.7)
        keep[1] = bool(torch.rand(()) > 0.5)


@pytest.mark.parametrize("n", [17, 160])
def test_gradients_under_a_mask_that_is_written_to(n):
    f = aatc.compile(dense, backend="native", fallback=False)
    keep = torch.rand(2, 1, n, n) > 0.4
    q, k, v, probe = torch.randn(4, 2, 2, n, 8)
    for _ in range(2):
        keep.copy_((torch.rand(2, 1, n, n) > 0.7) | torch.eye(n, dtype=torch.bool))
        found, want = [], []
        for run, into, kind in ((lambda *x: f(*x, keep), found, torch.float32), (None, want, torch.float64)):
            leaves = [t.to(kind).requires_grad_() for t in (q, k, v)]
            if run is None:
                scores = (leaves[0] @ leaves[1].mT / 8**0.5).masked_fill(~keep, -math.inf)
                o = scores.softmax(-1) @ leaves[2]
            else:
                o = run(*leaves)
            into += torch.autograd.grad((o * probe.to(kind)).sum(), leaves)
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b.float(), atol=2e-5, rtol=2e-5)


def test_keys_that_are_not_finite_are_found_in_any_call(causal):
    """Looked for anew in every call, and only rows that see them are spoiled."""
    q, k, v = torch.randn(3, 1, 2, 24, 8)
    want = causal(q, k, v)
    for where in (k, v):
        before = where[0, 1, 20, 3].clone()
        where[0, 1, 20, 3] = math.nan
        got = causal(q, k, v)
        assert torch.equal(got[0, 0], want[0, 0]) and torch.equal(got[0, 1, :20], want[0, 1, :20])
        assert bool(got[0, 1, 20:].isnan().all())
        where[0, 1, 20, 3] = before
    assert torch.equal(causal(q, k, v), want)


def test_a_view_to_be_negated_after_one_that_is_not(causal):
    q, k, v = torch.randn(3, 1, 2, 16, 8)
    causal(q, k, v)
    negated = torch._neg_view(v)
    torch.testing.assert_close(causal(q, k, negated), -causal(q, k, v), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("metric", [metrics.DotProduct(), metrics.LorentzDistance(lift=True)])
def test_work_is_that_of_the_lengths_there_are(metric):
    """Code for any length has large tiles; short problems stay on one thread all the same."""
    f = aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=metric), backend="native", dynamic=True)
    found = {}
    for n in (16, 64, 128, 1024):
        q, k, v = 0.3 * torch.randn(3, 1, 8, n, 64)
        f(q, k, v)
        (kernel,) = {g.program.attentions[0]["kernel"] for g in f.graphs}
        *_, plan = kernel.versions[0].forward.run.plans.values()
        found[n] = sum(r.work for r in plan.steps)
        assert plan.alone == (n <= 128)
    products = {n: 2 * 8 * n * n * 64 for n in found}
    assert all(products[n] <= found[n] <= 2.5 * products[n] + 2e6 for n in found)


def test_angles_are_computed_by_the_calling_thread():
    """torch.round and its like call all threads for two thousand numbers and more."""

    def f(q, k, v, positions):
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), connection=aatc.connections.Rotary(positions))

    compiled = aatc.compile(f, backend="native", fallback=False)
    q, k, v = torch.randn(3, 1, 2, 128, 64)
    at = torch.arange(128) + 1_000_000
    got = compiled(q, k, v, at)
    assert not any(f"aten.{word}" in compiled.code for word in ("round", "floor", "cos", "sin", "exp"))
    angles = at.double()[:, None] * 10_000.0 ** (-torch.arange(32, dtype=torch.float64) / 32)

    def turned(x):
        a, b = x.double().chunk(2, -1)
        return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)

    want = F.scaled_dot_product_attention(turned(q), turned(k), v.double()).float()
    torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5)
