"""Checks of flows: energies that fall, maximum principles, existence up to a time.

Sources: Evans, Partial Differential Equations, section 7.1; Hairer, Nørsett, Wanner, Solving Ordinary Differential
Equations I, section I.7 (Picard); Boyd, Vandenberghe, Convex Optimization, section 5.8 (separation by duality).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from aatc.passes.analysis.result import Verdict, verify
from aatc.validation.existence import (
    BlowUpWitness,
    Course,
    Margin,
    course_of_field,
    course_of_history,
    least_eigenvalue,
    norm_margin,
    refute_lipschitz,
    zero_of_line,
)
from aatc.validation.judgement import ValidationError, finite, judge, tolerance_of, worst

_HISTORY = ("states", "fields", "metrics")


@dataclass(frozen=True)
class EnergyWitness:
    """``energies`` of the member of the batch that rises the most above its least energy before. At ``step`` + 1 they
    are for the first time more than the tolerance above it, or, where they never are, the most: by ``increase``."""

    index: tuple[int, ...]
    step: int
    increase: float
    energies: tuple[float, ...]


@dataclass(frozen=True)
class ExtremumWitness:
    """``value``, at ``index`` of the state at ``step``, and the range of the initial state."""

    step: int
    index: tuple[int, ...]
    value: float
    initial_range: tuple[float, float]


@dataclass(frozen=True, eq=False)
class HullWitness:
    """An ``output`` (d,) of ``step`` and the rows ``values`` (n, d) whose hull is in question.

    ``weights`` (n,) make the point of the hull nearest to it in the largest coordinate; ``direction`` (d,), of
    1-norm 1, separates it from the hull by ``distance``, or is 0 inside."""

    step: int
    index: tuple[int, ...]
    output: Tensor
    values: Tensor
    weights: Tensor
    direction: Tensor
    distance: float


@dataclass(frozen=True)
class RowWitness:
    """The worst row of an averaging operator."""

    index: tuple[int, ...]
    weights: tuple[float, ...]
    origin: bool


@dataclass(frozen=True)
class StepWitness:
    """``value``, at ``index`` of the state at ``step``, where the operator gives ``image``."""

    step: int
    index: tuple[int, ...]
    value: float
    image: float


@verify.register
def _(witness: EnergyWitness) -> float:
    least, rise = math.inf, 0.0
    for energy in witness.energies:
        least, rise = min(least, energy), max(rise, energy - least)
    return rise


@verify.register
def _(witness: ExtremumWitness) -> float:
    low, high = witness.initial_range
    return max(0.0, low - witness.value, witness.value - high)


@verify.register
def _(witness: HullWitness) -> float:
    weights = witness.weights.clamp_min(0)
    inside = weights @ witness.values / weights.sum()
    return float((witness.output - inside).abs().max())


@verify.register
def _(witness: RowWitness) -> float:
    excess = math.fsum([*witness.weights, -1.0])
    return max(0.0, -min(witness.weights), max(0.0, excess) if witness.origin else abs(excess))


@verify.register
def _(witness: StepWitness) -> float:
    return abs(witness.value - witness.image)


def _history(flow: Any) -> list[Tensor]:
    """The states of a flow in order of time: a tensor along axis 0, a sequence, or an object that holds one."""
    for name in _HISTORY:
        flow = getattr(flow, name, flow)
    if not isinstance(flow, Tensor | Sequence) or isinstance(flow, str):
        raise ValidationError(
            f"a {type(flow).__name__} is no flow",
            hint="give states along axis 0, a sequence of states, or an object with .states, .fields or .metrics",
        )
    states = list(flow) if not isinstance(flow, Tensor) or flow.ndim else []
    if len(states) < 2 or not all(isinstance(state, Tensor) for state in states):
        raise ValidationError(f"a flow has two or more states, all tensors; got {len(states)} items")
    return states


def _holds_metrics(flow: Any) -> bool:
    """Whether `_history` takes the ``metrics`` of an object, and not its states or fields."""
    return next((name for name in _HISTORY if hasattr(flow, name)), None) == "metrics"


def _hull_distance(output: Tensor, values: Tensor) -> tuple[float, Tensor, Tensor]:
    """The distance of a point from the hull of rows in the largest coordinate, the weights of the nearest point, and
    the direction that separates them, by linear programming: min t with |Σ w_j v_j − o| ≤ t, w ≥ 0, Σ w = 1."""
    import numpy as np
    from scipy.optimize import linprog

    o, v = output.cpu().numpy(), values.cpu().numpy()
    scale = float(np.abs(v - o).max()) or 1.0
    n, d = v.shape
    moved = (v - o).T / scale
    ones = np.ones((d, 1))
    found = linprog(
        np.r_[np.zeros(n), 1.0],
        A_ub=np.block([[moved, -ones], [-moved, -ones]]),
        b_ub=np.zeros(2 * d),
        A_eq=np.r_[np.ones(n), 0.0][None],
        b_eq=[1.0],
        method="highs",
    )
    if found.status != 0:
        raise ValidationError(f"the linear program of the hull was not solved: {found.message}")
    weights = np.clip(found.x[:n], 0, None)
    weights /= weights.sum()
    dual = found.ineqlin.marginals
    direction = torch.as_tensor(dual[:d] - dual[d:])
    distance = float(np.abs(weights @ v - o).max())
    direction = direction / direction.abs().sum().clamp_min(1.0)
    return distance, torch.as_tensor(weights).to(values), direction.to(values)


@dataclass(frozen=True)
class FlowValidation:
    """Checks of flows. ``tolerance`` is used where a method is given none.

    A flow is a tensor with time along axis 0, a sequence of states, or an object with ``states``, ``fields`` or
    ``metrics``. The seed's methods are kept, with verdicts instead of bools. A maximum principle of an arbitrary
    operator cannot be checked; here the operator is a matrix of weights, or is left out. Existence up to a time
    follows from no finite set of states: that verdict is a diagnostic unless a Lipschitz bound is given.
    """

    tolerance: float = 1e-6

    def check_energy_monotonicity(
        self, flow: Any, energy_functional: Callable[[Tensor], Tensor], tolerance: float | None = None
    ) -> Verdict:
        """Whether the energy is never more than the tolerance, in the energy's unit, above the least one before.

        A slow rise in many steps is one, and so is the way back up after a fall. ``energy_functional`` takes one state
        and gives an energy (), or (...) for a batch. ``residual`` is the largest rise. A statement on the states given,
        not on the times between. Witness: `EnergyWitness`. Raises `ValidationError`.
        """
        room = tolerance_of(tolerance, self.tolerance)
        found = [finite("the energy", energy_functional(state)) for state in _history(flow)]
        if len({energy.shape for energy in found}) > 1:
            raise ValidationError(f"energies have shapes {sorted({tuple(energy.shape) for energy in found})}, not one")
        energies = torch.stack(found)
        rises = energies[1:] - energies.cummin(0).values[:-1]
        residual, at = max(0.0, float(rises.max())), worst(rises.amax(0))
        member = rises.movedim(0, -1)[at]
        over = (member > room).nonzero()
        step = int(over[0]) if len(over) else int(member.argmax())
        trace = tuple(float(energy[at]) for energy in energies)
        witness = EnergyWitness(at, step, float(member[step]), trace)
        statement = "energy does not rise along the flow"
        return judge(statement, residual, room, witness, "P2", ("at the states given",))

    def verify_maximum_principle(
        self,
        flow: Any,
        operator: Tensor | None = None,
        tolerance: float | None = None,
        *,
        vector_valued: bool = False,
        origin: bool = False,
    ) -> Verdict:
        """Whether a flow stays within the hull of its initial state.

        Without an ``operator``: no entry of a later state leaves the range of the initial one, or, when
        ``vector_valued``, no row (d,) of a later state (..., m, d) leaves the convex hull of the rows of the initial
        state (..., n, d), by a linear program each. So attention is the flow (V, O). With an operator, weights
        (..., m, n): its rows are nonnegative and sum to 1, which proves the principle for every V; with ``origin``,
        sums below 1 are allowed, and the hull includes 0. The sums are formed exactly, and the verdict is P1 where
        the residual is 0, else P2. If ``flow`` is not None, every step must also be the operator's,
        u_{t+1} = A u_t; states of a square operator may be any number, other flows have two. ``residual`` is the
        largest distance or deviation. Witness: `ExtremumWitness`, `HullWitness`, `RowWitness` or `StepWitness`.
        Raises `ValidationError`.
        """
        room = tolerance_of(tolerance, self.tolerance)
        if operator is not None:
            return self._averaging(flow, operator, room, origin)
        if origin:
            raise ValidationError("origin= belongs to an operator of weights")
        states = [finite("a state", state) for state in _history(flow)]
        if vector_valued:
            return self._in_hull(states, room)
        low, high = float(states[0].min()), float(states[0].max())
        beyond = [torch.maximum(low - state, state - high) for state in states[1:]]
        step = max(range(len(beyond)), key=lambda s: float(beyond[s].max()))
        at = worst(beyond[step])
        witness = ExtremumWitness(step + 1, at, float(states[step + 1][at]), (low, high))
        residual = max(0.0, float(beyond[step][at]))
        return judge("later states lie in the range of the first", residual, room, witness, "P2")

    def _in_hull(self, states: list[Tensor], room: float) -> Verdict:
        first = states[0]
        worst_case: HullWitness | None = None
        for step, state in enumerate(states[1:], 1):
            if (
                min(first.ndim, state.ndim) < 2
                or state.shape[:-2] != first.shape[:-2]
                or state.shape[-1] != first.shape[-1]
            ):
                raise ValidationError(f"states (..., n, d) differ beyond n: {tuple(first.shape)}, {tuple(state.shape)}")
            for index in torch.cartesian_prod(*[torch.arange(s) for s in (*state.shape[:-1], 1)]).tolist():
                at = tuple(index[:-1])
                distance, weights, direction = _hull_distance(state[at], first[at[:-1]])
                if worst_case is None or distance > worst_case.distance:
                    worst_case = HullWitness(step, at, state[at], first[at[:-1]], weights, direction, distance)
        assert worst_case is not None
        return judge("later rows lie in the hull of the first rows", worst_case.distance, room, worst_case, "P2")

    def _averaging(self, flow: Any, operator: Tensor, room: float, origin: bool) -> Verdict:
        weights = finite("operator", operator)
        if weights.ndim < 2:
            raise ValidationError(f"operator has shape {tuple(weights.shape)}; (..., m, n) is needed")
        rows = weights.reshape(-1, weights.shape[-1]).tolist()
        witnesses = [RowWitness((), tuple(row), origin) for row in rows]
        defects = torch.tensor([verify(w) for w in witnesses], dtype=torch.float64).reshape(weights.shape[:-1])
        at = worst(defects)
        residual = float(defects[at])
        witness: RowWitness | StepWitness = RowWitness(at, tuple(weights[at].tolist()), origin)
        statement = f"rows of weights ≥ 0 with sum {'≤' if origin else '='} 1: outputs in the hull of the values"
        if flow is None:
            return judge(statement, residual, room, witness, "P1" if residual == 0 else "P2")
        states = [finite("a state", state) for state in _history(flow)]
        for step, (before, after) in enumerate(pairwise(states), 1):
            vectors = before if before.ndim >= 2 else before[:, None]
            if vectors.shape[-2] != weights.shape[-1]:
                raise ValidationError(f"an operator {tuple(weights.shape)} does not apply to {tuple(before.shape)}")
            image = weights @ vectors
            image = image if before.ndim >= 2 else image[..., 0]
            if image.shape != after.shape:
                raise ValidationError(
                    f"the operator gives {tuple(image.shape)}, the next state is {tuple(after.shape)}"
                )
            change = (after - image).abs()
            if float(change.max()) > residual:
                at = worst(change)
                residual = float(change[at])
                witness = StepWitness(step, at, float(after[at]), float(image[at]))
        level = "P1" if residual == 0 else "P2"
        return judge(f"steps are those of the operator, {statement}", residual, room, witness, level)

    def check_long_time_existence(
        self,
        flow: Any,
        time_horizon: float,
        *,
        times: Tensor | None = None,
        initial: Tensor | None = None,
        margin: Margin | None = None,
        metric: bool | None = None,
        lipschitz: float | None = None,
    ) -> Verdict:
        """Whether the flow reaches ``time_horizon`` (in the flow's unit of time) before it becomes singular.

        ``flow`` is a history of 3 or more states with ``times`` (T,), its own or given; or a right-hand side
        f(t, u) with the state ``initial`` at time 0, which is integrated adaptively in the time s with
        ds = (1 + |f|) dt, where no solution blows up. ``margin`` is a positive function of a state that falls to
        zero at the singularity: by default 1/|u|, for ``metric`` the least eigenvalue of states (..., d, d); for a
        curvature flow give 1/|Rm|. Unless ``metric`` says otherwise, objects with ``metrics``, such as the trajectory
        of a `GeometricFlow`, are flows of metrics, and no others are. Where −q/q′ of the margin q falls, the line
        through its last values gives the blow-up time: exact for q ~ (T − t)^α, and infinite for exponentials. A
        diagnostic (P3).

        ``lipschitz``: a constant for which the caller vouches that f is continuous, and Lipschitz in u everywhere.
        Then Picard's theorem gives existence for all time (P1) and nothing is integrated. f is sampled near
        ``initial`` at times from 0 to the horizon: a difference that exceeds the constant, or a value that is not
        finite or not of the state's shape, is a ValidationError; that none is found does not prove the bound.
        ``residual`` is the time missing before the horizon, the tolerance 0.
        Witness: `BlowUpWitness`. Raises `ValidationError`.
        """
        if not 0 < time_horizon < math.inf:
            raise ValidationError(f"a time horizon is positive and finite, not {time_horizon}")
        if margin is None:
            metric = _holds_metrics(flow) if metric is None else metric
            margin = least_eigenvalue if metric else norm_margin
        statement = f"no singularity before t = {time_horizon:g}"
        given: tuple[str, ...] = ("extrapolated from the last states",)
        if not callable(flow):
            if lipschitz is not None:
                raise ValidationError("a Lipschitz bound belongs to a right-hand side f(t, u), not to a history")
            given_times = times if times is not None else getattr(flow, "times", None)
            course = course_of_history(_history(flow), given_times, margin)
        else:
            if initial is None:
                raise ValidationError("a right-hand side needs the state at time 0", hint="give initial=")
            start = finite("initial", initial)
            if lipschitz is not None:
                refute_lipschitz(flow, start, lipschitz, float(time_horizon))
                witness = BlowUpWitness(math.inf, time_horizon, (), ())
                given = (
                    f"the right-hand side is continuous, and Lipschitz in u with constant {lipschitz:g} everywhere",
                )
                return judge(statement, 0.0, 0.0, witness, "P1", given)
            course = course_of_field(flow, start, margin, float(time_horizon))
        if course.reached >= time_horizon:
            course, given = Course(course.reached), ("followed to the horizon",)
        blow_up = zero_of_line(course.times, course.lifetimes)
        if course.broken is not None and course.broken < blow_up:
            blow_up, course = course.broken, Course(course.reached, (course.broken,), (0.0,))
        witness = BlowUpWitness(blow_up, float(time_horizon), course.times, course.lifetimes)
        return judge(statement, max(0.0, time_horizon - blow_up), 0.0, witness, "P3", given)
