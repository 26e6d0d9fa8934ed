"""Simplicial sets: identities, normal forms, nerves, Kan's condition, and the simplicial sets of attention patterns."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.chains.complexes import directed_flag_complex
from aatc.passes.analysis.chains.homology import homology
from aatc.passes.analysis.chains.spaces import sphere
from aatc.passes.analysis.homotopy.simplicial_attention import SimplicialAttention, path_category, preorder_category
from aatc.passes.analysis.homotopy.simplicial_sets import (
    Category,
    Simplex,
    SimplicialSet,
    kan_condition,
    nerve,
    of_complex,
    of_levels,
)
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost, Undecided, verify


def cyclic(order: int) -> Category:
    return Category.of_group([[(a + b) % order for b in range(order)] for a in range(order)])


def pair_groupoid(size: int) -> Category:
    return Category.of_poset(range(size), lambda x, y: True)


def groups(source):
    found = [(g.free_rank, g.torsion) for g in homology(source).value]
    while found and found[-1] == (0, ()):
        found.pop()
    return found


@st.composite
def posets(draw, size=5):
    n = draw(st.integers(1, size))
    relation = np.triu(np.array(draw(st.lists(st.booleans(), min_size=n * n, max_size=n * n))).reshape(n, n), 1)
    return preorder_category(relation)


@st.composite
def relations(draw, size=4):
    n = draw(st.integers(1, size))
    return np.array(draw(st.lists(st.booleans(), min_size=n * n, max_size=n * n))).reshape(n, n)


@st.composite
def simplicial_sets(draw):
    kind = draw(st.sampled_from(["flag", "preorder", "poset", "group", "glued"]))
    if kind == "flag":
        return of_complex(directed_flag_complex(draw(relations()), 3))
    if kind == "preorder":
        return nerve(preorder_category(draw(relations(3))), 3)
    if kind == "poset":
        return nerve(draw(posets()), 4)
    if kind == "group":
        return nerve(cyclic(draw(st.integers(1, 3))), 3)
    # a sphere Δⁿ/∂Δⁿ: all faces are degeneracies of the one vertex
    n = draw(st.integers(1, 4))
    return SimplicialSet(["*"], {"cell": [Simplex((0,) * n, "*")] * (n + 1)})


@given(simplicial_sets(), st.data())
def test_every_simplicial_identity_holds(x, data):
    top = x.skeleton if x.skeleton is not None else x.dimension + 2
    n = data.draw(st.integers(0, top))
    choices = list(itertools.islice(x.simplices(n), 400))
    z = data.draw(st.sampled_from(choices))
    d, s = x.face, x.degeneracy
    for i, j in itertools.product(range(n + 1), repeat=2):
        if i < j and n > 1:
            assert d(d(z, j), i) == d(d(z, i), j - 1)
        if i <= j:
            assert s(s(z, j), i) == s(s(z, i), j + 1)
        if i < j:
            assert d(s(z, j), i) == s(d(z, i), j - 1)
        assert d(s(z, j), j) == d(s(z, j), j + 1) == z
        if i > j + 1 and n > 0:
            assert d(s(z, j), i) == s(d(z, i - 1), j)


@given(simplicial_sets(), st.data())
def test_a_normal_form_is_reached_by_any_order_of_degeneracies(x, data):
    name = data.draw(st.sampled_from([x for names in x.by_dimension for x in names]))
    z = x.simplex(name)
    jumps = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    for j in jumps:
        z = x.degeneracy(z, j % (z.dimension + 1))
    # the same surjection built from the right: repeated values in descending order
    repeated = [i for i in range(z.dimension) if z.onto[i] == z.onto[i + 1]]
    again = x.simplex(name)
    for i in repeated:
        again = x.degeneracy(again, i)
    assert again == z
    assert z.is_degenerate and z.name == name


def test_all_simplices_of_a_dimension_are_listed_once_and_counted():
    x = nerve(cyclic(3), 3)
    for n in range(4):
        listed = list(x.simplices(n))
        assert len(set(listed)) == len(listed) == x.count(n) == 3**n


@given(posets())
def test_normalised_chains_of_a_nerve_have_the_homology_of_the_order_complex(poset):
    strict = np.array([[x < y and bool(poset.hom(x, y)) for y in poset.objects] for x in poset.objects])
    order_complex = directed_flag_complex(strict, len(poset.objects))
    found = nerve(poset, len(poset.objects))
    assert found.skeleton is None
    assert groups(found.chain_complex()) == groups(order_complex)


@pytest.mark.parametrize("order", [2, 3])
def test_the_nerve_of_a_cyclic_group_has_its_homology_in_odd_degrees(order):
    found = homology(nerve(cyclic(order), 5).chain_complex()).value
    assert [(g.free_rank, g.torsion) for g in found[:5]] == [(1, ()), (0, (order,)), (0, ()), (0, (order,)), (0, ())]


def test_a_simplex_with_its_boundary_at_one_vertex_has_the_homology_of_a_sphere():
    x = SimplicialSet(["*"], {"cell": [Simplex((0, 0), "*")] * 3})
    assert groups(x.chain_complex()) == [(1, ()), (0, ()), (1, ())]


def test_inner_horns_of_a_poset_fill_and_outer_ones_do_not():
    poset = Category.of_poset(range(3), lambda x, y: x <= y)
    found = kan_condition(nerve(poset, 3), 3)
    assert found.value.is_quasicategory and not found.value.is_kan
    assert found.value.unfilled[:2] in {(2, 0), (2, 2)}
    assert found.verify() == 0


@pytest.mark.parametrize("category", [cyclic(2), cyclic(3), pair_groupoid(2)], ids=["Z/2", "Z/3", "pairs"])
def test_all_horns_of_a_groupoid_fill(category):
    found = kan_condition(nerve(category, 3), 3)
    assert found.value.is_kan and found.value.unfilled is None
    assert found.verify() == 0


def test_a_triangulated_circle_is_not_even_a_quasicategory():
    found = kan_condition(of_complex(sphere(1)), 2)
    assert not found.value.is_quasicategory
    assert found.verify() == 0


@given(relations(3))
def test_kan_counts_agree_with_a_naive_enumeration(relation):
    found = kan_condition(of_complex(directed_flag_complex(relation, 2)), 2)
    assert found.verify() == 0


def test_planted_kan_witnesses_are_caught():
    good = kan_condition(nerve(cyclic(2), 2), 2).witness
    horn = {0: ((0, 1), (1,)), 2: ((0, 1), (1,))}
    assert verify(dataclasses.replace(good, unfilled=(2, 1, horn))) > 0
    assert verify(dataclasses.replace(good, counts={**good.counts, (2, 1): (5, 5)})) > 0
    bad = kan_condition(of_complex(sphere(1)), 2).witness
    assert verify(dataclasses.replace(bad, unfilled=None)) > 0


def test_horns_beyond_the_limit_are_undecided_and_beyond_a_skeleton_refused():
    assert isinstance(kan_condition(nerve(cyclic(3), 3), 3, limit=50).value, Undecided)
    with pytest.raises(AnalysisError, match="skeleton"):
        kan_condition(nerve(cyclic(2), 2), 3)
    inner = kan_condition(nerve(cyclic(2), 2), 2, inner=True).value
    with pytest.raises(AnalysisError, match="outer"):
        _ = inner.is_kan


def test_what_is_no_simplicial_set_or_category_is_refused():
    edge = {i: Simplex((0,), i) for i in range(3)}
    faces = {"a": [edge[1], edge[0]], "b": [edge[2], edge[1]], "c": [edge[2], edge[0]]}
    triangle = [Simplex((0, 1), e) for e in "bca"]
    SimplicialSet(range(3), {**faces, "t": triangle})
    with pytest.raises(AnalysisError, match="d_0 d_1"):
        SimplicialSet(range(3), {**faces, "t": triangle[::-1][:1] + triangle[1:]})
    with pytest.raises(AnalysisError, match="same name"):
        SimplicialSet([0, 1, 1], {})
    with pytest.raises(AnalysisError, match=r"not given|no arrow"):
        Category.of_poset(range(3), lambda x, y: (x, y) in {(0, 1), (1, 2)})
    with pytest.raises(AnalysisError, match=r"associatively|identity"):
        Category.of_group([[0, 1, 2], [1, 0, 0], [2, 2, 1]])
    with pytest.raises(AnalysisError, match="surjection"):
        SimplicialSet([0], {"a": [Simplex((), 0)] * 2})


@pytest.mark.parametrize(
    "make, what",
    [
        (lambda: Category((0, 1), {"f": (0, 1)}, {0: "f", 1: "f"}, {}), "from 0 to itself"),
        (lambda: Category((0,), {}, {0: "e"}, {}), "from 0 to itself"),
        (lambda: Category.of_group([]), "to itself"),
        (lambda: Category.of_group([[0, 1], [1]]), "2 entries"),
        (lambda: Category((0,), {"e": (0, 0)}, {0: "e"}, {("e", "e"): "e", ("z", "y"): "q"}), "do not fit"),
    ],
)
def test_identities_and_composites_that_do_not_fit_are_refused(make, what):
    with pytest.raises(AnalysisError, match=what):
        make()


def test_the_empty_simplicial_set_has_no_homology():
    assert [str(g) for g in homology(SimplicialSet([], {}).chain_complex()).value] == ["0"]


def test_a_simplicial_set_from_all_its_simplices_finds_the_non_degenerate_ones():
    # Δ²: monotone maps [n] → [2] as tuples
    levels = [list(itertools.combinations_with_replacement(range(3), n + 1)) for n in range(4)]
    x = of_levels(levels, lambda z, i: z[:i] + z[i + 1 :], lambda z, i: z[: i + 1] + z[i:])
    assert [len(names) for names in x.by_dimension] == [3, 3, 1]


# --- attention ---------------------------------------------------------------------------------------------
def causal(n: int, seed: int = 0) -> np.ndarray:
    a = np.tril(np.random.default_rng(seed).random((n, n)))
    return a / a.sum(1, keepdims=True)


@pytest.mark.parametrize("kind", ["flag", "preorder", "paths"])
def test_tables_of_simplices_hold_faces_and_degeneracies(kind):
    attention = SimplicialAttention(causal(5), 0.1, dimension=2, kind=kind)
    for n in range(3):
        table = attention.compute_simplices(n).value
        assert len(table.simplices) == attention.set.count(n)
        assert [z for z in table.simplices if not z.is_degenerate] == list(table.nondegenerate)
        for z, faces, degeneracies in zip(table.simplices, table.faces, table.degeneracies):
            assert len(faces) == (n + 1 if n else 0) and len(degeneracies) == n + 1
            assert all(attention.set.face(s, i) == z for i, s in enumerate(degeneracies))


def test_the_path_category_counts_directed_paths():
    arrows = np.tril(np.random.default_rng(3).random((6, 6)) < 0.6, -1).astype(int)
    category = path_category(arrows)
    walks = sum(np.linalg.matrix_power(arrows, k) for k in range(6))
    for i, j in itertools.product(range(6), repeat=2):
        assert len(category.hom(i, j)) == walks[i, j]


def test_the_preorder_is_the_transitive_closure():
    category = preorder_category(np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=bool))
    assert category.hom(0, 2) and not category.hom(2, 0) and category.hom(1, 1)


def test_kan_checks_of_a_pattern():
    symmetric = SimplicialAttention(np.full((2, 2), 0.5), 0.1, dimension=2, kind="preorder")
    assert symmetric.kan_check(2).value.is_kan
    assert SimplicialAttention(causal(4), 0.01, kind="paths").kan_check(2).value.is_quasicategory
    with pytest.raises(AnalysisError, match="up to dimension"):
        symmetric.kan_check(3)


def test_bad_patterns_cycles_and_small_budgets_are_refused():
    with pytest.raises(AnalysisError, match="cycle"):
        SimplicialAttention(np.ones((3, 3)), 0.5, kind="paths")
    with pytest.raises(AnalysisError, match="square"):
        SimplicialAttention(np.ones((3, 2)), 0.5)
    with pytest.raises(AnalysisError, match="NaN"):
        SimplicialAttention(np.full((2, 2), np.nan), 0.5)
    with pytest.raises(AnalysisError, match="kind"):
        SimplicialAttention(np.ones((2, 2)), 0.5, kind="cubical")
    for threshold, dimension in ((float("nan"), 1), (0.5, -1)):
        with pytest.raises(AnalysisError, match="at the threshold"):
            SimplicialAttention(np.ones((2, 2)), threshold, dimension=dimension, kind="preorder")
    for category in (path_category, preorder_category):
        with pytest.raises(AnalysisError, match="shape"):
            category(np.ones((2, 3)))
    with pytest.raises(AnalysisError, match="dimension 1 and more"):
        kan_condition(nerve(cyclic(2), 2), 0)
    with pytest.raises(BudgetError):
        SimplicialAttention(causal(6), 0.01, budget=Cost(1e-9, 1e9)).compute_simplices(2)


def test_a_directed_circle_has_the_homology_of_one():
    a = np.roll(np.eye(5), 1, axis=1)
    attention = SimplicialAttention(a, 0.5)
    assert groups(attention.set.chain_complex()) == [(1, ()), (1, ())]
