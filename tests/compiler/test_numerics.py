"""Passes that are wrong where ordinary numbers do not show it are caught by verify="numerics"."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import aatc
from aatc.errors import PassError
from aatc.ir.core import Module
from aatc.ir.parser import parse
from aatc.ir.samples import random_inputs
from aatc.passes import Canonicalize, Pass, Pipeline


def planted(change: Callable[[str], str]) -> Pass:
    """A pass that changes the text of the module."""

    @dataclass(frozen=True)
    class Planted(Pass):
        name: ClassVar[str] = "planted"

        def run(self, module, ctx):
            return parse(change(str(module)))

    return Planted()


def check(body: str, change: Callable, *, arguments: str = "%x: f32[3,4]") -> None:
    """Runs a pass that makes ``change`` of a function with this body."""
    module = parse(f"geo.func @main({arguments}) {{\n{body}\n}}\n")
    module.verify()
    Pipeline((planted(change),)).run(module, verify="numerics")


def call(result: str, target: str, operands: str, args: str, kind: str = "f32[3,4]", more: str = "") -> str:
    return f'  {result} = torch.call({operands}) {{target = "aten.{target}", args = [{args}]{more}}} : {kind}\n'


def swap(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text, (old, text)
        return text.replace(old, new)

    return change


RETURN = "  geo.return(%r)"
VALUES = {
    "a dropped nan_to_num": (
        call("%r", "nan_to_num.default", "%x", "#0"), swap("nan_to_num.default", "clone.default"), "NaN"
    ),
    "an infinity that stays": (
        call("%r", "nan_to_num.default", "%x", "#0, 0.0, 1.0, -1.0"), swap("1.0, -1.0", "1.0, -2.0"), "infinite"
    ),
    "a clamp far from 0": (call("%r", "clamp.default", "%x", "#0, -5.0"), swap("-5.0", "-50.0"), "large"),
    "a dropped clamp": (
        call("%r", "clamp.default", "%x", "#0, -1e5, 1e5"), swap("clamp.default", "nan_to_num.default"), ""
    ),
    "a threshold far from 0": (
        call("%r", "gt.Scalar", "%x", "#0, 100.0", "bool[3,4]"), swap("100.0", "200.0"), "large"
    ),
    "a threshold of half of it": (
        call("%h", "mul.Scalar", "%x", "#0, 0.5") + call("%r", "le.Scalar", "%h", "#0, 7.0", "bool[3,4]"),
        swap("7.0", "20.0"), "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16"])
@pytest.mark.parametrize("what", VALUES)
def test_values_that_ordinary_inputs_do_not_show(what, dtype):
    body, change, among = VALUES[what]
    check((body + RETURN).replace("f32", dtype), lambda text: text, arguments=f"%x: {dtype}[3,4]")
    with pytest.raises(PassError, match=f"planted changed the numbers: result 0 differs by .*{among}"):
        check((body + RETURN).replace("f32", dtype), change, arguments=f"%x: {dtype}[3,4]")


def test_integers_far_from_0():
    body = call("%r", "gt.Scalar", "%x", "#0, 40", "bool[30]") + RETURN
    with pytest.raises(PassError, match="large integers"):
        check(body, swap("#0, 40", "#0, 60"), arguments="%x: i64[30]")


def test_a_program_that_takes_no_large_integers_is_compared_on_small_ones():
    taken = call("%t", "index_select.default", "%x, %n", "#0, 0, #1", "f32[2,4]")
    body = taken + call("%r", "abs.default", "%t", "#0", "f32[2,4]") + RETURN
    check(body, lambda text: text, arguments="%x: f32[3,4], %n: i64[2]")
    with pytest.raises(PassError, match="result 0 differs"):
        check(body, swap("abs.default", "neg.default"), arguments="%x: f32[3,4], %n: i64[2]")


GRADIENTS = {
    "a dropped detach": (
        call("%d", "detach.default", "%x", "#0") + call("%r", "mul.Tensor", "%d, %x", "#0, #1"),
        swap("detach.default", "clone.default"),
    ),
    "an added detach": (
        call("%d", "clone.default", "%x", "#0") + call("%r", "mul.Tensor", "%d, %x", "#0, #1"),
        swap("clone.default", "detach.default"),
    ),
    "gradients switched on": (
        call("%d", "exp.default", "%x", "#0", more=", no_grad = true") + call("%r", "mul.Tensor", "%d, %x", "#0, #1"),
        swap(", no_grad = true", ""),
    ),
    "a result's history alone": (
        call("%d", "floor.default", "%x", "#0", more=", no_grad = true") + call("%r", "mul.Tensor", "%d, %d", "#0, #0"),
        swap(", no_grad = true", ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", GRADIENTS)
def test_gradients(what):
    body, change = GRADIENTS[what]
    check(body + RETURN, lambda text: text)
    with pytest.raises(PassError, match="planted changed the gradients"):
        check(body + RETURN, change)


MEMORY = {
    "a dropped clone": (
        call("%r", "clone.default", "%x", "#0") + RETURN, swap("return(%r)", "return(%x)"),
        "input 0 shares memory with result 0",
    ),
    "a view that became a copy": (
        call("%r", "view.default", "%x", "#0, [4, 3]", "f32[4,3]") + RETURN,
        swap("aten.view.default", "aten.view_copy.default"), "input 0 no longer shares memory with result 0",
    ),
    "two results merged": (
        call("%a", "exp.default", "%x", "#0") + call("%b", "exp.default", "%x", "#0") + "  geo.return(%a, %b)",
        swap("return(%a, %b)", "return(%a, %a)"), "result 1 shares memory with result 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MEMORY)
def test_what_shares_memory(what):
    body, change, told = MEMORY[what]
    check(body, lambda text: text)
    with pytest.raises(PassError, match=f"planted changed what shares memory: {told}"):
        check(body, change)


def test_an_input_that_is_written():
    body = call("%r", "add.Scalar", "%x", "#0, 1.0") + call("%s", "mul.Scalar", "%r", "#0, 2.0") + "  geo.return(%s)"
    with pytest.raises(PassError, match="input 0 differs"):
        check(body, swap('"aten.add.Scalar", args = [#0, 1.0]', '"aten.add_.Scalar", args = [#0, 1.0], effect = true'))


def test_a_read_moved_past_a_write_to_what_may_be_the_same_tensor():
    write = call("%w", "add_.Scalar", "%y", "#0, 1.0", more=", effect = true")
    read = call("%r", "exp.default", "%x", "#0")
    body = write + read + "  geo.return(%r, %w)"
    arguments = "%x: f32[3,4], %y: f32[3,4]"
    with pytest.raises(PassError, match="inputs that are one tensor"):
        check(body, lambda text: text.replace(write, "").replace(read, read + write), arguments=arguments)


def test_a_random_number_that_nobody_reads():
    draw = call("%n", "rand_like.default", "%x", "#0", more=", effect = true")
    body = draw + call("%r", "exp.default", "%x", "#0") + RETURN
    with pytest.raises(PassError, match="how many random numbers"):
        check(body, lambda text: text.replace(draw, ""))
    module = parse(f"geo.func @main(%x: f32[3,4]) {{\n{body}\n}}\n")
    Pipeline((Canonicalize(),)).run(module, verify="numerics")


# --- attention ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Backward(Pass):
    """Another factor in a result of the tile function that computes gradients."""

    name: ClassVar[str] = "backward"
    after: ClassVar[str] = "adaptive-tile"
    which: int = 0

    def run(self, module, ctx):
        for op in module.walk():
            if op.name == "geo.kernel":
                for key in ("backward", "exact_backward", "whole_backward"):
                    if key in op.attrs:
                        change_result(module, op.attrs[key].name, self.which)
        return module


def change_result(module: Module, name: str, which: int) -> None:
    """Returns another gradient of the same type in the place of one."""
    last = module.funcs[name].body.ops[-1]
    others = [v for v in last.operands if v.type == last.operands[which].type and v is not last.operands[which]]
    last.operands[which] = others[0]


@pytest.mark.parametrize("metric", [aatc.metrics.DotProduct(), aatc.metrics.LorentzDistance()])
def test_a_backward_of_tiles(metric):
    def model(q, k, v):
        return aatc.attend(q, k, v, metric=metric, mask=aatc.masks.causal())

    q = torch.randn(1, 2, 5, 4)
    torch.testing.assert_close(aatc.compile(model, verify="numerics", fallback=False)(q, q, q), model(q, q, q))
    with pytest.raises(PassError, match="backward changed the gradients: that of input"):
        aatc.compile(model, passes=[Backward()], verify="numerics")(q, q, q)


@dataclass(frozen=True)
class Through(Pass):
    """Takes calls of one operator away."""

    name: ClassVar[str] = "through"
    target: str = ""

    def run(self, module, ctx):
        for op in module.entry.body.ops:
            if op.attrs.get("target") == self.target:
                op.attrs = {"target": "aten.clone.default", "args": op.attrs["args"][:1]}
        return module


def test_what_is_not_finite_before_an_attention():
    def model(x):
        y = x.nan_to_num()
        return aatc.attend(y, y, y, metric=aatc.metrics.Euclidean())

    x = torch.randn(1, 2, 5, 4)
    aatc.compile(model, verify="numerics", fallback=False)(x)
    with pytest.raises(PassError, match="through changed the numbers: result 0"):
        aatc.compile(model, passes=[Through("aten.nan_to_num.default")], verify="numerics")(x)


def test_a_clamp_before_an_attention():
    def model(x):
        y = x.clamp(-20, 20)
        return aatc.attend(y, y, y, metric=aatc.metrics.DotProduct())

    with pytest.raises(PassError, match="through changed the numbers: result 0"):
        aatc.compile(model, passes=[Through("aten.clamp.default")], verify="numerics")(torch.randn(1, 2, 5, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "parts",
    [
        {"metric": aatc.metrics.Euclidean(), "mask": aatc.masks.sliding_window(2), "bias": aatc.biases.ALiBi(2)},
        {"metric": aatc.metrics.Poincare(), "mask": aatc.masks.causal()},
        {"metric": aatc.metrics.Cosine(), "dropout": 0.3, "seed": 5},
        {"metric": aatc.metrics.Euclidean(), "connection": aatc.connections.Rotary()},
    ],
)
def test_the_built_in_passes_keep_all_of_it(parts, dtype):
    compiled = aatc.compile(lambda q, k, v: aatc.attend(q, k, v, **parts), verify="numerics", fallback=False)
    compiled(*(torch.randn(1, 2, 5, 4, dtype=dtype) for _ in range(3)))
    notes = [n for p in compiled.explain().passes for n in p.notes if "not compared" in n]
    assert not notes, notes


def test_two_arguments_for_one_size_agree():
    text = "dims {N in [2, inf]}\n\ngeo.func @main(%N: int, %x: f32[N], %N_1: int) {\n"
    text += '  %r = torch.call(%N_1) {target = "aten.arange.default", args = [#0]} : i64[N]\n  geo.return(%r)\n}\n'
    n, x, again = random_inputs(parse(text))
    assert n == again == len(x)
