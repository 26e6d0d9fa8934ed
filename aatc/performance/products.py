"""Products of matrices into memory of an arena: what can be read where it lies is, and copies are counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from aatc.backends.native.arena import Arena
from aatc.errors import ShapeError

#: Types of which the library reads batches with any stride; of others it copies what is not dense.
_STRIDED = (torch.float32, torch.float64)


@dataclass(frozen=True)
class ProductBytes:
    """What a product takes of the arena, in bytes: its ``result``, and ``copies`` of operands, given back at its
    end."""

    result: int
    copies: int


def product_bytes(x: Tensor, y: Tensor) -> ProductBytes:
    """What `product` takes for these operands, of which only shapes and strides matter. Raises `ShapeError`."""
    x, y = matrices(x, y)
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    result = math.prod(batch) * x.shape[-2] * y.shape[-1] * x.dtype.itemsize
    copies = sum(0 if _readable(t) else _core(t).numel() * t.dtype.itemsize for t in (x, y)) if result else 0
    return ProductBytes(result, copies)


def matrices(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The operands as (..., n, k) and (..., k, m). Raises `ShapeError`."""
    for t in (x, y):
        if t.layout is not torch.strided or t.device.type != "cpu" or t.dtype == torch.bool:
            raise ShapeError(f"a product in the arena takes dense numbers on the CPU, not {t.dtype} on {t.device}")
    if x.dtype != y.dtype:
        raise ShapeError(f"x is {x.dtype} and y is {y.dtype}", hint="convert one of them: x.to(y.dtype)")
    if not x.dim() or not y.dim():
        raise ShapeError("a product takes vectors and matrices, not single numbers", hint="multiply by *")
    a, b = x[None, :] if x.dim() == 1 else x, y[:, None] if y.dim() == 1 else y
    try:
        torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        fits = a.shape[-1] == b.shape[-2]
    except RuntimeError:
        fits = False
    if not fits:
        raise ShapeError(f"x {tuple(x.shape)} and y {tuple(y.shape)} have no product")
    return a, b


def matmul(arena: Arena, x: Tensor, y: Tensor) -> Tensor:
    """x @ y as `torch.matmul`, in memory of the arena; differentiable, with gradients that lie there, too."""
    a, b = matrices(x, y)
    differentiated = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    result = _Product.apply(arena, a, b) if differentiated else product(arena, a, b)
    if x.dim() == 1:
        result = result.squeeze(-2)
    return result.squeeze(-1) if y.dim() == 1 else result


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, arena: Arena, x: Tensor, y: Tensor) -> Tensor:
        ctx.arena = arena
        ctx.save_for_backward(x, y)
        return product(arena, x, y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        (g,) = grads
        of_x = matmul(ctx.arena, g, y.mH).sum_to_size(x.shape) if ctx.needs_input_grad[1] else None
        of_y = matmul(ctx.arena, x.mH, g).sum_to_size(y.shape) if ctx.needs_input_grad[2] else None
        return None, of_x, of_y


def product(arena: Arena, x: Tensor, y: Tensor) -> Tensor:
    """(..., n, k) @ (..., k, m), contiguous, in memory of the arena."""
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    out = arena.tensor((*batch, x.shape[-2], y.shape[-1]), x.dtype)
    if out.numel():
        a, b = _operand(arena, x.detach()), _operand(arena, y.detach())
        rows = _merged(a.shape[:-1], a.stride()[:-1])
        one = not any(_steps(b)) and a.shape[:-2] == batch and a.stride(-1) == 1
        if one and rows is not None and rows >= max(1, a.shape[-1]):  # one matrix for all: the batch is more rows
            flat = a.as_strided((math.prod(a.shape[:-1]), a.shape[-1]), (rows, 1))
            torch.mm(flat, b[(0,) * (b.dim() - 2)], out=out.view(-1, out.shape[-1]))
        else:
            _multiply(a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:]), out)
    return out


def _multiply(x: Tensor, y: Tensor, out: Tensor) -> None:
    if x.dim() == 2:
        torch.mm(x, y, out=out)
        return
    count = math.prod(x.shape[:-2])
    flat = []
    for t in (x, y):
        step = _merged(t.shape[:-2], t.stride()[:-2])
        if step is not None and (x.dtype in _STRIDED or count == 1 or step == t.shape[-2] * t.shape[-1]):
            flat.append(t.as_strided((count, *t.shape[-2:]), (step, *t.stride()[-2:])))
    if len(flat) < 2:
        for n in range(x.shape[0]):
            _multiply(x[n], y[n], out[n])
        return
    torch.bmm(*flat, out=out.view(count, *out.shape[-2:]))


def _operand(arena: Arena, t: Tensor) -> Tensor:
    """A tensor whose matrices the library reads where they lie: ``t`` itself, or a copy in the arena."""
    strides = _readable(t)
    if strides is not None:
        return t.as_strided(t.shape, (*t.stride()[:-2], *strides))
    core = _core(t)
    return arena.tensor(core.shape, t.dtype).copy_(core).expand(t.shape)


def _readable(t: Tensor) -> tuple[int, int] | None:
    """The strides that matrices are read with, by rows or by columns; None if the library would copy them. Axes of one
    entry have any stride."""
    if t.is_conj() or t.is_neg():
        return None
    (rows, cols), (down, right) = t.shape[-2:], t.stride()[-2:]
    if (cols <= 1 or right == 1) and (rows <= 1 or down >= max(1, cols)):
        return (down if rows > 1 else max(1, cols)), 1
    if (rows <= 1 or down == 1) and (cols <= 1 or right >= max(1, rows)):
        return 1, (right if cols > 1 else max(1, rows))
    return None


def _core(t: Tensor) -> Tensor:
    """Once what is repeated along axes of the batch."""
    for axis, step in enumerate(_steps(t)):
        if step == 0:
            t = t.narrow(axis, 0, 1)
    return t


def _steps(t: Tensor) -> list[int]:
    """Strides of the batch's axes; 0 for those of one entry."""
    return [0 if n == 1 else s for n, s in zip(t.shape[:-2], t.stride()[:-2], strict=True)]


def _merged(shape: Sequence[int], strides: Sequence[int]) -> int | None:
    """The stride of all these axes as one; None if they are not evenly apart."""
    axes = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    if any(outer[1] != inner[0] * inner[1] for outer, inner in pairwise(axes)):
        return None
    return axes[-1][1] if axes else 0
