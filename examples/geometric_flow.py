"""Ricci curvature and Ricci flow: of a graph of handwritten digits, of a round sphere, of a bumpy torus.

Digits are joined to their nearest neighbours. Edges between digits of different kinds are bridges, of lower curvature;
the flow lengthens them, and cutting the longest leaves clusters. A round sphere shrinks to a point in a time known in
closed form; a torus becomes flat. Pictures are written to a folder.

    python examples/geometric_flow.py --output pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path

import networkx as nx
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from aatc.geometry.flows.conformal_flow import ConformalFlow
from aatc.geometry.flows.graph_curvature import (
    GraphRicciFlow,
    WeightedGraph,
    forman_ricci,
    lin_lu_yau_ricci,
    ollivier_ricci,
)
from aatc.geometry.flows.invariant_family import InvariantFamily, round_sphere
from aatc.geometry.flows.ricci_flow import GeometricFlow
from aatc.report import curvature_graph_figure, flow_figure

KINDS, NEIGHBOURS = (3, 5, 8, 9), 5


def neighbour_graph(each: int) -> tuple[nx.Graph, Tensor]:
    """The graph of nearest neighbours of ``each`` digits of four kinds, with lengths 1, and the labels."""
    from sklearn.datasets import load_digits
    from sklearn.neighbors import kneighbors_graph

    digits = load_digits()
    chosen = torch.cat([torch.tensor((digits.target == kind).nonzero()[0][:each]) for kind in KINDS])
    near = kneighbors_graph(digits.data[chosen.numpy()], NEIGHBOURS)
    return nx.from_scipy_sparse_array(((near + near.T) > 0).astype(float)), torch.tensor(digits.target)[chosen]


def bridges(graph: WeightedGraph, labels: Tensor) -> Tensor:
    """Which edges join digits of two kinds, bool (E)."""
    ends = labels[graph.edges]
    return ends[:, 0] != ends[:, 1]


def purity(graph: WeightedGraph, weights: Tensor, labels: Tensor, cut: float) -> tuple[int, float]:
    """The clusters of more than two digits once edges longer than ``cut`` times the mean are gone, and the share of
    all digits whose cluster is mostly of their own kind."""
    kept = graph.edges[weights <= cut * weights.mean()]
    pieces = nx.Graph()
    pieces.add_nodes_from(range(len(graph.nodes)))
    pieces.add_edges_from(kept.tolist())
    clusters = [labels[sorted(piece)] for piece in nx.connected_components(pieces)]
    right = sum(int((piece == piece.mode().values).sum()) for piece in clusters if len(piece) > 2)
    return sum(len(piece) > 2 for piece in clusters), right / len(labels)


def graph_part(each: int, steps: int, console: Console, output: Path) -> None:
    network, labels = neighbour_graph(each)
    graph = WeightedGraph.of(network)
    between = bridges(graph, labels)
    table = Table(title=f"{len(labels)} digits, {len(graph.edges)} edges to neighbours, {int(between.sum())} bridges")
    for column in ("curvature", "within a kind", "bridges", "bridge below within (AUC)"):
        table.add_column(column)
    found = {
        "Ollivier, α = ½": ollivier_ricci(graph, 0.5),
        "Lin–Lu–Yau": lin_lu_yau_ricci(graph),
        "Forman, with triangles": forman_ricci(graph, triangles=True),
    }
    for name, answer in found.items():
        inside, across = answer.curvature[~between], answer.curvature[between]
        order = across[:, None] - inside[None]
        area = ((order < 0).double() + 0.5 * (order == 0).double()).mean().item()
        table.add_row(name, f"{inside.mean().item():+.3f}", f"{across.mean().item():+.3f}", f"{area:.3f}")
    console.print(table)

    flow = GraphRicciFlow().evolve(graph, 0.3, steps)
    table = Table(title=f"{steps} steps of Ricci flow of the edge lengths")
    for column in ("", "within a kind", "bridges", "clusters", "digits in a cluster of their kind"):
        table.add_column(column)
    for name, weights in (("before", flow.weights[0]), ("after", flow.weights[-1])):
        count, share = purity(graph, weights, labels, 2.0)
        lengths = (weights[~between].mean().item(), weights[between].mean().item())
        table.add_row(name, *[f"{x:.3f}" for x in lengths], str(count), f"{share:.0%}")
    console.print(table)
    console.print("The flow lengthens edges of negative curvature; clusters are cut where one is twice the mean.")
    layout = nx.spring_layout(network, seed=0)
    places = torch.tensor([layout[node].tolist() for node in graph.nodes], dtype=torch.float64)
    picture = curvature_graph_figure(found["Lin–Lu–Yau"], places, groups=labels, title="neighbouring digits")
    picture.savefig(output / "digit_graph_curvature.png", dpi=130)


def sphere_part(steps: int, console: Console, output: Path) -> None:
    points = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.2, -0.1], [1.0, -0.7, 0.3]], dtype=torch.float64)
    family = InvariantFamily(round_sphere, points)
    flow = GeometricFlow(ricci=family)
    end, exact = 0.2, 0.25  # g(t) = (1 − 4t) g(0) on the 3-sphere
    trajectory = flow.evolve(family.metric(torch.ones(1, dtype=torch.float64)), end, steps)
    scale = family.coefficients(trajectory.final).item()
    (singular,) = flow.detect_singularities(trajectory, threshold=5.0)
    table = Table(title="Ricci flow of the round 3-sphere")
    for column in ("", "found", "exact", "difference"):
        table.add_column(column)
    table.add_row(f"metric at t = {end}", f"{scale:.9f}", f"{1 - 4 * end:.9f}", f"{scale - 1 + 4 * end:+.1e}")
    table.add_row(f"{singular.kind} at", f"{singular.time:.9f}", f"{exact:.9f}", f"{singular.time - exact:+.1e}")
    console.print(table)
    picture = flow_figure(trajectory, singular=[singular], title="a round 3-sphere shrinks to a point")
    picture.savefig(output / "sphere_extinction.png", dpi=130)


def torus_part(size: int, console: Console, output: Path) -> None:
    side = torch.arange(size, dtype=torch.float64) * (2 * torch.pi / size)
    x, y = torch.meshgrid(side, side, indexing="ij")
    u = 0.35 * x.sin() * y.cos() + 0.15 * (2 * x + y).cos()
    flow = ConformalFlow((2 * torch.pi, 2 * torch.pi))
    end = 2.0
    steps = int(1.05 * end / flow.step_bound(u - 0.1)) + 1
    trajectory = flow.evolve(u, end, steps, every=max(steps // 40, 1))
    table = Table(title=f"Ricci flow of a bumpy torus, {size}×{size} samples, {steps} steps")
    for column in ("t", "area", "∫K dA", "largest |K|"):
        table.add_column(column)
    for index in (0, len(trajectory.times) // 4, len(trajectory.times) - 1):
        most = torch.maximum(-trajectory.min_curvature[index], trajectory.max_curvature[index]).item()
        table.add_row(
            f"{trajectory.times[index].item():.2f}",
            f"{trajectory.areas[index].item():.9f}",
            f"{trajectory.total_curvature[index].item():+.1e}",
            f"{most:.2e}",
        )
    console.print(table)
    console.print("A torus has total curvature 0 (Gauss–Bonnet), so its area stays and its curvature dies out.")
    flow_figure(trajectory, title="a bumpy torus becomes flat").savefig(output / "torus_flow.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("pictures"), help="the folder for pictures")
    parser.add_argument("--quick", action="store_true", help="fewer digits and steps, for a first look")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    graph_part(10 if options.quick else 25, 2 if options.quick else 12, console, options.output)
    sphere_part(40 if options.quick else 100, console, options.output)
    torus_part(16 if options.quick else 48, console, options.output)
    console.print(f"pictures: {', '.join(sorted(p.name for p in options.output.glob('*.png')))} in {options.output}")


if __name__ == "__main__":
    main()
