"""Operands of every layout: what a kernel may assume of strides is promised by its signature, or not assumed."""

import pytest
import torch

import aatc
from aatc import biases, masks, metrics
from aatc.errors import VerifyError
from tests.compiler.harness import build
from tests.compiler.plain import attention, check

LAYOUTS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "channels-last": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "tokens-first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "sliced": lambda x: torch.stack([x, x + 1, x - 1], -1).flatten(-2)[..., 1:-1:3] if x.shape[-1] > 1 else x,
    "every-other-token": lambda x: torch.stack([x, x], 3).flatten(2, 3)[:, :, 1::2],
    "offset": lambda x: torch.cat([x.new_full((7,), 5.0), x.reshape(-1)])[7:].view(x.shape),
    "equal-features": lambda x: x[..., :1].expand(x.shape),
    "equal-tokens": lambda x: x[:, :, :1].expand(x.shape),
    "equal-heads": lambda x: x[:, :1].expand(x.shape),
    "one-number": lambda x: x[:1, :1, :1, :1].expand(x.shape),
    "flipped": lambda x: x.flip(-1),
    "overlapping": lambda x: x.flatten()[: x.shape[2] + x.shape[3]].as_strided(x.shape, (0, 0, 1, 1)),
}


def laid_out(x, name):
    return LAYOUTS[name](x).detach()


def masked(mask, n, m):
    if mask is None:
        return None
    i, j = torch.arange(n)[:, None], torch.arange(m)
    return {"causal": j <= i, "window": (i - j).abs() < 3}[mask]


def dot(mask):
    def formula(q, k, v, *rest):
        score = q @ k.mT * q.shape[-1] ** -0.5
        for b in rest:
            score = score + b
        return attention(score, v, masked(mask, q.shape[2], k.shape[2]))

    return formula


MASKS = {None: None, "causal": masks.causal(), "window": masks.sliding_window(3)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("mask", [None, "causal", "window"])
def test_queries_keys_and_values_of_every_layout(layout, mask, library):
    torch.manual_seed(0)
    for which in range(3):
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
            x = [torch.randn(2, 2, n, 8, dtype=dtype) for n in (9, 11, 11)]
            x[which] = laid_out(x[which], layout)
            check(
                dot(mask),
                *x,
                metric=metrics.DotProduct(),
                mask=MASKS[mask],
                tolerance=tolerance,
                compiled={"library": library, "tiles": "" if library else "rows=4 cols=4 grain=4", "shared": True},
            )


@pytest.mark.parametrize("library", [True, False])
def test_square_values_transposed(library):
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 32, 16), torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16).mT
    check(dot(None), q, k, v, metric=metrics.DotProduct(), tolerance=2e-5, compiled={"library": library})


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_arrive_in_every_layout(layout, library):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 9, 8, dtype=torch.float64) for _ in range(3))
    built = build(q, k, v, metric=metrics.DotProduct(), library=library)
    g = laid_out(torch.randn(2, 2, 9, 8, dtype=torch.float64), layout)
    gl = laid_out(torch.randn(2, 2, 9, 1, dtype=torch.float64), "equal-tokens")[..., 0]
    low = [t.detach().clone().requires_grad_() for t in built.operands]
    high = [t.detach().clone().requires_grad_() for t in built.operands]
    got = torch.autograd.grad(built.program.main(*low), low, [g, gl])
    want = torch.autograd.grad(dot(None)(*high), high, [g, gl])
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)


STRIDES = {
    "plain": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "equal-queries": lambda x: x[..., :1, :].expand(x.shape),
    "equal-keys": lambda x: x[..., :1].expand(x.shape),
    "one-number": lambda x: x.flatten()[0].expand(x.shape),
    "offset": lambda x: torch.cat([x.new_zeros(3), x.reshape(-1)])[3:].view(x.shape),
    "diagonals": lambda x: x.flatten()[: sum(x.shape[-2:])].as_strided(x.shape, (*(0,) * (x.dim() - 2), 1, 1)),
}


@pytest.mark.parametrize("layout", STRIDES)
@pytest.mark.parametrize(
    "shape", [(9, 11), (2, 9, 11), (3, 2, 9, 11), (3, 1, 9, 11), (1, 1, 1, 1), (3, 2, 1, 11), (3, 2, 9, 1)]
)
def test_dense_biases_of_every_layout(shape, layout):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 8, dtype=torch.float64) for n in (9, 11, 11))
    b = STRIDES[layout](torch.randn(shape, dtype=torch.float64)).detach()
    for tiles in ("rows=4 cols=4", "rows=16 cols=16 heads=4"):
        check(
            dot(None),
            q,
            k,
            v,
            tensors=[b],
            metric=metrics.DotProduct(),
            bias=biases.Dense(b),
            compiled={"tiles": tiles},
        )


@pytest.mark.parametrize("layout", STRIDES)
def test_dense_masks_of_every_layout(layout):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 8, dtype=torch.float64) for n in (9, 11, 11))
    for shape in ((9, 11), (2, 9, 11), (3, 2, 9, 11)):
        keep = STRIDES[layout]((torch.rand(shape) < 0.6).to(torch.uint8)).bool()
        for library in (True, False):
            check(
                lambda q, k, v, keep=keep: attention(q @ k.mT * 8**-0.5, v, keep),
                q,
                k,
                v,
                metric=metrics.DotProduct(),
                mask=masks.dense(keep),
                compiled={"tiles": "rows=4 cols=4 grain=2", "library": library},
            )


def test_results_share_no_memory():
    """With one another, with operands, or within themselves: a later write in place changes one tensor."""
    import aatc

    @aatc.metric(c="bhjd")
    def shifted(q, k, c):
        return (q * (k + c)).sum()

    torch.manual_seed(0)
    q, k, v, c = (torch.randn(1, 2, 6, 8, dtype=torch.float64).requires_grad_() for _ in range(4))
    for library in (True, False):
        built = build(q, k, v, metric=shifted(c=c), library=library)
        o, lse = built.run()
        gradients = torch.autograd.grad(o.sum() + lse.sum(), [q, k, v, c])
        storages = [t.untyped_storage().data_ptr() for t in (o, lse, *gradients, *built.operands)]
        assert len(set(storages)) == len(storages)
        assert o.is_contiguous() and lse.is_contiguous()
        for g in gradients:
            g += 1  # raises when entries share memory


def test_a_write_to_an_operand_after_the_forward_is_noticed():
    q, k, v = (torch.randn(1, 1, 4, 8).requires_grad_() for _ in range(3))
    o, _ = build(q, k, v, metric=metrics.DotProduct()).run()
    with torch.no_grad():
        v.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        o.sum().backward()


@pytest.mark.parametrize(("metric", "count"), [(metrics.DotProduct(), 8), (metrics.Euclidean(), 3)])
def test_a_library_call_on_buffers_of_any_strides_is_refused(metric, count):
    built = build(*(torch.randn(1, 1, 4, 8) for _ in range(3)), metric=metric, library=True)
    text = str(built.result.module)
    places = [n for n in range(len(text)) if text.startswith("; rows]", n)]
    assert len(places) == count  # q, k, v; and where the backward is the library's, too, the gradient, q, k, v, o
    for at in places:
        with pytest.raises(VerifyError, match="strides may be any"):
            aatc.parse(text[:at] + text[at + len("; rows") :])
