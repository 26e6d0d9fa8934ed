"""Gives every attention a schedule for each direction: the one it was given, or the cost model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from aatc.ir.core import Module, Op
from aatc.ir.errors import AatcError, ScheduleError
from aatc.ir.legal import DIRECTIONS, Workload, legal
from aatc.ir.schedule import Schedule
from aatc.ir.schedule_file import SCHEDULE_OF, Entry, attentions, read_schedules
from aatc.passes.base import Context, Pass, Pipeline, register
from aatc.passes.cost_model import default_schedule


@register
@dataclass(frozen=True)
class ScheduleAttention(Pass):
    """``attend`` → ``attend`` with a schedule for each direction.

    given: lines ``attend0.forward: split(i, 64)``, as in a file of schedules. Extents of tiles that a schedule leaves
    out are the cost model's. Raises: ParseError for lines that cannot be read or name no attention of the module;
    ScheduleError for a given schedule that is not legal. One that an attention had before and that is not legal any
    more gives way to the cost model's, with a note.
    """

    given: str = ""
    name: ClassVar[str] = "schedule"
    counts: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("fused",)

    def run(self, module: Module, ctx: Context) -> Module:
        named = {name: op for name, op in attentions(module).items() if op.name == "geo.attend"}
        given = read_schedules(self.given, named)
        for name, op in named.items():
            for direction in DIRECTIONS:
                entry = given.get((name, direction))
                schedule = _given(entry, op, ctx) if entry is not None else chosen(op, direction, ctx)
                op.attrs[SCHEDULE_OF[direction]] = str(schedule)
                ctx.count("given" if entry is not None else "scheduled")
        return module


def _given(entry: Entry, op: Op, ctx: Context) -> Schedule:
    """The schedule of a line, complete. ScheduleError tells the line."""
    w = Workload.of(op, entry.direction)
    schedule = entry.schedule.completed(default_schedule(w, ctx.target))
    try:
        legal(schedule, w, ctx.target)
    except ScheduleError as e:
        where = f"line {entry.line}, {entry.name}.{entry.direction}"
        raise ScheduleError(e.message, where=where, hint=e.hint) from None
    return schedule


def chosen(
    op: Op,
    direction: str,
    ctx: Context,
    *,
    double: bool = False,
    change: Callable[[Schedule], Schedule] = lambda s: s,
) -> Schedule:
    """The schedule that an attention carries, complete, after a ``change`` that the user wants; the cost model's where
    it carries none, or, with a note, one that is not legal here. ``double``: for the version in double precision.
    ScheduleError if the change is what makes it illegal."""
    w = Workload.of(op, direction, double=double)
    default = default_schedule(w, ctx.target)
    text = op.attrs.get(SCHEDULE_OF[direction], "")
    if double and text == str(default_schedule(Workload.of(op, direction), ctx.target)):
        text = ""  # nobody's choice: numbers of twice the size have a default of their own
    schedule = default
    if text and text != str(default):
        try:
            schedule = Schedule.parse(text).completed(default)
            legal(schedule, w, ctx.target)
        except AatcError as e:
            schedule = default
            if not double or op.attrs.get("double"):  # a version that stands by need not go by the first one's choice
                note = f"{op.loc or 'attention'}: the schedule {text} gives way to {default} ({direction}): {e.message}"
                ctx.notes.append(note)
    changed = change(schedule)
    if changed is not schedule and changed != schedule:
        legal(changed, w, ctx.target)
    return changed


def with_schedules(pipeline: Pipeline, text: str) -> Pipeline:
    """``pipeline`` with the schedules of a file given to its pass `schedule`, which is put first if it has none: then
    the module must have fused attentions already."""
    passes = list(pipeline.passes)
    at = next((n for n, p in enumerate(passes) if isinstance(p, ScheduleAttention)), None)
    if at is None:
        passes.insert(0, ScheduleAttention(given=text))
    else:
        passes[at] = replace(passes[at], given=text)  # type: ignore[call-arg]
    return Pipeline(tuple(passes))
