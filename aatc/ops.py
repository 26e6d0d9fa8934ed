"""The custom op ``aatc::attend`` and its backward op.

``aatc::attend(q, k, v, captures, spec) -> (o, lse)``, where ``spec`` is the text of an attribute block of the
IR, so that an attention in a torch graph is data: ``{names = ["q", "k", "v", "beta"], score = fn(...) => ...,
carry = fn(...) => ..., mask = fn(...) => ..., kind = "softmax", aggregate = "mean"}``; mask may be missing.
Run as it is, the op evaluates the plain formula (`aatc.ir.reference`) in O(N M) memory. Transforms of torch
(forward mode, `torch.func`, derivatives of derivatives) see the formula itself (`aatc.ir.differentiable`) in place of
the op; `torch.vmap` runs it once per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any

import torch
from torch._library import autograd as library_autograd

from aatc.ir import differentiable, observe, reference, transforms
from aatc.ir.score.widths import extents

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
    return reference.Attention(
        tuple(a["names"]), a["score"], a["carry"], a.get("mask"), kind=a["kind"], aggregate=a["aggregate"]
    )


def _tensors(att: reference.Attention, q, k, v, captures) -> dict[str, torch.Tensor]:
    return dict(zip(att.names, (q, k, v, *captures), strict=True))


@lru_cache(maxsize=4096)
def _check_widths(spec: str, tails: tuple[tuple[str, tuple[int, ...]], ...]) -> None:
    extents([p.body for p in attention(spec).programs], dict(tails))


def _fitting(q, k, v, captures, spec) -> None:
    """Raises ScoreError unless all vectors have as many channels as they are combined with."""
    att = attention(spec)
    tails = []
    for name, t in _tensors(att, q, k, v, captures).items():
        p = att.declared().get(name)
        if p is not None and p.rank in (1, 2):
            tail = t.shape[t.dim() - p.rank :]
            if not all(isinstance(n, int) for n in tail):
                return  # known when the model runs
            tails.append((name, tuple(tail)))
    _check_widths(spec, tuple(tails))


def _attend(q, k, v, captures, spec):
    _fitting(q, k, v, captures, spec)
    att = attention(spec)
    o, lse = reference.attend(att, _tensors(att, q, k, v, captures))
    return o.contiguous(), lse.contiguous()


def _attend_fake(q, k, v, captures, spec):
    observe.recorded.count += 1
    _fitting(q, k, v, captures, spec)
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


def _without_autocast(f):
    """The function with autocast off, since scores are computed in the dtype they are defined in, and without a default
    device."""
    f = transforms.undisturbed(f)

    @wraps(f)
    def run(first, *rest):
        if not torch.is_autocast_enabled(first.device.type):
            return f(first, *rest)
        with torch.autocast(first.device.type, enabled=False):
            return f(first, *rest)

    return run


# --- transforms ---------------------------------------------------------------------------------------------
def _attend_formula(q, k, v, captures, spec):
    att = attention(spec)
    return differentiable.attend(att, _tensors(att, q, k, v, captures))


def _backward_formula(grad_o, grad_lse, q, k, v, captures, o, lse, spec):
    tensors = (q, k, v, *captures)
    found = differentiable.attend_backward(attention(spec), tensors, grad_o, grad_lse)
    gq, gk, gv, *rest = (t.new_empty(0) if g is None else g for g, t in zip(found, tensors, strict=True))
    return gq, gk, gv, rest


def _flat(args: Any) -> list[torch.Tensor]:
    values = (t for a in args for t in (a if isinstance(a, (list, tuple)) else (a,)))
    return [t for t in values if isinstance(t, torch.Tensor)]


def _transformed(*args: Any) -> bool:
    return transforms.differentiating(_flat(args))


def _differentiated(*args: Any) -> bool:
    """Whether a derivative of the gradients is going to be asked for."""
    tensors = _flat(args)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return recorded or transforms.differentiating(tensors)


def _differentiable(name: str, formula: Callable, wanted: Callable[..., bool], backward: Any, setup: Any) -> None:
    """Registers how the op ``name`` is differentiated: by ``formula``, made of torch's operators, where ``wanted``
    says so, and by ``backward`` otherwise."""
    op = getattr(torch.ops.aatc, name).default
    closed = library_autograd.make_autograd_impl(op, library_autograd.Info(backward, setup))
    formula = _without_autocast(formula)

    def run(keyset, *args):
        return formula(*args) if wanted(*args) else closed(keyset, *args)

    _library.impl(name, run, "Autograd", with_keyset=True)


def _by_sample(name: str) -> None:
    """Registers that `torch.vmap` runs the op ``name`` once per sample. Samples can't be joined to one batch: a
    capture may lack the axis, and programs may read the batch's index."""
    op = getattr(torch.ops.aatc, name).default

    def pick(x: Any, dim: Any, n: int | None) -> Any:
        if isinstance(x, (list, tuple)):
            return [pick(e, d, n) for e, d in zip(x, dim, strict=True)]
        if dim is None:
            return x
        return x.new_zeros([*x.shape[:dim], *x.shape[dim + 1 :]]) if n is None else x.select(dim, n)

    def rule(info, in_dims, *args):
        samples = range(info.batch_size) or (None,)
        results = [tuple(op(*(pick(a, d, n) for a, d in zip(args, in_dims, strict=True)))) for n in samples]
        joined = transforms.joined(results, lambda parts: torch.stack(parts)[: info.batch_size])
        return joined, transforms.joined([joined], lambda _: 0)

    def legacy(*args):
        # of lists, only captures hold tensors: they are handed over flat
        spread = [t for a in args for t in (a if isinstance(a, (list, tuple)) else (a,))]
        at = next(n for n, a in enumerate(args) if isinstance(a, (list, tuple)))
        count = len(args[at])
        return transforms.by_sample(lambda *t: tuple(op(*t[:at], list(t[at : at + count]), *t[at + count :])), spread)

    torch.library.register_vmap(f"aatc::{name}", rule)
    _library.impl(name, legacy, "Batched")


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
_library = torch.library.Library("aatc", "FRAGMENT")
_differentiable("attend", _attend_formula, _transformed, _backward, _setup)
_differentiable("attend_backward", _backward_formula, _differentiated, None, None)
_by_sample("attend")
_by_sample("attend_backward")
