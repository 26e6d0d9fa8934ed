"""Fields on finite lattices: the free scalar field, φ⁴ in no dimension, and the Ising model by transfer matrix.

Sources: Montvay, Münster, Quantum Fields on a Lattice, chapter 2; Zinn-Justin, Quantum Field Theory and Critical
Phenomena, chapters 1 and 7; Kramers, Wannier, Phys. Rev. 60 (1941); Onsager, Phys. Rev. 65 (1944).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aatc.passes.analysis.quantum.states import QuantumError, probabilities
from aatc.passes.analysis.quantum.verify_quantum import witnessed
from aatc.passes.analysis.result import Result

#: Spins around the widest strip of the Ising model: its transfer matrix has 2^n rows.
MOST_AROUND = 12


# --- the free field ----------------------------------------------------------------------------------------
def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if not sizes or not all(isinstance(s, int) and s > 0 for s in sizes):
        raise QuantumError(f"a lattice has positive whole sizes, not {shape!r}")
    return sizes


def lattice_momenta_squared(shape: int | Sequence[int]) -> Tensor:
    """Σ_μ 4 sin²(k_μ/2) of the momenta of a periodic lattice, in the order of the discrete Fourier transform."""
    sizes = _shape(shape)
    total = torch.zeros(sizes, dtype=torch.float64)
    for axis, n in enumerate(sizes):
        wave = 4 * torch.sin(math.pi * torch.arange(n, dtype=torch.float64) / n).square()
        total = total + wave.reshape([-1 if a == axis else 1 for a in range(len(sizes))])
    return total


def scalar_action(field: Tensor, mass: float, coupling: float = 0.0) -> Tensor:
    """S = ½ Σ_x (Σ_μ (φ_{x+μ} − φ_x)² + m²φ_x²) + λ/4! Σ_x φ_x⁴ of a periodic field (n₁, ..., n_d). Differentiable."""
    gradient = sum((field.roll(-1, a) - field).square().sum() for a in range(field.ndim))
    return (gradient + mass**2 * field.square().sum()) / 2 + coupling / 24 * field.pow(4).sum()


def free_propagator(shape: int | Sequence[int], mass: float) -> Result[Any]:
    """⟨φ_x φ_0⟩ of the free field on a periodic lattice, a tensor of its shape: (1/V) Σ_k e^{ikx}/(m² + k̂²).

    Raises `QuantumError` for mass 0, where the zero mode is unbounded.
    """
    sizes = _shape(shape)
    if not (math.isfinite(mass) and mass > 0):
        raise QuantumError(f"the mass is positive, not {mass}", hint="at mass 0 the constant field has no weight")
    value = torch.fft.ifftn(1 / (mass**2 + lattice_momenta_squared(sizes))).real
    return witnessed(value, "free_propagator", {"shape": sizes, "mass": float(mass)}, 1e-10)


def infinite_chain_propagator(distance: Any, mass: float) -> Tensor:
    """⟨φ_x φ_0⟩ = e^{−ω|x|}/(2 sinh ω), 2 sinh(ω/2) = m, on the infinite chain, exact. Raises `QuantumError`."""
    if not mass > 0:
        raise QuantumError(f"the mass is positive, not {mass}")
    omega = 2 * math.asinh(mass / 2)
    return torch.exp(-omega * torch.as_tensor(distance, dtype=torch.float64).abs()) / (2 * math.sinh(omega))


def sample_free_field(shape: int | Sequence[int], mass: float, samples: int, *, seed: int | None = None) -> Tensor:
    """Independent fields (samples, n₁, ..., n_d) of the free action, drawn exactly, mode by mode. Raises
    `QuantumError`."""
    sizes = _shape(shape)
    if not mass > 0 or samples < 1:
        raise QuantumError(f"the mass {mass} is positive, and samples {samples} are 1 or more")
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((samples, *sizes)))
    axes = tuple(range(1, len(sizes) + 1))
    root = (mass**2 + lattice_momenta_squared(sizes)).rsqrt()
    fields: Tensor = torch.fft.ifftn(torch.fft.fftn(noise, dim=axes) * root, dim=axes).real
    return fields


# --- φ⁴ in no dimension ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ZeroDimensionalField:
    """∫ dφ e^{−m²φ²/2 − λφ⁴/4!}: a field at one point, m² of any sign for λ > 0, positive for λ = 0."""

    mass_squared: float = 1.0
    coupling: float = 1.0

    def __post_init__(self) -> None:
        finite = math.isfinite(self.mass_squared) and math.isfinite(self.coupling)
        if not finite or self.coupling < 0 or (self.coupling == 0 and self.mass_squared <= 0):
            raise QuantumError(f"the integral of {self} diverges", hint="λ > 0, or λ = 0 and m² > 0")

    def _nodes(self, source: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Points and the exponent −S + Jφ there, dense and wide enough for the trapezoidal rule to be exact to
        rounding: the integrand is entire and falls off faster than any exponential."""
        m2, g = self.mass_squared, self.coupling
        roots = np.roots([g / 6, 0.0, m2, -source]) if g else np.array([source / m2])
        real = roots[np.abs(roots.imag) <= 1e-9 * (1 + np.abs(roots))].real
        best = real[np.argmax(-m2 * real**2 / 2 - g * real**4 / 24 + source * real)]
        curvature = max(abs(m2) + g * best**2 / 2, math.sqrt(g), 1e-300)
        reach, top = 1.0 / math.sqrt(curvature), -m2 * best**2 / 2 - g * best**4 / 24 + source * best
        low = high = best
        while True:  # as far as the integrand is above rounding, beyond a second well, too
            low, high = low - reach, high + reach
            ends = [-m2 * x**2 / 2 - g * x**4 / 24 + source * x - top for x in (low, high)]
            if max(ends) < -42 and low < -abs(best) - reach and high > abs(best) + reach:
                break
        x = np.linspace(low, high, 2 * math.ceil((high - low) * math.sqrt(curvature) * 16) + 1)
        return x, -m2 * x**2 / 2 - g * x**4 / 24 + source * x

    def log_partition(self, source: float = 0.0) -> float:
        """W(J) = log ∫ dφ e^{−S + Jφ}."""
        x, exponent = self._nodes(source)
        top = exponent.max()
        return float(top + math.log((x[1] - x[0]) * np.exp(exponent - top).sum()))

    def moment(self, power: int, source: float = 0.0) -> float:
        """⟨φ^k⟩ with a source J."""
        x, exponent = self._nodes(source)
        weight = np.exp(exponent - exponent.max())
        return float((weight * x**power).sum() / weight.sum())

    def partition_function(self) -> Result[Any]:
        """Z = ∫ dφ e^{−S}; for m² > 0 it is √(3m²/λ) e^{z} K_¼(z), z = 3m⁴/4λ, by which the witness checks it."""
        data = {"mass_squared": self.mass_squared, "coupling": self.coupling}
        if self.log_partition() > 700:
            raise QuantumError("the integral is beyond the range of float64", hint="log_partition gives its logarithm")
        return witnessed(math.exp(self.log_partition()), "phi4_partition", data, 1e-11)

    def effective_action(self, field: float) -> Result[Any]:
        """Γ(φ) = sup_J (Jφ − W(J)), exact, by Newton's method on ⟨φ⟩_J = φ; (Γ, J = Γ′(φ)). Raises `QuantumError`."""
        if not math.isfinite(field):
            raise QuantumError(f"a field is finite, not {field}")
        source = self.mass_squared * field + self.coupling * field**3 / 6
        for _ in range(200):
            mean = self.moment(1, source)
            change = (field - mean) / max(self.moment(2, source) - mean**2, 1e-300)
            while abs(self.moment(1, source + change) - field) > abs(mean - field) and abs(change) > 1e-14:
                change /= 2
            source += change
            if abs(change) <= 1e-14 * (1 + abs(source)):
                break
        value = (source * field - self.log_partition(source), source)
        data = {"mass_squared": self.mass_squared, "coupling": self.coupling, "field": float(field)}
        return witnessed(value, "phi4_effective", data, 1e-9)

    def one_loop_action(self, field: float) -> float:
        """S(φ) + ½ log(S″(φ)/2π). Raises `QuantumError` where S is not convex."""
        curvature = self.mass_squared + self.coupling * field**2 / 2
        if curvature <= 0:
            raise QuantumError(f"the action is not convex at {field}")
        action = self.mass_squared * field**2 / 2 + self.coupling * field**4 / 24
        return action + math.log(curvature / (2 * math.pi)) / 2

    def perturbative_partition(self, order: int) -> float:
        """Z to ``order`` in λ: √(2π/m²) Σ (−λ/24m⁴)^k (4k − 1)!!/k!. The series is asymptotic: it diverges for every
        λ > 0. Raises `QuantumError` for m² ≤ 0."""
        if self.mass_squared <= 0 or order < 0:
            raise QuantumError(f"there is no series of m² = {self.mass_squared} to order {order}")
        ratio, term, total = -self.coupling / (24 * self.mass_squared**2), 1.0, 1.0
        for k in range(1, order + 1):
            term *= ratio * (4 * k - 1) * (4 * k - 3) / k
            total += term
        return math.sqrt(2 * math.pi / self.mass_squared) * total


# --- rows of attention -------------------------------------------------------------------------------------
def row_partition_function(scores: Tensor) -> Tensor:
    """log Z = log Σ_j e^{s_j} of every row (..., m); its derivatives by s are the means p and the covariance
    diag p − ppᵀ. Differentiable."""
    return torch.logsumexp(scores, -1)


def row_covariance(pattern: Any) -> Tensor:
    """diag p − ppᵀ of rows (..., m): the connected correlations of which key is attended, (..., m, m). Raises
    `QuantumError`."""
    p = probabilities(pattern)
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def row_effective_action(pattern: Any, scores: Tensor) -> Tensor:
    """Γ(p) = Σ p log p − p·s, (...), the Legendre transform of log Σ e^{s + J}: least, −log Z, at p = softmax(s).

    Scores of −∞ carry weight 0. Raises `QuantumError`.
    """
    p = probabilities(pattern)
    energy = torch.where(p > 0, p * scores.to(p.dtype), 0.0).sum(-1)
    result: Tensor = -torch.special.entr(p).sum(-1) - energy
    return result


# --- the Ising model ---------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class IsingStrip:
    """``log_partition`` log Z, ``free_energy`` −log Z/V, ``energy`` per site −∂ log Z/∂K / V by the coupling K, and
    ``correlation`` ⟨s_0 s_r⟩ (length,) along the strip."""

    log_partition: float
    free_energy: float
    energy: float
    correlation: np.ndarray


def _ring_table(coupling: float, around: int, field: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spins (2^n, n) of every ring, the sums of their bonds (2^n,), and the exponents (2^n, 2^n) between two rings."""
    if not 1 <= around <= MOST_AROUND:
        raise QuantumError(f"a ring has 1 to {MOST_AROUND} spins, not {around}")
    if not (math.isfinite(coupling) and math.isfinite(field)):
        raise QuantumError(f"coupling {coupling} and field {field} are finite")
    spins = 1.0 - 2 * ((np.arange(1 << around)[:, None] >> np.arange(around)) & 1)
    ring = spins * np.roll(spins, -1, axis=1)
    bonds = ring.sum(1) if around > 2 else ring[:, 0] if around == 2 else np.zeros(len(spins))
    inner = coupling * bonds + field * spins.sum(1)
    return spins, bonds, coupling * (spins @ spins.T) + (inner[:, None] + inner) / 2


def ising_transfer(coupling: float, around: int, field: float = 0.0) -> np.ndarray:
    """The symmetric transfer matrix (2^n, 2^n) between rings of n spins: K for bonds along and around, h for sites.

    A ring of 2 has one bond, of 1 none. Raises `QuantumError`.
    """
    exponent = _ring_table(coupling, around, field)[2]
    if exponent.max() > 700:
        raise QuantumError(f"weights e^{exponent.max():.0f} of the coupling {coupling} are out of range")
    matrix: np.ndarray = np.exp(exponent)
    return matrix


def ising_strip(coupling: float, around: int, length: int, field: float = 0.0) -> Result[Any]:
    """The Ising model on a torus of ``around`` × ``length`` spins, Σ e^{K Σ ss′ + h Σ s}, exact: an `IsingStrip`.

    A length of 2 has two bonds between the two rings. Raises `QuantumError`.
    """
    if length < 2:
        raise QuantumError(f"a strip has a length of 2 or more, not {length}")
    volume = around * length
    spins, bonds, exponent = _ring_table(coupling, around, field)
    scale = float(exponent.max())
    matrix = np.exp(exponent - scale)
    slope = matrix * (spins @ spins.T + (bonds[:, None] + bonds) / 2)  # ∂/∂K
    values, frames = np.linalg.eigh(matrix)
    values, frames = values[::-1], frames[:, ::-1]  # the largest is the largest in modulus, too (Perron)
    ratios = values / values[0]
    trace = float((ratios**length).sum())
    if trace < 1e-5:  # of size 1 at least without eigenvalues of alternating sign that cancel
        raise QuantumError(
            f"the coupling {coupling} frustrates a ring of {length}: its eigenvalues cancel to {trace:.1e}",
            hint="take an even length, or a coupling nearer to 0",
        )
    log_z = length * (scale + math.log(values[0])) + math.log(trace)
    rate = float(((frames.T @ slope @ frames).diagonal() * ratios ** (length - 1)).sum()) / values[0]
    spin = frames.T @ (spins[:, :1] * frames)
    steps = np.arange(length)
    powers = ratios[None, :] ** steps[:, None]
    around_back = ratios[None, :] ** (length - steps[:, None])
    correlation = ((around_back @ spin**2) * powers).sum(1) / trace
    value = IsingStrip(log_z, -log_z / volume, -length * rate / trace / volume, correlation)
    data = {"coupling": coupling, "around": around, "length": length, "field": field}
    return witnessed(value, "ising_strip", data, 1e-9)


def onsager_free_energy(coupling: float) -> float:
    """−log Z/V of the infinite square lattice, K the same both ways, by Onsager's integral. Raises `QuantumError`."""
    from scipy.integrate import quad

    if not math.isfinite(coupling):
        raise QuantumError(f"the coupling is finite, not {coupling}")
    k = 2 * math.sinh(2 * coupling) / math.cosh(2 * coupling) ** 2

    def inner(theta: float) -> float:
        return math.log((1 + math.sqrt(max(0.0, 1 - (k * math.sin(theta)) ** 2))) / 2)

    integral = 2 * quad(inner, 0, math.pi / 2, epsabs=1e-13, epsrel=1e-13)[0]
    result: float = -math.log(2 * math.cosh(2 * coupling)) - integral / (2 * math.pi)
    return result
