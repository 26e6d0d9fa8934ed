"""Geodesics of charts between far points, and close to conjugate ones, against closed forms of the spaces."""

import math

import pytest
import torch

from aatc.geometry import RiemannianStructure

F64 = torch.float64
POLAR, STEREO = RiemannianStructure.sphere(), RiemannianStructure.stereographic(2, 1.0)
HALF_PLANE, BALL = RiemannianStructure.half_plane(), RiemannianStructure.poincare_ball(2)


def chord(a, b):
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def unit(x):
    return torch.stack((x[..., 0].sin() * x[..., 1].cos(), x[..., 0].sin() * x[..., 1].sin(), x[..., 0].cos()), -1)


def lifted(x):
    square = x.square().sum(-1, keepdim=True)
    return torch.cat((2 * x, 1 - square), -1) / (1 + square)


def half_plane(x, y):
    return 2 * torch.asinh((x - y).norm(dim=-1) / (2 * (x[..., 1] * y[..., 1]).sqrt()))


def ball(x, y):
    gaps = (1 - x.square().sum(-1)) * (1 - y.square().sum(-1))
    return 2 * torch.asinh((x - y).norm(dim=-1) / gaps.sqrt())


def at(*values):
    return torch.tensor(values, dtype=F64)


WIDE = math.sqrt(2 * math.cosh(14) - 2)
FAR = {
    "S² 2.9 rad apart in longitude": (POLAR, at(1.2, 0.0), at(1.2, 2.9), lambda x, y: chord(unit(x), unit(y))),
    "S² past the pole": (POLAR, at(0.5, 0.0), at(2.0, 2.9), lambda x, y: chord(unit(x), unit(y))),
    "S² through no pole": (STEREO, at(0.01, 0.0), at(0.0, math.tan(1.45)), lambda x, y: chord(lifted(x), lifted(y))),
    "S² near the antipode": (STEREO, at(1.0, 0.0), at(-0.3, math.tan(1.55)), lambda x, y: chord(lifted(x), lifted(y))),
    "half-plane, distance 14 across": (HALF_PLANE, at(0.0, 1.0), at(WIDE, 1.0), half_plane),
    "half-plane, distance 14 down": (HALF_PLANE, at(0.0, 1.0), at(0.3, math.exp(-14)), half_plane),
    "half-plane, distance 20 up": (HALF_PLANE, at(0.0, 1.0), at(0.3, math.exp(20)), half_plane),
    "ball, r = 0.999 across": (BALL, at(0.999, 0.0), at(-0.999, 0.01), ball),
    "ball, r = 0.999 a quarter": (BALL, at(0.999, 0.0), at(0.0, 0.999), ball),
    "ball, r = 0.999 beside": (BALL, at(0.999, 0.0), at(0.999 * math.cos(0.3), 0.999 * math.sin(0.3)), ball),
    "ball, r = 0.9999 from within": (BALL, at(0.1, 0.0), at(0.0, 0.9999), ball),
}


@pytest.mark.parametrize("name", FAR)
def test_a_far_geodesic_has_the_distance_of_its_ends_and_divides_it(name):
    chart, x, y, distance = FAR[name]
    found, want = chart.geodesic_between(x, y), float(distance(x, y))
    assert float(found.length()) == pytest.approx(want, rel=1e-9)
    torch.testing.assert_close(found.points[[0, -1]], torch.stack((x, y)), rtol=0, atol=1e-12 * float(y.abs().max()))
    parts = distance(found.points[:-1], found.points[1:])
    torch.testing.assert_close(parts, torch.full_like(parts, want / 16), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.speed(), torch.full((17,), want, dtype=F64), rtol=1e-6, atol=0)
    back = chart.geodesic_between(y, x)
    assert float(back.length()) == pytest.approx(want, rel=1e-9)


def test_near_and_far_pairs_of_one_batch_keep_their_places():
    x = torch.stack([at(0.999, 0.0), at(0.1, 0.2), at(0.5, -0.5), at(0.0, -0.999)]).reshape(2, 2, 2)
    y = torch.stack([at(0.0, 0.999), at(0.3, -0.1), at(-0.5, 0.5), at(0.999, 0.01)]).reshape(2, 2, 2)
    times = torch.tensor([0.0, 0.3, 0.77, 1.0], dtype=F64)
    found = BALL.geodesic_between(x, y, times)
    for i in range(2):
        for j in range(2):
            one = BALL.geodesic_between(x[i, j], y[i, j], times)
            torch.testing.assert_close(found.points[:, i, j], one.points, rtol=0, atol=1e-10)
            torch.testing.assert_close(found.velocities[:, i, j], one.velocities, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(BALL.dist(x, y), ball(x, y), rtol=1e-9, atol=0)


@pytest.mark.parametrize("n", [4, 8])
def test_balls_of_more_dimensions_reach_as_far(n):
    generator = torch.Generator().manual_seed(n)
    x, y = torch.randn(2, 2, n, generator=generator, dtype=F64)
    x, y = (0.999 * z / z.norm(dim=-1, keepdim=True) for z in (x, y))
    chart = RiemannianStructure.poincare_ball(n)
    torch.testing.assert_close(chart.dist(x, y), ball(x, y), rtol=1e-8, atol=0)


def test_derivatives_of_far_distances_are_those_of_the_closed_form():
    for chart, x, y, distance in (FAR["ball, r = 0.999 a quarter"], FAR["half-plane, distance 14 across"]):
        got = torch.func.jacrev(lambda z, c=chart, y=y: c.dist(z, y))(x)
        torch.testing.assert_close(got, torch.func.jacrev(lambda z, d=distance, y=y: d(z, y))(x), rtol=1e-7, atol=1e-9)
    chart, x, y, distance = FAR["S² near the antipode"]
    twice = [torch.func.hessian(lambda z, f=f: f(z, y))(x) for f in (chart.dist, distance)]
    torch.testing.assert_close(*twice, rtol=1e-5, atol=1e-6)
    scale = torch.tensor(1.3, dtype=F64, requires_grad=True)
    stretched = RiemannianStructure(lambda z: scale**2 * HALF_PLANE.metric(z), domain=lambda z: z[..., 1] > 0)
    far = stretched.dist(at(0.0, 1.0), at(WIDE, 1.0))
    assert float(far.detach()) == pytest.approx(1.3 * 14, rel=1e-9)
    assert float(torch.autograd.grad(far, scale)[0]) == pytest.approx(14, rel=1e-7)


def test_single_precision_reaches_as_far_within_its_digits():
    for name in ("half-plane, distance 14 across", "ball, r = 0.999 a quarter", "S² 2.9 rad apart in longitude"):
        chart, x, y, distance = FAR[name]
        x, y = x.float(), y.float()
        want = float(distance(x.double(), y.double()))
        assert float(chart.dist(x, y)) == pytest.approx(want, rel=2e-4)
