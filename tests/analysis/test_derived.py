"""RHom of groups and complexes, homotopy limits and colimits: Ext, universal coefficients and long exactness."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from aatc.passes.analysis.chains.complexes import ChainComplex, ComplexError, SimplicialComplex, from_maximal_simplices
from aatc.passes.analysis.chains.graded_complexes import GradedComplex, GradedMap, cone, hom_complex, shifted
from aatc.passes.analysis.chains.homology import AbelianGroup, homology, simplicial_map
from aatc.passes.analysis.chains.spaces import moore_space, projective_plane, simplex, sphere, torus
from aatc.passes.analysis.cohomology.cohomology import cohomology
from aatc.passes.analysis.cohomology.derived import DerivedAttention, Diagram, PresentedGroup, homotopy_pullback
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost, Undecided, verify

DERIVED = DerivedAttention()
cyclic = PresentedGroup.cyclic


def shape(group: AbelianGroup) -> tuple[int, tuple[int, ...]]:
    return group.free_rank, group.torsion


def shapes(x: GradedComplex) -> dict[int, tuple[int, tuple[int, ...]]]:
    found = {k: shape(x.homology(k)) for k in x.degrees}
    return {k: g for k, g in found.items() if g != (0, ())}


def prime_powers(orders) -> list[int]:
    """The primary decomposition, which does not depend on how summands were chosen."""
    found = []
    for t in orders:
        for p in range(2, t + 1):
            power = 1
            while t % p == 0:
                t, power = t // p, power * p
            if power > 1:
                found.append(power)
    return sorted(found)


def inclusion(
    part: SimplicialComplex, whole: SimplicialComplex, source: GradedComplex, target: GradedComplex
) -> GradedMap:
    maps = simplicial_map(part, whole, {int(v): int(v) for v in part.simplices(0)[:, 0]})
    return GradedMap(source, target, dict(enumerate(maps)))


def reduced(space: SimplicialComplex) -> GradedComplex:
    """The augmented chains: homology is reduced."""
    chain = space.chain_complex
    return GradedComplex(
        ChainComplex([np.ones((1, chain.count(0)), int), *(chain.boundary(k) for k in range(1, len(chain.counts)))]), -1
    )


# --- RHom --------------------------------------------------------------------------------------------------
@given(st.integers(1, 30), st.integers(1, 30))
def test_hom_and_ext_of_finite_cyclic_groups(m, n):
    found = DERIVED.derived_mapping(cyclic(m), cyclic(n))
    g = math.gcd(m, n)
    assert shape(found.value.ext(0)) == shape(found.value.ext(1)) == (0, (g,) if g > 1 else ())
    assert shape(found.value.ext(2)) == shape(found.value.ext(-1)) == (0, ())
    assert found.verify() == 0


@given(st.integers(1, 12))
def test_hom_and_ext_with_the_integers(m):
    into = DERIVED.derived_mapping(cyclic(m), cyclic(0)).value
    assert shape(into.ext(0)) == (0, ()) and shape(into.ext(1)) == (0, (m,) if m > 1 else ())
    out = DERIVED.derived_mapping(cyclic(0), cyclic(m)).value
    assert shape(out.ext(0)) == (0, (m,) if m > 1 else ()) and shape(out.ext(1)) == (0, ())


@given(st.data())
def test_hom_and_ext_are_additive_and_do_not_depend_on_the_presentation(data):
    orders = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=3))
    n = data.draw(st.integers(2, 8))
    relations = [[t if i == j else 0 for j in range(len(orders))] for i, t in enumerate(orders)]
    # a further relation and a change of generators: the same group
    change = np.array([[int(i == j) + (j > i) for j in range(len(orders))] for i in range(len(orders))])
    columns = (change @ np.array(relations).T).T.tolist()
    columns.append([sum(c) for c in zip(*columns)])
    whole = DERIVED.derived_mapping(PresentedGroup(len(orders), tuple(map(tuple, columns))), cyclic(n)).value
    for k in (0, 1):
        parts = [DERIVED.derived_mapping(cyclic(t), cyclic(n)).value.ext(k) for t in orders]
        assert prime_powers(whole.ext(k).torsion) == prime_powers([t for part in parts for t in part.torsion])
        assert whole.ext(k).free_rank == 0


SPACES = {"torus": torus(), "RP²": projective_plane(), "S²": sphere(2), "Moore 3": moore_space(3)}


@pytest.mark.parametrize("name", SPACES)
def test_maps_out_of_the_integers_are_the_target(name):
    space = SPACES[name]
    found = DERIVED.derived_mapping(cyclic(0), space).value
    assert {k: g for k, g in shapes(found.complex).items()} == shapes(GradedComplex.of(space))


@pytest.mark.parametrize("name", SPACES)
def test_maps_into_the_integers_are_cohomology_and_obey_universal_coefficients(name):
    space = SPACES[name]
    found = DERIVED.derived_mapping(space, cyclic(0)).value
    below = homology(space).value
    for k, group in enumerate(cohomology(space).value):
        assert shape(found.ext(k)) == shape(group)
        torsion = below[k - 1].torsion if k else ()
        assert shape(found.ext(k)) == (below[k].free_rank, torsion)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_maps_into_a_cyclic_group_obey_universal_coefficients(n):
    space = moore_space(4)
    found = DERIVED.derived_mapping(space, cyclic(n)).value
    for k, group in enumerate(homology(space).value):
        hom = [n] * group.free_rank + [math.gcd(n, t) for t in group.torsion]
        before = homology(space).value[k - 1].torsion if k else ()
        ext = [math.gcd(n, t) for t in before]
        assert prime_powers(found.ext(k).torsion) == prime_powers(hom + ext)


def test_a_complex_of_a_presented_group_has_it_as_its_only_homology():
    group = PresentedGroup(2, ((2, 4), (4, 8), (0, 3)))
    resolution = DERIVED.resolve(group)
    assert shapes(resolution) == {0: (0, (6,))}
    found = homology(projective_plane()).value[1]
    assert shapes(DERIVED.resolve(PresentedGroup.of(found))) == {0: (0, (2,))}
    with pytest.raises(ComplexError, match="as many entries"):
        DERIVED.resolve(PresentedGroup(2, ((1,),)))
    with pytest.raises(AnalysisError, match="finitely generated"):
        PresentedGroup.of(homology(projective_plane(), 2).value[1])


def test_the_budget_stops_a_mapping_complex_before_it_is_made():
    with pytest.raises(BudgetError):
        DerivedAttention(Cost(1e-6)).derived_mapping(torus(), torus())


def test_planted_equivalences_of_a_mapping_complex_are_caught():
    witness = DERIVED.derived_mapping(cyclic(4), cyclic(6)).witness
    model = tuple(m * 3 for m in witness.model)
    assert verify(dataclasses.replace(witness, model=model)) > 0


def test_cones_and_shifts():
    x = GradedComplex.of(torus())
    assert cone(GradedMap.identity(x)).is_acyclic
    assert shapes(shifted(x, 3)) == {k + 3: g for k, g in shapes(x).items()}
    identity_maps = hom_complex(GradedComplex.of(simplex(2)), GradedComplex.of(simplex(3)))
    assert shapes(identity_maps) == {0: (1, ())}


# --- homotopy limits and colimits --------------------------------------------------------------------------
ZERO = GradedComplex(ChainComplex([], [0]))


def corner(x: GradedComplex, y: GradedComplex, f: GradedMap, g: GradedMap) -> Diagram:
    """a → c ← b."""
    return Diagram({"a": x, "b": y, "c": f.target}, {("a", "c"): f, ("b", "c"): g})


@pytest.mark.parametrize("name", SPACES)
def test_the_limit_of_two_points_over_a_space_is_its_loops(name):
    x = reduced(SPACES[name])
    zeros = [GradedComplex(ChainComplex([], [0])) for _ in range(2)]
    found = DERIVED.homotopy_limit(corner(*zeros, *(GradedMap(z, x, {}) for z in zeros)))
    assert shapes(found.value) == {k - 1: g for k, g in shapes(x).items()}
    assert found.verify() == 0


def halves(whole: SimplicialComplex) -> tuple[SimplicialComplex, SimplicialComplex, SimplicialComplex]:
    """Two subcomplexes that cover, and their intersection: the star of a vertex and what has no cell at it."""
    top = whole.simplices(whole.dimension).tolist()
    star, rest = [c for c in top if c[0] == 0], [c for c in top if c[0] != 0]
    u, v = from_maximal_simplices(star), from_maximal_simplices(rest)
    common = [c for k in range(u.dimension + 1) for c in u.simplices(k).tolist() if v.index([c])[0] >= 0]
    return u, v, from_maximal_simplices(common)


@pytest.mark.parametrize("name", SPACES)
def test_a_union_is_the_homotopy_colimit_of_its_parts(name):
    whole = SPACES[name]
    u, v, common = halves(whole)
    cu, cv, cw = (GradedComplex.of(s) for s in (u, v, common))
    diagram = Diagram(
        {"w": cw, "u": cu, "v": cv},
        {("w", "u"): inclusion(common, u, cw, cu), ("w", "v"): inclusion(common, v, cw, cv)},
    )
    found = DERIVED.homotopy_colimit(diagram)
    assert shapes(found.value) == shapes(GradedComplex.of(whole))
    assert found.verify() == 0


@pytest.mark.parametrize("name", SPACES)
def test_the_limit_of_a_corner_is_the_mapping_cocone_and_the_intersection_of_the_parts(name):
    """For u → x ← v with x the union, the pullback of chains is the intersection: Mayer and Vietoris."""
    whole = SPACES[name]
    u, v, common = halves(whole)
    cu, cv, cx = (GradedComplex.of(s) for s in (u, v, whole))
    f, g = inclusion(u, whole, cu, cx), inclusion(v, whole, cv, cx)
    limit = DERIVED.homotopy_limit(corner(cu, cv, f, g)).value
    assert shapes(limit) == shapes(homotopy_pullback(f, g)) == shapes(GradedComplex.of(common))
    assert sum((-1) ** k * limit.dim(k) for k in limit.degrees) == (
        u.euler_characteristic + v.euler_characteristic - whole.euler_characteristic
    )


def test_a_poset_with_a_least_element_has_its_complex_as_limit_and_one_with_a_greatest_as_colimit():
    x, y, z = (GradedComplex.of(s) for s in (torus(), sphere(1), sphere(2)))
    below = Diagram({0: x, 1: y, 2: z}, {(0, 1): GradedMap(x, y, {}), (0, 2): GradedMap(x, z, {})})
    assert shapes(DERIVED.homotopy_limit(below).value) == shapes(x)
    above = Diagram({0: x, 1: y, 2: z}, {(1, 0): GradedMap(y, x, {}), (2, 0): GradedMap(z, x, {})})
    assert shapes(DERIVED.homotopy_colimit(above).value) == shapes(x)
    chain = Diagram({0: x, 1: y, 2: z}, {(0, 1): GradedMap(x, y, {}), (1, 2): GradedMap(y, z, {})})
    assert (0, 2) in chain.maps
    assert shapes(DERIVED.homotopy_limit(chain).value) == shapes(x)
    assert shapes(DERIVED.homotopy_colimit(chain).value) == shapes(z)


@pytest.mark.parametrize("order", [0, 2, 3])
def test_integers_over_a_circle_have_its_homology_also_where_they_are_twisted(order):
    """Over the faces of a circle, with multiplication by 1 − order once round: coinvariants Z/order."""
    unit = GradedComplex(ChainComplex([], [1]))
    faces = [("v", i) for i in range(3)] + [("e", i) for i in range(3)]
    maps = {(("v", (i + s) % 3), ("e", i)): GradedMap.identity(unit) for i in range(3) for s in (0, 1)}
    maps[("v", 0), ("e", 0)] = GradedMap(unit, unit, {0: [[1 - order]]})
    diagram = Diagram(dict.fromkeys(faces, unit), maps)
    twisted = {0: (0, (order,))}
    assert shapes(DERIVED.homotopy_colimit(diagram).value) == (twisted if order else {0: (1, ()), 1: (1, ())})
    below = {-1: (0, (order,))}
    assert shapes(DERIVED.homotopy_limit(diagram).value) == (below if order else {0: (1, ()), -1: (1, ())})


def test_diagrams_that_do_not_commute_or_have_cycles_are_refused():
    unit = GradedComplex(ChainComplex([], [1]))
    one, two = GradedMap.identity(unit), GradedMap(unit, unit, {0: [[2]]})
    with pytest.raises(AnalysisError, match="commute"):
        Diagram(dict.fromkeys("abcd", unit), {("a", "b"): one, ("b", "d"): one, ("a", "c"): one, ("c", "d"): two})
    with pytest.raises(AnalysisError, match="cycle"):
        Diagram(dict.fromkeys("ab", unit), {("a", "b"): one, ("b", "a"): one})
    with pytest.raises(AnalysisError, match="not there"):
        Diagram({"a": unit}, {("a", "b"): one})
    with pytest.raises(AnalysisError, match="join"):
        Diagram({"a": unit, "b": ZERO}, {("a", "b"): one})
    with pytest.raises(ComplexError, match="commute"):
        GradedMap(GradedComplex.of(sphere(1)), GradedComplex.of(sphere(1)), {0: sparse.eye_array(3)})


def test_a_poset_with_too_many_chains_is_undecided():
    unit = GradedComplex(ChainComplex([], [1]))
    one = GradedMap.identity(unit)
    diagram = Diagram(dict.fromkeys(range(15), unit), {(i, j): one for i in range(15) for j in range(i + 1, 15)})
    assert isinstance(DERIVED.homotopy_limit(diagram).value, Undecided)
    assert isinstance(DERIVED.homotopy_colimit(diagram).value, Undecided)


def test_maps_and_boundaries_that_are_not_integral_or_have_no_place_are_refused():
    point = GradedComplex.of(simplex(0))
    for matrix in ([[0.5]], np.array([[10**30]], dtype=object), [1], [[float("nan")]]):
        with pytest.raises(ComplexError):
            GradedMap(point, point, {0: matrix})
    for dims, maps in (({}, {1: [[1]]}), ({0: 1}, {1: [[1]]}), ({0: -1}, {})):
        with pytest.raises(ComplexError):
            GradedComplex.from_boundaries(dims, maps)
    with pytest.raises(ComplexError, match="0 or more"):
        DERIVED.resolve(PresentedGroup(-1))
