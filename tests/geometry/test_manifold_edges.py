"""Manifolds where care is needed: near points, gradients, dtypes, sizes, boundaries, wrong input."""

import math

import pytest
import torch

from aatc.geometry import (
    SPD,
    CutLocusError,
    GeometryError,
    Hyperboloid,
    PoincareBall,
    PointShapeError,
    Product,
    Simplex,
    Sphere,
)
from tests.geometry.manifold_cases import ATOL, CASES, LARGE, PRODUCT, close, draw, everywhere, tangent


@everywhere
@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
def test_near_points_keep_their_digits(name, size):
    manifold, (x,) = draw(name, 11, 1)
    v = tangent(manifold, x, 11, size)
    exact = manifold.norm(x, v)
    assert ((manifold.dist(x, manifold.exp(x, v)) - exact).abs() <= 1e-14 + 1e-9 * exact).all()


@everywhere
def test_gradients_at_coincidence_are_zero_for_the_distance_and_finite_for_the_rest(name):
    manifold, (x,) = draw(name, 5, 1)
    x, y = x.requires_grad_(), x.detach().clone().requires_grad_()
    for grad in torch.autograd.grad(manifold.dist(x, y).sum(), (x, y)):
        assert (grad == 0).all()
    zero = torch.zeros_like(x).requires_grad_()
    for value in (manifold.log(x, y), manifold.exp(x, zero), manifold.transport(x, y, zero), manifold.norm(x, zero)):
        assert all(
            g is None or g.isfinite().all() for g in torch.autograd.grad(value.sum(), (x, y, zero), allow_unused=True)
        )


@everywhere
def test_gradcheck_of_every_function(name):
    manifold, (x, y) = draw(name, 21, 2, (1,))
    u, v = tangent(manifold, x, 21), tangent(manifold, x, 22)
    x, y, u, v = (tensor.detach().requires_grad_() for tensor in (x, y, u, v))
    t = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    check = torch.autograd.gradcheck
    assert check(manifold.dist, (x, y))
    assert check(manifold.exp, (x, v))
    assert check(manifold.log, (x, y))
    assert check(manifold.inner, (x, u, v))
    assert check(manifold.norm, (x, v))
    assert check(manifold.transport, (x, y, v))
    assert check(manifold.geodesic, (x, y, t))
    assert check(manifold.projection, (x,))
    assert check(manifold.tangent_projection, (x, v))


def test_gradcheck_of_the_maps_between_models():
    check = torch.autograd.gradcheck
    for name, there, back in (
        ("ball_c", CASES["ball_c"][0].to_hyperboloid, CASES["ball_c"][0].from_hyperboloid),
        ("simplex", CASES["simplex"][0].to_sphere, CASES["simplex"][0].from_sphere),
        ("product", PRODUCT.split, lambda x: PRODUCT.join(PRODUCT.split(x))),
    ):
        x = draw(name, 1, 1, (2,))[1][0].requires_grad_()
        assert check(there, (x,))
        assert check(back, (x if name == "product" else there(x).detach().requires_grad_(),))
        close(back(x) if name == "product" else back(there(x)), x)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_spd_derivatives_hold_at_equal_eigenvalues(scale):
    one = torch.eye(3, dtype=torch.float64)
    x, y = one.clone().requires_grad_(), (scale * one).requires_grad_()
    assert torch.autograd.gradcheck(SPD().log, (x, y))
    assert torch.autograd.gradcheck(SPD().exp, (x, y))
    assert torch.autograd.gradcheck(SPD().transport, (x, y, y))


def test_spd_derivatives_agree_in_every_mode():
    x, y = SPD().random_point((2, 3, 3), torch.Generator().manual_seed(0), dtype=torch.float64)
    along = torch.diag(torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)) + 0.3
    for f in (
        lambda a: SPD().log(a, y),
        lambda a: SPD().exp(a, 0.1 * along),
        lambda a: SPD().transport(a, y, along),
        SPD().projection,
    ):
        a = x.clone().requires_grad_()
        f(a).sum().backward()
        close(torch.func.grad(lambda b, f=f: f(b).sum())(x), a.grad)
        close(torch.func.jvp(lambda b, f=f: f(b).sum(), (x,), (along,))[1], (a.grad * along).sum())
        close(torch.func.jacfwd(f)(x), torch.func.jacrev(f)(x))
        assert torch.autograd.gradcheck(
            lambda b, f=f: f((b + b.mT) / 2), (x.clone().requires_grad_(),), check_forward_ad=True
        )


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_follow_the_dtype_and_random_points_the_generator(name, dtype):
    manifold, shape, _ = CASES[name]
    first, second = (manifold.random_point((4, *shape), torch.Generator().manual_seed(0), dtype=dtype) for _ in "ab")
    assert torch.equal(first, second)
    y = manifold.random_point((4, *shape), torch.Generator().manual_seed(1), dtype=dtype)
    v = manifold.log(first, y)
    outputs = [v, manifold.dist(first, y), manifold.exp(first, v), manifold.inner(first, v, v)]
    outputs += [manifold.transport(first, y, v), manifold.geodesic(first, y, 0.5), manifold.projection(y)]
    assert {output.dtype for output in outputs} == {dtype}
    assert (manifold.dist(first, first) == 0).all() and manifold.belongs(first).all()
    assert manifold.belongs(first).dtype == torch.bool


@everywhere
def test_results_follow_the_device(name):
    # Tensors without data take every branch that does not look at values; those that do need a real device.
    manifold, (x,) = draw(name, 0, 1)
    devices = ["meta"] if name not in ("spd", "product") else []
    for device in [*devices, *(["cuda"] if torch.cuda.is_available() else [])]:
        z = x.to(device)
        outputs = [manifold.dist(z, z), manifold.exp(z, z), manifold.inner(z, z, z), manifold.tangent_projection(z, z)]
        assert {output.device.type for output in outputs} == {device}


@everywhere
def test_ten_thousand_points_of_dimension_64_in_one_call(name):
    manifold, shape = LARGE[name]
    generator = torch.Generator().manual_seed(0)
    x, y = (manifold.random_point((10_000, *shape), generator, dtype=torch.float64) for _ in range(2))
    v = manifold.log(x, y)
    close(manifold.exp(x, v), y)
    close(manifold.norm(x, v), manifold.dist(x, y))
    close(manifold.norm(y, manifold.transport(x, y, v)), manifold.dist(x, y))
    assert manifold.belongs(manifold.geodesic(x, y, 0.5), ATOL).all()


WRONG = {
    "sphere": [[1.0, 1e-2, 0.0, 0.0], [0.0] * 4, [math.nan] * 4],
    "hyperboloid": [[-1.0, 0.0, 0.0, 0.0], [1.0, 0.1, 0.0, 0.0], [math.inf, 0.0, 0.0, 0.0]],
    "ball": [[1.0, 0.0, 0.0], [0.8, 0.8, 0.0], [math.nan] * 3],
    "simplex": [[0.5, 0.6, -0.1, 0.0], [0.3, 0.3, 0.3, 0.2], [math.nan] * 4],
    "spd": [torch.diag(torch.tensor([1.0, 2, -1e-3])).tolist(), [[1, 0.1, 0], [0, 1, 0], [0, 0, 1]],
            [[math.nan] * 3] * 3, torch.zeros(3, 3).tolist()],
    "euclidean": [[math.nan, 0.0, 0.0]],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_points_are_rejected_and_right_ones_beside_them_are_not(name):
    manifold, (x,) = draw(name, 0, 1, (2,))
    points = torch.cat([torch.tensor(WRONG[name], dtype=torch.float64), x])
    assert manifold.belongs(points, 1e-6).tolist() == [False] * len(WRONG[name]) + [True, True]


def test_a_wrong_factor_makes_a_wrong_point_of_the_product():
    _, (x,) = draw("product", 0, 1)
    for coordinate in (0, 4, 7):  # of the sphere, of the matrix off its diagonal, of the hyperboloid
        y = x.clone()
        y[0, coordinate] += 0.5
        assert PRODUCT.belongs(y).tolist() == [False] + [True] * 5
    assert not PRODUCT.is_tangent(x, torch.ones_like(x)).any()


@everywhere
def test_batch_axes_broadcast(name):
    manifold, (x, y) = draw(name, 2, 2, (3,))
    column = x[:, None]
    v = manifold.log(column, y)
    assert v.shape == (3, *y.shape)
    close(v[1], manifold.log(x[1], y))
    close(manifold.dist(column, y)[2], manifold.dist(x[2], y))
    close(manifold.transport(column, y, v)[1], manifold.transport(x[1], y, v[1]))
    close(manifold.inner(column, v[:1], v)[2], manifold.inner(x[2], v[0], v[2]))


@everywhere
def test_projection_reaches_the_manifold_and_is_idempotent(name):
    manifold, (x,) = draw(name, 0, 1)
    moved = x + 0.3 * torch.randn_like(x)
    once = manifold.projection(moved)
    assert manifold.belongs(once, 1e-10).all()
    close(manifold.projection(once), once)
    close(manifold.projection(x), x)
    v = manifold.tangent_projection(x, torch.randn_like(x))
    assert manifold.is_tangent(x, v, 1e-10).all()
    close(manifold.tangent_projection(x, v), v)


def test_antipodes_have_no_log_but_a_distance_with_a_finite_gradient():
    x = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    distance = Sphere().dist(x, -x.detach())
    close(distance, math.pi)
    assert torch.autograd.grad(distance.sum(), x)[0].isfinite().all()
    for call in (Sphere().log, lambda a, b: Sphere().geodesic(a, b, 0.5), lambda a, b: Sphere().transport(a, b, a)):
        with pytest.raises(CutLocusError, match="antipodal"):
            call(x, -x)


def test_faces_of_the_simplex_and_the_rim_of_the_ball_stay_finite():
    p = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64, requires_grad=True)
    close(Simplex().dist(p, q), math.pi)
    grads = torch.autograd.grad(Simplex().dist(p, q) + Simplex().geodesic(p, q, 0.3)[0], (p, q))
    assert all(grad.isfinite().all() for grad in grads)
    far = PoincareBall().exp(torch.zeros(2), torch.tensor([50.0, 0.0]))
    assert PoincareBall().belongs(far) and PoincareBall().dist(far, -far).isfinite()
    rim = torch.tensor([1 - 1e-7, 0.0], requires_grad=True)
    (grad,) = torch.autograd.grad(PoincareBall().dist(rim, torch.zeros(2)), rim)
    assert grad.isfinite().all()


def test_wrong_shapes_dtypes_and_parameters_are_typed_errors():
    x = torch.eye(3, dtype=torch.float64)
    for call in (
        lambda: Sphere().dist(x, x[:, :2]),
        lambda: Sphere().dist(x[:2], x),
        lambda: Sphere().dist(torch.tensor(1.0), x),
        lambda: Sphere().dist(x.long(), x.long()),
        lambda: Sphere().random_point((3, 1)),
        lambda: Sphere().geodesic(x, x, torch.zeros(2)),
        lambda: SPD().dist(x[:2], x[:2]),
        lambda: SPD().belongs(x[0]),
        lambda: PRODUCT.dist(x, x),
        lambda: PRODUCT.join([x]),
        lambda: PRODUCT.join([x, x, x, x]),
        lambda: Product([(SPD(), (3,))]),
    ):
        with pytest.raises(PointShapeError):
            call()
    for call in (
        lambda: Sphere(0.0),
        lambda: Hyperboloid(-1.0),
        lambda: PoincareBall(math.nan),
        lambda: Product([]),
        lambda: SPD().dist(-x, x),
        lambda: Sphere().projection(0 * x),
        lambda: Simplex().projection(-x),
    ):
        with pytest.raises(GeometryError):
            call()


@pytest.mark.parametrize("name", ["sphere", "ball", "simplex"])
def test_what_is_not_a_number_is_not_taken_for_zero(name):
    manifold, (x, y) = draw(name, 4, 2, (2,))
    v = tangent(manifold, x, 4)
    hole = x.clone()
    hole[0, 1] = math.nan
    # the formulas, whatever looks at points before them; the sphere's metric does not depend on the point
    results = [manifold._exp(hole, v), manifold._dist(hole, y)]
    results += [] if name == "sphere" else [manifold._inner(hole, v, v)]
    for found in results:
        assert found[0].isnan().any() and found[1].isfinite().all()
