"""Compiled attention, pattern dynamics and flows under the seed's names: one graph, the numbers of plain torch."""

import pytest
import torch

import aatc
from aatc import masks, metrics
from aatc.errors import AatcError, ShapeError
from aatc.geometry import GeometricFlow, GrayScott, Grid, MetricGrid, PatternDynamics
from aatc.geometry.dynamics.reaction_diffusion import PatternError
from aatc.geometry.flows.grid_metric import DegenerateMetricError
from aatc.performance import VectorizationSystem

SHAPES = [(17, 8), (3, 17, 8), (2, 3, 17, 8)]


@pytest.mark.parametrize("backend", ["native", "cpu"])
def test_attention_of_all_ranks(backend):
    system = VectorizationSystem(backend=backend)
    for shape in SHAPES:
        q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
        exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
        for n in (3, 2):  # with values, and with keys for values
            found = system.vectorize_attention(*(q, k, v)[:n])
            a, b, c = (*exact, exact[1])[:3] if n == 3 else (exact[0], exact[1], exact[1])
            wanted = (a @ b.mT / 8**0.5).softmax(-1) @ c
            assert found.shape == shape
            torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5)
            weights = torch.randn(shape)
            got = torch.autograd.grad(found, (q, k), weights)
            expected = torch.autograd.grad(wanted, (a, b), weights.double())
            for g, e in zip(got, expected, strict=True):
                torch.testing.assert_close(g.double(), e, rtol=0, atol=2e-5)
    assert system.attention.explain().fallbacks == ()
    assert [a.engine for a in system.attention.explain().attentions]


def test_attention_has_the_parts_of_attend():
    system = VectorizationSystem(
        backend="native", attention={"metric": metrics.LorentzDistance(lift=True), "mask": masks.causal()}
    )
    x = torch.randn(1, 2, 20, 6)
    y = x.double()  # tokens tied to each other: single precision would lose digits of the formula
    wanted = aatc.attend(y, y, y, metric=metrics.LorentzDistance(lift=True), mask=masks.causal())
    for queries in (x, x.mT.contiguous().mT):
        found = system.vectorize_attention(queries, x)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5)


def test_attention_refuses_what_does_not_fit():
    system, x = VectorizationSystem(), torch.randn(2, 5, 4)
    for args in ((x[0, 0], x[0, 0]), (x, x[0]), (x, x, x[0]), (x[None, None], x[None, None])):
        with pytest.raises(ShapeError, match="axes"):
            system.vectorize_attention(*args)


def test_patterns_are_advanced_by_one_graph():
    diffusion = torch.tensor([2e-5, 1e-5], requires_grad=True)
    dynamics = PatternDynamics(GrayScott(), diffusion, Grid((2.5, 2.5)))
    system = VectorizationSystem(backend="native", dynamics=dynamics)
    u = torch.rand(3, 2, 16, 16)
    for dt in (1.0, 0.5):
        found, wanted = system.vectorize_pattern_dynamics(u, dt=dt), dynamics.reaction_diffusion(u, dt=dt)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
        (got,), (expected,) = (torch.autograd.grad(y.square().sum(), diffusion) for y in (found, wanted))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    explained = system.pattern_step.explain()
    assert (explained.fallbacks, len(explained.graphs)) == ((), 1)
    force = torch.rand(2, 1, 1)
    forced = system.vectorize_pattern_dynamics(u, dt=0.5, method="imex", forcing=force)
    wanted = dynamics.reaction_diffusion(u, dt=0.5, method="imex", forcing=force)
    torch.testing.assert_close(forced, wanted, rtol=1e-6, atol=1e-7)
    with pytest.raises(PatternError, match="method"):
        system.vectorize_pattern_dynamics(u, method="leap")
    with pytest.raises(AatcError, match="no dynamics"):
        VectorizationSystem().vectorize_pattern_dynamics(u)


def test_metrics_flow_by_one_graph():
    flow = GeometricFlow(MetricGrid((0.1, 0.1)))
    system = VectorizationSystem(backend="native", flow=flow)
    x = torch.linspace(0, 6.2831853, 17, dtype=torch.float64)[:16]
    conformal = 1 + 0.1 * x.sin()[:, None] * x.cos()
    metric = conformal[..., None, None] * torch.eye(2, dtype=torch.float64)
    for step in (None, 1e-4):
        found = system.vectorize_geometric_flow(metric, timestep=step)
        wanted, _ = flow.flow_step(metric, flow.compute_ricci_tensor(metric), step or 0.5 * flow.step_bound(metric))
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
        assert not torch.equal(found, metric)
    explained = system.ricci.explain()
    assert (explained.fallbacks, len(explained.graphs)) == ((), 1)
    with pytest.raises(DegenerateMetricError):
        system.vectorize_geometric_flow(-metric)
    with pytest.raises(AatcError, match="flow on a grid"):
        VectorizationSystem().vectorize_geometric_flow(metric)


def test_memory_access_is_what_compile_makes_of_it():
    system = VectorizationSystem(backend="native", compile={"fallback": False})

    def operation(x):
        return aatc.attend(x, x, x, metric=metrics.Euclidean()).relu()

    found = system.optimize_memory_access(operation)
    x = torch.randn(1, 2, 30, 8)
    torch.testing.assert_close(found(x), operation(x), rtol=1e-5, atol=1e-5)
    assert len(found.explain().attentions) == 1
    module = torch.nn.Linear(3, 2)
    compiled = system.optimize_memory_access(module)
    assert isinstance(compiled, torch.nn.Linear) and compiled.weight is module.weight
