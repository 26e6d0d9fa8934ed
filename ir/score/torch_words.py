"""Words of the score language that take torch more than one operation. Features are the last axis; torch is imported
when a word is first evaluated."""

from __future__ import annotations

from aatc.ir.errors import ScoreError


def expacosh(x):
    x = x.clamp(min=1)
    return (x + (x * x - 1).sqrt()).reciprocal()


def item(x, c: int):
    if not -x.shape[-1] <= c < x.shape[-1]:
        raise ScoreError(f"channel {c} of a vector of {x.shape[-1]}", hint=f"channels are 0 to {x.shape[-1] - 1}")
    return x[..., c].unsqueeze(-1)


def eta(x):
    import torch

    return torch.cat([-x[..., :1], x[..., 1:]], -1)


def halves(x, style: str):
    return x.chunk(2, -1) if style == "half" else (x[..., 0::2], x[..., 1::2])


def rotate(x, t, style: str):
    import torch

    a, b = halves(x, style)
    c, s = t.cos(), t.sin()
    turned = (a * c - b * s, a * s + b * c)
    return torch.cat(turned, -1) if style == "half" else torch.stack(turned, -1).flatten(-2)


def centre(x):
    return x.detach().nan_to_num(0.0, 0.0, 0.0).mean((2, 3), keepdim=True).nan_to_num(0.0)  # of no token: 0


def matvec(m, x):
    if m.shape[-3] == 1:  # one matrix for all tokens: one product instead of one per token
        return x @ m.squeeze(-3).mT
    return (m @ x.unsqueeze(-1)).squeeze(-1)


def append(x, s):
    import torch

    shape = torch.broadcast_shapes(x.shape[:-1], s.shape[:-1])
    return torch.cat([x.expand(*shape, x.shape[-1]), s.expand(*shape, 1)], -1)


def pair_uniform(r, c):
    from aatc.ir.score.random import pair_numbers

    return pair_numbers(r, c)


def rotate_angle(x, y, style: str):
    (xa, xb), (ya, yb) = halves(x, style), halves(y, style)
    return xb * ya - xa * yb


def embed(s, x, c: int):
    import torch

    shape = torch.broadcast_shapes(s.shape, (*x.shape[:-1], 1))
    out = x.new_zeros(*shape[:-1], x.shape[-1])
    out[..., c] = s.expand(shape)[..., 0]
    return out
