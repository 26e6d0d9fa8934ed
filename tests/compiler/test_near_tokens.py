"""Tokens closer to each other than multiplied-out differences can tell, in either precision.

The oracles are plain PyTorch in float64, written such that they keep their digits.
"""

import pytest
import torch
import torch.nn.functional as F

import aatc
from aatc import connections, masks, metrics
from aatc.ir.interpreter import Interpreter
from tests.compiler.harness import build

N, D = 12, 6


def squared(q, k):
    return (q.unsqueeze(3) - k.unsqueeze(2)).square().sum(-1)


def root(x):
    return (x + (x == 0)).sqrt() * (x > 0)


def poles(q, k):
    return (1 - q.square().sum(-1)).unsqueeze(3) * (1 - k.square().sum(-1)).unsqueeze(2)


def time(x):
    return (1 + x.square().sum(-1)).sqrt()


def chord(q, k):
    """|q - k|² of points lifted to the hyperboloid."""
    x, y = q.unsqueeze(3), k.unsqueeze(2)
    times = ((x - y) * (x + y)).sum(-1) / (time(q).unsqueeze(3) + time(k).unsqueeze(2))
    return squared(q, k) - times.square()


def unit(x):
    return F.normalize(x, dim=-1)


#: name -> (metric, scores that keep their digits, what makes points of tokens)
METRICS = {
    "euclidean": (
        metrics.Euclidean(squared=False),
        lambda q, k: -root(squared(q, k)) / D**0.5,
        lambda x: x,
    ),
    "factor": (
        metrics.Mahalanobis(factor=torch.eye(D)[:, :5]),
        lambda q, k: -squared(q[..., :5], k[..., :5]) / D**0.5,
        lambda x: x,
    ),
    "poincare": (
        metrics.Poincare(beta=2.0),
        lambda q, k: -4 * torch.asinh(root(squared(q, k) / poles(q, k))),
        lambda x: 0.9 * x / (1 + x.norm(dim=-1, keepdim=True)),
    ),
    "lorentz": (
        metrics.LorentzDistance(lift=True),
        lambda q, k: -2 * torch.asinh(root(chord(q, k)) / 2),
        lambda x: x,
    ),
    "sphere": (
        metrics.SphereGeodesic(),
        lambda q, k: -2 * torch.asin(root(squared(unit(q), unit(k))) / 2),
        lambda x: x,
    ),
    "fisher-rao": (
        metrics.FisherRao(),
        lambda q, k: -4 * torch.asin(root(squared(q.sqrt(), k.sqrt())) / 2),
        lambda x: F.softmax(x, -1),
    ),
}


def results(tensors, scores, probes, keep=None):
    x = [t.double().requires_grad_() for t in tensors]
    s = scores(*x[:2])
    if keep is not None:
        s = s.masked_fill(~keep, float("-inf"))
    o, lse = s.softmax(-1) @ x[2], s.logsumexp(-1)
    return [o, lse, *torch.autograd.grad([o, lse], x, [p.double() for p in probes])]


def hold(tensors, metric, scores, mask=None, keep=None, lost=0.0, **parts):
    """Results and gradients of the compiled attention against ``scores`` in float64; ``lost``: relative error of what
    the metric's own formula makes of the gradients of q and k in float64, which keep their size in any case."""
    dtype = tensors[0].dtype
    probes = [torch.randn(1, 2, N, 3, dtype=dtype), torch.randn(1, 2, N, dtype=dtype)]
    leaves = [t.clone().requires_grad_() for t in tensors]
    built = build(*leaves, metric=metric, mask=mask, **parts)
    o, lse = built.program.main(*leaves, *built.operands[3:])
    got = [o, lse, *torch.autograd.grad([o, lse], leaves, probes)]
    want = results(tensors, scores, probes, keep)
    exact = {torch.float64: 1e-7, torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    for name, x, w in zip(("o", "lse", "q", "k", "v"), got, want, strict=True):
        part = exact + min(lost, 2.0) if name in "qk" else exact
        allowed = part * max(float(w.detach().abs().max()), 1e-3)
        assert float((x.double() - w).detach().abs().max()) <= allowed, name
    return built


def near(name, apart, dtype, seed=0):
    """Tokens spread over about 1, and some queries ``apart`` from a key, by digits that single precision has."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 2, N, D, generator=generator, dtype=torch.float64) for _ in range(2))
    v = torch.randn(1, 2, N, 3, generator=generator, dtype=torch.float64)
    q, k = (METRICS[name][2](x) for x in (q, k))
    q, k, v = (x.float().double() for x in (q, k, v))
    step = torch.zeros(D, dtype=torch.float64)
    if name == "fisher-rao":  # where a probability is all but 0, the rest stays as it is
        k[..., 1::3, 0] = 1e-9
        q[..., ::4, :] = k[..., 1::4, :]
        k[..., 1::4, 0], q[..., ::4, 0] = 0.04, 0.04 + apart
    else:
        step[1], step[2] = 0.6 * apart, 0.8 * apart
        here = torch.eye(D, dtype=torch.float64)[0] * (0.5 if "poincare" in name else 1.0)
        k[..., 1::4, :] = here
        q[..., ::4, :] = here + step
    return [x.to(dtype) for x in (q, k, v)]


@pytest.mark.parametrize("apart", [1e-3, 1e-5, 1e-6, 1e-8, 1e-10, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", METRICS)
def test_a_query_next_to_a_key(name, apart, dtype):
    metric, scores, _ = METRICS[name]
    # the argument of acosh and acos, near 1, is what is rounded: the distance is all that is left of it
    lost = 2**-50 / apart**2 if name in ("poincare", "lorentz", "sphere") else 0.0
    hold(near(name, apart, dtype), metric, scores, lost=lost, shared=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["euclidean", "poincare"])
def test_a_query_next_to_a_key_under_a_mask(name, dtype):
    metric, scores, _ = METRICS[name]
    i = torch.arange(N)
    keep = i.unsqueeze(1) >= i - 2
    hold(
        near(name, 1e-6, dtype),
        metric,
        scores,
        lost=1e-3 if name == "poincare" else 0.0,
        mask=masks.predicate(lambda b, h, i, j: j <= i + 2),
        keep=keep,
    )


@pytest.mark.parametrize("dtype, far", [(torch.float32, 1e7), (torch.float64, 1e7), (torch.float64, 1e10)])
@pytest.mark.parametrize("squared_", [True, False])
def test_clusters_at_the_end_of_the_digits(dtype, far, squared_):
    """Differences of tokens are whole numbers, which have all their digits; their squares multiplied out have none."""
    q, k, v = near("euclidean", 1.0, dtype)
    side = torch.where(torch.arange(N) % 2 == 0, far, -far).reshape(1, 1, N, 1)
    q, k = ((4 * x).round() + side.to(dtype) for x in (q, k))
    scores = (lambda q, k: -squared(q, k) / D**0.5) if squared_ else METRICS["euclidean"][1]
    hold([q, k, v], metrics.Euclidean(squared=squared_), scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_that_are_not_known(dtype):
    """A function of a distance whose slope depends on the pair: the distance itself keeps its digits."""

    @aatc.metric
    def bent(q, k):
        square = (q - k).square().sum()
        return -square.sqrt() * (q @ k).exp()

    def scores(q, k):
        return -root(squared(q, k)) * (q @ k.mT).exp()

    q, k, v = near("euclidean", 1e-6, dtype)
    hold([0.5 * q, 0.5 * k, v], bent, scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keys_that_are_turned_to_the_query(dtype):
    """|q - T k| is taken as |T⁻¹ q - k|."""
    q, k, v = near("euclidean", 1e-6, dtype)
    of_q, of_k = (torch.eye(D, dtype=dtype)[order] for order in ([1, 2, 3, 4, 5, 0], [0, 3, 2, 5, 4, 1]))
    turn = of_q.mT @ of_k  # k arrives as turn k
    frames = connections.Frames(of_q.expand(N, D, D), of_k.expand(N, D, D), values=False)

    def scores(x, y):
        return METRICS["euclidean"][1](x, y @ turn.mT.to(y.dtype))

    hold([q, k @ turn, v], metrics.Euclidean(squared=False), scores, connection=frames)


def test_numbers_added_to_keys_that_are_turned_to_the_query():
    """They are no vectors that could be turned back."""

    @aatc.metric
    def moved(q, k):
        return (k + 0.3).square().sum().sqrt()

    q, k, v = near("euclidean", 1e-6, torch.float64)
    of_q, of_k = (torch.eye(D, dtype=torch.float64)[order] for order in ([1, 2, 3, 4, 5, 0], [0, 3, 2, 5, 4, 1]))
    turn = of_q.mT @ of_k
    frames = connections.Frames(of_q.expand(N, D, D), of_k.expand(N, D, D), values=False)

    def scores(x, y):
        return (y @ turn.mT + 0.3).square().sum(-1).sqrt().unsqueeze(2) + 0 * x.sum(-1, keepdim=True)

    hold([q, k, v], moved, scores, connection=frames)


def ends(word):
    """(arguments around the end at which a word vanishes, the slope of its square there)"""
    u = 2.0**-52
    around = torch.tensor([-3 * u, -u / 2, 0.0, u, 2 * u, 7 * u], dtype=torch.float64)
    return {"acosh": (1 + around, 2.0), "acos": (1 - around, -2.0)}[word]


@pytest.mark.parametrize("form", [lambda d: d**2, lambda d: d * d, lambda d: (-3 * d / 2) ** 2 / 2.25])
@pytest.mark.parametrize("word", ["acosh", "acos"])
def test_the_slope_of_a_square_does_not_hang_on_the_rounding_of_tokens_that_coincide(word, form):
    """On whatever side of its end rounding leaves the argument of a distance, its square has the slope of its limit:
    where a kernel's sum and the formula's lie on different sides, as in one score of both, they agree."""

    @aatc.metric
    def s(q, k):
        return form(getattr(q @ k, word)())

    x, slope = ends(word)
    n = len(x)
    q = x.reshape(1, 1, n, 1).clone().requires_grad_()
    k = torch.ones(1, 1, n, 1, dtype=torch.float64)
    v = torch.randn(1, 1, n, 3, dtype=torch.float64)
    probe = torch.randn(1, 1, n, dtype=torch.float64)
    want = (slope * probe).unsqueeze(-1)  # keys are alike: lse = s + log n
    built = build(q, k, v, metric=s)

    def eager(q):
        return aatc.attend(q, k, v, metric=s, return_lse=True)[1]

    found = {
        "eager": torch.autograd.grad(eager(q), q, probe)[0],
        "kernel": torch.autograd.grad(built.program.main(q, k, v, *built.operands[3:])[1], q, probe)[0],
        "transform": torch.func.vjp(eager, q.detach())[1](probe)[0],
    }
    for engine, g in found.items():
        assert float((g - want).abs().max()) <= 2e-7, engine


# --- pairs computed again one by one -------------------------------------------------------------------------
METRICS["poincare-squared"] = (
    metrics.Poincare(squared=True),
    lambda q, k: -4 * torch.asinh(root(squared(q, k) / poles(q, k))).square(),
    METRICS["poincare"][2],
)
REFINED = ("euclidean", "poincare", "poincare-squared", "fisher-rao")


def tied(name, dtype, nearly=False, seed=0):
    """Queries that are keys, one by one; ``nearly``: but for some that are next to them."""
    _, k, v = near(name, 1e-6, dtype, seed)
    keys = k.clone()
    if nearly:
        keys[..., 2::4, :] = (k + 1e-7 * torch.randn(k.shape).to(dtype))[..., 2::4, :].abs()
    return [k, keys, v]


def kernel_of(built):
    (attention,) = built.program.attentions
    return attention["kernel"]


@pytest.mark.parametrize("tiles", ["", "heads=2 rows=5 cols=7", "rows=4 cols=4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("nearly", [False, True])
@pytest.mark.parametrize("name", REFINED)
def test_ties_are_left_to_no_version_without_contractions(name, nearly, dtype, tiles):
    """Where every query is a key the nearest pairs are computed again, and all others by contractions as ever."""
    metric, scores, _ = METRICS[name]
    lost = 1e-3 if nearly and "poincare" in name else 0.0
    built = hold(tied(name, dtype, nearly), metric, scores, lost=lost, tiles=tiles)
    kernel = kernel_of(built)
    if dtype == torch.float64:
        assert (len(kernel.versions), kernel.exact_calls) == (1, 0)
    else:
        assert (len(kernel.versions), kernel.exact_calls) == (2, 1)
    version = kernel.versions[-1]
    for func in (version.forward_func, version.backward_func):
        ops = list(func.body.walk())
        assert "tile.refine" in {op.name for op in ops}
        assert "c" not in {op.attrs.get("axis") for op in ops}  # no loop over channels, pair by pair


@pytest.mark.parametrize("name", REFINED)
def test_ties_under_a_mask(name):
    metric, scores, _ = METRICS[name]
    i = torch.arange(N)
    keep = (i.unsqueeze(1) >= i) & (i.unsqueeze(1) != 5)
    mask = masks.causal() & masks.predicate(lambda b, h, i, j: i != 5)
    lost = 1e-3 if "poincare" in name else 0.0
    tensors = tied(name, torch.float64, nearly=True)
    probes = [torch.randn(1, 2, N, 3, dtype=torch.float64)]
    leaves = [t.clone().requires_grad_() for t in tensors]
    built = build(*leaves, metric=metric, mask=mask, tiles="heads=2 rows=5 cols=4")
    o = built.program.main(*leaves)[0]
    got = [o, *torch.autograd.grad([o], leaves, probes)]
    x = [t.clone().requires_grad_() for t in tensors]
    weights = scores(*x[:2]).masked_fill(~keep, float("-inf")).softmax(-1).masked_fill(~keep, 0.0)
    want = weights.nan_to_num() @ x[2]
    rows = keep.any(-1)
    want = [want, *torch.autograd.grad([want[..., rows, :]], x, [probes[0][..., rows, :]])]
    for a, b in zip(got, want, strict=True):
        assert float((a - b).abs().max()) <= (1e-7 + lost) * float(b.abs().max())


@pytest.mark.parametrize("name", REFINED)
def test_pairs_computed_again_mean_the_same_to_the_interpreter(name):
    """The reference evaluation of the version in double precision, forward and backward."""
    leaves = [t.clone() for t in tied(name, torch.float32, nearly=True)]
    built = build(*leaves, metric=METRICS[name][0], tiles="heads=2 rows=5 cols=7", library=False)
    (op,) = [op for op in built.result.module.walk() if op.name == "geo.kernel"]
    version = kernel_of(built).versions[1]
    interpreter = Interpreter(built.result.module)
    got, want = interpreter.call(op.attrs["exact"].name, leaves), version.forward(*leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    o, lse, *saved = want
    operands = [torch.randn_like(o), torch.randn_like(lse), *saved, *leaves]
    got = interpreter.call(op.attrs["exact_backward"].name, operands)
    for a, b in zip(got, version.backward((True,) * len(version.grads))(*operands), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_all_tokens_in_one_place():
    """Nothing but ties: every pair is computed again, and no slope is left."""
    x = torch.full((1, 2, N, D), 0.3)
    v = torch.randn(1, 2, N, 3)
    for name in ("euclidean", "poincare"):
        hold([x, x.clone(), v], METRICS[name][0], METRICS[name][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_far_token_leaves_the_others_their_digits(dtype):
    """The bound of rounding errors is that of the largest token: then all other pairs are computed again."""
    q, k, v = near("euclidean", 1e-6, dtype)
    k[..., -1, :] = 1e6
    hold([q, k, v], metrics.Euclidean(squared=False), METRICS["euclidean"][1])


@pytest.mark.parametrize("backend", ["cpu", "native"])
@pytest.mark.parametrize("given", ["matrix", "factor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_pairs_send_a_learned_metric_the_slope_of_their_squares(dtype, given, backend):
    """Pairs in clusters, of which the differences are computed again: what they send to the matrix is d dᵀ."""
    size, apart = 4, 0.01
    q = 1.5 * torch.randn(3, 1, size) + apart * torch.randn(3, 4, size)
    q = q.reshape(1, 1, N, size).to(dtype)
    k = q[:, :, torch.randperm(N)].clone()
    v, m = torch.randn(1, 1, N, 3).to(dtype), torch.eye(size) + 0.1 * torch.randn(size, size)
    m = (m @ m.mT if given == "matrix" else m).to(dtype).requires_grad_()
    built = build(q, k, v, metric=metrics.Mahalanobis(**{given: m}), scale=1.0, backend=backend)
    o, lse = built.run()
    probes = torch.randn(o.shape).to(dtype), torch.randn(lse.shape).to(dtype)
    (got,) = torch.autograd.grad([o, lse], [m], probes)
    x, y, z, w = (t.detach().double() for t in (q, k, v, m))
    d = x.unsqueeze(3) - y.unsqueeze(2)
    s = -((d @ w.requires_grad_()) * d).sum(-1) if given == "matrix" else -(d @ w.requires_grad_()).square().sum(-1)
    (want,) = torch.autograd.grad([s.softmax(-1) @ z, s.logsumexp(-1)], [w], [p.double() for p in probes])
    exact = {torch.float64: 1e-9, torch.float32: 2e-5}[dtype]
    assert float((got - want).abs().max()) <= exact * float(want.abs().max())


def test_slopes_beside_one_keep_the_digits_of_double_precision():
    """The square of x = 1 + 1e-6 has lost ten of its digits of x * x - 1, and with them the slope of acosh(x)."""
    g = torch.Generator().manual_seed(3)
    q, k, v = (1e-3 * torch.randn(1, 2, 9, 6, generator=g, dtype=torch.float64) for _ in range(3))
    q, k = (torch.cat([time(x).unsqueeze(-1), x], -1).requires_grad_() for x in (q, k))
    scale = torch.tensor(0.7, dtype=torch.float64)  # one that is captured is not folded into the metric

    def apart():
        x = (q * k.new_tensor([1.0, *[-1.0] * 6])).unsqueeze(3) * k.unsqueeze(2)
        above = x.sum(-1) - 1
        distance = torch.log1p(above + (above * (above + 2)).sqrt())
        return torch.softmax(-scale * distance.square(), -1) @ v

    def attend(q, k, v, scale):
        return aatc.attend(q, k, v, metric=metrics.LorentzDistance(squared=True), scale=scale)

    probe = torch.randn(1, 2, 9, 6, generator=g, dtype=torch.float64)
    want = torch.autograd.grad((apart() * probe).sum(), (q, k))
    o = aatc.compile(attend, fallback=False, backend="cpu")(q, k, v, scale)
    for got, right in zip(torch.autograd.grad((o * probe).sum(), (q, k)), want):
        torch.testing.assert_close(got, right, rtol=0, atol=1e-14 * float(right.abs().max()) + 1e-17)
