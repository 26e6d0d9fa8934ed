"""The model structure on chain complexes over a field: factorisations, lifts, retracts and squares without a lift."""

import dataclasses
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.chains.complexes import ComplexError, from_maximal_simplices, threshold_complex
from aatc.passes.analysis.chains.field_algebra import Field, solve, sparse_row
from aatc.passes.analysis.chains.field_complexes import FieldComplex, FieldMap, mapping_cone, spanned
from aatc.passes.analysis.chains.homology import CoefficientError, betti_numbers
from aatc.passes.analysis.chains.smith import rank
from aatc.passes.analysis.chains.spaces import projective_plane, simplex, sphere, torus
from aatc.passes.analysis.homotopy.model_category import AttentionModel, LiftError, Square
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost, verify

FIELDS = ["Q", 2, 5]


@st.composite
def matrices(draw, rows, columns):
    entries = draw(st.lists(st.integers(-2, 2), min_size=rows * columns, max_size=rows * columns))
    return np.array(entries, dtype=np.int64).reshape(rows, columns)


@st.composite
def complexes(draw, field, lowest=(-1, 1)):
    """∂_k maps into the kernel of ∂_{k−1}: random combinations of its basis."""
    low, length = draw(st.integers(*lowest)), draw(st.integers(1, 3))
    dims = {low + k: draw(st.integers(0, 3)) for k in range(length)}
    maps = {}
    for k in range(low + 1, low + length):
        cycles = field.identity(dims[k - 1]) if k - 1 not in maps else field.kernel(maps[k - 1])
        choice = field.array(draw(matrices(cycles.shape[1], dims[k])))
        maps[k] = field.times(cycles, choice)
    return FieldComplex(field, dims, maps)


@st.composite
def chain_maps(draw, field):
    """∂u + u∂ for random u, plus a solution of f∂ = ∂f through a random functional on the space of all chain maps."""
    x, y = draw(complexes(field)), draw(complexes(field))
    degrees = spanned(x, y)
    places = {(k, i, j): n for n, (k, i, j) in enumerate(
        (k, i, j) for k in degrees for i in range(y.dim(k)) for j in range(x.dim(k)))}  # fmt: skip
    rows = []
    for k in degrees:
        for r in range(y.dim(k - 1)):
            for c in range(x.dim(k)):
                row = [field.scalar(0)] * len(places)
                for i in range(y.dim(k)):
                    row[places[k, i, c]] = y.boundary(k)[r, i]
                for j in range(x.dim(k - 1)):
                    row[places[k - 1, r, j]] = field.reduce(-x.boundary(k)[j, c])
                rows.append(row)
    system = field.array(np.array(rows, dtype=object).reshape(len(rows), len(places)))
    basis = field.kernel(system)
    vector = field.times(basis, field.array(draw(matrices(basis.shape[1], 1))))
    maps = {k: field.zeros(y.dim(k), x.dim(k)) for k in degrees}
    for (k, i, j), n in places.items():
        maps[k][i, j] = vector[n, 0]
    return FieldMap(x, y, maps)


@st.composite
def any_map(draw):
    coeff = draw(st.sampled_from(FIELDS))
    return coeff, draw(chain_maps(Field.of(coeff)))


def betti(c: FieldComplex) -> dict[int, int]:
    return {k: b for k in c.degrees if (b := c.betti(k))}


# --- linear algebra ----------------------------------------------------------------------------------------
@given(st.data())
def test_ranks_and_kernels_agree_with_the_integral_ones(data):
    field = Field.of(data.draw(st.sampled_from(FIELDS)))
    m = data.draw(matrices(data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))))
    exact = field.array(m)
    assert field.rank(exact) == rank(m, field.modulus or None)
    kernel = field.kernel(exact)
    assert not field.times(exact, kernel).any()
    assert kernel.shape[1] == m.shape[1] - field.rank(exact) == field.rank(kernel)


@given(st.data())
def test_a_linear_system_is_solved_or_refuted(data):
    field = Field.of(data.draw(st.sampled_from(FIELDS)))
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    a, b = field.array(data.draw(matrices(rows, columns))), field.array(data.draw(matrices(rows, 1)))
    x, y = solve(field, [sparse_row(row) for row in a], [v for (v,) in b])
    if x is not None:
        dense = field.array([[x.get(j, 0)] for j in range(columns)])
        assert (field.times(a, dense) == b).all()
    else:
        functional = field.array([[y.get(e, 0) for e in range(rows)]])
        assert not field.times(functional, a).any()
        assert field.times(functional, b)[0, 0] == 1


def test_numbers_outside_the_field_are_refused():
    assert Field.of(5).scalar(Fraction(1, 2)) == 3 and Field.of("Q").scalar(0.5) == Fraction(1, 2)
    for value in (Fraction(1, 5), float("nan"), "x"):
        with pytest.raises(CoefficientError):
            Field.of(5).scalar(value)
    with pytest.raises(CoefficientError):
        Field.of("Z")


# --- factorisations ----------------------------------------------------------------------------------------
@given(any_map())
def test_both_factorisations_give_back_the_map_with_the_promised_properties(drawn):
    coeff, f = drawn
    for found in AttentionModel(coeff).model_factorization(f):
        first, second = found.value.cofibration, found.value.fibration
        assert first.then(second).equals(f)
        assert first.is_cofibration and second.is_fibration
        assert (first if found.value.acyclic == "cofibration" else second).is_weak_equivalence
        assert found.verify() == 0


@given(any_map())
def test_the_cylinder_has_the_homology_of_the_target_and_the_path_object_that_of_the_source(drawn):
    coeff, f = drawn
    cylinder, path = (found.value for found in AttentionModel(coeff).model_factorization(f))
    assert betti(cylinder.cofibration.target) == betti(f.target)
    assert betti(path.cofibration.target) == betti(f.source)


@given(any_map())
def test_the_comparison_of_the_two_factorisations_is_a_lift_and_an_equivalence_just_where_the_map_is(drawn):
    coeff, f = drawn
    found = AttentionModel(coeff).factor_map(f)
    both = found.value
    assert both.by_path_object.cofibration.then(both.comparison).equals(both.by_cylinder.cofibration)
    assert both.comparison.then(both.by_cylinder.fibration).equals(both.by_path_object.fibration)
    assert both.comparison.is_weak_equivalence == f.is_weak_equivalence
    assert found.verify() == 0


@given(any_map())
def test_an_acyclic_cofibration_lifts_against_every_fibration_and_a_cofibration_against_acyclic_ones(drawn):
    coeff, f = drawn
    model = AttentionModel(coeff)
    cylinder, path = (found.value for found in model.model_factorization(f))
    for i, p, square in (
        (path.cofibration, path.fibration, Square(path.cofibration, path.fibration)),
        (cylinder.cofibration, cylinder.fibration, Square(cylinder.cofibration, cylinder.fibration)),
    ):
        lift = model.compute_lifting(i, p, square)
        assert i.then(lift.value).equals(square.top) and lift.value.then(p).equals(square.bottom)
        assert lift.verify() == 0


@given(any_map())
def test_an_acyclic_cofibration_is_a_retract_of_its_factor(drawn):
    coeff, f = drawn
    model = AttentionModel(coeff)
    g = model.model_factorization(f)[1].value.cofibration
    factor = model.model_factorization(g)[1].value
    back = model.compute_lifting(
        g, factor.fibration, Square(factor.cofibration, FieldMap.identity(g.target))
    ).value  # fmt: skip
    assert back.then(factor.fibration).equals(FieldMap.identity(g.target))
    assert g.then(back).equals(factor.cofibration)


# --- squares without a lift --------------------------------------------------------------------------------
@pytest.mark.parametrize("coeff", FIELDS)
def test_a_square_without_a_lift_raises_and_the_refusal_is_checked(coeff):
    """The boundary of a disc goes to a point that bounds nothing in the fibre."""
    model = AttentionModel(coeff)
    point = FieldComplex(model.field, {0: 1}, {})
    disc = FieldComplex(model.field, {0: 1, 1: 1}, {1: [[1]]})
    zero = FieldComplex(model.field, {}, {})
    i, p = FieldMap(point, disc, {0: [[1]]}), FieldMap(point, zero, {})
    square = Square(FieldMap.identity(point), FieldMap(disc, zero, {}))
    with pytest.raises(LiftError, match="no lift") as refused:
        model.compute_lifting(i, p, square)
    witness = refused.value.witness
    assert verify(witness) == 0
    spoiled = {k: np.zeros_like(u) for k, u in witness.u.items()}
    assert verify(dataclasses.replace(witness, u=spoiled)) > 0
    assert verify(dataclasses.replace(witness, i={k: m * 0 for k, m in witness.i.items()})) > 0


def test_a_square_that_does_not_commute_and_ends_that_do_not_fit_raise():
    model = AttentionModel("Q")
    point, other = (FieldComplex(model.field, {0: 1}, {}) for _ in range(2))
    one = FieldMap.identity(point)
    with pytest.raises(LiftError, match="commute"):
        model.compute_lifting(one, one, Square(one, FieldMap(point, point, {0: [[2]]})))
    with pytest.raises(LiftError, match="start"):
        model.compute_lifting(one, one, Square(FieldMap.identity(other), one))
    with pytest.raises(LiftError, match="end"):
        model.compute_lifting(one, FieldMap.identity(other), Square(one, one))
    with pytest.raises(AnalysisError, match="over"):
        AttentionModel(2).factor_map(one)
    with pytest.raises(BudgetError):
        AttentionModel("Q", Cost(1e-9)).compute_lifting(one, one, Square(one, one))


def test_planted_wrong_factors_and_lifts_are_caught():
    model = AttentionModel(5)
    circle = sphere(1)
    f = model.attention_map(circle, simplex(2), {0: 0, 1: 1, 2: 2})
    cylinder, path = model.model_factorization(f)
    lift = model.factor_map(f)
    for result in (cylinder, path, lift):
        assert result.verify() == 0
    assert verify(dataclasses.replace(cylinder.witness, acyclic="first")) > 0
    assert verify(dataclasses.replace(path.witness, acyclic="second")) > 0
    wrong = {k: m.copy() for k, m in lift.witness.lift.lift.items()}
    wrong[0][0, 0] += 1
    assert verify(dataclasses.replace(lift.witness.lift, lift=wrong)) > 0
    zero = {k: m * 0 for k, m in cylinder.witness.second.items()}
    assert verify(dataclasses.replace(cylinder.witness, second=zero)) > 0


# --- attention maps ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("coeff", FIELDS)
def test_betti_numbers_over_fields_are_those_of_the_integral_model(coeff):
    for space in (projective_plane(), torus()):
        c = FieldComplex.of(space, Field.of(coeff))
        assert [c.betti(k) for k in range(3)] == list(betti_numbers(space, coeff))


def test_collapsing_a_cone_is_a_weak_equivalence_and_filling_a_circle_is_none():
    model = AttentionModel("Q")
    disc = from_maximal_simplices([(0, 1, 3), (1, 2, 3), (0, 2, 3)])
    collapse = model.attention_map(disc, simplex(0), dict.fromkeys(range(4), 0))
    assert collapse.is_weak_equivalence and collapse.is_fibration
    fill = model.attention_map(sphere(1), disc, {0: 0, 1: 1, 2: 2})
    assert fill.is_cofibration and not fill.is_weak_equivalence
    assert betti(mapping_cone(fill)) == {2: 1}


def test_what_is_no_complex_or_chain_map_is_refused():
    field = Field.of("Q")
    with pytest.raises(ComplexError, match="not zero"):
        FieldComplex(field, {0: 1, 1: 1, 2: 1}, {1: [[1]], 2: [[1]]})
    with pytest.raises(ComplexError, match="shape"):
        FieldComplex(field, {0: 1, 1: 1}, {1: [[1, 2]]})
    with pytest.raises(ComplexError, match="not negative"):
        FieldComplex(field, {0: -1}, {})
    disc = FieldComplex(field, {0: 1, 1: 1}, {1: [[1]]})
    with pytest.raises(ComplexError, match="commute"):
        FieldMap(disc, disc, {0: [[1]], 1: [[2]]})
    with pytest.raises(ComplexError, match="one field"):
        FieldMap(disc, FieldComplex(Field.of(2), {0: 1}, {}), {})
    with pytest.raises(ComplexError, match="start"):
        FieldMap.identity(disc).then(FieldMap.identity(FieldComplex(field, {0: 1}, {})))


@pytest.mark.parametrize("coeff", ["Q", 3])
def test_maps_of_64_vertices_are_factored_and_compared_in_seconds(coeff):
    rng = np.random.default_rng(0)
    x = threshold_complex(rng.uniform(size=(64, 64)), 1 - 2 / 64, 1)
    model = AttentionModel(coeff)
    start = time.perf_counter()
    found = model.factor_map(model.attention_map(x, x, {i: i for i in range(64)}))
    assert time.perf_counter() - start < 20  # minutes, by a system of equations for the lift
    assert verify(found.witness.lift) == 0


def test_the_lift_that_is_written_down_is_one_of_those_that_a_system_of_equations_has():
    model = AttentionModel("Q")
    f = model.attention_map(sphere(1), simplex(2), {0: 0, 1: 1, 2: 2})
    found = model.factor_map(f).value
    square = Square(found.by_cylinder.cofibration, found.by_path_object.fibration)
    solved = model.compute_lifting(found.by_path_object.cofibration, found.by_cylinder.fibration, square).value
    for lift in (found.comparison, solved):
        assert found.by_path_object.cofibration.then(lift).equals(found.by_cylinder.cofibration)
        assert lift.then(found.by_cylinder.fibration).equals(found.by_path_object.fibration)
