"""Curvatures as parameters of modules: registered, initialised, trained across 0, compiled, refused."""

import copy
import math

import pytest
import torch

import aatc
from aatc import connections, geometry, metrics
from aatc.errors import AatcError
from aatc.nn import GeodesicViT, GeometricAttention

HIDDEN, HEADS, WIDTH = 12, 2, 6


def made(metric, **options):
    torch.manual_seed(0)
    return GeometricAttention(HIDDEN, HEADS, metric=metric, **options)


@pytest.mark.parametrize(
    ("metric", "start", "name"),
    [
        ("stereographic", None, "metric.curvature"),
        ("stereographic", 0.4, "metric.curvature"),
        ("lorentz", -0.5, "metric.log_curvature"),
        ("poincare", -2, "metric.log_curvature"),
    ],
)
def test_the_curvature_is_a_parameter_per_head_that_learns(metric, start, name):
    attention = made(metric, curvature=start).double()
    parameter = dict(attention.named_parameters())[name]
    value = parameter if metric == "stereographic" else -parameter.exp()
    torch.testing.assert_close(value.detach(), torch.full((HEADS,), start or 0.0, dtype=torch.float64))
    x, pull = torch.randn(2, 1, 4, HIDDEN, dtype=torch.float64)
    with torch.no_grad():
        attention.qkv.weight.mul_(2)

    def run(p):
        return (pull * torch.func.functional_call(attention, {name: p}, (x,))).sum()

    assert torch.autograd.gradcheck(run, (parameter.detach().clone().requires_grad_(),))
    (grad,) = torch.autograd.grad(attention(x).square().sum(), parameter)
    assert (grad != 0).all()
    same = made(metric, curvature=start).double()
    same.load_state_dict(attention.state_dict())
    torch.testing.assert_close(same(x), attention(x))


@pytest.mark.parametrize("connection", [None, "transport"])
def test_a_learned_lorentz_curvature_is_that_of_the_hyperboloid(connection):
    attention = made("lorentz", curvature=-0.5, connection=connection).double()
    with torch.no_grad():
        attention.metric.log_curvature.copy_(torch.tensor([0.7, -0.4]))
    q, k, v = (torch.randn(1, HEADS, n, WIDTH, dtype=torch.float64) for n in (3, 4, 4))
    found, carried = attention.attention_metric(q, k), attention.transport_values(q, k, v)
    for h, c in enumerate(attention.metric.magnitude().tolist()):
        space = geometry.Hyperboloid(c)
        x, y = (space.projection(torch.nn.functional.pad(t[0, h], (1, 0))) for t in (q, k))
        torch.testing.assert_close(found[0, h], space.dist(x[:, None], y[None]))
        if connection:
            origin = space.projection(torch.zeros_like(y[:1]))
            w = space.transport(origin, y, torch.nn.functional.pad(v[0, h], (1, 0)))
            w = space.transport(x[:, None], origin, space.transport(y[None], x[:, None], w))
            torch.testing.assert_close(carried[0, h], w[..., 1:])


def test_poincare_and_lorentz_of_one_curvature_are_one_space():
    q, k = (torch.randn(1, HEADS, n, WIDTH, dtype=torch.float64) for n in (3, 4))
    found = [made(name, curvature=-1.7).double().attention_metric(q, k) for name in ("lorentz", "poincare")]
    torch.testing.assert_close(*found)


def test_training_crosses_flat_space_and_no_curvature_recompiles():
    torch.compiler.reset()
    x = torch.randn(2, 6, HIDDEN)
    goal = made("stereographic", curvature=0.5)(x).detach()
    attention = made("stereographic", curvature=-0.02)
    compiled = aatc.compile(attention, fallback=False)
    parameter = attention.metric.curvature
    exact = copy.deepcopy(attention).double()
    optimizer = torch.optim.Adam([parameter], 0.02)
    for _ in range(4):
        optimizer.zero_grad()
        loss = (compiled(x) - goal).square().sum() * 1e4
        loss.backward()
        with torch.no_grad():
            exact.metric.curvature.copy_(parameter)
        want = (exact(x.double()) - goal.double()).square().sum() * 1e4
        (slope,) = torch.autograd.grad(want, exact.metric.curvature)
        torch.testing.assert_close(parameter.grad.double(), slope, rtol=2e-3, atol=2e-3 * slope.abs().max().item())
        optimizer.step()
    assert (parameter > 0).any() and len(compiled.graphs) == 1
    torch.compiler.reset()


def test_parameters_within_parts_are_registered():
    c, beta = (torch.nn.Parameter(torch.tensor(v)) for v in (0.8, 2.0))
    for metric, names in (
        (metrics.LorentzDistance(beta, curvature=c, lift=True), {"metric_beta", "metric_curvature"}),
        (metrics.Stereographic(curvature=c, lift=True), {"metric_curvature"}),
    ):
        attention = made(metric)
        assert names <= set(dict(attention.named_parameters()))
        grads = torch.autograd.grad(attention(torch.randn(1, 4, HIDDEN)).sum(), list(attention.parameters()))
        assert all(g.isfinite().all() for g in grads)
        twin = copy.deepcopy(attention)
        assert twin.metric_curvature is twin.metric.curvature is not c
    attention = made(metrics.SphereGeodesic(curvature=c), connection=connections.SphereTransport(c))
    assert [n for n, _ in attention.named_parameters() if "curvature" in n] == ["metric_curvature"]
    assert attention.connection_curvature is c


def test_fixed_curvatures_have_no_parameter_and_the_state_is_as_before():
    for metric in ("lorentz", "poincare", "sphere"):
        assert [n for n, _ in made(metric).metric.named_parameters()] == ["log_beta"]


@pytest.mark.parametrize("wrong", [0.0, 1.0, math.nan, -math.inf, "1", torch.tensor(-1.0)])
def test_a_curvature_of_the_wrong_kind_or_sign_is_refused(wrong):
    with pytest.raises(AatcError):
        made("lorentz", curvature=wrong)
    if wrong not in (0.0, 1.0):
        with pytest.raises(AatcError):
            made("stereographic", curvature=wrong)
    for metric in ("dot", "sphere", "mahalanobis", metrics.Poincare()):
        with pytest.raises(AatcError, match="curvature"):
            made(metric, curvature=-1.0)


def test_integers_and_the_ends_of_single_precision():
    for metric, curvature in (("stereographic", 1), ("stereographic", -1), ("lorentz", -1), ("poincare", -2)):
        x = torch.randn(1, 4, HIDDEN)
        torch.testing.assert_close(made(metric, curvature=curvature)(x), made(metric, curvature=float(curvature))(x))
    for metric in ("stereographic", "lorentz", "poincare"):
        with pytest.raises(AatcError, match="leaves the range"):
            made(metric, curvature=-1e39)
        if metric != "stereographic":
            for wrong in (-1e-39, -1e-320):
                with pytest.raises(AatcError, match="leaves the range"):
                    made(metric, curvature=wrong)
    x = torch.randn(1, 4, HIDDEN)
    torch.testing.assert_close(made("stereographic", curvature=-1e-320)(x), made("stereographic")(x))


def test_a_vision_transformer_learns_its_curvature():
    torch.manual_seed(0)
    vit = GeodesicViT(8, 4, 1, 3, 8, 1, 2, metric="stereographic", curvature=0.1)
    vit(torch.randn(2, 1, 8, 8)).square().sum().backward()
    (curvature,) = (p for n, p in vit.named_parameters() if n.endswith("metric.curvature"))
    assert (curvature.grad != 0).all()
