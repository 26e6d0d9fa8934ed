"""Checks of quantum states: normalised, uncertain, entangled no more than before."""

import cmath
import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aatc.passes.analysis.result import verify
from aatc.validation import QuantumValidation, ValidationError
from aatc.validation.quantum import MEASURES, concurrence, log_negativity, negativity

CHECK = QuantumValidation()
SEEDS = st.integers(0, 2**31 - 1)
BATCHES = st.sampled_from([(), (3,), (2, 2)])
C = torch.complex128

X = torch.tensor([[0, 1], [1, 0]], dtype=C)
Y = torch.tensor([[0, -1j], [1j, 0]], dtype=C)
Z = torch.tensor([[1, 0], [0, -1]], dtype=C)
BELL = torch.tensor([1, 0, 0, 1], dtype=C) / math.sqrt(2)
CNOT = torch.eye(4, dtype=C)[[0, 1, 3, 2]]


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=C)


def vectors(seed: int, *shape: int) -> Tensor:
    psi = gaussian(seed, *shape)
    return psi / torch.linalg.vector_norm(psi, dim=-1, keepdim=True)


def densities(seed: int, batch: tuple[int, ...], d: int) -> Tensor:
    root = gaussian(seed, *batch, d, d)
    rho = root @ root.mH
    return rho / rho.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def hermitian(seed: int, d: int) -> Tensor:
    a = gaussian(seed, d, d)
    return a + a.mH


def channel(seed: int, count: int, d: int) -> Tensor:
    """Kraus operators from the blocks of a random isometry."""
    return torch.linalg.qr(gaussian(seed, count * d, d))[0].reshape(count, d, d).contiguous()


def werner(p: float) -> Tensor:
    return p * torch.outer(BELL, BELL.conj()) + (1 - p) * torch.eye(4, dtype=C) / 4


@given(SEEDS, BATCHES, st.integers(1, 6))
def test_states_are_normalised(seed, batch, d):
    for verdict in (
        CHECK.check_normalization(vectors(seed, *batch, d), 1e-12),
        CHECK.check_normalization(densities(seed, batch, d), 1e-12, density=True),
    ):
        assert verdict and verdict.proof_level == "P2" and verdict.verify() <= 1e-12


@given(SEEDS, st.integers(2, 5), st.sampled_from([0.99e-6, 1.01e-6]), st.integers(0, 2))
def test_a_wrong_norm_is_measured_and_located(seed, d, size, where):
    psi = vectors(seed, 3, d)
    psi[where] *= 1 + size
    verdict = CHECK.check_normalization(psi)
    assert bool(verdict) is (size < 1e-6) and verdict.witness.index == (where,)
    assert verdict.residual == pytest.approx(size, rel=1e-6) == pytest.approx(verdict.verify(), rel=1e-6)


def trace_off(size: float) -> Tensor:
    return torch.diag(torch.tensor([0.5, 0.5 + size], dtype=C))


def skew_by(size: float) -> Tensor:
    return torch.tensor([[0.5, size], [0, 0.5]], dtype=C)


def negative_by(size: float) -> Tensor:
    return torch.diag(torch.tensor([1 + size, -size], dtype=C))


@pytest.mark.parametrize("plant", [trace_off, skew_by, negative_by])
@pytest.mark.parametrize(("size", "holds"), [(0.99e-6, True), (1.01e-6, False)])
def test_each_fault_of_a_density_matrix_is_measured(plant, size, holds):
    batch = torch.stack([werner(0.5)[:2, :2] / werner(0.5)[:2, :2].trace(), plant(size)])
    verdict = CHECK.check_normalization(batch, density=True)
    assert bool(verdict) is holds and verdict.witness.index == (1,)
    assert verdict.residual == pytest.approx(size, rel=1e-6) == pytest.approx(verdict.verify(), rel=1e-6)


@given(SEEDS, BATCHES, st.integers(2, 5))
def test_every_state_is_uncertain(seed, batch, d):
    pair = (hermitian(seed + 1, d), hermitian(seed + 2, d))
    assert CHECK.verify_uncertainty_relations(vectors(seed, *batch, d), pair, 1e-12)
    assert CHECK.verify_uncertainty_relations(densities(seed, batch, d), pair, 1e-12, density=True)


@given(SEEDS)
def test_pure_qubits_make_it_an_equality_that_the_weaker_relation_misses(seed):
    witness = CHECK.verify_uncertainty_relations(
        vectors(seed, 2), (hermitian(seed + 1, 2), hermitian(seed + 2, 2))
    ).witness
    product = witness.variance_a * witness.variance_b
    assert product == pytest.approx(witness.covariance**2 + witness.commutator**2 / 4, abs=1e-12)


@pytest.mark.parametrize(("length", "residual"), [(1 + 0.4e-6, None), (1 + 0.6e-6, None), (1.5, 1.25)])
def test_a_matrix_that_is_no_state_breaks_the_relation(length, residual):
    # ½(1 + r·σ) with |r| = r_z > 1: Var X = Var Y = 1 and |⟨[X, Y]⟩|²/4 = r².
    matrix = (torch.eye(2, dtype=C) + length * Z) / 2
    verdict = CHECK.verify_uncertainty_relations(matrix, (X, Y), density=True)
    lacking = length**2 - 1
    assert bool(verdict) is (lacking <= 1e-6) and verdict.residual == pytest.approx(lacking, rel=1e-6)
    assert residual is None or verdict.residual == pytest.approx(residual)
    assert verdict.verify() == verdict.residual


def test_two_negative_variances_do_not_pass_for_a_positive_product():
    matrix = torch.diag(torch.tensor([1.5, -0.5], dtype=C))
    verdict = CHECK.verify_uncertainty_relations(matrix, (Z, 2 * Z), density=True)
    # ⟨Z⟩ = 2 and ⟨Z²⟩ = 1.
    assert not verdict and verdict.residual == pytest.approx(3)


@pytest.mark.parametrize(("size", "holds"), [(0.99e-6, True), (1.01e-6, False)])
def test_an_observable_that_is_not_hermitian_is_a_violation(size, holds):
    observable = Z.clone()
    observable[0, 1] = size
    verdict = CHECK.verify_uncertainty_relations(vectors(0, 2), (X, observable))
    assert bool(verdict) is holds and verdict.witness.defects[1] == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize("entry", [(0, 1), (0, 0)], ids=["off the diagonal", "imaginary trace"])
@pytest.mark.parametrize(("size", "holds"), [(0.99e-6, True), (1.01e-6, False)])
def test_a_state_that_is_not_hermitian_is_a_violation(entry, size, holds):
    batch = torch.eye(2, dtype=C).repeat(3, 1, 1)
    # ρ has trace 1; an imaginary i x on the diagonal differs from its conjugate by 2x.
    batch[1][entry] += 2 * size if entry == (0, 1) else 1j * size
    verdict = CHECK.verify_uncertainty_relations(batch, (Z, Z), density=True)
    assert bool(verdict) is holds and verdict.witness.index == (1,)
    assert verdict.residual == pytest.approx(size, rel=1e-6) == pytest.approx(verdict.verify(), rel=1e-6)


def test_matrices_far_from_hermitian_are_no_states():
    upper, turned = torch.tensor([[0.5, 0.9], [0, 0.5]]), torch.diag(torch.tensor([0.5 + 0.3j, 0.5], dtype=C))
    for matrix, defect in ((upper, 0.9), (turned, 0.6)):
        verdict = CHECK.verify_uncertainty_relations(matrix, (Z, Z), density=True)
        assert not verdict and verdict.residual == pytest.approx(defect) == pytest.approx(verdict.verify())


@given(st.floats(0, 2 * math.pi))
def test_a_commutator_counts_by_its_modulus(phase):
    # Var X Var Y = 1 in an eigenstate of Z, where ⟨[X, Y]⟩ = 2i.
    verdict = CHECK.verify_moments(1, 1, 0, 2j * cmath.exp(1j * phase))
    assert verdict and verdict.witness.commutator == pytest.approx(2)
    assert not CHECK.verify_moments(1, 1, 0, 2.001j * cmath.exp(1j * phase))


@pytest.mark.parametrize(("size", "holds"), [(-0.5, True), (0.99e-6, True), (1.01e-6, False)])
def test_moments_found_apart_are_judged_in_their_own_unit(size, holds):
    verdict = CHECK.verify_moments(2.0, 0.5, math.sqrt(0.75 + size), 1.0)
    assert bool(verdict) is holds and verdict.residual == pytest.approx(max(0.0, size), rel=1e-6)


def test_known_entanglement():
    bell = torch.outer(BELL, BELL.conj())
    assert float(negativity(bell, (2, 2))) == pytest.approx(0.5, abs=1e-12)
    assert float(log_negativity(bell, (2, 2))) == pytest.approx(1, abs=1e-12)
    assert float(concurrence(bell)) == pytest.approx(1, abs=1e-12)
    flat = torch.eye(3, dtype=C).reshape(9) / math.sqrt(3)
    assert float(negativity(torch.outer(flat, flat), (3, 3))) == pytest.approx(1, abs=1e-12)


@given(st.floats(0, 1))
def test_werner_states_are_entangled_beyond_a_third(p):
    # Negativity (3p − 1)/4 and concurrence (3p − 1)/2, or 0.
    assert float(negativity(werner(p), (2, 2))) == pytest.approx(max(0, (3 * p - 1) / 4), abs=1e-12)
    assert float(concurrence(werner(p))) == pytest.approx(max(0, (3 * p - 1) / 2), abs=1e-7)


@given(SEEDS)
def test_concurrence_of_pure_states_is_the_determinant(seed):
    psi = vectors(seed, 4)
    exact = 2 * abs(complex(psi[0] * psi[3] - psi[1] * psi[2]))
    assert float(concurrence(torch.outer(psi, psi.conj()))) == pytest.approx(exact, abs=1e-7)


@given(SEEDS, st.sampled_from([(2, 2), (2, 3), (3, 2)]), st.integers(0, 1), st.integers(1, 3), BATCHES)
def test_local_channels_do_not_raise_entanglement(seed, dims, factor, count, batch):
    operation = channel(seed, count, dims[factor])
    psi = vectors(seed + 1, *batch, dims[0] * dims[1])
    for measure in MEASURES if dims == (2, 2) else MEASURES[:2]:
        verdict = CHECK.check_entanglement_monotonicity(operation, psi, dims, factor=factor, measure=measure)
        assert verdict and verdict.witness.after <= verdict.witness.before + 1e-6
        assert verdict.verify() == pytest.approx(verdict.residual, abs=1e-12)


@given(SEEDS, st.integers(0, 1))
def test_the_factor_of_operators_on_the_whole_is_found(seed, factor):
    eye = torch.eye(2, dtype=C)
    operation = torch.stack([torch.kron(*((k, eye) if factor == 0 else (eye, k))) for k in channel(seed, 2, 2)])
    rho = densities(seed + 1, (2,), 4)
    verdict = CHECK.check_entanglement_monotonicity(operation, rho, (2, 2), density=True)
    assert verdict and verdict.witness.factor == factor
    assert not CHECK.check_entanglement_monotonicity(operation, rho, (2, 2), factor=1 - factor, density=True)


@given(SEEDS, st.sampled_from([(2, 2), (2, 3), (3, 2)]), BATCHES, st.sampled_from(MEASURES[:2]))
def test_local_unitaries_keep_entanglement(seed, dims, batch, measure):
    psi = vectors(seed, *batch, dims[0] * dims[1])
    a, b = (channel(seed + k, 1, d)[0] for k, d in enumerate(dims, 1))
    for operation in ((a, b), torch.kron(a, b), torch.kron(a, b)[None]):
        verdict = CHECK.check_entanglement_monotonicity(operation, psi, dims, 1e-12, measure=measure)
        assert verdict and verdict.witness.factor is None and verdict.verify() <= 1e-12
        assert verdict.witness.after == pytest.approx(verdict.witness.before, abs=1e-12)


@given(SEEDS, st.sampled_from([(2, 2), (2, 3)]), st.integers(1, 3), st.integers(1, 2), st.booleans())
def test_measuring_and_correcting_does_not_raise_entanglement(seed, dims, outcomes, each, density):
    """One party measures; the other corrects by a channel that depends on the outcome."""
    state = densities(seed, (2,), math.prod(dims)) if density else vectors(seed, 2, math.prod(dims))
    measured, corrected = (0, 1) if seed % 2 else (1, 0)
    parts = [torch.empty(0), torch.empty(0)]
    parts[measured] = channel(seed + 1, outcomes, dims[measured])
    parts[corrected] = torch.stack([channel(seed + 2 + k, each, dims[corrected]) for k in range(outcomes)])
    by_parties = CHECK.check_entanglement_monotonicity(tuple(parts), state, dims, 1e-10, density=density)
    # The same, written out.
    whole = []
    for k in range(outcomes):
        for op in parts[corrected][k]:
            pair = [parts[measured][k], op] if measured == 0 else [op, parts[measured][k]]
            whole.append(torch.kron(*pair))
    as_one = CHECK.check_entanglement_monotonicity(torch.stack(whole), state, dims, 1e-10, density=density)
    assert by_parties and as_one and max(by_parties.verify(), as_one.verify()) <= 1e-10
    assert by_parties.witness.after == pytest.approx(as_one.witness.after, abs=1e-12)


def test_teleporting_by_a_projective_measurement_and_a_flip_makes_products_of_bell_pairs():
    zero, one = torch.diag(torch.tensor([1, 0], dtype=C)), torch.diag(torch.tensor([0, 1], dtype=C))
    verdict = CHECK.check_entanglement_monotonicity(
        (torch.stack((zero, one)), torch.stack((torch.eye(2, dtype=C), X))), BELL, (2, 2), measure="concurrence"
    )
    # Both outcomes leave Bob's qubit in |0⟩.
    assert verdict and (verdict.witness.before, verdict.witness.after) == pytest.approx((1, 0), abs=1e-7)
    # Without the measurement, what the parties do is no channel.
    assert not CHECK.check_entanglement_monotonicity((torch.stack((zero, X)), torch.stack((X, one))), BELL, (2, 2))


@pytest.mark.parametrize(("size", "holds"), [(0.9e-6, True), (1.1e-6, False)])
def test_operators_nearly_products_are_measured_and_planted_factors_found(size, holds):
    turn = torch.linalg.matrix_exp(-1j * size * torch.kron(X, X)) @ torch.kron(X, Z)
    verdict = CHECK.check_entanglement_monotonicity(turn, BELL, (2, 2))
    assert bool(verdict) is holds and verdict.witness.factor is None
    assert verdict.residual == pytest.approx(size, rel=1e-4) == pytest.approx(verdict.verify(), rel=1e-4)
    a, b = verdict.witness.products
    for planted in ((a, -b), (a * 1.001, b), (b, a)):
        assert dataclasses.replace(verdict.witness, products=planted) and (
            verify(dataclasses.replace(verdict.witness, products=planted)) > 1e-4
        )
    assert verify(dataclasses.replace(verdict.witness, products=None)) == math.inf


def test_a_controlled_not_is_caught_by_what_it_entangles_and_by_its_form():
    plus = torch.tensor([1, 0, 1, 0], dtype=C) / math.sqrt(2)
    verdict = CHECK.check_entanglement_monotonicity(CNOT, plus, (2, 2))
    assert not verdict and verdict.residual == pytest.approx(verdict.verify()) and verdict.residual >= 0.5
    assert (verdict.witness.before, verdict.witness.after) == pytest.approx((0, 0.5), abs=1e-12)
    swapped = CHECK.check_entanglement_monotonicity(CNOT, BELL, (2, 2))
    assert not swapped and swapped.witness.after < swapped.witness.before


@pytest.mark.parametrize(("size", "holds"), [(0.9e-6, True), (1.1e-6, False)])
def test_operators_that_are_nearly_a_channel_or_nearly_local_are_measured(size, holds):
    grown = CHECK.check_entanglement_monotonicity(math.sqrt(1 + size) * X, vectors(0, 4), (2, 2), factor=0)
    assert bool(grown) is holds and grown.witness.channel_defect == pytest.approx(size, rel=1e-5)
    turned = torch.linalg.matrix_exp(-1j * size * torch.kron(Z, Z))
    joint = CHECK.check_entanglement_monotonicity(turned, BELL, (2, 2))
    assert bool(joint) is holds and joint.witness.locality_defect == pytest.approx(size, rel=1e-5)


def test_a_norm_beyond_the_range_of_squares_fails_and_is_measured_again():
    found = CHECK.check_normalization(torch.full((4,), 1e200, dtype=torch.float64))
    assert not found and found.verify() == pytest.approx(2e200)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: CHECK.check_normalization(torch.tensor(1.0)),
        lambda: CHECK.check_normalization(torch.full((2,), math.nan)),
        lambda: CHECK.check_normalization(torch.ones(2, 3), density=True),
        lambda: CHECK.verify_uncertainty_relations(torch.zeros(2), (X, Y)),
        lambda: CHECK.verify_uncertainty_relations(BELL, (X, Y)),
        lambda: CHECK.verify_uncertainty_relations(BELL[:2], (X,)),
        lambda: CHECK.verify_uncertainty_relations(BELL[:2], (X, Y, Z)),
        lambda: CHECK.verify_moments(math.nan, 1, 0, 0),
        lambda: CHECK.verify_moments(1e200, 1e200, 1e200, 0),
        lambda: CHECK.verify_moments(1j, 1, 0, 0),
        lambda: CHECK.verify_moments(1, 1, 0, "i"),
        lambda: CHECK.check_entanglement_monotonicity(CNOT, BELL, None),
        lambda: CHECK.check_entanglement_monotonicity(CNOT, BELL, (2.0, 2.0)),
        lambda: CHECK.check_entanglement_monotonicity(X, BELL, (2, 2)),
        lambda: CHECK.check_entanglement_monotonicity((X, X), BELL, (2, 2), factor=0),
        lambda: CHECK.check_entanglement_monotonicity((X, X, X), BELL, (2, 2)),
        lambda: CHECK.check_entanglement_monotonicity((X, CNOT), BELL, (2, 2)),
        lambda: CHECK.check_entanglement_monotonicity((X, torch.stack((X, X))), BELL, (2, 2)),
        lambda: CHECK.check_entanglement_monotonicity((X[None, None], X[None, None]), BELL, (2, 2)),
        lambda: CHECK.check_entanglement_monotonicity((X, math.nan * X), BELL, (2, 2)),
        lambda: CHECK.check_entanglement_monotonicity(CNOT, 2 * BELL, (2, 2)),
        lambda: CHECK.check_entanglement_monotonicity(CNOT, BELL[:2], (2, 2)),
        lambda: CHECK.check_entanglement_monotonicity(CNOT, BELL, (2, 2), measure="entropy"),
        lambda: CHECK.check_entanglement_monotonicity(X, torch.ones(6) / math.sqrt(6), (2, 3), measure="concurrence"),
    ],
)
def test_input_that_cannot_be_judged_is_a_typed_error(ask):
    with pytest.raises(ValidationError):
        ask()


def test_entanglement_measures_are_differentiable():
    # two qubits, entangled and of full rank, so that no eigenvalue is at a corner
    raw = torch.randn(4, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    bell = torch.tensor([1.0, 0, 0, 1]) / 2**0.5
    start = 0.05 * raw @ raw.mH / torch.trace(raw @ raw.mH).real + 0.95 * torch.outer(bell, bell)
    for measure in (lambda r: negativity(r, (2, 2)), lambda r: log_negativity(r, (2, 2)), concurrence):

        def of_parts(x: torch.Tensor, y: torch.Tensor, measure=measure) -> torch.Tensor:
            matrix = torch.complex(x, y)
            hermitian = matrix @ matrix.mH
            return measure(hermitian / torch.trace(hermitian).real)

        root = torch.linalg.cholesky(start)
        parts = root.real.clone().requires_grad_(), root.imag.clone().requires_grad_()
        assert measure(start) > 0.1
        assert torch.autograd.gradcheck(of_parts, parts)
