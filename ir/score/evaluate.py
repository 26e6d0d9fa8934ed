"""Reference evaluation of score expressions in torch, over whole tensors.

Every value has the layout (B, H, I, J, feature...), with size 1 along axes it does not depend on, so plain
broadcasting does the rest. O(I*J) memory: this is the oracle, not the fast path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from aatc.ir.errors import CaptureError
from aatc.ir.score.expr import INDEX_AXES, Expr, postorder
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.random import column_keys, pair_numbers, row_keys


def place(tensor: torch.Tensor, p: Expr) -> torch.Tensor:
    """``tensor``, whose dimensions are the axes of parameter ``p``, in the layout (B, H, I, J, feature...)."""
    axes = p.attrs[1]
    if tensor.dim() != len(axes):
        raise CaptureError(f"{p.name} is declared with axes {axes!r} but has shape {tuple(tensor.shape)}")
    if p.rank == 3:
        return tensor
    lead = [c for c in axes if c in INDEX_AXES]
    shape = [tensor.shape[lead.index(c)] if c in lead else 1 for c in INDEX_AXES]
    return tensor.reshape(*shape, *(tensor.shape[len(lead) :] or (1,)))


def evaluate(
    root: Expr,
    env: Mapping[str, torch.Tensor],
    sizes: tuple[int, int, int, int],
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    values: dict[Expr, torch.Tensor] | None = None,
    starts: tuple[int, int, int, int] = (0, 0, 0, 0),
    rounded: Callable[[Expr, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Value of ``root`` in the layout (B, H, I, J, feature...).

    ``env`` maps parameter names to tensors laid out as their axes say; numbers are computed in ``dtype``;
    ``sizes`` = (B, H, I, J); ``starts`` are the positions the axes begin at,
    for a block of a larger problem. ``values`` may hold ready-made nodes and receives every node computed, as
    ``rounded`` leaves it.
    """
    done = {} if values is None else values
    for e in postorder(root):
        if e not in done:
            value = _node(e, [done[a] for a in e.args], env, sizes, dtype, device, starts)
            done[e] = value if rounded is None else rounded(e, value)
    return done[root]


def _node(e: Any, args: Any, env: Any, sizes: Any, dtype: Any, device: Any, starts: Any) -> Any:
    if e.is_const:
        kind = {"b": torch.bool, "i": torch.int64, "f": dtype}[e.dtype]
        return torch.tensor(e.value, dtype=kind, device=device).reshape(1, 1, 1, 1, 1)
    if e.fn == "param":
        value = place(env[e.name], e)
        return value.to(dtype) if e.dtype == "f" else value
    if e.fn == "index":
        axis = INDEX_AXES.index(e.name)
        return axis_positions(axis, sizes[axis], device, starts[axis])
    if e.fn == "lookup":
        return lookup(args[0], e.args[0].attrs[1], args[1:], sizes)
    if e.fn == "row_key":
        return row_keys(args[0], *(axis_positions(a, sizes[a], device, starts[a]) for a in range(3)))
    if e.fn == "column_key":
        return column_keys(axis_positions(3, sizes[3], device, starts[3]))
    if e.fn == "pair_uniform":
        return pair_numbers(*args).to(dtype)
    if e.dtype == "f":  # integers meet numbers here: torch would promote them to its default, not ours
        args = [a.to(dtype) if a.dtype in (torch.int64, torch.int32) else a for a in args]
    if e.rank == 2 and FUNCTIONS[e.fn].kind == "pointwise":  # a number meets a matrix
        args = [x.unsqueeze(-1) if a.rank == 0 else x for a, x in zip(e.args, args, strict=True)]
    if e.fn == "dot":
        product = _contraction(*args)
        if product is not None:
            return product
    function = FUNCTIONS[e.fn].evaluate
    if function is None:
        raise CaptureError(f"{e.fn} has no value of its own")
    return function(*args, *e.attrs)


def _contraction(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor | None:
    """dot of a value per query and a value per key as a product of matrices, without I*J*feature numbers."""
    if x.shape[2] == 1 and y.shape[3] == 1:
        x, y = y, x
    if x.shape[3] != 1 or y.shape[2] != 1 or x.shape[2] == 1 or y.shape[3] == 1 or x.shape[4] != y.shape[4]:
        return None
    return (x[:, :, :, 0] @ y[:, :, 0].mT).unsqueeze(-1)


def axis_positions(axis: int, n: int, device: Any, start: int = 0) -> torch.Tensor:
    shape = [1, 1, 1, 1, 1]
    shape[axis] = n
    return torch.arange(start, start + n, device=device).reshape(shape)


def lookup(table: torch.Tensor, axes: str, positions: list[torch.Tensor], sizes: tuple[int, ...]) -> torch.Tensor:
    """Entries of ``table`` (dimensions ``axes``: some of b h i j, then t or t u), positions rounded and clamped."""
    index = [
        axis_positions(INDEX_AXES.index(c), table.shape[k], table.device) for k, c in enumerate(axes) if c in INDEX_AXES
    ]
    for p in positions:
        n = table.shape[len(index)]
        index.append(table_position(p, n))
    return table[tuple(index)]


def table_position(p: torch.Tensor, n: int) -> torch.Tensor:
    """Positions along an axis of ``n`` entries: rounded to the nearest even, clamped; NaN reads entry 0."""
    if p.is_floating_point():  # clamped before it is an integer: what is too large has none
        p = p.double().round().clamp(0, n - 1).nan_to_num(0.0)
    return p.long().clamp(0, n - 1)


def entries(
    axes: str, shape: Sequence[int], problems: torch.Tensor, heads: int, positions: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The index into a table of ``shape`` with dimensions ``axes`` for pairs in tile layout (g, i, j): b, h come from
    the problems g, each of ``heads`` to a batch entry; positions are rounded and clamped."""
    index: list[torch.Tensor] = []
    for c in axes:
        if c in "bh":
            at = problems // heads if c == "b" else problems % heads
            index.append((at * (shape[axes.index(c)] > 1)).reshape(-1, 1, 1))
    for p in positions:
        index.append(table_position(p, shape[len(index)]))
    return tuple(index)


def numbered(shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """A table whose entries are their own numbers: read as another is, it tells where that is read."""
    return torch.arange(math.prod(shape), device=device).reshape(tuple(shape))


def add_entries(out: torch.Tensor, where: torch.Tensor, value: torch.Tensor) -> None:
    """Adds ``value`` into ``out``, which is contiguous, at the entries that ``where`` has of `numbered`."""
    shape = torch.broadcast_shapes(where.shape, value.shape)
    out.view(-1).index_add_(0, where.expand(shape).reshape(-1), value.expand(shape).reshape(-1).to(out.dtype))


def expand_heads(x: torch.Tensor, heads: int, dim: int = 1) -> torch.Tensor:
    """(B,Hk,...) to (B,H,...): every key head serves H/Hk query heads."""
    return x if x.shape[dim] == heads else x.repeat_interleave(heads // x.shape[dim], dim=dim)


def share_heads(x: torch.Tensor, heads: int, dim: int = 1) -> torch.Tensor:
    """`expand_heads` of what is not one for all heads, which broadcasts."""
    return x if x.shape[dim] == 1 else expand_heads(x, heads, dim)


def sum_to_axes(value: torch.Tensor, p: Expr, shape: tuple[int, ...]) -> torch.Tensor:
    """A cotangent in the layout (B, H, I, J, feature...) summed to parameter ``p``'s own ``shape``."""
    axes = p.attrs[1]
    lead = [c for c in axes if c in INDEX_AXES]
    sizes = [shape[lead.index(c)] if c in lead else 1 for c in INDEX_AXES]
    full = (*sizes, *(shape[len(lead) :] or (1,)))
    extra = [d for d, (have, want) in enumerate(zip(value.shape, full, strict=True)) if want == 1 and have != 1]
    if extra:
        value = value.sum(extra, keepdim=True)
    return value.expand(full).reshape(shape)
