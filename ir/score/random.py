"""Counter-based random numbers: the number of a pair depends on (seed, b, h, i, j) and nothing else.

Thirty-two-bit multiply-xorshift mixing, carried out in int64 with masks so that it is the same in torch, numpy
and a shader's uint arithmetic. Rows and columns are mixed first, so only the last round costs O(pairs).
"""

from __future__ import annotations

import torch

_MASK = 0xFFFFFFFF


def mix(x: torch.Tensor) -> torch.Tensor:
    """One avalanche round over values in [0, 2**32)."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def row_keys(seed: torch.Tensor, b: torch.Tensor, h: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    seed = seed.to(torch.int64)
    key = mix((seed & _MASK) ^ mix((seed >> 32) & _MASK))
    key = mix((key + b * 0x9E3779B1) & _MASK)
    key = mix((key + h * 0x85EBCA77) & _MASK)
    return mix((key + i * 0xC2B2AE3D) & _MASK)


def column_keys(j: torch.Tensor) -> torch.Tensor:
    return mix((j * 0x27D4EB2F + 0x165667B1) & _MASK)


def pair_numbers(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, 1) with 24 bits, as float64 (exact in float32 too)."""
    return (mix(rows ^ columns) >> 8).to(torch.float64) * 2.0**-24
