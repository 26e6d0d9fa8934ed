"""Fibre bundles with connection: atlas, cocycle, local connection forms, curvature, transport, holonomy.

Conventions: v_a = g_ab v_b for fibre coordinates in the charts a, b; v' + A(ẋ)v = 0 for parallel v;
A_b = g⁻¹ A_a g + g⁻¹ dg with g = g_ab; F = dA + A∧A. Source: S. Kobayashi, K. Nomizu, "Foundations of Differential
Geometry" I, chapters II and III; M. Nakahara, "Geometry, Topology and Physics", chapters 9 to 11.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from aatc.geometry.arguments import arguments
from aatc.geometry.bundles.bundle_charts import (
    Chart,
    Map,
    angle_charts,
    ball_chart,
    ball_frame,
    conformal_connection,
    rotation,
    sphere_frame,
    sphere_tangent_transition,
    stereographic_charts,
    whole_space,
)
from aatc.geometry.bundles.connection import (
    LoopError,
    Path,
    PathError,
    PathFunction,
    check_samples,
    check_steps,
    evaluate,
    gauss_grid,
    magnus_factor,
    ordered_product,
    partials,
    piecewise_geodesic,
    points_and_velocities,
)
from aatc.geometry.bundles.coordinate_bundle import BundleError, CoordinateBundle, ResidualError
from aatc.geometry.manifold import Euclidean, Manifold, PointShapeError, dot
from aatc.geometry.manifolds.hyperbolic import Hyperboloid
from aatc.geometry.manifolds.sphere import Sphere

METHODS = ("auto", "magnus")
_ENTRIES = 1 << 22  # matrix entries that the integrator holds at a time, for each of its arrays


class GaugeError(ResidualError):
    """Connection forms that break A_b = g⁻¹A_a g + g⁻¹dg."""


class FiberBundle(CoordinateBundle):
    """A bundle in coordinates with a connection: for each chart A_a, coordinates (..., m) → (..., m, r, r).

    The other arguments, the fibre's conventions and the check when the bundle is made are those of
    `CoordinateBundle`; `check_connection` is the check that the forms fit together.

    The seed's method names are kept, and corrected where they lacked an argument: fibre charts and 1-forms depend on
    the chart, and a connection form on the point, so `local_trivialization` and `connection_form` take them;
    `parallel_transport` takes the fibre over the path's start, not a section, of which it would use no more.

    Raises: BundleError for charts, transitions or connections that are missing; CocycleError; ContinuityError;
    PointShapeError.
    """

    def __init__(
        self,
        base: Manifold,
        dimension: int,
        rank: int,
        charts: Sequence[Chart],
        transitions: Mapping[tuple[str, str], Map],
        connections: Mapping[str, Map],
        *,
        principal: bool = False,
        samples: Tensor | None = None,
    ) -> None:
        super().__init__(base, dimension, rank, charts, transitions, principal=principal, samples=samples)
        if set(connections) != set(self._index):
            raise BundleError(f"connections are given for {sorted(connections)}, the charts are {sorted(self._index)}")
        self._connections = dict(connections)
        self._frames: dict[str, Map] = {}

    @classmethod
    def trivial(cls, dimension: int, rank: int, connection: Map, *, principal: bool = False) -> FiberBundle:
        """Rⁿ × Rʳ with one connection form, points (..., n) → (..., n, r, r)."""
        return cls(Euclidean(), dimension, rank, [whole_space()], {}, {"whole": connection}, principal=principal)

    @classmethod
    def tangent(cls, manifold: Sphere | Hyperboloid, dimension: int) -> FiberBundle:
        """The tangent bundle of Sᵐ or Hᵐ, m = ``dimension``, with the Levi-Civita connection in orthonormal frames.

        Charts: ``north`` and ``south``, or ``ball``. Transport along sampled points is in closed form. `frame` gives
        the frames as ambient vectors. Raises `BundleError` for other manifolds.
        """
        frames: dict[str, Map]
        if isinstance(manifold, Sphere):
            r = manifold.radius
            frames = {"north": sphere_frame(r, 1), "south": sphere_frame(r, -1)}
            charts: tuple[Chart, ...] = stereographic_charts(manifold)
            transitions: dict[tuple[str, str], Map] = {("north", "south"): sphere_tangent_transition}
            form = conformal_connection(1)
        elif isinstance(manifold, Hyperboloid):
            frames, charts, transitions = {"ball": ball_frame(manifold.c)}, (ball_chart(manifold),), {}
            form = conformal_connection(-1)
        else:
            raise BundleError(f"tangent bundles are ready for Sphere and Hyperboloid, not {manifold!r}")
        # The transition is a closed form, which one point of the overlap is enough to try: polygons make bundles often.
        one = charts[0].point(torch.full((1, dimension), 0.6 / math.sqrt(dimension), dtype=torch.float64))
        connections = dict.fromkeys(frames, form)
        bundle = cls(manifold, dimension + 1, dimension, charts, transitions, connections, samples=one)
        bundle._frames = frames
        return bundle

    @classmethod
    def monopole(cls, charge: int, sphere: Sphere | None = None) -> FiberBundle:
        """The bundle over S² of Chern number ``charge`` with group SO(2): the Hopf bundle for ±1, TS² for 2.

        A = −n J (y₁ dy₂ − y₂ dy₁)/(1 + |y|²) in both stereographic charts, J = [[0, −1], [1, 0]], that is −iA of
        Dirac's monopole, whose flux is 2πn; g_north,south = exp(nφJ), φ the longitude. Raises `BundleError` for a
        charge that is not an integer: the transition would not close.
        """
        if isinstance(charge, bool) or not isinstance(charge, int):
            raise BundleError(f"a monopole's charge is an integer, got {charge!r}")

        def form(y: Tensor) -> Tensor:
            turned = torch.stack([-y[..., 1], y[..., 0]], -1) * (-charge / (1 + dot(y, y)))
            generator = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=y.dtype, device=y.device)
            return turned[..., None, None] * generator

        base = Sphere() if sphere is None else sphere
        transitions: dict[tuple[str, str], Map] = {
            ("north", "south"): lambda x: rotation(charge * torch.atan2(x[..., 1], x[..., 0]))
        }
        return cls(base, 3, 2, stereographic_charts(base), transitions, {"north": form, "south": form})

    @classmethod
    def moebius(cls) -> FiberBundle:
        """The Möbius line bundle over the unit circle, flat: A = 0, g = 1 on the upper half and −1 on the lower."""

        def zero(y: Tensor) -> Tensor:
            return torch.zeros_like(y)[..., None, None]

        transitions: dict[tuple[str, str], Map] = {
            ("right", "left"): lambda x: torch.where(x[..., 1:] > 0, 1.0, -1.0).to(x).unsqueeze(-1)
        }
        return cls(Sphere(), 2, 1, angle_charts(), transitions, {"right": zero, "left": zero})

    def check_connection(self, point: Tensor, atol: float | None = None) -> Tensor:
        """The largest entry of A_b − g⁻¹A_a g − g⁻¹dg, g = g_ab, over all pairs of charts at each point, (...).

        Raises `GaugeError` if one exceeds ``atol`` (default: the root of the dtype's epsilon) or is not finite.
        """
        self._check_points(point)
        flat = point.reshape(-1, self.dimension)
        inside = self._margins(flat) > 0
        residual = flat.new_zeros(flat.shape[0])
        for a in range(len(self.charts)):
            for b in range(len(self.charts)):
                where = (inside[:, a] & inside[:, b]).nonzero().squeeze(-1)
                if a != b and where.numel():
                    defect = self._gauge_defect(a, b, flat[where])
                    residual = residual.index_put((where,), torch.maximum(residual[where], defect))
        self._refuse(residual, atol, GaugeError, "the connection forms do not fit: A_b − g⁻¹A_a g − g⁻¹dg")
        return residual.reshape(point.shape[:-1])

    def connection_form(self, point: Tensor, tangent_vector: Tensor, chart: str | None = None) -> Tensor:
        """A(u), (..., r, r), of ambient tangent vectors u (..., n) at base points, in ``chart`` or the home chart.

        Raises `ChartError`, `PointShapeError`.
        """
        self._check_points(point, tangent_vector)
        point, tangent_vector = torch.broadcast_tensors(point, tangent_vector)
        self._require_inside(point, chart)
        return self._scatter(self._numbers(chart, point), self._contracted, point, tangent_vector)

    def curvature_form(self, point: Tensor, chart: str | None = None) -> Tensor:
        """F_ij = ∂_iA_j − ∂_jA_i + [A_i, A_j] in the chart's coordinates, (..., m, m, r, r). Raises `ChartError`."""
        self._check_points(point)
        self._require_inside(point, chart)
        return self._scatter(
            self._numbers(chart, point), lambda a, x: self._curvature(a, self.charts[a].coordinates(x)), point
        )

    def frame(self, point: Tensor, chart: str | None = None) -> Tensor:
        """The frame of a tangent bundle at base points as ambient vectors, the columns of (..., n, r).

        Raises `BundleError` for bundles that are not `tangent`, `ChartError`.
        """
        if not self._frames:
            raise BundleError("only the bundles of FiberBundle.tangent have frames of ambient vectors")
        self._check_points(point)
        self._require_inside(point, chart)
        return self._scatter(self._numbers(chart, point), lambda a, x: self._frames[self.charts[a].name](x), point)

    def parallel_transport(
        self,
        section: Tensor,
        path: Path,
        *,
        steps: int = 64,
        start_chart: str | None = None,
        end_chart: str | None = None,
        method: str = "auto",
    ) -> Tensor:
        """The fibre at the path's end that is parallel to ``section``, fibre coordinates over its start.

        ``section`` (..., r), principal (..., r, r), broadcasts with the path's batch; the rest as `transport_matrix`,
        which is applied.
        """
        self._check_fibre(section, path.dtype if isinstance(path, Tensor) else section.dtype)
        matrix = self.transport_matrix(
            path,
            steps=steps,
            start_chart=start_chart,
            end_chart=end_chart,
            method=method,
            dtype=section.dtype,
            device=section.device,
        )
        return self._act(matrix, section)

    def transport_matrix(
        self,
        path: Path,
        *,
        steps: int = 64,
        start_chart: str | None = None,
        end_chart: str | None = None,
        method: str = "auto",
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """U, (..., r, r), of transport along a path (see `aatc.geometry.bundles.connection`), from the frame of
        ``start_chart`` at its start to that of ``end_chart`` at its end, by default the home charts.

        ``method`` "magnus": ``steps`` equal steps of order 4, exactly orthogonal for skew A, each in the chart that
        is deepest along it; for sampled points steps are raised to a multiple of the pieces. "auto": the closed
        form for sampled points in a tangent bundle, otherwise "magnus". ``dtype`` and ``device`` are those of the
        times that a path function receives, and sampled points bring their own. Raises `PathError`, `ChartError`.
        """
        if method not in METHODS:
            raise BundleError(f"method {method!r} is not one of {', '.join(METHODS)}")
        pieces = 1
        if isinstance(path, Tensor):
            points = path
            path = piecewise_geodesic(self.base, points)
            self._check_points(points)
            pieces, dtype, device = points.shape[0] - 1, points.dtype, points.device
            if method == "auto" and self._frames:
                return self._closed_transport(points, start_chart, end_chart)
        dtype = dtype or torch.get_default_dtype()
        if torch.finfo(dtype).bits < 32:
            raise PointShapeError(f"transport is not integrated in {dtype}: convert the path to float32 or float64")
        grid = gauss_grid(check_steps(steps, pieces), dtype, device)
        return self._integrate(path, *grid, start_chart, end_chart)

    def holonomy(
        self,
        loop: Path,
        *,
        steps: int = 64,
        chart: str | None = None,
        method: str = "auto",
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """The group element (..., r, r) of a closed path, in the frame of ``chart`` (default: home) at its start.

        Otherwise as `transport_matrix`. Raises `LoopError` if the ends differ by more than the root of epsilon.
        """
        if isinstance(loop, Tensor):
            check_samples(loop)
            ends = loop[[0, -1]]
        else:
            times = torch.tensor([0.0, 1.0], dtype=dtype or torch.get_default_dtype(), device=device)
            ends = evaluate(loop, times, self.dimension)
        self._check_points(ends)
        gap = float((ends[1] - ends[0]).detach().abs().max()) if ends.numel() else 0.0
        room = torch.finfo(ends.dtype).eps ** 0.5 * (1 + float(ends.detach().abs().max())) if ends.numel() else 0.0
        if not gap <= room:
            raise LoopError(f"the path ends {gap:.3g} away from its start: a holonomy needs a closed path", gap=gap)
        # one dictionary of several types: a checker sees their union in every place
        keys = {"steps": steps, "method": method, "dtype": dtype, "device": device}
        matrix = self.transport_matrix(loop, start_chart=chart, end_chart=chart, **keys)  # type: ignore[arg-type]
        if chart is not None:
            return matrix
        # Rounding may give the two ends different home charts.
        home = [self._numbers(None, end) for end in ends]
        return self._transition(ends[0], home[0], home[1]) @ matrix

    @arguments(nodes="integer")
    def chern_number(
        self, nodes: int = 24, *, dtype: torch.dtype = torch.float64, device: torch.device | None = None
    ) -> Tensor:
        """c₁ = −(1/2π)∮ tr(JᵀF)/2 of an SO(2) bundle over S², (), by quadrature over the two hemispheres.

        Gauss nodes in |y| and equal angles, ``nodes`` of each, over |y| ≤ 1 of ``north`` and of ``south``: exact to
        rounding for smooth connections as ``nodes`` grows, an integer up to that error, and a tensor that follows
        the connection's parameters. That holds for a bundle alone, so along the equator, where the hemispheres meet,
        the transition is searched for jumps, and the connection forms must fit: ContinuityError, GaugeError.
        Raises `BundleError` for other bases and groups, and without nodes.
        """
        if nodes < 1:
            raise BundleError(f"nodes = {nodes}: a quadrature needs at least one")
        if not isinstance(self.base, Sphere) or (self.dimension, self.rank) != (3, 2) or self.principal:
            raise BundleError("the Chern number is computed for vector bundles of rank 2 over the sphere S²")
        for name, chart in zip(("north", "south"), stereographic_charts(self.base)):
            probe = chart.point(torch.tensor([[0.2, 0.5]], dtype=dtype, device=device))
            if name not in self._index or not torch.allclose(
                self.chart(name).coordinates(probe), chart.coordinates(probe)
            ):
                raise BundleError("the Chern number needs the charts of stereographic_charts, north and south")
        roots, weights = np.polynomial.legendre.leggauss(nodes)
        radius = torch.as_tensor((roots + 1) / 2, dtype=dtype, device=device)
        weight = torch.as_tensor(weights / 2, dtype=dtype, device=device) * radius * (2 * math.pi / nodes)
        angle = torch.arange(nodes, dtype=dtype, device=device) * (2 * math.pi / nodes)
        disc = radius[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)
        around = torch.arange(64, dtype=dtype, device=device) * (2 * math.pi / 64)
        equator = self.base.radius * torch.stack([around.cos(), around.sin(), torch.zeros_like(around)], -1)
        self.check_continuity(equator)
        with torch.no_grad():
            self.check_connection(equator)
        total = torch.zeros((), dtype=dtype, device=device)
        for name in ("north", "south"):
            field = self._curvature(self._number(name), disc)[..., 0, 1, :, :]
            if not torch.allclose(field, -field.mT, atol=torch.finfo(dtype).eps ** 0.5):
                raise BundleError("the curvature is not skew, so the group is not SO(2)")
            total = total + (weight.unsqueeze(-1) * (field[..., 1, 0] - field[..., 0, 1]) / 2).sum()
        return -total / (2 * math.pi)

    def _form(self, chart: int, coordinates: Tensor) -> Tensor:
        """A_a at local coordinates, (..., m, r, r)."""
        form = self._connections[self.charts[chart].name](coordinates)
        wanted = (*coordinates.shape, self.rank, self.rank)
        if form.shape != wanted:
            raise PointShapeError(
                f"the connection form of {self.charts[chart].name!r} gave {tuple(form.shape)} for coordinates "
                f"{tuple(coordinates.shape)}, not {wanted}"
            )
        if not bool(form.detach().isfinite().all()):
            raise BundleError(f"the connection form of {self.charts[chart].name!r} is not finite")
        return form

    def _contracted(self, chart: int, point: Tensor, vector: Tensor) -> Tensor:
        """A(u), (..., r, r), of an ambient vector."""
        y, dy = torch.func.jvp(self.charts[chart].coordinates, (point,), (vector,))[:2]
        turned: Tensor = (dy[..., None, None] * self._form(chart, y)).sum(-3)
        return turned

    def _curvature(self, chart: int, coordinates: Tensor) -> Tensor:
        """F at local coordinates, (..., m, m, r, r)."""
        form = self._form(chart, coordinates)
        slope = partials(lambda y: self._form(chart, y), coordinates).movedim(0, -4)
        product = form.unsqueeze(-3) @ form.unsqueeze(-4)
        return slope - slope.transpose(-4, -3) + product - product.transpose(-4, -3)

    def _gauge_defect(self, a: int, b: int, point: Tensor) -> Tensor:
        """The largest entry of A_b − g⁻¹A_a g − g⁻¹dg in the coordinates of b, (...)."""
        one, other = self.charts[a], self.charts[b]
        y = other.coordinates(point)
        dy = partials(lambda z: one.coordinates(other.point(z)), y)
        dg = partials(lambda z: self._pair(a, b, other.point(z)), y)
        g, form = self._pair(a, b, point), self._form(a, one.coordinates(point))
        pulled = (dy[..., None, None] * form).sum(-3)
        carried: Tensor = torch.linalg.solve(g, pulled @ g + dg)
        return (self._form(b, y) - carried.movedim(0, -3)).abs().amax((-3, -2, -1))

    def _integrate(
        self, path: PathFunction, ends: Tensor, nodes: Tensor, start_chart: str | None, end_chart: str | None
    ) -> Tensor:
        """Magnus steps between the times ``ends`` (N + 1,) with Gauss ``nodes`` (N, 2), as `transport_matrix`."""
        steps = nodes.shape[0]
        x_ends = evaluate(path, ends, self.dimension)
        x, u = points_and_velocities(path, nodes.flatten(), self.dimension)
        x, u = (z.unflatten(0, (steps, 2)) for z in (x, u))
        depth = torch.stack([self._margins(z) for z in (x_ends[:-1], x[:, 0], x[:, 1], x_ends[1:])]).amin(0)
        charts = self._deepest(depth, "steps (take more of them)")
        start, end = self._numbers(start_chart, x_ends[0]), self._numbers(end_chart, x_ends[-1])
        total = self._transition(x_ends[0], charts[0], start)
        size = max(1, _ENTRIES // max(1, charts[0].numel() * 2 * self.rank**2))
        for first in range(0, steps, size):
            part = slice(first, min(first + size, steps))
            pair = charts[part].unsqueeze(1).expand(-1, 2, *charts.shape[1:])
            slope = -self._scatter(pair, self._contracted, x[part], u[part])
            factors = magnus_factor(slope[:, 0], slope[:, 1], 1 / steps)
            following = torch.cat([charts, charts[-1:]])[part.start + 1 : part.stop + 1]
            if bool((following != charts[part]).any()):
                knots = x_ends[part.start + 1 : part.stop + 1]
                factors = self._transition(knots, following, charts[part]) @ factors
            total = ordered_product(factors) @ total
        if not bool(total.detach().isfinite().all()):
            raise PathError("the transport overflows: the connection form along the path is too large for the dtype")
        return self._transition(x_ends[-1], end, charts[-1]) @ total

    def _closed_transport(self, points: Tensor, start_chart: str | None, end_chart: str | None) -> Tensor:
        """Along geodesics, by the manifold's transport of the home frames of the points (T, ..., n)."""
        frames = self.frame(points)
        x, y = points[:-1].unsqueeze(-2), points[1:].unsqueeze(-2)
        moved = self.base.transport(x, y, frames[:-1].mT)
        # The Lorentz product of the hyperboloid's ambient space differs from the dot product in the first sign alone.
        lowered = torch.cat([-moved[..., :1], moved[..., 1:]], -1) if isinstance(self.base, Hyperboloid) else moved
        total = ordered_product(frames[1:].mT @ lowered.mT)
        home, first, last = self.home_chart(points[[0, -1]]), points[0], points[-1]
        start, end = self._numbers(start_chart, first), self._numbers(end_chart, last)
        return self._transition(last, end, home[1]) @ total @ self._transition(first, home[0], start)


@arguments(manifold=Manifold, vertices=Tensor)
def holonomy_of_polygon(manifold: Sphere | Hyperboloid, vertices: Tensor) -> Tensor:
    """Transport once round the geodesic polygon of ``vertices`` (V, ..., m + 1), in closed form, (..., m, m).

    In the oriented orthonormal frame of the tangent bundle's home chart at the first vertex. In two dimensions it
    is the rotation by the enclosed area times the curvature: on S²(1) the excess of the angles, on H² minus their
    defect, counterclockwise. Source: Gauss and Bonnet; do Carmo, "Differential Geometry of Curves and Surfaces",
    section 4.5. Raises `PathError` for fewer than two vertices, `CutLocusError`, `BundleError`, `PointShapeError`.
    """
    if vertices.ndim < 2 or vertices.shape[0] < 2:
        raise PathError(f"vertices have the shape (V, ..., m + 1) with V ≥ 2, got {tuple(vertices.shape)}")
    bundle = FiberBundle.tangent(manifold, vertices.shape[-1] - 1)
    return bundle.holonomy(torch.cat([vertices, vertices[:1]]))
