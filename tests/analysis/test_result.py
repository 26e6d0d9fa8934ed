"""Levels that residuals allow, and what `verify` says of results, values and witnesses that do not belong together."""

import dataclasses
import math

import numpy as np
import pytest

from aatc.passes.analysis.information.contraction import dobrushin_coefficient
from aatc.passes.analysis.information.enclosing_ball import enclosing_ball
from aatc.passes.analysis.result import AnalysisError, Result, Verdict, WitnessError, verify, worst

PATTERN = np.array([[0.5, 0.5], [0.25, 0.75]])


@pytest.mark.parametrize("level", ["P0", "P1", "P2", "P3"])
@pytest.mark.parametrize("residual, within", [(1e-9, True), (1e-8, True), (1.1e-8, False), (math.nan, False)])
def test_a_residual_above_its_tolerance_proves_nothing(level, residual, within):
    made = Result(1.0, level, 1e-8, residual)
    assert made.proof_level == (level if within else "P3")
    assert dataclasses.replace(made, proof_level="P2").proof_level == ("P2" if within else "P3")


def test_a_check_that_failed_keeps_its_level():
    failed = Verdict(False, "P0", 0.0, 1.0, statement="0 = 1")
    assert failed.proof_level == "P0" and not failed


def test_a_ball_whose_steps_ran_out_is_no_proof():
    points = np.random.default_rng(0).normal(size=(40, 5))
    assert enclosing_ball(points).proof_level == "P2"
    assert enclosing_ball(points, steps=1).proof_level == "P3"


def test_a_value_is_held_against_its_witness():
    found = dobrushin_coefficient(PATTERN)
    assert found.value == 0.25 and verify(found) == found.verify() == 0
    for value in (0.26, 0.0, math.nan, math.inf):
        wrong = dataclasses.replace(found, value=value)
        assert verify(wrong) > wrong.tolerance and not verify(wrong) <= wrong.tolerance


def test_no_pair_of_rows_but_the_farthest_is_a_proof():
    near = np.array([[0.5, 0.5], [0.4, 0.6], [0.0, 1.0]])
    found = dobrushin_coefficient(near)
    pair = dataclasses.replace(found.witness, first=0, second=1, distance=0.1)
    assert dataclasses.replace(found, value=0.1, witness=pair).verify() == pytest.approx(0.4)


def test_a_witness_that_says_nothing_about_a_value_and_parts_that_do_not_fit_are_typed_errors():
    found = dobrushin_coefficient(PATTERN)
    for value in ("0.25", None, (0.25,)):
        with pytest.raises(WitnessError, match="do not fit together"):
            dataclasses.replace(found, value=value).verify()
    with pytest.raises(WitnessError, match="IndexError"):
        verify(dataclasses.replace(found.witness, first=7))
    with pytest.raises(AnalysisError, match="is no witness"):
        verify(3)
    assert found.witnessed and not Result(1).witnessed


def test_nan_is_the_worst_wherever_it_stands():
    assert worst() == 0 and worst(1.0, 2.0) == 2
    for found in ((math.nan, 1.0), (1.0, math.nan)):
        assert worst(*found) == math.inf
