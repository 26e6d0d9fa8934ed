"""Brillouin zones: the points of reciprocal space that are nearest, second nearest, … to the origin.

Zone n holds the wave vectors between which and the origin lie the midplanes of n − 1 reciprocal vectors: all zones have
the volume (2π)^d / V. Sources: Brillouin, Les électrons libres dans les métaux, J. Phys. Radium 1 (1930); Jones,
Zonotopes of lattices, J. London Math. Soc. 33 (1984).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull

from aatc.passes.analysis.crystal.lattices import CrystalError, basis_of, cell_volume, reciprocal_basis, reduced_basis
from aatc.passes.analysis.crystal.verify_crystal import witnessed
from aatc.passes.analysis.result import Result

#: Zones that are cut out at most.
MOST = {1: 64, 2: 12, 3: 4}


@dataclass(frozen=True, eq=False)
class BrillouinZone:
    """Zone number ``order``: convex ``pieces``, the vertices (k, d) of each (in 2 dimensions around it), whose volumes
    add up to ``volume``. ``faces`` (f, d) are the reciprocal vectors whose midplanes bound it, of the first zone."""

    order: int
    pieces: tuple[np.ndarray, ...]
    volume: float
    faces: np.ndarray

    @property
    def vertices(self) -> np.ndarray:
        """Vertices (k, d) of all pieces, each once."""
        points = np.concatenate(self.pieces)
        scale = float(np.abs(points).max())
        _, first = np.unique(np.round(points / scale, 7) + 0.0, axis=0, return_index=True)
        return points[np.sort(first)]


def brillouin_zones(lattice: Any, count: int = 1) -> Result[Any]:
    """The first ``count`` Brillouin zones of a lattice in 1, 2 or 3 dimensions, a tuple of `BrillouinZone`.

    ``lattice``: a basis (d, d), or a `BravaisLattice` of rank 2. Up to 64, 12 and 4 zones. P2: coordinates within
    rounding of the lattice's; the residual is the largest relative error of a volume. Raises `CrystalError`.
    """
    given = basis_of(lattice)
    if not 1 <= count <= MOST[len(given)]:
        raise CrystalError(f"{count} zones in {len(given)} dimensions", hint=f"1 to {MOST[len(given)]} are cut out")
    basis = reciprocal_basis(reduced_basis(given)[0])
    reduced = reduced_basis(basis)[0]
    pieces = _cut(reduced, count)
    volume = (2 * np.pi) ** len(given) / cell_volume(given)
    zones = tuple(_zone(n + 1, found, reduced) for n, found in enumerate(pieces))
    off = max(abs(z.volume / volume - 1) for z in zones)
    return witnessed(zones, "brillouin", {"basis": given}, 1e-6, residual=off)


def _neighbours(reduced: np.ndarray, reach: int) -> np.ndarray:
    """Vectors (k, d) of a lattice, the origin left out, with coefficients up to ``reach``, the shortest first."""
    few = np.array([c for c in itertools.product(range(-reach, reach + 1), repeat=len(reduced)) if any(c)])
    points = few @ reduced
    result: np.ndarray = points[np.argsort((points**2).sum(1), kind="stable")]
    return result


def _cut(reduced: np.ndarray, count: int) -> list[list[np.ndarray]]:
    """Vertices of convex pieces by how many midplanes lie before them: a box is cut by one midplane after another."""
    d = len(reduced)
    reach = {1: count + 1, 2: 2 + count // 2, 3: 3}[d]
    planes = _neighbours(reduced, reach)
    radius = _outer_radius(reduced, count)
    planes = planes[(planes**2).sum(1) <= (2 * radius) ** 2]
    box = np.array(list(itertools.product((-radius, radius), repeat=d)))
    pieces = [(box, 0)]
    for g in planes:
        divided = []
        for points, passed in pieces:
            near, far = _divide(points, g)
            if near is not None:
                divided.append((near, passed))
            if far is not None and passed + 1 < count:
                divided.append((far, passed + 1))
        pieces = divided
    return [[p for p, passed in pieces if passed == n] for n in range(count)]


def _outer_radius(reduced: np.ndarray, count: int) -> float:
    """A radius that the first ``count`` zones lie within: any ball of it around a point holds ``count`` more
    vectors."""
    cover = 0.5 * float(np.sqrt((reduced**2).sum()))  # of a ball that holds a vector of the lattice wherever it lies
    d = len(reduced)
    return cover * (1 + 2 * (count - 1) ** (1 / d)) * 1.01 if count > 1 else 1.01 * cover


def _divide(points: np.ndarray, g: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The parts of a convex piece before and behind the midplane of ``g``, None for what is empty or flat."""
    height = points @ g - g @ g / 2
    room = 1e-9 * float(g @ g)
    before, behind = points[height <= room], points[height >= -room]
    if not (height > room).any():
        return points, None
    if not (height < -room).any():
        return None, points
    edges = _edges(points)
    one, two = height[edges[:, 0]], height[edges[:, 1]]
    crossing = (one * two < 0) & (np.minimum(abs(one), abs(two)) > room)
    share = (one / np.where(crossing, one - two, 1.0))[crossing][:, None]
    cut = points[edges[crossing, 0]] * (1 - share) + points[edges[crossing, 1]] * share
    near, far = (_hull(np.concatenate([part, cut])) for part in (before, behind))
    return near, far


def _edges(points: np.ndarray) -> np.ndarray:
    if points.shape[1] == 1:
        return np.array([[0, len(points) - 1]])
    simplices = ConvexHull(points).simplices
    d = points.shape[1]
    pairs = np.concatenate([simplices[:, [i, j]] for i, j in itertools.combinations(range(d), 2)])
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _hull(points: np.ndarray) -> np.ndarray | None:
    """Vertices of a hull, in 2 dimensions in order; None where it is flat."""
    if points.shape[1] == 1:
        ends = np.array([points.min(0), points.max(0)])
        return ends if ends[1, 0] - ends[0, 0] > 1e-12 * float(np.abs(ends).max()) else None
    spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
    if len(points) <= points.shape[1] or spread[-1] < 1e-7 * max(float(np.abs(points).max()), spread[0]):
        return None
    scale = float(np.abs(points).max())
    _, first = np.unique(np.round(points / scale, 9) + 0.0, axis=0, return_index=True)
    points = points[np.sort(first)]
    result: np.ndarray = points[ConvexHull(points).vertices]
    return result


def _volume(points: np.ndarray) -> float:
    return float(np.ptp(points)) if points.shape[1] == 1 else float(ConvexHull(points).volume)


def _zone(order: int, pieces: list[np.ndarray], reduced: np.ndarray) -> BrillouinZone:
    d = len(reduced)
    faces = np.zeros((0, d))
    if order == 1:
        pieces = [_corners(pieces[0], reduced)]
        planes = _neighbours(reduced, 2)
        on = [np.abs(pieces[0] @ g - g @ g / 2) <= 1e-9 * (g @ g) for g in planes]
        # a plane that touches in less than a face bounds nothing
        spans = [np.linalg.matrix_rank(pieces[0][k] - pieces[0][k][0], tol=1e-6 * np.linalg.norm(g)) if k.any() else -1
                 for k, g in zip(on, planes)]  # fmt: skip
        faces = np.array(sorted(map(tuple, planes[np.array(spans) == d - 1])))
    return BrillouinZone(order, tuple(pieces), sum(_volume(p) for p in pieces), faces)


def _corners(points: np.ndarray, reduced: np.ndarray) -> np.ndarray:
    """Points where d independent midplanes of the first zone meet: what cutting left on edges and faces is dropped."""
    planes = _neighbours(reduced, 2)
    kept = []
    for p in points:
        on = planes[np.abs(planes @ p - (planes**2).sum(1) / 2) <= 1e-9 * (planes**2).sum(1)]
        kept.append(np.linalg.matrix_rank(on) == points.shape[1])
    corners = points[np.array(kept)]
    _, first = np.unique(np.round(corners / np.abs(corners).max(), 7) + 0.0, axis=0, return_index=True)
    result: np.ndarray = corners[np.sort(first)]
    return result
