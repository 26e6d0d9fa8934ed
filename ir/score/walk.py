"""The nodes of score expressions, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from aatc.ir.score.expr import Expr


def postorder(*roots: Expr) -> list[Expr]:
    """Every node reachable from ``roots``, arguments before users, each once."""
    seen: set[Expr] = set()
    order: list[Expr] = []
    stack: list[tuple[Expr, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        e, done = stack.pop()
        if done:
            order.append(e)
        elif e not in seen:
            seen.add(e)
            stack.append((e, True))
            stack.extend((a, False) for a in reversed(e.args))
    return order


def params(*roots: Expr) -> list[Expr]:
    """Parameters in order of first use."""
    return [e for e in postorder(*roots) if e.fn == "param"]


def beyond(body: Expr, done: Collection[Expr]) -> list[Expr]:
    """The nodes that the value of ``body`` takes beyond those done, arguments first: what is only below a node that is
    done (the vectors of a contraction, say) is not among them."""
    order: dict[Expr, None] = {}
    stack = [(body, False)]
    while stack:
        e, entered = stack.pop()
        if entered:
            order[e] = None
        elif e not in done and e not in order:
            stack.append((e, True))
            stack.extend((a, False) for a in reversed(e.args))
    return list(order)
