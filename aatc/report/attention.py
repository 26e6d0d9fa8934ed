"""Attention patterns before and after a flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aatc.report.canvas import MAP, PictureError, array, deviations, heading, labelled, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _check_rows(when: str, pattern: np.ndarray, dtype: torch.dtype) -> None:
    """`PictureError` unless every row of a pattern that was held in ``dtype`` is of probabilities, or zero."""
    # Rounding each probability moves the sum by ε/2 at most; a softmax in half precision is a few ε off itself.
    tolerance = max(1e-4, 4 * torch.finfo(dtype).eps) if dtype.is_floating_point else 0.0
    total = pattern.sum(-1)
    wrong = (pattern < 0).any(-1) | (np.abs(total - 1) > tolerance) & pattern.any(-1)
    if wrong.any():
        row = int(wrong.argmax())
        raise PictureError(
            f"row {row} of the pattern {when} is no distribution: its least entry is {pattern[row].min():.3g} and its "
            f"sum {total[row]:.4g}",
            hint="rows of attention are probabilities, or zero for a query without keys: apply a softmax to scores",
        )


def attention_figure(
    before: Tensor, after: Tensor, energies: Tensor | None = None, *, time: float | None = None, title: str = ""
) -> Figure:
    """Two patterns (queries, keys) in one range of colours, the entropies of their rows, and the energy of the flow.

    Rows are probabilities up to the rounding of their dtype, or zero: a query without keys, whose entropy is left
    blank. Entropies are in nats. ``energies`` (steps + 1,) after every step, as in `AttentionTrajectory`; over ``time``
    if the length of the flow is given, else over the steps. Raises `PictureError` for patterns of two shapes and for
    rows that are no probabilities, and `MissingLibraryError`.
    """
    patterns = [array(f"the pattern {when}", value, ndim=2) for when, value in (("before", before), ("after", after))]
    if patterns[0].shape != patterns[1].shape:
        raise PictureError(f"patterns of shapes {patterns[0].shape} and {patterns[1].shape} are not of one attention")
    for when, value, pattern in zip(("before", "after"), (before, after), patterns):
        _check_rows(when, pattern, value.dtype)
    figure = new_figure(10.5, 6.6)
    rows = figure.add_gridspec(2, 1, height_ratios=(1.35, 1.0))
    above, below = rows[0].subgridspec(1, 2), rows[1].subgridspec(1, 1 if energies is None else 2)
    top, panels = max(float(p.max()) for p in patterns), []
    for place, (pattern, name) in enumerate(zip(patterns, ("before", "after"))):
        axes = figure.add_subplot(above[place])
        image = axes.imshow(pattern, cmap=MAP, vmin=0.0, vmax=top, interpolation="nearest")
        axes.set(xlabel="key", ylabel="query", title=name)
        panels.append(axes)
    figure.colorbar(image, ax=panels, label="probability")
    axes = figure.add_subplot(below[0])
    most = np.log(patterns[0].shape[1])
    entropies = [torch.special.entr(torch.from_numpy(pattern)).sum(-1).numpy() for pattern in patterns]
    for entropy, pattern in zip(entropies, patterns):
        entropy[~pattern.any(-1)] = np.nan
    label, (uniform, *entropies), _ = deviations("entropy of the row (nats)", [np.array([most]), *entropies], most)
    for number, (entropy, name) in enumerate(zip(entropies, ("before", "after"))):
        axes.plot(entropy, marker="os"[number], markersize=4, label=name, **style(number))
    axes.axhline(uniform[0], color="black", linewidth=0.8, linestyle=":", label="uniform row")
    labelled(axes, "query", label)
    axes.legend(fontsize=8)
    if energies is not None:
        axes = figure.add_subplot(below[1])
        label, (curve,), constant = deviations("energy of the flow", [array("the energies", energies, ndim=1)])
        axes.plot(np.linspace(0, len(curve) - 1 if time is None else time, len(curve)), curve, **style(0))
        labelled(axes, "step" if time is None else "flow time t", label)
        if constant is None:
            axes.set_ylim(bottom=0)
    heading(figure, title)
    return figure
