"""Random corruptions of results whose witness claims a value of data: of value, claim, both, or data."""

import dataclasses
from fractions import Fraction

import numpy as np

from aatc.passes.analysis.claims import deviation


def leaves(value, path=()):
    """Paths to the numbers and texts of a plain value, or of a value with dataclasses."""
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in leaves(v, (*path, k))]
    if isinstance(value, tuple):
        return [p for k, v in enumerate(value) for p in leaves(v, (*path, k))]
    return [path]


def replaced(value, path, change):
    if not path:
        return change(value)
    if isinstance(value, dict):
        return {**value, path[0]: replaced(value[path[0]], path[1:], change)}
    return tuple(replaced(v, path[1:], change) if k == path[0] else v for k, v in enumerate(value))


def corrupt_entry(rng):
    """One number off by 1e-4 to 1 of its size, or replaced by NaN, an infinity or another shape."""

    def change(x):
        if isinstance(x, bool):
            return not x
        if isinstance(x, Fraction):
            return x + Fraction(int(rng.integers(1, 4)), 7)
        if isinstance(x, str):
            return x + "!"
        if isinstance(x, (int, np.integer)) and not isinstance(x, np.ndarray):
            return int(x) + int(rng.integers(1, 4))
        array = np.array(x)
        if array.dtype.kind in "iu":
            array = array.copy()
            array.reshape(-1)[rng.integers(array.size)] += 1
            return array
        flat = array.reshape(-1).copy()
        if array.size > 1 and array.dtype.kind in "fc" and rng.random() < 0.1:  # two entries that differ change places
            first = rng.integers(flat.size)
            others = np.flatnonzero(abs(flat - flat[first]) > 1e-6 * abs(flat).max())
            if len(others):
                second = rng.choice(others)
                flat[[first, second]] = flat[[second, first]]
                return flat.reshape(array.shape)
        array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
        drawn = rng.random()
        if drawn < 0.05:
            return np.concatenate([array.reshape(-1), [0.0]])
        off = (
            np.nan if drawn < 0.1 else np.inf if drawn < 0.15 else 10 ** rng.uniform(-4, 0) * max(1.0, abs(array).max())
        )
        with np.errstate(invalid="ignore"):
            array.reshape(-1)[rng.integers(array.size)] += off * rng.choice([-1, 1])
        return array

    return change


def corrupt_leaf(rng):
    """All of a leaf moved by a per cent or more of its size: single entries of a table may weigh nothing."""

    def change(x):
        if isinstance(x, (bool, str, int, np.integer, Fraction)):
            return corrupt_entry(rng)(x)
        if hasattr(x, "toarray"):
            return x * (1.02 + rng.random())
        array = np.asarray(x)
        if array.dtype.kind == "b":
            flat = array.reshape(-1).copy()
            flat[rng.integers(flat.size)] ^= True
            return flat.reshape(array.shape)
        if array.dtype.kind in "iu":
            return array + rng.integers(1, 3, array.shape)
        return array * (1 + rng.uniform(0.01, 1)) + 10 ** rng.uniform(-2, 0) * rng.standard_normal(array.shape)

    return change


def accepted(good, rng, draws, of_data):
    """Of so many corruptions of a result, the first ``of_data`` of them of its data, those that its check accepts."""
    data, claim, make = good.witness.data, good.witness.claim, type(good.witness)
    places, sources = leaves(claim), [p for p in leaves(data) if not callable(at(data, p))]
    passed = []
    for n in range(draws):
        if n < of_data:
            place = sources[rng.integers(len(sources))]
            bad = dataclasses.replace(
                good, witness=make(good.witness.kind, replaced(data, place, corrupt_leaf(rng)), claim)
            )
        else:
            wrong = claim
            while deviation(wrong, claim) <= 1e-5:  # −∞ and a step more, two entries alike that change places
                place = places[rng.integers(len(places))]
                wrong = claim if callable(at(claim, place)) else replaced(claim, place, corrupt_entry(rng))
            lies = make(good.witness.kind, data, wrong)
            kinds = (
                dataclasses.replace(good, value=wrong),  # a value that is not the witness's
                dataclasses.replace(good, witness=lies),  # a claim that the data does not give
                dataclasses.replace(good, value=wrong, witness=lies),  # both in accord
            )
            bad = kinds[n % 3]
        with np.errstate(all="ignore"):
            if bad.verify() <= bad.tolerance:
                passed.append((n, place))
    return passed


def remember(monkeypatch, checks):
    """What ``checks`` find of the same data is not computed again while a test runs."""
    for kind, function in list(checks.items()):
        found = {}

        def once(data, function=function, found=found):
            if id(data) not in found:
                found[id(data)] = (data, function(data))
            return found[id(data)][1]

        monkeypatch.setitem(checks, kind, once)


def at(value, path):
    for step in path:
        value = value[step]
    return value
