"""What every picture shares: an empty figure, the rules for colours and for constants, and the typed errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from aatc.errors import AatcError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours for all kinds of colour vision, dark and light by turns; the dashes tell them apart in grey.
COLOURS = ("#0072B2", "#E69F00", "#000000", "#D55E00", "#56B4E9", "#009E73", "#CC79A7")
DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
# A map of one hue's lightness from dark to light, the same for all kinds of colour vision.
MAP = "cividis"
# Blue below zero and red above, through a grey that is seen on white.
DIVERGING = "coolwarm"
# A spread below this part of their size makes values a constant, drawn by what they deviate from it.
CONSTANT = 1e-6
# The part of its greatest value below which a negative one is the rounding of zero.
ROUNDING = 1e-9
# Empty inches round every panel.
_PAD = 0.08
GREY = "#7f7f7f"


class PictureError(AatcError, ValueError):
    """Data that a picture cannot show: a wrong shape, an empty object, a value that is not finite."""


class MissingLibraryError(AatcError, ImportError):
    """The drawing library is not installed."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, without a window. Raises `MissingLibraryError`."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise MissingLibraryError(
            "pictures are drawn with matplotlib, which cannot be imported", hint='pip install "aatc[report]"'
        ) from error

    class Settled(ConstrainedLayoutEngine):
        """Lays out once more: panels that got wider may have other numbers on their axes, which need other room."""

        def execute(self, fig: Figure) -> None:
            super().execute(fig)
            super().execute(fig)

    return Figure(figsize=(width, height), layout=Settled(w_pad=_PAD, h_pad=_PAD))


def array(name: str, value: Tensor, *, ndim: int | Sequence[int] | None = None) -> np.ndarray:
    """``value`` as a float64 array. Raises `PictureError` unless it is finite, not empty, and of ``ndim`` axes."""
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if allowed is not None and value.ndim not in allowed:
        raise PictureError(
            f"{name} has {' or '.join(str(n) for n in allowed)} axes in a picture, not the shape {tuple(value.shape)}",
            hint="draw one element of a batch at a time",
        )
    result = value.detach().cpu().double().numpy()
    if result.size == 0 or not np.isfinite(result).all():
        raise PictureError(f"{name} of shape {tuple(value.shape)} is empty or not finite")
    return result


def constant_of(values: Sequence[np.ndarray], scale: float = 0.0) -> float | None:
    """What all of ``values`` are, up to `CONSTANT` of their size; None where they vary.

    ``scale``: the size of what they are made of, of numbers that cancel. Where they are that small themselves the
    constant is 0, else the first value. NaN does not count.
    """
    flat = np.concatenate([value[np.isfinite(value)] for value in values])
    if not flat.size:
        return None
    size = float(np.abs(flat).max())
    limit = CONSTANT * max(size, scale)
    if float(np.ptp(flat)) > limit:
        return None
    return 0.0 if size <= limit else float(flat[0])


def deviations(
    name: str, values: Sequence[np.ndarray], scale: float = 0.0
) -> tuple[str, list[np.ndarray], float | None]:
    """A label, what is to be drawn of ``values``, and the constant they are, if they are one (`constant_of`).

    Of a constant only the deviations are drawn, and its label says from what: an axis round the values would fill with
    their rounding as if it were a change. Other values are drawn as they are, under their ``name``.
    """
    constant = constant_of(values, scale)
    if constant is None:
        return name, list(values), None
    return f"{name},\ndeviation from {constant:.6g}", [value - constant for value in values], constant


def colours(values: np.ndarray) -> dict[str, Any]:
    """The map and its range for ``values``: those of both signs diverge from zero in the middle, by one scale."""
    low, high = float(values.min()), float(values.max())
    size = max(-low, high)
    if low == high == 0:
        size = 1.0
    elif low >= -ROUNDING * size or high <= ROUNDING * size:
        return {"cmap": MAP, "vmin": low, "vmax": high}
    return {"cmap": DIVERGING, "vmin": -size, "vmax": size}


def heading(figure: Figure, title: str) -> None:
    """Write the title of all panels, in as many lines as the figure's width asks for, if there is one."""
    if title:
        figure.suptitle(title, wrap=True)


def labelled(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Name both axes and draw a faint grid below the data."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, fontsize=10, wrap=True)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def style(index: int) -> dict[str, Any]:
    """The colour and dashes of line ``index``."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}
