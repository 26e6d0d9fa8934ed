"""Masks and conditions within scores that read any of the four indices: eager, kernel and every stage agree.

The thresholds are met with equality in double precision and missed in single: 0.1 * 3 <= 0.3 is false.
"""

from itertools import combinations

import pytest
import torch

import aatc
from aatc import masks, metrics
from aatc.ir.interpreter import Interpreter
from tests.compiler.plain import attention, check, close

SUBSETS = ["".join(c) for n in range(5) for c in combinations("bhij", n)]
SIZES = [(2, 3, 5, 4), (4, 4, 1, 4), (1, 1, 4, 1)]


def positions(sizes):
    return [
        torch.arange(n).double().reshape([-1 if a == axis else 1 for a in range(4)]) for axis, n in enumerate(sizes)
    ]


def condition(subset, extra=0.0):
    """A truth value of the indices in ``subset``, of traced indices or of tensors in float64."""

    def holds(b, h, i, j):
        at = dict(zip("bhij", (b, h, i, j), strict=True))
        return sum((at[c] for c in subset), start=i * 0) * 0.1 + extra <= 0.3

    return holds


def every_stage(built, o, lse, tolerance):
    operands = [t.detach() for t in built.operands]
    for name, module in built.result.stages.items():
        got = Interpreter(module).call("main", operands)
        for what, g, w in zip(("output", "log-sum-exp"), got, (o, lse), strict=True):
            close(g, w, tolerance, f"{what} after {name}")


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("subset", SUBSETS)
def test_masks_of_some_indices(subset, library):
    holds = condition(subset)
    for n, sizes in enumerate(SIZES):
        dtype, tolerance = ((torch.float64, 1e-9), (torch.float32, 2e-5))[n % 2]
        b, h, rows, cols = sizes
        torch.manual_seed(n)
        q, k, v = (torch.randn(b, h, x, 4, dtype=dtype) for x in (rows, cols, cols))
        keep = holds(*positions(sizes)).expand(sizes)

        def formula(q, k, v, keep=keep):
            return attention(q @ k.mT * 0.5, v, keep)

        parts = {"metric": metrics.DotProduct(), "mask": masks.predicate(holds), "library": library}
        o, lse = formula(*(t.double() for t in (q, k, v)))
        built = check(formula, q, k, v, tolerance=tolerance, **parts)
        for g, w in zip(built.eager, (o, lse), strict=True):
            close(g, w, tolerance, "eager")
        every_stage(built, o, lse, tolerance)


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("subset", SUBSETS)
def test_conditions_of_some_indices_within_scores(subset, library):
    holds = condition(subset)

    @aatc.metric
    def metric(q, k, b, h, i, j):
        return torch.where(holds(b, h, i, j), (q * k).sum(), 0.25 * k.sum())

    for n, sizes in enumerate(SIZES):
        b, h, rows, cols = sizes
        torch.manual_seed(n)
        q, k, v = (torch.randn(b, h, x, 4, dtype=torch.float64) for x in (rows, cols, cols))

        def formula(q, k, v, sizes=sizes):
            taken = holds(*positions(sizes)).expand(sizes)
            return attention(torch.where(taken, q @ k.mT, 0.25 * k.sum(-1)[..., None, :].expand(sizes)), v)

        o, lse = formula(q, k, v)
        built = check(formula, q, k, v, metric=metric, library=library)
        every_stage(built, o.detach(), lse.detach(), 1e-9)


@pytest.mark.parametrize("axes", ["b", "h", "bi", "hj", "bhj"])
def test_captured_numbers_are_compared_in_the_precision_of_the_scores(axes):
    sizes = (2, 3, 5, 4)
    shape = [n if c in axes else 1 for c, n in zip("bhij", sizes, strict=True)]
    torch.manual_seed(0)
    q, k, v = (torch.randn(*sizes[:2], n, 4, dtype=torch.float64) for n in (5, 4, 4))
    c = torch.full(shape, 0.3).masked_fill(torch.rand(shape) < 0.4, 0.2)  # 0.3 in single precision exceeds 0.3
    held = c.reshape([n for n, x in zip(shape, "bhij", strict=True) if x in axes])

    @aatc.metric(c=axes)
    def metric(q, k, c):
        return torch.where(c <= 0.3, (q * k).sum(), 0.25 * k.sum())

    def formula(q, k, v):
        taken = (c.double() <= 0.3).expand(sizes)
        return attention(torch.where(taken, q @ k.mT, 0.25 * k.sum(-1)[..., None, :].expand(sizes)), v)

    o, lse = formula(q, k, v)
    built = check(formula, q, k, v, metric=metric(c=held))
    every_stage(built, o.detach(), lse.detach(), 1e-9)


def test_table_positions_of_captured_integers_are_those_of_double_precision():
    n = 6
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, n, 4, dtype=torch.float64) for _ in range(3))
    table, rows, cols = torch.randn(8, dtype=torch.float64), torch.arange(n), torch.arange(n).flip(0)

    @aatc.metric(t="t", c="i[i]", e="i[j]")
    def metric(q, k, t, c, e):
        return (q * k).sum() + metrics.lookup(t, (c - e) * 0.5 + 1e-9)  # halves round to even, these up

    at = ((rows[:, None] - cols).double() * 0.5 + 1e-9).round().long().clamp(0, 7)

    def formula(q, k, v):
        return attention(q @ k.mT + table[at], v)

    o, lse = formula(q, k, v)
    built = check(formula, q, k, v, metric=metric(t=table, c=rows, e=cols))
    every_stage(built, o.detach(), lse.detach(), 1e-9)
