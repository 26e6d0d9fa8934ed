"""What a kernel hands out."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def apart(results: Sequence[torch.Tensor], args: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Results as tensors of their own: none shares memory with another, with an argument, or with itself. What a kernel
    hands out twice, as the output and as what its backward takes, is one tensor twice."""
    taken = {t.untyped_storage().data_ptr() for t in args if t.numel()}
    out: list[torch.Tensor] = []
    for n, t in enumerate(results):
        same = next((k for k, x in enumerate(results[:n]) if x is t), None)
        if same is not None:
            out.append(out[same])
            continue
        at = t.untyped_storage().data_ptr()
        if t.numel() and (at in taken or any(s == 0 and n > 1 for s, n in zip(t.stride(), t.shape, strict=True))):
            t = t.clone(memory_format=torch.contiguous_format)
            at = t.untyped_storage().data_ptr()
        taken.add(at)
        out.append(t)
    return tuple(out)
