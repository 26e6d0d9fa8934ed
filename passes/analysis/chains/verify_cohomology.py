"""Witnesses of the homological analyses, and the small independent checks that `verify` runs on them.

Nothing here uses the code that made a witness: matrices are multiplied out, in Python integers where the statement is
exact. Each check returns the largest deviation found, 0 for an exact fact that holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from aatc.passes.analysis.chains.verify_integers import (
    columns_of,
    divisor_chain,
    integral,
    invariants,
    product,
    sparse_rank,
)
from aatc.passes.analysis.result import mismatch, verify, worst

Integers = NDArray[np.object_]
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class SmithWitness:
    """U A V = diag(d_1 | d_2 | ...), U U⁻¹ = 1, V V⁻¹ = 1: arrays of Python integers."""

    matrix: Integers
    factors: tuple[int, ...]
    left: Integers
    left_inverse: Integers
    right: Integers
    right_inverse: Integers


@dataclass(frozen=True)
class EquivalenceWitness:
    """A chain homotopy equivalence from a complex to its minimal model, degree by degree from ``lowest``.

    ``boundaries`` and ``model`` are ∂_k and D_k,  ``inclusion`` g_k: model → complex, ``projection`` f_k: complex →
    model, ``homotopy`` h_k: C_k → C_{k+1}. The identities ∂g = gD, f∂ = Df, fg = 1, 1 − gf = ∂h + h∂, and that each D_k
    has at most one entry in each row and column, fix homology and cohomology with every coefficient group.
    """

    boundaries: tuple[Integers, ...]
    model: tuple[Integers, ...]
    inclusion: tuple[Integers, ...]
    projection: tuple[Integers, ...]
    homotopy: tuple[Integers, ...]
    lowest: int = 0


@dataclass(frozen=True)
class CocycleWitness:
    """Cocycles of one degree that are independent in cohomology, with the exact orders of their classes.

    ``coboundary`` (count_{k+1}, count_k) and ``boundary`` (count_{k−1}, count_k) are sparse; ``cocycles`` (m, count_k).
    ``cycles`` (count_k, m) has ∂z_j = 0 modulo order_j (0: exactly), and ⟨φ_i, z_j⟩ = δ_ij modulo order_j, which makes
    the order of φ_j a multiple of order_j. ``primitives`` (m, count_{k−1}) has dψ_j = order_j φ_j, which makes it a
    divisor. Orders are 0 or at least 2. ``modulus`` is p over F_p, where all orders are 0, and 0 over Z and, with
    ``rational``, Q. The classes are all: as many, of such orders, as the ranks and invariant factors of d say.
    """

    coboundary: Any
    boundary: Any
    cocycles: Integers
    cycles: Integers
    orders: tuple[int, ...]
    modulus: int
    primitives: Integers
    rational: bool = False


@dataclass(frozen=True)
class BarcodeWitness:
    """Bars of one degree of a filtered complex, with a cycle and a bounding chain each, modulo the prime ``modulus``.

    ``boundary`` and ``boundary_above`` are ∂_k and ∂_{k+1}; ``values`` and ``values_above`` the filtration on k- and
    (k+1)-cells; ``bars`` (m, 2); ``cycles`` (count_k, m); ``fillings`` (count_{k+1}, m), zero where the death is ∞.
    Checked: each cycle is one, its last cell comes at the birth, its filling bounds it and ends at the death, and no
    two cycles, nor two fillings, have the same last cell.
    """

    boundary: Any
    boundary_above: Any
    values: Reals
    values_above: Reals
    bars: Reals
    cycles: NDArray[np.int64]
    fillings: NDArray[np.int64]
    modulus: int


@dataclass(frozen=True)
class FiltrationWitness:
    """The witnesses of all degrees from 0, each with the boundary matrix and values that the one before has above it.
    Together they are complete: every cell is the last cell of exactly one cycle or filling, so these are a basis that
    respects the filtration and in which ∂ is a matching."""

    degrees: tuple[BarcodeWitness, ...]


def largest(*arrays: Any) -> float:
    """The largest absolute value; infinite where there is a NaN, which no comparison would find."""
    values = [abs(value) for array in arrays for value in np.asarray(array).ravel() if value]
    return float("inf") if any(value != value for value in values) else float(max(values, default=0))


def _apart(one: float, two: float) -> float:
    """|a − b|, 0 for equal infinities."""
    return 0.0 if one == two else abs(one - two)


def _unit(size: int) -> Integers:
    unit = np.zeros((size, size), dtype=object)
    np.fill_diagonal(unit, 1)
    return unit


def _is_field(modulus: int) -> bool:
    """Whether this is 0, for Z and Q, or a prime."""
    return modulus == 0 or (modulus > 1 and all(modulus % q for q in range(2, isqrt(modulus) + 1)))


def _composite(one: Any, two: Any) -> float:
    """The largest absolute value in the product of two sparse integer matrices, in Python integers."""
    left, b = sparse.coo_array(one), sparse.coo_array(two)
    total: dict[tuple[int, int], int] = {}
    rows: dict[int, list[tuple[int, int]]] = {}
    for i, j, v in zip(*(x.tolist() for x in (*left.coords, left.data))):
        rows.setdefault(j, []).append((i, v))
    for j, k, w in zip(*(x.tolist() for x in (*b.coords, b.data))):
        for i, v in rows.get(j, ()):
            total[i, k] = total.get((i, k), 0) + v * w
    return float(max(map(abs, total.values()), default=0))


@verify.register
def _(witness: SmithWitness) -> float:
    rows, columns = witness.matrix.shape
    inverses = (witness.left, witness.left_inverse, witness.right, witness.right_inverse)
    if not integral(witness.matrix, *inverses, np.array(witness.factors, dtype=object)):
        return float("inf")
    if len(witness.factors) > min(rows, columns):
        return float("inf")
    diagonal = np.zeros((rows, columns), dtype=object)
    for i, d in enumerate(witness.factors):
        diagonal[i, i] = d
    chain = [b % a if a else 1 for a, b in zip(witness.factors, witness.factors[1:])]
    signs = [min(0, d - 1) for d in witness.factors]
    return largest(
        product(product(witness.left, witness.matrix), witness.right) - diagonal,
        product(witness.left, witness.left_inverse) - _unit(rows),
        product(witness.right, witness.right_inverse) - _unit(columns),
        chain,
        signs,
    )


@verify.register
def _(witness: EquivalenceWitness) -> float:
    found = 0.0
    d, model, g, f, h = (
        witness.boundaries,
        witness.model,
        witness.inclusion,
        witness.projection,
        witness.homotopy,
    )
    lengths = {len(d) - 1, len(model), len(g), len(f), len(h)}
    if not integral(*d, *model, *g, *f, *h):
        return float("inf")
    if len(lengths) != 1 or d[0].shape[0] or d[-1].shape[1]:
        return float("inf")
    for k in range(len(g)):
        unit = _unit(g[k].shape[0])
        around = product(d[k + 1], h[k]) + (product(h[k - 1], d[k]) if k else 0)
        found = max(
            found,
            largest(
                product(d[k], d[k + 1]),
                product(d[k], g[k]) - product(g[k - 1], model[k]) if k else [],
                product(f[k - 1], d[k]) - product(model[k], f[k]) if k else [],
                product(f[k], g[k]) - _unit(g[k].shape[1]),
                unit - product(g[k], f[k]) - around,
                np.maximum((model[k] != 0).sum(axis=0) - 1, 0),
                np.maximum((model[k] != 0).sum(axis=1) - 1, 0),
            ),
        )
    return found


@verify.register
def _(witness: CocycleWitness) -> float:
    p, orders = witness.modulus, witness.orders
    if not _cocycles_fit(witness) or not _is_field(p) or any(t < 0 or t == 1 or (t and p) for t in orders):
        return float("inf")
    exact = (witness.cocycles, witness.primitives, np.array(orders, dtype=object))
    if not integral(*exact, *(() if witness.rational else (witness.cycles,))):
        return float("inf")
    if not _all_classes(witness):
        return float("inf")
    closed = sparse.coo_array(witness.coboundary)
    derivative = np.zeros((len(witness.cocycles), closed.shape[0]), dtype=object)
    for i, j, v in zip(*closed.coords, closed.data):
        derivative[:, i] += int(v) * witness.cocycles[:, j]
    down = sparse.coo_array(witness.boundary)
    boundary = np.zeros((down.shape[0], witness.cycles.shape[1]), dtype=object)
    for i, j, v in zip(*down.coords, down.data):
        boundary[i] += int(v) * witness.cycles[j]
    pairing = product(witness.cocycles, witness.cycles) - _unit(len(witness.cocycles))
    # dψ_j − order_j φ_j, by d = ∂ᵀ; what has order 0 needs no ψ
    bounded = [t * row for t, row in zip(orders, -witness.cocycles) if t]
    divided = np.array(bounded, dtype=object).reshape(-1, witness.cocycles.shape[1])
    primitives = witness.primitives[[t > 0 for t in orders]]
    if np.any(witness.primitives[[t == 0 for t in orders]] != 0):
        return float("inf")  # nothing that is not checked
    for i, j, v in zip(*down.coords, down.data):
        divided[:, j] += int(v) * primitives[:, i]
    for j, order in enumerate(orders):
        modulus = p or order
        if modulus:
            boundary[:, j] %= modulus
            pairing[:, j] %= modulus
    square = _composite(witness.boundary, witness.coboundary.T)
    return largest(derivative % p if p else derivative, boundary, pairing, divided, square)


def _all_classes(witness: CocycleWitness) -> bool:
    """Whether there are as many classes, of such orders, as cohomology has."""
    p, count = witness.modulus, int(witness.coboundary.shape[1])
    out, into = columns_of(witness.coboundary), columns_of(sparse.coo_array(witness.boundary).T)
    if p:
        return len(witness.orders) == count - sparse_rank(out, p) - sparse_rank(into, p)
    factors = invariants(into)[1]
    torsion = [] if witness.rational else [t for t in factors if t > 1]
    free = count - len(factors) - len(invariants(out)[1])
    claimed = divisor_chain(t for t in witness.orders if t)
    return bool(witness.orders.count(0) == free) and [t for t in claimed if t > 1] == torsion


def _cocycles_fit(witness: CocycleWitness) -> bool:
    """Whether all parts have the shapes that they say they have."""
    m, (below, count) = len(witness.orders), witness.boundary.shape
    shapes = [witness.cocycles.shape, witness.cycles.shape, witness.primitives.shape, witness.coboundary.shape[1]]
    return shapes == [(m, count), (count, m), (m, below), count]


def _last_cells(chains: NDArray[np.int64], values: Reals, p: int) -> list[int]:
    """The last cell, by (value, index), of each column that is not zero."""
    order = np.lexsort((np.arange(len(values)), values))
    backwards = (chains[order[::-1]] % p != 0) if len(order) else np.zeros((1, chains.shape[1]), dtype=bool)
    places = len(order) - 1 - backwards.argmax(0)
    found: list[int] = order[places[backwards.any(0)]].tolist()
    return found


@verify.register
def _(witness: BarcodeWitness) -> float:
    p = witness.modulus
    numbers = (witness.boundary.data, witness.boundary_above.data, witness.cycles, witness.fillings)
    if not (_bars_fit(witness) and p and _is_field(p) and integral(*numbers)):
        return float("inf")
    cycles, fillings, (births, deaths) = witness.cycles % p, witness.fillings % p, witness.bars.T
    filled = (fillings != 0).any(0)
    if not (cycles != 0).any(0).all() or (np.isfinite(deaths) & ~filled).any():
        return float("inf")
    starts, ends = (_last_cells(x, v, p) for x, v in ((cycles, witness.values), (fillings, witness.values_above)))
    off = (witness.boundary @ cycles) % p
    bounded = ((witness.boundary_above @ fillings - cycles) % p)[:, filled]
    apart = [_apart(*pair) for pair in zip(witness.values[starts].tolist(), births.tolist())]
    apart += [_apart(*pair) for pair in zip(witness.values_above[ends].tolist(), deaths[filled].tolist())]
    repeated = [float(len(last) - len(set(last))) for last in (starts, ends)]
    return worst(*(float(x.max(initial=0)) for x in (off, bounded)), *apart, *repeated)


def _bars_fit(witness: BarcodeWitness) -> bool:
    """Whether every bar has its cycle and filling, and all parts have the shapes that they say they have."""
    m, count, above = len(witness.bars), len(witness.values), len(witness.values_above)
    if np.isnan(witness.bars).any():
        return False
    shapes = [witness.bars.shape, witness.cycles.shape, witness.fillings.shape, witness.boundary_above.shape]
    return shapes == [(m, 2), (count, m), (above, m), (count, above)] and witness.boundary.shape[1] == count


def _consecutive(one: BarcodeWitness, two: BarcodeWitness) -> bool:
    """Whether what the one has above is what the other is about."""
    return (
        one.modulus == two.modulus
        and np.array_equal(one.values_above, two.values)
        and one.boundary_above.shape == two.boundary.shape
        and not sparse.coo_array(one.boundary_above - two.boundary).data.any()
    )


@verify.register
def _(witness: FiltrationWitness) -> float:
    found, degrees = 0.0, witness.degrees
    if not degrees or degrees[0].boundary.shape[0] or degrees[-1].boundary_above.shape[1]:
        return float("inf")  # nothing, or not all degrees
    if not all(_bars_fit(x) for x in degrees) or not all(_consecutive(x, y) for x, y in pairwise(degrees)):
        return float("inf")
    ends: list[int] = []
    for degree in degrees:
        starts = _last_cells(degree.cycles, degree.values, degree.modulus)
        missing = len(set(range(len(degree.values))) ^ {*starts, *ends}) + len({*starts} & {*ends})
        found = max(found, verify(degree), float(missing))
        ends = _last_cells(degree.fillings, degree.values_above, degree.modulus)
    return found


@mismatch.register
def _(witness: FiltrationWitness, value: Any) -> float:
    """Barcodes of all degrees: the bars that are not of length 0, by birth and then death, over the same field."""
    degrees = witness.degrees
    same = len(value.bars) == len(degrees) and all(x.modulus == value.modulus for x in degrees)
    if not same or value.threshold != np.inf or value.cocycles is not None:
        return float("inf")
    off = 0.0
    for degree, bars in zip(degrees, value.bars):
        kept = degree.bars[degree.bars[:, 0] < degree.bars[:, 1]]
        if np.shape(bars) != kept.shape:
            return float("inf")
        pairs = zip(sorted(map(tuple, kept.tolist())), np.asarray(bars).tolist())
        off = worst(off, *(_apart(x, y) for one, two in pairs for x, y in zip(one, two)))
    return off
