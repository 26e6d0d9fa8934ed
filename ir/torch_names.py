"""The torch constants a text may name: dtypes, layouts, memory formats and devices, and nothing else."""

from __future__ import annotations

import re
from typing import Any

from aatc.ir.registry import TorchConst

NAMES = frozenset(
    {
        "float64",
        "double",
        "float32",
        "float",
        "float16",
        "half",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "int64",
        "long",
        "int32",
        "int",
        "int16",
        "short",
        "int8",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
        "complex32",
        "complex64",
        "cfloat",
        "complex128",
        "cdouble",
        "strided",
        "sparse_coo",
        "sparse_csr",
        "sparse_csc",
        "sparse_bsr",
        "sparse_bsc",
        "jagged",
        "contiguous_format",
        "preserve_format",
        "channels_last",
        "channels_last_3d",
    }
)
_DEVICE = re.compile(r"cpu|meta|vulkan|cuda(:[0-9]{1,3})?")


def problem(c: TorchConst) -> str | None:
    """Why ``c`` is not a constant of torch's, or None when it is one."""
    if c.kind == "torch":
        return None if c.name in NAMES else f"torch.{c.name} is no dtype, layout or memory format"
    if c.kind == "device":
        return (
            None
            if _DEVICE.fullmatch(c.name)
            else f"{c.name!r} is no device: there are cpu, cuda, cuda:N, meta and vulkan"
        )
    return f"{c.kind!r} is no kind of constant"


def resolve(c: TorchConst) -> Any:
    """The torch object ``c`` stands for; ValueError when it is not in the tables above."""
    import torch

    if why := problem(c):
        raise ValueError(why)
    return torch.device(c.name) if c.kind == "device" else getattr(torch, c.name)
