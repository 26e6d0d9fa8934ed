"""Memory that compiled programs run in: blocks are lent, taken back, and kept for the next call.

A call's temporary memory costs page faults if it is new each time: about a tenth of a second per GiB. What comes back
is kept, up to a bound, and lent again to whoever asks for about as much.
"""

from __future__ import annotations

import functools
import math
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import torch

from aatc.ir.errors import AatcError

#: Bytes. A cache line, and the widest vector.
ALIGNMENT = 64
#: Bytes of a huge page. Blocks of several begin at one, and ask the system for them.
HUGE = 2 << 20

# One for all arenas, so that none is in the middle of something when a process forks. Reentrant: a block that nobody
# gave back may be found by the garbage collector anywhere.
_lock = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Block:
    """Memory that an arena has lent: ``nbytes`` bytes at ``address``, with anything in them.

    It is given back by `Arena.give`, at the end of a ``with``, or else when nobody holds the block any more.
    """

    __slots__ = ("_arena", "_memory", "address", "nbytes")

    def __init__(self, arena: Arena, memory: _Memory, nbytes: int):
        self._arena: Arena | None = arena
        self._memory, self.address, self.nbytes = memory, memory.address, nbytes

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """The block, or the beginning of it, as a contiguous tensor. It must not be used once the block has been given
        back. Raises ValueError if the block is too small."""
        if math.prod(shape) * dtype.itemsize > self.nbytes:
            raise ValueError(f"{self!r} is too small for {dtype} {tuple(shape)}")
        return torch.empty(0, dtype=dtype).set_(self._memory.bytes.untyped_storage(), 0, tuple(shape))  # type: ignore[call-overload]

    def __enter__(self) -> Block:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._arena is not None:
            self._arena.give(self)

    def __del__(self) -> None:
        arena = getattr(self, "_arena", None)
        if arena is not None:
            arena.give(self)

    def __repr__(self) -> str:
        state = "lent" if self._arena is not None else "given back"
        return f"Block(address={self.address:#x}, nbytes={self.nbytes}, {state})"


class Session:
    """Blocks of one call, given back together at the end of a ``with``. Of one thread."""

    __slots__ = ("_arena", "_blocks")

    def __init__(self, arena: Arena):
        self._arena = arena
        self._blocks: list[Block] = []

    def bytes(self, nbytes: int) -> int:
        """The address of ``nbytes`` bytes."""
        return self.take(nbytes).address

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor with anything in it."""
        return self.take(math.prod(shape) * dtype.itemsize).tensor(shape, dtype)

    def take(self, nbytes: int) -> Block:
        block = self._arena.take(nbytes)
        self._blocks.append(block)
        return block

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._blocks:
            self._arena.give(self._blocks.pop())


@dataclass(frozen=True)
class Figures:
    """What an arena does, in bytes: ``allocated`` are lent now, ``peak`` is the most that ever were at once; ``held``
    are the system's, lent or kept; ``lent`` and ``reused`` count blocks, all and those that were not new."""

    allocated: int
    peak: int
    held: int
    peak_held: int
    lent: int
    reused: int

    @property
    def fragmentation(self) -> float:
        """The part of the memory held that is not lent: kept for later, or lost to rounding; 0 of nothing."""
        return (self.held - self.allocated) / self.held if self.held else 0.0


class Arena:
    """Lends blocks of memory; ``keep`` is how many bytes of given ones are kept at most, less what is asked for anew: a
    large block does not come on top of those that were kept. Of any thread."""

    def __init__(self, keep: int = 64 << 20):
        self.keep = keep
        self._kept: OrderedDict[int, _Memory] = OrderedDict()  # by address, those given back first in front
        self._of_size: dict[int, list[_Memory]] = {}  # those, the latest last
        self._kept_bytes = 0
        self._allocated = self._peak = self._held = self._peak_held = self._lent = self._reused = 0

    def take(self, nbytes: int) -> Block:
        """Lends ``nbytes`` bytes, aligned to 64, or to 4096 where it is at least a page. Raises MemoryError if the
        system has none."""
        if nbytes < 0:
            raise ValueError(f"a block of {nbytes} bytes")
        size = _rounded(nbytes)
        with _lock:
            same = self._of_size.get(size)
            memory = self._unkept(same[-1]) if same else self._larger(size)
            if memory is None:
                self._trim(max(0, self.keep - size))
                memory = self._new(size)
            else:
                self._reused += 1
            self._lent += 1
            self._allocated = now = self._allocated + nbytes
            if now > self._peak:
                self._peak = now
            return Block(self, memory, nbytes)

    def session(self) -> Session:
        """For blocks that are given back together."""
        return Session(self)

    def give(self, block: Block) -> None:
        """Takes a block back. Raises AatcError if it was given back before, or is another arena's."""
        with _lock:
            if block._arena is not self:
                what = "was given back before" if block._arena is None else "belongs to another arena"
                raise AatcError(f"{block!r} {what}")
            block._arena = None
            self._allocated -= block.nbytes
            self._keep(block._memory)

    def release(self) -> None:
        """Returns what is kept to the system."""
        with _lock:
            self._trim(0)

    def figures(self) -> Figures:
        with _lock:
            return Figures(self._allocated, self._peak, self._held, self._peak_held, self._lent, self._reused)

    def reset_peak(self) -> None:
        """Peaks are those from now on."""
        with _lock:
            self._peak, self._peak_held = self._allocated, self._held

    def _larger(self, size: int) -> _Memory | None:
        """The smallest kept memory that is larger, but not much too large; of equals the latest, which is in the
        caches."""
        found = min((s for s, same in self._of_size.items() if same and size < s <= 2 * size), default=0)
        return self._unkept(self._of_size[found][-1]) if found else None

    def _keep(self, memory: _Memory) -> None:
        size = memory.size
        if size > self.keep:
            self._held -= size
            return
        self._kept[memory.address] = memory
        same = self._of_size.get(size)
        if same is None:
            self._of_size[size] = [memory]
        else:
            same.append(memory)
        self._kept_bytes += size
        if self._kept_bytes > self.keep:
            self._trim(self.keep)

    def _unkept(self, memory: _Memory) -> _Memory:
        del self._kept[memory.address]
        same = self._of_size[memory.size]
        if same[-1] is memory:
            same.pop()
        else:
            same.remove(memory)
        self._kept_bytes -= memory.size
        return memory

    def _new(self, size: int) -> _Memory:
        try:
            memory = _Memory(size)
        except (MemoryError, OSError):
            self._trim(0)  # what is kept may be what is missing
            try:
                memory = _Memory(size)
            except OSError as error:
                raise MemoryError(f"no memory for a block of {size} bytes: {error}") from error
        self._held += size
        self._peak_held = max(self._peak_held, self._held)
        return memory

    def _trim(self, keep: int) -> None:
        while self._kept_bytes > keep:
            self._held -= self._unkept(next(iter(self._kept.values()))).size


class _Memory:
    """Memory of the system's, private to the process: a forked child has a copy. Freed with this object, or when the
    last tensor that lies in it goes."""

    __slots__ = ("address", "bytes", "size")

    def __init__(self, size: int):
        self.size = size
        if size < mmap.PAGESIZE:
            self.bytes = torch.empty(size, dtype=torch.uint8)  # aligned to 64
        else:
            self.bytes = _pages(size)
        self.address = self.bytes.data_ptr()
        assert self.address % ALIGNMENT == 0


def _pages(size: int) -> torch.Tensor:
    """Whole pages, huge ones where there are several."""
    spare = HUGE if size >= 2 * HUGE else 0
    if hasattr(mmap, "MAP_ANONYMOUS"):
        pages = mmap.mmap(-1, size + spare, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        pages = mmap.mmap(-1, size + spare)
    if not spare:
        return torch.frombuffer(pages, dtype=torch.uint8)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # of systems without any
            pages.madvise(mmap.MADV_HUGEPAGE)
    start = torch.frombuffer(pages, dtype=torch.uint8, count=1).data_ptr()
    return torch.frombuffer(pages, dtype=torch.uint8, offset=-start % HUGE, count=size)


@functools.lru_cache(maxsize=1024)
def _rounded(nbytes: int) -> int:
    """The size of the memory for a block: cache lines, pages, and eight steps per power of two, so that blocks of
    nearly the same size can take each other's place."""
    unit = ALIGNMENT if nbytes < mmap.PAGESIZE else mmap.PAGESIZE
    step = max(unit, 1 << max(0, nbytes.bit_length() - 4))
    return max(ALIGNMENT, -(-nbytes // step) * step)


#: What compiled programs take their memory from.
ARENA = Arena()
