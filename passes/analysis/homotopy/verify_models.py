"""Witnesses of factorisations, lifts and path objects of chain complexes, and the small independent checks of them.

Nothing here uses the code that made a witness: chain maps are dictionaries degree → matrix of exact numbers. Each check
returns the number of statements that fail; infinity for parts that are not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from aatc.passes.analysis.chains.verify_integers import integral, product
from aatc.passes.analysis.result import mismatch, verify

Matrices = Mapping[int, Any]
WRONG = float("inf")


@dataclass(frozen=True)
class RetractWitness:
    """A deformation retraction of integer complexes: ev∘s = 1 and 1 − s∘ev = ∂h + h∂; ev is then onto and a
    quasi-isomorphism. ``large`` and ``small`` are ∂, all are given in every degree that occurs, and ∂ one above."""

    large: Matrices
    small: Matrices
    section: Matrices
    evaluation: Matrices
    homotopy: Matrices


@dataclass(frozen=True)
class FactorizationWitness:
    """whole = second ∘ first over Q (``modulus`` 0) or F_p, first injective, second onto, and the one that
    ``acyclic`` names ("first" or "second") a quasi-isomorphism. ``source``, ``middle``, ``target`` are ∂."""

    modulus: int
    source: Matrices
    middle: Matrices
    target: Matrices
    first: Matrices
    second: Matrices
    whole: Matrices
    acyclic: str


@dataclass(frozen=True)
class LiftWitness:
    """lift∘i = top, p∘lift = bottom, and the lift commutes with ∂; i: A → B, p: X → Y, ∂ of B and X."""

    modulus: int
    i: Matrices
    p: Matrices
    top: Matrices
    bottom: Matrices
    boundary_b: Matrices
    boundary_x: Matrices
    lift: Matrices


@dataclass(frozen=True)
class ObstructionWitness:
    """No lift exists: u, v, w with u iᵀ + pᵀ v + ∂ᵀ w − w ∂ᵀ = 0 in every degree while Σ ⟨u, top⟩ + ⟨v, bottom⟩ ≠ 0
    (Fredholm's alternative for the equations h i = top, p h = bottom, ∂h = h∂)."""

    modulus: int
    i: Matrices
    p: Matrices
    top: Matrices
    bottom: Matrices
    boundary_b: Matrices
    boundary_x: Matrices
    u: Matrices
    v: Matrices
    w: Matrices


@dataclass(frozen=True)
class FactorizationsWitness:
    """Both factorisations of one map, and the lift of one against the other."""

    by_cylinder: FactorizationWitness
    by_path_object: FactorizationWitness
    lift: LiftWitness


def _reduce(value: Any, modulus: int) -> Any:
    if not modulus:
        return Fraction(value)
    exact = Fraction(value)
    return exact.numerator * pow(exact.denominator, -1, modulus) % modulus


def _nonzero(matrix: Any, modulus: int = 0) -> int:
    return sum(_reduce(v, modulus) != 0 for v in np.asarray(matrix, dtype=object).ravel() if v)


def _rank(matrix: Any, modulus: int) -> int:
    """By elimination of sparse rows, each led by its first entry."""
    leading: dict[int, dict[int, Any]] = {}
    for given in np.asarray(matrix, dtype=object):
        row = {int(j): v for j in np.flatnonzero(given) if (v := _reduce(given[j], modulus))}
        while row and (first := min(row)) in leading:
            factor = row[first]
            for j, v in leading[first].items():
                value = _reduce(row.get(j, 0) - factor * v, modulus)
                if value:
                    row[j] = value
                else:
                    row.pop(j, None)
        if row:
            scale = _reduce(Fraction(1, row[first]), modulus)
            leading[first] = {j: _reduce(v * scale, modulus) for j, v in row.items()}
    return len(leading)


def _chain_map_defects(f: Matrices, source: Matrices, target: Matrices, modulus: int) -> int:
    return sum(_nonzero(product(target[k], f[k]) - product(f[k - 1], source[k]), modulus) for k in f if k - 1 in f)


def _square_defects(boundary: Matrices, modulus: int) -> int:
    return sum(_nonzero(product(boundary[k - 1], boundary[k]), modulus) for k in boundary if k - 1 in boundary)


def _homology_defect(f: Matrices, source: Matrices, target: Matrices, modulus: int) -> int:
    """The total dimension of the homology of the cone (x, y) ↦ (−∂x, f x + ∂y)."""
    cone = {}
    for k in sorted({*f, *(k + 1 for k in f)}):
        x, y = source.get(k - 1), target.get(k)
        shape_x = np.shape(x) if x is not None else (0, np.shape(f[k - 1])[1] if k - 1 in f else 0)
        shape_y = np.shape(y) if y is not None else (np.shape(f[k - 1])[0] if k - 1 in f else 0, 0)
        block = np.zeros((shape_x[0] + shape_y[0], shape_x[1] + shape_y[1]), dtype=object)
        if x is not None:
            block[: shape_x[0], : shape_x[1]] = -np.asarray(x, dtype=object)
        if y is not None:
            block[shape_x[0] :, shape_x[1] :] = y
        if k - 1 in f:
            block[shape_x[0] :, : shape_x[1]] = f[k - 1]
        cone[k] = block
    ranks = {k: _rank(block, modulus) for k, block in cone.items()}
    return sum(block.shape[1] - ranks[k] - ranks.get(k + 1, 0) for k, block in cone.items())


def _span(*families: tuple[Matrices, int]) -> bool:
    """Whether all maps are given in the same degrees, one after another, and all ∂ there and in one degree more."""
    degrees = sorted(next((m for m, more in families if not more), {}))
    if not degrees:  # of complexes that are zero
        return all(not np.size(m) for family, _ in families for m in family.values())
    if degrees != list(range(degrees[0], degrees[-1] + 1)):
        return False
    return all(set(m) == {*degrees, *range(degrees[-1] + 1, degrees[-1] + 1 + more)} for m, more in families)


def _bounded(boundary: Matrices, degrees: Matrices) -> bool:
    """Whether shapes chain, and nothing lies beyond the degrees that are given."""
    shapes = {k: np.shape(d) for k, d in boundary.items()}
    if not degrees:
        return True
    ends = not shapes[min(degrees)][0] and not shapes[max(degrees) + 1][1]
    return ends and all(shapes[k][1] == shapes[k + 1][0] for k in degrees)


def _in_ring(modulus: int, *families: Matrices) -> bool:
    """Whether maps over F_p are made of integers; over Q any number that is exact will do."""
    return not modulus or integral(*(m for maps in families for m in maps.values()))


def _mapping(f: Matrices, source: Matrices, target: Matrices) -> bool:
    """Whether the shapes of a map are those of its ends."""
    return all(np.shape(f[k]) == (np.shape(target[k])[1], np.shape(source[k])[1]) for k in f)


@verify.register
def _(witness: RetractWitness) -> float:
    s, ev, h, d = witness.section, witness.evaluation, witness.homotopy, witness.large
    small = witness.small
    if not integral(*(m for maps in (s, ev, h, d, small) for m in maps.values())):
        return WRONG
    if not _span((s, 0), (ev, 0), (h, 0), (d, 1), (small, 1)) or not (_bounded(d, s) and _bounded(small, s)):
        return WRONG
    if not _mapping(s, small, d) or not _mapping(ev, d, small):
        return WRONG
    if any(np.shape(h[k]) != (np.shape(d[k + 1])[1], np.shape(d[k])[1]) for k in h):
        return WRONG
    failed = _square_defects(d, 0) + _square_defects(small, 0) + _chain_map_defects(s, witness.small, d, 0)
    failed += _chain_map_defects(ev, d, witness.small, 0)
    for k in s:
        large, small = np.shape(s[k])
        around = product(d[k + 1], h[k]) + (product(h[k - 1], d[k]) if k - 1 in h else 0)
        failed += _nonzero(product(ev[k], s[k]) - np.eye(small, dtype=object))
        failed += _nonzero(np.eye(large, dtype=object) - product(s[k], ev[k]) - around)
    return float(failed)


@verify.register
def _(witness: FactorizationWitness) -> float:
    p, first, second = witness.modulus, witness.first, witness.second
    complexes = witness.source, witness.middle, witness.target
    maps = (*complexes, first, second, witness.whole)
    if witness.acyclic not in ("first", "second") or not _prime_or_zero(p) or not _in_ring(p, *maps):
        return WRONG
    if not _span((witness.whole, 0), (first, 0), (second, 0), *((d, 1) for d in complexes)):
        return WRONG
    if not all(_bounded(d, first) for d in complexes) or not _mapping(first, *complexes[:2]):
        return WRONG
    if not _mapping(second, *complexes[1:]) or not _mapping(witness.whole, complexes[0], complexes[2]):
        return WRONG
    failed = sum(_square_defects(d, p) for d in (witness.source, witness.middle, witness.target))
    failed += _chain_map_defects(first, witness.source, witness.middle, p)
    failed += _chain_map_defects(second, witness.middle, witness.target, p)
    for k in witness.whole:
        failed += _nonzero(product(second[k], first[k]) - np.asarray(witness.whole[k], dtype=object), p)
        failed += _rank(first[k], p) != np.shape(first[k])[1]
        failed += _rank(second[k], p) != np.shape(second[k])[0]
    if witness.acyclic == "first":
        return float(failed + _homology_defect(first, witness.source, witness.middle, p))
    return float(failed + _homology_defect(second, witness.middle, witness.target, p))


@verify.register
def _(witness: LiftWitness) -> float:
    p, h = witness.modulus, witness.lift
    maps = witness.i, witness.p, witness.top, witness.bottom
    boundaries = witness.boundary_b, witness.boundary_x
    if not _prime_or_zero(p) or not _span((h, 0), *((m, 0) for m in maps), *((d, 1) for d in boundaries)):
        return WRONG
    if not all(_bounded(d, h) for d in boundaries) or not _mapping(h, *boundaries):
        return WRONG
    for k in h:  # B is where i ends, X where p starts and the top map ends
        if np.shape(witness.i[k])[0] != np.shape(h[k])[1] or np.shape(witness.p[k])[1] != np.shape(h[k])[0]:
            return WRONG
        if np.shape(witness.top[k]) != (np.shape(h[k])[0], np.shape(witness.i[k])[1]):
            return WRONG
        if np.shape(witness.bottom[k]) != (np.shape(witness.p[k])[0], np.shape(h[k])[1]):
            return WRONG
    failed = _chain_map_defects(h, witness.boundary_b, witness.boundary_x, p)
    for k in h:
        failed += _nonzero(product(h[k], witness.i[k]) - np.asarray(witness.top[k], dtype=object), p)
        failed += _nonzero(product(witness.p[k], h[k]) - np.asarray(witness.bottom[k], dtype=object), p)
    return float(failed)


@verify.register
def _(witness: ObstructionWitness) -> float:
    failed, pairing = 0, Fraction(0)
    u, v, w = witness.u, witness.v, witness.w
    if not _prime_or_zero(witness.modulus) or not (set(u) == set(v) == set(w) == set(witness.top)):
        return WRONG
    for k in u:
        total = product(u[k], np.transpose(witness.i[k])) + product(np.transpose(witness.p[k]), v[k])
        total = total + product(np.transpose(witness.boundary_x[k]), w[k])
        if k + 1 in w:
            total = total - product(w[k + 1], np.transpose(witness.boundary_b[k + 1]))
        failed += _nonzero(total, witness.modulus)
        for functional, value in ((u[k], witness.top[k]), (v[k], witness.bottom[k])):
            pairing += sum(
                (Fraction(a) * Fraction(b) for a, b in zip(np.ravel(functional), np.ravel(value))), Fraction(0)
            )
    return float(failed + (_reduce(pairing, witness.modulus) == 0))


def _prime_or_zero(modulus: int) -> bool:
    return modulus == 0 or (modulus > 1 and all(modulus % q for q in range(2, int(modulus**0.5) + 1)))


@verify.register
def _(witness: FactorizationsWitness) -> float:
    one, two, lift = witness.by_cylinder, witness.by_path_object, witness.lift
    shared = [(lift.i, two.first), (lift.p, one.second), (lift.top, one.first), (lift.bottom, two.second)]
    shared += [(one.whole, two.whole), (lift.boundary_b, two.middle), (lift.boundary_x, one.middle)]
    shared += [(one.source, two.source), (one.target, two.target)]
    if one.acyclic != "second" or two.acyclic != "first" or not one.modulus == two.modulus == lift.modulus:
        return WRONG
    p = one.modulus
    if not all(a is b or _same(a, b, p) for a, b in shared):
        return WRONG
    return verify(one) + verify(two) + verify(lift)


def _same(one: Matrices, two: Matrices, modulus: int) -> bool:
    """Whether two families of matrices agree, degrees where one has nothing standing for zeros."""
    for k in {*one, *two}:
        a, b = (np.asarray(x[k], dtype=object) if k in x else None for x in (one, two))
        if a is None or b is None:
            if (a if b is None else b).size:  # type: ignore[union-attr]
                return False
        elif a.shape != b.shape or _nonzero(a - b, modulus):
            return False
    return True


def _matrices(f: Any, degrees: Matrices) -> dict[int, Any]:
    """A map of complexes in these degrees and wherever its ends have any, as dense matrices."""
    wanted = {*degrees, *f.source.degrees, *f.target.degrees}
    return {k: _dense(f.matrix(k)) for k in wanted}


def _boundaries(complex: Any, boundary: Matrices, modulus: int) -> bool:
    """Whether a complex has these boundaries, and nothing elsewhere."""
    found = {k: _dense(complex.boundary(k)) for k in {*boundary, *complex.degrees}}
    return _same(found, boundary, modulus)


def _dense(matrix: Any) -> Any:
    return matrix.toarray().astype(object) if hasattr(matrix, "toarray") else matrix


@mismatch.register
def _(witness: FactorizationWitness, value: Any) -> float:
    named = {"first": "cofibration", "second": "fibration"}[witness.acyclic]
    same = _same(_matrices(value.cofibration, witness.first), witness.first, witness.modulus)
    same = same and _same(_matrices(value.fibration, witness.second), witness.second, witness.modulus)
    first, second = value.cofibration, value.fibration
    given = ((first.source, witness.source), (first.target, witness.middle), (second.target, witness.target))
    same = same and first.target is second.source and all(_boundaries(c, d, witness.modulus) for c, d in given)
    return 0.0 if same and value.acyclic == named else WRONG


@mismatch.register
def _(witness: LiftWitness, value: Any) -> float:
    same = _same(_matrices(value, witness.lift), witness.lift, witness.modulus)
    ends = ((value.source, witness.boundary_b), (value.target, witness.boundary_x))
    return 0.0 if same and all(_boundaries(c, d, witness.modulus) for c, d in ends) else WRONG


@mismatch.register
def _(witness: FactorizationsWitness, value: Any) -> float:
    one = witness.by_cylinder
    whole = 0.0 if _same(_matrices(value.whole, one.whole), one.whole, one.modulus) else WRONG
    found = mismatch(one, value.by_cylinder) + mismatch(witness.by_path_object, value.by_path_object)
    return whole + found + mismatch(witness.lift, value.comparison)


@mismatch.register
def _(witness: RetractWitness, value: Any) -> float:
    """The path object of the complex ``small``: P_k = C_k ⊕ C_k ⊕ C_{k+1} with ∂(a, b, c) = (∂a, ∂b, a − b − ∂c), its
    two evaluations and its section, each as the definition says."""
    small = {k: np.asarray(d, dtype=object) for k, d in witness.small.items()}
    dims = {k: d.shape[1] for k, d in small.items()}
    for k in witness.section:
        here, above = dims[k], dims.get(k + 1, 0)
        one, rest = np.eye(here, dtype=object), np.zeros((here, above), dtype=object)
        zero = np.zeros((here, here), dtype=object)
        expected = {
            "start": np.hstack([one, zero, rest]),
            "end": np.hstack([zero, one, rest]),
            "constant": np.vstack([one, one, rest.T]),
        }
        for name, matrix in expected.items():
            found = _dense(getattr(value, name).matrix(k))
            if found.shape != matrix.shape or _nonzero(found - matrix):
                return WRONG
        below, down = dims.get(k - 1, 0), small[k]
        into = small.get(k + 1, np.zeros((here, above), dtype=object))
        corner = np.zeros((below, here), dtype=object)
        boundary = np.vstack([
            np.hstack([down, corner, np.zeros((below, above), dtype=object)]),
            np.hstack([corner, down, np.zeros((below, above), dtype=object)]),
            np.hstack([one, -one, -into]),
        ])  # fmt: skip
        given = _dense(value.complex.boundary(k))
        for matrix in (given, np.asarray(witness.large[k], dtype=object)):
            if matrix.shape != boundary.shape or _nonzero(matrix - boundary):
                return WRONG
    maps = [(value.start, witness.evaluation), (value.constant, witness.section)]
    return 0.0 if all(_same(_matrices(f, m), m, 0) for f, m in maps) else WRONG
