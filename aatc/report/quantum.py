"""Bloch vectors in their ball, and entropies head by head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from aatc.passes.analysis.result import Result
from aatc.report.canvas import GREY, PictureError, array, colours, heading, labelled, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from aatc.analysis.run import Analysis

#: Points of a great circle.
_CIRCLE = 97
#: The most Bloch vectors that carry a name.
_NAMED = 24


def bloch_figure(vectors: Tensor, labels: Sequence[str] = (), *, title: str = "") -> Figure:
    """Bloch vectors (3,) or (n, 3) in the unit ball, and seen along its axes.

    The ball's poles are |0⟩ above and |1⟩ below; on the surface a state is pure. Raises `PictureError` for vectors that
    leave the ball, and `MissingLibraryError`.
    """
    points = array("Bloch vectors", vectors, ndim=(1, 2)).reshape(-1, vectors.shape[-1])
    if points.shape[1] != 3 or (np.linalg.norm(points, axis=1) > 1 + 1e-5).any():
        raise PictureError(f"Bloch vectors have three components and lengths up to 1, not {points.shape}, "
                           f"{np.linalg.norm(points, axis=1).max():.3g}")  # fmt: skip
    if labels and len(labels) != len(points):
        raise PictureError(f"{len(points)} vectors have {len(labels)} labels")
    figure = new_figure(11.0, 4.6)
    grid = figure.add_gridspec(1, 3, width_ratios=(1.25, 1.0, 1.0))
    ball: Any = figure.add_subplot(grid[0], projection="3d")
    turn = np.linspace(0, 2 * np.pi, _CIRCLE)
    circle = np.stack([np.cos(turn), np.sin(turn)])
    for axis in range(3):
        ring = np.insert(circle, axis, 0.0, axis=0)
        ball.plot(*ring, color=GREY, linewidth=0.6)
    for number, (x, y, z) in enumerate(points):
        colour = style(number)["color"]
        ball.plot([0, x], [0, y], [0, z], color=colour, linewidth=1.2)
        ball.plot([x], [y], [z], marker="os^D"[number % 4], color=colour, markersize=4)
    for where, name in (((0, 0, 1.12), "|0⟩"), ((0, 0, -1.2), "|1⟩"), ((1.15, 0, 0), "|+⟩"), ((0, 1.15, 0), "|+i⟩")):
        ball.text(*where, name, ha="center", va="center", fontsize=9)
    ball.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
    ball.set_box_aspect((1, 1, 1), zoom=1.35)
    ball.set_axis_off()
    for place, (across, up) in enumerate(((0, 2), (1, 2)), 1):
        axes = figure.add_subplot(grid[place])
        axes.plot(*circle, color=GREY, linewidth=0.8)
        for number, point in enumerate(points):
            label = labels[number] if labels and number < _NAMED else None
            axes.plot(point[across], point[up], "os^D"[number % 4], color=style(number)["color"], label=label)
        labelled(axes, f"⟨{'XYZ'[across]}⟩", f"⟨{'XYZ'[up]}⟩")
        axes.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), aspect="equal")
    if labels:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    heading(figure, title)
    return figure


def head_table(analysis: Analysis, item: str, batch: int | None = None) -> tuple[list[str], Tensor]:
    """Names of the attentions and the numbers (attentions, heads) of an item of the report, NaN where there is none; of
    the first batch element studied unless ``batch`` is given. Raises `PictureError` where the item was never found."""
    found: dict[tuple[str, int], float] = {}
    for f in analysis.select(item=item):
        if f.head >= 0 and isinstance(f.result, Result) and (batch is None or f.batch == batch):
            found.setdefault((f.subject, f.head), float(f.result.value))
    if not found:
        raise PictureError(f"no head has a number called {item!r}", hint="analyze(..., passes=('quantum',)) finds them")
    names = list(dict.fromkeys(subject for subject, _ in found))
    table = torch.full((len(names), 1 + max(head for _, head in found)), math.nan, dtype=torch.float64)
    for (subject, head), value in found.items():
        table[names.index(subject), head] = value
    return names, table


def entropy_figure(
    entropies: Tensor | Mapping[str, Tensor], names: Sequence[str] = (), *, bound: float | None = None, title: str = ""
) -> Figure:
    """Entropies (attentions, heads) in nats as a map with their numbers, one panel for each entry of a mapping.

    ``names`` of the attentions from above; ``bound``: the largest entropy that there could be, such as log n, where
    colours end. Conditional entropies may be negative. NaN marks what was not found. Raises `PictureError`
    and `MissingLibraryError`.
    """
    panels = dict(entropies) if isinstance(entropies, Mapping) else {"entropy": entropies}
    tables = {}
    for name, table in panels.items():
        if table.ndim != 2 or not table.numel() or not bool(table.isfinite().any()):
            raise PictureError(f"entropies {name} have shape (attentions, heads), not {tuple(table.shape)}")
        tables[name] = np.ma.masked_invalid(table.detach().cpu().double().numpy())
    if not tables:
        raise PictureError("there are no entropies to draw")
    rows = max(t.shape[0] for t in tables.values())
    if names and any(t.shape[0] != len(names) for t in tables.values()):
        raise PictureError(f"{len(names)} names for {rows} attentions")
    figure = new_figure(max(4.0, 1.6 + 0.55 * sum(t.shape[1] for t in tables.values())), 1.9 + 0.42 * rows)
    axes = np.atleast_1d(figure.subplots(1, len(tables), squeeze=False)[0])
    for place, (name, shown) in zip(axes, tables.items()):
        top = float(shown.max()) if bound is None else bound
        image = place.imshow(shown, **colours(np.append(shown.compressed(), [0.0, max(top, 1e-12)])), aspect="auto")
        for (i, j), value in np.ndenumerate(shown.filled(np.nan)):
            if np.isfinite(value):
                light = np.dot(image.cmap(image.norm(value))[:3], (0.299, 0.587, 0.114))
                colour = "black" if light > 0.5 else "white"
                place.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)
        place.set(
            xlabel="head", ylabel="attention", title=name, xticks=range(shown.shape[1]), yticks=range(shown.shape[0])
        )
        place.set_yticklabels(names or [str(n) for n in range(shown.shape[0])])
        figure.colorbar(image, ax=place, label="nats")
    heading(figure, title)
    return figure
