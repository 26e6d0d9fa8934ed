"""The GPU memory manager: the pool that programs take from, figures that are true, copies that are few."""

import gc

import pytest
import torch

from aatc.backends.vulkan.loaded import Loaded
from aatc.errors import DeviceLimitError, DeviceLostError, ShapeError
from aatc.performance import GPUMemoryManager
from tests.vulkan.programs_by_hand import twice
from tests.vulkan.running import EXECUTORS, STAGED, opened


@pytest.fixture(params=(*EXECUTORS, *STAGED))
def manager(request):
    """Of an executor of its own."""
    from aatc.backends.vulkan.executors import found

    executor = opened(request.param)
    if request.param in EXECUTORS:
        executor = found._module(request.param).open_device(executor.device.index)
    yield GPUMemoryManager(executor)
    executor.close()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
def test_tensors_come_back_bit_by_bit(manager, dtype):
    for shape in ((), (0,), (3,), (5, 7), (2, 3, 4)):
        source = torch.randint(0, 100, shape).to(dtype)
        made = manager.allocate_gpu_tensor(shape, dtype=dtype)
        assert torch.equal(made.cpu(), torch.zeros(shape, dtype=dtype))
        assert torch.equal(made.copy_(source).cpu(), source) and made.nbytes == source.nbytes


def test_figures_are_those_of_tensors_and_programs(manager):
    assert manager.track_memory_usage().allocated == 0
    tensor = manager.allocate_gpu_tensor((1000,))
    assert manager.track_memory_usage().allocated == 4096
    module, kernels = twice(1000)
    loaded = Loaded(manager._executor, module.funcs["main"], kernels)
    words = module.funcs["main"].attrs["words"]
    usage = manager.track_memory_usage()
    assert usage.allocated == 4096 + 4 * words == usage.peak and usage.held >= usage.allocated
    before = usage.uploaded, usage.downloaded
    loaded(torch.zeros(1000), torch.zeros(1000))
    usage = manager.track_memory_usage()
    assert usage.uploaded - before[0] >= 8000 and usage.downloaded - before[1] == loaded.transfers.bytes_out
    del loaded, tensor
    gc.collect()
    usage = manager.track_memory_usage()
    assert (usage.allocated, usage.free, usage.free_blocks) == (0, 4096 + 4 * words, 2)
    assert usage.fragmentation == pytest.approx(4096 / usage.free)
    assert manager.manage_fragmentation() == 4096 + 4 * words
    usage = manager.track_memory_usage()
    assert usage.free == usage.held == usage.fragmentation == 0 and usage.peak == 4096 + 4 * words


def test_memory_that_came_back_is_lent_again(manager):
    manager.allocate_gpu_tensor((1000,))
    taken = manager._executor.counters.allocations
    for _ in range(20):
        manager.allocate_gpu_tensor((990,), zeroed=False)
    assert manager._executor.counters.allocations == taken


def test_memory_may_come_back_while_some_is_taken(manager, monkeypatch):
    """The collector may run at any time, and have a program that nobody has any more give its arena back."""
    pool = manager._pool
    old = pool.take(100)
    real = manager._executor.arena

    def collecting(words):
        pool.give(old)
        return real(words)

    monkeypatch.setattr(manager._executor, "arena", collecting)
    new = pool.take(5000)
    assert pool.figures().lent == 4 * new.words and pool.figures().blocks == 1


def test_tensors_are_moved_together_and_once(manager, monkeypatch):
    arenas, writes = type(manager._pool.take(4)), []
    real = arenas.write
    monkeypatch.setattr(
        arenas, "write", lambda self, at, words: (writes.append(words.numel()), real(self, at, words))[1]
    )
    given = [torch.randn(10), torch.randn(3, 5).mT, torch.arange(7), torch.tensor([True, False, True])]
    moved = manager.optimize_transfers(given)
    assert len(writes) == 1 and all(torch.equal(m.cpu(), t) for m, t in zip(moved, given, strict=True))
    again = manager.optimize_transfers(given)
    assert len(writes) == 1 and all(a is m for a, m in zip(again, moved, strict=True))
    given[0].add_(1.0)
    third = manager.optimize_transfers([*given, torch.ones(2)])
    assert len(writes) == 2 and writes[1] < writes[0]
    assert torch.equal(third[0].cpu(), given[0]) and third[1] is moved[1]
    one = manager.optimize_transfers(given[2])
    assert one is moved[2] and torch.equal(one.cpu(), given[2])


def test_what_is_no_tensor_is_refused(manager):
    for size in (-1, (2, -3), (True,), ("a",)):
        with pytest.raises(ShapeError):
            manager.allocate_gpu_tensor(size)
    with pytest.raises(ShapeError):
        manager.allocate_gpu_tensor((2,)).copy_(torch.zeros(3))
    with pytest.raises(DeviceLimitError, match="maxStorageBufferRange"):
        manager.allocate_gpu_tensor((1 << 40,), zeroed=False)


def test_tensors_of_a_device_that_was_lost(manager):
    made = manager.allocate_gpu_tensor((2,))
    manager._executor.close()
    with pytest.raises(DeviceLostError):
        made.cpu()
    assert manager.allocate_gpu_tensor((2,)).cpu().tolist() == [0.0, 0.0]
