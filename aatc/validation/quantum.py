"""Checks of quantum states: normalised, uncertainty relations, entanglement under local channels.

States and measures of entanglement are those of `aatc.analysis.quantum`. Source: Schrödinger, Zum Heisenbergschen
Unschärfeprinzip (1930).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.passes.analysis.quantum.entanglement import concurrence, log_negativity, negativity
from aatc.passes.analysis.quantum.measurement import mean
from aatc.passes.analysis.quantum.operators import local_operator
from aatc.passes.analysis.quantum.states import QuantumState
from aatc.passes.analysis.result import Verdict, verify
from aatc.validation.judgement import ValidationError, finite, judge, square, tolerance_of, worst

MEASURES = ("negativity", "log_negativity", "concurrence")


@dataclass(frozen=True, eq=False)
class StateWitness:
    """The state at ``index`` of the batch, a vector (d,) or a matrix (d, d), and a unit vector (d,) of its least
    eigenvalue where it is a matrix."""

    index: tuple[int, ...]
    state: Tensor
    eigenvector: Tensor | None


@dataclass(frozen=True)
class MomentWitness:
    """Var A, Var B, ½⟨{A,B}⟩ − ⟨A⟩⟨B⟩ and |⟨[A,B]⟩| of the state at ``index``, in units of ‖A‖² ‖B‖² and so on;
    ``defects`` are the relative deviations of A and B from Hermitian matrices, ``state_defect`` is the largest entry
    of |ρ − ρ†|, ρ divided by the real part of its trace."""

    index: tuple[int, ...]
    variance_a: float
    variance_b: float
    covariance: float
    commutator: float
    defects: tuple[float, float] = (0.0, 0.0)
    state_defect: float = 0.0


@dataclass(frozen=True, eq=False)
class ChannelWitness:
    """The entanglement ``before`` and ``after``, the deviation of the Kraus operators (K, D, D) from a channel, that
    of the worst of them from an operator on ``factor`` alone, and the index of the state in the batch.

    Without a ``factor`` it is the deviation from the products A ⊗ B of ``products``, (K, a, a) and (K, b, b)."""

    index: tuple[int, ...]
    before: float
    after: float
    kraus: Tensor
    dims: tuple[int, int]
    factor: int | None
    channel_defect: float
    locality_defect: float
    products: tuple[Tensor, Tensor] | None = None


@verify.register
def _(witness: StateWitness) -> float:
    state, vector = witness.state, witness.eigenvector
    if vector is None:
        return abs(math.hypot(*(abs(z) for z in state.tolist())) - 1)
    rows: list[list[complex]] = state.tolist()
    n = len(rows)
    skew = max(abs(rows[i][j] - rows[j][i].conjugate()) for i in range(n) for j in range(n))
    least = float((vector.conj() @ state @ vector).real)
    return max(abs(sum(rows[i][i] for i in range(n)) - 1), skew, -least)


@verify.register
def _(witness: MomentWitness) -> float:
    product = witness.variance_a * witness.variance_b
    lacking = witness.covariance**2 + witness.commutator**2 / 4 - product
    return max(0.0, lacking, -witness.variance_a, -witness.variance_b, witness.state_defect, *witness.defects)


@verify.register
def _(witness: ChannelWitness) -> float:
    total = torch.stack([k.mH @ k for k in witness.kraus]).sum(0)
    channel = float((total - torch.eye(total.shape[-1], dtype=total.dtype, device=total.device)).abs().max())
    if witness.factor is not None:
        local = _locality_defect(witness.kraus, witness.dims, witness.factor)
    elif witness.products is None:
        return math.inf
    else:
        pairs = zip(witness.kraus, *witness.products, strict=True)
        local = max(float((k - torch.kron(one, other)).abs().max()) for k, one, other in pairs)
    return max(0.0, channel, local, witness.after - witness.before)


def _densities(state: Tensor, density: bool) -> Tensor:
    if density:
        return square("state", state, dtype=torch.complex128)
    vector = finite("state", state, dtype=torch.complex128)
    if vector.ndim < 1:
        raise ValidationError("a state vector has shape (..., d), not ()")
    return QuantumState(vector, (vector.shape[-1],)).density


def _nearest_products(kraus: Tensor, dims: tuple[int, int]) -> tuple[float, tuple[Tensor, Tensor]]:
    """The products A ⊗ B nearest to operators (K, D, D) in the Frobenius norm, (K, a, a) and (K, b, b), and the largest
    entry of a difference. They are the first terms of the operator Schmidt decompositions."""
    a, b = dims
    turned = kraus.reshape(-1, a, b, a, b).permute(0, 1, 3, 2, 4).reshape(-1, a * a, b * b)
    left, values, right = torch.linalg.svd(turned, full_matrices=False)
    root = values[:, :1].sqrt()
    products = (left[..., 0] * root).reshape(-1, a, a), (right[:, 0] * root).reshape(-1, b, b)
    near = torch.einsum("kac,kbd->kabcd", *products).reshape(kraus.shape)
    return float((kraus - near).abs().max()), products


def _locality_defect(kraus: Tensor, dims: tuple[int, int], factor: int) -> float:
    """The largest entry by which an operator (K, D, D) differs from M⊗1 (factor 0) or 1⊗M (factor 1), M being the
    partial trace over the other factor, divided by its dimension."""
    a, b = dims
    blocks = kraus.reshape(-1, a, b, a, b)
    if factor == 0:
        own = torch.einsum("kxbyb->kxy", blocks) / b
        near = torch.einsum("kxy,bc->kxbyc", own, torch.eye(b, dtype=kraus.dtype, device=kraus.device))
    else:
        own = torch.einsum("kaxay->kxy", blocks) / a
        near = torch.einsum("kxy,bc->kbxcy", own, torch.eye(a, dtype=kraus.dtype, device=kraus.device))
    return float((blocks - near).abs().max())


@dataclass(frozen=True)
class QuantumValidation:
    """Checks of states, which are vectors (..., d), or density matrices (..., d, d) where ``density`` is set.

    ``tolerance`` is used where a method is given none. The seed's methods are kept, with verdicts instead of bools.
    Its `check_entanglement_monotonicity` took any operation; entanglement does rise under joint ones, so that here
    only channels of product operators pass, and the factors' dimensions are an argument.
    """

    tolerance: float = 1e-6

    def check_normalization(self, state: Tensor, tolerance: float | None = None, *, density: bool = False) -> Verdict:
        """Whether vectors have norm 1; or matrices have trace 1, are Hermitian and have no negative eigenvalue.

        ``residual`` is the largest of | |ψ| − 1 |, or |tr ρ − 1|, |ρ − ρ†| (entries) and the least eigenvalue's
        negative. Witness: `StateWitness`. Raises `ValidationError`.
        """
        room = tolerance_of(tolerance, self.tolerance)
        if not density:
            vectors = finite("state", state, dtype=torch.complex128)
            if vectors.ndim < 1:
                raise ValidationError("a state vector has shape (..., d), not ()")
            defect = (torch.linalg.vector_norm(vectors, dim=-1) - 1).abs()
            at = worst(defect)
            witness = StateWitness(at, vectors[at].clone(), None)
            return judge("state of norm 1", float(defect[at]), room, witness, "P2")
        matrices = square("state", state, dtype=torch.complex128)
        values, frames = torch.linalg.eigh((matrices + matrices.mH) / 2)
        trace = (matrices.diagonal(dim1=-2, dim2=-1).sum(-1) - 1).abs()
        skew = (matrices - matrices.mH).abs().amax((-2, -1))
        defect = torch.maximum(torch.maximum(trace, skew), -values[..., 0])
        at = worst(defect)
        witness = StateWitness(at, matrices[at].clone(), frames[at][:, 0].clone())
        statement = "density matrix: trace 1, Hermitian, positive"
        return judge(statement, float(defect[at]), room, witness, "P2")

    def verify_uncertainty_relations(
        self,
        state: Tensor,
        observables: tuple[Tensor, Tensor],
        tolerance: float | None = None,
        *,
        density: bool = False,
    ) -> Verdict:
        """Whether Var A Var B ≥ |½⟨{A,B}⟩ − ⟨A⟩⟨B⟩|² + ¼|⟨[A,B]⟩|² for observables (d, d), Robertson–Schrödinger.

        It holds for every state and all Hermitian A, B. A verdict that fails says that ``state`` is none, or that
        the observables are not Hermitian. That counts as a violation itself, as do a ρ that is not Hermitian, so
        also an imaginary part of its trace, and a negative variance. The state is divided by its norm, or the real
        part of its trace, first. ``residual``: the largest violation, or what is lacking, with A and B scaled to
        norm 1.
        Witness: `MomentWitness`. Raises `ValidationError`.
        """
        room = tolerance_of(tolerance, self.tolerance)
        rho = _densities(state, density)
        trace = rho.diagonal(dim1=-2, dim2=-1).sum(-1).real
        if bool((trace <= 0).any()):
            raise ValidationError("the state has a trace that is not positive: it cannot be normalised")
        rho = rho / trace[..., None, None]
        if not isinstance(observables, tuple | list) or len(observables) != 2:
            raise ValidationError("observables are two matrices (A, B)")
        scaled, defects = [], []
        for name, observable in zip("AB", observables, strict=True):
            matrix = square(f"observable {name}", observable, dtype=torch.complex128)
            if matrix.shape != rho.shape[-2:]:
                raise ValidationError(f"observable {name} is {tuple(matrix.shape)}, the state {tuple(rho.shape[-2:])}")
            matrix = matrix / (float(torch.linalg.matrix_norm(matrix, 2)) or 1.0)
            scaled.append(matrix)
            defects.append(float((matrix - matrix.mH).abs().max()))
        a, b = scaled

        given = QuantumState(rho, (rho.shape[-1],), pure=False)
        mean_a, mean_b = (mean(given, m).real for m in (a, b))
        var_a, var_b = (mean(given, m @ m).real - centre**2 for m, centre in ((a, mean_a), (b, mean_b)))
        covariance = mean(given, a @ b + b @ a).real / 2 - mean_a * mean_b
        commutator = mean(given, a @ b - b @ a).abs()
        lacking = covariance**2 + commutator**2 / 4 - var_a * var_b
        skew = (rho - rho.mH).abs().amax((-2, -1))
        at = worst(torch.stack((lacking, -var_a, -var_b, skew)).amax(0))
        moments = (float(var_a[at]), float(var_b[at]), float(covariance[at]), float(commutator[at]))
        witness = MomentWitness(at, *moments, defects=(defects[0], defects[1]), state_defect=float(skew[at]))
        return judge("Robertson–Schrödinger uncertainty relation", verify(witness), room, witness, "P2")

    def verify_moments(
        self,
        variance_a: float,
        variance_b: float,
        covariance: float,
        commutator: complex,
        tolerance: float | None = None,
    ) -> Verdict:
        """The uncertainty relation of moments that were found apart: Var A, Var B, ½⟨{A,B}⟩ − ⟨A⟩⟨B⟩, ⟨[A,B]⟩.

        The last is imaginary for Hermitian A and B; its modulus is what counts. ``residual`` is what is lacking, in the
        moments' own unit. Witness: `MomentWitness`. Raises `ValidationError`.
        """
        room = tolerance_of(tolerance, self.tolerance)
        try:
            moments = (float(variance_a), float(variance_b), float(covariance), abs(complex(commutator)))
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValidationError(
                f"variances and covariance are real numbers, the commutator one number: {error}"
            ) from error
        if not all(abs(m) < 1e150 for m in moments):
            raise ValidationError(f"moments are not finite, or their squares are not: {moments}")
        witness = MomentWitness((), *moments)
        return judge("Robertson–Schrödinger uncertainty relation", verify(witness), room, witness, "P2")

    def check_entanglement_monotonicity(
        self,
        operation: Tensor | tuple[Tensor, Tensor],
        initial_state: Tensor,
        dims: tuple[int, int],
        tolerance: float | None = None,
        *,
        factor: int | None = None,
        measure: str = "negativity",
        density: bool = False,
    ) -> Verdict:
        """Whether a channel on C^a ⊗ C^b is made of products A ⊗ B, and entanglement does not rise under it.

        ``operation``: Kraus operators (K, D, D) on the whole space, D = a b, or (K, d, d) on ``factor`` (0 or 1); a
        single operator may lack the first axis. Or a pair of the parties' own operators, (K, a, a) and (K, b, b), of
        which outcome k does A_k ⊗ B_k: local unitaries, or a measurement of one and the correction by the other that
        depends on it. Where the correction is itself a channel of L operators, it is (K, L, b, b), or (K, L, a, a).
        Local operations and classical communication, of any number of rounds, are products of such operators.

        With a ``factor`` the operators must all act on it alone. ``measure``: "negativity", "log_negativity", or
        "concurrence" for two qubits: none rises under product operators (separable channels). ``residual`` is the
        largest of the deviation of Σ K†K from 1, of the operators from products, and of the rise. Operators that are
        no products fail even where this state's entanglement does not rise, and where others of the same channel
        would be. Witness: `ChannelWitness`. Raises `ValidationError`.
        """
        room = tolerance_of(tolerance, self.tolerance)
        two = isinstance(dims, tuple | list) and len(dims) == 2 and all(isinstance(d, int) and d > 0 for d in dims)
        if not two or factor not in (None, 0, 1) or measure not in MEASURES:
            raise ValidationError(
                f"dims {dims} must be two sizes, factor {factor} 0 or 1, measure {measure!r} of {', '.join(MEASURES)}"
            )
        if measure == "concurrence" and tuple(dims) != (2, 2):
            raise ValidationError(f"concurrence is that of two qubits, not of {dims}", hint="use 'negativity'")
        rho = _densities(initial_state, density)
        if not self.check_normalization(rho, density=True):
            raise ValidationError("initial_state is not a state", hint="see check_normalization")
        kraus = self._whole(operation, dims, factor)
        if rho.shape[-1] != kraus.shape[-1]:
            raise ValidationError(f"the state has dimension {rho.shape[-1]}, the operation {kraus.shape[-1]}")
        local, side, products = self._locality(kraus, dims, factor, room)
        identity = torch.eye(kraus.shape[-1], dtype=kraus.dtype, device=kraus.device)
        channel = float(((kraus.mH @ kraus).sum(0) - identity).abs().max())
        image = torch.einsum("kij,...jl,kml->...im", kraus, rho, kraus.conj())
        before, after = _entanglement(rho, dims, measure), _entanglement(image, dims, measure)
        at = worst(after - before)
        witness = ChannelWitness(
            at, float(before[at]), float(after[at]), kraus, (dims[0], dims[1]), side, channel, local, products
        )
        residual = max(0.0, channel, local, float((after - before)[at]))
        return judge(f"local channel under which {measure} does not rise", residual, room, witness, "P2")

    def _locality(
        self, kraus: Tensor, dims: tuple[int, int], factor: int | None, room: float
    ) -> tuple[float, int | None, tuple[Tensor, Tensor] | None]:
        """How far the operators are from those of one factor, and of which, or else from products, and which."""
        sides = (0, 1) if factor is None else (factor,)
        local, side = min((_locality_defect(kraus, dims, side), side) for side in sides)
        if factor is not None or local <= room:
            return local, side, None
        defect, products = _nearest_products(kraus, dims)
        return defect, None, products

    def _pairs(self, operation: tuple[Tensor, Tensor], dims: tuple[int, int]) -> Tensor:
        """A_k ⊗ B_k, or A_k ⊗ B_kl, or A_kl ⊗ B_k, of the parties' operators, (K, D, D) or (K L, D, D)."""
        parts = [
            square(f"the operators of party {i}", part, dtype=torch.complex128) for i, part in enumerate(operation)
        ]
        parts = [part[None] if part.ndim == 2 else part for part in parts]
        shapes = " and ".join(str(tuple(part.shape)) for part in parts)
        if (
            [part.shape[-1] for part in parts] != list(dims)
            or sorted(part.ndim for part in parts) not in ([3, 3], [3, 4])
            or parts[0].shape[0] != parts[1].shape[0]
        ):
            raise ValidationError(
                f"operators {shapes} of two parties do not go together over {tuple(dims)}",
                hint=f"give (K, {dims[0]}, {dims[0]}) and (K, {dims[1]}, {dims[1]}), one of them (K, L, d, d)",
            )
        one, other = (part[:, None] if part.ndim == 3 else part for part in parts)
        size = dims[0] * dims[1]
        return torch.einsum("klac,kmbd->klmabcd", one, other).reshape(-1, size, size)

    def _whole(self, operation: Tensor | tuple[Tensor, Tensor], dims: tuple[int, int], factor: int | None) -> Tensor:
        """The Kraus operators on the whole space, (K, D, D)."""
        if isinstance(operation, tuple | list):
            if len(operation) != 2 or factor is not None:
                raise ValidationError(
                    f"{len(operation)} sets of operators, factor {factor}: a pair of the parties' operators has two, "
                    "and no factor",
                    hint="stack the Kraus operators of one channel, (K, D, D)",
                )
            return self._pairs((operation[0], operation[1]), dims)
        # torch.kron takes no strided views.
        kraus = square("operation", operation, dtype=torch.complex128).contiguous()
        kraus = kraus[None] if kraus.ndim == 2 else kraus
        a, b = dims
        size = kraus.shape[-1]
        if kraus.ndim != 3 or size not in ({a * b} if factor is None else {a * b, dims[factor]}):
            raise ValidationError(
                f"Kraus operators {tuple(kraus.shape)} are not (K, {a * b}, {a * b})"
                + ("" if factor is None else f" or (K, {dims[factor]}, {dims[factor]})"),
                hint="with operators on one factor, give factor=",
            )
        if size == a * b:
            return kraus
        assert factor is not None
        return torch.stack([local_operator(k, factor, dims) for k in kraus])


def _entanglement(density: Tensor, dims: tuple[int, int], measure: str) -> Tensor:
    if measure == "concurrence":
        return concurrence(density)
    return (negativity if measure == "negativity" else log_negativity)(density, dims)
