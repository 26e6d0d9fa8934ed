"""Tensors on the device: where their elements lie in a buffer. PyTorch itself says what a view of one is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from aatc.ir.types import dtype_name, torch_dtype


@dataclass(frozen=True)
class View:
    """Elements of a buffer: ``strides`` and ``offset`` count elements, which take a word each. ``dtype`` is the host's:
    integers and truth values lie in the buffer as i32."""

    buffer: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @staticmethod
    def whole(buffer: str, dtype: str, shape: tuple[int, ...]) -> View:
        return View(buffer, dtype, shape, contiguous(shape))

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """Of its elements in kernels: "f" number, "i" integer, "b" truth value."""
        return kind_of(self.dtype)

    @property
    def is_flat(self) -> bool:
        """Whether its elements lie one behind the other, in order."""
        steps = zip(self.shape, self.strides, contiguous(self.shape), strict=True)
        return all(n == 1 or have == want for n, have, want in steps)

    def expanded(self, shape: tuple[int, ...]) -> View:
        """It as a tensor of ``shape``, which it broadcasts to."""
        lead = len(shape) - len(self.shape)
        strides = [0] * lead + [0 if n == 1 else s for n, s in zip(self.shape, self.strides, strict=True)]
        return View(self.buffer, self.dtype, shape, tuple(strides), self.offset)

    def meta(self) -> torch.Tensor:
        """A tensor without data that lies as this does."""
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) + 1
        storage = torch.empty(max(last, 0) if self.count else self.offset, dtype=torch_dtype(self.dtype), device="meta")
        return storage.as_strided(self.shape, self.strides, self.offset)


def kind_of(dtype: str) -> str:
    return "b" if dtype == "bool" else "f" if dtype in ("f64", "f32", "bf16", "f16") else "i"


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of elements in order."""
    steps = [1]
    for n in reversed(shape[1:]):
        steps.append(steps[-1] * max(n, 1))
    return tuple(steps[::-1]) if shape else ()


def views_of(view: View, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> list[View] | None:
    """What an operator makes of ``view``, its first argument; None if that is not some of the same elements."""
    meta = view.meta()
    try:
        made = function(meta, *args, **kwargs)
    except RuntimeError:  # a shape that elements which lie so cannot have without being copied
        return None
    several = list(made) if isinstance(made, (list, tuple)) else [made]
    if any(m.untyped_storage()._cdata != meta.untyped_storage()._cdata or m.dtype != meta.dtype for m in several):
        return None
    return [
        View(view.buffer, dtype_name(m.dtype), tuple(m.shape), tuple(m.stride()), m.storage_offset()) for m in several
    ]
