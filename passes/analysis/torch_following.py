"""Follows scores and weights through the operations of PyTorch that ordinary code puts them through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from aatc.passes.analysis.attention_rows import AttentionRows
from aatc.passes.analysis.torch_memory import KEYS, LEAD, QUERIES, Axis, Known, Memory, moved, parts, place
from aatc.passes.analysis.torch_scores import ELEMENTWISE, Scores, Split

#: Operations that hand on the same numbers in new memory.
COPIES = frozenset(("clone", "_to_copy", "contiguous", "alias", "lift_fresh", "copy"))
DROPOUTS = frozenset(("native_dropout", "dropout"))
#: Operations that put scores elsewhere, as relative positions and sinks do.
REARRANGEMENTS = frozenset(("cat", "stack", "gather", "index", "index_select", "constant_pad_nd"))
#: Of axes that come from none: behind all others that lead.
NEW = 1 << 20
#: What random numbers of dropout hold.
NOISE = "noise"


@dataclass
class Weights:
    """What a softmax of scores made. ``kept`` is what it was then, and what is captured unless it was ``changed``;
    ``done`` once it is captured. Copies share one of these."""

    kept: AttentionRows | None
    split: Split
    where: str = ""
    notes: tuple[str, ...] = ()
    changed: bool = False
    done: bool = False

    def altered(self) -> Weights:
        """The same after something was done to it."""
        return replace(self, changed=True, done=False)


@dataclass(frozen=True)
class Lost:
    """Weights whose axes nobody knows any more, since the operation ``by``."""

    by: str
    where: str


def written(
    memory: Memory, name: str, args: Any, kwargs: Any, inputs: Sequence[torch.Tensor], target: torch.Tensor
) -> None:
    """An operation has written into ``target``, which may be a part of what is known."""
    if name == "bernoulli":
        memory[target] = Known(None, 0, NOISE)
        return
    known = memory[target]
    if known is None:
        source = next((a for a in inputs if place(a) != place(target) and memory[a] is not None), None)
        if source is not None and (found := memory[source]) is not None and found.content is not NOISE:
            content = found.content
            # what was there before may show through
            same = name == "copy" and target.numel() * target.element_size() == target.untyped_storage().nbytes()
            if not same:
                content = content.unknown() if isinstance(content, Scores) else _altered(content)
            _hand_on(memory, name, found, source, target, content)
        return
    content = known.content
    if isinstance(content, Weights):
        dropped = name == "mul" and any(_is_noise(memory, a) for a in inputs) and not content.changed
        memory[target] = known if dropped else replace(known, content=content.altered())
    elif isinstance(content, Scores):
        memory[target] = replace(known, content=_stepped(memory, name, args, kwargs, content, target))
    elif content is NOISE and name not in ("mul", "div"):
        memory.forget(target)


def made(
    memory: Memory,
    func: Any,
    name: str,
    args: Any,
    kwargs: Any,
    inputs: Sequence[torch.Tensor],
    out: torch.Tensor,
    snapshot: Callable[[Known, torch.Tensor], AttentionRows | None],
) -> Lost | None:
    """An operation has made ``out`` in new memory. Returns weights that it has lost for good."""
    if name.endswith("_like") or name.startswith("new_"):
        return None
    known = [(a, k) for a in inputs if (k := memory[a]) is not None]
    if name == "bernoulli" or (known and all(k.content is NOISE for _, k in known) and name in ("mul", "div")):
        memory[out] = Known(None, 0, NOISE)
        return None
    known = [(a, k) for a, k in known if k.content is not NOISE]
    if name.endswith("_backward") or "_backward_" in name:
        return None  # gradients are no weights
    first = next(((a, k) for a, k in known if isinstance(k.content, (Weights, Lost))), None)
    if first is not None:
        a, k = first
        if isinstance(k.content, Lost):
            if name == "sum":
                return k.content
            memory[out] = k
            return None
        return _weights_made(memory, func, name, args, kwargs, inputs, a, k, out, snapshot)
    if known:
        a, k = known[0]
        same = out.ndim == a.ndim and out.shape[-2:] == a.shape[-2:]
        if name in REARRANGEMENTS or same or (out.ndim > a.ndim and out.shape[-2:] == a.shape[-2:]):
            one_by_one = out.shape == a.shape
            content = _stepped(memory, name, args, kwargs, k.content, a) if one_by_one else k.content.unknown()
            _hand_on(memory, name, k, a, out, content)
    return None


def _weights_made(
    memory: Memory,
    func: Any,
    name: str,
    args: Any,
    kwargs: Any,
    inputs: Sequence[torch.Tensor],
    a: torch.Tensor,
    k: Known,
    out: torch.Tensor,
    snapshot: Callable[[Known, torch.Tensor], AttentionRows | None],
) -> Lost | None:
    content = k.content
    drops = name in DROPOUTS or (name == "mul" and any(_is_noise(memory, x) for x in inputs))
    if drops and out.shape == a.shape:
        if content.changed:
            kept = snapshot(k, a) if k.axes is not None else None
            content = replace(content, kept=kept, changed=kept is None, done=False)
    elif not (name in COPIES and out.shape == a.shape):
        content = content.altered()
    if out.ndim < a.ndim:
        dims = _dims(func, args, kwargs, a.ndim)
        runs = parts(k, a)
        if dims is None or runs is None or len(dims) != a.ndim - out.ndim:
            if out.ndim > 1 and out.is_floating_point():
                memory[out] = Known(None, 0, Lost(name, content.where))
            return None
        if any(p.label[0] == KEYS for d in dims for p in runs[d]):
            return None  # sums over keys are no weights
        rest = [r for d, r in enumerate(runs) if d not in dims]
        memory[out] = Known(_flat(rest, out), int(out.storage_offset()), content)
        return None
    _hand_on(memory, name, k, a, out, content, func, args, kwargs)
    return None


def mixed(memory: Memory, known: Known, runs: list[list[Axis]], axis: int, out: torch.Tensor) -> None:
    """A product over an axis of weights that is not that of keys alone, as of heads with heads: weights of other
    heads."""
    rest = [r for n, r in enumerate(runs) if n != axis % len(runs)]
    gone = runs[axis]
    label = gone[0].label if len(gone) == 1 and gone[0].label[0] == LEAD else (LEAD, NEW)
    new = [Axis(label, 1, 0)]
    # of a @ b the rows are a's and the columns b's
    ordered = [*rest, new] if axis == -1 else [*rest[:-1], new, *rest[-1:]]
    if out.ndim < len(ordered):
        ordered.remove(new)
    content = known.content.altered()
    axes = _flat(ordered, out) if len(ordered) == out.ndim and not any(p.label[0] == KEYS for p in gone) else None
    if axes is None:
        memory[out] = Known(None, 0, Lost("a product over several axes", content.where))
    else:
        memory[out] = Known(axes, int(out.storage_offset()), content)


def composed(memory: Memory, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether weights were multiplied with weights, over the keys of one and the queries of the other: the weights of
    two steps."""
    one, two = memory[a], memory[b]
    if one is None or two is None or not (isinstance(one.content, Weights) and isinstance(two.content, Weights)):
        return False
    rows, columns = parts(one, a), parts(two, b)
    if rows is None or columns is None:
        return False
    if {p.label[0] for p in rows[-1]} != {KEYS} or {p.label[0] for p in columns[-2]} != {QUERIES}:
        return False
    axes = _flat([*rows[:-1], columns[-1]], out)
    if axes is None:
        return False
    memory[out] = Known(axes, int(out.storage_offset()), one.content.altered())
    return True


def same_axes(known: Known, a: torch.Tensor, out: torch.Tensor) -> tuple[Axis, ...] | None:
    """The axes of ``out``, which was made of ``a`` entry by entry."""
    runs = parts(known, a)
    return None if runs is None else _flat(runs, out)


def _hand_on(
    memory: Memory,
    name: str,
    known: Known,
    a: torch.Tensor,
    out: torch.Tensor,
    content: Any,
    func: Any = None,
    args: Any = (),
    kwargs: Any = None,
) -> None:
    """``out`` was made of ``a``, axis by axis, those that it has more coming first."""
    runs = parts(known, a)
    if runs is not None:
        if name == "stack" and out.ndim == a.ndim + 1:
            dims = _dims(func, args, kwargs or {}, out.ndim) if func is not None else None
            runs.insert(dims[0] if dims else 0, [])
        runs = [[] for _ in range(out.ndim - len(runs))] + runs
        if isinstance(content, Weights) and any(
            n > 1 and not r and d >= out.ndim - 2 for d, (n, r) in enumerate(zip(out.shape, runs, strict=True))
        ):
            runs = None  # weights times values, element by element, are no weights
    axes = None if runs is None else _flat(runs, out)
    if axes is None and isinstance(content, Weights):
        content = Lost(name, content.where)
    memory[out] = Known(axes, int(out.storage_offset()), content)


def _flat(runs: Sequence[Sequence[Axis]], out: torch.Tensor) -> tuple[Axis, ...] | None:
    found: list[Axis] = []
    for d, run in enumerate(runs):
        axes = moved(run, out.shape[d], out.stride(d), (LEAD, NEW + d))
        if axes is None:
            return None
        found += axes
    labels = [a.label for a in found]
    return tuple(found) if len(set(labels)) == len(labels) else None


def _stepped(memory: Memory, name: str, args: Any, kwargs: Any, scores: Scores, a: torch.Tensor) -> Scores:
    """Scores after an operation on all of them, one by one; unknown after any other, and after one on a part."""
    known = memory[a]
    whole = known is not None and known.axes is not None and a.numel() == _count(known)
    if name in COPIES and whole and isinstance(args[0], torch.Tensor) and place(args[0]) == place(a):
        return scores
    which = [n for n, x in enumerate(args) if isinstance(x, torch.Tensor) and x.ndim and _holds_scores(memory, x)]
    if not (whole and scores.known and name in ELEMENTWISE and len(which) == 1) or kwargs.get("rounding_mode"):
        return scores.unknown()
    step = (name, tuple(args[: which[0]]), tuple(args[which[0] + 1 :]), dict(kwargs))
    return replace(scores, steps=(*scores.steps, step))


def _count(known: Known) -> int:
    n = 1
    for axis in known.axes or ():
        n *= axis.size
    return n


def _holds_scores(memory: Memory, x: torch.Tensor) -> bool:
    found = memory[x]
    return found is not None and isinstance(found.content, Scores)


def _is_noise(memory: Memory, a: torch.Tensor) -> bool:
    found = memory[a]
    return found is not None and found.content is NOISE


def _altered(content: Any) -> Any:
    return content.altered() if isinstance(content, Weights) else content


def _dims(func: Any, args: Any, kwargs: Any, ndim: int) -> list[int] | None:
    """The axes that an operation names."""
    for n, a in enumerate(func._schema.arguments):
        if a.name == "dim":
            given = args[n] if n < len(args) else kwargs.get("dim", a.default_value)
            given = [given] if isinstance(given, int) else given
            return None if given is None else [d % ndim for d in given]
    return None
