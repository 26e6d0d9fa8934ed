"""The arrangement of an interference graph: its complement's class, its points over finite fields, and colourings.

The graphic arrangement of a graph G on n vertices is the hyperplanes x_i = x_j, one per edge. Its complement M in
affine n-space has, in the Grothendieck ring of varieties, the class χ_G(L), χ_G the chromatic polynomial and L the
class of the line; so |M(F_q)| = χ_G(q) for every prime power q, and the absolute values of the coefficients are the
Betti numbers of M(C). For every number q, χ_G(q) is the number of legal assignments of q buffers to tensors that
interfere as G says. The polynomial is all that is computed. Sources: Read, J. Comb. Theory 4 (1968); Orlik, Terao,
Arrangements of Hyperplanes, sections 2.4 and 5.4.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from aatc.passes.analysis.arithmetic.verify_graphs import PARTITIONS, ChromaticWitness, frontier_order
from aatc.passes.analysis.result import AnalysisError, Cost, Result, Undecided

Polynomial = tuple[int, ...]
Neighbours = dict[int, frozenset[int]]
GRAPHS = 20000
NESTED = 300  # graphs that are taken apart inside one another, each two calls deep


class InterferenceError(AnalysisError):
    """Intervals or edges that do not describe an interference graph."""


@dataclass(frozen=True)
class MotivicClass:
    """The class Σ c_k L^k; ``coefficients`` from the constant term up, the last one 1."""

    coefficients: Polynomial

    def points(self, q: int) -> int:
        """|M(F_q)| for a prime power q; the number of legal assignments for q ≥ 0 buffers."""
        total = 0
        for c in reversed(self.coefficients):
            total = total * q + c
        return total

    @property
    def betti_numbers(self) -> Polynomial:
        """b_0, b_1, ... of the complement in complex space: |c_n|, |c_{n−1}|, ..."""
        return tuple(abs(c) for c in reversed(self.coefficients))

    @property
    def chromatic_number(self) -> int:
        """The least number of buffers that admits an assignment."""
        return next(q for q in range(len(self.coefficients)) if self.points(q) > 0)


def _live_ranges(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    ranges = []
    for i, (start, end) in enumerate(intervals):
        if start % 1 != 0 or end % 1 != 0:
            raise InterferenceError(f"live range {i} goes from {start} to {end}: these are numbers of steps, integers")
        if end < start:
            raise InterferenceError(f"live range {i} ends at {end}, before its start {start}")
        ranges.append((int(start), int(end)))
    return ranges


def interference_graph(intervals: Iterable[tuple[int, int]]) -> nx.Graph:
    """Vertices 0, 1, ... for live ranges [start, end); an edge where two overlap. An empty range interferes with
    nothing. Raises `InterferenceError`."""
    ranges = _live_ranges(intervals)
    graph = nx.Graph()
    graph.add_nodes_from(range(len(ranges)))
    active: list[int] = []
    for i in sorted((i for i, (s, e) in enumerate(ranges) if s < e), key=lambda i: ranges[i][0]):
        active = [j for j in active if ranges[j][1] > ranges[i][0]]
        graph.add_edges_from((i, j) for j in active)
        active.append(i)
    return graph


def _neighbours(graph: Any) -> Neighbours:
    if isinstance(graph, nx.Graph):
        if graph.is_directed() or nx.number_of_selfloops(graph):
            raise InterferenceError("interference is symmetric, and nothing interferes with itself")
        index = {v: i for i, v in enumerate(graph.nodes)}
        return {i: frozenset(index[w] for w in graph.neighbors(v)) for v, i in index.items()}
    given = np.asarray(graph)
    table = given != 0
    wrong = table.ndim != 2 or table.shape[0] != table.shape[1] or bool((given != given).any())
    if wrong or (table != table.T).any() or np.diagonal(table).any():
        raise InterferenceError(f"an interference matrix (n, n) is symmetric with zero diagonal; got {table.shape}")
    return {i: frozenset(int(j) for j in np.flatnonzero(row)) for i, row in enumerate(table)}


def _multiply(p: Polynomial, q: Polynomial) -> Polynomial:
    out = [0] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            out[i + j] += a * b
    return tuple(out)


def _from_roots(roots: Iterable[int]) -> Polynomial:
    """∏(L − c) for c ≥ 0. The commonest root's power has binomial coefficients, the other factors follow one by one."""
    counts = Counter(roots)
    if not counts:
        return (1,)
    common, times = counts.most_common(1)[0]
    # signs alternate: the magnitudes are those of ∏(L + c)
    out = [1]
    for k in range(times, 0, -1):
        out.append(out[-1] * k // (times - k + 1))
    if common != 1:
        power = 1
        for k in range(times, -1, -1):
            out[k] *= power
            power *= common
    for c in (c for c in counts.elements() if c != common):
        out = [c * a + b for a, b in zip((*out, 0), (0, *out))]
    return tuple(a if (len(out) - k) % 2 else -a for k, a in enumerate(out))


def _without(graph: Neighbours, vertex: int) -> Neighbours:
    return {v: near - {vertex} for v, near in graph.items() if v != vertex}


def _contracted(graph: Neighbours, kept: int, gone: int) -> Neighbours:
    """``gone`` is merged into ``kept``, to which it must not be adjacent."""
    moved = graph[gone]
    merged = {v: (near - {gone} | {kept} if v in moved else near) for v, near in graph.items() if v != gone}
    merged[kept] = graph[kept] | moved
    return merged


def _is_simplicial(graph: Mapping[int, AbstractSet[int]], vertex: int) -> bool:
    near = graph[vertex]
    return all(len(near & graph[w]) == len(near) - 1 for w in near)


def _eliminated(graph: Neighbours) -> tuple[list[int], list[int], Neighbours]:
    """Simplicial vertices, whose neighbours are all adjacent to each other, taken away one after the other until none
    is left: their order, the degree each had when it went, and the rest of the graph.

    A vertex can only become simplicial when a neighbour goes, so each is looked at again no oftener than that. Vertices
    of least degree come first.
    """
    left: dict[int, set[int]] = {v: set(near) for v, near in graph.items()}
    waiting = [(len(near), v) for v, near in left.items()]
    heapq.heapify(waiting)
    order, degrees = [], []
    while waiting:
        degree, v = heapq.heappop(waiting)
        if v not in left or len(left[v]) != degree or not _is_simplicial(left, v):
            continue
        order.append(v)
        degrees.append(degree)
        for w in left.pop(v):
            left[w].remove(v)
            heapq.heappush(waiting, (len(left[w]), w))
    return order, degrees, {v: frozenset(near) for v, near in left.items()}


class _Bounded(Exception):
    """More graphs, or more of them inside one another, than allowed."""


@dataclass
class _Chromatic:
    """Deletion and contraction with a table of the graphs met; simplicial vertices factor out first."""

    limit: int
    table: dict[frozenset[tuple[int, frozenset[int]]], Polynomial]
    depth: int = 0

    def of(self, graph: Neighbours) -> Polynomial:
        _, degrees, graph = _eliminated(graph)
        factor = _from_roots(degrees)
        if not graph:
            return factor
        key = frozenset(graph.items())
        if key not in self.table:
            if len(self.table) >= self.limit:
                raise _Bounded(f"{self.limit} graphs")
            if self.depth >= NESTED:
                raise _Bounded(f"{NESTED} nested graphs")
            self.depth += 1
            self.table[key] = self._branch(graph)
            self.depth -= 1
        return _multiply(factor, self.table[key])

    def _branch(self, graph: Neighbours) -> Polynomial:
        """P(G) = P(G − e) − P(G/e) for sparse graphs, P(G) = P(G + e) + P(G/e) for dense ones."""
        n, edges = len(graph), sum(map(len, graph.values())) // 2
        v = min(graph, key=lambda v: len(graph[v]))
        if 2 * edges > n * (n - 1) / 2:
            v = max((v for v in graph if len(graph[v]) < n - 1), key=lambda v: len(graph[v]))
            w = max((w for w in graph if w != v and w not in graph[v]), key=lambda w: len(graph[v] & graph[w]))
            joined = graph | {v: graph[v] | {w}, w: graph[w] | {v}}
            return _added(self.of(joined), self.of(_contracted(graph, v, w)), 1)
        w = max(graph[v], key=lambda w: len(graph[v] & graph[w]))
        cut = graph | {v: graph[v] - {w}, w: graph[w] - {v}}
        return _added(self.of(cut), self.of(_contracted(cut, v, w)), -1)


def _added(p: Polynomial, q: Polynomial, sign: int) -> Polynomial:
    return tuple(a + sign * (q[k] if k < len(q) else 0) for k, a in enumerate(p))


def _perfect_elimination(graph: Neighbours) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """A perfect elimination order of a chordal graph and the degree each vertex has when it goes; None for others.

    A maximum cardinality search, each next vertex having most neighbours among those before it, is one backwards.
    Source: Tarjan, Yannakakis, SIAM J. Comput. 13 (1984).
    """
    met = dict.fromkeys(graph, 0)
    waiting, place = [(0, v) for v in graph], dict[int, int]()
    while waiting:
        met_before, v = heapq.heappop(waiting)
        if v in place or -met_before != met[v]:
            continue
        place[v] = len(place)
        for w in graph[v]:
            if w not in place:
                met[w] += 1
                heapq.heappush(waiting, (-met[w], w))
    order, degrees = list(reversed(place)), list[int]()
    for v in order:
        later = {w for w in graph[v] if place[w] < place[v]}
        if later:
            nearest = max(later, key=place.__getitem__)
            if not later - {nearest} <= graph[nearest]:
                return None
        degrees.append(len(later))
    return tuple(order), tuple(degrees)


def _live_counts(intervals: Iterable[tuple[int, int]]) -> np.ndarray:
    """How many others are alive where each live range [start, end) starts, in the order of the starts, empty ranges
    last: the degrees along an elimination order of the interference graph. Raises `InterferenceError`."""
    ranges = _live_ranges(intervals)
    kept = np.array([r for r in ranges if r[0] < r[1]], dtype=np.int64).reshape(-1, 2)
    starts, ends = np.sort(kept[:, 0]), np.sort(kept[:, 1])
    alive = np.arange(len(kept)) - np.searchsorted(ends, starts, side="right")
    return np.concatenate([alive, np.zeros(len(ranges) - len(kept), dtype=np.int64)])


def estimate_cost(intervals: Iterable[tuple[int, int]]) -> Cost:
    """What `motivic_class` takes for the interference graph of live ranges [start, end): its edges, and the product of
    the factors that are not the commonest one, whose coefficients grow with every factor. Raises
    `InterferenceError`."""
    degrees = _live_counts(intervals)
    n, edges = len(degrees), float(degrees.sum())
    bits = float(np.log2(1.0 + degrees).sum())
    single = n - int(np.bincount(degrees).max(initial=0))
    seconds = 1e-4 + 6e-6 * (n + edges) + n * (single + 4) * (5e-8 + 7e-11 * bits)
    return Cost(seconds, 2**20 + 400.0 * (n + edges) + n * (64 + bits / 4))


def motivic_class(graph: Any, *, graphs: int = GRAPHS) -> Result[MotivicClass] | Undecided:
    """The class χ_G(L) of the complement of a graph's arrangement: a networkx graph, or a matrix (n, n).

    Chordal graphs, such as interference graphs of live ranges on a line, factor as ∏(q − d_i) along an elimination
    order. Others go by deletion and contraction; `Undecided` after ``graphs`` different graphs, or 300 nested ones. The
    numbers are exact; P3, without a witness, where no order of the vertices leaves few enough to count colourings
    again. Raises `InterferenceError`.
    """
    near = _neighbours(graph)
    edges = np.array([(v, w) for v in near for w in near[v] if v < w], dtype=np.int64).reshape(-1, 2)
    perfect = _perfect_elimination(near)
    try:
        order = perfect[0] if perfect else ()
        value = MotivicClass(_from_roots(perfect[1]) if perfect else _Chromatic(graphs, {}).of(near))
    except _Bounded as bound:
        return Undecided(str(bound), f"{len(near)} vertices and {len(edges)} edges")
    # what no check can count again within bounds is not proved
    checked = perfect is not None or frontier_order(len(near), [(int(v), int(w)) for v, w in edges])[1] <= PARTITIONS
    witness = ChromaticWitness(len(near), edges, value.coefficients, order)
    return Result(value, "P0" if checked else "P3", witness=witness if checked else None)


def legal_assignments(intervals: Iterable[tuple[int, int]], buffers: int) -> int:
    """In how many ways live ranges [start, end) can be given ``buffers`` numbered buffers, no two overlapping ranges
    the same one: in the order of the starts, each range may take any buffer that is not in use. Raises
    `InterferenceError`."""
    if buffers < 0:
        raise InterferenceError(f"a number of buffers is at least 0, not {buffers}")
    ranges = _live_ranges(intervals)
    graph = interference_graph(ranges)
    count, placed = 1, set[int]()
    for i in sorted(graph.nodes, key=lambda i: ranges[i][0]):
        count *= max(buffers - len(placed.intersection(graph.neighbors(i))), 0)
        placed.add(i)
    return count
