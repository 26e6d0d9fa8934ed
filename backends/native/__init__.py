"""Native CPU kernels: tile programs as LLVM IR, compiled in the process, run on torch's own threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from aatc.backends import openmp
from aatc.backends.contract import Backend
from aatc.backends.native import (  # noqa: F401  (passes)
    bf16_products,
    join_loops,
    panels_by_tile,
    rows_by_use,
    share_tokens,
)
from aatc.backends.native import isa as instruction_sets
from aatc.backends.native.table import lowering
from aatc.backends.processor import caches, cores
from aatc.backends.profile import Profiler
from aatc.ir.core import Func
from aatc.ir.legal import Workload
from aatc.ir.schedule import Schedule
from aatc.ir.target import Target
from aatc.passes.schedule_space import thread_space


class NativeBackend(Backend):
    """Vector code of our own for every geometry; a task per block of queries, in memory that stays in a core's
    caches."""

    name = "native"
    suffix = "lower-tokens{inline=true},bf16-products,share-tokens,rows-by-use,panels-by-tile,forward-copies,join-loops"
    lowerings = lowering
    listings = ("llvm", "asm")

    def __init__(self) -> None:
        from aatc.backends.native import regions  # noqa: F401  (registers all lowerings)

    def target(self) -> Target:
        isa = instruction_sets.host()
        return Target(
            "native",
            cores=cores(),  # not torch's threads: another number of these must not change a bit
            caches=caches(),
            vector_bytes=isa.vector_bytes,
            registers=isa.registers,
            directives=("split", "grain", "reorder", "order", "bind", "pack", "vectorize", "split-keys"),
            levels=("threads",),
            features=(isa.name, *(["bf16"] if isa.bf16 else [])),
        )

    def compile(self, func: Func) -> tuple[Callable[..., Any], str]:
        from aatc.backends.native.compiled import compile_tile

        return compile_tile(func, instruction_sets.host())

    def finite(self) -> Callable[[torch.Tensor], bool]:
        from aatc.backends.native.finite import Finite

        return Finite(instruction_sets.host())

    def listing(self, func: Func, form: str) -> str:
        from aatc.backends.native.compiled import listing

        return listing(func, instruction_sets.host(), form) if form in self.listings else super().listing(func, form)

    def profiler(self) -> Profiler:
        from aatc.backends.native.profile import Watch

        return Watch()

    def devices(self) -> Sequence[dict[str, Any]]:
        if not instruction_sets.available():
            return []
        isa = instruction_sets.host()
        return [{"backend": "native", "name": isa.cpu, "threads": openmp.threads(), "isa": isa.name}]

    def schedule_space(self, workload: Workload) -> Sequence[Schedule]:
        """The cost model's choice, then others by what they are predicted to take."""
        return thread_space(workload, self.target())
