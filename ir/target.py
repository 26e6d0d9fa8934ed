"""What a pass may know of the machine it compiles for. Backends make targets; passes only read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A machine, and what its backend can do with a schedule.

    cores: threads that run at once. caches: bytes of each level that a core has, first level first; levels beyond the
    second may be shared. vector_bytes: of one vector, 0 where unknown; registers: how many of these a core or lane has.
    shared_bytes: memory of a workgroup; subgroup: lanes that run in step; workgroup: lanes it has at most.

    directives: words of a schedule that the backend obeys (`aatc.ir.schedule`). levels: what loops may be bound to.
    spaces: where tiles may be staged. library: fused kernels the backend can call. features: anything else, by name.
    """

    backend: str = "cpu"
    cores: int = 1
    caches: tuple[int, ...] = (32 << 10, 1 << 20)
    vector_bytes: int = 0
    registers: int = 0
    shared_bytes: int = 0
    subgroup: int = 0
    workgroup: int = 0
    directives: tuple[str, ...] = ("split", "grain", "reorder", "order", "split-keys")
    levels: tuple[str, ...] = ()
    spaces: tuple[str, ...] = ()
    library: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    @property
    def cache_bytes(self) -> int:
        """The largest cache that a core has to itself."""
        return self.caches[:2][-1] if self.caches else 1 << 20
