"""Biases: numbers per pair added to the score, from positions or from a tensor. They add with ``+``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from aatc.ir.errors import CaptureError
from aatc.ir.score.expr import Expr, call, index
from aatc.parts import (
    Capture,
    Key,
    Part,
    integer_captures,
    integer_expr,
    integer_key,
    is_integer,
    pair_capture,
    scalar_captures,
)
from aatc.parts import tensor as checked


class Bias(Part):
    """A number per (b, h, i, j)."""

    def __add__(self, other: Bias | torch.Tensor) -> Bias:
        return Sum(self, as_bias(other))

    def __radd__(self, other: torch.Tensor) -> Bias:
        return Sum(as_bias(other), self)

    @classmethod
    def value(cls, key: Key, captured: Iterator[Expr]) -> Expr:
        raise NotImplementedError


class Sum(Bias):
    """Both biases."""

    def __init__(self, left: Bias, right: Bias):
        self.left, self.right = left, right

    def described(self, sizes):
        (left, of_left), (right, of_right) = self.left.described(sizes), self.right.described(sizes)
        return (self.tag, left, right), [*of_left, *of_right]

    @classmethod
    def value(cls, key, captured):
        left = Part.of_key(key[1]).value(key[1], captured)
        return left + Part.of_key(key[2]).value(key[2], captured)


class ALiBi(Bias):
    """-slope_h |i - j| (Press et al. 2022). ``slopes``: (H,), or the number of heads for 2^(-8h/H)."""

    def __init__(self, slopes: torch.Tensor | int):
        if not isinstance(slopes, torch.Tensor):
            if not is_integer(slopes) or not 1 <= slopes < 2**31:
                raise CaptureError(
                    f"ALiBi slopes are {slopes!r}", hint="give a tensor (H,) of slopes, or the number of heads"
                )
            slopes = alibi_slopes(slopes).to(torch.get_default_dtype())
        self.slopes = slopes

    def captures(self, sizes):
        if self.slopes.dim() > 1:
            raise CaptureError(
                f"ALiBi slopes have shape {tuple(self.slopes.shape)}; there is one per head: ({sizes.h},)"
            )
        slopes = self.slopes.to(sizes.device)
        return [Capture("slope", slopes, "h")] if slopes.dim() else scalar_captures("slope", slopes, sizes)

    @classmethod
    def value(cls, key, captured):
        return -(next(captured) * abs(index("i") - index("j")))


def alibi_slopes(heads: int) -> torch.Tensor:
    """(H,) in float64: 2^(-8h/H), h = 1..H; a count that is no power of two is filled from the next one, as the authors
    do. By operations on tensors, so that a graph can have any number of heads."""
    h = torch.arange(1, heads + 1, dtype=torch.float64, device="cpu")
    powers = 2.0 ** torch.arange(63, dtype=torch.float64, device="cpu")
    power = torch.where(powers <= heads, powers, 1.0).amax()
    exponent = torch.where(h <= power, h / power, (2 * (h - power) - 1) / (2 * power))
    return 2.0 ** (-8 * exponent)


class RelativeTable(Bias):
    """table[h, j - i + R] with j - i clipped to [-R, R]. ``table``: (H, 2R+1), or (2R+1,) for all heads."""

    def __init__(self, table: torch.Tensor):
        if checked("a relative table", table).dim() not in (1, 2) or table.shape[-1] % 2 == 0:
            raise CaptureError(
                f"a relative table has shape (H, 2R+1), got {tuple(table.shape)}",
                hint="entry R stands for j = i, so the number of entries is odd",
            )
        self.table = table

    def key(self):
        return (self.tag, integer_key(self.table.shape[-1] // 2))

    def captures(self, sizes):
        table = Capture("table", self.table, "ht" if self.table.dim() == 2 else "t")
        return [table, *integer_captures("reach", self.table.shape[-1] // 2, sizes)]

    @classmethod
    def value(cls, key, captured):
        table = next(captured)
        return call("lookup", table, index("j") - index("i") + integer_expr(key[1], captured))


class Dense(Bias):
    """A tensor (N, M), (H, N, M) or (B, H, N, M); any dimension may be 1, and (M,) is a bias per key."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = checked("a dense bias", tensor)

    def captures(self, sizes):
        if self.tensor.dtype == torch.bool:
            raise CaptureError("a bias of truth values", hint="give it as mask=, or as aatc.masks.dense(tensor)")
        return [pair_capture("bias", self.tensor, sizes, "f")]

    @classmethod
    def value(cls, key, captured):
        return next(captured)


def as_bias(bias: Any) -> Bias:
    """A bias as it is, or a bare tensor as a dense one."""
    if isinstance(bias, Bias):
        return bias
    if isinstance(bias, torch.Tensor):
        return Dense(bias)
    raise CaptureError(f"bias is a {type(bias).__name__}", hint="give a tensor or an object of aatc.biases")
