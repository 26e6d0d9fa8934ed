"""Linear layers and logistic regression in the Poincaré ball."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor, nn

from aatc.errors import ShapeError
from aatc.geometry import PoincareBall
from aatc.geometry.manifold import of, shown
from aatc.geometry.manifolds.stereographic import wide


class HyperbolicLogistic(nn.Module):
    """Multinomial logistic regression on `PoincareBall`: logits are signed distances to hyperplanes, weighed.

    v_k(x) = 2|z_k|/√c asinh(λ√c⟨x, ẑ_k⟩ cosh 2√c r_k − (λ − 1) sinh 2√c r_k), λ = 2/(1 − c|x|²): 2|z_k| times the
    distance of x to the hyperplane through exp₀(r_k ẑ_k) that is orthogonal to ẑ_k there. As c → 0 it is 4⟨x, z_k⟩ −
    4 r_k|z_k|. Points (..., in_features) to logits (..., out_features), for ``cross_entropy``.

    ``c`` is a number, or a tensor of one entry: a parameter learns. ``weight`` (out_features, in_features) holds the
    z_k, ``bias`` (out_features,) the r_k in half the unit of dist.
    Source: R. Shimizu, Y. Mukuta, T. Harada, "Hyperbolic neural networks++", 2021; O. Ganea, G. Bécigneul, T. Hofmann,
    "Hyperbolic neural networks", 2018. The formula is evaluated in double precision, without its hyperbolic
    functions of the bias, and rounded.

    Raises: ShapeError when made or called with sizes that do not fit; GeometryError for c out of its range;
    PointShapeError for points that are integers; in eager mode NotOnManifoldError for points outside the ball, and NaN.
    """

    c: float | Tensor

    def __init__(self, in_features: int, out_features: int, *, c: float | Tensor = 1.0, bias: bool = True) -> None:
        super().__init__()
        try:
            self.in_features, self.out_features = operator.index(in_features), operator.index(out_features)
        except TypeError as error:
            raise ShapeError(f"sizes {in_features!r} and {out_features!r}", hint="sizes are integers") from error
        if self.in_features < 1 or self.out_features < 1:
            raise ShapeError(f"sizes {in_features} and {out_features}", hint="give at least one feature in and out")
        kept = PoincareBall(c).c
        if isinstance(kept, Tensor) and not isinstance(kept, nn.Parameter):
            self.register_buffer("c", kept)
        else:
            self.c = kept
        # points of the ball are about a unit apart, and logits are 4⟨x, z⟩
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / (4 * math.sqrt(in_features)))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @property
    def ball(self) -> PoincareBall:
        """Of the curvature as it is now."""
        return PoincareBall(self.c)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, c={shown(self.c)}, bias={bias}"

    def logits(self, x: Tensor) -> Tensor:
        """v_k(x), (..., in_features) to (..., out_features)."""
        return self._logits(x).to(torch.promote_types(x.dtype, self.weight.dtype))

    def _logits(self, x: Tensor) -> Tensor:
        """v_k(x) in double precision, as 2|z_k|/√c asinh(m sinh(t − 2√c r_k)): t is the distance of x to the hyperplane
        through 0, and log m that to the axis of ẑ_k, so that no exponential of a large bias meets another one."""
        if not isinstance(x, Tensor) or x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ShapeError(
                f"points of shape {tuple(x.shape)} for {self.in_features} features"
                if isinstance(x, Tensor)
                else f"points are a tensor, got {type(x).__name__}",
                hint=f"points of the ball are (..., {self.in_features})",
            )
        ball = self.ball
        ball._check(x)
        ball._check_values((x,))
        x, weight = wide(x), wide(self.weight)
        c = of(ball.c, x)
        root, factor = c**0.5, 2 / ball._gap(x)
        size = torch.linalg.vector_norm(weight, dim=-1).clamp_min(torch.finfo(self.weight.dtype).tiny)
        along = nn.functional.linear(x, weight / size[:, None])
        across = (x.square().sum(-1, keepdim=True) - along.square()).clamp_min(0)
        m = (1 + c * factor.square() * across).sqrt()
        t = (root * factor * along / m).asinh()
        if self.bias is not None:
            t = t - 2 * root * wide(self.bias)
        far = t.abs() > 20  # where asinh(m sinh t) is t + log m within rounding
        near = (m * torch.where(far, torch.zeros_like(t), t).sinh()).asinh()
        logits: Tensor = 2 * size / root * torch.where(far, t + t.sign() * m.log(), near)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Points of the ball (..., in_features) to logits (..., out_features). Raises: as the class."""
        return self.logits(x)


class HyperbolicLinear(HyperbolicLogistic):
    """A linear layer between balls: the point whose signed distance to each coordinate hyperplane is v_k(x).

    With v_k as in `HyperbolicLogistic` and w_k = sinh(√c v_k)/√c, y = w/(1 + √(1 + c|w|²)). Points (..., in_features)
    to points (..., out_features) of the same curvature; as c → 0 it is an affine map. Source: as there, section 3.2.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Points of the ball (..., in_features) to points (..., out_features). Raises: as `HyperbolicLogistic`."""
        signed = self._logits(x)
        ball = self.ball
        root = of(ball.c, signed) ** 0.5
        signed = root * signed
        # all of it divided by e to the largest of them, on which y does not depend
        size, most = signed.abs(), signed.detach().abs().amax(-1, keepdim=True)
        near = size < 1  # where |v| has no slope at 0
        far = signed.sign() * ((size - most).exp() - (-size - most).exp()) / 2
        spread = torch.where(near, torch.where(near, signed, torch.zeros_like(signed)).sinh() * (-most).exp(), far)
        whole = ((-2 * most).exp() + spread.square().sum(-1, keepdim=True)).sqrt()
        y = spread / (root * ((-most).exp() + whole))
        return ball.projection(y.to(torch.promote_types(x.dtype, self.weight.dtype)))
