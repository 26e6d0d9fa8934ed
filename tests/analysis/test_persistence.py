import dataclasses
import sys

import gudhi
import numpy as np
import persim
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ripser import ripser

from aatc.passes.analysis.chains import spaces
from aatc.passes.analysis.chains.complexes import flag_complex
from aatc.passes.analysis.chains.homology import betti_numbers
from aatc.passes.analysis.cohomology.cohomology import CohomologyStructure
from aatc.passes.analysis.cohomology.persistence import (
    BackendError,
    FiltrationError,
    attention_dissimilarity,
    attention_persistence,
    bottleneck_distance,
    edge_threshold,
    filtration_persistence,
    rips_persistence,
    rips_values,
)
from aatc.passes.analysis.result import BudgetError, Cost, verify


def random_dissimilarity(seed: int, n: int) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).integers(1, 64, (n, n)) / 16, 1)
    return upper + upper.T


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def bars_of(diagram) -> np.ndarray:
    array = np.asarray(diagram, float).reshape(-1, 2)
    array = array[array[:, 0] < array[:, 1]]
    return array[np.lexsort((array[:, 1], array[:, 0]))]


dissimilarities = st.builds(random_dissimilarity, st.integers(0, 10**6), st.integers(1, 11))


@given(dissimilarities, st.sampled_from([2, 3]), st.sampled_from([np.inf, 2.5]))
def test_all_backends_agree_with_gudhi_and_ripser(d, p, threshold):
    tree = gudhi.RipsComplex(distance_matrix=d, max_edge_length=threshold).create_simplex_tree(max_dimension=3)
    tree.compute_persistence(homology_coeff_field=p, persistence_dim_max=True)
    direct = ripser(d, 2, threshold, p, True)["dgms"]
    for backend in ("own", "gudhi", "ripser", "auto"):
        found = rips_persistence(d, 2, modulus=p, threshold=threshold, backend=backend).value
        assert found.modulus == p and found.threshold == threshold
        for k in range(3):
            want = bars_of(tree.persistence_intervals_in_dimension(k))
            assert found.bars[k].shape == want.shape and (found.bars[k] == want).all()
            assert (bars_of(direct[k]) == want).all()


@given(dissimilarities)
def test_edge_collapses_change_no_bar_of_degrees_zero_and_one(d):
    one, two = (rips_persistence(d, 1, backend=b).value.bars for b in ("gudhi", "own"))
    for a, b in zip(one, two):
        assert a.shape == b.shape and (a == b).all()


@given(dissimilarities, st.floats(0.0, 4.5), st.sampled_from([2, 5]))
def test_bars_alive_at_a_value_count_the_betti_numbers_there(d, value, p):
    found = rips_persistence(d, 1, modulus=p, backend="own").value.betti(value)
    joined = (d <= value) & ~np.eye(len(d), dtype=bool)
    want = [*betti_numbers(flag_complex(joined, 2), p), 0][:2]
    assert list(found) == want


@given(dissimilarities, st.sampled_from([2, 3]))
def test_every_bar_has_a_cycle_and_a_filling_that_verify(d, p):
    complex = flag_complex(~np.eye(len(d), dtype=bool), 2)
    result = filtration_persistence(complex, rips_values(complex, d), p, representatives=True)
    plain = filtration_persistence(complex, rips_values(complex, d), p)
    assert result.verify() == 0
    for k, witness in enumerate(result.witness.degrees):
        assert verify(witness) == 0
        assert (bars_of(witness.bars) == result.value.bars[k]).all() and (
            plain.value.bars[k] == result.value.bars[k]
        ).all()


@pytest.mark.parametrize("part", ["bars", "cycles", "fillings", "doubled"])
def test_a_wrong_barcode_witness_is_caught(part):
    d = random_dissimilarity(4, 9)
    complex = flag_complex(~np.eye(9, dtype=bool), 2)
    witness = filtration_persistence(complex, rips_values(complex, d), 3, representatives=True).witness.degrees[1]
    assert verify(witness) == 0 and len(witness.bars)
    if part == "doubled":
        twice = {
            f: np.repeat(getattr(witness, f), 2, axis=0 if f == "bars" else 1) for f in ("bars", "cycles", "fillings")
        }
        assert verify(dataclasses.replace(witness, **twice)) > 0
        return
    wrong = getattr(witness, part).copy()
    wrong[0, 0] += 1
    assert verify(dataclasses.replace(witness, **{part: wrong})) > 0


def test_a_barcode_with_a_bar_left_out_is_caught():
    d = random_dissimilarity(4, 9)
    complex = flag_complex(~np.eye(9, dtype=bool), 2)
    witness = filtration_persistence(complex, rips_values(complex, d), 3, representatives=True).witness
    assert verify(witness) == 0
    short = dataclasses.replace(
        witness.degrees[1],
        bars=witness.degrees[1].bars[1:],
        cycles=witness.degrees[1].cycles[:, 1:],
        fillings=witness.degrees[1].fillings[:, 1:],
    )
    assert verify(short) == 0
    assert verify(dataclasses.replace(witness, degrees=(witness.degrees[0], short, witness.degrees[2]))) > 0


def test_persistence_of_a_space_with_torsion_depends_on_the_field():
    plane = spaces.projective_plane()
    values = [np.zeros(c) for c in plane.counts]
    for p, betti in ((2, [1, 1, 1]), (3, [1, 0, 0])):
        bars = CohomologyStructure(plane, p).persistent_homology(values).value.bars
        assert [len(b) for b in bars] == betti and all(b.shape[1] == 2 for b in bars)


@given(dissimilarities, st.integers(0, 10**6), st.floats(0.0, 0.5))
def test_barcodes_move_no_further_than_the_dissimilarity(d, seed, size):
    noise = np.triu(np.random.default_rng(seed).uniform(-size, size, d.shape), 1)
    moved = np.where(np.eye(len(d)), 0.0, np.maximum(d + noise + noise.T, 0.0))
    one, two = (rips_persistence(x, 1, backend="own").value.bars for x in (d, moved))
    for a, b in zip(one, two):
        assert bottleneck_distance(a, b) <= np.abs(moved - d).max() + 1e-12


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_bottleneck_distance_agrees_with_persim(seed, m, n):
    rng = np.random.default_rng(seed)
    one, two = (np.column_stack([b, b + rng.uniform(0.01, 1, len(b))]) for b in (rng.random(m), rng.random(n)))
    assert bottleneck_distance(one, two) == pytest.approx(persim.bottleneck(one, two), abs=1e-12)
    assert bottleneck_distance(one, one) == 0
    assert bottleneck_distance([[0, np.inf]], np.zeros((0, 2))) == np.inf
    assert bottleneck_distance([[0, np.inf]], [[0.25, np.inf]]) == 0.25


def test_cocycles_of_long_bars_are_nonzero_on_the_circle():
    angles = 2 * np.pi * np.arange(24) / 24
    d = np.abs(np.exp(1j * angles)[:, None] - np.exp(1j * angles))
    d = (d + d.T) / 2
    found = rips_persistence(d, 1, modulus=3, representatives=True).value
    assert found.backend == "ripser" and len(found.cocycles[1]) == len(found.bars[1]) == 1
    (birth, death), cocycle = found.bars[1][0], found.cocycles[1][0]
    assert cocycle.shape[1] == 3 and death > 1.5 > birth
    # Around the polygon the cocycle sums to a unit: it pairs with the fundamental cycle.
    value = {(int(a), int(b)): int(v) for a, b, v in cocycle}
    total = sum(value.get((i, (i + 1) % 24), 0) - value.get(((i + 1) % 24, i), 0) for i in range(24))
    assert total % 3


def test_a_ring_of_attention_has_one_cycle():
    angles = 2 * np.pi * np.arange(64) / 64
    attention = softmax(20 * np.cos(angles[:, None] - angles))
    for kind in ("neglog", "complement"):
        bars = attention_persistence(attention, kind=kind, edges_per_token=None).value.bars
        lengths = bars[1][:, 1] - bars[1][:, 0]
        assert (lengths > 0.5 * lengths.max()).sum() == 1 and np.isinf(bars[0][:, 1]).sum() == 1


@given(st.integers(0, 10**6))
def test_a_cap_on_edges_gives_the_bars_below_its_threshold(seed):
    attention = softmax(np.random.default_rng(seed).normal(size=(20, 20)))
    whole = attention_persistence(attention, edges_per_token=None, backend="own").value.bars
    capped = attention_persistence(attention, edges_per_token=3).value
    t = capped.threshold
    assert (np.triu(attention_dissimilarity(attention) <= t, 1)).sum() == 60
    for full, part in zip(whole, capped.bars):
        kept = full[full[:, 0] <= t]
        kept = np.column_stack([kept[:, 0], np.where(kept[:, 1] <= t, kept[:, 1], np.inf)])
        assert (bars_of(kept) == part).all()


def test_forbidden_pairs_are_never_joined():
    attention = np.kron(np.eye(2), np.full((3, 3), 1 / 3))
    d = attention_dissimilarity(attention)
    assert np.isinf(d[0, 3]) and d[0, 1] == pytest.approx(np.log(3))
    for backend in ("annotations", "own", "gudhi", "ripser"):
        bars = rips_persistence(d, backend=backend).value.bars
        assert np.isinf(bars[0][:, 1]).sum() == 2 and bars[1].shape == (0, 2)
    assert edge_threshold(d, 10) == np.inf
    assert edge_threshold(d, 3) == -1.0 and len(rips_persistence(d, threshold=-1.0).value.bars[0]) == 6


def test_pairs_at_distance_zero_are_joined_at_once():
    d = np.array([[0.0, 0.0, np.inf], [0.0, 0.0, 1.0], [np.inf, 1.0, 0.0]])
    for backend in ("annotations", "own", "gudhi", "ripser"):
        assert rips_persistence(d, backend=backend).value.bars[0].tolist() == [[0, 1], [0, np.inf]]


@pytest.mark.parametrize(
    "call,error",
    [
        (lambda d: rips_persistence(d + np.triu(d)), FiltrationError),
        (lambda d: rips_persistence(-d), FiltrationError),
        (lambda d: rips_persistence(d + np.eye(6)), FiltrationError),
        (lambda d: rips_persistence(d, backend="phat"), BackendError),
        (lambda d: rips_persistence(d, backend="gudhi", representatives=True), BackendError),
        (lambda d: rips_persistence(d, 2, backend="annotations"), BackendError),
        (lambda d: rips_persistence(d, modulus=1048583, backend="annotations"), BackendError),
        (lambda d: rips_persistence(d, budget=Cost(seconds=1e-6)), BudgetError),
        (lambda d: attention_dissimilarity(d), FiltrationError),
        (lambda d: attention_dissimilarity(d / 8, "cosine"), FiltrationError),
        (lambda d: filtration_persistence(spaces.sphere(1), [[1, 0, 0], [0, 0, 0]]), FiltrationError),
        (lambda d: filtration_persistence(spaces.sphere(1), [[0, 0, 0]]), FiltrationError),
    ],
)
def test_bad_filtrations_and_backends_are_refused(call, error):
    with pytest.raises(error):
        call(random_dissimilarity(1, 6))


def test_an_empty_head_has_empty_barcodes():
    found = rips_persistence(np.zeros((0, 0)), 2).value.bars
    assert [b.shape for b in found] == [(0, 2)] * 3


@pytest.mark.parametrize("scale", [1e-300, 1e-60, 1e60, 1e300])
@pytest.mark.parametrize("cut", [False, True])
def test_units_do_not_matter_to_single_precision(scale, cut):
    d = random_dissimilarity(3, 12)
    d[0, 1] = d[1, 0] = np.inf if cut else d[0, 1]
    plain, scaled = (rips_persistence(x, 2, backend="ripser") for x in (d, d * scale))
    assert scaled.tolerance < 1e-6 * scale
    for one, two in zip(plain.value.bars, scaled.value.bars):
        np.testing.assert_allclose(two / scale, one, atol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: rips_persistence(np.zeros((2, 2)), threshold=np.nan),
        lambda: rips_persistence(np.zeros((2, 2)), -1),
        lambda: attention_persistence(np.eye(3), edges_per_token=-1),
        lambda: attention_persistence(np.eye(3), edges_per_token=np.nan),
        lambda: bottleneck_distance([[0, np.nan]], [[0, 1]]),
        lambda: bottleneck_distance([0, 1, 2], [[0, 1]]),
    ],
)
def test_what_has_no_bars_is_refused(call):
    with pytest.raises(FiltrationError):
        call()


def test_nan_in_a_barcode_is_caught():
    torus = spaces.torus()
    result = filtration_persistence(torus, [np.zeros(c) for c in torus.counts], representatives=True)
    assert result.verify() == 0
    for part in ("bars", "values"):
        wrong = getattr(result.witness.degrees[1], part).copy()
        wrong[0] = np.nan
        assert verify(dataclasses.replace(result.witness.degrees[1], **{part: wrong})) == np.inf


def test_missing_extras_leave_the_own_reduction_and_typed_refusals():
    d = random_dissimilarity(5, 9)
    expected = rips_persistence(d, 2, modulus=3, backend="gudhi").value.bars
    with pytest.MonkeyPatch.context() as patch:
        for name in ("gudhi", "ripser", "flint"):
            patch.setitem(sys.modules, name, None)
        found = rips_persistence(d, 2, modulus=3).value
        assert found.backend == "own"
        assert rips_persistence(d, 1).value.backend == "annotations"
        for backend in ("gudhi", "ripser"):
            with pytest.raises(BackendError, match="not installed"):
                rips_persistence(d, 1, backend=backend)
        with pytest.raises(BackendError, match="need ripser"):
            rips_persistence(d, 1, representatives=True)
    for one, two in zip(found.bars, expected):
        np.testing.assert_allclose(one, two, atol=1e-12)
