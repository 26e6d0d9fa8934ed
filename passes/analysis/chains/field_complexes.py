"""Bounded chain complexes of finite-dimensional vector spaces, chain maps, cones, cylinders and path objects.

Degrees may be negative. Source: Weibel, An Introduction to Homological Algebra, sections 1.1, 1.5; Dwyer, Spaliński,
Homotopy theories and model categories, section 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aatc.passes.analysis.chains.complexes import ComplexError, SimplicialComplex
from aatc.passes.analysis.chains.field_algebra import Field, Matrix
from aatc.passes.analysis.chains.homology import chain_complex, simplicial_map


class FieldComplex:
    """A complex over a field: ``dims`` degree → dimension, ``boundaries`` degree k → ∂_k (dim_{k−1}, dim_k); what is
    not given is zero. Raises `ComplexError` for wrong shapes, negative dimensions and ∂∂ ≠ 0."""

    def __init__(self, field: Field, dims: Mapping[int, int], boundaries: Mapping[int, Any]) -> None:
        self.field = field
        if min(dims.values(), default=0) < 0:
            raise ComplexError(f"dimensions are not negative, got {dict(dims)}")
        self.dims = {k: n for k, n in sorted(dims.items()) if n}
        self._maps = {k: field.array(m) for k, m in boundaries.items()}
        for k, m in self._maps.items():
            if m.shape != (self.dim(k - 1), self.dim(k)):
                raise ComplexError(f"∂_{k} has shape {m.shape}, not {(self.dim(k - 1), self.dim(k))}")
            if k - 1 in self._maps and field.times(self._maps[k - 1], m).any():
                raise ComplexError(f"∂_{k - 1}∂_{k} is not zero")

    @staticmethod
    def of(source: Any, field: Field) -> FieldComplex:
        """The chains of a `ChainComplex` or `SimplicialComplex` with coefficients in the field."""
        chain = chain_complex(source)
        maps = {k: chain.boundary(k) for k in range(1, len(chain.counts))}
        return FieldComplex(field, dict(enumerate(chain.counts)), maps)

    @property
    def degrees(self) -> range:
        """From the least to the highest degree that is not zero; empty for the zero complex."""
        return range(min(self.dims), max(self.dims) + 1) if self.dims else range(0)

    def dim(self, degree: int) -> int:
        return self.dims.get(degree, 0)

    def boundary(self, degree: int) -> Matrix:
        """∂_k, (dim_{k−1}, dim_k), in every degree."""
        found = self._maps.get(degree)
        return found if found is not None else self.field.zeros(self.dim(degree - 1), self.dim(degree))

    def betti(self, degree: int) -> int:
        """dim H_k."""
        below, above = self.field.rank(self.boundary(degree)), self.field.rank(self.boundary(degree + 1))
        return self.dim(degree) - below - above

    @property
    def is_acyclic(self) -> bool:
        return not any(self.betti(k) for k in self.degrees)


@dataclass(frozen=True, eq=False)
class FieldMap:
    """A chain map: ``matrices`` degree → (target dim, source dim), zero where not given.

    Raises `ComplexError` for wrong shapes, complexes over two fields, and matrices that do not commute with ∂.
    """

    source: FieldComplex
    target: FieldComplex
    matrices: Mapping[int, Matrix]

    def __post_init__(self) -> None:
        field = self.source.field
        if field != self.target.field:
            raise ComplexError(
                f"a chain map joins complexes over one field, not {field.name} and {self.target.field.name}"
            )
        object.__setattr__(self, "matrices", {k: field.array(m) for k, m in self.matrices.items()})
        for k, m in self.matrices.items():
            if m.shape != (self.target.dim(k), self.source.dim(k)):
                raise ComplexError(
                    f"the map of degree {k} has shape {m.shape}, not {(self.target.dim(k), self.source.dim(k))}"
                )
        for k in spanned(self.source, self.target):
            left = field.times(self.target.boundary(k), self.matrix(k))
            right = field.times(self.matrix(k - 1), self.source.boundary(k))
            if (left != right).any():
                raise ComplexError(f"the matrices do not commute with the boundary of degree {k}")

    @staticmethod
    def of_simplicial(
        source: SimplicialComplex, target: SimplicialComplex, vertex_map: dict[int, int], field: Field
    ) -> FieldMap:
        """The chain map of a simplicial map, given on vertices."""
        maps = simplicial_map(source, target, vertex_map)
        return FieldMap(FieldComplex.of(source, field), FieldComplex.of(target, field), dict(enumerate(maps)))

    @staticmethod
    def identity(of: FieldComplex) -> FieldMap:
        return FieldMap(of, of, {k: of.field.identity(of.dim(k)) for k in of.degrees})

    def matrix(self, degree: int) -> Matrix:
        found = self.matrices.get(degree)
        return found if found is not None else self.source.field.zeros(self.target.dim(degree), self.source.dim(degree))

    def then(self, after: FieldMap) -> FieldMap:
        """after ∘ self. Raises `ComplexError` unless ``after`` starts at the target (the same object)."""
        if after.source is not self.target:
            raise ComplexError("the second map does not start where the first one ends")
        field, degrees = self.source.field, spanned(self.source, after.target)
        return FieldMap(self.source, after.target, {k: field.times(after.matrix(k), self.matrix(k)) for k in degrees})

    def equals(self, other: FieldMap) -> bool:
        """Whether two maps between the same complexes agree in every degree."""
        return (
            self.source is other.source
            and self.target is other.target
            and not any((self.matrix(k) != other.matrix(k)).any() for k in spanned(self.source, self.target))
        )

    @property
    def is_cofibration(self) -> bool:
        """Injective in every degree."""
        return all(self.source.field.rank(self.matrix(k)) == n for k, n in self.source.dims.items())

    @property
    def is_fibration(self) -> bool:
        """Onto in every degree."""
        return all(self.source.field.rank(self.matrix(k)) == n for k, n in self.target.dims.items())

    @property
    def is_weak_equivalence(self) -> bool:
        """A quasi-isomorphism: the mapping cone is acyclic."""
        return mapping_cone(self).is_acyclic


def spanned(*complexes: FieldComplex) -> range:
    """The degrees from the least to the highest of all."""
    ends = [k for c in complexes for k in c.dims]
    return range(min(ends), max(ends) + 1) if ends else range(0)


def blocks(
    field: Field, heights: Sequence[int], widths: Sequence[int], parts: Mapping[tuple[int, int], Matrix]
) -> Matrix:
    """A matrix of blocks at (row, column), zero where none is given."""
    whole = field.zeros(sum(heights), sum(widths))
    tops, lefts = np.cumsum([0, *heights]), np.cumsum([0, *widths])
    for (i, j), part in parts.items():
        whole[tops[i] : tops[i + 1], lefts[j] : lefts[j + 1]] = part
    return whole


def mapping_cone(f: FieldMap) -> FieldComplex:
    """Cone_k = X_{k−1} ⊕ Y_k with ∂(x, y) = (−∂x, f x + ∂y)."""
    field, x, y = f.source.field, f.source, f.target
    dims, maps = {}, {}
    for k in _widened(x, y):
        dims[k] = x.dim(k - 1) + y.dim(k)
        parts = {(0, 0): field.reduce(-x.boundary(k - 1)), (1, 0): f.matrix(k - 1), (1, 1): y.boundary(k)}
        maps[k] = blocks(field, (x.dim(k - 2), y.dim(k - 1)), (x.dim(k - 1), y.dim(k)), parts)
    return FieldComplex(field, dims, maps)


def mapping_cylinder(f: FieldMap) -> tuple[FieldMap, FieldMap]:
    """X → Cyl → Y, a cofibration x ↦ (x, 0, 0) and an acyclic fibration (x, x′, y) ↦ f x + y whose composite is f.

    Cyl_k = X_k ⊕ X_{k−1} ⊕ Y_k with ∂(x, x′, y) = (∂x − x′, −∂x′, f x′ + ∂y).
    """
    field, x, y = f.source.field, f.source, f.target
    dims, maps, first, second = {}, {}, {}, {}
    for k in _widened(x, y):
        widths = (x.dim(k), x.dim(k - 1), y.dim(k))
        heights = (x.dim(k - 1), x.dim(k - 2), y.dim(k - 1))
        one = field.identity(x.dim(k))
        dims[k] = sum(widths)
        maps[k] = blocks(field, heights, widths, {
            (0, 0): x.boundary(k), (0, 1): field.reduce(-field.identity(x.dim(k - 1))),
            (1, 1): field.reduce(-x.boundary(k - 1)), (2, 1): f.matrix(k - 1), (2, 2): y.boundary(k),
        })  # fmt: skip
        first[k] = blocks(field, widths, (x.dim(k),), {(0, 0): one})
        second[k] = blocks(field, (y.dim(k),), widths, {(0, 0): f.matrix(k), (0, 2): field.identity(y.dim(k))})
    middle = FieldComplex(field, dims, maps)
    return FieldMap(x, middle, first), FieldMap(middle, y, second)


def mapping_path_object(f: FieldMap) -> tuple[FieldMap, FieldMap]:
    """X → P → Y, an acyclic cofibration x ↦ (x, f x, 0) and a fibration (x, y, y′) ↦ y whose composite is f.

    P_k = X_k ⊕ Y_k ⊕ Y_{k+1} with ∂(x, y, y′) = (∂x, ∂y, f x − y − ∂y′): y′ is a path from f x to y.
    """
    field, x, y = f.source.field, f.source, f.target
    dims, maps, first, second = {}, {}, {}, {}
    for k in _widened(x, y):
        widths = (x.dim(k), y.dim(k), y.dim(k + 1))
        heights = (x.dim(k - 1), y.dim(k - 1), y.dim(k))
        one = field.identity(y.dim(k))
        dims[k] = sum(widths)
        maps[k] = blocks(field, heights, widths, {
            (0, 0): x.boundary(k), (1, 1): y.boundary(k), (2, 0): f.matrix(k),
            (2, 1): field.reduce(-one), (2, 2): field.reduce(-y.boundary(k + 1)),
        })  # fmt: skip
        first[k] = blocks(field, widths, (x.dim(k),), {(0, 0): field.identity(x.dim(k)), (1, 0): f.matrix(k)})
        second[k] = blocks(field, (y.dim(k),), widths, {(0, 1): one})
    middle = FieldComplex(field, dims, maps)
    return FieldMap(x, middle, first), FieldMap(middle, y, second)


def _widened(*complexes: FieldComplex) -> range:
    degrees = spanned(*complexes)
    return range(degrees.start - 1, degrees.stop + 1)
