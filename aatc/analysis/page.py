"""An analysis as one self-contained HTML page: heat maps, persistence diagrams, and every value with its meaning."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from aatc.analysis.items import LEGEND, item_of
from aatc.analysis.records import level_of
from aatc.analysis.report import name, shared_by_causal, summary, value_text
from aatc.passes.analysis.cohomology.persistence import Barcodes
from aatc.passes.analysis.result import Result

if TYPE_CHECKING:
    from aatc.analysis.run import Analysis
    from aatc.passes.analysis.attention_rows import AttentionRows
    from aatc.passes.analysis.base import Finding

#: Pixels a side of a heat map, at most; longer patterns are shown by the means of their tiles.
PIXELS = 192
#: Heads of one attention that are drawn; bars of one degree in a diagram, the longest ones.
HEADS = 16
BARS = 300

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem; border-bottom: 1px solid #ddd }
td.value { font: 13px/1.5 ui-monospace, monospace; white-space: nowrap } td.says { color: #555; min-width: 20rem }
th { white-space: nowrap } .licence { font-weight: 500; color: #2a5d2a }
.maps { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 } figcaption { font-size: 13px; color: #555 }
img.map { width: 192px; height: 192px; image-rendering: pixelated; border: 1px solid #ccc }
.table { overflow-x: auto } .note { color: #666 } input { font: inherit; padding: .2rem .5rem; width: 20rem }
abbr { text-decoration: none; border-bottom: 1px dotted #888; cursor: help } tr.hidden { display: none }
"""

# Shows the rows that hold what is typed. The page says all of it without this.
_SCRIPT = """
const field = document.getElementById('wanted'), rows = [...document.querySelectorAll('tr[data-item]')];
field.addEventListener('input', () => {
  const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.classList.toggle('hidden', !words.every(word => text.includes(word)));
  }
});
addEventListener('load', () => {
  const drawn = [...document.images].filter(image => image.naturalWidth > 0).length;
  document.body.dataset.drawn = `${drawn} of ${document.images.length}`;
});
"""


def page(analysis: Analysis, title: str = "Attention") -> str:
    """The page's text; everything from the model is escaped, and nothing is loaded from elsewhere. Pictures need
    matplotlib: without it the page has none, and says so."""
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f"<p>{escape(line)}</p>" for line in summary(analysis)]
    parts += ['<p><label>Show only rows with <input id="wanted" type="search"></label></p>', *_legend()]
    if _imaging() is None:
        parts.append('<p class="note">Pictures are drawn with matplotlib: pip install "aatc[report]"</p>')
    for seen in analysis.captured:
        parts += _attention(analysis, seen)
    for subject, heading in (("layers", "All layers together"), ("ir", "The program")):
        found = [f for f in analysis.findings if f.subject == subject]
        if found:
            parts += [f"<h2>{heading}</h2>", *_pictures_of_layers(found), *_table(found, found)]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _legend() -> list[str]:
    rows = "".join(f"<tr><th>{level}</th><td>{escape(text)}</td></tr>" for level, text in LEGEND.items())
    return [f'<table id="legend"><caption>How sure a value is</caption>{rows}</table>']


def _attention(analysis: Analysis, seen: AttentionRows) -> list[str]:
    b, h, n, m = seen.sizes
    found = [f for f in analysis.findings if f.subject == seen.name]
    place = f" in {seen.where}" if seen.where else ""
    parts = [f"<h2>{escape(seen.name)}</h2>", f"<p>{h} heads, {n} queries, {m} keys{escape(place)}</p>"]
    if seen.improper:
        return parts + _table(found, found)
    if _imaging() is not None:
        drawn = [(e, k) for e in range(b) for k in range(h)][:HEADS]
        parts.append("<p>Weights: queries down, keys across, shades by square roots.</p>")
        parts.append('<div class="maps">' + "".join(_map(seen, e, k, b > 1) for e, k in drawn) + "</div>")
        bars = [
            (f, f.result.value) for f in found if isinstance(f.result, Result) and isinstance(f.result.value, Barcodes)
        ]
        parts.append('<div class="maps">' + "".join(_diagram(f, v, b > 1) for f, v in bars[:HEADS]) + "</div>")
    left = sorted({f.item for f in found if shared_by_causal(analysis, seen, f.item)})
    if left:
        names = ", ".join(map(name, left))
        parts.append(f'<p class="note">The same for every causal pattern, and left out here: {escape(names)}.</p>')
    shown = [f for f in found if f.item not in left]
    for family in dict.fromkeys(f.family for f in shown):
        parts += _table([f for f in shown if f.family == family], found, family)
    return parts


def _table(found: Sequence[Finding], of: Sequence[Finding], caption: str = "") -> list[str]:
    """A row an item, a column a pattern, then unit, level, sentence and licence."""
    patterns = list(dict.fromkeys((f.batch, f.head) for f in found))
    batches = len({b for b, _ in {(f.batch, f.head) for f in of}}) > 1
    by = {(f.item, f.batch, f.head): f.result for f in found}
    heads = [_pattern_name(b, h, batches) for b, h in patterns]
    head = "".join(f"<th>{escape(t)}</th>" for t in ("", *heads, "unit", "level", "what it says, and what it licenses"))
    rows = [f"<tr>{head}</tr>"]
    for title in dict.fromkeys(f.item for f in found):
        results = [by.get((title, b, h)) for b, h in patterns]
        cells = "".join(f'<td class="value">{_cell(r)}</td>' for r in results)
        levels = sorted({level_of(r) for r in results if r is not None})
        tips = "".join(f'<abbr title="{escape(LEGEND.get(v, v))}">{v}</abbr> ' for v in levels)
        item = item_of(title)
        licence = f' <b class="licence">{escape(item.licenses)}</b>' if item.licenses else ""
        rows.append(
            f'<tr data-item="{escape(title)}"><th>{escape(name(title))}</th>{cells}<td>{escape(item.unit)}</td>'
            f'<td>{tips}</td><td class="says">{escape(item.says)}{licence}</td></tr>'
        )
    text = f"<caption>{escape(caption)}</caption>" if caption else ""
    return [f'<div class="table"><table>{text}{"".join(rows)}</table></div>']


def _pattern_name(batch: int, head: int, batches: bool) -> str:
    words = [f"batch {batch}"] if batches and batch >= 0 else []
    return " ".join([*words, f"head {head}"]) if head >= 0 else " ".join(words) or "value"


def _cell(result: Any) -> str:
    if result is None:
        return ""
    notes = "; ".join(result.assumptions) if isinstance(result, Result) else str(result)
    text = escape(value_text(result))
    return f'<abbr title="{escape(notes)}">{text}</abbr>' if notes else text


# --- pictures ----------------------------------------------------------------------------------------------
def _imaging() -> Any:
    try:
        import matplotlib.image
    except ImportError:
        return None
    return matplotlib.image


def _png(array: np.ndarray) -> str:
    """A picture of values up to size 1, as a data address."""
    from aatc.report.canvas import colours

    out = io.BytesIO()
    _imaging().imsave(out, array, **colours(np.append(array, [0.0, 1.0])), format="png")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _shades(weights: np.ndarray) -> np.ndarray:
    """Square roots of shares of the largest size, with the sign: light ones stay visible beside heavy ones."""
    top = float(np.abs(weights).max(initial=0.0))
    return np.sign(weights) * np.sqrt(np.abs(weights) / top) if top > 0 else weights


def _figure(picture: str, alt: str, caption: str, css: str = "map") -> str:
    return (
        f'<figure><img class="{css}" src="{picture}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _map(seen: AttentionRows, batch: int, head: int, batches: bool) -> str:
    pooled = seen.coarse(head, batch, nodes=PIXELS)
    title = _pattern_name(seen.batch[batch], head, batches)
    tiles = "" if pooled.block == 1 else f", tiles of {pooled.block} tokens"
    top = float(pooled.array.max(initial=0.0))
    alt = f"Weights of {seen.name}, {title}: rows are queries, columns keys"
    return _figure(_png(_shades(pooled.array)), alt, f"{title}, at most {top:.3g}{tiles}")


def _diagram(f: Finding, value: Barcodes, batches: bool) -> str:
    """Births and deaths of the longest bars of each degree."""
    from aatc.report.canvas import COLOURS, new_figure

    figure = new_figure(2.6, 2.4)
    axes = figure.add_subplot()
    kept, total = [], 0
    for degree, bars in enumerate(value.bars):
        finite = bars[np.isfinite(bars[:, 1])]
        total += len(bars)
        longest = finite[np.argsort(finite[:, 0] - finite[:, 1])[:BARS]]
        kept.append(longest)
        axes.scatter(
            longest[:, 0], longest[:, 1], s=7, color=COLOURS[degree], label=f"H{degree}", marker="o^s"[degree % 3]
        )
    low, high = (g(x.min(), x.max()) for g, x in ((min, _all(kept)), (max, _all(kept))))
    axes.plot([low, high], [low, high], color="#7f7f7f", linewidth=0.8)
    axes.set_xlabel("birth (nats)")
    axes.set_ylabel("death (nats)")
    axes.legend(loc="lower right", fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    picture = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    title = _pattern_name(f.batch, f.head, batches)
    shown = sum(map(len, kept))
    note = f"{title}: the {shown} longest finite bars of {total}" if shown < total else f"{title}: {total} bars"
    return _figure(picture, f"Persistence diagram of {f.subject}, {title}", note, "diagram")


def _all(parts: Iterable[np.ndarray]) -> np.ndarray:
    found = np.concatenate([p.reshape(-1) for p in parts])
    return found if len(found) else np.array([0.0, 1.0])


def _pictures_of_layers(found: Sequence[Finding]) -> list[str]:
    if _imaging() is None:
        return []
    pictures = []
    for f in found:
        value = f.result.value if isinstance(f.result, Result) else None
        if isinstance(value, np.ndarray) and value.ndim == 2 and value.size:
            step = -(-max(value.shape) // PIXELS)
            title = f"{name(f.item)}: tokens behind the last layer down, input tokens across"
            pictures.append(_figure(_png(_shades(value[::step, ::step])), name(f.item), title))
    return ['<div class="maps">' + "".join(pictures) + "</div>"] if pictures else []
