"""Which leading axes of ordinary PyTorch code are batch and which are heads, by what its modules were given and say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aatc.passes.analysis.torch_scores import Split

#: Attributes in which modules say how many heads they have.
HEADS = ("num_heads", "n_heads", "num_attention_heads", "n_head", "heads")


@dataclass(frozen=True)
class Entered:
    """A module that runs, and the shapes of the tensors that it was given."""

    module: torch.nn.Module
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: torch.nn.Module, args: Any) -> Entered:
        given = args if isinstance(args, tuple) else (args,)
        return cls(module, tuple(tuple(a.shape) for a in given if isinstance(a, torch.Tensor)))

    def batches(self, length: int) -> set[int]:
        """Sizes that the batch may have, where this many queries are no part of it."""
        found = set()
        for shape in self.shapes:
            if len(shape) == 2:
                found |= {n for n, is_so in ((shape[0], shape[1] == length), (1, shape[0] == length)) if is_so}
            elif len(shape) == 3:
                rest = list(shape[:2])
                if length in rest:
                    rest.remove(length)
                found |= set(rest)
        return found


def split_of(
    lead: tuple[int, ...], length: int, inside: Sequence[Entered], heads: int | None, heads_first: bool | None
) -> tuple[Split, tuple[str, ...]]:
    """How these leading axes of scores of ``length`` queries are batch and heads, and a note where that is a guess.

    One axis holds both where a module around has a number of heads that divides it and its input has a batch to match,
    as `torch.nn.MultiheadAttention` does. Of two axes the first is the batch, unless the input says otherwise.
    ``heads`` and ``heads_first`` decide.
    """
    if not lead:
        return Split(1, 1), ()
    if len(lead) == 1:
        return _one_axis(lead[0], length, inside, heads)
    if len(lead) > 2 or heads_first is not None:
        return _several(lead, bool(heads_first)), ()
    if heads is not None and lead[0] != lead[1] and heads in lead:
        return _several(lead, lead[0] == heads), ()
    for entered in reversed(inside):
        said = entered.batches(length) & set(lead)
        if said == {lead[1]} != {lead[0]}:
            return _several(lead, True), ()
        if said:
            both = lead[0] != lead[1] and len(said) == 2
            note = f"leading axes {lead}: taken as batch and heads; heads_first= decides"
            return _several(lead, False), (note,) if both else ()
    return _several(lead, False), ()


def _several(lead: tuple[int, ...], heads_first: bool) -> Split:
    return Split(math.prod(lead[1:]), lead[0], True) if heads_first else Split(lead[0], math.prod(lead[1:]))


def _one_axis(size: int, length: int, inside: Sequence[Entered], heads: int | None) -> tuple[Split, tuple[str, ...]]:
    if heads is not None:
        return (Split(size // heads, heads) if heads > 0 and size % heads == 0 else Split(size, 1)), ()
    found = next(((i, h) for i in range(len(inside) - 1, -1, -1) if (h := _heads_of(inside[i].module))), None)
    if found is None or size % found[1]:
        return Split(size, 1), ()
    place, count = found
    if count == 1 or isinstance(inside[place].module, torch.nn.MultiheadAttention):
        return Split(size // count, count), ()
    for entered in reversed(inside[: place + 1]):  # what lies within is given what this module made
        batches = entered.batches(length)
        joined, alone = size // count in batches, size in batches
        if joined != alone:
            return (Split(size // count, count) if joined else Split(size, 1)), ()
    note = (
        f"the axis of {size} before {length} queries is taken as batch {size // count} × {count} heads, as "
        f"{type(inside[place].module).__name__} has that many; heads= decides (1: it is the batch)"
    )
    return Split(size // count, count), (note,)


def _heads_of(module: torch.nn.Module) -> int:
    for name in HEADS:
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0
