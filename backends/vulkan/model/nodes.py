"""Numbers per element that are still to be computed: expressions over views, which one kernel evaluates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aatc.backends.vulkan.model.views import View

#: Kinds as types of the kernel language.
TYPE = {"f": "f32", "i": "i32", "b": "bool"}


@dataclass(frozen=True, eq=False)
class Node:
    """A number, integer or truth value (``kind``) per element of ``shape``. ``op`` is "load" with a `View`, "number",
    "held" (what a kernel holds already: the sum of products it ends with, a row's sum) with its name, or a word of
    `WORDS` over ``args``, which broadcast."""

    op: str
    kind: str
    shape: tuple[int, ...]
    args: tuple[Node, ...] = ()
    data: Any = None


def load(view: View) -> Node:
    return Node("load", view.kind, view.shape, data=view)


def number(value: float, kind: str) -> Node:
    return Node("number", kind, (), data=value)


def held(name: str, kind: str = "f", shape: tuple[int, ...] = ()) -> Node:
    return Node("held", kind, shape, data=name)


def nodes_of(*roots: Node) -> Iterator[Node]:
    """Every node once, arguments first."""
    seen: set[Node] = set()
    stack = [(r, False) for r in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(a, False) for a in reversed(node.args)]


def views_in(*roots: Node) -> list[View]:
    """The views that are loaded, each once."""
    return list(dict.fromkeys(n.data for n in nodes_of(*roots) if n.op == "load"))


def replaced(root: Node, table: dict[Node, Node]) -> Node:
    """``root`` with other nodes in the place of some."""
    done: dict[Node, Node] = {}
    for n in nodes_of(root):
        if n in table:
            done[n] = table[n]
        else:
            args = tuple(done[a] for a in n.args)
            done[n] = n if args == n.args else Node(n.op, n.kind, n.shape, args, n.data)
    return done[root]
