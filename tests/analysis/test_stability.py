import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aatc.passes.analysis.information.enclosing_ball import enclosing_ball
from aatc.passes.analysis.information.stability import (
    attention_lipschitz,
    pattern_stability_measures,
    perturbation_response,
    softmax_jacobian,
    softmax_jacobian_bound,
    softmax_jacobian_norm,
    softmax_jacobian_spectrum,
    total_variation_bound,
)
from aatc.passes.analysis.information.verify_information import BallWitness, ResponseWitness
from aatc.passes.analysis.result import AnalysisError, verify
from aatc.passes.analysis.stochastic import PatternError

seeds = st.integers(0, 10**6)


def random_pattern(rng, *shape, spread=1.5, holes=0.0):
    scores = spread * rng.normal(size=shape)
    scores[..., 1:] = np.where(rng.random(scores[..., 1:].shape) < holes, -np.inf, scores[..., 1:])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@given(st.integers(1, 4), st.integers(2, 8), seeds, st.floats(0, 5))
def test_jacobian_spectrum_norm_and_bound(n, m, seed, spread):
    pattern = random_pattern(np.random.default_rng(seed), n, m, spread=spread, holes=0.2)
    scores = torch.tensor(np.log(np.maximum(pattern, 1e-300)))
    expected = torch.func.vmap(torch.func.jacrev(lambda s: s.softmax(-1)))(scores).numpy()
    np.testing.assert_allclose(softmax_jacobian(pattern), expected, atol=1e-14)
    spectrum, norm = softmax_jacobian_spectrum(pattern), softmax_jacobian_norm(pattern)
    np.testing.assert_allclose(norm, spectrum[:, -1], atol=1e-13)
    assert (spectrum >= -1e-15).all()
    assert (norm <= softmax_jacobian_bound(pattern) + 1e-14).all() and softmax_jacobian_bound(pattern).max() <= 0.5


def test_two_equal_weights_reach_the_bound_one_half():
    assert softmax_jacobian_norm([[0.5, 0.5, 0]])[0] == pytest.approx(0.5, abs=1e-15)
    assert softmax_jacobian_norm([[1.0, 0, 0]])[0] == pytest.approx(0, abs=1e-15)
    assert softmax_jacobian_norm([[1.0]])[0] == 0


@given(st.floats(0, 20))
def test_tanh_lemma_is_tight_for_two_keys_that_change_places(epsilon):
    low = 1 / (1 + np.exp(epsilon))
    found = perturbation_response([[low, 1 - low]], [[epsilon, -epsilon]]).value
    assert found.epsilon[0] == pytest.approx(epsilon)
    assert found.variation[0] == pytest.approx(np.tanh(epsilon / 2), abs=1e-12)
    assert found.variation_bound[0] == pytest.approx(np.tanh(epsilon / 2), abs=1e-15)


@given(st.integers(1, 4), st.integers(2, 7), seeds, st.floats(0.01, 6))
def test_response_stays_within_its_bounds(n, m, seed, size):
    rng = np.random.default_rng(seed)
    pattern = random_pattern(rng, 2, n, m, holes=0.3)
    shift = rng.uniform(-size, size, size=(2, n, m))
    values = rng.normal(size=(m, 3))
    result = perturbation_response(pattern, shift, values)
    scores = np.where(pattern > 0, np.log(np.where(pattern > 0, pattern, 1)) + shift, -np.inf)
    moved = torch.tensor(scores).softmax(-1).numpy()
    np.testing.assert_allclose(result.value.variation, np.abs(moved - pattern).sum(-1) / 2, atol=1e-13)
    np.testing.assert_allclose(
        result.value.output_shift, np.linalg.norm((moved - pattern) @ values, axis=-1), atol=1e-13
    )
    assert result.residual <= 1e-13 and result.verify() <= 1e-13
    assert (result.value.epsilon <= np.abs(shift).max(-1) + 1e-15).all()


def test_common_shift_and_shifts_of_masked_keys_count_for_nothing():
    found = perturbation_response([[0.5, 0.5, 0.0]], [[3.0, 3.0, np.inf]]).value
    assert found.epsilon[0] == 0 and found.variation[0] == 0


@given(st.integers(1, 30), st.integers(1, 5), seeds)
def test_enclosing_ball_holds_the_points_and_is_proven_small(m, d, seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(m, d)) * rng.gamma(0.5, size=(m, 1)) + 100
    result = enclosing_ball(points)
    ball = result.value
    assert np.linalg.norm(points - ball.centre, axis=1).max() <= ball.radius
    assert ball.radius - ball.least_radius <= 1e-5 * ball.radius + 1e-12
    assert result.verify() <= 1e-5 * ball.radius + 1e-9


@pytest.mark.parametrize("d", [1, 2, 3, 8])
def test_enclosing_ball_of_known_bodies(d):
    simplex = np.eye(d + 1)
    assert enclosing_ball(simplex).value.radius == pytest.approx(np.sqrt(d / (d + 1)), rel=2e-6)
    cube = np.array(list(np.ndindex(*[2] * d)), dtype=float)
    ball = enclosing_ball(cube).value
    assert ball.radius == pytest.approx(np.sqrt(d) / 2, rel=2e-6)
    np.testing.assert_allclose(ball.centre, 0.5, atol=2e-3)
    assert enclosing_ball(np.ones((3, d))).value.radius <= 1e-15


def test_obtuse_triangle_is_held_by_its_longest_side():
    ball = enclosing_ball([[0.0, 0], [4, 0], [1.5, 0.5]]).value
    assert ball.radius == pytest.approx(2, rel=2e-6) and ball.least_radius <= 2 + 1e-12


@given(st.integers(1, 4), st.integers(2, 6), seeds)
def test_lipschitz_constants_bound_the_jacobian_in_the_query(n, m, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((n, 3), (m, 3), (m, 2)))
    result = attention_lipschitz((q @ k.mT / 3**0.5).softmax(-1).numpy(), k.numpy(), v.numpy())
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: (k @ x / 3**0.5).softmax(-1) @ v))(q)
    np.testing.assert_allclose(result.value.local, np.linalg.norm(jacobian.numpy(), 2, axis=(1, 2)), atol=1e-12)
    assert result.residual == 0 and (result.value.local <= result.value.everywhere).all()


def test_measures_of_a_pattern_alone_take_the_pattern_as_output():
    measures = pattern_stability_measures(np.full((2, 3, 4), 0.25))
    assert measures.value.value_radius == pytest.approx(np.sqrt(3 / 4))
    np.testing.assert_allclose(measures.value.jacobian_norm, 0.25, atol=1e-15)
    assert measures.residual <= 1e-15
    small = pattern_stability_measures(np.full((1, 2), 0.5), [[0.0, 0], [0, 2]]).value
    assert small.output_lipschitz == pytest.approx(1, rel=2e-6)


def test_planted_wrong_bounds_are_caught():
    rng = np.random.default_rng(0)
    result = perturbation_response(random_pattern(rng, 3, 4), rng.normal(size=(3, 4)), rng.normal(size=(4, 2)))
    w = result.witness
    wrong = ResponseWitness(w.pattern, w.perturbation, w.values, result.value.variation - 1e-3, w.output_bound)
    assert verify(wrong) == pytest.approx(1e-3, rel=1e-6)
    ball = enclosing_ball(rng.normal(size=(9, 2))).witness
    assert verify(BallWitness(ball.points, ball.centre, ball.radius / 2, ball.weights)) > 0.1
    assert verify(BallWitness(ball.points, ball.centre, ball.radius * 2, ball.weights)) > 0.1


def test_refusals_are_typed():
    with pytest.raises(AnalysisError):
        total_variation_bound(-1)
    with pytest.raises(AnalysisError):
        perturbation_response([[0.5, 0.5]], [[np.nan, 0]])
    with pytest.raises(AnalysisError):
        enclosing_ball([[np.inf, 0]])
    with pytest.raises(PatternError):
        pattern_stability_measures([[0.5, 0.5]], np.ones((3, 2)))


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_balls_around_tiny_and_huge_points_enclose_them(scale, offset):
    points = np.random.default_rng(0).normal(size=(9, 3)) + offset
    found, plain = enclosing_ball(points * scale), enclosing_ball(points)
    assert found.value.radius == pytest.approx(plain.value.radius * scale, rel=1e-5)
    assert found.residual <= found.tolerance and found.verify() <= found.tolerance
    assert (np.linalg.norm(points - found.value.centre / scale, axis=1) <= found.value.radius / scale + 1e-12).all()


def test_shifts_of_another_shape_are_refused():
    with pytest.raises(PatternError, match="do not have shape"):
        perturbation_response([[0.5, 0.5]], np.ones(3))
