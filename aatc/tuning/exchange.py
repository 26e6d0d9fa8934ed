"""Schedules that leave a machine and come to another: JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aatc.ir.errors import ScheduleError
from aatc.tuning.entry import Entry
from aatc.tuning.key import Key

_FORMAT = "aatc schedules 1"
_LARGEST = 64 << 20


@dataclass(frozen=True)
class Schedules:
    """Measured schedules; ``aatc.compile(model, tune=schedules)`` uses them. ``notes`` is what the search had to say.

    On another device than theirs they are used as long as they are legal there: what counts is that the attention, its
    types and its sizes are the same.
    """

    entries: tuple[Entry, ...] = ()
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.entries), *self.notes]) or "no schedules"

    def find(self, key: Key) -> Entry | None:
        """The entry for a problem, that of the same device before others."""
        alike = [e for e in self.entries if e.key.problem == key.problem]
        return min(alike, key=lambda e: len(key.differences(e.key)), default=None)

    def to_json(self) -> str:
        return json.dumps({"format": _FORMAT, "schedules": [e.to_json() for e in self.entries]}, indent=1) + "\n"

    def export(self, path: str | Path) -> Path:
        """Writes them as JSON; returns the path."""
        target = Path(path)
        target.write_text(self.to_json(), "utf-8")
        return target

    @staticmethod
    def of_json(text: str) -> Schedules:
        """Those a file spells. Raises: ScheduleError for what is no such file, saying which entry is wrong."""
        if len(text) > _LARGEST:
            raise ScheduleError(f"a file of schedules has {_LARGEST >> 20} MiB at most")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ScheduleError(f"a file of schedules is JSON: {str(error)[:120]}", hint=_HINT) from None
        if (
            not isinstance(value, dict)
            or value.get("format") != _FORMAT
            or not isinstance(value.get("schedules"), list)
        ):
            raise ScheduleError(f"this is no file of {_FORMAT!r}", hint=_HINT)
        found = []
        for n, item in enumerate(value["schedules"]):
            try:
                found.append(Entry.of_json(item))
            except ScheduleError as error:
                raise ScheduleError(f"schedule {n}: {error.message}", hint=error.hint or _HINT) from None
        return Schedules(tuple(found))


_HINT = "aatc tune --export FILE writes one"


def load(path: str | Path) -> Schedules:
    """The schedules of a file that `Schedules.export` wrote. Raises: OSError, ScheduleError."""
    try:
        text = Path(path).read_text("utf-8")
    except UnicodeDecodeError:
        raise ScheduleError(f"{path} is not UTF-8 text", hint=_HINT) from None
    try:
        return Schedules.of_json(text)
    except ScheduleError as error:
        raise ScheduleError(error.message, where=str(path), hint=error.hint) from None
