"""Higher homotopy groups of lens spaces, suspensions, connected sums and directed complexes, and their witnesses."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from aatc.passes.analysis.chains import spaces
from aatc.passes.analysis.chains.complexes import SimplicialComplex, directed_flag_complex, from_maximal_simplices
from aatc.passes.analysis.chains.homology import homology
from aatc.passes.analysis.homotopy import rational_homotopy as rational
from aatc.passes.analysis.homotopy.fundamental_group import fundamental_group
from aatc.passes.analysis.homotopy.homotopy_groups import homotopy_groups
from aatc.passes.analysis.homotopy.rational_homotopy import RationalModel, homotopy_ranks, rational_homotopy
from aatc.passes.analysis.result import AnalysisError, Undecided, verify
from tests.analysis.test_homotopy_groups import groups, product, wedge


def relabelled(tops) -> SimplicialComplex:
    names: dict = {}
    return from_maximal_simplices([tuple(sorted(names.setdefault(v, len(names)) for v in t)) for t in tops])


def simplices_of(x: SimplicialComplex) -> list[tuple[int, ...]]:
    return [tuple(c) for cells in x.cells for c in cells.tolist()]


def subdivided(tops) -> list[tuple[frozenset, ...]]:
    return [tuple(frozenset(p[: k + 1]) for k in range(len(p))) for t in tops for p in itertools.permutations(t)]


def suspension(x: SimplicialComplex) -> SimplicialComplex:
    n = int(x.simplices(0).max()) + 1
    return from_maximal_simplices([(*t, pole) for t in simplices_of(x) for pole in (n, n + 1)])


def wedge_of(one: SimplicialComplex, two: SimplicialComplex) -> SimplicialComplex:
    """The last vertex of one is the first of two."""
    n = int(one.simplices(0).max())
    return from_maximal_simplices(simplices_of(one) + [tuple(v + n for v in t) for t in simplices_of(two)])


def connected_sum(one: SimplicialComplex, two: SimplicialComplex) -> SimplicialComplex:
    tops, others = (list(map(tuple, x.simplices(x.dimension).tolist())) for x in (one, two))
    glued = dict(zip(others[0], tops[0]))
    return relabelled(tops[1:] + [[glued.get(v, ("two", v)) for v in t] for t in others[1:]])


def lens_space(p: int, q: int) -> SimplicialComplex:
    """L(p, q): the join of two circles of 3p edges, subdivided, modulo turning them by 3 and 3q edges."""
    m = 3 * p
    tops = [(("a", i), ("a", (i + 1) % m), ("b", j), ("b", (j + 1) % m)) for i in range(m) for j in range(m)]

    @functools.cache
    def orbit(cell):
        turns = ([(c, (i + 3 * k * (1 if c == "a" else q)) % m) for c, i in cell] for k in range(p))
        return min(tuple(sorted(t)) for t in turns)

    return relabelled({frozenset(map(orbit, t)) for t in subdivided(tops)})


def quaternion_quotient() -> SimplicialComplex:
    """S³/Q8: the boundary of the cross-polytope on ±1, ±i, ±j, ±k, subdivided twice, modulo multiplication from the
    left."""
    units = [(s, a) for s in (1, -1) for a in range(4)]

    def times(x, y):
        if 0 in (x[1], y[1]):
            return x[0] * y[0], x[1] + y[1]
        if x[1] == y[1]:
            return -x[0] * y[0], 0
        return x[0] * y[0] * (1 if (y[1] - x[1]) % 3 == 1 else -1), 6 - x[1] - y[1]

    def moved(g, cell):
        return times(g, cell) if isinstance(cell, tuple) else tuple(sorted(moved(g, c) for c in cell))

    @functools.cache
    def orbit(cell):
        return min(moved(g, cell) for g in units)

    tops = [tuple(zip(signs, range(4))) for signs in itertools.product((1, -1), repeat=4)]
    return relabelled({frozenset(map(orbit, t)) for t in subdivided(subdivided(tops))})


# --- spaces ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "make, order",
    [
        pytest.param(lambda: lens_space(2, 1), 2, id="RP³"),
        pytest.param(lambda: lens_space(3, 1), 3, id="L(3, 1)"),
        pytest.param(quaternion_quotient, 8, id="S³/Q8", marks=pytest.mark.slow),
    ],
)
def test_spherical_space_forms_have_the_higher_groups_of_the_sphere(make, order):
    found = homotopy_groups(make())
    assert found.value.order == order
    assert (str(found.value.second), str(found.value.third)) == ("0", "Z")
    assert found.verify() == 0


def test_suspensions_have_gamma_of_their_torsion():
    assert groups(suspension(spaces.projective_plane())) == ("Z/2", "Z/4")
    assert groups(suspension(spaces.moore_space(3))) == ("Z/3", "Z/3")
    assert groups(suspension(spaces.moore_space(6))) == ("Z/6", "Z/12")
    assert groups(suspension(suspension(spaces.projective_plane()))) == ("0", "Z/2")


def test_an_extension_is_decided_just_where_the_orders_are_coprime():
    two = suspension(spaces.projective_plane())
    assert groups(wedge_of(two, suspension(suspension(spaces.moore_space(3))))) == ("Z/2", "Z/12")
    open_ = homotopy_groups(wedge_of(two, suspension(two))).value
    assert isinstance(open_.third, Undecided) and "extension of Z/2 by Z/4" in open_.third.reason


def test_a_class_of_degree_four_over_torsion_is_left_undecided():
    found = homotopy_groups(suspension(lens_space(3, 1))).value
    assert str(found.second) == "Z/3" and isinstance(found.third, Undecided)


def test_intersection_forms_of_connected_sums_and_covers_enter_the_third_group():
    s2, plane = spaces.sphere(2), spaces.complex_projective_plane()
    assert groups(connected_sum(plane, plane)) == ("Z^2", "Z^2")
    assert groups(product(s2, spaces.projective_plane())) == ("Z^2", "Z^2")
    assert groups(wedge_of(spaces.projective_plane(), spaces.sphere(3))) == ("Z", "Z^3")
    assert isinstance(homotopy_groups(product(s2, spaces.sphere(1))).value.second, Undecided)


# --- directed complexes ------------------------------------------------------------------------------------
def test_directed_simplices_with_the_same_vertices_stay_apart():
    # all injective words in n letters: a wedge of (n − 1)-spheres, one for each derangement
    assert groups(directed_flag_complex(np.ones((3, 3)), 2)) == ("Z^2", "Z^3")
    assert groups(directed_flag_complex(np.ones((4, 4)), 3)) == ("0", "Z^9")


def test_covers_of_directed_complexes_have_all_the_cells():
    plane = spaces.projective_plane()
    words = [list(itertools.permutations((5, 6, 7), k + 1)) for k in range(3)]
    x = SimplicialComplex([[*map(tuple, plane.simplices(k).tolist()), *words[k]] for k in range(3)])
    cover = fundamental_group(x).universal_cover()
    assert cover.counts == tuple(2 * c for c in x.counts)
    assert [str(g) for g in homology(cover).value] == ["Z", "0", "Z^5"]
    found = homotopy_groups(x)
    assert (str(found.value.second), str(found.value.third)) == ("Z^5", "Z^15") and found.verify() == 0


# --- witnesses ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("base, second", [(0, "Z"), (20, "Z^4")])
def test_a_cover_is_checked_again_and_planted_errors_are_caught(base, second):
    parts = [spaces.projective_plane(), spaces.moore_space(5)]
    x = from_maximal_simplices([tuple(v + 20 * n for v in t) for n, y in enumerate(parts) for t in simplices_of(y)])
    found = homotopy_groups(x, base)
    assert str(found.value.second) == second and found.verify() == 0
    w = found.witness
    rank, torsion = w.second
    planted = [
        dataclasses.replace(w, second=(rank + 1, torsion)),
        dataclasses.replace(w, second=(rank, (2,))),
        dataclasses.replace(w, sheets=1),
        dataclasses.replace(w, cover=w.cover[:2]),
        # one sheet per element without the edges between the sheets: not connected
        dataclasses.replace(w, cover=tuple(
            np.concatenate([b * w.sheets + s for s in range(w.sheets)]) for b in w.base)),
    ]  # fmt: skip
    turned = w.cover[2].copy()
    turned[0, 2] = turned[0, 2] // w.sheets * w.sheets + (turned[0, 2] + 1) % w.sheets
    planted.append(dataclasses.replace(w, cover=(*w.cover[:2], turned)))
    assert all(verify(p) > 0 for p in planted)


LOOPS = {
    "point": (spaces.simplex(0), 5, (0, 0, 0, 0)),
    "S²": (spaces.sphere(2), 6, (1, 1, 0, 0, 0)),
    "S² ∨ S³": (wedge(2, 3), 7, (1, 2, 1, 1, 2, 3)),
    "CP²": (spaces.complex_projective_plane(), 7, (1, 0, 0, 1, 0, 0)),
    "CP² # CP²": (connected_sum(*[spaces.complex_projective_plane()] * 2), 6, (2, 2, 0, 0, 0)),
    "CP² ∨ S²": (wedge_of(spaces.complex_projective_plane(), spaces.sphere(2)), 6, (2, 2, 1, 2, 3)),
    "ΣRP² ∨ S²": (wedge_of(suspension(spaces.projective_plane()), spaces.sphere(2)), 6, (1, 1, 0, 0, 0)),
    "S² × S³": (product(spaces.sphere(2), spaces.sphere(3)), 6, (1, 2, 0, 0, 0)),
}


@pytest.mark.parametrize("name", LOOPS)
def test_rational_groups_come_with_a_bar_complex_that_is_checked_again(name):
    space, top, ranks = LOOPS[name]
    found = rational_homotopy(space, top)
    assert found.value == ranks and found.verify() == 0
    w = found.witness
    assert verify(dataclasses.replace(w, ranks=(*w.ranks[:-1], w.ranks[-1] + 1))) > 0
    assert verify(dataclasses.replace(w, words=(*w.words[:-1], w.words[-1] + 1))) > 0
    if any(image for images in w.differentials for image in images):
        nothing = tuple(tuple({} for _ in images) for images in w.differentials)
        assert verify(dataclasses.replace(w, differentials=nothing)) > 0


def test_what_has_no_finite_bar_complex_or_no_loop_space_is_refused(monkeypatch):
    with pytest.raises(AnalysisError, match="H¹"):
        RationalModel(spaces.torus()).loop_betti(2)
    for numbers in ([2, 1], [1, 2, 0]):
        with pytest.raises(AnalysisError):
            homotopy_ranks(numbers)
    with pytest.raises(AnalysisError, match="top is 0"):
        rational_homotopy(spaces.sphere(2), 0)
    monkeypatch.setattr(rational, "CELLS", 5)
    assert isinstance(rational_homotopy(spaces.sphere(2)).value, Undecided)
