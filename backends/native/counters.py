"""A clock around every operation of a tile function, in builds of it that are profiled.

Each thread adds to counters of its own, so that nothing is shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch

from aatc.backends.native.context import PROFILE, SCRATCH, SCRATCH_BYTES
from aatc.backends.native.isa import Isa
from aatc.backends.native.llvm import Code, Val, index
from aatc.ir.core import Op

#: Numbers of an operation in a thread's counters: ticks, calls. The first number of all says how far threads lie
#: apart; theirs begin at the next cache line.
TICKS, CALLS, EACH = 0, 1, 2
LINE = 8


class Watching(Protocol):
    """Runs kernels in builds that count."""

    def run(self, kernel: Any, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor] | None: ...


#: What counts the calls of this thread.
WATCH: ContextVar[Watching | None] = ContextVar("aatc_native_profile", default=None)


class Counters:
    """The operations of one tile function by their numbers, and the code that counts them."""

    def __init__(self, isa: Isa) -> None:
        self.clock = clock_of(isa)
        self.operations: list[str] = []
        self.parents: list[int] = []  # of an operation in another's region; -1
        self._numbers: dict[Op, int] = {}
        self._open: list[int] = []
        self._bases: dict[Code, Val] = {}

    @contextmanager
    def around(self, code: Code, op: Op, said: str) -> Iterator[None]:
        """What is written inside is the operation's code."""
        n = self._number(op, said)
        self._open.append(n)
        start = self._now(code)
        yield
        ticks = code.sub(self._now(code), start)
        self._open.pop()
        base = self._base(code)
        self._add(code, base, n * EACH + TICKS, ticks)
        self._add(code, base, n * EACH + CALLS, index(1))

    def _number(self, op: Op, said: str) -> int:
        if op not in self._numbers:
            self._numbers[op] = len(self.operations)
            self.operations.append(said)
            self.parents.append(self._open[-1] if self._open else -1)
        return self._numbers[op]

    def _now(self, code: Code) -> Val:
        code.module.declare(self.clock, "i64", [])
        return code.op("i64", f"call i64 @{self.clock}()")

    # Addresses are written out: where others are checked, the counters' are not.
    def _base(self, code: Code) -> Val:
        """Of the counters of the thread at hand, which is known by its scratch memory."""
        if code not in self._bases:
            self._bases[code] = code.early(lambda: self._of_thread(code))
        return self._bases[code]

    def _of_thread(self, code: Code) -> Val:
        words = {
            n: code.op(t, f"load {t}, ptr {_address(code, code.args[0], n).text}, align 8")
            for n, t in ((SCRATCH, "i64"), (SCRATCH_BYTES, "i64"), (PROFILE, "ptr"))
        }
        mine = code.op("i64", f"ptrtoint ptr {code.args[1].text} to i64")
        thread = code.op("i64", f"udiv i64 {code.sub(mine, words[SCRATCH]).text}, {words[SCRATCH_BYTES].text}")
        apart = code.op("i64", f"load i64, ptr {words[PROFILE].text}, align 8")
        place = code.add(code.mul(thread, apart), index(LINE))
        return code.op("ptr", f"getelementptr i64, ptr {words[PROFILE].text}, i64 {place.text}")

    def _add(self, code: Code, base: Val, place: int, x: Val) -> None:
        at = _address(code, base, place)
        before = code.op("i64", f"load i64, ptr {at.text}, align 8")
        code.do(f"store i64 {code.add(before, x).text}, ptr {at.text}, align 8")


def _address(code: Code, base: Val, place: int) -> Val:
    return code.op("ptr", f"getelementptr i64, ptr {base.text}, i64 {place}")


def clock_of(isa: Isa) -> str:
    """The intrinsic that reads a clock which programs may read: on ARM that of cycles is the system's."""
    return "llvm.readsteadycounter" if isa.triple_arch == "aarch64" else "llvm.readcyclecounter"
