"""An operator that may raise runs even if nobody wants its result; ordinary arithmetic need not."""

import pytest
import torch

import aatc
from aatc import passes
from aatc.ir.parser import parse


def caught(f, *args):
    """What a call returns, or the type of what it raises."""
    try:
        return f(*args).tolist()
    except Exception as error:
        return type(error)


UNUSED = {
    "inverse": lambda x, i: torch.linalg.inv(x),
    "cholesky": lambda x, i: torch.linalg.cholesky(x - 1),
    "singular values": lambda x, i: torch.linalg.svd(x * float("nan")),
    "index": lambda x, i: x[i] * 2,
    "constant index": lambda x, i: x[torch.tensor([99])] + 1,
    "gather": lambda x, i: x.gather(0, i[None]),
    "embedding": lambda x, i: torch.nn.functional.embedding(i, x),
    "one hot": lambda x, i: torch.nn.functional.one_hot(i, 4),
    "division": lambda x, i: i // (i * 0),
    "remainder": lambda x, i: torch.remainder(i, i * 0),
    "division in place": lambda x, i: i.clone().floor_divide_(i * 0),
    "cross entropy": lambda x, i: torch.nn.functional.cross_entropy(x, i),
    "probabilities": lambda x, i: torch.nn.functional.binary_cross_entropy(x + 2, x),
    "write": lambda x, i: torch.zeros(2, 2).index_put_((i,), x),
    "scatter": lambda x, i: torch.zeros(2, 2).scatter_(0, i[None], x),
}


@pytest.mark.parametrize("name", UNUSED)
def test_what_raises_in_eager_raises(name):
    def f(x, i):
        UNUSED[name](x, i)
        return x + 1

    args = torch.zeros(2, 2), torch.tensor([7, 9])
    want = caught(f, *args)
    assert isinstance(want, type)
    c = aatc.compile(f)
    assert [caught(c, *args) for _ in range(2)] == [want, want]


@pytest.mark.parametrize(
    "target, dtype, goes",
    [
        ("aten.div.Tensor", "f32", True), ("aten.remainder.Tensor", "f32", True), ("aten.matmul.default", "f32", True),
        ("aten.add.Tensor", "i64", True), ("aten.maximum.default", "i64", True),
        ("aten.floor_divide.default", "f32", True),
        ("aten.remainder.Tensor", "i64", False), ("aten.floor_divide.default", "i64", False),
        ("aten.bincount.default", "i64", False), ("aten.linalg_solve.default", "f32", False),
    ],
)  # fmt: skip
def test_only_what_cannot_raise_goes(target, dtype, goes):
    call = f'%u = torch.call(%x, %y) {{target = "{target}", args = [#0, #1]}} : {dtype}[2,2]'
    text = f"geo.func @main(%x: {dtype}[2,2], %y: {dtype}[2,2]) {{\n  {call}\n  geo.return(%x)\n}}\n"
    module = passes.Pipeline.parse("canonicalize").run(parse(text)).module
    assert (len(module.entry.body.ops) == 1) is goes


def test_arithmetic_that_nobody_wants_goes():
    def f(x):
        torch.nn.functional.layer_norm(torch.softmax(x @ x.mT, -1).relu() / 3, (2,)).sum(0).cumsum(0).unsqueeze(0)
        torch.cat([x.view(-1), x.flatten()]).to(torch.float64).clamp(0, 1).masked_fill(x.repeat(2, 1).view(-1) > 0, 1)
        return x + 1

    c = aatc.compile(f)
    c(torch.ones(2, 2))
    text = str(c.ir("final"))
    assert text.count("torch.call") == 1, text
