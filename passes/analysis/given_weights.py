"""Attention weights that were given as arrays, whatever made them: saved tensors, a library's outputs, numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from aatc.passes.analysis.attention_rows import AttentionRows, checked_batch, chosen_elements
from aatc.passes.analysis.result import AnalysisError
from aatc.passes.analysis.stochastic import PatternError, plain_array, plain_tensor, sum_tolerance

#: Fields of a model's outputs that hold weights, as transformers names them.
FIELDS = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")


@dataclass(frozen=True, eq=False)
class GivenWeights(AttentionRows):
    """Weights (kept batch elements, heads, queries, keys) in their own dtype: rows are turned into float64 and divided
    by their sums as they are read. A row of zeros is a query that sees no key. ``improper`` says what is wrong where
    some row is no probability distribution: then ``array`` is all there is to read."""

    name: str
    array: torch.Tensor
    batch: tuple[int, ...] = (0,)
    tokens: torch.Tensor | None = None
    source: str = ""
    is_softmax: bool = True
    notes: tuple[str, ...] = ()
    improper: str = ""

    @property
    def where(self) -> str:
        return self.source

    @property
    def exponential(self) -> bool:
        return self.is_softmax

    @property
    def _identity(self) -> bytes:
        return f"{type(self).__name__}{self.is_softmax}".encode()

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:  # type: ignore[override]
        return {"weights": self.array}

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        b, h, n, m = self.array.shape
        return b, h, n, m

    @property
    def width(self) -> int:
        return 0

    @property
    def weights_seconds(self) -> float:
        return 2e-8 * self.array.shape[2] * self.array.shape[3]

    @cached_property
    def _tolerance(self) -> float:
        return sum_tolerance(str(self.array.dtype).removeprefix("torch."), self.array.shape[3])

    def weights(self, head: int, start: int = 0, stop: int | None = None, batch: int = 0) -> torch.Tensor:
        self._check(head, batch)
        rows = self.array[batch, head, start:stop].double()
        sums = rows.sum(-1, keepdim=True)
        # one comparison each that NaN fails
        good = (rows >= 0).all(-1) & (((sums - 1).abs() <= self._tolerance) | (sums == 0))[:, 0]
        if not bool(good.all()):
            row = int((~good).nonzero()[0])
            raise PatternError(
                f"{self.name}: row {start + row} of head {head}, batch element {self.batch[batch]}, has the sum "
                f"{float(sums[row]):.6g} and the least entry {float(rows[row].min()):.3g}",
                where=self.source,
                hint="give weights after softmax, with exact zeros where a pair is masked",
            )
        return rows / torch.where(sums == 0, 1.0, sums) + 0.0  # a weight of −0 is 0

    def check(self) -> None:
        """PatternError where some row is no probability distribution."""
        for batch in range(self.sizes[0]):
            for head in range(self.sizes[1]):
                for _ in self.stripes(head, batch):
                    pass


def given_weights(weights: Any, batch: int | Sequence[int] = (0,), tokens: Any = None) -> list[AttentionRows]:
    """The attentions in ``weights``: an array, nested sequences or mappings of arrays, or outputs of a model.

    An array is (n, m), (heads, n, m), (batch, heads, n, m), or (layers, batch, heads, n, m). Attentions that were
    captured are taken as they are. ``tokens`` (n,) or (batch, n) are the tokens of self-attentions, integers. Raises
    AnalysisError, and PatternError for rows that are no probability distributions.
    """
    chosen = checked_batch(batch)
    known = None if tokens is None else token_table(tokens)
    found: list[AttentionRows] = []
    for name, leaf in _leaves(weights, ""):
        if isinstance(leaf, AttentionRows):
            found.append(leaf)
            continue
        for place, layer in enumerate(_layers(leaf, name)):
            title = name or f"attend{len(found)}"
            title = f"{title}.{place}" if name and leaf.ndim == 5 else title
            array = chosen_elements(layer, chosen, title)
            given = GivenWeights(title, array, chosen)
            given.check()
            found.append(given)
    if not found:
        raise AnalysisError(
            f"a {type(weights).__name__} holds no attention weights",
            hint='of transformers: output_attentions=True with attn_implementation="eager"; or run the model within '
            "aatc.analysis.capturing(), which needs no weights to be returned"
            + "".join(f"; {note}" for note in getattr(weights, "notes", ())),
        )
    if known is None:
        return found
    found = with_tokens(found, known)
    check_tokens_used(found, known)
    return found


def _leaves(weights: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(name, array or captured attention) in order; sequences number what lies in them when they are nested."""
    if weights is None:
        return
    if isinstance(weights, AttentionRows):
        yield name, weights
    elif isinstance(getattr(weights, "captured", None), (list, tuple)):  # what watched a model run
        yield from _numbered(weights.captured, f"{name}." if name else "")
    elif isinstance(weights, (torch.Tensor, np.ndarray)):
        yield name, _tensor(weights, name)
    elif any(getattr(weights, f, None) is not None for f in FIELDS):
        parts = {f: getattr(weights, f, None) for f in FIELDS}
        only = sum(p is not None for p in parts.values()) == 1
        for field, part in parts.items():
            yield from _numbered(part, "" if only else f"{field.removesuffix('_attentions')}.")
    elif isinstance(weights, Mapping):
        for field, part in weights.items():
            yield from _leaves(part, f"{name}{field}")
    elif isinstance(weights, Sequence) and not isinstance(weights, (str, bytes)):
        if any(isinstance(w, (torch.Tensor, np.ndarray, AttentionRows, Mapping)) or w is None for w in weights):
            yield from _numbered(weights, f"{name}." if name else "")
        elif any(isinstance(w, Sequence) and any(isinstance(x, torch.Tensor) for x in w) for w in weights):
            for place, part in enumerate(weights):
                yield from _numbered(part, f"{name}{place}.")
        else:
            yield name, _tensor(weights, name)
    else:
        raise AnalysisError(
            f"a {type(weights).__name__} is no attention weights",
            hint="give an array, a sequence or mapping of arrays, or a model's outputs that have .attentions",
        )


def _numbered(parts: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(parts, (torch.Tensor, np.ndarray)):
        parts = [parts]
    for place, part in enumerate(parts or ()):
        yield from _leaves(part, f"{prefix}{place}" if prefix else f"attend{place}")


def _tensor(values: Any, name: str) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        tensor = plain_tensor(values, name or "what is given as weights")
    else:
        tensor = torch.from_numpy(np.array(plain_array(values, name or "what is given as weights"), order="C"))
    if tensor.dtype == torch.bool or tensor.is_complex() or not 2 <= tensor.ndim <= 5 or 0 in tensor.shape:
        raise PatternError(
            f"{name or 'the weights'} of shape {tuple(tensor.shape)} and {tensor.dtype} are no attention weights",
            hint="give real numbers: (n, m), (heads, n, m), (batch, heads, n, m) or (layers, batch, heads, n, m)",
        )
    return tensor


def _layers(tensor: torch.Tensor, name: str) -> list[torch.Tensor]:
    """(batch, heads, n, m) of every layer."""
    if tensor.ndim == 5:
        return list(tensor)
    return [tensor[(None,) * (4 - tensor.ndim)]]


def token_ids(tokens: Any) -> np.ndarray:
    """Tokens as integers of the same shape, texts by their place in alphabetical order. AnalysisError for others."""
    hint = "give integers, or texts: (n,) for all batch elements, or (batch, n)"
    try:
        table = np.asarray(plain_tensor(tokens) if isinstance(tokens, torch.Tensor) else tokens)
        if table.dtype.kind == "O" and all(isinstance(t, (str, bytes)) for t in table.ravel()):
            table = table.astype(str)
        elif table.dtype.kind == "O" and all(isinstance(t, (int, np.integer)) for t in table.ravel()):
            table = table.astype(np.int64)
    except (ValueError, OverflowError) as cause:
        raise AnalysisError(f"these are no tokens: {cause}", hint=hint) from cause
    if table.dtype.kind in "US":
        return np.unique(table, return_inverse=True)[1].reshape(table.shape)
    if table.dtype.kind not in "iu" or isinstance(tokens, np.ma.MaskedArray) or table.ndim < 1:
        raise AnalysisError(f"tokens of shape {table.shape} and {table.dtype} are no tokens", hint=hint)
    return table.astype(np.int64)


def token_table(tokens: Any) -> torch.Tensor:
    """Tokens (n,) or (batch, n) as integers (1, n) or (batch, n). AnalysisError for others."""
    table = torch.from_numpy(token_ids(tokens))
    if not 1 <= table.ndim <= 2:
        raise AnalysisError(
            f"tokens of shape {tuple(table.shape)} are no tokens",
            hint="give (n,) for all batch elements, or (batch, n)",
        )
    return table.reshape(-1, table.shape[-1])


def _fitting(table: torch.Tensor | None, batch: tuple[int, ...], keys: int, queries: int) -> torch.Tensor | None:
    """The tokens of the kept batch elements, where an attention is from as many tokens to as many."""
    if table is None or table.shape[-1] != keys or keys != queries:
        return None
    if len(table) == 1:
        return table.expand(len(batch), -1).contiguous()
    return chosen_elements(table, batch, "tokens")


def check_tokens_used(seen: Sequence[AttentionRows], table: torch.Tensor) -> None:
    """AnalysisError where no attention is from as many tokens to as many as were given."""
    if all(c.tokens is None for c in seen):
        sizes = ", ".join(sorted({f"{c.sizes[2]} × {c.sizes[3]}" for c in seen}))
        raise AnalysisError(
            f"{table.shape[-1]} tokens were given, and no attention is from as many tokens to as many: {sizes}",
            hint="give a token for every key of self-attention, or leave tokens= out",
        )


def with_tokens(seen: Sequence[Any], table: torch.Tensor | None) -> list[Any]:
    """Captured attentions with the tokens of their keys, where these fit and are not known yet."""
    from dataclasses import replace

    given = []
    for c in seen:
        fits = _fitting(table, c.batch, c.sizes[3], c.sizes[2]) if c.tokens is None else None
        given.append(c if fits is None else replace(c, tokens=fits))
    return given
