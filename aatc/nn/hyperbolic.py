"""Linear layers and logistic regression in the Poincaré ball."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from aatc.errors import ShapeError
from aatc.geometry import PoincareBall


class HyperbolicLogistic(nn.Module):
    """Multinomial logistic regression on `PoincareBall`: logits are signed distances to hyperplanes, weighed.

    v_k(x) = 2|z_k|/√c asinh(λ√c⟨x, ẑ_k⟩ cosh 2√c r_k − (λ − 1) sinh 2√c r_k), λ = 2/(1 − c|x|²): 2|z_k| times the
    distance of x to the hyperplane through exp₀(r_k ẑ_k) that is orthogonal to ẑ_k there. As c → 0 it is 4⟨x, z_k⟩ −
    4 r_k|z_k|. Points (..., in_features) to logits (..., out_features), for ``cross_entropy``.

    ``weight`` (out_features, in_features) holds the z_k, ``bias`` (out_features,) the r_k in half the unit of dist.
    Source: R. Shimizu, Y. Mukuta, T. Harada, "Hyperbolic neural networks++", 2021; O. Ganea, G. Bécigneul, T. Hofmann,
    "Hyperbolic neural networks", 2018. Raises ShapeError when made or called with sizes that do not fit.
    """

    def __init__(self, in_features: int, out_features: int, *, c: float = 1.0, bias: bool = True) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ShapeError(f"sizes {in_features} and {out_features}", hint="give at least one feature in and out")
        self.in_features, self.out_features = in_features, out_features
        self.ball = PoincareBall(c)
        # points of the ball are about a unit apart, and logits are 4⟨x, z⟩
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / (4 * math.sqrt(in_features)))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, c={self.ball.c}, bias={bias}"

    def logits(self, x: Tensor) -> Tensor:
        """v_k(x), (..., in_features) to (..., out_features)."""
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ShapeError(
                f"points of shape {tuple(x.shape)} for {self.in_features} features",
                hint=f"points of the ball are (..., {self.in_features})",
            )
        root, factor = self.ball.c**0.5, 2 / self.ball._gap(x)
        size = torch.linalg.vector_norm(self.weight, dim=-1).clamp_min(torch.finfo(self.weight.dtype).tiny)
        along = root * factor * nn.functional.linear(x, self.weight / size[:, None])
        if self.bias is not None:
            shift = 2 * root * self.bias
            along = along * shift.cosh() - (factor - 1) * shift.sinh()
        logits: Tensor = 2 * size / root * along.asinh()
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Points of the ball (..., in_features) to logits (..., out_features). Raises ShapeError."""
        return self.logits(x)


class HyperbolicLinear(HyperbolicLogistic):
    """A linear layer between balls: the point whose signed distance to each coordinate hyperplane is v_k(x).

    With v_k as in `HyperbolicLogistic` and w_k = sinh(√c v_k)/√c, y = w/(1 + √(1 + c|w|²)). Points (..., in_features)
    to points (..., out_features) of the same curvature; as c → 0 it is an affine map. Source: as there, section 3.2.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Points of the ball (..., in_features) to points (..., out_features). Raises ShapeError."""
        c = self.ball.c
        # beyond 30 √c y is 1 within rounding of double precision, and sinh overflows single precision near 89
        spread = (c**0.5 * self.logits(x)).clamp(-30, 30).sinh() / c**0.5
        whole = (1 + c * spread.square().sum(-1, keepdim=True)).sqrt()
        return self.ball.projection(spread / (1 + whole))
