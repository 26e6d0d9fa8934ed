"""Bifurcation diagrams: branches of equilibria over their parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aatc.geometry.dynamics.bifurcation import BifurcationDiagram, Branch
from aatc.report.canvas import COLOURS, PictureError, array, deviations, labelled, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = {"saddle-node": "o", "pitchfork": "D", "transcritical": "s", "hopf": "^", "degenerate": "X"}


def bifurcation_figure(
    diagram: BifurcationDiagram,
    component: int | tuple[int, ...] | None = None,
    *,
    measure: Callable[[Tensor], Tensor] | None = None,
    parameter: str = "parameter μ",
    label: str = "",
    title: str = "",
) -> Figure:
    """Branches over their parameter, solid where stable and dashed where not, with the named points on them.

    Shown of a state is the entry at index ``component``, or ``measure``, states (m, *state) ↦ (m,), or without either
    the 2-norm. ``parameter`` and ``label`` name the axes. Raises `PictureError` for a diagram without branches, an
    index outside the state, or both ways given, and `MissingLibraryError`.
    """
    if not diagram.branches:
        raise PictureError("the diagram has no branches")
    if component is not None and measure is not None:
        raise PictureError("a diagram shows a component or a measure: give one of them")
    shown, name = _shown(component, measure)
    curves = [array(name, shown(branch.states), ndim=1) for branch in diagram.branches]
    axis, curves, constant = deviations(label or name, curves)

    def show(states: Tensor) -> Tensor:
        return shown(states) - (constant or 0.0)

    figure = new_figure(6.8, 4.6)
    axes = figure.add_subplot()
    for number, (branch, y) in enumerate(zip(diagram.branches, curves)):
        x = array("the parameters", branch.parameters, ndim=1)
        colour = COLOURS[number % len(COLOURS)]
        stable, unstable = _split(branch, x, y, _changes(branch, diagram, show))
        axes.plot(*stable.T, color=colour, linewidth=2.2)
        axes.plot(*unstable.T, color=colour, linewidth=1.4, linestyle=(0, (4, 2)))
    for kind in dict.fromkeys(point.kind for point in diagram.points):
        points = diagram.of_kind(kind)
        x = np.array([point.parameter for point in points])
        y = np.array([float(show(point.state[None])[0]) for point in points])
        axes.plot(x, y, linestyle="none", marker=MARKERS[kind], color="white", markeredgecolor="black", markersize=8)
        for point, at, height in zip(points, x, y):
            name_of = "Hopf" if kind == "hopf" else kind
            text = f"{point.criticality} {name_of}" if point.criticality else name_of
            axes.annotate(
                f"{text}\n{point.parameter:.4g}",
                (at, height),
                (9, -26),
                textcoords="offset points",
                fontsize=8,
                bbox={"boxstyle": "round,pad=0.2", "color": "white", "alpha": 0.85},
            )
    axes.plot([], [], color="black", linewidth=2.2, label="stable")
    axes.plot([], [], color="black", linewidth=1.4, linestyle=(0, (4, 2)), label="unstable")
    labelled(axes, parameter, axis, title)
    axes.margins(x=0.08, y=0.14)
    axes.legend(fontsize=9)
    return figure


def _changes(
    branch: Branch, diagram: BifurcationDiagram, show: Callable[[Tensor], Tensor]
) -> dict[int, tuple[float, float]]:
    """Where, in the plane of the diagram, the stability changes after each node i: at the point that was located.

    The steps of a continuation are longer than a diagram is exact, so the nodes on either side will not do. Without a
    located point it is the middle of them.
    """
    flat = torch.cat((branch.parameters[:, None], branch.states.flatten(1)), 1)
    scale = (flat.amax(0) - flat.amin(0)).clamp_min(1e-12)
    found: dict[int, tuple[float, float]] = {}
    for i in (branch.stable[1:] != branch.stable[:-1]).nonzero().flatten().tolist():
        parameter, state = 0.5 * (branch.parameters[i] + branch.parameters[i + 1]), branch.states[i : i + 2].mean(0)
        nearest = 1.5 * float(((flat[i + 1] - flat[i]) / scale).norm())
        for point in diagram.points:
            place = torch.cat((flat.new_tensor([point.parameter]), point.state.flatten()))
            detour = float(((flat[i : i + 2] - place) / scale).norm(dim=1).sum())
            if detour <= nearest:
                nearest, parameter, state = detour, place[0], point.state
        found[i] = (float(parameter), float(show(state[None])[0]))
    return found


def _split(
    branch: Branch, x: np.ndarray, y: np.ndarray, changes: dict[int, tuple[float, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """The stable and the unstable parts of a branch, (·, 2) each, with gaps of NaN, that meet at the changes."""
    parts: dict[bool, list[tuple[float, float]]] = {True: [(np.nan, np.nan)], False: [(np.nan, np.nan)]}
    for i, stable in enumerate(branch.stable.tolist()):
        parts[stable].append((x[i], y[i]))
        if i in changes:
            parts[stable] += [changes[i], (np.nan, np.nan)]
            parts[not stable].append(changes[i])
    return np.array(parts[True]), np.array(parts[False])


def _shown(
    component: int | tuple[int, ...] | None, measure: Callable[[Tensor], Tensor] | None
) -> tuple[Callable[[Tensor], Tensor], str]:
    """What is shown of states (m, *state), and its name."""
    if measure is not None:
        return measure, "measure of the state"
    if component is None:
        return lambda states: states.flatten(1).norm(dim=1), "norm of the state"
    index = (component,) if isinstance(component, int) else tuple(component)

    def entry(states: Tensor) -> Tensor:
        try:
            return states.movedim(0, -1)[index]
        except IndexError as error:
            raise PictureError(f"a state of shape {tuple(states.shape[1:])} has no entry {index}") from error

    return entry, f"state at {index if len(index) > 1 else index[0]}"
