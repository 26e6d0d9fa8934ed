"""Means far out in hyperbolic space, in double precision: against mpmath, at the points as they are rounded."""

import mpmath as mp
import pytest
import torch

from aatc.geometry import GeometryError, Hyperboloid, PoincareBall, gyromidpoint, lorentz_centroid
from aatc.geometry.manifolds.compensated import one_minus_square

F64 = torch.float64
mp_c = {1.0: mp.mpf(1), 0.3: mp.mpf(0.3)}


def directions(count, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 3, generator=generator, dtype=F64) + spread * torch.randn(
        count, 3, generator=generator, dtype=F64
    )
    return x / x.norm(dim=-1, keepdim=True), torch.rand(count, generator=generator, dtype=F64) + 0.1


def lifted(x, c):
    return [mp.sqrt(1 / c + mp.fsum(a * a for a in x)), *x]


def centroid(points, weights, c):
    """Σwx/√(−c⟨Σwx, Σwx⟩), coordinates 1..n."""
    total = [mp.fsum(w * p[n] for w, p in zip(weights, points, strict=True)) for n in range(len(points[0]))]
    size = mp.sqrt(c * (total[0] ** 2 - mp.fsum(a * a for a in total[1:])))
    return [a / size for a in total[1:]]


def exactly(x):
    return [[mp.mpf(a) for a in row] for row in x.tolist()]


@pytest.fixture(autouse=True)
def digits():
    with mp.workdps(400):
        yield


@pytest.mark.parametrize("c", [1.0, 0.3])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-9])
@pytest.mark.parametrize("r", [5.0, 12.0, 20.0, 40.0, 160.0])
def test_centroids_on_the_hyperboloid(r, spread, c):
    way, w = directions(5, 0, spread)
    x = way * torch.linspace(r - 1, r, 5, dtype=F64).sinh().unsqueeze(-1)
    points = torch.cat([(1 / c + x.square().sum(-1, keepdim=True)).sqrt(), x], -1).requires_grad_()
    found = lorentz_centroid(points, w, c=c)
    at = mp_c[c]
    want = centroid([lifted(p, at) for p in exactly(x)], [mp.mpf(a) for a in w.tolist()], at)
    part = mp.mpf("1e-14" if r > 8 else "1e-10")
    worst = max(abs(mp.mpf(a) - b) for a, b in zip(found[1:].tolist(), want, strict=True))
    assert worst <= part * mp.sqrt(mp.fsum(a * a for a in want))
    assert torch.autograd.grad(found.sum(), points)[0].isfinite().all()


def in_ball(x, c):
    """The point of the hyperboloid."""
    gap = 1 - c * mp.fsum(a * a for a in x)
    return [(2 - gap) / gap / mp.sqrt(c), *(2 * a / gap for a in x)]


@pytest.mark.parametrize("c", [1.0, 0.3])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-9])
@pytest.mark.parametrize("r", [5.0, 12.0, 18.0, 25.0, 32.0])
def test_midpoints_in_the_ball(r, spread, c):
    way, w = directions(5, 1, spread)
    x = (way * (torch.linspace(r - 1, r, 5, dtype=F64) / 2).tanh().unsqueeze(-1) / c**0.5).requires_grad_()
    found, at = gyromidpoint(x, w, c=c), mp_c[c]
    y = centroid([in_ball(p, at) for p in exactly(x.detach())], [mp.mpf(a) for a in w.tolist()], at)
    time = mp.sqrt(1 / at + mp.fsum(a * a for a in y))
    want = [a / (1 + mp.sqrt(at) * time) for a in y]
    # a few roundings of coordinates, which are all that tells how far out a point is
    assert (
        max(abs(mp.mpf(a) - b) for a, b in zip(found.tolist(), want, strict=True))
        <= (2e-15 if r > 8 else 1e-13) / c**0.5
    )
    assert torch.autograd.grad(found.sum(), x)[0].isfinite().all()


def test_gradients_far_out_are_differences():
    way, w = directions(3, 2, 1e-3)
    space, ball = Hyperboloid(), PoincareBall()
    x = space.projection(torch.cat([torch.ones(3, 1, dtype=F64), way * 4e3], -1))
    y = ball.from_hyperboloid(x)

    def slope(f, points):
        w_ = w.clone().requires_grad_()
        return torch.autograd.grad(f(points, w_).square().sum(), w_)[0]

    def differences(f, points):
        steps = 1e-4 * torch.eye(3, dtype=F64)
        return torch.stack([(f(points, w + s).square().sum() - f(points, w - s).square().sum()) / 2e-4 for s in steps])

    for f, points in ((lorentz_centroid, x), (gyromidpoint, y)):
        want = differences(f, points)
        torch.testing.assert_close(slope(f, points), want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


def test_queries_share_points_and_blocks_of_pairs_are_all_pairs(monkeypatch):
    from aatc.geometry.manifolds import means

    generator = torch.Generator().manual_seed(3)
    way = torch.nn.functional.normalize(torch.randn(2, 1, 7, 3, generator=generator, dtype=F64), dim=-1)
    x = Hyperboloid().projection(torch.cat([way[..., :1], way * 1e9], -1))
    weights = torch.rand(2, 5, 7, generator=generator, dtype=F64)
    found = lorentz_centroid(x, weights)
    assert found.shape == (2, 5, 4)
    torch.testing.assert_close(found[1, 2], lorentz_centroid(x[1, 0], weights[1, 2]))
    monkeypatch.setattr(means, "_BLOCK", 2 * x.numel())
    torch.testing.assert_close(lorentz_centroid(x, weights), found, rtol=1e-14, atol=1e-14)


def test_what_double_precision_does_not_hold_is_refused():
    x = Hyperboloid().projection(torch.tensor([[0, 1e90, 0], [0, 0, 1e90]], dtype=F64))
    with pytest.raises(GeometryError, match="double precision"):
        lorentz_centroid(x)
    with pytest.raises(GeometryError, match="not on PoincareBall"):
        gyromidpoint(torch.tensor([[1.0, 0.0], [0.2, 0.0]], dtype=F64))


@pytest.mark.parametrize("c", [1.0, 0.3])
@pytest.mark.parametrize("width", [1, 2, 3, 7, 64])
def test_one_minus_a_square_has_its_digits(width, c):
    generator = torch.Generator().manual_seed(width)
    x = torch.nn.functional.normalize(torch.randn(20, width, generator=generator, dtype=F64), dim=-1) / c**0.5
    x = x * (1 - torch.logspace(-16, -1, 20, dtype=F64).unsqueeze(-1))
    for row, found in zip(exactly(x), one_minus_square(x, c).flatten().tolist(), strict=True):
        want = 1 - mp_c[c] * mp.fsum(a * a for a in row)
        assert abs(mp.mpf(found) - want) <= 1e-15 * abs(want) + mp.mpf(10) ** -30
    x = x.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(one_minus_square(x, c).sum(), x)[0], -2 * c * x)
