"""What all problems compute of a token alike, once; and what is added up where it is returned."""

import pytest
import torch

import aatc
from aatc import connections, masks, metrics, passes
from aatc.ir.printer import func_text
from tests.compiler.harness import module_of, record
from tests.compiler.test_passes import GEO_PASSES
from tests.native.test_join_loops import TILES, WIDE

pytestmark = pytest.mark.usefixtures("one_thread")

BEFORE = f"{GEO_PASSES},{TILES},lower-tokens{{inline=true}}"


def turned(n=9, m=9, heads=2, positions=None, q_positions=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(n)
    q, k, v = (torch.randn(2, heads, x, 8, generator=generator, dtype=dtype) for x in (n, m, m))
    at = torch.arange(m) * 7 if positions is None else positions
    return (q, k, v), {
        "metric": metrics.DotProduct(),
        "connection": connections.Rotary(at if q_positions is None else q_positions, at),
    }


def lowered(text, tensors, parts):
    operands, spec, _ = record(*tensors, **parts)
    return passes.Pipeline.parse(text).run(module_of(operands, spec), target=WIDE).module


def words_in_loops_over_problems(module, name):
    """How often ``name`` stands in maps within loops over problems."""
    found = 0
    for func in module.funcs.values():
        for nest in func.body.ops if func.level == "tile" else ():
            if nest.name == "tile.for" and nest.attrs["axis"] == "g":
                found += sum(
                    str(p).count(f"{name}(") for op in nest.regions[0].walk() for p in op.attrs.get("programs", ())
                )
    return found


def test_sines_of_shared_angles_golden(golden):
    module = lowered(f"{BEFORE},share-tokens", *turned())
    golden("rotary.shared.aatc", func_text(module.funcs["attend0"]))


def test_no_problem_computes_sines_of_angles_that_all_share():
    shared, alone = (lowered(text, *turned()) for text in (f"{BEFORE},share-tokens", BEFORE))
    assert words_in_loops_over_problems(alone, "sin") > 0
    assert words_in_loops_over_problems(shared, "sin") == words_in_loops_over_problems(shared, "cos") == 0


def test_angles_of_their_own_per_batch_stay_where_they_are():
    own = torch.arange(18).reshape(2, 9, 1)
    module = lowered(f"{BEFORE},share-tokens", *turned(positions=own))
    assert words_in_loops_over_problems(module, "sin") > 0


def test_the_interpreter_sees_no_difference():
    before = lowered(BEFORE, *turned())
    passes.Pipeline.parse("share-tokens,forward-copies").run(before, target=WIDE, verify="numerics")


@pytest.mark.parametrize(("n", "m", "heads"), [(1, 1, 3), (37, 70, 2), (65, 5, 1), (130, 130, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_shared_angles_give_the_formulas_numbers(n, m, heads, masked):
    mask = masks.causal(m - n) if masked and m >= n else None

    def attention(q, k, v, here, there):
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), connection=connections.Rotary(here, there), mask=mask)

    (q, k, v), _ = turned(n, m, heads)
    at = torch.randint(0, 10**6, (n,)), torch.randint(0, 10**6, (m,))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    out = aatc.compile(attention, backend="native", fallback=False)(*leaves, *at)
    exact = attention(*wide, *at)
    upstream = torch.randn(exact.shape, dtype=torch.float64)
    got = torch.autograd.grad(out, leaves, upstream.float())
    for x, y in zip([out, *got], [exact, *torch.autograd.grad(exact, wide, upstream)], strict=True):
        torch.testing.assert_close(x.double(), y, rtol=2e-5, atol=2e-5)


def test_one_kernel_of_any_length_shares_angles(monkeypatch):
    def attention(q, k, v):
        at = torch.arange(q.shape[-2])
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), connection=connections.Rotary(at))

    compiled = aatc.compile(attention, backend="native", fallback=False, dynamic=True)
    for n in (5, 1, 200, 64, 65):
        (q, k, v), _ = turned(n, n)
        exact = attention(q.double(), k.double(), v.double())
        torch.testing.assert_close(compiled(q, k, v).double(), exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("keys", [1, 2, 4])
def test_gradients_of_values_are_added_up_where_they_are_returned(keys):
    """With a head of values per head of queries; those that several share are still added up before."""
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, keys, 9, 8), torch.randn(2, keys, 9, 8)
    module = lowered(f"{BEFORE},forward-copies", (q, k, v), {"metric": metrics.DotProduct()})
    backward = module.funcs["attend0_backward"]
    results = backward.body.ops[-1].operands
    summed = [op for op in backward.body.walk() if op.name == "tile.store" and op.operands[1] is results[2]]
    assert [op.attrs["axes"] for op in summed] == ["bhjd" if keys == 4 else "bhid"]
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = aatc.compile(lambda *x: aatc.attend(*x, metric=metrics.DotProduct()), backend="native", fallback=False)(
        *leaves
    )
    exact = aatc.attend(*(x.double() for x in leaves), metric=metrics.DotProduct())
    for x, y in zip(torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(exact.sum(), leaves), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-5)
