"""What an attention means, written apart from aatc: metric, connection, mask, bias and weights by torch's autograd.

Imports nothing of aatc. A drawn attention (`strategies.Case`) is plain data; `attention` evaluates it by the formulas
of the manual on whatever dtype it is given: float64 for the truth, float32 for what the untouched formula loses. The
words of its trees are those of `formula`.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.fuzz.formula import (
    Formula,
    Rounding,
    Tree,
    acos,
    acosh,
    acosh_squared,
    asin_root,
    dot,
    matvec,
    minkowski,
    norm,
    positive_root,
    rotated,
    rounded,
    uniform,
)


# --- the built-in metrics ---------------------------------------------------------------------------------------
def _per_head(f: Formula, value: Any) -> Any:
    """A number, or a captured one: () or (H,)."""
    if not isinstance(value, str):
        return value
    t = f.x[value].to(f.dtype)
    return t.reshape(()) if t.numel() == 1 else t.reshape(1, t.numel(), 1, 1, 1)


def _mahalanobis(f, q, k, form):
    d, m = q - k, f.x["m"].to(f.dtype)
    own = 1 if form == "diagonal" else 2
    m = m.reshape(1, m.shape[0] if m.dim() > own else 1, 1, 1, *m.shape[m.dim() - own :])
    if form == "diagonal":
        return -(m * d * d).sum(-1, keepdim=True)
    if form == "matrix":
        return -dot(d, matvec(m, d))
    image = matvec(m.mT, d)
    return -dot(image, image)


def _lorentz(q, k, lift, c=1.0):
    if not lift:
        return minkowski(q, k)
    tq, tk = ((1 / c + dot(x, x)).sqrt() for x in (q, k))
    return dot(q, k) - rounded(tq * tk)


def _unit(x, eps):
    return x / norm(x).clamp(min=eps)


def _metric(f: Formula, q, k):
    name, *options = f.case.metric
    if name == "user":
        f.vectors = {"q": q, "k": k}
        return f.number(f.value(options[0]))
    if name == "dot":
        return dot(q, k)
    if name == "euclidean":
        square = dot(q - k, q - k)
        return -square if options[0] else -positive_root(square)
    if name == "mahalanobis":
        return _mahalanobis(f, q, k, options[0])
    if name == "lorentz-inner":
        return 2 + 2 * _lorentz(q, k, options[0])
    if name == "cosine":
        return dot(_unit(q, 1e-12), _unit(k, 1e-12))
    beta = _per_head(f, options[0])
    if name == "lorentz":
        _, squared, c, lift = options
        x = -c * _lorentz(q, k, lift, c)
        return -beta * (acosh_squared(x) / c if squared else acosh(x) / math.sqrt(c))
    if name == "poincare":
        ratio = dot(q - k, q - k) / ((1 - dot(q, q)) * (1 - dot(k, k)))
        x = 1 + 2 * ratio
        return -beta * (acosh_squared(x) if options[1] else acosh(x))
    if name == "sphere":
        return -beta * acos(dot(_unit(q, 1e-12), _unit(k, 1e-12)))
    assert name == "fisher-rao"
    chord = positive_root(q) - positive_root(k)
    return -4 * beta * asin_root(0.25 * dot(chord, chord))


ROOT_SCALE = ("dot", "euclidean", "mahalanobis", "lorentz-inner")


# --- connections ------------------------------------------------------------------------------------------------
def _angles(f: Formula, positions: torch.Tensor, axis: str, base: float) -> torch.Tensor:
    """Angles laid out (B, H, N, M, pairs) from positions (T,), (T, A) or (B, T, A)."""
    p = positions.to(f.dtype)
    p = p.unsqueeze(-1) if p.dim() == 1 else p
    share = f.case.d // 2 // p.shape[-1]
    steps = torch.arange(share, dtype=f.dtype)
    theta = (p.unsqueeze(-1) * base ** (-steps / share)).flatten(-2)
    theta = theta if theta.dim() == 3 else theta.unsqueeze(0)
    return theta.unsqueeze(1).unsqueeze(3) if axis == "i" else theta.unsqueeze(1).unsqueeze(2)


def _frame(f: Formula, name: str, axis: str) -> torch.Tensor:
    t = f.x[name].to(f.dtype)
    t = t.unsqueeze(1) if t.dim() == 4 else t
    t = t.reshape(*(1,) * (5 - t.dim()), *t.shape)  # (B, H, T, D, D)
    return t.unsqueeze(3) if axis == "i" else t.unsqueeze(2)


def _carried(f: Formula, q, k, v):
    """Key and value as they arrive at the query."""
    if f.case.connection is None:
        return k, v
    name, *options = f.case.connection
    if name == "rotary":
        qp, kp, base, style, values = options
        _b, _h, n, m = f.sizes
        tq = _angles(f, torch.arange(n) if qp is None else f.x[qp], "i", base)
        tk = _angles(f, torch.arange(m) if qp is None else f.x[kp or qp], "j", base)

        def carry(x):
            if f.dtype == torch.float64 and not Rounding.unit:  # one turn: none at all where positions are equal
                return rotated(x, tk - tq, style)
            return rotated(rotated(x, tk, style), -tq, style)

        return carry(k), carry(v) if values else v
    if name == "frames":
        fq, fk, values = _frame(f, options[0], "i"), _frame(f, options[1], "j"), options[2]

        def carry(x):
            return matvec(fq.mT, matvec(fk, x))

        return carry(k), carry(v) if values else v
    if name == "sphere":
        floor = max(4 * torch.finfo(f.case.torch_dtype).eps, 2.0**-26)  # as the connection is documented
        angle = 1 + dot(q, k)
        return k, v - dot(q, v) / torch.where(angle >= floor, angle, floor) * (q + k)
    assert name == "hyperboloid"
    return k, v + minkowski(q, v) / (1 - minkowski(q, k)) * (q + k)


# --- masks and biases ---------------------------------------------------------------------------------------------
def _pair(f: Formula, name: str) -> torch.Tensor:
    """A tensor (M,), (N, M), (H, N, M) or (B, H, N, M), any dimension 1, as (B, H, N, M, 1)."""
    t = f.x[name]
    return t.reshape(*(1,) * (4 - t.dim()), *t.shape, 1)


def _mask(f: Formula, mask: Tree) -> torch.Tensor:
    word, *rest = mask
    i, j = f.index("i"), f.index("j")
    if word == "causal":
        return j <= i + rest[0]
    if word == "window":
        return (i - j).abs() < rest[0]
    if word == "documents":
        q, k = (f.x[n] if f.x[n].dim() == 2 else f.x[n].unsqueeze(0) for n in rest)
        return q[:, None, :, None, None] == k[:, None, None, :, None]
    if word == "padding":
        t = f.x[rest[0]]
        return (t if t.dim() == 2 else t.unsqueeze(0))[:, None, None, :, None]
    if word == "dense":
        return _pair(f, rest[0])
    if word == "predicate":
        return f.value(rest[0])
    if word == "not":
        return ~_mask(f, rest[0])
    left, right = (_mask(f, m) for m in rest)
    return left & right if word == "and" else left | right


def _bias(f: Formula, bias: Tree):
    word, *rest = bias
    i, j = f.index("i"), f.index("j")
    if word == "alibi":
        return -_per_head(f, rest[0]) * (i - j).abs()
    if word == "alibi-heads":
        h = rest[0]
        power = 2 ** math.floor(math.log2(h))
        slopes = [2.0 ** (-8 * x / power) for x in range(1, power + 1)]
        slopes += [2.0 ** (-8 * x / (2 * power)) for x in range(1, 2 * (h - power), 2)]
        return -torch.tensor(slopes, dtype=torch.float32).to(f.dtype).reshape(1, h, 1, 1, 1) * (i - j).abs()
    if word == "table":
        table = f.x[rest[0]].to(f.dtype)
        reach = table.shape[-1] // 2
        at = (j - i + reach).clamp(0, 2 * reach)[0, 0, :, :, 0]
        found = table[..., at]
        return (found if table.dim() == 2 else found.unsqueeze(0))[None, ..., None]
    if word == "dense":
        return _pair(f, rest[0]).to(f.dtype)
    return _bias(f, rest[0]) + _bias(f, rest[1])


def scores(case, x: dict[str, torch.Tensor], dtype: torch.dtype):
    """(scores (B, H, N, M), mask (B, H, N, M) or None, carried values (B, H, N, M, Dv))."""
    f = Formula(case, x, dtype)
    q, k, v = f.heads("q", "i"), f.heads("k", "j"), f.heads("v", "j")
    if case.metric[0] == "fisher-rao" and case.metric[2]:
        q, k = rounded(q.softmax(-1)), rounded(k.softmax(-1))
    carried_k, carried_v = _carried(f, q, k, v)
    s = _metric(f, q, carried_k)
    scale = case.scale
    if scale is None:
        scale = case.d**-0.5 if case.metric[0] in ROOT_SCALE else 1.0
    s = _per_head(f, scale) * s
    if case.soft_cap is not None:
        cap = _per_head(f, case.soft_cap)
        s = _capped(s.expand(*f.sizes, 1), cap)
    if case.bias is not None:
        s = rounded(s + _bias(f, case.bias))  # beside a large bias, this is where the digits of a score go
    if case.normalizer[0] == "sigmoid" and case.normalizer[1] is not None:
        s = rounded(s + _per_head(f, case.normalizer[1]))
    keep = None if case.mask is None else _mask(f, case.mask).expand(*f.sizes, 1)[..., 0]
    if case.dropout:
        u = uniform(int(x["seed"]) if isinstance(case.seed, str) else case.seed, f.sizes).unsqueeze(-1)
        carried_v = torch.where(u >= case.dropout, carried_v / (1 - case.dropout), 0.0)
    return s.expand(*f.sizes, 1)[..., 0], keep, carried_v.expand(*f.sizes, carried_v.shape[-1])


def _capped(s, cap):
    """cap tanh(s / cap). Its slope in the cap is a difference of two numbers as large as s / cap, each rounded."""
    x = s / cap
    out = cap * torch.tanh(x)
    if Rounding.unit and isinstance(cap, torch.Tensor):
        out = out + (rounded(x) - x).detach().nan_to_num(0.0) * (cap - cap.detach())
    return out


def attention(case, x: dict[str, torch.Tensor], dtype: torch.dtype):
    """Output (B, H, N, Dv), log-sum-exp (B, H, N), and what tells how well they are conditioned: scores, weights,
    carried values, and the sink of every row (B, H, N) or None."""
    s, keep, carried = scores(case, x, dtype)
    if keep is not None:
        s = torch.where(keep, s, float("-inf"))
    sink = None
    if case.normalizer[0] == "sigmoid":
        p, lse = _sigmoid(s)
    else:
        logit = _per_head(Formula(case, x, dtype), case.normalizer[1])
        if logit is not None:
            sink = torch.as_tensor(logit, dtype=dtype).reshape(1, -1, 1).expand(s.shape[:3])
        p, lse = _softmax(s, sink)
    if keep is not None:  # a weight of 0 carries nothing, not even what is not finite
        carried = torch.where(keep.unsqueeze(-1), carried, 0.0)
    return (p.unsqueeze(-1) * carried).sum(3), lse, s, p, carried, sink


def _sigmoid(s):
    """Weights and the logarithm of their sum."""
    p = torch.where(s > float("-inf"), torch.sigmoid(torch.where(s > float("-inf"), s, 0.0)), 0.0)
    p = torch.where(s.isnan(), s, p)
    total = p.sum(-1)
    return p, torch.where(total > 0, torch.where(total > 0, total, 1.0).log(), float("-inf")) + 0 * total


def _softmax(s, more):
    """Weights and log-sum-exp; ``more`` is one more logit of every row, (B, H, N), or None."""
    top = s.detach().amax(-1, keepdim=True) if s.shape[-1] else s.new_full((*s.shape[:-1], 1), float("-inf"))
    open_row = top > float("-inf")
    e = torch.where(open_row, s - torch.where(open_row, top, 0.0), float("-inf")).exp()
    total = e.sum(-1, keepdim=True)
    some = torch.where(open_row, total, 1.0)
    p = e / some
    lse = torch.where(open_row, some.log() + torch.where(open_row, top, 0.0), float("-inf"))[..., 0]
    if more is None:
        return p, lse
    seen = lse > float("-inf")
    whole = torch.where(seen, torch.logaddexp(torch.where(seen, lse, 0.0), more), more)
    return p * torch.where(seen, torch.where(seen, lse, 0.0) - whole, float("-inf")).exp().unsqueeze(-1), whole
