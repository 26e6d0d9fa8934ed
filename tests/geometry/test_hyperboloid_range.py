"""The hyperboloid as far out as numbers go: maps against mpmath in both precisions, and a typed error beyond."""

import math

import mpmath as mp
import pytest
import torch

from aatc.geometry import SPD, Euclidean, GeometryError, Hyperboloid, PoincareBall, Product, RangeError, Stereographic

ANGLES = (0.0, 1e-5, 0.7, math.pi / 2, 3.0, math.pi)


@pytest.fixture(autouse=True)
def _digits():
    with mp.workdps(900):
        yield


def lorentz(x, y):
    return mp.fsum(a * b for a, b in zip(x[1:], y[1:], strict=True)) - x[0] * y[0]


def lifted(space, c):
    space = [mp.mpf(float(a)) for a in space]
    return [mp.sqrt(1 / mp.mpf(c) + mp.fsum(a * a for a in space)), *space]


def at(r, angle, c, dtype=torch.float64):
    s = math.sinh(r) / math.sqrt(c)
    return Hyperboloid(c).projection(torch.tensor([0.0, s * math.cos(angle), s * math.sin(angle)], dtype=dtype))


def off(found, want):
    """Relative to the largest coordinate."""
    size = max(abs(b) for b in want)
    return float(max(abs(mp.mpf(float(a)) - b) for a, b in zip(found, want, strict=True)) / size)


@pytest.mark.parametrize("c", [1.0, 0.3])
@pytest.mark.parametrize(
    ("r", "dtype"), [(100.0, torch.float64), (200.0, torch.float64), (340.0, torch.float64), (40.0, torch.float32)]
)
def test_maps_are_right_up_to_the_range_of_squares(r, dtype, c):
    space, root, digits = Hyperboloid(c), mp.sqrt(mp.mpf(c)), 64 * torch.finfo(dtype).eps
    x = at(r, 0.0, c, dtype)
    p = lifted(x[1:], c)
    for angle in ANGLES:
        for other in (r, r / 2):
            if other < r and angle < 0.1 and dtype == torch.float64:
                continue  # a direction is rounded by more than what its angle is worth
            y = at(other, angle, c, dtype)
            q = lifted(y[1:], c)
            k = -mp.mpf(c) * lorentz(p, q)
            d = mp.acosh(k) if p != q else mp.mpf(0)
            assert abs(space.dist(x, y) - float(d / root)) <= digits * (1 + float(d))
            assert abs(space.squared_dist(x, y) - float(d**2 / c)) <= digits * (1 + float(d) ** 2)
            if d == 0:
                continue
            if float(d) > 1:  # of nearer ones far out the coordinates themselves hold no digits of the direction
                v = [(b - k * a) * d / mp.sinh(d) for a, b in zip(p, q, strict=True)]
                assert off(space.log(x, y), v) <= digits
                half = mp.sinh(d / 2) / mp.sinh(d)
                assert off(space.geodesic(x, y, 0.5), [half * (a + b) for a, b in zip(p, q, strict=True)]) <= digits * (
                    1 + float(d) / 64
                )
    v = torch.tensor([0.0, 0.5, -0.25], dtype=dtype)
    u = [mp.fsum(a * mp.mpf(float(b)) for a, b in zip(p[1:], v[1:], strict=True)) / p[0], mp.mpf(0.5), mp.mpf(-0.25)]
    size = mp.sqrt(lorentz(u, u))
    want = [mp.cosh(root * size) * a + mp.sinh(root * size) / (root * size) * b for a, b in zip(p, u, strict=True)]
    assert off(space.exp(x, v), want) <= digits
    assert abs(float(space.norm(x, v)) / float(size) - 1) <= digits


@pytest.mark.parametrize("r", [100.0, 200.0, 340.0])
def test_derivatives_are_finite_where_values_are(r):
    space = Hyperboloid()
    for angle in ANGLES[2:]:
        x, y = (at(r, a, 1.0).requires_grad_() for a in (0.0, angle))
        for value in (space.dist(x, y), space.squared_dist(x, y)):
            slopes = torch.autograd.grad(value, (x, y))
            assert all(g.isfinite().all() for g in slopes)
        # as one moves outwards by a unit, so does the distance, less what the angle is worth
        (slope,) = torch.autograd.grad(space.dist(x, y), x)
        outwards = torch.tensor([math.sinh(r), math.cosh(r), 0.0], dtype=torch.float64)
        assert abs(float(slope @ outwards) - 1) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products_and_tangency_far_out_are_those_of_the_coordinates(dtype):
    generator = torch.Generator().manual_seed(0)
    for r, c in ((9.0, 1.0), (14.0, 2.0), (3.0, 0.5)):
        space = Hyperboloid(c)
        x = at(r, 0.4, c, dtype)
        p = lifted(x[1:], c)
        u, v = (torch.randn(3, generator=generator).to(dtype) for _ in "uv")
        above = []
        for w in (u, v):
            spatial = [mp.mpf(float(a)) for a in w[1:]]
            above.append([mp.fsum(a * b for a, b in zip(p[1:], spatial, strict=True)) / p[0], *spatial])
            w[0] = float(above[-1][0])
            assert space.is_tangent(x, w)
            w[0] += 0.1
            assert not space.is_tangent(x, w)
        scale = math.sqrt(float(lorentz(above[0], above[0]) * lorentz(above[1], above[1])))
        assert abs(float(space.inner(x, u, v)) - float(lorentz(*above))) <= 8 * torch.finfo(dtype).eps * scale
        assert abs(float(space.norm(x, u)) / math.sqrt(float(lorentz(above[0], above[0]))) - 1) <= 1e-6


def test_inner_products_have_second_derivatives_at_the_vertex():
    space = Hyperboloid(0.7)
    x = torch.tensor([1 / math.sqrt(0.7), 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    u = torch.tensor([0.0, 0.3, -0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda a, b: space.norm(space.projection(a), b) ** 2, (x, u))
    assert torch.autograd.gradgradcheck(lambda a, b: space.exp(space.projection(a), b), (x, u))


def test_coordinates_reach_farther_than_their_squares():
    space = Hyperboloid()
    vertex = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    far = space.exp(vertex, torch.tensor([0.0, 420.0, 560.0], dtype=torch.float64))  # 700 away
    assert off(far, [mp.cosh(700), mp.mpf(0.6) * mp.sinh(700), mp.mpf(0.8) * mp.sinh(700)]) <= 1e-13
    assert space.belongs(far) and not space.belongs(far * torch.tensor([1.001, 1.0, 1.0]))
    assert torch.isfinite(space.projection(torch.tensor([0.0, 1e30, 1e30]))).all()


FAR = [  # what is finite, and has a result that the dtype does not hold
    lambda: Hyperboloid().exp(torch.tensor([1.0, 0, 0], dtype=torch.float64), torch.tensor([0, 800.0, 0]).double()),
    lambda: Hyperboloid().exp(torch.tensor([1.0, 0, 0]), torch.tensor([0, 100.0, 0])),
    lambda: Hyperboloid().dist(at(500.0, 0.0, 1.0), at(500.0, 1.0, 1.0)),
    lambda: Hyperboloid().log(at(500.0, 0.0, 1.0), at(500.0, 1.0, 1.0)),
    lambda: Hyperboloid().geodesic(at(500.0, 0.0, 1.0), at(500.0, 1.0, 1.0), 0.5),
    lambda: Hyperboloid().geodesic(at(20.0, 0.0, 1.0), at(20.0, 3.0, 1.0), 40.0),
    lambda: Hyperboloid().projection(torch.tensor([0.0, 3e38, 3e38])),
    lambda: Product([(Hyperboloid(), (3,)), (Euclidean(), (1,))]).exp(
        torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 100.0, 0, 0])
    ),
    lambda: Euclidean().exp(torch.tensor([3e38]), torch.tensor([3e38])),
    lambda: Euclidean().dist(torch.tensor([3e38]), torch.tensor([-3e38])),
    lambda: SPD().exp(torch.eye(2), 200 * torch.eye(2)),
    lambda: SPD().norm(1e-30 * torch.eye(2), torch.eye(2)),
    lambda: Stereographic(1e-60).dist(torch.tensor([3e38]), torch.tensor([-3e38])),
    lambda: PoincareBall().norm(torch.tensor([1 - 1e-7]), torch.tensor([1e30])),
]


@pytest.mark.parametrize("call", range(len(FAR)))
def test_results_beyond_the_dtype_are_a_typed_error(call):
    with pytest.raises(RangeError, match="beyond the range"):
        FAR[call]()
    assert issubclass(RangeError, GeometryError)
