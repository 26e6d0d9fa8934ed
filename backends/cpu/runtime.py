"""What generated code calls: views of the arena, tile maps, blocks of tables and pair tensors, the library."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aatc.backends.cpu.masks import additive_block, close, diagonal, selection, tile_map
from aatc.ir.reference import expand_heads
from aatc.ir.score import random
from aatc.ir.score.evaluate import table_position
from aatc.ir.score.program import Program
from aatc.ir.tilemap import TileMap

__all__ = ["close", "diagonal", "selection", "tile_map"]

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


# --- per token ---------------------------------------------------------------------------------------------
def token_view(t: torch.Tensor, axes: str, batch: int, heads: int) -> torch.Tensor:
    """A tensor with dimensions ``axes`` as (b, h, token, feature...): a flat g is split, shared heads are repeated."""
    if axes.startswith("bh") and t.dim() == len(axes) - 1:
        t = t.unflatten(0, (batch, heads))
    lead = [c for c in axes if c in "bhij"]
    tail = list(t.shape[len(lead) :]) or [1]
    at = {c: t.shape[n] for n, c in enumerate(lead)}
    t = t.reshape(at.get("b", 1), at.get("h", 1), at.get("i", at.get("j", 1)), *tail)
    return t if t.shape[1] in (1, heads) else expand_heads(t, heads)


def finish_token(t, extents: tuple[int, int, int], shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """A per-token value (b, h, token, feature) at full extents, in the shape and dtype of its buffer."""
    if not isinstance(t, torch.Tensor):
        return torch.full(shape, t, dtype=dtype)
    return t.expand(*extents, t.shape[3]).reshape(shape).to(dtype).contiguous()


def rows(t: torch.Tensor) -> torch.Tensor:
    """``t``, or a copy, with features next to each other and tokens at least that far apart."""
    if t.stride(-1) == 1 and t.stride(-2) >= t.shape[-1]:
        return t
    return t.clone(memory_format=torch.contiguous_format)


def apart(results: Sequence[torch.Tensor], args: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Results as tensors of their own: none shares memory with another, with an argument, or with itself."""
    taken = {t.untyped_storage().data_ptr() for t in args if t.numel()}
    out = []
    for t in results:
        at = t.untyped_storage().data_ptr()
        if t.numel() and (at in taken or any(s == 0 and n > 1 for s, n in zip(t.stride(), t.shape, strict=True))):
            t = t.clone(memory_format=torch.contiguous_format)
            at = t.untyped_storage().data_ptr()
        taken.add(at)
        out.append(t)
    return tuple(out)


def centre(x: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the finite entries of (b, h, token, feature); no gradient flows through it."""
    mean = x.detach().mean(2, keepdim=True)
    if bool(torch.isfinite(mean).all()):
        return mean
    return x.detach().nan_to_num(0.0, 0.0, 0.0).mean(2, keepdim=True)


def positions(n: int, axis: int, dtype: torch.dtype) -> torch.Tensor:
    shape = [1, 1, 1, 1]
    shape[axis] = n
    return torch.arange(n, dtype=dtype).reshape(shape)


def row_keys(seed, b: int, h: int, n: int) -> torch.Tensor:
    i64 = torch.int64
    return random.row_keys(seed, positions(b, 0, i64), positions(h, 1, i64), positions(n, 2, i64))


def column_keys(m: int) -> torch.Tensor:
    return random.column_keys(positions(m, 2, torch.int64))


pair_numbers = random.pair_numbers


def sum_to(value: torch.Tensor, axes: str, like: torch.Tensor, sizes: tuple[int, int, int, int]) -> torch.Tensor:
    """A cotangent (b, h, token, feature...) summed to the shape of ``like``, whose dimensions are ``axes``.

    Axes the cotangent is constant along count once per entry only if it was already summed there, so missing
    token axes are left alone and missing b, h are expanded first.
    """
    b, h = sizes[:2]
    lead = [c for c in axes if c in "bhij"]
    shape = {c: like.shape[n] for n, c in enumerate(lead)}
    heads = shape.get("h", 1)
    token = next((c for c in "ij" if c in axes), None)
    want = [shape.get("b", 1), heads, shape[token] if token else 1, *(like.shape[len(lead) :] or [1])]
    value = value.expand(b, h, *value.shape[2:])
    if heads not in (1, h):
        value = value.unflatten(1, (heads, h // heads)).sum(2)
    extra = [d for d, (have, w) in enumerate(zip(value.shape, want, strict=True)) if w == 1 and have != 1]
    if extra:
        value = value.sum(extra, keepdim=True)
    return value.expand(want).reshape(like.shape).to(like.dtype)


# --- arena -------------------------------------------------------------------------------------------------
def block(arena: torch.Tensor, offset: int, *shape: int) -> torch.Tensor:
    """The tile of ``shape`` at element ``offset`` of an arena viewed in its dtype."""
    n = 1
    strides = []
    for s in reversed(shape):
        strides.append(n)
        n *= s
    return arena.as_strided(shape, strides[::-1], offset)


# --- pairs -------------------------------------------------------------------------------------------------
def pair_block(t: torch.Tensor, g: int, tg: int, i: int, ti: int, j: int, tj: int, b: int, h: int) -> torch.Tensor:
    """Block of a (b, h, i, j) tensor whose axes may have size 1, as (g, i, j)."""
    rows = t if t.shape[2] == 1 else t.narrow(2, i, ti)
    part = rows if t.shape[3] == 1 else rows.narrow(3, j, tj)
    if tg == 1:
        return part[g // h if t.shape[0] > 1 else 0, g % h if t.shape[1] > 1 else 0].unsqueeze(0)
    return part.expand(b, h, *part.shape[2:]).flatten(0, 1).narrow(0, g, tg)


def pair_add(
    t: torch.Tensor, value: torch.Tensor, g: int, tg: int, i: int, ti: int, j: int, tj: int, b: int, h: int
) -> None:
    """Adds a (g, i, j) block into a (b, h, i, j) tensor, summing along the axes where that has size 1."""
    over = [d for d in (1, 2) if t.shape[d + 1] == 1 and value.shape[d] != 1]
    if over:
        value = value.sum(over, keepdim=True)
    for n in range(tg):
        at = g + n
        target = t[at // h if t.shape[0] > 1 else 0, at % h if t.shape[1] > 1 else 0]
        target = target if t.shape[2] == 1 else target.narrow(0, i, ti)
        target = target if t.shape[3] == 1 else target.narrow(1, j, tj)
        target += value[n]


def _entries(table: torch.Tensor, axes: str, g: int, tg: int, h: int, where: Sequence[torch.Tensor]) -> tuple:
    heads = torch.arange(g, g + tg)
    index: list[torch.Tensor] = []
    for c in axes:
        if c in "bh":
            at = heads // h if c == "b" else heads % h
            index.append((at * (table.shape[axes.index(c)] > 1)).reshape(-1, 1, 1))
    for p in where:
        index.append(table_position(p if p.dim() == 3 else p.unsqueeze(0), table.shape[len(index)]))
    return tuple(index)


def token_lookup(table: torch.Tensor, *where: torch.Tensor) -> torch.Tensor:
    """Entries of a table (b, h, token, t[, u]) at positions (b, h, token, 1), as (b, h, token, 1)."""
    index = [positions(n, axis, torch.int64)[..., 0] for axis, n in enumerate(table.shape[:3])]
    index += [table_position(p[..., 0], n) for p, n in zip(where, table.shape[3:], strict=True)]
    return table[tuple(index)].unsqueeze(-1)


def table_gradient(
    value, where: Sequence[torch.Tensor], table: torch.Tensor, axes: str, batch: int, heads: int
) -> torch.Tensor:
    """A cotangent (b, h, token, 1) of what `token_lookup` reads, added up in the shape and dtype of ``table``."""
    numbers = torch.arange(table.numel()).reshape(table.shape)
    at = token_lookup(token_view(numbers, axes, batch, heads), *where)
    shape = torch.broadcast_shapes(at.shape, value.shape, (batch, heads, 1, 1))
    out = torch.zeros(table.numel(), dtype=value.dtype)
    out.index_add_(0, at.expand(shape).reshape(-1), value.expand(shape).reshape(-1))
    return out.reshape(table.shape).to(table.dtype)


def lookup(
    table: torch.Tensor, axes: str, g: int, tg: int, h: int, where: Sequence[torch.Tensor], out: torch.Tensor
) -> None:
    """Entries of ``table`` at positions per pair, written to ``out``."""
    out.copy_(table[_entries(table, axes, g, tg, h, where)].reshape(out.shape))


def scatter(
    table: torch.Tensor, axes: str, g: int, tg: int, h: int, where: Sequence[torch.Tensor], value: torch.Tensor
) -> None:
    """Adds ``value`` into ``table`` where `lookup` reads."""
    entries = _entries(table, axes, g, tg, h, where)
    table.index_put_(
        entries, value.reshape(torch.broadcast_shapes(*(e.shape for e in entries))).to(table.dtype), accumulate=True
    )


# --- the library -------------------------------------------------------------------------------------------
def library(q, k, v, bias, tiles: TileMap | None, mask: Program | None, captures, causal: bool, rows: int, sizes):
    """Fused attention of the library, scale 1, over blocks of rows where a tile map tells what to skip.

    q, k, v (B,H,N,D), (B,H,M,D), (B,H,M,D); bias (B,H,M) or None. Rows without open keys give 0 and -inf.
    """
    column = None if bias is None else bias.unsqueeze(2)
    if not q.numel() or not k.numel():  # the library's kernel divides by the length
        return q.new_zeros(*q.shape[:3], v.shape[3]), q.new_full(q.shape[:3], float("-inf"))
    if tiles is None:
        return flash(q, k, v, 0.0, causal, attn_mask=column, scale=1.0)
    b, h, n, _ = sizes
    out, lse = torch.zeros_like(q), q.new_full((b, h, n), float("-inf"))
    for i in range(0, n, rows):
        ti = min(rows, n - i)
        j, tj, partial = tiles.hull(0, i)
        if tj == 0:
            continue
        added, closed = None if column is None else column[..., j : j + tj], None
        if partial:
            assert mask is not None
            masked, closed = additive_block(mask, captures, sizes, i, ti, j, tj, q.dtype)
            added = masked if added is None else masked + added
        o, l = flash(
            q[:, :, i : i + ti], k[:, :, j : j + tj], v[:, :, j : j + tj], 0.0, False, attn_mask=added, scale=1.0
        )
        if closed is not None:  # the library's log-sum-exp of a row without keys is not -inf
            o, l = o.masked_fill(closed.unsqueeze(-1), 0.0), l.masked_fill(closed, float("-inf"))
        out[:, :, i : i + ti], lse[:, :, i : i + ti] = o, l
    return out, lse


def library_backward(grad, q, k, v, out, lse, causal: bool):
    """Gradients of q, k, v by the library's fused attention, scale 1."""
    if not q.numel() or not k.numel():
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    return flash_backward(grad, q, k, v, out, lse, 0.0, causal, attn_mask=None, scale=1.0)
