"""Shortest paths against enumeration, classes of paths modulo π₁, and the path object of chains."""

import dataclasses
import itertools

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.chains.complexes import SimplicialComplex
from aatc.passes.analysis.chains.graded_complexes import cone
from aatc.passes.analysis.chains.spaces import klein_bottle, poincare_sphere, projective_plane, simplex, sphere, torus
from aatc.passes.analysis.homotopy.fundamental_group import fundamental_group
from aatc.passes.analysis.homotopy.path_space import (
    AttentionPath,
    PathSpace,
    UnreachableError,
    cocylinder,
    likeliest_path,
)
from aatc.passes.analysis.homotopy.presentation import inverse, reduced
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost, Undecided, verify


def random_pattern(n: int, seed: int) -> np.ndarray:
    a = np.random.default_rng(seed).random((n, n)) ** 3
    return a / a.sum(1, keepdims=True)


def ring(n: int, weight: float = 0.25) -> np.ndarray:
    a = np.zeros((n, n))
    i = np.arange(n)
    a[i, (i + 1) % n] = a[(i + 1) % n, i] = weight
    a[i, i] = 1 - 2 * weight
    return a


def space_of(complex: SimplicialComplex, start: int, end: int, reference) -> PathSpace:
    return PathSpace(start, end, tuple(reference), fundamental_group(complex, start), np.zeros((0, 0)))


# --- shortest paths ----------------------------------------------------------------------------------------
@given(st.integers(2, 6), st.integers(0, 999))
def test_the_most_probable_path_is_the_best_of_all_simple_paths(n, seed):
    a = random_pattern(n, seed)
    paths = AttentionPath(a, 0.02)
    best = 0.0
    for k in range(n - 1):
        for inner in itertools.permutations(range(1, n - 1), k):
            steps = list(itertools.pairwise((0, *inner, n - 1)))
            if all(a[i, j] >= 0.02 for i, j in steps):
                best = max(best, float(np.prod([a[i, j] for i, j in steps])))
    if not best:
        with pytest.raises(UnreachableError):
            paths.compute_path(0, n - 1)
        return
    found = paths.compute_path(0, n - 1)
    np.testing.assert_allclose(found.value.probability, best, rtol=1e-12)
    product = np.prod([a[i, j] for i, j in itertools.pairwise(found.value.vertices)])
    np.testing.assert_allclose(product, best, rtol=1e-12)
    assert found.verify() <= found.tolerance


def test_planted_detours_and_lengths_are_caught():
    found = AttentionPath(random_pattern(8, 1), 1e-3).compute_path(0, 5)
    assert verify(dataclasses.replace(found.witness, length=found.value.length - 0.1)) > found.tolerance
    other = next(v for v in range(8) if v not in found.value.vertices)
    detour = (0, other, *found.value.vertices[1:])
    assert verify(dataclasses.replace(found.witness, path=detour)) > found.tolerance
    raised = found.witness.potentials + 0.1
    assert verify(dataclasses.replace(found.witness, potentials=raised)) > found.tolerance


def test_ties_are_reported_and_certain_steps_have_length_zero():
    tied = AttentionPath(ring(4), 0.1).compute_path(0, 2).value
    assert not tied.unique and tied.probability == pytest.approx(1 / 16)
    assert AttentionPath(ring(5), 0.1).compute_path(0, 2).value.unique
    certain = AttentionPath(np.roll(np.eye(4), 1, axis=1), 0.5).compute_path(1, 0).value
    assert certain.vertices == (1, 2, 3, 0) and certain.length == 0 and certain.probability == 1
    stay = AttentionPath(ring(5), 0.1).compute_path(3, 3).value
    assert stay.vertices == (3,) and stay.length == 0 and stay.unique


def test_paths_follow_the_arrows_and_classes_forget_them():
    a = np.tril(np.full((4, 4), 0.25))
    paths = AttentionPath(a, 0.1)
    assert paths.compute_path(3, 0).value.vertices == (3, 0)
    with pytest.raises(UnreachableError, match="directed path") as refused:
        paths.compute_path(0, 3)
    assert refused.value.reached == (0,)
    assert paths.path_space(0, 3).class_count() == 1
    with pytest.raises(UnreachableError, match="edge path") as refused:
        AttentionPath(np.eye(3), 0.5).path_space(0, 2)
    assert refused.value.reached == (0,)


# --- classes -----------------------------------------------------------------------------------------------
def test_the_two_ways_round_a_ring_are_different_classes():
    space = AttentionPath(ring(6), 0.1).path_space(0, 3)
    one, two = (0, 1, 2, 3), (0, 5, 4, 3)
    assert space.class_count() == float("inf")
    assert space.same_class(one, two) is False
    assert space.same_class(one, (0, 1, 0, 1, 2, 3)) is True
    assert len(reduced((*space.word(one), *inverse(space.word(two))))) == 1
    assert space.word(space.reference) == ()


def test_paths_in_a_filled_pattern_are_all_homotopic():
    space = AttentionPath(np.full((5, 5), 0.2), 0.1).path_space(0, 3)
    assert space.class_count() == 1
    assert space.same_class((0, 3), (0, 4, 1, 2, 3)) is True


def loop_edges(complex: SimplicialComplex, length: int, start: int) -> list[tuple[int, ...]]:
    edges = {tuple(e) for e in complex.simplices(1).tolist()}
    edges |= {(b, a) for a, b in edges}
    walks = [(start,)]
    for _ in range(length):
        walks = [(*w, b) for w in walks for a, b in edges if a == w[-1]]
    return [w for w in walks if w[-1] == start]


def test_a_projective_plane_has_two_classes_of_loops_and_doubling_a_loop_kills_it():
    space = space_of(projective_plane(), 0, 0, (0,))
    assert space.class_count() == 2
    loops = loop_edges(projective_plane(), 3, 0)
    classes = {space.same_class(w, (0,)) for w in loops}
    assert classes == {True, False}
    for w in loops:
        assert space.same_class(w + w[1:], (0,)) is True


def test_every_triangle_of_a_complex_is_a_trivial_detour():
    for complex in (torus(), klein_bottle(), poincare_sphere()):
        a, b, c = complex.simplices(2)[0].tolist()
        space = space_of(complex, a, b, (a, b))
        assert space.same_class((a, b), (a, c, b)) is True


def test_a_commutator_of_the_klein_bottle_that_homology_misses_is_undecided():
    complex = klein_bottle()
    base = int(complex.simplices(0)[0, 0])
    space = space_of(complex, base, base, (base,))
    edges = complex.simplices(1)
    word = {e: w for e, w in space.group.edge_words.items() if w}
    tree = {v: p for v in complex.simplices(0)[:, 0].tolist() if (p := _from_tree(space, v))}
    generators = []
    for e in word:
        a, b = edges[e].tolist()
        generators.append((*tree[a], *reversed(tree[b])))
    answers = set()
    for one, two in itertools.combinations(generators[:6], 2):
        back_one, back_two = tuple(reversed(one)), tuple(reversed(two))
        commutator = one + two[1:] + back_one[1:] + back_two[1:]
        answers.add(type(space.same_class(commutator, (base,))))
    assert Undecided in answers


def _from_tree(space: PathSpace, vertex: int) -> tuple[int, ...]:
    from aatc.passes.analysis.homotopy.path_space import _tree_path

    count = int(space.group.complex.simplices(0).max()) + 1
    return _tree_path(space.group, count, space.start, vertex)


def test_what_is_no_path_of_the_space_is_refused():
    space = AttentionPath(ring(6), 0.1).path_space(0, 3)
    for path in ((), (0, 1), (0, 3), (1, 2, 3)):
        with pytest.raises(AnalysisError):
            space.word(path)
    for token in (6, -1, 1.5, "a"):
        with pytest.raises(AnalysisError, match="no token"):
            AttentionPath(ring(6), 0.1).path_space(0, token)
    for pattern, threshold in ((np.ones((2, 3)), 0.1), (np.full((2, 2), 1.5), 0.1), (np.full((2, 2), np.nan), 0.1),
                               (ring(4), 0.0)):  # fmt: skip
        with pytest.raises(AnalysisError):
            AttentionPath(pattern, threshold)
    with pytest.raises(BudgetError):
        AttentionPath(ring(6), 0.1, Cost(1e-9)).path_space(0, 3)


# --- the path object ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "space", [simplex(0), sphere(1), torus(), projective_plane()], ids=["point", "S¹", "T²", "RP²"]
)
def test_evaluation_is_an_acyclic_fibration_and_the_constant_paths_a_section(space):
    found = cocylinder(space)
    paths = found.value
    assert found.verify() == 0
    assert cone(paths.start).is_acyclic and cone(paths.end).is_acyclic
    for k in paths.start.target.degrees:
        ends = np.vstack([paths.start.matrix(k).toarray(), paths.end.matrix(k).toarray()])
        assert np.linalg.matrix_rank(ends) == len(ends)
    assert str(paths.complex.homology(-1)) == "0"


def test_planted_homotopies_and_sections_of_the_path_object_are_caught():
    witness = cocylinder(sphere(1)).witness
    assert verify(dataclasses.replace(witness, homotopy={k: h * 0 for k, h in witness.homotopy.items()})) > 0
    assert verify(dataclasses.replace(witness, section={k: 2 * s for k, s in witness.section.items()})) > 0


def test_the_path_space_of_a_pattern_has_the_path_object_of_its_chains():
    found = AttentionPath(ring(6), 0.1).path_space(0, 3).cocylinder
    assert found.verify() == 0
    assert [found.value.complex.dim(k) for k in (-1, 0, 1)] == [6, 18, 12]


@given(st.integers(2, 9), st.integers(0, 10**6), st.floats(0.2, 1.0))
def test_likeliest_paths_are_those_of_networkx_and_unreachable_tokens_are_refused(n, seed, density):
    rng = np.random.default_rng(seed)
    pattern = np.where(rng.uniform(size=(n, n)) < density, rng.uniform(0.01, 1, (n, n)), 0.0)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n))
    graph.add_weighted_edges_from((i, j, -np.log(pattern[i, j])) for i, j in np.argwhere(pattern > 0) if i != j)
    if not nx.has_path(graph, n - 1, 0):
        with pytest.raises(UnreachableError):
            likeliest_path(pattern, n - 1, 0)
        return
    found = likeliest_path(pattern, n - 1, 0)
    assert found.value == tuple(nx.dijkstra_path(graph, n - 1, 0))
    assert found.witness.length == pytest.approx(nx.dijkstra_path_length(graph, n - 1, 0))
    assert found.verify() <= found.tolerance
