"""Masks: which pairs (query i, key j) may talk. They combine with ``&``, ``|`` and ``~``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from aatc.ir.errors import CaptureError, ScoreError
from aatc.ir.score.expr import Expr, call, index
from aatc.parts import (
    Capture,
    Key,
    Part,
    integer,
    integer_captures,
    integer_expr,
    integer_key,
    pair_capture,
    tensor,
)
from aatc.traced import Recorded, rebuilt, recorded


class Mask(Part):
    """A truth value per (b, h, i, j)."""

    def __and__(self, other: Mask | torch.Tensor) -> Mask:
        return _Both("and", self, as_mask(other))

    def __or__(self, other: Mask | torch.Tensor) -> Mask:
        return _Both("or", self, as_mask(other))

    def __rand__(self, other: torch.Tensor) -> Mask:
        return _Both("and", as_mask(other), self)

    def __ror__(self, other: torch.Tensor) -> Mask:
        return _Both("or", as_mask(other), self)

    def __invert__(self) -> Mask:
        return _Not(self)

    @classmethod
    def truth(cls, key: Key, captured: Iterator[Expr]) -> Expr:
        raise NotImplementedError


class _Both(Mask):
    def __init__(self, word: str, left: Mask, right: Mask):
        self.word, self.left, self.right = word, left, right

    def described(self, sizes):
        (left, of_left), (right, of_right) = self.left.described(sizes), self.right.described(sizes)
        return (self.tag, self.word, left, right), [*of_left, *of_right]

    @classmethod
    def truth(cls, key, captured):
        left = Part.of_key(key[2]).truth(key[2], captured)
        return call(key[1], left, Part.of_key(key[3]).truth(key[3], captured))


class _Not(Mask):
    def __init__(self, inner: Mask):
        self.inner = inner

    def described(self, sizes):
        inner, captures = self.inner.described(sizes)
        return (self.tag, inner), captures

    @classmethod
    def truth(cls, key, captured):
        return call("not", Part.of_key(key[1]).truth(key[1], captured))


class _Causal(Mask):
    def __init__(self, offset: int | torch.Tensor):
        self.offset = integer("the offset of a causal mask", offset)

    def key(self):
        return (self.tag, integer_key(self.offset))

    def captures(self, sizes):
        return integer_captures("offset", self.offset, sizes)

    @classmethod
    def truth(cls, key, captured):
        return index("j") <= index("i") + integer_expr(key[1], captured)


class _Window(Mask):
    def __init__(self, width: int | torch.Tensor):
        self.width = integer("the width of a sliding window", width)
        if not isinstance(width, torch.Tensor) and width < 1:
            raise ScoreError(f"a sliding window of {width}", hint="1 admits only j = i")

    def key(self):
        return (self.tag, integer_key(self.width))

    def captures(self, sizes):
        return integer_captures("width", self.width, sizes)

    @classmethod
    def truth(cls, key, captured):
        return abs(index("i") - index("j")) < integer_expr(key[1], captured)


class _Documents(Mask):
    def __init__(self, ids: torch.Tensor, kv_ids: torch.Tensor | None):
        self.ids = tensor("document ids", ids)
        self.kv_ids = self.ids if kv_ids is None else tensor("document ids", kv_ids)
        if (self.ids.dtype == torch.uint64) != (self.kv_ids.dtype == torch.uint64):
            raise CaptureError(
                f"document ids hold {self.ids.dtype} and {self.kv_ids.dtype}", hint="no one dtype holds both exactly"
            )

    def captures(self, sizes):
        return [_per_token("doc_q", self.ids, "i"), _per_token("doc_k", self.kv_ids, "j")]

    @classmethod
    def truth(cls, key, captured):
        return call("eq", next(captured), next(captured))


def _per_token(name: str, ids: torch.Tensor, axis: str) -> Capture:
    if ids.dim() not in (1, 2):
        raise CaptureError(f"document ids have shape {tuple(ids.shape)}; they are (N,) or (B, N)")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise CaptureError(f"document ids hold {ids.dtype}, not integers", hint="convert them, say with .long()")
    if ids.dtype != torch.int64:
        ids = ids.to(torch.int64)
    return Capture(name, ids, axis if ids.dim() == 1 else "b" + axis, "i")


class _KeyPadding(Mask):
    def __init__(self, valid: torch.Tensor):
        self.valid = tensor("key padding", valid)

    def captures(self, sizes):
        if self.valid.dim() not in (1, 2):
            raise CaptureError(f"key padding has shape {tuple(self.valid.shape)}; it is (B, M) or (M,)")
        return [Capture("valid", self.valid, "bj" if self.valid.dim() == 2 else "j", "b")]

    @classmethod
    def truth(cls, key, captured):
        return next(captured)


class _Dense(Mask):
    def __init__(self, keep: torch.Tensor):
        self.keep = tensor("a dense mask", keep)

    def captures(self, sizes):
        return [pair_capture("keep", self.keep, sizes, "b")]

    @classmethod
    def truth(cls, key, captured):
        return next(captured)


class _Predicate(Mask):
    def __init__(self, function: Callable[..., Any]):
        if not callable(function):
            raise ScoreError(f"a predicate is a function of b, h, i and j, not a {type(function).__name__}")
        self.function = function
        if not torch.compiler.is_dynamo_compiling():
            self._program()  # refused where it is made, if it must be

    def _program(self) -> Recorded:
        return recorded(self.function, ("b", "h", "i", "j"), (), (), _checked)

    def described(self, sizes):
        program = self._program()
        return (self.tag, program.key), program.captures(sizes)

    @classmethod
    def truth(cls, key, captured):
        return rebuilt(key[1], {}, captured, _checked)


def _checked(body: Expr) -> Expr:
    if body.dtype != "b" or body.rank:
        raise ScoreError(
            f"the predicate returns {body!r}, not a truth value per pair",
            hint="compare, and combine with & | ~",
        )
    return body


def causal(offset: int | torch.Tensor = 0) -> Mask:
    """j <= i + offset. When N != M, query 0 still stands at key 0 (the top left corner of the scores); give
    ``offset=M - N`` to let the last query see the last key."""
    return _Causal(offset)


def sliding_window(width: int | torch.Tensor) -> Mask:
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
    """Pairs for which ``function(b, h, i, j)`` holds, as ``lambda b, h, i, j: i - j <= 4 * h``.

    The function is called once per attention, not per pair, with the indices as symbols (`aatc.traced`), so what it
    reads may change between calls.
    """
    return _Predicate(function)


def as_mask(mask: Any) -> Mask:
    """A mask as it is, or a bare tensor of truth values as a dense one."""
    if isinstance(mask, Mask):
        return mask
    if isinstance(mask, torch.Tensor):
        return _Dense(mask)
    raise CaptureError(f"mask is a {type(mask).__name__}", hint="give a bool tensor or an object of aatc.masks")
