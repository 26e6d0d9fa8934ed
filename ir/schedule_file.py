"""Files of schedules: a line for each attention of a module and direction, ``attend0.forward: split(i, 64)``.

Empty lines count for nothing, nor does what follows a #.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass

from aatc.ir.core import Module, Op
from aatc.ir.errors import ParseError
from aatc.ir.legal import DIRECTIONS
from aatc.ir.schedule import Schedule

#: The attribute of an attention that holds the schedule of a direction.
SCHEDULE_OF = {"forward": "schedule", "backward": "schedule_backward"}
_HEAD = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*\.\s*([A-Za-z_]+)\s*:", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """A line: the attention's name, the direction, its schedule, and the number of the line."""

    name: str
    direction: str
    schedule: Schedule
    line: int


def attentions(module: Module) -> dict[str, Op]:
    """The fused attentions of a module by name. Those that have a tile function are called as it is; the others
    attend0, attend1, … in the order of the text, as their tile functions will be."""
    found = [op for func in module.funcs.values() for op in func.body.walk() if op.name in ("geo.attend", "geo.kernel")]
    taken, names = set(module.funcs), []
    for op in found:
        names.append(op.attrs["forward"].name if op.name == "geo.kernel" else fresh("attend", taken))
    return dict(zip(names, found, strict=True))


def fresh(stem: str, taken: set[str]) -> str:
    """``stem`` and the first number that makes a name not ``taken``, which it is from now on."""
    n = 0
    while f"{stem}{n}" in taken:
        n += 1
    taken.add(f"{stem}{n}")
    return f"{stem}{n}"


def read_schedules(text: str, names: Collection[str]) -> dict[tuple[str, str], Entry]:
    """The schedules of a file by attention, one of ``names``, and direction. ParseError tells line and column."""
    found: dict[tuple[str, str], Entry] = {}
    for number, line in enumerate(text.split("\n"), 1):
        said = line.partition("#")[0]
        if not said.strip():
            continue
        entry = _line(text, number, said, names)
        earlier = found.setdefault((entry.name, entry.direction), entry)
        if earlier is not entry:
            message = f"{entry.name}.{entry.direction} has a schedule already, on line {earlier.line}"
            raise ParseError(message, line=number, column=1, source=text, hint="leave one of them")
    return found


def _line(text: str, number: int, said: str, names: Collection[str]) -> Entry:
    head = _HEAD.match(said)
    if head is None:
        at = len(said) - len(said.lstrip()) + 1
        hint = "a line reads attend0.forward: split(i, 64) split(j, 256)"
        raise ParseError("expected an attention and a direction", line=number, column=at, source=text, hint=hint)
    for group, known, what in ((1, names, "attention"), (2, DIRECTIONS, "direction")):
        word = head[group]
        if word not in known:
            close = difflib.get_close_matches(word[:60], known, n=1)
            there = f"there are: {', '.join(known)}" if known else "there are none: run fuse-attention first"
            hint = f"did you mean {close[0]}?" if close else there
            column = head.start(group) + 1
            raise ParseError(f"there is no {what} {word[:60]!r}", line=number, column=column, source=text, hint=hint)
    try:
        schedule = Schedule.parse(said[head.end() :])
    except ParseError as e:
        column = head.end() + e.column
        raise ParseError(e.message.split("\n")[0], line=number, column=column, source=text, hint=e.hint) from None
    return Entry(head[1], head[2], schedule, number)


def write_schedules(module: Module) -> str:
    """The schedules that the attentions of a module carry, as a file of schedules."""
    lines = []
    for name, op in attentions(module).items():
        for direction, attribute in SCHEDULE_OF.items():
            if attribute in op.attrs:
                lines.append(f"{name}.{direction}: {op.attrs[attribute]}\n")
    return "".join(lines)
