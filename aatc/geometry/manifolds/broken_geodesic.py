"""Geodesics between far points of a chart: many short ones in a row, whose joints are moved until no corner is left.

One polynomial for all of a long geodesic loses its digits where the metric's scale changes, and Newton's method from
the chart's segment does not find it. Here the segment, cut at equal lengths, is first drawn tight as a broken line
(`PathOptimization`); its pieces become geodesics; and Newton's method on the energy of the whole, a function of the
joints, makes their velocities meet. Source: J. Milnor, "Morse Theory", 1963, sections 12 and 16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError
from aatc.geometry.manifolds.block_tridiagonal import BlockFactors, factor_blocks
from aatc.geometry.manifolds.boundary import STAGES, BoundarySolution, carries_derivative, refuse, solve_boundary
from aatc.geometry.manifolds.collocation import DENSE_COORDINATES
from aatc.geometry.manifolds.curvature import pullback
from aatc.geometry.manifolds.integrate import ConvergenceError
from aatc.geometry.manifolds.path_optimization import PathOptimization

if TYPE_CHECKING:
    from aatc.geometry.manifolds.riemannian import RiemannianStructure

PIECES = (32, 128)
_RESAMPLINGS = 10
_JOINT_STEPS = 20
_PIECE_NODES = 32  # a piece that wants more is not short
_WHOLE_NODES = 64  # a geodesic that wants more is cheaper in pieces
_DRIFT = 16.0  # times the tolerance
_POINTS = 2**16
_GROUP = 256  # entries of the batch that are drawn tight together
_TIGHT = 1e-5  # the residual of the broken line, which Newton's method on the joints makes smaller


class _Pieces:
    """The geodesics between joints (K + 1, B, n), each over a time of its own from 0 to 1."""

    def __init__(self, structure: RiemannianStructure, tolerance: float, max_iterations: int) -> None:
        self.structure, self.tolerance, self.max_iterations = structure, tolerance, max_iterations

    def between(self, start: Tensor, end: Tensor, times: Tensor) -> BoundarySolution:
        return solve_boundary(
            self.structure._acceleration,
            self.structure._derivatives,
            start,
            end,
            times,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            thorough=False,
            stages=_PIECE_NODES,
        )

    def momenta(self, start: Tensor, end: Tensor) -> Tensor:
        """g ẋ where each piece starts, and where it ends, (2, K, B, n)."""
        speeds = self.between(start, end, start.new_tensor([0.0, 1.0])).velocities
        metrics = torch.stack((self.structure.metric(start), self.structure.metric(end)))
        return torch.einsum("...ij,...j->...i", metrics, speeds)

    def corners(self, joints: Tensor) -> tuple[Tensor, Tensor]:
        """The jump of the momentum at each inner joint (K − 1, B, n), and its largest relative size (B,).

        The rounding of the joints, to eps |x|, moves momenta by that times g, which is no corner.
        """
        leaving, arriving = self.momenta(joints[:-1], joints[1:])
        jump, inner = arriving[:-1] - leaving[1:], joints[1:-1].detach()
        rounding = 4 * torch.finfo(jump.dtype).eps * inner.abs().amax(-1)
        floor = rounding * self.structure.metric(inner).abs().amax((-2, -1)) / self.tolerance
        size = arriving[:-1].abs().amax(-1) + leaving[1:].abs().amax(-1) + floor + torch.finfo(jump.dtype).tiny
        relative = (jump.abs().amax(-1) / size).amax(0)
        return jump, torch.where(relative.isfinite(), relative, torch.full_like(relative, torch.inf))

    def second_variation(self, joints: Tensor) -> BlockFactors:
        """The derivative of `corners` by the inner joints, factored. Raises ConvergenceError unless it is definite."""
        n = joints.shape[-1]
        momenta, pull = pullback(self.momenta, joints[:-1].contiguous(), joints[1:].contiguous())
        rows = []
        for row in range(2 * n):
            one = torch.zeros_like(momenta)
            one[row // n, ..., row % n] = 1
            rows.append(torch.cat(pull(one), -1))
        blocks = torch.stack(rows, -2)
        diagonal = blocks[:-1, ..., n:, n:] - blocks[1:, ..., :n, :n]
        factors = factor_blocks((diagonal + diagonal.mT) / 2, -blocks[1:-1, ..., :n, n:])
        if not bool(factors.definite.all()):
            raise ConvergenceError("a row of geodesics that is no minimum of the energy", residual=1.0, iterations=0)
        return factors


def _tight(structure: RiemannianStructure, x: Tensor, y: Tensor, pieces: int, limit: int) -> Tensor:
    """The broken line (pieces + 1, B, n) of least energy that grows from the chart's segment, about of equal pieces."""
    optimizer = PathOptimization(structure)
    t = torch.linspace(0, 1, pieces + 1, dtype=x.dtype, device=x.device)
    place = t.expand(x.shape[0], -1)
    for _ in range(_RESAMPLINGS):
        line = (x[:, None] + place[..., None] * (y - x)[:, None]).movedim(1, 0)
        lengths = optimizer._segments(line[:-1], line[1:], 1).sqrt().T
        reached = torch.nn.functional.pad(lengths.cumsum(-1), (1, 0))
        wanted = (t * reached[:, -1:]).contiguous()
        piece = torch.searchsorted(reached.contiguous(), wanted, right=True).clamp(1, pieces) - 1
        part = (wanted - reached.gather(1, piece)) / lengths.gather(1, piece)
        place = torch.lerp(place.gather(1, piece), place.gather(1, piece + 1), part.nan_to_num(0.0).clamp(0, 1))
    line = (x[:, None] + place[..., None] * (y - x)[:, None]).movedim(1, 0)
    line = torch.cat((x[None], line[1:-1], y[None]))
    inner = optimizer._descend(line, _TIGHT, limit)[0]
    return torch.cat((x[None], inner, y[None]))


def _straight(pieces: _Pieces, joints: Tensor) -> tuple[Tensor, float, int]:
    """Newton on the joints until the corners are within the tolerance: the joints, what is left, the steps taken."""
    jump, size = pieces.corners(joints)
    taken, improved = 0, True
    while improved and taken < _JOINT_STEPS and bool((size > 0.01 * pieces.tolerance).any()):
        taken += 1
        step, fraction, improved = pieces.second_variation(joints).solve(jump), 1.0, False
        waiting = size > 0.01 * pieces.tolerance
        while fraction > 1e-2 and bool(waiting.any()):
            moved = torch.where(waiting[:, None], joints[1:-1] - fraction * step, joints[1:-1])
            trial = torch.cat((joints[:1], moved, joints[-1:]))
            inside = pieces.structure.in_chart(trial).all(0)
            trial = torch.where(inside[:, None], trial, joints)
            new_jump, new_size = pieces.corners(trial)
            good = waiting & inside & (new_size < (1 - 0.25 * fraction) * size)
            joints, jump = torch.where(good[:, None], trial, joints), torch.where(good[:, None], new_jump, jump)
            size, waiting = torch.where(good, new_size, size), waiting & ~good
            improved, fraction = improved or bool(good.any()), 0.5 * fraction
    left = float(size.max())
    if not left <= pieces.tolerance:
        raise ConvergenceError(f"corners of {left:.3g} are left", residual=left, iterations=taken)
    return joints, left, taken


def broken_geodesic(
    structure: RiemannianStructure, x: Tensor, y: Tensor, times: Tensor, tolerance: float, max_iterations: int
) -> BoundarySolution:
    """As `solve_boundary`, for ``x`` and ``y`` (B, n): all or none of them. Raises GeometryError."""
    solver = _Pieces(structure, tolerance, max_iterations)
    failed: GeometryError | None = None
    for count in PIECES:
        try:
            with torch.no_grad():
                joints = _tight(structure, x.detach(), y.detach(), count, 7 * max_iterations)
                joints, left, taken = _straight(solver, joints)
        except GeometryError as error:
            failed = error
            continue
        return _assembled(solver, joints, x, y, times, left, taken)
    assert failed is not None
    raise failed


def _assembled(
    solver: _Pieces, joints: Tensor, x: Tensor, y: Tensor, times: Tensor, left: float, taken: int
) -> BoundarySolution:
    """The whole from its pieces, differentiable by the ends and what the metric closes over, to second order."""
    count, inner = joints.shape[0] - 1, joints[1:-1].detach()
    factors: BlockFactors | None = None
    for _ in range(2):
        whole = torch.cat((x[None], inner, y[None]))
        jump, _ = solver.corners(whole)
        if not carries_derivative(jump):
            break
        if factors is None:
            with torch.no_grad():
                factors = solver.second_variation(joints.detach())
        step = factors.solve(jump)
        inner = inner - (step - step.detach())
    whole = torch.cat((x[None], inner, y[None]))
    place = times.to(x) * count
    piece = place.detach().floor().long().clamp(0, count - 1)
    found = solver.between(whole[:-1], whole[1:], place - piece)
    number = torch.arange(times.numel(), device=piece.device)
    return BoundarySolution(
        found.points[number, piece],
        count * found.velocities[number, piece],
        count * found.initial_velocity[0],
        max(found.residual, left),
        taken + found.iterations,
    )


def _in_groups(
    structure: RiemannianStructure, x: Tensor, y: Tensor, times: Tensor, rows: Tensor, tolerance: float, limit: int
) -> list[tuple[Tensor, BoundarySolution]]:
    """The solutions of those of ``rows`` that have one. A group that fails is halved."""
    if rows.numel() <= _GROUP:
        try:
            return [(rows, broken_geodesic(structure, x[rows], y[rows], times, tolerance, limit))]
        except GeometryError:
            if rows.numel() == 1:
                return []
    halves = rows.chunk(2)
    return [pair for half in halves for pair in _in_groups(structure, x, y, times, half, tolerance, limit)]


def _drifts(structure: RiemannianStructure, x: Tensor, found: BoundarySolution) -> Tensor:
    """By how much the speed at the last time differs from that at the start, relatively, (...).

    An error that is small beside the largest force along the way need not be small where the metric is at its largest.
    """
    flat = [t.detach().reshape(-1, x.shape[-1]) for t in (x, found.initial_velocity, found.points[-1])]
    flat.append(found.velocities[-1].detach().reshape(-1, x.shape[-1]))
    drifts = []
    with torch.no_grad():
        for p, v, q, w in zip(*(t.split(_POINTS) for t in flat)):
            one, other = (
                torch.einsum("...i,...ij,...j->...", u, structure.metric(at), u).abs().sqrt()
                for at, u in ((p, v), (q, w))
            )
            drifts.append((one - other).abs() / (one + torch.finfo(one.dtype).tiny))
    return torch.cat(drifts) if drifts else x.new_zeros(0)


def connect(
    structure: RiemannianStructure, x: Tensor, y: Tensor, times: Tensor, *, tolerance: float, max_iterations: int
) -> BoundarySolution:
    """The geodesics from ``x`` to ``y`` (..., n): as one polynomial each, and, with up to 8 coordinates, in pieces
    where that fails or its speed drifts by much more than ``tolerance``.

    Raises ConvergenceError, which names the entries of the batch that have neither.
    """

    def direct(rows: Tensor | None, thorough: bool) -> BoundarySolution:
        return solve_boundary(
            structure._acceleration,
            structure._derivatives,
            x if rows is None else flat_x[rows],
            y if rows is None else flat_y[rows],
            times,
            tolerance=tolerance,
            max_iterations=max_iterations,
            thorough=thorough,
            stages=STAGES[-1] if thorough else _WHOLE_NODES,
        )

    if x.shape[-1] > DENSE_COORDINATES:
        return direct(None, True)
    flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    lost = torch.zeros(flat_x.shape[0], dtype=torch.bool, device=x.device)
    whole: BoundarySolution | None = None
    try:
        whole = direct(None, False)
    except ConvergenceError as error:
        places = torch.arange(lost.numel(), device=x.device).reshape(x.shape[:-1])
        lost[[int(places[index]) for index in error.indices]] = True
    else:
        lost = ~(_drifts(structure, x, whole) <= _DRIFT * tolerance)
        if not bool(lost.any()):
            return whole
    rows = lost.nonzero().squeeze(-1)
    found = _in_groups(structure, flat_x, flat_y, times, rows, tolerance, max_iterations)
    for part, _ in found:
        lost[part] = False
    done = torch.cat([part for part, _ in found]) if found else rows[:0]
    kept = torch.ones_like(lost)
    kept[done] = False
    if whole is not None:
        if not done.numel():
            return whole
    elif bool(lost.any()):
        kept &= ~lost
        rows = lost.nonzero().squeeze(-1)
        try:
            found.append((rows, direct(rows, True)))
        except ConvergenceError as error:
            residual = flat_x.new_zeros(lost.numel())
            residual[rows[[index[0] for index in error.indices]]] = error.residual
            refuse(residual, x.shape[:-1], tolerance, error.iterations)
    if bool(kept.any()):
        rows = kept.nonzero().squeeze(-1)
        found.append((rows, direct(rows, False)))
    return _merged(found, times, x)


def _merged(found: list[tuple[Tensor, BoundarySolution]], times: Tensor, x: Tensor) -> BoundarySolution:
    """Solutions of parts of a batch as one, like ``x``."""
    order = torch.cat([rows for rows, _ in found]).argsort()
    shape = (times.numel(), *x.shape)
    return BoundarySolution(
        torch.cat([s.points for _, s in found], 1)[:, order].reshape(shape),
        torch.cat([s.velocities for _, s in found], 1)[:, order].reshape(shape),
        torch.cat([s.initial_velocity for _, s in found])[order].reshape(x.shape),
        max(s.residual for _, s in found),
        max(s.iterations for _, s in found),
    )
