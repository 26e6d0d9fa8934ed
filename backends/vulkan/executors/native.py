"""The executor ``native``: Vulkan's own commands, recorded once and replayed, with exact barriers.

Memory that the processor reaches is the arena itself, where the device has such memory of its own (integrated and
software devices); elsewhere inputs and outputs go through a staging buffer, in the same submit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch

from aatc.backends.vulkan import spirv
from aatc.backends.vulkan.executors import native_device as devices_of
from aatc.backends.vulkan.executors.contract import (
    PUSH_BYTES,
    WORD,
    Arena,
    Device,
    Executor,
    Launch,
    Range,
    Recording,
    Step,
    Zero,
)
from aatc.backends.vulkan.executors.native_device import devices, translated
from aatc.backends.vulkan.kernels import Kernel
from aatc.ir.errors import DeviceLostError, NoDeviceError, ShaderError

__all__ = ["NativeExecutor", "devices", "open_device", "why_not"]


def why_not() -> str:
    """Why the executor cannot be used; empty if it can."""
    return devices_of.why_not() or spirv.why_not()


#: Nanoseconds; a program that takes longer has lost its device.
_PATIENCE = 120_000_000_000


@dataclass(eq=False)
class NativeExecutor(Executor):
    """Opened by `open_device`."""

    name: ClassVar[str] = "native"
    physical: Any = None
    family: int = 0
    logical: Any = None
    queue: Any = None
    command_pool: Any = None
    layout: Any = None  # of a descriptor set: one storage buffer
    pipeline_layout: Any = None
    cache: Any = None
    staged: bool = False

    def build(self, kernel: Kernel) -> Any:
        import vulkan as vk

        target = "vulkan1.3" if "coopmat" in kernel.features else "vulkan1.1"
        code = spirv.compile_glsl(kernel.glsl, kernel.name, target)
        with translated(f"compiling kernel {kernel.name}"):
            module = vk.vkCreateShaderModule(
                self.logical, vk.VkShaderModuleCreateInfo(codeSize=len(code), pCode=code), None
            )
            try:
                stage = vk.VkPipelineShaderStageCreateInfo(
                    stage=vk.VK_SHADER_STAGE_COMPUTE_BIT, module=module, pName="main"
                )
                info = vk.VkComputePipelineCreateInfo(stage=stage, layout=self.pipeline_layout)
                return vk.vkCreateComputePipelines(self.logical, self.cache, 1, [info], None)[0]
            except vk.VkErrorInitializationFailed as error:
                raise ShaderError(f"the driver does not compile kernel {kernel.name}: {error!r}") from error
            finally:
                vk.vkDestroyShaderModule(self.logical, module, None)

    def allocate(self, words: int) -> Arena:
        return NativeArena(self, words)

    def replayed(
        self,
        arena: Arena,
        levels: Sequence[Sequence[Step]],
        inputs: Sequence[Range],
        outputs: Sequence[Range],
        timed: bool,
    ) -> Recording:
        assert isinstance(arena, NativeArena)
        return NativeRecording(self, arena, levels, inputs, outputs, timed)

    def submit(self, commands: Any, fence: Any) -> None:
        """Runs a command buffer and waits for it."""
        import vulkan as vk

        with self.lock, translated("running a program"):
            vk.vkQueueSubmit(self.queue, 1, [vk.VkSubmitInfo(pCommandBuffers=[commands])], fence)
            self.counters.submits += 1
            try:
                vk.vkWaitForFences(self.logical, 1, [fence], vk.VK_TRUE, _PATIENCE)
            except vk.VkTimeout as error:
                raise DeviceLostError("a program did not end within two minutes") from error
            vk.vkResetFences(self.logical, 1, [fence])

    def commands(self) -> Any:
        import vulkan as vk

        with translated("recording a program"):
            return vk.vkAllocateCommandBuffers(
                self.logical,
                vk.VkCommandBufferAllocateInfo(
                    commandPool=self.command_pool, level=vk.VK_COMMAND_BUFFER_LEVEL_PRIMARY, commandBufferCount=1
                ),
            )[0]

    def shut(self) -> None:
        import vulkan as vk

        for handle in self.handles.values():
            vk.vkDestroyPipeline(self.logical, handle, None)
        vk.vkDestroyPipelineCache(self.logical, self.cache, None)
        vk.vkDestroyPipelineLayout(self.logical, self.pipeline_layout, None)
        vk.vkDestroyDescriptorSetLayout(self.logical, self.layout, None)
        vk.vkDestroyCommandPool(self.logical, self.command_pool, None)
        vk.vkDestroyDevice(self.logical, None)
        self.logical = None


def open_device(index: int = 0, *, staged: bool | None = None) -> NativeExecutor:
    """Opens the device of that position among `native_device.physical_devices`. ``staged``: whether inputs and outputs
    go through a staging buffer; by default where the processor does not reach the device's memory. Raises:
    NoDeviceError, DeviceError."""
    import vulkan as vk

    device: Device | None = next((d for d in devices() if d.index == index), None)
    if device is None:
        raise NoDeviceError(f"there is no Vulkan device {index}", hint="`aatc devices` lists those there are")
    physical = devices_of.physical_devices()[index]
    family = devices_of.queue_family(physical)
    assert family is not None
    logical = devices_of.create(physical, family)
    flags = vk.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT | _HOST()
    together = devices_of.memory_type(physical, 0xFFFFFFFF, flags) >= 0 and device.kind != "discrete"
    made = NativeExecutor(
        device, physical=physical, family=family, logical=logical, staged=not together if staged is None else staged
    )
    with translated("opening the device"):
        made.queue = vk.vkGetDeviceQueue(logical, family, 0)
        made.command_pool = vk.vkCreateCommandPool(logical, vk.VkCommandPoolCreateInfo(queueFamilyIndex=family), None)
        binding = vk.VkDescriptorSetLayoutBinding(
            binding=0, descriptorType=vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, descriptorCount=1,
            stageFlags=vk.VK_SHADER_STAGE_COMPUTE_BIT,
        )  # fmt: skip
        made.layout = vk.vkCreateDescriptorSetLayout(
            logical, vk.VkDescriptorSetLayoutCreateInfo(pBindings=[binding]), None
        )
        pushed = vk.VkPushConstantRange(stageFlags=vk.VK_SHADER_STAGE_COMPUTE_BIT, offset=0, size=PUSH_BYTES)
        made.pipeline_layout = vk.vkCreatePipelineLayout(
            logical, vk.VkPipelineLayoutCreateInfo(pSetLayouts=[made.layout], pPushConstantRanges=[pushed]), None
        )
        made.cache = vk.vkCreatePipelineCache(logical, vk.VkPipelineCacheCreateInfo(), None)
    return made


def _HOST() -> int:
    import vulkan as vk

    return int(vk.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | vk.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT)


@dataclass
class _Buffer:
    """A buffer with memory of its own; ``mapped`` is a view of it as int32 words, if the processor reaches it."""

    executor: NativeExecutor
    words: int
    host: bool
    buffer: Any = None
    memory: Any = None
    mapped: torch.Tensor | None = None

    def __post_init__(self) -> None:
        import vulkan as vk

        logical, nbytes = self.executor.logical, self.words * WORD
        usage = vk.VK_BUFFER_USAGE_TRANSFER_SRC_BIT | vk.VK_BUFFER_USAGE_TRANSFER_DST_BIT
        # Uncached memory of a card is read by the processor a hundred times as slowly as it is written.
        near, cached = vk.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, vk.VK_MEMORY_PROPERTY_HOST_CACHED_BIT
        wanted = _HOST() if self.host else 0
        liked = near if not self.host else cached if self.executor.staged else near | cached
        with translated(f"a buffer of {nbytes} bytes"):
            self.buffer = vk.vkCreateBuffer(
                logical,
                vk.VkBufferCreateInfo(
                    size=nbytes, usage=usage | vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT,
                    sharingMode=vk.VK_SHARING_MODE_EXCLUSIVE,
                ),
                None,
            )  # fmt: skip
            try:
                needs = vk.vkGetBufferMemoryRequirements(logical, self.buffer)
                kind = devices_of.memory_type(self.executor.physical, needs.memoryTypeBits, wanted, liked)
                self.memory = vk.vkAllocateMemory(
                    logical, vk.VkMemoryAllocateInfo(allocationSize=needs.size, memoryTypeIndex=kind), None
                )
            except vk.VkError:
                vk.vkDestroyBuffer(logical, self.buffer, None)
                raise
            vk.vkBindBufferMemory(logical, self.buffer, self.memory, 0)
            if self.host:
                self.mapped = torch.frombuffer(
                    vk.vkMapMemory(logical, self.memory, 0, nbytes, 0), dtype=torch.int32, count=self.words
                )
        self.executor.counters.hold(nbytes)

    def free(self) -> None:
        import vulkan as vk

        if self.buffer is None or self.executor.logical is None:
            return
        self.mapped = None
        vk.vkDestroyBuffer(self.executor.logical, self.buffer, None)
        vk.vkFreeMemory(self.executor.logical, self.memory, None)
        self.executor.counters.bytes_held -= self.words * WORD
        self.buffer = None


class NativeArena(Arena):
    def __init__(self, executor: NativeExecutor, words: int):
        import vulkan as vk

        self.executor, self.words = executor, words
        self.store = _Buffer(executor, words, host=not executor.staged)
        logical = executor.logical
        try:
            with translated("an arena"):
                size = vk.VkDescriptorPoolSize(type=vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, descriptorCount=1)
                self.pool = vk.vkCreateDescriptorPool(
                    logical, vk.VkDescriptorPoolCreateInfo(maxSets=1, pPoolSizes=[size]), None
                )
                self.set = vk.vkAllocateDescriptorSets(
                    logical, vk.VkDescriptorSetAllocateInfo(descriptorPool=self.pool, pSetLayouts=[executor.layout])
                )[0]
                whole = vk.VkDescriptorBufferInfo(buffer=self.store.buffer, offset=0, range=words * WORD)
                write = vk.VkWriteDescriptorSet(
                    dstSet=self.set, dstBinding=0, dstArrayElement=0, descriptorCount=1,
                    descriptorType=vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, pBufferInfo=[whole],
                )  # fmt: skip
                vk.vkUpdateDescriptorSets(logical, 1, [write], 0, None)
        except BaseException:
            self.store.free()
            raise

    def write(self, offset: int, words: torch.Tensor) -> None:
        self.executor.counters.bytes_uploaded += words.numel() * WORD
        if self.store.mapped is not None:
            self.store.mapped[offset : offset + words.numel()] = words
        elif words.numel():
            with _Staged(self, Range(offset, words.numel()), inward=True) as recording:
                recording.inputs[0].copy_(words)
                recording.run()

    def read(self, offset: int, words: int) -> torch.Tensor:
        self.executor.counters.bytes_downloaded += words * WORD
        if self.store.mapped is not None:
            return self.store.mapped[offset : offset + words].clone()
        if not words:
            return torch.empty(0, dtype=torch.int32)
        with _Staged(self, Range(offset, words), inward=False) as recording:
            recording.run()
            return recording.outputs[0].clone()

    def close(self) -> None:
        import vulkan as vk

        if self.store.buffer is not None and self.executor.logical is not None:
            vk.vkDestroyDescriptorPool(self.executor.logical, self.pool, None)
        self.store.free()


class _Staged:
    """One transfer outside of a recording."""

    def __init__(self, arena: NativeArena, at: Range, *, inward: bool):
        self.recording = NativeRecording(arena.executor, arena, (), *(((at,), ()) if inward else ((), (at,))))

    def __enter__(self) -> NativeRecording:
        return self.recording

    def __exit__(self, *error: object) -> None:
        self.recording.close()


class NativeRecording(Recording):
    """A command buffer: copies in, levels with a barrier between two, copies out."""

    def __init__(
        self,
        executor: NativeExecutor,
        arena: NativeArena,
        levels: Sequence[Sequence[Step]],
        inputs: Sequence[Range],
        outputs: Sequence[Range],
        timed: bool = False,
    ):
        import vulkan as vk

        self.executor, self.arena = executor, arena
        self.clock = _Clock(executor, len(levels) + 1) if timed and levels else None
        self.staging: _Buffer | None = None
        moved = [*inputs, *outputs]
        self.bytes_in, self.bytes_out = (WORD * sum(r.words for r in of) for of in (inputs, outputs))
        places: list[int] = []
        if arena.store.mapped is None and moved:
            total = 0
            for r in moved:
                places.append(total)
                total += -(-r.words // 4) * 4
            self.staging = _Buffer(executor, max(total, 4), host=True)
        else:
            places = [r.offset for r in moved]
        store = arena.store.mapped if self.staging is None else self.staging.mapped
        views = [store[p : p + r.words] for p, r in zip(places, moved, strict=True)] if store is not None else []
        self.inputs, self.outputs = views[: len(inputs)], views[len(inputs) :]
        self.commands = executor.commands()
        with translated("recording a program"):
            self.fence = vk.vkCreateFence(executor.logical, vk.VkFenceCreateInfo(), None)
            vk.vkBeginCommandBuffer(self.commands, vk.VkCommandBufferBeginInfo())
            self._record(levels, inputs, outputs, places)
            vk.vkEndCommandBuffer(self.commands)

    def _record(
        self, levels: Sequence[Sequence[Step]], inputs: Sequence[Range], outputs: Sequence[Range], places: list[int]
    ) -> None:
        import vulkan as vk

        if self.staging is not None and inputs:
            self._copy(self.staging.buffer, self.arena.store.buffer, zip(places, (r.offset for r in inputs)), inputs)
        else:
            barrier(self.commands, first=True)
        if any(levels):
            vk.vkCmdBindDescriptorSets(
                self.commands, vk.VK_PIPELINE_BIND_POINT_COMPUTE, self.executor.pipeline_layout, 0, 1,
                [self.arena.set], 0, None,
            )  # fmt: skip
        bound = None
        if self.clock is not None:
            self.clock.start(self.commands)
        for number, level in enumerate(levels):
            if number or (self.staging is not None and inputs):
                barrier(self.commands)
            launches = [s for s in level if isinstance(s, Launch)]
            zeros = [s.range for s in level if isinstance(s, Zero) and s.range.words]
            for r in zeros:
                vk.vkCmdFillBuffer(self.commands, self.arena.store.buffer, r.offset * WORD, r.words * WORD, 0)
            if zeros and launches and self.executor.serial:
                barrier(self.commands)
            for place, launch in enumerate(launches):
                if place and self.executor.serial:
                    barrier(self.commands)
                bound = self._dispatch(launch, bound)
            if self.clock is not None:
                self.clock.mark(self.commands, number + 1)
        barrier(self.commands, last=self.staging is None)
        if self.staging is not None and outputs:
            at = zip((r.offset for r in outputs), places[len(inputs) :])
            self._copy(self.arena.store.buffer, self.staging.buffer, at, outputs)
            barrier(self.commands, last=True)

    def _dispatch(self, step: Launch, bound: Any) -> Any:
        import vulkan as vk

        if step.handle is not bound:
            vk.vkCmdBindPipeline(self.commands, vk.VK_PIPELINE_BIND_POINT_COMPUTE, step.handle)
        if step.push:
            pushed = vk.ffi.new("char[]", step.push)
            vk.vkCmdPushConstants(
                self.commands, self.executor.pipeline_layout, vk.VK_SHADER_STAGE_COMPUTE_BIT, 0, len(step.push), pushed
            )
        vk.vkCmdDispatch(self.commands, *step.grid)
        return step.handle

    def _copy(self, source: Any, target: Any, places: Any, ranges: Sequence[Range]) -> None:
        import vulkan as vk

        regions = [
            vk.VkBufferCopy(srcOffset=a * WORD, dstOffset=b * WORD, size=r.words * WORD)
            for (a, b), r in zip(places, ranges)
            if r.words
        ]
        if regions:
            vk.vkCmdCopyBuffer(self.commands, source, target, len(regions), regions)

    def run(self) -> None:
        self.executor.submit(self.commands, self.fence)
        if self.clock is not None:
            self.seconds = self.clock.seconds()
        self.executor.counters.bytes_uploaded += self.bytes_in
        self.executor.counters.bytes_downloaded += self.bytes_out

    def close(self) -> None:
        import vulkan as vk

        if self.commands is None or self.executor.logical is None:
            return
        self.inputs, self.outputs = [], []
        vk.vkDestroyFence(self.executor.logical, self.fence, None)
        vk.vkFreeCommandBuffers(self.executor.logical, self.executor.command_pool, 1, [self.commands])
        self.commands = None
        if self.clock is not None:
            vk.vkDestroyQueryPool(self.executor.logical, self.clock.pool, None)
        if self.staging is not None:
            self.staging.free()


class _Clock:
    """Ticks of the device: when work begins, and when each level has ended."""

    def __init__(self, executor: NativeExecutor, marks: int):
        import vulkan as vk

        self.executor, self.marks = executor, marks
        info = vk.VkQueryPoolCreateInfo(queryType=vk.VK_QUERY_TYPE_TIMESTAMP, queryCount=marks)
        with translated("recording a program"):
            self.pool = vk.vkCreateQueryPool(executor.logical, info, None)

    def start(self, commands: Any) -> None:
        import vulkan as vk

        vk.vkCmdResetQueryPool(commands, self.pool, 0, self.marks)
        self.mark(commands, 0)

    def mark(self, commands: Any, number: int) -> None:
        """When everything before has ended."""
        import vulkan as vk

        vk.vkCmdWriteTimestamp(commands, vk.VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, self.pool, number)

    def seconds(self) -> list[float]:
        import vulkan as vk

        ticks = vk.ffi.new("uint64_t[]", self.marks)
        flags = vk.VK_QUERY_RESULT_64_BIT | vk.VK_QUERY_RESULT_WAIT_BIT
        with translated("running a program"):
            vk.vkGetQueryPoolResults(self.executor.logical, self.pool, 0, self.marks, 8 * self.marks, ticks, 8, flags)
        period = vk.vkGetPhysicalDeviceProperties(self.executor.physical).limits.timestampPeriod * 1e-9
        return [period * (b - a) for a, b in pairwise(ticks)]


def barrier(commands: Any, *, first: bool = False, last: bool = False) -> None:
    """What comes next sees what dispatches and copies before it have written. first: what the processor has written;
    last: the processor is what comes next."""
    import vulkan as vk

    work = vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | vk.VK_PIPELINE_STAGE_TRANSFER_BIT
    host = vk.VK_PIPELINE_STAGE_HOST_BIT
    writes = vk.VK_ACCESS_SHADER_WRITE_BIT | vk.VK_ACCESS_TRANSFER_WRITE_BIT
    reads = vk.VK_ACCESS_SHADER_READ_BIT | vk.VK_ACCESS_TRANSFER_READ_BIT
    memory = vk.VkMemoryBarrier(
        srcAccessMask=vk.VK_ACCESS_HOST_WRITE_BIT if first else writes,
        dstAccessMask=vk.VK_ACCESS_HOST_READ_BIT if last else reads | writes,
    )
    vk.vkCmdPipelineBarrier(commands, host if first else work, host if last else work, 0, 1, [memory], 0, None, 0, None)
