"""Scaling exponents: slopes of logarithms over logarithms, with intervals; box counting, growth of increments, and what
leaves blocks of tokens.

An exponent of a finite array is the slope over the scales that it has, not a limit. Sources: Falconer, Fractal
Geometry, chapters 2 and 3, for box counting; Mandelbrot, Van Ness, SIAM Review 10 (1968), for the exponent of
increments; Efron, Stein, Annals of Statistics 9 (1981), for the jackknife.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from aatc.passes.analysis.result import Result
from aatc.passes.analysis.scale.block_sums import summed_slices
from aatc.passes.analysis.scale.coarse_graining import ScaleError, whole_number
from aatc.passes.analysis.scale.rg_flow import block_escapes, doubling_scales
from aatc.passes.analysis.scale.verify_scale import witnessed
from aatc.passes.analysis.stochastic import plain_array, real_array, row_stochastic

TOLERANCE = 1e-9
#: Parts of a series that are left out in turn, and increments of the longest lag that each part still holds.
SEGMENTS, INCREMENTS = 16, 4
#: Blocks of tokens that are left at the largest scale.
BLOCKS = 4
#: By how much a weight that single precision rounded may seem to be above the mean.
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class ScalingExponent:
    """``measured`` (k,) grows as ``scales`` (k,) to the power ``slope``; ``value`` is the exponent that this makes,
    between ``low`` and ``high`` with ``confidence`` under the result's assumptions."""

    name: str
    value: float
    low: float
    high: float
    confidence: float
    slope: float
    scales: np.ndarray
    measured: np.ndarray

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} ({self.low:.3g} to {self.high:.3g})"


def _sure(confidence: float) -> float:
    """Raises `ScaleError` unless it lies between 0 and 1."""
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise ScaleError(f"a confidence lies between 0 and 1, not {confidence!r}", hint="0.95")
    return float(confidence)


def _slopes(scales: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Least-squares slopes of log measured (..., k) over log scales (k,)."""
    x = np.log(scales)
    x = x - x.mean()
    slopes: np.ndarray = np.log(measured) @ x / (x @ x)
    return slopes


def _checked(scales: Any, measured: Any, least: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = real_array(scales, "scales"), real_array(measured, "what was measured")
    if x.ndim != 1 or x.shape != y.shape or len(x) < least or len(np.unique(x)) != len(x):
        raise ScaleError(f"an exponent needs {least} or more distinct scales, as many numbers: {x.shape}, {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and x.min() > 0 and y.min() > 0):
        raise ScaleError("scales and what is measured at them are positive and finite: 0 has no logarithm")
    return x, y


def _fitted(name: str, sign: int, x: np.ndarray, y: np.ndarray, confidence: float) -> ScalingExponent:
    """The exponent ``sign`` × slope, with Student's interval of a straight line."""
    slope = float(_slopes(x, y))
    away = np.log(x) - np.log(x).mean()
    left = np.log(y) - np.log(y).mean() - slope * away
    spread = math.sqrt(float(left @ left) / (len(x) - 2) / float(away @ away))
    half = float(stdtrit(len(x) - 2, (1 + confidence) / 2)) * spread
    value = sign * slope + 0.0
    return ScalingExponent(name, value, value - half, value + half, confidence, slope, x, y)


#: What an interval of a fitted line takes for granted.
LINE = "logarithms lie on a line but for independent normal deviations: the interval is one of the fit"


def scaling_exponent(scales: Any, measured: Any, *, confidence: float = 0.95) -> Result[ScalingExponent]:
    """The power of ``scales`` (k,) that ``measured`` (k,) grows by, k ≥ 3, by least squares of logarithms; P3. Raises
    `ScaleError` for numbers that are not positive."""
    x, y = _checked(scales, measured, 3)
    value = _fitted("exponent", 1, x, y, _sure(confidence))
    data = {"scales": x.copy(), "measured": y.copy(), "confidence": value.confidence}
    return witnessed(value, "line", data, TOLERANCE, level="P3", assumptions=(LINE,))


def _array(values: Any) -> np.ndarray:
    """`plain_array`. Raises `ScaleError` where rows are of several lengths."""
    try:
        return plain_array(values)
    except (TypeError, ValueError, RuntimeError) as cause:
        raise ScaleError(f"a {type(values).__name__} does not turn into one array: {cause}") from cause


def box_counts(occupied: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """How many boxes of each side, aligned with the first cell, hold an occupied cell of a boolean array; (k,). Each
    size is a multiple of the one before."""
    at, previous, counts = occupied, 1, []
    for size in sizes:
        step = size // previous
        for axis in range(at.ndim):
            at = summed_slices(np.logical_or, at, step, axis)
        previous = size
        counts.append(int(at.sum()))
    return np.array(counts)


def box_sizes(shape: Sequence[int], base: int) -> tuple[int, ...]:
    """1, b, b², ... while ``base`` boxes or more lie along the shortest axis."""
    sizes = [1]
    while sizes[-1] * base * base <= min(shape):
        sizes.append(sizes[-1] * base)
    return tuple(sizes)


def box_dimension(occupied: Any, *, base: int = 2, confidence: float = 0.95) -> Result[ScalingExponent]:
    """The box-counting dimension of the occupied cells of a boolean array of any number of axes: boxes have the sides
    1, b, b², ... for ``base`` b, at least b of them along the shortest axis. P3.

    What is computed is the slope of the counts, −d log N/d log side, over these sides. Raises `ScaleError` for arrays
    with fewer than three of them, and for empty ones.
    """
    array = _array(occupied)
    b, sure = whole_number("the base", base), _sure(confidence)
    if array.dtype != np.bool_ or array.ndim < 1:
        raise ScaleError(f"occupied cells are a boolean array, not {array.dtype}", hint="compare: values > threshold")
    if b < 2 or not array.size or len(box_sizes(array.shape, b)) < 3:
        raise ScaleError(f"boxes of three sizes of base {b} need axes of {b**3} cells, not {array.shape}")
    if not array.any():
        raise ScaleError("no cell is occupied, so that there is nothing to count")
    sizes = box_sizes(array.shape, b)
    value = _fitted("box dimension", -1, np.array(sizes, dtype=np.float64), box_counts(array, sizes), sure)
    data = {"occupied": array.copy(), "base": b, "confidence": sure}
    return witnessed(value, "boxes", data, TOLERANCE, level="P3", assumptions=(LINE,))


def hurst_exponent(series: Any, *, confidence: float = 0.95) -> Result[ScalingExponent]:
    """Hurst's exponent H of a series (n,), n ≥ 128, whose increments are stationary: E|x_{t+l} − x_t|² ∝ l^{2H}; ½ for
    Brownian motion. P3.

    By least squares over the lags 1, 2, 4, ... up to n/64. The value is the jackknife's, which takes away most of what
    the logarithm of a mean is off by, and the interval Student's over 16 parts that are left out in turn. Raises
    `ScaleError` for a series that does not move over some lag.
    """
    x, sure = real_array(series, "a series"), _sure(confidence)
    if x.ndim != 1 or len(x) < SEGMENTS * INCREMENTS * 2 or not np.isfinite(x).all():
        raise ScaleError(f"a series has {SEGMENTS * INCREMENTS * 2} finite numbers or more (n,), not {x.shape}")
    lags = doubling_scales(len(x), SEGMENTS * INCREMENTS)
    sums, counts = np.zeros((SEGMENTS, len(lags))), np.zeros((SEGMENTS, len(lags)))
    for k, lag in enumerate(lags):
        squares = (x[lag:] - x[:-lag]) ** 2
        part = np.arange(len(squares)) * SEGMENTS // len(squares)
        sums[:, k], counts[:, k] = np.bincount(part, squares, SEGMENTS), np.bincount(part, minlength=SEGMENTS)
    total = sums.sum(0)
    if not ((total - sums > 0).all() and np.isfinite(total).all()):
        raise ScaleError("the series stands still over some lag, so that it has no exponent there")
    scales, measured = np.array(lags, dtype=np.float64), total / counts.sum(0)
    slope = float(_slopes(scales, measured))
    without = _slopes(scales, (total - sums) / (counts.sum(0) - counts))
    pseudo = (SEGMENTS * slope - (SEGMENTS - 1) * without) / 2
    half = float(stdtrit(SEGMENTS - 1, (1 + sure) / 2)) * float(pseudo.std(ddof=1)) / math.sqrt(SEGMENTS)
    middle = float(pseudo.mean())
    value = ScalingExponent("Hurst exponent", middle, middle - half, middle + half, sure, slope, scales, measured)
    given = ("increments are stationary, and those of 16 parts independent of each other",)
    return witnessed(value, "increments", {"series": x.copy(), "confidence": sure}, TOLERANCE, level="P3",
                     assumptions=given)  # fmt: skip


def escape_exponent(pattern: Any, *, confidence: float = 0.95) -> Result[ScalingExponent]:
    """θ of a pattern (n, n), n ≥ 13, whose share of weight that leaves blocks of b tokens, over what equal weights let
    leave, falls as b^−θ, b = 1, 2, 4, ... while there are 4 blocks: 1 for a band, 0 for equal weights, about α − 1 for
    weights that fall with distance as d^−α, 1 < α < 2. P3. Raises `ScaleError` where nothing leaves a block."""
    chain, sure = row_stochastic(pattern, square=True), _sure(confidence)
    if chain.ndim != 2 or len(doubling_scales(len(chain), BLOCKS)) < 3:
        raise ScaleError(f"blocks of three sizes need 13 tokens, not a pattern {chain.shape}")
    n = len(chain)
    value = escape_fit(block_escapes(chain, doubling_scales(n, BLOCKS)), n, sure)
    data = {"pattern": chain.copy(), "confidence": sure}
    return witnessed(value, "escape_exponent", data, TOLERANCE, level="P3", assumptions=(LINE,))


def escape_fit(shares: np.ndarray, n: int, confidence: float = 0.95) -> ScalingExponent:
    """`escape_exponent` of ``n`` tokens by the shares that leave blocks of 1, 2, 4, ... (k,), as many as it needs."""
    scales = doubling_scales(n, BLOCKS)
    measured = shares[: len(scales)]
    if not measured.min() > 0:
        raise ScaleError(f"nothing leaves blocks of {scales[int(measured.argmin())]} tokens: 0 has no logarithm")
    sizes = [np.bincount(np.arange(n) // b) / n for b in scales]
    even = np.array([1 - s @ s for s in sizes])
    return _fitted("escape exponent", -1, np.array(scales, dtype=np.float64), measured / even, confidence)


def heavy_pairs(pattern: np.ndarray) -> np.ndarray:
    """Which weights of a checked pattern (n, m) are above the mean 1/m, by more than rounding."""
    heavy: np.ndarray = pattern * pattern.shape[1] > 1 + ROUNDING
    return heavy


def scale_invariants(structure: Any, *, confidence: float = 0.95) -> Result[tuple[ScalingExponent, ...]]:
    """The exponents of what is given, P3: of a boolean array its box dimension; of a series (n,) its Hurst exponent; of
    a pattern (n, n), rows summing to 1, its escape exponent, and the box dimension of the weights above the mean 1/n.
    Raises `ScaleError` for anything else, and what the three raise."""
    array = _array(structure)
    if array.dtype == np.bool_:
        parts = [box_dimension(array, confidence=confidence)]
    elif array.ndim == 1:
        parts = [hurst_exponent(structure, confidence=confidence)]
    elif array.ndim == 2 and array.shape[0] == array.shape[1]:
        chain = row_stochastic(structure, square=True)
        parts = [escape_exponent(chain, confidence=confidence)]
        parts.append(box_dimension(heavy_pairs(chain), confidence=confidence))
    else:
        raise ScaleError(
            f"there are no exponents of an array {array.shape} of {array.dtype}",
            hint="give a boolean array, a series (n,) or a pattern (n, n)",
        )
    value = tuple(p.value for p in parts)
    data = {"parts": tuple({"kind": p.witness.kind, "data": p.witness.data} for p in parts)}
    given = tuple(dict.fromkeys(a for p in parts for a in p.assumptions))
    return witnessed(value, "invariants", data, TOLERANCE, level="P3", assumptions=given)
