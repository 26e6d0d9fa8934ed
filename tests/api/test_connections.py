"""Rotary, frames and the two transports against formulas written by hand."""

import pytest
import torch

import aatc
from aatc import connections, metrics
from tests.api.oracle import agree, attention, inputs, minkowski, on_hyperboloid, pairs


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
