import dataclasses
import time
from itertools import pairwise

import gudhi
import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from sympy.matrices.normalforms import smith_normal_form as sympy_smith

from aatc.passes.analysis.chains import reduction, spaces
from aatc.passes.analysis.chains.complexes import (
    ChainComplex,
    ComplexError,
    flag_complex,
    from_maximal_simplices,
    torus_grid,
)
from aatc.passes.analysis.chains.homology import (
    CoefficientError,
    betti_numbers,
    estimate_cost,
    homology,
    homology_coordinates,
    induced_map,
    minimal_model,
    relative_complex,
    simplicial_map,
)
from aatc.passes.analysis.chains.smith import IntegerMatrixError
from aatc.passes.analysis.cohomology.cohomology import cohomology
from aatc.passes.analysis.result import BudgetError, Cost, verify


@pytest.mark.parametrize(
    "space,groups",
    [
        (spaces.simplex(4), ["Z", "0", "0", "0", "0"]),
        (spaces.sphere(0), ["Z^2"]),
        (spaces.sphere(3), ["Z", "0", "0", "Z"]),
        (spaces.torus(), ["Z", "Z^2", "Z"]),
        (spaces.projective_plane(), ["Z", "Z/2", "0"]),
        (spaces.klein_bottle(), ["Z", "Z ⊕ Z/2", "0"]),
        (spaces.oriented_surface(3), ["Z", "Z^6", "Z"]),
        (spaces.moore_space(6), ["Z", "Z/6", "0"]),
        (spaces.dunce_hat(), ["Z", "0", "0"]),
        (spaces.poincare_sphere(), ["Z", "0", "0", "Z"]),
        (spaces.complex_projective_plane(), ["Z", "0", "Z", "0", "Z"]),
        (spaces.wedge_of_circles_and_sphere(), ["Z", "Z^2", "Z"]),
        (spaces.triangulated_torus(3, 3, 3), ["Z", "Z^3", "Z^3", "Z"]),
    ],
)
def test_integral_homology_of_known_spaces(space, groups):
    assert [str(g) for g in homology(space).value] == groups


def test_coefficients_are_echoed_and_see_torsion():
    plane = spaces.projective_plane()
    assert [str(g) for g in homology(plane, 2).value] == ["F2", "F2", "F2"]
    assert [str(g) for g in homology(plane, "F3").value] == ["F3", "0", "0"]
    assert [str(g) for g in homology(plane, "Q").value] == ["Q", "0", "0"]


@st.composite
def chain_complexes(draw):
    """Random integer complexes with torsion: elementary ones, then a unimodular change of basis in each degree."""
    counts = draw(st.lists(st.integers(0, 5), min_size=2, max_size=4))
    boundaries, used = [], 0
    for low, high in pairwise(counts):
        r = draw(st.integers(0, min(low - used, high)))
        matrix = np.zeros((low, high), int)
        for i in range(r):
            matrix[used + i, i] = draw(st.sampled_from([1, 1, 2, 3, 4, 6]))
        boundaries.append(matrix)
        used = r
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    for k, count in enumerate(counts):
        for _ in range(4 if count > 1 else 0):
            i, j = rng.choice(count, 2, replace=False)
            factor = int(rng.integers(-2, 3))
            if k < len(boundaries):
                boundaries[k][i] += factor * boundaries[k][j]
            if k:
                boundaries[k - 1][:, j] -= factor * boundaries[k - 1][:, i]
    return ChainComplex(boundaries, counts)


def oracle(chain, degree):
    """Free rank and torsion by sympy's Smith normal forms."""

    def factors(k):
        matrix = chain.boundary(k).toarray()
        if not matrix.size:
            return []
        form = sympy_smith(sympy.Matrix(matrix.tolist()), domain=sympy.ZZ)
        return [abs(int(form[i, i])) for i in range(min(form.shape)) if form[i, i]]

    above = factors(degree + 1)
    return chain.count(degree) - len(factors(degree)) - len(above), sorted(d for d in above if d > 1)


@given(chain_complexes())
def test_homology_of_random_complexes_agrees_with_sympy(chain):
    for k, found in enumerate(homology(chain).value):
        free, torsion = oracle(chain, k)
        assert found.free_rank == free
        assert list(found.torsion) == torsion


@given(chain_complexes())
def test_the_equivalence_with_the_minimal_model_verifies(chain):
    assert homology(chain, witness=True).verify() == 0


@given(chain_complexes(), st.sampled_from(["Z", "Q", 2, 3]))
def test_generators_are_cycles_of_their_order_with_unit_coordinates(chain, coeff):
    model = minimal_model(chain)
    for found in homology(model, coeff, representatives=True).value:
        cycles = found.representatives
        assert cycles.shape == (len(found.orders), chain.count(found.degree))
        found_coordinates = homology_coordinates(model, found.degree, cycles, coeff)
        assert (found_coordinates == np.eye(len(cycles), dtype=int)).all()
        rows = chain.boundary(found.degree + 1).toarray()
        for cycle, order in zip(cycles, found.orders):
            if order:
                # order · cycle is a boundary, and no smaller multiple is.
                lattice = sympy.Matrix(np.column_stack([rows, order * cycle]).tolist())
                assert lattice.rank() == np.linalg.matrix_rank(rows)
                assert not homology_coordinates(model, found.degree, order * cycle, coeff).any()


@given(chain_complexes(), st.sampled_from([2, 3]))
def test_universal_coefficients(chain, p):
    integral, modular = homology(chain).value, homology(chain, p).value
    dual, dual_modular = cohomology(chain).value, cohomology(chain, p).value
    for k in range(len(chain.counts)):
        below = integral[k - 1].torsion if k else ()
        tensor = integral[k].free_rank + sum(t % p == 0 for t in integral[k].torsion)
        tor = sum(t % p == 0 for t in below)
        assert modular[k].free_rank == tensor + tor == dual_modular[k].free_rank
        assert dual[k].free_rank == integral[k].free_rank
        assert sorted(dual[k].torsion) == sorted(below)


@given(chain_complexes(), st.sampled_from(["Z", "Q", 2, 5]))
def test_euler_characteristic_is_the_alternating_sum_of_betti_numbers(chain, coeff):
    assert sum((-1) ** k * b for k, b in enumerate(betti_numbers(chain, coeff))) == chain.euler_characteristic


@given(st.integers(0, 10**6), st.integers(4, 14), st.floats(0.2, 0.9), st.sampled_from([2, 3, 11]))
def test_betti_numbers_of_random_flag_complexes_agree_with_gudhi(seed, n, density, p):
    upper = np.triu(np.random.default_rng(seed).random((n, n)) < density, 1)
    complex = flag_complex(upper | upper.T, 3)
    tree = gudhi.SimplexTree()
    for cells in complex.cells:
        for simplex in cells.tolist():
            tree.insert(simplex)
    tree.compute_persistence(homology_coeff_field=p, persistence_dim_max=True)
    want = tree.betti_numbers() + [0] * 4
    assert betti_numbers(complex, p) == tuple(want[: len(complex.cells)])


@given(st.integers(0, 10**6), st.integers(4, 9))
def test_the_equivalence_verifies_on_random_flag_complexes(seed, n):
    upper = np.triu(np.random.default_rng(seed).random((n, n)) < 0.6, 1)
    assert homology(flag_complex(upper | upper.T, 2), witness=True).verify() == 0


@given(st.integers(0, 10**6), st.integers(6, 16), st.floats(0.4, 0.8))
def test_paths_and_values_give_one_morse_boundary(seed, n, density):
    upper = np.triu(np.random.default_rng(seed).random((n, n)) < density, 1)
    chain = flag_complex(upper | upper.T, 3).chain_complex
    matching = reduction.Coreduction(chain)
    by_paths = matching.boundaries()
    ranks = matching._ranks()
    assert [matching._values_at(k, ranks) for k in range(1, len(chain.counts))] == by_paths
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduction, "_SAMPLE", 1)
        assert matching.boundaries() == by_paths


@pytest.mark.parametrize("part", ["boundaries", "model", "inclusion", "projection", "homotopy"])
def test_a_wrong_equivalence_is_caught(part):
    witness = homology(spaces.moore_space(3), witness=True).witness
    assert verify(witness) == 0
    matrices = list(getattr(witness, part))
    degree = 2 if part == "model" else 1
    matrices[degree] = matrices[degree].copy()
    matrices[degree][0, 0] += 1
    assert verify(dataclasses.replace(witness, **{part: tuple(matrices)})) > 0


def test_relative_homology_of_a_disc_modulo_its_rim_is_a_sphere():
    disc = from_maximal_simplices([(0, i, i % 5 + 1) for i in range(1, 6)])
    rim = from_maximal_simplices([(i, i % 5 + 1) for i in range(1, 6)])
    assert [str(g) for g in homology(relative_complex(disc, rim)).value] == ["0", "0", "Z"]
    with pytest.raises(ComplexError):
        relative_complex(rim, disc)


@pytest.mark.parametrize("degree", [-2, -1, 0, 1, 3])
def test_a_map_of_circles_multiplies_by_its_degree(degree):
    m = 12
    source = from_maximal_simplices([(i, (i + 1) % m) for i in range(m)])
    target = from_maximal_simplices([(0, 1), (1, 2), (0, 2)])
    steps = np.sign(degree) * np.arange(m) if abs(degree) < 3 else np.arange(m)
    winding = {i: int(min(steps[i], 3 * degree) if degree > 0 else max(steps[i], 3 * degree)) % 3 for i in range(m)}
    models = minimal_model(source), minimal_model(target)
    found = induced_map(*models, simplicial_map(source, target, winding))
    assert found[0].tolist() == [[1]] and abs(found[1][0, 0]) == abs(degree)
    again = induced_map(*models, simplicial_map(source, target, {i: -w % 3 for i, w in winding.items()}))
    assert again[1][0, 0] == -found[1][0, 0]


def test_inclusion_of_a_boundary_circle_doubles_in_the_moebius_band():
    band = from_maximal_simplices([(0, 1, 3), (1, 3, 4), (1, 2, 4), (2, 4, 5), (2, 3, 5), (0, 3, 5)])
    rim = from_maximal_simplices([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 5)])
    maps = simplicial_map(rim, band, {i: i for i in range(6)})
    assert abs(induced_map(minimal_model(rim), minimal_model(band), maps)[1][0, 0]) == 2
    assert induced_map(minimal_model(rim), minimal_model(band), maps, 2)[1][0, 0] == 0


def test_matrices_that_are_no_chain_map_are_refused():
    model = minimal_model(spaces.torus())
    maps = [np.eye(c, dtype=int) for c in model.chain.counts]
    maps[1][0, 0] = -1
    with pytest.raises(ComplexError, match="commute"):
        induced_map(model, model, maps)


@pytest.mark.parametrize("coeff,error", [("R", CoefficientError), (4, IntegerMatrixError), (True, CoefficientError)])
def test_unknown_coefficients_are_refused(coeff, error):
    with pytest.raises(error):
        homology(spaces.torus(), coeff)


def test_an_estimate_above_the_budget_stops_before_the_work():
    torus = spaces.torus()
    with pytest.raises(BudgetError):
        homology(torus, budget=Cost(seconds=1e-6))
    assert homology(torus, budget=Cost(seconds=60.0)).value[1].free_rank == 2
    assert estimate_cost(200_000).seconds > estimate_cost(1000).seconds


@pytest.mark.slow
def test_homology_of_a_large_three_torus():
    torus = spaces.triangulated_torus(14, 15, 15)
    assert sum(torus.counts) == 81900
    model = minimal_model(torus)
    groups = homology(model, representatives=True).value
    assert [str(g) for g in groups] == ["Z", "Z^3", "Z^3", "Z"]
    cycles = groups[1].representatives
    assert not (torus.boundary(1) @ cycles.T.astype(np.int64)).any()


@pytest.mark.parametrize(("coeff", "entry"), [("Z", 0.5), (2, 0.5), ("Z", np.nan), ("Q", np.nan), ("Q", np.inf)])
def test_entries_that_are_no_coefficients_have_no_coordinates(coeff, entry):
    model = minimal_model(spaces.torus())
    with pytest.raises(ComplexError, match="is not"):
        homology_coordinates(model, 0, [[entry] * 7], coeff)
    assert homology_coordinates(model, 0, [[2.0] * 7], coeff).tolist() == [[0 if coeff == 2 else 14]]


def test_digits_that_are_no_number_name_no_coefficients():
    with pytest.raises(CoefficientError):
        homology(spaces.torus(), "F²")


def test_an_equivalence_is_checked_in_about_the_time_that_it_is_made():
    before = time.process_time()
    whole = homology(torus_grid(20, 20), witness=True)
    made = time.process_time() - before
    assert whole.verify() == 0
    assert time.process_time() - before < 8 * made + 1  # full products of Python integers: 30 times as long
