"""Fundamental groups, π₂, π₃ and rational homotopy of spaces whose groups are known."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sympy.combinatorics.fp_groups import FpGroup
from sympy.combinatorics.free_groups import free_group

from aatc.passes.analysis import spaces
from aatc.passes.analysis.complexes import SimplicialComplex, flag_complex, from_maximal_simplices
from aatc.passes.analysis.fundamental_group import fundamental_group
from aatc.passes.analysis.homology import homology
from aatc.passes.analysis.homotopy_groups import components, gamma, homotopy_groups, persistent_components
from aatc.passes.analysis.presentation import Presentation, canonical, coset_table, cyclically_reduced, inverse
from aatc.passes.analysis.rational_homotopy import RationalModel, homotopy_ranks, rational_homotopy
from aatc.passes.analysis.result import AnalysisError, Undecided


def product(one: SimplicialComplex, two: SimplicialComplex) -> SimplicialComplex:
    """Chains in the product of the vertex orders that project to simplices: a triangulation of the product."""
    width = int(max(two.simplices(0).max(), 0)) + 1
    tops = []
    for a in one.simplices(one.dimension).tolist():
        for b in two.simplices(two.dimension).tolist():
            p, q = len(a) - 1, len(b) - 1
            for ups in itertools.combinations(range(p + q), p):
                path, i, j = [(0, 0)], 0, 0
                for step in range(p + q):
                    i, j = (i + 1, j) if step in ups else (i, j + 1)
                    path.append((i, j))
                tops.append(tuple(a[i] * width + b[j] for i, j in path))
    return from_maximal_simplices(tops)


# --- presentations -----------------------------------------------------------------------------------------
KNOWN = {
    "cyclic 12": (Presentation(1, ((1,) * 12,)), 12),
    "dihedral 10": (Presentation(2, ((1, 1), (2, 2), (1, 2) * 5)), 10),
    "quaternion": (Presentation(2, ((1, 1, -2, -2), (1, 2, 1, -2))), 8),
    "symmetric 4": (Presentation(3, ((1, 1), (2, 2), (3, 3), (1, 2) * 3, (2, 3) * 3, (1, 3) * 2)), 24),
    "alternating 5": (Presentation(2, ((1, 1), (2, 2, 2), (1, 2) * 5)), 60),
    "binary icosahedral": (Presentation(2, ((1,) * 5 + (-2,) * 3, (-1, -2, -1, -2, *(1,) * 5)[::-1])), 120),
    "trivial in disguise": (Presentation(2, ((1, 2, -1, -2, -2), (2, 1, -2, -1, -1))), 1),
}


@pytest.mark.parametrize("name", KNOWN)
def test_orders_of_known_groups(name):
    p, order = KNOWN[name]
    assert p.order() == order
    assert p.simplified().order() == order


def test_coset_tables_are_permutations_that_satisfy_the_relators():
    p, order = KNOWN["symmetric 4"]
    for subgroup, index in (((), order), (((1,),), 12), (((1,), (2,)), 4)):
        table = coset_table(p, subgroup)
        assert len(table) == index
        rows = np.array(table)
        for g in range(3):
            assert (rows[rows[:, 2 * g], 2 * g + 1] == np.arange(index)).all()
        for w in p.relators:
            at = np.arange(index)
            for g in w:
                at = rows[at, 2 * (abs(g) - 1) + (g < 0)]
            assert (at == np.arange(index)).all()


def test_enumeration_gives_up_at_its_bound_and_says_so():
    found = KNOWN["binary icosahedral"][0].order(bound=40)
    assert isinstance(found, Undecided) and found.bound == "40 cosets"


words = st.lists(st.sampled_from([-2, -1, 1, 2]), min_size=1, max_size=6).map(tuple)


@given(st.lists(words, min_size=2, max_size=4))
def test_orders_agree_with_sympy_and_survive_tietze_moves(relators):
    p = Presentation(2, tuple(relators))
    order = p.order(bound=400)
    simple = p.simplified()
    _, a, b = free_group("a, b")
    named = {1: a, -1: a**-1, 2: b, -2: b**-1}
    other = FpGroup(a.group, [math.prod((named[g] for g in w), start=a.group.identity) for w in relators])
    if isinstance(order, Undecided):
        return
    assert simple.order(bound=4000) == order
    if order != float("inf"):
        assert other.order() == order


@given(words)
def test_cyclic_words_have_one_canonical_form(word):
    w = cyclically_reduced(word)
    for turned in [w[i:] + w[:i] for i in range(len(w))]:
        assert canonical(turned) == canonical(w) == canonical(inverse(turned))


def test_letters_outside_the_generators_are_refused():
    with pytest.raises(AnalysisError, match="beyond ±1"):
        Presentation(1, ((1, 2),))


# --- fundamental groups ------------------------------------------------------------------------------------
SPACES = {
    "sphere": (spaces.sphere(2), 1, (0, ())),
    "projective plane": (spaces.projective_plane(), 2, (0, (2,))),
    "torus": (spaces.torus(), float("inf"), (2, ())),
    "klein bottle": (spaces.klein_bottle(), float("inf"), (1, (2,))),
    "dunce hat": (spaces.dunce_hat(), 1, (0, ())),
    "circle": (spaces.sphere(1), float("inf"), (1, ())),
    "Moore space 5": (spaces.moore_space(5), 5, (0, (5,))),
    "surface of genus 2": (spaces.oriented_surface(2), float("inf"), (4, ())),
    "Poincaré sphere": (spaces.poincare_sphere(), 120, (0, ())),
}


@pytest.mark.parametrize("name", SPACES)
def test_fundamental_groups_of_known_spaces(name):
    x, order, abelian = SPACES[name]
    group = fundamental_group(x)
    assert group.order() == order and group.abelianisation() == abelian


def test_torus_and_klein_bottle_have_their_one_relator():
    assert {canonical(w) for w in fundamental_group(spaces.torus()).presentation.relators} == {
        canonical((1, 2, -1, -2))
    }
    (relator,) = fundamental_group(spaces.klein_bottle()).presentation.relators
    assert len(relator) == 4 and canonical(relator) != canonical((1, 2, -1, -2))


def random_complex(seed: int, n: int = 9, edge: float = 0.6, triangle: float = 0.5) -> SimplicialComplex:
    rng = np.random.default_rng(seed)
    graph = np.triu(rng.random((n, n)) < edge, 1)
    tops = [(i,) for i in range(n)] + [tuple(e) for e in np.argwhere(graph).tolist()]
    for a, b, c in itertools.combinations(range(n), 3):
        if graph[a, b] and graph[b, c] and graph[a, c] and rng.random() < triangle:
            tops.append((a, b, c))
    return from_maximal_simplices(tops)


@given(st.integers(0, 2**31))
def test_the_abelianised_group_is_the_first_homology_of_the_component(seed):
    x = random_complex(seed)
    group = fundamental_group(x)
    labels = components(x).value
    inside = np.flatnonzero(labels == labels[0])
    part = from_maximal_simplices(
        [t for k in range(x.dimension + 1) for t in map(tuple, x.simplices(k).tolist()) if t[0] in inside]
    )
    h1 = homology(part).value[1] if part.dimension > 0 else None
    want = (h1.free_rank, h1.torsion) if h1 is not None else (0, ())
    assert group.abelianisation() == want


@given(st.integers(0, 2**31))
def test_edge_words_satisfy_every_triangle(seed):
    x = random_complex(seed, triangle=0.3)
    group = fundamental_group(x)
    table = group.presentation.elements(bound=200)
    if isinstance(table, (Undecided, float)):
        return
    rows = np.array(table).reshape(len(table), -1)

    def image(word):
        at = np.arange(len(table))
        for g in word:
            at = rows[at, 2 * (abs(g) - 1) + (g < 0)]
        return at

    for a, b, c in x.simplices(2).tolist():
        ab, bc, ac = (int(x.index(np.array([e]))[0]) for e in ((a, b), (b, c), (a, c)))
        if ab in group.edge_words:
            left = image(group.edge_words[ab] + group.edge_words[bc])
            assert (left == image(group.edge_words[ac])).all()


def test_universal_covers_are_simply_connected_with_order_times_the_cells():
    for name in ("projective plane", "sphere", "Moore space 5", "Poincaré sphere"):
        x, order, _ = SPACES[name]
        cover = fundamental_group(x).universal_cover()
        assert cover.counts == tuple(order * c for c in x.counts)
        assert fundamental_group(cover).order() == 1
    with pytest.raises(AnalysisError, match="infinite"):
        fundamental_group(spaces.torus()).universal_cover()


def test_the_base_point_chooses_the_component():
    x = from_maximal_simplices([(0, 1), (1, 2), (0, 2), (5, 6, 7)])
    assert fundamental_group(x).presentation.generators == 1
    assert fundamental_group(x, 6).presentation.generators == 0
    with pytest.raises(AnalysisError, match="no vertex 3"):
        fundamental_group(x, 3)


# --- higher groups -----------------------------------------------------------------------------------------
def groups(x: SimplicialComplex) -> tuple[str, str]:
    found = homotopy_groups(x).value
    return str(found.second), str(found.third)


def wedge(*spheres: int) -> SimplicialComplex:
    tops, start = [], 1
    for n in spheres:
        names = [0, *range(start, start + n + 1)]
        tops += [tuple(names[i] for i in t) for t in spaces.sphere(n).simplices(n)]
        start += n + 1
    return from_maximal_simplices(tops)


def test_second_and_third_homotopy_groups():
    s2, s3 = spaces.sphere(2), spaces.sphere(3)
    assert groups(s2) == ("Z", "Z")
    assert groups(s3) == ("0", "Z")
    assert groups(spaces.projective_plane()) == ("Z", "Z")
    assert groups(spaces.moore_space(3))[0] == "Z^2"
    assert groups(spaces.poincare_sphere()) == ("0", "Z")
    assert groups(wedge(2, 2)) == ("Z^2", "Z^3")
    assert groups(wedge(2, 3)) == ("Z", "Z^2")
    assert groups(product(s2, s2)) == ("Z^2", "Z^2")
    assert groups(spaces.complex_projective_plane()) == ("Z", "0")


def test_infinite_groups_leave_the_higher_ones_undecided():
    found = homotopy_groups(spaces.torus()).value
    assert found.order == float("inf") and isinstance(found.second, Undecided) and isinstance(found.third, Undecided)


def test_gamma_of_sums_and_torsion():
    x = homotopy_groups(wedge(2, 2)).value.second
    assert gamma(x) == [0, 0, 0]
    torsion = type(x)(2, "Z", 1, (2, 3), (0, 2, 3))
    assert sorted(gamma(torsion)) == [0, 1, 2, 3, 3, 4]


def test_rational_homotopy_of_spheres_and_wedges():
    assert rational_homotopy(spaces.sphere(2), 8).value == (1, 1, 0, 0, 0, 0, 0)
    assert rational_homotopy(spaces.sphere(3), 7).value == (0, 1, 0, 0, 0, 0)
    assert rational_homotopy(spaces.sphere(4), 8).value == (0, 0, 1, 0, 0, 1, 0)
    assert rational_homotopy(wedge(2, 2), 7).value == (2, 3, 2, 3, 6, 11)


@pytest.mark.slow
def test_rational_homotopy_sees_the_cup_product():
    s2 = spaces.sphere(2)
    assert rational_homotopy(spaces.complex_projective_plane(), 7).value == (1, 0, 0, 1, 0, 0)
    assert rational_homotopy(product(s2, s2), 6).value == (2, 2, 0, 0, 0)


def test_free_graded_lie_algebras_have_witt_ranks():
    def witt(k: int, n: int) -> int:
        from sympy import mobius

        return sum(int(mobius(d)) * k ** (n // d) for d in range(1, n + 1) if n % d == 0) // n

    for k in (2, 3):  # generators of degree 2: the signs of the graded case do not occur
        betti = [k ** (i // 2) if i % 2 == 0 else 0 for i in range(13)]
        assert homotopy_ranks(betti) == tuple(witt(k, i // 2) if i % 2 == 0 else 0 for i in range(1, 13))


def heisenberg() -> SimplicialComplex:
    """A complex homotopy equivalent to the Heisenberg nilmanifold: the torus times an interval, its ends glued by the
    shear (x, y) → (x + y, y), as two mapping cylinders of a fine grid over a coarse one, joined by a prism."""
    n = 3

    def fine(i: int, j: int) -> tuple[str, int, int]:
        return ("K", i % (2 * n), j % (2 * n))

    def coarse(name: str, i: int, j: int) -> tuple[str, int, int]:
        return (name, i // 2 % n, j // 2 % n)

    grid = []
    for i, j in itertools.product(range(2 * n), repeat=2):
        grid += [[(i, j), (i + 1, j), (i + 1, j + 1)], [(i, j), (i, j + 1), (i + 1, j + 1)]]
    maps = {"L": lambda i, j: coarse("L", i + j, j), "M": lambda i, j: coarse("M", i, j)}
    tops: list[list] = []
    for name in "LM":
        for t in grid:
            tops += [[fine(*p) for p in t[: c + 1]] + [maps[name](*p) for p in t[c:]] for c in range(3)]
    for i, j in itertools.product(range(n), repeat=2):
        for t in ([(i, j), (i + 1, j), (i + 1, j + 1)], [(i, j), (i, j + 1), (i + 1, j + 1)]):
            ends = {x: [(x, a % n, b % n) for a, b in t] for x in "LM"}
            tops += [ends["L"][: c + 1] + ends["M"][c:] for c in range(3)]
    names = {v: k for k, v in enumerate(sorted({v for t in tops for v in t}))}
    return from_maximal_simplices([tuple(sorted({names[v] for v in t})) for t in tops])


@pytest.mark.slow
def test_massey_products_enter_the_operations_and_the_bar_differential_squares_to_zero():
    x = heisenberg()
    assert [str(g) for g in homology(x).value] == ["Z", "Z^2", "Z^2", "Z"]
    model = RationalModel(x)
    letters = range(len(model.generators))
    threes = [w for w in itertools.product(letters, repeat=3) if model.operation(w)]
    assert threes, "the Heisenberg manifold has Massey products"
    ones = [g for g in letters if model.generators[g].degree == 1]
    for word in [*itertools.product(letters, repeat=3), *itertools.product(ones, repeat=4)]:
        total: dict = {}
        for middle, value in model.differential(word).items():
            for end, other in model.differential(middle).items():
                total[end] = total.get(end, 0) + value * other
        assert not any(total.values()), word


def test_rational_homotopy_refuses_what_is_not_simply_connected():
    with pytest.raises(AnalysisError, match="order 2"):
        rational_homotopy(spaces.projective_plane())
    with pytest.raises(AnalysisError, match="not connected"):
        rational_homotopy(from_maximal_simplices([(0,), (1,)]))


# --- components --------------------------------------------------------------------------------------------
@given(st.integers(0, 2**31), st.integers(1, 12))
def test_persistent_components_are_those_of_every_threshold(seed, n):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, n))
    found = persistent_components(a).value
    assert len(found.merges) == n - 1
    for t in rng.normal(size=4):
        both = np.maximum(a, a.T) >= t
        reach = np.linalg.matrix_power((both | np.eye(n, dtype=bool)).astype(float), n) > 0
        labels = found.at(t)
        assert ((labels[:, None] == labels[None]) == reach).all()


def test_ten_thousand_edges_collapse():
    graph = np.triu(np.random.default_rng(0).random((200, 200)) < 0.5, 1)
    x = flag_complex(graph | graph.T, 2)
    assert len(x.simplices(1)) > 9900 and len(x.simplices(2)) > 150_000
    assert fundamental_group(x).presentation.generators == 0
