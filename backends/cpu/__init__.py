"""The CPU backend: tile programs as torch code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from aatc.backends import openmp
from aatc.backends.contract import Backend
from aatc.backends.cpu import (  # noqa: F401  (they register what they declare)
    call_library,
    declarations,
    plan_memory,
    single_pairs,
)
from aatc.backends.cpu.emit import compile_tile
from aatc.backends.cpu.table import lowering
from aatc.backends.processor import caches, model
from aatc.ir.core import Func
from aatc.ir.legal import Workload
from aatc.ir.schedule import Schedule
from aatc.ir.target import Target
from aatc.passes.cost_model import default_schedule


class CpuBackend(Backend):
    """Runs on torch's CPU kernels; no n*n tensor, work in one arena per call."""

    name = "cpu"
    suffix = "call-library,plan-memory"
    lowerings = lowering

    def target(self) -> Target:
        vector_bytes, registers = _VECTORS.get(torch.backends.cpu.get_cpu_capability(), (0, 0))
        return Target(
            "cpu",
            cores=openmp.threads(),
            caches=caches(),
            vector_bytes=vector_bytes,
            registers=registers,
            library=("sdpa",),
        )

    def compile(self, func: Func) -> tuple[Callable[..., Any], str]:
        return compile_tile(func)

    def schedule_space(self, workload: Workload) -> Sequence[Schedule]:
        """Around the cost model's choice: tiles half and twice as high, half and twice as wide, single problems."""
        default = default_schedule(workload, self.target())
        grid = [(rows, cols) for rows in (0, -1, 1) for cols in (0, -1, 1)]
        found = [
            default.with_extents(i=_scaled(default.rows, rows), j=_scaled(default.cols, cols)) for rows, cols in grid
        ]
        found.append(default.with_extents(g=1))
        return list(dict.fromkeys(s.with_extents(grain=min(s.grain, s.cols)) for s in found))

    def devices(self) -> Sequence[dict[str, Any]]:
        capability = torch.backends.cpu.get_cpu_capability()
        return [
            {
                "backend": "cpu",
                "name": model(),
                "threads": openmp.threads(),
                "isa": capability,
                "cache_bytes": caches()[1],
            }
        ]


def _scaled(extent: int, power: int) -> int:
    return max(1, extent * 2 if power > 0 else extent // 2 if power < 0 else extent)


#: Bytes of a vector and number of vector registers by torch's name of an instruction set.
_VECTORS = {
    "AVX512": (64, 32),
    "AVX2": (32, 16),
    "DEFAULT": (16, 16),
    "NEON": (16, 32),
    "SVE256": (32, 32),
    "SVE": (16, 32),
}
