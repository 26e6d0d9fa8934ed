"""Riemannian structure of any metric field given as a function of coordinates.

Conventions, throughout: coordinates x^k on one chart; a trailing axis of length n per index; ∂_i acts on the
coordinates; repeated indices are summed. Christoffel symbols are stored as [k, i, j] = Γ^k_ij, the curvature as
[l, k, i, j] = R^l_kij with R(∂_i, ∂_j)∂_k = R^l_kij ∂_l, so that the round sphere has positive sectional,
Ricci and scalar curvature. Formulas: do Carmo, *Riemannian Geometry*, chapters 2–4 (whose R has the other sign);
signs as in Lee, *Introduction to Riemannian Manifolds*, chapter 7.
"""

import torch
from torch import Tensor
from torch.func import grad, jvp

from aatc.geometry.integrate import Map, Path, damped_newton, derivative, estimate_velocities, rk4, solve

_State = tuple[Tensor, Tensor]  # a point and a velocity


class GeometryError(ValueError):
    """A geometric quantity was asked for where it is not defined."""


class MetricError(GeometryError):
    """The metric field is not positive definite, or does not have the shape (..., n, n)."""


class ChartError(GeometryError):
    """A curve left the chart on which the metric field is a metric."""


class GeodesicNotFoundError(GeometryError):
    """The boundary-value solver did not converge; ``residual`` holds the coordinate misses, shape (...)."""

    def __init__(self, message: str, residual: Tensor) -> None:
        super().__init__(message)
        self.residual = residual


class RiemannianStructure:
    """A Riemannian metric on one chart, and what follows from it.

    The seed's protocol with its method names; where its signatures lack an argument that the quantity depends on
    (the point of a covariant derivative, the time of a flow) it is added here.

    Args:
        metric: x (..., n) -> g (..., n, n), symmetric positive definite, each point of the batch alone, made of
            differentiable torch functions that do not write in place.
        dim: n.
        christoffel: closed form x (..., n) -> Γ (..., n, n, n) as [k, i, j]; without it autograd differentiates
            the metric, and geodesics and transport never hold the n³ symbols.
        check: look at values and raise typed errors. False skips every look at a value, as tracing and an outer
            ``vmap`` need, and so lets non-finite numbers through.

    Points, velocities and times are in the chart's own units. Float32 and float64 on any device. Every method
    raises GeometryError for a point whose last axis is not n or whose dtype is not floating, and MetricError where
    the metric has the wrong shape or is not positive definite.
    """

    def __init__(self, metric: Map, dim: int, christoffel: Map | None = None, check: bool = True) -> None:
        if dim < 1:
            raise GeometryError(f"RiemannianStructure: dim is {dim}; a chart has at least one coordinate")
        self.metric, self.dim, self.closed_form, self.check = metric, dim, christoffel, check

    def metric_tensor(self, point: Tensor, vectors: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """g_ij (..., n, n) at points (..., n), or g(u, v) (...) for ``vectors`` = (u, v), each (..., n)."""
        g = self._checked_metric(point)
        if vectors is None:
            return g
        u, v = vectors[0], vectors[1]
        for w in vectors:
            self._coordinates(w, "vector")
        return torch.einsum("...i,...ij,...j->...", u, g, v)

    def christoffel_symbols(self, point: Tensor) -> Tensor:
        """Γ^k_ij = ½ g^kl (∂_i g_lj + ∂_j g_li − ∂_l g_ij), shape (..., n, n, n) as [k, i, j] at (..., n)."""
        self._checked_metric(point)
        return self._christoffel(point)

    def nonmetricity(self, point: Tensor) -> Tensor:
        """∇_k g_ij = ∂_k g_ij − Γ^l_ki g_lj − Γ^l_kj g_il, shape (..., n, n, n) as [i, j, k]; zero for Levi-Civita.

        The test of a closed form: with symbols by autograd it vanishes by construction.
        """
        g = self._checked_metric(point)
        lowered = torch.einsum("...lki,...lj->...ijk", self._christoffel(point), g)
        return derivative(self.metric, point) - lowered - lowered.transpose(-3, -2)

    def covariant_derivative(self, field: Map, point: Tensor, direction: Tensor) -> Tensor:
        """(∇_u X)^k = u^i ∂_i X^k + Γ^k_ij u^i X^j, shape (..., n).

        ``field`` is X as a function (..., n) -> (..., n) of each point alone; ``direction`` is u (..., n).
        """
        self._checked_metric(point)
        direction = self._coordinates(direction, "direction").expand_as(point).contiguous()
        value, change = jvp(field, (point,), (direction,))[:2]
        return change + self._connection(point, direction, self._coordinates(value, "value of the field"))

    def geodesic_flow(self, point: Tensor, velocity: Tensor, time: float = 1.0, steps: int = 64) -> Path:
        """The geodesic ẍ^k + Γ^k_ij ẋ^i ẋ^j = 0 from ``point`` with ``velocity``, both (..., n), for ``time``.

        Returns a Path of steps + 1 samples. Classical Runge–Kutta: the error is O((time / steps)⁴).

        Raises:
            GeometryError: ``steps`` is below 1.
            ChartError: the geodesic left the chart before ``time``.
        """
        if steps < 1:
            raise GeometryError(f"geodesic_flow: steps is {steps}; at least one step is needed")
        self._checked_metric(point)
        point, velocity = torch.broadcast_tensors(point, self._coordinates(velocity, "velocity"))
        path = self._flow(point, velocity, time, steps)
        if self.check and not (path.points.isfinite().all() and self._positive(self.metric(path.points)).all()):
            raise ChartError(
                f"geodesic_flow: a geodesic left the chart before time {time}, or {steps} steps are too coarse; "
                "take a shorter time, more steps, or other coordinates"
            )
        return path

    def geodesic_between(
        self, start: Tensor, end: Tensor, steps: int = 64, iterations: int = 30, tolerance: float | None = None
    ) -> Path:
        """The geodesic from ``start`` to ``end``, both (..., n), on times 0 to 1: shooting with a damped Newton method.

        The first try starts from the straight chord; where it fails the end is moved along the chord in 4, then 16
        pieces. The distance is the initial speed if the geodesic found minimises. ``tolerance`` bounds the
        miss at the end in coordinates, relative to max(1, |end|); 10³ machine epsilons unless given. First
        derivatives are those of the implicit function theorem, not of the iteration; second ones are not given.
        Source: Stoer & Bulirsch, *Introduction to Numerical Analysis*, 7.3.1.

        Raises:
            GeodesicNotFoundError: no start converged; it holds the misses.
            ChartError: the geodesic found leaves the chart.
        """
        for name, x in (("start", start), ("end", end)):
            self._checked_metric(self._coordinates(x, name))
        start, end = torch.broadcast_tensors(start, end)
        tolerance = 1e3 * torch.finfo(start.dtype).eps if tolerance is None else tolerance
        bound = tolerance * end.detach().norm(dim=-1).clamp(min=1)
        with torch.no_grad():
            velocity, residual = self._continue(start.detach(), end.detach(), bound, steps, iterations)
            if not (residual <= bound).all():
                missed = int((~(residual <= bound)).sum())
                raise GeodesicNotFoundError(
                    f"geodesic_between: {missed} of {residual.numel()} geodesics did not reach their end (largest miss "
                    f"{residual.max().item():.3g}); take more steps or iterations, or nearer ends",
                    residual,
                )
            slope = derivative(lambda v: self._endpoint(start.detach(), v, steps), velocity)
        # One Newton step with the slope held: its value is the same to rounding, its derivative is the implicit one.
        velocity = velocity - solve(slope, self._endpoint(start, velocity, steps) - end)
        return self.geodesic_flow(start, velocity, 1.0, steps)

    def parallel_transport(self, path: Path | Tensor, vector: Tensor) -> Tensor:
        """The field V with V̇^k + Γ^k_ij ẋ^i V^j = 0 along ``path`` and V = ``vector`` at its first sample.

        Shapes: ``path`` a Path of m + 1 samples, or its points alone (m + 1, ..., n), equidistant samples of a smooth
        curve with m ≥ 4; ``vector`` (..., n), broadcast against a point, so that a frame (f, ..., n) goes in one
        call. Returns (m + 1, ..., n); the last entry is the transported vector. The curve between samples is the
        cubic through points and velocities, each piece one Runge–Kutta step: the error is O(m⁻⁴).

        Raises:
            GeometryError: the samples are too few, or not of the shape given.
        """
        if isinstance(path, Tensor):
            if len(path) < 5:
                raise GeometryError(f"parallel_transport: {len(path)} points; without velocities at least 5 are needed")
            path = estimate_velocities(path)
        if len(path.times) < 2 or path.points.shape != path.velocities.shape or len(path.points) != len(path.times):
            raise GeometryError("parallel_transport: a path has 2 or more times, with one point and one velocity each")
        self._checked_metric(path.points)
        vector = torch.broadcast_tensors(self._coordinates(vector, "vector"), path.points[0])[0]
        field = [vector]
        for j in range(len(path.times) - 1):
            h, x0, x1 = path.times[j + 1] - path.times[j], path.points[j], path.points[j + 1]
            v0, v1 = path.velocities[j], path.velocities[j + 1]
            middle = (0.5 * (x0 + x1) + 0.125 * h * (v0 - v1), 1.5 / h * (x1 - x0) - 0.25 * (v0 + v1))
            field.append(self._transport_step(h, (x0, v0), middle, (x1, v1), field[-1]))
        return torch.stack(field)

    def curvature_tensor(self, point: Tensor) -> Tensor:
        """R^l_kij = ∂_i Γ^l_jk − ∂_j Γ^l_ik + Γ^l_im Γ^m_jk − Γ^l_jm Γ^m_ik, shape (..., n, n, n, n) as [l, k, i, j].

        The sign: R(∂_i, ∂_j)∂_k = R^l_kij ∂_l = (∇_i∇_j − ∇_j∇_i)∂_k; constant curvature K has
        R^l_kij = K(δ^l_i g_jk − δ^l_j g_ik).
        """
        self._checked_metric(point)
        gamma = self._christoffel(point)
        half = torch.einsum("...ljki->...lkij", derivative(self._christoffel, point))
        half = half + torch.einsum("...lim,...mjk->...lkij", gamma, gamma)
        return half - half.transpose(-1, -2)

    def ricci(self, point: Tensor) -> Tensor:
        """Ric_kj = R^i_kij, shape (..., n, n); (n − 1)K g for constant curvature K."""
        return torch.einsum("...ikij->...kj", self.curvature_tensor(point))

    def scalar(self, point: Tensor) -> Tensor:
        """g^kj Ric_kj, shape (...); n(n − 1)K for constant curvature K."""
        return torch.linalg.solve(self.metric(point), self.ricci(point)).diagonal(dim1=-2, dim2=-1).sum(-1)

    def sectional(self, point: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """K(u, v) = g(R(u, v)v, u) / (g(u, u)g(v, v) − g(u, v)²), shape (...), of the plane of u and v, each (..., n).

        Raises:
            GeometryError: u and v are parallel to working precision.
        """
        uu, vv, uv = (self.metric_tensor(point, pair) for pair in ((u, u), (v, v), (u, v)))
        area = uu * vv - uv**2
        if self.check and not (area > 8 * torch.finfo(area.dtype).eps * uu * vv).all():
            raise GeometryError("sectional: u and v are parallel; a plane needs two independent vectors")
        turned = torch.einsum("...lkij,...k,...i,...j->...l", self.curvature_tensor(point), v, u, v)
        return self.metric_tensor(point, (turned, u)) / area

    def _coordinates(self, x: Tensor, name: str) -> Tensor:
        if x.ndim < 1 or x.shape[-1] != self.dim or not x.is_floating_point():
            raise GeometryError(f"the {name} is {x.dtype} of shape {tuple(x.shape)}; floating (..., {self.dim}) is due")
        return x

    def _checked_metric(self, point: Tensor) -> Tensor:
        g = self.metric(self._coordinates(point, "point"))
        if g.shape != (*point.shape, self.dim):
            raise MetricError(f"the metric at points {tuple(point.shape)} has shape {tuple(g.shape)}")
        if self.check and not (positive := self._positive(g)).all():
            at = point[~positive][0].tolist()
            raise MetricError(f"the metric is not positive definite at {at}; is the point on the chart?")
        return g

    @staticmethod
    def _positive(g: Tensor) -> Tensor:
        factor, info = torch.linalg.cholesky_ex(g.detach())
        return (info == 0) & factor.isfinite().all(-1).all(-1)

    def _christoffel(self, point: Tensor) -> Tensor:
        if self.closed_form is not None:
            gamma = self.closed_form(point)
            if gamma.shape != (*point.shape, self.dim, self.dim):
                raise MetricError(f"the closed form at points {tuple(point.shape)} has shape {tuple(gamma.shape)}")
            return gamma
        change = derivative(self.metric, point)  # [l, j, i] = ∂_i g_lj
        first = 0.5 * (change.transpose(-1, -2) + change - torch.einsum("...ijl->...lij", change))  # [l, i, j]
        return torch.linalg.solve_ex(self.metric(point), first.flatten(-2))[0].unflatten(-1, (self.dim, self.dim))

    def _connection(self, point: Tensor, u: Tensor, w: Tensor) -> Tensor:
        """Γ^k_ij u^i w^j without the symbols: 2g·Γ(u, w) = (∂_u g)w + (∂_w g)u − ∂(uᵀ g w)."""
        if self.closed_form is not None:
            return torch.einsum("...kij,...i,...j->...k", self._christoffel(point), u, w)
        same = u is w
        point, u, w = (t.contiguous() for t in torch.broadcast_tensors(point, u, w))
        g, along_u = jvp(self.metric, (point,), (u,))[:2]
        along_w = along_u if same else jvp(self.metric, (point,), (w,))[1]
        slope = grad(lambda x: torch.einsum("...i,...ij,...j->...", u, self.metric(x), w).sum())(point)
        rhs = (along_u @ w.unsqueeze(-1) + along_w @ u.unsqueeze(-1)).squeeze(-1) - slope
        return 0.5 * solve(g, rhs)

    def _transport_step(self, h: Tensor, begin: _State, middle: _State, end: _State, vector: Tensor) -> Tensor:
        first = -self._connection(*begin, vector)
        second = -self._connection(*middle, vector + 0.5 * h * first)
        third = -self._connection(*middle, vector + 0.5 * h * second)
        fourth = -self._connection(*end, vector + h * third)
        return vector + h / 6 * (first + 2 * second + 2 * third + fourth)

    def _flow(self, point: Tensor, velocity: Tensor, time: float, steps: int) -> Path:
        def field(state: Tensor) -> Tensor:
            x, v = state[..., : self.dim], state[..., self.dim :]
            return torch.cat((v, -self._connection(x, v, v)), dim=-1)

        point, velocity = torch.broadcast_tensors(point, velocity)
        states = rk4(field, torch.cat((point, velocity), dim=-1), time, steps)
        points, velocities = states[..., : self.dim], states[..., self.dim :]
        return Path(torch.linspace(0, time, steps + 1, dtype=point.dtype, device=point.device), points, velocities)

    def _endpoint(self, point: Tensor, velocity: Tensor, steps: int) -> Tensor:
        return self._flow(point, velocity, 1.0, steps).points[-1]

    def _continue(
        self, start: Tensor, end: Tensor, bound: Tensor, steps: int, iterations: int
    ) -> tuple[Tensor, Tensor]:
        """Velocity (..., n) and miss (...) of the shooting, with the end moved along the chord if need be."""

        def end_of(velocity: Tensor) -> Tensor:
            return self._endpoint(start, velocity, steps)

        chord = end - start
        velocity, residual = damped_newton(end_of, end, chord, bound, iterations)
        for pieces in (4, 16):
            if (found := residual <= bound).all():
                break
            moved, miss = chord / pieces, residual
            for j in range(1, pieces + 1):
                guess = moved * (j / max(j - 1, 1))
                moved, miss = damped_newton(end_of, start + chord * (j / pieces), guess, bound, iterations)
            velocity, residual = velocity.where(found.unsqueeze(-1), moved), residual.where(found, miss)
        return velocity, residual
