"""`GPUMemoryManager`: the memory of a Vulkan device that compiled programs take arenas from, and transfers to it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from aatc.backends.vulkan.executors import Executor, open_executor
from aatc.backends.vulkan.executors.contract import WORD
from aatc.backends.vulkan.pool import Pool, pool_of
from aatc.errors import DeviceLostError, ShapeError

#: Words; tensors begin at multiples of it, as buffers of programs do.
_LINE = 64


@dataclass(frozen=True)
class MemoryMetrics:
    """Bytes of a device. held: taken from its driver, staging buffers included. allocated: lent to programs and tensors
    now; peak: the most at once. free: kept for the next ones, in ``free_blocks`` arenas; fragmentation: 1 - (the
    largest of them) / free. uploaded, downloaded: moved since the device was opened."""

    device: str
    held: int
    allocated: int
    peak: int
    free: int
    free_blocks: int
    fragmentation: float
    uploaded: int
    downloaded: int


class _Block:
    """An arena that goes back to its pool when the last tensor in it has gone."""

    def __init__(self, pool: Pool, words: int) -> None:
        self.pool, self.arena = pool, pool.take(max(words, 4))
        weakref.finalize(self, pool.give, self.arena)


class GPUTensor:
    """A contiguous tensor in the memory of a device, bit by bit as on the host. `copy_` writes it, `cpu` reads it."""

    def __init__(self, block: _Block, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._block, self._offset, self.shape, self.dtype = block, offset, torch.Size(shape), dtype

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def copy_(self, source: Tensor) -> GPUTensor:
        """Writes a tensor of the same shape, converted to this dtype. Raises: ShapeError, DeviceError."""
        if tuple(source.shape) != tuple(self.shape):
            raise ShapeError(f"a tensor of shape {tuple(source.shape)} is copied to one of {tuple(self.shape)}")
        with self._device():
            self._block.arena.write(self._offset, _words(source.detach().to(self.dtype)))
        return self

    def cpu(self) -> Tensor:
        """A new tensor of the host. Raises: DeviceError."""
        with self._device():
            words = self._block.arena.read(self._offset, -(-self.nbytes // WORD))
        raw = words.view(torch.uint8)[: self.nbytes]
        return raw.view(self.dtype).reshape(self.shape)

    def _device(self) -> Any:
        executor = self._block.pool.executor
        if executor.closed:
            raise DeviceLostError("the device of this tensor was lost, and what it held", hint="make it anew")
        return executor.lock

    def __repr__(self) -> str:
        return f"GPUTensor({tuple(self.shape)}, {self.dtype}, {self._block.pool.executor.device.name!r})"


class GPUMemoryManager:
    """The memory of a Vulkan device: what compiled programs (``backend="vulkan"``) and tensors hold of it, and copies.

    All managers of a device are of the one pool that programs take their arenas from. ``executor`` and ``device`` are
    those of ``backend="vulkan"``; NoDeviceError says what to install where there is none.

    The seed's names are kept. It returned tensors of torch's, which have no Vulkan device: these are `GPUTensor`.
    """

    def __init__(self, executor: str | Executor = "auto", device: int | None = None) -> None:
        self._executor = open_executor(executor, device) if isinstance(executor, str) else executor
        self._moved: dict[int, tuple[weakref.ref[Tensor], int, GPUTensor]] = {}

    @property
    def _pool(self) -> Pool:
        """That of the device, opened anew if it was lost."""
        if self._executor.closed:
            self._executor = open_executor(self._executor.name, self._executor.device.index)
        return pool_of(self._executor)

    def allocate_gpu_tensor(
        self, size: int | Sequence[int], *, dtype: torch.dtype = torch.float32, zeroed: bool = True
    ) -> GPUTensor:
        """A tensor of the device's; zeros, or with ``zeroed=False`` anything. Its memory goes back to the pool with it.
        Raises: ShapeError, DeviceLimitError for more than one buffer of the device holds, DeviceMemoryError."""
        shape = (size,) if isinstance(size, int) else tuple(size)
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
            raise ShapeError(f"{size!r} is no size of a tensor", hint="give integers of at least 0")
        made = GPUTensor(_Block(self._pool, _length(math.prod(shape) * dtype.itemsize)), 0, shape, dtype)
        return made.copy_(torch.zeros(shape, dtype=dtype)) if zeroed else made

    def track_memory_usage(self) -> MemoryMetrics:
        """What the device's memory is used for now."""
        f, c = self._pool.figures(), self._executor.counters  # in this order: the former may open the device
        return MemoryMetrics(
            self._executor.device.name, f.held, f.lent, f.peak, f.free, f.blocks, f.fragmentation,
            c.bytes_uploaded, c.bytes_downloaded,
        )  # fmt: skip

    @overload
    def optimize_transfers(self, cpu_tensor: Tensor) -> GPUTensor: ...
    @overload
    def optimize_transfers(self, cpu_tensor: Sequence[Tensor]) -> list[GPUTensor]: ...
    def optimize_transfers(self, cpu_tensor: Tensor | Sequence[Tensor]) -> GPUTensor | list[GPUTensor]:
        """Tensors on the device: side by side, so that one copy moves them all, and not those that were moved before
        and have not been written to since. Raises: DeviceError."""
        given = [cpu_tensor] if isinstance(cpu_tensor, Tensor) else list(cpu_tensor)
        known = {id(t): found for t in given if (found := self._known(t)) is not None}
        new = list({id(t): t for t in given if id(t) not in known}.values())
        offsets, total = [], 0
        for t in new:
            offsets.append(total)
            total += _length(t.numel() * t.dtype.itemsize)
        if new:
            block, staged = _Block(self._pool, total), torch.zeros(total, dtype=torch.int32)
            for t, at in zip(new, offsets, strict=True):
                words = _words(t.detach())
                staged[at : at + words.numel()] = words
                known[id(t)] = GPUTensor(block, at, tuple(t.shape), t.dtype)
                self._remember(t, known[id(t)])
            with self._executor.lock:
                block.arena.write(0, staged)
        made = [known[id(t)] for t in given]
        return made[0] if isinstance(cpu_tensor, Tensor) else made

    def _known(self, t: Tensor) -> GPUTensor | None:
        found = self._moved.get(id(t))
        if found is None or found[0]() is not t or t.is_inference() or found[1] != t._version:
            return None
        return None if found[2]._block.pool.executor.closed else found[2]

    def _remember(self, t: Tensor, moved: GPUTensor) -> None:
        """Until the tensor goes. What is written to a tensor made in inference mode is not counted."""
        if not t.is_inference():
            key, table = id(t), self._moved
            table[key] = (weakref.ref(t, lambda _: table.pop(key, None)), t._version, moved)

    def manage_fragmentation(self) -> int:
        """Gives memory that nothing uses back to the driver; bytes of it. Nothing that is lent moves: programs hold
        where their buffers lie."""
        pool = self._pool
        with self._executor.lock:
            return pool.trim()


def _length(nbytes: int) -> int:
    """Words of a tensor, a whole number of lines."""
    return -(-nbytes // (WORD * _LINE)) * _LINE


def _words(t: Tensor) -> Tensor:
    """The bits of a tensor as flat int32, filled up with 0."""
    raw = t.contiguous().flatten().view(torch.uint8) if t.numel() else torch.empty(0, dtype=torch.uint8)
    if raw.numel() % WORD or raw.storage_offset() % WORD:
        padded = torch.zeros(-(-raw.numel() // WORD) * WORD, dtype=torch.uint8)
        padded[: raw.numel()] = raw
        raw = padded
    return raw.view(torch.int32)
