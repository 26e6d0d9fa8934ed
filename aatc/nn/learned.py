"""Metrics with parameters of their own, by name, for the modules of `aatc.nn`.

A learned metric maps features of a head to points of its space, and scores pairs of points by -β d, β > 0 learned
per head.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from aatc import metrics
from aatc.connections import Connection, HyperboloidTransport, SphereTransport
from aatc.errors import ScoreError
from aatc.metrics import Metric
from aatc.nn.fubini_study import normalised


class LearnedMetric(nn.Module):
    """A metric of ``num_heads`` heads over features of width ``width``; ``log_beta`` (H,) is learned.

    ``transported``: points are those of the ambient space of ``transport``, whose tangent vectors are values.
    ``turns`` says whether rotations of the features are isometries of the points.
    """

    # Fresh features lie less than a unit apart: a temperature near one would average them all.
    initial_beta: ClassVar[float] = 4.0
    turns: ClassVar[bool] = True
    transport: ClassVar[type[Connection] | None] = None

    def __init__(self, num_heads: int, width: int, transported: bool = False) -> None:
        super().__init__()
        self.width, self.transported = width, transported
        self.log_beta = nn.Parameter(torch.full((num_heads,), math.log(self.initial_beta)))

    def project(self, x: Tensor) -> Tensor:
        """Features (B, H, N, d) as points of the space."""
        return x

    def metric(self) -> Metric:
        """Scores -d, or -d² where the class says so."""
        raise NotImplementedError

    def scale(self) -> Tensor | None:
        """β, (H,); None for the metric's own scale."""
        return self.log_beta.exp()

    def transport_connection(self) -> Connection:
        """A new connection of the class ``transport``."""
        assert self.transport is not None
        return self.transport()

    def attach(self, points: Tensor, v: Tensor) -> Tensor:
        """Values (B, H, N, d) as vectors tangent at their points."""
        return v

    def detach_values(self, points: Tensor, v: Tensor) -> Tensor:
        """Tangent vectors at the points as values again, (B, H, N, d)."""
        return v


class Dot(LearnedMetric):
    """q·k/√d, without parameters: the baseline."""

    def __init__(self, num_heads: int, width: int, transported: bool = False) -> None:
        nn.Module.__init__(self)
        self.width, self.transported = width, transported

    def metric(self) -> Metric:
        return metrics.DotProduct()

    def scale(self) -> Tensor | None:
        return None


class Euclidean(LearnedMetric):
    """-β|q - k|²/√d."""

    initial_beta = 1.0

    def metric(self) -> Metric:
        return metrics.Euclidean()

    def scale(self) -> Tensor:
        scale: Tensor = self.log_beta.exp() * self.width**-0.5
        return scale


class Mahalanobis(LearnedMetric):
    """-|Lᵀ(q - k)|²/√d with a learned ``factor`` L, (H, d, d), the identity at first."""

    turns = False

    def __init__(self, num_heads: int, width: int, transported: bool = False) -> None:
        nn.Module.__init__(self)
        self.width, self.transported = width, transported
        self.factor = nn.Parameter(torch.eye(width).repeat(num_heads, 1, 1))

    def metric(self) -> Metric:
        return metrics.Mahalanobis(factor=self.factor)

    def scale(self) -> Tensor | None:
        return None


class Lorentz(LearnedMetric):
    """-β d on the hyperboloid of curvature -1, features being the spatial coordinates.

    Transported values are written in the axes of the origin o = (1, 0): they are carried to their key along the
    geodesic from o, from there to the query, and back to o.
    """

    transport = HyperboloidTransport

    def project(self, x: Tensor) -> Tensor:
        if not self.transported:
            return x
        return torch.cat(((1 + x.square().sum(-1, keepdim=True)).sqrt(), x), -1)

    def metric(self) -> Metric:
        return metrics.LorentzDistance(lift=not self.transported)

    def attach(self, points: Tensor, v: Tensor) -> Tensor:
        # o to y: v + <y, v>/(1 - <o, y>) (o + y), where <o, y> = -y_0 and v_0 = 0
        along = (points[..., 1:] * v).sum(-1, keepdim=True)
        return torch.cat((along, v + along / (1 + points[..., :1]) * points[..., 1:]), -1)

    def detach_values(self, points: Tensor, v: Tensor) -> Tensor:
        return v[..., 1:] - v[..., :1] / (1 + points[..., :1]) * points[..., 1:]


class Poincare(LearnedMetric):
    """-β d in the unit ball of curvature -1: the hyperboloid's points, x/(1 + √(1 + |x|²)), seen from (-1, 0)."""

    def project(self, x: Tensor) -> Tensor:
        return x / (1 + (1 + x.square().sum(-1, keepdim=True)).sqrt())

    def metric(self) -> Metric:
        return metrics.Poincare()


class Sphere(LearnedMetric):
    """-β times the angle between features. Transported values are their parts tangent to the sphere."""

    transport = SphereTransport

    def project(self, x: Tensor) -> Tensor:
        return normalised(x)

    def metric(self) -> Metric:
        return metrics.SphereGeodesic()

    def attach(self, points: Tensor, v: Tensor) -> Tensor:
        return v - (points * v).sum(-1, keepdim=True) * points


class FisherRao(LearnedMetric):
    """-β times the Fisher-Rao distance between the softmax distributions of the features."""

    turns = False

    def metric(self) -> Metric:
        return metrics.FisherRao(logits=True)


METRICS: dict[str, type[LearnedMetric]] = {
    "dot": Dot,
    "euclidean": Euclidean,
    "fisher-rao": FisherRao,
    "lorentz": Lorentz,
    "mahalanobis": Mahalanobis,
    "poincare": Poincare,
    "sphere": Sphere,
}


def learned_metric(name: str, num_heads: int, width: int, transported: bool = False) -> LearnedMetric:
    """The learned metric called ``name``. ScoreError lists the names there are."""
    if name not in METRICS:
        raise ScoreError(
            f"there is no metric {name!r}", hint=f"there are {', '.join(METRICS)}, and objects of aatc.metrics"
        )
    return METRICS[name](num_heads, width, transported)
