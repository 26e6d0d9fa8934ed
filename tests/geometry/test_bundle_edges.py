"""Bundles at their edges: paths that stand still, empty batches, numbers that are not finite, data of no bundle."""

import math

import pytest
import torch

from aatc.geometry import PointShapeError
from aatc.geometry.bundles.bundle import FiberBundle
from aatc.geometry.bundles.bundle_charts import stereographic_charts
from aatc.geometry.bundles.connection import PathError
from aatc.geometry.bundles.coordinate_bundle import BundleError
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
