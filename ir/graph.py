"""Modules as graphs: networkx for analysis, DOT for looking at."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from aatc.ir.core import Block, Func, Module, Op, Value
from aatc.ir.printer import op_line

if TYPE_CHECKING:
    import networkx

Node = tuple[str, int]
_LABEL = 60  # characters of an operation shown in a node


def to_networkx(module: Module) -> networkx.MultiDiGraph:
    """The data flow: a node per operation and per argument, an edge per use of a value.

    Nodes are (function, number) and have ``name`` (the operation, or "argument"), ``label``, ``func``,
    ``depth`` (of nesting) and ``op`` or ``value``, the object itself. Edges run from maker to user and have
    ``type``, ``value`` (its name), ``operand`` (which one it is there).
    """
    import networkx as nx

    graph = nx.MultiDiGraph()
    for func in module.funcs.values():
        _add_block(graph, func, func.body, 0, {}, count())
    return graph


def _add_block(
    graph: Any, func: Func, block: Block, depth: int, makers: dict[Value, Node], numbers: count[int]
) -> None:
    def add(name: str, label: str, **item: Op | Value) -> Node:
        node = (func.name, next(numbers))
        graph.add_node(node, name=name, label=label, func=func.name, depth=depth, **item)
        return node

    for value in block.args:
        makers[value] = add("argument", repr(value), value=value)
    for op in block.ops:
        node = add(op.name, _shortened(op_line(op)), op=op)
        for n, value in enumerate(op.operands):
            graph.add_edge(makers[value], node, type=str(value.type), value=value.name, operand=n)
        for region in op.regions:
            _add_block(graph, func, region, depth + 1, makers, numbers)
        for value in op.results:
            makers[value] = node


def to_dot(module: Module) -> str:
    """The data flow in Graphviz's DOT language, one cluster per function. Nothing is drawn here."""
    graph = to_networkx(module)
    lines = ["digraph module {", "  node [shape=box, fontname=monospace];"]
    for number, func in enumerate(module.funcs.values()):
        lines += [
            f"  subgraph cluster_{number} {{",
            f"    label={_quoted(f'{func.level}.func @{func.name}')};",
        ]
        nodes = [(node, data) for node, data in graph.nodes(data=True) if data["func"] == func.name]
        for node, data in nodes:
            shape = ", shape=ellipse" if data["name"] == "argument" else ""
            lines.append(f"    {_id(number, node)} [label={_quoted(data['label'])}{shape}];")
        for node, _ in nodes:
            for _, user, data in graph.out_edges(node, data=True):
                lines.append(f"    {_id(number, node)} -> {_id(number, user)} [label={_quoted(data['type'])}];")
        lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"


def _id(func: int, node: Node) -> str:
    return f"f{func}_{node[1]}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _shortened(text: str) -> str:
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 3]}..."
