"""Sees the attentions of ordinary PyTorch code while it runs as it is: nothing is rewritten or compiled.

A dispatch mode sees every operation below autograd. An attention is a fused call (`scaled_dot_product_attention` by
whatever kernel), or what a softmax of products of vectors became when it is multiplied with values over its keys. Of
the latter the queries, keys and operations are kept, and the weights are evaluated again; where that does not give the
model's own weights, or these were changed before they met values, the model's own are kept instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from threading import get_ident
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from aatc.ir.core import Op
from aatc.ir.parser import parse_attrs
from aatc.passes.analysis import torch_following as following
from aatc.passes.analysis.attention_rows import AttentionRows, Copies, checked_batch, chosen_elements
from aatc.passes.analysis.capture import Recorder
from aatc.passes.analysis.given_weights import GivenWeights
from aatc.passes.analysis.result import AnalysisError
from aatc.passes.analysis.stochastic import PatternError
from aatc.passes.analysis.torch_attention import Step, TorchAttention
from aatc.passes.analysis.torch_following import Lost, Weights
from aatc.passes.analysis.torch_heads import Entered, split_of
from aatc.passes.analysis.torch_memory import KEYS, LEAD, QUERIES, Known, Memory, fresh_axes, has_place, parts, place
from aatc.passes.analysis.torch_scores import Scores, Split, absorbed, agrees, evaluated, keep_pairs, table_of
from aatc.passes.analysis.torch_subclasses import makers

PRODUCTS = frozenset(("bmm", "mm", "mv", "baddbmm", "addmm"))
SOFTMAX = frozenset(("_softmax", "_safe_softmax"))
PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


class _PlainPaths(TorchFunctionMode):
    """Its presence keeps torch's modules from their fused inference kernels, which hold whole layers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """Hands every operation that ran to a recorder."""

    supports_higher_order_operators = True

    def __init__(self, recorder: TorchRecorder):
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            self.recorder.saw_other(func.name(), "higher order")
            return func(*args, **kwargs)
        others = {t.__name__ for t in types if issubclass(t, torch.Tensor) and t not in PLAIN}
        others |= {"nested tensors" for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor) and a.is_nested}
        if others:  # what these do by themselves is left to them
            self.recorder.saw_other(func.overloadpacket.__name__, ", ".join(sorted(others)))
            return func(*args, **kwargs)
        if func.namespace == "aten" and not _is_fused(func):
            with self:  # composites that autograd left whole, as in inference mode, are seen by their parts
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        self.recorder.saw(func, args, kwargs, out)
        return out


def _is_fused(func: Any) -> bool:
    name = func.overloadpacket.__name__
    return "scaled_dot_product" in name and "backward" not in name


class TorchRecorder:
    """A context within which every attention that runs in this thread is kept in ``captured``.

    ``batch`` are the batch elements to keep. Attentions are named attend0, attend1, … in the order they ran, and say in
    which module they stand, by its name where ``model`` is given. ``heads`` says how many heads there are where one
    axis holds them together with the batch, ``heads_first`` whether the first of two axes are the heads: by default
    what the modules and their inputs say. ``notes`` tell of attentions that could not be followed. Raises AnalysisError
    at the end where the batch has no such element.
    """

    def __init__(
        self,
        batch: int | Sequence[int] = (0,),
        model: torch.nn.Module | None = None,
        *,
        heads: int | None = None,
        heads_first: bool | None = None,
    ):
        self.batch = checked_batch(batch)
        if heads is not None and (isinstance(heads, bool) or not isinstance(heads, int) or heads < 1):
            raise AnalysisError(f"heads={heads!r} is no number of heads", hint="give 1 or more, or None")
        self.heads, self.heads_first = heads, heads_first
        self.captured: list[AttentionRows] = []
        self.notes: list[str] = []
        self.refused: AnalysisError | None = None
        self._memory = Memory()
        self._copies = Copies()
        self._attends = Recorder(self.batch)
        self._names = {} if model is None else {id(m): n for n, m in model.named_modules()}
        self._inside: list[Entered] = []
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
        makers.__enter__()
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)  # type: ignore[no-untyped-call]
        makers.__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self._memory.clear()
        self._copies = Copies()
        self._inside.clear()
        if self.refused is not None and error[0] is None:
            raise self.refused

    def _entered(self, module: torch.nn.Module, args: Any) -> None:
        if get_ident() == self._thread:
            self._inside.append(Entered.of(module, args))

    def _left(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if get_ident() == self._thread and any(e.module is module for e in self._inside):
            while self._inside.pop().module is not module:
                pass

    # --- what runs -----------------------------------------------------------------------------------------
    def saw(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """An operation that ran. Whatever goes wrong here is told, and leaves the model alone."""
        name = func.overloadpacket.__name__
        if torch._C._current_graph_task_id() != -1:
            return  # a backward: gradients are no attention, and what is computed again was seen before
        try:
            if func.namespace == "aatc":
                if name == "attend":
                    self._attend(*args)
            elif _is_fused(func):
                names = (a.name for a in func._schema.arguments)
                self._fused(func, {**dict(zip(names, args)), **kwargs})
            else:
                self._plainly(func, name, args, kwargs, out)
        except AnalysisError as error:
            self.refused = self.refused or error
        except Exception as error:
            self._note(f"{name} could not be followed ({type(error).__name__}: {error}); what comes of it is not seen")

    def saw_other(self, name: str, of: str) -> None:
        """An operation of another kind or on tensors of other classes, which is let through unseen."""
        if any(word in name for word in ("softmax", "attention")) and "backward" not in name:
            self._note(f"{name} ({of}) is not seen: give the model plain, padded tensors and plain operations")

    def _note(self, text: str) -> None:
        place = self._where()
        told = f"{place}: {text}" if place else text
        if told not in self.notes:
            self.notes.append(told)

    def _plainly(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """An operation that is no fused attention."""
        given = [t for a in (*args, *kwargs.values()) for t in (a if isinstance(a, (list, tuple)) else (a,))]
        inputs = [a for a in given if has_place(a)]
        changed = [args[n] for n in _written(func) if n < len(args) and has_place(args[n])]
        outs = [o for o in (out if isinstance(out, (list, tuple)) else (out,)) if has_place(o)]
        if not outs:
            return
        if name in PRODUCTS:
            self._product(name, args, kwargs, outs[0])
        elif name in SOFTMAX:
            self._softmax(args, outs[0])
        elif changed:
            following.written(self._memory, name.removesuffix("_"), args, kwargs, inputs, changed[0])
        else:
            here = {place(a) for a in inputs}
            for o in outs:
                if place(o) not in here:  # else a view: the same memory
                    lost = following.made(self._memory, func, name, args, kwargs, inputs, o, self._snapshot)
                    if lost is not None:
                        self._lose(lost)

    # --- products ------------------------------------------------------------------------------------------
    def _product(self, name: str, args: Any, kwargs: Any, out: torch.Tensor) -> None:
        a, b = args[1:3] if name in ("baddbmm", "addmm") else args[:2]
        if name in ("bmm", "mm") and following.composed(self._memory, a, b, out):
            return
        weighed = False
        for operand, axis in ((a, -1), (b, -2 if b.ndim > 1 else -1)):
            known = self._memory[operand]
            if known is None or not isinstance(known.content, (Weights, Lost)):
                continue
            weighed = True
            if isinstance(known.content, Lost) or (runs := parts(known, operand)) is None:
                self._lose(known.content)
                continue
            kinds = {p.label[0] for p in runs[axis]}
            if kinds == {KEYS} or (not kinds and known.size(KEYS) == 1):
                self._met_values(known, operand, b.shape[-1] if operand is a and b.ndim > 1 else 0, operand.shape[axis])
            elif kinds == {QUERIES}:
                if not known.content.done:
                    self._met_values(_turned(known), operand, 0, operand.shape[axis])
                    known.content.done = True
            else:
                following.mixed(self._memory, known, runs, axis, out)
                return
        if name == "addmm":  # a linear layer
            return
        axes = fresh_axes(out, ((LEAD, 0), (QUERIES,), (KEYS,))[3 - out.ndim :]) if out.ndim > 1 else None
        scores = Scores(a, b.transpose(-1, -2)) if b.ndim > 1 else Scores(None, None, known=False)
        if weighed:  # results of an attention: their operands, n² numbers, are not held
            scores = scores.unknown()
        elif name == "baddbmm":
            alpha, beta = kwargs.get("alpha", 1), kwargs.get("beta", 1)
            scores = replace(scores, steps=(("mul", (), (alpha,), {}), ("add", (), (args[0],), {"alpha": beta})))
        self._memory[out] = Known(axes, int(out.storage_offset()), scores)

    def _lose(self, content: Weights | Lost) -> None:
        by = content.by if isinstance(content, Lost) else "views of several axes"
        self._note(
            f"weights of a softmax{f' in {content.where}' if content.where else ''} went through {by} before they met "
            "values, which is not followed: this attention is missing; hand its weights to aatc.analyze_weights"
        )

    def _met_values(self, known: Known, operand: torch.Tensor, width: int, taken: int) -> None:
        """Weights are multiplied with values over their keys: an attention."""
        w: Weights = known.content
        if w.done:
            return
        w.done = True
        found = w.kept
        if w.changed or found is None:
            now = known.whole(operand)
            split, count = w.split, now.shape[:-2].numel()
            if count != split.batch * split.heads:  # other heads than there were
                rest = count % split.batch == 0
                split = replace(split, heads=count // split.batch) if rest else Split(count, 1)
            whole = split.whole(now)
            if not (isinstance(found, TorchAttention) and agrees(found, whole)):
                found = self._given(whole, w.where, w.notes, is_softmax=False)
        if taken < known.size(KEYS):
            note = f"its product with values takes {taken} of {known.size(KEYS)} keys; kept are the weights of all"
            found = replace(found, notes=(*found.notes, note))  # type: ignore[type-var]
        known_width = {"values": width} if isinstance(found, TorchAttention) else {}
        self.captured.append(replace(found, name=f"attend{len(self.captured)}", **known_width))  # type: ignore[type-var]

    def _snapshot(self, known: Known, like: torch.Tensor) -> AttentionRows | None:
        """Weights as they are now, before noise is put on them."""
        w: Weights = known.content
        now = known.whole(like)
        if now.shape[:-2].numel() != w.split.batch * w.split.heads:
            return None
        return self._given(w.split.whole(now), w.where, w.notes, is_softmax=False)

    def _given(self, weights: torch.Tensor, where: str, notes: tuple[str, ...], is_softmax: bool) -> GivenWeights:
        """The model's own weights (batch, heads, queries, keys), copied."""
        array = chosen_elements(weights, self.batch, where)
        made = GivenWeights("the attention", array, self.batch, source=where, is_softmax=is_softmax, notes=notes)
        try:
            made.check()
        except PatternError as error:
            text = f"what the model multiplies with values is no probability distribution: {error.message}"
            made = replace(made, improper=text, notes=(*notes, text))
        return made

    def _softmax(self, args: Any, out: torch.Tensor) -> None:
        x = args[0]
        known = self._memory[x] if has_place(x) else None
        if known is not None and isinstance(known.content, Weights):  # a softmax of weights
            self._memory[out] = Known(
                following.same_axes(known, x, out), int(out.storage_offset()), known.content.altered()
            )
            return
        if known is None or not isinstance(known.content, Scores) or out.ndim < 2:
            return
        keys = args[1] % out.ndim
        queries = _other_axis(parts(known, x), keys, out.ndim)
        order = [n for n in range(out.ndim) if n not in (keys, queries)]
        labels: list[tuple[int, ...]] = [(LEAD, n) for n in range(out.ndim)]
        labels[keys], labels[queries] = (KEYS,), (QUERIES,)
        turned = out.permute(*order, queries, keys)
        lead, where = tuple(turned.shape[:-2]), self._where()
        split, notes = self._split(lead, turned.shape[-2])
        weights = split.whole(turned)
        made: AttentionRows | None = None
        if (queries, keys) == (out.ndim - 2, out.ndim - 1):
            found = evaluated(known.content, lead, split, weights, self.batch, self._copies, where)
            made = None if found is None else replace(found, notes=notes)
        if made is None:  # nothing else is known of them
            made = GivenWeights("", chosen_elements(weights, self.batch, where), self.batch, source=where, notes=notes)
        content = Weights(made, split, where, notes)
        self._memory[out] = Known(fresh_axes(out, labels), int(out.storage_offset()), content)

    def _attend(self, q: Any, k: Any, v: Any, captures: Any, spec: str) -> None:
        """An attention of `aatc.attend` that runs by itself: all that is said of it is in its text."""
        if not has_place(q):
            return
        op = Op("geo.observe", attrs=parse_attrs(spec))
        self._attends(op, (q, k, v, *captures))
        self.captured.append(replace(self._attends.captured.pop(), name=f"attend{len(self.captured)}"))

    def _fused(self, func: Any, call: dict[str, Any]) -> None:
        q, k = call["query"], call["key"]
        if not has_place(q) or not has_place(k):
            return
        lead, where = tuple(q.shape[:-2]), self._where()
        split, notes = self._split(lead, q.shape[-2])
        of_keys = split
        if k.shape[:-2] != q.shape[:-2]:
            of_keys = self._split(tuple(k.shape[:-2]), k.shape[-2])[0]
        tensors = {
            "q": chosen_elements(split.four(q, lead), self.batch, where),
            "k": chosen_elements(of_keys.four(k, tuple(k.shape[:-2])), self.batch, where),
        }
        scale, causal = call.get("scale"), bool(call.get("is_causal"))
        steps = [Step("mul", torch.mul, (), (q.shape[-1] ** -0.5 if scale is None else float(scale),))]
        table = call.get("attn_mask") if call.get("attn_mask") is not None else call.get("attn_bias")
        name = f"attend{len(self.captured)}"
        if table is not None:
            tensors["t0"] = table_of(self._copies, split.four(table, lead), self.batch)
            keep = table.dtype == torch.bool
            steps.append(Step("keep", keep_pairs, (), ("t0",)) if keep else Step("add", torch.add, (), ("t0",)))
            if absorbed(tensors["t0"], causal, q.dtype):
                weights = split.four(_own_weights(func, call), lead)
                self.captured.append(replace(self._given(weights, where, notes, is_softmax=True), name=name))
                return
        made = TorchAttention(name, tensors, tuple(steps), causal, self.batch, source=where, notes=notes)
        self.captured.append(replace(made, values=call["value"].shape[-1]))

    # --- where it runs -------------------------------------------------------------------------------------
    def _split(self, lead: tuple[int, ...], length: int) -> tuple[Split, tuple[str, ...]]:
        return split_of(lead, length, self._inside, self.heads, self.heads_first)

    def _where(self) -> str:
        """The innermost module, by its name in the model and its class."""
        if not self._inside:
            return ""
        module = self._inside[-1].module
        name, kind = self._names.get(id(module), ""), type(module).__name__
        return f"{name} ({kind})" if name else kind


@lru_cache(maxsize=4096)
def _written(func: Any) -> tuple[int, ...]:
    """The arguments that an operation writes into, by place."""
    given = func._schema.arguments
    return tuple(n for n, a in enumerate(given) if a.alias_info is not None and a.alias_info.is_write)


def _other_axis(runs: Any, keys: int, ndim: int) -> int:
    """The axis of queries beside that of keys: by what products made of it, or the one next to it."""
    if runs is not None:
        other = {KEYS: QUERIES, QUERIES: KEYS}
        wanted = {other[p.label[0]] for p in runs[keys] if p.label[0] in other}
        found = [n for n in range(ndim) if n != keys and {p.label[0] for p in runs[n]} == wanted and wanted]
        if len(found) == 1:
            return found[0]
    return ndim - 2 if keys == ndim - 1 else ndim - 1


def _turned(known: Known) -> Known:
    """Weights whose queries are summed over: they are the keys of that product."""
    other = {KEYS: QUERIES, QUERIES: KEYS, LEAD: LEAD}
    axes = tuple(replace(a, label=(other[a.label[0]], *a.label[1:])) for a in known.axes or ())
    return Known(axes, known.offset, known.content.altered())


def _own_weights(func: Any, call: dict[str, Any]) -> torch.Tensor:
    """The weights of a fused attention (…, queries, keys) as its kernel makes them: its results for unit vectors as
    values, as many at a time as a value has features."""
    value = call["value"]
    m, width = value.shape[-2:]
    found = []
    given = dict(call)
    if "dropout_p" in given:
        given["dropout_p"] = 0.0
    with torch.no_grad():
        for start in range(0, m, width):
            unit = torch.zeros(m, width, dtype=value.dtype, device=value.device)
            unit.diagonal(-start).fill_(1.0)
            given["value"] = unit.expand(value.shape).contiguous()
            out = func(**given)
            found.append((out[0] if isinstance(out, tuple) else out)[..., : min(width, m - start)])
    return torch.cat(found, -1)
