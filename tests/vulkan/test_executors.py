"""What every executor does, on whatever device there is (in CI a software one), with kernels written by hand."""

import pytest
import torch

from aatc.backends.vulkan.executors import Launch, Range, Zero, pack, run_kernel
from aatc.backends.vulkan.executors.contract import Limits, check_kernel
from aatc.backends.vulkan.kernels import Kernel
from aatc.errors import DeviceFeatureError, DeviceLimitError, ShaderError
from tests.vulkan.kernels_by_hand import AXPY, EXP, TIMES, TURN
from tests.vulkan.running import EXECUTORS, STAGED, usable


def test_a_kernel_by_itself(executor):
    x, y = torch.randn(10, 10), torch.randn(100)
    got = run_kernel(executor, AXPY, {"x": x, "y": y}, {"n": 100, "A": 0.5}, (2,))
    torch.testing.assert_close(got["y"], y + 0.5 * x.flatten())
    assert torch.equal(got["x"], x)


def test_later_levels_see_earlier_ones_in_every_call(executor):
    arena = executor.arena(1024)
    axpy, turn, times = (executor.compile(k) for k in (AXPY, TURN, TIMES))
    levels = [
        [Zero(Range(256, 100))],
        [Launch(axpy, (2, 1, 1), pack([0, 256, 100, 2.0]))],
        [Launch(turn, (2, 1, 1), pack([256, 384, 100]))],
        [Launch(times, (2, 1, 1), pack([384, 0, 512, 100]))],
    ]
    recording = executor.record(arena, levels, [Range(0, 100)], [Range(512, 100), Range(256, 100)])
    for _ in range(3):
        x = torch.randn(100)
        recording.inputs[0].view(torch.float32).copy_(x)
        recording.run()
        torch.testing.assert_close(recording.outputs[0].view(torch.float32), (2 * x).flip(0) * x)
        torch.testing.assert_close(recording.outputs[1].view(torch.float32), 2 * x)
    recording.close()
    arena.close()


def test_a_second_call_compiles_and_allocates_nothing(executor):
    arena = executor.arena(1024)
    launch = Launch(executor.compile(EXP), (2, 1, 1), pack([0, 128, 100]))
    recording = executor.record(arena, [[launch]], [Range(0, 100)], [Range(128, 100)])
    recording.run()
    before = executor.counters.shaders, executor.counters.allocations, executor.counters.submits
    uploaded = executor.counters.bytes_uploaded
    recording.run()
    after = executor.counters.shaders, executor.counters.allocations, executor.counters.submits
    assert after == (*before[:2], before[2] + 1)
    assert executor.counters.bytes_uploaded - uploaded == 400
    recording.close()
    arena.close()


def test_all_executors_give_the_same_bits(open_executors):
    x, y = torch.randn(777), torch.randn(777)
    found = {}
    for name in (*EXECUTORS, *STAGED):
        if usable(name):
            continue
        made = open_executors(name)
        y1 = run_kernel(made, AXPY, {"x": x, "y": y}, {"n": 777, "A": 0.3}, (13,))["y"]
        found[name] = run_kernel(made, EXP, {"x": y1, "y": y}, {"n": 777}, (13,))["y"]
    if len(found) < 2:
        pytest.skip("there are no two executors here; make vulkan installs what it can")
    first, *others = found.values()
    assert all(torch.equal(first, other) for other in others), found
    torch.testing.assert_close(first, (y + 0.3 * x).exp(), rtol=1e-5, atol=0)


def test_words_of_the_arena_are_written_and_read_anywhere(executor):
    arena = executor.arena(100)
    arena.write(0, torch.arange(100, dtype=torch.int32))
    arena.write(7, -torch.arange(3, dtype=torch.int32))
    assert arena.read(5, 7).tolist() == [5, 6, 0, -1, -2, 10, 11]
    arena.close()


def test_a_kernel_that_does_not_compile_is_a_shader_error(executor):
    bad = Kernel("bad", AXPY.glsl.replace("p.n", "p.q"), AXPY.wgsl.replace("p.n", "p.q"), AXPY.push, AXPY.local)
    with pytest.raises(ShaderError, match="kernel bad does not compile"):
        executor.compile(bad)
    test_a_kernel_by_itself(executor)


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ({"local": (4096, 1, 1)}, "maxComputeWorkGroupSize"),
        ({"local": (1024, 1024, 1)}, "maxComputeWorkGroupInvocations"),
        ({"shared_bytes": 1 << 30}, "maxComputeSharedMemorySize"),
        ({"push": ("word",) * 33}, "maxPushConstantsSize"),
    ],
)
def test_what_a_device_cannot_run_names_the_limit(executor, change, limit):
    fields = {"name": "big", "glsl": "", "wgsl": "", "push": (), "local": (1, 1, 1), **change}
    with pytest.raises(DeviceLimitError, match=limit):
        executor.compile(Kernel(**fields))


def test_more_words_than_a_storage_buffer_has(executor):
    with pytest.raises(DeviceLimitError, match="maxStorageBufferRange"):
        executor.arena(executor.device.limits.storage_bytes // 4 + 1)


def test_more_workgroups_than_a_dispatch_has(executor):
    arena = executor.arena(64)
    launch = Launch(executor.compile(EXP), (1 << 30, 1, 1), pack([0, 32, 16]))
    with pytest.raises(DeviceLimitError, match="maxComputeWorkGroupCount"):
        executor.record(arena, [[launch]])
    arena.close()


def test_features_are_asked_for_by_name(executor):
    kernel = Kernel("odd", "", "", (), (1, 1, 1), features=frozenset({"teleport"}))
    with pytest.raises(DeviceFeatureError, match="teleport"):
        executor.compile(kernel)
    lanes = Kernel("wide", "", "", (), (1, 1, 1), features=frozenset({"subgroup(4096)"}))
    with pytest.raises(DeviceFeatureError, match=r"subgroup\(4096\)"):
        check_kernel(lanes, executor.device)


def test_a_kernel_without_a_text_that_the_executor_reads_is_refused(executor):
    kernel = Kernel("glsl only", AXPY.glsl, None, AXPY.push, AXPY.local)
    if executor.name == "wgpu":
        with pytest.raises(DeviceFeatureError, match="kernel glsl only has no text in WGSL"):
            executor.compile(kernel)
    else:
        executor.compile(kernel)


def test_a_device_tells_its_limits(executor):
    device = executor.device
    assert isinstance(device.limits, Limits) and device.limits.storage_bytes >= 2**27
    assert device.limits.push_bytes >= 128 and device.limits.threads >= 128 and device.name
