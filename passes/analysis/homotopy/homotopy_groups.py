"""π₀ … π₃ of simplicial complexes.

π₂ is H₂ of the universal cover where π₁ is finite; π₃ follows from Whitehead's exact sequence
H₄ → Γ(π₂) → π₃ → H₃ → 0 of that cover. Source: J. H. C. Whitehead, A certain exact sequence, Ann. Math. 52 (1950);
H.-J. Baues, Homotopy Type and Homology, 1996, chapter 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import gcd
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from aatc.passes.analysis.chains.complexes import SimplicialComplex
from aatc.passes.analysis.chains.cup import cup
from aatc.passes.analysis.chains.homology import AbelianGroup, minimal_model, unit_columns
from aatc.passes.analysis.chains.reduction import MinimalModel
from aatc.passes.analysis.chains.smith import invariant_factors
from aatc.passes.analysis.homotopy.fundamental_group import FundamentalGroup, fundamental_group
from aatc.passes.analysis.homotopy.verify_components import ComponentsWitness, WeightsWitness
from aatc.passes.analysis.homotopy.verify_groups import CoverWitness
from aatc.passes.analysis.result import AnalysisError, Result, Undecided
from aatc.passes.analysis.stochastic import float_array


@dataclass(frozen=True)
class PersistentComponents:
    """Components as the threshold on weights falls; all vertices are there from the start. ``merges`` (n − 1, 3) are
    (threshold, vertex, vertex) of a maximum spanning tree, thresholds falling."""

    merges: np.ndarray
    count: int

    def at(self, threshold: float) -> np.ndarray:
        """The component of each vertex, numbered from 0, when edges of at least ``threshold`` are there."""
        kept = self.merges[self.merges[:, 0] >= threshold]
        graph = sparse.coo_array(
            (np.ones(len(kept)), (kept[:, 1].astype(int), kept[:, 2].astype(int))), (self.count,) * 2
        )
        labels: np.ndarray = csgraph.connected_components(graph, directed=False)[1]
        return labels


def components(complex: SimplicialComplex) -> Result[np.ndarray]:
    """π₀: the component of each vertex, in the order of vertices, numbered by their first vertex; P0."""
    vertices = complex.simplices(0)[:, 0]
    edges = np.searchsorted(vertices, complex.simplices(1))
    graph = sparse.coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (len(vertices),) * 2)
    labels = csgraph.connected_components(graph, directed=False)[1]
    return Result(labels, "P0", witness=ComponentsWitness(vertices, complex.simplices(1)))


def persistent_components(weights: Any) -> Result[PersistentComponents]:
    """π₀ of all thresholds of a symmetric or directed matrix (n, n), direction ignored: a maximum spanning forest of
    max(A, Aᵀ) off the diagonal. AnalysisError for a matrix that is not square or not finite."""
    a = float_array(weights)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not np.isfinite(a).all():
        raise AnalysisError(f"weights are a finite square matrix, got shape {a.shape}")
    n = len(a)
    both = np.maximum(a, a.T)
    np.fill_diagonal(both, -np.inf)
    # Prim's algorithm on the dense matrix: n² steps, whatever the signs of the weights
    best, source, inside = both[0].copy() if n else np.zeros(0), np.zeros(n, int), np.zeros(n, bool)
    inside[:1] = True
    merges = np.zeros((max(n - 1, 0), 3))
    for step in range(n - 1):
        v = int(np.where(inside, -np.inf, best).argmax())
        merges[step] = best[v], source[v], v
        inside[v] = True
        better = (both[v] > best) & ~inside
        best[better], source[better] = both[v][better], v
    order = np.argsort(-merges[:, 0], kind="stable")
    return Result(PersistentComponents(merges[order], n), "P0", witness=WeightsWitness(a))


@dataclass(frozen=True)
class HomotopyGroups:
    """Of one component. ``fundamental`` is π₁ with its presentation, ``order`` its number of elements, infinity or
    `Undecided`; ``second`` and ``third`` are abelian groups or `Undecided`."""

    fundamental: FundamentalGroup
    order: int | float | Undecided
    second: AbelianGroup | Undecided
    third: AbelianGroup | Undecided


def homotopy_groups(
    complex: SimplicialComplex, base: int | None = None, *, bound: int = 1 << 12, cells: int = 1 << 17
) -> Result[HomotopyGroups]:
    """π₁, π₂ and π₃ at ``base``; P1. The witness is the universal cover with H₂, where that was decided.

    bound: cosets for the order of π₁; cells: cells that the universal cover may have. π₂ and π₃ are `Undecided` for an
    infinite or undecided π₁, and π₃ also where the exact sequence leaves the extension open, or Γ has torsion that a
    class of degree 4 may meet.
    """
    group = fundamental_group(complex, base)
    order = group.order(bound)
    if isinstance(order, Undecided):
        return Result(HomotopyGroups(group, order, order, order), "P1")
    if order == float("inf"):
        infinite = Undecided("finite fundamental groups", "π₁ is infinite: its universal cover is no finite complex")
        return Result(HomotopyGroups(group, order, infinite, infinite), "P1")
    if order * sum(complex.counts) > cells:
        large = Undecided(f"{cells} cells", f"the universal cover has {int(order) * sum(complex.counts)}")
        return Result(HomotopyGroups(group, order, large, large), "P1")
    cover = group.universal_cover(bound)
    assert isinstance(cover, SimplicialComplex)
    model = minimal_model(cover)
    second = _homology_group(model, 2)
    pairing = _duals(model, second.free_rank)
    witness = CoverWitness(
        _component_cells(group), cover.cells, int(order), (second.free_rank, second.torsion), *pairing
    )
    return Result(HomotopyGroups(group, order, second, _third(cover, model, second)), "P1", witness=witness)


def _duals(model: MinimalModel, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cocycles (rank, count_2) and cycles (count_2, rank) of degree 2, dual to each other, and cycles (count_4, r) that
    generate H₄."""
    if len(model.counts) <= 4 or not (model.free[4] or model.bounding[4]):
        return (np.zeros((0, 0), dtype=object),) * 3
    basis = unit_columns(model.counts[2], model.free[2])
    top = unit_columns(model.counts[4], [*model.free[4], *model.bounding[4]])
    return model.extend(2, basis).T, model.lift(2, basis), model.lift(4, top)


def _component_cells(group: FundamentalGroup) -> tuple[np.ndarray, ...]:
    """The cells of the base point's component by the places of their vertices in it."""
    inside = group.vertices
    found = [np.searchsorted(inside, c[np.isin(c[:, 0], inside)]) for c in group.complex.cells]
    return tuple(c for c in found if len(c))


def _homology_group(model: MinimalModel, degree: int) -> AbelianGroup:
    if degree >= len(model.counts):
        return abelian(degree, 0, ())
    return abelian(degree, len(model.free[degree]), model.orders_below[degree])


def abelian(degree: int, rank: int, orders: Any) -> AbelianGroup:
    """Z^rank ⊕ Z/t_1 ⊕ … as an `AbelianGroup` over Z with invariant factors."""
    orders = [int(t) for t in orders if t > 1]
    factors = invariant_factors(np.diag(np.array(orders, dtype=object))) if orders else ()
    torsion = tuple(int(t) for t in factors if t > 1)
    return AbelianGroup(degree, "Z", rank, torsion, (0,) * rank + torsion)


def gamma(group: AbelianGroup) -> list[int]:
    """Whitehead's Γ as a list of orders of cyclic summands, 0 for Z: Γ(Z) = Z, Γ(Z/n) = Z/n for odd n and Z/2n for
    even n, Γ(A ⊕ B) = Γ(A) ⊕ Γ(B) ⊕ A ⊗ B."""
    orders = [*[0] * group.free_rank, *group.torsion]
    squares = [t if t % 2 else 2 * t for t in orders]
    return squares + [gcd(a, b) for a, b in combinations(orders, 2)]


def _third(cover: SimplicialComplex, model: MinimalModel, second: AbelianGroup) -> AbelianGroup | Undecided:
    third, fourth = _homology_group(model, 3), _homology_group(model, 4)
    summands = gamma(second)
    relations = np.zeros((0, len(summands)), dtype=object)
    if fourth.free_rank or fourth.torsion:
        if second.torsion:
            return Undecided("torsion-free π₂", "H₄ meets torsion of Γ(π₂) by the Pontryagin square")
        relations = _intersection_forms(cover, model, second.free_rank)
    orders = np.diag(np.array(summands, dtype=object)) if summands else np.zeros((0, 0), object)
    matrix = np.concatenate([relations, orders]) if summands else relations
    factors = [int(f) for f in invariant_factors(matrix)] if matrix.size else []
    kernel = abelian(3, len(summands) - len(factors), factors)
    if any(gcd(a, b) != 1 for a in third.torsion for b in kernel.orders):
        return Undecided("split extensions", f"π₃ is an extension of {third} by {kernel}")
    return abelian(3, kernel.free_rank + third.free_rank, [*kernel.torsion, *third.torsion])


def _intersection_forms(cover: SimplicialComplex, model: MinimalModel, rank: int) -> np.ndarray:
    """H₄ → Γ(H₂) for free H₂: rows are the values on generators of H₄ of x_i ∪ x_i, then of x_i ∪ x_j, i < j."""
    duals = model.extend(2, unit_columns(model.counts[2], model.free[2])).T
    cycles = model.lift(4, unit_columns(model.counts[4], [*model.free[4], *model.bounding[4]])).T
    pairs = [(i, i) for i in range(rank)] + list(combinations(range(rank), 2))
    values = [[int(cup(cover, duals[i], 2, duals[j], 2) @ c) for i, j in pairs] for c in cycles]
    return np.array(values, dtype=object).reshape(len(cycles), len(pairs))
