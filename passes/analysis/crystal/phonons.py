"""Phonons: frequencies and modes of masses joined by springs, by the dynamical matrix D(k) = M^−½ Φ(k) M^−½.

Source: Born, Huang, Dynamical Theory of Crystal Lattices (1954), chapter IV.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from aatc.passes.analysis.crystal.bands import Crystal, ToeplitzPart, as_crystal, crystal
from aatc.passes.analysis.crystal.lattices import CrystalError
from aatc.passes.analysis.crystal.verify_crystal import witnessed
from aatc.passes.analysis.result import Result


@dataclass(frozen=True, eq=False)
class PhononSpectrum:
    """``frequencies`` (k, s) at ``points`` (k, d), ascending: ω with ω² an eigenvalue of D(k), and −|ω| where ω² < 0,
    which says that the crystal is unstable; ``modes`` (k, s, s), columns the unit displacements times √mass;
    ``acoustic_sum``: the largest force on a site when all are moved alike, over the largest force constant, 0 of a free
    crystal."""

    points: np.ndarray
    frequencies: np.ndarray
    modes: np.ndarray
    acoustic_sum: float


def phonon_modes(
    forces: Crystal | Mapping[Any, Any], masses: Any = 1.0, points: Any = None, *, grid: int = 32, components: int = 1
) -> Result[Any]:
    """Frequencies of a crystal with force constants Φ_R, {R: (s, s)} as in `crystal`: a `PhononSpectrum`.

    Sites are s / ``components`` atoms, each with so many directions, and ``masses`` a number, or one for each atom.
    ``points`` (k, d) in radians along the basis, a grid unless given. P2. Raises `CrystalError` for force constants
    that are not symmetric, Φ_{−R} = Φ_Rᵀ, and masses that are not positive.
    """
    made = forces if isinstance(forces, Crystal) else crystal(forces)
    s, d = made.sites, made.dimension
    if not made.hermitian or np.abs(made.blocks.imag).max() > 0:
        raise CrystalError("force constants are real, and Φ_{−R} is the transpose of Φ_R")
    if components < 1 or s % components:
        raise CrystalError(f"{s} rows of force constants are not of atoms with {components} directions")
    heavy = np.broadcast_to(np.asarray(masses, dtype=np.float64), (s // components,))
    if not (np.isfinite(heavy).all() and (heavy > 0).all()):
        raise CrystalError("masses are positive")
    if points is None:
        if grid < 2 or grid**d > 1 << 18:
            raise CrystalError(
                f"a grid of {grid} points an axis in {d} dimensions", hint="2 or more, 2¹⁸ in all at most"
            )
        axes = np.meshgrid(*([2 * np.pi * np.arange(grid) / grid] * d), indexing="ij")
        points = np.stack(axes, axis=-1).reshape(-1, d)
    k = np.asarray(points, dtype=np.float64)
    if k.ndim != 2 or k.shape[1] != d or not np.isfinite(k).all() or not len(k):
        raise CrystalError(f"points have shape (k, {d}) and are finite, not {k.shape}")
    root = 1 / np.sqrt(np.repeat(heavy, components))
    dynamical = made.symbol(k) * root[:, None] * root
    squares, modes = np.linalg.eigh((dynamical + dynamical.conj().transpose(0, 2, 1)) / 2)
    frequencies = np.sign(squares) * np.sqrt(np.abs(squares))
    scale = max(float(np.abs(made.blocks).max()), np.finfo(float).tiny)
    value = PhononSpectrum(k, frequencies, modes, acoustic_sum(made, components) / scale)
    data: dict[str, Any] = {"shifts": made.shifts, "blocks": made.blocks.real, "points": k, "masses": heavy}
    data["components"] = components
    return witnessed(value, "phonons", data, 1e-7)


def acoustic_sum(made: Crystal, components: int = 1) -> float:
    """The largest force on an atom when all atoms move by 1 in one direction."""
    moved = np.tile(np.eye(components), (made.sites // components, 1))
    return float(np.abs(made.blocks.real.sum(0) @ moved).max())


def springs(weights: Crystal | ToeplitzPart | Mapping[Any, Any] | Any) -> Crystal:
    """Force constants of one-component atoms joined by springs of these strengths: the Laplacian of the weights, made
    symmetric. Of an array the Toeplitz part is taken. Φ_R = −w_R for R ≠ 0, and Σ_R Φ_R = 0. Raises `CrystalError`."""
    made = as_crystal(weights)
    if np.abs(made.blocks.imag).max() > 0:
        raise CrystalError("strengths of springs are real")
    table: dict[tuple[int, ...], np.ndarray] = {}
    for r, b in zip(made.shifts.tolist(), made.blocks.real):
        for shift, block in ((tuple(r), b), (tuple(-x for x in r), b.T)):
            table[shift] = table.get(shift, np.zeros_like(b)) + block / 2
    zero = (0,) * made.dimension
    total: np.ndarray = sum(b.sum(1) for b in table.values())
    forces = {r: -b for r, b in table.items()}
    forces[zero] = forces.get(zero, np.zeros_like(made.blocks[0].real)) + np.diag(total)
    return crystal(forces)
