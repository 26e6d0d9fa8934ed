"""How a block of rows and columns lies in the threads of a workgroup.

Thread number t stands at (t / across, t % across); it holds every ``down``-th row and every ``across``-th column of a
block, and every ``across``-th vector of four features of its rows. So lanes that stand side by side touch what lies
side by side in memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from aatc.ir.errors import ScheduleError

#: Threads that loops over tokens, elements and sums over whole buffers take.
PLAIN_THREADS = 64


@dataclass(frozen=True)
class Lanes:
    """``rows`` and ``cols`` of a block; ``down`` by ``across`` threads; ``subgroup``: lanes that can be shuffled, 0
    where they meet in shared memory."""

    rows: int
    cols: int
    down: int
    across: int
    subgroup: int = 0

    @property
    def threads(self) -> int:
        return self.down * self.across

    @property
    def high(self) -> int:
        """Rows of a thread."""
        return -(-self.rows // self.down)

    @property
    def wide(self) -> int:
        """Columns of a thread."""
        return -(-self.cols // self.across)

    def vectors(self, width: int) -> int:
        """Vectors of four features that a thread holds of a row of ``width``."""
        return -(-chunks(width) // self.across)


def chunks(width: int) -> int:
    """Vectors of four that a row of ``width`` features is."""
    return -(-width // 4)


def _below(n: int) -> int:
    """The largest power of two that is not above ``n``."""
    return 1 << (max(n, 1).bit_length() - 1)


def pair_lanes(schedule: str, rows: int, cols: int, letter: str, subgroup: int, most: int) -> Lanes:
    """Lanes of a nest over pairs, from what ``split(ii, …)`` and ``split(jj, …)`` of a schedule say that one holds;
    ``letter``: i where rows of the block are queries, j where they are keys."""
    said = {a: int(n) for a, n in re.findall(r"split\((ii|jj), (\d+)\)", schedule)}
    high, wide = said.get("ii", 8), said.get("jj", 4)
    if letter == "j":
        high, wide = wide, high
    across = _below(-(-cols // wide))
    if subgroup:
        across = min(across, _below(subgroup))
    down = max(1, -(-rows // high))
    while down * across > most and across > 1:
        across //= 2
    if down * across > most:
        raise ScheduleError(
            f"{schedule}: a workgroup would have {down * across} threads, the device allows {most}",
            hint="split i to less, or ii to more",
        )
    return Lanes(rows, cols, down, across, subgroup)
