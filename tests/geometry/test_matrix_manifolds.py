"""Rotations, motions, subspaces, frames and log-Euclidean matrices against axioms, scipy and equations of their own."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import torch
from scipy.spatial.transform import Rotation

from aatc.geometry import (
    CutLocusError,
    GeometryError,
    Grassmann,
    LogEuclideanSPD,
    PointShapeError,
    SpecialEuclidean,
    SpecialOrthogonal,
    Stiefel,
)
from aatc.geometry.manifolds.orthogonal import matrix_exponential
from tests.geometry.every_manifold import MANIFOLDS, new, points, tangent


def near(a, b, atol=1e-9):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


@new
@pytest.mark.parametrize("seed", [0, 1])
def test_axioms(name, seed):
    manifold, (x, y, z) = points(name, 3, seed=seed)
    u, v = tangent(manifold, x, seed, 0.4), tangent(manifold, x, seed + 1, 1.0)
    log, moved = manifold.log(x, y), manifold.transport(x, y, v)
    assert manifold.belongs(torch.stack([x, y, manifold.exp(x, v), manifold.geodesic(x, y, 0.4)]), 1e-10).all()
    assert manifold.is_tangent(x, log, 1e-10).all() and manifold.is_tangent(y, moved, 1e-10).all()
    near(manifold.exp(x, log), y)
    near(manifold.log(x, manifold.exp(x, u)), u)
    near(manifold.dist(x, y), manifold.norm(x, log))
    near(manifold.dist(y, x), manifold.dist(x, y))
    assert (
        (manifold.dist(x, z) <= manifold.dist(x, y) + manifold.dist(y, z) + 1e-12).all() if name != "stiefel" else True
    )
    middle = manifold.geodesic(x, y, 0.3)
    near(manifold.dist(x, middle), 0.3 * manifold.dist(x, y))
    near(manifold.inner(y, manifold.transport(x, y, u), moved), manifold.inner(x, u, v))
    near(manifold.transport(y, x, moved), v)
    near(manifold.transport(x, y, log), -manifold.log(y, x))
    near(manifold.transport(x, y, u + 2 * v), manifold.transport(x, y, u) + 2 * moved)
    off = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    once = manifold.projection(off)
    assert (manifold.belongs(once, 1e-10).all() and not manifold.belongs(off, 1e-10).any()) or "log" in name
    near(manifold.projection(once), once)
    near(manifold.dist(x, x), 0, 1e-14)
    size = 1e-6 * tangent(manifold, x, 3)
    near(manifold.dist(x, manifold.exp(x, size)), manifold.norm(x, size), 2e-15)


@new
def test_single_precision_half_precision_and_no_points(name):
    manifold, (x, y) = points(name, 2)
    a, b = x.float(), y.float()
    assert manifold.dist(a, b).dtype == manifold.log(a, b).dtype == torch.float32
    near(manifold.dist(a, b), manifold.dist(x, y), 2e-5)
    near(manifold.exp(a, manifold.log(a, b)), y, 2e-5)
    assert manifold.log(x[:0], y[:0]).shape == (0, *x.shape[1:])
    if name != "log_euclidean":
        with pytest.raises(PointShapeError, match="single or double"):
            manifold.dist(x.half(), y.half())
    with pytest.raises(PointShapeError):
        manifold.dist(x[..., :1], y[..., :1]) if name == "stiefel" else manifold.dist(x[..., :2], y[..., :2])
        Stiefel().random_point((2, 3))


def test_rotations_are_those_of_axis_and_angle():
    a, b = (Rotation.random(20, random_state=s) for s in (0, 1))
    x, y = (torch.tensor(r.as_matrix()) for r in (a, b))
    so = SpecialOrthogonal()
    near(so.dist(x, y), (a.inv() * b).magnitude(), 1e-12)
    near(so.geodesic(x, y, 0.3), (a * Rotation.from_rotvec(0.3 * (a.inv() * b).as_rotvec())).as_matrix(), 1e-12)
    q = so.random_point((5, 6, 6), torch.Generator().manual_seed(0), dtype=torch.float64)
    one = torch.eye(6, dtype=torch.float64)
    near(so.log(one, q), np.stack([scipy.linalg.logm(r.numpy()).real for r in q]), 1e-10)


@pytest.mark.parametrize("gap", [1e-3, 1e-7, 1e-11])
def test_rotations_by_nearly_a_half_turn_keep_their_digits(gap):
    angle = math.pi - gap
    turn = Rotation.from_rotvec(angle * np.array([2.0, -1.0, 2.0]) / 3)
    one, y = torch.eye(3, dtype=torch.float64), torch.tensor(turn.as_matrix())
    so = SpecialOrthogonal()
    near(so.dist(one, y), angle, 4e-15)
    near(so.norm(one, so.log(one, y)), angle, 4e-15)
    near(so.exp(one, so.log(one, y)), y, 4e-15)


def test_a_half_turn_has_a_distance_and_no_log():
    one = torch.eye(3, dtype=torch.float64, requires_grad=True)
    y = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    for manifold, a, b in (
        (SpecialOrthogonal(), one, y),
        (Grassmann(1), torch.diag(one.detach()[0]).requires_grad_(), torch.diag(one.detach()[1])),
    ):
        distance = manifold.dist(a, b)
        near(distance.detach(), math.pi if manifold.__class__ is SpecialOrthogonal else math.pi / 2, 1e-14)
        assert torch.autograd.grad(distance, a)[0].isfinite().all()
        for call in (manifold.log, lambda p, q, m=manifold: m.transport(p, q, p)):
            with pytest.raises(CutLocusError, match="half turn"):
                call(a, b)
    with pytest.raises(CutLocusError, match="shorter than"):
        Stiefel().log(one.detach()[:, :1], -one.detach()[:, :1])


def test_projections_reach_what_is_nearest_and_refuse_what_is_not_unique():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(8, 4, 4, generator=generator, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(a)
    flip = torch.ones(8, 4, dtype=torch.float64)
    flip[:, -1] = torch.linalg.det(u @ vh)
    assert (flip[:, -1] < 0).any() and (flip[:, -1] > 0).any()
    near(SpecialOrthogonal().projection(a), (u * flip[:, None]) @ vh, 1e-11)
    near(Stiefel().projection(a[..., :2]), np.stack([scipy.linalg.polar(m[:, :2].numpy())[0] for m in a]), 1e-12)
    vectors = torch.linalg.eigh((a + a.mT) / 2)[1]
    near(Grassmann(2).projection(a), vectors[..., 2:] @ vectors[..., 2:].mT, 1e-11)
    for manifold, bad in (
        (SpecialOrthogonal(), torch.zeros(3, 3)),
        (SpecialOrthogonal(), torch.diag(torch.tensor([1.0, 1.0, -1.0]))),
        (Grassmann(1), torch.eye(3)),
        (Stiefel(), torch.ones(3, 2)),
    ):
        with pytest.raises(GeometryError):
            manifold.projection(bad)


def test_distances_of_subspaces_are_their_principal_angles():
    gr = Grassmann(2)
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(10, 5, 2, generator=generator, dtype=torch.float64))[0] for _ in "ab")
    angles = np.stack([scipy.linalg.subspace_angles(a.numpy(), b.numpy()) for a, b in zip(u, v)])
    near(gr.dist(gr.from_basis(u), gr.from_basis(3 * v)), np.linalg.norm(angles, axis=-1), 1e-12)
    basis = gr.to_basis(gr.from_basis(u))
    near(gr.from_basis(basis), u @ u.mT, 1e-12)
    near(basis.mT @ basis, np.broadcast_to(np.eye(2), (10, 2, 2)), 1e-12)


def test_screws_are_the_exponential_of_the_group_and_geodesics_are_not():
    se = SpecialEuclidean()
    generator = torch.Generator().manual_seed(0)
    twist = torch.randn(6, 4, 4, generator=generator, dtype=torch.float64)
    twist = torch.cat([torch.cat([(twist - twist.mT)[:, :3, :3] / 2, twist[:, :3, 3:]], -1), 0 * twist[:, :1]], -2)
    x = se.group_exp(twist)
    near(x, np.stack([scipy.linalg.expm(t.numpy()) for t in twist]), 1e-12)
    near(se.group_log(x), twist, 1e-11)
    near(se.compose(x, se.inverse(x)), np.broadcast_to(np.eye(4), x.shape), 1e-12)
    near(se.compose(x, x), x @ x, 1e-12)
    y, z = (se.random_point((6, 4, 4), generator, dtype=torch.float64) for _ in "ab")
    near(se.dist(se.compose(x, y), se.compose(x, z)), se.dist(y, z), 1e-12)
    assert float((se.exp(torch.eye(4, dtype=torch.float64), twist) - x).abs().max()) > 1e-2
    one = torch.eye(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(se.group_log, (x[:1].clone().requires_grad_(),))
    assert torch.autograd.gradgradcheck(se.group_exp, (0 * one.clone().requires_grad_(),))


def test_log_euclidean_maps_are_those_of_the_logarithms():
    manifold, (x, y) = points("log_euclidean", 2)
    lx, ly = (np.stack([scipy.linalg.logm(m.numpy()) for m in p]) for p in (x, y))
    near(manifold.dist(x, y), np.linalg.norm(lx - ly, axis=(1, 2)), 1e-11)
    near(manifold.geodesic(x, y, 0.3), np.stack([scipy.linalg.expm(m) for m in 0.7 * lx + 0.3 * ly]), 1e-11)
    near(
        manifold.log(x, y), np.stack([scipy.linalg.expm_frechet(a, b - a, compute_expm=False) for a, b in zip(lx, ly)])
    )
    a = SpecialOrthogonal().random_point((3, 3), torch.Generator().manual_seed(0), dtype=torch.float64)
    near(manifold.dist(3 * a @ x @ a.mT, 3 * a @ y @ a.mT), manifold.dist(x, y), 1e-11)
    near(manifold.dist(torch.linalg.inv(x), torch.linalg.inv(y)), manifold.dist(x, y), 1e-11)


def _christoffel(y, a, b):
    """The canonical metric's, by polarising the geodesic equation of Edelman, Arias and Smith."""
    beside = np.eye(len(y)) - y @ y.T
    one = a @ b.T @ y + y @ (b.T @ beside @ a)
    two = b @ a.T @ y + y @ (a.T @ beside @ b)
    return (one + two) / 2


@pytest.mark.parametrize("shape", [(4, 2), (3, 3), (4, 1)])
def test_frames_follow_the_equations_of_geodesics_and_of_transport(shape):
    st = Stiefel()
    generator = torch.Generator().manual_seed(1)
    x = st.random_point(shape, generator, dtype=torch.float64)
    v, w = (st.tangent_projection(x, torch.randn(shape, generator=generator, dtype=torch.float64)) for _ in "ab")
    v = v * (1.9 / st.norm(x, v))

    def slope(_, state):
        y, dy, z = state.reshape(3, *shape)
        return np.stack([dy, -_christoffel(y, dy, dy), -_christoffel(y, dy, z)]).ravel()

    start = torch.stack([x, v, w]).numpy().ravel()
    end = scipy.integrate.solve_ivp(slope, (0, 1), start, rtol=1e-11, atol=1e-12, method="DOP853").y[:, -1]
    y, _, z = end.reshape(3, *shape)
    near(st.exp(x, v), y, 1e-9)
    near(st.transport(x, torch.tensor(y), w), z, 1e-8)
    near(st.log(x, torch.tensor(y)), v, 1e-8)


@pytest.mark.parametrize("shape", [(4, 2), (5, 4), (3, 3)])
def test_logs_of_frames_are_found_wherever_they_are_unique(shape):
    st = Stiefel()
    generator = torch.Generator().manual_seed(0)
    x = st.random_point((6, *shape), generator, dtype=torch.float64)
    v = st.tangent_projection(x, torch.randn(x.shape, generator=generator, dtype=torch.float64))
    v = v * (torch.linspace(0.5, 2.8, 6, dtype=torch.float64) / st.norm(x, v))[:, None, None]
    near(st.log(x, st.exp(x, v)), v, 1e-11)


def test_wrong_parameters_and_points_are_typed_errors():
    for call in (
        lambda: Grassmann(0),
        lambda: SpecialEuclidean(-1.0),
        lambda: LogEuclideanSPD().log(-torch.eye(2), torch.eye(2)),
    ):
        with pytest.raises(GeometryError):
            call()
    for call in (
        lambda: Grassmann(3).random_point((2, 2)),
        lambda: Grassmann(2).from_basis(torch.eye(3)),
        lambda: SpecialEuclidean().random_point((1, 1)),
        lambda: SpecialOrthogonal().random_point((2, 3)),
    ):
        with pytest.raises(PointShapeError):
            call()
    wrong = {
        "rotations": -torch.eye(3),
        "motions": 2 * torch.eye(4),
        "grassmann": torch.eye(4),
        "stiefel": torch.ones(4, 2),
    }
    for name, x in wrong.items():
        assert not MANIFOLDS[name][0].belongs(x)
    assert not SpecialOrthogonal().belongs(torch.full((3, 3), math.nan))


@pytest.mark.parametrize("norm", [1e-4, 3e-3, 0.03, 0.045, 0.2, 3.0])
def test_exponentials_of_small_matrices_keep_their_digits(norm):
    a = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = a * norm / torch.linalg.matrix_norm(a, 1, keepdim=True)
    near(matrix_exponential(a), np.stack([scipy.linalg.expm(m.numpy()) for m in a]), 4e-15 * (1 + math.exp(norm)))
    turn = a[0] - a[0].mT
    moved = matrix_exponential(turn)
    near(moved.mT @ moved, np.eye(4), 2e-15)
