"""Maps of manifolds in single precision, far out and near the edges, against mpmath on the very same numbers."""

import math

import mpmath as mp
import pytest
import torch

from aatc.geometry import GeometryError, Hyperboloid, PoincareBall, Simplex, Sphere

N = 40


@pytest.fixture(autouse=True)
def _digits():
    with mp.workdps(60):
        yield


def numbers(x):
    return [mp.mpf(float(a)) for a in x]


def off(found, want):
    """Relative to the largest coordinate."""
    want = torch.tensor([float(a) for a in want], dtype=torch.float64)
    return float((found.double() - want).abs().max() / want.abs().max())


def in_ball(largest, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, 3, generator=g)
    return x / x.norm(dim=-1, keepdim=True) * largest * torch.rand(N, 1, generator=g) ** 0.1


def mobius(x, y):
    xy, xx, yy = (sum(a * b for a, b in zip(u, v, strict=True)) for u, v in ((x, y), (x, x), (y, y)))
    return [((1 + 2 * xy + yy) * a + (1 - xx) * b) / (1 + 2 * xy + xx * yy) for a, b in zip(x, y, strict=True)]


def scaled(f, x):
    n = mp.sqrt(sum(a * a for a in x))
    return [f(n) / n * a for a in x]


@pytest.mark.parametrize("largest", [0.5, 0.99, 0.999])
def test_maps_of_the_ball_are_gyrovector_formulas(largest):
    ball = PoincareBall()
    x, y = in_ball(largest, 0), in_ball(largest, 1)
    v = ball.log(x, y)
    end, middle, carried = ball.exp(x, v), ball.geodesic(x, y, 0.3), ball.transport(x, y, v)
    for n in range(N):
        p, q, u = numbers(x[n]), numbers(y[n]), numbers(v[n])
        # gyr[y, −x] v, linear in v, of which a small part stays inside
        back, w = [-a for a in p], [mp.mpf(10) ** -25 * a for a in u]
        turned = mobius([-a for a in mobius(q, back)], mobius(q, mobius(back, w)))
        ratio = (1 - sum(a * a for a in q)) / (1 - sum(a * a for a in p)) * mp.mpf(10) ** 25
        assert off(carried[n], [ratio * a for a in turned]) <= 1e-6
        gap = 1 - sum(a * a for a in p)
        away = mobius([-a for a in p], q)
        assert off(v[n], scaled(lambda t, gap=gap: gap * mp.atanh(t), away)) <= 1e-6
        assert off(end[n], mobius(p, scaled(lambda t, gap=gap: mp.tanh(t / gap), u))) <= 1e-6
        part = scaled(lambda t: mp.tanh(mp.mpf(0.3) * mp.atanh(t)), away)
        assert off(middle[n], mobius(p, part)) <= 1e-6


@pytest.mark.parametrize(("dtype", "r"), [(torch.float32, 0.9999), (torch.float64, 1 - 4e-9), (torch.float32, 0.3)])
@pytest.mark.parametrize("c", [1.0, 4.0])
def test_the_ball_is_crossed_from_edge_to_edge(dtype, r, c):
    ball = PoincareBall(c)
    x = torch.tensor([r, 0.0], dtype=dtype) / math.sqrt(c)
    y = torch.stack([-x, -x.flip(0), 0.5 * x, torch.zeros_like(x)])
    end = ball.exp(x, ball.log(x, y))
    # in double precision the distance from the edge, 4e-9, is that of the third of these points to half a digit
    torch.testing.assert_close(end, y, rtol=0, atol=1e-6 if dtype == torch.float32 else 3e-9)
    assert (ball.geodesic(x, -x, 0.5).abs() <= 1e-6).all()


def test_exp_of_the_ball_has_derivatives_where_its_forms_meet():
    ball = PoincareBall()
    x = torch.tensor([[0.9, 0.1], [0.0, 0.0], [0.9, 0.0], [-0.5, 0.3]], dtype=torch.float64, requires_grad=True)
    v = torch.tensor([[-0.5, 0.1], [0.3, 0.0], [0.0, 0.0], [0.2, -0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ball.exp, (x, v))
    moving = [0, 1, 3]  # a vector of length 0 has no second derivative
    again = [t.detach()[moving].requires_grad_() for t in (x, v)]
    assert torch.autograd.gradgradcheck(ball.exp, again)
    batched = torch.func.vmap(ball.exp)(x, v)
    torch.testing.assert_close(batched, ball.exp(x, v))


def lorentz(x, y):
    return sum(a * b for a, b in zip(x[1:], y[1:], strict=True)) - x[0] * y[0]


def lifted(x):
    """The point above given coordinates 1 … n."""
    space = numbers(x[1:])
    return [mp.sqrt(1 + sum(a * a for a in space)), *space]


@pytest.mark.parametrize("largest", [1.0, 5.0, 12.0])
def test_maps_of_the_hyperboloid_are_its_formulas(largest):
    g = torch.Generator().manual_seed(2)
    manifold = Hyperboloid()

    def points():
        u, r = torch.randn(N, 3, generator=g), largest * torch.rand(N, 1, generator=g)
        return manifold.projection(torch.cat([r, r.sinh() * u / u.norm(dim=-1, keepdim=True)], -1))

    x, y = points(), points()
    d, v, middle = manifold.dist(x, y), manifold.log(x, y), manifold.geodesic(x, y, 0.3)
    w = torch.cat([torch.zeros(N, 1), torch.randn(N, 3, generator=g)], -1)
    end = manifold.exp(x, w)
    for n in range(N):
        p, q = lifted(x[n]), lifted(y[n])
        angle = mp.acosh(-lorentz(p, q))
        assert abs(float(d[n]) - float(angle)) <= 1e-6 * float(angle)
        along = [(b - mp.cosh(angle) * a) * angle / mp.sinh(angle) for a, b in zip(p, q, strict=True)]
        assert off(v[n], along) <= 1e-6
        t = mp.mpf(0.3)
        slerp = [
            (mp.sinh((1 - t) * angle) * a + mp.sinh(t * angle) * b) / mp.sinh(angle) for a, b in zip(p, q, strict=True)
        ]
        assert off(middle[n], slerp) <= 1e-6
        space = numbers(w[n, 1:])
        u = [sum(a * b for a, b in zip(p[1:], space, strict=True)) / p[0], *space]
        length = mp.sqrt(lorentz(u, u))
        want = [mp.cosh(length) * a + mp.sinh(length) / length * b for a, b in zip(p, u, strict=True)]
        assert off(end[n], want) <= 1e-6


def test_the_middle_of_orthogonal_points_of_the_hyperboloid():
    s = math.sinh(5)
    x, y = torch.tensor([math.cosh(5), s, 0.0]), torch.tensor([math.cosh(5), 0.0, s])
    exact = 0.5 / math.sqrt(0.5 * (1 + math.cosh(5) ** 2))
    want = torch.tensor([math.cosh(5) * 2, s, s], dtype=torch.float64) * exact
    torch.testing.assert_close(Hyperboloid().geodesic(x, y, 0.5).double(), want, rtol=2e-6, atol=0)


def test_a_geodesic_leaves_a_face_of_the_simplex_and_a_vector_does_not():
    simplex = Simplex()
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    path = simplex.geodesic(p, q, torch.tensor([0.0, 0.5, 1.0]))
    root = p.sqrt() + q.sqrt()
    torch.testing.assert_close(path, torch.stack([p, (root / root.norm()).square(), q]))
    torch.testing.assert_close(path.sum(-1), torch.ones(3))
    with pytest.raises(GeometryError, match=r"geodesic\(\) does"):
        simplex.log(p, q)
    back = torch.tensor([0.2, 0.8, 0.0])
    torch.testing.assert_close(simplex.norm(p, simplex.log(p, back)), simplex.dist(p, back))


@pytest.mark.parametrize("radius", [1.0, 3.0])
@pytest.mark.parametrize("near", [1e-1, 1e-3, 1e-5])
def test_log_of_the_sphere_has_the_length_of_the_way_near_the_antipode(near, radius):
    sphere = Sphere(radius)
    g = torch.Generator().manual_seed(3)
    x = sphere.projection(torch.randn(50, 5, generator=g))
    y = sphere.projection(-x + near * radius * torch.randn(50, 5, generator=g))
    v = sphere.log(x, y)
    torch.testing.assert_close(sphere.norm(x, v), sphere.dist(x, y), rtol=1e-4 if near < 1e-4 else 1e-5, atol=0)
    # a half-way point is as far from both, and the way to it is half as long
    middle = sphere.geodesic(x, y, 0.5)
    for end in (x, y):
        torch.testing.assert_close(sphere.dist(end, middle), sphere.dist(x, y) / 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("c", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("place", ["beside", "beyond", "vertex", "across", "opposite", "same side"])
def test_double_precision_keeps_its_digits_far_from_the_vertex(place, c):
    """At sinh(√c r) = 10⁴ Lorentz products of rounded coordinates hold eight digits of sixteen."""
    manifold, s = Hyperboloid(c), 1e4 / math.sqrt(c)
    other = {
        "beside": [s, 1e-2, 3e-3],
        "beyond": [s * (1 + 1e-6), 0.0, 1e-4],
        "vertex": [0.0, 0.0, 0.0],
        "across": [0.0, s, 0.0],
        "opposite": [-s, 1.0, 0.0],
        "same side": [0.3 / math.sqrt(c), 0.1, 0.0],
    }[place]
    x, y = (manifold.projection(torch.tensor([0.0, *p], dtype=torch.float64)) for p in ([s, 0.0, 0.0], other))
    v = manifold.tangent_projection(x, torch.tensor([0.0, 1e-4, 0.5, -0.3], dtype=torch.float64))
    space = numbers(v[1:])

    def product(u, w):
        return sum(a * b for a, b in zip(u[1:], w[1:], strict=True)) - u[0] * w[0]

    def above(x):
        space = numbers(x[1:])
        return [mp.sqrt(1 / mp.mpf(c) + sum(a * a for a in space)), *space]

    p, q = above(x), above(y)
    k = mp.mpf(c) * product(p, q)
    angle = mp.acosh(-k)
    assert abs(float(mp.mpf(float(manifold.dist(x, y))) * mp.sqrt(mp.mpf(c)) / angle) - 1) <= 2e-14
    assert off(manifold.log(x, y), [(b + k * a) * angle / mp.sinh(angle) for a, b in zip(p, q, strict=True)]) <= 2e-14
    u = [sum(a * b for a, b in zip(p[1:], space, strict=True)) / p[0], *space]
    size = mp.sqrt(mp.mpf(c) * product(u, u))
    want = [mp.cosh(size) * a + mp.sinh(size) / size * b for a, b in zip(p, u, strict=True)]
    assert off(manifold.exp(x, v), want) <= 1e-13
    turn = mp.mpf(c) * product(q, u) / (1 - k)
    carried = [w + turn * (a + b) for a, b, w in zip(p, q, u, strict=True)]
    assert off(manifold.transport(x, y, v), carried) <= 1e-10
