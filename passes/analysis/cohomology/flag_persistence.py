"""Barcodes of the clique filtration of a weighted graph in degrees 0 and 1 over F_p, without its triangles.

Edges enter by weight, ties by place. An edge whose ends have no common neighbour joins two components or closes a
cycle. Any other is, in homology, the path over a neighbour k of both ends; and two neighbours that are joined bound
one another, a tetrahedron having two faces that were there before. So an edge brings one equation for every further
component of its link, and the triangles, by far the most, are never listed. It ends where no cycle is alive and every
edge to come has a common neighbour already.

Sources: as `annotations`; U. Bauer, "Ripser", J. Appl. Comput. Topol. 5 (2021), for edges that need no reduction;
J.-D. Boissonnat, S. Pritam, "Edge collapse and persistence of flag complexes", SoCG 2020, for what links decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aatc.passes.analysis.cohomology import bitsets
from aatc.passes.analysis.cohomology.annotations import Annotations, Chains, odd_pairs
from aatc.passes.analysis.cohomology.bitsets import Index, Sets
from aatc.passes.analysis.cohomology.field_annotations import FieldAnnotations, SignedChains, summed
from aatc.passes.analysis.deadline import proceed

Reals = NDArray[np.float64]
# Edges whose links are taken at once, at least and at most: a quarter of those before them between.
_BLOCK = (1024, 8192)
_EQUATIONS = 512
_REST = 65536
_ROWS = 512
# Common neighbours are sought in the graph at these fractions of an edge's rank first: early ones give short paths.
_EARLY = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85)


def flag_barcodes(dissimilarity: Any, modulus: int = 2) -> tuple[Reals, Reals]:
    """Bars (m, 2) of degrees 0 and 1, those of length zero included, of a symmetric matrix (n, n) with zero diagonal.

    Vertices are born at 0; pairs at ∞ are never joined. Memory grows with the square of the number of bars alive at
    one time or another, for bits over F_2 and for numbers of 32 bits over F_p, p = ``modulus`` a prime up to 2²⁰.
    """
    sweep = _Sweep(np.asarray(dissimilarity, np.float64), modulus)
    sweep.run()
    return sweep.bars()


class _Sweep:
    """The edges in order; ``reached`` is the rank up to which they have entered."""

    def __init__(self, d: Reals, p: int = 2) -> None:
        n = len(d)
        rows, columns = np.triu_indices(n, 1)
        values = d[rows, columns]
        order = np.flatnonzero(values < np.inf)
        order = order[np.argsort(values[order], kind="stable")]
        self.ends, self.values = (rows[order], columns[order]), values[order]
        self.rank = np.full((n, n), len(order), np.int32 if n < 2**15 else np.int64)
        self.rank[self.ends] = self.rank[self.ends[::-1]] = np.arange(len(order))
        self.joined = np.zeros((n, n), bool)
        self.graph = bitsets.from_mask(self.joined)
        self.earlier: list[tuple[int, Sets]] = [(0, self.graph)]
        self.root = list(range(n))
        self.reached, self.checked = 0, 0
        self.merges: list[int] = []
        self.closing: list[int] = []
        # Chains of edges below this rank bound already.
        self.null = 0
        self.p = p
        self.block: type[_Block] = _Block if p == 2 else _SignedBlock
        self.paths: Any = Chains() if p == 2 else SignedChains()
        self.classes: Any = Annotations() if p == 2 else FieldAnnotations(p)

    def run(self) -> None:
        while self.reached < len(self.values) and not self._decided():
            proceed()
            step = int(np.clip(self.reached // 4, *_BLOCK))
            self.block(self, min(len(self.values), self.reached + step)).enter()

    def _decided(self) -> bool:
        """Whether nothing is born or dies any more; looked at each time a tenth more edges have entered."""
        if self.classes.living or self.reached < 1.1 * self.checked:
            return False
        self.checked = self.reached
        for start in range(self.reached, len(self.values), _REST):
            i, j = (e[start : start + _REST] for e in self.ends)
            if not (self.graph[i] & self.graph[j]).any(axis=1).all():
                return False
        return True

    def find(self, vertex: int) -> int:
        """The representative of a vertex's component."""
        root = self.root
        while root[vertex] != vertex:
            root[vertex] = root[root[vertex]]
            vertex = root[vertex]
        return vertex

    def bars(self) -> tuple[Reals, Reals]:
        merges = self.values[self.merges]
        components = np.full((len(self.root), 2), [0.0, np.inf])
        components[: len(merges), 1] = merges
        cycles = np.full((len(self.closing), 2), np.inf)
        cycles[:, 0] = self.values[self.closing]
        for coordinate, killer in self.classes.deaths:
            cycles[coordinate, 1] = self.values[killer]
        return components, cycles


class _Block:
    """The edges from ``sweep.reached`` up to rank ``stop``, i and j their ends, taken together."""

    def __init__(self, sweep: _Sweep, stop: int) -> None:
        self.sweep, self.start, self.stop = sweep, sweep.reached, stop
        self.i, self.j = (e[self.start : stop] for e in sweep.ends)
        self.ranks = np.arange(self.start, stop)
        self.before = sweep.graph
        if self.start >= 1.25 * sweep.earlier[-1][0]:
            sweep.earlier.append((self.start, self.before))
        sweep.joined[self.i, self.j] = sweep.joined[self.j, self.i] = True
        self.after = sweep.graph = bitsets.from_mask(sweep.joined)
        self.links = self.before[self.i] & self.before[self.j]

    def enter(self) -> None:
        sweep = self.sweep
        bare = np.flatnonzero(~self.links.any(axis=1))
        self._complete(bare)
        bare = bare[~self.links[bare].any(axis=1)]
        closing = self._join(bare)
        coordinates = sweep.classes.birth(len(closing))
        sweep.closing += (self.start + closing).tolist()
        filled = np.setdiff1d(np.arange(len(self.ranks)), bare, assume_unique=True)
        via = self._neighbours(filled)
        self._paths(closing, coordinates, filled, via)
        if sweep.classes.living:
            self._complete(filled)
            self._equations(filled, via)
        if not sweep.classes.living:
            sweep.null = self.stop
        sweep.reached = self.stop

    def _complete(self, which: Index) -> None:
        """Put into the links of these edges what edges of this block have joined before them."""
        late = self.after[self.i[which]] & self.after[self.j[which]] & ~self.links[which]
        # One candidate costs as much as a look at some tens of vertices.
        many = np.bitwise_count(late).sum(axis=1, dtype=np.int64) > late.shape[1]
        rank = self.sweep.rank
        place, k = bitsets.members(late[~many])
        edge = which[~many][place]
        earlier = np.maximum(rank[self.i[edge], k], rank[self.j[edge], k]) < self.ranks[edge]
        bitsets.include(self.links, edge[earlier], k[earlier])
        whole = which[many]
        for low in range(0, len(whole), _ROWS):
            edge = whole[low : low + _ROWS]
            before = self.ranks[edge, None].astype(rank.dtype)
            self.links[edge] = bitsets.from_mask((rank[self.i[edge]] < before) & (rank[self.j[edge]] < before))

    def _join(self, bare: Index) -> Index:
        """Merge components over edges without a link: those that close a cycle instead."""
        sweep, closing = self.sweep, []
        for edge, i, j in zip(bare.tolist(), self.i[bare].tolist(), self.j[bare].tolist()):
            one, other = sweep.find(i), sweep.find(j)
            if one == other:
                closing.append(edge)
            else:
                sweep.root[one] = other
                sweep.merges.append(self.start + edge)
        return np.array(closing, np.int64)

    def _neighbours(self, filled: Index) -> Index:
        """One vertex of every link, joined to both ends as early as a few looks back tell."""
        via = np.zeros(len(filled), np.int64)
        left = np.arange(len(filled))
        looks = []
        for fraction in _EARLY:
            looks += [graph for rank, graph in self.sweep.earlier if rank <= fraction * self.start][-1:]
        for graph in (*looks, self.before, None):
            edge = filled[left]
            common = self.links[edge] if graph is None else graph[self.i[edge]] & graph[self.j[edge]]
            some = common.any(axis=1)
            via[left[some]] = bitsets.lowest(common[some])
            left = left[~some]
        return via

    def _sides(self, edges: Index, k: Index) -> tuple[Index, Index]:
        """The ranks of the other two edges of the triangles of ``edges`` with vertices ``k``."""
        rank = self.sweep.rank
        return rank[self.i[edges], k].astype(np.int64), rank[self.j[edges], k].astype(np.int64)

    def _paths(self, closing: Index, coordinates: Index, filled: Index, via: Index) -> None:
        """The coordinates of every edge of the block: its own, or those of the two it stands for."""
        paths = _chains_of(closing, coordinates, len(self.ranks))
        # With no class alive every chain bounds, and may as well be empty.
        left = filled if self.sweep.classes.living else filled[:0]
        one, other = self._sides(filled, via)
        unknown = np.zeros(len(self.ranks), bool)
        unknown[left] = True
        rows, values = closing, coordinates
        while len(left):
            proceed()
            # Edges over others of this block wait for them; the earliest never has to.
            ready = ~(self._waits(one, unknown) | self._waits(other, unknown))
            place, found = self._chains(one[ready], other[ready], block=paths)
            place, found = odd_pairs(left[ready][place], found, self.sweep.classes.count + 1)
            rows, values = np.concatenate((rows, place)), np.concatenate((values, found))
            paths = _chains_of(rows, values, len(self.ranks))
            unknown[left[ready]] = False
            left, one, other = left[~ready], one[~ready], other[~ready]
        order = np.argsort(rows, kind="stable")
        self.sweep.paths.append(np.bincount(rows, minlength=len(self.ranks)), values[order])

    def _waits(self, ranks: Index, unknown: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of these edges belong to the block and are ``unknown``."""
        return (ranks >= self.start) & unknown[np.maximum(ranks - self.start, 0)]

    def _chains(self, *edges: Index, block: Chains | None = None) -> tuple[Index, Index]:
        """The coordinates of edges given by rank, as pairs of the place among them and a coordinate.

        ``block`` has those of this block until they have been told to the sweep.
        """
        places, values = [], []
        for ranks in edges:
            useful = np.flatnonzero(ranks >= self.sweep.null)
            here = ranks[useful] >= self.start if block else np.zeros(len(useful), bool)
            for chains, which, first in ((self.sweep.paths, useful[~here], 0), (block, useful[here], self.start)):
                if chains is not None:
                    place, value = chains.rows(ranks[which] - first)
                    places.append(which[place])
                    values.append(value)
        return np.concatenate(places), np.concatenate(values)

    def _equations(self, filled: Index, via: Index) -> None:
        """What further components of links make equal, told to the classes in order."""
        classes = self.sweep.classes
        edges, k = self._components(filled, via)
        sides = (self.ranks[edges], *self._sides(edges, k))
        for start in range(0, len(edges), _EQUATIONS):
            proceed()
            part = tuple(side[start : start + _EQUATIONS] for side in sides)
            place, values = self._chains(*part)
            classes.kill(*odd_pairs(place, values, classes.count + 1), part[0])
            if not classes.living:
                return

    def _components(self, filled: Index, via: Index) -> tuple[Index, Index]:
        """Edges and vertices of their links, one for each component but that of ``via``, and some more.

        A set grows from ``via`` by the neighbours, within the link, of one vertex after another; a vertex that
        touches nothing of it begins a component, or one that is found to be none only later.
        """
        links = self.links[filled]
        reached = links & self.before[via]
        bitsets.include(reached, np.arange(len(filled)), via)
        active = np.arange(len(filled))
        found = []
        while True:
            proceed()
            left = links[active] & ~reached[active]
            some = left.any(axis=1)
            active = active[some]
            if not len(active):
                break
            k = bitsets.lowest(left[some])
            star = links[active] & self.before[k]
            apart = ~(star & reached[active]).any(axis=1)
            found.append((filled[active[apart]], k[apart]))
            bitsets.include(star, np.arange(len(active)), k)
            reached[active] |= star
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        edges, vertices = (np.concatenate(part) for part in zip(*found))
        order = np.argsort(edges, kind="stable")
        return edges[order], vertices[order]


class _SignedBlock(_Block):
    """The same over F_p: i → j is i → k and k → j, each edge with the sign of its direction."""

    def _signs(self, edges: Index, k: Index) -> tuple[Index, Index]:
        """The signs of i → k and k → j, an edge of the complex running upwards."""
        return np.where(self.i[edges] < k, 1, -1), np.where(k < self.j[edges], 1, -1)

    def _paths(self, closing: Index, coordinates: Index, filled: Index, via: Index) -> None:
        ones = np.ones(len(closing), np.int64)
        paths = _signed_chains_of(closing, coordinates, ones, len(self.ranks))
        left = filled if self.sweep.classes.living else filled[:0]
        one, other = self._sides(filled, via)
        sides = self._signs(filled, via)
        unknown = np.zeros(len(self.ranks), bool)
        unknown[left] = True
        rows, values, factors = closing, coordinates, ones
        while len(left):
            proceed()
            ready = ~(self._waits(one, unknown) | self._waits(other, unknown))
            edges = ((one[ready], sides[0][ready]), (other[ready], sides[1][ready]))
            place, found, signs = self._signed(edges, paths)
            made = summed(left[ready][place], found, signs, self.sweep.classes.count + 1, self.sweep.p)
            rows, values, factors = (np.concatenate(x) for x in zip((rows, values, factors), made))
            paths = _signed_chains_of(rows, values, factors, len(self.ranks))
            unknown[left[ready]] = False
            left, one, other = left[~ready], one[~ready], other[~ready]
            sides = sides[0][~ready], sides[1][~ready]
        order = np.argsort(rows, kind="stable")
        self.sweep.paths.append(np.bincount(rows, minlength=len(self.ranks)), values[order], factors[order])

    def _signed(
        self, edges: Sequence[tuple[Index, Index]], block: SignedChains | None = None
    ) -> tuple[Index, Index, Index]:
        """As `_chains`, of edges with signs."""
        parts: list[tuple[Index, Index, Index]] = []
        for ranks, signs in edges:
            useful = np.flatnonzero(ranks >= self.sweep.null)
            here = ranks[useful] >= self.start if block else np.zeros(len(useful), bool)
            for chains, which, first in ((self.sweep.paths, useful[~here], 0), (block, useful[here], self.start)):
                if chains is not None:
                    place, value, factor = chains.rows(ranks[which] - first)
                    parts.append((which[place], value, factor * signs[which[place]]))
        places, values, factors = (np.concatenate(x) for x in zip(*parts))
        return places, values, factors

    def _equations(self, filled: Index, via: Index) -> None:
        classes = self.sweep.classes
        edges, k = self._components(filled, via)
        one, other = self._sides(edges, k)
        up, down = self._signs(edges, k)
        for start in range(0, len(edges), _EQUATIONS):
            proceed()
            cut = slice(start, start + _EQUATIONS)
            ranks = self.ranks[edges[cut]]
            chains = self._signed(((ranks, np.full(len(ranks), -1)), (one[cut], up[cut]), (other[cut], down[cut])))
            classes.kill(*summed(*chains, classes.count + 1, self.sweep.p), ranks)
            if not classes.living:
                return


def _signed_chains_of(rows: Index, values: Index, factors: Index, count: int) -> SignedChains:
    chains, order = SignedChains(), np.argsort(rows, kind="stable")
    chains.append(np.bincount(rows, minlength=count), values[order], factors[order])
    return chains


def _chains_of(rows: Index, values: Index, count: int) -> Chains:
    """As many rows, of the values paired with them."""
    chains = Chains()
    chains.append(np.bincount(rows, minlength=count), values[np.argsort(rows, kind="stable")])
    return chains
