"""Attentions at the edge of what can be written: no tokens, no heads, no features, scores of one side or of none."""

import pytest
import torch

import aatc
from aatc import masks, metrics
from tests.compiler.harness import build
from tests.compiler.plain import attention, check, close

N = 7
I, J = torch.arange(N)[:, None].double(), torch.arange(N).double()[None]


def pairs(x):
    """A number per query (..., N, 1) or key (..., 1, N), for every pair."""
    return x.expand(*x.shape[:-2], N, N)


SCORES = {
    "where of positions": (
        lambda q, k, i, j: torch.where(i >= j, (q * k).sum(), -3.0),
        lambda q, k: torch.where(I >= J, q @ k.mT, q.new_tensor(-3.0)),
    ),
    "where of scores": (
        lambda q, k, i, j: torch.where((q * k).sum() > 0, (q * k).sum(), 0.1 * (q * k).sum()),
        lambda q, k: torch.where(q @ k.mT > 0, q @ k.mT, 0.1 * (q @ k.mT)),
    ),
    "where of far constants": (
        lambda q, k, i, j: (q * k).sum() + torch.where(i >= j, 0.1, 1e6),
        lambda q, k: q @ k.mT + torch.where(I >= J, 0.1, 1e6).double(),
    ),
    "where of both": (
        lambda q, k, i, j: (q * k).sum() + torch.where((i >= j) & ((q * k).sum() > 0), 0.5, 0.25),
        lambda q, k: q @ k.mT + torch.where((I >= J) & (q @ k.mT > 0), 0.5, 0.25).double(),
    ),
    "where of minus infinity": (
        lambda q, k, i, j: (q * k).sum() + torch.where(i >= j, 0.0, float("-inf")),
        lambda q, k: q @ k.mT + torch.where(I >= J, 0.0, float("-inf")).double(),
    ),
    "logarithms of distance": (
        lambda q, k, i, j: (q * k).sum() - torch.log(1 + 0.5 * abs(i - j)),
        lambda q, k: q @ k.mT - torch.log(1 + 0.5 * (I - J).abs()),
    ),
    "a constant": (lambda q, k, i, j: 0.5 + 0 * (q * k).sum(), lambda q, k: 0.5 + 0 * (q @ k.mT)),
    "the key alone": (lambda q, k, i, j: k.sum(), lambda q, k: pairs(k.sum(-1)[..., None, :])),
    "the query alone": (lambda q, k, i, j: q.sum(), lambda q, k: pairs(q.sum(-1, keepdim=True))),
    "a function of the key": (lambda q, k, i, j: torch.exp(k.sum()), lambda q, k: pairs(k.sum(-1).exp()[..., None, :])),
    "the query's position": (lambda q, k, i, j: i * 1.0, lambda q, k: pairs(I.expand(2, 2, N, 1)) + 0 * (q @ k.mT)),
    "the key's position": (lambda q, k, i, j: j * 0.5, lambda q, k: pairs(0.5 * J.expand(2, 2, 1, N)) + 0 * (q @ k.mT)),
    "positions alone": (
        lambda q, k, i, j: -abs(i - j) * 0.5,
        lambda q, k: (-(I - J).abs() * 0.5).expand(2, 2, N, N) + 0 * (q @ k.mT),
    ),
}


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("mask", [None, "causal"])
@pytest.mark.parametrize("name", SCORES)
def test_scores_of_one_side_and_conditions_within_scores(name, mask, library):
    torch.manual_seed(0)
    written, plain = SCORES[name]
    q, k, v = (torch.randn(2, 2, N, 4, dtype=torch.float64) for _ in range(3))

    @aatc.metric
    def metric(q, k, i, j):
        return written(q, k, i, j)

    keep = J <= I if mask else None
    check(
        lambda q, k, v: attention(plain(q, k), v, keep),
        *(q, k, v),
        metric=metric,
        mask=masks.causal() if mask else None,
        compiled={"library": library, "tiles": "rows=4 cols=4 grain=2"},
    )


SHAPES = [
    (0, 2, 2, 5, 5, 4, 4),
    (2, 0, 0, 5, 5, 4, 4),
    (2, 2, 1, 5, 5, 4, 4),
    (2, 4, 1, 1, 5, 4, 3),
    (2, 4, 2, 5, 1, 4, 3),
    (1, 1, 1, 1, 1, 1, 1),
    (2, 2, 2, 5, 6, 0, 4),
    (2, 2, 2, 5, 6, 4, 0),
    (2, 2, 2, 5, 6, 0, 0),
    (2, 2, 2, 0, 6, 4, 4),
    (2, 2, 2, 5, 0, 4, 4),
    (0, 2, 1, 0, 0, 0, 0),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", ["none", "causal", "heads", "dense", "padding", "documents"])
def test_sizes_of_zero_and_one(shape, mask):
    torch.manual_seed(0)
    b, h, hk, n, m, d, e = shape
    chosen = {
        "none": None,
        "causal": masks.causal(),
        "heads": masks.predicate(lambda b, h, i, j: i - j <= h),
        "dense": masks.dense(torch.rand(b, h, n, m) < 0.6),
        "padding": masks.key_padding(torch.rand(b, m) < 0.6),
        "documents": masks.documents(torch.arange(n) // 2, torch.arange(m) // 2),
    }[mask]

    @aatc.metric
    def l1(q, k):
        return -(q - k).abs().sum()

    for metric in (metrics.DotProduct(), metrics.Euclidean(), metrics.LorentzDistance(lift=True), l1):
        # None: native kernels, where they can run. Other scores are never the library's: without it the program is the
        # same once more. Torch code of all metrics but one has four masks, as kernels of sizes without 0 have all.
        contracted = isinstance(metric, (metrics.DotProduct, metrics.Euclidean))
        torch_code = (True, False) if contracted else (True,)
        if mask in ("causal", "documents") and not isinstance(metric, metrics.Euclidean):
            torch_code = ()
        # where there is nothing to compute, kernels of the other metrics do
        native = (None,) if 0 not in shape or not isinstance(metric, metrics.Euclidean) else ()
        for library in (*torch_code, *native):
            q, k, v = (torch.randn(b, x, y, z, dtype=torch.float64) for x, y, z in ((h, n, d), (hk, m, d), (hk, m, e)))
            leaves = [t.requires_grad_() for t in (q, k, v)]
            backend = "auto" if library is None else ""
            built = build(q, k, v, metric=metric, mask=chosen, library=library, backend=backend)
            called = any("called" in r.rewrites for r in built.result.report)
            assert not called or (library and contracted)
            got, want = built.run(), built.eager
            probe = [torch.ones_like(w).masked_fill(torch.isnan(w) | torch.isposinf(w), 0.0) for w in want]
            for name, g, w in zip(("output", "log-sum-exp"), got, want, strict=True):
                close(g, w, 1e-10, name)
            found = [torch.autograd.grad(x, leaves, probe, allow_unused=True) for x in (got, want)]
            for t, g, w in zip(leaves, *found, strict=True):
                close(
                    torch.zeros_like(t) if g is None else g, torch.zeros_like(t) if w is None else w, 1e-9, "gradient"
                )


@pytest.mark.parametrize("library", [True, False])
def test_tables_are_read_per_token_and_per_pair(library):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 6, 6))
    t = torch.randn(3, 4, dtype=torch.float64)
    at_key, at_query = torch.arange(6).clamp(0, 3), (torch.arange(5) * 0.5).round().long().clamp(0, 3)
    apart = (torch.arange(6) - torch.arange(5)[:, None] + 3).clamp(0, 3)

    @aatc.metric(t="ht")
    def keyed(q, k, j, t):
        return (q * k).sum() + metrics.lookup(t, j)

    @aatc.metric(t="ht")
    def both(q, k, i, j, t):
        return (q * k).sum() * metrics.lookup(t, i * 0.5) + metrics.lookup(t, j - i + 3)

    def plain_key(q, k, v, t):
        return attention(q @ k.mT + t[:, at_key][None, :, None], v)

    def plain_both(q, k, v, t):
        return attention((q @ k.mT) * t[:, at_query][None, :, :, None] + t[:, apart][None], v)

    for metric, plain in ((keyed(t=t), plain_key), (both(t=t), plain_both)):
        check(
            plain,
            *(q, k, v),
            tensors=[t],
            metric=metric,
            compiled={"library": library, "tiles": "rows=4 cols=4 heads=2"},
        )


def test_table_positions_beyond_every_integer():
    """They are clamped before they are rounded to integers."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 5, 4, dtype=torch.float64) for _ in range(3))
    t = torch.randn(3, dtype=torch.float64)
    far = torch.tensor([1e30, -1e30, 1.5, 2.5, 0.5], dtype=torch.float64)
    entry = torch.tensor([2, 0, 2, 2, 0])

    @aatc.metric(t="t", far="j")
    def keyed(q, k, i, t, far):
        return (q * k).sum() + metrics.lookup(t, far + 0 * i)

    check(lambda q, k, v, t: attention(q @ k.mT + t[entry], v), q, k, v, tensors=[t], metric=keyed(t=t, far=far))


def test_formulas_deeper_than_the_stack():
    """With all passes: the library's has nothing to call here, but looks."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 4, dtype=torch.float64) for _ in range(3))

    @aatc.metric
    def metric(q, k):
        x = (q * k).sum()
        for _ in range(350):
            x = torch.tanh(x) + 0.01
        for n in range(700):
            x = x + n * 1e-6
        return x

    def score(q, k):
        x = q @ k.mT
        for _ in range(350):
            x = torch.tanh(x) + 0.01
        return x + sum(n * 1e-6 for n in range(700))

    def keep(b, h, i, j):
        admitted = j <= i
        for n in range(1200):
            admitted = admitted & (j < 10 + n)
        return admitted

    check(
        lambda q, k, v: attention(score(q, k), v, torch.ones(5, 5, dtype=torch.bool).tril()),
        *(q, k, v),
        metric=metric,
        mask=masks.predicate(keep),
        compiled={"library": True, "tiles": "rows=4 cols=4 grain=2"},
    )


@pytest.mark.parametrize("shut", [1, 4, 9])
@pytest.mark.parametrize("axes", ["j", "hj", "bj"])
def test_causal_rows_whose_only_open_key_is_their_own(axes, shut):
    """A bias of minus infinity closes keys before it, so that the rows before it are closed and its own is not."""
    n, b, h = 12, 2, 3
    q, k, v = (torch.randn(b, h, n, 4, dtype=torch.float64) for _ in range(3))
    sizes = {"b": b, "h": h, "j": n}
    bias = torch.randn([sizes[a] for a in axes], dtype=torch.float64)
    bias[..., :shut] = float("-inf")
    if axes != "j":  # some heads or entries see all keys
        bias[0] = 0.0

    @aatc.metric(c=axes)
    def biased(q, k, c):
        return q @ k + c

    lead, keep = [sizes[a] if a in axes else 1 for a in "bh"], torch.ones(n, n, dtype=torch.bool).tril()
    built = check(
        lambda q, k, v, c: attention(q @ k.mT + c.reshape(*lead, 1, n), v, keep),
        *(q, k, v),
        tensors=[bias],
        metric=biased(c=bias),
        mask=masks.causal(),
        compiled={"library": True},
    )
    o, lse = built.run()
    assert any("called" in r.rewrites for r in built.result.report)
    assert (o[-1, -1, :shut] == 0).all() and (lse[-1, -1, :shut] == float("-inf")).all()
    torch.testing.assert_close(o[-1, -1, shut], v[-1, -1, shut])
