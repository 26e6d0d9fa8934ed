"""Sampled curves, derivatives along them, and fixed-step Runge–Kutta integration, all batched."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp

Map = Callable[[Tensor], Tensor]


def rk4_step(field: Map, state: Tensor, step: float | Tensor) -> Tensor:
    """One classical Runge–Kutta step of ẏ = field(y).

    Shapes: state (...), result (...). The local error is O(step⁵). Source: Hairer, Nørsett & Wanner,
    *Solving Ordinary Differential Equations I*, II.1, table 1.2.
    """
    first = field(state)
    second = field(state + 0.5 * step * first)
    third = field(state + 0.5 * step * second)
    fourth = field(state + step * third)
    return state + (step / 6) * (first + 2 * second + 2 * third + fourth)


def rk4(field: Map, state: Tensor, time: float | Tensor, steps: int) -> Tensor:
    """The trajectory of ẏ = field(y) at the ``steps + 1`` equidistant times from 0 to ``time``.

    Shapes: state (...), result (steps + 1, ...), its first entry the given state. The global error is
    O((time / steps)⁴). ``time`` has the unit in which ``field`` is a rate and may be negative; as a tensor it
    broadcasts against the state.

    Raises:
        ValueError: ``steps`` is not at least 1.
    """
    if steps < 1:
        raise ValueError(f"rk4: steps is {steps}; at least one step is needed")
    trajectory = [state]
    for _ in range(steps):
        trajectory.append(rk4_step(field, trajectory[-1], time / steps))
    return torch.stack(trajectory)


@dataclass(frozen=True)
class Path:
    """A curve sampled at m + 1 times: times (m + 1,), points (m + 1, ..., n), velocities (m + 1, ..., n)."""

    times: Tensor
    points: Tensor
    velocities: Tensor


def derivative(function: Map, point: Tensor) -> Tensor:
    """∂_i f of a function that acts on each point of a batch alone, by forward mode.

    Shapes: point (..., n), f(point) (..., *s), result (..., *s, n): the differentiated coordinate is the last axis.
    The function must take any leading batch axes.
    """
    # The directions are one more axis of the batch: far cheaper than a vmap around the forward mode.
    basis = torch.eye(point.shape[-1], dtype=point.dtype, device=point.device)
    basis = basis.reshape(-1, *(1,) * (point.ndim - 1), point.shape[-1]).expand(-1, *point.shape).contiguous()
    return jvp(function, (point.expand_as(basis).contiguous(),), (basis,))[1].movedim(0, -1)


def sample_curve(curve: Map, times: Tensor) -> Path:
    """Sample a curve given as a function, with its exact velocity by forward mode.

    Shapes: times (m + 1,); ``curve`` takes a time of shape () to a point (..., n).
    """
    samples = [jvp(curve, (t,), (torch.ones_like(t),)) for t in times]
    return Path(times, torch.stack([s[0] for s in samples]), torch.stack([s[1] for s in samples]))


def estimate_velocities(points: Tensor, time: float = 1.0) -> Path:
    """The Path through equidistant samples of a smooth curve, velocities by five-point differences.

    Shapes: points (m + 1, ..., n) with m ≥ 4, at the times j time / m. The velocities are in error by O(m⁻⁴).
    Source: Abramowitz & Stegun, table 25.2.

    Raises:
        ValueError: fewer than five points.
    """
    if len(points) < 5:
        raise ValueError(f"estimate_velocities: {len(points)} points; five-point differences need at least 5")
    weights = points.new_tensor([[-25, 48, -36, 16, -3], [-3, -10, 18, -6, 1]]) / 12
    inner = (points[:-4] - 8 * points[1:-3] + 8 * points[3:-1] - points[4:]) / 12
    first = torch.einsum("ab,b...->a...", weights, points[:5])
    last = -torch.einsum("ab,b...->a...", weights, points[-5:].flip(0)).flip(0)
    times = torch.linspace(0, time, len(points), dtype=points.dtype, device=points.device)
    return Path(times, points, torch.cat((first, inner, last)) * ((len(points) - 1) / time))


def solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """The x (..., n) with matrix (..., n, n) x = vector (..., n); non-finite, not an error, where it is singular."""
    return torch.linalg.solve_ex(matrix, vector.unsqueeze(-1))[0].squeeze(-1)


def damped_newton(
    function: Map, target: Tensor, guess: Tensor, bound: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Newton's method for function(x) = target, each element of the batch with its own step halving.

    Shapes: target and guess (..., n), bound (...), result the x (..., n) and its miss |f(x) − target| (...). Stops
    when every miss is within ``bound``, when none decreases, or after ``iterations``; the caller judges the miss.
    Source: Deuflhard, *Newton Methods for Nonlinear Problems*, 3.1.
    """

    def gap_at(x: Tensor) -> tuple[Tensor, Tensor]:
        gap = function(x) - target
        return gap, gap.norm(dim=-1).nan_to_num(torch.inf)

    x = guess
    gap, miss = gap_at(x)
    for _ in range(iterations):
        if (miss <= bound).all():
            break
        step, factor, before = solve(derivative(function, x), gap).nan_to_num(0.0), 1.0, miss
        waiting = before > bound
        for _ in range(10):
            tried = x - factor * step
            new_gap, new_miss = gap_at(tried)
            better = waiting & (new_miss < before)
            x, gap = (torch.where(better.unsqueeze(-1), new, old) for new, old in ((tried, x), (new_gap, gap)))
            miss, waiting, factor = torch.where(better, new_miss, miss), waiting & ~better, 0.5 * factor
            if not waiting.any():
                break
        if torch.equal(miss, before):
            break
    return x, miss
