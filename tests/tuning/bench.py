"""Machines made up for decisions, keys and entries made up for what keeps them."""

from aatc.ir.schedule import Schedule
from aatc.tuning.entry import Entry
from aatc.tuning.key import FIELDS, Key


class Clock:
    """Goes on only when something is done."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Made:
    """A bench whose schedules take the times it is told: numbers, or functions of the number of the run. Compiling
    takes a second of ``clock``."""

    def __init__(self, times, *, wrong=(), broken=(), clock=None):
        self.times, self.wrong, self.broken = times, wrong, broken
        self.clock = clock or Clock()
        self.prepared, self.runs = [], {s: 0 for s in times}

    def prepare(self, schedule):
        self.clock.now += 1.0
        self.prepared.append(schedule)
        if schedule in self.broken:
            raise RuntimeError("no such instruction\nand more")

    def problem(self, schedule):
        return "result 0 differs" if schedule in self.wrong else ""

    def seconds(self, schedule):
        self.runs[schedule] += 1
        t = self.times[schedule]
        t = t(self.runs[schedule]) if callable(t) else t
        self.clock.now += t
        return t


def tiles(rows: int, cols: int = 64) -> Schedule:
    return Schedule.of(1, rows, cols)


def key(**fields: str) -> Key:
    return Key.of({**{name: "x" for name in FIELDS}, "direction": "forward", **fields})


def entry(schedule: str = "split(i, 32)", **fields: str) -> Entry:
    return Entry(
        key(**fields), schedule, "split(i, 64)", "quick", 1e-3, 2e-3, 5, 9, (("split(i, 8)", "wrong"),), "plain"
    )
