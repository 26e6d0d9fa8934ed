"""What the words of a drawn attention mean, as torch operators on (B, H, N, M, feature) tensors.

Imports nothing of aatc. `Formula` evaluates the trees of one attention; `oracle` makes the attention of them.
While `Rounding` is entered, products in contractions are rounded as another order of summation would round them.
"""

from __future__ import annotations

import math
from typing import Any

import torch

Tree = tuple[Any, ...]
AXES = "bhij"


def positive_root(x):
    """sqrt(max(x, 0)), with derivative 0 where x <= 0."""
    return torch.where(x > 0, x, 1.0).sqrt() * (x > 0)


def acosh(x):
    """With the derivative of the logarithm: torch's own, 1 / sqrt(x * x - 1), loses half of its digits beside 1."""
    above = torch.where(x > 1, x, 2.0) - 1
    return torch.where(x > 1, torch.log1p(above + (above * (above + 2)).sqrt()), 0.0)


def acosh_squared(x):
    """acosh(x)**2, with the slope of its limit, 2, where x <= 1."""
    return torch.where(x > 1, acosh(x) ** 2, 2 * (x - x.detach()))


def acos(x):
    inside = (x > -1) & (x < 1)
    return torch.where(inside, torch.where(inside, x, 0.0).acos(), (x < 1).to(x.dtype) * math.pi)


def asin_root(x):
    inside = (x > 0) & (x < 1)
    return torch.where(inside, torch.where(inside, x, 0.5).sqrt().asin(), (x >= 1).to(x.dtype) * (math.pi / 2))


def halves(x, style):
    return x.chunk(2, -1) if style == "half" else (x[..., 0::2], x[..., 1::2])


def rotated(x, theta, style):
    a, b = halves(x, style)
    c, s = theta.cos(), theta.sin()
    turned = (a * c - b * s, a * s + b * c)
    return torch.cat(turned, -1) if style == "half" else torch.stack(turned, -1).flatten(-2)


class Rounding:
    """While it is entered, every product in a contraction is off by up to a unit in the last place: what another order
    of summation, or a fused multiplication, would make of the same formula."""

    unit: float = 0.0
    draws: torch.Generator | None = None

    def __init__(self, unit: float, seed: int):
        self.new, self.seed = unit, seed

    def __enter__(self):
        Rounding.unit, Rounding.draws = self.new, torch.Generator().manual_seed(self.seed)

    def __exit__(self, *_):
        Rounding.unit = 0.0


def rounded(x):
    if not Rounding.unit:
        return x
    noise = torch.rand(x.shape, generator=Rounding.draws, dtype=x.dtype) * 2 - 1
    return x * (1 + Rounding.unit * noise)


def minkowski(x, y):
    own = torch.ones(x.shape[-1], dtype=x.dtype)
    own[0] = -1
    return (rounded(x * y) * own).sum(-1, keepdim=True)


def norm(x):
    return positive_root(rounded(x * x).sum(-1, keepdim=True))


def dot(x, y):
    return rounded(x * y).sum(-1, keepdim=True)


# --- random numbers of dropout: the 32-bit mixing that the manual describes, in Python integers -----------------
_MASK = 0xFFFFFFFF


def _mix(x: int) -> int:
    x ^= x >> 16
    x = (x * 0x7FEB352D) & _MASK
    x ^= x >> 15
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def uniform(seed: int, sizes: tuple[int, int, int, int]) -> torch.Tensor:
    """A number in [0, 1) per (b, h, i, j)."""
    b, h, n, m = sizes
    seed &= (1 << 64) - 1
    start = _mix((seed & _MASK) ^ _mix(seed >> 32))
    columns = [_mix((j * 0x27D4EB2F + 0x165667B1) & _MASK) for j in range(m)]
    out = []
    for bi in range(b):
        kb = _mix((start + bi * 0x9E3779B1) & _MASK)
        for hi in range(h):
            kh = _mix((kb + hi * 0x85EBCA77) & _MASK)
            for i in range(n):
                row = _mix((kh + i * 0xC2B2AE3D) & _MASK)
                out.append([(_mix(row ^ c) >> 8) * 2.0**-24 for c in columns])
    return torch.tensor(out, dtype=torch.float64).reshape(b, h, n, m)


class Formula:
    """Evaluates the trees of one attention. ``x``: its tensors by name; numbers are computed in ``dtype``."""

    def __init__(self, case, x: dict[str, torch.Tensor], dtype: torch.dtype):
        self.case, self.x, self.dtype = case, x, dtype
        self.sizes = case.sizes
        self.done: dict[Tree, torch.Tensor] = {}
        self.vectors: dict[str, torch.Tensor] = {}

    def placed(self, name: str, axes: str) -> torch.Tensor:
        """A captured tensor with the layout (B, H, N, M, feature...); size 1 where it does not vary."""
        t = self.x[name]
        lead = [c for c in axes if c in AXES]
        shape = [t.shape[lead.index(c)] if c in lead else 1 for c in AXES]
        t = t.reshape(*shape, *(t.shape[len(lead) :] or (1,)))
        return t.to(self.dtype) if t.is_floating_point() else t

    def index(self, axis: str) -> torch.Tensor:
        shape = [1] * 5
        at = AXES.index(axis)
        shape[at] = self.sizes[at]
        return torch.arange(self.sizes[at]).reshape(shape)

    def heads(self, name: str, axis: str) -> torch.Tensor:
        """q, k or v as (B, H, N, 1, D) or (B, H, 1, M, D)."""
        t = self.x[name].to(self.dtype)
        if t.shape[1] != self.sizes[1]:
            t = t.repeat_interleave(self.sizes[1] // t.shape[1], 1)
        return t.unsqueeze(3) if axis == "i" else t.unsqueeze(2)

    def number(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.is_floating_point() else x.to(self.dtype)

    def value(self, tree: Tree) -> torch.Tensor:
        if tree not in self.done:
            self.done[tree] = self._value(tree)
        return self.done[tree]

    def _value(self, tree: Tree) -> torch.Tensor:
        word, *rest = tree
        if word == "const":
            kind = torch.bool if isinstance(rest[0], bool) else torch.int64 if isinstance(rest[0], int) else self.dtype
            return torch.tensor(rest[0], dtype=kind).reshape(1, 1, 1, 1, 1)
        if word in ("q", "k", "v"):
            return self.vectors[word]
        if word == "cap":
            return self.placed(*rest)
        if word == "index":
            return self.index(rest[0])
        if word == "lookup":
            return self._lookup(rest[0], rest[1], [self.value(p) for p in rest[2:]])
        if word == "uniform":
            return uniform(int(self.x[rest[0]]), self.sizes).to(self.dtype).unsqueeze(-1)
        if word == "item":
            return self.value(rest[0])[..., rest[1]].unsqueeze(-1)
        if word == "pow":
            return self.number(self.value(rest[0])) ** rest[1]
        if word == "rotate":
            return rotated(self.value(rest[0]), self.value(rest[1]), rest[2])
        if word == "embed":
            s, like = torch.broadcast_tensors(self.value(rest[0]), self.value(rest[1]))
            unit = torch.zeros(like.shape[-1], dtype=self.dtype)
            unit[rest[2]] = 1.0
            return s * unit
        args = [self.value(a) for a in rest]
        if word in _EXACT and not any(a.is_floating_point() for a in args if a.dtype != torch.bool):
            return _WORDS[word](*args)
        return _WORDS[word](*(a if a.dtype == torch.bool else self.number(a) for a in args))

    def _lookup(self, name: str, axes: str, positions: list[torch.Tensor]) -> torch.Tensor:
        table = self.x[name]
        at = [self.index(c) for c in axes if c in AXES]
        for p in positions:
            p = p.round() if p.is_floating_point() else p
            at.append(p.long().clamp(0, table.shape[len(at)] - 1))
        return table[tuple(at)].to(self.dtype)


def matvec(m, x):
    return rounded(m * x.unsqueeze(-2)).sum(-1)


def _append(x, s):
    shape = torch.broadcast_shapes(x.shape[:-1], s.shape[:-1])
    return torch.cat([x.expand(*shape, x.shape[-1]), s.expand(*shape, 1)], -1)


_EXACT = frozenset(
    [
        "add",
        "sub",
        "mul",
        "neg",
        "abs",
        "square",
        "sign",
        "floor",
        "lt",
        "le",
        "gt",
        "ge",
        "eq",
        "ne",
        "and",
        "or",
        "not",
        "maximum",
        "minimum",
        "where",
    ]
)
_WORDS = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "neg": lambda x: -x,
    "abs": lambda x: x.abs(),
    "square": lambda x: x * x,
    "step": lambda x: (x > 0).to(x.dtype),
    "sign": lambda x: torch.sign(x.detach()),
    "sqrt": positive_root,
    "rsqrt": lambda x: 1 / x.sqrt(),
    "reciprocal": lambda x: 1 / x,
    "exp": torch.exp,
    "exp2": lambda x: torch.pow(2.0, x),
    "log": torch.log,
    "log2": torch.log2,
    "log1p": torch.log1p,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "relu": lambda x: torch.where(x > 0, x, 0.0),
    "floor": lambda x: x.detach().floor() if x.is_floating_point() else x,
    "acosh": acosh,
    "expacosh": lambda x: (-acosh(x)).exp(),
    "asinsqrt": asin_root,
    "acos": acos,
    "maximum": lambda x, y: torch.where(x >= y, x, y),
    "minimum": lambda x, y: torch.where(x <= y, x, y),
    "where": lambda c, x, y: torch.where(c, x, y),
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "not": lambda x: ~x,
    "dot": dot,
    "sum": lambda x: rounded(x).sum(-1, keepdim=True),
    "eta": lambda x: torch.cat([-x[..., :1], x[..., 1:]], -1),
    "matvec": matvec,
    "tmatvec": lambda m, x: matvec(m.mT, x),
    "turn": matvec,
    "unturn": lambda m, x: matvec(m.mT, x),
    "outer": lambda x, y: x.unsqueeze(-1) * y.unsqueeze(-2),
    "append": _append,
    "init": lambda x: x[..., :-1],
    "norm": norm,
    "power": lambda x, y: torch.exp(y * torch.log(x)),
    "mean": lambda x: rounded(x).sum(-1, keepdim=True) / x.shape[-1],
    "amax": lambda x: x.amax(-1, keepdim=True),
    "amin": lambda x: x.amin(-1, keepdim=True),
    "mod": lambda x, y: x - y * (x / y).detach().floor() if x.is_floating_point() else x % y,
    "floordiv": lambda x, y: (x / y).detach().floor() if x.is_floating_point() else x // y,
}
