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
from aatc.parts import curvature as checked_curvature


class LearnedMetric(nn.Module):
    """A metric of ``num_heads`` heads over features of width ``width``; ``log_beta`` (H,) is learned.

    ``transported``: points are those of the ambient space of ``transport``, whose tangent vectors are values.
    ``turns`` says whether rotations of the features are isometries of the points.
    """

    # Fresh features lie less than a unit apart: a temperature near one would average them all.
    initial_beta: ClassVar[float] = 4.0
    turns: ClassVar[bool] = True
    transport: ClassVar[type[Connection] | None] = None
    #: Which sectional curvatures the space may have: "negative", "any", or None where it is no parameter.
    curved: ClassVar[str | None] = None

    def __init__(self, num_heads: int, width: int, transported: bool = False, curvature: float | None = None) -> None:
        super().__init__()
        self.width, self.transported = width, transported
        self.log_beta = nn.Parameter(torch.full((num_heads,), math.log(self.initial_beta)))
        if self.curved == "any":
            self.curvature = nn.Parameter(torch.full((num_heads,), 0.0 if curvature is None else curvature))
        self._bends = self.curved == "negative" and curvature is not None
        if self._bends and curvature is not None:
            self.log_curvature = nn.Parameter(torch.full((num_heads,), math.log(-curvature)))

    def magnitude(self) -> Tensor | float:
        """c of the curvature -c: learned, (H,), or 1."""
        return self.log_curvature.exp() if self._bends else 1.0

    def _for_features(self) -> Tensor | float:
        """`magnitude` for features (B, H, N, d)."""
        c = self.magnitude()
        return c[:, None, None] if isinstance(c, Tensor) else c

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
    """-β d on the hyperboloid of curvature -c, features being the spatial coordinates; c is 1, or learned per head as
    ``log_curvature`` (H,).

    Transported values are written in the axes of the origin o = (1/√c, 0): they are carried to their key along the
    geodesic from o, from there to the query, and back to o.
    """

    transport = HyperboloidTransport
    curved = "negative"

    def project(self, x: Tensor) -> Tensor:
        if not self.transported:
            return x
        return torch.cat(((1 / self._for_features() + x.square().sum(-1, keepdim=True)).sqrt(), x), -1)

    def metric(self) -> Metric:
        return metrics.LorentzDistance(lift=not self.transported, curvature=self.magnitude())

    def transport_connection(self) -> Connection:
        return HyperboloidTransport(self.magnitude())

    def attach(self, points: Tensor, v: Tensor) -> Tensor:
        # o to y: v + c<y, v>/(1 - c<o, y>) (o + y), where <o, y> = -y_0/√c and v_0 = 0
        root = self._for_features() ** 0.5
        along = root * (points[..., 1:] * v).sum(-1, keepdim=True)
        return torch.cat((along, v + root * along / (1 + root * points[..., :1]) * points[..., 1:]), -1)

    def detach_values(self, points: Tensor, v: Tensor) -> Tensor:
        root = self._for_features() ** 0.5
        return v[..., 1:] - root * v[..., :1] / (1 + root * points[..., :1]) * points[..., 1:]


class Poincare(LearnedMetric):
    """-β d in the ball of curvature -c: the hyperboloid's points, x/(1 + √(1 + c|x|²)), seen from (-1/√c, 0); c is 1,
    or learned per head as ``log_curvature`` (H,)."""

    curved = "negative"

    def project(self, x: Tensor) -> Tensor:
        return x / (1 + (1 + self._for_features() * x.square().sum(-1, keepdim=True)).sqrt())

    def metric(self) -> Metric:
        return metrics.Poincare(curvature=self.magnitude())


class Stereographic(LearnedMetric):
    """-β d in the space of ``curvature`` κ (H,), learned per head, its sign included; 0, which is flat, at first.
    Features are tangent vectors at the origin: see `aatc.metrics.Stereographic`."""

    curved = "any"

    def metric(self) -> Metric:
        return metrics.Stereographic(curvature=self.curvature, lift=True)


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
    "stereographic": Stereographic,
}


def learned_metric(
    name: str, num_heads: int, width: int, transported: bool = False, curvature: float | None = None
) -> LearnedMetric:
    """The learned metric called ``name``; ``curvature``, of a space that has one, is learned from that value on.
    ScoreError lists the names there are, and refuses a curvature that is no number or of the wrong sign."""
    if name not in METRICS:
        raise ScoreError(
            f"there is no metric {name!r}", hint=f"there are {', '.join(METRICS)}, and objects of aatc.metrics"
        )
    if curvature is None:
        return METRICS[name](num_heads, width, transported)
    kind = METRICS[name]
    if kind.curved is None:
        able = ", ".join(n for n, k in METRICS.items() if k.curved)
        raise ScoreError(f"metric {name!r} has no curvature to learn", hint=f"there is one of {able}")
    curvature = checked_curvature(curvature, positive=False)
    if isinstance(curvature, Tensor):
        raise ScoreError("the curvature is a tensor", hint="give the number that learning starts from")
    if kind.curved == "negative" and not curvature < 0:
        raise ScoreError(
            f"curvature {curvature} is not negative", hint=f'{name!r} is hyperbolic; "stereographic" has any curvature'
        )
    _check_range(curvature, name, torch.get_default_dtype(), vanishes=kind.curved == "any")
    return kind(num_heads, width, transported, curvature=float(curvature))


def _check_range(curvature: float, name: str, dtype: torch.dtype, vanishes: bool) -> None:
    """ScoreError for a curvature that parameters of ``dtype`` do not hold; ``vanishes``: they may round it to 0."""
    limits = torch.finfo(dtype)
    if abs(curvature) <= limits.max and (vanishes or abs(curvature) >= limits.tiny):
        return
    least = "" if vanishes else f"at least {limits.tiny:.2g} and "
    raise ScoreError(
        f"curvature {curvature} of {name!r} leaves the range of {dtype}, in which it is learned",
        hint=f"its size is {least}at most {limits.max:.2g}: torch.set_default_dtype(torch.float64) makes modules wider",
    )
