"""Bundles at their edges: paths that stand still, empty batches, numbers that are not finite, data of no bundle."""

import math

import pytest
import torch

from aatc.geometry import PointShapeError
from aatc.geometry.bundles.bundle import FiberBundle, GaugeError
from aatc.geometry.bundles.bundle_charts import rotation, stereographic_charts
from aatc.geometry.bundles.connection import PathError
from aatc.geometry.bundles.coordinate_bundle import BundleError, ContinuityError, CoordinateBundle
from aatc.geometry.manifolds.charts import ChartError
from tests.geometry.bundle_cases import (
    F64,
    HYPERBOLIC,
    MONOPOLE,
    SPHERE,
    TANGENT,
    circle_of_latitude,
    points_of,
    randn,
)
from tests.geometry.manifold_cases import close


@pytest.mark.parametrize("bundle", [MONOPOLE, TANGENT, HYPERBOLIC], ids=["monopole", "sphere", "hyperbolic"])
def test_samples_that_stand_still_move_nothing_and_have_the_gradients_of_the_differences(bundle):
    x = points_of(bundle, 1, 3)
    moving = bundle.transport_matrix(x, method="magnus", steps=20)
    close(bundle.transport_matrix(x[[0, 0, 1, 2, 2]], method="magnus", steps=40), moving, 1e-12)
    still = [x[0].clone().requires_grad_() for _ in range(2)]

    def transport(a, b):
        path = torch.cat([bundle.base.projection(torch.stack([a, b])), x[1:]])
        return bundle.transport_matrix(path, steps=3, method="magnus")

    assert torch.autograd.gradcheck(transport, still)


def test_a_path_may_stand_still_and_empty_batches_stay_empty():
    x = points_of(MONOPOLE, 1, 1)
    for bundle in (MONOPOLE, TANGENT):
        close(bundle.transport_matrix(lambda t: x.expand(t.shape[0], 3), dtype=F64), torch.eye(2))
        for act in (bundle.transport_matrix, bundle.holonomy):
            assert act(torch.zeros(3, 0, 3)).shape == (0, 2, 2)


def test_numbers_that_are_not_finite_are_refused():
    x, v = points_of(MONOPOLE, 0, 4), randn(0, 4, 2)
    for act in (
        lambda: MONOPOLE.check_cocycle(x * math.nan),
        lambda: MONOPOLE.check_connection(x * math.nan),
        lambda: MONOPOLE.connection_form(x, x * math.nan),
        lambda: MONOPOLE.change_chart(x, v * math.inf, None, None),
        lambda: MONOPOLE.bundle_projection((x, v * math.nan)),
        lambda: TANGENT.parallel_transport(v * math.nan, x[:2]),
    ):
        with pytest.raises(ChartError, match="finite"):
            act()

    def constant(value):
        return FiberBundle.trivial(3, 2, lambda y: torch.full((*y.shape, 2, 2), value, dtype=y.dtype))

    for act in (
        lambda: constant(math.nan).transport_matrix(x),
        lambda: constant(math.nan).connection_form(x, x),
        lambda: constant(math.nan).curvature_form(x),
    ):
        with pytest.raises(BundleError, match="finite"):
            act()
    with pytest.raises(PathError, match="overflows"):
        constant(1e200).transport_matrix(x)


def test_a_fibre_is_not_changed_to_a_chart_that_its_point_is_outside_of():
    pole = torch.tensor([0.0, 0.0, 1.0], dtype=F64)
    for source, target in (("north", "south"), ("south", "north"), (None, "south")):
        with pytest.raises(ChartError, match="outside the chart 'south'"):
            TANGENT.change_chart(pole, randn(0, 2), source, target)


def test_data_that_make_no_bundle_are_refused():
    charts = stereographic_charts(SPHERE)
    for dimension, rank in ((0, 1), (2, 0), (2, -1)):
        with pytest.raises(BundleError, match="at least 1"):
            FiberBundle.trivial(dimension, rank, lambda x: x)
    with pytest.raises(BundleError, match="singular"):
        FiberBundle(SPHERE, 3, 2, charts, {("north", "south"): lambda x: torch.zeros(len(x), 2, 2, dtype=x.dtype)}, {})
    with pytest.raises(BundleError, match="nodes"):
        MONOPOLE.chern_number(0)
    for loop in (torch.zeros(()), torch.zeros(0, 3), torch.zeros(1, 3)):
        for act in (MONOPOLE.holonomy, MONOPOLE.transport_matrix, TANGENT.transport_matrix):
            with pytest.raises(PathError, match="T ≥ 2"):
                act(loop)
    x = points_of(MONOPOLE, 0, 2)
    for call in (
        lambda: MONOPOLE.parallel_transport(torch.ones(2), x),
        lambda: MONOPOLE.change_chart(x, torch.ones(2, 2), None, None),
        lambda: MONOPOLE.bundle_projection((x, torch.ones(2, 2, dtype=torch.int64))),
        lambda: MONOPOLE.connection_form(x, x.float()),
    ):
        with pytest.raises(PointShapeError, match="dtype"):
            call()
    for half in (torch.float16, torch.bfloat16):
        for call in (
            lambda half=half: MONOPOLE.transport_matrix(x.to(half)),
            lambda half=half: MONOPOLE.holonomy(circle_of_latitude(0.1), dtype=half),
            lambda half=half: MONOPOLE.check_cocycle(x.to(half)),
        ):
            with pytest.raises(PointShapeError, match="float32 or float64"):
                call()


def turning(rate):
    """exp(rate·φ·J), φ the longitude: continuous on the overlap of the hemispheres for integers alone."""
    return lambda x: rotation(rate * torch.atan2(x[..., 1], x[..., 0]))


def monopole_of(charge, transition=None):
    """Dirac's potential of any real charge in both charts, with its transition, continuous or not."""
    j = torch.tensor([[0.0, -1.0], [1.0, 0.0]])

    def form(y):
        side = torch.stack([-y[..., 1], y[..., 0]], -1) * (-charge / (1 + y.square().sum(-1, keepdim=True)))
        return side[..., None, None] * j.to(y)

    transitions = {("north", "south"): turning(charge) if transition is None else transition}
    return FiberBundle(SPHERE, 3, 2, stereographic_charts(SPHERE), transitions, {"north": form, "south": form})


@pytest.mark.parametrize("charge", [0.5, -1.5, 0.001, 2 + 1e-3, 1 / 3])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_charge_that_is_no_integer_makes_no_bundle(charge, backwards):
    with pytest.raises(ContinuityError) as caught:
        if backwards:
            names, transition = ("south", "north"), turning(-charge)
            FiberBundle(SPHERE, 3, 2, stereographic_charts(SPHERE), {names: transition}, {})
        monopole_of(charge)
    # From exp(−πnJ) to exp(πnJ) only the entries ± sin πn change.
    expected = abs(2 * math.sin(math.pi * charge))
    assert caught.value.residual == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("charge", [0, 1, -4, 11])
def test_integer_charges_turn_fast_and_do_not_jump(charge):
    bundle = monopole_of(float(charge))
    assert float(bundle.check_continuity(points_of(bundle, 5, 40))) == 0
    close(bundle.chern_number(40), float(charge))
    for dtype in (torch.float32, torch.float64):
        assert float(bundle.check_continuity(points_of(bundle, 6, 3, 5).to(dtype))) == 0


def test_steep_is_no_jump_and_a_step_of_the_same_height_is():
    def rounded(x):
        return rotation(0.3 * torch.tanh(1e5 * (x[..., 0] - 0.1)))

    def broken(x):
        return rotation(torch.where(x[..., 0] > 0.1, 0.3, -0.3).to(x))

    assert float(monopole_of(0.0, rounded).check_continuity(points_of(MONOPOLE, 1, 10))) == 0
    with pytest.raises(ContinuityError, match=r"jumps by 0\.591 at \(0\.1, ") as caught:
        monopole_of(0.0, broken)
    assert caught.value.residual == pytest.approx(2 * math.sin(0.3), rel=1e-6)


def test_a_jump_between_the_samples_is_found_by_the_chern_number():
    """One sample sees nothing; the equator is closed."""
    form = monopole_of(0.0)._connections["north"]
    pole = torch.tensor([[0.6, 0.8, 0.0]], dtype=F64)
    charts, forms = stereographic_charts(SPHERE), {"north": form, "south": form}
    bundle = FiberBundle(SPHERE, 3, 2, charts, {("north", "south"): turning(0.5)}, forms, samples=pole)
    with pytest.raises(ContinuityError):
        bundle.chern_number()
    nearly = FiberBundle(
        SPHERE, 3, 2, charts, {("north", "south"): turning(2 + 1e-6)}, monopole_of(2.0)._connections, samples=pole
    )
    with pytest.raises(ContinuityError):
        nearly.chern_number()
    misfit = FiberBundle(SPHERE, 3, 2, charts, {("north", "south"): turning(2)}, forms)
    with pytest.raises(GaugeError):
        misfit.chern_number()


def test_a_transition_that_is_not_finite_off_the_samples_is_refused():
    def hole(x):
        return rotation(torch.where((x[..., 0] - 0.1).abs() < 0.005, math.nan, 0.0).to(x))

    samples = torch.tensor([[0.6, 0.8, 0.0], [-0.6, 0.8, 0.0], [0.6, -0.8, 0.0]], dtype=F64)
    charts = stereographic_charts(SPHERE)
    with pytest.raises(ContinuityError):
        CoordinateBundle(SPHERE, 3, 2, charts, {("north", "south"): hole}, samples=samples)
