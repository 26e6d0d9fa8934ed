"""Phase portraits of Hamiltonian systems, and how well methods keep the energy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aatc.geometry.dynamics.hamiltonian import HamiltonianSystem
from aatc.report.canvas import PictureError, array, heading, labelled, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MESH = 120


def hamiltonian_figure(
    system: HamiltonianSystem,
    trajectories: Mapping[str, tuple[Tensor, Tensor]],
    dt: float,
    *,
    component: int = 0,
    title: str = "",
) -> Figure:
    """Trajectories in the plane of (q, p), and the relative error |H − H₀|/|H₀| of each over time.

    ``trajectories``: by name, states and momenta (T, d), a time ``dt`` apart, as `HamiltonianSystem.trajectory` gives
    them. In one degree of freedom the levels of H are drawn too; otherwise ``component`` says which q_i and p_i are
    shown. The error is absolute where H₀ = 0. Raises `PictureError` and `MissingLibraryError`.
    """
    if not trajectories or not dt > 0:
        raise PictureError(f"{len(trajectories)} trajectories with dt = {dt}: give at least one, and dt > 0")
    figure = new_figure(10.5, 4.6)
    plane, error = figure.subplots(1, 2)
    for number, (name, (states, momenta)) in enumerate(trajectories.items()):
        q, p = array(f"states of {name}", states, ndim=2), array(f"momenta of {name}", momenta, ndim=2)
        if q.shape != p.shape or not 0 <= component < q.shape[1]:
            raise PictureError(f"{name}: states {q.shape} and momenta {p.shape} with component {component}")
        plane.plot(q[:, component], p[:, component], linewidth=1.3, label=name, **style(number))
        energy = array(f"the energy of {name}", system.compute_hamiltonian(states, momenta))
        off = np.abs(energy - energy[0]) / (abs(energy[0]) or 1.0)
        # The first error is 0, and no logarithm shows it.
        error.semilogy(dt * np.arange(1, len(off)), np.maximum(off[1:], 1e-17), label=name, **style(number))
    states = next(iter(trajectories.values()))[0]
    if states.shape[1] == 1:
        (low, high), (least, most) = plane.get_xlim(), plane.get_ylim()
        grid = torch.meshgrid(
            torch.linspace(low, high, _MESH, dtype=states.dtype, device=states.device),
            torch.linspace(least, most, _MESH, dtype=states.dtype, device=states.device),
            indexing="xy",
        )
        levels = system.compute_hamiltonian(grid[0][..., None], grid[1][..., None]).detach().cpu().double().numpy()
        # The margins round the trajectories may lie outside H's domain: no levels are drawn there.
        levels = np.ma.masked_invalid(levels)
        # Levels below zero are no other kind of line: solid too.
        plane.contour(
            *(x.cpu().numpy() for x in grid), levels, 10, colors="#b0b0b0", linewidths=0.6, linestyles="solid"
        )
    index = "" if states.shape[1] == 1 else f"_{component}"
    labelled(plane, f"position q{index}", f"momentum p{index}", "phase portrait")
    labelled(error, "time", "energy error |H − H₀| / |H₀|", "energy")
    for axes in (plane, error):
        axes.legend(fontsize=8)
    heading(figure, title)
    return figure
