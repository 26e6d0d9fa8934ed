"""Renormalisation flows: one coupling step by step, two in their plane, observables from scale to scale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from aatc.passes.analysis.result import Result
from aatc.passes.analysis.scale.fixed_points import FixedPoint
from aatc.passes.analysis.scale.renormalization_map import RenormalizationMap, RGFlow
from aatc.report.canvas import GREY, PictureError, labelled, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from aatc.analysis.run import Analysis

#: Points of a curve, and arrows along each axis of a plane.
_CURVE, _ARROWS = 241, 17
#: Markers of fixed points: full where all directions lead there, open where some lead away.
_MARKS = {"attractive": "o", "repulsive": "s", "saddle": "D", "marginal": "^"}


def rg_flow_figure(
    flows: RGFlow | Sequence[RGFlow],
    points: Iterable[FixedPoint] = (),
    *,
    labels: Sequence[str] = (),
    window: Sequence[tuple[float, float]] = (),
    title: str = "",
) -> Figure:
    """Flows of one map, or of observables of chains, with fixed ``points``.

    One coupling: the map, the diagonal, and each flow as steps between them. Two: arrows along R(x) − x, and each flow
    as a line. Without a map: each observable over the scale. ``window`` are the (least, largest) of each coupling, by
    default the map's domain. Full marks attract, open ones repel. Raises `PictureError` and `MissingLibraryError`.
    """
    drawn = [flows] if isinstance(flows, RGFlow) else list(flows)
    if not drawn or not all(isinstance(f, RGFlow) for f in drawn):
        raise PictureError("a picture of flows needs an RGFlow or more", hint="renormalization_flow(…).value")
    if len({(f.map, f.names) for f in drawn}) != 1:
        raise PictureError("flows of one picture are those of one map, or of the same observables")
    if labels and len(labels) != len(drawn):
        raise PictureError(f"{len(drawn)} flows have {len(labels)} labels")
    names = [*labels] or [""] * len(drawn)
    if drawn[0].map is None:
        figure = _observables(drawn, names)
    else:
        box = _window(drawn[0].map, window)
        figure = (_steps if len(box) == 1 else _plane)(drawn, drawn[0].map, list(points), names, box)
    if title:
        figure.suptitle(title)
    return figure


def head_flows(analysis: Analysis, batch: int | None = None) -> tuple[list[str], list[RGFlow]]:
    """Names and flows of every head: the share of weight that leaves blocks of 1, 2, 4, ... tokens; of the first batch
    element studied unless ``batch`` is given. Raises `PictureError` where the analysis holds none."""
    found: dict[str, RGFlow] = {}
    for f in analysis.select(item="block_escape"):
        if isinstance(f.result, Result) and (batch is None or f.batch == batch):
            shares = np.asarray(f.result.value)
            scales = 2.0 ** np.arange(len(shares))
            found.setdefault(f"{f.subject} head {f.head}", RGFlow(scales, shares[:, None], ("share that leaves",)))
    if not found:
        raise PictureError("no head has a share that leaves its blocks", hint="analyze(..., passes='scale') finds them")
    return list(found), list(found.values())


def _window(renormalization: RenormalizationMap, given: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    box = [*given] or [*renormalization.domain]
    d = len(renormalization.couplings)
    if d not in (1, 2) or len(box) != d or not all(np.isfinite(b).all() and b[0] < b[1] for b in box):
        raise PictureError(
            f"a map of {d} couplings in the window {box} has no picture",
            hint="maps of one or two couplings have one; window= says where",
        )
    return box


def _image(renormalization: RenormalizationMap, x: Sequence[float]) -> np.ndarray:
    """R(x), NaN where it leaves the numbers."""
    with torch.no_grad():
        image = renormalization.function(torch.tensor(x, dtype=torch.float64)).numpy()
    shown: np.ndarray = np.where(np.isfinite(image), image, np.nan)
    return shown


def _marked(axes: Any, points: Sequence[FixedPoint], places: Sequence[tuple[float, float]]) -> None:
    for p, (x, y) in zip(points, places, strict=True):
        full = "black" if p.kind == "attractive" else "white"
        axes.plot([x], [y], _MARKS[p.kind], markerfacecolor=full, markeredgecolor="black", markersize=7, zorder=5)
    for kind in dict.fromkeys(p.kind for p in points):
        full = "black" if kind == "attractive" else "white"
        axes.plot([], [], _MARKS[kind], markerfacecolor=full, markeredgecolor="black", label=kind)


def _steps(
    flows: Sequence[RGFlow], renormalization: RenormalizationMap, points: Sequence[FixedPoint], labels: Sequence[str],
    box: Sequence[tuple[float, float]],
) -> Figure:  # fmt: skip
    figure = new_figure(5.6, 5.2)
    axes = figure.add_subplot()
    ends = np.array(box[0])
    curve = np.linspace(box[0][0], box[0][1], _CURVE)
    axes.plot(ends, ends, color=GREY, linewidth=0.8)
    axes.plot(curve, [_image(renormalization, [x])[0] for x in curve], color="black", linewidth=1.4, label="R(x)")
    for number, (flow, label) in enumerate(zip(flows, labels)):
        x = flow.couplings[:, 0]
        corners = np.repeat(x, 2)  # up to the curve, over to the diagonal
        axes.plot(corners[:-1], np.concatenate([x[:1], corners[2:]]), **{**style(number), "linewidth": 1.0},
                  label=label or None)  # fmt: skip
    _marked(axes, points, [(p.couplings[0], p.couplings[0]) for p in points])
    name = renormalization.couplings[0]
    labelled(axes, name, f"{name}, {renormalization.factor:g} times coarser")
    axes.set(xlim=ends, ylim=ends)
    axes.legend(fontsize=8)
    return figure


def _plane(
    flows: Sequence[RGFlow], renormalization: RenormalizationMap, points: Sequence[FixedPoint], labels: Sequence[str],
    box: Sequence[tuple[float, float]],
) -> Figure:  # fmt: skip
    figure = new_figure(6.2, 5.2)
    axes = figure.add_subplot()
    x, y = (np.linspace(low, high, _ARROWS) for low, high in box)
    moved = np.array([[_image(renormalization, (a, b)) - (a, b) for a in x] for b in y])
    span = np.array([high - low for low, high in box])
    length = np.linalg.norm(moved / span, axis=-1, keepdims=True)
    arrows = moved / np.where(length > 0, length, 1)
    axes.quiver(x, y, arrows[..., 0] / span[0], arrows[..., 1] / span[1], color=GREY, pivot="mid", scale=28, width=3e-3)
    for number, (flow, label) in enumerate(zip(flows, labels)):
        axes.plot(*flow.couplings.T, **{**style(number), "linewidth": 1.2}, marker=".", label=label or None)
    _marked(axes, points, [(p.couplings[0], p.couplings[1]) for p in points])
    labelled(axes, *renormalization.couplings)
    margin = span * 0.03
    axes.set(xlim=(box[0][0] - margin[0], box[0][1] + margin[0]), ylim=(box[1][0] - margin[1], box[1][1] + margin[1]))
    if points or any(labels):
        axes.legend(fontsize=8)
    return figure


def _observables(flows: Sequence[RGFlow], labels: Sequence[str]) -> Figure:
    count = len(flows[0].names)
    figure = new_figure(5.4 * count, 4.2)
    for place, name in enumerate(flows[0].names):
        axes = figure.add_subplot(1, count, place + 1)
        for number, (flow, label) in enumerate(zip(flows, labels)):
            axes.plot(flow.scales, flow.couplings[:, place], **style(number), marker=".", label=label or None)
        axes.set_xscale("log", base=2)
        if all((flow.couplings[:, place] > 0).all() for flow in flows):
            axes.set_yscale("log")
        labelled(axes, "scale", name)
    if any(labels):
        axes.legend(fontsize=7)
    return figure
