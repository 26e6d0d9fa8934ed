"""The CPU backend: tile programs as torch code."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from aatc.backends.contract import Backend
from aatc.backends.cpu import call_library, declarations, plan_memory  # noqa: F401  (they register what they declare)
from aatc.backends.cpu.emit import compile_tile
from aatc.backends.cpu.table import lowering
from aatc.ir.core import Func
from aatc.ir.target import Target
from aatc.passes.adaptive_tile import cost_model
from aatc.passes.lowering import Attention, Schedule


class CpuBackend(Backend):
    """Runs on torch's CPU kernels; no n*n tensor, work in one arena per call."""

    name = "cpu"
    suffix = "call-library,plan-memory"
    lowerings = lowering

    def target(self) -> Target:
        return Target("cpu", cores=torch.get_num_threads(), cache_bytes=_cache_bytes(), library=("sdpa",))

    def compile(self, func: Func) -> tuple[Callable[..., Any], str]:
        return compile_tile(func)

    def schedule_space(self, attention: Attention) -> Sequence[Schedule]:
        """Around the cost model's choice: tiles half and twice as high, half and twice as wide, single problems."""
        default = cost_model(attention, self.target())
        grid = [(rows, cols) for rows in (0, -1, 1) for cols in (0, -1, 1)]
        found = [
            replace(default, rows=_scaled(default.rows, rows), cols=_scaled(default.cols, cols)) for rows, cols in grid
        ]
        found.append(replace(default, heads=1))
        return list(dict.fromkeys(replace(s, grain=min(s.grain, s.cols)) for s in found))

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


def _scaled(extent: int, power: int) -> int:
    return max(1, extent * 2 if power > 0 else extent // 2 if power < 0 else extent)


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
