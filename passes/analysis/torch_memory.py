"""Which axes of attention weights lie where in memory, as operations of PyTorch move them about.

A view is read off its strides, so that nothing has to be known of the operation that made it. What is known is of a
storage, and is forgotten with it: other memory at the same address is another storage.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

#: What an axis runs over: a tuple that begins with one of these, leading axes being numbered. Parts of one axis have
#: longer tuples, outer ones first.
LEAD, QUERIES, KEYS = 0, 1, 2
#: Storages that are kept in mind at a time.
KEPT = 256
Label = tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """``size`` numbers in steps of ``stride`` from the next one."""

    label: Label
    size: int
    stride: int


@dataclass(frozen=True)
class Known:
    """What is known of a storage: its axes, where the first number lies, and what it holds. Without axes (None) nobody
    can tell which of them is which."""

    axes: tuple[Axis, ...] | None
    offset: int
    content: Any

    def whole(self, like: torch.Tensor) -> torch.Tensor:
        """All that the storage of ``like`` holds, one axis for each of these, leading ones first, then queries and
        keys, whose parts are joined."""
        assert self.axes is not None
        axes = sorted(self.axes, key=lambda a: a.label)
        t = like.detach().as_strided([a.size for a in axes], [a.stride for a in axes], self.offset)
        lead = [a.size for a in axes if a.label[0] == LEAD]
        return t.reshape(*lead, self.size(QUERIES), self.size(KEYS))

    def size(self, kind: int) -> int:
        n = 1
        for a in self.axes or ():
            n *= a.size if a.label[0] == kind else 1
        return n


class Memory:
    """What is known of storages, the latest ones."""

    def __init__(self) -> None:
        self._kept = OrderedDict[int, tuple[StorageWeakRef, Known]]()

    def __getitem__(self, t: torch.Tensor) -> Known | None:
        found = self._kept.get(place(t))
        return None if found is None else found[1]

    def __setitem__(self, t: torch.Tensor, known: Known) -> None:
        here = place(t)
        # a storage that is watched weakly is not another one later
        self._kept[here] = StorageWeakRef(t.untyped_storage()), known
        self._kept.move_to_end(here)
        if len(self._kept) > KEPT:
            self._kept = OrderedDict((k, v) for k, v in self._kept.items() if not v[0].expired())
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def forget(self, t: torch.Tensor) -> None:
        self._kept.pop(place(t), None)

    def clear(self) -> None:
        self._kept.clear()


def has_place(x: Any) -> bool:
    """Whether this is a tensor of numbers in memory of its own: no subclass, and no wrapper of a transform."""
    if not isinstance(x, torch.Tensor) or type(x) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return False
    if x.is_nested or x.layout != torch.strided or x.device.type == "meta" or x.numel() == 0 or x.ndim == 0:
        return False
    try:
        x.untyped_storage().data_ptr()
    except RuntimeError:
        return False
    return True


def place(x: torch.Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def fresh_axes(t: torch.Tensor, labels: Sequence[Label]) -> tuple[Axis, ...]:
    """The axes of a tensor that was just made, each of one label."""
    return tuple(Axis(*part) for part in zip(labels, t.shape, t.stride(), strict=True))


def parts(known: Known, t: torch.Tensor) -> list[list[Axis]] | None:
    """For every axis of a view, the axes that it runs over, outer ones first; None where that cannot be told."""
    if known.axes is None:
        return None
    found = [_parts_of(known.axes, n, s) for n, s in zip(t.shape, t.stride(), strict=True)]
    if any(f is None for f in found):
        return None
    axes = [f for f in found if f is not None]
    flat = [a for f in axes for a in f]
    labels = [a.label for a in flat]
    if len(set(labels)) == len(labels):
        return axes
    ordered = sorted(flat, key=lambda a: (a.label, -a.stride))
    numbers: dict[int, int] = {}
    for n, a in enumerate(ordered):
        numbers[id(a)] = n
    return [[replace(a, label=(*a.label, numbers[id(a)])) if labels.count(a.label) > 1 else a for a in f] for f in axes]


def _parts_of(axes: Sequence[Axis], size: int, stride: int) -> list[Axis] | None:
    if size == 1 or stride == 0:
        return []
    found: list[Axis] = []
    for a in sorted((a for a in axes if a.size > 1 and a.stride > 0), key=lambda a: a.stride):
        if size == 1 or stride < a.stride:
            break
        if stride >= a.stride * a.size or stride % a.stride:
            continue
        there = -(-a.size * a.stride // stride)
        take = min(size, there)
        if size % take:
            return None
        found.insert(0, Axis(a.label, take, stride))
        size //= take
        stride = a.stride * a.size
    return found if size == 1 else None


def moved(axis: Sequence[Axis], size: int, stride: int, new: Label) -> list[Axis] | None:
    """The axes that an axis of a result runs over, it being made of one that ran over ``axis``; ``new`` where it is
    made of none. None where it has another size and is made of several."""
    if size == 1 and not axis:
        return []
    if len(axis) <= 1:
        return [Axis(axis[0].label if axis else new, size, stride)]
    total = 1
    out: list[Axis] = []
    for a in reversed(axis):
        out.insert(0, Axis(a.label, a.size, stride * total))
        total *= a.size
    return out if total == size else None
