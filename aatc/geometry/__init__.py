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
        ContinuityError,
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
    from aatc.geometry.geoopt import (
        MissingGeooptError,
        from_geoopt,
        from_geoopt_parameter,
        to_geoopt,
        to_geoopt_parameter,
    )
    from aatc.geometry.manifold import (
        CutLocusError,
        Euclidean,
        GeometryError,
        Manifold,
        NotOnManifoldError,
        PointShapeError,
        RangeError,
    )
    from aatc.geometry.manifolds.attention_geodesic import AttentionGeodesic, AttentionPath
    from aatc.geometry.manifolds.curvature import CurvatureTensor, MetricError
    from aatc.geometry.manifolds.frechet import FrechetMean, MeanError, frechet_mean
    from aatc.geometry.manifolds.grassmann import Grassmann
    from aatc.geometry.manifolds.hyperbolic import Hyperboloid, PoincareBall
    from aatc.geometry.manifolds.log_euclidean import LogEuclideanSPD
    from aatc.geometry.manifolds.means import (
        einstein_midpoint,
        gyromidpoint,
        klein_from_poincare,
        lorentz_centroid,
        poincare_from_klein,
        tangent_mean,
    )
    from aatc.geometry.manifolds.orthogonal import SpecialEuclidean, SpecialOrthogonal
    from aatc.geometry.manifolds.path_optimization import OptimalPath, PathOptimization
    from aatc.geometry.manifolds.product import Product
    from aatc.geometry.manifolds.quantum_geometry import (
        berry_curvature,
        fubini_study_metric,
        quantum_geometric_tensor,
    )
    from aatc.geometry.manifolds.riemannian import BoundaryGeodesic, ChartError, Geodesic, RiemannianStructure
    from aatc.geometry.manifolds.sampled_curve import curve_length, transport_along
    from aatc.geometry.manifolds.simplex import Simplex
    from aatc.geometry.manifolds.spd import SPD
    from aatc.geometry.manifolds.sphere import Sphere
    from aatc.geometry.manifolds.stereographic import Stereographic
    from aatc.geometry.manifolds.stiefel import Stiefel
    from aatc.geometry.manifolds.wrapped_normal import WrappedNormal

# The module that each public name lies in.
_FROM = {
    "AmplitudeBound": "dynamics.pattern_control",
    "AttentionFlow": "flows.attention_flow",
    "AttentionGeodesic": "manifolds.attention_geodesic",
    "AttentionPath": "manifolds.attention_geodesic",
    "AttentionTrajectory": "flows.attention_flow",
    "BifurcationDiagram": "dynamics.bifurcation",
    "BifurcationPoint": "dynamics.bifurcation",
    "BlowUpError": "dynamics.reaction_diffusion",
    "BoundaryGeodesic": "manifolds.riemannian",
    "Branch": "dynamics.bifurcation",
    "BundleError": "bundles.coordinate_bundle",
    "Chart": "bundles.bundle_charts",
    "ChartError": "manifolds.riemannian",
    "CocycleError": "bundles.coordinate_bundle",
    "ConformalFlow": "flows.conformal_flow",
    "ConformalTrajectory": "flows.conformal_flow",
    "ContinuationError": "dynamics.continuation",
    "ContinuityError": "bundles.coordinate_bundle",
    "ControlError": "dynamics.pattern_control",
    "ControlSignal": "dynamics.pattern_control",
    "CoordinateBundle": "bundles.coordinate_bundle",
    "CurvatureTensor": "manifolds.curvature",
    "CutLocusError": "errors",
    "DegenerateMetricError": "flows.grid_metric",
    "EdgeCurvature": "flows.graph_curvature",
    "EnergyBudget": "dynamics.pattern_control",
    "Euclidean": "manifold",
    "FiberBundle": "bundles.bundle",
    "FitzHughNagumo": "dynamics.reaction_terms",
    "FlowMetrics": "flows.flow_trajectory",
    "FlowTrajectory": "flows.flow_trajectory",
    "FrechetMean": "manifolds.frechet",
    "GaugeError": "bundles.bundle",
    "Geodesic": "manifolds.riemannian",
    "GeometricFlow": "flows.ricci_flow",
    "GeometryError": "errors",
    "GiererMeinhardt": "dynamics.reaction_terms",
    "GraphFlow": "flows.graph_curvature",
    "GraphRicciFlow": "flows.graph_curvature",
    "Grassmann": "manifolds.grassmann",
    "GrayScott": "dynamics.reaction_terms",
    "Grid": "dynamics.reaction_diffusion",
    "HamiltonianError": "dynamics.symplectic",
    "HamiltonianSystem": "dynamics.hamiltonian",
    "HolonomyError": "bundles.tile_frames",
    "Hyperboloid": "manifolds.hyperbolic",
    "InvariantFamily": "flows.invariant_family",
    "LocalTrivialization": "bundles.coordinate_bundle",
    "LogEuclideanSPD": "manifolds.log_euclidean",
    "LoopError": "bundles.connection",
    "Manifold": "manifold",
    "MeanError": "manifolds.frechet",
    "MetricError": "manifolds.curvature",
    "MetricGrid": "flows.grid_metric",
    "MissingGeooptError": "geoopt",
    "NotInvariantError": "flows.invariant_family",
    "NotOnManifoldError": "errors",
    "NotSteadyError": "dynamics.pattern_stability",
    "NotStochasticError": "flows.attention_flow",
    "NotTangentError": "bundles.tile_transport",
    "OptimalPath": "manifolds.path_optimization",
    "PathError": "bundles.connection",
    "PathOptimization": "manifolds.path_optimization",
    "PatternDynamics": "dynamics.pattern_dynamics",
    "PatternError": "dynamics.reaction_diffusion",
    "PoincareBall": "manifolds.hyperbolic",
    "PointShapeError": "errors",
    "Product": "manifolds.product",
    "RangeError": "errors",
    "ReactionDiffusion": "dynamics.reaction_diffusion",
    "RiemannianStructure": "manifolds.riemannian",
    "SPD": "manifolds.spd",
    "Schnakenberg": "dynamics.reaction_terms",
    "Simplex": "manifolds.simplex",
    "Singularity": "flows.flow_trajectory",
    "SpecialEuclidean": "manifolds.orthogonal",
    "SpecialOrthogonal": "manifolds.orthogonal",
    "Sphere": "manifolds.sphere",
    "StabilityMetrics": "dynamics.pattern_stability",
    "StepSizeError": "flows.ricci_flow",
    "Stiefel": "manifolds.stiefel",
    "Stereographic": "manifolds.stereographic",
    "TerminalTolerance": "dynamics.pattern_control",
    "TileError": "bundles.tile_transport",
    "TileFrames": "bundles.tile_frames",
    "TileTransport": "bundles.tile_transport",
    "TransitionMap": "bundles.coordinate_bundle",
    "TuringConditions": "dynamics.pattern_stability",
    "WeightedGraph": "flows.graph_curvature",
    "berry_curvature": "manifolds.quantum_geometry",
    "WrappedNormal": "manifolds.wrapped_normal",
    "bifurcation_diagram": "dynamics.bifurcation",
    "chart_ricci": "flows.invariant_family",
    "connection_laplacian": "flows.diffusion",
    "curve_length": "manifolds.sampled_curve",
    "diffusion_step_bound": "flows.diffusion",
    "dirichlet_energy": "flows.diffusion",
    "dispersion_relation": "dynamics.pattern_stability",
    "einstein_midpoint": "manifolds.means",
    "forman_ricci": "flows.graph_curvature",
    "frechet_mean": "manifolds.frechet",
    "fubini_study_metric": "manifolds.quantum_geometry",
    "from_geoopt": "geoopt",
    "from_geoopt_parameter": "geoopt",
    "gyromidpoint": "manifolds.means",
    "holonomy_of_polygon": "bundles.bundle",
    "klein_from_poincare": "manifolds.means",
    "laplace_beltrami": "flows.diffusion",
    "left_invariant_s3": "flows.invariant_family",
    "lin_lu_yau_ricci": "flows.graph_curvature",
    "lorentz_centroid": "manifolds.means",
    "mass": "flows.diffusion",
    "ollivier_ricci": "flows.graph_curvature",
    "optimal_control": "dynamics.pattern_control",
    "poincare_from_klein": "manifolds.means",
    "pole_ladder": "bundles.tile_transport",
    "quantum_geometric_tensor": "manifolds.quantum_geometry",
    "reversed_path": "bundles.connection",
    "round_sphere": "flows.invariant_family",
    "runge_kutta_flow": "dynamics.pattern_control",
    "sphere_product": "flows.invariant_family",
    "stereographic_charts": "bundles.bundle_charts",
    "tangent_mean": "manifolds.means",
    "tile_frames": "bundles.tile_frames",
    "to_geoopt": "geoopt",
    "to_geoopt_parameter": "geoopt",
    "transport_along": "manifolds.sampled_curve",
    "turing_conditions": "dynamics.pattern_stability",
    "vector_laplacian": "flows.diffusion",
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
    "ContinuityError",
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
    "FrechetMean",
    "GaugeError",
    "Geodesic",
    "GeometricFlow",
    "GeometryError",
    "GiererMeinhardt",
    "GraphFlow",
    "GraphRicciFlow",
    "Grassmann",
    "GrayScott",
    "Grid",
    "HamiltonianError",
    "HamiltonianSystem",
    "HolonomyError",
    "Hyperboloid",
    "InvariantFamily",
    "LocalTrivialization",
    "LogEuclideanSPD",
    "LoopError",
    "Manifold",
    "MeanError",
    "MetricError",
    "MetricGrid",
    "MissingGeooptError",
    "NotInvariantError",
    "NotOnManifoldError",
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
    "RangeError",
    "ReactionDiffusion",
    "RiemannianStructure",
    "Schnakenberg",
    "Simplex",
    "Singularity",
    "SpecialEuclidean",
    "SpecialOrthogonal",
    "Sphere",
    "StabilityMetrics",
    "StepSizeError",
    "Stereographic",
    "Stiefel",
    "TerminalTolerance",
    "TileError",
    "TileFrames",
    "TileTransport",
    "TransitionMap",
    "TuringConditions",
    "WeightedGraph",
    "WrappedNormal",
    "berry_curvature",
    "bifurcation_diagram",
    "chart_ricci",
    "connection_laplacian",
    "curve_length",
    "diffusion_step_bound",
    "dirichlet_energy",
    "dispersion_relation",
    "einstein_midpoint",
    "forman_ricci",
    "frechet_mean",
    "from_geoopt",
    "from_geoopt_parameter",
    "fubini_study_metric",
    "gyromidpoint",
    "holonomy_of_polygon",
    "klein_from_poincare",
    "laplace_beltrami",
    "left_invariant_s3",
    "lin_lu_yau_ricci",
    "lorentz_centroid",
    "mass",
    "ollivier_ricci",
    "optimal_control",
    "poincare_from_klein",
    "pole_ladder",
    "quantum_geometric_tensor",
    "reversed_path",
    "round_sphere",
    "runge_kutta_flow",
    "sphere_product",
    "stereographic_charts",
    "tangent_mean",
    "tile_frames",
    "to_geoopt",
    "to_geoopt_parameter",
    "transport_along",
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
