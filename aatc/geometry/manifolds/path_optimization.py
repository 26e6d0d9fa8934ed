"""Paths of least energy between fixed ends, discretised, under any Riemannian metric and an optional potential.

Source: J. Milnor, "Morse Theory", 1963, sections 11 and 12.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, PointShapeError
from aatc.geometry.manifolds.block_tridiagonal import BlockFactors, factor_blocks
from aatc.geometry.manifolds.charts import ChartError
from aatc.geometry.manifolds.curvature import jacobian, pullback, require_full_precision
from aatc.geometry.manifolds.integrate import ConvergenceError

if TYPE_CHECKING:
    from aatc.geometry.manifolds.riemannian import RiemannianStructure

# The Gauss rule of three points on [0, 1]: within a segment the metric's mean is exact to order 6, so that the action
# is that of the broken line itself and stays above ½ d².
_NODES = (0.5 - math.sqrt(0.15), 0.5, 0.5 + math.sqrt(0.15))
_WEIGHTS = (5 / 18, 8 / 18, 5 / 18)


@dataclass(frozen=True)
class OptimalPath:
    """A stationary path: ``path`` (T, ..., n), its ``action`` (...), the largest ``residual``, the Newton steps.

    The residual is the largest entry of the first variation relative to the largest momentum g ẋ of the path.
    """

    path: Tensor
    action: Tensor
    residual: float
    iterations: int


class PathOptimization:
    """Minimises S = ∫₀¹ (½ g(ẋ, ẋ) + V(x)) dt over paths with fixed ends.

    This is the energy, not the length: its minimum without V is ½ d², and it also fixes the parametrisation, which the
    length leaves free. ``potential`` V, (..., n) → (...), is a cost: the stationary paths have ∇_ẋ ẋ = grad V. A path
    (T, ..., n) is the broken line through T ≥ 2 points of the chart at equal times.

    The seed's vocabulary is kept, and corrected where it could not work: `path_action` takes the path, not its ends;
    `vary_path` takes the path too, since the value of an action has no variation; the seed's S lacked the ½.

    Raises: PointShapeError for shapes and dtypes, V's too; ChartError for paths that leave the chart.
    """

    def __init__(self, structure: RiemannianStructure, potential: Callable[[Tensor], Tensor] | None = None) -> None:
        self.structure = structure
        self.potential = potential

    def path_action(self, path: Tensor) -> Tensor:
        """S of the broken line, (...). Its two terms are integrated by three Gauss points on each segment."""
        self._check(path)
        return self._finite(self._segments(path[:-1], path[1:], path.shape[0] - 1).sum(0))

    def vary_path(self, path: Tensor) -> Tensor:
        """The first variation ∂S/∂x of the interior points, covectors (T − 2, ..., n); T ≥ 3."""
        self._check(path, 3)
        return self._finite(self._variation(path)[0])

    def find_minimum(self, path: Tensor, *, tolerance: float | None = None, max_iterations: int = 50) -> OptimalPath:
        """The stationary path that Newton's method with a line search on S reaches from ``path``, its ends fixed.

        Where the second variation is not positive definite, a multiple of that with the metric frozen is added until it
        is, so S never rises. ``tolerance`` (default: epsilon to the power ⅝) bounds the residual, the rounding of the
        points set aside. First and second derivatives by the ends, and by what the metric and V close over, are exact;
        by the interior of ``path`` they are 0. Raises also ConvergenceError, for a path too where S is stationary but
        its second variation not positive definite.
        """
        self._check(path, 3)
        require_full_precision(path, "second variations")
        bound = torch.finfo(path.dtype).eps ** 0.625 if tolerance is None else tolerance
        flat = path.reshape(path.shape[0], -1, path.shape[-1])
        with torch.no_grad():
            inner, factors, residual, taken = self._descend(flat.detach(), bound, max_iterations)
        # Each step with a frozen second variation makes one more derivative exact (implicit function theorem).
        for _ in range(2):
            whole = torch.cat((flat[:1], inner, flat[-1:]))
            inner = inner - factors.solve(self._variation(whole)[0])
        found = torch.cat((flat[:1], inner, flat[-1:])).reshape(path.shape)
        return OptimalPath(found, self.path_action(found), residual, taken)

    def optimize_attention(
        self, start: Tensor, end: Tensor, steps: int = 32, *, tolerance: float | None = None, max_iterations: int = 50
    ) -> OptimalPath:
        """`find_minimum` from the chart's segment between ``start`` and ``end`` (..., n), T = steps + 1, steps ≥ 2.

        Without a potential the points are within O(steps⁻²) of the geodesic's. For attention distributions take
        ``RiemannianStructure.simplex(n)`` and their free coordinates p_1..p_n.
        """
        if not isinstance(steps, int) or steps < 2:
            raise GeometryError(f"steps = {steps!r}: a path with an interior has an integer number, at least 2")
        if start.dtype != end.dtype:
            raise PointShapeError(f"the ends are of one dtype, got {start.dtype} and {end.dtype}")
        try:
            start, end = torch.broadcast_tensors(start, end)
        except RuntimeError as error:
            raise PointShapeError(f"ends {tuple(start.shape)} and {tuple(end.shape)} do not broadcast") from error
        t = torch.linspace(0, 1, steps + 1, dtype=start.dtype, device=start.device)
        t = t.reshape(-1, *[1] * start.dim())
        return self.find_minimum(start + t * (end - start), tolerance=tolerance, max_iterations=max_iterations)

    def _segments(self, a: Tensor, b: Tensor, count: int) -> Tensor:
        """The action of each of the segments from a to b (..., n), each of duration 1/count, (...)."""
        chord = b - a
        total = torch.zeros_like(chord[..., 0])
        for node, weight in zip(_NODES, _WEIGHTS):
            x = a + node * chord
            speed = torch.einsum("...i,...ij,...j->...", chord, self.structure.metric(x), chord)
            total = total + weight * 0.5 * count * speed
            if self.potential is not None:
                value = self.potential(x)
                if value.shape != total.shape or value.dtype != total.dtype:
                    raise PointShapeError(
                        f"the potential takes points {tuple(x.shape)} {x.dtype} to {tuple(value.shape)} {value.dtype}: "
                        "it must drop the last axis and keep the dtype"
                    )
                total = total + weight / count * value
        return total

    def _energy(self, path: Tensor) -> Tensor:
        """The action, inf for paths that leave the chart."""
        action = self._segments(path[:-1], path[1:], path.shape[0] - 1).sum(0)
        good = action.isfinite() & self.structure.in_chart(path).all(0)
        return torch.where(good, action, torch.full_like(action, torch.inf))

    def _variation(self, path: Tensor) -> tuple[Tensor, Tensor]:
        """∂S/∂x of the interior (T − 2, ..., n), and the momenta at the ends of the segments (T − 1, ..., n)."""
        count = path.shape[0] - 1
        value, pull = pullback(lambda a, b: self._segments(a, b, count), path[:-1], path[1:])
        by_start, by_end = pull(torch.ones_like(value))
        return by_start[1:] + by_end[:-1], by_end

    def _second_variation(self, path: Tensor) -> tuple[Tensor, Tensor]:
        """The diagonal blocks (T − 2, B, n, n) of ∂²S and those above them (T − 3, B, n, n)."""
        count, n = path.shape[0] - 1, path.shape[-1]

        def gradient(z: Tensor) -> Tensor:
            value, pull = pullback(lambda w: self._segments(w[..., :n], w[..., n:], count), z)
            return pull(torch.ones_like(value))[0]

        blocks = jacobian(gradient)(torch.cat((path[:-1], path[1:]), -1))
        diagonal = blocks[:-1, ..., n:, n:] + blocks[1:, ..., :n, :n]
        return diagonal, blocks[1:-1, ..., :n, n:]

    def _descend(self, path: Tensor, bound: float, limit: int) -> tuple[Tensor, BlockFactors, float, int]:
        """Newton on (T, B, n): the interior, the factored second variation there, the residual, the steps taken."""
        eps = torch.finfo(path.dtype).eps
        residual = torch.full(path.shape[1:2], torch.inf, dtype=path.dtype, device=path.device)
        for taken in range(limit + 1):
            gradient, momenta = self._variation(path)
            diagonal, upper = self._second_variation(path)
            size = diagonal.abs().amax((0, 2, 3))
            # Points are known to eps |x|, and the variation to that times ∂²S.
            floor = eps * size * path.abs().amax((0, 2)) / bound
            scale = momenta.abs().amax((0, 2)) + floor + torch.finfo(path.dtype).tiny
            residual = gradient.abs().amax((0, 2)) / scale
            done = residual <= bound
            factors = self._definite(diagonal, upper, path)
            if bool(done.all()) or taken == limit:
                break
            moved, lowered = self._search(path, factors.solve(gradient), gradient, done)
            if not bool(lowered.any()):
                break
            path = moved
        worst = float(residual.max()) if residual.numel() else 0.0
        if not worst <= bound:
            raise ConvergenceError(
                f"no stationary path within {bound:.3g}: residual {worst:.3g} after {taken} Newton steps; start from a "
                "path closer to the minimum, or put the ends closer together",
                residual=worst,
                iterations=taken,
            )
        factors = factor_blocks(diagonal, upper)
        if not bool(factors.definite.all()):
            raise ConvergenceError(
                "a stationary path that is no minimum: its second variation is not positive definite; start from a "
                "path to one side of it",
                residual=worst,
                iterations=taken,
            )
        return path[1:-1], factors, worst, taken

    def _definite(self, diagonal: Tensor, upper: Tensor, path: Tensor) -> BlockFactors:
        """The factors of ∂²S; where it is not positive definite, a multiple of that with the metric frozen is added."""
        factors = factor_blocks(diagonal, upper)
        if bool(factors.definite.all()):
            return factors
        frozen = (path.shape[0] - 1) * self.structure.metric(0.5 * (path[:-1] + path[1:]))
        shift = torch.zeros_like(diagonal[0, :, 0, 0])
        least = 1 / 64
        while least < 1e4 and not bool(factors.definite.all()):
            shift = torch.where(factors.definite, shift, torch.full_like(shift, least))
            added = shift[:, None, None] * frozen
            factors = factor_blocks(diagonal + added[:-1] + added[1:], upper - added[1:-1])
            least *= 4
        return factors

    def _search(self, path: Tensor, step: Tensor, gradient: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        """The path after the longest of the halved steps that lowers S enough, and which elements moved."""
        action = self._energy(path)
        slope = (gradient * step).sum((0, 2))
        room = 64 * torch.finfo(path.dtype).eps * action.abs()
        waiting, fraction = ~done, 1.0
        while fraction > 1e-6 and bool(waiting.any()):
            trial = torch.cat((path[:1], path[1:-1] - fraction * step, path[-1:]))
            good = waiting & (self._energy(trial) <= action - 1e-4 * fraction * slope + room)
            path = torch.where(good[:, None], trial, path)
            waiting = waiting & ~good
            fraction *= 0.5
        return path, ~done & ~waiting

    def _check(self, path: Tensor, least: int = 2) -> None:
        if not path.is_floating_point() or path.dim() < 2 or path.shape[0] < least:
            raise PointShapeError(
                f"a path is (T, ..., n) of a floating dtype with T ≥ {least}, got {tuple(path.shape)} {path.dtype}"
            )
        if self.structure.dim is not None and path.shape[-1] != self.structure.dim:
            raise PointShapeError(f"this chart has {self.structure.dim} coordinates, got {path.shape[-1]}")
        good = self.structure.in_chart(path)
        if not bool(good.all()):
            index = tuple(int(i) for i in (~good).nonzero()[0])
            raise ChartError(f"the path leaves the chart at (time, *batch) = {index}: {path[index].tolist()}")

    @staticmethod
    def _finite(value: Tensor) -> Tensor:
        if not bool(value.isfinite().all()):
            raise ChartError("the action or its variation is not finite: a segment passes out of the chart")
        return value
