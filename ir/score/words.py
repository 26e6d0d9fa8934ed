"""What an expression is made of, remembered: rules of operations ask again and again."""

from __future__ import annotations

from functools import lru_cache

from aatc.ir.score.expr import Expr
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.walk import postorder


@lru_cache(maxsize=1024)
def reading(body: Expr) -> tuple[frozenset[Expr], str]:
    """The parameters an expression reads, and a word of it that does not work element by element; empty if none."""
    nodes = postorder(body)
    used = frozenset(e for e in nodes if e.fn == "param")
    other = (e for e in nodes if not e.is_const and e.fn != "param" and not _by_element(e))
    return used, next((e.name if e.fn == "index" else e.fn for e in other), "")


def _by_element(e: Expr) -> bool:
    f = FUNCTIONS.get(e.fn)
    return f is not None and f.kind == "pointwise"
