"""An explanation as a self-contained HTML page. Everything from the model is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aatc.frontend.explain import Explanation

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #ddd }
th { font-weight: 600 } code { font: 13px/1.4 ui-monospace, monospace; white-space: pre-wrap }
.note { color: #666 }
"""


def rewrites(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{rule} ×{n}" for rule, n in counts.items() if n) or "none"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def page(e: Explanation) -> str:
    """The page's text."""
    title = f"{e.model} compiled by aatc for {e.backend}"
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(e.summary)}</p>"]
    parts += [f'<p class="note">{escape(n)}</p>' for n in e.notes]
    parts += _section(
        "Attentions",
        ("attention", "kind", "runs as", "schedule", "chosen", "proved", "source"),
        (
            (a.name, a.kind, a.runs_as, a.schedule, a.chosen, "\n".join(map(str, a.certificates)), a.loc)
            for a in e.attentions
        ),
    )
    parts += _section(
        "Left to PyTorch",
        ("operation", "source", "why", "try", "calls"),
        ((f.op, f.loc, f.reason, f.hint, f.calls or "") for f in e.fallbacks),
    )
    parts += _section(
        "Graphs",
        ("#", "operations", "attentions", "compile", "sizes that vary", "made because", "ended by"),
        (
            (g.index, g.operations, g.attentions, milliseconds(sum(g.seconds.values())),
             ", ".join(g.inputs) or "none", g.recompiled or "first call", g.ended)
            for g in e.graphs
        ),
    )  # fmt: skip
    parts += _section(
        "Passes",
        ("pass", "time", "rewrites", "notes"),
        ((p.name, milliseconds(p.seconds), rewrites(p.rewrites), "\n".join(p.notes)) for p in e.passes),
    )
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _section(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    found = list(rows)
    if not found:
        return []
    lines = [
        f"<h2>{escape(title)}</h2>",
        "<table>",
        "<tr>" + "".join(f"<th>{escape(h)}</th>" for h in head) + "</tr>",
    ]
    lines += ["<tr>" + "".join(f"<td><code>{escape(str(c))}</code></td>" for c in row) + "</tr>" for row in found]
    return [*lines, "</table>"]
