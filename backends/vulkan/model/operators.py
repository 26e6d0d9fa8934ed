"""Operators that are more than one element's affair: products, sums of rows, softmax, norms, lookups, joins.

Each takes the builder and the operator's arguments, tensors as items of it, and returns what it makes: a node or view
per result. `Unsupported` sends it to the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from aatc.backends.vulkan.model import matmul as products
from aatc.backends.vulkan.model import rows as of_rows
from aatc.backends.vulkan.model.elementwise import elementwise
from aatc.backends.vulkan.model.matmul import Product
from aatc.backends.vulkan.model.nodes import Node, held, load, nodes_of, number, replaced
from aatc.backends.vulkan.model.pointwise import word
from aatc.backends.vulkan.model.rows import Reduction
from aatc.backends.vulkan.model.views import View, contiguous, views_of

if TYPE_CHECKING:
    from aatc.backends.vulkan.model.builder import Builder


class Unsupported(Exception):
    """No kernel does this; the reason."""


OPERATORS: dict[str, Callable[..., Any]] = {}


def operator(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            OPERATORS[name] = function
        return function

    return register


# --- products ------------------------------------------------------------------------------------------------
def product(b: Builder, x: View, y: View) -> Node:
    """Matrices, broadcast along batch axes."""
    if x.dtype != "f32" or y.dtype != "f32":
        raise Unsupported(f"products of {x.dtype} and {y.dtype}")
    lead = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    p = Product(x.expanded((*lead, *x.shape[-2:])), y.expanded((*lead, *y.shape[-2:])))
    if not products.fits(p):
        p = Product(b.segment.whole(p.a), b.segment.whole(p.b))
    return Node("product", "f", p.shape, data=p)


def _turned(v: View) -> View:
    """A matrix's transpose."""
    return View(
        v.buffer,
        v.dtype,
        (*v.shape[:-2], v.shape[-1], v.shape[-2]),
        (*v.strides[:-2], v.strides[-1], v.strides[-2]),
        v.offset,
    )


@operator("aten.mm", "aten.bmm")
def mm(b: Builder, x: Any, y: Any) -> Node:
    return product(b, b.view(x), b.view(y))


@operator("aten.matmul")
def matmul(b: Builder, x: Any, y: Any) -> Node:
    x, y = b.view(x), b.view(y)
    if len(x.shape) < 2 or len(y.shape) < 2:
        raise Unsupported("products of vectors")
    return product(b, x, y)


@operator("aten.linear")
def linear(b: Builder, x: Any, weight: Any, bias: Any = None) -> Node:
    x, weight = b.view(x), b.view(weight)
    if len(x.shape) < 2:
        raise Unsupported("a linear layer of one vector")
    made = product(b, x, _turned(weight))
    return made if bias is None else word("add", made, b.node(bias))


@operator("aten.addmm", "aten.baddbmm")
def addmm(b: Builder, bias: Any, x: Any, y: Any, *, beta: Any = 1, alpha: Any = 1) -> Node:
    made = product(b, b.view(x), b.view(y))
    if alpha != 1:
        made = word("mul", made, number(float(alpha), "f"))
    if beta == 0:
        return made
    added = b.node(bias)
    return word("add", made, added if beta == 1 else word("mul", added, number(float(beta), "f")))


# --- rows ----------------------------------------------------------------------------------------------------
def _axes(dim: Any, rank: int) -> list[int]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(rank))
    return sorted({d % rank for d in (dim if isinstance(dim, (list, tuple)) else [dim])}) if rank else []


def _by_rows(b: Builder, x: Node, axes: list[int]) -> tuple[Node, tuple[int, ...]]:
    """``x`` with ``axes`` as one, the last, and the shape it has so. Its nodes keep the shapes they had."""
    if any(n.op == "product" for n in nodes_of(x)):
        x = load(b.segment.written(x, "f32"))
    kept = [n for n in range(len(x.shape)) if n not in axes]
    shape = (*(x.shape[n] for n in kept), math.prod(x.shape[n] for n in axes))
    moved = {n: _joined(n.data.expanded(x.shape), kept, axes) for n in nodes_of(x) if n.op == "load"}
    if None in moved.values():
        made = _copied(b, x, [*kept, *axes])
        return load(View(made.buffer, made.dtype, shape, contiguous(shape))), shape
    return replaced(x, {n: load(v) for n, v in moved.items() if v is not None}), shape


def _copied(b: Builder, x: Node, order: list[int]) -> View:
    """``x`` in memory with its axes in another order."""
    made = b.segment.new(
        "rows", "f32" if x.kind == "f" else "bool" if x.kind == "b" else "i64", tuple(x.shape[n] for n in order)
    )
    back = [order.index(n) for n in range(len(order))]
    out = View(made.buffer, made.dtype, x.shape, tuple(made.strides[n] for n in back))
    b.segment.dispatches += elementwise("rows", x, out)
    return made


def _joined(v: View, kept: list[int], axes: list[int]) -> View | None:
    """``v`` with ``axes`` as one, the last, if its elements lie so."""
    span, step = 1, 0
    for n in reversed(axes):
        if v.shape[n] == 1:
            continue
        if span == 1:
            step = v.strides[n]
        elif v.strides[n] != step * span:
            return None
        span *= v.shape[n]
    shape = (*(v.shape[n] for n in kept), math.prod(v.shape[n] for n in axes))
    return View(v.buffer, v.dtype, shape, (*(v.strides[n] for n in kept), step), v.offset)


def reduced(
    b: Builder,
    x: Node,
    axes: list[int],
    keep: bool,
    reductions: Callable[[Node], Sequence[Reduction]],
    root: Callable[[int], Node],
    hint: str,
    dtype: str = "f32",
) -> View:
    """Numbers per row over ``axes`` of ``x``."""
    if not math.prod(x.shape[n] for n in axes):
        raise Unsupported("rows without elements")
    final = tuple(1 if n in axes else d for n, d in enumerate(x.shape) if keep or n not in axes)
    out = b.segment.new(hint, dtype, final)
    by_rows, shape = _by_rows(b, x, axes)
    if not of_rows.fits(shape):
        raise Unsupported(f"rows of {shape[-1]} elements")
    lengths = (*shape[:-1], 1)
    view = View(out.buffer, dtype, lengths, contiguous(lengths))
    b.segment.dispatches += of_rows.rows(hint, shape, reductions(by_rows), root(shape[-1]), view)
    return out


@operator("aten.sum", "aten.mean")
def sum_(b: Builder, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> View:
    node = b.node(x)
    if node.kind == "b" and dtype is None:  # f32 counts so far
        node, of = word("as_f", node), "i64"
        if math.prod(node.shape) >= 2**24:
            raise Unsupported("counts of so many")
    elif node.kind != "f" or dtype not in (None, torch.float32):
        raise Unsupported(f"sums of {node.kind} as {dtype}")
    else:
        of = "f32"
    mean = b.target.startswith("aten.mean")
    return reduced(
        b,
        node,
        _axes(dim, len(node.shape)),
        keepdim,
        lambda y: [Reduction("all", "sum", y)],
        lambda n: word("mul", held("all"), number(1.0 / n, "f")) if mean else word("as_f", held("all")),
        "mean" if mean else "sum",
        of,
    )


@operator("aten.amax", "aten.amin")
def extreme(b: Builder, x: Any, dim: Any = (), keepdim: bool = False) -> View:
    how, node = b.target[6:9], b.node(x)
    if node.kind != "f":
        raise Unsupported(f"extremes of {node.kind}")
    return reduced(
        b,
        node,
        _axes(dim, len(node.shape)),
        keepdim,
        lambda y: [Reduction("all", how, y)],
        lambda _: word("as_f", held("all")),
        how,
    )


def _like(
    b: Builder,
    x: Node,
    axes: list[int],
    reductions: Callable[[Node], Sequence[Reduction]],
    root: Callable[[Node, int], Node],
    hint: str,
) -> View:
    """Numbers per element from those of its row over ``axes``, which lie next to each other."""
    if not math.prod(x.shape[n] for n in axes):
        raise Unsupported("rows without elements")
    out = b.segment.new(hint, "f32", x.shape)
    kept = [n for n in range(len(x.shape)) if n not in axes]
    if _joined(out, kept, axes) is None:
        raise Unsupported(f"rows over axes {axes}")
    by_rows, shape = _by_rows(b, x, axes)
    if not of_rows.fits(shape):
        raise Unsupported(f"rows of {shape[-1]} elements")
    view = _joined(out, kept, axes)
    assert view is not None
    b.segment.dispatches += of_rows.rows(hint, shape, reductions(by_rows), root(by_rows, shape[-1]), view)
    return out


@operator("aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax")
def softmax(b: Builder, x: Any, dim: int, dtype: Any = None) -> View:
    node = b.node(x)
    if node.kind != "f" or dtype not in (None, False, torch.float32) or not node.shape:
        raise Unsupported(f"softmax of {node.kind} as {dtype}")

    def reductions(y: Node) -> list[Reduction]:
        return [Reduction("top", "max", y), Reduction("mass", "sum", word("exp", word("sub", y, held("top"))))]

    def root(y: Node, _: int) -> Node:
        apart = word("sub", y, held("top"))
        if "log" in b.target:
            return word("sub", apart, word("log", held("mass")))
        return word("div", word("exp", apart), held("mass"))

    return _like(b, node, [dim % len(node.shape)], reductions, root, "softmax")


def _normed(b: Builder, x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float, *, centre: bool) -> View:
    node = b.node(x)
    axes = list(range(len(node.shape) - len(shape), len(node.shape)))

    def flat(y: Any) -> Node:
        v = b.view(y)
        v = v if v.is_flat else b.segment.whole(v)
        return load(View(v.buffer, v.dtype, (v.count,), (1,), v.offset))

    def apart(y: Node, n: int) -> Node:
        return word("sub", y, word("mul", held("total"), number(1.0 / n, "f"))) if centre else y

    n = math.prod(shape)

    def reductions(y: Node) -> list[Reduction]:
        first = [Reduction("total", "sum", y)] if centre else []
        return [*first, Reduction("squares", "sum", word("square", apart(y, n)))]

    def root(y: Node, n: int) -> Node:
        scale = word("rsqrt", word("add", word("mul", held("squares"), number(1.0 / n, "f")), number(eps, "f")))
        out = word("mul", apart(y, n), scale)
        out = out if weight is None else word("mul", out, flat(weight))
        return out if bias is None else word("add", out, flat(bias))

    return _like(b, node, axes, reductions, root, "norm")


@operator("aten.layer_norm")
def layer_norm(
    b: Builder, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> View:
    return _normed(b, x, shape, weight, bias, eps, centre=True)


@operator("aten.native_layer_norm")
def native_layer_norm(b: Builder, x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> list[View]:
    """With the mean and the reciprocal deviation of every row."""
    node = b.node(x)
    axes = list(range(len(node.shape) - len(shape), len(node.shape)))

    def apart(y: Node) -> Node:
        n = math.prod(node.shape[a] for a in axes)
        return word("sub", y, word("mul", held("total"), number(1.0 / n, "f")))

    def mean(n: int) -> Node:
        return word("mul", held("total"), number(1.0 / n, "f"))

    def deviation(n: int) -> Node:
        return word("rsqrt", word("add", word("mul", held("squares"), number(1.0 / n, "f")), number(eps, "f")))

    def both(y: Node) -> list[Reduction]:
        return [Reduction("total", "sum", y), Reduction("squares", "sum", word("square", apart(y)))]

    made = _normed(b, x, shape, weight, bias, eps, centre=True)
    of = reduced(b, node, axes, True, lambda y: [Reduction("total", "sum", y)], mean, "mean")
    return [made, of, reduced(b, node, axes, True, both, deviation, "deviation")]


@operator("aten.rms_norm")
def rms_norm(b: Builder, x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> View:
    return _normed(b, x, shape, weight, None, torch.finfo(torch.float32).eps if eps is None else eps, centre=False)


# --- others ------------------------------------------------------------------------------------------------
@operator("aten.cat")
def cat(b: Builder, parts: Sequence[Any], dim: int = 0) -> View:
    views = [v for v in map(b.view, parts) if v.shape != (0,)]
    if not views:
        raise Unsupported("nothing joined")
    axis = dim % len(views[0].shape)
    if len({v.dtype for v in views}) != 1:
        raise Unsupported("tensors of several types joined")
    shape = tuple(sum(v.shape[n] for v in views) if n == axis else d for n, d in enumerate(views[0].shape))
    out, start = b.segment.new("joined", views[0].dtype, shape), 0
    b.segment.parted.append(out.buffer)
    for v in views:
        place = View(out.buffer, out.dtype, v.shape, out.strides, start * out.strides[axis])
        b.segment.dispatches += [_part(d, out.buffer) for d in elementwise("part", load(v), place)]
        start += v.shape[axis]
    return out


@operator("aten.slice_scatter", "aten.select_scatter")
def scattered(b: Builder, x: Any, part: Any, *where: Any, **named: Any) -> View:
    """A copy with other numbers in the place of some."""
    node = b.node(x)
    (made,) = b.made
    out = b.segment.new("scattered", {"f": "f32", "i": "i64", "b": "bool"}[node.kind], tuple(made.shape))
    b.segment.write(node, out, "scattered")
    function = torch.ops.aten.slice.Tensor if "slice" in b.target else torch.ops.aten.select.int
    found = views_of(out, function, list(where), named)
    assert found is not None
    value = b.node(part)
    if any(n.op == "product" for n in nodes_of(value)):
        value = load(b.view(part))
    b.segment.dispatches += [_part(d, out.buffer) for d in elementwise("part", value, found[0])]
    return out


def _part(d: Any, buffer: str) -> Any:
    """A dispatch that writes some of a buffer."""
    from dataclasses import replace

    return replace(d, reads=(*d.reads, buffer))


@operator("aten.dropout")
def dropout(b: Builder, x: Any, p: float, train: bool) -> Any:
    if train and p > 0:
        raise Unsupported("dropout in training")
    return b.item(x)


@operator(
    "aten.empty_like",
    "aten.new_empty",
    "aten.zeros_like",
    "aten.ones_like",
    "aten.full_like",
    "aten.new_zeros",
    "aten.new_ones",
    "aten.new_full",
)
def filled(b: Builder, x: Any, *args: Any, **_: Any) -> Node:
    kind = b.target.split(".")[1]
    value = args[-1] if kind.endswith("full") or kind == "full_like" else 1.0 if "ones" in kind else 0.0
    (made,) = b.made
    root = number(value, "f" if made.dtype.is_floating_point else "b" if made.dtype is torch.bool else "i")
    return Node(root.op, root.kind, tuple(made.shape), data=root.data)
