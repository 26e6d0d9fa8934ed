"""Bundles with connection against closed forms: cocycles, curvature, transport, holonomy, Chern numbers."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings

from aatc.geometry import Euclidean, Hyperboloid, PointShapeError, Sphere
from aatc.geometry.bundle import FiberBundle, GaugeError, holonomy_of_polygon
from aatc.geometry.bundle_charts import stereographic_charts
from aatc.geometry.charts import ChartError
from aatc.geometry.connection import LoopError, PathError, reversed_path
from aatc.geometry.coordinate_bundle import BundleError, CocycleError
from tests.geometry.manifold_cases import close, seeds

F64 = torch.float64
SPHERE, PLANE = Sphere(), Hyperboloid()
TANGENT, TANGENT3, HYPERBOLIC = (
    FiberBundle.tangent(SPHERE, 2),
    FiberBundle.tangent(SPHERE, 3),
    FiberBundle.tangent(PLANE, 2),
)
MONOPOLE = FiberBundle.monopole(3)
MOEBIUS = FiberBundle.moebius()
READY_MADE = [
    TANGENT,
    TANGENT3,
    MONOPOLE,
    MOEBIUS,
    FiberBundle.tangent(Sphere(2.5), 4),
    FiberBundle.monopole(-2, Sphere(0.5)),
]
few = settings(max_examples=3)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randn(seed, *shape):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def points_of(bundle, seed, *batch):
    return bundle.base.random_point((*batch, bundle.dimension), generator(seed), dtype=F64)


def polynomial_form(seed, dimension, rank, skew=True):
    """A connection on Rⁿ that is quadratic in the point."""
    a, b, c = (0.4 * randn(seed + k, *[dimension] * (k + 1), rank, rank) for k in range(3))
    if skew:
        a, b, c = (z - z.mT for z in (a, b, c))

    def form(x):
        return a + torch.einsum("...i,ijkl->...jkl", x, b) + torch.einsum("...h,...i,hijkl->...jkl", x, x, c)

    return form


def curve(seed, dimension):
    """An analytic path in Rⁿ."""
    a, b = randn(seed, dimension), randn(seed + 1, dimension)
    return lambda t: a * torch.sin(2 * t).unsqueeze(-1) + b * torch.cos(3 * t).unsqueeze(-1)


def circle_of_latitude(height, turns=1):
    side = math.sqrt(1 - height * height)

    def path(t):
        angle = 2 * math.pi * turns * t + 0.3
        return torch.stack([side * angle.cos(), side * angle.sin(), torch.full_like(t, height)], -1)

    return path


def flat_form(gauge):
    """A = g⁻¹dg of a gauge (..., n) → (..., r, r)."""

    def form(x):
        slopes = [torch.func.jvp(gauge, (x,), (e.expand_as(x),))[1] for e in torch.eye(x.shape[-1], dtype=x.dtype)]
        return torch.linalg.solve(gauge(x).unsqueeze(-3), torch.stack(slopes, -3))

    return form


def solid_angle(triangle):
    a, b, c = triangle
    volume = torch.linalg.det(torch.stack([a, b, c], -2))
    return 2 * torch.atan2(volume, 1 + (a * b).sum(-1) + (b * c).sum(-1) + (c * a).sum(-1))


def turn_by(angle):
    return torch.stack([torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)], -2)


@few
@given(seed=seeds)
def test_cocycle_and_connection_fit_everywhere_on_the_ready_made_bundles(seed):
    for bundle in READY_MADE:
        x = points_of(bundle, seed, 8)
        close(bundle.check_cocycle(x), 0.0)
        close(bundle.check_connection(x), 0.0)


@few
@given(seed=seeds)
def test_trivialisations_invert_and_elements_pack_alike_in_either_chart(seed):
    for bundle in (TANGENT, MONOPOLE, TANGENT3):
        x, v = points_of(bundle, seed, 30), randn(seed, 30, bundle.rank)
        packed = torch.cat([x, v], -1)
        close(bundle.bundle_projection(packed), x)
        close(bundle.bundle_projection((x, v)), x)
        for chart in bundle.charts:
            inside = chart.contains(x)
            local = bundle.local_trivialization(packed[inside], chart.name)
            assert local.coordinates.shape[-1] == bundle.dimension - 1
            back = local.inverse()
            close(back[0], x[inside])
            close(back[1], v[inside])
        both = bundle.charts[0].contains(x) & bundle.charts[1].contains(x)
        north, south = (bundle.local_trivialization((x[both], v[both]), name) for name in ("north", "south"))
        g = bundle.transition_functions("north", "south")(x[both])
        close(north.fibre, (g @ south.fibre.unsqueeze(-1)).squeeze(-1))


def test_frames_are_orthonormal_tangent_and_change_by_the_transition():
    for bundle in (TANGENT, TANGENT3, FiberBundle.tangent(Sphere(2.0), 2), HYPERBOLIC):
        x = points_of(bundle, 4, 20)
        frames = bundle.frame(x).mT
        assert bundle.base.is_tangent(x.unsqueeze(-2), frames, 1e-10).all()
        at = x[:, None, None]
        close(bundle.base.inner(at, frames.unsqueeze(-2), frames.unsqueeze(-3)), torch.eye(bundle.rank))
    x = points_of(TANGENT, 5, 30)
    x_both = x[x[:, 2].abs() < 0.7]
    g = TANGENT.transition_functions("north", "south")(x_both)
    close(TANGENT.frame(x_both, "south"), TANGENT.frame(x_both, "north") @ g)
    close(torch.linalg.det(g), 1.0)


@few
@given(seed=seeds)
def test_the_integrator_gives_the_manifolds_closed_transport(seed):
    for bundle in (TANGENT3, HYPERBOLIC):
        x = points_of(bundle, seed, 3, 4)
        x = torch.cat([x[:2], bundle.base.geodesic(x[1], x[2], 0.4)[None]])
        close(bundle.transport_matrix(x, method="magnus", steps=400), bundle.transport_matrix(x))
        v = randn(seed, 4, bundle.rank)
        ambient = (bundle.frame(x[0]) @ v.unsqueeze(-1)).squeeze(-1)
        for a, b in itertools.pairwise(x):
            ambient = bundle.base.transport(a, b, ambient)
        end = bundle.parallel_transport(v, x)
        close((bundle.frame(x[-1]) @ end.unsqueeze(-1)).squeeze(-1), ambient)


@few
@given(seed=seeds)
def test_a_spherical_triangle_turns_by_its_area(seed):
    triangle = SPHERE.random_point((3, 5, 3), generator(seed), dtype=F64)
    angle = solid_angle(triangle)
    close(holonomy_of_polygon(SPHERE, triangle), turn_by(angle))
    loop = torch.cat([triangle, triangle[:1]])
    sides = SPHERE.dist(loop[1:], loop[:-1]).amax(0) < 2.2
    close(TANGENT.holonomy(loop[:, sides], method="magnus", steps=600), turn_by(angle[sides]))


@few
@given(seed=seeds)
def test_a_hyperbolic_triangle_turns_by_minus_its_area(seed):
    flat = randn(seed, 3, 4, 2)
    triangle = PLANE.projection(torch.nn.functional.pad(flat, (1, 0)))
    angles = 0.0
    for k in range(3):
        at, u, w = triangle[k], *(PLANE.log(triangle[k], triangle[(k + i) % 3]) for i in (1, 2))
        angles = angles + (PLANE.inner(at, u, w) / (PLANE.norm(at, u) * PLANE.norm(at, w))).clamp(-1, 1).acos()
    klein = flat / triangle[..., :1]
    side = torch.linalg.det(torch.stack([klein[1] - klein[0], klein[2] - klein[0]], -2)).sign()
    expected = turn_by(-side * (math.pi - angles))
    close(holonomy_of_polygon(PLANE, triangle), expected)
    loop = torch.cat([triangle, triangle[:1]])
    close(HYPERBOLIC.holonomy(loop, method="magnus", steps=900), expected)


@pytest.mark.parametrize(("charge", "height"), [(1, 0.0), (2, 0.5), (-3, -0.4), (1, -0.7)])
def test_a_circle_of_latitude_of_a_monopole_has_the_holonomy_of_the_flux_through_it(charge, height):
    bundle = FiberBundle.monopole(charge)
    flux = torch.tensor(charge * math.pi * (1 - height), dtype=F64)
    close(bundle.holonomy(circle_of_latitude(height), dtype=F64), turn_by(flux))
    for chart in ("north", "south"):
        close(bundle.holonomy(circle_of_latitude(height), chart=chart, dtype=F64), turn_by(flux))


@pytest.mark.parametrize("charge", [0, 1, -2, 5])
def test_the_chern_number_is_the_charge(charge):
    close(FiberBundle.monopole(charge, Sphere(1.7)).chern_number(), float(charge))
    close(TANGENT.chern_number(), 2.0)


@few
@given(seed=seeds)
def test_the_chern_number_does_not_see_a_global_change_of_the_connection(seed):
    north, south = stereographic_charts(SPHERE)
    w = randn(seed, 3, 3).requires_grad_()
    j = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)
    monopole = FiberBundle.monopole(2)

    def connection(w):
        def changed(number, chart):
            def form(y):
                slopes = [torch.func.jvp(chart.point, (y,), (e.expand_as(y),))[1] for e in torch.eye(2, dtype=F64)]
                one_form = (torch.stack(slopes, -2) * (chart.point(y) @ w).sin().unsqueeze(-2)).sum(-1)
                return monopole._form(number, y) + one_form[..., None, None] * j

            return form

        return {"north": changed(0, north), "south": changed(1, south)}

    transitions = {("north", "south"): monopole.transition_functions("north", "south").matrix}
    bundle = FiberBundle(SPHERE, 3, 2, (north, south), transitions, connection(w))
    close(bundle.check_connection(points_of(bundle, seed, 10)).detach(), 0.0)
    number = bundle.chern_number(32)
    close(number.detach(), 2.0)
    close(torch.autograd.grad(number, w)[0], 0.0)
    assert (bundle.curvature_form(north.point(randn(seed, 2)), "north") != 0).any()


def test_the_moebius_bundle_turns_fibres_round_once_and_back_twice():
    def circle(turns):
        return lambda t: torch.stack(
            [torch.cos(2 * math.pi * turns * t + 0.4), torch.sin(2 * math.pi * turns * t + 0.4)], -1
        )

    close(MOEBIUS.holonomy(circle(1), dtype=F64), -1.0)
    close(MOEBIUS.holonomy(circle(-1), dtype=F64), -1.0)
    close(MOEBIUS.holonomy(circle(2), dtype=F64), 1.0)


@few
@given(seed=seeds)
def test_crossing_charts_does_not_change_the_answer(seed):
    path = circle_of_latitude(0.15)
    north = stereographic_charts(SPHERE)[0]

    def wave(t):
        return SPHERE.projection(path(t) + 0.3 * torch.sin(7 * t + seed % 7).unsqueeze(-1))

    for bundle in (MONOPOLE, TANGENT):
        crossed = bundle.transport_matrix(wave, steps=300, start_chart="north", end_chart="north", dtype=F64)
        alone = FiberBundle.trivial(2, 2, bundle._connections["north"])
        close(crossed, alone.transport_matrix(lambda t: north.coordinates(wave(t)), steps=300, dtype=F64))
    assert len(MONOPOLE.home_chart(wave(torch.linspace(0, 1, 50, dtype=F64))).unique()) == 2


@few
@given(seed=seeds)
def test_transport_is_undone_backwards_and_orthogonal_for_skew_forms_at_any_step(seed):
    bundle = FiberBundle.trivial(3, 4, polynomial_form(seed, 3, 4))
    path, v = curve(seed, 3), randn(seed, 5, 4)
    end = bundle.parallel_transport(v, path, steps=7)
    close(end.norm(dim=-1), v.norm(dim=-1), 1e-12)
    close(bundle.parallel_transport(end, reversed_path(path), steps=7), v, 1e-12)
    samples = torch.stack([path(t[None])[0] for t in torch.linspace(0, 1, 5, dtype=F64)])
    end = bundle.parallel_transport(v, samples, steps=8)
    close(bundle.parallel_transport(end, reversed_path(samples), steps=8), v, 1e-12)


@pytest.mark.parametrize("skew", [True, False])
def test_the_integrator_converges_with_order_four(skew):
    bundle = FiberBundle.trivial(2, 3, polynomial_form(2, 2, 3, skew))
    path = curve(3, 2)
    exact = bundle.transport_matrix(path, steps=2000, dtype=F64)
    errors = [(bundle.transport_matrix(path, steps=n, dtype=F64) - exact).abs().max() for n in (40, 80, 160)]
    assert errors[0] > 1e-9
    for coarse, fine in itertools.pairwise(errors):
        assert torch.log2(coarse / fine) >= 3.8


def test_the_integrator_solves_the_equation_that_an_ode_solver_solves():
    from scipy.integrate import solve_ivp

    bundle = FiberBundle.trivial(2, 3, polynomial_form(2, 2, 3, False))
    whole, v = curve(3, 2), randn(1, 3)

    def path(t):
        return whole(0.5 * t)

    def slope(t, y):
        x, u = torch.func.jvp(path, (torch.tensor([t], dtype=F64),), (torch.ones(1, dtype=F64),))
        return -(bundle.connection_form(x[0], u[0]) @ torch.as_tensor(y)).numpy()

    solved = solve_ivp(slope, (0, 1), v.numpy(), method="DOP853", rtol=1e-10, atol=1e-11).y[:, -1]
    close(bundle.parallel_transport(v, path, steps=500), torch.as_tensor(solved))


@few
@given(seed=seeds)
def test_a_flat_connection_has_no_curvature_and_transport_by_its_gauge_alone(seed):
    w = 0.5 * randn(seed, 2, 3, 3)

    def gauge(x):
        return torch.linalg.matrix_exp(x[..., :1, None] * w[0]) @ torch.linalg.matrix_exp(x[..., 1:, None].sin() * w[1])

    bundle = FiberBundle.trivial(2, 3, flat_form(gauge))
    close(bundle.curvature_form(randn(seed, 6, 2)), 0.0)
    ends = torch.tensor([[0.1, -0.2], [0.7, 0.5]], dtype=F64)
    bent = torch.stack([ends[0], randn(seed, 2), ends[1]])
    expected = torch.linalg.inv(gauge(ends[1])) @ gauge(ends[0])
    close(bundle.transport_matrix(ends, steps=120), expected)
    close(bundle.transport_matrix(bent, steps=240), expected)


@few
@given(seed=seeds)
def test_curvature_is_covariant_and_satisfies_bianchi(seed):
    form = polynomial_form(seed, 3, 3, False)
    bundle = FiberBundle.trivial(3, 3, form)
    w = 0.5 * randn(seed + 9, 3, 3, 3)

    def gauge(x):
        return torch.linalg.matrix_exp(torch.einsum("...i,ijk->...jk", x.sin(), w))

    def changed(x):
        g = gauge(x).unsqueeze(-3)
        return torch.linalg.solve(g, form(x) @ g) + flat_form(gauge)(x)

    x = 0.5 * randn(seed, 3)
    g = gauge(x)
    f = bundle.curvature_form(x)
    close(FiberBundle.trivial(3, 3, changed).curvature_form(x), torch.linalg.inv(g) @ f @ g)
    slope = torch.stack([torch.func.jvp(bundle.curvature_form, (x,), (e,))[1] for e in torch.eye(3, dtype=F64)])
    a = form(x)
    covariant = slope + a[:, None, None] @ f - f @ a[:, None, None]
    close(covariant + covariant.permute(1, 2, 0, 3, 4) + covariant.permute(2, 0, 1, 3, 4), 0.0)
    assert f.abs().max() > 0.1


def test_curvature_of_the_round_sphere_is_one_over_the_radius_squared():
    bundle = FiberBundle.tangent(Sphere(2.0), 3)
    x = points_of(bundle, 8, 10)
    f = bundle.curvature_form(x, None)
    y = bundle.charts[0].coordinates(x)
    north = bundle.home_chart(x) == 0
    conformal = (4 / (1 + y.square().sum(-1))) ** 2
    i = torch.eye(3, dtype=F64)
    constant = torch.einsum("ik,jl->ijkl", i, i) - torch.einsum("il,jk->ijkl", i, i)
    close(f[north], (conformal[north, None, None, None, None] / 4) * constant)


def test_small_loops_turn_by_the_curvature_times_their_area_to_third_order():
    bundle = FiberBundle.trivial(2, 3, polynomial_form(5, 2, 3))
    x = torch.tensor([0.2, -0.1], dtype=F64)
    f = bundle.curvature_form(x)[0, 1]
    errors = []
    for size in (0.04, 0.02, 0.01):
        corners = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], dtype=F64) * size
        matrix = bundle.holonomy(x + corners, steps=40)
        errors.append((matrix - torch.eye(3) + f * size**2).abs().max())
    for coarse, fine in itertools.pairwise(errors):
        assert 2.8 < torch.log2(coarse / fine) < 3.3


def test_a_principal_bundle_carries_frames_by_the_same_matrix():
    form = polynomial_form(1, 2, 3)
    vectors, frames = (FiberBundle.trivial(2, 3, form, principal=p) for p in (False, True))
    start = randn(0, 6, 3, 3)
    moved = frames.parallel_transport(start, curve(1, 2))
    close(moved, torch.stack([vectors.parallel_transport(start[..., k], curve(1, 2)) for k in range(3)], -1))
    packed = torch.cat([randn(2, 6, 2), start.flatten(-2)], -1)
    close(frames.local_trivialization(packed).fibre, start)
    close(frames.bundle_projection(packed), packed[:, :2])


def test_planted_violations_are_caught():
    north, south = stereographic_charts(SPHERE)
    forms = {"north": MONOPOLE._connections["north"], "south": MONOPOLE._connections["south"]}
    good = MONOPOLE.transition_functions("north", "south").matrix

    def bundle(transitions, forms=forms):
        return FiberBundle(SPHERE, 3, 2, (north, south), transitions, forms)

    with pytest.raises(CocycleError) as caught:
        bundle({("north", "south"): good, ("south", "north"): good})
    assert caught.value.residual > 0.1
    with pytest.raises(CocycleError):
        bundle({("north", "south"): good, ("north", "north"): lambda x: good(x) * 0 + 2 * torch.eye(2)})
    with pytest.raises(CocycleError):
        bundle({("north", "south"): lambda x: good(x) * torch.nan})
    x = points_of(MONOPOLE, 0, 40)
    for wrong in (lambda y: 1.01 * forms["south"](y), lambda y: -forms["south"](y)):
        with pytest.raises(GaugeError):
            bundle({("north", "south"): good}, {**forms, "south": wrong}).check_connection(x)
    late = bundle({("north", "south"): good})
    late._transitions["south", "north"] = lambda x: 1.001 * torch.linalg.inv(good(x))
    with pytest.raises(CocycleError):
        late.check_cocycle(x)
    with pytest.raises(BundleError):
        bundle({})
    with pytest.raises(BundleError):
        bundle({("north", "south"): good}, {"north": forms["north"]})


def test_what_does_not_fit_is_refused():
    pole = torch.tensor([0.0, 0.0, -1.0], dtype=F64)
    with pytest.raises(ChartError, match="outside"):
        TANGENT.curvature_form(pole, "north")
    with pytest.raises(ChartError, match="outside"):
        TANGENT.transition_functions("north", "south")(pole)
    with pytest.raises(ChartError, match="no chart 'east'"):
        TANGENT.chart("east")
    with pytest.raises(ChartError, match="name one"):
        TANGENT.local_trivialization(torch.cat([torch.stack([pole, -pole]), torch.ones(2, 2)], -1))
    with pytest.raises(ChartError, match="take more"):
        TANGENT.transport_matrix(lambda t: torch.stack([(3 * t).sin(), 0 * t, (3 * t).cos()], -1), steps=1, dtype=F64)
    with pytest.raises(LoopError) as caught:
        TANGENT.holonomy(lambda t: circle_of_latitude(0.2)(0.9 * t), dtype=F64)
    assert caught.value.gap > 0.1
    with pytest.raises(PathError):
        TANGENT.transport_matrix(lambda t: pole, dtype=F64)
    with pytest.raises(PathError):
        TANGENT.transport_matrix(pole[None])
    with pytest.raises(PathError):
        TANGENT.transport_matrix(circle_of_latitude(0.0), steps=0)
    with pytest.raises(PathError, match="finite"):
        TANGENT.transport_matrix(lambda t: circle_of_latitude(0.0)(t) * math.nan)
    with pytest.raises(BundleError):
        TANGENT.transport_matrix(circle_of_latitude(0.0), method="euler")
    with pytest.raises(BundleError):
        FiberBundle.tangent(Euclidean(), 2)
    with pytest.raises(BundleError):
        FiberBundle.monopole(0.5)
    with pytest.raises(BundleError):
        MONOPOLE.frame(pole)
    with pytest.raises(BundleError):
        MOEBIUS.chern_number()
    for call in (
        lambda: TANGENT.bundle_projection(pole),
        lambda: TANGENT.home_chart(pole[:2]),
        lambda: TANGENT.parallel_transport(pole, torch.stack([pole, pole])),
        lambda: FiberBundle.trivial(2, 3, lambda x: x).curvature_form(pole[:2]),
    ):
        with pytest.raises(PointShapeError):
            call()


def test_gradients_are_those_of_the_differences():
    x = points_of(TANGENT, 3, 3).requires_grad_()
    v = randn(4, 3, 2).requires_grad_()
    on = SPHERE.projection
    checks = [
        (lambda x, v: TANGENT.bundle_projection((on(x), v)), (x, v)),
        (lambda x, v: TANGENT.local_trivialization((on(x[:1]), v[:1])).coordinates, (x, v)),
        (lambda x, v: TANGENT.local_trivialization((on(x[:1]), v[:1])).inverse(), (x, v)),
        (lambda x, v: TANGENT.parallel_transport(v[0], on(x)), (x, v)),
        (lambda x, v: TANGENT.parallel_transport(v[0], on(x), steps=4, method="magnus"), (x, v)),
        (lambda x, v: MONOPOLE.connection_form(on(x), x.roll(1, 0)), (x, v)),
        (lambda x, v: TANGENT3.curvature_form(SPHERE.projection(torch.cat([x, v[..., :1]], -1))), (x, v)),
        (lambda x, v: MONOPOLE.holonomy(on(torch.cat([x, x[:1]])), steps=9), (x, v)),
        (lambda x, v: holonomy_of_polygon(SPHERE, on(x)), (x, v)),
        (lambda x, v: TANGENT.frame(on(x)), (x, v)),
        (lambda x, v: TANGENT.change_chart(on(x * torch.tensor([1, 1, 0.2])), v, "south", "north"), (x, v)),
        (lambda x, v: TANGENT.check_cocycle(on(x)) + x.sum(-1), (x, v)),
        (lambda x, v: TANGENT.transition_functions("north", "south")(on(x * torch.tensor([1, 1, 0.2]))), (x, v)),
        (lambda x, v: MONOPOLE.check_connection(on(x * torch.tensor([1, 1, 0.2])), 1.0) + x.sum(-1), (x, v)),
    ]
    for function, arguments in checks:
        assert torch.autograd.gradcheck(function, arguments, fast_mode=True)


def test_gradients_reach_the_parameters_of_a_connection():
    w = randn(0, 2, 2, 2, 2).requires_grad_()
    path = curve(0, 2)

    def bundle(w):
        return FiberBundle.trivial(2, 2, lambda x: torch.einsum("...i,ijkl->...jkl", x.sin(), w))

    assert torch.autograd.gradcheck(lambda w: bundle(w).transport_matrix(path, steps=5, dtype=F64), (w,))
    assert torch.autograd.gradcheck(lambda w: bundle(w).holonomy(lambda t: path(t * (1 - t)), steps=5, dtype=F64), (w,))
    assert torch.autograd.gradcheck(lambda w: bundle(w).curvature_form(path(torch.ones(2, dtype=F64))), (w,))


def test_ten_thousand_vectors_of_dimension_64_keep_their_lengths():
    form = polynomial_form(0, 2, 64)
    v = randn(0, 10_000, 64)
    end = FiberBundle.trivial(2, 64, lambda x: 0.1 * form(x)).parallel_transport(v, curve(0, 2), steps=20)
    close(end.norm(dim=-1), v.norm(dim=-1))


def test_thousands_of_paths_of_dimension_64_are_carried_apart():
    for base in (SPHERE, PLANE):
        x = base.random_point((2, 2000, 65), generator(0), dtype=F64)
        x = torch.stack([x[0], base.geodesic(x[0], x[1], 0.1)])
        v = randn(1, 2000, 64)
        end = FiberBundle.tangent(base, 64).parallel_transport(v, x)
        close(end.norm(dim=-1), v.norm(dim=-1))


def test_the_dtype_is_kept():
    loop = torch.eye(3)[[0, 1, 2, 0]]
    for method in ("auto", "magnus"):
        assert TANGENT.holonomy(loop, method=method).dtype == torch.float32
    assert TANGENT.parallel_transport(torch.ones(2), circle_of_latitude(0.1)).dtype == torch.float32
