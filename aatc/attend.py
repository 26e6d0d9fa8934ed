"""`attend`: one attention, put together from its declarative parts and run as one custom op."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch

from aatc.biases import Bias, as_bias
from aatc.connections import Connection, as_connection
from aatc.ir.aggregations import AGGREGATIONS
from aatc.ir.errors import CaptureError, ScoreError, ShapeError, UnsupportedError
from aatc.ir.score.evaluate import expand_heads
from aatc.ir.score.expr import INDEX_AXES, ONE, ZERO, Expr, call, div, free_name, mul, param, sub, uniform
from aatc.ir.score.program import Program
from aatc.masks import Mask, as_mask
from aatc.metrics import Metric
from aatc.normalizers import Normalizer, Sigmoid, Softmax, kind_of, with_sink
from aatc.ops import write_spec
from aatc.parts import (
    Capture,
    Key,
    Part,
    Sizes,
    integer,
    number,
    same,
    scalar_captures,
    scalar_expr,
    scalar_key,
    tensor,
)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    metric: Metric,
    connection: Connection | None = None,
    bias: Bias | torch.Tensor | None = None,
    mask: Mask | torch.Tensor | None = None,
    normalizer: str | Softmax | Sigmoid | Normalizer = "softmax",
    scale: float | torch.Tensor | None = None,
    soft_cap: float | torch.Tensor | None = None,
    aggregate: str = "mean",
    dropout: float = 0,
    seed: int | torch.Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Geometric attention: o_i = Σ_j w_ij v_ij, w_ij = softmax_j(scale · metric(q_i, k_ij) + bias_ij) over
    the keys that ``mask`` admits, where k_ij and v_ij are key and value as ``connection`` carries them to i.
    ``normalizer`` may put other weights in the place of softmax, see `aatc.normalizers`.

    q: (B, H, N, D), k: (B, Hk, M, D), v: (B, Hk, M, Dv), Hk dividing H: a key head serves H/Hk query heads.
    Tensors of several dtypes are promoted to one. ``scale`` is a number or a tensor () or (H,); its default
    is the metric's. ``soft_cap``, a positive number or such a tensor, bounds scores before the bias is added:
    cap · tanh(scale · metric / cap). A bare tensor as ``bias`` or ``mask`` is a dense one. ``dropout`` zeroes a
    weight with that probability and divides the others by 1 - dropout; the numbers depend on ``seed`` and the
    indices alone; without a seed, one is drawn from torch's generator.

    Returns o (B, H, N, Dv), and with ``return_lse`` the log-sum-exp of the scores (B, H, N), float32, or
    float64 for float64; what other normalisers than softmax give for it, they say. A query without any admitted key
    has o = 0 and lse = -inf. Differentiable in q, k, v
    and every floating tensor in the parts, in reverse and forward mode, as often as one likes; derivatives
    beyond the first, and those of `torch.func`, keep several (B, H, N, M) tensors. Raises ShapeError,
    CaptureError, ScoreError.
    """
    if not isinstance(metric, Metric):
        raise ScoreError(
            f"metric is {metric!r}",
            hint="give an object of aatc.metrics, or decorate a function with @aatc.metric",
        )
    if aggregate not in AGGREGATIONS:
        raise UnsupportedError(f"aggregate {aggregate!r} is not known", hint=f"there is {', '.join(AGGREGATIONS)}")
    kind = kind_of(normalizer)
    if soft_cap is not None:
        soft_cap = number("soft_cap", soft_cap)
        if not isinstance(soft_cap, torch.Tensor) and not soft_cap > 0:
            raise ScoreError(
                f"soft_cap is {soft_cap}", hint="it bounds the magnitude of scores: a positive number, or None"
            )
    connection = as_connection(connection)
    if bias is not None:
        bias = as_bias(bias)
    if mask is not None:
        mask = as_mask(mask)
    sizes = _sizes(q, k, v)
    if q.dtype != sizes.dtype:
        q = q.to(sizes.dtype)
    if k.dtype != sizes.dtype:
        k = k.to(sizes.dtype)
    if v.dtype != sizes.dtype:
        v = v.to(sizes.dtype)
    if scale is None:
        scale = sizes.d**-0.5 if metric.root_scale and sizes.d else 1.0
    scale, dropout = number("scale", scale), number("dropout", dropout)
    thinned = dropout != 0
    keys: list[Any] = []
    groups: list[list[Capture]] = []
    for part in (metric, connection, bias, mask):
        key, captures = (None, []) if part is None else part.described(sizes)
        keys.append(key)
        groups.append(captures)
    groups.insert(2, scalar_captures("scale", scale, sizes))
    groups.append([*_seed(dropout, seed, sizes), *scalar_captures("dropout", dropout, sizes)] if thinned else [])
    shift = getattr(normalizer, "bias", None)
    for name, given in (("soft_cap", soft_cap), ("shift", shift)):
        groups.append([] if given is None else scalar_captures(name, given, sizes))
    for group in groups:
        for capture in group:
            _check(capture, sizes)
    q, k = metric.prepare(q, k)
    if not same(k.shape[1], v.shape[1]):
        v = expand_heads(v, k.shape[1])
    spec = _spec(
        (
            *keys,
            scalar_key(scale, "scale"),
            scalar_key(dropout) if thinned else None,
            None if soft_cap is None else scalar_key(soft_cap, "soft_cap"),
            None if shift is None else scalar_key(shift, "the shift"),
            kind,
            aggregate,
            tuple([tuple([(c.name, c.axes, c.dtype) for c in group]) for group in groups]),
        )
    )
    sink = getattr(normalizer, "sink", None)
    if sink is not None and sizes.dtype not in (torch.float32, torch.float64):
        v = v.float()  # the output is rounded once
    o, lse = torch.ops.aatc.attend(q, k, v, [c.tensor for group in groups for c in group], spec)
    if sink is not None:
        o, lse = with_sink(sink, o, lse)
        o = o.to(sizes.dtype)
    return (o, lse) if return_lse else o


# --- what is said -------------------------------------------------------------------------------------------
def _spec(key: Key) -> str:
    return _spec_of(key)


# what torch.compiler.assume_constant_result does, which would import Dynamo
_spec._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=4096)
def _spec_of(key: Key) -> str:
    """The text of an attention's attributes, from its parts' keys and the declarations of their captures."""
    metric, connection, bias, mask, scale, dropout, soft_cap, shift, kind, aggregate, groups = key
    q, k, v = param("q", "bhid"), param("k", "bhjd"), param("v", "bhjd")
    names = ["q", "k", "v"]
    captured: list[list[Expr]] = []
    for group in groups:
        captured.append([param(_fresh(name, names), axes, dtype) for name, axes, dtype in group])
    of_metric, of_connection, of_scale, of_bias, of_mask, of_dropout, of_cap, of_shift = captured

    carried_k, carried_v = k, v
    if connection is not None:
        cls: Any = Part.of_key(connection)
        carried_k = cls.carried_key(connection, q, k, of_connection)
        carried_v = cls.carried_value(connection, q, k, v, of_connection)
    score = Part.of_key(metric).score(metric, q, carried_k, iter(of_metric))
    score = _scaled(scale, iter(of_scale), score)
    if soft_cap is not None:
        cap = scalar_expr(soft_cap, iter(of_cap))
        score = mul(cap, call("tanh", div(score, cap)))
    if bias is not None:
        score = score + Part.of_key(bias).value(bias, iter(of_bias))
    if shift is not None:
        score = score + scalar_expr(shift, iter(of_shift))
    if dropout is not None:
        p = scalar_expr(dropout, iter(of_dropout[1:]))
        keep = uniform(of_dropout[0]) >= p
        carried_v = mul(call("where", keep, div(ONE, sub(ONE, p)), ZERO), carried_v)

    order = [q, k, v, *(p for group in captured for p in group)]
    programs = {"score": Program.of(score, order), "carry": Program.of(carried_v, order)}
    if mask is not None:
        programs["mask"] = Program.of(Part.of_key(mask).truth(mask, iter(of_mask)), order)
    read = {p for program in programs.values() for p in program.params}
    # a capture that nothing reads stays an operand: its gradient is zero, not missing
    declared = [p for p in order if p in programs["score"].params or (p.dtype == "f" and p not in read)]
    programs["score"] = Program(tuple(declared), score)
    return write_spec({"names": tuple(names), **programs, "kind": kind, "aggregate": aggregate})


def _scaled(key: str, captured: Iterator[Expr], score: Expr) -> Expr:
    return mul(scalar_expr(key, captured), score)


def _fresh(name: str, names: list[str]) -> str:
    """``name``, numbered if it is taken; entered into ``names``."""
    found, n = free_name(name), 1
    while found in names:
        n += 1
        found = f"{name}{n}"
    names.append(found)
    return found


# --- checks -------------------------------------------------------------------------------------------------
def _shapes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str:
    return f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"


def _sizes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Sizes:
    for name, t in (("q", q), ("k", k), ("v", v)):
        if not isinstance(t, torch.Tensor) or t.layout != torch.strided or t.is_nested:
            what = f"a {t.layout} tensor" if isinstance(t, torch.Tensor) else f"a {type(t).__name__}"
            raise ShapeError(f"{name} is {what}", hint=f"{name} is a dense tensor (batch, heads, length, features)")
        if t.dim() != 4:
            raise ShapeError(
                f"{name} has shape {tuple(t.shape)}",
                hint=f"{name} is (batch, heads, length, features); unsqueeze what is missing",
            )
        if not t.is_floating_point():
            raise ShapeError(f"{name} holds {t.dtype}", hint=f"{name} must be a floating-point tensor")
    if not same(q.shape[0], k.shape[0]) or not same(k.shape[0], v.shape[0]):
        raise ShapeError(f"batch sizes differ: {_shapes(q, k, v)}", hint="expand the smaller ones")
    if q.shape[3] != k.shape[3]:
        raise ShapeError(
            f"q has {q.shape[3]} features and k {k.shape[3]}: {_shapes(q, k, v)}",
            hint="q and k are compared feature by feature; only v may have another width",
        )
    if not same(k.shape[1], v.shape[1]) or not same(k.shape[2], v.shape[2]):
        raise ShapeError(f"k and v differ in heads or length: {_shapes(q, k, v)}", hint="every key needs its value")
    if not same(q.shape[1], k.shape[1]) and (k.shape[1] == 0 or q.shape[1] % k.shape[1]):
        raise ShapeError(
            f"{q.shape[1]} query heads cannot share {k.shape[1]} key heads",
            hint="the number of key heads must divide the number of query heads",
        )
    if q.device != k.device or q.device != v.device:
        raise ShapeError(f"q, k and v are on {q.device}, {k.device} and {v.device}", hint="move them to one device")
    dtype = q.dtype
    if k.dtype != dtype or v.dtype != dtype:
        dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    widths = _width(q.shape[3]), _width(v.shape[3])
    return Sizes(q.shape[0], q.shape[1], q.shape[2], k.shape[2], *widths, dtype, q.device)


def _width(size: int) -> int:
    """A number also where Dynamo traces a symbol: kernels are made for one width, and so is the scale 1/sqrt(width)."""
    return operator.index(size) if torch.compiler.is_dynamo_compiling() else size


_WORDS = {"b": "batch", "h": "query heads", "i": "queries", "j": "keys"}


def _check(c: Capture, sizes: Sizes) -> None:
    t = tensor(c.name, c.tensor)
    if t.dim() != len(c.axes):
        raise CaptureError(f"{c.name} has shape {tuple(t.shape)}; its axes are {c.axes!r}: {len(c.axes)} dimensions")
    for n, axis in zip(t.shape, c.axes, strict=True):
        if axis in INDEX_AXES and not same(n, sizes[INDEX_AXES.index(axis)]):
            raise CaptureError(
                f"{c.name} has shape {tuple(t.shape)} along axes {c.axes!r}: {n} along {axis}, but there are "
                f"{sizes[INDEX_AXES.index(axis)]} {_WORDS[axis]}"
            )
    if c.dtype == "b":
        if t.dtype != torch.bool:
            raise CaptureError(
                f"{c.name} holds {t.dtype}, not truth values",
                hint="a mask is a bool tensor; add numbers as bias=",
            )
    elif c.dtype == "f":
        if not t.is_floating_point():
            raise CaptureError(
                f"{c.name} holds {t.dtype}, not floating-point numbers", hint="convert it, say with .float()"
            )
    elif t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
        raise CaptureError(f"{c.name} holds {t.dtype}, not integers", hint="convert it, say with .long()")
    if t.device != sizes.device:
        raise CaptureError(f"{c.name} is on {t.device}, q on {sizes.device}", hint="move them to one device")


def _seed(dropout: float, seed: int | torch.Tensor | None, sizes: Sizes) -> list[Capture]:
    if not 0 <= dropout < 1:
        raise ScoreError(f"dropout {dropout} is not a probability below 1")
    if seed is None:
        seed = torch.randint(0, 2**62, (), dtype=torch.int64, device=sizes.device)
    else:
        seed = integer("the seed of dropout", seed, 63)
        if not isinstance(seed, torch.Tensor):
            seed = torch.tensor(seed, dtype=torch.int64, device=sizes.device)
    return [Capture("seed", seed, "", "i")]
