"""Linear and logistic layers of the Poincaré ball against Möbius addition and distances by hand."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch

from aatc.errors import ShapeError
from aatc.geometry import NotOnManifoldError, PoincareBall, PointShapeError
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


@pytest.mark.parametrize("kind", [HyperbolicLinear, HyperbolicLogistic])
def test_a_curvature_that_is_a_parameter_learns(kind):
    made, x = layer(kind, 0.3)
    learned = kind(3, 4, c=torch.nn.Parameter(torch.tensor(0.3))).double()
    assert "c" in dict(learned.named_parameters())
    learned.load_state_dict({**made.state_dict(), "c": torch.tensor(0.3, dtype=torch.float64)})
    torch.testing.assert_close(learned(x), made(x))
    names = [n for n, _ in learned.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in learned.parameters()]

    def run(*given):
        return torch.func.functional_call(learned, dict(zip(names, given)), (x,))

    assert torch.autograd.gradcheck(run, values)
    fixed = kind(3, 4, c=torch.tensor(0.3, dtype=torch.float64))
    assert "c" in fixed.state_dict() and "c" not in dict(fixed.named_parameters())


def by_mpmath(made, x):
    """Logits of points and their place in the ball by the formulas of the paper, in 80 digits."""
    with mp.workdps(80):
        c, rows = mp.mpf(float(made.c)), []
        for point in x.double().tolist():
            lam = 2 / (1 - c * mp.fsum(mp.mpf(p) ** 2 for p in point))
            row = []
            for z, r in zip(made.weight.detach().double().tolist(), made.bias.detach().double().tolist(), strict=True):
                size = mp.sqrt(mp.fsum(mp.mpf(a) ** 2 for a in z))
                dot = mp.fsum(mp.mpf(a) * mp.mpf(p) for a, p in zip(z, point, strict=True)) / size
                shift = 2 * mp.sqrt(c) * mp.mpf(r)
                inner = lam * mp.sqrt(c) * dot * mp.cosh(shift) - (lam - 1) * mp.sinh(shift)
                row.append(2 * size / mp.sqrt(c) * mp.asinh(inner))
            rows.append(row)
        w = [[mp.sinh(mp.sqrt(c) * v) / mp.sqrt(c) for v in row] for row in rows]
        ends = [[a / (1 + mp.sqrt(1 + c * mp.fsum(b**2 for b in row))) for a in row] for row in w]
        as_tensor = lambda m: torch.tensor([[float(a) for a in row] for row in m], dtype=torch.float64)  # noqa: E731
        return as_tensor(rows), as_tensor(ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("largest", [1.0, 45.0, 400.0, 1e4])
def test_large_biases_and_far_points_are_those_of_the_formula(dtype, largest):
    torch.manual_seed(1)
    made = HyperbolicLinear(3, 5, c=0.8).to(dtype)
    with torch.no_grad():
        made.bias.copy_(largest * torch.tensor([1.0, -1.0, 0.9, 0.0, -0.5]))
    x = PoincareBall(0.8).random_point((6, 3), dtype=dtype)
    x[0] *= 0.9999 / math.sqrt(0.8) / x[0].norm()
    x[1] = made.weight[0].detach() / made.weight[0].detach().norm() * 0.999 / math.sqrt(0.8)
    x.requires_grad_()
    logits, ends = by_mpmath(made, x.detach())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(made.logits(x).double(), logits, rtol=4 * eps + 1e-11, atol=4 * eps + 1e-11)
    out = made(x)
    torch.testing.assert_close(out.double(), ends, rtol=0, atol=8 * eps + 1e-12)  # the edge itself is 4 eps away
    assert PoincareBall(0.8).belongs(out).all()
    for value in (made.logits(x), made(x)):
        slopes = torch.autograd.grad(value.sum(), (x, made.weight, made.bias))
        assert all(g.isfinite().all() for g in slopes)


def test_slopes_by_a_large_bias_are_those_of_differences():
    made, x = layer(HyperbolicLogistic, 1.0)
    with torch.no_grad():
        made.bias.copy_(torch.tensor([60.0, -60.0, 9.9, -10.1]))
    (slope,) = torch.autograd.grad(made(x).sum(0).dot(torch.arange(1.0, 5).double()), made.bias)
    moved = []
    for h in (1e-6, -1e-6):
        with torch.no_grad():
            made.bias.add_(h)
            moved.append(by_mpmath(made, x)[0].sum(0) * torch.arange(1.0, 5))
            made.bias.sub_(h)
    torch.testing.assert_close(slope, (moved[0] - moved[1]) / 2e-6, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", [HyperbolicLinear, HyperbolicLogistic])
def test_points_that_a_layer_cannot_use_are_typed_errors(kind):
    made = kind(3, 2)
    for bad in ([1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [math.nan, 0.0, 0.0], [math.inf, 0.0, 0.0]):
        x = torch.zeros(4, 3)
        x[2] = torch.tensor(bad)
        with pytest.raises(NotOnManifoldError, match=r"\(2,\)"):
            made(x)
    for wrong, error in (
        ([0.0, 0.0, 0.0], ShapeError),
        (torch.zeros(3, dtype=torch.long), PointShapeError),
        (torch.tensor(0.0), ShapeError),
    ):
        with pytest.raises(error):
            made(wrong)
    for sizes in (("a", 3), (2.5, 3), (None, 1)):
        with pytest.raises(ShapeError, match="integers"):
            kind(*sizes)
    assert made(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64
    assert made(torch.zeros(3, dtype=torch.bfloat16)).dtype == torch.float32
