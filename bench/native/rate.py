"""The machine's multiply-add rate, by a loop that does nothing else: a kernel is as good as the share that it reaches.

The loop is built and run as kernels are: as LLVM IR, on the threads that torch has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from aatc.backends.native import launch, machine
from aatc.backends.native.isa import Isa, host
from aatc.backends.native.llvm import Code, Module, index, vector_of

#: Sums at a time. A processor begins two multiply-adds per cycle that take four: eight would do; all fit in registers.
SUMS = 12
_ROUNDS, _NUMBERS = 0, 1  # places of the context


def loop(isa: Isa) -> str:
    """The module: every thread multiplies and adds for as many rounds as the context says."""
    module = Module(fma=isa.fma)
    code = Code(module, "rate", [("context", "ptr")])
    vector = vector_of("float", isa.lanes())
    rounds = code.load("i64", code.args[0], align=8)
    at = code.at(code.args[0], index(_NUMBERS), "i64")
    factor, addend = (code.load(vector, code.at(at, index(n * isa.lanes()), "float"), align=4) for n in range(2))
    sums = code.loop(
        index(0),
        rounds,
        1,
        lambda _, *sums: [code.fma(s, factor, addend) for s in sums],
        [addend] * SUMS,
    )
    # What nobody reads would not be computed; that threads write over each other's does not matter.
    total = functools.reduce(code.add, sums)
    code.store(total, code.at(at, index(2 * isa.lanes()), "float"), align=4)
    code.do("ret void")
    code.finish("nounwind")
    return module.text()


@dataclass(frozen=True)
class Rate:
    """``call`` does ``operations`` multiplications and additions, on all threads together."""

    call: Callable[[], object]
    operations: float

    def of(self, milliseconds: float) -> float:
        """Operations per second."""
        return self.operations / milliseconds * 1e3


def measured(rounds: int = 8_000_000) -> Rate:
    """The rate on as many threads as torch has now."""
    isa, threads = host(), torch.get_num_threads()
    library = machine.load(loop(isa), isa)
    context = np.zeros(_NUMBERS + 3 * isa.vector_bytes // 8 + 8, dtype=np.int64)
    context[_ROUNDS] = rounds
    numbers = context[_NUMBERS:].view(np.float32)
    numbers[: isa.lanes()], numbers[isa.lanes() : 2 * isa.lanes()] = 0.5, 1.0

    def call() -> object:
        launch.run(library.address("rate"), context.ctypes.data, threads)
        return library

    return Rate(call, 2.0 * SUMS * isa.lanes() * rounds * threads)


#: Of attention as a formula: a product for the scores, one for the values; a backward has five.
FORWARD, BACKWARD = 2, 5


def operations(heads: int, n: int, m: int, width: int, products: int) -> float:
    """Multiplications and additions that an attention needs at least, whatever a metric or connection adds."""
    return 2.0 * products * heads * n * m * width
