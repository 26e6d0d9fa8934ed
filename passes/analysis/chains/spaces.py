"""Named triangulations, small enough to be checked by their links.

Sources: Möbius (1861) and Császár for the torus with 7 vertices; Kühnel, Banchoff, The 9-vertex complex projective
plane, Math. Intelligencer 5 (1983). The Poincaré sphere here was made for this library: the second barycentric
subdivision of the 600-cell modulo the binary icosahedral group, made smaller by edge contractions and bistellar moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations, product

import numpy as np

from aatc.passes.analysis.chains.complexes import ComplexError, SimplicialComplex, from_maximal_simplices

# Tetrahedra by the hexadecimal digits of their vertices.
_POINCARE = """
0139 013c 0179 017b 01bc 0279 027d 0289 028d 035c 035e 039e 045c 045f 046b 046f 04bc 05ef 068d 068f
06ab 06ad 07ab 07ad 089e 08ef 136c 136d 139d 1478 147f 148a 14af 16ac 16ad 178b 179f 18ac 18bc 19df
1adf 235a 235c 236c 236f 23ab 23bf 245a 245c 248a 248d 24cd 267e 267f 26ce 279f 27de 289a 29ab 29bf
2cde 3478 347e 348d 349d 349e 35ae 368d 368f 378b 37ab 37ae 38bf 45af 467e 467f 469b 469e 49bd 4bcd
5aef 69ab 69ac 69ce 7ade 89ac 89ce 8bcf 8cef 9bdf adef bcdf cdef
"""


def simplex(dimension: int) -> SimplicialComplex:
    """The full simplex on vertices 0, ..., dimension."""
    return from_maximal_simplices([range(dimension + 1)])


def sphere(dimension: int) -> SimplicialComplex:
    """Sⁿ as the boundary of the simplex on vertices 0, ..., n+1."""
    if dimension < 0:
        raise ComplexError(f"a sphere has dimension at least 0, not {dimension}")
    return from_maximal_simplices(list(combinations(range(dimension + 2), dimension + 1)))


def torus() -> SimplicialComplex:
    """The torus with 7 vertices: triangles {i, i+1, i+3} and {i, i+2, i+3} modulo 7."""
    return from_maximal_simplices([[i, (i + k) % 7, (i + 3) % 7] for i in range(7) for k in (1, 2)])


def projective_plane() -> SimplicialComplex:
    """RP² with 6 vertices: the icosahedron modulo its antipodal map."""
    ring = [[0, 1 + i, 1 + (i + 1) % 5] for i in range(5)]
    return from_maximal_simplices([*ring, *([1 + i, 1 + (i + 1) % 5, 1 + (i + 3) % 5] for i in range(5))])


def complex_projective_plane() -> SimplicialComplex:
    """CP² with 9 vertices (Kühnel): two orbits of 4-simplices, 9 and 27, under the affine maps (x, y) ↦ (x+a, y+b) and
    (x, y) ↦ (x+cy, y) of the plane over F_3, vertex 3y + x."""
    facets = set()
    for a, b, c in product(range(3), repeat=3):
        for start in ((0, 1, 3, 4, 5), (0, 1, 3, 4, 8)):
            facets.add(tuple(sorted(3 * ((v // 3 + b) % 3) + (v % 3 + a + c * (v // 3)) % 3 for v in start)))
    return from_maximal_simplices(sorted(facets))


def poincare_sphere() -> SimplicialComplex:
    """The Poincaré homology sphere with 16 vertices and 93 tetrahedra; its fundamental group has order 120."""
    return from_maximal_simplices([[int(digit, 16) for digit in facet] for facet in _POINCARE.split()])


def polygon_quotient(word: Sequence[int]) -> SimplicialComplex:
    """A polygon with its sides glued: side i is letter |word[i]|, traversed backwards where word[i] < 0.

    Letters are numbers from 1. Each side has three edges; inside is a ring of vertices and a centre. [1, 2, −1, −2] is
    a torus. Raises `ComplexError` for an empty word or a zero.
    """
    if not len(word) or 0 in word:
        raise ComplexError(f"a word has letters ±1, ±2, ..., not {list(word)}")
    rim, corners = len(word), list(range(len(word)))

    def root(corner: int) -> int:
        while corners[corner] != corner:
            corner = corners[corner]
        return corner

    first: dict[int, tuple[int, int]] = {}
    for i, letter in enumerate(word):
        ends = (i, (i + 1) % rim) if letter > 0 else ((i + 1) % rim, i)
        for mine, other in zip(ends, first.setdefault(abs(letter), ends)):
            corners[root(mine)] = root(other)
    labels: dict[object, int] = {}
    outer: list[int] = []
    for i, letter in enumerate(word):
        names = [(abs(letter), part) for part in ((1, 2) if letter > 0 else (2, 1))]
        outer += [labels.setdefault(name, len(labels)) for name in (root(i), *names)]
    m, n = len(labels), len(outer)
    triangles = []
    for i in range(n):
        j = (i + 1) % n
        triangles += [[outer[i], outer[j], m + i], [outer[j], m + i, m + j], [m + i, m + j, m + n]]
    return from_maximal_simplices(triangles)


def klein_bottle() -> SimplicialComplex:
    """The Klein bottle, word a b a b⁻¹."""
    return polygon_quotient([1, 2, 1, -2])


def oriented_surface(genus: int) -> SimplicialComplex:
    """The closed oriented surface of a genus ≥ 1, word Π [a_i, b_i]."""
    return polygon_quotient([s * (2 * i + k) for i in range(genus) for s, k in ((1, 1), (1, 2), (-1, 1), (-1, 2))])


def dunce_hat() -> SimplicialComplex:
    """The dunce hat, word a a a⁻¹: contractible, without a free face."""
    return polygon_quotient([1, 1, -1])


def moore_space(order: int) -> SimplicialComplex:
    """The disc glued along aᵗ: H_1 = Z/t, for t ≥ 1."""
    return polygon_quotient([1] * order)


def wedge_of_circles_and_sphere() -> SimplicialComplex:
    """S¹ ∨ S¹ ∨ S²: the homology of a torus, with no products."""
    circles = [(0, 1), (1, 2), (0, 2), (0, 3), (3, 4), (0, 4)]
    return from_maximal_simplices([*circles, *combinations((0, 5, 6, 7), 3)])


def triangulated_torus(*sizes: int) -> SimplicialComplex:
    """The torus Zⁿ/(sizes), sizes ≥ 3, each cube cut into n! simplices along increasing paths (Freudenthal).

    A vertex (x_1, ..., x_n) has its index in C order.
    """
    if not sizes or min(sizes) < 3:
        raise ComplexError(f"each side of a triangulated torus has at least 3 vertices, not {sizes}")
    corners = np.array(list(np.ndindex(*sizes)), np.int64)
    facets = []
    for order in permutations(range(len(sizes))):
        path = [corners]
        for axis in order:
            path.append((path[-1] + np.eye(len(sizes), dtype=np.int64)[axis]) % sizes)
        facets.append(np.stack([np.ravel_multi_index(tuple(p.T), sizes) for p in path], axis=1))
    return from_maximal_simplices(np.concatenate(facets))
