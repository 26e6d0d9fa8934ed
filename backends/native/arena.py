"""Memory that compiled programs run in: blocks are lent, taken back, and kept for the next call.

A call's temporary memory costs page faults if it is new each time: about a tenth of a second per GiB. It comes from the
system in segments. A block is a span of one; what is given back joins the free spans beside it, and is lent again.
Small blocks and tensors have segments of their own, so that a lasting one does not hold a call's large one. Segments
that are free as a whole are kept, up to a bound.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import torch

from aatc.backends.native.free_list import FreeList
from aatc.ir.errors import AatcError

#: Bytes. A cache line, and the widest vector.
ALIGNMENT = 64
#: Bytes of a huge page. Blocks of several begin at one, and ask the system for them.
HUGE = 2 << 20
#: Bytes below which blocks share segments of ``HUGE`` bytes.
SMALL = 1 << 20
#: Segments of small blocks, of large ones of calls, and of large ones of tensors, which last.
KINDS = ("small", "call", "lasting")


# One for all arenas, so that none is in the middle of something when a process forks. A thread may meet it again while
# it has it: the garbage collector finds a block anywhere, and a signal's handler may run a program.
_lock = threading.RLock()
_mine: Callable[[], bool] = _lock._is_owned  # type: ignore[attr-defined]
#: Blocks that were found then, as (arena, address): taken back by whoever has the lock next.
_found: deque[tuple[Arena, int]] = deque()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Block:
    """Memory that an arena has lent: ``nbytes`` bytes at ``address``, with anything in them.

    It is given back by `Arena.give`, at the end of a ``with``, or else when nobody holds the block any more.
    """

    __slots__ = ("_arena", "_segment", "address", "nbytes")

    def __init__(self, arena: Arena, segment: _Segment, address: int, nbytes: int):
        self._segment, self.address, self.nbytes = segment, address, nbytes
        self._arena: Arena | None = arena

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """The block, or the beginning of it, as a contiguous tensor. It must not be used once the block has been given
        back. Raises ValueError if the block is too small."""
        if math.prod(shape) * dtype.itemsize > self.nbytes:
            raise ValueError(f"{self!r} is too small for {dtype} {tuple(shape)}")
        place = (self.address - self._segment.address) // dtype.itemsize
        storage = self._segment.bytes.untyped_storage()
        placed: torch.Tensor = torch.empty(0, dtype=dtype).set_(storage, place, tuple(shape))  # type: ignore[call-overload]
        return placed

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
            self._blocks.pop().__exit__(kind, error, trace)


@dataclass(frozen=True)
class Figures:
    """What an arena does, in bytes: ``allocated`` were asked for and are lent now, ``peak`` is the most that ever were
    at once; ``held`` are the system's: lent (rounded up) or ``free``, at most ``largest_free`` of these in one piece.
    ``lent`` and ``reused`` count blocks, all and those that needed no new segment."""

    allocated: int
    peak: int
    held: int
    peak_held: int
    free: int
    largest_free: int
    lent: int
    reused: int

    @property
    def fragmentation(self) -> float:
        """1 - (largest free span) / (free bytes): the part of the free memory that one block cannot have, however it is
        cut. 0 where nothing is free."""
        return 1 - self.largest_free / self.free if self.free else 0.0


class Watch:
    """``peak`` bytes at most were lent at once since the watch began."""

    __slots__ = ("__weakref__", "peak")

    def __init__(self, peak: int):
        self.peak = peak


class Arena:
    """Lends blocks of memory, to any thread. ``keep`` is how many bytes of segments that are free as a whole are kept
    at most, less what is asked for anew: a large block does not come on top of those that were kept.

    What is given back is ready for whoever asks for as much next, and joins the free spans when somebody asks for
    something else. ``_segments`` and ``_lent`` say what is so, and change by one step each. All else follows from them:
    if a signal's exception leaves that half changed (``_stale``), it is made anew.
    """

    def __init__(self, keep: int = 64 << 20):
        self.keep = keep
        self._segments: dict[int, _Segment] = {}  # by address
        self._lent: dict[int, tuple[int, int, _Segment]] = {}  # address: (bytes taken, asked for, where)
        self._stale = False
        self._ready: dict[int, list[tuple[int, _Segment]]] = {}  # by size: addresses and segments, the latest last
        self._free = {kind: FreeList[_Segment]() for kind in KINDS}
        self._kept: OrderedDict[int, _Segment] = OrderedDict()  # free as a whole, by address; the oldest in front
        self._ready_bytes = self._kept_bytes = self._allocated = self._held = 0
        self._peak = self._peak_held = self._blocks = self._reused = 0
        self._watches: tuple[weakref.ref[Watch], ...] = ()

    def take(self, nbytes: int, *, lasting: bool = False) -> Block:
        """Lends ``nbytes`` bytes, aligned to 64, or to 4096 where it is at least a page. A ``lasting`` block is none of
        a call. Raises MemoryError if the system has none."""
        if nbytes < 0:
            raise ValueError(f"a block of {nbytes} bytes")
        size = _rounded(nbytes)
        if _mine():  # lists may be half changed: a segment apart, that nobody counts
            segment = _Segment(size, kind="")
            return Block(self, segment, segment.address, nbytes)
        with _lock:
            if _found or self._stale:
                self._tidy()
            self._stale = True
            same = None if lasting else self._ready.get(size)
            if same:
                address, segment = same.pop()
                self._ready_bytes -= size
                self._reused += 1
            else:
                address, segment = self._place(size, lasting)
            block = Block(self, segment, address, nbytes)
            self._lent[address] = (size, nbytes, segment)
            self._blocks += 1
            self._allocated = now = self._allocated + nbytes
            if now > self._peak:
                self._peak = now
            if self._watches:
                self._tell(now)
            self._stale = False
            return block

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor with anything in it, not to be resized. Its block comes back when the last tensor that
        shares its memory has gone: views, what autograd keeps, and arrays of NumPy among them. One without elements
        takes no memory. Raises MemoryError as `take`."""
        nbytes = math.prod(shape) * dtype.itemsize
        if not nbytes:
            return torch.empty(tuple(shape), dtype=dtype)
        block = self.take(nbytes, lasting=True)
        memory = (ctypes.c_char * nbytes).from_address(block.address)
        memory.block = block  # type: ignore[attr-defined]  # lives as long as the storage, which holds ``memory``
        storage = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
        made: torch.Tensor = torch.empty(0, dtype=dtype).set_(storage, 0, tuple(shape))  # type: ignore[call-overload]
        return made

    def session(self) -> Session:
        """For blocks that are given back together."""
        return Session(self)

    def give(self, block: Block) -> None:
        """Takes a block back. Raises AatcError if it was given back before, or is another arena's."""
        mine = _mine()
        with _lock:
            if block._arena is not self:
                what = "was given back before" if block._arena is None else "belongs to another arena"
                raise AatcError(f"{block!r} {what}")
            block._arena = None  # first: a block that is lost does less harm than one that is given back twice
            if not block._segment.kind:
                return
            if mine:
                _found.append((self, block.address))
                return
            if _found or self._stale:
                self._tidy()
            self._back(block.address)

    def release(self) -> None:
        """Returns what is kept to the system."""
        if not _mine():
            with _lock:
                self._tidy()
                self._stale = True
                self._join()
                self._trim(0)
                self._stale = False

    def figures(self) -> Figures:
        mine = _mine()
        with _lock:
            if not mine:
                self._tidy()
                self._stale = True
                self._join()
                self._stale = False
            lists = self._free.values()
            free, largest = sum(f.bytes for f in lists), max(f.largest for f in lists)
            return Figures(
                self._allocated, self._peak, self._held, self._peak_held, free, largest, self._blocks, self._reused
            )

    def reset_peak(self) -> None:
        """Peaks are those from now on."""
        now = self.figures()
        with _lock:
            self._peak, self._peak_held = now.allocated, now.held

    def watch(self) -> Watch:
        """A peak of one's own, counted from now on for as long as somebody holds the result."""
        watch = Watch(0)
        with _lock:
            self._watches = (*(w for w in self._watches if w() is not None), weakref.ref(watch))
        watch.peak = max(watch.peak, self.figures().allocated)
        return watch

    def _tidy(self) -> None:
        """Before anything changes, or is read."""
        while _found:
            arena, address = _found[0]
            if arena._stale:
                arena._recount()
            if address in arena._lent:  # else it is done, but for a signal
                arena._back(address)
            _found.popleft()
        if self._stale:
            self._recount()

    def _back(self, address: int) -> None:
        self._stale = True
        size, nbytes, segment = self._lent.pop(address)
        self._allocated -= nbytes
        same = self._ready.get(size)
        if same is None:
            self._ready[size] = [(address, segment)]
        else:
            same.append((address, segment))
        self._ready_bytes += size
        if self._ready_bytes + self._kept_bytes > self.keep:
            self._join()
        self._stale = False

    def _join(self) -> None:
        """Makes free spans of what was given back; segments that are free as a whole are kept, within the bound."""
        for size, same in self._ready.items():
            for address, segment in same:
                start, end = self._free[segment.kind].add(address, address + size, segment)
                if end - start == segment.size:
                    self._kept[segment.address] = segment
                    self._kept_bytes += segment.size
        self._ready.clear()
        self._ready_bytes = 0
        self._trim(self.keep)

    def _place(self, size: int, lasting: bool) -> tuple[int, _Segment]:
        """A place for a block, in the smallest free span that is large enough or else in a new segment."""
        self._join()
        kind = "small" if size < SMALL else "lasting" if lasting else "call"
        found = self._free[kind].take(size, _alignment(size))
        if found is not None:
            _, segment = found
            self._reused += 1
            if self._kept.pop(segment.address, None) is not None:
                self._kept_bytes -= segment.size
            return found
        segment = self._new(HUGE if size < SMALL else size, kind)
        if segment.size > size:
            self._free[kind].add(segment.address + size, segment.address + segment.size, segment)
        return segment.address, segment

    def _new(self, size: int, kind: str) -> _Segment:
        self._trim(max(0, self.keep - size))
        try:
            segment = _Segment(size, kind)
        except (MemoryError, OSError, OverflowError):
            self._trim(0)  # what is kept may be what is missing
            try:
                segment = _Segment(size, kind)
            except (OSError, OverflowError) as error:
                raise MemoryError(f"no memory for a block of {size} bytes: {error}") from error
        self._segments[segment.address] = segment
        self._held += size
        self._peak_held = max(self._peak_held, self._held)
        return segment

    def _trim(self, keep: int) -> None:
        while self._kept_bytes > keep:
            address, segment = self._kept.popitem(last=False)
            del self._segments[address]
            self._kept_bytes -= segment.size
            self._held -= segment.size
            self._free[segment.kind].remove(address)

    def _tell(self, now: int) -> None:
        for watch in self._watches:
            watched = watch()
            if watched is not None and watched.peak < now:
                watched.peak = now

    def _recount(self) -> None:
        """Free spans and sums, from what is lent."""
        ends = {address: address for address in self._segments}
        free = {kind: FreeList[_Segment]() for kind in KINDS}
        for address, (size, _, segment) in sorted(self._lent.items(), key=lambda entry: entry[0]):
            if address > ends[segment.address]:
                free[segment.kind].add(ends[segment.address], address, segment)
            ends[segment.address] = address + size
        for address, segment in self._segments.items():
            if ends[address] < address + segment.size:
                free[segment.kind].add(ends[address], address + segment.size, segment)
        whole = [a for a in self._segments if ends[a] == a]
        order = {a: n for n, a in enumerate(self._kept)}
        whole.sort(key=lambda a: order.get(a, len(order)))
        self._free, self._kept = free, OrderedDict((a, self._segments[a]) for a in whole)
        self._ready, self._ready_bytes = {}, 0
        self._kept_bytes = sum(self._segments[a].size for a in whole)
        self._allocated = sum(nbytes for _, nbytes, _ in self._lent.values())
        self._held = sum(segment.size for segment in self._segments.values())
        self._stale = False


class _Segment:
    """Memory of the system's, private to the process: a forked child has a copy. Freed with this object, or when the
    last tensor that lies in it goes."""

    __slots__ = ("address", "bytes", "kind", "size")

    def __init__(self, size: int, kind: str):
        self.size, self.kind = size, kind  # none: apart from all lists
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


def _alignment(size: int) -> int:
    return HUGE if size >= 2 * HUGE else mmap.PAGESIZE if size >= mmap.PAGESIZE else ALIGNMENT


@functools.lru_cache(maxsize=1024)
def _rounded(nbytes: int) -> int:
    """The size of the memory for a block: cache lines, pages, and eight steps per power of two, so that blocks of
    nearly the same size can take each other's place."""
    unit = ALIGNMENT if nbytes < mmap.PAGESIZE else mmap.PAGESIZE
    step = max(unit, 1 << max(0, nbytes.bit_length() - 4))
    return max(ALIGNMENT, -(-nbytes // step) * step)


#: What compiled programs take their memory from.
ARENA = Arena()
