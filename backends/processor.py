"""What the system tells of its processor."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def caches() -> tuple[int, ...]:
    """Bytes of a core's caches by level; 32 KiB and 1 MiB where the system does not tell of the first two."""
    found = {1: 32 << 10, 2: 1 << 20}
    for cache in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, level, size = ((cache / f).read_text("ascii").strip() for f in ("type", "level", "size"))
            if kind != "Instruction":
                found[int(level)] = int(size.rstrip("KM")) << {"K": 10, "M": 20}.get(size[-1:], 0)
        except (OSError, ValueError):
            continue
    return tuple(found[level] for level in sorted(found))


@lru_cache(maxsize=1)
def model() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as f:
            return next(
                (line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), platform.processor()
            )
    except OSError:
        return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use, however many threads torch has been told to take."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
