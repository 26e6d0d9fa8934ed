"""Every map of every manifold: under vmap, in one compiled graph, with first and second derivatives in every mode."""

import math

import pytest
import torch

from aatc.geometry import SPD, CutLocusError, GeometryError, LogEuclideanSPD, Simplex, Sphere
from tests.geometry.every_manifold import MANIFOLDS, NEW, everywhere, maps, points, tangent


def _arguments(name):
    manifold, (x, y) = points(name, 2, (2,))
    return manifold, maps(manifold, x, y, tangent(manifold, x, 1), tangent(manifold, x, 2))


@everywhere
def test_maps_under_vmap_are_those_of_the_batch(name):
    manifold, cases = _arguments(name)
    for what, (f, arguments) in cases.items():
        torch.testing.assert_close(torch.func.vmap(f)(*arguments), f(*arguments), rtol=1e-9, atol=1e-11, msg=what)
    x, y = cases["log"][1]
    for f in (lambda a: manifold.belongs(a), lambda a: manifold.is_tangent(a, a)):
        assert torch.equal(torch.func.vmap(f)(x), f(x))
    pairs = torch.func.vmap(torch.func.vmap(manifold.dist, (None, 0)), (0, None))(x[:2], y)
    torch.testing.assert_close(pairs, manifold.dist(x[:2, None], y), rtol=1e-9, atol=1e-11)


# What the base class makes of other maps, and manifolds made of others: tracing takes longer than all else here.
MADE = ("squared_dist", "norm", "geodesic")
OWN_GEODESIC = ("euclidean", "sphere", "hyperboloid", "ball", "simplex", "log_euclidean")


@pytest.mark.parametrize("name", [name for name in MANIFOLDS if name != "rotations_4"])
def test_maps_compile_into_one_graph(name):
    _, cases = _arguments(name)
    if name != "euclidean":
        left_out = [what for what in MADE if not (what == "geodesic" and name in OWN_GEODESIC)]
        cases = {what: case for what, case in cases.items() if what not in left_out}
    flat = [argument for _, arguments in cases.values() for argument in arguments]

    def every(*tensors):
        given = iter(tensors)
        return [f(*(next(given) for _ in arguments)) for f, arguments in cases.values()]

    torch._dynamo.reset()
    compiled = torch.compile(every, fullgraph=True, backend="eager")
    for what, one, other in zip(cases, compiled(*flat), every(*flat)):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=what)


@pytest.mark.parametrize("name", ["sphere", "log_euclidean"])
def test_compiled_maps_have_the_gradients_of_the_eager_ones(name):
    manifold, (x, y) = points(name, 2)
    f = lambda a, b: manifold.exp(a, 0.3 * manifold.log(a, b)).square().sum()  # noqa: E731
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    wanted, found = (
        torch.autograd.grad(g(*(leaves := [t.clone().requires_grad_() for t in (x, y)])), leaves) for g in (f, compiled)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("way", ["eager", "vmap", "compiled", "jvp"])
@pytest.mark.parametrize(
    ("call", "bad", "error"),
    [
        (Sphere().log, lambda: [torch.eye(3), -torch.eye(3)], CutLocusError),
        (Sphere().projection, lambda: [torch.zeros(2, 3)], GeometryError),
        (SPD().log, lambda: [-torch.eye(2).expand(2, 2, 2), torch.eye(2).expand(2, 2, 2)], GeometryError),
        (LogEuclideanSPD().dist, lambda: [-torch.eye(2).expand(2, 2, 2), torch.eye(2).expand(2, 2, 2)], GeometryError),
        (Simplex().log, lambda: [torch.eye(3), torch.full((3, 3), 1 / 3)], GeometryError),
        (Simplex().projection, lambda: [-torch.eye(3)], GeometryError),
    ],
)
def test_errors_of_numbers_are_typed_in_every_way_of_running(call, bad, error, way):
    torch._dynamo.reset()
    run = {
        "eager": call,
        "vmap": torch.func.vmap(call),
        "compiled": torch.compile(call, fullgraph=True, backend="aot_eager"),
        "jvp": lambda *given: torch.func.jvp(call, given, given),
    }[way]
    with pytest.raises(error):
        run(*bad())


def _along(f, arguments, changes, weight):
    """s ↦ the weighted sum of f along a line."""
    return lambda s: (f(*(a + s * c for a, c in zip(arguments, changes))) * weight).sum()


def _check_derivatives(f, arguments, seed, changes=None, rtol=2e-6):
    """First and second derivatives along a line, of four modes, against differences of the fourth order."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda a: torch.randn(a.shape, generator=generator, dtype=a.dtype)  # noqa: E731
    changes = [normal(a) for a in arguments] if changes is None else changes
    g = _along(f, arguments, changes, normal(f(*arguments)))
    zero = torch.zeros((), dtype=torch.float64)
    h = 2e-3

    def reverse(s):
        s = s.detach().requires_grad_()
        return torch.autograd.grad(g(s), s)[0]

    differences = [
        (8 * (k(zero + h) - k(zero - h)) - (k(zero + 2 * h) - k(zero - 2 * h))) / (12 * h) for k in (g, reverse)
    ]
    scale = 1 + float(differences[1].abs())
    one = zero.clone().requires_grad_()
    (first,) = torch.autograd.grad(g(one), one, create_graph=True)
    (second,) = torch.autograd.grad(first, one) if first.requires_grad else (zero,)
    forward = lambda s: torch.func.jvp(g, (s,), (torch.ones_like(s),))[1]  # noqa: E731
    found = {
        "first, reverse": (first.detach(), differences[0]),
        "first, forward": (forward(zero), differences[0]),
        "second, reverse twice": (second, differences[1]),
        "second, reverse of forward": (torch.func.grad(forward)(zero), differences[1]),
        "second, forward of reverse": (torch.func.jvp(torch.func.grad(g), (zero,), (zero + 1,))[1], differences[1]),
    }
    for what, (got, wanted) in found.items():
        assert abs(float(got) - float(wanted)) <= rtol * scale, (what, float(got), float(wanted))


@everywhere
def test_first_and_second_derivatives_in_every_mode(name):
    manifold, (x, y) = points(name, 2, ())
    u, v = tangent(manifold, x, 1), tangent(manifold, x, 2)
    for what, (f, arguments) in maps(manifold, x, y, u, v).items():
        # along the manifold: points off it by more than rounding are refused
        small = [
            0.1 * a.abs().amax() * tangent(manifold, y if a is y else x, 5 + i, 1.0) for i, a in enumerate(arguments)
        ]
        _check_derivatives(f, arguments, hash(what) % 100, small)


@pytest.mark.parametrize("name", ["euclidean", "spd", *NEW])
def test_derivatives_hold_at_coincident_points_and_vectors_of_length_zero(name):
    manifold, (x,) = points(name, 1, ())
    zero = torch.zeros_like(x)
    v = tangent(manifold, x, 2)
    for i, (f, arguments) in enumerate(
        [
            (manifold.squared_dist, (x, x.clone())),
            (manifold.log, (x, x.clone())),
            (manifold.exp, (x, zero)),
            (manifold.transport, (x, x.clone(), v)),
            (lambda a, b: manifold.geodesic(a, b, 0.3), (x, x.clone())),
        ]
    ):
        _check_derivatives(f, arguments, i, [tangent(manifold, x, 5 + i + 7 * k, 0.3) for k in range(len(arguments))])


@pytest.mark.parametrize("name", ["spd", "log_euclidean", "rotations", "rotations_4", "motions"])
def test_derivatives_hold_where_eigenvalues_are_equal(name):
    manifold, (x,) = points(name, 1, ())
    one = torch.eye(x.shape[-1], dtype=x.dtype)
    y = one if name[-1] == "s" or "4" in name else 3 * one
    cases = maps(manifold, one, y, tangent(manifold, one, 1), tangent(manifold, one, 2))
    for i, what in enumerate(("squared_dist", "exp", "log", "transport", "geodesic", "retraction")):
        f, arguments = cases[what]
        _check_derivatives(f, arguments, i, [tangent(manifold, one, 9 + i + k, 0.3) for k in range(len(arguments))])


def test_projections_of_symmetric_matrices_have_second_derivatives_and_log_no_fourth():
    x = torch.diag(torch.tensor([2.0, 2.0, -1.0], dtype=torch.float64))
    _check_derivatives(SPD().projection, (x,), 0)
    f = lambda s: SPD().log(torch.eye(2, dtype=s.dtype), (2 + s) * torch.eye(2, dtype=s.dtype))[0, 0]  # noqa: E731
    zero = torch.zeros((), dtype=torch.float64)
    for order in range(4):
        assert math.isclose(float(f(zero)), [math.log(2), 1 / 2, -1 / 4, 1 / 4][order], rel_tol=1e-12)
        f = torch.func.grad(f)
    with pytest.raises(GeometryError, match="no derivatives of order 4"):
        f(zero)


@everywhere
def test_the_riemannian_gradient_pairs_with_every_vector_as_the_ambient_one(name):
    manifold, (x,) = points(name, 1)
    axes = tuple(range(1, x.ndim))
    ambient = torch.randn_like(x)
    gradient = manifold.egrad2rgrad(x, ambient)
    assert manifold.is_tangent(x, gradient, 1e-10).all()
    for seed in range(3):
        v = tangent(manifold, x, seed, 1.0)
        torch.testing.assert_close(manifold.inner(x, gradient, v), (ambient * v).sum(axes), rtol=1e-9, atol=1e-10)


@everywhere
def test_retractions_stay_on_the_manifold_and_agree_with_exp_to_the_first_order(name):
    manifold, (x,) = points(name, 1)
    v = tangent(manifold, x, 3, 1.0)
    assert manifold.belongs(manifold.retraction(x, v), 1e-9).all()
    errors = [float((manifold.retraction(x, t * v) - manifold.exp(x, t * v)).abs().max()) for t in (1e-2, 1e-3)]
    assert errors[1] <= max(errors[0] / 80, 1e-14)
    assert torch.equal(manifold.retraction(x, 0 * v), x) or errors[0] < 1e-3
    torch.testing.assert_close(manifold.retraction(x, 0 * v), x, rtol=1e-12, atol=1e-12)


@everywhere
def test_squared_distances_are_squares(name):
    manifold, (x, y) = points(name, 2)
    torch.testing.assert_close(manifold.squared_dist(x, y), manifold.dist(x, y).square(), rtol=1e-8, atol=1e-10)


def test_graphs_that_differentiate_matrix_functions_themselves_are_never_wrong_in_silence():
    x, y = (torch.eye(2, dtype=torch.float64) * s for s in (1.0, 3.0))
    f = lambda a: SPD().log(a, y).square().sum()  # noqa: E731
    torch._dynamo.reset()
    forward = torch.compile(lambda a: torch.func.jvp(f, (a,), (a,))[1], fullgraph=True, backend="eager")
    assert forward(x).isnan()
    torch._dynamo.reset()
    with pytest.raises(Exception, match="fake tensor"):
        torch.compile(torch.func.grad(f), fullgraph=True, backend="eager")(x)
    torch._dynamo.reset()
    batched = torch.compile(torch.func.vmap(f), fullgraph=True, backend="eager")
    torch.testing.assert_close(batched(x[None]), f(x)[None])
