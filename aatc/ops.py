"""The custom op ``aatc::attend`` and its backward op.

``aatc::attend(q, k, v, captures, spec) -> (o, lse)``, where ``spec`` is the text of an attribute block of the
IR, so that an attention in a torch graph is data: ``{names = ["q", "k", "v", "beta"], score = fn(...) => ...,
carry = fn(...) => ..., mask = fn(...) => ..., kind = "softmax", aggregate = "mean"}``; mask may be missing.
Run as it is, the op evaluates the plain formula (`aatc.ir.reference`) in O(N M) memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, wraps
from typing import Any

import torch

from aatc.ir import reference
from aatc.ir.errors import UnsupportedError

_written: dict[str, dict[str, Any]] = {}  # what `write_spec` wrote, so that reading it back needs no parser


def write_spec(attrs: Mapping[str, Any]) -> str:
    """The text of an attention's attributes."""
    from aatc.ir.printer import attrs_text

    text = attrs_text(dict(attrs))
    if len(_written) > 4096:
        _written.clear()
    _written[text] = dict(attrs)
    return text


@lru_cache(maxsize=4096)
def read_spec(text: str) -> dict[str, Any]:
    """The attributes of an attention from its text; not to be changed. ParseError when malformed."""
    if text in _written:
        return _written[text]
    from aatc.ir.parser import parse_attrs

    return parse_attrs(text)


@lru_cache(maxsize=4096)
def attention(spec: str) -> reference.Attention:
    """The programs of an attention from the text of its attributes."""
    a = read_spec(spec)
    return reference.Attention(tuple(a["names"]), a["score"], a["carry"], a.get("mask"))


def _tensors(att: reference.Attention, q, k, v, captures) -> dict[str, torch.Tensor]:
    return dict(zip(att.names, (q, k, v, *captures), strict=True))


def _attend(q, k, v, captures, spec):
    att = attention(spec)
    o, lse = reference.attend(att, _tensors(att, q, k, v, captures))
    return o.contiguous(), lse.contiguous()


def _attend_fake(q, k, v, captures, spec):
    rows = (q.shape[0], q.shape[1], q.shape[2])
    return v.new_empty((*rows, v.shape[3])), q.new_empty(rows, dtype=reference.compute_dtype(q.dtype))


def _attend_backward(grad_o, grad_lse, q, k, v, captures, o, lse, spec):
    att = attention(spec)
    tensors = _tensors(att, q, k, v, captures)
    grads = reference.attend_backward(att, tensors, o, lse, grad_o, grad_lse)
    taken: set[int] = set()

    def own(name: str) -> torch.Tensor:
        t = tensors[name]
        if not t.is_floating_point():
            return torch.empty(0, dtype=t.dtype, device=t.device)
        g = grads[name].contiguous() if name in grads else torch.zeros_like(t, memory_format=torch.contiguous_format)
        if g.numel() and g.data_ptr() in taken:  # results of an op may not share memory
            g = g.clone()
        taken.add(g.data_ptr())
        return g

    gq, gk, gv, *rest = (own(n) for n in att.names)
    return gq, gk, gv, rest


def _attend_backward_fake(grad_o, grad_lse, q, k, v, captures, o, lse, spec):
    def like(t: torch.Tensor) -> torch.Tensor:
        return t.new_empty(t.shape if t.is_floating_point() else (0,))

    return like(q), like(k), like(v), [like(t) for t in captures]


def _setup(ctx, inputs, output):
    q, k, v, captures, spec = inputs
    o, lse = output
    ctx.spec, ctx.count = spec, len(captures)
    ctx.save_for_backward(q, k, v, *captures, o, lse)


def _backward(ctx, grad_o, grad_lse):
    q, k, v, *rest = ctx.saved_tensors
    captures, (o, lse) = rest[: ctx.count], rest[ctx.count :]
    gq, gk, gv, grads = torch.ops.aatc.attend_backward(grad_o, grad_lse, q, k, v, captures, o, lse, ctx.spec)
    return (
        gq,
        gk,
        gv,
        [g if t.is_floating_point() else None for g, t in zip(grads, captures, strict=True)],
        None,
    )


def _no_second(ctx, *grads):
    raise UnsupportedError("aatc::attend has no second derivatives", hint="differentiate the plain formula instead")


def _without_autocast(f):
    """The function with autocast off: scores are computed in the dtype they are defined in."""

    @wraps(f)
    def run(first, *rest):
        if not torch.is_autocast_enabled(first.device.type):
            return f(first, *rest)
        with torch.autocast(first.device.type, enabled=False):
            return f(first, *rest)

    return run


torch.library.define("aatc::attend", "(Tensor q, Tensor k, Tensor v, Tensor[] captures, str spec) -> (Tensor, Tensor)")
torch.library.define(
    "aatc::attend_backward",
    "(Tensor grad_o, Tensor grad_lse, Tensor q, Tensor k, Tensor v, Tensor[] captures, Tensor o, Tensor lse, "
    "str spec) -> (Tensor, Tensor, Tensor, Tensor[])",
)
torch.library.impl("aatc::attend", "CompositeExplicitAutograd", _without_autocast(_attend))
torch.library.impl("aatc::attend_backward", "CompositeExplicitAutograd", _without_autocast(_attend_backward))
torch.library.register_fake("aatc::attend", _attend_fake)
torch.library.register_fake("aatc::attend_backward", _attend_backward_fake)
torch.library.register_autograd("aatc::attend", _backward, setup_context=_setup)
torch.library.register_autograd("aatc::attend_backward", _no_second)
