"""Edges of kernels where a small slip changes a number: each against plain torch in float64."""

import itertools
import operator
import warnings

import pytest
import torch

import aatc
from aatc import biases, masks, metrics
from aatc.backends.cpu.linear import _linearize, overwritable
from aatc.backends.cpu.masks import toeplitz
from aatc.ir.core import clone_func
from aatc.ir.score.expr import call, const, index, param
from aatc.ir.score.program import Program
from aatc.ir.specialize import keep_results
from tests.compiler.harness import build
from tests.compiler.plain import attention, check

F64 = torch.float64


def plain(q, k, v, scores, keep):
    """Output and log-sum-exp in float64."""
    s = scores.double().masked_fill(~keep, float("-inf")) if keep is not None else scores.double()
    p = s.softmax(-1).nan_to_num(0.0)
    return p @ v.double(), s.logsumexp(-1)


def inputs(n, m, d=4, dtype=F64, heads=2):
    return [torch.randn(1, heads, x, d, dtype=dtype) for x in (n, m, m)]


def close(got, want, tolerance=1e-11):
    finite = torch.isfinite(want)
    assert torch.equal(torch.isfinite(got), finite)
    torch.testing.assert_close(got.double()[finite], want[finite], rtol=tolerance, atol=tolerance)


I, J = torch.arange(9).reshape(-1, 1), torch.arange(9)
MASKS = {
    "causal or far": (masks.causal() | masks.predicate(lambda b, h, i, j: j - i > 4), (I >= J) | (J - I > 4)),
    "causal or window": (masks.causal() | masks.sliding_window(3), (I >= J) | ((I - J).abs() < 3)),
    "causal and far": (masks.causal() & masks.predicate(lambda b, h, i, j: i - j > 2), I - J > 2),
    "not the diagonal": (masks.predicate(lambda b, h, i, j: ~((j <= i) & (j >= i))), I != J),
    "unequal": (masks.predicate(lambda b, h, i, j: j != i), J != I),
    "equal": (masks.predicate(lambda b, h, i, j: i == j), J == I),
    "later ones": (masks.predicate(lambda b, h, i, j: j > i), J > I),
    "earlier ones": (masks.predicate(lambda b, h, i, j: j < i), J < I),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("library", [True, False])
def test_distances_keep_their_sign_unless_the_mask_decides_it(name, library):
    q, k, v = inputs(9, 9)
    slopes = torch.tensor([0.5, 0.1], dtype=F64)
    mask, keep = MASKS[name]
    scores = q @ k.mT / 2 - slopes.reshape(2, 1, 1) * (I - J).abs()
    got = build(
        q,
        k,
        v,
        metric=metrics.DotProduct(),
        mask=mask,
        bias=biases.ALiBi(slopes),
        library=library,
        tiles="rows=4 cols=3 grain=2",
    ).run()
    for g, w in zip(got, plain(q, k, v, scores, keep), strict=True):
        close(g, w)


@pytest.mark.parametrize("scale", [1.0, -1.0, 50.0, 200.0, 2000.0])
def test_scores_with_a_static_bound_may_be_scaled_beyond_the_range_of_exp(scale):
    q, k, v = inputs(7, 9, dtype=torch.float32)
    unit = [x.double() / x.double().norm(dim=-1, keepdim=True) for x in (q, k)]
    got = build(q, k, v, metric=metrics.Cosine(), scale=scale).run()
    want = plain(q, k, v, scale * unit[0] @ unit[1].mT, None)
    close(got[0], want[0], 4e-7 * max(scale, 10.0))
    close(got[1] / abs(scale), want[1] / abs(scale), 1e-6)


@pytest.mark.parametrize("far", [1, 5, 9])
@pytest.mark.parametrize(("dtype", "distance", "beta"), [(torch.float32, 1e6, 12.0), (F64, 1e10, 40.0)])
def test_rows_whose_weights_underflow_are_right_beside_rows_whose_do_not(far, dtype, distance, beta):
    q, k, v = inputs(9, 9, dtype=dtype)
    q, k = q * 1e-2, k * 1e-2
    q[:, :, :far, 0] += distance
    got = build(q, k, v, metric=metrics.LorentzDistance(beta=beta, lift=True), tiles="rows=9 cols=4").run()
    time = [(1 + x.double().square().sum(-1, keepdim=True)).sqrt() for x in (q, k)]
    inner = time[0] @ time[1].mT - q.double() @ k.double().mT
    want = plain(q, k, v, -beta * inner.clamp(min=1).acosh(), None)
    close(got[1], want[1], 1e-4)
    assert (got[0].double() - want[0])[:, :, far:].abs().max() < 1e-4 if far < 9 else True
    assert torch.isfinite(got[0]).all() and (got[0][:, :, :far].abs().sum(-1) > 1e-3).all()


def test_softplus_keeps_its_tails():
    @aatc.metric
    def soft(q, k):
        return torch.nn.functional.softplus(q @ k)

    for size in (1.0, 30.0, 200.0):
        q, k, v = inputs(6, 7, dtype=torch.float32)
        q = q * size
        x = q.double() @ k.double().mT
        got = build(q, k, v, metric=soft).run()
        want = plain(q, k, v, torch.logaddexp(x, torch.zeros_like(x)), None)
        close(got[0], want[0], 1e-5 * size)
        close(got[1], want[1], 1e-5 * size)


@pytest.mark.parametrize("word", ["lt", "le", "gt", "ge", "eq", "ne"])
@pytest.mark.parametrize("library", [True, False])
def test_comparisons_in_tiles_are_exact_at_equality(word, library):
    places = {"i": torch.tensor([0, 3, 3, 7, -2]), "j": torch.tensor([3, 0, 7, 7, -2, 3])}
    q, k, v = inputs(5, 6)

    mask = masks.predicate(lambda b, h, i, j: getattr(operator, word)(i * 2, j + 1))
    open_ = getattr(torch, word)(2 * torch.arange(5).reshape(-1, 1), torch.arange(6) + 1)
    parts = {"tiles": "rows=2 cols=3 grain=3", "library": library}
    o, lse = build(q, k, v, metric=metrics.DotProduct(), mask=mask, **parts).run()
    for g, w in zip((o, lse), plain(q, k, v, q @ k.mT / 2, open_), strict=True):
        close(g, w)
    documents = masks.documents(places["i"], places["j"])
    o, lse = build(q, k, v, metric=metrics.DotProduct(), mask=documents, **parts).run()
    same = places["i"].reshape(-1, 1) == places["j"]
    for g, w in zip((o, lse), plain(q, k, v, q @ k.mT / 2, same), strict=True):
        close(g, w)


@pytest.mark.parametrize("word", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_comparisons_with_a_constant_are_exact_on_either_side(word):
    compare = getattr(torch, word)

    @aatc.metric
    def flagged(q, k, i, j):
        first = torch.where(metrics.word(word, 2, i - j), 0.75, 0.25)
        second = torch.where(metrics.word(word, i - j, -1), 1.5, 0.0)
        vector = torch.where(metrics.word(word, 1.0, i), q, 0.5 * q)
        return q @ k + first + second + vector @ k

    q, k, v = inputs(9, 9)
    two, one = torch.tensor(2), torch.tensor(1.0)
    scores = q @ k.mT + torch.where(compare(two, I - J), 0.75, 0.25).double()
    scores = scores + torch.where(compare(I - J, torch.tensor(-1)), 1.5, 0.0).double()
    scores = scores + torch.where(compare(one, I.double()), 1.0, 0.5).double() * (q @ k.mT)
    mask = masks.predicate(lambda b, h, i, j: metrics.word(word, 3, j) | metrics.word(word, i, 4))
    keep = compare(torch.tensor(3), J) | compare(I, torch.tensor(4))
    got = build(q, k, v, metric=flagged, mask=mask, library=False, tiles="rows=4 cols=3 grain=2").run()
    for g, w in zip(got, plain(q, k, v, scores, keep), strict=True):
        close(g, w)


@pytest.mark.parametrize("library", [True, False])
def test_a_key_that_is_not_finite_spoils_its_rows_however_late_they_are(library):
    n = 300
    q, k, v = inputs(n, n, heads=1)
    k[0, 0, 280, 1] = float("nan")
    o, lse = build(q, k, v, metric=metrics.Euclidean(), mask=masks.causal(), library=library).run()
    spoiled = o.isnan().any(-1)[0, 0]
    assert torch.equal(spoiled, torch.arange(n) >= 280) and torch.equal(lse[0, 0].isnan(), spoiled)


@pytest.mark.parametrize("library", [True, False])
def test_rows_beside_a_key_that_is_not_finite_keep_their_log_sum_exp(library):
    """What simplification drops from a row and gives back to its log-sum-exp is measured from the same mean key."""
    q, k, v = inputs(6, 8)
    k[0, :, 5, 1] = float("nan")
    k[0, :, 6, 0] = float("inf")
    got = build(q, k, v, metric=metrics.Euclidean(), mask=masks.causal(), library=library).run()
    seen = torch.arange(6) < 5
    clean = k.nan_to_num(0.0, 0.0, 0.0)
    scores = -(q.unsqueeze(3) - clean.unsqueeze(2)).square().sum(-1) / 2
    want = plain(q, clean, v, scores, torch.arange(6).reshape(-1, 1) >= torch.arange(8))
    for g, w in zip(got, want, strict=True):
        close(g[:, :, seen], w[:, :, seen])


def test_positions_in_kernels_are_rounded_to_the_nearest_entry():
    table = torch.randn(7, dtype=F64)

    @aatc.metric(table="t")
    def read(q, k, table, i, j):
        return q @ k + metrics.lookup(table, (i - j) * 0.5 + 2.0)

    q, k, v = inputs(9, 9)
    at = ((I - J) * 0.5 + 2.0).double().round().long().clamp(0, 6)
    got = build(q, k, v, metric=read(table=table), tiles="rows=4 cols=5").run()
    for g, w in zip(got, plain(q, k, v, q @ k.mT + table[at], None), strict=True):
        close(g, w)


def test_a_mask_runs_along_diagonals_only_where_whole_numbers_differ():
    i, j = index("i"), index("j")
    assert toeplitz(Program.of(call("le", j, i)))
    assert toeplitz(Program.of(call("lt", i - j, const(4))))
    assert not toeplitz(Program.of(call("lt", i + const(0.1), j + const(0.3))))
    assert not toeplitz(Program.of(call("lt", i, const(4))))
    assert not toeplitz(Program.of(call("lt", i + j, const(4))))


def test_each_set_of_wanted_gradients_has_its_own_backward():
    q, k, v = inputs(6, 7)
    built = build(q, k, v, metric=metrics.Euclidean())
    leaves = [q, k, v]
    probe = torch.randn(1, 2, 6, 4, dtype=F64)
    for wanted in itertools.product((False, True), repeat=3):
        if not any(wanted):
            continue
        low = [x.clone().requires_grad_(w) for x, w in zip(leaves, wanted, strict=True)]
        o, _ = built.program.main(*low)
        high = [x.clone().requires_grad_(w) for x, w in zip(leaves, wanted, strict=True)]
        d = high[0].unsqueeze(3) - high[1].unsqueeze(2)
        want, _ = plain(*high, -d.square().sum(-1) / 2, None)
        ask = [n for n in range(3) if wanted[n]]
        for g, w in zip(
            torch.autograd.grad(o, [low[n] for n in ask], probe),
            torch.autograd.grad(want, [high[n] for n in ask], probe),
            strict=True,
        ):
            close(g, w)


def test_a_backward_without_some_gradients_computes_less():
    built = build(*inputs(6, 7), metric=metrics.LorentzDistance(lift=True), library=False)
    backward = next(f for n, f in built.result.module.funcs.items() if n.endswith("_backward"))
    whole = sum(1 for _ in backward.body.walk())
    lean = keep_results(clone_func(backward), [True, False, False])
    assert sum(1 for _ in lean.body.walk()) < whole
    assert not [op for op in lean.body.walk() if op.name == "tile.dot" and op.attrs["form"] == "tn"]


# --- straight-line code ------------------------------------------------------------------------------------------
def _run(code, operands, results, shared):
    """The instructions on real storage: results that share a place with an operand overwrite it."""
    places = {("in", n): x.clone() for n, x in enumerate(operands)}
    places |= {("out", k): torch.full(shape, torch.nan, dtype=F64) for k, (_, shape) in enumerate(results)}
    places |= {("tmp", n): torch.full(shape, torch.nan, dtype=F64) for n, (_, shape) in enumerate(code.temps)}
    places |= {("out", k): places["in", n] for k, n in shared}
    torch_of = {
        "add": torch.add, "sub": torch.sub, "mul": torch.mul, "neg": torch.neg, "exp2": torch.exp2, "tanh": torch.tanh,
        "abs": torch.abs, "copy": torch.clone, "sin": torch.sin, "div": torch.div,
    }  # fmt: skip
    for x in code.code:
        args = [
            torch.tensor(float(a.value), dtype=F64) if a.kind == "const" else places[a.kind, int(a.value)]
            for a in x.args
        ]
        places[x.dst.kind, int(x.dst.value)].copy_(torch_of[x.fn](*args))
    return [places["out", k] for k in range(len(results))]


def test_no_register_is_overwritten_while_it_is_needed():
    a, b, c = (param(n, "bhij") for n in "xyz")
    shape = (1, 3, 4)
    words = [
        [a + b, (a + b) * c, c - a],
        [a * b, a],
        [call("tanh", a + b) * a, b - c * a],
        [a - b, b - a, (a - b) * (b - a)],
        [call("sin", a) + call("sin", b), call("sin", a)],
        [(a + b) * (a - b) + c, a + b, (a + b) * (a - b)],
        [c, a, b],
        [b * c + a * call("tanh", c), call("tanh", c)],
        [a + 1.0, (a + 1.0) * (a + 1.0), a],
        [call("abs", (a * b + c) * (b * c + a) + (c * a + b)), a * b + c],
    ]
    operands = [torch.randn(shape, dtype=F64) for _ in range(3)]
    checked = 0
    for bodies in words:
        for order in itertools.permutations(bodies):
            programs = tuple(Program((a, b, c), e) for e in order)
            results = tuple(("f64", shape) for _ in order)
            code = _linearize(programs, tuple(("f64", shape) for _ in operands), results, "f64")
            env = dict(zip("xyz", (x.unsqueeze(1) for x in operands), strict=True))
            want = [_value(e, env) for e in order]
            ways = [()] + [((k, n),) for k in range(len(order)) for n in overwritable(code, k)]
            for shared in ways:
                for g, w in zip(_run(code, operands, results, shared), want, strict=True):
                    torch.testing.assert_close(g, w, rtol=1e-13, atol=1e-13)
                checked += 1
    assert checked > 60


def _value(e, env):
    from aatc.ir.score.evaluate import evaluate

    sizes = (1, 1, 3, 4)
    return evaluate(e, {n: t.reshape(1, 1, 3, 4) for n, t in env.items()}, sizes, dtype=F64)[0, ..., 0].expand(1, 3, 4)


# --- what attend refuses -----------------------------------------------------------------------------------------
def test_lengths_and_extents_that_differ_are_refused():
    q, k, v = inputs(5, 6)
    documents = masks.documents(torch.zeros(2, 5).long(), torch.zeros(2, 6).long())
    refused = [
        ((q, k, v[:, :, :5]), {}),
        ((q, k, torch.cat([v, v], 2)), {}),
        ((q, k[:, :, :5], v), {}),
        ((q, k, v[:, :1]), {}),
        ((q, k, v), {"bias": torch.zeros(3, 5, 6, dtype=F64)}),
        ((q, k, v), {"bias": torch.zeros(2, 2, 5, 6, dtype=F64)}),
        ((q, k, v), {"scale": torch.ones(3, dtype=F64)}),
        ((q, k, v), {"mask": documents}),
        ((q, k, v), {"mask": masks.key_padding(torch.ones(1, 5, dtype=torch.bool))}),
        ((q, k, v), {"bias": biases.ALiBi(torch.ones(3, dtype=F64))}),
    ]
    for tensors, parts in refused:
        with pytest.raises(aatc.errors.AatcError):
            aatc.attend(*tensors, metric=metrics.DotProduct(), **parts)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("axes", ["", "h", "b", "bh"])
def test_numbers_per_head_are_tiles_of_full_rank(axes, heads):
    """torch resizes, with a warning, what it is to write a value of fewer dimensions to."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 4, dtype=torch.float64) for _ in range(3))
    c = torch.rand([2] * len(axes), dtype=torch.float64) + 0.5
    full = c.reshape([2 if x in axes else 1 for x in "bhij"])

    @aatc.metric(c=axes)
    def metric(q, k, c):
        return c ** torch.tanh(q @ k)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.set_warn_always(True)
        try:
            check(
                lambda q, k, v: attention(full ** torch.tanh(q @ k.mT), v),
                *(q, k, v),
                metric=metric(c=c),
                compiled={"tiles": f"heads={heads} rows=2 cols=3 grain=3"},
            )
        finally:
            torch.set_warn_always(False)


def test_numbers_inside_a_sum_over_channels_get_gradients_under_a_mask():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 4, dtype=torch.float64) for _ in range(3))
    i = torch.arange(5)
    keep = i.unsqueeze(1) != i

    @aatc.metric
    def metric(q, k):
        return ((q @ q) * k + 0.3).square().sum().sqrt()

    def scores(q, k):
        x = q.square().sum(-1)[..., None, None] * k.unsqueeze(2) + 0.3
        return x.square().sum(-1).sqrt()

    check(
        lambda q, k, v: attention(scores(q, k), v, keep),
        *(q, k, v),
        metric=metric,
        mask=masks.predicate(lambda b, h, i, j: i != j),
    )


def test_a_bound_that_bounds_nothing():
    """max(s, -inf) is s, and so is min(s, inf)."""

    @aatc.metric
    def s(q, k):
        return (q @ k).clamp(min=float("-inf")) + (q @ k).clamp(max=float("inf"))

    q, k, v = (torch.randn(1, 2, 7, 4, dtype=torch.float64) for _ in range(3))
    got = build(q, k, v, metric=s).run()[0]
    torch.testing.assert_close(got, (2 * q @ k.mT).softmax(-1) @ v)
