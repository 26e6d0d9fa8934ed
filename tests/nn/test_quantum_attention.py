"""`QuantumGeometricAttention`: Born probabilities of states, under a metric that makes the output, and a flow."""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import aatc
from aatc import masks
from aatc.errors import CaptureError, ShapeError
from aatc.nn import FubiniStudy, QuantumGeometricAttention
from tests.nn.agreement import assert_compiled_alike

HIDDEN, HEADS, RANK, DIM = 12, 2, 2, 3


def made(num_layers=2, dropout=0.0, tile_size=4, seed=1, **options):
    torch.manual_seed(seed)
    return QuantumGeometricAttention(HIDDEN, HEADS, dropout, RANK, DIM, num_layers, tile_size, **options).double()


def tokens(b=2, n=6):
    return torch.randn(b, n, HIDDEN, dtype=torch.float64)


def complex_states(states):
    return torch.complex(states[..., :DIM], states[..., DIM:])


def fidelities(attention, query, key):
    """|⟨q|g|k⟩|²/(⟨q|g|q⟩⟨k|g|k⟩), (B, H, N, M), pair by pair from the matrices g."""
    g = attention.riemannian_metric()
    q, k = complex_states(query), complex_states(key)

    def form(x, y):
        return torch.einsum("bhic,hcd,bhjd->bhij", x.conj(), g, y)

    own = [torch.einsum("bhic,hcd,bhid->bhi", x.conj(), g, x).real for x in (q, k)]
    return form(q, k).abs().square() / (own[0][..., :, None] * own[1][..., None, :])


def squared_distances(attention, query, key):
    return torch.acos(fidelities(attention, query, key).clamp(max=1).sqrt()).square()


def weights_of(attention, query, key, scale=1.0, keep=None):
    beta = scale * attention.log_beta.exp()[:, None, None]
    scores = -beta * squared_distances(attention, query, key)
    return (scores if keep is None else scores.masked_fill(~keep, -torch.inf)).softmax(-1)


def state_and_weights(attention, x):
    state = attention.prepare_attention_state(x)
    return state, weights_of(attention, state.query, state.key)


@given(st.integers(1, 3), st.integers(1, 7), st.sampled_from([0.1, 1.0, 4.0]), st.integers(0, 99))
def test_weights_are_born_probabilities_of_the_amplitudes(b, n, scale, seed):
    attention = made(seed=seed)
    state = attention.prepare_attention_state(tokens(b, n))
    psi = attention.attention_amplitudes(state.query, state.key, scale)
    want = weights_of(attention, state.query, state.key, scale)
    torch.testing.assert_close(psi.abs().square(), want, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(psi.abs().square().sum(-1), torch.ones(b, HEADS, n, dtype=torch.float64))
    patterns, _ = attention.compute_attention_patterns(state.query, state.key, state.value, scale)
    torch.testing.assert_close(patterns, psi.abs().square() @ state.value, rtol=1e-7, atol=1e-9)


def test_states_are_normalised_and_amplitudes_carry_the_phase_of_the_overlap():
    attention = made()
    state = attention.prepare_attention_state(tokens())
    for states in (state.query, state.key):
        torch.testing.assert_close(states.norm(dim=-1), torch.ones(2, HEADS, 6, dtype=torch.float64))
    q, k, g = complex_states(state.query), complex_states(state.key), attention.riemannian_metric()
    overlap = torch.einsum("bhjc,hcd,bhid->bhij", k.conj(), g, q)
    psi = attention.attention_amplitudes(state.query, state.key)
    torch.testing.assert_close(psi / psi.abs(), overlap / overlap.abs())


@settings(max_examples=10)
@given(st.floats(-3, 3), st.integers(0, 99))
def test_global_phases_of_states_change_no_weight(angle, seed):
    attention = made(seed=seed)
    state = attention.prepare_attention_state(tokens())
    turned = torch.polar(torch.ones((), dtype=torch.float64), torch.tensor(angle, dtype=torch.float64))
    rotated = complex_states(state.key) * turned
    key = torch.cat((rotated.real, rotated.imag), -1)
    one, other = (attention.compute_attention_patterns(state.query, k, state.value)[0] for k in (state.key, key))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_metric_is_one_plus_a_matrix_of_its_rank():
    g = made().riemannian_metric()
    torch.testing.assert_close(g, g.mH)
    values = torch.linalg.eigvalsh(g)
    torch.testing.assert_close(values[:, : DIM - RANK], torch.ones(HEADS, DIM - RANK, dtype=torch.float64))
    assert (values[:, DIM - RANK :] > 1.01).all()


def test_a_changed_metric_changes_weights_flow_and_output():
    attention, x = made(), tokens()
    state = attention.prepare_attention_state(x)
    changed = copy.deepcopy(attention)
    with torch.no_grad():
        changed.factor.mul_(3)
    assert (attention(x) - changed(x)).abs().max() > 1e-3
    psi = [m.attention_amplitudes(state.query, state.key).abs() for m in (attention, changed)]
    assert (psi[0] - psi[1]).abs().max() > 1e-3
    patterns = torch.randn_like(state.value)
    metric = dataclasses.replace(state.metric, factor=changed.factor)
    flowed = [attention.geometric_attention_flow(patterns, m)[0] for m in (state.metric, metric)]
    assert (flowed[0] - flowed[1]).abs().max() > 1e-3


def test_gradients_are_right_and_reach_every_parameter():
    attention, x = made(num_layers=1), tokens(1, 3).requires_grad_()
    names = ("factor", "log_beta", "flow_logit")

    def output(x, *parameters):
        return torch.func.functional_call(attention, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *(getattr(attention, n) for n in names)), atol=1e-5, rtol=1e-4)
    attention(x).square().sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad.abs().max() > 1e-9, name
    assert (attention.factor.grad.abs().amax((1, 2)) > 1e-6).all()


@pytest.mark.parametrize("tile_size", [1, 4, 100])
def test_metrics_of_attention_are_those_of_the_density_matrices(tile_size):
    attention = made(tile_size=tile_size)
    state, p = state_and_weights(attention, tokens())
    _, got = attention.compute_attention_patterns(state.query, state.key, state.value)
    # states in an orthonormal basis of g: multiplied by its root, and normalised
    values, vectors = torch.linalg.eigh(attention.riemannian_metric())
    root = vectors @ torch.diag_embed(values.sqrt()).to(vectors) @ vectors.mH
    q, k = (torch.einsum("hcd,bhjd->bhjc", root, complex_states(s)) for s in (state.query, state.key))
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    rho = torch.einsum("bhij,bhjc,bhjd->bhicd", p.to(k), k, k.conj())
    outside = torch.eye(DIM) - torch.einsum("bhic,bhid->bhicd", q, q.conj())
    tensor = outside @ rho @ outside
    want = {
        "entropy": torch.distributions.Categorical(p).entropy(),
        "participation_ratio": 1 / p.square().sum(-1),
        "purity": (rho @ rho).diagonal(dim1=-2, dim2=-1).sum(-1).real,
        "geometric_tensor_trace": tensor.diagonal(dim1=-2, dim2=-1).sum(-1).real,
    }
    for name, value in want.items():
        torch.testing.assert_close(getattr(got, name), value.mean((0, 2)), rtol=1e-7, atol=1e-9, msg=name)
    assert (got.norm_deviation < 1e-12).all()


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
    u = torch.randn_like(state.value)
    got, metrics = attention.geometric_attention_flow(u, state.metric)

    kernel = torch.exp(-attention.log_beta.exp()[:, None, None] * squared_distances(attention, state.key, state.key))
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
    values = torch.linalg.eigvalsh(attention.riemannian_metric())
    assert numbers["metric_condition"] == pytest.approx((values[:, -1] / values[:, 0]).max().item(), rel=1e-9)
    assert 0 < numbers["flow_energy_after"] < numbers["flow_energy_before"]
    assert numbers["norm_deviation"] < 1e-12
    with torch.no_grad():
        attention.factor.mul_(2)
        attention.log_beta.add_(1)
    changed = attention(x, return_metrics=True)[1]
    assert all(changed[name] != numbers[name] for name in numbers if name != "norm_deviation")


def test_zero_states_are_reported_and_spoil_nothing():
    attention = made()
    with torch.no_grad():
        for parameter in attention.query.parameters():
            parameter.zero_()
    y, numbers = attention(tokens(), return_metrics=True)
    assert y.isfinite().all()
    assert numbers["norm_deviation"] == 1


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


@pytest.mark.slow
def test_a_compiled_module_measures_what_an_eager_one_does():
    attention, x = made(num_layers=1).float().eval(), torch.randn(2, 6, HIDDEN)
    y, numbers = aatc.compile(copy.deepcopy(attention))(x, True)
    z, want = attention(x, True)
    torch.testing.assert_close(y, z, rtol=2e-5, atol=2e-5)
    assert numbers == pytest.approx(want, rel=1e-3, abs=1e-5)


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
    one_hot = torch.eye(30, dtype=torch.float64).expand(2, HEADS, 30, 30)
    p = attention.attention_amplitudes(state.query, state.key).abs().square()
    thinned, _ = attention.compute_attention_patterns(state.query, state.key, one_hot)
    gone = thinned == 0
    assert abs(gone.double().mean().item() - 0.5) < 0.03
    torch.testing.assert_close(thinned[~gone], 2 * p[~gone], rtol=1e-7, atol=1e-9)
    attention.eval()
    torch.testing.assert_close(attention.compute_attention_patterns(state.query, state.key, one_hot)[0], p)
    assert torch.equal(attention(x), attention(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_tokens_are_counted_in_half_precision(dtype):
    attention, x = made(num_layers=0, tile_size=64).to(dtype), tokens(4, 300)
    _, got = attention(x.to(dtype), True)
    _, exact = copy.deepcopy(attention).double()(x.to(dtype).double(), True)
    for name in ("entropy", "participation_ratio", "purity", "geometric_tensor_trace"):
        assert got[name] == pytest.approx(exact[name], rel=2e-2), name
    state = attention.prepare_attention_state(x.to(dtype))
    measured = attention.compute_attention_patterns(state.query, state.key, state.value)[1]
    assert measured.entropy.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tokens_of_zeros_have_no_state_and_finite_gradients(dtype):
    attention = made().to(dtype)
    with torch.no_grad():
        for projection in (attention.query, attention.key):
            projection.bias.zero_()
    x = tokens().to(dtype)
    x[0, 2] = 0
    x.requires_grad_()
    y = attention(x)
    y.float().sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    assert (attention.prepare_attention_state(x).key[0, :, 2] == 0).all()


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
    assert all(math.isnan(numbers[name]) for name in ("entropy", "flow_entropy_after", "norm_deviation"))


@pytest.mark.parametrize("shape", [(2, 0), (0, 3)])
def test_of_no_tokens_nothing_is_measured(shape):
    attention, x = made(), tokens(*shape)
    assert attention(x).shape == x.shape
    with pytest.raises(ShapeError, match="nothing to measure"):
        attention(x, True)
    state = attention.prepare_attention_state(x)
    with pytest.raises(ShapeError, match="nothing to measure"):
        attention.geometric_attention_flow(state.value, state.metric)


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
    assert {"factor", "log_beta", "flow_logit"} <= set(source.state_dict())


def test_an_export_computes_what_the_module_computes():
    attention, x = made(num_layers=1).float().eval(), torch.randn(2, 5, HIDDEN)
    module = aatc.export(attention, (x,))
    state = {n.replace(".", "_"): t for n, t in attention.named_parameters()}
    values = [state[a.name] for a in module.entry.args[:-1]]
    torch.testing.assert_close(aatc.run(module, *values, x), attention(x), rtol=2e-5, atol=2e-5)
    assert sum(op.name == "geo.metric" for op in module.walk()) == 2


def test_metrics_make_no_tensor_over_all_pairs():
    attention, largest = made(num_layers=0, tile_size=8), 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dim() == 4 and "attend" not in str(function):
                largest = max(largest, out.shape[-1] * out.shape[-2])
            return out

    state = attention.prepare_attention_state(tokens(1, 400))
    with Watch():
        attention.compute_attention_patterns(state.query, state.key, state.value)
    assert 0 < largest <= 400 * (DIM + RANK) ** 2  # the keys' projectors


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
    with pytest.raises(ShapeError, match="do not lie over"):
        attention.geometric_attention_flow(state.value[:, :, :-1], state.metric)
    with pytest.raises(CaptureError, match="True where a query may attend"):
        attention(x, mask=torch.ones(2, 6))
    with pytest.raises(ShapeError, match="as many imaginary ones"):
        aatc.attend(*(torch.randn(1, 1, 2, 3) for _ in range(3)), metric=FubiniStudy())


def test_states_that_vanish_have_finite_gradients_in_half_precision():
    from aatc.nn.fubini_study import normalised

    x = torch.zeros(1, 4, dtype=torch.float16, requires_grad=True)
    normalised(x).sum().backward()
    assert x.grad.isfinite().all()
