"""Barcodes by annotations against gudhi, ripser and plain elimination, in blocks of every size."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc.analysis import cohomology
from aatc.passes.analysis.cohomology import bitsets, flag_persistence
from aatc.passes.analysis.cohomology.annotations import Annotations, Chains, odd_pairs
from aatc.passes.analysis.cohomology.flag_persistence import flag_barcodes
from aatc.passes.analysis.cohomology.persistence import attention_persistence, rips_persistence
from aatc.passes.analysis.result import BudgetError, Cost

SEEDS = st.integers(0, 10**6)
KINDS = ["noise", "ties", "parts", "metric", "band", "causal", "halves"]
BLOCKS = [((1, 1), 1), ((5, 40), 3), ((64, 256), 17), (flag_persistence._BLOCK, flag_persistence._EQUATIONS)]


def long_bars(bars):
    bars = bars[bars[:, 0] < bars[:, 1]]
    return bars[np.lexsort((bars[:, 1], bars[:, 0]))]


def weights(seed, n, kind):
    """Symmetric matrices that are noise, with many ties, with pairs never joined, near to a metric, those of causal
    heads that hardly choose, which join one vertex after another to all before it, or of two halves."""
    rng = np.random.default_rng(seed)
    i = np.arange(n)
    if kind == "metric":
        x = rng.normal(size=(n, 2))
        d = np.linalg.norm(x[:, None] - x, axis=-1)
        d = d + 0.2 * rng.random((n, n))
    elif kind == "causal":
        d = np.log1p(np.maximum(i[:, None], i)) + rng.choice([0.0, 1e-3, 0.3]) * rng.random((n, n))
    elif kind == "halves":
        d = np.where((i[:, None] < n // 2) == (i < n // 2), 2.0, 1.0) + rng.choice([0.0, 0.1]) * rng.random((n, n))
    elif kind == "band":
        d = 5 * np.abs(i[:, None] - i) / n + rng.normal(size=(n, n)) ** 2
    else:
        d = rng.random((n, n))
    if kind == "ties":
        d = np.round(8 * d)
    if kind == "parts":
        d[d > 0.3] = np.inf
    d = np.minimum(d, d.T)
    np.fill_diagonal(d, 0)
    return d


@pytest.mark.parametrize("blocks,equations", BLOCKS)
@given(seed=SEEDS, n=st.integers(1, 48), kind=st.sampled_from(KINDS))
def test_bars_are_those_of_gudhi_for_blocks_of_every_size(blocks, equations, seed, n, kind):
    d = weights(seed, n, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flag_persistence, "_BLOCK", blocks)
        patch.setattr(flag_persistence, "_EQUATIONS", equations)
        found = flag_barcodes(d)
    for got, want in zip(found, rips_persistence(d, 1, backend="gudhi").value.bars):
        got = long_bars(got)
        assert got.shape == want.shape and (got == want).all()


@pytest.mark.parametrize("blocks,equations", BLOCKS)
@given(seed=SEEDS, n=st.integers(1, 30), kind=st.sampled_from(KINDS), p=st.sampled_from([3, 5, 101]))
def test_bars_over_every_field_are_those_of_gudhi(blocks, equations, seed, n, kind, p):
    d = weights(seed, n, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flag_persistence, "_BLOCK", blocks)
        patch.setattr(flag_persistence, "_EQUATIONS", equations)
        found = flag_barcodes(d, p)
    for got, want in zip(found, rips_persistence(d, 1, modulus=p, backend="gudhi").value.bars):
        got = long_bars(got)
        assert got.shape == want.shape and (got == want).all()


@pytest.mark.parametrize("prime", [2, 3, 1048573])
def test_a_projective_plane_has_a_cycle_over_two_elements_alone(prime):
    plane = cohomology.projective_plane()
    cells = [tuple(c) for k in range(3) for c in plane.simplices(k).tolist()]
    d = np.full((len(cells), len(cells)), np.inf)  # the barycentric subdivision is a clique complex
    for i, a in enumerate(cells):
        for j, b in enumerate(cells):
            if set(a) <= set(b) or set(b) <= set(a):
                d[i, j] = float(i != j)
    bars = cohomology.rips_persistence(d, modulus=prime).value
    assert bars.backend == "annotations"
    assert long_bars(bars.bars[1]).tolist() == ([[1.0, np.inf]] if prime == 2 else [])


@pytest.mark.parametrize("degree,modulus", [(2, 2), (2, 3), (1, 1048583)])
@pytest.mark.parametrize("kind", KINDS)
def test_collapsed_edges_leave_all_bars(kind, degree, modulus):
    d = weights(3, 16, kind)
    found = rips_persistence(d, degree, modulus=modulus).value
    assert found.backend in ("gudhi", "ripser")
    for got, want in zip(found.bars, rips_persistence(d, degree, modulus=modulus, backend="own").value.bars):
        assert got.shape == want.shape
        np.testing.assert_allclose(np.sort(got, axis=0), np.sort(want, axis=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{"max_degree": 2}, {"modulus": 3}, {"representatives": True}, {}])
@pytest.mark.parametrize("n", [48, 96])
def test_a_budget_that_is_granted_is_kept(options, n):
    d = weights(1, n, "noise")
    rips_persistence(weights(1, 6, "noise"), **options)  # libraries are loaded
    budget = Cost(0.15)
    start = time.process_time()
    try:
        rips_persistence(d, budget=budget, **options)
    except BudgetError as refusal:
        assert refusal.estimate.seconds > 0.15
    assert time.process_time() - start < 3 * 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_bars_are_those_of_ripser_where_hundreds_of_cycles_live_and_die(kind):
    d = weights(7, 130 if kind == "halves" else 180, kind)
    assert len(flag_barcodes(d)[1]) > 50 or kind == "causal"
    found, want = (rips_persistence(d, 1, backend=b).value.bars for b in ("annotations", "ripser"))
    for got, other in zip(found, want):
        assert got.shape == other.shape
        # In single precision births tie, so bars may change places.
        np.testing.assert_allclose(np.sort(got, axis=0), np.sort(other, axis=0), rtol=1e-6, atol=1e-6)


def test_a_circle_has_one_long_cycle_and_a_torus_two():
    rng = np.random.default_rng(0)
    a, b = 2 * np.pi * rng.random((2, 400))
    circle = np.column_stack((np.cos(a), np.sin(a)))
    torus = np.column_stack((np.cos(a), np.sin(a), np.cos(b), np.sin(b)))
    for x, cycles in ((circle, 1), (torus, 2)):
        d = np.linalg.norm(x[:, None] - x, axis=-1)
        bars = flag_barcodes((d + d.T) / 2)[1]
        length = np.sort(np.append(bars[:, 1] - bars[:, 0], 0))[::-1]
        assert length[cycles - 1] > 0.5 and length[cycles] < 0.5 * length[cycles - 1]


@pytest.mark.parametrize(
    "d,counts",
    [
        (np.zeros((0, 0)), (0, 0)),
        (np.zeros((1, 1)), (1, 0)),
        (np.zeros((3, 3)), (3, 0)),
        (np.ones((90, 90)) - np.eye(90), (90, 0)),
        (np.where(np.eye(5), 0, np.inf), (5, 0)),
    ],
)
def test_small_and_flat_matrices(d, counts):
    components, cycles = flag_barcodes(d)
    assert (len(components), len(long_bars(cycles))) == counts
    assert np.isinf(components[:, 1]).sum() == (5 if np.isinf(d).any() else min(1, len(d)))


def test_a_square_lives_until_its_first_diagonal():
    d = np.ones((4, 4)) - np.eye(4)
    d[[0, 2], [2, 0]], d[[1, 3], [3, 1]] = 3.0, 2.5
    assert long_bars(flag_barcodes(d)[1]).tolist() == [[1.0, 2.5]]


@pytest.mark.slow
def test_a_head_of_1024_tokens_agrees_with_gudhi_below_a_cut():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(1024, 64)) @ rng.normal(size=(64, 1024)) / 8
    attention = np.exp(scores - scores.max(1, keepdims=True))
    attention /= attention.sum(1, keepdims=True)
    whole = attention_persistence(attention).value
    part = attention_persistence(attention, edges_per_token=12, backend="gudhi").value
    assert whole.backend == "annotations" and whole.threshold == np.inf and np.isfinite(whole.bars[1]).all()
    for full, cut in zip(whole.bars, part.bars):
        kept = full[full[:, 0] <= part.threshold]
        kept = np.column_stack([kept[:, 0], np.where(kept[:, 1] <= part.threshold, kept[:, 1], np.inf)])
        kept = long_bars(kept)
        assert kept.shape == cut.shape and (kept == cut).all()


@given(SEEDS, st.integers(1, 40), st.integers(1, 12), st.floats(0.02, 0.6))
def test_deaths_are_those_of_plain_elimination(seed, steps, most, density):
    """Births and sparse or dense chains in turn, against the reduction of one column after another."""
    rng = np.random.default_rng(seed)
    classes, columns, deaths, label = Annotations(), {}, [], 0
    for _ in range(steps):
        classes.birth(int(rng.integers(0, most)))
        if not classes.count:
            continue
        chains = rng.random((int(rng.integers(1, most)), classes.count)) < density
        for chain in chains:
            column = set(np.flatnonzero(chain).tolist())
            while column and max(column) in columns:
                column ^= columns[max(column)]
            if column:
                columns[max(column)] = column
                deaths.append((max(column), label))
            label += 1
        rows, coordinates = np.nonzero(chains)
        classes.kill(rows, coordinates, np.arange(label - len(chains), label))
        assert classes.deaths == deaths and classes.living == classes.count - len(deaths)


@given(SEEDS, st.integers(1, 200), st.integers(1, 20))
def test_sets_of_bits_are_sets(seed, n, m):
    rng = np.random.default_rng(seed)
    mask = rng.random((m, n)) < rng.random()
    sets = bitsets.from_mask(mask)
    assert sets.shape == (m, bitsets.words(n))

    def pairs():
        rows, found = bitsets.members(sets)
        assert len(set(zip(rows.tolist(), found.tolist()))) == len(rows)
        return sorted(zip(rows.tolist(), found.tolist()))

    assert pairs() == list(zip(*(x.tolist() for x in np.nonzero(mask))))
    some = mask.any(axis=1)
    assert (bitsets.lowest(sets[some]) == mask[some].argmax(axis=1)).all()
    rows, chosen = rng.integers(0, m, 30), rng.integers(0, n, 30)
    bitsets.include(sets, rows, chosen)
    mask[rows, chosen] = True
    assert pairs() == list(zip(*(x.tolist() for x in np.nonzero(mask))))
    bitsets.toggle(sets, rows, chosen)
    np.logical_xor.at(mask, (rows, chosen), True)
    assert pairs() == list(zip(*(x.tolist() for x in np.nonzero(mask))))


@given(SEEDS, st.integers(0, 30))
def test_chains_keep_their_rows_and_pairs_cancel(seed, m):
    rng = np.random.default_rng(seed)
    chains, kept = Chains(), []
    for _ in range(3):
        rows = [rng.integers(0, 9, rng.integers(0, 400)).tolist() for _ in range(m)]
        kept += rows
        chains.append(np.array([len(r) for r in rows], np.int64), np.array([v for r in rows for v in r], np.int64))
    which = rng.integers(0, max(len(kept), 1), 20 if kept else 0)
    place, values = chains.rows(which)
    assert [values[place == i].tolist() for i in range(len(which))] == [kept[i] for i in which]
    rows, odd = odd_pairs(place, values, 9)
    count = Counter(zip(place.tolist(), values.tolist()))
    assert list(zip(rows.tolist(), odd.tolist())) == sorted(k for k, times in count.items() if times % 2)
