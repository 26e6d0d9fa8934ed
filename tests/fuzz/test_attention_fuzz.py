"""Drawn attentions against `tests.fuzz.oracle`: eager, the interpreter of every stage, kernels, compiled models.

``make fuzz`` draws many; `tests.fuzz.survey` collects failures instead of stopping at the first, and makes them small.
"""

import random

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from tests.fuzz import oracle
from tests.fuzz.check import Wrong, check_attention, check_compiled, check_spoiled
from tests.fuzz.smaller import checked
from tests.fuzz.strategies import cases, draw_case, spoilable

HALF = ("bfloat16", "float16")
#: Failing draws are made smaller by `tests.fuzz.smaller`, which knows what their parts mean.
once = settings(phases=[Phase.explicit, Phase.reuse, Phase.generate])
pytestmark = pytest.mark.usefixtures("one_thread")


@once
@given(cases(dtypes=("float64",)))
def test_attention_in_float64_is_right_in_every_layer(case):
    checked(case, check_attention)


@once
@given(cases(dtypes=("float32",)))
def test_attention_in_float32_loses_no_more_than_its_formula(case):
    checked(case, lambda c: check_attention(c, stages=False))


@once
@given(cases(dtypes=HALF))
def test_attention_in_half_precision_loses_no_more_than_its_unit(case):
    checked(case, lambda c: check_attention(c, stages=False))


@once
@given(cases(dtypes=("float64",)), st.data())
def test_what_is_not_finite_spoils_only_rows_that_see_it(case, data):
    assume(case.mask is not None)
    name = data.draw(st.sampled_from(spoilable(case)))
    checked(case, lambda c: check_spoiled(c, name))


@settings(once, max_examples=max(6, settings().max_examples // 20))
@given(cases(dtypes=("float64", "float32")), st.booleans())
def test_compiled_models_run_what_was_written_without_falling_back(case, dynamic):
    torch._dynamo.reset()
    checked(case, lambda c: check_compiled(c, dynamic), most=20)


@pytest.mark.parametrize(
    "seed, check",
    [
        (1062, check_attention),  # a million from 0, queries that are keys: squares multiplied out have no digits
        (20606, check_attention),  # queries that are keys, under a squared distance
        (20132, lambda case: check_spoiled(case, "s4")),  # NaN in a bias that has -inf of its own
        (15, lambda case: check_spoiled(case, "k")),  # no heads
    ],
)
def test_draws_that_were_wrong_once(seed, check):
    check(draw_case(random.Random(seed), frozenset()))


def test_a_wrong_number_would_be_noticed(monkeypatch):
    """The comparison itself: an oracle that is off by one part in a thousand disagrees."""
    real = oracle.attention

    def off(case, x, dtype):
        o, *rest = real(case, x, dtype)
        return o * (1 + 1e-3), *rest

    monkeypatch.setattr(oracle, "attention", off)
    noticed = []

    @settings(max_examples=15, derandomize=True, database=None)
    @given(cases(dtypes=("float64", "float32")))
    def run(case):
        try:
            check_attention(case, stages=False)
        except Wrong:
            noticed.append(1)

    run()
    assert len(noticed) >= 8
