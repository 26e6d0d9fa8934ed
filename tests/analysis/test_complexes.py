from itertools import combinations

import gudhi
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.chains import spaces
from aatc.passes.analysis.chains.complexes import (
    ChainComplex,
    ComplexError,
    SimplicialComplex,
    circle,
    directed_flag_complex,
    dowker_complex,
    flag_complex,
    from_maximal_simplices,
    threshold_complex,
    torus_grid,
)
from aatc.passes.analysis.chains.homology import betti_numbers, homology


def random_graph(seed: int, n: int, density: float) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).random((n, n)) < density, 1)
    return upper | upper.T


graphs = st.builds(random_graph, st.integers(0, 10**6), st.integers(1, 12), st.floats(0.1, 0.9))
matrices = st.builds(
    lambda seed, n, m: np.random.default_rng(seed).random((n, m)),
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 9),
)


@given(graphs)
def test_flag_complex_has_the_cells_of_gudhis_expansion_in_lexicographic_order(adjacency):
    complex = flag_complex(adjacency, 3)
    tree = gudhi.SimplexTree()
    for v in range(len(adjacency)):
        tree.insert([v])
    for i, j in np.argwhere(np.triu(adjacency)):
        tree.insert([i, j])
    tree.expansion(3)
    for k in range(4):
        want = sorted(tuple(s) for s, _ in tree.get_simplices() if len(s) == k + 1)
        assert [tuple(s) for s in complex.simplices(k).tolist()] == want
        assert complex.simplices(k).shape == (len(want), k + 1)


@given(graphs)
def test_index_finds_every_cell_and_nothing_else(adjacency):
    complex = flag_complex(adjacency, 2)
    for k in range(3):
        cells = complex.simplices(k)
        assert (complex.index(cells) == np.arange(len(cells))).all()
        present = {tuple(c) for c in cells.tolist()}
        absent = [c for c in combinations(range(-1, len(adjacency) + 1), k + 1) if c not in present]
        assert not absent or (complex.index(absent) == -1).all()


@given(matrices, st.floats(0.0, 1.0))
def test_both_sides_of_a_dowker_complex_have_one_homology(matrix, threshold):
    rows, columns = (dowker_complex(matrix, threshold, 3, side) for side in ("rows", "columns"))
    one, two = ([str(g) for g in homology(c).value[:3]] for c in (rows, columns))
    padded = [(a + ["0"] * 3)[:3] for a in (one, two)]
    assert padded[0] == padded[1]


@given(graphs)
def test_faces_leave_out_one_vertex_each_also_after_the_boundary_was_made(adjacency):
    complex = flag_complex(adjacency, 2)
    signs = complex.boundary(2).toarray()
    for cell, faces in enumerate(complex.faces(2)):
        for i, face in enumerate(faces):
            assert complex.cells[1][face].tolist() == np.delete(complex.cells[2][cell], i).tolist()
            assert signs[face, cell] == (-1) ** i


def test_directed_flag_complex_keeps_directions():
    cycle = np.roll(np.eye(3, dtype=bool), 1, axis=1)
    assert betti_numbers(directed_flag_complex(cycle, 2)) == (1, 1)
    transitive = np.triu(np.ones((3, 3), bool), 1)
    assert directed_flag_complex(transitive, 2).counts == (3, 3, 1)
    both_ways = ~np.eye(2, dtype=bool)
    complex = directed_flag_complex(both_ways, 2)
    assert complex.cells[1].tolist() == [[0, 1], [1, 0]]
    assert betti_numbers(complex) == (1, 1)


@given(st.integers(0, 10**6), st.floats(0.05, 0.9))
def test_threshold_complex_joins_by_the_stated_rule(seed, threshold):
    a = np.random.default_rng(seed).random((7, 7))
    edges = {
        "max": [(i, j) for i, j in combinations(range(7), 2) if max(a[i, j], a[j, i]) >= threshold],
        "min": [(i, j) for i, j in combinations(range(7), 2) if min(a[i, j], a[j, i]) >= threshold],
        "directed": sorted((i, j) for i in range(7) for j in range(7) if i != j and a[i, j] >= threshold),
    }
    for rule, want in edges.items():
        found = threshold_complex(a, threshold, 1, rule).simplices(1)
        assert [tuple(e) for e in found.tolist()] == want


@pytest.mark.parametrize(
    "space,dimension",
    [
        (spaces.sphere(3), 3),
        (spaces.torus(), 2),
        (spaces.projective_plane(), 2),
        (spaces.klein_bottle(), 2),
        (spaces.oriented_surface(2), 2),
        (spaces.poincare_sphere(), 3),
        (spaces.complex_projective_plane(), 4),
        (spaces.triangulated_torus(3, 4, 3), 3),
    ],
)
def test_named_manifolds_have_spheres_for_links(space, dimension):
    sphere = ["Z", *["0"] * (dimension - 2), "Z"]
    for vertex in space.cells[0][:, 0]:
        link = space.link(int(vertex))
        assert [str(g) for g in homology(link).value] == sphere
        if dimension > 3:
            # A homology sphere of dimension 3 all of whose own links are spheres; one that collapses after the loss of
            # one simplex is the 3-sphere itself.
            assert collapses_without_a_facet(link)


def collapses_without_a_facet(complex: SimplicialComplex) -> bool:
    cells = {frozenset(map(int, s)) for c in complex.cells for s in c}
    cells.remove(frozenset(map(int, complex.cells[-1][0])))
    moved = True
    while moved:
        moved = False
        for face in sorted(cells, key=lambda s: (-len(s), sorted(s))):
            above = [c for c in cells if face < c]
            if len(above) == 1:
                cells -= {face, above[0]}
                moved = True
    return len(cells) == 1


def test_a_torus_grid_is_the_product_of_two_circles():
    grid = torus_grid(3, 4)
    assert grid.counts == (12, 24, 12)
    assert [str(g) for g in homology(grid).value] == ["Z", "Z^2", "Z"]
    assert not (grid.boundary(2) @ np.ones(12, int)).any()
    square = grid.boundary(2)[:, [0]].toarray()[:, 0]
    assert {int(i): int(square[i]) for i in np.flatnonzero(square)} == {0: -1, 4: 1, 12: 1, 13: -1}


@given(st.integers(1, 6), st.integers(1, 6))
def test_tensor_products_obey_kuenneth_with_torsion(s, t):
    # Degrees 1 and 2 of each factor, with H_1 = Z/s: the product has Z/s ⊗ Z/t in degree 2 and Tor(Z/s, Z/t) in 3.
    one, two = (ChainComplex([np.zeros((1, 1), int), [[order]]]) for order in (s, t))
    found = homology(one.tensor(two)).value
    shared = int(np.gcd(s, t))
    assert found[0].free_rank == 1 and found[1].torsion == tuple(x for x in (shared, s * t // shared) if x > 1)
    for degree in (2, 3):
        assert found[degree].torsion == ((shared,) if shared > 1 else ())
    assert sum(g.free_rank for g in found) == 1


def test_empty_degrees_keep_their_shapes():
    complex = from_maximal_simplices([])
    assert complex.dimension == -1 and complex.simplices(2).shape == (0, 3)
    assert complex.boundary(1).shape == (0, 0)
    points = SimplicialComplex([[[3], [1]], np.zeros((0, 2), int)])
    assert points.counts == (2,) and points.index([[1], [2], [3]]).tolist() == [0, -1, 1]
    assert circle(1).boundary(1).toarray().tolist() == [[0]]


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda: SimplicialComplex([[[0], [1]], [[0, 2]]]), "without its face"),
        (lambda: from_maximal_simplices([(0, 0)]), "vertex twice"),
        (lambda: SimplicialComplex([[[0.5]]]), "integers"),
        (lambda: flag_complex(np.array([[0, 1], [0, 0]]), 1), "symmetric"),
        (lambda: flag_complex(np.ones((9, 9)), 3, max_cells=50), "more than 50"),
        (lambda: threshold_complex([[np.nan]], 0.5, 1), "NaN"),
        (lambda: threshold_complex(np.eye(2), 0.5, 1, "sum"), "symmetrise"),
        (lambda: dowker_complex(np.eye(2), 0.5, 1, "left"), "rows"),
        (lambda: ChainComplex([[[1, 1]], [[1], [1]]]), "not zero"),
        (lambda: ChainComplex([[[0.5]]]), "not integers"),
        (lambda: ChainComplex([[[1]], [[0], [0]]]), "shape"),
        (lambda: circle(0), "at least one edge"),
        (lambda: spaces.polygon_quotient([1, 0]), "letters"),
        (lambda: spaces.triangulated_torus(2, 5), "at least 3"),
    ],
)
def test_bad_input_is_refused_by_name(make, words):
    with pytest.raises(ComplexError, match=words):
        make()


def test_boundaries_whose_product_leaves_the_machine_integers_are_multiplied_exactly():
    with pytest.raises(ComplexError, match="is not zero"):
        ChainComplex([[[2**32]], [[2**32]]])
    assert ChainComplex([[[2**32, 1]], [[2**31], [-(2**63)]]]).counts == (1, 2, 1)


def test_tensor_products_keep_entries_above_the_integers_of_floats():
    product = ChainComplex([[[2**60 + 1]]]).tensor(ChainComplex([[[2]]]))
    assert product.boundary(1).toarray().tolist() == [[2, 2**60 + 1]]
    assert product.boundary(2).toarray().tolist() == [[2**60 + 1], [-2]]


def test_nan_is_neither_a_threshold_nor_an_edge():
    with pytest.raises(ComplexError, match="NaN"):
        dowker_complex(np.eye(3), np.nan, 1)
    with pytest.raises(ComplexError, match="NaN"):
        threshold_complex(np.eye(3), np.nan, 1)
    with pytest.raises(ComplexError, match="NaN"):
        flag_complex(np.array([[0, np.nan], [np.nan, 0]]), 1)


def test_a_simplex_with_too_many_faces_is_refused_before_they_are_written_down():
    with pytest.raises(ComplexError, match="faces of one degree"):
        dowker_complex(np.ones((3, 1000)), 0.5, 3)
    with pytest.raises(ComplexError, match="faces of one degree"):
        from_maximal_simplices([range(60)])
