"""What `QuantumGeometricAttention` measures, and its flow, against density matrices, kernels and finite differences."""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import aatc
from aatc import masks
from aatc.errors import ShapeError
from tests.nn.quantum_cases import (
    DIM,
    HEADS,
    HIDDEN,
    RANK,
    complex_states,
    made,
    overlaps,
    squared_distances,
    state_and_weights,
    tokens,
)


def test_the_metric_is_that_of_the_distance_nearby_and_another_at_every_place():
    attention = made()
    places = torch.randn(1, HEADS, 5, DIM, dtype=torch.float64)
    step = 1e-4 * torch.randn_like(places)
    g = attention.riemannian_metric(places)
    want = torch.einsum("bhnd,bhnde,bhne->bhn", step, g, step)
    overlap = overlaps(attention.field(places - step / 2), attention.field(places + step / 2))
    fidelity = overlap.diagonal(dim1=-2, dim2=-1).abs().square()
    torch.testing.assert_close(1 - fidelity, want, rtol=1e-4, atol=1e-14)
    assert torch.linalg.eigvalsh(g).min() > 0
    assert (g[:, :, 1:] - g[:, :, :1]).abs().amax((-2, -1)).min() > 1e-3
    with torch.no_grad():
        attention.field.growth.zero_()
    flat = attention.riemannian_metric(places)
    torch.testing.assert_close(flat, flat[:, :, :1].expand_as(flat))


def test_the_metric_changes_along_as_many_directions_as_its_rank():
    attention = made()
    places = torch.randn(1, HEADS, 1, DIM, dtype=torch.float64)
    across = torch.linalg.svd(attention.field.directions)[2][:, RANK:]  # no direction of change: (H, D - r, D)
    moved = places + 2 * across.sum(1)[None, :, None]
    one, other = attention.riemannian_metric(places), attention.riemannian_metric(moved)
    torch.testing.assert_close(one, other)
    moved = places + attention.field.directions.sum(1)[None, :, None]
    assert (attention.riemannian_metric(moved) - one).abs().max() > 1e-3


@pytest.mark.parametrize("tile_size", [1, 4, 100])
def test_metrics_of_attention_are_those_of_the_density_matrices(tile_size):
    attention = made(tile_size=tile_size)
    state, p = state_and_weights(attention, tokens())
    _, got = attention.compute_attention_patterns(state.query, state.key, state.value)
    q, k, v = complex_states(state.query), complex_states(state.key), complex_states(state.value)
    rho = torch.einsum("bhij,bhjc,bhjd->bhicd", p.to(k), k, k.conj())
    outside = torch.eye(DIM + 1) - torch.einsum("bhic,bhid->bhicd", q, q.conj())
    terms = torch.einsum("bhij,bhij,bhjc->bhijc", p.to(v), overlaps(state.query, state.key), v)  # of A_i, key by key
    crossed = torch.einsum("bhijc,bhilc->bhijl", terms.conj(), terms).real
    want = {
        "entropy": torch.distributions.Categorical(p).entropy(),
        "participation_ratio": 1 / p.square().sum(-1),
        "purity": (rho @ rho).diagonal(dim1=-2, dim2=-1).sum(-1).real,
        "infidelity": (outside @ rho).diagonal(dim1=-2, dim2=-1).sum(-1).real,
        "detection": terms.sum(-2).abs().square().sum(-1),
        "interference": crossed.sum((-2, -1)) - crossed.diagonal(dim1=-2, dim2=-1).sum(-1),
    }
    assert set(want) == {field.name for field in dataclasses.fields(got)}
    for name, value in want.items():
        torch.testing.assert_close(getattr(got, name), value.mean((0, 2)), rtol=1e-7, atol=1e-9, msg=name)


def test_tiles_of_masked_metrics_leave_out_what_attends_to_nothing():
    attention, x = made(tile_size=4, causal=True), tokens(2, 7)
    valid = torch.arange(7) < torch.tensor([[7], [4]])
    state = attention.prepare_attention_state(x, valid)
    _, got = attention.compute_attention_patterns(state.query, state.key, state.value, mask=valid)
    _, whole = attention.compute_attention_patterns(*(t[:1] for t in (state.query, state.key, state.value)))
    short = (t[1:, :, :4] for t in (state.query, state.key, state.value))
    _, part = attention.compute_attention_patterns(*short)
    torch.testing.assert_close(got.entropy, (7 * whole.entropy + 4 * part.entropy) / 11)
    torch.testing.assert_close(got.purity, (7 * whole.purity + 4 * part.purity) / 11)
    shut = ~torch.eye(7, dtype=torch.bool)[:, :1].expand(7, 7)
    _, got = attention.compute_attention_patterns(state.query, state.key, state.value, mask=masks.dense(shut))
    assert (got.participation_ratio >= 1 - 1e-9).all()


@settings(max_examples=15)
@given(st.integers(2, 7), st.integers(1, 3), st.sampled_from([-3.0, 0.0, 8.0]), st.booleans(), st.integers(0, 99))
def test_the_flow_is_heat_on_the_tokens_and_never_raises_the_energy(n, steps, logit, padded, seed):
    attention, x = made(num_layers=steps, seed=seed), tokens(2, n)
    torch.nn.init.constant_(attention.flow_logit, logit)
    exists = torch.arange(n) < torch.tensor([[n], [n - 1]]) if padded else None
    state = attention.prepare_attention_state(x, exists)
    u = torch.randn(2, HEADS, n, HIDDEN // HEADS, dtype=torch.float64)
    got, metrics = attention.geometric_attention_flow(u, state.metric)

    kernel = torch.exp(-attention.log_beta.exp()[:, None, None] * squared_distances(state.key, state.key))
    real = torch.ones(2, n, dtype=torch.bool) if exists is None else exists
    kernel = kernel * real[:, None, None]
    among = kernel * real[:, None, :, None]
    step = attention.flow_logit.sigmoid()[:, None, None]
    want, energies = u, []
    for k in range(steps + 1):
        if k:
            want = want + step * (kernel / kernel.sum(-1, keepdim=True) @ want - want)
        differences = (want[:, :, :, None] - want[:, :, None]).square().sum(-1)
        energies.append(0.5 * (among * differences).sum((2, 3)) / among.sum((2, 3)))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(metrics.energies, torch.stack(energies).mean(1), rtol=1e-6, atol=1e-8)
    assert metrics.steps == steps and metrics.energies.shape == metrics.entropies.shape == (steps + 1, HEADS)
    assert (metrics.energies.diff(dim=0) <= 1e-9).all()
    assert got.amax() <= u.amax() and got.amin() >= u.amin()


def test_patterns_that_are_alike_have_no_energy_and_patterns_on_a_line_no_entropy():
    attention = made()
    state = attention.prepare_attention_state(tokens())
    alike = torch.ones_like(state.value) * 1e3
    flowed, metrics = attention.geometric_attention_flow(alike, state.metric)
    torch.testing.assert_close(flowed, alike)
    assert metrics.energies.abs().max() < 1e-12 and metrics.entropies.abs().max() < 1e-9
    _, metrics = attention.geometric_attention_flow(
        torch.eye(6, dtype=torch.float64).expand(2, HEADS, 6, 6), state.metric
    )
    torch.testing.assert_close(metrics.entropies[0], torch.full((HEADS,), 6.0, dtype=torch.float64).log())


def test_forward_returns_floats_that_are_measured():
    attention, x = made(num_layers=3), tokens()
    y, numbers = attention(x, return_metrics=True)
    torch.testing.assert_close(y, attention(x))
    assert all(type(value) is float for value in numbers.values())
    _, p = state_and_weights(attention, x)
    assert numbers["entropy"] == pytest.approx(torch.special.entr(p).sum(-1).mean().item(), rel=1e-6)
    g = torch.linalg.eigvalsh(attention.riemannian_metric(attention.prepare_attention_state(x).metric.places))
    assert numbers["geometric_tensor_trace"] == pytest.approx(g.sum(-1).mean().item(), rel=1e-9)
    assert numbers["metric_condition"] == pytest.approx((g[..., -1] / g[..., 0]).max().item(), rel=1e-6)
    omega = attention.berry_curvature(attention.prepare_attention_state(x).metric.places)
    sizes = torch.stack([omega[..., i, j].square() for i in range(DIM) for j in range(i)]).sum(0).sqrt()
    assert numbers["berry_curvature"] == pytest.approx(sizes.mean().item(), rel=1e-9)
    assert 0 < numbers["flow_energy_after"] < numbers["flow_energy_before"]
    with torch.no_grad():
        attention.field.growth.mul_(2)
        attention.log_beta.add_(1)
    changed = attention(x, return_metrics=True)[1]
    assert all(changed[name] != numbers[name] for name in numbers)


def test_places_of_padding_are_not_measured_and_a_flat_direction_has_no_condition():
    attention, x = made(), tokens()
    valid = torch.arange(6) < torch.tensor([[6], [4]])
    _, got = attention(x, True, mask=valid)
    x[1, 4:] = 50
    _, other = attention(x, True, mask=valid)
    for name in ("geometric_tensor_trace", "berry_curvature", "metric_condition", "entropy", "detection"):
        assert other[name] == pytest.approx(got[name], rel=1e-9), name
    with torch.no_grad():  # nothing tells places along the last coordinate apart
        attention.field.frequency[..., -1] = 0
        attention.field.directions[..., -1] = 0
    assert attention(x, True)[1]["metric_condition"] == math.inf


@pytest.mark.slow
def test_a_compiled_module_measures_what_an_eager_one_does():
    attention, x = made(num_layers=1).float().eval(), torch.randn(2, 6, HIDDEN)
    y, numbers = aatc.compile(copy.deepcopy(attention))(x, True)
    z, want = attention(x, True)
    torch.testing.assert_close(y, z, rtol=2e-5, atol=2e-5)
    assert numbers == pytest.approx(want, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_tokens_are_counted_in_half_precision(dtype):
    attention, x = made(num_layers=0, tile_size=64).to(dtype), tokens(2, 260)
    _, got = attention(x.to(dtype), True)
    _, exact = copy.deepcopy(attention).double()(x.to(dtype).double(), True)
    for name in ("entropy", "participation_ratio", "purity", "infidelity", "detection", "geometric_tensor_trace"):
        assert got[name] == pytest.approx(exact[name], rel=2e-2), name
    state = attention.prepare_attention_state(x.to(dtype))
    measured = attention.compute_attention_patterns(state.query, state.key, state.value)[1]
    assert measured.entropy.dtype == torch.float32


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_the_entropy_of_a_flow_has_no_unit(unit):
    attention, x = made().float(), tokens().float()
    state = attention.prepare_attention_state(x)
    one, other = (attention.geometric_attention_flow(u * state.value, state.metric)[1] for u in (1.0, unit))
    torch.testing.assert_close(one.entropies, other.entropies, rtol=1e-4, atol=1e-5)


def test_what_is_not_a_number_is_measured_as_such():
    x = tokens()
    x[0, 1, 0] = torch.nan
    numbers = made()(x, True)[1]
    measured = ("entropy", "flow_entropy_after", "detection", "geometric_tensor_trace", "metric_condition")
    assert all(math.isnan(numbers[name]) for name in measured)


@pytest.mark.parametrize("shape", [(2, 0), (0, 3)])
def test_of_no_tokens_nothing_is_measured(shape):
    attention, x = made(), tokens(*shape)
    assert attention(x).shape == x.shape
    with pytest.raises(ShapeError, match="nothing to measure"):
        attention(x, True)
    state = attention.prepare_attention_state(x)
    with pytest.raises(ShapeError, match="nothing to measure"):
        attention.geometric_attention_flow(state.value[..., ::2], state.metric)


def test_metrics_make_no_tensor_over_all_pairs():
    attention, largest = made(num_layers=0, tile_size=8), 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dim() == 4 and "attend" not in str(function):
                largest = max(largest, out.shape[-1] * out.shape[-2])
            return out

    state = attention.prepare_attention_state(tokens(1, 200))
    with Watch():
        attention.compute_attention_patterns(state.query, state.key, state.value)
    assert 0 < largest <= 200 * (DIM + 1) ** 2  # the keys' projectors
