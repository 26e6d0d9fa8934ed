"""gradcheck, in float64, of every public function and module of `aatc.nn`, in its input and all its parameters."""

import pytest
import torch
from torch.autograd import gradcheck

from aatc import nn

pytestmark = pytest.mark.usefixtures("one_thread")
METRICS = ("dot", "euclidean", "fisher-rao", "lorentz", "mahalanobis", "poincare", "sphere", "stereographic")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def check(module: torch.nn.Module, x: torch.Tensor) -> None:
    module = module.double().eval()
    names, values = zip(*module.named_parameters(), strict=True)

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert gradcheck(run, (x, *(v.detach().clone().requires_grad_() for v in values)), fast_mode=True)


@pytest.mark.parametrize("metric", METRICS)
def test_geometric_attention(metric):
    check(nn.GeometricAttention(8, 2, metric=metric), draw(1, 5, 8))


@pytest.mark.parametrize(("metric", "connection"), [("lorentz", "transport"), ("sphere", "transport"),
                                                    ("euclidean", "rotary"), ("euclidean", "frames")])  # fmt: skip
def test_connections(metric, connection):
    check(nn.GeometricAttention(8, 2, metric=metric, connection=connection, causal=True), draw(1, 4, 8, seed=1))


def test_quantum_attention_and_its_flow():
    check(nn.QuantumGeometricAttention(8, 2, 0.0, motive_rank=2, manifold_dim=3, num_layers=2), draw(1, 4, 8, seed=2))


def test_geodesic_vision_transformer():
    check(nn.GeodesicViT(4, 2, 1, 3, 8, 1, 2), draw(2, 1, 4, 4, seed=3))


def test_scaled_dot_products_and_transformer_attention():
    q, k, v = (draw(2, 5, 4, seed=s) for s in range(3))
    keep = torch.ones(5, 5).tril().bool()
    assert gradcheck(lambda *x: nn.scaled_dot_product_attention(*x, keep), (q, k, v))
    assert gradcheck(lambda *x: nn.scaled_dot_product_attention(*x, return_weights=True), (q, k, v))
    attention = nn.TransformerAttention(4, 0.0).double()
    assert gradcheck(lambda *x: attention(*x, need_weights=True), (q, k, v))
