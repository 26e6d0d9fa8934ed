import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aatc.passes.analysis.arithmetic.canonical_height import canonical_height, local_canonical_heights
from aatc.passes.analysis.arithmetic.heights import arithmetic_height
from aatc.passes.analysis.arithmetic.orbits import Escaping, Preperiodic, dynamical_degree, height_growth, orbit_type
from aatc.passes.analysis.arithmetic.places import ARCHIMEDEAN
from aatc.passes.analysis.arithmetic.projective_map import (
    DegreeError,
    MapError,
    Morphism,
    homogeneous_map,
    morphism,
    normalised,
    polynomial_map,
    rational_map,
    sharpening_map,
)
from aatc.passes.analysis.arithmetic.verify_arithmetic import CanonicalHeightWitness, OrbitWitness
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost, Undecided, verify

numbers = st.fractions(min_value=-20, max_value=20, max_denominator=12)
coefficients = st.integers(-4, 4)
FORMS = [{(2, 0, 0): 1, (0, 1, 1): 1}, {(0, 2, 0): 1, (1, 0, 1): 3}, {(0, 0, 2): 2, (1, 1, 0): 1}]


@given(numbers)
def test_squaring_has_the_weil_height(x):
    result = canonical_height(polynomial_map([1, 0, 0]), x)
    assert result.value.value == pytest.approx(arithmetic_height(x).value.logarithm, abs=1e-12)


def test_known_heights():
    chebyshev = polynomial_map([1, 0, -2])
    found = canonical_height(chebyshev, 3)
    assert found.value.value == pytest.approx(math.log((3 + math.sqrt(5)) / 2), abs=1e-12)
    assert found.value.error <= 1e-12 and found.verify() == 0
    zero = canonical_height(polynomial_map([1, 0, -1]), 0)
    assert zero.value.value == 0 and zero.value.preperiodic and zero.proof_level == "P0" and zero.verify() == 0


@given(st.fractions(min_value=Fraction(11, 10), max_value=20, max_denominator=12))
def test_chebyshev_orbit_of_z_plus_its_inverse_has_twice_the_height_of_z(z):
    # x² − 2 carries z + 1/z to z² + 1/z², so ĥ(z + 1/z) = 2 h(z).
    found = canonical_height(polynomial_map([1, 0, -2]), z + 1 / z).value.value
    assert found == pytest.approx(2 * arithmetic_height(z).value.logarithm, abs=1e-11)


@given(st.lists(coefficients, min_size=3, max_size=4), st.lists(coefficients, min_size=1, max_size=3), numbers)
def test_height_multiplies_along_the_orbit(numerator, denominator, x):
    assume(any(numerator) and any(denominator))
    try:
        phi = rational_map(numerator, denominator)
    except MapError:
        assume(False)
    assume(phi.degree >= 2)
    start = normalised((x, 1))
    first, second = canonical_height(phi, start), canonical_height(phi, phi(start))
    assert second.value.value == pytest.approx(phi.degree * first.value.value, abs=1e-10)
    proof = morphism(phi)
    weil = math.log(max(map(abs, start)))
    assert abs(first.value.value - weil) <= proof.distortion / (phi.degree - 1) + 1e-9
    assert first.verify() == 0
    local = local_canonical_heights(phi, start).value
    assert local.total() == pytest.approx(first.value.value, abs=1e-10)
    for p in local.primes:
        assert proof.scale % p == 0


def test_local_parts_at_a_prime_of_bad_reduction():
    # Denominators of the orbit of 1/3 under x² + 1/4 are 36^(2^n): the height is log(36)/2.
    phi = polynomial_map([1, 0, Fraction(1, 4)])
    assert canonical_height(phi, Fraction(1, 3)).value.value == pytest.approx(math.log(6), abs=1e-12)
    local = local_canonical_heights(phi, Fraction(1, 3)).value
    assert local.at(2) == pytest.approx(-math.log(2), abs=1e-12) and local.at(3) == 0
    assert local.at(ARCHIMEDEAN) == pytest.approx(math.log(12), abs=1e-12)


def test_plane_map_obeys_the_functional_equation():
    phi = homogeneous_map(FORMS)
    first = canonical_height(phi, (1, 2, 3))
    second = canonical_height(phi, phi((1, 2, 3)))
    assert second.value.value == pytest.approx(2 * first.value.value, abs=1e-10)
    assert first.verify() == 0


@given(st.integers(2, 4), st.lists(st.integers(1, 64), min_size=2, max_size=6))
def test_sharpening_attention_weights_has_their_weil_height(power, weights):
    row = np.array(weights) / 64.0
    found = canonical_height(sharpening_map(power, len(row)), row).value
    assert found.value == pytest.approx(arithmetic_height(row).value.logarithm, abs=1e-12)
    sharpened = [Fraction(x) ** power for x in row]
    assert sharpening_map(power, len(row))(normalised(row)) == normalised(sharpened)


@given(st.integers(-6, 6), st.integers(-8, 8))
def test_orbit_type_agrees_with_brute_force(c, x):
    result = orbit_type(polynomial_map([1, 0, c]), x)
    orbit = [x]
    for _ in range(12):
        orbit.append(orbit[-1] ** 2 + c)
    repeated = [(i, j) for j in range(13) for i in range(j) if orbit[i] == orbit[j]]
    if repeated:
        assert isinstance(result.value, Preperiodic)
        tail, end = min(repeated, key=lambda pair: pair[1])
        assert (result.value.tail, result.value.period) == (tail, end - tail)
        assert result.verify() == 0 and result.value.periodic == (tail == 0)
    else:
        assert isinstance(result.value, Escaping)
        height = canonical_height(polynomial_map([1, 0, c]), x).value
        assert 0 < result.value.canonical_bound <= height.value + 1e-12


def test_poonen_cycle_of_length_three():
    # x² − 29/16 has the rational cycle −1/4, −7/4, 5/4.
    found = orbit_type(polynomial_map([1, 0, Fraction(-29, 16)]), Fraction(3, 4)).value
    assert (found.tail, found.period) == (2, 3)


def test_growth_of_heights_tends_to_the_degree():
    growth = height_growth(polynomial_map([1, 0, 0, 1]), Fraction(2, 3), 7)
    limit = canonical_height(polynomial_map([1, 0, 0, 1]), Fraction(2, 3)).value.value
    assert growth.ratios[-1] == pytest.approx(3, abs=1e-3)
    errors = np.abs(np.array(growth.normalised) - limit)
    assert errors[-1] <= 1e-3 and (errors <= np.log(2) / (2 * 3.0 ** np.arange(8)) + 1e-12).all()


def test_dynamical_degrees():
    assert dynamical_degree(polynomial_map([1, 0, 5])).value == 2
    fibonacci = homogeneous_map([{(1, 1, 0): 1}, {(1, 0, 1): 1}, {(0, 0, 2): 1}])
    assert dynamical_degree(fibonacci).value == pytest.approx((1 + math.sqrt(5)) / 2)
    assert isinstance(dynamical_degree(homogeneous_map([{(1, 1): 1, (2, 0): 1}, {(1, 1): 2, (2, 0): 1}])), Undecided)
    with pytest.raises(MapError):
        dynamical_degree(homogeneous_map([{(1, 1, 0): 1}, {(1, 1, 0): 1}, {(0, 0, 2): 1}]))


def test_identities_of_a_morphism_hold_at_integers():
    proof = morphism(homogeneous_map(FORMS))
    assert isinstance(proof, Morphism)
    x = (3, -5, 7)
    values = proof.map.lift(x)
    for i, row in enumerate(proof.cofactors):
        parts = [sum(c * math.prod(a**e for a, e in zip(x, p)) for p, c in g.items()) for g in row]
        assert sum(a * b for a, b in zip(parts, values)) == proof.scale * x[i] ** proof.exponent


def test_planted_wrong_witnesses_are_caught():
    good = canonical_height(polynomial_map([1, 0, -2]), 3).witness
    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
    assert verify(CanonicalHeightWitness(**fields)) == 0
    assert verify(CanonicalHeightWitness(**{**fields, "value": good.value + 1e-3})) > 5e-4
    assert verify(CanonicalHeightWitness(**{**fields, "scale": good.scale + 1})) == math.inf
    forms = polynomial_map([1, 0, -1]).forms
    assert verify(OrbitWitness(forms, (0, 1), 0, 2)) == 0
    for tail, period in ((0, 1), (0, 4), (1, 2), (0, 0)):
        assert verify(OrbitWitness(forms, (0, 1), tail, period)) == math.inf


def test_refusals_are_typed():
    with pytest.raises(DegreeError):
        canonical_height(rational_map([2, 1]), 3)
    with pytest.raises(DegreeError):
        orbit_type(sharpening_map(1, 3), (1, 2, 3))
    with pytest.raises(MapError):
        canonical_height(homogeneous_map([{(2, 0): 1}, {(1, 1): 1}]), 2)
    with pytest.raises(MapError):
        homogeneous_map([{(2, 0): 1}, {(1, 0): 1}])
    with pytest.raises(MapError):
        rational_map([1, 2], [2, 4])
    with pytest.raises(MapError):
        canonical_height(polynomial_map([1, 0, 0]), (1, 2, 3))
    with pytest.raises(MapError):
        homogeneous_map([{(1, 1): 1}, {(2, 0): 1}])((0, 1))
    with pytest.raises(AnalysisError):
        canonical_height(polynomial_map([1, 0, 0]), 2, tolerance=0)
    with pytest.raises(BudgetError):
        canonical_height(polynomial_map([1, 0, 1]), 2, budget=Cost(seconds=1e-9))
    with pytest.raises(BudgetError):
        height_growth(polynomial_map([1, 0, 1]), 2, 60, budget=Cost(seconds=1))
    ring = [{tuple(4 if j in (i, (i + 1) % 6) else 0 for j in range(6)): 1} for i in range(6)]
    assert isinstance(canonical_height(homogeneous_map(ring), range(1, 7)), Undecided)
    assert isinstance(orbit_type(polynomial_map([1, 0, -1]), 0, steps=1), Undecided)


def test_constant_forms_are_no_map():
    with pytest.raises(MapError, match="degree ≥ 1"):
        homogeneous_map([{(0, 0): 1}, {(0, 0): 2}])


@pytest.mark.parametrize("tolerance", [0.0, 1e-320, 1.0, float("nan")])
def test_tolerances_out_of_range_are_refused(tolerance):
    with pytest.raises(AnalysisError, match="tolerance"):
        canonical_height(polynomial_map([1, 0, -2]), 3, tolerance=tolerance)


def test_growth_beyond_every_float_is_over_the_budget():
    with pytest.raises(BudgetError):
        height_growth(polynomial_map([1, 0, -2]), 3, 2000, budget=Cost(1, 1e9))


MAPS = {
    "good reduction": (polynomial_map([1, 0, 3]), Fraction(2, 5)),
    "bad reduction": (polynomial_map([3, Fraction(1, 7), 0, -2]), Fraction(22, 9)),
    "rational": (rational_map([2, 0, -3, 1], [5, 1, 4]), Fraction(7, 6)),
    "plane": (homogeneous_map(FORMS), (1, 2, 3)),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-8, 1e-12])
def test_an_error_of_a_few_tolerances_is_caught(name, tolerance):
    witness = canonical_height(*MAPS[name], tolerance=tolerance).witness
    assert verify(witness) == 0
    for times in (-4, 4):
        moved = dataclasses.replace(witness, value=witness.value + times * witness.error)
        assert witness.error < verify(moved) < 5 * witness.error


def test_a_wrong_degree_is_caught():
    good = canonical_height(*MAPS["plane"]).witness
    for degree in (1, 3):
        assert verify(dataclasses.replace(good, degree=degree)) == math.inf
