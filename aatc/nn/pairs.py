"""Scores, masks and carried values of all pairs of tokens, by reference evaluation.

They take N·M memory and are for looking at, never on the way of a forward pass.
"""

from __future__ import annotations

from torch import Tensor

from aatc.connections import Connection
from aatc.ir.reference import compute_dtype, score_dtype
from aatc.ir.score.evaluate import evaluate
from aatc.ir.score.expr import Expr, param
from aatc.masks import Mask
from aatc.metrics import Metric
from aatc.parts import Capture, Sizes

_Q, _K, _V = param("q", "bhid"), param("k", "bhjd"), param("v", "bhjd")


def _sizes(q: Tensor, k: Tensor, v: Tensor) -> Sizes:
    return Sizes(q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3], q.dtype, q.device)


def _declared(captures: list[Capture], prefix: str) -> tuple[list[Expr], dict[str, Tensor]]:
    """Captures as parameters of an expression, and their tensors by name."""
    params = [param(f"{prefix}{n}", c.axes, c.dtype) for n, c in enumerate(captures)]
    return params, {f"{prefix}{n}": c.tensor for n, c in enumerate(captures)}


def pair_scores(q: Tensor, k: Tensor, metric: Metric, connection: Connection | None = None) -> Tensor:
    """metric(q_i, k_ij) before any scale, (B, H, N, M), of q (B, H, N, D) and k (B, H, M, D).

    k_ij is the key as ``connection`` carries it to query i. float32 for half precision.
    """
    sizes = _sizes(q, k, k)
    key, captures = metric.described(sizes)
    q, k = metric.prepare(q, k)
    of_metric, env = _declared(captures, "metric")
    carried: Expr = _K
    if connection is not None:
        of_key, captures = connection.described(sizes)
        of_connection, more = _declared(captures, "connection")
        env |= more
        carried = type(connection).carried_key(of_key, _Q, _K, of_connection)
    body = type(metric).score(key, _Q, carried, iter(of_metric))
    shape = sizes[:4]
    value = evaluate(body, {"q": q, "k": k, **env}, shape, dtype=score_dtype(body, q), device=q.device)
    return value[..., 0].to(compute_dtype(q.dtype)).expand(shape)


def carried_values(q: Tensor, k: Tensor, v: Tensor, connection: Connection) -> Tensor:
    """v_j as ``connection`` carries it to query i, (B, H, N, M, Dv)."""
    sizes = _sizes(q, k, v)
    key, captures = connection.described(sizes)
    params, env = _declared(captures, "connection")
    body = type(connection).carried_value(key, _Q, _K, _V, params)
    env |= {"q": q, "k": k, "v": v}
    value = evaluate(body, env, sizes[:4], dtype=compute_dtype(q.dtype), device=q.device)
    return value.expand(*sizes[:4], sizes.dv)


def carried_keys(q: Tensor, k: Tensor, connection: Connection | None) -> Tensor:
    """k_j as ``connection`` carries it to query i, (B, H, N, M, D)."""
    sizes = _sizes(q, k, k)
    if connection is None:
        return k.unsqueeze(2).expand(*sizes[:4], k.shape[-1])
    key, captures = connection.described(sizes)
    params, env = _declared(captures, "connection")
    body = type(connection).carried_key(key, _Q, _K, params)
    value = evaluate(body, {"q": q, "k": k, **env}, sizes[:4], dtype=compute_dtype(q.dtype), device=q.device)
    return value.expand(*sizes[:4], k.shape[-1])


def admitted_pairs(mask: Mask, q: Tensor, k: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """Where queries start ≤ i < stop may attend: bool (B, H, stop - start, M)."""
    sizes = _sizes(q, k, k)
    rows = (sizes.i if stop is None else stop) - start
    key, whole = mask.described(sizes)
    captures = [
        c._replace(tensor=c.tensor.narrow(c.axes.index("i"), start, rows)) if "i" in c.axes else c for c in whole
    ]
    params, env = _declared(captures, "mask")
    body = type(mask).truth(key, iter(params))
    shape = (sizes.b, sizes.h, rows, sizes.j)
    starts = (0, 0, start, 0)
    value = evaluate(body, env, shape, dtype=compute_dtype(q.dtype), device=q.device, starts=starts)
    return value[..., 0].expand(shape)
