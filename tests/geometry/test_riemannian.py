"""RiemannianStructure against closed forms: sphere, Poincaré half-plane, Fisher–Rao simplex, flat space."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aatc.geometry.integrate import Path, rk4, sample_curve
from aatc.geometry.riemannian import (
    ChartError,
    GeodesicNotFoundError,
    GeometryError,
    MetricError,
    RiemannianStructure,
)

EXACT = {"rtol": 1e-8, "atol": 1e-8}
few = settings(max_examples=2, deadline=None)


def sphere_metric(x: Tensor) -> Tensor:
    """Unit sphere in colatitude and longitude."""
    return torch.diag_embed(torch.stack((torch.ones_like(x[..., 0]), x[..., 0].sin() ** 2), dim=-1))


def half_plane_metric(x: Tensor) -> Tensor:
    return torch.diag_embed((x[..., 1:] ** -2).expand_as(x))


def simplex_metric(p: Tensor) -> Tensor:
    """δ_ij / p_i + 1 / p_0 in the coordinates p_1..p_n."""
    return torch.diag_embed(1 / p) + (1 / (1 - p.sum(-1)))[..., None, None]


def bumpy_metric(x: Tensor) -> Tensor:
    """A metric without symmetry: the identity plus w wᵀ."""
    w = torch.stack((x[..., 1].sin(), x[..., 2] * x[..., 0], x[..., 0].cos()), dim=-1)
    return torch.eye(3, dtype=x.dtype, device=x.device) + w.unsqueeze(-1) * w.unsqueeze(-2)


def sphere_symbols(x: Tensor) -> Tensor:
    theta, zero = x[..., 0], torch.zeros_like(x[..., 0])
    cotangent = theta.cos() / theta.sin()
    entries = (zero, zero, zero, -theta.sin() * theta.cos(), zero, cotangent, cotangent, zero)
    return torch.stack(entries, dim=-1).unflatten(-1, (2, 2, 2))


def half_plane_symbols(x: Tensor) -> Tensor:
    r, zero = 1 / x[..., 1], torch.zeros_like(x[..., 1])
    return torch.stack((zero, -r, -r, zero, r, zero, zero, -r), dim=-1).unflatten(-1, (2, 2, 2))


def simplex_symbols(p: Tensor) -> Tensor:
    """Γ^k_ij = −δ_ijk / (2 p_k) + ½ p_k g_ij."""
    delta = torch.diag_embed(torch.diag_embed(-0.5 / p))
    return delta + 0.5 * p[..., None, None] * simplex_metric(p).unsqueeze(-3)


SPHERE = RiemannianStructure(sphere_metric, 2)
HALF_PLANE = RiemannianStructure(half_plane_metric, 2)
SIMPLEX = RiemannianStructure(simplex_metric, 3)
BUMPY = RiemannianStructure(bumpy_metric, 3)
FLAT = RiemannianStructure(lambda x: torch.eye(3, dtype=x.dtype, device=x.device).expand(*x.shape, 3), 3)
SYMBOLS = {"sphere": sphere_symbols, "half-plane": half_plane_symbols, "simplex": simplex_symbols}
SPACES = {"sphere": SPHERE, "half-plane": HALF_PLANE, "simplex": SIMPLEX, "bumpy": BUMPY, "flat": FLAT}
CURVATURE = {"sphere": 1.0, "half-plane": -1.0, "simplex": 0.25, "flat": 0.0}


def draw_points(space: str, seed: int, shape: tuple[int, ...] = (4,)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    n = SPACES[space].dim
    x = torch.rand(*shape, n, generator=generator, dtype=torch.float64)
    if space == "simplex":
        return 0.05 + 0.8 * torch.softmax(3 * torch.cat((x, 0 * x[..., :1]), -1), -1)[..., :-1]
    return x + 0.5


def draw_vectors(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64)


seeds = st.integers(0, 2**31)
spaces = st.sampled_from(sorted(SPACES))


def lowered(space: str, x: Tensor) -> Tensor:
    """R_lkij."""
    return torch.einsum("...lm,...mkij->...lkij", SPACES[space].metric(x), SPACES[space].curvature_tensor(x))


@few
@given(st.sampled_from(sorted(SYMBOLS)), seeds)
def test_christoffel_symbols_equal_the_closed_forms(space: str, seed: int) -> None:
    x = draw_points(space, seed, (2, 3))
    torch.testing.assert_close(SPACES[space].christoffel_symbols(x), SYMBOLS[space](x), **EXACT)


@pytest.mark.parametrize("space", sorted(SYMBOLS))
def test_a_closed_form_gives_the_same_geometry_as_autograd(space: str) -> None:
    derived = SPACES[space]
    given_form = RiemannianStructure(derived.metric, derived.dim, christoffel=SYMBOLS[space])
    x = draw_points(space, 3)
    v = 0.02 * draw_vectors(x, 3)
    torch.testing.assert_close(given_form.curvature_tensor(x), derived.curvature_tensor(x), **EXACT)
    here, there = given_form.geodesic_flow(x, v, steps=8), derived.geodesic_flow(x, v, steps=8)
    torch.testing.assert_close(here.points, there.points, **EXACT)


@few
@given(st.sampled_from(sorted(CURVATURE)), seeds)
def test_curvature_of_the_space_forms(space: str, seed: int) -> None:
    k, structure = CURVATURE[space], SPACES[space]
    x = draw_points(space, seed)
    u, v, n, g = draw_vectors(x, seed), draw_vectors(x, seed + 1), structure.dim, structure.metric(x)
    torch.testing.assert_close(structure.sectional(x, u, v), torch.full((4,), k, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(structure.ricci(x), (n - 1) * k * g, **EXACT)
    torch.testing.assert_close(structure.scalar(x), torch.full((4,), n * (n - 1) * k, dtype=torch.float64), **EXACT)
    delta = torch.eye(n, dtype=torch.float64)
    expected = torch.einsum("li,...jk->...lkij", delta, g) - torch.einsum("lj,...ik->...lkij", delta, g)
    torch.testing.assert_close(structure.curvature_tensor(x), k * expected, **EXACT)


@few
@given(spaces, seeds)
def test_curvature_symmetries_and_first_bianchi_identity(space: str, seed: int) -> None:
    r = lowered(space, draw_points(space, seed))
    torch.testing.assert_close(r, -r.mT, **EXACT)
    torch.testing.assert_close(r, -r.transpose(-4, -3), **EXACT)
    torch.testing.assert_close(r, torch.einsum("...lkij->...ijlk", r), **EXACT)
    cyclic = r + torch.einsum("...lkij->...lijk", r) + torch.einsum("...lkij->...ljki", r)
    torch.testing.assert_close(cyclic, torch.zeros_like(r), **EXACT)


@few
@given(spaces, seeds)
def test_the_connection_is_metric_and_torsion_free(space: str, seed: int) -> None:
    x = draw_points(space, seed)
    residual = SPACES[space].nonmetricity(x)
    torch.testing.assert_close(residual, torch.zeros_like(residual), **EXACT)
    gamma = SPACES[space].christoffel_symbols(x)
    torch.testing.assert_close(gamma, gamma.mT, **EXACT)


def test_a_wrong_closed_form_is_seen_by_its_nonmetricity() -> None:
    wrong = RiemannianStructure(sphere_metric, 2, christoffel=lambda x: -sphere_symbols(x))
    assert wrong.nonmetricity(draw_points("sphere", 0)).abs().max() > 0.1


@few
@given(seeds)
def test_covariant_derivative_is_a_derivation_of_the_metric(seed: int) -> None:
    x = draw_points("bumpy", seed)
    u = draw_vectors(x, seed)
    field = torch.sin
    change = torch.func.jvp(lambda p: BUMPY.metric_tensor(p, (field(p), field(p))), (x,), (u,))[1]
    along = BUMPY.covariant_derivative(field, x, u)
    torch.testing.assert_close(change, 2 * BUMPY.metric_tensor(x, (along, field(x))), **EXACT)


@few
@given(spaces, seeds)
def test_geodesics_keep_their_speed(space: str, seed: int) -> None:
    x = draw_points(space, seed)
    path = SPACES[space].geodesic_flow(x, 0.02 * draw_vectors(x, seed), steps=32)
    energy = SPACES[space].metric_tensor(path.points, (path.velocities, path.velocities))
    torch.testing.assert_close(energy, energy[:1].expand_as(energy), **EXACT)


def test_half_plane_geodesics_are_the_semicircles_at_fourth_order() -> None:
    start, velocity = torch.tensor([0.0, 1.0]).double(), torch.tensor([1.0, 0.0]).double()
    exact = torch.tensor([math.tanh(2.0), 1 / math.cosh(2.0)]).double()
    misses = [
        (HALF_PLANE.geodesic_flow(start, velocity, 2.0, steps).points[-1] - exact).norm().item()
        for steps in (20, 40, 80)
    ]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(misses)]
    assert all(3.7 < order < 4.5 for order in orders), orders
    assert misses[-1] < 1e-6


@few
@given(seeds)
def test_geodesic_between_finds_the_half_plane_distance(seed: int) -> None:
    x, y = draw_points("half-plane", seed), draw_points("half-plane", seed + 1)
    path = HALF_PLANE.geodesic_between(x, y, steps=24)
    torch.testing.assert_close(path.points[-1], y, rtol=1e-11, atol=1e-11)
    speed = HALF_PLANE.metric_tensor(x, (path.velocities[0], path.velocities[0])).sqrt()
    distance = torch.acosh(1 + (x - y).square().sum(-1) / (2 * x[..., 1] * y[..., 1]))
    torch.testing.assert_close(speed, distance, rtol=1e-4, atol=1e-4)


def test_geodesic_between_on_the_simplex_is_the_slerp_of_square_roots() -> None:
    p, q = torch.tensor([[0.2, 0.3, 0.1], [0.3, 0.3, 0.2]], dtype=torch.float64)
    path = SIMPLEX.geodesic_between(p, q, steps=32)
    roots = [torch.cat((x, 1 - x.sum(-1, keepdim=True))).sqrt() for x in (p, q)]
    angle = torch.acos((roots[0] * roots[1]).sum())
    t = path.times.unsqueeze(-1)
    slerp = (torch.sin((1 - t) * angle) * roots[0] + torch.sin(t * angle) * roots[1]) / torch.sin(angle)
    torch.testing.assert_close(path.points, slerp[:, :-1] ** 2, **EXACT)
    speed = SIMPLEX.metric_tensor(p, (path.velocities[0], path.velocities[0])).sqrt()
    torch.testing.assert_close(speed, 2 * angle, **EXACT)


def spherical_triangle(steps: int) -> tuple[float, float]:
    """Angle by which a vector turns around a triangle on the sphere, and the triangle's area."""
    corners = torch.tensor([[0.9, 0.3], [1.4, 1.2], [0.7, 1.6]], dtype=torch.float64)
    theta, phi = corners.unbind(-1)
    a, b, c = torch.stack((theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()), dim=-1)
    area = 2 * torch.atan2(torch.linalg.det(torch.stack((a, b, c))), 1 + a @ b + b @ c + c @ a)
    vector = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for j in range(3):
        side = SPHERE.geodesic_between(corners[j], corners[(j + 1) % 3], steps=steps)
        vector = SPHERE.parallel_transport(side, vector)[-1]
    turned = torch.atan2(vector[1] * theta[0].sin(), vector[0])
    return turned.item(), area.item()


def test_holonomy_of_a_spherical_triangle_is_its_area_at_fourth_order() -> None:
    errors = [abs(abs(turned) - abs(area)) for turned, area in (spherical_triangle(m) for m in (8, 16))]
    assert errors[1] < 1e-5
    assert math.log2(errors[0] / errors[1]) > 3.5, errors


def test_transport_around_a_parallel_turns_by_its_closed_form() -> None:
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    colatitude = torch.tensor(0.8, dtype=torch.float64)
    parallel = sample_curve(lambda t: torch.stack((colatitude.expand_as(t), 2 * math.pi * t)), times)
    moved = SPHERE.parallel_transport(parallel, torch.tensor([1.0, 0.0], dtype=torch.float64))[-1]
    turn = 2 * math.pi * colatitude.cos()
    torch.testing.assert_close(moved, torch.stack((turn.cos(), -turn.sin() / colatitude.sin())), rtol=1e-6, atol=1e-6)


@few
@given(spaces, seeds)
def test_transport_is_isometric_and_undone_by_the_way_back(space: str, seed: int) -> None:
    structure = SPACES[space]
    x = draw_points(space, seed)
    path = structure.geodesic_flow(x, 0.02 * draw_vectors(x, seed), steps=32)
    frame = torch.stack([draw_vectors(x, seed + j) for j in (2, 3)])
    moved = structure.parallel_transport(path, frame)
    before = structure.metric_tensor(x, (frame[0], frame[1]))
    after = structure.metric_tensor(path.points[-1], (moved[-1, 0], moved[-1, 1]))
    torch.testing.assert_close(after, before, **EXACT)
    back = Path(path.times, path.points.flip(0), -path.velocities.flip(0))
    torch.testing.assert_close(structure.parallel_transport(back, moved[-1])[-1], frame, **EXACT)


def test_transport_along_points_alone_has_fourth_order() -> None:
    def moved(m: int) -> Tensor:
        t = torch.linspace(0, 1, m + 1, dtype=torch.float64)
        return BUMPY.parallel_transport(torch.stack((t.sin(), t**2 + 1, t.exp()), -1), torch.ones(3).double())[-1]

    exact = moved(256)
    errors = [(moved(m) - exact).norm().item() for m in (16, 32)]
    assert math.log2(errors[0] / errors[1]) > 3.5, errors


def test_rk4_has_fourth_order() -> None:
    errors = [abs(rk4(lambda y: y, torch.ones(1).double(), 1.0, m)[-1].item() - math.e) for m in (16, 32)]
    assert 3.8 < math.log2(errors[0] / errors[1]) < 4.2


def test_gradcheck_of_every_differentiable_method() -> None:
    x = draw_points("bumpy", 5, (2,)).requires_grad_()
    v, w = (draw_vectors(x, s).mul(0.3).requires_grad_() for s in (5, 6))

    def check(function, *inputs: Tensor) -> None:  # type: ignore[no-untyped-def]
        assert torch.autograd.gradcheck(function, inputs)

    check(lambda p, a, b: BUMPY.metric_tensor(p, (a, b)), x, v, w)
    check(BUMPY.christoffel_symbols, x)
    check(BUMPY.nonmetricity, x)
    check(BUMPY.curvature_tensor, x)
    check(BUMPY.ricci, x)
    check(BUMPY.scalar, x)
    check(BUMPY.sectional, x, v, w)
    check(lambda p, a: BUMPY.covariant_derivative(torch.sin, p, a), x, v)
    check(lambda p, a: BUMPY.geodesic_flow(p, a, steps=3).points, x, v)
    check(lambda p, a: BUMPY.parallel_transport(BUMPY.geodesic_flow(p, a, steps=4).points, a), x, v)
    check(lambda p, q: BUMPY.geodesic_between(p, q, steps=4).velocities, x, (x + 0.1 * v).detach().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_follow_the_dtype_and_the_batch(dtype: torch.dtype) -> None:
    x = draw_points("bumpy", 0, (2, 3)).to(dtype)
    path = BUMPY.geodesic_between(x, x + 0.1, steps=4)
    assert path.points.shape == (5, 2, 3, 3) and BUMPY.curvature_tensor(x).shape == (2, 3, 3, 3, 3, 3)
    results = (path.points, path.times, BUMPY.curvature_tensor(x), BUMPY.parallel_transport(path, x), BUMPY.scalar(x))
    assert {t.dtype for t in results} == {dtype}


def test_ten_thousand_points_of_dimension_64_flow_in_one_call() -> None:
    def conformal(x: Tensor) -> Tensor:
        scale = 4 / (1 + x.square().sum(-1)) ** 2
        return torch.eye(64, dtype=x.dtype, device=x.device) * scale[..., None, None]

    structure = RiemannianStructure(conformal, 64, check=False)
    x = torch.full((10_000, 64), 0.1)
    path = structure.geodesic_flow(x, x, 0.1, steps=1)
    radius = math.tan(math.atan(0.8) + 0.1 * 0.8 / (1 + 0.64)) / 8
    torch.testing.assert_close(path.points[-1], torch.full_like(x, radius), rtol=1e-4, atol=1e-5)


def test_errors_are_typed_and_say_where() -> None:
    x = torch.tensor([0.5, 1.0], dtype=torch.float64)
    with pytest.raises(MetricError, match="not positive definite"):
        SIMPLEX.metric_tensor(torch.tensor([0.6, 0.6, 0.6]))
    with pytest.raises(MetricError, match="shape"):
        RiemannianStructure(lambda p: p, 2).metric_tensor(x)
    with pytest.raises(GeometryError, match="at least one coordinate"):
        RiemannianStructure(sphere_metric, 0)
    with pytest.raises(GeometryError, match="floating"):
        SPHERE.christoffel_symbols(torch.tensor([1, 2]))
    with pytest.raises(GeometryError, match="parallel"):
        SPHERE.sectional(x, x, 2 * x)
    with pytest.raises(GeometryError, match="steps"):
        SPHERE.geodesic_flow(x, x, steps=0)
    with pytest.raises(GeometryError, match="at least 5"):
        SPHERE.parallel_transport(x.expand(4, 2), x)
    with pytest.raises(ChartError, match="left the chart"):
        SIMPLEX.geodesic_flow(torch.full((3,), 0.25), torch.tensor([-1.0, 0.0, 0.0]), 3.0)
    with pytest.raises(GeodesicNotFoundError, match="did not reach") as caught:
        HALF_PLANE.geodesic_between(x, x + 1, steps=8, iterations=1)
    assert caught.value.residual.shape == ()
