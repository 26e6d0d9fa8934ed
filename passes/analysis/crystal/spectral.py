"""Lattices of noisy arrays: real shifts, found by the lattice of waves that a periodic pattern is made of.

The model: a sum of waves whose frequencies are integer combinations of one or two, plus noise that is independent from
point to point, or whose spectrum varies slowly. The reciprocal basis is where the waves that stand out leave the least
squares. Frequencies are in cycles a step along the array's axes. Sources: Rife, Boorstyn, Multiple tone parameter
estimation, Bell Syst. Tech. J. 55 (1976); Li, Stoica, Efficient mixed-spectrum estimation, IEEE Trans. Signal Process.
44 (1996), for taking waves off one by one.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.linalg

from aatc.passes.analysis.crystal.lattices import reduced_basis

#: The most waves that are taken off one by one.
PEAKS = 12
#: Power over noise from which a wave of the lattice takes part in its refinement.
STRONG = 4.0
#: Share of the threshold of the first wave that the others reach, and that a second direction must explain.
OTHERS, SECOND = 0.5, 0.3
#: What a wave of a lattice costs, in power over noise: in small windows, and from 32 × 32 on.
PRICES = (4.0, 3.2)
#: Least noise that is reckoned with, as a share of the variance.
FAINT = 1e-3
#: Fewest cycles within the window that are seen as a period.
CYCLES = 1.9
#: The most pairs of waves ±G that are fitted together.
WAVES = 96
#: Steps a side of the middle of an array that is searched.
MIDDLE = 256
#: Steps a side from which weights taper off.
TAPERED = 40


@dataclass(frozen=True, eq=False)
class ReciprocalFit:
    """Rows of ``basis`` (rank, 2) are frequencies; the waves ``orders`` (k, rank) of them were fitted; ``covariance``
    (2, rank, rank) of the basis's two columns; ``share`` of the variance in these waves."""

    basis: np.ndarray
    orders: np.ndarray
    covariance: np.ndarray
    share: float


# --- waves -------------------------------------------------------------------------------------------------
def _kernel(offset: np.ndarray, n: int, slopes: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Σ e^{2πi·offset·x} over n steps x about their centre, which is real, and its slope in the offset, or 0."""
    sine = np.sin(np.pi * offset)
    small = np.abs(sine) < 1e-9
    safe = np.where(small, 1.0, sine)
    wave = np.sin(np.pi * offset * n)
    value = np.where(small, n * np.cos(np.pi * offset * (n - 1)), wave / safe)
    if not slopes:
        return value, np.zeros(())
    bent = n * np.cos(np.pi * offset * n) * safe - wave * np.cos(np.pi * offset)
    return value, np.where(small, 0.0, np.pi * bent / safe**2)


@dataclass(frozen=True, eq=False)
class WaveFit:
    """Waves e^{2πi G·x} and their mirror images fitted to an array: ``power`` they explain together, each ``amplitude``
    (k,), and ``slope`` (k, 2) of the power in the frequencies."""

    power: float
    amplitude: np.ndarray
    slope: np.ndarray


def _window(n: int, tapered: bool) -> tuple[np.ndarray, np.ndarray]:
    """(steps about the centre, weights) along an axis: equal ones, or those of Hann, whose waves leak less far."""
    x = np.arange(n) - (n - 1) / 2
    return x, 0.5 + 0.5 * np.cos(2 * np.pi * x / n) if tapered else np.ones(n)


def _tapers(shape: tuple[int, ...]) -> bool:
    """Whether weights taper off to the edges: in small windows, noise matters more than what waves leak."""
    return min(shape) >= TAPERED


def _weighted_kernel(offset: np.ndarray, n: int, tapered: bool, slopes: bool) -> tuple[np.ndarray, np.ndarray]:
    value, slope = _kernel(offset, n, slopes)
    if tapered:
        low, high = _kernel(offset - 1 / n, n, slopes), _kernel(offset + 1 / n, n, slopes)
        value, slope = (0.5 * a + 0.25 * (b + c) for a, b, c in zip((value, slope), low, high))
    return value, slope


def fit_waves(array: np.ndarray, frequencies: np.ndarray, slopes: bool = False) -> WaveFit:
    """The weighted least squares of real waves of the frequencies (k, 2), by the normal equations of ±G; with
    ``slopes``, else these are 0."""
    n, m = array.shape
    tapered = _tapers(array.shape)
    (x, u), (y, v) = _window(n, tapered), _window(m, tapered)
    rows = u * np.exp(-2j * np.pi * frequencies[:, :1] * x)
    cols = v * np.exp(-2j * np.pi * frequencies[:, 1:] * y)
    half = rows.real @ array + 1j * (rows.imag @ array)
    value = (half * cols).sum(1)
    both = np.concatenate([frequencies, -frequencies])
    (a, da), (b, db) = (
        _weighted_kernel(both[:, None, c] - both[None, :, c], k, tapered, slopes) for c, k in ((0, n), (1, m))
    )
    gram = a * b
    right = np.concatenate([value, value.conj()])
    gram[np.diag_indices(len(gram))] *= 1 + 1e-12  # a wave at the edge of the zone is its own mirror image
    amplitude = scipy.linalg.solve(gram, right, assume_a="sym")
    power = float((right.conj() @ amplitude).real)
    k = len(frequencies)
    if not slopes:
        return WaveFit(power, amplitude[:k], np.zeros((k, 2)))
    rows = rows * x
    tilted = rows.real @ array + 1j * (rows.imag @ array)
    slope = -2j * np.pi * np.stack([(tilted * cols).sum(1), (half * (cols * y)).sum(1)], axis=1)
    left = slope - np.stack([(da * b)[:k] @ amplitude, (a * db)[:k] @ amplitude], axis=1)
    return WaveFit(power, amplitude[:k], 4 * (amplitude[:k].conj()[:, None] * left).real)


# --- peaks -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Peaks:
    """Frequencies (k, 2) of the waves that stand out, the strongest first; the ``noise``, the power of what is left;
    and how many of them are ``sure``, so strong that noise alone would hardly have one; the ``array`` less its mean
    beside these waves."""

    frequencies: np.ndarray
    noise: float
    sure: int
    array: np.ndarray


def peaks_of(array: np.ndarray, level: float) -> Peaks:
    """The waves that stand out of an array of mean 0: each is refined with those before, and all are taken off before
    the next is looked for. Noise alone has one with probability ``level``, about."""
    n, m = array.shape
    pad = tuple(scipy.fft.next_fast_len(k * (2 if n * m <= 1 << 17 else 1), real=True) for k in (n, m))
    grid = np.fft.fftfreq(pad[0]), np.fft.rfftfreq(pad[1])
    slow = np.hypot(grid[0][:, None] * n, grid[1][None, :] * m) < CYCLES
    for a, b in ((0.5, 0.0), (0.0, 0.5), (0.5, 0.5)):  # waves of two steps, which are their own mirror images
        rows, cols = np.minimum(abs(grid[0] - a), abs(grid[0] + a)), abs(grid[1] - b)
        slow |= np.hypot(rows[:, None] * n, cols[None, :] * m) < 1
    threshold = math.log(2 * n * m / level)
    phase = [np.exp(1j * np.pi * g * (k - 1)) for g, k in zip(grid, (n, m))]
    whole = scipy.fft.rfft2(array, pad) * phase[0][:, None] * phase[1][None, :]
    found, field, sure = np.zeros((0, 2)), whole, 0
    while True:
        power = np.abs(field) ** 2 / array.size
        noise = max(float(np.median(power)) / math.log(2), FAINT * float((array**2).mean()))
        relative = power / np.maximum(_smooth_level(power), noise)
        relative[slow] = 0
        at = np.unravel_index(int(relative.argmax()), relative.shape)
        if len(found) == PEAKS or relative[at] < (threshold if not len(found) else OTHERS * threshold):
            return Peaks(found, noise, sure, array)
        sure += relative[at] >= threshold
        found = np.vstack([found, [grid[0][at[0]], grid[1][at[1]]]])
        found, fit = _climbed(array, found)
        waves = [_kernel(found[:, c], k)[0] for c, k in ((0, n), (1, m))]
        rest = float(array.mean()) - 2 * float((fit.amplitude.real * waves[0] * waves[1]).sum()) / array.size
        array = array - rest  # the mean of whole waves is 0, that of the window's part of them is not
        whole = whole - rest * np.outer(*(_kernel(g, k)[0] for g, k in zip(grid, (n, m))))
        field = whole - _transform(found, fit.amplitude, grid, (n, m))


def _smooth_level(power: np.ndarray) -> np.ndarray:
    """Means of noise by the medians of tiles of the spectrum."""
    n, m = power.shape
    tiles = max(1, min(16, n // 24)), max(1, min(8, m // 24))
    rows, cols = (np.linspace(0, k, t + 1).astype(int) for k, t in zip((n, m), tiles))
    coarse = np.array(
        [[np.median(power[i:j, k:l]) for k, l in itertools.pairwise(cols)] for i, j in itertools.pairwise(rows)]
    )
    result: np.ndarray = np.repeat(np.repeat(coarse, np.diff(rows), 0), np.diff(cols), 1) / math.log(2)
    return result


def _transform(
    frequencies: np.ndarray, amplitude: np.ndarray, grid: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]
) -> np.ndarray:
    """The transform of waves and their mirror images on a grid of frequencies."""
    both, c = np.concatenate([frequencies, -frequencies]), np.concatenate([amplitude, amplitude.conj()])
    rows, cols = (_kernel(g[:, None] - both[None, :, k], n)[0] for k, (g, n) in enumerate(zip(grid, shape)))
    result: np.ndarray = (rows * c) @ cols.T
    return result


@dataclass(frozen=True, eq=False)
class _Weights:
    """Of the window of a shape: ``total`` weight; ``noise``, what a wave fitted to noise of variance 1 explains; how
    fast the power of a wave falls off its frequency along each axis, over that power (``bend``, the second slope), and
    the variance (``spread``) of a fitted frequency times the wave's power over noise of variance 1."""

    total: float
    noise: float
    bend: np.ndarray
    spread: np.ndarray


def _weights(shape: tuple[int, int]) -> _Weights:
    axes = [_window(k, _tapers(shape)) for k in shape]
    first, second = [float(w.sum()) for _, w in axes], [float((w * w).sum()) for _, w in axes]
    total = first[0] * first[1]
    bend, spread = np.zeros(2), np.zeros(2)
    for c, (x, w) in enumerate(axes):
        moment = float((w * x * x).sum()) / first[c]
        bend[c] = 2 * (2 * np.pi) ** 2 * moment
        rough = float((w * w * x * x).sum()) * second[1 - c]
        spread[c] = rough / (2 * (2 * np.pi) ** 2 * moment**2 * total)
    return _Weights(total, second[0] * second[1] / total, bend, spread)


def _climbed(array: np.ndarray, frequencies: np.ndarray, steps: int = 3) -> tuple[np.ndarray, WaveFit]:
    """Frequencies moved to where they explain most together."""
    limit, weights = 0.25 / np.array(array.shape), _weights((array.shape[0], array.shape[1]))
    fit = fit_waves(array, frequencies, slopes=True)
    for _ in range(steps):
        power = np.abs(fit.amplitude[:, None]) ** 2 * weights.total
        moved = np.clip(fit.slope / (2 * weights.bend * power + np.finfo(float).tiny), -limit, limit)
        new = fit_waves(array, frequencies + moved, slopes=True)
        if not new.power > fit.power:
            break
        frequencies, fit = frequencies + moved, new
    return frequencies, fit


# --- lattices ----------------------------------------------------------------------------------------------
def orders_of(basis: np.ndarray, radius: float, most: int = WAVES) -> np.ndarray:
    """Integers (k, rank) of one of each pair of waves ±G up to ``radius`` and within the sampling's zone, the lowest
    first, no more than ``most``."""
    rank = len(basis)
    reduced, turn = (basis, np.eye(1, dtype=np.int64)) if rank == 1 else reduced_basis(basis)
    most_of = [int(radius / max(1e-6, _height(reduced, k))) + 1 for k in range(rank)]
    few = np.array(list(itertools.product(*(range(-min(h, 64), min(h, 64) + 1) for h in most_of))))
    frequencies = few @ reduced
    first = (few[:, 0] > 0) | ((few[:, 0] == 0) & (few[:, -1] > 0))
    kept = first & (np.abs(frequencies) < 0.5).all(1) & ((frequencies**2).sum(1) <= radius * radius)
    few, frequencies = few[kept], frequencies[kept]
    order = np.argsort((frequencies**2).sum(1), kind="stable")
    result: np.ndarray = few[order[:most]] @ turn
    return result


def _height(reduced: np.ndarray, k: int) -> float:
    """How far rows of the lattice without vector k are apart."""
    if len(reduced) == 1:
        return float(np.linalg.norm(reduced[0]))
    area = abs(reduced[0, 0] * reduced[1, 1] - reduced[0, 1] * reduced[1, 0])
    return float(area / np.linalg.norm(reduced[1 - k]))


def _without_pairs(array: np.ndarray) -> np.ndarray:
    """An array less its mean and its waves of two steps, whose leaks would stand out."""
    i, j = np.indices(array.shape)
    for sign in (0 * i, i, j, i + j):
        wave = 1.0 - 2.0 * (sign % 2)
        array = array - (array * wave).mean() * wave
    return array


def fitted_lattice(array: np.ndarray, level: float) -> tuple[ReciprocalFit | None, bool]:
    """The reciprocal lattice of the waves that stand out of an array (n, m), None where none does, and whether some do
    that make no lattice. Of large arrays the middle is searched, and the lattice refined on all."""
    n, m = array.shape
    high, wide = min(n, MIDDLE), min(m, MIDDLE)
    middle = array[(n - high) // 2 : (n + high) // 2, (m - wide) // 2 : (m + wide) // 2]
    peaks = peaks_of(_without_pairs(middle), level)
    middle = peaks.array
    if not len(peaks.frequencies):
        return None, False
    candidates = _candidates(peaks.frequencies, middle.shape)
    radius = _radius(peaks.frequencies[: max(3, peaks.sure)], candidates)
    price = PRICES[middle.size >= 1024]
    scored: list[tuple[float, int, np.ndarray]] = []
    unit = 2 * peaks.noise * _weights((high, wide)).noise
    second = SECOND * math.log(2 * middle.size / level)
    for basis in candidates:
        moved = _toward(middle, basis, radius)
        orders = orders_of(moved, radius)
        if len(orders) and _apart(moved, middle.shape):
            score = fit_waves(middle, orders @ moved).power / unit - price * len(orders) - second * (len(moved) - 1)
            scored.append((score, len(scored), moved))
    fit = _refined(array - array.mean(), max(scored)[2], radius, peaks.noise) if scored else None
    return fit, fit is None


def _radius(peaks: np.ndarray, candidates: list[np.ndarray]) -> float:
    """Up to which frequency waves are counted: beyond the peaks, as far as the finest candidate has no more than
    `WAVES`."""
    lengths = np.linalg.norm(peaks, axis=1)
    cells = [float(abs(np.linalg.det(b))) for b in candidates if len(b) == 2]
    fits = math.sqrt(1.8 * WAVES * min(cells) / math.pi) if cells else 1.0
    return max(1.05 * float(lengths[:3].max()), min(1.6 * float(lengths.max()), fits))


def _candidates(peaks: np.ndarray, shape: tuple[int, int]) -> list[np.ndarray]:
    """Bases that many peaks are combinations of: of peaks and of pairs of them, and finer ones."""
    found = [peaks[k : k + 1] / d for k in range(min(3, len(peaks))) for d in (1, 2, 3)]
    pairs = []
    for i, j in itertools.combinations(range(len(peaks)), 2):
        one, two = peaks[[i, j]]
        if abs(one[0] * two[1] - one[1] * two[0]) > 0.02 * np.linalg.norm(one) * np.linalg.norm(two):
            basis = reduced_basis(peaks[[i, j]])[0]
            if _apart(basis, shape):
                pairs.append((_missed(peaks, basis, shape), basis))
    few: list[np.ndarray] = []
    for _, basis in sorted(pairs, key=lambda p: p[0]):
        if not any(_same(basis, other, shape) for other in few):
            few.append(basis)
    for p, q in few[:2]:
        finer = [(p / 2, q), (p, q / 2), (p, (p + q) / 2), (p / 3, q), (p, q / 3), (p, (p + q) / 3), (p, (q - p) / 3)]
        found += [np.array(b) for b in finer if _apart(np.array(b), shape)]
    return [*found, *few[:6]]


def _missed(peaks: np.ndarray, basis: np.ndarray, shape: tuple[int, int]) -> tuple[int, float]:
    """How many peaks are more than half a cycle off a lattice; and minus the area of its cell, so that of lattices that
    miss as many the coarsest comes first."""
    rest = peaks - np.rint(peaks @ np.linalg.inv(basis)) @ basis
    return int((np.abs(rest) * np.array(shape) > 0.5).any(1).sum()), -float(abs(np.linalg.det(basis)))


def _same(one: np.ndarray, two: np.ndarray, shape: tuple[int, int]) -> bool:
    """Whether each of two bases is made of the other's vectors, up to a third of a cycle."""
    for a, b in ((one, two), (two, one)):
        rest = a - np.rint(a @ np.linalg.inv(b)) @ b
        if (np.abs(rest) * np.array(shape) > 0.34).any():
            return False
    return True


def _apart(basis: np.ndarray, shape: tuple[int, int]) -> bool:
    """Whether waves of a lattice are told apart by the window: neighbours are some cycles from each other."""
    cycles = basis * np.array(shape)
    if len(basis) == 1:
        return bool(np.linalg.norm(cycles) >= CYCLES)
    if abs(np.linalg.det(cycles)) < 1e-6:
        return False
    return bool(np.linalg.norm(reduced_basis(cycles)[0][0]) >= 0.8 * CYCLES)


def _toward(array: np.ndarray, basis: np.ndarray, radius: float) -> np.ndarray:
    """A basis moved toward more power of its waves, the lowest ones first."""
    orders = orders_of(basis, radius, 24)
    for count in (4, 8, 12, 24) if len(orders) else ():
        basis = basis + _step(array, basis, orders[:count])[0]
    return basis


def _step(array: np.ndarray, basis: np.ndarray, orders: np.ndarray) -> tuple[np.ndarray, WaveFit]:
    """How the basis moves by the waves' own slopes, weighted by their powers."""
    fit = fit_waves(array, orders @ basis, slopes=True)
    weights = _weights((array.shape[0], array.shape[1]))
    power = np.abs(fit.amplitude) ** 2 * weights.total
    limit = 0.25 / np.array(array.shape)
    pull = fit.slope / (2 * weights.bend)
    normal = orders.T @ (orders * power[:, None])
    moved = np.linalg.lstsq(normal, orders.T @ pull, rcond=None)[0]
    reach = np.maximum(np.abs(orders).max(0), 1)[:, None]
    return np.clip(moved, -limit / reach, limit / reach), fit


def strong_orders(array: np.ndarray, basis: np.ndarray, orders: np.ndarray, noise: float) -> np.ndarray:
    """The waves whose power is `STRONG` times the noise or more, and of the others the strongest that a basis needs."""
    weights, rank = _weights((array.shape[0], array.shape[1])), len(basis)
    power = np.abs(fit_waves(array, orders @ basis).amplitude) ** 2 * weights.total / weights.noise
    kept = list(np.flatnonzero(power > STRONG * noise))
    for k in np.argsort(-power):
        if np.linalg.matrix_rank(orders[kept].reshape(-1, rank)) == rank:
            break
        kept.append(k)
    result: np.ndarray = orders[sorted(set(kept))]
    return result


def _refined(array: np.ndarray, basis: np.ndarray, radius: float, noise: float) -> ReciprocalFit | None:
    """The basis where the waves that stand out explain most, and its errors; None where steps do not settle."""
    basis = _toward(array, basis, radius)
    orders = strong_orders(array, basis, orders_of(basis, radius), noise)
    for _ in range(60):
        moved, fit = _step(array, basis, orders)
        basis = basis + moved
        cycles = float(np.abs(moved * np.array(array.shape)).max())
        if cycles < 1e-12:
            break
    if not cycles < 1e-8:
        return None
    weights = _weights((array.shape[0], array.shape[1]))
    power = np.abs(fit.amplitude) ** 2 / noise
    spread = np.linalg.pinv(orders.T @ (orders * power[:, None]))
    covariance = np.stack([spread * s / weights.total for s in weights.spread])
    (_, u), (_, v) = (_window(k, _tapers(array.shape)) for k in array.shape)
    explained = fit_waves(array, orders @ basis).power / float(u @ array**2 @ v)
    return ReciprocalFit(basis, orders, covariance, min(1.0, explained))
