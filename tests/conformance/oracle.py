"""What every backend is measured against: attention in plain torch and float64. Imports nothing but torch.

q (B,H,N,D); k (B,H,M,D) and v (B,H,M,E) with the heads of keys repeated already; scores are (B,H,N,M).
"""

import torch


def attention(scores, v, keep=None):
    """(output, log-sum-exp) of softmax attention; ``v`` may be (B,H,N,M,E), a vector per pair. Rows without an open key
    give 0 and -inf, and nothing flows back from closed pairs."""
    keep = torch.ones_like(scores, dtype=torch.bool) if keep is None else keep.expand(scores.shape)
    some = keep.any(-1, keepdim=True)
    scores = scores.masked_fill(~keep & some, float("-inf")).masked_fill(~some, 0.0)
    weights = torch.softmax(scores, -1) * some
    lse = torch.logsumexp(scores, -1).masked_fill(~some[..., 0], float("-inf"))
    return (weights @ v if v.dim() == 4 else torch.einsum("bhij,bhije->bhie", weights, v)), lse


def independent(scores, v, keep=None):
    """The same with the sigmoid of each score as its weight; the log-sum-exp is the log of their sum."""
    keep = torch.ones_like(scores, dtype=torch.bool) if keep is None else keep.expand(scores.shape)
    weights = torch.where(keep, torch.sigmoid(scores), 0.0)
    some = keep.any(-1)
    return weights @ v, torch.where(some, torch.where(some, weights.sum(-1), 1.0).log(), float("-inf"))


def differences(q, k):
    """(B,H,N,M,D)"""
    return q.unsqueeze(3) - k.unsqueeze(2)


def lifted(x):
    """Points of the hyperboloid over spatial coordinates, time first."""
    return torch.cat([(1 + x.square().sum(-1, keepdim=True)).sqrt(), x], -1)


def lorentz(x, y):
    return x[..., 1:] @ y[..., 1:].mT - x[..., :1] @ y[..., :1].mT


def cosine(q, k):
    return (q / q.norm(dim=-1, keepdim=True)) @ (k / k.norm(dim=-1, keepdim=True)).mT


def poincare(q, k):
    squared = differences(q, k).square().sum(-1)
    qq, kk = (1 - x.square().sum(-1) for x in (q, k))
    return torch.acosh(1 + 2 * squared / (qq.unsqueeze(-1) * kk.unsqueeze(-2)))


def fisher_rao(p, r):
    """2 acos(Σ √(p r)) of probabilities, as 4 asin(|√p - √r| / 2)."""
    return 4 * torch.asin(differences(p.sqrt(), r.sqrt()).norm(dim=-1) / 2)


def turned(x, positions, base=10000.0):
    """Rotary embedding: channels c and c + D/2 turned by position * base^(-2c/D)."""
    half = x.shape[-1] // 2
    speeds = base ** (-torch.arange(half, dtype=x.dtype) / half)
    angles = positions.to(x.dtype).unsqueeze(-1) * speeds
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


def distances(n, m):
    """|i - j| as (N,M)"""
    return (torch.arange(n).unsqueeze(-1) - torch.arange(m)).abs()


def relative(table, n, m):
    """table[h, clip(j - i) + R] as (H,N,M)"""
    reach = table.shape[-1] // 2
    return table[:, (torch.arange(m) - torch.arange(n).unsqueeze(-1)).clamp(-reach, reach) + reach]


def sphere_carried(q, k, v):
    """Values carried along great circles from unit vectors k_j to q_i: (B,H,N,M,D)"""
    factor = (q @ v.mT) / (1 + q @ k.mT)
    return v.unsqueeze(2) - factor.unsqueeze(-1) * (q.unsqueeze(3) + k.unsqueeze(2))


def hyperboloid_carried(q, k, v):
    """The same on the hyperboloid, time first."""
    factor = lorentz(q, v) / (1 - lorentz(q, k))
    return v.unsqueeze(2) + factor.unsqueeze(-1) * (q.unsqueeze(3) + k.unsqueeze(2))
