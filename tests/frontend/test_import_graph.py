"""The importer: what a graph of PyTorch looks like in the IR."""

import pytest
import torch
from torch import nn

import aatc
from aatc.errors import UnsupportedError
from aatc.frontend.importer import import_graph
from aatc.ir.core import Module, Op
from tests.frontend import frontend_models as models


def imported(function, *args: object, **options: object) -> Module:
    compiled = aatc.compile(function, passes="canonicalize", fallback=False, **options)
    compiled(*args)
    return compiled.ir("import")


def calls(module: Module, target: str) -> list[Op]:
    return [op for op in module.walk() if op.attrs.get("target") == target]


def test_an_attention_is_its_four_stages_in_order():
    module = imported(models.Block().eval(), torch.randn(2, 5, 16))
    stages = [op for op in module.walk() if op.name.startswith("geo.") and op.name != "geo.return"]
    metric, normalize, transport, aggregate = stages
    assert [op.name for op in stages] == ["geo.metric", "geo.normalize", "geo.transport", "geo.aggregate"]
    assert normalize.operands[0] is transport.operands[1] is metric.result
    assert aggregate.operands == [normalize.results[0], transport.result]
    assert metric.attrs["score"].names[:2] == ("q", "k")
    assert transport.attrs["carry"].names[0] == "v"
    assert "mask" not in normalize.attrs


def test_programs_bind_just_the_captures_they_read():
    def f(q, k, v, keep, slope):
        bias, mask = aatc.biases.ALiBi(slope), aatc.masks.key_padding(keep)
        return aatc.attend(q, k, v, metric=aatc.metrics.Euclidean(), bias=bias, mask=mask)

    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    module = imported(f, q, k, v, torch.ones(1, 5, dtype=torch.bool), torch.ones(2))
    (metric,) = (op for op in module.walk() if op.name == "geo.metric")
    (normalize,) = (op for op in module.walk() if op.name == "geo.normalize")
    assert len(metric.operands) == len(metric.attrs["score"].params)
    assert len(normalize.operands) - 1 == len(normalize.attrs["mask"].params)
    keys = {str(v.type) for v in normalize.operands[1:]}
    assert any("bool" in t for t in keys)


def test_a_metric_that_ignores_q_still_takes_it_first():
    @aatc.metric
    def popularity(q, k):
        return (k * k).sum(-1)

    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    module = imported(lambda q, k, v: aatc.attend(q, k, v, metric=popularity), q, k, v)
    (metric,) = (op for op in module.walk() if op.name == "geo.metric")
    assert len(metric.operands) >= 2
    assert metric.attrs["score"].names[:2] == ("q", "k")


def test_every_operation_knows_the_models_line():
    module = imported(models.Block().eval(), torch.randn(2, 5, 16))
    for op in module.entry.body.ops[:-1]:
        assert op.loc is not None
        assert op.loc.file == models.__file__
    (metric,) = (op for op in module.walk() if op.name == "geo.metric")
    assert "aatc.attend" in metric.loc.text


def test_inputs_are_named_after_the_parameters():
    module = imported(models.Block().eval(), torch.randn(2, 5, 16))
    names = [a.name for a in module.entry.args]
    assert {"qkv_weight", "norm_bias", "beta", "x"} <= set(names)


def test_the_text_of_an_import_reads_back_as_it_was():
    for model in (models.Classifier(recompute=True, dropout=0.1), models.NoGradient(), models.Autocast()):
        for dynamic in (False, True):
            module = imported(model, torch.randn(2, 5, 16), dynamic=dynamic)
            assert aatc.parse(str(module)) == module


def test_what_changes_state_or_draws_numbers_is_an_effect():
    def f(x, buffer):
        buffer.add_(x.sum())
        y = nn.functional.dropout(x, 0.5, training=True) + torch.rand_like(x)
        z = nn.functional.dropout(x, 0.5, training=False) * 2
        return y + z

    module = imported(f, torch.randn(3, 4), torch.zeros(()))
    effects = {op.attrs["target"] for op in module.walk() if op.attrs.get("effect")}
    assert effects == {"aten.add_.Tensor", "aten.dropout.default", "aten.rand_like.default"}
    train, evaluate = calls(module, "aten.dropout.default")
    assert (train.attrs.get("effect", False), evaluate.attrs.get("effect", False)) == (True, False)


def test_batch_norm_is_an_effect_only_while_training():
    x = torch.randn(4, 3)
    for training in (True, False):
        module = imported(nn.BatchNorm1d(3).train(training), x)
        (op,) = calls(module, "aten.batch_norm.default")
        assert op.attrs.get("effect", False) is training


def test_results_of_several_are_selected_without_an_operation():
    def f(x):
        a, _, c = x.chunk(3, -1)
        values, positions = (a + c).max(-1)
        return values, positions

    module = imported(f, torch.randn(4, 6))
    assert not calls(module, "operator.getitem")
    (chunk,) = calls(module, "aten.chunk.default")
    assert len(chunk.results) == 3
    assert [str(t) for t in module.entry.result_types] == ["f32[4]", "i64[4]"]


def test_small_constants_are_written_out_and_large_ones_handed_in():
    small, large = torch.tensor([1.0, 2.0]), torch.randn(40, 40)

    def f(x):
        return x @ large * torch.tensor([1.5, 2.5]).sum() + small.sum()

    x = torch.randn(3, 40)
    compiled = aatc.compile(f, fallback=False)
    torch.testing.assert_close(compiled(x), f(x))
    module = compiled.ir("import")
    values = [op.attrs["values"] for op in module.walk() if op.name == "geo.constant"]
    assert (1.5, 2.5) in values
    assert any(str(a.type) == "f32[40,40]" for a in module.entry.args)


def test_outputs_that_are_numbers_nothing_or_inputs_come_back():
    def f(x):
        return {"y": x + 1, "n": x.shape[0] * 2, "none": None, "same": x, "three": 3}

    compiled = aatc.compile(f, dynamic=True, fallback=False)
    for n in (4, 5):
        x = torch.randn(n, 3)
        got = compiled(x)
        assert got["n"] == 2 * n and got["none"] is None and got["same"] is x and got["three"] == 3
        torch.testing.assert_close(got["y"], x + 1)
    assert len(compiled.graphs) == 1


def test_views_and_in_place_writes_keep_their_order():
    def f(x):
        y = x.clone()
        before = y.sum()
        y[1:].mul_(2)
        return before, y.sum()

    x = torch.randn(3, 4)
    for got, want in zip(aatc.compile(f, fallback=False)(x), f(x), strict=True):
        torch.testing.assert_close(got, want)


def test_enable_grad_without_gradients_around_is_refused():
    def f(x):
        with torch.enable_grad():
            return (x * 2).sum()

    x = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        compiled = aatc.compile(f)
        compiled(x)
    assert "enable_grad" in str(compiled.explain())


def test_a_graph_with_an_unknown_operator_is_refused_with_its_line():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(3, device="meta")
    call = graph.call_function(print, (x,))
    call.meta["stack_trace"] = f'File "{__file__}", line 7, in f\n    print(x)\n'
    graph.output((call,))
    with pytest.raises(UnsupportedError, match=r"test_import_graph\.py:7: `print\(x\)`"):
        import_graph(torch.fx.GraphModule(nn.Module(), graph))


@pytest.mark.parametrize("dtype", [torch.uint64, torch.float8_e4m3fn], ids=str)
def test_constants_of_types_without_a_word_are_left_to_pytorch(dtype):
    def f(x):
        return x + torch.tensor([1, 2], dtype=dtype).to(torch.float32)

    with pytest.raises(UnsupportedError, match="for which the IR has no word"):
        aatc.compile(f, fallback=False)(torch.ones(2))
    torch.testing.assert_close(aatc.compile(f)(torch.ones(2)), torch.tensor([2.0, 3.0]))
