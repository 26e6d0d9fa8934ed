"""Pattern formation in one place: simulation, stability, bifurcations and control of a reaction–diffusion system."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from torch import Tensor

from aatc.geometry.dynamics.bifurcation import BifurcationDiagram, ContinuationSettings, bifurcation_diagram
from aatc.geometry.dynamics.pattern_control import Constraint, ControlError, ControlSignal, optimal_control
from aatc.geometry.dynamics.pattern_stability import StabilityMetrics, stability
from aatc.geometry.dynamics.reaction_diffusion import Grid, PatternError, Progress, Reaction, ReactionDiffusion


class PatternDynamics:
    """The patterns of u_t = ∇·(D∇u) + f(u) on a box; `ReactionDiffusion` says what the three arguments may be.

    The seed's vocabulary is kept, and corrected where it could not work. Only `reaction_diffusion` was given the
    system, without which stability, bifurcations and control have no meaning: here the constructor takes it.
    `reaction_diffusion` had no time step and no boundary. `stability_analysis` took a perturbation, of which stability
    does not depend: it is optional. ``parameter`` of `bifurcation_analysis` was a tensor, which does not say what it
    is a parameter of: it is the name of the reaction's parameter, or a function. A control has a duration. `evolve`
    is added.
    """

    def __init__(self, reaction_term: Reaction, diffusion_tensor: Tensor | float, grid: Grid) -> None:
        self.system = ReactionDiffusion(reaction_term, diffusion_tensor, grid)

    def reaction_diffusion(
        self,
        state: Tensor,
        diffusion_tensor: Tensor | float | None = None,
        reaction_term: Reaction | None = None,
        *,
        dt: float | Tensor = 0.1,
        method: str = "etdrk4",
        forcing: Tensor | None = None,
    ) -> Tensor:
        """The fields (..., species, *grid) after one step ``dt``, as `ReactionDiffusion.step`.

        A diffusion tensor and a reaction term given here stand in for those of the system.
        """
        system = self.system
        if diffusion_tensor is not None or reaction_term is not None:
            tensor = system.diffusion if diffusion_tensor is None else diffusion_tensor
            system = ReactionDiffusion(reaction_term or system.reaction_term, tensor, system.grid)
        return system.step(state, dt, method, forcing)

    def evolve(
        self,
        state: Tensor,
        time: float,
        dt: float = 0.1,
        method: str = "etdrk4",
        *,
        progress: Progress | None = None,
        every: int = 1,
    ) -> Tensor:
        """The fields after ``time``, as `ReactionDiffusion.evolve`."""
        return self.system.evolve(state, time, dt, method, progress=progress, every=every)

    def stability_analysis(
        self, pattern: Tensor, perturbation: Tensor | None = None, *, count: int = 6, tolerance: float | None = None
    ) -> StabilityMetrics:
        """The linear stability of a steady pattern (species, *grid) or (species,), as `pattern_stability.stability`."""
        return stability(self.system, pattern, perturbation, count=count, tolerance=tolerance)

    def bifurcation_analysis(
        self,
        pattern: Tensor,
        parameter: str | Callable[[Tensor], "PatternDynamics"],
        range: tuple[float, float],
        *,
        start: float | None = None,
        settings: ContinuationSettings | None = None,
    ) -> BifurcationDiagram:
        """The steady patterns that hang together with ``pattern`` (species, *grid), as `bifurcation_diagram`.

        ``parameter``: the name of a field of the reaction term, if that is a dataclass, or a function that gives the
        dynamics at a value of shape (). Use a "neumann" grid: on a periodic one every pattern can be shifted, and all
        its bifurcations are degenerate. Raises `PatternError` and `ContinuationError`.
        """
        grid, reaction = self.system.grid, self.system.reaction_term
        if pattern.ndim != 1 + grid.ndim:
            raise PatternError(f"a pattern has shape (species, *grid), not {tuple(pattern.shape)}")
        if isinstance(parameter, str):
            if not dataclasses.is_dataclass(reaction) or parameter not in {
                f.name for f in dataclasses.fields(reaction)
            }:
                raise PatternError(f"the reaction term {reaction!r} has no parameter {parameter!r}")

        def field(state: Tensor, value: Tensor) -> Tensor:
            if not isinstance(parameter, str):
                return parameter(value).system.rate(state)
            changed = dataclasses.replace(reaction, **{parameter: value})
            return ReactionDiffusion(changed, self.system.diffusion, grid).rate(state)

        return bifurcation_diagram(field, pattern, range, start=start, settings=settings)

    def pattern_control(
        self,
        current: Tensor,
        target: Tensor,
        constraints: Sequence[Constraint] = (),
        *,
        time: float,
        intervals: int = 20,
        dt: float = 0.1,
        method: str = "etdrk4",
        actuators: Tensor | None = None,
        terminal_weight: float = 100.0,
        tolerance: float = 1e-6,
        max_iterations: int = 500,
    ) -> ControlSignal:
        """The forcing that takes the pattern ``current`` (species, *grid) to ``target`` in ``time``.

        As `optimal_control`, each interval in equal steps of at most ``dt``.
        """
        if not (time > 0 and dt > 0 and intervals > 0):
            raise ControlError(f"time = {time}, dt = {dt}, intervals = {intervals}: must be positive")
        grid = self.system.grid
        steps = math.ceil(time / intervals / dt * (1 - 1e-12))
        advance = self.system.stepper(current, time / intervals / steps, method)

        def flow(state: Tensor, forcing: Tensor) -> Tensor:
            extended, held = grid.extend(state), grid.extend(forcing)
            for _ in [()] * steps:
                extended = advance(extended, held)
            return grid.restrict(extended)

        return optimal_control(
            flow,
            current,
            target,
            constraints,
            time=time,
            intervals=intervals,
            actuators=actuators,
            terminal_weight=terminal_weight,
            tolerance=tolerance,
            max_iterations=max_iterations,
        )


__all__ = ["PatternDynamics"]
