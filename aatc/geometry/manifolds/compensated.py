"""Sums and products of doubles with their rounding errors, which twice as many digits of a difference are made of.

Source: T. Dekker, "A floating-point technique for extending the available precision", Numerische Mathematik 18, 1971.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aatc.geometry.manifold import Scalar

_SPLIT = 2.0**27 + 1


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """fl(ab) and ab − fl(ab)."""
    halves = []
    for x in (a, b):
        scaled = _SPLIT * x
        high = scaled - (scaled - x)
        halves.append((high, x - high))
    (ah, al), (bh, bl) = halves
    product = a * b
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


def _sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """fl(a + b) and a + b − fl(a + b)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def one_minus_square(x: Tensor, c: Scalar) -> Tensor:
    """1 − c|x|² of doubles (..., n) with all its digits, (..., 1): to one rounding where it is above 1e-24, whatever
    n. Differentiable in both."""
    values, factor = x.detach(), torch.as_tensor(c, dtype=x.dtype, device=x.device).detach()
    total, error = _product(values, values)
    error = error.sum(-1, keepdim=True)
    while total.shape[-1] > 1:
        half = total.shape[-1] // 2
        rest = total[..., 2 * half :]
        total, lost = _sum(total[..., :half], total[..., half : 2 * half])
        total, error = torch.cat((total, rest), -1), error + lost.sum(-1, keepdim=True)
    square, lost = _product(total, factor.expand(total.shape))
    gap, more = _sum(torch.ones_like(square), -square)
    exact = gap + (more - lost - factor * error)
    plain = 1 - c * x.square().sum(-1, keepdim=True)
    return exact + (plain - plain.detach())


def less_multiple(x: Tensor, factor: Tensor, y: Tensor) -> Tensor:
    """x − factor·y of doubles, of whose product nothing is rounded away: to a rounding or two of the result."""
    product, error = _product(factor, y)
    return (x - product) - error
