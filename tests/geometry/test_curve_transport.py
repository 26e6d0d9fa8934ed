"""Transport along sampled points of a chart, against great circles written out, and what is no path."""

import math

import numpy as np
import pytest
import torch

from aatc.geometry import GeometryError, PointShapeError, RiemannianStructure

F64 = torch.float64
SPHERE = RiemannianStructure.sphere()


def embedded(x):
    """(θ, φ) as a unit vector, and the derivatives of it by θ and φ as rows."""
    theta, phi = x
    sin, cos = math.sin, math.cos
    point = np.array([sin(theta) * cos(phi), sin(theta) * sin(phi), cos(theta)])
    by_theta = [cos(theta) * cos(phi), cos(theta) * sin(phi), -sin(theta)]
    return point, np.array([by_theta, [-sin(theta) * sin(phi), sin(theta) * cos(phi), 0]])


def great_circles(points, vector):
    """The vector (2,) at each of the points (T, 2), carried along great circles as an ambient vector (3,)."""
    point, frame = embedded(points[0])
    moved, carried = vector @ frame, [vector]
    for x in points[1:]:
        following, frame = embedded(x)
        moved = moved - (following @ moved) / (1 + point @ following) * (point + following)
        point = following
        carried.append(np.linalg.lstsq(frame.T, moved, rcond=None)[0])
    return np.array(carried)


def sampled(seed, count, *batch):
    generator = torch.Generator().manual_seed(seed)
    return 0.7 + torch.rand(count, *batch, 2, generator=generator, dtype=F64)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_sampled_points_are_joined_by_great_circles(count):
    points, vectors = sampled(count, count, 2), sampled(9, 3, 2)
    found = SPHERE.parallel_transport(points, vectors, steps=128)
    assert found.shape == (count, 3, 2, 2)
    for i in range(3):
        for j in range(2):
            exact = great_circles(points[:, j].numpy(), vectors[i, j].numpy())
            np.testing.assert_allclose(found[:, i, j].numpy(), exact, rtol=0, atol=1e-7)


def test_a_loop_of_samples_turns_by_its_area_and_standing_still_turns_nothing():
    octant = torch.tensor(
        [[math.pi / 2, 0.0], [math.pi / 2, 1.2], [0.3, 1.2], [0.3, 0.0], [math.pi / 2, 0.0]], dtype=F64
    )
    still = octant[[0, 0, 1, 2, 2, 2, 3, 4]]
    south = torch.tensor([1.0, 0.0], dtype=F64)
    turned = SPHERE.parallel_transport(octant, south, steps=256)[-1]
    # π less two angles at the base of the triangle with the pole: the area under the great circle of the upper corners.
    upper = 2 * math.atan(math.tan(0.6) * math.cos(0.3))
    assert math.atan2(float(turned[1]), float(turned[0])) == pytest.approx(upper, abs=1e-7)
    torch.testing.assert_close(SPHERE.parallel_transport(still, south, steps=448)[-1], turned, rtol=0, atol=1e-7)


def test_gradients_reach_samples_and_vectors():
    points, vector = sampled(1, 3).requires_grad_(), sampled(2, 1)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda x, v: SPHERE.parallel_transport(x, v, steps=4), (points, vector))


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda x, v: SPHERE.parallel_transport(x[:1], v), PointShapeError),
        (lambda x, v: SPHERE.parallel_transport(x[0], v), PointShapeError),
        (lambda x, v: SPHERE.parallel_transport(x, v.float()), PointShapeError),
        (lambda x, v: SPHERE.parallel_transport(x.half(), v.half()), PointShapeError),
        (lambda x, v: SPHERE.parallel_transport(x, v * math.nan), GeometryError),
        (lambda x, v: SPHERE.parallel_transport(x * math.nan, v), GeometryError),
        (lambda x, v: SPHERE.parallel_transport(x - 9, v), GeometryError),
        (lambda x, v: SPHERE.parallel_transport(x, v, torch.arange(3)), GeometryError),
        (lambda x, v: SPHERE.parallel_transport(x.numpy(), v), GeometryError),
        (lambda x, v: SPHERE.parallel_transport(x.tolist(), v), GeometryError),
        (lambda x, v: SPHERE.parallel_transport(x, v, steps=0), GeometryError),
        (lambda x, v: SPHERE.parallel_transport(lambda t: x[0] + t, v, steps=2.5), GeometryError),
    ],
)
def test_what_is_no_path_is_a_typed_error(ask, error):
    with pytest.raises(error):
        ask(sampled(0, 3), sampled(1, 1)[0])
