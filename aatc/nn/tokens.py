"""What the modules have in common: tokens split into heads, and masks of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from aatc import masks
from aatc.errors import CaptureError, ShapeError
from aatc.masks import Mask


def head_width(hidden_dim: int, num_heads: int) -> int:
    """Features per head. ShapeError unless ``num_heads`` divides ``hidden_dim``."""
    if num_heads < 1 or hidden_dim < 1 or hidden_dim % num_heads:
        raise ShapeError(
            f"{hidden_dim} features cannot be shared by {num_heads} heads",
            hint="hidden_dim must be a positive multiple of num_heads",
        )
    return hidden_dim // num_heads


def check_dropout(dropout: float) -> float:
    """``dropout`` if it is a probability below 1, else ShapeError."""
    if not 0 <= dropout < 1:
        raise ShapeError(f"dropout {dropout} is not a probability below 1", hint="0 turns it off")
    return dropout


def check_tokens(x: Tensor, width: int, who: str) -> None:
    """ShapeError unless ``x`` is (B, N, width)."""
    if x.dim() != 3 or x.shape[-1] != width:
        raise ShapeError(f"{who} got tokens of shape {tuple(x.shape)}", hint=f"tokens are (batch, length, {width})")


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, H·d) to (B, H, N, d)."""
    heads: Tensor = x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return heads


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, d) to (B, N, H·d)."""
    return x.transpose(1, 2).flatten(-2)


def token_mask(mask: Mask | Tensor | None, causal: bool) -> Mask | None:
    """The mask of a module: True where a query may attend.

    A bool tensor (B, N) says which tokens exist (key padding), (B, N, N) and (B, H, N, N) which pairs are admitted;
    an object of `aatc.masks` is taken as it is. CaptureError for anything else.
    """
    found: Mask | None = None
    if isinstance(mask, Mask):
        found = mask
    elif isinstance(mask, Tensor):
        if mask.dtype != torch.bool:
            raise CaptureError(
                f"a mask of {mask.dtype}", hint="masks hold truth values, True where a query may attend: mask.bool()"
            )
        if mask.dim() not in (2, 3, 4):
            raise CaptureError(
                f"a mask of shape {tuple(mask.shape)}",
                hint="it is (B, N) for tokens, (B, N, N) or (B, H, N, N) for pairs",
            )
        found = masks.key_padding(mask) if mask.dim() == 2 else masks.dense(mask if mask.dim() == 4 else mask[:, None])
    elif mask is not None:
        raise CaptureError(f"mask is a {type(mask).__name__}", hint="give a bool tensor or an object of aatc.masks")
    if not causal:
        return found
    return masks.causal() if found is None else masks.causal() & found
