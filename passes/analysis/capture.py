"""Attention as it was seen while a compiled program ran: its operands are kept, weights are computed on demand.

What is kept is O(n): q, k, v and the captured tensors of the batch elements asked for. Scores and weights are
evaluated from the score program as the model wrote it, some rows at a time, so that nothing of size n² exists
unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from aatc.ir.core import Op
from aatc.ir.geo import attention_of
from aatc.ir.printer import attrs_text
from aatc.ir.reference import Attention
from aatc.ir.score.evaluate import evaluate
from aatc.ir.score.expr import ZERO, Expr, add, call, params, postorder
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.program import Program
from aatc.passes.analysis.attention_rows import (
    SECONDS_PER_NUMBER,
    SECONDS_PER_PAIR,
    SECONDS_PER_PRODUCT,
    AttentionRows,
    Copies,
    checked_batch,
    chosen_elements,
)
from aatc.passes.analysis.result import AnalysisError
from aatc.passes.normal_form import Normaliser


@dataclass(frozen=True, eq=False)
class CapturedAttention(AttentionRows):
    """One attention of a run. ``tensors`` are its operands by name, each cut to the kept batch elements, and ``batch``
    their positions in the model's batch; ``op`` is the `geo.observe` operation with score, mask and carry programs."""

    name: str
    op: Op
    tensors: dict[str, torch.Tensor]
    batch: tuple[int, ...] = (0,)
    attention: Attention = field(init=False)
    tokens: torch.Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "attention", attention_of(self.op))

    @property
    def where(self) -> str:
        """The model's source line, or an empty text."""
        return str(self.op.loc or "")

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(kept batch elements, heads, queries, keys)."""
        q, k = (self.tensors[n] for n in self.attention.names[:2])
        return q.shape[0], q.shape[1], q.shape[2], k.shape[2]

    @property
    def width(self) -> int:
        """Features of a query."""
        return self.tensors[self.attention.names[0]].shape[3]

    @property
    def value_width(self) -> int:
        return self.tensors[self.attention.names[2]].shape[3]

    @property
    def exponential(self) -> bool:
        return self.attention.normalizer.exponential

    @property
    def _identity(self) -> bytes:
        return attrs_text({n: a for n, a in self.op.attrs.items() if n != "tag"}).encode()

    # --- what the score is made of -------------------------------------------------------------------------
    @cached_property
    def parts(self) -> tuple[Program, Program]:
        """The score as (metric, bias): the terms that depend on q or k, and those that do not."""
        q, k = self.attention.names[:2]
        terms = list(_terms(self.attention.score.body))
        metric = [t for t in terms if {p.name for p in params(t)} & {q, k}]
        bias = [t for t in terms if t not in metric]
        return _program(metric), _program(bias)

    @cached_property
    def contracted(self) -> Program:
        """The score by contractions and per-token terms where it can be written so: no pair of vectors is formed."""
        score = self.attention.score
        return Program(score.params, Normaliser().number(score.body))

    @property
    def is_transported(self) -> bool:
        """Whether values are carried by a connection (or thinned by dropout)."""
        return self.attention.carry.body.fn != "param"

    # --- numbers -------------------------------------------------------------------------------------------
    def evaluate(self, program: Program, head: int, start: int = 0, stop: int | None = None, batch: int = 0) -> Any:
        """``program`` at the queries ``start`` to ``stop`` of one head, in float64: (rows, keys) or (rows, keys,
        features)."""
        _, _, n, m = self._check(head, batch)
        stop = n if stop is None else stop
        env = {p.name: self._cut(p, head, batch, start, stop) for p in program.params}
        position = (self.batch[batch], head, start, 0)
        sizes = (1, 1, stop - start, m)
        out = evaluate(program.body, env, sizes, dtype=torch.float64, starts=position)
        out = out.expand(1, 1, stop - start, m, *out.shape[4:])[0, 0]
        return out[..., 0] if program.body.rank == 0 else out

    def scores(self, head: int, start: int = 0, stop: int | None = None, batch: int = 0) -> torch.Tensor:
        """Scores of the queries ``start`` to ``stop``, (rows, keys), -inf where the mask forbids a pair."""
        s: torch.Tensor = self.evaluate(self.contracted, head, start, stop, batch)
        mask = self.attention.mask
        return s if mask is None else s.masked_fill(~self.evaluate(mask, head, start, stop, batch), float("-inf"))

    def weights(self, head: int, start: int = 0, stop: int | None = None, batch: int = 0) -> torch.Tensor:
        """Weights of the queries ``start`` to ``stop``, (rows, keys); a query without any key has zeros.

        Raises AnalysisError where a score is NaN or +inf: such a row has no weights; and where the weights of a row
        need not sum to 1, which all that reads them takes for granted.
        """
        if not self.attention.normalizer.normalized:
            raise AnalysisError(
                f"{self.name} weighs keys by {self.attention.kind}: its rows are no probabilities",
                hint="analyses study normalised weights; leave this attention out of the model that is studied",
            )
        scores = self.scores(head, start, stop, batch)
        self._refuse_undefined(scores, head, start, batch)
        return self.attention.normalizer.reference(scores[None, None])[0][0, 0]

    @cached_property
    def weights_seconds(self) -> float:
        """About what all weights of one head take: its score and mask operation by operation, and their weights."""
        programs = [self.contracted, *([self.attention.mask] if self.attention.mask is not None else [])]
        nodes = {e for p in programs for e in postorder(p.body) if e.is_pair and e.args}
        a_pair = SECONDS_PER_PAIR + sum(_seconds(e, self.width) for e in nodes)
        return self.sizes[2] * self.sizes[3] * a_pair

    @cached_property
    def numbers_a_pair(self) -> int:
        """The width of q where the score forms a vector per pair, else 1."""
        vectors = any(e.rank and e.is_pair for e in postorder(self.contracted.body))
        return self.width if vectors else 1

    # --- cutting -------------------------------------------------------------------------------------------
    def _cut(self, p: Expr, head: int, batch: int, start: int, stop: int) -> torch.Tensor:
        """The part of an operand that the queries see. A key head may serve several query heads."""
        t, axes, heads = self.tensors[p.name], p.attrs[1], self.sizes[1]
        for axis, first, count in (("b", batch, 1), ("h", head, 1), ("i", start, stop - start)):
            if axis in axes and t.shape[axes.index(axis)] > 1:
                at = axes.index(axis)
                t = t.narrow(at, first * t.shape[at] // heads if axis == "h" else first, count)
        return t


def _seconds(e: Expr, width: int) -> float:
    """What one operation takes for one pair, its vectors being ``width`` wide."""
    if e.fn == "dot" and not any(a.is_pair for a in e.args):
        return width * SECONDS_PER_PRODUCT
    numbers: int = max(width**a.rank for a in (e, *e.args) if a.is_pair or a is e)
    # what a function costs in registers is half of a pass that goes through memory
    return SECONDS_PER_NUMBER * (1 + FUNCTIONS[e.fn].cost) / 2 * numbers


def _terms(e: Expr) -> Iterator[Expr]:
    """Summands, with their signs."""
    if e.fn in ("add", "sub"):
        yield from _terms(e.args[0])
        for t in _terms(e.args[1]):
            yield t if e.fn == "add" else call("neg", t)
    elif e.fn == "neg":
        for t in _terms(e.args[0]):
            yield call("neg", t)
    else:
        yield e


def _program(terms: list[Expr]) -> Program:
    body = ZERO
    for t in terms:
        body = t if body is ZERO else add(body, t)
    return Program.of(body)


class Recorder:
    """Takes what `geo.observe` shows: hand it to `aatc.ir.observe.observing`.

    ``batch`` are the batch elements to keep. Attentions are named attend0, attend1, … in the order they ran. What is
    kept are copies in main memory: the model may write into its tensors later, also between its layers. ``refused`` is
    the first AnalysisError that was raised while the model ran, which a compiled model with fallbacks does not hand on.
    """

    def __init__(self, batch: Sequence[int] = (0,)):
        self.batch = checked_batch(batch)
        self.captured: list[CapturedAttention] = []
        self.refused: AnalysisError | None = None
        self._copies = Copies()

    def __call__(self, op: Op, values: Sequence[torch.Tensor]) -> None:
        try:
            chosen_elements(values[0][..., :0], self.batch, str(op.loc or ""))
        except AnalysisError as error:
            self.refused = self.refused or error
            raise
        attention = attention_of(op)
        axes = {n: p.attrs[1] for n, p in attention.declared().items()}
        kept = {}
        for name, value in zip(attention.names, values, strict=True):
            value = value.detach()
            batched = name in attention.names[:3] or (axes.get(name, "").startswith("b") and value.shape[0] > 1)
            kept[name] = self._copies.of(value, self.batch if batched else None)
        self.captured.append(CapturedAttention(f"attend{len(self.captured)}", op, kept, self.batch))
