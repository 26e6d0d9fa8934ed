"""The quantum geometric tensor against closed forms: Bloch sphere, coherent states, spins, and loops of overlaps."""

import cmath
import math

import numpy as np
import pytest
import torch

from aatc.geometry import (
    GeometryError,
    PointShapeError,
    berry_curvature,
    fubini_study_metric,
    quantum_geometric_tensor,
)
from aatc.nn import StateField


def bloch(x):
    """(cos θ/2, e^{iφ} sin θ/2) at (θ, φ)."""
    half, phi = x[..., 0] / 2, x[..., 1]
    zero = torch.zeros_like(half)
    return torch.stack((torch.complex(half.cos(), zero), torch.polar(half.sin(), phi)), -1)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_bloch_sphere_has_radius_a_half_and_a_monopole_inside():
    x = torch.tensor([[0.3, 0.0], [1.2, 2.0], [math.pi / 2, -1.0], [3.0, 5.0]], dtype=torch.float64)
    sin = x[:, 0].sin()
    metric = torch.diag_embed(torch.stack((torch.ones_like(sin), sin.square()), -1)) / 4
    torch.testing.assert_close(fubini_study_metric(bloch, x), metric, rtol=1e-12, atol=1e-14)
    omega = berry_curvature(bloch, x)
    torch.testing.assert_close(omega[:, 0, 1], -sin / 2, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(omega, -omega.mT)
    # the curvature over the sphere is 2π times a whole number
    nodes, weights = np.polynomial.legendre.leggauss(12)
    theta = torch.tensor((nodes + 1) * math.pi / 2)
    ring = torch.stack((theta, torch.zeros_like(theta)), -1)
    flux = 2 * math.pi * (berry_curvature(bloch, ring)[:, 0, 1] * torch.tensor(weights * math.pi / 2)).sum()
    assert flux.item() == pytest.approx(-2 * math.pi, rel=1e-9)


@pytest.mark.parametrize("spin", [1, 2, 5])
def test_coherent_states_of_a_spin_are_a_larger_sphere(spin):
    # products of `spin` halves: Q is as many times that of one
    x = torch.tensor([[0.7, 0.4], [2.1, -1.3]], dtype=torch.float64)

    def family(x):
        half, phi = x[..., :1] / 2, x[..., 1:]
        k = torch.arange(spin + 1)
        root = torch.tensor([math.sqrt(math.comb(spin, n)) for n in range(spin + 1)], dtype=x.dtype)
        return torch.polar(root * half.cos() ** (spin - k) * half.sin() ** k, k * phi)

    want = spin * quantum_geometric_tensor(bloch, x)
    torch.testing.assert_close(quantum_geometric_tensor(family, x), want, rtol=1e-10, atol=1e-12)


def test_coherent_states_of_an_oscillator_are_a_flat_plane_with_constant_curvature():
    x = 0.7 * draw(5, 2)

    def family(x):
        z = torch.complex(x[..., 0], x[..., 1])
        return torch.stack([z**n / math.sqrt(math.factorial(n)) for n in range(40)], -1)  # not normalised

    q = quantum_geometric_tensor(family, x)
    want = torch.tensor([[1, 1j], [-1j, 1]], dtype=torch.complex128).expand(5, 2, 2)
    torch.testing.assert_close(q, want, rtol=1e-9, atol=1e-9)


def test_rays_count_not_phases_or_norms_and_coordinates_change_it_as_a_tensor():
    x = torch.tensor([[0.7, 0.4], [2.1, -1.3]], dtype=torch.float64)
    q = quantum_geometric_tensor(bloch, x)

    def gauged(x):
        return bloch(x) * torch.polar(1 + x.square().sum(-1), 3 * x[..., 0] * x[..., 1])[..., None]

    torch.testing.assert_close(quantum_geometric_tensor(gauged, x), q, rtol=1e-10, atol=1e-12)
    t = torch.tensor([[1.0, 2.0], [-0.5, 3.0]], dtype=torch.float64)
    moved = quantum_geometric_tensor(lambda y: bloch(y @ t.T), torch.linalg.solve(t, x.T).T)
    torch.testing.assert_close(moved, t.T.to(q) @ q @ t.to(q), rtol=1e-10, atol=1e-12)
    real = quantum_geometric_tensor(lambda y: torch.cat((y.cos(), y.sin()), -1), x[:, :1])
    torch.testing.assert_close(real, torch.ones(2, 1, 1, dtype=q.dtype))
    assert torch.autograd.gradcheck(lambda y: quantum_geometric_tensor(bloch, y), x.requires_grad_())


@pytest.mark.parametrize("seed", range(3))
def test_a_field_of_states_is_the_covariance_of_its_levels(seed):
    torch.manual_seed(seed)
    field = StateField(2, 3, 2).double()
    with torch.no_grad():
        field.level.normal_()
    places = draw(2, 2, 4, 3, seed=seed)

    def family(x):
        states = field(x)
        return torch.complex(*states.chunk(2, -1))

    want = quantum_geometric_tensor(family, places)
    got = field.quantum_geometric_tensor(places)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(field.fubini_study_metric(places), want.real, rtol=1e-10, atol=1e-12)
    assert torch.linalg.eigvalsh(got).min() >= -1e-12
    # the curvature is the phase of a small loop of overlaps, by its area: no derivative taken
    omega, size = field.berry_curvature(places), 1e-3
    for i, j in ((0, 1), (0, 2), (1, 2)):
        u, v = size / 2 * torch.eye(3, dtype=torch.float64)[[i, j]]
        corners = [family(places + w)[1, 1, 2].tolist() for w in (-u - v, u - v, u + v, v - u)]
        loop = 1
        for n in range(4):
            loop *= sum(a.conjugate() * b for a, b in zip(corners[n], corners[(n + 1) % 4], strict=True))
        assert -cmath.phase(loop) / size**2 == pytest.approx(omega[1, 1, 2, i, j].item(), rel=1e-4, abs=1e-6)


def test_a_field_of_two_levels_is_the_bloch_sphere_in_mercators_chart():
    # levels 1 and 2 of 3: latitude log tan θ/2 = x, longitude y; the third never happens
    field = StateField(1, 2, 1).double()
    with torch.no_grad():
        field.level.copy_(torch.tensor([[0.0, 0.0, -80.0]]))
        field.growth.copy_(torch.tensor([[[0.0], [1.0], [0.0]]]))
        field.directions.copy_(torch.tensor([[[1.0, 0.0]]]))
        field.frequency.copy_(torch.tensor([[[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]]))
    places = draw(1, 1, 6, 2)
    theta = 2 * torch.atan(places[0, 0, :, 0].exp())
    square = (theta.sin() / 2).square()
    eye = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(field.fubini_study_metric(places)[0, 0], square[:, None, None] * eye)
    # dθ = sin θ dx: Ω_θφ sin θ
    torch.testing.assert_close(field.berry_curvature(places)[0, 0, :, 0, 1], -2 * square)


def test_half_precision_places_are_measured_in_single():
    field = StateField(2, 3, 2)
    places = draw(1, 2, 4, 3).half()
    got = field.half().quantum_geometric_tensor(places)
    want = field.double().quantum_geometric_tensor(places.double())
    assert got.dtype == torch.complex64
    torch.testing.assert_close(got.to(want), want, rtol=1e-5, atol=1e-5)


def test_no_points_and_what_does_not_fit():
    x = torch.tensor([[0.7, 0.4]], dtype=torch.float64)
    assert quantum_geometric_tensor(bloch, x[:0]).shape == (0, 2, 2)
    with pytest.raises(PointShapeError, match="real tensors"):
        quantum_geometric_tensor(bloch, torch.tensor(1.0))
    with pytest.raises(PointShapeError, match="real tensors"):
        quantum_geometric_tensor(bloch, x.long())
    with pytest.raises(PointShapeError, match="states are"):
        quantum_geometric_tensor(lambda y: bloch(y)[0], x.expand(3, 2))
    with pytest.raises(GeometryError, match="no ray"):
        quantum_geometric_tensor(lambda y: y - y.detach(), x)
