"""Points and affine singular simplices of realisations: normal forms, operators, and the triangle identities."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.chains.spaces import sphere, torus
from aatc.passes.analysis.homotopy.realization import GeometricRealization, PointError, weights
from aatc.passes.analysis.homotopy.simplicial_attention import SimplicialAttention
from aatc.passes.analysis.homotopy.simplicial_sets import Category, Simplex, SimplicialSet, nerve, of_complex
from aatc.passes.analysis.result import AnalysisError

SETS = {
    "torus": of_complex(torus()),
    "BZ/2": nerve(Category.of_group([[0, 1], [1, 0]]), 3),
    "poset": nerve(Category.of_poset(range(4), lambda x, y: x <= y), 4),
    "S²": SimplicialSet(["*"], {"cell": [Simplex((0, 0), "*")] * 3}),
}
REALIZED = {name: GeometricRealization().realize_attention(x).value for name, x in SETS.items()}
spaces = st.sampled_from(sorted(SETS))


@st.composite
def simplices(draw, x, top=4):
    n = draw(st.integers(0, top))
    listed = list(x.simplices(n))
    return draw(st.sampled_from(listed[:: max(1, len(listed) // 97)]))


def coordinates(size):
    number = st.integers(0, 6)
    return st.lists(number, min_size=size, max_size=size).filter(any)


@given(spaces, st.data())
def test_pairs_that_are_glued_have_the_same_normal_form(name, data):
    x, space = SETS[name], REALIZED[name]
    z = data.draw(simplices(x))
    n = z.dimension
    if n:
        t = data.draw(coordinates(n))
        i = data.draw(st.integers(0, n))
        # (d_i z, t) ~ (z, δⁱ t)
        assert space.point(x.face(z, i), t) == space.point(z, [*t[:i], 0, *t[i:]])
    t = data.draw(coordinates(n + 2))
    j = data.draw(st.integers(0, n))
    # (s_j z, t) ~ (z, σʲ t)
    assert space.point(x.degeneracy(z, j), t) == space.point(z, [*t[:j], t[j] + t[j + 1], *t[j + 2 :]])


@given(spaces, st.data())
def test_a_normal_form_is_a_positive_point_of_a_generator_and_stays_itself(name, data):
    x, space = SETS[name], REALIZED[name]
    z = data.draw(simplices(x))
    point = space.point(z, data.draw(coordinates(z.dimension + 1)))
    assert min(point.weights) > 0 and sum(point.weights) == 1
    assert space.point(x.simplex(point.name), point.weights) == point


@given(spaces, st.data())
def test_affine_singular_simplices_satisfy_the_simplicial_identities(name, data):
    x, space = SETS[name], REALIZED[name]
    z = data.draw(simplices(x, 2))
    n = data.draw(st.integers(1, 3))
    sigma = space.singular(z, [data.draw(coordinates(z.dimension + 1)) for _ in range(n + 1)])
    d, s = space.singular_face, space.singular_degeneracy
    for i in range(n + 1):
        assert d(s(sigma, i), i) == d(s(sigma, i), i + 1) == sigma
        for j in range(i, n + 1):
            assert s(s(sigma, j), i) == s(s(sigma, i), j + 1)
            if i < j and n > 1:
                assert d(d(sigma, j), i) == d(d(sigma, i), j - 1)
            if i < j:
                assert d(s(sigma, j), i) == s(d(sigma, i), j - 1)
                assert d(s(sigma, i), j + 1) == s(d(sigma, j), i)


@given(spaces, st.data())
def test_the_unit_is_a_simplicial_map(name, data):
    x, space = SETS[name], REALIZED[name]
    z = data.draw(simplices(x))
    for i in range(z.dimension + 1):
        assert space.unit(x.degeneracy(z, i)) == space.singular_degeneracy(space.unit(z), i)
        if z.dimension:
            assert space.unit(x.face(z, i)) == space.singular_face(space.unit(z), i)


@given(spaces, st.data())
def test_the_counit_does_not_depend_on_the_representative(name, data):
    x, space = SETS[name], REALIZED[name]
    z = data.draw(simplices(x, 2))
    n = data.draw(st.integers(0, 3))
    sigma = space.singular(z, [data.draw(coordinates(z.dimension + 1)) for _ in range(n + 1)])
    t = data.draw(coordinates(n + 1))
    assert space.counit(space.singular_point(sigma, t)) == space.evaluate(sigma, t)
    j = data.draw(st.integers(0, n))
    split = [*t[:j], t[j], 0, *t[j + 1 :]]
    assert space.singular_point(space.singular_degeneracy(sigma, j), split) == space.singular_point(sigma, t)


@given(spaces, st.data())
def test_the_triangle_identity_on_realisations(name, data):
    x, space = SETS[name], REALIZED[name]
    z = data.draw(simplices(x))
    point = space.point(z, data.draw(coordinates(z.dimension + 1)))
    assert space.counit(space.realized_unit(point)) == point


@pytest.mark.parametrize("name", SETS)
def test_the_triangle_identity_on_generators(name):
    x, space = SETS[name], REALIZED[name]
    for names in x.by_dimension:
        for generator in names:
            z = x.simplex(generator)
            point = space.point(z, [1] * (z.dimension + 1))
            assert space.counit(space.realized_unit(point)) == point


@given(spaces, st.data())
def test_the_triangle_identity_on_singular_simplices(name, data):
    """Sing Y → Sing|Sing Y| → Sing Y: the affine map t ↦ ε(σ, t), recovered from n + 2 inner points, is σ."""
    x, space = SETS[name], REALIZED[name]
    z = data.draw(simplices(x, 2))
    n = data.draw(st.integers(0, 3))
    sigma = space.singular(z, [data.draw(coordinates(z.dimension + 1)) for _ in range(n + 1)])
    centre = space.counit(space.singular_point(sigma, [1] * (n + 1)))
    rows = []
    for i in range(n + 1):
        near = space.counit(space.singular_point(sigma, [1 + (i == j) for j in range(n + 1)]))
        assert near.name == centre.name
        rows.append(tuple((n + 2) * w - (n + 1) * c for w, c in zip(near.weights, centre.weights)))
    assert type(sigma)(centre.name, tuple(rows)) == sigma


def test_euler_characteristics_are_those_of_the_spaces():
    assert REALIZED["torus"].euler_characteristic == 0
    assert REALIZED["S²"].euler_characteristic == 2
    assert REALIZED["poset"].euler_characteristic == 1


def test_coordinates_are_barycentric_and_embed_a_complex():
    space = REALIZED["torus"]
    assert space.geometry.is_embedded and not REALIZED["S²"].geometry.is_embedded
    assert not REALIZED["BZ/2"].geometry.is_embedded
    point = space.point(SETS["torus"].simplex((0, 1, 3)), [1, 2, 1])
    np.testing.assert_allclose(space.coordinates(point), [0.25, 0.5, 0, 0.25, 0, 0, 0], atol=0)


def test_a_pattern_is_realised_and_a_skeleton_says_so():
    pattern = np.full((3, 3), 0.5)
    found = GeometricRealization().realize_attention(SimplicialAttention(pattern, 0.1, dimension=2, kind="preorder"))
    assert found.assumptions == ("the skeleton of dimension 2",)
    assert GeometricRealization().realize_attention(of_complex(sphere(2))).assumptions == ()


def test_what_is_no_point_is_refused():
    space = REALIZED["poset"]
    edge = SETS["poset"].simplex(((0, 1),))
    for values in ([0, 0], [-1, 2], [float("nan"), 1], [1, 2, 3], ["x", 1]):
        with pytest.raises(PointError):
            space.point(edge, values)
    with pytest.raises(PointError):
        space.singular(edge, [[1, 1, 1]])
    for wrong in (Simplex((0, 1), "nothing"), Simplex((0,), edge.name)):
        with pytest.raises(AnalysisError, match="no simplex"):
            space.point(wrong, [1] * (wrong.dimension + 1))
        with pytest.raises(AnalysisError, match="no simplex"):
            space.singular(wrong, [[1] * (wrong.dimension + 1)])
    with pytest.raises(AnalysisError):
        GeometricRealization().realize_attention(torus())
    assert weights([0.5, 0.25, 0.25]) == (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4))
