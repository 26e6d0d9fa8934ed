"""Every metric against its formula written by hand, output, lse and all gradients in float64."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import aatc
from aatc import metrics
from tests.api.oracle import agree, attention, inputs, minkowski, on_hyperboloid, pairs
from tests.compiler.harness import build

H, D = 4, 6


def leaf(*shape, positive=False):
    t = torch.randn(shape, dtype=torch.float64)
    return (t.abs() + 0.1 if positive else t).requires_grad_()


def acos(x):
    return torch.acos(x)


def per_head(beta):
    return beta if beta.dim() == 0 else beta[:, None, None]


def quadratic(x, m):
    """xᵀ M x for x (B, H, N, M, D) and M (D, D) or (H, D, D)."""
    return torch.einsum("bhijd,hde,bhije->bhij", x, m.expand(H, D, D), x)


def symmetric(*lead):
    a = torch.randn(*lead, D, D, dtype=torch.float64)
    return (a @ a.mT).requires_grad_()


def case(name, make, score, points=lambda x: x, scale=1.0):
    return pytest.param(make, score, points, scale, id=name)


def _ball(x):
    return 0.8 * x / (1 + x.norm(dim=-1, keepdim=True))


ROOT = D**-0.5
CASES = [
    case("dot", lambda: (metrics.DotProduct(), []), lambda q, k: (q * k).sum(-1), scale=ROOT),
    case("euclidean", lambda: (metrics.Euclidean(), []), lambda q, k: -(q - k).square().sum(-1), scale=ROOT),
    case(
        "euclidean-root",
        lambda: (metrics.Euclidean(squared=False), []),
        lambda q, k: -(q - k).norm(dim=-1),
        scale=ROOT,
    ),
    case(
        "mahalanobis-full",
        lambda: (metrics.Mahalanobis(m := symmetric()), [m]),
        lambda q, k, m: -quadratic(q - k, m),
        scale=ROOT,
    ),
    case(
        "mahalanobis-heads",
        lambda: (metrics.Mahalanobis(m := symmetric(H)), [m]),
        lambda q, k, m: -quadratic(q - k, m),
        scale=ROOT,
    ),
    case(
        "mahalanobis-diagonal",
        lambda: (metrics.Mahalanobis(diagonal=(m := leaf(D, positive=True))), [m]),
        lambda q, k, m: -((q - k).square() * m).sum(-1),
        scale=ROOT,
    ),
    case(
        "mahalanobis-diagonal-heads",
        lambda: (metrics.Mahalanobis(diagonal=(m := leaf(H, D, positive=True))), [m]),
        lambda q, k, m: -((q - k).square() * m[:, None, None]).sum(-1),
        scale=ROOT,
    ),
    case(
        "mahalanobis-factor",
        lambda: (metrics.Mahalanobis(factor=(f := leaf(D, 3))), [f]),
        lambda q, k, f: -quadratic(q - k, f @ f.mT),
        scale=ROOT,
    ),
    case(
        "mahalanobis-factor-heads",
        lambda: (metrics.Mahalanobis(factor=(f := leaf(H, D, D))), [f]),
        lambda q, k, f: -quadratic(q - k, f @ f.mT),
        scale=ROOT,
    ),
    case(
        "lorentz-inner",
        lambda: (metrics.LorentzInner(), []),
        lambda q, k: 2 + 2 * minkowski(q, k),
        lambda x: on_hyperboloid(x[..., 1:]),
        scale=ROOT,
    ),
    case(
        "lorentz-inner-lift",
        lambda: (metrics.LorentzInner(lift=True), []),
        lambda q, k: 2 + 2 * minkowski(on_hyperboloid(q), on_hyperboloid(k)),
        scale=ROOT,
    ),
    case(
        "lorentz",
        lambda: (metrics.LorentzDistance(), []),
        lambda q, k: -torch.acosh(-minkowski(q, k)),
        lambda x: on_hyperboloid(x[..., 1:]),
    ),
    case(
        "lorentz-beta",
        lambda: (metrics.LorentzDistance(b := leaf(H, positive=True), lift=True), [b]),
        lambda q, k, b: -per_head(b) * torch.acosh(-minkowski(on_hyperboloid(q), on_hyperboloid(k))),
    ),
    case(
        "lorentz-squared-curved",
        lambda: (
            metrics.LorentzDistance(b := leaf(positive=True), squared=True, curvature=0.5, lift=True),
            [b],
        ),
        lambda q, k, b: (
            -b * (torch.acosh(-0.5 * minkowski(on_hyperboloid(q, 0.5), on_hyperboloid(k, 0.5))) / math.sqrt(0.5)) ** 2
        ),
    ),
    case(
        "poincare",
        lambda: (metrics.Poincare(2.0), []),
        lambda q, k: (
            -2 * torch.acosh(1 + 2 * (q - k).square().sum(-1) / ((1 - q.square().sum(-1)) * (1 - k.square().sum(-1))))
        ),
        _ball,
    ),
    case(
        "poincare-squared",
        lambda: (metrics.Poincare(b := leaf(H, positive=True), squared=True), [b]),
        lambda q, k, b: (
            -per_head(b)
            * torch.acosh(1 + 2 * (q - k).square().sum(-1) / ((1 - q.square().sum(-1)) * (1 - k.square().sum(-1)))) ** 2
        ),
        _ball,
    ),
    case("cosine", lambda: (metrics.Cosine(), []), lambda q, k: torch.cosine_similarity(q, k, dim=-1)),
    case(
        "sphere",
        lambda: (metrics.SphereGeodesic(3.0), []),
        lambda q, k: -3 * acos(torch.cosine_similarity(q, k, dim=-1)),
    ),
    case(
        "sphere-beta",
        lambda: (metrics.SphereGeodesic(b := leaf(1, positive=True)), [b]),
        lambda q, k, b: -b * acos(torch.cosine_similarity(q, k, dim=-1)),
    ),
    case(
        "fisher-rao",
        lambda: (metrics.FisherRao(), []),
        lambda q, k: -2 * acos((q * k).sqrt().sum(-1)),
        lambda x: x.softmax(-1),
    ),
    case(
        "fisher-rao-logits",
        lambda: (metrics.FisherRao(b := leaf(H, positive=True), logits=True), [b]),
        lambda q, k, b: -2 * per_head(b) * acos((q.softmax(-1) * k.softmax(-1)).sqrt().sum(-1)),
    ),
]


@pytest.mark.parametrize(("make", "score", "points", "scale"), CASES)
def test_a_metric_is_its_formula(make, score, points, scale):
    x, y, v = inputs(h=H, d=D, dv=3)
    metric, parameters = make()
    q, k = points(x), points(y)
    got = aatc.attend(q, k, v, metric=metric, return_lse=True)
    want = attention(q, k, v, scale * score(*pairs(q, k), *parameters))
    agree(got, want, [x, y, v, *parameters])


@pytest.mark.parametrize("scale", [0.3, "one", "heads"])
def test_scale_multiplies_the_metric_and_learns(scale):
    q, k, v = inputs(h=H)
    t = {"one": leaf(), "heads": leaf(H)}.get(scale)
    factor = scale if t is None else per_head(t)
    got = aatc.attend(q, k, v, metric=metrics.Euclidean(), scale=scale if t is None else t)
    x, y = pairs(q, k)
    want = attention(q, k, v, -factor * (x - y).square().sum(-1))[0]
    agree(got, want, [q, k, v] if t is None else [q, k, v, t])


@aatc.metric
def l1(q, k):
    return -(q - k).abs().sum()


@aatc.metric(weight="hd", table="ht", shift="i[bj]")
def tabled(q, k, weight, table, shift, i, j):
    near = torch.exp(-torch.square(weight * (q - k)).sum())
    lookup = metrics.lookup(table, shift)
    return torch.where(j <= i, near + lookup, torch.tanh(q @ k) * 0.5)


def test_a_users_metric_without_captures_is_usable_by_its_name():
    q, k, v = inputs()
    x, y = pairs(q, k)
    agree(aatc.attend(q, k, v, metric=l1), attention(q, k, v, -(x - y).abs().sum(-1))[0], [q, k, v])


def test_a_users_metric_with_captures_indices_and_a_table():
    q, k, v = inputs(b=2, h=4, n=5, m=7)
    weight, table = leaf(4, 6), leaf(4, 3)
    shift = torch.randint(0, 3, (2, 7))
    metric = tabled(weight=weight, table=table, shift=shift)
    x, y = pairs(q, k)
    near = torch.exp(-(weight[:, None, None] * (x - y)).square().sum(-1))
    entry = table[:, shift].transpose(0, 1).unsqueeze(2)
    below = torch.arange(7) <= torch.arange(5)[:, None]
    score = torch.where(below, near + entry, torch.tanh((x * y).sum(-1)) * 0.5)
    agree(aatc.attend(q, k, v, metric=metric), attention(q, k, v, score)[0], [q, k, v, weight, table])


def test_captures_of_one_name_do_not_collide():
    q, k, v = inputs()

    @aatc.metric(scale="h", bias="i[]")
    def odd(q, k, scale, bias):
        return scale * (q @ k) + bias

    t, s, b = leaf(4), leaf(4), leaf(5, 7)
    got = aatc.attend(q, k, v, metric=odd(scale=t, bias=torch.tensor(3)), scale=s, bias=b, return_lse=True)
    x, y = pairs(q, k)
    score = per_head(s) * (per_head(t) * (x * y).sum(-1) + 3) + b
    agree(got, attention(q, k, v, score), [q, k, v, t, s, b])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: aatc.metric(lambda q, k: q - k), "a feature vector"),
        (lambda: aatc.metric(lambda q, k: q @ k > 0), "a score is a number"),
        (lambda: aatc.metric(lambda q: q.sum()), "first two parameters"),
        (lambda: aatc.metric(lambda q, k, beta: beta * (q @ k)), '@aatc.metric(beta="h")'),
        (lambda: aatc.metric(gamma="h")(lambda q, k: q @ k), "'gamma'"),
        (lambda: aatc.metric(beta="x")(lambda q, k, beta: q @ k), "axes 'x'"),
        (lambda: aatc.metric(beta="H!")(lambda q, k, beta: q @ k), "does not declare axes"),
        (lambda: aatc.metric(lambda q, k: torch.fft.fft(q) @ k), "not in the score language"),
        (lambda: aatc.metric(lambda q, k: 1.0 if q @ k > 0 else 0.0), "torch.where"),
    ],
)
def test_a_function_outside_the_language_is_refused(make, text):
    with pytest.raises(aatc.errors.ScoreError) as e:
        make()
    assert text in str(e.value)


def test_captures_are_named_when_missing_or_unknown():
    q, k, v = inputs()
    with pytest.raises(aatc.errors.CaptureError, match="table"):
        aatc.attend(q, k, v, metric=tabled(weight=torch.ones(4, 6)))
    with pytest.raises(aatc.errors.CaptureError, match="no capture 'beta'"):
        l1(beta=torch.ones(4))
    with pytest.raises(aatc.errors.CaptureError, match="one of matrix"):
        metrics.Mahalanobis()
    with pytest.raises(aatc.errors.CaptureError, match=r"\(5, 5\).*D = 6"):
        aatc.attend(q, k, v, metric=metrics.Mahalanobis(torch.eye(5)))
    with pytest.raises(aatc.errors.CaptureError, match=r"beta has shape \(3,\).*4 query heads"):
        aatc.attend(q, k, v, metric=metrics.Poincare(torch.ones(3)))
    with pytest.raises(aatc.errors.CaptureError, match="one per head"):
        aatc.attend(q, k, v, metric=metrics.Poincare(torch.ones(3, 2)))


@given(
    b=st.integers(1, 2),
    hk=st.integers(1, 2),
    group=st.integers(1, 2),
    n=st.integers(1, 4),
    m=st.integers(1, 4),
    d=st.integers(2, 4),
    dv=st.integers(1, 3),
    which=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_gradcheck_over_shapes(b, hk, group, n, m, d, dv, which, seed):
    torch.manual_seed(seed)
    h = hk * group
    q, k, v = inputs(b=b, h=h, n=n, m=m, d=d, dv=dv, hk=hk)
    beta = leaf(h, positive=True)
    make = [
        lambda t: metrics.LorentzDistance(t, lift=True),
        lambda t: metrics.SphereGeodesic(t),
        lambda t: metrics.FisherRao(t, logits=True),
        lambda t: metrics.DotProduct(),
        lambda t: metrics.LorentzDistance(t, squared=True, lift=True),
        lambda t: metrics.Cosine(0.1),
    ][which]
    bias = leaf(n, m)

    def f(q, k, v, beta, bias):
        return aatc.attend(q, k, v, metric=make(beta), bias=bias, mask=aatc.masks.causal(1), return_lse=True)[0]

    assert torch.autograd.gradcheck(f, (q, k, v, beta, bias), atol=1e-4, rtol=1e-3, fast_mode=True)


def test_metrics_of_functions_are_copied_and_pickled_with_their_tensors():
    q, k, v = inputs(requires_grad=False)
    weight, table, shift = torch.randn(4, 6), torch.randn(4, 3), torch.randint(0, 3, (2, 7))
    metric = tabled(weight=weight.double(), table=table.double(), shift=shift)
    for again in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
        torch.testing.assert_close(aatc.attend(q, k, v, metric=again), aatc.attend(q, k, v, metric=metric))
    assert pickle.loads(pickle.dumps(l1)).function is l1.function


@aatc.metric(width="h", power="i[]")
def word_names(q, k, width, power, h):
    return -width * (q - k).abs().sum() * 2.0**power


def test_captures_may_be_called_like_words_of_the_language():
    q, k, v = inputs()
    width, power = leaf(4, positive=True), torch.tensor(-1)
    x, y = pairs(q, k)
    want = attention(q, k, v, -width[:, None, None] * (x - y).abs().sum(-1) * 0.5)[0]
    agree(aatc.attend(q, k, v, metric=word_names(width=width, power=power)), want, [q, k, v, width])


def test_tensors_among_the_numbers_of_a_metric_are_not_frozen():
    q, k, v = inputs()
    eps = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    x, y = pairs(q, k)
    unit = lambda t: t / t.norm(dim=-1, keepdim=True).clamp(min=eps)  # noqa: E731
    agree(
        aatc.attend(q, k, v, metric=metrics.Cosine(eps)),
        attention(q, k, v, (unit(x) * unit(y)).sum(-1))[0],
        [q, k, v, eps],
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["", "cpu", "native"])
def test_scaled_losses_of_half_precision_logits_have_gradients(backend, dtype):
    """Probabilities like e^-25 are 0 in half precision, where the slope of their root is infinite, and a loss that is
    scaled up, as in training by mixed precision, takes gradients of larger ones beyond its range."""
    q, k = (6 * torch.randn(1, 1, 6, 16) for _ in range(2))
    q[..., 0] -= 25
    k[..., 1] -= 25
    q, k, v = leaves = [x.to(dtype).requires_grad_() for x in (q, k, torch.randn(1, 1, 6, 4))]
    metric = metrics.FisherRao(logits=True, beta=3.0)
    if backend:
        o, _ = build(q, k, v, metric=metric, backend=backend).run()
    else:
        o = aatc.attend(q, k, v, metric=metric)
    got = torch.autograd.grad(4096 * o[..., 0].float().sum(), leaves)
    x, y, z = high = [t.detach().double().requires_grad_() for t in leaves]
    roots = (0.5 * x.log_softmax(-1)).exp() @ (0.5 * y.log_softmax(-1)).exp().mT
    want = torch.autograd.grad(4096 * ((-6 * roots.acos()).softmax(-1) @ z)[..., 0].sum(), high)
    for g, w in zip(got, want, strict=True):
        assert float((g - w).abs().max()) <= 4 * torch.finfo(dtype).eps * float(w.abs().max())
