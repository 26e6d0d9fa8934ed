"""`aatc.attend` inside torch.compile and torch.export: one node, no graph break, no surplus recompiles."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

import aatc
from aatc import biases, connections, masks, metrics


@aatc.metric(w="hd")
def weighted(q, k, w):
    return -(w * (q - k).abs()).sum()


class Model(torch.nn.Module):
    """One attention per kind; parameters stand in a held metric, or in one made anew in every call."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.qkv = torch.nn.Linear(16, 48)
        self.beta = torch.nn.Parameter(torch.ones(2))
        self.table = torch.nn.Parameter(torch.randn(2, 9))
        self.w = torch.nn.Parameter(torch.rand(2, 8))
        self.held = metrics.LorentzDistance(beta=self.beta, lift=True, curvature=0.7)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 2, 8).permute(2, 0, 3, 1, 4)
        return aatc.attend(q, k, v, **getattr(self, self.kind)(x, n))

    def held_metric(self, x, n):
        return {"metric": self.held, "connection": connections.Rotary(), "mask": masks.causal()}

    def made_metric(self, x, n):
        return {
            "metric": metrics.LorentzDistance(beta=self.beta.exp(), lift=True),
            "mask": masks.causal() & masks.sliding_window(4),
            "bias": biases.RelativeTable(self.table) + biases.ALiBi(2),
        }

    def users_metric(self, x, n):
        return {"metric": weighted(w=self.w), "dropout": 0.2 if self.training else 0.0}

    def predicate(self, x, n):
        return {
            "metric": metrics.SphereGeodesic(3.0),
            "mask": masks.predicate(lambda b, h, i, j: i >= j),
            "scale": 0.5,
        }

    def tensors(self, x, n):
        return {
            "metric": metrics.Euclidean(),
            "bias": (x @ x.mT).unsqueeze(1),
            "mask": masks.key_padding(x[:, :, 0] > -9),
        }

    def documents(self, x, n):
        return {"metric": metrics.FisherRao(logits=True), "mask": masks.documents(torch.arange(n) // 3)}


KINDS = ("held_metric", "made_metric", "users_metric", "predicate", "tensors", "documents")


def alike(a, b, models):
    torch.testing.assert_close(a, b)
    probe = torch.randn_like(a)
    grads = [
        torch.autograd.grad((probe * y).sum(), list(m.parameters()), allow_unused=True)
        for y, m in zip((a, b), models, strict=True)
    ]
    for g, w in zip(*grads, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_ten_lengths_cost_two_graphs(kind):
    torch._dynamo.reset()
    model = Model(kind)
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for n in (6, 7, 9, 1, 2, 11, 3, 17, 5, 8):
        x = torch.randn(3, n, 16)
        torch.manual_seed(n)
        a = compiled(x)
        torch.manual_seed(n)
        alike(a, model(x), (model, model))
    assert backend.frame_count <= 2
    assert [n for g in backend.graphs for n in g.graph.nodes if n.target is torch.ops.aatc.attend]


@pytest.mark.parametrize("kind", KINDS)
def test_an_unbacked_length_costs_one_graph(kind):
    torch._dynamo.reset()
    model = Model(kind)
    backend = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for n in (6, 1, 13):
        x = torch.randn(3, n, 16)
        torch._dynamo.decorators.mark_unbacked(x, 1)
        assert compiled(x).shape == (3, 2, n, 8)
    assert backend.frame_count == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_one_node_and_a_free_length(kind, strict):
    torch._dynamo.reset()
    model = Model(kind).eval()
    shapes = {"x": {0: Dim("b", min=1), 1: Dim("n", min=1)}}
    exported = torch.export.export(model, (torch.randn(3, 6, 16),), dynamic_shapes=shapes, strict=strict)
    nodes = [n for n in exported.graph.nodes if n.target is torch.ops.aatc.attend.default]
    assert len(nodes) == 1 and nodes[0].args[4].startswith('{names = ["q", "k", "v"')
    for b, n in ((2, 9), (3, 1), (1, 5)):
        x = torch.randn(b, n, 16)
        torch.testing.assert_close(exported.module()(x), model(x))


def test_another_beta_is_another_graph_and_another_tensor_is_not():
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("eager")

    def f(q, metric):
        return aatc.attend(q, q, q, metric=metric)

    compiled = torch.compile(f, backend=backend, fullgraph=True)
    q = torch.randn(1, 2, 4, 4)
    for beta in (2.0, 3.0):
        metric = metrics.SphereGeodesic(beta)
        torch.testing.assert_close(compiled(q, metric), f(q, metric))
    assert backend.frame_count == 2
    for t in (torch.ones(2), torch.full((2,), 5.0), torch.zeros(2)):
        metric = metrics.SphereGeodesic(t)
        torch.testing.assert_close(compiled(q, metric), f(q, metric))
    assert backend.frame_count == 3


def test_a_model_with_a_held_metric_is_copied_and_moved_with_its_parameter():
    model = copy.deepcopy(Model("held_metric")).double()
    assert model.held.beta is model.beta and model.held.beta.dtype == torch.float64
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    model(x).sum().backward()
    assert model.beta.grad is not None


def test_gradient_checkpointing_draws_the_same_dropout():
    from torch.utils.checkpoint import checkpoint

    model = Model("users_metric")
    x = torch.randn(2, 5, 16)
    torch.manual_seed(1)
    a = checkpoint(model, x, use_reentrant=False)
    torch.manual_seed(1)
    alike(a, model(x), (model, model))
