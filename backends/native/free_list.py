"""Free spans of memory, kept by size and by place: numbers only, no memory is touched."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Generic, TypeVar

S = TypeVar("S")


class FreeList(Generic[S]):
    """Spans of addresses that are free, each of a segment ``S``. Neighbours of one segment are one span; what is taken
    is the smallest span that is large enough, the lowest of equals."""

    __slots__ = ("_ends", "_order", "_spans", "bytes")

    def __init__(self) -> None:
        self._order: list[tuple[int, int]] = []  # (length, start), sorted
        self._spans: dict[int, tuple[int, S]] = {}  # start: (end, segment)
        self._ends: dict[int, int] = {}  # end: start
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._order)

    @property
    def largest(self) -> int:
        """Bytes of the largest span; 0 if there is none."""
        return self._order[-1][0] if self._order else 0

    def add(self, start: int, end: int, segment: S) -> tuple[int, int]:
        """Frees [start, end) of a segment. Returns the free span that it is part of now: spans of other segments are
        left alone, though they may be next to it."""
        before = self._ends.get(start)
        if before is not None and self._spans[before][1] is segment:
            self.remove(before)
            start = before
        after = self._spans.get(end)
        if after is not None and after[1] is segment:
            self.remove(end)
            end = after[0]
        self._put(start, end, segment)
        return start, end

    def remove(self, start: int) -> None:
        """Forgets the span that begins at ``start``."""
        end, _ = self._spans.pop(start)
        del self._ends[end]
        del self._order[bisect_left(self._order, (end - start, start))]
        self.bytes -= end - start

    def take(self, size: int, alignment: int) -> tuple[int, S] | None:
        """``size`` bytes at a multiple of ``alignment``, and their segment; None if no span has them."""
        order = self._order
        for n in range(bisect_left(order, (size, 0)), len(order)):
            length, start = order[n]
            at = -(-start // alignment) * alignment
            if at + size > start + length:
                continue
            del order[n]
            end, segment = self._spans.pop(start)
            del self._ends[end]
            self.bytes -= length
            if at > start:
                self._put(start, at, segment)
            if at + size < end:
                self._put(at + size, end, segment)
            return at, segment
        return None

    def _put(self, start: int, end: int, segment: S) -> None:
        self._spans[start] = end, segment
        self._ends[end] = start
        insort(self._order, (end - start, start))
        self.bytes += end - start
