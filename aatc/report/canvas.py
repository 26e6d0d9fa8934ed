"""What every picture shares: an empty figure, colours that survive greyscale, and the typed errors."""

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
GREY = "#7f7f7f"


class PictureError(AatcError, ValueError):
    """Data that a picture cannot show: a wrong shape, an empty object, a value that is not finite."""


class MissingLibraryError(AatcError, ImportError):
    """The drawing library is not installed."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, without a window. Raises `MissingLibraryError`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingLibraryError(
            "pictures are drawn with matplotlib, which cannot be imported", hint='pip install "aatc[report]"'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


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


def labelled(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Name both axes and draw a faint grid below the data."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, fontsize=10)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def style(index: int) -> dict[str, Any]:
    """The colour and dashes of line ``index``."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}
