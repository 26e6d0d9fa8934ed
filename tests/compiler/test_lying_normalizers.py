"""Normalisers that are not what they say: kernels would believe them."""

import pytest

from aatc.errors import VerifyError
from aatc.ir.normalizers.probe import probe
from aatc.ir.score.expr import add, call, const
from aatc.normalizers import NORMALIZERS, SCORE, Normalizer, register


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr("aatc.ir.normalizers.NORMALIZERS", dict(NORMALIZERS))


def declared(weight, **more):
    return type("Other", (Normalizer,), {"name": "other", "weight": lambda self, unit: weight(unit), **more})()


def ramp(unit):
    return call("relu", add(SCORE, const(30.0)))


def exponential(unit):
    return call("exp2" if unit != 1 else "exp", SCORE)


LIES = {
    "exponential": (declared(ramp, exponential=True), "exponential"),
    "almost exponential": (
        declared(lambda u: call("exp", call("mul", const(1.0001), SCORE)), exponential=True),
        "exponential",
    ),
    "invariant": (declared(ramp, normalized=True, invariant=frozenset({"row"})), "added to a row"),
    "invariant without a sum": (declared(exponential, invariant=frozenset({"row"})), "added to a row"),
    "an unknown invariance": (declared(ramp, invariant=frozenset({"column"})), "is invariant to"),
    "a word for a set": (declared(ramp, invariant="row"), "is invariant to"),
    "below 0": (declared(lambda u: call("sub", call("relu", SCORE), call("relu", add(SCORE, const(0.5))))), "below 0"),
    "nothing": (declared(lambda u: None), "no expression"),
    "an error": (declared(lambda u: 1 / 0), "ZeroDivisionError"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_not_so_is_refused(lie):
    normalizer, message = LIES[lie]
    with pytest.raises(VerifyError, match=message):
        register(normalizer)


@pytest.mark.parametrize(
    "true",
    [
        declared(ramp),
        declared(exponential, exponential=True),
        declared(exponential, normalized=True, exponential=True, invariant=frozenset({"row"})),
    ],
)
def test_what_is_so_is_registered(true):
    assert register(true) is true


@pytest.mark.parametrize("name", NORMALIZERS)
def test_ours_hold(name):
    NORMALIZERS[name].check()
    probe(NORMALIZERS[name])
