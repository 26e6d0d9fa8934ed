"""Maps are smooth where points coincide and vectors vanish: second derivatives there, against expansions by hand and
differences of first ones."""

import pytest
import torch

from aatc.geometry import Hyperboloid, PoincareBall, Simplex, Sphere
from tests.geometry.manifold_cases import draw, tangent

SMOOTH = ("euclidean", "sphere", "sphere_radius", "hyperboloid", "hyperboloid_c", "ball", "ball_c", "simplex")
smooth = pytest.mark.parametrize("name", SMOOTH)


def weighted(value):
    return (value * torch.linspace(1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)).sum()


def second(f, arguments, directions):
    """The derivative of the gradient of a weighted sum of f along directions, summed with weights."""
    arguments = [a.detach().requires_grad_() for a in arguments]
    first = torch.autograd.grad(weighted(f(*arguments)), arguments, create_graph=True, materialize_grads=True)
    assert all(g.isfinite().all() for g in first)
    total = sum(weighted(g) for g in first) + 0 * sum(a.sum() for a in arguments)  # a linear map has no second graph
    again = torch.autograd.grad(total, arguments, materialize_grads=True)
    assert all(g.isfinite().all() for g in again)
    return sum((g * d).sum() for g, d in zip(again, directions, strict=True))


def differences(f, arguments, directions, step=1e-5):
    def first(sign):
        moved = [(a + sign * step * d).detach().requires_grad_() for a, d in zip(arguments, directions, strict=True)]
        return sum(weighted(g) for g in torch.autograd.grad(weighted(f(*moved)), moved, materialize_grads=True))

    return (first(1) - first(-1)) / (2 * step)


@smooth
@pytest.mark.parametrize("apart", [0.0, 1e-9, 1e-3])
def test_maps_have_second_derivatives_at_equal_points_and_zero_vectors(name, apart):
    manifold, (x,) = draw(name, 7, 1, ())
    v = apart * tangent(manifold, x, 7, 1.0)
    y = manifold.exp(x, v)
    g = torch.Generator().manual_seed(3)
    one, other, third = (torch.randn(x.shape, generator=g, dtype=x.dtype) * 0.3 for _ in range(3))
    for f, arguments in (
        (manifold.exp, (x, v)),
        (manifold.log, (x, y)),
        (lambda a, b: manifold.geodesic(a, b, 0.3), (x, y)),
        (lambda a, b: manifold.inner(a, manifold.log(a, b), manifold.log(a, b)), (x, y)),
        (lambda a, b, w: manifold.transport(a, b, w), (x, y, third)),
    ):
        directions = (one, other, third)[: len(arguments)]
        got, want = second(f, arguments, directions), differences(f, arguments, directions)
        assert abs(got - want) <= 1e-5 * (1 + abs(want))


@smooth
def test_the_squared_distance_bends_as_the_metric_does(name):
    """d²(x, exp(x, v)) is |v|² to third order, whatever the curvature."""
    manifold, (x,) = draw(name, 9, 1, ())
    u, w = tangent(manifold, x, 3), tangent(manifold, x, 5)

    def square(s, t):
        log = manifold.log(x, manifold.exp(x, s * u + t * w))
        return manifold.inner(x, log, log)

    zero = torch.zeros((), dtype=x.dtype)
    bend = torch.autograd.functional.hessian(square, (zero, zero))
    for row, a in zip(bend, (u, w), strict=True):
        for entry, b in zip(row, (u, w), strict=True):
            torch.testing.assert_close(entry, 2 * manifold.inner(x, a, b), rtol=1e-9, atol=1e-12)


def test_exp_bends_as_its_expansion_says():
    """cos |v| = 1 − |v|²/2, cosh |v| = 1 + |v|²/2, and at the origin of the ball no second order at all."""
    n = torch.eye(4, dtype=torch.float64)[0]
    tangents = torch.eye(4, dtype=torch.float64)[1:3]
    zero = torch.zeros(2, dtype=torch.float64)

    def bend(manifold, base, vectors):
        return torch.func.jacfwd(torch.func.jacrev(lambda s: manifold.exp(base, s @ vectors)))(zero)

    one = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(bend(Sphere(), n, tangents), -n[:, None, None] * one)
    torch.testing.assert_close(bend(Sphere(2.0), 2 * n, tangents), -n[:, None, None] * one / 2)
    torch.testing.assert_close(bend(Hyperboloid(), n, tangents), n[:, None, None] * one)
    flat = torch.zeros(3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(
        bend(PoincareBall(), torch.zeros(3, dtype=torch.float64), torch.eye(3).double()[:2]), flat
    )
    middle = torch.full((4,), 0.25, dtype=torch.float64)
    v = torch.tensor([[1.0, -1.0, 0.0, 0.0]], dtype=torch.float64)
    # (cos(r/2) + sin(r/2) v/(√p r))² p, r = |v|_p = √8 s: p + s v + s² (v²/(4p) − p r²/(4 s²)), twice the last
    found = torch.func.jacfwd(torch.func.jacrev(lambda s: Simplex().exp(middle, s @ v)))(zero[:1])[:, 0, 0]
    torch.testing.assert_close(found, 2 * (v[0].square() - 8 * 0.25**2) / (4 * 0.25))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_vectors_whose_square_is_no_number_are_followed(dtype):
    """300² is more than half precision holds."""
    x, v = torch.tensor([1.0, 0.0], dtype=dtype), torch.tensor([0.0, 300.0], dtype=dtype)
    want = torch.tensor([300.0, 300.0], dtype=torch.float64)
    want = torch.stack((want[0].cos(), want[1].sin()))
    torch.testing.assert_close(Sphere().exp(x, v).double(), want, rtol=0, atol=4 * torch.finfo(dtype).eps)
    out = PoincareBall().exp(0 * x, v)
    torch.testing.assert_close(out, torch.tensor([0.0, 1.0], dtype=dtype), rtol=0, atol=8 * torch.finfo(dtype).eps)
