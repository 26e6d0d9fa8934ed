"""The CPU backend: tile programs as torch code."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from aatc.backends import Program
from aatc.backends.cpu import call_library, declarations, plan_memory  # noqa: F401  (they register what they declare)
from aatc.ir.core import Module
from aatc.ir.target import Target


class CpuBackend:
    """Runs on torch's CPU kernels; no n*n tensor, work in one arena per call."""

    name = "cpu"
    suffix = "call-library,plan-memory"

    def target(self) -> Target:
        return Target("cpu", cores=torch.get_num_threads(), cache_bytes=_cache_bytes(), library=("sdpa",))

    def build(self, module: Module) -> Program:
        from aatc.backends.cpu.program import build

        return build(module)

    def devices(self) -> Sequence[dict[str, Any]]:
        capability = torch.backends.cpu.get_cpu_capability()
        return [
            {
                "backend": "cpu",
                "name": _model(),
                "threads": torch.get_num_threads(),
                "isa": capability,
                "cache_bytes": _cache_bytes(),
            }
        ]


@lru_cache(maxsize=1)
def _cache_bytes() -> int:
    """The second-level cache of a core, 1 MiB where the system does not tell."""
    try:
        size = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (ValueError, OSError, AttributeError):
        size = 0
    return size if size > 0 else 1 << 20


@lru_cache(maxsize=1)
def _model() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            return next(
                (line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), platform.processor()
            )
    except OSError:
        return platform.processor() or platform.machine()
