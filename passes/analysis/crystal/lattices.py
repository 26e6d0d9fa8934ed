"""Lattices: reduced bases, reciprocal lattices, the five Bravais classes of the plane.

A lattice is all integer combinations of the rows of a basis. Sources: Semaev, A 3-dimensional lattice reduction
algorithm, CaLC 2001; International Tables for Crystallography A, chapter 3.1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aatc.passes.analysis.result import AnalysisError

#: The classes of lattices of rank 2 by their symbols.
PLANAR = {
    "oblique": "mp",
    "rectangular": "op",
    "centred rectangular": "oc",
    "square": "tp",
    "hexagonal": "hp",
}
#: What the sampling points of an array are, by name: rows are the steps of its two axes.
SAMPLINGS = {"square": ((1.0, 0.0), (0.0, 1.0)), "hexagonal": ((1.0, 0.0), (-0.5, math.sqrt(0.75)))}


class CrystalError(AnalysisError):
    """Data that is no lattice, no periodic pattern, no crystal, or not one that a function is for."""


@dataclass(frozen=True, eq=False)
class BravaisLattice:
    """The translations of a pattern. ``rank`` is how many independent ones there are, 0 to 2; ``bravais`` the class:
    "none", "row" (rank 1), or a name of `PLANAR`. ``vectors`` (rank, 2) are a reduced basis in steps along the array's
    axes, ``basis`` (rank, 2) the same in space. ``share`` of the pattern's variance is that of the waves of the lattice
    that stand out of noise, 1 where ``exact``."""

    rank: int
    bravais: str
    vectors: np.ndarray
    basis: np.ndarray
    share: float
    exact: bool

    def __str__(self) -> str:
        steps = ", ".join(f"({x:.4g}, {y:.4g})" for x, y in self.vectors)
        return self.bravais if self.rank == 0 else f"{self.bravais} {steps}"


def basis_of(lattice: Any, *, square: bool = True) -> np.ndarray:
    """The basis (r, d) of a `BravaisLattice` or of an array of vectors, as float64. `CrystalError` unless the vectors
    are finite and independent, and, where ``square`` is set, as many as space has dimensions, 1 to 3."""
    given = lattice.basis if isinstance(lattice, BravaisLattice) else lattice
    try:
        basis = np.atleast_2d(np.asarray(given, dtype=np.float64))
    except (TypeError, ValueError) as cause:
        raise CrystalError(f"a {type(given).__name__} is no basis of a lattice: {cause}") from cause
    if basis.ndim != 2 or not np.isfinite(basis).all():
        raise CrystalError(f"a basis has shape (r, d) and is finite, not {basis.shape}")
    r, d = basis.shape
    if r > d or (square and (r != d or not 1 <= d <= 3)):
        raise CrystalError(f"{r} vectors of {d} numbers are no basis", hint="give d vectors in d dimensions, d up to 3")
    if r:
        lengths = np.linalg.norm(basis, axis=1)
        if (lengths == 0).any() or np.linalg.svd(basis / lengths[:, None], compute_uv=False)[-1] < 1e-9:
            raise CrystalError("the vectors of a basis are dependent", hint="give independent ones")
    return basis


def sampling_basis(sampling: Any) -> np.ndarray:
    """Where the points of an array lie: (2, 2), rows for a step along each axis; by name or as given.
    `CrystalError`."""
    if isinstance(sampling, str):
        if sampling not in SAMPLINGS:
            raise CrystalError(f"there is no sampling {sampling!r}", hint=f"{', '.join(SAMPLINGS)}, or a (2, 2) array")
        return np.array(SAMPLINGS[sampling])
    basis = basis_of(sampling)
    if basis.shape != (2, 2):
        raise CrystalError(f"the points of an array have a basis (2, 2), not {basis.shape}")
    return basis


def reciprocal_basis(lattice: Any) -> np.ndarray:
    """Rows b_i with a_i · b_j = 2π δ_ij, (d, d). `CrystalError`."""
    result: np.ndarray = 2 * np.pi * np.linalg.inv(basis_of(lattice)).T
    return result


def cell_volume(lattice: Any) -> float:
    """Length, area or volume of a primitive cell. `CrystalError`."""
    return float(abs(np.linalg.det(basis_of(lattice))))


def reduced_basis(lattice: Any) -> tuple[np.ndarray, np.ndarray]:
    """(basis (d, d), integers (d, d) that make it of the given one) of a Minkowski-reduced basis: vectors are as short
    as can be, in order of length, and the angles of the first with the others are not acute. `CrystalError`."""
    given = basis_of(lattice)
    d = len(given)
    made = np.eye(d, dtype=np.int64)
    coefficients = [np.array(c) for n in range(1, d) for c in itertools.product((-1, 0, 1), repeat=n) if any(c)]
    while True:
        basis = made @ given
        order = np.argsort((basis**2).sum(1), kind="stable")
        made, basis = made[order], basis[order]
        for i in range(1, d):
            shift = np.rint(np.linalg.lstsq(basis[:i].T, basis[i], rcond=None)[0]).astype(np.int64)
            best = _shortest(basis, i, [shift, *(shift + c for c in coefficients if len(c) == i)])
            if best.any():
                made[i] -= best @ made[:i]
                break
        else:
            break
    for i in range(1, d):
        if basis[0] @ basis[i] > 1e-12 * (basis[i] @ basis[i]):
            made[i] = -made[i]
    return made @ given, made


def _shortest(basis: np.ndarray, i: int, shifts: Sequence[np.ndarray]) -> np.ndarray:
    """The integers whose combination of the vectors before ``i`` leaves least of it; none where nothing is won."""
    best, least = np.zeros(i, dtype=np.int64), float(basis[i] @ basis[i]) * (1 - 1e-12)
    for shift in shifts:
        rest = basis[i] - shift @ basis[:i]
        if rest @ rest < least:
            best, least = shift, float(rest @ rest) * (1 - 1e-12)
    return best


def canonical_basis(basis: np.ndarray) -> np.ndarray:
    """Of the reduced bases (2, 2) of a planar lattice with an angle that is not acute, the first one downwards in
    alphabetical order of its numbers, so that one lattice has one basis."""
    reduced = reduced_basis(basis)[0]
    found = []
    for entries in itertools.product((-1, 0, 1), repeat=4):
        w = np.array(entries).reshape(2, 2)
        if abs(entries[0] * entries[3] - entries[1] * entries[2]) == 1:
            a, b = w @ reduced
            room = 1e-9 * float(b @ b)
            if a @ a <= b @ b + room and -(a @ a) / 2 - room <= a @ b <= room:
                found.append(w @ reduced)
    return max(found, key=lambda v: tuple(np.round(v, 9).ravel()))


def planar_class(basis: Any, tolerance: float = 1e-9) -> str:
    """The Bravais class of a planar lattice: the most symmetric one of `PLANAR` whose equations hold within the
    relative ``tolerance``. `CrystalError`.

    Of a reduced basis with a² ≤ b² and g = a · b ≤ 0 the equations are a² = b², g = 0, 2|g| = a²: the first two for
    square, the first and last for hexagonal ones, any one for rectangular (g = 0) or centred ones.
    """
    rows = basis_of(basis)
    if rows.shape != (2, 2):
        raise CrystalError(f"a planar lattice has two vectors of two numbers, not {rows.shape}")
    rhombic, right, half = (abs(x) <= tolerance for x in deviations(reduced_basis(rows)[0]))
    if rhombic and half:
        return "hexagonal"
    if rhombic and right:
        return "square"
    if right:
        return "rectangular"
    return "centred rectangular" if rhombic or half else "oblique"


def deviations(reduced: np.ndarray) -> np.ndarray:
    """By how much the three equations of `planar_class` are missed, (3,): ln |b|/|a|, g/|a||b|, 2|g|/a² − 1."""
    a, b = reduced
    aa, bb, g = float(a @ a), float(b @ b), float(a @ b)
    return np.array([0.5 * math.log(bb / aa), g / math.sqrt(aa * bb), 2 * abs(g) / min(aa, bb) - 1])


def high_symmetry_points(lattice: Any, tolerance: float = 1e-9) -> dict[str, np.ndarray]:
    """Points of the Brillouin zone of a planar lattice by name, in coordinates of the reciprocal of the reduced basis
    whose vectors meet at 90°, 120° (hexagonal) or more, (2,) each. `CrystalError`.

    Names are those of Setyawan and Curtarolo, Comput. Mater. Sci. 49 (2010), with M and K of the hexagonal zone.
    """
    kind = planar_class(lattice, tolerance)
    points = {"Γ": (0.0, 0.0)}
    if kind == "hexagonal":
        points |= {"M": (0.5, 0.0), "K": (1 / 3, 1 / 3)}
    elif kind == "square":
        points |= {"X": (0.0, 0.5), "M": (0.5, 0.5)}
    elif kind == "rectangular":
        points |= {"X": (0.5, 0.0), "Y": (0.0, 0.5), "S": (0.5, 0.5)}
    else:  # the midpoints of the three pairs of edges that every zone has
        points |= {"X": (0.5, 0.0), "Y": (0.0, 0.5), "M": (0.5, 0.5)}
    return {name: np.array(at) for name, at in points.items()}
