"""Numbers that parts of an attention are given: of numpy, too large, or none at all, eager and compiled."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import aatc
from aatc import biases, connections, masks, metrics, normalizers
from aatc.errors import AatcError

#: name -> what it does to an attention
PLACES = {
    "scale": lambda x: {"metric": metrics.DotProduct(), "scale": x},
    "soft cap": lambda x: {"metric": metrics.DotProduct(), "soft_cap": x},
    "beta": lambda x: {"metric": metrics.LorentzDistance(beta=x, lift=True)},
    "curvature": lambda x: {"metric": metrics.LorentzDistance(curvature=x, lift=True)},
    "shift": lambda x: {"metric": metrics.DotProduct(), "normalizer": normalizers.Sigmoid(x)},
    "sink": lambda x: {"metric": metrics.DotProduct(), "normalizer": normalizers.Softmax(sink=x)},
    "base": lambda x: {"metric": metrics.DotProduct(), "connection": connections.Rotary(base=x)},
}
WHOLE = {
    "causal": lambda x: {"metric": metrics.DotProduct(), "mask": masks.causal(x)},
    "window": lambda x: {"metric": metrics.DotProduct(), "mask": masks.sliding_window(x)},
    "seed": lambda x: {"metric": metrics.DotProduct(), "dropout": 0.5, "seed": x},
}


def both(place, x):
    q = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def attend(q):
        return aatc.attend(q, q, q, **place(x))

    torch.compiler.reset()
    return [lambda: attend(q), lambda: aatc.compile(attend)(q)]


@pytest.mark.parametrize("make", [np.float64, np.float32, lambda x: np.array(x), lambda x: np.array([x, x])])
@pytest.mark.parametrize("place", PLACES)
def test_numbers_of_numpy_are_numbers(place, make):
    want = both(PLACES[place], 2.0)[0]()
    for run in both(PLACES[place], make(2.0)):
        if place == "base" and np.ndim(make(2.0)):
            with pytest.raises(AatcError, match="one number"):
                run()
        else:
            torch.testing.assert_close(run(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("place", WHOLE)
def test_whole_numbers_of_numpy_are_numbers_and_others_are_refused(place):
    want = both(WHOLE[place], 2)[0]()
    for run in both(WHOLE[place], np.int64(2)):
        torch.testing.assert_close(run(), want, rtol=1e-6, atol=1e-6)
    for x in (np.float64(1.7), np.float32(2.0), 1.7, np.array(0.5), "2"):
        for run in both(WHOLE[place], x):
            with pytest.raises(AatcError, match="integer"):
                run()


@pytest.mark.parametrize(
    "x",
    ["x", 1j, [1.0], 10**400, -(10**400), torch.tensor(1j)],
    ids=["text", "complex", "list", "huge", "minus huge", "tensor"],
)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_number_is_a_typed_error(place, x):
    runs = both(PLACES[place], x)
    if place == "beta" and isinstance(x, int):
        runs.pop()  # a constructor that looks at nothing: Dynamo makes an input of it, and fails
    for run in runs:
        with pytest.raises(AatcError):
            run()


@pytest.mark.parametrize("place", PLACES)
def test_fractions_are_numbers_in_eager(place):
    want = both(PLACES[place], 0.5)[0]()
    torch.testing.assert_close(both(PLACES[place], Fraction(1, 2))[0](), want)


@pytest.mark.parametrize("curvature", [0, 0.0, -1.0])
def test_curvature_is_positive(curvature):
    with pytest.raises(AatcError, match="not positive"):
        metrics.LorentzDistance(curvature=curvature, lift=True)


class Only:
    """What is a number by `__float__` alone, or says that it is none."""

    def __init__(self, x):
        self.x = x

    def __float__(self):
        return self.x


def test_what_has_a_float_is_that_number():
    want = both(PLACES["scale"], 0.5)[0]()
    torch.testing.assert_close(both(PLACES["scale"], Only(0.5))[0](), want)
    for x in (Only("x"), Fraction(10**400)):
        with pytest.raises(AatcError):
            both(PLACES["scale"], x)[0]()


def test_heads_of_alibi_are_a_number_of_heads():
    with pytest.raises(AatcError, match="number of heads"):
        biases.ALiBi(2**63)


def test_a_sink_of_minus_infinity_is_none():
    want = both(lambda _: {"metric": metrics.DotProduct()}, 0)[0]()
    for run in both(PLACES["sink"], -math.inf):
        torch.testing.assert_close(run(), want)


@pytest.mark.parametrize("place", ["scale", "soft cap", "beta"])
@pytest.mark.parametrize("x", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(place, x):
    for run in both(PLACES[place], x):
        with pytest.raises(AatcError, match=f"{place.replace(chr(32), chr(95))} is {x}"):
            run()
