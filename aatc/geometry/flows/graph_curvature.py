"""Ricci curvature of weighted graphs, after Ollivier, Lin–Lu–Yau and Forman, and the Ricci flow of edge weights.

Edge weights are lengths. Sources: Ollivier, Ricci curvature of Markov chains on metric spaces, J. Funct. Anal. 256
(2009) 810; Lin, Lu, Yau, Ricci curvature of graphs, Tohoku Math. J. 63 (2011) 605; Münch, Wojciechowski, Ollivier
Ricci curvature for general graph Laplacians, Adv. Math. 356 (2019), theorem 2.1; Sreejith et al., Forman curvature for
complex networks, J. Stat. Mech. (2016) 063206; Ni et al., Community detection on networks with Ricci flow, Sci. Rep. 9
(2019).
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aatc.geometry.flows.ricci_flow import StepSizeError, check_count
from aatc.geometry.manifold import GeometryError

WALKS = ("uniform", "inverse-length")
# The least that HiGHS takes; by default masses below 1e-7 may stay where they are.
_SOLVER = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


class GraphError(GeometryError):
    """A graph whose curvature is not defined: directed, with loops or double edges, or with lengths that are not
    positive numbers."""


class TransportError(GeometryError):
    """A linear programme that the solver did not bring to its optimum."""


@dataclass(frozen=True)
class WeightedGraph:
    """An undirected graph: ``nodes`` (labels, in order), ``edges`` (E, 2) of positions among them, lengths (E).

    Raises `GraphError`.
    """

    nodes: tuple[Hashable, ...]
    edges: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.edges, Tensor) or not isinstance(self.weights, Tensor):
            raise GraphError("edges and weights of a graph are tensors; WeightedGraph.of takes a networkx graph")
        edges, weights = self.edges, self.weights.detach()
        if edges.dtype != torch.long or edges.ndim != 2 or edges.shape[1] != 2 or weights.shape != edges.shape[:1]:
            raise GraphError(
                f"edges are (E, 2) of node positions (int64) with weights (E), not {tuple(edges.shape)} of "
                f"{edges.dtype} with {tuple(weights.shape)}"
            )
        if bool(((edges < 0) | (edges >= len(self.nodes))).any()):
            raise GraphError(f"an edge names a node outside 0 … {len(self.nodes) - 1}")
        if bool((edges[:, 0] == edges[:, 1]).any()):
            raise GraphError("the graph has an edge from a node to itself: remove it")
        if len(edges.sort(1).values.unique(dim=0)) < len(edges):
            raise GraphError("two nodes have more than one edge between them: keep one")
        if not bool(((weights > 0) & weights.isfinite()).all()):
            raise GraphError("edge weights are lengths and must be positive finite numbers")

    @classmethod
    def of(cls, graph: Any) -> "WeightedGraph":
        """From a networkx graph (edge attribute "weight", 1 where absent) or a symmetric matrix, dense or sparse,
        whose nonzero entries are lengths. Raises `GraphError`."""
        if isinstance(graph, WeightedGraph):
            return graph
        if isinstance(graph, Tensor):
            return cls._of_matrix(graph.to_dense() if graph.layout != torch.strided else graph)
        if not hasattr(graph, "is_directed"):
            raise GraphError(f"a graph is a networkx graph or a tensor of lengths, not a {type(graph).__name__}")
        if graph.is_directed() or graph.is_multigraph():
            raise GraphError("curvature is defined here for undirected graphs with single edges")
        place = {node: i for i, node in enumerate(graph.nodes)}
        pairs = [(place[u], place[v]) for u, v in graph.edges]
        lengths = [float(data.get("weight", 1.0)) for _, _, data in graph.edges(data=True)]
        edges = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        return cls(tuple(place), edges, torch.tensor(lengths, dtype=torch.float64))

    @classmethod
    def _of_matrix(cls, matrix: Tensor) -> "WeightedGraph":
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.is_floating_point():
            raise GraphError(f"an adjacency matrix is floating (V, V), not {tuple(matrix.shape)} of {matrix.dtype}")
        if not torch.equal(matrix, matrix.mT):
            raise GraphError("the adjacency matrix is not symmetric (or holds a NaN)")
        edges = matrix.detach().triu().nonzero()
        return cls(tuple(range(matrix.shape[0])), edges, matrix[edges[:, 0], edges[:, 1]])

    def neighbours(self) -> list[dict[int, int]]:
        """For every node, its neighbours and the index of the edge to each."""
        table: list[dict[int, int]] = [{} for _ in self.nodes]
        for index, (u, v) in enumerate(self.edges.tolist()):
            table[u][v] = table[v][u] = index
        return table

    def distances(self) -> np.ndarray:
        """Shortest path lengths (V, V), ∞ between components."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import shortest_path

        u, v = self.edges.cpu().numpy().T
        lengths = self.weights.detach().cpu().double().numpy()
        size = len(self.nodes)
        edges = coo_array((lengths, (u, v)), shape=(size, size)).tocsr()
        shortest: np.ndarray = shortest_path(edges, directed=False)
        return shortest


@dataclass(frozen=True)
class EdgeCurvature:
    """``curvature`` (E) of the edges of ``graph``, in their order."""

    graph: WeightedGraph
    curvature: Tensor

    def by_edge(self) -> dict[tuple[Hashable, Hashable], float]:
        """The curvature of each pair of node labels."""
        nodes = self.graph.nodes
        return {(nodes[u], nodes[v]): k for (u, v), k in zip(self.graph.edges.tolist(), self.curvature.tolist())}


def wasserstein(source: np.ndarray, target: np.ndarray, cost: np.ndarray) -> float:
    """min Σ cost·plan over the plans (A, B) between ``source`` (A) and ``target`` (B), of equal mass, by HiGHS.

    Raises `TransportError`.
    """
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    rows, columns = cost.shape
    # The solver's tolerances are absolute, and lengths have any unit.
    unit = float(cost.max(initial=0.0)) or 1.0
    leaving = kron(eye_array(rows), np.ones((1, columns)))
    arriving = kron(np.ones((1, rows)), eye_array(columns))
    # The last row follows from the others; kept, rounding of the masses can make the programme infeasible.
    rows_of_plan, masses = vstack([leaving, arriving]).tocsr()[:-1], np.concatenate([source, target])[:-1]
    answer = linprog(cost.ravel() / unit, A_eq=rows_of_plan, b_eq=masses, method="highs", options=_SOLVER)
    if not answer.success:
        raise TransportError(f"optimal transport between {rows} and {columns} points failed: {answer.message}")
    return float(answer.fun) * unit


def _step_laws(graph: WeightedGraph, walk: str) -> Iterator[tuple[int, int, dict[int, float], dict[int, float]]]:
    """Each edge's ends, and where a step of the walk from either leads: neighbour ↦ probability."""
    if walk not in WALKS:
        raise GeometryError(f"walk {walk!r} is not one of {', '.join(WALKS)}")
    lengths = graph.weights.detach().cpu().double().tolist()
    laws: list[dict[int, float]] = []
    for around in graph.neighbours():
        shares = {node: 1.0 if walk == "uniform" else 1 / lengths[edge] for node, edge in around.items()}
        whole = sum(shares.values())
        laws.append({node: share / whole for node, share in shares.items()})
    for u, v in graph.edges.tolist():
        yield u, v, laws[u], laws[v]


def _curvatures(graph: WeightedGraph, values: list[float]) -> EdgeCurvature:
    return EdgeCurvature(graph, torch.tensor(values, dtype=graph.weights.dtype, device=graph.weights.device))


def ollivier_ricci(graph: Any, alpha: float = 0.0, *, walk: str = "uniform") -> EdgeCurvature:
    """κ_α(x, y) = 1 − W₁(μ_x, μ_y)/d(x, y) of every edge, with exact W₁.

    μ_x keeps ``alpha`` at x and spreads 1 − α over its neighbours, evenly ("uniform") or by 1/length
    ("inverse-length"); d is the shortest path. ``graph`` as `WeightedGraph.of`. Values carry no gradient: a linear
    programme has none at its kinks. Raises `GraphError`, `TransportError`, and `GeometryError` unless 0 ≤ α < 1.
    """
    if not 0 <= alpha < 1:
        raise GeometryError(
            f"alpha = {alpha}: the mass that stays must be in [0, 1); lin_lu_yau_ricci is the limit at 1"
        )
    graph = WeightedGraph.of(graph)
    distances, values = graph.distances(), []
    for u, v, from_u, from_v in _step_laws(graph, walk):
        excess = {u: alpha, v: -alpha}
        # Mass common to both ends need not move: the cost is a metric.
        for law, sign in ((from_u, 1 - alpha), (from_v, alpha - 1)):
            for node, share in law.items():
                excess[node] = excess.get(node, 0.0) + sign * share
        more = {node: mass for node, mass in excess.items() if mass > 1e-15}
        less = {node: -mass for node, mass in excess.items() if mass < -1e-15}
        moved = 0.0
        if more:
            source, target = np.array(list(more.values())), np.array(list(less.values()))
            cost = distances[np.ix_(list(more), list(less))]
            moved = wasserstein(source, target * (source.sum() / target.sum()), cost)
        values.append(1 - moved / distances[u, v])
    return _curvatures(graph, values)


def lin_lu_yau_ricci(graph: Any, *, walk: str = "uniform") -> EdgeCurvature:
    """lim κ_α/(1 − α) as α → 1 of every edge, exactly.

    Münch and Wojciechowski: the least of (Δf(x) − Δf(y))/d(x, y) over 1-Lipschitz f with f(y) − f(x) = d(x, y), Δ the
    generator of the walk; one linear programme on the neighbours of x and y. Otherwise as `ollivier_ricci`.
    """
    from scipy.optimize import linprog

    graph = WeightedGraph.of(graph)
    distances, values = graph.distances(), []
    for u, v, from_u, from_v in _step_laws(graph, walk):
        nodes = list({u: None, v: None, **dict.fromkeys(from_u), **dict.fromkeys(from_v)})
        place = {node: i for i, node in enumerate(nodes)}
        objective = np.zeros(len(nodes))
        for centre, law, sign in ((u, from_u, 1.0), (v, from_v, -1.0)):
            objective[place[centre]] -= sign
            for node, share in law.items():
                objective[place[node]] += sign * share
        # In units of the edge: the solver's tolerances are absolute, and lengths have any unit.
        near = distances[np.ix_(nodes, nodes)] / distances[u, v]
        first, second = np.nonzero(~np.eye(len(nodes), dtype=bool))
        slopes = np.zeros((len(first), len(nodes)))
        slopes[np.arange(len(first)), first] = 1.0
        slopes[np.arange(len(first)), second] = -1.0
        pinned = np.eye(len(nodes))[:2]
        answer = linprog(
            objective,
            A_ub=slopes,
            b_ub=near[first, second],
            A_eq=pinned,
            b_eq=[0.0, 1.0],
            bounds=(None, None),
            method="highs",
            options=_SOLVER,
        )
        if not answer.success:
            raise TransportError(f"the curvature of the edge {u}–{v} was not found: {answer.message}")
        values.append(float(answer.fun))
    return _curvatures(graph, values)


def forman_ricci(
    graph: Any, *, triangles: bool = False, node_weights: Tensor | None = None, triangle_weight: float = 1.0
) -> EdgeCurvature:
    """Forman's curvature of every edge; with ``triangles``, those of the graph are faces (the augmented curvature).

    F(e) = Σ_f w_e²/w_f + w_u + w_v − Σ |Σ_f w_e √(w_e w_ê)/w_f − w_z √(w_e/w_ê)|, over the faces f at e = uv and the
    edges ê that meet e in a node z; the inner sum has the face, if any, that holds both edges. With unit weights:
    4 − deg u − deg v, and 3 more per triangle at e. ``node_weights`` (V) are ones unless given. Differentiable in the
    weights. Raises `GraphError`.
    """
    graph = WeightedGraph.of(graph)
    nodes = torch.ones(len(graph.nodes)).to(graph.weights) if node_weights is None else node_weights
    if nodes.shape != (len(graph.nodes),) or not triangle_weight > 0:
        raise GraphError(f"{len(graph.nodes)} nodes need as many weights, and triangles a positive one")
    table, weights, values = graph.neighbours(), graph.weights, []
    for index, (u, v) in enumerate(graph.edges.tolist()):
        own = weights[index]
        shared = table[u].keys() & table[v].keys() if triangles else set()
        value = len(shared) * own.square() / triangle_weight + nodes[u] + nodes[v]
        for end, other in ((u, v), (v, u)):
            for node, edge in table[end].items():
                if node != other:
                    through = own * (own * weights[edge]).sqrt() / triangle_weight if node in shared else 0.0
                    value = value - (through - nodes[end] * (own / weights[edge]).sqrt()).abs()
        values.append(value)
    return EdgeCurvature(graph, torch.stack(values) if values else weights)


@dataclass(frozen=True)
class GraphFlow:
    """A flow of edge weights: the last ``graph``, ``weights`` (S + 1, E), and ``curvature`` (S, E) before each step."""

    graph: WeightedGraph
    weights: Tensor
    curvature: Tensor


class GraphRicciFlow:
    """w ← w (1 − ε κ) on the edges of a graph, with its total length kept if ``normalized``.

    ``curvature`` maps a `WeightedGraph` to an `EdgeCurvature`: `lin_lu_yau_ricci` unless given. Edges of positive
    curvature shrink and those of negative curvature, the bridges between communities, grow.
    """

    def __init__(
        self, curvature: Callable[[WeightedGraph], EdgeCurvature] = lin_lu_yau_ricci, *, normalized: bool = True
    ) -> None:
        self.curvature, self.normalized = curvature, normalized

    def flow_step(self, graph: Any, timestep: float) -> tuple[WeightedGraph, EdgeCurvature]:
        """The graph after one step, and the curvature before it.

        Raises `StepSizeError` unless 0 < ε < 1/max κ, beyond which a length would not stay positive.
        """
        graph = WeightedGraph.of(graph)
        before = self.curvature(graph)
        top = float(before.curvature.max()) if before.curvature.numel() else 0.0
        bound = 1 / top if top > 0 else float("inf")
        if not 0 < timestep < bound:
            raise StepSizeError(
                f"graph Ricci flow: the step {timestep:.6g} must be positive and below 1/max κ = {bound:.6g}",
                bound=bound,
            )
        weights = graph.weights * (1 - timestep * before.curvature)
        if self.normalized:
            weights = weights * (graph.weights.sum() / weights.sum())
        return WeightedGraph(graph.nodes, graph.edges, weights), before

    def evolve(
        self, graph: Any, timestep: float, steps: int, progress: Callable[[int, EdgeCurvature], None] | None = None
    ) -> GraphFlow:
        """``steps`` steps of length ``timestep``; ``progress(step, curvature before it)``. Raises `StepSizeError`."""
        check_count(steps, "steps")
        graph = WeightedGraph.of(graph)
        weights, curvatures = [graph.weights], []
        for step in range(1, steps + 1):
            graph, before = self.flow_step(graph, timestep)
            weights.append(graph.weights)
            curvatures.append(before.curvature)
            if progress is not None:
                progress(step, before)
        return GraphFlow(graph, torch.stack(weights), torch.stack(curvatures))
