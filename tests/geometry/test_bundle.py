"""Bundles with connection against closed forms: cocycles, charts, frames, curvature, Chern numbers, gradients."""

import math

import pytest
import torch
from hypothesis import given

from aatc.geometry import Euclidean, PointShapeError, Sphere
from aatc.geometry.bundles.bundle import FiberBundle, GaugeError, holonomy_of_polygon
from aatc.geometry.bundles.bundle_charts import stereographic_charts
from aatc.geometry.bundles.connection import LoopError, PathError
from aatc.geometry.bundles.coordinate_bundle import BundleError, CocycleError
from aatc.geometry.manifolds.charts import ChartError
from tests.geometry.bundle_cases import (
    F64,
    HYPERBOLIC,
    MOEBIUS,
    MONOPOLE,
    SPHERE,
    TANGENT,
    TANGENT3,
    circle_of_latitude,
    curve,
    few,
    flat_form,
    points_of,
    polynomial_form,
    randn,
)
from tests.geometry.manifold_cases import close, seeds

READY_MADE = [
    TANGENT,
    TANGENT3,
    MONOPOLE,
    MOEBIUS,
    FiberBundle.tangent(Sphere(2.5), 4),
    FiberBundle.monopole(-2, Sphere(0.5)),
]


@few
@given(seed=seeds)
def test_cocycle_and_connection_fit_everywhere_on_the_ready_made_bundles(seed):
    for bundle in READY_MADE:
        x = points_of(bundle, seed, 8)
        close(bundle.check_cocycle(x), 0.0)
        close(bundle.check_connection(x), 0.0)
        assert float(bundle.check_continuity(x)) == 0


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
