"""The simplicial sets of a thresholded attention pattern, with the seed's method names.

Three finite objects, by ``kind``. "flag": the directed flag complex, simplices (v_0, …, v_n) with A[v_i, v_j] ≥ t for
all i < j. "preorder": the nerve of the reflexive and transitive closure of {A_ij ≥ t}. "paths": the nerve of the free
category on the arrows i → j (i ≠ j) with A_ij ≥ t, whose arrows are the directed paths; finite for patterns without
directed cycles, such as causal ones. Nerves of preorders with cycles are kept as skeletons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aatc.passes.analysis.chains.complexes import directed_flag_complex
from aatc.passes.analysis.homotopy.simplicial_sets import (
    LIMIT,
    Category,
    KanReport,
    Simplex,
    kan_condition,
    nerve,
    of_complex,
)
from aatc.passes.analysis.result import AnalysisError, Cost, Result, Undecided
from aatc.passes.analysis.stochastic import float_array, plain_array

KINDS = ("flag", "preorder", "paths")
# Measured on one thread: one face of one simplex, with its degeneracy.
_SECONDS_PER_FACE = 6e-6
_BYTES_PER_FACE = 400.0


@dataclass(frozen=True)
class SimplexTable:
    """All ``simplices`` of one dimension, degenerate ones included, with ``faces`` d_0, …, d_n and ``degeneracies``
    s_0, …, s_n of each; vertices have no faces."""

    dimension: int
    simplices: tuple[Simplex, ...]
    faces: tuple[tuple[Simplex, ...], ...] = field(repr=False)
    degeneracies: tuple[tuple[Simplex, ...], ...] = field(repr=False)

    @property
    def nondegenerate(self) -> tuple[Simplex, ...]:
        return tuple(z for z in self.simplices if not z.is_degenerate)


def _square(arrows: Any) -> NDArray[np.bool_]:
    """A copy of the relation. AnalysisError unless it is square."""
    relation = plain_array(arrows, "a relation").astype(bool)
    if relation.ndim != 2 or relation.shape[0] != relation.shape[1]:
        raise AnalysisError(f"a relation has the shape (n, n), not {relation.shape}")
    return relation


def path_category(arrows: Any, *, limit: int = 8192) -> Category:
    """The free category on an acyclic digraph (n, n): objects 0, …, n − 1, arrows the directed paths as tuples of
    vertices, (v,) the identities. AnalysisError where there is a directed cycle, or more than ``limit`` paths, and for
    a relation that is not square."""
    relation = _square(arrows)
    np.fill_diagonal(relation, False)
    grown: list[tuple[int, ...]] = [(v,) for v in range(len(relation))]
    paths = list(grown)
    for _ in range(len(relation)):
        grown = [(*p, int(w)) for p in grown for w in np.flatnonzero(relation[p[-1]])]
        paths += grown
        if len(paths) > limit:
            raise AnalysisError(f"there are more than {limit} directed paths", hint="raise the threshold")
    if grown:
        raise AnalysisError(
            f"the free category is infinite: {grown[0][:8]} … runs into a cycle", hint="kind='preorder' is finite"
        )
    ends = {p: (p[0], p[-1]) for p in paths}
    starting: dict[int, list[tuple[int, ...]]] = {}
    for p in paths:
        starting.setdefault(p[0], []).append(p)
    compose = {(p, q): p + q[1:] for p in paths for q in starting[p[-1]]}
    return Category(tuple(range(len(relation))), ends, {v: (v,) for v in range(len(relation))}, compose)


def preorder_category(arrows: Any) -> Category:
    """The reflexive and transitive closure of a relation (n, n) as a category on 0, …, n − 1. AnalysisError for another
    shape."""
    relation = _square(arrows)
    np.fill_diagonal(relation, True)
    for k in range(len(relation)):
        relation |= relation[:, k : k + 1] & relation[k : k + 1]
    return Category.of_poset(range(len(relation)), lambda i, j: bool(relation[i, j]))


class SimplicialAttention:
    """N(Att) of a pattern (n, n): the simplicial set that ``kind`` names (see the module's text), up to ``dimension``.

    AnalysisError for a pattern that is not square or holds NaN, a threshold that is NaN, a negative dimension, and as
    the kinds say.
    """

    def __init__(
        self, pattern: Any, threshold: float, *, dimension: int = 3, kind: str = "flag", budget: Cost | None = None
    ) -> None:
        if kind not in KINDS:
            raise AnalysisError(f"kind is one of {', '.join(KINDS)}, not {kind!r}")
        values = float_array(pattern)
        if values.ndim != 2 or values.shape[0] != values.shape[1] or np.isnan(values).any():
            raise AnalysisError(f"a pattern is a square matrix without NaN, not of shape {values.shape}")
        if np.isnan(threshold) or dimension < 0:
            raise AnalysisError(f"no simplices of dimension {dimension} are kept at the threshold {threshold}")
        self.kind, self.dimension, self.budget = kind, dimension, budget or Cost()
        reached = values >= threshold
        if kind == "flag":
            flag = directed_flag_complex(reached, dimension)
            self.set = of_complex(flag, skeleton=dimension if flag.dimension == dimension else None)
        else:
            category = preorder_category(reached) if kind == "preorder" else path_category(reached)
            self.set = nerve(category, dimension)

    def estimate_cost(self, dimension: int) -> Cost:
        """What the table of all simplices of that dimension takes."""
        count = self.set.count(dimension) * (dimension + 1)
        return Cost(_SECONDS_PER_FACE * count, _BYTES_PER_FACE * count)

    def attention_simplices(self, dimension: int) -> tuple[Simplex, ...]:
        """All simplices of that dimension in normal form, degenerate ones included. Raises `BudgetError`, and
        AnalysisError above the dimension that was asked for at the start."""
        if not 0 <= dimension <= self.dimension:
            raise AnalysisError(f"simplices of dimension 0 to {self.dimension} are known, not {dimension}")
        self.estimate_cost(dimension).check(self.budget, f"the simplices of dimension {dimension}")
        return tuple(self.set.simplices(dimension))

    def compute_faces(self, simplices: Sequence[Simplex]) -> tuple[tuple[Simplex, ...], ...]:
        """d_0 z, …, d_n z of each simplex z; none for vertices."""
        return tuple(tuple(self.set.face(z, i) for i in range(z.dimension + 1) if z.dimension) for z in simplices)

    def compute_degeneracies(self, simplices: Sequence[Simplex]) -> tuple[tuple[Simplex, ...], ...]:
        """s_0 z, …, s_n z of each simplex z."""
        return tuple(tuple(self.set.degeneracy(z, i) for i in range(z.dimension + 1)) for z in simplices)

    def compute_simplices(self, dimension: int) -> Result[SimplexTable]:
        """The simplices of that dimension with their faces and degeneracies; P0."""
        found = self.attention_simplices(dimension)
        table = SimplexTable(dimension, found, self.compute_faces(found), self.compute_degeneracies(found))
        return Result(table, "P0", assumptions=(f"kind {self.kind}",))

    def kan_check(self, top: int = 2, *, limit: int = LIMIT) -> Result[KanReport | Undecided]:
        """`kan_condition` of this simplicial set. A flag complex that was cut off at ``dimension`` has no fillers above
        it, so ``top`` is at most ``dimension``: AnalysisError else."""
        if top > self.dimension:
            raise AnalysisError(
                f"simplices are known up to dimension {self.dimension}, horns up to {top} are asked for"
            )
        return kan_condition(self.set, top, limit=limit)
