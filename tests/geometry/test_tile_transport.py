"""Transport over tiles against closed forms and dense compositions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aatc.geometry import (
    SPD,
    CutLocusError,
    Euclidean,
    Hyperboloid,
    Manifold,
    PointShapeError,
    Product,
    Simplex,
    Sphere,
)
from aatc.geometry.bundles.tile_transport import (
    NotTangentError,
    TileError,
    TileTransport,
    has_closed_transport,
    pole_ladder,
)
from tests.geometry.manifold_cases import CASES, close, draw, everywhere, seeds, tangent

F64 = torch.float64


class OnlyExpAndLog(Manifold):
    """A manifold without the closed form of its transport."""

    def __init__(self, inner):
        self.point_ndim, self.min_size = inner.point_ndim, inner.min_size
        for name in ("_exp", "_log", "_inner", "_tangent_projection", "_projection", "_check_trailing"):
            setattr(self, name, getattr(inner, name))


def tokens_at(manifold, path, tile, seed):
    """Base points and tangent vectors of ``tile`` tokens at each tile, (..., T·tile, *P)."""
    at = path.repeat_interleave(tile, -manifold.point_ndim - 1)
    return at, tangent(manifold, at, seed)


@everywhere
@settings(max_examples=3)
@given(seed=seeds)
def test_the_pole_ladder_is_the_closed_form(name, seed):
    manifold, (x, y) = draw(name, seed, 2)
    v = tangent(manifold, x, seed)
    size = 0.01 if name == "simplex" else 0.25
    for rungs in (1, 3):
        close(pole_ladder(manifold, x, y, v, rungs=rungs, size=size), manifold.transport(x, y, v))
    close(pole_ladder(manifold, x, y, torch.zeros_like(v), size=size), torch.zeros_like(v))


@everywhere
@settings(max_examples=3)
@given(seed=seeds, to=st.integers(-4, 3))
def test_attention_vectors_arrive_tangent_with_their_inner_products(name, seed, to):
    manifold, (path,) = draw(name, seed, 1, (2, 4))
    at, v = tokens_at(manifold, path, 3, seed)
    out = TileTransport(manifold, 3).transport_attention(v, path, to)
    target = path.narrow(-manifold.point_ndim - 1, to % 4, 1)
    assert out.shape == v.shape and manifold.is_tangent(target, out, 1e-9).all()
    close(manifold.norm(target, out), manifold.norm(at, v))
    here = slice(3 * (to % 4), 3 * (to % 4) + 3)
    rest = (slice(None),) * manifold.point_ndim
    close(out[(..., here, *rest)], v[(..., here, *rest)])


@everywhere
@settings(max_examples=3)
@given(seed=seeds)
def test_a_composition_over_tiles_is_that_over_tokens(name, seed):
    manifold, (path,) = draw(name, seed, 1, (4,))
    at, v = tokens_at(manifold, path, 2, seed)
    for to in (1, 3):
        over_tiles = TileTransport(manifold, 2).transport_attention(v, path, to)
        close(TileTransport(manifold, 1).transport_attention(v, at, 2 * to), over_tiles)
        for token in (0, 5, 7):
            carried = v[token]
            step = 1 if to >= token // 2 else -1
            for tile in range(token // 2, to, step):
                carried = manifold.transport(path[tile], path[tile + step], carried)
            close(over_tiles[token], carried)


@everywhere
@settings(max_examples=3)
@given(seed=seeds)
def test_transport_along_a_path_composes_and_is_undone_by_the_way_back(name, seed):
    manifold, (path,) = draw(name, seed, 1, (5,))
    v = tangent(manifold, path[:1].expand(3, *path.shape[1:]), seed)
    carrier = TileTransport(manifold)
    there = carrier.parallel_transport(v, path)
    close(carrier.parallel_transport(carrier.parallel_transport(v, path[:3]), path[2:]), there)
    close(carrier.parallel_transport(there, path.flip(0)), v)
    close(carrier.parallel_transport(v, path, carrier.local_connection(path)), there)
    ladder = TileTransport(manifold, method="pole_ladder", size=0.01 if name == "simplex" else 0.25)
    close(ladder.parallel_transport(v, path), there)


@settings(max_examples=3)
@given(seed=seeds)
def test_without_a_closed_form_the_pole_ladder_is_taken(seed):
    for inner, shape in ((Sphere(), (4,)), (Hyperboloid(), (4,))):
        path = inner.random_point((4, *shape), torch.Generator().manual_seed(seed), dtype=F64)
        v = tangent(inner, path[:1].expand(2, *shape), seed)
        bare = OnlyExpAndLog(inner)
        product = Product([(bare, shape), (Euclidean(), (1,))])
        assert not has_closed_transport(bare) and not has_closed_transport(product)
        close(TileTransport(bare).parallel_transport(v, path), TileTransport(inner).parallel_transport(v, path))
        with pytest.raises(TileError, match="pole_ladder"):
            TileTransport(product, method="closed")


@settings(max_examples=3)
@given(seed=seeds)
def test_frames_carry_by_quotients_and_have_no_holonomy(seed):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.linalg.matrix_exp(0.5 * torch.randn(2, 3, 4, 4, generator=generator, dtype=F64))
    v = torch.randn(2, 6, 4, generator=generator, dtype=F64)
    carrier = TileTransport(None, 2)
    out = carrier.transport_attention(v, frames, 1)
    for k in range(3):
        quotient = frames[:, 1] @ torch.linalg.inv(frames[:, k])
        close(out[:, 2 * k : 2 * k + 2], v[:, 2 * k : 2 * k + 2] @ quotient.mT)
    close(carrier.parallel_transport(v, frames), v @ (frames[:, 2] @ torch.linalg.inv(frames[:, 0])).mT)
    close(carrier.holonomy_defect(frames), 0.0)


@settings(max_examples=3)
@given(seed=seeds, radius=st.floats(0.5, 3.0))
def test_the_defect_of_a_triangle_of_tiles_is_twice_the_sine_of_half_its_turned_angle(seed, radius):
    generator = torch.Generator().manual_seed(seed)
    sphere = Sphere(radius)
    triangle = sphere.random_point((3, 3, 3), generator, dtype=F64)
    unit = triangle / radius
    volume = torch.linalg.det(unit)
    a, b, c = unit.unbind(-2)
    area = 2 * torch.atan2(volume, 1 + (a * b).sum(-1) + (b * c).sum(-1) + (c * a).sum(-1))
    close(TileTransport(sphere).holonomy_defect(triangle), 2 * (area / 2).sin().abs())
    ladder = TileTransport(sphere, method="pole_ladder", size=0.25 * radius)
    close(ladder.holonomy_defect(triangle), 2 * (area / 2).sin().abs())


@settings(max_examples=3)
@given(seed=seeds)
def test_the_defect_in_the_hyperbolic_plane_is_that_of_its_angle_defect(seed):
    space = Hyperboloid(0.7)
    triangle = 0.8 * torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)
    triangle = space.projection(torch.nn.functional.pad(triangle, (1, 0)))
    angles = 0.0
    for k in range(3):
        at, one, other = (triangle[:, (k + i) % 3] for i in range(3))
        u, w = space.log(at, one), space.log(at, other)
        angles = angles + (space.inner(at, u, w) / (space.norm(at, u) * space.norm(at, w))).clamp(-1, 1).acos()
    close(TileTransport(space).holonomy_defect(triangle), 2 * ((math.pi - angles) / 2).sin())


@pytest.mark.parametrize("name", ["euclidean", "sphere", "spd", "product"])
def test_a_way_there_and_back_has_no_defect_and_flat_space_none_at_all(name):
    manifold, (path,) = draw(name, 5, 1, (4,))
    carrier = TileTransport(manifold)
    close(carrier.holonomy_defect(torch.cat([path, path[1:-1].flip(0)])), 0.0)
    if name == "euclidean":
        close(carrier.holonomy_defect(path), 0.0)
    else:
        assert carrier.holonomy_defect(path) > 0.01


def test_the_defect_in_spd_is_that_of_transport_written_out_in_an_orthonormal_basis():
    manifold, (path,) = draw("spd", 2, 1, (3,))
    root = torch.linalg.cholesky(path[0])
    basis = []
    for i in range(3):
        for j in range(i + 1):
            e = torch.zeros(3, 3, dtype=F64)
            e[i, j] = e[j, i] = 1 if i == j else 0.5**0.5
            basis.append(root @ e @ root.mT)
    basis = torch.stack(basis)
    moved = basis
    for x, y in ((path[0], path[1]), (path[1], path[2]), (path[2], path[0])):
        e = torch.linalg.eig(y @ torch.linalg.inv(x))
        half = (e.eigenvectors @ torch.diag(e.eigenvalues.sqrt()) @ torch.linalg.inv(e.eigenvectors)).real
        moved = half @ moved @ half.mT
    matrix = manifold.inner(path[0], basis.unsqueeze(1), moved.unsqueeze(0))
    close(TileTransport(manifold).holonomy_defect(path), torch.linalg.matrix_norm(matrix - torch.eye(6), ord=2))


@pytest.mark.parametrize("method", ["closed", "pole_ladder"])
@pytest.mark.parametrize(("manifold", "shape"), [(Sphere(), (3,)), (Hyperboloid(), (3,)), (SPD(), (2, 2))])
def test_gradients_are_those_of_the_differences(manifold, shape, method):
    path = manifold.random_point((3, *shape), torch.Generator().manual_seed(11), dtype=F64).requires_grad_()
    v = torch.randn(3, *shape, dtype=F64, requires_grad=True)
    carrier = TileTransport(manifold, 1, method=method)

    def attention(path, v):
        path = manifold.projection(path)
        return carrier.transport_attention(manifold.tangent_projection(path, v), path, 1)

    def along(path, v):
        path = manifold.projection(path)
        return carrier.parallel_transport(manifold.tangent_projection(path[:1], v[:1]), path)

    def ladder(path, v):
        x, y = manifold.projection(path)[:2]
        return pole_ladder(manifold, x, y, manifold.tangent_projection(x, v[0]), rungs=2)

    functions = [attention, along, lambda path, v: carrier.holonomy_defect(manifold.projection(path))]
    for function in functions + [ladder] * (method == "pole_ladder"):
        assert torch.autograd.gradcheck(function, (path, v), fast_mode=True)


def test_gradients_through_frames_are_those_of_the_differences():
    frames = torch.linalg.matrix_exp(0.3 * torch.randn(3, 2, 2, dtype=F64)).requires_grad_()
    v = torch.randn(5, 2, dtype=F64, requires_grad=True)
    carrier = TileTransport(None, 2)
    assert torch.autograd.gradcheck(lambda f, w: carrier.transport_attention(w, f, 1), (frames, v))
    assert torch.autograd.gradcheck(lambda f, w: carrier.parallel_transport(w, f), (frames, v))


def test_the_gradient_of_the_defect_is_finite_where_the_loop_stands_still():
    path = torch.tensor([[0.0, 0.6, 0.8]], dtype=F64).repeat(3, 1).requires_grad_()
    defect = TileTransport(Sphere()).holonomy_defect(path)
    defect.backward()
    close(defect.detach(), 0.0)
    assert path.grad.isfinite().all()


@pytest.mark.parametrize("name", ["sphere", "hyperboloid"])
def test_ten_thousand_vectors_of_dimension_64_keep_their_lengths(name):
    manifold, _, shape = CASES[name]
    generator = torch.Generator().manual_seed(0)
    path = manifold.random_point((20, *shape), generator, dtype=F64)
    if name == "hyperboloid":
        path = manifold.projection(path / 8)
    at, v = tokens_at(manifold, path, 512, 0)
    out = TileTransport(manifold, 512).transport_attention(v[:10_000], path)
    close(manifold.norm(path[-1], out), manifold.norm(at, v)[:10_000])


@settings(max_examples=3)
@given(seed=seeds, to=st.integers(0, 2))
def test_vectors_take_on_the_batch_of_the_path(seed, to):
    sphere, frames = Sphere(), torch.linalg.matrix_exp(0.3 * torch.randn(4, 3, 3, 3, dtype=F64))
    path = sphere.random_point((4, 3, 3), torch.Generator().manual_seed(seed), dtype=F64)
    path[:, :] = path[:1]
    v = sphere.tangent_projection(path[0], torch.randn(3, 3, dtype=F64))
    for carrier, way in ((TileTransport(sphere), path), (TileTransport(None), frames)):
        out = carrier.transport_attention(v, way, to)
        close(out, carrier.transport_attention(v.expand(4, 3, 3).contiguous(), way, to))
        assert out.shape == (4, 3, 3) and carrier.parallel_transport(v[:1], way).shape == (4, 1, 3)
        assert carrier.parallel_transport(v[:1], way[:, :1]).shape == (4, 1, 3)


@everywhere
@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_the_pole_ladder_carries_vectors_whose_squares_have_no_number(name, size):
    manifold, (x, y) = draw(name, 3, 2)
    v = tangent(manifold, x, 3)
    ladder = pole_ladder(manifold, x, y, size * v, size=0.01 if name == "simplex" else 0.25)
    close(ladder / size, manifold.transport(x, y, v))


def test_a_loop_from_a_face_of_the_simplex_and_back_has_no_defect():
    path = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=F64)
    close(TileTransport(Simplex()).holonomy_defect(path), 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_dtype_is_kept(dtype):
    path = Sphere().random_point((3, 4), dtype=dtype)
    v = Sphere().tangent_projection(path, torch.randn(3, 4, dtype=dtype))
    for method in ("closed", "pole_ladder"):
        assert TileTransport(Sphere(), method=method).transport_attention(v, path).dtype == dtype
        assert TileTransport(Sphere(), method=method).holonomy_defect(path).dtype == dtype


@everywhere
def test_base_points_off_the_manifold_are_refused(name):
    manifold, (x, y) = draw(name, 2, 2)
    path = torch.stack((x, y), -manifold.point_ndim - 1)
    v = torch.zeros_like(path)
    if name in ("euclidean", "stereographic"):  # whose points are all of Rⁿ
        TileTransport(manifold).transport_attention(v, path + 1)
        return
    off = path.clone()
    off.narrow(-manifold.point_ndim - 1, 1, 1).mul_(-3)
    for method in ("auto", "pole_ladder"):
        carrier = TileTransport(manifold, method=method)
        for act in (carrier.local_connection, carrier.holonomy_defect, lambda p, c=carrier: c.parallel_transport(v, p)):
            with pytest.raises(TileError, match="off"):
                act(off)


def test_what_does_not_fit_is_refused():
    sphere = Sphere()
    path = sphere.random_point((3, 4), dtype=F64)
    v = sphere.tangent_projection(path, torch.randn(3, 4, dtype=F64))
    carrier = TileTransport(sphere)
    with pytest.raises(NotTangentError, match="1 of 1 vectors of tile 1"):
        carrier.transport_attention(torch.stack([v[0], path[1], v[2]]), path)
    with pytest.raises(NotTangentError):
        carrier.parallel_transport(path, path)
    with pytest.raises(TileError, match="3 tokens in tiles of 2 are 2 tiles"):
        TileTransport(sphere, 2).transport_attention(v, path)
    with pytest.raises(TileError, match="no tile 3"):
        carrier.transport_attention(v, path, 3)
    with pytest.raises(TileError, match="finite"):
        carrier.local_connection(path * math.nan)
    with pytest.raises(CutLocusError):
        carrier.transport_attention(v[:1].expand(2, 4), torch.stack([path[0], -path[0]]))
    with pytest.raises(PointShapeError):
        carrier.local_connection(path[0])
    with pytest.raises(PointShapeError):
        TileTransport(None).local_connection(path)
    with pytest.raises(PointShapeError):
        TileTransport(None).transport_attention(v, torch.eye(3, dtype=F64).expand(3, 3, 3))
    with pytest.raises(TileError, match=r"no tile 1\.5"):
        carrier.transport_attention(v, path, 1.5)
    with pytest.raises(PointShapeError, match="broadcast"):
        carrier.transport_attention(v.expand(5, 3, 4), path.expand(2, 3, 4))
    with pytest.raises(PointShapeError, match="dtype"):
        carrier.transport_attention(v.float(), path)
    with pytest.raises(PointShapeError, match="float32 or float64"):
        carrier.holonomy_defect(path.half())
    frames = torch.eye(4, dtype=F64).repeat(3, 1, 1)
    with pytest.raises(TileError, match="finite"):
        TileTransport(None).transport_attention(v * math.nan, frames)
    with pytest.raises(PointShapeError, match="float32 or float64"):
        TileTransport(None).transport_attention(v.half(), frames.half())
    with pytest.raises(PointShapeError, match="broadcast"):
        TileTransport(None).transport_attention(v.expand(5, 3, 4), frames.expand(2, 3, 4, 4))
    frames[1] = 0
    with pytest.raises(TileError, match="tile 1 is singular"):
        TileTransport(None).transport_attention(v, frames)
    for wrong in ({"tile": 0}, {"tile": True}, {"method": "euler"}, {"rungs": 0}, {"size": -1.0}):
        with pytest.raises(TileError):
            TileTransport(sphere, **wrong)
