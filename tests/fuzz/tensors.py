"""Tensors of drawn attentions: values of every kind, and layouts of every kind.

Nothing here knows aatc. A layout never changes values, except that of stride 0, which first makes them equal along
the axis it repeats; what lies around a sliced tensor is NaN, so that reading outside shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

#: Values of features. "tied" and the rest of a query's relation to its keys is decided in `strategies`.
VALUES = (
    "normal", "normal", "normal", "negative", "thousands", "million", "tiny", "zero-tokens", "equal-tokens",
    "near-tokens", "offset", "clusters", "sparse",
)  # fmt: skip

#: Layouts; each is a way of holding the same values.
LAYOUTS = (
    "contiguous", "contiguous", "mT", "swap-12", "channel-last", "sliced", "sliced-rows", "stepped", "offset",
    "flipped", "stride-0-last", "stride-0-row", "stride-0-head", "overlapping", "permuted",
)  # fmt: skip
#: Those that change values, which takes points off a manifold.
CHANGING = ("stride-0-last", "stride-0-row", "stride-0-head", "overlapping")


@dataclass(frozen=True)
class Leaf:
    """One tensor of a drawn attention. ``kind`` names its values, ``layout`` how it is held."""

    shape: tuple[int, ...]
    dtype: str
    kind: str = "normal"
    layout: str = "contiguous"
    grad: bool = True


def dtype_of(name: str) -> torch.dtype:
    return getattr(torch, name)


def hyperboloid(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([(1 + x[..., 1:].square().sum(-1, keepdim=True)).sqrt(), x[..., 1:]], -1)


#: Connections that carry tangent values.
TANGENT = ("sphere", "hyperboloid")
DOMAINS = {
    "hyperboloid": hyperboloid,
    "ball": lambda x: 0.7 * x / (1 + x.norm(dim=-1, keepdim=True)),
    "simplex": lambda x: x.softmax(-1),
    "sphere": lambda x: torch.nn.functional.normalize(x, dim=-1),
}


def features(kind: str, shape: Sequence[int], g: torch.Generator) -> torch.Tensor:
    """Feature vectors (B, H, T, D) in float64."""
    x = torch.randn(tuple(shape), generator=g, dtype=torch.float64)
    tokens = shape[-2]
    if kind == "negative":
        return -x.abs() - 0.01
    if kind == "thousands":
        return x * 1e3
    if kind == "million":
        return x * 1e6
    if kind == "tiny":
        return x * 1e-6
    if kind == "zero-tokens":
        return x * (torch.rand(*shape[:-1], 1, generator=g) < 0.6)
    if kind == "equal-tokens":
        return x[..., :1, :].expand(shape).clone() if tokens else x
    if kind == "near-tokens":
        return x[..., :1, :] + 1e-4 * x if tokens else x
    if kind == "offset":
        return x + 1e3 * torch.randn(*shape[:-2], 1, shape[-1], generator=g, dtype=torch.float64).sign()
    if kind == "clusters":
        side = torch.randint(0, 2, (tokens, 1), generator=g) * 2 - 1
        return x + side * 1e2
    if kind == "sparse":
        return x * (torch.rand(tuple(shape), generator=g) < 0.5)
    return x


def numbers(kind: str, shape: Sequence[int], g: torch.Generator) -> torch.Tensor:
    """Captured numbers, integers or truth values, by ``kind``."""
    if kind == "positive":
        return torch.rand(tuple(shape), generator=g, dtype=torch.float64) + 0.5
    if kind == "uniform":
        return torch.rand(tuple(shape), generator=g, dtype=torch.float64)
    if kind == "zeros":
        return torch.zeros(tuple(shape), dtype=torch.float64)
    if kind.startswith("fill-"):  # some entries, and now and then a whole row, hold one number far below the others
        x = torch.randn(tuple(shape), generator=g, dtype=torch.float64)
        rows = torch.rand(*shape[:-1], 1, generator=g) < 0.15
        value = {"fill-billion": -1e9, "fill-inf": float("-inf"), "fill-min": -3e38, "fill-thousand": -1e3}[kind]
        return x.masked_fill((torch.rand(tuple(shape), generator=g) < 0.3) | rows, value)
    if kind == "documents":
        return torch.randint(0, 3, shape, generator=g).sort(-1).values
    if kind == "documents-mixed":
        return torch.randint(-2, 2, shape, generator=g)
    if kind == "documents-huge":
        return 2**53 + torch.randint(0, 3, shape, generator=g)
    if kind == "small-integers":
        return torch.randint(-3, 6, shape, generator=g)
    if kind == "positions":
        return torch.randint(0, 9, shape, generator=g)
    if kind == "far-positions":
        return 10**6 + torch.randint(0, 9, shape, generator=g)
    if kind == "seed":
        return torch.randint(-(2**62), 2**62, shape, generator=g)
    if kind.startswith("keep"):
        return (
            torch.rand(tuple(shape), generator=g)
            < {"keep": 0.7, "keep-few": 0.2, "keep-all": 2.0, "keep-none": -1.0}[kind]
        )
    if kind == "orthogonal":
        return torch.linalg.qr(torch.randn(tuple(shape), generator=g, dtype=torch.float64))[0]
    if kind == "spd":
        m = torch.randn(tuple(shape), generator=g, dtype=torch.float64)
        return torch.eye(shape[-1], dtype=torch.float64) + 0.1 * m @ m.mT
    return torch.randn(tuple(shape), generator=g, dtype=torch.float64)


def _constant_along(x: torch.Tensor, axis: int) -> torch.Tensor:
    return x.narrow(axis, 0, 1).expand(x.shape) if x.shape[axis] else x


def _poison(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    if like.is_floating_point():
        return torch.full(tuple(shape), float("nan"), dtype=like.dtype)
    return torch.full(tuple(shape), 1, dtype=like.dtype)


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """``x`` in another layout; equal to ``x`` but for stride-0 layouts, which repeat its first entry."""
    n = x.dim()
    if n == 0 or layout == "contiguous":
        return x.contiguous()
    if layout in ("mT", "channel-last", "swap-12", "permuted"):
        order = list(range(n))
        if layout == "mT" and n >= 2:
            order[-1], order[-2] = order[-2], order[-1]
        elif layout == "swap-12" and n >= 3:
            order[-2], order[-3] = order[-3], order[-2]
        elif layout == "channel-last" and n >= 3:
            order = [0, *range(2, n), 1]
        elif layout == "permuted":
            order = order[::-1]
        back = [order.index(a) for a in range(n)]
        return x.permute(order).contiguous().permute(back)
    if layout in ("sliced", "sliced-rows"):
        axis = -1 if layout == "sliced" or n < 2 else -2
        room = list(x.shape)
        room[axis] += 3
        big = _poison(room, x)
        part = big.narrow(axis, 1, x.shape[axis])
        part.copy_(x)
        return part
    if layout == "stepped":
        big = _poison([*x.shape[:-1], 2 * x.shape[-1] + 1], x)
        part = big[..., 1::2]
        part.copy_(x)
        return part
    if layout == "offset":
        big = _poison([x.numel() + 5], x)
        part = big[3 : 3 + x.numel()].view(x.shape)
        part.copy_(x)
        return part
    if layout == "flipped":
        return x.flip(-1).contiguous().flip(-1)
    if layout == "stride-0-last":
        return _constant_along(x, n - 1)
    if layout == "stride-0-row":
        return _constant_along(x, max(n - 2, 0))
    if layout == "stride-0-head":
        return _constant_along(x, 1 if n >= 3 else 0)
    if layout == "overlapping":  # rows that share memory: row t is a window into one line
        if n < 2 or 0 in x.shape:
            return x.contiguous()
        line = torch.cat([x[..., 0, :], x[..., 1:, -1]], -1).contiguous()
        return line.unfold(-1, x.shape[-1], 1)
    raise ValueError(layout)


def tangent(v: torch.Tensor, k: torch.Tensor, at: str) -> torch.Tensor:
    """``v`` without what is normal at the points k of a sphere or hyperboloid: transports along it take tangents."""
    normal = torch.cat([-k[..., :1], k[..., 1:]], -1) if at == "hyperboloid" else k
    square = (k * normal).sum(-1, keepdim=True)
    return v - (v * normal).sum(-1, keepdim=True) / torch.where(square == 0, 1.0, square) * k


def make(
    leaves: dict[str, Leaf],
    seed: int,
    domain: str | None,
    ties: Sequence[tuple[str, str]] = (),
    carried: str | None = None,
):
    """The tensors of all leaves, in their dtypes and layouts. ``domain`` maps q and k; ``ties`` are (name, source)
    pairs that get the source's values; ``carried``: the connection, which may ask for tangent values."""
    made: dict[str, torch.Tensor] = {}
    for n, (name, leaf) in enumerate(leaves.items()):
        g = torch.Generator().manual_seed(1000 * seed + n)
        if name in ("q", "k", "v"):
            x = features(leaf.kind, leaf.shape, g)
            if domain and name != "v":
                x = DOMAINS[domain](x)
            if name == "v" and carried in TANGENT:
                x = tangent(x, made["k"].double(), carried)
        else:
            x = numbers(leaf.kind, leaf.shape, g)
        if leaf.dtype == "float16" and x.is_floating_point():  # whose range ends at 65504
            x = torch.where(x.isfinite(), x.clamp(-6e4 if leaf.kind == "fill-min" else -2e4, 2e4), x) * (
                1e3 if leaf.kind == "tiny" else 1
            )
        x = x.to(dtype_of(leaf.dtype))
        source = dict(ties).get(name)
        if source is not None:
            x = made[source].clone().to(x.dtype)
        made[name] = laid_out(x, leaf.layout)
    return made
