"""Weights of 0, points far out in single precision, and derivatives of the variance, against values by hand."""

import math
import warnings

import mpmath as mp
import pytest
import torch

from aatc.geometry import (
    Euclidean,
    Hyperboloid,
    MeanError,
    NotOnManifoldError,
    PoincareBall,
    SpecialOrthogonal,
    Sphere,
    einstein_midpoint,
    frechet_mean,
    gyromidpoint,
    lorentz_centroid,
    poincare_from_klein,
    tangent_mean,
)


def spread(r, angles, c=1.0, dtype=torch.float32):
    s = math.sinh(r) / math.sqrt(c)
    t = torch.tensor(angles, dtype=torch.float64)
    return Hyperboloid(c).projection(torch.stack([0 * t, s * t.cos(), s * t.sin()], -1).to(dtype))


def pull(space, at, rows):
    """(Σ log_at(x)/M, |it|) in mpmath, of float coordinates 1 and 2."""
    lift = lambda p: [mp.sqrt(1 + sum(mp.mpf(a) ** 2 for a in p)), *map(mp.mpf, p)]  # noqa: E731
    product = lambda a, b: a[1] * b[1] + a[2] * b[2] - a[0] * b[0]  # noqa: E731
    p, total = lift(at), [mp.mpf(0)] * 3
    for row in rows:
        q = lift(row)
        k = -product(p, q)
        d = mp.acosh(k) if k > 1 else mp.mpf(0)
        for i in range(3):
            total[i] += (q[i] - k * p[i]) * (d / mp.sinh(d) if d else 1) / len(rows)
    return float(mp.sqrt(abs(product(total, total))))


@pytest.mark.parametrize("r", [5.0, 9.0, 12.0])
@pytest.mark.parametrize("angles", [(0.0, 0.3, 0.7, 1.5), (0.0, 2e-4, 5e-4, -3e-4), (0.0, 3.0, 1.0, -2.0)])
def test_means_in_single_precision_are_as_right_as_its_coordinates(r, angles):
    x = spread(r, angles)
    mean = frechet_mean(Hyperboloid(), x)
    assert mean.converged and mean.point.dtype == torch.float32
    with mp.workdps(60):
        left = pull(Hyperboloid(), mean.point[1:].tolist(), x[:, 1:].tolist())
    # the Hessian is the identity at least: the gradient bounds how far the mean is off, which is rounding of the mean
    assert left <= 1e-6 + 2 * torch.finfo(torch.float32).eps * float(mean.point[0]) * (1 + r)
    assert abs(float(mean.residual)) < 1e-5 * r


def test_a_mean_without_coordinates_is_refused_or_flagged():
    for r, dtype in ((16.0, torch.float32), (36.0, torch.float64)):
        x = spread(r, (0.0, 0.0, 0.0), dtype=dtype)
        with pytest.raises(MeanError, match="no coordinates"):
            frechet_mean(Hyperboloid(), x)
        assert not frechet_mean(Hyperboloid(), x, strict=False).converged


def test_the_variance_has_the_slopes_of_differences_twice():
    for manifold, x in (
        (Hyperboloid(), spread(1.0, (0.0, 1.0, 2.5), dtype=torch.float64)),
        (Sphere(), Sphere().projection(torch.tensor([[1.0, 0.2, 0], [0.9, -0.4, 0.3], [0.7, 0, -0.6]]).double())),
        (Euclidean(), torch.tensor([[1.0, 0], [2.0, 1], [-1.0, 3.0]]).double()),
    ):
        x, w = x.requires_grad_(), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
        f = lambda p, u, m=manifold: frechet_mean(m, m.projection(p), u).variance  # noqa: E731
        assert torch.autograd.gradcheck(f, (x, w), atol=1e-6)
        assert torch.autograd.gradgradcheck(f, (x, w), atol=1e-5)
    p = w.detach() / w.detach().sum()
    middle = (p[:, None] * x.detach()).sum(0)
    value = f(x, w)
    torch.testing.assert_close(value, (p * (x.detach() - middle).square().sum(-1)).sum())
    torch.testing.assert_close(torch.autograd.grad(value, x)[0], 2 * p[:, None] * (x.detach() - middle))


def one_more(x, w, extra):
    return torch.cat([x, torch.tensor([extra], dtype=x.dtype)]), torch.cat([w, torch.zeros(1, dtype=w.dtype)])


SPHERE = Sphere().projection(torch.tensor([[1.0, 0.2, 0.1], [0.9, -0.3, 0.2], [1.0, 0.0, -0.2]]).double())
BALL = torch.tensor([[0.1, 0.2], [-0.3, 0.5], [0.4, 0.4]], dtype=torch.float64)
SHEET = PoincareBall().to_hyperboloid(BALL)
NAN, INF = math.nan, math.inf
IDLE = [
    (Sphere(), SPHERE, [[NAN] * 3, [INF, 0, 0], [0.0, 0, 0], "antipode"], ("frechet", "tangent")),
    (PoincareBall(), BALL, [[NAN, 0], [2.0, 0], [INF, 1]], ("frechet", "tangent", "gyro", "einstein")),
    (Hyperboloid(), SHEET, [[NAN] * 3, [0.0, 0, 0], [INF, INF, 0]], ("frechet", "tangent", "lorentz")),
]
MEANS = {
    "frechet": lambda m, x, w: frechet_mean(m, x, w).point,
    "variance": lambda m, x, w: frechet_mean(m, x, w).variance,
    "tangent": tangent_mean,
    "gyro": lambda m, x, w: gyromidpoint(x, w),
    "einstein": lambda m, x, w: einstein_midpoint(x, w),
    "lorentz": lambda m, x, w: lorentz_centroid(x, w),
}


@pytest.mark.parametrize("case", range(len(IDLE)))
def test_points_of_weight_0_do_not_matter(case):
    manifold, x, extras, kinds = IDLE[case]
    w = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for kind in (*kinds, *(["variance"] if "frechet" in kinds else [])):
        f = MEANS[kind]
        leaves = [t.clone().requires_grad_() for t in (x, w)]
        want = f(manifold, *leaves)
        slopes = torch.autograd.grad(want.square().sum(), leaves)
        for extra in extras:
            if extra == "antipode":
                extra = (-f(manifold, x, w)).tolist() if kind != "variance" else [-1.0, 0.0, 0.0]
            more = [t.requires_grad_() for t in one_more(x, w, extra)]
            found = f(manifold, *more)
            torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
            got = torch.autograd.grad(found.square().sum(), more)
            for a, b in zip(got, slopes, strict=True):
                torch.testing.assert_close(a[:3], b, rtol=1e-8, atol=1e-9)
            assert (got[0][3] == 0).all() and got[1].isfinite().all()
            heavy = more[1].detach().clone()
            heavy[3] = 0.1
            if extra[0] != extra[0] or max(map(abs, extra)) == INF:
                with pytest.raises(NotOnManifoldError, match=r"\(3,\)"):
                    f(manifold, more[0].detach(), heavy)


def test_a_weight_of_0_keeps_its_slope_where_the_point_can_be_reached():
    w = torch.tensor([0.2, 0.5, 0.3, 0.0], dtype=torch.float64, requires_grad=True)
    x = torch.cat([BALL, torch.tensor([[0.0, -0.6]], dtype=torch.float64)])
    for kind in ("frechet", "variance", "tangent", "gyro"):
        f = lambda u, k=kind: MEANS[k](PoincareBall(), x, u).sum()  # noqa: E731
        (slope,) = torch.autograd.grad(f(w), w)
        h = torch.tensor([0, 0, 0, 1e-5], dtype=torch.float64)
        with torch.no_grad():
            one, two = f(w + h), f(w + 2 * h)
            torch.testing.assert_close(slope[3], (4 * one - two - 3 * f(w)) / 2e-5, rtol=1e-5, atol=1e-6)


def test_masked_means_run_in_traces():
    poles = torch.tensor([[1.0, 0, 0], [0.0, 1, 0], [-1.0, 0, 0]], dtype=torch.float64)
    w = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    base = poles[0]
    f = lambda x, u: tangent_mean(Sphere(), x, u, base=base)  # noqa: E731
    torch.testing.assert_close(f(poles, w), base)
    torch.testing.assert_close(torch.func.vmap(f)(poles[None], w[None])[0], base)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="eager")(poles, w), base)
    torch._dynamo.reset()
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    turns = torch.stack([torch.eye(3, dtype=torch.float64), half_turn])
    found = frechet_mean(SpecialOrthogonal(), turns, torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found.point, turns[0])
    assert found.unique


def test_queries_that_share_a_padded_point():
    x = torch.cat([BALL, torch.full((1, 2), NAN, dtype=torch.float64)])[None, None]
    w = torch.rand(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w[..., 3] = 0
    for f in (gyromidpoint, einstein_midpoint):
        torch.testing.assert_close(f(x, w), f(x[..., :3, :], w[..., :3]))
    w[1, 2, 3] = 0.1
    with pytest.raises(NotOnManifoldError):
        gyromidpoint(x, w)


def test_points_off_the_space_are_refused_by_every_mean():
    for bad in ([[2.0, 0.0]], [[NAN, 0.0]]):
        x = torch.cat([BALL, torch.tensor(bad, dtype=torch.float64)])
        for f in (gyromidpoint, einstein_midpoint, poincare_from_klein, lambda p: tangent_mean(PoincareBall(), p)):
            with pytest.raises(NotOnManifoldError, match=r"\(3,\)"):
                f(x)
    with pytest.raises(NotOnManifoldError):
        lorentz_centroid(2 * SHEET)


def test_learned_parameters_warn_of_nothing():
    for manifold, x in (
        (Sphere(torch.nn.Parameter(torch.ones(1).double())), SPHERE),
        (PoincareBall(torch.nn.Parameter(torch.tensor(1.0).double())), BALL),
        (Hyperboloid(torch.nn.Parameter(torch.tensor(1.0).double())), SHEET),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mean = frechet_mean(manifold, x)
            mean.point.sum().backward()
        assert mean.unique
