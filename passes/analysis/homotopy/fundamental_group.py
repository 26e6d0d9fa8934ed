"""π₁ of a simplicial complex by edge paths, and the universal cover where the group is finite.

Source: Seifert, Threlfall, A Textbook of Topology, sections 44 and 55; Hatcher, Algebraic Topology, section 1.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from aatc.passes.analysis.chains.complexes import SimplicialComplex
from aatc.passes.analysis.homotopy.presentation import Presentation, Word, inverse
from aatc.passes.analysis.result import AnalysisError, Undecided

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class FundamentalGroup:
    """π₁ at ``base``. ``edge_words`` are the words that the edges of the component stand for, by their place in the
    complex's order; edges of other components are absent. ``tree`` are the edges of the spanning tree."""

    presentation: Presentation
    base: int
    edge_words: dict[int, Word] = field(repr=False)
    tree: tuple[int, ...] = field(repr=False)
    complex: SimplicialComplex = field(repr=False)

    @property
    def vertices(self) -> Ints:
        """The vertices of the component."""
        edges = self.complex.simplices(1)[list(self.tree)]
        return np.unique(np.append(edges, self.base))

    def order(self, bound: int = 1 << 16) -> int | float | Undecided:
        """The number of elements, infinity, or `Undecided` within ``bound`` cosets."""
        return self.presentation.order(bound)

    def abelianisation(self) -> tuple[int, tuple[int, ...]]:
        """(rank, torsion coefficients) of the largest commutative quotient, which is H₁(Z) of the component."""
        from aatc.passes.analysis.chains.smith import invariant_factors

        rows = self.presentation.exponents()
        factors = invariant_factors(np.array(rows, dtype=object)) if rows else ()
        return self.presentation.generators - len(factors), tuple(f for f in factors if f > 1)

    def universal_cover(self, bound: int = 1 << 12) -> SimplicialComplex | Undecided:
        """The simply connected cover of the component, with order times as many cells; vertices are numbered
        place of the vertex in the component · order + element, so that simplices keep the order of their vertices.

        AnalysisError for an infinite group, whose cover is no finite complex.
        """
        elements = self.presentation.elements(bound)
        if isinstance(elements, Undecided):
            return elements
        if isinstance(elements, float):
            raise AnalysisError("the fundamental group is infinite: its universal cover is no finite complex")
        return _cover(self, np.array(elements, dtype=np.int64).reshape(len(elements), -1))


def fundamental_group(complex: SimplicialComplex, base: int | None = None) -> FundamentalGroup:
    """π₁ of the component of the vertex ``base`` (default: the first vertex), its presentation simplified.

    Generators are the edges off a spanning tree, relators the triangles. Linear in the number of triangles up to the
    Tietze moves at the end. AnalysisError for an empty complex and a vertex that is not there.
    """
    vertices = complex.simplices(0)[:, 0]
    if not len(vertices):
        raise AnalysisError("the empty complex has no base point")
    start = vertices[0] if base is None else base
    place = int(np.searchsorted(vertices, start))
    if place == len(vertices) or vertices[place] != start:
        raise AnalysisError(f"there is no vertex {base}", hint=f"vertices run from {vertices[0]} to {vertices[-1]}")
    edges = np.searchsorted(vertices, complex.simplices(1))
    inside, tree = _spanning_tree(edges, len(vertices), place)
    value = np.zeros(len(edges), dtype=np.int64)
    free = inside & ~tree
    value[free] = np.arange(1, free.sum() + 1)
    letters, squares, value = _collapse(_triangle_letters(complex, inside), value)
    return _presented(complex, int(start), value, letters, squares, inside, tree)


def _spanning_tree(edges: Ints, count: int, root: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which edges lie in the component of ``root``, and which of them in a breadth-first tree."""
    if not len(edges):
        return np.zeros(0, bool), np.zeros(0, bool)
    ends = (edges[:, 0], edges[:, 1])
    graph = sparse.csr_array((np.ones(len(edges)), ends), shape=(count, count))
    order, before = csgraph.breadth_first_order(graph, root, directed=False)
    reached = np.zeros(count, bool)
    reached[order] = True
    # directed complexes may have both arrows between two vertices: the first one is the tree's
    wanted = (before[ends[0]] == ends[1]) | (before[ends[1]] == ends[0])
    _, first = np.unique(np.sort(edges, axis=1) @ np.array([count, 1]), return_index=True)
    lone = np.zeros(len(edges), bool)
    lone[first] = True
    return reached[ends[0]], wanted & lone


def _triangle_letters(complex: SimplicialComplex, inside: NDArray[np.bool_]) -> Ints:
    """The edges (ab, bc, ac) of each triangle of the component, (m, 3); the word is ab · bc · ac⁻¹."""
    triangles = complex.simplices(2)
    if not len(triangles):
        return np.zeros((0, 3), np.int64)
    faces = np.stack([complex.index(triangles[:, pair]) for pair in ([0, 1], [1, 2], [0, 2])], axis=1)
    return faces[inside[faces[:, 0]]]


_SIGNS = np.array([1, 1, -1])


def _collapse(faces: Ints, value: Ints) -> tuple[Ints, list[int], Ints]:
    """Uses every triangle with a trivial edge: the third edge beside two trivial ones is trivial, two edges beside one
    trivial one are equal or inverse. Returns the words that are left, (m, 3), generators whose square is 1, and the
    values of the edges: ± a generator, or 0."""
    squares: set[int] = set()
    while True:
        words = value[faces] * _SIGNS
        count = (words != 0).sum(1)
        single = np.unique(np.abs(words[count == 1]).max(1, initial=0))
        if len(single):
            value = np.where(np.isin(np.abs(value), single), 0, value)
            squares -= set(single.tolist())
            continue
        pairs = words[count == 2]
        pairs = pairs[pairs != 0].reshape(-1, 2)
        squares |= set(np.abs(pairs[pairs[:, 0] == pairs[:, 1], 0]).tolist())
        pairs = pairs[np.abs(pairs[:, 0]) != np.abs(pairs[:, 1])]
        if not len(pairs):
            return words[count == 3], sorted(squares), value
        table, own_inverse = _identify(pairs, int(np.abs(value).max(initial=0)))
        value = np.sign(value) * table[np.abs(value)]
        squares = {int(abs(table[g])) for g in squares} | set(own_inverse)


def _identify(pairs: Ints, count: int) -> tuple[Ints, list[int]]:
    """What generators become when x · y = 1 for all pairs (x, y): ± the least of their class, by generator. A class in
    which a generator meets its inverse is its own inverse; such representatives are returned too.

    Components are those of the double cover, whose points are the generators and their inverses.
    """

    def point(x: Ints) -> Ints:
        return 2 * np.abs(x) + (x < 0)

    x, y = pairs[:, 0], pairs[:, 1]
    ends = (np.concatenate([point(x), point(-x)]), np.concatenate([point(-y), point(y)]))
    size = 2 * count + 2
    graph = sparse.csr_array((np.ones(2 * len(pairs)), ends), shape=(size, size))
    label = csgraph.connected_components(graph, directed=False)[1]
    least = np.full(label.max() + 1, size)
    np.minimum.at(least, label, np.arange(size))
    found = least[label[::2]]
    table = np.where(found % 2, -(found // 2), found // 2)
    table[0] = 0
    own_inverse = label[2::2] == label[3::2]
    return table, np.unique(np.abs(table[1:][own_inverse])).tolist()


def _presented(
    complex: SimplicialComplex,
    base: int,
    value: Ints,
    letters: Ints,
    squares: list[int],
    inside: NDArray[np.bool_],
    tree: NDArray[np.bool_],
) -> FundamentalGroup:
    """The simplified group of what the collapse left."""
    left = np.unique(np.abs(value[value != 0]))
    number = {int(g): n for n, g in enumerate(left, 1)}
    relators = {tuple(number[abs(g)] * (1 if g > 0 else -1) for g in w) for w in np.unique(letters, axis=0).tolist()}
    relators |= {(number[g], number[g]) for g in squares}
    whole = Presentation(len(left), tuple(sorted(relators)))
    simple, images = whole.simplification()
    words: dict[int, Word] = {}
    for e in np.flatnonzero(inside).tolist():
        g = int(value[e])
        image = images[number[abs(g)] - 1] if g else ()
        words[e] = image if g >= 0 else inverse(image)
    return FundamentalGroup(simple, base, words, tuple(np.flatnonzero(tree).tolist()), complex)


def _cover(group: FundamentalGroup, table: Ints) -> SimplicialComplex:
    """Sheets are elements g; the edge ab with word w joins (g, a) and (g·w, b), and simplices follow their edges."""
    complex = group.complex
    elements = len(table)
    edges = complex.simplices(1)
    vertices = group.vertices
    step = {}
    for e, word in group.edge_words.items():
        at = np.arange(elements)
        for g in word:
            at = table[at, 2 * (abs(g) - 1) + (g < 0)]
        step[tuple(edges[e].tolist())] = at
    cells = [np.arange(elements * len(vertices)).reshape(-1, 1)]
    for k in range(1, complex.dimension + 1):
        lifted = []
        for simplex in complex.simplices(k).tolist():
            if (simplex[0], simplex[1]) not in step:
                continue
            sheets = [np.arange(elements)] + [step[simplex[0], b] for b in simplex[1:]]
            places = np.searchsorted(vertices, simplex)
            lifted.append(np.stack([v * elements + s for s, v in zip(sheets, places)], axis=1))
        cells.append(np.concatenate(lifted) if lifted else np.zeros((0, k + 1), np.int64))
    return SimplicialComplex(cells)
