import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from aatc.passes.analysis.information.complexity import complexity_analysis, tiled_complexity_analysis
from aatc.passes.analysis.result import AnalysisError

sizes = st.integers(1, 9)


class Machine:
    """Runs numpy operations and counts them, the numbers moved from and to memory, and the numbers held."""

    def __init__(self):
        self.matmul = self.other = self.traffic = self.held = self.peak = 0

    def product(self, a, b):
        self.matmul += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return a @ b

    def each(self, operation, *operands):
        result = operation(*operands)
        self.other += result.size
        return result

    def reduce(self, operation, table):
        self.other += table.size - table.shape[0]
        return operation(table, axis=1, keepdims=True)

    def move(self, *arrays):
        self.traffic += sum(a.size for a in arrays)

    def hold(self, *arrays):
        self.peak = max(self.peak, sum(a.size for a in arrays))


def eager(machine, q, k, v):
    machine.move(q, k)
    scores = machine.each(np.multiply, machine.product(q, k.T), q.shape[1] ** -0.5)
    machine.move(scores)
    machine.move(scores)
    weights = machine.each(np.exp, machine.each(np.subtract, scores, machine.reduce(np.max, scores)))
    weights = machine.each(np.divide, weights, machine.reduce(np.sum, weights))
    machine.hold(scores, weights)
    machine.move(weights)
    machine.move(weights, v)
    output = machine.product(weights, v)
    machine.move(output)
    return output


def tiled(machine, q, k, v, tile):
    outputs = []
    for i in range(0, len(q), tile[0]):
        queries = q[i : i + tile[0]]
        machine.move(queries)
        top, total = np.full((len(queries), 1), -np.inf), np.zeros((len(queries), 1))
        output = np.zeros((len(queries), v.shape[1]))
        for j in range(0, len(k), tile[1]):
            keys, values = k[j : j + tile[1]], v[j : j + tile[1]]
            machine.move(keys, values)
            scores = machine.each(np.multiply, machine.product(queries, keys.T), q.shape[1] ** -0.5)
            higher = machine.each(np.maximum, top, machine.reduce(np.max, scores))
            weights = machine.each(np.exp, machine.each(np.subtract, scores, higher))
            rescale = machine.each(np.exp, machine.each(np.subtract, top, higher))
            total = machine.each(np.add, machine.each(np.multiply, total, rescale), machine.reduce(np.sum, weights))
            output = machine.each(np.add, machine.each(np.multiply, output, rescale), machine.product(weights, values))
            top = higher
            machine.hold(scores, weights, top, total, output)
        outputs.append(machine.each(np.divide, output, total))
        machine.move(outputs[-1])
    return np.concatenate(outputs)


def operands(n, m, d, d_v):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)), rng.normal(size=(m, d_v))


@given(sizes, sizes, sizes, sizes)
def test_eager_counts_are_those_of_the_program(n, m, d, d_v):
    machine = Machine()
    eager(machine, *operands(n, m, d, d_v))
    model = complexity_analysis(n, d, keys=m, value_dim=d_v, itemsize=8)
    assert (machine.matmul, machine.other) == (model.matmul_flops, model.softmax_flops)
    assert (8 * machine.traffic, 8 * machine.peak) == (model.traffic_bytes, model.intermediate_bytes)


@given(sizes, sizes, sizes, sizes, sizes, sizes)
def test_tiled_counts_are_those_of_the_program(n, m, d, d_v, rows, columns):
    machine, inputs = Machine(), operands(n, m, d, d_v)
    output = tiled(machine, *inputs, (rows, columns))
    np.testing.assert_allclose(output, eager(Machine(), *inputs), atol=1e-13)
    model = tiled_complexity_analysis(n, d, tile=(rows, columns), keys=m, value_dim=d_v, itemsize=8)
    assert (machine.matmul, machine.other) == (model.matmul_flops, model.softmax_flops)
    assert (8 * machine.traffic, 8 * machine.peak) == (model.traffic_bytes, model.intermediate_bytes)


@given(sizes, sizes, st.integers(1, 3), st.integers(1, 3))
def test_products_are_what_torch_counts(n, d, h, batch):
    q, k, v = torch.randn(3, batch, h, n, d)
    with FlopCounterMode(display=False) as counter:
        (q @ k.mT / d**0.5).softmax(-1) @ v
    model = complexity_analysis(n, d, h, batch=batch)
    assert counter.get_total_flops() == model.matmul_flops
    assert model.input_bytes == sum(x.nbytes for x in (q, k, v)) and model.output_bytes == q.nbytes


def test_tiling_trades_traffic_for_memory():
    eager_model, tiled_model = complexity_analysis(4096, 64, 8), tiled_complexity_analysis(4096, 64, 8)
    assert tiled_model.matmul_flops == eager_model.matmul_flops
    assert tiled_model.intermediate_bytes < eager_model.intermediate_bytes / 10_000
    assert tiled_model.peak_bytes < eager_model.peak_bytes / 30
    assert tiled_model.intensity > eager_model.intensity
    assert eager_model.flops == eager_model.matmul_flops + eager_model.softmax_flops


@pytest.mark.parametrize("sizes", [{"n": 0, "d": 1}, {"n": 1, "d": 1.5}, {"n": 1, "d": 1, "h": -1}])
def test_sizes_that_are_no_sizes_are_refused(sizes):
    with pytest.raises(AnalysisError):
        complexity_analysis(**sizes)
    with pytest.raises(AnalysisError):
        tiled_complexity_analysis(4, 4, tile=(0, 4))


def test_a_tile_has_two_sides():
    with pytest.raises(AnalysisError, match="tile"):
        tiled_complexity_analysis(8, 8, tile=(64,))
