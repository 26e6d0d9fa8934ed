"""Sees the attentions of ordinary PyTorch code while it runs as it is: nothing is rewritten or compiled.

A dispatch mode sees every operation below autograd. An attention is a fused call (`scaled_dot_product_attention` by
whatever kernel), or a product of vectors that goes through elementwise operations and a softmax over its last axis into
a product with values. Of the latter the queries, keys and operations are kept, and the weights are evaluated again;
where that does not give the model's own weights, these are kept instead.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from aatc.passes.analysis.attention_rows import AttentionRows, checked_batch, chosen_elements
from aatc.passes.analysis.given_weights import GivenWeights
from aatc.passes.analysis.result import AnalysisError
from aatc.passes.analysis.torch_attention import Step, TorchAttention

#: Products and softmaxes that are kept in mind at a time.
KEPT = 64
#: Operations on scores one by one: packet name → what is applied again.
ELEMENTWISE: dict[str, Any] = {
    "mul": torch.mul,
    "div": torch.div,
    "add": torch.add,
    "sub": torch.sub,
    "rsub": torch.rsub,
    "neg": torch.neg,
    "tanh": torch.tanh,
    "masked_fill": torch.masked_fill,
    "where": torch.where,
    "clamp": torch.clamp,
    "clamp_min": torch.clamp_min,
    "clamp_max": torch.clamp_max,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}
#: Operations that hand on the same numbers in new memory.
COPIES = frozenset(("clone", "_to_copy", "contiguous", "native_dropout", "dropout", "alias", "lift_fresh"))
#: Operations that put scores elsewhere, as relative positions and sinks do.
REARRANGEMENTS = frozenset(("cat", "stack", "gather", "index", "index_select", "constant_pad_nd"))
#: Attributes in which modules say how many heads they have.
HEADS = ("num_heads", "n_heads", "num_attention_heads", "n_head", "heads")
PRODUCTS = frozenset(("bmm", "mm", "baddbmm", "addmm"))
SOFTMAX = frozenset(("_softmax", "_safe_softmax"))
#: What may lie between weights and their product with values: dropout, head masks.
AFTER_SOFTMAX = COPIES | {"mul", "div", "masked_fill", "nan_to_num", "where"}


@dataclass(frozen=True)
class _Scores:
    """Products q·k with what was done to them; ``known`` is False once something was that is no step."""

    q: torch.Tensor
    k: torch.Tensor
    steps: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...], dict[str, Any]], ...] = ()
    known: bool = True


class _PlainPaths(TorchFunctionMode):
    """Its presence keeps torch's modules from their fused inference kernels, which hold whole layers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """Hands every operation that ran to a recorder."""

    def __init__(self, recorder: TorchRecorder):
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "aten" and not _is_fused(func):
            with self:  # composites that autograd left whole, as in inference mode, are seen by their parts
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        self.recorder.saw(func, args, kwargs, out)
        return out


def _is_fused(func: Any) -> bool:
    name = func.overloadpacket.__name__
    return "scaled_dot_product" in name and "backward" not in name


class TorchRecorder:
    """A context within which every attention that runs in this thread is kept in ``captured``.

    ``batch`` are the batch elements to keep. Attentions are named attend0, attend1, … in the order they ran, and say in
    which module they stand, by its name where ``model`` is given. Raises AnalysisError at the end where the batch has
    no such element.
    """

    def __init__(self, batch: int | Sequence[int] = (0,), model: torch.nn.Module | None = None):
        self.batch = checked_batch(batch)
        self.captured: list[AttentionRows] = []
        self.refused: AnalysisError | None = None
        self._scores = OrderedDict[int, _Scores]()
        self._weights = OrderedDict[int, AttentionRows]()
        self._tables: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        self._names = {} if model is None else {id(m): n for n, m in model.named_modules()}
        self._inside: list[torch.nn.Module] = []
        self._thread = 0
        self._modes = (_PlainPaths(), _Operations(self))
        self._hooks: list[Any] = []

    def __enter__(self) -> TorchRecorder:
        from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

        self._thread = get_ident()
        self._hooks = [
            register_module_forward_pre_hook(self._entered),
            register_module_forward_hook(self._left, always_call=True),
        ]
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()
        self._scores.clear()
        self._weights.clear()
        self._tables.clear()
        self._inside.clear()
        if self.refused is not None and error[0] is None:
            raise self.refused

    def _entered(self, module: torch.nn.Module, args: Any) -> None:
        if get_ident() == self._thread:
            self._inside.append(module)

    def _left(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if get_ident() == self._thread and module in self._inside:
            while self._inside.pop() is not module:
                pass

    # --- what runs -----------------------------------------------------------------------------------------
    def saw(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """An operation that ran."""
        try:
            if _is_fused(func):
                names = (a.name for a in func._schema.arguments)
                self._fused({**dict(zip(names, args)), **kwargs})
            else:
                name = func.overloadpacket.__name__
                self._plainly(name, args, kwargs, out[0] if isinstance(out, tuple) and out else out)
        except AnalysisError as error:
            self.refused = self.refused or error

    def _plainly(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """An operation that is no fused attention."""
        if not _has_place(out):
            return
        given = [t for a in args for t in (a if isinstance(a, (list, tuple)) else (a,))]
        here, inputs = _place(out), [a for a in given if _has_place(a)]
        if name in PRODUCTS:
            self._product(name, args, kwargs, out, here)
        elif name in SOFTMAX:
            self._softmax(args, out, here)
        elif name.endswith("_") or all(_place(a) != here for a in inputs):
            self._elementwise(name.removesuffix("_"), args, kwargs, out, here, inputs)
        # else a view: the same memory

    def _product(self, name: str, args: Any, kwargs: Any, out: torch.Tensor, here: int) -> None:
        a, b = args[1:3] if name in ("baddbmm", "addmm") else args[:2]
        for operand in (a, b):
            found: Any = self._weights.pop(_place(operand), None)
            if found is None:
                continue
            known = {"values": b.shape[-1]} if operand is a and isinstance(found, TorchAttention) else {}
            self.captured.append(replace(found, name=f"attend{len(self.captured)}", **known))
        self._weights.pop(here, None)  # the memory of weights that are gone
        if name == "addmm":  # a linear layer
            self._scores.pop(here, None)
            return
        scores = _Scores(a, b.transpose(-1, -2))
        if name == "baddbmm":
            alpha, beta = kwargs.get("alpha", 1), kwargs.get("beta", 1)
            scores = replace(scores, steps=(("mul", (), (alpha,), {}), ("add", (), (args[0],), {"alpha": beta})))
        self._keep(self._scores, here, scores)

    def _elementwise(
        self, name: str, args: Any, kwargs: Any, out: torch.Tensor, here: int, inputs: Sequence[torch.Tensor]
    ) -> None:
        made = next((a for a in inputs if _place(a) in self._scores), None)
        scores = None if made is None else self._scores[_place(made)]
        weights = next((self._weights[_place(a)] for a in inputs if _place(a) in self._weights), None)
        which = [n for n, a in enumerate(args) if _has_place(a) and _place(a) in self._scores]
        self._scores.pop(here, None)
        self._weights.pop(here, None)
        if weights is not None and name in AFTER_SOFTMAX:
            self._keep(self._weights, here, weights)
        if scores is None or made is None or (name not in REARRANGEMENTS and out.shape != made.shape):
            return
        if name in COPIES:
            self._keep(self._scores, here, scores)
            return
        known = scores.known and name in ELEMENTWISE and len(which) == 1 and not kwargs.get("rounding_mode")
        if not known:
            self._keep(self._scores, here, replace(scores, steps=(), known=False))
            return
        step = (name, tuple(args[: which[0]]), tuple(args[which[0] + 1 :]), dict(kwargs))
        self._keep(self._scores, here, replace(scores, steps=(*scores.steps, step)))

    def _softmax(self, args: Any, out: torch.Tensor, here: int) -> None:
        scores = self._scores.pop(_place(args[0]), None)
        self._scores.pop(here, None)
        self._weights.pop(here, None)
        if scores is None or args[1] not in (-1, out.ndim - 1) or out.ndim < 2:
            return
        lead = tuple(out.shape[:-2])
        split = self._split(lead)
        weights, where = _four(out, lead, split), self._where()
        made: AttentionRows | None = self._evaluated(scores, lead, split, weights) if scores.known else None
        if made is None:  # nothing else is known of them
            made = GivenWeights("", chosen_elements(weights, self.batch, where), self.batch, source=where)
        self._keep(self._weights, here, made)

    def _evaluated(
        self, scores: _Scores, lead: tuple[int, ...], split: tuple[int, int], weights: torch.Tensor
    ) -> TorchAttention | None:
        """The attention by its queries and keys, or None where that does not give the model's own weights."""
        n, m = weights.shape[2:]
        if (scores.q.shape[-2], scores.k.shape[-2]) != (n, m) or scores.q.shape[-1] == 0:
            return None
        if scores.q.numel() != scores.q.shape[-1] * n * split[0] * split[1]:
            return None
        tensors, steps = {}, []
        for name, x in (("q", scores.q), ("k", scores.k)):
            tensors[name] = chosen_elements(x.detach().reshape(*split, *x.shape[-2:]), self.batch, self._where())
        try:
            for name, before, after, options in scores.steps:
                parts = [tuple(self._argument(a, lead, split, tensors) for a in part) for part in (before, after)]
                title = f"{name} {sorted(options.items())}" if options else name
                steps.append(Step(title, partial(ELEMENTWISE[name], **options), *parts))
            made = TorchAttention("", tensors, tuple(steps), False, self.batch, source=self._where())
            return made if _agrees(made, weights) else None
        except (RuntimeError, TypeError, IndexError):
            return None  # arguments that do not broadcast as scores do, as those of a transposed product

    def _argument(self, a: Any, lead: tuple[int, ...], split: tuple[int, int], tensors: dict[str, torch.Tensor]) -> Any:
        """A number as it is; the name of a tensor that is now in ``tensors``, cut to the batch."""
        if not isinstance(a, torch.Tensor):
            return a
        if a.numel() == 1:
            return a.item()
        name = f"t{len(tensors) - 2}"
        tensors[name] = self._cut(_four(a, lead, split))
        return name

    def _cut(self, table: torch.Tensor) -> torch.Tensor:
        """A table cut to the batch, in main memory; one that many layers share is kept once."""
        key = (_place(table), table.storage_offset(), tuple(table.shape), table.stride(), _version(table))
        if key not in self._tables:
            cut = chosen_elements(table, self.batch) if table.shape[0] > 1 else table.detach().cpu()
            self._tables[key] = table, cut
        return self._tables[key][1]

    def _fused(self, call: dict[str, Any]) -> None:
        q, k = call["query"], call["key"]
        if not _has_place(q) or not _has_place(k):
            return
        lead = tuple(q.shape[:-2])
        split = self._split(lead)
        keys = _four(
            k, tuple(k.shape[:-2]), self._split(tuple(k.shape[:-2])) if k.shape[:-2] != q.shape[:-2] else split
        )
        where = self._where()
        tensors = {
            "q": chosen_elements(_four(q, lead, split), self.batch, where),
            "k": chosen_elements(keys, self.batch, where),
        }
        scale = call.get("scale")
        steps = [Step("mul", torch.mul, (), (q.shape[-1] ** -0.5 if scale is None else float(scale),))]
        table = call.get("attn_mask") if call.get("attn_mask") is not None else call.get("attn_bias")
        if table is not None:
            tensors["t0"] = self._cut(_four(table, lead, split))
            keep = table.dtype == torch.bool
            steps.append(Step("keep", _keep_pairs, (), ("t0",)) if keep else Step("add", torch.add, (), ("t0",)))
        name, causal = f"attend{len(self.captured)}", bool(call.get("is_causal"))
        made = TorchAttention(name, tensors, tuple(steps), causal, self.batch, source=where)
        self.captured.append(replace(made, values=call["value"].shape[-1]))

    # --- where it runs -------------------------------------------------------------------------------------
    def _split(self, lead: tuple[int, ...]) -> tuple[int, int]:
        """(batch, heads) of these leading axes. One axis holds both where a module around has a number of heads that
        divides it, as `torch.nn.MultiheadAttention` does."""
        if len(lead) == 1:
            heads = next((h for m in reversed(self._inside) if (h := _heads_of(m))), 1)
            return (lead[0] // heads, heads) if lead[0] % heads == 0 else (lead[0], 1)
        return (lead[0], math.prod(lead[1:])) if lead else (1, 1)

    def _where(self) -> str:
        """The innermost module, by its name in the model and its class."""
        if not self._inside:
            return ""
        module = self._inside[-1]
        name, kind = self._names.get(id(module), ""), type(module).__name__
        return f"{name} ({kind})" if name else kind

    def _keep(self, kept: OrderedDict[int, Any], here: int, value: Any) -> None:
        kept[here] = value
        kept.move_to_end(here)
        while len(kept) > KEPT:
            kept.popitem(last=False)


def _heads_of(module: torch.nn.Module) -> int:
    for name in HEADS:
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _has_place(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.layout == torch.strided and x.numel() > 0 and x.ndim > 0


def _place(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _version(x: torch.Tensor) -> int:
    return -1 if x.is_inference() else x._version


def _keep_pairs(scores: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(~keep, float("-inf"))


def _four(t: torch.Tensor, lead: tuple[int, ...], split: tuple[int, int]) -> torch.Tensor:
    """A tensor that broadcasts to (*lead, a, b) as one that broadcasts to (batch, heads, a, b)."""
    t = t.detach()
    if t.ndim < 2:
        t = t[None]
    own = (1,) * (len(lead) + 2 - t.ndim) + tuple(t.shape[:-2])
    if all(n == 1 for n in own):
        return t.reshape(1, 1, *t.shape[-2:])
    if len(lead) == 2:
        return t.reshape(*own, *t.shape[-2:])
    return t.expand(*lead, *t.shape[-2:]).reshape(*split, *t.shape[-2:])


def _agrees(made: TorchAttention, weights: torch.Tensor) -> bool:
    """Whether the first, middle and last rows are the model's own ``weights``, as its precision allows."""
    b, h, n, _ = made.sizes
    slack = min(0.1, 256 * torch.finfo(weights.dtype).eps)
    for batch in range(b):
        for head in range(h):
            for row in {0, n // 2, n - 1}:
                own = weights[made.batch[batch], head, row].double().cpu().nan_to_num(0.0)
                if not float((made.weights(head, row, row + 1, batch)[0] - own).abs().sum()) <= slack:
                    return False
    return True
