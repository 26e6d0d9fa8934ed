"""Barriers stand between all that has to wait, and a missing one is noticed.

Kernels are bound to all of an arena, so the validation layer cannot tell what a dispatch touches. It can of copies: a
twin of a recording, never run, has copies and fills of the very words that each dispatch reads and writes.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc import passes
from aatc.backends.vulkan.executors import native
from aatc.backends.vulkan.executors.contract import Executor, Launch, Range, Zero
from aatc.backends.vulkan.loaded import Loaded
from aatc.backends.vulkan.transfers import transfers
from aatc.ir.verify_program import accesses, spans
from aatc.passes.plan_program import depth
from tests.compiler.test_plan_program import drawn
from tests.vulkan import validation
from tests.vulkan.programs_by_hand import twice
from tests.vulkan.running import opened


class Twin(native.NativeRecording):
    """Launches have the operation for their handle."""

    places: dict
    scratch: native.NativeArena
    read = 0

    def _dispatch(self, step, bound):
        import vulkan as vk

        store = self.arena.store.buffer
        reads, writes = accesses(step.handle)
        for v in reads:
            span = self.places[v]
            size = 4 * (span.last - span.first)
            if v not in writes and size:
                region = vk.VkBufferCopy(srcOffset=4 * span.first, dstOffset=4 * self.read, size=size)
                vk.vkCmdCopyBuffer(self.commands, store, self.scratch.store.buffer, 1, [region])
                self.read += size // 4
        for v in writes:
            span = self.places[v]
            if span.last > span.first:
                vk.vkCmdFillBuffer(self.commands, store, 4 * span.first, 4 * (span.last - span.first), 0)


def record_twin(func, executor):
    places, levels = spans(func), [[] for _ in range(depth(func))]
    for op in func.body.ops:
        if op.name == "program.dispatch":
            levels[op.attrs["level"]].append(Launch(op, (1, 1, 1)))
        elif op.name == "program.zero":
            span = places[op.operands[0]]
            levels[op.attrs["level"]].append(Zero(Range(span.first, span.last - span.first)))
    read = sum(places[v].last - places[v].first for op in func.body.ops for v in accesses(op)[0])
    arena, scratch = executor.allocate(max(func.attrs["words"], 4)), executor.allocate(read + 4)
    kind = type("Twin", (Twin,), {"places": places, "scratch": scratch})
    moved = transfers(func)
    kind(executor, arena, levels, moved.inward, moved.outward).close()
    arena.close()
    scratch.close()


@pytest.fixture(scope="module", params=["native", "native, staged"])
def executor(request):
    made = opened(request.param)
    if not validation.active():
        pytest.skip("Khronos' validation layer is not installed; make vulkan installs what it can")
    serial, Executor.serial = Executor.serial, False
    yield made
    Executor.serial = serial
    if made.staged:
        made.close()


def test_drawn_programs_have_all_barriers(executor):
    @given(st.integers(0, 2**32))
    def check(seed):
        module = passes.Pipeline.parse("plan-program{alignment=4}").run(drawn(seed)).module
        record_twin(module.funcs["main"], executor)
        assert validation.messages() == []

    check()


class Missing:
    """`native.barrier`, but for one call of it."""

    def __init__(self, number):
        self.number, self.calls, self.real = number, 0, native.barrier

    def __call__(self, *args, **more):
        self.calls += 1
        if self.calls - 1 != self.number:
            self.real(*args, **more)


def test_a_barrier_that_is_missing_between_two_levels_is_noticed(executor, monkeypatch):
    func = twice(100)[0].funcs["main"]
    count = Missing(None)
    with monkeypatch.context() as patched:
        patched.setattr(native, "barrier", count)
        record_twin(func, executor)
    assert validation.messages() == [] and count.calls > depth(func)
    # Between the processor and the device, and beside what is set to 0, the layer has nothing to tell apart.
    noticed = []
    for number in range(count.calls):
        with monkeypatch.context() as patched:
            patched.setattr(native, "barrier", Missing(number))
            record_twin(func, executor)
        said = validation.messages()
        assert all("SYNC-HAZARD" in m for m in said)
        noticed.append(bool(said))
    assert sum(noticed) >= depth(func) - 1, noticed


def test_barriers_missing_from_a_real_program_are_noticed(monkeypatch):
    executor = opened("native, staged")
    if not validation.active():
        pytest.skip("Khronos' validation layer is not installed; make vulkan installs what it can")
    module, kernels = twice(100)
    monkeypatch.setattr(native, "barrier", lambda *args, **more: None)
    loaded = Loaded(executor, module.funcs["main"], kernels)
    assert any("SYNC-HAZARD" in m for m in validation.messages())
    loaded.close()
    executor.close()
