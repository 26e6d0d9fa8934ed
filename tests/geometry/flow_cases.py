"""Metrics, meshes and exact solutions that the tests of flows share."""

import math
from itertools import pairwise

import torch

from aatc.geometry.flows.grid_metric import MetricGrid
from aatc.geometry.flows.invariant_family import chart_ricci

F64 = torch.float64
TURN = 2 * math.pi


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def torus(n, dim=2):
    return MetricGrid((TURN / n,) * dim)


def mesh(n, dim, length=TURN, ends=False, start=0.0):
    line = torch.linspace(start, start + length, n, dtype=F64) if ends else torch.arange(n, dtype=F64) * length / n
    return torch.stack(torch.meshgrid(*[line] * dim, indexing="ij"), -1)


def wavy(x):
    """A metric without symmetries on the torus, at a point (d)."""
    d = x.shape[-1]
    y = x.roll(1)
    bump = torch.stack([torch.sin(x + 0.3 * i) + torch.cos(y - 0.2 * i) for i in range(d)])
    return 1.5 * torch.eye(d, dtype=x.dtype) + 0.08 * (bump + bump.mT)


def sampled(metric, points):
    return torch.func.vmap(metric)(points.reshape(-1, points.shape[-1])).reshape(*points.shape, points.shape[-1])


def sampled_ricci(metric, points):
    return sampled(lambda x: chart_ricci(metric, x), points)


def rounding_torus(n, t, rate=0.8, start=0.9):
    """e^{2u} = v(x, t): an exact solution of v_t = (log v)_xx, that is of u_t = −K, with period 2π, flat as t → ∞."""
    s = rate * t + start
    v = math.sinh(s) / (rate * (math.cosh(s) + torch.cos(torch.arange(n, dtype=F64) * TURN / n)))
    return v[:, None].expand(n, n)


def conformal(factor):
    return factor[..., None, None] * torch.eye(2, dtype=F64)


def orders(errors):
    return [math.log2(a / b) for a, b in pairwise(errors)]
