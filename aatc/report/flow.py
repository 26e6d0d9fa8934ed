"""Flows over time: states side by side above the curves of their invariants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aatc.geometry.flows.attention_flow import AttentionTrajectory
from aatc.geometry.flows.conformal_flow import ConformalTrajectory
from aatc.geometry.flows.flow_trajectory import FlowTrajectory, Singularity
from aatc.report.canvas import GREY, PictureError, array, colours, deviations, heading, labelled, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

Trajectory = FlowTrajectory | ConformalTrajectory | AttentionTrajectory


@dataclass(frozen=True)
class _Curves:
    """One panel: the name of the vertical axis, lines of (name, times, values), the size of what cancels in them."""

    label: str
    lines: tuple[tuple[str, np.ndarray, np.ndarray], ...]
    scale: float = 0.0


@dataclass(frozen=True)
class _Course:
    """What is drawn of a flow: ``fields`` (S, N) or (S, N1, N2) called ``name`` at ``times`` (S,), and the curves.

    ``ordered``: neighbouring samples are neighbours in space, and lines may join them.
    """

    times: np.ndarray
    fields: np.ndarray
    name: str
    axes: tuple[str, str]
    curves: tuple[_Curves, ...]
    ordered: bool = True


def flow_figure(
    trajectory: Trajectory, *, snapshots: int = 4, singular: Sequence[Singularity] = (), title: str = ""
) -> Figure:
    """About ``snapshots`` states of a flow, the first and the last among them, and its invariants over time.

    Of a `FlowTrajectory`: how volume has grown at each sample since the start, √(det g/det g₀), which no choice of
    chart changes, the volume and the scalar curvature's range and mean, and ∫(R − r̄)² dV. Of a `ConformalTrajectory`:
    the factor u, the area, the range of K and ∫K dA. Of an `AttentionTrajectory`: the field, rows of probabilities as
    (queries, keys) if it is a graph's, and the energy. States have one sample axis (lines; points for metrics,
    whose samples have no order) or two (images, in one range of colours); metrics without samples are drawn by their
    single number. What is constant is drawn by its deviations. ``singular``: singularities, whose times are marked.
    Times are in the flow's own unit. Raises `PictureError` for batches and for other states, and `MissingLibraryError`.
    """
    if isinstance(trajectory, FlowTrajectory):
        course = _of_metrics(trajectory)
    elif isinstance(trajectory, ConformalTrajectory):
        course = _of_factors(trajectory)
    elif isinstance(trajectory, AttentionTrajectory):
        course = _of_attention(trajectory)
    else:
        raise PictureError(f"a {type(trajectory).__name__} is no flow: give what evolve or evolve_attention returns")
    count = len(course.times)
    kept = np.unique(np.linspace(0, count - 1, min(max(snapshots, 2), count)).round().astype(int))
    figure = new_figure(3.2 * max(len(kept), len(course.curves)), 6.2)
    rows = figure.add_gridspec(2, 1)
    if course.fields.ndim == 3:
        _draw_images(figure, rows[0], course, kept)
    else:
        axes = figure.add_subplot(rows[0])
        label, states, _ = deviations(course.name, [course.fields[index] for index in kept])
        for number, (index, state) in enumerate(zip(kept, states)):
            look = style(number) if course.ordered else {**style(number), "linestyle": "none"}
            axes.plot(state, label=f"t = {course.times[index]:.3g}", marker="os^D"[number % 4], markersize=4, **look)
        labelled(axes, course.axes[0], label)
        axes.locator_params(axis="x", integer=True)
        axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    below = rows[1].subgridspec(1, len(course.curves))
    for place, panel in enumerate(course.curves):
        axes = figure.add_subplot(below[place])
        label, shown, _ = deviations(panel.label, [values for _, _, values in panel.lines], panel.scale)
        for number, ((name, times, _), values) in enumerate(zip(panel.lines, shown)):
            axes.plot(times, values, label=name, **style(number))
        for number, singularity in enumerate(s for s in singular if np.isfinite(s.time)):
            axes.axvline(singularity.time, color=GREY, linestyle=":", label=None if number else singularity.kind)
        labelled(axes, "flow time t", label)
        if len(panel.lines) > 1 or singular:
            axes.legend(fontsize=8)
    heading(figure, title)
    return figure


def _draw_images(figure: Figure, place: SubplotSpec, course: _Course, kept: np.ndarray) -> None:
    cells = place.subgridspec(1, len(kept))
    label, (fields,), _ = deviations(course.name, [course.fields[kept]])
    look = colours(fields)
    panels: list[Axes] = []
    for number, index in enumerate(kept):
        axes = figure.add_subplot(cells[number])
        image = axes.imshow(fields[number], interpolation="nearest", **look)
        axes.set_title(f"t = {course.times[index]:.3g}", fontsize=10)
        axes.set_xlabel(course.axes[1])
        axes.set_ylabel(course.axes[0])
        panels.append(axes)
    figure.colorbar(image, ax=panels, label=label, shrink=0.9)


def _checked(fields: Tensor) -> np.ndarray:
    return array("the states of the flow", fields, ndim=(2, 3))


def _of_metrics(flow: FlowTrajectory) -> _Course:
    if flow.invariants[0].volume.ndim:
        raise PictureError(
            f"the flow is a batch of shape {tuple(flow.invariants[0].volume.shape)}", hint="draw one metric at a time"
        )
    times = array("the times", flow.times)
    # √det g itself is the chart's: that of a round sphere falls with the distance from the origin of the chart.
    density = torch.linalg.slogdet(flow.metrics.detach()).logabsdet
    growth = (0.5 * (density - density[0])).exp()
    growth = growth[:, None] if growth.ndim == 1 else growth

    def line(name: str, key: str) -> tuple[str, np.ndarray, np.ndarray]:
        return name, times, array(name, torch.stack([getattr(record, key) for record in flow.invariants]))

    square = torch.stack([record.mean_scalar.square() * record.volume for record in flow.invariants])
    scalar = (line("largest", "max_scalar"), line("mean", "mean_scalar"), line("smallest", "min_scalar"))
    curves = (
        _Curves("volume", (line("volume", "volume"),)),
        _Curves("scalar curvature R", scalar),
        _Curves("energy ∫(R − r̄)² dV", (line("energy", "energy"),), float(square.max())),
    )
    axes = ("sample along axis 0", "sample along axis 1") if growth.ndim == 3 else ("sample", "")
    return _Course(times, _checked(growth), "growth of volume √(det g/det g₀)", axes, curves, ordered=False)


def _of_factors(flow: ConformalTrajectory) -> _Course:
    times = array("the times", flow.times)
    areas, total = array("the areas", flow.areas, ndim=1), array("∫K dA", flow.total_curvature, ndim=1)
    low, high = array("the curvature", flow.min_curvature), array("the curvature", flow.max_curvature)
    most = float((np.maximum(np.abs(low), np.abs(high)) * areas).max())
    curves = (
        _Curves("area", (("area", times, areas),)),
        _Curves("Gauss curvature K", (("largest", times, high), ("smallest", times, low))),
        _Curves("total curvature ∫K dA", (("∫K dA", times, total),), most),
    )
    names = ("sample along axis 0", "sample along axis 1")
    return _Course(times, _checked(flow.factors), "conformal factor u", names, curves)


def _of_attention(flow: AttentionTrajectory) -> _Course:
    times = array("the times", flow.times)
    energies = array("the energies", flow.energies, ndim=1)
    line = ("energy", np.linspace(times[0], times[-1], len(energies)), energies)
    fields = _checked(flow.fields)
    axes = ("row (query)", "column (key)") if fields.ndim == 3 else ("node", "")
    return _Course(times, fields, "attention field", axes, (_Curves("energy", (line,)),))
