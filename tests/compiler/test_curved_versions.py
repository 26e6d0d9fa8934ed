"""Which version runs of attention whose curvature is a tensor, and that single precision is taken only where it has the
digits: near tokens, near antipodes, far out, across curvatures; against formulas by hand in float64."""

import functools

import mpmath as mp
import pytest
import torch

import aatc
from aatc import metrics
from aatc.ir.score.derivative import gradients
from aatc.ir.score.evaluate import evaluate
from aatc.ir.score.expr import ONE, call, param
from tests.api.oracle import attention, on_hyperboloid, pairs

ROOM = 2e-5


# --- distances by hand -------------------------------------------------------------------------------------
def root(x):
    return (x + (x == 0)).sqrt() * (x > 0)


def arc(chord, c):
    """Twice the arc in curvature c whose half has the chord's root for its sin_c."""
    size = c.abs().clamp(min=1e-12).sqrt()
    y = root(chord) * size
    flat = 2 * root(chord) * (1 + c * chord / 6)
    curved = torch.where(c > 0, torch.asin(y.clamp(max=1)), torch.asinh(y)) * 2 / size
    return torch.where(c.abs() < 1e-9, flat, curved)


def disc(q, k, c):
    return arc((q - k).square().sum(-1) / ((1 + c * q.square().sum(-1)) * (1 + c * k.square().sum(-1))), c)


def sheet(q, k, c):
    times = [(1 + c * x.square().sum(-1)).sqrt() for x in (q, k)]
    gap = c.sqrt() * ((q - k) * (q + k)).sum(-1) / (times[0] + times[1])
    return arc(((q - k).square().sum(-1) - gap**2) / 4, -c)


KINDS = {
    "stereographic": (lambda b, c, s: metrics.Stereographic(b, c, squared=s), disc),
    "poincare": (lambda b, c, s: metrics.Poincare(b, curvature=c, squared=s), lambda q, k, c: disc(q, k, -c)),
    "lorentz": (lambda b, c, s: metrics.LorentzDistance(b, curvature=c, squared=s, lift=True), sheet),
}


@functools.cache
def compiled(kind, beta, squared, backend="cpu"):
    make = KINDS[kind][0]

    def run(q, k, v, c):
        return aatc.attend(q, k, v, metric=make(beta, c, squared))

    return aatc.compile(run, backend=backend, fallback=False)


def double_calls(made):
    return sum(a.double_calls for a in made.explain().attentions)


def check(kind, beta, squared, q, k, c, backend="cpu"):
    """Output and gradients, also that of the curvature, against float64; returns whether double precision ran.

    A gradient may be a sum that cancels, and is held to what is added up in it."""
    v = torch.randn(*k.shape[:-1], 5)
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v, c)]
    wide = [x.detach().double().requires_grad_() for x in (q, k, v, c)]
    b, h = wide[3], wide[3].numel()
    d = KINDS[kind][1](*pairs(*wide[:2]), b.reshape(h, 1, 1) if h > 1 else b)
    scores = -beta * (d**2 if squared else d)
    want, _ = attention(*wide[:3], scores)
    probe = torch.randn_like(want)
    shares = (scores.softmax(-1) * (probe @ wide[2].mT).abs()).detach()
    added = torch.autograd.grad((shares * scores).sum(), [*wide[:2], b], retain_graph=True)
    sizes = [x.abs().max().item() for x in (added[0], added[1], want, added[2])]
    wanted = torch.autograd.grad((want * probe).sum(), wide)
    made = compiled(kind, beta, squared, backend)
    before = double_calls(made)
    found = made(*leaves)
    torch.testing.assert_close(found.double(), want, rtol=ROOM, atol=ROOM)
    for x, y, size in zip(torch.autograd.grad((found * probe.float()).sum(), leaves), wanted, sizes, strict=True):
        assert (x.double() - y).abs().max().item() <= ROOM * max(y.abs().max().item(), size, 1e-2)
    return double_calls(made) > before


def spread(n, m, size, d=48):
    """Points about ``size`` from the origin, in a width where none are near each other."""
    return tuple(size / d**0.5 * torch.randn(1, 2, x, d) for x in (n, m))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(5)


# --- versions ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_points_take_single_precision(kind, squared):
    for value in (1.0, 0.3, 1e-5, 1e-30) if kind != "stereographic" else (1.0, -1.0, 1e-5, -1e-30):
        q, k = spread(9, 13, 0.5)
        assert not check(kind, 1.0, squared, q, k, torch.tensor(value))


def test_points_with_a_time_of_their_own_take_single_precision():
    q, k = (on_hyperboloid(x) for x in spread(9, 13, 0.5))
    made = aatc.compile(
        lambda q, k, c: aatc.attend(q, k, k, metric=metrics.LorentzDistance(curvature=c)), backend="cpu", fallback=False
    )
    made(q, k, torch.tensor(1.0))
    assert double_calls(made) == 0
    made(q, torch.cat([k, q + 1e-5], 2), torch.tensor(1.0))
    assert double_calls(made) == 1


@pytest.mark.parametrize("squared", [False, True])
def test_native_kernels_take_it_too(squared):
    q, k = spread(9, 13, 0.5)
    assert not check("stereographic", 1.0, squared, q, k, torch.tensor(-0.7), "native")


def test_heads_of_different_curvatures_take_single_precision():
    q, k = (x.repeat(1, 2, 1, 1) for x in spread(9, 13, 0.5))
    assert not check("stereographic", 1.0, False, q, k, torch.tensor([1.0, -1.0, 1e-6, -1e-30]))


# --- digits ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [2000.0])
def test_clusters_have_the_digits_of_double_precision(kind, beta, squared):
    here = 0.3 / 8**0.5 * torch.randn(1, 2, 1, 8)
    for value in (1.0, 1e-4):
        for size in (1e-2, 1e-5):
            apart = size * torch.nn.functional.normalize(torch.randn(1, 2, 1, 8), dim=-1)
            for move in (0 * apart, 10 * apart):  # one cluster, or one of queries and one of keys
                q, k = (here + shift + size * torch.randn(1, 2, n, 8) for n, shift in ((6, move), (7, 0)))
                check(kind, beta, squared, q, k, torch.tensor(value))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("gap", "doubled"), [(1.0, False), (1e-2, True), (1e-3, True)])
def test_pairs_near_antipodes(gap, doubled, squared):
    """On a sphere distances have infinite slope there, too."""
    for c in (1.0, 0.1):
        q = torch.nn.functional.normalize(torch.randn(1, 2, 5, 32), dim=-1)
        aside = torch.nn.functional.normalize(torch.randn_like(q), dim=-1)
        k = torch.cat([gap * aside - q, torch.nn.functional.normalize(torch.randn(1, 2, 6, 32), dim=-1)], 2)
        ran = check("stereographic", 1.0, squared, q / c**0.5, k / c**0.5, torch.tensor(c))
        assert ran == doubled or c < 1  # bounds of long vectors are wide


@pytest.mark.parametrize("kind", KINDS)
def test_points_far_out(kind):
    for squared in (False, True):
        q, k = (
            (1 - 0.05 * torch.rand(1, 2, n, 1)) * torch.nn.functional.normalize(torch.randn(1, 2, n, 8), dim=-1)
            for n in (6, 7)
        )
        q, k = (30 * q, 30 * k) if kind == "lorentz" else (q, k)
        check(kind, 1.0, squared, q, k, torch.tensor(-1.0 if kind == "stereographic" else 1.0))


# --- the words ---------------------------------------------------------------------------------------------
def arcsinc(y):
    if y == 0:
        return mp.mpf(1)
    return mp.asin(mp.sqrt(y)) / mp.sqrt(y) if y > 0 else mp.asinh(mp.sqrt(-y)) / mp.sqrt(-y)


EXACT = {
    "arcroot": lambda x, r: mp.sqrt(x) * arcsinc(r * x),
    "arcsquare": lambda x, r: x * arcsinc(r * x) ** 2,
}


@pytest.mark.parametrize("word", EXACT)
def test_words_and_their_slopes(word):
    names = [param(n, "bhij") for n in ("x", "r")]
    e = call(word, *names)
    parts = [e, *(gradients([(e, ONE)], names)[n] for n in names)]
    with mp.workdps(40):
        for x in (1e-12, 1e-3, 0.4, 3.0, 1e6):
            for y in (-1e5, -1.0, -0.041, -0.039, -1e-9, 0.0, 1e-9, 0.039, 0.041, 0.9, 0.9999):
                r = y / x
                env = {"x": torch.tensor(x, dtype=torch.float64), "r": torch.tensor(r, dtype=torch.float64)}
                env = {n: t.reshape(1, 1, 1, 1) for n, t in env.items()}
                exact = EXACT[word]
                want = [exact(mp.mpf(x), mp.mpf(r)), mp.diff(exact, (x, r), (1, 0)), mp.diff(exact, (x, r), (0, 1))]
                for part, value, room in zip(parts, want, (1e-13, 1e-10, 1e-10), strict=True):
                    found = evaluate(part, env, (1, 1, 1, 1), dtype=torch.float64).item()
                    assert found == pytest.approx(float(value), rel=room)
