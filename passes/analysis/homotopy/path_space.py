"""Paths in an attention pattern: most probable ones, their classes modulo π₁, and the path object of the chains.

A path's probability is the product of its entries A_ij, so its length is −Σ log A_ij. Sources: Dijkstra, A note on two
problems in connexion with graphs, Numer. Math. 1 (1959); Seifert, Threlfall, A Textbook of Topology, section 44, for
edge paths; Weibel, An Introduction to Homological Algebra, section 1.5, for the cocylinder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from aatc.passes.analysis.chains.complexes import ChainComplex, SimplicialComplex, threshold_complex
from aatc.passes.analysis.chains.graded_complexes import BlockLayout, GradedComplex, GradedMap
from aatc.passes.analysis.chains.homology import chain_complex
from aatc.passes.analysis.chains.smith import integer_array, smith_normal_form
from aatc.passes.analysis.homotopy.fundamental_group import FundamentalGroup, fundamental_group
from aatc.passes.analysis.homotopy.presentation import Word, inverse, reduced
from aatc.passes.analysis.homotopy.verify_homotopy import PathWitness
from aatc.passes.analysis.homotopy.verify_models import RetractWitness
from aatc.passes.analysis.pattern_source import StepLengths, step_lengths
from aatc.passes.analysis.result import AnalysisError, Cost, Result, Undecided
from aatc.passes.analysis.stochastic import float_array

#: Two lengths closer than this times the number of vertices are a tie.
TIE = 1e-13
# Measured on one thread: edges, lengths and Dijkstra per entry of the pattern; π₁ per triangle of K_t.
_SECONDS_PER_ENTRY = 6e-7
_BYTES_PER_ENTRY = 64.0
_SECONDS_PER_TRIANGLE = 1e-6
_BYTES_PER_TRIANGLE = 180.0
_WITNESSED = 300


class UnreachableError(AnalysisError):
    """There is no path between two vertices. ``reached`` are the vertices that the first one reaches."""

    def __init__(self, start: int, end: int, reached: tuple[int, ...], kind: str):
        self.reached = reached
        super().__init__(
            f"no {kind} leads from {start} to {end}; {len(reached)} vertices are reached", hint="lower the threshold"
        )


@dataclass(frozen=True)
class Cocylinder:
    """The path object of a complex C: P_k = C_k ⊕ C_k ⊕ C_{k+1}, ∂(a, b, c) = (∂a, ∂b, a − b − ∂c), c a path from b to
    a. ``start`` and ``end`` are the evaluations a and b, ``constant`` is the section x ↦ (x, x, 0)."""

    complex: GradedComplex
    start: GradedMap
    end: GradedMap
    constant: GradedMap


@dataclass(frozen=True)
class PathSpace:
    """Edge paths from ``start`` to ``end``, up to homotopy with fixed ends: they are a coset, classes ↔ π₁(start), by
    γ ↦ γ · reference⁻¹. ``reference`` is the path in the spanning tree."""

    start: int
    end: int
    reference: tuple[int, ...]
    group: FundamentalGroup = field(repr=False)
    costs: NDArray[np.float64] = field(repr=False)

    @cached_property
    def cocylinder(self) -> Result[Cocylinder]:
        """The path object of the chains of K_t's 2-skeleton; with a witness up to `_WITNESSED` simplices a degree."""
        complex = self.group.complex
        return cocylinder(complex, witness=max(complex.counts) <= _WITNESSED)

    def class_count(self, bound: int = 1 << 12) -> int | float | Undecided:
        """How many homotopy classes of paths there are: the order of π₁."""
        return self.group.order(bound)

    @cached_property
    def edge_words(self) -> dict[tuple[int, int], Word]:
        edges = self.group.complex.simplices(1)
        found: dict[tuple[int, int], Word] = {}
        for e, word in self.group.edge_words.items():
            a, b = edges[e].tolist()
            found[a, b], found[b, a] = word, inverse(word)
        return found

    def word(self, path: Sequence[int]) -> Word:
        """The element of π₁ that γ · reference⁻¹ stands for, freely reduced: the class of the path γ. Edges of the tree
        have the empty word. AnalysisError for what is no edge path from ``start`` to ``end``."""
        steps = list(pairwise(path))
        if not len(path) or path[0] != self.start or path[-1] != self.end:
            raise AnalysisError(f"a path of this space runs from {self.start} to {self.end}, not {list(path)}")
        missing = [s for s in steps if s not in self.edge_words]
        if missing:
            raise AnalysisError(f"{missing[0]} is no edge of the pattern")
        return reduced(g for s in steps for g in self.edge_words[s])

    def same_class(self, one: Sequence[int], two: Sequence[int], bound: int = 1 << 12) -> bool | Undecided:
        """Whether two paths are homotopic with fixed ends. Decided for free and for finite groups, and where the first
        homology tells the paths apart; else `Undecided`."""
        loop = reduced((*self.word(one), *inverse(self.word(two))))
        presentation = self.group.presentation
        if not loop or presentation.is_free:
            return not loop
        if self._survives_in_homology(loop):
            return False
        table = presentation.elements(bound)
        if isinstance(table, float):
            return Undecided("the first homology", "π₁ is infinite and the loop vanishes in its abelianisation")
        if isinstance(table, Undecided):
            return table
        at = 0
        for g in loop:
            at = table[at][2 * (abs(g) - 1) + (g < 0)]
        return at == 0

    def _survives_in_homology(self, loop: Word) -> bool:
        """Whether the exponent sums of the loop are no combination of those of the relators."""
        presentation = self.group.presentation
        target = np.zeros(presentation.generators, dtype=object)
        for g in loop:
            target[abs(g) - 1] += 1 if g > 0 else -1
        form = smith_normal_form(integer_array(np.array(presentation.exponents(), dtype=object)).T)
        image = form.left @ target
        divided = [v % d for v, d in zip(image, form.factors)]
        return any(divided) or any(image[form.rank :])


@dataclass(frozen=True)
class FoundPath:
    """A shortest path: ``vertices``, ``length`` = −log of its ``probability``, its class as a ``word`` in π₁, and
    whether it is the only one (``unique``; lengths within `TIE` count as equal)."""

    vertices: tuple[int, ...]
    length: float
    probability: float
    word: Word
    unique: bool


def cocylinder(source: ChainComplex | SimplicialComplex, *, witness: bool = True) -> Result[Cocylinder]:
    """The path object of the chains. The witness, of dense matrices, shows that the evaluation ``start`` is onto and a
    quasi-isomorphism: ev∘s = 1 and 1 − s∘ev = ∂h + h∂ with h(a, b, c) = (0, −c, 0)."""
    c = GradedComplex.of(chain_complex(source))
    layout = BlockLayout()
    for k in range(c.degrees.start - 1, c.degrees.stop):
        for name, size in (("a", c.dim(k)), ("b", c.dim(k)), ("c", c.dim(k + 1))):
            layout.add(k, name, size)
    for k in c.degrees:
        one = sparse.eye_array(c.dim(k), dtype=np.int64)
        layout.put(k, "a", "a", c.boundary(k))
        layout.put(k, "b", "b", c.boundary(k))
        layout.put(k, "c", "a", one)
        layout.put(k, "c", "b", -one)
        layout.put(k - 1, "c", "c", -c.boundary(k))
    paths = layout.build()
    start, end, constant = {}, {}, {}
    for k in range(c.degrees.start - 1, c.degrees.stop):
        here, above = c.dim(k), c.dim(k + 1)
        one, none = sparse.eye_array(here, dtype=np.int64), sparse.csc_array((here, here), dtype=np.int64)
        rest = sparse.csc_array((here, above), dtype=np.int64)
        start[k], end[k] = sparse.hstack([one, none, rest]), sparse.hstack([none, one, rest])
        constant[k] = sparse.vstack([one, one, rest.T])
    found = Cocylinder(paths, GradedMap(paths, c, start), GradedMap(paths, c, end), GradedMap(c, paths, constant))
    return Result(found, "P0", witness=_retraction(found, c) if witness else None)


def _retraction(found: Cocylinder, c: GradedComplex) -> RetractWitness:
    homotopy = {}
    for k in range(c.degrees.start - 1, c.degrees.stop):
        here, above = c.dim(k), c.dim(k + 1)
        homotopy[k] = np.zeros((found.complex.dim(k + 1), found.complex.dim(k)), dtype=object)
        homotopy[k][above + np.arange(above), 2 * here + np.arange(above)] = -1
    degrees = range(c.degrees.start - 1, c.degrees.stop + 1)
    return RetractWitness(
        {k: _dense(found.complex.boundary(k)) for k in degrees},
        {k: _dense(c.boundary(k)) for k in degrees},
        {k: _dense(found.constant.matrix(k)) for k in homotopy},
        {k: _dense(found.start.matrix(k)) for k in homotopy},
        homotopy,
    )


def _dense(matrix: Any) -> NDArray[np.object_]:
    dense: NDArray[np.object_] = matrix.toarray().astype(object)
    return dense


class AttentionPath:
    """Paths between tokens of a pattern (n, n) with entries in [0, 1], over the edges A_ij ≥ threshold > 0.

    A path follows the arrows i → j (row i attends to column j). Homotopy classes forget the direction: they are those
    of the complex K_t of {max(A_ij, A_ji) ≥ t}. AnalysisError for other patterns and thresholds.
    """

    def __init__(self, pattern: Any, threshold: float, budget: Cost | None = None) -> None:
        values = float_array(pattern)
        if values.ndim != 2 or values.shape[0] != values.shape[1] or not ((values >= 0) & (values <= 1)).all():
            raise AnalysisError(f"a pattern is a square matrix with entries in [0, 1], not of shape {values.shape}")
        if not threshold > 0:
            raise AnalysisError(f"the threshold is positive, not {threshold}: −log 0 is no length")
        self.pattern, self.threshold, self.budget = values, float(threshold), budget or Cost()

    def estimate_cost(self) -> Cost:
        """What `compute_path` takes; counts the triangles of K_t by one product of matrices."""
        joined = np.maximum(self.pattern, self.pattern.T) >= self.threshold
        np.fill_diagonal(joined, False)
        edges = joined.astype(np.float64)
        triangles = float(((edges @ edges) * edges).sum()) / 6
        return Cost(
            1e-3 + _SECONDS_PER_ENTRY * edges.size + _SECONDS_PER_TRIANGLE * triangles,
            _BYTES_PER_ENTRY * edges.size + _BYTES_PER_TRIANGLE * triangles,
        )

    def path_space(self, start: int, end: int) -> PathSpace:
        """Paths from ``start`` to ``end`` and their classes. Raises `UnreachableError` where they lie in different
        components of K_t, `BudgetError`, AnalysisError for tokens that are not there."""
        self.estimate_cost().check(self.budget, f"paths among {len(self.pattern)} tokens")
        for v in (start, end):
            if v not in range(len(self.pattern)):
                raise AnalysisError(f"there is no token {v}", hint=f"tokens run from 0 to {len(self.pattern) - 1}")
        complex = threshold_complex(self.pattern, self.threshold, 2)
        group = fundamental_group(complex, start)
        reference = _tree_path(group, len(self.pattern), start, end)
        reached = self.pattern >= self.threshold
        costs = np.full(self.pattern.shape, np.inf)
        costs[reached] = -np.log(self.pattern[reached])
        np.fill_diagonal(costs, np.inf)
        return PathSpace(start, end, reference, group, np.abs(costs))

    def find_path(self, space: PathSpace) -> Result[FoundPath]:
        """The most probable path along the arrows, P2 within the rounding of its length. Among ties the one that
        Dijkstra's algorithm keeps. Raises `UnreachableError` where no arrows lead there."""
        present = np.isfinite(space.costs)
        graph = sparse.csr_array((space.costs[present], np.nonzero(present)), shape=space.costs.shape)
        distance, before = csgraph.dijkstra(graph, indices=space.start, return_predecessors=True)
        if not np.isfinite(distance[space.end]):
            reached = tuple(np.flatnonzero(np.isfinite(distance)).tolist())
            raise UnreachableError(space.start, space.end, reached, "directed path")
        vertices = [space.end]
        while vertices[-1] != space.start:
            vertices.append(int(before[vertices[-1]]))
        vertices.reverse()
        length = float(distance[space.end])
        tolerance = TIE * len(space.costs) * max(1.0, length)
        found = FoundPath(
            tuple(vertices), length, float(np.exp(-length)), space.word(vertices),
            _is_unique(space.costs, distance, vertices, tolerance),
        )  # fmt: skip
        witness = PathWitness(space.costs, found.vertices, length, distance, space.edge_words)
        return Result(found, "P2", tolerance, witness=witness, assumptions=("probabilities multiply along a path",))

    def compute_path(self, start: int, end: int) -> Result[FoundPath]:
        """`find_path` of `path_space`."""
        return self.find_path(self.path_space(start, end))


def likeliest_path(pattern: Any, start: int, end: int) -> Result[tuple[int, ...]]:
    """The vertices of the most probable path of steps i → j with A_ij > 0 of a pattern (n, n), entries in [0, 1]; P2
    within the rounding of its length. Dijkstra's algorithm on a dense matrix, O(n²), one row of lengths at a time.

    Raises `UnreachableError`, AnalysisError for other patterns and for tokens that are not there."""
    weights = float_array(pattern)
    n = len(weights) if weights.ndim == 2 else 0
    if weights.shape != (n, n) or not ((weights >= 0) & (weights <= 1)).all():
        raise AnalysisError(f"a pattern is a square matrix with entries in [0, 1], not of shape {weights.shape}")
    if not {start, end} <= set(range(n)):
        raise AnalysisError(f"there is no path from {start} to {end}", hint=f"tokens run from 0 to {n - 1}")
    distance, before, waiting = np.full(n, np.inf), np.full(n, -1), np.ones(n, dtype=bool)
    distance[start] = 0.0
    for _ in range(n):
        v = int(np.where(waiting, distance, np.inf).argmin())
        if not waiting[v] or not np.isfinite(distance[v]):
            break
        waiting[v] = False
        through = distance[v] + step_lengths(weights[v])
        nearer = (through < distance) & waiting
        distance[nearer], before[nearer] = through[nearer], v
    if not np.isfinite(distance[end]):
        raise UnreachableError(start, end, tuple(np.flatnonzero(np.isfinite(distance)).tolist()), "directed path")
    path = [end]
    while path[-1] != start:
        path.append(int(before[path[-1]]))
    length, found = float(distance[end]), tuple(reversed(path))
    witness = PathWitness(StepLengths(weights), found, length, distance)
    given = ("probabilities multiply along a path",)
    return Result(found, "P2", TIE * n * max(1.0, length), 0.0, witness, given)


def _tree_path(group: FundamentalGroup, count: int, start: int, end: int) -> tuple[int, ...]:
    """The path in the spanning tree."""
    edges = group.complex.simplices(1)[list(group.tree)]
    graph = sparse.csr_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    order, before = csgraph.breadth_first_order(graph, start, directed=False)
    if end not in order:
        raise UnreachableError(start, end, tuple(sorted(order.tolist())), "edge path")
    path = [end]
    while path[-1] != start:
        path.append(int(before[path[-1]]))
    return tuple(reversed(path))


def _is_unique(costs: NDArray[np.float64], distance: NDArray[np.float64], path: list[int], tolerance: float) -> bool:
    """Whether each vertex of the path but the first is entered by one edge of a shortest path only."""
    with np.errstate(invalid="ignore"):
        excess = distance[:, None] + costs[:, path[1:]] - distance[path[1:]][None]
    return bool(((excess <= tolerance).sum(axis=0) == 1).all()) if len(path) > 1 else True
