"""What generated code calls: views of the arena, tile maps, blocks of tables and pair tensors, the library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aatc.backends.cpu.masks import Runs, Sizes, additive_block, classify, close, diagonal, hull, selection
from aatc.backends.cpu.pair_runtime import clear, gathered, give, lost_pairs, put_pairs
from aatc.backends.results import apart as apart
from aatc.ir.access import access
from aatc.ir.score import random
from aatc.ir.score.evaluate import add_entries, entries, numbered, share_heads, table_position
from aatc.ir.score.program import Program

__all__ = ["classify", "clear", "close", "diagonal", "gathered", "give", "lost_pairs", "put_pairs", "selection"]

Maybe = torch.Tensor | None
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
    return share_heads(t, heads)


def finish_token(
    t: torch.Tensor | float, extents: tuple[int, int, int], shape: list[int], dtype: torch.dtype
) -> torch.Tensor:
    """A per-token value (b, h, token, feature) at full extents, in the shape and dtype of its buffer."""
    if not isinstance(t, torch.Tensor) or not t.dim():
        return torch.full(shape, float(t), dtype=torch.float64).to(dtype)
    return t.expand(*extents, t.shape[3]).reshape(shape).to(dtype).contiguous()


def rows(t: torch.Tensor) -> torch.Tensor:
    """``t``, or a copy, with features next to each other and tokens at least that far apart."""
    if t.stride(-1) == 1 and t.stride(-2) >= t.shape[-1]:
        return t
    return t.clone(memory_format=torch.contiguous_format)


def centre(x: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the finite entries of (b, h, token, feature); no gradient flows through it."""
    if x.shape[2] == 0:
        return x.new_zeros(*x.shape[:2], 1, x.shape[3])
    mean = x.detach().mean(2, keepdim=True)
    if bool(torch.isfinite(mean).all()):
        return mean
    return x.detach().nan_to_num(0.0, 0.0, 0.0).mean(2, keepdim=True)


def token_mean(x: torch.Tensor, axis: int, dtype: torch.dtype) -> torch.Tensor:
    """Mean along an axis of what is finite, over all its entries; 0 of none."""
    return x.to(dtype).nan_to_num(0.0, 0.0, 0.0).mean(axis).nan_to_num(0.0)


def position(out: torch.Tensor, axis: str, at: int, extent: int, heads: int) -> None:
    """Writes the positions of a tile along one axis; b and h are those of problems."""
    numbers = torch.arange(at, at + extent)
    if axis in "bh":
        numbers = numbers // heads if axis == "b" else numbers % heads
    out.copy_(numbers.reshape([extent if n > 1 else 1 for n in out.shape] if extent > 1 else [1] * out.dim()))


def positions(n: int, axis: int, dtype: torch.dtype) -> torch.Tensor:
    shape = [1, 1, 1, 1]
    shape[axis] = n
    return torch.arange(n, dtype=dtype).reshape(shape)


def row_keys(seed: torch.Tensor, b: int, h: int, n: int) -> torch.Tensor:
    i64 = torch.int64
    return random.row_keys(seed, positions(b, 0, i64), positions(h, 1, i64), positions(n, 2, i64))


def column_keys(m: int) -> torch.Tensor:
    return random.column_keys(positions(m, 2, torch.int64))


pair_numbers = random.pair_numbers


def sum_to(
    cotangent: torch.Tensor | float, axes: str, like: torch.Tensor, sizes: tuple[int, int, int, int]
) -> torch.Tensor:
    """A cotangent (b, h, token, feature...) summed to the shape of ``like``, whose dimensions are ``axes``.

    Axes the cotangent is constant along count once per entry only if it was already summed there, so missing
    token axes are left alone and missing b, h are expanded first. The dtype stays that of the cotangent.
    """
    b, h = sizes[:2]
    number = not isinstance(cotangent, torch.Tensor) or not cotangent.dim()
    value = torch.full((1, 1, 1, 1), float(cotangent), dtype=torch.float64) if number else torch.as_tensor(cotangent)
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
    return value.expand(want).reshape(like.shape)


# --- conditions on the data ---------------------------------------------------------------------------------
def peak(x: torch.Tensor, rows: bool) -> torch.Tensor:
    """The largest length of a vector along the last axis, or the largest magnitude of an entry; 0 of nothing."""
    if not x.numel():
        return x.new_zeros(())
    return torch.linalg.vector_norm(x, dim=-1).amax() if rows else x.abs().amax()


def at_least(x: torch.Tensor, least: float) -> bool:
    """Whether no entry lies below ``least``; a NaN does."""
    return not x.numel() or bool(x.amin() >= least)


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
def window(t: torch.Tensor, axes: str, g: int, tg: int, i: int, ti: int, j: int, tj: int, h: int) -> torch.Tensor:
    """Block of a tensor with ``axes`` (see `aatc.ir.access`) as a tile (g, row, column) of full extents."""
    a = access(axes)
    one = tg == 1 or not a.lead
    places = [_place(t, axes, g + n, i, ti, j, tj, h) for n in range(1 if one else tg)]
    tile = places[0].unsqueeze(0) if one else torch.stack(places)
    rows, cols = ({"i": ti, "j": tj}.get(c, -1) for c in a.tile[1:])
    return tile.expand(tg, rows, cols)


def put(
    t: torch.Tensor, value: torch.Tensor, add: bool, axes: str, g: int, tg: int, i: int, ti: int, j: int, tj: int,
    h: int,
) -> None:  # fmt: skip
    """Writes or adds a tile to its block of ``t``, summing along axes where that has size 1."""
    for n in range(tg):
        place = _place(t, axes, g + n, i, ti, j, tj, h)
        part = value[n]
        over = [d for d in (0, 1) if place.shape[d] == 1 and part.shape[d] != 1]
        part = part.sum(over, keepdim=True) if over else part
        place.add_(part) if add else place.copy_(part)


def _place(t: torch.Tensor, axes: str, problem: int, i: int, ti: int, j: int, tj: int, h: int) -> torch.Tensor:
    """The (row, column) view of one problem's block."""
    a = access(axes)
    for c in a.lead:
        n = t.shape[0]
        at = problem if c == "g" else problem // h if c == "b" else problem % h // (h // n) if n > 1 else 0
        t = t[at if n > 1 else 0]
    for axis, c in enumerate(a.inside):
        if c in "ij" and t.shape[axis] != 1:
            t = t.narrow(axis, *((i, ti) if c == "i" else (j, tj)))
    missing = {"": (0, 1), "i": (1,), "j": (0,), "d": (0,)}.get(a.inside, ())
    for axis in missing:
        t = t.unsqueeze(axis)
    return t


def _entries(
    table: torch.Tensor, axes: str, g: int, tg: int, h: int, where: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    positions = [p if p.dim() == 3 else p.unsqueeze(0) for p in where]
    return entries(axes, table.shape, torch.arange(g, g + tg), h, positions)


def token_lookup(table: torch.Tensor, *where: torch.Tensor) -> torch.Tensor:
    """Entries of a table (b, h, token, t[, u]) at positions (b, h, token, 1), as (b, h, token, 1)."""
    index = [positions(n, axis, torch.int64)[..., 0] for axis, n in enumerate(table.shape[:3])]
    index += [table_position(p[..., 0], n) for p, n in zip(where, table.shape[3:], strict=True)]
    return table[tuple(index)].unsqueeze(-1)


def table_gradient(
    value: torch.Tensor, where: Sequence[torch.Tensor], table: torch.Tensor, axes: str, batch: int, heads: int
) -> torch.Tensor:
    """A cotangent (b, h, token, 1) of what `token_lookup` reads, added up in the shape of ``table``."""
    at = token_lookup(token_view(numbered(table.shape), axes, batch, heads), *where)
    out = torch.zeros(table.shape, dtype=value.dtype)
    add_entries(out, at.expand(torch.broadcast_shapes(at.shape, (batch, heads, 1, 1))), value)
    return out


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
#: Largest rounding error of a bias that blocks of rows are made short for, down to `_FEWEST` rows.
_BIAS_ERROR, _FEWEST = 1.6e-5, 64


def library(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Maybe, shift: Maybe, tiles: Runs | None,
    mask: Program | None, captures: Sequence[torch.Tensor], causal: bool, rows: int, sizes: Sizes,
) -> Any:  # fmt: skip
    """Fused attention of the library, scale 1, over blocks of rows where a tile map tells what to skip.

    q, k, v (B,H,N,D), (B,H,M,D), (B,H,M,D); bias (B,H,M) or None; shift (B,H,N) or None, in double precision as bias
    then is, a number per query to be added to it. Rows without open keys give 0 and -inf. (None, None) where no block
    of rows keeps the digits of bias and shift.
    """
    if not q.numel() or not k.numel():  # the library's kernel divides by the length
        return q.new_zeros(*q.shape[:3], v.shape[3]), q.new_full(q.shape[:3], float("-inf"))
    if shift is None and tiles is None:
        column = None if bias is None else bias.unsqueeze(2)
        out, lse = flash(q, k, v, 0.0, causal, attn_mask=column, scale=1.0)
        return _emptied(out, lse, _rows_without_keys(column, causal, q.shape[2]))
    n, m = q.shape[2], k.shape[2]
    if shift is not None:
        rows = _rows_of_shift(shift, n if tiles is None else rows, q.dtype)
        if not rows:
            return None, None
    out, lse = torch.zeros_like(q), q.new_full(q.shape[:3], float("-inf"))
    for i in range(0, n, rows):
        ti = min(rows, n - i)
        column, rest = _block_bias(bias, shift, i, ti, q.dtype)
        parts: list[tuple[int, int, bool, Maybe, Maybe]]
        if causal:
            parts = [(0, min(i, m), False, None, None)]
            parts += [(i, min(i + ti, m) - i, True, None, None)] * (i < m)
        elif tiles is None or mask is None:
            parts = [(0, m, False, None, None)]
        else:
            parts = [_masked_part(tiles, mask, captures, sizes, i, ti, rows, q.dtype)]
        found = None
        for j, tj, triangle, added, closed in parts:
            if tj <= 0:
                continue
            here = None if column is None else column[..., j : j + tj]
            added = here if added is None else added if here is None else added + here
            if here is not None and bool((here == float("-inf")).any()):
                closed = _rows_without_keys(added, triangle, ti)
            o, l = flash(
                q[:, :, i : i + ti], k[:, :, j : j + tj], v[:, :, j : j + tj], 0.0, triangle, attn_mask=added, scale=1.0
            )
            o, l = _emptied(o, l, closed)
            found = (o, l) if found is None else _joined(*found, o, l)
        if found is not None:
            out[:, :, i : i + ti] = found[0]
            lse[:, :, i : i + ti] = found[1] if rest is None else found[1] + rest
    return out, lse


def _rows_without_keys(added: Maybe, causal: bool, n: int) -> Maybe:
    """Where all that is ``added`` to the scores of a row, (B, H, N or 1, M), is -inf, of keys j <= i if ``causal``;
    None where there is no -inf."""
    if added is None or not bool((shut := added == float("-inf")).any()):
        return None
    if not causal:
        return shut.all(-1)
    until = torch.arange(n, device=added.device).clamp(max=shut.shape[3] - 1)  # row i looks no further than this
    first_open = torch.where(shut.all(-1), shut.shape[3], (~shut).to(torch.uint8).argmax(-1))
    return first_open > until


def _emptied(o: torch.Tensor, lse: torch.Tensor, closed: Maybe) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that are ``closed``, (B, H, N or 1), as rows without keys: the library's log-sum-exp of them is not -inf."""
    if closed is None:
        return o, lse
    return o.masked_fill(closed.unsqueeze(-1), 0.0), lse.masked_fill(closed, float("-inf"))


def _masked_part(
    tiles: Runs, mask: Program, captures: Sequence[torch.Tensor], sizes: Sizes, i: int, ti: int,
    rows: int, dtype: torch.dtype,
) -> tuple[int, int, bool, Maybe, Maybe]:  # fmt: skip
    j, tj, partial = hull(tiles[0][i // rows])
    if tj == 0 or not partial:
        return j, tj, False, None, None
    masked, closed = additive_block(mask, captures, sizes, i, ti, j, tj, dtype)
    return j, tj, False, masked, closed


def _rows_of_shift(shift: torch.Tensor, most: int, dtype: torch.dtype) -> int:
    """Rows over which ``shift`` varies so little that a bias relative to their middle keeps its digits; 0 if none."""
    rows = min(most, 1024)  # the library's own blocks are short ones below 768
    unit = torch.finfo(dtype).eps / 2
    while rows:
        parts = torch.nn.functional.pad(shift, (0, -shift.shape[2] % rows), mode="replicate").unflatten(2, (-1, rows))
        if float((parts.amax(3) - parts.amin(3)).amax()) * unit / 2 <= _BIAS_ERROR:
            return rows
        rows = rows // 2 if rows > _FEWEST else 0
    return 0


def _block_bias(bias: Maybe, shift: Maybe, i: int, ti: int, dtype: torch.dtype) -> tuple[Maybe, Maybe]:
    """The bias of a block of rows relative to their middle, and what its log-sum-exp lacks then."""
    if bias is None:
        return None, None
    if shift is None:
        return bias.unsqueeze(2), None
    part = shift[:, :, i : i + ti]
    base = (part.amax(2, keepdim=True) + part.amin(2, keepdim=True)) / 2
    return (bias + base).to(dtype).unsqueeze(2), (part - base).to(dtype)


def _joined(
    o1: torch.Tensor, l1: torch.Tensor, o2: torch.Tensor, l2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two disjoint sets of keys from that over each."""
    both = torch.logaddexp(l1, l2)
    weights = (torch.exp(l - both).nan_to_num(0.0).unsqueeze(-1) for l in (l1, l2))
    return torch.addcmul(o1 * next(weights), o2, next(weights)), both


def library_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
) -> Any:
    """Gradients of q, k, v by the library's fused attention, scale 1."""
    if not q.numel() or not k.numel():
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    lse = lse.masked_fill(lse == float("-inf"), 0.0)  # scores of rows without keys are -inf, and so their weights 0
    return flash_backward(grad, q, k, v, out, lse, 0.0, causal, attn_mask=None, scale=1.0)
