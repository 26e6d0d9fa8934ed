"""Masks in tiles: over all four indices and captured tensors, exactly, and whatever stands at closed pairs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import aatc
from aatc import biases, masks, metrics
from aatc.backends.cpu.linear import linearize
from aatc.backends.cpu.masks import hull
from aatc.backends.cpu.vector import emit_linear
from aatc.ir import Op, TileType, Value, reference
from aatc.ir.geo import attention_of
from aatc.ir.score.expr import call, const, index, param
from aatc.ir.score.program import Program
from aatc.ir.tilemap import FULL, PARTIAL, TileMap
from aatc.ir.types import torch_dtype
from tests.compiler.harness import build
from tests.compiler.plain import attention, check, close

PREDICATES = {
    "by-head": lambda b, h, i, j: (i - j <= 4 * h) & (j <= i),
    "by-batch": lambda b, h, i, j: i - j < 2 + 3 * b,
    "by-both": lambda b, h, i, j: (j <= i + b) & (i - j <= 2 * h + b),
    "one-head": lambda b, h, i, j: (h > 0) | (j <= i),
    "one-batch": lambda b, h, i, j: (b < 1) | (i <= j),
    "heads-alone": lambda b, h, i, j: h >= 1,
    "causal-or-diagonal": lambda b, h, i, j: (j <= i) | (j == i + 3),
    "causal-and-not": lambda b, h, i, j: (j <= i) & ~(j == i),
    "not-causal": lambda b, h, i, j: ~(j <= i),
    "strict": lambda b, h, i, j: j < i,
    "halves": lambda b, h, i, j: i * 0.5 > j,
    "sums": lambda b, h, i, j: i + j >= 5,
    "shifted": lambda b, h, i, j: i + 0.1 > j + 0.1,
    "products": lambda b, h, i, j: i * j < 20,
    "different": lambda b, h, i, j: i - j != 2,
    "always": lambda b, h, i, j: (i >= 0) & (j >= 0),
    "remainders": lambda b, h, i, j: (i - j) % 3 == 0,
    "quotients": lambda b, h, i, j: i // 4 == j // 4,
    "by zero": lambda b, h, i, j: (i + 1) % h != 1,
    "never": lambda b, h, i, j: i < 0,
}


def truth(predicate, b, h, n, m):
    axes = [torch.arange(x, dtype=torch.float64) for x in (b, h, n, m)]
    return predicate(*torch.meshgrid(*axes, indexing="ij"))


def formula(keep):
    def plain(q, k, v):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        return attention(q @ k.mT * q.shape[-1] ** -0.5, v, keep)

    return plain


TILES = [
    "rows=4 cols=4 grain=2 heads=1",
    "rows=4 cols=8 grain=4 heads=2",
    "rows=16 cols=16 heads=4",
    "rows=3 cols=5 grain=1 heads=5",
    "",
]


@pytest.mark.parametrize("name", PREDICATES)
@pytest.mark.parametrize("library", [True, False])
def test_predicates_over_all_indices(name, library):
    torch.manual_seed(0)
    b, h, n, m = 2, 3, 13, 11
    keep = truth(PREDICATES[name], b, h, n, m)
    for hk in (3, 1):
        q, k, v = torch.randn(b, h, n, 4), torch.randn(b, hk, m, 4), torch.randn(b, hk, m, 4)
        q, k, v = q.double(), k.double(), v.double()
        for tiles in TILES:
            check(
                formula(keep),
                q,
                k,
                v,
                metric=metrics.DotProduct(),
                mask=masks.predicate(PREDICATES[name]),
                tolerance=1e-11,
                compiled={"library": library, "tiles": tiles},
            )


@given(st.data())
def test_drawn_masks_over_all_indices(data):
    """Linear comparisons joined at random, with GQA, and tiles that straddle batches."""
    torch.manual_seed(0)
    b, hk = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    h = hk * data.draw(st.integers(1, 3))
    n, m = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 14))
    number = st.integers(-3, 3)

    def comparison():
        c, at, word = (
            [data.draw(number) for _ in range(4)],
            data.draw(number),
            data.draw(st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"])),
        )

        def holds(b, h, i, j):
            total = c[0] * b + c[1] * h + c[2] * i + c[3] * j
            return {
                "lt": lambda: total < at,
                "le": lambda: total <= at,
                "gt": lambda: total > at,
                "ge": lambda: total >= at,
                "eq": lambda: total == at,
                "ne": lambda: total != at,
            }[word]()

        return holds

    parts = [comparison() for _ in range(data.draw(st.integers(1, 3)))]
    words = [data.draw(st.sampled_from("&|n")) for _ in parts]

    def predicate(*at):
        out = parts[0](*at)
        for p, w in zip(parts[1:], words, strict=False):
            out = out & p(*at) if w == "&" else out | p(*at) if w == "|" else ~out | p(*at)
        return out

    keep = truth(predicate, b, h, n, m)
    q, k, v = (torch.randn(b, x, y, 4, dtype=torch.float64) for x, y in ((h, n), (hk, m), (hk, m)))
    grain = data.draw(st.integers(1, 4))
    heads, rows, cols = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    tiles = f"heads={heads} rows={rows} cols={cols} grain={grain}"
    check(
        formula(keep),
        q,
        k,
        v,
        metric=metrics.DotProduct(),
        mask=masks.predicate(predicate),
        tolerance=1e-11,
        compiled={"library": data.draw(st.booleans()), "tiles": tiles},
    )


# --- what stands at closed pairs ----------------------------------------------------------------------------
NAN, INF = float("nan"), float("inf")
ENGINES = [
    {"library": True},
    {"library": False, "tiles": "rows=4 cols=4 grain=2"},
    {"library": False, "tiles": "rows=16 cols=16 heads=2"},
]


def causal_keep(n, m):
    return torch.arange(m) <= torch.arange(n)[:, None]


def eager_and_compiled(formula, q, k, v, tensors=(), **parts):
    """The compiled attention in every engine, and the eager one, against ``formula``."""
    for compiled in ENGINES:
        built = check(formula, q, k, v, tensors=tensors, compiled=compiled, **parts)
    x = [t.detach().requires_grad_(t.is_floating_point()) for t in built.operands]
    eager = torch.ops.aatc.attend(*x[:3], x[3:], built.spec)
    for g, w in zip(eager, built.run(), strict=True):
        close(g, w, 1e-9, "eager")
    probe = [torch.ones_like(w).masked_fill(torch.isnan(w) | torch.isposinf(w), 0.0) for w in eager]
    floats = [t for t in x if t.requires_grad]
    for g, w in zip(
        torch.autograd.grad(eager, floats, probe, allow_unused=True),
        torch.autograd.grad(built.program.main(*x), floats, probe, allow_unused=True),
        strict=True,
    ):
        close(torch.zeros(()) if g is None else g, torch.zeros(()) if w is None else w, 1e-9, "eager gradient")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_dense_bias_that_is_not_finite_at_closed_pairs(value):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 9, 4, dtype=torch.float64) for _ in range(3))
    keep = causal_keep(9, 9)
    bias = torch.randn(2, 2, 9, 9, dtype=torch.float64).masked_fill(~keep, value)
    eager_and_compiled(
        lambda q, k, v, b: attention(q @ k.mT / 2 + b, v, keep),
        q,
        k,
        v,
        [bias],
        metric=metrics.DotProduct(),
        bias=biases.Dense(bias),
        mask=masks.causal(),
    )


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("axes", ["j", "bj", "hj", "bhj"])
def test_a_bias_per_key_that_is_not_finite_at_keys_nobody_sees(axes, value):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 9, 4, dtype=torch.float64) for _ in range(3))
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[:, 6:] = False
    sizes = {"b": 2, "h": 2, "j": 9}
    bias = torch.randn([sizes[a] for a in axes], dtype=torch.float64)
    bias[..., 6:] = value
    shape = [sizes[a] if a in axes else 1 for a in "bhj"]

    @aatc.metric(c=axes)
    def biased(q, k, c):
        return (q * k).sum() + c

    @aatc.metric(c=axes)
    def scaled(q, k, c):
        return -((q - k) ** 2).sum() * c

    def formula(of):
        def plain(q, k, v, c):
            c = torch.where(torch.isfinite(c), c, 0).reshape(shape).unsqueeze(2)
            return attention(of(q, k, c), v, valid[:, None, None])

        return plain

    def squares(q, k, c):
        return -(q.unsqueeze(3) - k.unsqueeze(2)).square().sum(-1) * c

    eager_and_compiled(
        formula(lambda q, k, c: q @ k.mT + c), q, k, v, [bias], metric=biased(c=bias), mask=masks.key_padding(valid)
    )
    if value != -INF:  # which counts as an additive mask
        eager_and_compiled(formula(squares), q, k, v, [bias], metric=scaled(c=bias), mask=masks.key_padding(valid))


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("library", [True, False])
def test_rows_that_see_a_key_with_a_bad_number_are_spoiled_and_no_others(value, library):
    """Far down, too: what is looked at block by block has a second block."""
    torch.manual_seed(0)
    n, at = 600, 400
    q, k, v = (torch.randn(1, 2, n, 4) for _ in range(3))
    for which in ("k", "v", "c"):
        x = {"q": q, "k": k.clone(), "v": v.clone()}
        c = torch.randn(n)
        if which == "c":
            c[at] = value
        else:
            x[which][0, 1, at, 2] = value

        @aatc.metric(c="j")
        def biased(q, k, c):
            return (q * k).sum() + c

        built = build(**x, metric=biased(c=c), mask=masks.causal(), library=library)
        o, lse = built.run()
        want = torch.zeros(1, 2, n, dtype=torch.bool)
        want[:, (0 if which == "c" else 1) :, at:] = True
        assert torch.equal(torch.isnan(o).all(-1), want) and torch.equal(torch.isnan(o).any(-1), want)
        assert torch.equal(torch.isnan(lse), want)
        assert torch.equal(torch.isnan(built.eager[0]).any(-1), want)


SLOPED = {
    "log-of-distance": (
        lambda q, k, i, j, c: (q * k).sum() - c * torch.log(i - j + 1),
        lambda s, d, c: s - c * torch.log(d + 1),
    ),
    "root-of-distance": (lambda q, k, i, j, c: (q * k).sum() * c + (i - j) ** -0.5, lambda s, d, c: s * c + d**-0.5),
    "quotient": (lambda q, k, i, j, c: (q * k).sum() / (i - j), lambda s, d, c: s / d),
    "power": (
        lambda q, k, i, j, c: torch.exp(c * (j - i) * 1000.0) * (q * k).sum(),
        lambda s, d, c: torch.exp(-c * d * 1000) * s,
    ),
    "log-of-score": (
        lambda q, k, i, j, c: torch.log((q * k).sum() * 0 + (i - j)) * c,
        lambda s, d, c: torch.log(d + s * 0) * c,
    ),
}


@pytest.mark.parametrize("name", SLOPED)
def test_scores_and_slopes_that_are_not_finite_at_closed_pairs(name):
    """log(i - j) above the diagonal, 1/(i - j) on it: neither output nor any gradient sees them."""
    torch.manual_seed(0)
    score, plain = SLOPED[name]
    n = 9
    q, k, v = (torch.randn(2, 2, n, 4, dtype=torch.float64) for _ in range(3))
    c = torch.rand(2, dtype=torch.float64) + 0.1
    distance = torch.arange(n)[:, None] - torch.arange(n)
    keep = distance >= 1
    safe = torch.where(keep, distance, 1).double()

    @aatc.metric(c="h")
    def metric(q, k, i, j, c):
        return score(q, k, i, j, c)

    eager_and_compiled(
        lambda q, k, v, c: attention(plain(q @ k.mT, safe, c[:, None, None]), v, keep),
        q,
        k,
        v,
        [c],
        metric=metric(c=c),
        mask=masks.predicate(lambda b, h, i, j: j < i),
    )


def test_channels_whose_slopes_are_not_finite_at_closed_pairs():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 7, 4, dtype=torch.float64)
    q, k, v = x.clone(), x.clone(), torch.randn(1, 2, 7, 4, dtype=torch.float64)
    keep = causal_keep(7, 7).tril(-1)

    @aatc.metric
    def logs(q, k):
        return -torch.log((q - k).abs()).sum()

    def plain(q, k, v):
        d = torch.where(keep.unsqueeze(-1), (q.unsqueeze(3) - k.unsqueeze(2)).abs(), 1.0)
        return attention(-d.log().sum(-1), v, keep)

    eager_and_compiled(plain, q, k, v, metric=logs, mask=masks.predicate(lambda b, h, i, j: j < i))


IDS = {
    "beyond 2^53": torch.tensor([2**53, 2**53, 2**53 + 1, 2**53 + 1, 2**53 + 2, 2**53 + 3]),
    "extremes": torch.tensor([-(2**63), -(2**63), 2**63 - 1, 2**63 - 1, 0, 1]),
    "bytes": torch.tensor([0, 255, 255, 1, 1, 0], dtype=torch.uint8),
    "32 bits": torch.tensor([2**31 - 1, -(2**31), 2**31 - 2, 2**31 - 1, 0, 0], dtype=torch.int32),
}


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("name", IDS)
def test_documents_of_any_integers(name, library):
    for ids in (IDS[name], IDS[name].sort()[0]):
        for tiles in ("rows=2 cols=2 grain=1", "rows=3 cols=2 grain=2", "rows=16 cols=16 heads=2", ""):
            torch.manual_seed(0)
            q, k, v = (torch.randn(1, 2, 6, 4, dtype=torch.float64) for _ in range(3))
            check(
                formula(ids[:, None] == ids),
                *(q, k, v),
                metric=metrics.DotProduct(),
                mask=masks.documents(ids),
                compiled={"library": library, "tiles": tiles},
            )


NUMBERS = torch.tensor(
    [0.0, -0.0, 5e-324, 1e-310, 1e-45, 1e-30, 1e-19, 1.0, 1.0 + 2**-52, -1.0, 3e38, 1e300, INF, -INF, NAN]
)


@pytest.mark.parametrize("word", ["lt", "le", "gt", "ge", "eq", "ne"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_comparisons_are_exact(word, dtype):
    """In masks and in scores: at equality, of denormals, of infinities, of NaN, for which all but != are false."""
    x = NUMBERS.to(dtype)
    n = len(x)
    score = Program.of(call("where", call(word, param("r", "i"), param("c", "j")), const(1.0), const(2.0)))
    truth = getattr(torch, word)(x[:, None], x)
    ops = [
        Op("tile.map", [Value(TileType.of(name, s), "x") for s in ((1, n, 1), (1, 1, n))], {"programs": (score,)},
           [TileType.of(name, (1, n, n))])
        for name in [{torch.float32: "f32", torch.float64: "f64"}[dtype]]
    ]  # fmt: skip
    out, scratch = torch.empty(1, n, n, dtype=dtype), []
    code = linearize(ops[0])
    scratch = [torch.empty(s, dtype=torch_dtype(d)) for d, s in code.temps]
    names = {
        "x0": x.reshape(1, n, 1),
        "x1": x.reshape(1, 1, n),
        "out": out,
        **{f"t{k}": t for k, t in enumerate(scratch)},
    }
    for line in emit_linear(code, ["x0", "x1"], ["out"], [f"t{k}" for k in range(len(scratch))]):
        exec(line, {"torch": torch, "inf": INF, "nan": NAN, **names})
    assert torch.equal(out[0] == 1.0, truth) and torch.equal(out[0] == 2.0, ~truth)
    tile = TileMap.of(Program.of(call(word, param("r", "i"), param("c", "j"))), [x, x], (1, 1, n, n), 1, 1, 1)
    assert torch.equal(
        torch.from_numpy(tile.kinds[0] == FULL) | (torch.from_numpy(tile.kinds[0] == PARTIAL) & truth), truth
    )


def test_holes_between_open_tiles_are_no_full_range():
    """Row 0 sees keys 0, 1, 6 and 7: the range 0 to 8 is not full, though every open tile is."""
    mask = Program((), call("or", call("lt", index("j"), const(2)), call("ge", index("j"), const(6))))
    tiles = TileMap.of(mask, [], (1, 1, 4, 8), 4, 2, 1)
    assert tiles.counts == {"empty": 2, "partial": 0, "full": 2}
    assert tiles.runs().tolist() == [[[[0, 2, FULL], [6, 8, FULL], [0, 0, 0]]]]
    assert hull([(0, 2, False), (6, 8, False)]) == (0, 8, True)


def test_tiles_of_problems_in_groups_that_do_not_divide():
    """A g tile is full or empty where all of its problems are; the last one is smaller, one straddles two batches."""
    mask = Program((), call("lt", index("h"), const(2)))
    tiles = TileMap.of(mask, [], (2, 3, 4, 4), 4, 4, 2)
    assert tiles.kinds[:, 0, 0].tolist() == [FULL, PARTIAL, PARTIAL]
    tiles = TileMap.of(mask, [], (2, 3, 4, 4), 4, 4, 4)
    assert tiles.kinds[:, 0, 0].tolist() == [PARTIAL, PARTIAL]


HUGE = {  # at the row of position 0 a number, else one of infinite arguments
    "infinity times 0": lambda i, j: torch.exp(i * 1000.0) * (j * 0.0) <= 1.0,
    "0 times infinity": lambda i, j: (j * 0.0) * torch.exp(i * 1000.0) >= -1.0,
    "infinity less infinity": lambda i, j: torch.exp(i * 1000.0) - torch.exp((i + j) * i * 1000.0) <= 1.0,
    "infinity by infinity": lambda i, j: torch.exp(i * 1000.0) / torch.exp((i + j) * i * 1000.0) >= 0.0,
    "a sum of infinities": lambda i, j: torch.exp(i * 1000.0) + (1.0 - torch.exp(i * 1000.0 + j * 0.0)) <= 9.0,
    "a sine": lambda i, j: torch.sin(torch.exp(i * 1000.0) + j * 0.0) <= 2.0,
    "a cosine": lambda i, j: torch.cos(torch.exp(i * 1000.0) + j * 0.0) >= -2.0,
    "no number is not 1": lambda i, j: torch.exp(i * 1000.0) * (j * 0.0) != 1.0,
}


@pytest.mark.parametrize("name", HUGE)
def test_comparisons_of_what_is_no_number_are_decided_by_no_bounds(name):
    """Infinity times 0 is NaN, for which all comparisons but != are false, whatever the bounds of a product say."""
    n = 8
    keep = truth(lambda b, h, i, j: HUGE[name](i, j), 1, 1, n, n)
    assert keep[0, 0, 0].all() and set(keep[0, 0, 1:].flatten().tolist()) == {"is not" in name}
    q, k, v = (torch.randn(1, 1, n, 4, dtype=torch.float64) for _ in range(3))
    mask = masks.predicate(lambda b, h, i, j: HUGE[name](i, j))
    compiled = {"library": False, "tiles": "rows=2 cols=4 grain=2"}
    check(formula(keep), q, k, v, metric=metrics.DotProduct(), mask=mask, compiled=compiled)


DROPPED = {  # scores with numbers per query that softmax does not see
    "euclidean": (metrics.Euclidean(), lambda q, k: -(q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)),
    "written out": (
        aatc.metric(lambda q, k: 3 * (q @ k) - 2 * (q @ q)),
        lambda q, k: 3 * q @ k.mT - 2 * q.square().sum(-1, keepdim=True),
    ),
}


@pytest.mark.parametrize("name", DROPPED)
@pytest.mark.parametrize("closed", [1.0, 0.4], ids=["every row", "some rows"])
def test_rows_without_open_keys_send_nothing_through_the_log_sum_exp(name, closed):
    torch.manual_seed(0)
    metric, formula = DROPPED[name]
    keep = (torch.rand(7, 1) >= closed) & (torch.rand(7, 9) < 0.7)
    nothing = ~keep.any(-1)
    assert nothing.any()
    q, k, v = (torch.randn(2, 2, n, 4, dtype=torch.float64) for n in (7, 9, 9))
    parts = {"metric": metric, "scale": 1.0, "mask": masks.dense(keep)}
    eager_and_compiled(lambda q, k, v: attention(formula(q, k), v, keep), q, k, v, **parts)
    # the reference of the fused operation, in which the number per query stands apart from the score
    built = build(q, k, v, **parts)
    (op,) = [o for o in built.result.stages["fuse-attention"].walk() if "row" in o.attrs]
    env = dict(zip(op.attrs["names"], built.operands, strict=True))
    o, lse = reference.attend(attention_of(op), env)
    grads = reference.attend_backward(attention_of(op), env, o, lse, torch.zeros_like(o), torch.ones_like(lse))
    assert (grads[op.attrs["names"][0]][:, :, nothing] == 0).all()
