"""Which block of a buffer a tile is: one letter per axis of the buffer, and how they lie in the tile.

Letters: b batch, h heads, g both in one; i queries, j keys, d and e features; c one feature, and s one part of an axis
that is cut in some, at a loop's position. A tile has three axes: problems, then what the letters after b, h, g say
(`_INSIDE`). An axis of extent 1 stands for any position, and h may have fewer heads than there are: several of them
then share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from aatc.ir.core import Op
from aatc.ir.dims import Dim

#: Letters behind those of the problem -> letters of a tile's second and third axis; "1" is a broadcast axis.
_INSIDE = {
    "": "11", "i": "i1", "j": "1j", "d": "1d", "id": "id", "jd": "jd", "ij": "ij", "ic": "i1", "jc": "1j", "de": "de",
    "si": "i1", "sid": "id",
}  # fmt: skip
_PROBLEMS = ("", "g", "b", "h", "bh")

#: Every word of axes there is.
AXES = tuple(lead + inside for lead in _PROBLEMS for inside in _INSIDE)


@dataclass(frozen=True)
class Access:
    """``lead`` names the problem ("g", or some of "bh"), ``inside`` the rest; ``tile`` are the letters of the tile's
    axes, ``walks`` those of the loops whose positions an access takes, in order."""

    axes: str
    lead: str
    inside: str
    tile: str
    walks: str


@lru_cache(maxsize=256)
def access(axes: str) -> Access:
    """The reading of a word of `AXES`; KeyError for others."""
    lead = axes[: len(axes) - len(axes.lstrip("gbh"))]
    inside = axes[len(lead) :]
    walks = ("g" if lead else "") + inside.translate({ord("d"): None, ord("e"): None})
    return Access(axes, lead, inside, ("g" if lead else "1") + _INSIDE[inside], walks)


def shares_heads(have: Dim, heads: Dim) -> bool:
    """Whether a buffer with ``have`` heads may serve ``heads`` of them, several each. What is a symbol may divide the
    other: that is for whoever calls to check."""
    if have.is_static and int(have) < 1:
        return False
    return not (have.is_static and heads.is_static) or int(heads) % int(have) == 0


def repeats(op: Op) -> bool:
    """Whether a `tile.load` gives the same block for every problem: its buffer has no axis of problems, and a position
    along g comes first."""
    a = access(op.attrs["axes"])
    return not a.lead and len(op.operands) == len(a.walks) + 2


def owned_by(axes: str, shape: Sequence[Dim], sizes: Sequence[Dim] | None, loop: str) -> bool:
    """Whether different positions of a ``loop`` (its axis) are different places of a buffer of ``shape``."""
    a = access(axes)
    if loop == "g":
        return owns_problem(a.lead, shape, sizes)
    return loop in a.inside and shape[len(a.lead) + a.inside.index(loop)] != 1


def owns_problem(lead: str, shape: Sequence[Dim], sizes: Sequence[Dim] | None) -> bool:
    """Whether every problem has a place of its own in a buffer whose first axes are ``lead``."""
    if lead == "g":
        return True
    have = dict(zip(lead, shape, strict=False))
    return sizes is not None and all(n == 1 or have.get(c) == n for c, n in zip("bh", sizes, strict=False))
