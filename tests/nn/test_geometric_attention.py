"""`GeometricAttention` weighs by the distances of its space, and carries values as its connection says."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import aatc
from aatc import connections, geometry, masks, metrics
from aatc.errors import CaptureError, ScoreError, ShapeError
from aatc.nn import METRICS, GeometricAttention
from tests.nn.agreement import assert_compiled_alike

PAIRS = [
    *((name, None) for name in METRICS),
    ("euclidean", "rotary"),
    ("lorentz", "frames"),
    ("lorentz", "transport"),
    ("poincare", "rotary"),
    ("sphere", "transport"),
]
HEADS, WIDTH, HIDDEN = 2, 6, 12


def heads(n=5, m=7):
    return [torch.randn(2, HEADS, length, WIDTH, dtype=torch.float64) for length in (n, m, m)]


def made(metric, connection=None, **options):
    torch.manual_seed(1)
    attention = GeometricAttention(HIDDEN, HEADS, metric=metric, connection=connection, **options).double()
    with torch.no_grad():
        for parameter in attention.metric.parameters() if isinstance(attention.metric, torch.nn.Module) else ():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return attention


def lifted(x):
    return torch.cat(((1 + x.square().sum(-1, keepdim=True)).sqrt(), x), -1)


def _at_origin(c, x):
    """Features as tangent vectors at the origin."""
    return geometry.Stereographic(c).exp(torch.zeros_like(x), x)


DISTANCES = {
    "dot": lambda q, k: -(q * k).sum(-1),
    "euclidean": lambda q, k: geometry.Euclidean().dist(q, k).square(),
    "fisher-rao": lambda q, k: geometry.Simplex().dist(q.softmax(-1), k.softmax(-1)),
    "lorentz": lambda q, k: geometry.Hyperboloid().dist(lifted(q), lifted(k)),
    "poincare": lambda q, k: geometry.PoincareBall().dist(
        *(geometry.PoincareBall().from_hyperboloid(lifted(x)) for x in (q, k))
    ),
    "stereographic": lambda q, k: torch.stack(
        [
            geometry.Stereographic(c).dist(*(_at_origin(c, x[:, h]) for x in (q, k)))
            for h, c in enumerate(made("stereographic").metric.curvature.detach())
        ],
        1,
    ),
    "sphere": lambda q, k: geometry.Sphere().dist(*(x / x.norm(dim=-1, keepdim=True) for x in (q, k))),
}


@pytest.mark.parametrize("name", DISTANCES)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.1, 1.0, 3.0]))
def test_attention_metric_is_the_distance_of_the_manifold(name, n, m, spread):
    q, k, _ = (spread * x for x in heads(n, m))
    got = made(name).attention_metric(q, k)
    want = DISTANCES[name](*torch.broadcast_tensors(q[:, :, :, None], k[:, :, None]))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_mahalanobis_measures_by_its_learned_factor():
    attention, (q, k, _) = made("mahalanobis"), heads()
    matrix = attention.metric.factor @ attention.metric.factor.mT
    difference = q[:, :, :, None] - k[:, :, None]
    want = torch.einsum("bhijc,hcd,bhijd->bhij", difference, matrix, difference)
    torch.testing.assert_close(attention.attention_metric(q, k), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("metric", "connection"), PAIRS)
def test_attend_is_the_mean_of_carried_values_by_softmax_of_distances(metric, connection):
    attention, (q, k, v) = made(metric, connection, causal=True).eval(), heads(7)
    tokens = torch.randn(2, 7, HIDDEN, dtype=torch.float64)
    learned = attention.metric.scale()
    beta = WIDTH**-0.5 * torch.ones(HEADS, dtype=torch.float64) if learned is None else learned
    scores = -beta[:, None, None] * attention.attention_metric(q, k, tokens=tokens)
    weights = scores.masked_fill(~torch.ones(7, 7).tril().bool(), -torch.inf).softmax(-1)
    carried = attention.transport_values(q, k, v, tokens=tokens)
    want = torch.einsum("bhij,bhijd->bhid", weights, carried)
    torch.testing.assert_close(attention.attend(q, k, v, tokens=tokens), want, rtol=1e-9, atol=1e-9)


def test_rotary_distances_depend_on_relative_positions():
    attention, (q, k, _) = made("lorentz", "rotary"), heads(7)
    here, there = (attention.attention_metric(q, k, positions=torch.arange(7) + shift) for shift in (0, 5))
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)
    plain = made("lorentz").attention_metric(q, k)
    torch.testing.assert_close(here.diagonal(0, 2, 3), plain.diagonal(0, 2, 3), rtol=1e-9, atol=1e-9)
    assert (here - plain).abs().max() > 0.1


def test_frames_carry_by_rotations_that_compose():
    attention, (q, k, v) = made("sphere", "frames"), heads(7)
    tokens = torch.randn(2, 7, HIDDEN, dtype=torch.float64)
    carried = attention.transport_values(q, k, v, tokens=tokens)
    torch.testing.assert_close(carried.norm(dim=-1), v.norm(dim=-1)[:, :, None].expand(-1, -1, 7, -1))
    torch.testing.assert_close(carried.diagonal(0, 2, 3).transpose(-1, -2), v)
    there = attention.transport_values(q, k, carried[:, :, 2], tokens=tokens)
    # a value carried from j to 2 and read there as a value of token 2 goes on to i as it would directly
    torch.testing.assert_close(
        attention.transport_values(q, k, carried[:, :, 2, 4:5].expand(-1, -1, 7, -1), tokens=tokens)[:, :, 0, 2],
        carried[:, :, 0, 4],
    )
    assert (there[:, :, 0] - carried[:, :, 0]).abs().max() > 0.1
    with pytest.raises(ShapeError, match="made from tokens"):
        attention.attend(q, k, v)


@pytest.mark.parametrize(("n", "m"), [(5, 7), (7, 5), (1, 3), (4, 4)])
def test_frames_of_cross_attention_are_those_of_the_keys_tokens(n, m):
    attention, (q, k, v) = made("sphere", "frames").eval(), heads(n, m)
    tokens, key_tokens = (torch.randn(2, length, HIDDEN, dtype=torch.float64) for length in (n, m))

    def frames(x):
        generator = attention.frame(x).unflatten(-1, (WIDTH, WIDTH))
        return torch.linalg.matrix_exp(generator - generator.mT)[:, None]

    given = {"tokens": tokens, "key_tokens": key_tokens}
    carry = torch.einsum("bhica,bhjcd->bhijad", frames(tokens), frames(key_tokens)).expand(-1, HEADS, -1, -1, -1, -1)
    at_query = torch.einsum("bhijad,bhjd->bhija", carry, k)
    distance = DISTANCES["sphere"](q[:, :, :, None], at_query)
    carried = torch.einsum("bhijad,bhjd->bhija", carry, v)
    weights = (-attention.metric.scale()[:, None, None] * distance).softmax(-1)
    torch.testing.assert_close(attention.attention_metric(q, k, **given), distance)
    torch.testing.assert_close(attention.transport_values(q, k, v, **given), carried)
    torch.testing.assert_close(attention.attend(q, k, v, **given), torch.einsum("bhij,bhija->bhia", weights, carried))


def test_tokens_that_do_not_fit_their_queries_or_keys_are_refused():
    attention, (q, k, v) = made("sphere", "frames"), heads(5, 7)
    tokens = torch.randn(2, 5, HIDDEN, dtype=torch.float64)
    for ask in (lambda **given: attention.attention_metric(q, k, **given),
                lambda **given: attention.transport_values(q, k, v, **given),
                lambda **given: attention.attend(q, k, v, **given)):  # fmt: skip
        with pytest.raises(ShapeError, match=r"5 tokens give no frames to 7 keys\n.*key_tokens="):
            ask(tokens=tokens)
        with pytest.raises(ShapeError, match=r"key_tokens of shape \(2, 5, 12\) for keys of shape \(2, 2, 7, 6\)"):
            ask(tokens=tokens, key_tokens=tokens)
        with pytest.raises(ShapeError, match=r"tokens of shape \(1, 5, 12\) for queries of shape \(2, 2, 5, 6\)"):
            ask(tokens=tokens[:1], key_tokens=tokens)
        with pytest.raises(ShapeError, match=r"\(batch, length, 12\)"):
            ask(tokens=tokens[..., :8])
        with pytest.raises(ShapeError, match="made from tokens"):
            ask(key_tokens=tokens)


def test_transport_is_that_of_the_hyperboloid_read_at_the_origin():
    attention, (q, k, v) = made("lorentz", "transport"), heads()
    space = geometry.Hyperboloid()
    q, k = q[:, :, :, None], k[:, :, None]
    x, y = torch.broadcast_tensors(lifted(q), lifted(k))
    origin = torch.zeros_like(x)
    origin[..., 0] = 1
    leaving = torch.cat((torch.zeros_like(x[..., :1]), v[:, :, None].expand(-1, -1, 5, -1, -1)), -1)
    at_query = space.transport(y, x, space.transport(origin, y, leaving))
    want = space.transport(x, origin, at_query)
    got = attention.transport_values(q[:, :, :, 0], k[:, :, 0], v)
    torch.testing.assert_close(got, want[..., 1:], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.norm(dim=-1), v.norm(dim=-1)[:, :, None].expand(-1, -1, 5, -1))


def test_transport_on_the_sphere_is_tangent_at_the_query():
    attention, (q, k, v) = made("sphere", "transport"), heads()
    carried = attention.transport_values(q, k, v)
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    assert (carried * q[:, :, :, None]).sum(-1).abs().max() < 1e-12
    tangent = geometry.Sphere().tangent_projection(k, v)
    x, y, u = torch.broadcast_tensors(q[:, :, :, None], k[:, :, None], tangent[:, :, None])
    torch.testing.assert_close(carried, geometry.Sphere().transport(y, x, u), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_transport_on_a_circle_is_bounded_near_antipodes(dtype):
    torch.manual_seed(0)
    attention = GeometricAttention(8, 4, metric="sphere", connection="transport").to(dtype)
    x = torch.randn(2, 256, 8).to(dtype).requires_grad_()
    o = attention(x)
    o.double().square().sum().backward()
    assert all(t.isfinite().all() for t in (o, x.grad, *(p.grad for p in attention.parameters())))
    q, k, v = torch.randn(3, 2, 4, 64, 2).to(dtype)
    largest = 1.6 * v.norm(dim=-1).max()
    assert attention.attend(q, k, v).norm(dim=-1).max() <= largest
    assert attention.transport_values(q, k, v).norm(dim=-1).max() <= largest


@pytest.mark.parametrize("connection", [None, "rotary"])
def test_ball_and_hyperboloid_are_one_space(connection):
    x = torch.randn(2, 6, HIDDEN, dtype=torch.float64)
    torch.testing.assert_close(made("lorentz", connection)(x), made("poincare", connection)(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("metric", "connection"), PAIRS)
def test_it_compiles_without_fallback(metric, connection):
    attention = made(metric, connection, dropout=0.2, causal=True).float()
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 4:] = False
    assert_compiled_alike(attention, torch.randn(2, 6, HIDDEN), valid, attentions=1)


def test_metric_and_connection_objects_are_taken_as_they_are():
    x = torch.randn(2, 6, HIDDEN, dtype=torch.float64)
    attention = made(metrics.LorentzDistance(2.0, lift=True), connections.Rotary(), causal=True)
    q, k, v = attention.qkv(x).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
    want = aatc.attend(
        q, k, v, metric=metrics.LorentzDistance(2.0, lift=True), connection=connections.Rotary(), mask=masks.causal()
    )
    torch.testing.assert_close(attention(x), attention.out(want.transpose(1, 2).flatten(-2)))
    torch.testing.assert_close(attention.attend(q, k, v), want)


def test_causal_tokens_do_not_see_later_ones():
    attention = made("lorentz", "rotary", causal=True)
    x = torch.randn(1, 6, HIDDEN, dtype=torch.float64)
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(attention(x)[:, :4], attention(changed)[:, :4])
    assert (attention(x)[:, 4:] - attention(changed)[:, 4:]).abs().min() > 0


@pytest.mark.parametrize("metric", ["euclidean", "sphere"])
def test_padding_is_as_if_it_were_not_there(metric):
    attention = made(metric)
    x = torch.randn(2, 6, HIDDEN, dtype=torch.float64)
    valid = torch.arange(6) < torch.tensor([[6], [4]])
    got = attention(x, valid)
    torch.testing.assert_close(got[:1], attention(x[:1]))
    torch.testing.assert_close(got[1:, :4], attention(x[1:, :4]))
    pairs = valid[:, None, :].expand(-1, 6, -1)
    torch.testing.assert_close(attention(x, pairs), got)
    torch.testing.assert_close(attention(x, masks.key_padding(valid)), got)


def test_a_query_without_keys_gets_the_bias_alone():
    attention = made("lorentz")
    got = attention(torch.randn(1, 3, HIDDEN, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.bool))
    torch.testing.assert_close(got, attention.out.bias.expand(1, 3, -1))


def test_dropout_acts_while_training_only():
    attention = made("lorentz", dropout=0.5)
    x = torch.randn(1, 40, HIDDEN, dtype=torch.float64)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    calm = attention(x)
    assert torch.equal(calm, attention(x))
    attention.train()
    mean = torch.stack([attention(x) for _ in range(100)]).mean(0)
    assert (mean - calm).abs().max() < 0.25 * calm.abs().max()


def test_state_dict_holds_the_learned_metric_and_makes_the_same_module():
    source, other = made("mahalanobis"), GeometricAttention(HIDDEN, HEADS, metric="mahalanobis").double()
    assert "metric.factor" in source.state_dict() and "metric.log_beta" in made("sphere").state_dict()
    x = torch.randn(2, 5, HIDDEN, dtype=torch.float64)
    assert not torch.equal(source(x), other(x))
    other.load_state_dict(source.state_dict())
    assert torch.equal(source(x), other(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_token_of_zeros_has_no_direction_and_spoils_nothing(dtype):
    attention = made("sphere", None).to(dtype)
    with torch.no_grad():
        attention.qkv.bias.zero_()
    x = torch.randn(2, 5, HIDDEN).to(dtype)
    x[0, 1] = 0
    assert attention(x).isfinite().all()
    assert (attention.metric.project(x) == 0).all(-1).nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("connection", ["rotary", "frames"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_output_follows_the_dtype(dtype, connection):
    attention = made("lorentz", connection).to(dtype)
    x = torch.randn(2, 5, HIDDEN, dtype=torch.float64)
    got = attention(x.to(dtype))
    assert got.dtype == dtype
    want = copy.deepcopy(attention).double()(x)
    torch.testing.assert_close(
        got.double(), want, rtol=0, atol={torch.bfloat16: 0.05, torch.float16: 0.01}.get(dtype, 1e-5)
    )


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ShapeError, match="12 features cannot be shared by 5 heads"):
        GeometricAttention(12, 5)
    with pytest.raises(ScoreError, match="dot, euclidean, fisher-rao, lorentz, mahalanobis, poincare, sphere"):
        GeometricAttention(12, 2, metric="hyperbolic")
    with pytest.raises(ScoreError, match="metric is 3"):
        GeometricAttention(12, 2, metric=3)
    with pytest.raises(ScoreError, match="frames, rotary, transport"):
        GeometricAttention(12, 2, connection="levi-civita")
    with pytest.raises(ScoreError, match="transport goes with lorentz, sphere"):
        GeometricAttention(12, 2, metric="euclidean", connection="transport")
    with pytest.raises(ScoreError, match="changes distances of 'fisher-rao'"):
        GeometricAttention(12, 2, metric="fisher-rao", connection="rotary")
    with pytest.raises(ShapeError, match="even head width"):
        GeometricAttention(12, 4, connection="rotary")
    attention = GeometricAttention(12, 2)
    with pytest.raises(ShapeError, match=r"\(batch, length, 12\)"):
        attention(torch.randn(2, 5, 11))
    with pytest.raises(CaptureError, match="True where a query may attend"):
        attention(torch.randn(2, 5, 12), torch.ones(2, 5))
    with pytest.raises(CaptureError, match=r"\(B, N\) for tokens"):
        attention(torch.randn(2, 5, 12), torch.ones(5, dtype=torch.bool))
