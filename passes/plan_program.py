"""Levels and offsets of programs: when each step runs, and where buffers lie."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from aatc.ir.core import Func, Module, Op, Value
from aatc.ir.errors import PassError
from aatc.ir.program_rules import VECTOR, words
from aatc.ir.verify_program import AFTER, BEFORE, ONCE, Arena, Span, accesses, level, spans
from aatc.passes.base import Context, Pass, register

_STEPS = ("program.dispatch", "program.zero")


@register
@dataclass(frozen=True)
class PlanProgram(Pass):
    """``program.dispatch``, ``program.buffer`` → with the earliest level that its operands allow, in the order of
    levels; with an offset in the arena, where buffers that are not alive at the same time share words.

    alignment: words, of the beginnings of buffers. A program that is planned is planned anew.
    """

    alignment: int = 64
    name: ClassVar[str] = "plan-program"

    def __post_init__(self) -> None:
        if self.alignment < VECTOR or self.alignment & (self.alignment - 1):
            raise PassError(
                f"plan-program: alignment = {self.alignment}", hint=f"a power of 2 of words, {VECTOR} or more"
            )

    def run(self, module: Module, ctx: Context) -> Module:
        for func in module.funcs.values():
            if func.level == "program":
                plan(func, self.alignment)
                alive = most_alive(lifetimes(func), self.alignment)
                ctx.notes.append(
                    f"@{func.name}: an arena of {func.attrs['words']} words in {depth(func)} levels; "
                    f"{alive} words are alive at once"
                )
                ctx.count("planned")
        return module


def plan(func: Func, alignment: int = 64) -> None:
    """Gives every step of a program its level and every buffer its offset, in place. Its text is brought into the order
    of levels: in another one, what shares words would not mean the same."""
    for op in func.body.ops:
        op.attrs.pop("level", None)
        op.attrs.pop("offset", None)
    for name in ("words", "alignment"):
        func.attrs.pop(name, None)
    for op, at in levels(func).items():
        op.attrs["level"] = at
    func.body.ops.sort(key=_rank)
    lives = lifetimes(func)
    offsets, total = place(lives, alignment)
    for life in lives:
        assert isinstance(life.buffer.owner, Op)
        life.buffer.owner.attrs["offset"] = offsets[life.buffer]
    func.attrs["words"], func.attrs["alignment"] = total, alignment


def _rank(op: Op) -> tuple[int, int]:
    """Declarations, transfers before all levels, levels, transfers after them, the end."""
    if op.name in ("program.kernel", "program.buffer", "program.part"):
        return 0, 0
    return (2 if op.name == "program.return" else 1), level(op, 0)


def depth(func: Func) -> int:
    """How many levels there are."""
    return max((op.attrs["level"] + 1 for op in func.body.ops if "level" in op.attrs), default=0)


# --- levels ------------------------------------------------------------------------------------------------
class _Order(Arena):
    """Words of buffers side by side, and what the next access to them has to wait for."""

    def earliest(self, reads: Iterable[Span], writes: Iterable[Span]) -> int:
        after = [self.stretches[n].written for s in reads for n in self.within(s.first, s.last)]
        for s in writes:
            after += [max(self.stretches[n].written, self.stretches[n].read) for n in self.within(s.first, s.last)]
        return max(after, default=BEFORE) + 1

    def enter(self, reads: Iterable[Span], writes: Iterable[Span], at: int) -> None:
        for s in reads:
            for n in self.within(s.first, s.last):
                self.stretches[n].read = max(self.stretches[n].read, at)
        for s in writes:
            for n in self.within(s.first, s.last):
                self.stretches[n].written, self.stretches[n].read = at, -(1 << 62)


def levels(func: Func) -> dict[Op, int]:
    """The earliest level of each step; what is set to 0 waits until the level before the first that touches it."""
    found, order = spans(func), _Order()
    given: dict[Op, int] = {}
    for op in func.body.ops:
        reads, writes = ([found[v] for v in each] for each in accesses(op))
        at = level(op, -1)
        if op.name in _STEPS:
            at = given[op] = max(order.earliest(reads, writes), 0)
        order.enter(reads, writes, at)
    _delay_zeros(func, given)
    return given


def _delay_zeros(func: Func, given: dict[Op, int]) -> None:
    found = spans(func)
    waiting: dict[Value, Op] = {}  # by root: a zero that nothing has touched yet
    for op in func.body.ops:
        reads, writes = accesses(op)
        for root in {found[v].root for v in (*reads, *writes)}:
            zero = waiting.pop(root, None)
            if zero is not None and op in given:
                given[zero] = max(given[zero], given[op] - 1)
        if op.name == "program.zero":
            waiting[found[op.operands[0]].root] = op


# --- places ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Life:
    """A buffer, its words, and the first and last level that touch it. ``kept``: it is always alive; ``uploaded``:
    tensors of the host are copied to it, in this order."""

    buffer: Value
    words: int
    first: int
    last: int
    kept: bool
    uploaded: bool

    def overlaps(self, other: Life, apart: int = 0) -> bool:
        """Whether both are alive at once, or within ``apart`` levels of each other."""
        return self.first <= other.last + apart and other.first <= self.last + apart


def lifetimes(func: Func) -> list[Life]:
    """Of every buffer of a program whose steps have levels; of one that nothing touches, level 0."""
    found = spans(func)
    touched: dict[Value, list[int]] = {}
    uploaded = set()
    for op in func.body.ops:
        reads, writes = accesses(op)
        for v in (*reads, *writes):
            touched.setdefault(found[v].root, []).append(level(op, -1))
        if op.name == "program.upload":
            uploaded.add(found[op.operands[1]].root)
    made = []
    for op in func.body.ops:
        if op.name == "program.buffer":
            v, kept = op.result, bool(op.attrs["keep"])
            at = touched.get(v, [0])
            first, last = (ONCE, AFTER) if kept else (min(at), max(at))
            made.append(Life(v, words(v.type), first, last, kept, v in uploaded))
    return made


def place(lives: list[Life], alignment: int) -> tuple[dict[Value, int], int]:
    """Offsets and the size of the arena. First what is kept, then what is uploaded, each in order and without gaps, so
    that few copies move it; then the rest, the largest first, each at the lowest place where it fits. Shared memory
    makes steps wait for each other: words that were free for a level at least are taken before those just left."""
    ordered = [x for x in lives if x.kept] + [x for x in lives if x.uploaded and not x.kept]
    rest = [x for x in lives if not x.kept and not x.uploaded]
    ordered += sorted(rest, key=lambda x: -x.words)
    placed: list[_Place] = []
    total = 0
    offsets: dict[Value, int] = {}
    for life in ordered:
        size = -(-life.words // alignment) * alignment
        at = _lowest(life, size, placed, apart=1)
        if at + size > total:
            at = _lowest(life, size, placed, apart=0)
        offsets[life.buffer] = at
        if size:
            insort(placed, (at, at + size, life.first, life.last))
            total = max(total, at + size)
    return offsets, total


#: First word, word behind the last, first and last level.
_Place = tuple[int, int, int, int]


def _lowest(life: Life, size: int, placed: list[_Place], apart: int) -> int:
    """The lowest place for ``size`` words beside those of ``placed``, in order, that are alive within ``apart`` levels
    of it."""
    if not size:
        return 0
    at, low, high = 0, life.first - apart, life.last + apart
    for first, last, born, gone in placed:
        if born <= high and low <= gone:
            if at + size <= first:
                break
            if last > at:
                at = last
    return at


def most_alive(lives: list[Life], alignment: int) -> int:
    """The largest sum of words that are alive at once: no arena is smaller."""
    events: dict[int, int] = {}
    for life in lives:
        size = -(-life.words // alignment) * alignment
        events[life.first] = events.get(life.first, 0) + size
        events[life.last + 1] = events.get(life.last + 1, 0) - size
    most = now = 0
    for at in sorted(events):
        now += events[at]
        most = max(most, now)
    return most
