"""The height, information flow, ergodic and stability methods of a structure, against numbers written out by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest

from aatc.analysis.cohomology import CohomologyStructure, projective_plane, torus
from aatc.passes.analysis.arithmetic.places import RationalError
from aatc.passes.analysis.chains.complexes import ComplexError
from aatc.passes.analysis.information.markov import NotErgodic
from aatc.passes.analysis.result import BudgetError, Cost
from aatc.passes.analysis.stochastic import PatternError

STRUCTURE = CohomologyStructure(torus())


def test_the_height_of_coordinates_forms_and_classes_is_the_largest_entry_of_the_primitive_vector():
    for point, height in (([2, 4, 6], 3), ([0.5, 0.25, 0.125], 4), ([Fraction(2, 3), Fraction(5, 7)], 15), (1.5, 3)):
        found = STRUCTURE.arithmetic_height(point)
        assert found.value.multiplicative == height and found.value.logarithm == pytest.approx(math.log(height))
        assert found.proof_level == "P0" and found.verify() == 0
    assert STRUCTURE.arithmetic_height([2, 4, 6], affine=True).value.multiplicative == 6
    one, other = STRUCTURE.basis(1)
    values = 6 * one.cocycle + 4 * other.cocycle
    form = STRUCTURE.form(1, values)
    assert STRUCTURE.arithmetic_height(STRUCTURE.cohomology_class(form)).value.multiplicative == 3
    largest = max(abs(int(x)) for x in values) // math.gcd(*(int(x) for x in values))
    assert STRUCTURE.arithmetic_height(form).value.multiplicative == largest


def test_only_rational_coordinates_that_are_not_all_zero_have_a_height():
    plane = CohomologyStructure(projective_plane())
    # H²(RP²; Z) = Z/2 has no free coordinate.
    for structure, point, error in (
        (plane, plane.basis(2)[0], RationalError),
        (CohomologyStructure(torus(), 2), CohomologyStructure(torus(), 2).basis(1)[0], ComplexError),
        (STRUCTURE, [0, 0], RationalError),
        (STRUCTURE, [math.nan, 1], RationalError),
        (STRUCTURE, None, RationalError),
    ):
        with pytest.raises(error):
            structure.arithmetic_height(point)


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.2), (0.9, 0.05), (0.5, 0.5)])
def test_two_states_flow_mix_and_answer_by_their_closed_forms(a, b):
    pattern = np.array([[1 - a, a], [b, 1 - b]])
    law = np.array([b, a]) / (a + b)
    entropies = -(pattern * np.log(pattern)).sum(1)
    flow = STRUCTURE.information_flow_metrics(pattern, 1)
    assert flow.value.entropy_rate == pytest.approx(law @ entropies, abs=1e-12)
    assert flow.value.information_flow == pytest.approx(-(law * np.log(law)).sum() - law @ entropies, abs=1e-12)
    assert flow.value.cross_tile_flow == pytest.approx(2 * a * b / (a + b), abs=1e-12) and flow.verify() <= 1e-10
    ergodic = STRUCTURE.ergodic_analysis(pattern)
    np.testing.assert_allclose(ergodic.value.stationary[0], law, atol=1e-12)
    assert float(ergodic.value.gap.value) == pytest.approx(1 - abs(1 - a - b), abs=1e-12)
    assert ergodic.value.dobrushin == pytest.approx(abs(1 - a - b), abs=1e-12) and ergodic.verify() <= 1e-9
    stable = STRUCTURE.pattern_stability_measures(pattern, [[0.0, 0.0], [3.0, 4.0]])
    # diag(p) − ppᵀ of two keys is p(1 − p) times a matrix of norm 2; two values lie in a ball of half their distance.
    np.testing.assert_allclose(stable.value.jacobian_norm, [2 * a * (1 - a), 2 * b * (1 - b)], atol=1e-12)
    assert stable.value.output_lipschitz == pytest.approx(2.5)


def test_options_and_errors_are_those_of_the_functions():
    halves = np.kron(np.eye(2), np.full((2, 2), 0.5))
    assert isinstance(STRUCTURE.ergodic_analysis(halves).value.gap, NotErgodic)
    assert float(STRUCTURE.information_flow_metrics(halves, initial=[1, 0, 0, 0]).value.entropy_rate) == pytest.approx(
        math.log(2)
    )
    for ask in (STRUCTURE.information_flow_metrics, STRUCTURE.ergodic_analysis, STRUCTURE.pattern_stability_measures):
        with pytest.raises(PatternError):
            ask(np.array([[0.5, 0.6], [0.5, 0.5]]))
    with pytest.raises(BudgetError):
        STRUCTURE.ergodic_analysis(np.full((50, 50), 0.02), budget=Cost(seconds=1e-9))
