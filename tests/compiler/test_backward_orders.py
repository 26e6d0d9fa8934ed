"""A backward by rows with shared sums, and one of a kernel over rows and a kernel over columns: the same gradients."""

import pytest
import torch

import aatc
from aatc import backends, biases, masks, metrics, passes
from aatc.ir.parser import parse
from tests.compiler.harness import module_of, record
from tests.compiler.test_passes import GEO_PASSES

TILES = "split(g, 1) split(i, 4) split(j, 5) grain(j, 2)"
ORDERS = {"rows": f"{TILES} order(rows)", "columns": f"{TILES} order(rows-and-columns)"}


@aatc.metric(t="t")
def relative(q, k, t, i, j):
    return q @ k + metrics.lookup(t, i - j + 3)


@aatc.metric(w="h", c="bhj")
def apart(q, k, w, c):
    return -w * (q - k).abs().sum() + c * q[0]


def cases():
    g = torch.Generator().manual_seed(3)

    def drawn(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=g, requires_grad=True)

    table, bias, weight, numbers = drawn(7), drawn(6, 7), drawn(4), drawn(2, 4, 7)
    return {
        "dot": ({"metric": metrics.DotProduct(), "mask": masks.causal()}, []),
        "lorentz": ({"metric": metrics.LorentzDistance(lift=True)}, []),
        "sphere, window": ({"metric": metrics.SphereGeodesic(), "mask": masks.sliding_window(3)}, []),
        "a bias per pair": ({"metric": metrics.Euclidean(), "bias": bias}, [bias]),
        "a table": ({"metric": relative(t=table), "mask": masks.predicate(lambda b, h, i, j: j <= i + h)}, [table]),
        "channels": ({"metric": apart(w=weight, c=numbers), "mask": masks.causal(2)}, [weight, numbers]),
        "slopes": ({"metric": metrics.DotProduct(), "bias": biases.ALiBi(4), "mask": masks.causal(1)}, []),
        "dropout": ({"metric": metrics.DotProduct(), "dropout": 0.4, "seed": 5}, []),
    }


def kernel(q, k, v, parts, order):
    operands, spec, _ = record(q, k, v, **parts)
    given = f"attend0.forward: {TILES}\\nattend0.backward: {ORDERS[order]}"
    text = f'{GEO_PASSES},schedule{{given="{given}"}},adaptive-tile'
    module = passes.Pipeline.parse(text).run(module_of(operands, spec)).module
    return module, operands


@pytest.mark.parametrize("name", cases())
def test_both_orders_give_the_gradients_of_the_formula(name):
    parts, learned = cases()[name]
    g = torch.Generator().manual_seed(4)
    shapes = ((2, 4, 6, 3), (2, 2, 7, 3), (2, 2, 7, 3))
    q, k, v = (torch.rand(s, dtype=torch.float64, generator=g, requires_grad=True) for s in shapes)
    wanted = [q, k, v, *learned]
    o, lse = aatc.attend(q, k, v, return_lse=True, **parts)
    pull = (
        torch.randn(o.shape, dtype=torch.float64, generator=g),
        torch.randn(lse.shape, dtype=torch.float64, generator=g),
    )
    expected = torch.autograd.grad((o, lse), wanted, pull)
    for order in ORDERS:
        module, operands = kernel(q, k, v, parts, order)
        planned = passes.Pipeline.parse("plan-memory").run(module).module
        got = torch.autograd.grad(backends.get("cpu").build(planned).main(*operands), wanted, pull)
        for x, y in zip(got, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=2e-12)


def test_the_kernel_over_columns_is_parallel_and_shares_no_sum():
    q, k, v = (torch.rand(1, 2, n, 4) for n in (9, 11, 11))
    module, _ = kernel(q, k, v, {"metric": metrics.DotProduct(), "mask": masks.causal()}, "columns")
    backward = next(f for name, f in module.funcs.items() if name == "attend0_backward")
    nests = [(op.attrs["axis"], op.attrs["kind"]) for op in backward.body.walk() if op.name == "tile.for"]
    assert nests == [("g", "par"), ("i", "par"), ("g", "par"), ("j", "par")]
    sweeps = [op.attrs.get("axis", "j") for op in backward.body.walk() if op.name == "tile.sweep"]
    assert sweeps == ["j", "i"]
    assert not any("shared" in op.attrs for op in backward.body.walk())
    assert parse(str(module)) == module
    by_rows, _ = kernel(q, k, v, {"metric": metrics.DotProduct()}, "rows")
    assert 'axis = "i", upper = 9, step = 4, kind = "seq"' in str(by_rows)
