"""Witnesses of homology, barcodes, cocycles, covers and bar complexes: parts that are missing, false and replaced."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sympy.matrices.normalforms import smith_normal_form

from aatc.passes.analysis.chains import spaces
from aatc.passes.analysis.chains.complexes import ChainComplex, flag_complex
from aatc.passes.analysis.chains.homology import homology, minimal_model
from aatc.passes.analysis.chains.verify_cohomology import EquivalenceWitness, FiltrationWitness
from aatc.passes.analysis.chains.verify_integers import invariants
from aatc.passes.analysis.cohomology.cohomology import cocycle_witness
from aatc.passes.analysis.cohomology.persistence import filtration_persistence, rips_values
from aatc.passes.analysis.homotopy.homotopy_groups import homotopy_groups
from aatc.passes.analysis.homotopy.rational_homotopy import rational_homotopy
from aatc.passes.analysis.homotopy.simplicial_sets import kan_condition, of_complex
from aatc.passes.analysis.homotopy.verify_groups import CoverWitness
from aatc.passes.analysis.result import AnalysisError, Result, verify
from tests.analysis.test_homotopy_groups import product
from tests.analysis.test_homotopy_spaces import connected_sum, suspension, wedge_of

replace = dataclasses.replace


def random_chain(seed: int) -> ChainComplex:
    """Free generators and pairs ∂s = t·r in random bases, in degrees 0 to 3."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 4, 4)
    pairs = [rng.choice([1, 2, 3, 4, 6], rng.integers(0, 3)) for _ in range(3)]
    sizes = [
        int(counts[k] + (len(pairs[k - 1]) if k else 0) + (len(pairs[k]) if k < 3 else 0)) for k in range(4)
    ]  # fmt: skip
    bases = []
    for size in sizes:
        basis, inverse = np.eye(size, dtype=object), np.eye(size, dtype=object)
        for _ in range(2 * size):
            i, j = rng.integers(0, size, 2)
            if i != j:
                basis[:, i] += basis[:, j]
                inverse[j] -= inverse[i]
        bases.append((basis, inverse))
    maps = []
    for k, orders in enumerate(pairs, 1):
        diagonal = np.zeros((sizes[k - 1], sizes[k]), dtype=object)
        for n, t in enumerate(orders):  # last of the lower degree to first of the upper one
            diagonal[sizes[k - 1] - 1 - n, n] = int(t)
        maps.append(np.array(bases[k - 1][0] @ diagonal @ bases[k][1], dtype=np.int64))
    return ChainComplex(maps)


# --- homology ----------------------------------------------------------------------------------------------
@given(st.integers(0, 2**31))
def test_an_equivalence_with_parts_left_out_is_caught(seed):
    w = homology(random_chain(seed), witness=True).witness
    assert verify(w) == 0
    for part in ("boundaries", "model", "inclusion", "projection", "homotopy"):
        matrices = getattr(w, part)
        for short in ((), matrices[:1], matrices[:-1], (*matrices, matrices[-1])):
            assert verify(replace(w, **{part: short})) > 0
    parts = ("model", "inclusion", "projection", "homotopy")
    lower = replace(w, boundaries=w.boundaries[:3], **{part: getattr(w, part)[:2] for part in parts})
    assert verify(lower) > 0


def test_matrices_that_do_not_square_to_zero_are_no_complex():
    one, nothing = np.ones((1, 1), dtype=object), np.zeros((1, 1), dtype=object)
    below, above = np.zeros((0, 1), dtype=object), np.zeros((1, 0), dtype=object)
    for second, expected in ((nothing, 0.0), (one, 1.0)):
        model, homotopy = (below, one, second), (nothing, nothing, below)
        w = EquivalenceWitness((*model, above), model, (one,) * 3, (one,) * 3, homotopy)
        assert verify(w) == expected


def test_a_result_without_a_witness_says_so():
    for result in (homotopy_groups(spaces.torus()), Result(1, "P0")):
        with pytest.raises(AnalysisError, match="carries no witness") as caught:
            result.verify()
        assert result.proof_level in str(caught.value) and "docs/analysis.md" in caught.value.hint


# --- barcodes ----------------------------------------------------------------------------------------------
@given(st.integers(0, 2**31), st.sampled_from([2, 3]))
def test_a_barcode_with_bars_or_degrees_left_out_is_caught(seed, p):
    rng = np.random.default_rng(seed)
    d = rng.integers(1, 9, (7, 7)).astype(float)
    d = np.triu(d, 1) + np.triu(d, 1).T
    x = flag_complex(d <= 6, 2)
    w = filtration_persistence(x, rips_values(x, d), p, representatives=True).witness
    assert verify(w) == 0
    for k, degree in enumerate(w.degrees):
        for part in ("bars", "cycles", "fillings"):
            array = getattr(degree, part)
            for short in (array[:0], array[:-1], array[..., :0], array[..., :-1]):
                if short.shape != array.shape:
                    false = replace(degree, **{part: short})
                    assert verify(false) > 0
                    assert verify(FiltrationWitness((*w.degrees[:k], false, *w.degrees[k + 1 :]))) > 0
        assert verify(replace(degree, modulus=1)) > 0 and verify(replace(degree, modulus=4)) > 0
    for degrees in ((), w.degrees[:1], w.degrees[:-1], w.degrees[1:], w.degrees[::-1]):
        if degrees != w.degrees:
            assert verify(FiltrationWitness(degrees)) > 0


def test_degrees_of_two_complexes_are_no_barcode_of_one():
    sphere, filled = spaces.sphere(1), spaces.simplex(2)
    one, two = (
        filtration_persistence(x, [np.zeros(c) for c in x.counts], representatives=True).witness
        for x in (sphere, filled)
    )
    assert verify(one) == verify(two) == 0
    above = [replace(one.degrees[0], values_above=np.ones(3)), replace(one.degrees[0], modulus=3)]
    above.append(replace(one.degrees[0], boundary_above=one.degrees[0].boundary_above[:, ::-1]))
    for false in above:
        assert verify(FiltrationWitness((false, *one.degrees[1:]))) > 0
    low = two.degrees[0]
    later = low.bars + np.where(np.isfinite(low.bars), [0, 1], 0)
    above = [
        replace(low, bars=later, values_above=low.values_above + 1),
        replace(low, boundary_above=-low.boundary_above, fillings=-low.fillings),
    ]
    for false in above:
        # a barcode of another filtration, or with other signs (modulo 2 only the matrix tells)
        assert verify(false) == 0 and verify(FiltrationWitness((false, *two.degrees[1:]))) > 0


# --- cocycles ----------------------------------------------------------------------------------------------
@given(st.integers(0, 2**31))
def test_orders_of_cocycles_are_exact(seed):
    model = minimal_model(random_chain(seed))
    for k in range(4):
        w = cocycle_witness(model, k)
        assert verify(w) == 0
        for j, order in enumerate(w.orders):
            for false in {0, 1, 2, 3, order // 2, 2 * order, -order} - {order}:
                assert verify(replace(w, orders=(*w.orders[:j], false, *w.orders[j + 1 :]))) > 0
        for part in ("orders", "cocycles", "primitives"):
            if w.orders:
                assert verify(replace(w, **{part: getattr(w, part)[:-1]})) > 0
        assert verify(replace(w, modulus=1)) > 0 and verify(replace(w, modulus=4)) > 0


def test_an_order_that_divides_the_true_one_needs_another_primitive():
    model = minimal_model(ChainComplex([[[4]]]))
    w = cocycle_witness(model, 1)
    assert w.orders == (4,) and verify(w) == 0
    for order in (1, 2):  # the pairing holds modulo every divisor of 4
        assert verify(replace(w, orders=(order,))) > 0
    double = replace(w, cocycles=2 * w.cocycles, orders=(2,))
    assert verify(double) > 0  # of order 2, and ⟨2φ, z⟩ = 2 shows nothing modulo 2


def test_a_coboundary_that_does_not_square_to_zero_is_caught():
    w = cocycle_witness(minimal_model(ChainComplex([[[0, 1]], [[0], [0]]])), 1)
    assert len(w.orders) == 1 and verify(w) == 0
    assert verify(replace(w, coboundary=sparse.csc_array([[0, 1]]))) > 0


# --- Kan conditions ----------------------------------------------------------------------------------------
def test_kan_counts_cover_all_horns_of_a_dimension():
    for inner in (False, True):
        w = kan_condition(of_complex(spaces.sphere(1)), 3, inner=inner).witness
        assert verify(w) == 0
        for place in w.counts:
            fewer = {at: found for at, found in w.counts.items() if at != place}
            assert verify(replace(w, counts=fewer)) > 0
        full = {at: found for at, found in w.counts.items() if found[0] == found[1]}
        if full != w.counts:
            assert verify(replace(w, counts=full, unfilled=None)) > 0
        low = {(n, k): found for (n, k), found in w.counts.items() if n < 3}
        assert verify(replace(w, counts=low, unfilled=None)) > 0


# --- covers ------------------------------------------------------------------------------------------------
@given(st.integers(0, 2**31))
def test_invariant_factors_agree_with_sympy(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 7, 2)
    matrix = rng.choice([-6, -4, -3, -2, -1, 0, 0, 0, 1, 2, 3, 4, 6], shape) * rng.choice([1, 2])
    columns = [{i: int(v) for i, v in enumerate(column) if v} for column in matrix.T]
    form = smith_normal_form(sympy.Matrix(matrix.tolist()), domain=sympy.ZZ)
    expected = sorted(abs(int(form[i, i])) for i in range(min(form.shape)) if form[i, i])
    assert invariants(columns)[1] == expected


#: H₂ of these simply connected spaces, with and without torsion.
SECONDS = {
    "RP²": (spaces.projective_plane(), (1, ())),
    "ΣM(4)": (suspension(spaces.moore_space(4)), (0, (4,))),
    "ΣM(3) ∨ S²": (wedge_of(suspension(spaces.moore_space(3)), spaces.sphere(2)), (1, (3,))),
    "ΣRP² ∨ ΣRP²": (wedge_of(*[suspension(spaces.projective_plane())] * 2), (0, (2, 2))),
}


@pytest.mark.parametrize("name", SECONDS)
def test_a_false_second_homotopy_group_is_caught_whatever_its_torsion(name):
    space, second = SECONDS[name]
    found = homotopy_groups(space)
    w = found.witness
    assert w.second == second and found.verify() == 0
    rank, torsion = second
    others = [(2,), (3,), (4,), (5,), (9,), (2, 2), (2, 4), (8,), (2**31 - 1,), (1,), (0,), (0, 0), (-2,)]
    for false in [(rank, t) for t in [(), *others] if t != torsion] + [(rank + 1, torsion), (rank - 1, torsion)]:
        assert verify(replace(w, second=false)) > 0, false
    for t in others:
        assert verify(replace(w, second=(rank, (*torsion, *t)))) > 0, t
    assert verify(replace(w, sheets=0)) > 0


def test_a_cover_whose_first_homology_is_finite_is_caught():
    cells = spaces.projective_plane().cells
    assert verify(CoverWitness(cells, cells, 1, (0, ()))) > 0


# --- rational homotopy -------------------------------------------------------------------------------------
LOOPS = {
    "CP²": (spaces.complex_projective_plane(), 6),
    "CP² # CP²": (connected_sum(*[spaces.complex_projective_plane()] * 2), 5),
    "CP² ∨ S²": (wedge_of(spaces.complex_projective_plane(), spaces.sphere(2)), 5),
    "S² × S²": (product(spaces.sphere(2), spaces.sphere(2)), 5),
}


def series_ranks(words: tuple[int, ...]) -> tuple[int, ...]:
    """The ranks that the words alone, all differentials zero, would give."""
    series, ranks = [Fraction(n) for n in words[:-1]], []
    for i in range(1, len(series)):
        ranks.append(int(series[i]))
        for _ in range(ranks[-1]):
            if i % 2:
                for n in range(i, len(series)):
                    series[n] -= series[n - i]
            else:
                for n in range(len(series) - 1, i - 1, -1):
                    series[n] -= series[n - i]
    return tuple(ranks)


@pytest.mark.parametrize("name", LOOPS)
def test_a_bar_complex_that_is_not_the_spaces_is_caught(name):
    space, top = LOOPS[name]
    found = rational_homotopy(space, top)
    w = found.witness
    assert found.verify() == 0
    nothing = tuple(tuple({} for _ in images) for images in w.differentials)
    formal = series_ranks(w.words)
    assert formal != w.ranks and verify(replace(w, differentials=nothing, ranks=formal)) > 0
    for scaled in (2, -1):  # an isomorphic bar complex, but not this one
        multiple = tuple(tuple({n: scaled * v for n, v in row.items()} for row in rows) for rows in w.differentials)
        assert verify(replace(w, differentials=multiple)) > 0
    for n, (degree, cocycle, cycle) in enumerate(w.generators):
        others = [(degree, 0 * cocycle, cycle), (degree, 2 * cocycle, cycle), (degree, cocycle, 0 * cycle)]
        others += [(degree + 1, cocycle, cycle), (degree, cocycle[:-1], cycle), (degree, cocycle + 1, cycle)]
        for other in others:
            assert verify(replace(w, generators=(*w.generators[:n], other, *w.generators[n + 1 :]))) > 0
    assert verify(replace(w, generators=w.generators[:-1])) > 0
    assert verify(replace(w, cells=w.cells[:-1])) > 0 and verify(replace(w, cells=w.cells[:2])) > 0


@pytest.mark.parametrize("name", ["CP²", "S² × S²"])
def test_a_bar_complex_with_parts_left_out_is_caught(name):
    space, top = LOOPS[name]
    w = rational_homotopy(space, top).witness
    for part in ("words", "differentials", "ranks"):
        given_part = getattr(w, part)
        for false in ((), given_part[:-1], (*given_part, given_part[-1])):
            assert verify(replace(w, **{part: false})) > 0
    row = next((d, n) for d, rows in enumerate(w.differentials) for n, row in enumerate(rows) if row)
    for change in ({}, {10**6: Fraction(1)}, {-1: Fraction(1)}):
        rows = list(map(list, w.differentials))
        rows[row[0]][row[1]] = change
        assert verify(replace(w, differentials=tuple(map(tuple, rows)))) > 0
    word = next(iter(w.lifts))
    for lift in (w.lifts[word] + 1, w.lifts[word][:-1]):
        assert verify(replace(w, lifts={**w.lifts, word: lift})) > 0
    assert verify(replace(w, lifts={})) > 0


def test_a_bar_differential_that_is_no_coderivation_and_a_basis_that_is_none_are_caught():
    sphere, top = spaces.sphere(2), 6
    w = rational_homotopy(sphere, top).witness
    assert set(w.words) == {1} and w.ranks[:3] == (1, 1, 0)
    # x² ↦ x³ and x⁴ ↦ x⁵ leave the homology of a circle: the loops of K(Z, 2)
    one = {0: Fraction(1)}
    paired = tuple(({**one},) if d and d % 2 == 0 else ({},) for d in range(len(w.differentials)))
    assert verify(w) == 0 and verify(replace(w, differentials=paired, ranks=(1, *(0,) * (len(w.ranks) - 1)))) > 0
    ((degree, cocycle, _),) = w.generators
    lone = np.where(cocycle != 0, cocycle, 0)  # pairs to 1 with the cocycle, where this is ±1 on one cell
    assert sum(lone * cocycle) == 1 and verify(replace(w, generators=((degree, cocycle, lone),))) > 0
    # one of two spheres, with all that this one would have
    both = rational_homotopy(wedge_of(sphere, sphere), top).witness
    half = replace(w, cells=both.cells, generators=both.generators[:1])
    assert verify(both) == 0 and verify(half) > 0
