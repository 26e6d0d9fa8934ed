"""Exponents of fractals, of Brownian motion and of weights by distance, and how often their intervals are right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc.analysis import scale
from aatc.passes.analysis.scale.coarse_graining import ScaleError
from tests.analysis.scale_cases import by_distance, cantor, carpet


@pytest.mark.parametrize(
    "cells, dimension",
    [
        (cantor(7), np.log(2) / np.log(3)),
        (cantor(4)[:, None] & cantor(4), np.log(4) / np.log(3)),
        (carpet(4), np.log(8) / np.log(3)),
        (np.ones((27, 81), dtype=bool), 2.0),
        (np.eye(81, dtype=bool), 1.0),
        (np.ones((27, 27, 27), dtype=bool), 3.0),
        (np.arange(81) == 80, 0.0),
    ],
)
def test_boxes_count_the_dimension_of_fractals(cells, dimension):
    found = scale.box_dimension(cells, base=3)
    assert found.value.value == pytest.approx(dimension, abs=1e-12)
    assert found.value.high - found.value.low < 1e-6 and found.proof_level == "P3"
    assert found.verify() <= found.tolerance


@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([2, 3]))
def test_boxes_are_counted_as_cells_lie(seed, axes, base):
    rng = np.random.default_rng(seed)
    shape = rng.integers(base**3, 40, axes)
    cells = rng.random(shape) < rng.choice([0.01, 0.2, 0.9])
    cells.reshape(-1)[0] = True
    found = scale.box_dimension(cells, base=base)
    for side, count in zip(found.value.scales.astype(int), found.value.measured):
        assert count == len({tuple(c // side) for c in np.argwhere(cells)})
    assert found.verify() <= found.tolerance
    turned = scale.box_dimension(np.moveaxis(cells, 0, -1), base=base).value
    assert turned.value == pytest.approx(found.value.value, abs=1e-12)


def test_brownian_motion_has_exponent_one_half_and_its_interval_covers_it():
    found = [scale.hurst_exponent(np.random.default_rng(s).normal(size=2048).cumsum()).value for s in range(200)]
    values = np.array([f.value for f in found])
    covered = np.mean([f.low <= 0.5 <= f.high for f in found])
    assert values.mean() == pytest.approx(0.5, abs=0.005)
    assert 0.9 <= covered <= 0.99  # 95 %, within four standard deviations of 200 draws
    assert found[0].high - found[0].low < 0.2


def test_exponents_of_increments_follow_the_series():
    rng = np.random.default_rng(1)
    white = rng.normal(size=4096)
    assert scale.hurst_exponent(white).value.value == pytest.approx(0, abs=0.02)
    assert scale.hurst_exponent(np.arange(4096.0)).value.value == pytest.approx(1, abs=1e-9)
    x = white.cumsum()
    one = scale.hurst_exponent(x).value
    for other in (-3 * x + 7, x[::-1]):  # units, origin and direction do not matter
        assert scale.hurst_exponent(other).value.slope == pytest.approx(one.slope, abs=1e-9)
    wide = scale.hurst_exponent(x, confidence=0.999).value
    assert wide.low < one.low < one.high < wide.high and wide.value == one.value


@pytest.mark.parametrize("seed", range(3))
def test_fractional_motion_has_its_exponent(seed):
    """Gaussian with covariance ½(s^2H + t^2H − |s − t|^2H), by Cholesky."""
    rng, t = np.random.default_rng(seed), np.arange(1.0, 801)
    for h in (0.25, 0.7):
        covariance = (t[:, None] ** (2 * h) + t ** (2 * h) - np.abs(t[:, None] - t) ** (2 * h)) / 2
        path = np.linalg.cholesky(covariance) @ rng.normal(size=800)
        assert scale.hurst_exponent(path).value.value == pytest.approx(h, abs=0.12)


@given(st.floats(-3, 3), st.floats(0.1, 10), st.integers(3, 9))
def test_powers_are_found_and_straight_lines_have_narrow_intervals(power, factor, count):
    scales = 2.0 ** np.arange(count)
    found = scale.scaling_exponent(scales, factor * scales**power)
    assert found.value.value == pytest.approx(power, abs=1e-9)
    assert found.value.low <= power + 1e-9 and found.value.high >= power - 1e-9 and found.verify() <= found.tolerance


def test_intervals_of_lines_cover_their_slope():
    rng, x = np.random.default_rng(0), 2.0 ** np.arange(7)
    inside = 0
    for _ in range(400):
        value = scale.scaling_exponent(x, x**0.8 * np.exp(rng.normal(size=7) * 0.3), confidence=0.9).value
        inside += value.low <= 0.8 <= value.high
    assert 0.84 <= inside / 400 <= 0.96


def test_weight_leaves_blocks_as_distance_says():
    n = 512
    band = np.eye(n) / 2 + np.eye(n, k=1) / 4 + np.eye(n, k=-1) / 4
    band[0, 0] = band[-1, -1] = 3 / 4
    assert scale.escape_exponent(band).value.value == pytest.approx(1, abs=1e-9)
    even = scale.escape_exponent(np.full((n, n), 1 / n))
    np.testing.assert_allclose(even.value.measured, 1, atol=1e-12)
    assert even.value.value == pytest.approx(0, abs=1e-12)
    steep = [scale.escape_exponent(by_distance(n, p)).value.value for p in (1.2, 1.5, 1.8, 3.0)]
    assert steep == sorted(steep) and steep[1] == pytest.approx(0.5, abs=0.1)


@given(st.integers(0, 10**6), st.integers(13, 70))
def test_what_leaves_is_a_sum_over_pairs(seed, n):
    a = np.random.default_rng(seed).dirichlet(np.ones(n), n)
    found = scale.escape_exponent(a)
    token = np.arange(n)
    for b, share in zip(found.value.scales, found.value.measured):
        apart = token[:, None] // b != token // b
        assert share == pytest.approx((a * apart).sum() / n / apart.mean(), abs=1e-12)
    assert found.verify() <= found.tolerance
    both = scale.scale_invariants(a)
    assert [v.name for v in both.value] == ["escape exponent", "box dimension"]
    assert both.value[1].value == scale.box_dimension(a * n > 1 + 1e-6).value.value and both.verify() <= both.tolerance


def test_invariants_are_those_of_what_is_given():
    (boxes,) = scale.scale_invariants(carpet(3)).value
    (hurst,) = scale.scale_invariants(np.random.default_rng(0).normal(size=200).cumsum(), confidence=0.8).value
    assert (boxes.name, hurst.name, hurst.confidence) == ("box dimension", "Hurst exponent", 0.8)
    assert str(boxes).startswith("box dimension 1.684 (1.52 to 1.84)")


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: scale.box_dimension(np.ones(27)), "boolean"),
        (lambda: scale.box_dimension(np.ones(7, dtype=bool)), "8 cells"),
        (lambda: scale.box_dimension(np.zeros(27, dtype=bool)), "occupied"),
        (lambda: scale.box_dimension(cantor(4), base=1), "base 1"),
        (lambda: scale.box_dimension(cantor(4), confidence=1.0), "between 0 and 1"),
        (lambda: scale.hurst_exponent(np.zeros(200)), "stands still"),
        (lambda: scale.hurst_exponent(np.arange(100.0)), "128"),
        (lambda: scale.hurst_exponent(np.append(np.arange(200.0), np.inf)), "finite"),
        (lambda: scale.scaling_exponent([1, 2], [1, 2]), "3 or more"),
        (lambda: scale.scaling_exponent([1, 2, 2], [1, 2, 3]), "distinct"),
        (lambda: scale.scaling_exponent([1, 2, 4], [1, 0, 3]), "positive"),
        (lambda: scale.escape_exponent(np.eye(16)), "nothing leaves"),
        (lambda: scale.escape_exponent(np.eye(8)), "13 tokens"),
        (lambda: scale.scale_invariants(np.zeros((2, 3))), "no exponents"),
        (lambda: scale.scale_invariants([[1, 2], [3]]), "one array"),
    ],
)
def test_what_has_no_exponent_is_refused(call, text):
    with pytest.raises(ScaleError, match=text):
        call()
