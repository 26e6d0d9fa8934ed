import dataclasses
import itertools
import time

import networkx as nx
import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.arithmetic.motivic import (
    InterferenceError,
    _eliminated,
    _from_roots,
    _live_counts,
    _perfect_elimination,
    estimate_cost,
    interference_graph,
    legal_assignments,
    motivic_class,
)
from aatc.passes.analysis.arithmetic.verify_graphs import ChromaticWitness
from aatc.passes.analysis.result import AnalysisError, Undecided, verify

ranges = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=7).map(
    lambda pairs: [(start, start + length) for start, length in pairs]
)


def random_graph(n, seed, density):
    return nx.gnp_random_graph(n, density, seed=seed)


def points_over_a_field(graph, q):
    """Points of F_q^n off every hyperplane x_i = x_j, one by one."""
    return sum(
        all(x[v] != x[w] for v, w in graph.edges) for x in itertools.product(range(q), repeat=graph.number_of_nodes())
    )


@given(st.integers(1, 6), st.integers(0, 10**6), st.floats(0, 1))
def test_points_over_small_fields(n, seed, density):
    graph = random_graph(n, seed, density)
    result = motivic_class(graph)
    for q in (2, 3, 4):
        assert result.value.points(q) == points_over_a_field(graph, q)
    assert result.verify() == 0
    assert motivic_class(nx.to_numpy_array(graph)).value == result.value


@pytest.mark.parametrize("q", range(6))
def test_pentagon(q):
    assert motivic_class(nx.cycle_graph(5)).value.points(q) == (q - 1) ** 5 - (q - 1)


def test_known_polynomials():
    # Biggs, Algebraic Graph Theory: the Petersen graph has 120 colourings with three colours and 12960 with four.
    petersen = motivic_class(nx.petersen_graph()).value
    assert (petersen.points(3), petersen.points(4), petersen.chromatic_number) == (120, 12960, 3)
    assert motivic_class(nx.path_graph(4)).value.coefficients == (0, -1, 3, -3, 1)
    assert motivic_class(nx.complete_graph(4)).value.coefficients == (0, -6, 11, -6, 1)
    assert motivic_class(nx.complete_graph(4)).value.betti_numbers == (1, 6, 11, 6, 0)
    assert motivic_class(nx.empty_graph(3)).value.coefficients == (0, 0, 0, 1)


@pytest.mark.parametrize("graph", [nx.cycle_graph(4), nx.wheel_graph(5), nx.complete_bipartite_graph(2, 3)])
def test_polynomial_agrees_with_networkx(graph):
    expected = sympy.Poly(nx.chromatic_polynomial(graph)).all_coeffs()
    assert motivic_class(graph).value.coefficients == tuple(int(c) for c in reversed(expected))


@given(st.integers(2, 8), st.integers(0, 10**6))
def test_acyclic_orientations_are_the_value_at_minus_one(n, seed):
    graph = random_graph(n, seed, 0.4)
    edges = list(graph.edges)[:10]
    graph = nx.Graph(edges)
    graph.add_nodes_from(range(n))
    acyclic = 0
    for flips in itertools.product([False, True], repeat=len(edges)):
        directed = nx.DiGraph([(w, v) if flip else (v, w) for (v, w), flip in zip(edges, flips)])
        acyclic += nx.is_directed_acyclic_graph(directed)
    assert (-1) ** n * motivic_class(graph).value.points(-1) == acyclic


@given(ranges, st.integers(0, 4))
def test_live_ranges_interfere_when_they_overlap_and_share_buffers_otherwise(intervals, buffers):
    graph = interference_graph(intervals)
    live = [set(range(start, end)) for start, end in intervals]
    expected = {(i, j) for i, j in itertools.combinations(range(len(live)), 2) if live[i] & live[j]}
    assert {tuple(sorted(e)) for e in graph.edges} == expected
    value = motivic_class(graph).value
    legal = legal_assignments(intervals, buffers)
    assert value.points(buffers) == legal
    if buffers <= 3:
        assert legal == points_over_a_field(graph, buffers)
    most = max((sum(t in moments for moments in live) for t in range(20)), default=0)
    assert value.chromatic_number == max(most, 1)


def test_many_live_ranges_factor_along_an_elimination_order():
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 400, size=150)
    intervals = [(int(s), int(s + length)) for s, length in zip(starts, rng.integers(1, 12, size=150))]
    result = motivic_class(interference_graph(intervals))
    least = result.value.chromatic_number
    assert legal_assignments(intervals, least) == result.value.points(least) > 0
    assert legal_assignments(intervals, least - 1) == 0
    assert result.verify() == 0


def test_search_that_is_bounded_out_is_undecided():
    found = motivic_class(random_graph(30, 1, 0.3), graphs=50)
    assert isinstance(found, Undecided) and found.bound == "50 graphs"
    with pytest.raises(AnalysisError):
        bool(found)


@pytest.mark.parametrize("place", [0, 1, 3, 5])
def test_a_wrong_coefficient_or_order_is_caught(place):
    good = motivic_class(nx.cycle_graph(5)).witness
    wrong = list(good.coefficients)
    wrong[place] += 1
    assert verify(ChromaticWitness(5, good.edges, tuple(wrong), ())) == np.inf
    path = motivic_class(nx.path_graph(4)).witness
    assert verify(ChromaticWitness(4, path.edges, path.coefficients, path.elimination)) == 0
    assert verify(ChromaticWitness(4, path.edges, path.coefficients, (1, 0, 2, 3))) == np.inf
    assert verify(ChromaticWitness(4, path.edges, path.coefficients, (0, 0, 2, 3))) == np.inf


def test_what_is_no_interference_is_refused():
    for bad in (nx.DiGraph([(0, 1)]), nx.Graph([(0, 0)]), np.ones((2, 3)), np.eye(2), np.array([[0, 1], [0, 0]])):
        with pytest.raises(InterferenceError):
            motivic_class(bad)
    with pytest.raises(InterferenceError):
        interference_graph([(3, 1)])
    with pytest.raises(InterferenceError):
        legal_assignments([(0, 1)], -1)


def test_parallel_edges_of_a_multigraph_count_once():
    found = motivic_class(nx.MultiGraph([(0, 1), (0, 1), (1, 2)]))
    assert found.value == motivic_class(nx.path_graph(3)).value and found.verify() == 0
    with pytest.raises(InterferenceError):
        motivic_class(nx.MultiGraph([(0, 0)]))


def test_nan_is_no_interference():
    with pytest.raises(InterferenceError):
        motivic_class(np.array([[0, np.nan], [np.nan, 0]]))


def test_graphs_nested_too_deeply_are_undecided():
    found = motivic_class(nx.grid_2d_graph(25, 25))
    assert isinstance(found, Undecided) and found.bound == "300 nested graphs"


@pytest.mark.parametrize("interval", [(0.5, 1.7), (float("nan"), 1), (0, float("inf"))])
def test_live_ranges_are_integers(interval):
    for count in (interference_graph, lambda ranges: legal_assignments(ranges, 2)):
        with pytest.raises(InterferenceError, match="integers"):
            count([interval])


def neighbours(graph):
    return {v: frozenset(graph[v]) for v in graph.nodes}


def is_clique(graph, vertices):
    return all(graph.has_edge(v, w) for v, w in itertools.combinations(vertices, 2))


@given(st.lists(st.integers(0, 9), max_size=12))
def test_products_of_linear_factors(roots):
    coefficients = _from_roots(roots)
    assert len(coefficients) == len(roots) + 1
    for q in range(-2, 12):
        assert sum(c * q**k for k, c in enumerate(coefficients)) == np.prod([q - c for c in roots], dtype=object)


@given(st.integers(1, 9), st.integers(0, 10**6), st.floats(0, 1))
def test_elimination_goes_as_far_as_there_are_simplicial_vertices(n, seed, density):
    graph = random_graph(n, seed, density)
    order, degrees, rest = _eliminated(neighbours(graph))
    left = graph.copy()
    for v, degree in zip(order, degrees, strict=True):
        assert left.degree(v) == degree and is_clique(left, left[v])
        left.remove_node(v)
    assert rest == neighbours(left) and not any(is_clique(left, left[v]) for v in left)
    perfect = _perfect_elimination(neighbours(graph))
    chordal = nx.is_chordal(graph)
    assert (perfect is not None) == chordal == (not rest)
    assert not chordal or sorted(perfect[1]) == sorted(degrees)


@given(ranges)
def test_live_counts_are_the_degrees_of_an_elimination(intervals):
    _, degrees = _perfect_elimination(neighbours(interference_graph(intervals)))
    assert sorted(_live_counts(intervals)) == sorted(degrees)


def test_live_ranges_of_a_deep_network_take_no_longer_than_two_seconds():
    blocks = [[(8 * i, 8 * i + 8), *((8 * i + j, 8 * i + j + 1) for j in range(1, 8))] for i in range(250)]
    intervals = [r for block in blocks for r in block]
    start = time.process_time()
    result = motivic_class(interference_graph(intervals))
    assert time.process_time() - start < 2 and result.verify() == 0
    assert result.value.chromatic_number == 2
    assert result.value.points(5) == legal_assignments(intervals, 5)
    assert estimate_cost(intervals).seconds < 2
    assert estimate_cost(intervals * 2).seconds > 2 * estimate_cost(intervals).seconds


@pytest.mark.parametrize("place", [3, 20, 58])
def test_a_wrong_coefficient_of_many_ranges_is_caught(place):
    rng = np.random.default_rng(place)
    starts = rng.integers(0, 100, size=60)
    good = motivic_class(interference_graph(zip(starts, starts + rng.integers(1, 9, size=60), strict=True))).witness
    assert verify(good) == 0
    wrong = list(good.coefficients)
    wrong[place] += 1
    assert verify(dataclasses.replace(good, coefficients=tuple(wrong))) == np.inf
    assert verify(dataclasses.replace(good, elimination=(*good.elimination[1:], good.elimination[1]))) == np.inf
