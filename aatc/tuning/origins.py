"""Where the schedules of a compiled graph come from."""

from __future__ import annotations

from aatc.ir.core import Module
from aatc.ir.legal import DIRECTIONS
from aatc.ir.schedule import Schedule
from aatc.ir.schedule_file import SCHEDULE_OF, attentions
from aatc.passes.base import Pipeline

#: The name of the pass that looks measured and imported schedules up.
TUNED = "tuned-schedules"


def origins(stages: dict[str, Module], pipeline: Pipeline) -> dict[str, dict[str, str]]:
    """By the names of attentions and by direction, where the schedules of a compiled graph come from: "tuned" on this
    device, "imported", "given" by what was compiled or by options, or "default"."""
    names = list(stages)
    if "schedule" not in names:
        return {}
    before, final = attentions(stages[names[names.index("schedule") - 1]]), attentions(stages["final"])
    word, earlier = "given", before
    for p in pipeline.passes:
        if p.name == TUNED and p.name in names:
            word = "imported" if getattr(p, "given", "") else "tuned"
            earlier = attentions(stages[names[names.index(p.name) - 1]])
    scheduled = attentions(stages["schedule"])
    found: dict[str, dict[str, str]] = {}
    for name, op in before.items():
        for d in DIRECTIONS:
            texts = [x.get(name, op).attrs.get(SCHEDULE_OF[d], "") for x in (earlier, before, scheduled, final)]
            found.setdefault(name, {})[d] = _origin(word, *texts)
    return found


def _origin(word: str, earlier: str, before: str, scheduled: str, final: str) -> str:
    """``word``: of what stood there ``before`` the pass `schedule` and not ``earlier``."""
    if final != scheduled:
        return "given"
    if before and set(Schedule.parse(before)) <= set(Schedule.parse(final)):
        return "given" if earlier == before else word
    return "default"
