"""The curvature tensor against its symmetries, spaces of constant curvature and the definition by Γ."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from aatc.geometry.manifold import GeometryError, PointShapeError
from aatc.geometry.manifolds.curvature import directional_derivative, jacobian, metric_derivatives
from aatc.geometry.manifolds.riemannian import RiemannianStructure
from tests.geometry.chart_cases import CHARTS, CURVATURES, F64, WARPED, points, vectors, warped

SEEDS = st.integers(0, 10**6)


def close(got, want, atol=1e-8):
    torch.testing.assert_close(got, want, rtol=atol, atol=atol)


@settings(max_examples=8)
@given(seed=SEEDS)
def test_riemann_has_its_symmetries_and_is_the_curl_of_the_connection(seed):
    x = points("warped", seed)
    curvature = WARPED.curvature_tensor(x)
    r = curvature.riemann_lowered
    assert r.abs().max() > 1e-3
    close(r, -r.transpose(-1, -2))
    close(r, -r.transpose(-4, -3))
    close(r, torch.einsum("blijk->bjkli", r))
    close(r + torch.einsum("blijk->bljki", r) + torch.einsum("blijk->blkij", r), torch.zeros_like(r))
    close(curvature.ricci, curvature.ricci.mT)
    close(torch.einsum("bml,blijk->bmijk", curvature.metric, curvature.riemann), r)
    gamma = WARPED.christoffel_symbols(x)
    change = jacobian(WARPED.christoffel_symbols)(x)
    half = torch.einsum("blkij->blijk", change) + torch.einsum("bljm,bmki->blijk", gamma, gamma)
    close(curvature.riemann, half - half.transpose(-1, -2))


def test_second_bianchi_identity():
    (x,) = points("warped", 7, 1)
    r = WARPED.curvature_tensor(x).riemann
    gamma = WARPED.christoffel_symbols(x)
    nabla = torch.func.jacrev(lambda y: WARPED.curvature_tensor(y).riemann)(x)
    nabla = nabla + torch.einsum("lmp,pijk->lijkm", gamma, r) - torch.einsum("pmi,lpjk->lijkm", gamma, r)
    nabla = nabla - torch.einsum("pmj,lipk->lijkm", gamma, r) - torch.einsum("pmk,lijp->lijkm", gamma, r)
    assert nabla.abs().max() > 1e-3
    cyclic = nabla + torch.einsum("lijkm->likmj", nabla) + torch.einsum("lijkm->limjk", nabla)
    close(cyclic, torch.zeros_like(cyclic))


@pytest.mark.parametrize("name", CURVATURES)
@settings(max_examples=5)
@given(seed=SEEDS)
def test_spaces_of_constant_curvature(name, seed):
    chart, x, k = CHARTS[name], points(name, seed), CURVATURES[name]
    n = x.shape[-1]
    u, v = vectors(seed, 2, n)
    curvature = chart.curvature_tensor(x)
    close(curvature.sectional(u, v), torch.full((2,), float(k), dtype=F64))
    close(curvature.ricci, (n - 1) * k * chart.metric_tensor(x))
    close(curvature.scalar, torch.full((2,), float(n * (n - 1) * k), dtype=F64))


def test_gaussian_curvature_of_a_surface_of_revolution():
    # Arc length s and angle: K = −f''/f for the radius f(s) = 2 + sin s.
    def metric(x):
        radius = 2 + x[..., 0].sin()
        return torch.diag_embed(torch.stack((torch.ones_like(radius), radius.square()), -1))

    x = torch.tensor([[0.3, 1.0], [2.0, 0.0]], dtype=F64)
    want = x[:, 0].sin() / (2 + x[:, 0].sin())
    close(RiemannianStructure(metric).curvature_tensor(x).scalar, 2 * want)


def test_curvature_is_differentiable_in_points_and_vectors():
    x = points("warped", 2, 1).requires_grad_()
    u, v = (w.requires_grad_() for w in vectors(2, 2, 3, 1))

    def values(a, b, c):
        found = WARPED.curvature_tensor(a)
        return found.riemann, found.riemann_lowered, found.ricci, found.scalar, found.sectional(b, c)

    assert gradcheck(values, (x, u, v))


def test_derivatives_are_right_for_the_operations_whose_nested_forward_mode_is_not():
    def metric(x):
        g = warped(x)
        return torch.linalg.solve(g, warped(x.flip(-1)) @ g) + torch.logdet(g)[..., None, None] * g

    x = points("warped", 4)
    first, second = metric_derivatives(metric, x)
    h = 1e-5
    for k, e in enumerate(torch.eye(3, dtype=F64)):
        close(first[..., k], (metric(x + h * e) - metric(x - h * e)) / (2 * h), 1e-7)
        ahead, behind = metric_derivatives(metric, x + h * e)[0], metric_derivatives(metric, x - h * e)[0]
        close(second[..., k], (ahead - behind) / (2 * h), 1e-7)
        close(directional_derivative(metric, x, e.expand_as(x))[1], first[..., k], 1e-12)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_sectional_curvature_does_not_see_the_lengths_of_the_vectors(size):
    curvature = WARPED.curvature_tensor(points("warped", 1))
    u, v = vectors(1, 2, 3)
    close(curvature.sectional(size * u, size * v), curvature.sectional(u, v))


def test_vectors_that_do_not_fit_span_no_plane():
    curvature = WARPED.curvature_tensor(points("warped", 1))
    u, v = vectors(1, 2, 3)
    for wrong in ((u[:, :2], v[:, :2]), (u.float(), v), (u.expand(4, 2, 3)[:, :1].expand(4, 3, 3), v)):
        with pytest.raises(PointShapeError, match="planes"):
            curvature.sectional(*wrong)
    for wrong in ((0 * u, v), (math.nan * u, v)):
        with pytest.raises(GeometryError, match="dependent"):
            curvature.sectional(*wrong)


def test_dependent_vectors_span_no_plane():
    u, _ = vectors(1, 2, 3)
    curvature = WARPED.curvature_tensor(points("warped", 1))
    with pytest.raises(GeometryError, match="dependent"):
        curvature.sectional(u, 2 * u)
