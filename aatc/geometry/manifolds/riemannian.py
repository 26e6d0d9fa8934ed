"""Riemannian geometry of a metric field given in one chart: connection, geodesics, transport, curvature.

Sources: M. do Carmo, "Riemannian Geometry", 1992, chapters 2 to 4; S. Amari, H. Nagaoka, "Methods of Information
Geometry", 2000, section 2.2, for the simplex.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, PointShapeError, safe_sqrt, scalar
from aatc.geometry.manifolds import charts
from aatc.geometry.manifolds.broken_geodesic import connect
from aatc.geometry.manifolds.charts import ChartError
from aatc.geometry.manifolds.curvature import (
    CurvatureTensor,
    Metric,
    MetricError,
    acceleration_derivatives_of,
    christoffel_of,
    connection_of,
    curvature_of,
    derivatives_by_state,
    directional_derivative,
    of_shape,
    require_metric,
    spd_solve,
)
from aatc.geometry.manifolds.curve_transport import polygon_transport, transported
from aatc.geometry.manifolds.integrate import (
    ADAPTIVE_METHODS,
    ConvergenceError,
    adaptive_path,
    curve_with_middles,
    hermite_middles,
    rk4_path,
)

Connection = Callable[[Tensor, Tensor, Tensor], Tensor]
Curve = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Geodesic:
    """A geodesic of ``structure`` at ``times`` (T,): ``points`` and ``velocities`` dx/dt, both (T, ..., n)."""

    structure: RiemannianStructure
    times: Tensor
    points: Tensor
    velocities: Tensor

    def speed(self) -> Tensor:
        """|dx/dt| at every time, (T, ...): constant along an exact geodesic."""
        return self.structure.norm(self.points, self.velocities)

    def length(self) -> Tensor:
        """The length between the first time and the last, (...), from the speed at the first."""
        return self.structure.norm(self.points[0], self.velocities[0]) * (self.times[-1] - self.times[0]).abs()


@dataclass(frozen=True)
class BoundaryGeodesic(Geodesic):
    """The geodesic with x at time 0 and y at time 1, and how well it was found.

    ``initial_velocity`` (..., n) is log_x(y); ``residual`` is the largest |ẍ + Γ(ẋ, ẋ)| relative to |y − x| + |ẍ|;
    ``iterations`` counts the steps of the solver.
    """

    initial_velocity: Tensor
    residual: float
    iterations: int


class RiemannianStructure:
    """A Riemannian metric in one chart: points (..., n) are coordinates, vectors (..., n) are components.

    ``metric``: (..., n) → (..., n, n), symmetric positive definite, made of torch operations, the points of a batch
    apart. Optional closed forms, used instead of differentiating: ``connection(x, u, v)`` = Γ^k_ij u^i v^j,
    ``christoffel(x)`` = Γ^k_ij as (..., k, i, j), ``inverse(x)`` = g^ij. ``domain(x)``, bool (...), tells the points
    of the chart. ``dim`` is n where only one n will do.

    Batches broadcast; results follow the dtype and device of the points and are differentiable in points, vectors and
    whatever the metric closes over. Values are read to refuse what is not finite, so the methods do not run under
    torch.func.vmap: give a batch. Batches for the metric must have at least the one axis of coordinates.

    The seed's vocabulary is kept, and corrected where it could not work: `metric_tensor` gives tensors, that batch and
    differentiate, not floats; `christoffel_symbols` takes a point, since symbols of a whole chart are a function;
    `covariant_derivative` also takes the point, without which ∇_u V has no value. `exp`, `log`, `dist`,
    `geodesic_between` and `parallel_transport` are added.

    Raises: PointShapeError for shapes and dtypes, those that the metric and the closed forms give too; ChartError for
    points outside ``domain`` and vectors that are not finite; MetricError, with the batch index and the smallest
    eigenvalue, where a needed metric is not positive definite; GeometryError for ``dim`` < 1.
    """

    def __init__(
        self,
        metric: Metric,
        *,
        christoffel: Metric | None = None,
        connection: Connection | None = None,
        inverse: Metric | None = None,
        domain: Metric | None = None,
        dim: int | None = None,
    ) -> None:
        if dim is not None and dim < 1:
            raise GeometryError(f"a chart has at least one coordinate, got {dim}")
        self.metric = of_shape(metric)
        self.dim = dim
        self._christoffel = christoffel = christoffel and of_shape(christoffel, 2, "the closed form of Γ")
        self._inverse = inverse and of_shape(inverse, what="the inverse metric")
        self._domain = domain
        if connection is None and christoffel is not None:

            def contracted(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
                return torch.einsum("...kij,...i,...j->...k", christoffel(x), u, v)

            connection = contracted
        self._connection = connection

    def metric_tensor(
        self, point: Tensor, vectors: tuple[Tensor, Tensor] | None = None, *, check: bool = False
    ) -> Tensor:
        """g_ij at ``point``, (..., n, n), or, given two vectors, g(u, v), (...).

        Raises `MetricError` where g is not finite and, if ``check``, where it is not symmetric positive definite.
        """
        (point,) = self._check(point)
        g = self.metric(point)
        if check or not bool(g.isfinite().all()):
            require_metric(g)
        if vectors is None:
            return g
        u, v = vectors
        self._check(point, u, v)
        return torch.einsum("...i,...ij,...j->...", u, g, v)

    def in_chart(self, point: Tensor) -> Tensor:
        """Whether every coordinate is finite and the point lies in the chart's domain, bool (...)."""
        finite = point.isfinite().all(-1)
        return finite if self._domain is None else finite & self._domain(point)

    def inverse_metric(self, point: Tensor) -> Tensor:
        """g^ij at ``point``, (..., n, n)."""
        (point,) = self._check(point)
        if self._inverse is not None:
            return self._finite(self._inverse(point), point)
        g = self.metric_tensor(point)
        identity = torch.eye(g.shape[-1], dtype=g.dtype, device=g.device).expand(g.shape)
        return self._finite(spd_solve(g, identity), point)

    def inner(self, point: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """g(u, v) at ``point``, (...)."""
        return self.metric_tensor(point, (u, v))

    def norm(self, point: Tensor, v: Tensor) -> Tensor:
        """√g(v, v), (...); its gradient at v = 0 is 0."""
        square = self.inner(point, v, v)
        if not bool((square >= 0).all()):
            require_metric(self.metric(point))
        return safe_sqrt(square)

    def lower_index(self, point: Tensor, v: Tensor) -> Tensor:
        """The covector g_ij v^j, (..., n)."""
        self._check(point, v)
        return torch.einsum("...ij,...j->...i", self.metric_tensor(point), v)

    def raise_index(self, point: Tensor, covector: Tensor) -> Tensor:
        """The vector g^ij w_j, (..., n)."""
        self._check(point, covector)
        if self._inverse is not None:
            return torch.einsum("...ij,...j->...i", self.inverse_metric(point), covector)
        point, covector = self._check(point, covector)
        return self._finite(spd_solve(self.metric_tensor(point), covector.unsqueeze(-1)).squeeze(-1), point)

    def christoffel_symbols(self, point: Tensor, *, autograd: bool = False) -> Tensor:
        """Γ^k_ij at ``point``, (..., k, i, j): the closed form if there is one and ``autograd`` is not asked for."""
        (point,) = self._check(point)
        if autograd or self._connection is None:
            return self._finite(christoffel_of(self.metric, point), point)
        if self._christoffel is not None:
            return self._finite(self._christoffel(point), point)
        n = point.shape[-1]
        basis = torch.eye(n, dtype=point.dtype, device=point.device)
        shape = (*point.shape[:-1], n, n, n)
        one = basis[:, None, :].expand(shape)
        other = basis[None, :, :].expand(shape)
        gamma = self._connection(point[..., None, None, :].expand(shape), one, other).movedim(-1, -3)
        return self._finite(gamma, point)

    def connection(self, point: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Γ^k_ij u^i v^j, (..., n). Γ is not formed, so memory and time are those of g, O(n²) and O(n³) per point."""
        point, u, v = self._check(point, u, v)
        return self._finite(self._gamma(point, u, v), point)

    def covariant_derivative(
        self, vector_field: Callable[[Tensor], Tensor], direction: Tensor, point: Tensor
    ) -> Tensor:
        """∇_u V = u^i ∂_i V^k + Γ^k_ij u^i V^j at ``point``, (..., n), for V a function (..., n) → (..., n)."""
        point, direction = self._check(point, direction)
        value, change = directional_derivative(vector_field, point, direction)
        self._check(point, value)
        return change + self.connection(point, direction, value)

    def geodesic_acceleration(self, x: Tensor, v: Tensor) -> Tensor:
        """−Γ^k_ij v^i v^j, (..., n), without forming Γ."""
        x, v = self._check(x, v)
        return self._finite(-self._gamma(x, v, v), x)

    def geodesic_flow(
        self,
        initial_point: Tensor,
        initial_velocity: Tensor,
        times: Tensor | None = None,
        *,
        method: str = "dopri8",
        steps: int = 16,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> Geodesic:
        """The geodesic with this point and velocity at ``times[0]``, at ``times`` (T,): default, 17 from 0 to 1.

        ``method``: "dopri8", "dopri5" or "bosh3" of torchdiffeq, with the step chosen for the largest error in the
        whole batch, relative to ``rtol`` (default: epsilon to the power ⅔) and, in units of the coordinates, ``atol``
        (default: rtol/10, to be lowered where coordinates that matter are far below 1); or "rk4",
        with ``steps`` equal steps between neighbouring times: the faster one for many times, because the adaptive
        methods step to every one of them. Raises also `ChartError` where the geodesic leaves the
        chart or no step is small enough, and `GeometryError` for other methods and times.
        """
        x, v = self._check(initial_point, initial_velocity)
        times = self._times(times, x)
        if method == "rk4":
            if not isinstance(steps, int) or steps < 1:
                raise GeometryError(f"steps = {steps!r}: rk4 needs an integer ≥ 1 between neighbouring times")
            points, velocities = rk4_path(self._acceleration, x, v, times, steps)
        elif method in ADAPTIVE_METHODS:
            relative = torch.finfo(x.dtype).eps ** (2 / 3) if rtol is None else rtol
            absolute = 0.1 * relative if atol is None else atol
            if not (relative > 0 and absolute > 0):
                raise GeometryError(f"rtol = {relative:.3g} and atol = {absolute:.3g}: both must be positive")
            points, velocities = adaptive_path(self._acceleration, x, v, times, method, relative, absolute)
        else:
            raise GeometryError(f"method {method!r} is not one of rk4, {', '.join(ADAPTIVE_METHODS)}")
        return Geodesic(self, times, self._inside(points, "a geodesic left the chart"), velocities)

    def geodesic_between(
        self,
        x: Tensor,
        y: Tensor,
        times: Tensor | None = None,
        *,
        tolerance: float | None = None,
        max_iterations: int = 30,
    ) -> BoundaryGeodesic:
        """The geodesic with ``x`` at 0 and ``y`` at 1, at ``times`` (T,) in [0, 1]: default, 17 from 0 to 1.

        The geodesic equation is collocated at Gauss nodes and solved from the chart's segment (see
        `aatc.geometry.manifolds.boundary`). Where the segment lies in a normal ball around x this is the shortest
        geodesic; farther out it is a geodesic, and perhaps not the shortest. ``tolerance`` (default: epsilon to the
        power ⅝, 1.6e-10 in float64) bounds the residual of the equation between the nodes; the error of the velocity is
        far smaller. It takes two to four times as long as `exp` of the velocity. First and second derivatives are
        exact. Raises also `ConvergenceError`, whose ``indices`` are the entries of the batch without a geodesic.
        """
        x, y = self._check(x, y)
        self._inside(y, "the end is outside the chart")
        times = self._times(times, x)
        if not bool(((times >= 0) & (times <= 1)).all()):
            raise GeometryError(
                "times between two points are from 0 to 1: beyond, take geodesic_flow from the velocity"
            )
        sharp = torch.finfo(x.dtype).eps ** 0.625 if tolerance is None else tolerance
        solution = connect(self, x, y, times, tolerance=sharp, max_iterations=max_iterations)
        return BoundaryGeodesic(
            self,
            times,
            self._inside(solution.points, "a geodesic left the chart"),
            solution.velocities,
            solution.initial_velocity,
            solution.residual,
            solution.iterations,
        )

    def exp(self, x: Tensor, v: Tensor, *, steps: int | None = None) -> Tensor:
        """The point at time 1 of the geodesic from ``x`` with velocity ``v``: adaptive, or ``steps`` steps of RK4."""
        ends = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
        if steps is None:
            return self.geodesic_flow(x, v, ends).points[-1]
        return self.geodesic_flow(x, v, ends, method="rk4", steps=steps).points[-1]

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The velocity at ``x`` of `geodesic_between` x and y, (..., n)."""
        return self.geodesic_between(x, y).initial_velocity

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The length of `geodesic_between` x and y, (...); its gradient at x = y is taken to be 0."""
        return self.norm(x, self.log(x, y))

    def parallel_transport(
        self, path: Geodesic | Curve | Tensor, vector: Tensor, times: Tensor | None = None, *, steps: int = 64
    ) -> Tensor:
        """``vector`` (..., n), given at the first time of ``path``, carried along it with ∇_ẋ V = 0: (T, ..., n).

        A `Geodesic` gives T = the number of its times, with one RK4 step between neighbours: the error is of order 4
        in their distance. A function t ↦ x(t), () → (..., n), differentiable in t, is followed over ``times`` or, by
        default, over ``steps`` + 1 times from 0 to 1, with the same one step between neighbours. Sampled points
        (T, ..., n) are joined by the geodesics of `geodesic_between`, with ``steps`` steps in all. Raises
        `GeometryError` for other paths, and for times or steps that do not go with them.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise GeometryError(f"steps = {steps!r}: a transport takes an integer number of steps, at least one")
        if times is not None and isinstance(path, Geodesic | Tensor):
            raise GeometryError("a geodesic and sampled points bring their own times: transport along them without")
        if isinstance(path, Tensor):
            return polygon_transport(self, path, vector, steps)
        if isinstance(path, Geodesic):
            times = path.times
            points, velocities = hermite_middles(times, path.points, path.velocities)
        elif callable(path):
            times = self._times(times, vector, steps + 1)
            points, velocities = curve_with_middles(path, times)
        else:
            raise GeometryError(
                f"a path is a Geodesic, a function of the time or a tensor of points, not a {type(path).__name__}"
            )
        self._check(points, velocities)
        self._check(points[0], vector)
        return self._finite(transported(self._gamma, points, velocities, vector, times), points[::2])

    def curvature_tensor(self, point: Tensor) -> CurvatureTensor:
        """The Riemann, Ricci and scalar curvature at ``point``, from g, ∂g and ∂²g; memory n⁴ per point."""
        (point,) = self._check(point)
        curvature = curvature_of(self.metric, point)
        self._finite(curvature.riemann, point)
        return curvature

    def _gamma(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return connection_of(self.metric, x, u, v) if self._connection is None else self._connection(x, u, v)

    def _acceleration(self, x: Tensor, v: Tensor) -> Tensor:
        """The geodesic acceleration, NaN outside the chart, where a closed form may still give numbers."""
        force = -self._gamma(x, v, v)
        if self._domain is None:
            return force
        return torch.where(self._domain(x).unsqueeze(-1), force, torch.full_like(force, torch.nan))

    def _derivatives(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self._connection is None:
            return acceleration_derivatives_of(self.metric, x, v)
        return derivatives_by_state(self._acceleration, x, v)

    def _check(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors, broadcast; the first is a point of the chart, the others are vectors."""
        for tensor in tensors:
            if not tensor.is_floating_point() or tensor.dtype != tensors[0].dtype:
                raise PointShapeError(f"points and vectors are of one floating dtype, got {[t.dtype for t in tensors]}")
            if tensor.dim() == 0 or tensor.shape[-1] != tensors[0].shape[-1] or tensor.shape[-1] == 0:
                raise PointShapeError(
                    f"points and vectors are (..., n) of one n ≥ 1, got {[tuple(t.shape) for t in tensors]}"
                )
        if self.dim is not None and tensors[0].shape[-1] != self.dim:
            raise PointShapeError(f"this chart has {self.dim} coordinates, got {tensors[0].shape[-1]}")
        self._inside(tensors[0], "a point is outside the chart")
        for vector in tensors[1:]:
            finite = vector.isfinite().all(-1)
            if not bool(finite.all()):
                raise ChartError(f"the vector at index {tuple(int(i) for i in (~finite).nonzero()[0])} is not finite")
        try:
            return tuple(torch.broadcast_tensors(*tensors))
        except RuntimeError as error:
            raise PointShapeError(f"batch axes do not broadcast: {[tuple(t.shape) for t in tensors]}") from error

    def _inside(self, points: Tensor, fault: str) -> Tensor:
        """``points``, refused unless all are finite and in the domain."""
        good = self.in_chart(points)
        if not bool(good.all()):
            index = tuple(int(i) for i in (~good).nonzero()[0])
            raise ChartError(f"{fault}, at index {index}: {points[index].tolist()}")
        return points

    def _finite(self, value: Tensor, point: Tensor) -> Tensor:
        """``value``, refused unless finite: with a `MetricError` where the metric at ``point`` is to blame."""
        if not bool(value.isfinite().all()):
            require_metric(self.metric(point))
            raise ChartError("a result is not finite although the metric is: its derivatives are not finite there")
        return value

    def _times(self, times: Tensor | None, like: Tensor, count: int = 17) -> Tensor:
        if times is None:
            if count < 2:
                raise GeometryError(f"{count} times: a path needs at least two")
            return torch.linspace(0, 1, count, dtype=like.dtype, device=like.device)
        steps = times.diff() if times.dim() == 1 else times
        if times.dim() != 1 or times.numel() < 2 or not bool((steps > 0).all() | (steps < 0).all()):
            raise GeometryError(f"times {tuple(times.shape)}: (T,) with T ≥ 2, strictly increasing or decreasing")
        return times.to(like)

    @classmethod
    def euclidean(cls, n: int) -> RiemannianStructure:
        """Rⁿ with δ_ij: Γ = 0."""
        return cls(
            charts.euclidean_metric, connection=charts.euclidean_connection, inverse=charts.euclidean_metric, dim=n
        )

    @classmethod
    def conformal(
        cls, factor: Metric, *, slope: Metric | None = None, domain: Metric | None = None, dim: int | None = None
    ) -> RiemannianStructure:
        """λ(x)² δ_ij for ``factor`` λ: (..., n) → (...), positive.

        Γ^k_ij = δ_ki q_j + δ_kj q_i − δ_ij q_k with q = grad log λ, ``slope`` (..., n) or else differentiated.
        """
        return cls(
            charts.conformal_metric(factor),
            connection=charts.conformal_connection(charts.log_slope(factor) if slope is None else slope),
            inverse=charts.conformal_inverse(factor),
            domain=domain,
            dim=dim,
        )

    @classmethod
    def simplex(cls, n: int) -> RiemannianStructure:
        """Fisher–Rao on probabilities p_0..p_n in the n free coordinates p_1..p_n: δ_ij/p_i + 1/p_0, curvature ¼.

        Γ^k_ij = −δ_ijk/(2p_k) + ½ p_k g_ij.
        """
        return cls(
            charts.simplex_metric,
            connection=charts.simplex_connection,
            inverse=charts.simplex_inverse,
            domain=charts.simplex_domain,
            dim=n,
        )

    @classmethod
    def sphere(cls, radius: float | Tensor = 1.0) -> RiemannianStructure:
        """The 2-sphere in colatitude and longitude (θ, φ), 0 < θ < π: r² diag(1, sin²θ), curvature 1/r²."""
        return cls(
            charts.polar_metric(scalar("the radius", radius, positive=True)),
            connection=charts.polar_connection,
            domain=charts.polar_domain,
            dim=2,
        )

    @classmethod
    def stereographic(cls, n: int, curvature: float | Tensor) -> RiemannianStructure:
        """(2/(1 + K|x|²))² δ_ij, of sectional curvature K: the n-sphere without a point for K > 0, 4δ for K = 0. A
        tensor of one entry as K learns."""
        curvature = scalar("the curvature", curvature)
        return cls.conformal(
            charts.round_factor(curvature),
            slope=charts.round_slope(curvature),
            domain=charts.round_domain(curvature),
            dim=n,
        )

    @classmethod
    def half_plane(cls) -> RiemannianStructure:
        """Poincaré's half-plane (x, y), y > 0: δ_ij/y², curvature −1."""
        return cls.conformal(
            charts.half_plane_factor, slope=charts.half_plane_slope, domain=lambda x: x[..., 1] > 0, dim=2
        )

    @classmethod
    def poincare_ball(cls, n: int, c: float | Tensor = 1.0) -> RiemannianStructure:
        """The ball c|x|² < 1 with (2/(1 − c|x|²))² δ_ij, curvature −c for c > 0, as `PoincareBall`."""
        return cls.stereographic(n, -scalar("c", c, positive=True))


__all__ = [
    "ADAPTIVE_METHODS",
    "BoundaryGeodesic",
    "ChartError",
    "ConvergenceError",
    "CurvatureTensor",
    "Geodesic",
    "MetricError",
    "RiemannianStructure",
]
