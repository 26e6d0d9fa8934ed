"""Masks in tiles: over all four indices and captured tensors, exactly, and whatever stands at closed pairs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aatc import masks, metrics
from tests.compiler.plain import attention, check

PREDICATES = {
    "by-head": lambda b, h, i, j: (i - j <= 4 * h) & (j <= i),
    "by-batch": lambda b, h, i, j: i - j < 2 + 3 * b,
    "by-both": lambda b, h, i, j: (j <= i + b) & (i - j <= 2 * h + b),
    "one-head": lambda b, h, i, j: (h > 0) | (j <= i),
    "one-batch": lambda b, h, i, j: (b < 1) | (i <= j),
    "heads-alone": lambda b, h, i, j: h >= 1,
    "causal-or-diagonal": lambda b, h, i, j: (j <= i) | j.eq(i + 3),
    "causal-and-not": lambda b, h, i, j: (j <= i) & ~j.eq(i),
    "not-causal": lambda b, h, i, j: ~(j <= i),
    "strict": lambda b, h, i, j: j < i,
    "halves": lambda b, h, i, j: i * 0.5 > j,
    "sums": lambda b, h, i, j: i + j >= 5,
    "shifted": lambda b, h, i, j: i + 0.1 > j + 0.1,
    "products": lambda b, h, i, j: i * j < 20,
    "different": lambda b, h, i, j: (i - j).ne(2),
    "always": lambda b, h, i, j: (i >= 0) & (j >= 0),
    "never": lambda b, h, i, j: i < 0,
}


def truth(predicate, b, h, n, m):
    axes = [torch.arange(x, dtype=torch.float64) for x in (b, h, n, m)]
    return predicate(*torch.meshgrid(*axes, indexing="ij"))


def formula(keep):
    def plain(q, k, v):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        return attention(q @ k.mT * q.shape[-1] ** -0.5, v, keep)

    return plain


TILES = [
    "rows=4 cols=4 grain=2 heads=1",
    "rows=4 cols=8 grain=4 heads=2",
    "rows=16 cols=16 heads=4",
    "rows=3 cols=5 grain=1 heads=5",
    "",
]


@pytest.mark.parametrize("name", PREDICATES)
@pytest.mark.parametrize("library", [True, False])
def test_predicates_over_all_indices(name, library):
    torch.manual_seed(0)
    b, h, n, m = 2, 3, 13, 11
    keep = truth(PREDICATES[name], b, h, n, m)
    for hk in (3, 1):
        q, k, v = torch.randn(b, h, n, 4), torch.randn(b, hk, m, 4), torch.randn(b, hk, m, 4)
        q, k, v = q.double(), k.double(), v.double()
        for tiles in TILES:
            check(
                formula(keep),
                q,
                k,
                v,
                metric=metrics.DotProduct(),
                mask=masks.predicate(PREDICATES[name]),
                tolerance=1e-11,
                compiled={"library": library, "tiles": tiles},
            )


@given(st.data())
def test_drawn_masks_over_all_indices(data):
    """Linear comparisons joined at random, with GQA, and tiles that straddle batches."""
    torch.manual_seed(0)
    b, hk = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    h = hk * data.draw(st.integers(1, 3))
    n, m = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 14))
    number = st.integers(-3, 3)

    def comparison():
        c, at, word = (
            [data.draw(number) for _ in range(4)],
            data.draw(number),
            data.draw(st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"])),
        )

        def holds(b, h, i, j):
            total = c[0] * b + c[1] * h + c[2] * i + c[3] * j
            return {
                "lt": lambda: total < at,
                "le": lambda: total <= at,
                "gt": lambda: total > at,
                "ge": lambda: total >= at,
                "eq": lambda: total.eq(at),
                "ne": lambda: total.ne(at),
            }[word]()

        return holds

    parts = [comparison() for _ in range(data.draw(st.integers(1, 3)))]
    words = [data.draw(st.sampled_from("&|n")) for _ in parts]

    def predicate(*at):
        out = parts[0](*at)
        for p, w in zip(parts[1:], words, strict=False):
            out = out & p(*at) if w == "&" else out | p(*at) if w == "|" else ~out | p(*at)
        return out

    keep = truth(predicate, b, h, n, m)
    q, k, v = (torch.randn(b, x, y, 4, dtype=torch.float64) for x, y in ((h, n), (hk, m), (hk, m)))
    grain = data.draw(st.integers(1, 4))
    heads, rows, cols = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    tiles = f"heads={heads} rows={rows} cols={cols} grain={grain}"
    check(
        formula(keep),
        q,
        k,
        v,
        metric=metrics.DotProduct(),
        mask=masks.predicate(predicate),
        tolerance=1e-11,
        compiled={"library": data.draw(st.booleans()), "tiles": tiles},
    )
