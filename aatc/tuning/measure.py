"""Measures the schedules of attentions whose operands were recorded, and keeps the best."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aatc.backends import Backend
from aatc.ir.core import Module, Op
from aatc.ir.errors import AatcError, UnsupportedError
from aatc.ir.legal import DIRECTIONS
from aatc.ir.schedule_file import attentions
from aatc.passes.base import Pipeline
from aatc.tuning import store
from aatc.tuning.entry import EFFORTS as LEVELS
from aatc.tuning.entry import Entry
from aatc.tuning.exchange import Schedules
from aatc.tuning.key import Key, key_of, kind_of
from aatc.tuning.progress import Report, bar
from aatc.tuning.recording import Recorded, Recording
from aatc.tuning.search import EFFORTS, Bench, search
from aatc.tuning.trial import Trial, alone

_log = logging.getLogger("aatc.tune")
MakeBench = Callable[..., Any]


@dataclass(frozen=True)
class Work:
    """One direction of an attention that may be measured."""

    op: Op
    single: Module
    direction: str
    key: Key
    recorded: Recorded


def works(stages: dict[str, Module], recorded: dict[str, Recorded], backend: Backend) -> Iterator[Work]:
    """Those of a compiled graph, by the operands that its attentions were called with. A backward is among them where
    gradients are wanted."""
    names = list(stages)
    if "schedule" not in names:
        return
    module = stages[names[names.index("schedule") - 1]]
    for name, op in attentions(module).items():
        if name not in recorded or op.name != "geo.attend":
            continue
        single = alone(module, op)
        for direction in DIRECTIONS:
            if direction == "forward" or any(recorded[name].wanted):
                yield Work(op, single, direction, key_of(op, direction, backend), recorded[name])


@dataclass
class Measured:
    """``found``: schedules that were not kept before. ``notes`` for `explain`."""

    found: bool = False
    notes: list[str] = field(default_factory=list)


@contextlib.contextmanager
def measured_after(session: Any, effort: str) -> Iterator[Measured]:
    """Records the operands of the attentions that run within, in graphs of ``session``, and measures after it.
    What goes wrong while measuring is a note: the model has its results."""
    backend = session.backend
    recording = session.backend = Recording(backend)
    done = Measured()
    try:
        yield done
        _measure_new(session, backend, recording, effort, done)
    finally:
        session.backend = backend
        recording.end()


def _measure_new(session: Any, backend: Backend, recording: Recording, effort: str, done: Measured) -> None:
    try:
        found = [w for g in session.graphs for w in works(g.stages, recording.of(g.program), backend)]
        new = [w for w in found if _kept(w.key, effort) is None]
        if not new:
            return
        with bar() as report:
            kept = measure(new, backend, session.pipeline, effort, None, report)
    except Exception as error:
        done.notes.append(f"Schedules were not measured: {type(error).__name__}: {error}")
        return
    done.found = any(not e.is_default for e in kept)
    last = ", used from the next call on" if done.found else ""
    done.notes += [f"Schedules were measured after the first call{last}.", *map(str, kept), *kept.notes]


def _kept(key: Key, effort: str) -> Entry | None:
    """What was found with as much effort, or more."""
    had = store.get(key)
    return had if had is not None and LEVELS.index(had.effort) >= LEVELS.index(effort) else None


def from_schedule(pipeline: Pipeline) -> Pipeline:
    """The passes from `schedule` on."""
    names = [p.name for p in pipeline.passes]
    if "schedule" not in names:
        raise UnsupportedError("these passes have no schedules to be tuned", hint="add `schedule` before adaptive-tile")
    return Pipeline(pipeline.passes[names.index("schedule") :])


def measure(
    found: Iterable[Work],
    backend: Backend,
    pipeline: Pipeline,
    effort: str,
    budget: float | None,
    report: Report,
    *,
    again: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    bench: MakeBench = Trial,
) -> Schedules:
    """An entry for each of ``found``: the one that is kept already, unless it was found with less effort or ``again``
    is set, else the result of a search. ``budget`` is shared by all."""
    left = {w.key.digest: w for w in found}
    level = EFFORTS[effort]
    end = clock() + (level.seconds if budget is None else budget)
    entries: list[Entry] = []
    notes: list[str] = []
    passes = from_schedule(pipeline)
    for n, w in enumerate(left.values()):
        had = None if again else _kept(w.key, effort)
        if had is not None:
            entries.append(had)
            continue
        remaining = max(0.0, end - clock())
        what = f"{kind_of(w.op)}, {w.direction}"
        if not remaining:
            notes.append(f"{what}: not measured, the time is over")
            continue
        share = remaining / (len(left) - n)
        try:
            done = _searched(w, passes, backend, effort, share, clock, bench, what, report)
        except AatcError as error:
            notes.append(f"{what}: not measured: {error.message}")
            continue
        if isinstance(done, str):
            notes.append(f"{what}: not measured: {done}")
            continue
        store.put(done)
        entries.append(done)
        _log.debug("%s", done)
        notes += [f"{what}: {schedule} dropped: {why}" for schedule, why in done.dropped]
    return Schedules(tuple(entries), tuple(notes))


def _searched(
    w: Work,
    passes: Pipeline,
    backend: Backend,
    effort: str,
    budget: float,
    clock: Callable[[], float],
    bench: MakeBench,
    what: str,
    report: Report,
) -> Entry | str:
    """The entry of one search, or why there is none."""
    trial = bench(w.single, w.direction, passes, backend, w.recorded)
    space = list(trial.space())
    if len(space) < 2:
        return f"the {backend.name} backend has one schedule for it"
    subject: Bench = trial
    level = EFFORTS[effort]
    found = search(space, subject, level, budget, clock, lambda done, of: report(what, done, of))
    if not found.finished and not found.tried:
        return "the time is over"
    done = effort if found.finished else LEVELS[0]  # so that another time the rest is measured
    return Entry(
        w.key, str(found.schedule), str(found.default), done, found.seconds, found.default_seconds,
        found.tried, found.of, tuple(found.dropped), kind_of(w.op),
    )  # fmt: skip
