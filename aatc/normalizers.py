"""How scores become weights.

`Softmax` and `Sigmoid` are what `attend` takes for ``normalizer``; so are their names, and those of normalisers that
were declared and registered since (`Normalizer`, `register`; docs/normalizers.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from aatc.ir.errors import CaptureError, UnsupportedError
from aatc.ir.normalizers import NORMALIZERS, SCORE, WEIGHT, Normalizer, Statistic, register
from aatc.parts import as_tensor, number, same


@dataclass(frozen=True, eq=False)
class Softmax:
    """weight_ij = exp(s_ij - lse_i), lse_i = log Σ_j exp(s_ij). Rows without any admitted key weigh nothing, and
    have lse = -inf.

    sink: a logit that takes weight and brings no value, () or one per head (H,): lse_i = log(exp(sink) +
    Σ_j exp(s_ij)). The weights of a row then sum to less than 1, and a row without any admitted key has o = 0 and
    lse = sink. A sink of -inf is none. Analyses of captured attention see the weights among the keys, without the sink.
    """

    sink: torch.Tensor | float | None = None

    @property
    def kind(self) -> str:
        return "softmax"


@dataclass(frozen=True, eq=False)
class Sigmoid:
    """weight_ij = 1 / (1 + exp(-s_ij - bias)): keys don't compete. lse_i = log Σ_j weight_ij, -inf for a row without
    any admitted key, and where all weights are below the least number of the scores' dtype.

    bias: a number or a tensor, () or one per head (H,). A row's weights sum to anything between 0 and M, the number of
    keys: ``Sigmoid(-math.log(M))`` keeps their sum near 1 where scores are small.
    """

    bias: torch.Tensor | float | None = None

    @property
    def kind(self) -> str:
        return "sigmoid"


def kind_of(normalizer: Any) -> str:
    """The name of a normaliser in the IR; UnsupportedError when there is no such one, or another one of that name."""
    kind = normalizer if isinstance(normalizer, str) else getattr(normalizer, "kind", None)
    if kind not in NORMALIZERS:
        raise UnsupportedError(f"normalizer {normalizer!r} is not known", hint=f"there is {_quoted(NORMALIZERS)}")
    if isinstance(normalizer, Normalizer) and NORMALIZERS[kind] is not normalizer:
        raise UnsupportedError(
            f'another normalizer is registered as "{kind}"', hint="register this one by its own name"
        )
    return kind


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{n}"' for n in names)


def with_sink(sink: torch.Tensor | float, o: torch.Tensor, lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp of a softmax to whose keys a sink is added. CaptureError for a sink of another shape."""
    sink = number("the sink", sink)
    if not isinstance(sink, torch.Tensor):
        sink = as_tensor(sink, lse.dtype, lse.device)
    if sink.dim() > 1 or (sink.dim() == 1 and not same(sink.shape[0], 1) and not same(sink.shape[0], o.shape[1])):
        raise CaptureError(
            f"sink has shape {tuple(sink.shape)}; it is one logit, or one per head: () or ({o.shape[1]},)"
        )
    if not sink.is_floating_point():
        raise CaptureError(f"sink holds {sink.dtype}, not floating-point numbers", hint="convert it, say with .float()")
    if sink.device != o.device:
        raise CaptureError(f"sink is on {sink.device}, q on {o.device}", hint="move them to one device")
    logit = sink.to(lse.dtype).reshape(-1, 1)
    # what keys keep of the weight, exp(lse - lse with the sink): by way of the smaller of both parts, as the slope of
    # either is its product with the other, and 1 - x has lost the digits of what is small
    open_ = lse != float("-inf")
    some = torch.where(open_, lse, 0.0)
    above = some - logit
    keep = torch.where(above > 0, 1 - torch.sigmoid(-above), torch.sigmoid(above))
    keep = torch.where(open_, keep, 0.0)
    total = torch.where(open_, torch.logaddexp(some, logit), logit)
    return o * keep.unsqueeze(-1), total


__all__ = [
    "NORMALIZERS", "SCORE", "WEIGHT", "Normalizer", "Sigmoid", "Softmax", "Statistic", "kind_of", "register",
    "with_sink",
]  # fmt: skip
