"""Symmetric block tridiagonal systems, batched.

Source: G. Golub, C. Van Loan, "Matrix Computations", section 4.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockFactors:
    """A symmetric block tridiagonal matrix per batch element, factored: Cholesky factors and the blocks above them."""

    factors: list[Tensor]
    upper: list[Tensor]
    definite: Tensor

    def solve(self, right: Tensor) -> Tensor:
        """The solution (m, B, n) for the right-hand side (m, B, n)."""
        reduced = [right[0].unsqueeze(-1)]
        for i, block in enumerate(self.upper):
            known = torch.cholesky_solve(reduced[i], self.factors[i])
            reduced.append(right[i + 1].unsqueeze(-1) - block.mT @ known)
        values = [torch.cholesky_solve(reduced[-1], self.factors[-1])]
        for i in range(len(self.upper) - 1, -1, -1):
            values.append(torch.cholesky_solve(reduced[i] - self.upper[i] @ values[-1], self.factors[i]))
        return torch.stack(values[::-1]).squeeze(-1)


def factor_blocks(diagonal: Tensor, upper: Tensor) -> BlockFactors:
    """The factors of the matrices with ``diagonal`` blocks (m, B, n, n) and those above them (m − 1, B, n, n).

    ``definite`` (B,) tells which are positive definite: the others have no solution here.
    """
    factors, blocks = [], list(upper)
    definite = torch.ones(diagonal.shape[1], dtype=torch.bool, device=diagonal.device)
    pivot = diagonal[0]
    for i in range(diagonal.shape[0]):
        factor, info = torch.linalg.cholesky_ex(pivot)
        definite = definite & (info == 0)
        factors.append(factor)
        if i < len(blocks):
            pivot = diagonal[i + 1] - blocks[i].mT @ torch.cholesky_solve(blocks[i], factor)
    return BlockFactors(factors, blocks, definite)
