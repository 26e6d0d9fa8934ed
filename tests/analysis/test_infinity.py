"""Quasicategories: mapping spaces of nerves, homotopic arrows, composition, the homotopy category, equivalences."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.chains.homology import homology
from aatc.passes.analysis.chains.spaces import sphere
from aatc.passes.analysis.homotopy.infinity import InfinityAttention, NotQuasicategoryError
from aatc.passes.analysis.homotopy.simplicial_attention import SimplicialAttention, path_category, preorder_category
from aatc.passes.analysis.homotopy.simplicial_sets import Category, Simplex, SimplicialSet, nerve, of_complex, of_levels
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost, Undecided, verify


def cyclic(order: int) -> Category:
    return Category.of_group([[(a + b) % order for b in range(order)] for a in range(order)])


def category_of_two_parallel_arrows() -> Category:
    """0 ⇉ 1 → 2 with both composites equal."""
    arrows = {("id", x): (x, x) for x in range(3)} | {"a": (0, 1), "b": (0, 1), "c": (1, 2), "d": (0, 2)}
    compose = {(f, g): None for f, g in itertools.product(arrows, repeat=2) if arrows[f][1] == arrows[g][0]}
    for f, g in compose:
        compose[f, g] = g if f[0] == "id" else f if g[0] == "id" else "d"
    return Category(tuple(range(3)), arrows, {x: ("id", x) for x in range(3)}, compose)


def coloured(length: int, colours: int, top: int) -> SimplicialSet:
    """Chains 0 ≤ … ≤ length of objects with a colour on every pair of places i < j, colour 0 where degeneracies repeat
    a vertex: all arrows between two objects are homotopic, and there are several of each."""
    levels = []
    for n in range(top + 1):
        pairs = list(itertools.combinations(range(n + 1), 2))
        levels.append([
            (chain, tuple(zip(pairs, colour)))
            for chain in itertools.combinations_with_replacement(range(length + 1), n + 1)
            for colour in itertools.product(range(colours), repeat=len(pairs))
        ])  # fmt: skip

    def pulled(z, places):
        chain, colour = tuple(z[0][p] for p in places), dict(z[1])
        pairs = itertools.combinations(range(len(places)), 2)
        return chain, tuple(((i, j), colour.get((places[i], places[j]), 0)) for i, j in pairs)

    def face(z, i):
        return pulled(z, [p for p in range(len(z[0])) if p != i])

    def degeneracy(z, i):
        return pulled(z, [*range(i + 1), *range(i, len(z[0]))])

    return of_levels(levels, face, degeneracy, skeleton=top)


@pytest.fixture(scope="module")
def two_colours():
    return InfinityAttention(coloured(1, 2, 3), top=3).quasi_structure((0, ((0,), ())), (0, ((1,), ()))).value


CATEGORIES = {
    "parallel": category_of_two_parallel_arrows(),
    "Z/3": cyclic(3),
    "pairs": Category.of_poset(range(2), lambda x, y: True),
    "paths": path_category(np.tril(np.ones((4, 4)), -1)),
}


@pytest.mark.parametrize("name", CATEGORIES)
def test_mapping_spaces_of_a_nerve_are_discrete_and_the_hom_sets(name):
    category = CATEGORIES[name]
    infinity = InfinityAttention(nerve(category, 3), top=2)
    for x, y in itertools.product(category.objects, repeat=2):
        found = infinity.higher_morphisms((x, "object"), (y, "object"), 1).value
        assert found.is_discrete
        assert len(found.space.nondegenerate(0)) == len(found.classes) == len(category.hom(x, y))
        assert len(found.simplices) == len(category.hom(x, y))


@pytest.mark.parametrize("name", CATEGORIES)
def test_the_homotopy_category_of_a_nerve_is_the_category(name):
    category = CATEGORIES[name]
    origin = (category.objects[0], "object")
    quasi = InfinityAttention(nerve(category, 3), top=2).quasi_structure(origin, origin).value
    found = quasi.homotopy_category

    def arrow(f):
        """The arrow of the category that a 1-simplex stands for."""
        return category.identity[f.name[0]] if f.is_degenerate else f.name[0]

    assert {arrow(f) for f in found.arrows} == set(category.arrows)
    assert all(arrow(h) == category.compose[arrow(f), arrow(g)] for (f, g), h in found.compose.items())
    inverse = {f for f in category.arrows if category.inverse(f) is not None}
    assert {arrow(f) for f in quasi.equivalences()} == inverse
    assert quasi.is_groupoid == (len(inverse) == len(category.arrows))


def test_parallel_arrows_of_a_quasicategory_are_identified_where_a_simplex_joins_them(two_colours):
    x, y = two_colours.ends
    arrows = two_colours.arrows(x, y)
    assert len(arrows) == 2
    joined = two_colours.homotopic(*arrows)
    assert joined and joined.verify() == 0
    assert verify(dataclasses.replace(joined.witness, required={0: joined.witness.required[1]})) > 0
    assert two_colours.homotopy_class(arrows[0]) == two_colours.homotopy_class(arrows[1])
    assert len(two_colours.homotopy_category.hom(x, y)) == 1
    assert not two_colours.homotopy_category.hom(y, x)


def test_arrows_of_a_nerve_are_homotopic_only_when_equal():
    quasi = InfinityAttention(nerve(cyclic(3), 3), top=2).quasi_structure(("*", "object"), ("*", "object")).value
    one, two = quasi.arrows(*quasi.ends)[1:]
    assert not quasi.homotopic(one, two) and quasi.homotopic(one, one)


def test_a_mapping_space_with_homotopic_arrows_is_connected_and_not_discrete(two_colours):
    x, y = two_colours.ends
    space = two_colours.mapping_space(x, y, 2)
    assert len(space.nondegenerate(0)) == 2 and space.dimension == 2
    assert homology(space.chain_complex()).value[0].free_rank == 1
    with pytest.raises(AnalysisError, match="skeleton"):
        two_colours.mapping_space(x, y, 3)
    with pytest.raises(AnalysisError, match="dimension 0 and more"):
        two_colours.mapping_space(x, y, -1)


def test_composites_are_unique_up_to_homotopy_and_identities_do_nothing(two_colours):
    x, y = two_colours.ends
    for f in two_colours.arrows(x, y):
        for pair in ((two_colours.identity(x), f), (f, two_colours.identity(y))):
            found = two_colours.compose(*pair)
            assert f in found.value and found.verify() == 0
            assert {two_colours.homotopy_class(h) for h in found.value} == {two_colours.homotopy_class(f)}
    with pytest.raises(AnalysisError, match="ends at another"):
        two_colours.compose(f, f)
    with pytest.raises(AnalysisError, match="same ends"):
        two_colours.homotopic(f, two_colours.identity(x))
    for wrong in (Simplex((0, 1), "nothing"), two_colours.set.simplex(x)):
        with pytest.raises(AnalysisError, match="no arrow"):
            two_colours.homotopic(wrong, f)
        with pytest.raises(AnalysisError, match="no arrow"):
            two_colours.homotopy_class(wrong)
        with pytest.raises(AnalysisError, match="no arrow"):
            two_colours.compose(f, wrong)


@given(st.integers(2, 4), st.integers(0, 99))
def test_reachability_is_what_the_nerve_of_a_pattern_has_as_arrows(n, seed):
    pattern = np.random.default_rng(seed).random((n, n))
    category = preorder_category(pattern >= 0.6)
    infinity = InfinityAttention(SimplicialAttention(pattern, 0.6, dimension=2, kind="preorder"), top=2)
    for i, j in itertools.product(range(n), repeat=2):
        found = infinity.higher_morphisms((i, "object"), (j, "object"), 0).value
        assert len(found.classes) == len(category.hom(i, j))


def test_an_unfilled_inner_horn_refuses_the_structure_and_is_reported():
    with pytest.raises(NotQuasicategoryError, match="no filler") as refused:
        InfinityAttention(of_complex(sphere(1)), top=2).quasi_structure((0,), (1,))
    n, k, faces = refused.value.horn
    assert (n, k, len(faces)) == (2, 1, 2)
    assert verify(refused.value.witness) == 0
    with pytest.raises(NotQuasicategoryError):
        InfinityAttention(SimplicialAttention(np.roll(np.eye(4), 1, axis=1), 0.5), top=2).quasi_structure((0,), (2,))


def test_unknown_objects_limits_and_budgets():
    x = nerve(cyclic(3), 3)
    with pytest.raises(AnalysisError, match="no object"):
        InfinityAttention(x).quasi_structure("nowhere", ("*", "object"))
    assert isinstance(
        InfinityAttention(x, limit=10).higher_morphisms(("*", "object"), ("*", "object"), 1).value, Undecided
    )
    with pytest.raises(AnalysisError, match="at least 2"):
        InfinityAttention(x, top=1)
    with pytest.raises(BudgetError):
        InfinityAttention(x, top=2, budget=Cost(1e-9)).higher_morphisms(("*", "object"), ("*", "object"), 1)
