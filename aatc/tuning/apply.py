"""The pass that gives attentions the schedules which were measured or imported, before the cost model gives its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from aatc import backends
from aatc.ir.core import Module, Op
from aatc.ir.errors import PassError, ScheduleError
from aatc.ir.legal import DIRECTIONS, Workload, legal
from aatc.ir.schedule import Schedule
from aatc.ir.schedule_file import SCHEDULE_OF, attentions
from aatc.passes.base import Context, Pass, Pipeline, register
from aatc.passes.cost_model import default_schedule
from aatc.tuning import exchange, store
from aatc.tuning.entry import Entry
from aatc.tuning.key import Key, key_of
from aatc.tuning.origins import TUNED


@register
@dataclass(frozen=True)
class TunedSchedules(Pass):
    """``attend`` → ``attend`` with the schedules that were measured on this device, where there are any.

    given: the text of a file of exported schedules, which are taken instead. What an attention carries already stays.
    """

    given: str = ""
    name: ClassVar[str] = TUNED
    counts: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("fused",)

    def run(self, module: Module, ctx: Context) -> Module:
        backend = backends.get(ctx.target.backend)
        for name, op in attentions(module).items():
            if op.name != "geo.attend":
                continue
            for direction in DIRECTIONS:
                if not op.attrs.get(SCHEDULE_OF[direction]):
                    said = self._give(op, direction, key_of(op, direction, backend), ctx)
                    ctx.notes.append(f"{op.loc or name}, {direction}: {said}")
        return module

    def _give(self, op: Op, direction: str, key: Key, ctx: Context) -> str:
        """Gives ``op`` its schedule; returns what was done."""
        word = "imported" if self.given else "tuned"
        entry = _imported(self.given).find(key) if self.given else store.get(key)
        if entry is None:
            return "no imported schedule is for it" if self.given else store.miss(key)
        if entry.is_default:
            return f"{word}: the default is the fastest of {entry.tried + 1}"
        w = Workload.of(op, direction)
        schedule = Schedule.parse(entry.schedule).completed(default_schedule(w, ctx.target))
        try:
            legal(schedule, w, ctx.target)
        except ScheduleError as error:
            return f"the {word} schedule {schedule} is not legal here: {error.message}"
        op.attrs[SCHEDULE_OF[direction]] = str(schedule)
        ctx.count(word)
        return f"{word}, {entry.ratio:.2f} of the default's time when it was measured{_elsewhere(key, entry)}"


def _elsewhere(key: Key, entry: Entry) -> str:
    differing = key.differences(entry.key)
    return f", with another {', '.join(differing)}" if differing else ""


@lru_cache(maxsize=8)
def _imported(text: str) -> exchange.Schedules:
    return exchange.Schedules.of_json(text)


def with_tuned(pipeline: Pipeline, given: str = "") -> Pipeline:
    """``pipeline`` with the pass before `schedule`. Raises: PassError if it has none."""
    names = [p.name for p in pipeline.passes]
    if "schedule" not in names:
        raise PassError("these passes have no schedules to be tuned", hint="add `schedule` before adaptive-tile")
    at = names.index("schedule")
    return Pipeline((*pipeline.passes[:at], TunedSchedules(given), *pipeline.passes[at:]))
