"""Paths from keys to queries are shortest: from end to end in equal steps that add up to the distance."""

import math
from itertools import pairwise

import pytest
import torch

from aatc import connections, metrics
from aatc.errors import CaptureError, ScoreError, ShapeError
from aatc.geometry import CutLocusError, PoincareBall
from aatc.nn import GeodesicViT, GeometricAttention
from aatc.nn.pair_geodesics import pair_geodesics

F64 = torch.float64
HEADS, WIDTH, HIDDEN = 2, 4, 8


def lorentz(x, y):
    return (x[..., 0] * y[..., 0] - (x[..., 1:] * y[..., 1:]).sum(-1)).clamp_min(1).acosh()


def ball(x, y):
    gaps = [1 - z.square().sum(-1) for z in (x, y)]
    return (1 + 2 * (x - y).square().sum(-1) / (gaps[0] * gaps[1])).acosh()


def flat(x, y):
    return (x - y).norm(dim=-1)


SPACES = {
    "euclidean": flat,
    "mahalanobis": flat,
    "lorentz": lorentz,
    "poincare": ball,
    "sphere": lambda x, y: (x * y).sum(-1).clamp(-1, 1).acos(),
    "fisher-rao": lambda x, y: 2 * (x * y).sqrt().sum(-1).clamp(-1, 1).acos(),
}


def made(metric, connection=None):
    torch.manual_seed(1)
    return GeometricAttention(HIDDEN, HEADS, metric=metric, connection=connection).double()


def heads(n=3, m=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, HEADS, length, WIDTH, generator=generator, dtype=F64) for length in (n, m)]


def assert_shortest(paths, distance):
    whole = distance(paths[0], paths[-1])
    parts = torch.stack([distance(a, b) for a, b in pairwise(paths)])
    torch.testing.assert_close(parts, (whole / len(parts)).expand_as(parts), rtol=1e-6, atol=1e-7)
    return whole


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("name", SPACES)
def test_steps_are_equal_and_add_up_to_the_distance(name, steps):
    attention, (q, k) = made(name), heads()
    paths = attention.compute_geodesics(q, k, steps)
    assert paths.shape == (steps + 1, 2, HEADS, 3, 5, WIDTH + (name == "lorentz"))
    whole = assert_shortest(paths, SPACES[name])
    if name not in ("euclidean", "mahalanobis"):
        torch.testing.assert_close(whole, attention.attention_metric(q, k), rtol=1e-6, atol=1e-7)
    else:
        torch.testing.assert_close(paths[0], k[:, :, None].expand_as(paths[0]))
        torch.testing.assert_close(paths[-1], q[:, :, :, None].expand_as(paths[0]))


@pytest.mark.parametrize(
    ("name", "connection"), [("lorentz", "rotary"), ("sphere", "frames"), ("lorentz", "transport")]
)
def test_paths_start_at_the_carried_key(name, connection):
    attention, (q, k) = made(name, connection), heads(5, 5)
    tokens = torch.randn(2, 5, HIDDEN, dtype=F64)
    paths = attention.compute_geodesics(q, k, 3, tokens=tokens)
    whole = assert_shortest(paths, SPACES[name])
    torch.testing.assert_close(whole, attention.attention_metric(q, k, tokens=tokens), rtol=1e-6, atol=1e-7)
    bare = made(name, None).compute_geodesics(q, k, 3)
    # A transport carries values alone.
    assert bool((paths[0] - bare[0]).abs().max() > 0.1) is (connection != "transport")
    torch.testing.assert_close(paths[-1], bare[-1])


@pytest.mark.parametrize("curvature", [0.3, torch.tensor(2.5, dtype=F64), torch.tensor([0.5, 2.0], dtype=F64)])
@pytest.mark.parametrize("lift", [True, False])
def test_curvature_of_metric_objects_is_that_of_their_space(curvature, lift):
    c = torch.as_tensor(curvature, dtype=F64).reshape(-1, 1, 1)
    q, k = heads()
    if not lift:
        q, k = (torch.cat(((1 / c + x.square().sum(-1, keepdim=True)).sqrt(), x), -1) for x in (q, k))
    width = q.shape[-1]
    metric = metrics.LorentzDistance(curvature=curvature, lift=lift)
    attention = GeometricAttention(HEADS * width, HEADS, metric=metric).double()
    paths = attention.compute_geodesics(q, k, 4)
    inner = -paths[..., 0].square() + paths[..., 1:].square().sum(-1)
    torch.testing.assert_close(inner, (-1 / c).expand_as(inner))
    root = c.sqrt()
    whole = assert_shortest(paths, lambda x, y: lorentz(root[..., None] * x, root[..., None] * y) / root)
    torch.testing.assert_close(whole, attention.attention_metric(q, k), rtol=1e-6, atol=1e-7)


def test_keys_carried_by_an_object_are_those_of_its_frames():
    turn = torch.linalg.matrix_exp(torch.tensor([[0, 1.0], [-1, 0]], dtype=F64) * 0.4)
    frames = torch.stack([torch.block_diag(turn @ turn, turn), torch.eye(WIDTH, dtype=F64)])
    attention = GeometricAttention(
        HIDDEN, HEADS, metric=metrics.Euclidean(), connection=connections.Frames(frames, values=False)
    )
    q, k = heads(2, 2)
    want = torch.einsum("ica,jcd,bhjd->bhija", frames, frames, k)
    torch.testing.assert_close(attention.compute_geodesics(q, k, 1)[0], want)


def test_gradients_reach_queries_keys_and_half_precision_gives_float32():
    attention, (q, k) = made("poincare"), heads(1, 2)
    leaves = q.requires_grad_(), k.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: attention.compute_geodesics(q, k, 2), leaves)
    half = made("sphere").compute_geodesics(q.detach().half(), k.detach().half())
    assert half.dtype == torch.float32 and half.isfinite().all()
    assert made("sphere").compute_geodesics(q[:, :, :0], k).shape == (9, 2, HEADS, 0, 2, WIDTH)


def test_a_vision_transformer_shows_the_paths_of_each_layer():
    torch.manual_seed(1)
    model, images = GeodesicViT(8, 4, 3, 10, 16, 2, 2).double(), torch.randn(2, 3, 8, 8, dtype=F64)
    for layer in (0, 1, -1):
        paths = model.attention_geodesics(images, layer, 4)
        assert paths.shape == (5, 2, 2, 4, 4, 9)
        torch.testing.assert_close(
            assert_shortest(paths, lorentz), model.patch_metric(images, layer), rtol=1e-5, atol=1e-6
        )
    with pytest.raises(ShapeError, match="no layer 2"):
        model.attention_geodesics(images, 2)


def test_what_has_no_path_is_refused():
    q, k = heads()
    with pytest.raises(ScoreError, match="no geodesics"):
        made("dot").compute_geodesics(q, k)
    for steps in (0, -1, True, 2.0, math.nan):
        with pytest.raises(ShapeError, match="steps"):
            made("sphere").compute_geodesics(q, k, steps)
    with pytest.raises(CutLocusError):
        made("sphere").compute_geodesics(q, -q)


def curved(kappa, x, y):
    """d_κ by hand, through the sphere or the hyperboloid that the coordinates are projected from."""
    gaps = [1 + kappa * z.square().sum(-1) for z in (x, y)]
    half = (x - y).norm(dim=-1) / (gaps[0] * gaps[1]).sqrt()
    if kappa == 0:
        return 2 * half
    size = abs(kappa) ** 0.5
    return 2 * (torch.asin(size * half) if kappa > 0 else torch.asinh(size * half)) / size


@pytest.mark.parametrize("lift", [True, False])
@pytest.mark.parametrize("kappa", [[-0.8, 0.6], [0.0, 1e-9], -0.5, 0.4, 0, -1e-320])
def test_paths_of_stereographic_metrics_are_of_either_sign(kappa, lift):
    curvature = torch.tensor(kappa, dtype=F64) if isinstance(kappa, list) else kappa
    q, k = (x / (1 + x.norm(dim=-1, keepdim=True)) for x in heads())
    metric = metrics.Stereographic(curvature=curvature, lift=lift)
    attention = GeometricAttention(HIDDEN, HEADS, metric=metric).double()
    paths, whole = attention.compute_geodesics(q, k, 3), attention.attention_metric(q, k)
    for h in range(HEADS):
        at = kappa[h] if isinstance(kappa, list) else kappa
        torch.testing.assert_close(
            assert_shortest(paths[:, :, h], lambda x, y, at=at: curved(at, x, y)), whole[:, h], rtol=1e-6, atol=1e-7
        )
    if not lift:
        torch.testing.assert_close(paths[-1], q[:, :, :, None].expand_as(paths[0]))


def test_paths_of_a_module_that_learns_its_curvature():
    attention, (q, k) = made("stereographic"), heads(2, 3)
    with torch.no_grad():
        attention.metric.curvature.copy_(torch.tensor([-0.3, 0.2]))
    paths = attention.compute_geodesics(0.5 * q, 0.5 * k, 2)
    for h, at in enumerate((-0.3, 0.2)):
        assert_shortest(paths[:, :, h], lambda x, y, at=at: curved(at, x, y))
    (slope,) = torch.autograd.grad(paths.square().sum(), attention.metric.curvature)
    assert (slope != 0).all()


def test_curvatures_that_do_not_fit_the_heads_are_refused():
    q, k = heads()
    for kind in (metrics.Stereographic, metrics.Poincare, metrics.LorentzDistance):
        for wrong in (torch.ones(3, dtype=F64), torch.ones(2, 2, dtype=F64)):
            with pytest.raises(CaptureError, match="curvature"):
                pair_geodesics(0.1 * q, 0.1 * k, kind(curvature=wrong), None, 2)


@pytest.mark.parametrize("curvature", [4.0, 0.2])
def test_paths_of_the_ball_are_those_of_its_curvature(curvature):
    ball = PoincareBall(curvature)
    x, y = ball.random_point((2, 3, 4), torch.Generator().manual_seed(1), dtype=torch.float64)
    metric = metrics.Poincare(curvature=torch.tensor([curvature] * 2, dtype=torch.float64))
    q, k = (t.expand(1, 2, 3, 4) for t in (x, y))
    path = pair_geodesics(q, k, metric, None, 2)
    for i in range(3):
        for j in range(3):
            torch.testing.assert_close(path[1, 0, 1, i, j], ball.geodesic(y[j], x[i], 0.5))
