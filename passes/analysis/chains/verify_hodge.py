"""Witnesses of Hodge decompositions and of characteristic numbers, and the small independent checks of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aatc.passes.analysis.chains.verify_cohomology import largest
from aatc.passes.analysis.chains.verify_integers import columns_of, invariants
from aatc.passes.analysis.result import mismatch, verify

Reals = NDArray[np.float64]
DENSE = 600  # cells up to which equations are combined by weight


@dataclass(frozen=True)
class HodgeWitness:
    """ω = dα + δβ + h with dh = 0 and δh = 0: ``below`` is d_{k−1}, ``above`` d_k, weights the diagonals of ⋆."""

    below: Any
    above: Any
    weights: tuple[Reals, Reals, Reals]
    form: Reals
    potential: Reals
    copotential: Reals
    harmonic: Reals


@dataclass(frozen=True)
class FluxWitness:
    """A U(1) connection's phases on edges, its curvature F and integers n per 2-cell: F = dθ + 2πn, |F| < π, and
    Σ F over ``cycle`` is 2π times ``number``. With ``boundary_above``, ∂_3, the cycle generates H_2 = Z and its first
    entry that is not 0 is positive; without it is one that was given."""

    boundary: Any
    phases: Reals
    curvature: Reals
    integers: NDArray[np.int64]
    cycle: NDArray[np.int64]
    number: int
    boundary_above: Any = None


def _parts(witness: HodgeWitness) -> tuple[Reals, Reals]:
    """dα and δβ."""
    _, here, high = witness.weights
    return witness.below @ witness.potential, (witness.above.T @ (high * witness.copotential)) / here


@verify.register
def _(witness: HodgeWitness) -> float:
    """The largest of ω − dα − δβ − h, dh and δh, relative to the largest value of ω; each equation relative to what its
    terms could add up to, and combined so that its heaviest cell is in no other: ⟨h, dε⟩_⋆ = 0 for forms ε whose dε has
    cells of like weight, which the equations δh = 0 need not have."""
    low, here, high = witness.weights
    scale = float(np.abs(witness.form).max(initial=0.0)) or 1.0
    sizes = [len(low), len(here), len(high)]
    shapes = [witness.below.shape, witness.above.shape]
    if shapes != [(sizes[1], sizes[0]), (sizes[2], sizes[1])] or not all((w > 0).all() for w in witness.weights):
        return float("inf")
    exact, coexact = _parts(witness)
    found = largest(witness.form - exact - coexact - witness.harmonic) / scale
    for matrix, weights in ((witness.below, here), (witness.above.T, 1 / here)):
        values = witness.harmonic * (here if weights is here else 1.0)
        equations = _combined(matrix.toarray(), weights) if max(matrix.shape, default=0) <= DENSE else matrix
        room = abs(equations).T @ (here if weights is here else np.ones(len(here)))
        found = max(found, largest((equations.T @ values) / np.where(room > 0, room, 1.0)) / scale)
    return found


def _combined(matrix: Reals, weights: Reals) -> Reals:
    """Columns with the span of those of ``matrix``, each the only one with an entry in a row, its pivot, that no row of
    another entry of it outweighs."""
    columns = [np.array(c) for c in matrix.T if c.any()]
    found: list[Reals] = []
    for row in sorted(range(len(weights)), key=lambda i: -weights[i]):
        best = max(columns, key=lambda c: abs(c[row]), default=None)
        if best is None or abs(best[row]) < 1e-6:
            continue
        pivot = best / best[row]
        left = [c - c[row] * pivot for c in columns if c is not best]
        columns = [np.where(np.abs(c) < 1e-12, 0.0, c) for c in left]
        found = [c - c[row] * pivot for c in found] + [pivot]
    return np.array(found).reshape(-1, len(weights)).T


@mismatch.register
def _(witness: HodgeWitness, value: Any) -> float:
    """The three parts and the potentials; relative to the largest value of ω."""
    exact, coexact = _parts(witness)
    scale = float(np.abs(witness.form).max(initial=0.0)) or 1.0
    pairs = [(exact, value.exact), (coexact, value.coexact), (witness.harmonic, value.harmonic)]
    found = max(largest(one - two) for one, two in pairs) / scale
    same = [np.array_equal(witness.potential, value.potential), np.array_equal(witness.copotential, value.copotential)]
    return found if all(same) else float("inf")


@verify.register
def _(witness: FluxWitness) -> float:
    turned = witness.boundary.T @ witness.phases + 2 * np.pi * witness.integers
    total = float(np.dot(witness.curvature, witness.cycle)) / (2 * np.pi)
    if not np.abs(witness.curvature).max(initial=0.0) < np.pi:
        return float("inf")
    if witness.boundary_above is not None and not _generates(witness):
        return float("inf")
    return largest(witness.curvature - turned, witness.boundary @ witness.cycle, total - witness.number)


def _generates(witness: FluxWitness) -> bool:
    """Whether the cycle and the boundaries make all 2-cycles, and the boundaries alone do not."""
    entries = np.flatnonzero(witness.cycle)
    if not len(entries) or witness.cycle[entries[0]] < 0 or witness.boundary_above.shape[0] != len(witness.cycle):
        return False
    cycles = len(witness.cycle) - len(invariants(columns_of(witness.boundary))[1])
    above = columns_of(witness.boundary_above)
    with_cycle = invariants([*above, {i: int(witness.cycle[i]) for i in entries.tolist()}])[1]
    return len(invariants(above)[1]) == cycles - 1 and len(with_cycle) == cycles and set(with_cycle) == {1}


@mismatch.register
def _(witness: FluxWitness, value: Any) -> float:
    return 0.0 if value == witness.number else float("inf")
