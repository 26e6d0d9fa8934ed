"""Localised categories: Ore's conditions, roofs, fundamental groupoids; minimal models of complexes."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.chains.complexes import from_maximal_simplices
from aatc.passes.analysis.chains.homology import betti_numbers
from aatc.passes.analysis.chains.reduction import MinimalModel
from aatc.passes.analysis.chains.spaces import projective_plane, sphere, torus
from aatc.passes.analysis.homotopy.fundamental_group import fundamental_group
from aatc.passes.analysis.homotopy.localization import (
    FundamentalGroupoid,
    Localized,
    LocalizedAttention,
    closure,
    left_fractions,
    word_of_zigzag,
)
from aatc.passes.analysis.homotopy.simplicial_attention import preorder_category
from aatc.passes.analysis.homotopy.simplicial_sets import Category, nerve
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost, Undecided, verify

LOCAL = LocalizedAttention()


def circle_poset() -> Category:
    """Two minima a, b below two maxima x, y."""
    return Category.of_poset("abxy", lambda p, q: p in "ab" and q in "xy")


def face_poset(complex) -> Category:
    faces = [tuple(c) for k in range(complex.dimension + 1) for c in complex.simplices(k).tolist()]
    return Category.of_poset(faces, lambda p, q: set(p) <= set(q))


def cyclic(order: int) -> Category:
    return Category.of_group([[(a + b) % order for b in range(order)] for a in range(order)])


def idempotent() -> Category:
    """One object with e·e = e."""
    compose = {("1", "1"): "1", ("1", "e"): "e", ("e", "1"): "e", ("e", "e"): "e"}
    return Category(("*",), {"1": ("*", "*"), "e": ("*", "*")}, {"*": "1"}, compose)


def powers(top: int) -> Category:
    """One object with the arrows 1, t, t², … where all powers from ``top`` on are equal."""
    arrows = {k: ("*", "*") for k in range(top + 1)}
    compose = {(i, j): min(i + j, top) for i, j in itertools.product(arrows, repeat=2)}
    return Category(("*",), arrows, {"*": 0}, compose)


@st.composite
def posets(draw, size=5):
    n = draw(st.integers(1, size))
    relation = np.array(draw(st.lists(st.booleans(), min_size=n * n, max_size=n * n))).reshape(n, n)
    return preorder_category(np.triu(relation, 1))


# --- everything inverted -----------------------------------------------------------------------------------
def test_the_circle_as_a_poset_fails_ore_on_both_sides_and_localises_to_the_integers():
    plan = LOCAL.compute_local(circle_poset(), "all").value
    assert not plan.left and not plan.right
    assert plan.left.verify() == 0 and plan.right.verify() == 0
    found = LOCAL.localize(plan).value
    assert isinstance(found, FundamentalGroupoid)
    (component,) = found.components
    assert component.group.generators == 1 and component.group.is_free
    around = [(("a", "x"), 1), (("b", "x"), -1), (("b", "y"), 1), (("a", "y"), -1)]
    assert len(word_of_zigzag(component, around)) == 1
    assert word_of_zigzag(component, [around[0], (("a", "x"), -1)]) == ()
    assert len(word_of_zigzag(component, around * 3)) == 3


@given(posets(4))
def test_a_poset_with_a_greatest_or_least_element_localises_to_one_arrow_between_any_two_objects(poset):
    for end in ("top", "bottom"):
        objects = [*poset.objects, end]
        whole = Category.of_poset(
            objects,
            lambda x, y: (
                (y == "top" or x == "bottom") if "top" in (x, y) or "bottom" in (x, y) else bool(poset.hom(x, y))
            ),
        )
        found = LOCAL.localize_attention(whole, "all")
        assert isinstance(found.value, Localized)
        for x, y in itertools.product(objects, repeat=2):
            assert len(found.value.category.hom(x, y)) == 1
        assert found.verify() == 0


@pytest.mark.parametrize("space", [sphere(1), sphere(2), projective_plane(), torus()], ids=["S¹", "S²", "RP²", "T²"])
def test_the_face_poset_of_a_space_localises_to_its_fundamental_groupoid(space):
    found = LOCAL.localize_attention(face_poset(space), "all").value
    (component,) = found.components
    group = fundamental_group(space)
    assert component.group.order() == group.order()
    exponents = component.group.exponents()
    rank = np.linalg.matrix_rank(np.array(exponents, dtype=float)) if exponents else 0
    assert component.group.generators - rank == group.abelianisation()[0]


def test_components_are_kept_apart():
    two = Category.of_poset(["a", "b", "x", "y", "p", "q"], lambda u, v: (u + v) in ("ax", "ay", "bx", "by", "pq"))
    found = LOCAL.localize_attention(two, "all").value
    assert [set(c.objects) for c in found.components] == [{"a", "b", "x", "y"}, {"p", "q"}]
    assert [c.group.generators for c in found.components] == [1, 0]


# --- fractions ---------------------------------------------------------------------------------------------
CATEGORIES = {"circle": circle_poset(), "Z/3": cyclic(3), "chain": Category.of_poset(range(4), lambda x, y: x <= y)}


@pytest.mark.parametrize("name", CATEGORIES)
def test_inverting_isomorphisms_changes_nothing(name):
    category = CATEGORIES[name]
    isomorphisms = [f for f in category.arrows if category.inverse(f) is not None]
    found = LOCAL.localize_attention(category, isomorphisms)
    image = [found.value.functor[f] for f in category.arrows]
    assert len(set(image)) == len(image) == len(found.value.category.arrows)
    assert found.verify() == 0


def test_inverting_an_idempotent_makes_it_the_identity():
    found = LOCAL.localize_attention(idempotent(), ["e"])
    assert len(found.value.category.arrows) == 1
    assert found.value.functor["e"] == found.value.functor["1"]
    assert found.verify() == 0


@pytest.mark.parametrize("top", [1, 2, 4])
def test_inverting_a_power_that_is_absorbed_leaves_one_arrow(top):
    found = LOCAL.localize_attention(powers(top), [1])
    assert len(found.value.category.arrows) == 1 and found.verify() == 0


def test_inverting_one_arrow_of_a_chain_joins_its_ends_only():
    chain = Category.of_poset(range(3), lambda x, y: x <= y)
    found = LOCAL.localize_attention(chain, [(1, 2)]).value.category
    assert found.inverse(found.hom(1, 2)[0]) == found.hom(2, 1)[0]
    assert len(found.hom(0, 1)) == len(found.hom(0, 2)) == 1 and not found.hom(1, 0)


@given(posets(), st.data())
def test_left_and_right_fractions_localise_to_equivalent_categories(poset, data):
    wanted = data.draw(st.lists(st.sampled_from(sorted(poset.arrows)), max_size=3))
    plan = LOCAL.compute_local(poset, wanted).value
    found = LOCAL.localize(plan)
    if not plan.left and not plan.right:
        assert isinstance(found.value, (Undecided, FundamentalGroupoid))
        assert plan.left.verify() == plan.right.verify() == 0
        return
    assert found.verify() == 0
    if plan.left and plan.right:
        mirrored = LOCAL.localize(dataclasses.replace(plan, left=dataclasses.replace(plan.left, value=False)))
        assert mirrored.value.side == "right" and mirrored.verify() == 0
        for x, y in itertools.product(poset.objects, repeat=2):
            assert len(mirrored.value.category.hom(x, y)) == len(found.value.category.hom(x, y))


@given(posets(4))
def test_hom_sets_by_roofs_have_as_many_arrows_as_the_fundamental_groupoid(poset):
    plan = LOCAL.compute_local(poset, "all").value
    if not plan.left:
        return
    roofs = LOCAL.localize(plan).value.category
    refused = dataclasses.replace(plan, left=dataclasses.replace(plan.left, value=False),
                                  right=dataclasses.replace(plan.right, value=False))  # fmt: skip
    groupoid = LOCAL.localize(refused).value
    where = {x: n for n, c in enumerate(groupoid.components) for x in c.objects}
    for x, y in itertools.product(poset.objects, repeat=2):
        same = where[x] == where[y]
        assert len(roofs.hom(x, y)) == (groupoid.components[where[x]].group.order() if same else 0)


def test_cancellation_fails_with_a_witness_where_a_square_does_not():
    """s: 0 → 1 equalises f, g: 1 ⇉ 2, and nothing in W coequalises them."""
    arrows = {("id", x): (x, x) for x in range(3)} | {"s": (0, 1), "f": (1, 2), "g": (1, 2), "h": (0, 2)}
    compose = {}
    for a, b in itertools.product(arrows, repeat=2):
        if arrows[a][1] == arrows[b][0]:
            compose[a, b] = b if a[0] == "id" else a if b[0] == "id" else "h"
    category = Category(tuple(range(3)), arrows, {x: ("id", x) for x in range(3)}, compose)
    verdict = left_fractions(category, closure(category, ["s"]))
    assert not verdict and verdict.witness.kind == "cancel" and verdict.verify() == 0
    assert verify(dataclasses.replace(verdict.witness, inverted=frozenset(arrows), s=("id", 1))) > 0
    assert verify(dataclasses.replace(verdict.witness, g="f")) > 0
    found = LOCAL.localize_attention(category, ["s"])
    assert found.value.side == "right"
    assert found.value.functor["f"] == found.value.functor["g"]


def test_planted_failures_and_functors_are_caught():
    chain = Category.of_poset(range(3), lambda x, y: x <= y)
    found = LOCAL.localize_attention(chain, [(1, 2)])
    swapped = {**found.witness.functor, (0, 1): found.witness.functor[0, 2]}
    assert verify(dataclasses.replace(found.witness, functor=swapped)) > 0
    assert verify(dataclasses.replace(found.witness, inverted=frozenset(chain.arrows))) > 0
    point = {f: "1" for f in chain.arrows}
    smaller = dataclasses.replace(
        found.witness, functor=point, target_arrows={"1": ("*", "*")}, target_compose={("1", "1"): "1"},
        target_identity=dict.fromkeys(chain.objects, "1"),
    )  # fmt: skip
    assert verify(smaller) > 0
    everything = LOCAL.localize_attention(cyclic(3), [0]).witness
    quotient = dataclasses.replace(
        everything, functor=dict.fromkeys(range(3), "1"), target_arrows={"1": ("*", "*")},
        target_compose={("1", "1"): "1"}, target_identity={"*": "1"},
    )  # fmt: skip
    assert everything.inverted == {0} and verify(everything) == 0 and verify(quotient) > 0
    failure = LOCAL.compute_local(circle_poset(), "all").value.left.witness
    assert verify(dataclasses.replace(failure, f=failure.s)) > 0
    assert verify(dataclasses.replace(failure, inverted=frozenset())) > 0


def test_neither_fractions_nor_everything_inverted_is_undecided():
    found = LOCAL.localize_attention(circle_poset(), [("a", "x"), ("b", "y")])
    plan = LOCAL.compute_local(circle_poset(), [("a", "x"), ("b", "y")]).value
    assert not plan.left and not plan.right
    assert isinstance(found.value, Undecided)


def test_what_cannot_be_localised_is_refused():
    with pytest.raises(AnalysisError, match="no arrow"):
        LOCAL.compute_local(circle_poset(), ["nothing"])
    with pytest.raises(AnalysisError, match="all"):
        LOCAL.compute_local(circle_poset(), "some")
    with pytest.raises(AnalysisError, match="all"):
        LOCAL.compute_local(circle_poset(), 5)
    with pytest.raises(AnalysisError, match="quasi-isomorphisms"):
        LOCAL.compute_local(torus(), "all")
    with pytest.raises(AnalysisError, match="not a SimplicialSet"):
        LOCAL.compute_local(nerve(cyclic(2), 2), "all")
    with pytest.raises(BudgetError):
        LocalizedAttention(Cost(1e-9)).compute_local(circle_poset(), "all")
    with pytest.raises(BudgetError):
        LocalizedAttention(Cost(1e-9)).compute_local(torus(), "quasi-isomorphisms")


# --- complexes ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("space", [torus(), projective_plane(), from_maximal_simplices([(0, 1, 2, 3)])])
def test_the_local_object_of_a_complex_is_its_minimal_model(space):
    found = LOCAL.compute_local(space, "quasi-isomorphisms")
    assert isinstance(found.value, MinimalModel) and found.verify() == 0
    again = LOCAL.localize(found.value).value
    assert [len(again.free[k]) for k in range(space.dimension + 1)] == list(betti_numbers(space))
    assert all(abs(t) > 1 for pairs in again.pairs for _, _, t in pairs)
