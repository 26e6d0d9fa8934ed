"""Slopes of Fréchet means far out on a hyperboloid: those of the same points moved to the vertex by an isometry."""

import mpmath
import pytest
import torch

from aatc.geometry import Hyperboloid, frechet_mean

N, POINTS = 3, 6
DIRECTION = (1 / 3, 2 / 3, 2 / 3)


def boosted(rows, distance):
    """Points and vectors (time first) moved from the vertex by ``distance``, in fifty digits, and rounded."""
    with mpmath.workdps(50):
        along = [mpmath.mpf(u) for u in DIRECTION]
        length = mpmath.sqrt(sum(u * u for u in along))
        along = [u / length for u in along]
        cosh, sinh = mpmath.cosh(distance), mpmath.sinh(distance)
        moved = []
        for time, *space in rows.reshape(-1, N + 1).tolist():
            component = sum(x * u for x, u in zip(space, along, strict=True))
            gain = sinh * time + (cosh - 1) * component
            moved.append([float(cosh * time + sinh * component)])
            moved[-1] += [float(x + gain * u) for x, u in zip(space, along, strict=True)]
        return torch.tensor(moved, dtype=torch.float64).reshape(rows.shape)


def slopes(space, points, weights, changes, other):
    """Of the squared distance of the mean to another point, and of the variance, by points moved along ``changes`` and
    by weights: numbers that no isometry changes."""
    points, weights = points.clone().requires_grad_(), weights.clone().requires_grad_()
    mean = frechet_mean(space, points, weights)
    apart = space.squared_dist(mean.point, other)
    by_points, by_weights = torch.autograd.grad(apart, (points, weights), create_graph=True)
    first = (by_points * changes).sum()
    (second,) = torch.autograd.grad(first, weights, retain_graph=True)
    (spread,) = torch.autograd.grad(mean.variance, points)
    return [t.detach() for t in (first, by_weights, second, (spread * changes).sum())]


@pytest.mark.parametrize("c", [1.0, 0.25])
@pytest.mark.parametrize("distance", [3, 9, 12, 15])
def test_slopes_are_those_at_the_vertex(distance, c):
    generator = torch.Generator().manual_seed(distance)
    space = Hyperboloid(c)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    points = space.projection(torch.cat([torch.zeros(POINTS, 1), 0.6 * drawn(POINTS, N)], -1).double())
    other = space.projection(torch.cat([torch.zeros(1), 0.4 * drawn(N)]).double())
    changes = space.tangent_projection(points, drawn(POINTS, N + 1))
    weights = torch.rand(POINTS, generator=generator, dtype=torch.float64)
    want = slopes(space, points, weights, changes, other)
    got = slopes(space, *(boosted(points, distance), weights, boosted(changes, distance), boosted(other, distance)))
    for g, w in zip(got, want, strict=True):
        assert (g - w).abs().max() <= 1e-8 * w.abs().max()


def test_slopes_at_the_vertex_are_those_of_differences():
    """What the others are held against."""
    generator = torch.Generator().manual_seed(0)
    space, weights = Hyperboloid(), torch.rand(POINTS, generator=generator, dtype=torch.float64)
    flat = torch.randn(POINTS, N + 1, generator=generator, dtype=torch.float64)
    points = space.projection(flat)
    changes = space.tangent_projection(points, torch.randn(flat.shape, generator=generator, dtype=torch.float64))
    other = space.projection(torch.ones(N + 1, dtype=torch.float64))
    by_points, by_weights, *_ = slopes(space, points, weights, changes, other)

    def apart(by, to):
        moved = space.exp(points, by * changes)
        return space.squared_dist(frechet_mean(space, moved, weights + to).point, other)

    step = 1e-5
    assert abs((apart(step, 0) - apart(-step, 0)) / (2 * step) - by_points) <= 1e-8
    for n in range(POINTS):
        to = torch.zeros(POINTS, dtype=torch.float64)
        to[n] = step
        assert abs((apart(0, to) - apart(0, -to)) / (2 * step) - by_weights[n]) <= 1e-8
