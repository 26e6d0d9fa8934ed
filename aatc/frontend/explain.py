"""`compiled.explain()`: what was fused, tiled and proved, what was left to PyTorch and why, in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class AttentionInfo:
    """One attention of the model. ``lowering`` is how it runs; ``certificates`` are the facts its rewrites
    rest on; ``loc`` is the model's source line."""

    name: str
    kind: str
    lowering: str
    schedule: str
    certificates: tuple[Any, ...]
    loc: str
    graph: int


@dataclass(frozen=True)
class Fallback:
    """A part that PyTorch runs as it did before: the operation, the model's source line, and why."""

    op: str
    loc: str
    reason: str
    hint: str = ""


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
    """What became of a model. ``str()`` is a report for people; ``html(path)`` writes it as one page."""

    model: str
    backend: str
    attentions: tuple[AttentionInfo, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    passes: tuple[PassInfo, ...] = ()
    graphs: tuple[GraphInfo, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterable[str]:
        yield f"{self.model} compiled by aatc for {self.backend}"
        yield f"  {self.summary}"
        if not self.graphs and not self.fallbacks:
            yield "  Nothing was compiled yet: graphs are made when the model is first called."
        yield from ("  " + n for n in self.notes)
        if self.attentions:
            yield ""
            yield "Attentions"
            for a in self.attentions:
                yield f"  {a.name}  {a.loc}".rstrip()
                yield from _fields([("kind", a.kind), ("runs as", a.lowering), ("schedule", a.schedule)])
                for n, c in enumerate(a.certificates):
                    yield f"      {'proved' if not n else '':9} {c}"
        if self.fallbacks:
            yield ""
            yield "Left to PyTorch"
            for f in self.fallbacks:
                yield f"  {f.op}  {f.loc}".rstrip()
                yield from _fields([("why", f.reason), ("try", f.hint)])
        if self.graphs:
            yield ""
            yield "Graphs"
            yield from _table(("#", "operations", "attentions", "compile", "inputs that vary", "made because"), map(_graph_row, self.graphs))
            for g in self.graphs:
                if g.ended:
                    yield f"  graph {g.index} ends at {g.ended}"
        if self.passes:
            yield ""
            yield "Passes"
            yield from _table(("pass", "time", "rewrites"), (_pass_row(p) for p in self.passes))
            for p in self.passes:
                yield from (f"  {p.name}: {n}" for n in p.notes)

    @property
    def summary(self) -> str:
        """One sentence."""
        made = sum(g.compiled for g in self.graphs)
        parts = [_count(made, "graph"), _count(len(self.attentions), "attention")]
        left = f"{_count(len(self.fallbacks), 'part')} left to PyTorch" if self.fallbacks else "nothing left to PyTorch"
        return f"{', '.join(parts)}, {left}"

    def html(self, path: str | Path) -> Path:
        """Writes a page that needs no other file; returns its path."""
        from aatc.frontend.page import page

        target = Path(path)
        target.write_text(page(self), "utf-8")
        return target


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
    return p.name, milliseconds(p.seconds), rewrites(p.rewrites)


def rewrites(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{rule} ×{n}" for rule, n in counts.items()) or "none"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
