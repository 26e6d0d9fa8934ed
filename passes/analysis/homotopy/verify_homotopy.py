"""Witnesses of simplicial sets, categories and paths, and the small independent checks that `verify` runs on them.

Nothing here uses the code that made a witness: simplices are pairs (values of a monotone surjection, name), categories
are tables. Each check returns the number of statements that fail, or for lengths of paths the largest deviation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aatc.passes.analysis.result import mismatch, verify, worst

Name = Any
PlainSimplex = tuple[tuple[int, ...], Name]
Faces = Mapping[Name, tuple[PlainSimplex, ...]]
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
    """``simplex``, of dimension 2, has the faces ``required[i]``, i = 0, 1, 2: d_1 is a composite of d_2, then d_0."""

    faces: Faces
    simplex: PlainSimplex
    required: Mapping[int, PlainSimplex]
    vertices: tuple[Name, ...] = ()


@dataclass(frozen=True)
class NoFillerWitness:
    """No 2-simplex of the set has the faces ``required[i]``, i = 0, 1, 2: all of them are looked at."""

    vertices: tuple[Name, ...]
    faces: Faces
    required: Mapping[int, PlainSimplex]


@dataclass(frozen=True)
class FractionsWitness:
    """W = ``inverted`` has a calculus of left fractions: it holds identities and composites, squares with a leg in W
    are completed, and what is equal after an arrow of W is equal before another. All of it is checked again."""

    arrows: Arrows
    compose: Composites
    identity: Mapping[Name, Name]
    inverted: frozenset[Name]


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
    distances from the start. Distances that no edge undercuts bound the length of every path from below. ``words``
    are those of edges (a, b) in π₁, of which the path's is made; they are not checked."""

    costs: ArrayLike
    path: tuple[int, ...]
    length: float
    potentials: NDArray[np.float64]
    words: Mapping[tuple[int, int], tuple[int, ...]] | None = None


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


@mismatch.register
def _(witness: KanWitness, value: Any) -> float:
    """The value is the report, or a quasicategory whose inner horns have fillers."""
    if hasattr(value, "checked"):
        named = {name: tuple((f.onto, f.name) for f in faces) for name, faces in value.set.faces.items()}
        same = tuple(value.set.nondegenerate(0)) == witness.vertices and named == witness.faces
        same = same and len(value.ends) == 2 and set(value.ends) <= set(witness.vertices)
        return _count(not (same and witness.inner and witness.unfilled is None and value.checked == witness.top))
    found = None
    if value.unfilled is not None:
        n, k, horn = value.unfilled
        found = n, k, {i: (y.onto, y.name) for i, y in horn.items()}
    return _count(value.counts != witness.counts or found != witness.unfilled)


def _count(wrong: bool) -> float:
    return float("inf") if wrong else 0.0


@verify.register
def _(witness: FillerWitness) -> float:
    onto, name = witness.simplex
    top = len(witness.faces[name]) - 1 if name in witness.faces else 0
    known = name in witness.faces or name in witness.vertices
    surjective = sorted(set(onto)) == list(range(top + 1)) and list(onto) == sorted(onto)
    if not known or not surjective or len(onto) != 3 or set(witness.required) != {0, 1, 2}:
        return float("inf")
    return float(sum(_face(witness.simplex, i, witness.faces) != y for i, y in witness.required.items()))


@mismatch.register
def _(witness: FillerWitness, value: Any) -> float:
    """The value is that two arrows are homotopic, d_2 being degenerate, or all composites of d_2, then d_0."""
    first, second = witness.required[2], witness.required[0]
    if isinstance(value, bool):
        return _count(not value or first[0] != (0, 0))
    every = {
        _face(z, 1, witness.faces)
        for z in _all_simplices(witness.vertices, witness.faces, 2)
        if _face(z, 2, witness.faces) == first and _face(z, 0, witness.faces) == second
    }
    named = [(x.onto, x.name) for x in value]
    return _count(set(named) != every or len(named) != len(every))


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
    if witness.kind != "square":
        return float("inf")
    failed += arrows[witness.s][0] != arrows[witness.f][0]
    for t, g in product(witness.inverted, arrows):
        fits = arrows[t][0] == arrows[witness.f][1] and arrows[g][0] == arrows[witness.s][1]
        failed += fits and compose[witness.f, t] == compose[witness.s, g]
    return float(failed)


@verify.register
def _(witness: NoFillerWitness) -> float:
    if set(witness.required) != {0, 1, 2} or not set(witness.required.values()) <= set(
        _all_simplices(witness.vertices, witness.faces, 1)
    ):
        return float("inf")
    every = _all_simplices(witness.vertices, witness.faces, 2)
    return float(sum(all(_face(z, i, witness.faces) == y for i, y in witness.required.items()) for z in every))


@mismatch.register
def _(witness: NoFillerWitness, value: Any) -> float:
    return _count(value is not False or witness.required[2][0] != (0, 0))


@mismatch.register
def _(witness: OreWitness, value: Any) -> float:
    return _count(value is not False)


@verify.register
def _(witness: FractionsWitness) -> float:
    arrows, after, inverted = witness.arrows, witness.compose, witness.inverted
    if not (inverted <= set(arrows) and set(witness.identity.values()) <= inverted and _is_table(arrows, after)):
        return float("inf")
    failed = sum(after[s, t] not in inverted for s, t in product(inverted, inverted) if arrows[s][1] == arrows[t][0])
    leaving: dict[Name, list[Name]] = {}
    for f, (x, _) in arrows.items():
        leaving.setdefault(x, []).append(f)
    for s in inverted:
        for f in leaving[arrows[s][0]]:
            sides = {after[s, g] for g in leaving[arrows[s][1]]}
            failed += not any(t in inverted and after[f, t] in sides for t in leaving[arrows[f][1]])
        for f, g in combinations(leaving[arrows[s][1]], 2):
            if arrows[f] == arrows[g] and after[s, f] == after[s, g]:
                failed += not any(t in inverted and after[f, t] == after[g, t] for t in leaving[arrows[f][1]])
    return float(failed)


@mismatch.register
def _(witness: FractionsWitness, value: Any) -> float:
    return _count(value is not True)


def _is_table(arrows: Arrows, compose: Composites) -> bool:
    """Whether just the pairs that fit have a composite, with the right ends."""
    pairs = {(f, g) for f, g in product(arrows, arrows) if arrows[f][1] == arrows[g][0]}
    return set(compose) == pairs and all(
        h in arrows and arrows[h] == (arrows[f][0], arrows[g][1]) for (f, g), h in compose.items()
    )


@mismatch.register
def _(witness: LocalizationWitness, value: Any) -> float:
    """The category, or for right fractions its opposite, and the functor on arrows."""
    arrows, compose = dict(value.category.arrows), dict(value.category.compose)
    if value.side == "right":
        arrows = {f: (y, x) for f, (x, y) in arrows.items()}
        compose = {(g, f): h for (f, g), h in compose.items()}
    same = arrows == witness.target_arrows and compose == witness.target_compose
    same = same and dict(value.category.identity) == witness.target_identity
    same = same and sorted(map(str, value.category.objects)) == sorted(map(str, witness.target_identity))
    return _count(not (same and dict(value.functor) == witness.functor and value.side in ("left", "right")))


@verify.register
def _(witness: LocalizationWitness) -> float:
    q, target, compose = witness.functor, witness.target_arrows, witness.target_compose
    if not (_is_table(witness.arrows, witness.compose) and _is_table(target, compose)):
        return float("inf")
    if set(q) != set(witness.arrows) or set(witness.target_identity) != set(witness.identity):
        return float("inf")
    failed = sum(witness.compose[witness.identity[x], f] != f for f, (x, _) in witness.arrows.items())
    failed += sum(q[e] != witness.target_identity[x] for x, e in witness.identity.items())
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
    n, costs = len(witness.potentials), np.asarray(witness.costs)
    if not witness.path or not set(witness.path) <= set(range(n)) or costs.shape != (n, n):
        return float("inf")
    if not (costs >= 0).all():
        return float("inf")
    steps = list(zip(witness.path, witness.path[1:]))
    total = sum(costs[a, b] for a, b in steps)
    finite = np.isfinite(witness.potentials)
    reached = witness.potentials[finite][:, None] + costs[finite]
    with np.errstate(invalid="ignore"):
        undercut = float(np.max(witness.potentials[None] - reached, initial=0.0, where=np.isfinite(reached)))
    start, end = witness.potentials[witness.path[0]], witness.potentials[witness.path[-1]]
    found = [abs(total - witness.length), abs(start), abs(end - witness.length), undercut]
    return float("inf") if np.isnan(found).any() else float(max(found))


@mismatch.register
def _(witness: PathWitness, value: Any) -> float:
    """The value is the path's vertices, or what was found with them. It is the only shortest path where each vertex but
    the first is entered by one edge that is on a shortest path, within 1e-13 of the length for each vertex."""
    if isinstance(value, tuple):
        return _count(value != witness.path)
    if value.vertices != witness.path:
        return float("inf")
    costs = np.asarray(witness.costs)
    room = 1e-13 * len(costs) * max(1.0, witness.length)
    entering = []
    for vertex in witness.path[1:]:
        through = witness.potentials + costs[:, vertex]
        entering.append(int((through - witness.potentials[vertex] <= room).sum()))
    word: list[int] = []
    for step in zip(witness.path, witness.path[1:]):
        for g in (witness.words or {})[step]:
            word = word[:-1] if word and word[-1] == -g else [*word, g]
    if value.unique != all(n == 1 for n in entering) or tuple(value.word) != tuple(word):
        return float("inf")
    return worst(abs(value.length - witness.length), abs(value.probability - float(np.exp(-witness.length))))
