"""Shortest paths from keys to queries in the space of a metric, for all pairs: for looking at, in N·M memory per time.

Sources: the closed forms of `aatc.geometry`; a metric's points are brought to its manifold as its docstring says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aatc import geometry, metrics
from aatc.connections import Connection
from aatc.errors import CaptureError, ScoreError, ShapeError
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
    probabilities, for "stereographic" the coordinates x of 1 + κ|x|² > 0. Raises ScoreError for metrics without
    geodesics, ShapeError for steps, CaptureError for curvatures that do not fit the heads, and `CutLocusError` between
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
    if isinstance(metric, metrics.Stereographic):
        return _stereographic(metric, start, end, t)
    if isinstance(metric, _LORENTZ):
        return _lorentz(metric, start, end, t)
    raise ScoreError(
        f"{type(metric).__name__} has no geodesics: it is no distance of a known space",
        hint=f"take one of {', '.join(c.__name__ for c in (*_FLAT, *_ROUND, metrics.FisherRao, metrics.Poincare))}, "
        "LorentzDistance, Stereographic",
    )


def _stereographic(metric: metrics.Stereographic, start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """In the coordinates of curvature κ, one or one per head: the sign, which decides the form, may differ among
    heads."""
    kappa = _curvature(metric, start)
    if kappa.numel() == 1:
        return geometry.Stereographic(kappa.reshape(())).geodesic(start, end, t)
    t = t.squeeze(2)
    heads = zip(kappa, start.unbind(1), end.unbind(1), strict=True)
    return torch.stack([geometry.Stereographic(c).geodesic(x, y, t) for c, x, y in heads], 2)


def _lorentz(metric: Metric, start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """On the hyperboloid of curvature -c, as that of curvature -1 with points √c times as long."""
    root = _root(metric, start)
    one, other = root * start, root * end
    if getattr(metric, "lift", False):
        one, other = (torch.cat(((1 + x.square().sum(-1, keepdim=True)).sqrt(), x), -1) for x in (one, other))
    return geometry.Hyperboloid().geodesic(one, other, t) / root


def _root(metric: Metric, points: Tensor) -> Tensor:
    """√c of a metric of curvature -c, one or one per head: points √c times as long are those of curvature -1."""
    return _curvature(metric, points).sqrt().reshape(-1, 1, 1, 1)


def _curvature(metric: Metric, points: Tensor) -> Tensor:
    """The metric's curvature, () or (H,), for points (B, H, N, M, D). CaptureError for any other shape."""
    given = getattr(metric, "curvature", 1.0)
    found = torch.as_tensor(given, dtype=points.dtype, device=points.device)
    if found.numel() != 1 and (found.dim() != 1 or found.shape[0] != points.shape[1]):
        raise CaptureError(
            f"curvature has shape {tuple(found.shape)} for {points.shape[1]} heads",
            hint="it is one number, or one per head: () or (H,)",
        )
    return found
