"""Text form of score programs. The grammar stands in `ir/grammar.lark`; `ir.parser` reads it back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.walk import postorder

if TYPE_CHECKING:
    from aatc.ir.score.expr import Expr

_NEG, _ATOM = 7, 9
_DEEPEST = 32  # brackets nested in one expression; deeper ones are split by ``let``, the parser has a limit


def number_text(value: float | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return float.__repr__(value) if isinstance(value, float) else int.__repr__(value)


def expr_text(root: Expr, names: Iterable[str] = ()) -> str:
    """``root`` as text; a node used more than once becomes a ``let``, so that the text stays linear in size.

    ``names`` are taken, besides those of the parameters in ``root``.
    """
    order = postorder(root)
    uses = Counter(a for e in order for a in e.args)
    taken = {e.name for e in order if e.fn == "param"}.union(names)
    text: dict[Expr, tuple[str, int]] = {}
    depth: dict[Expr, int] = {}
    lets: list[str] = []
    for e in order:
        text[e] = _node_text(e, text)
        depth[e] = max((depth[a] for a in e.args), default=0) + _adds_brackets(e, text)
        if e.args and (uses[e] > 1 or depth[e] >= _DEEPEST) and e is not root:
            name = _fresh(len(lets), taken)
            lets.append(f"{name} = {text[e][0]}")
            text[e], depth[e] = (name, _ATOM), 0
    body = text[root][0]
    return f"let {'; '.join(lets)} in {body}" if lets else body


def _adds_brackets(e: Expr, text: dict[Expr, tuple[str, int]]) -> bool:
    return text[e][0].count("(") > sum(text[a][0].count("(") for a in e.args)


def _fresh(k: int, taken: set[str]) -> str:
    name = f"t{k}"
    while name in taken:
        name += "_"
    return name


def _node_text(e: Expr, text: dict[Expr, tuple[str, int]]) -> tuple[str, int]:
    if e.fn == "const":
        s = number_text(e.value)
        return s, (_NEG if s.startswith("-") else _ATOM)
    if e.fn in ("param", "index"):
        return e.name, _ATOM
    f = FUNCTIONS[e.fn]
    if f.infix:
        symbol, level = f.infix
        left, right = (text[a] for a in e.args)
        # all infix words associate to the left; comparisons do not chain
        l = left[0] if left[1] > level or (left[1] == level and level != 4) else f"({left[0]})"
        r = right[0] if right[1] > level else f"({right[0]})"
        return f"{l} {symbol} {r}", level
    if e.fn == "neg" and not e.args[0].is_const:
        s, level = text[e.args[0]]
        return (f"-{s}" if level > _NEG else f"-({s})"), _NEG
    if e.fn == "not":
        s, level = text[e.args[0]]
        return (f"~{s}" if level > _NEG else f"~({s})"), _NEG
    attrs = f"[{', '.join(a if isinstance(a, str) else number_text(a) for a in e.attrs)}]" if e.attrs else ""
    return f"{e.fn}{attrs}({', '.join(text[a][0] for a in e.args)})", _ATOM
