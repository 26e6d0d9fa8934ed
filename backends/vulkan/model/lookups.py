"""Operators that find entries by index, and what is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from aatc.backends.vulkan.model.elementwise import lookup, scattered_sums
from aatc.backends.vulkan.model.nodes import Node, held, load, number
from aatc.backends.vulkan.model.operators import Unsupported, operator, reduced, softmax
from aatc.backends.vulkan.model.pointwise import word
from aatc.backends.vulkan.model.rows import Reduction
from aatc.backends.vulkan.model.views import View

if TYPE_CHECKING:
    from aatc.backends.vulkan.model.builder import Builder


def looked_up(b: Builder, source: View, axis: int, index: View, out_shape: tuple[int, ...]) -> View:
    if index.kind != "i":
        raise Unsupported(f"lookups by {index.dtype}")
    out = b.segment.new("looked_up", source.dtype, out_shape)
    b.segment.dispatches += lookup("looked_up", source, axis, index.expanded(out_shape), out, b.segment.check())
    return out


@operator("aten.embedding")
def embedding(
    b: Builder, weight: Any, index: Any, padding: int = -1, scale: bool = False, sparse: bool = False
) -> View:
    table, at = b.view(weight), b.view(index)
    lead = len(at.shape)
    shape = (table.shape[0], *[1] * (lead - 1), table.shape[1]) if lead else table.shape
    if not lead:
        raise Unsupported("one embedding")
    source = View(
        table.buffer, table.dtype, shape, (table.strides[0], *[0] * (lead - 1), table.strides[1]), table.offset
    )
    index_ = View(at.buffer, at.dtype, (*at.shape, 1), (*at.strides, 0), at.offset)
    return looked_up(b, source, 0, index_, (*at.shape, table.shape[1]))


@operator("aten.index_select")
def index_select(b: Builder, x: Any, dim: int, index: Any) -> View:
    source, at = b.view(x), b.view(index)
    axis = dim % len(source.shape)
    shape = tuple(at.count if n == axis else d for n, d in enumerate(source.shape))
    strides = tuple(at.strides[0] if n == axis else 0 for n in range(len(shape)))
    return looked_up(b, source, axis, View(at.buffer, at.dtype, shape, strides, at.offset), shape)


@operator("aten.gather")
def gather(b: Builder, x: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> View:
    source, at = b.view(x), b.view(index)
    if not at.shape:
        raise Unsupported("one number gathered")
    return looked_up(b, source, dim % len(source.shape), at, at.shape)


def _asked_before(b: Builder) -> None:
    """Indices of the derivative of a lookup were asked whether they are some when it was done; others were not."""
    if not b.depth:
        raise Unsupported("indices that nobody has looked at")


@operator("aten.scatter")
def scatter(b: Builder, x: Any, dim: int, index: Any, value: Any) -> Node:
    """Where every row gets one entry; each place asks whether it is the one."""
    _asked_before(b)
    node, at, axis = b.node(x), b.view(index), dim % len(b.node(x).shape)
    if at.shape[axis] != 1 or any(
        n != d for k, (n, d) in enumerate(zip(at.shape, node.shape, strict=True)) if k != axis
    ):
        raise Unsupported("a scatter of several entries per row")
    here = torch.arange(node.shape[axis]).reshape([-1 if n == axis else 1 for n in range(len(node.shape))])
    if b.is_tensor(value):
        of = b.view(value)
        if len(of.shape) != len(at.shape):
            raise Unsupported("a scatter of one number")
        values = load(View(of.buffer, of.dtype, at.shape, of.strides, of.offset))  # as much of it as there are indices
    else:
        values = b.node(value)
    return word("where", word("eq", load(b.segment.constant(here, "i64")), load(at)), values, node)


def _sums(b: Builder, source: View, index: View, axis: int, shape: tuple[int, ...]) -> View:
    if source.dtype != "f32" or index.kind != "i":
        raise Unsupported(f"sums of {source.dtype} by {index.dtype}")
    out = b.segment.new("sums", "f32", shape)
    b.segment.dispatches += scattered_sums("sums", source, index, axis, out)
    return out


@operator("aten.scatter_add")
def scatter_add(b: Builder, x: Any, dim: int, index: Any, source: Any) -> Node:
    """What lookups send back."""
    _asked_before(b)
    node, at, values = b.node(x), b.view(index), b.view(source)
    axis = dim % len(node.shape)
    if any(n != d for k, (n, d) in enumerate(zip(at.shape, node.shape, strict=True)) if k != axis):
        raise Unsupported("sums of a part of the rows")
    cut = View(values.buffer, values.dtype, at.shape, values.strides, values.offset)
    return word("add", node, load(_sums(b, cut, at, axis, node.shape)))


@operator("aten.embedding_dense_backward")
def embedding_backward(b: Builder, grad: Any, index: Any, rows: int, padding: int, scale: bool) -> View:
    values, at = b.segment.whole(b.view(grad)), b.segment.whole(b.view(index))
    if scale or padding >= 0:
        raise Unsupported("gradients of embeddings by frequency, or with padding")
    width = values.shape[-1]
    flat = View(values.buffer, "f32", (at.count, width), (width, 1))
    return _sums(b, flat, View(at.buffer, at.dtype, (at.count, width), (1, 0)), 0, (rows, width))


@operator("aten.cross_entropy_loss")
def cross_entropy(
    b: Builder, x: Any, target: Any, weight: Any = None, reduction: int = 1, ignore: int = -100, smoothing: float = 0.0
) -> Any:
    node, at = b.node(x), b.view(target)
    if weight is not None or smoothing or len(node.shape) != 2 or at.kind != "i" or len(at.shape) != 1:
        raise Unsupported("this form of cross entropy")
    b.target = "aten._log_softmax"
    logs = softmax(b, x, 1)
    valid = word("ne", load(at), number(ignore, "i"))
    safe = b.segment.written(word("where", valid, load(at), number(0, "i")), "i64")
    picked = looked_up(b, logs, 1, View(safe.buffer, "i64", (*safe.shape, 1), (*safe.strides, 0)), (*at.shape, 1))
    losses = word("where", valid, word("neg", load(View(picked.buffer, "f32", at.shape, (1,)))), number(0.0, "f"))
    if reduction == 0:
        return losses
    if not at.count:
        raise Unsupported("a loss of nothing")

    def summed(y: Node) -> View:
        return reduced(
            b, y, [0], False, lambda z: [Reduction("all", "sum", z)], lambda _: word("as_f", held("all")), "loss"
        )

    found = load(summed(losses))
    return found if reduction == 2 else word("div", found, load(summed(word("as_f", valid))))
