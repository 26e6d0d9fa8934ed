"""What a compiled function is told of a call: an array of 64-bit numbers, by places both sides know."""

from __future__ import annotations

from dataclasses import dataclass, field

from aatc.ir.core import Func, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.types import RunsType, TensorType

#: Places of the head. next_thread: threads that have begun. stop: not 0 ends all threads at their next task. refused:
#: set where a condition of the function fails. scratch, scratch_bytes: memory of the tasks, and of one thread. fault:
#: where addresses are checked, the number of an operation that would have left its memory. profile: the counters of a
#: build that counts. first, problems: which problems this start is for, where they may be done in turns.
NEXT_THREAD, STOP, REFUSED, SCRATCH, SCRATCH_BYTES, THREADS, FAULT, PROFILE, FIRST, PROBLEMS = range(10)
HEAD = 16
#: Places of a phase, a cache line: tasks drawn, tasks done, tasks in all, tasks drawn at once.
NEXT, DONE, TOTAL, CHUNK = range(4)
PHASE = 8


@dataclass
class Layout:
    """Places of phases, buffers and sizes, given out as they are asked for."""

    phases: int
    buffers: dict[Value, int] = field(default_factory=dict)  # the address; strides, or extents of runs; and bytes
    symbols: dict[str, int] = field(default_factory=dict)
    size: int = 0

    def __post_init__(self) -> None:
        self.size = HEAD + PHASE * self.phases

    def phase(self, n: int, what: int) -> int:
        return HEAD + PHASE * n + what

    def buffer(self, v: Value) -> int:
        if v not in self.buffers:
            self.buffers[v] = self.size
            self.size += 2 + rank_of(v)
        return self.buffers[v]

    def symbol(self, name: str) -> int:
        if name not in self.symbols:
            self.symbols[name] = self.size
            self.size += 1
        return self.symbols[name]


def rank_of(v: Value) -> int:
    """Numbers besides the address that a call tells of a buffer: its strides, or the first three extents of runs."""
    return 3 if isinstance(v.type, RunsType) else len(v.type.shape) if isinstance(v.type, TensorType) else 0


def buffers_of(func: Func) -> list[Value]:
    """Buffers and runs that stand outside of loops: arguments, and what operations of the function's body make."""
    made: list[Op] = func.body.ops
    return [*func.args, *(r for op in made for r in op.results if isinstance(r.type, (TensorType, RunsType)))]


def constant(d: Dim | int) -> int | None:
    d = Dim.of(d)
    return d.const if d.is_static else None
