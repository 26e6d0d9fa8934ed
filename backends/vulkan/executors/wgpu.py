"""The executor ``wgpu``: WGSL through the PyPI package of that name, on Vulkan, Metal and Direct3D 12.

It puts barriers between dispatches itself, and its command buffers run once: a recording encodes them anew in every
call. Inputs are copied from memory of ours, outputs through a buffer that is mapped after each run.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch

from aatc.backends.vulkan.executors.contract import (
    PUSH_BYTES,
    WORD,
    Arena,
    Device,
    Executor,
    Launch,
    Limits,
    Range,
    Recording,
    Step,
    Zero,
)
from aatc.backends.vulkan.executors.native_device import trips
from aatc.backends.vulkan.kernels import Kernel
from aatc.ir.errors import (
    DeviceError,
    DeviceFeatureError,
    DeviceLostError,
    DeviceMemoryError,
    NoDeviceError,
    ShaderError,
)

_KINDS = {"CPU": "cpu", "DiscreteGPU": "discrete", "IntegratedGPU": "integrated"}
_FEATURES = {"shader-f16": "float16", "subgroup": "subgroup", "timestamp-query": "timestamps"}
_LIMITS = (
    "max-buffer-size", "max-storage-buffer-binding-size", "max-compute-workgroup-storage-size",
    "max-compute-invocations-per-workgroup", "max-compute-workgroup-size-x", "max-compute-workgroup-size-y",
    "max-compute-workgroup-size-z", "max-compute-workgroups-per-dimension",
)  # fmt: skip


@cache
def why_not() -> str:
    """Why the package cannot be used; empty if it can."""
    try:
        import wgpu
        import wgpu.backends.wgpu_native  # noqa: F401
    except ImportError:
        return "the package wgpu is not installed"
    except Exception as error:  # a library that does not load here
        return f"the package wgpu cannot be loaded: {error}"
    return ""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of wgpu as ours."""
    import wgpu

    try:
        yield
    except wgpu.GPUOutOfMemoryError as error:
        raise DeviceMemoryError(f"the device has no memory left for {what}", hint="smaller batches") from error
    except (wgpu.GPUError, RuntimeError) as error:
        if re.search(r"\b(lost|destroyed|invalid)\b", str(error), re.IGNORECASE):
            raise DeviceLostError(f"the device was lost while {what}", hint="the next call opens it anew") from error
        raise DeviceError(f"{what} failed: {error}") from error


@cache
def _adapters() -> tuple[Any, ...]:
    """Those that have push words; OpenGL's have no barriers that we could rely on."""
    import wgpu
    from wgpu.backends.wgpu_native import extras

    extras.set_instance_extras(backends=("Vulkan", "Metal", "DX12"))
    try:
        found = wgpu.gpu.enumerate_adapters_sync()
    except Exception:  # it has no word of its own for no driver at all
        return ()
    return tuple(
        a for a in found if a.info["backend_type"] in ("Vulkan", "Metal", "D3D12") and "immediates" in a.features
    )


@cache
def devices() -> tuple[Device, ...]:
    return tuple(_device(n, a) for n, a in enumerate(_adapters()))


def _device(index: int, adapter: Any) -> Device:
    info, at = adapter.info, adapter.limits
    groups = at["max-compute-workgroups-per-dimension"]
    limits = Limits(
        storage_bytes=min(at["max-storage-buffer-binding-size"], at["max-buffer-size"], 2**32 - 4) // 4 * 4,
        grid=(groups, groups, groups),
        local=tuple(at[f"max-compute-workgroup-size-{axis}"] for axis in "xyz"),
        threads=at["max-compute-invocations-per-workgroup"],
        shared_bytes=at["max-compute-workgroup-storage-size"],
        push_bytes=min(at["max-immediate-size"], PUSH_BYTES),
        alignment=max(at["min-storage-buffer-offset-alignment"], 16),
    )
    # "llvmpipe Mesa 22.3.6": Vulkan's names, as the native executor gives them.
    driver = " ".join(filter(None, (info["vendor"], info["description"]))) or info["backend_type"]
    kind = _KINDS.get(info["adapter_type"], "other")
    features = {ours for theirs, ours in _FEATURES.items() if theirs in adapter.features}
    lanes = info["stackgroup_min_size"] if "subgroup" in features else 0
    return Device("wgpu", index, info["device"], driver, kind, limits, frozenset(features), lanes, trips(driver))


@dataclass(eq=False)
class WgpuExecutor(Executor):
    """Opened by `open_device`."""

    name: ClassVar[str] = "wgpu"
    logical: Any = None
    layout: Any = None
    pipeline_layout: Any = None

    def build(self, kernel: Kernel) -> Any:
        import wgpu

        if kernel.wgsl is None:
            raise DeviceFeatureError(
                f"kernel {kernel.name} has no text in WGSL",
                hint='executor="native" runs it; so may a kernel without it',
            )
        try:
            module = self.logical.create_shader_module(label=kernel.name, code=kernel.wgsl)
            return self.logical.create_compute_pipeline(
                label=kernel.name, layout=self.pipeline_layout, compute={"module": module, "entry_point": "main"}
            )
        except wgpu.GPUOutOfMemoryError as error:
            raise DeviceMemoryError(f"the device has no memory left for kernel {kernel.name}") from error
        except wgpu.GPUError as error:
            raise ShaderError(
                f"kernel {kernel.name} does not compile:\n  {str(error).strip()[:2000]}",
                hint="a fault of aatc's: please report it",
            ) from None

    def allocate(self, words: int) -> Arena:
        return WgpuArena(self, words)

    def buffer(self, words: int, usage: int) -> Any:
        with translated(f"a buffer of {words * WORD} bytes"):
            made = self.logical.create_buffer(size=words * WORD, usage=usage)
        self.counters.hold(words * WORD)
        return made

    def free(self, buffer: Any, words: int) -> None:
        buffer.destroy()
        self.counters.bytes_held -= words * WORD

    def replayed(
        self,
        arena: Arena,
        levels: Sequence[Sequence[Step]],
        inputs: Sequence[Range],
        outputs: Sequence[Range],
        timed: bool,
    ) -> Recording:
        assert isinstance(arena, WgpuArena)
        return WgpuRecording(self, arena, levels, inputs, outputs)

    def shut(self) -> None:
        self.handles.clear()
        self.layout = self.pipeline_layout = None
        self.logical.destroy()
        self.logical = None
        gc.collect()  # a device of wgpu's and what belongs to it refer to each other, and hold some megabytes


def open_device(index: int = 0) -> WgpuExecutor:
    """Opens the adapter of that position. Raises: NoDeviceError, DeviceError."""
    adapters = _adapters()
    if not 0 <= index < len(adapters):
        raise NoDeviceError(f"wgpu sees no device {index}", hint="`aatc devices` lists those there are")
    adapter, device = adapters[index], devices()[index]
    wanted = [f for f in ("immediates", *_FEATURES) if f in adapter.features]
    limits = {"max-immediate-size": device.limits.push_bytes, **{name: adapter.limits[name] for name in _LIMITS}}
    with translated("opening the device"):
        logical = adapter.request_device_sync(required_features=wanted, required_limits=limits)
        import wgpu

        entry = {"binding": 0, "visibility": wgpu.ShaderStage.COMPUTE,
                 "buffer": {"type": "storage", "has_dynamic_offset": False, "min_binding_size": 0}}  # fmt: skip
        layout = logical.create_bind_group_layout(entries=[entry])
        pipeline = logical.create_pipeline_layout(bind_group_layouts=[layout], immediate_size=device.limits.push_bytes)
    made = WgpuExecutor(device, logical=logical, layout=layout, pipeline_layout=pipeline)
    if "subgroup" in device.features:
        made.device = replace(device, subgroup=_lanes(made))
    return made


_LANES = """
@group(0) @binding(0) var<storage, read_write> arena: array<u32>;
@compute @workgroup_size(64)
fn main(@builtin(subgroup_size) lanes: u32) { arena[0] = lanes; }
"""


def _lanes(executor: WgpuExecutor) -> int:
    """Lanes of a subgroup as kernels find them: an adapter only tells between how many and how many."""
    kernel = Kernel("lanes", "", _LANES, (), (64, 1, 1))
    arena = executor.allocate(4)
    recording = executor.record(arena, [[Launch(executor.build(kernel), (1, 1, 1))]])
    recording.run()
    found = int(arena.read(0, 1)[0])
    recording.close()
    arena.close()
    return found


class WgpuArena(Arena):
    def __init__(self, executor: WgpuExecutor, words: int):
        import wgpu

        self.executor, self.words = executor, words
        use = wgpu.BufferUsage
        self.buffer = executor.buffer(words, use.STORAGE | use.COPY_SRC | use.COPY_DST)
        with translated("an arena"):
            whole = {"binding": 0, "resource": {"buffer": self.buffer, "offset": 0, "size": words * WORD}}
            self.group = executor.logical.create_bind_group(layout=executor.layout, entries=[whole])

    def write(self, offset: int, words: torch.Tensor) -> None:
        self.executor.counters.bytes_uploaded += words.numel() * WORD
        if words.numel():
            with translated("writing to the device"):
                self.executor.logical.queue.write_buffer(self.buffer, offset * WORD, words.contiguous().numpy())

    def read(self, offset: int, words: int) -> torch.Tensor:
        self.executor.counters.bytes_downloaded += words * WORD
        if not words:
            return torch.empty(0, dtype=torch.int32)
        with translated("reading from the device"):
            data = self.executor.logical.queue.read_buffer(self.buffer, offset * WORD, words * WORD)
        return torch.frombuffer(bytearray(data), dtype=torch.int32)

    def close(self) -> None:
        if self.buffer is not None and self.executor.logical is not None:
            self.executor.free(self.buffer, self.words)
        self.buffer = self.group = None


class WgpuRecording(Recording):
    def __init__(
        self,
        executor: WgpuExecutor,
        arena: WgpuArena,
        levels: Sequence[Sequence[Step]],
        inputs: Sequence[Range],
        outputs: Sequence[Range],
    ):
        import wgpu

        self.executor, self.arena, self.into, self.out_of = executor, arena, list(inputs), list(outputs)
        self.steps = [step for level in levels for step in level]
        self.inputs = [torch.zeros(r.words, dtype=torch.int32) for r in inputs]
        self.outputs = [torch.zeros(r.words, dtype=torch.int32) for r in outputs]
        self.reading = sum(r.words for r in outputs)
        self.held = self.reading or 1  # a word is read where nothing is, to know that the device is done
        use = wgpu.BufferUsage
        self.back = executor.buffer(self.held, use.COPY_DST | use.MAP_READ)

    def run(self) -> None:
        import wgpu

        executor = self.executor
        with translated("running a program"):
            for r, words in zip(self.into, self.inputs, strict=True):
                if r.words:
                    executor.logical.queue.write_buffer(self.arena.buffer, r.offset * WORD, words.numpy())
            encoder = executor.logical.create_command_encoder()
            self._encode(encoder)
            at = 0
            for r in self.out_of if self.reading else (Range(0, 1),):
                if r.words:
                    encoder.copy_buffer_to_buffer(
                        self.arena.buffer, r.offset * WORD, self.back, at * WORD, r.words * WORD
                    )
                at += r.words
            executor.logical.queue.submit([encoder.finish()])
            executor.counters.submits += 1
            self.back.map_sync(wgpu.MapMode.READ)
            if self.reading:
                data, at = np.frombuffer(self.back.read_mapped(copy=False), dtype=np.int32), 0
                for words in self.outputs:
                    words.numpy()[:] = data[at : at + words.numel()]
                    at += words.numel()
            self.back.unmap()
        executor.counters.bytes_uploaded += WORD * sum(r.words for r in self.into)
        executor.counters.bytes_downloaded += WORD * self.reading

    def _encode(self, encoder: Any) -> None:
        """Dispatches in one pass; what is set to 0 ends it."""
        current = bound = None
        for step in self.steps:
            if isinstance(step, Zero):
                if current is not None:
                    current.end()
                    current = bound = None
                if step.range.words:
                    encoder.clear_buffer(self.arena.buffer, step.range.offset * WORD, step.range.words * WORD)
                continue
            if current is None:
                current = encoder.begin_compute_pass()
                current.set_bind_group(0, self.arena.group)
            if step.handle is not bound:
                current.set_pipeline(step.handle)
                bound = step.handle
            if step.push:
                current.set_immediates(0, step.push, 0, len(step.push))
            current.dispatch_workgroups(*step.grid)
        if current is not None:
            current.end()

    def close(self) -> None:
        if self.back is not None and self.executor.logical is not None:
            self.executor.free(self.back, self.held)
        self.back = None
        self.inputs, self.outputs, self.steps = [], [], []
