"""Bundles, connections and paths that the tests of bundles share."""

import math

import torch
from hypothesis import settings

from aatc.geometry import Hyperboloid, Sphere
from aatc.geometry.bundles.bundle import FiberBundle

F64 = torch.float64
SPHERE, PLANE = Sphere(), Hyperboloid()
TANGENT, TANGENT3, HYPERBOLIC = (
    FiberBundle.tangent(SPHERE, 2),
    FiberBundle.tangent(SPHERE, 3),
    FiberBundle.tangent(PLANE, 2),
)
MONOPOLE = FiberBundle.monopole(3)
MOEBIUS = FiberBundle.moebius()
few = settings(max_examples=3)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randn(seed, *shape):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def points_of(bundle, seed, *batch):
    return bundle.base.random_point((*batch, bundle.dimension), generator(seed), dtype=F64)


def polynomial_form(seed, dimension, rank, skew=True):
    """A connection on Rⁿ that is quadratic in the point."""
    a, b, c = (0.4 * randn(seed + k, *[dimension] * (k + 1), rank, rank) for k in range(3))
    if skew:
        a, b, c = (z - z.mT for z in (a, b, c))

    def form(x):
        return a + torch.einsum("...i,ijkl->...jkl", x, b) + torch.einsum("...h,...i,hijkl->...jkl", x, x, c)

    return form


def curve(seed, dimension):
    """An analytic path in Rⁿ."""
    a, b = randn(seed, dimension), randn(seed + 1, dimension)
    return lambda t: a * torch.sin(2 * t).unsqueeze(-1) + b * torch.cos(3 * t).unsqueeze(-1)


def circle_of_latitude(height, turns=1):
    side = math.sqrt(1 - height * height)

    def path(t):
        angle = 2 * math.pi * turns * t + 0.3
        return torch.stack([side * angle.cos(), side * angle.sin(), torch.full_like(t, height)], -1)

    return path


def flat_form(gauge):
    """A = g⁻¹dg of a gauge (..., n) → (..., r, r)."""

    def form(x):
        slopes = [torch.func.jvp(gauge, (x,), (e.expand_as(x),))[1] for e in torch.eye(x.shape[-1], dtype=x.dtype)]
        return torch.linalg.solve(gauge(x).unsqueeze(-3), torch.stack(slopes, -3))

    return form
