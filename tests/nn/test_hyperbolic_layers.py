"""Linear and logistic layers of the Poincaré ball against Möbius addition and distances by hand."""

import math

import numpy as np
import pytest
import torch

from aatc.errors import ShapeError
from aatc.geometry import PoincareBall
from aatc.nn import HyperbolicLinear, HyperbolicLogistic


def mobius(x, y, c):
    xy, xx, yy = (x * y).sum(-1, keepdims=True), (x * x).sum(-1, keepdims=True), (y * y).sum(-1, keepdims=True)
    return ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * xy + c * c * xx * yy)


def layer(kind, c, seed=0, bias=True):
    torch.manual_seed(seed)
    made = kind(3, 4, c=c, bias=bias).double()
    with torch.no_grad():
        if bias:
            made.bias.normal_(0, 0.5)
        made.weight.mul_(3)
    return made, PoincareBall(c).random_point((7, 3), torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("c", [1.0, 0.3])
def test_logits_are_those_of_hyperplanes_by_moebius_addition(c):
    made, x = layer(HyperbolicLogistic, c)
    found, x = made(x).detach().numpy(), x.numpy()
    for k in range(4):
        z, r = made.weight[k].detach().numpy(), float(made.bias[k].detach())
        unit = z / np.linalg.norm(z)
        p = np.tanh(math.sqrt(c) * r) / math.sqrt(c) * unit  # exp at 0 of r z/|z|, where λ is 2
        w = mobius(-p[None], x, c)
        gap = 1 - c * (w * w).sum(-1)
        distance = np.arcsinh(2 * math.sqrt(c) * (w @ unit) / gap) / math.sqrt(c)
        np.testing.assert_allclose(found[:, k], 2 * np.linalg.norm(z) * distance, rtol=1e-10, atol=1e-10)


def test_points_of_a_linear_layer_lie_at_the_distances_it_computed():
    made, x = layer(HyperbolicLinear, 0.7)
    y = made(x)
    assert PoincareBall(0.7).belongs(y).all() and y.shape == (7, 4)
    root, gap = math.sqrt(0.7), 1 - 0.7 * y.square().sum(-1, keepdim=True)
    np.testing.assert_allclose(((2 * root * y / gap).asinh() / root).detach(), made.logits(x).detach(), atol=1e-10)


def test_flat_limit_is_the_affine_map():
    made, x = layer(HyperbolicLinear, 1e-10)
    x = x / x.norm(dim=-1, keepdim=True)
    size = made.weight.norm(dim=-1)
    flat = 4 * x @ made.weight.mT - 4 * size * made.bias
    np.testing.assert_allclose(made.logits(x).detach(), flat.detach(), atol=1e-7)
    np.testing.assert_allclose(made(x).detach(), flat.detach() / 2, atol=1e-7)


@pytest.mark.parametrize("kind", [HyperbolicLinear, HyperbolicLogistic])
def test_gradients_graphs_and_vmap(kind):
    made, x = layer(kind, 1.0)
    x = x[:2].requires_grad_()
    call = lambda p, w, b: torch.func.functional_call(made, {"weight": w, "bias": b}, (p,))  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, made.weight, made.bias))
    torch._dynamo.reset()
    compiled = torch.compile(made, fullgraph=True, backend="eager")
    np.testing.assert_allclose(compiled(x).detach(), made(x).detach(), rtol=1e-12)
    np.testing.assert_allclose(torch.func.vmap(made)(x).detach(), made(x).detach(), rtol=1e-12)
    edge = torch.tensor([[1 - 1e-7, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    single = kind(3, 4)
    out = single(edge)
    assert out.isfinite().all() and torch.autograd.grad(out.sum(), edge)[0].isfinite().all()
    if kind is HyperbolicLinear:
        assert PoincareBall().belongs(out).all()


def test_a_layer_and_a_classifier_learn_what_no_straight_line_divides():
    torch.manual_seed(0)
    ball = PoincareBall()
    angle, radius = 2 * math.pi * torch.rand(200), torch.rand(200) * 0.4
    radius[100:] += 0.5
    x, y = torch.stack([radius * angle.cos(), radius * angle.sin()], -1), (torch.arange(200) >= 100).long()
    model = torch.nn.Sequential(HyperbolicLinear(2, 8), HyperbolicLogistic(8, 2))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert ball.belongs(model[0](x)).all()
    assert float((model(x).argmax(-1) == y).float().mean()) > 0.95


def test_sizes_that_do_not_fit_are_typed_errors():
    with pytest.raises(ShapeError, match="sizes 0"):
        HyperbolicLinear(0, 3)
    with pytest.raises(ShapeError, match="3 features"):
        HyperbolicLogistic(3, 2)(torch.zeros(5, 4))
    assert HyperbolicLinear(3, 2, bias=False)(torch.zeros(0, 3)).shape == (0, 2)
