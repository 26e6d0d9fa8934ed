"""Exact translations of an array: shifts after which all that overlaps is equal, and the cell that they leave.

The finite object: a lattice Λ of integer shifts such that the array is a part of a Λ-periodic pattern, made of shifts
of up to half of each side, so that a quarter of the array or more overlaps. An overlap that is constant shows nothing,
unless all of the array is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
import torch

from aatc.passes.analysis.crystal.lattices import CrystalError, canonical_basis


def as_pattern(pattern: Any) -> np.ndarray:
    """A real or boolean array (n, m) of finite numbers or infinities, not empty. `CrystalError` otherwise."""
    if isinstance(pattern, torch.Tensor):
        pattern = pattern.detach().cpu()
        pattern = pattern.double() if pattern.is_floating_point() else pattern
    array = np.asarray(pattern)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "biuf":
        raise CrystalError(
            f"a pattern is a real array (n, m), not {array.shape} of {array.dtype}",
            hint="give one head, mask or bias at a time, as numbers",
        )
    if np.isnan(array).any():
        at = tuple(int(i) for i in np.argwhere(np.isnan(array))[0])
        raise CrystalError(f"the pattern is NaN at {at}", hint="find where the NaN arises")
    return array


def source_of(pattern: Any) -> Any:
    """What a witness keeps of a pattern: an array of it, or an object that is evaluated whenever it is asked for."""
    plain = isinstance(pattern, np.ndarray | torch.Tensor) or not hasattr(pattern, "__array__")
    return as_pattern(pattern) if plain else pattern


def codes_of(array: np.ndarray) -> np.ndarray:
    """Whole numbers (n, m) that are equal exactly where entries are."""
    _, codes = np.unique(array, return_inverse=True)
    return np.asarray(codes).reshape(array.shape)


@dataclass(frozen=True)
class Cosets:
    """Z² modulo a lattice of rank 2 with the basis ((p, q), (0, r)) of Hermite's form, 0 ≤ q < r."""

    p: int
    q: int
    r: int

    @property
    def index(self) -> int:
        return self.p * self.r

    @property
    def basis(self) -> np.ndarray:
        return np.array([[self.p, self.q], [0, self.r]])

    def number(self, i: Any, j: Any) -> Any:
        """Which coset (i, j) lies in, from 0 to index − 1; arrays are taken elementwise."""
        turns = i // self.p
        return (i - turns * self.p) * self.r + (j - turns * self.q) % self.r

    def point(self, number: Any) -> tuple[Any, Any]:
        """The point of a coset in the cell p × r."""
        return number // self.r, number % self.r


def hermite_form(vectors: np.ndarray) -> np.ndarray:
    """The basis (rank, 2) in Hermite's form of the lattice that integer vectors (k, 2) generate."""
    rows = [[int(x) for x in v] for v in vectors if v[0] or v[1]]
    top: list[int] = [0, 0]
    rest = 0
    for row in rows:
        while row[0]:
            top, row = row, [t - (top[0] // row[0]) * x for t, x in zip(top, row)]
        rest = math.gcd(rest, row[1])
    if top[0] < 0:
        top = [-top[0], -top[1]]
    if rest and top[0]:
        return np.array([[top[0], top[1] % rest], [0, rest]])
    if top[0]:
        return np.array([top])
    return np.array([[0, rest]]) if rest else np.zeros((0, 2), dtype=np.int64)


def cosets_of(basis: np.ndarray) -> Cosets:
    """The cosets of a lattice of rank 2."""
    (p, q), (_, r) = hermite_form(basis).tolist()
    return Cosets(p, q, r)


def fold(codes: np.ndarray, cosets: Cosets) -> np.ndarray | None:
    """The entry of each coset, (index,), −1 where the array has none; None where one has two."""
    i, j = np.arange(codes.shape[0])[:, None], np.arange(codes.shape[1])[None, :]
    numbers = cosets.number(i, j)
    cell = np.full(cosets.index, -1, dtype=codes.dtype)
    cell[numbers] = codes
    return cell if np.array_equal(cell[numbers], codes) else None


def exact_translations(pattern: Any, sampling: np.ndarray) -> np.ndarray:
    """A reduced basis (rank, 2) of integers of the lattice of exact translations of an array (n, m).

    Shifts of up to half of each side are taken in, the shortest in space first, as long as the array stays a part of a
    pattern with all of their translations. `CrystalError`.
    """
    array = as_pattern(pattern)
    basis = np.zeros((0, 2), dtype=np.int64)
    n, m = array.shape
    flat = np.sort(array, axis=None)
    if 1 + np.count_nonzero(flat[1:] != flat[:-1]) > n * m - (n - n // 2) * (m - m // 2):
        return basis  # more entries than could be without partners in any overlap
    codes = codes_of(array)
    constant = not codes.any()
    waiting = _candidates(codes, sampling)
    while len(waiting):
        shift, waiting = waiting[0], waiting[1:]
        shown = overlap(codes, int(shift[0]), int(shift[1]))[0]
        if not constant and (shown == shown[0, 0]).all():
            continue
        wider = hermite_form(np.vstack([basis, shift]))
        if _periodic(codes, wider):
            basis = wider
            waiting = waiting[~_members(waiting, basis)]
    if len(basis) == 2:
        basis = np.rint(canonical_basis(basis @ sampling) @ np.linalg.inv(sampling)).astype(np.int64)
    return basis


def _members(vectors: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Which integer vectors (k, 2) lie in a lattice in Hermite's form."""
    if len(basis) == 2:
        return np.asarray(cosets_of(basis).number(vectors[:, 0], vectors[:, 1]) == 0)
    a, b = (int(x) for x in basis[0])
    size = a if a else b
    lead = vectors[:, 0] if a else vectors[:, 1]
    same: np.ndarray = (lead % size == 0) & (vectors[:, 0] * b == vectors[:, 1] * a)
    return same


def _periodic(codes: np.ndarray, basis: np.ndarray) -> bool:
    if len(basis) == 2:
        return fold(codes, cosets_of(basis)) is not None
    here, there = overlap(codes, int(basis[0][0]), int(basis[0][1]))
    step = max(1, (1 << 16) // max(1, here.shape[1]))
    return all(np.array_equal(here[k : k + step], there[k : k + step]) for k in range(0, len(here), step))


def overlap(array: np.ndarray, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
    """Entries x and x + (a, b), as far as both lie in the array."""
    n, m = array.shape
    rows, cols = slice(max(0, -a), n - max(0, a)), slice(max(0, -b), m - max(0, b))
    moved = slice(max(0, a), n + min(0, a)), slice(max(0, b), m + min(0, b))
    return array[rows, cols], array[moved]


def _candidates(codes: np.ndarray, sampling: np.ndarray) -> np.ndarray:
    """Shifts (k, 2), one of ±u each and the shortest first, after which the array may be equal: its entries are drawn
    as random numbers, whose differences are summed by Fourier transforms."""
    n, m = codes.shape
    drawn = np.random.default_rng(0).standard_normal(int(codes.max()) + 1)[codes]
    high, wide = n // 2, m // 2
    shape = (scipy.fft.next_fast_len(n + high, real=True), scipy.fft.next_fast_len(m + wide, real=True))
    products = scipy.fft.irfft2(np.abs(scipy.fft.rfft2(drawn, shape)) ** 2, shape)
    a, b = np.arange(high + 1)[:, None], np.arange(-wide, wide + 1)[None, :]
    sums = np.zeros((n + 1, m + 1))
    sums[1:, 1:] = np.cumsum(np.cumsum(drawn**2, 0), 1)
    low, left, right = n - a, np.maximum(-b, 0), m - np.maximum(b, 0)
    here = sums[low, right] - sums[0, right] - sums[low, left] + sums[0, left]
    left, right = np.maximum(b, 0), m + np.minimum(b, 0)
    there = sums[n, right] - sums[a, right] - sums[n, left] + sums[a, left]
    missed = here + there - 2 * products[a, b]
    found = np.argwhere(missed <= 1e-9 * (1.0 + sums[n, m])) - [0, wide]
    found = found[(found[:, 0] > 0) | (found[:, 1] > 0)]
    lengths = ((found @ sampling) ** 2).sum(1)
    order = np.lexsort((found[:, 1], found[:, 0], np.round(lengths, 9)))
    result: np.ndarray = found[order]
    return result
