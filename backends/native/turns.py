"""Large calls do some problems before they begin others, so that these can have their memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aatc.backends.processor import cores
from aatc.ir.access import access
from aatc.ir.core import Func, Value
from aatc.ir.dims import Dim
from aatc.ir.types import TensorType

#: Bytes of buffers beyond which problems are done in turns.
MOST = 112 << 20


@dataclass(frozen=True)
class Turns:
    """``total`` problems, ``each`` of them in a turn, or fewer in the last; ``parts``: buffers of one turn's only."""

    total: int
    each: int
    parts: frozenset[Value] = frozenset()

    def starts(self) -> list[tuple[int, int]]:
        """(first problem, how many) of every turn."""
        return [(n, min(self.each, self.total - n)) for n in range(0, self.total, self.each)]

    def nbytes(self, v: Value, whole: int) -> int:
        """Of a buffer that takes ``whole`` for all problems."""
        return whole // self.total * self.each if v in self.parts else whole

    def shift(self, v: Value, whole: int) -> int:
        """Bytes by which the address of a buffer is ahead of its memory, for each problem before the turn's first."""
        return whole // self.total if v in self.parts else 0


def turns_of(func: Func, problems: Dim, sizes: Mapping[str, int], nbytes: Mapping[Value, int]) -> Turns | None:
    """Turns of a function that only loops over problems, given its buffers' sizes; None where all go at once: where
    there is room, or no more problems than cores."""
    total = problems.evaluate(sizes)
    parts = {v for v in nbytes if isinstance(v.type, TensorType) and v.type.rank and v.type.shape[0] == problems}
    for op in func.body.walk():
        read_by_problem = op.name in ("tile.load", "tile.store") and access(op.attrs["axes"]).lead == "g"
        if not read_by_problem:
            parts -= set(op.operands)
    whole = sum(nbytes[v] for v in parts)
    room = max(1, MOST - (sum(nbytes.values()) - whole))
    if whole <= room or total < 2:
        return None
    most = cores()
    each = -(-max(1, room * total // whole) // most) * most
    return Turns(total, each, frozenset(parts)) if each < total else None
