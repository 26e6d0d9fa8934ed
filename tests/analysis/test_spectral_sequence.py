"""Pages of spectral sequences against their definition by cycles and boundaries, and against known fibrations."""

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from aatc.passes.analysis.chains.complexes import ChainComplex, from_maximal_simplices
from aatc.passes.analysis.chains.homology import betti_numbers
from aatc.passes.analysis.chains.spaces import sphere
from aatc.passes.analysis.chains.spectral_sequence import (
    FiltrationWitness,
    Pair,
    SpectralAttention,
    levels_by_map,
    levels_by_weight,
    spectral_sequence,
)
from aatc.passes.analysis.result import AnalysisError, verify

P = 3


def rank_mod(matrix: np.ndarray) -> int:
    a, rank = np.array(matrix, dtype=np.int64) % P, 0
    for column in range(a.shape[1]):
        rows = np.flatnonzero(a[rank:, column])
        if len(rows):
            at = rank + rows[0]
            a[[rank, at]] = a[[at, rank]]
            a[rank] = a[rank] * pow(int(a[rank, column]), -1, P) % P
            others = np.arange(len(a)) != rank
            a[others] = (a[others] - np.outer(a[others, column], a[rank])) % P
            rank += 1
    return rank


def kernel(matrix: np.ndarray) -> np.ndarray:
    """A basis of the kernel mod P, as columns."""
    a = np.array(matrix, dtype=np.int64) % P
    rows, columns = a.shape
    pivots: list[int] = []
    for column in range(columns):
        free = [r for r in range(len(pivots), rows) if a[r, column]]
        if free:
            a[[len(pivots), free[0]]] = a[[free[0], len(pivots)]]
            r = len(pivots)
            a[r] = a[r] * pow(int(a[r, column]), -1, P) % P
            for other in range(rows):
                if other != r:
                    a[other] = (a[other] - a[other, column] * a[r]) % P
            pivots.append(column)
    out = []
    for column in sorted(set(range(columns)) - set(pivots)):
        v = np.zeros(columns, dtype=np.int64)
        v[column] = 1
        for r, pivot in enumerate(pivots):
            v[pivot] = -a[r, column] % P
        out.append(v)
    return np.array(out, dtype=np.int64).reshape(-1, columns).T


def by_definition(chain: ChainComplex, levels, r: int, p: int, n: int) -> int:
    """dim Z^r_p/(Z^{r−1}_{p−1} + ∂Z^{r−1}_{p+r−1}) in degree n."""

    def cycles(r: int, p: int, n: int) -> np.ndarray:
        """x in level ≤ p with ∂x in level ≤ p − r, as columns."""
        size = chain.count(n)
        inside = levels[n] <= p if n < len(levels) else np.zeros(size, bool)
        if not inside.any():
            return np.zeros((size, 0), dtype=np.int64)
        boundary = chain.boundary(n).toarray()
        above = levels[n - 1] > p - r if n else np.zeros(0, bool)
        found = kernel(boundary[above][:, inside])
        out = np.zeros((size, found.shape[1]), dtype=np.int64)
        out[inside] = found
        return out

    z = cycles(r, p, n)
    up = cycles(r - 1, p + r - 1, n + 1) if n + 1 < len(chain.counts) else np.zeros((0, 0), np.int64)
    image = chain.boundary(n + 1).toarray() @ up if up.size else np.zeros((chain.count(n), 0), np.int64)
    return rank_mod(z) - rank_mod(np.concatenate([cycles(r - 1, p - 1, n), image], axis=1))


@given(st.integers(0, 2**31))
def test_pages_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    x = from_maximal_simplices(
        [t for t in itertools.combinations(range(6), 3) if rng.random() < 0.5] + [(i,) for i in range(6)]
    )
    levels = [rng.integers(0, 4, c) for c in x.counts]
    for k in range(1, x.dimension + 1):
        boundary = x.chain_complex.boundary(k).toarray()
        for n in range(x.counts[k]):
            levels[k][n] = max(levels[k][n], levels[k - 1][boundary[:, n] != 0].max())
    result = spectral_sequence(x, levels, P)
    s = result.value
    for r in range(1, 5):
        for n, p in itertools.product(range(x.dimension + 1), range(4)):
            assert s.page(r).dims.get((p, n - p), 0) == by_definition(x.chain_complex, levels, r, p, n)
    assert s.betti() == betti_numbers(x, P)
    assert result.verify() == 0


@given(st.integers(0, 2**31))
def test_each_page_is_the_homology_of_the_one_before(seed):
    rng = np.random.default_rng(seed)
    x = from_maximal_simplices([t for t in itertools.combinations(range(7), 4) if rng.random() < 0.3] + [(0,)])
    s = spectral_sequence(x, levels_by_map(x, rng.integers(0, 4, len(x.simplices(0)))), "Q").value
    for a, b in itertools.pairwise(s.pages):
        for (p, q), dim in a.dims.items():
            out, into = s.differential(a.r, p, q), s.differential(a.r, p + a.r, q - a.r + 1)
            assert out.shape[1] == into.shape[0] == dim and not (out @ into).any()
            left = dim - np.linalg.matrix_rank(out) - np.linalg.matrix_rank(into)
            assert b.dims.get((p, q), 0) == left
            assert a.ranks.get((p, q), 0) == np.linalg.matrix_rank(out)


def circle_bundle(euler: int) -> tuple[ChainComplex, list[list[int]]]:
    """Cells of the circle bundle over S² with this Euler number, filtered by the dimension of the base cell."""
    return ChainComplex([[[0]], [[euler]], [[0]]]), [[0], [0], [2], [2]]


def test_circle_bundles_over_the_sphere():
    hopf = spectral_sequence(*circle_bundle(1), coeff="Q").value
    assert hopf.page(2).dims == {(0, 0): 1, (0, 1): 1, (2, 0): 1, (2, 1): 1}
    assert hopf.page(2).ranks == {(2, 0): 1} and hopf.infinity == {(0, 0): 1, (2, 1): 1}
    for coeff, rank in (("F2", 0), ("F3", 1)):  # RP³ → S²
        assert spectral_sequence(*circle_bundle(2), coeff=coeff).value.page(2).ranks.get((2, 0), 0) == rank


def test_a_projection_collapses_at_the_second_page():
    tops, cycle = [], [(0, 1), (1, 2), (0, 2)]
    for (a, b), (c, d) in itertools.product(cycle, cycle):
        tops += [(3 * a + c, 3 * b + c, 3 * b + d), (3 * a + c, 3 * a + d, 3 * b + d)]
    torus = from_maximal_simplices(tops)
    s = spectral_sequence(torus, levels_by_map(torus, [v // 3 for v in range(9)]), "F2").value
    assert s.page(2).dims == {(0, 0): 1, (0, 1): 1, (1, 0): 1, (1, 1): 1} and not s.page(2).ranks


def test_attention_enters_by_falling_thresholds():
    rng = np.random.default_rng(3)
    a = rng.dirichlet(np.ones(8), 8)
    thresholds = np.quantile(a, [0.9, 0.7, 0.5])
    result = SpectralAttention("F2").compute_spectral((a, thresholds, 2))
    assert result.verify() == 0 and result.value.coeff == "F2"
    assert result.value.converges_at <= 4


def test_false_witnesses_are_caught():
    result = spectral_sequence(*circle_bundle(2), coeff="F3")
    w = result.witness
    assert result.verify() == 0
    assert verify(dataclasses.replace(w, modulus=2)) > 0
    assert verify(dataclasses.replace(w, pairs=())) > 0
    assert verify(dataclasses.replace(w, single=w.single[:-1])) > 0
    moved = dataclasses.replace(w.pairs[0], source=w.pairs[0].source + 1)
    assert verify(dataclasses.replace(w, pairs=(moved,))) > 0
    degree, level, cell = w.single[0]
    assert verify(dataclasses.replace(w, single=((degree, level + 1, cell), *w.single[1:]))) > 0


@pytest.mark.parametrize("coeff", ["F2", "Q"])
def test_pairs_whose_boundaries_are_dependent_are_caught_where_their_number_is_the_rank(coeff):
    # ∂a = ∂b = u + v and ∂c = w: the pairs are (a, u or v) and (c, w), not (a, u) and (b, v)
    chain = ChainComplex([np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])], [3, 3])
    result = spectral_sequence(chain, [[0, 0, 0], [1, 1, 2]], coeff)
    assert result.verify() == 0 and sorted(x.gap for x in result.witness.pairs) == [1, 2]
    one = 1 if coeff == "F2" else Fraction(1)
    planted = (Pair(1, 1, 0, 0, 0, {0: one}), Pair(1, 1, 0, 1, 1, {1: one}))
    assert verify(dataclasses.replace(result.witness, pairs=planted, single=((0, 0, 2), (1, 2, 2)))) > 0


@given(st.integers(0, 2**31), st.sampled_from(["F2", "F3", "Q"]))
def test_a_pair_taken_apart_joined_otherwise_or_with_another_chain_is_caught(seed, coeff):
    rng = np.random.default_rng(seed)
    x = from_maximal_simplices([t for t in itertools.combinations(range(7), 4) if rng.random() < 0.5] + [(0, 1, 2, 3)])
    result = spectral_sequence(x, levels_by_map(x, rng.integers(0, 4, len(x.simplices(0)))), coeff)
    w, n = result.witness, rng.integers(len(result.witness.pairs))
    pair, rest = w.pairs[n], (*w.pairs[:n], *w.pairs[n + 1 :])
    assert result.verify() == 0
    ends = (pair.degree, pair.source, pair.high), (pair.degree - 1, pair.target, pair.low)
    planted = [
        dataclasses.replace(w, pairs=rest, single=(*w.single, *ends)),
        dataclasses.replace(w, pairs=(*w.pairs, pair)),
        dataclasses.replace(w, pairs=(*rest, dataclasses.replace(pair, chain={}))),
        dataclasses.replace(w, pairs=(*rest, dataclasses.replace(pair, chain={10**6: 1}))),
        dataclasses.replace(w, levels=w.levels[:-1]),
        dataclasses.replace(w, modulus=1),
        dataclasses.replace(w, modulus=4),
    ]
    other = next((y for y in rest if (y.degree, y.target) == (pair.degree, pair.target)), None)
    if other is not None:
        swapped = (dataclasses.replace(pair, low=other.low), dataclasses.replace(other, low=pair.low))
        planted.append(dataclasses.replace(w, pairs=(*(y for y in rest if y is not other), *swapped)))
    assert all(verify(false) > 0 for false in planted)


def test_a_false_page_whose_ranks_agree_in_the_whole_is_caught():
    # ∂a = ∂b = u where a comes at level 0 and b at level 2: a kills u, at once
    chain = ChainComplex([np.array([[1, 1]])], [1, 2])
    w = spectral_sequence(chain, [[0], [0, 2]], "F2").witness
    late = dataclasses.replace(w, pairs=(Pair(1, 2, 0, 1, 0, {1: 1}),), single=((1, 0, 0),))
    assert verify(w) == 0 and verify(late) > 0


def filtered(boundaries, levels, pairs, single, modulus=2) -> FiltrationWitness:
    counts = [len(x) for x in levels]
    whole = [np.zeros((0, counts[0]), int), *map(np.array, boundaries)]
    return FiltrationWitness(tuple(map(sparse.csc_array, whole)), levels, modulus, pairs, single)


def test_each_statement_about_an_adapted_basis_is_needed():
    edges = [[1, 0], [0, 1]]  # ∂a = u, ∂b = v
    levels = ((0, 1), (1, 2))
    good = (Pair(1, 1, 0, 0, 0, {0: 1}), Pair(1, 2, 1, 1, 1, {1: 1}))
    assert verify(filtered([edges], levels, good, ())) == 0
    # the chain of a is b, and of b is a: gaps 0 and 2 for 1 and 1
    crossed = (Pair(1, 1, 1, 0, 1, {1: 1}), Pair(1, 2, 0, 1, 0, {0: 1}))
    assert verify(filtered([edges], levels, crossed, ())) > 0
    # ∂a = u + v leads with v
    assert verify(filtered([[[1], [1]]], ((0, 1), (2,)), (Pair(1, 2, 1, 0, 1, {0: 1}),), ((0, 0, 0),))) == 0
    assert verify(filtered([[[1], [1]]], ((0, 1), (2,)), (Pair(1, 2, 0, 0, 0, {0: 1}),), ((0, 1, 1),))) > 0
    # a boundary that raises the level, and one whose square is not zero
    assert verify(filtered([[[1]]], ((1,), (0,)), (Pair(1, 0, 1, 0, 0, {0: 1}),), ())) > 0
    pair = (Pair(2, 0, 0, 0, 0, {0: 1}),)
    assert verify(filtered([[[0]], [[1]]], ((0,), (0,), (0,)), pair, ((0, 0, 0),))) == 0
    assert verify(filtered([[[1]], [[1]]], ((0,), (0,), (0,)), pair, ((0, 0, 0),))) > 0


def test_a_large_witness_is_checked_without_dense_matrices(monkeypatch):
    x = from_maximal_simplices(list(itertools.combinations(range(20), 4)))
    weights = np.tril(1 / np.arange(1, 21)[:, None] * np.ones(20))
    result = spectral_sequence(x, levels_by_weight(x, weights, [0.2, 0.1, 0.05]), "F2")
    for kind in {type(m) for m in result.witness.boundaries}:
        monkeypatch.setattr(kind, "toarray", lambda *_, **__: pytest.fail("a boundary matrix was made dense"))
        monkeypatch.setattr(kind, "todense", kind.toarray)
    assert result.verify() == 0


def test_levels_that_rise_along_the_boundary_and_integers_are_refused():
    chain, levels = circle_bundle(1)
    with pytest.raises(AnalysisError, match="does not raise the level"):
        spectral_sequence(chain, [[0], [3], [2], [2]], "F2")
    with pytest.raises(AnalysisError, match="over a field"):
        spectral_sequence(chain, levels, "Z")
    with pytest.raises(AnalysisError, match="cells by degree"):
        spectral_sequence(chain, levels[:3], "F2")


def test_levels_and_images_that_are_no_integers_are_refused_instead_of_rounded():
    x = sphere(1)
    for edges in ([0.5, 1, 1], [float("nan")] * 3, ["a", "b", "c"], np.zeros((3, 1))):
        with pytest.raises(AnalysisError, match="integers in one row"):
            spectral_sequence(x, [[0, 0, 0], edges])
    with pytest.raises(AnalysisError, match="integers in one row"):
        levels_by_map(x, [0, 0.5, 1])
    with pytest.raises(AnalysisError, match="counted from"):
        spectral_sequence(x, [[0, 0, 0], [0, 0, 1]]).value.page(-1)
    assert spectral_sequence(x, [[0, 0, 0], [0.0, 0.0, 1.0]]).value.betti() == (1, 1)


def test_weights_with_nan_or_without_a_vertex_and_thresholds_that_do_not_fall_are_refused():
    x = sphere(1)
    bad = [
        (np.full((3, 3), np.nan), [0.5]), (np.ones((2, 2)), [0.5]), (np.ones((3, 4)), [0.5]),
        (np.ones((3, 3)), [0.5, float("nan")]), (np.ones((3, 3)), [0.2, 0.5]), (np.ones((3, 3)), 0.5),
    ]  # fmt: skip
    for weights, thresholds in bad:
        with pytest.raises(AnalysisError):
            levels_by_weight(x, weights, thresholds)
    for filtration in ((1, 2, 3, 4), (np.ones((3, 3)), [], 2)):
        with pytest.raises(AnalysisError, match="a filtration is"):
            SpectralAttention().compute_spectral(filtration)
