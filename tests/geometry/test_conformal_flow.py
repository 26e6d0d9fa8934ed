"""The conformal Ricci flow of tori against exact solutions and its invariants."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aatc.geometry.flows.conformal_flow import LAPLACIANS, ConformalFlow
from aatc.geometry.flows.ricci_flow import StepSizeError
from aatc.geometry.manifold import GeometryError, PointShapeError
from tests.geometry.flow_cases import F64, TURN, mesh, orders, rounding_torus

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("laplacian", LAPLACIANS)
@given(amplitudes=st.lists(st.floats(-0.3, 0.3), min_size=4, max_size=4))
def test_gauss_bonnet_and_area_hold_along_conformal_flows(laplacian, amplitudes):
    x, y = mesh(12, 2).unbind(-1)
    a, b, c, d = amplitudes
    u = a * torch.sin(x) + b * torch.cos(y) + c * torch.sin(x + y) + d * torch.cos(x - 2 * y)
    flow = ConformalFlow((TURN, TURN), laplacian=laplacian, normalized=True)
    run = flow.evolve(u, 8 * flow.step_bound(u), 16)
    assert run.total_curvature.abs().max() < 1e-11
    torch.testing.assert_close(run.areas, run.areas[:1].expand(17), rtol=1e-13, atol=0)


def test_the_conformal_flow_follows_an_exact_solution_and_ends_flat():
    u = 0.5 * rounding_torus(32, 0.0).log()
    flow = ConformalFlow((TURN, TURN))
    errors = []
    for steps in (180, 360):
        run = flow.evolve(u, 0.3, steps, every=60)
        errors.append(float((run.final - 0.5 * rounding_torus(32, 0.3).log()).abs().max()))
    assert errors[1] < 1e-9
    assert (run.areas - run.areas[0]).abs().max() < 1e-9
    coarse = ConformalFlow((TURN, TURN), laplacian="finite-difference", normalized=True)
    start = 0.5 * rounding_torus(8, 0.0).log()
    flat = coarse.evolve(start, 25.0, 600)
    assert flat.final.std() < 1e-8 and start.std() > 0.1
    assert flat.max_curvature[-1] < 1e-8 and (flat.max_curvature.diff() <= 0).all()


def test_finite_differences_reach_the_spectral_curvature_with_order_four():
    errors = []
    for n in (32, 64):
        u = 0.5 * rounding_torus(n, 0.0).log()
        gap = ConformalFlow((TURN, TURN), laplacian="finite-difference").curvature(u) - ConformalFlow(
            (TURN, TURN)
        ).curvature(u)
        errors.append(float(gap.abs().max()))
    assert orders(errors)[0] == pytest.approx(4, abs=0.3)


def test_conformal_factors_of_any_size_have_a_step_and_others_are_refused():
    flow, flat = ConformalFlow((1.0, 1.0)), torch.zeros(4, 4, dtype=F64)
    huge = flow.evolve(flat + 400.0, 1.0, 2)
    torch.testing.assert_close(huge.final, flat + 400.0)
    with pytest.raises(GeometryError, match="not finite"):
        flow.evolve(flat * math.nan, 1e-4, 1)
    with pytest.raises(StepSizeError, match="finite"):
        flow.evolve(flat + 400.0, math.inf, 1)
    with pytest.raises(PointShapeError, match="empty"):
        flow.evolve(flat.expand(0, 4, 4), 1e-4, 1)
