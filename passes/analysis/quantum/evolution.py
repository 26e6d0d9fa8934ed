"""Unitary evolution: exact for dense Hamiltonians, Krylov for sparse ones, and product formulas.

Sources: Park, Light, Unitary quantum time evolution by iterative Lanczos reduction, J. Chem. Phys. 85 (1986); Saad,
Analysis of some Krylov subspace approximations, SIAM J. Numer. Anal. 29 (1992); Suzuki, Fractal decomposition of
exponential operators, Phys. Lett. A 146 (1990).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
import torch
from torch import Tensor

from aatc.passes.analysis.quantum.operators import hermitian, sparse_hermitian
from aatc.passes.analysis.quantum.states import QuantumError, QuantumState
from aatc.passes.analysis.quantum.tensors import as_array, broadcast
from aatc.passes.analysis.result import Cost

#: States of the largest space in which a dense Hamiltonian is diagonalised: 12 qubits.
EXACT_LIMIT = 1 << 12
#: States of the largest space of a sparse Hamiltonian: 20 qubits.
KRYLOV_LIMIT = 1 << 20
#: Vectors of a Krylov space; points at which the error of a step is bounded.
SUBSPACE, POINTS = 32, 256
#: Steps after which a Krylov evolution is given up.
MOST_STEPS = 20_000


def estimate_cost(dimension: int, nonzeros: int | None = None, norm_time: float = 1.0) -> Cost:
    """One evolution: d³ for a dense Hamiltonian; for a sparse one products and orthogonalisations, ``norm_time`` being
    ‖H‖t."""
    if nonzeros is None:
        return Cost(3e-10 * dimension**3 + 1e-4, 64.0 * dimension**2)
    products = SUBSPACE * (1 + norm_time / 8)
    return Cost(products * (1.5e-9 * nonzeros + 6e-10 * SUBSPACE * dimension), 16.0 * dimension * (SUBSPACE + 4))


def _clock(time: Any, like: Tensor) -> Tensor:
    """``time`` as a real tensor. `QuantumError` for what is not finite or real."""
    try:
        t = time if isinstance(time, Tensor) else torch.tensor(np.asarray(time, dtype=np.float64))
    except (TypeError, ValueError) as cause:
        raise QuantumError(f"a time is a real number, not a {type(time).__name__}") from cause
    if t.is_complex() or not bool(t.detach().isfinite().all()):
        raise QuantumError("a time is real and finite", hint="thermal_state is for imaginary time")
    return t.to(device=like.device, dtype=torch.float64)


def unitary_propagator(hamiltonian: Any, time: Any) -> Tensor:
    """exp(−iHt) of H (..., d, d), ħ = 1, for times that broadcast against the batch: (..., d, d).

    Differentiable any number of times, also where eigenvalues coincide. Raises `QuantumError`.
    """
    h = hermitian("the Hamiltonian", hamiltonian)
    t = _clock(time, h)
    broadcast(h.shape[:-2], t.shape)
    if h.requires_grad:
        unitary: Tensor = torch.linalg.matrix_exp(-1j * h * t[..., None, None])
        return unitary
    energies, frames = torch.linalg.eigh(h)
    phases = torch.exp(-1j * energies * t[..., None]).to(h.dtype)
    result: Tensor = (frames * phases[..., None, :]) @ frames.mH
    return result


def thermal_state(hamiltonian: Any, beta: float, dims: tuple[int, ...] | None = None) -> QuantumState:
    """e^{−βH}/tr e^{−βH} of H (..., d, d), the Gibbs state. Raises `QuantumError`."""
    h = hermitian("the Hamiltonian", hamiltonian)
    if not math.isfinite(beta):
        raise QuantumError(f"an inverse temperature is finite, not {beta}")
    lowest = torch.linalg.eigvalsh(beta * h.detach())[..., 0]
    weight = torch.linalg.matrix_exp(lowest[..., None, None] * torch.eye(h.shape[-1], dtype=h.dtype) - beta * h)
    rho = weight / weight.diagonal(dim1=-2, dim2=-1).sum(-1).real[..., None, None]
    return QuantumState((rho + rho.mH) / 2, dims or (int(h.shape[-1]),), pure=False)


def evolve(state: QuantumState, hamiltonian: Any, time: Any, *, tolerance: float | None = None) -> QuantumState:
    """e^{−iHt}|ψ⟩, or e^{−iHt} ρ e^{iHt}, ħ = 1.

    A dense H (..., d, d) is diagonalised, up to EXACT_LIMIT states; where it requires a gradient, exponentiated. A
    sparse one (SciPy's, or a torch sparse tensor), up to KRYLOV_LIMIT states, evolves pure states by Lanczos steps
    within ``tolerance``; gradients then are those of the state and of one time. Raises `QuantumError`.
    """
    if scipy.sparse.issparse(hamiltonian) or (isinstance(hamiltonian, Tensor) and hamiltonian.layout != torch.strided):
        return krylov_evolve(state, hamiltonian, time, tolerance=tolerance).state
    h = hermitian("the Hamiltonian", hamiltonian)
    d = state.dimension
    if h.shape[-1] != d:
        raise QuantumError(f"a Hamiltonian of dimension {h.shape[-1]} for states of dimension {d}")
    if d > EXACT_LIMIT:
        raise QuantumError(
            f"a dense Hamiltonian of {d} states is above the {EXACT_LIMIT} that are diagonalised",
            hint="give it as a sparse matrix",
        )
    h, t = h.to(state.tensor.dtype), _clock(time, state.tensor)
    broadcast(h.shape[:-2], t.shape, state.batch)
    if not state.pure or h.requires_grad:
        u = unitary_propagator(h, t)
        moved = u @ state.tensor @ u.mH if not state.pure else (u @ state.tensor[..., None])[..., 0]
        return QuantumState(moved, state.dims, state.pure)
    energies, frames = torch.linalg.eigh(h if bool(h.imag.any()) else h.real)
    frames = frames.to(state.tensor.dtype)
    phases = torch.exp(-1j * energies * t[..., None]).to(state.tensor.dtype)
    spectral = (frames.mH @ state.tensor[..., None])[..., 0] * phases
    return QuantumState((frames @ spectral[..., None])[..., 0], state.dims)


@dataclass(frozen=True, eq=False)
class KrylovEvolution:
    """``state`` after ``steps`` Lanczos steps with ``products`` products by H; ``error`` bounds the distance of the
    vectors in exact arithmetic, and adds what their rounding is of the order of."""

    state: QuantumState
    error: float
    steps: int
    products: int


class _Lanczos:
    """Steps of exp(−iHt) with one sparse Hermitian matrix."""

    def __init__(self, matrix: Any, dtype: torch.dtype, tolerance: float) -> None:
        self.matrix, self.tolerance = matrix, tolerance
        self.number = np.complex64 if dtype == torch.complex64 else np.complex128
        self.steps = self.products = 0
        self.error = 0.0

    def product(self, vector: np.ndarray) -> np.ndarray:
        self.products += 1
        if self.matrix.dtype.kind == "f":  # a real matrix takes real and imaginary parts as two columns
            pair = vector.astype(np.complex128, copy=False).view(np.float64).reshape(-1, 2)
            image: np.ndarray = (self.matrix @ pair).view(np.complex128)[:, 0]
        else:
            image = self.matrix @ vector
        return image.astype(self.number, copy=False)

    def space(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Orthonormal vectors in rows, the diagonal, and all off-diagonals, the last of which leads out."""
        most = min(SUBSPACE, len(start))
        basis = np.zeros((most, len(start)), dtype=self.number)
        basis[0] = start
        alpha, beta = np.zeros(most), np.zeros(most)
        for k in range(most):
            image = self.product(basis[k])
            known = basis[: k + 1]
            alpha[k] = float(np.vdot(basis[k], image).real)
            image = image - alpha[k] * basis[k] - (beta[k - 1] * basis[k - 1] if k else 0)
            beta[k] = float(np.linalg.norm(image))
            for _ in range(2):  # twice is enough (Parlett), once where little was taken away
                before = beta[k]
                image = image - (known @ image.conj()).conj() @ known
                beta[k] = float(np.linalg.norm(image))
                if beta[k] > 0.7 * before:
                    break
            if beta[k] <= 1e-14 * max(1.0, float(np.abs(alpha).max())) or k + 1 == len(start):
                beta[k] = 0.0
                return known, alpha[: k + 1], beta[: k + 1]
            if k + 1 < most:
                basis[k + 1] = image / beta[k]
        return basis, alpha, beta

    def run(self, vector: np.ndarray, time: float) -> np.ndarray:
        """exp(−iHt)|vector⟩."""
        norm = float(np.linalg.norm(vector))
        start: np.ndarray = vector.astype(self.number)
        state, left, sign = start / norm, abs(time), -1j if time >= 0 else 1j
        while left > 0:
            if self.steps >= MOST_STEPS:
                raise QuantumError(f"a Krylov evolution of {time:g} takes more than {MOST_STEPS} steps")
            basis, alpha, beta = self.space(state)
            energies, frames = scipy.linalg.eigh_tridiagonal(alpha, beta[:-1])
            step, error = self._step(energies, frames, float(beta[-1]), left, abs(time))
            small = frames @ (np.exp(sign * energies * step) * frames[0])
            state = small.astype(self.number) @ basis
            state /= np.linalg.norm(state)
            left = 0.0 if step >= left else left - step
            self.steps += 1
            self.error += error + float(np.finfo(self.number).eps) * (SUBSPACE + float(np.abs(energies).max()) * step)
        result: np.ndarray = state * norm
        return result

    def _step(
        self, energies: np.ndarray, frames: np.ndarray, out: float, left: float, total: float
    ) -> tuple[float, float]:
        """The longest step whose share of the tolerance holds, and its bound β ∫|⟨e_m|exp(−iTs)|e_1⟩| ds, which
        follows from variation of constants because exp(−iHs) is unitary; the integral by its upper sum."""
        span, mixed = left, frames[-1] * frames[0]
        while True:
            clock = np.linspace(0, span, POINTS + 1)
            leak = np.abs(np.exp(-1j * np.outer(clock, energies)) @ mixed)
            bound = out * np.cumsum(np.maximum(leak[1:], leak[:-1])) * span / POINTS
            good = np.flatnonzero(bound <= self.tolerance * clock[1:] / total)
            if len(good):
                return float(clock[good[-1] + 1]), float(bound[good[-1]])
            span /= 8
            if span < 1e-12 * total:
                raise QuantumError(
                    f"no Krylov step meets the tolerance {self.tolerance:.1g}", hint="give a larger tolerance"
                )


def krylov_evolve(
    state: QuantumState, hamiltonian: Any, time: Any, *, tolerance: float | None = None
) -> KrylovEvolution:
    """e^{−iHt}|ψ⟩ by Lanczos steps with full reorthogonalisation, each element of the batch by itself.

    tolerance: of |ψ(t) − exact|₂, 1e-12 unless given, 1e-5 in complex64. Runs on the CPU. Differentiable, once, in the
    state and in the time, a number. Raises `QuantumError`.
    """
    matrix = sparse_hermitian(hamiltonian)
    d = state.dimension
    if matrix.shape[0] != d:
        raise QuantumError(f"a Hamiltonian of dimension {matrix.shape[0]} for states of dimension {d}")
    if d > KRYLOV_LIMIT:
        raise QuantumError(f"{d} states are above the limit of {KRYLOV_LIMIT}")
    t = _clock(time, state.vector)
    if t.numel() != 1:
        raise QuantumError(f"a Krylov evolution takes one time, not {tuple(t.shape)}", hint="evolve once for each")
    single = state.tensor.dtype == torch.complex64
    room = (1e-5 if single else 1e-12) if tolerance is None else float(tolerance)
    if not room > 0:
        raise QuantumError(f"a tolerance is positive, not {tolerance}")
    lanczos = _Lanczos(matrix, state.tensor.dtype, room)
    moved: Tensor = _Krylov.apply(state.vector, t.reshape(()), lanczos)  # type: ignore[no-untyped-call]
    return KrylovEvolution(QuantumState(moved, state.dims), lanczos.error, lanczos.steps, lanczos.products)


class _Krylov(torch.autograd.Function):
    """The evolution with its adjoint: gradients go back by the inverse evolution, and dψ/dt = −iHψ."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, time: Tensor, lanczos: _Lanczos) -> Tensor:
        rows = as_array(vector.reshape(-1, vector.shape[-1]))
        found = np.stack([lanczos.run(row, float(time)) for row in rows])
        moved = torch.from_numpy(found).reshape(vector.shape).to(vector.device)
        ctx.lanczos, ctx.time = lanczos, float(time)
        ctx.save_for_backward(moved)
        return moved

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (moved,) = ctx.saved_tensors
        back = _Lanczos(ctx.lanczos.matrix, moved.dtype, ctx.lanczos.tolerance)
        rows, ends = (as_array(x.reshape(-1, x.shape[-1])) for x in (gradient, moved))
        found = np.stack([back.run(row, -ctx.time) if row.any() else row for row in rows])
        rate = sum(float(np.vdot(row, -1j * back.product(end)).real) for row, end in zip(rows, ends))
        to_state = torch.from_numpy(found).reshape(gradient.shape).to(gradient.device)
        return to_state, torch.tensor(rate, dtype=torch.float64, device=gradient.device), None


def trotter_propagator(parts: tuple[Any, Any], time: float, steps: int, order: int = 2) -> Tensor:
    """A product formula of exp(−i(A + B)t) for Hermitian A, B (..., d, d) in ``steps`` steps.

    order 2: e^{−iAτ/2} e^{−iBτ} e^{−iAτ/2}, error O(τ²); order 4: Suzuki's five of these, with the times s, s, 1 − 4s,
    s, s, s = 1/(4 − 4^⅓), error O(τ⁴). Unitary for every order. Raises `QuantumError`.
    """
    if steps < 1 or order not in (2, 4):
        raise QuantumError(f"a product formula has 1 or more steps and order 2 or 4, not {steps} and {order}")
    first, second = (hermitian("a part of the Hamiltonian", p) for p in parts)
    s = 1 / (4 - 4 ** (1 / 3))
    fractions = (1.0,) if order == 2 else (s, s, 1 - 4 * s, s, s)

    def strang(tau: float) -> Tensor:
        half = unitary_propagator(first, tau / 2)
        return half @ unitary_propagator(second, tau) @ half

    tau = time / steps
    known = {f: strang(f * tau) for f in set(fractions)}
    one = known[fractions[0]]
    for f in fractions[1:]:
        one = known[f] @ one
    power: Tensor = torch.linalg.matrix_power(one, steps)
    return power
