"""Graphs whose edges are coloured by their Ricci curvature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from aatc.geometry.flows.graph_curvature import EdgeCurvature
from aatc.report.canvas import (
    COLOURS,
    GREY,
    ROUNDING,
    PictureError,
    array,
    colours,
    deviations,
    heading,
    labelled,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX*<>hd"


def curvature_graph_figure(
    curvature: EdgeCurvature, positions: Tensor, *, groups: Tensor | None = None, title: str = ""
) -> Figure:
    """A graph in the plane with edges coloured by curvature, dashed where it is negative, and their histogram.

    ``positions`` (V, 2) of the nodes; ``groups`` (V,), integers, give nodes of one group one marker. Raises
    `PictureError` and `MissingLibraryError`.
    """
    graph, count = curvature.graph, len(curvature.graph.nodes)
    place = array("the positions", positions, ndim=2)
    if place.shape != (count, 2) or (groups is not None and tuple(groups.shape) != (count,)):
        raise PictureError(f"{count} nodes need positions ({count}, 2) and groups ({count},), not {place.shape}")
    values, edges = array("the curvature", curvature.curvature, ndim=1), graph.edges.cpu().numpy()
    label, (shown,), constant = deviations("Ricci curvature of the edge (dashed: negative)", [values], 1.0)
    look, least = colours(shown), -ROUNDING * float(np.abs(values).max(initial=1.0))
    figure = new_figure(10.5, 5.2)
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    plane, histogram = figure.subplots(1, 2, width_ratios=(1.7, 1.0))
    lines = LineCollection(
        list(place[edges]),
        array=shown,
        cmap=look["cmap"],
        linewidths=1.8,
        path_effects=[withStroke(linewidth=2.8, foreground=GREY)],
        linestyles=["dashed" if value < least else "solid" for value in values],
    )
    lines.set_clim(look["vmin"], look["vmax"])
    plane.add_collection(lines)
    figure.colorbar(lines, ax=plane, label=label, shrink=0.85)
    members = np.zeros(count, dtype=int) if groups is None else groups.cpu().numpy()
    for number, group in enumerate(np.unique(members)):
        here = place[members == group]
        plane.plot(
            *here.T,
            linestyle="none",
            marker=_MARKERS[number % len(_MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            markeredgecolor="white",
            markersize=7,
            label=None if groups is None else f"{group}",
        )
    plane.set_aspect("equal", adjustable="datalim")
    plane.set(xlabel="position x", ylabel="position y")
    if groups is not None:
        plane.legend(title="group", fontsize=8)
    between = None if constant is None else (constant - 0.5, constant + 0.5)
    bins = min(30, max(5, len(values) // 4))
    histogram.hist(values, bins=bins, range=between, color=COLOURS[0], edgecolor="white")
    histogram.yaxis.set_major_locator(MaxNLocator(integer=True))
    histogram.axvline(0, color="black", linewidth=1.0)
    labelled(histogram, "Ricci curvature", "edges")
    heading(figure, title)
    return figure
