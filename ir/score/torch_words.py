"""Words of the score language that take torch more than one operation. Features are the last axis; torch is imported
when a word is first evaluated."""

from __future__ import annotations

from typing import Any

from aatc.ir.errors import ScoreError


def expacosh(x: Any) -> Any:
    """Of roots and halves: the square of x, or twice x, may be too large a number where 1/(2 x) is none too small."""
    x = x.clamp(min=1)
    return 0.5 / (0.5 * x + 0.5 * (x - 1).sqrt() * (x + 1).sqrt())


def item(x: Any, c: int) -> Any:
    if not -x.shape[-1] <= c < x.shape[-1]:
        raise ScoreError(f"channel {c} of a vector of {x.shape[-1]}", hint=f"channels are 0 to {x.shape[-1] - 1}")
    return x[..., c].unsqueeze(-1)


def eta(x: Any) -> Any:
    import torch

    return torch.cat([-x[..., :1], x[..., 1:]], -1)


def halves(x: Any, style: str) -> Any:
    return x.chunk(2, -1) if style == "half" else (x[..., 0::2], x[..., 1::2])


def rotate(x: Any, t: Any, style: str) -> Any:
    import torch

    a, b = halves(x, style)
    c, s = t.cos(), t.sin()
    turned = (a * c - b * s, a * s + b * c)
    return torch.cat(turned, -1) if style == "half" else torch.stack(turned, -1).flatten(-2)


def centre(x: Any) -> Any:
    return x.detach().nan_to_num(0.0, 0.0, 0.0).mean((2, 3), keepdim=True).nan_to_num(0.0)  # of no token: 0


def matvec(m: Any, x: Any) -> Any:
    if m.shape[-3] == 1:  # one matrix for all tokens: one product instead of one per token
        return x @ m.squeeze(-3).mT
    return (m @ x.unsqueeze(-1)).squeeze(-1)


def append(x: Any, s: Any) -> Any:
    import torch

    shape = torch.broadcast_shapes(x.shape[:-1], s.shape[:-1])
    return torch.cat([x.expand(*shape, x.shape[-1]), s.expand(*shape, 1)], -1)


def pair_uniform(r: Any, c: Any) -> Any:
    from aatc.ir.score.random import pair_numbers

    return pair_numbers(r, c)


def rotate_angle(x: Any, y: Any, style: str) -> Any:
    (xa, xb), (ya, yb) = halves(x, style), halves(y, style)
    return xb * ya - xa * yb


def embed(s: Any, x: Any, c: int) -> Any:
    import torch

    shape = torch.broadcast_shapes(s.shape, (*x.shape[:-1], 1))
    out = x.new_zeros(*shape[:-1], x.shape[-1])
    out[..., c] = s.expand(shape)[..., 0]
    return out
