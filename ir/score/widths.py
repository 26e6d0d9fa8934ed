"""Extents of feature axes: those of every vector and matrix in an expression, and whether they fit together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aatc.ir.errors import ScoreError
from aatc.ir.score.expr import Expr, postorder
from aatc.ir.score.functions import FUNCTIONS

Extents = tuple[int, ...]


def extents(roots: Iterable[Expr], tails: Mapping[str, Extents]) -> dict[Expr, Extents]:
    """Feature extents of every node: () of a number, (D,) of a vector, (D, E) of a matrix.

    ``tails`` gives those of parameters by name. Raises ScoreError where two do not fit together: vectors are combined
    channel by channel, none is repeated.
    """
    known: dict[Expr, Extents] = {}
    for x in postorder(*roots):
        known[x] = tails.get(x.name, ()) if x.fn == "param" else _extent(x, [known[a] for a in x.args])
    return known


def _extent(x: Expr, args: list[Extents]) -> Extents:
    if x.fn == "lookup":
        letters = len(x.args[0].attrs[1]) - len(x.args[0].attrs[1].rstrip("tu"))
        if letters != len(args) - 1:
            raise _misfit(x, f"a table of {letters} axes and {len(args) - 1} positions")
    if not args or x.fn == "lookup":
        return ()
    first = args[0]
    if x.fn in ("matvec", "turn", "tmatvec", "unturn"):
        transposed = x.fn in ("tmatvec", "unturn")
        rows, columns = first[::-1] if transposed else first
        if (columns,) != args[1]:
            raise _misfit(x, f"a matrix {first[0]}×{first[1]} and a vector of {args[1][0]} channels")
        return (rows,)
    if x.fn == "rotate":
        if first[0] % 2 or args[1] != (first[0] // 2,):
            raise _misfit(x, f"a vector of {first[0]} channels and {args[1][0]} angles, one for every two channels")
        return first
    if x.fn == "rotate_angle":
        return (first[0] // 2,)
    if x.fn == "outer":
        return first + args[1]
    if x.fn == "append":
        return (first[0] + 1,)
    if x.fn == "init":
        return (first[0] - 1,)
    if x.fn == "embed":
        return args[1]
    if x.fn == "item" and not -first[0] <= x.attrs[0] < first[0]:
        raise _misfit(x, f"channel {x.attrs[0]} of a vector of {first[0]}")
    shaped = [a for a in args if a]
    if len(set(shaped)) > 1:
        shown = " and ".join("×".join(map(str, a)) for a in dict.fromkeys(shaped))
        raise _misfit(x, f"vectors of {shown} channels")
    return () if FUNCTIONS[x.fn].kind == "reduce" else (shaped[0] if shaped else ())


def _misfit(x: Expr, what: str) -> ScoreError:
    text = str(x)
    shown = text if len(text) <= 120 else f"{text[:120]}..."
    return ScoreError(
        f"{x.fn} takes {what}: {shown}",
        hint="vectors are combined channel by channel; a number is declared by axes without d",
    )
