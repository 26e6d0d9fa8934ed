"""Witnesses of wrong, empty or malformed claims do not pass."""

from __future__ import annotations

import math

import pytest

from aatc.ir.errors import ScoreError
from aatc.ir.parser import parse_program
from aatc.ir.score.expr import call
from aatc.passes.certificate import certify, verify


def body(text: str):
    return parse_program(f"(q: f[bhid], k: f[bhjd]) => {text}").body


DOT = body("dot(q, k)")
BIG = "minimum(exp(1000.0 * (dot(q, q) + dot(k, k))), 0.0)"  # 0, of a part that is huge


@pytest.mark.parametrize(
    "witness",
    [
        ("equal", DOT, body("2.0 * dot(q, k)")),
        ("equal", body(f"dot(q, k) + {BIG}"), body(f"2.0 * dot(q, k) + {BIG}")),
        ("row-constant", body(f"dot(q, k) + {BIG}"), body(f"2.0 * dot(q, k) + {BIG}")),
        ("bound", body(f"dot(q, k) + {BIG}"), -0.1, 0.1),
        ("bound", body("exp(exp(exp(9.0 + dot(q, q))))"), 0.0, 1.0),
        ("equal", body("dot(q, k) / 0.0"), DOT),
        ("equal", body("minimum(dot(q, k), 1.0 / 0.0)"), body("2.0 * dot(q, k)")),
        ("equal", body("width(q)"), body("4.0")),
        ("equal", body("i"), body("minimum(i, 100000)")),
        ("equal-where", body("i < 0"), body("i < 0"), DOT, DOT),
    ],
    ids=lambda w: str(w[1])[:40],
)
def test_wrong_or_empty_claims_fail(witness) -> None:
    assert not verify(witness) < 1e-6
    with pytest.raises(ScoreError, match="does not hold"):
        certify("a rule", "a claim", witness)


@pytest.mark.parametrize(
    "witness",
    [
        (),
        [],
        ("nonsense", DOT, DOT),
        ("equal", DOT),
        ("equal", DOT, 3),
        ("equal", DOT, DOT, DOT),
        ("equal", DOT, DOT, ("q",)),
        ("equal", DOT, DOT, (("q", 3),)),
        ("equal", DOT, DOT, (("q", (3, 3)),)),
        ("equal", DOT, DOT, (("q", (3,)), ("k", (5,)))),
        ("equal", body("dot(q, q) < 1.0"), body("dot(q, q) < 1.5")),
        ("equal-where", DOT, DOT, DOT, DOT),
        ("bound", DOT, math.nan, math.nan),
        ("bound", DOT, -math.inf, math.nan),
        ("bound", DOT, 1.0, 0.0),
        ("bound", DOT, "low", "high"),
    ],
    ids=lambda w: str(w)[:50],
)
def test_what_is_no_witness_is_a_typed_error(witness) -> None:
    with pytest.raises(ScoreError, match="no witness"):
        verify(witness)


BALL = "acosh(1.0 + 2.0 * (dot(q - k, q - k) / ((1.0 - dot(q, q)) * (1.0 - dot(k, k)))))"
SPLIT = "(1.0 - dot(q, q) - dot(k, k) + dot(q, q) * dot(k, k))"
CLOSED = "where(i <= j, dot(q, k), -inf)"


@pytest.mark.parametrize(
    "before, after",
    [
        (BALL, f"acosh(1.0 + 2.0 * ((dot(q, q) + dot(k, k) - 2.0 * dot(q, k)) / {SPLIT}))"),
        ("1.0 / (1.0 - dot(q, q))", "-1.0 / (dot(q, q) - 1.0)"),
        (CLOSED, "where(j >= i, dot(q, k), -inf)"),
        (f"{CLOSED} + 1.0", "where(i <= j, dot(q, k) + 1.0, -inf)"),
    ],
)
def test_poles_and_infinities_that_are_meant_are_no_deviation(before, after) -> None:
    assert verify(("equal", body(before), body(after))) <= 1e-9


@pytest.mark.parametrize(
    "before, after",
    [
        (BALL, f"acosh(1.0 + 2.0001 * ((dot(q, q) + dot(k, k) - 2.0 * dot(q, k)) / {SPLIT}))"),
        (BALL, f"acosh(1.0 + 2.0 * ((dot(q, q) + dot(k, k) - 2.0 * dot(q, k)) / abs({SPLIT}))) + 1.0e-6"),
        ("1.0 / (1.0 - dot(q, q))", "1.0000001 / (1.0 - dot(q, q))"),
        (CLOSED, "where(i <= j, dot(q, k), 0.0)"),
        (CLOSED, "where(i <= j, dot(q, k), inf)"),
        (CLOSED, "where(i < j, dot(q, k), -inf)"),
        ("where(i <= j, dot(q, k), 0.0)", CLOSED),
        ("where(i <= j, 1.0 / (1.0 - dot(q, q)), -inf)", "where(i <= j, 1.001 / (1.0 - dot(q, q)), -inf)"),
    ],
)
def test_wrong_rewrites_beside_poles_and_infinities_are_refused(before, after) -> None:
    assert not verify(("equal", body(before), body(after))) <= 1e-9


def test_numbers_that_have_lost_their_digits_beside_a_pole_say_nothing() -> None:
    """Vectors of length 1 lie on the pole, or a rounding away from it."""
    operands = "(beta: f[], q: f[bhid], fq: f[bide], fk: f[bjde], k: f[bhjd])"
    widths = (("q", (4,)), ("k", (4,)), ("fq", (4, 4)), ("fk", (4, 4)))
    written, made = (
        f"{operands} => let x = unturn(fq, turn(fk, k)); y = q - x in beta * square(acosh(1.0 + 2.0 * (dot(y, y) / "
        "((1.0 - dot(q, q)) * (1.0 - dot(x, x)))))) + -1.5",
        f"{operands} => let x = turn(fq, q) - turn(fk, k); y = 1.0 - dot(q, q) in {{}}beta * square(acosh(2.0 * "
        "(dot(x, x) / (-(y * dot(k, k)) + y)) + 1.0)) + -1.5",
    )
    before = parse_program(written).body
    assert verify(("equal", before, parse_program(made.format("")).body, widths)) <= 1e-9
    assert not verify(("equal", before, parse_program(made.format("1.0001 * ")).body, widths)) <= 1e-9


def test_poles_that_a_saturating_word_hides_say_nothing() -> None:
    """A capped distance of vectors of length 1: infinite on one side and 0 on the other, and the cap makes 2 and 0."""
    capped = "2.0 * tanh(0.5 * square({}))"
    before = capped.format(BALL)
    after = capped.format(f"acosh(2.0 * ((dot(q, q) + dot(k, k) - 2.0 * dot(q, k)) / {SPLIT}) + 1.0)")
    assert verify(("equal", body(before), body(after))) <= 1e-9
    wrong = after.replace("tanh(0.5", "tanh(0.50001")
    assert not verify(("equal", body(before), body(wrong))) <= 1e-9


def test_rounding_is_no_deviation() -> None:
    """Large numbers that cancel leave their rounding, which is not the rule's fault."""
    expanded = body("dot(q, q) - 2.0 * dot(q, k) + dot(k, k)")
    assert verify(("equal", body("sum(square(q - k))"), expanded)) <= 1e-9
    assert verify(("equal", body("sqrt(sum(square(q - k)))"), call("sqrt", expanded))) <= 1e-9


@pytest.mark.parametrize(("off", "explained"), [(1e-8, True), (4e-6, False)])
def test_rounding_explains_what_it_makes_and_no_more(off: float, explained: bool) -> None:
    """Beside 1e8, whose last digit is 1.5e-8: a hundredth of a millionth may be rounding, four millionths are not."""
    found = verify(("equal", body("sum((q + 100000000.0) - 100000000.0)"), body(f"sum(q) + {off!r}")))
    assert found <= 1e-9 if explained else found > 1e-6
