"""Checks of patterns: stability, symmetries, scale invariance."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aatc.passes.analysis.result import AnalysisError, verify
from aatc.validation import PatternValidation, ValidationError

CHECK = PatternValidation()
SEEDS = st.integers(0, 2**31 - 1)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rolls(n: int, step: int = 1) -> dict[str, list[int]]:
    return {f"roll {s}": [(i + s) % n for i in range(n)] for s in range(0, n, step)}


@settings(max_examples=10)
@given(SEEDS, st.integers(1, 4), st.floats(0.1, 2))
def test_growth_under_linear_dynamics_is_that_of_the_exponential(seed, n, time):
    matrix, shift = gaussian(seed, n, n), gaussian(seed + 1, n)
    exact = float(
        torch.linalg.vector_norm(torch.linalg.matrix_exp(matrix * time) @ shift) / torch.linalg.vector_norm(shift)
    )
    verdict = CHECK.check_pattern_stability(gaussian(seed + 2, n), shift, time, lambda u: matrix @ u)
    assert bool(verdict) is (exact <= 1) and verdict.proof_level == "P3"
    assert verdict.witness.after / verdict.witness.before == pytest.approx(exact, rel=1e-6)
    assert verdict.witness.rate == pytest.approx(math.log(exact) / time, abs=1e-5 / time)


@settings(max_examples=8)
@given(st.floats(-2, 2), st.sampled_from([0.95e-3, 1.05e-3]))
def test_growth_near_the_tolerance_is_measured(offset, growth):
    # u' = r u multiplies every difference by e^{rt}.
    rate = math.log1p(growth)
    pattern, shift = torch.full((3,), offset), torch.tensor([0.1, 0.0, -0.1])
    verdict = CHECK.check_pattern_stability(pattern, shift, 1.0, lambda u: rate * u, 1e-3)
    assert bool(verdict) is (growth < 1e-3)
    assert verdict.residual == pytest.approx(growth, abs=1e-7) == pytest.approx(verdict.verify(), abs=1e-7)


def test_the_two_states_of_a_bistable_cell_are_stable_and_the_one_between_is_not():
    cell = lambda u: u - u**3  # noqa: E731
    shift = torch.full((3, 1), 0.01)
    verdict = CHECK.check_pattern_stability(torch.tensor([[-1.0], [0.0], [1.0]]), shift, 2.0, cell, batch_ndim=1)
    assert not verdict and verdict.witness.index == (1,)
    assert verdict.witness.rate == pytest.approx(1, abs=0.01)
    for state in (-1.0, 1.0):
        stable = CHECK.check_pattern_stability(torch.tensor([[state]]), shift[:1], 2.0, cell, batch_ndim=1)
        assert stable and stable.witness.rate == pytest.approx(-2, abs=0.05)


@pytest.mark.parametrize("size", [2.0, 1e-2, 1.1e-5, 0.9e-5, 1e-10, 1e-17, 1e-300])
def test_perturbations_of_every_size_are_measured_exactly(size):
    # u² obeys a logistic equation: u(t)² = 1/(1 + (1/u₀² − 1) e^{−2t}), so that its distance from 1 is known.
    pattern = torch.ones(3, dtype=torch.float64)
    verdict = CHECK.check_pattern_stability(pattern, size * pattern, 3.0, lambda u: u - u**3)
    excess = -(2 + size) / (1 + size) ** 2 * math.exp(-6)  # of 1/u² over 1, divided by the size
    scale = math.sqrt(1 + size * excess)
    exact = -excess / (scale * (1 + scale))
    assert verdict and verdict.witness.after / verdict.witness.before == pytest.approx(exact, rel=1e-6)
    assert verdict.witness.before == pytest.approx(math.sqrt(3) * size, rel=1e-6)
    assert verdict.witness.rate == pytest.approx(math.log(exact) / 3, rel=1e-6)


@settings(max_examples=6)
@given(SEEDS, st.integers(1, 4), st.floats(-30, 0))
def test_small_perturbations_of_moving_patterns_follow_the_linear_flow(seed, n, exponent):
    # u(t) = e^{At}u₀ moves; its perturbations of any size obey the same matrix.
    matrix, start = gaussian(seed, n, n), gaussian(seed + 2, 2, n)
    shift = gaussian(seed + 1, 2, n) * torch.tensor([[10**exponent], [1.0]], dtype=torch.float64)
    turned = shift @ torch.linalg.matrix_exp(matrix).mT
    ratios = torch.linalg.vector_norm(turned, dim=-1) / torch.linalg.vector_norm(shift, dim=-1)
    verdict = CHECK.check_pattern_stability(start, shift, 1.0, lambda u: u @ matrix.mT, batch_ndim=1)
    assert verdict.witness.index == (int(ratios.argmax()),)
    assert verdict.residual == pytest.approx(max(0.0, float(ratios.max()) - 1), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("size", [1e-9, 1e-2])
def test_a_tiny_perturbation_that_grows_saturates_as_a_large_one_does(size):
    # Logistic u' = u(1 - u) from 0: δ is the solution itself.
    verdict = CHECK.check_pattern_stability(torch.zeros(1), torch.full((1,), size), 25.0, lambda u: u * (1 - u))
    exact = 1 / (1 + (1 / size - 1) * math.exp(-25))
    assert not verdict and verdict.witness.after == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("forget", [lambda u: u.detach(), lambda u: torch.from_numpy(u.numpy().copy())])
def test_dynamics_without_derivatives_need_perturbations_above_rounding(forget):
    dynamics = lambda u: 0.05 * forget(u)  # noqa: E731
    pattern = torch.ones(2, dtype=torch.float64)
    verdict = CHECK.check_pattern_stability(pattern, 1.1e-5 * pattern, 1.0, dynamics)
    assert not verdict and verdict.residual == pytest.approx(math.expm1(0.05), rel=1e-6)
    with pytest.raises(ValidationError, match=r"1\.0e-05"):
        CHECK.check_pattern_stability(pattern, 1e-7 * pattern, 1.0, dynamics)


def test_a_solution_that_blows_up_is_unstable():
    verdict = CHECK.check_pattern_stability(torch.zeros(1), torch.ones(1), 2.0, lambda u: u * u)
    assert not verdict and verdict.residual == math.inf


@given(SEEDS, st.integers(2, 6), st.integers(1, 3), st.sampled_from([(), (2,)]))
def test_periodic_patterns_are_invariant_bit_for_bit(seed, period, copies, batch):
    pattern = gaussian(seed, *batch, period).repeat(*[1] * len(batch), copies)
    verdict = CHECK.verify_symmetries(pattern, rolls(period * copies, period), 0.0)
    assert verdict and verdict.proof_level == "P0" and verdict.verify() == 0


@given(SEEDS, st.integers(3, 6), st.sampled_from([0.99e-6, 1.01e-6]))
def test_a_broken_symmetry_is_measured_and_named(seed, n, size):
    pattern = torch.full((2, n), -3.0, dtype=torch.float64)
    pattern[1, 1] *= 1 - size
    verdict = CHECK.verify_symmetries(pattern, rolls(n))
    assert bool(verdict) is (size < 1e-6) and verdict.proof_level == "P2"
    assert verdict.residual == pytest.approx(size, rel=1e-6) and verdict.verify() == verdict.residual
    assert verdict.witness.element.startswith("roll") and verdict.witness.index[0] == 1


@given(SEEDS, st.integers(2, 7))
def test_circulant_attention_is_equivariant_under_rolls_and_not_under_swaps(seed, n):
    weights = gaussian(seed, n).softmax(0)
    matrix = torch.stack([weights.roll(i) for i in range(n)])
    assert CHECK.verify_symmetries(matrix, rolls(n), 0.0, conjugate=True).proof_level == "P0"
    assert not CHECK.verify_symmetries(matrix, [rolls(n)["roll 1"]], 1e-9)
    if n > 3:
        swap = [1, 0, *range(2, n)]
        verdict = CHECK.verify_symmetries(matrix, [swap], 1e-9, conjugate=True)
        assert not verdict and verdict.witness.element == "element 0"


@given(SEEDS, st.integers(0, 7))
def test_functions_serve_as_elements(seed, quarter):
    quadrant = gaussian(seed, 4, 4)
    pattern = sum(torch.rot90(quadrant, k) for k in range(4))
    turns = {f"turn {k}": lambda x, k=k: torch.rot90(x, k) for k in range(4)}
    assert CHECK.verify_symmetries(pattern, turns, 1e-12)
    assert not CHECK.verify_symmetries(pattern, {"mirror": lambda x: x.flip(0)}, 1e-9)
    wave = torch.exp(2j * math.pi * torch.arange(8, dtype=torch.float64) / 8)
    turned = {"roll and phase": lambda x: x.roll(quarter) * wave[quarter]}
    assert CHECK.verify_symmetries(wave, turned, 1e-12)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_rolls_are_a_group_and_one_of_them_left_out_is_missed(n):
    assert CHECK.verify_group(rolls(n)) and CHECK.verify_group(rolls(n)).proof_level == "P0"
    if n > 1:
        verdict = CHECK.verify_group(list(rolls(n).values())[1:])
        assert not verdict and verdict.residual == 1 == verdict.verify()
        assert verdict.witness.missing == (tuple(range(n)),)


@given(SEEDS, st.integers(1, 4), st.integers(-3, 4))
def test_homogeneous_functions_are_scale_invariant_with_their_degree(seed, d, degree):
    f = lambda x: torch.linalg.vector_norm(x, dim=-1) ** degree  # noqa: E731
    verdict = CHECK.check_scale_invariance(f, [0.5, 2.0, 10.0], gaussian(seed, 6, d), 1e-10)
    assert verdict and verdict.verify() <= 1e-10
    assert verdict.witness.exponent == pytest.approx(degree, abs=1e-12) and verdict.witness.confidence < 1e-12
    assert not CHECK.check_scale_invariance(f, [0.5, 2.0], gaussian(seed, 6, d), exponent=degree + 0.5)


@given(SEEDS, st.sampled_from([0.99e-6, 1.01e-6]))
def test_a_departure_from_scaling_is_measured(seed, size):
    # f(2x) is off by the factor 1 + size, relative to the largest |f|.
    points = gaussian(seed, 4, 1).abs() % 0.4 + 0.5
    f = lambda x: x[:, 0] ** 2 * (1 + size * (x[:, 0] > 0.95).to(x))  # noqa: E731
    verdict = CHECK.check_scale_invariance(f, torch.tensor([2.0]), points, exponent=2)
    assert bool(verdict) is (size < 1e-6) and verdict.residual == pytest.approx(size, rel=1e-6)
    assert verdict.witness.point == tuple(points[points[:, 0].argmax()].tolist())


@given(SEEDS)
def test_a_sum_of_two_powers_has_no_exponent_and_an_interval_that_says_so(seed):
    points = gaussian(seed, 8, 2)
    f = lambda x: x.square().sum(-1) + x.square().sum(-1) ** 2  # noqa: E731
    verdict = CHECK.check_scale_invariance(f, [0.5, 2.0, 3.0], points)
    assert not verdict and verdict.residual > 0.01
    assert 2 < verdict.witness.exponent < 4 and verdict.witness.confidence > 0.01


@settings(max_examples=5)
@given(SEEDS)
def test_the_interval_covers_the_exponent_of_noisy_powers(seed):
    noise = gaussian(seed + 1, 400)
    covered = 0
    for block in noise.split(20):
        calls = iter([torch.ones(20, dtype=torch.float64), (1.5 * math.log(2) + 0.1 * block).exp()])
        verdict = CHECK.check_scale_invariance(lambda x, calls=calls: next(calls), [2.0], torch.ones(20, 1))
        covered += abs(verdict.witness.exponent - 1.5) <= verdict.witness.confidence
    assert 15 <= covered <= 20


def test_an_element_that_writes_into_its_argument_does_not_pass():
    pattern = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = CHECK.verify_symmetries(pattern, {"doubled": lambda x: x.mul_(2)})
    assert not found and found.residual == 1
    assert pattern.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "ask",
    [
        lambda: CHECK.check_pattern_stability(torch.ones(2), torch.ones(3), 1.0, lambda u: u),
        lambda: CHECK.check_pattern_stability(torch.ones(2), torch.zeros(2), 1.0, lambda u: u),
        lambda: CHECK.check_pattern_stability(torch.ones(2), torch.ones(2), 0.0, lambda u: u),
        lambda: CHECK.check_pattern_stability(torch.ones(2), torch.ones(2), 1.0, lambda u: u[:1]),
        lambda: CHECK.check_pattern_stability(torch.full((2,), math.nan), torch.ones(2), 1.0, lambda u: u),
        lambda: CHECK.verify_symmetries(torch.ones(3), []),
        lambda: CHECK.verify_symmetries(torch.ones(3), [[0, 1]]),
        lambda: CHECK.verify_symmetries(torch.ones(3), [[0, 1, 1]]),
        lambda: CHECK.verify_symmetries(torch.ones(3), [torch.eye(3)]),
        lambda: CHECK.verify_symmetries(torch.ones(3), [lambda x: x[:2]]),
        lambda: CHECK.verify_symmetries(torch.ones(3), [[0, 1, 2]], axis=1),
        lambda: CHECK.verify_symmetries(torch.ones(2, 3), [[0, 1, 2]], conjugate=True),
        lambda: CHECK.verify_symmetries(torch.ones(3), ["abc"]),
        lambda: CHECK.verify_symmetries(torch.ones(3), [None]),
        lambda: CHECK.verify_group([]),
        lambda: CHECK.verify_group([[0.5, 1, 2]]),
        lambda: CHECK.verify_group([[0, 1], [0, 1, 2]]),
        lambda: CHECK.check_scale_invariance(lambda x: x[:, 0], [1.0], torch.ones(2, 1)),
        lambda: CHECK.check_scale_invariance(lambda x: x[:, 0], [-1.0, 2.0], torch.ones(2, 1)),
        lambda: CHECK.check_scale_invariance(lambda x: 0 * x[:, 0], [2.0], torch.ones(2, 1)),
        lambda: CHECK.check_scale_invariance(lambda x: x[:, 0].log(), [2.0], -torch.ones(2, 1)),
        lambda: CHECK.check_scale_invariance(lambda x: x, [2.0], torch.ones(2, 1)),
        lambda: CHECK.check_scale_invariance(lambda x: x[:, 0], "ab", torch.ones(2, 1)),
        lambda: CHECK.check_scale_invariance(lambda x: x[:, 0], None, torch.ones(2, 1)),
        lambda: CHECK.check_scale_invariance(lambda x: x[:, 0], [1e-300], torch.ones(2, 1), exponent=400.0),
        lambda: CHECK.check_scale_invariance(lambda x: x[:, 0], [1e300], torch.ones(2, 1), exponent=400.0),
    ],
)
def test_input_that_cannot_be_judged_is_a_typed_error(ask):
    with pytest.raises(ValidationError):
        ask()


@given(SEEDS, st.integers(2, 4), st.integers(2, 4))
def test_patterns_that_pool_without_loss_are_told_from_others(seed, blocks, size):
    n = blocks * size
    coarse = torch.softmax(gaussian(seed, blocks, blocks), -1)
    inside = torch.softmax(gaussian(seed + 1, n, blocks, size), -1)  # how a token spreads what a block gets
    labels = torch.arange(n) // size
    pattern = (coarse[labels][..., None] * inside).reshape(n, n)
    good = CHECK.check_lumpability(pattern, size, 1e-12)
    assert good and good.proof_level == "P2" and good.verify() <= 1e-12
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert CHECK.check_lumpability(pattern[order][:, order], labels[order].tolist(), 1e-12)
    moved = pattern.clone()
    moved[1] = torch.softmax(gaussian(seed + 2, n), -1)
    bad = CHECK.check_lumpability(moved, size, 1e-12)
    onto = moved.reshape(n, blocks, size).sum(-1)
    mean = onto.reshape(blocks, size, blocks).mean(1)
    apart = (onto - mean[labels]).abs().sum(-1) / 2
    assert not bad and bad.residual == pytest.approx(float(apart.max()), abs=1e-12)
    assert bad.verify() == pytest.approx(bad.residual, abs=1e-12)
    assert float(apart[bad.witness.worst]) == pytest.approx(bad.residual, abs=1e-12)


def test_witnesses_of_lumping_that_were_changed_do_not_verify():
    witness = CHECK.check_lumpability(torch.softmax(gaussian(0, 6, 6), -1), 3).witness
    for change in (
        {"rows": witness.rows * 1.01},
        {"rows": witness.rows * float("nan")},
        {"rows": -witness.rows},
        {"weights": -witness.weights},
        {"weights": witness.weights * float("nan")},
        {"worst": next(m for m in witness.members if m != witness.worst)},
    ):
        assert verify(dataclasses.replace(witness, **change)) == math.inf
    with pytest.raises(ValidationError, match="one pattern"):
        CHECK.check_lumpability(torch.full((2, 4, 4), 0.25), 2)
    with pytest.raises(AnalysisError, match="size of all blocks"):
        CHECK.check_lumpability(torch.full((4, 4), 0.25), [0, 1])
