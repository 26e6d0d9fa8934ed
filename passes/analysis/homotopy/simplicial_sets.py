"""Finite simplicial sets in Eilenberg–Zilber normal form: faces, degeneracies, horns, nerves of finite categories.

Every simplex is s*x for one monotone surjection s: [n] → [m] and one non-degenerate m-simplex x. Source: Goerss,
Jardine, Simplicial Homotopy Theory, chapter I; Lurie, Higher Topos Theory, sections 1.1.2 and 1.2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from math import comb
from typing import Any

import numpy as np

from aatc.passes.analysis.chains.complexes import ChainComplex, SimplicialComplex
from aatc.passes.analysis.homotopy.verify_homotopy import KanWitness
from aatc.passes.analysis.result import AnalysisError, Result, Undecided

#: Names of simplices, objects and arrows: any hashable values.
Name = Any
#: Simplices or horns looked at before an enumeration is given up.
LIMIT = 1 << 18


@dataclass(frozen=True)
class Simplex:
    """``onto``, a monotone surjection as its values (0 = v_0 ≤ … ≤ v_n, steps of at most 1), applied to ``name``, a
    non-degenerate simplex of dimension ``onto[-1]``."""

    onto: tuple[int, ...]
    name: Name

    @property
    def dimension(self) -> int:
        return len(self.onto) - 1

    @property
    def is_degenerate(self) -> bool:
        return self.onto[-1] < len(self.onto) - 1


class SimplicialSet:
    """A simplicial set with finitely many non-degenerate simplices (or its skeleton up to ``skeleton``).

    ``faces[x]`` are the faces d_0 x, …, d_n x of the non-degenerate simplices, as `Simplex`; vertices have none.
    Raises AnalysisError where d_i d_j = d_{j−1} d_i (i < j) fails, which is not looked at where the faces are said to
    fit ``by_theorem``, and for a name that is used twice.
    """

    def __init__(
        self,
        vertices: Iterable[Name],
        faces: Mapping[Name, Sequence[Simplex]],
        *,
        skeleton: int | None = None,
        by_theorem: bool = False,
    ) -> None:
        self.faces = {x: tuple(f) for x, f in faces.items()}
        self.skeleton = skeleton
        self.by_dimension: list[list[Name]] = [list(vertices)]
        for x, f in self.faces.items():
            if len(f) < 2:
                raise AnalysisError(f"{x!r} has {len(f)} faces; a simplex of dimension n ≥ 1 has n + 1")
            while len(self.by_dimension) < len(f):
                self.by_dimension.append([])
            self.by_dimension[len(f) - 1].append(x)
        self._dimension = {x: n for n, names in enumerate(self.by_dimension) for x in names}
        if len(self._dimension) != sum(map(len, self.by_dimension)):
            raise AnalysisError("two simplices have the same name")
        for x in () if by_theorem else self.faces:
            self._check(x)

    def _check(self, x: Name) -> None:
        z = self.simplex(x)
        for f in self.faces[x]:
            if not f.onto or f.onto[0] or any(b - a not in (0, 1) for a, b in zip(f.onto, f.onto[1:])):
                raise AnalysisError(f"a face of {x!r} is no image under a monotone surjection: {f}")
            if f.dimension != z.dimension - 1 or self._dimension.get(f.name) != f.onto[-1]:
                raise AnalysisError(f"a face of {x!r} is no simplex of dimension {z.dimension - 1}: {f}")
        for i, j in combinations(range(z.dimension + 1), 2):
            if z.dimension > 1 and self.face(self.face(z, j), i) != self.face(self.face(z, i), j - 1):
                raise AnalysisError(f"d_{i} d_{j} ≠ d_{j - 1} d_{i} on {x!r}")

    @property
    def dimension(self) -> int:
        """The highest dimension of a non-degenerate simplex; −1 when there is none."""
        return max((n for n, names in enumerate(self.by_dimension) if names), default=-1)

    def nondegenerate(self, n: int) -> list[Name]:
        return self.by_dimension[n] if 0 <= n < len(self.by_dimension) else []

    def simplex(self, name: Name) -> Simplex:
        """The non-degenerate simplex of that name. Raises AnalysisError where there is none."""
        if name not in self._dimension:
            raise AnalysisError(f"there is no simplex {name!r}")
        return Simplex(tuple(range(self._dimension[name] + 1)), name)

    def count(self, n: int) -> int:
        """How many simplices of dimension n there are, degenerate ones included."""
        return sum(comb(n, m) * len(names) for m, names in enumerate(self.by_dimension[: n + 1]))

    def simplices(self, n: int) -> Iterator[Simplex]:
        """All simplices of dimension n, degenerate ones included."""
        for m in range(min(n, self.dimension) + 1):
            for jumps in combinations(range(1, n + 1), m):
                onto, at = [], 0
                for k in range(n + 1):
                    at += k in jumps
                    onto.append(at)
                for x in self.by_dimension[m]:
                    yield Simplex(tuple(onto), x)

    def face(self, z: Simplex, i: int) -> Simplex:
        """d_i z."""
        if not 0 <= i <= z.dimension or z.dimension == 0:
            raise AnalysisError(f"a simplex of dimension {z.dimension} has no face d_{i}")
        left = z.onto[:i] + z.onto[i + 1 :]
        missed = z.onto[i]
        if missed in left:
            return Simplex(left, z.name)
        lower = self.faces[z.name][missed]
        return Simplex(tuple(lower.onto[v - (v > missed)] for v in left), lower.name)

    def degeneracy(self, z: Simplex, i: int) -> Simplex:
        """s_i z."""
        if not 0 <= i <= z.dimension:
            raise AnalysisError(f"a simplex of dimension {z.dimension} has no degeneracy s_{i}")
        return Simplex((*z.onto[: i + 1], *z.onto[i:]), z.name)

    def vertex(self, z: Simplex, i: int) -> Name:
        """The i-th vertex."""
        for k in range(z.dimension, -1, -1):
            if k != i:
                z = self.face(z, k)
        return z.name

    def chain_complex(self) -> ChainComplex:
        """Normalised chains: non-degenerate simplices, degenerate faces being zero. Of a skeleton, the homology of the
        top degree is too large."""
        counts = [len(names) for names in self.by_dimension[: max(self.dimension, 0) + 1]]
        place = [{x: n for n, x in enumerate(names)} for names in self.by_dimension]
        boundaries = []
        for k in range(1, len(counts)):
            matrix = np.zeros((counts[k - 1], counts[k]), dtype=np.int64)
            for column, x in enumerate(self.by_dimension[k]):
                for i, f in enumerate(self.faces[x]):
                    if not f.is_degenerate:
                        matrix[place[k - 1][f.name], column] += (-1) ** i
            boundaries.append(matrix)
        return ChainComplex(boundaries, counts)

    # --- horns ---------------------------------------------------------------------------------------------
    def horns(self, n: int, k: int) -> Iterator[dict[int, Simplex]]:
        """Maps of the horn Λⁿ_k: for every i ≠ k a simplex y_i of dimension n − 1, with d_i y_j = d_{j−1} y_i."""
        choices = list(self.simplices(n - 1))
        sides = [i for i in range(n + 1) if i != k]
        for horn in self.numbered_horns(n, k, choices):
            yield {i: choices[y] for i, y in zip(sides, horn)}

    def numbered_horns(self, n: int, k: int, choices: Sequence[Simplex]) -> Iterator[tuple[int, ...]]:
        """The same as numbers of ``choices``, all simplices of dimension n − 1, side by side: their faces are numbers,
        too, and each is looked up once."""
        sides = [i for i in range(n + 1) if i != k]
        number: dict[Simplex, int] = {}
        faces = [[number.setdefault(self.face(y, i), len(number)) for i in range(n)] if n > 1 else [] for y in choices]
        by_face: dict[tuple[int, int], list[int]] = {}
        for y, own in enumerate(faces):
            for i, face in enumerate(own):
                by_face.setdefault((i, face), []).append(y)

        def extend(chosen: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
            if len(chosen) == len(sides):
                yield chosen
                return
            j = sides[len(chosen)]
            known = list(zip(sides, (faces[y] for y in chosen))) if n > 1 else []
            lists = [by_face.get((i, own[j - 1]), ()) for i, own in known]
            for y in min(lists, key=len) if lists else range(len(choices)):
                if all(faces[y][i] == own[j - 1] for i, own in known):
                    yield from extend((*chosen, y))

        yield from extend(())

    def fillers(self, n: int, horn: Mapping[int, Simplex]) -> list[Simplex]:
        """The n-simplices whose faces are those of the horn."""
        return [z for z in self.simplices(n) if all(self.face(z, i) == y for i, y in horn.items())]


@dataclass(frozen=True)
class KanReport:
    """For every (n, k) looked at, how many horns there are and how many have a filler. ``unfilled`` is the first horn
    without one, as (n, k, faces)."""

    counts: dict[tuple[int, int], tuple[int, int]]
    unfilled: tuple[int, int, dict[int, Simplex]] | None = field(default=None, repr=False)

    def _all(self, wanted: Callable[[int, int], bool]) -> bool:
        return all(total == filled for (n, k), (total, filled) in self.counts.items() if wanted(n, k))

    @property
    def is_kan(self) -> bool:
        """Whether every horn has a filler, up to the dimension looked at. AnalysisError where only inner ones were."""
        if (1, 0) not in self.counts:
            raise AnalysisError("outer horns were not looked at", hint="kan_condition(…, inner=False)")
        return self._all(lambda n, k: True)

    @property
    def is_quasicategory(self) -> bool:
        """Whether every inner horn (0 < k < n) has one."""
        return self._all(lambda n, k: 0 < k < n)


def kan_condition(
    x: SimplicialSet, top: int = 3, *, limit: int = LIMIT, inner: bool = False
) -> Result[KanReport | Undecided]:
    """Looks for a filler of every horn, or with ``inner`` of every inner one, of dimension 1 to ``top``; P0 up to that
    dimension.

    `Undecided` when there are more than ``limit`` horns, or simplices of one dimension. A skeleton has fillers below
    its bound only: AnalysisError where ``top`` is above it, and for ``top`` < 1.
    """
    if top < 1:
        raise AnalysisError(f"horns have dimension 1 and more, and top is {top}")
    if x.skeleton is not None and top > x.skeleton:
        raise AnalysisError(f"this is a skeleton of dimension {x.skeleton}: horns of dimension {top} lack fillers")
    counts: dict[tuple[int, int], tuple[int, int]] = {}
    first: tuple[int, int, dict[int, Simplex]] | None = None
    seen = 0
    for n in range(1, top + 1):
        if x.count(n) > limit:
            return Result(Undecided(f"{limit} simplices", f"dimension {n} has {x.count(n)}"), "P0")
        choices = list(x.simplices(n - 1))
        number = {y: i for i, y in enumerate(choices)}
        whole = [tuple(number[x.face(z, i)] for i in range(n + 1)) for z in x.simplices(n)]
        for k in range(1, n) if inner else range(n + 1):
            boundary = {(*faces[:k], *faces[k + 1 :]) for faces in whole}
            total = filled = 0
            for horn in x.numbered_horns(n, k, choices):
                seen += 1
                if seen > limit:
                    return Result(Undecided(f"{limit} horns", f"up to dimension {n}"), "P0")
                total += 1
                if horn in boundary:
                    filled += 1
                elif first is None:
                    sides = [i for i in range(n + 1) if i != k]
                    first = (n, k, {i: choices[y] for i, y in zip(sides, horn)})
            counts[n, k] = (total, filled)
    unfilled = None if first is None else (first[0], first[1], _plain_horn(first[2]))
    witness = KanWitness(*plain(x), top, inner, counts, unfilled)
    return Result(KanReport(counts, first), "P0", witness=witness, assumptions=(f"dimensions up to {top}",))


def plain(x: SimplicialSet) -> tuple[tuple[Name, ...], dict[Name, tuple[tuple[tuple[int, ...], Name], ...]]]:
    """Vertices and faces as tuples (values of the surjection, name), as witnesses keep them."""
    return tuple(x.nondegenerate(0)), {name: tuple((f.onto, f.name) for f in faces) for name, faces in x.faces.items()}


def _plain_horn(horn: Mapping[int, Simplex]) -> dict[int, tuple[tuple[int, ...], Name]]:
    return {i: (y.onto, y.name) for i, y in horn.items()}


# --- where simplicial sets come from ------------------------------------------------------------------------
def of_complex(complex: SimplicialComplex, *, skeleton: int | None = None) -> SimplicialSet:
    """The simplicial set of a complex whose simplices are ordered by their vertices, also in directed flag complexes;
    names are tuples of vertices. ``skeleton`` says where a complex was cut off."""
    faces: dict[Name, list[Simplex]] = {}
    for k in range(1, complex.dimension + 1):
        for cell in complex.simplices(k).tolist():
            lower = [tuple(cell[:i] + cell[i + 1 :]) for i in range(k + 1)]
            faces[tuple(cell)] = [Simplex(tuple(range(k)), f) for f in lower]
    vertices = [tuple(v) for v in complex.simplices(0).tolist()]
    return SimplicialSet(vertices, faces, skeleton=skeleton, by_theorem=True)


def of_levels(
    levels: Sequence[Iterable[Name]],
    face: Callable[[Any, int], Name],
    degeneracy: Callable[[Any, int], Name],
    *,
    skeleton: int | None = None,
) -> SimplicialSet:
    """The simplicial set whose simplices of dimension n, degenerate ones included, are ``levels[n]``; ``face(x, i)``
    and ``degeneracy(x, i)`` are its operators. Non-degenerate simplices keep their names, paired with the dimension.
    Raises AnalysisError where the faces violate the simplicial identities."""

    def normal(x: Any, n: int) -> Simplex:
        for i in range(n):
            lower = face(x, i)
            if degeneracy(lower, i) == x:
                below = normal(lower, n - 1)
                return Simplex((*below.onto[: i + 1], *below.onto[i:]), below.name)
        return Simplex(tuple(range(n + 1)), (n, x))

    faces: dict[Name, list[Simplex]] = {}
    for n, level in enumerate(levels[1:], 1):
        for x in level:
            if not normal(x, n).is_degenerate:
                faces[n, x] = [normal(face(x, i), n - 1) for i in range(n + 1)]
    return SimplicialSet([(0, x) for x in levels[0]], faces, skeleton=skeleton)


@dataclass(frozen=True)
class Category:
    """A finite category: ``objects``; ``arrows`` name → (source, target), identities included under ``identity[x]``;
    ``compose[f, g]`` is first f, then g, for every pair that fits and for no other. Raises AnalysisError where units or
    associativity fail."""

    objects: tuple[Name, ...]
    arrows: Mapping[Name, tuple[Name, Name]]
    identity: Mapping[Name, Name]
    compose: Mapping[tuple[Name, Name], Name]

    def __post_init__(self) -> None:
        ends = {x for pair in self.arrows.values() for x in pair}
        if set(self.identity) != set(self.objects) or not ends <= set(self.objects):
            raise AnalysisError("every object has one identity, and arrows run between the objects")
        for x, e in self.identity.items():
            if self.arrows.get(e) != (x, x):
                raise AnalysisError(f"the identity {e!r} of {x!r} is no arrow from {x!r} to itself")
        leaving: dict[Name, list[Name]] = {x: [] for x in self.objects}
        for f, (x, _) in self.arrows.items():
            leaving[x].append(f)
        fitting = [(f, g) for f, (_, y) in self.arrows.items() for g in leaving[y]]
        missing = [p for p in fitting if p not in self.compose]
        if missing:
            raise AnalysisError(f"the composite of {missing[0][0]!r} and {missing[0][1]!r} is not given")
        if len(fitting) < len(self.compose):
            f, g = next(iter(set(self.compose) - set(fitting)))
            raise AnalysisError(f"{f!r} and {g!r} do not fit, but a composite is given")
        for f, g in fitting:
            if self.arrows.get(self.compose[f, g]) != (self.arrows[f][0], self.arrows[g][1]):
                raise AnalysisError(f"the composite of {f!r} and {g!r} is no arrow between their outer ends")
        for f, (a, b) in self.arrows.items():
            if self.compose[self.identity[a], f] != f or self.compose[f, self.identity[b]] != f:
                raise AnalysisError(f"composing {f!r} with an identity changes it")
        for f, g in fitting:
            for h in leaving[self.arrows[g][1]]:
                if self.compose[self.compose[f, g], h] != self.compose[f, self.compose[g, h]]:
                    raise AnalysisError(f"({f!r}, {g!r}, {h!r}) does not compose associatively")

    @staticmethod
    def of_poset(objects: Iterable[Name], less: Callable[[Any, Any], bool]) -> Category:
        """The category with one arrow (x, y) for x ≤ y; ``less`` may be any preorder. AnalysisError where it is not
        transitive."""
        names = tuple(objects)
        arrows = {(x, y): (x, y) for x, y in product(names, repeat=2) if x == y or less(x, y)}
        compose = {(f, g): (f[0], g[1]) for f, g in product(arrows, repeat=2) if f[1] == g[0]}
        return Category(names, arrows, {x: (x, x) for x in names}, compose)

    @staticmethod
    def of_group(table: Sequence[Sequence[int]]) -> Category:
        """One object, an arrow for each element; ``table[a][b]`` is first a, then b; element 0 is the identity.
        AnalysisError for a table that is not square or makes no monoid."""
        n = len(table)
        if any(len(row) != n for row in table):
            raise AnalysisError(f"a table of {n} elements has {n} entries in each row")
        compose = {(a, b): table[a][b] for a, b in product(range(n), repeat=2)}
        return Category(("*",), {a: ("*", "*") for a in range(n)}, {"*": 0}, compose)

    def hom(self, x: Name, y: Name) -> list[Name]:
        """The arrows from x to y."""
        return [f for f, ends in self.arrows.items() if ends == (x, y)]

    def inverse(self, f: Name) -> Name | None:
        """The arrow that undoes f on both sides, or None where f is no isomorphism."""
        a, b = self.arrows[f]
        for g in self.hom(b, a):
            if self.compose[f, g] == self.identity[a] and self.compose[g, f] == self.identity[b]:
                return g
        return None

    def opposite(self) -> Category:
        """The category with all arrows turned round."""
        turned = {f: (b, a) for f, (a, b) in self.arrows.items()}
        return Category(self.objects, turned, self.identity, {(g, f): h for (f, g), h in self.compose.items()})


def nerve(category: Category, top: int) -> SimplicialSet:
    """The nerve up to dimension ``top``: strings of composable arrows, non-degenerate without identities. Vertices are
    named (object, "object"). It is a skeleton where there are strings longer than ``top``."""
    units = set(category.identity.values())
    proper = {f: ends for f, ends in category.arrows.items() if f not in units}
    leaving: dict[Name, list[Name]] = {}
    for f, (x, _) in proper.items():
        leaving.setdefault(x, []).append(f)
    strings: list[tuple[Name, ...]] = [(f,) for f in proper]
    faces: dict[Name, list[Simplex]] = {}
    for n in range(1, top + 1):
        for s in strings:
            faces[s] = [_string_face(category, s, i, units) for i in range(n + 1)]
        strings = [(*s, g) for s in strings for g in leaving.get(proper[s[-1]][1], ())]
    skeleton = top if strings else None
    vertices = [(x, "object") for x in category.objects]
    return SimplicialSet(vertices, faces, skeleton=skeleton, by_theorem=True)  # as composition is associative


def _string_face(category: Category, s: tuple[Name, ...], i: int, units: set[Name]) -> Simplex:
    if len(s) == 1:
        return Simplex((0,), (category.arrows[s[0]][1 - i], "object"))
    if i in (0, len(s)):
        left = s[1:] if i == 0 else s[:-1]
    else:
        left = (*s[: i - 1], category.compose[s[i - 1], s[i]], *s[i + 1 :])
    onto, at = [0], 0
    for f in left:
        at += f not in units
        onto.append(at)
    proper = tuple(f for f in left if f not in units)
    return Simplex(tuple(onto), proper if proper else (category.arrows[left[0]][0], "object"))
