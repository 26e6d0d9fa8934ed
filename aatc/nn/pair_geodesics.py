"""Shortest paths from keys to queries in the space of a metric, for all pairs: for looking at, in N·M memory per time.

Sources: the closed forms of `aatc.geometry`; a metric's points are brought to its manifold as its docstring says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aatc import geometry, metrics
from aatc.connections import Connection
from aatc.errors import ScoreError, ShapeError
from aatc.ir.reference import compute_dtype
from aatc.metrics import Metric
from aatc.nn.pairs import carried_keys

_FLAT = (metrics.Euclidean, metrics.Mahalanobis)
_LORENTZ = (metrics.LorentzDistance, metrics.LorentzInner)
_ROUND = (metrics.SphereGeodesic, metrics.Cosine)


def pair_geodesics(q: Tensor, k: Tensor, metric: Metric, connection: Connection | None, steps: int) -> Tensor:
    """Points (T, B, H, N, M, D) at the T = ``steps`` + 1 equal times from the carried key at 0 to the query at 1.

    ``q`` (B, H, N, D), ``k`` (B, H, M, D) as the metric takes them; float32 for half precision. Points are those of
    the manifold: for Lorentz metrics with the time coordinate first, for spherical ones of length 1, for "fisher-rao"
    probabilities. Raises ScoreError for metrics without geodesics, ShapeError for steps, and `CutLocusError` between
    antipodes.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ShapeError(f"steps is {steps!r}", hint="a path has an integer number of steps, at least one")
    q, k = metric.prepare(q, k)
    dtype = compute_dtype(q.dtype)
    start = carried_keys(q, k, connection).to(dtype)
    end = q.to(dtype).unsqueeze(-2).expand(start.shape)
    t = torch.linspace(0, 1, steps + 1, dtype=dtype, device=q.device).reshape(-1, 1, 1, 1, 1)
    if isinstance(metric, _FLAT):
        return torch.lerp(start, end, t.unsqueeze(-1))
    if isinstance(metric, _ROUND):
        one, other = (torch.nn.functional.normalize(x, dim=-1) for x in (start, end))
        return geometry.Sphere().geodesic(one, other, t)
    if isinstance(metric, metrics.FisherRao):
        return geometry.Simplex().geodesic(start, end, t)
    if isinstance(metric, metrics.Poincare):
        root = _root(metric, start)
        return geometry.PoincareBall().geodesic(root * start, root * end, t) / root
    if isinstance(metric, _LORENTZ):
        return _lorentz(metric, start, end, t)
    raise ScoreError(
        f"{type(metric).__name__} has no geodesics: it is no distance of a known space",
        hint=f"take one of {', '.join(c.__name__ for c in (*_FLAT, *_ROUND, metrics.FisherRao, metrics.Poincare))}, "
        "LorentzDistance",
    )


def _lorentz(metric: Metric, start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """On the hyperboloid of curvature -c, as that of curvature -1 with points √c times as long."""
    root = _root(metric, start)
    one, other = root * start, root * end
    if getattr(metric, "lift", False):
        one, other = (torch.cat(((1 + x.square().sum(-1, keepdim=True)).sqrt(), x), -1) for x in (one, other))
    return geometry.Hyperboloid().geodesic(one, other, t) / root


def _root(metric: Metric, points: Tensor) -> Tensor:
    """√c of a metric of curvature -c, one or one per head: points √c times as long are those of curvature -1."""
    curvature = torch.as_tensor(getattr(metric, "curvature", 1.0), dtype=points.dtype, device=points.device)
    return curvature.sqrt().reshape(-1, 1, 1, 1)
