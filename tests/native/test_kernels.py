"""Native kernels against plain formulas in float64: drawn attentions, lengths and widths at the edges of vectors and
tiles, and draws that were wrong once."""

import random

import pytest
import torch

import aatc
from aatc import backends, passes
from aatc.backends.native import machine
from tests.compiler.harness import build
from tests.conformance.cases import Sizes, case
from tests.conformance.test_conformance import compiled, off
from tests.fuzz.check import check_attention, check_compiled, check_spoiled
from tests.fuzz.strategies import draw_case, spoilable

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "seed",
    [
        3000070,  # a table read by position in a program of a token
        3000080,  # a score of the width alone
        3000112,  # weights of a sigmoid so small that their sum had an infinite reciprocal
        3000313,  # gradients of heads that share a key, added up in half precision: beyond its range
        3000404,  # the same of a scale: digits were lost
        3000685,
        3001025,
        3001656,  # frames
        3001967,  # an outer product with one factor for all tokens
        3002131,  # tables of no heads
        *range(4000000, 4000016),
    ],
)
def test_drawn_attentions(seed):
    check_attention(draw_case(random.Random(seed), frozenset()), stages=False, backend="native")


@pytest.mark.parametrize("seed", range(4100000, 4100008))
def test_what_is_not_finite_spoils_only_rows_that_see_it(seed):
    case = draw_case(random.Random(seed), frozenset())
    if case.mask is None:
        pytest.skip("nothing is masked")
    check_spoiled(case, random.Random(seed).choice(spoilable(case)), backend="native")


@pytest.mark.parametrize("seed", range(4200000, 4200004))
def test_drawn_models(seed):
    torch._dynamo.reset()
    check_compiled(draw_case(random.Random(seed), frozenset()), dynamic=bool(seed % 2), backend="native")


@pytest.mark.parametrize(
    ("n", "m", "d"), [(1, 130, 65), (2, 17, 1), (15, 16, 3), (63, 65, 100), (130, 1, 17), (64, 64, 1), (16, 63, 100)]
)
@pytest.mark.parametrize("kind", ["euclidean", "lorentz distance"])
def test_lengths_and_widths_at_the_edges_of_vectors(kind, n, m, d):
    """Native and torch code agree with the formula, outputs and gradients."""
    c = case(kind, "causal" if n > 2 else "none", torch.float32, Sizes(1, 2, 1, n, m, d))
    want = c.formula(*(exact := [t.detach().double().requires_grad_() for t in c.operands]))
    probe = torch.linspace(-1, 1, want[0].numel()).reshape(want[0].shape)
    slopes = torch.autograd.grad(want[0], exact, probe.double(), allow_unused=True)
    for backend in ("native", "cpu"):
        built = build(*c.operands[:3], backend=backend, **c.parts)
        o, lse = built.run()
        assert off(o, want[0]) <= 1e-5 and off(lse, want[1]) <= 1e-5
        for g, w in zip(torch.autograd.grad(o, c.operands, probe), slopes, strict=True):
            # of equal weights nothing is left but rounding
            assert off(g, w) <= 5e-5 or float((g - w).abs().max()) <= 2e-5 * (1 + float(probe.abs().max())), backend


def test_one_kernel_serves_all_lengths(monkeypatch):
    compiled = []
    true = machine.load
    monkeypatch.setattr(machine, "load", lambda text, isa: compiled.append(text) or true(text, isa))
    attend = lambda q, k, v: aatc.attend(q, k, v, metric=aatc.metrics.Euclidean(), mask=aatc.masks.causal())  # noqa: E731
    run = aatc.compile(attend, backend="native", dynamic=True, fallback=False)
    seen = 0
    for n in (130, 65, 64, 17, 2, 200):
        q, k, v = (torch.randn(1, 2, n, 8) for _ in range(3))
        want = attend(*(t.double() for t in (q, k, v)))
        assert off(run(q, k, v), want) <= 1e-5
        seen = seen or len(compiled)
    assert len(compiled) == seen


def test_dropout_draws_the_same_pairs_everywhere():
    q, k, v = (torch.randn(2, 2, 40, 8, requires_grad=True) for _ in range(3))
    found = {}
    for backend in ("native", "cpu"):
        built = build(q, k, v, backend=backend, metric=aatc.metrics.Euclidean(), dropout=0.4, seed=7)
        o = built.run()[0]
        found[backend] = [o, *torch.autograd.grad(o.square().sum(), (q, k, v))]
        assert off(o, built.eager[0].double()) <= 1e-5
    assert all(off(a, b.double()) <= 2e-5 for a, b in zip(*found.values(), strict=True))


@pytest.mark.parametrize("order", ["rows", "rows-and-columns"])
@pytest.mark.parametrize(("n", "m"), [(40, 9), (9, 40), (33, 1)])
def test_every_query_reaches_its_keys_under_a_dense_mask(n, m, order):
    """Also the last of more queries than there are keys, and the other way round."""
    tiles = "split(g, 1) split(i, 8) split(j, 16) grain(j, 16) split(ii, 4) split(jj, 16)"
    given = f"attend0.forward: {tiles}\nattend0.backward: {tiles} order({order})"
    q, k, v = given_tensors = [torch.randn(1, 2, x, 4, requires_grad=True) for x in (n, m, m)]
    keep = torch.rand(n, m) < 0.7
    keep[:, 0] = True
    parts = {"metric": aatc.metrics.DotProduct(), "mask": aatc.masks.dense(keep)}
    schedule = f"{passes.ScheduleAttention(given=given)},adaptive-tile"
    _, program, operands = compiled(backends.get("native"), given_tensors, parts, schedule)
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    s = (exact[0] @ exact[1].mT / 2).masked_fill(~keep, float("-inf"))
    got, want = program.main(*operands), (s.softmax(-1) @ exact[2], s.logsumexp(-1))
    assert all(off(g, w) <= 1e-5 for g, w in zip(got, want, strict=True))
    probes = [torch.randn_like(x) for x in got]
    slopes = torch.autograd.grad(want, exact, [p.double() for p in probes])
    for g, w in zip(torch.autograd.grad(got, given_tensors, probes), slopes, strict=True):
        assert off(g, w) <= 5e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_many_tokens_send_to_a_number_of_half_precision_is_rounded_once(dtype):
    """A thousand parts of about one size: in bfloat16 a sum above 256 of them would take no more of them."""
    q, k = ((0.5 * torch.randn(1000, 1, 2, 4)).to(dtype) for _ in range(2))
    scale = torch.rand(1).to(dtype).requires_grad_()
    o, _ = build(q, k, k, metric=aatc.metrics.DotProduct(), scale=scale, backend="native").run()
    (got,) = torch.autograd.grad(o, scale, q)
    x, y, exact = (t.detach().double() for t in (q, k, scale))
    p = (x @ y.mT * exact.requires_grad_()).softmax(-1)
    (want,) = torch.autograd.grad(p @ y, exact, x)
    assert abs(float(got / want) - 1) <= torch.finfo(dtype).eps
