"""Per-token programs as loops mean what they meant as programs over whole buffers."""

import pytest
import torch

import aatc
from aatc import metrics, passes
from aatc.ir.core import Op
from aatc.ir.interpreter import run
from tests.compiler.harness import module_of, record
from tests.compiler.test_passes import CASES, GEO_PASSES

SHAPES = {
    "ragged": ((2, 2, 6, 4), (2, 2, 6, 4)),
    "grouped": ((1, 4, 3, 4), (1, 2, 7, 4)),
    "one": ((1, 1, 1, 4), (1, 1, 1, 4)),
}
PIPELINE = f"{GEO_PASSES},adaptive-tile{{rows=4 cols=4 heads=1 grain=2}},lower-tokens{{rows=3}}"


def lowered(q, k, v, parts, pipeline=PIPELINE):
    operands, spec, eager = record(q, k, v, **parts)
    result = passes.Pipeline.parse(pipeline).run(module_of(operands, spec))
    return result, operands, eager


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CASES)
def test_loops_over_tokens_agree_with_the_formula(name, shape):
    of_q, of_k = SHAPES[shape]
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.rand(s, dtype=torch.float64, generator=generator) for s in (of_q, of_k, of_k))
    parts = CASES[name]
    if name == "lorentz-rotary" and shape != "ragged":
        pytest.skip("its angles are those of six tokens")
    if name in ("causal-alibi",) and of_q[1] != 2:
        parts = {**parts, "bias": aatc.biases.ALiBi(of_q[1])}
    result, operands, (o, lse) = lowered(q, k, v, parts)
    assert not [n for r in result.report if r.name.startswith("lower-tokens") for n in r.notes], "something was left"
    assert not any(op.name in ("tile.token", "tile.gradient") for op in result.module.walk())
    planned = passes.Pipeline.parse("plan-memory").run(result.module).module
    compiled = aatc.backends.get("cpu").build(planned).main
    for got in (run(result.module, *operands), compiled(*operands)):
        torch.testing.assert_close(got[0], o, rtol=0, atol=1e-12)
        torch.testing.assert_close(got[1], lse, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CASES)
def test_gradients_by_loops_over_tokens_agree_with_the_formula(name, shape):
    of_q, of_k = SHAPES[shape]
    if name == "lorentz-rotary" and shape != "ragged":
        pytest.skip("its angles are those of six tokens")
    generator = torch.Generator().manual_seed(2)
    shapes = (of_q, of_k, of_k)
    q, k, v = (torch.rand(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes)
    parts = CASES[name]
    if name == "causal-alibi" and of_q[1] != 2:
        parts = {**parts, "bias": aatc.biases.ALiBi(of_q[1])}
    result, operands, eager = lowered(q, k, v, parts)
    pull = tuple(torch.randn(x.shape, dtype=torch.float64, generator=generator) for x in eager)
    planned = passes.Pipeline.parse("plan-memory").run(result.module).module
    got = torch.autograd.grad(aatc.backends.get("cpu").build(planned).main(*operands), (q, k, v), pull)
    for x, y in zip(got, torch.autograd.grad(eager, (q, k, v), pull), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_vectors_computed_where_they_are_read_agree_with_the_formula(name):
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.rand(2, 2, 6, 4, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(3))
    result, operands, eager = lowered(q, k, v, CASES[name], PIPELINE.replace("{rows=3}", "{rows=3 inline=true}"))
    (kernel,) = [op for op in result.module.walk() if op.name == "geo.kernel"]
    forward = result.module.funcs[kernel.attrs["forward"].name]
    loads = [op for op in forward.body.walk() if op.name == "tile.load" and op.attrs["axes"] == "gid"]
    made = {op.operands[0].name for op in loads if isinstance(op.operands[0].owner, Op)}
    kept = {"a2"} if name == "mahalanobis" else set()  # a product with the matrix is not done twice
    assert made <= {"acc_all", *kept}, "vectors of queries lie in a buffer"
    pull = tuple(torch.randn(x.shape, dtype=torch.float64, generator=generator) for x in eager)
    planned = passes.Pipeline.parse("plan-memory").run(result.module).module
    got = aatc.backends.get("cpu").build(planned).main(*operands)
    for x, y in zip(got, eager, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
    wanted = torch.autograd.grad(eager, (q, k, v), pull)
    for x, y in zip(torch.autograd.grad(got, (q, k, v), pull), wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-11)


def products_with_a_matrix(module):
    """How many products a forward has with blocks of an operand that all tokens share."""
    (kernel,) = [op for op in module.walk() if op.name == "geo.kernel"]
    dots = [op for op in module.funcs[kernel.attrs["forward"].name].body.walk() if op.name == "tile.dot"]
    return sum(op.operands[1].owner.attrs.get("axes") == "de" for op in dots)


@pytest.mark.parametrize(("n", "more"), [(24, 0), (40, 2)])
def test_products_with_a_matrix_are_computed_twice_where_there_are_many_keys(n, more):
    """Vectors whose lengths are wanted, too: where the products would be a large part of the work, they are kept."""
    q, k, v = torch.randn(3, 1, 2, n, 4, dtype=torch.float64)
    parts = {"metric": aatc.metrics.Mahalanobis(matrix=torch.eye(4, dtype=torch.float64))}
    once, *_ = lowered(q, k, v, parts)
    result, operands, eager = lowered(q, k, v, parts, PIPELINE.replace("{rows=3}", "{inline=true}"))
    assert products_with_a_matrix(result.module) == products_with_a_matrix(once.module) + more
    torch.testing.assert_close(run(result.module, *operands)[0], eager[0], rtol=0, atol=1e-12)


def test_what_is_computed_in_double_precision_is_rounded_before_it_is_read():
    """A captured tensor of float64 beside operands of float32."""
    q, k, v = (torch.randn(1, 2, 9, 4) for _ in range(3))
    matrix = torch.eye(4, dtype=torch.float64) + 0.1
    f = aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=metrics.Mahalanobis(matrix=matrix)), backend="native")
    x = (q.unsqueeze(3) - k.unsqueeze(2)).double()
    want = (-(x @ matrix * x).sum(-1) / 2).softmax(-1) @ v.double()
    torch.testing.assert_close(f(q, k, v).double(), want, rtol=0, atol=2e-5)
