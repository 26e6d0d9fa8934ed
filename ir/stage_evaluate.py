"""Reference evaluation of attention's stages, and of programs per token, in torch: whole score matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from aatc.ir import reference
from aatc.ir.aggregations import aggregation_named
from aatc.ir.normalizers import normalizer_named
from aatc.ir.score.evaluate import evaluate, expand_heads
from aatc.ir.score.expr import INDEX_AXES
from aatc.ir.tile_evaluate import bind
from aatc.ir.types import torch_dtype

if TYPE_CHECKING:
    from aatc.ir.core import Op


def _own(result: torch.Tensor, values: list[Any]) -> torch.Tensor:
    """``result`` in memory of its own: a program may be one of its parameters as it is."""
    alias = torch._C._is_alias_of  # type: ignore[attr-defined]
    shared = any(isinstance(v, torch.Tensor) and alias(result, v) for v in values)
    return result.clone() if shared else result


def metric(op: Op, values: list[Any], _: Any) -> list[Any]:
    names = op.attrs["score"].names
    env = dict(zip(names, values, strict=True))
    heads = values[0].shape[1]
    env[names[1]] = expand_heads(values[1], heads)
    sizes = (values[0].shape[0], heads, values[0].shape[2], values[1].shape[2])
    body, dtype = op.attrs["score"].body, reference.compute_dtype(values[0].dtype)
    found = evaluate(body, env, sizes, dtype=reference.score_dtype(body, values[0]))
    return [_own(found[..., 0].to(dtype).expand(sizes), values)]


def normalize(op: Op, values: list[Any], _: Any) -> list[Any]:
    s = values[0]
    mask = op.attrs.get("mask")
    if mask is not None:
        env = dict(zip(mask.names, values[1:], strict=True))
        s = s.masked_fill(
            ~evaluate(mask.body, env, tuple(s.shape), dtype=torch.float64)[..., 0].expand(s.shape), float("-inf")
        )
    return list(normalizer_named(op.attrs["kind"]).reference(s))


def transport(op: Op, values: list[Any], _: Any) -> list[Any]:
    carry, v, like = op.attrs["carry"], values[0], values[1]
    env = dict(zip(carry.names, [v, *values[2:]], strict=True))
    env[carry.names[0]] = expand_heads(v, like.shape[1])
    for p in carry.params[1:]:
        if "h" in p.attrs[1] and "j" in p.attrs[1] and env[p.name].shape[1] not in (1, like.shape[1]):
            env[p.name] = expand_heads(env[p.name], like.shape[1])
    out = evaluate(carry.body, env, tuple(like.shape), dtype=reference.compute_dtype(v.dtype))
    return [_own(out.expand(*like.shape, v.shape[3]), values)]


def map_tokens(op: Op, values: list[Any], _: Any) -> list[Any]:
    program, shape = op.attrs["program"], tuple(values[0].shape)
    axes = program.params[0].attrs[1]
    b, h, i, j = (int(shape[axes.index(c)]) if c in axes else 1 for c in INDEX_AXES)
    sizes = (b, h, i, j)
    out = evaluate(program.body, bind(program, values, sizes), sizes, dtype=reference.compute_dtype(values[0].dtype))
    full = [n for c, n in zip(INDEX_AXES, sizes, strict=True) if c in axes]
    return [_own(out.expand(*sizes, *out.shape[4:]).reshape(full).to(values[0].dtype), values)]


def aggregate(op: Op, values: list[Any], _: Any) -> list[Any]:
    total = (values[0].unsqueeze(-1) * values[1]).sum(3)
    t: Any = op.results[0].type
    return [reference.aggregated(aggregation_named(op.attrs["kind"]), total).to(torch_dtype(t.dtype))]
