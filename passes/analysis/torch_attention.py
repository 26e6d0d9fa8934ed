"""Attention that ordinary PyTorch code made: queries, keys, and what was done to their products before softmax.

Weights are evaluated by rows in float64, from O(n) numbers and the masks and biases that the model made itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from aatc.passes.analysis.attention_rows import SECONDS_PER_NUMBER, SECONDS_PER_PAIR, SECONDS_PER_PRODUCT, AttentionRows


@dataclass(frozen=True)
class Step:
    """``apply(*before, scores, *after)``: something done to every score by itself. Tensors among the arguments are
    given by name, and broadcast to (batch, heads, queries, keys)."""

    title: str
    apply: Callable[..., torch.Tensor]
    before: tuple[Any, ...] = ()
    after: tuple[Any, ...] = ()


@dataclass(frozen=True, eq=False)
class TorchAttention(AttentionRows):
    """softmax of steps of q·k. ``tensors`` holds "q" (kept batch elements, heads, queries, d), "k" (kept, heads or a
    divisor of them, keys, d), and the tensors of ``steps`` by name; ``causal`` forbids keys of a higher place;
    ``values`` is the width of a value, 0 where it is not known."""

    name: str
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    steps: tuple[Step, ...] = ()
    causal: bool = False
    batch: tuple[int, ...] = (0,)
    tokens: torch.Tensor | None = None
    source: str = ""
    values: int = 0
    notes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return self.source

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        b, h, n, _ = self.tensors["q"].shape
        return b, h, n, self.tensors["k"].shape[2]

    @property
    def width(self) -> int:
        return self.tensors["q"].shape[3]

    @property
    def value_width(self) -> int:
        return self.values

    @property
    def _identity(self) -> bytes:
        return repr((type(self).__name__, self.causal, [(s.title, s.before, s.after) for s in self.steps])).encode()

    @cached_property
    def weights_seconds(self) -> float:
        a_pair = SECONDS_PER_PAIR + self.width * SECONDS_PER_PRODUCT + 2 * len(self.steps) * SECONDS_PER_NUMBER
        return self.sizes[2] * self.sizes[3] * a_pair

    def scores(self, head: int, start: int = 0, stop: int | None = None, batch: int = 0) -> torch.Tensor:
        """Scores of the queries ``start`` to ``stop``, (rows, keys), float64, −inf where a pair is forbidden."""
        _, heads, n, m = self._check(head, batch)
        stop = n if stop is None else min(stop, n)
        keys = self.tensors["k"][batch, head * self.tensors["k"].shape[1] // heads].double()
        s = self.tensors["q"][batch, head, start:stop].double() @ keys.T
        for step in self.steps:
            given = [[self._cut(a, batch, head, start, stop) for a in part] for part in (step.before, step.after)]
            s = step.apply(*given[0], s, *given[1])
        if self.causal:
            after = torch.arange(m) > torch.arange(start, stop)[:, None]
            s = s.masked_fill(after, float("-inf"))
        return s

    def _cut(self, argument: Any, batch: int, head: int, start: int, stop: int) -> Any:
        if not isinstance(argument, str):
            return argument
        t = self.tensors[argument]
        t = t[(None,) * (4 - t.ndim)] if t.ndim < 4 else t
        for axis, place in ((0, batch), (1, head)):
            if t.shape[axis] > 1:
                # a table of fewer heads serves several each
                t = t.narrow(axis, place * t.shape[axis] // self.sizes[axis], 1)
        if t.shape[2] > 1:
            t = t.narrow(2, start, stop - start)
        return t[0, 0].double() if t.is_floating_point() else t[0, 0]

    def weights(self, head: int, start: int = 0, stop: int | None = None, batch: int = 0) -> torch.Tensor:
        scores = self.scores(head, start, stop, batch)
        self._refuse_undefined(scores, head, start, batch)
        return scores.softmax(-1).nan_to_num(0.0)  # only −inf: a query without a key
