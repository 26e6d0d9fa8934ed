"""Trigonometry of constant curvature κ: functions of a length t that are analytic in κ, through 0.

tan_κ(t) = tan(√κ t)/√κ for κ > 0, t for κ = 0, tanh(√−κ t)/√−κ for κ < 0, and so sin_κ, their inverses, and cos_κ. Each
is t (cos_κ: 1) times a power series in z = κt²; within |z| < 0.04, or 1e-4 for κ that is a number and needs no slope,
the series is summed, so that values and derivatives in κ are right where √κ has none. Sources: Bachmann, Bécigneul,
Ganea, "Constant curvature graph convolutional networks", 2020, section 3; Skopek, Ganea, Bécigneul, "Mixed-curvature
variational autoencoders", 2020, appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aatc.geometry.manifold import Scalar, dot, length

_NEAR = 0.04
_NEAR_OF_NUMBER = 1e-4  # four terms leave less than 1e-16, as `quotient` does
_TERMS = 13  # 0.04¹³ is 7e-19, and the derivative of the first term left out 2e-16


def _quotient(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    """The series of a quotient of two series, below[0] = 1."""
    out: list[float] = []
    for n, a in enumerate(above):
        out.append(a - sum(out[m] * below[n - m] for m in range(n)))
    return tuple(out)


_SIN = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(_TERMS))
_COS = tuple((-1) ** n / math.factorial(2 * n) for n in range(_TERMS))
_ASIN = tuple(math.comb(2 * n, n) / (4**n * (2 * n + 1)) for n in range(_TERMS))
_ATAN = tuple((-1) ** n / (2 * n + 1) for n in range(_TERMS))


def _near(kappa: Scalar) -> float:
    """The largest |z| of which the series is summed: what has no derivative in κ needs it for that in t alone."""
    return _NEAR if isinstance(kappa, Tensor) else _NEAR_OF_NUMBER


class Ratio(NamedTuple):
    """A series in κt² with its closed forms in a = √|κ| t: of the sphere and of hyperbolic space."""

    series: Sequence[float]
    round: Callable[[Tensor], Tensor]
    hyperbolic: Callable[[Tensor], Tensor]

    def __call__(self, kappa: Scalar, t: Tensor) -> Tensor:
        """At lengths ``t``."""
        square = kappa * t * t
        small = square.abs() < _near(kappa)
        return self._at(kappa, small, torch.where(small, square, torch.zeros_like(square)), t)

    def of_square(self, kappa: Scalar, square: Tensor) -> Tensor:
        """At t² = ``square``: smooth in what the square is made of, where t has no second derivative at 0."""
        z = kappa * square
        small = z.abs() < _near(kappa)
        t = torch.where(small, torch.full_like(square, 0.25), square).sqrt()
        return self._at(kappa, small, torch.where(small, z, torch.zeros_like(z)), t)

    def radial(self, kappa: Scalar, v: Tensor) -> Tensor:
        """`of_square` of |v|² over the last axis, which is kept with size 1; the square of a large |v| need not be a
        number."""
        with torch.no_grad():
            size = length(v)
            small = (kappa * size * size).abs() < _near(kappa)
        near = torch.where(small, v, torch.zeros_like(v))
        far = torch.where(small, torch.full_like(v, 0.5 / v.shape[-1] ** 0.5), v)
        return self._at(kappa, small, kappa * dot(near, near), length(far))

    def _at(self, kappa: Scalar, small: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The series of z where ``small``, else a closed form at t. A number of known sign evaluates its own form
        alone; a tensor both, and the other one at a harmless place."""
        half = torch.full_like(z, 0.5)
        if isinstance(kappa, Tensor):
            size = torch.where(kappa == 0, torch.ones_like(kappa), kappa).abs().sqrt()
            up = kappa > 0
            far = torch.where(
                up,
                self.round(torch.where(~small & up, size * t, half)),
                self.hyperbolic(torch.where(~small & ~up, size * t, half)),
            )
        else:
            form = self.round if kappa > 0 else self.hyperbolic
            far = form(torch.where(small, half, math.sqrt(abs(kappa)) * t))
        return torch.where(small, self._sum(z, _TERMS if isinstance(kappa, Tensor) else 4), far)

    def _sum(self, z: Tensor, terms: int) -> Tensor:
        total = z * self.series[terms - 1]
        for c in reversed(self.series[1 : terms - 1]):
            total = (total + c) * z
        return total + self.series[0]


#: sin_κ(t)/t
SIN = Ratio(_SIN, lambda a: a.sin() / a, lambda a: a.sinh() / a)
#: cos_κ(t)
COS = Ratio(_COS, lambda a: a.cos(), lambda a: a.cosh())
#: tan_κ(t)/t
TAN = Ratio(_quotient(_SIN, _COS), lambda a: a.tan() / a, lambda a: a.tanh() / a)
#: arcsin_κ(t)/t, κt² ≤ 1
ARCSIN = Ratio(_ASIN, lambda a: a.clamp(-1, 1).asin() / a, lambda a: a.asinh() / a)
#: arctan_κ(t)/t, κt² > −1
ARCTAN = Ratio(_ATAN, lambda a: a.atan() / a, lambda a: a.atanh() / a)
