"""Numbers that small faults in the compiler changed and no other test saw: found by planting such faults."""

import pytest
import torch

import aatc
from aatc import connections, masks, metrics
from aatc.errors import PassError
from aatc.ir.score.expr import call, param
from aatc.passes.certificate import verify
from aatc.passes.numerics import _compare_gradients

BACKENDS = ["cpu", "native"]


def draw(*sizes, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=g, dtype=dtype) for s in sizes]


@aatc.metric
def of_a_distance(q, k):
    t = torch.sqrt(1 + q @ q) * torch.sqrt(1 + k @ k) - q @ k
    d = torch.acosh(t)
    return d - d * d


@pytest.mark.parametrize("backend", ["eager", *BACKENDS])
def test_a_distance_that_is_read_twice_sends_all_that_it_gets(backend):
    x = [0.5 * t for t in draw(*[(1, 1, 6, 4)] * 3, dtype=torch.float64)]
    probe = torch.linspace(-1, 1, 24, dtype=torch.float64).view(1, 1, 6, 4)

    def attend(q, k, v):
        return aatc.attend(q, k, v, metric=of_a_distance)

    def formula(q, k, v):
        t = (1 + q.square().sum(-1)).sqrt().unsqueeze(3) * (1 + k.square().sum(-1)).sqrt().unsqueeze(2) - q @ k.mT
        d = torch.acosh(t)
        return (d - d * d).softmax(-1) @ v

    def pulled(f):
        leaves = [t.clone().requires_grad_() for t in x]
        return torch.autograd.grad(f(*leaves), leaves, probe)

    run = attend if backend == "eager" else aatc.compile(attend, backend=backend, fallback=False)
    torch.testing.assert_close(pulled(run), pulled(formula), rtol=1e-9, atol=1e-9)


@aatc.metric(w="jd")
def weighted(q, k, w):
    return q @ (k * w)


@pytest.mark.parametrize("backend", ["eager", *BACKENDS])
def test_one_channel_that_is_no_number_spoils_the_rows_that_see_it(backend):
    q, k, v, w = draw((1, 1, 6, 4), (1, 1, 6, 4), (1, 1, 6, 4), (6, 4))
    w[3, 0], w[5] = float("nan"), float("nan")

    def attend(q, k, v, w):
        return aatc.attend(q, k, v, metric=weighted(w=w), mask=masks.causal())

    o = (attend if backend == "eager" else aatc.compile(attend, backend=backend))(q, k, v, w)
    assert o[0, 0, :3].isfinite().all() and o[0, 0, 3:].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("rule", "wraps"),
    [
        (lambda i, j: (j * 2**61 >= 0) | (j == i), True),
        (lambda i, j: (i * 16777216.0 + j) % 2.0 == 0, False),  # needs more than 24 bits
    ],
    ids=["wraps", "wide"],
)
def test_masks_are_computed_in_64_bits(rule, wraps, backend):
    q, k, v = draw(*[(1, 1, 64, 8)] * 3)
    i = torch.arange(64)
    keep = rule(i.unsqueeze(1), i) if wraps else rule(i.unsqueeze(1).double(), i.double())
    assert 64 < keep.sum() < 64 * 64
    want = ((q @ k.mT) / 8**0.5).double().masked_fill(~keep, float("-inf")).softmax(-1) @ v.double()

    def attend(q, k, v):
        mask = masks.predicate(lambda b, h, i, j: rule(i, j))
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), mask=mask)

    torch.testing.assert_close(aatc.compile(attend, backend=backend)(q, k, v).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_clusters_keep_their_digits(backend):
    """They need double precision by a factor of two or so."""
    g = torch.Generator().manual_seed(0)
    c = 3.5 * torch.randn(8, 16, generator=g)
    q, k = (
        c[torch.randint(8, (64,), generator=g)][None, None] + 0.3 * torch.randn(1, 1, 64, 16, generator=g)
        for _ in range(2)
    )
    v = torch.randn(1, 1, 64, 16, generator=g)
    run = aatc.compile(
        lambda q, k, v: aatc.attend(q, k, v, metric=metrics.Euclidean(), scale=1.0), backend=backend, fallback=False
    )
    difference = (q.unsqueeze(3) - k.unsqueeze(2)).double()
    want = (-difference.square().sum(-1)).softmax(-1) @ v.double()
    assert (run(q, k, v) - want).abs().max() / want.abs().max() <= 5e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_steep_functions_of_distances_keep_their_digits(backend):
    """Points from near to apart: somewhere between, single precision is just not enough."""
    metric = metrics.LorentzDistance(beta=300.0, lift=True)
    run = aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=metric), backend=backend)
    v = torch.randn(1, 1, 64, 16, generator=torch.Generator().manual_seed(9))
    for size in (0.1, 0.15, 0.2, 0.25, 0.3, 0.4):
        torch.manual_seed(0)
        q, k = (size * torch.randn(1, 1, 64, 16) for _ in range(2))
        want = aatc.attend(q.double(), k.double(), v.double(), metric=metric)
        assert (run(q, k, v) - want).abs().max() / want.abs().max() <= 1e-5


@aatc.metric
def far_below(q, k):
    return -((q @ k) ** 2)


@pytest.mark.parametrize("size", [50.0, 84.0])
def test_gradients_of_rows_far_below_are_finite(size):
    q, k = torch.zeros(1, 1, 8, 4), torch.ones(1, 1, 8, 4)
    q[..., 0] = size**0.5
    x = [t.requires_grad_() for t in (q, k, *draw((1, 1, 8, 4)))]
    o = aatc.compile(lambda q, k, v: aatc.attend(q, k, v, metric=far_below), backend="native")(*x)
    assert all(g.isfinite().all() for g in torch.autograd.grad(o, x, torch.full_like(o, 1e3)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_transport_that_is_infinite_at_a_closed_pair_spoils_no_gradient(backend):
    q, v = draw((1, 1, 8, 4), (1, 1, 8, 4))
    q = torch.nn.functional.normalize(q, dim=-1)
    k = q.clone()
    q[..., 0, :], k[..., 3, :] = torch.tensor([1.0, 0, 0, 0]), torch.tensor([-1.0, 0, 0, 0])
    keep = torch.ones(8, 8, dtype=torch.bool)
    keep[0, 3] = False

    def attend(q, k, v, keep):
        connection = connections.HyperboloidTransport()
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), connection=connection, mask=keep)

    x = [t.requires_grad_() for t in (q, k, v)]
    o = aatc.compile(attend, backend=backend, fallback=False)(*x, keep)
    assert all(g.isfinite().all() for g in torch.autograd.grad(o.sum(), x))


@aatc.metric(t="i")
def per_query(q, k, t):
    return torch.exp(t) * (q @ k) + t


@pytest.mark.parametrize("backend", ["eager", *BACKENDS])
def test_a_number_per_query_of_minus_infinity_closes_its_row(backend):
    q, k, v = draw(*[(1, 1, 4, 8)] * 3)
    t = torch.tensor([0.0, float("-inf"), 0.0, 0.0])

    def attend(q, k, v, t):
        return aatc.attend(q, k, v, metric=per_query(t=t))

    o = (attend if backend == "eager" else aatc.compile(attend, backend=backend))(q, k, v, t)
    assert (o[0, 0, 1] == 0).all() and (o[0, 0, 0] != 0).all()


def test_one_score_of_two_normalizers_keeps_what_one_of_them_sees():
    q, k, v = draw(*[(1, 1, 16, 8)] * 3)

    def both(q, k, v):
        first = aatc.attend(q, k, v, metric=metrics.Euclidean())
        return first, aatc.attend(q, k, v, metric=metrics.Euclidean(), normalizer="sigmoid")

    torch.testing.assert_close(aatc.compile(both, fallback=False)(q, k, v), both(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_beyond_the_keys_without_an_open_one_have_no_mass(backend):
    q, k, v = draw((1, 1, 8, 16), (1, 1, 4, 16), (1, 1, 4, 16))

    def attend(q, k, v, bias):
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), mask=masks.causal(), bias=bias, return_lse=True)

    o, lse = aatc.compile(attend, backend=backend)(q, k, v, torch.full((4,), float("-inf")))
    assert (o == 0).all() and torch.isneginf(lse).all()


def test_a_right_rewrite_with_a_pole_is_certified_and_a_wrong_one_is_not():
    x, y = param("x", "bhij"), param("y", "bhij")
    assert verify(("equal", call("div", call("mul", x, y), y), x)) < 1e-9
    assert verify(("equal", call("div", call("mul", x, y), y), y)) > 1e-3


def test_gradients_of_double_precision_that_a_pass_moves_are_noticed():
    w = torch.ones(4, dtype=torch.float64)
    _compare_gradients("p", [w * (1 + 5e-8)], [w], [0.0])
    with pytest.raises(PassError, match="changed the gradients"):
        _compare_gradients("p", [w * (1 + 5e-7)], [w], [0.0])
