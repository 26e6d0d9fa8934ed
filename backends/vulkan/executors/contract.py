"""What an executor is: a device with its limits, kernels, an arena of words, and recordings that are replayed.

An executor runs schedules and decides nothing: which dispatches there are, in which order, and where buffers lie stands
in the program. All give the same bits for the same program on the same driver.
"""

from __future__ import annotations

import re
import struct
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from aatc.backends.vulkan.kernels import Kernel
from aatc.ir.errors import DeviceFeatureError, DeviceLimitError
from aatc.ir.program_rules import kernel_hash

WORD = 4  # bytes
#: What every kernel may push, in bytes: all that every device has.
PUSH_BYTES = 128
#: What a device is. "cpu" is a driver that computes on the processor: right, and slow.
KINDS = ("other", "integrated", "discrete", "virtual", "cpu")


@dataclass(frozen=True)
class Limits:
    """What a device can do at most. Along x, y, z: ``grid`` workgroups of a dispatch, ``local`` threads of a
    workgroup; ``threads`` of a workgroup in all; bytes of one storage buffer, of the memory a workgroup shares, of
    push words; ``alignment`` of buffers in bytes."""

    storage_bytes: int
    grid: tuple[int, int, int]
    local: tuple[int, int, int]
    threads: int
    shared_bytes: int
    push_bytes: int
    alignment: int


@dataclass(frozen=True)
class Device:
    """A device as an executor sees it. ``features``: "subgroup" (arithmetic and shuffles), "float16" (arithmetic),
    "storage16", "coopmat", "timestamps"; ``subgroup``: lanes, 0 if they are not told; ``trips``: how often the loops
    of one thread may go in all, 0 for any number."""

    executor: str
    index: int
    name: str
    driver: str
    kind: str
    limits: Limits
    features: frozenset[str]
    subgroup: int = 0
    trips: int = 0

    @property
    def software(self) -> bool:
        return self.kind == "cpu"

    def has(self, feature: str) -> bool:
        """Whether it has a feature of a kernel; "subgroup(8)" is one of at least 8 lanes."""
        m = re.fullmatch(r"subgroup\(([0-9]+)\)", feature)
        if m:
            return "subgroup" in self.features and self.subgroup >= int(m[1])
        return feature in self.features


@dataclass
class Counters:
    """What an executor has done since it was opened. A second call of a program adds to submits, and to the bytes of
    inputs and outputs, only."""

    shaders: int = 0
    allocations: int = 0
    bytes_held: int = 0
    bytes_peak: int = 0
    bytes_uploaded: int = 0
    bytes_downloaded: int = 0
    submits: int = 0

    def hold(self, nbytes: int) -> None:
        self.allocations += 1
        self.bytes_held += nbytes
        self.bytes_peak = max(self.bytes_peak, self.bytes_held)


@dataclass(frozen=True)
class Range:
    """Words of an arena."""

    offset: int
    words: int


@dataclass(frozen=True)
class Launch:
    """A dispatch: a compiled kernel, workgroups along x, y, z, and packed push words."""

    handle: Any
    grid: tuple[int, int, int]
    push: bytes = b""


@dataclass(frozen=True)
class Zero:
    """Words that are set to 0."""

    range: Range


Step = Launch | Zero


class Arena(ABC):
    """One storage buffer of 32-bit words, the only thing that kernels are bound to."""

    words: int

    @abstractmethod
    def write(self, offset: int, words: torch.Tensor) -> None:
        """Copies a flat int32 tensor to ``offset``, in words, before anything that is run later."""

    @abstractmethod
    def read(self, offset: int, words: int) -> torch.Tensor:
        """A flat int32 tensor with a copy of what stands there."""

    @abstractmethod
    def close(self) -> None:
        """Frees it; more than once is once."""


class Recording(ABC):
    """A program that is run again and again. ``inputs`` and ``outputs`` are flat int32 tensors, one per range: the
    former are filled before `run`, the latter hold what the device computed until the next one."""

    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]
    #: Of each level in the last run, by the device's clock; empty unless recorded with ``timed``, by an executor that
    #: can ask the device.
    seconds: Sequence[float] = ()

    @abstractmethod
    def run(self) -> None:
        """Runs it once and waits. Raises: DeviceLostError, DeviceMemoryError."""

    @abstractmethod
    def close(self) -> None:
        """Frees it; its tensors must not be touched any more."""


@dataclass(eq=False)
class Executor(ABC):
    """A device that is open. Whoever uses it, what was made with it included, holds its ``lock``."""

    name: ClassVar[str]
    #: Steps of a level one by one: the validation layer sees that kernels are bound to all of an arena, and takes those
    #: that run at the same time for a hazard.
    serial: ClassVar[bool] = False
    device: Device
    counters: Counters = field(default_factory=Counters)
    handles: dict[str, Any] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    recordings: weakref.WeakSet[Recording] = field(default_factory=weakref.WeakSet)
    arenas: weakref.WeakSet[Arena] = field(default_factory=weakref.WeakSet)
    closed: bool = False
    pool: Any = None  # of arenas: see `aatc.backends.vulkan.pool`

    def compile(self, kernel: Kernel) -> Any:
        """What `Launch` takes for a kernel; compiled once. Raises: DeviceLimitError, DeviceFeatureError,
        ShaderError."""
        key = digest(kernel)
        found = self.handles.get(key)
        if found is None:
            check_kernel(kernel, self.device)
            found = self.handles[key] = self.build(kernel)
            self.counters.shaders += 1
        return found

    def arena(self, words: int) -> Arena:
        """New memory, not initialised. Raises: DeviceLimitError, DeviceMemoryError."""
        limit = self.device.limits.storage_bytes
        if words * WORD > limit:
            raise DeviceLimitError(
                f"the program needs {words * WORD} bytes of one storage buffer, {self.device.name} has {limit} "
                "(maxStorageBufferRange)",
                hint="smaller batches, or another device",
            )
        made = self.allocate(max(words, 4))
        self.arenas.add(made)
        return made

    def record(
        self,
        arena: Arena,
        levels: Sequence[Sequence[Step]],
        inputs: Sequence[Range] = (),
        outputs: Sequence[Range] = (),
        *,
        timed: bool = False,
    ) -> Recording:
        """Levels of steps: those of one level may run at the same time, the next level sees what they wrote. Raises:
        DeviceLimitError, DeviceMemoryError."""
        for level in levels:
            for step in level:
                if isinstance(step, Launch):
                    check_grid(step.grid, self.device)
        made = self.replayed(arena, levels, inputs, outputs, timed and self.device.has("timestamps"))
        self.recordings.add(made)
        return made

    def close(self) -> None:
        """Frees the device, and all that was made with it; more than once is once."""
        with self.lock:
            if not self.closed:
                for recording in list(self.recordings):
                    recording.close()
                for arena in list(self.arenas):
                    arena.close()
                self.shut()
                self.handles.clear()
                self.closed = True

    @abstractmethod
    def build(self, kernel: Kernel) -> Any:
        """Compiles a kernel that the device can run."""

    @abstractmethod
    def allocate(self, words: int) -> Arena:
        """Memory that fits the device's limits."""

    @abstractmethod
    def replayed(
        self,
        arena: Arena,
        levels: Sequence[Sequence[Step]],
        inputs: Sequence[Range],
        outputs: Sequence[Range],
        timed: bool,
    ) -> Recording:
        """A recording whose grids fit."""

    @abstractmethod
    def shut(self) -> None:
        """Frees the device, when arenas and recordings have gone."""


def digest(kernel: Kernel) -> str:
    """Names a kernel by its content: texts, push words, extents."""
    k = kernel
    return kernel_hash(k.glsl, k.wgsl, k.push, k.local, k.shared_bytes, k.features, k.block)


def check_kernel(kernel: Kernel, device: Device) -> None:
    """Raises DeviceLimitError or DeviceFeatureError that names what the device lacks."""
    have = device.limits
    wanted = [
        ("threads along x (maxComputeWorkGroupSize)", kernel.local[0], have.local[0]),
        ("threads along y (maxComputeWorkGroupSize)", kernel.local[1], have.local[1]),
        ("threads along z (maxComputeWorkGroupSize)", kernel.local[2], have.local[2]),
        (
            "threads of a workgroup (maxComputeWorkGroupInvocations)",
            kernel.local[0] * kernel.local[1] * kernel.local[2],
            have.threads,
        ),
        ("bytes of shared memory (maxComputeSharedMemorySize)", kernel.shared_bytes, have.shared_bytes),
        ("bytes of push words (maxPushConstantsSize)", push_bytes(kernel), min(have.push_bytes, PUSH_BYTES)),
    ]
    for what, needs, limit in wanted:
        if needs > limit:
            raise DeviceLimitError(
                f"kernel {kernel.name} needs {needs} {what}, {device.name} has {limit}",
                hint="a schedule of smaller tiles",
            )
    for feature in sorted(kernel.features):
        if not device.has(feature):
            raise DeviceFeatureError(
                f"kernel {kernel.name} needs the feature {feature}, which {device.name} does not have under executor "
                f"{device.executor!r}",
                hint="another executor or device; the kernel without it",
            )


def check_grid(grid: Sequence[int], device: Device) -> None:
    """Raises DeviceLimitError."""
    for n, limit, axis in zip(grid, device.limits.grid, "xyz", strict=True):
        if n > limit:
            raise DeviceLimitError(
                f"a dispatch has {n} workgroups along {axis}, {device.name} runs {limit} (maxComputeWorkGroupCount)",
                hint="a schedule of larger tiles",
            )


def push_bytes(kernel: Kernel) -> int:
    """Of a dispatch: the words, or the offset of the block that holds them."""
    return WORD if kernel.block else WORD * len(kernel.push)


def pack(words: Sequence[int | float]) -> bytes:
    """Words as they lie in memory: integers by two's complement, floating-point numbers by their bits."""
    return b"".join(struct.pack("<f", w) if isinstance(w, float) else struct.pack("<I", w & 0xFFFFFFFF) for w in words)
