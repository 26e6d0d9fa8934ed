"""Geodesics between two points: ẍ = F(x, ẋ) with x(0) and x(1) given, by collocation at Gauss nodes.

Newton's method, and the fixed point a = F(a), accelerated, which asks for values of F only. Few coordinates: Newton
first, with the Jacobian factored. Many: the fixed point first; what it leaves by Newton, with the Jacobian applied and
never formed. Where both fail, the end is moved out along the chart's segment.

Sources: U. Ascher, R. Mattheij, R. Russell, "Numerical Solution of Boundary Value Problems", chapter 5; H. Walker,
P. Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49 (2011).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from aatc.geometry.manifolds.collocation import DENSE_COORDINATES, Collocation, Correction, Derivatives, pseudo_inverse
from aatc.geometry.manifolds.curvature import require_full_precision
from aatc.geometry.manifolds.integrate import Acceleration, ConvergenceError

STAGES = (8, 16, 32, 64, 128)
# Entries of the largest tensors of a part of the batch: Jacobians, or the metric at every node.
_JACOBIAN_ENTRIES = 2**24
_METRIC_ENTRIES = 2**20
# Newton steps are solved no sharper than this; the last residual decides, not the last step.
_NEWTON_TOLERANCE = 1e-4
_MEMORY = 6
_FIXED_POINT_STEPS = 40


@dataclass(frozen=True)
class BoundarySolution:
    """x(t), ẋ(t) at the asked times (T, ..., n), ẋ(0) (..., n), the worst relative residual, the steps taken."""

    points: Tensor
    velocities: Tensor
    initial_velocity: Tensor
    residual: float
    iterations: int


def _select(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *[1] * (old.dim() - 1)), new, old)


def _newton(
    system: Collocation, a: Tensor, tolerance: float, limit: int, smallest: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Newton from ``a``: the accelerations, their relative residuals (B,), which are met, the steps taken.

    Steps are halved down to ``smallest``. Where whole ones lower the residual, the solution is the one that ``a``
    belongs to; halved ones may lead to another.
    """
    r, size = system.residual(a)
    stuck = ~size.isfinite()
    taken = 0
    while taken < limit and bool(((size > tolerance) & ~stuck).any()):
        taken += 1
        active = ((size > tolerance) & ~stuck).nonzero().squeeze(-1)
        part = system.toward(system.x[active], system.y[active])
        old, old_size = a[active], size[active]
        step = part.linearised(old).solve(r[active], tolerance=_NEWTON_TOLERANCE)
        best, best_r, best_size = old, r[active], old_size
        waiting = torch.ones_like(old_size, dtype=torch.bool)
        fraction = 1.0
        while fraction >= smallest and bool(waiting.any()):
            trial = old - fraction * step
            trial_r, trial_size = part.residual(trial)
            good = waiting & (trial_size < (1 - 0.25 * fraction) * old_size)
            best, best_r = _select(good, trial, best), _select(good, trial_r, best_r)
            best_size = torch.where(good, trial_size, best_size)
            waiting = waiting & ~good
            fraction *= 0.5
        a, r = a.index_copy(0, active, best), r.index_copy(0, active, best_r)
        size, stuck = size.index_copy(0, active, best_size), stuck.index_copy(0, active, waiting)
    return a, size, size <= tolerance, taken


def _continued(system: Collocation, tolerance: float, limit: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """The solution that grows from the constant one as the end moves along the chart's segment from x to y."""
    batch, (stages, n) = system.x.shape[0], (system.scheme.nodes.numel(), system.x.shape[-1])
    reached, stride = system.x.new_zeros(batch), system.x.new_full((batch,), 0.25)
    a, size, taken = system.x.new_zeros(batch, stages, n), system.x.new_full((batch,), torch.inf), 0
    while taken < limit and bool(((reached < 1) & (stride > 1e-3)).any()):
        goal = (reached + stride).clamp_max(1)
        # Accelerations are quadratic in the length of a geodesic.
        ratio = torch.where(reached > 0, (goal / reached.clamp_min(1e-30)).square(), torch.zeros_like(goal))
        part = system.toward(system.x, system.x + goal[:, None] * (system.y - system.x))
        trial, trial_size, _, steps = _newton(part, ratio[:, None, None] * a, tolerance, 8)
        taken += max(steps, 1)
        good = trial_size <= tolerance
        a, reached = _select(good, trial, a), torch.where(good, goal, reached)
        stride = torch.where(good, 1.5 * stride, 0.25 * stride)
        size = torch.where(reached == 1, torch.where(good, trial_size, size), torch.full_like(size, torch.inf))
    return a, size, size <= tolerance, taken


def _fixed_point(system: Collocation, a: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor, int]:
    """Anderson's acceleration of a ← F(a) from ``a``: accelerations, residuals (B,), which are done, the steps taken.

    Each batch entry has a history of its own. It is done at ``tolerance``, or where the residual is below what the
    polynomial misses, for more nodes are wanted then; it is lost when its residual has not halved in some steps.
    """
    best, size = a.clone(), a.new_full(a.shape[:1], torch.inf)
    done, since = torch.zeros_like(size, dtype=torch.bool), torch.zeros_like(size)
    active, part = torch.arange(a.shape[0], device=a.device), system
    history: list[tuple[Tensor, Tensor]] = []
    taken = 0
    while active.numel() and taken < _FIXED_POINT_STEPS:
        force = part.force(a)
        taken += 1
        r = force - a
        now, last = part.relative(r, force), size[active]
        since[active] = torch.where(now < 0.5 * last, 0, since[active] + 1)
        best[active] = _select(now < last, a, best[active])
        size[active] = torch.minimum(now, last)
        done[active] = now <= (0.1 * part.tail(force)).clamp(min=tolerance, max=1e-3)
        going = ~done[active] & now.isfinite() & (since[active] <= _MEMORY)
        history = [*history[-_MEMORY:], (a, r)]
        if not bool(going.all()):
            active, r, force = active[going], r[going], force[going]
            history = [(x[going], y[going]) for x, y in history]
            part = system.toward(system.x[active], system.y[active])
        a = force
        if len(history) > 1 and active.numel():
            tried, residuals = (torch.stack(h, 1).flatten(2).diff(dim=1) for h in zip(*history))
            weights = _least_squares(residuals, r.flatten(1))
            a = force - torch.einsum("bmk,bm->bk", tried + residuals, weights).reshape(force.shape)
    return best, size, done, taken


def _least_squares(rows: Tensor, right: Tensor) -> Tensor:
    """The weights (B, m) of ``rows`` (B, m, k) that come nearest to ``right`` (B, k)."""
    scale = rows.norm(dim=-1).clamp_min(torch.finfo(rows.dtype).tiny)
    q, triangle = torch.linalg.qr((rows / scale[..., None]).mT)
    gradient: Tensor = torch.einsum("bij,bkj,bk->bi", pseudo_inverse(triangle), q, right) / scale
    return gradient


def _solve(
    acceleration: Acceleration,
    derivatives: Derivatives,
    x: Tensor,
    y: Tensor,
    tolerance: float,
    limit: int,
    thorough: bool,
    most: int,
) -> tuple[Collocation, Tensor, Tensor, int]:
    """The equations at a growing number of nodes until the defect between the nodes is below ``tolerance``.

    Gives the equations, the accelerations, per batch entry the residual that was reached, the steps taken.
    """
    sharp = max(1e-2 * tolerance, 64 * torch.finfo(x.dtype).eps)
    a = x.new_zeros(x.shape[0], STAGES[0], x.shape[-1])
    system = Collocation(acceleration, derivatives, x, y, STAGES[0])
    residual, taken = x.new_zeros(x.shape[0]), 0
    rough = torch.arange(x.shape[0], device=x.device)
    for stages in (s for s in STAGES if s <= most):
        finer = Collocation(acceleration, derivatives, x, y, stages)
        a, system = system.scheme.at(finer.scheme.nodes)[0] @ a, finer
        part = system.toward(x[rough], y[rough])
        a[rough], size, steps = _at_nodes(part, a[rough], sharp, limit, thorough)
        taken += steps
        residual[rough] = size
        met = rough[size <= tolerance]
        residual[met] = residual[met].maximum(system.toward(x[met], y[met]).defect(a[met]))
        rough = (residual > tolerance).nonzero().squeeze(-1)
        if not rough.numel():
            break
    return system, a, residual, taken


def _at_nodes(
    system: Collocation, a: Tensor, tolerance: float, limit: int, thorough: bool
) -> tuple[Tensor, Tensor, int]:
    """The equations at the nodes by each method in turn, the dearer ones, if asked for, for what the cheaper left."""
    size = a.new_full(a.shape[:1], torch.inf)
    lost, taken = torch.arange(a.shape[0], device=a.device), 0
    methods: list[Callable[[Collocation, Tensor], tuple[Tensor, Tensor, Tensor, int]]] = [
        lambda part, start: _newton(part, start, tolerance, limit),
        lambda part, start: _fixed_point(part, start, tolerance),
        lambda part, start: _continued(part, tolerance, 8 * limit),
        lambda part, start: _newton(part, start, tolerance, limit, 1e-3),
    ]
    if a.shape[-1] > DENSE_COORDINATES:
        methods[:2] = reversed(methods[:2])
    for method in methods if thorough else methods[:2]:
        if not lost.numel():
            break
        found, found_size, done, steps = method(system.toward(system.x[lost], system.y[lost]), a[lost])
        taken += steps
        # What was lost starts anew: a wrong track is no help.
        a, size = a.index_copy(0, lost[done], found[done]), size.index_copy(0, lost, found_size)
        lost = lost[~done]
    return a, size, taken


def refuse(residual: Tensor, batch: torch.Size, tolerance: float, taken: int) -> None:
    """ConvergenceError that names the batch entries without a solution, if there are any."""
    failed = (residual > tolerance).nonzero().squeeze(-1)
    if not failed.numel():
        return
    indices = tuple(tuple(int(k) for k in torch.unravel_index(i, batch)) if batch else () for i in failed)
    worst = float(residual.max())
    where = f"at batch index {indices[0]}" + (f" and {len(indices) - 1} more" if len(indices) > 1 else "")
    raise ConvergenceError(
        f"no geodesic between the points {where if batch else 'given'} within {tolerance:.3g}: relative residual "
        f"{worst:.3g} after {taken} steps; take points closer together, or a chart in which the segment between them "
        "stays well inside",
        residual=worst,
        iterations=taken,
        indices=indices,
    )


def carries_derivative(x: Tensor) -> bool:
    """Whether reverse or forward differentiation follows ``x``."""
    return x.requires_grad or forward_ad.unpack_dual(x).tangent is not None


def _polished(system: Collocation, a: Tensor, x: Tensor, y: Tensor) -> tuple[Collocation, Tensor]:
    """The solution as a differentiable function of the ends and of whatever F closes over, up to second derivatives.

    At a solution each step with a frozen Jacobian makes one more derivative exact (implicit function theorem). Its
    value is left as it is, so that one with a gradient is no other than one without.
    """
    free = system.toward(x, y)
    linear = None
    for _ in range(2):
        r, _ = free.residual(a)
        if not carries_derivative(r):
            return free, a
        if linear is None:
            with torch.no_grad():
                linear = system.linearised(a)
        a = a - (Correction.apply(r, linear, False) - r.detach())
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
    thorough: bool = True,
    stages: int = STAGES[-1],
) -> BoundarySolution:
    """ẍ = F(x, ẋ) with x(0) = ``x``, x(1) = ``y``, both (..., n), evaluated at ``times`` (T,) in [0, 1].

    ``derivatives(x, v)`` are ∂F/∂x and ∂F/∂v, (..., n, n), for Newton's method.

    One polynomial of degree 9 to 129 on [0, 1], collocated at the Gauss nodes, from the chart's segment. Accepted when
    the differential equation holds between the nodes too, within ``tolerance`` relative to |y − x| + |F|. Memory is
    cut by solving the batch in parts. With more than 8 coordinates nothing of size n² is made but what F makes. Unless
    ``thorough``, entries that neither Newton's method nor the fixed point finds are given up; so are those that want
    more nodes than ``stages``.

    Raises: ConvergenceError, which names the entries of the batch; PointShapeError for half precision.
    """
    require_full_precision(x, "boundary values")
    flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    n = x.shape[-1]
    part = max(1, _JACOBIAN_ENTRIES // (32 * n) ** 2 if n <= DENSE_COORDINATES else _METRIC_ENTRIES // (16 * n**2))
    found, residuals, taken = [], [], 0
    for one, other in zip(flat_x.split(part), flat_y.split(part)):
        with torch.no_grad():
            system, a, residual, steps = _solve(
                acceleration, derivatives, one.detach(), other.detach(), tolerance, max_iterations, thorough, stages
            )
        residuals.append(residual)
        taken = max(taken, steps)
        if bool((residual > tolerance).any()):
            continue
        free, a = _polished(system, a.detach(), one, other)
        _, once, twice = free.scheme.at(times)
        found.append((*free.path(a, times.to(x), once, twice), free.initial_velocity(a)))
    residual = torch.cat(residuals)
    refuse(residual, x.shape[:-1], tolerance, taken)
    points, velocities, starts = (torch.cat(parts) for parts in zip(*found))
    shape = (times.numel(), *x.shape)
    return BoundarySolution(
        points.movedim(1, 0).reshape(shape),
        velocities.movedim(1, 0).reshape(shape),
        starts.reshape(x.shape),
        float(residual.max()) if residual.numel() else 0.0,
        taken,
    )
