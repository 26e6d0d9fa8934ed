"""Sizes: how many graphs they cost, and what the IR says of them."""

import random

import pytest
import torch
from torch import nn

import aatc
from tests.frontend import frontend_models as models

LENGTHS = (48, 77, 1, 300, 2, 64, 3, 13, 101, 7)


@pytest.mark.parametrize("first", [1, 48])
def test_ten_lengths_cost_at_most_two_graphs_when_dynamic(first):
    model = models.Classifier().eval()
    compiled = aatc.compile(model, dynamic=True)
    lengths = [first, *(n for n in LENGTHS if n != first)]
    with torch.no_grad():
        for n in lengths:
            x = torch.randn(2, n, 16)
            torch.testing.assert_close(compiled(x), model(x), rtol=2e-5, atol=2e-5)
    assert len(compiled.graphs) <= 2
    assert not compiled.explain().fallbacks


def test_lengths_and_gradients_in_any_order():
    model = models.Classifier()
    compiled = aatc.compile(model, dynamic=True)
    lengths = list(LENGTHS)
    random.Random(0).shuffle(lengths)
    for n in lengths:
        x = torch.randn(2, n, 16)
        compiled.zero_grad()
        compiled(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert len(compiled.graphs) <= 2


def test_an_epsilon_stays_a_number_when_dynamic():
    compiled = aatc.compile(nn.Sequential(nn.LayerNorm(8, eps=1e-3), nn.Dropout(0.25)), dynamic=True)
    compiled(torch.randn(3, 5, 8))
    module = compiled.ir("import")
    assert all("f64" not in str(a.type) for a in module.entry.args)
    (norm,) = (op for op in module.walk() if op.attrs.get("target") == "aten.layer_norm.default")
    assert 1e-3 in norm.attrs["args"]


def test_symbols_carry_names_and_ranges():
    compiled = aatc.compile(models.Block().eval(), dynamic=True)
    with torch.no_grad():
        compiled(torch.randn(2, 9, 16))
    module = compiled.ir("import")
    assert module.dims
    assert all(low >= 2 and high is None for low, high in module.dims.values())
    names = {a.name for a in module.entry.args if str(a.type) == "int"}
    assert names <= set(module.dims)


def test_affine_sizes_stay_affine_and_others_get_a_symbol():
    def shapes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([x, x, x[:1]]) + 1, x.repeat(x.shape[1], 1) + 1

    compiled = aatc.compile(shapes, dynamic=True)
    x = torch.randn(5, 7)
    for got, want in zip(compiled(x), shapes(x), strict=True):
        torch.testing.assert_close(got, want)
    first, second = (t.shape for t in compiled.ir("import").entry.result_types)
    ((symbol, coefficient),) = first[0].terms
    assert (first[0].const, coefficient) == (1, 2)
    assert second[0].terms and second[0] not in (first[0], first[1])
    assert symbol in compiled.ir("import").dims
    assert not compiled.explain().fallbacks


def test_without_dynamic_a_second_length_makes_a_symbol_and_says_why():
    def fresh(x: torch.Tensor) -> torch.Tensor:  # Dynamo remembers which sizes of known code vary
        return x.softmax(-1) + 1

    compiled = aatc.compile(fresh)
    for n in (4, 6, 9, 11):
        compiled(torch.randn(2, n, 16))
    assert len(compiled.graphs) == 2
    assert compiled.graphs[0].recompiled == ""
    assert "size mismatch" in compiled.graphs[1].recompiled
    assert not compiled.ir("import", 0).dims
    assert compiled.ir("import", 1).dims


def test_many_compiled_copies_of_one_class_do_not_count_against_each_other():
    x = torch.randn(2, 4, 16)
    with torch.no_grad():
        for _ in range(9):
            compiled = aatc.compile(models.Block().eval())
            compiled(x)
            assert len(compiled.graphs) == 1


def test_a_length_that_a_guard_fixes_and_torch_cannot_solve():
    """(n + 1)//2 is 2: the sizes of q and k say the former, those of v the latter."""

    def model(x, v):
        k = x[: (x.shape[0] + 1) // 2].reshape(1, 1, 2, 4)
        return aatc.attend(k, k, v.reshape(1, 1, 2, 4), metric=aatc.metrics.Euclidean())

    run = aatc.compile(model, dynamic=True, fallback=False)
    for n in (4, 3):
        x, v = torch.randn(n, 4), torch.randn(2, 4)
        torch.testing.assert_close(run(x, v), model(x, v))
