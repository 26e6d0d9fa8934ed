"""Convolutions of images as products of matrices: every patch is a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aatc.backends.vulkan.model.elementwise import elementwise
from aatc.backends.vulkan.model.nodes import Node, held, load
from aatc.backends.vulkan.model.operators import Unsupported, operator, product, reduced
from aatc.backends.vulkan.model.pointwise import word
from aatc.backends.vulkan.model.rows import Reduction
from aatc.backends.vulkan.model.views import View, contiguous

if TYPE_CHECKING:
    from aatc.backends.vulkan.model.builder import Builder


def _pair(x: Any) -> tuple[int, int]:
    values = list(x) if isinstance(x, (list, tuple)) else [x]
    return int(values[0]), int(values[-1])


class _Shape:
    """Sizes of a convolution of ``x`` (batch, channels, rows, columns) with ``weight`` (out, channels, ...)."""

    def __init__(self, x: View, weight: View, stride: Any, padding: Any, dilation: Any, groups: int):
        if len(x.shape) != 4 or groups != 1 or x.dtype != "f32" or isinstance(padding, str):
            raise Unsupported("this form of convolution")
        self.stride, self.padding, self.dilation = _pair(stride), _pair(padding), _pair(dilation)
        self.batch, self.channels, *size = x.shape
        self.out, _, *kernel = weight.shape
        self.size = [n + 2 * p for n, p in zip(size, self.padding, strict=True)]
        self.kernel = kernel
        self.places = [
            (n - d * (k - 1) - 1) // s + 1
            for n, d, k, s in zip(self.size, self.dilation, kernel, self.stride, strict=True)
        ]
        self.terms = self.channels * math.prod(kernel)

    def padded(self, b: Builder, x: View) -> View:
        """``x`` within zeros."""
        if self.padding == (0, 0):
            return x
        out = b.segment.new("padded", "f32", (self.batch, self.channels, *self.size))
        b.segment.parted.append(out.buffer)
        _add(b, self.inner(out, x.shape), load(x))
        return out

    def inner(self, out: View, shape: Sequence[int]) -> View:
        """Where the image lies in what is padded."""
        start = sum(p * s for p, s in zip(self.padding, out.strides[2:], strict=True))
        return View(out.buffer, out.dtype, tuple(shape), out.strides, out.offset + start)

    def patches(self, padded: View) -> View:
        """(batch, rows, columns of places, channels, rows, columns of a patch) of what is padded."""
        b, c, *steps = padded.strides
        along = [s * t for s, t in zip(self.stride, steps, strict=True)]
        within = [d * t for d, t in zip(self.dilation, steps, strict=True)]
        shape = (self.batch, *self.places, self.channels, *self.kernel)
        return View(padded.buffer, "f32", shape, (b, *along, c, *within), padded.offset)

    def rows(self, b: Builder, x: View) -> View:
        """(batch · places, terms): a patch each, in memory."""
        made = b.segment.whole(_fresh(b, self.patches(self.padded(b, x))))
        shape = (self.batch * math.prod(self.places), self.terms)
        return View(made.buffer, "f32", shape, contiguous(shape))


def _fresh(b: Builder, view: View) -> View:
    out = b.segment.new("patches", view.dtype, view.shape)
    b.segment.dispatches += elementwise("patches", load(view), out)
    return out


def _add(b: Builder, place: View, value: Node) -> None:
    """Writes to a part of a buffer."""
    made = elementwise("part", value, place)
    b.segment.dispatches += [replace(d, reads=tuple(dict.fromkeys((*d.reads, place.buffer)))) for d in made]


def _flat_weight(b: Builder, weight: View, terms: int) -> View:
    whole = b.segment.whole(weight)
    return View(whole.buffer, "f32", (weight.shape[0], terms), (terms, 1))


def _by_places(v: View, s: _Shape) -> View:
    """(batch · places, out) of (batch, out, rows, columns)."""
    b, o, *steps = v.strides
    return View(v.buffer, "f32", (s.batch, *s.places, s.out), (b, *steps, o), v.offset)


@operator("aten.conv2d", "aten.convolution")
def convolution(
    b: Builder, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    *rest: Any,
) -> View:  # fmt: skip
    groups = rest[-1] if rest else 1
    if len(rest) > 1 and rest[0]:
        raise Unsupported("a transposed convolution")
    source, kernel = b.view(x), b.view(weight)
    s = _Shape(source, kernel, stride, padding, dilation, groups)
    flat = _flat_weight(b, kernel, s.terms)
    made = product(b, s.rows(b, source), View(flat.buffer, "f32", (s.terms, s.out), (1, s.terms)))
    made = made if bias is None else word("add", made, b.node(bias))
    rows = b.segment.written(made, "f32", "convolved")
    shape = (s.batch, s.out, *s.places)
    places = math.prod(s.places)
    strides = (places * s.out, 1, s.places[1] * s.out, s.out)
    return b.segment.whole(_fresh(b, View(rows.buffer, "f32", shape, strides)))


@operator("aten.convolution_backward")
def convolution_backward(
    b: Builder, grad: Any, x: Any, weight: Any, biases: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, mask: Sequence[bool],
) -> list[View | None]:  # fmt: skip
    if transposed:
        raise Unsupported("a transposed convolution")
    given, source, kernel = b.view(grad), b.view(x), b.view(weight)
    s = _Shape(source, kernel, stride, padding, dilation, groups)
    whole = b.segment.whole(_fresh(b, _by_places(given, s)))
    count = s.batch * math.prod(s.places)
    rows = View(whole.buffer, "f32", (count, s.out), (s.out, 1))
    found: list[View | None] = [None, None, None]
    if mask[0]:
        found[0] = _of_image(b, s, rows, kernel, source.shape)
    if mask[1]:
        turned = View(rows.buffer, "f32", (s.out, count), (1, s.out))
        made = b.segment.written(product(b, turned, s.rows(b, source)), "f32", "gradient")
        found[1] = View.whole(made.buffer, "f32", kernel.shape)
    if mask[2]:
        found[2] = reduced(
            b, load(rows), [0], False, lambda y: [Reduction("all", "sum", y)], lambda _: word("as_f", held("all")),
            "gradient",
        )  # fmt: skip
    return found


def _of_image(b: Builder, s: _Shape, rows: View, kernel: View, shape: Sequence[int]) -> View:
    """Every patch's gradients added where the patch lies, place by place of the kernel: patches overlap."""
    flat = _flat_weight(b, kernel, s.terms)
    made = b.segment.written(product(b, rows, flat), "f32", "patches")
    out = b.segment.new("padded", "f32", (s.batch, s.channels, *s.size))
    b.segment.parted.append(out.buffer)
    to = s.patches(out)
    lead = (s.batch, *s.places, s.channels)
    of = View(made.buffer, "f32", (*lead, *s.kernel), contiguous((*lead, *s.kernel)))
    for i in range(s.kernel[0]):
        for j in range(s.kernel[1]):
            here, there = (
                View(v.buffer, "f32", lead, v.strides[:4], v.offset + i * v.strides[4] + j * v.strides[5])
                for v in (to, of)
            )
            _add(b, here, word("add", load(here), load(there)))
    return s.inner(out, shape)
