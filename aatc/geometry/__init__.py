"""Geometry, flows and dynamics in torch: batched, differentiable, following the device and dtype of their input.

Manifolds in closed form; `RiemannianStructure` for any metric given as a function; bundles, connections and their
holonomy; geodesics and flows of attention; Ricci flow on grids and graphs; Hamiltonian systems; reaction and diffusion
with bifurcations and control. Names are loaded when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aatc.geometry.bundles.bundle import FiberBundle, GaugeError, holonomy_of_polygon
    from aatc.geometry.bundles.bundle_charts import Chart, stereographic_charts
    from aatc.geometry.bundles.connection import LoopError, PathError, reversed_path
    from aatc.geometry.bundles.coordinate_bundle import (
        BundleError,
        CocycleError,
        CoordinateBundle,
        LocalTrivialization,
        TransitionMap,
    )
    from aatc.geometry.bundles.tile_frames import HolonomyError, TileFrames, tile_frames
    from aatc.geometry.bundles.tile_transport import NotTangentError, TileError, TileTransport, pole_ladder
    from aatc.geometry.dynamics.bifurcation import BifurcationDiagram, BifurcationPoint, Branch, bifurcation_diagram
    from aatc.geometry.dynamics.continuation import ContinuationError
    from aatc.geometry.dynamics.hamiltonian import HamiltonianSystem
    from aatc.geometry.dynamics.pattern_control import (
        AmplitudeBound,
        ControlError,
        ControlSignal,
        EnergyBudget,
        TerminalTolerance,
        optimal_control,
        runge_kutta_flow,
    )
    from aatc.geometry.dynamics.pattern_dynamics import PatternDynamics
    from aatc.geometry.dynamics.pattern_stability import (
        NotSteadyError,
        StabilityMetrics,
        TuringConditions,
        dispersion_relation,
        turing_conditions,
    )
    from aatc.geometry.dynamics.reaction_diffusion import BlowUpError, Grid, PatternError, ReactionDiffusion
    from aatc.geometry.dynamics.reaction_terms import FitzHughNagumo, GiererMeinhardt, GrayScott, Schnakenberg
    from aatc.geometry.dynamics.symplectic import HamiltonianError
    from aatc.geometry.flows.attention_flow import AttentionFlow, AttentionTrajectory, NotStochasticError
    from aatc.geometry.flows.conformal_flow import ConformalFlow, ConformalTrajectory
    from aatc.geometry.flows.diffusion import (
        connection_laplacian,
        diffusion_step_bound,
        dirichlet_energy,
        laplace_beltrami,
        mass,
        vector_laplacian,
    )
    from aatc.geometry.flows.flow_trajectory import FlowMetrics, FlowTrajectory, Singularity
    from aatc.geometry.flows.graph_curvature import (
        EdgeCurvature,
        GraphFlow,
        GraphRicciFlow,
        WeightedGraph,
        forman_ricci,
        lin_lu_yau_ricci,
        ollivier_ricci,
    )
    from aatc.geometry.flows.grid_metric import DegenerateMetricError, MetricGrid
    from aatc.geometry.flows.invariant_family import (
        InvariantFamily,
        NotInvariantError,
        chart_ricci,
        left_invariant_s3,
        round_sphere,
        sphere_product,
    )
    from aatc.geometry.flows.ricci_flow import GeometricFlow, StepSizeError
    from aatc.geometry.manifold import CutLocusError, Euclidean, GeometryError, Manifold, PointShapeError
    from aatc.geometry.manifolds.attention_geodesic import AttentionGeodesic, AttentionPath
    from aatc.geometry.manifolds.curvature import CurvatureTensor, MetricError
    from aatc.geometry.manifolds.hyperbolic import Hyperboloid, PoincareBall
    from aatc.geometry.manifolds.path_optimization import OptimalPath, PathOptimization
    from aatc.geometry.manifolds.product import Product
    from aatc.geometry.manifolds.riemannian import BoundaryGeodesic, ChartError, Geodesic, RiemannianStructure
    from aatc.geometry.manifolds.simplex import Simplex
    from aatc.geometry.manifolds.spd import SPD
    from aatc.geometry.manifolds.sphere import Sphere

# The module that each public name lies in.
_FROM = {
    "AmplitudeBound": "pattern_control",
    "AttentionFlow": "attention_flow",
    "AttentionGeodesic": "attention_geodesic",
    "AttentionPath": "attention_geodesic",
    "AttentionTrajectory": "attention_flow",
    "BifurcationDiagram": "bifurcation",
    "BifurcationPoint": "bifurcation",
    "BlowUpError": "reaction_diffusion",
    "BoundaryGeodesic": "riemannian",
    "Branch": "bifurcation",
    "BundleError": "coordinate_bundle",
    "Chart": "bundle_charts",
    "ChartError": "riemannian",
    "CocycleError": "coordinate_bundle",
    "ConformalFlow": "conformal_flow",
    "ConformalTrajectory": "conformal_flow",
    "ContinuationError": "continuation",
    "ControlError": "pattern_control",
    "ControlSignal": "pattern_control",
    "CoordinateBundle": "coordinate_bundle",
    "CurvatureTensor": "curvature",
    "CutLocusError": "manifold",
    "DegenerateMetricError": "grid_metric",
    "EdgeCurvature": "graph_curvature",
    "EnergyBudget": "pattern_control",
    "Euclidean": "manifold",
    "FiberBundle": "bundle",
    "FitzHughNagumo": "reaction_terms",
    "FlowMetrics": "flow_trajectory",
    "FlowTrajectory": "flow_trajectory",
    "GaugeError": "bundle",
    "Geodesic": "riemannian",
    "GeometricFlow": "ricci_flow",
    "GeometryError": "manifold",
    "GiererMeinhardt": "reaction_terms",
    "GraphFlow": "graph_curvature",
    "GraphRicciFlow": "graph_curvature",
    "GrayScott": "reaction_terms",
    "Grid": "reaction_diffusion",
    "HamiltonianError": "symplectic",
    "HamiltonianSystem": "hamiltonian",
    "HolonomyError": "tile_frames",
    "Hyperboloid": "hyperbolic",
    "InvariantFamily": "invariant_family",
    "LocalTrivialization": "coordinate_bundle",
    "LoopError": "connection",
    "Manifold": "manifold",
    "MetricError": "curvature",
    "MetricGrid": "grid_metric",
    "NotInvariantError": "invariant_family",
    "NotSteadyError": "pattern_stability",
    "NotStochasticError": "attention_flow",
    "NotTangentError": "tile_transport",
    "OptimalPath": "path_optimization",
    "PathError": "connection",
    "PathOptimization": "path_optimization",
    "PatternDynamics": "pattern_dynamics",
    "PatternError": "reaction_diffusion",
    "PoincareBall": "hyperbolic",
    "PointShapeError": "manifold",
    "Product": "product",
    "ReactionDiffusion": "reaction_diffusion",
    "RiemannianStructure": "riemannian",
    "SPD": "spd",
    "Schnakenberg": "reaction_terms",
    "Simplex": "simplex",
    "Singularity": "flow_trajectory",
    "Sphere": "sphere",
    "StabilityMetrics": "pattern_stability",
    "StepSizeError": "ricci_flow",
    "TerminalTolerance": "pattern_control",
    "TileError": "tile_transport",
    "TileFrames": "tile_frames",
    "TileTransport": "tile_transport",
    "TransitionMap": "coordinate_bundle",
    "TuringConditions": "pattern_stability",
    "WeightedGraph": "graph_curvature",
    "bifurcation_diagram": "bifurcation",
    "chart_ricci": "invariant_family",
    "connection_laplacian": "diffusion",
    "diffusion_step_bound": "diffusion",
    "dirichlet_energy": "diffusion",
    "dispersion_relation": "pattern_stability",
    "forman_ricci": "graph_curvature",
    "holonomy_of_polygon": "bundle",
    "laplace_beltrami": "diffusion",
    "left_invariant_s3": "invariant_family",
    "lin_lu_yau_ricci": "graph_curvature",
    "mass": "diffusion",
    "ollivier_ricci": "graph_curvature",
    "optimal_control": "pattern_control",
    "pole_ladder": "tile_transport",
    "reversed_path": "connection",
    "round_sphere": "invariant_family",
    "runge_kutta_flow": "pattern_control",
    "sphere_product": "invariant_family",
    "stereographic_charts": "bundle_charts",
    "tile_frames": "tile_frames",
    "turing_conditions": "pattern_stability",
    "vector_laplacian": "diffusion",
}

__all__ = [
    "SPD",
    "AmplitudeBound",
    "AttentionFlow",
    "AttentionGeodesic",
    "AttentionPath",
    "AttentionTrajectory",
    "BifurcationDiagram",
    "BifurcationPoint",
    "BlowUpError",
    "BoundaryGeodesic",
    "Branch",
    "BundleError",
    "Chart",
    "ChartError",
    "CocycleError",
    "ConformalFlow",
    "ConformalTrajectory",
    "ContinuationError",
    "ControlError",
    "ControlSignal",
    "CoordinateBundle",
    "CurvatureTensor",
    "CutLocusError",
    "DegenerateMetricError",
    "EdgeCurvature",
    "EnergyBudget",
    "Euclidean",
    "FiberBundle",
    "FitzHughNagumo",
    "FlowMetrics",
    "FlowTrajectory",
    "GaugeError",
    "Geodesic",
    "GeometricFlow",
    "GeometryError",
    "GiererMeinhardt",
    "GraphFlow",
    "GraphRicciFlow",
    "GrayScott",
    "Grid",
    "HamiltonianError",
    "HamiltonianSystem",
    "HolonomyError",
    "Hyperboloid",
    "InvariantFamily",
    "LocalTrivialization",
    "LoopError",
    "Manifold",
    "MetricError",
    "MetricGrid",
    "NotInvariantError",
    "NotSteadyError",
    "NotStochasticError",
    "NotTangentError",
    "OptimalPath",
    "PathError",
    "PathOptimization",
    "PatternDynamics",
    "PatternError",
    "PoincareBall",
    "PointShapeError",
    "Product",
    "ReactionDiffusion",
    "RiemannianStructure",
    "Schnakenberg",
    "Simplex",
    "Singularity",
    "Sphere",
    "StabilityMetrics",
    "StepSizeError",
    "TerminalTolerance",
    "TileError",
    "TileFrames",
    "TileTransport",
    "TransitionMap",
    "TuringConditions",
    "WeightedGraph",
    "bifurcation_diagram",
    "chart_ricci",
    "connection_laplacian",
    "diffusion_step_bound",
    "dirichlet_energy",
    "dispersion_relation",
    "forman_ricci",
    "holonomy_of_polygon",
    "laplace_beltrami",
    "left_invariant_s3",
    "lin_lu_yau_ricci",
    "mass",
    "ollivier_ricci",
    "optimal_control",
    "pole_ladder",
    "reversed_path",
    "round_sphere",
    "runge_kutta_flow",
    "sphere_product",
    "stereographic_charts",
    "tile_frames",
    "turing_conditions",
    "vector_laplacian",
]


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module 'aatc.geometry' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"aatc.geometry.{_FROM[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
