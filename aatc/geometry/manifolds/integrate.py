"""Integrators of ẍ = F(x, ẋ) from an initial value, and of linear equations along a path.

F takes points and velocities (..., n) and treats the points of a batch apart; a value that is not finite marks a
point outside the domain.

Source: E. Hairer, S. Nørsett, G. Wanner, "Solving Ordinary Differential Equations I", section II.1.
"""

from collections.abc import Callable

import torch
import torchdiffeq
from torch import Tensor

from aatc.geometry.manifold import GeometryError
from aatc.geometry.manifolds.charts import ChartError
from aatc.geometry.manifolds.curvature import directional_derivative

Acceleration = Callable[[Tensor, Tensor], Tensor]

ADAPTIVE_METHODS = ("dopri8", "dopri5", "bosh3")


class ConvergenceError(GeometryError):
    """An iteration that did not reach its tolerance; ``residual`` and ``iterations`` say how far it came.

    ``indices`` are the entries of the batch that did not, where they are solved apart.
    """

    def __init__(
        self, message: str, *, residual: float, iterations: int, indices: tuple[tuple[int, ...], ...] = ()
    ) -> None:
        super().__init__(message)
        self.residual = residual
        self.iterations = iterations
        self.indices = indices


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
