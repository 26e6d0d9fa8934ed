"""Drawn attentions against `tests.fuzz.oracle`: eager, the interpreter of every stage, kernels, compiled models.

``make fuzz`` draws many; `tests.fuzz.survey` collects failures instead of stopping at the first, and makes them small.
"""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.fuzz import oracle
from tests.fuzz.check import Wrong, check_attention, check_compiled, check_spoiled
from tests.fuzz.strategies import cases, spoilable

HALF = ("bfloat16", "float16")
pytestmark = pytest.mark.usefixtures("one_thread")


@given(cases(dtypes=("float64",)))
def test_attention_in_float64_is_right_in_every_layer(case):
    check_attention(case)


@given(cases(dtypes=("float32",)))
def test_attention_in_float32_loses_no_more_than_its_formula(case):
    check_attention(case, stages=False)


@given(cases(dtypes=HALF))
def test_attention_in_half_precision_loses_no_more_than_its_unit(case):
    check_attention(case, stages=False)


@given(cases(dtypes=("float64", "float32")), st.data())
def test_what_is_not_finite_spoils_only_rows_that_see_it(case, data):
    assume(case.mask is not None and 0 not in case.sizes)
    check_spoiled(case, data.draw(st.sampled_from(spoilable(case))))


@settings(max_examples=max(6, settings().max_examples // 20))
@given(cases(dtypes=("float64", "float32")), st.booleans())
def test_compiled_models_run_what_was_written_without_falling_back(case, dynamic):
    torch._dynamo.reset()
    check_compiled(case, dynamic)


def test_a_wrong_number_would_be_noticed(monkeypatch):
    """The comparison itself: an oracle that is off by one part in a thousand disagrees."""
    real = oracle.attention

    def off(case, x, dtype):
        o, *rest = real(case, x, dtype)
        return o * (1 + 1e-3), *rest

    monkeypatch.setattr(oracle, "attention", off)
    noticed = []

    @settings(max_examples=5, derandomize=True, database=None)
    @given(cases(dtypes=("float64", "float32")))
    def run(case):
        try:
            check_attention(case, stages=False)
        except Wrong:
            noticed.append(1)

    run()
    assert len(noticed) >= 4
