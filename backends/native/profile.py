"""Kernels that count: how often an operation of a tile function ran, and how long, without the operations in its
regions. Builds that count are made for kernels that are called within a `Watch`, and kept with them.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Sequence
from contextvars import Token
from typing import Any

import numpy as np
import torch

from aatc.backends.native import isa as instruction_sets
from aatc.backends.native import machine
from aatc.backends.native.compiled import Compiled, blocks_of
from aatc.backends.native.counters import CALLS, EACH, LINE, TICKS, WATCH, Counters, Watching, clock_of
from aatc.backends.native.llvm import Code, Module
from aatc.backends.native.regions import generate
from aatc.backends.profile import OperationTime, Profile


class Build:
    """A kernel that counts."""

    def __init__(self, compiled: Compiled):
        func, isa = compiled.func, compiled.isa
        self.counters = Counters(isa)
        text = generate(func, isa, blocks_of(func, isa), counters=self.counters)
        self.kernel = Compiled(func, text, isa)
        self.apart = -(-EACH * len(self.counters.operations) // LINE) * LINE
        self.sums = np.zeros(LINE, dtype=np.int64)

    def run(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor] | None:
        threads = torch.get_num_threads()
        if len(self.sums) < LINE + threads * self.apart:
            more = np.zeros(LINE + threads * self.apart, dtype=np.int64)
            more[: len(self.sums)], more[0] = self.sums, self.apart
            self.sums = more
            self.kernel.plans.clear()  # they know where the counters were
            self.kernel.counters = more.ctypes.data
        return self.kernel.run(tensors)

    def clear(self) -> None:
        self.sums[LINE:] = 0

    def counted(self) -> list[tuple[str, int, int]]:
        """(operation, calls, ticks without those of operations inside) of what was called."""
        n = len(self.counters.operations)
        total = self.sums[LINE:].reshape(-1, self.apart)[:, : n * EACH].sum(0).reshape(n, EACH)
        own = total[:, TICKS].copy()
        for k, parent in enumerate(self.counters.parents):
            if parent >= 0:
                own[parent] -= total[k, TICKS]
        return [
            (said, int(total[k, CALLS]), max(0, int(own[k])))
            for k, said in enumerate(self.counters.operations)
            if total[k, CALLS]
        ]


class Watch:
    """Counts what kernels do that this thread calls inside of a ``with``."""

    def __init__(self) -> None:
        self._builds: dict[Compiled, Build] = {}
        self._now, self._library = _clock()
        self.restart()

    def __enter__(self) -> Watch:
        self._token: Token[Watching | None] = WATCH.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        WATCH.reset(self._token)

    def run(self, kernel: Compiled, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor] | None:
        """A kernel's results, from the build of it that counts."""
        build = self._builds.get(kernel)
        if build is None:
            if kernel.build is None:
                kernel.build = Build(kernel)
            build = self._builds[kernel] = kernel.build
            build.clear()
        return build.run(tensors)

    def restart(self) -> None:
        for build in self._builds.values():
            build.clear()
        self._began = time.perf_counter(), self._now()

    def result(self, runs: int, seconds: float, note: str = "") -> Profile:
        began, ticks = self._began
        rate = (self._now() - ticks) / max(1e-9, time.perf_counter() - began)
        found = {k.func.name: b.counted() for k, b in self._builds.items()} if runs else {}
        total = max(1, sum(t for ops in found.values() for _, _, t in ops))
        rows = [
            OperationTime(name, said, calls / runs, t / rate / runs, t / total)
            for name, ops in sorted(found.items(), key=lambda x: -sum(t for _, _, t in x[1]))
            for said, calls, t in sorted(ops, key=lambda x: -x[2])
        ]
        return Profile("native", rows, seconds, torch.get_num_threads(), runs, note)


@functools.cache
def _clock() -> tuple[Any, machine.Library]:
    """The clock that kernels read, as a function; and what must live as long."""
    isa = instruction_sets.host()
    module = Module()
    code = Code(module, "now", [], "i64")
    name = clock_of(isa)
    module.declare(name, "i64", [])
    code.do(f"ret i64 {code.op('i64', f'call i64 @{name}()').text}")
    code.finish("nounwind")
    library = machine.load(module.text(), isa)
    return ctypes.CFUNCTYPE(ctypes.c_int64)(library.address("now")), library
