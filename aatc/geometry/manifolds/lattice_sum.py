"""Gaussian moments over the integers: what a normal distribution adds up to that is wound round a circle."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from aatc.geometry.manifolds.stereographic import wide

# Above this width the sum is its asymptotic series, of which what is not summed is below 1e-15.
_WIDE = 13 / (2 * math.pi)
_TERMS = 12
_LARGEST_POWER = 39  # above it the series is its first term


def _bernoulli(most: int) -> dict[int, tuple[float, ...]]:
    """Coefficients, from the constant on, of the Bernoulli polynomials of even degree."""
    numbers = [Fraction(1)]
    for m in range(1, most + 1):
        numbers.append(-sum((math.comb(m + 1, k) * b for k, b in enumerate(numbers)), Fraction(0)) / (m + 1))
    return {m: tuple(float(math.comb(m, k) * numbers[m - k]) for k in range(m + 1)) for m in range(0, most + 1, 2)}


_BERNOULLI = _bernoulli(_LARGEST_POWER + 2 * _TERMS + 1)


def _widest(epsilon: Tensor) -> float:
    """The largest width, or infinity where nobody can look: while torch.compile or torch.func traces."""
    if torch.compiler.is_compiling():
        return math.inf
    try:
        return float((2 * epsilon.detach()).rsqrt().max()) if epsilon.numel() else 0.0
    except RuntimeError:
        return math.inf


def _series(a: Tensor, epsilon: Tensor, power: int) -> Tensor:
    """log of Γ((s+1)/2) ε^(−(s+1)/2) − Σ_j (−ε)^j/j! 2 B_{m+1}(a)/(m+1), m = s + 2j, the second of odd s alone."""
    half = (power + 1) / 2
    whole = math.lgamma(half) - half * epsilon.log()
    if power % 2 == 0 or power > _LARGEST_POWER:
        return whole
    rest, scale = torch.zeros_like(whole * a), torch.ones_like(epsilon)
    for j in range(_TERMS):
        m = power + 2 * j + 1
        value = torch.zeros_like(a)
        for c in reversed(_BERNOULLI[m]):
            value = value * a + c
        rest = rest - scale * value * (2 / m)
        scale = scale * -epsilon / (j + 1)
    return whole + torch.log1p(rest * (-whole).exp())


def log_lattice_sum(a: Tensor, epsilon: Tensor, power: int) -> Tensor:
    """log Σ_k |k + a|^power exp(−ε(k + a)²) over all integers k, |a| ≤ ½, in double precision.

    ``a`` and ``epsilon`` > 0 broadcast; ``a`` is not negative for an odd power, and not 0 for a positive one. Terms are
    added one by one up to a width 1/√(2ε) of 2; wider ones by Euler's and Maclaurin's summation. Source: D. Zagier,
    "The Mellin transform and related analytic techniques", 2006, section 2.
    """
    a, epsilon = wide(a), wide(epsilon)
    widest = _widest(epsilon)
    # the largest terms lie at √power widths, and what is nine widths farther counts for nothing
    most = math.ceil(min(widest, _WIDE) * (math.sqrt(power) + 9)) + 1
    far = epsilon < 1 / (2 * _WIDE**2)
    k = torch.arange(-most, most + 1, dtype=a.dtype, device=a.device)
    place = k + a[..., None]
    terms = -torch.where(far, torch.ones_like(epsilon), epsilon)[..., None] * place.square()
    if power:
        terms = terms + power * place.abs().log()
    near = terms.logsumexp(-1)
    if widest <= _WIDE:
        return near
    return torch.where(far, _series(a, torch.where(far, epsilon, torch.full_like(epsilon, 0.1)), power), near)
