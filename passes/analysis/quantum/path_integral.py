"""Path integrals of a particle on a line, over finitely many time slices; ħ = 1.

The finite object is the product of the slices: a path is its positions at the slice boundaries, and positions are
integrated by the trapezoidal rule on a box that the particle does not leave. Sources: Feynman, Hibbs, Quantum Mechanics
and Path Integrals; Chin, Symplectic integrators from composite operator factorizations, Phys. Lett. A 226 (1997);
Mehler, J. reine angew. Math. 66 (1866).
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aatc.passes.analysis.quantum.states import QuantumError
from aatc.passes.analysis.quantum.tensors import to_complex
from aatc.passes.analysis.quantum.verify_quantum import witnessed
from aatc.passes.analysis.result import Result

Potential = Callable[[Tensor], Tensor]
#: Points of the largest grid.
MOST_POINTS = 2048


def free_kernel(initial: Any, final: Any, time: complex, mass: float = 1.0) -> Tensor:
    """⟨x′|e^{−Ht}|x⟩ of H = p²/2m, complex: √(m/2πt) exp(−m(x′ − x)²/2t); ``time`` is i t for real time t.

    Raises `QuantumError` for a time with a real part below 0, and for 0.
    """
    x, y = _real("initial", initial), _real("final", final)
    t = _imaginary_time(time)
    return cmath.sqrt(mass / (2 * math.pi * t)) * torch.exp(-mass * (y - x).to(torch.complex128).square() / (2 * t))


def mehler_kernel(initial: Any, final: Any, time: complex, frequency: float = 1.0, mass: float = 1.0) -> Tensor:
    """⟨x′|e^{−Ht}|x⟩ of H = p²/2m + mω²x²/2, complex; ``time`` is i t for real time t, |ωt| < π.

    √(mω/2π sinh ωt) exp(−mω((x² + x′²) cosh ωt − 2xx′)/(2 sinh ωt)). Raises `QuantumError`.
    """
    x, y = _real("initial", initial).to(torch.complex128), _real("final", final).to(torch.complex128)
    t = _imaginary_time(time)
    if not (frequency > 0 and mass > 0):
        raise QuantumError(f"frequency {frequency} and mass {mass} are positive")
    if abs((frequency * t).imag) >= math.pi:
        raise QuantumError("a real time of half a period or more passes a focus, where the kernel is singular")
    sine, cosine = cmath.sinh(frequency * t), cmath.cosh(frequency * t)
    exponent = -mass * frequency * ((x * x + y * y) * cosine - 2 * x * y) / (2 * sine)
    return cmath.sqrt(mass * frequency / (2 * math.pi * sine)) * torch.exp(exponent)


def _imaginary_time(time: complex) -> complex:
    t = complex(time)
    if not (math.isfinite(t.real) and math.isfinite(t.imag)) or t.real < 0 or t == 0:
        raise QuantumError(f"e^(−Ht) has a kernel for Re t ≥ 0 and t ≠ 0, not t = {t}")
    return t


def _real(name: str, value: Any) -> Tensor:
    tensor = to_complex(name, value)
    if bool((tensor.detach().imag != 0).any()):
        raise QuantumError(f"{name} are real positions")
    return tensor.real


@dataclass(frozen=True, eq=False)
class SlicedValue:
    """``value`` of the path integral over ``slices`` slices; ``step_error`` estimates how far it is from that of
    continuous time, from half as many slices (Richardson). The estimate proves nothing."""

    value: Tensor
    step_error: float
    slices: int
    points: int


@dataclass(frozen=True, eq=False)
class EffectiveAction:
    """``classical`` S[φ], ``one_loop`` ½ log det S″[φ] with the measure of the path integral, and their sum."""

    classical: Tensor
    one_loop: Tensor

    @property
    def total(self) -> Tensor:
        """Γ to one loop; exact where the action is quadratic."""
        return self.classical + self.one_loop


@dataclass(frozen=True)
class PathIntegralFramework:
    """A particle of ``mass`` on a line in a ``potential``, a function of positions (n,) to (n,), in imaginary time.

    Positions lie in [−extent, extent]: that the potential keeps the particle there is an assumption of results.
    ``order`` 2 is e^{−τV/2} e^{−τT} e^{−τV/2}, 4 is Chin's e^{−τV/6} e^{−τT/2} e^{−2τṼ/3} e^{−τT/2} e^{−τV/6} with
    Ṽ = V + τ²V′²/48m, which has no negative
    times: Suzuki's formula would diverge in imaginary time. ``frequency``: that of V = mω²x²/2, for which exact values
    are known; ``potential`` is then left out. The seed's signatures are kept, with results in place of numbers.
    """

    potential: Potential | None = None
    mass: float = 1.0
    frequency: float | None = None
    extent: float = 8.0
    slices: int = 64
    order: int = 4

    def __post_init__(self) -> None:
        if (self.potential is None) == (self.frequency is None):
            raise QuantumError("give either a potential or the frequency of a harmonic one")
        sizes = (self.mass, self.extent, 1.0 if self.frequency is None else self.frequency)
        if not all(math.isfinite(x) and x > 0 for x in sizes) or self.order not in (2, 4) or self.slices < 2:
            raise QuantumError(
                f"mass, extent and frequency {sizes} are positive, the order {self.order} is 2 or 4, slices "
                f"{self.slices} are 2 or more"
            )

    # --- the potential -------------------------------------------------------------------------------------
    def _potential(self, x: Tensor) -> Tensor:
        if self.potential is None:
            assert self.frequency is not None
            return self.mass * self.frequency**2 * x * x / 2
        v = self.potential(x)
        if not isinstance(v, Tensor) or v.shape != x.shape or v.is_complex() or not bool(v.detach().isfinite().all()):
            raise QuantumError(f"a potential gives real finite numbers of the positions' shape {tuple(x.shape)}")
        return v

    def _slopes(self, x: Tensor, times: int) -> Tensor:
        """V′ or V″ at positions (n,)."""
        wanted = x.requires_grad or self._potential(x).requires_grad
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            value = self._potential(at)
            for _ in range(times):
                if not value.requires_grad:
                    return torch.zeros_like(x)
                (value,) = torch.autograd.grad(value.sum(), at, create_graph=True, materialize_grads=True)
        return value if wanted else value.detach()

    def _weights(self, x: Tensor, tau: float) -> tuple[Tensor, Tensor | None]:
        """e^{−...} at the boundary of a slice, and in its middle where the order is 4."""
        v = self._potential(x)
        if self.order == 2:
            return torch.exp(-tau / 2 * v), None
        middle = v + tau**2 / (48 * self.mass) * self._slopes(x, 1).square()
        return torch.exp(-tau / 6 * v), torch.exp(-2 * tau / 3 * middle)

    # --- slices --------------------------------------------------------------------------------------------
    def action_functional(self, path: Tensor, time: float, *, euclidean: bool = True) -> Tensor:
        """S of paths (..., n + 1), positions at equal intervals of ``time``, (...): Σ m(Δx)²/2τ + τ(V_k + V_{k+1})/2
        in imaginary time, Σ m(Δx)²/2τ − τ(V_k + V_{k+1})/2 in real time. Differentiable. Raises `QuantumError`."""
        x = _real("a path", path)
        if x.ndim < 1 or x.shape[-1] < 2 or not time > 0:
            raise QuantumError(f"a path has two or more positions, not {tuple(x.shape)}, and time > 0, not {time}")
        tau = time / (x.shape[-1] - 1)
        v = self._potential(x.reshape(-1)).reshape(x.shape)
        kinetic = self.mass * x.diff(dim=-1).square().sum(-1) / (2 * tau)
        potential = tau * (v[..., 1:] + v[..., :-1]).sum(-1) / 2
        return kinetic + potential if euclidean else kinetic - potential

    def _grid(self, tau: float) -> Tensor:
        """Positions so dense that the trapezoidal rule integrates products of kernels to rounding."""
        width = math.sqrt(tau / self.mass / (1 if self.order == 2 else 2))
        points = math.ceil(4 * self.extent / width) + 1
        if points > MOST_POINTS:
            raise QuantumError(
                f"slices of {tau:.2g} take {points} positions, more than {MOST_POINTS}",
                hint="take fewer slices, or a smaller extent",
            )
        return torch.linspace(-self.extent, self.extent, max(points, 33), dtype=torch.float64)

    def _kernel(self, x: Tensor, y: Tensor, tau: float) -> Tensor:
        return free_kernel(x[:, None], y[None, :], tau, self.mass).real

    def slice_kernel(self, x: Tensor, y: Tensor, tau: float) -> Tensor:
        """One slice between positions x (n,) and y (m,), (n, m)."""
        ends = [self._weights(z, tau)[0] for z in (x, y)]
        if self.order == 2:
            return ends[0][:, None] * self._kernel(x, y, tau) * ends[1]
        grid = self._grid(tau)
        middle = self._weights(grid, tau)[1]
        assert middle is not None
        step = float(grid[1] - grid[0])
        through = self._kernel(x, grid, tau / 2) * middle * step
        return ends[0][:, None] * (through @ self._kernel(grid, y, tau / 2)) * ends[1]

    def _transfer(self, time: float, slices: int) -> tuple[Tensor, Tensor, float]:
        """Grid, symmetric matrix of one slice times dx, and dx."""
        tau = time / slices
        grid = self._grid(tau)
        step = float(grid[1] - grid[0])
        matrix = self.slice_kernel(grid, grid, tau) * step
        return grid, (matrix + matrix.mT) / 2, step

    def _between(self, x: Tensor, y: Tensor, time: float, slices: int) -> tuple[Tensor, int]:
        if slices == 1:
            return self.slice_kernel(y, x, time), 0
        tau = time / slices
        grid, matrix, step = self._transfer(time, slices)
        left, right = self.slice_kernel(y, grid, tau) * step, self.slice_kernel(grid, x, tau)
        return left @ torch.linalg.matrix_power(matrix, slices - 2) @ right, len(grid)

    def propagator(self, initial: Any, final: Any, time: float) -> Result[Any]:
        """⟨x′|e^{−Ht}|x⟩ in imaginary ``time`` for initial positions (n,) and final ones (m,): a `SlicedValue` (m, n).

        `mehler_kernel` and `free_kernel` are exact, in real time, too. Raises `QuantumError`.
        """
        x, y = (_real(n, v).reshape(-1) for n, v in (("initial", initial), ("final", final)))
        if not (math.isfinite(time) and time > 0):
            raise QuantumError(f"imaginary time is positive, not {time}", hint="mehler_kernel knows real time")
        value, points = self._between(x, y, time, self.slices)
        coarse, _ = self._between(x, y, time, max(1, self.slices // 2))
        return self._result(value, coarse, points, "sliced_propagator", time, {"initial": x, "final": y})

    def partition_function(self, beta: float) -> Result[Any]:
        """Z = tr e^{−βH}, a `SlicedValue`: the integral over closed paths. Exact: `harmonic_partition_function`.
        Raises `QuantumError`."""
        if not (math.isfinite(beta) and beta > 0):
            raise QuantumError(f"an inverse temperature is positive, not {beta}")

        def trace(slices: int) -> tuple[Tensor, int]:
            grid, matrix, _ = self._transfer(beta, slices)
            return torch.linalg.eigvalsh(matrix).clamp_min(0).pow(slices).sum(), len(grid)

        value, points = trace(self.slices)
        return self._result(value, trace(max(1, self.slices // 2))[0], points, "sliced_partition", beta, {})

    def correlation_function(
        self, operators: Sequence[Potential], times: Sequence[float], beta: float | None = None
    ) -> Result[Any]:
        """⟨O₁(τ₁) O₂(τ₂) ...⟩ of functions of the position at imaginary times in [0, β], ordered by time: a
        `SlicedValue`. Without ``beta`` in the ground state, of slices of 1/``slices``.

        The slice matrix is T = e^{−τH}, H its own Hamiltonian, so that times need not lie between slices. Raises
        `QuantumError`.
        """
        clock = [float(t) for t in times]
        top = math.inf if beta is None else float(beta)
        if len(clock) != len(operators) or not clock or not all(0 <= t <= top and math.isfinite(t) for t in clock):
            raise QuantumError(f"{len(operators)} operators take as many times in [0, {top}], not {clock}")
        if not top > 0:
            raise QuantumError(f"an inverse temperature is positive, not {beta}")
        order = sorted(range(len(clock)), key=lambda k: -clock[k])

        whole = 1.0 if beta is None else top

        def correlator(slices: int) -> tuple[Tensor, Tensor]:
            tau = whole / slices
            grid, matrix, _ = self._transfer(whole, slices)
            tables = torch.stack([_table(op(grid), grid) for op in operators])
            values, frames = torch.linalg.eigh(matrix)
            matrix = matrix / values[-1]

            def through(span: float) -> Tensor:
                """e^{−(H − E₀) span}, by products alone between slices: eigenvectors of the many eigenvalues near 0
                have no gradients."""
                steps = span / tau
                if abs(steps - round(steps)) <= 1e-9:
                    whole_steps: Tensor = torch.linalg.matrix_power(matrix, round(steps))
                    return whole_steps
                if matrix.requires_grad:
                    raise QuantumError("gradients take times between slices", hint=f"give multiples of {tau:g}")
                powers = (values.clamp_min(0) / values[-1]).pow(steps)
                between: Tensor = (frames * powers) @ frames.mT
                return between

            chain = tables[order[0]][:, None] * torch.eye(len(grid), dtype=grid.dtype)
            for above, k in pairwise(order):
                chain = chain @ through(clock[above] - clock[k]) * tables[k]
            if beta is None:
                return frames[:, -1] @ chain @ frames[:, -1], tables
            around = through(beta - clock[order[0]] + clock[order[-1]])
            return (around.mT * chain).sum() / through(beta).diagonal().sum(), tables

        value, fine = correlator(self.slices)
        with torch.no_grad():  # it is for the estimate of the error alone
            coarse, rough = correlator(max(1, self.slices // 2))
        data = {"times": tuple(clock), "ground": beta is None, "operators": (fine, rough)}
        return self._result(value, coarse, fine.shape[-1], "sliced_correlation", whole, data)

    def effective_action(self, field: Any, beta: float) -> Result[Any]:
        """Γ[φ] to one loop of closed paths φ (n,), the positions at n slices of β: an `EffectiveAction`.

        Z = ∫ Π √(m/2πτ) dx_k e^{−S} with the action of order 2, and Γ = S[φ] + ½ log det(τ S″/m): exact for harmonic
        potentials, where e^{−Γ[0]} = Z. Raises `QuantumError` where φ is no minimum in some direction.
        """
        x = _real("a field", field)
        n = int(x.shape[-1]) if x.ndim == 1 else 0
        if n < 2 or not (math.isfinite(beta) and beta > 0):
            raise QuantumError(f"a closed path has two or more positions (n,) and β > 0, not {tuple(x.shape)}, {beta}")
        tau = beta / n
        classical = self.mass * (x.roll(-1) - x).square().sum() / (2 * tau) + tau * self._potential(x).sum()
        eye = torch.eye(n, dtype=x.dtype, device=x.device)
        stiffness = 2 * eye - eye.roll(1, 0) - eye.roll(-1, 0)
        hessian = stiffness + tau**2 / self.mass * torch.diag(self._slopes(x, 2))
        if not float(torch.linalg.eigvalsh(hessian.detach())[0]) > 0:
            raise QuantumError("the action is not convex at this field: a Gaussian around it does not converge")
        value = EffectiveAction(classical, torch.linalg.slogdet(hessian).logabsdet / 2)
        with torch.no_grad():
            table = {"potential": self._potential(x), "curvature": self._slopes(x, 2)}
        data = {"field": x, "time": beta, "mass": self.mass, **table}
        return witnessed(value, "effective_action", data, 1e-9, assumptions=(f"{n} time slices, one loop",))

    def evolve_wave(self, wave: Tensor, time: float) -> Tensor:
        """ψ(t) in real time of ψ (..., n) at the n points −L, −L + 2L/n, ... of a periodic box, L = ``extent``, by
        ``slices`` steps of the same order: unitary. Differentiable. Raises `QuantumError`."""
        psi = to_complex("a wave function", wave)
        n = int(psi.shape[-1]) if psi.ndim else 0
        if n < 4:
            raise QuantumError(f"a wave function has 4 or more points, not {n}")
        step = 2 * self.extent / n
        x = -self.extent + step * torch.arange(n, dtype=torch.float64)
        energy = (2 * math.pi * torch.fft.fftfreq(n, d=step, dtype=torch.float64)).square() / (2 * self.mass)
        tau, v = time / self.slices, self._potential(x)

        def kinetic(part: Tensor, span: float) -> Tensor:
            moved: Tensor = torch.fft.ifft(torch.fft.fft(part) * torch.exp(-1j * energy * span))
            return moved

        if self.order == 2:
            outer, middle = torch.exp(-0.5j * tau * v), None
        else:
            inner = v - tau**2 / (48 * self.mass) * self._slopes(x, 1).square()
            outer, middle = torch.exp(-1j * tau / 6 * v), torch.exp(-2j * tau / 3 * inner)
        for _ in range(self.slices):
            psi = outer * psi
            psi = kinetic(psi, tau) if middle is None else kinetic(middle * kinetic(psi, tau / 2), tau / 2)
            psi = outer * psi
        return psi

    # --- results -------------------------------------------------------------------------------------------
    def _level(self, time: float, slices: int, ends: dict[str, Any]) -> dict[str, Any]:
        """What the path integral over so many slices is made of: the potential as tables."""
        grid = self._grid(time / slices)
        level = {"slices": slices, "grid": grid, "potential": self._potential(grid)}
        if self.order == 4:
            level["slope"] = self._slopes(grid, 1)
        for name in ends.keys() & {"initial", "final"}:
            level[f"{name}_potential"] = self._potential(ends[name].detach())
        return level

    def _result(
        self, value: Tensor, coarse: Tensor, points: int, kind: str, time: float, data: dict[str, Any]
    ) -> Result[Any]:
        error = float((value - coarse).detach().abs().max()) / (2**self.order - 1)
        with torch.no_grad():
            levels = tuple(self._level(time, n, data) for n in (self.slices, max(1, self.slices // 2)))
        found = SlicedValue(value, error, self.slices, points)
        edge = levels[0]["potential"]
        share = math.exp(max(-745.0, -time * float(edge[[0, -1]].min() - edge.min())))
        given = (
            f"{self.slices} time slices of order {self.order}",
            f"positions within ±{self.extent:g}, where e^(−tV) is {share:.0e} of its largest",
        )
        made = {"mass": self.mass, "order": self.order, "time": time, "levels": levels}
        return witnessed(found, kind, {**data, **made}, 1e-9, assumptions=given)


def _table(values: Tensor, grid: Tensor) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != grid.shape or values.is_complex():
        raise QuantumError(f"an operator gives real numbers of the positions' shape {tuple(grid.shape)}")
    return values


def harmonic_partition_function(beta: float, frequency: float = 1.0) -> float:
    """1/(2 sinh(βω/2)), exact. Raises `QuantumError`."""
    if not (beta > 0 and frequency > 0):
        raise QuantumError(f"β = {beta} and ω = {frequency} are positive")
    return -math.exp(-beta * frequency / 2) / math.expm1(-beta * frequency)


def harmonic_correlation(time: float, frequency: float = 1.0, mass: float = 1.0, beta: float | None = None) -> float:
    """⟨x(τ)x(0)⟩ = e^{−ωτ}/2mω in the ground state, cosh(ω(β/2 − τ))/(2mω sinh(βω/2)) at β, exact. Raises
    `QuantumError`."""
    if not (frequency > 0 and mass > 0 and time >= 0) or (beta is not None and not (beta > 0 and time <= beta)):
        raise QuantumError(f"ω = {frequency}, m = {mass} are positive, τ = {time} lies in [0, β = {beta}]")
    if beta is None:
        return math.exp(-frequency * time) / (2 * mass * frequency)
    pair = math.exp(-frequency * time) + math.exp(-frequency * (beta - time))
    return pair / (2 * mass * frequency * -math.expm1(-frequency * beta))


def sliced_harmonic_partition_function(beta: float, slices: int, frequency: float = 1.0) -> float:
    """1/(2 sinh(nθ/2)), cosh θ = 1 + ω²τ²/2: the path integral of order 2 over n slices, exact."""
    theta = 2 * math.asinh(frequency * beta / slices / 2)
    return float(-np.exp(-slices * theta / 2) / np.expm1(-slices * theta))
