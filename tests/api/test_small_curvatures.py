"""Distances keep their digits, and their slopes in the curvature, as it goes to 0 and as tokens come close: eager and
compiled, against mpmath."""

from itertools import product

import mpmath as mp
import pytest
import torch

import aatc
from aatc import connections, metrics
from aatc.errors import ScoreError
from tests.api.oracle import attention, pairs

N, D = 3, 4
SMALL = [0.7, 1e-4, 1e-8, 1e-30]


def lifted(x, c):
    return mp.sqrt(1 / c + mp.fsum(a * a for a in x))


def lorentz(q, k, c):
    return -mp.acosh(c * (lifted(q, c) * lifted(k, c) - mp.fdot(q, k))) / mp.sqrt(c)


def inner(q, k, c):
    return (2 / c + 2 * (mp.fdot(q, k) - lifted(q, c) * lifted(k, c))) / mp.sqrt(D)


def square(x):
    return mp.fsum(a * a for a in x)


def ball(q, k, c):
    gaps = (1 - c * square(q)) * (1 - c * square(k))
    return -mp.acosh(1 + 2 * c * square(a - b for a, b in zip(q, k, strict=True)) / gaps) / mp.sqrt(c)


def with_time(x, c):
    return torch.cat([(1 / c + x.square().sum(-1, keepdim=True)).sqrt(), x], -1)


def run_inner_of_points(q, k, v, c):
    """The scale of D coordinates, whether time is one of them or not."""
    metric = metrics.LorentzInner(curvature=c)
    return aatc.attend(with_time(q, c), with_time(k, c), v, metric=metric, scale=D**-0.5, return_lse=True)


def run_of_points(q, k, v, c):
    return aatc.attend(
        with_time(q, c), with_time(k, c), v, metric=metrics.LorentzDistance(curvature=c), return_lse=True
    )


def of_metric(make):
    def run(q, k, v, c):
        return aatc.attend(q, k, v, metric=make(c), return_lse=True)

    return run


#: name -> (attention of a curvature, the score by mpmath)
CASES = {
    "lorentz": (of_metric(lambda c: metrics.LorentzDistance(curvature=c, lift=True)), lorentz),
    "lorentz-squared": (
        of_metric(lambda c: metrics.LorentzDistance(curvature=c, lift=True, squared=True)),
        lambda q, k, c: -(lorentz(q, k, c) ** 2),
    ),
    "inner": (of_metric(lambda c: metrics.LorentzInner(curvature=c, lift=True)), inner),
    "poincare": (of_metric(lambda c: metrics.Poincare(curvature=c)), ball),
}


def tokens(dtype, seed=0):
    """Each query with one key, as problems of a batch: log-sum-exps are scores."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (0.3 * torch.randn(N, 1, 1, D, generator=generator, dtype=torch.float64).to(dtype) for _ in "qk")
    return q, k, torch.zeros_like(k)


def exact(score, q, k, c):
    """The scores and their slopes in c."""
    with mp.workdps(90):
        at, rows = mp.mpf(c), []
        for x, y in zip(q.flatten(1).tolist(), k.flatten(1).tolist(), strict=True):
            x, y = ([mp.mpf(a) for a in p] for p in (x, y))
            slope = mp.diff(lambda z, x=x, y=y: score(x, y, z), at, h=at * mp.mpf(10) ** -25)
            rows.append([float(score(x, y, at)), float(slope)])
    return torch.tensor(rows, dtype=torch.float64).unbind(1)


def scores_and_slopes(made, tensors, c):
    """The scores of an attention of one key each, and their slopes in c."""
    lse = made(*tensors, c)[1].flatten()
    slopes = [torch.autograd.grad(x, c, retain_graph=True)[0] for x in lse]
    return lse.detach().double(), torch.stack(slopes).double()


def hold(found, want, part):
    torch.testing.assert_close(found, want, rtol=part, atol=part * want.abs().max().item())


@pytest.mark.parametrize(("name", "backend"), [*product(CASES, (None, "cpu")), ("lorentz", "native")])
def test_scores_and_slopes_are_exact_as_space_becomes_flat(name, backend):
    run, score = CASES[name]
    torch.compiler.reset()
    made = run if backend is None else aatc.compile(run, backend=backend, fallback=False)
    for dtype, part in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        for value in SMALL:
            c = torch.tensor(value, dtype=dtype, requires_grad=True)
            tensors = tokens(dtype)
            want = exact(score, *tensors[:2], c.item())
            found = scores_and_slopes(made, tensors, c)
            hold(found[0], want[0], part)
            hold(found[1], want[1], 100 * part)
            if backend is None:  # a constant of the program
                number = run(*tensors, c.item())[1].flatten().double()
                hold(number, want[0], max(part, 1e-12))
    torch.compiler.reset()


@pytest.mark.parametrize("value", [0.7, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize(("run", "score"), [(run_of_points, lorentz), (run_inner_of_points, inner)])
def test_points_with_a_time_of_their_own(run, score, value):
    """Of size 1/√c, which has ε/c of its own: of single precision nothing is left."""
    c = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    tensors = tokens(torch.float64)
    for found, want in zip(scores_and_slopes(run, tensors, c), exact(score, *tensors[:2], value), strict=True):
        hold(found, want, 1e-14 / value)


@pytest.mark.parametrize("number", [1e-320, 1e-39, 1e-9])
def test_a_number_that_single_precision_rounds_to_0_is_flat_space(number):
    q, k, v = (0.3 * torch.randn(1, 2, n, 4) for n in (3, 5, 5))
    a, b = pairs(q.double(), k.double())
    flat = (a - b).norm(dim=-1)
    for metric, scores in (
        (metrics.LorentzDistance(curvature=number, lift=True), -flat),
        (metrics.LorentzInner(curvature=number, lift=True), -(flat**2) / 2),
        (metrics.Poincare(curvature=number), -2 * flat),
        (metrics.Stereographic(curvature=-number), -2 * flat),
        (metrics.Stereographic(curvature=number), -2 * flat),
    ):
        want = attention(q.double(), k.double(), v.double(), scores)
        for made in (aatc.attend, aatc.compile(aatc.attend, backend="cpu", fallback=False)):
            for found, exact_ in zip(made(q, k, v, metric=metric, return_lse=True), want, strict=True):
                torch.testing.assert_close(found.double(), exact_, rtol=1e-6, atol=1e-6)
    torch.compiler.reset()


def test_a_number_beyond_single_precision_is_refused_for_it_alone():
    q = 1e-22 * torch.randn(1, 2, 3, 4, dtype=torch.float64)
    for make in (
        lambda c: metrics.LorentzDistance(curvature=c, lift=True),
        lambda c: metrics.LorentzInner(curvature=c, lift=True),
        lambda c: metrics.Poincare(curvature=c),
        lambda c: metrics.Stereographic(curvature=-c),
        lambda c: metrics.SphereGeodesic(curvature=c),
    ):
        assert aatc.attend(q, q, q, metric=make(1e39)).isfinite().all()
        for dtype in (torch.float32, torch.bfloat16):
            x = q.to(dtype)
            with pytest.raises(ScoreError, match="single precision"):
                aatc.attend(x, x, x, metric=make(1e39))
    with pytest.raises(ScoreError, match="single precision"):
        aatc.attend(*[q.float()] * 3, metric=metrics.SphereGeodesic(curvature=1e-80))


def test_no_compiled_metric_takes_a_curvature_of_the_wrong_sign():
    q = torch.full((1, 2, 3, 4), 0.25)
    for make in (
        lambda c: metrics.LorentzDistance(curvature=c, lift=True),
        lambda c: metrics.LorentzDistance(curvature=c),
        lambda c: metrics.LorentzInner(curvature=c, lift=True),
        lambda c: metrics.LorentzInner(curvature=c),
        lambda c: metrics.Poincare(curvature=c),
    ):
        made = aatc.compile(lambda q, c: aatc.attend(q, q, q, metric=make(c)), backend="cpu", fallback=False)  # noqa: B023
        assert made(q, torch.tensor(1e-30)).isfinite().all()
        for wrong in (-1.0, 0.0, float("nan")):
            assert made(q, torch.tensor(wrong)).isnan().all()
        torch.compiler.reset()


@pytest.mark.parametrize("connection", ["rotary", "frames"])
def test_keys_that_are_turned_stay_contractions(connection):
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, 2, 9, 6) for _ in "qkv")
    c = torch.tensor([0.5, 1e-6], requires_grad=True)
    frames = torch.linalg.qr(torch.randn(9, 6, 6))[0]
    turns = connections.Rotary(torch.arange(9)) if connection == "rotary" else connections.Frames(frames, values=False)

    def run(q, k, v, c):
        return aatc.attend(q, k, v, metric=metrics.LorentzDistance(curvature=c, lift=True), connection=turns)

    made = aatc.compile(run, backend="cpu", fallback=False)
    found = made(q, k, v, c)
    assert [a.lowering for a in made.explain().attentions] == ["E"]
    leaf = c.detach().double().requires_grad_()
    want = run(q.double(), k.double(), v.double(), leaf)
    torch.testing.assert_close(found.double(), want, rtol=2e-6, atol=2e-6)
    grads = [torch.autograd.grad(o.square().sum(), x)[0].double() for o, x in ((found, c), (want, leaf))]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


# --- tokens close to each other, which a large beta tells apart ----------------------------------------------------
def root(x):
    return (x + (x == 0)).sqrt() * (x > 0)


def sheet(q, k):
    """2 asinh(|q - k|_L / 2) of lifted points, whose times differ by a quotient."""
    time = [(1 + x.square().sum(-1)).sqrt() for x in (q, k)]
    times = ((q - k) * (q + k)).sum(-1) / (time[0] + time[1])
    return 2 * torch.asinh(root((q - k).square().sum(-1) - times**2) / 2)


def angle(q, k):
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    return 2 * torch.asin(root((q - k).square().sum(-1)) / 2)


def disc(q, k):
    gaps = (1 - q.square().sum(-1)) * (1 - k.square().sum(-1))
    return 2 * torch.asinh(root((q - k).square().sum(-1) / gaps))


CLOSE = {
    "lorentz": (lambda b, c: metrics.LorentzDistance(b, lift=True, curvature=c), sheet),
    "sphere": (lambda b, c: metrics.SphereGeodesic(b, curvature=c), angle),
    "poincare": (lambda b, c: metrics.Poincare(b, curvature=c), disc),
    "stereographic": (lambda b, c: metrics.Stereographic(b, curvature=-c), disc),
}


@pytest.mark.parametrize("backend", [None, "cpu"])
@pytest.mark.parametrize("name", CLOSE)
def test_close_tokens_under_a_large_beta(name, backend):
    make, distance = CLOSE[name]
    torch.manual_seed(4)
    here = 0.4 * torch.nn.functional.normalize(torch.randn(1, 2, 1, D), dim=-1)
    q, k = (here + 1e-3 * torch.randn(1, 2, n, D) for n in (5, 7))
    v = torch.randn(1, 2, 7, D)
    for c in (1, torch.tensor(1.0)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        wide = [x.double().requires_grad_() for x in (q, k, v)]

        def run(q, k, v, c=c):
            return aatc.attend(q, k, v, metric=make(2000.0, c), return_lse=True)

        made = run if backend is None else aatc.compile(run, backend=backend, fallback=False)
        want = attention(*wide, -2000 * distance(*pairs(*wide[:2])))
        found = made(*leaves)
        for x, y in zip(found, want, strict=True):
            torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-5)
        grads = (torch.autograd.grad(o[0].square().sum(), x) for o, x in ((found, leaves), (want, wide)))
        for x, y in zip(*grads, strict=True):
            hold(x.double(), y, 1e-5)
        torch.compiler.reset()
