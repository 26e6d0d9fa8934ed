"""Masks: which pairs (query i, key j) may talk. They combine with ``&``, ``|`` and ``~``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from aatc.ir.errors import CaptureError, ScoreError
from aatc.ir.score.expr import Expr, call, const, index
from aatc.ir.score.program import Program
from aatc.parts import Capture, Key, Part, integer_text, pair_capture


class Mask(Part):
    """A truth value per (b, h, i, j)."""

    def __and__(self, other: Mask | torch.Tensor) -> Mask:
        return _Both("and", self, as_mask(other))

    def __or__(self, other: Mask | torch.Tensor) -> Mask:
        return _Both("or", self, as_mask(other))

    def __invert__(self) -> Mask:
        return _Not(self)

    @classmethod
    def truth(cls, key: Key, captured: Iterator[Expr]) -> Expr:
        raise NotImplementedError


class _Both(Mask):
    def __init__(self, word: str, left: Mask, right: Mask):
        self.word, self.left, self.right = word, left, right
        self._set_key(self.word, self.left.key(), self.right.key())

    def captures(self, sizes):
        return [*self.left.captures(sizes), *self.right.captures(sizes)]

    @classmethod
    def truth(cls, key, captured):
        left = Part.of_key(key[2]).truth(key[2], captured)
        return call(key[1], left, Part.of_key(key[3]).truth(key[3], captured))


class _Not(Mask):
    def __init__(self, inner: Mask):
        self.inner = inner
        self._set_key(self.inner.key())

    def captures(self, sizes):
        return self.inner.captures(sizes)

    @classmethod
    def truth(cls, key, captured):
        return ~Part.of_key(key[1]).truth(key[1], captured)


class _Causal(Mask):
    def __init__(self, offset: int):
        self.offset = offset
        self._set_key(integer_text(self.offset))

    @classmethod
    def truth(cls, key, captured):
        return index("j") <= index("i") + const(int(key[1]))


class _Window(Mask):
    def __init__(self, width: int):
        if width < 1:
            raise ScoreError(f"a sliding window of {width}", hint="1 admits only j = i")
        self.width = width
        self._set_key(integer_text(self.width))

    @classmethod
    def truth(cls, key, captured):
        return abs(index("i") - index("j")) < const(int(key[1]))


class _Documents(Mask):
    def __init__(self, ids: torch.Tensor, kv_ids: torch.Tensor | None):
        self.ids, self.kv_ids = ids, ids if kv_ids is None else kv_ids

    def captures(self, sizes):
        return [_per_token("doc_q", self.ids, "i"), _per_token("doc_k", self.kv_ids, "j")]

    @classmethod
    def truth(cls, key, captured):
        return next(captured).eq(next(captured))


def _per_token(name: str, ids: torch.Tensor, axis: str) -> Capture:
    if ids.dim() not in (1, 2):
        raise CaptureError(f"document ids have shape {tuple(ids.shape)}; they are (N,) or (B, N)")
    return Capture(name, ids, axis if ids.dim() == 1 else "b" + axis, "i")


class _KeyPadding(Mask):
    def __init__(self, valid: torch.Tensor):
        self.valid = valid

    def captures(self, sizes):
        if self.valid.dim() not in (1, 2):
            raise CaptureError(f"key padding has shape {tuple(self.valid.shape)}; it is (B, M) or (M,)")
        return [Capture("valid", self.valid, "bj" if self.valid.dim() == 2 else "j", "b")]

    @classmethod
    def truth(cls, key, captured):
        return next(captured)


class _Dense(Mask):
    def __init__(self, keep: torch.Tensor):
        self.keep = keep

    def captures(self, sizes):
        return [pair_capture("keep", self.keep, sizes, "b")]

    @classmethod
    def truth(cls, key, captured):
        return next(captured)


_predicates: dict[str, Expr] = {}


class _Predicate(Mask):
    def __init__(self, text: str):
        self.text = text
        self._set_key(self.text)

    @classmethod
    def truth(cls, key, captured):
        return _predicates[key[1]]


def _traced(function: Callable[..., Any]) -> str:
    body = function(*(index(c) for c in "bhij"))
    if isinstance(body, bool):
        body = const(body)
    if not isinstance(body, Expr) or body.dtype != "b" or body.rank:
        raise ScoreError(
            f"the predicate returns {body!r}, not a truth value per pair",
            hint="compare, and combine with & | ~",
        )
    text = str(Program((), body))
    _predicates[text] = body
    return text


# what torch.compiler.assume_constant_result does, which would import Dynamo
_traced._dynamo_marked_constant = True  # type: ignore[attr-defined]


def causal(offset: int = 0) -> Mask:
    """j <= i + offset. When N != M, query 0 still stands at key 0 (the top left corner of the scores); give
    ``offset=M - N`` to let the last query see the last key."""
    return _Causal(offset)


def sliding_window(width: int) -> Mask:
    """|i - j| < width: a query sees itself and width - 1 keys on either side; with `causal`, width keys."""
    return _Window(width)


def documents(ids: torch.Tensor, kv_ids: torch.Tensor | None = None) -> Mask:
    """Queries see keys of their own document. Integer ``ids``: (N,) or (B, N); ``kv_ids`` those of keys."""
    return _Documents(ids, kv_ids)


def key_padding(valid: torch.Tensor) -> Mask:
    """Keys where ``valid``, bool (B, M), holds."""
    return _KeyPadding(valid)


def dense(keep: torch.Tensor) -> Mask:
    """Pairs where ``keep`` holds: bool (N, M), (H, N, M) or (B, H, N, M), any dimension 1 to be shared."""
    return _Dense(keep)


def predicate(function: Callable[[Any, Any, Any, Any], Any]) -> Mask:
    """Pairs for which ``function(b, h, i, j)`` holds, traced once: ``lambda b, h, i, j: i - j <= 4 * h``."""
    return _Predicate(_traced(function))


def as_mask(mask: Any) -> Mask:
    """A mask as it is, or a bare tensor of truth values as a dense one."""
    if isinstance(mask, Mask):
        return mask
    if isinstance(mask, torch.Tensor):
        return _Dense(mask)
    raise CaptureError(f"mask is a {type(mask).__name__}", hint="give a bool tensor or an object of aatc.masks")
