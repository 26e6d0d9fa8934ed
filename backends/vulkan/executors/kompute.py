"""The executor ``kompute``: the Python package ``kp`` of Kompute, built by `aatc.backends.vulkan.build_kompute`.

A level is a Sequence of its own, as there are no barriers inside one. The arena is one tensor of memory that the
processor reaches, where the device computes in that, too; else of the device's own, and words are moved by kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch

from aatc.backends.vulkan import spirv
from aatc.backends.vulkan.executors import native_device
from aatc.backends.vulkan.executors.contract import (
    PUSH_BYTES,
    WORD,
    Arena,
    Device,
    Executor,
    Limits,
    Range,
    Recording,
    Step,
    Zero,
    pack,
)
from aatc.backends.vulkan.kernels import Kernel
from aatc.ir.errors import DeviceError, DeviceLostError, DeviceMemoryError, NoDeviceError

_MOVE = """#version 450
layout(local_size_x = 64) in;
layout(set = 0, binding = 0) buffer To { uint to[]; };
layout(set = 0, binding = 1) readonly buffer From { uint from[]; };
layout(push_constant) uniform Push { uint a; uint b; uint n; } p;
void main() {
    uint step = gl_NumWorkGroups.x * 64;
    for (uint i = gl_GlobalInvocationID.x; i < p.n; i += step) to[p.a + i] = from[p.b + i];
}
"""
_ZERO = """#version 450
layout(local_size_x = 64) in;
layout(set = 0, binding = 0) buffer To { uint to[]; };
layout(push_constant) uniform Push { uint a; uint n; } p;
void main() {
    uint step = gl_NumWorkGroups.x * 64;
    for (uint i = gl_GlobalInvocationID.x; i < p.n; i += step) to[p.a + i] = 0;
}
"""


@cache
def why_not() -> str:
    """Why kp cannot be used; empty if it can."""
    try:
        import kp  # noqa: F401
    except ImportError as error:
        return "the package kp is not installed" if "kp" in str(error) else f"the package kp cannot be loaded: {error}"
    return spirv.why_not()


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of Kompute, which are all RuntimeErrors with Vulkan's words, as ours."""
    try:
        yield
    except DeviceError:
        raise
    except (RuntimeError, MemoryError) as error:
        said = str(error)
        if "DeviceLost" in said or "DEVICE_LOST" in said:
            raise DeviceLostError(f"the device was lost while {what}", hint="the next call opens it anew") from error
        if "OutOf" in said or "OUT_OF" in said or isinstance(error, MemoryError):
            raise DeviceMemoryError(f"the device has no memory left for {what}", hint="smaller batches") from error
        raise DeviceError(f"{what} failed: {said}") from error


class _InstanceInfo(ctypes.Structure):
    """VkInstanceCreateInfo, all of it empty."""

    _fields_ = (
        ("type", ctypes.c_int), ("next", ctypes.c_void_p), ("flags", ctypes.c_uint32), ("about", ctypes.c_void_p),
        ("layers", ctypes.c_uint32), ("layer_names", ctypes.c_void_p), ("extensions", ctypes.c_uint32),
        ("extension_names", ctypes.c_void_p),
    )  # fmt: skip


@cache
def _devices_there() -> int:
    """How many devices the loader sees. It is asked by itself, as a Manager without any ends the process."""
    for name in ("libvulkan.so.1", "vulkan-1.dll", "libvulkan.dylib", "libvulkan.1.dylib"):
        try:
            loader = ctypes.CDLL(name)
        except OSError:
            continue
        instance, count = ctypes.c_void_p(), ctypes.c_uint32(0)
        info = _InstanceInfo(type=1)
        if loader.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance)):
            return 0
        answer = loader.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
        loader.vkDestroyInstance(instance, None)
        return 0 if answer else count.value
    return 0


@cache
def _manager(index: int) -> Any:
    """One per device and process, and for its whole life: tensors of one that has gone have silently size 0."""
    import kp

    with translated("opening the device"):
        return kp.Manager(index)


@cache
def devices() -> tuple[Device, ...]:
    """Kompute tells little of a device: the rest is Vulkan's own answer where the package vulkan is there to ask, else
    what every device has."""
    if not _devices_there():
        return ()
    try:
        listed = _manager(0).list_devices()
    except DeviceError:
        return ()
    known = {} if native_device.why_not() else {d.index: d for d in native_device.devices()}
    return tuple(_device(n, about, known.get(n)) for n, about in enumerate(listed))


def _device(index: int, about: dict[str, Any], known: Device | None) -> Device:
    if known is not None:
        # No feature is enabled at the device, whatever it has: fp32 and u32 only.
        return replace(known, executor="kompute", features=known.features & {"subgroup"})
    name = about["device_name"]
    limits = Limits(
        storage_bytes=2**27, grid=about["max_work_group_count"], local=about["max_work_group_size"],
        threads=about["max_work_group_invocations"], shared_bytes=16384, push_bytes=PUSH_BYTES, alignment=256,
    )  # fmt: skip
    software = any(word in name for word in ("llvmpipe", "SwiftShader"))
    # Which Mesa it is cannot be asked: loops are bounded as on the oldest.
    return Device("kompute", index, name, "unknown", "cpu" if software else "other", limits, frozenset(),
                  trips=65535 if "llvmpipe" in name else 0)  # fmt: skip


@dataclass(eq=False)
class KomputeExecutor(Executor):
    """Opened by `open_device`."""

    name: ClassVar[str] = "kompute"
    manager: Any = None
    staged: bool = False

    def build(self, kernel: Kernel) -> Any:
        return _Module(kernel.name, spirv.compile_glsl(kernel.glsl, kernel.name))

    def allocate(self, words: int) -> Arena:
        return KomputeArena(self, words)

    def tensor(self, words: int, *, host: bool) -> Any:
        import kp

        with translated(f"a buffer of {words * WORD} bytes"):
            kind = kp.TensorTypes.host if host else kp.TensorTypes.storage
            made = self.manager.tensor_t(np.zeros(words, np.uint32), kind)
        self.counters.hold(words * WORD)
        return made

    def free(self, tensor: Any, words: int) -> None:
        tensor.destroy()
        self.counters.bytes_held -= words * WORD

    def replayed(
        self,
        arena: Arena,
        levels: Sequence[Sequence[Step]],
        inputs: Sequence[Range],
        outputs: Sequence[Range],
        timed: bool,
    ) -> Recording:
        assert isinstance(arena, KomputeArena)
        return KomputeRecording(self, arena, levels, inputs, outputs)

    def shut(self) -> None:
        """The manager stays: see `_manager`."""


def open_device(index: int = 0, *, staged: bool | None = None) -> KomputeExecutor:
    """Opens the device of that position. ``staged``: whether the arena is the device's own memory; by default unless
    the device shares the processor's. Raises: NoDeviceError, DeviceError."""
    device = next((d for d in devices() if d.index == index), None)
    if device is None:
        raise NoDeviceError(f"Kompute sees no device {index}", hint="`aatc devices` lists those there are")
    apart = device.kind not in ("cpu", "integrated") if staged is None else staged
    return KomputeExecutor(device, manager=_manager(index), staged=apart)


@dataclass(frozen=True)
class _Module:
    name: str
    code: bytes


@cache
def _own(name: str) -> _Module:
    return _Module(name, spirv.compile_glsl({"move": _MOVE, "zero": _ZERO}[name], name))


@dataclass(eq=False)
class KomputeArena(Arena):
    executor: KomputeExecutor
    words: int
    algorithms: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensor = self.executor.tensor(self.words, host=not self.executor.staged)
        self.mapped = None if self.executor.staged else _mapped(self.tensor)

    def dispatch(self, module: _Module, grid: tuple[int, int, int], push: bytes, *, of: Sequence[Any] = ()) -> Any:
        """An operation of a Sequence; ``of``: tensors in place of the arena."""
        import kp

        tensors = list(of) or [self.tensor]
        words = np.frombuffer(push, np.uint32)
        key = (module, grid, len(words), tuple(map(id, tensors)))
        made = self.algorithms.get(key)
        with translated(f"compiling kernel {module.name}"):
            if made is None:
                algorithm = self.executor.manager.algorithm(
                    tensors, module.code, grid, np.zeros(0, np.uint32), np.zeros(len(words), np.uint32)
                )
                made = self.algorithms[key] = (algorithm, tensors)
            return kp.OpAlgoDispatch(made[0], words.copy())

    def write(self, offset: int, words: torch.Tensor) -> None:
        if self.mapped is not None:
            self.mapped[offset : offset + words.numel()] = words
            self.executor.counters.bytes_uploaded += words.numel() * WORD
        elif words.numel():
            recording = KomputeRecording(self.executor, self, (), (Range(offset, words.numel()),), ())
            recording.inputs[0].copy_(words)
            recording.run()
            recording.close()

    def read(self, offset: int, words: int) -> torch.Tensor:
        if self.mapped is not None:
            self.executor.counters.bytes_downloaded += words * WORD
            return self.mapped[offset : offset + words].clone()
        if not words:
            return torch.empty(0, dtype=torch.int32)
        recording = KomputeRecording(self.executor, self, (), (), (Range(offset, words),))
        recording.run()
        found = recording.outputs[0].clone()
        recording.close()
        return found

    def forget(self, tensor: Any) -> None:
        """Drops the algorithms that are bound to a tensor."""
        for key, (_, tensors) in list(self.algorithms.items()):
            if any(t is tensor for t in tensors):
                del self.algorithms[key]

    def close(self) -> None:
        if self.tensor is not None:
            self.algorithms.clear()
            self.mapped = None
            self.executor.free(self.tensor, self.words)
            self.tensor = None


def _mapped(tensor: Any) -> torch.Tensor:
    return torch.from_numpy(tensor.data().view(np.int32))


class KomputeRecording(Recording):
    def __init__(
        self,
        executor: KomputeExecutor,
        arena: KomputeArena,
        levels: Sequence[Sequence[Step]],
        inputs: Sequence[Range],
        outputs: Sequence[Range],
    ):
        self.executor, self.arena, self.staging = executor, arena, None
        moved, places, total = [*inputs, *outputs], [], 0
        for r in moved:
            places.append(total)
            total += r.words
        if arena.mapped is None:
            self.held = max(total, 1)
            self.staging = executor.tensor(self.held, host=True)
        else:
            places = [r.offset for r in moved]
        store = arena.mapped if self.staging is None else _mapped(self.staging)
        assert store is not None
        views = [store[p : p + r.words] for p, r in zip(places, moved, strict=True)]
        self.inputs, self.outputs = views[: len(inputs)], views[len(inputs) :]
        self.bytes_in, self.bytes_out = (WORD * sum(r.words for r in of) for of in (inputs, outputs))
        if executor.serial:
            levels = [[step] for level in levels for step in level]
        operations = [[self._step(s) for s in level if not isinstance(s, Zero) or s.range.words] for level in levels]
        if self.staging is not None:
            into, out_of = (arena.tensor, self.staging), (self.staging, arena.tensor)
            there = list(zip(moved, places, strict=True))
            copies = [self._move(into, r.offset, p, r.words) for r, p in there[: len(inputs)] if r.words]
            back = [self._move(out_of, p, r.offset, r.words) for r, p in there[len(inputs) :] if r.words]
            operations = [copies, *operations, back]
        self.sequences = []
        for level in filter(None, operations):
            with translated("recording a program"):
                sequence = executor.manager.sequence()
                for operation in level:
                    sequence.record(operation)
            self.sequences.append(sequence)

    def _step(self, step: Step) -> Any:
        if isinstance(step, Zero):
            return self.arena.dispatch(
                _own("zero"), _grid(step.range.words), pack([step.range.offset, step.range.words])
            )
        return self.arena.dispatch(step.handle, step.grid, step.push)

    def _move(self, tensors: tuple[Any, Any], to: int, at: int, words: int) -> Any:
        return self.arena.dispatch(_own("move"), _grid(words), pack([to, at, words]), of=tensors)

    def run(self) -> None:
        with translated("running a program"):
            for sequence in self.sequences:
                sequence.eval()
        self.executor.counters.submits += 1
        self.executor.counters.bytes_uploaded += self.bytes_in
        self.executor.counters.bytes_downloaded += self.bytes_out

    def close(self) -> None:
        for sequence in self.sequences:
            sequence.destroy()
        self.sequences, self.inputs, self.outputs = [], [], []
        if self.staging is not None:
            self.arena.forget(self.staging)
            self.executor.free(self.staging, self.held)
            self.staging = None


def _grid(words: int) -> tuple[int, int, int]:
    return min(-(-words // 64), 4096), 1, 1
