"""A compiled module is the module it was made from: same parameters, state, hooks, gradients, numbers."""

import copy
import functools
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

import aatc
from tests.frontend import frontend_models as models


def pair(model: nn.Module, **options: object) -> tuple[nn.Module, nn.Module]:
    """A compiled copy of ``model`` and an eager one."""
    return aatc.compile(copy.deepcopy(model), **options), copy.deepcopy(model)


def grads(model: nn.Module, x: torch.Tensor, seed: int = 1) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    model.zero_grad()
    y = model(x)
    (y.float() ** 2).mean().backward()
    return y.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(compiled: nn.Module, eager: nn.Module, x: torch.Tensor, tolerance: float = 2e-5) -> None:
    y, g = grads(compiled, x)
    z, h = grads(eager, x)
    assert_close("output", y, z, tolerance)
    assert g.keys() == h.keys()
    for name in g:
        assert_close(name, g[name], h[name], tolerance)
    for (name, b), c in zip(compiled.named_buffers(), eager.buffers(), strict=True):
        assert_close(name, b, c, tolerance)


def assert_close(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Relative to the largest number."""
    gap = (got.double() - want.double()).abs().max().item()
    assert gap <= tolerance * max(1.0, want.abs().max().item()), f"{name} differs by {gap}"


def assert_whole(compiled: nn.Module) -> None:
    """Nothing was left to PyTorch."""
    assert not compiled.explain().fallbacks, str(compiled.explain())


def test_it_is_a_module_of_the_models_class_with_its_very_parameters():
    model = models.Classifier()
    compiled = aatc.compile(model)
    assert isinstance(compiled, models.Classifier)
    assert list(compiled.state_dict()) == list(model.state_dict())
    assert all(p is q for p, q in zip(compiled.parameters(), model.parameters(), strict=True))
    assert compiled.head is model.head
    assert repr(compiled) == repr(model)


def test_output_gradients_and_buffers_equal_eager():
    compiled, eager = pair(models.Classifier())
    x = torch.randn(3, 7, 16)
    assert_same(compiled, eager, x)
    assert_whole(compiled)
    compiled.eval(), eager.eval()
    assert_same(compiled, eager, x)
    assert_whole(compiled)


def test_batch_norm_updates_the_buffers_of_the_original():
    model = models.Classifier()
    compiled = aatc.compile(model)
    compiled(torch.randn(3, 7, 16))
    assert model.norm.num_batches_tracked == 1
    assert model.norm.running_mean.abs().sum() > 0
    compiled.eval()
    compiled(torch.randn(3, 7, 16))
    assert model.norm.num_batches_tracked == 1


def test_train_and_eval_are_shared_and_recompile():
    model = models.Classifier(dropout=0.5)
    compiled = aatc.compile(model)
    x = torch.randn(2, 4, 16)
    torch.manual_seed(3)
    first = compiled(x)
    torch.manual_seed(4)
    assert not torch.equal(first, compiled(x))
    compiled.eval()
    assert not model.training
    assert torch.equal(compiled(x), compiled(x))
    model.train()
    assert compiled.training


def test_dropout_draws_the_numbers_eager_draws():
    compiled, eager = pair(models.Classifier(dropout=0.3))
    assert_same(compiled, eager, torch.randn(3, 7, 16))
    assert_whole(compiled)


def test_loading_a_state_reaches_the_compiled_module():
    compiled, eager = pair(models.Classifier())
    x = torch.randn(2, 4, 16)
    compiled(x)
    other = models.Classifier()
    compiled.load_state_dict(other.state_dict())
    eager.load_state_dict(other.state_dict())
    assert_same(compiled, eager, x)
    assert len(compiled.graphs) == 1


def test_optimizer_steps_follow_eager_without_recompiling():
    compiled, eager = pair(models.Classifier())
    data = [torch.randn(3, 7, 16) for _ in range(4)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9) for m in (compiled, eager)]
    for x in data:
        for m, optimizer in zip((compiled, eager), optimizers, strict=True):
            grads(m, x)
            optimizer.step()
    for p, q in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    assert len(compiled.graphs) == 1


def test_hooks_of_the_module_and_of_its_parts_run():
    compiled, eager = pair(models.Classifier())
    calls = []
    for m in (compiled, eager):
        m.register_forward_hook(lambda mod, args, out: (calls.append("whole"), out * 2)[1])
        m.blocks[0].register_forward_pre_hook(lambda mod, args: (args[0] + 1,))
        m.blocks[1].register_full_backward_hook(lambda mod, gi, go: calls.append("backward"))
    assert_same(compiled, eager, torch.randn(2, 4, 16))
    assert calls.count("whole") == 2
    assert calls.count("backward") == 2


def test_gradient_checkpointing_equals_eager_and_recomputes():
    compiled, eager = pair(models.Classifier(recompute=True, dropout=0.3))
    assert_same(compiled, eager, torch.randn(3, 7, 16))
    assert_whole(compiled)
    module = compiled.ir("import")
    assert [op.attrs["body"].name for op in module.entry.body.ops if op.name == "geo.checkpoint"] == [
        "checkpoint_0", "checkpoint_1",
    ]  # fmt: skip
    assert any(op.name == "geo.metric" for op in module.funcs["checkpoint_0"].body.ops)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_the_call_equals_eager(dtype):
    compiled, eager = pair(models.Classifier())
    x = torch.randn(3, 7, 16)
    with torch.autocast("cpu", dtype=dtype):
        y, z = compiled(x), eager(x)
    assert y.dtype == z.dtype == dtype
    torch.testing.assert_close(y, z, rtol=5e-2, atol=5e-2)
    (y.float() ** 2).mean().backward()
    (z.float() ** 2).mean().backward()
    for p, q in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-1, atol=5e-2)
    assert_whole(compiled)
    assert compiled(x).dtype == torch.float32
    assert len(compiled.graphs) == 2


def test_autocast_inside_the_model_becomes_casts_in_the_ir():
    compiled, eager = pair(models.Autocast())
    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(compiled(x), eager(x), rtol=2e-2, atol=2e-2)
    assert_whole(compiled)
    casts = [op for op in compiled.ir("import").walk() if op.attrs.get("target") == "aten.to.dtype"]
    assert {str(op.result.type.dtype) for op in casts} == {"bf16", "f32"}


def test_no_grad_inside_the_model_is_said_call_by_call():
    compiled, eager = pair(models.NoGradient())
    assert_same(compiled, eager, torch.randn(3, 7, 16))
    assert_whole(compiled)
    quiet = {op.attrs["target"] for op in compiled.ir("import").walk() if op.attrs.get("no_grad")}
    assert {"aten.mul_.Tensor", "aten.add_.Tensor", "aten.sum.default"} <= quiet
    assert "aten.add.Tensor" not in quiet


def test_without_gradients_around_the_call():
    compiled, eager = pair(models.Classifier().eval())
    x = torch.randn(3, 7, 16)
    with torch.no_grad():
        y = compiled(x)
    assert not y.requires_grad
    torch.testing.assert_close(y, eager(x))
    assert compiled(x).requires_grad


def test_deepcopy_is_a_compiled_module_of_its_own():
    compiled = aatc.compile(models.Classifier().eval())
    x = torch.randn(2, 4, 16)
    y = compiled(x)
    other = copy.deepcopy(compiled)
    assert type(other).__name__ == type(compiled).__name__
    assert not other.graphs
    with torch.no_grad():
        compiled.head.weight.zero_()
    torch.testing.assert_close(other(x), y)
    assert len(other.graphs) == 1


def test_pickle_gives_a_compiled_module():
    compiled = aatc.compile(models.Classifier().eval(), dynamic=True)
    x = torch.randn(2, 4, 16)
    y = compiled(x)
    other = pickle.loads(pickle.dumps(compiled))
    assert isinstance(other, models.Classifier)
    torch.testing.assert_close(other(x), y)
    assert other.stages


def test_compiling_twice_and_nesting():
    model = models.Classifier().eval()
    x = torch.randn(2, 4, 16)
    want = model(x)
    twice = aatc.compile(aatc.compile(model))
    torch.testing.assert_close(twice(x), want)
    inner = models.Classifier().eval()
    want = inner(x)
    inner.blocks = aatc.compile(inner.blocks)
    torch.testing.assert_close(inner(x), want)
    torch.testing.assert_close(aatc.compile(inner)(x), want)


def test_attributes_set_on_either_are_seen_on_both():
    model = models.Classifier()
    compiled = aatc.compile(model)
    compiled.extra = 3
    assert model.extra == 3
    model.head = nn.Linear(16, 5)
    assert compiled(torch.randn(2, 4, 16)).shape == (2, 5)


def test_a_function_gives_a_function():
    def distance(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Says what it does."""
        return aatc.attend(q, k, v, metric=aatc.metrics.Euclidean())

    compiled = aatc.compile(distance)
    assert compiled.__name__ == "distance"
    assert compiled.__doc__ == distance.__doc__
    q, k, v = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))
    torch.testing.assert_close(compiled(q, k, v=v), distance(q, k, v))
    assert "geo.metric" in str(compiled.ir("import"))


def test_the_dynamo_backend_compiles_for_torch_compile():
    from aatc.frontend.dynamo import backend

    model = models.Classifier().eval()
    x = torch.randn(2, 4, 16)
    torch.testing.assert_close(torch.compile(model, backend=backend)(x), model(x), rtol=2e-5, atol=2e-5)
    with_options = torch.compile(model, backend=backend, options={"fallback": False}, dynamic=True)
    torch.testing.assert_close(with_options(x), model(x), rtol=2e-5, atol=2e-5)


class Staged(nn.Module):
    """Has an attribute by the name of one of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return x

    def twice(self, x: torch.Tensor) -> torch.Tensor:
        return self(x) + len(self.stages)


def test_a_models_own_attributes_win():
    model = Staged()
    compiled = aatc.compile(model)
    x = torch.randn(2, 4)
    torch.testing.assert_close(compiled.twice(x), model.twice(x))
    assert compiled.stages is model.stages
    assert compiled.graphs


def test_changing_the_dtype_of_all_parameters():
    model = models.Classifier().eval()
    compiled = aatc.compile(model)
    x = torch.randn(2, 4, 16)
    compiled(x)
    assert compiled.double() is compiled
    assert compiled(x.double()).dtype == torch.float64
    torch.testing.assert_close(compiled(x.double()), model(x.double()), rtol=1e-12, atol=1e-12)


class Scaled:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by

    def method(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.by


def test_other_callables_are_compiled_too():
    x = torch.randn(3)
    scaled = Scaled(3.0)
    for function in (scaled, scaled.method, torch.sin, functools.partial(torch.add, other=2.0)):
        compiled = aatc.compile(function)
        torch.testing.assert_close(compiled(x), function(x))
        assert len(compiled.graphs) == 1


def test_an_attention_whose_log_sum_exp_alone_is_used_is_compiled():
    def partition(q, k, v):
        return aatc.attend(
            q, k, v, metric=aatc.metrics.Euclidean(), mask=aatc.masks.causal(), return_lse=True
        )[1]  # fmt: skip

    inputs = [torch.randn(2, 4, 33, 8, requires_grad=True) for _ in range(3)]
    compiled = aatc.compile(partition, fallback=False)
    torch.testing.assert_close(compiled(*inputs), partition(*inputs), atol=2e-5, rtol=2e-5)
    ours, want = (torch.autograd.grad(f(*inputs).sin().sum(), inputs[:2]) for f in (compiled, partition))
    torch.testing.assert_close(ours, want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", ["frames", "rotary"])
def test_values_that_are_turned_and_thinned_are_compiled(kind):
    connection = {
        "frames": lambda: aatc.connections.Frames(torch.linalg.qr(torch.randn(33, 8, 8))[0], values=True),
        "rotary": lambda: aatc.connections.Rotary(torch.arange(33), values=True),
    }[kind]()

    def attention(q, k, v):
        return aatc.attend(q, k, v, metric=aatc.metrics.Euclidean(), connection=connection, dropout=0.3, seed=7)

    inputs = [torch.randn(2, 3, 33, 8, requires_grad=True) for _ in range(3)]
    compiled = aatc.compile(attention, fallback=False)
    torch.testing.assert_close(compiled(*inputs), attention(*inputs), atol=2e-5, rtol=2e-5)
    assert not compiled.explain().fallbacks
    ours, want = (torch.autograd.grad(f(*inputs).sin().sum(), inputs) for f in (compiled, attention))
    torch.testing.assert_close(ours, want, atol=2e-5, rtol=2e-5)


def test_compiled_modules_and_functions_within_a_compiled_model_become_one_graph():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(8, 8)

        def forward(self, x):
            q = self.mix(x)[:, None]
            return x + aatc.attend(q, q, q, metric=aatc.metrics.Euclidean())[:, 0]

    one, two, x = Block(), Block(), torch.randn(2, 5, 8)
    inner = aatc.compile(one)
    whole = aatc.compile(nn.Sequential(inner, two), fallback=False)
    torch.testing.assert_close(whole(x), two(one(x)), atol=2e-5, rtol=2e-5)
    assert len(whole.graphs) == 1 and len(whole.explain().attentions) == 2 and not inner.graphs
    torch.testing.assert_close(inner(x), one(x), atol=2e-5, rtol=2e-5)

    part = aatc.compile(lambda q: aatc.attend(q, q, q, metric=aatc.metrics.Euclidean()))
    twice = aatc.compile(lambda q: 2 * part(q), fallback=False)
    q = torch.randn(1, 2, 5, 8)
    torch.testing.assert_close(twice(q), 2 * part(q), atol=2e-5, rtol=2e-5)


def test_a_thread_compiles_while_another_one_does(monkeypatch):
    # torch's flag is_compiling is one for all threads.
    x = torch.randn(2, 5, 16)
    model = aatc.compile(models.Block().eval())
    function = aatc.compile(lambda q: aatc.attend(q, q, q, metric=aatc.metrics.Euclidean()))
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    assert torch.compiler.is_compiling()
    model(x), function(torch.randn(1, 2, 5, 4))
    monkeypatch.undo()
    assert len(model.graphs) == len(function.graphs) == 1


def test_what_nobody_can_call_any_more_keeps_no_ir():
    """Dynamo's guards, and its cache of a function's code, live longer."""

    def attend(q):
        return aatc.attend(q, q, q, metric=aatc.metrics.Euclidean())

    for model in (attend, models.Block()):
        compiled = aatc.compile(model)
        x = torch.randn(1, 2, 5, 4) if model is attend else torch.randn(2, 5, 16)
        loss = compiled(x.requires_grad_()).sum()
        report = compiled.explain()
        kept = [weakref.ref(m) for g in compiled.graphs for m in g.stages.values()]
        assert len(kept) > 3
        (graph,) = compiled.graphs
        del compiled
        gc.collect()
        assert len(graph.stages) > 3 and graph.code  # who holds a graph holds what it is made of
        del graph
        gc.collect()
        assert not [k for k in kept if k() is not None]
        loss.backward()  # of what was called before
        assert x.grad is not None and "attention" in str(report)
        assert torch.equal(aatc.compile(model)(x), aatc.compile(model)(x))
