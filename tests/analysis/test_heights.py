import math
from fractions import Fraction

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.arithmetic.heights import (
    arithmetic_height,
    fits_integers,
    integer_constants,
    primitive_vector,
)
from aatc.passes.analysis.arithmetic.places import (
    ARCHIMEDEAN,
    RationalError,
    absolute_value,
    factorise,
    local_heights,
    prime_base,
    product_formula,
    rational,
    valuation,
)
from aatc.passes.analysis.arithmetic.verify_arithmetic import (
    AdelicWitness,
    HeightWitness,
    IntegerWitness,
    ProductFormulaWitness,
)
from aatc.passes.analysis.result import AnalysisError, Undecided, verify

fractions = st.fractions(min_value=-1000, max_value=1000, max_denominator=1000)
nonzero = fractions.filter(bool)
points = st.lists(fractions, min_size=2, max_size=5).filter(any)
floats = st.floats(-1e6, 1e6, width=32)


def test_slopes_of_eight_alibi_heads_have_height_128():
    result = arithmetic_height(np.array([2.0**-i for i in range(1, 9)]))
    assert result.value.multiplicative == 128 and result.value.logarithm == math.log(128)
    assert result.verify() == 0


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9))
def test_height_of_a_number_is_the_larger_part_of_its_lowest_terms(a, b):
    common = math.gcd(a, b)
    assert arithmetic_height(Fraction(a, b)).value.multiplicative == max(abs(a), b) // common


@given(points, nonzero)
def test_height_depends_on_the_point_only(point, factor):
    assert (
        arithmetic_height([factor * x for x in point]).value.multiplicative
        == arithmetic_height(point).value.multiplicative
    )
    primitive = primitive_vector(point)
    assert math.gcd(*primitive) == 1
    assert arithmetic_height(point).verify() == 0


@given(nonzero, st.integers(1, 5))
def test_powers_multiply_the_height(x, k):
    assert arithmetic_height(x**k).value.multiplicative == arithmetic_height(x).value.multiplicative ** k


@given(st.lists(floats, min_size=1, max_size=5))
def test_floats_are_exact_dyadic_rationals(values):
    height = arithmetic_height(np.array(values), affine=True).value
    for x, whole in zip(values, height.primitive[1:]):
        assert Fraction(whole, height.primitive[0]) == Fraction(x)
    assert height.primitive[0] & (height.primitive[0] - 1) == 0


@given(points, nonzero)
def test_local_heights_add_up_to_the_height(point, factor):
    result = local_heights(point)
    assert result.value.total() == pytest.approx(arithmetic_height(point).value.logarithm, abs=1e-12)
    assert result.verify() == 0
    for p in (2, 3, 5, 7):
        largest = max(absolute_value(x, p) for x in point)
        assert result.value.at(p) == pytest.approx(math.log(largest), abs=1e-12)
    moved = local_heights([factor * x for x in point]).value
    assert moved.total() == pytest.approx(result.value.total(), abs=1e-11)


@given(nonzero)
def test_product_formula_is_exact(x):
    verdict = product_formula(x)
    assert verdict and verdict.residual == 0 and verdict.verify() == 0


@given(nonzero, nonzero, st.sampled_from([ARCHIMEDEAN, 2, 3, 5, 7, 997]))
def test_absolute_values_are_multiplicative_and_obey_their_triangle(x, y, place):
    assert absolute_value(x * y, place) == absolute_value(x, place) * absolute_value(y, place)
    size = absolute_value(x + y, place)
    both = absolute_value(x, place), absolute_value(y, place)
    assert size <= (sum(both) if place == ARCHIMEDEAN else max(both))


def test_prime_base_of_slopes_is_two():
    assert prime_base([2.0**-i for i in range(1, 9)]) == (2,)
    assert prime_base([Fraction(6, 35), 0, Fraction(1, 11)]) == (2, 3, 5, 7, 11)
    assert valuation(Fraction(18, 25), 3) == 2 and valuation(0.125, 2) == -3


def test_large_factors_are_left_undecided():
    hard = (2**89 - 1) * (2**107 - 1)
    assert isinstance(factorise(hard), Undecided)
    assert isinstance(prime_base([Fraction(1, hard)]), Undecided)
    assert isinstance(product_formula(hard), Undecided)
    assert isinstance(local_heights([hard, 2 * hard]), Undecided)
    assert factorise((2**89 - 1) * 12) == {2: 2, 3: 1, 2**89 - 1: 1}


@given(
    st.lists(st.integers(-127, 127), min_size=1, max_size=8), floats.filter(bool), st.sampled_from(["f2", "f4", "f8"])
)
def test_a_scale_times_integers_is_recovered(integers, scale, dtype):
    scale = float(np.float16(np.clip(scale, -8, 8))) or 0.25
    values = (np.array(integers) * scale).astype(np.float64)
    if dtype != "f8":  # nine bits of scale and seven of integer fit float32; a power of two keeps float16 exact
        values = np.array(integers) * (0.125 if dtype == "f2" else scale)
    values = values.astype(dtype)
    result = integer_constants(values)
    assert result.verify() == 0
    assert result.value.height <= max(map(abs, integers)) and fits_integers(values, 8)
    np.testing.assert_array_equal(result.value.scale * result.value.integers.astype(float), values.astype(float))


@given(st.lists(floats, min_size=1, max_size=6))
def test_height_decides_the_least_width(values):
    found = integer_constants(np.array(values, dtype=np.float32))
    assert found.verify() == 0
    if any(values):
        assert found.value.height == arithmetic_height([*values, 0]).value.multiplicative
    bits = max(found.value.bits, 2)
    assert fits_integers(np.array(values, dtype=np.float32), bits)
    assert bits == 2 or not fits_integers(np.array(values, dtype=np.float32), bits - 1)


def test_widths_at_the_edge_of_int8():
    assert fits_integers(np.array([127, -127, 1]) * 0.5, 8)
    assert not fits_integers(np.array([128, 1]) * 0.5, 8)
    assert integer_constants(np.zeros(3)).value.height == 0
    wide = integer_constants(np.array([1.0, 2.0**-100])).value
    assert wide.height == 2**100 and wide.integers.tolist() == [2**100, 1]
    assert integer_constants(np.array([5e-324, 1.5e-323])).value.integers.tolist() == [1, 3]


def test_planted_wrong_witnesses_are_caught():
    assert verify(HeightWitness((Fraction(1, 2), Fraction(1, 3)), (3, 2), 3)) == 0
    assert verify(HeightWitness((Fraction(1, 2), Fraction(1, 3)), (6, 4), 6)) == math.inf
    assert verify(HeightWitness((Fraction(1, 2), Fraction(1, 3)), (2, 3), 3)) == math.inf
    assert verify(AdelicWitness((Fraction(2), Fraction(4)), {2: -1}, 2)) == 0
    assert verify(AdelicWitness((Fraction(2), Fraction(4)), {2: -2}, 1)) == math.inf
    assert verify(AdelicWitness((Fraction(6), Fraction(12)), {2: -1}, 6)) == math.inf
    assert verify(ProductFormulaWitness(Fraction(12), {2: 2, 3: 1})) == 0
    assert verify(ProductFormulaWitness(Fraction(12), {4: 1, 3: 1})) == math.inf
    assert verify(IntegerWitness(np.array([0.5, 1.0]), 0.5, np.array([1, 3]))) == np.inf


@pytest.mark.parametrize("bad", [[0, 0], [1, math.nan], [1, math.inf], [1, "2"], [], None, [1, 1j]])
def test_what_is_no_rational_point_is_refused(bad):
    with pytest.raises(RationalError):
        arithmetic_height(bad)


def test_other_refusals_are_typed():
    for call in (
        lambda: valuation(0, 2),
        lambda: valuation(3, 4),
        lambda: product_formula(0),
        lambda: factorise(0),
        lambda: rational(None),
        lambda: integer_constants(np.array([np.inf])),
        lambda: integer_constants(np.array([2**53 + 1])),
    ):
        with pytest.raises(RationalError):
            call()
    with pytest.raises(AnalysisError):
        fits_integers(np.ones(2), 1)


@pytest.mark.parametrize("number", [np.float32(0.75), np.int64(3), sympy.Rational(3, 4), np.array(0.75)])
def test_a_number_of_any_library_is_an_affine_point(number):
    exact = Fraction(str(number)) if isinstance(number, sympy.Rational) else Fraction(float(number))
    expected = max(abs(exact.numerator), exact.denominator)
    assert arithmetic_height(number).value.multiplicative == expected


def test_a_fraction_is_no_place():
    with pytest.raises(RationalError, match="no prime"):
        valuation(0.5, 2.5)
