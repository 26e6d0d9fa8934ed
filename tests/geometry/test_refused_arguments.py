"""Every public name with what it cannot use: a typed error. Empty batches and mixed dtypes where they are of use."""

import inspect
import math

import pytest
import torch

import aatc.geometry as geometry
from aatc.errors import AatcError
from aatc.geometry import (
    FiberBundle,
    GeometryError,
    Grassmann,
    Hyperboloid,
    Manifold,
    PoincareBall,
    PointShapeError,
    Product,
    SpecialEuclidean,
    Sphere,
    curve_length,
    einstein_midpoint,
    frechet_mean,
    gyromidpoint,
    klein_from_poincare,
    lorentz_centroid,
    poincare_from_klein,
    tangent_mean,
    transport_along,
)
from tests.geometry.every_manifold import everywhere, maps, points, tangent

WRONG = {
    "none": None,
    "text": "a",
    "list": [1.0, 2.0],
    "number": 1.5,
    "negative": -1,
    "zero": 0,
    "integers": torch.tensor([1, 2, 3]),
    "nan": torch.full((3,), math.nan),
    "complex": torch.zeros(2, 3, dtype=torch.complex64),
    "empty": torch.zeros(0, 3),
    "object": object(),
}


def public():
    """Functions and classes that are called with something."""
    for name in geometry.__all__:
        one = getattr(geometry, name)
        if inspect.isclass(one) and issubclass(one, Exception):
            continue
        parameters = inspect.signature(one).parameters.values()
        needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
        if len(needed) == len([p for p in parameters if p.default is p.empty]) and needed:
            yield name, one, needed


@pytest.mark.parametrize("wrong", WRONG)
def test_no_public_name_fails_untyped(wrong):
    reached = 0
    for name, one, needed in public():
        try:
            one(**dict.fromkeys(needed, WRONG[wrong]))
        except (GeometryError, AatcError, ValueError):
            reached += 1
        except Exception as error:
            pytest.fail(f"{name}({wrong}): {type(error).__name__}: {error}")
    assert reached > 20


BAD = {
    "list": lambda t: t.tolist(),
    "none": lambda t: None,
    "integers": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex128),
    "no axes": lambda t: t.sum(),
    "wrong size": lambda t: t[..., :-1],
}


@everywhere
def test_maps_of_every_manifold_refuse_what_is_no_point(name):
    manifold, (x, y) = points(name, 2, (2,))
    cases = maps(manifold, x, y, tangent(manifold, x, 1), tangent(manifold, x, 2))
    for what, (f, arguments) in cases.items():
        for place in range(len(arguments)):
            for kind, make in BAD.items():
                if kind == "wrong size" and len(arguments) == 1:
                    continue  # another point, perhaps
                given = list(arguments)
                given[place] = make(given[place])
                with pytest.raises(PointShapeError):
                    f(*given)
                    pytest.fail(f"{what}: {kind} at {place} was taken")
    for call in (manifold.belongs, lambda v: manifold.is_tangent(x, v)):
        with pytest.raises(PointShapeError):
            call([1.0])
    for time in (None, "a", object(), [1.0, None]):
        with pytest.raises(GeometryError):
            manifold.geodesic(x, y, time)
    for atol in ("a", math.nan, [1.0]):
        with pytest.raises(GeometryError):
            manifold.belongs(x, atol)
    for shape in (None, "ab", (2.5,), (-1, 3)):
        with pytest.raises(GeometryError):
            manifold.random_point(shape)


@everywhere
def test_maps_of_empty_batches_are_empty_and_mixed_dtypes_are_promoted(name):
    manifold, (x, y) = points(name, 2, (2,))
    cases = maps(manifold, x, y, tangent(manifold, x, 1), tangent(manifold, x, 2))
    for what, (f, arguments) in cases.items():
        assert f(*(a[:0] for a in arguments)).shape[0] == 0, what
        if len(arguments) > 1:
            assert f(arguments[0].float(), *arguments[1:]).dtype == torch.float64, what
    assert manifold.belongs(x[:0]).shape == (0,) and manifold.is_tangent(x[:0], x[:0]).shape == (0,)
    assert frechet_mean(manifold, x[:0, None]).point.shape == x[:0].shape


MEANS = [gyromidpoint, einstein_midpoint, klein_from_poincare, poincare_from_klein, lorentz_centroid]


@pytest.mark.parametrize("mean", [*MEANS, lambda p: tangent_mean(Sphere(), p), lambda p: frechet_mean(Sphere(), p)])
def test_means_refuse_what_are_no_points(mean):
    for wrong in (
        [[0.0, 0.1]],
        None,
        1.0,
        torch.zeros(3, 3, dtype=torch.long),
        torch.zeros(()),
        torch.full((2, 3), math.nan),
    ):
        with pytest.raises(GeometryError):
            mean(wrong)


def test_arguments_of_means_that_are_none_of_theirs():
    x = 0.1 * torch.ones(3, 2)
    for call in (
        lambda: gyromidpoint(x, [1.0, 1.0, 1.0]),
        lambda: frechet_mean(None, x),
        lambda: frechet_mean(PoincareBall(), x, "a"),
        lambda: frechet_mean(PoincareBall(), x, tolerance="a"),
        lambda: frechet_mean(PoincareBall(), x, tolerance=-1.0),
        lambda: frechet_mean(PoincareBall(), x, max_iterations=1.5),
        lambda: tangent_mean(PoincareBall(), x, base=[0.0, 0.0]),
        lambda: tangent_mean(PoincareBall(), x, base=torch.zeros(3)),
        lambda: tangent_mean("ball", x),
    ):
        with pytest.raises(GeometryError):
            call()
    assert gyromidpoint(x, torch.ones(3, dtype=torch.float64)).dtype == torch.float64


def test_curves_refuse_points_off_the_manifold_and_vectors_of_nan():
    curve = torch.eye(3)
    for bad in (2 * curve, math.nan * curve):
        for call in (lambda c=bad: transport_along(Sphere(), c[:1], curve[0]), lambda c=bad: curve_length(Sphere(), c)):
            with pytest.raises(GeometryError):
                call()
    with pytest.raises(GeometryError, match="NaN"):
        transport_along(Sphere(), curve[:1], math.nan * curve[0])
    with pytest.raises(PointShapeError, match="Tensor"):
        transport_along(Sphere(), curve.tolist(), curve[0])
    with pytest.raises(PointShapeError, match="Manifold"):
        curve_length("sphere", curve)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Grassmann("a"),
        lambda: Grassmann(1.5),
        lambda: SpecialEuclidean("a"),
        lambda: SpecialEuclidean(None),
        lambda: Product([Sphere()]),
        lambda: Product([(Sphere(), 3)]),
        lambda: Product([("sphere", (3,))]),
        lambda: Product([(Sphere(), (2.5,))]),
        lambda: Product(7),
        lambda: Sphere("a"),
        lambda: Hyperboloid([1.0]),
        lambda: FiberBundle.monopole(1).chern_number(1.5),
        lambda: FiberBundle.monopole(1).chern_number("a"),
    ],
)
def test_constructors_refuse_what_is_no_number(call):
    with pytest.raises(GeometryError):
        call()


def test_a_manifold_of_ones_own_is_checked_as_the_others_are():
    class Line(Manifold):
        def _exp(self, x, v):
            return x + v

    with pytest.raises(PointShapeError, match="tensors, got list"):
        Line().exp([1.0], torch.ones(1))
