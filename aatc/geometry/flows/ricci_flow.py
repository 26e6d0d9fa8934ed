"""Ricci flow of metrics: ∂_t g = −2 Ric, plain, volume-normalised, or in DeTurck's gauge.

Sources: Hamilton, Three-manifolds with positive Ricci curvature, J. Differential Geom. 17 (1982) 255, sections 1 and 3;
DeTurck, Deforming metrics in the direction of their Ricci tensors, ibid. 18 (1983) 157; Chow, Knopf, The Ricci Flow: An
Introduction, chapters 2 and 3.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from aatc.geometry.flows.flow_trajectory import FlowMetrics, FlowTrajectory, Singularity, singularities
from aatc.geometry.flows.grid_metric import (
    LARGEST_SECOND_DIFFERENCE,
    DegenerateMetricError,
    MetricGrid,
    check_positive,
    largest_inverse_eigenvalue,
    ricci_from_connection,
    scalar_curvature,
)
from aatc.geometry.manifold import GeometryError, PointShapeError

FIXED_STEP_METHODS = ("euler", "midpoint", "rk4")
ADAPTIVE_METHODS = ("bosh3", "dopri5", "dopri8")
NORMALIZATIONS = ("ricci", "volume", "none")


class StepSizeError(GeometryError):
    """A time step beyond the bound of an explicit method; ``bound`` is the largest step that is allowed."""

    def __init__(self, message: str, *, bound: float) -> None:
        super().__init__(message)
        self.bound = bound


def check_step(timestep: float, bound: float, flow: str) -> None:
    """Raise `StepSizeError` unless 0 < ``timestep`` ≤ ``bound`` and the step is finite."""
    if not (0 < timestep <= bound * (1 + 1e-12) and timestep < float("inf")):
        raise StepSizeError(
            f"{flow}: the step {timestep:.6g} must be positive, finite and at most {bound:.6g}: take more steps",
            bound=bound,
        )


def check_count(value: int, name: str) -> None:
    """Raise `GeometryError` unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise GeometryError(f"{name} = {value!r}: must be an integer ≥ 1")


def _per_sample(value: Tensor, axes: int) -> Tensor:
    """A number per batch element as a factor of metrics with ``axes`` sample axes."""
    return value.reshape(value.shape + (1,) * (axes + 2))


class GeometricFlow:
    """Ricci flow of metrics (..., *samples, n, n), the batch first.

    Give a ``grid`` for metrics sampled on a `MetricGrid`, whose Ricci tensor is taken by fourth-order differences, or
    ``ricci``, a callable from metrics to Ricci tensors of the same shape, for metrics known by other means (such as
    `InvariantFamily`, or a `RiemannianStructure`'s curvature); then ``sample_axes`` says how many axes hold samples of
    one metric and ``weights`` (*samples) is the chart measure, so that volumes are Σ weights √det g; both default to
    those of ``ricci``, where it has them.

    ``normalized`` adds (2/n) r̄ g, r̄ the mean scalar curvature, which keeps the volume. ``background``, a metric on the
    grid, adds DeTurck's term L_W g with W^k = g^{ij}(Γ^k_ij − Γ̃^k_ij), which makes the equation parabolic; the flow is
    then Ricci flow up to diffeomorphisms. ``boundary(metric, time)`` returns the metric with its values on the rim of
    the open axes put right, and is required for a flow on a grid that has open axes.

    The seed's names are kept. `compute_ricci_tensor` needs no connection: without one it takes Levi-Civita's. The seed
    gave flows to `detect_singularities` and `normalize_flow` as tensors; curvature must be followed in time to see
    where it blows up, so both take the `FlowTrajectory` that `evolve`, which is added, returns.
    """

    def __init__(
        self,
        grid: MetricGrid | None = None,
        ricci: Callable[[Tensor], Tensor] | None = None,
        *,
        normalized: bool = False,
        background: Tensor | None = None,
        boundary: Callable[[Tensor, float], Tensor] | None = None,
        sample_axes: int | None = None,
        weights: Tensor | None = None,
    ) -> None:
        if (grid is None) == (ricci is None):
            raise GeometryError("a geometric flow needs either a grid or a callable ricci: give exactly one of them")
        if grid is None and (background is not None or boundary is not None):
            raise GeometryError("background and boundary belong to metrics on a grid: give a grid, or leave them out")
        if background is not None and grid is not None:
            grid.check_metric(background)
            check_positive(background)
        self.grid, self.normalized, self.boundary = grid, normalized, boundary
        self._ricci, self._weights = ricci, weights if weights is not None else getattr(ricci, "weights", None)
        given = getattr(ricci, "sample_axes", 0) if sample_axes is None else sample_axes
        self.sample_axes: int = grid.dim if grid is not None else given
        self._background = None if background is None or grid is None else grid.jet(background).connection

    def compute_ricci_tensor(self, metric: Tensor, connection: Tensor | None = None) -> Tensor:
        """Ric_ij (..., n, n). ``connection`` Γ^k_ij (..., k, i, j) on the grid is Levi-Civita's unless given.

        A connection of the caller's is differentiated on the grid, and its Ricci tensor need not be symmetric.
        Raises `PointShapeError` and `DegenerateMetricError`.
        """
        self._check(metric)
        check_positive(metric)
        if self.grid is None:
            if connection is not None:
                raise GeometryError("a connection is differentiated on a grid, and this flow has none")
            return self._called(metric)
        if connection is None:
            jet = self.grid.jet(metric)
            return ricci_from_connection(jet.connection, jet.connection_slope)
        if connection.shape != (*metric.shape, metric.shape[-1]):
            raise PointShapeError(
                f"the connection of metrics {tuple(metric.shape)} has shape {(*metric.shape, metric.shape[-1])}, "
                f"not {tuple(connection.shape)}"
            )
        return ricci_from_connection(connection, self.grid.gradient(connection, 3))

    def compute_metrics(self, metric: Tensor, ricci: Tensor, step: int = 0, time: float = 0.0) -> FlowMetrics:
        """The invariants of a metric whose Ricci tensor is given. Raises as `compute_ricci_tensor`."""
        self._check(metric)
        density = check_positive(metric)
        scalar = scalar_curvature(torch.linalg.inv(metric), ricci)
        chart = self._measure(metric)
        measure = density if chart is None else density * chart
        axes = tuple(range(-self.sample_axes, 0))

        def integral(values: Tensor) -> Tensor:
            return values.sum(axes) if axes else values

        volume, total = integral(measure), integral(measure * scalar)
        mean = total / volume
        spread = scalar - mean.reshape(mean.shape + (1,) * self.sample_axes)
        return FlowMetrics(
            step,
            time,
            volume,
            total,
            mean,
            scalar.amin(axes) if axes else scalar,
            scalar.amax(axes) if axes else scalar,
            integral(measure * spread.square()),
        )

    def step_bound(self, metric: Tensor) -> float:
        """The largest stable explicit step: 3/(8 λ_max(g⁻¹) Σ 1/h²) on a grid, ∞ for a callable.

        −2 Ric linearises to a second-order operator whose symbol is at most λ_max(g⁻¹)|ξ|², with or without DeTurck's
        term, and the stencil's largest value of ξ² is 16/(3h²).
        """
        self._check(metric)
        if self.grid is None:
            return float("inf")
        with torch.no_grad():
            check_positive(metric)
            top = float(largest_inverse_eigenvalue(torch.linalg.inv(metric)).max())
        return 2 / (top * LARGEST_SECOND_DIFFERENCE * sum(h**-2 for h in self.grid.spacing))

    def velocity(self, metric: Tensor, ricci: Tensor | None = None) -> Tensor:
        """∂_t g, symmetric (..., n, n)."""
        ricci = self.compute_ricci_tensor(metric) if ricci is None else ricci
        rate = -(ricci + ricci.mT)
        if self.normalized:
            mean = self.compute_metrics(metric, ricci).mean_scalar
            rate = rate + (2 / metric.shape[-1]) * _per_sample(mean, self.sample_axes) * metric
        if self._background is not None:
            rate = rate + self._deturck(metric)
        return rate

    def flow_step(self, metric: Tensor, ricci: Tensor, timestep: float) -> tuple[Tensor, FlowMetrics]:
        """One explicit Euler step: the new metric, and the invariants of ``metric``, whose Ricci tensor is ``ricci``.

        Raises `StepSizeError` beyond `step_bound`, `DegenerateMetricError` where the new metric is not positive.
        """
        if ricci.shape != metric.shape:
            raise PointShapeError(f"ricci {tuple(ricci.shape)} and metric {tuple(metric.shape)} must have one shape")
        check_step(timestep, self.step_bound(metric), "Ricci flow")
        new = metric + timestep * self.velocity(metric, ricci)
        check_positive(new)
        return new, self.compute_metrics(metric, ricci)

    def evolve(
        self,
        metric: Tensor,
        time: float,
        steps: int,
        *,
        method: str = "rk4",
        every: int = 1,
        rtol: float = 1e-9,
        atol: float = 1e-12,
        progress: Callable[[FlowMetrics], None] | None = None,
    ) -> FlowTrajectory:
        """The flow from 0 to ``time`` in ``steps`` equal steps; kept are the first, the last, and each ``every``-th.

        ``method``: "euler", "midpoint" and "rk4" check `step_bound` before each step; "bosh3", "dopri5" and "dopri8"
        (torchdiffeq) divide each step by error control with ``rtol`` and ``atol``. ``progress`` gets the invariants of
        each kept state. The flow stops where the metric ceases to be positive and says so in ``stopped``. Raises
        `StepSizeError`, `PointShapeError`, and `DegenerateMetricError` for a first metric that is not positive.
        """
        if method not in FIXED_STEP_METHODS + ADAPTIVE_METHODS:
            raise GeometryError(f"method {method!r} is not one of {', '.join(FIXED_STEP_METHODS + ADAPTIVE_METHODS)}")
        check_count(steps, "steps")
        check_count(every, "every")
        if not 0 < time < float("inf"):
            raise GeometryError(f"time = {time}: Ricci flow runs forwards, for a positive finite time")
        if self.grid is not None and not self.grid.is_closed and self.boundary is None:
            raise GeometryError("the grid has open axes: give GeometricFlow a boundary, or make the axes periodic")
        timestep, stopped = time / steps, ""
        kept = [(0, metric, self.compute_ricci_tensor(metric))]
        records = [self._record(*kept[0], 0.0, progress)]
        for step in range(1, steps + 1):
            try:
                new = self._advance(metric, (step - 1) * timestep, timestep, method, rtol, atol)
                ricci = self.compute_ricci_tensor(new) if step % every == 0 or step == steps else None
            except DegenerateMetricError as error:
                stopped = f"step {step} of {steps}: {error}"
                if kept[-1][0] != step - 1:
                    kept.append((step - 1, metric, self.compute_ricci_tensor(metric)))
                    records.append(self._record(*kept[-1], (step - 1) * timestep, progress))
                break
            metric = new
            if ricci is not None:
                kept.append((step, metric, ricci))
                records.append(self._record(*kept[-1], step * timestep, progress))
        times = torch.tensor([record.time for record in records], dtype=metric.dtype, device=metric.device)
        states, curvatures = torch.stack([g for _, g, _ in kept]), torch.stack([ricci for _, _, ricci in kept])
        return FlowTrajectory(times, states, curvatures, tuple(records), stopped)

    def detect_singularities(self, flow: FlowTrajectory, threshold: float) -> list[Singularity]:
        """Where the flow runs into a singularity, earliest first; none if it does not.

        Each metric of a batch is judged by itself. A sample counts when the largest |eigenvalue| of g⁻¹Ric in the last
        state is at least ``threshold``. The time is
        that at which its reciprocal reaches zero, extrapolated from up to four last states: exact up to rounding at a
        round point, where it falls linearly, and otherwise of the fourth order in their distance from the singular
        time. Raises `GeometryError` unless ``threshold`` > 0.
        """
        return singularities(flow, threshold, self.sample_axes)

    def normalize_flow(self, flow: FlowTrajectory, normalization: str = "ricci") -> FlowTrajectory:
        """The trajectory rescaled to its first volume: metrics by c = (V₀/V)^{2/n}; Ricci tensors do not change.

        "volume" leaves the times. "ricci" also sets them to ∫c dt (by the trapezoid rule over the kept states), which
        turns a trajectory of ∂_t g = −2 Ric into one of the normalised flow (Hamilton 1982, section 3). "none" returns
        ``flow``.
        """
        if normalization not in NORMALIZATIONS:
            raise GeometryError(f"normalization {normalization!r} is not one of {', '.join(NORMALIZATIONS)}")
        if normalization == "none":
            return flow
        n = flow.metrics.shape[-1]
        volumes = torch.stack([record.volume for record in flow.invariants])
        scale = (volumes[0] / volumes) ** (2 / n)
        times = flow.times
        if normalization == "ricci":
            if scale.ndim > 1:
                raise GeometryError("'ricci' gives each metric of a batch a time of its own: normalise them one by one")
            times = torch.cat([times[:1], torch.cumulative_trapezoid(scale, times)])
        records = tuple(
            replace(
                record,
                time=float(t),
                volume=volumes[0],
                total_scalar=record.total_scalar * c ** (n / 2 - 1),
                mean_scalar=record.mean_scalar / c,
                min_scalar=record.min_scalar / c,
                max_scalar=record.max_scalar / c,
                energy=record.energy * c ** (n / 2 - 2),
            )
            for record, t, c in zip(flow.invariants, times, scale)
        )
        return replace(
            flow, times=times, metrics=_per_sample(scale, self.sample_axes) * flow.metrics, invariants=records
        )

    def _advance(self, metric: Tensor, start: float, timestep: float, method: str, rtol: float, atol: float) -> Tensor:
        if method in FIXED_STEP_METHODS:
            check_step(timestep, self.step_bound(metric), "Ricci flow")
        if method == "euler":
            new = metric + timestep * self.velocity(metric)
        else:
            from torchdiffeq import odeint

            span = torch.tensor([0.0, timestep], dtype=metric.dtype, device=metric.device)
            new = odeint(lambda _, g: self.velocity(g), metric, span, method=method, rtol=rtol, atol=atol)[-1]
        if self.boundary is not None:
            new = self.boundary(new, start + timestep)
        check_positive(new)
        return new

    def _record(
        self, step: int, metric: Tensor, ricci: Tensor, time: float, progress: Callable[[FlowMetrics], None] | None
    ) -> FlowMetrics:
        record = self.compute_metrics(metric, ricci, step, time)
        if progress is not None:
            progress(record)
        return record

    def _deturck(self, metric: Tensor) -> Tensor:
        """L_W g = W^k ∂_k g_ij + g_kj ∂_iW^k + g_ik ∂_jW^k."""
        assert self.grid is not None and self._background is not None
        jet = self.grid.jet(metric)
        excess = jet.connection - self._background
        field = torch.einsum("...ij,...kij->...k", jet.inverse, excess)
        inverse_slope = -torch.einsum("...ia,...lab,...bj->...lij", jet.inverse, jet.slope, jet.inverse)
        excess_slope = jet.connection_slope - self.grid.gradient(self._background, 3)
        field_slope = torch.einsum("...lij,...kij->...lk", inverse_slope, excess) + torch.einsum(
            "...ij,...lkij->...lk", jet.inverse, excess_slope
        )
        turned = torch.einsum("...ik,...kj->...ij", field_slope, metric)
        return torch.einsum("...k,...kij->...ij", field, jet.slope) + turned + turned.mT

    def _measure(self, metric: Tensor) -> Tensor | None:
        if self.grid is not None:
            return self.grid.weights(metric, 2)
        return None if self._weights is None else self._weights.to(metric)

    def _called(self, metric: Tensor) -> Tensor:
        assert self._ricci is not None
        ricci = self._ricci(metric)
        if not isinstance(ricci, Tensor) or ricci.shape != metric.shape:
            got = tuple(ricci.shape) if isinstance(ricci, Tensor) else type(ricci).__name__
            raise PointShapeError(f"ricci must map metrics {tuple(metric.shape)} to tensors of that shape, gave {got}")
        return ricci

    def _check(self, metric: Tensor) -> None:
        if self.grid is not None:
            self.grid.check_metric(metric)
        elif metric.ndim < self.sample_axes + 2 or metric.shape[-1] != metric.shape[-2]:
            raise PointShapeError(
                f"metrics have shape (..., {'P, ' * self.sample_axes}n, n), got {tuple(metric.shape)}"
            )


__all__ = [
    "ADAPTIVE_METHODS",
    "FIXED_STEP_METHODS",
    "NORMALIZATIONS",
    "FlowMetrics",
    "FlowTrajectory",
    "GeometricFlow",
    "Singularity",
    "StepSizeError",
]
