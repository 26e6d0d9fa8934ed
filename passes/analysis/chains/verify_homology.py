"""Witnesses of homology and cohomology groups, and the small independent checks of them.

Nothing here uses the code that made a witness: ranks and torsion are found by elimination over the integers, and groups
are compared by their invariant factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Any

import numpy as np
from scipy import sparse

from aatc.passes.analysis.chains.verify_cohomology import EquivalenceWitness
from aatc.passes.analysis.chains.verify_integers import (
    Column,
    columns_of,
    divisor_chain,
    integral,
    invariants,
    sparse_rank,
)
from aatc.passes.analysis.result import mismatch, verify

WRONG = float("inf")


@dataclass(frozen=True, eq=False)
class ChainsWitness:
    """The complex itself, ∂_0, ∂_1, … as sparse integer matrices: its homology, or with ``dual`` its cohomology, over
    ``coeff`` is computed again by another elimination, which takes about as long as the groups did or longer; in all
    degrees, or in the first ``degrees``."""

    boundaries: tuple[Any, ...]
    coeff: str = "Z"
    dual: bool = False
    degrees: int | None = None

    @classmethod
    def of(cls, chain: Any, coeff: str, dual: bool = False) -> ChainsWitness:
        """Of a `ChainComplex`."""
        return cls(tuple(chain.boundary(k) for k in range(len(chain.counts))), coeff, dual)


@verify.register
def _(witness: ChainsWitness) -> float:
    """0 where shapes chain and ∂∂ = 0."""
    shapes = [d.shape for d in witness.boundaries]
    if not shapes or shapes[0][0] or any(a[1] != b[0] for a, b in pairwise(shapes)):
        return WRONG
    columns = [columns_of(d) for d in witness.boundaries]
    return float(sum(bool(_image(c, below)) for below, above in pairwise(columns) for c in above))


def _image(chain: Column, columns: Sequence[Column]) -> Column:
    total: Column = {}
    for j, v in chain.items():
        for i, entry in columns[j].items():
            total[i] = total.get(i, 0) + v * entry
    return {i: v for i, v in total.items() if v}


@mismatch.register
def _(witness: ChainsWitness, value: Any) -> float:
    """The value is groups in degrees from 0 on, or their ranks."""
    degrees = len(witness.boundaries) if witness.degrees is None else witness.degrees
    if not isinstance(value, tuple) or len(value) != degrees or degrees > len(witness.boundaries):
        return WRONG
    if any(group.coeff != witness.coeff for group in value if not isinstance(group, int)):
        return WRONG
    matrices = [columns_of(d) for d in witness.boundaries]
    counts = [d.shape[1] for d in witness.boundaries]
    into = [*matrices[1:], []]  # images in each degree, and the maps out of it
    out = matrices
    if witness.dual:
        transposed = [columns_of(sparse.coo_array(d).T) for d in witness.boundaries]
        into, out = transposed, [*transposed[1:], [{} for _ in range(counts[-1])]]
    factors: dict[int, list[int]] = {}

    def of(k: int, columns: list[list[Column]]) -> list[int]:
        place = id(columns[k])
        if place not in factors:
            factors[place] = invariants(columns[k])[1]
        return factors[place]

    for k, group in enumerate(value):
        torsion, rank = [t for t in of(k, into) if t > 1], counts[k] - len(of(k, into)) - len(of(k, out))
        if isinstance(group, int):
            if group != rank:
                return WRONG
        elif not _is_group(group, k, rank, torsion, (counts[k], into[k], out[k])):
            return WRONG
    return 0.0


def _modulus(coeff: str) -> int:
    digits = coeff.removeprefix("F")
    return int(digits) if coeff == f"F{digits}" and digits.isdecimal() else 0


def _is_group(
    group: Any, degree: int, rank: int, torsion: list[int], maps: tuple[int, list[Column], list[Column]]
) -> bool:
    """Whether this is the group that rank and torsion over Z say, or over a field what the maps say."""
    count, into, out = maps
    p = _modulus(group.coeff)
    if group.coeff not in ("Z", "Q") and (p < 2 or any(p % q == 0 for q in range(2, isqrt(p) + 1))):
        return False
    if group.coeff == "Q":
        torsion = []
    elif p:
        rank, torsion = count - sparse_rank(into, p) - sparse_rank(out, p), []
    if not integral(np.array([group.degree, group.free_rank, *group.torsion, *group.orders], dtype=object)):
        return False
    named = sorted(group.torsion) == sorted(t for t in group.orders if t) and min(group.torsion, default=2) > 1
    same = divisor_chain(torsion) == [t for t in divisor_chain(group.torsion) if t > 1]
    if not (group.degree == degree and group.free_rank == rank and same and named):
        return False
    if len(group.orders) != rank + len(group.torsion):
        return False
    return group.representatives is None or _generate(group, maps, p)


def _generate(group: Any, maps: tuple[int, list[Column], list[Column]], p: int) -> bool:
    """Whether the representatives are integers, over F_p those from 0 to p − 1, and cycles of the orders that are
    claimed, and generate, together with boundaries, all cycles: as many as there are summands, they are then a basis.
    Over Q only that they are independent of boundaries and as many as the rank."""
    count, into, out = maps
    array = np.asarray(group.representatives, dtype=object)
    if array.shape != (len(group.orders), count) or not integral(array):
        return False
    if p and not all(0 <= v < p for v in array.ravel()):
        return False
    chains = [{i: int(v) for i, v in enumerate(row) if v} for row in array.tolist()]
    for chain, order in zip(chains, group.orders):
        image = _image(chain, out)
        if any(v % p for v in image.values()) if p else image:
            return False
        if order and not _spans(into, {i: order * v for i, v in chain.items()}):
            return False
    if p:
        return sparse_rank([*into, *chains], p) == count - sparse_rank(out, p)
    factors = invariants([*into, *chains])[1]
    whole = len(factors) == count - len(invariants(out)[1])
    return whole and (group.coeff == "Q" or set(factors) <= {1})


def _spans(columns: list[Column], chain: Column) -> bool:
    """Whether an integer combination of the columns is ``chain``."""
    before, after = invariants(columns)[1], invariants([*columns, chain])[1]
    return before == after


# --- equivalences with minimal models ----------------------------------------------------------------------
def _read_off(witness: EquivalenceWitness, k: int) -> tuple[int, list[int], list[int]]:
    """H_k of the model: rank, torsion, and the entries of the model's ∂_k."""
    here = [abs(int(v)) for v in np.asarray(witness.model[k], dtype=object).ravel() if v]
    above = witness.model[k + 1] if k + 1 < len(witness.model) else np.zeros((0, 0), dtype=object)
    over = [abs(int(v)) for v in np.asarray(above, dtype=object).ravel() if v]
    return witness.inclusion[k].shape[1] - len(here) - len(over), [t for t in over if t > 1], here


@mismatch.register
def _(witness: EquivalenceWitness, value: Any) -> float:
    """The value is groups in all degrees, their ranks, the minimal model, or a complex with its boundaries."""
    if isinstance(value, tuple):
        right = not witness.lowest and len(value) == len(witness.model) and _groups_agree(witness, value)
        return 0.0 if right else WRONG
    complex = getattr(value, "complex", value)
    chain = complex.chain
    if len(chain.counts) != len(witness.boundaries) - 1 or getattr(complex, "lowest", 0) != witness.lowest:
        return WRONG
    same = all(
        d.shape == chain.boundary(k).shape and not _nonzero(d - chain.boundary(k).toarray())
        for k, d in enumerate(witness.boundaries[:-1])
    )
    if same and hasattr(value, "orders_below"):  # a minimal model
        for k in range(len(witness.model)):
            rank, torsion, _ = _read_off(witness, k)
            same = same and value.counts[k] == witness.inclusion[k].shape[1] and len(value.free[k]) == rank
            same = same and sorted(t for t in value.orders_below[k] if t > 1) == sorted(torsion)
    return 0.0 if same else WRONG


def _nonzero(matrix: Any) -> bool:
    return any(v != 0 for v in np.asarray(matrix, dtype=object).ravel())


def _groups_agree(witness: EquivalenceWitness, value: tuple[Any, ...]) -> bool:
    boundaries = [columns_of(np.asarray(d, dtype=object).astype(np.int64)) for d in witness.boundaries]
    for k, group in enumerate(value):
        rank, torsion, _ = _read_off(witness, k)
        if isinstance(group, int):
            if group != rank:
                return False
        elif not _is_group(group, k, rank, torsion, (witness.inclusion[k].shape[0], boundaries[k + 1], boundaries[k])):
            return False
    return True
