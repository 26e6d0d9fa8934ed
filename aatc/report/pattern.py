"""Patterns of reaction–diffusion systems beside the wavelengths that theory predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aatc.geometry.dynamics.pattern_stability import (
    TuringConditions,
    dispersion_relation,
    reaction_jacobian,
    turing_conditions,
)
from aatc.geometry.dynamics.reaction_diffusion import Grid, ReactionDiffusion
from aatc.report.canvas import (
    COLOURS,
    GREY,
    PictureError,
    array,
    colours,
    deviations,
    heading,
    labelled,
    new_figure,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Dispersion:
    """The growth rate ``growth`` (m,) of perturbations with ``wavenumbers`` (m,) of a rest, and Turing's conditions."""

    wavenumbers: Tensor
    growth: Tensor
    conditions: TuringConditions

    @classmethod
    def of(cls, system: ReactionDiffusion, rest: Tensor, count: int = 400) -> Dispersion:
        """Of a two-species ``system`` at its homogeneous steady state ``rest`` (2,), to 1.5 times the fastest k.

        Where no wavelength is preferred, to 1.5 times the critical one, or to 1. Raises `PointShapeError` and
        `PatternError` as `turing_conditions`.
        """
        diffusion = system.diffusion.to(rest)
        diffusion = diffusion.expand(2) if diffusion.ndim == 0 else diffusion
        jacobian = reaction_jacobian(system.reaction_term, rest)
        found = turing_conditions(jacobian, diffusion)
        reach = max(k for k in (found.wavenumber, found.band[1], found.critical_wavenumber, 0.0) if math.isfinite(k))
        k = torch.linspace(0, 1.5 * reach or 1.0, count, dtype=rest.dtype, device=rest.device)
        return cls(k, dispersion_relation(jacobian, diffusion, k), found)


@dataclass(frozen=True)
class RadialSpectrum:
    """``power`` (m,) of a field in rings of ``wavenumbers`` (m,), evenly spaced; their sum is the field's variance."""

    wavenumbers: Tensor
    power: Tensor

    @property
    def peak(self) -> float:
        """The wavenumber of the strongest ring, exact to half a ring; 0 of a uniform field."""
        return float(self.wavenumbers[self.power.argmax()]) if float(self.power.max()) > 0 else 0.0


def radial_spectrum(field: Tensor, grid: Grid) -> RadialSpectrum:
    """The power of one field (*grid) by |k|, the mean left out, in rings as wide as the box's least wavenumber.

    Parseval: the sum is the mean square of field − mean; a field that is its mean up to rounding has none. Raises
    `PictureError` for another number of axes.
    """
    if field.ndim != grid.ndim:
        raise PictureError(f"a field on this grid has {grid.ndim} axes, not the shape {tuple(field.shape)}")
    sizes = tuple(field.shape)
    waves = field - field.mean()
    if float(waves.abs().max()) <= 8 * torch.finfo(field.dtype).eps * float(field.abs().max()):
        waves = torch.zeros_like(field)
    extended = grid.extend(waves)
    modes = torch.fft.rfftn(extended, dim=grid.axes)
    power = modes.abs().square() / extended.numel() ** 2
    # The half spectrum holds one of two conjugate modes, except where a mode is its own conjugate.
    both = torch.full((modes.shape[-1],), 2.0, dtype=power.dtype, device=power.device)
    both[0] = 1.0
    if extended.shape[-1] % 2 == 0:
        both[-1] = 1.0
    axes = grid.wavenumbers(sizes, field.dtype, field.device)
    k = sum((x.square() for x in axes), torch.zeros((), dtype=field.dtype, device=field.device)).sqrt()
    width = 2 * math.pi / (max(grid.lengths) * (2 if grid.boundary == "neumann" else 1))
    ring = (k / width).round().long().reshape(-1)
    total = torch.zeros(int(ring.max()) + 1, dtype=power.dtype, device=power.device)
    total = total.index_add(0, ring, (power * both).reshape(-1))
    return RadialSpectrum(width * torch.arange(len(total), dtype=field.dtype, device=field.device), total)


def turing_figure(
    field: Tensor,
    grid: Grid,
    *,
    dispersion: Dispersion | None = None,
    species: int = 0,
    names: tuple[str, ...] = ("u", "v"),
    title: str = "",
) -> Figure:
    """A pattern (species, *grid), the dispersion relation of the rest it grew from, and its power spectrum.

    On two axes one ``species`` is an image in the box's own lengths, on one axis all are lines. The growing band and
    the fastest wavelength of ``dispersion`` are marked in both plots on the right, and the strongest wavelength of the
    pattern is named. Raises `PictureError` for other fields, and `MissingLibraryError`.
    """
    values = array("the pattern", field, ndim=(2, 3))
    if field.ndim != 1 + grid.ndim or not 0 <= species < len(field) or len(names) < len(field):
        raise PictureError(
            f"a pattern here is (species, *grid) with {grid.ndim} grid axes and as many names as species, of which "
            f"{species} is shown; got {tuple(field.shape)} and {names}"
        )
    figure = new_figure(10.5, 5.2 if dispersion is None else 5.8)
    columns = figure.add_gridspec(1, 2, width_ratios=(1.25, 1.0))
    axes = figure.add_subplot(columns[0])
    if grid.ndim == 2:
        height, width = grid.lengths
        label, (shown,), _ = deviations(f"concentration {names[species]}", [values[species]])
        image = axes.imshow(shown, origin="lower", extent=(0, width, 0, height), **colours(shown))
        figure.colorbar(image, ax=axes, label=label, shrink=0.8)
        axes.set(xlabel="position along axis 1", ylabel="position along axis 0")
    else:
        (place,) = grid.coordinates(tuple(field.shape[1:]))
        label, lines, _ = deviations("concentration", list(values))
        for number, (name, line) in enumerate(zip(names, lines)):
            axes.plot(place.numpy(), line, label=name, **style(number))
        labelled(axes, "position", label)
        axes.legend()
    spectrum = radial_spectrum(field[species].detach(), grid)
    rows = columns[1].subgridspec(1 if dispersion is None else 2, 1)
    below = figure.add_subplot(rows[-1])
    k, power = array("the wavenumbers", spectrum.wavenumbers), array("the power", spectrum.power)
    below.plot(k, power, marker="o", markersize=3, **style(0))
    labelled(below, "wavenumber k (rad per unit of length)", f"power of {names[species]}")
    peak = spectrum.peak
    below.axvline(peak, color="black", linestyle="-", linewidth=1.0, label=f"pattern: wavelength {_wave(peak)}")
    if dispersion is not None:
        above = figure.add_subplot(rows[0], sharex=below)
        _draw_dispersion(above, below, dispersion)
        below.set_xlim(0, max(float(dispersion.wavenumbers[-1]), 1.2 * peak))
    below.set_ylim(top=1.3 * float(power.max()) or 1.0)
    below.legend(fontsize=8, loc="upper right")
    heading(figure, title)
    return figure


def _draw_dispersion(above: Axes, below: Axes, dispersion: Dispersion) -> None:
    found = dispersion.conditions
    above.plot(
        array("the wavenumbers", dispersion.wavenumbers), array("the growth", dispersion.growth), color=COLOURS[0]
    )
    above.axhline(0, color="black", linewidth=0.8)
    fastest = f"fastest growth: wavelength {_wave(found.wavenumber)}"
    for axes, named in ((above, True), (below, False)):
        if found.unstable:
            axes.axvspan(*found.band, color=GREY, alpha=0.2, linewidth=0, label="growing modes" if named else None)
        label = fastest if named else None
        axes.axvline(found.wavenumber, color=COLOURS[3], linestyle="--", linewidth=1.6, label=label)
    labelled(above, "wavenumber k (rad per unit of length)", "growth rate\nmax Re λ (1/time)")
    low, high = above.get_ylim()
    above.set_ylim(low, high + 0.5 * (high - low))
    above.legend(fontsize=8, loc="upper right")


def _wave(k: float) -> str:
    return f"{2 * math.pi / k:.3g}" if k > 0 else "∞"
