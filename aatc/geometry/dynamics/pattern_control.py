"""Optimal control of a state to a target: the forcing of least energy, under bounds, by direct single shooting.

The control is constant on each of K equal intervals. Its gradient is the discrete adjoint, which autograd computes
through the steps of the solver; bounds on amplitudes are kept exactly by projection (L-BFGS-B), and conditions on the
energy and on the end of the trajectory by the method of multipliers.

Sources: Bryson, Ho, Applied Optimal Control; Nocedal, Wright, Numerical Optimization, chapters 9 and 17; Rockafellar,
Math. Oper. Res. 1 (1976) 97 for multipliers of a distance to a convex set.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.arguments import arguments, is_number
from aatc.geometry.manifold import GeometryError, PointShapeError

Flow = Callable[[Tensor, Tensor], Tensor]


class ControlError(GeometryError):
    """A control problem that is not well stated."""


@dataclass(frozen=True)
class AmplitudeBound:
    """low ≤ c ≤ high at all times: numbers, or tensors that broadcast to one interval's control."""

    low: float | Tensor
    high: float | Tensor

    def __post_init__(self) -> None:
        try:
            low, high = torch.as_tensor(self.low), torch.as_tensor(self.high)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ControlError(f"bounds are numbers or tensors, got {self.low!r} and {self.high!r}") from error
        if low.is_complex() or high.is_complex():
            raise ControlError("an amplitude bound needs real numbers")
        if not bool(((low <= high) & (low < math.inf) & (high > -math.inf)).all()):
            raise ControlError("an amplitude bound needs low ≤ high, numbers with finite ones between them")


@dataclass(frozen=True)
class EnergyBudget:
    """∫|c|² dt ≤ ``total``."""

    total: float

    def __post_init__(self) -> None:
        if not is_number(self.total):
            raise ControlError(f"an energy budget is a number, got {self.total!r}")
        if not self.total > 0:
            raise ControlError(f"an energy budget of {self.total}: must be positive")


@dataclass(frozen=True)
class TerminalTolerance:
    """|u(T) − target| ≤ ``radius``, in the Euclidean norm of all entries; 0 asks for the target itself."""

    radius: float = 0.0

    def __post_init__(self) -> None:
        if not is_number(self.radius):
            raise ControlError(f"a terminal tolerance is a number, got {self.radius!r}")
        if not 0 <= self.radius < math.inf:
            raise ControlError(f"a terminal tolerance of {self.radius}: must be finite and not negative")


Constraint = AmplitudeBound | EnergyBudget | TerminalTolerance


@dataclass(frozen=True)
class ControlSignal:
    """A control and what it does; true where it is optimal to first order and every constraint holds.

    ``times`` (K + 1,), ``control`` (K, m) or (K, *state), constant on each interval, ``trajectory`` (K + 1, *state) at
    the times. ``cost``: ½∫|c|² dt plus the terminal penalty; ``energy``: ∫|c|² dt; ``residual``: |u(T) − target|;
    ``violations``: by how much each constraint is broken, in the order given, 0 where it holds; ``iterations``: of
    L-BFGS-B in all. A target that cannot be reached under the constraints gives a false signal with the ``message``.
    """

    times: Tensor
    control: Tensor
    trajectory: Tensor
    cost: float
    energy: float
    residual: float
    violations: tuple[float, ...]
    converged: bool
    iterations: int
    message: str

    def __bool__(self) -> bool:
        return self.converged


@arguments(field="function", duration="number", steps="integer")
def runge_kutta_flow(field: Callable[[Tensor], Tensor], duration: float, steps: int = 4) -> Flow:
    """(state, forcing) ↦ the state after ``duration`` of u' = field(u) + forcing, by ``steps`` steps of RK4."""
    if not 0 < duration < math.inf or steps < 1:
        raise ControlError(f"duration = {duration}, steps = {steps}: need a positive finite time and at least one step")
    h = duration / steps

    def flow(state: Tensor, forcing: Tensor) -> Tensor:
        for _ in range(steps):
            k1 = field(state) + forcing
            k2 = field(state + 0.5 * h * k1) + forcing
            k3 = field(state + 0.5 * h * k2) + forcing
            k4 = field(state + h * k3) + forcing
            state = state + (h / 6) * (k1 + 2 * k2 + 2 * k3 + k4)
        return state

    return flow


@arguments(flow="function", current=Tensor, target=Tensor)
def optimal_control(
    flow: Flow,
    current: Tensor,
    target: Tensor,
    constraints: Sequence[Constraint] = (),
    *,
    time: float,
    intervals: int,
    actuators: Tensor | None = None,
    terminal_weight: float = 100.0,
    tolerance: float = 1e-6,
    max_iterations: int = 500,
) -> ControlSignal:
    """The control that takes ``current`` to ``target`` in ``time`` at least cost ½∫|c|² dt + ½w|u(T) − target|².

    ``flow(state, forcing)`` is the state after ``time / intervals`` under a constant forcing of the state's shape,
    differentiable (`runge_kutta_flow`). ``actuators`` (m, *state): the forcing is Σ c_j B_j with c (m,); without them
    it is c itself, of the state's shape, whose |c|² is the sum over its entries. The penalty w = ``terminal_weight`` is
    left out where a `TerminalTolerance` is among the constraints. Constraints on amplitudes hold exactly, the others
    within ``tolerance``. ``max_iterations``: of L-BFGS-B for one set of multipliers. The optimum is a local one unless
    the dynamics are linear. One problem at a time; the result is detached. Raises `ControlError`, `PointShapeError`.
    """
    if not 0 < tolerance < math.inf or not _is_count(max_iterations):
        raise ControlError(
            f"tolerance = {tolerance}, max_iterations = {max_iterations}: need a positive tolerance and an integer ≥ 1"
        )
    problem = _Shooting(flow, current, target, tuple(constraints), time, intervals, actuators, terminal_weight)
    return problem.solve(tolerance, max_iterations)


def _is_count(value: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class _Shooting:
    def __init__(
        self,
        flow: Flow,
        current: Tensor,
        target: Tensor,
        constraints: tuple[Constraint, ...],
        time: float,
        intervals: int,
        actuators: Tensor | None,
        terminal_weight: float,
    ) -> None:
        if current.shape != target.shape or not current.is_floating_point() or current.numel() == 0:
            raise PointShapeError(
                f"current {tuple(current.shape)} {current.dtype} and target {tuple(target.shape)} must be real "
                "floating tensors of one shape, and not empty"
            )
        if not (bool(current.isfinite().all()) and bool(target.isfinite().all())):
            raise ControlError("current and target must be finite")
        if not 0 < time < math.inf or not _is_count(intervals) or not 0 <= terminal_weight < math.inf:
            raise ControlError(
                f"time = {time}, intervals = {intervals}, terminal_weight = {terminal_weight}: need a positive finite "
                "time, an integer of at least one interval and a finite weight that is not negative"
            )
        if actuators is not None and (
            actuators.ndim != 1 + current.ndim or actuators.shape[1:] != current.shape or len(actuators) == 0
        ):
            raise PointShapeError(f"actuators {tuple(actuators.shape)} are not (m, *{tuple(current.shape)}) with m ≥ 1")
        strange = [type(c).__name__ for c in constraints if not isinstance(c, Constraint)]
        if strange:
            raise ControlError(f"{', '.join(strange)}: constraints are amplitude bounds, budgets and tolerances")
        self.flow, self.current, self.target = flow, current.detach(), target.detach().to(current)
        self.actuators = None if actuators is None else actuators.detach().to(current)
        self.constraints, self.time, self.intervals = constraints, float(time), intervals
        one = current.shape if actuators is None else actuators.shape[:1]
        self.shape = (intervals, *one)
        # In these units ½∫|c|² dt is half the square of the vector that is optimised.
        self.unit = math.sqrt(intervals / self.time)
        radii = [c.radius for c in constraints if isinstance(c, TerminalTolerance)]
        self.radius = min(radii) if radii else None
        self.weight = 0.0 if radii else terminal_weight
        self.budget = min((c.total for c in constraints if isinstance(c, EnergyBudget)), default=math.inf)
        self.low, self.high = self._bounds()
        # What gradients are measured against: the largest one at the start of a minimisation.
        self.scale = 1.0

    def _bounds(self) -> tuple[Tensor, Tensor]:
        low = torch.full(self.shape, -math.inf, dtype=torch.float64)
        high = torch.full(self.shape, math.inf, dtype=torch.float64)
        for bound in self.constraints:
            if isinstance(bound, AmplitudeBound):
                sides = [torch.as_tensor(side, dtype=torch.float64).cpu() for side in (bound.low, bound.high)]
                try:
                    low = torch.maximum(low, sides[0].expand(self.shape))
                    high = torch.minimum(high, sides[1].expand(self.shape))
                except RuntimeError as error:
                    shapes = [tuple(side.shape) for side in sides]
                    raise PointShapeError(f"bounds {shapes} do not broadcast to a control {self.shape[1:]}") from error
        if not bool((low <= high).all()):
            raise ControlError("the amplitude bounds contradict each other")
        return low, high

    def trajectory(self, control: Tensor) -> Tensor:
        states = [self.current]
        for c in control:
            forcing = c if self.actuators is None else torch.tensordot(c, self.actuators, 1)
            states.append(self.flow(states[-1], forcing))
            if states[-1].shape != self.current.shape:
                raise PointShapeError(
                    f"the flow takes a state {tuple(self.current.shape)} to one of shape {tuple(states[-1].shape)}"
                )
        return torch.stack(states)

    def _augmented(self, x: Tensor, multiplier: Tensor, price: float, stiffness: float) -> Tensor:
        """The cost with the terms of the multipliers, of x = c/unit."""
        control = (x * self.unit).reshape(self.shape).to(self.current)
        miss = (self.trajectory(control)[-1] - self.target).double().cpu()
        effort = x.square().sum()
        total = 0.5 * effort + 0.5 * self.weight * miss.square().sum()
        if self.radius is not None:
            total = total + 0.5 * stiffness * self._outside(miss + multiplier / stiffness).square().sum()
        if self.budget < math.inf:
            total = total + 0.5 * stiffness * (effort - self.budget + price / stiffness).clamp(min=0).square()
        return total

    def _outside(self, y: Tensor) -> Tensor:
        """y less its projection to the ball of the terminal tolerance."""
        size = float(y.detach().norm())
        radius = self.radius or 0.0
        return y * 0 if size <= radius else y * (1 - radius / torch.linalg.vector_norm(y))

    def solve(self, tolerance: float, max_iterations: int) -> ControlSignal:
        x = torch.zeros(self.shape, dtype=torch.float64).clamp(self.low, self.high).reshape(-1) / self.unit
        if not bool(self.trajectory((x * self.unit).reshape(self.shape).to(self.current)).isfinite().all()):
            raise ControlError("the trajectory without control is not finite: shorten the time or the solver's step")
        multiplier, price, stiffness = torch.zeros(self.target.shape, dtype=torch.float64), 0.0, 10.0
        iterations, last, feasible, optimal = 0, math.inf, False, False
        for _ in range(25):
            x, done, optimal = self._minimise(x, multiplier, price, stiffness, max_iterations)
            iterations += done
            with torch.no_grad():
                control = (x * self.unit).reshape(self.shape).to(self.current)
                miss = (self.trajectory(control)[-1] - self.target).double().cpu()
                excess = float(x.square().sum()) - self.budget
            infeasibility = max(float(miss.norm()) - self.radius, 0.0) if self.radius is not None else 0.0
            infeasibility = max(infeasibility, excess)
            change = 0.0
            if self.radius is not None:
                new = stiffness * self._outside(miss + multiplier / stiffness)
                change, multiplier = float((new - multiplier).norm()), new
            if self.budget < math.inf:
                raised = max(price + stiffness * excess, 0.0)
                change, price = max(change, abs(raised - price)), raised
            feasible = infeasibility <= tolerance
            if feasible and change <= tolerance * max(stiffness, 1.0):
                break
            if infeasibility > 0.1 * last:
                stiffness = 10 * stiffness
            last = max(infeasibility, tolerance)
            if stiffness > 1e8:
                break
        return self._signal(x, iterations, feasible, optimal, tolerance)

    def _minimise(
        self, x: Tensor, multiplier: Tensor, price: float, stiffness: float, max_iterations: int
    ) -> tuple[Tensor, int, bool]:
        from scipy.optimize import Bounds, minimize

        def value_and_gradient(vector):
            variable = torch.from_numpy(vector.copy()).requires_grad_()
            value = self._augmented(variable, multiplier, price, stiffness)
            if not bool(value.isfinite()):
                # A step into a blow-up: the line search turns back.
                return 1e30, 0 * vector
            (gradient,) = torch.autograd.grad(value, variable)
            return float(value.detach()), gradient.numpy()

        low, high = (self.low / self.unit).reshape(-1), (self.high / self.unit).reshape(-1)
        self.scale = max(self.scale, min(float(abs(value_and_gradient(x.numpy())[1]).max()), 1e3))
        options = {"maxiter": max_iterations, "maxfun": 3 * max_iterations, "maxcor": 30, "ftol": 1e-15}
        options["gtol"] = 1e-9 * self.scale
        bounds = Bounds(low.numpy(), high.numpy())
        result = minimize(value_and_gradient, x.numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        x = torch.from_numpy(result.x.copy()).clamp(low, high)
        gradient = torch.from_numpy(value_and_gradient(x.numpy())[1])
        projected = ((x - gradient).clamp(low, high) - x).abs().max()
        return x, int(result.nit), float(projected) <= 1e-6 * self.scale

    def _signal(self, x: Tensor, iterations: int, feasible: bool, optimal: bool, tolerance: float) -> ControlSignal:
        control = (x * self.unit).reshape(self.shape).clamp(self.low, self.high).to(self.current)
        with torch.no_grad():
            trajectory = self.trajectory(control)
        miss = float((trajectory[-1] - self.target).norm())
        energy = float(control.double().square().sum()) * self.time / self.intervals
        violations = tuple(self._violation(c, control, energy, miss) for c in self.constraints)
        message = "optimal to first order"
        if not feasible:
            worst = max(range(len(violations)), key=violations.__getitem__)
            broken = type(self.constraints[worst]).__name__
            message = f"no feasible control was found: {broken} is broken by {violations[worst]:.3g}"
        elif not optimal:
            message = "the iterations ended before the gradient vanished: raise max_iterations"
        return ControlSignal(
            times=torch.linspace(0, self.time, self.intervals + 1).to(self.current),
            control=control,
            trajectory=trajectory,
            cost=0.5 * energy + 0.5 * self.weight * miss**2,
            energy=energy,
            residual=miss,
            violations=violations,
            converged=feasible and optimal and all(v <= 2 * tolerance for v in violations),
            iterations=iterations,
            message=message,
        )

    def _violation(self, constraint: Constraint, control: Tensor, energy: float, miss: float) -> float:
        if isinstance(constraint, EnergyBudget):
            return max(energy - constraint.total, 0.0)
        if isinstance(constraint, TerminalTolerance):
            return max(miss - constraint.radius, 0.0)
        low, high = (torch.as_tensor(x, dtype=torch.float64).to(control) for x in (constraint.low, constraint.high))
        return max(float(torch.maximum(low - control, control - high).max()), 0.0)


__all__ = [
    "AmplitudeBound",
    "Constraint",
    "ControlError",
    "ControlSignal",
    "EnergyBudget",
    "TerminalTolerance",
    "optimal_control",
    "runge_kutta_flow",
]
