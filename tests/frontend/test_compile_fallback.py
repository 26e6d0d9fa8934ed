"""What cannot be compiled runs eagerly and is reported; with fallback=False it is an error with a line."""

import linecache

import pytest
import torch
from torch import nn

import aatc
from aatc.errors import AatcError, CompilerBugWarning, PassError, UnsupportedError
from aatc.frontend.compiled import NotRunError
from tests.frontend import frontend_models as models


def line_of(text: str, file: str = models.__file__) -> str:
    """``file:line`` of the line that holds ``text``."""
    (number,) = (n for n, line in enumerate(linecache.getlines(file), 1) if line.rstrip().endswith(text))
    return f"{file}:{number}:"


def test_a_graph_break_is_reported_with_its_line_and_both_halves_are_compiled():
    model = models.Breaking().eval()
    compiled = aatc.compile(model)
    x = torch.randn(2, 4, 16)
    torch.testing.assert_close(compiled(x), model(x), rtol=2e-5, atol=2e-5)
    explanation = compiled.explain()
    (fallback,) = explanation.fallbacks
    assert fallback.op == "graph break"
    assert line_of("# the break") in fallback.loc
    assert fallback.reason
    assert len(compiled.graphs) == 2
    assert sum(g.attentions for g in explanation.graphs) == 2


def test_without_fallback_a_graph_break_is_an_error_that_names_the_line():
    compiled = aatc.compile(models.Breaking().eval(), fallback=False)
    with pytest.raises(UnsupportedError) as caught:
        compiled(torch.randn(2, 4, 16))
    assert caught.value.where is not None
    assert line_of("# the break") in caught.value.where


class OwnGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 3


class Straight(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return OwnGradient.apply(x) + 1  # own gradient


def test_a_custom_autograd_function_keeps_its_own_gradient():
    compiled = aatc.compile(Straight())
    x = torch.ones(3, requires_grad=True)
    compiled(x).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0, 3.0]
    assert compiled.explain().fallbacks
    strict = aatc.compile(Straight(), fallback=False)
    with pytest.raises(UnsupportedError) as caught:
        strict(x)
    assert line_of("# own gradient", __file__) in str(caught.value)


def test_errors_of_the_model_itself_stay_what_they_are():
    class Wrong(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] == 3:
                raise KeyError("three")
            return x + 1

    compiled = aatc.compile(Wrong())
    assert compiled(torch.ones(2)).tolist() == [2.0, 2.0]
    with pytest.raises(KeyError, match="three"):
        compiled(torch.ones(3))


def test_nothing_to_compile_is_no_error():
    compiled = aatc.compile(nn.Identity(), fallback=False)
    x = torch.ones(2)
    assert compiled(x) is x
    assert not compiled.explain().fallbacks


def test_questions_before_the_first_call_say_to_run_the_model():
    compiled = aatc.compile(models.Block())
    for ask in (compiled.ir, lambda: compiled.code, lambda: compiled.stages):
        with pytest.raises(NotRunError, match="run the model once"):
            ask()
    assert compiled.graphs == []
    assert "Nothing was compiled yet" in str(compiled.explain())


def test_an_unknown_stage_lists_the_stages():
    compiled = aatc.compile(models.Block().eval())
    compiled(torch.randn(2, 4, 16))
    with pytest.raises(NotRunError, match=r"stages: import, .*final"):
        compiled.ir("imaginary")
    with pytest.raises(NotRunError, match="there is no graph 7"):
        compiled.ir("final", 7)
    assert compiled.stages[0] == "import"
    assert compiled.stages[-1] == "final"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"tune": "loudly"}, UnsupportedError),
        ({"dynamic": "yes"}, UnsupportedError),
        ({"passes": "no-such-pass"}, PassError),
        ({"passes": [3]}, PassError),
        ({"backend": 3}, AatcError),
    ],
)
def test_wrong_options_are_refused_at_once(options, kind):
    with pytest.raises(kind):
        aatc.compile(models.Block(), **options)


@pytest.mark.parametrize("what", [3, nn.Linear])
def test_only_modules_and_functions_are_compiled(what):
    with pytest.raises(UnsupportedError):
        aatc.compile(what)


def test_a_program_that_fails_when_first_run_is_replaced_by_eager_and_reported():
    model = models.Block().eval()
    x = torch.randn(2, 4, 16)
    compiled = aatc.compile(model)

    class Failing:
        name = "cpu"
        target = staticmethod(compiled._aatc.session.backend.target)

        def build(self, module):
            def main(*inputs):
                raise TypeError("no such kernel")

            return aatc.backends.Program(main, "")

    compiled._aatc.session.backend = Failing()
    with pytest.warns(CompilerBugWarning, match="no such kernel"):
        torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(compiled(x), model(x))
    (fallback,) = compiled.explain().fallbacks
    assert "no such kernel" in fallback.reason


def test_function_transforms_are_refused_with_their_line_and_run_eagerly():
    def f(x):
        return torch.vmap(lambda row: row.sum())(x) * 2  # the map

    x = torch.randn(3, 4)
    compiled = aatc.compile(f)
    torch.testing.assert_close(compiled(x), f(x))
    (fallback,) = compiled.explain().fallbacks
    assert "torch.vmap" in fallback.reason
    assert __file__ in fallback.loc


@aatc.metric(w="de")
def mixed(q, k, w):
    """Mixes channels per pair by a matrix, which no tile program does."""
    return -(w @ torch.tanh(q - k)).abs().sum()


def test_an_attention_without_a_tile_program_runs_by_its_formula_and_is_reported():
    w = torch.randn(4, 4)

    def attend(q):
        return aatc.attend(q, q, q, metric=mixed(w=w))

    q = torch.randn(1, 2, 6, 4, requires_grad=True)
    compiled = aatc.compile(attend)
    torch.testing.assert_close(compiled(q), attend(q))
    (fallback,) = compiled.explain().fallbacks
    assert fallback.op == "aatc.attend" and __file__ in fallback.loc and "mixes channels" in fallback.reason
    with pytest.raises(UnsupportedError, match="no tile program"):
        aatc.compile(attend, fallback=False)(q)
