"""Curvatures of metrics and connections as operands: eager and compiled, against formulas written by hand."""

import math

import mpmath as mp
import pytest
import torch

import aatc
from aatc import connections, metrics
from aatc.errors import AatcError, CaptureError, ScoreError
from tests.api.oracle import agree, attention, inputs, minkowski, on_hyperboloid, pairs

H, D = 4, 6
KAPPAS = [-1.5, -1e-3, -1e-12, 0.0, 1e-9, 1e-2, 0.7, 2.0]


def per_head(c):
    return c if c.dim() == 0 else c[:, None, None]


def stereographic(q, k, kappa):
    """d_κ by its two closed forms, and by the first terms of the series about κ = 0."""
    kappa = per_head(kappa)
    gaps = [1 + kappa * x.square().sum(-1) for x in (q, k)]
    chord = (q - k).norm(dim=-1) / (gaps[0] * gaps[1]).sqrt()
    z = kappa * chord**2
    series = 1 + z / 6 + 3 * z**2 / 40 + 15 * z**3 / 336 + 105 * z**4 / 3456
    size = torch.where(kappa.abs() > 2e-3, kappa, torch.ones_like(kappa)).abs().sqrt()
    flat, up = (kappa.abs() <= 2e-3).expand_as(z), (kappa > 0).expand_as(z)
    a = torch.where(flat, 0.5, size * chord)
    closed = torch.where(up, torch.where(up, a, 0.5).asin(), a.asinh()) / size
    return 2 * torch.where(flat, chord * series, closed)


def inside(x, reach=0.7):
    """Points that every curvature here has."""
    return reach * x / (1 + x.norm(dim=-1, keepdim=True))


def lorentz(q, k, c):
    c = per_head(c).unsqueeze(-1)
    q, k = (torch.cat([(1 / c + x.square().sum(-1, keepdim=True)).sqrt(), x], -1) for x in (q, k))
    return torch.acosh(-c.squeeze(-1) * minkowski(q, k)) / c.squeeze(-1).sqrt()


def ball(q, k, c):
    c = per_head(c)
    gaps = [1 - c * x.square().sum(-1) for x in (q, k)]
    return torch.acosh(1 + 2 * c * (q - k).square().sum(-1) / (gaps[0] * gaps[1])) / c.sqrt()


def sphere(q, k, c):
    return torch.acos(torch.cosine_similarity(q, k, dim=-1)) / per_head(c).sqrt()


def inner(q, k, c):
    c = per_head(c).unsqueeze(-1)
    q, k = (torch.cat([(1 / c + x.square().sum(-1, keepdim=True)).sqrt(), x], -1) for x in (q, k))
    return -(D**-0.5) * (2 / c.squeeze(-1) + 2 * minkowski(q, k))


#: name -> the metric of a curvature, minus its score by hand, what makes its points
METRICS = {
    "lorentz": (lambda c: metrics.LorentzDistance(curvature=c, lift=True), lorentz, lambda x: x),
    "lorentz-squared": (
        lambda c: metrics.LorentzDistance(curvature=c, lift=True, squared=True),
        lambda q, k, c: lorentz(q, k, c) ** 2,
        lambda x: x,
    ),
    "inner": (lambda c: metrics.LorentzInner(curvature=c, lift=True), inner, lambda x: x),
    "poincare": (lambda c: metrics.Poincare(curvature=c), ball, inside),
    "sphere": (lambda c: metrics.SphereGeodesic(curvature=c), sphere, lambda x: x),
    "stereographic": (lambda c: metrics.Stereographic(curvature=c), stereographic, inside),
    "stereographic-squared": (
        lambda c: metrics.Stereographic(curvature=c, squared=True),
        lambda q, k, c: stereographic(q, k, c) ** 2,
        inside,
    ),
}


def curvatures(name):
    values = KAPPAS if name.startswith("stereographic") else [0.3, 1.0, 1.9]
    yield from (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values)
    yield torch.tensor((values * H)[-H:], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("name", METRICS)
def test_eager_scores_and_gradients_are_the_formula_s(name):
    torch.manual_seed(0)
    make, score, place = METRICS[name]
    for c in curvatures(name):
        q, k, v = inputs()
        got = aatc.attend(place(q), place(k), v, metric=make(c), return_lse=True)
        scores = -score(*pairs(place(q), place(k)), c)
        agree(got, attention(q, k, v, scores), [q, k, v, c], 1e-9)
        if c.dim() == 0:  # a constant of the program is the same
            number = aatc.attend(place(q), place(k), v, metric=make(c.item()))
            torch.testing.assert_close(number, got[0].detach(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["cpu", "native"])
@pytest.mark.parametrize("name", METRICS)
def test_compiled_gradients_are_those_of_eager_float64_without_recompiling(name, backend):
    make, _, place = METRICS[name]
    torch.manual_seed(1)
    torch.compiler.reset()

    def run(q, k, v, c):
        return aatc.attend(place(q), place(k), v, metric=make(c))

    compiled = aatc.compile(run, backend=backend, fallback=False)
    q, k, v = inputs(n=9, m=11, dtype=torch.float32)
    pull = torch.randn(2, H, 9, D)
    scalars = [c for c in curvatures(name) if c.dim() == 0]
    for c in scalars:
        leaves = [q, k, v, c.detach().float().requires_grad_()]
        exact = [x.detach().double().requires_grad_() for x in leaves]
        out, want = compiled(*leaves), run(*exact)
        torch.testing.assert_close(out.double(), want, rtol=2e-5, atol=2e-5)
        grads = torch.autograd.grad(out, leaves, pull)
        for got, g in zip(grads, torch.autograd.grad(want, exact, pull.double()), strict=True):
            assert (got.double() - g).abs().max() < 1e-4 * (0.1 + g.abs().max()), (c.item(), got, g)
    assert len(compiled.graphs) == 1 and not compiled.explain().fallbacks
    torch.compiler.reset()


@pytest.mark.parametrize("kappa", [-1.5, 0.0, 1e-9, 0.8])
def test_lifted_features_reach_every_space_with_gradients(kappa):
    torch.manual_seed(2)
    q, k, v = inputs(b=1, h=2, n=3, m=4, d=3)
    c = torch.tensor([kappa, -0.4], dtype=torch.float64, requires_grad=True)

    def run(q, k, c):
        return aatc.attend(q, k, v, metric=metrics.Stereographic(curvature=c, lift=True))

    leaves = [(0.4 * t).detach().requires_grad_() for t in (q, k)]
    assert torch.autograd.gradcheck(run, (*leaves, c))

    def point(x, at):
        at = mp.mpf(at) if at else mp.mpf("1e-40")
        root, size = mp.sqrt(mp.mpc(at)), mp.norm(mp.matrix(x))
        return [(mp.tan(root * size) / root).real / size * a for a in x]

    mp.mp.dps = 50
    from aatc.stereographic import lifted

    for head, at in enumerate(c.tolist()):
        want = point([mp.mpf(a) for a in leaves[0][0, head, 0].tolist()], at)
        found = lifted(leaves[0], c)[0, head, 0]
        assert max(abs(a - b) for a, b in zip(found.tolist(), want)) < 1e-14
    mp.mp.dps = 15
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        long = (50 * torch.randn(1, 2, 5, 4)).to(dtype).requires_grad_()
        o = aatc.attend(long, long, long, metric=metrics.Stereographic(curvature=c.float(), lift=True))
        assert o.isfinite().all() and o.dtype == dtype
        assert all(g.isfinite().all() for g in torch.autograd.grad(o.float().sum(), (long, c)))


@pytest.mark.parametrize("backend", [None, "cpu", "native"])
def test_lifted_keys_are_shared_by_heads_of_different_curvatures(backend):
    torch.manual_seed(6)
    q, k, v = inputs(b=1, n=3, m=5, hk=2)
    c = torch.tensor([-0.9, 0.0, 0.3, 0.8], dtype=torch.float64, requires_grad=True)

    def run(q, k, v, c):
        return aatc.attend(0.4 * q, 0.4 * k, v, metric=metrics.Stereographic(curvature=c, lift=True))

    torch.compiler.reset()
    made = run if backend is None else aatc.compile(run, backend=backend, fallback=False)
    a, b = pairs(0.4 * q, 0.4 * k)

    def point(x):
        size, root = x.norm(dim=-1, keepdim=True), per_head(c).unsqueeze(-1).abs().clamp(min=1e-300).sqrt()
        return x * torch.where(c[:, None, None, None] > 0, (root * size).tan(), (root * size).tanh()) / root / size

    scores = -stereographic(*(torch.where(c[:, None, None, None] == 0, x, point(x)) for x in (a, b)), c)
    want = attention(q, k, v, scores)[0]
    agree(made(q, k, v, c), want, [q, k, v], 2e-5 if backend == "native" else 1e-10)
    torch.compiler.reset()


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(2), torch.zeros(2, 2), torch.zeros(1, 1)])
def test_curvatures_of_lifted_features_fit_the_query_heads(wrong):
    q, k = torch.randn(1, 4, 3, 6), torch.randn(1, 2, 5, 6)
    metric = metrics.Stereographic(curvature=wrong, lift=True)
    with pytest.raises(CaptureError, match="curvature"):
        aatc.attend(q, k, k, metric=metric)
    if wrong.numel() > 1:
        with pytest.raises(CaptureError, match="curvature"):
            metric.prepare(q, k)


def hyperbolic(q, k, v, c):
    q, k = (torch.cat([(1 / per_head(c) + x.square().sum(-1, keepdim=True)).sqrt(), x], -1) for x in (q, k))
    v = torch.cat([(k[..., 1:] * v).sum(-1, keepdim=True) / k[..., :1], v], -1)
    connection = connections.HyperboloidTransport(c)
    return aatc.attend(q, k, v, metric=metrics.LorentzDistance(curvature=c), connection=connection)


def spherical(q, k, v, c):
    q, k = (x / x.norm(dim=-1, keepdim=True) / per_head(c).sqrt() for x in (q, k))
    v = v - per_head(c) * (k * v).sum(-1, keepdim=True) * k
    connection = connections.SphereTransport(c)
    return aatc.attend(q, k, v, metric=metrics.SphereGeodesic(curvature=c), connection=connection)


def carried_hyperbolic(q, k, v, c):
    a, b = pairs(q, k)
    d = lorentz(a, b, c)
    c = per_head(c).unsqueeze(-1)
    a, b = (torch.cat([(1 / c + x.square().sum(-1, keepdim=True)).sqrt(), x], -1) for x in (a, b))
    w = torch.cat([(b[..., 1:] * v.unsqueeze(2)).sum(-1, keepdim=True) / b[..., :1], v.unsqueeze(2)], -1)
    w = w.expand(*a.shape[:3], *w.shape[3:])
    turned = w + c * minkowski(a, w).unsqueeze(-1) / (1 - c * minkowski(a, b).unsqueeze(-1)) * (a + b)
    return attention(q, k, v, -d, carried=turned)[0]


def carried_spherical(q, k, v, c):
    a, b = pairs(q, k)
    d = sphere(a, b, c)
    c = per_head(c).unsqueeze(-1)
    a, b = (x / x.norm(dim=-1, keepdim=True) / c.sqrt() for x in (a, b))
    w = v.unsqueeze(2) - c * (b * v.unsqueeze(2)).sum(-1, keepdim=True) * b
    top, bottom = c * (a * w).sum(-1, keepdim=True), 1 + c * (a * b).sum(-1, keepdim=True)
    return attention(q, k, v, -d, carried=w - top / bottom * (a + b))[0]


@pytest.mark.parametrize("backend", [None, "cpu", "native"])
@pytest.mark.parametrize(("run", "want"), [(hyperbolic, carried_hyperbolic), (spherical, carried_spherical)])
def test_transports_carry_vectors_of_any_curvature(run, want, backend):
    torch.manual_seed(3)
    torch.compiler.reset()
    made = run if backend is None else aatc.compile(run, backend=backend, fallback=False)
    for c in (torch.tensor(0.6), torch.tensor([0.4, 1.0, 1.7, 3.0])):
        c = c.double().requires_grad_()
        q, k, v = inputs(n=4, m=5)
        agree(made(q, k, v, c), want(q, k, v, c), [q, k, v, c], 2e-5 if backend == "native" else 1e-9)
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ["cpu", "native"])
@pytest.mark.parametrize("squared", [False, True])
def test_coincident_tokens_and_antipodes_have_finite_gradients(squared, backend):
    def run(x, c):
        return aatc.attend(x, x, x, metric=metrics.Stereographic(curvature=c, squared=squared))

    torch.compiler.reset()
    torch.manual_seed(5)
    x = inside(torch.randn(1, 1, 6, 3))
    x[..., 1, :] = x[..., 0, :]
    x[..., 3, :] = -x[..., 2, :] / x[..., 2, :].square().sum()  # opposite on the unit sphere
    compiled = aatc.compile(run, backend=backend, fallback=False)
    for kappa, tokens in ((-0.7, x[..., [0, 1, 2, 4, 5], :]), (0.0, x), (1.0, x)):
        c = torch.tensor(kappa, requires_grad=True)
        leaves = [tokens.clone().requires_grad_(), c]
        exact = [t.detach().double().requires_grad_() for t in leaves]
        found, want = compiled(*leaves), run(*exact)
        torch.testing.assert_close(found.double(), want, rtol=1e-3, atol=1e-3)
        for g, w in zip(*(torch.autograd.grad(o.sum(), t) for o, t in ((found, leaves), (want, exact))), strict=True):
            assert g.isfinite().all() and w.isfinite().all()
            if kappa != 1.0:  # next to antipodes slopes differ as their roundings do
                torch.testing.assert_close(g.double(), w, rtol=1e-3, atol=1e-3)
    torch.compiler.reset()


def test_transport_over_the_tensors_of_another_curvature_keeps_lengths():
    torch.manual_seed(4)
    c = 2.5
    x, y = (on_hyperboloid(torch.randn(1, 1, 1, 3, dtype=torch.float64), c) for _ in "qk")
    v = torch.randn(1, 1, 1, 4, dtype=torch.float64)
    v = v + c * minkowski(y, v).unsqueeze(-1) * y  # tangent at the key
    (o,) = (aatc.attend(x, y, v, metric=metrics.DotProduct(), connection=connections.HyperboloidTransport(c)),)
    torch.testing.assert_close(minkowski(o, o), minkowski(v, v))
    torch.testing.assert_close(minkowski(o, x), torch.zeros(1, 1, 1, dtype=torch.float64), atol=1e-12, rtol=0)


# --- refused ----------------------------------------------------------------------------------------------------------
POSITIVE = {
    "lorentz": lambda c: metrics.LorentzDistance(curvature=c, lift=True),
    "inner": lambda c: metrics.LorentzInner(curvature=c, lift=True),
    "poincare": lambda c: metrics.Poincare(curvature=c),
    "sphere": lambda c: metrics.SphereGeodesic(curvature=c),
}
CONNECTIONS = {"hyperboloid": connections.HyperboloidTransport, "sphere transport": connections.SphereTransport}
SIGNED = {"stereographic": lambda c: metrics.Stereographic(curvature=c)}


def attended(name, c):
    q = torch.full((1, 2, 3, 4), 0.25)
    if name in CONNECTIONS:
        return aatc.attend(q, q, q, metric=metrics.DotProduct(), connection=CONNECTIONS[name](c))
    return aatc.attend(q, q, q, metric={**POSITIVE, **SIGNED}[name](c))


@pytest.mark.parametrize("name", [*POSITIVE, *CONNECTIONS, *SIGNED])
def test_what_is_no_curvature_is_a_typed_error(name):
    for wrong in ("1", None, [1.0], 1j, 10**400, math.nan, math.inf, -math.inf):
        with pytest.raises(AatcError):
            attended(name, wrong)
    for wrong in (torch.ones(3), torch.ones(2, 2), torch.ones(1, 1), torch.tensor(1), torch.tensor(1j)):
        with pytest.raises(CaptureError):
            attended(name, wrong)
    tensors = [torch.tensor(math.nan), torch.tensor([1.0, math.inf]), torch.nn.Parameter(torch.tensor(-math.inf))]
    signs = [-1.0, 0.0, torch.tensor([1.0, -1.0]), torch.zeros(())] if name not in SIGNED else []
    for wrong in tensors + signs:
        with pytest.raises(ScoreError, match="positive" if name not in SIGNED else "finite"):
            attended(name, wrong)


def test_a_compiled_call_does_not_look_at_the_curvature():
    torch.compiler.reset()
    compiled = aatc.compile(lambda q, c: aatc.attend(q, q, q, metric=metrics.LorentzDistance(curvature=c, lift=True)))
    q = torch.full((1, 2, 3, 4), 0.25)
    assert compiled(q, torch.tensor(1.0)).isfinite().all()
    assert not compiled(q, torch.tensor(-1.0)).isfinite().all()
    assert len(compiled.graphs) == 1
    found = torch.func.vmap(lambda c: attended("stereographic", c))(torch.tensor([0.5, -0.5, 0.0]))
    torch.testing.assert_close(found[1], attended("stereographic", torch.tensor(-0.5)))
    torch.compiler.reset()
