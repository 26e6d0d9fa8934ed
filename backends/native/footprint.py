"""What a call of a kernel holds in memory besides its arguments and results, and for how long, without a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from aatc.backends.native.regions import Region, touched
from aatc.ir.core import Value

if TYPE_CHECKING:
    from aatc.backends.native.compiled import Compiled, Plan


@dataclass(frozen=True)
class Held:
    """``nbytes`` bytes that are written and read from the phase ``first`` to ``last``, of all regions in order; with
    turns, once in each of them."""

    name: str
    nbytes: int
    first: int
    last: int


def footprint(compiled: Compiled, tensors: Sequence[torch.Tensor], threads: int) -> list[Held]:
    """Of a call with such arguments, whose elements are not read. What tiles of all threads take is the last entry."""
    _, plan = compiled._planned(tensors, None)
    used = _phases(plan)
    found = [Held(v.name, n, *used.get(v, (0, 0))) for v, (_, n, _, _) in plan.buffers.items()]
    end = max((last for _, last in used.values()), default=0)
    return [*found, Held("tiles", plan.scratch_bytes * threads, 0, end)]


def _phases(plan: Plan) -> dict[Value, tuple[int, int]]:
    """The first and the last phase that touches a buffer."""
    used: dict[Value, tuple[int, int]] = {}
    phases = [p for s in plan.text.steps if isinstance(s, Region) for p in s.phases]
    for n, phase in enumerate(phases):
        for nest in phase.nests:
            reads, writes = touched([*nest.prelude, *(nest.loops[:1] or nest.ops)])
            for v in reads | writes:
                used[v] = (used.get(v, (n, n))[0], n)
    return used
