"""Integrators of ẍ = F(x, ẋ): Runge–Kutta steps for the initial value, Gauss collocation for the boundary value.

F takes points and velocities (..., n) and treats the points of a batch apart; a value that is not finite marks a
point outside the domain.

Sources: E. Hairer, S. Nørsett, G. Wanner, "Solving Ordinary Differential Equations I", sections II.1 and II.7;
U. Ascher, R. Mattheij, R. Russell, "Numerical Solution of Boundary Value Problems", chapter 5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torchdiffeq
from torch import Tensor

from aatc.geometry.charts import ChartError
from aatc.geometry.curvature import directional_derivative, require_full_precision
from aatc.geometry.manifold import GeometryError

Acceleration = Callable[[Tensor, Tensor], Tensor]
Derivatives = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

ADAPTIVE_METHODS = ("dopri8", "dopri5", "bosh3")
STAGES = (8, 16, 32, 64, 128)
_JACOBIAN_ENTRIES = 2**24


class ConvergenceError(GeometryError):
    """An iteration that did not reach its tolerance; ``residual`` and ``iterations`` say how far it came."""

    def __init__(self, message: str, *, residual: float, iterations: int) -> None:
        super().__init__(message)
        self.residual = residual
        self.iterations = iterations


def rk4_step(acceleration: Acceleration, x: Tensor, v: Tensor, h: float | Tensor) -> tuple[Tensor, Tensor]:
    """One step of length ``h`` of the classical Runge–Kutta method of order 4, for positions and velocities."""
    a1 = acceleration(x, v)
    v2 = v + 0.5 * h * a1
    a2 = acceleration(x + 0.5 * h * v, v2)
    v3 = v + 0.5 * h * a2
    a3 = acceleration(x + 0.5 * h * v2, v3)
    v4 = v + h * a3
    a4 = acceleration(x + h * v3, v4)
    return x + h / 6 * (v + 2 * v2 + 2 * v3 + v4), v + h / 6 * (a1 + 2 * a2 + 2 * a3 + a4)


def rk4_path(acceleration: Acceleration, x: Tensor, v: Tensor, times: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Positions and velocities at ``times`` (T,), each (T, ..., n), by ``steps`` steps between neighbours."""
    points, velocities = [x], [v]
    for length in times.diff():
        for _ in range(steps):
            x, v = rk4_step(acceleration, x, v, length / steps)
        points.append(x)
        velocities.append(v)
    return torch.stack(points), torch.stack(velocities)


def adaptive_path(
    acceleration: Acceleration, x: Tensor, v: Tensor, times: Tensor, method: str, rtol: float, atol: float
) -> tuple[Tensor, Tensor]:
    """Positions and velocities at ``times`` (T,), each (T, ..., n), by a ``method`` of ADAPTIVE_METHODS.

    The step is chosen for the largest error in the whole batch. Raises: ChartError where no step is small enough.
    """
    if x.numel() == 0:
        return x.expand(times.numel(), *x.shape), v.expand(times.numel(), *v.shape)

    def field(_: Tensor, state: Tensor) -> Tensor:
        point, velocity = state.chunk(2, -1)
        return torch.cat((velocity, acceleration(point, velocity)), -1)

    # The root mean square that torchdiffeq would take lets one point of a large batch go astray, and its values
    # between steps are of lower order than the steps, so every time is a step.
    options = {"norm": lambda error: error.abs().max(), "max_num_steps": 10_000, "step_t": times[1:].detach()}
    try:
        states = torchdiffeq.odeint(
            field, torch.cat((x, v), -1), times, method=method, rtol=rtol, atol=atol, options=options
        )
    except AssertionError as error:
        raise ChartError(
            f"no step of {method} is small enough: a geodesic leaves the chart or its curvature is too strong "
            f"for rtol {rtol:.3g}; end it earlier"
        ) from error
    points, velocities = states.chunk(2, -1)
    return points, velocities


def rk4_linear(apply: Callable[[int, Tensor], Tensor], w: Tensor, times: Tensor) -> Tensor:
    """w' = A(t) w at ``times`` (T,) from w at the first, (T, ..., n), one RK4 step between neighbours.

    ``apply(i, w)`` is A w at the time of index i/2: even indices are nodes, odd ones middles.
    """
    values = [w]
    for i, h in enumerate(times.diff()):
        k1 = apply(2 * i, w)
        k2 = apply(2 * i + 1, w + 0.5 * h * k1)
        k3 = apply(2 * i + 1, w + 0.5 * h * k2)
        k4 = apply(2 * i + 2, w + h * k3)
        w = w + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        values.append(w)
    return torch.stack(values)


def _between(nodes: Tensor, middles: Tensor) -> Tensor:
    """The sequence node, middle, node, ..., node along the first axis."""
    pairs = torch.stack((nodes[:-1], middles), 1).flatten(0, 1)
    return torch.cat((pairs, nodes[-1:]))


def hermite_middles(times: Tensor, points: Tensor, velocities: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and velocities (2T − 1, ..., n) at (T,) times and halfway, by cubic Hermite: both of order 4."""
    h = times.diff().reshape(-1, *[1] * (points.dim() - 1))
    x = 0.5 * (points[:-1] + points[1:]) - h / 8 * velocities.diff(dim=0)
    v = 1.5 * points.diff(dim=0) / h - 0.25 * (velocities[:-1] + velocities[1:])
    return _between(points, x), _between(velocities, v)


def curve_with_middles(curve: Callable[[Tensor], Tensor], times: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and velocities (2T − 1, ..., n) of a function () → (..., n) at (T,) times and halfway between."""
    instants = _between(times, 0.5 * (times[:-1] + times[1:]))
    points, velocities = zip(*(directional_derivative(curve, t, torch.ones_like(t)) for t in instants))
    return torch.stack(points), torch.stack(velocities)


@dataclass(frozen=True)
class GaussScheme:
    """The polynomial through values at the s Gauss–Legendre nodes of [0, 1], and its integrals, as matrices.

    ``nodes`` and ``weights`` are (s,); ``once`` (s, s) and ``twice`` (s, s) integrate from 0 to each node.
    """

    nodes: Tensor
    weights: Tensor
    once: Tensor
    twice: Tensor

    def at(self, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Matrices (T, s) that take values at the nodes to the value, the first and second integral at ``times``."""
        return _interpolation(self.nodes, self.weights, times.to(self.nodes))


def _shifted_legendre(times: Tensor, count: int) -> list[Tensor]:
    """P_k(2t − 1) for k < count, count ≥ 2."""
    z = 2 * times - 1
    values = [torch.ones_like(z), z]
    for k in range(1, count - 1):
        values.append(((2 * k + 1) * z * values[k] - k * values[k - 1]) / (k + 1))
    return values[:count]


def _integrals(values: list[Tensor], first: Tensor) -> list[Tensor]:
    """∫₀ᵗ of the functions, by ∫P_k = (P_{k+1} − P_{k−1})/(2(2k + 1)) for k ≥ 1; ``first`` is that of number 0."""
    return [first, *((values[k + 1] - values[k - 1]) / (2 * (2 * k + 1)) for k in range(1, len(values) - 1))]


def _interpolation(nodes: Tensor, weights: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    stages = nodes.numel()
    values = _shifted_legendre(times, stages + 2)
    once = _integrals(values, times)
    twice = _integrals(once, 0.5 * times.square())
    degrees = torch.arange(stages, dtype=nodes.dtype, device=nodes.device)
    # The coefficients of the interpolating polynomial: the Gauss rule is exact for the products it needs.
    analysis = (2 * degrees + 1)[:, None] * torch.stack(_shifted_legendre(nodes, stages)) * weights
    value, one, two = (torch.stack(f[:stages], -1) @ analysis for f in (values, once, twice))
    return value, one, two


@lru_cache(maxsize=32)
def _scheme(stages: int) -> GaussScheme:
    k = torch.arange(1, stages, dtype=torch.float64)
    off = k / (4 * k.square() - 1).sqrt()
    # Golub and Welsch: the nodes are the eigenvalues of the Jacobi matrix of the Legendre polynomials.
    roots, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    nodes, weights = 0.5 * (roots + 1), vectors[0].square()
    _, once, twice = _interpolation(nodes, weights, nodes)
    return GaussScheme(nodes, weights, once, twice)


def gauss_scheme(stages: int, like: Tensor) -> GaussScheme:
    """The scheme of ``stages`` ≥ 2 nodes in the dtype and on the device of ``like``."""
    with torch.no_grad():
        scheme = _scheme(stages)
    return GaussScheme(*(t.to(like) for t in (scheme.nodes, scheme.weights, scheme.once, scheme.twice)))


@dataclass(frozen=True)
class BoundarySolution:
    """x(t), ẋ(t) at the asked times (T, ..., n), ẋ(0) (..., n), the worst relative residual, the Newton steps."""

    points: Tensor
    velocities: Tensor
    initial_velocity: Tensor
    residual: float
    iterations: int


class _Collocation:
    """Unknown accelerations a (B, s, n) at the nodes, with x and ẋ their integrals that meet both ends (B, n)."""

    def __init__(self, acceleration: Acceleration, derivatives: Derivatives, x: Tensor, y: Tensor, stages: int) -> None:
        self.acceleration, self.derivatives = acceleration, derivatives
        self.x, self.y = x, y
        self.scheme = gauss_scheme(stages, x)
        self.moments = self.scheme.weights * (1 - self.scheme.nodes)

    def toward(self, x: Tensor, y: Tensor) -> "_Collocation":
        return _Collocation(self.acceleration, self.derivatives, x, y, self.scheme.nodes.numel())

    def initial_velocity(self, a: Tensor) -> Tensor:
        return self.y - self.x - torch.einsum("s,bsn->bn", self.moments, a)

    def path(self, a: Tensor, times: Tensor, once: Tensor, twice: Tensor) -> tuple[Tensor, Tensor]:
        start = self.initial_velocity(a)[:, None]
        return self.x[:, None] + times[:, None] * start + twice @ a, start + once @ a

    def nodes(self, a: Tensor) -> tuple[Tensor, Tensor]:
        return self.path(a, self.scheme.nodes, self.scheme.once, self.scheme.twice)

    def residual(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """a − F at the nodes, and per batch its largest entry relative to |y − x| + |F|; inf outside the domain."""
        force = self.acceleration(*self.nodes(a))
        return a - force, self._relative(a - force, force)

    def _relative(self, r: Tensor, force: Tensor) -> Tensor:
        size = (self.y - self.x).abs().amax(-1) + force.abs().amax((-2, -1)) + torch.finfo(r.dtype).tiny
        relative = r.abs().amax((-2, -1)) / size
        return torch.where(relative.isfinite(), relative, torch.full_like(relative, torch.inf))

    def defect(self, a: Tensor) -> Tensor:
        """The relative residual between the nodes, (B,): what the polynomial misses of the differential equation."""
        times = torch.linspace(0, 1, 2 * self.scheme.nodes.numel() + 1, dtype=a.dtype, device=a.device)
        value, once, twice = self.scheme.at(times)
        force = self.acceleration(*self.path(a, times, once, twice))
        return self._relative(value @ a - force, force)

    def jacobian(self, a: Tensor) -> Tensor:
        """∂(a − F)/∂a, (B, s n, s n)."""
        stages, n = a.shape[-2:]
        by_x, by_v = self.derivatives(*self.nodes(a))
        shift = self.scheme.twice - self.scheme.nodes[:, None] * self.moments
        turn = self.scheme.once - self.moments
        coupling = torch.einsum("bskm,sj->bskjm", by_x, shift) + torch.einsum("bskm,sj->bskjm", by_v, turn)
        flat = coupling.reshape(a.shape[0], stages * n, stages * n)
        return torch.eye(stages * n, dtype=a.dtype, device=a.device) - flat


def _select(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *[1] * (old.dim() - 1)), new, old)


def _newton(system: _Collocation, a: Tensor, tolerance: float, limit: int) -> tuple[Tensor, Tensor, int]:
    """Newton with halved steps from ``a``: the accelerations, their relative residuals (B,), the steps taken."""
    r, size = system.residual(a)
    stuck = ~size.isfinite()
    taken = 0
    while taken < limit and bool(((size > tolerance) & ~stuck).any()):
        taken += 1
        active = ((size > tolerance) & ~stuck).nonzero().squeeze(-1)
        part = system.toward(system.x[active], system.y[active])
        old, old_size = a[active], size[active]
        step, _ = torch.linalg.solve_ex(part.jacobian(old), r[active].flatten(1).unsqueeze(-1))
        step = step.reshape(old.shape)
        best, best_r, best_size = old, r[active], old_size
        waiting = torch.ones_like(old_size, dtype=torch.bool)
        fraction = 1.0
        while fraction > 1e-3 and bool(waiting.any()):
            trial = old - fraction * step
            trial_r, trial_size = part.residual(trial)
            good = waiting & (trial_size < (1 - 0.25 * fraction) * old_size)
            best, best_r = _select(good, trial, best), _select(good, trial_r, best_r)
            best_size = torch.where(good, trial_size, best_size)
            waiting = waiting & ~good
            fraction *= 0.5
        a, r = a.index_copy(0, active, best), r.index_copy(0, active, best_r)
        size, stuck = size.index_copy(0, active, best_size), stuck.index_copy(0, active, waiting)
    return a, size, taken


def _continued(system: _Collocation, tolerance: float, limit: int) -> tuple[Tensor, Tensor, int]:
    """The solution that grows from the constant one as the end moves along the chart's segment from x to y."""
    batch, (stages, n) = system.x.shape[0], (system.scheme.nodes.numel(), system.x.shape[-1])
    reached, stride = system.x.new_zeros(batch), system.x.new_full((batch,), 0.25)
    a, size, taken = system.x.new_zeros(batch, stages, n), system.x.new_full((batch,), torch.inf), 0
    while taken < limit and bool(((reached < 1) & (stride > 1e-3)).any()):
        goal = (reached + stride).clamp_max(1)
        # Accelerations are quadratic in the length of a geodesic.
        ratio = torch.where(reached > 0, (goal / reached.clamp_min(1e-30)).square(), torch.zeros_like(goal))
        part = system.toward(system.x, system.x + goal[:, None] * (system.y - system.x))
        trial, trial_size, steps = _newton(part, ratio[:, None, None] * a, tolerance, 12)
        taken += max(steps, 1)
        good = trial_size <= tolerance
        a, reached = _select(good, trial, a), torch.where(good, goal, reached)
        stride = torch.where(good, 1.5 * stride, 0.25 * stride)
        size = torch.where(reached == 1, torch.where(good, trial_size, size), torch.full_like(size, torch.inf))
    return a, size, taken


def _solve(
    acceleration: Acceleration, derivatives: Derivatives, x: Tensor, y: Tensor, tolerance: float, limit: int
) -> tuple[_Collocation, Tensor, float, int]:
    """Newton at a growing number of nodes until the defect between the nodes is below ``tolerance``."""
    sharp = max(1e-2 * tolerance, 64 * torch.finfo(x.dtype).eps)
    a = x.new_zeros(x.shape[0], STAGES[0], x.shape[-1])
    worst, taken = float("inf"), 0
    previous: _Collocation | None = None
    for stages in STAGES:
        system = _Collocation(acceleration, derivatives, x, y, stages)
        if previous is not None:
            a = previous.scheme.at(system.scheme.nodes)[0] @ a
        a, size, steps = _newton(system, a, sharp, limit)
        taken += steps
        lost = (size > sharp).nonzero().squeeze(-1)
        if lost.numel():
            found, found_size, steps = _continued(system.toward(x[lost], y[lost]), sharp, 8 * limit)
            taken += steps
            a, size = a.index_copy(0, lost, found), size.index_copy(0, lost, found_size)
        worst = float(torch.maximum(size, system.defect(a)).max()) if size.numel() else 0.0
        if worst <= tolerance:
            return system, a, worst, taken
        previous = system
    raise ConvergenceError(
        f"no geodesic between the points within {tolerance:.3g}: relative residual {worst:.3g} after {taken} Newton "
        "steps; take points closer together, or a chart in which the segment between them stays well inside",
        residual=worst,
        iterations=taken,
    )


def _polished(system: _Collocation, a: Tensor, x: Tensor, y: Tensor) -> tuple[_Collocation, Tensor]:
    """The solution as a differentiable function of the ends and of whatever F closes over, up to second derivatives.

    At a solution each step with a frozen Jacobian makes one more derivative exact (implicit function theorem).
    """
    with torch.no_grad():
        factors, pivots = torch.linalg.lu_factor(system.jacobian(a))
    free = system.toward(x, y)
    for _ in range(2):
        r, _ = free.residual(a)
        a = a - torch.linalg.lu_solve(factors, pivots, r.flatten(1).unsqueeze(-1)).reshape(a.shape)
    return free, a


def solve_boundary(
    acceleration: Acceleration,
    derivatives: Derivatives,
    x: Tensor,
    y: Tensor,
    times: Tensor,
    *,
    tolerance: float,
    max_iterations: int,
) -> BoundarySolution:
    """ẍ = F(x, ẋ) with x(0) = ``x``, x(1) = ``y``, both (..., n), evaluated at ``times`` (T,).

    ``derivatives(x, v)`` are ∂F/∂x and ∂F/∂v, (..., n, n), for Newton's method.

    One polynomial of degree 9 to 129 on [0, 1], collocated at the Gauss nodes, Newton from the chart's segment; where
    that fails, the end is moved out along the segment. Accepted when the differential equation holds between the
    nodes too, within ``tolerance`` relative to |y − x| + |F|. Memory is cut by solving the batch in parts.

    Raises: ConvergenceError; PointShapeError for half precision.
    """
    require_full_precision(x, "boundary values")
    flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    part = max(1, _JACOBIAN_ENTRIES // (32 * x.shape[-1]) ** 2)
    found = []
    worst, taken = 0.0, 0
    for one, other in zip(flat_x.split(part), flat_y.split(part)):
        with torch.no_grad():
            system, a, residual, steps = _solve(
                acceleration, derivatives, one.detach(), other.detach(), tolerance, max_iterations
            )
        free, a = _polished(system, a.detach(), one, other)
        _, once, twice = free.scheme.at(times)
        found.append((*free.path(a, times.to(x), once, twice), free.initial_velocity(a)))
        worst, taken = max(worst, residual), max(taken, steps)
    points, velocities, starts = (torch.cat(parts) for parts in zip(*found))
    shape = (times.numel(), *x.shape)
    return BoundarySolution(
        points.movedim(1, 0).reshape(shape),
        velocities.movedim(1, 0).reshape(shape),
        starts.reshape(x.shape),
        worst,
        taken,
    )
