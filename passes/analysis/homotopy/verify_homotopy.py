"""Witnesses of the homotopical analyses, and the small independent checks that `verify` runs on them.

Nothing here uses the code that made a witness: simplices are pairs (values of a monotone surjection, name), chain maps
are dictionaries degree → matrix of exact numbers, categories are tables. Each check returns the number of statements
that fail, or for lengths of paths the largest deviation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aatc.passes.analysis.result import verify

Name = Any
PlainSimplex = tuple[tuple[int, ...], Name]
Faces = Mapping[Name, tuple[PlainSimplex, ...]]
Matrices = Mapping[int, Any]
Arrows = Mapping[Name, tuple[Name, Name]]
Composites = Mapping[tuple[Name, Name], Name]


@dataclass(frozen=True)
class KanWitness:
    """``counts[n, k]``: how many horns Λⁿ_k there are and how many have a filler, for all k from 0 to n, or all
    ``inner`` ones, in every dimension from 1 to ``top``; ``unfilled`` (n, k, faces) is one without, None where all
    have."""

    vertices: tuple[Name, ...]
    faces: Faces
    top: int
    inner: bool
    counts: Mapping[tuple[int, int], tuple[int, int]]
    unfilled: tuple[int, int, Mapping[int, PlainSimplex]] | None


@dataclass(frozen=True)
class FillerWitness:
    """``simplex`` has the faces ``required[i]``."""

    faces: Faces
    simplex: PlainSimplex
    required: Mapping[int, PlainSimplex]


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
class OreWitness:
    """A calculus of left fractions fails. With ``kind`` "square": s in W and f leave the same object, and no t in W,
    g have f·t = s·g. With "cancel": s·f = s·g, f ≠ g, and no t in W has f·t = g·t. a·b is first a, then b."""

    arrows: Arrows
    compose: Composites
    inverted: frozenset[Name]
    kind: str
    s: Name
    f: Name
    g: Name | None = None


@dataclass(frozen=True)
class LocalizationWitness:
    """``functor`` makes the target C[W⁻¹] by left fractions: it respects ends, identities and composites and sends
    ``inverted`` to isomorphisms; squares with a leg in W are completed; every arrow of the target is Q(f)·Q(s)⁻¹; and
    Q(f) = Q(g) only where f·t = g·t for some t in W. For right fractions all tables are those of the opposites."""

    arrows: Arrows
    compose: Composites
    identity: Mapping[Name, Name]
    inverted: frozenset[Name]
    target_arrows: Arrows
    target_compose: Composites
    target_identity: Mapping[Name, Name]
    functor: Mapping[Name, Name]


@dataclass(frozen=True)
class PathWitness:
    """A shortest path: ``costs`` (n, n), infinite where there is no edge, ``path``, ``length`` and ``potentials``, the
    distances from the start. Distances that no edge undercuts bound the length of every path from below."""

    costs: NDArray[np.float64]
    path: tuple[int, ...]
    length: float
    potentials: NDArray[np.float64]


# --- simplicial sets ---------------------------------------------------------------------------------------
def _face(z: PlainSimplex, i: int, faces: Faces) -> PlainSimplex:
    onto, name = z
    rest = [v for place, v in enumerate(onto) if place != i]
    if onto[i] in rest:
        return tuple(rest), name
    lower, below = faces[name][onto[i]]
    return tuple(lower[v - 1 if v > onto[i] else v] for v in rest), below


def _all_simplices(vertices: Iterable[Name], faces: Faces, n: int) -> Iterator[PlainSimplex]:
    sizes = {**dict.fromkeys(vertices, 0), **{x: len(f) - 1 for x, f in faces.items()}}
    for name, m in sizes.items():
        for cuts in combinations(range(1, n + 1), m):
            yield tuple(sum(c <= k for c in cuts) for k in range(n + 1)), name


def _compatible(horn: Mapping[int, PlainSimplex], faces: Faces) -> bool:
    return all(_face(horn[j], i, faces) == _face(horn[i], j - 1, faces) for i, j in combinations(sorted(horn), 2))


@verify.register
def _(witness: KanWitness) -> float:
    failed, every_filled = 0, True
    looked_at = {(n, k) for n in range(1, witness.top + 1) for k in (range(1, n) if witness.inner else range(n + 1))}
    if witness.top < 1 or set(witness.counts) != looked_at:
        return float("inf")
    if witness.unfilled is not None and witness.unfilled[:2] not in witness.counts:
        return float("inf")
    for n in sorted({n for n, _ in witness.counts}):
        sides = list(_all_simplices(witness.vertices, witness.faces, n - 1))
        whole = [
            [_face(z, i, witness.faces) for i in range(n + 1)]
            for z in _all_simplices(witness.vertices, witness.faces, n)
        ]
        for k in [k for m, k in witness.counts if m == n]:
            places = [i for i in range(n + 1) if i != k]
            horns: list[dict[int, PlainSimplex]] = [{}]
            for place in places:
                grown = [{**h, place: y} for h in horns for y in sides]
                horns = [h for h in grown if n == 1 or _compatible(h, witness.faces)]
            filled = {tuple(z[i] for i in places) for z in whole}
            failed += witness.counts[n, k] != (len(horns), len(filled))
            every_filled = every_filled and len(horns) == len(filled)
            if witness.unfilled is not None and witness.unfilled[:2] == (n, k):
                horn = witness.unfilled[2]
                failed += set(horn) != set(places) or tuple(horn[i] for i in places) in filled
                failed += n > 1 and not _compatible(horn, witness.faces)
    return float(failed + (every_filled != (witness.unfilled is None)))


@verify.register
def _(witness: FillerWitness) -> float:
    return float(sum(_face(witness.simplex, i, witness.faces) != y for i, y in witness.required.items()))


# --- chain complexes ---------------------------------------------------------------------------------------
def _reduce(value: Any, modulus: int) -> Any:
    if not modulus:
        return Fraction(value)
    exact = Fraction(value)
    return exact.numerator * pow(exact.denominator, -1, modulus) % modulus


def _nonzero(matrix: Any, modulus: int = 0) -> int:
    return sum(_reduce(v, modulus) != 0 for v in np.asarray(matrix, dtype=object).ravel())


def _times(one: Any, two: Any) -> Any:
    a, b = np.asarray(one, dtype=object), np.asarray(two, dtype=object)
    if not a.shape[1]:
        return np.zeros((a.shape[0], b.shape[1]), dtype=object)
    return a @ b


def _rank(matrix: Any, modulus: int) -> int:
    rows = [[_reduce(v, modulus) for v in row] for row in np.asarray(matrix, dtype=object).tolist()]
    found = 0
    for column in range(len(rows[0]) if rows else 0):
        at = next((r for r in range(found, len(rows)) if rows[r][column]), None)
        if at is None:
            continue
        rows[found], rows[at] = rows[at], rows[found]
        for r in range(found + 1, len(rows)):
            if rows[r][column]:
                factor = rows[r][column] * _reduce(Fraction(1, rows[found][column]), modulus)
                rows[r] = [_reduce(a - factor * b, modulus) for a, b in zip(rows[r], rows[found])]
        found += 1
    return found


def _chain_map_defects(f: Matrices, source: Matrices, target: Matrices, modulus: int) -> int:
    return sum(_nonzero(_times(target[k], f[k]) - _times(f[k - 1], source[k]), modulus) for k in f if k - 1 in f)


def _square_defects(boundary: Matrices, modulus: int) -> int:
    return sum(_nonzero(_times(boundary[k - 1], boundary[k]), modulus) for k in boundary if k - 1 in boundary)


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


@verify.register
def _(witness: RetractWitness) -> float:
    s, ev, h, d = witness.section, witness.evaluation, witness.homotopy, witness.large
    failed = _square_defects(d, 0) + _chain_map_defects(s, witness.small, d, 0)
    failed += _chain_map_defects(ev, d, witness.small, 0)
    for k in s:
        large, small = np.shape(s[k])
        around = _times(d[k + 1], h[k]) + (_times(h[k - 1], d[k]) if k - 1 in h else 0)
        failed += _nonzero(_times(ev[k], s[k]) - np.eye(small, dtype=object))
        failed += _nonzero(np.eye(large, dtype=object) - _times(s[k], ev[k]) - around)
    return float(failed)


@verify.register
def _(witness: FactorizationWitness) -> float:
    p, first, second = witness.modulus, witness.first, witness.second
    failed = sum(_square_defects(d, p) for d in (witness.source, witness.middle, witness.target))
    failed += _chain_map_defects(first, witness.source, witness.middle, p)
    failed += _chain_map_defects(second, witness.middle, witness.target, p)
    for k in witness.whole:
        failed += _nonzero(_times(second[k], first[k]) - np.asarray(witness.whole[k], dtype=object), p)
        failed += _rank(first[k], p) != np.shape(first[k])[1]
        failed += _rank(second[k], p) != np.shape(second[k])[0]
    if witness.acyclic == "first":
        return float(failed + _homology_defect(first, witness.source, witness.middle, p))
    return float(failed + _homology_defect(second, witness.middle, witness.target, p))


@verify.register
def _(witness: LiftWitness) -> float:
    p, h = witness.modulus, witness.lift
    failed = _chain_map_defects(h, witness.boundary_b, witness.boundary_x, p)
    for k in h:
        failed += _nonzero(_times(h[k], witness.i[k]) - np.asarray(witness.top[k], dtype=object), p)
        failed += _nonzero(_times(witness.p[k], h[k]) - np.asarray(witness.bottom[k], dtype=object), p)
    return float(failed)


@verify.register
def _(witness: ObstructionWitness) -> float:
    failed, pairing = 0, Fraction(0)
    u, v, w = witness.u, witness.v, witness.w
    for k in u:
        total = _times(u[k], np.transpose(witness.i[k])) + _times(np.transpose(witness.p[k]), v[k])
        total = total + _times(np.transpose(witness.boundary_x[k]), w[k])
        if k + 1 in w:
            total = total - _times(w[k + 1], np.transpose(witness.boundary_b[k + 1]))
        failed += _nonzero(total, witness.modulus)
        for functional, value in ((u[k], witness.top[k]), (v[k], witness.bottom[k])):
            pairing += sum(
                (Fraction(a) * Fraction(b) for a, b in zip(np.ravel(functional), np.ravel(value))), Fraction(0)
            )
    return float(failed + (_reduce(pairing, witness.modulus) == 0))


# --- categories and paths ----------------------------------------------------------------------------------
@verify.register
def _(witness: OreWitness) -> float:
    arrows, compose = witness.arrows, witness.compose
    failed = int(witness.s not in witness.inverted)
    if witness.kind == "cancel":
        failed += witness.g is None or witness.f == witness.g
        failed += compose[witness.s, witness.f] != compose[witness.s, witness.g]
        leaving = [t for t in witness.inverted if arrows[t][0] == arrows[witness.f][1]]
        return float(failed + any(compose[witness.f, t] == compose[witness.g, t] for t in leaving))
    failed += arrows[witness.s][0] != arrows[witness.f][0]
    for t, g in product(witness.inverted, arrows):
        fits = arrows[t][0] == arrows[witness.f][1] and arrows[g][0] == arrows[witness.s][1]
        failed += fits and compose[witness.f, t] == compose[witness.s, g]
    return float(failed)


@verify.register
def _(witness: LocalizationWitness) -> float:
    q, target, compose = witness.functor, witness.target_arrows, witness.target_compose
    failed = sum(q[e] != witness.target_identity[x] for x, e in witness.identity.items())
    failed += sum(target[q[f]] != ends for f, ends in witness.arrows.items())
    failed += sum(compose.get((q[f], q[g])) != q[h] for (f, g), h in witness.compose.items())
    if failed:
        return float(failed)
    inverses = {}
    for s in witness.inverted:
        a, b = target[q[s]]
        for r, ends in target.items():
            both = ends == (b, a) and (compose[q[s], r], compose[r, q[s]])
            if both == (witness.target_identity[a], witness.target_identity[b]):
                inverses[s] = r
    failed += len(witness.inverted) - len(inverses)
    return float(failed + _fraction_defects(witness, inverses))


def _fraction_defects(witness: LocalizationWitness, inverses: Mapping[Name, Name]) -> int:
    arrows, after, q = witness.arrows, witness.compose, witness.functor
    failed = 0
    for s, f in product(witness.inverted, arrows):
        if arrows[s][0] == arrows[f][0]:
            sides = {after[s, g] for g in arrows if arrows[g][0] == arrows[s][1]}
            failed += not any(after.get((f, t)) in sides for t in witness.inverted)
    for f, g in combinations(arrows, 2):
        if arrows[f] == arrows[g] and q[f] == q[g]:
            ends = [t for t in witness.inverted if arrows[t][0] == arrows[f][1]]
            failed += not any(after[f, t] == after[g, t] for t in ends)
    fractions = {
        witness.target_compose.get((q[f], r))
        for f in arrows
        for s, r in inverses.items()
        if arrows[f][1] == arrows[s][1]
    }
    return failed + len(set(witness.target_arrows) - fractions)


@verify.register
def _(witness: PathWitness) -> float:
    steps = list(zip(witness.path, witness.path[1:]))
    total = sum(witness.costs[a, b] for a, b in steps)
    finite = np.isfinite(witness.potentials)
    reached = witness.potentials[finite][:, None] + witness.costs[finite]
    with np.errstate(invalid="ignore"):
        undercut = float(np.max(witness.potentials[None] - reached, initial=0.0, where=np.isfinite(reached)))
    start, end = witness.potentials[witness.path[0]], witness.potentials[witness.path[-1]]
    found = [abs(total - witness.length), abs(start), abs(end - witness.length), undercut]
    return float("inf") if np.isnan(found).any() else float(max(found))
