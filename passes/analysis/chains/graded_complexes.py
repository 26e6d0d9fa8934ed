"""Bounded complexes of free abelian groups in any degrees, their maps, Hom complexes and cones.

Homology goes through the minimal model, so that torsion is exact. Source: Weibel, An Introduction to Homological
Algebra, sections 1.2, 1.5 and 2.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from aatc.passes.analysis.chains.complexes import ChainComplex, ComplexError
from aatc.passes.analysis.chains.homology import AbelianGroup, chain_complex, coefficients, group
from aatc.passes.analysis.chains.reduction import MinimalModel


@dataclass(frozen=True, eq=False)
class GradedComplex:
    """``chain`` with its degree 0 moved to the degree ``lowest``."""

    chain: ChainComplex
    lowest: int = 0

    @staticmethod
    def of(source: Any) -> GradedComplex:
        """A `GradedComplex` itself; the chains of a `ChainComplex` or `SimplicialComplex`. Raises `ComplexError`."""
        return source if isinstance(source, GradedComplex) else GradedComplex(chain_complex(source))

    @staticmethod
    def from_boundaries(dims: Mapping[int, int], boundaries: Mapping[int, Any]) -> GradedComplex:
        """From ranks by degree and ∂_k (rank_{k−1}, rank_k) by degree; what is not given is zero. Raises `ComplexError`
        for negative ranks and matrices of other shapes."""
        for k, m in boundaries.items():
            if np.shape(m) != (dims.get(k - 1, 0), dims.get(k, 0)):
                raise ComplexError(f"∂_{k} has shape {np.shape(m)}, not {(dims.get(k - 1, 0), dims.get(k, 0))}")
        if min(dims.values(), default=0) < 0:
            raise ComplexError(f"ranks are not negative, got {dict(dims)}")
        used = [k for k, n in dims.items() if n]
        low, high = min(used, default=0), max(used, default=0)
        counts = [dims.get(k, 0) for k in range(low, high + 1)]
        maps = [
            boundaries.get(k, sparse.csc_array((dims.get(k - 1, 0), dims.get(k, 0)), dtype=np.int64))
            for k in range(low + 1, high + 1)
        ]
        return GradedComplex(ChainComplex(maps, counts), low)

    @property
    def degrees(self) -> range:
        return range(self.lowest, self.lowest + len(self.chain.counts))

    def dim(self, degree: int) -> int:
        """The rank in that degree."""
        return self.chain.count(degree - self.lowest)

    def boundary(self, degree: int) -> sparse.csc_array:
        """∂_k, (rank_{k−1}, rank_k)."""
        return self.chain.boundary(degree - self.lowest)

    @cached_property
    def model(self) -> MinimalModel:
        return MinimalModel(self.chain)

    def homology(self, degree: int, coeff: str | int = "Z") -> AbelianGroup:
        """H_k, in every degree."""
        field, k = coefficients(coeff), degree - self.lowest
        if not 0 <= k < len(self.chain.counts):
            return AbelianGroup(degree, field.name, 0, (), ())
        return replace(group(self.model, k, field, False), degree=degree)

    @property
    def is_acyclic(self) -> bool:
        found = [self.homology(k) for k in self.degrees]
        return not any(h.free_rank or h.torsion for h in found)


@dataclass(frozen=True, eq=False)
class GradedMap:
    """A chain map, ``matrices`` degree → (target rank, source rank) of integers, zero where not given. Raises
    `ComplexError` for wrong shapes, fractions, and matrices that do not commute with ∂."""

    source: GradedComplex
    target: GradedComplex
    matrices: Mapping[int, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrices", {k: _integer_matrix(m, k) for k, m in self.matrices.items()})
        for k, m in self.matrices.items():
            if m.shape != (self.target.dim(k), self.source.dim(k)):
                raise ComplexError(
                    f"the map of degree {k} has shape {m.shape}, not {(self.target.dim(k), self.source.dim(k))}"
                )
        for k in {*self.source.degrees, *self.target.degrees}:
            gap = self.target.boundary(k) @ self.matrix(k) - self.matrix(k - 1) @ self.source.boundary(k)
            if gap.nnz and np.any(gap.data):
                raise ComplexError(f"the matrices do not commute with the boundary of degree {k}")

    @staticmethod
    def identity(of: GradedComplex) -> GradedMap:
        return GradedMap(of, of, {k: sparse.eye_array(of.dim(k), dtype=np.int64) for k in of.degrees})

    def matrix(self, degree: int) -> sparse.csc_array:
        found = self.matrices.get(degree)
        shape = (self.target.dim(degree), self.source.dim(degree))
        return found if found is not None else sparse.csc_array(shape, dtype=np.int64)

    def then(self, after: GradedMap) -> GradedMap:
        """after ∘ self. Raises `ComplexError` unless ``after`` starts at the target (the same object)."""
        if after.source is not self.target:
            raise ComplexError("the second map does not start where the first one ends")
        return GradedMap(self.source, after.target, {k: after.matrix(k) @ self.matrix(k) for k in self.source.degrees})

    def equals(self, other: GradedMap) -> bool:
        return all(
            not np.any((self.matrix(k) - other.matrix(k)).toarray())
            for k in {*self.source.degrees, *self.target.degrees}
        )


def _integer_matrix(matrix: Any, degree: int) -> sparse.csc_array:
    """Two axes, 64-bit integers. Raises `ComplexError`."""
    try:
        given = sparse.csc_array(matrix if sparse.issparse(matrix) else np.asarray(matrix))
        if not np.isfinite(given.data).all():
            raise ValueError("NaN or infinity")
        whole = given.astype(np.int64)
    except (TypeError, ValueError, OverflowError) as wrong:
        raise ComplexError(f"the map of degree {degree} is no matrix of 64-bit integers") from wrong
    if np.any(whole.data != given.data):
        raise ComplexError(f"the map of degree {degree} has entries that are not integers")
    return whole


class BlockLayout:
    """Direct sums in every degree, built from named summands: `add` them, `put` the entries of ∂, and `build`."""

    def __init__(self) -> None:
        self.dims: dict[int, int] = {}
        self._start: dict[tuple[int, Any], int] = {}
        self._size: dict[tuple[int, Any], int] = {}
        self._parts: dict[int, list[tuple[int, int, Any]]] = {}

    def add(self, degree: int, name: Any, size: int) -> None:
        self._start[degree, name] = self.dims.get(degree, 0)
        self._size[degree, name] = size
        self.dims[degree] = self.dims.get(degree, 0) + size

    def put(self, degree: int, row: Any, column: Any, matrix: Any) -> None:
        """Adds ``matrix`` to ∂_degree, from the summand ``column`` to ``row`` of the degree below; where one of them is
        not there or empty, nothing."""
        if self._size.get((degree, column)) and self._size.get((degree - 1, row)):
            place = (self._start[degree - 1, row], self._start[degree, column])
            self._parts.setdefault(degree, []).append((*place, matrix))

    def build(self) -> GradedComplex:
        maps = {}
        for degree, parts in self._parts.items():
            rows, columns, data = [], [], []
            for top, left, matrix in parts:
                entries = sparse.coo_array(matrix)
                rows.append(entries.coords[0] + top)
                columns.append(entries.coords[1] + left)
                data.append(entries.data)
            shape = (self.dims.get(degree - 1, 0), self.dims[degree])
            ends = (np.concatenate(rows), np.concatenate(columns))
            maps[degree] = sparse.csc_array((np.concatenate(data).astype(np.int64), ends), shape=shape)
        return GradedComplex.from_boundaries(self.dims, maps)


def hom_complex(x: GradedComplex, y: GradedComplex) -> GradedComplex:
    """Hom(X, Y)_n = ∏_i Hom(X_i, Y_{i+n}) with (∂f)_i = ∂ f_i − (−1)ⁿ f_{i−1} ∂; f[a, b] in the order of rows."""
    layout = BlockLayout()
    places = [(n, i) for i in x.degrees for n in (j - i for j in y.degrees)]
    for n, i in sorted(places):
        layout.add(n, i, y.dim(i + n) * x.dim(i))
    for n, i in places:
        layout.put(n, i, i, sparse.kron(y.boundary(i + n), sparse.eye_array(x.dim(i))))
        # f_i: X_i → Y_{i+n} is what ∂f takes on X_{i+1} through ∂: X_{i+1} → X_i
        turned = sparse.kron(sparse.eye_array(y.dim(i + n)), x.boundary(i + 1).T)
        layout.put(n, i + 1, i, -((-1) ** n) * turned)
    return layout.build()


def cone(f: GradedMap) -> GradedComplex:
    """Cone_k = X_{k−1} ⊕ Y_k with ∂(x, y) = (−∂x, f x + ∂y)."""
    layout, x, y = BlockLayout(), f.source, f.target
    for k in x.degrees:
        layout.add(k + 1, "x", x.dim(k))
    for k in y.degrees:
        layout.add(k, "y", y.dim(k))
    for k in x.degrees:
        layout.put(k + 1, "x", "x", -x.boundary(k))
        layout.put(k + 1, "y", "x", f.matrix(k))
    for k in y.degrees:
        layout.put(k, "y", "y", y.boundary(k))
    return layout.build()


def shifted(x: GradedComplex, by: int) -> GradedComplex:
    """X[by]_k = X_{k−by} with ∂ times (−1)^by."""
    maps = [(-1) ** by * x.chain.boundary(k) for k in range(1, len(x.chain.counts))]
    return GradedComplex(ChainComplex(maps, x.chain.counts), x.lowest + by)
