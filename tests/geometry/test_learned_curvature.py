"""Curvatures that learn: no parameter is cut off its graph, and derivatives are those of the published formulas."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aatc.geometry import (
    GeometryError,
    Hyperboloid,
    PoincareBall,
    Product,
    RiemannianStructure,
    Sphere,
    Stereographic,
)
from aatc.geometry.bundles.bundle_charts import ball_chart, ball_frame, sphere_frame, stereographic_charts
from aatc.geometry.manifolds import kappa as trigonometry

D = torch.float64
#: name -> the manifold of a parameter, where its points come from, a value of the parameter
FIXED = {
    "ball": (PoincareBall, lambda m, x: 0.3 * x, 1.3),
    "hyperboloid": (Hyperboloid, lambda m, x: m.projection(x), 0.7),
    "sphere": (Sphere, lambda m, x: m.projection(x), 1.6),
}
KAPPAS = [-3.0, -1e-3, -1e-9, -5e-324, 0.0, 1e-12, 1e-4, 0.8, 3.0]


@pytest.fixture(autouse=True)
def _digits():
    mp.mp.dps = 60
    yield
    mp.mp.dps = 15


def draw(seed, *shape, dtype=D):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D).to(dtype)


def parameter(value, shape=(), dtype=D):
    return torch.nn.Parameter(torch.full(shape, value, dtype=dtype))


def maps(manifold, x, y, v):
    """What every map makes of points and a vector, in one tensor."""
    out = [manifold.dist(x, y), manifold.norm(x, v), manifold.exp(x, v), manifold.log(x, y)]
    out += [manifold.transport(x, y, v), manifold.geodesic(x, y, 0.3), manifold.projection(x)]
    return torch.cat([o.reshape(-1) for o in out])


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("name", FIXED)
def test_every_map_has_the_gradient_of_a_parameter_of_fixed_sign(name, shape):
    make, place, value = FIXED[name]
    x, y = (place(make(value), draw(n, 2, 3)).requires_grad_() for n in (0, 1))
    v = (0.2 * make(value).tangent_projection(x, draw(2, 2, 3))).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, *t: maps(make(p), *t), (parameter(value, shape), x, y, v))


@pytest.mark.parametrize("kappa", KAPPAS)
def test_every_map_has_the_gradient_of_a_curvature_of_any_sign(kappa):
    x, y, v = (0.15 * draw(n, 2, 3) for n in range(3))
    leaves = (parameter(kappa), *(t.requires_grad_() for t in (x, y, v)))
    assert torch.autograd.gradcheck(lambda k, *t: maps(Stereographic(k), *t), leaves)


def test_second_derivatives_pass_through_flat_space():
    x, y, v = (0.25 * draw(n, 1, 2) for n in range(3))
    leaves = (parameter(0.0), *(t.clone().requires_grad_() for t in (x, y, v)))
    assert torch.autograd.gradgradcheck(lambda k, *t: maps(Stereographic(k), *t), leaves, fast_mode=True)


# --- the published formulas, in 60 digits ----------------------------------------------------------------------------
def mobius(k, x, y):
    xy, xx, yy = (sum(a * b for a, b in zip(*p)) for p in ((x, y), (x, x), (y, y)))
    bottom = 1 - 2 * k * xy + k**2 * xx * yy
    return [((1 - 2 * k * xy - k * yy) * a + (1 + k * xx) * b) / bottom for a, b in zip(x, y)]


def size(x):
    return mp.sqrt(sum(a * a for a in x))


def tangent(k, t):
    root = mp.sqrt(mp.mpc(k))
    return (mp.tan(root * t) / root).real


def arctangent(k, t):
    root = mp.sqrt(mp.mpc(k))
    return (mp.atan(root * t) / root).real


def off_zero(k):
    """No formula with 1/√κ has a value at 0: next to it, where its limit lies 1e-40 away."""
    return mp.mpf(k) if abs(k) > 1e-40 else mp.mpf("1e-40")


def distance(k, x, y):
    k = off_zero(k)
    return 2 * arctangent(k, size(mobius(k, [-a for a in x], y)))


def exponential(k, x, v):
    k = off_zero(k)
    factor = 2 / (1 + k * sum(a * a for a in x))
    return mobius(k, x, [a / size(v) * tangent(k, factor * size(v) / 2) for a in v])


def logarithm(k, x, y):
    k = off_zero(k)
    w = mobius(k, [-a for a in x], y)
    factor = 2 / (1 + k * sum(a * a for a in x))
    return [2 / factor * arctangent(k, size(w)) * a / size(w) for a in w]


def gyration(k, u, v, w):
    return mobius(k, [-a for a in mobius(k, u, v)], mobius(k, u, mobius(k, v, w)))


def transported(k, x, y, v):
    """λ_x/λ_y gyr[y, −x]v, the gyration by its definition; it is linear, so of a small multiple."""
    k, small = off_zero(k), mp.mpf("1e-6")
    turned = [a / small for a in gyration(k, y, [-a for a in x], [small * a for a in v])]
    ratio = (1 + k * sum(a * a for a in y)) / (1 + k * sum(a * a for a in x))
    return [ratio * a for a in turned]


def slope(f, k, *points):
    """df/dκ, by a difference across κ: of 60 digits 25 are left."""
    h = mp.mpf("1e-17")
    up, down = f(mp.mpf(k) + h, *points), f(mp.mpf(k) - h, *points)
    pair = zip(up, down) if isinstance(up, list) else [(up, down)]
    return [(a - b) / (2 * h) for a, b in pair]


def exact(x):
    return [mp.mpf(a) for a in x.detach().double().tolist()]


def as_tensor(values):
    return torch.tensor([float(a) for a in (values if isinstance(values, list) else [values])], dtype=D)


FORMULAS = {"dist": distance, "exp": exponential, "log": logarithm, "transport": transported}


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("kappa", [*KAPPAS, -1e4, 1e4, 0.035, -0.045])
def test_values_and_slopes_in_curvature_are_those_of_the_gyrovector_formulas(kappa, dtype):
    reach = 0.6 / max(1.0, abs(kappa)) ** 0.5
    x, y, v = (
        reach * torch.nn.functional.normalize(draw(n, 3), dim=0).to(dtype) * r for n, r in ((3, 1), (4, 0.7), (5, 0.5))
    )
    k = parameter(kappa, dtype=dtype)
    at = k.item()
    tolerance = 300 * torch.finfo(dtype).eps
    for name, formula in FORMULAS.items():
        points = (x, y, v) if name == "transport" else (x, v) if name == "exp" else (x, y)
        found = getattr(Stereographic(k), name)(*points)
        want = as_tensor(formula(mp.mpf(at), *map(exact, points)))
        assert ((found.reshape(-1).double() - want).abs().max() / want.abs().max()) < tolerance, name
        slopes = torch.autograd.functional.jacobian(
            lambda c, p=points, n=name: getattr(Stereographic(c), n)(*p), k.detach()
        )
        want = as_tensor(slope(formula, at, *map(exact, points)))
        assert ((slopes.reshape(-1).double() - want).abs().max() / want.abs().max()) < 20 * tolerance, name
        number = getattr(Stereographic(at), name)(*points)
        assert (number - found).abs().max() <= tolerance * found.abs().max(), name


def test_fixed_signs_are_the_same_space():
    x, y = 0.2 * draw(0, 5, 3), 0.2 * draw(1, 5, 3)
    for c in (0.3, 2.0):
        torch.testing.assert_close(Stereographic(-c).dist(x, y), PoincareBall(c).dist(x, y), rtol=0, atol=1e-14)
        sphere = Sphere(c**-0.5)

        def lifted(x, c=c):  # the inverse of the projection from the south pole
            square = c * x.square().sum(-1, keepdim=True)
            return torch.cat([(1 - square) * c**-0.5, 2 * x], -1) / (1 + square)

        torch.testing.assert_close(Stereographic(c).dist(x, y), sphere.dist(lifted(x), lifted(y)), rtol=0, atol=1e-14)
    torch.testing.assert_close(Stereographic(0.0).dist(x, y), 2 * (x - y).norm(dim=-1), rtol=1e-15, atol=0)


@given(z=st.floats(-0.5, 0.5), t=st.floats(0.1, 3))
def test_ratios_are_smooth_where_series_and_closed_forms_meet(z, t):
    k = parameter(z / t**2)
    length = torch.tensor([t], dtype=D)
    forms = {
        trigonometry.SIN: lambda w: mp.sin(w) / w,
        trigonometry.COS: mp.cos,
        trigonometry.TAN: lambda w: mp.tan(w) / w,
        trigonometry.ARCSIN: lambda w: mp.asin(w) / w,
        trigonometry.ARCTAN: lambda w: mp.atan(w) / w,
    }
    at = mp.mpf(k.item()) * mp.mpf(t) ** 2
    for ratio, form in forms.items():

        def value(u, form=form):
            return form(mp.sqrt(mp.mpc(u if abs(u) > 1e-40 else 1e-40))).real

        found = ratio(k, length)
        (grad,) = torch.autograd.grad(found.sum(), k)
        assert abs(found.item() - value(at)) < 1e-14
        h = mp.mpf("1e-17")
        assert abs(grad.item() / t**2 - (value(at + h) - value(at - h)) / (2 * h)) < 1e-12


def test_the_sphere_reaches_round_to_its_antipodes():
    kappa = 2.0
    space = Stereographic(parameter(kappa))
    for step in (1e-3, 1e-6, 1e-9):
        x = torch.tensor([[0.9, 0.3]], dtype=D)
        antipode = -x / (kappa * x.square().sum())
        y = antipode + step * torch.tensor([[0.2, -0.5]], dtype=D)
        want = distance(kappa, exact(x[0]), exact(y[0]))
        assert abs(space.dist(x, y).item() - want) < 1e-14
        assert torch.autograd.grad(space.dist(x, y).sum(), space.curvature)[0].isfinite()
        assert abs(space.norm(x, space.log(x, y)).item() - want) < 1e-6
    half = torch.tensor([[0.5, 0.0]], dtype=D)  # opposite to (−1, 0) in curvature 2
    distances = space.dist(half, torch.tensor([[-1.0, 0.0]], dtype=D))
    assert abs(distances.item() - math.pi / kappa**0.5) < 1e-14
    assert torch.autograd.grad(distances.sum(), space.curvature)[0].isfinite()
    for call in (space.log, lambda a, b: space.geodesic(a, b, 0.5), lambda a, b: space.transport(a, b, a)):
        with pytest.raises(GeometryError, match="antipodal"):
            call(half, torch.tensor([[-1.0, 0.0]], dtype=D))


# --- training, tracing ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("start", "goal"), [(-0.4, 0.6), (0.7, -0.5), (0.0, 0.4)])
def test_training_finds_a_curvature_of_the_other_sign(start, goal):
    x, y = 0.25 * draw(0, 40, 3), 0.25 * draw(1, 40, 3)
    want = Stereographic(goal).dist(x, y)
    kappa = parameter(start)
    space = Stereographic(kappa)  # made once, before the first step
    optimizer = torch.optim.LBFGS([kappa], max_iter=30, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        off = (space.dist(space.projection(x), space.projection(y)) - want).square().mean()
        off.backward()
        return off

    for _ in range(3):
        optimizer.step(loss)
    assert abs(kappa.item() - goal) < 1e-4


def test_one_trace_serves_all_curvatures():
    x, y, v = (0.25 * draw(n, 2, 3) for n in range(3))
    count = 0

    def backend(graph, _):
        nonlocal count
        count += 1
        return graph

    torch._dynamo.reset()
    traced = torch.compile(lambda k: maps(Stereographic(k), x, y, v), backend=backend, fullgraph=True)
    for kappa in (-0.9, 0.0, 1e-7, 0.9):
        k = parameter(kappa)
        eager = maps(Stereographic(k), x, y, v)
        pull = torch.randn_like(eager)
        torch.testing.assert_close(traced(k), eager, rtol=1e-13, atol=1e-14)
        found, want = (torch.autograd.grad(f, k, pull)[0] for f in (traced(k), eager))
        torch.testing.assert_close(found, want, rtol=1e-11, atol=1e-12)
    assert count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("make", [Stereographic, PoincareBall, Hyperboloid, Sphere])
def test_curvatures_are_mapped_over(make):
    values = torch.tensor([0.4, 0.9, 1.7], dtype=D)
    x, y = 0.25 * draw(0, 3, 3), 0.25 * draw(1, 3, 3)

    def between(k, a, b):
        return make(k).dist(*(make(k).projection(p) for p in (a, b)))

    leaves = [k.clone().requires_grad_() for k in values]
    each = [between(k, a, b) for k, a, b in zip(leaves, x, y)]
    torch.testing.assert_close(torch.func.vmap(between)(values, x, y), torch.stack(each).detach(), rtol=1e-14, atol=0)
    want = torch.stack([torch.autograd.grad(d, k)[0] for d, k in zip(each, leaves)])
    found = torch.func.vmap(torch.func.grad(between))(values, x, y)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-15)


def test_results_follow_the_points_and_a_curvature_loses_no_digits():
    x = 0.2 * draw(0, 4, 3, dtype=torch.float32)
    for make in (Stereographic, PoincareBall, Hyperboloid, Sphere):
        for dtype in (torch.float32, D):
            space = make(parameter(0.9, dtype=dtype))
            point = space.projection(x)
            assert point.dtype == space.dist(point[0], point[1]).dtype == torch.float32
    wide, narrow = (Hyperboloid(parameter(3.0, dtype=t)) for t in (D, torch.float32))
    point = wide.projection(x.double())
    torch.testing.assert_close(narrow.projection(x.double()), point, rtol=1e-15, atol=0)


# --- other places that take a curvature -------------------------------------------------------------------------------
def test_metrics_in_charts_and_frames_of_bundles_learn():
    x = 0.2 * draw(0, 2, 2) + 0.5
    check = torch.autograd.gradcheck
    for make in (
        lambda p: RiemannianStructure.sphere(p),
        lambda p: RiemannianStructure.stereographic(2, p),
        lambda p: RiemannianStructure.stereographic(2, -p),
        lambda p: RiemannianStructure.poincare_ball(2, p),
    ):
        assert check(lambda p, make=make: make(p).metric_tensor(x), (parameter(0.7),))
        assert check(lambda p, make=make: make(p).exp(x, 0.1 * x), (parameter(0.7),), atol=1e-4)
    space = Product([(Sphere(parameter(1.2)), (3,)), (Hyperboloid(parameter(0.8)), (3,))])
    found = space.dist(*(space.projection(draw(n, 6)) for n in (0, 1)))
    leaves = [space.factors[0][0].radius, space.factors[1][0].c]
    assert all(g != 0 for g in torch.autograd.grad(found, leaves))
    for make in (
        lambda p: stereographic_charts(Sphere(p))[0].point(x),
        lambda p: stereographic_charts(Sphere(p))[1].coordinates(draw(0, 2, 3).abs()),
        lambda p: ball_chart(Hyperboloid(p)).point(x),
        lambda p: ball_chart(Hyperboloid(p)).coordinates(draw(0, 2, 3)),
        lambda p: sphere_frame(p, 1)(draw(0, 2, 3)),
        lambda p: ball_frame(p)(draw(0, 2, 3).abs()),
    ):
        assert check(make, (parameter(0.9),))


# --- refused ----------------------------------------------------------------------------------------------------------
WRONG = {
    "text": "1.0", "none": None, "complex": 1j, "list": [1.0], "huge": 10**400, "nan": math.nan, "infinity": -math.inf,
    "shape": torch.ones(2), "matrix": torch.ones(1, 1), "empty": torch.ones(0), "integer": torch.tensor(1),
    "complex tensor": torch.tensor(1j), "nan tensor": torch.tensor(math.nan), "infinite": torch.tensor(math.inf),
}  # fmt: skip
MAKERS = {
    "ball": PoincareBall,
    "hyperboloid": Hyperboloid,
    "sphere": Sphere,
    "stereographic": Stereographic,
    "chart": lambda p: RiemannianStructure.stereographic(2, p),
    "chart of the ball": lambda p: RiemannianStructure.poincare_ball(2, p),
    "chart of the sphere": RiemannianStructure.sphere,
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", MAKERS)
def test_what_is_no_curvature_is_a_typed_error(name, wrong):
    with pytest.raises(GeometryError):
        MAKERS[name](WRONG[wrong])


@pytest.mark.parametrize("wrong", [0.0, -1.0, torch.tensor(-1.0), torch.zeros(1), parameter(-2.0)])
@pytest.mark.parametrize("name", ["ball", "hyperboloid", "sphere", "chart of the ball", "chart of the sphere"])
def test_a_curvature_of_the_wrong_sign_is_a_typed_error(name, wrong):
    with pytest.raises(GeometryError, match="positive"):
        MAKERS[name](wrong)


def test_a_curvature_that_has_left_its_range_is_found_when_it_is_used():
    for make in (PoincareBall, Hyperboloid, Sphere, Stereographic, lambda c: Product([(PoincareBall(c), (2,))])):
        c = parameter(1.0)
        space = make(c)
        x = torch.tensor([0.6, 0.8], dtype=D) * (0.5 if make not in (Sphere, Hyperboloid) else 1)
        for wrong in (math.nan, math.inf) if make is Stereographic else (math.nan, -0.5):
            with torch.no_grad():
                c.fill_(wrong)
            with pytest.raises(GeometryError, match="finite, got"):
                space.dist(x, x)


@pytest.mark.parametrize("make", [np.float32, np.float64, np.array, int, torch.tensor])
def test_numbers_of_any_kind_are_curvatures(make):
    x, y = torch.tensor([0.2, 0.1], dtype=D), torch.tensor([-0.1, 0.3], dtype=D)
    assert Stereographic(make(1.0)).dist(x, y) == Stereographic(1.0).dist(x, y)
    assert PoincareBall(make(1.0)).dist(x, y) == PoincareBall(1.0).dist(x, y)
    assert str(PoincareBall(2)) == "PoincareBall(c=2.0)" and "2.5" in repr(Stereographic(parameter(2.5)))
