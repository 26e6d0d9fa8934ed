"""Rotary, frames and the two transports against formulas written by hand."""

import pytest
import torch
import torch.nn.functional as F

import aatc
from aatc import connections, geometry, masks, metrics
from tests.api.oracle import agree, attention, inputs, minkowski, on_hyperboloid, pairs
from tests.compiler.harness import build


def angles(positions, d, base=10000.0):
    """(..., A) positions to (..., d/2) angles; axis a owns the a-th share of the pairs."""
    share = d // 2 // positions.shape[-1]
    freqs = torch.tensor([base ** (-c / share) for c in range(share)], dtype=torch.float64)
    return torch.cat([p.unsqueeze(-1) * freqs for p in positions.double().unbind(-1)], -1)


def turn(x, t, style):
    z = torch.stack(x.chunk(2, -1), -1) if style == "half" else x.unflatten(-1, (-1, 2))
    a, b = z.unbind(-1)
    turned = torch.stack([a * t.cos() - b * t.sin(), a * t.sin() + b * t.cos()], -1)
    return torch.cat(turned.unbind(-1), -1) if style == "half" else turned.flatten(-2)


@pytest.mark.parametrize("style", ["half", "pairs"])
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("batched", [False, True])
def test_rotary_turns_queries_and_keys_by_their_positions(style, axes, batched):
    q, k, v = inputs(n=5, m=7, d=8, hk=2)
    shape = (2,) if batched else ()
    at_q = torch.randn(*shape, 5, axes, dtype=torch.float64).requires_grad_()
    at_k = torch.randn(*shape, 7, axes, dtype=torch.float64).requires_grad_()
    rotary = connections.Rotary(at_q, at_k, base=100.0, style=style)
    got = aatc.attend(q, k, v, metric=metrics.DotProduct(), connection=rotary, return_lse=True)
    tq, tk = (angles(p, 8, 100.0) for p in (at_q, at_k))
    tq, tk = (t.unsqueeze(1) if batched else t for t in (tq, tk))
    x, y = pairs(turn(q, tq, style), turn(k, tk, style))
    agree(got, attention(q, k, v, (x * y).sum(-1) / 8**0.5), [q, k, v, at_q, at_k])


def test_rotary_counts_tokens_when_no_positions_are_given():
    q, k, v = inputs(d=8)
    counted = connections.Rotary(torch.arange(5), torch.arange(7))
    a, b = (aatc.attend(q, k, v, metric=metrics.Euclidean(), connection=c) for c in (counted, connections.Rotary()))
    assert torch.equal(a, b)


def test_rotary_with_values_turns_the_value_into_the_querys_frame():
    q, k, v = inputs(n=6, m=6, d=8, dv=8)
    rotary = connections.Rotary(torch.arange(6) * 3.0, values=True)
    got = aatc.attend(q, k, v, metric=metrics.Poincare(), connection=rotary)
    t = angles(torch.arange(6)[:, None] * 3.0, 8)
    x, y = pairs(turn(q, t, "half"), turn(k, t, "half"))
    ratio = (x - y).square().sum(-1) / ((1 - x.square().sum(-1)) * (1 - y.square().sum(-1)))
    o, _ = attention(q, k, turn(v, t, "half"), -torch.acosh((1 + 2 * ratio).clamp(min=1)))
    torch.testing.assert_close(got, turn(o, -t, "half"))


@pytest.mark.parametrize("lead", ["", "b", "bh"])
@pytest.mark.parametrize("values", [False, True])
def test_frames_carry_keys_and_values(lead, values):
    q, k, v = inputs(n=5, m=7, hk=2)
    shape = {"": (), "b": (2,), "bh": (2, 4)}[lead]
    fq, fk = (torch.linalg.qr(torch.randn(*shape, n, 6, 6, dtype=torch.float64))[0].requires_grad_() for n in (5, 7))
    frames = connections.Frames(fq, fk, values=values)
    got = aatc.attend(q, k, v, metric=metrics.LorentzDistance(lift=True), connection=frames, return_lse=True)
    f, g = (t.expand(2, 4, *t.shape[-3:]) if lead != "b" else t[:, None].expand(2, 4, *t.shape[-3:]) for t in (fq, fk))
    carry = torch.einsum("bhide,bhjdf->bhijef", f, g)
    x, y = pairs(q, k)
    y = torch.einsum("bhijef,bhjf->bhije", carry, y.squeeze(2))
    w = pairs(q, v)[1].squeeze(2)
    w = torch.einsum("bhijef,bhjf->bhije", carry, w) if values else w.unsqueeze(2).expand(-1, -1, 5, -1, -1)
    score = -torch.acosh(-minkowski(on_hyperboloid(x), on_hyperboloid(y)))
    agree(got, attention(q, k, v, score, carried=w), [q, k, v, fq, fk], 1e-10)


def test_sphere_transport_is_levi_civita():
    q, k, v = inputs()
    q, k = (torch.nn.functional.normalize(t.detach(), dim=-1).requires_grad_() for t in (q, k))
    got = aatc.attend(q, k, v, metric=metrics.SphereGeodesic(), connection=connections.SphereTransport())
    x, y = pairs(q, k)
    w = pairs(q, v)[1]
    moved = w - (x * w).sum(-1, keepdim=True) / (1 + (x * y).sum(-1, keepdim=True)) * (x + y)
    score = -torch.acos(torch.cosine_similarity(x, y, dim=-1))
    agree(got, attention(q, k, v, score, carried=moved)[0], [q, k, v])


def near_antipodes(angles, width=6):
    """Unit q and, at each angle from its antipode, unit k and tangent v at k, (B, H, N, width) with N angles."""
    q = F.normalize(torch.randn(2, 3, len(angles), width, dtype=torch.float64), dim=-1)
    side = torch.randn_like(q)
    side = F.normalize(side - (side * q).sum(-1, keepdim=True) * q, dim=-1)
    k = -(angles.cos()[:, None] * q + angles.sin()[:, None] * side)
    v = torch.randn_like(q)
    return q, k, v - (v * k).sum(-1, keepdim=True) * k


def transported(q, k, v):
    """Values of the keys as they arrive at the query of the same place."""
    alone = [x.flatten(0, 2)[:, None, None] for x in (q, k, v)]
    o = aatc.attend(*alone, metric=metrics.DotProduct(), connection=connections.SphereTransport())
    return o.reshape(v.shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [2, 3, 16])
def test_sphere_transport_is_bounded_up_to_the_antipode(dtype, width):
    angles = torch.cat((torch.zeros(1), torch.logspace(-10, 0.5, 64, dtype=torch.float64)))
    q, k, v = (x.to(dtype) for x in near_antipodes(angles, width))
    got = transported(q, k, v).double()
    size = v.double().norm(dim=-1).amax((0, 1))
    assert (got.norm(dim=-1).amax((0, 1)) <= 1.6 * size).all()
    assert (got - v.double())[:, :, 0].abs().max() <= 8 * torch.finfo(dtype).eps * size[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sphere_transport_keeps_its_digits_away_from_the_antipode(dtype):
    # 1 + <q, k> = angle²/2 has lost a share eps/angle² of its digits: that much, and no floor, is what may show.
    angles = torch.linspace(0.02, 3.0, 40, dtype=torch.float64)
    q, k, v = near_antipodes(angles)
    got = transported(*(x.to(dtype) for x in (q, k, v))).double()
    want = geometry.Sphere().transport(k, q, v)
    error = (got - want).norm(dim=-1) / v.norm(dim=-1)
    assert (error <= 8 * torch.finfo(dtype).eps * (1 + 1 / angles.square())).all()


@pytest.mark.parametrize("backend", [None, "cpu", "native"])
def test_sphere_transport_in_float64_counts_squares_below_its_floor_as_the_floor(backend):
    """1 + <q, k> is no less than 2^-26, so that half of the digits are right however near the antipode is."""
    angles = torch.logspace(-9, -2, 36, dtype=torch.float64)
    q, k, v = near_antipodes(angles)
    if backend is None:
        got = transported(q, k, v)
    else:
        alone = [x.flatten(0, 2)[:, None, None] for x in (q, k, v)]
        parts = {"metric": metrics.DotProduct(), "connection": connections.SphereTransport()}
        got = build(*alone, backend=backend, **parts).run()[0].reshape(v.shape)
    a = angles[:, None]
    less = 2 * (a / 2).sin().square()  # 1 - cos(a), with all its digits
    side = -(k + a.cos() * q)  # sin(a) times the direction
    along = (q * v).sum(-1, keepdim=True)
    want = v - along / less.clamp(min=2.0**-26) * (less * q - side)
    assert ((got - want).norm(dim=-1) <= 2.0**-25 * v.norm(dim=-1)).all()
    # and far below the floor what arrives is what was sent
    assert ((got - v)[:, :, 0].norm(dim=-1) <= 1e-9 * v[:, :, 0].norm(dim=-1)).all()


def with_an_antipode(dtype, width=4):
    """Random unit q and k and tangent v, (2, 3, 33, width), with k_0 = -q_3 along the first axis."""
    angles = torch.linspace(0.2, 3.0, 33, dtype=torch.float64)
    q, k, v = near_antipodes(angles, width)
    q[:, :, 3] = torch.eye(width, dtype=torch.float64)[0]
    k[:, :, 0] = -q[:, :, 3]
    v = v - (v * k).sum(-1, keepdim=True) * k
    return [x.to(dtype).requires_grad_() for x in (q, k, v)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("admitted", [True, False])
def test_an_antipodal_key_spoils_no_row(dtype, admitted):
    q, k, v = with_an_antipode(dtype)
    keep = torch.ones(33, 33, dtype=torch.bool)
    keep[3, 0] = admitted
    parts = {"connection": connections.SphereTransport(), "mask": masks.dense(keep)}
    got = aatc.attend(q, k, v, metric=metrics.DotProduct(), **parts)
    assert all(g.isfinite().all() for g in torch.autograd.grad(got.double().square().sum(), (q, k, v)))
    x, y = (t.detach().double() for t in pairs(q, k))
    w, along = v.detach().double()[:, :, None], (x * y).sum(-1, keepdim=True)
    eps = torch.finfo(dtype).eps
    moved = w - (x * w).sum(-1, keepdim=True) / (1 + along).clamp(min=4 * eps) * (x + y)
    torch.testing.assert_close(moved[:, :, 3, 0], w[:, :, 0, 0])
    want, _ = attention(q.double(), k.double(), v, along[..., 0] / 2, mask=keep, carried=moved)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, eps)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_compiled_sphere_transport_is_the_eager_one_at_antipodes(dtype):
    operands = with_an_antipode(dtype)
    parts = {"connection": connections.SphereTransport(), "mask": masks.sliding_window(9)}
    built = build(*operands, tiles="heads=2 rows=8 cols=8 grain=4", metric=metrics.SphereGeodesic(), **parts)
    eager = aatc.attend(*operands, metric=metrics.SphereGeodesic(), **parts)
    compiled, _ = built.program.main(*operands, *built.operands[3:])
    grads = [torch.autograd.grad(o.double().square().sum(), operands) for o in (compiled, eager)]
    for got, want in zip((compiled, *grads[0]), (eager, *grads[1]), strict=True):
        assert want.isfinite().all()
        atol = 256 * torch.finfo(dtype).eps * want.abs().max().item()
        torch.testing.assert_close(got, want, rtol=0, atol=atol)


def test_hyperboloid_transport_keeps_tangents_and_lengths():
    q, k, v = inputs(d=5, dv=6)
    q, k = (on_hyperboloid(t.detach()).requires_grad_() for t in (q, k))
    v = (v + minkowski(k, v).unsqueeze(-1) * k).detach().requires_grad_()  # tangent at k
    x, y = pairs(q, k)
    w = pairs(q, v)[1]
    moved = w + (minkowski(x, w) / (1 - minkowski(x, y))).unsqueeze(-1) * (x + y)
    assert minkowski(x, moved).abs().max() < 1e-10
    torch.testing.assert_close(minkowski(moved, moved), minkowski(w, w).expand(-1, -1, 5, -1))
    transport = connections.HyperboloidTransport()
    got = aatc.attend(q, k, v, metric=metrics.LorentzDistance(0.5), connection=transport, return_lse=True)
    agree(got, attention(q, k, v, -0.5 * torch.acosh(-minkowski(x, y)), carried=moved), [q, k, v], 1e-10)


def test_what_does_not_fit_is_said():
    attend = aatc.attend
    q, k, v = inputs(d=6, dv=4)
    for c in (
        connections.SphereTransport(),
        connections.HyperboloidTransport(),
        connections.Rotary(values=True),
    ):
        with pytest.raises(aatc.errors.ShapeError, match="v has 4 features, q 6"):
            attend(q, k, v, metric=metrics.DotProduct(), connection=c)
    with pytest.raises(aatc.errors.ShapeError, match=r"2 axes.*\n.*multiple of 4"):
        attend(
            q,
            k,
            v,
            metric=metrics.DotProduct(),
            connection=connections.Rotary(torch.zeros(5, 2), torch.zeros(7, 2)),
        )
    with pytest.raises(aatc.errors.CaptureError, match=r"theta_k.*5 along j.*7 keys"):
        attend(q, k, v, metric=metrics.DotProduct(), connection=connections.Rotary(torch.zeros(5)))
    with pytest.raises(aatc.errors.CaptureError, match=r"\(5, 4, 4\).*D = 6"):
        attend(
            q,
            k,
            v,
            metric=metrics.DotProduct(),
            connection=connections.Frames(torch.zeros(5, 4, 4), values=False),
        )
    with pytest.raises(aatc.errors.ScoreError, match="style"):
        connections.Rotary(style="quarter")
    q, k, v = inputs(d=5)
    with pytest.raises(aatc.errors.ShapeError, match="odd number: 5"):
        attend(q, k, v, metric=metrics.DotProduct(), connection=connections.Rotary())
    with pytest.raises(aatc.errors.CaptureError, match=r"aatc.connections"):
        attend(q, k, v, metric=metrics.DotProduct(), connection="rope")


@pytest.mark.parametrize("start", [10**5, 10**7, 10**9])
def test_rotary_angles_of_large_positions_are_those_of_double_precision(start):
    positions = torch.arange(start, start + 7)
    x = [torch.randn(1, 2, 7, 8) for _ in range(3)]
    parts = {"metric": metrics.DotProduct(), "connection": connections.Rotary(positions, positions)}
    want = aatc.attend(*(t.double() for t in x), **parts)
    torch.testing.assert_close(aatc.attend(*x, **parts), want.float(), rtol=1e-5, atol=1e-5)


def test_rotary_positions_may_learn():
    p = torch.linspace(0, 3e4, 5, dtype=torch.float64)
    x = [torch.randn(1, 1, 5, 4) for _ in range(3)]
    grads = []
    for dtype in (torch.float32, torch.float64):
        t = p.clone().requires_grad_()
        rotary = connections.Rotary(t, torch.zeros(5, dtype=torch.float64))
        o = aatc.attend(*(y.to(dtype) for y in x), metric=metrics.DotProduct(), connection=rotary)
        grads += torch.autograd.grad(o.double().sin().sum(), t)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)
