"""Lattices over patterns, Brillouin zones, and bands along paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aatc.passes.analysis.crystal.bands import BandStructure
from aatc.passes.analysis.crystal.brillouin import BrillouinZone
from aatc.passes.analysis.crystal.lattices import BravaisLattice
from aatc.passes.analysis.crystal.translations import as_pattern
from aatc.passes.analysis.result import Result
from aatc.report.canvas import COLOURS, MAP, PictureError, labelled, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The most points of a lattice that are marked.
_MARKED = 4000


def lattice_figure(pattern: Any, lattice: BravaisLattice | Result[Any], *, title: str = "") -> Figure:
    """A pattern (n, m) with the points of its lattice through the middle, and its basis.

    Raises `PictureError` and `MissingLibraryError`.
    """
    from matplotlib.ticker import MaxNLocator

    found = lattice.value if isinstance(lattice, Result) else lattice
    array = as_pattern(pattern).astype(np.float64)
    if not isinstance(found, BravaisLattice):
        raise PictureError(f"a {type(found).__name__} is no lattice", hint="give what detect_lattice returns")
    n, m = array.shape
    figure = new_figure(5.6, 5.2)
    axes = figure.add_subplot()
    image = axes.imshow(np.ma.masked_invalid(array), cmap=MAP, interpolation="nearest", aspect="equal")
    figure.colorbar(image, ax=axes, shrink=0.8)
    middle = np.array([(n - 1) / 2, (m - 1) / 2])
    if found.exact:
        middle = np.floor(middle)
    reach = range(-n - m, n + m + 1)
    few: list[tuple[int, ...]] = [(h,) for h in reach] if found.rank == 1 else [(0,) * found.rank]
    if found.rank == 2:
        span = int(np.ceil(np.hypot(n, m) * np.abs(np.linalg.inv(found.vectors)).sum(0).max())) + 1
        few = [(h, k) for h in range(-span, span + 1) for k in range(-span, span + 1)] if span < 400 else [(0, 0)]
    points = middle + np.array(few, dtype=np.float64).reshape(len(few), -1) @ found.vectors
    inside = ((points >= -0.5) & (points <= np.array([n, m]) - 0.5)).all(1)
    points = points[inside]
    if len(points) <= _MARKED:
        axes.plot(points[:, 1], points[:, 0], "o", color=COLOURS[3], markersize=3, label=str(found))
    for vector in found.vectors:
        axes.annotate(
            "",
            xy=tuple((middle + vector)[::-1]),
            xytext=tuple(middle[::-1]),
            arrowprops={"arrowstyle": "->", "color": COLOURS[3], "lw": 1.6},
        )
    axes.set(xlabel="key", ylabel="query", title=title or str(found), xlim=(-0.5, m - 0.5), ylim=(n - 0.5, -0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def brillouin_figure(zones: Sequence[BrillouinZone] | Result[Any], *, title: str = "") -> Figure:
    """The zones of a planar lattice, each in its colour. Raises `PictureError` and `MissingLibraryError`."""
    shown = zones.value if isinstance(zones, Result) else zones
    if not len(shown) or any(p.shape[1] != 2 for z in shown for p in z.pieces):
        raise PictureError("zones are drawn of lattices in the plane", hint="brillouin_zones of a (2, 2) basis")
    figure = new_figure(5.4, 5.0)
    axes = figure.add_subplot()
    for number, zone in enumerate(shown):
        for place, piece in enumerate(zone.pieces):
            label = f"zone {zone.order}" if not place else None
            axes.fill(piece[:, 0], piece[:, 1], color=COLOURS[number % len(COLOURS)], alpha=0.75, lw=0.6, label=label)
    axes.plot(0, 0, "k+")
    labelled(axes, "k₁", "k₂", title)
    axes.set_aspect("equal")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def bands_figure(
    bands: BandStructure | Result[Any], corners: Sequence[int] = (), names: Sequence[str] = (), *, title: str = ""
) -> Figure:
    """Energies along the points of a band structure, in their order; ``corners`` are positions of points that carry
    ``names``, as where a `path_of` turns. Of complex energies real and imaginary parts. Raises `PictureError` and
    `MissingLibraryError`."""
    shown = bands.value if isinstance(bands, Result) else bands
    if not isinstance(shown, BandStructure) or len(corners) != len(names):
        raise PictureError("bands are those of a band structure, and each corner has a name")
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(shown.points, axis=0), axis=1))])
    if any(not 0 <= c < len(along) for c in corners):
        raise PictureError(f"the path has {len(along)} points, from 0 on, and no point {max(corners, default=0)}")
    figure = new_figure(6.0, 4.2)
    axes = figure.add_subplot()
    for number, energies in enumerate(shown.energies.T):
        axes.plot(along, energies.real, **{**style(number), "linestyle": "-"}, label=f"band {number}")
        if np.iscomplexobj(energies):
            axes.plot(along, energies.imag, **{**style(number), "linestyle": "--"})
    labelled(axes, "k", "energy", title)
    if corners:
        axes.set_xticks([along[c] for c in corners], list(names))
        for c in corners:
            axes.axvline(along[c], color="#bbbbbb", lw=0.8)
    axes.legend(fontsize=8)
    return figure
