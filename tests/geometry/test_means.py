"""Weighted means: closed forms against each other and against minimisation, derivatives against differences."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from aatc.geometry import (
    SPD,
    Euclidean,
    GeometryError,
    Hyperboloid,
    LogEuclideanSPD,
    MeanError,
    PoincareBall,
    PointShapeError,
    SpecialOrthogonal,
    Sphere,
    einstein_midpoint,
    frechet_mean,
    gyromidpoint,
    klein_from_poincare,
    lorentz_centroid,
    poincare_from_klein,
    tangent_mean,
)
from tests.geometry.every_manifold import MANIFOLDS, everywhere, tangent


def near(a, b, atol=1e-10):
    np.testing.assert_allclose(np.asarray(a.detach()), np.asarray(b), rtol=0, atol=atol)


def cloud(name, batch=(3,), count=5, size=0.5, seed=0):
    """Points around one, and weights."""
    manifold, shape = MANIFOLDS[name]
    generator = torch.Generator().manual_seed(seed)
    middle = manifold.random_point((*batch, 1, *shape), generator, dtype=torch.float64)
    middle = middle.expand(*batch, count, *shape)
    v = tangent(manifold, middle, seed)
    x = manifold.exp(middle, v * (size / manifold.norm(middle, v)).reshape(*batch, count, *[1] * len(shape)))
    return manifold, x, torch.rand(*batch, count, generator=generator, dtype=torch.float64) + 0.1


@pytest.mark.parametrize("c", [1.0, 0.3])
def test_the_three_hyperbolic_midpoints_are_one_in_three_models(c):
    ball, space = PoincareBall(c), Hyperboloid(c)
    generator = torch.Generator().manual_seed(0)
    x = ball.random_point((4, 6, 3), generator, dtype=torch.float64)
    w = torch.rand(4, 6, generator=generator, dtype=torch.float64)
    middle = gyromidpoint(x, w, c=c)
    near(ball.to_hyperboloid(middle), lorentz_centroid(ball.to_hyperboloid(x), w, c=c))
    klein = klein_from_poincare(x, c=c)
    near(poincare_from_klein(klein, c=c), x)
    near(klein, (ball.to_hyperboloid(x) / ball.to_hyperboloid(x)[..., :1])[..., 1:] / math.sqrt(c))
    near(einstein_midpoint(klein, w, c=c), klein_from_poincare(middle, c=c))
    # by hand: the sum, scaled back to the hyperboloid
    y = ball.to_hyperboloid(x).numpy()
    total = (w.numpy()[..., None] * y).sum(1)
    size = np.sqrt(c * (total[:, 0] ** 2 - (total[:, 1:] ** 2).sum(-1)))
    near(lorentz_centroid(torch.tensor(y), w, c=c), total / size[:, None])
    assert space.belongs(lorentz_centroid(torch.tensor(y), w, c=c), 1e-12).all()
    half = gyromidpoint(x[:, :2], c=c)  # two equal weights: the middle of the geodesic
    near(half, ball.geodesic(x[:, 0], x[:, 1], 0.5))


def test_means_far_out_and_at_the_origin_have_gradients():
    for f, x in (
        (gyromidpoint, torch.tensor([[0.0, 0.0], [0.999, 0.0]], dtype=torch.float64)),
        (gyromidpoint, torch.zeros(3, 2, dtype=torch.float64)),
        (einstein_midpoint, torch.tensor([[0.0, 0.0], [0.0, 0.99]], dtype=torch.float64)),
        (lorentz_centroid, Hyperboloid().projection(torch.tensor([[1.0, 9.0, 0.0], [1.0, 0.0, 0.0]]).double())),
    ):
        w = torch.tensor([0.3, 0.7, 0.5][: len(x)], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(f, (x.clone().requires_grad_(), w), rtol=1e-4)
        near(f(x[:1]), x[0], 1e-12)


def test_queries_that_share_points_average_them_as_attention_does():
    generator = torch.Generator().manual_seed(0)
    x = PoincareBall().random_point((2, 1, 7, 3), generator, dtype=torch.float64)
    weights = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64).softmax(-1)
    found = gyromidpoint(x, weights)
    assert found.shape == (2, 5, 3)
    near(found[1, 2], gyromidpoint(x[1, 0], weights[1, 2]))
    compiled = torch.compile(gyromidpoint, fullgraph=True, backend="eager")
    near(compiled(x, weights), found)
    near(torch.func.vmap(lorentz_centroid)(PoincareBall().to_hyperboloid(x[:, 0])), lorentz_centroid(
        PoincareBall().to_hyperboloid(x[:, 0])))  # fmt: skip


@everywhere
def test_the_gradient_of_the_variance_is_zero_at_the_mean_and_it_is_a_minimum(name):
    manifold, x, w = cloud(name)
    mean = frechet_mean(manifold, x, w)
    assert mean.converged.all() and mean.unique.all() and manifold.belongs(mean.point, 1e-9).all()
    p = w / w.sum(-1, keepdim=True)
    variance = lambda m: (p * manifold.dist(m.unsqueeze(1), x) ** 2).sum(-1)  # noqa: E731
    near(mean.variance, variance(mean.point), 1e-12)
    step = tangent(manifold, mean.point, 4, 1.0)
    step = step / manifold.norm(mean.point, step).reshape(-1, *[1] * manifold.point_ndim)
    there, back = (variance(manifold.exp(mean.point, t * step)) for t in (1e-4, -1e-4))
    assert ((there - back).abs() < 1e-10).all()
    assert (there + back - 2 * mean.variance > 1e-9).all()
    one = tangent_mean(manifold, x, w, base=mean.point)
    near(one, mean.point, 1e-9)


def test_means_with_closed_forms():
    _, x, w = cloud("spd", size=1.0)
    p = (w / w.sum(-1, keepdim=True)).numpy()
    near(frechet_mean(Euclidean(), x[..., 0], w).point, np.einsum("bm,bmn->bn", p, x[..., 0].numpy()))
    logs = np.stack([[scipy.linalg.logm(m) for m in row] for row in x.numpy()])
    flat = np.einsum("bm,bmij->bij", p, logs)
    near(frechet_mean(LogEuclideanSPD(), x, w).point, np.stack([scipy.linalg.expm(m) for m in flat]))
    near(frechet_mean(SPD(), x[:, :2]).point, SPD().geodesic(x[:, 0], x[:, 1], 0.5))
    a, b = x[0, 0].numpy(), x[0, 1].numpy()
    root = scipy.linalg.sqrtm(a)
    back = np.linalg.inv(root)
    near(frechet_mean(SPD(), x[0, :2]).point, root @ scipy.linalg.sqrtm(back @ b @ back) @ root)


@pytest.mark.parametrize("name", ["sphere", "ball", "spd", "simplex"])
def test_derivatives_of_the_mean_are_those_of_the_implicit_function(name):
    manifold, x, w = cloud(name, ())
    change, turn = tangent(manifold, x, 5, 0.3), torch.rand_like(w)
    weight = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def f(s):
        moved = manifold.exp(x, s * change)
        return (frechet_mean(manifold, moved, w + s * turn).point * weight).sum()

    s = torch.tensor(0.01, dtype=torch.float64)
    h = 2e-3

    def differences(g):
        return (8 * (g(s + h) - g(s - h)) - (g(s + 2 * h) - g(s - 2 * h))) / (12 * h)

    def slope(t):
        t = t.detach().requires_grad_()
        return torch.autograd.grad(f(t), t)[0]

    one = s.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(one), one, create_graph=True)
    (second,) = torch.autograd.grad(first, one)
    assert math.isclose(float(first.detach()), float(differences(f).detach()), rel_tol=1e-5, abs_tol=1e-6)
    assert math.isclose(float(second), float(differences(slope)), rel_tol=1e-4, abs_tol=1e-5)


def test_wide_data_in_negative_curvature_converges():
    generator = torch.Generator().manual_seed(0)
    space = Hyperboloid()
    v = 6 * torch.randn(4, 9, 3, generator=generator, dtype=torch.float64)
    vertex = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    x = space.exp(vertex, torch.cat([0 * v[..., :1], v], -1))
    mean = frechet_mean(space, x)
    assert mean.converged.all() and mean.unique.all()
    root = torch.randn(3, 8, 4, 4, generator=generator, dtype=torch.float64)
    assert frechet_mean(SPD(), root @ root.mT + 1e-3 * torch.eye(4, dtype=torch.float64)).converged.all()
    y = space.geodesic(vertex, x, 0.2)
    single = frechet_mean(space, y.float())
    near(space.dist(single.point.double(), frechet_mean(space, y).point), 0, 1e-5)


def test_what_has_no_mean_is_a_typed_error_or_a_flag():
    poles = torch.tensor([[0.0, 0, 1], [0, 0, -1]], dtype=torch.float64)
    with pytest.raises(MeanError, match="no mean to start from"):
        frechet_mean(Sphere(), poles)
    ring = torch.stack([torch.tensor([math.cos(t), math.sin(t), 0.3]) for t in (0.0, 2.1, 4.2)]).double()
    wide = frechet_mean(Sphere(), Sphere().projection(ring))
    assert wide.converged and wide.unique
    far = torch.tensor([[1.0, 0, 0], [-0.99, 0.1, 0], [-0.99, -0.1, 0.0]], dtype=torch.float64)
    loose = frechet_mean(Sphere(), Sphere().projection(far), torch.tensor([0.6, 0.2, 0.2]).double(), strict=False)
    assert not loose.unique
    x = SpecialOrthogonal().random_point((2, 6, 3, 3), torch.Generator().manual_seed(1), dtype=torch.float64)
    spread = frechet_mean(SpecialOrthogonal(), x, strict=False)
    assert not spread.unique.any()
    space, far, _ = cloud("hyperboloid", size=9.0)
    with pytest.raises(MeanError, match="not found within 1 step") as caught:
        frechet_mean(space, far[None], max_iterations=1, tolerance=1e-12)
    assert caught.value.indices and len(caught.value.indices[0]) == 2
    flagged = frechet_mean(space, far, max_iterations=1, tolerance=1e-12, strict=False)
    assert not flagged.converged.any() and flagged.iterations == 1


def test_one_point_equal_points_and_weights_of_zero():
    manifold, x, w = cloud("spd")
    near(frechet_mean(manifold, x[:, :1]).point, x[:, 0], 1e-12)
    near(frechet_mean(manifold, x[:, :1].expand_as(x), w).point, x[:, 0], 1e-12)
    only = torch.zeros_like(w)
    only[:, 2] = 3.0
    near(frechet_mean(manifold, x, only).point, x[:, 2], 1e-11)
    near(frechet_mean(manifold, x, w[0]).point[0], frechet_mean(manifold, x[0], 7 * w[0]).point, 1e-11)
    assert frechet_mean(manifold, x[:0], w[:0]).point.shape == (0, 3, 3)


def test_wrong_weights_and_points_are_typed_errors():
    x = torch.zeros(4, 2)
    for call in (
        lambda: gyromidpoint(x, torch.tensor([1.0, -1.0, 1.0, 1.0])),
        lambda: gyromidpoint(x, torch.zeros(4)),
        lambda: einstein_midpoint(x, torch.tensor([1.0, math.nan, 1.0, 1.0])),
        lambda: frechet_mean(PoincareBall(), x, torch.full((4,), math.inf)),
    ):
        with pytest.raises(GeometryError, match="not negative"):
            call()
    for call in (
        lambda: gyromidpoint(x, torch.ones(3)),
        lambda: gyromidpoint(x[0]),
        lambda: gyromidpoint(x[:0]),
        lambda: lorentz_centroid(x, torch.ones(4, dtype=torch.long)),
        lambda: tangent_mean(PoincareBall(), x.expand(3, 4, 2), torch.ones(2, 4)),
        lambda: frechet_mean(SPD(), torch.eye(3)),
    ):
        with pytest.raises(PointShapeError):
            call()


def test_curvatures_of_means_learn():
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(4)
    x = 0.3 * PoincareBall(0.7).random_point((2, 5, 3), generator, dtype=torch.float64)
    w = torch.rand(2, 5, generator=generator, dtype=torch.float64) + 0.1

    def means(c):
        ball = PoincareBall(c)
        centroid = lorentz_centroid(ball.to_hyperboloid(x), w, c=c)
        klein = klein_from_poincare(x, c=c)
        back = poincare_from_klein(einstein_midpoint(klein, w, c=c), c=c)
        return gyromidpoint(x, w, c=c), ball.from_hyperboloid(centroid), back, tangent_mean(ball, x, w)

    assert torch.autograd.gradcheck(means, (c,))
    one, two, three, _ = means(c)
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(one, three)


@pytest.mark.parametrize("name", ["ball", "hyperboloid", "sphere"])
def test_the_fixed_point_of_a_learned_curvature_follows_it(name):
    """The Fréchet mean's slope in the curvature, against differences of means found anew."""
    c = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    flat = 0.4 * torch.randn(5, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def mean(c):
        if name == "ball":
            return frechet_mean(PoincareBall(c), flat).point
        if name == "hyperboloid":
            time = (1 / c + flat.square().sum(-1, keepdim=True)).sqrt()
            return frechet_mean(Hyperboloid(c), torch.cat([time, flat], -1)).point[1:]
        height = (c**2 - flat.square().sum(-1, keepdim=True)).sqrt()
        return frechet_mean(Sphere(c), torch.cat([height, flat], -1)).point[1:]

    (slope,) = torch.autograd.grad(mean(c).sum(), c)
    h = 1e-4
    with torch.no_grad():
        difference = (mean(c + h).sum() - mean(c - h).sum()) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("r", [6.0, 8.0])
def test_means_of_single_points_far_out_are_those_points(r):
    angles = torch.linspace(0, 6, 40)
    direction = torch.stack([angles.cos(), angles.sin()], -1)
    ball, space = PoincareBall(), Hyperboloid()
    x = math.tanh(r / 2) * direction
    y = space.projection(torch.cat([torch.zeros(40, 1), math.sinh(r) * direction], -1))
    assert ball.dist(gyromidpoint(x[:, None]), x).max() < 2e-4 * math.exp(r - 6)  # of a unit in the last place of x
    assert space.dist(lorentz_centroid(y[:, None]), y).max() < 1e-5
    edge = torch.tensor([[0.99999, 0.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(gyromidpoint(edge)[0], edge)
    torch.testing.assert_close(slope, torch.tensor([[1.0, 0.0]]), rtol=1e-3, atol=1e-3)
