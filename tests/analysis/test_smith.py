import dataclasses

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sympy.matrices.normalforms import smith_normal_form as sympy_smith

from aatc.passes.analysis.chains import smith
from aatc.passes.analysis.chains.smith import (
    IntegerMatrixError,
    integer_array,
    invariant_factors,
    rank,
    smith_normal_form,
)
from aatc.passes.analysis.result import verify


@st.composite
def integer_matrices(draw):
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    entry = st.integers(-9, 9) if draw(st.booleans()) else st.sampled_from([0, 0, 1, -1, 2])
    return np.array(draw(st.lists(entry, min_size=rows * columns, max_size=rows * columns))).reshape(rows, columns)


def sympy_factors(matrix):
    form = sympy_smith(sympy.Matrix(matrix.tolist()), domain=sympy.ZZ)
    return tuple(abs(int(form[i, i])) for i in range(min(form.shape)) if form[i, i])


@given(integer_matrices())
def test_factors_agree_with_sympy_dense_and_sparse(matrix):
    want = sympy_factors(matrix)
    assert smith_normal_form(matrix).factors == want
    assert invariant_factors(matrix) == want
    assert invariant_factors(sparse.csc_array(matrix)) == want


@given(integer_matrices())
def test_transformations_are_unimodular_and_diagonalise(matrix):
    form = smith_normal_form(matrix)
    assert verify(form.witness(matrix)) == 0
    for transformation in (form.left, form.right):
        assert abs(int(sympy.Matrix(transformation.tolist()).det())) == 1


@given(integer_matrices())
def test_factors_do_not_need_flint(matrix):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "flint", None)
        assert invariant_factors(matrix) == sympy_factors(matrix)


@given(integer_matrices(), st.sampled_from([2, 3, 5, 7]))
def test_rank_modulo_a_prime_counts_factors_it_does_not_divide(matrix, p):
    assert rank(matrix, p) == sum(1 for d in sympy_factors(matrix) if d % p)
    assert rank(matrix) == np.linalg.matrix_rank(matrix)


def test_entries_beyond_machine_integers_stay_exact():
    big = 3**60
    form = smith_normal_form([[big, 0], [0, 2 * big]])
    assert form.factors == (big, 2 * big)
    assert invariant_factors([[big, 7], [0, big]]) == (1, big * big)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 2)])
def test_zero_matrices_have_no_factors(shape):
    form = smith_normal_form(np.zeros(shape, int))
    assert form.factors == () and invariant_factors(np.zeros(shape, int)) == ()
    assert form.left.shape == (shape[0],) * 2 and form.right.shape == (shape[1],) * 2
    assert verify(form.witness(np.zeros(shape, int))) == 0


@pytest.mark.parametrize("field", ["left", "right_inverse", "matrix", "factors"])
def test_a_wrong_smith_witness_is_caught(field):
    matrix = np.array([[2, 4, 4], [-6, 6, 12], [10, -4, -16]])
    witness = smith_normal_form(matrix).witness(matrix)
    assert verify(witness) == 0
    if field == "factors":
        wrong = dataclasses.replace(witness, factors=(2, 6, 11))
    else:
        changed = getattr(witness, field).copy()
        changed[0, 1] += 1
        wrong = dataclasses.replace(witness, **{field: changed})
    assert verify(wrong) > 0


def test_factors_that_do_not_divide_one_another_are_caught():
    matrix = np.diag([2, 3])
    unit = integer_array(np.eye(2, dtype=int))
    assert verify(smith.SmithWitness(integer_array(matrix), (2, 3), unit, unit, unit, unit)) > 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: rank([[1]], 4),
        lambda: smith_normal_form([[0.5]]),
        lambda: smith_normal_form([1, 2]),
        lambda: invariant_factors([[float("nan")]]),
        lambda: rank([[1]], 1),
    ],
)
def test_bad_matrices_and_moduli_are_refused(call):
    with pytest.raises(IntegerMatrixError):
        call()


def test_entries_of_a_sparse_matrix_given_twice_are_added():
    twice = sparse.coo_array(([1, 2, 5], ([0, 0, 1], [0, 0, 1])), shape=(2, 2))
    assert invariant_factors(twice) == invariant_factors(twice.toarray()) == (1, 15)


@pytest.mark.parametrize("entry", [np.nan, np.inf, 0.5])
def test_sparse_entries_that_are_no_integers_are_refused(entry):
    with pytest.raises(IntegerMatrixError, match="not an integer"):
        rank(sparse.coo_array(([entry], ([0], [0])), shape=(1, 1)))


def test_a_modulus_that_is_no_integer_is_refused():
    with pytest.raises(IntegerMatrixError, match="not a prime"):
        rank([[1, 2], [3, 4]], 2.5)
