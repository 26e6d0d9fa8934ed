"""The weights of an attention's heads, some rows at a time, whatever they come from.

Every analysis of patterns works on this alone. The weights may have been given, or be evaluated from what was captured
while a model ran: then nothing of size n² exists unless it is asked for.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Any

import numpy as np
import torch

from aatc.passes.analysis.deadline import proceed
from aatc.passes.analysis.result import AnalysisError

#: Bytes of weights that exist at a time while rows are worked through.
STRIPE = 1 << 24
#: Bytes that one head's pattern may take by default: a whole matrix in float64 up to n = 4096.
MEMORY = 1 << 27
#: Copies of tensors that are looked through for one with the same numbers.
COPIES = 8
#: Seconds on one thread: a weight from its score, a product of a contraction, a number of another operation of float64.
SECONDS_PER_PAIR = 8e-9
SECONDS_PER_PRODUCT = 1.25e-10
SECONDS_PER_NUMBER = 1e-9


@dataclass(frozen=True)
class Pattern:
    """What is known of one head's weights. ``kind`` says what ``array``, float64, holds:

    - "whole": all weights, (n, m);
    - "blocks": means over ``block`` × ``block`` tiles times their number of keys, so that rows still sum to 1,
      (⌈n/block⌉, ⌈m/block⌉);
    - "rows": the rows ``rows``, (r, m).
    """

    kind: str
    array: np.ndarray
    shape: tuple[int, int]
    block: int = 1
    rows: tuple[int, ...] = ()


class AttentionRows(ABC):
    """One attention: its heads' weights by rows.

    ``batch`` are the positions in the model's batch of the kept batch elements; ``tensors`` all that is kept, each cut
    to these; ``tokens`` (kept batch elements, keys) the token of every key, or None where they are not known;
    ``notes`` what has to be known of how it was seen. ``improper`` says why rows are no probability distributions
    where they are none; nothing is analysed then.
    """

    name: str
    batch: tuple[int, ...]
    tensors: Mapping[str, torch.Tensor]
    tokens: torch.Tensor | None
    notes: tuple[str, ...] = ()
    improper: str = ""

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int, int, int]:
        """(kept batch elements, heads, queries, keys)."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Features of a query; 0 where weights are not made of queries."""

    @property
    def value_width(self) -> int:
        """Features of a value; 0 where they are not known."""
        return 0

    @property
    @abstractmethod
    def weights_seconds(self) -> float:
        """About what all weights of one head take."""

    @abstractmethod
    def weights(self, head: int, start: int = 0, stop: int | None = None, batch: int = 0) -> torch.Tensor:
        """Weights of the queries ``start`` to ``stop``, (rows, keys), float64; a query without any key has zeros.

        Raises AnalysisError where a row has no weights, or need not sum to 1.
        """

    def scores(self, head: int, start: int = 0, stop: int | None = None, batch: int = 0) -> torch.Tensor | None:
        """Scores of the queries ``start`` to ``stop``, (rows, keys), −inf where a pair is forbidden; None where weights
        are given as they are."""
        return None

    @property
    def where(self) -> str:
        """The model's source line or module, or an empty text."""
        return ""

    @property
    def exponential(self) -> bool:
        """Whether weights are a softmax of scores, so that the Jacobian of softmax is theirs."""
        return True

    @property
    def numbers_a_pair(self) -> int:
        """Numbers that are formed for a pair while its weight is evaluated."""
        return 1

    @property
    def _identity(self) -> bytes:
        """What the weights depend on besides the tensors that are kept."""
        return type(self).__name__.encode()

    @cached_property
    def key(self) -> str:
        """A hash of all that the weights and what is said of them depend on: what results are cached by."""
        digest = hashlib.sha256(self._identity)
        known = {} if self.tokens is None else {"": self.tokens}
        for name, tensor in sorted({**self.tensors, **known}.items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{self.batch}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    # --- patterns ------------------------------------------------------------------------------------------
    def stripes(self, head: int, batch: int = 0) -> Iterator[tuple[int, torch.Tensor]]:
        """All weights as (first query, rows), top to bottom, what exists at a time being some 16 MiB."""
        n, m = self.sizes[2:]
        height = max(1, STRIPE // (8 * max(1, m) * self.numbers_a_pair))
        for start in range(0, n, height):
            proceed()
            yield start, self.weights(head, start, min(n, start + height), batch)

    def whole(self, head: int, batch: int = 0) -> np.ndarray:
        """All weights of one head, (queries, keys), float64: n² numbers."""
        return torch.cat([w for _, w in self.stripes(head, batch)]).numpy()

    def block_means(self, head: int, block: int, batch: int = 0) -> np.ndarray:
        """Weight that goes from a mean query of each tile of rows to each tile of keys, float64; rows sum to 1.
        AnalysisError for tiles of no tokens."""
        if block < 1:
            raise AnalysisError(f"tiles of {block} tokens are none", hint="give block=1 or more")
        n, m = self.sizes[2:]
        rows, cols = -(-n // block), -(-m // block)
        out = np.zeros((rows, cols))
        edges = np.arange(0, m, block)
        for start, w in self.stripes(head, batch):
            # a stripe may begin within a tile
            tops = np.unique(np.maximum(np.arange(start - start % block, start + len(w), block) - start, 0))
            sums = np.add.reduceat(np.add.reduceat(w.numpy(), edges, axis=1), tops, axis=0)
            out[(start + tops) // block] += sums
        counts = np.minimum(block, n - block * np.arange(rows))
        return out / counts[:, None]

    def pattern(self, head: int, batch: int = 0, *, memory: int = MEMORY) -> Pattern:
        """The whole matrix where it fits ``memory`` bytes, else means of the smallest power-of-two tiles that do.

        AnalysisError where not even one number fits.
        """
        n, m = self.sizes[2:]
        block = self._block(memory)
        if block == 1:
            return Pattern("whole", self.whole(head, batch), (n, m))
        return Pattern("blocks", self.block_means(head, block, batch), (n, m), block)

    def pooled_sizes(self, memory: int = MEMORY) -> tuple[int, int]:
        """(rows, columns) of what `pattern` gives within ``memory`` bytes. AnalysisError as there."""
        block = self._block(memory)
        return -(-self.sizes[2] // block), -(-self.sizes[3] // block)

    def _block(self, memory: int) -> int:
        """Tokens a side of the smallest power-of-two tiles whose pattern fits ``memory`` bytes."""
        if memory < 8:
            raise AnalysisError(f"memory={memory} bytes hold no pattern", hint="one number takes 8 bytes")
        n, m = self.sizes[2:]
        block = 1
        while 8 * -(-n // block) * -(-m // block) > memory:
            block *= 2
        return block

    def coarse(self, head: int, batch: int = 0, *, nodes: int = 64) -> Pattern:
        """The pattern pooled to at most ``nodes`` tiles a side, of one size; the whole matrix where it is no longer."""
        if nodes < 1:
            raise AnalysisError(f"a pattern cannot be pooled to {nodes} tiles", hint="give 1 or more")
        n, m = self.sizes[2:]
        block = -(-max(n, m) // nodes)
        if block <= 1:
            return Pattern("whole", self.whole(head, batch), (n, m))
        return Pattern("blocks", self.block_means(head, block, batch), (n, m), block)

    def sampled_rows(self, head: int, rows: Sequence[int], batch: int = 0) -> Pattern:
        """The weights of chosen queries, from 0 on. AnalysisError for one that is not there."""
        wrong = [i for i in rows if not 0 <= i < self.sizes[2]]
        if wrong:
            raise AnalysisError(f"{self.name} has no query {wrong[0]}", hint=f"it has {self.sizes[2]}, from 0 on")
        found = [self.weights(head, i, i + 1, batch) for i in rows]
        array = torch.cat(found).numpy() if found else np.zeros((0, self.sizes[3]))
        return Pattern("rows", array, self.sizes[2:], rows=tuple(rows))

    def _refuse_undefined(self, scores: torch.Tensor, head: int, start: int, batch: int) -> None:
        """AnalysisError where a score of the queries from ``start`` on is NaN or +∞: such a row has no weights."""
        bad = scores.isnan() | scores.isposinf()
        if bool(bad.any()):
            row, key = bad.nonzero()[0].tolist()
            raise AnalysisError(
                f"{self.name} has the score {float(scores[row, key])} of query {start + row} and key {key}, "
                f"head {head}, batch element {self.batch[batch]}",
                where=self.where,
                hint="find where the model's NaN or infinity arises",
            )

    def _check(self, head: int, batch: int) -> tuple[int, int, int, int]:
        b, h, n, m = self.sizes
        if not 0 <= head < h or not 0 <= batch < b:
            raise AnalysisError(f"{self.name} has no head {head} in batch element {batch}", hint=f"it has {b} × {h}")
        return b, h, n, m


class Copies:
    """Copies of a model's tensors in main memory, one for those with the same numbers: the model may write into its own
    at any time, and hands the same mask to many layers."""

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []

    def of(self, tensor: torch.Tensor, batch: Sequence[int] | None = None) -> torch.Tensor:
        """A copy, cut to the batch elements where ``batch`` says some; an axis along which nothing changes is one entry
        in memory. AnalysisError where there is no such element."""
        t = tensor.detach()
        if batch is not None and t.stride(0):
            cut = chosen_elements(t, batch)
        else:
            cut = t if batch is None else t[: len(batch)]
            shape = cut.shape
            for axis, stride in enumerate(cut.stride()):
                cut = cut.narrow(axis, 0, 1) if stride == 0 and cut.shape[axis] > 1 else cut
            cut = cut.to("cpu", copy=True).expand(shape)
        found = next((k for k in self._kept if _same(k, cut)), None)
        if found is None:
            self._kept = [cut, *self._kept[: COPIES - 1]]
        return cut if found is None else found


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)


def checked_batch(batch: Any) -> tuple[int, ...]:
    """Batch elements to keep, as positions. AnalysisError where there are none, or negative ones."""
    try:
        many = np.ndim(batch) or (isinstance(batch, (Sequence, range)) and not isinstance(batch, str))
        chosen = tuple(index(b) for b in (batch if many else (batch,)))
    except (TypeError, ValueError):
        chosen = ()
    if not chosen or min(chosen) < 0:
        raise AnalysisError(f"batch={batch!r} names no batch elements", hint="give positions, 0 or more")
    return chosen


def chosen_elements(tensor: torch.Tensor, batch: Sequence[int], where: str = "") -> torch.Tensor:
    """A copy in main memory of the elements ``batch`` of the first axis. AnalysisError where there is no such one."""
    if max(batch) >= tensor.shape[0]:
        raise AnalysisError(
            f"the batch has {tensor.shape[0]} elements, element {max(batch)} was asked for", where=where
        )
    return tensor.detach()[list(batch)].cpu()
