"""One measured schedule, as data: JSON in, JSON out. What is read is checked field by field and never evaluated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aatc.ir.errors import AatcError, ScheduleError
from aatc.ir.schedule import Schedule
from aatc.tuning.key import FIELDS, Key

EFFORTS = ("quick", "full")
_LONGEST = 4096  # characters of a text


@dataclass(frozen=True)
class Entry:
    """A schedule and how it was found.

    ``seconds`` and ``default_seconds`` are minima of alternating runs; where ``schedule`` is ``default``, nothing was
    faster by more than noise. ``tried`` of ``of`` schedules were measured; ``dropped`` are those that gave other
    numbers or could not be compiled, with the reason. ``kind`` says to people which attention it is.
    """

    key: Key
    schedule: str
    default: str
    effort: str
    seconds: float
    default_seconds: float
    tried: int
    of: int
    dropped: tuple[tuple[str, str], ...] = ()
    kind: str = ""

    @property
    def direction(self) -> str:
        return dict(self.key.fields)["direction"]

    @property
    def ratio(self) -> float:
        """Time against the default's."""
        return self.seconds / self.default_seconds if self.default_seconds else 1.0

    @property
    def is_default(self) -> bool:
        return self.schedule == self.default

    def __str__(self) -> str:
        head = f"{self.kind or 'attention'}, {self.direction}: "
        tail = f" ({self.tried} of {self.of} schedules tried"
        tail += f", {len(self.dropped)} dropped)" if self.dropped else ")"
        if self.is_default:
            return f"{head}the default, {1e3 * self.seconds:.3g} ms, stays{tail}"
        times = f"{1e3 * self.seconds:.3g} ms, {self.ratio:.2f} of the default's {1e3 * self.default_seconds:.3g} ms"
        return f"{head}{self.schedule}, {times}{tail}"

    def to_json(self) -> dict[str, Any]:
        return {
            "key": dict(self.key.fields),
            "kind": self.kind,
            "schedule": self.schedule,
            "default": self.default,
            "effort": self.effort,
            "seconds": self.seconds,
            "default_seconds": self.default_seconds,
            "tried": self.tried,
            "of": self.of,
            "dropped": [list(x) for x in self.dropped],
        }

    @staticmethod
    def of_json(value: Any) -> Entry:
        """The entry that ``value`` spells. Raises: ScheduleError saying what is wrong with it."""
        if not isinstance(value, Mapping):
            raise ScheduleError(f"an entry is an object, not {type(value).__name__}")
        fields = value.get("key")
        if not isinstance(fields, Mapping) or set(fields) != set(FIELDS):
            missing = sorted(set(FIELDS) - set(fields)) if isinstance(fields, Mapping) else ["key"]
            raise ScheduleError(f"its key is not that of a schedule: {', '.join(missing) or 'there are other fields'}")
        key = Key.of({name: _text(fields, name) for name in FIELDS})
        dropped = value.get("dropped", [])
        if not isinstance(dropped, list) or len(dropped) > 10_000:
            raise ScheduleError("dropped is no list")
        for x in dropped:
            if not (isinstance(x, list) and len(x) == 2 and all(isinstance(y, str) and len(y) <= _LONGEST for y in x)):
                raise ScheduleError("an entry of dropped is a schedule and a reason")
        effort = _text(value, "effort")
        if effort not in EFFORTS:
            raise ScheduleError(f"effort {effort[:40]!r} is not known", hint=f"there are: {', '.join(EFFORTS)}")
        return Entry(
            key,
            _schedule(value, "schedule"),
            _schedule(value, "default"),
            effort,
            _number(value, "seconds"),
            _number(value, "default_seconds"),
            _count(value, "tried"),
            _count(value, "of"),
            tuple((x, y) for x, y in dropped),
            _text(value, "kind"),
        )


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str) or len(found) > _LONGEST:
        raise ScheduleError(f"{name} is no text of at most {_LONGEST} characters")
    return found


def _schedule(value: Mapping[str, Any], name: str) -> str:
    text = _text(value, name)
    try:
        return str(Schedule.parse(text))
    except AatcError as error:
        raise ScheduleError(f"{name} is no schedule: {error.message}", hint=error.hint) from None


def _number(value: Mapping[str, Any], name: str) -> float:
    found = value.get(name)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found < 1e9 or math.isnan(found):
        raise ScheduleError(f"{name} is no time")
    return float(found)


def _count(value: Mapping[str, Any], name: str) -> int:
    found = value.get(name)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= 1 << 31:
        raise ScheduleError(f"{name} is no count")
    return found
