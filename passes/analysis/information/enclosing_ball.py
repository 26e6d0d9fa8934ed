"""The smallest ball that holds given points, with a proof of how small it is.

Source: Yıldırım, SIAM J. Optim. 19 (2008), algorithm with away steps; the dual bound is that of Elzinga and Hearn,
Management Science 19 (1972).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aatc.passes.analysis.information.verify_information import BallWitness
from aatc.passes.analysis.result import AnalysisError, Result
from aatc.passes.analysis.stochastic import float_array


@dataclass(frozen=True, eq=False)
class Ball:
    """A ball that holds every point: ``centre`` (d,) and ``radius``; no ball below ``least_radius`` does."""

    centre: np.ndarray
    radius: float
    least_radius: float


def enclosing_ball(points: Any, *, gap: float = 1e-6, steps: int = 2000) -> Result[Ball]:
    """A ball around ``points`` (m, d) of at most (1 + gap) times the least radius, unless ``steps`` run out first.

    Each step moves the centre's convex weights towards the farthest point, or away from the nearest point that has
    weight. The radius is the largest distance found at the end, widened by the rounding of a distance, so it encloses
    at every stage; the weights prove the lower bound. The residual is radius − least radius; the tolerance is
    gap·radius, which the residual exceeds iff the steps ran out. O(m d) a step. Raises `AnalysisError`.
    """
    table = float_array(points)
    if table.ndim != 2 or 0 in table.shape or not np.isfinite(table).all():
        raise AnalysisError(f"points are finite numbers of shape (m, d), m and d ≥ 1; these have shape {table.shape}")
    # Powers of two scale without rounding; squares of the scaled numbers neither overflow nor vanish.
    _, exponent = np.frexp(np.abs(table).max())
    scaled = np.ldexp(table, -exponent)
    origin = scaled.mean(0)
    _, size = np.frexp(np.abs(scaled - origin).max())
    shifted = np.ldexp(scaled - origin, -size)
    weights = np.zeros(len(table))
    far = int((shifted**2).sum(1).argmax())
    weights[[far, int(((shifted - shifted[far]) ** 2).sum(1).argmax())]] = 0.5
    weights /= weights.sum()
    for _ in range(steps):
        centre = weights @ shifted
        squared = ((shifted - centre) ** 2).sum(1)
        dual = float(weights @ squared)
        far = int(squared.argmax())
        if squared[far] <= dual * (1 + gap) ** 2 or dual == 0:
            break
        near = int(np.where(weights > 0, squared, np.inf).argmin())
        above, below = squared[far] / dual - 1, 1 - squared[near] / dual
        if above >= below:
            step = above / (2 * (1 + above))
            weights *= 1 - step
            weights[far] += step
        else:
            step = min(below / (2 * (1 - below)) if below < 1 else np.inf, weights[near] / (1 - weights[near]))
            weights *= 1 + step
            weights[near] = max(weights[near] - step, 0.0)
        weights /= weights.sum()
    middle = np.ldexp(origin + np.ldexp(weights @ shifted, size), exponent)
    rest = np.ldexp(np.ldexp(table, -exponent) - np.ldexp(middle, -exponent), -size)
    radius = np.linalg.norm(rest, axis=1).max() * (1 + (table.shape[1] + 4) * np.finfo(np.float64).eps)
    radius = float(np.ldexp(np.ldexp(radius, size), exponent))
    least = float(np.ldexp(np.ldexp(np.sqrt(weights @ ((rest - weights @ rest) ** 2).sum(1)), size), exponent))
    witness = BallWitness(table, middle, radius, weights)
    return Result(Ball(middle, radius, min(least, radius)), "P2", gap * radius, max(radius - least, 0.0), witness)
