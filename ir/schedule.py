"""Schedules as data: an ordered list of directives that say how an attention's tile program is made, and its text.

``split(g, 1) split(i, 64) split(j, 256) bind(i, threads)``: words with arguments, blanks between them. A schedule says
nothing of what is computed. Whether it fits a program and a machine is for `aatc.ir.legal`.

Axes: g problems, i queries, j keys: a split gives the extent of a tile. ii and jj are queries and keys within a tile: a
split gives the block of it that one lane, or the registers of one core, hold.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

from aatc.ir.errors import ParseError, ScheduleError

AXES = ("g", "i", "j", "ii", "jj")
LEVELS = ("threads", "workgroups", "lanes")
SPACES = ("shared", "register")
ORDERS = ("rows", "rows-and-columns")
_LARGEST = 2**31 - 1
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:-[A-Za-z0-9_]+)*", re.ASCII)


@dataclass(frozen=True)
class _Kind:
    """What an argument may be: a name (of ``choices`` if there are any) or an integer."""

    name: str
    choices: tuple[str, ...] = ()

    @property
    def wanted(self) -> str:
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"

    def problem(self, value: Any) -> str:
        """What is wrong with ``value``; empty if nothing is."""
        if self.name == "number":
            wrong = not isinstance(value, int) or isinstance(value, bool)
            return f"{value!r} is no number" if wrong else "" if abs(value) <= _LARGEST else f"{value} is too large"
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            return f"{value!r} is no {self.name}"
        return f"{value} is no {self.name}" if self.choices and value not in self.choices else ""

    def hint(self, value: Any) -> str:
        if not self.choices:
            return f"write {self.wanted}"
        close = difflib.get_close_matches(str(value)[:40], self.choices, n=1)
        return f"did you mean {close[0]}?" if close else f"there are: {', '.join(self.choices)}"


def _argument(name: str, *choices: str) -> Any:
    return field(metadata={"kind": _Kind(name, choices)})


@dataclass(frozen=True)
class Directive:
    """Base of directives: a word, and fields that are its arguments in order. ScheduleError for what has no text."""

    word: ClassVar[str] = ""
    many: ClassVar[bool] = False  # the one field is a tuple of arguments

    def __post_init__(self) -> None:
        if self.many and not self.arguments:
            raise ScheduleError(f"{self.word} names nothing", hint=f"write {self.form()}")
        for kind, value in zip(self.kinds(len(self.arguments)), self.arguments, strict=True):
            if why := kind.problem(value):
                raise ScheduleError(f"{self.word}: {why}", hint=kind.hint(value))

    @classmethod
    def kinds(cls, n: int) -> list[_Kind]:
        """The kinds of ``n`` arguments."""
        found = [f.metadata["kind"] for f in dataclasses.fields(cls)]
        return found * n if cls.many else found

    @property
    def arguments(self) -> tuple[Any, ...]:
        values = tuple(getattr(self, f.name) for f in dataclasses.fields(self))
        return tuple(values[0]) if self.many else values

    @classmethod
    def form(cls) -> str:
        names = [f.name for f in dataclasses.fields(cls)]
        return f"{cls.word}({', '.join(names)}{', ...' if cls.many else ''})"

    def __str__(self) -> str:
        return f"{self.word}({', '.join(map(str, self.arguments))})"


@dataclass(frozen=True)
class Split(Directive):
    """the axis goes in blocks of at most so many"""

    axis: str = _argument("axis", *AXES)
    extent: int = _argument("number")
    word: ClassVar[str] = "split"


@dataclass(frozen=True)
class Grain(Directive):
    """a mask is classified in blocks of so many columns"""

    axis: str = _argument("axis", *AXES)
    extent: int = _argument("number")
    word: ClassVar[str] = "grain"


@dataclass(frozen=True)
class Reorder(Directive):
    """the order of the loops, outermost first"""

    axes: tuple[str, ...] = _argument("axis", *AXES)
    word: ClassVar[str] = "reorder"
    many: ClassVar[bool] = True


@dataclass(frozen=True)
class Bind(Directive):
    """the rounds of a loop go to threads, workgroups or the lanes of one"""

    axis: str = _argument("axis", *AXES)
    to: str = _argument("level", *LEVELS)
    word: ClassVar[str] = "bind"


@dataclass(frozen=True)
class Stage(Directive):
    """tiles of an operand, of ``scores`` or of ``out`` are held in a space"""

    what: str = _argument("name")
    space: str = _argument("space", *SPACES)
    word: ClassVar[str] = "stage"


@dataclass(frozen=True)
class Pack(Directive):
    """an operand's tokens are copied to panels of so many, feature by feature, before the loops"""

    what: str = _argument("name")
    panel: int = _argument("number")
    word: ClassVar[str] = "pack"


@dataclass(frozen=True)
class Unroll(Directive):
    """so many rounds of a loop stand in its body"""

    axis: str = _argument("axis", *AXES)
    count: int = _argument("number")
    word: ClassVar[str] = "unroll"


@dataclass(frozen=True)
class Vectorize(Directive):
    """so many neighbours along an axis are one vector"""

    axis: str = _argument("axis", *AXES)
    count: int = _argument("number")
    word: ClassVar[str] = "vectorize"


@dataclass(frozen=True)
class Order(Directive):
    """of a backward: by rows, which add to the gradients of shared keys, or a row kernel and a column kernel"""

    by: str = _argument("order", *ORDERS)
    word: ClassVar[str] = "order"


@dataclass(frozen=True)
class SplitKeys(Directive):
    """of a forward: the keys go in so many parts at the same time, whose sums are merged"""

    parts: int = _argument("number")
    word: ClassVar[str] = "split-keys"


#: Directives by their words.
DIRECTIVES: dict[str, type[Directive]] = {
    d.word: d for d in (Split, Grain, Reorder, Bind, Stage, Pack, Unroll, Vectorize, Order, SplitKeys)
}


@dataclass(frozen=True)
class Schedule:
    """Directives in order. ``str`` and `parse` are inverse. What it does not say is for the cost model."""

    directives: tuple[Directive, ...] = ()

    @staticmethod
    def of(heads: int, rows: int, cols: int, grain: int = 0) -> Schedule:
        """Tile extents: ``heads`` problems, ``rows`` queries, ``cols`` keys at most per run; ``grain`` is the column
        extent at which a mask is classified."""
        return Schedule((Split("g", heads), Split("i", rows), Split("j", cols), Grain("j", grain or cols)))

    @staticmethod
    def parse(text: str) -> Schedule:
        """The schedule ``text`` spells; ParseError shows the place of what is wrong."""
        return _parse(text)

    def __str__(self) -> str:
        return " ".join(map(str, self.directives))

    def __iter__(self) -> Iterator[Directive]:
        return iter(self.directives)

    def every(self, kind: type[Directive]) -> Iterator[Any]:
        return (d for d in self.directives if type(d) is kind)

    def extent(self, axis: str) -> int:
        """The extent that ``axis`` is split to; 0 if it is not."""
        return next((d.extent for d in self.every(Split) if d.axis == axis), 0)

    def level(self, axis: str) -> str | None:
        """What the loop over ``axis`` is bound to."""
        return next((d.to for d in self.every(Bind) if d.axis == axis), None)

    def space(self, what: str) -> str:
        """Where tiles of ``what`` are held; empty where the backend decides."""
        return next((d.space for d in self.every(Stage) if d.what == what), "")

    def count(self, kind: type[Unroll] | type[Vectorize], axis: str) -> int | None:
        return next((d.count for d in self.every(kind) if d.axis == axis), None)

    @property
    def heads(self) -> int:
        return self.extent("g")

    @property
    def rows(self) -> int:
        return self.extent("i")

    @property
    def cols(self) -> int:
        return self.extent("j")

    @property
    def grain(self) -> int:
        return next((d.extent for d in self.every(Grain)), self.cols)

    @property
    def parts(self) -> int:
        """Parts that the keys go in, 1 if they go one after the other."""
        return next((d.parts for d in self.every(SplitKeys)), 1)

    @property
    def order(self) -> str:
        return next((d.by for d in self.every(Order)), "rows")

    @property
    def nest(self) -> tuple[str, ...]:
        """The loops over tiles, outermost first."""
        return next((d.axes for d in self.every(Reorder)), ("g", "i", "j"))

    def completed(self, default: Schedule) -> Schedule:
        """This schedule, with the tile extents of ``default`` where it gives none. A grain is no wider than a tile, and
        whole panels of what this schedule packs."""
        extents = [d for d in default if isinstance(d, (Split, Grain)) and d.axis in ("g", "i", "j")]
        cols = self.cols or default.cols
        given = {(d.word, d.axis): d for d in reversed(self.directives) if isinstance(d, (Split, Grain))}
        if all((d.word, d.axis) in given for d in extents):
            return self
        narrow = [
            Grain(d.axis, self._of_panels(min(d.extent, cols), cols)) if isinstance(d, Grain) else d for d in extents
        ]
        first = [given.pop((d.word, d.axis), d) for d in narrow]
        return Schedule((*first, *(d for d in self if not any(d is x for x in first))))

    def _of_panels(self, extent: int, most: int) -> int:
        """``extent``, or one near it that panels divide, if there is one up to ``most``."""
        panel = math.lcm(*(max(1, d.panel) for d in self.every(Pack)))
        return max(1, extent // panel) * panel if panel <= most else extent

    def with_extents(self, **extents: int) -> Schedule:
        """The same with other extents of tiles, by axis, and of the ``grain``; 0 leaves one as it is."""
        given: list[Directive] = [Split(a, n) for a, n in extents.items() if n and a != "grain"]
        given += [Grain("j", extents["grain"])] if extents.get("grain") else []
        new = {(d.word, d.axis): d for d in given}  # type: ignore[attr-defined]
        kept = [new.pop((d.word, getattr(d, "axis", "")), d) for d in self]
        return Schedule((*kept, *new.values()))

    def fitted(self) -> Schedule:
        """The same without register blocks and panels that its tiles are too small for, or do not divide into."""
        rows, cols = self.rows, self.cols
        kept: list[Directive] = []
        for d in self:
            if isinstance(d, Split) and d.axis == "ii":
                d = Split("ii", min(d.extent, rows))
            if isinstance(d, Split) and d.axis == "jj" and d.extent > cols:
                continue
            if isinstance(d, Vectorize) and d.axis in ("jj", "j") and d.count > cols:
                continue
            if isinstance(d, Pack) and (cols % d.panel or self.grain % d.panel):
                continue
            kept.append(d)
        return Schedule(tuple(kept))


_TOKEN = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:-[A-Za-z0-9_]+)*)|(?P<number>-?[0-9]+)|(?P<mark>[(),]))", re.ASCII
)


@dataclass
class _Reader:
    """Reads ``text`` from ``at`` on."""

    text: str
    at: int = 0

    def fail(self, message: str, at: int, hint: str | None = None) -> ParseError:
        before = self.text[:at]
        line, column = before.count("\n") + 1, at - (before.rfind("\n") + 1) + 1
        return ParseError(message, line=line, column=column, source=self.text, hint=hint)

    def done(self) -> bool:
        return not self.text[self.at :].strip()

    def take(self, kind: str, wanted: str) -> tuple[str, int]:
        """The next word of a kind, and where it begins."""
        m = _TOKEN.match(self.text, self.at)
        group = m.lastgroup if m else None
        if m is None or group != kind:
            rest = self.text[self.at :]
            start = m.start(group) if m and group else self.at + len(rest) - len(rest.lstrip())
            found = m[group] if m and group else self.text[start : start + 1]
            raise self.fail(f"expected {wanted}" + (f", found {found[:40]!r}" if found else ""), start, _FORM)
        self.at = m.end()
        return m[kind], m.start(kind)

    def mark(self, marks: str) -> str:
        found, start = self.take("mark", " or ".join(f"'{m}'" for m in marks))
        if found not in marks:
            raise self.fail(f"expected {' or '.join(marks)}, found {found!r}", start, _FORM)
        return found

    def directive(self) -> Directive:
        word, start = self.take("name", "a directive")
        kind = DIRECTIVES.get(word)
        if kind is None:
            close = difflib.get_close_matches(word[:40], DIRECTIVES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(DIRECTIVES)}"
            raise self.fail(f"there is no directive {word[:40]!r}", start, hint)
        self.mark("(")
        values: list[Any] = []
        while True:
            kinds = kind.kinds(len(values) + 1)
            if len(values) == len(kinds):
                raise self.fail(f"{word} takes {len(kinds)} arguments", self.at - 1, f"write {kind.form()}")
            values.append(self.argument(word, kinds[len(values)]))
            if self.mark(",)") == ")":
                break
        if len(values) < len(kind.kinds(len(values))):
            raise self.fail(f"{word} takes {len(kinds)} arguments", self.at - 1, f"write {kind.form()}")
        make: Callable[..., Directive] = kind
        return make(tuple(values)) if kind.many else make(*values)

    def argument(self, word: str, kind: _Kind) -> Any:
        token, start = self.take("number" if kind.name == "number" else "name", kind.wanted)
        value = token if kind.name != "number" else int(token[:12]) if len(token) <= 12 else 10**12
        if why := kind.problem(value):
            raise self.fail(f"{word}: {why[:80]}", start, kind.hint(value))
        return value


_FORM = "a schedule reads split(i, 64) split(j, 256) bind(i, threads)"


@lru_cache(maxsize=1024)
def _parse(text: str) -> Schedule:
    reader, found = _Reader(text), []
    while not reader.done():
        found.append(reader.directive())
    return Schedule(tuple(found))


def directives_table() -> str:
    """The directives as a Markdown table (docs/schedules.md holds it)."""
    lines = ["| directive | what it says |", "| --- | --- |"]
    lines += [f"| `{d.form()}` | {(d.__doc__ or '').strip()} |" for d in DIRECTIVES.values()]
    return "\n".join(lines) + "\n"
