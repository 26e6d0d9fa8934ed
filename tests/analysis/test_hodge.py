import dataclasses

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.chains import spaces
from aatc.passes.analysis.chains.complexes import ComplexError, flag_complex, from_maximal_simplices
from aatc.passes.analysis.chains.homology import betti_numbers
from aatc.passes.analysis.cohomology.cohomology import CohomologyStructure
from aatc.passes.analysis.cohomology.hodge import (
    WeightError,
    codifferential,
    cotangent_star,
    harmonic_forms,
    hodge_decomposition,
    hodge_laplacian,
    hodge_star,
)
from aatc.passes.analysis.result import BudgetError, Cost, verify


@st.composite
def weighted(draw):
    n, seed = draw(st.integers(3, 9)), draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((n, n)) < draw(st.floats(0.3, 0.9)), 1)
    complex = flag_complex(upper | upper.T, 3)
    return complex, [rng.uniform(0.5, 2.0, c) for c in complex.counts], rng


@given(weighted())
def test_the_kernel_of_the_laplacian_has_the_dimension_of_homology(drawn):
    complex, weights, _ = drawn
    for k, betti in enumerate(betti_numbers(complex)):
        found = harmonic_forms(complex, k, weights)
        assert found.shape == (betti, complex.count(k))
        assert np.allclose(found * weights[k] @ found.T, np.eye(betti), atol=1e-8)
        assert np.abs(hodge_laplacian(complex, k, weights) @ found.T).max(initial=0) < 1e-8


@given(weighted())
def test_the_codifferential_is_the_adjoint_of_d(drawn):
    complex, weights, rng = drawn
    for k in range(1, len(complex.cells)):
        a, b = rng.normal(size=complex.count(k - 1)), rng.normal(size=complex.count(k))
        d, delta = complex.chain_complex.coboundary(k - 1), codifferential(complex, k, weights)
        star_b, star_a = hodge_star(complex, k, b, weights), hodge_star(complex, k - 1, a, weights)
        assert np.dot(d @ a, star_b) == pytest.approx(np.dot(star_a, delta @ b), abs=1e-10)


@given(weighted())
def test_the_decomposition_is_orthogonal_and_adds_up(drawn):
    complex, weights, rng = drawn
    for k in range(len(complex.cells)):
        form = rng.normal(size=complex.count(k))
        result = hodge_decomposition(complex, k, form, weights)
        parts = (result.value.exact, result.value.coexact, result.value.harmonic)
        assert np.abs(sum(parts) - form).max(initial=0) < 1e-10
        inner = np.array([[np.dot(weights[k] * a, b) for b in parts] for a in parts])
        assert np.abs(inner - np.diag(inner.diagonal())).max() < 1e-8
        assert result.residual < 1e-8 and verify(result.witness) < 1e-8
        basis = harmonic_forms(complex, k, weights)
        assert np.allclose(basis.T @ (basis * weights[k] @ form), parts[2], atol=1e-8)


def test_unit_weights_give_the_graph_laplacian():
    upper = np.triu(np.random.default_rng(0).random((8, 8)) < 0.5, 1)
    adjacency = (upper | upper.T).astype(int)
    complex = flag_complex(adjacency, 1)
    want = np.diag(adjacency.sum(0)) - adjacency
    assert (hodge_laplacian(complex, 0).toarray() == want).all()


def test_harmonic_parts_of_cocycles_keep_their_classes():
    structure = CohomologyStructure(spaces.torus(), "Q")
    for generator in structure.basis(1):
        result = structure.hodge_decomposition(structure.form(1, generator.cocycle.astype(float)))
        found = structure.cohomology_class(structure.form(1, result.value.harmonic))
        assert np.allclose(np.array(found.coordinates, float), generator.coordinates, atol=1e-9)
        assert np.abs(result.value.coexact).max() < 1e-9


@pytest.mark.parametrize("part", ["harmonic", "potential", "copotential"])
def test_a_wrong_decomposition_is_caught(part):
    torus = spaces.torus()
    witness = hodge_decomposition(torus, 1, np.arange(21.0)).witness
    assert verify(witness) < 1e-10
    wrong = getattr(witness, part).copy()
    wrong[0] += 0.1
    assert verify(dataclasses.replace(witness, **{part: wrong})) > 1e-4


def test_a_decomposition_too_large_to_be_dense():
    torus = spaces.triangulated_torus(26, 26)
    form = np.random.default_rng(1).normal(size=torus.count(1))
    result = hodge_decomposition(torus, 1, form)
    assert torus.count(1) > 600 and result.residual < 1e-8 and verify(result.witness) < 1e-8
    assert np.abs(result.value.harmonic).max() > 1e-3


def test_the_cotangent_star_of_a_grid_of_right_triangles():
    # Unit squares cut along a diagonal: the diagonal's dual edge has length 0, so the star is not positive.
    square = from_maximal_simplices([(0, 1, 2), (1, 2, 3)])
    with pytest.raises(WeightError):
        cotangent_star(square, [[0, 0], [1, 0], [0, 1], [1, 1]])
    hexagon = from_maximal_simplices([(0, i, i % 6 + 1) for i in range(1, 7)])
    angles = np.arange(6) * np.pi / 3
    points = np.vstack([[0, 0], np.column_stack([np.cos(angles), np.sin(angles)])])
    vertices, edges, triangles = cotangent_star(hexagon, points)
    area = np.sqrt(3) / 4
    assert (
        np.allclose(triangles, 1 / area) and np.isclose(vertices[0], 2 * area) and np.isclose(vertices.sum(), 6 * area)
    )
    # cot 60° on both sides of a spoke, on one side of a rim edge.
    inner = (hexagon.cells[1] == 0).any(1)
    assert np.allclose(edges[inner], 1 / np.sqrt(3)) and np.allclose(edges[~inner], 0.5 / np.sqrt(3))
    linear = points @ [0.3, -1.2] + 0.7
    assert abs((hodge_laplacian(hexagon, 0, (vertices, edges, triangles)) @ linear)[0]) < 1e-12


def test_bad_weights_values_and_budgets_are_refused():
    torus = spaces.torus()
    ones = [np.ones(c) for c in torus.counts]
    with pytest.raises(WeightError):
        hodge_laplacian(torus, 1, [ones[0], -ones[1], ones[2]])
    with pytest.raises(WeightError):
        hodge_laplacian(torus, 1, ones[:2])
    with pytest.raises(ComplexError):
        hodge_decomposition(torus, 1, np.full(21, np.nan))
    with pytest.raises(BudgetError):
        hodge_decomposition(torus, 1, np.zeros(21), budget=Cost(seconds=1e-6))


@pytest.mark.parametrize("spread", [1, 4])
def test_weights_of_any_size_leave_the_number_of_harmonic_forms(spread):
    torus, rng = spaces.torus(), np.random.default_rng(spread)
    for scale in (1e-12, 1.0, 1e12):
        weights = [scale ** (k == 1) * 10 ** rng.uniform(-spread, spread, c) for k, c in enumerate(torus.counts)]
        for k, expected in enumerate((1, 2, 1)):
            forms, star = harmonic_forms(torus, k, weights), weights[k]
            assert forms.shape == (expected, torus.count(k))
            np.testing.assert_allclose(forms * star @ forms.T, np.eye(expected), atol=1e-9)
            closed = torus.chain_complex.coboundary(k) @ forms.T
            coclosed = torus.boundary(k) @ (star[:, None] * forms.T)
            assert np.abs(closed).max(initial=0) < 1e-8 * np.abs(forms).max()
            assert np.abs(coclosed).max(initial=0) < 1e-8 * np.abs(star[:, None] * forms.T).max()


def test_nan_in_a_witness_is_a_deviation():
    witness = hodge_decomposition(spaces.torus(), 1, np.arange(21.0)).witness
    for part in ("harmonic", "form", "potential", "copotential"):
        wrong = getattr(witness, part).copy()
        wrong[3] = np.nan
        assert verify(dataclasses.replace(witness, **{part: wrong})) == np.inf


def test_forms_and_positions_that_do_not_fit_the_complex_are_refused():
    torus = spaces.torus()
    for size in (1, 5):
        with pytest.raises(ComplexError, match="0-form"):
            hodge_star(torus, 0, np.ones(size), None)
    with pytest.raises(ComplexError, match="positions"):
        cotangent_star(torus, np.ones((3, 3)))


def exact_projection(columns, star, form):
    """The ⋆-orthogonal projection of ω on the span of integer columns, in rationals: normal equations on a basis that
    elimination finds."""
    matrix = sympy.Matrix(columns.astype(int).tolist())
    basis = sympy.Matrix.hstack(*matrix.columnspace()) if matrix.rank() else sympy.zeros(matrix.rows, 0)
    if not basis.cols:
        return np.zeros(len(form))
    weighted = basis.T * sympy.diag(*star)
    found = basis * (weighted * basis).LUsolve(weighted * form)
    return np.array([float(x) for x in found])


@pytest.mark.parametrize("seed", range(4))
def test_parts_are_exact_projections_whatever_decades_the_weights_lie_apart(seed):
    rng = np.random.default_rng(seed)
    # a filled triangle, a hollow square and the edge between them: forms of all three kinds
    x = from_maximal_simplices([(0, 1, 2), (3, 4), (4, 5), (5, 6), (3, 6), (2, 3)])
    weights = [10.0 ** rng.uniform(-5, 5, c) for c in x.counts]
    weights[1][rng.permutation(len(weights[1]))[:2]] = 1e-5, 1e5
    form = rng.normal(size=x.count(1))
    found = hodge_decomposition(x, 1, form, weights)
    star = [sympy.Rational(w) for w in weights[1]]
    omega = sympy.Matrix([sympy.Rational(v) for v in form])
    d, below = x.chain_complex.coboundary(1).toarray(), x.chain_complex.coboundary(0).toarray()
    exact = exact_projection(below, star, omega)
    # ⋆⁻¹dᵀ spans the rest beside the harmonic forms; in the coordinates ⋆ω its inner product has the weights 1/⋆
    turned = sympy.Matrix([a * b for a, b in zip(star, omega)])
    coexact = exact_projection(d.T, [1 / w for w in star], turned) / weights[1]
    for part, expected in ((found.value.exact, exact), (found.value.coexact, coexact)):
        np.testing.assert_allclose(part, expected, atol=1e-9 * np.abs(form).max())
    np.testing.assert_allclose(found.value.harmonic, form - exact - coexact, atol=1e-9 * np.abs(form).max())
    assert found.proof_level == "P2" and found.residual <= found.tolerance and found.verify() <= found.tolerance


@pytest.mark.parametrize("factor", [1.0, 1e-12, 1e12])
def test_a_wrong_part_is_caught_whatever_the_size_of_the_form_and_of_its_cells_weight(factor):
    rng = np.random.default_rng(1)
    x = spaces.torus()
    weights = [10.0 ** rng.uniform(-5, 5, c) for c in x.counts]
    found = hodge_decomposition(x, 1, factor * rng.normal(size=x.count(1)), weights)
    assert found.verify() <= found.tolerance
    for cell in (int(weights[1].argmin()), int(weights[1].argmax())):
        moved = found.witness.harmonic.copy()
        moved[cell] += 0.5 * np.abs(found.witness.form).max()
        value = dataclasses.replace(found.value, harmonic=moved)
        wrong = dataclasses.replace(found, value=value, witness=dataclasses.replace(found.witness, harmonic=moved))
        assert wrong.verify() > 1e-3
        for part in ("exact", "coexact"):  # and a form that was split otherwise
            shifted = found.witness.form - getattr(found.value, part)
            assert dataclasses.replace(found, value=dataclasses.replace(found.value, **{part: shifted})).verify() > 1e-3


def test_iterated_projections_that_do_not_arrive_are_no_proof():
    ring = from_maximal_simplices([(i, (i + 1) % 700) for i in range(700)])
    rng = np.random.default_rng(0)
    form, near = rng.normal(size=700), hodge_decomposition(ring, 1, rng.normal(size=700))
    assert near.proof_level == "P2" and near.verify() <= near.tolerance
    apart = hodge_decomposition(ring, 1, form, [10.0 ** rng.uniform(-5, 5, c) for c in ring.counts])
    assert apart.residual > apart.tolerance and apart.proof_level == "P3"
    assert apart.residual == pytest.approx(apart.verify(), rel=1e-6)
