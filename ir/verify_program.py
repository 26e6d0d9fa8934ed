"""Programs: who may stand where, and the proof that levels and offsets change nothing of what the text means.

One walk in the order of the text over the words of the arena. Of every stretch of words it knows which buffer's
contents stand there, the level of the last write and the highest level of the reads since. A step has to come in a
later level than the write it reads from (read after write), than the write it replaces (write after write) and than
the reads of what it replaces (write after read), and what it reads must be what its own buffer was given: another
buffer in the same place has not been written meanwhile, and somebody has written all of it before.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from aatc.ir.blame import fail
from aatc.ir.core import Func, Op, Value
from aatc.ir.errors import VerifyError
from aatc.ir.program_rules import MAX_PUSH, VECTOR, words
from aatc.ir.types import KERNEL, TensorType

#: Levels of what is copied once, in the beginning, and in the end.
ONCE, BEFORE, AFTER = -2, -1, 1 << 62
_STEPS = ("program.dispatch", "program.zero")


@dataclass(frozen=True)
class Span:
    """Words of the arena, and the `program.buffer` they belong to."""

    root: Value
    first: int
    last: int  # behind the last word


def planned(func: Func) -> bool:
    return "words" in func.attrs


def spans(func: Func) -> dict[Value, Span]:
    """Where buffers and parts lie; in a program that is not planned, one behind the other."""
    found: dict[Value, Span] = {}
    end = 0
    for op in func.body.ops:
        if op.name == "program.buffer":
            size, at = words(op.result.type), op.attrs.get("offset", end)
            found[op.result] = Span(op.result, at, at + size)
            end += size
        elif op.name == "program.part" and op.operands[0] in found:
            whole = found[op.operands[0]]
            at = whole.first + op.attrs["start"]
            found[op.result] = Span(whole.root, at, at + words(op.result.type))
    return found


def accesses(op: Op) -> tuple[list[Value], list[Value]]:
    """Buffers that a step or a transfer reads, and those that it writes."""
    if op.name == "program.dispatch":
        each = list(zip(op.operands[1:], op.attrs["access"], strict=True))
        return [v for v, a in each if a != "write"], [v for v, a in each if a != "read"]
    if op.name in ("program.upload", "program.parameter"):
        return [], [op.operands[1]]
    if op.name in ("program.zero", "program.block"):
        return [], [op.operands[0]]
    return ([op.operands[0]], []) if op.name == "program.download" else ([], [])


def level(op: Op, step: int) -> int:
    """When an operation runs; ``step`` where no level is written."""
    fixed = {"program.parameter": ONCE, "program.block": ONCE, "program.upload": BEFORE, "program.download": AFTER}
    written: int = op.attrs.get("level", step)
    return fixed.get(op.name, written)


def check_program(func: Func) -> None:
    """VerifyError at the first operation that breaks a rule."""
    _check_attributes(func)
    found = spans(func)
    tensors = {*func.args}
    for op in func.body.ops:
        _check_operands(op, found, tensors)
        if op.name == "program.download":
            tensors.add(op.result)
    _check_places(func, found)
    arena = Arena()
    for number, op in enumerate(func.body.ops):
        reads, writes = accesses(op)
        _check_race(op, found)
        at = level(op, number)
        for v in reads:
            arena.read(op, v, found[v], at)
        for v in writes:
            arena.write(op, v, found[v], at, whole=v not in reads)


# --- who may stand where -----------------------------------------------------------------------------------
def _check_attributes(func: Func) -> None:
    for v in func.args:
        if not isinstance(v.type, TensorType) or not all(d.is_static for d in v.type.shape):
            raise VerifyError(
                f"argument %{v.name or '?'} of program @{func.name} is {v.type}, no tensor of given sizes", at=func
            )
    for name, value in func.attrs.items():
        if name not in ("words", "alignment") and "." not in name:
            raise VerifyError(f"program @{func.name} has no attribute {name}", hint="words, alignment", at=func)
        if name in ("words", "alignment") and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise VerifyError(f"{name} of program @{func.name} is {value!r}, no number of words", at=func)
    alignment = func.attrs.get("alignment", VECTOR)
    if alignment < VECTOR or alignment & (alignment - 1):
        raise VerifyError(f"alignment {alignment} of program @{func.name} is no power of 2 from {VECTOR} on", at=func)


def _check_operands(op: Op, found: dict[Value, Span], tensors: set[Value]) -> None:
    """Buffers are the arena's, tensors the host's, kernels declared."""
    host = {"program.upload": 1, "program.parameter": 1, "program.return": len(op.operands)}.get(op.name, 0)
    for n, v in enumerate(op.operands):
        if n < host:
            if v not in tensors:
                fail(op, f"operand {n} of {op.name} is no tensor of the host", "an argument, or what was downloaded")
        elif n == 0 and op.name == "program.dispatch":
            _check_kernel(op)
        elif v not in found:
            fail(op, f"operand {n} of {op.name} is no buffer", "program.buffer makes one")
    if op.name in ("program.parameter", "program.block"):
        v = op.operands[op.name == "program.parameter"]
        if not _keeps(found[v].root):
            fail(op, f"%{v.name or '?'} is not kept from one call to the next", "program.buffer {keep = true}")


def _keeps(root: Value) -> bool:
    return isinstance(root.owner, Op) and bool(root.owner.attrs["keep"])


def _check_kernel(op: Op) -> None:
    made = op.operands[0].owner
    if not isinstance(made, Op) or made.name != "program.kernel":
        fail(op, f"operand 0 of {op.name} is no kernel", "program.kernel declares one")
    wanted = 1 if made.attrs["block"] else len(made.attrs["push"])
    if len(op.attrs["push"]) != wanted:
        fail(
            op,
            f"kernel {made.attrs['name']} takes {wanted} push words, the dispatch gives {len(op.attrs['push'])}",
            f"at most {MAX_PUSH}; more lie in a block",
        )


# --- where buffers lie -------------------------------------------------------------------------------------
def _check_places(func: Func, found: dict[Value, Span]) -> None:
    whole = [(op, found[op.result]) for op in func.body.ops if op.name == "program.buffer"]
    total, alignment = func.attrs.get("words"), func.attrs.get("alignment", VECTOR)
    for op in func.body.ops:
        mark = "offset" if op.name == "program.buffer" else "level" if op.name in _STEPS else ""
        if mark and (mark in op.attrs) != (total is not None):
            fail(op, f"{op.name} has {'no' if total is not None else 'a'} {mark}, "
                     f"and the program is {'' if total is not None else 'not '}planned")  # fmt: skip
        if mark == "level" and not 0 <= op.attrs.get("level", 0) < AFTER:
            fail(op, f"level {op.attrs['level']} is no level")
    if total is None:
        return
    for op, span in whole:
        if span.first % alignment:
            fail(op, f"offset {span.first} is no multiple of {alignment} words, the program's alignment")
        if span.last > total:
            fail(op, f"the buffer ends at word {span.last} of an arena of {total}")
    kept = [(op, s) for op, s in whole if op.attrs["keep"] and s.last > s.first]
    for op, span in kept:
        for other, at in whole:
            if other is not op and at.first < span.last and span.first < at.last:
                fail(other, f"the buffer lies where %{op.result.name or '?'} is kept from one call to the next")


def _check_race(op: Op, found: dict[Value, Span]) -> None:
    """What a dispatch writes lies apart from all else it touches."""
    if op.name != "program.dispatch":
        return
    each = [(v, found[v], a) for v, a in zip(op.operands[1:], op.attrs["access"], strict=True)]
    for n, (v, span, access) in enumerate(each):
        if access == "read":
            continue
        for m, (other, at, _) in enumerate(each):
            if m != n and at.first < span.last and span.first < at.last:
                fail(op, f"%{v.name or '?'} is written in the place of %{other.name or '?'} by the same dispatch",
                     "one buffer that it updates, or two apart")  # fmt: skip


# --- the walk ----------------------------------------------------------------------------------------------
@dataclass
class _Stretch:
    """Words with one history: whose contents stand there (None: nobody's), and when it was written and read."""

    root: Value | None = None
    written: int = -(1 << 62)
    read: int = -(1 << 62)
    writer: Op | None = None
    reader: Op | None = None

    def copy(self) -> _Stretch:
        return _Stretch(self.root, self.written, self.read, self.writer, self.reader)


class Arena:
    """Words from 0 on, as stretches that start at ``starts``."""

    def __init__(self) -> None:
        self.starts, self.stretches = [0], [_Stretch()]

    def within(self, first: int, last: int) -> range:
        """Positions of the stretches that are exactly words ``first`` to ``last``."""
        return range(self._cut(first), self._cut(last)) if first < last else range(0)

    def _cut(self, at: int) -> int:
        n = bisect_right(self.starts, at) - 1
        if self.starts[n] != at:
            n += 1
            self.starts.insert(n, at)
            self.stretches.insert(n, self.stretches[n - 1].copy())
        return n

    def read(self, op: Op, value: Value, span: Span, at: int) -> None:
        for n in self.within(span.first, span.last):
            s = self.stretches[n]
            if s.root is not span.root:
                if s.writer is None:
                    fail(op, f"%{value.name or '?'} is read before it has been written")
                other = s.root.name if s.root else "?"
                fail(
                    op,
                    f"%{value.name or '?'} is read when %{other} has been written to its words",
                    "two buffers in one place must not be alive at the same time",
                )
            if s.writer is not None and at <= s.written:
                _late(op, value, at, s.writer, s.written, "reads what {other} writes")
            if at > s.read:
                s.read, s.reader = at, op

    def write(self, op: Op, value: Value, span: Span, at: int, *, whole: bool) -> None:
        for n in self.within(span.first, span.last):
            s = self.stretches[n]
            if s.reader is not None and s.reader is not op and at <= s.read:
                _late(op, value, at, s.reader, s.read, "writes to what {other} reads")
            if s.writer is not None and at <= s.written:
                _late(op, value, at, s.writer, s.written, "writes to what {other} writes, too,")
            s.root, s.written, s.writer, s.read, s.reader = span.root, at, op, -(1 << 62), None


def _late(op: Op, value: Value, at: int, other: Op, there: int, what: str) -> None:
    when = {ONCE: "when the program is loaded", BEFORE: "before all levels", AFTER: "after all levels"}
    mine, theirs = (when.get(n, f"at level {n}") for n in (at, there))
    fail(
        op,
        f"{op.name} {what.format(other=other.name)} of %{value.name or '?'}: it runs {mine}, the other {theirs}",
        "it has to run in a later level",
    )


def kernels(func: Func) -> list[Op]:
    """Declarations of kernels, in order."""
    return [op for op in func.body.ops if op.name == "program.kernel" and op.result.type == KERNEL]
