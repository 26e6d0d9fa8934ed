"""What every kind of weight means in plain torch, with the masks, tolerances and inputs of its tests."""

import torch

from aatc import masks

INF = float("inf")


def weighed(kind, s, keep=None):
    """Weights and log-sum-exp of scores (B,H,N,M); ``keep`` tells which pairs count."""
    if keep is not None:
        s = torch.where(keep, s, -INF)
    if kind == "softmax":
        open_ = (s > -INF).any(-1)
        total = torch.where(open_.unsqueeze(-1), s, 0.0).exp() * (s > -INF)
        sums = total.sum(-1)
        return total / torch.where(open_, sums, 1.0).unsqueeze(-1), torch.where(open_, sums, 1.0).log().where(
            open_, -INF
        )
    finite = torch.where(s > -INF, s, 0.0)
    u = {
        "sigmoid": lambda x: 1 / (1 + (-x).exp()),
        "squared_relu": lambda x: x.clamp(min=0) ** 2,
        "relu_share": lambda x: x.clamp(min=0),
        "relu_sphere": lambda x: x.clamp(min=0),
    }[kind](finite)
    u = torch.where(s > -INF, u, 0.0)
    if kind == "relu_sphere":
        squares = u.square().sum(-1)
        root = torch.where(squares > 0, squares, 1.0).sqrt()
        return u / root.unsqueeze(-1), torch.where(squares > 0, root.log(), -INF)
    sums = u.sum(-1)
    some = sums > 0
    lse = torch.where(some, torch.where(some, sums, 1.0).log(), -INF)
    return (u / torch.where(some, sums, 1.0).unsqueeze(-1) if kind == "relu_share" else u), lse


MASKS = {
    "none": (None, None),
    "causal": (masks.causal(), lambda n, m: torch.ones(n, m, dtype=torch.bool).tril()),
    "window": (
        masks.causal() & masks.sliding_window(3),
        lambda n, m: torch.ones(n, m, dtype=torch.bool).tril().triu(-2),
    ),
    "rows without keys": (
        masks.predicate(lambda b, h, i, j: j + 4 < i),
        lambda n, m: torch.ones(n, m, dtype=torch.bool).tril(-5),
    ),
}
DTYPES = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 1.5e-2}
TILES = {"tiles": "rows=5 cols=4 grain=2", "library": False}


def drawn(*sizes, dtype=torch.float64, seed=0):
    b, h, hk, n, m, d, e = sizes
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)
        for shape in ((b, h, n, d), (b, hk, m, d), (b, hk, m, e))
    ]


def heads(t, h):
    return t.repeat_interleave(h // t.shape[1], 1)
