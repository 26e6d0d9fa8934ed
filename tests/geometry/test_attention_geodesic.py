"""Geodesics of attention distributions: closed form against the integrated equation, and masked keys."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from aatc.geometry import Simplex
from aatc.geometry.manifold import GeometryError, PointShapeError
from aatc.geometry.manifolds.attention_geodesic import AttentionGeodesic
from aatc.geometry.manifolds.riemannian import RiemannianStructure

F64 = torch.float64
GEODESIC = AttentionGeodesic()


def close(got, want, atol=1e-8):
    torch.testing.assert_close(got, want, rtol=atol, atol=atol)


def rows(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).softmax(-1)


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6), keys=st.integers(2, 6))
def test_closed_form_and_integration_agree(seed, keys):
    p, q = rows(seed, 2, keys), rows(seed + 1, 2, keys)
    closed, solved = GEODESIC.compute_path(p, q, 5), GEODESIC.compute_path(p, q, 5, method="integrate")
    for name in ("times", "points", "velocities", "length"):
        close(getattr(closed, name), getattr(solved, name))


@given(seed=st.integers(0, 10**6))
def test_points_are_distributions_at_constant_speed(seed):
    p, q = rows(seed, 3, 5), rows(seed + 1, 3, 5)
    path = GEODESIC.compute_path(p, q, 8)
    assert path.points.shape == path.velocities.shape == (9, 3, 5)
    close(path.points[0], p, 1e-14)
    close(path.points[-1], q, 1e-14)
    close(path.points.sum(-1), torch.ones(9, 3, dtype=F64), 1e-14)
    close(Simplex().norm(path.points, path.velocities), path.length.expand(9, 3))
    close(path.points, torch.stack([Simplex().geodesic(p, q, t) for t in path.times]))
    close(Simplex().dist(path.points[:-1], path.points[1:]), (path.length / 8).expand(8, 3))


def test_masked_keys_stay_masked_and_disjoint_rows_are_pi_apart():
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=F64, requires_grad=True)
    q = torch.tensor([[0.1, 0.2, 0.7, 0.0], [0.0, 0.0, 1.0, 0.0]], dtype=F64, requires_grad=True)
    path = GEODESIC.compute_path(p, q, 4)
    assert (path.points[..., 3] == 0).all()
    close(path.length[1], torch.tensor(math.pi, dtype=F64))
    close(path.points[2, 1], torch.tensor([0.5, 0, 0.5, 0], dtype=F64))
    path.points.square().sum().backward()
    assert p.grad.isfinite().all() and q.grad.isfinite().all()
    still = GEODESIC.compute_path(p, p, 2)
    close(still.points, p.expand(3, 2, 4), 1e-14)
    assert still.velocities.abs().max() == 0


def test_the_metric_in_its_three_coordinates_is_one_metric():
    logits = torch.randn(2, 4, dtype=F64)
    p = logits.softmax(-1)
    by_logits = GEODESIC.fisher_rao_metric(logits, "logits")
    push = torch.stack([torch.func.jacrev(lambda z: z.softmax(-1))(row) for row in logits])
    close(push.mT @ GEODESIC.fisher_rao_metric(p) @ push, by_logits)
    close(by_logits @ torch.ones(4, 1, dtype=F64), torch.zeros(2, 4, 1, dtype=F64))
    assert (torch.linalg.eigvalsh(by_logits)[:, 1] > 1e-3).all()
    free = GEODESIC.fisher_rao_metric(p, "free")
    close(push[:, 1:].mT @ free @ push[:, 1:], by_logits)
    symbols = RiemannianStructure(RiemannianStructure.simplex(3).metric).christoffel_symbols(p[:, 1:])
    close(GEODESIC.christoffel_symbols(p), symbols)


def test_paths_are_differentiable():
    logits = torch.randn(2, 1, 4, dtype=F64, requires_grad=True)

    def values(z, method):
        path = GEODESIC.compute_path(*z.softmax(-1), 2, method)
        return path.points, path.velocities, path.length

    assert gradcheck(lambda z: values(z, "closed_form"), (logits,))
    assert gradcheck(lambda z: values(z, "integrate"), (logits,))
    assert gradcheck(lambda z: GEODESIC.fisher_rao_metric(z, "logits"), (logits,))
    assert gradcheck(lambda z: GEODESIC.fisher_rao_metric(z.softmax(-1)), (logits,))
    assert gradcheck(lambda z: GEODESIC.christoffel_symbols(z.softmax(-1)), (logits,))


def test_faults_are_named():
    p, q = rows(1, 2, 3), rows(2, 2, 3)
    wrong = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.6, 0.0]], dtype=F64)
    with pytest.raises(GeometryError, match=r"index \(1,\)"):
        GEODESIC.compute_path(p, wrong)
    with pytest.raises(GeometryError, match="closed form"):
        GEODESIC.compute_path(p[0], wrong[0], method="integrate")
    with pytest.raises(GeometryError, match="guess"):
        GEODESIC.compute_path(p, q, method="guess")
    with pytest.raises(GeometryError, match="guess"):
        GEODESIC.fisher_rao_metric(p, "guess")
    with pytest.raises(GeometryError, match="steps"):
        GEODESIC.compute_path(p, q, 0)
    with pytest.raises(GeometryError, match="steps"):
        GEODESIC.compute_path(p, q, 1.5)
    for logits in (p * math.nan, torch.full((3,), -math.inf, dtype=F64)):
        with pytest.raises(GeometryError, match="probabilities"):
            GEODESIC.fisher_rao_metric(logits, "logits")
    masked = GEODESIC.fisher_rao_metric(torch.tensor([0.0, -math.inf, 1.0], dtype=F64), "logits")
    assert masked.isfinite().all() and masked[1].abs().max() == 0
    with pytest.raises(GeometryError, match="small"):
        GEODESIC.fisher_rao_metric(torch.tensor([1e-320, 1.0], dtype=F64))
    with pytest.raises(PointShapeError):
        GEODESIC.compute_path(p, q[:, :2])
    with pytest.raises(PointShapeError):
        GEODESIC.compute_path(p, q.float())
