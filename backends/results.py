"""What a kernel hands out."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def apart(results: Sequence[torch.Tensor], args: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Results as tensors of their own: none shares memory with another, with an argument, or with itself."""
    taken = {t.untyped_storage().data_ptr() for t in args if t.numel()}
    out = []
    for t in results:
        at = t.untyped_storage().data_ptr()
        if t.numel() and (at in taken or any(s == 0 and n > 1 for s, n in zip(t.stride(), t.shape, strict=True))):
            t = t.clone(memory_format=torch.contiguous_format)
            at = t.untyped_storage().data_ptr()
        taken.add(at)
        out.append(t)
    return tuple(out)
