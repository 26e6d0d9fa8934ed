"""An operator that may raise runs even if nobody wants its result; ordinary arithmetic need not."""

import pytest
import torch

import aatc
from aatc import passes
from aatc.ir import checks
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


def overloads():
    """The operators said never to raise because of elements, whose required arguments are tensors and numbers."""
    for full in sorted(torch._C._dispatch_get_all_op_names()):
        space, _, name = full.partition("::")
        word, _, overload = name.partition(".")
        if space != "aten" or not hasattr(torch.ops.aten, word):
            continue
        op = getattr(getattr(torch.ops.aten, word), overload or "default", None)
        if op is None or not checks.total(op) or any(a.is_out for a in op._schema.arguments):
            continue
        needed = [str(a.type) for a in op._schema.arguments if not a.has_default_value()]
        if set(needed) <= {"Tensor", "Tensor[]", "number", "int", "float"}:
            yield op, needed


def accepts(op, needed, tensors, number) -> bool:
    """Whether a call with clones of two tensors, in turn, and a number raises nothing."""
    given, count = [], 0
    for kind in needed:
        if kind == "Tensor":
            given.append(tensors[min(count, 1)].clone())
            count += 1
        else:
            given.append(
                [t.clone() for t in tensors] if kind == "Tensor[]" else float(number) if kind == "float" else number
            )
    try:
        op(*given)
    except Exception:
        return False
    return True


@pytest.mark.filterwarnings("ignore")
def test_no_operator_said_never_to_raise_raises_because_of_elements():
    nasty = torch.tensor([[float("nan"), float("inf")], [-1e30, 0.0]])
    whole = torch.tensor([[-(2**63), 0], [7, -1]])
    cases = [
        ([torch.full((2, 2), 0.5)] * 2, [nasty, nasty], False),
        ([torch.ones(2, 2, dtype=torch.int64)] * 2, [whole, whole * 0], True),
        ([torch.ones(2, 2, dtype=torch.int64)] * 2, [whole, whole], True),
    ]
    tried, wrong = 0, set()
    for op, needed in overloads():
        for plain, hard, integers in cases:
            for number in (1, 2):
                if not accepts(op, needed, plain, number):
                    continue
                tried += 1
                if not accepts(op, needed, hard, number) and not (integers and checks.divides(op)):
                    wrong.add(str(op))
    assert tried > 1000
    assert not wrong
