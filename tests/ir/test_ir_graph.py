"""Modules as graphs."""

import networkx as nx
import pytest

from aatc.ir.parser import parse
from tests.ir.samples import GEO, SAMPLES


@pytest.mark.parametrize("text", SAMPLES.values(), ids=SAMPLES)
def test_every_operation_is_a_node_and_every_use_an_edge(text):
    module = parse(text)
    graph = module.graph()
    ops = list(module.walk())
    assert [d["op"] for _, d in graph.nodes(data=True) if "op" in d] == ops
    assert graph.number_of_edges() == sum(len(op.operands) for op in ops)
    assert {d["func"] for _, d in graph.nodes(data=True)} == set(module.funcs)
    assert nx.is_directed_acyclic_graph(graph)


def test_edges_carry_the_value_and_its_type():
    graph = parse(GEO).graph()
    (normalize,) = [n for n, d in graph.nodes(data=True) if d["name"] == "geo.normalize"]
    ((maker, _, data),) = graph.in_edges(normalize, data=True)
    assert graph.nodes[maker]["name"] == "geo.metric"
    assert data == {"type": "pair<f64[1,2,N,M]>", "value": "s", "operand": 0}
    (metric,) = [n for n, d in graph.nodes(data=True) if d["name"] == "geo.metric"]
    assert [graph.nodes[n]["label"] for n in graph.predecessors(metric)] == [
        "%q: f64[1,2,N,4]",
        "%k: f64[1,2,M,4]",
        "%beta: f64[2]",
    ]
    assert nx.descendants(graph, metric) >= {normalize}


def test_nested_operations_know_their_depth():
    graph = parse(SAMPLES["tile"]).graph()
    depth = {d["name"]: d["depth"] for _, d in graph.nodes(data=True)}
    assert depth["tile.dot"] == 3 and depth["tile.classify"] == 0


def test_dot_has_a_cluster_per_function_and_escapes_labels():
    module = parse(GEO.replace("recomputed", 'a \\"quoted\\" \\\\ <label>'))
    dot = module.dot()
    assert dot.count("subgraph cluster_") == 2
    assert 'label="geo.func @half"' in dot
    assert dot.count("->") == module.graph().number_of_edges()
    for line in dot.splitlines():
        inside = line.replace("\\\\", "").replace('\\"', "")
        assert inside.count('"') % 2 == 0
    assert '\\"aten.add.Tensor\\"' in dot or "aten" not in dot
