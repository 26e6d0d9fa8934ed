"""`QuantumGeometricAttention`: Born probabilities of states over a curved manifold; amplitudes that interfere."""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import aatc
from aatc.errors import CaptureError, ShapeError
from aatc.nn import FubiniStudy, Overlap, QuantumGeometricAttention
from tests.nn.agreement import assert_compiled_alike
from tests.nn.quantum_cases import (
    DIM,
    HEADS,
    HIDDEN,
    by_hand,
    complex_states,
    made,
    overlaps,
    tokens,
    weights_of,
)


@given(st.integers(1, 3), st.integers(1, 7), st.sampled_from([0.1, 1.0, 4.0]), st.integers(0, 99))
def test_weights_are_born_probabilities_of_the_amplitudes(b, n, scale, seed):
    attention = made(seed=seed)
    state = attention.prepare_attention_state(tokens(b, n))
    psi = attention.attention_amplitudes(state.query, state.key, scale)
    want = weights_of(attention, state.query, state.key, scale)
    torch.testing.assert_close(psi.abs().square(), want, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(psi.abs().square().sum(-1), torch.ones(b, HEADS, n, dtype=torch.float64))
    patterns, _ = attention.compute_attention_patterns(state.query, state.key, state.value, scale)
    amplitude = (want * overlaps(state.query, state.key)) @ complex_states(state.value)
    torch.testing.assert_close(patterns, amplitude.abs().square(), rtol=1e-7, atol=1e-9)
    summed = attention.summed_amplitudes(state.query, state.key, state.value, scale)
    torch.testing.assert_close(summed, amplitude, rtol=1e-7, atol=1e-9)
    assert (patterns.sum(-1) <= 1 + 1e-12).all()


def test_states_are_normalised_and_amplitudes_carry_the_phase_of_the_overlap():
    attention = made()
    state = attention.prepare_attention_state(tokens())
    for states in (state.query, state.key, state.value):
        torch.testing.assert_close(states.norm(dim=-1), torch.ones(2, HEADS, 6, dtype=torch.float64))
    overlap = overlaps(state.query, state.key)
    psi = attention.attention_amplitudes(state.query, state.key)
    torch.testing.assert_close(psi / psi.abs(), overlap / overlap.abs())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_output_and_gradients_are_those_of_the_formula_by_hand(n, causal):
    attention, x = made(causal=causal), tokens(2, n).requires_grad_()
    cotangent = torch.randn(2, n, HIDDEN, dtype=torch.float64)
    keep = torch.ones(n, n, dtype=torch.bool).tril() if causal else None
    wanted = [x, *attention.parameters()]
    outputs = attention(x), by_hand(attention, x, keep)
    torch.testing.assert_close(*outputs, rtol=1e-7, atol=1e-9)
    # one token alone attends to itself whatever the temperature
    got, want = (torch.autograd.grad(y, wanted, cotangent, materialize_grads=True) for y in outputs)
    for name, one, other in zip(("x", *dict(attention.named_parameters())), got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("causal", [False, True])
def test_compiled_output_and_gradients_are_those_of_the_formula_by_hand(causal):
    attention = made(num_layers=1, causal=causal).float()
    exact, x = copy.deepcopy(attention).double(), tokens(2, 37).float()
    cotangent = torch.randn(2, 37, HIDDEN)
    keep = torch.ones(37, 37, dtype=torch.bool).tril() if causal else None
    compiled = aatc.compile(attention)
    y, want = compiled(x), by_hand(exact, x.double(), keep)
    y.backward(cotangent)
    want.backward(cotangent.double())
    assert (y - want).abs().max() <= 3e-5 * want.abs().max()
    for (name, one), other in zip(attention.named_parameters(), exact.parameters(), strict=True):
        assert (one.grad - other.grad).abs().max() <= 1e-4 * max(1, other.grad.abs().max()), name
    report = compiled.explain()
    assert not report.fallbacks and len(report.attentions) == 2
    assert "transported by two extra contractions" in report.attentions[0].runs_as  # no tensor over all pairs


@settings(max_examples=10)
@given(st.floats(-3, 3), st.integers(0, 99))
def test_phases_count_where_they_can_be_seen(angle, seed):
    attention = made(seed=seed)
    state = attention.prepare_attention_state(tokens())
    turn = torch.polar(torch.ones((), dtype=torch.float64), torch.tensor(angle, dtype=torch.float64))

    def turned(states, where=slice(None)):
        phases = torch.ones(states.shape[-2], 1, dtype=turn.dtype)
        phases[where] = turn
        rotated = complex_states(states) * phases
        return torch.cat((rotated.real, rotated.imag), -1)

    def patterns(query, key, value):
        return attention.compute_attention_patterns(query, key, value)[0]

    q, k, v = state.query, state.key, state.value
    plain = patterns(q, k, v)
    torch.testing.assert_close(patterns(turned(q, 1), k, v), plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(patterns(q, turned(k, 1), turned(v, 1)), plain, rtol=1e-9, atol=1e-9)
    relative = (patterns(q, turned(k, 1), v) - plain).abs().max()
    assert relative > 1e-6 if abs(math.sin(angle / 2)) > 1e-2 else relative < 0.1
    weights = [attention.attention_amplitudes(q, key).abs() for key in (k, turned(k, 1))]
    torch.testing.assert_close(*weights)


def test_keys_of_opposite_phase_cancel_and_keys_of_equal_phase_add_up():
    attention = made()
    state = attention.prepare_attention_state(tokens(1, 1))
    query, key, value = (t.expand(1, HEADS, 2, -1) for t in (state.query, state.key, state.value))
    alike, measured = attention.compute_attention_patterns(query, key, value)
    fidelity = overlaps(state.query, state.key).abs().square()
    torch.testing.assert_close(alike.sum(-1), fidelity[..., 0].expand(1, HEADS, 2))
    torch.testing.assert_close(measured.interference, measured.detection / 2)
    opposite = value * torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    gone, measured = attention.compute_attention_patterns(query, key, opposite)
    assert gone.abs().max() < 1e-28 and measured.detection.abs().max() < 1e-28
    torch.testing.assert_close(measured.interference, -fidelity[0, :, 0, 0] / 2)


def test_a_changed_field_changes_weights_flow_and_output():
    attention, x = made(), tokens()
    state = attention.prepare_attention_state(x)
    changed = copy.deepcopy(attention)
    with torch.no_grad():
        changed.field.growth.mul_(3)
    other = changed.prepare_attention_state(x)
    assert torch.equal(state.metric.places, other.metric.places)
    assert (attention(x) - changed(x)).abs().max() > 1e-3
    psi = [m.attention_amplitudes(s.query, s.key).abs() for m, s in ((attention, state), (changed, other))]
    assert (psi[0] - psi[1]).abs().max() > 1e-3
    patterns = torch.randn(2, HEADS, 6, HIDDEN // HEADS, dtype=torch.float64)
    flowed = [attention.geometric_attention_flow(patterns, s.metric)[0] for s in (state, other)]
    assert (flowed[0] - flowed[1]).abs().max() > 1e-3


def test_gradients_are_right_and_reach_every_parameter():
    attention, x = made(num_layers=1), tokens(1, 3).requires_grad_()
    names = ("field.frequency", "field.growth", "field.directions", "field.level", "log_beta", "flow_logit")
    parameters = dict(attention.named_parameters())

    def output(x, *values):
        return torch.func.functional_call(attention, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *(parameters[n] for n in names)), atol=1e-5, rtol=1e-4, fast_mode=True)
    attention(x).square().sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad.abs().max() > 1e-9, name
    assert (attention.field.directions.grad.abs().amax((1, 2)) > 1e-6).all()


def test_values_of_zeros_bring_nothing_and_spoil_nothing():
    attention = made()
    with torch.no_grad():
        for parameter in attention.value.parameters():
            parameter.zero_()
    x = tokens().requires_grad_()
    y, numbers = attention(x, return_metrics=True)
    torch.testing.assert_close(y, attention.out.bias.expand_as(y))
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert numbers["detection"] == 0


@pytest.mark.parametrize("causal", [False, True])
def test_it_compiles_without_fallback(causal):
    attention = made(num_layers=1, dropout=0.2, causal=causal).float()
    assert_compiled_alike(attention, torch.randn(2, 6, HIDDEN), attentions=2)


def test_it_compiles_with_a_mask():
    attention, x = made(num_layers=1).float().eval(), torch.randn(2, 6, HIDDEN)
    valid = torch.arange(6) < torch.tensor([[6], [4]])
    compiled = aatc.compile(copy.deepcopy(attention))
    torch.testing.assert_close(compiled(x, mask=valid), attention(x, mask=valid), rtol=2e-5, atol=2e-5)
    assert not compiled.explain().fallbacks


def test_padding_is_as_if_it_were_not_there():
    attention, x = made(), tokens()
    valid = torch.arange(6) < torch.tensor([[6], [4]])
    got = attention(x, mask=valid)
    torch.testing.assert_close(got[:1], attention(x[:1]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got[1:, :4], attention(x[1:, :4]), rtol=1e-9, atol=1e-9)
    nothing, numbers = attention(x, True, mask=torch.zeros(2, 6, dtype=torch.bool))
    torch.testing.assert_close(nothing, attention.out.bias.expand(2, 6, -1))
    assert numbers["entropy"] == numbers["flow_energy_before"] == 0


def test_causal_tokens_do_not_see_later_ones():
    attention, x = made(causal=True), tokens()
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(attention(x)[:, :4], attention(changed)[:, :4])
    assert (attention(x)[:, 4:] - attention(changed)[:, 4:]).abs().max() > 1e-3


def test_dropout_thins_the_weights_while_training_only():
    attention, x = made(num_layers=0, dropout=0.5), tokens(2, 30)
    state = attention.prepare_attention_state(x)
    # one query state for all keys, so that the amplitude of key j alone stands in channel j
    p = weights_of(attention, state.query, state.key)
    terms = p * overlaps(state.query, state.key)
    wide = HIDDEN // HEADS
    values = torch.zeros(2, HEADS, 30, 2 * wide, dtype=torch.float64)
    values[:, :, torch.arange(wide), torch.arange(wide)] = 1
    thinned = attention.summed_amplitudes(state.query, state.key, values)
    gone = thinned == 0
    assert abs(gone.double().mean().item() - 0.5) < 0.07
    torch.testing.assert_close(thinned[~gone], 2 * terms[..., :wide][~gone], rtol=1e-7, atol=1e-9)
    attention.eval()
    again = attention.summed_amplitudes(state.query, state.key, values)
    torch.testing.assert_close(again, terms[..., :wide], rtol=1e-7, atol=1e-9)
    assert torch.equal(attention(x), attention(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tokens_of_zeros_have_finite_gradients(dtype):
    attention = made().to(dtype)
    with torch.no_grad():
        for projection in (attention.query, attention.key, attention.value):
            projection.bias.zero_()
    x = tokens().to(dtype)
    x[0, 2] = 0
    x.requires_grad_()
    y = attention(x)
    y.float().sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    state = attention.prepare_attention_state(x)
    assert (state.value[0, :, 2] == 0).all() and (state.metric.places[0, :, 2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1e2, 3e4])
def test_states_far_out_on_the_manifold_are_units(dtype, size):
    attention = made().to(dtype)
    places = (size * torch.randn(1, HEADS, 20, DIM)).clamp(-6e4, 6e4).to(dtype).requires_grad_()
    states = attention.field(places)
    torch.testing.assert_close(
        states.float().norm(dim=-1), torch.ones(1, HEADS, 20), rtol=4 * torch.finfo(dtype).eps, atol=0
    )
    states.float().square().sum().backward()
    assert places.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_output_follows_the_dtype(dtype):
    attention, x = made().to(dtype), tokens()
    got, numbers = attention(x.to(dtype), True)
    assert got.dtype == dtype and got.isfinite().all()
    want, exact = copy.deepcopy(attention).double()(x, True)
    room = {torch.bfloat16: 0.1, torch.float32: 1e-5}[dtype]
    assert (got.double() - want).abs().max() < room
    assert numbers["entropy"] == pytest.approx(exact["entropy"], abs=room)


def test_state_dict_makes_the_same_module():
    source, other, x = made(seed=1), made(seed=2), tokens()
    assert not torch.equal(source(x), other(x))
    other.load_state_dict(source.state_dict())
    assert torch.equal(source(x), other(x))
    assert {"field.frequency", "field.growth", "log_beta", "flow_logit"} <= set(source.state_dict())


def test_an_export_computes_what_the_module_computes():
    attention, x = made(num_layers=1).float().eval(), torch.randn(2, 5, HIDDEN)
    module = aatc.export(attention, (x,))
    state = {n.replace(".", "_"): t for n, t in attention.named_parameters()}
    values = [state[a.name] for a in module.entry.args[:-1]]
    torch.testing.assert_close(aatc.run(module, *values, x), attention(x), rtol=2e-5, atol=2e-5)
    assert sum(op.name == "geo.metric" for op in module.walk()) == 2


def test_frozen_states_and_what_does_not_fit():
    attention, x = made(), tokens()
    state = attention.prepare_attention_state(x)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.query = state.key
    with pytest.raises(ShapeError, match="12 features cannot be shared by 5 heads"):
        QuantumGeometricAttention(12, 5)
    for name, least in (("motive_rank", 1), ("manifold_dim", 2), ("num_layers", 0), ("tile_size", 1)):
        with pytest.raises(ShapeError, match=f"{name} is at least {least}"):
            QuantumGeometricAttention(12, 2, **{name: least - 1})
    with pytest.raises(ShapeError, match="not a probability"):
        QuantumGeometricAttention(12, 2, dropout=-0.1)
    with pytest.raises(ShapeError, match=r"\(batch, length, 12\)"):
        attention(x[..., :-1])
    with pytest.raises(ShapeError, match="real parts first"):
        attention.compute_attention_patterns(state.query[..., :-1], state.key, state.value)
    with pytest.raises(ShapeError, match="value states"):
        attention.compute_attention_patterns(state.query, state.key, state.value[..., :-1])
    with pytest.raises(ShapeError, match=r"places are \(batch, 2, length, 3\)"):
        attention.riemannian_metric(state.key)
    with pytest.raises(ShapeError, match="do not lie over"):
        attention.geometric_attention_flow(state.value[:, :, :-1], state.metric)
    with pytest.raises(CaptureError, match="True where a query may attend"):
        attention(x, mask=torch.ones(2, 6))
    with pytest.raises(ShapeError, match="as many imaginary ones"):
        aatc.attend(*(torch.randn(1, 1, 2, 3) for _ in range(3)), metric=FubiniStudy())
    for d, dv in ((3, 4), (4, 3)):
        shapes = ((1, 1, 2, d), (1, 1, 2, d), (1, 1, 2, dv))
        with pytest.raises(ShapeError, match="as many imaginary ones"):
            aatc.attend(*map(torch.randn, shapes), metric=aatc.metrics.DotProduct(), connection=Overlap())


def test_states_that_vanish_have_finite_gradients_in_half_precision():
    from aatc.nn.fubini_study import normalised

    x = torch.zeros(1, 4, dtype=torch.float16, requires_grad=True)
    normalised(x).sum().backward()
    assert x.grad.isfinite().all()
