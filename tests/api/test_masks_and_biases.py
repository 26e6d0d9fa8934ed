"""Masks and biases against boolean and numeric matrices written by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import aatc
from aatc import biases, masks, metrics
from tests.api.oracle import agree, attention, inputs, pairs

B, H, N, M = 2, 4, 5, 7
ROW, COL = torch.arange(N)[:, None], torch.arange(M)
HEADS = torch.arange(H)[:, None, None]


def scores(q, k):
    x, y = pairs(q, k)
    return (x * y).sum(-1) / q.shape[-1] ** 0.5


def run(q, k, v, **parts):
    return aatc.attend(q, k, v, metric=metrics.DotProduct(), return_lse=True, **parts)


def make_masks():
    g = torch.Generator().manual_seed(1)
    ids, kv = torch.randint(0, 3, (B, N), generator=g), torch.randint(0, 3, (B, M), generator=g)
    valid = torch.rand(B, M, generator=g) > 0.4
    keep2, keep3, keep4 = (torch.rand(s, generator=g) > 0.3 for s in ((N, M), (H, N, M), (B, H, N, M)))
    shared = torch.rand(B, 1, 1, M, generator=g) > 0.3
    line = torch.tensor([0, 0, 1, 1, 1])
    return {
        "causal": (masks.causal(), COL <= ROW),
        "causal-offset": (masks.causal(offset=M - N), COL <= ROW + 2),
        "causal-behind": (masks.causal(offset=-2), COL <= ROW - 2),
        "window": (masks.sliding_window(2), (ROW - COL).abs() < 2),
        "documents": (
            masks.documents(line, torch.tensor([0, 0, 0, 1, 1, 1, 2])),
            line[:, None] == torch.tensor([0, 0, 0, 1, 1, 1, 2]),
        ),
        "documents-batch": (masks.documents(ids, kv), ids[:, None, :, None] == kv[:, None, None, :]),
        "padding": (masks.key_padding(valid), valid[:, None, None, :]),
        "dense2": (masks.dense(keep2), keep2),
        "dense3": (masks.dense(keep3), keep3),
        "dense4": (masks.dense(keep4), keep4),
        "bare": (shared, shared),
        "predicate": (
            masks.predicate(lambda b, h, i, j: (i - j <= h) & (j - i < 3 - b)),
            (ROW - COL <= HEADS) & (3 - torch.arange(B)[:, None, None, None] > COL - ROW),
        ),
        "and": (masks.causal() & masks.sliding_window(3), (COL <= ROW) & ((ROW - COL).abs() < 3)),
        "or": (masks.causal() | valid_dense(valid), (COL <= ROW) | valid[:, None, None, :]),
        "not": (~(masks.causal() & ~masks.key_padding(valid)), ~((COL <= ROW) & ~valid[:, None, None, :])),
        "all": (masks.predicate(lambda b, h, i, j: True), torch.ones(N, M, dtype=torch.bool)),
    }


def valid_dense(valid):
    return valid[:, None, None, :]


@pytest.mark.parametrize("name", list(make_masks()))
def test_a_mask_is_its_matrix(name):
    mask, matrix = make_masks()[name]
    q, k, v = inputs(B, H, N, M)
    agree(run(q, k, v, mask=mask), attention(q, k, v, scores(q, k), mask=matrix), [q, k, v])


@given(data=st.data())
def test_masks_are_closed_under_and_or_not(data):
    leaves = [m for m in make_masks().values() if isinstance(m[0], masks.Mask)]

    def draw(depth):
        word = data.draw(st.sampled_from(["leaf", "and", "or", "not"] if depth else ["leaf"]))
        if word == "leaf":
            return data.draw(st.sampled_from(leaves))
        a = draw(depth - 1)
        if word == "not":
            return ~a[0], ~a[1]
        b = draw(depth - 1)
        return (a[0] & b[0], a[1] & b[1]) if word == "and" else (a[0] | b[0], a[1] | b[1])

    mask, matrix = draw(3)
    q, k, v = inputs(B, H, N, M, requires_grad=False)
    o, lse = run(q, k, v, mask=mask)
    want = attention(q, k, v, scores(q, k), mask=matrix)
    torch.testing.assert_close((o, lse), want)


def test_rows_without_a_key_are_zero_with_lse_minus_infinity_and_no_gradient():
    q, k, v = inputs(B, H, N, M)
    keep = torch.ones(N, M, dtype=torch.bool)
    keep[[1, 3]] = False
    o, lse = run(q, k, v, mask=keep)
    assert torch.equal(o[:, :, [1, 3]], torch.zeros(B, H, 2, 6, dtype=o.dtype))
    assert (lse[:, :, [1, 3]] == float("-inf")).all() and lse[:, :, [0, 2, 4]].isfinite().all()
    gq, gk, gv = torch.autograd.grad(o.sum() + lse[:, :, [0, 2, 4]].sum(), [q, k, v])
    assert all(g.isfinite().all() for g in (gq, gk, gv)) and (gq[:, :, [1, 3]] == 0).all()


def test_biases_are_their_matrices_and_learn():
    q, k, v = inputs(B, H, N, M)
    new = lambda *s: torch.randn(*s, dtype=torch.float64).requires_grad_()  # noqa: E731
    slopes, table, flat = new(H), new(H, 5), new(7)
    near = (COL - ROW + 2).clamp(0, 4)
    cases = [
        (biases.ALiBi(slopes), lambda: -slopes[:, None, None] * (ROW - COL).abs(), [slopes]),
        (biases.ALiBi(H), lambda: -(2.0 ** (-8.0 * (HEADS + 1) / H)) * (ROW - COL).abs(), []),
        (biases.RelativeTable(table), lambda: table[:, near], [table]),
        (biases.RelativeTable(flat), lambda: flat[(COL - ROW + 3).clamp(0, 6)], [flat]),
    ]
    for shape in ((M,), (N, M), (H, N, M), (B, H, N, M), (B, 1, N, M), (1, H, 1, M), (B, 1, 1, M), (H, N, 1)):
        t = new(*shape)
        cases.append((t, lambda t=t: t, [t]))
    a, b, c = new(H), new(H, 3), new(N, M)
    cases.append(
        (
            biases.ALiBi(a) + biases.RelativeTable(b) + c,
            lambda: -a[:, None, None] * (ROW - COL).abs() + b[:, (COL - ROW + 1).clamp(0, 2)] + c,
            [a, b, c],
        )
    )
    for bias, matrix, leaves in cases:
        agree(run(q, k, v, bias=bias), attention(q, k, v, scores(q, k) + matrix()), [q, k, v, *leaves])


def test_alibi_slopes_of_a_count_that_is_no_power_of_two():
    assert biases.alibi_slopes(3).tolist() == [2**-4, 2**-8, 2**-2]
    assert biases.alibi_slopes(1).tolist() == [2**-8]


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"mask": torch.ones(N, M)}, "holds torch.float32, not truth values"),
        (
            {"mask": torch.ones(M, N, dtype=torch.bool)},
            r"keep has shape \(7, 5\).*7 along i, but there are 5 queries",
        ),
        ({"mask": "causal"}, "aatc.masks"),
        (
            {"mask": masks.key_padding(torch.ones(B, N, dtype=torch.bool))},
            r"valid has shape \(2, 5\).*7 keys",
        ),
        (
            {"mask": masks.documents(torch.zeros(N, dtype=torch.long))},
            r"doc_k.*5 along j, but there are 7 keys",
        ),
        ({"mask": masks.documents(torch.zeros(N), torch.zeros(M))}, "not integers"),
        ({"bias": torch.ones(N, M, dtype=torch.bool)}, "masks.dense"),
        ({"bias": torch.ones(3, N, M)}, r"bias has shape \(3, 5, 7\).*4 query heads"),
        ({"bias": torch.ones(N, M, dtype=torch.long)}, "not floating-point"),
        ({"bias": torch.ones(1, B, H, N, M)}, r"it may be \(M,\)"),
        ({"bias": 3.0}, "aatc.biases"),
        ({"bias": biases.ALiBi(3)}, "slope.*4 query heads"),
    ],
)
def test_what_does_not_fit_is_said(parts, text):
    q, k, v = inputs(B, H, N, M)
    with pytest.raises(aatc.errors.CaptureError, match=text):
        run(q, k, v, **parts)


def test_malformed_parts_are_refused_where_they_are_made():
    with pytest.raises(aatc.errors.CaptureError, match=r"2R\+1"):
        biases.RelativeTable(torch.zeros(4, 6))
    with pytest.raises(aatc.errors.ScoreError, match="truth value"):
        masks.predicate(lambda b, h, i, j: i - j)
    with pytest.raises(aatc.errors.ScoreError, match="window of 0"):
        masks.sliding_window(0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_document_ids_are_compared_exactly_over_the_whole_range(dtype):
    info = torch.iinfo(dtype)
    ids = torch.tensor([info.max, info.max - 1, info.min, info.min + 1, 0], dtype=dtype)
    kv = torch.tensor([info.max, info.min, info.max - 1, 0, 1, info.min + 1, info.max], dtype=dtype)
    q, k, v = inputs(B, H, N, M, requires_grad=False)
    want = attention(q, k, v, scores(q, k), mask=ids[:, None] == kv)
    torch.testing.assert_close(run(q, k, v, mask=masks.documents(ids, kv)), want)
    other = kv.long() if dtype != torch.int64 else kv
    torch.testing.assert_close(run(q, k, v, mask=masks.documents(ids, other)), want)


def test_document_ids_of_no_common_integer_type_are_refused():
    with pytest.raises(aatc.errors.CaptureError, match="uint64"):
        masks.documents(torch.zeros(N, dtype=torch.uint64), torch.zeros(M, dtype=torch.int64))
    with pytest.raises(aatc.errors.ScoreError, match=r"offset of a causal mask is 1\.5"):
        masks.causal(1.5)
    with pytest.raises(aatc.errors.CaptureError, match="number of heads"):
        biases.ALiBi(0.5)


def test_constants_beyond_double_precision_are_compared_exactly():
    big = 2**53
    mask = masks.predicate(lambda b, h, i, j: (i + big == big + 1) & (j - big != -big))
    q, k, v = inputs(B, H, N, M, requires_grad=False)
    want = attention(q, k, v, scores(q, k), mask=(ROW == 1) & (COL != 0))
    torch.testing.assert_close(run(q, k, v, mask=mask), want)


def test_a_division_that_comes_out_even_is_even():
    mask = masks.predicate(lambda b, h, i, j: (49 * i / 49 >= j) & (torch.floor(j * 41 / 41) == j))
    q, k, v = inputs(B, H, N, M, requires_grad=False)
    torch.testing.assert_close(run(q, k, v, mask=mask), attention(q, k, v, scores(q, k), mask=ROW >= COL))
