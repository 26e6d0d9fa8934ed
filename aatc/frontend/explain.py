"""`compiled.explain()`: what was fused, tiled and proved, what was left to PyTorch and why, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aatc.frontend.page import milliseconds, page, rewrites

#: Lowering classes, joined by + when several apply; a number counts columns that were added to q and k.
LOWERINGS = {
    "G": "one contraction of q and k, mapped per token",
    "E": "a function of contractions of q and k",
    "B": "a bias computed from positions",
    "D": "a stored bias, read tile by tile",
    "T2": "values transported by two extra contractions",
    "P": "every pair of coordinates, tile by tile",
}
#: Notes of one pass that the text shows.
NOTES = 8
ENGINES = {"library": "PyTorch's fused attention", "stream": "a loop over tiles"}


@dataclass(frozen=True)
class AttentionInfo:
    """One attention of the model. ``lowering`` is its class (`LOWERINGS` says what the letters mean),
    ``engine`` what runs it, ``arena_bytes`` the memory it works in besides inputs and outputs;
    ``certificates`` are the facts its rewrites rest on; ``loc`` is the model's source line; ``double_calls`` counts
    the calls that took double precision, because single precision would have lost digits of the score, or single
    precision, because products of bfloat16 would have left their range. ``origins`` says
    by direction where its schedule comes from: "default" (the cost model's), "tuned", "imported" or "given"."""

    name: str
    kind: str
    lowering: str
    schedule: str
    certificates: tuple[Any, ...]
    loc: str
    graph: int
    engine: str = ""
    arena_bytes: int = 0
    double_calls: int = 0
    origins: tuple[tuple[str, str], ...] = ()

    @property
    def chosen(self) -> str:
        """Where the schedules come from, in words."""
        words = dict.fromkeys(word for _, word in self.origins)
        return "".join(words) if len(words) < 2 else ", ".join(f"{d} {word}" for d, word in self.origins)

    @property
    def runs_as(self) -> str:
        """The lowering in words."""
        words, columns = [], 0
        for part in filter(None, self.lowering.split("+")):
            if part.isdigit():
                columns += int(part)
            else:
                words.append(LOWERINGS.get(part, part))
        if columns:
            words.append(f"{_count(columns, 'column')} added to q and k")
        meaning = ", ".join(words)
        engine = ENGINES.get(self.engine, self.engine)
        return f"{engine}: {meaning}" if engine and meaning else engine or meaning


@dataclass(frozen=True)
class Fallback:
    """A part that PyTorch runs as it did before: the operation, the model's source line, why, and in how many calls
    so far (0 where that is not known)."""

    op: str
    loc: str
    reason: str
    hint: str = ""
    calls: int = 0


@dataclass(frozen=True)
class PassInfo:
    """A compiler pass: total seconds and rewrites over all graphs, and what it had to say."""

    name: str
    seconds: float
    rewrites: dict[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class GraphInfo:
    """One compiled graph. ``recompiled`` is the guard whose failure made it, ``ended`` the graph break."""

    index: int
    inputs: tuple[str, ...]
    operations: int
    attentions: int
    seconds: dict[str, float]
    recompiled: str = ""
    ended: str = ""
    compiled: bool = True


@dataclass(frozen=True)
class Explanation:
    """What became of a model. ``str()`` is a report for people; ``html(path)`` writes it as one page.

    ``calls`` counts the calls so far, ``elsewhere`` those in which no compiled graph ran."""

    model: str
    backend: str
    attentions: tuple[AttentionInfo, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    passes: tuple[PassInfo, ...] = ()
    graphs: tuple[GraphInfo, ...] = ()
    notes: tuple[str, ...] = field(default=())
    calls: int = 0
    elsewhere: int = 0

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterable[str]:
        yield f"{self.model} compiled by aatc for {self.backend}"
        yield f"  {self.summary}"
        if not self.graphs and not self.fallbacks and not self.calls:
            yield "  Nothing was compiled yet: graphs are made when the model is first called."
        yield from ("  " + n for n in self.notes)
        if self.attentions:
            yield ""
            yield "Attentions"
            for group in _alike(self.attentions):
                a = group[0]
                yield f"  {_names(group)}  {a.loc}".rstrip()
                memory = f"{a.arena_bytes / 2**20:.2f} MiB" if a.arena_bytes else ""
                shown = [
                    ("kind", a.kind),
                    ("runs as", a.runs_as),
                    ("schedule", a.schedule),
                    ("chosen", a.chosen),
                    ("works in", memory),
                    ("digits", _digits(sum(x.double_calls for x in group))),
                ]
                yield from _fields(shown)
                for n, c in enumerate(a.certificates):
                    yield f"      {'proved' if not n else '':9} {c}"
        if self.fallbacks:
            yield ""
            yield "Left to PyTorch"
            for f in self.fallbacks:
                yield f"  {f.op}  {f.loc}".rstrip()
                yield from _fields([("why", f.reason), ("calls", str(f.calls or "")), ("try", f.hint)])
        if self.graphs:
            yield ""
            yield "Graphs"
            yield from _table(
                ("#", "operations", "attentions", "compile", "sizes that vary", "made because"),
                map(_graph_row, self.graphs),
            )
            for g in self.graphs:
                if g.ended:
                    yield f"  graph {g.index} ends at {g.ended}"
        if self.passes:
            yield ""
            yield "Passes"
            yield from _table(("pass", "time", "rewrites"), (_pass_row(p) for p in self.passes))
            for p in self.passes:
                yield from (f"  {_short(p.name)}: {n}" for n in p.notes[:NOTES])
                if len(p.notes) > NOTES:
                    yield f"  {_short(p.name)}: and {len(p.notes) - NOTES} more notes, in .passes"

    @property
    def summary(self) -> str:
        """One sentence."""
        made = sum(g.compiled for g in self.graphs)
        parts = [_count(made, "graph"), _count(len(self.attentions), "attention")]
        if self.fallbacks:
            parts.append(f"{_count(len(self.fallbacks), 'part')} left to PyTorch")
        if self.elsewhere:
            parts.append(f"{self.elsewhere} of {_count(self.calls, 'call')} ran in PyTorch alone")
        if not self.fallbacks and not self.elsewhere:
            parts.append("nothing left to PyTorch")
        return ", ".join(parts)

    def html(self, path: str | Path) -> Path:
        """Writes a page that needs no other file; returns its path."""
        target = Path(path)
        target.write_text(page(self), "utf-8")
        return target


def _alike(attentions: Sequence[AttentionInfo]) -> list[list[AttentionInfo]]:
    """Attentions that differ in name only, as those of a model's layers do, together."""
    groups: dict[Any, list[AttentionInfo]] = {}
    for a in attentions:
        key = (
            a.kind,
            a.lowering,
            a.engine,
            a.schedule,
            a.origins,
            a.arena_bytes,
            tuple(map(str, a.certificates)),
            a.loc,
            a.graph,
        )
        groups.setdefault(key, []).append(a)
    return list(groups.values())


def _names(group: Sequence[AttentionInfo]) -> str:
    names = [a.name for a in group]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} to {names[-1]} ({len(names)} alike)"


def _digits(calls: int) -> str:
    if not calls:
        return ""
    why = "tokens far apart, or close to each other; single precision for tokens too long for products of bfloat16"
    return f"double precision in {_count(calls, 'call')}: {why}"


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def _fields(pairs: Sequence[tuple[str, str]]) -> Iterable[str]:
    for name, value in pairs:
        if value:
            first, *rest = str(value).splitlines()
            yield f"      {name:9} {first}"
            yield from (f"      {'':9} {line}" for line in rest)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[c]) for line in lines) for c in range(len(head))]
    for line in lines:
        yield ("  " + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))).rstrip()


def _graph_row(g: GraphInfo) -> tuple[str, ...]:
    varying = ", ".join(g.inputs) or "none"
    if not g.compiled:
        return str(g.index), "-", "-", "failed", varying, g.recompiled or "first call"
    return (
        str(g.index), str(g.operations), str(g.attentions), milliseconds(sum(g.seconds.values())), varying,
        g.recompiled or "first call",
    )  # fmt: skip


def _pass_row(p: PassInfo) -> tuple[str, ...]:
    return _short(p.name), milliseconds(p.seconds), rewrites(p.rewrites)


def _short(name: str) -> str:
    """A pass without options that would fill the page, such as a file of schedules."""
    return name if len(name) <= 60 else f"{name.partition('{')[0]}{{...}}"
