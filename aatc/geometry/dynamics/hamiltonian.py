"""Hamiltonian systems on R^2d: Hamilton's equations, the symplectic form, Poisson brackets, symplectic evolution.

Sources: Arnold, Mathematical Methods of Classical Mechanics, chapter 8; Hairer, Lubich, Wanner, Geometric Numerical
Integration, chapter VI.
"""

from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor

from aatc.geometry.dynamics.symplectic import (
    LEAPFROG_WEIGHTS,
    YOSHIDA4_WEIGHTS,
    HamiltonianError,
    NotSeparableError,
    PhaseShapeError,
    UnknownMethodError,
    check_phase_point,
    check_steps,
    implicit_midpoint,
    kick_drift_kick,
)

Observable = Callable[[Tensor, Tensor], Tensor]
TangentVector = Tensor | tuple[Tensor, Tensor]

METHODS = ("leapfrog", "yoshida4", "implicit_midpoint")
_WEIGHTS = {"leapfrog": LEAPFROG_WEIGHTS, "yoshida4": YOSHIDA4_WEIGHTS}


def _value(f: Callable[..., Tensor], *point: Tensor) -> Tensor:
    """``f`` at a point, refused unless it is one number per point of the batch."""
    value = f(*point)
    batch = point[0].shape[:-1]
    if not isinstance(value, Tensor) or value.shape != batch:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise PhaseShapeError(
            f"a function on points {tuple(point[0].shape)} must give one value each, shape {tuple(batch)}, not {got}: "
            "sum over the last dimension"
        )
    return value


def _gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∂f/∂x, (..., d), of a function that treats the points of a batch apart."""
    gradient: Tensor = torch.func.grad(lambda y: _value(f, y).sum())(x)
    return gradient


def _partials(f: Observable, state: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
    """∂f/∂q and ∂f/∂p, each (..., d)."""
    both = torch.func.grad(lambda q, p: _value(f, q, p).sum(), argnums=(0, 1))
    gradients: tuple[Tensor, Tensor] = both(state, momentum)
    return gradients


def _halves(vector: TangentVector) -> tuple[Tensor, Tensor]:
    """A tangent vector as its (q, p) components."""
    if isinstance(vector, Tensor):
        if vector.dim() == 0 or vector.shape[-1] % 2:
            raise PhaseShapeError(f"a tangent vector has shape (..., 2d), q before p, not {tuple(vector.shape)}")
        half = vector.shape[-1] // 2
        return vector[..., :half], vector[..., half:]
    vector_q, vector_p = vector
    check_phase_point(vector_q, vector_p)
    return vector_q, vector_p


class HamiltonianSystem:
    """The flow of a Hamiltonian H(q, p) on phase space R^2d.

    ``hamiltonian(state, momentum)`` takes positions and momenta (..., d) and gives energies (...), point by point.
    Everything is differentiable in the points and in whatever parameters H closes over, and follows the points'
    dtype and device.

    The seed's vocabulary is kept, and corrected where it could not work. Energies are tensors, not floats, so that
    they batch and differentiate. `hamilton_equations` took a state and a value of H; a value has no derivative, and
    without the momentum the point is not a point of phase space: it takes (state, momentum), and H is given to the
    constructor. `poisson_bracket` took functions of the state alone, whose bracket is always zero: here they are
    functions of (state, momentum). `evolve` and `trajectory` are added.
    """

    def __init__(self, hamiltonian: Observable) -> None:
        self.hamiltonian = hamiltonian
        self._parts: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None

    @classmethod
    def separable(
        cls, kinetic: Callable[[Tensor], Tensor], potential: Callable[[Tensor], Tensor]
    ) -> "HamiltonianSystem":
        """H = T(p) + V(q), each function (..., d) → (...). No check is needed before a leapfrog."""
        system = cls(lambda state, momentum: kinetic(momentum) + potential(state))
        system._parts = (kinetic, potential)
        return system

    @classmethod
    def geodesic(cls, inverse_metric: Callable[[Tensor], Tensor]) -> "HamiltonianSystem":
        """H = ½ pᵀG⁻¹(q)p, whose flow is the geodesic flow; ``inverse_metric``: (..., d) → (..., d, d)."""

        def energy(state: Tensor, momentum: Tensor) -> Tensor:
            inverse, d = inverse_metric(state), momentum.shape[-1]
            if tuple(inverse.shape[-2:]) != (d, d):
                raise PhaseShapeError(f"inverse_metric must give (..., {d}, {d}), gave {tuple(inverse.shape)}")
            return 0.5 * torch.einsum("...i,...ij,...j->...", momentum, inverse, momentum)

        return cls(energy)

    def compute_hamiltonian(self, state: Tensor, momentum: Tensor) -> Tensor:
        """H(q, p), of the batch's shape (...). Raises `PhaseShapeError`."""
        check_phase_point(state, momentum)
        return _value(self.hamiltonian, state, momentum)

    def hamilton_equations(self, state: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        """q' = ∂H/∂p and p' = −∂H/∂q, each (..., d). Raises `PhaseShapeError`."""
        check_phase_point(state, momentum)
        by_state, by_momentum = _partials(self.hamiltonian, state, momentum)
        return by_momentum, -by_state

    def symplectic_form(self, vectors: tuple[TangentVector, TangentVector]) -> Tensor:
        """ω(u, v) = u_q·v_p − u_p·v_q, shape (...).

        A vector is a tensor (..., 2d), q before p, or a pair of tensors (..., d); batches broadcast. With
        X_f = (∂f/∂p, −∂f/∂q), ω(X_f, X_g) = {f, g}. Raises `PhaseShapeError`.
        """
        (u_q, u_p), (v_q, v_p) = _halves(vectors[0]), _halves(vectors[1])
        try:
            fits = u_q.shape[-1] == v_q.shape[-1] and torch.broadcast_shapes(u_q.shape, v_q.shape) is not None
        except RuntimeError:
            fits = False
        if not fits:
            raise PhaseShapeError(
                f"tangent vectors with components {tuple(u_q.shape)} and {tuple(v_q.shape)} are not of one phase space"
            )
        return (u_q * v_p).sum(-1) - (u_p * v_q).sum(-1)

    @overload
    def poisson_bracket(self, f: Observable, g: Observable) -> Observable: ...
    @overload
    def poisson_bracket(self, f: Observable, g: Observable, state: Tensor, momentum: Tensor) -> Tensor: ...

    def poisson_bracket(
        self, f: Observable, g: Observable, state: Tensor | None = None, momentum: Tensor | None = None
    ) -> Observable | Tensor:
        """{f, g} = ∂f/∂q·∂g/∂p − ∂f/∂p·∂g/∂q: its values (...) at points, or, without points, the function.

        ``f`` and ``g`` map (state, momentum) to (...). The function is again such a map, so brackets nest:
        ``poisson_bracket(poisson_bracket(f, g), h, state, momentum)``. df/dt = {f, H} along the flow. Raises
        `PhaseShapeError`.
        """

        def bracket(state: Tensor, momentum: Tensor) -> Tensor:
            check_phase_point(state, momentum)
            f_q, f_p = _partials(f, state, momentum)
            g_q, g_p = _partials(g, state, momentum)
            return (f_q * g_p).sum(-1) - (f_p * g_q).sum(-1)

        if state is None and momentum is None:
            return bracket
        if state is None or momentum is None:
            raise PhaseShapeError("a bracket is evaluated at a state and a momentum: give both, or neither")
        return bracket(state, momentum)

    def evolve(
        self, state: Tensor, momentum: Tensor, dt: float | Tensor, steps: int, method: str = "leapfrog"
    ) -> tuple[Tensor, Tensor]:
        """The point after ``steps`` steps of length ``dt`` (a number, or a tensor that broadcasts to the batch).

        ``method``: "leapfrog" (order 2) and "yoshida4" (order 4) for H = T(p) + V(q), "implicit_midpoint" (order 2)
        for any H. Unless the system was made by `separable`, the first two compare ∂H/∂q at the given and at a
        shifted momentum, and ∂H/∂p likewise, and in the middle of every step the force and the velocity that carried
        it with those of H there: they raise `NotSeparableError` where they differ, and take half as long again as
        with `separable`. Also raises `UnknownMethodError`, `PhaseShapeError` and `ConvergenceError`.
        """
        self._check_method(state, momentum, steps, method)
        return self._advance(state, momentum, dt, steps, method)

    def trajectory(
        self, state: Tensor, momentum: Tensor, dt: float | Tensor, steps: int, method: str = "leapfrog", every: int = 1
    ) -> tuple[Tensor, Tensor]:
        """States and momenta at steps 0, every, 2·every, ... ≤ steps: two tensors (1 + steps // every, ..., d).

        Otherwise as `evolve`.
        """
        self._check_method(state, momentum, steps, method)
        check_steps(every, "every", 1)
        points = [(state, momentum)]
        for _ in range(steps // every):
            points.append(self._advance(*points[-1], dt, every, method))
        return torch.stack([q for q, _ in points]), torch.stack([p for _, p in points])

    def _advance(
        self, state: Tensor, momentum: Tensor, dt: float | Tensor, steps: int, method: str
    ) -> tuple[Tensor, Tensor]:
        if method == "implicit_midpoint":
            return implicit_midpoint(self.hamilton_equations, state, momentum, dt, steps)
        if self._parts is not None:
            kinetic, potential = self._parts
            return kick_drift_kick(
                lambda p: _gradient(kinetic, p),
                lambda q: -_gradient(potential, q),
                state,
                momentum,
                dt,
                steps,
                _WEIGHTS[method],
            )
        # ∂H/∂p does not depend on q, nor ∂H/∂q on p: any admissible value serves for the other argument.
        start_q, start_p = state, momentum
        watch = _SeparableWatch(self.hamiltonian, method)
        end = kick_drift_kick(
            lambda p: _gradient(lambda y: self.hamiltonian(start_q, y), p),
            lambda q: -_gradient(lambda x: self.hamiltonian(x, start_p), q),
            state,
            momentum,
            dt,
            steps,
            _WEIGHTS[method],
            observe=watch,
        )
        watch.refuse()
        return end

    def _check_method(self, state: Tensor, momentum: Tensor, steps: int, method: str) -> None:
        if method not in METHODS:
            raise UnknownMethodError(f"method {method!r} is not one of {', '.join(METHODS)}")
        check_phase_point(state, momentum)
        check_steps(steps)
        if method in _WEIGHTS and self._parts is None:
            self._check_separable(state, momentum, method)

    def _check_separable(self, state: Tensor, momentum: Tensor, method: str) -> None:
        with torch.no_grad():
            q, p = state.detach(), momentum.detach()
            shift = 0.5 + 0.25 * torch.cos(torch.arange(q.shape[-1], dtype=q.dtype, device=q.device))
            by_q, by_p = _partials(self.hamiltonian, q, p)
            other_q, _ = _partials(self.hamiltonian, q, p + shift)
            _, other_p = _partials(self.hamiltonian, q + 0.1 * shift, p)
            if bool(_differ(by_q, other_q).any() | _differ(by_p, other_p).any()):
                raise _not_separable(method, "here")


def _differ(one: Tensor, other: Tensor) -> Tensor:
    """Where two derivatives (..., d) differ beyond rounding, bool. One out of H's domain, not finite, says nothing."""
    room = 1e3 * torch.finfo(one.dtype).eps
    return ((one - other).abs() > room * (1 + one.abs())) & other.isfinite()


def _not_separable(method: str, place: str) -> NotSeparableError:
    return NotSeparableError(
        f"{method} needs H = T(p) + V(q), and ∂²H/∂q∂p is not zero {place}: use 'implicit_midpoint', "
        "or HamiltonianSystem.separable(T, V) if this H is a sum after all"
    )


class _SeparableWatch:
    """Compares what carries a leapfrog with the derivatives of H where it is, to be read once at its end."""

    def __init__(self, hamiltonian: Observable, method: str) -> None:
        self.hamiltonian, self.method = hamiltonian, method
        self.differs: list[Tensor] = []

    def __call__(self, state: Tensor, momentum: Tensor, force: Tensor, velocity: Tensor) -> None:
        with torch.no_grad():
            by_q, by_p = _partials(self.hamiltonian, state.detach(), momentum.detach())
            self.differs.append((_differ(-force.detach(), by_q) | _differ(velocity.detach(), by_p)).any())

    def refuse(self) -> None:
        """Raise `NotSeparableError`, with the number of the first leapfrog, if one was not carried by H."""
        if self.differs and bool(torch.stack(self.differs).any()):
            first = int(torch.stack(self.differs).to(torch.int8).argmax())
            raise _not_separable(self.method, f"on the way, at leapfrog {first} of {len(self.differs)}")


__all__ = [
    "METHODS",
    "HamiltonianError",
    "HamiltonianSystem",
    "NotSeparableError",
    "PhaseShapeError",
    "UnknownMethodError",
]
