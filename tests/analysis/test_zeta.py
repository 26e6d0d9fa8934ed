import time
from dataclasses import replace
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.arithmetic import zeta
from aatc.passes.analysis.arithmetic.verify_graphs import CyclesWitness, IharaWitness
from aatc.passes.analysis.arithmetic.zeta import (
    GraphError,
    artin_ihara_polynomial,
    characteristic_polynomial,
    directed_zeta_polynomial,
    edge_list,
    hashimoto_matrix,
    ihara_polynomial,
    unitary_l_inverse,
)
from aatc.passes.analysis.result import BudgetError, Cost, Result, verify

seeds = st.integers(0, 10**6)


def adjacency(graph):
    return nx.to_numpy_array(graph, dtype=np.int64, weight=None)


def random_graph(n, seed, density=0.5):
    upper = np.triu(np.random.default_rng(seed).random((n, n)) < density, 1).astype(np.int64)
    return upper + upper.T


def expanded(expression):
    u = sympy.Symbol("u")
    return tuple(int(c) for c in reversed(sympy.Poly(sympy.sympify(expression, {"u": u}), u).all_coeffs()))


def reversed_characteristic(matrix):
    u = sympy.Symbol("u")
    coefficients = sympy.Matrix(matrix.tolist()).charpoly(u).all_coeffs()
    found = [int(c) for c in coefficients]
    while len(found) > 1 and found[-1] == 0:
        found.pop()
    return tuple(found)


def test_petersen_graph_factors_as_published():
    result = ihara_polynomial(adjacency(nx.petersen_graph()))
    published = "(1 - u**2)**5 * (1 - 3*u + 2*u**2) * (1 - u + 2*u**2)**5 * (1 + 2*u + 2*u**2)**4"
    assert result.value.coefficients == expanded(published) and result.verify() == 0


@pytest.mark.parametrize("n", [3, 4, 7])
def test_cycle_has_two_primes(n):
    value = ihara_polynomial(adjacency(nx.cycle_graph(n))).value
    assert value.coefficients == expanded(f"(1 - u**{n})**2")
    assert value.primes(2 * n) == tuple(2 if m == n else 0 for m in range(1, 2 * n + 1))


def test_trees_have_no_primes():
    for graph in (
        nx.path_graph(5),
        nx.star_graph(4),
        nx.empty_graph(3),
        nx.disjoint_union(nx.path_graph(3), nx.path_graph(2)),
    ):
        result = ihara_polynomial(adjacency(graph))
        assert result.value.coefficients == (1,) and result.verify() == 0
        assert not any(result.value.closed_walks(6))


@given(st.integers(2, 7), seeds, st.floats(0.2, 1))
def test_bass_equals_hashimoto(n, seed, density):
    graph = random_graph(n, seed, density)
    result = ihara_polynomial(graph)
    edges = hashimoto_matrix(graph)
    assert result.verify() == 0
    walks, power = result.value.closed_walks(8), np.eye(len(edges), dtype=np.int64)
    for count in walks:
        power = power @ edges
        assert count == np.trace(power)
    if len(edges) <= 16:
        assert result.value.coefficients == (reversed_characteristic(edges) if len(edges) else (1,))


def test_multiple_edges_count_apart():
    double = np.array([[0, 2], [2, 0]])
    assert ihara_polynomial(double).value.coefficients == expanded("(1 - u**2)**2")
    assert ihara_polynomial(double).verify() == 0


def prime_cycles(graph, length):
    """Classes of closed walks without backtracking or tail that are no powers, found one by one."""
    steps = hashimoto_matrix(graph)
    walks = [[e] for e in range(len(steps))]
    for _ in range(length - 1):
        walks = [[*w, int(f)] for w in walks for f in np.flatnonzero(steps[w[-1]])]
    closed = [tuple(w) for w in walks if steps[w[-1], w[0]]]
    turns = {w: [w[i:] + w[:i] for i in range(length)] for w in closed}
    return len({min(t) for w, t in turns.items() if len(set(t)) == length})


@pytest.mark.parametrize("graph", [nx.complete_graph(4), nx.petersen_graph(), nx.lollipop_graph(4, 2)])
def test_primes_are_those_found_by_enumeration(graph):
    table = adjacency(graph)
    assert ihara_polynomial(table).value.primes(7) == tuple(prime_cycles(table, m) for m in range(1, 8))


def counted(graph, length):
    zeta = ihara_polynomial(graph)
    return Result(zeta.value.primes(length), "P0", witness=CyclesWitness(zeta.witness, length))


@given(st.integers(2, 7), seeds, st.floats(0.2, 1), st.integers(0, 20))
def test_no_number_of_cycles_is_accepted_but_the_right_ones(n, seed, density, length):
    graph = random_graph(n, seed, density) * np.random.default_rng(seed).integers(1, 3)
    cycles = counted(graph, length)
    assert cycles.verify() == 0
    power, steps, walks = np.eye(graph.sum(), dtype=object), hashimoto_matrix(graph).astype(object), [0]
    for _ in range(length if len(steps) else 0):
        power = power @ steps
        walks.append(int(np.trace(power)))
    for m in range(1, len(walks)):  # by the edges alone
        assert walks[m] == sum(d * cycles.value[d - 1] for d in range(1, m + 1) if m % d == 0)
    for m in range(length):
        for off in (1, -1, 0.0):
            wrong = (*cycles.value[:m], cycles.value[m] + off, *cycles.value[m + 1 :])
            assert replace(cycles, value=wrong).verify() > 0
        assert replace(cycles, value=cycles.value[:m]).verify() > 0
    assert replace(cycles, value=(*cycles.value, 0)).verify() > 0


def test_cycles_of_a_dense_graph_are_checked_as_fast_as_they_are_made():
    table = random_graph(64, 0, 0.99)
    before = time.process_time()
    cycles = counted(table, 60)
    made = time.process_time() - before
    assert cycles.verify() == 0 and max(cycles.value).bit_length() > 300
    assert time.process_time() - before < 10 * made + 1  # products of Python integers took a quarter of an hour


def test_cycles_of_signed_edges_are_not_counted():
    zeta = artin_ihara_polynomial(3, [[0, 1], [1, 2], [0, 2]], np.array([1, 1, -1]))
    assert verify(CyclesWitness(zeta.witness, 3)) > 0


def test_cube_is_the_signed_double_cover_of_the_tetrahedron():
    tetrahedron, cube = adjacency(nx.complete_graph(4)), adjacency(nx.hypercube_graph(3))
    edges = edge_list(tetrahedron)
    sign = artin_ihara_polynomial(4, edges, -np.ones(len(edges), dtype=np.int64))
    assert sign.verify() == 0
    product = np.polymul(ihara_polynomial(tetrahedron).value.coefficients, sign.value.coefficients)
    assert ihara_polynomial(cube).value.coefficients == tuple(product)


@given(st.integers(3, 5), st.integers(2, 3), seeds)
def test_permutation_voltages_give_the_zeta_function_of_the_cover(n, sheets, seed):
    rng = np.random.default_rng(seed)
    edges = edge_list(random_graph(n, seed, 0.7))
    moves = [rng.permutation(sheets) for _ in edges]
    cover = np.zeros((n * sheets, n * sheets), dtype=np.int64)
    for (i, j), move in zip(edges, moves):
        for sheet, target in enumerate(move):
            cover[i * sheets + sheet, j * sheets + target] += 1
            cover[j * sheets + target, i * sheets + sheet] += 1
    matrices = np.array([np.eye(sheets, dtype=np.int64)[m] for m in moves]).reshape(-1, sheets, sheets)
    result = artin_ihara_polynomial(n, edges, matrices)
    assert result.value.coefficients == ihara_polynomial(cover).value.coefficients
    assert result.verify() == 0


@given(seeds, st.integers(2, 5))
def test_characters_of_a_cyclic_cover_multiply_to_its_zeta_function(seed, order):
    edges = edge_list(random_graph(4, seed, 0.8))
    shifts = np.random.default_rng(seed).integers(order, size=len(edges))
    matrices = np.array([np.roll(np.eye(order, dtype=np.int64), s, axis=1) for s in shifts]).reshape(-1, order, order)
    u = 0.31 + 0.2j
    product = 1
    for k in range(order):
        product *= unitary_l_inverse(4, edges, np.exp(2j * np.pi * k * shifts / order), u)
    assert product == pytest.approx(artin_ihara_polynomial(4, edges, matrices).value(u), rel=1e-9)


@given(seeds)
def test_unitary_value_is_that_of_directed_edges_and_ignores_the_gauge(seed):
    rng = np.random.default_rng(seed)
    edges = edge_list(random_graph(5, seed, 0.6))
    unitary = np.linalg.qr(rng.normal(size=(len(edges), 2, 2)) + 1j * rng.normal(size=(len(edges), 2, 2)))[0]
    k, u = len(edges), 0.3 - 0.1j
    both = np.concatenate([edges, edges[:, ::-1]])
    carried = np.concatenate([unitary, unitary.conj().transpose(0, 2, 1)])
    table = np.eye(4 * k, dtype=complex)
    for e in range(2 * k):
        for f in range(2 * k):
            if both[e, 1] == both[f, 0] and f != (e + k) % (2 * k):
                table[2 * e : 2 * e + 2, 2 * f : 2 * f + 2] -= u * carried[e]
    value = unitary_l_inverse(5, edges, unitary, u)
    assert value == pytest.approx(np.linalg.det(table), rel=1e-9)
    frames = np.linalg.qr(rng.normal(size=(5, 2, 2)) + 1j * rng.normal(size=(5, 2, 2)))[0]
    moved = frames[edges[:, 0]] @ unitary @ frames[edges[:, 1]].conj().transpose(0, 2, 1)
    assert unitary_l_inverse(5, edges, moved, u) == pytest.approx(value, rel=1e-9)


@given(st.integers(1, 5), seeds)
def test_directed_zeta_function_counts_closed_walks(n, seed):
    table = np.random.default_rng(seed).integers(0, 3, size=(n, n))
    value = directed_zeta_polynomial(table).value
    walks = value.closed_walks(6)
    assert walks == tuple(int(np.trace(np.linalg.matrix_power(table, m))) for m in range(1, 7))
    u = Fraction(1, 7)
    assert value(u) == sympy.Rational(1) * (sympy.eye(n) - sympy.Rational(1, 7) * sympy.Matrix(table.tolist())).det()


@given(st.integers(1, 6), seeds)
def test_characteristic_polynomial_without_flint_is_the_same(n, seed):
    table = np.random.default_rng(seed).integers(-5, 6, size=(n, n))
    with_flint = characteristic_polynomial(table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zeta, "flint", None)
        assert characteristic_polynomial(table) == with_flint


@pytest.mark.slow
def test_ihara_polynomial_of_200_vertices_is_exact():
    pytest.importorskip("flint")
    graph = random_graph(200, 0)
    result = ihara_polynomial(graph)
    assert result.verify() == 0
    assert result.value.closed_walks(3)[2] == int(np.trace(np.linalg.matrix_power(graph, 3)))


@pytest.mark.parametrize("place", [0, 1, 5, -1])
def test_a_wrong_coefficient_is_caught(place):
    for graph in (nx.petersen_graph(), nx.complete_graph(20)):
        good = ihara_polynomial(adjacency(graph)).witness
        wrong = list(good.determinant)
        wrong[place] += 1
        assert verify(IharaWitness(good.n, good.edges, good.transports, good.exponent, tuple(wrong))) == np.inf
        assert verify(IharaWitness(good.n, good.edges, good.transports, good.exponent + 1, good.determinant)) == np.inf


@pytest.mark.parametrize(
    "bad",
    [[[0, 1], [0, 0]], [[1, 0], [0, 0]], [[0, -1], [-1, 0]], [[0, 0.5], [0.5, 0]], [0, 1], [[0, 1, 0], [1, 0, 0]]],
)
def test_what_is_no_undirected_graph_is_refused(bad):
    with pytest.raises(GraphError):
        ihara_polynomial(np.array(bad))


def test_other_refusals_are_typed():
    triangle = [[0, 1], [1, 2], [0, 2]]
    with pytest.raises(GraphError):
        artin_ihara_polynomial(3, triangle, [1, 1])
    with pytest.raises(GraphError):
        artin_ihara_polynomial(3, triangle, [1, 2, 1])
    with pytest.raises(GraphError):
        artin_ihara_polynomial(3, triangle, [1.0, 1.0, 1.0])
    with pytest.raises(GraphError):
        artin_ihara_polynomial(2, triangle, [1, 1, 1])
    with pytest.raises(GraphError):
        unitary_l_inverse(3, triangle, [1, 1, 1.1], 0.2)
    with pytest.raises(BudgetError):
        ihara_polynomial(random_graph(100, 0), budget=Cost(seconds=1e-3))


@pytest.mark.parametrize("u", [1, -1, Fraction(1), 1.0, 2, Fraction(3, 7)])
def test_the_zeta_function_of_a_forest_is_one_everywhere(u):
    forest = adjacency(nx.disjoint_union(nx.path_graph(4), nx.star_graph(3)))
    found = ihara_polynomial(forest).value
    assert found.exponent == -2 and found(u) == 1


def test_a_removable_singularity_of_basss_formula_is_refused():
    with pytest.raises(GraphError, match="singularity"):
        unitary_l_inverse(2, [[0, 1]], [1.0], 1.0)
    assert unitary_l_inverse(2, [[0, 1]], [1.0], 0.999) == pytest.approx(1)


@pytest.mark.parametrize("edges", [[[0.5, 1]], [0, 1, 0], [[0, 1, 1]]])
def test_edges_that_are_no_pairs_of_integers_are_refused(edges):
    with pytest.raises(GraphError, match="edges are integers"):
        artin_ihara_polynomial(2, edges, [1])


def test_fractions_have_no_characteristic_polynomial_of_integers():
    with pytest.raises(GraphError, match="other entries"):
        characteristic_polynomial(np.array([[Fraction(1, 2)]], dtype=object))
