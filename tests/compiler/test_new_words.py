"""A word of the score language from one declaration: texts, derivatives, masks' bounds and kernels follow."""

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import aatc
from aatc import masks
from aatc.errors import ScoreError
from aatc.ir.parser import parse
from aatc.ir.score.expr import ONE, add, call, div
from aatc.ir.score.functions import FUNCTIONS, Function, declare
from tests.compiler.harness import build
from tests.neutral.test_neutral import tiled
from tests.neutral.to_c import Kernel

SOFTSIGN = Function(
    "softsign",
    1,
    "pointwise",
    "x / (1 + |x|)",
    lambda x: x / (1 + x.abs()),
    bound=lambda a: (a[0] / (1 + abs(a[0])), a[1] / (1 + abs(a[1]))),
    torch_names=("softsign",),
    slopes=lambda e: (call("square", div(ONE, add(ONE, call("abs", e.args[0])))),),
    spelled=lambda x: div(x, add(ONE, call("abs", x))),
)


@pytest.fixture(scope="module", autouse=True)
def softsign():
    declare(SOFTSIGN)
    yield
    del FUNCTIONS["softsign"]


def soft(w):
    @aatc.metric(w="h")
    def written(q, k, w):  # read when it is decorated: by then the word has been declared
        return 3 * w * torch.nn.functional.softsign(q @ k) - torch.nn.functional.softsign(q - k).abs().sum()

    return written(w=w)


def tensors():
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 2, 6, 3), (2, 2, 7, 3), (2, 2, 7, 3), (2,))
    return [torch.randn(s, dtype=torch.float64, generator=g, requires_grad=True) for s in shapes]


def formula(q, k, v, w):
    s = 3 * w.reshape(2, 1, 1) * torch.nn.functional.softsign(q @ k.mT)
    s = s - torch.nn.functional.softsign(q.unsqueeze(3) - k.unsqueeze(2)).abs().sum(-1)
    keep = torch.ones(6, 7, dtype=torch.bool).tril(1)
    return torch.softmax(s.masked_fill(~keep, float("-inf")), -1) @ v


@pytest.mark.parametrize("library", [True, False])
def test_a_new_word_runs_in_every_layer_with_its_gradients(library):
    q, k, v, w = tensors()
    expected = formula(q, k, v, w)
    pull = torch.randn(expected.shape, dtype=torch.float64)
    wanted = torch.autograd.grad(expected, (q, k, v, w), pull)
    parts = {"metric": soft(w), "mask": masks.causal(1)}
    eager = aatc.attend(q, k, v, **parts)
    built = build(q, k, v, library=library, tiles="rows=4 cols=4 heads=1 grain=2", **parts)
    for stage in built.result.stages.values():
        assert parse(str(stage)) == stage and "softsign" in str(stage)
        torch.testing.assert_close(
            aatc.run(stage, *(t.detach() for t in built.operands))[0], expected, rtol=0, atol=1e-12
        )
    for out in (eager, built.run()[0]):
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        for x, y in zip(torch.autograd.grad(out, (q, k, v, w), pull), wanted, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-11)


def test_a_compiled_model_may_use_a_new_word():
    q, k, v, w = tensors()
    compiled = aatc.compile(
        lambda q, k, v, w: aatc.attend(q, k, v, metric=soft(w), mask=masks.causal(1)), fallback=False
    )
    torch.testing.assert_close(compiled(q, k, v, w), formula(q, k, v, w), rtol=0, atol=1e-12)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_c_spells_a_word_it_has_none_for(tmp_path):
    q, k, v, w = (t.detach() for t in tensors())
    module, op, operands, _ = tiled(q, k, v, {"metric": soft(w), "mask": masks.causal(1)})
    (o, *_) = Kernel(module, module.funcs[op.attrs["forward"].name], tmp_path)(*operands)
    torch.testing.assert_close(o, formula(q, k, v, w), rtol=0, atol=1e-11)


@given(st.floats(-50, 50), st.floats(0, 50))
def test_masks_may_be_bounded_by_a_new_word(low, width):
    found = SOFTSIGN.bound((low, low + width))
    for x in (low, low + width / 3, low + width):
        assert found[0] - 1e-12 <= x / (1 + abs(x)) <= found[1] + 1e-12


@pytest.mark.parametrize("changed", [
    {"name": "exp"}, {"name": "Soft sign"}, {"name": "h"}, {"name": "q"}, {"name": "beta"},
    {"name": "test1", "slopes": None}, {"name": "test2", "spelled": None}, {"name": "test3", "kind": "reduce"},
])  # fmt: skip
def test_a_declaration_that_lacks_something_is_refused(changed):
    from dataclasses import replace

    with pytest.raises(ScoreError):
        declare(replace(SOFTSIGN, **changed))
    assert "test1" not in FUNCTIONS and "test2" not in FUNCTIONS


@pytest.mark.parametrize("changed", [
    {"spelled": lambda x: add(x, ONE)}, {"spelled": lambda x: call("softer", x)}, {"spelled": lambda x: 1.0},
    {"evaluate": lambda x: x.sum()}, {"evaluate": lambda x: x - x.mean()}, {"evaluate": lambda x: x.long()},
    {"evaluate": lambda x: None}, {"evaluate": lambda x: 1 / 0}, {"slopes": lambda e: (ONE,)},
    {"slopes": lambda e: (None,)}, {"slopes": lambda e: (ONE, ONE)}, {"slopes": lambda e: ()},
    {"slopes": lambda e: (1.0,)}, {"bound": lambda a: (a[0], a[0])}, {"bound": lambda a: None},
    {"bound": lambda a: (0.5, 0.6)},
])  # fmt: skip
def test_a_declaration_that_contradicts_itself_is_refused(changed):
    from dataclasses import replace

    with pytest.raises(ScoreError, match=next(iter(changed))):
        declare(replace(SOFTSIGN, name="softer", **changed))
    assert "softer" not in FUNCTIONS
