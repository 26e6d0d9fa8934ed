"""Whether what a normaliser says of its weights is so, on scores of its own: compiled kernels believe it."""

from __future__ import annotations

from itertools import pairwise

import torch

from aatc.ir.errors import VerifyError
from aatc.ir.normalizers.base import SCORE, WEIGHT, Normalizer, _number

#: What `Normalizer.invariant` may hold.
_INVARIANCES = frozenset({"row"})
_SCALES = (0.1, 1.0, 6.0)


def probe(n: Normalizer) -> None:
    """Raises VerifyError where weights are no numbers from 0 on, or where ``exponential`` or ``invariant`` is claimed
    and does not hold."""
    if not isinstance(n.invariant, (set, frozenset)) or not n.invariant <= _INVARIANCES:
        raise VerifyError(
            f"{n.name} is invariant to {n.invariant!r}", hint='frozenset({"row"}) or frozenset() are understood'
        )
    generator = torch.Generator().manual_seed(7)
    for scale in _SCALES:
        s = scale * torch.randn(1, 2, 8, 9, dtype=torch.float64, generator=generator)
        s[..., 1::3, 4] = float("-inf")
        _probe(n, s)


def _probe(n: Normalizer, s: torch.Tensor) -> None:
    u, _ = n._gathered(s)
    if not bool((u >= 0).all()):
        raise VerifyError(f"{n.name} gives a weight below 0, or none", hint="weights are numbers from 0 on")
    open_ = s != float("-inf")
    if n.exponential:
        # the logarithm of a weight is the score plus a number per row
        rest = torch.where(open_, u.log() - s, 0.0)
        apart = torch.where(open_, (rest - rest[..., :1]).abs(), 0.0)
        if not float(apart.max()) <= 1e-9 * (1 + float(s.masked_fill(~open_, 0.0).abs().max())):
            hint = f"{WEIGHT.name} is exp({SCORE.name}) times a number per row, or exponential is False"
            raise VerifyError(f"{n.name} says it is exponential, and is not", hint=hint)
    if "row" in n.invariant:
        before, after = (n.reference(x)[0] for x in (s, s + torch.linspace(-3, 5, 8, dtype=s.dtype).unsqueeze(-1)))
        if not bool(torch.isclose(before, after, rtol=1e-9, atol=1e-12).all()):
            raise VerifyError(
                f"the weights of {n.name} change with a number added to a row", hint="leave row out of invariant"
            )
    if n.merges:
        _probe_merge(n, s)


def _probe_merge(n: Normalizer, s: torch.Tensor) -> None:
    """Sums over the weights, part by part of the keys."""
    value = torch.linspace(-1, 2, s.shape[-1], dtype=s.dtype)
    bounds = (0, 4, 5, s.shape[-1])  # a row that is closed at 4 has a part without open keys
    found: dict[str, torch.Tensor] | None = None
    for first, last in pairwise(bounds):
        part = _sums(n, s[..., first:last], value[first:last])
        found = part if found is None else _merged(n, found, part, s)
    whole = _sums(n, s, value)
    assert found is not None
    for name, x in whole.items():
        if not bool(torch.isclose(found[name], x, rtol=1e-9, atol=1e-12).all()):
            raise VerifyError(
                f"{n.name} says that it merges what it gathers of parts of the keys, and {name} is another then",
                hint="write its merge, or merges = False",
            )


def _sums(n: Normalizer, s: torch.Tensor, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """All statistics, and the sum of weight times value."""
    u, env = n._gathered(s)
    return {x.value.name: env[x.value.name] for x in n.statistics} | {"sum": (u * value).sum(-1)}


def _merged(
    n: Normalizer, one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], s: torch.Tensor
) -> dict[str, torch.Tensor]:
    joined, factors = n.merge(1.0)
    env = {**one, **{x.other.name: other[x.value.name] for x in n.statistics}}
    found = {x.value.name: _number(e, env, s) for x, e in joined.items()}
    env |= {x.next.name: found[x.value.name] for x in joined}
    mine, theirs = (1.0, 1.0) if factors is None else (_number(e, env, s) for e in factors)
    sums = ["sum", *(x.value.name for x in n.of_weights)]
    return found | {name: mine * one[name] + theirs * other[name] for name in sums}
