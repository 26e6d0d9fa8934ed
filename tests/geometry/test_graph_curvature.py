"""Curvatures of graphs against the values the literature proves, against POT's transport, and under the flow."""

import math

import networkx as nx
import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aatc.geometry.flows.graph_curvature import (
    EdgeCurvature,
    GraphError,
    GraphRicciFlow,
    WeightedGraph,
    forman_ricci,
    lin_lu_yau_ricci,
    ollivier_ricci,
    wasserstein,
)
from aatc.geometry.flows.ricci_flow import StepSizeError
from aatc.geometry.manifold import GeometryError

F64 = torch.float64
TORUS = nx.grid_graph([6, 6], periodic=True)

LIN_LU_YAU = {
    "K2": (nx.complete_graph(2), 2),
    "K5": (nx.complete_graph(5), 5 / 4),
    "C3": (nx.cycle_graph(3), 3 / 2),
    "C4": (nx.cycle_graph(4), 1),
    "C5": (nx.cycle_graph(5), 1 / 2),
    "C6": (nx.cycle_graph(6), 0),
    "C9": (nx.cycle_graph(9), 0),
    "Q3": (nx.hypercube_graph(3), 2 / 3),
    "Q4": (nx.hypercube_graph(4), 2 / 4),
    "K33": (nx.complete_bipartite_graph(3, 3), 2 / 3),
    "torus": (TORUS, 0),
    "cubic tree": (nx.balanced_tree(2, 3), None),
    "Petersen": (nx.petersen_graph(), 0),
}


def random_graph(seed, size=7, chance=0.4):
    graph = nx.gnp_random_graph(size, chance, seed=seed)
    nx.add_path(graph, range(size))
    draw = np.random.default_rng(seed)
    for u, v in graph.edges:
        graph[u][v]["weight"] = float(draw.uniform(0.5, 2.0))
    return graph


def transport_by_pot(graph, u, v, alpha, lengths):
    """The curvature of uv with everything, shortest paths included, done by other libraries."""
    nodes = list(graph)
    weight = "weight" if lengths else None
    paths = dict(nx.all_pairs_dijkstra_path_length(graph, weight=weight or "absent"))
    cost = np.array([[float(paths[a][b]) for b in nodes] for a in nodes])
    laws = []
    for centre in (u, v):
        law = np.zeros(len(nodes))
        law[nodes.index(centre)] = alpha
        for other in graph[centre]:
            law[nodes.index(other)] += (1 - alpha) / graph.degree[centre]
        laws.append(law)
    return 1 - ot.emd2(*laws, cost) / paths[u][v]


@pytest.mark.parametrize("name", LIN_LU_YAU)
def test_lin_lu_yau_curvature_takes_its_known_values(name):
    graph, want = LIN_LU_YAU[name]
    for (u, v), value in lin_lu_yau_ricci(graph).by_edge().items():
        # On a tree: 2/d_u + 2/d_v − 2.
        exact = 2 / graph.degree[u] + 2 / graph.degree[v] - 2 if want is None else want
        assert value == pytest.approx(exact, abs=1e-9)


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.8]))
def test_ollivier_curvature_is_that_of_pots_transport(seed, alpha):
    graph = random_graph(seed)
    for (u, v), value in list(ollivier_ricci(graph, alpha).by_edge().items())[:6]:
        assert value == pytest.approx(transport_by_pot(graph, u, v, alpha, True), abs=1e-9)


@settings(max_examples=8)
@given(st.integers(0, 10_000))
def test_lin_lu_yau_curvature_is_the_limit_of_lazy_walks(seed):
    graph = random_graph(seed)
    limit = lin_lu_yau_ricci(graph).curvature
    lazy = ollivier_ricci(graph, 0.999).curvature
    torch.testing.assert_close(limit, lazy / 0.001, rtol=0, atol=1e-8)
    hastier = ollivier_ricci(graph, 0.0).curvature
    assert (limit >= hastier - 1e-9).all() and (limit - hastier).max() > 0.01


def test_curvature_does_not_change_with_the_unit_of_length_and_the_walk_may_prefer_short_edges():
    graph = random_graph(3)
    matrix = torch.from_numpy(nx.to_numpy_array(graph))
    for walk in ("uniform", "inverse-length"):
        one = lin_lu_yau_ricci(matrix, walk=walk).curvature
        for unit in (3.0, 1e-9, 1e-15, 1e12):
            torch.testing.assert_close(lin_lu_yau_ricci(unit * matrix, walk=walk).curvature, one, rtol=0, atol=1e-9)
        lazy = ollivier_ricci(matrix, 0.999, walk=walk).curvature / 0.001
        torch.testing.assert_close(lazy, one, rtol=0, atol=1e-8)
    assert (one - lin_lu_yau_ricci(matrix).curvature).abs().max() > 0.01


def test_the_transport_programme_agrees_with_pot():
    draw = np.random.default_rng(0)
    for rows, columns in ((1, 1), (3, 5), (9, 4)):
        source, target = draw.dirichlet(np.ones(rows)), draw.dirichlet(np.ones(columns))
        cost = draw.uniform(size=(rows, columns))
        assert wasserstein(source, target, cost) == pytest.approx(ot.emd2(source, target, cost), abs=1e-12)


def test_a_small_mass_is_moved_a_long_way():
    small = 2e-8
    cost = np.array([[0.0, 4.5e3], [1e-4, 4.5e3]])
    moved = wasserstein(np.array([0.5, 0.5]), np.array([1 - small, small]), cost)
    assert moved == pytest.approx((0.5 - small) * 1e-4 + small * 4.5e3, rel=1e-9)


@pytest.mark.parametrize("walk", ["uniform", "inverse-length"])
def test_lengths_of_many_magnitudes_leave_the_transport_solvable(walk):
    draw = np.random.default_rng(0)
    for seed in range(4):
        graph = nx.gnp_random_graph(8, 0.5, seed=seed)
        nx.add_path(graph, range(8))
        for u, v in graph.edges:
            graph[u][v]["weight"] = float(10 ** draw.uniform(-4, 4))
        assert (ollivier_ricci(graph, 0.999, walk=walk).curvature <= 1).all()


@given(st.integers(0, 10_000))
def test_forman_curvature_of_unit_weights_counts_degrees_and_triangles(seed):
    graph = nx.Graph(random_graph(seed).edges)
    plain, filled = forman_ricci(graph).by_edge(), forman_ricci(graph, triangles=True).by_edge()
    for u, v in graph.edges:
        bare = 4 - graph.degree[u] - graph.degree[v]
        assert plain[u, v] == pytest.approx(bare, abs=1e-12)
        assert filled[u, v] == pytest.approx(bare + 3 * len(list(nx.common_neighbors(graph, u, v))), abs=1e-12)


def test_forman_curvature_of_a_weighted_path_and_its_gradient():
    a, b, c = 2.0, 0.5, 3.0
    matrix = torch.zeros(4, 4, dtype=F64)
    for i, w in enumerate((a, b, c)):
        matrix[i, i + 1] = matrix[i + 1, i] = w
    masses = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64)
    want = [3 - 2 * math.sqrt(a / b), 5 - 2 * math.sqrt(b / a) - 3 * math.sqrt(b / c), 7 - 3 * math.sqrt(c / b)]
    torch.testing.assert_close(forman_ricci(matrix, node_weights=masses).curvature, torch.tensor(want, dtype=F64))
    graph = WeightedGraph.of(random_graph(5))
    lengths = graph.weights.clone().requires_grad_()
    for triangles in (False, True):

        def curvature(w, faces=triangles):
            return forman_ricci(WeightedGraph(graph.nodes, graph.edges, w), triangles=faces).curvature

        assert torch.autograd.gradcheck(curvature, lengths)


def test_every_form_of_a_graph_gives_the_same_curvature():
    graph = random_graph(7)
    matrix = torch.from_numpy(nx.to_numpy_array(graph))
    for curvature in (ollivier_ricci, lin_lu_yau_ricci, forman_ricci):
        from_graph = {tuple(sorted(e)): k for e, k in curvature(graph).by_edge().items()}
        for form in (matrix, matrix.to_sparse()):
            got = curvature(form).by_edge()
            assert got.keys() == from_graph.keys()
            assert all(got[e] == pytest.approx(from_graph[e], abs=1e-12) for e in got)
    assert ollivier_ricci(matrix.float()).curvature.dtype == torch.float32


def test_the_flow_stretches_bridges_and_shrinks_communities():
    graph = nx.barbell_graph(5, 0)
    seen = []
    run = GraphRicciFlow().evolve(graph, 0.2, 6, lambda step, _: seen.append(step))
    bridge = run.graph.edges.tolist().index([4, 5])
    assert seen == [1, 2, 3, 4, 5, 6]
    assert run.curvature[0, bridge] < 0 and (run.curvature[0] > 0).sum() > 10
    assert (run.weights[:, bridge].diff() > 0).all()
    assert run.weights[-1, bridge] > 2.5 * run.weights[-1].median()
    torch.testing.assert_close(run.weights.sum(1), torch.full((7,), 21.0, dtype=F64))


@pytest.mark.parametrize("curvature", [lin_lu_yau_ricci, forman_ricci])
def test_graphs_of_one_curvature_are_fixed_by_the_normalised_flow_and_scaled_by_the_plain_one(curvature):
    for graph in (nx.complete_graph(5), nx.cycle_graph(7), nx.hypercube_graph(3)):
        value = float(curvature(graph).curvature[0])
        still = GraphRicciFlow(curvature).evolve(graph, 0.1, 3)
        torch.testing.assert_close(still.weights, torch.ones_like(still.weights))
        plain, before = GraphRicciFlow(curvature, normalized=False).flow_step(graph, 0.1)
        torch.testing.assert_close(plain.weights, torch.full_like(plain.weights, 1 - 0.1 * value))
        assert isinstance(before, EdgeCurvature)


def test_what_is_no_metric_graph_is_refused():
    with pytest.raises(GraphError, match="undirected"):
        ollivier_ricci(nx.DiGraph([(0, 1)]))
    with pytest.raises(GraphError, match="ndarray"):
        ollivier_ricci(np.eye(2))
    one, two = torch.tensor([[0, 1]]), torch.ones(2, dtype=F64)
    for message, edges, weights in (
        ("positive", one, -two[:1]),
        ("positive", one, math.nan * two[:1]),
        ("more than one", torch.tensor([[0, 1], [1, 0]]), two),
        ("outside", one + 5, two[:1]),
        ("edges are", one.double(), two[:1]),
        ("edges are", one, two),
    ):
        with pytest.raises(GraphError, match=message):
            WeightedGraph((0, 1), edges, weights)
    with pytest.raises(GraphError, match="positive"):
        GraphRicciFlow(lambda g: EdgeCurvature(g, math.nan * g.weights)).flow_step(nx.path_graph(3), 0.1)
    with pytest.raises(GraphError, match="itself"):
        forman_ricci(nx.Graph([(0, 1), (1, 1)]))
    with pytest.raises(GraphError, match="positive"):
        lin_lu_yau_ricci(nx.Graph([(0, 1, {"weight": -1.0})]))
    with pytest.raises(GraphError, match="symmetric"):
        forman_ricci(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    with pytest.raises(GraphError, match="symmetric"):
        forman_ricci(torch.tensor([[0.0, math.nan], [math.nan, 0.0]]))
    with pytest.raises(GraphError, match="floating"):
        forman_ricci(torch.zeros(2, 3))
    with pytest.raises(GraphError, match="weights"):
        forman_ricci(nx.path_graph(3), node_weights=torch.ones(2))
    with pytest.raises(GeometryError, match="alpha"):
        ollivier_ricci(nx.path_graph(3), 1.0)
    with pytest.raises(GeometryError, match="walk"):
        ollivier_ricci(nx.path_graph(3), walk="drunk")
    with pytest.raises(StepSizeError, match="below") as caught:
        GraphRicciFlow().evolve(nx.complete_graph(5), 0.8, 1)
    assert caught.value.bound == pytest.approx(4 / 5)
