"""Geometric realisation of simplicial sets, affine singular simplices, and the adjunction between the two.

A point of |X| has one normal form: a non-degenerate simplex and positive barycentric coordinates. The singular
simplices here are the affine ones, Δⁿ → Δᵐ → |X| for a non-degenerate m-simplex: a simplicial subset of Sing|X| which
holds the image of X. Sources: Milnor, The geometric realization of a semi-simplicial complex, Ann. Math. 65 (1957);
Goerss, Jardine, Simplicial Homotopy Theory, section I.2.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aatc.passes.analysis.homotopy.simplicial_attention import SimplicialAttention
from aatc.passes.analysis.homotopy.simplicial_sets import Name, Simplex, SimplicialSet
from aatc.passes.analysis.result import AnalysisError, Result

Weights = tuple[Fraction, ...]


class PointError(AnalysisError):
    """Coordinates that are no point of a simplex."""


@dataclass(frozen=True)
class Point:
    """The point with these positive barycentric ``weights``, which sum to 1, in the non-degenerate simplex ``name``."""

    name: Name
    weights: Weights


@dataclass(frozen=True)
class SingularSimplex:
    """The affine map Δⁿ → |X| into the non-degenerate simplex ``name`` whose i-th vertex goes to the barycentric
    coordinates ``rows[i]``. Normal form: each coordinate is positive in some row."""

    name: Name
    rows: tuple[Weights, ...]

    @property
    def dimension(self) -> int:
        return len(self.rows) - 1


@dataclass(frozen=True)
class SingularPoint:
    """A point of the realisation of the affine singular simplices, in normal form: ``simplex`` is non-degenerate,
    ``weights`` are positive."""

    simplex: SingularSimplex
    weights: Weights


def weights(values: Sequence[Any]) -> Weights:
    """Non-negative numbers as exact fractions, divided by their sum. Raises `PointError`."""
    try:
        exact = tuple(Fraction(v.item() if isinstance(v, np.generic) else v) for v in values)
    except (TypeError, ValueError, OverflowError) as wrong:
        raise PointError(f"barycentric coordinates are finite numbers, not {list(values)}") from wrong
    total = sum(exact, Fraction(0))
    if total <= 0 or min(exact) < 0:
        raise PointError(f"barycentric coordinates are not negative and not all zero: {list(values)}")
    return tuple(v / total for v in exact)


@dataclass(frozen=True)
class Geometry:
    """The cells of a realisation: ``names`` of the non-degenerate simplices by dimension. ``is_embedded`` says whether
    every one is determined by its vertices, which are distinct: then coordinates in R^vertices are one to one."""

    set: SimplicialSet = field(repr=False)
    names: tuple[tuple[Name, ...], ...]
    is_embedded: bool

    @property
    def euler_characteristic(self) -> int:
        return sum((-1) ** n * len(cells) for n, cells in enumerate(self.names))


@dataclass(frozen=True)
class Realization:
    """|X| of a simplicial set: points in normal form, coordinates, affine singular simplices."""

    geometry: Geometry

    @property
    def set(self) -> SimplicialSet:
        return self.geometry.set

    @property
    def euler_characteristic(self) -> int:
        return self.geometry.euler_characteristic

    def point(self, z: Simplex, values: Sequence[Any]) -> Point:
        """The normal form of (z, t), z of any kind and t ∈ Δⁿ (divided by its sum). Raises `PointError`, and
        AnalysisError for a simplex that is not there."""
        self._check(z)
        t = weights(values)
        if len(t) != z.dimension + 1:
            raise PointError(f"a simplex of dimension {z.dimension} has {z.dimension + 1} coordinates, not {len(t)}")
        while True:
            pushed = [Fraction(0)] * (z.onto[-1] + 1)
            for place, value in zip(z.onto, t):
                pushed[place] += value
            if all(pushed):
                return Point(z.name, tuple(pushed))
            # the point lies in the face that leaves out a vertex of weight zero
            empty = pushed.index(Fraction(0))
            z = self.set.face(self.set.simplex(z.name), empty)
            t = tuple(pushed[:empty] + pushed[empty + 1 :])

    def _check(self, z: Simplex) -> None:
        """AnalysisError for a simplex that is none of the set."""
        if self.set.simplex(z.name).dimension != z.onto[-1]:
            raise AnalysisError(f"{z} is no simplex of this set: {z.name!r} has another dimension")

    def coordinates(self, point: Point) -> NDArray[np.float64]:
        """In R^N, N the number of vertices, vertex i at the i-th unit vector: (N,). One to one where the geometry is
        embedded; else simplices with the same vertices fall together."""
        place = {x: i for i, x in enumerate(self.set.nondegenerate(0))}
        out = np.zeros(len(place))
        z = self.set.simplex(point.name)
        for i, value in enumerate(point.weights):
            out[place[self.set.vertex(z, i)]] += float(value)
        return out

    # --- affine singular simplices -------------------------------------------------------------------------
    def singular(self, z: Simplex, rows: Sequence[Sequence[Any]]) -> SingularSimplex:
        """The normal form of the affine map that sends vertex i of Δⁿ to the point (z, rows[i]). Raises `PointError`,
        and AnalysisError for a simplex that is not there."""
        self._check(z)
        exact = [weights(row) for row in rows]
        if not exact or any(len(row) != z.dimension + 1 for row in exact):
            raise PointError(
                f"each vertex goes to {z.dimension + 1} coordinates of a simplex of dimension {z.dimension}"
            )
        while True:
            pushed = [[Fraction(0)] * (z.onto[-1] + 1) for _ in exact]
            for row, out in zip(exact, pushed):
                for place, value in zip(z.onto, row):
                    out[place] += value
            unused = [j for j in range(z.onto[-1] + 1) if not any(row[j] for row in pushed)]
            if not unused:
                return SingularSimplex(z.name, tuple(map(tuple, pushed)))
            z = self.set.face(self.set.simplex(z.name), unused[0])
            exact = [tuple(row[: unused[0]] + row[unused[0] + 1 :]) for row in pushed]

    def singular_face(self, sigma: SingularSimplex, i: int) -> SingularSimplex:
        """d_i σ: the map on the face opposite to vertex i."""
        if not 0 <= i <= sigma.dimension or not sigma.dimension:
            raise AnalysisError(f"a simplex of dimension {sigma.dimension} has no face d_{i}")
        return self.singular(self.set.simplex(sigma.name), sigma.rows[:i] + sigma.rows[i + 1 :])

    def singular_degeneracy(self, sigma: SingularSimplex, i: int) -> SingularSimplex:
        """s_i σ: vertex i twice."""
        if not 0 <= i <= sigma.dimension:
            raise AnalysisError(f"a simplex of dimension {sigma.dimension} has no degeneracy s_{i}")
        return SingularSimplex(sigma.name, (*sigma.rows[: i + 1], *sigma.rows[i:]))

    def evaluate(self, sigma: SingularSimplex, values: Sequence[Any]) -> Point:
        """σ(t), t ∈ Δⁿ."""
        t = weights(values)
        if len(t) != len(sigma.rows):
            raise PointError(
                f"a simplex of dimension {sigma.dimension} has {len(sigma.rows)} coordinates, not {len(t)}"
            )
        image = [sum((s * row[j] for s, row in zip(t, sigma.rows)), Fraction(0)) for j in range(len(sigma.rows[0]))]
        return self.point(self.set.simplex(sigma.name), image)

    def singular_point(self, sigma: SingularSimplex, values: Sequence[Any]) -> SingularPoint:
        """The normal form of (σ, t) in the realisation of the affine singular simplices."""
        t = list(weights(values))
        if len(t) != len(sigma.rows):
            raise PointError(
                f"a simplex of dimension {sigma.dimension} has {len(sigma.rows)} coordinates, not {len(t)}"
            )
        while 0 in t:
            i = t.index(Fraction(0))
            sigma, t = self.singular_face(sigma, i), t[:i] + t[i + 1 :]
        i = 0
        while i < sigma.dimension:
            if sigma.rows[i] == sigma.rows[i + 1]:
                # σ = s_i d_i σ: an affine map that forgets the difference of two neighbouring vertices
                sigma = self.singular_face(sigma, i)
                t = [*t[:i], t[i] + t[i + 1], *t[i + 2 :]]
            else:
                i += 1
        return SingularPoint(sigma, tuple(t))

    # --- the adjunction ------------------------------------------------------------------------------------
    def unit(self, z: Simplex) -> SingularSimplex:
        """η: X → Sing|X|, the simplex z as its characteristic map."""
        n = z.dimension
        return self.singular(z, [[int(i == j) for j in range(n + 1)] for i in range(n + 1)])

    def realized_unit(self, point: Point) -> SingularPoint:
        """|η|: |X| → |Sing|X||."""
        return self.singular_point(self.unit(self.set.simplex(point.name)), point.weights)

    def counit(self, point: SingularPoint) -> Point:
        """ε: |Sing Y| → Y at Y = |X|, (σ, t) ↦ σ(t)."""
        return self.evaluate(point.simplex, point.weights)


class GeometricRealization:
    """Realises simplicial sets, with the seed's method names. ``realize_attention`` takes a `SimplicialAttention` or
    any `SimplicialSet`. Of the Quillen equivalence that the seed names, the adjunction's unit and counit are here, and
    the triangle identities are what tests check."""

    def geometric_structure(self, simplicial: SimplicialAttention | SimplicialSet) -> Geometry:
        """The cells, and whether they are determined by their vertices."""
        x = simplicial.set if isinstance(simplicial, SimplicialAttention) else simplicial
        if not isinstance(x, SimplicialSet):
            raise AnalysisError(f"a simplicial set is realised, not a {type(x).__name__}")
        names = tuple(tuple(x.nondegenerate(n)) for n in range(x.dimension + 1))
        seen: set[frozenset[Hashable]] = set()
        embedded = True
        for n, cells in enumerate(names):
            for cell in cells:
                corners = frozenset(x.vertex(x.simplex(cell), i) for i in range(n + 1))
                embedded = embedded and len(corners) == n + 1 and corners not in seen
                seen.add(corners)
        return Geometry(x, names, embedded)

    def realize(self, geometry: Geometry) -> Realization:
        """|X|."""
        return Realization(geometry)

    def realize_attention(self, simplicial: SimplicialAttention | SimplicialSet) -> Result[Realization]:
        """|X|; exact (P1) in the rational points that it makes. A skeleton is realised as such, which the result's
        assumptions say."""
        found = self.realize(self.geometric_structure(simplicial))
        bound = found.set.skeleton
        return Result(found, "P1", assumptions=() if bound is None else (f"the skeleton of dimension {bound}",))
