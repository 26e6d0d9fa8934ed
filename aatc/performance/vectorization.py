"""`VectorizationSystem`: attention, pattern dynamics and flows of metrics, compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor

from aatc.attend import attend
from aatc.errors import AatcError, ShapeError
from aatc.geometry import GeometricFlow, MetricGrid, PatternDynamics
from aatc.geometry.flows.grid_metric import check_positive, ricci_from_connection
from aatc.metrics import DotProduct


class VectorizationSystem:
    """Operations as `aatc.compile` makes them, under the seed's names: nothing is implemented here a second time.

    ``backend``, and any other keyword of `aatc.compile` in ``compile``, say how. ``attention`` holds keywords of
    `aatc.attend` (metric, mask, bias, connection, normalizer, scale...), the dot product unless a metric is among them;
    ``dynamics`` and ``flow`` are what `vectorize_pattern_dynamics` and `vectorize_geometric_flow` advance. Everything
    is compiled when it is first called, for all batches and sizes, and differentiable.

    The seed's signatures had a tensor and nothing else. Attention without values averages nothing; a pattern does not
    say what reacts and how fast it diffuses; a matrix of a metric at one point has no curvature. Here the values are an
    argument, and the system and the flow are the constructor's.
    """

    def __init__(
        self,
        *,
        backend: str = "auto",
        attention: dict[str, Any] | None = None,
        dynamics: PatternDynamics | None = None,
        flow: GeometricFlow | None = None,
        compile: dict[str, Any] | None = None,
    ) -> None:
        self._options = {"backend": backend, **(compile or {})}
        self._attention = {"metric": DotProduct(), **(attention or {})}
        self.dynamics, self.flow = dynamics, flow

    def vectorize_attention(self, queries: Tensor, keys: Tensor, values: Tensor | None = None) -> Tensor:
        """Attention of (..., N, D) queries to (..., M, D) keys: (..., N, Dv) means of the values (..., M, Dv), or of
        the keys themselves unless given. Axes before the last two are (batch, heads), batch, or none. No n·m memory
        where `aatc.compile` has tiles for the metric. Raises `ShapeError`."""
        values = keys if values is None else values
        rank = queries.dim()
        if not 2 <= rank <= 4 or keys.dim() != rank or values.dim() != rank:
            shapes = ", ".join(str(tuple(t.shape)) for t in (queries, keys, values))
            raise ShapeError(f"queries, keys and values have two to four axes, and as many of each: got {shapes}")
        full = [t if rank == 4 else t.unsqueeze(-3) if rank == 3 else t[None, None] for t in (queries, keys, values)]
        out: Tensor = self.attention(*full)
        return out if rank == 4 else out.squeeze(-3) if rank == 3 else out[0, 0]

    def vectorize_pattern_dynamics(
        self, pattern: Tensor, *, dt: float | Tensor = 0.1, method: str = "etdrk4", forcing: Tensor | None = None
    ) -> Tensor:
        """The fields (..., species, *grid) after one step, as `PatternDynamics.reaction_diffusion` of ``dynamics``.
        Raises as that, and AatcError without ``dynamics``."""
        if self.dynamics is None:
            raise AatcError(
                "no dynamics to advance a pattern by", hint="VectorizationSystem(dynamics=PatternDynamics(...))"
            )
        system = self.dynamics.system
        advance, grid = system.stepper(pattern, dt, method), system.grid
        held = None if forcing is None else grid.extend(forcing.expand(pattern.shape))
        return grid.restrict(self.pattern_step(advance, grid.extend(pattern), held))

    def vectorize_geometric_flow(self, metric: Tensor, *, timestep: float | None = None) -> Tensor:
        """The metric (..., *grid, n, n) after one explicit step of ``flow``, as `GeometricFlow.flow_step` of its Ricci
        tensor, which is what is compiled. ``timestep``: half of the largest stable step unless given. Raises as that,
        and AatcError without a ``flow`` on a grid."""
        flow = self.flow
        if flow is None or flow.grid is None:
            raise AatcError(
                "no flow on a grid to advance a metric by",
                hint="VectorizationSystem(flow=GeometricFlow(MetricGrid(...)))",
            )
        flow.grid.check_metric(metric)
        check_positive(metric)
        step = 0.5 * flow.step_bound(metric) if timestep is None else timestep
        return flow.flow_step(metric, self.ricci(flow.grid, metric), step)[0]

    def optimize_memory_access(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        """``aatc.compile(operation)`` with this system's options: attention in it reads and writes tiles that stay in
        caches, and takes no n·m memory; all else runs as before. The result's ``explain()`` says what was done. A
        module gives a module."""
        compiled: Callable[..., Any] = self._compiled(operation)
        return compiled

    def _compiled(self, operation: Callable[..., Any]) -> Any:
        from aatc.frontend import compile  # loads torch's compiler

        return compile(operation, **self._options)

    @cached_property
    def attention(self) -> Any:
        """The compiled attention of (B, H, N, D) tensors: its ``explain()`` and ``ir()``."""
        parts = self._attention

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = attend(q, k, v, **parts)
            return out

        return self._compiled(attention)

    @cached_property
    def pattern_step(self) -> Any:
        """The compiled step of `vectorize_pattern_dynamics`, of a stepper, fields and a forcing."""

        def pattern_step(advance: Callable[..., Tensor], fields: Tensor, forcing: Tensor | None) -> Tensor:
            return advance(fields, forcing)

        return self._compiled(pattern_step)

    @cached_property
    def ricci(self) -> Any:
        """The compiled Ricci tensor of `vectorize_geometric_flow`, of a grid and a metric."""

        def ricci(grid: MetricGrid, metric: Tensor) -> Tensor:
            jet = grid.jet(metric)
            return ricci_from_connection(jet.connection, jet.connection_slope)

        return self._compiled(ricci)
