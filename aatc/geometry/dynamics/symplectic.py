"""Symplectic integrators: leapfrog and its fourth-order composition for separable Hamiltonians, implicit midpoint
for every other.

Points of phase space are pairs (q, p) of tensors of shape (..., d); leading dimensions are a batch. A step is
differentiable in q, p, dt and in whatever tensors the vector field closes over. Each of the three maps is
symplectic (JᵀΩJ = Ω) and time-symmetric (a step by −dt undoes a step by dt).

Sources: Hairer, Lubich, Wanner, Geometric Numerical Integration, chapters II, V, VI; Yoshida, Construction of higher
order symplectic integrators, Phys. Lett. A 150 (1990) 262.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from aatc.geometry.manifold import GeometryError

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_CUBE_ROOT = 2.0 ** (1.0 / 3.0)
_OUTER = 1.0 / (2.0 - _CUBE_ROOT)
LEAPFROG_WEIGHTS = (1.0,)
YOSHIDA4_WEIGHTS = (_OUTER, -_CUBE_ROOT * _OUTER, _OUTER)


class HamiltonianError(GeometryError):
    """What every error of the Hamiltonian modules is."""


class PhaseShapeError(HamiltonianError):
    """Positions, momenta, tangent vectors or values whose shapes, dtypes or devices do not fit together."""


class UnknownMethodError(HamiltonianError):
    """An integration method that does not exist."""


class NotSeparableError(HamiltonianError):
    """A method for H = T(p) + V(q) was asked of a Hamiltonian that mixes q and p."""


class ConvergenceError(HamiltonianError):
    """The equation of an implicit step was not solved; ``residual`` and ``iterations`` say how far it came."""

    def __init__(self, message: str, *, residual: float, iterations: int) -> None:
        super().__init__(message)
        self.residual = residual
        self.iterations = iterations


def check_phase_point(state: Tensor, momentum: Tensor) -> None:
    """Raise `PhaseShapeError` unless both are floating (..., d), d ≥ 1, of one shape, dtype and device."""
    if state.dim() == 0 or state.shape[-1] == 0 or state.shape != momentum.shape:
        raise PhaseShapeError(
            f"state {tuple(state.shape)} and momentum {tuple(momentum.shape)} must have one shape (..., d), d ≥ 1; "
            "expand the smaller one to the other's batch"
        )
    if state.dtype != momentum.dtype or not state.is_floating_point():
        raise PhaseShapeError(
            f"state is {state.dtype} and momentum {momentum.dtype}: both must be of one real floating dtype"
        )
    if state.device != momentum.device:
        raise PhaseShapeError(f"state is on {state.device} and momentum on {momentum.device}: move one of them")


def _time_step(dt: float | Tensor, state: Tensor) -> float | Tensor:
    """``dt`` as a factor of (..., d): a number stays one, a tensor of the batch's shape gets a last dimension."""
    if not isinstance(dt, Tensor):
        if not math.isfinite(dt):
            raise HamiltonianError(f"dt = {dt}: a time step must be a finite number")
        return dt
    try:
        fits = torch.broadcast_shapes(dt.shape, state.shape[:-1]) == state.shape[:-1]
    except RuntimeError:
        fits = False
    if not fits:
        raise PhaseShapeError(
            f"dt {tuple(dt.shape)} does not broadcast to the batch {tuple(state.shape[:-1])}: give a number, "
            "a tensor of shape (), or one per point of the batch"
        )
    return dt.to(state).unsqueeze(-1) if dt.dim() else dt.to(state)


def check_steps(steps: int, name: str = "steps", least: int = 0) -> None:
    """Raise `HamiltonianError` unless ``steps`` is an integer of at least ``least``."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < least:
        raise HamiltonianError(f"{name} = {steps!r}: must be an integer ≥ {least}; a negative dt runs time backwards")


def kick_drift_kick(
    velocity: Callable[[Tensor], Tensor],
    force: Callable[[Tensor], Tensor],
    state: Tensor,
    momentum: Tensor,
    dt: float | Tensor,
    steps: int = 1,
    weights: tuple[float, ...] = LEAPFROG_WEIGHTS,
    *,
    observe: Callable[[Tensor, Tensor, Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """``steps`` steps, each of them the leapfrogs by w·dt for w in ``weights``, one after the other.

    ``velocity(p)`` = ∂T/∂p and ``force(q)`` = −∂V/∂q, both (..., d) → (..., d). ``dt`` is a number or a tensor that
    broadcasts to the batch. The force is evaluated once per leapfrog. ``observe``, if given, is called in the middle
    of each with q and p there, and the force and the velocity that carry it. Raises `PhaseShapeError`, and
    `HamiltonianError` for a number that is not finite.
    """
    check_phase_point(state, momentum)
    check_steps(steps)
    h = _time_step(dt, state)
    if steps == 0:
        return state, momentum
    lengths = [(w * h, (0.5 * w) * h) for w in weights]
    push = force(state)
    for _ in range(steps):
        for whole, half in lengths:
            momentum = momentum + half * push
            drift = velocity(momentum)
            if observe is not None:
                observe(state, momentum, push, drift)
            state = state + whole * drift
            push = force(state)
            momentum = momentum + half * push
    return state, momentum


def leapfrog(
    velocity: Callable[[Tensor], Tensor],
    force: Callable[[Tensor], Tensor],
    state: Tensor,
    momentum: Tensor,
    dt: float | Tensor,
    steps: int = 1,
) -> tuple[Tensor, Tensor]:
    """Velocity Verlet, of order 2: `kick_drift_kick` with the one weight 1."""
    return kick_drift_kick(velocity, force, state, momentum, dt, steps, LEAPFROG_WEIGHTS)


def yoshida4(
    velocity: Callable[[Tensor], Tensor],
    force: Callable[[Tensor], Tensor],
    state: Tensor,
    momentum: Tensor,
    dt: float | Tensor,
    steps: int = 1,
) -> tuple[Tensor, Tensor]:
    """Order 4: leapfrogs by w, (1 − 2w), w times dt with w = 1/(2 − 2^⅓) (Yoshida 1990, equation 2.11)."""
    return kick_drift_kick(velocity, force, state, momentum, dt, steps, YOSHIDA4_WEIGHTS)


def _midpoint_map(field: Field, q: Tensor, p: Tensor, half: float | Tensor) -> Field:
    """(m_q, m_p) ↦ (q, p) + dt/2 · field(m_q, m_p), whose fixed point is the middle of the step."""

    def once(m_q: Tensor, m_p: Tensor) -> tuple[Tensor, Tensor]:
        dq, dp = field(m_q, m_p)
        return q + half * dq, p + half * dp

    return once


def _iterate_to_rest(
    once: Field, q: Tensor, p: Tensor, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, int]:
    """The fixed point of ``once`` from (q, p), each batch element to ``tolerance`` · (1 + its largest entry)."""
    residual = float("inf")
    done = 0
    for done in range(1, max_iterations + 1):
        new_q, new_p = once(q, p)
        change = torch.maximum((new_q - q).abs(), (new_p - p).abs())
        scale = 1 + torch.maximum(new_q.abs(), new_p.abs()).amax(-1, keepdim=True)
        residual = float((change / scale).max()) if change.numel() else 0.0
        q, p = new_q, new_p
        if residual <= tolerance:
            return q, p, done
        if residual != residual or residual == float("inf"):
            break
    raise ConvergenceError(
        f"implicit midpoint: residual {residual:.3g} after {done} iterations, wanted {tolerance:.3g}; "
        "the iteration contracts when |dt|/2 times the field's Lipschitz constant is below 1: take a smaller dt",
        residual=residual,
        iterations=done,
    )


def _iterations_for_derivative(once: Field, q: Tensor, p: Tensor, tolerance: float, max_iterations: int) -> int:
    """How often the transposed derivative of ``once`` must act on a vector before nothing of it is left."""
    transposed = torch.func.vjp(once, q, p)[1]
    ramp = torch.arange(q.shape[-1], dtype=q.dtype, device=q.device)
    w = (torch.cos(ramp).expand_as(q), torch.cos(ramp + 2).expand_as(p))
    size = float("inf")
    for done in range(1, max_iterations + 1):
        w = transposed(w)
        size = float(torch.maximum(w[0].abs(), w[1].abs()).max()) if q.numel() else 0.0
        if size <= tolerance:
            return done + 1
    raise ConvergenceError(
        f"implicit midpoint: its derivative has residual {size:.3g} after {max_iterations} iterations, wanted "
        f"{tolerance:.3g}; take a smaller dt",
        residual=size,
        iterations=max_iterations,
    )


def _carries_derivative(x: Tensor) -> bool:
    """Whether reverse or forward differentiation follows ``x``."""
    return x.requires_grad or forward_ad.unpack_dual(x).tangent is not None


def implicit_midpoint(
    field: Field,
    state: Tensor,
    momentum: Tensor,
    dt: float | Tensor,
    steps: int = 1,
    *,
    tolerance: float | None = None,
    max_iterations: int = 100,
) -> tuple[Tensor, Tensor]:
    """z' = z + dt · field((z + z')/2), of order 2, for any Hamiltonian field ``(q, p) ↦ (q', p')``.

    The middle m = z + dt/2 · field(m) is found by fixed-point iteration to ``tolerance`` (16 ulp of the dtype unless
    given), relative to 1 + max|m|. When a gradient is wanted, the iteration is repeated from the solution with the
    graph recorded until the derivative of the starting value has died out, so the derivative is that of the exact
    step, not of a number of iterations that happened to suffice for the value; memory is that of the repeats. The
    test for rest reads values, so a call cannot run under ``torch.func.vmap``: batch over leading dimensions.
    Raises `ConvergenceError` and `PhaseShapeError`.
    """
    check_phase_point(state, momentum)
    check_steps(steps)
    check_steps(max_iterations, "max_iterations", 1)
    h = _time_step(dt, state)
    half = 0.5 * h
    bound = 16 * torch.finfo(state.dtype).eps if tolerance is None else tolerance
    for _ in range(steps):
        with torch.no_grad():
            once = _midpoint_map(field, state.detach(), momentum.detach(), half)
            m_q, m_p, _ = _iterate_to_rest(once, state.detach(), momentum.detach(), bound, max_iterations)
        m_q, m_p = m_q.detach(), m_p.detach()
        once = _midpoint_map(field, state, momentum, half)
        probe_q, probe_p = once(m_q, m_p)
        if _carries_derivative(probe_q) or _carries_derivative(probe_p):
            with torch.no_grad():
                repeats = _iterations_for_derivative(once, m_q, m_p, bound, max_iterations)
            m_q, m_p = probe_q, probe_p
            for _ in range(repeats - 1):
                m_q, m_p = once(m_q, m_p)
        state, momentum = 2 * m_q - state, 2 * m_p - momentum
    return state, momentum
