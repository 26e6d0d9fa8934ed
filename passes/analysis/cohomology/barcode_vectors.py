"""Barcodes compared and as vectors: Wasserstein distances, landscapes, persistence images, by gudhi.

Sources: P. Bubenik, "Statistical topological data analysis using persistence landscapes", JMLR 16 (2015); H. Adams et
al., "Persistence images", JMLR 18 (2017).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aatc.passes.analysis.cohomology.persistence import BackendError, FiltrationError, bottleneck_distance
from aatc.passes.analysis.stochastic import float_array

__all__ = [
    "barcode_distance",
    "bottleneck_distance",
    "persistence_image",
    "persistence_landscape",
    "wasserstein_distance",
]


def _bars(values: Any) -> np.ndarray:
    bars = float_array(values)
    if (bars.size and (bars.ndim != 2 or bars.shape[1] != 2)) or np.isnan(bars).any():
        raise FiltrationError(f"a barcode has the shape (m, 2) and no NaN, not {bars.shape}")
    return bars.reshape(-1, 2)


def wasserstein_distance(one: Any, two: Any, *, order: float = 1.0, norm: float = np.inf) -> float:
    """The Wasserstein distance of two barcodes (m, 2) of one degree: (Σ cost^order)^{1/order} of the best matching,
    bars being matched to each other or to the diagonal, at the distance of points in ``norm``.

    Relative error at most 0.01 above order 1 and 1e-6 at order 1 (gudhi's auction). Infinite where the numbers of bars
    without end differ. Raises `FiltrationError`, `BackendError`.
    """
    a, b = _bars(one), _bars(two)
    if not order >= 1 or not norm >= 1:
        raise FiltrationError(f"no Wasserstein distance of order {order} in the norm {norm}: both are at least 1")
    try:
        from gudhi.hera import wasserstein_distance as distance
    except ImportError:
        raise BackendError("gudhi is not installed", hint="pip install 'aatc[analysis]'") from None
    endless = [np.sort(x[np.isinf(x[:, 1]), 0]) for x in (a, b)]
    if len(endless[0]) != len(endless[1]):
        return float("inf")
    apart = np.abs(endless[0] - endless[1])
    a, b = (x[np.isfinite(x[:, 1]) & (x[:, 0] < x[:, 1])] for x in (a, b))
    delta = 1e-6 if order == 1 else 0.01
    finite = float(distance(a, b, order=order, internal_p=norm, delta=delta)) if len(a) or len(b) else 0.0
    return float((finite**order + (apart**order).sum()) ** (1 / order))


def barcode_distance(one: Any, two: Any, kind: str = "wasserstein", *, lightest: float = 0.0) -> float:
    """`wasserstein_distance` or `bottleneck_distance` ("bottleneck") of the bars that are longer than ``lightest``.
    Each bar that is left out moves the first by at most ``lightest``/2, and all together move the second by no more.
    Raises `FiltrationError`, `BackendError`."""
    if kind not in ("wasserstein", "bottleneck"):
        raise FiltrationError(f"there is no distance {kind!r}", hint='"wasserstein" or "bottleneck"')
    a, b = (x[x[:, 1] - x[:, 0] > lightest] for x in (_bars(one), _bars(two)))
    return wasserstein_distance(a, b) if kind == "wasserstein" else bottleneck_distance(a, b)


def _finite(bars: Any) -> np.ndarray:
    found = _bars(bars)
    finite: np.ndarray = found[np.isfinite(found[:, 1])]
    return finite


def _representation(name: str) -> Any:
    try:
        import gudhi.representations as representations
    except ImportError as cause:
        raise BackendError(
            "vectors of barcodes need gudhi and scikit-learn", hint="pip install 'aatc[analysis]'"
        ) from cause
    return getattr(representations, name)


def _span(bars: np.ndarray, span: tuple[float, float] | None) -> tuple[float, float]:
    if span is not None:
        low, high = float(span[0]), float(span[1])
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise FiltrationError(f"no values between {low} and {high}")
        return low, high
    low, high = (float(bars.min()), float(bars.max())) if len(bars) else (0.0, 1.0)
    return (low, high) if low < high else (low, low + 1.0)


def persistence_landscape(
    bars: Any, *, levels: int = 5, resolution: int = 100, span: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(values (resolution,), λ (levels, resolution)): the landscape of the finite bars (m, 2) of one degree.

    λ_k(t) is the k-th largest of max(0, min(t − b, d − t)). ``span``: the range of t, from the least birth to the
    largest death by default; landscapes that are to be compared need one. Raises `FiltrationError`, `BackendError`.
    """
    found = _finite(bars)
    low, high = _span(found, span)
    grid = np.linspace(low, high, resolution)
    if not len(found):
        return grid, np.zeros((levels, resolution))
    made = _representation("Landscape")(num_landscapes=levels, resolution=resolution, sample_range=[low, high])
    made.fit([found])
    # gudhi scales by √2: the landscape in coordinates turned by an eighth
    heights = made.transform([found])[0].reshape(levels, resolution) / np.sqrt(2)
    return np.asarray(made.grid_, dtype=np.float64), np.asarray(heights, dtype=np.float64)


def persistence_image(
    bars: Any,
    *,
    bandwidth: float | None = None,
    resolution: tuple[int, int] = (20, 20),
    span: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """The persistence image (rows, columns) of the finite bars (m, 2): births across, lengths from below upwards, each
    bar a normal density of ``bandwidth`` (a twentieth of the span of lengths by default) times its length.

    ``span`` is (least birth, largest birth, least length, largest length); images that are to be compared need one.
    Raises `FiltrationError`, `BackendError`.
    """
    found = _finite(bars)
    lengths = found[:, 1] - found[:, 0]
    if span is None:
        births = _span(found[:, :1], None)
        span = (*births, 0.0, float(lengths.max()) if len(found) and lengths.max() > 0 else 1.0)
    if len(span) != 4 or not np.isfinite(span).all() or not (span[0] < span[1] and span[2] < span[3]):
        raise FiltrationError(f"no image of the span {span}")
    width = (span[3] - span[2]) / 20 if bandwidth is None else float(bandwidth)
    if not 0 < width < np.inf:
        raise FiltrationError(f"bandwidth={bandwidth} is no width of a density")
    if not len(found):
        return np.zeros(resolution)
    made = _representation("PersistenceImage")(
        bandwidth=width, weight=lambda bar: bar[1], resolution=[resolution[1], resolution[0]], im_range=list(span)
    )
    image: np.ndarray = np.asarray(made.fit_transform([found])[0], dtype=np.float64).reshape(resolution)
    return image
