"""Attention fields that evolve by the heat flow of a geometry: scalars, vectors, and rows of probabilities.

Sources: Eells, Sampson, Harmonic mappings of Riemannian manifolds, Amer. J. Math. 86 (1964) 109; Sochen, Kimmel,
Malladi, A general framework for low level vision, IEEE Trans. Image Process. 7 (1998) 310, for the induced metric.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.flows.diffusion import (
    connection_laplacian,
    degrees,
    diffusion_step_bound,
    dirichlet_energy,
    edge_steps,
    grid_conductances,
    laplace_beltrami,
    vector_laplacian,
)
from aatc.geometry.flows.grid_metric import LARGEST_SECOND_DIFFERENCE, MetricGrid, check_positive
from aatc.geometry.flows.ricci_flow import check_count, check_step
from aatc.geometry.manifold import GeometryError, PointShapeError, safe_sqrt

KINDS = ("simplex", "scalar", "vector")


class NotStochasticError(GeometryError):
    """Rows that are not probabilities."""


@dataclass(frozen=True)
class AttentionTrajectory:
    """An attention field in time: ``times`` (S) and ``fields`` (S, ...) of the kept states, ``energies`` (steps + 1,
    ...) after every step."""

    times: Tensor
    fields: Tensor
    energies: Tensor

    @property
    def final(self) -> Tensor:
        """The last field."""
        return self.fields[-1]


@dataclass(frozen=True)
class _Operator:
    """One kind of flow on one geometry: a step, the energy it lowers, and the largest step."""

    advance: Callable[[Tensor, float], Tensor]
    energy: Callable[[Tensor], Tensor]
    bound: float


class AttentionFlow:
    """Heat flow of attention fields on a grid of tokens, or on a graph of them.

    ``kind`` says what the values are. "scalar", (..., N1, ..., Nd): ∂_tA = ΔA, Laplace–Beltrami in conservative form.
    "vector", (..., N1, ..., Nd, d) on a periodic grid or (..., V, k) on a graph: ∂_tA^k = g^{ij}∇_i∇_jA^k.
    "simplex", (..., N1, ..., Nd, m) or (..., V, m), rows p of probabilities: the harmonic map heat flow of √p, a point
    of the unit sphere; each step averages √p with its neighbours' and returns to the sphere, so rows stay positive,
    sum to one, and the energy ½Σ w |√p_i − √p_j|² never rises.

    The grid has ``spacing`` and ``periodic`` as `MetricGrid`, open axes reflect. Its metric is the ``metric`` given,
    a tensor that broadcasts to (..., N1, ..., Nd, d, d) or a callable of the field, or δ_ij + ``coupling`` ∂_iA·∂_jA,
    which the field induces (for rows, with 2√p, so that the added part is ``coupling`` times Fisher–Rao's). A graph has
    ``edges`` (E, 2), conductances ``weights`` (E), ones unless given, and for vectors orthogonal ``transports``
    (E, k, k), which carry vectors at the second node of an edge to the first.

    The seed's names are kept. Its equation, ∂_tA^k = −g^{ij}(∂_i∂_jA^k + Γ^k_ij ∂_lA^l), runs heat backwards, which is
    ill-posed, and its index l is summed with nothing; the equations here have the sign and the contraction of the
    Laplacian. The metric is computed once per call of `evolve_attention`, from its argument.
    """

    def __init__(
        self,
        kind: str = "simplex",
        *,
        spacing: tuple[float, ...] = (1.0,),
        periodic: tuple[bool, ...] | bool = False,
        metric: Tensor | Callable[[Tensor], Tensor] | None = None,
        coupling: float = 0.0,
        edges: Tensor | None = None,
        weights: Tensor | None = None,
        transports: Tensor | None = None,
    ) -> None:
        if kind not in KINDS:
            raise GeometryError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        if not coupling >= 0 or (coupling > 0 and metric is not None):
            raise GeometryError(f"coupling = {coupling} must be ≥ 0, and is for the metric that the field induces")
        if edges is None and (weights is not None or transports is not None):
            raise GeometryError("weights and transports belong to the edges of a graph: give edges")
        self.kind, self.grid, self.coupling, self.metric = kind, MetricGrid(spacing, periodic), coupling, metric
        self.edges, self.transports, self.weights = edges, transports, weights
        if edges is not None:
            self._check_graph(edges, weights, transports)
        elif kind == "vector" and not self.grid.is_closed:
            raise GeometryError("vector fields flow on periodic grids or on graphs: set periodic=True, or give edges")

    def compute_metric(self, field: Tensor) -> Tensor:
        """The metric (..., N1, ..., Nd, d, d) the field evolves in; on a graph, its conductances (E).

        Raises `PointShapeError`.
        """
        if self.edges is not None:
            if self.weights is not None:
                return self.weights.to(field)
            return torch.ones(self.edges.shape[0], dtype=field.dtype, device=field.device)
        sizes = self._sizes(field)
        d = self.grid.dim
        if callable(self.metric):
            return self._fitted(self.metric(field), sizes)
        eye = torch.eye(d, dtype=field.dtype, device=field.device)
        if self.metric is not None:
            return self._fitted(self.metric.to(field), sizes)
        flat = eye.expand(*sizes, d, d)
        if self.coupling == 0:
            return flat
        if self.kind == "scalar":
            values = field.unsqueeze(-1)
        else:
            values = 2 * safe_sqrt(field) if self.kind == "simplex" else field
        slopes = torch.stack([self._slope(values, i) for i in range(d)], -2)
        return flat + self.coupling * torch.einsum("...ik,...jk->...ij", slopes, slopes)

    def step_bound(self, field: Tensor, metric: Tensor | None = None) -> float:
        """The largest explicit step.

        "scalar": `diffusion_step_bound`, h²/(2 d λ_max(g⁻¹)) on an even grid. "simplex": min √g_i/(2 Σ_j w_ij), half of
        that, for which the energy provably falls at every step whatever the field. "vector": 3/(8 λ_max Σ 1/h²) for the
        fourth-order stencil, and 1/max Σ_j w_ij on a graph.
        """
        return self._operator(field, self.compute_metric(field) if metric is None else metric).bound

    def evolve_attention(
        self, attention_field: Tensor, time: float, steps: int, *, every: int | None = None
    ) -> AttentionTrajectory:
        """The flow of a field in the metric of `compute_metric`: see `integrate_flow`."""
        metric = self.compute_metric(attention_field)
        return self.integrate_flow(attention_field, metric, time, steps, every=every)

    def integrate_flow(
        self, attention_field: Tensor, metric: Tensor, time: float, steps: int, *, every: int | None = None
    ) -> AttentionTrajectory:
        """The field at ``time``, in ``steps`` explicit steps; kept are the first, the last, and each ``every``-th.

        Differentiable in the field and the metric. Raises `StepSizeError` beyond `step_bound`, `PointShapeError`,
        `NotStochasticError` for rows that are not probabilities, `DegenerateMetricError`, and `GeometryError` for a
        field that is not finite.
        """
        check_count(steps, "steps")
        check_count(steps if every is None else every, "every")
        operator = self._operator(attention_field, metric)
        timestep = time / steps
        check_step(timestep, operator.bound, f"attention flow of a {self.kind} field")
        state = self._rooted(attention_field)
        if not bool(state.isfinite().all()):
            raise GeometryError(f"the {self.kind} field is not finite")
        kept, times, energies = [attention_field], [0.0], [operator.energy(state)]
        for step in range(1, steps + 1):
            state = operator.advance(state, timestep)
            energies.append(operator.energy(state))
            if step == steps or (every is not None and step % every == 0):
                kept.append(self._unrooted(state, attention_field))
                times.append(step * timestep)
        kept = list(torch.broadcast_tensors(*kept))
        moments = torch.tensor(times, dtype=state.dtype, device=state.device)
        return AttentionTrajectory(moments, torch.stack(kept), torch.stack(torch.broadcast_tensors(*energies)))

    def _operator(self, field: Tensor, metric: Tensor) -> _Operator:
        if self.edges is None:
            self._check_metric(field, metric)
        if self.kind == "scalar" and self.edges is None:
            return _Operator(
                lambda a, dt: a + dt * laplace_beltrami(a, metric, self.grid),
                lambda a: dirichlet_energy(a, metric, self.grid),
                diffusion_step_bound(metric, self.grid),
            )
        if self.kind == "vector" and self.edges is None:
            return self._vectors_on_grid(field, metric)
        if self.edges is not None:
            edges, weights, cell = self.edges, metric, 1.0
            nodes = self._check_nodes(field, weights)
            masses = torch.ones(nodes, dtype=field.dtype, device=field.device)
        else:
            edges, weights, masses = grid_conductances(metric, self.grid)
            cell = math.prod(self.grid.spacing)
        return self._on_edges(edges, weights, masses, cell)

    def _on_edges(self, edges: Tensor, weights: Tensor, masses: Tensor, cell: float) -> _Operator:
        transports = None if self.transports is None else self.transports.to(weights)
        degree = degrees(edges, weights.detach(), masses.shape[-1])
        stiffest = float((degree / masses.detach()).max()) if edges.numel() else 0.0
        bound = 1 / stiffest if stiffest > 0 else float("inf")

        def advance(a: Tensor, dt: float) -> Tensor:
            a = a.unsqueeze(-1) if self.kind == "scalar" else a
            a = a + dt * connection_laplacian(a, edges, weights, transports) / masses.unsqueeze(-1)
            if self.kind == "simplex":
                a = a / torch.linalg.vector_norm(a, dim=-1, keepdim=True)
            return a.squeeze(-1) if self.kind == "scalar" else a

        def energy(a: Tensor) -> Tensor:
            steps = edge_steps(a.unsqueeze(-1) if self.kind == "scalar" else a, edges, transports)
            return 0.5 * cell * (weights.unsqueeze(-1) * steps.square()).sum((-2, -1))

        return _Operator(advance, energy, 0.5 * bound if self.kind == "simplex" else bound)

    def _vectors_on_grid(self, field: Tensor, metric: Tensor) -> _Operator:
        grid = self.grid
        density, inverse = check_positive(metric), torch.linalg.inv(metric)
        connection = grid.jet(metric).connection
        top = float(torch.linalg.eigvalsh(inverse.detach())[..., -1].max())

        def energy(a: Tensor) -> Tensor:
            covariant = grid.gradient(a, 1) + torch.einsum("...kjl,...l->...jk", connection, a)
            square = torch.einsum("...ij,...kl,...ik,...jl->...", inverse, metric, covariant, covariant)
            return 0.5 * (density * square).sum(tuple(range(-grid.dim, 0))) * math.prod(grid.spacing)

        return _Operator(
            lambda a, dt: a + dt * vector_laplacian(a, metric, grid),
            energy,
            2 / (top * LARGEST_SECOND_DIFFERENCE * sum(h**-2 for h in grid.spacing)),
        )

    def _rooted(self, field: Tensor) -> Tensor:
        """√p with the grid's axes made one, for rows; other fields as they are."""
        if self.kind != "simplex":
            return field
        with torch.no_grad():
            room = 16 * torch.finfo(field.dtype).eps * field.shape[-1]
            if not bool((field >= 0).all()) or not bool(((field.sum(-1) - 1).abs() <= room).all()):
                raise NotStochasticError(
                    f"rows must be non-negative and sum to one within {room:.3g}: apply a softmax to scores first"
                )
        root = safe_sqrt(field)
        return root if self.edges is not None else root.flatten(-1 - self.grid.dim, -2)

    def _unrooted(self, state: Tensor, field: Tensor) -> Tensor:
        if self.kind != "simplex":
            return state
        rows = state.square()
        rows = rows / rows.sum(-1, keepdim=True)
        return rows if self.edges is not None else rows.unflatten(-2, self._sizes(field))

    def _sizes(self, field: Tensor) -> tuple[int, ...]:
        """The grid's axes of a field; raises `PointShapeError`."""
        d, trailing = self.grid.dim, 0 if self.kind == "scalar" else 1
        if not field.is_floating_point() or field.ndim < d + trailing:
            raise PointShapeError(
                f"a {self.kind} field here is floating with {d} grid axes{' and one of values' * trailing}, not "
                f"{tuple(field.shape)} of {field.dtype}"
            )
        if self.kind == "vector" and field.shape[-1] != d:
            raise PointShapeError(f"vectors on a grid of {d} axes have {d} components, not {field.shape[-1]}")
        return tuple(field.shape[field.ndim - trailing - d : field.ndim - trailing])

    def _slope(self, values: Tensor, axis: int) -> Tensor:
        """The central difference along a grid axis of values (..., N, k), which are mirrored past open ends."""
        dim, h = axis - self.grid.dim - 1, self.grid.spacing[axis]
        if self.grid.axis_is_periodic(axis):
            return (values.roll(-1, dim) - values.roll(1, dim)) / (2 * h)
        step = values.diff(dim=dim)
        end = torch.zeros_like(values.narrow(dim, 0, 1))
        return (torch.cat([end, step], dim) + torch.cat([step, end], dim)) / (2 * h)

    def _fitted(self, metric: Tensor, sizes: tuple[int, ...]) -> Tensor:
        d = self.grid.dim
        if not isinstance(metric, Tensor):
            raise PointShapeError(f"metric must give a tensor (..., N1, ..., Nd, d, d), gave {type(metric).__name__}")
        try:
            batch = metric.shape[: max(metric.ndim - d - 2, 0)]
            return metric.expand(*batch, *sizes, d, d)
        except RuntimeError as error:
            raise PointShapeError(
                f"the metric {tuple(metric.shape)} does not broadcast to {(*sizes, d, d)}, the grid of this field"
            ) from error

    def _check_metric(self, field: Tensor, metric: Tensor) -> None:
        """Raise `PointShapeError` unless the metric lies on the field's grid and their batches broadcast."""
        d, trailing = self.grid.dim, 0 if self.kind == "scalar" else 1
        sizes = self._sizes(field)
        fits = tuple(metric.shape[-2 - d :]) == (*sizes, d, d)
        try:
            torch.broadcast_shapes(metric.shape[: -2 - d], field.shape[: field.ndim - trailing - d])
        except RuntimeError:
            fits = False
        if not fits:
            raise PointShapeError(
                f"a metric for a {self.kind} field {tuple(field.shape)} ends with {(*sizes, d, d)} after a batch that "
                f"broadcasts, not {tuple(metric.shape)}"
            )

    def _check_nodes(self, field: Tensor, weights: Tensor) -> int:
        """The number of nodes of a field on the graph; raises `PointShapeError`."""
        assert self.edges is not None
        trailing = 0 if self.kind == "scalar" else 1
        if not field.is_floating_point() or field.ndim < 1 + trailing:
            raise PointShapeError(
                f"a {self.kind} field on a graph is floating (..., V{', k' * trailing}), not {tuple(field.shape)} of "
                f"{field.dtype}"
            )
        if self.transports is not None and field.shape[-1] != self.transports.shape[-1]:
            raise PointShapeError(
                f"the transports carry vectors of {self.transports.shape[-1]} components, not {field.shape[-1]}"
            )
        if weights.ndim < 1 or weights.shape[-1] != len(self.edges):
            raise PointShapeError(f"{len(self.edges)} edges need as many conductances, not {tuple(weights.shape)}")
        nodes = field.shape[-1 - trailing]
        if self.edges.numel() and int(self.edges.max()) >= nodes:
            raise PointShapeError(f"an edge names node {int(self.edges.max())}, and the field has {nodes} nodes")
        return nodes

    def _check_graph(self, edges: Tensor, weights: Tensor | None, transports: Tensor | None) -> None:
        if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype != torch.long or bool((edges < 0).any()):
            raise PointShapeError(
                f"edges are (E, 2) of node indices (int64), not {tuple(edges.shape)} of {edges.dtype}"
            )
        if weights is not None and (
            weights.shape != edges.shape[:1] or not bool(((weights > 0) & weights.isfinite()).all())
        ):
            raise PointShapeError(f"{edges.shape[0]} edges need as many finite positive weights")
        if transports is None:
            return
        if self.kind != "vector" or transports.ndim != 3 or transports.shape[0] != edges.shape[0]:
            raise PointShapeError("transports (E, k, k) carry vectors along edges: for kind 'vector', one per edge")
        eye = torch.eye(transports.shape[-1], dtype=transports.dtype, device=transports.device)
        if not bool(((transports.mT @ transports - eye).abs() <= 1e3 * torch.finfo(transports.dtype).eps).all()):
            raise GeometryError("transports must be orthogonal matrices, so that energy falls and vectors keep length")
