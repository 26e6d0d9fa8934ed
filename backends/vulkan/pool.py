"""Memory of a device that programs and tensors take arenas from, and give back to."""

from __future__ import annotations

from dataclasses import dataclass

from aatc.backends.vulkan.executors.contract import WORD, Arena, Executor
from aatc.ir.errors import DeviceMemoryError

#: An arena that is free is taken for one this many times smaller, at most: what is left of it is nobody's.
_SLACK = 1.25


@dataclass(frozen=True)
class Figures:
    """Bytes of a device: ``held`` from its driver, ``lent`` to programs and tensors, the most that were lent at once,
    ``free`` and in how many arenas; the largest of them."""

    held: int
    lent: int
    peak: int
    free: int
    blocks: int
    largest: int

    @property
    def fragmentation(self) -> float:
        """1 - (largest free arena) / (free bytes): the part of what is free that one program could not have."""
        return 1 - self.largest / self.free if self.free else 0.0


class Pool:
    """Arenas of one executor. An arena that is given back is kept for the next program of about its size."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._free: list[Arena] = []
        self._lent: dict[int, int] = {}  # words of arenas, by identity
        self._peak = 0
        # One lock for all of a device, which its holder may take again: the collector may run at any time, and have a
        # program give its arena back.
        self._lock = executor.lock

    def take(self, words: int) -> Arena:
        """An arena of at least that many words, with anything in it. Raises: DeviceLimitError, DeviceMemoryError."""
        with self._lock:
            fitting = [a for a in self._free if words <= a.words <= words * _SLACK]
            if fitting:
                arena = min(fitting, key=lambda a: a.words)
                self._free.remove(arena)
            else:
                try:
                    arena = self.executor.arena(words)
                except DeviceMemoryError:
                    if not self._free:
                        raise
                    self._trim()
                    arena = self.executor.arena(words)
            self._lent[id(arena)] = arena.words
            self._peak = max(self._peak, sum(self._lent.values()))
            return arena

    def give(self, arena: Arena) -> None:
        with self._lock:
            if self._lent.pop(id(arena), None) is not None:
                self._free.append(arena)

    def trim(self) -> int:
        """Gives what is free back to the driver; bytes of it."""
        with self._lock:
            return self._trim()

    def _trim(self) -> int:
        free, self._free = self._free, []
        for arena in free:
            arena.close()
        return WORD * sum(a.words for a in free)

    def figures(self) -> Figures:
        with self._lock:
            free = [a.words * WORD for a in self._free]
            lent = WORD * sum(self._lent.values())
            held = self.executor.counters.bytes_held
            return Figures(held, lent, WORD * self._peak, sum(free), len(free), max(free, default=0))


def pool_of(executor: Executor) -> Pool:
    """The one pool of an executor."""
    with executor.lock:
        if executor.pool is None:
            executor.pool = Pool(executor)
        found: Pool = executor.pool
        return found
