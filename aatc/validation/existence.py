"""Existence of flows up to a time: the lifetime of a margin along a flow, and samples of a Lipschitz bound.

Source: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, section I.7 (Picard).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.passes.analysis.result import verify
from aatc.validation.judgement import ValidationError, finite

VectorField = Callable[[Tensor, Tensor], Tensor]
Margin = Callable[[Tensor], Tensor]
# Each stretch doubles: 400 are far beyond the largest float64, and a stop for solutions that stand still.
_MOST_STRETCHES = 400
# Steps within an eighth of a stretch.
_MOST_STEPS = 500
# Times at which a Lipschitz bound is sampled: equally spaced, and halved from the horizon towards 0, since the horizon
# may be far beyond the times at which the field changes.
_TIMES, _HALVINGS = 64, 30
# Points of each refinement about the steepest time, and how many in a row may find nothing steeper before it stops,
# unless the steepest is this many times the median: then it may be a pole.
_REFINED, _PATIENCE, _SHARP = 7, 3, 100.0


@dataclass(frozen=True)
class BlowUpWitness:
    """``blow_up_time`` as estimated, infinite for none, from ``times`` and ``lifetimes``: those are −q/q′ for the
    margin q, which is linear in time, and zero at the singularity, for every power law."""

    blow_up_time: float
    time_horizon: float
    times: tuple[float, ...]
    lifetimes: tuple[float, ...]


@verify.register
def _(witness: BlowUpWitness) -> float:
    return max(0.0, witness.time_horizon - zero_of_line(witness.times, witness.lifetimes))


def zero_of_line(times: Sequence[float], lifetimes: Sequence[float]) -> float:
    """Where the least-squares line through positive lifetimes falls to zero; infinite where it does not fall."""
    if len(times) < 2:
        return times[0] + lifetimes[0] if times else math.inf
    middle, level = math.fsum(times) / len(times), math.fsum(lifetimes) / len(times)
    spread = math.fsum((t - middle) ** 2 for t in times)
    slope = math.fsum((t - middle) * (z - level) for t, z in zip(times, lifetimes)) / spread
    return middle - level / slope if slope < 0 else math.inf


def norm_margin(state: Tensor) -> Tensor:
    inverse: Tensor = 1 / torch.linalg.vector_norm(state).clamp_min(torch.finfo(state.dtype).tiny)
    return inverse


@dataclass(frozen=True)
class Course:
    """How far a flow was followed, the last times and lifetimes −q/q′ of its margin q, and the time by which it is
    singular, where it is. No lifetimes: the margin does not fall at the end."""

    reached: float
    times: tuple[float, ...] = ()
    lifetimes: tuple[float, ...] = ()
    broken: float | None = None


def least_eigenvalue(state: Tensor) -> Tensor:
    if state.ndim < 2 or state.shape[-1] != state.shape[-2]:
        raise ValidationError(f"a metric has shape (..., d, d), not {tuple(state.shape)}")
    least: Tensor = torch.linalg.eigvalsh((state + state.mT) / 2)[..., 0].min()
    return least


def _margin_at(margin: Margin, state: Tensor) -> float:
    """The margin, 0 where the state or the margin is not finite: there the flow has ended."""
    if not bool(state.isfinite().all()):
        return 0.0
    value = margin(state)
    if value.numel() != 1:
        raise ValidationError(f"a margin is one number per state, not of shape {tuple(value.shape)}")
    return float(value) if bool(value.isfinite().all()) else 0.0


def course_of_history(states: Sequence[Tensor], times: Tensor | None, margin: Margin) -> Course:
    """Lifetimes by differences of log q at the last four states before the flow is singular."""
    moments = finite("times", torch.as_tensor(times) if times is not None else None)
    if moments.shape != (len(states),) or len(states) < 3 or bool((moments.diff() <= 0).any()):
        raise ValidationError(f"{len(states)} states (3 or more) need as many rising times, not {moments.tolist()}")
    clock = moments.tolist()
    margins = [_margin_at(margin, state.detach().to(torch.float64)) for state in states]
    sound = next((n for n, q in enumerate(margins) if q <= 0), len(margins))
    if sound == 0:
        return Course(clock[0], broken=clock[0])
    broken = clock[sound] if sound < len(margins) else None
    middles, lifetimes = [], []
    for n in range(max(1, sound - 3), sound):
        fall = math.log(margins[n - 1]) - math.log(margins[n])
        if fall <= 0:
            return Course(clock[sound - 1], broken=broken)
        middles.append((clock[n - 1] + clock[n]) / 2)
        lifetimes.append((clock[n] - clock[n - 1]) / fall)
    if sound < 3:
        middles, lifetimes = [], []
    return Course(clock[sound - 1], tuple(middles), tuple(lifetimes), broken)


def course_of_field(field: VectorField, start: Tensor, margin: Margin, horizon: float) -> Course:
    """The solution from ``start``, until the horizon, a singularity, or a lifetime below 1e-4 of the horizon."""
    from torchdiffeq import odeint

    def rate(_: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        u, t = state
        slope = field(t, u)
        speed = 1 + torch.linalg.vector_norm(slope)
        return slope / speed, 1 / speed

    first = field(torch.zeros((), dtype=start.dtype, device=start.device), start)
    if not isinstance(first, Tensor) or first.shape != start.shape or not bool(first.isfinite().all()):
        raise ValidationError(f"the right-hand side is not a finite tensor of shape {tuple(start.shape)} at time 0")
    u, t = start, torch.zeros((), dtype=start.dtype, device=start.device)
    stretch = float(1 + torch.linalg.vector_norm(first)) * horizon / 64
    shortest = 1e-9 * stretch
    reached, samples = 0.0, [(0.0, _lifetime(field, margin, t, u))]
    if _margin_at(margin, start) <= 0:
        return Course(0.0, broken=0.0)
    for _ in range(_MOST_STRETCHES):
        span = torch.linspace(0, stretch, 9, dtype=start.dtype, device=start.device)
        try:
            # Its own first step may leave the field's domain, however short the stretch.
            limits = {"first_step": stretch / 8, "max_num_steps": _MOST_STEPS}
            path, clock = odeint(rate, (u, t), span, rtol=1e-9, atol=1e-12, options=limits)
        except AssertionError:
            # torchdiffeq's sign that no step is small enough, or too many are needed: the field is not finite
            # somewhere in this stretch, or jumps there.
            stretch /= 8
            if stretch < shortest:
                return _falling(reached, samples, reached)
            continue
        for state, moment in zip(path[1:], clock[1:]):
            if _margin_at(margin, state) <= 0:
                return _falling(reached, samples, float(moment) if bool(moment.isfinite()) else reached)
            reached = float(moment)
            samples.append((reached, _lifetime(field, margin, moment, state)))
        if reached >= horizon or samples[-1][1] < 1e-4 * horizon:
            break
        if float(clock[-1] - t) < 1e-9 * horizon:
            # The field has grown beyond bounds where the margin has not: time stands still.
            return _falling(reached, samples, reached)
        u, t, stretch = path[-1], clock[-1], 2 * stretch
    return _falling(reached, samples, None)


def _lifetime(field: VectorField, margin: Margin, t: Tensor, u: Tensor) -> float:
    """−q/q′ along the flow; infinite where the margin q does not fall."""
    value, slope = (float(x) for x in torch.func.jvp(margin, (u,), (field(t, u),)))
    return -value / slope if slope < 0 else math.inf


def _falling(reached: float, samples: list[tuple[float, float]], broken: float | None) -> Course:
    last = samples[-3:]
    if any(not math.isfinite(age) for _, age in last) or last[0][0] >= last[-1][0]:
        return Course(reached, broken=broken)
    return Course(reached, tuple(t for t, _ in last), tuple(z for _, z in last), broken)


def _field_at(field: VectorField, t: float, u: Tensor) -> Tensor:
    """f(t, u). ValidationError unless it is a finite tensor of the shape of u."""
    value = field(torch.tensor(t, dtype=u.dtype, device=u.device), u)
    if not isinstance(value, Tensor) or value.shape != u.shape:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        raise ValidationError(f"the right-hand side at t = {t:g} has {found}, its state the shape {tuple(u.shape)}")
    return finite(f"the right-hand side at t = {t:g}, where a Lipschitz bound needs it to be continuous,", value)


def refute_lipschitz(field: VectorField, start: Tensor, constant: float, horizon: float) -> None:
    """ValidationError where the field is not finite or not of the state's shape, or where its differences near
    ``start``, at times from 0 to ``horizon``, are larger than the constant allows.

    The times are a grid, and points ever nearer to where the differences, or the field itself, are the largest on it:
    a pole is met where any of these times feels it.
    """
    if not 0 <= constant < math.inf:
        raise ValidationError(f"a Lipschitz constant is a finite number ≥ 0, not {constant}")
    generator = torch.Generator().manual_seed(0)
    near = [
        start + size * torch.randn(start.shape, generator=generator, dtype=start.dtype).to(start.device)
        for _ in range(4)
        for size in (0.01, 0.1, 1.0, 10.0)
    ]
    unit = torch.finfo(start.dtype).eps

    def steepest(t: float, tried: Sequence[Tensor]) -> float:
        here = _field_at(field, t, start)
        most = 0.0
        for state in tried:
            there = _field_at(field, t, state)
            change = float(torch.linalg.vector_norm(there - here))
            distance = float(torch.linalg.vector_norm(state - start))
            rounding = 8 * unit * start.numel() ** 0.5 * max(float(here.abs().max()), float(there.abs().max()))
            # A change that overflows is infinite, and NaN is not below any bound.
            if not change <= constant * distance * (1 + 1e-9) + rounding:
                raise ValidationError(
                    f"the right-hand side is not Lipschitz with constant {constant:g}: at t = {t:g} a difference of "
                    f"{distance:.3g} near the initial state changes it by {change:.3g}",
                    hint="leave lipschitz= out",
                )
            most = max(most, change / distance if distance else 0.0)
        return most

    steepest(0.0, near)
    grid = {horizon * n / _TIMES for n in range(_TIMES + 1)} | {horizon / 2**n for n in range(_HALVINGS)}
    _climb(lambda t: steepest(t, near[:4]), sorted(grid))
    _climb(lambda t: float(torch.linalg.vector_norm(_field_at(field, t, start))), sorted(grid))


def _climb(height: Callable[[float], float], times: list[float]) -> None:
    """Evaluates ``height`` at rising ``times``, then at points between the neighbours of the highest, again and
    again, until they are rounded to one another, or, away from a pole, no longer higher."""
    heights = [height(t) for t in times]
    level, settled = sorted(heights)[len(heights) // 2], 0
    while True:
        top = max(range(len(times)), key=heights.__getitem__)
        low, high = times[max(top - 1, 0)], times[min(top + 1, len(times) - 1)]
        inner = {low + (high - low) * n / (_REFINED + 1) for n in range(1, _REFINED + 1)} - {low, high, times[top]}
        # Beside a pole a time may be so near by chance that many refinements do not come nearer.
        if not inner or (settled >= _PATIENCE and heights[top] <= _SHARP * level):
            return
        known = {low: 0.0, high: 0.0, times[top]: heights[top]} | {t: height(t) for t in inner}
        settled = 0 if max(known.values()) > 1.01 * heights[top] else settled + 1
        times = sorted(known)
        heights = [known[t] for t in times]
