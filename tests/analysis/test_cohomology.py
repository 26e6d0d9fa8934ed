import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.chains import spaces
from aatc.passes.analysis.chains.complexes import ComplexError, flag_complex, torus_grid
from aatc.passes.analysis.chains.cup import cup
from aatc.passes.analysis.chains.homology import homology
from aatc.passes.analysis.cohomology.cohomology import CohomologyStructure, DifferentialForm, cocycle_witness
from aatc.passes.analysis.result import verify

SPACES = [
    spaces.torus(),
    spaces.projective_plane(),
    spaces.klein_bottle(),
    spaces.moore_space(3),
    spaces.complex_projective_plane(),
    spaces.wedge_of_circles_and_sphere(),
    spaces.poincare_sphere(),
]


@st.composite
def complexes_with_forms(draw, degrees=(0, 1, 2)):
    n, seed = draw(st.integers(4, 8)), draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((n, n)) < 0.8, 1)
    complex = flag_complex(upper | upper.T, 3)
    return complex, [rng.integers(-9, 10, complex.count(k)) for k in degrees], rng


@given(complexes_with_forms())
def test_the_derivative_of_a_derivative_is_zero_and_stokes_holds(drawn):
    complex, forms, rng = drawn
    structure = CohomologyStructure(complex)
    for k, values in enumerate(forms):
        form = structure.form(k, values)
        derivative = structure.exterior_derivative(form)
        chain = rng.integers(-9, 10, complex.count(k + 1))
        assert derivative.integrate(chain) == form.integrate(complex.boundary(k + 1) @ chain)
        assert not structure.exterior_derivative(derivative).values.any()


@given(complexes_with_forms((0, 1, 2, 1)), st.sampled_from([0, 2, 5]))
def test_cup_products_obey_leibniz_and_associate(drawn, p):
    complex, (f, a, b, c), _ = drawn
    d = complex.chain_complex.coboundary

    def reduced(x):
        return x % p if p else x

    for x, i, y, j in ((f, 0, a, 1), (a, 1, c, 1), (f, 0, b, 2), (a, 1, f, 0)):
        left = d(i + j) @ cup(complex, x, i, y, j)
        right = cup(complex, d(i) @ x, i + 1, y, j) + (-1) ** i * cup(complex, x, i, d(j) @ y, j + 1)
        assert (reduced(left) == reduced(right)).all()
        assert (cup(complex, x, i, y, j, p) == reduced(cup(complex, x, i, y, j))).all()
    one = cup(complex, cup(complex, a, 1, c, 1), 2, a, 1)
    two = cup(complex, a, 1, cup(complex, c, 1, a, 1), 2)
    assert (one == two).all()


@pytest.mark.parametrize("coeff", ["Z", "Q", 2, 3])
@pytest.mark.parametrize("space", SPACES)
def test_cocycles_are_independent_by_their_dual_cycles(space, coeff):
    structure = CohomologyStructure(space, coeff)
    for k in range(space.dimension + 1):
        found = structure.cohomology_classes(k)
        assert found.coeff == structure.coeff and found.representatives.shape == (len(found.orders), space.count(k))
        assert verify(cocycle_witness(structure.model, k, coeff)) == 0
        for i, generator in enumerate(structure.basis(k)):
            assert generator.coordinates == tuple(int(i == j) for j in range(len(found.orders)))


def test_a_wrong_cocycle_is_caught():
    witness = cocycle_witness(CohomologyStructure(spaces.torus()).model, 1)
    assert verify(witness) == 0
    for part in ("cocycles", "cycles"):
        array = getattr(witness, part).copy()
        array[0, 0] += 1
        assert verify(dataclasses.replace(witness, **{part: array})) > 0
    doubled = dataclasses.replace(witness, cocycles=2 * witness.cocycles)
    assert verify(doubled) > 0


def test_cohomology_of_the_projective_plane_moves_torsion_up():
    structure = CohomologyStructure(spaces.projective_plane())
    assert [str(structure.cohomology_classes(k)) for k in range(4)] == ["Z", "0", "Z/2", "0"]
    (generator,) = structure.basis(2)
    double = structure.cohomology_class(DifferentialForm(2, 2 * generator.cocycle))
    assert double.is_zero and not generator.is_zero and generator.orders == (2,)


@given(st.sampled_from(SPACES), st.sampled_from(["Z", 2, 3]), st.integers(0, 10**6))
def test_classes_do_not_change_by_exact_forms(space, coeff, seed):
    structure, rng = CohomologyStructure(space, coeff), np.random.default_rng(seed)
    for k in range(1, space.dimension + 1):
        for generator in structure.basis(k):
            shift = structure.exterior_derivative(structure.form(k - 1, rng.integers(-5, 6, space.count(k - 1))))
            moved = structure.cohomology_class(DifferentialForm(k, generator.cocycle + shift.values))
            assert moved.coordinates == generator.coordinates


def test_products_on_the_torus_are_antisymmetric_and_unimodular():
    table = CohomologyStructure(spaces.torus()).cup_table(1, 1)[..., 0]
    assert (table == -table.T).all() and abs(table[0, 1]) == 1 and table[0, 0] == 0


@pytest.mark.parametrize("genus", [1, 2, 3])
def test_the_intersection_form_of_a_surface_is_symplectic(genus):
    table = CohomologyStructure(spaces.oriented_surface(genus)).cup_table(1, 1)[..., 0].astype(int)
    assert (table == -table.T).all() and round(np.linalg.det(table)) == 1


def test_products_vanish_on_the_wedge_with_the_homology_of_a_torus():
    wedge = CohomologyStructure(spaces.wedge_of_circles_and_sphere())
    assert [str(wedge.cohomology_classes(k)) for k in range(3)] == ["Z", "Z^2", "Z"]
    assert not wedge.cup_table(1, 1).any()


def test_the_square_of_the_generator_generates_the_top_of_the_complex_projective_plane():
    table = CohomologyStructure(spaces.complex_projective_plane()).cup_table(2, 2)
    assert table.shape == (1, 1, 1) and abs(table[0, 0, 0]) == 1


def test_products_modulo_two_on_unorientable_surfaces():
    plane = CohomologyStructure(spaces.projective_plane(), 2)
    assert plane.cup_table(1, 1).tolist() == [[[1]]]
    bottle = CohomologyStructure(spaces.klein_bottle(), "F2").cup_table(1, 1)[..., 0].astype(int)
    assert (bottle == bottle.T).all() and round(np.linalg.det(bottle)) % 2 == 1 and bottle.diagonal().any()
    torus = CohomologyStructure(spaces.torus(), 2).cup_table(1, 1)[..., 0]
    assert not torus.diagonal().any() and torus[0, 1] == 1


def test_triple_products_on_the_three_torus():
    structure = CohomologyStructure(spaces.triangulated_torus(3, 3, 3))
    x, y, z = structure.basis(1)
    assert abs(structure.cup_product(structure.cup_product(x, y), z).coordinates[0]) == 1
    assert structure.cup_product(x, x).is_zero


def test_the_unit_class_is_neutral_and_products_beyond_the_top_are_zero():
    structure = CohomologyStructure(spaces.torus())
    (unit,), (x, _), (top,) = (structure.basis(k) for k in range(3))
    assert abs(unit.coordinates[0]) == 1
    scale = unit.cocycle[0]
    assert structure.cup_product(unit, x).coordinates == tuple(scale * c for c in x.coordinates)
    beyond = structure.cup_product(x, top)
    assert beyond.degree == 3 and beyond.is_zero and beyond.cocycle.shape == (0,)


def test_rational_classes_take_fractions_and_floats():
    structure = CohomologyStructure(spaces.torus(), "Q")
    x, y = structure.basis(1)
    half = structure.cohomology_class(DifferentialForm(1, x.cocycle * Fraction(1, 2) + y.cocycle))
    assert half.coordinates == (Fraction(1, 2), 1)
    mixed = structure.cohomology_class(
        DifferentialForm(1, 0.25 * x.cocycle.astype(float) - 1.5 * y.cocycle.astype(float))
    )
    assert np.allclose(np.array(mixed.coordinates, float), (0.25, -1.5), atol=1e-12)


def test_forms_are_a_basis_and_the_structure_takes_cell_complexes():
    structure = CohomologyStructure(torus_grid(2, 3))
    forms = structure.differential_forms(1)
    assert (np.array([f.values for f in forms]) == np.eye(12)).all()
    assert str(structure.cohomology_classes(1)) == "Z^2"
    with pytest.raises(ComplexError, match="SimplicialComplex"):
        structure.cup_product(*structure.basis(1))


def test_what_is_not_a_class_is_refused():
    structure = CohomologyStructure(spaces.torus())
    with pytest.raises(ComplexError, match="not closed over Z"):
        structure.cohomology_class(structure.differential_forms(1)[0])
    with pytest.raises(ComplexError, match="shape"):
        structure.form(1, [1, 2])
    with pytest.raises(ComplexError, match="floats"):
        structure.cohomology_class(structure.form(1, np.zeros(21)))
    with pytest.raises(ComplexError, match="structure over Z"):
        structure.cup_product(*CohomologyStructure(spaces.torus(), 2).basis(1))
    with pytest.raises(ComplexError, match="NaN"):
        cup(spaces.torus(), np.full(21, np.nan), 1, np.zeros(21), 1)


def test_poincare_duality_of_ranks_on_closed_oriented_manifolds():
    for space in (spaces.torus(), spaces.complex_projective_plane(), spaces.triangulated_torus(3, 3, 4)):
        up = CohomologyStructure(space)
        down = homology(space).value
        n = space.dimension
        assert [str(up.cohomology_classes(k)) for k in range(n + 1)] == [str(down[n - k]) for k in range(n + 1)]


@pytest.mark.parametrize(
    ("coeff", "factor"), [("Z", Fraction(1, 2)), (3, Fraction(1, 2)), ("Q", float("nan")), ("Q", float("inf"))]
)
def test_multiples_of_a_cocycle_outside_of_the_coefficients_are_refused(coeff, factor):
    structure = CohomologyStructure(spaces.torus(), coeff)
    cocycle = np.array([factor * int(x) if x else 0 for x in structure.basis(1)[0].cocycle], dtype=object)
    with pytest.raises(ComplexError, match="is not"):
        structure.cohomology_class(DifferentialForm(1, cocycle))


@pytest.mark.parametrize("unit", [Fraction(1, 3), 10**30])
def test_derivatives_of_fractions_and_of_large_integers_are_exact(unit):
    structure = CohomologyStructure(spaces.torus(), "Q")
    form = structure.form(0, np.array([unit * i for i in range(7)], dtype=object))
    derivative = structure.exterior_derivative(form).values
    edges = structure.complex.simplices(1)
    assert derivative.tolist() == [unit * int(b - a) for a, b in edges]
