"""What a pass may know of the machine it compiles for. Backends make targets; passes only read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """``cache_bytes`` is the cache a core has to itself, ``library`` the fused kernels the backend can call."""

    backend: str = "cpu"
    cores: int = 1
    cache_bytes: int = 1 << 20
    library: tuple[str, ...] = ()
