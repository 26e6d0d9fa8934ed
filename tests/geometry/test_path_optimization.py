"""Paths of least action against closed-form geodesics and the second-order accuracy of broken lines."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from aatc.geometry.manifold import GeometryError, PointShapeError
from aatc.geometry.manifolds.integrate import ConvergenceError
from aatc.geometry.manifolds.path_optimization import PathOptimization
from aatc.geometry.manifolds.riemannian import ChartError, RiemannianStructure
from tests.geometry.chart_cases import CHARTS, F64, WARPED, points

SEEDS = st.integers(0, 10**6)
NAMES = ("simplex", "half-plane", "sphere", "ball", "warped")


def close(got, want, atol=1e-8):
    torch.testing.assert_close(got, want, rtol=atol, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_optimal_paths_approach_the_geodesic_at_order_2(name):
    chart = CHARTS.get(name, WARPED)
    x, y = points(name, 1), points(name, 2)
    errors, excess = [], []
    for steps in (16, 32):
        found = PathOptimization(chart).optimize_attention(x, y, steps)
        want = chart.geodesic_between(x, y, torch.linspace(0, 1, steps + 1, dtype=F64))
        errors.append(float((found.path - want.points).abs().max()))
        excess.append(float((found.action - 0.5 * want.length() ** 2).abs().max()))
        assert (found.action >= 0.5 * want.length() ** 2 * (1 - 1e-12)).all()
        assert found.residual <= 1e-9
    # In the half-plane the nodes lie on the geodesic but for the quadrature.
    assert math.log2(errors[0] / errors[1]) == pytest.approx(6 if name == "half-plane" else 2, abs=0.2)
    assert math.log2(excess[0] / excess[1]) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("name", NAMES)
def test_stationary_paths_have_no_variation_and_every_change_costs(name):
    action = PathOptimization(CHARTS.get(name, WARPED))
    found = action.optimize_attention(points(name, 3, 6), points(name, 4, 6), 8)
    momentum = 8 * found.path.diff(dim=0).abs().max()
    assert action.vary_path(found.path).abs().max() <= 1e-7 * (1 + momentum)
    for size in (1e-5, 3e-4):
        change = torch.zeros_like(found.path)
        change[1:-1] = size * torch.randn(7, *found.path.shape[1:], dtype=F64)
        assert (action.path_action(found.path + change) > found.action).all()


@settings(max_examples=5)
@given(seed=SEEDS)
def test_euclidean_paths_are_straight_and_a_quadratic_potential_gives_hyperbolic_sines(seed):
    flat = CHARTS["euclidean"]
    x, y = points("euclidean", seed), points("euclidean", seed + 1)
    t = torch.linspace(0, 1, 9, dtype=F64)[:, None, None]
    found = PathOptimization(flat).optimize_attention(x, y, 8)
    close(found.path, x + t * (y - x), 1e-12)
    close(found.action, 0.5 * (y - x).square().sum(-1))
    pulled = PathOptimization(flat, lambda z: 2 * z.square().sum(-1)).optimize_attention(x, y, 8)
    want = (torch.sinh(2 * (1 - t)) * x + torch.sinh(2 * t) * y) / math.sinh(2)
    close(pulled.path, want, 4 / 12 / 8**2)
    assert pulled.iterations == 1


def test_an_indefinite_start_still_goes_downhill():
    action = PathOptimization(CHARTS["half-plane"], lambda x: 3 * torch.sin(3 * x[..., 0]))
    x = torch.tensor([[0.0, 0.1], [0.0, 1.0]], dtype=F64)
    y = torch.tensor([[5.0, 0.1], [3.0, 2.0]], dtype=F64)
    straight = x + torch.linspace(0, 1, 41, dtype=F64)[:, None, None] * (y - x)
    found = action.find_minimum(straight)
    assert found.residual <= 1e-9
    assert (found.action < action.path_action(straight)).all()
    with pytest.raises(ConvergenceError) as short:
        action.find_minimum(straight, max_iterations=1)
    assert short.value.iterations == 1 and short.value.residual > 1e-9


def test_the_variation_is_the_gradient_of_the_action():
    action = PathOptimization(WARPED, lambda x: x.cos().sum(-1))
    path = torch.stack([points("warped", seed, 1) for seed in range(4)]).requires_grad_()
    (gradient,) = torch.autograd.grad(action.path_action(path).sum(), path)
    close(action.vary_path(path), gradient[1:-1], 1e-12)
    assert gradcheck(action.path_action, (path,))
    assert gradcheck(action.vary_path, (path,))


def test_optimal_paths_are_differentiable_in_ends_and_parameters():
    x, y = points("half-plane", 1, 1).requires_grad_(), points("half-plane", 2, 1).requires_grad_()
    weight = torch.tensor(0.8, dtype=F64, requires_grad=True)

    def values(a, b, w):
        action = PathOptimization(CHARTS["half-plane"], lambda z: w * z.square().sum(-1))
        found = action.optimize_attention(a, b, 4)
        return found.path, found.action

    assert gradcheck(values, (x, y, weight))


def test_a_rest_on_top_of_a_hill_is_no_minimum():
    action = PathOptimization(RiemannianStructure.euclidean(1), lambda x: -30 * x.cos().sum(-1))
    top = torch.full((1,), math.pi, dtype=F64)
    with pytest.raises(ConvergenceError, match="no minimum") as caught:
        action.optimize_attention(top, top, 8)
    assert caught.value.residual <= 1e-9
    aside = top.expand(9, 1).clone()
    aside[4] += 0.1
    assert action.find_minimum(aside).action < action.path_action(top.expand(9, 1)) - 1


def test_equal_ends_rest():
    x = points("ball", 1)
    found = PathOptimization(CHARTS["ball"]).optimize_attention(x, x, 4)
    close(found.path, x.expand(5, *x.shape), 1e-14)
    assert found.action.abs().max() == 0


def test_faults_are_named():
    action = PathOptimization(CHARTS["half-plane"])
    path = torch.ones(4, 3, 2, dtype=F64)
    path[2, 1, 1] = -1
    with pytest.raises(ChartError, match=r"\(2, 1\)"):
        action.path_action(path)
    for bad in (path[:2], path[..., 0], path.long(), torch.ones(4, 3, 3, dtype=F64)):
        with pytest.raises(PointShapeError):
            action.vary_path(bad)
    with pytest.raises(GeometryError, match="steps"):
        action.optimize_attention(path[0], path[1], 1)
    with pytest.raises(PointShapeError):
        action.optimize_attention(torch.ones(2, 2), torch.ones(3, 2))
    with pytest.raises(GeometryError, match="steps"):
        action.optimize_attention(path[0], path[1], 4.0)
    with pytest.raises(PointShapeError, match="one dtype"):
        action.optimize_attention(path[0], path[1].float())
    with pytest.raises(PointShapeError, match="float32 or float64"):
        action.optimize_attention(path[0].bfloat16(), path[1].bfloat16())
    for potential in (lambda x: x, lambda x: x.sum(-1).float(), lambda x: x.sum()):
        with pytest.raises(PointShapeError, match="potential"):
            PathOptimization(CHARTS["half-plane"], potential).optimize_attention(path[0], path[1])
