"""`QuantumStateSpace`: states, evolution, measurement, entropy and entanglement of a finite-dimensional system."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import scipy.sparse
import torch
from torch import Tensor

from aatc.passes.analysis.quantum.entanglement import entanglement_metrics
from aatc.passes.analysis.quantum.entropy import renyi_entropy
from aatc.passes.analysis.quantum.evolution import evolve, krylov_evolve
from aatc.passes.analysis.quantum.geometry import geometric_tensor
from aatc.passes.analysis.quantum.measurement import (
    expectation,
    measure_povm,
    measure_projective,
    sample_measurement,
    variance,
)
from aatc.passes.analysis.quantum.operators import hermitian, sparse_hermitian
from aatc.passes.analysis.quantum.states import (
    QuantumError,
    QuantumState,
    attention_state,
    basis_state,
    mixed_state,
    pure_state,
    value_density,
)
from aatc.passes.analysis.quantum.tensors import factors
from aatc.passes.analysis.quantum.verify_quantum import witnessed
from aatc.passes.analysis.result import Result


@dataclass(frozen=True)
class HilbertSpace:
    """C^d = C^d₁ ⊗ C^d₂ ⊗ ... with the factors ``dims``, the last of which varies fastest in an index."""

    dims: tuple[int, ...]

    @property
    def dimension(self) -> int:
        size = 1
        for d in self.dims:
            size *= d
        return size

    def inner(self, first: Tensor, second: Tensor) -> Tensor:
        """⟨φ|ψ⟩, (...), of vectors (..., d), conjugate in the first."""
        return (first.conj() * second).sum(-1)

    def basis(self, index: int) -> QuantumState:
        """|index⟩. Raises `QuantumError`."""
        return basis_state(index, self.dims)


@dataclass(frozen=True, eq=False)
class ExpectationValue:
    """``mean`` ⟨O⟩ and ``variance`` ⟨O²⟩ − ⟨O⟩², (...) each."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class QuantumStateSpace:
    """The states of C^d with declared factors: ``dims`` is a dimension, or (2, 2, 2) for three qubits.

    States are `QuantumState`s, or tensors (..., d), which are taken for vectors. ``dtype`` is complex128, or complex64
    where that is asked for. Results are differentiable in states and Hamiltonians where their docstrings say so; their
    witnesses are copies. The seed's signatures are kept, with a dimension that its factors give, results in place of
    numbers, and the metric tensor as a method, since it is that of a family of states.
    """

    dims: int | Sequence[int]
    dtype: torch.dtype = torch.complex128

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", factors(self.dims))
        if self.dtype not in (torch.complex64, torch.complex128):
            raise QuantumError(f"states are complex128 or complex64, not {self.dtype}")

    @property
    def hilbert_space(self) -> HilbertSpace:
        return HilbertSpace(self._dims)

    @property
    def dimension(self) -> int:
        return self.hilbert_space.dimension

    @property
    def _dims(self) -> tuple[int, ...]:
        assert isinstance(self.dims, tuple)
        return self.dims

    @property
    def _room(self) -> float:
        """What rounding may take from a result."""
        return 1e-10 if self.dtype == torch.complex128 else 2e-4

    def metric_tensor(self, family: Callable[[Tensor], Tensor], parameters: Tensor) -> Tensor:
        """The Fubini–Study metric Re Q (..., k, k) of a family of states at ``parameters`` (..., k); see
        `geometric_tensor`."""
        return geometric_tensor(family, parameters).real

    def prepare_state(
        self, classical_data: Any, kind: str = "amplitudes", *, weights: Any = None, normalise: bool = False
    ) -> QuantumState:
        """A state made of classical data. ``kind``:

        - "amplitudes": vectors (..., d), complex or real;
        - "probabilities": ψ = √p of rows (..., d), such as those of attention;
        - "density": matrices (..., d, d);
        - "vectors": ρ = Σ w_j |v_j⟩⟨v_j| / Σ w_j|v_j|² of vectors (..., m, d), w_j = 1 unless ``weights`` (..., m).

        Differentiable. Raises `QuantumError` for what is no state, unless ``normalise`` can make it one.
        """
        if kind == "amplitudes":
            return pure_state(classical_data, self._dims, normalise=normalise, dtype=self.dtype)
        if kind == "density":
            return mixed_state(classical_data, self._dims, normalise=normalise, dtype=self.dtype)
        if kind == "probabilities":
            if normalise:
                rows = torch.as_tensor(classical_data, dtype=torch.float64)
                classical_data = rows / rows.sum(-1, keepdim=True)
            made = attention_state(classical_data, dtype=self.dtype)
        elif kind == "vectors":
            made = value_density(classical_data, weights, dtype=self.dtype)
        else:
            raise QuantumError(
                f"there is no state of the kind {kind!r}", hint="amplitudes, probabilities, density or vectors"
            )
        return QuantumState(made.tensor, factors(self._dims, made.dimension), made.pure)

    def _state(self, state: QuantumState | Any) -> QuantumState:
        if not isinstance(state, QuantumState):
            return pure_state(state, self._dims, dtype=self.dtype)
        if state.dimension != self.dimension:
            raise QuantumError(f"a state of dimension {state.dimension} in a space of dimension {self.dimension}")
        return QuantumState(state.tensor.to(self.dtype), self._dims, state.pure)

    def evolve_state(
        self, state: QuantumState | Any, hamiltonian: Any, time: Any, *, tolerance: float | None = None
    ) -> Result[Any]:
        """e^{−iHt}ψ, or e^{−iHt}ρe^{iHt}, ħ = 1: a `QuantumState`. Exact for dense H up to 12 qubits, Lanczos steps
        within ``tolerance`` for sparse H up to 2²⁰ states; see `evolve`. The witness is checked by Taylor's series.
        Raises `QuantumError`."""
        given = self._state(state)
        data = {"tensor": given.tensor, "pure": given.pure, "dims": given.dims, "time": time}
        if scipy.sparse.issparse(hamiltonian) or getattr(hamiltonian, "layout", torch.strided) != torch.strided:
            matrix = sparse_hermitian(hamiltonian)
            found = krylov_evolve(given, matrix, time, tolerance=tolerance)
            room = max(self._room, 2 * found.error)
            return witnessed(found.state, "evolution", {**data, "hamiltonian": matrix}, room, residual=found.error)
        moved = evolve(given, hamiltonian, time)
        matrix = hermitian("the Hamiltonian", hamiltonian).detach()
        return witnessed(moved, "evolution", {**data, "hamiltonian": matrix}, self._room)

    def measure_observable(self, state: QuantumState | Any, observable: Any) -> Result[Any]:
        """⟨O⟩ and its variance: an `ExpectationValue`, differentiable. Raises `QuantumError`."""
        given = self._state(state)
        value = ExpectationValue(expectation(given, observable), variance(given, observable))
        data = {"tensor": given.tensor, "pure": given.pure, "observable": hermitian("the observable", observable)}
        return witnessed(value, "expectation", data, self._room)

    def measure(self, state: QuantumState | Any, observable: Any = None, *, effects: Any = None) -> Result[Any]:
        """A projective measurement of an observable (d, d), or a general one with ``effects`` (k, d, d): a
        `Measurement`. Raises `QuantumError`."""
        given = self._state(state)
        if (observable is None) == (effects is None):
            raise QuantumError("give either an observable or effects")
        name = "effects" if observable is None else "observable"
        value = measure_projective(given, observable) if effects is None else measure_povm(given, effects)
        operator = hermitian(name, observable if effects is None else effects)
        data = {"tensor": given.tensor, "pure": given.pure, name: operator}
        return witnessed(value, "measurement", data, 10 * self._room)

    def sample(
        self,
        state: QuantumState | Any,
        observable: Any = None,
        *,
        effects: Any = None,
        shots: int = 1024,
        confidence: float = 0.95,
        seed: int | None = None,
    ) -> Result[Any]:
        """Counts of ``shots`` measurements of one state, with intervals for all probabilities and for the mean: a
        `SampledMeasurement`. Raises `QuantumError`."""
        measured = self.measure(state, observable, effects=effects).value
        value = sample_measurement(measured, shots, confidence=confidence, seed=seed)
        data = {"counts": value.counts, "outcomes": measured.outcomes, "confidence": confidence}
        given = (f"independent measurements; the intervals hold with probability {confidence:g}",)
        return witnessed(value, "counts", data, 1e-9, level="P3", assumptions=given)

    def compute_entropy(self, state: QuantumState | Any, order: float = 1.0) -> Result[Any]:
        """The Rényi entropy of ``order`` in [0, ∞], von Neumann's at 1: a tensor (...), in nats, differentiable. Raises
        `QuantumError`."""
        given = self._state(state)
        value = renyi_entropy(given, order)
        data = {"tensor": given.tensor, "pure": given.pure, "order": float(order)}
        return witnessed(value, "entropy", data, self._room if order >= 1 else 1e3 * self._room)

    def entanglement_witness(self, state: QuantumState | Any, part: int | Sequence[int] = 0) -> Result[Any]:
        """Entanglement of the declared factors ``part`` with the others: an `EntanglementMetrics`, differentiable.

        An entanglement witness is an observable with ⟨W⟩ ≥ 0 on all separable states; ``witness`` is ⟨W⟩ of the best
        one from the partial transpose, `witness_operator`. Raises `QuantumError` for a space of one factor.
        """
        given = self._state(state)
        value = entanglement_metrics(given, part)
        data = {"tensor": given.tensor, "pure": given.pure, "dims": given.dims, "part": value.part}
        return witnessed(value, "entanglement", data, 100 * self._room)
