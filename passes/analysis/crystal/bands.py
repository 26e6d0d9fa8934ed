"""Bands of a crystal: eigenvalues of the symbol of a block-Toeplitz operator, and their winding and Chern numbers.

The finite object: a crystal with s sites a cell and hoppings T_R of finitely many shifts R, whose symbol is
H(k) = Σ_R T_R e^{ik·R}, k in radians along the lattice's basis. Of an array the Toeplitz part is taken: the means of
its (block) diagonals. Sources: Böttcher, Silbermann, Introduction to Large Truncated Toeplitz Matrices (1999), chapter
1; Asbóth, Oroszlány, Pályi, A Short Course on Topological Insulators (2016).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aatc.passes.analysis.crystal.lattices import CrystalError
from aatc.passes.analysis.crystal.translations import as_pattern, source_of
from aatc.passes.analysis.crystal.verify_crystal import witnessed
from aatc.passes.analysis.quantum.geometry import chern_number
from aatc.passes.analysis.quantum.states import QuantumError
from aatc.passes.analysis.result import Result, Undecided

#: Relative difference of numbers that are taken to be equal.
ROUNDING = 1e-10


@dataclass(frozen=True, eq=False)
class Crystal:
    """Hoppings ``blocks`` (k, s, s), complex, for the shifts ``shifts`` (k, d) of whole cells: block[a, b] goes from
    site a of a cell to site b of the cell R further. Made by `crystal`, which checks what it is given."""

    shifts: np.ndarray
    blocks: np.ndarray

    @property
    def dimension(self) -> int:
        return int(self.shifts.shape[1])

    @property
    def sites(self) -> int:
        return int(self.blocks.shape[1])

    def symbol(self, k: Any) -> np.ndarray:
        """H(k) (..., s, s) at wave vectors (..., d) in radians along the basis."""
        phases = np.exp(1j * (np.asarray(k, dtype=np.float64) @ self.shifts.T))
        result: np.ndarray = np.tensordot(phases, self.blocks, axes=(-1, 0))
        return result

    @property
    def hermitian(self) -> bool:
        """Whether H(k) is Hermitian for all k: T_{−R} is the adjoint of T_R."""
        table = {tuple(r): b for r, b in zip(self.shifts.tolist(), self.blocks)}
        room = ROUNDING * float(np.abs(self.blocks).max(initial=0.0))
        zero = np.zeros_like(self.blocks[0])
        return all(np.abs(b - table.get(tuple(-x for x in r), zero).conj().T).max() <= room for r, b in table.items())


def crystal(hoppings: Mapping[Any, Any], *, hermitian: bool = True) -> Crystal:
    """A crystal of hoppings {R: T_R}: R a shift, a whole number or (d,) of them, d up to 3, T_R a number or (s, s).

    ``hermitian``: adjoints of the shifts −R that are not given are added. Raises `CrystalError` for shapes that do not
    fit, numbers that are not finite, and, where it is to be Hermitian, for T_{−R} that is given and not the adjoint of
    T_R."""
    table: dict[tuple[int, ...], np.ndarray] = {}
    for shift, block in hoppings.items():
        r = tuple(np.atleast_1d(np.asarray(shift)).tolist())
        t = np.atleast_2d(np.asarray(block, dtype=np.complex128))
        if not all(isinstance(x, int) for x in r) or not 1 <= len(r) <= 3:
            raise CrystalError(f"a hopping goes by 1 to 3 whole numbers of cells, not by {shift!r}")
        if t.ndim != 2 or t.shape[0] != t.shape[1] or not np.isfinite(t).all():
            raise CrystalError(f"the hopping by {shift!r} is a finite square matrix, not {t.shape}")
        table[r] = t
    if not table or len({(len(r), t.shape) for r, t in table.items()}) > 1:
        raise CrystalError("a crystal has hoppings, all of one dimension and one number of sites")
    if hermitian:
        for r in list(table):
            table.setdefault(tuple(-x for x in r), table[r].conj().T)
    made = Crystal(np.array(list(table)), np.stack(list(table.values())))
    if hermitian and not made.hermitian:
        raise CrystalError("T_{−R} is not the adjoint of T_R", hint="give one of the two, or hermitian=False")
    return made


# --- Toeplitz parts of arrays ------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class ToeplitzPart:
    """The Toeplitz matrix nearest to an array, by blocks: means ``blocks`` (k, s, s) of its block diagonals ``shifts``
    (k,), and the ``share`` of the array's square norm that it holds."""

    shifts: np.ndarray
    blocks: np.ndarray
    share: float

    def crystal(self) -> Crystal:
        """The crystal with these hoppings."""
        return Crystal(self.shifts[:, None], self.blocks.astype(np.complex128))


def toeplitz_part(pattern: Any, block: int = 1) -> Result[Any]:
    """The means of all block diagonals of a square array (n, n), n a multiple of ``block``: a `ToeplitzPart`.

    It is the orthogonal projection on block-Toeplitz matrices. P2, or P0 where the array is one, exactly. Raises
    `CrystalError`.
    """
    array = as_pattern(pattern).astype(np.float64)
    n = array.shape[0]
    if array.shape != (n, n) or block < 1 or n % block or not np.isfinite(array).all():
        raise CrystalError(
            f"an array {array.shape} has no block diagonals of {block}", hint="finite, square, n / block"
        )
    cells = n // block
    tiles = array.reshape(cells, block, cells, block).transpose(0, 2, 1, 3)
    shifts = np.arange(1 - cells, cells)
    blocks = np.stack([_diagonal(tiles, int(r)).mean(0) for r in shifts])
    counts = cells - np.abs(shifts)
    exact = all((_diagonal(tiles, int(r)) == _diagonal(tiles, int(r))[0]).all() for r in shifts)
    if exact:
        blocks = np.stack([_diagonal(tiles, int(r))[0] for r in shifts])
    norm = float((array**2).sum())
    share = 1.0 if exact else float((counts * (blocks**2).sum((1, 2))).sum()) / norm
    value = ToeplitzPart(shifts, blocks, share)
    return witnessed(value, "toeplitz", {"pattern": source_of(pattern), "block": block}, 0.0 if exact else 1e-9,
                     level="P0" if exact else "P2")  # fmt: skip


def _diagonal(tiles: np.ndarray, r: int) -> np.ndarray:
    i = np.arange(max(0, -r), len(tiles) - max(0, r))
    result: np.ndarray = tiles[i, i + r]
    return result


# --- bands -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class BandTopology:
    """``winding``: how often det(H(k) − E) goes around 0 for k around each axis of the zone, E the reference energy, of
    one-dimensional crystals, by sublattice where they have one (det of the block that leads from one to the other);
    ``chern``: Chern numbers of the bands of two-dimensional Hermitian crystals, lowest first, in groups that do not
    touch, (first band, number of bands, number, proved). `Undecided` for what is not defined. ``proved``: the grid is
    so fine that no crystal between its points can change the number."""

    winding: int | Undecided
    chern: tuple[tuple[int, int, int, bool], ...] | Undecided


@dataclass(frozen=True, eq=False)
class BandStructure:
    """``energies`` (k, s) at ``points`` (k, d), radians along the basis: real and ascending of Hermitian crystals, else
    complex. ``gaps`` (s − 1,): least energy of a band less the largest of that below, over the points, negative where
    they overlap; empty where energies are complex."""

    points: np.ndarray
    energies: np.ndarray
    gaps: np.ndarray
    topology: BandTopology


def band_structure(
    model: Crystal | Mapping[Any, Any] | Any, points: Any = None, *, grid: int = 48, energy: float = 0.0
) -> Result[Any]:
    """Bands and topology of a crystal, a `BandStructure`.

    ``model``: a `Crystal`, hoppings {R: T_R}, or a square array, whose Toeplitz part is taken. ``points`` (k, d) in
    radians along the basis, such as `path_of`; a grid of ``grid`` points an axis unless given (the gaps are then those
    of the grid). ``energy``: the reference of winding numbers. Topology is that of the grid; Chern numbers say whether
    it is proved for all k. P2. Raises `CrystalError`.
    """
    made = as_crystal(model)
    d = made.dimension
    if grid < 4 or grid**d > 1 << 18:
        raise CrystalError(f"a grid of {grid} points an axis in {d} dimensions", hint="4 or more, 2¹⁸ in all at most")
    axes = np.meshgrid(*([2 * np.pi * np.arange(grid) / grid] * d), indexing="ij")
    k = np.stack(axes, axis=-1).reshape(-1, d) if points is None else np.asarray(points, dtype=np.float64)
    if k.ndim != 2 or k.shape[1] != d or not np.isfinite(k).all() or not len(k):
        raise CrystalError(f"points have shape (k, {d}) and are finite, not {k.shape}")
    h = made.symbol(k)
    if made.hermitian:
        energies = np.linalg.eigvalsh((h + h.conj().transpose(0, 2, 1)) / 2)
        gaps = energies[:, 1:].min(0) - energies[:, :-1].max(0)
    else:
        energies = _ordered(np.linalg.eigvals(h))
        gaps = np.zeros(0)
    value = BandStructure(k, energies, gaps, _topology(made, grid, energy))
    data = {"shifts": made.shifts, "blocks": made.blocks, "points": k, "grid": grid, "energy": float(energy)}
    room = 1e-9 if made.hermitian else 1e-5  # defective matrices lose half the digits, and more
    return witnessed(value, "bands", data, room, assumptions=("winding and Chern numbers are those of a grid",))


def as_crystal(model: Any) -> Crystal:
    """A `Crystal` of what may be one: hoppings by shift, or a square array, whose Toeplitz part is taken."""
    if isinstance(model, Crystal):
        return model
    if isinstance(model, ToeplitzPart):
        return model.crystal()
    if isinstance(model, Mapping):
        return crystal(model, hermitian=False)
    part: ToeplitzPart = toeplitz_part(model).value
    return part.crystal()


def _ordered(energies: np.ndarray) -> np.ndarray:
    """Complex energies (k, s) by real part, then by imaginary part."""
    order = np.lexsort((np.round(energies.imag, 9), np.round(energies.real, 9)))
    result: np.ndarray = np.take_along_axis(energies, order, axis=-1)
    return result


def path_of(corners: Sequence[Any], steps: int = 32) -> np.ndarray:
    """Points (k, d) on the straight lines from corner to corner, ``steps`` a line, the last corner included."""
    ends = [np.atleast_1d(np.asarray(c, dtype=np.float64)) for c in corners]
    if len(ends) < 2 or steps < 1:
        raise CrystalError("a path has two corners or more, and steps")
    lines = [a + (b - a) * (np.arange(steps) / steps)[:, None] for a, b in itertools.pairwise(ends)]
    return np.concatenate([*lines, ends[-1][None]])


# --- topology ----------------------------------------------------------------------------------------------
def _topology(made: Crystal, grid: int, energy: float) -> BandTopology:
    winding: int | Undecided = Undecided("one dimension", "winding numbers are those of one-dimensional crystals")
    chern: tuple[tuple[int, int, int, bool], ...] | Undecided = Undecided(
        "two dimensions", "Chern numbers are those of Hermitian crystals in two dimensions"
    )
    if made.dimension == 1:
        winding = winding_number(made, energy)
    if made.dimension == 2 and made.hermitian:
        chern = _chern_numbers(made, grid)
    return BandTopology(winding, chern)


def sublattices(made: Crystal) -> tuple[list[int], list[int]] | None:
    """Two halves of the sites such that all hoppings lead from one to the other, None where there are none."""
    joined = (np.abs(made.blocks) > 0).any(0)
    side, waiting = {0: 0}, [0]
    while waiting:
        a = waiting.pop()
        for b in np.flatnonzero(joined[a] | joined[:, a]).tolist():
            if b not in side:
                side[b] = 1 - side[a]
                waiting.append(b)
            elif side[b] == side[a]:
                return None
    halves = [[a for a in range(made.sites) if side.get(a) == k] for k in (0, 1)]
    return (halves[0], halves[1]) if len(halves[0]) == len(halves[1]) and len(side) == made.sites else None


def winding_number(made: Crystal, energy: float = 0.0) -> int | Undecided:
    """How often det(H(k) − E) goes around 0 in the plane while k goes once around the zone of a one-dimensional
    crystal; of Hermitian ones at E = 0 det of the block from the first sublattice to the second, where there are two.

    The determinant is a trigonometric polynomial of known degree: points are taken until steps of its phase are below
    π/2 by its slope, which Bernstein's inequality bounds, and for one site Σ |R| |T_R|. `Undecided` where it comes too
    near 0 to say. Raises `CrystalError`."""
    if made.dimension != 1:
        raise CrystalError(f"a winding number is one of a crystal in one dimension, not {made.dimension}")
    halves = sublattices(made) if made.hermitian and energy == 0 else None
    if made.hermitian and halves is None:
        return Undecided(
            "two sublattices, or a crystal that is not Hermitian", "the determinant is real: it cannot wind"
        )
    size = int(np.abs(made.shifts).max()) * (len(halves[0]) if halves else made.sites)
    for count in (64, 256, 1024, 4096, 16384):
        if count < 4 * size:
            continue
        table = np.zeros((count, made.sites, made.sites), dtype=np.complex128)
        table[made.shifts[:, 0] % count] = made.blocks
        h = np.fft.ifft(table, axis=0) * count  # the symbol at 2π/count times 0, 1, …
        block = h[:, halves[0]][:, :, halves[1]] if halves else h - energy * np.eye(made.sites)
        values = np.linalg.det(block)
        largest = float(np.abs(values).max())
        # a trigonometric polynomial of degree s has slopes of at most s times its largest value
        slope = size * largest / math.cos(np.pi * size / count)
        if made.sites == 1:
            slope = min(slope, float(np.abs(made.shifts[:, 0]) @ np.abs(made.blocks[:, 0, 0])))
        if float(np.abs(values).min()) > 4 * np.pi / count * slope + ROUNDING * largest:
            turns = np.angle(np.roll(values, -1) / values).sum() / (2 * np.pi)
            return round(float(turns))
    return Undecided("16384 points", "the determinant comes near 0: the crystal has no gap there, or hardly one")


def _chern_numbers(made: Crystal, grid: int) -> tuple[tuple[int, int, int, bool], ...] | Undecided:
    if made.sites == 1:
        return Undecided("bands that are apart", "one band is trivial")
    k = 2 * np.pi * np.arange(grid) / grid
    points = np.stack(np.meshgrid(k, k, indexing="ij"), axis=-1)
    h = made.symbol(points)
    energies, frames = np.linalg.eigh((h + h.conj().swapaxes(-1, -2)) / 2)
    scale = max(float(np.abs(energies).max()), np.finfo(float).tiny)
    apart = (energies[..., 1:] - energies[..., :-1]).reshape(-1, made.sites - 1).min(0)
    edges = [0, *(1 + np.flatnonzero(apart > 1e-6 * scale)).tolist(), made.sites]
    if len(edges) == 2:
        return Undecided("bands that are apart", "all bands touch: together they are trivial")
    found = []
    for a, b in itertools.pairwise(edges):
        gap = min(float(apart[e - 1]) for e in (a, b) if 0 < e < made.sites)
        try:
            number = chern_number(torch.from_numpy(np.ascontiguousarray(frames[..., a:b])))
        except QuantumError as error:
            raise CrystalError(
                f"bands {a} to {b - 1} have no Chern numbers on this grid: {error.message}", hint="give a larger grid="
            ) from error
        found.append((a, b - a, int(number.value.value), _is_fine(made, 2 * np.pi / grid, gap)))
    return tuple(found)


def _is_fine(made: Crystal, step: float, gap: float) -> bool:
    """Whether bands between grid points turn by less than π/4 from those at a corner of their cell (Davis, Kahan): then
    all lie in one convex ball, and the number of the grid is that of all k."""
    slopes = [float(sum(np.linalg.norm(b, 2) * abs(r[c]) for r, b in zip(made.shifts, made.blocks))) for c in (0, 1)]
    moved = step * (slopes[0] + slopes[1])
    return moved < math.sin(math.pi / 4) * (gap - moved)
