"""Checks of metrics: what passes, what is caught, and what is told about it."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import aatc
from aatc.geometry.manifolds.riemannian import RiemannianStructure
from aatc.passes.analysis.result import AnalysisError, Undecided, verify
from aatc.validation import MetricValidation, ValidationError
from aatc.validation.metric import _grid_derivative

CHECK = MetricValidation()
SEEDS = st.integers(0, 2**31 - 1)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(seed: int, n: int) -> Tensor:
    return torch.linalg.qr(gaussian(seed, n, n))[0]


def with_least_eigenvalue(seed: int, n: int, least: float) -> Tensor:
    """A matrix with the eigenvalues 1, ..., 1, ``least`` < 1, turned at random, whose largest entry is 1."""
    q = orthogonal(seed, n)[:, :1]
    turned = torch.eye(n, dtype=torch.float64) - (1 - least) * q @ q.T
    return torch.block_diag(turned, torch.ones(1, 1, dtype=torch.float64))


def stereographic(x: Tensor) -> Tensor:
    """The unit sphere, of curvature 1."""
    return (2 / (1 + x.square().sum(-1)))[..., None, None] ** 2 * torch.eye(x.shape[-1], dtype=x.dtype)


def conformal_connection(x: Tensor) -> Tensor:
    """Γ^k_ij of e^{2f}δ with f = log 2/(1 + x²): δ_ki ∂_j f + δ_kj ∂_i f − δ_ij ∂_k f."""
    slope = -2 * x / (1 + x.square().sum(-1, keepdim=True))
    eye = torch.eye(x.shape[-1], dtype=x.dtype)
    return (
        torch.einsum("ki,...j->...kij", eye, slope)
        + torch.einsum("kj,...i->...kij", eye, slope)
        - torch.einsum("ij,...k->...kij", eye, slope)
    )


def fubini_study(x: Tensor) -> Tensor:
    """The complex projective plane in an affine chart (x₁, y₁, x₂, y₂): curvatures fill [1, 4]."""
    turn = torch.tensor([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]], dtype=x.dtype)
    y = x @ turn.T
    outer = x[..., :, None] * x[..., None, :] + y[..., :, None] * y[..., None, :]
    size = 1 + x.square().sum(-1)[..., None, None]
    return torch.eye(4, dtype=x.dtype) / size - outer / size**2


def product_of_spheres(x: Tensor) -> Tensor:
    """S² × S³: curvatures fill [0, 1]."""
    one, two = stereographic(x[..., :2]), stereographic(x[..., 2:])
    matrix = x.new_zeros(*x.shape[:-1], 5, 5)
    corner = torch.nn.functional.pad(one, (0, 3, 0, 3))
    return matrix + corner + torch.nn.functional.pad(two, (2, 0, 2, 0))


def is_above_in_rationals(matrix: Tensor, bound: float) -> bool:
    """Whether matrix − bound has only positive pivots, by exact elimination."""
    rows = [[Fraction(x) for x in row] for row in matrix.tolist()]
    for i in range(len(rows)):
        rows[i][i] -= Fraction(bound)
    for i, pivot in enumerate(rows):
        if pivot[i] <= 0:
            return False
        for row in rows[i + 1 :]:
            factor = row[i] / pivot[i]
            row[:] = [a - factor * b for a, b in zip(row, pivot)]
    return True


@given(SEEDS, st.integers(1, 6), st.sampled_from([(), (3,), (2, 2)]), st.floats(1e-12, 1e12))
def test_gram_matrices_are_positive_definite_at_every_scale(seed, n, batch, scale):
    root = gaussian(seed, *batch, n, n)
    verdict = CHECK.check_positive_definite(scale * (root @ root.mT + torch.eye(n)), 1e-4)
    assert verdict and verdict.proof_level == "P2" and verdict.residual == 0 == verdict.verify()


@given(SEEDS, st.integers(1, 6), st.sampled_from([1e-3, 1e-6, 1e-9]))
def test_the_margin_of_the_least_eigenvalue_is_sharp(seed, n, tolerance):
    assert CHECK.check_positive_definite(with_least_eigenvalue(seed, n, 1.0001 * tolerance), tolerance)
    verdict = CHECK.check_positive_definite(with_least_eigenvalue(seed, n, 0.9999 * tolerance), tolerance)
    assert not verdict and verdict.residual == pytest.approx(1e-4 * tolerance, abs=1e-13)


@given(SEEDS, st.integers(1, 8), st.floats(-15, 0))
def test_the_proved_bound_is_below_the_least_eigenvalue_and_near_it(seed, n, exponent):
    q, values = orthogonal(seed, n), torch.logspace(exponent, 0, n, dtype=torch.float64)
    witness = CHECK.check_positive_definite((q * values) @ q.T).witness
    matrix = (witness.matrix + witness.matrix.T) / 2
    least = float(torch.linalg.eigvalsh(matrix)[0])
    assert witness.lower_bound <= least <= witness.lower_bound + 1e-12
    assert is_above_in_rationals(matrix, witness.lower_bound)


@pytest.mark.parametrize("matrix", [torch.zeros(2, 2), torch.ones(3, 3), torch.diag(torch.tensor([1.0, -1e-3]))])
def test_zero_singular_and_indefinite_matrices_fail(matrix):
    for tolerance in (0.0, 1e-6):
        assert not CHECK.check_positive_definite(matrix, tolerance)


def test_the_worst_matrix_of_a_batch_is_the_witness():
    batch = torch.eye(3, dtype=torch.float64).repeat(2, 4, 1, 1)
    batch[1, 2, 0, 0] = -0.25
    verdict = CHECK.check_positive_definite(batch)
    assert not verdict and verdict.witness.index == (1, 2)
    assert verdict.witness.eigenvalue == pytest.approx(-0.25)
    assert verdict.witness.eigenvector.abs() == pytest.approx([1, 0, 0])
    assert verdict.verify() == pytest.approx(verdict.residual) == pytest.approx(0.25 + 1e-6)


@pytest.mark.parametrize("matrix", [torch.zeros(2, 2), torch.diag(torch.tensor([1.0, 1e-6], dtype=torch.float64))])
@pytest.mark.parametrize("tolerance", [0.0, 1e-6])
def test_the_witness_decides_as_the_check_does_at_zero_and_at_the_margin(matrix, tolerance):
    verdict = CHECK.check_positive_definite(matrix, tolerance)
    assert verdict.verify() == verdict.residual and bool(verdict) is (verdict.verify() == 0)


@given(SEEDS, st.integers(1, 9), st.sampled_from([0.0, 1e-15, 1e-6, 0.5]), st.floats(-1, 1), st.floats(-9, 9))
def test_the_witness_of_an_eigenvalue_gives_the_residual(seed, n, tolerance, offset, exponent):
    # Within some n ε of the margin, where only the proved bound tells, and everywhere else.
    least = tolerance + offset * (1e-15 if seed % 2 else 1)
    matrix = 10**exponent * with_least_eigenvalue(seed, n, least)
    matrix[0, -1] += 10**exponent * offset * 1e-7
    verdict = CHECK.check_positive_definite(matrix, tolerance)
    assert verdict.verify() == verdict.residual and bool(verdict) is (verdict.verify() <= verdict.tolerance)


def test_a_lower_bound_above_the_least_eigenvalue_is_not_confirmed():
    witness = CHECK.check_positive_definite(with_least_eigenvalue(3, 4, -0.1)).witness
    assert verify(replace(witness, lower_bound=0.2)) == math.inf
    assert verify(replace(witness, matrix=witness.matrix - torch.eye(5))) == math.inf


@pytest.mark.parametrize(("skew", "holds"), [(0.9e-6, True), (1.1e-6, False)])
def test_asymmetry_beyond_the_tolerance_fails(skew, holds):
    metric = torch.eye(2, dtype=torch.float64)
    metric[0, 1] = skew
    verdict = CHECK.check_positive_definite(metric)
    assert bool(verdict) is holds and verdict.witness.asymmetry == pytest.approx(skew)


@given(SEEDS, st.integers(1, 4))
def test_the_levi_civita_connection_is_compatible_and_torsion_free(seed, d):
    verdict = CHECK.verify_compatibility(
        stereographic, conformal_connection, 1e-12, points=gaussian(seed, 5, d), torsion_free=True
    )
    assert verdict and verdict.verify() == pytest.approx(verdict.residual, abs=1e-14)


def test_a_riemannian_structure_is_compatible_with_its_own_connection_and_bounded_by_its_own_curvature():
    sphere, points = RiemannianStructure(stereographic), gaussian(0, 3, 3)
    assert CHECK.verify_compatibility(sphere, sphere.christoffel_symbols, 1e-12, points=points, torsion_free=True)
    verdict = CHECK.check_curvature_bounds(sphere, (1, 1), points)
    u, v = verdict.witness.u, verdict.witness.v
    at = torch.tensor([verdict.witness.point], dtype=torch.float64)
    assert float(sphere.curvature_tensor(at).sectional(u, v)) == pytest.approx(verdict.witness.curvature, abs=1e-12)


@given(SEEDS, st.sampled_from([0.999e-6, 1.001e-6]), st.integers(0, 4))
def test_an_error_of_a_connection_is_measured_and_located(seed, size, where):
    points = gaussian(seed, 5, 2)

    def wrong(x: Tensor) -> Tensor:
        gamma = conformal_connection(x).clone()
        # δΓ^0_00 = e changes ∇_0 g_00 by 2e g_00.
        gamma[where, 0, 0, 0] += size / 2
        return gamma

    verdict = CHECK.verify_compatibility(stereographic, wrong, points=points)
    assert bool(verdict) is (size < 1e-6)
    assert verdict.residual == pytest.approx(size, rel=1e-6) == pytest.approx(verdict.verify(), rel=1e-6)
    assert verdict.witness.point == tuple(points[where].tolist())


@pytest.mark.parametrize(("size", "holds"), [(0.999e-6, True), (1.001e-6, False)])
def test_torsion_counts_only_where_it_is_asked_for(size, holds):
    flat = lambda x: torch.eye(3, dtype=x.dtype).expand(len(x), 3, 3)  # noqa: E731
    levi = torch.zeros(3, 3, 3, dtype=torch.float64)
    for i, j, k, sign in ((0, 1, 2, 1), (1, 2, 0, 1), (2, 0, 1, 1), (0, 2, 1, -1), (1, 0, 2, -1), (2, 1, 0, -1)):
        levi[i, j, k] = sign
    twisted = lambda x: (size / 2 * levi).expand(len(x), 3, 3, 3)  # noqa: E731
    points = gaussian(0, 2, 3)
    assert CHECK.verify_compatibility(flat, twisted, 1e-12, points=points)
    verdict = CHECK.verify_compatibility(flat, twisted, points=points, torsion_free=True)
    assert bool(verdict) is holds and verdict.residual == pytest.approx(size) == pytest.approx(verdict.verify())


def grid(n: int) -> tuple[Tensor, float]:
    side = torch.linspace(-0.5, 0.5, n, dtype=torch.float64)
    return torch.stack(torch.meshgrid(side, side, indexing="ij"), -1), 1 / (n - 1)


def test_on_a_grid_the_defect_falls_with_the_fourth_order_and_the_error_is_not_underestimated():
    residuals = []
    for n in (17, 33, 65):
        x, h = grid(n)
        verdict = CHECK.verify_compatibility(stereographic(x), conformal_connection(x), 0.0, spacing=h)
        assert verdict and verdict.proof_level == "P3"
        residuals.append(verdict.residual)
    orders = [math.log2(a / b) for a, b in pairwise(residuals)]
    assert all(3.5 < order < 4.5 for order in orders)


@pytest.mark.parametrize(("factor", "holds"), [(1.0, True), (1.001, False), (0.999, False)])
def test_on_a_grid_a_thousandth_of_the_connection_is_not_taken_for_discretisation(factor, holds):
    sphere, side = RiemannianStructure.sphere(2.0), 0.8 + 0.05 * torch.arange(30, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1)
    symbols = sphere.christoffel_symbols(points.reshape(-1, 2)).reshape(30, 30, 2, 2, 2)
    metric = sphere.metric(points.reshape(-1, 2)).reshape(30, 30, 2, 2)
    verdict = CHECK.verify_compatibility(metric, factor * symbols, spacing=0.05, torsion_free=True)
    assert bool(verdict) is holds and verdict.verify() == pytest.approx(verdict.residual)


@given(SEEDS, st.integers(1, 3), st.floats(0.02, 0.2), st.integers(6, 9))
def test_the_error_of_a_difference_is_bounded_from_above_and_not_by_far(seed, d, h, n):
    steps = [h * (axis + 1) / d for axis in range(d)]
    axes = [step * torch.arange(n + axis, dtype=torch.float64) for axis, step in enumerate(steps)]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    wave, phase = gaussian(seed, d, d, d), gaussian(seed + 1, d, d)
    angle = torch.einsum("...k,kij->...ij", x, wave) + phase
    slope, error = _grid_derivative(angle.sin(), steps)
    inner = (slice(2, -2),) * d
    exact = angle.cos()[inner].unsqueeze(d) * wave
    # At order 4; the rounding of sin(angle) is the rest.
    leading = wave.abs() ** 5 * torch.tensor(steps, dtype=torch.float64)[:, None, None] ** 4 / 30
    room = 2.5 * leading + 1e-14 / min(steps)
    off = (slope - exact).abs().reshape(-1, d, d, d).amax(0)
    assert bool((off <= error.reshape(-1, d, d, d).amax(0)).all())
    assert bool((error.reshape(-1, d, d, d).amax(0) <= room).all())


def test_on_a_grid_a_wrong_connection_fails_at_its_place():
    x, h = grid(33)
    gamma = conformal_connection(x)
    gamma[20, 7, 1, 0, 1] += 0.05
    verdict = CHECK.verify_compatibility(stereographic(x), gamma, spacing=h)
    assert not verdict and verdict.witness.point == (20.0, 7.0)


@settings(max_examples=6)
@given(SEEDS, st.integers(2, 5))
def test_a_unit_sphere_has_curvature_one_in_every_dimension(seed, d):
    points = gaussian(seed, 2, d)
    verdict = CHECK.check_curvature_bounds(stereographic, (1, 1), points, 1e-8)
    assert verdict and verdict.verify() < 1e-8
    for bounds in ((1 + 1.01e-6, 2), (0, 1 - 1.01e-6)):
        caught = CHECK.check_curvature_bounds(stereographic, bounds, points)
        assert not caught and caught.residual == pytest.approx(1.01e-6, rel=1e-4)
        assert caught.verify() == pytest.approx(1.01e-6, rel=1e-4)
    near = CHECK.check_curvature_bounds(stereographic, (1 + 0.99e-6, 2), points)
    assert near and near.residual == pytest.approx(0.99e-6, rel=1e-4)


@settings(max_examples=5)
@given(SEEDS)
def test_the_extremes_of_a_complex_plane_are_proved_though_the_curvature_operator_reaches_further(seed):
    points = 0.7 * gaussian(seed, 1, 4)
    assert CHECK.check_curvature_bounds(fubini_study, (1, 4), points)
    low = CHECK.check_curvature_bounds(fubini_study, (1.01, 4), points)
    high = CHECK.check_curvature_bounds(fubini_study, (1, 3.99), points)
    assert not low and low.witness.curvature == pytest.approx(1, abs=1e-8)
    assert not high and high.witness.curvature == pytest.approx(4, abs=1e-8)


def test_a_product_has_curvatures_from_zero_to_one():
    points = gaussian(0, 2, 5)
    assert CHECK.check_curvature_bounds(product_of_spheres, (0, 1), points)
    for bounds in ((1e-3, 1), (0, 0.999)):
        verdict = CHECK.check_curvature_bounds(product_of_spheres, bounds, points)
        assert not verdict and verdict.residual == pytest.approx(1e-3, rel=1e-6)


def test_bounds_between_the_planes_and_the_operator_are_undecided():
    def six_dimensional(x: Tensor) -> Tensor:
        """CP² × R²: the operator reaches 6, the planes 4."""
        padded = torch.nn.functional.pad(fubini_study(x[..., :4]), (0, 2, 0, 2))
        return padded + torch.diag(torch.tensor([0.0, 0, 0, 0, 1, 1], dtype=x.dtype))

    answer = CHECK.check_curvature_bounds(six_dimensional, (0, 5), gaussian(0, 1, 6))
    assert isinstance(answer, Undecided) and "allows 1" in answer.reason
    with pytest.raises(AnalysisError, match="undecided"):
        bool(answer)
    assert CHECK.check_curvature_bounds(six_dimensional, (0, 6), gaussian(0, 1, 6))


@pytest.mark.parametrize(
    "ask",
    [
        lambda: CHECK.check_positive_definite(torch.eye(3)[:2]),
        lambda: CHECK.check_positive_definite(torch.full((2, 2), math.nan)),
        lambda: CHECK.check_positive_definite(torch.eye(2), -1.0),
        lambda: CHECK.check_positive_definite(torch.empty(0, 2, 2)),
        lambda: CHECK.verify_compatibility(stereographic, conformal_connection),
        lambda: CHECK.verify_compatibility(stereographic, torch.zeros(2, 2, 2)),
        lambda: CHECK.verify_compatibility(lambda x: x, conformal_connection, points=torch.ones(3, 2)),
        lambda: CHECK.verify_compatibility(torch.ones(5, 6, 2, 2), torch.zeros(5, 6, 2, 2, 2), spacing=0.1),
        lambda: CHECK.verify_compatibility(torch.ones(6, 6, 2, 2), torch.zeros(6, 6, 2, 2, 2)),
        lambda: CHECK.verify_compatibility(torch.ones(6, 6, 2, 2), torch.zeros(6, 6, 2, 2, 2), spacing="a"),
        lambda: CHECK.check_curvature_bounds(stereographic, (0, 2), torch.ones(1, 2), starts=-1),
        lambda: CHECK.check_curvature_bounds(stereographic, (1, 0), torch.ones(1, 2)),
        lambda: CHECK.check_curvature_bounds(stereographic, (0, 1), torch.ones(1, 1)),
        lambda: CHECK.check_curvature_bounds(lambda x: -stereographic(x), (0, 1), torch.ones(1, 2)),
    ],
)
def test_input_that_cannot_be_judged_is_a_typed_error(ask):
    with pytest.raises(ValidationError) as error:
        ask()
    assert isinstance(error.value, aatc.errors.AatcError) and isinstance(error.value, ValueError)


def test_bounds_that_hold_everything_have_a_witness_too():
    found = CHECK.check_curvature_bounds(stereographic, (-math.inf, math.inf), torch.ones(1, 2))
    assert found and found.verify() == 0


def test_a_verdict_reads_as_a_sentence():
    text = str(CHECK.check_positive_definite(torch.eye(2)))
    assert "positive definite" in text and "holds" in text and "P2" in text
