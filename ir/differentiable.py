"""Reference attention that every transform of torch goes through: forward mode, vmap, higher derivatives.

The same formula as `aatc.ir.reference`, without decisions on data, writes in place or derivatives in closed form,
so that torch differentiates it as often and in whatever direction it is asked to. Words whose slope is infinite at
the edge of their domain have slope 0 there, as their symbolic derivatives do. O(N*M) memory, several times that of
the reference while gradients are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from aatc.ir.aggregations import SUM
from aatc.ir.normalizers import SCORE, WEIGHT, Normalizer
from aatc.ir.normalizers.base import gather
from aatc.ir.reference import Attention, compute_dtype, score_dtype, tell
from aatc.ir.score.derivative import factors, without
from aatc.ir.score.evaluate import evaluate, expand_heads
from aatc.ir.score.expr import Expr, mul, postorder
from aatc.ir.score.functions import FUNCTIONS

#: word -> (where its slope is finite, a number there): elsewhere its value is a constant
_INSIDE: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float]] = {
    "sqrt": (lambda x: x > 0, 1.0),
    "acosh": (lambda x: x > 1, 2.0),
    "expacosh": (lambda x: x > 1, 2.0),
    "acos": (lambda x: (x > -1) & (x < 1), 0.0),
    "asinsqrt": (lambda x: (x > 0) & (x < 1), 0.5),
}
#: Words that vanish with infinite slope at an end, and the series of their squares there, in the distance from it.
_SQUARED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[float, float, float]]] = {
    "acosh": (lambda x: x - 1, (2.0, -1 / 3, 4 / 45)),
    "acos": (lambda x: 1 - x, (2.0, 1 / 3, 4 / 45)),
    "asinsqrt": (lambda x: x, (1.0, 1 / 3, 8 / 45)),
}


def attend(att: Attention, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B,H,N,E) in v's dtype and log-sum-exp (B,H,N) in the compute dtype."""
    q, k, v = (tensors[n] for n in att.names[:3])
    tell(q, k)
    sizes, dtype = (q.shape[0], q.shape[1], q.shape[2], k.shape[2]), score_dtype(att.score.body, q)
    env, keep, spoiled = dict(tensors), None, None
    if att.mask is not None:
        shown = {n: expand_heads(t, sizes[1]) if n in att.names[1:3] else t for n, t in env.items()}
        keep = _value(att.mask.body, shown, sizes, torch.float64)[..., 0].expand(sizes)
        env, spoiled = _contained(att, env, keep)
    env = {n: expand_heads(t, sizes[1]) if n in att.names[1:3] else t for n, t in env.items()}
    done: dict[Expr, torch.Tensor] = {}
    s = _value(att.score.body, env, sizes, dtype, done)[..., 0].expand(sizes)
    p, lse = _normalize(att.normalizer, s, keep)
    if att.carry.body.fn == "param":
        o = p @ env[att.names[2]].to(dtype)
    else:
        o = (p.unsqueeze(-1) * _value(att.carry.body, env, sizes, dtype, done)).sum(3)
    if not att.aggregation.plain:
        o = _value(att.aggregation.finish(SUM), {SUM.name: o}, (*sizes[:3], 1), dtype)[:, :, :, 0]
    if spoiled is not None:
        factor = torch.where(spoiled, torch.full_like(lse, float("nan")), torch.ones_like(lse))
        o, lse = o * factor.unsqueeze(-1), lse + (factor - 1)  # a product, so that derivatives are spoiled, too
    return o.to(v.dtype), lse.to(compute_dtype(q.dtype))


def attend_backward(
    att: Attention,
    tensors: Sequence[torch.Tensor],
    grad_o: torch.Tensor,
    grad_lse: torch.Tensor,
) -> list[torch.Tensor | None]:
    """Gradients of `attend` for each of ``tensors`` (in the order of ``att.names``), themselves differentiable; None
    for what is not a floating-point tensor."""
    with torch.enable_grad():
        # an alias each: two operands may be one tensor, and their gradients are to stay apart
        own = [_alias(t) if t.is_floating_point() else t for t in tensors]
        results = attend(att, dict(zip(att.names, own, strict=True)))
        floats = [t for t in own if t.is_floating_point()]
        found = iter(
            torch.autograd.grad(results, floats, (grad_o, grad_lse), create_graph=True, materialize_grads=True)
        )
    return [next(found) if t.is_floating_point() else None for t in own]


def _contained(
    att: Attention, env: dict[str, torch.Tensor], keep: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Tensors in which entries that are not finite are zero (`aatc.ir.containment`), and the rows (B,H,N) that see
    one; entries of captures per pair are zero where the mask is closed."""
    heads, axes = keep.shape[1], att.axes
    k, v = (env[n] for n in att.names[1:3])
    bad = ~(torch.isfinite(k).all(-1) & torch.isfinite(v).all(-1))
    for name in att.names[1:3]:
        env[name] = torch.where(bad.unsqueeze(-1), torch.zeros_like(env[name]), env[name])
    bad = expand_heads(bad, heads)
    for name in att.names[3:]:
        own, t = axes.get(name, ""), env[name]
        if not t.is_floating_point() or "j" not in own or set(own) & set("tu"):
            continue
        if "i" in own:
            closed = ~_along(keep, own)
            env[name] = torch.where(closed.reshape(*closed.shape, *(1,) * (t.dim() - closed.dim())), 0.0, t)
            continue
        entries = torch.isnan(t) | (t == float("inf"))
        env[name] = torch.where(entries, 0.0, t)
        lead = [c for c in own if c in "bhj"]
        entries = entries.flatten(len(lead)).any(-1) if t.dim() > len(lead) else entries
        bad = bad | entries.reshape([entries.shape[lead.index(c)] if c in lead else 1 for c in "bhj"])
    return env, (keep & bad.unsqueeze(2)).any(-1)


def _along(keep: torch.Tensor, axes: str) -> torch.Tensor:
    """Where any pair is open, along those of b, h, i and j that ``axes`` names."""
    for d in reversed(range(4)):
        if "bhij"[d] not in axes:
            keep = keep.any(d)
    return keep


def _alias(t: torch.Tensor) -> torch.Tensor:
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


def _value(root: Expr, env: Any, sizes: Any, dtype: torch.dtype, done: dict[Expr, torch.Tensor] | None = None) -> Any:
    """`evaluate`, with the words of `_INSIDE` constant outside, and the squares of those of `_SQUARED` smooth there."""
    done = {} if done is None else done
    device = next(iter(env.values())).device
    for e in postorder(root):
        if e.fn in _INSIDE and e not in done:
            (x,) = (done[a] for a in e.args)
            done[e] = _guarded(e.fn, x if x.is_floating_point() else x.to(dtype))
        elif e not in done and (found := _squared(e)) is not None:
            word, rest = found
            x = done[word.args[0]]
            square = _smooth(word.fn, x if x.is_floating_point() else x.to(dtype), done[word])
            done[e] = _value(rest, env, sizes, dtype, done) * square
        else:
            evaluate(e, env, sizes, dtype=dtype, device=device, values=done)
    return done[root]


def _guarded(word: str, x: torch.Tensor) -> torch.Tensor:
    inside, number = _INSIDE[word]
    f: Any = FUNCTIONS[word].evaluate
    good = inside(x)
    return torch.where(good, f(torch.where(good, x, torch.full_like(x, number))), f(x.detach()))


def _squared(e: Expr) -> tuple[Expr, Expr] | None:
    """(word, rest) of a product that is the square of a word of `_SQUARED` times the rest, else None."""
    if e.fn not in ("square", "mul"):
        return None
    a, b = e.args[0], e.args[-1]
    for word in factors(a):
        if word.fn in _SQUARED and (other := without(b, word)) is not None:
            return word, mul(without(a, word), other)  # type: ignore[arg-type]
    return None


def _smooth(word: str, x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """``value``, that of the word, squared; differentiated by its series where it vanishes."""
    distance, (a, b, c) = _SQUARED[word]
    t = distance(x)
    series = a * t + b * t**2 + c * t**3
    return torch.where(t > 0, value * value, series - series.detach())


def _normalize(normalizer: Normalizer, s: torch.Tensor, keep: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and log-sum-exp of scores (B,H,N,M); a row without an open key has weights 0 and -inf."""
    if not s.shape[-1]:
        return s, torch.full_like(s.sum(-1), float("-inf"))
    b, h, n, m = s.shape
    zero = torch.zeros_like(s)
    open_ = s != float("-inf") if keep is None else keep & (s != float("-inf"))
    env = {SCORE.name: s}

    def value(e: Expr) -> torch.Tensor:
        found: torch.Tensor = _value(e, env, (b, h, n, m), s.dtype)[..., 0]
        return found if e.is_pair else found[..., 0]

    seen = open_.any(-1).expand(b, h, n)
    for x in normalizer.of_scores:  # what scores are compared with: results do not change with it
        found = gather(x, value(x.of).detach(), open_)
        env[x.value.name] = env[x.next.name] = torch.where(seen & ~found.isinf(), found, torch.zeros_like(found))
    env[SCORE.name] = torch.where(open_, s, zero)
    env[WEIGHT.name] = u = torch.where(open_, value(normalizer.weight(1.0)), zero)
    some = u.sum(-1) != 0
    for x in normalizer.of_weights:
        found = gather(x, value(x.of), open_)
        env[x.value.name] = torch.where(some, found, torch.ones_like(found))
    factor, total = normalizer.finish(1.0)
    lse = value(total)
    lse = torch.where(some, lse, torch.full_like(lse, float("-inf")))
    return (u if factor is None else u * value(factor).unsqueeze(-1)), lse
