"""Programs on devices: one upload of inputs and one download of outputs per call, parameters when they change."""

import gc

import pytest
import torch

from aatc.backends.vulkan.executors import found
from aatc.backends.vulkan.loaded import Loaded
from aatc.backends.vulkan.pool import pool_of
from aatc.errors import BackendError, DeviceLimitError
from aatc.passes.plan_program import depth
from tests.vulkan import validation
from tests.vulkan.programs_by_hand import formula, twice
from tests.vulkan.running import EXECUTORS, STAGED, need, usable


def load(executor, n=100, **more):
    module, kernels = twice(n, **more)
    return Loaded(executor, module.funcs["main"], kernels)


def tensors(n=100, dtype=torch.float32):
    return (0.3 * torch.randn(n)).to(dtype), torch.randn(n).to(dtype)


def test_a_program_computes_its_formula(executor):
    loaded = load(executor)
    for _ in range(3):
        x, w = tensors()
        y, refused = loaded(x, w)
        torch.testing.assert_close(y, formula(formula(x, w), w), rtol=1e-5, atol=1e-5)
        assert refused.tolist() == [0]


def test_all_executors_give_the_same_bits_of_a_program(open_executors):
    x, w = tensors(333)
    found = {name: load(open_executors(name), 333)(x, w)[0] for name in (*EXECUTORS, *STAGED) if not usable(name)}
    if len(found) < 2:
        pytest.skip("there are no two executors here; make vulkan installs what it can")
    first, *others = found.values()
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_tensors_of_other_dtypes_are_converted(executor, dtype):
    name = {torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    loaded = load(executor, dtype=name)
    x, w = tensors(dtype=dtype)
    y, _ = loaded(x, w)
    assert y.dtype == dtype
    want = formula(formula(x.float(), w.float()), w.float()).to(dtype)
    torch.testing.assert_close(y, want, rtol=1e-2 if dtype != torch.float64 else 1e-5, atol=1e-5)


def test_any_strides(executor):
    loaded = load(executor)
    x, w = 0.3 * torch.randn(100, 2)[:, 0], torch.randn(1).expand(100)
    torch.testing.assert_close(loaded(x, w)[0], formula(formula(x, w), w), rtol=1e-5, atol=1e-5)


def test_parameters_are_uploaded_once_and_when_they_change(executor):
    loaded, (x, w) = load(executor), tensors()
    uploaded = []
    for change in (None, None, lambda: w.mul_(2.0), None, lambda: w.data.mul_(1.0), None):
        if change:
            change()
        before = executor.counters.bytes_uploaded
        y, _ = loaded(x, w)
        torch.testing.assert_close(y, formula(formula(x, w), w), rtol=1e-5, atol=1e-5)
        uploaded.append(executor.counters.bytes_uploaded - before > loaded.transfers.bytes_in)
    assert uploaded[:4] == [True, False, True, False]
    other = w.clone()
    torch.testing.assert_close(loaded(x, other + 1)[0], formula(formula(x, other + 1), other + 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16", "f16"])
def test_parameters_are_uploaded_when_their_bits_change(open_executors, dtype):
    """0.0 and -0.0 are equal and not the same; NaN is not equal to itself and the same."""
    executor = open_executors(next((name for name in ("native", *EXECUTORS) if not usable(name)), "native"))
    of = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
    loaded, x = load(executor, 4, dtype=dtype), torch.randn(4).to(of[dtype])

    def uploads(values):
        before = executor.counters.bytes_uploaded
        loaded(x, torch.tensor(values, dtype=of[dtype]))
        return executor.counters.bytes_uploaded - before > loaded.transfers.bytes_in

    zero, below, nan = [0.0, 1.0, 2.0, 3.0], [-0.0, 1.0, 2.0, 3.0], [float("nan"), 1.0, 2.0, 3.0]
    given = [zero, zero, below, below, zero, nan, nan, nan, zero]
    assert [uploads(values) for values in given] == [True, False, True, False, True, True, False, False, True]


@pytest.mark.parametrize("n", [1, 37, 64, 100])
def test_inputs_side_by_side_are_moved_by_one_copy(executor, n):
    loaded = load(executor, n, parameter=False)
    assert len(loaded.transfers.inward) == 1 and len(loaded.transfers.uploads) == 2
    for _ in range(2):
        x, w = tensors(n)
        torch.testing.assert_close(loaded(x, w)[0], formula(formula(x, w), w), rtol=1e-5, atol=1e-5)


def test_inputs_with_a_buffer_between_them_are_moved_by_two(executor):
    """What lies between would be written over."""
    module, kernels = twice(100, parameter=False)
    func = module.funcs["main"]
    buffers = [op for op in func.body.ops if op.name == "program.buffer"]
    x, w = (next(op for op in buffers if op.result.name == name) for name in ("x", "w"))
    between = next(op for op in buffers if op.result.name == "refused")
    end = func.attrs["words"]
    for place, op in ((0, x), (192, between), (256, w)):
        op.attrs["offset"] = end + place
    func.attrs["words"] = end + 512
    loaded = Loaded(executor, module.verify().funcs["main"], kernels)
    assert len(loaded.transfers.inward) == 2
    x, w = tensors()
    y, refused = loaded(x, w)
    torch.testing.assert_close(y, formula(formula(x, w), w), rtol=1e-5, atol=1e-5)
    assert refused.tolist() == [0]


def test_a_second_call_compiles_allocates_and_uploads_no_more_than_its_inputs(executor):
    loaded, (x, w) = load(executor), tensors()
    loaded(x, w)
    c = executor.counters
    before = c.shaders, c.allocations, c.bytes_held, c.submits, c.bytes_uploaded, c.bytes_downloaded
    loaded(x, w)
    after = c.shaders, c.allocations, c.bytes_held, c.submits, c.bytes_uploaded, c.bytes_downloaded
    moved = loaded.transfers
    assert after[:3] == before[:3] and after[3] == before[3] + 1
    assert (after[4] - before[4], after[5] - before[5]) == (moved.bytes_in, moved.bytes_out)


def test_tensors_that_are_not_the_programs_are_refused(executor):
    loaded, (x, w) = load(executor), tensors()
    for given in ((x,), (x[:50], w), (x.double(), w), (x, w, w)):
        with pytest.raises(BackendError):
            loaded(*given)
    loaded(x, w)


def test_inference_tensors_are_parameters_too(executor):
    loaded = load(executor)
    with torch.inference_mode():
        x, w = tensors()
        loaded(x, w)
        w.add_(1.0)
        torch.testing.assert_close(loaded(x, w)[0], formula(formula(x, w), w), rtol=1e-5, atol=1e-5)


def test_an_empty_program(executor):
    loaded = load(executor, 0)
    y, refused = loaded(torch.zeros(0), torch.zeros(0))
    assert y.shape == (0,) and refused.tolist() == [0]


def test_loops_that_the_driver_would_end_are_refused(executor):
    module, kernels = twice(100)
    func = module.funcs["main"]
    step = next(op for op in func.body.ops if op.name == "program.dispatch")
    step.attrs["trips"] = 1 << 40
    if not executor.device.trips:
        Loaded(executor, func, kernels)
        return
    with pytest.raises(DeviceLimitError, match="the loops of kernel exponential go 1099511627776 times"):
        Loaded(executor, func, kernels)
    step.attrs["trips"] = 1000
    Loaded(executor, func, kernels)


def test_fifty_programs_that_come_and_go_leave_nothing(executor):
    pool = pool_of(executor)

    def cycle(n):
        loaded, (x, w) = load(executor, n), tensors(n)
        loaded(x, w)
        return loaded

    kept = cycle(1000)
    held = shaders = 0
    for n in range(50):
        cycle(1000 + n % 3)
        if n == 5:
            held, shaders = executor.counters.bytes_held, executor.counters.shaders
    assert executor.counters.bytes_held == held and executor.counters.shaders == shaders
    assert pool.figures().lent >= 4 * kept.func.attrs["words"]
    lent = pool.figures().lent
    del kept
    assert pool.figures().lent < lent
    pool.trim()
    assert pool.figures().free == 0


def test_levels_are_timed_where_the_device_can_be_asked(executor):
    loaded, (x, w) = load(executor, 10000), tensors(10000)
    want = loaded(x, w)[0]
    times = loaded.profile(x, w)
    if executor.name != "native" or not executor.device.has("timestamps"):
        assert times == []
        return
    assert len(times) == depth(loaded.func) and all(t.seconds >= 0 for t in times)
    assert 0 < sum(t.seconds for t in times) < 10
    assert {k for t in times for k in t.kernels} == {"exponential", "turn", "times", "axpy", "zero"}
    assert torch.equal(loaded(x, w)[0], want)


def resident():
    """Bytes of the process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.parametrize("name", EXECUTORS)
def test_fifty_devices_that_are_opened_and_closed_leave_nothing(name):
    need(name)
    module, kernels = twice(100)
    x, w = tensors()

    def cycle():
        executor = found._module(name).open_device(found.choose(name).device.index)
        loaded = Loaded(executor, module.funcs["main"], kernels)
        loaded(x, w)
        loaded.close()
        executor.close()
        assert executor.counters.bytes_held == 0

    gc.collect()
    gc.freeze()  # what there was before need not be looked through in each cycle
    try:
        for _ in range(10):
            cycle()
        before = resident()
        for _ in range(50):
            cycle()
        grown = resident() - before
    finally:
        gc.unfreeze()
    # the validation layer keeps some of each of wgpu's devices; without it they leave less than a megabyte together
    assert grown < (24 << 20 if validation.active() else 4 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("executor", [*EXECUTORS, STAGED[0]], indirect=True)
def test_a_thousand_calls_take_no_more_memory(executor):
    loaded, (x, w) = load(executor), tensors()
    for _ in range(200):
        loaded(x, w)
    gc.collect()
    before, held = resident(), executor.counters.bytes_held
    for _ in range(1000):
        loaded(x, w)
    gc.collect()
    assert executor.counters.bytes_held == held
    assert resident() - before < 4 << 20
