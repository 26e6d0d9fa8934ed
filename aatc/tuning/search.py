"""Which schedule is kept: the decisions, apart from how schedules are compiled, checked and timed.

The default is measured first and in every round beside the candidate, so that what else the machine does meets both.
A candidate that gives other numbers is dropped before it is timed. The best few meet again, and one is kept only if it
is faster by more than noise, in its best times and in most rounds: else the default stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aatc.ir.schedule import Schedule

#: A candidate is kept if its best time is less than 1 - MARGIN of the default's, and it is faster in so many rounds of
#: the last ones. Chance, on a busy machine, gives one round in two.
MARGIN, WINS = 0.03, 0.8
#: A candidate that took so much longer in the first round gets no second one.
_HOPELESS = 1.5


@dataclass(frozen=True)
class Effort:
    """``candidates`` that are tried at most (0: all), ``rounds`` of each, ``last`` rounds of the ``best`` ones, and
    ``seconds`` for a model where no budget is given."""

    candidates: int
    rounds: int
    best: int
    last: int
    seconds: float


EFFORTS = {"quick": Effort(8, 3, 3, 9, 30.0), "full": Effort(0, 5, 4, 15, 300.0)}


class Bench(Protocol):
    """What the search asks of the machine."""

    def prepare(self, schedule: Schedule) -> None:
        """Compiles a schedule. Raises what compiling raises."""

    def problem(self, schedule: Schedule) -> str:
        """How its numbers differ from those of the default; empty if they do not."""

    def seconds(self, schedule: Schedule) -> float:
        """The time of one run."""


@dataclass
class Found:
    """What a search found. ``finished``: it was not the budget that ended it."""

    schedule: Schedule
    default: Schedule
    seconds: float
    default_seconds: float
    tried: int = 0
    of: int = 0
    dropped: list[tuple[str, str]] = field(default_factory=list)
    finished: bool = True


def search(
    space: Sequence[Schedule],
    bench: Bench,
    effort: Effort,
    budget: float,
    clock: Callable[[], float],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Found:
    """The schedule to keep, of a ``space`` whose first is the default, in about ``budget`` seconds of ``clock``."""
    end = clock() + budget
    default, *others = space
    candidates = others[: effort.candidates] if effort.candidates else others
    bench.prepare(default)
    bench.seconds(default)  # threads, caches and pages are warm
    found = Found(default, default, bench.seconds(default), 0.0, of=len(others))
    ratios: dict[Schedule, float] = {}
    for n, s in enumerate(candidates):
        progress(n, len(candidates) + 1)
        if clock() >= end:
            found.finished = False
            break
        why = _refused(bench, s)
        if why:
            found.dropped.append((str(s), why))
            continue
        found.tried += 1
        ratio = _ratio(bench, s, default, effort.rounds)
        if ratio < 1:
            ratios[s] = ratio
    progress(len(candidates), len(candidates) + 1)
    _decide(found, bench, sorted(ratios, key=ratios.__getitem__)[: effort.best], effort.last)
    progress(len(candidates) + 1, len(candidates) + 1)
    return found


def _refused(bench: Bench, s: Schedule) -> str:
    """Why a candidate is not measured; empty if it is."""
    try:
        bench.prepare(s)
        return bench.problem(s)
    except Exception as error:  # one schedule that cannot be compiled ends no search
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]


def _ratio(bench: Bench, s: Schedule, default: Schedule, rounds: int) -> float:
    """Of the best times of alternating runs."""
    best = best_default = float("inf")
    for n in range(rounds):
        order = (s, default) if n % 2 else (default, s)
        times = {x: bench.seconds(x) for x in order}
        best, best_default = min(best, times[s]), min(best_default, times[default])
        if best > _HOPELESS * best_default:
            break
    return best / best_default if best_default else 1.0


def _decide(found: Found, bench: Bench, best: list[Schedule], rounds: int) -> None:
    """Runs the ``best`` candidates and the default in turns, and enters which is kept."""
    default = found.default
    contest = [default, *best]
    times: dict[Schedule, list[float]] = {s: [] for s in contest}
    for n in range(rounds if best else 1):
        at = n % len(contest)
        for s in (*contest[at:], *contest[:at]):
            times[s].append(bench.seconds(s))
    found.default_seconds = min(times[default])

    def beats(s: Schedule) -> bool:
        wins = sum(a < b for a, b in zip(times[s], times[default], strict=True))
        return min(times[s]) < (1 - MARGIN) * found.default_seconds and wins >= WINS * len(times[s])

    found.schedule = min(filter(beats, best), key=lambda s: min(times[s]), default=default)
    found.seconds = min(times[found.schedule])
