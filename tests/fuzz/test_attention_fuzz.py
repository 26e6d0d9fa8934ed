"""Drawn attentions against `tests.fuzz.oracle`: eager, the interpreter of every stage, kernels, compiled models.

``make fuzz`` draws many; `tests.fuzz.survey` collects failures instead of stopping at the first, and makes them small.
"""

import random
from collections import Counter

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from tests.fuzz import oracle
from tests.fuzz.check import Judge, Wrong, check_attention, check_compiled, check_spoiled, tensors
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
        (805247, check_attention),  # logits in half precision: slopes of roots of small probabilities overflowed
        (800788, check_attention),  # |(q - k)·w| of equal tokens, whose slope was that of rounding
        (800340, check_attention),  # equal distributions were 1e-15 apart
        (805459, check_attention),  # the same in double precision
        (850966, check_attention),  # a sink that takes little weight: its slope was a rounded 1 minus the rest
        (800692, check_attention),  # the same in half precision
        (903574, check_attention),  # queries that are keys, in half precision: one of two gradients leaves its range
        (908335, check_attention),  # a bias of -inf for all keys, in the library's attention
        (501851, check_attention),  # a constant score: its gradient is a sum of errors that rows share
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


def test_a_small_error_in_a_gradient_that_does_not_cancel_would_be_noticed():
    """What is allowed for rounding where summands cancel is allowed nowhere else: where they do not, and the formula
    keeps its digits, one part in ten thousand is too much, whatever the gradient is that of."""
    planted = Counter()
    for seed in range(100):
        case = draw_case(random.Random(seed), frozenset(), ("float32",))
        judge, x = Judge(case), tensors(case)
        for name, want in judge.want.grads.items():
            at = int(want.abs().argmax()) if want.numel() else 0
            largest = float(want.flatten()[at].abs()) if want.numel() else 0.0
            lost = max((float((r.grads[name].double() - want).abs().max()) for r in judge.rough if largest), default=0)
            added_up = float(judge.want.sizes[name].flatten()[at]) if name in judge.want.sizes and largest else 0.0
            if name in ("fq", "fk") or not 1e-30 < largest < 1e30 or added_up > 16 * largest or lost > 1e-6 * largest:
                continue
            got = want.to(x[name].dtype)
            judge.gradients("exact", x, {name: got})
            got = got.contiguous().clone()
            got.view(-1)[at] *= 1 + 1e-4
            with pytest.raises(Wrong):
                judge.gradients("planted", x, {name: got})
            planted[name] += 1
    assert planted["q"] >= 20 and planted["v"] >= 40 and len(planted) >= 8, planted
