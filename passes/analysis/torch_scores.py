"""Scores of ordinary PyTorch code: what was done to products of queries and keys, done again by rows in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from aatc.passes.analysis.attention_rows import Copies, chosen_elements
from aatc.passes.analysis.torch_attention import Step, TorchAttention

#: Operations on scores one by one: packet name → what is applied again.
ELEMENTWISE: dict[str, Any] = {
    "mul": torch.mul,
    "div": torch.div,
    "add": torch.add,
    "sub": torch.sub,
    "rsub": torch.rsub,
    "neg": torch.neg,
    "tanh": torch.tanh,
    "masked_fill": torch.masked_fill,
    "where": torch.where,
    "clamp": torch.clamp,
    "clamp_min": torch.clamp_min,
    "clamp_max": torch.clamp_max,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


@dataclass(frozen=True)
class Scores:
    """Products q·k with what was done to them; ``known`` is False once something was that is no step."""

    q: torch.Tensor | None
    k: torch.Tensor | None
    steps: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...], dict[str, Any]], ...] = ()
    known: bool = True

    def unknown(self) -> Scores:
        return replace(self, q=None, k=None, steps=(), known=False)


def table_of(copies: Copies, table: torch.Tensor, batch: tuple[int, ...]) -> torch.Tensor:
    """A copy of a mask or bias that broadcasts to (batch, heads, queries, keys), cut to the batch elements."""
    return copies.of(table, batch if table.shape[0] > 1 else None)


def evaluated(
    scores: Scores,
    lead: tuple[int, ...],
    split: Split,
    weights: torch.Tensor,
    batch: tuple[int, ...],
    copies: Copies,
    where: str,
) -> TorchAttention | None:
    """The attention by its queries and keys, or None where that does not give the model's own ``weights`` (batch,
    heads, queries, keys)."""
    n, m = weights.shape[2:]
    q, k = scores.q, scores.k
    if not scores.known or q is None or k is None:
        return None
    if (q.shape[-2], k.shape[-2]) != (n, m) or q.shape[-1] == 0:
        return None
    if q.numel() != q.shape[-1] * n * split.batch * split.heads:
        return None
    tensors: dict[str, torch.Tensor] = {}
    steps = []

    def argument(a: Any) -> Any:
        """A number as it is; the name of a tensor that is now in ``tensors``, cut to the batch."""
        if not isinstance(a, torch.Tensor):
            return a
        if a.numel() == 1:
            return a.item()
        name = f"t{len(tensors) - 2}"
        tensors[name] = table_of(copies, split.four(a, lead), batch)
        return name

    for name, x in (("q", q), ("k", k)):
        tensors[name] = chosen_elements(split.whole(x), batch, where)
    try:
        for name, before, after, options in scores.steps:
            given = [tuple(argument(a) for a in part) for part in (before, after)]
            title = f"{name} {sorted(options.items())}" if options else name
            apply: Callable[..., torch.Tensor] = partial(ELEMENTWISE[name], **options)
            steps.append(Step(title, apply, *given))
        made = TorchAttention("", tensors, tuple(steps), False, batch, source=where)
        return made if agrees(made, weights) else None
    except (RuntimeError, TypeError, IndexError):
        return None  # arguments that do not broadcast as scores do, as those of a transposed product


def agrees(made: TorchAttention, weights: torch.Tensor) -> bool:
    """Whether every row is the model's own of ``weights``, as its precision allows."""
    b, h, n, m = made.sizes
    if tuple(weights.shape[1:]) != (h, n, m):
        return False
    slack = min(0.1, 256 * torch.finfo(weights.dtype).eps)
    for batch in range(b):
        for head in range(h):
            own = weights[made.batch[batch], head].detach()
            for start, rows in made.stripes(head, batch):
                off = rows - own[start : start + len(rows)].double().cpu().nan_to_num(0.0)
                if not float(off.abs().sum(-1).max()) <= slack:
                    return False
    return True


def absorbed(table: torch.Tensor, causal: bool, dtype: torch.dtype) -> bool:
    """Whether some query's scores vanish beside what ``table`` (batch, heads, queries, keys) adds to all of them in the
    model's precision, and do not in float64: 1e-4 of a score and more."""
    if dtype == torch.float64 or not table.is_floating_point():
        return False
    t = table.double()
    if causal:
        n, m = max(t.shape[2], t.shape[3]), t.shape[3]
        t = t.expand(*t.shape[:2], n, m) if t.shape[2] == 1 else t
        after = torch.arange(m) > torch.arange(t.shape[2])[:, None]
        t = t.masked_fill(after, float("-inf"))
    top = t.amax(-1).abs()
    # kernels add in single precision; what is larger than the upper bound takes all of a score in float64, too
    return bool(((top > 1e-4 / torch.finfo(torch.float32).eps) & (top < 1e3 / torch.finfo(torch.float64).eps)).any())


@dataclass(frozen=True)
class Split:
    """How leading axes are batch and heads; ``heads_first`` where the first of two are the heads."""

    batch: int
    heads: int
    heads_first: bool = False

    def four(self, t: torch.Tensor, lead: tuple[int, ...]) -> torch.Tensor:
        """A tensor that broadcasts to (*lead, a, b) as one that broadcasts to (batch, heads, a, b)."""
        t = t.detach()
        if t.ndim < 2:
            t = t[None]
        own = (1,) * (len(lead) + 2 - t.ndim) + tuple(t.shape[:-2])
        if all(n == 1 for n in own):
            return t.reshape(1, 1, *t.shape[-2:])
        if len(lead) == 2:
            t = t.reshape(*own, *t.shape[-2:])
            return t.transpose(0, 1) if self.heads_first else t
        return self.whole(t.expand(*lead, *t.shape[-2:]))

    def whole(self, t: torch.Tensor) -> torch.Tensor:
        """A tensor (…, a, b) of as many entries before a as batch elements times heads, as (batch, heads, a, b)."""
        if self.heads_first:
            return t.detach().reshape(self.heads, self.batch, *t.shape[-2:]).transpose(0, 1)
        return t.detach().reshape(self.batch, self.heads, *t.shape[-2:])


def keep_pairs(scores: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(~keep, float("-inf"))
